//! Who is told of what, seen from outside: real daemons, receivers that fail, disks that fail, a
//! real mail server. What is decided when is tested in tables beside `alerts::rules`; here it is
//! that nothing of it is lost on its way and nothing comes twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

use crate::faults::shim::{DB, FOREVER, Faults, SHM, WAL};
use crate::harness::*;

/// One request that a site got.
#[derive(Debug, Clone)]
struct Got {
    path: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Got {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

#[derive(Default)]
struct SiteState {
    status: u16,
    more: String,
    got: Vec<Got>,
}

/// A small HTTP server that can go away and come back at its address: a service whose every
/// session lives, or a receiver of alerts.
struct Site {
    address: SocketAddr,
    state: Arc<Mutex<SiteState>>,
    running: Option<(Arc<AtomicBool>, std::thread::JoinHandle<()>)>,
}

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(SiteState { status: 200, ..SiteState::default() }));
        let mut site = Self { address, state, running: None };
        site.listen(listener);
        site
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn hold(&self) -> std::sync::MutexGuard<'_, SiteState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every answer from now on.
    fn answer(&self, status: u16, more: &str) {
        let mut state = self.hold();
        state.status = status;
        more.clone_into(&mut state.more);
    }

    fn got(&self) -> Vec<Got> {
        self.hold().got.clone()
    }

    /// Closes the port: nobody is there any more.
    fn down(&mut self) {
        let Some((over, thread)) = self.running.take() else { return };
        over.store(true, Ordering::SeqCst);
        // It waits for a connection, and here is one.
        drop(TcpStream::connect(self.address));
        thread.join().expect("the site ends");
    }

    fn up(&mut self) {
        let listener = wait_until(SOON, "the port is free again", || TcpListener::bind(self.address).ok());
        self.listen(listener);
    }

    fn listen(&mut self, listener: TcpListener) {
        let over = Arc::new(AtomicBool::new(false));
        let (state, ends) = (Arc::clone(&self.state), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&state);
                // A client that was killed is no error of the site.
                std::thread::spawn(move || drop(serve_one(stream, &state)));
            }
        });
        self.running = Some((over, thread));
    }

    /// The alerts that arrived, oldest first, each with its headers.
    fn alerts(&self) -> Vec<(Got, Value)> {
        self.got()
            .into_iter()
            .filter(|got| got.path == "/alerts")
            .map(|got| (got.clone(), got.json()))
            .collect()
    }

    /// Waits for an alert that fits, and returns it.
    #[track_caller]
    fn wait_for(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_until(SOON, what, || self.alerts().into_iter().map(|(_, alert)| alert).find(|alert| fits(alert)))
    }

    fn count(&self, path: &str) -> usize {
        self.got().iter().filter(|got| got.path == path).count()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.down();
    }
}

fn serve_one(mut stream: TcpStream, state: &Mutex<SiteState>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if line.is_empty() {
        return Ok(());
    }
    let (status, more) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.status == 200 {
            // What was refused didn't arrive.
            state.got.push(Got { path, headers, body });
        }
        (state.status, state.more.clone())
    };
    let body = r#"{"alive":true}"#;
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Everything within seconds.
const QUICK: &str = "remind_every = \"2s\"\nremind_at_most = 2\ngroup_wait = \"1s\"\ngroup_interval = \"1s\"\nretry_first = \"1s\"\ndisk_low_mib = 0\n";

/// A home whose alerts go to a site, signed.
fn home_that_tells(receiver: &Site, alerts: &str, more: &str) -> TestHome {
    let home = TestHome::new();
    let secret = format!("whsec{}{}", '_', STANDARD.encode(SECRET));
    put(&home.path().join("ops.secret"), &secret);
    configure(
        &home,
        &format!(
            "[alerts]\n{QUICK}{alerts}\n[alerts.channels.ops]\nkind = \"webhook\"\nurl = \"{}\"\nsecret_file = \"ops.secret\"\n{more}",
            receiver.url("/alerts")
        ),
    );
    home
}

