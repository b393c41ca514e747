//! The service of the demo: real HTTP on loopback, with cookie sessions that expire and rotate,
//! and an OAuth 2.0 token endpoint whose refresh tokens work once. It knows nothing of Keywheel
//! and never helps it; it only counts what it saw.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a session or an access token lives: short enough to watch it die, long enough that a
/// machine busy with other things still renews it in time.
pub const LIFE: Duration = Duration::from_secs(4);
pub const COOKIE: &str = "sid";
pub const CLIENT: &str = "demo-client";

/// A request of the demo has a few hundred bytes.
const LARGEST_HEAD: u64 = 16 << 10;
const LARGEST_BODY: usize = 16 << 10;
/// A connection without a request for this long is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// A held answer goes out after this, whoever forgot it.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// What the service saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub requests: u64,
    /// Requests with a session or an access token that was dead or unknown.
    pub dead: u64,
    pub session_rotations: u64,
    pub token_rotations: u64,
    /// Refresh tokens that came a second time: each revokes the account's whole family.
    pub reuses: u64,
}

/// Makes values nobody can guess, all with one beginning, so that a search for it finds any.
#[derive(Debug)]
struct Mint {
    mark: String,
    seed: [u8; 32],
    issued: u64,
}

impl Mint {
    fn issue(&mut self) -> String {
        self.issued += 1;
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.issued.to_be_bytes());
        let digest = hex::encode(hash.finalize());
        format!("{}{}", self.mark, &digest[..32])
    }
}

/// Stops one answer on its way: told when it is ready, sent when the other side says so.
#[derive(Debug)]
struct Hold {
    ready: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct State {
    mint: Mint,
    client_secret: String,
    /// Session to its end.
    sessions: HashMap<String, Instant>,
    /// Access token to its end.
    access: HashMap<String, Instant>,
    /// Refresh token to whether it was used.
    refresh: HashMap<String, bool>,
    revoked: bool,
    hold: Option<Hold>,
    seen: Seen,
}

#[derive(Debug)]
pub struct Service {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// A freshly signed-in OAuth account.
#[derive(Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
    pub client_secret: String,
}

/// The next token answer: `ready` when the old token is spent and the new one made, `go` sends it.
#[derive(Debug)]
pub struct Held {
    pub ready: oneshot::Receiver<()>,
    pub go: oneshot::Sender<()>,
}

impl Service {
    /// # Errors
    /// The system's, where loopback can't be listened on.
    pub async fn start() -> io::Result<Self> {
        let mut random = [0; 40];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let (mark, seed) = random.split_at(8);
        let seed = <[u8; 32]>::try_from(seed).map_err(io::Error::other)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::new(hex::encode(mark), seed)));
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    pub fn sign_in(&self) -> String {
        hold(&self.state).new_session(Instant::now())
    }

    pub fn authorise(&self) -> Tokens {
        let mut state = hold(&self.state);
        let (access, refresh) = state.new_tokens(Instant::now());
        Tokens { access, refresh, client_secret: state.client_secret.clone() }
    }

    pub fn is_alive(&self, session: &str) -> bool {
        hold(&self.state).sessions.get(session).is_some_and(|&end| Instant::now() < end)
    }

    pub fn seen(&self) -> Seen {
        hold(&self.state).seen
    }

    /// What every secret of this service begins with.
    pub fn mark(&self) -> String {
        hold(&self.state).mint.mark.clone()
    }

    pub fn hold_next_token(&self) -> Held {
        let ((ready, is_ready), (go, may_go)) = (oneshot::channel(), oneshot::channel());
        hold(&self.state).hold = Some(Hold { ready, go: may_go });
        Held { ready: is_ready, go }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hold(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new(mark: String, seed: [u8; 32]) -> Self {
        let mut mint = Mint { mark, seed, issued: 0 };
        Self {
            client_secret: mint.issue(),
            mint,
            sessions: HashMap::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            revoked: false,
            hold: None,
            seen: Seen::default(),
        }
    }

    fn new_session(&mut self, now: Instant) -> String {
        // Only the living are kept: the demo may run for a day.
        self.sessions.retain(|_, end| now < *end);
        let session = self.mint.issue();
        self.sessions.insert(session.clone(), now + LIFE);
        session
    }

    fn new_tokens(&mut self, now: Instant) -> (String, String) {
        self.access.retain(|_, end| now < *end);
        let (access, refresh) = (self.mint.issue(), self.mint.issue());
        self.access.insert(access.clone(), now + LIFE);
        self.refresh.insert(refresh.clone(), false);
        (access, refresh)
    }

    fn answer(&mut self, request: &Request, now: Instant) -> Answer {
        self.seen.requests += 1;
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/me") => match self.session_of(request, now) {
                Some(_) => Answer::json(200, &json!({ "user": "demo" })),
                None => self.dead(),
            },
            ("GET", "/refresh") => match self.session_of(request, now) {
                // The old id works to its own end, as on sites that expect lost answers.
                Some(_) => {
                    self.seen.session_rotations += 1;
                    let session = self.new_session(now);
                    Answer {
                        cookie: Some(format!(
                            "{COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}",
                            LIFE.as_secs()
                        )),
                        ..Answer::json(200, &json!({ "extended": true }))
                    }
                }
                None => self.dead(),
            },
            ("GET", "/userinfo") => {
                let token = request.authorization.strip_prefix("Bearer ").unwrap_or_default();
                match self.access.get(token) {
                    Some(&end) if now < end && !self.revoked => Answer::json(200, &json!({ "sub": "demo" })),
                    _ => self.dead(),
                }
            }
            ("POST", "/token") => self.token(request, now),
            _ => Answer::json(404, &json!({ "error": "not_found" })),
        }
    }

