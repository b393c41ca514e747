//! A loopback port in front of a service that is a function of its requests, with a clock that a
//! test can put forward. An answer can be lost: its effect stays, and whoever asked hears nothing.
//! It knows no service's rules.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use serde_json::Value;

use crate::harness::SOON;

/// A service's rules. The clock comes in.
pub trait Plays: Send + 'static {
    fn answer(&mut self, request: &Request<Bytes>, now: Instant) -> Response<Bytes>;
}

pub struct Fake<S> {
    pub url: String,
    state: Arc<Mutex<State<S>>>,
}

struct State<S> {
    service: S,
    ahead: Duration,
    /// Paths whose next answer is lost, once for each time it stands here.
    loses: Vec<String>,
    asked: Vec<String>,
}

impl<S: Plays> Fake<S> {
    pub fn start(service: S) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = State { service, ahead: Duration::ZERO, loses: Vec::new(), asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let of_thread = Arc::clone(&state);
        // Ends with the test process, like the listener.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_thread);
                // A client that was killed is no error of the service.
                std::thread::spawn(move || drop(serve(&stream, &state)));
            }
        });
        Self { url, state }
    }

    /// The service itself, at its own time.
    pub fn with<T>(&self, look: impl FnOnce(&mut S, Instant) -> T) -> T {
        let state = &mut *self.state();
        look(&mut state.service, Instant::now() + state.ahead)
    }

    /// Lets time pass at the service.
    pub fn pass(&self, time: Duration) {
        self.state().ahead += time;
    }

    /// The next request for this path has its effect, and its answer is never heard. Said again:
    /// the one after it as well.
    pub fn lose_next_answer(&self, path: &str) {
        self.state().loses.push(path.to_owned());
    }

    /// Requests for a path until now.
    pub fn count(&self, path: &str) -> usize {
        self.state().asked.iter().filter(|asked| *asked == path).count()
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        lock(&self.state)
    }
}

fn lock<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve<S: Plays>(mut stream: &TcpStream, state: &Mutex<State<S>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    let request = read(BufReader::new(stream))?;
    let answer = {
        let state = &mut *lock(state);
        let path = request.uri().path().to_owned();
        let answer = state.service.answer(&request, Instant::now() + state.ahead);
        let lost = state.loses.iter().position(|lost| *lost == path);
        state.asked.push(path);
        if let Some(lost) = lost {
            state.loses.remove(lost);
            return Ok(());
        }
        answer
    };
    let (head, body) = answer.into_parts();
    write!(
        stream,
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        head.status.as_u16(),
        body.len()
    )?;
    for (name, value) in &head.headers {
        stream.write_all(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat())?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&body)
}

fn read(mut stream: BufReader<&TcpStream>) -> std::io::Result<Request<Bytes>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let mut request =
        Request::builder().method(words.next().unwrap_or("GET")).uri(words.next().unwrap_or("/"));
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap_or(0);
        }
        request = request.header(name, value);
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    request.body(body.into()).map_err(std::io::Error::other)
}

// What services have in common on the wire

pub fn json_answer(status: u16, body: &Value) -> Response<Bytes> {
    let answer =
        Response::builder().status(status).header(header::CONTENT_TYPE, "application/json; charset=utf-8");
    answer.body(body.to_string().into()).expect("an answer")
}

pub fn text_of(headers: &HeaderMap, name: impl header::AsHeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The token of an `Authorization` header of RFC 6750.
pub fn bearer(request: &Request<Bytes>) -> &str {
    text_of(request.headers(), header::AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default()
}

/// A rate limit by a sliding minute, with the seconds to wait where it is used up.
#[derive(Debug)]
pub struct PerMinute {
    most: usize,
    times: Vec<Instant>,
}

impl PerMinute {
    pub const fn new(most: usize) -> Self {
        Self { most, times: Vec::new() }
    }

    pub fn take(&mut self, now: Instant) -> Result<(), u64> {
        const MINUTE: Duration = Duration::from_secs(60);
        self.times.retain(|&time| now.saturating_duration_since(time) < MINUTE);
        match self.times.first() {
            Some(&first) if self.times.len() >= self.most => {
                Err((MINUTE - now.saturating_duration_since(first)).as_secs().max(1))
            }
            _ => {
                self.times.push(now);
                Ok(())
            }
        }
    }
}