/// A file that nobody else can read.
fn put(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}

fn configure(home: &TestHome, text: &str) {
    std::fs::write(home.path().join("config.toml"), text).expect("a configuration");
}

const SECRET: &[u8] = b"thirty-two bytes of a test's own";

/// Each is signed as the convention says, and by its key none came twice.
#[track_caller]
fn assert_signed_and_once_each(alerts: &[(Got, Value)]) {
    for (got, alert) in alerts {
        let header =
            |name: &str| got.headers.get(name).unwrap_or_else(|| panic!("no {name} in {got:?}")).clone();
        let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET).expect("any length");
        mac.update(format!("{id}.{at}.").as_bytes());
        mac.update(&got.body);
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        assert_eq!(header("webhook-signature"), expected);
        assert_eq!(alert["data"]["id"], id.as_str());
    }
    let mut ids: Vec<_> = alerts.iter().map(|(_, alert)| alert["data"]["id"].to_string()).collect();
    ids.sort();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "a key came twice");
}

fn kinds(alerts: &[(Got, Value)]) -> Vec<String> {
    alerts.iter().map(|(_, alert)| alert["type"].as_str().unwrap_or_default().to_owned()).collect()
}

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |alert: &Value| alert["type"] == kind
}

/// A credential of a service whose sessions live for as long as it is there.
fn add(home: &TestHome, id: &str, service: &Site, every: &str) {
    let base_url = format!("base_url={}", service.url(""));
    let session = format!("session={}", random_secret());
    home.add(id, "well-behaved", &session, &["--set", &base_url, "--every", every]);
}

#[test]
fn network_service_and_receiver_fail_in_turn_and_each_change_is_told_once() {
    let (mut service, mut receiver) = (Site::start(), Site::start());
    let home = home_that_tells(&receiver, "after_failures = 2", "");
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve();
    add(&home, "ann", &service, "1s");
    home.wait_for_reports("ann", 1);
    let attempt = || home.run(&["credential", "validate", "ann"]);

    // The network: nothing answers at all.
    service.down();
    let opened = receiver.wait_for("the outage is told", is("alert.opened"));
    assert_eq!(
        (&opened["data"]["group"], &opened["data"]["open"]),
        (&json!("service:well-behaved"), &json!(1))
    );
    let item = &opened["data"]["alerts"][0];
    assert_eq!((&item["subject"], &item["kind"]), (&json!("credential:ann"), &json!("unreachable")));
    assert!(item["why"].as_str().is_some_and(|why| !why.is_empty()), "{item}");
    assert!(item["hint"].as_str().is_some_and(|hint| hint.contains("credential history ann")), "{item}");
    let is_last = |alert: &Value| alert["data"]["reminder"] == json!({ "number": 2, "of": 2 });
    receiver.wait_for("both reminders come", is_last);
    service.up();
    attempt().ok();
    receiver.wait_for("its end is told", is("alert.resolved"));
    let first = receiver.alerts();
    assert_eq!(kinds(&first), ["alert.opened", "alert.reminder", "alert.reminder", "alert.resolved"]);
    let at = |place: usize| -> jiff::Timestamp {
        first[place].1["timestamp"].as_str().expect("a moment").parse().expect("ISO 8601")
    };
    for place in [1, 2] {
        let waited = at(place).duration_since(at(place - 1));
        assert!(waited >= jiff::SignedDuration::from_secs(2), "{waited:?}");
    }

    // The service: it answers, and nothing but errors.
    service.answer(503, "");
    wait_until(SOON, "the errors are told", || {
        attempt();
        (kinds(&receiver.alerts()).iter().filter(|kind| *kind == "alert.opened").count() == 2).then_some(())
    });
    // The receiver, and then the daemon as well: what there is to tell waits for it.
    receiver.down();
    service.answer(200, "");
    attempt().ok();
    let waiting = wait_until(SOON, "a message waits for its receiver", || {
        let listed = home.json(&["alert", "list"]);
        let waiting = listed["undelivered"].as_array().expect("an array").clone();
        let is_resolved =
            |row: &&Value| row["title"].as_str().is_some_and(|title| title.starts_with("resolved"));
        waiting
            .iter()
            .find(|row| is_resolved(row))
            .filter(|row| row["tries"].as_u64() > Some(0) || waiting.len() > 1)
            .cloned()
    });
    assert!(waiting["failedAt"].is_null(), "{waiting}");
    let listed = home.run(&["alert", "list"]).ok().stdout;
    assert!(listed.contains("no connection") && listed.contains("waiting"), "{listed}");
    daemon.kill_9();
    let _daemon = home.serve();
    receiver.up();
    wait_until(SOON, "what it missed comes", || {
        (kinds(&receiver.alerts()).last().map(String::as_str) == Some("alert.resolved")
            && home.json(&["alert", "list"])["undelivered"] == json!([]))
        .then_some(())
    });
    let all = receiver.alerts();
    assert_signed_and_once_each(&all);
    // None is lost: they are numbered.
    let numbers: Vec<_> = all.iter().map(|(_, alert)| alert["data"]["sequence"].as_u64()).collect();
    assert_eq!(numbers, (1..=all.len() as u64).map(Some).collect::<Vec<_>>());
    let changes: Vec<_> = kinds(&all).into_iter().filter(|kind| kind != "alert.reminder").collect();
    assert_eq!(changes, ["alert.opened", "alert.resolved", "alert.opened", "alert.resolved"]);
    let listed = home.json(&["alert", "list"]);
    assert_eq!(listed["open"], json!([]));
    assert_eq!(listed["resolved"][0]["subject"], "credential:ann");
    // The session itself stands nowhere in it.
    let session =
        home.run(&["credential", "export", "ann", "--format", "header", "--url", &service.url("/")]).ok();
    let session = session.stdout.split("session=").nth(1).expect("a cookie").trim_end().to_owned();
    assert!(all.iter().all(|(got, _)| !String::from_utf8_lossy(&got.body).contains(&session)));
}

