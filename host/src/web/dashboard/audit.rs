//! The newest decisions: about plugins and keys, and what was done on these pages.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use maud::{Markup, html};
use serde_json::Value;

use super::super::Shared;
use super::look::{Page, Place, credential_href, cut, href, time};
use super::session::Signed;
use super::{Asked, Shown, said};
use crate::credential::now;
use crate::db::queries::AuditRow;

const ROWS: u32 = 50;

pub async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    Query(asked): Asked,
) -> Shown {
    let before = asked.get("before").and_then(|id| id.parse().ok());
    let mut rows = shared.pages.read(move |reader| reader.audit_before(before, ROWS + 1)).await?;
    let more = rows.len() > ROWS as usize;
    rows.truncate(ROWS as usize);
    let at = now();
    let body = html! {
        h1 { "Audit" }
        p.lead { "Who decided what, newest first. Nothing here is ever changed." }
        div #audit data-live {
            @if rows.is_empty() { div.empty { p { "Nothing was decided yet." } } }
            @else {
                table.plain.stacked {
                    caption.unseen { "Decisions, newest first" }
                    thead { tr {
                        th scope="col" { "When" } th scope="col" { "By" } th scope="col" { "What" }
                        th scope="col" { "About" } th scope="col" { "Detail" }
                    } }
                    tbody {
                        @for row in &rows {
                            tr id={ "audit-" (row.id) } {
                                td data-name="When" { (time(row.at, at)) }
                                td data-name="By" { (row.actor.as_str()) }
                                th scope="row" { (row.action.replace('-', " ")) }
                                td data-name="About" { div { (about(row)) } }
                                td.wrap data-name="Detail" { bdi { (cut(&detail(row), 400)) } }
                            }
                        }
                    }
                }
            }
            @if let Some(last) = rows.last().filter(|_| more) {
                p.more { a href=(href("/dashboard/audit", &[("before", &last.id.to_string())])) { "Older decisions" } }
            }
        }
    };
    Ok(Page {
        signed: &signed,
        title: "Audit",
        place: Place::Audit,
        said: said(&shared, &signed, &asked),
        body,
    }
    .send())
}

fn about(row: &AuditRow) -> Markup {
    let credential = row.detail.get("credential").and_then(Value::as_str);
    html! {
        @if let Some(id) = credential { a href=(credential_href(id)) { bdi { (id) } } " " }
        @if let Some(service) = &row.service { span.under { (service) } }
        @if let Some(file) = &row.file { span.under { bdi.wrap { (file) } } }
        @if let Some(digest) = &row.digest { span.under { code { (digest.get(..12).unwrap_or(digest)) } } }
        @if let Some(signer) = &row.signer { span.under { "key " bdi { (signer) } } }
        @if credential.is_none() && row.service.is_none() && row.file.is_none() { span.faint { "–" } }
    }
}

/// What a person reads of it.
fn detail(row: &AuditRow) -> String {
    let text = |name: &str| row.detail.get(name).and_then(Value::as_str);
    let changes = row
        .detail
        .get("changes")
        .and_then(Value::as_array)
        .map(|changes| changes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "));
    if let Some(session) = text("session") {
        let did = text("did").map(|did| format!("{did}, ")).unwrap_or_default();
        let from = text("from").map(|from| format!(", from {from}")).unwrap_or_default();
        return format!("{did}session {session}{from}");
    }
    changes
        .filter(|changes| !changes.is_empty())
        .or_else(|| text("reason").map(str::to_owned))
        .or_else(|| text("name").map(str::to_owned))
        .unwrap_or_else(|| match &row.detail {
            Value::Object(fields) => {
                let shown = fields
                    .iter()
                    .filter(|(name, value)| *name != "credential" && !value.is_object() && !value.is_null());
                shown
                    .map(|(name, value)| format!("{name} {}", value.to_string().trim_matches('"')))
                    .collect::<Vec<_>>()
                    .join(", ")
            }
            _ => String::new(),
        })
}
