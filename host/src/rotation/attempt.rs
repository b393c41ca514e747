//! The shell of one attempt: drives `machine` from the claim to the conclusion, runs its calls
//! in the worker, sends their requests through the egress, stores what the service issued
//! before the plugin hears of it, and ends in exactly one report. It decides nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::Rotation;
use super::decide;
use super::machine::{self, Clock, Conclusion, Ended, Event, Machine, Receipt, Start};
use super::schedule::{self, Facts, Standing, Trouble};
use super::verdict;
use crate::crash;
use crate::credential::{Jar, Key, Millis, now};
use crate::db::late::Late;
use crate::db::writer::{Claim, Finish, GenerationChange, MonitorUpdate, WriteError};
use crate::db::{Action, SealedGeneration, SealedKey};
use crate::egress::{Exchange, Exchanged, KeyChange, Seen, redact_text};
use crate::limits;
use crate::protocol::{
    Answer, Call, Context, Fault, HttpError, HttpRequest, KeyState, LogLevel, Outcome, Reason, Verdict,
};
use crate::provider::{Manifest, Resolved, ResolvedMethod};
use crate::registry::ActiveProvider;
use crate::report::{Report, Status, iso8601};
pub use crate::sealing::{open_jar, seal_jar};
use crate::supervisor::{CallError, CallEvent, RunningCall};
use crate::telemetry::{Span, Trace};

/// Between two tries to store what was issued, each of which retries by itself.
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// A store in good health takes milliseconds, a slow disk some two hundred. Past this a secret is
/// written down at home as well: until it is somewhere, a `kill -9` is its end.
const AT_ONCE: Duration = Duration::from_millis(250);

/// A disk that hasn't taken a few kilobytes by then hangs; storing is tried meanwhile.
const SPILL_WALL: Duration = Duration::from_secs(10);

/// A `Retry-After` past a month is a mistake, or a way to be forgotten.
const LONGEST_ASKED: Millis = 30 * 86_400_000;

/// What of a plugin's log line is shown. A worker cuts at as many bytes already, unless its
/// plugin escaped.
const LOG_LINE: usize = 4 << 10;

pub struct Attempt<'a> {
    engine: &'a Rotation,
    claim: &'a Claim,
    trace: &'a Trace,
    provider: Arc<ActiveProvider>,
    resolved: Arc<Resolved>,
    method: Option<ResolvedMethod>,
    /// Locked for a moment at a time: answers reach it in the midst of a call.
    machine: Mutex<Machine>,
    began: Instant,
    deadline: Instant,
    requests: u32,
    worker: Option<String>,
}

/// Runs a claimed attempt and ends it in its report.
///
/// # Errors
/// Where something can't be written; the claim's journal row then leads to its recovery.
pub async fn run(engine: &Rotation, claim: Claim) -> Result<Arc<Report>, WriteError> {
    crash::point("attempt.claimed");
    let began = Instant::now();
    let trace = begin_trace(&claim);
    let report = run_to_report(engine, &claim, &trace).await?;
    let verdict = report.meta.get("verdict").and_then(serde_json::Value::as_str).unwrap_or_default();
    let rotated = report.meta.contains_key("rotated");
    engine.meter.attempt(&claim.service, claim.action.as_str(), verdict, rotated, began.elapsed());
    trace.end(verdict, rotated);
    Ok(report)
}

/// From the claim on, which took its transaction.
fn begin_trace(claim: &Claim) -> Trace {
    let (credential, action) = (&claim.token.credential_id, claim.action.as_str());
    let trace = Trace::begin(&claim.service, credential, action, claim.attempt_number, claim.started_at);
    trace.passed("claim", claim.started_at, now());
    trace
}

async fn run_to_report(engine: &Rotation, claim: &Claim, trace: &Trace) -> Result<Arc<Report>, WriteError> {
    match Attempt::prepare(engine, claim, trace) {
        Ok(mut attempt) => {
            let conclusion = attempt.conclude().await?;
            finish(engine, claim, trace, Some(attempt), conclusion).await
        }
        // Nothing was asked, so nothing is known of the service.
        Err(why) => finish(engine, claim, trace, None, unprepared(claim, why)).await,
    }
}