#[test]
fn a_daemon_that_dies_at_any_step_of_a_message_neither_loses_it_nor_makes_another() {
    let (service, receiver) = (Site::start(), Site::start());
    let home = home_that_tells(&receiver, "after_failures = 1", "");
    home.drop_plugin(&guest("well_behaved"));
    {
        let _daemon = home.serve();
        add(&home, "ann", &service, "1h");
        home.wait_for_reports("ann", 1);
    }
    let mut arrived = BTreeMap::new();
    for (point, kind) in [
        ("alert.noticed", "alert.opened"),
        ("alert.sending", "alert.resolved"),
        ("alert.sent", "alert.opened"),
        ("alert.marked", "alert.resolved"),
    ] {
        let before = receiver.alerts().len();
        let mut daemon = home.serve_in(&[("KEYWHEEL_CRASH_AT", point)]);
        service.answer(if kind == "alert.opened" { 503 } else { 200 }, "");
        home.run(&["credential", "validate", "ann"]);
        assert_eq!(daemon.ended().signal(), Some(9), "{point}");
        let _daemon = home.serve();
        wait_until(SOON, &format!("what was cut off at {point} comes"), || {
            let undelivered = home.json(&["alert", "list"])["undelivered"].clone();
            (receiver.alerts().len() > before && undelivered == json!([])).then_some(())
        });
        let alerts = receiver.alerts();
        let new: Vec<_> = alerts[before..].iter().filter(|(_, alert)| alert["type"] == kind).collect();
        let mut ids: Vec<_> = new.iter().map(|(_, alert)| alert["data"]["id"].to_string()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 1, "{point}: {:?}", kinds(&alerts));
        arrived.insert(point, new.len());
    }
    // Taken and not yet marked is the one place where it comes twice, with the same key.
    let expected = [("alert.marked", 1), ("alert.noticed", 1), ("alert.sending", 1), ("alert.sent", 2)];
    assert_eq!(arrived, BTreeMap::from(expected));
}

