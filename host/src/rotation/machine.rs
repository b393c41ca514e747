//! One attempt as a state machine: events in, one action out, the clock given. It decides the
//! order of things from the claim to the conclusion; it asks nothing, stores nothing, waits for
//! nothing. `attempt` is its shell, and `machine_tests` drives it through crashes of every kind.
//!
//! **Invariant:** a rotation is asked for only after its intent was stored, and the plugin goes
//! on after an answer that issued something only when that was stored.
//!
//! **Invariant:** a pending generation is promoted only after the service called it valid.

use std::sync::Arc;
use std::time::Duration;

use super::decide::{self, Claimed, Issued, Plan, Rejected};
use super::verdict::{self, Grounds};
use crate::credential::{Jar, Millis};
use crate::db::writer::GenerationChange;
use crate::db::{Action as Wanted, Phase};
use crate::egress::{KeyChange, Seen};
use crate::protocol::{Answer, Fault, Outcome, Reason, Verdict};
use crate::provider::{CommitClass, Location, Resolved, ResolvedMethod};

/// Between two looks of which the first said "dead": long enough for a service that was
/// restarting, short beside any interval.
pub const SECOND_LOOK: Duration = Duration::from_millis(500);

/// How old the look may be on which a rotation in doubt is repeated: far below any time of grace
/// that a service grants.
const FRESH_LOOK: Duration = Duration::from_secs(5);

/// What an attempt finds when it begins.
#[derive(Debug, Clone)]
pub struct Start {
    pub wanted: Wanted,
    /// A person asked for a rotation whatever it may cost.
    pub forced: bool,
    pub current_generation: Option<u32>,
    pub current: Arc<Jar>,
    pub pending: Option<(u32, Arc<Jar>)>,
    /// For what this attempt captures.
    pub next_generation: u32,
    /// An earlier owner began this attempt and came this far.
    pub interrupted: Option<(Phase, Option<CommitClass>)>,
    /// An earlier rotation may have spent the current secret without an answer.
    pub in_doubt: bool,
    /// What is in doubt comes from a backup, and so does what is pending.
    pub restored: bool,
    /// The account the credential is pinned to.
    pub identity: Option<String>,
    pub resolved: Arc<Resolved>,
    /// None: the provider has no method, or not the one that was picked.
    pub method: Option<ResolvedMethod>,
    /// The operator's pick.
    pub picked: Option<String>,
}

/// When something happened.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub wall: Millis,
    /// Since the attempt began.
    pub elapsed: Duration,
    /// Until the attempt must end.
    pub left: Duration,
}

/// How a worker call ended.
#[derive(Debug, Clone)]
pub enum Ended {
    Answered(Answer),
    Faulted(Fault),
    /// The worker died, could not be started, or the call ran out of time: nobody knows how
    /// far the plugin came. How far its requests came, the host knows.
    Lost(String),
}

#[derive(Debug)]
pub enum Event {
    Begun,
    IntentStored,
    /// In the midst of a call: an answer of the service changed keys.
    Issued(Vec<KeyChange>),
    ReceiptStored,
    CallEnded(Box<Ended>, Box<Seen>),
    Waited,
}

#[derive(Debug, Clone)]
pub enum Action {
    /// Make durable that a rotation may reach the service from now on.
    StoreIntent {
        method: ResolvedMethod,
        from: u32,
    },
    CallRotate {
        method: String,
        jar: Arc<Jar>,
    },
    CallValidate {
        jar: Arc<Jar>,
    },
    /// Make durable what the service issued; the call waits for it.
    StoreReceipt(Receipt),
    /// The call goes on.
    GoOn,
    Wait(Duration),
    Finish(Box<Conclusion>),
}

/// What the service issued, on its way into the store.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub generation: u32,
    pub jar: Arc<Jar>,
    /// The generation that the service was asked with.
    pub from: Option<u32>,
    /// What this attempt stored before, which this takes the place of.
    pub amends: Option<u32>,
}

