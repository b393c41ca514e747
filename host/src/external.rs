//! Workers that can't be plugins, as the rest of the host knows them: what their tokens look
//! like, and when one counts as silent. A leaf, and pure but for the chance in a new token. It
//! never stores, prints or compares a token.

use serde::Serialize;

use crate::credential::{Millis, Secret};

/// So that those who search for leaked secrets find one by its look.
pub const TOKEN_PREFIX: &str = "kwt_";

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A worker that doesn't say how often it reports is missed after this.
pub const DEFAULT_INTERVAL_SECONDS: u32 = 3_600;

/// A new token and its public id.
pub struct NewToken {
    pub id: String,
    pub text: Secret,
}

/// `kwt_`, the public id, `_` and 256 bits of chance, both in hexadecimal.
///
/// # Errors
/// Where the system has no random bytes.
pub fn new_token() -> Result<NewToken, getrandom::Error> {
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    getrandom::fill(&mut id)?;
    getrandom::fill(&mut secret)?;
    let id = hex::encode(id);
    let text = Secret::new(format!("{TOKEN_PREFIX}{id}_{}", hex::encode(secret)));
    Ok(NewToken { id, text })
}

/// The id in what looks like a token; anything else is none, whatever it holds.
pub fn token_id(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    let is_hex = |text: &str, bytes: usize| {
        text.len() == 2 * bytes && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    (is_hex(id, ID_BYTES) && is_hex(secret, SECRET_BYTES)).then_some(id)
}

/// What the vault tags for a token. The purpose stands first: tags of other things are made
/// with the same key.
pub fn tagged(token: &Secret) -> Secret {
    Secret::new([b"worker token: ".as_slice(), token.expose()].concat())
}

/// Whether an external worker keeps its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    Heard,
    /// Nothing came from it for longer than it said.
    Silent,
}

impl Presence {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
        }
    }

    /// A worker last heard of after `now` (a clock was set back) isn't silent.
    pub const fn of(last_seen: Millis, interval_seconds: u32, now: Millis) -> Self {
        if now.saturating_sub(last_seen) > interval_seconds as Millis * 1_000 {
            Self::Silent
        } else {
            Self::Heard
        }
    }
}

/// Whether a token may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    Active,
    Expired,
    Revoked,
}

impl TokenState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    /// Its last moment is the one before `expires`.
    pub const fn of(expires: Option<Millis>, revoked: Option<Millis>, now: Millis) -> Self {
        match (revoked, expires) {
            (Some(_), _) => Self::Revoked,
            (None, Some(expires)) if expires <= now => Self::Expired,
            _ => Self::Active,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_silent_once_its_own_interval_has_passed_and_no_sooner() {
        const NOW: Millis = 1_700_000_000_000;
        for (last_seen, interval, expected) in [
            (NOW, 1, Presence::Heard),
            (NOW - 1_000, 1, Presence::Heard),
            (NOW - 1_001, 1, Presence::Silent),
            (NOW - 3_600_000, 3_600, Presence::Heard),
            (NOW - 3_600_001, 3_600, Presence::Silent),
            (NOW - 3_600_001, 7_200, Presence::Heard),
            // A clock that was set back, and one that never was set.
            (NOW + 60_000, 1, Presence::Heard),
            (0, u32::MAX, Presence::Heard),
            (0, 1, Presence::Silent),
        ] {
            assert_eq!(Presence::of(last_seen, interval, NOW), expected, "{last_seen} {interval}");
        }
    }

    #[test]
    fn a_token_ends_at_its_last_moment_or_when_it_is_revoked() {
        for (expires, revoked, expected) in [
            (None, None, TokenState::Active),
            (Some(11), None, TokenState::Active),
            (Some(10), None, TokenState::Expired),
            (Some(9), None, TokenState::Expired),
            (None, Some(5), TokenState::Revoked),
            (Some(9), Some(5), TokenState::Revoked),
            (Some(99), Some(5), TokenState::Revoked),
        ] {
            assert_eq!(TokenState::of(expires, revoked, 10), expected, "{expires:?} {revoked:?}");
        }
    }

    #[test]
    fn a_new_token_names_its_id_and_no_two_are_alike() {
        let (first, second) = (new_token().unwrap(), new_token().unwrap());
        let text = |token: &NewToken| String::from_utf8(token.text.expose().to_vec()).unwrap();
        assert_eq!(token_id(&text(&first)), Some(first.id.as_str()));
        assert_ne!(text(&first)[21..], text(&second)[21..]);
        assert_eq!(text(&first).len(), 4 + 16 + 1 + 64);
    }

    #[test]
    fn what_only_resembles_a_token_has_no_id() {
        let good = format!("kwt_{}_{}", "0a".repeat(8), "1b".repeat(32));
        assert_eq!(token_id(&good), Some("0a0a0a0a0a0a0a0a"));
        for bad in [
            String::new(),
            good[..good.len() - 1].to_owned(),
            format!("{good}0"),
            format!(" {good}"),
            good.to_uppercase(),
            good.replace("kwt_", "kwt-"),
            good.replace("0a", "0g"),
            format!("kwt_{}_{}", "0a".repeat(7), "1b".repeat(32)),
            format!("kwt__{}", "1b".repeat(32)),
        ] {
            assert_eq!(token_id(&bad), None, "{bad}");
        }
    }
}
