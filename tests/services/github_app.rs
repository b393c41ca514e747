//! User access tokens of a GitHub App, as GitHub's documentation has them, and never as Keywheel's
//! provider expects them:
//!
//! - <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/refreshing-user-access-tokens>:
//!   the request, the answer's fields, eight hours and six months, and "once you use a refresh
//!   token, that refresh token and the old user access token will no longer work".
//! - <https://docs.github.com/en/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors>:
//!   the errors. They come with status 200, in the format that `Accept` asks for.
//! - <https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/token-expiration-and-revocation>:
//!   a revoked authorization takes every token with it.
//!
//! The rules are pure, the clock comes in; the router is below them.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fake::{Asked, Rules};
use super::github::bad_credentials;
use crate::harness::random_secret;

/// "The value will always be 28800."
pub const ACCESS_SECONDS: u64 = 28_800;
/// "The value will always be 15811200."
const REFRESH_SECONDS: u64 = 15_811_200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub access: String,
    pub refresh: String,
    issued: u64,
    /// Bought another, or was revoked.
    dead: bool,
}

/// An error of the token endpoint, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    BadRefreshToken,
    IncorrectClientCredentials,
    UnsupportedGrantType,
}

/// One app and one account that authorized it.
#[derive(Debug)]
pub struct GitHubApp {
    pub client_id: String,
    pub client_secret: String,
    /// People signed in by device flow, which wants no client secret.
    pub device_flow: bool,
    /// How long an access token lives: eight hours, unless a test can't wait.
    pub access_seconds: u64,
    /// It answers 503 to everything.
    pub down: bool,
    pairs: Vec<Pair>,
    pub refreshes: u32,
    /// How often a refresh token came that was dead.
    pub refused: u32,
}

impl GitHubApp {
    pub fn new() -> Self {
        let (client_id, client_secret) = (format!("Iv1.{}", random_secret()), random_secret());
        Self {
            client_id,
            client_secret,
            device_flow: false,
            access_seconds: ACCESS_SECONDS,
            down: false,
            pairs: Vec::new(),
            refreshes: 0,
            refused: 0,
        }
    }

    /// The person authorizes the app.
    pub fn sign_in(&mut self, now: u64) -> Pair {
        let pair = Pair { access: random_secret(), refresh: random_secret(), issued: now, dead: false };
        self.pairs.push(pair.clone());
        pair
    }

    /// The person takes the authorization away.
    pub fn revoke(&mut self) {
        for pair in &mut self.pairs {
            pair.dead = true;
        }
    }

    pub fn newest(&self) -> &Pair {
        self.pairs.last().expect("somebody signed in")
    }

    pub fn accepts(&self, access: &str, now: u64) -> bool {
        let lives = |pair: &Pair| !pair.dead && now < pair.issued + self.access_seconds;
        self.pairs.iter().any(|pair| pair.access == access && lives(pair))
    }

    pub fn refresh(
        &mut self,
        client: (&str, &str),
        grant: &str,
        token: &str,
        now: u64,
    ) -> Result<Pair, Refusal> {
        if client.0 != self.client_id || !(self.device_flow || client.1 == self.client_secret) {
            return Err(Refusal::IncorrectClientCredentials);
        }
        if grant != "refresh_token" {
            return Err(Refusal::UnsupportedGrantType);
        }
        let alive =
            |pair: &&mut Pair| pair.refresh == token && !pair.dead && now < pair.issued + REFRESH_SECONDS;
        let Some(pair) = self.pairs.iter_mut().find(alive) else {
            self.refused += 1;
            return Err(Refusal::BadRefreshToken);
        };
        pair.dead = true;
        self.refreshes += 1;
        Ok(self.sign_in(now))
    }
}

impl Rules for GitHubApp {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        if self.down {
            let body = json!({ "message": "No server is currently available" });
            return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response();
        }
        match (asked.method.clone(), asked.path.as_str()) {
            (Method::GET, "/user") if self.accepts(asked.bearer(), now) => {
                axum::Json(json!({ "login": "ann", "id": 4711, "type": "User" })).into_response()
            }
            (Method::GET, "/user") => bad_credentials(),
            (Method::POST, "/login/oauth/access_token") => {
                let (id, secret) = (asked.parameter("client_id"), asked.parameter("client_secret"));
                let (grant, token) = (asked.parameter("grant_type"), asked.parameter("refresh_token"));
                let body = match self.refresh((&id, &secret), &grant, &token, now) {
                    Ok(pair) => json!({
                        "access_token": pair.access,
                        "expires_in": self.access_seconds,
                        "refresh_token": pair.refresh,
                        "refresh_token_expires_in": REFRESH_SECONDS,
                        "scope": "",
                        "token_type": "bearer",
                    }),
                    Err(refusal) => refusal.told(),
                };
                written(&body, asked.header(header::ACCEPT).contains("json"))
            }
            _ => (StatusCode::NOT_FOUND, axum::Json(json!({ "message": "Not Found" }))).into_response(),
        }
    }
}

impl Refusal {
    fn told(self) -> Value {
        let (error, description) = match self {
            Self::BadRefreshToken => {
                ("bad_refresh_token", "The refresh token passed is incorrect or expired.")
            }
            Self::IncorrectClientCredentials => {
                ("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.")
            }
            Self::UnsupportedGrantType => ("unsupported_grant_type", "The grant type is not supported."),
        };
        json!({ "error": error, "error_description": description, "error_uri": "https://docs.github.com/apps" })
    }
}

/// "By default, the response takes the form of a query string"; JSON where `Accept` asks for it.
fn written(body: &Value, as_json: bool) -> Response {
    if as_json {
        return axum::Json(body).into_response();
    }
    let fields =
        body.as_object().into_iter().flatten().map(|(name, value)| {
            (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
    let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    ([(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")], form).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_ends_both_old_tokens_and_a_dead_one_buys_nothing() {
        let mut app = GitHubApp::new();
        let (id, secret) = (app.client_id.clone(), app.client_secret.clone());
        let old = app.sign_in(0);
        let new = app.refresh((&id, &secret), "refresh_token", &old.refresh, 10).expect("it may");
        assert!(!app.accepts(&old.access, 10) && app.accepts(&new.access, 10));
        let again = app.refresh((&id, &secret), "refresh_token", &old.refresh, 10);
        assert_eq!(again, Err(Refusal::BadRefreshToken));
        // A second use is refused, and takes nothing else with it.
        assert!(app.accepts(&new.access, 10) && !app.accepts(&new.access, 10 + ACCESS_SECONDS));
        let wrong = app.refresh((&id, "made-up"), "refresh_token", &new.refresh, 10);
        assert_eq!(wrong, Err(Refusal::IncorrectClientCredentials));
        let late = app.refresh((&id, &secret), "refresh_token", &new.refresh, 10 + REFRESH_SECONDS);
        assert_eq!(late, Err(Refusal::BadRefreshToken));
        assert_eq!((app.refreshes, app.refused), (1, 2));
    }
}
