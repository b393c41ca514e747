//! One credential: how it stands in words, what comes next and why, its generations, and what its
//! attempts did, each one click from its evidence.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};
use serde_json::Value;

use super::super::Shared;
use super::look::{self, Item, Page, Place, facts, href, report_href, time, time_or};
use super::session::Signed;
use super::words::{self, Standing};
use super::{Asked, NoPage, Shown, said};
use crate::credential::{Millis, now};
use crate::db::queries::{CredentialRow, GenerationRow, ProviderRow, ReportFilter, ReportRow};
use crate::db::views::Beat;
use crate::report::parse_iso8601;

/// Attempts on a page, and in the larger row of bars.
const ATTEMPTS: u32 = 25;
const BEATS: u32 = 60;

struct Seen {
    item: Item,
    generations: Vec<GenerationRow>,
    reports: Vec<ReportRow>,
    provider: Option<ProviderRow>,
}

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let id = asked.get("id").cloned().unwrap_or_default();
    let before = asked.get("before").and_then(|id| id.parse().ok());
    let (wanted, at) = (id.clone(), now());
    let seen = shared
        .pages
        .read(move |reader| {
            let Some(row) = reader.credential(&wanted)? else { return Ok(None) };
            let provider = reader.provider(&row.service)?;
            let rotates = provider.as_ref().is_some_and(|provider| !provider.manifest.methods.is_empty());
            let filter = ReportFilter {
                credential_id: Some(wanted.clone()),
                before_id: before,
                limit: ATTEMPTS + 1,
                ..ReportFilter::default()
            };
            Ok(Some(Seen {
                item: Item {
                    standing: Standing::of(&row, rotates, at),
                    beats: reader.beats(&wanted, BEATS)?,
                    row,
                },
                generations: reader.generations(&wanted)?,
                reports: reader.reports(&filter)?,
                provider,
            }))
        })
        .await?;
    let Some(seen) = seen else {
        return Err(NoPage::not_found(format!("There is no credential {id:?}; it may have been removed.")));
    };
    let body = seen.body(before.is_some(), at);
    Ok(Page {
        signed: &signed,
        title: &id,
        place: Place::Elsewhere,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

impl Seen {
    fn body(&self, paged: bool, now: Millis) -> Markup {
        let Item { row, standing, beats } = &self.item;
        html! {
            nav.crumbs aria-label="Breadcrumb" {
                a href="/dashboard" { "Overview" } " / "
                a href=(href("/dashboard", &[("service", &row.service)])) { (row.service) }
            }
            div #head data-live {
                div.title {
                    h1 { bdi { (row.credential_id) } }
                    (look::badge(*standing))
                    @if row.open_attempt.is_some() { span.badge.running { "attempt under way" } }
                }
                p.lead data-headline { (words::sentence(row, *standing, now)) }
                @if let Some(message) = row.monitor.last_message.as_ref().filter(|_| *standing <= Standing::Failing) {
                    blockquote.message { bdi { (message) } }
                }
                @if *standing == Standing::Person && !row.external {
                    pre.command tabindex="0" aria-label="The command that imports fresh secrets" {
                        code { "keywheel credential import " (row.credential_id) " FILE" }
                    }
                }
            }
            div.columns {
                div {
                    section aria-labelledby="state-title" {
                        h2 #state-title { "State" }
                        div #state data-live { (state(row, now)) }
                    }
                    section aria-labelledby="attempts-title" {
                        h2 #attempts-title { "Attempts" }
                        div #attempts data-live {
                            (bars(beats))
                            (timeline(&self.reports, &row.credential_id, paged, now))
                        }
                    }
                }
                div.side {
                    section aria-labelledby="actions-title" {
                        h2 #actions-title { "Actions" }
                        div #actions data-live { (actions(row)) }
                    }
                    section aria-labelledby="generations-title" {
                        h2 #generations-title { "Generations" }
                        div #generations data-live { (generations(row, &self.generations, now)) }
                    }
                    section aria-labelledby="settings-title" {
                        h2 #settings-title { "Settings and schedule" }
                        div #settings data-live { (settings(row, self.provider.as_ref())) }
                    }
                }
            }
        }
    }
}

