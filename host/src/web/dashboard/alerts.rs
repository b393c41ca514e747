//! What is in trouble by the rules of alerts: what is open and since when, what was resolved
//! lately, what is snoozed, and messages that didn't arrive.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};

use super::super::Shared;
use super::look::{Page, Place, credential_href, href, ticked, time};
use super::session::Signed;
use super::words::count;
use super::{Asked, Shown, said};
use crate::credential::{Millis, now};
use crate::db::alerts::{AlertState, DeliveryRow, Kind, Severity, Snooze};

/// Of each part so many are shown; the headline counts all.
const SHOWN: usize = 100;
const UNDELIVERED: u32 = 25;

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let at = now();
    let told = shared.pages.config.get().alerts.is_on();
    let (states, snoozes, undelivered) = shared
        .pages
        .read(move |reader| {
            Ok((reader.alert_states()?, reader.snoozes(at)?, reader.undelivered(UNDELIVERED)?))
        })
        .await?;
    let (mut open, closed): (Vec<_>, Vec<_>) = states.into_iter().partition(AlertState::is_open);
    open.sort_by_key(|state| (std::cmp::Reverse(state.severity), state.since));
    let body = html! {
        h1 { "Alerts" }
        div #alerts data-live {
            p.lead data-headline {
                @match open.len() as u64 {
                    0 if !told => "Nobody is told of anything.",
                    0 => "Nothing is in trouble.",
                    number => { (count(number, "thing is", "things are")) " in trouble." },
                }
            }
            @if !told {
                div.empty {
                    p { "Trouble is looked for, and told, once config.toml names a channel:" }
                    pre { code { "[alerts.channels.ops]\nkind = \"email\"   # or webhook, slack, discord, ntfy, command" } }
                }
            }
            @if !open.is_empty() {
                ul.cards.alerts { @for state in open.iter().take(SHOWN) { (card(state, &snoozes, at)) } }
            }
            @if !snoozes.is_empty() { (snoozed(&snoozes, at)) }
            @if !undelivered.is_empty() { (messages(&undelivered, at)) }
            @if !closed.is_empty() {
                section aria-labelledby="resolved-title" {
                    h2 #resolved-title { "Resolved lately" }
                    ul.plain-list {
                        @for state in closed.iter().take(SHOWN) {
                            li {
                                (ticked(&state.what))
                                span.under { "over " @if let Some(end) = state.closed_at { (time(end, at)) } }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(Page {
        signed: &signed,
        title: "Alerts",
        place: Place::Alerts,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn card(state: &AlertState, snoozes: &[Snooze], now: Millis) -> Markup {
    let (class, word) = match state.severity {
        Severity::Critical => ("person", "critical"),
        Severity::Warning => ("failing", "warning"),
    };
    let of_service = state.service.as_ref().map(|service| format!("service:{service}"));
    let snooze = snoozes
        .iter()
        .find(|snooze| snooze.subject == state.subject || Some(&snooze.subject) == of_service.as_ref());
    let credential = state.subject.strip_prefix("credential:");
    html! {
        li.card id={ "alert-" (state.subject) } {
            div.title {
                span class={ "badge " (class) } { (word) }
                strong { (ticked(&state.what)) }
                span.when { (time(state.since, now)) }
            }
            @if let Some(why) = &state.why { p.message { (ticked(why)) } }
            p { (ticked(&state.hint)) }
            div.actions {
                @if let Some(id) = credential { a href=(credential_href(id)) { "Look at " bdi { (id) } } }
                @if state.kind == Kind::Plugin { a href="/dashboard/plugins" { "Look at the plugins" } }
                @match snooze {
                    Some(snooze) => span.faint { "snoozed, heard of again " (time(snooze.until, now)) },
                    None => a href=(href("/dashboard/confirm", &[("do", "snooze"), ("subject", &state.subject)])) {
                        "Snooze" span.unseen { " " (state.subject) }
                    },
                }
            }
        }
    }
}

fn snoozed(of: &[Snooze], now: Millis) -> Markup {
    html! {
        section aria-labelledby="snoozed-title" {
            h2 #snoozed-title { "Snoozed" }
            ul.plain-list {
                @for snooze in of {
                    li {
                        bdi { (snooze.subject) } " "
                        a href=(href("/dashboard/confirm", &[("do", "unsnooze"), ("subject", &snooze.subject)])) {
                            "Hear of it again" span.unseen { " " (snooze.subject) }
                        }
                        span.under { "until " (time(snooze.until, now)) }
                    }
                }
            }
        }
    }
}

fn messages(of: &[DeliveryRow], now: Millis) -> Markup {
    html! {
        section aria-labelledby="messages-title" {
            h2 #messages-title { "Messages that didn\u{2019}t arrive" }
            ul.plain-list {
                @for message in of {
                    li {
                        strong { (message.channel) } ": " (ticked(message.title.as_deref().unwrap_or(&message.dedup_key)))
                        span.under {
                            (count(message.tries.into(), "try", "tries"))
                            @match message.failed_at {
                                Some(at) => { ", given up " (time(at, now)) },
                                None => { ", tried again " (time(message.next_try_at, now)) },
                            }
                            @if let Some(error) = &message.last_error { ": " (ticked(error)) }
                        }
                    }
                }
            }
        }
    }
}