fn unprepared(claim: &Claim, why: String) -> Conclusion {
    Conclusion {
        verdict: Verdict::NeedsHuman(Reason { message: why, ..Reason::default() }),
        change: if claim.pending.is_some() { GenerationChange::Keep } else { GenerationChange::None },
        jar: Arc::default(),
        promoted: false,
        faulted: false,
        // As it was, or as the interrupted attempt leaves it: nobody looked.
        in_doubt: claim.in_doubt()
            || claim.interrupted.as_ref().is_some_and(|before| before.may_have_spent()),
        touched: Vec::new(),
        path: Vec::new(),
        answer: String::from("not asked"),
        requested: false,
    }
}

impl<'a> Attempt<'a> {
    fn prepare(engine: &'a Rotation, claim: &'a Claim, trace: &'a Trace) -> Result<Self, String> {
        let provider = engine.providers.get(&claim.service).ok_or_else(|| {
            format!(
                "no plugin serves `{}`; hint: put its .wasm or .toml file into the plugins folder",
                claim.service
            )
        })?;
        let resolved = engine
            .resolved
            .get(&provider, &claim.settings_json, &claim.private_hosts_json)
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
        let machine = Machine::new(Start {
            wanted: claim.action,
            forced: claim.forced,
            current_generation: claim.current.as_ref().map(|current| current.generation),
            current,
            pending,
            next_generation: claim.next_generation,
            interrupted: claim.interrupted.as_ref().map(|before| (before.phase, before.commit_class)),
            in_doubt: claim.in_doubt(),
            restored: claim.is_restored(),
            identity: claim.identity.clone(),
            resolved: Arc::clone(&resolved),
            method: method.clone(),
            picked: named.cloned(),
        });
        Ok(Self {
            engine,
            claim,
            trace,
            provider,
            resolved,
            method,
            machine: Mutex::new(machine),
            began: Instant::now(),
            deadline: Instant::now() + limits::ATTEMPT_WALL,
            requests: 0,
            worker: None,
        })
    }

