//! One attempt, from its claim to its report: drives the worker's call, sends its requests
//! through the egress, stores what the service issued before the plugin hears of it, and ends
//! in exactly one report. The rules it follows are `decide` and `schedule`; here is only the
//! order of things.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Rotation;
use super::decide::{self, Claimed, Issued, Plan, Rejected};
use super::schedule::{self, Facts, Standing, Trouble};
use crate::crash;
use crate::credential::{Jar, Key, Millis, now};
use crate::db::writer::{Claim, Finish, GenerationChange, MonitorUpdate, WriteError};
use crate::db::{Action, SealedGeneration, SealedKey};
use crate::egress::{Exchange, KeyChange, redact_text};
use crate::limits;
use crate::protocol::{
    Answer, Call, Context, Fault, HttpError, KeyState, LogLevel, Outcome, Reason, Verdict,
};
use crate::provider::{CommitClass, Location, Manifest, Resolved, ResolvedMethod};
use crate::registry::ActiveProvider;
use crate::report::{Report, Status, iso8601};
use crate::supervisor::{CallError, CallEvent, RunningCall};
use crate::vault::{Place, Vault, VaultError};

/// Between two looks of which the first said "dead": long enough for a service that was
/// restarting, short beside any interval.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// Between two tries to store what was issued, each of which retries by itself.
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// A `Retry-After` past a month is a mistake, or a way to be forgotten.
const LONGEST_ASKED: Millis = 30 * 86_400_000;

/// What of a plugin's log line is shown. A worker cuts at as many bytes already, unless its
/// plugin escaped.
const LOG_LINE: usize = 4 << 10;

/// What one worker call came to.
enum Ended {
    Answered(Answer),
    Faulted(Fault),
    /// The worker died, could not be started, or the call ran out of time: nobody knows how
    /// far it came.
    Lost(String),
}

/// What the whole attempt came to, before it is written down.
struct Conclusion {
    verdict: Verdict,
    change: GenerationChange,
    /// The jar in force afterwards.
    jar: Arc<Jar>,
    /// A new generation is in force.
    promoted: bool,
}

pub struct Attempt<'a> {
    engine: &'a Rotation,
    claim: &'a Claim,
    provider: Arc<ActiveProvider>,
    resolved: Arc<Resolved>,
    /// As the attempt found it.
    current: Arc<Jar>,
    /// What is stored as pending, by this attempt or an earlier one.
    pending: Option<(u32, Arc<Jar>)>,
    expiry_updates: Vec<(String, Option<Millis>)>,
    deadline: Instant,
    requests: u32,
    /// The plugin trapped, went over a limit or failed: reported as such, and no verdict.
    faulted: bool,
    worker: Option<String>,
    method: Option<ResolvedMethod>,
    /// The steps taken, for `meta.path`.
    path: Vec<&'static str>,
}

/// Runs a claimed attempt and ends it in its report.
///
/// # Errors
/// Where the report can't be written; the claim's journal row then leads to its recovery.
pub async fn run(engine: &Rotation, claim: Claim) -> Result<Report, WriteError> {
    crash::point("attempt.claimed");
    let prepared = Attempt::prepare(engine, &claim);
    let (conclusion, attempt) = match prepared {
        Ok(mut attempt) => (attempt.conclude().await, Some(attempt)),
        Err(why) => (
            // Nothing was asked, so nothing is known of the service.
            Ok(Conclusion {
                verdict: unfit(why),
                change: kept(&claim),
                jar: Arc::default(),
                promoted: false,
            }),
            None,
        ),
    };
    let conclusion = conclusion?;
    finish(engine, &claim, attempt, conclusion).await
}

fn unfit(why: String) -> Verdict {
    Verdict::NeedsHuman(Reason { message: why, ..Reason::default() })
}

fn unknown(message: impl Into<String>) -> Verdict {
    Verdict::Unknown(Reason { message: message.into(), ..Reason::default() })
}

const fn kept(claim: &Claim) -> GenerationChange {
    if claim.pending.is_some() { GenerationChange::Keep } else { GenerationChange::None }
}

