//! Takes fresh tokens out of an answer, as the request's capture rules say. Pure. A rule can
//! fill only a key whose location is `token`; nothing else of a credential can be overwritten
//! by a plugin's rule.

use http::{HeaderMap, HeaderName};
use serde_json::Value;

use crate::credential::{Millis, Secret};
use crate::egress::policy;
use crate::egress::redact::{FLOOR, MARKER, Redactor};
use crate::limits;
use crate::protocol::{Capture, Source};
use crate::provider::{Location, Resolved};

/// Rules of one request; no answer carries more than a handful of tokens.
const MAX_RULES: usize = 32;

/// A hundred years: a lifetime past it is a mistake, and adding it can't overflow.
const MAX_LIFETIME_MS: f64 = 3_155_760_000_000.0;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "capture of `{key}`: not a key with location token; such keys: {known}; hint: mapped cookies are captured without a rule"
    )]
    NotAToken { key: String, known: String },
    #[error("`{0}` is captured twice")]
    Twice(String),
    #[error("{0} capture rules, at most {MAX_RULES} allowed")]
    TooMany(usize),
    #[error("capture of `{0}`: a JSON pointer is empty or starts with `/`")]
    Pointer(String),
    #[error("capture of `{0}`: not a header name")]
    Header(String),
    #[error("capture of `{0}`: set-cookie is captured by the key mapping alone")]
    SetCookie(String),
}

/// Refuses rules that could never be kept *before* anything is sent: after the answer it would
/// be too late for a secret that was issued only once.
pub fn check(rules: &[Capture], resolved: &Resolved) -> Result<(), CaptureError> {
    if rules.len() > MAX_RULES {
        return Err(CaptureError::TooMany(rules.len()));
    }
    for (index, rule) in rules.iter().enumerate() {
        let is_token = |name: &str| {
            resolved.keys.iter().any(|spec| spec.name == name && spec.location == Location::Token)
        };
        if !is_token(&rule.key) {
            let known: Vec<String> = (resolved.keys.iter())
                .filter(|spec| spec.location == Location::Token)
                .map(|spec| spec.name.clone())
                .collect();
            return Err(CaptureError::NotAToken {
                key: rule.key.escape_debug().take(64).collect(),
                known: policy::listed(known.into_iter()),
            });
        }
        if rules[..index].iter().any(|earlier| earlier.key == rule.key) {
            return Err(CaptureError::Twice(rule.key.clone()));
        }
        for source in std::iter::once(&rule.from).chain(&rule.expires_in) {
            match source {
                Source::JsonPointer(pointer) if !pointer.is_empty() && !pointer.starts_with('/') => {
                    return Err(CaptureError::Pointer(rule.key.clone()));
                }
                Source::JsonPointer(_) => {}
                Source::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(name) if name == http::header::SET_COOKIE => {
                        return Err(CaptureError::SetCookie(rule.key.clone()));
                    }
                    Ok(_) => {}
                    Err(_) => return Err(CaptureError::Header(rule.key.clone())),
                },
            }
        }
    }
    Ok(())
}

/// A value an answer gave to a key.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    pub key: String,
    pub secret: Secret,
    pub expires: Option<Millis>,
}

/// What the rules took, and why a rule took nothing, for the plugin's author.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    pub taken: Vec<Taken>,
    pub skipped: Vec<(String, &'static str)>,
}

