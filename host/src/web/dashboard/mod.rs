//! The dashboard: pages for people, rendered here, that work without a script but for keeping
//! themselves up to date. `session` owns who is signed in, `look` the frame, `words` what is said
//! of a credential, and each page has a file. It reads through `db::views`, changes things by
//! `control::Operation` alone, and never shows a secret.

mod actions;
mod alerts;
mod audit;
mod credential;
mod live;
mod look;
mod overview;
mod plugins;
mod report;
pub mod session;
mod signin;
mod words;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use axum::{Form, Router};
use maud::html;
use tokio::sync::{Semaphore, watch};

use super::Shared;
use crate::config::Live;
use crate::db::queries::{ReadError, Reader};
use crate::db::views::Tally;
use crate::limits;
use crate::registry::manifest::inert;
use session::{Moment, Said, Sessions, Signed};

/// What pages stand on, beside what every route has.
pub struct Pages {
    pub sessions: Arc<Sessions>,
    reader: Arc<Mutex<Reader>>,
    counting: Arc<Counting>,
    config: Live,
    /// Live pages end with the daemon.
    stop: watch::Receiver<bool>,
    streams: Arc<Semaphore>,
    tasks: Arc<Semaphore>,
}

impl Pages {
    pub fn new(
        sessions: Arc<Sessions>,
        reader: Reader,
        counting: Reader,
        config: Live,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            sessions,
            reader: Arc::new(Mutex::new(reader)),
            counting: Arc::new(Counting { reader: Mutex::new(counting), counted: watch::Sender::new(None) }),
            stop,
            config,
            streams: Arc::new(Semaphore::new(limits::DASHBOARD_STREAMS)),
            tasks: Arc::new(Semaphore::new(limits::DASHBOARD_TASKS)),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, NoPage> {
        let reader = Arc::clone(&self.reader);
        let asked =
            tokio::task::spawn_blocking(move || ask(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        match asked.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(NoPage::unreadable(&error)),
            Err(error) => Err(NoPage::unreadable(&error)),
        }
    }
}

/// Counts by service. They are the one thing that takes longer the more credentials there are, so
/// they are counted beside the page, and as seldom as keeps that a twentieth of one core.
struct Counting {
    reader: Mutex<Reader>,
    counted: watch::Sender<Option<Counted>>,
}

#[derive(Clone)]
struct Counted {
    at: Instant,
    took: Duration,
    tallies: Arc<Vec<Tally>>,
}

/// How long a page waits for new counts before it shows the last ones.
const COUNTING_PATIENCE: Duration = Duration::from_millis(30);

impl Counting {
    /// None: they were never counted to the end.
    async fn tallies(self: &Arc<Self>) -> Option<Arc<Vec<Tally>>> {
        let last = self.counted.borrow().clone();
        if last.as_ref().is_some_and(|last| last.at.elapsed() < last.took * 20) {
            return last.map(|last| last.tallies);
        }
        let mut counted = self.counted.subscribe();
        let of_task = Arc::clone(self);
        tokio::task::spawn_blocking(move || of_task.count());
        let _ = tokio::time::timeout(COUNTING_PATIENCE, counted.changed()).await;
        let newest = counted.borrow();
        newest.as_ref().map(|counted| Arc::clone(&counted.tallies))
    }

    fn count(&self) {
        // Another page's count that is under way does for this one as well.
        let Ok(reader) = self.reader.try_lock() else { return };
        let began = Instant::now();
        match reader.tallies() {
            Ok(tallies) => {
                let (took, tallies) = (began.elapsed(), Arc::new(tallies));
                self.counted.send_replace(Some(Counted { at: Instant::now(), took, tallies }));
            }
            Err(error) => tracing::error!(%error, "the credentials can't be counted"),
        }
    }
}

/// Why there is no such page, in words for who asked for it.
struct NoPage {
    code: StatusCode,
    title: &'static str,
    text: String,
}

impl NoPage {
    fn new(code: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self { code, title, text: text.into() }
    }

    fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found", text)
    }

    fn unreadable(error: &dyn fmt::Display) -> Self {
        tracing::error!(%error, "a page can't be made");
        let text = "The database can't be read now. The log says why; try again in a moment.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Not now", text)
    }
}

impl IntoResponse for NoPage {
    fn into_response(self) -> Response {
        let body = html! {
            p { (look::ticked(&self.text)) }
            p { a.button href="/dashboard" { "To the overview" } }
        };
        look::plain(self.code, self.title, &body)
    }
}

type Shown = Result<Response, NoPage>;
type Asked = Query<HashMap<String, String>>;

