//! Workers that can't be plugins: what they may send over HTTP, what becomes of it, and that
//! nothing else comes in. Every request here is written byte by byte to a real socket.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::*;
use crate::home::{Mount, fill, with_own_mounts};
use crate::secrets::Wanted;

const SERVICE: &str = "intranet";

/// For tests of something else than the limit: no machine sends this much.
const NO_LIMIT: &str = "requests_per_second = 100000\nrequests_at_once = 100000\n";

/// A home whose daemon opens a free port.
struct Site {
    home: TestHome,
}

impl Site {
    fn new(more: &str) -> Self {
        let home = TestHome::new();
        Self::configure(&home, more);
        Self { home }
    }

    fn configure(home: &TestHome, more: &str) {
        let config = format!("[http]\nlisten = \"127.0.0.1:0\"\n{more}");
        std::fs::write(home.path().join("config.toml"), config).expect("the configuration");
    }

    fn token(&self, service: &str, more: &[&str]) -> String {
        token(&self.home, service, more)
    }

    fn worker(&self, id: &str) -> Option<Value> {
        let status = self.home.json(&["status"]);
        let workers = status["externalWorkers"].as_array().expect("an array").clone();
        workers.into_iter().find(|worker| worker["workerId"] == id)
    }
}

fn token(home: &TestHome, service: &str, more: &[&str]) -> String {
    let create = [&["worker-token", "create", service, "--name", "a worker"], more].concat();
    let made = home.run(&create).ok();
    assert!(made.stdout.starts_with("kwt_") && made.stdout.ends_with('\n'), "the token alone is printed");
    made.stdout.trim_end().to_owned()
}

fn address(home: &TestHome) -> String {
    home.json(&["status"])["http"]["listening"].as_str().expect("the port is open").to_owned()
}

fn counted(home: &TestHome) -> Value {
    home.json(&["status"])["http"].clone()
}

/// An answer with its head.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// What is refused says so in one form.
    #[track_caller]
    fn refused(&self, status: u16, code: &str, field: Option<&str>) -> &Self {
        let error = &self.json()["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(error["field"].as_str(), field, "{self:?}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 6), "{self:?}");
        self
    }
}

/// Sends bytes, ends there if told to, and reads the answer to its end.
fn exchange(address: &str, request: &[u8], then_end: bool) -> Reply {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    // The daemon may have refused and closed before it took everything.
    let _ = stream.write_all(request);
    if then_end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("answers are UTF-8");
    let Some((head, body)) = text.split_once("\r\n\r\n") else { panic!("no answer: {text:?}, {read:?}") };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

fn head(path: &str, token: &str, more: &[&str]) -> String {
    let more: String = more.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}"
    )
}

const JSON: &str = "Content-Type: application/json";

fn post(address: &str, path: &str, token: &str, body: &[u8]) -> Reply {
    let head = head(path, token, &[JSON, &format!("Content-Length: {}", body.len())]);
    exchange(address, &[head.as_bytes(), b"\r\n", body].concat(), false)
}

const REPORTS: &str = "/v1/worker-reports";
const ANNOUNCE: &str = "/v1/worker-announce";

fn send(address: &str, token: &str, report: &Value) -> Reply {
    post(address, REPORTS, token, report.to_string().as_bytes())
}

/// A report as the contract has it, of an attempt that ended this many seconds ago.
fn report(cookie: &str, attempt: u32, secret: &str, seconds_ago: u64) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let at = |seconds: u64| {
        let moment =
            time::OffsetDateTime::from_unix_timestamp((now.as_secs() - seconds) as i64).expect("a date");
        moment.format(&time::format_description::well_known::Rfc3339).expect("a text")
    };
    json!({
        "cookieId": cookie,
        "profileId": "office",
        "service": SERVICE,
        "validateUrl": "https://intranet.example/me",
        "cookieKeys": { "SID": secret },
        "status": "success",
        "message": null,
        "startedAt": at(seconds_ago + 2),
        "finishedAt": at(seconds_ago),
        "attemptNumber": attempt,
        "meta": { "httpStatus": 200 }
    })
}

fn with(mut report: Value, field: &str, value: Value) -> Value {
    report[field] = value;
    report
}

#[test]
fn a_report_is_kept_once_however_often_and_from_however_many_it_comes() {
    let site = Site::new(NO_LIMIT);
    let _daemon = site.home.serve();
    let (token, address) = (site.token(SERVICE, &[]), address(&site.home));
    let good = report("ann", 1, &random_secret(), 0);

    let first = send(&address, &token, &good);
    assert_eq!((first.status, &first.json()["duplicate"]), (201, &json!(false)), "{first:?}");
    let again = send(&address, &token, &good);
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));
    assert_eq!(again.json()["id"], first.json()["id"]);
    // The same key with other content, and the same moment in other words, are the same report.
    let offset = good["startedAt"].as_str().expect("text").replace('Z', ".000+00:00");
    let other = with(with(good.clone(), "status", json!("failed")), "startedAt", json!(offset));
    assert_eq!(send(&address, &token, &other).json(), again.json());
    assert_eq!(site.home.reports("ann").len(), 1);
    assert_eq!(site.home.reports("ann")[0]["status"], "success");

    let (together, second) = (Barrier::new(8), report("ann", 2, &random_secret(), 0));
    let mut replies: Vec<Reply> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    send(&address, &token, &second)
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().expect("an answer")).collect()
    });
    replies.sort_by_key(|reply| std::cmp::Reverse(reply.status));
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [201, 200, 200, 200, 200, 200, 200, 200]);
    assert!(replies.iter().all(|reply| reply.json()["id"] == replies[0].json()["id"]), "{replies:?}");
    assert_eq!(site.home.reports("ann").len(), 2);
    let counted = counted(&site.home);
    assert_eq!((&counted["accepted"], &counted["duplicates"]), (&json!(2), &json!(9)), "{counted}");
    assert!(!first.head.to_ascii_lowercase().contains("\r\nserver:"), "{}", first.head);
}

