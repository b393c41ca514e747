//! Stands between a client and a PostgreSQL server, and does to their connections what networks and
//! dying machines do: cuts one before a statement or before its answer, keeps everything on its
//! way, delays. It knows the protocol's frames, and counts statements by them. It changes no byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::SOON;
use crate::postgres_server::url_of;

/// Where a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees the end of this statement.
    Before,
    /// The server did it, and its answer is lost.
    Unanswered,
    /// Nothing is cut: this statement stays on its way until `heal`.
    Held,
}

/// Which statement is struck, counted from `arm` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The n-th of all, the first is 1.
    Statement(u64),
    /// The n-th of all, and whatever comes after it is cut before it.
    From(u64),
    /// The n-th COMMIT.
    Commit(u64),
}

#[derive(Default)]
struct State {
    target: PathBuf,
    armed: Option<(Which, Cut)>,
    statements: u64,
    commits: u64,
    /// The words of those that were struck.
    struck: Vec<String>,
    partitioned: bool,
    /// One connection's statement is held.
    holds: bool,
    delay: Duration,
    connections: Vec<Arc<Connection>>,
    ended: bool,
}

struct Connection {
    client: UnixStream,
    server: UnixStream,
    counts: Mutex<Counts>,
    answered: Condvar,
}

/// What one connection asked and was answered.
#[derive(Default)]
struct Counts {
    /// Questions that a `ReadyForQuery` answers each, the start of the session among them.
    asked: u64,
    ready: u64,
    /// The server's words go nowhere.
    silenced: bool,
    /// The server's end is over.
    over: bool,
}

