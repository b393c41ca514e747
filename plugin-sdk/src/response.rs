//! An answer as the plugin may see it: captured and known secrets are gone from it.
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! fn judge(answer: Response) -> Result<Verdict> {
//!     match answer.status() {
//!         // `pick` stops as unknown where a page or garbage came instead of JSON.
//!         200 => match answer.pick("/user/id")? {
//!             Some(account) => Ok(Verdict::Valid(Evidence::new().identity(account))),
//!             None => Err(answer.unexpected()),
//!         },
//!         401 if answer.pick("/error")?.as_deref() == Some("token_revoked") => {
//!             Ok(Verdict::invalid("the token was revoked: make a new one"))
//!         }
//!         // Unknown, with what was answered and when to come back.
//!         _ => Err(answer.unexpected()),
//!     }
//! }
//! ```

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};

use serde_json::Value;

use crate::bindings::keywheel::provider::{http, types};
use crate::date;
use crate::verdict::{Evidence, Outcome, Reason, Stop};

pub use http::Captured;

/// Enough to recognise an error by, short enough for a table.
const EXCERPT_CHARS: usize = 120;

#[derive(Debug)]
pub struct Response {
    method: String,
    response: http::Response,
    now: types::Timestamp,
}

impl Response {
    pub(crate) fn new(method: String, response: http::Response, now: types::Timestamp) -> Self {
        Self { method, response, now }
    }

    pub fn status(&self) -> u16 {
        self.response.status
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.response.status)
    }

    /// Where the answer came from, after redirects.
    pub fn url(&self) -> &str {
        &self.response.url
    }

    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.response.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.response.body
    }

    /// The body; what isn't UTF-8 becomes `U+FFFD`.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.response.body)
    }

    /// The body as JSON. A page or garbage in its place stops the attempt as `unknown`: it says
    /// nothing of the credential.
    pub fn json(&self) -> Result<Value, Stop> {
        if self.is_html() {
            return Err(self.nothing_learnt("with HTML where JSON was due"));
        }
        serde_json::from_slice(&self.response.body)
            .map_err(|error| self.nothing_learnt(&format!("with a body that is not JSON ({error})")))
    }

    /// The text, number or boolean at a JSON pointer, as text; handy for an identity.
    pub fn pick(&self, pointer: &str) -> Result<Option<String>, Stop> {
        Ok(match at(&self.json()?, pointer) {
            Some(Value::String(text)) => Some(text.clone()),
            // Not by the value's own `Display`: that brings the writing of JSON along.
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::Bool(truth)) => Some(truth.to_string()),
            _ => None,
        })
    }

    /// A date at a JSON pointer, in any form that [`date::parse`] knows, in milliseconds since 1970.
    pub fn date(&self, pointer: &str) -> Result<Option<types::Timestamp>, Stop> {
        Ok(self.pick(pointer)?.as_deref().and_then(date::parse))
    }

    /// What the service says at a JSON pointer, such as `/message`, cut to what fits a table; empty
    /// where it says nothing there. For the reason of a verdict.
    pub fn said(&self, pointer: &str) -> Result<String, Stop> {
        Ok(self.pick(pointer)?.map_or_else(String::new, |text| excerpt(&text).to_string()))
    }

    /// Whether the answer is a page: a firewall, a login form, an error for people.
    pub fn is_html(&self) -> bool {
        match self.header("content-type") {
            Some(kind) => mentions(&kind.to_ascii_lowercase(), "html"),
            None => self.response.body.trim_ascii_start().starts_with(b"<"),
        }
    }

    /// Seconds to wait: from `Retry-After` as a number or a date, else from the headers of a rate
    /// limit that is used up.
    pub fn retry_after(&self) -> Option<types::Seconds> {
        let Some(value) = self.header("retry-after").map(str::trim) else { return self.limit_resets() };
        if let Ok(seconds) = value.parse() {
            return Some(seconds);
        }
        Some(self.seconds_until(date::parse_http(value)?))
    }

    /// `X-RateLimit-Remaining: 0` and when that ends (GitHub, and many after it), or the same
    /// without the `X-` (GitLab).
    fn limit_resets(&self) -> Option<types::Seconds> {
        let of = |remaining, reset| {
            (self.header(remaining)?.trim() == "0").then(|| self.header(reset)?.trim().parse().ok()).flatten()
        };
        let reset: u64 = of("x-ratelimit-remaining", "x-ratelimit-reset")
            .or_else(|| of("ratelimit-remaining", "ratelimit-reset"))?;
        // Some write a moment, some the seconds until then. A wait is shorter than thirty years.
        Some(if reset > 1_000_000_000 {
            self.seconds_until(reset)
        } else {
            types::Seconds::try_from(reset).unwrap_or(types::Seconds::MAX)
        })
    }

    fn seconds_until(&self, moment: u64) -> types::Seconds {
        types::Seconds::try_from(moment.saturating_sub(self.now / 1_000)).unwrap_or(types::Seconds::MAX)
    }

    /// What the host kept of this answer for `key`.
    pub fn captured(&self, key: &str) -> Option<&Captured> {
        self.response.captured.iter().find(|captured| captured.key == key)
    }

    /// Whether this answer gave `key` a new value.
    pub fn changed(&self, key: &str) -> bool {
        self.captured(key).is_some_and(Captured::is_new)
    }

    /// Whether this answer gave any key a new value.
    pub fn changed_any(&self) -> bool {
        self.response.captured.iter().any(Captured::is_new)
    }

    /// `rotated` where a key got a new value, else `unchanged`. Ask only of an answer that shows
    /// the credential to be alive.
    pub fn outcome(&self) -> Outcome {
        let evidence = Evidence::new();
        if self.changed_any() { Outcome::Rotated(evidence) } else { Outcome::Unchanged(evidence) }
    }

    /// The stop for an answer that fits no case you know: `unknown`, with what was answered and
    /// when to come back.
    pub fn unexpected(&self) -> Stop {
        let mut what = String::new();
        if let Some(location) = self.header("location") {
            what = format!("with a redirect to {}", excerpt(location));
        } else if self.is_html() {
            what.push_str("with a page");
        }
        self.nothing_learnt(&what)
    }

    /// Rate limits, server errors and challenges are about the service, not the credential.
    pub(crate) fn says_nothing(&self) -> bool {
        // 408 and 425 ask to repeat the request; Cloudflare marks its challenges.
        matches!(self.response.status, 408 | 425 | 429 | 500..) || self.header("cf-mitigated").is_some()
    }

    fn nothing_learnt(&self, what: &str) -> Stop {
        let line = format!("{} {} answered {} {what}", self.method, self.response.url, self.response.status);
        Stop::Unknown(Reason::new(line.trim_end()).retry_after(self.retry_after()))
    }
}

