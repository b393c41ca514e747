//! The end-to-end tests: the real binary, real plugins, real processes and real peers, on
//! loopback alone. What a unit can show is tested beside its code; here stands what only the
//! whole can show. Each test has a home of its own, so all of them run at once.

mod alerts;
mod api;
mod architecture;
mod author;
mod backup;
mod bench_gate;
mod catalogue;
mod cli;
mod compatibility;
mod conformance;
mod credentials;
mod dashboard;
mod docs;
mod egress;
mod external_workers;
mod faults;
mod first_hour;
mod fleet;
mod harness;
mod home;
mod host_keys;
mod hostile;
mod isolation;
mod languages;
mod lifecycle;
mod machines;
mod metrics;
mod newcomer;
mod oauth_services;
mod operator;
mod peers;
mod permissions;
mod plugins;
mod postgres_proxy;
mod postgres_server;
mod power_cut;
mod recovery;
mod reload;
mod retention;
mod running;
mod scaling;
mod schedule;
mod secrets;
mod servers;
mod services;
mod soak;
mod store_faults;
mod templates;
mod threat_model;
mod token_services;
#[cfg(feature = "otel")]
mod traces;
mod using;