impl<'a> Attempt<'a> {
    fn prepare(engine: &'a Rotation, claim: &'a Claim) -> Result<Self, String> {
        let provider = engine.providers.get(&claim.service).ok_or_else(|| {
            format!("no plugin serves `{}`; hint: put its .wasm file into the plugins folder", claim.service)
        })?;
        let resolved = engine
            .resolved
            .get(&provider, &claim.settings, &claim.private_hosts)
            .map_err(|error| format!("the settings no longer fit the plugin: {error}"))?;
        let open = |sealed: &SealedGeneration| {
            open_jar(&engine.vault, &claim.token.credential_id, sealed).map_err(|error| error.to_string())
        };
        let current = Arc::new(claim.current.as_ref().map(open).transpose()?.unwrap_or_default());
        let pending = match &claim.pending {
            Some(sealed) => Some((sealed.generation, Arc::new(open(sealed)?))),
            None => None,
        };
        let named =
            claim.interrupted.as_ref().and_then(|before| before.method.as_ref()).or(claim.method.as_ref());
        let method = match named {
            Some(name) => resolved.methods.iter().find(|method| method.name == *name).cloned(),
            None => resolved.methods.first().cloned(),
        };
        Ok(Self {
            engine,
            claim,
            provider,
            resolved,
            current,
            pending,
            expiry_updates: Vec::new(),
            deadline: Instant::now() + limits::ATTEMPT_WALL,
            requests: 0,
            faulted: false,
            worker: None,
            method,
            path: Vec::new(),
        })
    }

    /// A token ran out, or the first rotation is still to bring it: a credential may be added
    /// with its refresh token alone.
    fn is_stale(&self, jar: &Jar, at: Millis) -> bool {
        let first = self.claim.current.as_ref().is_some_and(|current| current.generation == 1);
        self.resolved.keys.iter().filter(|spec| spec.location == Location::Token).any(|spec| {
            jar.get(&spec.name)
                .map_or(first && !spec.required, |key| key.expires.is_some_and(|expires| expires <= at))
        })
    }

    fn class(&self) -> CommitClass {
        // Without a method nothing was rotated, and the mildest rules are right.
        self.method.as_ref().map_or(CommitClass::Sliding, |method| method.commit_class)
    }

    async fn conclude(&mut self) -> Result<Conclusion, WriteError> {
        let interrupted = self.claim.interrupted.as_ref();
        let plan = decide::plan(Claimed {
            action: self.claim.action,
            has_pending: self.pending.is_some(),
            interrupted: interrupted
                .map(|before| (before.phase, before.commit_class.unwrap_or(CommitClass::BurnOnIssue))),
        });
        if interrupted.is_some() {
            self.path.push("recovered");
        }
        match plan {
            Plan::TestPending => self.test_pending().await,
            Plan::Validate => self.validate_current().await,
            Plan::Rotate => self.rotate().await,
            Plan::Repeat => {
                self.path.push("repeat");
                self.rotate().await
            }
            Plan::ProbeCurrent => self.probe_after_lost_answer("a rotation was interrupted").await,
        }
    }

    /// The plain case: does the secret in force still live?
    async fn validate_current(&mut self) -> Result<Conclusion, WriteError> {
        self.path.push("validate-current");
        let jar = Arc::clone(&self.current);
        let verdict = self.validate(jar).await?;
        // The service may have issued a new secret while it was only asked.
        if self.pending.is_some() {
            return match decide::issued_while_validating(&verdict) {
                Issued::Test => self.test_pending().await,
                Issued::Drop => Ok(self.drop_pending(verdict)),
                Issued::Keep => Ok(self.keep_pending(verdict)),
            };
        }
        Ok(self.unchanged(verdict))
    }

