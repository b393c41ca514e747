//! Templates: where a plugin's text and secrets meet. Nothing filled in ends a header's line,
//! a secret stands only where it was referenced and reads back from its encoding, a secret never
//! moves a URL to another place, and no error holds one.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use keywheel::credential::{Jar, Key, Secret};
use keywheel::egress::template::Filler;
use keywheel::protocol::{HttpRequest, Leaf, Part, Template};
use keywheel::provider::{Encoding, KeySpec, Location, Resolved};
use url::Url;

use crate::{contains, frames, read, write};

/// The request and the values of the keys it may name.
type Input = (HttpRequest, Vec<(String, Vec<u8>)>);

const ALLOWED: usize = 64 << 10;

fn resolved(names: impl Iterator<Item = String>) -> Resolved {
    Resolved {
        validate_url: String::new(),
        keys: names
            .map(|name| KeySpec {
                name,
                location: Location::Token,
                required: false,
                reveal: false,
                help: String::new(),
            })
            .collect(),
        origins: vec![],
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    }
}

fn jar(values: &[(String, Vec<u8>)]) -> Jar {
    let mut jar = Jar::default();
    for (name, value) in values {
        jar.put(Key {
            name: name.clone(),
            secret: Secret::new(value.clone()),
            fingerprint: String::new(),
            expires: None,
            cookie: None,
        });
    }
    jar
}

pub fn run(input: &[u8]) {
    let Some((request, values)) = read::<Input>(input) else { return };
    let jar = jar(&values);
    // The last key is in the jar and not in the mapping: a cookie that merely travels along.
    let unmapped = values.last().map(|(name, _)| name.clone());
    let resolved =
        resolved(values.iter().map(|(name, _)| name.clone()).filter(|n| Some(n) != unmapped.as_ref()));
    for (name, template) in &request.headers {
        match Filler::new(&resolved, &jar).header(name, template, ALLOWED) {
            Ok(filled) => {
                let breaks = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
                assert!(!filled.bytes.iter().any(breaks), "{:?}", filled.bytes);
                assert!(filled.bytes.len() <= ALLOWED);
                assert!(filled.secret || !references(template), "an unmarked secret");
            }
            Err(error) => keeps_quiet(&error.to_string(), &values, &request),
        }
    }
    let templates = request.headers.iter().map(|(_, template)| template).chain(&request.body);
    for template in templates.chain([&request.url]) {
        whole(template, &resolved, &jar, &values, &request);
        for part in template {
            alone(part, &resolved, &jar);
        }
    }
    in_place(&request.url, &resolved, &jar, &values);
}

fn references(template: &Template) -> bool {
    template.iter().any(|part| match part {
        Part::Text(_) => false,
        Part::Secret { .. } => true,
        Part::Encoded { leaves, .. } => leaves.iter().any(|leaf| matches!(leaf, Leaf::Secret { .. })),
    })
}

/// Where nothing is referenced, what comes out is the plugin's own text.
fn whole(
    template: &Template,
    resolved: &Resolved,
    jar: &Jar,
    values: &[(String, Vec<u8>)],
    request: &HttpRequest,
) {
    let mut filler = Filler::new(resolved, jar);
    match filler.body(template, ALLOWED) {
        Ok(filled) => {
            assert_eq!(filled.secret, references(template));
            assert!(filled.bytes.len() <= ALLOWED);
            if !filled.secret {
                assert!(filler.derived.is_empty());
                let without = Filler::new(resolved, &Jar::default()).body(template, ALLOWED);
                assert_eq!(without.map(|filled| filled.bytes), Ok(filled.bytes));
            }
            for key in named(template) {
                assert!(resolved.keys.iter().any(|spec| spec.name == key), "{key} is no key of the mapping");
            }
        }
        Err(error) => keeps_quiet(&error.to_string(), values, request),
    }
}

fn named(template: &Template) -> Vec<&str> {
    let mut names = Vec::new();
    for part in template {
        match part {
            Part::Text(_) => {}
            Part::Secret { key, .. } => names.push(key.as_str()),
            Part::Encoded { leaves, .. } => names.extend(leaves.iter().filter_map(|leaf| match leaf {
                Leaf::Secret { key, .. } => Some(key.as_str()),
                Leaf::Text(_) => None,
            })),
        }
    }
    names
}

