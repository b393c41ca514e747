//! `/healthz`: the process lives and its event loop turns. `/readyz`: it can do its work, or what
//! keeps it from that. Both answer without a token, so neither names a service, a credential or a
//! path.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::Shared;
use super::answer::answer;
use crate::control::{Operation, Outcome};

/// Between two beats of the event loop.
const BEAT: Duration = Duration::from_secs(1);

/// So late a beat means that the loop is stuck, and not that the machine is busy.
const STUCK: Duration = Duration::from_secs(10);

/// A write is news for as long; then one is made.
const WRITTEN_LATELY: Duration = Duration::from_secs(60);

/// How long a look at the parts may take.
const ANSWER: Duration = Duration::from_secs(3);

/// The scheduler looks every 30 s at the least.
const LOOKED_LATELY: u64 = 120_000;

pub fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// What was last seen of the loop and the writer.
pub struct Pulse {
    beat: Mutex<Instant>,
    /// The count of commits, and when it was another one than before.
    written: Mutex<(u64, Instant)>,
}

impl Default for Pulse {
    fn default() -> Self {
        let now = Instant::now();
        // The home was opened, and its marker written, a moment ago.
        Self { beat: Mutex::new(now), written: Mutex::new((0, now)) }
    }
}

fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beats until the daemon stops.
pub async fn beat(shared: &Shared) {
    let mut stop = shared.stop.clone();
    loop {
        *hold(&shared.pulse.beat) = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(BEAT) => {}
            // An error means the sender is gone, which ends the daemon just as well.
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let late = hold(&shared.pulse.beat).elapsed();
    // While it stops nothing beats any more, and it is alive all the same.
    match late > STUCK && !*shared.stop.borrow() {
        true => answer(StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "stuck" })),
        false => answer(StatusCode::OK, json!({ "status": "alive" })),
    }
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let reasons = reasons(&look(&shared).await);
    match reasons.is_empty() {
        true => answer(StatusCode::OK, json!({ "status": "ready", "reasons": [] })),
        false => {
            let body = json!({ "status": "not-ready", "reasons": reasons });
            answer(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

/// What readiness is judged by.
#[derive(Debug, Clone)]
struct Facts {
    stopping: bool,
    writable: bool,
    /// The daemon's parts said how they are, in time.
    answered: bool,
    /// Milliseconds since it was looked for what is due; None: not yet.
    looked_ago: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Reason {
    code: &'static str,
    message: &'static str,
}

/// Pure.
fn reasons(facts: &Facts) -> Vec<Reason> {
    let looked = facts.looked_ago.is_some_and(|ago| ago <= LOOKED_LATELY);
    let mut all = Vec::new();
    let mut unless = |good: bool, code, message| {
        if !good {
            all.push(Reason { code, message });
        }
    };
    unless(!facts.stopping, "stopping", "the daemon is stopping");
    unless(facts.writable, "database", "the database can't be written; hint: the log says why");
    unless(facts.answered, "plugins", "the daemon does not say how its plugins are");
    // Who doesn't answer didn't say when it looked either.
    let message = "nobody looks for what is due; hint: the log says why";
    unless(looked || !facts.answered, "scheduler", message);
    all
}

async fn look(shared: &Shared) -> Facts {
    let vitals = tokio::time::timeout(ANSWER, (shared.command)(Operation::Vitals)).await;
    let vitals = match vitals {
        Ok(Ok(Outcome::Vitals(vitals))) => Some(vitals),
        _ => None,
    };
    let writable = is_writable(shared).await;
    Facts {
        stopping: *shared.stop.borrow(),
        writable,
        answered: vitals.is_some(),
        looked_ago: vitals.and_then(|vitals| vitals.turned),
    }
}

async fn is_writable(shared: &Shared) -> bool {
    let progress = shared.writer.progress().borrow().clone();
    // Where the last write failed the next one tells, also while nobody else writes.
    if progress.failing.is_none() {
        let mut written = hold(&shared.pulse.written);
        if written.0 != progress.commits {
            *written = (progress.commits, Instant::now());
        }
        if written.1.elapsed() < WRITTEN_LATELY {
            return true;
        }
    }
    matches!(tokio::time::timeout(ANSWER, shared.writer.prove_writable()).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_host_from_its_work_is_named_and_nothing_else_is() {
        let good = Facts { stopping: false, writable: true, answered: true, looked_ago: Some(5) };
        for (facts, expected) in [
            (good.clone(), &[][..]),
            (Facts { looked_ago: Some(LOOKED_LATELY), ..good.clone() }, &[]),
            (Facts { looked_ago: Some(LOOKED_LATELY + 1), ..good.clone() }, &["scheduler"]),
            (Facts { looked_ago: None, ..good.clone() }, &["scheduler"]),
            (Facts { writable: false, ..good.clone() }, &["database"]),
            (Facts { answered: false, looked_ago: None, ..good.clone() }, &["plugins"]),
            (Facts { stopping: true, writable: false, ..good }, &["stopping", "database"]),
        ] {
            let codes: Vec<_> = reasons(&facts).iter().map(|reason| reason.code).collect();
            assert_eq!(codes, expected, "{facts:?}");
        }
    }
}