    fn dead(&mut self) -> Answer {
        self.seen.dead += 1;
        Answer::json(401, &json!({ "error": "signed_out" }))
    }

    fn session_of<'r>(&self, request: &'r Request, now: Instant) -> Option<&'r str> {
        let session = request.cookie(COOKIE)?;
        self.sessions.get(session).is_some_and(|&end| now < end).then_some(session)
    }

    /// RFC 6749 section 6, with the rotation and reuse detection of RFC 9700 section 4.14.2.
    fn token(&mut self, request: &Request, now: Instant) -> Answer {
        let expected = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{}", self.client_secret)));
        if request.authorization != expected {
            return Answer::json(401, &json!({ "error": "invalid_client" }));
        }
        let (mut grant, mut refresh) = (String::new(), String::new());
        for (name, value) in url::form_urlencoded::parse(&request.body) {
            match &*name {
                "grant_type" => grant = value.into_owned(),
                "refresh_token" => refresh = value.into_owned(),
                _ => {}
            }
        }
        if grant != "refresh_token" {
            return Answer::json(400, &json!({ "error": "unsupported_grant_type" }));
        }
        match self.refresh.get_mut(&refresh) {
            Some(used) if !*used && !self.revoked => *used = true,
            found => {
                if found.is_some_and(|used| *used) {
                    self.seen.reuses += 1;
                    self.revoked = true;
                }
                return Answer::json(400, &json!({ "error": "invalid_grant" }));
            }
        }
        self.seen.token_rotations += 1;
        let (access, refresh) = self.new_tokens(now);
        Answer::json(
            200,
            &json!({
                "access_token": access,
                "token_type": "Bearer",
                "expires_in": LIFE.as_secs(),
                "refresh_token": refresh,
            }),
        )
    }
}

#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    cookies: String,
    authorization: String,
    body: Vec<u8>,
    close: bool,
}

impl Request {
    fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies
            .split(';')
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(found, value)| (found == name).then_some(value))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    cookie: Option<String>,
    body: String,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, cookie: None, body: body.to_string() }
    }

    fn bytes(&self) -> Vec<u8> {
        let cookie =
            self.cookie.as_ref().map(|cookie| format!("Set-Cookie: {cookie}\r\n")).unwrap_or_default();
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|code| code.canonical_reason());
        format!(
            "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {}\r\n{cookie}\r\n{}",
            self.status,
            reason.unwrap_or_default(),
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Dropped with this task, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    // A client that goes away is its own business.
                    let _ = converse(stream, &state).await;
                });
            }
            // Out of descriptors: a moment of rest, or this loop burns a core.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    while let Some(request) = tokio::time::timeout(SILENCE, read(&mut from)).await?? {
        let (answer, held) = {
            let mut state = hold(state);
            let answer = state.answer(&request, Instant::now());
            let held = if request.path == "/token" { state.hold.take() } else { None };
            (answer, held)
        };
        if let Some(Hold { ready, go }) = held {
            let _ = ready.send(());
            let _ = tokio::time::timeout(LONGEST_HOLD, go).await;
        }
        to.write_all(&answer.bytes()).await?;
        if request.close {
            break;
        }
    }
    Ok(())
}

