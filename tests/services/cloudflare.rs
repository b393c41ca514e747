//! Cloudflare's API tokens, as its documentation has them, and never as Keywheel's provider
//! expects them:
//!
//! - <https://developers.cloudflare.com/api/resources/user/subresources/tokens/> and the same of
//!   `accounts`: verify with its three statuses, and the roll, which wants API Tokens Write.
//! - <https://developers.cloudflare.com/fundamentals/api/how-to/roll-token/>: a roll "will
//!   invalidate the previous token, but the access and permissions will be the same".
//! - <https://developers.cloudflare.com/fundamentals/api/how-to/restrict-tokens/>: addresses, ends.
//! - <https://developers.cloudflare.com/fundamentals/api/reference/limits/>: 429 and its headers.
//!
//! The error codes are documented nowhere; they are those that people quote from its answers
//! (<https://github.com/pl4nty/cloudflare-kubernetes-gateway/issues/262>,
//! <https://github.com/kissgyorgy/cloudflare-dyndns/issues/40>).
//!
//! The rules are pure, the clock comes in; the router is below them.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fake::{Asked, Rules};
use crate::harness::random_secret;

/// What the API calls the values: "maxLength 80, minLength 40".
const LENGTHS: std::ops::RangeInclusive<usize> = 40..=80;

#[derive(Debug, Clone)]
pub struct Token {
    pub id: String,
    pub value: String,
    /// `user`, or `accounts/ID`.
    owner: String,
    disabled: bool,
    ends: Option<u64>,
    /// It has the permission API Tokens Write.
    rolls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoToken,
    Unknown,
    WrongPlace,
    NotAllowed,
    NoSuchToken,
}

#[derive(Debug, Default)]
pub struct Cloudflare {
    tokens: Vec<Token>,
    /// Every token is restricted to other addresses.
    pub elsewhere: bool,
    pub limited: bool,
    pub rolls: u32,
}

impl Cloudflare {
    pub fn issue(&mut self, owner: &str, rolls: bool, ends: Option<u64>) -> Token {
        let id = random_secret()[..32].to_owned();
        let owner = owner.to_owned();
        let token = Token { id, value: random_secret(), owner, disabled: false, ends, rolls };
        self.tokens.push(token.clone());
        token
    }

    pub fn disable(&mut self, id: &str) {
        for token in self.tokens.iter_mut().filter(|token| token.id == id) {
            token.disabled = true;
        }
    }

    pub fn delete(&mut self, id: &str) {
        self.tokens.retain(|token| token.id != id);
    }

    /// The one value that works for a token.
    pub fn value(&self, id: &str) -> Option<&str> {
        self.tokens.iter().find(|token| token.id == id).map(|token| token.value.as_str())
    }

    pub fn verify(&self, owner: &str, value: &str) -> Result<&Token, Refusal> {
        if !LENGTHS.contains(&value.len()) || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::NoToken);
        }
        let found = self.tokens.iter().find(|token| token.value == value && token.owner == owner);
        match found {
            Some(_) if self.elsewhere => Err(Refusal::WrongPlace),
            found => found.ok_or(Refusal::Unknown),
        }
    }

    pub fn roll(&mut self, owner: &str, id: &str, value: &str, now: u64) -> Result<String, Refusal> {
        let asking = self.verify(owner, value)?;
        if asking.status(now) != "active" || !asking.rolls {
            return Err(Refusal::NotAllowed);
        }
        let token = self.tokens.iter_mut().find(|token| token.id == id && token.owner == owner);
        let token = token.ok_or(Refusal::NoSuchToken)?;
        token.value = random_secret();
        self.rolls += 1;
        Ok(token.value.clone())
    }
}

impl Token {
    fn status(&self, now: u64) -> &'static str {
        match (self.disabled, self.ends) {
            (true, _) => "disabled",
            (false, Some(end)) if now >= end => "expired",
            _ => "active",
        }
    }
}