/// Applies the rules to a 2xx answer. Places that were captured are blanked in headers and
/// body; where a body's text can be left as it is, redaction by value does the rest. The plugin
/// is told when a key ends, so what `known` hides is no lifetime, nor is what was captured. The
/// request's `extras` may say in which unit a lifetime is counted.
pub fn harvest(
    rules: &[Capture],
    extras: &[(String, String)],
    headers: &mut HeaderMap,
    body: &mut Vec<u8>,
    now: Millis,
    known: &Redactor,
) -> Harvest {
    let mut harvest = Harvest::default();
    let mut lifetimes = Vec::new();
    if rules.is_empty() {
        return harvest;
    }
    let wants_json = rules.iter().any(|rule| {
        matches!(rule.from, Source::JsonPointer(_)) || matches!(rule.expires_in, Some(Source::JsonPointer(_)))
    });
    let mut json: Option<Value> = if wants_json { serde_json::from_slice(body).ok() } else { None };
    let mut blank_headers = Vec::new();
    let mut blank_pointers = Vec::new();
    for rule in rules {
        let value = match read(&rule.from, json.as_ref(), headers) {
            Ok(value) => value,
            Err(reason) => {
                harvest.skipped.push((rule.key.clone(), reason));
                continue;
            }
        };
        let too_long = value.text.len() > limits::SECRET_BYTES;
        match &rule.from {
            Source::Header(name) => blank_headers.push(name.as_str()),
            Source::JsonPointer(pointer) if too_long => blank_pointers.push(pointer.as_str()),
            // Text of at least FLOOR ASCII characters is found by value wherever it stands. A
            // number must be blanked as a JSON value to leave JSON behind, a short value is
            // not looked for, and other writers' escapes of non-ASCII text are many.
            Source::JsonPointer(pointer)
                if value.number || value.text.len() < FLOOR || !value.text.is_ascii() =>
            {
                blank_pointers.push(pointer.as_str());
            }
            Source::JsonPointer(_) => {}
        }
        if too_long {
            // Not kept, and not shown either.
            harvest.skipped.push((rule.key.clone(), "the value is longer than a secret may be"));
            continue;
        }
        let lifetime = rule.expires_in.as_ref().and_then(|source| read(source, json.as_ref(), headers).ok());
        lifetimes.push(lifetime.map(|lifetime| (lifetime.text, unit(extras, &rule.key))));
        harvest.taken.push(Taken { key: rule.key.clone(), secret: Secret::new(value.text), expires: None });
    }
    let captured = Redactor::new(harvest.taken.iter().map(|taken| taken.secret.expose()));
    for (taken, lifetime) in harvest.taken.iter_mut().zip(lifetimes) {
        let hidden = |text: &String| known.hides(text) || captured.hides(text);
        taken.expires = lifetime
            .filter(|(text, _)| !hidden(text))
            .and_then(|(text, unit)| Some(text.trim().parse::<f64>().ok()? * unit))
            .filter(|ms| (0.0..=MAX_LIFETIME_MS).contains(ms))
            // In range, so the cast is exact to the millisecond.
            .map(|ms| now.saturating_add(ms as u64));
    }
    if !blank_pointers.is_empty()
        && let Some(json) = json.as_mut()
    {
        for pointer in blank_pointers {
            if let Some(place) = json.pointer_mut(pointer) {
                *place = Value::String(MARKER.to_owned());
            }
        }
        *body = json.to_string().into_bytes();
    }
    for name in blank_headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            headers.insert(name, http::HeaderValue::from_static(MARKER));
        }
    }
    harvest
}

/// Milliseconds in the unit of a key's lifetime: a second, unless the request says otherwise.
fn unit(extras: &[(String, String)], key: &str) -> f64 {
    let in_ms = |(name, value): &(String, String)| {
        name.strip_prefix("expires-in-unit:") == Some(key) && value == "ms"
    };
    if extras.iter().any(in_ms) { 1.0 } else { 1_000.0 }
}

struct Read {
    text: String,
    number: bool,
}