fn state(row: &CredentialRow, now: Millis) -> Markup {
    let monitor = &row.monitor;
    let mut of: Vec<(&str, Markup)> = vec![
        (
            "Next",
            html! {
                (look::next_action(row, now))
                @if let Some(reason) = &monitor.next_reason { span.under { bdi { (reason) } } }
            },
        ),
        ("Last attempt", time_or(monitor.last_attempt_at, now, "none yet")),
        ("Last success", time_or(monitor.last_success_at, now, "never")),
    ];
    if monitor.consecutive_failures > 0 {
        of.push(("Failures in a row", html! { (monitor.consecutive_failures) }));
    }
    of.push(("Expires", time_or(monitor.expires_at, now, "not known")));
    if let Some(until) = monitor.asked_until.filter(|until| *until > now) {
        of.push(("Left alone until", html! { (time(until, now)) span.under { "the service asked for it" } }));
    }
    if let Some(open) = &row.open_attempt {
        of.push((
            "Under way",
            html! {
                (open.action.as_str()) ", attempt " (open.attempt_number)
                span.under { (open.phase.as_str()) ", began " (time(open.started_at, now)) }
            },
        ));
    }
    if !row.external {
        of.push(("Secret in force since", html! { (time(row.rotated_at, now)) }));
    }
    facts(&of)
}

fn bars(beats: &[Beat]) -> Markup {
    html! { @if !beats.is_empty() { div.beats-wide { (look::sparkline(beats, beats.len())) } } }
}

fn timeline(reports: &[ReportRow], id: &str, paged: bool, now: Millis) -> Markup {
    let (shown, more) = match reports.len() > ATTEMPTS as usize {
        true => (&reports[..ATTEMPTS as usize], true),
        false => (reports, false),
    };
    html! {
        @if shown.is_empty() { p.faint { "None yet." } }
        ol.timeline {
            @for row in shown {
                @let report = &row.report;
                li id={ "report-" (row.id) } class=(status_class(row)) {
                    div.line {
                        a href=(report_href(row.id)) { (did(row)) }
                        (look::status_badge(report.status))
                        span.when {
                            @match parse_iso8601(&report.finished_at) {
                                Some(at) => (time(at, now)),
                                None => (report.finished_at),
                            }
                        }
                    }
                    @if let Some(message) = &report.message { p.message { bdi { (look::cut(message, 240)) } } }
                }
            }
        }
        @if more || paged {
            p.more {
                @if paged { a href=(look::credential_href(id)) { "Newest attempts" } " " }
                @if let Some(last) = shown.last().filter(|_| more) {
                    a href=(href("/dashboard/credential", &[("id", id), ("before", &last.id.to_string())])) { "Older attempts" }
                }
            }
        }
    }
}

fn status_class(row: &ReportRow) -> &'static str {
    use crate::report::Status;
    match row.report.status {
        Status::Success => "sound",
        Status::Unreachable => "failing",
        Status::Failed | Status::ValidationFailed => "person",
    }
}

/// What an attempt was, in a few words.
pub fn did(row: &ReportRow) -> String {
    let meta = |name: &str| row.report.meta.get(name);
    if row.worker_token.is_some() {
        return String::from("Reported by an external worker");
    }
    match (meta("action").and_then(Value::as_str), meta("generation").and_then(Value::as_u64)) {
        (_, Some(generation)) => format!("Rotated: generation {generation} put in force"),
        (Some("rotate"), None) => String::from("Rotation"),
        (Some("validate"), None) => String::from("Check"),
        _ => format!("Attempt {}", row.report.attempt_number),
    }
}

