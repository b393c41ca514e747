//! The two hottest paths as fixed work for callgrind: the writer's, and what becomes of an
//! attempt's frames and its request. Instances of plugins aren't counted: valgrind can't run the
//! native code that wasmtime maps.
//!
//! What happens once, such as opening a database, is in every run alike: the count is the
//! difference of two runs of which one does twice the work.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use keywheel::credential::{CookieAttributes, Jar, Key, Millis, Secret};
use keywheel::db::writer::{
    Claim, ClaimDue, Finish, Gate, GenerationChange, MonitorUpdate, NewCredential, Passage,
};
use keywheel::db::{Action, HomeLock, Writer};
use keywheel::egress::{Egress, EgressOptions, Exchange};
use keywheel::protocol::{
    self, Answer, Call, Context, Evidence, FromWorker, HttpRequest, KeyState, Part, ToWorker, Used, Verdict,
};
use keywheel::provider::{AllowedOrigin, CookieLocation, Encoding, KeySpec, Location, Resolved};
use keywheel::report::{Report, Status, iso8601};

/// Attempts in a round of the writer: claimed by one command and ended in one commit. Below the
/// most that a commit takes.
const BATCH: usize = 128;

/// Few enough that the log isn't folded into the file within the doubled work.
pub const WRITER_ROUNDS: usize = 3;
pub const EXCHANGE_ROUNDS: usize = 400;

/// No path waits for anything that takes so long.
const STUCK: Duration = Duration::from_secs(60);

/// Instructions for each attempt.
pub fn count(path: &str, rounds: usize) -> Result<f64, String> {
    let (once, twice) = (counted(path, rounds)?, counted(path, 2 * rounds)?);
    let attempts = if path == "writer" { rounds * BATCH } else { rounds };
    Ok((twice - once) / attempts as f64)
}

/// The whole of one run.
#[expect(clippy::disallowed_methods, reason = "valgrind is no plugin's process")]
fn counted(path: &str, rounds: usize) -> Result<f64, String> {
    let folder = crate::stage::target().join("bench");
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let out: PathBuf = folder.join(format!("callgrind.{path}.{rounds}.out"));
    let run = std::process::Command::new("valgrind")
        .args(["--tool=callgrind", "--error-exitcode=9"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().map_err(|error| error.to_string())?)
        .args(["--instructions", path, "--rounds", &rounds.to_string()])
        .output()
        .map_err(|error| format!("valgrind doesn't start: {error}; hint: apt-get install valgrind"))?;
    let said = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        return Err(format!("the path `{path}` ended with {} under callgrind:\n{said}", run.status));
    }
    let text = std::fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:")?.trim().parse().ok());
    total.ok_or_else(|| format!("{} has no total:\n{said}", out.display()))
}

/// # Errors
/// Where there is no such path.
pub fn work(path: &str, rounds: usize) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match path {
        "writer" => runtime.block_on(writer(rounds)),
        "exchange" => runtime.block_on(exchange(rounds)),
        other => return Err(format!("no path `{other}`; there are: writer, exchange")),
    }
    Ok(())
}

const BEGIN: Millis = 1_700_000_000_000;

async fn writer(rounds: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let lock = HomeLock::acquire(&folder.path().join("lock")).expect("a lock");
    let (writer, thread) = Writer::start(folder.path().join("db"), lock).expect("a database");
    let add = |service: &str, id: String| writer.add_credential(credential(service, id));
    add("door", "door".into()).await.expect("a credential");
    for added in join_all((0..BATCH).map(|n| add("counted", format!("c{n}")))).await {
        added.expect("a credential");
    }
    for round in 0..rounds {
        // By a clock of its own: every run does the same.
        let now = BEGIN + round as Millis * 1_000;
        let claims = writer.claim_due(due("counted", now, Gate::default())).await.expect("claims").claims;
        assert_eq!(claims.len(), BATCH, "all are due");
        in_one_commit(&writer, now, claims).await;
    }
    drop(writer);
    thread.join();
}

