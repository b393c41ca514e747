//! In and out. The one way in is a link of `keywheel dashboard`; looking at it shows a button,
//! and only pressing that uses it up, for programs that follow every link in a message press none.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use serde_json::json;

use super::super::Shared;
use super::super::server::Peer;
use super::session::{self, Moment, Signed};
use super::{NoPage, Posted, foreign, look};
use crate::db::{Actor, AuditEntry};

/// What who isn't signed in sees in every page's place.
pub fn needed() -> Response {
    let body = html! {
        p { "On the machine where Keywheel runs, as its user, type" }
        pre { code { "keywheel dashboard" } }
        p { "and open the link it prints. It works once, for five minutes." }
        p.faint {
            "A session ends after half an hour without use, after twelve hours, and when the daemon restarts. "
            "If you came from another site and are signed in, " a href="" { "load this page again" } "."
        }
    };
    look::plain(StatusCode::UNAUTHORIZED, "Sign in", &body)
}

pub async fn show(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(link): Path<String>,
) -> Response {
    if !shared.pages.sessions.is_link(&link, Moment::now()) {
        return failed(&shared, peer);
    }
    let body = html! {
        p { "This link works once. Press the button to use it in this browser." }
        // To the very address of this page.
        form method="post" { button.primary type="submit" { "Sign in" } }
    };
    look::plain(StatusCode::OK, "Sign in", &body)
}

pub async fn sign_in(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(link): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !session::is_of_our_page(&headers) {
        return foreign(&shared);
    }
    match shared.pages.sessions.sign_in(&link, Moment::now()) {
        Ok(Some((cookie, id))) => {
            tracing::info!(session = id, peer = %peer.address.ip(), "signed in to the dashboard");
            let detail = json!({ "session": id, "from": peer.address.ip().to_string() });
            if let Err(error) = shared.writer.note(vec![entry("dashboard-signed-in", None, detail)]).await {
                // Whoever can't be written down may look: it is then that somebody has to.
                tracing::warn!(%error, session = id, "a sign-in could not be written down");
            }
            let cookie = session::set_cookie(&headers, Some(&cookie));
            ([(header::SET_COOKIE, cookie)], Redirect::to("/dashboard")).into_response()
        }
        Ok(None) => failed(&shared, peer),
        Err(error) => NoPage::unreadable(&error).into_response(),
    }
}

fn failed(shared: &Shared, peer: Peer) -> Response {
    shared.port.refused("dashboard-link");
    if !shared.pages.sessions.may_fail_again(peer.address.ip()) {
        let text = "Too many links that don't work came from your address. Wait a moment.";
        return NoPage::new(StatusCode::TOO_MANY_REQUESTS, "Too often", text).into_response();
    }
    tracing::info!(peer = %peer.address.ip(), "a dashboard link that doesn't work was refused");
    let body = html! {
        p { "It was used already, is older than five minutes, or was made before the daemon last started." }
        p { "Type " code { "keywheel dashboard" } " for a new one." }
    };
    look::plain(StatusCode::FORBIDDEN, "This link doesn\u{2019}t work", &body)
}

pub async fn sign_out(
    State(shared): State<Arc<Shared>>,
    Extension(signed): Extension<Signed>,
    headers: HeaderMap,
    _form: Posted,
) -> Response {
    shared.pages.sessions.sign_out(&signed.id, Moment::now());
    let detail = json!({ "session": signed.id });
    if let Err(error) = shared.writer.note(vec![entry("dashboard-signed-out", None, detail)]).await {
        tracing::warn!(%error, session = signed.id, "a sign-out could not be written down");
    }
    let cookie = session::set_cookie(&headers, None);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/dashboard")).into_response()
}

/// A row of the audit about what was done on a page.
pub fn entry(action: &'static str, service: Option<String>, detail: serde_json::Value) -> AuditEntry {
    AuditEntry { actor: Actor::Operator, action, service, file: None, digest: None, signer: None, detail }
}
