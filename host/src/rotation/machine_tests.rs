//! Drives the machine through random histories: services of every commit class with the
//! semantics of their kind, answers lost on either side, plugins that trap and lie, hosts that
//! die between any two steps or are cut off from the store, leases that run out, clocks that jump.
//! The writes go through the real schema and the real fencing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use super::*;
use crate::credential::{Key, Secret};
use crate::db::copies::Restored;
use crate::db::in_memory::{InMemory, Rows};
use crate::db::late::{Late, Rescued};
use crate::db::writer::{Claim, ClaimDue, Finish, Gate, MonitorUpdate, NewCredential, WriteError};
use crate::db::{SealedGeneration, SealedKey};
use crate::egress::seen::{Answered, Last};
use crate::protocol::Evidence;
use crate::provider::KeySpec;
use crate::report::{Report, iso8601};

/// Histories in each run of the tests.
const HISTORIES: u32 = 12_000;

const LEASE: Millis = 60_000;
/// How long an attempt goes on trying to store what was issued.
const ATTEMPT: Millis = 120_000;
/// How long a service of the class `grace` accepts the old secret.
const GRACE: Millis = 20_000;
const T0: Millis = 1_800_000_000_000;

type Value = u32;

/// A service with the semantics of its class. Time is its own.
#[derive(Debug)]
struct Service {
    class: CommitClass,
    alive: BTreeSet<Value>,
    issued: Value,
    /// What a secret was spent for, and when it dies of it (`grace`).
    spent: BTreeMap<Value, Millis>,
    /// New secrets whose use ends their predecessor (`commit-on-use`).
    successor_of: BTreeMap<Value, Value>,
    /// Ended by their successors' use, and how often one of them came again to be rotated.
    revoked: BTreeSet<Value>,
    came_again: u32,
    /// What each secret was bought with.
    parents: BTreeMap<Value, Value>,
    double_spends: u32,
}

impl Service {
    fn new(class: CommitClass) -> Self {
        Self {
            class,
            alive: [1].into(),
            issued: 1,
            spent: BTreeMap::new(),
            successor_of: BTreeMap::new(),
            revoked: BTreeSet::new(),
            came_again: 0,
            parents: BTreeMap::new(),
            double_spends: 0,
        }
    }

    fn use_of(&mut self, value: Value, at: Millis) -> bool {
        if self.class == CommitClass::Grace && self.spent.get(&value).is_some_and(|&dies| at >= dies) {
            self.alive.remove(&value);
        }
        let alive = self.alive.contains(&value);
        if alive && let Some(old) = self.successor_of.remove(&value) {
            self.alive.remove(&old);
            // "At which point the old refresh token is revoked."
            self.revoked.insert(old);
        }
        alive
    }

    fn rotate(&mut self, value: Value, at: Millis) -> Option<Value> {
        if !self.use_of(value, at) {
            self.came_again += u32::from(self.revoked.contains(&value));
            if self.spent.contains_key(&value) {
                // RFC 9700 section 4.14.2: reuse of a spent token revokes all of its family.
                self.double_spends += 1;
                self.alive.clear();
            }
            return None;
        }
        // "Only the previous token can be reused; if the second-to-last one is exchanged, breach
        // detection will be triggered" (Auth0, also within the overlap).
        let bought = |new: &Value, old: &Value| *old == value && self.spent.contains_key(new);
        if self.class == CommitClass::Grace && self.parents.iter().any(|(new, old)| bought(new, old)) {
            self.double_spends += 1;
            self.alive.clear();
            return None;
        }
        self.issued += 1;
        let new = self.issued;
        self.parents.insert(new, value);
        match self.class {
            CommitClass::BurnOnIssue => {
                self.alive.remove(&value);
                self.spent.insert(value, at);
            }
            CommitClass::Grace => {
                self.spent.entry(value).or_insert(at + GRACE);
            }
            CommitClass::CommitOnUse => {
                let unused: Vec<_> =
                    self.successor_of.iter().filter(|(_, old)| **old == value).map(|(new, _)| *new).collect();
                for unused in unused {
                    self.successor_of.remove(&unused);
                    self.alive.remove(&unused);
                }
                self.successor_of.insert(new, value);
            }
            CommitClass::Sliding | CommitClass::Additive => {}
        }
        self.alive.insert(new);
        Some(new)
    }
}

