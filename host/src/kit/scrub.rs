//! Takes everything out of a service's answer that a fixture must not hold: known secrets in any
//! spelling, cookies, and what looks like a token or a person's address. Pure. A text that can't
//! be searched comes back as nothing at all.
//!
//! What was found is counted with its place, so that the author looks at it: what merely looks
//! like a secret can be told by nobody else, and names, ids and amounts are left as they are.

use std::borrow::Cow;

use crate::credential::Secret;
use crate::egress::redact::{FLOOR, Redactor};

/// A body that shows what a provider goes by is a few KiB; the rest is a page.
pub const BODY_BYTES: usize = 64 << 10;

/// The shortest run of letters and digits that passes for a token's part, and the shortest of
/// letters alone.
const RANDOM: usize = 16;
const RANDOM_LETTERS: usize = 24;
/// How often letters and digits (or capitals and small letters) must take turns in it.
const TURNS: usize = 4;

/// Headers about the connection, the copy or the page: no provider goes by them, some would
/// contradict the fixture's body, and some say who asked.
const LEFT_OUT: &[&str] = &[
    "accept-ranges",
    "age",
    "alt-svc",
    "cf-ray",
    "connection",
    "content-encoding",
    "content-length",
    "content-security-policy",
    "content-security-policy-report-only",
    // It would tell the replay that this machine's clock is wrong.
    "date",
    "etag",
    "keep-alive",
    "nel",
    "permissions-policy",
    "referrer-policy",
    "report-to",
    "reporting-endpoints",
    "server-timing",
    "strict-transport-security",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-amz-cf-id",
    "x-amzn-trace-id",
    "x-correlation-id",
    "x-request-id",
    "x-runtime",
];

/// What was replaced or left out, for the author: never a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Such as `answer 1, body`.
    pub place: String,
    pub what: &'static str,
    pub count: usize,
}

/// Made-up values for what one recording must not hold: the same one wherever the same value was.
pub struct Scrubber<'r> {
    /// Knows every secret of the call, those computed included.
    redactor: &'r Redactor,
    /// Each known secret with its stand-in, the longest first.
    known: Vec<(Secret, String)>,
    /// Look-alikes met so far.
    alike: Vec<(String, String)>,
    cookies: usize,
    notes: Vec<Note>,
}