    async fn rotate(&mut self) -> Result<Conclusion, WriteError> {
        let Some(method) = self.method.clone() else {
            let known: Vec<_> = self.resolved.methods.iter().map(|method| method.name.as_str()).collect();
            let verdict = if known.is_empty() {
                self.path.push("validate-only");
                return self.validate_current().await;
            } else {
                unfit(format!(
                    "method `{}` is gone from the plugin; known: {}",
                    self.claim.method.as_deref().unwrap_or_default(),
                    known.join(", ")
                ))
            };
            return Ok(self.unchanged(verdict));
        };
        let from = self.claim.current.as_ref().map_or(0, |generation| generation.generation);
        // The intent is durable before any request can leave.
        self.engine
            .writer
            .journal_rotation(&self.claim.token, &method.name, method.commit_class, from)
            .await?;
        self.path.push("rotate");
        let context = self.context(&self.current);
        crash::point("rotate.calling");
        let ended = self.call(Call::Rotate(context, method.name.clone()), Arc::clone(&self.current)).await?;
        crash::point("rotate.ended");
        let outcome = match ended {
            Ended::Answered(Answer::Rotated(outcome)) => outcome,
            Ended::Answered(_) => return self.without_answer("the plugin answered another call").await,
            Ended::Faulted(fault) => {
                self.faulted = true;
                return self.without_answer(&fault.to_string()).await;
            }
            Ended::Lost(why) => return self.without_answer(&why).await,
        };
        if self.pending.is_some() {
            // Whatever the plugin made of it: the service issued something.
            return self.test_pending().await;
        }
        match outcome {
            Outcome::Rotated(evidence) | Outcome::Unchanged(evidence) => {
                // Nothing new to lose; whether the session was extended, validate shows.
                let asked = evidence.next;
                let mut conclusion = self.validate_current().await?;
                if let Verdict::Valid(found) = &mut conclusion.verdict {
                    found.next = found.next.or(asked);
                    found.expires = found.expires.or(evidence.expires);
                }
                Ok(conclusion)
            }
            Outcome::Invalid(reason) => {
                self.path.push("refused");
                let jar = Arc::clone(&self.current);
                match self.validate(jar).await? {
                    Verdict::Valid(_) => Ok(self.unchanged(Verdict::NeedsHuman(Reason {
                        message: format!(
                            "rotation was refused and the present secret still works: {}",
                            reason.message
                        ),
                        ..reason
                    }))),
                    Verdict::Invalid(_) => Ok(self.unchanged(Verdict::Invalid(reason))),
                    other => Ok(self.unchanged(other)),
                }
            }
            Outcome::NeedsHuman(reason) => Ok(self.unchanged(Verdict::NeedsHuman(reason))),
            Outcome::Unknown(reason) => match decide::after_lost_answer(method.commit_class) {
                Plan::ProbeCurrent => self.probe_after_lost_answer(&reason.message).await,
                _ => Ok(self.unchanged(Verdict::Unknown(reason))),
            },
        }
    }

    /// The call ended without an answer: what was captured decides, then the commit class.
    async fn without_answer(&mut self, why: &str) -> Result<Conclusion, WriteError> {
        self.path.push("no-answer");
        if self.pending.is_some() {
            return self.test_pending().await;
        }
        match decide::after_lost_answer(self.class()) {
            Plan::ProbeCurrent => self.probe_after_lost_answer(why).await,
            // Repeated by the schedule, with its backoff.
            _ => Ok(self.unchanged(unknown(why))),
        }
    }

    async fn probe_after_lost_answer(&mut self, why: &str) -> Result<Conclusion, WriteError> {
        self.path.push("probe-current");
        let jar = Arc::clone(&self.current);
        let verdict = match self.validate(jar).await? {
            // The old secret lives, so nothing was spent, and the schedule may repeat.
            Verdict::Valid(_) => {
                unknown(format!("{why}; the present secret still works, so rotation will be repeated"))
            }
            Verdict::Invalid(reason) => Verdict::NeedsHuman(Reason {
                message: format!("{why}, and the present secret is dead: {}", reason.message),
                ..reason
            }),
            other => other,
        };
        Ok(self.unchanged(verdict))
    }

    /// A pending generation becomes current only by the service's own word.
    async fn test_pending(&mut self) -> Result<Conclusion, WriteError> {
        self.path.push("validate-pending");
        let Some((_, jar)) = self.pending.clone() else {
            return Ok(self.unchanged(unknown("nothing is pending")));
        };
        let lost = decide::lost_keys(&jar, &self.resolved.keys);
        if !lost.is_empty() {
            self.path.push("regressed");
            let reason = Reason {
                message: format!("the service's answer deleted the required key `{}`", lost.join("`, `")),
                ..Reason::default()
            };
            return Ok(self.drop_pending(Verdict::Invalid(reason)));
        }
        crash::point("pending.testing");
        let verdict = self.validate(jar).await?;
        crash::point("pending.tested");
        // Validating may have captured again; the newest jar is the one in force.
        let Some((generation, jar)) = self.pending.clone() else { return Ok(self.unchanged(verdict)) };
        match verdict {
            Verdict::Valid(evidence) => {
                let seen = evidence.identity.as_deref();
                if decide::other_account(self.claim.identity.as_deref(), seen) {
                    self.path.push("other-account");
                    return Ok(self.drop_pending(unfit(format!(
                        "the new secret belongs to account {}, this credential to {}",
                        seen.unwrap_or_default(),
                        self.claim.identity.as_deref().unwrap_or_default()
                    ))));
                }
                self.path.push("promoted");
                Ok(Conclusion {
                    verdict: Verdict::Valid(evidence),
                    change: GenerationChange::Promote(generation),
                    jar,
                    promoted: true,
                })
            }
            Verdict::Invalid(reason) => match decide::rejected_pending(self.class()) {
                Rejected::KeepForHuman => Ok(self.keep_pending(Verdict::NeedsHuman(Reason {
                    message: format!(
                        "the new secret is refused and the old one died when it was issued: {}",
                        reason.message
                    ),
                    ..reason
                }))),
                Rejected::Drop => {
                    self.path.push("dropped");
                    self.pending = None;
                    let current = Arc::clone(&self.current);
                    let verdict = match self.validate(current).await? {
                        Verdict::Valid(_) => unknown(format!(
                            "the new secret was refused ({}); the old one still works",
                            reason.message
                        )),
                        other => other,
                    };
                    Ok(Conclusion { change: GenerationChange::Drop(generation), ..self.unchanged(verdict) })
                }
            },
            other => Ok(self.keep_pending(other)),
        }
    }

