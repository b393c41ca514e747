//! Bearer tokens of the HTTP port, as the rest of the host knows them: what they look like, when
//! one is over, and what a token of the API may do. A leaf, and pure but for the chance in a new
//! token. It never stores, prints or compares a token.

use serde::{Deserialize, Serialize};

use crate::credential::{Millis, Secret};

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// Whose token it is. One kind is never taken for the other: they begin otherwise, lie in tables
/// of their own, and are tagged for another purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An external worker's, to report with.
    Worker,
    /// A reader's.
    Api,
}

impl Kind {
    /// So that those who search for leaked secrets find one by its look.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Worker => "kwt_",
            Self::Api => "kwa_",
        }
    }

    const fn purpose(self) -> &'static [u8] {
        match self {
            Self::Worker => b"worker token: ",
            Self::Api => b"api token: ",
        }
    }

    /// The prefix, the public id, `_` and 256 bits of chance, both in hexadecimal.
    ///
    /// # Errors
    /// Where the system has no random bytes.
    pub fn make(self) -> Result<NewToken, getrandom::Error> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        let id = hex::encode(id);
        let text = Secret::new(format!("{}{id}_{}", self.prefix(), hex::encode(secret)));
        Ok(NewToken { id, text })
    }

    /// The id in what looks like a token of this kind; anything else is none, whatever it holds.
    pub fn id_in(self, text: &str) -> Option<&str> {
        let (id, secret) = text.strip_prefix(self.prefix())?.split_once('_')?;
        (is_hex(id, ID_BYTES) && is_hex(secret, SECRET_BYTES)).then_some(id)
    }

    /// What the vault tags for a token. The purpose stands first: tags of other things are made
    /// with the same key.
    pub fn tagged(self, token: &Secret) -> Secret {
        Secret::new([self.purpose(), token.expose()].concat())
    }
}

/// The id of any token, for who names one to a command.
pub fn is_token_id(text: &str) -> bool {
    is_hex(text, ID_BYTES)
}

fn is_hex(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A new token and its public id.
pub struct NewToken {
    pub id: String,
    pub text: Secret,
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

/// What a token of the API may do with what it reaches.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The secrets, and how they stand
    Read,
    /// How credentials stand, and no secret
    State,
    /// Say that a generation has arrived
    Ack,
    /// `/metrics`; it needs no credential
    Metrics,
}

impl Scope {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::State => "state",
            Self::Ack => "ack",
            Self::Metrics => "metrics",
        }
    }

    /// Whether who has this scope may do what needs the other: a secret tells more than the state.
    pub const fn covers(self, needed: Self) -> bool {
        matches!(
            (self, needed),
            (Self::Read, Self::Read | Self::State)
                | (Self::State, Self::State)
                | (Self::Ack, Self::Ack)
                | (Self::Metrics, Self::Metrics)
        )
    }
}

/// Which credentials a token is about, by name: one that is added later under a name that it has
/// is reached as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    Credentials(Vec<String>),
    Service(String),
    Profile(String),
    /// None: for metrics.
    Nothing,
}

impl Reach {
    /// Whether a credential is within it, by what it belongs to.
    pub fn includes(&self, credential_id: &str, service: &str, profile: Option<&str>) -> bool {
        match self {
            Self::Credentials(ids) => ids.iter().any(|id| id == credential_id),
            Self::Service(own) => own == service,
            Self::Profile(own) => Some(own.as_str()) == profile,
            Self::Nothing => false,
        }
    }

    /// For a table.
    pub fn in_words(&self) -> String {
        match self {
            Self::Credentials(ids) => ids.join(", "),
            Self::Service(service) => format!("service {service}"),
            Self::Profile(profile) => format!("profile {profile}"),
            Self::Nothing => String::from("–"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for kind in [Kind::Worker, Kind::Api] {
            let (first, second) = (kind.make().unwrap(), kind.make().unwrap());
            let text = |token: &NewToken| String::from_utf8(token.text.expose().to_vec()).unwrap();
            assert_eq!(kind.id_in(&text(&first)), Some(first.id.as_str()));
            assert_ne!(text(&first)[21..], text(&second)[21..]);
            assert_eq!(text(&first).len(), 4 + 16 + 1 + 64);
            assert!(is_token_id(&first.id));
        }
    }

    #[test]
    fn a_token_of_one_kind_is_none_of_the_other() {
        let worker = Kind::Worker.make().unwrap().text;
        let text = String::from_utf8(worker.expose().to_vec()).unwrap();
        assert_eq!(Kind::Api.id_in(&text), None);
        assert_ne!(Kind::Api.tagged(&worker), Kind::Worker.tagged(&worker));
    }

    #[test]
    fn what_only_resembles_a_token_has_no_id() {
        let good = format!("kwt_{}_{}", "0a".repeat(8), "1b".repeat(32));
        assert_eq!(Kind::Worker.id_in(&good), Some("0a0a0a0a0a0a0a0a"));
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
            assert_eq!(Kind::Worker.id_in(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_scope_covers_itself_and_reading_covers_the_state() {
        let all = [Scope::Read, Scope::State, Scope::Ack, Scope::Metrics];
        for has in all {
            for needed in all {
                let expected = has == needed || (has, needed) == (Scope::Read, Scope::State);
                assert_eq!(has.covers(needed), expected, "{has:?} {needed:?}");
            }
        }
    }

    #[test]
    fn a_reach_includes_what_it_names_and_nothing_else() {
        let ids = Reach::Credentials(vec!["ann".into(), "bob".into()]);
        for (reach, credential, service, profile, expected) in [
            (&ids, "ann", "s", None, true),
            (&ids, "bob", "t", Some("p"), true),
            (&ids, "an", "s", None, false),
            (&ids, "ANN", "s", None, false),
            (&Reach::Service("s".into()), "ann", "s", None, true),
            (&Reach::Service("s".into()), "s", "t", Some("s"), false),
            (&Reach::Profile("p".into()), "ann", "s", Some("p"), true),
            (&Reach::Profile("p".into()), "ann", "p", None, false),
            (&Reach::Nothing, "ann", "s", None, false),
        ] {
            assert_eq!(reach.includes(credential, service, profile), expected, "{reach:?} {credential}");
        }
    }
}