impl<'r> Scrubber<'r> {
    pub fn new(redactor: &'r Redactor, known: impl IntoIterator<Item = (Secret, String)>) -> Self {
        let mut known: Vec<_> = known.into_iter().collect();
        known.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.expose().len()));
        Self { redactor, known, alike: Vec::new(), cookies: 0, notes: Vec::new() }
    }

    /// What was done so far.
    pub fn notes(self) -> Vec<Note> {
        self.notes
    }

    fn note(&mut self, place: &str, what: &'static str, count: usize) {
        if count > 0 {
            self.notes.push(Note { place: place.to_owned(), what, count });
        }
    }

    /// The headers worth keeping, without anything secret.
    pub fn headers<'h>(
        &mut self,
        place: &str,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) -> Vec<(String, String)> {
        let mut kept = Vec::new();
        for (name, value) in headers {
            if LEFT_OUT.contains(&name) {
                continue;
            }
            let place = format!("{place}, header `{name}`");
            let Ok(value) = std::str::from_utf8(value) else {
                self.note(&place, "bytes that are no text, left out", 1);
                continue;
            };
            let value = match name {
                "set-cookie" => self.cookie(&place, value),
                _ => self.text(&place, value),
            };
            // A name is a place for a secret as well.
            if self.redactor.hides(name) {
                self.note("a header's name", "secret, left out", 1);
                continue;
            }
            kept.push((name.to_owned(), value));
        }
        kept
    }

    /// A body as text, up to the cap.
    pub fn body(&mut self, place: &str, body: &[u8]) -> String {
        let place = format!("{place}, body");
        let text = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(_) => {
                self.note(&place, "bytes that are no text, left out", body.len());
                return String::new();
            }
        };
        // Scrubbed before it is cut: a secret across the cut would be half a secret.
        let mut text = self.text(&place, text);
        if text.len() > BODY_BYTES {
            let mut end = BODY_BYTES;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            self.note(&place, "bytes over the cap, cut off", text.len() - end);
            text.truncate(end);
        }
        text
    }

    /// Any other text of the service or about it, such as an account's name.
    pub fn text(&mut self, place: &str, text: &str) -> String {
        let (text, found) = self.without_known(text);
        self.note(place, "secret", found);
        let Some(text) = text else {
            self.note(place, "text that can't be searched, left out", 1);
            return String::new();
        };
        self.without_alike(place, &text)
    }

    /// A text of the provider's, in which only known secrets are looked for.
    pub fn known_only(&mut self, place: &str, text: &str) -> String {
        let (clean, found) = self.without_known(text);
        self.note(place, "secret, which the provider wrote out", found);
        clean.unwrap_or_default()
    }

    /// A cookie keeps its name, its attributes and whether it deletes; its value goes, known or not.
    fn cookie(&mut self, place: &str, line: &str) -> String {
        let (pair, attributes) = line.split_once(';').map_or((line, None), |(pair, rest)| (pair, Some(rest)));
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        let value = value.trim();
        let bare = value.trim_matches('"');
        let stand_in = if bare.is_empty() {
            value.to_owned()
        } else if let Some((_, stand_in)) =
            self.known.iter().find(|(secret, _)| is_value(secret, value, bare))
        {
            let stand_in = stand_in.clone();
            self.note(place, "secret", 1);
            stand_in
        } else {
            self.cookies += 1;
            self.note(place, "cookie of no key", 1);
            format!("made-up-cookie-{}", self.cookies)
        };
        // Its name and attributes are the service's own text.
        let (name, attributes) = (name.to_owned(), attributes.map(str::to_owned));
        let name = self.text(place, &name);
        match attributes {
            Some(attributes) => {
                let attributes = self.text(place, &attributes);
                format!("{name}={stand_in};{attributes}")
            }
            None => format!("{name}={stand_in}"),
        }
    }

    /// The text with a stand-in for each known secret, and how many there were. What is spelled
    /// so that it can't be written anew becomes a marker; None: it can't be searched.
    fn without_known(&self, text: &str) -> (Option<String>, usize) {
        let mut found = 0;
        let mut text = text.to_owned();
        for (secret, stand_in) in &self.known {
            let Ok(value) = std::str::from_utf8(secret.expose()) else { continue };
            if value.len() < FLOOR {
                // By chance such a value is everywhere: only where it is all of a JSON text, or of
                // the whole, is it meant.
                let whole = format!("\"{value}\"");
                found += text.matches(&whole).count();
                text = text.replace(&whole, &format!("\"{stand_in}\""));
                if text == value {
                    found += 1;
                    text.clone_from(stand_in);
                }
                continue;
            }
            for (spelled, new) in spellings(value, stand_in) {
                found += text.matches(&spelled).count();
                text = text.replace(&spelled, &new);
            }
        }
        match self.redactor.redact(text.as_bytes()) {
            Ok(Cow::Borrowed(_)) => (Some(text), found),
            Ok(Cow::Owned(redacted)) => {
                let redacted = String::from_utf8_lossy(&redacted).into_owned();
                let markers = redacted.matches(crate::egress::redact::MARKER).count();
                let clean = !self.redactor.hides(&redacted);
                (clean.then_some(redacted), found + markers.max(1))
            }
            Err(_) => (None, found),
        }
    }

    fn without_alike(&mut self, place: &str, text: &str) -> String {
        let (mut tokens, mut addresses) = (0, 0);
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let run = rest.find(|c: char| !is_of_token(c)).unwrap_or(rest.len());
            if run == 0 {
                let step = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..step]);
                at += step;
                continue;
            }
            let word = &rest[..run];
            at += run;
            // The name of a JSON field is where a provider looks.
            let is_field =
                text[at..].strip_prefix('"').is_some_and(|after| after.trim_start().starts_with(':'));
            if is_field || word.starts_with("made-up-") {
                out.push_str(word);
            } else if is_address(word) {
                addresses += 1;
                out.push_str(&self.stand_in(word, "someone", "@example.com"));
            } else if looks_random(word) {
                tokens += 1;
                out.push_str(&self.stand_in(word, "made-up-random", ""));
            } else {
                out.push_str(word);
            }
        }
        self.note(place, "what looks like a token", tokens);
        self.note(place, "e-mail address", addresses);
        out
    }

    fn stand_in(&mut self, word: &str, stem: &str, end: &str) -> String {
        if let Some((_, known)) = self.alike.iter().find(|(old, _)| old == word) {
            return known.clone();
        }
        let number = self.alike.iter().filter(|(_, new)| new.starts_with(stem)).count() + 1;
        let new = format!("{stem}-{number}{end}");
        self.alike.push((word.to_owned(), new.clone()));
        new
    }
}