/// A report of an external worker, which fails or is well.
fn external(cookie: &str, attempt: u32, status: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let moment = time::OffsetDateTime::from_unix_timestamp(now.as_secs() as i64).expect("a date");
    let at = moment.format(&time::format_description::well_known::Rfc3339).expect("a text");
    json!({
        "cookieId": cookie, "profileId": null, "service": "intranet",
        "validateUrl": "https://intranet.example/me", "cookieKeys": {}, "status": status,
        "message": if status == "success" { Value::Null } else { json!("no answer") },
        "startedAt": at, "finishedAt": at, "attemptNumber": attempt, "meta": {},
    })
    .to_string()
}

#[test]
fn two_hundred_credentials_of_one_service_are_one_notice_and_one_end() {
    const MANY: u32 = 200;
    let receiver = Site::start();
    // Takes connections, as the system does for it, and never says a word.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let silent_url = format!("http://{}/", silent.local_addr().expect("an address"));
    let home = home_that_tells(
        &receiver,
        "after_failures = 1",
        &format!(
            "[alerts.channels.pager]\nkind = \"webhook\"\nurl = \"{0}\"\nseverity = \"critical\"\n\
             [alerts.channels.a-slow-one]\nkind = \"webhook\"\nurl = \"{silent_url}\"\n\
             [alerts.channels.others]\nkind = \"webhook\"\nurl = \"{0}\"\nservices = [\"forge\"]\n\
             [http]\nlisten = \"127.0.0.1:0\"\nrequests_per_second = 10000\nrequests_at_once = 10000\n",
            receiver.url("/elsewhere")
        ),
    );
    // Long enough for all of them to fail, on a machine with other things to do as well.
    let config = std::fs::read_to_string(home.path().join("config.toml")).expect("the configuration");
    configure(
        &home,
        &config
            .replace("group_wait = \"1s\"", "group_wait = \"5s\"")
            .replace("remind_every = \"2s\"", "remind_every = \"1h\""),
    );
    let _daemon = home.serve();
    let token = home.run(&["worker-token", "create", "intranet", "--name", "a worker"]).ok().stdout;
    let address = home.json(&["status"])["http"]["listening"].as_str().expect("the port").to_owned();
    let (url, token) =
        (format!("http://{address}/v1/worker-reports"), format!("Authorization: Bearer {}", token.trim()));
    let all_are = |attempt: u32, status: &str| {
        for number in 0..MANY {
            let body = external(&format!("user-{number:03}"), attempt, status);
            let sent = http_with("POST", &url, &[&token, "Content-Type: application/json"], &body);
            assert_eq!(sent.status, 201, "{}", sent.body);
        }
    };
    all_are(1, "unreachable");
    let opened = receiver.wait_for("the outage is told", is("alert.opened"));
    assert_eq!(
        (&opened["data"]["opened"], &opened["data"]["open"]),
        (&json!(MANY), &json!(MANY)),
        "{opened}"
    );
    assert_eq!(opened["data"]["alerts"].as_array().map(Vec::len), Some(20));
    let title = opened["data"]["title"].as_str().expect("a title");
    assert_eq!(title, "200 credentials of `intranet`: 200 can't be asked about");
    // The slow one has it still before it, and held nobody up.
    wait_until(SOON, "only the slow one waits", || {
        let rows = home.json(&["alert", "list"])["undelivered"].as_array().expect("an array").clone();
        (rows.len() == 1 && rows[0]["channel"] == "a-slow-one").then_some(())
    });
    assert_eq!(home.json(&["alert", "list"])["open"].as_array().map(Vec::len), Some(MANY as usize));
    all_are(2, "success");
    let resolved = receiver.wait_for("its end is told", is("alert.resolved"));
    assert_eq!((&resolved["data"]["resolved"], &resolved["data"]["open"]), (&json!(MANY), &json!(0)));
    assert_eq!(kinds(&receiver.alerts()), ["alert.opened", "alert.resolved"]);
    assert_eq!(receiver.count("/elsewhere"), 0, "a channel heard what it doesn't want");
}