/// How many commands share a commit is a matter of luck, and would be most of what varies. So the
/// thread is held, in the gate of a claim, until all of them wait for it.
async fn in_one_commit(writer: &Writer, now: Millis, claims: Vec<Claim>) {
    let (tell_held, held) = mpsc::channel();
    let (open, opened) = mpsc::channel();
    let opened = Mutex::new(opened);
    let gate = Gate::new(move |_| {
        tell_held.send(()).expect("somebody holds");
        opened.lock().expect("one asks").recv_timeout(STUCK).expect("it is opened");
        Passage::Wait { until: now + 1, why: "held".into() }
    });
    let holding = async { writer.claim_due(due("door", now, gate)).await.expect("held") };
    let ending = async {
        held.recv_timeout(STUCK).expect("the thread is held");
        let ends = join_all(claims.into_iter().map(|claim| writer.finish(end(claim, now))));
        // Polled after they were, which is after they were sent.
        let open = async { open.send(()).expect("the gate listens") };
        for ended in join(ends, open).await.0 {
            ended.expect("a report");
        }
    };
    let commits = writer.progress().borrow().commits;
    // Without tokio's turns, by which a task sends no more than 128 messages at a time.
    tokio::task::unconstrained(join(holding, ending)).await;
    let commits = writer.progress().borrow().commits - commits;
    assert_eq!(commits, 2, "one for the claim that held, one for all ends");
}

fn due(service: &str, now: Millis, gate: Gate) -> ClaimDue {
    ClaimDue {
        owner: "gate".into(),
        now,
        lease_until: now + 600_000,
        quotas: vec![(service.to_owned(), u32::MAX)],
        at_most: u32::MAX,
        allowed: std::collections::BTreeMap::new(),
        gate,
    }
}

fn credential(service: &str, credential_id: String) -> NewCredential {
    NewCredential {
        plugin_digest: None,
        credential_id,
        profile_id: None,
        service: service.to_owned(),
        settings: Vec::new(),
        private_hosts: Vec::new(),
        method: None,
        validate_interval: None,
        max_age: None,
        idle_limit: None,
        quiet: Vec::new(),
        identity: None,
        keys: Vec::new(),
        expires: None,
        first_due: 0,
        first_action: Action::Validate,
    }
}

fn end(claim: Claim, now: Millis) -> Finish {
    Finish {
        report: Arc::new(Report {
            cookie_id: claim.token.credential_id.clone(),
            profile_id: None,
            service: claim.service,
            validate_url: "https://service.example/check".into(),
            cookie_keys: [("session".to_owned(), "0123456789abcdef".to_owned())].into(),
            status: Status::Success,
            message: None,
            started_at: iso8601(now),
            finished_at: iso8601(now + 20),
            attempt_number: claim.attempt_number,
            meta: [("verdict".to_owned(), "valid".into())].into_iter().collect(),
        }),
        token: claim.token,
        verdict: "valid".into(),
        monitor: MonitorUpdate {
            consecutive_failures: 0,
            expires_at: None,
            next_due_at: Some(now + 1),
            next_action: Action::Validate,
            asked_until: None,
            next_reason: "cadence".into(),
        },
        generations: GenerationChange::None,
        expiry_updates: Vec::new(),
        identity: None,
        in_doubt: None,
    }
}

const HOST: &str = "service.example";

