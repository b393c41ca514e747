//! A worker whose plugin escaped: it owns its end of the socket and says what it likes. First
//! against the link alone, byte by byte; then as real processes under a real supervisor; then
//! with requests that no plugin could have made, through to the egress.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::FromRawFd;

use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

use super::super::{CallError, Code, RunningCall, Supervisor};
use super::*;
use crate::credential::{CookieAttributes, Jar, Key, Secret};
use crate::egress::{Egress, EgressOptions, Exchange};
use crate::protocol::{
    BUILD, Call, Capture, Context, Evidence, HttpResponse, Layer, LayerState, Leaf, MAX_FRAME, PoolShape,
    Reason, Source,
};
use crate::provider::{
    AllowedOrigin, CookieLocation, Encoding, KeySpec, Location, Manifest, Resolved, SettingKind, SettingSpec,
};

/// What never takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

fn frame(message: &FromWorker) -> Vec<u8> {
    let mut bytes = Vec::new();
    protocol::encode(message, &mut bytes).unwrap();
    bytes
}

/// A frame around bytes that need not be a message.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn request(url: &str) -> HttpRequest {
    HttpRequest {
        method: "GET".into(),
        url: vec![Part::Text(url.into())],
        headers: vec![],
        body: None,
        cookies: false,
        capture: vec![],
        redirects: 0,
        timeout: None,
        extras: vec![],
    }
}

fn http(id: CallId) -> FromWorker {
    FromWorker::Http { id, request: request("https://a.example/") }
}

fn log(id: CallId, message: impl Into<String>) -> FromWorker {
    FromWorker::Log { id, level: LogLevel::Info, message: message.into() }
}

fn finished(id: CallId) -> FromWorker {
    FromWorker::Finished {
        id,
        result: Ok(Answer::Validated(Verdict::Valid(Evidence::default()))),
        used: Used::default(),
    }
}

fn announce(pid: u32, worker_id: String, service: Option<String>) -> FromWorker {
    FromWorker::Announce {
        pid,
        worker_id,
        service,
        abi: "0.1.0".into(),
        build: BUILD.into(),
        layers: vec![Layer { name: "seccomp".into(), state: LayerState::On }],
        shape: PoolShape { memories: 1, tables: 1 },
    }
}

// ---------------------------------------------------------------------------------------------
// Against the link

/// The worker's end, held by an attacker; the host's end runs as the supervisor runs it.
struct Hostile {
    link: Arc<HostLink>,
    socket: UnixStream,
    end: JoinHandle<LinkEnd>,
}

impl Hostile {
    fn new() -> Self {
        Self::with(HostLink::new())
    }

    fn with(link: Arc<HostLink>) -> Self {
        let (ours, socket) = UnixStream::pair().unwrap();
        let (mut from, mut to) = ours.into_split();
        let of_task = Arc::clone(&link);
        let end = tokio::spawn(async move {
            let end = tokio::select! {
                end = of_task.read_all(&mut from) => end,
                end = of_task.write_all(&mut to) => LinkEnd::Io(end.unwrap_err()),
            };
            of_task.close();
            end
        });
        Self { link, socket, end }
    }

    /// The host may hang up in the middle, which is what is wanted of it.
    async fn say(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(DEADLINE, self.socket.write_all(bytes)).await.unwrap();
    }

    /// How the host ended it, without being asked to. A panic of the host's task fails here.
    async fn end(self) -> LinkEnd {
        tokio::time::timeout(DEADLINE, self.end).await.expect("the link ends").expect("no panic")
    }

    async fn close(self) -> LinkEnd {
        drop(self.socket);
        tokio::time::timeout(DEADLINE, self.end).await.expect("the link ends").expect("no panic")
    }
}

/// What a call got, until its link was closed.
async fn all(events: &mut Events) -> Vec<CallEvent> {
    let mut got = Vec::new();
    while let Some(event) = tokio::time::timeout(DEADLINE, events.next()).await.expect("the calls end") {
        got.push(event);
    }
    got
}

