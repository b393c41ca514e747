//! What services do with their secrets, a commit class each: pure, the clock comes in. Every
//! rule is taken from the public documentation of a service that has it, named beside it, and
//! never from what Keywheel expects: this is what Keywheel is measured by.

use std::time::{Duration, Instant};

/// How a service treats an old secret once it has issued a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// One token that dies when its successor is issued. GitLab's `POST
    /// /personal_access_tokens/self/rotate` "revokes the previous token and creates a new token",
    /// and a second rotation with the revoked one revokes the active token of its family.
    Burn,
    /// An access token and the refresh token that buys the next pair: RFC 9700 section 4.14.2.
    /// The refresh token dies at issue; an old one presented again revokes the active one. Okta
    /// "immediately invalidates the most recently issued refresh token and all access tokens
    /// issued since the user authenticated".
    BurnPair,
    /// The old token stays valid for a while. Okta: "the previous token remains valid for the
    /// configured amount of time to allow clients to get the new token". Auth0's rotation
    /// overlap period: "a new rotating refresh token is issued. Only the previous token can be
    /// reused; if the second-to-last one is exchanged, breach detection will be triggered".
    Grace,
    /// Matrix, MSC2918 and `POST /_matrix/client/v3/refresh`: "the old refresh token remains
    /// valid until the new access token or refresh token is used, at which point the old refresh
    /// token is revoked".
    CommitOnUse,
    /// Tokens beside each other, with a note, a list and deletion by id: JupyterHub's
    /// `POST`, `GET` and `DELETE /users/{name}/tokens`. Which of them asks is told by GitLab's
    /// `GET /personal_access_tokens/self`. An account has room for so many.
    Additive,
    /// One session that lives from its last use on: Django with SESSION_SAVE_EVERY_REQUEST, and
    /// PHP, whose `session_regenerate_id()` leaves the old id valid unless told to delete it.
    Sliding,
}

impl Class {
    pub const ALL: [Self; 6] =
        [Self::Burn, Self::BurnPair, Self::Grace, Self::CommitOnUse, Self::Additive, Self::Sliding];

    /// As in the service's URLs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Burn => "burn",
            Self::BurnPair => "burn-pair",
            Self::Grace => "grace",
            Self::CommitOnUse => "commit-on-use",
            Self::Additive => "additive",
            Self::Sliding => "sliding",
        }
    }
}

/// What the services grant.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long an old token may repeat its rotation (Okta and Cognito: 60 s at the most).
    pub grace: Duration,
    /// How long an access token lives.
    pub access: Duration,
    /// How long a session lives without being used.
    pub idle: Duration,
    /// The most tokens of one account.
    pub tokens: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(60),
            access: Duration::from_secs(3_600),
            idle: Duration::from_secs(3_600),
            tokens: 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Does both: proves who asks, and buys its successor.
    Whole,
    Access,
    Refresh,
}

#[derive(Debug, Clone)]
pub struct Token {
    pub id: usize,
    pub value: String,
    pub note: String,
    kind: Kind,
    issued: Instant,
    /// The token it was bought with.
    parent: Option<usize>,
    /// When it first bought another.
    spent: Option<Instant>,
    used: Option<Instant>,
    dead: bool,
}

/// Why a service refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The secret is dead, unknown, or does not do that.
    Dead,
    /// It had been spent before, and must not come again.
    Reused,
    /// No room for another token.
    Full,
}

/// One account and all it was ever issued.
#[derive(Debug)]
pub struct Account {
    pub class: Class,
    terms: Terms,
    /// Whether a visit keeps a session's value, as Django does, or gives it a new one, as PHP.
    pub keeps_its_value: bool,
    tokens: Vec<Token>,
    revoked: bool,
    /// Rotations that were granted.
    pub rotations: u32,
    /// Rotations asked for with a secret that had been spent and was past its time.
    pub double_spends: u32,
    /// How often the service cut the whole family off.
    pub revocations: u32,
}

impl Account {
    pub fn new(class: Class, terms: Terms) -> Self {
        Self {
            class,
            terms,
            keeps_its_value: false,
            tokens: Vec::new(),
            revoked: false,
            rotations: 0,
            double_spends: 0,
            revocations: 0,
        }
    }

    /// A person signs in: the fresh secrets of a new family, to be put into a credential. What
    /// was there before is dead.
    pub fn sign_in(&mut self, values: &mut dyn FnMut() -> String, now: Instant) -> Vec<String> {
        for token in &mut self.tokens {
            token.dead = true;
        }
        self.revoked = false;
        self.issue(None, "by hand", values, now).into_iter().map(|id| self.tokens[id].value.clone()).collect()
    }

    fn issue(
        &mut self,
        parent: Option<usize>,
        note: &str,
        values: &mut dyn FnMut() -> String,
        now: Instant,
    ) -> Vec<usize> {
        let kinds: &[Kind] = match self.class {
            Class::BurnPair => &[Kind::Access, Kind::Refresh],
            _ => &[Kind::Whole],
        };
        let first = self.tokens.len();
        for kind in kinds {
            self.tokens.push(Token {
                id: self.tokens.len(),
                value: values(),
                note: note.to_owned(),
                kind: *kind,
                issued: now,
                parent,
                spent: None,
                used: None,
                dead: false,
            });
        }
        (first..self.tokens.len()).collect()
    }

