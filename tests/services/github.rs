//! GitHub's tokens that people make by hand, as its documentation has them, and never as
//! Keywheel's provider expects them:
//!
//! - <https://docs.github.com/en/rest/users/users#get-the-authenticated-user>: who a token is.
//! - <https://github.blog/changelog/2021-07-26-expiration-options-for-personal-access-tokens/>: the
//!   header that says when it ends.
//! - <https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api>: 401 for a bad
//!   token, and 403 for every token after several of these.
//! - <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>: both limits.
//! - <https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/scopes-for-oauth-apps>: the
//!   header with a classic token's scopes.
//!
//! The rules are pure, the clock comes in; the router is below them.

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::fake::{Asked, Rules};
use crate::harness::random_secret;

/// "The primary rate limit": so many requests an hour.
const LIMIT: u32 = 5_000;
const HOUR: u64 = 3_600;

#[derive(Debug, Clone)]
struct Token {
    value: String,
    id: u64,
    login: &'static str,
    /// None for fine-grained tokens.
    scopes: Option<&'static str>,
    ends: Option<u64>,
    revoked: bool,
}

/// Which limit a request meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Used up until this moment.
    Primary(u64),
    Secondary,
}

#[derive(Debug, Default)]
pub struct GitHub {
    tokens: Vec<Token>,
    used: u32,
    pub limited: Option<Limited>,
}

impl GitHub {
    pub fn issue(
        &mut self,
        id: u64,
        login: &'static str,
        scopes: Option<&'static str>,
        ends: Option<u64>,
    ) -> String {
        let value = random_secret();
        self.tokens.push(Token { value: value.clone(), id, login, scopes, ends, revoked: false });
        value
    }

    pub fn revoke(&mut self, value: &str) {
        for token in self.tokens.iter_mut().filter(|token| token.value == value) {
            token.revoked = true;
        }
    }

    /// "Upon reaching your token's expiration date, the token is automatically revoked."
    fn authenticate(&self, value: &str, now: u64) -> Option<&Token> {
        let alive = |token: &&Token| !token.revoked && token.ends.is_none_or(|end| now < end);
        self.tokens.iter().filter(|token| token.value == value).find(alive)
    }
}

impl Rules for GitHub {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        self.used += 1;
        match self.limited {
            Some(Limited::Primary(until)) if now < until => return primary(until),
            Some(Limited::Secondary) => return secondary(),
            _ => {}
        }
        // The API of an own server lies below a path.
        if asked.method != Method::GET || !asked.path.ends_with("/user") {
            return (StatusCode::NOT_FOUND, axum::Json(json!({ "message": "Not Found" }))).into_response();
        }
        let Some(token) = self.authenticate(asked.bearer(), now) else { return bad_credentials() };
        let body = json!({ "login": token.login, "id": token.id, "type": "User" });
        let mut response = axum::Json(body).into_response();
        let mut put = |name: &'static str, value: String| {
            let value = HeaderValue::from_str(&value).expect("a header");
            response.headers_mut().insert(HeaderName::from_static(name), value);
        };
        put("x-ratelimit-limit", LIMIT.to_string());
        put("x-ratelimit-remaining", LIMIT.saturating_sub(self.used).to_string());
        put("x-ratelimit-reset", (now + HOUR).to_string());
        if let Some(scopes) = token.scopes {
            put("x-oauth-scopes", scopes.to_owned());
        }
        if let Some(end) = token.ends {
            let at = jiff::Timestamp::from_second(end as i64).expect("a moment");
            put("github-authentication-token-expiration", at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
        }
        response
    }
}

pub fn bad_credentials() -> Response {
    let body = json!({ "message": "Bad credentials", "documentation_url": "https://docs.github.com/rest", "status": "401" });
    (StatusCode::UNAUTHORIZED, axum::Json(body)).into_response()
}

/// "A 403 or 429 response, and the x-ratelimit-remaining header will be 0."
fn primary(until: u64) -> Response {
    let reset = until.to_string();
    let headers = [
        ("x-ratelimit-limit", "5000"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", reset.as_str()),
    ];
    let body = json!({ "message": "API rate limit exceeded for user ID 4711." });
    (StatusCode::FORBIDDEN, headers, axum::Json(body)).into_response()
}

/// "An error message that indicates that you exceeded a secondary rate limit"; a time to wait is
/// not always there.
fn secondary() -> Response {
    let body = json!({ "message": "You have exceeded a secondary rate limit. Please wait a few minutes." });
    (StatusCode::FORBIDDEN, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_refused_from_its_end_on_and_once_it_is_revoked() {
        let mut github = GitHub::default();
        let ending = github.issue(1, "ann", Some("repo"), Some(100));
        let endless = github.issue(1, "ann", None, None);
        assert!(github.authenticate(&ending, 99).is_some());
        assert!(github.authenticate(&ending, 100).is_none());
        assert!(github.authenticate(&endless, u64::MAX).is_some());
        github.revoke(&endless);
        assert!(github.authenticate(&endless, 0).is_none());
        assert!(github.authenticate("made-up", 0).is_none());
    }
}
