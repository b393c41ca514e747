//! Workers: one process for each service with work, behind which walls it runs and what it takes;
//! and the external ones, by what they said of themselves.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};

use super::super::Shared;
use super::look::{Page, Place, facts, href, seconds, time};
use super::session::Signed;
use super::words::count;
use super::{Asked, NoPage, Shown, said};
use crate::control::{Operation, Outcome};
use crate::credential::{Millis, now};
use crate::db::hosts::{HostRow, HostState};
use crate::db::queries::ExternalWorkerRow;
use crate::external::Presence;
use crate::supervisor::WorkerStatus;

/// How often the page looks by itself: memory changes without the database.
const EVERY_SECONDS: u32 = 5;

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let at = now();
    let (external, hosts) =
        shared.pages.read(move |reader| Ok((reader.external_workers(at)?, reader.hosts(at)?))).await?;
    let (workers, in_flight) = match (shared.command)(Operation::Status).await {
        Ok(Outcome::Status { workers, in_flight, .. }) => (workers, in_flight),
        Ok(_) => Default::default(),
        Err(refusal) => return Err(NoPage::unreadable(&refusal)),
    };
    let running = workers.iter().filter(|worker| worker.state == "running").count() as u64;
    let body = html! {
        div #workers data-live data-every=(EVERY_SECONDS) {
            h1 { "Workers" }
            p.lead {
                (count(running, "worker runs", "workers run")) "; "
                (count(in_flight as u64, "attempt is", "attempts are")) " under way."
            }
            @if workers.is_empty() { div.empty { p { "No plugin is active." } } }
            div.grid { @for worker in &workers { (card(worker)) } }
            @if !external.is_empty() { (external_workers(&external, at)) }
            // Of one alone everything is on these pages anyway.
            @if hosts.len() > 1 { (of_hosts(&hosts, at)) }
        }
    };
    Ok(Page {
        signed: &signed,
        title: "Workers",
        place: Place::Workers,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn card(worker: &WorkerStatus) -> Markup {
    let (class, word) = match worker.state.as_str() {
        "running" => ("sound", "running"),
        "parked" => ("person", "parked"),
        other => ("paused", other),
    };
    let missing: Vec<String> = worker.layers.iter().filter_map(|layer| layer.missing()).collect();
    html! {
        section.card id={ "worker-" (worker.service) } aria-labelledby={ "worker-" (worker.service) "-title" } {
            div.title { h2 #{ "worker-" (worker.service) "-title" } { (worker.service) } span class={ "badge " (class) } { (word) } }
            (facts(&[
                ("Process", html! { @match worker.pid { Some(pid) => (pid), None => span.faint { "none" } } }),
                ("Memory", html! {
                    @match worker.pid.and_then(resident) {
                        Some(kib) => { (format!("{:.1} MiB", kib as f64 / 1_024.0)) },
                        None => span.faint { "–" },
                    }
                }),
                ("In flight", html! { (worker.in_flight) }),
                ("Starts", html! { (worker.starts) }),
                ("Crashes", html! { (worker.crashes) }),
            ]))
            @if let Some(end) = &worker.last_end { p.under { "Last end: " bdi { (end) } } }
            @if worker.layers.is_empty() {
                p.under { "Its walls are shown while it runs." }
            } @else {
                details {
                    summary {
                        @if missing.is_empty() { "All " (worker.layers.len()) " layers of the sandbox" }
                        @else { strong { (count(missing.len() as u64, "layer is", "layers are")) " missing" } " of " (worker.layers.len()) }
                    }
                    ul.layers {
                        @for layer in &worker.layers {
                            @match layer.missing() {
                                None => li { (layer.name) },
                                Some(why) => li.missing { (why) },
                            }
                        }
                    }
                }
            }
            @if worker.state == "parked" {
                a.button href=(href("/dashboard/confirm", &[("do", "unpark"), ("service", &worker.service)])) { "Let it run again" }
            }
        }
    }
}

/// What a process has in memory, in KiB, as the kernel says.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn of_hosts(hosts: &[HostRow], now: Millis) -> Markup {
    html! {
        section aria-labelledby="hosts-title" {
            h2 #hosts-title { "Hosts" }
            table.plain.stacked {
                caption.unseen { "Hosts that share the store" }
                thead { tr {
                    th scope="col" { "Host" } th scope="col" { "State" } th scope="col" { "Last heard of" }
                    th scope="col" { "Attempts" } th scope="col" { "Duties" } th scope="col" { "Version" }
                } }
                tbody {
                    @for host in hosts {
                        @let class = match host.state {
                            HostState::Running => "sound",
                            HostState::Lost => "failing",
                            HostState::Stopped => "paused",
                        };
                        tr {
                            th scope="row" {
                                bdi { (host.name) }
                                @for (label, value) in &host.labels { span.under { (label) "=" (value) } }
                            }
                            td data-name="State" { span class={ "badge " (class) } { (host.state.as_str()) } }
                            td data-name="Last heard of" { (time(host.last_seen_at, now)) }
                            td data-name="Attempts" {
                                (host.open_attempts)
                                @if host.lapsed > 0 { span.under { (host.lapsed) " past their lease" } }
                            }
                            td data-name="Duties" { (host.duties.join(", ")) }
                            td data-name="Version" { (host.version) }
                        }
                    }
                }
            }
        }
    }
}

fn external_workers(of: &[ExternalWorkerRow], now: Millis) -> Markup {
    html! {
        section aria-labelledby="external-title" {
            h2 #external-title { "External workers" }
            table.plain.stacked {
                caption.unseen { "External workers" }
                thead { tr {
                    th scope="col" { "Worker" } th scope="col" { "State" } th scope="col" { "Last heard of" }
                    th scope="col" { "Expected every" } th scope="col" { "Process" } th scope="col" { "Token" }
                } }
                tbody {
                    @for worker in of {
                        @let class = if worker.presence == Presence::Silent { "failing" } else { "sound" };
                        tr {
                            th scope="row" { bdi { (worker.worker_id) } span.under { (worker.service) } }
                            td data-name="State" { span class={ "badge " (class) } { (worker.presence.as_str()) } }
                            td data-name="Last heard of" { (time(worker.last_seen_at, now)) }
                            td data-name="Expected every" { (seconds(worker.interval_seconds)) }
                            td data-name="Process" { (worker.pid) }
                            td data-name="Token" { bdi { (worker.token_name) } }
                        }
                    }
                }
            }
        }
    }
}
