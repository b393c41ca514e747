//! What a plugin says of itself, and the settings it is filled in with. Whatever passes `check`
//! and `resolve` allows only what the operator can be shown: https or an origin the operator
//! typed, public or named addresses, a validate URL among the origins.

use keywheel::egress::policy;
use keywheel::provider::{
    CommitClass, CookieLocation, KeySpec, Location, Manifest, MethodSpec, Resolved, SettingKind, SettingSpec,
};
use keywheel::registry::manifest::{check, resolve};
use keywheel::registry::permissions::{Permissions, difference};
use url::Url;

use crate::{read, write};

type Input = (Manifest, Vec<(String, String)>, Vec<String>);

pub fn run(input: &[u8]) {
    let Some((manifest, settings, private_hosts)) = read::<Input>(input) else { return };
    if let Err(error) = check(&manifest) {
        readable(&error.to_string());
        return;
    }
    let asked = Permissions::of(&manifest);
    let none = difference(&asked, &asked);
    assert!(none.is_empty() && !none.is_wider(), "{none:?}");
    asked.lines().iter().for_each(|line| readable(line));
    match resolve(&manifest, &settings, &private_hosts) {
        Ok(resolved) => judge(&manifest, &settings, &resolved),
        Err(error) => readable(&error.to_string()),
    }
}

/// For a terminal and a log: nothing that moves a cursor, and an end.
fn readable(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 64 << 10, "an error of {} bytes", text.len());
}

fn judge(manifest: &Manifest, settings: &[(String, String)], resolved: &Resolved) {
    for origin in &resolved.origins {
        let text = origin.to_string();
        let url = Url::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(url.host_str(), Some(origin.host.as_str()), "{text}");
        assert_eq!(url.port_or_known_default(), Some(origin.port), "{text}");
        assert!(policy::origin(&url, &resolved.origins).is_ok(), "{text} isn't its own origin");
        assert!(!origin.host.ends_with('.') && !origin.host.contains(['*', '@', '/', '\\', '%']), "{text}");
        if origin.operator_named {
            let typed = settings.iter().any(|(_, value)| {
                Url::parse(value).is_ok_and(|url| url.host_str() == Some(origin.host.as_str()))
            });
            assert!(typed, "{text} counts as the operator's, who typed {settings:?}");
        } else {
            assert_eq!(origin.scheme, "https", "{text}");
            if let Some(ip) = policy::literal(&origin.host) {
                let class = policy::classify(ip);
                assert!(
                    class == policy::AddressClass::Public || resolved.private_hosts.contains(&origin.host),
                    "{text} is {class}, and nobody typed it"
                );
                // The hint to the operator may be generous, the egress must not.
                let reachable = policy::allowed_address(ip, origin, &resolved.private_hosts);
                assert_eq!(reachable.is_ok(), class == policy::AddressClass::Public, "{text}");
            }
        }
    }
    if !resolved.validate_url.is_empty() {
        let url = Url::parse(&resolved.validate_url).expect("a resolved URL");
        let judged = policy::origin(&url, &resolved.origins);
        assert!(judged.is_ok(), "{}: {judged:?}", resolved.validate_url);
    }
    for spec in &resolved.keys {
        assert!(manifest.keys.iter().any(|key| key.name == spec.name && key.reveal == spec.reveal));
        if let Location::Cookie(CookieLocation { name, domain, path }) = &spec.location {
            let unfit = |c: char| c.is_control() || c == ';';
            assert!(!name.is_empty() && !name.contains(unfit) && !name.contains('='), "{name:?}");
            assert!(path.starts_with('/') && !path.contains(unfit), "{path:?}");
            assert_eq!(url::Host::parse(domain).map(|host| host.to_string()).as_deref(), Ok(domain.as_str()));
        }
    }
    assert_eq!(resolved.methods.len(), manifest.methods.len());
    assert_eq!(resolved.settings.len(), manifest.settings.len());
}

fn setting(name: &str, kind: SettingKind, default: Option<&str>) -> SettingSpec {
    SettingSpec {
        name: name.into(),
        kind,
        required: false,
        default: default.map(str::to_owned),
        choices: if kind == SettingKind::Choice { vec!["sliding".into(), "grace".into()] } else { vec![] },
        help: "help".into(),
    }
}

pub fn manifest() -> Manifest {
    let cookie = Location::Cookie(CookieLocation {
        name: "{cookie}".into(),
        domain: "{base_url.host}".into(),
        path: "/".into(),
    });
    let key = |name: &str, location| KeySpec {
        name: name.into(),
        location,
        required: false,
        reveal: true,
        help: String::new(),
    };
    Manifest {
        service: "forge".into(),
        title: "Forge".into(),
        version: "1.0.0".into(),
        validate_url: "{base_url}/me".into(),
        keys: vec![key("session", cookie), key("token", Location::Token)],
        origins: vec![
            "{base_url}".into(),
            "https://{region}.example.com:{port}".into(),
            "https://static.example.com".into(),
            "{login_url.origin}".into(),
        ],
        settings: vec![
            setting("base_url", SettingKind::Url, Some("https://forge.example")),
            setting("cookie", SettingKind::Text, Some("sid")),
            setting("region", SettingKind::Text, None),
            setting("port", SettingKind::Integer, Some("8443")),
            setting("class", SettingKind::Choice, Some("grace")),
            setting("login_url", SettingKind::Url, None),
            setting("window", SettingKind::Duration, Some("5m")),
            setting("strict", SettingKind::Boolean, None),
        ],
        methods: vec![MethodSpec {
            name: "refresh".into(),
            commit_class: CommitClass::BurnOnIssue,
            commit_class_setting: Some("class".into()),
            help: String::new(),
        }],
        validate_interval: 300,
        max_age: Some(3_600),
        extras: vec![("a".into(), "b".into())],
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let given = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    let mut plain = manifest();
    plain.settings.clear();
    plain.methods.clear();
    plain.origins = vec!["https://[2001:4860::1]:8443".into(), "https://xn--bcher-kva.example".into()];
    plain.validate_url = "https://xn--bcher-kva.example/me".into();
    plain.keys.remove(0);
    let mut small = plain.clone();
    small.origins = vec!["https://a.example".into()];
    small.validate_url = String::new();
    let inputs: Vec<Input> = vec![
        (manifest(), vec![], vec![]),
        (manifest(), given(&[("base_url", "http://127.0.0.1:8080"), ("region", "eu")]), vec![]),
        (manifest(), given(&[("login_url", "https://LOGIN.example/x/")]), vec!["::1".into()]),
        (plain, vec![], vec!["localhost".into()]),
        (small, vec![], vec![]),
    ];
    for (manifest, settings, hosts) in &inputs {
        check(manifest).expect("a seed is accepted");
        resolve(manifest, settings, hosts).expect("a seed resolves");
    }
    inputs.iter().map(write).collect()
}