    fn unchanged(&self, verdict: Verdict) -> Conclusion {
        let change = if self.pending.is_some() { GenerationChange::Keep } else { GenerationChange::None };
        Conclusion { verdict, change, jar: Arc::clone(&self.current), promoted: false }
    }

    fn keep_pending(&mut self, verdict: Verdict) -> Conclusion {
        self.path.push("kept-pending");
        self.unchanged(verdict)
    }

    fn drop_pending(&mut self, verdict: Verdict) -> Conclusion {
        self.path.push("dropped");
        let change = self
            .pending
            .take()
            .map_or(GenerationChange::None, |(generation, _)| GenerationChange::Drop(generation));
        Conclusion { verdict, change, jar: Arc::clone(&self.current), promoted: false }
    }

    /// Asks the plugin whether this jar lives; "dead" is believed only the second time.
    async fn validate(&mut self, jar: Arc<Jar>) -> Result<Verdict, WriteError> {
        let mut looks = 0;
        loop {
            looks += 1;
            let context = self.context(&jar);
            let verdict = match self.call(Call::Validate(context), Arc::clone(&jar)).await? {
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
            match verdict {
                Verdict::Invalid(_) if looks == 1 && Instant::now() + SECOND_LOOK < self.deadline => {
                    self.path.push("second-look");
                    tokio::time::sleep(SECOND_LOOK).await;
                }
                Verdict::Valid(evidence)
                    if decide::other_account(
                        self.claim.identity.as_deref(),
                        evidence.identity.as_deref(),
                    ) =>
                {
                    return Ok(unfit(format!(
                        "the service says account {}, this credential was pinned to {}; hint: import the right account, or add this one as a credential of its own",
                        evidence.identity.as_deref().unwrap_or_default(),
                        self.claim.identity.as_deref().unwrap_or_default()
                    )));
                }
                verdict => return Ok(verdict),
            }
        }
    }

    fn context(&self, jar: &Jar) -> Context {
        let mut keys: Vec<KeyState> = self
            .resolved
            .keys
            .iter()
            .map(|spec| {
                let key = jar.get(&spec.name);
                KeyState {
                    name: spec.name.clone(),
                    present: key.is_some(),
                    fingerprint: key.map(|key| key.fingerprint.clone()),
                    expires: key.and_then(|key| key.expires),
                }
            })
            .collect();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Context {
            credential_id: self.claim.token.credential_id.clone(),
            profile_id: self.claim.profile_id.clone(),
            settings: self.resolved.settings.clone(),
            keys,
            attempt: self.claim.attempt_number,
            now: now(),
            extras: Vec::new(),
        }
    }

    /// Runs one call and serves what it asks for. Only a failure to write is an error here.
    async fn call(&mut self, call: Call, jar: Arc<Jar>) -> Result<Ended, WriteError> {
        let supervisor = self.engine.supervisor.clone();
        // Waiting for a place on a busy worker is no part of the attempt: only its own time may
        // end it. The wait is bounded by the deadlines of those before it.
        let asked = Instant::now();
        let started = supervisor.call(&self.claim.service, call).await;
        self.deadline += asked.elapsed();
        let deadline = self.deadline.min(Instant::now() + limits::CALL_WALL);
        let mut running = match started {
            Ok(running) => running,
            Err(error @ (CallError::Parked { .. } | CallError::NoPlugin(_) | CallError::Unfit(_))) => {
                return Ok(Ended::Faulted(Fault::Load(error.to_string())));
            }
            Err(error) => return Ok(Ended::Lost(error.to_string())),
        };
        self.worker = Some(running.worker_id().to_owned());
        let mut exchange = Exchange::new(Arc::clone(&self.resolved), Jar::clone(&jar), deadline)
            .of_service(&self.claim.service);
        let keeper = Keeper {
            engine: self.engine,
            claim: self.claim,
            start: jar,
            deadline: self.deadline,
            kept: Mutex::default(),
        };
        let ended = self.converse(&mut running, &mut exchange, &keeper, deadline).await;
        let kept = keeper.kept.into_inner();
        if let Some(error) = kept.failed {
            return Err(error);
        }
        if let Some(jar) = kept.issued {
            self.pending = Some((self.claim.next_generation, Arc::new(jar)));
        }
        for (name, expires) in kept.expiries {
            self.expiry_updates.retain(|(known, _)| *known != name);
            self.expiry_updates.push((name, expires));
        }
        Ok(ended)
    }

    /// Answers what the call asks until it ends.
    async fn converse(
        &mut self,
        running: &mut RunningCall,
        exchange: &mut Exchange,
        keeper: &Keeper<'_>,
        deadline: Instant,
    ) -> Ended {
        loop {
            let event = match tokio::time::timeout_at(deadline, running.next()).await {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => return Ended::Lost(error.to_string()),
                Err(_) => {
                    return Ended::Lost(format!("the call took over {} s", limits::CALL_WALL.as_secs()));
                }
            };
            match event {
                CallEvent::Http(request) => {
                    self.requests += 1;
                    let egress = &self.engine.egress;
                    crash::point("request.sending");
                    let result = egress.send_keeping(exchange, request, |changes| keeper.keep(changes)).await;
                    crash::point("answer.delivering");
                    running.http_done(result.map(|exchanged| exchanged.response));
                }
                CallEvent::Reveal(key) => running.reveal_done(self.reveal(exchange, &key)),
                CallEvent::Log(level, line) => self.log(exchange, level, &line),
                CallEvent::Finished(Ok(answer)) => return Ended::Answered(self.redacted(exchange, answer)),
                CallEvent::Finished(Err(fault)) => return Ended::Faulted(clean_fault(exchange, fault)),
            }
        }
    }

    fn reveal(&self, exchange: &Exchange, key: &str) -> Result<Vec<u8>, String> {
        if !self.provider.reveal.iter().any(|granted| granted == key) {
            return Err(format!(
                "key `{key}` is not revealed to this plugin; hint: `keywheel plugin approve {}` shows what it asks for",
                self.claim.service
            ));
        }
        let found = exchange.jar.get(key).ok_or_else(|| format!("this credential has no key `{key}`"))?;
        Ok(found.secret.expose().to_vec())
    }

    fn log(&self, exchange: &Exchange, level: LogLevel, line: &str) {
        let line = one_line(&redact_text(exchange, line), LOG_LINE);
        let (service, credential) = (self.claim.service.as_str(), self.claim.token.credential_id.as_str());
        match level {
            LogLevel::Debug => tracing::debug!(target: "plugin", service, credential, "{line}"),
            LogLevel::Info => tracing::info!(target: "plugin", service, credential, "{line}"),
            LogLevel::Warn => tracing::warn!(target: "plugin", service, credential, "{line}"),
            LogLevel::Error => tracing::error!(target: "plugin", service, credential, "{line}"),
        }
    }

    /// A plugin's words end in reports and logs, so they are cleaned like a service's.
    fn redacted(&self, exchange: &Exchange, answer: Answer) -> Answer {
        let reason = |mut reason: Reason| {
            reason.message = clean(exchange, &reason.message);
            reason
        };
        let evidence = |mut evidence: crate::protocol::Evidence| {
            evidence.note = evidence.note.map(|note| clean(exchange, &note));
            evidence.identity = evidence.identity.map(|identity| clipped(&clean(exchange, &identity)));
            evidence
        };
        match answer {
            Answer::Validated(verdict) => Answer::Validated(match verdict {
                Verdict::Valid(found) => Verdict::Valid(evidence(found)),
                Verdict::Invalid(why) => Verdict::Invalid(reason(why)),
                Verdict::Unknown(why) => Verdict::Unknown(reason(why)),
                Verdict::NeedsHuman(why) => Verdict::NeedsHuman(reason(why)),
            }),
            Answer::Rotated(outcome) => Answer::Rotated(match outcome {
                Outcome::Rotated(found) => Outcome::Rotated(evidence(found)),
                Outcome::Unchanged(found) => Outcome::Unchanged(evidence(found)),
                Outcome::Invalid(why) => Outcome::Invalid(reason(why)),
                Outcome::Unknown(why) => Outcome::Unknown(reason(why)),
                Outcome::NeedsHuman(why) => Outcome::NeedsHuman(reason(why)),
            }),
            Answer::Described(manifest) => Answer::Described(manifest),
        }
    }
}

/// Stores what a service just issued, durably, before the next hop is asked or the plugin hears
/// of it.
struct Keeper<'a> {
    engine: &'a Rotation,
    claim: &'a Claim,
    /// What the call began with.
    start: Arc<Jar>,
    deadline: Instant,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Everything known by now, stored as the pending generation. None: nothing was issued.
    issued: Option<Jar>,
    expiries: Vec<(String, Option<Millis>)>,
    failed: Option<WriteError>,
}

