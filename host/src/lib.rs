//! Keywheel: keeps the sessions of many services alive.
//!
//! The flow, in module order: `registry` turns a folder of plugins into the set that should
//! run, `supervisor` runs a `worker` process for each, `rotation` decides what is due and
//! drives each attempt, `egress` makes its HTTP requests, `vault` seals what the services
//! issue, and `db` keeps it with one writer. `docs/architecture.md` has the invariants.

pub mod credential;
pub mod limits;
pub mod protocol;
pub mod provider;
pub mod report;
pub mod supervisor;
pub mod worker;
