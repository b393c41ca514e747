//! Plugins: what lies in the folder, what serves, with which permissions in words, who signed it,
//! and what waits for the operator.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};

use super::super::Shared;
use super::look::{self, Page, Place, facts, href};
use super::session::Signed;
use super::words::count;
use super::{Asked, NoPage, Shown, said};
use crate::control::{Operation, Outcome};
use crate::db::queries::ProviderRow;
use crate::registry::{PluginState, PluginStatus};

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let providers = shared.pages.read(|reader| reader.providers()).await?;
    let (plugins, workers) = match (shared.command)(Operation::Status).await {
        Ok(Outcome::Status { plugins, workers, .. }) => (plugins, workers),
        Ok(_) => Default::default(),
        Err(refusal) => return Err(NoPage::unreadable(&refusal)),
    };
    let mut providers = providers;
    let waits = |row: &ProviderRow| {
        plugins.iter().any(|plugin| {
            plugin.state == PluginState::PendingApproval && plugin.service.as_ref() == Some(&row.service)
        })
    };
    // What waits for the operator comes first; the rest stays in its order.
    providers.sort_by_key(|row| !waits(row));
    let waiting = plugins.iter().filter(|plugin| plugin.state == PluginState::PendingApproval).count();
    let parked =
        |service: &str| workers.iter().any(|worker| worker.service == service && worker.state == "parked");
    // Files without a service, or of one that never served, come last.
    let of_service = |service: &str| {
        let mut files: Vec<_> =
            plugins.iter().filter(|plugin| plugin.service.as_deref() == Some(service)).collect();
        files.sort_by_key(|file| file.state != PluginState::PendingApproval);
        files
    };
    let strays: Vec<_> = plugins
        .iter()
        .filter(|plugin| !providers.iter().any(|row| Some(&row.service) == plugin.service.as_ref()))
        .collect();
    let body = html! {
        div #plugins data-live {
            h1 { "Plugins" }
            p.lead data-headline {
                @match (waiting, providers.len() as u64) {
                    (0, 0) => "No plugin yet. Put a file into the plugins folder.",
                    (0, number) => { (count(number, "service is", "services are")) " served; nothing waits for you." },
                    (1, _) => "One new version waits for your approval.",
                    (number, _) => { (number) " new versions wait for your approval." },
                }
            }
            @for row in &providers {
                (service(row, &of_service(&row.service), parked(&row.service)))
            }
            @if !strays.is_empty() {
                section aria-labelledby="strays-title" {
                    h2 #strays-title { "Other files" }
                    ul.cards { @for file in &strays { li.card { (stray(file)) } } }
                }
            }
        }
    };
    Ok(Page {
        signed: &signed,
        title: "Plugins",
        place: Place::Plugins,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn service(row: &ProviderRow, files: &[&PluginStatus], parked: bool) -> Markup {
    let in_use = files.iter().find_map(|file| file.in_use.as_ref());
    let act = |of: &str, name: &str, class: &str| {
        html! { a class={ "button " (class) } href=(href("/dashboard/confirm", &[("do", of), ("service", &row.service)])) { (name) span.unseen { " " (row.service) } } }
    };
    html! {
        section.card id={ "plugin-" (row.service) } aria-labelledby={ "plugin-" (row.service) "-title" } {
            div.title {
                h2 #{ "plugin-" (row.service) "-title" } { (row.service) }
                @if parked { span.badge.person { "parked" } }
                @if row.paused { span.badge.paused { "paused" } }
                @if files.is_empty() { span.badge.failing { "no file" } }
                @else if !parked && !row.paused { span.badge.sound { "in use" } }
            }
            p { bdi { (row.title) } " " span.faint { (row.version) } }
            @for file in files.iter().filter(|file| file.state == PluginState::PendingApproval) {
                div.waiting {
                    h3 { "Version " bdi { (file.version.as_deref().unwrap_or("?")) } " waits for your approval" }
                    ul { @for line in &file.permissions { li { bdi { (line) } } } }
                    p.under { (signer(file)) }
                    (act("approve", "Review and approve", "primary"))
                }
            }
            div.halves {
            div {
            h3 { "What it may do" }
            @match in_use {
                Some(in_use) => ul.permissions {
                    @for line in in_use.accepted.lines() { li { bdi { (line) } } }
                    @for key in &in_use.revealed { li { "sees the bytes of key " bdi { (key) } ", as you allowed" } }
                },
                None => p.faint { "Nothing: no file serves it now." },
            }
            }
            (facts(&[
                ("Signed", html! { (in_use.and_then(|in_use| in_use.signature.as_ref()).map_or("unsigned".into(), |signature| signature.words())) }),
                ("Pinned", html! { @if in_use.is_some_and(|in_use| in_use.pinned) { "yes: a version that asks for more waits for you" } @else { "not before the first credential" } }),
                ("Checked every", html! {
                    @match row.operator_validate_interval_seconds {
                        Some(seconds) => { (look::seconds(seconds)) ", as you said" },
                        None => { (look::seconds(row.validate_interval_seconds)) },
                    }
                }),
                ("File", html! { bdi.wrap { (row.file.as_deref().unwrap_or("–")) } }),
                ("Digest", html! { code.wrap { (row.plugin_digest) } }),
            ]))
            }
            @for file in files.iter().filter(|file| matches!(file.state, PluginState::Refused | PluginState::Conflict)) {
                div.waiting { (stray(file)) }
            }
            div.actions {
                @if parked { (act("unpark", "Let it run again", "")) }
                @if row.paused { (act("resume-service", "Resume the service", "")) }
                @else { (act("pause-service", "Pause the service", "")) }
                a href=(href("/dashboard", &[("service", &row.service)])) { "Its credentials" span.unseen { " of " (row.service) } }
            }
        }
    }
}

fn signer(file: &PluginStatus) -> String {
    file.signature.as_ref().map_or("unsigned".into(), |signature| signature.words())
}

fn stray(file: &PluginStatus) -> Markup {
    let (class, word) = match file.state {
        PluginState::Active => ("sound", "active"),
        PluginState::PendingApproval => ("failing", "waits for approval"),
        PluginState::Conflict => ("failing", "conflict"),
        PluginState::Refused => ("person", "refused"),
        PluginState::Superseded => ("sound", "superseded"),
    };
    html! {
        div.title { h3 { bdi { (file.file) } } span class={ "badge " (class) } { (word) } }
        @if let Some(reason) = &file.reason { p { (look::ticked(reason)) } }
        @if !file.permissions.is_empty() { ul { @for line in &file.permissions { li { bdi { (line) } } } } }
    }
}