impl Keeper<'_> {
    async fn keep(&self, changes: Vec<KeyChange>) -> Result<(), HttpError> {
        let mut kept = self.kept.lock().await;
        let fresh = changes.iter().any(|change| !matches!(change, KeyChange::Touched(_)));
        if fresh && kept.issued.is_none() {
            kept.issued = Some(Jar::clone(&self.start));
        }
        for change in changes {
            match change {
                KeyChange::Set(key) => kept.put(key),
                KeyChange::Deleted(name) => {
                    if let Some(jar) = &mut kept.issued {
                        jar.remove(&name);
                    }
                }
                // The same value lives longer: nothing can be lost, so it waits for the report.
                KeyChange::Touched(key) => {
                    kept.expiries.push((key.name.clone(), key.expires));
                    kept.put(key);
                }
            }
        }
        if !fresh {
            return Ok(());
        }
        crash::point("answer.received");
        let Some(jar) = &kept.issued else { return Ok(()) };
        let generation = self.claim.next_generation;
        let stored = self.store(generation, jar).await;
        stored.map_err(|error| {
            kept.failed = Some(error);
            HttpError::Other("the answer could not be stored".into())
        })
    }
}

impl Keeper<'_> {
    /// Holds on to what was issued for as long as the attempt may last: a disk that was full for
    /// a moment must not cost the only copy.
    async fn store(&self, generation: u32, jar: &Jar) -> Result<(), WriteError> {
        loop {
            let sealed = seal_jar(&self.engine.vault, &self.claim.token.credential_id, generation, jar)
                .map_err(|error| WriteError::Invalid(error.to_string()))?;
            match self.engine.writer.store_pending(&self.claim.token, generation, sealed).await {
                Err(WriteError::Unavailable { tries, reason }) if Instant::now() < self.deadline => {
                    tracing::error!(
                        credential = self.claim.token.credential_id,
                        tries,
                        reason,
                        "an issued secret can't be stored yet"
                    );
                    tokio::time::sleep(STORE_AGAIN).await;
                }
                other => return other,
            }
        }
    }
}