pub fn routes(shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    let inside = Router::new()
        .route("/dashboard", get(overview::show))
        .route("/dashboard/credential", get(credential::show))
        .route("/dashboard/report", get(report::show))
        .route("/dashboard/plugins", get(plugins::show))
        .route("/dashboard/workers", get(workers::show))
        .route("/dashboard/alerts", get(alerts::show))
        .route("/dashboard/audit", get(audit::show))
        .route("/dashboard/events", get(live::events))
        .route("/dashboard/confirm", get(actions::confirm))
        // Who signs in again on the page of a result comes here.
        .route("/dashboard/do", post(actions::carry_out).get(to_overview))
        .route("/dashboard/sign-out", post(signin::sign_out).get(to_overview))
        .route("/dashboard/{*rest}", any(no_such_page))
        .route_layer(middleware::from_fn_with_state(Arc::clone(shared), signed_in));
    Router::new()
        .route("/", get(to_overview))
        .route("/dashboard/", get(to_overview))
        .route("/dashboard/sign-in/{link}", get(signin::show).post(signin::sign_in))
        .route("/dashboard/assets/{name}", get(asset))
        .merge(inside)
        .layer(DefaultBodyLimit::max(limits::DASHBOARD_FORM))
        .layer(middleware::from_fn(dressed))
}

async fn to_overview() -> Redirect {
    Redirect::to("/dashboard")
}

async fn no_such_page() -> NoPage {
    NoPage::not_found("There is no page at this address.")
}

async fn asset(Path(name): Path<String>) -> Response {
    let Some(asset) = [&look::STYLE, &look::SCRIPT, &look::ICON].into_iter().find(|asset| asset.name == name)
    else {
        return NoPage::not_found("There is no such file; the page that named it is of another version.")
            .into_response();
    };
    let kept = "public, max-age=31536000, immutable";
    ([(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, kept)], asset.text).into_response()
}

/// What a browser is told of every answer. A page loads nothing that isn't ours, runs no script
/// but the one file, sits in no frame and is kept nowhere.
const DRESS: [(&str, &str); 8] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    // Not `no-referrer`: with that a browser says `Origin: null` of our own forms.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=()"),
    ("cache-control", "no-store"),
];

async fn dressed(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in DRESS {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

/// What the script says of its own requests: they are nobody's use of the session.
const LIVE: &str = "x-keywheel-live";

/// The cookie itself, for checking a form.
#[derive(Clone)]
struct Cookie(String);

/// Before every page but signing in.
async fn signed_in(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    if request.method() != Method::GET
        && request.method() != Method::HEAD
        && !session::is_of_our_page(headers)
    {
        return foreign(&shared);
    }
    let by_itself = headers.contains_key(LIVE) || request.uri().path() == "/dashboard/events";
    let cookie = session::shown_cookie(headers);
    let signed =
        cookie.as_ref().and_then(|cookie| shared.pages.sessions.find(cookie, Moment::now(), !by_itself));
    let (Some(cookie), Some(signed)) = (cookie, signed) else {
        shared.port.refused("dashboard-signed-out");
        return signin::needed();
    };
    request.extensions_mut().insert(Cookie(cookie));
    request.extensions_mut().insert(signed);
    next.run(request).await
}

fn foreign(shared: &Shared) -> Response {
    shared.port.refused("dashboard-foreign");
    let text = "This form was not sent by a page of this dashboard, so nothing was done. Where a proxy stands in front, it must pass on Host as it got it.";
    NoPage::new(StatusCode::FORBIDDEN, "Refused", text).into_response()
}

/// The fields of a form that this very session was given.
struct Posted(BTreeMap<String, String>);

impl FromRequest<Arc<Shared>> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request<Body>, shared: &Arc<Shared>) -> Result<Self, Response> {
        let cookie = request.extensions().get::<Cookie>().cloned();
        let Form(fields) =
            Form::<BTreeMap<String, String>>::from_request(request, shared).await.map_err(|error| {
                let text = format!("The form can't be read, so nothing was done: {error}.");
                NoPage::new(StatusCode::BAD_REQUEST, "Refused", inert(&text, 300)).into_response()
            })?;
        let shown = fields.get("csrf").map_or("", String::as_str);
        if cookie.is_some_and(|Cookie(cookie)| shared.pages.sessions.is_form_of(&cookie, shown)) {
            return Ok(Self(fields));
        }
        shared.port.refused("dashboard-foreign");
        let text =
            "This form belongs to another session, so nothing was done. Load the page anew and try again.";
        Err(NoPage::new(StatusCode::FORBIDDEN, "Refused", text).into_response())
    }
}

/// What became of what was asked for on the page before, by the number in the address.
fn said(shared: &Shared, signed: &Signed, asked: &HashMap<String, String>) -> Option<Said> {
    let number = asked.get("said")?.parse().ok()?;
    shared.pages.sessions.said(&signed.id, number, Moment::now())
}
