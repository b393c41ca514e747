//! Fills templates: the one place where secrets and a plugin's text come together. One pass
//! over the parts; text is never searched for references. It never sends anything, and its
//! errors never hold a value.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::credential::{Jar, Secret};
use crate::egress::policy;
use crate::protocol::{Leaf, Part};
use crate::provider::{Encoding, Resolved};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("key `{key}` is not in the key mapping; known: {known}")]
    Unknown { key: String, known: String },
    #[error("the credential has no value for key `{key}`; present: {present}")]
    Absent { key: String, present: String },
    #[error("key `{0}` holds bytes that are no text; hint: use base64 or hex")]
    NotText(String),
    #[error("scheme, host and port of a URL must be text, ended by `/`, `?` or `#` before the first secret")]
    Authority,
    #[error("a URL may not hold spaces, backslashes or control characters (found {0:?})")]
    UrlCharacter(char),
    #[error("key `{0}` would become a dot segment of the URL's path")]
    DotSegment(String),
    #[error("header `{0}` holds a byte outside visible ASCII")]
    HeaderByte(String),
    #[error("the {what} has more than {allowed} bytes once filled in")]
    TooLong { what: &'static str, allowed: usize },
}

/// What a template became, and whether secrets are in it.
#[derive(Default)]
pub struct Filled {
    pub bytes: Vec<u8>,
    pub secret: bool,
}

/// Fills the templates of one request and remembers what it computed over secrets, so that
/// an echo of a digest or of a Basic header is redacted like the secret itself.
pub struct Filler<'a> {
    resolved: &'a Resolved,
    jar: &'a Jar,
    pub derived: Vec<Secret>,
}

impl<'a> Filler<'a> {
    pub fn new(resolved: &'a Resolved, jar: &'a Jar) -> Self {
        Self { resolved, jar, derived: Vec::new() }
    }

    /// A body: bytes as they come.
    pub fn body(&mut self, template: &[Part], allowed: usize) -> Result<Filled, TemplateError> {
        self.fill(template, "body", allowed, false)
    }