/// A random stream that is the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it fits")
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// A malformed request, and what its refusal has to say.
struct Malformed {
    kind: &'static str,
    request: Vec<u8>,
    then_end: bool,
    status: u16,
    field: Option<String>,
}

/// Every way of getting it wrong, in turn, each with what chance makes of it.
fn malformed(turn: usize, chance: &mut Chance, token: &str, good: &Value) -> Malformed {
    const NEEDED: [&str; 8] = [
        "cookieId",
        "service",
        "validateUrl",
        "status",
        "startedAt",
        "finishedAt",
        "attemptNumber",
        "cookieId",
    ];
    let whole = |body: &[u8]| {
        let head = head(REPORTS, token, &[JSON, &format!("Content-Length: {}", body.len())]);
        [head.as_bytes(), b"\r\n", body].concat()
    };
    let text = good.to_string();
    let bytes = |kind, status, field: Option<&str>, request: Vec<u8>| Malformed {
        kind,
        request,
        then_end: false,
        status,
        field: field.map(str::to_owned),
    };
    let body = |kind, field: Option<&str>, body: &[u8]| bytes(kind, 400, field, whole(body));
    let value = |kind, field: &str, value: Value| {
        body(kind, Some(field), with(good.clone(), field, value).to_string().as_bytes())
    };
    // JSON that serde would not write.
    let raw = |field: &str, raw: &str| {
        with(good.clone(), field, json!("<here>")).to_string().replace("\"<here>\"", raw)
    };
    let rest = |chance: &mut Chance| chance.next().to_string();
    match turn % 28 {
        0 => {
            let field = chance.of(&NEEDED);
            let mut report = good.clone();
            report.as_object_mut().expect("an object").remove(field);
            body("a field is missing", Some(field), report.to_string().as_bytes())
        }
        1 => {
            let field =
                format!("{}{}", chance.of(&["cookie_id", "extra", "Meta", "", "__proto__"]), rest(chance));
            value("an unknown field", &field, json!(1))
        }
        2 => {
            let field = chance.of(&NEEDED);
            let wrong =
                chance.of(&[json!(null), json!(true), json!([]), json!({}), json!(1.5), json!([1, "x"])]);
            value("a needed field of another type", field, wrong)
        }
        3 => {
            let field = chance.of(&["profileId", "cookieKeys", "message", "meta"]);
            let wrong = chance.of(&[json!(true), json!([]), json!(-7), json!([{}])]);
            value("an optional field of another type", field, wrong)
        }
        4 => {
            let field = chance.of(&[
                "cookieId",
                "profileId",
                "service",
                "validateUrl",
                "status",
                "message",
                "startedAt",
            ]);
            let long = chance.of(&["x", "é", "\u{1f511}"]).repeat(4_097 + chance.below(4_000));
            value("a huge string", field, json!(long))
        }
        5 => {
            let field =
                chance.of(&["cookieId", "profileId", "service", "validateUrl", "message", "finishedAt"]);
            value("a zero character", field, json!(format!("a\0{}", rest(chance))))
        }
        6 => {
            let mut broken = text.clone().into_bytes();
            let at = text.find("intranet.example").expect("it is there") + chance.below(16);
            broken[at] = chance.of(&[0xff, 0xc0, 0x80, 0xfe, 0xed]);
            body("invalid UTF-8", Some("validateUrl"), &broken)
        }
        7 => {
            let depth = chance.of(&[16, 17, 100, 127, 128, 129, 1_000, 20_000]);
            let (open, close) = chance.of(&[("[", "]"), ("{\"a\":", "}")]);
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let field = if deep.len() > 60_000 { "body" } else { "meta" };
            let report = raw("meta", &format!("{{\"a\":{deep}}}"));
            let status = if report.len() > 64 << 10 { 413 } else { 400 };
            bytes("deep JSON", status, Some(field), whole(report.as_bytes()))
        }
        8 => {
            let field = chance.of(&["startedAt", "finishedAt"]);
            let wrong = chance.of(&[
                "",
                "now",
                "2026-01-02",
                "2026-01-02T03:04:05",
                "2026-13-02T03:04:05Z",
                "2026-02-30T03:04:05Z",
                "02/01/2026 03:04",
                "1767323045",
                "2026-01-02T25:04:05Z",
                "1969-12-31T23:59:59Z",
                "2026-01-02T03:04:05+99:00",
                "+12026-01-02T03:04:05Z",
                "2026-W01-5",
                "２０２６-01-02T03:04:05Z",
            ]);
            value("a wrong date", field, json!(wrong))
        }
        9 => {
            let wrong = chance.of(&[
                "NaN",
                "Infinity",
                "-Infinity",
                "1e999",
                "-1e999",
                "0x1",
                "01",
                "+1",
                "1.",
                ".5",
                "1_000",
                "--1",
            ]);
            body("no number of JSON's", Some("attemptNumber"), raw("attemptNumber", wrong).as_bytes())
        }
        10 => {
            let wrong = chance.of(&[
                "0",
                "-1",
                "1.5",
                "1e3",
                "1.0",
                "4294967296",
                "1e300",
                "18446744073709551616",
                "-0.0",
            ]);
            body("a number that isn't allowed", Some("attemptNumber"), raw("attemptNumber", wrong).as_bytes())
        }
        11 => {
            let field = chance.of(&["cookieId", "status", "attemptNumber", "meta"]);
            let twice = format!("{},\"{field}\":{}}}", &text[..text.len() - 1], good[field]);
            body("a field twice", Some(field), twice.as_bytes())
        }
        12 => {
            let field = chance.of(&["cookieKeys", "meta"]);
            let twice = raw(field, "{\"a\":\"x\",\"b\":\"y\",\"a\":\"z\"}");
            body("a name twice deep within", Some(field), twice.as_bytes())
        }
        13 => {
            let kind = chance.of(&[
                "text/plain",
                "application/x-www-form-urlencoded",
                "application/json; charset=latin1",
                "multipart/form-data",
                "application/jsonp",
                "json",
                "",
            ]);
            let length = format!("Content-Length: {}", text.len());
            let mut lines = vec![length];
            if !kind.is_empty() {
                lines.push(format!("Content-Type: {kind}"));
            }
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            let request = [head(REPORTS, token, &lines).as_bytes(), b"\r\n", text.as_bytes()].concat();
            bytes("another content type", 415, Some("Content-Type"), request)
        }
        14 => {
            let mut request = head(REPORTS, token, &[JSON, "Transfer-Encoding: chunked"]).into_bytes();
            request.extend_from_slice(b"\r\n");
            let chunk = 1 + chance.below(20_000);
            for _ in 0..=(64 << 10) / chunk {
                request.extend_from_slice(format!("{chunk:x}\r\n{}\r\n", " ".repeat(chunk)).as_bytes());
            }
            request.extend_from_slice(b"0\r\n\r\n");
            bytes("chunks that add up to too much", 413, Some("body"), request)
        }
        15 => {
            let body = format!("{text}{}", " ".repeat((64 << 10) + chance.below(1 << 20)));
            bytes("a body that is too long", 413, Some("body"), whole(body.as_bytes()))
        }
        16 => {
            let head = head(
                REPORTS,
                token,
                &[JSON, &format!("Content-Length: {}", text.len() + 1 + chance.below(99))],
            );
            let sent = &text.as_bytes()[..text.len() - chance.below(text.len())];
            let request = [head.as_bytes(), b"\r\n", sent].concat();
            Malformed { then_end: true, ..bytes("a body cut short", 400, Some("body"), request) }
        }
        17 => {
            let head = head(REPORTS, token, &[JSON, "Transfer-Encoding: chunked"]);
            let broken = chance.of(&["zz\r\n", "-1\r\n", "5\r\nab", "ffffffffffffffffff\r\n", "\r\n\r\n"]);
            let request = [head.as_bytes(), b"\r\n", broken.as_bytes()].concat();
            Malformed { then_end: true, ..bytes("broken chunks", 400, Some("body"), request) }
        }
        18 => {
            let end = chance.below(text.len());
            body("JSON cut short", None, &text.as_bytes()[..end])
        }
        19 => value("the end before the start", "finishedAt", json!("2020-01-01T00:00:00Z")),
        20 => {
            let year = 2_100 + chance.below(7_000);
            value("the future", "finishedAt", json!(format!("{year}-01-01T00:00:00Z")))
        }
        21 => {
            let wrong = chance.of(&[
                "",
                "intranet.example/me",
                "ftp://intranet.example/",
                "javascript:alert(1)",
                "https://",
                "//x/y",
                "https://ann:pw@intranet.example/",
                "https://ann@intranet.example/",
                "https://a b/",
                "file:///etc/passwd",
                "https://intranet.example/\n",
                "http://[::1/",
            ]);
            value("no usable URL", "validateUrl", json!(wrong))
        }
        22 => {
            let wrong = chance.of(&[
                "",
                "ok",
                "Success",
                "SUCCESS",
                "success ",
                "validation-failed",
                "rotated",
                "failed\n",
            ]);
            value("an unknown status", "status", json!(wrong))
        }
        23 => {
            let wrong = chance.of(&[
                "",
                "-ann",
                "../ann",
                "ann/1",
                "ann bob",
                "ann\u{202e}",
                "ünn",
                "ann;drop",
                "ann\n",
            ]);
            value("no usable id", "cookieId", json!(wrong))
        }
        24 => {
            let report =
                with(good.clone(), "service", json!(chance.of(&["", "other", "Intranet", "intranet ", "*"])));
            bytes("another service", 403, Some("service"), whole(report.to_string().as_bytes()))
        }
        25 => {
            let wrong = chance.of(&[
                "[]",
                "null",
                "true",
                "5",
                "\"kwt\"",
                "",
                "   ",
                "[{}]",
                "{",
                "}",
                "\u{feff}{}",
                "{}{}",
                "<report/>",
                "a=b&c=d",
            ]);
            let wrong = if chance.below(4) == 0 { format!("[{text}]") } else { wrong.to_owned() };
            let field = if wrong == "{}{}" { None } else { Some("body") };
            body("no object", field, wrong.as_bytes())
        }
        26 => {
            let keys = match chance.below(4) {
                0 => {
                    json!({ "SID": chance.of(&[json!(1), json!(null), json!([]), json!({}), json!(false)]) })
                }
                1 => {
                    (0..181).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
                }
                2 => json!({ "": "x" }),
                _ => json!({ "n".repeat(129): "x" }),
            };
            value("unusable cookieKeys", "cookieKeys", keys)
        }
        _ => {
            let random: Vec<u8> = (0..1 + chance.below(300)).map(|_| chance.next() as u8).collect();
            body("random bytes", Some("body"), &random)
        }
    }
}

