//! Slack's tokens with rotation, from its documentation alone: pure rules and the four methods
//! that matter here. It is what the provider is measured by, and knows nothing of it.
//!
//! - An access token lives for twelve hours (`expires_in` 43200); the refresh token it came with
//!   buys the next pair and is revoked by that:
//!   <https://docs.slack.dev/authentication/using-token-rotation>. No more than two access tokens
//!   of an installation live at a time; the oldest goes first.
//! - Errors are `{"ok":false,"error":…}` with status 200; 429 has `Retry-After`:
//!   <https://docs.slack.dev/apis/web-api/rate-limits>.
//! - Whose token it is, and `invalid_auth`, `token_expired`, `token_revoked` (the app was removed:
//!   a user's token), `account_inactive` (the same: a bot's):
//!   <https://docs.slack.dev/reference/methods/auth.test>, hundreds of calls a minute.
//! - `invalid_refresh_token`, `invalid_client_id`, `bad_client_secret`:
//!   <https://docs.slack.dev/reference/methods/oauth.v2.access>; for configuration tokens
//!   <https://docs.slack.dev/reference/methods/tooling.tokens.rotate>.

use std::collections::HashMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fake::{Asked, PerMinute, Rules};
use crate::harness::random_secret;

const LIFETIME: u64 = 43_200;
const LIVING_AT_ONCE: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bot,
    User,
    /// A person's app configuration token, which no app's client renews.
    Config,
}

#[derive(Debug)]
struct Installation {
    kind: Kind,
    team: String,
    user: String,
    removed: bool,
}

#[derive(Debug)]
struct Token {
    of: usize,
    /// Counts up with each that is issued.
    number: usize,
    issued: u64,
    revoked: bool,
}

#[derive(Debug)]
pub struct Slack {
    pub client_id: String,
    pub client_secret: String,
    installations: Vec<Installation>,
    access: HashMap<String, Token>,
    refresh: HashMap<String, Token>,
    limit: PerMinute,
    pub rotations: u32,
    /// Refresh tokens that came a second time.
    pub reused: u32,
}

impl Slack {
    pub fn new() -> Self {
        Self {
            client_id: "1.2".into(),
            client_secret: random_secret(),
            installations: Vec::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            limit: PerMinute::new(300),
            rotations: 0,
            reused: 0,
        }
    }

    /// Somebody installs the app: the first pair, access token first.
    pub fn install(&mut self, kind: Kind, team: &str, user: &str, now: u64) -> (String, String) {
        self.installations.push(Installation { kind, team: team.into(), user: user.into(), removed: false });
        self.issue(self.installations.len() - 1, now)
    }

    /// The workspace removes the app.
    pub fn remove_app(&mut self, team: &str) {
        self.installations.iter_mut().filter(|one| one.team == team).for_each(|one| one.removed = true);
    }

    /// As `auth.revoke` does.
    pub fn revoke(&mut self, access_token: &str) {
        self.access.get_mut(access_token).expect("a token of Slack's").revoked = true;
    }

    pub fn accepts(&self, access_token: &str, now: u64) -> bool {
        self.check(access_token, now).is_ok()
    }

    fn issue(&mut self, of: usize, now: u64) -> (String, String) {
        let mut living: Vec<_> = (self.access.iter_mut())
            .filter(|(_, token)| token.of == of && !token.revoked && now < token.issued + LIFETIME)
            .map(|(_, token)| token)
            .collect();
        living.sort_by_key(|token| std::cmp::Reverse(token.number));
        living.into_iter().skip(LIVING_AT_ONCE - 1).for_each(|token| token.revoked = true);
        let (access, refresh) = (random_secret(), random_secret());
        let number = self.access.len();
        self.access.insert(access.clone(), Token { of, number, issued: now, revoked: false });
        self.refresh.insert(refresh.clone(), Token { of, number, issued: now, revoked: false });
        (access, refresh)
    }

