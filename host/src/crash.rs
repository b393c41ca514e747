//! Named places at which a development build can be made to die as in a power cut, so that a
//! test can cut an attempt between any two of its steps. A leaf. A release build has none.
//!
//! `KEYWHEEL_CRASH_AT=receipt.stored` kills the process with SIGKILL when it comes by there;
//! with `KEYWHEEL_CRASH_ARMED_BY=FILE` only once that file exists.

/// Every place, in the order in which a rotation comes by. `begin`, `written` and `committed`
/// are the writer's: before the transaction, before its commit, and before anybody is told.
pub const POINTS: &[&str] = &[
    "claim.begin",
    "claim.written",
    "claim.committed",
    "attempt.claimed",
    "intent.begin",
    "intent.written",
    "intent.committed",
    "rotate.calling",
    "request.sending",
    "answer.received",
    "receipt.begin",
    "receipt.written",
    "receipt.committed",
    "answer.delivering",
    "rotate.ended",
    "validate.calling",
    "validate.ended",
    "finish.begin",
    "finish.written",
    "finish.committed",
    "attempt.finished",
];

/// Places outside of an attempt.
pub const HOUSEKEEPING: &[&str] = &[
    "prune.archived",
    "sink.delivering",
    "sink.delivered",
    "alert.noticed",
    "alert.sending",
    "alert.sent",
    "alert.marked",
    "join.made",
    "rekey.written",
    "rekey.stored",
];

/// Dies here if it was told to.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    static AT: OnceLock<Option<String>> = OnceLock::new();
    let at = AT.get_or_init(|| std::env::var("KEYWHEEL_CRASH_AT").ok());
    if at.as_deref() != Some(name) {
        return;
    }
    debug_assert!(POINTS.contains(&name) || HOUSEKEEPING.contains(&name), "`{name}` is no crash point");
    if let Some(file) = std::env::var_os("KEYWHEEL_CRASH_ARMED_BY")
        && !std::path::Path::new(&file).exists()
    {
        return;
    }
    // The kernel ends the process before this returns, or the test finds it alive.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}