#[test]
fn a_report_twice_and_a_thousand_malformed_ones_leave_one_row_and_a_clear_answer_each() {
    const COUNT: usize = 1_000;
    let site = Site::new(NO_LIMIT);
    let _daemon = site.home.serve();
    let (token, address, secret) = (site.token(SERVICE, &[]), address(&site.home), random_secret());
    let good = report("ann", 1, &secret, 0);
    assert_eq!(send(&address, &token, &good).status, 201);
    let before = site.home.json(&["credential", "show", "ann"]);

    let mut chance = Chance(7);
    for turn in 0..COUNT {
        // Another key each time, so that a wrong one that got in would leave a row.
        let fresh = report("ann", 2 + u32::try_from(turn).expect("small"), &secret, 0);
        let Malformed { kind, request, then_end, status, field } =
            malformed(turn, &mut chance, &token, &fresh);
        let reply = exchange(&address, &request, then_end);
        let context = || format!("{kind} ({turn}): {reply:?}");
        assert_eq!(reply.status, status, "{}", context());
        let answer = reply.json();
        let error = &answer["error"];
        assert!(error["code"].as_str().is_some_and(|code| code.len() > 3), "{}", context());
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 6), "{}", context());
        let named = error["field"].as_str().unwrap_or_else(|| panic!("no field: {}", context()));
        if let Some(field) = field {
            assert_eq!(named, field, "{}", context());
        }
        assert!(!reply.body.contains(&secret) && !reply.body.contains(&token), "{}", context());
    }
    let again = send(&address, &token, &good);
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));

    let reports = site.home.json(&["reports", "list", "--limit", "1000"]);
    assert_eq!(reports.as_array().map(Vec::len), Some(1), "{reports}");
    assert_eq!(site.home.json(&["credential", "show", "ann"]), before, "nothing else changed either");
    let counted = counted(&site.home);
    let refused: u64 =
        counted["refused"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
    assert_eq!((refused, &counted["accepted"]), (COUNT as u64, &json!(1)), "{counted}");
}