/// A part by itself reads back.
fn alone(part: &Part, resolved: &Resolved, jar: &Jar) {
    let (inner, encoding) = match part {
        Part::Text(_) => return,
        Part::Secret { key, encoding } => {
            let Some(found) = jar.get(key) else { return };
            (found.secret.expose().to_vec(), *encoding)
        }
        Part::Encoded { leaves, encoding } => {
            let inner = leaves.iter().map(|leaf| match leaf {
                Leaf::Text(text) => Part::Text(text.clone()),
                Leaf::Secret { key, encoding } => Part::Secret { key: key.clone(), encoding: *encoding },
            });
            let Ok(inner) = Filler::new(resolved, jar).body(&inner.collect::<Vec<_>>(), ALLOWED) else {
                return;
            };
            (inner.bytes, *encoding)
        }
    };
    let part = std::slice::from_ref(part);
    let Ok(filled) = Filler::new(resolved, jar).body(part, 8 * ALLOWED) else { return };
    let text = String::from_utf8_lossy(&filled.bytes).into_owned();
    match encoding {
        Encoding::Raw => assert_eq!(filled.bytes, inner),
        Encoding::Form => {
            let pairs: Vec<_> = url::form_urlencoded::parse(&filled.bytes).collect();
            let wanted = String::from_utf8_lossy(&inner);
            if inner.is_empty() {
                assert!(pairs.is_empty());
            } else {
                assert_eq!(pairs.len(), 1, "{text}");
                assert_eq!(pairs[0], (wanted, "".into()));
            }
        }
        Encoding::Percent => assert_eq!(unpercent(&filled.bytes), inner),
        Encoding::Json => {
            let read: String = serde_json::from_str(&format!("\"{text}\"")).expect("a JSON text");
            assert_eq!(read.as_bytes(), inner);
        }
        Encoding::Base64 => assert_eq!(STANDARD.decode(&text).expect("base64"), inner),
        Encoding::Base64Url => assert_eq!(URL_SAFE_NO_PAD.decode(&text).expect("base64url"), inner),
        Encoding::Hex => assert_eq!(hex::decode(&text).expect("hex"), inner),
        Encoding::Sha1Hex => assert!(text.len() == 40 && hex::decode(&text).is_ok()),
        Encoding::Sha256Hex => assert!(text.len() == 64 && hex::decode(&text).is_ok()),
    }
}

fn unpercent(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        assert!(byte.is_ascii_alphanumeric() || b"-._~%".contains(byte), "{byte} stands bare");
        if *byte == b'%' {
            let digits = [*rest.next().expect("a digit"), *rest.next().expect("a digit")];
            out.extend(hex::decode(digits).expect("two digits"));
        } else {
            out.push(*byte);
        }
    }
    out
}

/// Another secret of the same key leads to the same place: origin, path segments, query or none.
fn in_place(url: &Template, resolved: &Resolved, values: &Jar, raw: &[(String, Vec<u8>)]) {
    let shape = |jar: &Jar| {
        let filled = Filler::new(resolved, jar).url(url, 8 * ALLOWED).ok()?;
        let text = String::from_utf8(filled.bytes).ok()?;
        let url = Url::parse(&text).ok()?;
        let segments = url.path().matches('/').count();
        Some((url.origin(), segments, url.query().is_some(), url.fragment().is_some(), url.has_authority()))
    };
    let plain: Vec<_> = raw.iter().map(|(name, _)| (name.clone(), b"x".to_vec())).collect();
    if let (Some(one), Some(other)) = (shape(values), shape(&jar(&plain))) {
        assert_eq!(one, other, "a secret moved the URL");
    }
}

/// Errors may name keys and quote the plugin's own text, and nothing else.
fn keeps_quiet(error: &str, values: &[(String, Vec<u8>)], request: &HttpRequest) {
    let known = format!("{error} {}", TEXTS);
    let request = write(request);
    // Names stand in a list there, and a value that spans two of them is chance.
    let listed = |value: &[u8]| value.contains(&b',');
    for (_, value) in values.iter().filter(|(_, value)| value.len() >= 6 && !listed(value)) {
        let quoted = contains(&request, value)
            || values.iter().any(|(name, _)| contains(name.as_bytes(), value))
            || contains(TEXTS.as_bytes(), value);
        assert!(quoted || !contains(known.as_bytes(), value), "{error}: {}", value.escape_ascii());
    }
}

/// The words of the errors themselves.
const TEXTS: &str = "key `` is not in the key mapping; known: the credential has no value for key ``; present: \
    holds bytes that are no text; hint: use base64 or hex scheme, host and port of a URL must be text, ended by \
    `/`, `?` or `#` before the first secret a URL may not hold spaces, backslashes or control characters (found ) \
    would become a dot segment of the URL's path header `` holds a byte outside visible ASCII the has more than \
    bytes once filled in and more none";

pub fn seeds() -> Vec<Vec<u8>> {
    let values = vec![
        ("session".to_owned(), b"s3cr/t+va lue=&\"ok".to_vec()),
        ("token".to_owned(), "tök..én".as_bytes().to_vec()),
        ("bytes".to_owned(), vec![0xff, 0, 13, 10]),
    ];
    let mut all = frames::request();
    all.body = Some(
        [
            Encoding::Raw,
            Encoding::Form,
            Encoding::Percent,
            Encoding::Json,
            Encoding::Base64,
            Encoding::Base64Url,
            Encoding::Hex,
            Encoding::Sha1Hex,
            Encoding::Sha256Hex,
        ]
        .into_iter()
        .map(|encoding| Part::Secret { key: "session".into(), encoding })
        .collect(),
    );
    let mut path = frames::request();
    path.url = vec![
        Part::Text("https://a.example/".into()),
        Part::Secret { key: "session".into(), encoding: Encoding::Raw },
        Part::Text("/x?y=".into()),
        Part::Secret { key: "token".into(), encoding: Encoding::Form },
        Part::Text("#".into()),
    ];
    let inputs: Vec<Input> = vec![
        (frames::request(), values.clone()),
        (all, values.clone()),
        (path, values),
        (frames::request(), vec![]),
    ];
    inputs.iter().map(write).collect()
}