    /// A header value: visible ASCII and spaces, nothing that could end the line.
    pub fn header(&mut self, name: &str, template: &[Part], allowed: usize) -> Result<Filled, TemplateError> {
        let filled = self.fill(template, "header", allowed, false)?;
        if filled.bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            Ok(filled)
        } else {
            Err(TemplateError::HeaderByte(name.to_owned()))
        }
    }

    /// A URL. Its scheme, host and port are text. A secret after them can't add a path
    /// segment, a query or a fragment: whatever encoding it has, what comes out is
    /// percent-encoded once more where that encoding's alphabet leaves the unreserved
    /// characters (raw, json, base64), so a `raw` secret in a URL is a `percent` one.
    pub fn url(&mut self, template: &[Part], allowed: usize) -> Result<Filled, TemplateError> {
        let mut lead = String::new();
        for part in template {
            match part {
                Part::Text(text) => {
                    // The url crate drops tabs and newlines and takes `\` for `/`; refused, so
                    // that the check of the authority below sees what the parser will.
                    if let Some(bad) = text.chars().find(|c| c.is_control() || matches!(c, ' ' | '\\')) {
                        return Err(TemplateError::UrlCharacter(bad));
                    }
                    lead.push_str(text);
                }
                Part::Secret { .. } | Part::Encoded { .. } if !authority_ends(&lead) => {
                    return Err(TemplateError::Authority);
                }
                Part::Secret { .. } | Part::Encoded { .. } => {}
            }
        }
        if !authority_ends(&lead) && !has_authority(&lead) {
            return Err(TemplateError::Authority);
        }
        self.fill(template, "URL", allowed, true)
    }

    fn fill(
        &mut self,
        template: &[Part],
        what: &'static str,
        allowed: usize,
        in_url: bool,
    ) -> Result<Filled, TemplateError> {
        let mut filled = Filled::default();
        for part in template {
            match part {
                Part::Text(text) => filled.bytes.extend_from_slice(text.as_bytes()),
                Part::Secret { key, encoding } => {
                    filled.secret = true;
                    let secret = self.secret(key)?;
                    if in_url {
                        self.encode_in_url(secret, key, *encoding, &mut filled.bytes)?;
                    } else {
                        let start = filled.bytes.len();
                        encode(secret, key, *encoding, &mut filled.bytes)?;
                        if matches!(encoding, Encoding::Sha1Hex | Encoding::Sha256Hex) {
                            self.derived.push(Secret::new(&filled.bytes[start..]));
                        }
                    }
                }
                Part::Encoded { leaves, encoding } => {
                    let mut inner = Vec::new();
                    let mut name = None;
                    for leaf in leaves {
                        match leaf {
                            Leaf::Text(text) => inner.extend_from_slice(text.as_bytes()),
                            Leaf::Secret { key, encoding } => {
                                name = Some(key.as_str());
                                let secret = self.secret(key)?;
                                encode(secret, key, *encoding, &mut inner)?;
                            }
                        }
                        if inner.len() > allowed {
                            return Err(TemplateError::TooLong { what, allowed });
                        }
                    }
                    let start = filled.bytes.len();
                    if in_url {
                        self.encode_in_url(&inner, name.unwrap_or("(text)"), *encoding, &mut filled.bytes)?;
                    } else {
                        encode(&inner, name.unwrap_or("(text)"), *encoding, &mut filled.bytes)?;
                    }
                    if name.is_some() {
                        filled.secret = true;
                        self.derived.push(Secret::new(&filled.bytes[start..]));
                        self.derived.push(Secret::new(inner));
                    }
                }
            }
            if filled.bytes.len() > allowed {
                return Err(TemplateError::TooLong { what, allowed });
            }
        }
        Ok(filled)
    }

    fn encode_in_url(
        &mut self,
        bytes: &[u8],
        key: &str,
        encoding: Encoding,
        out: &mut Vec<u8>,
    ) -> Result<(), TemplateError> {
        let start = out.len();
        match encoding {
            Encoding::Raw => percent(bytes, out),
            Encoding::Json | Encoding::Base64 => {
                let mut once = Vec::new();
                encode(bytes, key, encoding, &mut once)?;
                percent(&once, out);
            }
            Encoding::Sha1Hex | Encoding::Sha256Hex => {
                encode(bytes, key, encoding, out)?;
                self.derived.push(Secret::new(&out[start..]));
            }
            Encoding::Form | Encoding::Percent | Encoding::Base64Url | Encoding::Hex => {
                encode(bytes, key, encoding, out)?;
            }
        }
        // Dots are unreserved, and the URL parser would walk up the path with them.
        if matches!(&out[start..], b"." | b"..") {
            return Err(TemplateError::DotSegment(key.to_owned()));
        }
        Ok(())
    }

    fn secret(&self, key: &str) -> Result<&'a [u8], TemplateError> {
        // Only keys of the mapping: a cookie that merely travels along has no name a plugin
        // may use.
        if !self.resolved.keys.iter().any(|spec| spec.name == key) {
            return Err(TemplateError::Unknown {
                key: key.escape_debug().take(64).collect(),
                known: policy::listed(self.resolved.keys.iter().map(|spec| spec.name.clone())),
            });
        }
        match self.jar.get(key) {
            Some(found) => Ok(found.secret.expose()),
            None => {
                let present: Vec<String> = (self.resolved.keys.iter())
                    .filter(|spec| self.jar.get(&spec.name).is_some())
                    .map(|spec| spec.name.clone())
                    .collect();
                Err(TemplateError::Absent {
                    key: key.to_owned(),
                    present: policy::listed(present.into_iter()),
                })
            }
        }
    }
}

/// A template to be shown, as the SDK's tests and fixtures write it: `{key}` in place of a
/// value, `{key|form}` where it would be encoded, `{me:{key}|base64}` for what is computed over
/// it. It is given no values.
pub fn masked(template: &[Part]) -> String {
    let named = |key: &str, encoding: Encoding| match encoding {
        Encoding::Raw => format!("{{{key}}}"),
        other => format!("{{{key}|{}}}", word(other)),
    };
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Secret { key, encoding } => named(key, *encoding),
        Part::Encoded { leaves, encoding } => {
            let inner: String = leaves
                .iter()
                .map(|leaf| match leaf {
                    Leaf::Text(text) => text.clone(),
                    Leaf::Secret { key, encoding } => named(key, *encoding),
                })
                .collect();
            format!("{{{inner}|{}}}", word(*encoding))
        }
    };
    template.iter().map(part).collect()
}

/// The contract's word.
const fn word(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Form => "form",
        Encoding::Percent => "percent",
        Encoding::Json => "json",
        Encoding::Base64 => "base64",
        Encoding::Base64Url => "base64-url",
        Encoding::Hex => "hex",
        Encoding::Sha1Hex => "sha1-hex",
        Encoding::Sha256Hex => "sha256-hex",
    }
}

/// Text that has `http(s)://`, a non-empty authority and what ends it.
fn authority_ends(text: &str) -> bool {
    after_scheme(text).is_some_and(|rest| rest.find(['/', '?', '#']).is_some_and(|end| end > 0))
}

/// Text that has `http(s)://` and an authority, perhaps to its end.
fn has_authority(text: &str) -> bool {
    after_scheme(text).is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#']))
}

