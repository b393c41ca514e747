//! Fresh tokens out of a hostile answer: rules that pass fill token keys alone, each once; what
//! was taken is gone from headers and body once redaction has run over them.

use http::{HeaderMap, HeaderName, HeaderValue};
use keywheel::egress::capture::{check, harvest};
use keywheel::egress::redact::{FLOOR, MARKER, Redactor};
use keywheel::limits;
use keywheel::protocol::{Capture, Source};
use keywheel::provider::{CookieLocation, KeySpec, Location, Resolved};

use crate::{contains, read, write};

/// Rules, headers, body.
type Input = (Vec<Capture>, Vec<(String, Vec<u8>)>, Vec<u8>);

const NOW: u64 = 1_700_000_000_000;

fn resolved() -> Resolved {
    let spec = |name: &str, location| KeySpec {
        name: name.into(),
        location,
        required: false,
        reveal: false,
        help: String::new(),
    };
    let cookie = CookieLocation { name: "sid".into(), domain: "a.example".into(), path: "/".into() };
    Resolved {
        validate_url: String::new(),
        keys: vec![
            spec("access", Location::Token),
            spec("refresh", Location::Token),
            spec("session", Location::Cookie(cookie)),
        ],
        origins: vec![],
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    }
}

pub fn run(input: &[u8]) {
    let Some((rules, given, mut body)) = read::<Input>(input) else { return };
    if let Err(error) = check(&rules, &resolved()) {
        assert!(!error.to_string().is_empty());
        return;
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given.into_iter().take(64) {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value))
        {
            headers.append(name, value);
        }
    }
    let before = body.clone();
    let harvest = harvest(&rules, &[], &mut headers, &mut body, NOW, &Redactor::default());
    assert_eq!(harvest.taken.len() + harvest.skipped.len(), rules.len());
    for taken in &harvest.taken {
        assert!(["access", "refresh"].contains(&taken.key.as_str()), "{} was filled", taken.key);
        let length = taken.secret.expose().len();
        assert!((1..=limits::SECRET_BYTES).contains(&length));
        assert!(taken.expires.is_none_or(|at| at >= NOW));
    }
    if rules.is_empty() {
        assert_eq!(body, before);
    }
    // The plugin sees this.
    let redactor = Redactor::new(harvest.taken.iter().map(|taken| taken.secret.expose()));
    let Ok(body) = redactor.redact(&body) else { return };
    for taken in &harvest.taken {
        let value = taken.secret.expose();
        if value.len() < FLOOR
            || value.iter().any(|b| b"[]".contains(b))
            || contains(MARKER.as_bytes(), value)
        {
            continue;
        }
        assert!(!contains(&body, value), "{value:?} is left in the body");
        for header in headers.values() {
            let Ok(header) = redactor.redact(header.as_bytes()) else { continue };
            assert!(!contains(&header, value), "{value:?} is left in a header");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let rule = |key: &str, from, expires_in| Capture { key: key.into(), from, expires_in };
    let pointer = |text: &str| Source::JsonPointer(text.into());
    let inputs: Vec<Input> = vec![
        (
            vec![
                rule("access", pointer("/a/0/t"), Some(pointer("/e"))),
                rule("refresh", Source::Header("x-t".into()), Some(Source::Header("x-e".into()))),
            ],
            vec![("x-t".into(), b"header-token".to_vec()), ("x-e".into(), b"60".to_vec())],
            br#"{"a":[{"t":"json-\u0074oken"}],"e":3600.5,"echo":"json-token"}"#.to_vec(),
        ),
        (vec![rule("access", pointer("/t"), None)], vec![], br#"{"t":12345678,"n":1e400}"#.to_vec()),
        (vec![rule("access", pointer(""), None)], vec![], br#""whole-body""#.to_vec()),
        (vec![rule("session", pointer("/t"), None)], vec![], b"{}".to_vec()),
        (vec![], vec![], b"text".to_vec()),
    ];
    inputs.iter().map(write).collect()
}
