//! Atlassian's OAuth 2.0 (3LO) tokens, from its documentation alone: pure rules and the three
//! addresses that matter here. It is what the provider is measured by, and knows nothing of it.
//!
//! - <https://developer.atlassian.com/cloud/oauth/getting-started/refresh-tokens/>: a JSON request
//!   with the client's secret; each exchange gives a new access token of an hour and a new refresh
//!   token; `403 invalid_grant`, "Unknown or invalid refresh token."
//! - The same page, on rotating refresh tokens: unused for 90 days they expire, and the whole
//!   family after 365; within a reuse interval (leeway) of ten minutes "the breach detection
//!   features don't apply when exchanging a refresh token multiple times". What they do is in
//!   <https://auth0.com/docs/secure/tokens/refresh-tokens/refresh-token-rotation>, which that page
//!   points to: the family is revoked.
//! - It says nothing of the former access token: it may live to its end, or go with the exchange.
//! - <https://developer.atlassian.com/cloud/oauth/getting-started/making-calls-to-api/>:
//!   `accessible-resources` lists the sites of any token; `/me` wants the scope `read:me`, and a
//!   missing scope is answered with 401, "Unauthorized; scope does not match".
//! - <https://developer.atlassian.com/cloud/jira/platform/rate-limiting/>: 429 with `Retry-After`.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fake::{Asked, PerMinute, Rules};
use crate::harness::random_secret;

const ACCESS: u64 = 3_600;
pub const LEEWAY: Duration = Duration::from_secs(600);
pub const INACTIVITY: Duration = Duration::from_secs(90 * 86_400);
pub const ABSOLUTE: Duration = Duration::from_secs(365 * 86_400);

/// All that came of one consent.
#[derive(Debug)]
struct Family {
    account: String,
    scopes: Vec<String>,
    began: u64,
    revoked: bool,
}

#[derive(Debug)]
struct Token {
    of: usize,
    issued: u64,
    /// When a refresh token was first exchanged.
    spent: Option<u64>,
}

#[derive(Debug)]
pub struct Atlassian {
    pub client_id: String,
    pub client_secret: String,
    families: Vec<Family>,
    access: HashMap<String, Token>,
    refresh: HashMap<String, Token>,
    limit: PerMinute,
    /// An exchange ends the access tokens before it.
    pub ends_former_tokens: bool,
    pub rotations: u32,
    /// Refresh tokens exchanged again after their leeway.
    pub breaches: u32,
}

impl Atlassian {
    pub fn new() -> Self {
        Self {
            client_id: "the-app".into(),
            client_secret: random_secret(),
            families: Vec::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            limit: PerMinute::new(600),
            ends_former_tokens: false,
            rotations: 0,
            breaches: 0,
        }
    }

    /// An account consents: the first pair, access token first.
    pub fn consent(&mut self, account: &str, scopes: &[&str], now: u64) -> (String, String) {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        self.families.push(Family { account: account.into(), scopes, began: now, revoked: false });
        self.issue(self.families.len() - 1, now)
    }

    /// The account takes its consent back.
    pub fn withdraw(&mut self, account: &str) {
        self.families.iter_mut().filter(|one| one.account == account).for_each(|one| one.revoked = true);
    }

    pub fn accepts(&self, access_token: &str, now: u64) -> bool {
        self.check(access_token, now).is_some()
    }

    fn issue(&mut self, of: usize, now: u64) -> (String, String) {
        let (access, refresh) = (random_secret(), random_secret());
        self.access.insert(access.clone(), Token { of, issued: now, spent: None });
        self.refresh.insert(refresh.clone(), Token { of, issued: now, spent: None });
        (access, refresh)
    }

    fn check(&self, access_token: &str, now: u64) -> Option<&Family> {
        let token = self.access.get(access_token)?;
        let family = &self.families[token.of];
        (!family.revoked && now < token.issued + ACCESS).then_some(family)
    }

    fn exchange(&mut self, refresh_token: &str, now: u64) -> Option<(usize, String, String)> {
        let token = self.refresh.get_mut(refresh_token)?;
        let of = token.of;
        let family = &mut self.families[of];
        if family.revoked
            || now >= family.began + ABSOLUTE.as_secs()
            || now >= token.issued + INACTIVITY.as_secs()
        {
            return None;
        }
        if token.spent.is_some_and(|spent| now > spent + LEEWAY.as_secs()) {
            self.breaches += 1;
            family.revoked = true;
            return None;
        }
        token.spent.get_or_insert(now);
        self.rotations += 1;
        if self.ends_former_tokens {
            self.access.retain(|_, token| token.of != of);
        }
        let (access, refresh) = self.issue(of, now);
        Some((of, access, refresh))
    }

    fn token(&mut self, asked: &Asked, now: u64) -> Response {
        let error = |status: u16, error: &str, description: &str| {
            answer(status, json!({ "error": error, "error_description": description }))
        };
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let field = |name: &str| body[name].as_str().unwrap_or_default();
        if !asked.header("content-type").starts_with("application/json") || !body.is_object() {
            return error(400, "invalid_request", "the body must be JSON");
        }
        if field("client_id") != self.client_id || field("client_secret") != self.client_secret {
            return error(401, "access_denied", "Unauthorized");
        }
        if field("grant_type") != "refresh_token" {
            return error(400, "unsupported_grant_type", "Unsupported grant type");
        }
        match self.exchange(field("refresh_token"), now) {
            None => error(403, "invalid_grant", "Unknown or invalid refresh token."),
            Some((of, access, refresh)) => answer(
                200,
                json!({
                    "access_token": access,
                    "refresh_token": refresh,
                    "expires_in": ACCESS,
                    "scope": self.families[of].scopes.join(" "),
                    "token_type": "Bearer",
                }),
            ),
        }
    }

    fn me(&self, asked: &Asked, now: u64) -> Response {
        match self.check(asked.bearer(), now) {
            None => unauthorized("Unauthorized"),
            Some(family) if !family.scopes.iter().any(|scope| scope == "read:me") => {
                unauthorized("Unauthorized; scope does not match")
            }
            Some(family) => answer(
                200,
                json!({
                    "account_type": "atlassian", "account_id": family.account, "email": "ann@forum.example",
                    "name": "Ann", "account_status": "active", "nickname": "ann",
                }),
            ),
        }
    }

    fn sites(&self, asked: &Asked, now: u64) -> Response {
        match self.check(asked.bearer(), now) {
            None => unauthorized("Unauthorized"),
            Some(family) => answer(
                200,
                json!([{
                    "id": "made-up-cloud-id", "name": "forum", "url": "https://forum.atlassian.net",
                    "scopes": family.scopes, "avatarUrl": "https://forum.atlassian.net/logo.png",
                }]),
            ),
        }
    }
}

fn answer(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
}

fn unauthorized(message: &str) -> Response {
    answer(401, json!({ "code": 401, "message": message }))
}

impl Rules for Atlassian {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        if let Err(seconds) = self.limit.take(now) {
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            return (wait, answer(429, json!({ "code": 429, "message": "Rate limit exceeded" })))
                .into_response();
        }
        match (asked.method.as_str(), asked.path.as_str()) {
            ("POST", "/oauth/token") => self.token(asked, now),
            ("GET", "/me") => self.me(asked, now),
            ("GET", "/oauth/token/accessible-resources") => self.sites(asked, now),
            _ => answer(404, json!({ "code": 404, "message": "Not Found" })),
        }
    }
}
