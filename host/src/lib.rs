//! Keywheel: keeps the sessions of many services alive.
//!
//! The flow, in module order: `registry` turns a folder of plugins into the set that should
//! run, `supervisor` runs a `worker` process for each, `rotation` decides what is due and
//! drives each attempt, `egress` makes its HTTP requests, `vault` seals what the services
//! issue, and `db` keeps it with one writer. `alerts` tells what is in trouble. `docs/architecture.md` has the invariants.

pub mod alerts;
pub mod backup;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod crash;
pub mod credential;
pub mod daemon;
pub mod db;
pub mod egress;
pub mod external;
pub mod fleet;
pub mod formats;
pub mod hook;
pub mod keys;
pub mod kit;
pub mod limits;
pub mod meter;
pub mod notify_systemd;
pub mod protocol;
pub mod provider;
pub mod quiet;
pub mod rate;
pub mod registry;
pub mod reload;
pub mod report;
pub mod retention;
pub mod rotation;
pub mod sealing;
pub mod sinks;
pub mod supervisor;
pub mod telemetry;
pub mod token;
pub mod vault;
pub mod web;
pub mod webhook_signature;
pub mod worker;

/// An attempt makes hundreds of small allocations on whichever thread runs it; glibc's allocator
/// took a fifth of the host's time there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
