//! Redaction: a text is put together from noise and from secrets in every spelling that must be
//! found. Afterwards no secret of six bytes or more is left in any of them; what is no secret is
//! untouched; and the work is bounded, which libFuzzer's time limit watches.
//!
//! A new spelling is one line in `SPELLINGS`.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use keywheel::egress::redact::{FLOOR, MARKER, Redactor};

use crate::{contains, read, write};

/// Secrets; pieces of text: how a secret is spelled, which, and what stands before it.
type Input = (Vec<Vec<u8>>, Vec<(u8, u8, Vec<u8>)>);

type Spelling = fn(&[u8]) -> Vec<u8>;

/// Spellings of the whole value, each to be found wherever it stands.
const SPELLINGS: &[(&str, Spelling)] = &[
    ("raw", <[u8]>::to_vec),
    ("percent", |value| percent(value, false)),
    ("percent, lower case", |value| percent(value, true)),
    ("percent, every byte", |value| value.iter().flat_map(|b| format!("%{b:02X}").into_bytes()).collect()),
    ("form", |value| url::form_urlencoded::byte_serialize(value).collect::<String>().into_bytes()),
    ("json", |value| json(value, false)),
    ("json, slashes", |value| json(value, true)),
    ("hex", |value| hex::encode(value).into_bytes()),
    ("HEX", |value| hex::encode_upper(value).into_bytes()),
    ("base64", |value| STANDARD.encode(value).into_bytes()),
    ("base64url", |value| URL_SAFE.encode(value).into_bytes()),
];

fn percent(value: &[u8], lower: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else if lower {
            out.extend(format!("%{byte:02x}").into_bytes());
        } else {
            out.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    out
}

/// Bytes that are no text have no JSON spelling and stand as they are.
fn json(value: &[u8], slashes: bool) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(value) else { return value.to_vec() };
    let quoted = serde_json::to_string(text).expect("text is JSON");
    let inner = &quoted[1..quoted.len() - 1];
    if slashes { inner.replace('/', "\\/").into_bytes() } else { inner.as_bytes().to_vec() }
}

pub fn run(input: &[u8]) {
    let Some((secrets, pieces)) = read::<Input>(input) else { return };
    let secrets: Vec<Vec<u8>> = secrets.into_iter().take(16).collect();
    let mut text = Vec::new();
    for (spelling, which, before) in &pieces {
        text.extend_from_slice(before);
        let Some(secret) = secrets.get(usize::from(*which) % secrets.len().max(1)) else { continue };
        let spelling = usize::from(*spelling) % (SPELLINGS.len() + 2);
        match SPELLINGS.get(spelling) {
            Some((_, spell)) => text.extend(spell(secret)),
            // Inside a longer base64, at whatever place the noise before it leads to.
            None => {
                let whole = [before.as_slice(), secret, before].concat();
                let url_safe = spelling > SPELLINGS.len();
                let encoded = if url_safe { URL_SAFE.encode(whole) } else { STANDARD.encode(whole) };
                text.extend(encoded.into_bytes());
            }
        }
    }
    let redactor = Redactor::new(secrets.iter().map(Vec::as_slice));
    let Ok(left) = redactor.redact(&text) else { return };
    for secret in secrets.iter().filter(|secret| secret.len() >= FLOOR) {
        for (name, spell) in SPELLINGS {
            let spelled = spell(secret);
            if !could_be_the_marker(&spelled) {
                assert!(!contains(&left, &spelled), "{name} of {secret:02x?} is left in {left:02x?}");
            }
        }
        if !could_be_the_marker(secret) {
            assert!(!in_base64(&left, secret), "base64 of {secret:02x?} is left in {left:02x?}");
        }
    }
    if redactor.is_empty() {
        assert_eq!(left.as_ref(), text);
    }
    // For lines people read: never longer a text than it was but for the markers.
    let line = String::from_utf8_lossy(&text);
    let shown = redactor.redact_text(&line);
    let markers = shown.matches(MARKER).count();
    assert!(shown.len() <= line.len() + markers * MARKER.len() + 4 * markers);
}

/// A marker is made of letters too: a value inside it, or one with its brackets, can be there
/// without having been left.
fn could_be_the_marker(spelled: &[u8]) -> bool {
    spelled.iter().any(|byte| matches!(byte, b'[' | b']')) || contains(MARKER.as_bytes(), spelled)
}

/// Every run of base64, read at each of its four offsets.
fn in_base64(text: &[u8], secret: &[u8]) -> bool {
    [(&STANDARD, b"+/"), (&URL_SAFE, b"-_")].into_iter().any(|(engine, extra)| {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || extra.contains(byte);
        text.split(|byte| !is_part(byte)).any(|run| {
            (0..4).any(|offset| {
                let run = run.get(offset..).unwrap_or_default();
                let whole = &run[..run.len() / 4 * 4];
                engine.decode(whole).is_ok_and(|bytes| contains(&bytes, secret))
            })
        })
    })
}

pub fn seeds() -> Vec<Vec<u8>> {
    let secrets = vec![
        b"s3cr/t+va lue=&\"ok".to_vec(),
        "naïve-tökén".as_bytes().to_vec(),
        b"abc%2Fdef%3D".to_vec(),
        b"\"quoted\"".to_vec(),
        vec![0xff, 0, 0x80, 0x7f, 1, 0xfe],
    ];
    let mut seeds: Vec<Input> = (0..=u8::try_from(SPELLINGS.len()).expect("a few") + 1)
        .map(|spelling| {
            let pieces = (0..5).map(|which| (spelling, which, vec![b'x'; usize::from(which)])).collect();
            (secrets.clone(), pieces)
        })
        .collect();
    seeds.push((
        vec![b"aaaaaaa".to_vec(), b"aaaaaaaab".to_vec()],
        vec![(0, 0, b"aaa".to_vec()), (0, 1, vec![])],
    ));
    seeds.push((vec![], vec![(0, 0, b"text".to_vec())]));
    seeds.iter().map(write).collect()
}