#[test]
fn only_a_living_token_of_the_service_itself_may_report() {
    let site = Site::new(NO_LIMIT);
    let _daemon = site.home.serve();
    let address = address(&site.home);
    let token = site.token(SERVICE, &[]);
    let good = report("ann", 1, &random_secret(), 0);
    let id = token.split('_').nth(1).expect("the id").to_owned();

    let flipped = match token.strip_suffix('0') {
        Some(rest) => format!("{rest}1"),
        None => format!("{}0", &token[..token.len() - 1]),
    };
    let unknown = format!("kwt_{}_{}", "0".repeat(16), &token[21..]);
    for wrong in ["", "nonsense", &flipped, &unknown, &token[..token.len() - 1], &token.to_uppercase()] {
        let reply = send(&address, wrong, &good);
        reply.refused(401, "unauthenticated", Some("Authorization"));
        assert!(reply.head.to_ascii_lowercase().contains("\r\nwww-authenticate: bearer"), "{}", reply.head);
        assert!(!wrong.starts_with("kwt") || !reply.body.contains(wrong), "{}", reply.body);
    }
    let none = format!(
        "POST {REPORTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    exchange(&address, none.as_bytes(), false).refused(401, "unauthenticated", Some("Authorization"));

    let other = site.token("canteen", &[]);
    send(&address, &other, &good).refused(403, "other-service", Some("service"));
    assert_eq!(send(&address, &token, &good).status, 201);
    // Another service's token can't speak for a credential that is there, as first or as second.
    for attempt in [1, 2] {
        let theirs = with(report("ann", attempt, &random_secret(), 0), "service", json!("canteen"));
        send(&address, &other, &theirs).refused(409, "other-service", Some("cookieId"));
    }

    let short = site.token(SERVICE, &["--expires", "1s"]);
    wait_until(SOON, "the token is over", || {
        let reply = send(&address, &short, &report("ann", 3, &random_secret(), 0));
        (reply.status == 401).then_some(())
    });
    site.home.run(&["worker-token", "revoke", &id]).ok();
    send(&address, &token, &good).refused(401, "unauthenticated", Some("Authorization"));
    assert_eq!(site.home.run(&["worker-token", "revoke", "0000000000000000"]).code(), 3);

    let list = site.home.json(&["worker-token", "list"]);
    let state = |id: &str| {
        let tokens = list.as_array().expect("an array");
        tokens.iter().find(|token| token["tokenId"] == id).expect("the token")["state"].clone()
    };
    let id_of = |token: &str| token.split('_').nth(1).expect("the id").to_owned();
    assert_eq!(
        (state(&id), state(&id_of(&short)), state(&id_of(&other))),
        (json!("revoked"), json!("expired"), json!("active"))
    );
    let history = site.home.json(&["plugin", "history", SERVICE]);
    let actions: Vec<_> =
        history.as_array().expect("an array").iter().map(|row| row["action"].clone()).collect();
    assert_eq!(actions, ["worker-token-revoked", "worker-token-created", "worker-token-created"]);
    // Neither a file nor a line has a token; what was piped from `create` is a command's output.
    let all = [&token, &other, &short];
    let wanted = Wanted::new(all.iter().map(|token| &token[21..]));
    wanted.assert_in_no_file(&site.home.path());
}

#[test]
fn no_value_of_cookie_keys_is_kept_logged_or_answered() {
    let site = Site::new(NO_LIMIT);
    let daemon = site.home.serve_with(&["--log", "trace"]);
    let (token, address) = (site.token(SERVICE, &[]), address(&site.home));
    let secret = random_secret();
    let good = report("ann", 1, &secret, 0);
    let base64 = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&secret)
    };
    let leaky = json!({
        "cookieId": "ann", "profileId": null, "service": SERVICE, "status": "failed", "attemptNumber": 1,
        "validateUrl": format!("https://intranet.example/me?sid={secret}"),
        "cookieKeys": { "SID": secret, "empty": "" },
        "message": format!("cookie SID={secret} was refused\u{1b}[31m, token {token}\nsecond line"),
        "startedAt": good["startedAt"], "finishedAt": good["finishedAt"],
        "meta": { "header": format!("SID={base64}"), secret.clone(): [{ "deep": secret }], "n": 7 }
    });
    let reply = send(&address, &token, &leaky);
    assert_eq!(reply.status, 201, "{reply:?}");
    let kept = &site.home.reports("ann")[0];
    assert_eq!(kept["validateUrl"], "https://intranet.example/me?sid=[redacted]");
    assert_eq!(kept["message"], "cookie SID=[redacted] was refused [31m, token [redacted] second line");
    assert_eq!(
        kept["meta"],
        json!({ "header": "SID=[redacted]", "[redacted]": [{ "deep": "[redacted]" }], "n": 7 })
    );
    let print = kept["cookieKeys"]["SID"].as_str().expect("a fingerprint");
    assert!(print.len() == 16 && print.bytes().all(|byte| byte.is_ascii_hexdigit()), "{print}");
    assert_eq!(kept["workerToken"], json!(token[4..20]));

    // Refused ones, with the value in every place where a mistake may put it.
    let mut replies = vec![];
    for (field, value) in [
        ("cookieId", json!(secret)),
        ("profileId", json!(format!("p-{secret}"))),
        ("status", json!(secret)),
        ("startedAt", json!(secret)),
        ("attemptNumber", json!(secret)),
        ("validateUrl", json!(secret)),
        ("cookieKeys", json!({ secret.clone(): secret })),
        ("cookieKeys", json!({ "SID": [secret] })),
        ("cookieKeys", json!(secret)),
        (secret.as_str(), json!(1)),
    ] {
        let wrong = with(report("ann", 2, &secret, 0), field, value);
        replies.push(send(&address, &token, &wrong));
        // The same, no JSON any more where it ends.
        let text = wrong.to_string();
        replies.push(post(&address, REPORTS, &token, &text.as_bytes()[..text.len() - 1]));
    }
    let wanted = Wanted::new([secret.as_str(), &token[21..]]);
    for reply in &replies {
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    // The one name that was made of it belongs to nothing, so nobody knew that it was a secret.
    let answers: String = replies.iter().map(|reply| reply.body.clone()).collect();
    assert!(!wanted.is_in(answers.as_bytes()), "{answers}");
    for arguments in [["reports", "list"], ["credential", "list"], ["worker-token", "list"]] {
        site.home.run(&arguments).ok();
    }
    assert!(!wanted.is_in(daemon.log().as_bytes()));
    wanted.assert_in_no_file(&site.home.path());
    assert!(daemon.stop().success());
    wanted.assert_in_no_file(&site.home.path());
    assert_eq!(site.home.reports("ann").len(), 1);
}

