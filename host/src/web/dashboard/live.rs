//! Tells open pages that something changed, and nothing of what: each then asks for itself anew,
//! as the person who has it open. It never says more than twice a second, and ends with the
//! session.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::Shared;
use super::session::{Moment, Sessions, Signed};
use crate::db::writer::Progress;
use crate::limits;

/// An event without data is none to a browser.
fn event(word: &str) -> Event {
    Event::default().event(word).data("1")
}

struct Stream {
    sessions: Arc<Sessions>,
    id: String,
    progress: watch::Receiver<Progress>,
    messages: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    said: Instant,
    first: bool,
    _place: OwnedSemaphorePermit,
}

pub async fn events(State(shared): State<Arc<Shared>>, Extension(signed): Extension<Signed>) -> Response {
    let pages = &shared.pages;
    let Ok(place) = Arc::clone(&pages.streams).try_acquire_owned() else {
        shared.port.refused("dashboard-streams");
        return (StatusCode::SERVICE_UNAVAILABLE, "too many live pages\n").into_response();
    };
    let stream = Stream {
        sessions: Arc::clone(&pages.sessions),
        id: signed.id,
        progress: shared.writer.progress(),
        messages: pages.sessions.changes(),
        stop: pages.stop.clone(),
        said: Instant::now(),
        first: true,
        _place: place,
    };
    Sse::new(stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    }))
    .into_response()
}

impl Stream {
    /// None ends it.
    async fn next(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.first) {
            // What changed between the page and now; and the browser knows that it is connected.
            return Some(event("changed"));
        }
        if *self.stop.borrow() {
            return None;
        }
        let word = tokio::select! {
            changed = self.progress.changed() => changed.ok().map(|()| "changed")?,
            changed = self.messages.changed() => changed.ok().map(|()| "changed")?,
            // An error means that the daemon is gone.
            _ = self.stop.changed() => return None,
            () = tokio::time::sleep(limits::DASHBOARD_HEARTBEAT) => "tick",
        };
        if !self.sessions.is_open(&self.id, Moment::now()) {
            // The browser comes again, and is told to sign in.
            return None;
        }
        if word == "changed" {
            // A moment for what belongs to it, and between any two words.
            let quiet = self.said + limits::DASHBOARD_DEBOUNCE;
            let soon = Instant::now() + limits::DASHBOARD_DEBOUNCE / 10;
            tokio::time::sleep_until(quiet.max(soon)).await;
            self.progress.mark_unchanged();
            self.messages.mark_unchanged();
        }
        self.said = Instant::now();
        Some(event(word))
    }
}