fn is_value(secret: &Secret, value: &str, bare: &str) -> bool {
    [value, bare].iter().any(|text| secret.expose() == text.as_bytes())
}

/// How JSON may write a value, and the value itself; each with its stand-in, which needs no escape.
fn spellings(value: &str, stand_in: &str) -> Vec<(String, String)> {
    let quoted = serde_json::to_string(value).unwrap_or_default();
    let escaped = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned();
    let slashed = escaped.replace('/', "\\/");
    let mut all = vec![slashed, escaped, value.to_owned()];
    all.dedup();
    all.retain(|spelled| !spelled.is_empty());
    all.into_iter().map(|spelled| (spelled, stand_in.to_owned())).collect()
}

const fn is_of_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '~' | '+' | '=' | '@' | '%')
}

fn is_address(word: &str) -> bool {
    let Some((who, at)) = word.split_once('@') else { return false };
    let at = at.trim_end_matches('.');
    let is_host = at.contains('.') && at.split('.').all(|label| !label.is_empty()) && !at.contains('@');
    !who.is_empty() && is_host && at.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// A long run in which kinds of letters take turns as they do in no word, date or version.
fn looks_random(word: &str) -> bool {
    if is_uuid(word) {
        return true;
    }
    // Dates, numbers and versions are no secrets, and what a provider reads.
    if word.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'T' | b'Z' | b'_' | b'%'))
    {
        return word.len() >= 2 * RANDOM && word.bytes().all(|b| b.is_ascii_digit());
    }
    word.split(['.', '_', '-', '~', '=', '@', '%']).any(|part| {
        let digits = part.bytes().any(|b| b.is_ascii_digit());
        let shortest = if digits { RANDOM } else { RANDOM_LETTERS };
        let kind = |b: u8| (b.is_ascii_digit(), b.is_ascii_uppercase());
        let turns = part.as_bytes().windows(2).filter(|two| kind(two[0]) != kind(two[1])).count();
        part.len() >= shortest && turns >= TURNS
    })
}