#[test]
fn a_worker_is_shown_as_silent_after_its_own_interval_and_a_restart_forgets_nothing() {
    let site = Site::new(NO_LIMIT);
    let daemon = site.home.serve();
    let (token, first) = (site.token(SERVICE, &[]), address(&site.home));
    let announce = |address: &str, id: &str, seconds: u32| {
        let body = json!({ "pid": 4_711, "workerId": id, "service": SERVICE, "intervalSeconds": seconds, "version": "1.2" });
        post(address, ANNOUNCE, &token, body.to_string().as_bytes())
    };
    let patient = announce(&first, "patient", 3_600);
    assert_eq!(patient.status, 201, "{patient:?}");
    assert_eq!(
        patient.json(),
        json!({ "workerId": "patient", "service": SERVICE, "intervalSeconds": 3_600 })
    );
    assert_eq!(announce(&first, "hasty", 1).status, 201);
    assert_eq!(announce(&first, "hasty", 1).status, 200);
    let bare = json!({ "pid": 1, "workerId": "bare", "service": SERVICE });
    let bare = post(&first, ANNOUNCE, &token, bare.to_string().as_bytes());
    assert_eq!((bare.status, &bare.json()["intervalSeconds"]), (201, &json!(3_600)));
    wait_until(SOON, "the hasty worker is missed", || {
        (site.worker("hasty")?["presence"] == "silent").then_some(())
    });
    assert_eq!(site.worker("patient").expect("it announced itself")["presence"], "heard");
    let shown = site.home.run(&["status"]);
    assert_eq!(shown.code(), 1, "who fell silent needs a person: {shown:?}");
    assert!(shown.stdout.contains("silent") && shown.stdout.contains("hasty"), "{}", shown.stdout);

    // A report that says whose it is breaks the silence.
    let heard = with(report("ann", 1, &random_secret(), 0), "meta", json!({ "workerId": "hasty" }));
    let before = site.worker("hasty").expect("known")["lastSeenAt"].clone();
    assert_eq!(send(&first, &token, &heard).status, 201);
    assert!(site.worker("hasty").expect("known")["lastSeenAt"].as_str() > before.as_str());

    daemon.kill_9();
    assert_eq!(site.home.json(&["status"])["externalWorkers"].as_array().map(Vec::len), Some(3));
    let _daemon = site.home.serve();
    let second = address(&site.home);
    assert_eq!(announce(&second, "patient", 3_600).status, 200, "it was known before the restart");
    assert_eq!(send(&second, &token, &heard).json()["duplicate"], true);
    for (field, value) in [
        ("pid", json!(0)),
        ("pid", json!("4711")),
        ("workerId", json!("")),
        ("workerId", json!(7)),
        ("service", json!("canteen")),
        ("intervalSeconds", json!(0)),
        ("version", json!(2)),
        ("cookieId", json!("ann")),
    ] {
        let wrong = with(json!({ "pid": 1, "workerId": "w", "service": SERVICE }), field, value);
        let reply = post(&second, ANNOUNCE, &token, wrong.to_string().as_bytes());
        assert_eq!(
            (reply.status / 100, reply.json()["error"]["field"].as_str()),
            (4, Some(field)),
            "{reply:?}"
        );
    }
    assert!(site.worker("w").is_none());
    site.home.run(&["worker-token", "revoke", &token[4..20]]).ok();
    assert_eq!(site.home.json(&["status"])["externalWorkers"], json!([]));
}