impl Kept {
    fn put(&mut self, key: Key) {
        if let Some(jar) = &mut self.issued {
            jar.put(key);
        }
    }
}

/// Writes the report, the monitor row and the generation change in one transaction.
async fn finish(
    engine: &Rotation,
    claim: &Claim,
    attempt: Option<Attempt<'_>>,
    conclusion: Conclusion,
) -> Result<Report, WriteError> {
    let Conclusion { verdict, change, jar, promoted } = conclusion;
    let finished = now();
    let standing = match &verdict {
        Verdict::Valid(_) => Standing::Alive,
        Verdict::Unknown(_) => Standing::Unclear,
        Verdict::Invalid(_) | Verdict::NeedsHuman(_) => Standing::Dead,
    };
    let failures = if standing == Standing::Alive { 0 } else { claim.consecutive_failures.saturating_add(1) };
    let empty = Vec::new();
    let updates = attempt.as_ref().map_or(&empty, |attempt| &attempt.expiry_updates);
    let expires = expiry(&verdict, &jar, updates, attempt.as_ref()).or_else(|| {
        // An unclear answer changes nothing of what was known before.
        if standing == Standing::Alive { None } else { claim.expires_at }
    });
    let (asked, message, identity) = match &verdict {
        Verdict::Valid(found) => (found.next, found.note.clone(), found.identity.clone()),
        Verdict::Invalid(why) | Verdict::Unknown(why) | Verdict::NeedsHuman(why) => {
            (why.retry_after, Some(why.message.clone()), None)
        }
    };
    let manifest = attempt.as_ref().map(|attempt| &attempt.provider.manifest);
    let interval = claim
        .validate_interval_override
        .or_else(|| attempt.as_ref().and_then(|attempt| attempt.provider.validate_interval))
        .or_else(|| manifest.map(|manifest| manifest.validate_interval))
        .unwrap_or(3_600);
    let limited = attempt.as_ref().and_then(|attempt| {
        engine.egress.limited_since(&claim.service, &attempt.resolved.origins, claim.started_at)
    });
    let trouble = match &verdict {
        Verdict::Invalid(_) | Verdict::NeedsHuman(_) => Trouble::Refused,
        _ if limited.is_some() => Trouble::Limited,
        _ if attempt.as_ref().is_some_and(|attempt| attempt.faulted) => Trouble::Fault,
        _ => Trouble::Unreachable,
    };
    let asked = asked.map(|seconds| Millis::from(seconds) * 1_000);
    let next = schedule::next(&Facts {
        now: finished,
        standing,
        trouble,
        action: claim.action,
        interval: Millis::from(interval) * 1_000,
        expires,
        issued: if promoted { finished } else { claim.rotated_at },
        max_age: claim
            .max_age_override
            .or_else(|| manifest.and_then(|manifest| manifest.max_age))
            .map(|age| Millis::from(age) * 1_000),
        can_rotate: attempt.as_ref().is_some_and(|attempt| !attempt.resolved.methods.is_empty()),
        consecutive_failures: failures,
        // A plugin may not have passed on what the service asked for.
        asked: match standing {
            Standing::Unclear => asked.max(limited.flatten().map(|asked| asked.min(LONGEST_ASKED))),
            Standing::Alive | Standing::Dead => asked,
        },
        idle_limit: claim
            .idle_limit_override
            .or_else(|| manifest.and_then(Manifest::idle_limit))
            .map(|limit| Millis::from(limit) * 1_000),
        quiet: &engine.quiet(&claim.service, &claim.quiet),
        phase: schedule::phase(&claim.token.credential_id),
        stale: attempt.as_ref().is_some_and(|attempt| attempt.is_stale(&jar, finished)),
        spread: spread(&claim.token.credential_id, claim.attempt_number),
    });
    let report = Report {
        cookie_id: claim.token.credential_id.clone(),
        profile_id: claim.profile_id.clone(),
        service: claim.service.clone(),
        validate_url: attempt
            .as_ref()
            .map(|attempt| attempt.resolved.validate_url.clone())
            .unwrap_or_default(),
        cookie_keys: jar.keys.iter().map(|key| (key.name.clone(), key.fingerprint.clone())).collect(),
        status: match &verdict {
            Verdict::Unknown(_) if attempt.as_ref().is_some_and(|attempt| attempt.faulted) => Status::Failed,
            verdict => decide::status(verdict),
        },
        message: message.map(|message| clipped(&message)),
        started_at: iso8601(claim.started_at),
        finished_at: iso8601(finished),
        attempt_number: claim.attempt_number,
        meta: meta(claim, attempt.as_ref(), &verdict, promoted, change),
    };
    let end = Finish {
        token: claim.token.clone(),
        report: report.clone(),
        verdict: verdict.as_str().to_owned(),
        monitor: MonitorUpdate {
            consecutive_failures: failures,
            expires_at: expires,
            next_due_at: Some(next.at),
            next_action: next.action,
            next_reason: next.why,
        },
        generations: change,
        expiry_updates: if promoted { Vec::new() } else { updates.clone() },
        identity,
    };
    engine.writer.finish(end).await?;
    crash::point("attempt.finished");
    let level_ok = standing == Standing::Alive;
    if level_ok {
        tracing::debug!(
            credential = report.cookie_id,
            service = report.service,
            attempt = report.attempt_number,
            rotated = promoted,
            "attempt succeeded"
        );
    } else {
        tracing::warn!(
            credential = report.cookie_id,
            service = report.service,
            attempt = report.attempt_number,
            verdict = verdict.as_str(),
            message = report.message,
            "attempt did not succeed"
        );
    }
    Ok(report)
}

