//! The shell around the fakes of single services: a loopback server for the rules of one service,
//! its clock, and the two ways in which an answer gets lost. It knows no service; the rules know
//! no HTTP connection. It answers after an effect, never before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;

/// One request, as the rules see it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What a service does with a request. `now` is seconds since 1970.
pub trait Rules: Send + 'static {
    fn answer(&mut self, asked: &Asked, now: u64) -> Response;
}

/// When an answer gets lost: the request never arrived, or it did and had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    OnTheWay,
    OnTheWayBack,
}

/// One service on loopback. Its clones are the same service; it ends with the test process.
pub struct Fake<R> {
    pub url: String,
    state: Arc<Mutex<Shell<R>>>,
}

struct Shell<R> {
    rules: R,
    /// Method and path of every request that came, in order.
    came: Vec<(Method, String)>,
    losses: Vec<(Loss, Method, String)>,
    /// How far the service's clock is ahead.
    ahead: Duration,
}

impl Asked {
    pub fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The token of `Authorization: Bearer`.
    pub fn bearer(&self) -> &str {
        self.header(header::AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default()
    }

    /// A parameter of the query or of a form body.
    pub fn parameter(&self, name: &str) -> String {
        let of = |text: &[u8]| {
            url::form_urlencoded::parse(text)
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.into_owned())
        };
        of(self.query.as_bytes()).or_else(|| of(&self.body)).unwrap_or_default()
    }
}

impl<R: Rules> Fake<R> {
    pub fn start(rules: R) -> Self {
        let shell = Shell { rules, came: Vec::new(), losses: Vec::new(), ahead: Duration::ZERO };
        let state = Arc::new(Mutex::new(shell));
        let router = Router::new().fallback(answer::<R>).with_state(Arc::clone(&state));
        let (told, address) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
                told.send(listener.local_addr().expect("an address")).expect("the test waits");
                axum::serve(listener, router).await.expect("the fake serves");
            });
        });
        let address = address.recv().expect("the fake starts");
        Self { url: format!("http://{address}"), state }
    }

    /// Looks into the service's books, or does there what its owner would.
    pub fn with<T>(&self, look: impl FnOnce(&mut R) -> T) -> T {
        look(&mut lock(&self.state).rules)
    }

    /// How many requests of a method came for paths that end so.
    pub fn count(&self, method: &Method, path_end: &str) -> usize {
        lock(&self.state)
            .came
            .iter()
            .filter(|(known, path)| known == method && path.ends_with(path_end))
            .count()
    }

    /// The next answer of a method to a path that ends so is lost; said twice, the one after it too.
    pub fn lose_next(&self, loss: Loss, method: Method, path_end: &str) {
        lock(&self.state).losses.push((loss, method, path_end.to_owned()));
    }

    /// The service's clock, in seconds since 1970.
    pub fn now(&self) -> u64 {
        lock(&self.state).now()
    }

    pub fn put_clock_ahead(&self, ahead: Duration) {
        lock(&self.state).ahead = ahead;
    }
}

impl<R> Shell<R> {
    fn now(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        (since_1970 + self.ahead).as_secs()
    }
}

fn lock<R>(state: &Mutex<Shell<R>>) -> MutexGuard<'_, Shell<R>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer<R: Rules>(
    State(state): State<Arc<Mutex<Shell<R>>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = uri.query().unwrap_or_default().to_owned();
    let asked = Asked { method, path: uri.path().to_owned(), query, headers, body };
    let shell = &mut *lock(&state);
    shell.came.push((asked.method.clone(), asked.path.clone()));
    let hit = |(_, method, path_end): &(Loss, Method, String)| {
        *method == asked.method && asked.path.ends_with(path_end.as_str())
    };
    let loss = shell.losses.iter().position(hit).map(|at| shell.losses.remove(at).0);
    if loss == Some(Loss::OnTheWay) {
        return cut_off();
    }
    let now = shell.now();
    let response = shell.rules.answer(&asked, now);
    if loss.is_some() { cut_off() } else { response }
}

/// The connection ends before an answer is there.
fn cut_off() -> Response {
    let gone = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    Response::new(Body::from_stream(futures_util::stream::iter([Err::<Bytes, _>(gone)])))
}

/// A rate limit of so many requests in any minute.
#[derive(Debug)]
pub struct PerMinute {
    most: usize,
    times: Vec<u64>,
}

impl PerMinute {
    pub const fn new(most: usize) -> Self {
        Self { most, times: Vec::new() }
    }

    /// # Errors
    /// The seconds to wait where it is used up.
    pub fn take(&mut self, now: u64) -> Result<(), u64> {
        self.times.retain(|&time| now < time + 60);
        match self.times.first() {
            Some(&first) if self.times.len() >= self.most => Err(first + 60 - now),
            _ => {
                self.times.push(now);
                Ok(())
            }
        }
    }
}