    fn is_alive(&self, id: usize, now: Instant) -> bool {
        let token = &self.tokens[id];
        if self.revoked || token.dead {
            return false;
        }
        match (self.class, token.kind) {
            (_, Kind::Access) => now < token.issued + self.terms.access,
            (Class::Grace, _) => token.spent.is_none_or(|spent| now <= spent + self.terms.grace),
            // Every visit under any of its values moves the one session's end.
            (Class::Sliding, _) => {
                let last = self.tokens.iter().filter(|token| !token.dead);
                let last = last.map(|token| token.used.unwrap_or(token.issued)).max();
                last.is_some_and(|last| now < last + self.terms.idle)
            }
            _ => true,
        }
    }

    /// Whether a value would be accepted for what it is for.
    pub fn accepts(&self, value: &str, now: Instant) -> bool {
        self.find(value).is_some_and(|id| self.is_alive(id, now))
    }

    fn find(&self, value: &str) -> Option<usize> {
        self.tokens.iter().position(|token| token.value == value)
    }

    /// The value of each kind that was issued last.
    pub fn last_issued(&self) -> Vec<&str> {
        let width = if self.class == Class::BurnPair { 2 } else { 1 };
        self.tokens[self.tokens.len().saturating_sub(width)..]
            .iter()
            .map(|token| token.value.as_str())
            .collect()
    }

    /// Whether what was issued last was ever shown: whoever showed it had kept it.
    pub fn newest_was_used(&self) -> bool {
        let newest = self.last_issued();
        self.tokens.iter().any(|token| token.used.is_some() && newest.contains(&token.value.as_str()))
    }

    /// A request is made with it: who asks?
    pub fn check(&mut self, value: &str, now: Instant) -> Result<usize, Refused> {
        let id = self.find(value).ok_or(Refused::Dead)?;
        if !self.is_alive(id, now) || self.tokens[id].kind == Kind::Refresh {
            return Err(Refused::Dead);
        }
        self.used(id, now);
        Ok(id)
    }

    fn used(&mut self, id: usize, now: Instant) {
        self.tokens[id].used = Some(now);
        if self.class == Class::CommitOnUse {
            // Its first use ends the one it was bought with, and that one's other children.
            for other in 0..self.tokens.len() {
                if other < id {
                    self.tokens[other].dead = true;
                }
            }
        }
    }

    /// A successor is asked for.
    pub fn rotate(
        &mut self,
        value: &str,
        note: &str,
        values: &mut dyn FnMut() -> String,
        now: Instant,
    ) -> Result<Vec<Token>, Refused> {
        let id = self.find(value).ok_or(Refused::Dead)?;
        if self.tokens[id].kind == Kind::Access {
            return Err(Refused::Dead);
        }
        if self.tokens[id].spent.is_some() && !self.may_be_repeated(id, now) {
            self.double_spends += 1;
            if !self.revoked && matches!(self.class, Class::Burn | Class::BurnPair | Class::Grace) {
                self.revoked = true;
                self.revocations += 1;
            }
            return Err(Refused::Reused);
        }
        if !self.is_alive(id, now) {
            return Err(Refused::Dead);
        }
        if self.class == Class::Additive && self.living(now).count() >= self.terms.tokens {
            return Err(Refused::Full);
        }
        self.used(id, now);
        self.rotations += 1;
        if self.class == Class::Sliding && self.keeps_its_value {
            return Ok(vec![self.tokens[id].clone()]);
        }
        match self.class {
            Class::Burn | Class::BurnPair => self.tokens[id].dead = true,
            // The one that nobody used makes room for this one.
            Class::CommitOnUse => {
                for token in self.tokens.iter_mut().filter(|token| token.parent == Some(id)) {
                    token.dead = true;
                }
            }
            _ => {}
        }
        self.tokens[id].spent.get_or_insert(now);
        let fresh = self.issue(Some(id), note, values, now);
        Ok(fresh.into_iter().map(|id| self.tokens[id].clone()).collect())
    }

    fn may_be_repeated(&self, id: usize, now: Instant) -> bool {
        let moved_on = || self.tokens.iter().any(|token| token.parent == Some(id) && token.spent.is_some());
        match self.class {
            Class::Burn | Class::BurnPair => false,
            Class::Grace => self.is_alive(id, now) && !moved_on(),
            Class::CommitOnUse => self.is_alive(id, now),
            Class::Additive | Class::Sliding => true,
        }
    }

    /// The tokens that live, oldest first.
    pub fn living(&self, now: Instant) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(move |token| self.is_alive(token.id, now))
    }

    /// Ends one token by its id.
    pub fn delete(&mut self, id: usize) -> bool {
        let found = self.tokens.get_mut(id).filter(|token| !token.dead);
        found.map(|token| token.dead = true).is_some()
    }
}