/// What the whole attempt came to, before it is written down.
#[derive(Debug, Clone)]
pub struct Conclusion {
    pub verdict: Verdict,
    pub change: GenerationChange,
    /// The jar in force afterwards.
    pub jar: Arc<Jar>,
    /// A new generation is in force.
    pub promoted: bool,
    /// The plugin trapped, went over a limit or failed: reported as such, and no verdict.
    pub faulted: bool,
    /// The current generation may have been spent without anybody's knowing.
    pub in_doubt: bool,
    /// New expiries of values that stayed the same.
    pub touched: Vec<(String, Option<Millis>)>,
    /// The steps taken, for `meta.path`.
    pub path: Vec<&'static str>,
    /// How the last request of the last call ended, for `meta.answer`.
    pub answer: String,
    /// The last call made a request.
    pub requested: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Current,
    Pending,
}

/// What a look at a jar is for.
#[derive(Debug, Clone)]
enum Why {
    /// The schedule or a person asked.
    Asked,
    /// The plugin rotated and nothing new was issued; this is what it said.
    NothingNew {
        next: Option<u32>,
        expires: Option<Millis>,
    },
    Refused(Reason),
    LostAnswer(String),
    /// Something was issued, and its verdict is due.
    Issued,
    /// What was issued is dead: does the old one live?
    Rejected(Reason),
}

#[derive(Debug, Clone)]
struct Look {
    of: Subject,
    why: Why,
    looks: u8,
}

#[derive(Debug, Clone)]
enum State {
    Ready,
    StoringIntent,
    Rotating,
    Looking(Look),
    BetweenLooks(Look),
    Ended,
}

#[derive(Debug)]
pub struct Machine {
    start: Start,
    state: State,
    /// Stored as pending, by this attempt or an earlier one.
    pending: Option<(u32, Arc<Jar>)>,
    /// Issued, and not known to be stored.
    unstored: Option<(u32, Arc<Jar>)>,
    /// What the running call began with, and its generation.
    call_jar: Arc<Jar>,
    call_from: Option<u32>,
    /// Everything the running call's answers made of it. None: nothing was issued.
    issued: Option<Jar>,
    /// Required keys that answers of the running call deleted.
    deleted: Vec<String>,
    touched: Vec<(String, Option<Millis>)>,
    faulted: bool,
    in_doubt: bool,
    /// When a look let a rotation be repeated in this attempt, which happens once.
    repeated_on: Option<Duration>,
    /// The rotation begins with the pending generation, which ran out before it could be tested.
    from_pending: bool,
    path: Vec<&'static str>,
    answer: String,
    requested: bool,
}

fn unknown(message: impl Into<String>) -> Verdict {
    Verdict::Unknown(Reason { message: message.into(), ..Reason::default() })
}

fn needs_human(message: impl Into<String>) -> Verdict {
    Verdict::NeedsHuman(Reason { message: message.into(), ..Reason::default() })
}

/// A token ran out, or the first rotation is still to bring it: a credential may be added with
/// its refresh token alone. Such a one shows by a first generation about which nothing could be
/// asked (`unasked_first`). A key that is missing is not enough: no rotation brings a client's
/// secret.
pub fn is_stale(resolved: &Resolved, jar: &Jar, unasked_first: bool, at: Millis) -> bool {
    resolved.keys.iter().filter(|spec| spec.location == Location::Token).any(|spec| {
        jar.get(&spec.name)
            .map_or(unasked_first && !spec.required, |key| key.expires.is_some_and(|expires| expires <= at))
    })
}

/// The plugin says that asking again teaches nothing and a rotation would.
pub fn wants_rotation(why: &Reason) -> bool {
    why.extras.iter().any(|(name, value)| name == "next" && value == "rotate")
}

impl Machine {
    pub fn new(start: Start) -> Self {
        Self {
            pending: start.pending.clone(),
            call_jar: Arc::clone(&start.current),
            call_from: start.current_generation,
            in_doubt: start.in_doubt,
            start,
            state: State::Ready,
            unstored: None,
            issued: None,
            deleted: Vec::new(),
            touched: Vec::new(),
            faulted: false,
            repeated_on: None,
            from_pending: false,
            path: Vec::new(),
            answer: String::from("not asked"),
            requested: false,
        }
    }