impl Connection {
    fn cut(&self) {
        let _over = self.client.shutdown(Shutdown::Both);
        let _over = self.server.shutdown(Shutdown::Both);
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct PostgresProxy {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl PostgresProxy {
    /// Before the server with that socket.
    pub fn before(target: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("keywheel-proxy-").tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).expect("a socket");
        let state = State { target: target.to_owned(), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { folder, shared, accepting: Some(accepting) }
    }

    pub fn url(&self) -> String {
        url_of(self.folder.path())
    }

    fn change(&self, what: impl FnOnce(&mut State)) {
        what(&mut hold(&self.shared.state));
        self.shared.changed.notify_all();
    }

    /// Strikes a statement of those that come from now on, whatever connection it comes over.
    pub fn arm(&self, which: Which, cut: Cut) {
        self.change(|state| {
            (state.armed, state.statements, state.commits) = (Some((which, cut)), 0, 0);
            state.struck.clear();
        });
    }

    /// Strikes nothing any more, and returns the words of what was struck.
    pub fn disarm(&self) -> Vec<String> {
        let mut struck = Vec::new();
        self.change(|state| {
            state.armed = None;
            struck = std::mem::take(&mut state.struck);
        });
        struck
    }

    /// Waits until as many statements were struck.
    pub fn wait_until_struck(&self, times: usize) {
        let end = Instant::now() + SOON;
        let mut state = hold(&self.shared.state);
        while state.struck.len() < times {
            let left = end.checked_duration_since(Instant::now()).expect("a statement is struck in time");
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing gets through either way, and nobody is told: new connections are taken and not
    /// served. What was sent meanwhile arrives after `heal`, as TCP sends it again.
    pub fn partition(&self) {
        self.change(|state| state.partitioned = true);
    }

    /// Each piece waits for this long, either way.
    pub fn delay(&self, by: Duration) {
        self.change(|state| state.delay = by);
    }

    pub fn heal(&self) {
        self.change(|state| {
            (state.partitioned, state.holds, state.delay) = (false, false, Duration::ZERO);
        });
    }

    /// Cuts every connection there is.
    pub fn cut_all(&self) {
        self.change(|state| {
            for connection in state.connections.drain(..) {
                connection.cut();
            }
        });
    }

    /// New connections go to another server.
    pub fn lead_to(&self, target: &Path) {
        self.change(|state| target.clone_into(&mut state.target));
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.change(|state| {
            state.ended = true;
            for connection in state.connections.drain(..) {
                connection.cut();
            }
        });
        // Accepting ends with the next who comes.
        let _woken = UnixStream::connect(self.folder.path().join(".s.PGSQL.5432"));
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        if hold(&shared.state).ended {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(client, &shared));
    }
}

impl Shared {
    /// Waits while nothing gets through. None: the proxy has ended.
    fn way_is_free(&self) -> Option<Duration> {
        let mut state = hold(&self.state);
        while state.partitioned && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.ended).then_some(state.delay)
    }

    /// Counts a statement, and says what becomes of it.
    fn count(&self, words: &str) -> Option<Cut> {
        let mut state = hold(&self.state);
        let (which, cut) = state.armed?;
        state.statements += 1;
        state.commits += u64::from(words == "COMMIT");
        let struck = match which {
            Which::Statement(number) => state.statements == number,
            Which::From(number) => state.statements >= number,
            Which::Commit(number) => words == "COMMIT" && state.commits == number,
        };
        if !struck {
            return None;
        }
        let again = !state.struck.is_empty();
        state.struck.push(words.to_owned());
        if again && matches!(which, Which::From(_)) {
            return Some(Cut::Before);
        }
        state.holds |= cut == Cut::Held;
        self.changed.notify_all();
        Some(cut)
    }

    fn wait_while_held(&self) {
        let mut state = hold(&self.state);
        while state.holds && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn serve(client: UnixStream, shared: &Arc<Shared>) {
    if shared.way_is_free().is_none() {
        return;
    }
    let target = hold(&shared.state).target.clone();
    let Ok(server) = UnixStream::connect(target) else { return };
    let connection =
        Arc::new(Connection { client, server, counts: Mutex::default(), answered: Condvar::new() });
    hold(&shared.state).connections.push(Arc::clone(&connection));
    let answers = std::thread::spawn({
        let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
        move || {
            let _ended = bring_answers(&connection, &shared);
            hold(&connection.counts).over = true;
            connection.answered.notify_all();
            // An end is told like anything else.
            let _free = shared.way_is_free();
            connection.cut();
        }
    });
    let _ended = bring_questions(&connection, shared);
    let _free = shared.way_is_free();
    connection.cut();
    let _joined = answers.join();
    hold(&shared.state).connections.retain(|other| !Arc::ptr_eq(other, &connection));
}

/// None: the connection is over.
fn bring_questions(connection: &Connection, shared: &Shared) -> Option<()> {
    let (mut from, mut to) = (&connection.client, &connection.server);
    let mut frames = Frames::from_client();
    let mut words = String::new();
    loop {
        let frame = read_frame(&mut frames, &mut from)?;
        let delay = shared.way_is_free()?;
        std::thread::sleep(delay);
        if let Some(said) = frame.words() {
            words = said;
        }
        match frame.kind {
            // "Do you speak TLS?" No; the start of the session comes after the answer.
            Kind::AsksForTls => {
                from.write_all(b"N").ok()?;
                continue;
            }
            Kind::Startup => hold(&connection.counts).asked += 1,
            Kind::Typed(b'Q' | b'S') => {
                let cut = shared.count(&words);
                hold(&connection.counts).asked += 1;
                match cut {
                    None => {}
                    Some(Cut::Before) => return None,
                    Some(Cut::Held) => {
                        shared.wait_while_held();
                        // It may have given up meanwhile; what it sent is on its way all the same.
                    }
                    Some(Cut::Unanswered) => {
                        hold(&connection.counts).silenced = true;
                        to.write_all(&frame.bytes).ok()?;
                        wait_until_answered(connection);
                        return None;
                    }
                }
            }
            Kind::Typed(_) => {}
        }
        to.write_all(&frame.bytes).ok()?;
    }
}

fn wait_until_answered(connection: &Connection) {
    let end = Instant::now() + SOON;
    let mut counts = hold(&connection.counts);
    while counts.ready < counts.asked && !counts.over {
        let Some(left) = end.checked_duration_since(Instant::now()) else { return };
        counts = connection.answered.wait_timeout(counts, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn bring_answers(connection: &Connection, shared: &Shared) -> Option<()> {
    let (mut from, mut to) = (&connection.server, &connection.client);
    let mut frames = Frames::from_server();
    loop {
        let frame = read_frame(&mut frames, &mut from)?;
        let delay = shared.way_is_free()?;
        std::thread::sleep(delay);
        let mut counts = hold(&connection.counts);
        if frame.kind == Kind::Typed(b'Z') {
            counts.ready += 1;
            connection.answered.notify_all();
        }
        let silenced = counts.silenced;
        drop(counts);
        if !silenced {
            to.write_all(&frame.bytes).ok()?;
        }
    }
}

fn read_frame(frames: &mut Frames, from: &mut impl Read) -> Option<Frame> {
    let mut piece = [0; 4096];
    loop {
        if let Some(frame) = frames.next() {
            return Some(frame);
        }
        let read = from.read(&mut piece).ok().filter(|read| *read > 0)?;
        frames.add(&piece[..read]);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The first of a session, which has no type.
    Startup,
    AsksForTls,
    Typed(u8),
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Frame {
    /// The statement's text, where it has one.
    fn words(&self) -> Option<String> {
        let body = self.bytes.get(5..)?;
        let body = match self.kind {
            Kind::Typed(b'Q') => body,
            // After the prepared statement's name.
            Kind::Typed(b'P') => body.split_at(body.iter().position(|byte| *byte == 0)? + 1).1,
            _ => return None,
        };
        Some(String::from_utf8_lossy(body.split(|byte| *byte == 0).next()?).trim().to_owned())
    }
}

/// One direction's bytes, cut into frames: a type and a length, which counts itself.
struct Frames {
    bytes: Vec<u8>,
    started: bool,
}

impl Frames {
    const ASKS_FOR_TLS: u32 = 80_877_103;
    const ASKS_FOR_GSS: u32 = 80_877_104;

    const fn from_client() -> Self {
        Self { bytes: Vec::new(), started: false }
    }

    /// A server's are typed from the first on.
    const fn from_server() -> Self {
        Self { bytes: Vec::new(), started: true }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn number_at(&self, place: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes.get(place..place + 4)?.try_into().ok()?))
    }

    fn next(&mut self) -> Option<Frame> {
        let type_length = usize::from(self.started);
        let length = type_length + usize::try_from(self.number_at(type_length)?).ok()?.max(4);
        if self.bytes.len() < length {
            return None;
        }
        let kind = if self.started {
            Kind::Typed(*self.bytes.first()?)
        } else if matches!(self.number_at(4), Some(Self::ASKS_FOR_TLS | Self::ASKS_FOR_GSS)) {
            Kind::AsksForTls
        } else {
            self.started = true;
            Kind::Startup
        };
        Some(Frame { kind, bytes: self.bytes.drain(..length).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&[kind], length.as_slice(), body].concat()
    }

    fn startup() -> Vec<u8> {
        [&16_u32.to_be_bytes(), &196_608_u32.to_be_bytes(), b"user\0\0\0\0".as_slice()].concat()
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut() {
        let asks = [8_u32.to_be_bytes(), Frames::ASKS_FOR_TLS.to_be_bytes()].concat();
        let parse = typed(b'P', b"s1\0SELECT $1\0\0\0");
        let query = typed(b'Q', b" COMMIT\0");
        let all = [asks.clone(), startup(), parse.clone(), typed(b'S', b""), query.clone()].concat();
        let expected = [
            (Kind::AsksForTls, asks, None),
            (Kind::Startup, startup(), None),
            (Kind::Typed(b'P'), parse, Some("SELECT $1")),
            (Kind::Typed(b'S'), typed(b'S', b""), None),
            (Kind::Typed(b'Q'), query, Some("COMMIT")),
        ];
        for piece in 1..=all.len() {
            let mut frames = Frames::from_client();
            let mut found = Vec::new();
            for bytes in all.chunks(piece) {
                frames.add(bytes);
                found.extend(std::iter::from_fn(|| frames.next()));
            }
            assert_eq!(found.len(), expected.len(), "in pieces of {piece}");
            for (frame, (kind, bytes, words)) in found.iter().zip(&expected) {
                assert_eq!((&frame.kind, &frame.bytes), (kind, bytes), "in pieces of {piece}");
                assert_eq!(frame.words().as_deref(), *words);
            }
        }
    }

    #[test]
    fn a_frame_that_has_not_come_whole_is_none_yet() {
        let mut frames = Frames::from_server();
        let ready = typed(b'Z', b"I");
        frames.add(&ready[..5]);
        assert_eq!(frames.next(), None);
        frames.add(&ready[5..]);
        assert_eq!(frames.next(), Some(Frame { kind: Kind::Typed(b'Z'), bytes: ready }));
        assert_eq!(frames.next(), None);
    }
}
