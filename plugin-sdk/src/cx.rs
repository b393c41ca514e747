//! What one attempt knows: settings, the state of each key, the time. Never a secret's bytes,
//! unless the operator granted them to [`Cx::reveal`].
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! /// Deletes the session that was in force before, as its id was told in a setting.
//! fn clean_up(cx: &Cx) -> Result<()> {
//!     // The state of a key is known, its value isn't.
//!     let Some(token) = cx.key("token").filter(|token| token.present) else {
//!         return Err(Stop::needs_human("there is no token: add one"));
//!     };
//!     let ends_within_an_hour = token.expires.is_some_and(|at| at < cx.now() + 3_600_000);
//!     if ends_within_an_hour && cx.setting_as::<bool>("clean_up")? {
//!         let session = cx.setting("session_id");
//!         let deleted = cx.request("DELETE", "{base_url}/sessions").segment(session);
//!         deleted.header("authorization", bearer("token")).send()?;
//!     }
//!     Ok(())
//! }
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::str::FromStr;

use crate::bindings::keywheel::provider::types;
use crate::host;
use crate::manifest::Manifest;
use crate::placeholders;
use crate::request::Request;
use crate::template::Template;
use crate::verdict::Stop;

pub use types::{Context, KeyState};

#[derive(Debug)]
pub struct Cx {
    context: Context,
    describe: fn() -> Manifest,
}

impl Cx {
    pub(crate) fn new(context: Context, describe: fn() -> Manifest) -> Self {
        Self { context, describe }
    }

    /// A GET request; see [`Cx::request`].
    pub fn get(&self, url: &str) -> Request {
        self.request("GET", url)
    }

    /// A POST request; see [`Cx::request`].
    pub fn post(&self, url: &str) -> Request {
        self.request("POST", url)
    }

    /// A request to `url`, in which `{name}`, `{name.host}` and `{name.origin}` stand for
    /// settings and `{validate_url}` for the manifest's. A name that is no setting makes
    /// [`Request::send`] fail.
    pub fn request(&self, method: &str, url: &str) -> Request {
        Request::new(method, self.filled(url).map(Template::from), self.context.now)
    }

    /// A request to a URL made of pieces, for services that want a key in its middle:
    /// `text("https://api.example/bot") + secret("token") + text("/me")`. Nothing is filled in, and
    /// scheme, host and port are text.
    pub fn request_to(&self, method: &str, url: impl Into<Template>) -> Request {
        Request::new(method, Ok(url.into()), self.context.now)
    }

    /// `pattern` with its settings filled in.
    pub fn fill(&self, pattern: &str) -> Result<String, Stop> {
        self.filled(pattern).map_err(Stop::failed)
    }

    fn filled(&self, pattern: &str) -> Result<String, String> {
        let setting = |name: &str| self.find(name).map(String::from);
        let with_validate_url = |name: &str| {
            setting(name).or_else(|| match name {
                "validate_url" => placeholders::fill(&(self.describe)().validate_url, &setting).ok(),
                _ => None,
            })
        };
        placeholders::fill(pattern, &with_validate_url)
    }

    /// The value or default of a setting; empty where it has neither.
    pub fn setting(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// A setting as a number, `bool` or whatever else can be read from text.
    pub fn setting_as<T: FromStr>(&self, name: &str) -> Result<T, Stop> {
        let value = self.setting(name);
        value.parse().map_err(|_| {
            Stop::failed(format!("setting `{name}` is `{value}`, not {}", core::any::type_name::<T>()))
        })
    }

    /// A duration setting in seconds: `90`, `90s`, `15m`, `2h`, `1d`.
    pub fn setting_seconds(&self, name: &str) -> Result<types::Seconds, Stop> {
        let value = self.setting(name);
        seconds(value).ok_or_else(|| {
            Stop::failed(format!(
                "setting `{name}` is `{value}`; a duration is whole seconds or a number with s, m, h or d"
            ))
        })
    }

    /// What is known of a key without seeing it.
    pub fn key(&self, name: &str) -> Option<&KeyState> {
        self.context.keys.iter().find(|key| key.name == name)
    }

    /// Whether the credential has this key now.
    pub fn has(&self, name: &str) -> bool {
        self.key(name).is_some_and(|key| key.present)
    }

    /// The bytes of a key that the manifest asked to see, if the operator granted it.
    pub fn reveal(&self, key: &str) -> Result<Vec<u8>, Stop> {
        host::reveal(key)
            .map_err(|refusal| Stop::needs_human(format!("key `{key}` was not revealed: {refusal}")))
    }

    /// The host's clock when the attempt began, in milliseconds since 1970.
    pub fn now(&self) -> types::Timestamp {
        self.context.now
    }

    /// Everything the host said, as the contract has it.
    pub fn context(&self) -> &Context {
        &self.context
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.context.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn seconds(value: &str) -> Option<types::Seconds> {
    let units = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
    let with = |(letter, unit)| Some((value.strip_suffix(letter)?, unit));
    let (number, unit) = units.into_iter().find_map(with).unwrap_or((value, 1));
    number.trim().parse::<types::Seconds>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_a_number_with_a_unit() {
        let cases = [
            ("90", Some(90)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("2h", Some(7_200)),
            ("1d", Some(86_400)),
            ("", None),
            ("m", None),
            ("1w", None),
            ("-1", None),
            ("99999999d", None),
        ];
        for (value, expected) in cases {
            assert_eq!(seconds(value), expected, "for {value:?}");
        }
    }
}