    fn check(&self, access_token: &str, now: u64) -> Result<&Installation, &'static str> {
        let token = self.access.get(access_token).ok_or("invalid_auth")?;
        let installation = &self.installations[token.of];
        match installation {
            Installation { removed: true, kind: Kind::Bot, .. } => Err("account_inactive"),
            Installation { removed: true, .. } => Err("token_revoked"),
            _ if token.revoked => Err("token_revoked"),
            _ if now >= token.issued + LIFETIME => Err("token_expired"),
            _ => Ok(installation),
        }
    }

    /// Swaps a refresh token for the next pair, with the installation it is of.
    fn rotate(
        &mut self,
        refresh_token: &str,
        config: bool,
        now: u64,
    ) -> Result<(usize, String, String), &'static str> {
        let token = self.refresh.get_mut(refresh_token).ok_or("invalid_refresh_token")?;
        if token.revoked {
            self.reused += 1;
            return Err("invalid_refresh_token");
        }
        let of = token.of;
        let installation = &self.installations[of];
        if installation.removed || (installation.kind == Kind::Config) != config {
            return Err("invalid_refresh_token");
        }
        token.revoked = true;
        self.rotations += 1;
        let (access, refresh) = self.issue(of, now);
        Ok((of, access, refresh))
    }

    fn oauth_v2_access(&mut self, asked: &Asked, now: u64) -> Result<Value, &'static str> {
        let field = |name| asked.parameter(name);
        if field("client_id") != self.client_id {
            return Err("invalid_client_id");
        }
        if field("client_secret") != self.client_secret {
            return Err("bad_client_secret");
        }
        if field("grant_type") != "refresh_token" {
            return Err("invalid_grant_type");
        }
        let (of, access, refresh) = self.rotate(&field("refresh_token"), false, now)?;
        let Installation { kind, team, user, .. } = &self.installations[of];
        let mut answer = json!({
            "ok": true,
            "app_id": "A01",
            "access_token": access,
            "expires_in": LIFETIME,
            "refresh_token": refresh,
            "token_type": if *kind == Kind::Bot { "bot" } else { "user" },
            "scope": "chat:write",
            "team": { "id": team, "name": "The forum" },
            "enterprise": null,
        });
        if *kind == Kind::Bot {
            answer["bot_user_id"] = json!(user);
        }
        Ok(answer)
    }

    fn tooling_tokens_rotate(&mut self, asked: &Asked, now: u64) -> Result<Value, &'static str> {
        let (of, access, refresh) = self.rotate(&asked.parameter("refresh_token"), true, now)?;
        let Installation { team, user, .. } = &self.installations[of];
        Ok(json!({
            "ok": true, "token": access, "refresh_token": refresh, "team_id": team, "user_id": user,
            "iat": now, "exp": now + LIFETIME,
        }))
    }

    fn auth_test(&self, access_token: &str, now: u64) -> Result<Value, &'static str> {
        if access_token.is_empty() {
            return Err("not_authed");
        }
        let Installation { kind, team, user, .. } = self.check(access_token, now)?;
        let mut answer = json!({
            "ok": true, "url": "https://forum.slack.com/", "team": "The forum", "user": "ann",
            "team_id": team, "user_id": user,
        });
        if *kind == Kind::Bot {
            answer["bot_id"] = json!("B01");
        }
        Ok(answer)
    }
}

impl Rules for Slack {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        if let Err(seconds) = self.limit.take(now) {
            let error = Json(json!({ "ok": false, "error": "ratelimited" }));
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, wait, error).into_response();
        }
        let said = match asked.path.as_str() {
            "/api/auth.test" => self.auth_test(asked.bearer(), now),
            "/api/oauth.v2.access" => self.oauth_v2_access(asked, now),
            "/api/tooling.tokens.rotate" => self.tooling_tokens_rotate(asked, now),
            _ => Err("unknown_method"),
        };
        // Its errors come with status 200.
        Json(said.unwrap_or_else(|error| json!({ "ok": false, "error": error }))).into_response()
    }
}