fn meta(
    claim: &Claim,
    attempt: Option<&Attempt<'_>>,
    verdict: &Verdict,
    promoted: bool,
    change: GenerationChange,
) -> serde_json::Map<String, serde_json::Value> {
    let mut meta = serde_json::Map::new();
    meta.insert("verdict".into(), json!(verdict.as_str()));
    meta.insert("action".into(), json!(claim.action.as_str()));
    if promoted {
        meta.insert("rotated".into(), json!(true));
    }
    if let GenerationChange::Promote(generation) = change {
        meta.insert("generation".into(), json!(generation));
    }
    if let Some(attempt) = attempt {
        meta.insert("path".into(), json!(attempt.path));
        meta.insert("requests".into(), json!(attempt.requests));
        meta.insert("worker".into(), json!(attempt.worker));
        meta.insert("plugin".into(), json!(attempt.provider.digest));
        if claim.action == Action::Rotate
            && let Some(method) = &attempt.method
        {
            meta.insert("method".into(), json!(method.name));
            meta.insert("commitClass".into(), json!(method.commit_class.as_str()));
        }
    }
    meta
}

/// When the jar in force stops working: the plugin's word, or the first required key to go.
fn expiry(
    verdict: &Verdict,
    jar: &Jar,
    updates: &[(String, Option<Millis>)],
    attempt: Option<&Attempt<'_>>,
) -> Option<Millis> {
    if let Verdict::Valid(found) = verdict
        && let Some(expires) = found.expires
    {
        return Some(expires);
    }
    let keys = &attempt?.resolved.keys;
    let expires_of = |key: &Key| {
        updates.iter().find(|(name, _)| *name == key.name).map_or(key.expires, |(_, expires)| *expires)
    };
    jar.keys.iter().filter(|key| keys.iter().any(|spec| spec.name == key.name)).filter_map(expires_of).min()
}