/// A validation with a cookie and a token in a header, whose service answers 200 with JSON.
async fn exchange(rounds: usize) {
    let between: Arc<keywheel::egress::Between> = Arc::new(|_, _| {
        Box::pin(async {
            let body = r#"{"user":"ann","name":"Ann Example","mail":"ann@service.example","groups":["users","staff"],"theme":"dark","unread":3}"#;
            let answer = http::Response::builder()
                .header("content-type", "application/json")
                .header("date", "Tue, 14 Nov 2023 22:13:20 GMT")
                .header("cache-control", "no-store")
                .body(Bytes::from_static(body.as_bytes()));
            Ok(answer.expect("an answer"))
        })
    });
    let fingerprint: Arc<keywheel::egress::Fingerprint> = Arc::new(|_| "0123456789abcdef".to_owned());
    let egress = Egress::new(EgressOptions::default(), fingerprint).expect("an egress").with_between(between);
    let resolved = Arc::new(resolved());
    let jar = jar();
    let mut wire = Vec::new();
    for round in 0..rounds {
        let id = u32::try_from(round).expect("few rounds");
        let start: ToWorker = across(&mut wire, &ToWorker::Start { id, call: Call::Validate(context()) });
        assert!(matches!(start, ToWorker::Start { .. }), "what was sent arrives");

        let asked = across(&mut wire, &FromWorker::Http { id, request: request() });
        let FromWorker::Http { request, .. } = asked else { unreachable!("what was sent arrives") };
        let deadline = tokio::time::Instant::now() + STUCK;
        let mut exchange = Exchange::new(Arc::clone(&resolved), jar.clone(), deadline)
            .of_service("counted")
            .at(BEGIN + round as Millis);
        let answered = egress
            .send_keeping(&mut exchange, request, |_| std::future::ready(Ok(())))
            .await
            .expect("an answer");
        let done = ToWorker::HttpDone { id, result: Ok(answered.response) };
        let heard: ToWorker = across(&mut wire, &done);
        assert!(
            matches!(heard, ToWorker::HttpDone { result: Ok(answer), .. } if answer.status == 200),
            "the service answered"
        );

        let verdict = Verdict::Valid(Evidence { identity: Some("ann".into()), ..Evidence::default() });
        let finished =
            FromWorker::Finished { id, result: Ok(Answer::Validated(verdict)), used: Used::default() };
        let finished: FromWorker = across(&mut wire, &finished);
        assert!(matches!(finished, FromWorker::Finished { result: Ok(_), .. }), "what was sent arrives");
    }
}

/// A message as a frame, and back.
fn across<M: serde::Serialize + serde::de::DeserializeOwned>(wire: &mut Vec<u8>, message: &M) -> M {
    wire.clear();
    protocol::encode(message, wire).expect("it fits a frame");
    let length = protocol::frame_length(wire).expect("a length").expect("a whole head");
    protocol::decode(&wire[4..4 + length]).expect("the message")
}

fn resolved() -> Resolved {
    let key = |name: &str, location| KeySpec {
        name: name.to_owned(),
        location,
        required: true,
        reveal: false,
        help: String::new(),
    };
    let cookie = CookieLocation { name: "session".into(), domain: HOST.into(), path: "/".into() };
    Resolved {
        validate_url: format!("https://{HOST}/check"),
        keys: vec![key("session", Location::Cookie(cookie)), key("token", Location::Token)],
        origins: vec![AllowedOrigin {
            scheme: "https".into(),
            host: HOST.into(),
            port: 443,
            operator_named: true,
        }],
        private_hosts: Vec::new(),
        settings: vec![("base_url".into(), format!("https://{HOST}"))],
        methods: Vec::new(),
    }
}

fn jar() -> Jar {
    let key = |name: &str, cookie| Key {
        name: name.to_owned(),
        secret: Secret::new(format!("the-{name}-of-the-gate-0123456789")),
        fingerprint: "0123456789abcdef".into(),
        expires: None,
        cookie,
    };
    let cookie = CookieAttributes {
        name: "session".into(),
        domain: HOST.into(),
        path: "/".into(),
        host_only: true,
        secure: true,
        http_only: true,
        same_site: None,
    };
    Jar { keys: vec![key("session", Some(cookie)), key("token", None)] }
}

fn context() -> Context {
    let key = |name: &str| KeyState {
        name: name.to_owned(),
        present: true,
        fingerprint: Some("0123456789abcdef".into()),
        expires: None,
    };
    Context {
        credential_id: "counted".into(),
        profile_id: None,
        settings: vec![("base_url".into(), format!("https://{HOST}"))],
        keys: vec![key("session"), key("token")],
        attempt: 7,
        now: BEGIN,
        extras: Vec::new(),
    }
}

fn request() -> HttpRequest {
    let token = Part::Secret { key: "token".into(), encoding: Encoding::Raw };
    HttpRequest {
        method: "GET".into(),
        url: vec![Part::Text(format!("https://{HOST}/check"))],
        headers: vec![
            ("accept".into(), vec![Part::Text("application/json".into())]),
            ("authorization".into(), vec![Part::Text("Bearer ".into()), token]),
        ],
        body: None,
        cookies: true,
        capture: Vec::new(),
        redirects: 0,
        timeout: None,
        extras: Vec::new(),
    }
}