    /// Takes one event and says what is to be done. Each action is answered by its event before
    /// the next one comes; in a call, `Issued` may come any number of times before its end.
    pub fn on(&mut self, event: Event, clock: Clock) -> Action {
        match (std::mem::replace(&mut self.state, State::Ended), event) {
            (State::Ready, Event::Begun) => self.begin(),
            (State::StoringIntent, Event::IntentStored) => self.call_rotate(),
            (state @ (State::Rotating | State::Looking(_)), Event::Issued(changes)) => {
                self.state = state;
                self.keep(changes)
            }
            (state @ (State::Rotating | State::Looking(_)), Event::ReceiptStored) => {
                self.state = state;
                if let Some(stored) = self.unstored.take() {
                    self.pending = Some(stored);
                }
                Action::GoOn
            }
            (State::Rotating, Event::CallEnded(ended, seen)) => self.rotated(*ended, &seen),
            (State::Looking(look), Event::CallEnded(ended, seen)) => self.looked(look, *ended, &seen, clock),
            (State::BetweenLooks(look), Event::Waited) => self.look_again(look),
            (state, event) => {
                debug_assert!(false, "{event:?} in {state:?}");
                self.conclude(unknown("the attempt lost its place, which is a fault of Keywheel"))
            }
        }
    }

    fn begin(&mut self) -> Action {
        let class = self.class();
        let plan = decide::plan(Claimed {
            action: self.start.wanted,
            has_pending: self.pending.is_some(),
            interrupted: self
                .start
                .interrupted
                .map(|(phase, class)| (phase, class.unwrap_or(CommitClass::BurnOnIssue))),
            in_doubt: (self.start.in_doubt && !self.start.forced).then_some(class),
            restored: self.start.restored && !self.start.forced,
        });
        if self.start.interrupted.is_some() {
            self.path.push("recovered");
        }
        match plan {
            Plan::TestPending => self.test_pending(),
            Plan::Validate => self.look(Subject::Current, Why::Asked),
            Plan::Rotate => self.rotate(),
            Plan::Repeat => self.repeat(),
            Plan::ProbeCurrent => {
                let why = if self.start.restored {
                    "the secret is from a backup and may have been replaced since"
                } else if self.start.interrupted.is_some() {
                    "a rotation was interrupted"
                } else {
                    "the answer to an earlier rotation was lost"
                };
                self.in_doubt = true;
                self.probe(why.to_owned())
            }
        }
    }

    /// Whether a rotation ends the old secret, at once or soon.
    fn class_may_burn(&self) -> bool {
        decide::after_lost_answer(self.class()) == Plan::ProbeCurrent
    }

    fn class(&self) -> CommitClass {
        // Without a method nothing was rotated, and the mildest rules are right.
        self.start.method.as_ref().map_or(CommitClass::Sliding, |method| method.commit_class)
    }

    // Rotating

    fn rotate(&mut self) -> Action {
        let Some(method) = self.start.method.clone() else {
            let known: Vec<_> =
                self.start.resolved.methods.iter().map(|method| method.name.as_str()).collect();
            if known.is_empty() {
                self.path.push("validate-only");
                return self.look(Subject::Current, Why::Asked);
            }
            return self.conclude(needs_human(format!(
                "method `{}` is gone from the plugin; known: {}",
                self.start.picked.as_deref().unwrap_or_default(),
                known.join(", ")
            )));
        };
        self.state = State::StoringIntent;
        let from = match &self.pending {
            Some((pending, _)) if self.from_pending => Some(*pending),
            _ => self.start.current_generation,
        };
        Action::StoreIntent { method, from: from.unwrap_or(0) }
    }