/// What becomes of one step of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    DiesBefore,
    DiesAfter,
    /// Between the service's answer and its receipt.
    DiesWithTheAnswer,
    NotSent,
    RequestLost,
    AnswerLost,
    TroubleBefore,
    TroubleAfter,
    RateLimited,
    LoggedOut,
    OtherAccount,
    Traps,
    WorkerDies,
    Lies,
    /// What is asked about has run out: only a rotation can tell more.
    RanOut,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Go {
        host: usize,
        fate: Fate,
    },
    Die {
        host: usize,
    },
    /// A host can't reach the store any more, or can again.
    CutOff {
        host: usize,
    },
    Reach {
        host: usize,
    },
    Pass {
        seconds: u32,
    },
    Jump {
        hours: i8,
    },
    WantRotation,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Fine),
        1 => Just(Fate::DiesBefore),
        1 => Just(Fate::DiesAfter),
        1 => Just(Fate::DiesWithTheAnswer),
        1 => Just(Fate::NotSent),
        1 => Just(Fate::RequestLost),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::TroubleBefore),
        1 => Just(Fate::TroubleAfter),
        1 => Just(Fate::RateLimited),
        1 => Just(Fate::LoggedOut),
        1 => Just(Fate::OtherAccount),
        1 => Just(Fate::Traps),
        1 => Just(Fate::WorkerDies),
        1 => Just(Fate::Lies),
        1 => Just(Fate::RanOut),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => (0..2_usize, fate()).prop_map(|(host, fate)| Step::Go { host, fate }),
        1 => (0..2_usize).prop_map(|host| Step::Die { host }),
        1 => (0..2_usize).prop_map(|host| Step::CutOff { host }),
        2 => (0..2_usize).prop_map(|host| Step::Reach { host }),
        2 => prop_oneof![1..5_u32, 25..70_u32, 100..4_000_u32].prop_map(|seconds| Step::Pass { seconds }),
        1 => prop_oneof![Just(-1_i8), Just(1)].prop_map(|hours| Step::Jump { hours }),
        3 => Just(Step::WantRotation),
    ]
}

#[derive(Debug, Clone)]
struct History {
    class: CommitClass,
    /// A refresh token that is spent, and an access token that is asked about.
    pair: bool,
    hosts: usize,
    steps: Vec<Step>,
}

fn history() -> impl Strategy<Value = History> {
    let class = prop::sample::select(CommitClass::ALL.as_slice());
    (class, prop::bool::weighted(0.3), 1..3_usize, prop::collection::vec(step(), 1..60))
        .prop_map(|(class, pair, hosts, steps)| History { class, pair, hosts, steps })
}

struct Run {
    host: usize,
    claim: Claim,
    machine: Machine,
    next: Action,
    /// Issued and not stored yet, with the end of the call that waits for it.
    storing: Option<(Late, Value, Ended, Seen)>,
    /// By the clock that nobody sets, as the next.
    began: Millis,
    /// When the lease was last renewed, by the clock that nobody sets.
    renewed: Millis,
    /// What the service called valid, and dead, in this run.
    lives: BTreeSet<Value>,
    dead: BTreeSet<Value>,
}

struct World<'d> {
    db: &'d InMemory,
    history: History,
    service: Service,
    resolved: Arc<Resolved>,
    /// The time that nobody sets, and what the hosts' clocks are off by.
    time: Millis,
    jumped: i64,
    runs: [Option<Run>; 2],
    cut_off: [bool; 2],
    /// What lies on the hosts' own disks.
    spills: [Vec<Late>; 2],
    /// Whether anybody brings that in, and what became of it.
    rescues: bool,
    rescued: Vec<Rescued>,
    incarnation: u32,
    /// The newest secret whose answer a plugin was given.
    delivered: Option<Value>,
    /// Secrets that were given up for a reason.
    given_up: BTreeSet<Value>,
    /// The service issued something, and its answer never became durable.
    issued_unseen: bool,
    /// Something a machine can't know how to mend happened at the service itself.
    foul: bool,
    /// An old state came back, and what was issued since is nowhere.
    restored: bool,
    /// Attempt numbers that a restore left out.
    skipped: i64,
}

fn key(name: &str, value: Value) -> Key {
    Key {
        name: name.into(),
        secret: Secret::new(value.to_string()),
        fingerprint: format!("fp-{value}"),
        expires: None,
        cookie: None,
    }
}

fn sealed(jar: &Jar) -> Vec<SealedKey> {
    let seal = |key: &Key| SealedKey {
        name: key.name.clone(),
        sealed: key.secret.expose().to_vec(),
        fingerprint: key.fingerprint.clone(),
        expires: key.expires,
        cookie: None,
    };
    jar.keys.iter().map(seal).collect()
}

fn opened(generation: &SealedGeneration) -> Arc<Jar> {
    let open = |key: &SealedKey| Key {
        name: key.name.clone(),
        secret: Secret::new(key.sealed.clone()),
        fingerprint: key.fingerprint.clone(),
        expires: key.expires,
        cookie: None,
    };
    Arc::new(Jar { keys: generation.keys.iter().map(open).collect() })
}

fn value_of(jar: &Jar, name: &str) -> Value {
    let key = jar.get(name).expect("the key is in the jar");
    std::str::from_utf8(key.secret.expose()).expect("text").parse().expect("a number")
}

fn spec(name: &str, required: bool) -> KeySpec {
    KeySpec { name: name.into(), location: Location::Token, required, reveal: false, help: String::new() }
}