#[tokio::test]
async fn whatever_breaks_the_protocol_ends_the_worker_in_words() {
    type Attack = fn(CallId, CallId) -> Vec<u8>;
    // `open` runs, `ended` was finished by the worker itself.
    let table: &[(&str, Attack, &str)] = &[
        ("a call that never was", |_, _| frame(&http(99)), "call 99, which never was"),
        ("the largest id", |_, _| frame(&finished(u32::MAX)), "which never was"),
        ("the id before the first", |_, _| frame(&log(0, "x")), "call 0, which has ended"),
        ("a request for a finished call", |_, ended| frame(&http(ended)), "which has ended"),
        ("a log line of a finished call", |_, ended| frame(&log(ended, "x")), "which has ended"),
        ("a second end", |_, ended| frame(&finished(ended)), "which has ended"),
        (
            "a replayed conversation",
            |open, _| [frame(&http(open)), frame(&finished(open))].concat().repeat(2),
            "which has ended",
        ),
        (
            "a question before the answer",
            |open, _| frame(&http(open)).repeat(2),
            "asks before it was answered",
        ),
        (
            "another question before the answer",
            |open, _| [frame(&FromWorker::Reveal { id: open, key: "k".into() }), frame(&http(open))].concat(),
            "asks before it was answered",
        ),
        (
            "a second announcement",
            |_, _| frame(&announce(1, "w1".into(), Some("another".into()))),
            "a second announcement",
        ),
        ("unfit after all", |_, _| frame(&FromWorker::Unfit("x".into())), "a second announcement"),
        ("the longest length", |_, _| vec![0xff; 4], "frame of 4294967295 bytes"),
        (
            "a length one too long",
            |_, _| u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes().to_vec(),
            "at most 4194304 allowed",
        ),
        ("no length at all", |_, _| vec![0; 4], "not a known message"),
        ("a kind that isn't there", |_, _| framed(&[200, 1, 2, 3]), "not a known message"),
        (
            "bytes after the message",
            |open, _| framed(&[&frame(&log(open, "x"))[4..], b"y"].concat()),
            "1 bytes follow the message",
        ),
        (
            "a message cut short within its frame",
            |open, _| {
                let whole = frame(&http(open));
                framed(&whole[4..whole.len() - 3])
            },
            "not a known message",
        ),
        (
            "text that is no UTF-8",
            |open, _| {
                let mut bytes = frame(&log(open, "aaaa"));
                let end = bytes.len();
                bytes[end - 2..].copy_from_slice(&[0xff, 0xfe]);
                bytes
            },
            "not a known message",
        ),
        // Unfit's text claims 2^35 bytes, Http's list of parts as many entries.
        ("a text longer than any memory", |_, _| framed(&[1, 0xff, 0xff, 0xff, 0xff, 0x7f]), "not a known"),
        (
            "a list longer than any memory",
            |_, _| framed(&[2, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            "not a known message",
        ),
        (
            "log lines without end",
            |open, _| frame(&log(open, "\u{1b}[2J".repeat(1_000))).repeat(200),
            "floods the host with log lines",
        ),
        (
            "empty log lines without end",
            |open, _| frame(&log(open, "")).repeat(limits::CALL_LOG_FLOOD + 1),
            "floods the host with log lines",
        ),
    ];
    for (what, attack, want) in table {
        let mut hostile = Hostile::new();
        let (ended, mut of_ended) = hostile.link.register().unwrap();
        let (open, mut of_open) = hostile.link.register().unwrap();
        let (_, mut of_neighbour) = hostile.link.register().unwrap();
        hostile.say(&frame(&finished(ended))).await;
        hostile.say(&attack(open, ended)).await;
        let end = hostile.end().await;
        assert!(matches!(end, LinkEnd::Violation(_)), "{what}: {end}");
        assert!(end.to_string().contains(want), "{what}: {end}");
        assert!(matches!(all(&mut of_ended).await.as_slice(), [CallEvent::Finished(Ok(_))]), "{what}");
        assert!(all(&mut of_neighbour).await.is_empty(), "{what}: another call heard of it");
        // The open call got at most what it could honestly have got, then the end of the channel.
        let questions =
            all(&mut of_open).await.iter().filter(|event| !matches!(event, CallEvent::Log(..))).count();
        assert!(questions <= 2, "{what}: {questions}");
    }
}

#[tokio::test]
async fn a_frame_cut_short_is_the_end_of_a_socket_and_half_a_frame_is_silence() {
    for whole in [frame(&http(1)), frame(&finished(1)), vec![0xff, 0xff, 0x3f, 0]] {
        for cut in 1..whole.len() {
            let mut hostile = Hostile::new();
            let (_, mut events) = hostile.link.register().unwrap();
            hostile.say(&whole[..cut]).await;
            // Nothing is made of half a frame; the call's own deadline ends the waiting.
            assert!(events.is_empty());
            let end = hostile.close().await;
            assert!(matches!(end, LinkEnd::Closed), "{cut}: {end}");
            assert!(all(&mut events).await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_call_that_was_given_up_may_finish_its_sentence_and_no_more() {
    let mut hostile = Hostile::new();
    let (id, events) = hostile.link.register().unwrap();
    drop(events);
    assert!(hostile.link.forget(id));
    assert!(!hostile.link.forget(id));
    hostile.say(&[frame(&log(id, "x")), frame(&http(id)), frame(&finished(id))].concat()).await;
    let (next, mut events) = hostile.link.register().unwrap();
    hostile.say(&frame(&finished(next))).await;
    assert!(matches!(events.next().await, Some(CallEvent::Finished(Ok(_)))), "an honest worker goes on");
    let large = frame(&log(id, "x".repeat(1 << 20)));
    for _ in 0..AFTERWARDS >> 20 {
        hostile.say(&large).await;
    }
    let end = hostile.end().await;
    assert!(end.to_string().contains("which has ended"), "{end}");
}

#[tokio::test]
async fn an_answer_of_another_kind_stays_with_its_call() {
    // What it means there, the supervisor's `describe` and the attempt decide: no verdict.
    let mut hostile = Hostile::new();
    let (id, mut events) = hostile.link.register().unwrap();
    let answer = Answer::Rotated(Outcome::NeedsHuman(Reason::default()));
    hostile.say(&frame(&FromWorker::Finished { id, result: Ok(answer), used: Used::default() })).await;
    assert!(matches!(events.next().await, Some(CallEvent::Finished(Ok(Answer::Rotated(_))))));
    assert!(events.next().await.is_none());
    assert!(matches!(hostile.close().await, LinkEnd::Closed));
}

#[tokio::test]
async fn gigantic_lists_are_refused_before_anyone_holds_them() {
    let setting = SettingSpec {
        name: String::new(),
        kind: SettingKind::Choice,
        required: false,
        default: None,
        choices: vec![String::new(); limits::PIECES],
        help: String::new(),
    };
    let manifest = Manifest {
        service: String::new(),
        title: String::new(),
        version: String::new(),
        validate_url: String::new(),
        keys: vec![],
        origins: vec![],
        settings: vec![setting],
        methods: vec![],
        validate_interval: 1,
        max_age: None,
        extras: vec![],
    };
    let extras = vec![(String::new(), String::new()); limits::PIECES + 1];
    let reason = Reason { extras: extras.clone(), ..Reason::default() };
    let evidence = Evidence { extras: extras.clone(), ..Evidence::default() };
    for answer in [
        Answer::Described(Box::new(manifest)),
        Answer::Validated(Verdict::Valid(evidence.clone())),
        Answer::Rotated(Outcome::Rotated(evidence)),
        Answer::Validated(Verdict::Unknown(reason)),
        Answer::Validated(Verdict::Invalid(Reason {
            message: "x".repeat(limits::MESSAGE_BYTES),
            ..Reason::default()
        })),
    ] {
        let mut hostile = Hostile::new();
        let (id, mut events) = hostile.link.register().unwrap();
        hostile.say(&frame(&FromWorker::Finished { id, result: Ok(answer), used: Used::default() })).await;
        // A plugin can return such a thing, so it is the plugin's fault and not its worker's.
        let got = events.next().await;
        assert!(matches!(got, Some(CallEvent::Finished(Err(Fault::Limit(_))))), "{got:?}");
        assert!(matches!(hostile.close().await, LinkEnd::Closed));
    }

    let empty = || Part::Text(String::new());
    let leaves =
        Part::Encoded { leaves: vec![Leaf::Text(String::new()); limits::PIECES], encoding: Encoding::Hex };
    let plain = request("https://a.example/");
    for request in [
        HttpRequest { url: vec![empty(); limits::PIECES + 1], ..plain.clone() },
        HttpRequest { body: Some(vec![leaves]), ..plain.clone() },
        HttpRequest { headers: vec![(String::new(), vec![]); limits::PIECES + 1], ..plain.clone() },
        HttpRequest { extras, ..plain.clone() },
        HttpRequest { method: "x".repeat(limits::MESSAGE_BYTES + 1), ..plain },
    ] {
        let mut hostile = Hostile::new();
        let (id, mut events) = hostile.link.register().unwrap();
        hostile.say(&frame(&FromWorker::Http { id, request })).await;
        assert!(matches!(
            answer_to(&mut hostile).await,
            ToWorker::HttpDone { result: Err(HttpError::Denied(_)), .. }
        ));
        assert!(events.is_empty(), "nobody was asked");
        // It may ask again, properly.
        hostile.say(&frame(&http(id))).await;
        assert!(matches!(events.next().await, Some(CallEvent::Http(_))));
        assert!(matches!(hostile.close().await, LinkEnd::Closed));
    }
}

async fn answer_to(hostile: &mut Hostile) -> ToWorker {
    let mut head = [0; 4];
    tokio::time::timeout(DEADLINE, hostile.socket.read_exact(&mut head)).await.unwrap().unwrap();
    let mut body = vec![0; protocol::frame_length(&head).unwrap().unwrap()];
    hostile.socket.read_exact(&mut body).await.unwrap();
    protocol::decode(&body).unwrap()
}

#[tokio::test]
async fn log_lines_nobody_reads_are_dropped_and_never_a_question_or_the_end() {
    let mut hostile = Hostile::new();
    let (id, mut events) = hostile.link.register().unwrap();
    // A plugin's own doing: two thousand lines in one write to standard output.
    hostile.say(&frame(&log(id, "x")).repeat(2_000)).await;
    hostile.say(&frame(&http(id))).await;
    hostile.say(&frame(&finished(id))).await;
    assert!(matches!(hostile.close().await, LinkEnd::Closed));
    let got = all(&mut events).await;
    assert_eq!(got.len(), CALL_QUEUE);
    assert!(matches!(got[CALL_QUEUE - 2..], [CallEvent::Http(_), CallEvent::Finished(Ok(_))]));
}

#[tokio::test]
async fn more_questions_than_a_call_may_ask_end_the_worker() {
    let mut hostile = Hostile::new();
    let (id, mut events) = hostile.link.register().unwrap();
    for _ in 0..limits::CALL.host_calls {
        hostile.say(&frame(&FromWorker::Reveal { id, key: "k".into() })).await;
        assert!(matches!(events.next().await, Some(CallEvent::Reveal(_))));
        hostile.link.send(&ToWorker::RevealDone { id, result: Err("no".into()) }).unwrap();
    }
    hostile.say(&frame(&http(id))).await;
    let end = hostile.end().await;
    assert!(end.to_string().contains("asks more than 256 times"), "{end}");
}

#[tokio::test]
async fn a_worker_that_never_reads_is_ended_by_time_and_by_bytes() {
    // It takes nothing for as long as the host has patience.
    let mut hostile = Hostile::with(HostLink::with_patience(Duration::from_millis(200)));
    let (id, mut events) = hostile.link.register().unwrap();
    hostile.say(&frame(&http(id))).await;
    assert!(matches!(events.next().await, Some(CallEvent::Http(_))));
    let long = || ToWorker::RevealDone { id, result: Err("x".repeat(3 << 20)) };
    hostile.link.send(&long()).unwrap();
    let end = hostile.end().await;
    assert!(end.to_string().contains("doesn't read"), "{end}");
    assert!(events.next().await.is_none());

    // It makes the host answer more than it will ever hold.
    let hostile = Hostile::new();
    let link = Arc::clone(&hostile.link);
    let (id, _events) = link.register().unwrap();
    let long = ToWorker::RevealDone { id, result: Err("x".repeat(3 << 20)) };
    let mut sent = 0;
    while !hostile.end.is_finished() {
        assert!(sent < 4 * limits::UNREAD_BYTES, "{sent} bytes, and no end");
        link.send(&long).unwrap();
        sent += 3 << 20;
        assert!(hold(&link.out).len() <= limits::UNREAD_BYTES + MAX_FRAME);
        tokio::task::yield_now().await;
    }
    let end = hostile.end().await;
    assert!(end.to_string().contains("doesn't read"), "{end}");
}

/// Marsaglia's xorshift: the same numbers on every machine and in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.next() % (most + 1);
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[tokio::test]
async fn ten_thousand_random_and_mutated_frames_cause_no_panic_and_no_event_of_another_call() {
    let honest = [
        frame(&http(1)),
        frame(&FromWorker::Reveal { id: 1, key: "k".into() }),
        frame(&log(1, "line")),
        frame(&finished(1)),
        frame(&FromWorker::Finished { id: 1, result: Err(Fault::Trap("x".into())), used: Used::default() }),
        frame(&announce(1, "w".into(), None)),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut violations, mut closed) = (0, 0);
    for round in 0..10_000 {
        let mut bytes = Vec::new();
        for _ in 0..=random.next() % 4 {
            match random.next() % 4 {
                0 => bytes.extend(random.bytes(64)),
                1 => bytes.extend(framed(&random.bytes(64))),
                _ => bytes.extend(&honest[random.next() % honest.len()]),
            }
        }
        for _ in 0..random.next() % 4 {
            if bytes.is_empty() {
                break;
            }
            let at = random.next() % bytes.len();
            match random.next() % 3 {
                0 => bytes[at] ^= 1 << (random.next() % 8),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random.next().to_le_bytes()[0]),
            }
        }
        let mut hostile = Hostile::new();
        let (_, mut events) = hostile.link.register().unwrap();
        hostile.say(&bytes).await;
        match hostile.close().await {
            LinkEnd::Violation(why) => {
                assert!(!why.is_empty());
                violations += 1;
            }
            // An attacker that closed while the host still answered is a socket's error.
            LinkEnd::Closed | LinkEnd::Io(_) => closed += 1,
        }
        let got = all(&mut events).await;
        let end = got.iter().position(|event| matches!(event, CallEvent::Finished(_)));
        assert!(end.is_none_or(|at| at + 1 == got.len()), "round {round}: {got:?}");
    }
    assert!(violations > 1_000 && closed > 1_000, "{violations} violations, {closed} quiet ends");
}

// ---------------------------------------------------------------------------------------------
// As a process

/// The supervisor starts its executable with `__worker`; where that is this test binary, the
/// argument is a filter that this very function passes. Run as a test it does nothing.
#[test]
#[expect(non_snake_case, reason = "the argument of a worker process must be part of the name")]
fn stands_in_for_a__worker() {
    if std::env::args().nth(1).as_deref() != Some("__worker") {
        return;
    }
    // SAFETY: the supervisor put the socket there, and nothing else in this process owns it.
    let mut socket = unsafe { File::from_raw_fd(crate::worker::SOCKET_FD) };
    let Ok(Some(ToWorker::Hello { worker_id, service, .. })) = crate::worker::read_message(&mut socket)
    else {
        return;
    };
    let behaviour = service.clone().unwrap_or_default();
    let outside = crate::worker::pid_outside().unwrap();
    let (pid, claimed) = match behaviour.as_str() {
        "another-pid" => (1, worker_id),
        "another-worker" => (outside, "w0".to_owned()),
        _ => (outside, worker_id),
    };
    let service = if behaviour == "another-service" { Some("steady".to_owned()) } else { service };
    let own_end = socket.try_clone().unwrap();
    let say = |bytes: &[u8]| std::io::Write::write_all(&mut &own_end, bytes);
    if say(&frame(&announce(pid, claimed, service))).is_err() {
        return;
    }
    while let Ok(Some(message)) = crate::worker::read_message::<ToWorker>(&mut socket) {
        let ToWorker::Start { id, .. } = message else { continue };
        // The host kills an attacker in the middle of its sentence.
        let _ = match behaviour.as_str() {
            "foreign-call" => say(&frame(&finished(id + 1))),
            "ends-twice" => say(&frame(&finished(id)).repeat(2)),
            "longest-length" => say(&[0xff; 4]),
            "no-length" => say(&[0; 4]),
            "cut-short" => say(&[9, 0, 0, 0, 1]).and_then(|()| std::process::exit(0)),
            "announces-again" => say(&frame(&announce(pid, "w1".into(), Some("steady".into())))),
            "asks-at-once" => say(&frame(&http(id)).repeat(1_000)),
            "logs-for-ever" => loop {
                if say(&frame(&log(id, "\u{1b}[2J".repeat(256)))).is_err() {
                    break Ok(());
                }
            },
            "silent" => say(&[9, 0, 0, 0, 1]),
            _ => say(&frame(&finished(id))),
        };
    }
}

/// Whose workers are this very test binary.
fn strange_workers() -> Supervisor {
    Supervisor::new(&std::env::current_exe().unwrap(), protocol::Require::Nothing, false).unwrap()
}

fn code() -> Code {
    let shape = Some(PoolShape { memories: 1, tables: 1 });
    Code { digest: "00".repeat(32), file: File::open("/dev/null").unwrap(), shape }
}

fn validate() -> Call {
    Call::Validate(Context {
        credential_id: "c".into(),
        profile_id: None,
        settings: vec![],
        keys: vec![],
        attempt: 1,
        now: 1,
        extras: vec![],
    })
}

async fn outcome(running: &mut RunningCall) -> Result<CallEvent, CallError> {
    loop {
        let event = tokio::time::timeout(DEADLINE, running.next()).await.expect("the call ends");
        match event {
            Ok(CallEvent::Finished(_)) | Err(_) => return event,
            Ok(_) => {}
        }
    }
}

async fn is_gone(pid: u32) -> bool {
    let gone = async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_violation_kills_that_worker_and_its_neighbour_goes_on() {
    let supervisor = strange_workers();
    supervisor.set("steady", code());
    let steady = async || {
        let mut running = supervisor.call("steady", validate()).await.unwrap();
        let ended = outcome(&mut running).await;
        assert!(matches!(ended, Ok(CallEvent::Finished(Ok(Answer::Validated(_))))), "{ended:?}");
        running.pid()
    };
    let pid = steady().await;
    for (behaviour, want) in [
        ("foreign-call", "which never was"),
        ("longest-length", "4294967295 bytes"),
        ("no-length", "not a known message"),
        ("cut-short", "ended with code 0"),
        ("announces-again", "a second announcement"),
        ("asks-at-once", "asks before it was answered"),
        ("logs-for-ever", "floods the host"),
    ] {
        supervisor.set(behaviour, code());
        let mut running = supervisor.call(behaviour, validate()).await.unwrap();
        let hostile = running.pid();
        match outcome(&mut running).await {
            Err(CallError::Died(why)) => assert!(why.contains(want), "{behaviour}: {why}"),
            other => panic!("{behaviour}: {other:?}"),
        }
        assert!(is_gone(hostile).await, "{behaviour} lives");
        assert_eq!(steady().await, pid, "{behaviour} took its neighbour along");
        supervisor.remove(behaviour);
    }
    // The first end counts; the second is a violation that costs nobody else anything.
    supervisor.set("ends-twice", code());
    let mut running = supervisor.call("ends-twice", validate()).await.unwrap();
    assert!(matches!(outcome(&mut running).await, Ok(CallEvent::Finished(Ok(_)))));
    assert!(is_gone(running.pid()).await);
    supervisor.remove("ends-twice");
    assert_eq!(steady().await, pid);
    supervisor.close().await;
    assert!(is_gone(pid).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_announces_itself_as_another_gets_no_call() {
    let supervisor = strange_workers();
    for behaviour in ["another-pid", "another-worker", "another-service"] {
        supervisor.set(behaviour, code());
        match supervisor.call(behaviour, validate()).await {
            Err(CallError::Unfit(why)) => assert!(why.contains("announced itself as"), "{behaviour}: {why}"),
            other => panic!("{behaviour}: {other:?}"),
        }
    }
    supervisor.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_holds_its_own_call_alone_and_ends_with_the_host() {
    let supervisor = strange_workers();
    for service in ["silent", "steady"] {
        supervisor.set(service, code());
    }
    let mut silent = supervisor.call("silent", validate()).await.unwrap();
    let pid = silent.pid();
    let mut steady = supervisor.call("steady", validate()).await.unwrap();
    assert!(matches!(outcome(&mut steady).await, Ok(CallEvent::Finished(Ok(_)))));
    // The attempt's deadline is what ends this wait; until then nothing comes.
    assert!(tokio::time::timeout(Duration::from_millis(50), silent.next()).await.is_err());
    drop(silent);
    supervisor.close().await;
    assert!(is_gone(pid).await);
}

// ---------------------------------------------------------------------------------------------
// Through to the egress

const SECRET: &str = "the-session-of-this-credential";
const TRAVELS: &str = "a-cookie-outside-the-mapping";

/// Answers every request with 200 and keeps what it was asked.
struct Service {
    at: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    let mut asked = Vec::new();
                    while !asked.ends_with(b"\r\n\r\n") {
                        if client.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                            break;
                        }
                    }
                    hold(&log).push(String::from_utf8_lossy(&asked).into_owned());
                    let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
                    let _ = client.write_all(answer).await;
                });
            }
        });
        Self { at, seen }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.at)
    }
}

/// What the attempt resolved for its credential: one origin, one key that the plugin may place.
fn granted(service: &Service) -> Arc<Resolved> {
    Arc::new(Resolved {
        validate_url: service.url(),
        keys: vec![KeySpec {
            name: "session".into(),
            location: Location::Cookie(CookieLocation {
                name: "sid".into(),
                domain: "127.0.0.1".into(),
                path: "/".into(),
            }),
            required: true,
            reveal: false,
            help: String::new(),
        }],
        origins: vec![AllowedOrigin {
            scheme: "http".into(),
            host: "127.0.0.1".into(),
            port: service.at.port(),
            operator_named: true,
        }],
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    })
}

fn jar() -> Jar {
    let key = |name: &str, cookie: &str, value: &str, domain: &str| Key {
        name: name.into(),
        secret: Secret::new(value),
        fingerprint: "00".into(),
        expires: None,
        cookie: Some(CookieAttributes {
            name: cookie.into(),
            domain: domain.into(),
            path: "/".into(),
            host_only: true,
            secure: false,
            http_only: true,
            same_site: None,
        }),
    };
    Jar {
        keys: vec![
            key("session", "sid", SECRET, "127.0.0.1"),
            key("cookie:other@elsewhere.example/", "other", TRAVELS, "elsewhere.example"),
        ],
    }
}

/// Sends a forged frame through the link and the egress as an attempt does, and gives what the
/// worker gets to see.
async fn forged(
    egress: &Egress,
    exchange: &mut Exchange,
    request: HttpRequest,
) -> Result<HttpResponse, HttpError> {
    let mut hostile = Hostile::new();
    let (id, mut events) = hostile.link.register().unwrap();
    hostile.say(&frame(&FromWorker::Http { id, request })).await;
    let Some(CallEvent::Http(request)) = events.next().await else { panic!("no request came") };
    let result = egress.send_keeping(exchange, request, async |_| Ok(())).await;
    let answer = ToWorker::HttpDone { id, result: result.map(|exchanged| exchanged.response) };
    hostile.link.send(&answer).unwrap();
    let ToWorker::HttpDone { result, .. } = answer_to(&mut hostile).await else { panic!("another answer") };
    result
}

#[tokio::test]
async fn a_forged_request_is_judged_by_its_calls_manifest_whatever_the_frame_says() {
    let (own, other) = (Service::start().await, Service::start().await);
    let fingerprint = Arc::new(|_: &Secret| "00".to_owned());
    let egress = Egress::new(EgressOptions::default(), fingerprint).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut exchange = Exchange::new(granted(&own), jar(), deadline);
    let plain = request(&own.url());
    let secret = |key: &str| Part::Secret { key: key.into(), encoding: Encoding::Raw };
    let header =
        |name: &str, part: Part| HttpRequest { headers: vec![(name.into(), vec![part])], ..plain.clone() };
    let nested = Part::Encoded {
        leaves: vec![Leaf::Secret { key: "cookie:other@elsewhere.example/".into(), encoding: Encoding::Raw }],
        encoding: Encoding::Base64,
    };
    let capture = |key: &str| HttpRequest {
        capture: vec![Capture {
            key: key.into(),
            from: Source::JsonPointer(String::new()),
            expires_in: None,
        }],
        ..plain.clone()
    };
    let attacks: VecDeque<(&str, HttpRequest, &str)> = VecDeque::from([
        ("a key that isn't", header("x", secret("refresh_token")), "not in the key mapping"),
        (
            "a cookie that travels along",
            header("x", secret("cookie:other@elsewhere.example/")),
            "key mapping",
        ),
        ("the same inside an encoding", header("x", nested), "key mapping"),
        ("an empty key", header("x", secret("")), "not in the key mapping"),
        ("another port", request(&other.url()), "is not allowed"),
        ("another host", request("https://evil.example/"), "is not allowed"),
        ("metadata", request("http://169.254.169.254/latest/"), "is not allowed"),
        ("another scheme", request("file:///etc/passwd"), "scheme, host and port"),
        (
            "a host made of a secret",
            HttpRequest { url: vec![Part::Text("http://".into()), secret("session")], ..plain.clone() },
            "must be text",
        ),
        ("userinfo", request(&format!("http://a@{}/", own.at)), "user or password"),
        ("another Host", header("Host", Part::Text("evil.example".into())), "belongs to the host"),
        ("its own cookies", header("Cookie", secret("session")), "belongs to the host"),
        ("a line break", header("x", Part::Text("a\r\nhost: evil".into())), "outside visible ASCII"),
        ("a header's name with a line break", header("x\r\ny", Part::Text("a".into())), "valid header name"),
        ("CONNECT", HttpRequest { method: "CONNECT".into(), ..plain.clone() }, "method `CONNECT`"),
        ("a capture into a cookie's key", capture("session"), "not a key with location token"),
        (
            "a capture into nothing",
            capture("cookie:other@elsewhere.example/"),
            "not a key with location token",
        ),
        (
            "a longer body than any",
            HttpRequest {
                body: Some(vec![Part::Text("x".repeat(limits::REQUEST_BYTES + 1))]),
                ..plain.clone()
            },
            "more than",
        ),
    ]);
    for (what, request, want) in attacks {
        match forged(&egress, &mut exchange, request).await {
            Err(HttpError::Denied(why)) => assert!(why.contains(want), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert!(hold(&own.seen).is_empty() && hold(&other.seen).is_empty(), "something left");

    // What the permissions allow still works, so the refusals above are the permissions'.
    let allowed = HttpRequest {
        cookies: true,
        headers: vec![("x".into(), vec![secret("session")])],
        timeout: Some(u32::MAX),
        redirects: u8::MAX,
        ..plain.clone()
    };
    let answer = forged(&egress, &mut exchange, allowed).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok".as_slice()));
    let seen = hold(&own.seen).join("");
    assert!(seen.contains(SECRET) && !seen.contains(TRAVELS), "{seen}");

    // A flood of what is allowed ends at the call's budget, and the next call has its own.
    let mut served = 1;
    let refused = loop {
        match forged(&egress, &mut exchange, plain.clone()).await {
            Ok(_) => served += 1,
            Err(error) => break error,
        }
        assert!(served <= limits::REQUESTS_PER_CALL);
    };
    assert!(matches!(refused, HttpError::Budget(_)), "{refused}");
    assert_eq!(served, limits::REQUESTS_PER_CALL);
    assert!(hold(&other.seen).is_empty());
}