/// One request; none where the client is done.
async fn read(from: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> io::Result<Option<Request>> {
    let malformed = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut head = from.take(LARGEST_HEAD);
    let mut line = String::new();
    if head.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed("no request line"));
    };
    let path = target.split('?').next().unwrap_or(target);
    let mut request = Request { method: method.into(), path: path.into(), ..Request::default() };
    let mut length = 0;
    loop {
        line.clear();
        if head.read_line(&mut line).await? == 0 {
            return Err(malformed("the head is too long or cut off"));
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "cookie" => request.cookies = value.into(),
            "authorization" => request.authorization = value.into(),
            "content-length" => length = value.parse().map_err(|_| malformed("no length"))?,
            "connection" => request.close = value.eq_ignore_ascii_case("close"),
            // The client always knows the length of what it sends.
            "transfer-encoding" => return Err(malformed("only bodies with a length are understood")),
            _ => {}
        }
    }
    if length > LARGEST_BODY {
        return Err(malformed("the body is too long"));
    }
    request.body = vec![0; length];
    from.read_exact(&mut request.body).await?;
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new("mark".into(), [7; 32])
    }

    fn get(path: &str) -> Request {
        Request { method: "GET".into(), path: path.into(), ..Request::default() }
    }

    fn with_session(path: &str, session: &str) -> Request {
        Request { cookies: format!("other=1; {COOKIE}={session}"), ..get(path) }
    }

    fn refresh(state: &State, token: &str) -> Request {
        Request {
            method: "POST".into(),
            path: "/token".into(),
            authorization: format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{}", state.client_secret))),
            body: format!("grant_type=refresh_token&refresh_token={token}").into_bytes(),
            ..Request::default()
        }
    }

    #[test]
    fn a_session_dies_at_its_end_unless_it_was_extended() {
        let (mut state, start) = (state(), Instant::now());
        let session = state.new_session(start);
        let later = start + LIFE / 2;
        assert_eq!(state.answer(&with_session("/me", &session), later).status, 200);
        let extended = state.answer(&with_session("/refresh", &session), later).cookie.unwrap_or_default();
        let fresh = extended.split(['=', ';']).nth(1).unwrap_or_default().to_owned();
        let end = start + LIFE;
        assert_eq!(state.answer(&with_session("/me", &session), end).status, 401);
        assert_eq!(state.answer(&with_session("/me", &fresh), end).status, 200);
        assert_eq!(state.answer(&with_session("/refresh", &fresh), later + LIFE).status, 401);
        assert_eq!(state.seen.dead, 2);
    }

    #[test]
    fn a_refresh_token_works_once_and_its_reuse_revokes_the_account() {
        let (mut state, now) = (state(), Instant::now());
        let (_, first) = state.new_tokens(now);
        let body = |answer: Answer| serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
        let issued = body(state.answer(&refresh(&state, &first), now));
        let [access, second] = ["access_token", "refresh_token"]
            .map(|name| issued[name].as_str().unwrap_or_default().to_owned());
        let asked = || Request { authorization: format!("Bearer {access}"), ..get("/userinfo") };
        assert_eq!(state.answer(&asked(), now).status, 200);
        assert_eq!(state.answer(&refresh(&state, &first), now).status, 400);
        assert_eq!(state.answer(&refresh(&state, &second), now).status, 400, "the whole family is revoked");
        assert_eq!(state.answer(&asked(), now).status, 401);
        assert_eq!((state.seen.reuses, state.seen.token_rotations), (1, 1));
    }

    #[test]
    fn only_the_client_may_refresh() {
        let (mut state, now) = (state(), Instant::now());
        let (_, token) = state.new_tokens(now);
        let stranger = Request { authorization: "Basic eA==".into(), ..refresh(&state, &token) };
        assert_eq!(state.answer(&stranger, now).status, 401);
        assert_eq!(state.answer(&refresh(&state, &token), now).status, 200, "nothing was spent");
    }

    #[test]
    fn every_secret_begins_with_the_mark_and_differs() {
        let mut state = state();
        let issued: std::collections::HashSet<_> = (0..100).map(|_| state.mint.issue()).collect();
        assert_eq!(issued.len(), 100);
        assert!(issued.iter().all(|secret| secret.starts_with("mark") && secret.len() == 36));
    }

    #[tokio::test]
    async fn a_held_answer_goes_out_when_it_is_let_go_and_the_connection_stays() -> io::Result<()> {
        let service = Service::start().await?;
        let tokens = service.authorise();
        let held = service.hold_next_token();
        let mut client = TcpStream::connect(service.address).await?;
        let body = format!("grant_type=refresh_token&refresh_token={}", tokens.refresh);
        let basic = STANDARD.encode(format!("{CLIENT}:{}", tokens.client_secret));
        let request = format!(
            "POST /token HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await?;
        held.ready.await.map_err(io::Error::other)?;
        assert_eq!(service.seen().token_rotations, 1, "the old token is spent before the answer leaves");
        let mut answer = [0; 4_096];
        assert_eq!(
            client.try_read(&mut answer).map_err(|error| error.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
        held.go.send(()).map_err(|()| io::Error::other("nobody waits"))?;
        let length = client.read(&mut answer).await?;
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
        client.write_all(b"GET /me HTTP/1.1\r\nConnection: close\r\n\r\n").await?;
        let mut rest = String::new();
        client.read_to_string(&mut rest).await?;
        assert!(rest.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{rest}");
        Ok(())
    }
}