fn is_uuid(word: &str) -> bool {
    let parts: Vec<usize> = word.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

    use super::*;

    const TOKEN: &str = "k/9\"+Zq.made~up=TOKEN w1th/odd&bytes-0123456789";

    fn known() -> Vec<(Secret, String)> {
        vec![(Secret::new(TOKEN), "made-up-token".to_owned()), (Secret::new("abc"), "made-up-pin".to_owned())]
    }

    fn scrubbed(text: &str) -> String {
        let redactor = Redactor::new([TOKEN.as_bytes(), b"abc"]);
        Scrubber::new(&redactor, known()).body("answer 1", text.as_bytes())
    }

    #[test]
    fn a_secret_that_is_echoed_in_any_encoding_is_not_in_the_fixture() {
        let percent: String = TOKEN.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let unicode: String = TOKEN.chars().map(|c| format!("\\u{:04x}", c as u32)).collect();
        let html: String = TOKEN.chars().map(|c| format!("&#{};", c as u32)).collect();
        let mut echoes = vec![
            TOKEN.to_owned(),
            serde_json::to_string(TOKEN).unwrap(),
            serde_json::to_string(TOKEN).unwrap().replace('/', "\\/"),
            url::form_urlencoded::byte_serialize(TOKEN.as_bytes()).collect(),
            percent,
            unicode,
            html,
            hex::encode(TOKEN),
            hex::encode_upper(TOKEN),
        ];
        for before in ["", "u", "us", "user:"] {
            let whole = format!("{before}{TOKEN}");
            echoes.extend([
                STANDARD.encode(&whole),
                STANDARD_NO_PAD.encode(&whole),
                URL_SAFE_NO_PAD.encode(format!("{whole}:x")),
            ]);
        }
        // In two fields, as far as redaction promises: whole, in pieces of twelve or more.
        let (head, tail) = TOKEN.split_at(20);
        echoes.push(format!("{{\"a\":\"{head}\",\"b\":\"{tail}\"}}"));
        let redactor = Redactor::new([TOKEN.as_bytes()]);
        for echo in echoes {
            let text = format!("{{\"you sent\": {echo}, \"ok\": true}}");
            assert!(redactor.hides(&text), "the test must show what it hides: {echo}");
            let out = scrubbed(&text);
            assert!(!redactor.hides(&out), "{echo} is still in {out}");
            assert!(out.contains("\"ok\": true"), "{echo} took the rest along: {out}");
        }
    }

    #[test]
    fn a_value_that_a_rule_captures_has_a_stand_in_that_can_be_captured() {
        for written in [TOKEN.replace('"', "\\\""), TOKEN.replace('"', "\\\"").replace('/', "\\/")] {
            let out = scrubbed(&format!("{{\"token\":\"{written}\",\"pin\":\"abc\",\"word\":\"abcd\"}}"));
            assert_eq!(out, r#"{"token":"made-up-token","pin":"made-up-pin","word":"abcd"}"#);
        }
    }

    #[test]
    fn cookies_lose_their_values_and_keep_what_else_a_browser_goes_by() {
        let redactor = Redactor::new([TOKEN.as_bytes()]);
        let mut scrubber =
            Scrubber::new(&redactor, [(Secret::new("the-session-value"), "made-up-session".into())]);
        let lines: Vec<(&str, &[u8])> = vec![
            ("set-cookie", b"sid=the-session-value; Path=/; Expires=Wed, 25 Nov 2026 10:00:00 GMT"),
            ("set-cookie", b"sid=\"the-session-value\"; HttpOnly"),
            ("set-cookie", b"csrf=another; Secure"),
            ("set-cookie", b"gone=; Max-Age=0"),
            ("x-request-id", b"7d2f"),
            ("content-type", b"application/json"),
        ];
        let kept: Vec<String> = scrubber
            .headers("answer 1", lines)
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            kept,
            [
                "set-cookie: sid=made-up-session; Path=/; Expires=Wed, 25 Nov 2026 10:00:00 GMT",
                "set-cookie: sid=made-up-session; HttpOnly",
                "set-cookie: csrf=made-up-cookie-1; Secure",
                "set-cookie: gone=; Max-Age=0",
                "content-type: application/json",
            ]
        );
        let cookies = scrubber.notes().iter().filter(|note| note.what == "cookie of no key").count();
        assert_eq!(cookies, 1);
    }

    #[test]
    fn what_looks_like_a_token_or_an_address_is_replaced_and_counted() {
        let redactor = Redactor::default();
        let mut scrubber = Scrubber::new(&redactor, []);
        let out = scrubber.body(
            "answer 1",
            br#"{"next":"q8Zt2LmN4xRv7Kp1Wd","again":"q8Zt2LmN4xRv7Kp1Wd","mail":"ann@corp.example","id":"0b9c2a6e-8f4d-4b1e-9a77-3c5d2e1f0a9b"}"#,
        );
        assert_eq!(
            out,
            r#"{"next":"made-up-random-1","again":"made-up-random-1","mail":"someone-1@example.com","id":"made-up-random-2"}"#
        );
        let notes = scrubber.notes();
        assert_eq!(
            notes.iter().map(|note| (note.what, note.count)).collect::<Vec<_>>(),
            [("what looks like a token", 3), ("e-mail address", 1)]
        );
        assert!(notes.iter().all(|note| note.place == "answer 1, body"));
    }

    #[test]
    fn dates_versions_words_and_the_names_of_fields_stay() {
        let redactor = Redactor::default();
        let text = r#"{"created_at":"2026-11-24T10:00:00.000+00:00","expires":"2026-11-24","n":1767225600000,
            "scopes":["read_repository","write-packages"],"q8Zt2LmN4xRv7Kp1Wd":1,"version":"17.4.0-pre.20261124",
            "url":"https://gitlab.example/api/v4/personal_access_tokens/self","active":true,"mention":"@ann"}"#;
        let mut scrubber = Scrubber::new(&redactor, []);
        assert_eq!(scrubber.body("answer 1", text.as_bytes()), text);
        assert_eq!(scrubber.notes(), []);
    }

    #[test]
    fn a_long_body_is_cut_after_it_was_searched_and_bytes_are_left_out() {
        let redactor = Redactor::new([TOKEN.as_bytes()]);
        let text = format!("{}{TOKEN} end", "ä ".repeat((BODY_BYTES - 10) / 3));
        let mut scrubber = Scrubber::new(&redactor, known());
        let out = scrubber.body("answer 1", text.as_bytes());
        assert!(out.len() <= BODY_BYTES && !out.contains("k/9"), "{}", &out[out.len() - 40..]);
        assert_eq!(scrubber.body("answer 2", b"\xff\xfe"), "");
        assert_eq!(scrubber.body("answer 3", b"\x1f\x8b\x08 twice"), "");
        let said: Vec<_> = scrubber.notes().into_iter().map(|note| note.what).collect();
        for what in ["bytes over the cap, cut off", "bytes that are no text, left out"] {
            assert!(said.contains(&what), "{said:?}");
        }
    }
}