impl Rules for Cloudflare {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        if self.limited {
            let headers = [("retry-after", "240"), ("ratelimit", "\"default\";r=0;t=240")];
            let body = failed(971, "Please wait and consider throttling your request speed");
            return (StatusCode::TOO_MANY_REQUESTS, headers, axum::Json(body)).into_response();
        }
        let path = asked.path.strip_prefix("/client/v4/").unwrap_or_default();
        let (owner, rest) = path.split_once("/tokens/").unwrap_or((path, ""));
        match (asked.method.clone(), rest.split('/').collect::<Vec<_>>().as_slice()) {
            (Method::GET, ["verify"]) => match self.verify(owner, asked.bearer()) {
                Ok(token) => {
                    let status = token.status(now);
                    let mut result = json!({ "id": token.id, "status": status });
                    if let Some(end) = token.ends {
                        let at = jiff::Timestamp::from_second(end as i64).expect("a moment");
                        result["expires_on"] = Value::from(at.to_string());
                    }
                    let message = match status {
                        "active" => {
                            json!([{ "code": 10000, "message": "This API Token is valid and active", "type": null }])
                        }
                        _ => json!([]),
                    };
                    succeeded(&result, &message)
                }
                Err(refusal) => refused(refusal),
            },
            (Method::PUT, [id, "value"]) => match self.roll(owner, id, asked.bearer(), now) {
                Ok(value) => succeeded(&Value::from(value), &json!([])),
                Err(refusal) => refused(refusal),
            },
            _ => (StatusCode::NOT_FOUND, axum::Json(failed(7000, "No route for that URI"))).into_response(),
        }
    }
}

fn succeeded(result: &Value, messages: &Value) -> Response {
    axum::Json(json!({ "result": result, "success": true, "errors": [], "messages": messages }))
        .into_response()
}

fn failed(code: u32, message: &str) -> Value {
    json!({ "success": false, "errors": [{ "code": code, "message": message }], "messages": [], "result": null })
}

fn refused(refusal: Refusal) -> Response {
    let (status, mut body) = match refusal {
        Refusal::NoToken => (StatusCode::BAD_REQUEST, failed(6003, "Invalid request headers")),
        Refusal::Unknown => (StatusCode::UNAUTHORIZED, failed(1000, "Invalid API Token")),
        Refusal::WrongPlace => {
            (StatusCode::FORBIDDEN, failed(9109, "Cannot use the access token from location: 127.0.0.1"))
        }
        Refusal::NotAllowed => {
            (StatusCode::FORBIDDEN, failed(9109, "Unauthorized to access requested resource"))
        }
        Refusal::NoSuchToken => (StatusCode::NOT_FOUND, failed(1003, "Token not found")),
    };
    if refusal == Refusal::NoToken {
        body["errors"][0]["error_chain"] =
            json!([{ "code": 6111, "message": "Invalid format for Authorization header" }]);
    }
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_ends_the_old_value_and_keeps_the_rest() {
        let mut cloudflare = Cloudflare::default();
        let token = cloudflare.issue("user", true, Some(100));
        let new = cloudflare.roll("user", &token.id, &token.value, 0).expect("it may");
        assert_eq!(cloudflare.verify("user", &token.value).err(), Some(Refusal::Unknown));
        let kept = cloudflare.verify("user", &new).expect("alive");
        assert_eq!(
            (&kept.id, kept.ends, kept.status(99), kept.status(100)),
            (&token.id, Some(100), "active", "expired")
        );
    }

    #[test]
    fn a_token_is_known_at_its_owner_alone_and_rolls_only_with_the_permission() {
        let mut cloudflare = Cloudflare::default();
        let account = "accounts/0123456789abcdef0123456789abcdef";
        let token = cloudflare.issue(account, false, None);
        assert_eq!(cloudflare.verify("user", &token.value).err(), Some(Refusal::Unknown));
        assert_eq!(cloudflare.verify("user", "short").err(), Some(Refusal::NoToken));
        assert_eq!(cloudflare.roll(account, &token.id, &token.value, 0), Err(Refusal::NotAllowed));
        assert_eq!((cloudflare.rolls, cloudflare.value(&token.id)), (0, Some(token.value.as_str())));
    }
}