impl Captured {
    /// A value that differs from the one before; a deletion is not one.
    pub fn is_new(&self) -> bool {
        self.changed && self.fingerprint.is_some()
    }
}

/// Whether `what` stands somewhere in `text`. The same as `str::contains`, which is faster on long
/// texts and makes a plugin 9 KB larger.
///
/// ```
/// use keywheel_sdk::prelude::*;
/// assert!(mentions("API rate limit exceeded", "rate limit"));
/// assert!(!mentions("API rate limit exceeded", "Rate"));
/// ```
pub fn mentions(text: &str, what: &str) -> bool {
    what.is_empty() || text.as_bytes().windows(what.len()).any(|window| window == what.as_bytes())
}

/// What is at a JSON pointer (RFC 6901). `Value::pointer` says the same and brings a search for
/// text along, which is a tenth of a small plugin.
fn at<'v>(value: &'v Value, pointer: &str) -> Option<&'v Value> {
    if pointer.is_empty() {
        return Some(value);
    }
    pointer.strip_prefix('/')?.split('/').try_fold(value, |value, name| match value {
        Value::Object(fields) if name.as_bytes().contains(&b'~') => fields.get(&unescaped(name)),
        Value::Object(fields) => fields.get(name),
        // One way to write each number, so neither signs nor leading zeros.
        Value::Array(list) if name == "0" || !name.starts_with(['0', '+']) => {
            list.get(name.parse::<usize>().ok()?)
        }
        _ => None,
    })
}

/// `~1` is a slash in a name and `~0` a tilde.
fn unescaped(name: &str) -> String {
    let mut parts = name.split('~');
    let mut out = String::from(parts.next().unwrap_or_default());
    for part in parts {
        match (part.strip_prefix('0'), part.strip_prefix('1')) {
            (Some(rest), _) => out.extend(["~", rest]),
            (_, Some(rest)) => out.extend(["/", rest]),
            _ => out.extend(["~", part]),
        }
    }
    out
}

/// The beginning of something the service wrote.
fn excerpt(text: &str) -> &str {
    let cut = text.char_indices().nth(EXCERPT_CHARS).and_then(|(end, _)| text.get(..end));
    cut.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_finds_what_serde_json_finds() {
        let value = serde_json::json!({
            "": 0, "a": {"b": [1, {"c": null}, "two"]}, "a/b": 3, "m~n": 4, "~1": 5, "~": 6, "0": [[7]], "x~y/z": 8,
        });
        for pointer in [
            "", "/", "/a", "/a/b", "/a/b/0", "/a/b/1/c", "/a/b/2", "/a/b/3", "/a/b/00", "/a/b/+1", "/a/b/-",
            "/a/b/", "/a~1b", "/m~0n", "/~01", "/~", "/~0", "/0/0/0", "/x~0y~1z", "a", "//", "/a/b/2/0",
        ] {
            assert_eq!(at(&value, pointer), value.pointer(pointer), "at {pointer:?}");
        }
    }

    #[test]
    fn a_text_mentions_what_it_contains() {
        for (text, what) in [
            ("", ""),
            ("a", ""),
            ("", "a"),
            ("abab", "bab"),
            ("abab", "aba"),
            ("abab", "abb"),
            ("é", "Ã"),
            ("xé", "é"),
        ] {
            assert_eq!(mentions(text, what), text.contains(what), "{what:?} in {text:?}");
        }
    }
}
