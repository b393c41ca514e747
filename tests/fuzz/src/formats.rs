//! Imports: any text is read or refused in words without control characters; what was read comes
//! back from each export; and what `select` keeps belongs to the service and fits a header.

use keywheel::credential::{Jar, Key, Secret};
use keywheel::egress::cookies;
use keywheel::formats::export::{
    to_browser_json, to_cookie_header, to_env, to_json, to_netscape, to_storage_state,
};
use keywheel::formats::{Format, Imported, ImportedCookie, parse, select};
use keywheel::provider::{AllowedOrigin, CookieLocation, KeySpec, Location, Resolved};
use url::Url;

const NOW: u64 = 1_700_000_000_000;

pub fn run(input: &[u8]) {
    let [hint, text @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let format = match hint % 5 {
        0 => None,
        1 => Some(Format::Netscape),
        2 => Some(Format::StorageState),
        3 => Some(Format::BrowserJson),
        _ => Some(Format::KeyValue),
    };
    let imported = match parse(text, format) {
        Ok(imported) => imported,
        Err(error) => return readable(&error.to_string()),
    };
    if !imported.cookies.is_empty() {
        comes_back(&imported.cookies);
    }
    belongs(imported);
}

fn readable(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}

fn key(name: String, cookie: &ImportedCookie) -> Key {
    Key {
        name,
        secret: cookie.value.clone(),
        fingerprint: String::new(),
        expires: cookie.expires,
        cookie: Some(cookie.attributes.clone()),
    }
}

fn jar(cookies: &[ImportedCookie]) -> Jar {
    Jar { keys: cookies.iter().enumerate().map(|(at, cookie)| key(format!("k{at}"), cookie)).collect() }
}

fn reread(secret: &Secret, format: Format) -> Vec<ImportedCookie> {
    let text = std::str::from_utf8(secret.expose()).expect("an export is text");
    let found = parse(text, None).unwrap_or_else(|error| panic!("{format}: {error}: {text}"));
    let asked = parse(text, Some(format)).unwrap_or_else(|error| panic!("{format}: {error}: {text}"));
    assert_eq!(found, asked, "the format is told by the text");
    found.cookies
}

fn comes_back(cookies: &[ImportedCookie]) {
    let jar = jar(cookies);
    let again = reread(&to_browser_json(&jar).expect("any cookie"), Format::BrowserJson);
    assert_eq!(again, cookies, "browser JSON");
    let again = reread(&to_storage_state(&jar).expect("any cookie"), Format::StorageState);
    let mut wanted = cookies.to_vec();
    for cookie in &mut wanted {
        // Playwright knows no unset one.
        cookie.attributes.same_site.get_or_insert_with(|| "Lax".into());
    }
    assert_eq!(again, wanted, "storageState");
    // A tab or a line break is refused, everything else comes back but for what it has no field for.
    if let Ok(text) = to_netscape(&jar) {
        let mut wanted = cookies.to_vec();
        for cookie in &mut wanted {
            cookie.attributes.same_site = None;
            cookie.expires = cookie.expires.map(|at| (at / 1_000).max(1) * 1_000);
        }
        assert_eq!(reread(&text, Format::Netscape), wanted, "cookies.txt");
    }
    to_json(&jar).expect("text is JSON");
    let _ = to_env(&jar);
}

fn resolved() -> Resolved {
    let origin = |host: &str| AllowedOrigin {
        scheme: "https".into(),
        host: host.into(),
        port: 443,
        operator_named: false,
    };
    let spec = |name: &str, location| KeySpec {
        name: name.into(),
        location,
        required: false,
        reveal: false,
        help: String::new(),
    };
    let cookie = |name: &str, domain: &str| {
        Location::Cookie(CookieLocation { name: name.into(), domain: domain.into(), path: "/".into() })
    };
    Resolved {
        validate_url: "https://app.example.com/me".into(),
        keys: vec![
            spec("session", cookie("sid", "app.example.com")),
            spec("site", cookie("site", "example.com")),
            spec("token", Location::Token),
        ],
        origins: vec![origin("app.example.com"), origin("192.0.2.7")],
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    }
}

fn belongs(imported: Imported) {
    let resolved = resolved();
    let selection = match select(imported, &resolved, NOW) {
        Ok(selection) => selection,
        Err(error) => return readable(&error.to_string()),
    };
    let mut jar = Jar::default();
    for selected in selection.keys {
        if let Some(cookie) = &selected.cookie {
            let sent = resolved.origins.iter().any(|origin| {
                origin.host == cookie.domain
                    || (!cookie.host_only && cookies::domain_matches(&origin.host, &cookie.domain))
            });
            assert!(sent, "a cookie for {} was kept", cookie.domain);
        }
        assert!(jar.get(&selected.name).is_none(), "{} twice", selected.name);
        jar.put(Key {
            name: selected.name,
            secret: selected.secret,
            fingerprint: String::new(),
            expires: selected.expires,
            cookie: selected.cookie,
        });
    }
    for url in ["https://app.example.com/", "https://192.0.2.7/a/b", "http://app.example.com/a"] {
        let parsed = Url::parse(url).expect("a URL");
        let line = cookies::header(&jar, &parsed, NOW).expect("what was imported fits a header");
        let shown = to_cookie_header(&jar, url, NOW);
        // The export says what the egress would send.
        match (line, shown) {
            (Some(line), Ok(shown)) => {
                let shown = shown.expose().strip_prefix(b"Cookie: ").expect("its name");
                assert_eq!(line.as_bytes(), shown);
            }
            (None, Err(_)) => {}
            (line, shown) => panic!("{url}: the egress sends {line:?}, the export says {shown:?}"),
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "# Netscape HTTP Cookie File\n.example.com\tTRUE\t/\tTRUE\t1900000000\tsite\tv=1\n#HttpOnly_app.example.com\tFALSE\t/a\tFALSE\t0\tsid\tabc\r\n",
        "192.0.2.7\tFALSE\t/\tFALSE\t1.5e9\tn\t\n",
        r#"{"cookies":[{"name":"sid","value":"v","domain":"app.example.com","path":"/","expires":1900000000.5,"httpOnly":true,"secure":true,"sameSite":"Strict"}],"origins":[]}"#,
        r#"[{"name":"site","value":"v\u00e9","domain":".example.com","path":"/","hostOnly":false,"session":true,"expirationDate":1,"httpOnly":false,"secure":false,"sameSite":"no_restriction"},{"name":"sid","value":"","domain":"app.example.com"}]"#,
        "# mine\nsession=a=b\ntoken = c ",
        "\u{feff}[]",
        "app.example.com TRUE / FALSE 0 n v",
        "<html>",
    ];
    (0..5).flat_map(|hint: u8| texts.iter().map(move |text| [&[hint], text.as_bytes()].concat())).collect()
}
