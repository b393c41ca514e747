//! The one door out: makes the HTTP requests of providers, puts secrets in on the way out and
//! takes them out on the way back. It alone opens outward sockets. It stores nothing, starts
//! no attempt, and knows no key of the vault: fingerprints are made by a function it is given.
//!
//! `policy`, `template`, `cookies`, `capture`, `redact`, `seen`, `clock` and `restraint` are pure
//! and decide; `client` is the shell that resolves, connects, reads and keeps the time. `preview`
//! composes and sends nothing. `delivery` and `mail` send what the operator, and no plugin, wants sent.
//!
//! **Invariant:** what a service issued is in `Exchange` before anything else can fail, and
//! stays there until someone takes it with `Exchange::take_changes` or got it in `Exchanged`.

pub mod capture;
mod client;
mod clock;
pub mod cookies;
pub mod delivery;
pub mod mail;
pub mod policy;
pub mod preview;
pub mod redact;
mod restraint;
pub mod seen;
pub mod template;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use crate::credential::{self, Jar, Key, Millis, Secret};
use crate::limits;
use crate::protocol::{Captured, HttpResponse};
use crate::provider::Resolved;

pub use client::{Between, BreaksOff, Egress, over_network, unpacked};
use redact::Redactor;
pub use seen::Seen;

/// Makes the keyed fingerprint of a value.
pub type Fingerprint = dyn Fn(&Secret) -> String + Send + Sync;

#[derive(Debug, Clone, Default)]
pub struct EgressOptions {
    /// Certificates to trust besides the system's, as PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error(
        "the extra CA file holds no usable certificate; hint: it must be PEM with at least one CERTIFICATE block"
    )]
    ExtraCa(#[source] Option<reqwest::Error>),
    #[error("the HTTP client can't be set up")]
    Client(#[source] reqwest::Error),
}

/// What one call of a plugin has and may still use. Each call gets a new one.
pub struct Exchange {
    pub resolved: Arc<Resolved>,
    /// Whose credential it is about; who asked to be left alone is remembered for it.
    service: String,
    /// The keys as they are now: what the answers of this call set is in it.
    pub jar: Jar,
    deadline: Instant,
    /// What time it is for this call; None: by the clock.
    at: Option<Millis>,
    requests_left: u32,
    /// Keys this call changed, with the value they had when it began.
    before: Vec<(String, Option<Secret>)>,
    changes: Vec<KeyChange>,
    /// What the service was asked and how it answered, over the whole call.
    pub seen: Seen,
    /// Built when the first text needs it: a call that sends nothing and logs nothing pays
    /// nothing.
    redactor: OnceLock<Redactor>,
}

/// How an answer changed a key; the newest change of each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// A new value. It may exist nowhere else: store it before the plugin goes on.
    Set(Key),
    /// The value it had, with another expiry or other cookie attributes. Losing one loses
    /// nothing that was issued.
    Touched(Key),
    /// The service deleted the cookie with this key name.
    Deleted(String),
}

impl KeyChange {
    pub fn key(&self) -> &str {
        match self {
            Self::Set(key) | Self::Touched(key) => &key.name,
            Self::Deleted(name) => name,
        }
    }
}

/// An answer, and what the caller must store durably before it hands the answer on.
#[derive(Debug)]
pub struct Exchanged {
    /// Redacted already.
    pub response: HttpResponse,
    /// Every change not taken or kept yet, earlier failed requests of this call included.
    pub changes: Vec<KeyChange>,
}

impl Exchange {
    /// A call that starts with these keys and ends at the deadline.
    pub fn new(resolved: Arc<Resolved>, jar: Jar, deadline: Instant) -> Self {
        Self {
            resolved,
            service: String::new(),
            jar,
            deadline,
            at: None,
            requests_left: limits::REQUESTS_PER_CALL,
            before: Vec::new(),
            changes: Vec::new(),
            seen: Seen::default(),
            redactor: OnceLock::new(),
        }
    }