#[test]
fn an_external_credential_is_shown_as_such_and_can_only_be_removed() {
    let site = Site::new(NO_LIMIT);
    let _daemon = site.home.serve();
    let (token, address) = (site.token("well-behaved", &[]), address(&site.home));
    let ours = |report: Value| with(report, "service", json!("well-behaved"));
    let failing = with(ours(report("ann", 1, &random_secret(), 60)), "status", json!("validation_failed"));
    assert_eq!(send(&address, &token, &failing).status, 201);
    let monitor = || site.home.json(&["credential", "show", "ann"])["credential"]["monitor"].clone();
    assert_eq!(
        (&monitor()["lastStatus"], &monitor()["consecutiveFailures"]),
        (&json!("validation_failed"), &json!(1))
    );

    // What arrives late is kept, and moves nothing back.
    let newer = ours(report("ann", 3, &random_secret(), 10));
    let late = with(ours(report("ann", 2, &random_secret(), 30)), "status", json!("unreachable"));
    for report in [&newer, &late] {
        assert_eq!(send(&address, &token, report).status, 201);
    }
    assert_eq!((&monitor()["lastStatus"], &monitor()["consecutiveFailures"]), (&json!("success"), &json!(0)));
    assert_eq!(site.home.reports("ann").len(), 3);
    assert_eq!(monitor()["nextDueAt"], Value::Null);

    let shown = site.home.json(&["credential", "show", "ann"]);
    assert_eq!((&shown["credential"]["external"], &shown["generations"]), (&json!(true), &json!([])));
    for arguments in [&["credential", "list"][..], &["credential", "show", "ann"]] {
        assert!(site.home.run(arguments).ok().stdout.contains("external"), "{arguments:?}");
    }
    assert_eq!(site.home.json(&["status"])["counts"]["external"], 1);
    let cookies = site.home.outside().join("cookies.txt");
    std::fs::write(&cookies, "session=x").expect("a file");
    // It pins nothing: a plugin comes and is replaced as if there were no credential.
    site.home.drop_plugin(&guest("well_behaved"));
    site.home.wait_for_plugin("well_behaved.wasm", "active");
    assert_eq!(site.home.json(&["plugin", "show", "well-behaved"])["inUse"]["pinned"], false);
    for arguments in [
        &["credential", "validate", "ann"][..],
        &["credential", "rotate", "ann"],
        &["credential", "pause", "ann"],
        &["credential", "resume", "ann"],
        &["credential", "set", "ann", "--every", "1h"],
        &["credential", "rotate", "ann", "--plan"],
        &["credential", "rotate", "ann", "--now"],
        &["credential", "rollback", "ann", "--yes"],
        &["credential", "export", "ann"],
        &["credential", "import", "ann", cookies.to_str().expect("UTF-8")],
    ] {
        let refused = site.home.run(arguments);
        assert_eq!(refused.code(), 65, "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains("is external"), "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains("keywheel credential remove ann"), "{arguments:?}: {refused:?}");
    }
    let service = Service::start(OldSession::Stays);
    let base_url = format!("base_url={}", service.url);
    let add = ["credential", "add", "ann", "--service", "well-behaved", "--set", &base_url];
    let refused = site.home.run_with_input(&add, "session=x");
    assert_eq!(refused.code(), 65, "{refused:?}");
    assert!(refused.stderr.contains("is external"), "{refused:?}");
    // As the hint says.
    site.home.run(&["credential", "remove", "ann"]).ok();
    site.home.add_session("ann", "well-behaved", &service, &[]);
    assert_eq!(site.home.json(&["plugin", "show", "well-behaved"])["inUse"]["pinned"], true);
}

