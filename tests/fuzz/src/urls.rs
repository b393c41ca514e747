//! URLs and addresses at the policy's door: the URL that was judged is the one that is connected
//! to, on every hop, and no address outside what the operator opened is ever allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use keywheel::credential::Jar;
use keywheel::egress::policy::{self, AddressClass, Reach};
use keywheel::egress::template::Filler;
use keywheel::protocol::Part;
use keywheel::provider::{AllowedOrigin, Resolved};
use url::Url;

use crate::{read, write};

/// The plugin's URL, a redirect's location, origins (URL, typed by the operator), opened hosts,
/// an address.
type Input = (String, String, Vec<(String, bool)>, Vec<String>, [u8; 16]);

pub fn run(input: &[u8]) {
    let Some((text, location, origins, private_hosts, address)) = read::<Input>(input) else { return };
    let origins: Vec<AllowedOrigin> = origins
        .into_iter()
        .filter_map(|(text, operator_named)| {
            let url = Url::parse(&text).ok()?;
            Some(AllowedOrigin {
                scheme: url.scheme().to_owned(),
                host: url.host_str()?.to_owned(),
                port: url.port_or_known_default()?,
                operator_named,
            })
        })
        .collect();
    let resolved = Resolved {
        validate_url: String::new(),
        keys: vec![],
        origins,
        private_hosts,
        settings: vec![],
        methods: vec![],
    };
    let jar = Jar::default();
    if let Ok(filled) = Filler::new(&resolved, &jar).url(&[Part::Text(text.clone())], 64 << 10) {
        let filled = std::str::from_utf8(&filled.bytes).expect("text stays text");
        assert_eq!(filled, text);
        if let Ok(url) = Url::parse(filled) {
            hop(&url, &resolved);
            if let Ok(next) = url.join(&location) {
                hop(&next, &resolved);
                let origin = policy::origin(&url, &resolved.origins).ok();
                if policy::same_origin(&url, &next) && next.username().is_empty() && next.password().is_none()
                {
                    assert_eq!(origin, policy::origin(&next, &resolved.origins).ok());
                }
            }
        }
    }
    judge(IpAddr::V6(Ipv6Addr::from(address)), &resolved);
    judge(IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3])), &resolved);
    if let Ok(name) = policy::header_name(&text) {
        assert!(http::HeaderName::from_bytes(text.as_bytes()).is_ok());
        assert!(
            !["host", "cookie", "connection", "transfer-encoding", "content-length"].contains(&name.as_str())
        );
    }
}

/// As `client` does it, with what the HTTP stack makes of the same URL.
fn hop(url: &Url, resolved: &Resolved) {
    let Ok(origin) = policy::origin(url, &resolved.origins) else { return };
    assert!(origin.scheme == "https" || (origin.scheme == "http" && origin.operator_named), "{url}");
    // reqwest hands hyper this, and refuses the request where it is none.
    let Ok(uri) = http::Uri::try_from(url.as_str()) else { return };
    let authority = uri.authority().expect("an absolute URL");
    assert_eq!(uri.scheme_str(), Some(origin.scheme.as_str()), "{url}");
    assert_eq!(authority.host(), origin.host, "{url}");
    assert!(!authority.as_str().contains('@'), "{url}");
    let default = if origin.scheme == "https" { 443 } else { 80 };
    assert_eq!(authority.port_u16().unwrap_or(default), origin.port, "{url}");
    // What hyper takes for an address, and so asks no resolver about, was judged as one.
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
    let dialled: Option<IpAddr> = bare.parse().ok();
    let judged = match url.host() {
        Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    };
    assert_eq!(dialled, judged, "{url}");
    assert_eq!(policy::literal(&origin.host), judged, "{url}");
    if let Some(ip) = judged {
        let allowed = policy::allowed_address(ip, origin, &resolved.private_hosts).is_ok();
        let class = policy::classify(ip);
        assert!(!allowed || class == AddressClass::Public || origin.operator_named, "{url}: {class}");
        assert!(
            !allowed || !matches!(class, AddressClass::Metadata | AddressClass::Special),
            "{url}: {class}"
        );
    }
}

fn judge(ip: IpAddr, resolved: &Resolved) {
    let class = policy::classify(ip);
    for reach in Reach::ALL {
        if reach.allows(class) {
            assert!(
                !matches!(class, AddressClass::Metadata | AddressClass::Special | AddressClass::LinkLocal),
                "{ip} is {class}"
            );
        }
    }
    let obviously_private = match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => {
            // An address inside leads where it leads, whatever it is wrapped in.
            if let Some(v4) = v6.to_ipv4_mapped() {
                assert_eq!(class, policy::classify(IpAddr::V4(v4)), "{ip}");
            }
            v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_unspecified()
        }
    };
    assert!(!(obviously_private && Reach::Public.allows(class)), "{ip} is {class}");
    for origin in &resolved.origins {
        if policy::allowed_address(ip, origin, &resolved.private_hosts).is_ok() {
            assert!(class == AddressClass::Public || origin.operator_named, "{origin} reaches {ip}");
            assert!(
                !matches!(class, AddressClass::Metadata | AddressClass::Special),
                "{origin} reaches {ip}"
            );
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    let origins = |list: &[(&str, bool)]| list.iter().map(|(text, named)| ((*text).into(), *named)).collect();
    let inputs: Vec<Input> = vec![
        (
            "https://API.example.com:443/x?y#z".into(),
            "//evil.test/..".into(),
            origins(&[("https://api.example.com", false)]),
            vec!["api.example.com".into()],
            v6("::ffff:169.254.169.254"),
        ),
        (
            "http://0x7f.1:8080/".into(),
            "http://user:p@127.0.0.1:8080/".into(),
            origins(&[("http://127.0.0.1:8080", true), ("http://localhost", true)]),
            vec!["127.0.0.1".into()],
            v6("64:ff9b::10.0.0.1"),
        ),
        (
            "https://[::ffff:1.2.3.4]/".into(),
            "https:\\\\a.example".into(),
            origins(&[("https://[::ffff:1.2.3.4]", true), ("https://a.example.", false)]),
            vec![],
            v6("2002:a9fe:a9fe::"),
        ),
        (
            "https://xn--bcher-kva.example/%2e%2e/".into(),
            "https://bücher.example".into(),
            origins(&[("https://bücher.example", false), ("ftp://x", true), ("https://a%41.example", true)]),
            vec![],
            v6("fd00:ec2::254"),
        ),
        ("Authorization".into(), "/".into(), vec![], vec![], v6("::1")),
    ];
    inputs.iter().map(write).collect()
}