    fn clock(&self) -> Clock {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Clock { wall: now(), elapsed: self.began.elapsed(), left }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(&self, event: Event) -> machine::Action {
        self.machine().on(event, self.clock())
    }

    /// Does what the machine says until it comes to a conclusion.
    async fn conclude(&mut self) -> Result<Conclusion, WriteError> {
        let mut event = Event::Begun;
        loop {
            let judging = matches!(event, Event::CallEnded(..)).then(now);
            event = match self.on(event) {
                machine::Action::StoreIntent { method, from } => {
                    let _step = self.trace.step("intent");
                    let (writer, token) = (&self.engine.writer, &self.claim.token);
                    writer.journal_rotation(token, &method.name, method.commit_class, from).await?;
                    Event::IntentStored
                }
                machine::Action::CallRotate { method, jar } => {
                    crash::point("rotate.calling");
                    let (ended, seen) = self.call(Call::Rotate(self.context(&jar), method), jar).await?;
                    crash::point("rotate.ended");
                    Event::CallEnded(Box::new(ended), Box::new(seen))
                }
                machine::Action::CallValidate { jar } => {
                    crash::point("validate.calling");
                    let (ended, seen) = self.call(Call::Validate(self.context(&jar)), jar).await?;
                    crash::point("validate.ended");
                    Event::CallEnded(Box::new(ended), Box::new(seen))
                }
                machine::Action::Wait(pause) => {
                    tokio::time::sleep(pause).await;
                    Event::Waited
                }
                machine::Action::Finish(conclusion) => {
                    self.trace.passed("verdict", judging.unwrap_or_else(now), now());
                    return Ok(*conclusion);
                }
                // Both belong to the midst of a call.
                machine::Action::StoreReceipt(_) | machine::Action::GoOn => {
                    return Err(WriteError::Invalid(String::from("the attempt lost its place")));
                }
            };
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
    async fn call(&mut self, call: Call, jar: Arc<Jar>) -> Result<(Ended, Seen), WriteError> {
        let supervisor = self.engine.supervisor.clone();
        let step = self.trace.step(match call {
            Call::Rotate(..) => "call rotate",
            _ => "call validate",
        });
        // Waiting for a place on a busy worker is no part of the attempt: only its own time may
        // end it. The wait is bounded by the deadlines of those before it.
        let asked = Instant::now();
        let started = {
            let _step = step.step("worker.place");
            supervisor.call(&self.claim.service, call).await
        };
        self.deadline += asked.elapsed();
        let deadline = self.deadline.min(Instant::now() + limits::CALL_WALL);
        let mut running = match started {
            Ok(running) => running,
            Err(error @ (CallError::Parked { .. } | CallError::NoPlugin(_) | CallError::Unfit(_))) => {
                return Ok((Ended::Faulted(Fault::Load(error.to_string())), Seen::default()));
            }
            Err(error) => return Ok((Ended::Lost(error.to_string()), Seen::default())),
        };
        self.worker = Some(running.worker_id().to_owned());
        let mut exchange = Exchange::new(Arc::clone(&self.resolved), Jar::clone(&jar), deadline)
            .of_service(&self.claim.service);
        let ended = self.converse(&mut running, &mut exchange, deadline, &step).await?;
        let used = running.used();
        step.of_worker(Duration::from_micros(used.instantiate_us), Duration::from_micros(used.total_us));
        self.requests += exchange.seen.requests;
        Ok((ended, exchange.seen))
    }

    /// Answers what the call asks until it ends.
    async fn converse(
        &self,
        running: &mut RunningCall,
        exchange: &mut Exchange,
        deadline: Instant,
        step: &Span,
    ) -> Result<Ended, WriteError> {
        // One timer for the whole call.
        let mut over = std::pin::pin!(tokio::time::sleep_until(deadline));
        loop {
            let event = tokio::select! {
                biased;
                event = running.next() => match event {
                    Ok(event) => event,
                    Err(error) => return Ok(Ended::Lost(error.to_string())),
                },
                () = &mut over => {
                    return Ok(Ended::Lost(format!("the call took over {} s", limits::CALL_WALL.as_secs())));
                }
            };
            match event {
                CallEvent::Http(request) => {
                    if !self.engine.owns(&self.claim.token).await? {
                        return Err(WriteError::Fenced {
                            credential_id: self.claim.token.credential_id.clone(),
                            fence: self.claim.token.fence,
                        });
                    }
                    let may_send = self.machine().may_send(self.clock());
                    if let Err(why) = may_send {
                        running.http_done(Err(HttpError::Other(why.to_owned())));
                        continue;
                    }
                    crash::point("request.sending");
                    let unwritten = Mutex::new(None);
                    let result = self.send(exchange, request, step, &unwritten).await;
                    if let Some(error) = unwritten.into_inner().unwrap_or_else(PoisonError::into_inner) {
                        return Err(error);
                    }
                    crash::point("answer.delivering");
                    running.http_done(result.map(|exchanged| exchanged.response));
                }
                CallEvent::Reveal(key) => {
                    let revealed = self.reveal(exchange, &key);
                    if revealed.is_ok() {
                        // What the plugin makes of it, the host can't see in its requests.
                        exchange.seen.used.insert(key);
                    }
                    running.reveal_done(revealed);
                }
                CallEvent::Log(level, line) => self.log(exchange, level, &line),
                CallEvent::Finished(Ok(answer)) => {
                    return Ok(Ended::Answered(self.redacted(exchange, answer)));
                }
                CallEvent::Finished(Err(fault)) => return Ok(Ended::Faulted(clean_fault(exchange, fault))),
            }
        }
    }

    /// Sends one request of the call, drawn as a step of it.
    async fn send(
        &self,
        exchange: &mut Exchange,
        request: HttpRequest,
        step: &Span,
        unwritten: &Mutex<Option<WriteError>>,
    ) -> Result<Exchanged, HttpError> {
        let mut step = step.step("egress.request");
        step.text("http.request.method", known_method(&request.method));
        let keep = |changes| self.keep(changes, unwritten, &step);
        let result = self.engine.egress.send_keeping(exchange, request, keep).await;
        match &result {
            Ok(done) => step.number("http.response.status_code", done.response.status.into()),
            Err(error) => step.failed(kind_of(error)),
        }
        result
    }

    /// Makes what a service just issued durable, before the next hop is asked or the plugin
    /// hears of it.
    async fn keep(
        &self,
        changes: Vec<KeyChange>,
        unwritten: &Mutex<Option<WriteError>>,
        step: &Span,
    ) -> Result<(), HttpError> {
        let machine::Action::StoreReceipt(receipt) = self.on(Event::Issued(changes)) else {
            return Ok(());
        };
        let mut step = step.step("capture.store");
        step.number("keywheel.generation", receipt.generation);
        crash::point("answer.received");
        match self.store(&receipt).await {
            Ok(()) => {
                self.on(Event::ReceiptStored);
                Ok(())
            }
            Err(error) => {
                *unwritten.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(HttpError::Other("the answer could not be stored".into()))
            }
        }
    }

    /// Holds on to what was issued for as long as the attempt may last: a disk that was full for
    /// a moment must not cost the only copy. What isn't stored at once lies at home meanwhile, and
    /// stays there where it can't be stored at all, for the next look to bring it in.
    async fn store(&self, receipt: &Receipt) -> Result<(), WriteError> {
        let issued_at = now();
        let mut spilled = None;
        loop {
            let sealed = self.seal(receipt)?;
            let (writer, token) = (&self.engine.writer, &self.claim.token);
            let mut storing = std::pin::pin!(writer.store_pending(token, receipt.generation, sealed));
            let stored = match tokio::time::timeout(AT_ONCE, &mut storing).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    if spilled.is_none() {
                        spilled = self.spill(receipt, issued_at).await?;
                    }
                    Err(error)
                }
                Err(_) if spilled.is_some() => storing.await,
                Err(_) => {
                    let (spill, stored) = tokio::join!(self.spill(receipt, issued_at), storing);
                    spilled = spill?;
                    stored
                }
            };
            let Err(error) = stored else {
                if let Some(late) = &spilled {
                    self.engine.late.forget(late);
                }
                return Ok(());
            };
            // Refused for good it must at least be on a disk before it is let go.
            let goes_on = matches!(error, WriteError::Unavailable { .. }) || spilled.is_none();
            if !goes_on || Instant::now() >= self.deadline {
                return Err(error);
            }
            tracing::error!(
                credential = self.claim.token.credential_id,
                %error,
                "an issued secret can't be stored yet"
            );
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }

    fn seal(&self, receipt: &Receipt) -> Result<Vec<SealedKey>, WriteError> {
        seal_jar(&self.engine.vault, &self.claim.token.credential_id, receipt.generation, &receipt.jar)
            .map_err(|error| WriteError::Invalid(error.to_string()))
    }

    /// Writes what was issued to this home's disk. None: it can't be.
    async fn spill(&self, receipt: &Receipt, issued_at: Millis) -> Result<Option<Late>, WriteError> {
        let late = Late {
            credential_row: self.claim.token.credential_row,
            credential_id: self.claim.token.credential_id.clone(),
            service: self.claim.service.clone(),
            attempt_number: self.claim.attempt_number,
            fence: self.claim.token.fence,
            from_generation: receipt.from,
            generation: receipt.generation,
            amends: receipt.amends,
            commit_class: self.method.as_ref().map(|method| method.commit_class),
            issued_at,
            keys: self.seal(receipt)?,
        };
        let why = match tokio::time::timeout(SPILL_WALL, self.engine.late.keep(&late)).await {
            Ok(Ok(())) => return Ok(Some(late)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it has not answered for {} s", SPILL_WALL.as_secs()),
        };
        tracing::error!(
            severity = "critical",
            credential = late.credential_id,
            why,
            "an issued secret is in memory alone: neither the store nor this home's disk takes it"
        );
        Ok(None)
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

/// Writes the report, the monitor row and the generation change in one transaction.
async fn finish(
    engine: &Rotation,
    claim: &Claim,
    trace: &Trace,
    attempt: Option<Attempt<'_>>,
    conclusion: Conclusion,
) -> Result<Arc<Report>, WriteError> {
    let Conclusion { verdict, change, jar, promoted, faulted, in_doubt, touched, path, answer, requested } =
        conclusion;
    let finished = now();
    let standing = match &verdict {
        Verdict::Valid(_) => Standing::Alive,
        Verdict::Unknown(_) => Standing::Unclear,
        Verdict::Invalid(_) | Verdict::NeedsHuman(_) => Standing::Dead,
    };
    let failures = if standing == Standing::Alive { 0 } else { claim.consecutive_failures.saturating_add(1) };
    let expires = expiry(&verdict, &jar, &touched, attempt.as_ref()).or_else(|| {
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
        _ if faulted => Trouble::Fault,
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
        stale: attempt.as_ref().is_some_and(|attempt| {
            let first = !promoted && claim.current.as_ref().is_some_and(|current| current.generation == 1);
            machine::is_stale(&attempt.resolved, &jar, first && !requested, finished)
                || matches!(&verdict, Verdict::Unknown(why) if machine::wants_rotation(why))
        }),
        spread: spread(&claim.token.credential_id, claim.attempt_number),
    });
    let report = Arc::new(Report {
        cookie_id: claim.token.credential_id.clone(),
        profile_id: claim.profile_id.clone(),
        service: claim.service.clone(),
        validate_url: attempt
            .as_ref()
            .map(|attempt| attempt.resolved.validate_url.clone())
            .unwrap_or_default(),
        cookie_keys: jar.keys.iter().map(|key| (key.name.clone(), key.fingerprint.clone())).collect(),
        status: match &verdict {
            Verdict::Unknown(_) if faulted => Status::Failed,
            verdict => verdict::status(verdict),
        },
        message: message.map(|message| clipped(&message)),
        started_at: iso8601(claim.started_at),
        finished_at: iso8601(finished),
        attempt_number: claim.attempt_number,
        meta: meta(claim, attempt.as_ref(), &verdict, promoted, change, in_doubt, &path, &answer),
    });
    let end = Finish {
        token: claim.token.clone(),
        report: Arc::clone(&report),
        verdict: verdict.as_str().to_owned(),
        monitor: MonitorUpdate {
            consecutive_failures: failures,
            expires_at: expires,
            next_due_at: Some(next.at),
            next_action: next.action,
            next_reason: next.why,
            asked_until: asked.filter(|_| standing != Standing::Alive).map(|asked| finished + asked),
        },
        generations: change,
        expiry_updates: touched,
        identity,
        in_doubt: (in_doubt || claim.doubtful_generation.is_some()).then_some(in_doubt),
    };
    {
        let _step = trace.step("finish");
        engine.writer.finish(end).await?;
    }
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

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one JSON object; a struct for one call would only rename it"
)]
fn meta(
    claim: &Claim,
    attempt: Option<&Attempt<'_>>,
    verdict: &Verdict,
    promoted: bool,
    change: GenerationChange,
    in_doubt: bool,
    path: &[&'static str],
    answer: &str,
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
    if in_doubt {
        meta.insert("inDoubt".into(), json!(true));
    }
    if let Some(before) = &claim.interrupted {
        meta.insert("interruptedIn".into(), json!(before.phase.as_str()));
    }
    if let Some(attempt) = attempt {
        meta.insert("path".into(), json!(path));
        meta.insert("answer".into(), json!(answer));
        meta.insert("requests".into(), json!(attempt.requests));
        meta.insert("worker".into(), json!(attempt.worker));
        meta.insert("plugin".into(), json!(attempt.provider.digest));
        if claim.action == Action::Rotate
            && let Some(method) = &attempt.method
        {
            meta.insert("method".into(), json!(method.name));
            meta.insert("commitClass".into(), json!(method.commit_class.as_str()));
            if decide::waits_for_consumers(method.commit_class) && !claim.unacknowledged.is_empty() {
                meta.insert("unacknowledged".into(), json!(claim.unacknowledged));
            }
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

/// A plugin may call its method anything.
fn known_method(method: &str) -> &'static str {
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(method))
        .unwrap_or("_OTHER")
}

/// What was in a request's way, without the words, which may be a service's.
const fn kind_of(error: &HttpError) -> &'static str {
    match error {
        HttpError::Denied(_) => "denied",
        HttpError::Dns(_) => "dns",
        HttpError::Connect(_) => "connect",
        HttpError::Tls(_) => "tls",
        HttpError::Timeout => "timeout",
        HttpError::TooLarge(_) => "too large",
        HttpError::Protocol(_) => "protocol",
        HttpError::Budget(_) => "budget",
        HttpError::Other(_) => "other",
    }
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
