//! The HTTP port: what is served there and how it is wired. `server` owns connections and their
//! end, `gate` who may come in, `intake` what a message must look like, `workers` the routes of
//! external workers, `api` those of programs that use the secrets, `dashboard` the pages for
//! people, `metrics` and `health` what who watches the daemon asks. It reads the database through
//! `db::queries` and writes through the one writer, and never answers with a token or with a value
//! of `cookieKeys`; a secret leaves by `api` alone.

mod acks;
mod answer;
mod api;
mod dashboard;
mod gate;
mod health;
pub mod intake;
mod metrics;
mod server;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, watch};

use crate::config::{Http, Live};
use crate::control::{Command, Counted, HttpStatus};
use crate::credential::Secret;
use crate::db::queries::Reader;
use crate::db::writer::Writer;
use crate::limits;
use crate::meter::Meter;
use crate::vault::Vault;
use answer::Refused;
use dashboard::Pages;
use dashboard::session::{Moment, Sessions};
use gate::Gate;
use server::Door;

/// What the routes stand on.
pub struct Parts {
    pub vault: Arc<Vault>,
    pub writer: Writer,
    pub reader: Reader,
    /// For metrics, whose count of all credentials must hold nobody up.
    pub counter: Reader,
    pub meter: Arc<Meter>,
    pub metrics: crate::config::metrics::Metrics,
    /// For pages, and for counting beside them: neither waits for the other, nor a token for both.
    pub pages: Reader,
    pub counting: Reader,
    /// Whether anybody is told of alerts.
    pub config: Live,
    /// What else the daemon can be asked and told.
    pub command: Command,
}

/// The open port. What comes before `serve` waits in the kernel.
pub struct Web {
    door: Door,
    options: Http,
    parts: Parts,
    port: Arc<Port>,
}

/// The counts of a port, shared by its routes and by who asks for the status.
#[derive(Debug)]
pub struct Port {
    listening: SocketAddr,
    counted: Mutex<Counted>,
    /// So many may wait for a newer generation at once.
    waiting: Semaphore,
    sessions: Arc<Sessions>,
}

impl Port {
    pub fn status(&self) -> HttpStatus {
        HttpStatus {
            listening: self.listening,
            waiting: limits::API_WAITING - self.waiting.available_permits(),
            counted: self.counted(|counted| counted.clone()),
        }
    }

    /// A link into the dashboard, for one use.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn dashboard_link(&self) -> io::Result<(SocketAddr, Secret)> {
        Ok((self.listening, self.sessions.new_link(Moment::now())?))
    }

    /// Ends every session of the dashboard, and says how many there were.
    pub fn sign_out_all(&self) -> usize {
        self.sessions.sign_out_all(Moment::now())
    }

    fn counted<T>(&self, change: impl FnOnce(&mut Counted) -> T) -> T {
        change(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refused(&self, code: &'static str) {
        self.counted(|counted| *counted.refused.entry(code.to_owned()).or_default() += 1);
    }
}

/// What a route is given.
struct Shared {
    gate: Gate,
    vault: Arc<Vault>,
    writer: Writer,
    command: Command,
    pages: Pages,
    port: Arc<Port>,
    scraped: metrics::Scraped,
    pulse: health::Pulse,
    stop: watch::Receiver<bool>,
}

impl Web {
    /// Takes the port.
    ///
    /// # Errors
    /// The system's: the address is in use, or isn't this machine's.
    pub async fn open(listen: SocketAddr, options: Http, parts: Parts) -> io::Result<Self> {
        let door = Door::open(listen).await?;
        let sessions = Arc::new(Sessions::new(Arc::clone(&parts.vault)));
        let port = Arc::new(Port {
            listening: door.address(),
            counted: Mutex::default(),
            waiting: Semaphore::new(limits::API_WAITING),
            sessions,
        });
        Ok(Self { door, options, parts, port })
    }

    pub fn port(&self) -> Arc<Port> {
        Arc::clone(&self.port)
    }

    /// Answers until `stop`, and a moment longer what was begun.
    pub async fn serve(self, stop: watch::Receiver<bool>) {
        let Self { door, options, parts, port } = self;
        tracing::info!(address = %port.listening, "http is open");
        let pages =
            Pages::new(Arc::clone(&port.sessions), parts.pages, parts.counting, parts.config, stop.clone());
        let shared = Arc::new(Shared {
            gate: Gate::new(&options, parts.reader, Arc::clone(&parts.vault)),
            vault: parts.vault,
            writer: parts.writer,
            command: parts.command,
            pages,
            port,
            scraped: metrics::Scraped::new(
                parts.metrics.clone(),
                parts.metrics.access_of(&options),
                parts.counter,
                parts.meter,
            ),
            pulse: health::Pulse::default(),
            stop: stop.clone(),
        });
        tokio::join!(
            server::serve(door, routes(Arc::clone(&shared)), stop),
            api::keep_history(&shared),
            health::beat(&shared)
        );
    }
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .merge(workers::routes())
        .merge(api::routes())
        .merge(acks::routes())
        .merge(metrics::routes())
        .merge(health::routes())
        .merge(dashboard::routes(&shared))
        .fallback(|State(shared): State<Arc<Shared>>| async move { shared.refuse(Refused::no_such_path()) })
        .method_not_allowed_fallback(|State(shared): State<Arc<Shared>>| async move {
            shared.refuse(Refused::method())
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), known_host))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), metrics::counted))
        .with_state(shared)
}

/// Before anything else: a page in a browser on this machine may have any name lead here.
async fn known_host(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match shared.gate.host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => shared.refuse(refused),
    }
}

impl Shared {
    /// Every refusal goes out here, and is counted.
    fn refuse(&self, refused: Refused) -> Response {
        self.port.refused(refused.code);
        tracing::debug!(code = refused.code, field = refused.field, "an HTTP request was refused");
        refused.into_response()
    }
}
