//! One request, built so that the short way is the safe way: no redirects unless asked, secrets
//! by reference, encodings chosen by the place a value goes to.
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! fn refresh(cx: &Cx) -> Result<Response> {
//!     cx.post("{base_url}/oauth/token")
//!         // Where a secret goes is said, and the host encodes it for that place.
//!         .header("authorization", basic(text(cx.setting("client_id")), secret("client_secret")))
//!         .form([("grant_type", text("refresh_token")), ("refresh_token", secret("refresh_token"))])
//!         // What the answer issues is kept before the plugin sees it.
//!         .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
//!         .capture("refresh_token", json("/refresh_token"))
//!         // A time-out, a rate limit or a firewall's page ends the attempt here, as unknown.
//!         .send()
//! }
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bindings::keywheel::provider::{http, types};
use crate::encode;
use crate::host;
use crate::response::Response;
use crate::template::{self, IntoLeaves, IntoTemplate, Template, text};
use crate::verdict::Stop;

/// Made by [`crate::Cx::get`], [`crate::Cx::post`] and [`crate::Cx::request`].
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    method: String,
    /// The reason why there is none surfaces when the request is sent.
    url: Result<Template, String>,
    headers: Vec<(String, Template)>,
    body: Option<Template>,
    cookies: bool,
    capture: Vec<http::Capture>,
    redirects: u8,
    timeout: Option<types::Seconds>,
    extras: types::Extras,
    now: types::Timestamp,
}

/// Where an answer holds a new value; made by [`json`] and [`header`].
#[derive(Debug, Clone)]
pub struct Source {
    from: http::Source,
    expires_in: Option<http::Source>,
    in_ms: bool,
}

/// A place in a JSON answer, by RFC 6901: `json("/access_token")`.
pub fn json(pointer: &str) -> Source {
    Source { from: http::Source::JsonPointer(pointer.into()), expires_in: None, in_ms: false }
}

/// The value of a response header.
pub fn header(name: &str) -> Source {
    Source { from: http::Source::Header(name.into()), expires_in: None, in_ms: false }
}

impl Source {
    /// Where the same answer says how many seconds the value lives.
    pub fn expires_in(mut self, seconds: Source) -> Self {
        self.expires_in = Some(seconds.from);
        self
    }

    /// The same for a service that counts in milliseconds.
    pub fn expires_in_ms(mut self, milliseconds: Source) -> Self {
        self.in_ms = true;
        self.expires_in(milliseconds)
    }
}

impl Request {
    pub(crate) fn new(method: &str, url: Result<Template, String>, now: types::Timestamp) -> Self {
        Self {
            method: method.into(),
            url,
            headers: Vec::new(),
            body: None,
            cookies: false,
            capture: Vec::new(),
            redirects: 0,
            timeout: None,
            extras: Vec::new(),
            now,
        }
    }

    /// Attach the credential's cookies, by the rules browsers follow.
    pub fn cookies(mut self) -> Self {
        self.cookies = true;
        self
    }

    pub fn header(mut self, name: &str, value: impl IntoTemplate) -> Self {
        self.headers.push((name.into(), value.into_template()));
        self
    }

    /// Adds `name=value` to the query, percent-encoded.
    pub fn query(mut self, name: &str, value: impl IntoLeaves) -> Self {
        self.url = self.url.map(|url| {
            let separator = if url.has_text('?') { "&" } else { "?" };
            url + text([separator, &encode::percent(name), "="].concat())
                + value.into_leaves().within(types::Encoding::Percent)
        });
        self
    }

    /// Adds `/value` to the path, percent-encoded.
    pub fn segment(mut self, value: impl IntoLeaves) -> Self {
        self.url = self.url.map(|url| url + text("/") + value.into_leaves().within(types::Encoding::Percent));
        self
    }