    /// Whether a request of the running call may leave now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_send(&self, clock: Clock) -> Result<(), &'static str> {
        match self.repeated_on {
            Some(looked) if matches!(self.state, State::Rotating) && clock.elapsed > looked + FRESH_LOOK => {
                Err("the look that allowed to repeat the rotation is too old")
            }
            _ => Ok(()),
        }
    }

    fn repeat(&mut self) -> Action {
        self.path.push("repeat");
        self.rotate()
    }

    fn call_rotate(&mut self) -> Action {
        let Some(method) = self.start.method.as_ref().map(|method| method.name.clone()) else {
            return self.conclude(unknown("the method went away"));
        };
        self.path.push("rotate");
        self.state = State::Rotating;
        let subject = if self.from_pending { Subject::Pending } else { Subject::Current };
        let jar = self.begin_call(subject);
        Action::CallRotate { method, jar }
    }

    fn rotated(&mut self, ended: Ended, seen: &Seen) -> Action {
        self.answer = seen.words();
        self.requested = seen.requests > 0;
        let outcome = match ended {
            Ended::Answered(Answer::Rotated(outcome)) => verdict::judge_refusal(outcome, seen),
            Ended::Answered(_) => {
                return self.without_answer(String::from("the plugin answered another call"), seen);
            }
            Ended::Faulted(fault) => {
                self.faulted = true;
                return self.without_answer(fault.to_string(), seen);
            }
            Ended::Lost(why) => return self.without_answer(why, seen),
        };
        if self.has_captured() {
            // Whatever the plugin made of it: the service issued something.
            return self.test_issued();
        }
        if self.from_pending {
            return self.not_renewed(outcome, seen);
        }
        match outcome {
            outcome @ (Outcome::Rotated(_) | Outcome::Unchanged(_)) => {
                // Nothing new to lose; whether the session was extended, validate shows. Unless
                // the plugin speaks of a new secret and showed none.
                let spent = matches!(outcome, Outcome::Rotated(_)) && seen.lost && self.class_may_burn();
                self.in_doubt |= spent;
                let (Outcome::Rotated(evidence) | Outcome::Unchanged(evidence)) = outcome else {
                    return self.conclude(unknown("neither rotated nor unchanged"));
                };
                self.look(
                    Subject::Current,
                    Why::NothingNew { next: evidence.next, expires: evidence.expires },
                )
            }
            Outcome::Invalid(reason) => {
                self.path.push("refused");
                self.look(Subject::Current, Why::Refused(reason))
            }
            Outcome::NeedsHuman(reason) => self.conclude(Verdict::NeedsHuman(reason)),
            Outcome::Unknown(reason) => self.after_lost_answer(Verdict::Unknown(reason), seen),
        }
    }

    /// The call ended without an answer: what was captured decides, then the commit class.
    fn without_answer(&mut self, why: String, seen: &Seen) -> Action {
        self.path.push("no-answer");
        if self.has_captured() {
            return self.test_issued();
        }
        if self.from_pending {
            return self.not_renewed(Outcome::Unknown(Reason { message: why, ..Reason::default() }), seen);
        }
        self.after_lost_answer(unknown(why), seen)
    }

    /// This attempt's rotation issued something. What an earlier one left is pending before it.
    fn has_captured(&self) -> bool {
        let generation =
            |pending: &Option<(u32, Arc<Jar>)>| pending.as_ref().map(|(generation, _)| *generation);
        generation(&self.pending) != generation(&self.start.pending)
    }

    /// Whether a pending generation that can't be tested any more may be rotated instead: at once
    /// where a rotation may be repeated, by a person's word where it may spend the secret, and
    /// never twice in an attempt.
    fn may_renew(&self) -> bool {
        let by_word = self.start.forced && self.start.interrupted.is_none();
        let after_restore = self.start.restored && decide::after_restore(self.class()) == Plan::ProbeCurrent;
        let may_spend = self.class_may_burn() || after_restore;
        !self.from_pending && self.start.method.is_some() && (!may_spend || by_word)
    }

    /// What was issued ran out before anybody could test it: its refresh token may live. What
    /// that brings is tested like any other, so nothing is promoted unseen.
    fn renew_pending(&mut self) -> Action {
        self.path.push("renew-pending");
        self.from_pending = true;
        self.rotate()
    }

    /// The pending generation was rotated, and nothing came of it.
    fn not_renewed(&mut self, outcome: Outcome, seen: &Seen) -> Action {
        match outcome {
            Outcome::Invalid(reason) => {
                self.path.push("refused");
                self.reject(reason)
            }
            Outcome::NeedsHuman(reason) => self.keep_pending(Verdict::NeedsHuman(reason)),
            Outcome::Unknown(reason) if seen.lost && self.class_may_burn() => {
                self.keep_pending(needs_human(format!(
                    "{}, and whether it spent the new secret can't be seen; hint: import fresh secrets",
                    reason.message
                )))
            }
            Outcome::Unknown(reason) => self.keep_pending(Verdict::Unknown(reason)),
            Outcome::Rotated(_) | Outcome::Unchanged(_) => self
                .keep_pending(unknown("the service was asked to rotate the new secret and issued nothing")),
        }
    }

    /// Nothing was issued, as far as anybody knows.
    fn after_lost_answer(&mut self, said: Verdict, seen: &Seen) -> Action {
        if !seen.lost {
            // Nothing came to the service, or it said no: nothing was spent.
            self.path.push("not-spent");
            return self.conclude(said);
        }
        match decide::after_lost_answer(self.class()) {
            Plan::ProbeCurrent => {
                self.in_doubt = true;
                let why = match said {
                    Verdict::Unknown(reason) => reason.message,
                    _ => String::new(),
                };
                self.probe(why)
            }
            // Repeated by the schedule, with its backoff.
            _ => self.conclude(said),
        }
    }

    fn probe(&mut self, why: String) -> Action {
        self.path.push("probe-current");
        self.look(Subject::Current, Why::LostAnswer(why))
    }

    // What was issued

    /// Takes what an answer changed into the jar of the call. Only values that may exist nowhere
    /// else must be stored before the plugin goes on.
    fn keep(&mut self, changes: Vec<KeyChange>) -> Action {
        let mut fresh = false;
        for change in changes {
            match change {
                KeyChange::Set(key) => {
                    self.deleted.retain(|name| *name != key.name);
                    self.issued_jar().put(key);
                    fresh = true;
                }
                // Evidence against the session, and no reason to forget a value: a logged-out
                // answer deletes what it can.
                KeyChange::Deleted(name) if self.is_required(&name) => {
                    if !self.deleted.contains(&name) {
                        self.deleted.push(name);
                    }
                }
                KeyChange::Deleted(name) => {
                    self.issued_jar().remove(&name);
                    fresh = true;
                }
                // The same value lives longer: nothing can be lost, so it waits for the report.
                KeyChange::Touched(key) => {
                    self.touched.retain(|(known, _)| *known != key.name);
                    self.touched.push((key.name.clone(), key.expires));
                    if let Some(jar) = &mut self.issued {
                        jar.put(key);
                    }
                }
            }
        }
        match &self.issued {
            Some(jar) if fresh => {
                let (generation, jar) = (self.start.next_generation, Arc::new(jar.clone()));
                self.unstored = Some((generation, Arc::clone(&jar)));
                let stored = self.pending.as_ref().map(|(stored, _)| *stored);
                let amends = stored.filter(|stored| *stored == generation);
                Action::StoreReceipt(Receipt { generation, jar, from: self.call_from, amends })
            }
            _ => Action::GoOn,
        }
    }

    fn issued_jar(&mut self) -> &mut Jar {
        self.issued.get_or_insert_with(|| Jar::clone(&self.call_jar))
    }

    fn is_required(&self, name: &str) -> bool {
        self.start.resolved.keys.iter().any(|spec| spec.required && spec.name == name)
    }

    /// After a rotation: a new secret by an answer that took a required one away is worth
    /// nothing.
    fn test_issued(&mut self) -> Action {
        match self.deleted.is_empty() {
            true => self.test_pending(),
            false => self.regressed(self.deleted.clone()),
        }
    }

    fn regressed(&mut self, lost: Vec<String>) -> Action {
        self.path.push("regressed");
        self.reject(Reason {
            message: format!("the service's answer deleted the required key `{}`", lost.join("`, `")),
            ..Reason::default()
        })
    }

    /// A pending generation becomes current only by the service's own word.
    fn test_pending(&mut self) -> Action {
        self.path.push("validate-pending");
        // From here on expiries are about the pending jar, whose own are as new as it is.
        self.touched.clear();
        let lost: Vec<String> = match &self.pending {
            Some((_, jar)) => {
                decide::lost_keys(jar, &self.start.resolved.keys).into_iter().map(str::to_owned).collect()
            }
            None => return self.conclude(unknown("nothing is pending")),
        };
        if lost.is_empty() { self.look(Subject::Pending, Why::Issued) } else { self.regressed(lost) }
    }

    /// What was issued is no good. Whether the old secret is any better, the service knows.
    fn reject(&mut self, reason: Reason) -> Action {
        self.touched.clear();
        self.look(Subject::Current, Why::Rejected(reason))
    }

    // Looking

    fn look(&mut self, of: Subject, why: Why) -> Action {
        if matches!(why, Why::Asked | Why::NothingNew { .. } | Why::Rejected(_)) {
            self.path.push("validate-current");
        }
        self.look_at(Look { of, why, looks: 1 })
    }

    fn look_again(&mut self, look: Look) -> Action {
        self.look_at(Look { looks: look.looks + 1, ..look })
    }

    fn look_at(&mut self, look: Look) -> Action {
        let jar = self.begin_call(look.of);
        self.state = State::Looking(look);
        Action::CallValidate { jar }
    }

    fn begin_call(&mut self, of: Subject) -> Arc<Jar> {
        let (from, jar) = match (&self.pending, of) {
            (Some((pending, jar)), Subject::Pending) => (Some(*pending), Arc::clone(jar)),
            _ => (self.start.current_generation, Arc::clone(&self.start.current)),
        };
        self.call_from = from;
        self.call_jar = Arc::clone(&jar);
        self.issued = None;
        self.deleted.clear();
        jar
    }

    fn looked(&mut self, look: Look, ended: Ended, seen: &Seen, clock: Clock) -> Action {
        self.answer = seen.words();
        self.requested = seen.requests > 0;
        let claimed = match ended {
            Ended::Answered(Answer::Validated(verdict)) => verdict,
            Ended::Answered(_) => {
                self.faulted = true;
                unknown("the plugin answered another call")
            }
            // A plugin's own trouble says nothing of the credential.
            Ended::Faulted(fault) => {
                self.faulted = true;
                unknown(fault.to_string())
            }
            Ended::Lost(why) => unknown(why),
        };
        let said = claimed.as_str();
        let verdict = verdict::judge(
            claimed,
            Grounds {
                seen,
                deleted: &self.deleted,
                keys: &self.start.resolved.keys,
                jar: &self.call_jar,
                now: clock.wall,
            },
        );
        if verdict.as_str() != said {
            self.path.push("overruled");
        }
        // "Dead" is believed only the second time.
        if matches!(verdict, Verdict::Invalid(_)) && look.looks == 1 && clock.left > SECOND_LOOK {
            self.path.push("second-look");
            self.state = State::BetweenLooks(look);
            return Action::Wait(SECOND_LOOK);
        }
        let other_account = match &verdict {
            Verdict::Valid(evidence) => {
                decide::other_account(self.start.identity.as_deref(), evidence.identity.as_deref())
                    .then(|| evidence.identity.clone().unwrap_or_default())
            }
            _ => None,
        };
        let pinned = self.start.identity.clone().unwrap_or_default();
        match (look.of, other_account) {
            (Subject::Pending, Some(seen)) => {
                self.path.push("other-account");
                let verdict = needs_human(format!(
                    "the new secret belongs to account {seen}, this credential to {pinned}"
                ));
                match decide::rejected_pending(self.class()) {
                    Rejected::KeepForHuman => self.keep_pending(verdict),
                    Rejected::Drop => self.drop_pending(verdict, false),
                }
            }
            (Subject::Current, Some(seen)) => self.conclude(needs_human(format!(
                "the service says account {seen}, this credential was pinned to {pinned}; hint: import the right account, or add this one as a credential of its own"
            ))),
            (Subject::Pending, None) => self.judged_pending(verdict, seen),
            (Subject::Current, None) => self.judged_current(look.why, verdict, seen, clock),
        }
    }

    fn judged_pending(&mut self, verdict: Verdict, seen: &Seen) -> Action {
        match verdict {
            Verdict::Valid(_) => {
                // One that came with a backup is as old as that: what still works of it needn't be
                // what a rotation spends.
                let unspent =
                    verdict::proves(seen, &self.start.resolved.keys) && self.class() != CommitClass::Grace;
                let in_doubt = self.start.restored && !self.has_captured() && !unspent;
                self.promote(verdict, in_doubt)
            }
            Verdict::Invalid(reason) => self.reject(reason),
            Verdict::Unknown(late) if self.is_left_over() && wants_rotation(&late) => {
                if self.may_renew() {
                    return self.renew_pending();
                }
                self.keep_pending(match self.class_may_burn() {
                    true => Verdict::NeedsHuman(Reason {
                        message: format!(
                            "a new secret was issued and ran out before it could be tested: {}; hint: `keywheel credential rotate --now` rotates it",
                            late.message
                        ),
                        ..late
                    }),
                    false => Verdict::Unknown(late),
                })
            }
            other => self.keep_pending(other),
        }
    }

    /// The pending generation is an earlier attempt's.
    fn is_left_over(&self) -> bool {
        self.pending.is_some() && !self.has_captured()
    }

    fn judged_current(&mut self, why: Why, verdict: Verdict, seen: &Seen, clock: Clock) -> Action {
        let alive = matches!(verdict, Verdict::Valid(_));
        let proven = alive && verdict::proves(seen, &self.start.resolved.keys);
        // Within its time of grace a spent secret lives as well.
        let unspent = proven && self.class() != CommitClass::Grace;
        match why {
            Why::Asked | Why::NothingNew { .. } | Why::Refused(_) if self.pending.is_some() => {
                // The service issued something while it was only asked.
                match decide::issued_while_validating(&verdict) {
                    Issued::Test => self.test_pending(),
                    Issued::Drop => self.drop_pending(verdict, false),
                    Issued::Keep => self.keep_pending(verdict),
                }
            }
            Why::Asked => {
                self.in_doubt &= !unspent;
                self.conclude(verdict)
            }
            Why::NothingNew { next, expires } => {
                let mut verdict = verdict;
                self.in_doubt &= !unspent;
                if let Verdict::Valid(found) = &mut verdict {
                    found.next = found.next.or(next);
                    found.expires = found.expires.or(expires);
                }
                self.conclude(verdict)
            }
            Why::Refused(reason) => self.conclude(match verdict {
                Verdict::Valid(_) => Verdict::NeedsHuman(Reason {
                    message: format!(
                        "rotation was refused and the present secret still works: {}",
                        reason.message
                    ),
                    ..reason
                }),
                // The service said no to both, each in its own words: nothing is left to try.
                Verdict::Invalid(_) => Verdict::NeedsHuman(Reason {
                    message: format!(
                        "rotation was refused and the present secret is dead: {}; hint: `keywheel credential import` puts fresh secrets in force",
                        reason.message
                    ),
                    ..reason
                }),
                // What could be asked about has run out, which says nothing; the refusal does.
                Verdict::Unknown(why) if self.is_stale_now(clock.wall) || wants_rotation(&why) => {
                    Verdict::NeedsHuman(Reason {
                        message: format!(
                            "rotation was refused, and nothing else is left that works: {}; hint: `keywheel credential import` puts fresh secrets in force",
                            reason.message
                        ),
                        ..reason
                    })
                }
                other => other,
            }),
            Why::LostAnswer(lost) => self.judged_after_lost_answer(lost, verdict, proven, clock),
            Why::Rejected(reason) => self.judged_after_rejection(reason, verdict, proven),
            Why::Issued => self.conclude(verdict),
        }
    }

    fn judged_after_lost_answer(
        &mut self,
        lost: String,
        verdict: Verdict,
        proven: bool,
        clock: Clock,
    ) -> Action {
        if self.pending.is_some() {
            // Even this look made the service issue something, and it is kept like any other.
            return match decide::issued_while_validating(&verdict) {
                Issued::Test => self.test_pending(),
                Issued::Drop => self.drop_pending(verdict, false),
                Issued::Keep => self.keep_pending(verdict),
            };
        }
        // Within this very attempt the time that a service grants can't be over yet.
        let just_now = self.start.interrupted.is_none() && !self.start.in_doubt;
        match verdict {
            // Of one that was replaced more than once a service believes that it was stolen.
            Verdict::Valid(_) if self.start.restored && self.class() == CommitClass::Grace => {
                self.conclude(needs_human(format!(
                    "{lost}; it still works, but so does one that was replaced, for a while; hint: `keywheel credential rotate --now` tries it at that risk, or import fresh secrets"
                )))
            }
            Verdict::Valid(_)
                if self.class() == CommitClass::Grace
                    && (proven || just_now)
                    && self.repeated_on.is_none() =>
            {
                self.repeated_on = Some(clock.elapsed);
                self.repeat()
            }
            // The old secret lives, so nothing was spent, and the schedule may repeat. Not at
            // once: what was sent may still be on its way.
            Verdict::Valid(_) if proven => {
                self.in_doubt = self.class() == CommitClass::Grace;
                self.conclude(unknown(format!(
                    "{lost}; the present secret still works, so rotation will be repeated"
                )))
            }
            Verdict::Valid(_) => self.conclude(needs_human(format!(
                "{lost}, and whether it spent the secret can't be seen: what still works is not what a rotation spends; hint: `keywheel credential rotate --now` tries it at that risk, or import fresh secrets"
            ))),
            Verdict::Invalid(reason) => self.conclude(Verdict::NeedsHuman(Reason {
                message: format!("{lost}, and the present secret is dead: {}", reason.message),
                ..reason
            })),
            Verdict::Unknown(reason) if self.is_stale_now(clock.wall) || wants_rotation(&reason) => {
                self.conclude(Verdict::NeedsHuman(Reason {
                    message: format!(
                        "{lost}, and nothing that still works can tell whether it spent the secret: {}; hint: `keywheel credential rotate --now` tries it at that risk, or import fresh secrets",
                        reason.message
                    ),
                    ..reason
                }))
            }
            other => self.conclude(other),
        }
    }

    fn is_stale_now(&self, at: Millis) -> bool {
        let unasked_first = !self.requested && self.start.current_generation == Some(1);
        is_stale(&self.start.resolved, &self.start.current, unasked_first, at)
    }

    fn judged_after_rejection(&mut self, reason: Reason, verdict: Verdict, proven: bool) -> Action {
        match (verdict, decide::rejected_pending(self.class())) {
            (Verdict::Valid(_), _) => {
                let verdict = unknown(format!(
                    "the new secret was refused ({}); the old one still works",
                    reason.message
                ));
                self.drop_pending(verdict, proven)
            }
            (_, Rejected::KeepForHuman) => self.keep_pending(Verdict::NeedsHuman(Reason {
                message: format!(
                    "the new secret is refused and the old one died when it was issued: {}",
                    reason.message
                ),
                ..reason
            })),
            (other, Rejected::Drop) => self.drop_pending(other, false),
        }
    }

    // Ending

    fn promote(&mut self, verdict: Verdict, in_doubt: bool) -> Action {
        // Validating may have captured again; the newest jar is the one in force.
        let Some((generation, jar)) = self.pending.take() else { return self.conclude(verdict) };
        self.path.push("promoted");
        self.in_doubt = in_doubt;
        self.end(verdict, GenerationChange::Promote(generation), jar, true)
    }

    fn keep_pending(&mut self, verdict: Verdict) -> Action {
        self.path.push("kept-pending");
        self.conclude(verdict)
    }

    /// Unless the old secret is `proven` alive, issuing the new one may have spent it.
    fn drop_pending(&mut self, verdict: Verdict, proven: bool) -> Action {
        self.path.push("dropped");
        self.in_doubt = self.class_may_burn() && !(proven && self.class() != CommitClass::Grace);
        match self.pending.take() {
            Some((generation, _)) => {
                let jar = Arc::clone(&self.start.current);
                self.end(verdict, GenerationChange::Drop(generation), jar, false)
            }
            None => self.conclude(verdict),
        }
    }

    /// Ends with the current generation in force, and a pending one kept.
    fn conclude(&mut self, verdict: Verdict) -> Action {
        let change = if self.pending.is_some() { GenerationChange::Keep } else { GenerationChange::None };
        let jar = Arc::clone(&self.start.current);
        self.end(verdict, change, jar, false)
    }

    fn end(&mut self, verdict: Verdict, change: GenerationChange, jar: Arc<Jar>, promoted: bool) -> Action {
        self.state = State::Ended;
        Action::Finish(Box::new(Conclusion {
            verdict,
            change,
            jar,
            promoted,
            faulted: self.faulted,
            in_doubt: self.in_doubt,
            touched: std::mem::take(&mut self.touched),
            path: std::mem::take(&mut self.path),
            answer: std::mem::take(&mut self.answer),
            requested: self.requested,
        }))
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