#[test]
fn a_report_on_a_credential_that_keywheel_keeps_is_shown_and_moves_no_schedule() {
    let site = Site::new(NO_LIMIT);
    site.home.drop_plugin(&guest("well_behaved"));
    let _daemon = site.home.serve();
    let service = Service::start(OldSession::Stays);
    site.home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    let own = site.home.wait_for_reports("ann", 1).remove(0);
    let (token, address) = (site.token("well-behaved", &[]), address(&site.home));
    let before = site.home.json(&["credential", "show", "ann"])["credential"]["monitor"].clone();

    // The same number and start as the host's own attempt: another report all the same.
    let mut clash = with(report("ann", 1, &random_secret(), 0), "service", json!("well-behaved"));
    clash["startedAt"] = own["startedAt"].clone();
    clash["finishedAt"] = own["finishedAt"].clone();
    clash["status"] = json!("failed");
    let first = send(&address, &token, &clash);
    assert_eq!(first.status, 201, "{first:?}");
    let again = send(&address, &token, &clash);
    assert_eq!((again.status, &again.json()["id"]), (200, &first.json()["id"]));
    let reports = site.home.reports("ann");
    assert_eq!(reports.len(), 2);
    assert_eq!(reports[0], own);
    assert!(own.get("workerToken").is_none() && reports[1]["workerToken"] == json!(token[4..20]));
    let after = site.home.json(&["credential", "show", "ann"])["credential"]["monitor"].clone();
    for same in ["nextDueAt", "nextAction", "consecutiveFailures", "lastVerdict", "expiresAt"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_eq!(after["lastStatus"], "failed");
    // And Keywheel goes on with it.
    assert_eq!(site.home.json(&["credential", "validate", "ann"])["status"], "success");
    assert_eq!(site.home.reports("ann").len(), 3);
}

#[test]
fn a_token_used_too_often_is_told_when_to_come_again_and_so_is_a_guesser() {
    let site = Site::new("requests_per_second = 1\nrequests_at_once = 3\n");
    let _daemon = site.home.serve();
    let (token, address) = (site.token(SERVICE, &[]), address(&site.home));
    let flood = |token: &str, most: u32| {
        (0..most)
            .map(|n| send(&address, token, &report("ann", n + 1, "x", 0)))
            .find(|reply| reply.status == 429)
    };
    let refused = flood(&token, 20).expect("the limit");
    refused.refused(429, "rate-limited", None);
    let wait = refused.head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("retry-after").then(|| value.parse::<u64>().expect("seconds"))
    });
    assert!(wait.is_some_and(|wait| (1..=3).contains(&wait)), "{}", refused.head);
    // Another token has a limit of its own.
    let other = site.token(SERVICE, &[]);
    assert_eq!(send(&address, &other, &report("bob", 1, "x", 0)).status, 201);
    let guesser = flood("kwt_guess", 200).expect("the limit of failed sign-ins");
    guesser.refused(429, "rate-limited", None);
    // Who has a token isn't shut out by who guesses from the same address.
    wait_until(SOON, "the token may be used again", || {
        (send(&address, &token, &report("ann", 99, "x", 0)).status == 201).then_some(())
    });
}