fn actions(row: &CredentialRow) -> Markup {
    let action = |of: &str, name: &str| {
        html! { li { a.button href=(href("/dashboard/confirm", &[("do", of), ("id", &row.credential_id)])) { (name) } } }
    };
    html! {
        @if row.external {
            p.faint { "An external worker keeps this credential, so there is nothing to do here." }
        } @else {
            ul.actions {
                (action("validate", "Check now"))
                (action("rotate", "Rotate"))
                (action("rotate-now", "Rotate in any case"))
                @if row.paused { (action("resume", "Resume")) } @else { (action("pause", "Pause")) }
            }
        }
    }
}

fn generations(row: &CredentialRow, of: &[GenerationRow], now: Millis) -> Markup {
    html! {
        @if of.is_empty() { p.faint { "None: its secrets are elsewhere." } }
        ul.generations {
            @for generation in of {
                li id={ "generation-" (generation.generation) } {
                    div.line {
                        strong { (generation.generation) } " "
                        span class={ "chip " (generation.state) } { (generation.state) }
                        span.when { (time(generation.created_at, now)) }
                    }
                    p.under {
                        @match (generation.restored_from, generation.attempt_number) {
                            (Some(earlier), _) => { "brought back from " (earlier) },
                            (None, Some(attempt)) => { "issued in attempt " (attempt) },
                            (None, None) => "imported",
                        }
                    }
                    @if generation.keys.is_empty() {
                        p.under { "its keys were dropped" }
                    } @else {
                        dl.keys {
                            @for key in &generation.keys {
                                div {
                                    dt { bdi { (key.name) } }
                                    dd { code { (key.fingerprint) } @if let Some(end) = key.expires_at { " " span.faint { @if end > now { "expires " } @else { "expired " } (time(end, now)) } } }
                                }
                            }
                        }
                    }
                    @if generation.state == "previous" && !generation.keys.is_empty() && !row.external {
                        p {
                            a href=(href("/dashboard/confirm", &[
                                ("do", "roll-back"), ("id", &row.credential_id), ("generation", &generation.generation.to_string()),
                            ])) { "Roll back to " (generation.generation) }
                        }
                    }
                }
            }
        }
        @if !of.is_empty() { p.faint.small { "A fingerprint stands for a value that is shown nowhere." } }
    }
}

fn settings(row: &CredentialRow, provider: Option<&ProviderRow>) -> Markup {
    let or_provider = |own: Option<u32>, theirs: Option<u32>, none: &str| {
        html! {
            @match (own, theirs) {
                (Some(seconds), _) => { (look::seconds(seconds)) },
                (None, Some(seconds)) => { (look::seconds(seconds)) span.under { "as its service" } },
                (None, None) => { (none) },
            }
        }
    };
    let every = provider.map(|provider| {
        provider.operator_validate_interval_seconds.unwrap_or(provider.validate_interval_seconds)
    });
    let mut of: Vec<(&str, Markup)> = vec![(
        "Account",
        html! { @match &row.identity { Some(account) => bdi { (account) }, None => span.faint { "not pinned yet" } } },
    )];
    if let Some(profile) = &row.profile_id {
        of.push(("Profile", html! { bdi { (profile) } }));
    }
    if let Some(provider) = provider {
        of.push(("Provider", html! { bdi { (provider.title) } " " (provider.version) }));
    }
    if !row.external {
        of.push(("Checked every", or_provider(row.validate_interval_seconds, every, "not known")));
        of.push((
            "Rotated at the age of",
            or_provider(
                row.max_age_seconds,
                provider.and_then(|provider| provider.max_age_seconds),
                "no limit",
            ),
        ));
        if let Some(seconds) = row.idle_limit_seconds {
            of.push(("Idle limit", html! { (look::seconds(seconds)) }));
        }
        if !row.quiet.is_empty() {
            of.push(("Quiet", html! { @for window in &row.quiet { span.under { (window) } } }));
        }
        if let Some(method) = &row.method {
            of.push(("Method", html! { (method) }));
        }
    }
    for (name, value) in &row.settings {
        of.push((name.as_str(), html! { bdi.wrap { (value) } }));
    }
    if !row.private_hosts.is_empty() {
        of.push((
            "Private hosts",
            html! { @for host in &row.private_hosts { span.under { bdi { (host) } } } },
        ));
    }
    facts(&of)
}
