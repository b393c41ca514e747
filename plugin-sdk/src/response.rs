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
        Ok(match self.json()?.pointer(pointer) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Some(scalar.to_string()),
            _ => None,
        })
    }

    /// Whether the answer is a page: a firewall, a login form, an error for people.
    pub fn is_html(&self) -> bool {
        match self.header("content-type") {
            Some(kind) => kind.to_ascii_lowercase().contains("html"),
            None => self.response.body.trim_ascii_start().starts_with(b"<"),
        }
    }

    /// Seconds to wait, from `Retry-After` as a number or a date.
    pub fn retry_after(&self) -> Option<types::Seconds> {
        let value = self.header("retry-after")?.trim();
        if let Ok(seconds) = value.parse() {
            return Some(seconds);
        }
        let wait = date::parse_http(value)?.saturating_sub(self.now / 1_000);
        Some(types::Seconds::try_from(wait).unwrap_or(types::Seconds::MAX))
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

/// The beginning of something the service wrote.
fn excerpt(text: &str) -> &str {
    text.char_indices().nth(EXCERPT_CHARS).map_or(text, |(end, _)| &text[..end])
}