#[test]
fn a_slow_client_is_cut_off_and_holds_up_nobody_and_not_the_end() {
    let site = Site::new(NO_LIMIT);
    let daemon = site.home.serve();
    let (token, address) = (site.token(SERVICE, &[]), address(&site.home));
    let begun = Instant::now();
    let open = |text: &str| {
        let mut stream = TcpStream::connect(&address).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.write_all(text.as_bytes()).expect("a beginning");
        stream
    };
    let with_length = head(REPORTS, &token, &[JSON, "Content-Length: 500"]);
    let slow: Vec<TcpStream> = ["", "POST /v1/wor", &with_length, &format!("{with_length}\r\n{{")]
        .into_iter()
        .flat_map(|text| (0..8).map(move |_| text.to_owned()))
        .map(|text| open(&text))
        .collect();
    // One byte now and then, which is what keeps other servers waiting.
    let mut dribbler = open(&with_length);
    assert_eq!(send(&address, &token, &report("ann", 1, "x", 0)).status, 201);
    for mut stream in slow {
        let mut rest = Vec::new();
        // Closed or reset, either is an end.
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
    wait_until(SOON, "the dribbler is cut off", || {
        let cut = dribbler.write_all(b"X").is_err();
        std::thread::sleep(Duration::from_millis(100));
        cut.then_some(())
    });
    // More than may be open at once: the next one waits until the first are cut off, no longer.
    let begun = Instant::now();
    let crowd: Vec<TcpStream> = (0..140).map(|_| open("")).collect();
    assert_eq!(send(&address, &token, &report("ann", 2, "x", 0)).status, 201);
    assert!(begun.elapsed() > Duration::from_secs(5), "nobody had to wait: {:?}", begun.elapsed());
    drop(crowd);
    let _mid_request = open(&with_length);
    let stopping = Instant::now();
    assert!(daemon.stop().success());
    assert!(stopping.elapsed() < Duration::from_secs(8), "{:?}", stopping.elapsed());
}

#[test]
fn while_the_disk_is_full_a_report_is_refused_for_now_and_its_redelivery_is_kept() {
    with_own_mounts(|| {
        let home = TestHome::without_init();
        std::fs::create_dir(home.path()).expect("a folder");
        let _mount = Mount::tmpfs(&home.path(), "size=16m,mode=700");
        home.run(&["init"]).ok();
        Site::configure(&home, NO_LIMIT);
        let _daemon = home.serve();
        let (token, address) = (token(&home, SERVICE, &[]), address(&home));
        let good = report("ann", 1, &random_secret(), 0);
        let filler = fill(&home.path());
        let refused = send(&address, &token, &good);
        refused.refused(503, "unavailable", None);
        assert!(refused.head.to_ascii_lowercase().contains("\r\nretry-after: "), "{}", refused.head);
        std::fs::remove_file(filler).expect("the filler");
        let kept = send(&address, &token, &good);
        assert_eq!((kept.status, &kept.json()["duplicate"]), (201, &json!(false)), "{kept:?}");
        assert_eq!(home.reports("ann").len(), 1);
    });
}

#[test]
fn the_port_is_shut_unless_asked_for_and_open_to_loopback_alone() {
    let home = TestHome::new();
    {
        let _daemon = home.serve();
        assert_eq!(home.json(&["status"])["http"], Value::Null);
    }
    for (config, said) in [
        ("listen = \"0.0.0.0:7878\"", "plain HTTP"),
        ("listen = \"[::]:7878\"", "allow_remote"),
        ("listen = \"localhost\"", "listen"),
        ("hosts = [\"https://x\"]", "host names"),
        ("requests_per_second = 0", "requests_per_second"),
        ("port = 1", "unknown field"),
    ] {
        std::fs::write(home.path().join("config.toml"), format!("[http]\n{config}\n")).expect("a file");
        let refused = home.run(&["serve"]);
        assert_eq!(refused.code(), 78, "{config}: {refused:?}");
        assert!(refused.stderr.contains(said), "{config}: {refused:?}");
    }
    Site::configure(&home, "hosts = [\"keywheel.example\"]\n");
    let _daemon = home.serve();
    let address = address(&home);
    let token = token(&home, SERVICE, &[]);
    let called = |lines: &str| {
        let request = format!(
            "POST /v1/x HTTP/1.1\r\n{lines}Connection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        exchange(&address, request.as_bytes(), false)
    };
    for host in ["localhost", "127.0.0.1:1", "[::1]:7878", "keywheel.example"] {
        called(&format!("Host: {host}\r\n")).refused(404, "no-such-path", None);
    }
    for lines in ["Host: evil.example\r\n", "Host: localhost.evil.example\r\n", "Host: \r\n"] {
        called(lines).refused(403, "unknown-host", Some("Host"));
    }
    let get = format!("GET {REPORTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let reply = exchange(&address, get.as_bytes(), false);
    reply.refused(405, "method-not-allowed", None);
    assert!(reply.head.to_ascii_lowercase().contains("\r\nallow: post"), "{}", reply.head);
    // A second daemon of another home that wants the same port says what is in its way.
    let second = TestHome::new();
    std::fs::write(second.path().join("config.toml"), format!("[http]\nlisten = \"{address}\"\n"))
        .expect("a file");
    let refused = second.run(&["serve"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains(&address), "{refused:?}");
}

#[test]
fn the_documented_worker_signs_in_with_a_browser_hands_the_session_over_and_reports() {
    let (site, django) = (Site::new(""), Peer::django(600));
    site.home.drop_plugin(&plugin("http-session"));
    let daemon = site.home.serve();
    let issued = http("POST", &django.url("/test/issue/?user=ann"), &[]).json();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (password, first) = (text(&issued["password"]), text(&issued["cookie"]["value"]));
    let base_url = format!("base_url={}", django.url(""));
    let settings =
        [base_url.as_str(), "validate_path=/account/", "login_path=/login/", "cookie_name=sessionid"];
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    site.home.add("ann", "http-session", &format!("session={first}"), &settings);
    let token = site.token("http-session", &[]);
    let (login, check) = (django.url("/login/?next=/account/"), django.url("/account/"));
    let folder = site.home.outside().join("worker");
    std::fs::create_dir(&folder).expect("a folder");
    let run = |password: &str| {
        let (url, home) = (format!("http://{}", address(&site.home)), site.home.path());
        run_browser_worker(
            &folder,
            &[
                ("KEYWHEEL_URL", url.as_str()),
                ("KEYWHEEL_TOKEN", token.as_str()),
                ("KEYWHEEL_SERVICE", "http-session"),
                ("KEYWHEEL_CREDENTIAL", "ann"),
                ("KEYWHEEL_PROGRAM", env!("CARGO_BIN_EXE_keywheel")),
                ("KEYWHEEL_HOME", home.to_str().expect("UTF-8")),
                ("SITE_LOGIN_URL", login.as_str()),
                ("SITE_CHECK_URL", check.as_str()),
                ("SITE_USER", "ann"),
                ("SITE_PASSWORD", password),
                ("WORKER_ID", "browser"),
            ],
        )
    };
    let done = run(&password).ok();
    assert!(done.stdout.starts_with("ann: success, report "), "{done:?}");
    let of_worker = || {
        let reports = site.home.reports("ann");
        reports.into_iter().filter(|report| report["workerToken"] == token[4..20]).collect::<Vec<_>>()
    };
    let report = of_worker().remove(0);
    assert_eq!((&report["status"], &report["attemptNumber"]), (&json!("success"), &json!(1)), "{report}");
    assert_eq!(report["meta"], json!({ "workerId": "browser", "httpStatus": 200 }));
    assert_eq!(site.worker("browser").expect("it announced itself")["presence"], "heard");
    // The session that it handed over is another one, and Keywheel goes on with it.
    let exported = site.home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    let session = text(&exported["session"]["value"]);
    assert_ne!(session, first);
    let page = http("GET", &check, &[&format!("Cookie: sessionid={session}")]);
    assert_eq!((page.status, page.json()["user"].as_str()), (200, Some("ann")));
    assert_eq!(site.home.json(&["credential", "validate", "ann"])["status"], "success");

    let failed = run("not-the-password");
    assert_eq!(failed.code(), 1, "{failed:?}");
    let report = of_worker().remove(1);
    assert_eq!(
        (&report["status"], &report["attemptNumber"]),
        (&json!("validation_failed"), &json!(2)),
        "{report}"
    );
    let wanted = Wanted::new([session.as_str(), password.as_str(), &token[21..]]);
    wanted.assert_in_no_file(&site.home.path());
    wanted.assert_in_no_file(&folder);
    assert!(!wanted.is_in(daemon.log().as_bytes()));
}