/// Made-up values for an account on its own.
fn numbered() -> impl FnMut() -> String {
    let mut next = 0;
    move || {
        next += 1;
        format!("value-{next}")
    }
}

/// An account with its first secret and the next, bought with the first.
fn rotated(class: Class) -> (Account, impl FnMut() -> String, Instant, Vec<String>, Vec<String>) {
    let (mut values, start) = (numbered(), Instant::now());
    let mut account = Account::new(class, Terms::default());
    let first = account.sign_in(&mut values, start);
    let buys = first.last().expect("a value").clone();
    let next = account.rotate(&buys, "", &mut values, start).expect("the first rotation is granted");
    let next = next.into_iter().map(|token| token.value).collect();
    (account, values, start, first, next)
}

#[test]
fn a_burnt_token_dies_at_issue_and_its_second_use_ends_the_family() {
    let (mut account, mut values, now, first, next) = rotated(Class::Burn);
    assert_eq!(account.check(&first[0], now), Err(Refused::Dead));
    assert!(account.check(&next[0], now).is_ok());
    assert!(matches!(account.rotate(&first[0], "", &mut values, now), Err(Refused::Reused)));
    assert_eq!(account.check(&next[0], now), Err(Refused::Dead));
    assert_eq!((account.double_spends, account.revocations, account.rotations), (1, 1, 1));
    let again = account.sign_in(&mut values, now);
    assert!(account.check(&again[0], now).is_ok() && account.check(&next[0], now).is_err());
}

#[test]
fn a_refresh_token_checks_nothing_and_takes_its_access_tokens_with_it() {
    let (mut account, mut values, now, first, next) = rotated(Class::BurnPair);
    // The old access token outlives the refresh token it came with.
    assert!(account.check(&first[0], now).is_ok() && account.check(&next[0], now).is_ok());
    assert_eq!(account.check(&next[1], now), Err(Refused::Dead));
    assert!(account.rotate(&next[0], "", &mut values, now).is_err());
    assert_eq!(account.check(&next[0], now + Terms::default().access), Err(Refused::Dead));
    assert!(matches!(account.rotate(&first[1], "", &mut values, now), Err(Refused::Reused)));
    assert!(account.living(now).next().is_none());
}

#[test]
fn a_token_in_its_grace_period_buys_again_until_the_period_ends_or_its_child_was_spent() {
    let (mut account, mut values, now, first, next) = rotated(Class::Grace);
    assert!(account.check(&first[0], now).is_ok());
    let repeated = account.rotate(&first[0], "", &mut values, now).expect("within the period");
    let third = account.rotate(&repeated[0].value, "", &mut values, now).expect("it was never spent");
    assert!(matches!(account.rotate(&first[0], "", &mut values, now), Err(Refused::Reused)));
    assert_eq!(account.check(&third[0].value, now), Err(Refused::Dead));

    let (mut account, mut values, now, first, _) = rotated(Class::Grace);
    let late = now + Terms::default().grace + Duration::from_millis(1);
    assert_eq!(account.check(&first[0], late), Err(Refused::Dead));
    assert!(account.rotate(&first[0], "", &mut values, late).is_err());
    assert_eq!(account.check(&next[0], late), Err(Refused::Dead));
}

#[test]
fn the_first_use_of_a_new_token_ends_the_old_one_and_not_a_moment_sooner() {
    let (mut account, mut values, now, first, next) = rotated(Class::CommitOnUse);
    assert!(account.check(&first[0], now).is_ok());
    let repeated = account.rotate(&first[0], "", &mut values, now).expect("the new one is unused");
    assert_eq!(account.check(&next[0], now), Err(Refused::Dead));
    assert!(account.check(&repeated[0].value, now).is_ok());
    assert_eq!(account.check(&first[0], now), Err(Refused::Dead));
    assert!(account.rotate(&first[0], "", &mut values, now).is_err());
    assert_eq!((account.double_spends, account.revocations), (1, 0));
}

#[test]
fn added_tokens_live_beside_each_other_until_there_is_no_room() {
    let (mut account, mut values, now, first, _) = rotated(Class::Additive);
    for _ in 2..Terms::default().tokens {
        account.rotate(&first[0], "mine", &mut values, now).expect("there is room");
    }
    assert_eq!(account.living(now).count(), Terms::default().tokens);
    assert!(matches!(account.rotate(&first[0], "", &mut values, now), Err(Refused::Full)));
    let mine = account.living(now).find(|token| token.note == "mine").expect("one of them").id;
    assert!(account.delete(mine) && !account.delete(mine));
    assert!(account.rotate(&first[0], "", &mut values, now).is_ok());
}

#[test]
fn a_session_lives_from_its_last_visit_on_under_all_its_values() {
    let (mut account, _, now, first, next) = rotated(Class::Sliding);
    let idle = Terms::default().idle;
    assert!(account.check(&first[0], now + idle / 2).is_ok());
    assert!(account.check(&next[0], now + idle).is_ok());
    assert_eq!(account.check(&next[0], now + idle * 3), Err(Refused::Dead));
}
