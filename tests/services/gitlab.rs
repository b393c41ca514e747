//! GitLab's access tokens, as its documentation has them, and never as Keywheel's provider
//! expects them:
//!
//! - <https://docs.gitlab.com/api/personal_access_tokens/>: `self`, self-rotation, the fields, the
//!   statuses, and the reuse detection that revokes a whole family.
//! - <https://docs.gitlab.com/api/project_access_tokens/> and `group_access_tokens/`: theirs.
//! - `lib/api/api_guard.rb` of GitLab: what stands in a 401 and in a 403.
//! - <https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/>: the text and the
//!   headers of a 429.
//!
//! The rules are pure, the clock comes in; the router is below them.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fake::{Asked, Rules};
use crate::harness::random_secret;

const DAY: u64 = 86_400;
/// "The date must be one year or less from the rotation date."
const LONGEST_DAYS: u64 = 365;
/// "If undefined, the token expires after one week."
const DEFAULT_DAYS: u64 = 7;

/// Whose token it is: a person's, or a project's or group's by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Person,
    Project(&'static str),
    Group(&'static str),
}

#[derive(Debug, Clone)]
pub struct Token {
    pub id: u64,
    pub value: String,
    owner: Owner,
    user_id: u64,
    scopes: Vec<&'static str>,
    created: u64,
    /// The day it ends, counted from 1970; it ends when that day begins, in UTC.
    ends: u64,
    family: usize,
    revoked: bool,
    last_used: Option<u64>,
}

/// Why GitLab refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unknown,
    Revoked,
    Expired,
    Scope(&'static str),
    Blocked,
    NoSuchProject,
    NotOfThisKind,
    Bad(String),
}

/// One installation and all it ever issued.
#[derive(Debug, Default)]
pub struct GitLab {
    tokens: Vec<Token>,
    blocked: Vec<u64>,
    /// Requests to be answered with 429.
    pub limited: u32,
    pub rotations: u32,
    /// How often a revoked token was used to rotate, which costs its family.
    pub families_revoked: u32,
}

impl GitLab {
    /// A new token, as one makes it in the browser.
    pub fn issue(
        &mut self,
        owner: Owner,
        user_id: u64,
        scopes: &[&'static str],
        days: u64,
        now: u64,
    ) -> String {
        let family = self.tokens.len();
        self.add(owner, user_id, scopes.to_vec(), now / DAY + days, family, now)
    }

    fn add(
        &mut self,
        owner: Owner,
        user_id: u64,
        scopes: Vec<&'static str>,
        ends: u64,
        family: usize,
        created: u64,
    ) -> String {
        let (id, value) = (self.tokens.len() as u64 + 1, random_secret());
        let (revoked, last_used) = (false, None);
        let token = Token {
            id,
            value: value.clone(),
            owner,
            user_id,
            scopes,
            created,
            ends,
            family,
            revoked,
            last_used,
        };
        self.tokens.push(token);
        value
    }

    /// Revokes every token of a user, as the user does in the browser.
    pub fn revoke(&mut self, user_id: u64) {
        for token in self.tokens.iter_mut().filter(|token| token.user_id == user_id) {
            token.revoked = true;
        }
    }

    pub fn block(&mut self, user_id: u64) {
        self.blocked.push(user_id);
    }

    pub fn newest(&self) -> &Token {
        self.tokens.last().expect("a token was issued")
    }

    pub fn living(&self, now: u64) -> usize {
        self.tokens.iter().filter(|token| !token.revoked && now < token.ends * DAY).count()
    }

    /// Whose token a value is, if it may be used at all.
    pub fn authenticate(&mut self, value: &str, now: u64) -> Result<usize, Refusal> {
        let at = self.tokens.iter().position(|token| token.value == value).ok_or(Refusal::Unknown)?;
        let token = &mut self.tokens[at];
        if token.revoked {
            return Err(Refusal::Revoked);
        }
        if now >= token.ends * DAY {
            return Err(Refusal::Expired);
        }
        if self.blocked.contains(&token.user_id) {
            return Err(Refusal::Blocked);
        }
        token.last_used = Some(now);
        Ok(at)
    }

    /// Rotates a token by itself. `expires_at` is the day asked for, counted from 1970.
    pub fn rotate(
        &mut self,
        value: &str,
        place: &Owner,
        expires_at: Option<u64>,
        now: u64,
    ) -> Result<usize, Refusal> {
        let at = match self.authenticate(value, now) {
            Err(Refusal::Revoked) => {
                self.revoke_family(value);
                return Err(Refusal::Revoked);
            }
            found => found?,
        };
        let token = self.tokens[at].clone();
        if !token.scopes.iter().any(|scope| ["api", "self_rotate"].contains(scope)) {
            return Err(Refusal::Scope("api self_rotate"));
        }
        match (place, &token.owner) {
            (Owner::Project(asked) | Owner::Group(asked), Owner::Project(own) | Owner::Group(own))
                if asked != own =>
            {
                return Err(Refusal::NoSuchProject);
            }
            (place, own) if place != own => return Err(Refusal::NotOfThisKind),
            _ => {}
        }
        let (today, ends) = (now / DAY, expires_at.unwrap_or(now / DAY + DEFAULT_DAYS));
        if !(today + 1..=today + LONGEST_DAYS).contains(&ends) {
            return Err(Refusal::Bad(String::from(
                "Expiration date must be in the future and within one year",
            )));
        }
        self.tokens[at].revoked = true;
        self.rotations += 1;
        self.add(token.owner, token.user_id, token.scopes, ends, token.family, now);
        Ok(self.tokens.len() - 1)
    }

    fn revoke_family(&mut self, value: &str) {
        let family = self.tokens.iter().find(|token| token.value == value).map(|token| token.family);
        for token in self.tokens.iter_mut().filter(|token| Some(token.family) == family) {
            token.revoked = true;
        }
        self.families_revoked += 1;
    }
}

impl Token {
    fn told(&self, now: u64) -> Value {
        let (active, moment) = (!self.revoked && now < self.ends * DAY, |at: u64| {
            jiff::Timestamp::from_second(at as i64).expect("a moment").to_string()
        });
        json!({
            "id": self.id,
            "name": "kept alive",
            "revoked": self.revoked,
            "created_at": moment(self.created),
            "description": null,
            "scopes": self.scopes,
            "user_id": self.user_id,
            "last_used_at": self.last_used.map(moment),
            "active": active,
            "expires_at": day(self.ends),
        })
    }
}

/// `YYYY-MM-DD` of a day counted from 1970.
fn day(number: u64) -> String {
    let at = jiff::Timestamp::from_second((number * DAY) as i64).expect("a moment");
    at.strftime("%Y-%m-%d").to_string()
}

fn day_number(text: &str) -> Option<u64> {
    let date: jiff::civil::Date = text.parse().ok()?;
    let at = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some(u64::try_from(at).ok()? / DAY)
}

impl Rules for GitLab {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response {
        if self.limited > 0 {
            self.limited -= 1;
            return limited(now);
        }
        let value = match asked.header("private-token") {
            "" => asked.bearer(),
            value => value,
        };
        // An installation may lie below a path.
        let path = asked.path.split_once("/api/v4/").map_or("", |(_, path)| path);
        let parts: Vec<&str> = path.split('/').collect();
        let found = match (asked.method.clone(), parts.as_slice()) {
            (Method::GET, ["personal_access_tokens", "self"]) => {
                self.authenticate(value, now).map(|at| self.tokens[at].told(now))
            }
            (Method::POST, ["personal_access_tokens", "self", "rotate"]) => {
                self.rotated(asked, value, &Owner::Person, now)
            }
            (Method::POST, [kind @ ("projects" | "groups"), name, "access_tokens", "self", "rotate"]) => {
                // A path is one segment, percent-encoded.
                let name = name.replace("%2F", "/");
                let known = self.tokens.iter().find_map(|token| match (&token.owner, *kind) {
                    (Owner::Project(path), "projects") | (Owner::Group(path), "groups") if *path == name => {
                        Some(token.owner.clone())
                    }
                    _ => None,
                });
                match known {
                    Some(place) => self.rotated(asked, value, &place, now),
                    None => Err(Refusal::NoSuchProject),
                }
            }
            _ => {
                return (StatusCode::NOT_FOUND, axum::Json(json!({ "error": "404 Not Found" })))
                    .into_response();
            }
        };
        match found {
            Ok(body) => axum::Json(body).into_response(),
            Err(refusal) => refused(&refusal),
        }
    }
}

impl GitLab {
    fn rotated(&mut self, asked: &Asked, value: &str, place: &Owner, now: u64) -> Result<Value, Refusal> {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let expires_at = match body["expires_at"].as_str() {
            Some(text) => {
                Some(day_number(text).ok_or_else(|| Refusal::Bad(String::from("expires_at is invalid")))?)
            }
            None => None,
        };
        let at = self.rotate(value, place, expires_at, now)?;
        let mut told = self.tokens[at].told(now);
        told["token"] = Value::from(self.tokens[at].value.clone());
        Ok(told)
    }
}

fn refused(refusal: &Refusal) -> Response {
    let (status, body) = match refusal {
        Refusal::Unknown => (StatusCode::UNAUTHORIZED, json!({ "message": "401 Unauthorized" })),
        Refusal::Revoked => (
            StatusCode::UNAUTHORIZED,
            json!({
                "error": "invalid_token",
                "error_description": "Token was revoked. You have to re-authorize from the user.",
            }),
        ),
        Refusal::Expired => (
            StatusCode::UNAUTHORIZED,
            json!({
                "error": "invalid_token",
                "error_description": "Token is expired. You can either do re-authorization or token refresh.",
            }),
        ),
        Refusal::Scope(scopes) => (
            StatusCode::FORBIDDEN,
            json!({
                "error": "insufficient_scope",
                "error_description": "The request requires higher privileges than provided by the access token.",
                "scope": scopes,
            }),
        ),
        Refusal::Blocked => {
            (StatusCode::FORBIDDEN, json!({ "message": "403 Forbidden - Your account has been blocked." }))
        }
        Refusal::NoSuchProject => (StatusCode::NOT_FOUND, json!({ "message": "404 Project Not Found" })),
        Refusal::NotOfThisKind => {
            (StatusCode::METHOD_NOT_ALLOWED, json!({ "message": "405 Method Not Allowed" }))
        }
        Refusal::Bad(why) => {
            (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad request - {why}") }))
        }
    };
    (status, axum::Json(body)).into_response()
}

/// "Retry later", in plain text.
fn limited(now: u64) -> Response {
    let reset = (now + 60).to_string();
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/plain"),
        ("ratelimit-limit", "60"),
        ("ratelimit-observed", "67"),
        ("ratelimit-remaining", "0"),
        ("ratelimit-reset", reset.as_str()),
        ("retry-after", "60"),
    ];
    (StatusCode::TOO_MANY_REQUESTS, headers, "Retry later\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600;

    #[test]
    fn a_rotation_revokes_the_old_token_and_its_reuse_the_whole_family() {
        let mut gitlab = GitLab::default();
        let first = gitlab.issue(Owner::Person, 7, &["self_rotate"], 30, NOW);
        let other = gitlab.issue(Owner::Person, 7, &["api"], 30, NOW);
        let at = gitlab.rotate(&first, &Owner::Person, None, NOW).expect("it may");
        let second = gitlab.tokens[at].value.clone();
        assert_eq!((gitlab.tokens[at].user_id, gitlab.tokens[at].ends), (7, NOW / DAY + DEFAULT_DAYS));
        assert_eq!(gitlab.authenticate(&first, NOW), Err(Refusal::Revoked));
        assert!(gitlab.authenticate(&second, NOW).is_ok());
        // Looking at a revoked token costs nothing, rotating with it everything.
        assert_eq!(gitlab.rotate(&first, &Owner::Person, None, NOW), Err(Refusal::Revoked));
        assert_eq!(gitlab.authenticate(&second, NOW), Err(Refusal::Revoked));
        assert!(gitlab.authenticate(&other, NOW).is_ok());
        assert_eq!((gitlab.rotations, gitlab.families_revoked, gitlab.living(NOW)), (1, 1, 1));
    }

    #[test]
    fn what_may_not_rotate_keeps_living() {
        let mut gitlab = GitLab::default();
        let reader = gitlab.issue(Owner::Person, 7, &["read_api"], 30, NOW);
        let project = gitlab.issue(Owner::Project("team/app"), 8, &["api"], 30, NOW);
        let far = Some(NOW / DAY + LONGEST_DAYS + 1);
        let scope = Refusal::Scope("api self_rotate");
        assert_eq!(gitlab.rotate(&reader, &Owner::Person, None, NOW), Err(scope));
        assert_eq!(gitlab.rotate(&project, &Owner::Person, None, NOW), Err(Refusal::NotOfThisKind));
        assert_eq!(gitlab.rotate(&project, &Owner::Project("x"), None, NOW), Err(Refusal::NoSuchProject));
        assert!(matches!(
            gitlab.rotate(&project, &Owner::Project("team/app"), far, NOW),
            Err(Refusal::Bad(_))
        ));
        assert_eq!((gitlab.rotations, gitlab.living(NOW)), (0, 2));
    }

    #[test]
    fn a_token_ends_when_its_day_begins() {
        let mut gitlab = GitLab::default();
        let token = gitlab.issue(Owner::Person, 7, &["api"], 1, NOW);
        assert!(gitlab.authenticate(&token, NOW + DAY - 1).is_ok());
        assert_eq!(gitlab.authenticate(&token, NOW + DAY), Err(Refusal::Expired));
        assert_eq!(gitlab.rotate(&token, &Owner::Person, None, NOW + DAY), Err(Refusal::Expired));
        assert_eq!((day(NOW / DAY), day_number("2026-01-01")), (String::from("2026-01-01"), Some(NOW / DAY)));
    }
}