impl<'d> World<'d> {
    fn new(db: &'d InMemory, history: History) -> Self {
        db.clear();
        let keys = if history.pair {
            vec![spec("refresh", true), spec("access", false)]
        } else {
            vec![spec("token", true)]
        };
        let jar = Jar { keys: keys.iter().map(|spec| key(&spec.name, 1)).collect() };
        db.add_credential(
            &NewCredential {
                credential_id: "ann".into(),
                profile_id: None,
                service: "shop".into(),
                plugin_digest: None,
                settings: vec![],
                private_hosts: vec![],
                method: None,
                validate_interval: None,
                max_age: None,
                idle_limit: None,
                quiet: vec![],
                identity: None,
                keys: sealed(&jar),
                expires: None,
                first_due: T0,
                first_action: Wanted::Validate,
            },
            T0,
        );
        let resolved = Resolved {
            validate_url: String::new(),
            keys,
            origins: vec![],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![ResolvedMethod { name: "refresh".into(), commit_class: history.class }],
        };
        Self {
            db,
            service: Service::new(history.class),
            resolved: Arc::new(resolved),
            history,
            time: T0,
            jumped: 0,
            runs: [None, None],
            cut_off: [false; 2],
            spills: [Vec::new(), Vec::new()],
            rescues: true,
            rescued: Vec::new(),
            incarnation: 0,
            delivered: None,
            given_up: BTreeSet::new(),
            issued_unseen: false,
            foul: false,
            restored: false,
            skipped: 0,
        }
    }

    /// All hosts end, and the database is what it was at the backup.
    fn restore(&mut self, backup: &Rows, backup_of: Millis) {
        self.runs = [None, None];
        self.db.restore(backup, Restored { backup_of, nothing_ran_since: false }, self.wall());
        let known = self.db.reported().len() + self.db.open().len();
        self.skipped = self.db.attempts_begun() - known as i64;
        (self.delivered, self.restored) = (None, true);
        self.check();
    }

