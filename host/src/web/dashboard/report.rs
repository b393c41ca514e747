//! One report: what an attempt did, step by step, what the service's last answer was, and the
//! report itself as it is stored.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};
use serde_json::Value;

use super::super::Shared;
use super::credential::did;
use super::look::{self, Page, Place, credential_href, facts, report_href, utc};
use super::session::Signed;
use super::words;
use super::{Asked, NoPage, Shown, said};
use crate::db::queries::ReportRow;
use crate::report::parse_iso8601;

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let wanted = asked.get("id").and_then(|id| id.parse::<i64>().ok());
    let seen = shared
        .pages
        .read(move |reader| {
            let Some(row) = wanted.map(|id| reader.report(id)).transpose()?.flatten() else {
                return Ok(None);
            };
            let beside = reader.beside(&row.report.cookie_id, row.id)?;
            let known = reader.credential(&row.report.cookie_id)?.is_some();
            Ok(Some((row, beside, known)))
        })
        .await?;
    let Some((row, beside, known)) = seen else {
        return Err(NoPage::not_found("There is no such report; old ones are deleted after a while."));
    };
    let title = format!("Report {}", row.id);
    let body = body(&row, beside, known);
    Ok(Page {
        signed: &signed,
        title: &title,
        place: Place::Elsewhere,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn body(row: &ReportRow, (before, after): (Option<i64>, Option<i64>), known: bool) -> Markup {
    let report = &row.report;
    let meta = |name: &str| report.meta.get(name);
    let text = |name: &str| meta(name).and_then(Value::as_str);
    let path: Vec<&str> = meta("path")
        .and_then(Value::as_array)
        .map(|path| path.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut of: Vec<(&str, Markup)> = vec![
        (
            "Credential",
            html! {
                @if known { a href=(credential_href(&report.cookie_id)) { bdi { (report.cookie_id) } } }
                @else { bdi { (report.cookie_id) } " " span.faint { "(removed since)" } }
            },
        ),
        ("Service", html! { (report.service) }),
        ("Attempt", html! { (report.attempt_number) }),
        ("Began", html! { (utc(&report.started_at)) }),
        ("Took", html! { (took(row)) }),
    ];
    if let Some(verdict) = text("verdict") {
        of.push(("Verdict", html! { (verdict) }));
    }
    if let Some(method) = text("method") {
        of.push(("Method", html! { (method) @if let Some(class) = text("commitClass") { ", " (class) } }));
    }
    if let Some(generation) = meta("generation").and_then(Value::as_u64) {
        of.push(("In force since", html! { "generation " (generation) }));
    }
    if let Some(phase) = text("interruptedIn") {
        of.push((
            "Interrupted before",
            html! { "an earlier owner came as far as \u{201c}" (phase) "\u{201d}" },
        ));
    }
    if meta("inDoubt").is_some() {
        of.push(("In doubt", html! { "the answer to a rotation was lost: the secret may be spent" }));
    }
    if let Some(token) = &row.worker_token {
        of.push(("Reported with token", html! { (token) }));
    }
    if let Some(worker) = text("worker") {
        of.push(("Worker", html! { bdi { (worker) } }));
    }
    html! {
        nav.crumbs aria-label="Breadcrumb" {
            a href="/dashboard" { "Overview" } " / "
            @if known { a href=(credential_href(&report.cookie_id)) { bdi { (report.cookie_id) } } }
            @else { bdi { (report.cookie_id) } }
        }
        div.title { h1 { (did(row)) } (look::status_badge(report.status)) }
        @if let Some(message) = &report.message { blockquote.message { bdi { (message) } } }
        div.columns {
            div {
                section aria-labelledby="path-title" {
                    h2 #path-title { "What happened" }
                    @if path.is_empty() {
                        p.faint { "Its worker says no steps." }
                    } @else {
                        ol.steps {
                            @for word in &path {
                                li { (words::step(word).unwrap_or(word)) " " code { (word) } }
                            }
                        }
                    }
                    @if let Some(answer) = text("answer") {
                        p { "The last request ended so: " bdi { (answer) } }
                    }
                }
                section aria-labelledby="stored-title" {
                    h2 #stored-title { "As it is stored" }
                    details {
                        summary { "JSON" }
                        pre tabindex="0" aria-label="The report as JSON" { code { (serde_json::to_string_pretty(row).unwrap_or_default()) } }
                    }
                }
            }
            div.side {
                section aria-labelledby="facts-title" {
                    h2 #facts-title { "Facts" }
                    (facts(&of))
                }
                section aria-labelledby="keys-title" {
                    h2 #keys-title { "Fingerprints" }
                    @if report.cookie_keys.is_empty() { p.faint { "None." } }
                    dl.keys.sheet {
                        @for (name, fingerprint) in &report.cookie_keys {
                            div { dt { bdi { (name) } } dd { code { (fingerprint) } } }
                        }
                    }
                }
            }
        }
        p.more {
            @if let Some(id) = before { a rel="prev" href=(report_href(id)) { "Attempt before" } " " }
            @if let Some(id) = after { a rel="next" href=(report_href(id)) { "Attempt after" } }
        }
    }
}

fn took(row: &ReportRow) -> String {
    match (parse_iso8601(&row.report.started_at), parse_iso8601(&row.report.finished_at)) {
        (Some(began), Some(ended)) if ended >= began => match ended - began {
            millis @ 0..10_000 => format!("{millis} ms"),
            millis => words::span(millis),
        },
        _ => String::from("not known: the clock was set meanwhile"),
    }
}