#[test]
fn a_database_that_can_not_be_written_is_told_all_the_same_and_the_heartbeat_stops_for_it() {
    let (receiver, watchdog) = (Site::start(), Site::start());
    let beat = format!("heartbeat_url = \"{}\"\nheartbeat_every = \"1s\"", watchdog.url("/beat"));
    let home = home_that_tells(&receiver, &beat, "");
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    wait_until(SOON, "the heart beats", || (watchdog.count("/beat") >= 2).then_some(()));
    for (round, error) in [(1, libc::EROFS), (2, libc::ENOSPC)] {
        let nth = |kind: &'static str| {
            wait_until(SOON, &format!("{kind}, for the {round}. time"), || {
                let all: Vec<_> =
                    receiver.alerts().into_iter().filter(|(_, alert)| alert["type"] == kind).collect();
                all.into_iter().nth(round - 1)
            })
        };
        faults.fail_writes(error, FOREVER, DB | WAL | SHM);
        faults.fail_syncs(error, FOREVER, DB | WAL | SHM);
        let (_, opened) = nth("alert.opened");
        assert_eq!(opened["data"]["severity"], "critical", "{opened}");
        let beats = watchdog.count("/beat");
        let reminders = kinds(&receiver.alerts()).iter().filter(|kind| *kind == "alert.reminder").count();
        // Two heartbeats' time goes by meanwhile.
        wait_until(SOON, "it is told again", || {
            let now = kinds(&receiver.alerts()).iter().filter(|kind| *kind == "alert.reminder").count();
            (now > reminders).then_some(())
        });
        assert_eq!(watchdog.count("/beat"), beats);
        faults.release();
        nth("alert.resolved");
        wait_until(SOON, "the heart beats again", || (watchdog.count("/beat") > beats).then_some(()));
    }
    assert!(daemon.log().contains("no heartbeat, for the database can't be written"), "{}", daemon.log());
    let all = receiver.alerts();
    assert_signed_and_once_each(&all);
    assert!(all.iter().all(|(_, alert)| alert["data"]["group"] == "host:database"), "{:?}", kinds(&all));
    let changes: Vec<_> = kinds(&all).into_iter().filter(|kind| kind != "alert.reminder").collect();
    assert_eq!(changes, ["alert.opened", "alert.resolved", "alert.opened", "alert.resolved"]);
    // What went past the outbox stands in it now, so nothing of it is sent again.
    wait_until(SOON, "all of it is marked", || {
        (home.json(&["alert", "list"])["undelivered"] == json!([])).then_some(())
    });
    // A clock that is set while the daemon runs.
    faults.set_clock(3_600);
    let set = receiver.wait_for("the clock is told", |alert| alert["data"]["group"] == "host:clock");
    assert!(set["data"]["title"].as_str().is_some_and(|title| title.contains("was set ahead by ")), "{set}");
    assert_signed_and_once_each(&receiver.alerts());
}