    /// Says whose credential it is about.
    #[must_use]
    pub fn of_service(mut self, service: &str) -> Self {
        service.clone_into(&mut self.service);
        self
    }

    /// Makes it this moment for the whole call: what ends, and when, is the same on every day.
    #[must_use]
    pub fn at(mut self, now: Millis) -> Self {
        self.at = Some(now);
        self
    }

    fn now(&self) -> Millis {
        self.at.unwrap_or_else(credential::now)
    }

    /// Changes nobody took yet. After an error, or where `send` was dropped half-way, this is
    /// where a secret is that the service issued on the way.
    pub fn take_changes(&mut self) -> Vec<KeyChange> {
        std::mem::take(&mut self.changes)
    }

    pub fn changes(&self) -> &[KeyChange] {
        &self.changes
    }

    /// What is left of a call that is over: its keys, what it showed of the service, and a
    /// redactor that knows every secret of it, those computed on the way included.
    pub fn end(mut self) -> (Jar, Seen, Redactor) {
        self.redactor();
        (self.jar, self.seen, self.redactor.take().unwrap_or_default())
    }

    fn redactor(&self) -> &Redactor {
        self.redactor.get_or_init(|| Redactor::new(self.jar.keys.iter().map(|key| key.secret.expose())))
    }

    /// Makes redaction know more values: fresh ones, and what templates computed.
    fn remember<'v>(&mut self, values: impl IntoIterator<Item = &'v Secret>) {
        self.redactor();
        if let Some(redactor) = self.redactor.get_mut() {
            redactor.add_all(values.into_iter().map(Secret::expose));
        }
    }

    /// Puts a key an answer set into the jar.
    fn set(&mut self, key: Key) -> Captured {
        let old = self.jar.get(&key.name);
        let same_value = old.is_some_and(|old| old.secret == key.secret);
        let same = old == Some(&key);
        let old_secret = old.map(|old| old.secret.clone());
        let changed = match self.before.iter().find(|(name, _)| *name == key.name) {
            Some((_, start)) => start.as_ref() != Some(&key.secret),
            None => !same_value,
        };
        let captured = Captured {
            key: key.name.clone(),
            fingerprint: Some(key.fingerprint.clone()),
            changed,
            expires: key.expires,
        };
        if !same_value {
            self.remember_start(&key.name, old_secret);
            self.remember([&key.secret]);
            self.change(KeyChange::Set(key.clone()));
        } else if !same {
            self.change(KeyChange::Touched(key.clone()));
        }
        self.jar.put(key);
        captured
    }

    /// Takes a key out of the jar; nothing where it wasn't in.
    fn delete(&mut self, name: &str) -> Option<Captured> {
        // Redaction must know the value before the jar forgets it.
        self.redactor();
        let old = self.jar.remove(name)?;
        let changed = match self.before.iter().find(|(known, _)| known == name) {
            Some((_, start)) => start.is_some(),
            None => true,
        };
        self.remember_start(name, Some(old.secret));
        self.change(KeyChange::Deleted(name.to_owned()));
        Some(Captured { key: name.to_owned(), fingerprint: None, changed, expires: None })
    }

    fn remember_start(&mut self, name: &str, secret: Option<Secret>) {
        if !self.before.iter().any(|(known, _)| known == name) {
            self.before.push((name.to_owned(), secret));
        }
    }

    fn change(&mut self, new: KeyChange) {
        match self.changes.iter_mut().find(|old| old.key() == new.key()) {
            // A fresh value whose expiry changed is still a fresh value.
            Some(KeyChange::Set(old)) => match new {
                KeyChange::Touched(key) => *old = key,
                other => self.replace(other),
            },
            Some(_) => self.replace(new),
            None => self.changes.push(new),
        }
    }

    fn replace(&mut self, new: KeyChange) {
        if let Some(old) = self.changes.iter_mut().find(|old| old.key() == new.key()) {
            *old = new;
        }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("jar", &self.jar)
            .field("requests_left", &self.requests_left)
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
}