fn read(source: &Source, json: Option<&Value>, headers: &HeaderMap) -> Result<Read, &'static str> {
    let read = match source {
        Source::JsonPointer(pointer) => {
            let json = json.ok_or("the body is not JSON")?;
            match json.pointer(pointer).ok_or("the body has nothing at the pointer")? {
                Value::String(text) => Read { text: text.clone(), number: false },
                Value::Number(number) => Read { text: number.to_string(), number: true },
                _ => return Err("the value is neither text nor a number"),
            }
        }
        Source::Header(name) => {
            let value = headers.get(name.as_str()).ok_or("the header is missing")?;
            let text = value.to_str().map_err(|_| "the header is not visible ASCII")?;
            Read { text: text.trim().to_owned(), number: false }
        }
    };
    if read.text.is_empty() { Err("the value is empty") } else { Ok(read) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{CookieLocation, KeySpec};

    fn spec(name: &str, location: Location) -> KeySpec {
        KeySpec { name: name.into(), location, required: false, reveal: false, help: String::new() }
    }

    fn resolved() -> Resolved {
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

    fn pointer(text: &str) -> Source {
        Source::JsonPointer(text.to_owned())
    }

    /// What the credential had before.
    fn known() -> Redactor {
        Redactor::new([b"90807060".as_slice()])
    }

    fn rule(key: &str, from: Source, expires_in: Option<Source>) -> Capture {
        Capture { key: key.to_owned(), from, expires_in }
    }

    #[test]
    fn only_token_keys_of_the_mapping_may_be_captured_each_once() {
        let resolved = resolved();
        for (rules, passes) in [
            (vec![], true),
            (vec![rule("access", pointer("/a"), Some(pointer("/e")))], true),
            (vec![rule("access", pointer(""), None)], true),
            (vec![rule("access", Source::Header("X-Token".into()), None)], true),
            (vec![rule("session", pointer("/a"), None)], false),
            (vec![rule("nope", pointer("/a"), None)], false),
            (vec![rule("access", pointer("/a"), None), rule("access", pointer("/b"), None)], false),
            (vec![rule("access", pointer("a"), None)], false),
            (vec![rule("access", pointer("/a"), Some(pointer("e")))], false),
            (vec![rule("access", Source::Header("x y".into()), None)], false),
            (vec![rule("access", Source::Header("Set-Cookie".into()), None)], false),
        ] {
            assert_eq!(check(&rules, &resolved).is_ok(), passes, "{rules:?}");
        }
    }

    fn harvest_body(rules: &[Capture], body: &str) -> (Harvest, String) {
        let mut bytes = body.as_bytes().to_vec();
        let harvest = harvest(rules, &[], &mut HeaderMap::new(), &mut bytes, 1_000, &known());
        (harvest, String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn text_and_numbers_are_captured_and_anything_else_is_not() {
        for (body, want) in [
            (r#"{"t":"long-enough"}"#, Some("long-enough")),
            (r#"{"t":"ab"}"#, Some("ab")),
            (r#"{"t":12345678}"#, Some("12345678")),
            (r#"{"t":""}"#, None),
            (r#"{"t":null}"#, None),
            (r#"{"t":true}"#, None),
            (r#"{"t":["x"]}"#, None),
            (r#"{"u":"x"}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            let (harvest, _) = harvest_body(&[rule("access", pointer("/t"), None)], body);
            let got = harvest.taken.first().map(|taken| taken.secret.expose());
            assert_eq!(got, want.map(str::as_bytes), "{body}");
            assert_eq!(harvest.skipped.is_empty(), want.is_some());
        }
    }

    #[test]
    fn what_redaction_by_value_would_miss_is_blanked_in_place() {
        let rules = [rule("access", pointer("/t"), None)];
        assert_eq!(harvest_body(&rules, r#"{"t":12345678,"n":1}"#).1, r#"{"n":1,"t":"[redacted]"}"#);
        assert_eq!(harvest_body(&rules, r#"{"t":"ab"}"#).1, r#"{"t":"[redacted]"}"#);
        // Left to redaction by value, byte for byte.
        assert_eq!(harvest_body(&rules, r#"{"t": "long-enough"}"#).1, r#"{"t": "long-enough"}"#);
    }

    #[test]
    fn a_lifetime_is_a_number_or_its_text_in_seconds() {
        for (lifetime, want) in [
            ("3600", Some(3_601_000)),
            ("\"3600\"", Some(3_601_000)),
            ("0", Some(1_000)),
            ("1.5", Some(2_500)),
            ("-1", None),
            ("1e300", None),
            ("\"soon\"", None),
            ("\"NaN\"", None),
            ("null", None),
        ] {
            let rules = [rule("access", pointer("/t"), Some(pointer("/e")))];
            let (harvest, _) = harvest_body(&rules, &format!(r#"{{"t":"long-enough","e":{lifetime}}}"#));
            assert_eq!(harvest.taken[0].expires, want, "{lifetime}");
        }
    }

    #[test]
    fn a_lifetime_is_in_milliseconds_where_the_request_says_so_of_its_key() {
        for (extra, value, want) in [
            ("expires-in-unit:access", "ms", 6_000),
            ("expires-in-unit:access", "s", 5_001_000),
            ("expires-in-unit:refresh", "ms", 5_001_000),
            ("expires-in-unit", "ms", 5_001_000),
        ] {
            let rules = [rule("access", pointer("/t"), Some(pointer("/e")))];
            let extras = [(extra.to_owned(), value.to_owned())];
            let mut body = br#"{"t":"long-enough","e":5000}"#.to_vec();
            let harvest = harvest(&rules, &extras, &mut HeaderMap::new(), &mut body, 1_000, &known());
            assert_eq!(harvest.taken[0].expires, Some(want), "{extra}={value}");
        }
    }

    #[test]
    fn a_secret_is_no_lifetime() {
        // A key that holds a number, which the service repeats; and the fresh token itself.
        for (body, lifetime) in [
            (r#"{"t":"long-enough","e":90807060}"#, "/e"),
            (r#"{"t":"long-enough","e":"90807060.0"}"#, "/e"),
            (r#"{"t":12345678}"#, "/t"),
        ] {
            let rules = [rule("access", pointer("/t"), Some(pointer(lifetime)))];
            assert_eq!(harvest_body(&rules, body).0.taken[0].expires, None, "{body}");
        }
    }

    #[test]
    fn a_captured_header_is_blanked_whole() {
        let mut headers = HeaderMap::new();
        headers.append("x-token", "ab".parse().unwrap());
        headers.append("x-token", "cd".parse().unwrap());
        let rules = [rule("access", Source::Header("X-Token".into()), None)];
        let harvest = harvest(&rules, &[], &mut headers, &mut Vec::new(), 0, &known());
        assert_eq!(harvest.taken[0].secret, Secret::new("ab"));
        assert_eq!(headers.get_all("x-token").iter().collect::<Vec<_>>(), [MARKER]);
    }

    #[test]
    fn a_value_longer_than_a_secret_is_neither_captured_nor_shown() {
        let body = format!(r#"{{"t":"{}"}}"#, "x".repeat(limits::SECRET_BYTES + 1));
        let (harvest, body) = harvest_body(&[rule("access", pointer("/t"), None)], &body);
        assert!(harvest.taken.is_empty());
        assert_eq!(body, r#"{"t":"[redacted]"}"#);
    }
}