    fn spends(&self) -> &'static str {
        if self.history.pair { "refresh" } else { "token" }
    }

    fn wall(&self) -> Millis {
        self.time.saturating_add_signed(self.jumped)
    }

    fn clock(&self) -> Clock {
        // A look's age is judged by differences alone, so every attempt may count from T0.
        let elapsed = Duration::from_millis(self.time - T0);
        Clock { wall: self.wall(), elapsed, left: Duration::from_secs(60) }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Go { host, fate } => self.go(host % self.history.hosts, fate),
            Step::Die { host } => self.runs[host % self.history.hosts] = None,
            Step::CutOff { host } => self.cut_off[host % self.history.hosts] = true,
            Step::Reach { host } => self.cut_off[host % self.history.hosts] = false,
            Step::Pass { seconds } => self.pass(Millis::from(seconds) * 1_000),
            // Several hosts share the database's clock; a lone one has only its own.
            Step::Jump { hours } if self.history.hosts == 1 => self.jumped += i64::from(hours) * 3_600_000,
            Step::Jump { .. } => {}
            Step::WantRotation => {
                // Refused while an attempt is open, as for a person.
                let _ = self.db.make_due("ann", Wanted::Rotate, self.wall());
            }
        }
        self.check();
    }

    /// Time passes in steps as long as renewing takes: a living host renews its lease.
    fn pass(&mut self, millis: Millis) {
        if millis <= LEASE / 3 {
            self.time += millis;
            for host in 0..2 {
                self.renew(host);
            }
        } else {
            // Longer: the hosts were suspended meanwhile.
            self.time += millis;
        }
    }

    fn renew(&mut self, host: usize) {
        let until = self.wall() + LEASE;
        let Some(run) = &mut self.runs[host] else { return };
        if !self.cut_off[host] && self.db.renew(&run.claim.token, until) {
            run.renewed = self.time;
        }
    }

    /// What an earlier attempt of this host couldn't store, before anything else is begun.
    fn rescue(&mut self, host: usize) {
        if !self.rescues || self.cut_off[host] || self.runs[host].is_some() {
            return;
        }
        let at = self.wall();
        for mut late in std::mem::take(&mut self.spills[host]) {
            let rescued = match self.db.rescue(&late, at) {
                Err(WriteError::Stale { expected, .. }) => {
                    late.generation = expected;
                    self.db.rescue(&late, at)
                }
                other => other,
            };
            match rescued {
                Ok(rescued) => self.rescued.push(rescued),
                Err(WriteError::Busy { .. }) => self.spills[host].push(late),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn claim(&mut self, host: usize) {
        if self.cut_off[host] {
            return;
        }
        self.rescue(host);
        // A host that died and came back is another owner.
        self.incarnation += 1;
        let (owner, now) = (format!("host-{host}:{}", self.incarnation), self.wall());
        let mut claims = if self.history.hosts == 1 { self.db.reclaim(&owner, now + LEASE) } else { vec![] };
        if claims.is_empty() {
            claims = self.db.claim_due(&ClaimDue {
                owner,
                now,
                lease_until: now + LEASE,
                quotas: vec![("shop".into(), 1)],
                at_most: 1,
                allowed: std::collections::BTreeMap::new(),
                gate: Gate::default(),
            });
        }
        let Some(claim) = claims.pop() else { return };
        let method = self.resolved.methods[0].clone();
        let mut machine = Machine::new(Start {
            wanted: claim.action,
            forced: false,
            current_generation: claim.current.as_ref().map(|current| current.generation),
            current: claim.current.as_ref().map(opened).expect("a current generation"),
            pending: claim.pending.as_ref().map(|pending| (pending.generation, opened(pending))),
            next_generation: claim.next_generation,
            interrupted: claim.interrupted.as_ref().map(|before| (before.phase, before.commit_class)),
            in_doubt: claim.in_doubt(),
            restored: claim.is_restored(),
            identity: claim.identity.clone(),
            resolved: Arc::clone(&self.resolved),
            method: Some(method),
            picked: None,
        });
        let next = machine.on(Event::Begun, self.clock());
        let renewed = self.time;
        let (lives, dead) = (BTreeSet::new(), BTreeSet::new());
        let began = self.time;
        self.runs[host] =
            Some(Run { host, claim, machine, next, storing: None, began, renewed, lives, dead });
    }

    /// A host does its next thing.
    fn go(&mut self, host: usize, fate: Fate) {
        let Some(mut run) = self.runs[host].take() else { return self.claim(host) };
        if fate == Fate::DiesBefore {
            return;
        }
        let clock = self.clock();
        let next = match run.next.clone() {
            _ if run.storing.is_some() => self.store_again(&mut run),
            Action::StoreIntent { method, from } => {
                let token = run.claim.token.clone();
                self.write(&run, |db| db.intent(&token, &method.name, method.commit_class, from))
                    .then(|| run.machine.on(Event::IntentStored, clock))
            }
            Action::CallRotate { jar, .. } => self.call_rotate(&mut run, &jar, fate),
            Action::CallValidate { jar } => self.call_validate(&mut run, &jar, fate),
            Action::Wait(pause) => {
                self.time += pause.as_millis() as Millis;
                Some(run.machine.on(Event::Waited, clock))
            }
            Action::Finish(conclusion) => {
                self.finish(&run, *conclusion);
                None
            }
            other => panic!("{other:?} outside of a call"),
        };
        if fate != Fate::DiesAfter
            && let Some(next) = next
        {
            run.next = next;
            self.runs[host] = Some(run);
        }
    }

    /// Whether a host's write took place. One with an old fence is refused and changes nothing,
    /// and one of a host that is cut off comes to nobody.
    fn write<T>(&self, run: &Run, write: impl FnOnce(&InMemory) -> Result<T, WriteError>) -> bool {
        if self.cut_off[run.host] {
            return false;
        }
        let owns = self.db.open().contains(&run.claim.token.fence);
        let before = if owns { String::new() } else { self.db.content() };
        match write(self.db) {
            Ok(_) => {
                // A report that is there already is answered as the first time.
                assert!(owns || before == self.db.content(), "a late writer was let through");
                owns
            }
            Err(WriteError::Fenced { .. }) => {
                assert!(!owns, "the owner was refused");
                assert_eq!(before, self.db.content(), "a refused write changed something");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What the shell checks before a request leaves.
    fn lease_holds(&self, run: &Run) -> bool {
        self.time < run.renewed + LEASE
    }

    fn seen(&self, key: &str, status: Option<u16>, lost: bool) -> Seen {
        let last = match status {
            Some(status) => Last::Answered(Answered { status, ..Answered::default() }),
            None => Last::NoAnswer,
        };
        Seen { requests: 1, lost, used: [key.to_owned()].into(), last, ..Seen::default() }
    }

    fn call_rotate(&mut self, run: &mut Run, jar: &Jar, fate: Fate) -> Option<Action> {
        if !self.lease_holds(run) {
            return None;
        }
        let name = self.spends();
        let value = value_of(jar, name);
        let unknown = || Ended::Answered(Answer::Rotated(Outcome::Unknown(Reason::default())));
        let (ended, seen) = match fate {
            Fate::NotSent => (unknown(), Seen { requests: 1, last: Last::NoAnswer, ..Seen::default() }),
            _ if run.machine.may_send(self.clock()).is_err() => {
                (unknown(), Seen { requests: 1, last: Last::NoAnswer, ..Seen::default() })
            }
            Fate::RequestLost => (unknown(), self.seen(name, None, true)),
            Fate::AnswerLost | Fate::TroubleAfter => {
                self.issued_unseen |= self.service.rotate(value, self.time).is_some();
                let status = (fate == Fate::TroubleAfter).then_some(503);
                (unknown(), self.seen(name, status, true))
            }
            Fate::TroubleBefore => (unknown(), self.seen(name, Some(503), true)),
            Fate::RateLimited => {
                let outcome = Outcome::Invalid(Reason::default());
                (Ended::Answered(Answer::Rotated(outcome)), self.seen(name, Some(429), false))
            }
            Fate::LoggedOut => {
                let gone = vec![KeyChange::Deleted(name.into())];
                let action = run.machine.on(Event::Issued(gone), self.clock());
                assert!(matches!(action, Action::GoOn), "a deletion alone stores nothing");
                (unknown(), self.seen(name, Some(200), true))
            }
            _ => {
                let new = self.service.rotate(value, self.time);
                if new.is_none() {
                    run.dead.insert(value);
                }
                if fate == Fate::DiesWithTheAnswer {
                    self.issued_unseen |= new.is_some();
                    return None;
                }
                let seen = self.seen(name, Some(if new.is_some() { 200 } else { 401 }), new.is_some());
                let ended = match (fate, new) {
                    (Fate::Traps, _) => Ended::Faulted(Fault::Trap("unreachable".into())),
                    (Fate::WorkerDies, _) => Ended::Lost("killed".into()),
                    (Fate::Lies, _) | (_, None) => {
                        Ended::Answered(Answer::Rotated(Outcome::Invalid(Reason::default())))
                    }
                    _ => Ended::Answered(Answer::Rotated(Outcome::Rotated(Evidence::default()))),
                };
                if let Some(new) = new {
                    let names: &[&str] = if self.history.pair { &["refresh", "access"] } else { &["token"] };
                    let changes = names.iter().map(|name| KeyChange::Set(key(name, new))).collect();
                    return self.receive(run, changes, (new, ended, seen));
                }
                (ended, seen)
            }
        };
        Some(run.machine.on(Event::CallEnded(Box::new(ended), Box::new(seen)), self.clock()))
    }

    /// An answer that issued something: durable before the plugin has it, and on the host's own
    /// disk as long as the store doesn't have it.
    fn receive(
        &mut self,
        run: &mut Run,
        changes: Vec<KeyChange>,
        (new, ended, seen): (Value, Ended, Seen),
    ) -> Option<Action> {
        let Action::StoreReceipt(receipt) = run.machine.on(Event::Issued(changes), self.clock()) else {
            panic!("what was issued is not stored");
        };
        let late = Late {
            credential_row: run.claim.token.credential_row,
            credential_id: "ann".into(),
            service: "shop".into(),
            attempt_number: run.claim.attempt_number,
            fence: run.claim.token.fence,
            from_generation: receipt.from,
            generation: receipt.generation,
            amends: receipt.amends,
            commit_class: Some(self.history.class),
            issued_at: self.wall(),
            keys: sealed(&receipt.jar),
        };
        self.spills[run.host].push(late.clone());
        run.storing = Some((late, new, ended, seen));
        self.store_again(run)
    }

    /// Tries to store what was issued. None: the attempt is over, and what it leaves is on disk.
    fn store_again(&mut self, run: &mut Run) -> Option<Action> {
        let (late, new, ended, seen) = run.storing.take().expect("something is to be stored");
        let token = run.claim.token.clone();
        if self.write(run, |db| db.receipt(&token, late.generation, &late.keys, late.issued_at)) {
            self.spills[run.host].retain(|waiting| *waiting != late);
            assert!(matches!(run.machine.on(Event::ReceiptStored, self.clock()), Action::GoOn));
            self.delivered = Some(new);
            return Some(run.machine.on(Event::CallEnded(Box::new(ended), Box::new(seen)), self.clock()));
        }
        // Refused, somebody else has the credential by now; else it is tried for as long as an
        // attempt may last.
        if !self.cut_off[run.host] || self.time > run.began + ATTEMPT {
            return None;
        }
        run.storing = Some((late, new, ended, seen));
        Some(run.next.clone())
    }

    fn call_validate(&mut self, run: &mut Run, jar: &Jar, fate: Fate) -> Option<Action> {
        let name = if self.history.pair { "access" } else { "token" };
        let value = value_of(jar, name);
        let answered = |verdict| Ended::Answered(Answer::Validated(verdict));
        let valid = |identity: &str| {
            Verdict::Valid(Evidence { identity: Some(identity.into()), ..Evidence::default() })
        };
        let unknown = || answered(Verdict::Unknown(Reason::default()));
        let (ended, seen) = match fate {
            Fate::NotSent => (unknown(), Seen { requests: 1, last: Last::NoAnswer, ..Seen::default() }),
            Fate::RequestLost | Fate::AnswerLost => (unknown(), self.seen(name, None, true)),
            Fate::TroubleBefore | Fate::TroubleAfter => (unknown(), self.seen(name, Some(503), true)),
            Fate::RanOut => {
                let extras = vec![("next".to_owned(), "rotate".to_owned())];
                let ran_out = Verdict::Unknown(Reason { extras, ..Reason::default() });
                (answered(ran_out), self.seen(name, Some(401), false))
            }
            // Whatever it says of a rate limit, it is no evidence.
            Fate::RateLimited => (answered(valid("ann")), self.seen(name, Some(429), false)),
            Fate::Lies => (answered(Verdict::Invalid(Reason::default())), self.seen(name, Some(502), true)),
            Fate::LoggedOut => {
                let gone = vec![KeyChange::Deleted(self.spends().into())];
                let action = run.machine.on(Event::Issued(gone), self.clock());
                assert!(matches!(action, Action::GoOn), "a deletion alone stores nothing");
                self.foul = true;
                (answered(valid("ann")), self.seen(name, Some(200), false))
            }
            Fate::DiesWithTheAnswer => {
                self.service.use_of(value, self.time);
                return None;
            }
            _ => {
                let alive = self.service.use_of(value, self.time);
                if alive {
                    run.lives.insert(value)
                } else {
                    run.dead.insert(value)
                };
                let ended = match (fate, alive) {
                    (Fate::Traps, _) => Ended::Faulted(Fault::Trap("unreachable".into())),
                    (Fate::WorkerDies, _) => Ended::Lost("killed".into()),
                    (Fate::OtherAccount, true) => {
                        self.foul = true;
                        answered(valid("another"))
                    }
                    (_, true) => answered(valid("ann")),
                    (_, false) => answered(Verdict::Invalid(Reason::default())),
                };
                (ended, self.seen(name, Some(if alive { 200 } else { 401 }), false))
            }
        };
        Some(run.machine.on(Event::CallEnded(Box::new(ended), Box::new(seen)), self.clock()))
    }

    fn finish(&mut self, run: &Run, conclusion: Conclusion) {
        let value = |generation: u32| {
            let stored = self.db.generations();
            let found = stored.iter().find(|stored| stored.generation == generation).expect("it is stored");
            String::from_utf8(found.values[0].clone()).expect("text").parse::<Value>().expect("a number")
        };
        let owns = self.db.open().contains(&run.claim.token.fence) && !self.cut_off[run.host];
        match conclusion.change {
            // The database refuses a late one, whatever it says.
            _ if !owns => {}
            GenerationChange::Promote(generation) => {
                let promoted = value(generation);
                assert!(
                    run.lives.contains(&promoted),
                    "{promoted} is promoted unseen: {:?}",
                    conclusion.path
                );
            }
            GenerationChange::Drop(generation) => {
                let dropped = value(generation);
                let reasons = ["other-account", "regressed", "overruled"];
                assert!(
                    run.dead.contains(&dropped) || conclusion.path.iter().any(|step| reasons.contains(step)),
                    "{dropped} is dropped without a reason: {:?}",
                    conclusion.path
                );
                self.given_up.insert(dropped);
            }
            _ => {}
        }
        let (finished, alive) = (self.wall(), matches!(conclusion.verdict, Verdict::Valid(_)));
        let next_action = match conclusion.verdict {
            Verdict::Valid(_) if run.claim.attempt_number.is_multiple_of(2) => Wanted::Rotate,
            Verdict::Unknown(_) => run.claim.action,
            _ => Wanted::Validate,
        };
        let end = Finish {
            token: run.claim.token.clone(),
            report: Arc::new(Report {
                cookie_id: "ann".into(),
                profile_id: None,
                service: "shop".into(),
                validate_url: String::new(),
                cookie_keys: BTreeMap::new(),
                status: verdict::status(&conclusion.verdict),
                message: None,
                started_at: iso8601(run.claim.started_at),
                finished_at: iso8601(finished),
                attempt_number: run.claim.attempt_number,
                meta: serde_json::Map::new(),
            }),
            verdict: conclusion.verdict.as_str().to_owned(),
            monitor: MonitorUpdate {
                consecutive_failures: u32::from(!alive),
                expires_at: None,
                next_due_at: Some(finished + 30_000),
                next_action,
                asked_until: None,
                next_reason: String::new(),
            },
            generations: conclusion.change,
            expiry_updates: conclusion.touched,
            identity: match &conclusion.verdict {
                Verdict::Valid(evidence) => evidence.identity.clone(),
                _ => None,
            },
            in_doubt: (conclusion.in_doubt || run.claim.doubtful_generation.is_some())
                .then_some(conclusion.in_doubt),
        };
        self.write(run, |db| db.finish(end, finished));
    }

    /// What holds after every step of every history.
    fn check(&self) {
        let reported = self.db.reported();
        let numbers: BTreeSet<_> = reported.iter().collect();
        assert_eq!(numbers.len(), reported.len(), "an attempt has two reports: {reported:?}");
        let (begun, open) = (self.db.attempts_begun(), self.db.open());
        assert!(open.len() <= 1, "two live claims");
        let told = reported.len() as i64 + open.len() as i64 + self.skipped;
        assert_eq!(told, begun, "an attempt without a report");
        let owners = self.runs.iter().flatten().filter(|run| open.contains(&run.claim.token.fence)).count();
        assert!(owners <= 1, "two hosts own the credential");
        assert_eq!(self.service.double_spends, 0, "a spent secret was used again");
        // One that was given up (as another account's) had been used to find that out.
        if self.restored && !self.foul && self.given_up.is_empty() {
            assert_eq!(self.service.came_again, 0, "a revoked secret was rotated again");
        }
        if let Some(newest) = self.delivered
            && self.service.alive.contains(&newest)
            && !self.given_up.contains(&newest)
        {
            let kept = self.db.generations().iter().any(|stored| {
                stored.state != "dropped" && stored.values.contains(&newest.to_string().into_bytes())
            });
            assert!(kept, "{newest} lives at the service and nowhere else");
        }
        let last = self.service.issued;
        if self.history.class == CommitClass::BurnOnIssue
            && self.service.alive.contains(&last)
            && !self.issued_unseen
            && !self.restored
            && !self.given_up.contains(&last)
        {
            let value = last.to_string().into_bytes();
            let stored = self.db.generations();
            let stored = stored.iter().any(|stored| stored.values.contains(&value));
            let waits =
                self.spills.iter().flatten().any(|late| late.keys.iter().any(|key| key.sealed == value));
            assert!(stored || waits, "{last} is the only one that lives, and on no disk");
        }
    }

    /// Nothing goes wrong any more: what is open ends, and the credential is looked at.
    fn settle(&mut self) {
        self.runs = [None, None];
        self.cut_off = [false; 2];
        self.history.hosts = 1;
        let begun = self.db.attempts_begun();
        for _ in 0..400 {
            if self.db.open().is_empty() && self.db.attempts_begun() >= begun + 3 {
                break;
            }
            self.rescue(1);
            self.go(0, Fate::Fine);
            if self.runs[0].is_none() {
                self.time += 31_000;
                let _ = self.db.make_due("ann", Wanted::Validate, self.wall());
            }
            self.check();
        }
        assert!(self.db.open().is_empty(), "an attempt never ends");
        assert!(self.db.attempts_begun() >= begun + 3, "the credential is stuck");
        assert!(!self.rescues || self.spills.iter().all(Vec::is_empty), "a secret waits for ever");
    }

    fn current(&self) -> Value {
        let generations = self.db.generations();
        let current = generations.iter().find(|stored| stored.state == "current").expect("a current one");
        String::from_utf8(current.values[0].clone()).expect("text").parse().expect("a number")
    }

    fn check_settled(&self) {
        let (current, verdict) = (self.current(), self.db.last_verdict());
        let alive = self.service.alive.contains(&current);
        let repeatable = matches!(
            self.history.class,
            CommitClass::Sliding | CommitClass::Additive | CommitClass::CommitOnUse
        );
        if (!self.issued_unseen || repeatable) && !self.restored {
            assert!(alive || self.foul, "{current} is dead and need not be; the verdict is {verdict:?}");
        }
        if !self.history.pair && !self.foul {
            assert_eq!(verdict.as_deref() == Some("valid"), alive, "{verdict:?}");
        }
    }
}

#[test]
fn no_history_loses_spends_or_doubles_anything() {
    let db = InMemory::default();
    let config = Config { cases: HISTORIES, failure_persistence: None, ..Config::default() };
    let rescued = RefCell::new(BTreeSet::new());
    let outcome = TestRunner::new(config).run(&history(), |history| {
        let mut world = World::new(&db, history.clone());
        for step in history.steps {
            world.step(step);
        }
        world.settle();
        world.check_settled();
        rescued.borrow_mut().extend(world.rescued.iter().map(|rescued| match rescued {
            Rescued::InTime => "in time",
            Rescued::Pending(_) => "pending",
            Rescued::Previous(_) => "previous",
            Rescued::AlreadyThere | Rescued::Forgotten => "for nothing",
        }));
        Ok(())
    });
    match outcome {
        Ok(()) => assert_eq!(rescued.into_inner(), ["in time", "pending", "previous"].into()),
        // The shortest history that fails, on one line.
        Err(TestError::Fail(why, history)) => panic!("{why}\nin {history:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// The shortest history in which a host that slept while another ended its attempt took itself for
/// the owner still, because nobody else was: one in some hundred thousand.
#[test]
fn who_slept_while_another_ended_his_attempt_rotates_nothing() {
    use Step::{Go, Pass, WantRotation};
    let fine = |host| Go { host, fate: Fate::Fine };
    let db = InMemory::default();
    let steps = vec![
        WantRotation,
        fine(1),
        fine(1),
        Pass { seconds: 100 },
        fine(0),
        fine(0),
        fine(0),
        Pass { seconds: 1 },
        fine(1),
        WantRotation,
        fine(0),
        fine(0),
        fine(0),
    ];
    let history = History { class: CommitClass::BurnOnIssue, pair: false, hosts: 2, steps };
    let mut world = World::new(&db, history.clone());
    for step in history.steps {
        world.step(step);
    }
    world.settle();
}

/// The history for which late secrets are kept: the host that has the only one that lives dies
/// without the store, and another finds the old one dead.
#[test]
fn what_a_dead_host_could_not_store_is_in_force_once_it_is_back_and_lost_without_a_rescue() {
    use Step::{CutOff, Die, Go, Pass, WantRotation};
    let fine = |host| Go { host, fate: Fate::Fine };
    let issued = [WantRotation, fine(0), fine(0), CutOff { host: 0 }, fine(0), Die { host: 0 }];
    let given_up = [Pass { seconds: 70 }, fine(1), fine(1), fine(1), fine(1), fine(1)];
    let db = InMemory::default();
    for rescues in [true, false] {
        let steps = [issued, given_up].concat();
        let history = History { class: CommitClass::BurnOnIssue, pair: false, hosts: 2, steps };
        let mut world = World::new(&db, history.clone());
        world.rescues = rescues;
        for step in history.steps {
            world.step(step);
        }
        assert_eq!(db.last_verdict().as_deref(), Some("needs-human"));
        assert_eq!((db.open(), world.spills[0].len()), (vec![], 1));
        world.settle();
        let expected = if rescues { (2, "valid") } else { (1, "invalid") };
        assert_eq!((world.current(), db.last_verdict().as_deref()), (expected.0, Some(expected.1)));
    }
}

/// A person may take a backup at any moment and bring it back at any later one.
#[test]
fn no_restored_backup_spends_a_secret_again() {
    let db = InMemory::default();
    let config = Config { cases: HISTORIES / 8, failure_persistence: None, ..Config::default() };
    let later = || prop::collection::vec(step(), 0..40);
    let outcome = TestRunner::new(config).run(&(history(), later(), later()), |(history, then, after)| {
        let mut world = World::new(&db, history.clone());
        for step in history.steps {
            world.step(step);
        }
        let (backup, at) = (db.backup(), world.wall());
        for step in then {
            world.step(step);
        }
        world.restore(&backup, at);
        for step in after {
            world.step(step);
        }
        world.settle();
        world.check_settled();
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, history)) => panic!("{why}\nin {history:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// An attempt that finds what an earlier one was issued, and the plugin saying that it ran out.
fn with_a_pending_that_ran_out(class: CommitClass, forced: bool) -> (Machine, Action) {
    let jar = |value| Arc::new(Jar { keys: vec![key("token", value)] });
    let method = ResolvedMethod { name: "refresh".into(), commit_class: class };
    let mut machine = Machine::new(Start {
        wanted: Wanted::Rotate,
        forced,
        current_generation: Some(1),
        current: jar(1),
        pending: Some((2, jar(2))),
        next_generation: 3,
        interrupted: None,
        in_doubt: false,
        restored: false,
        identity: None,
        resolved: Arc::new(Resolved {
            validate_url: String::new(),
            keys: vec![spec("token", true)],
            origins: vec![],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![method.clone()],
        }),
        method: Some(method),
        picked: None,
    });
    let clock = Clock { wall: T0, elapsed: Duration::ZERO, left: Duration::from_secs(60) };
    assert!(matches!(machine.on(Event::Begun, clock), Action::CallValidate { .. }));
    let extras = vec![("next".to_owned(), "rotate".to_owned())];
    let ran_out = Verdict::Unknown(Reason { message: "it ran out".into(), extras, retry_after: None });
    let ended = Box::new(Ended::Answered(Answer::Validated(ran_out)));
    let next = machine.on(Event::CallEnded(ended, Box::default()), clock);
    (machine, next)
}

#[test]
fn a_pending_that_ran_out_is_rotated_by_itself_only_where_that_may_be_repeated() {
    for class in CommitClass::ALL {
        let burns = matches!(class, CommitClass::BurnOnIssue | CommitClass::Grace);
        match with_a_pending_that_ran_out(class, false).1 {
            Action::StoreIntent { from, .. } => assert!(!burns && from == 2, "{class} from {from}"),
            Action::Finish(conclusion) => {
                assert!(burns, "{class}: {conclusion:?}");
                assert_eq!(conclusion.change, GenerationChange::Keep);
                let Verdict::NeedsHuman(why) = conclusion.verdict else { panic!("{:?}", conclusion.verdict) };
                assert_eq!(
                    why.message,
                    "a new secret was issued and ran out before it could be tested: it ran out; hint: \
                     `keywheel credential rotate --now` rotates it"
                );
            }
            other => panic!("{class}: {other:?}"),
        }
        // A person's word.
        let (mut machine, next) = with_a_pending_that_ran_out(class, true);
        assert!(matches!(next, Action::StoreIntent { from: 2, .. }), "{class}: {next:?}");
        let clock = Clock { wall: T0, elapsed: Duration::ZERO, left: Duration::from_secs(60) };
        let Action::CallRotate { jar, .. } = machine.on(Event::IntentStored, clock) else {
            panic!("no call")
        };
        assert_eq!(value_of(&jar, "token"), 2);
        // The answer is lost: what may be spent now is not sent again by itself.
        let seen = Seen { requests: 1, lost: true, last: Last::NoAnswer, ..Seen::default() };
        let lost = Box::new(Ended::Lost("killed".into()));
        let Action::Finish(conclusion) = machine.on(Event::CallEnded(lost, Box::new(seen)), clock) else {
            panic!("{class} goes on")
        };
        assert_eq!(conclusion.change, GenerationChange::Keep);
        assert_eq!(conclusion.verdict.as_str(), if burns { "needs-human" } else { "unknown" }, "{class}");
    }
}