fn after_scheme(text: &str) -> Option<&str> {
    ["https://", "http://"].iter().find_map(|scheme| {
        let head = text.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
    })
}

/// Writes bytes in an encoding of the contract.
fn encode(bytes: &[u8], key: &str, encoding: Encoding, out: &mut Vec<u8>) -> Result<(), TemplateError> {
    match encoding {
        Encoding::Raw => out.extend_from_slice(bytes),
        Encoding::Form => {
            for piece in url::form_urlencoded::byte_serialize(bytes) {
                out.extend_from_slice(piece.as_bytes());
            }
        }
        Encoding::Percent => percent(bytes, out),
        Encoding::Json => {
            let text = std::str::from_utf8(bytes).map_err(|_| TemplateError::NotText(key.to_owned()))?;
            let quoted = serde_json::to_string(text).map_err(|_| TemplateError::NotText(key.to_owned()))?;
            out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
        Encoding::Base64 => out.extend_from_slice(STANDARD.encode(bytes).as_bytes()),
        Encoding::Base64Url => out.extend_from_slice(URL_SAFE_NO_PAD.encode(bytes).as_bytes()),
        Encoding::Hex => out.extend_from_slice(hex::encode(bytes).as_bytes()),
        Encoding::Sha1Hex => out.extend_from_slice(hex::encode(Sha1::digest(bytes)).as_bytes()),
        Encoding::Sha256Hex => out.extend_from_slice(hex::encode(Sha256::digest(bytes)).as_bytes()),
    }
    Ok(())
}

/// RFC 3986: everything but unreserved characters.
fn percent(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Key;
    use crate::provider::{KeySpec, Location};

    fn resolved(names: &[&str]) -> Resolved {
        Resolved {
            validate_url: String::new(),
            keys: names
                .iter()
                .map(|name| KeySpec {
                    name: (*name).to_owned(),
                    location: Location::Token,
                    required: true,
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

    fn jar(pairs: &[(&str, &str)]) -> Jar {
        Jar {
            keys: pairs
                .iter()
                .map(|(name, value)| Key {
                    name: (*name).to_owned(),
                    secret: Secret::new(*value),
                    fingerprint: String::new(),
                    expires: None,
                    cookie: None,
                })
                .collect(),
        }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn secret(key: &str, encoding: Encoding) -> Part {
        Part::Secret { key: key.to_owned(), encoding }
    }

    #[test]
    fn every_encoding_writes_what_the_contract_says() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "a b/\"é\n")]));
        for (encoding, want) in [
            (Encoding::Raw, "a b/\"é\n"),
            (Encoding::Form, "a+b%2F%22%C3%A9%0A"),
            (Encoding::Percent, "a%20b%2F%22%C3%A9%0A"),
            (Encoding::Json, "a b/\\\"é\\n"),
            (Encoding::Base64, "YSBiLyLDqQo="),
            (Encoding::Base64Url, "YSBiLyLDqQo"),
            (Encoding::Hex, "6120622f22c3a90a"),
        ] {
            let filled = Filler::new(&resolved, &jar).body(&[secret("k", encoding)], 1000).unwrap();
            assert_eq!(String::from_utf8(filled.bytes).unwrap(), want, "{encoding:?}");
            assert!(filled.secret);
        }
    }

    #[test]
    fn digests_are_those_of_the_standards_and_are_remembered() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "abc")]));
        for (encoding, want) in [
            (Encoding::Sha1Hex, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Encoding::Sha256Hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ] {
            let mut filler = Filler::new(&resolved, &jar);
            let filled = filler.header("x", &[secret("k", encoding)], 1000).unwrap();
            assert_eq!(filled.bytes, want.as_bytes());
            assert_eq!(filler.derived, [Secret::new(want)]);
        }
    }

    #[test]
    fn basic_authentication_is_base64_over_user_and_secret() {
        let (resolved, jar) =
            (resolved(&["user", "pass"]), jar(&[("user", "Aladdin"), ("pass", "open sesame")]));
        let template = [
            text("Basic "),
            Part::Encoded {
                leaves: vec![
                    Leaf::Secret { key: "user".into(), encoding: Encoding::Raw },
                    Leaf::Text(":".into()),
                    Leaf::Secret { key: "pass".into(), encoding: Encoding::Raw },
                ],
                encoding: Encoding::Base64,
            },
        ];
        let filled = Filler::new(&resolved, &jar).header("authorization", &template, 1000).unwrap();
        assert_eq!(filled.bytes, b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn text_is_never_searched_for_references() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "{k}")]));
        let filled =
            Filler::new(&resolved, &jar).body(&[text("{k}"), secret("k", Encoding::Raw)], 99).unwrap();
        assert_eq!(filled.bytes, b"{k}{k}");
    }

    #[test]
    fn a_key_outside_the_mapping_is_refused_even_if_the_jar_has_it() {
        let (resolved, jar) = (resolved(&["a", "b"]), jar(&[("a", "1"), ("cookie:x@y/", "v")]));
        let unknown =
            Filler::new(&resolved, &jar).body(&[secret("cookie:x@y/", Encoding::Raw)], 9).err().unwrap();
        assert_eq!(unknown.to_string(), "key `cookie:x@y/` is not in the key mapping; known: a, b");
        let absent = Filler::new(&resolved, &jar).body(&[secret("b", Encoding::Raw)], 9).err().unwrap();
        assert_eq!(absent.to_string(), "the credential has no value for key `b`; present: a");
    }

    #[test]
    fn a_header_refuses_what_could_end_its_line() {
        let resolved = resolved(&["k"]);
        for (value, passes) in [
            ("abc", true),
            ("a b", true),
            ("a\r\nx: y", false),
            ("a\n", false),
            ("a\0", false),
            ("é", false),
            ("\x7f", false),
        ] {
            let jar = jar(&[("k", value)]);
            for part in [secret("k", Encoding::Raw), text(value)] {
                let got = Filler::new(&resolved, &jar).header("x", &[part], 99);
                assert_eq!(got.is_ok(), passes, "{value:?}");
            }
        }
    }

    #[test]
    fn a_secret_never_reaches_the_authority_of_a_url() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "x")]));
        let k = || secret("k", Encoding::Raw);
        for (template, passes) in [
            (vec![text("https://a.example/"), k()], true),
            (vec![text("https://a.example?q="), k()], true),
            (vec![text("HTTPS://a.example"), text("/"), k()], true),
            (vec![text("https://a.example")], true),
            (vec![text("https://"), k()], false),
            (vec![text("https:///"), k()], false),
            (vec![text("https://a.example"), k()], false),
            (vec![text("https://a.example:"), k(), text("/")], false),
            (vec![text("https://a."), k(), text("/")], false),
            (vec![k(), text("https://a.example/")], false),
            (vec![text("https:a.example/"), k()], false),
            (vec![text("ftp://a.example/"), k()], false),
            (vec![text("https://a.example\\"), k()], false),
            (vec![text("https://a.ex\tample/"), k()], false),
            (vec![text(" https://a.example/")], false),
            (vec![text("https://")], false),
            (vec![], false),
        ] {
            let got = Filler::new(&resolved, &jar).url(&template, 999);
            assert_eq!(got.is_ok(), passes, "{template:?}");
        }
    }

    #[test]
    fn a_secret_in_a_url_adds_no_segment_query_or_fragment() {
        let resolved = resolved(&["k"]);
        for (value, encoding, want) in [
            ("a/b?c#d&e=f", Encoding::Raw, "https://a.example/a%2Fb%3Fc%23d%26e%3Df"),
            ("a/b", Encoding::Percent, "https://a.example/a%2Fb"),
            ("a b", Encoding::Form, "https://a.example/a+b"),
            ("a\"/", Encoding::Json, "https://a.example/a%5C%22%2F"),
            ("??>", Encoding::Base64, "https://a.example/Pz8%2B"),
            ("??>", Encoding::Base64Url, "https://a.example/Pz8-"),
        ] {
            let jar = jar(&[("k", value)]);
            let filled = Filler::new(&resolved, &jar)
                .url(&[text("https://a.example/"), secret("k", encoding)], 999)
                .unwrap();
            assert_eq!(String::from_utf8(filled.bytes).unwrap(), want);
        }
        let jar = jar(&[("k", "..")]);
        let got = Filler::new(&resolved, &jar)
            .url(&[text("https://a.example/x/"), secret("k", Encoding::Raw)], 999);
        assert_eq!(got.err(), Some(TemplateError::DotSegment("k".into())));
    }

    #[test]
    fn a_template_that_grows_past_its_cap_is_refused() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "0123456789")]));
        let parts: Vec<Part> = (0..10).map(|_| secret("k", Encoding::Raw)).collect();
        assert!(Filler::new(&resolved, &jar).body(&parts, 100).is_ok());
        assert!(matches!(Filler::new(&resolved, &jar).body(&parts, 99), Err(TemplateError::TooLong { .. })));
    }

    #[test]
    fn errors_hold_no_value() {
        let (resolved, jar) = (resolved(&["k"]), jar(&[("k", "value-\n-value")]));
        let error =
            Filler::new(&resolved, &jar).header("x-y", &[secret("k", Encoding::Raw)], 99).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("value-"));
    }
}