/// A certificate for this machine and its key, as PEM files beside a home.
fn certificate(home: &TestHome) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("a certificate");
    let place = |name: &str| home.outside().join(name).to_str().expect("paths of tests are UTF-8").to_owned();
    let (certificate, key) = (place("mail.pem"), place("mail.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    (certificate, key)
}

#[test]
fn letters_go_out_encrypted_and_signed_in_and_a_refusal_is_told_without_the_password() {
    let home = TestHome::new();
    let (certificate, key) = certificate(&home);
    let password = random_secret();
    let secured =
        Peer::smtp(&["--certificate", &certificate, "--key", &key, "--user", "keywheel"], Some(&password));
    let plain = Peer::smtp(&[], None);
    put(&home.path().join("right"), &format!("{password}\n"));
    let wrong = random_secret();
    put(&home.path().join("wrong"), &wrong);
    std::fs::write(home.path().join("open"), &password).expect("a file");
    let channel = |name: &str, port: &Value, lines: &str| {
        format!(
            "[alerts.channels.{name}]\nkind = \"email\"\nserver = \"localhost\"\nport = {port}\n\
             from = \"Keywheel <keywheel@example.org>\"\nto = [\"ops@example.org\", \"boss@example.org\"]\n{lines}\n"
        )
    };
    let (secure, open) = (&secured.ready["port"], &plain.ready["port"]);
    configure(
        &home,
        &[
            format!("extra_ca_file = \"{certificate}\"\n"),
            channel("right", secure, "user = \"keywheel\"\npassword_file = \"right\""),
            channel("wrong", secure, "user = \"keywheel\"\npassword_file = \"wrong\""),
            channel("missing", secure, "user = \"keywheel\"\npassword_file = \"nowhere\""),
            channel("public", secure, "user = \"keywheel\"\npassword_file = \"open\""),
            channel("local", open, "security = \"none\""),
            // Offers no STARTTLS, so it gets nothing.
            channel("strict", open, ""),
        ]
        .concat(),
    );
    let tested = home.run(&["alert", "test", "--json"]);
    assert_eq!(tested.code(), 1, "{tested:?}");
    let answers = tested.json();
    let answer = |name: &str| {
        let found = answers.as_array().expect("an array").iter().find(|one| one["channel"] == name);
        found.expect("the channel")["error"].as_str().map(str::to_owned)
    };
    assert_eq!((answer("right"), answer("local")), (None, None), "{answers}");
    assert!(answer("wrong").is_some_and(|error| error.contains("535")), "{answers}");
    assert!(answer("missing").is_some_and(|error| error.contains("nowhere can't be read")), "{answers}");
    assert!(answer("public").is_some_and(|error| error.contains("chmod 600")), "{answers}");
    assert!(answer("strict").is_some_and(|error| error.to_lowercase().contains("starttls")), "{answers}");
    let shown = home.run(&["config", "show"]).ok().stdout;
    assert!(shown.contains("alerts.channels.right.password_file"), "{shown}");
    let printed = home.printed();
    assert!(!printed.contains(&wrong) && !printed.contains(&STANDARD.encode(&wrong)), "{printed}");

    let letters = secured.letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!((&letter["tls"], &letter["authenticated"]), (&json!(true), &json!(true)), "{letter}");
    assert_eq!(letter["to"], json!(["ops@example.org", "boss@example.org"]));
    let text = letter["content"].as_str().expect("text");
    assert!(text.contains("Subject: [Keywheel] TEST: this is a test"), "{text}");
    assert!(text.contains("Message-ID: <kw-") && text.contains("Auto-Submitted: auto-generated"), "{text}");
    let letters = plain.letters();
    assert_eq!((letters.len(), &letters[0]["tls"]), (1, &json!(false)), "{letters:?}");
    // One channel alone.
    home.run(&["alert", "test", "local"]).ok();
    assert_eq!(plain.letters().len(), 2);
    let unknown = home.run(&["alert", "test", "nobody"]);
    assert_eq!(unknown.code(), 3, "{unknown:?}");
    assert!(unknown.stderr.contains("right") && unknown.stderr.contains("local"), "{unknown:?}");
}

#[test]
fn chats_telephones_and_commands_get_their_own_shape_and_a_refusal_is_retried_when_asked_for() {
    let receiver = Site::start();
    let home = home_that_tells(&receiver, "after_failures = 1", "");
    let place = |name: &str| home.outside().join(name).to_str().expect("paths of tests are UTF-8").to_owned();
    let (out, token) = (place("told"), random_secret());
    put(&home.path().join("slack.url"), &receiver.url("/slack"));
    put(&home.path().join("ntfy.token"), &format!("{token}\n"));
    let config = std::fs::read_to_string(home.path().join("config.toml")).expect("the configuration");
    let _daemon = home.serve();
    configure(
        &home,
        &format!(
            "{config}[alerts.channels.team]\nkind = \"slack\"\nurl_file = \"slack.url\"\n\
             [alerts.channels.chat]\nkind = \"discord\"\nurl = \"{}\"\n\
             [alerts.channels.phone]\nkind = \"ntfy\"\nurl = \"{}\"\ntoken_file = \"ntfy.token\"\n\
             [alerts.channels.own]\nkind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"cat > {out}; echo $KEYWHEEL_EVENT >> {out}\"]\n\
             [alerts.channels.broken]\nkind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"echo no such host >&2; exit 3\"]\n",
            receiver.url("/discord"),
            receiver.url("/ops-topic"),
        ),
    );
    home.run(&["reload"]).ok();
    let tested = home.run(&["alert", "test"]);
    assert_eq!(tested.code(), 1, "{tested:?}");
    assert!(tested.stdout.contains("no such host"), "{tested:?}");
    let got: BTreeMap<String, Got> = receiver.got().into_iter().map(|got| (got.path.clone(), got)).collect();
    assert_eq!(got.keys().collect::<Vec<_>>(), ["/", "/alerts", "/discord", "/slack"]);
    assert!(got["/slack"].json()["text"].as_str().is_some_and(|text| text.starts_with("[TEST] Keywheel: ")));
    assert_eq!(got["/discord"].json()["allowed_mentions"], json!({ "parse": [] }));
    assert_eq!(got["/"].json()["topic"], "ops-topic");
    assert_eq!(got["/"].headers["authorization"], format!("Bearer {token}"));
    assert_eq!(got["/alerts"].json()["type"], "alert.test");
    let told = std::fs::read_to_string(&out).expect("the command ran");
    assert!(told.contains("\"type\":\"alert.test\"") && told.trim_end().ends_with("alert.test"), "{told}");

    // A plugin that can't be used; and a receiver that wants to be left alone for two seconds.
    receiver.answer(429, "Retry-After: 2\r\n");
    std::fs::write(home.path().join("plugins/broken.wasm"), "no component").expect("a file");
    let waiting = wait_until(SOON, "it waits as asked", || {
        let rows = home.json(&["alert", "list"])["undelivered"].as_array().expect("an array").clone();
        rows.into_iter().find(|row| row["channel"] == "ops" && row["tries"].as_u64() > Some(0))
    });
    assert!(waiting["lastError"].as_str().is_some_and(|error| error.contains("429")), "{waiting}");
    receiver.answer(200, "");
    let opened = receiver.wait_for("the plugin is told", is("alert.opened"));
    assert_eq!(opened["data"]["alerts"][0]["subject"], "plugin:broken.wasm");
    // The command that always fails holds nobody else up.
    wait_until(SOON, "all others have it", || {
        let rows = home.json(&["alert", "list"])["undelivered"].as_array().expect("an array").clone();
        (!rows.is_empty() && rows.iter().all(|row| row["channel"] == "broken")).then_some(())
    });
    std::fs::remove_file(home.path().join("plugins/broken.wasm")).expect("the file is there");
    receiver.wait_for("its end is told", is("alert.resolved"));
    assert_signed_and_once_each(&receiver.alerts());
}

/// Only looks: nothing renews it.
const BADGE: &str = r#"
service = "badge"
title = "A site"
version = "1.0.0"
source = "https://site.example/docs"

[settings.base_url]
kind = "url"
required = true

[keys.session]
cookie = { name = "session", domain = "{base_url.host}" }

[validate]
url = "{base_url}/check"
cookies = true
[[validate.valid]]
status = 200
json = { "/alive" = true }
[[validate.invalid]]
status = 401
message = "signed out"
"#;

#[test]
fn an_end_that_nobody_renews_is_told_once_at_its_stage_and_what_is_snoozed_or_paused_is_not() {
    let (service, receiver) = (Site::start(), Site::start());
    let home = home_that_tells(&receiver, "after_failures = 1", "");
    let refused = home.run(&["alert", "snooze", "ann", "--for", "4h"]);
    assert_eq!(refused.code(), 3, "{refused:?}");
    std::fs::write(home.path().join("plugins/badge.toml"), BADGE).expect("a template");
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    home.wait_for_plugin("badge.toml", "active");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let jar = |days: u64| {
        let end = now + days * 86_400;
        format!(
            "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t{end}\tsession\t{}\n",
            random_secret()
        )
    };
    let set = format!("base_url={}", service.url(""));
    for (id, of, days) in [("soon", "badge", 5), ("later", "badge", 40), ("renewed", "well-behaved", 5)] {
        let cookies = home.outside().join(id);
        put(&cookies, &jar(days));
        let from = cookies.to_str().expect("paths of tests are UTF-8");
        let added = home.run(&[
            "credential",
            "add",
            id,
            "--service",
            of,
            "--set",
            &set,
            "--every",
            "1h",
            "--from",
            from,
        ]);
        assert_eq!(added.code(), 0, "{added:?}");
        home.wait_for_reports(id, 1);
    }
    let opened = receiver.wait_for("the end is told", is("alert.opened"));
    assert_eq!(
        (&opened["data"]["group"], &opened["data"]["alerts"][0]["subject"], &opened["data"]["open"]),
        (&json!("expiry:badge"), &json!("expiry:soon"), &json!(1)),
        "{opened}"
    );
    assert!(opened["data"]["title"].as_str().is_some_and(|title| title.contains("ends in")), "{opened}");

    // One is snoozed, one is paused, and both die; the third one's death is told.
    home.run(&["alert", "snooze", "later", "--for", "4h"]).ok();
    home.run(&["credential", "pause", "soon"]).ok();
    service.answer(401, "");
    for id in ["later", "soon", "renewed"] {
        home.run(&["credential", "validate", id]);
    }
    let dead = receiver.wait_for("a death is told", |alert| alert["data"]["group"] == "service:well-behaved");
    assert_eq!(
        (&dead["data"]["severity"], &dead["data"]["alerts"][0]["kind"]),
        (&json!("critical"), &json!("invalid"))
    );
    let listed = home.json(&["alert", "list"]);
    assert_eq!(listed["snoozed"][0]["subject"], "credential:later");
    // Its second reminder says that seconds went by.
    receiver.wait_for("it is told again", |alert| alert["data"]["reminder"]["number"] == 2);
    let groups: Vec<_> =
        receiver.alerts().iter().map(|(_, alert)| alert["data"]["group"].to_string()).collect();
    assert!(!groups.contains(&json!("service:badge").to_string()), "{groups:?}");
    assert_eq!(groups.iter().filter(|group| *group == "\"expiry:badge\"").count(), 1, "{groups:?}");
    home.run(&["alert", "unsnooze", "later"]).ok();
    let told = receiver.wait_for("it is told now", |alert| alert["data"]["group"] == "service:badge");
    assert_eq!(
        (&told["data"]["opened"], &told["data"]["alerts"][0]["subject"]),
        (&json!(1), &json!("credential:later"))
    );
    let again = home.run(&["alert", "unsnooze", "later"]);
    assert_eq!(again.code(), 3, "{again:?}");
    // What is removed is not in trouble any more.
    home.run(&["credential", "remove", "renewed"]).ok();
    let gone = receiver.wait_for("its removal is told", |alert| {
        alert["type"] == "alert.resolved" && alert["data"]["group"] == "service:well-behaved"
    });
    assert_eq!(gone["data"]["title"], "resolved: `renewed` of `well-behaved` was removed");
}