fn clean(exchange: &Exchange, text: &str) -> String {
    redact_text(exchange, text).into_owned()
}

/// All of them: the worker of an escaped plugin says what it likes, and under any name.
fn clean_fault(exchange: &Exchange, fault: Fault) -> Fault {
    match fault {
        Fault::Guest(text) => Fault::Guest(clean(exchange, &text)),
        Fault::Trap(text) => Fault::Trap(clean(exchange, &text)),
        Fault::Limit(text) => Fault::Limit(clean(exchange, &text)),
        Fault::Load(text) => Fault::Load(clean(exchange, &text)),
    }
}

/// A report's message is one readable line, whoever wrote it, and so is the account's name.
fn clipped(message: &str) -> String {
    one_line(message, 500)
}

/// For logs and people: no line breaks that forge a second line, nothing that moves a cursor.
fn one_line(text: &str, longest: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(longest).collect();
    if text.chars().nth(longest).is_some() {
        line.push('…');
    }
    line
}

/// Evenly spread and the same on every host: FNV-1a over the id and the attempt.
fn spread(credential: &str, attempt: u32) -> u64 {
    credential
        .bytes()
        .chain(attempt.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Opens every key of a stored generation.
///
/// # Errors
/// Where a value was changed, moved or sealed with another master key.
pub fn open_jar(vault: &Vault, credential: &str, sealed: &SealedGeneration) -> Result<Jar, VaultError> {
    let open = |key: &SealedKey| {
        let place = Place { credential, generation: sealed.generation, key: &key.name };
        Ok(Key {
            name: key.name.clone(),
            secret: vault.open_sealed(place, &key.sealed)?,
            fingerprint: key.fingerprint.clone(),
            expires: key.expires,
            cookie: key.cookie.clone(),
        })
    };
    Ok(Jar { keys: sealed.keys.iter().map(open).collect::<Result<_, _>>()? })
}

/// Seals every key for the generation it is about to become.
///
/// # Errors
/// Where the system gives no random bytes.
pub fn seal_jar(
    vault: &Vault,
    credential: &str,
    generation: u32,
    jar: &Jar,
) -> Result<Vec<SealedKey>, VaultError> {
    let seal = |key: &Key| {
        let place = Place { credential, generation, key: &key.name };
        Ok(SealedKey {
            name: key.name.clone(),
            sealed: vault.seal(place, &key.secret)?,
            fingerprint: key.fingerprint.clone(),
            expires: key.expires,
            cookie: key.cookie.clone(),
        })
    };
    jar.keys.iter().map(seal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Secret;

    fn exchange() -> Exchange {
        let resolved = Resolved {
            validate_url: String::new(),
            keys: vec![],
            origins: vec![],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![],
        };
        let key = Key {
            name: "session".into(),
            secret: Secret::new("a-revealed-value"),
            fingerprint: String::new(),
            expires: None,
            cookie: None,
        };
        Exchange::new(Arc::new(resolved), Jar { keys: vec![key] }, Instant::now())
    }

    #[test]
    fn no_kind_of_fault_carries_a_secret_into_a_report() {
        // An escaped worker that was granted a reveal knows the value and picks the kind.
        for kind in [Fault::Guest, Fault::Trap, Fault::Limit, Fault::Load] {
            let fault = clean_fault(&exchange(), kind("over a-revealed-value".into()));
            assert!(fault.to_string().ends_with("over [redacted]"), "{fault}");
        }
    }

    #[test]
    fn what_a_plugin_says_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\r\nWARN forged\u{1b}[2J\u{9b}", 100), "a  WARN forged [2J ");
        assert_eq!(one_line("äöü", 3), "äöü");
        assert_eq!(one_line("äöüx", 3), "äöü…");
        assert_eq!(clipped(&"x".repeat(501)).chars().count(), 501);
    }
}