/// Takes the exchange's secrets, old and fresh, out of a line a plugin wrote or caused.
pub fn redact_text<'t>(exchange: &Exchange, text: &'t str) -> Cow<'t, str> {
    exchange.redactor().redact_text(text)
}

/// The last word on each key, in the order the keys came.
fn newest_of_each(mut captured: Vec<Captured>) -> Vec<Captured> {
    let mut seen = HashSet::new();
    let keep: Vec<bool> = captured.iter().rev().map(|entry| seen.insert(entry.key.clone())).collect();
    let mut keep = keep.into_iter().rev();
    captured.retain(|_| keep.next().unwrap_or(true));
    captured
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, value: &str, expires: Option<u64>) -> Key {
        Key {
            name: name.into(),
            secret: Secret::new(value),
            fingerprint: format!("fp-{}", value.len()),
            expires,
            cookie: None,
        }
    }

    fn exchange(keys: Vec<Key>) -> Exchange {
        let resolved = Resolved {
            validate_url: String::new(),
            keys: vec![],
            origins: vec![],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![],
        };
        Exchange::new(Arc::new(resolved), Jar { keys }, Instant::now())
    }

    #[test]
    fn changed_compares_with_the_value_the_call_started_with() {
        let mut exchange = exchange(vec![key("k", "value-one", None)]);
        assert!(!exchange.set(key("k", "value-one", None)).changed);
        assert_eq!(exchange.changes(), []);
        assert!(!exchange.set(key("k", "value-one", Some(5))).changed);
        assert_eq!(exchange.changes(), [KeyChange::Touched(key("k", "value-one", Some(5)))]);
        assert!(exchange.set(key("k", "value-two", None)).changed);
        assert!(exchange.set(key("k", "value-two", Some(9))).changed);
        assert_eq!(exchange.changes(), [KeyChange::Set(key("k", "value-two", Some(9)))]);
        assert!(!exchange.set(key("k", "value-one", None)).changed);
        assert_eq!(exchange.take_changes(), [KeyChange::Set(key("k", "value-one", None))]);
        assert_eq!(exchange.take_changes(), []);
    }

    #[test]
    fn a_deletion_and_a_value_after_it_leave_one_change() {
        let mut exchange = exchange(vec![key("k", "value-one", None)]);
        let gone = exchange.delete("k").unwrap();
        assert!(gone.changed && gone.fingerprint.is_none());
        assert_eq!(exchange.changes(), [KeyChange::Deleted("k".into())]);
        assert!(exchange.delete("k").is_none());
        assert!(exchange.set(key("k", "value-two", None)).changed);
        assert_eq!(exchange.changes(), [KeyChange::Set(key("k", "value-two", None))]);
        assert!(exchange.set(key("new", "value-new", None)).changed);
        assert!(!exchange.delete("new").unwrap().changed);
    }

    #[test]
    fn old_and_fresh_values_are_redacted_and_debug_shows_neither() {
        let mut exchange = exchange(vec![key("k", "value-one", None), key("gone", "value-gone", None)]);
        exchange.delete("gone");
        exchange.set(key("k", "value-two", None));
        assert_eq!(
            redact_text(&exchange, "value-one value-two value-gone"),
            "[redacted] [redacted] [redacted]"
        );
        assert!(!format!("{exchange:?}").contains("value-"));
    }

    #[test]
    fn only_the_newest_capture_of_a_key_is_told() {
        let entry =
            |key: &str, expires| Captured { key: key.into(), fingerprint: None, changed: true, expires };
        let got = newest_of_each(vec![entry("a", Some(1)), entry("b", None), entry("a", Some(2))]);
        assert_eq!(got, [entry("b", None), entry("a", Some(2))]);
    }
}