    /// A form body with its content type; see [`template::form`].
    pub fn form<'a, V: IntoLeaves>(self, fields: impl IntoIterator<Item = (&'a str, V)>) -> Self {
        self.header("content-type", "application/x-www-form-urlencoded").body(template::form(fields))
    }

    /// A JSON body with its content type; see [`template::json_object`].
    pub fn json<'a, V: IntoLeaves>(self, fields: impl IntoIterator<Item = (&'a str, V)>) -> Self {
        self.header("content-type", "application/json").body(template::json_object(fields))
    }

    pub fn body(mut self, body: impl IntoTemplate) -> Self {
        self.body = Some(body.into_template());
        self
    }

    /// Keep what a 2xx answer has at `source` as the new value of `key`. The plugin sees that it
    /// changed, never what it is. A mapped cookie needs no rule.
    pub fn capture(mut self, key: &str, source: Source) -> Self {
        if source.in_ms {
            self.extras.push((["expires-in-unit:", key].concat(), "ms".into()));
        }
        self.capture.push(http::Capture {
            key: key.into(),
            from: source.from,
            expires_in: source.expires_in,
        });
        self
    }

    /// Follow up to `hops` redirects, at most 5. Without it a redirect is the answer.
    pub fn redirects(mut self, hops: u8) -> Self {
        self.redirects = hops;
        self
    }

    /// For the whole exchange; the host has a cap of its own.
    pub fn timeout(mut self, seconds: types::Seconds) -> Self {
        self.timeout = Some(seconds);
        self
    }

    /// Sends, and stops the attempt as `unknown` where nothing can be learnt: no connection, a
    /// time-out, a rate limit, a server error, a challenge page. What comes back is an answer
    /// worth judging.
    pub fn send(self) -> Result<Response, Stop> {
        let response = self.send_any()?;
        match response.says_nothing() {
            true => Err(response.unexpected()),
            false => Ok(response),
        }
    }

    /// Sends, and gives back every answer and every error as it is. For services whose 429 or
    /// 5xx say something; `?` on the error stops as [`Request::send`] would.
    pub fn send_any(self) -> Result<Response, SendError> {
        let url = self.url.map_err(SendError::Malformed)?;
        let request = http::Request {
            method: self.method.clone(),
            url: url.into_parts(),
            headers: self.headers.into_iter().map(|(name, value)| (name, value.into_parts())).collect(),
            body: self.body.map(Template::into_parts),
            cookies: self.cookies,
            capture: self.capture,
            redirects: self.redirects,
            timeout: self.timeout,
            extras: self.extras,
        };
        match host::send(&request) {
            Ok(response) => Ok(Response::new(self.method, response, self.now)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the request could not be built: {0}")]
    Malformed(String),
    #[error("the request is not allowed: {0}")]
    Denied(String),
    #[error("no address was found: {0}")]
    Dns(String),
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no secure connection: {0}")]
    Tls(String),
    #[error("no answer in time")]
    Timeout,
    #[error("the answer is longer than {0} bytes")]
    TooLarge(u64),
    #[error("the answer is not HTTP: {0}")]
    Protocol(String),
    #[error("the attempt used up its budget: {0}")]
    Budget(String),
    #[error("{0}")]
    Other(String),
}

impl From<http::Error> for SendError {
    fn from(error: http::Error) -> Self {
        match error {
            http::Error::Denied(what) => Self::Denied(what),
            http::Error::Dns(what) => Self::Dns(what),
            http::Error::Connect(what) => Self::Connect(what),
            http::Error::Tls(what) => Self::Tls(what),
            http::Error::Timeout => Self::Timeout,
            http::Error::TooLarge(cap) => Self::TooLarge(cap),
            http::Error::Protocol(what) => Self::Protocol(what),
            http::Error::Budget(what) => Self::Budget(what),
            http::Error::Other(what) => Self::Other(what),
        }
    }
}

/// What the plugin did wrong is a failure; what the network did says nothing of the credential.
impl From<SendError> for Stop {
    fn from(error: SendError) -> Self {
        let message = format!("{error}");
        match error {
            SendError::Malformed(_) | SendError::Denied(_) | SendError::Budget(_) => Self::failed(message),
            SendError::Dns(_)
            | SendError::Connect(_)
            | SendError::Tls(_)
            | SendError::Timeout
            | SendError::TooLarge(_)
            | SendError::Protocol(_)
            | SendError::Other(_) => Self::unknown(message),
        }
    }
}
