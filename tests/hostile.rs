//! Plugins written by strangers. Each guest does one hostile thing; each test says how that ends,
//! by type and by the limit or rule it met, while a plugin beside it goes on as if nothing were.
//! What a guest was given it tells its own service, past every redaction, and there it is read.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::harness::*;
use crate::secrets::{Wanted, assert_finds, assert_nowhere};

/// A request as it came over the wire.
#[derive(Clone, Debug)]
struct Seen {
    target: String,
    /// Lines as they were sent, the request line first.
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        let found = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        found
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
            .unwrap_or("")
    }

    /// The cookie `session`.
    fn session(&self) -> &str {
        self.header("cookie").split("; ").find_map(|cookie| cookie.strip_prefix("session=")).unwrap_or("")
    }
}

type React = dyn Fn(&Seen) -> Option<Vec<u8>> + Send + Sync;

/// A service that keeps every byte it was sent and answers what the test wants. What a guest
/// posts to `…/told` is kept apart.
#[derive(Clone)]
struct Site {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    told: Arc<Mutex<Vec<Seen>>>,
    react: Arc<React>,
}

impl Site {
    /// `react` answers all but `told`; where it gives nothing, nothing is ever answered.
    fn start(react: impl Fn(&Seen) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let site = Self { address, seen: Arc::default(), told: Arc::default(), react: Arc::new(react) };
        let of_thread = site.clone();
        // Ends with the test process, like the listener.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = of_thread.clone();
                std::thread::spawn(move || drop(site.answer(stream)));
            }
        });
        site
    }

    /// Somebody whom nobody allowed. Every connection counts, also one that says nothing.
    fn collector() -> Self {
        Self::start(|_| Some(answer(200, &[], "{}")))
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(SOON))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while reader.read_line(&mut head)? > 2 && !head.ends_with("\r\n\r\n") {}
        let target = head.split(' ').nth(1).unwrap_or_default();
        let mut seen = Seen { target: target.to_owned(), head: head.clone(), body: Vec::new() };
        let length = seen.header("content-length").parse().unwrap_or(0);
        reader.take(length).read_to_end(&mut seen.body)?;
        let told = seen.target.ends_with("/told");
        let reaction = if told { Some(answer(200, &[], "{}")) } else { (self.react)(&seen) };
        let list = if told { &self.told } else { &self.seen };
        list.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        match reaction {
            Some(bytes) => stream.write_all(&bytes),
            // Silence, until the other end has had enough.
            None => stream.read(&mut [0]).map(drop),
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a guest told: what it tried or looked at, and what came of it.
    fn told(&self, guest: &str) -> Vec<(String, Vec<u8>)> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = Vec::new();
        for seen in told.iter().filter(|seen| seen.target == format!("/{guest}/told")) {
            for line in String::from_utf8_lossy(&seen.body).lines() {
                let (what, digits) = line.rsplit_once(' ').expect("what and what came of it");
                all.push((what.to_owned(), hex::decode(digits).expect("hexadecimal")));
            }
        }
        all
    }

    /// Where a guest's service is: a folder of its own, so that it is known who asked.
    fn url(&self, guest: &str) -> String {
        format!("http://{}/{guest}", self.address)
    }
}

/// One answer, after which the connection is closed.
fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    [bytes.as_bytes(), body].concat()
}

/// A session that lives, whatever is asked.
fn content(_: &Seen) -> Option<Vec<u8>> {
    Some(answer(200, &[], "{}"))
}

/// Secrets with all that encoders treat apart.
struct Secrets {
    session: String,
    token: String,
}

impl Secrets {
    fn new() -> Self {
        Self { session: format!("S+/{}=", random_secret()), token: format!("T&\"<+/%{}'=", random_secret()) }
    }
}

/// A home with a well-behaved neighbour, whose attempts have to go on.
struct Street {
    // Before its home, which holds its log.
    daemon: Daemon,
    home: TestHome,
    neighbour: u32,
    _service: Service,
}

impl Street {
    fn new() -> Self {
        let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
        home.drop_plugin(&guest("well_behaved"));
        let daemon = home.serve();
        home.wait_for_plugin("well_behaved.wasm", "active");
        home.add_session("spared", "well-behaved", &service, &["--every", "1s"]);
        home.wait_for_reports("spared", 1);
        let neighbour = home.worker_pid("well-behaved");
        Self { home, daemon, neighbour, _service: service }
    }

    /// Drops the guests into the folder, all at once, and waits until all are settled.
    fn invite(&self, guests: &[&str]) {
        for name in guests {
            self.home.drop_plugin(&guest(name));
        }
        wait_until(SOON * 3, "the guests are active", || {
            let status = self.home.json(&["status"]);
            let plugins = status["plugins"].as_array().expect("an array").clone();
            let refused: Vec<_> = plugins.iter().filter(|plugin| plugin["state"] == "refused").collect();
            assert!(refused.is_empty(), "{refused:#?}");
            (plugins.len() > guests.len()).then_some(())
        });
    }

    /// Adds a credential of a guest; its id is the guest's name, and its first attempt begins.
    fn tempt(&self, guest: &str, site: &Site, elsewhere: &str, secrets: &Secrets) {
        let keys = format!("session={}\ntoken={}\n", secrets.session, secrets.token);
        let (base_url, elsewhere) =
            (format!("base_url={}", site.url(guest)), format!("elsewhere={elsewhere}"));
        let settings = ["--set", &base_url, "--set", &elsewhere];
        self.home.add(guest, &guest.replace('_', "-"), &keys, &settings);
    }

    /// The report of a guest's first attempt. Many of them compute until they are stopped, and
    /// share a machine.
    fn first_report(&self, guest: &str) -> Value {
        wait_until(SOON * 3, &format!("`{guest}` has a report"), || self.home.reports(guest).first().cloned())
    }

    /// Nothing that happened beside it touched the neighbour.
    #[track_caller]
    fn leave(self) {
        let so_far = self.home.reports("spared").len();
        let spared = self.home.wait_for_reports("spared", so_far + 1);
        assert!(spared.iter().all(|report| report["status"] == "success"), "{spared:?}");
        assert_eq!(self.home.worker_pid("well-behaved"), self.neighbour);
        assert!(!self.daemon.log().contains("' panicked at"), "{}", self.daemon.log());
    }
}

/// How an attempt ended: status, verdict, and what its message has to say.
struct End {
    status: &'static str,
    verdict: &'static str,
    says: &'static str,
}

const fn limit(says: &'static str) -> End {
    End { status: "failed", verdict: "unknown", says }
}

impl End {
    fn is(&self, report: &Value) -> bool {
        let message = report["message"].as_str().unwrap_or_default();
        report["status"] == self.status
            && report["meta"]["verdict"] == self.verdict
            && self.says.split('…').all(|said| message.contains(said))
    }
}

/// One street, all guests of a table, each with its end, and none of their workers died.
fn each_ends_as_it_should(site: &Site, guests: &[(&str, End)]) {
    let street = Street::new();
    let names: Vec<_> = guests.iter().map(|(name, _)| *name).collect();
    street.invite(&names);
    for name in &names {
        street.tempt(name, site, "127.0.0.1:9", &Secrets::new());
    }
    let mut wrong = Vec::new();
    for (name, end) in guests {
        let report = street.first_report(name);
        if !end.is(&report) {
            wrong.push(format!("{name}: {report}"));
        }
        let worker = street.home.worker(&name.replace('_', "-")).expect("its worker is there");
        if (&worker["state"], &worker["crashes"], &worker["starts"])
            != (&"running".into(), &0.into(), &1.into())
        {
            wrong.push(format!("{worker}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    street.leave();
}

#[test]
fn a_plugin_that_takes_too_much_meets_the_limit_named_and_keeps_its_worker() {
    let site = Site::start(|seen| (!seen.target.ends_with("/silence")).then(|| answer(200, &[], "{}")));
    each_ends_as_it_should(
        &site,
        &[
            ("loops_forever", limit("over a limit: … ms of CPU used, 2000 allowed")),
            ("sleeps_forever", limit("over a limit: … ms of CPU used, 2000 allowed")),
            ("recurses_forever", limit("over a limit: the stack of 512 KiB is used up")),
            (
                "calls_the_host_at_the_end_of_its_stack",
                limit("over a limit: the stack of 512 KiB is used up"),
            ),
            ("memory_bomb", limit("over a limit: … bytes of memory asked for, 67108864 allowed")),
            (
                "grows_its_memory_at_once",
                limit("over a limit: … bytes of memory asked for, 67108864 allowed"),
            ),
            ("host_call_flood", limit("over a limit: more than 256 calls to the host")),
            ("log_flood", limit("over a limit: more than 65536 bytes of log")),
            ("print_flood", limit("over a limit: more than 256 calls to the host")),
            ("print_of_many_lines", limit("over a limit: more than 256 calls to the host")),
            (
                "waits_for_silence",
                End {
                    status: "unreachable",
                    verdict: "unknown",
                    says: "a call may make 20 requests, redirects included",
                },
            ),
            ("giant_url", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_method", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_header", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_header_list", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_body", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_capture_list", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_template", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_leaf_list", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_extras", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_log_line", limit("over a limit: … fuel allocated for hostcalls")),
            ("giant_key_name", limit("over a limit: … fuel allocated for hostcalls")),
            ("returns_a_giant", limit("over a limit: ")),
            ("returns_what_just_fits", End { status: "success", verdict: "valid", says: "nnnn" }),
            ("giants_that_just_fit", End { status: "success", verdict: "valid", says: "" }),
        ],
    );
}

#[test]
fn a_plugin_that_lies_about_its_memory_or_its_text_traps_alone() {
    let site = Site::start(content);
    each_ends_as_it_should(
        &site,
        &[
            ("traps_in_validate", limit("plugin trapped: ")),
            ("exits", limit("plugin trapped: ")),
            ("reads_out_of_bounds", limit("plugin trapped: ")),
            ("invalid_utf8_in_a_log_line", limit("plugin trapped: ")),
            ("invalid_utf8_in_a_request", limit("plugin trapped: ")),
            ("invalid_utf8_in_a_key_name", limit("plugin trapped: ")),
            ("invalid_utf8_in_a_verdict", limit("plugin trapped: ")),
            ("lying_length_of_a_log_line", limit("plugin trapped: ")),
            ("lying_pointer_of_a_key_name", limit("plugin trapped: ")),
            ("lying_pointer_for_an_answer", limit("plugin trapped: ")),
            ("lying_pointer_of_a_request", limit("plugin trapped: ")),
            ("lying_length_of_a_list", limit("plugin trapped: ")),
            ("lying_log_level", limit("plugin trapped: ")),
            ("lying_pointer_of_a_verdict", limit("plugin trapped: ")),
            ("lying_alignment_of_a_verdict", limit("plugin trapped: ")),
            ("lying_kind_of_a_verdict", limit("plugin trapped: ")),
            ("lying_allocator", limit("plugin trapped: ")),
        ],
    );
    assert!(site.seen().is_empty(), "nobody got as far as a request");
}

/// A built plugin with one core module more, which is instantiated so many times as it starts.
fn with_module(plugin: &Path, module: &str, times: u32) -> Vec<u8> {
    let mut bytes = fs::read(plugin).expect("a built plugin");
    let module = wat::parse_file(source(&format!("tests/guests/wat/{module}.wat"))).expect("a module");
    let (mut modules, mut depth) = (0_u32, 0_u32);
    for payload in wasmparser::Parser::new(0).parse_all(&bytes) {
        match payload.expect("a component") {
            wasmparser::Payload::ModuleSection { .. } => {
                modules += u32::from(depth == 0);
                depth += 1;
            }
            wasmparser::Payload::ComponentSection { .. } => depth += 1,
            wasmparser::Payload::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    let mut instances = Vec::new();
    leb128(times, &mut instances);
    for _ in 0..times {
        // Instantiate the module, without arguments.
        instances.push(0);
        leb128(modules, &mut instances);
        instances.push(0);
    }
    for (id, section) in [(1, module), (2, instances)] {
        bytes.push(id);
        leb128(u32::try_from(section.len()).expect("a small section"), &mut bytes);
        bytes.extend(section);
    }
    bytes
}

fn leb128(mut number: u32, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The lie a plugin tells, by its number in the guest, and what the refusal says.
const LIES: &[(u32, &str)] = &[
    (1, "service"),
    (2, "service"),
    (3, "../well-behaved"),
    (4, "U+202E"),
    (5, "U+000A"),
    (6, "U+001B"),
    (7, "1048576 bytes"),
    (8, "newest"),
    (9, "the key mapping is empty"),
    (10, "5000 keys"),
    (11, "appears twice"),
    (12, "Token!"),
    (13, "same cookie"),
    (14, "not a cookie name"),
    (15, "not a host"),
    (16, "not a cookie path"),
    (17, "a wildcard"),
    (18, "plain http"),
    (19, "private or special address"),
    (20, "private or special address"),
    (21, "a user name"),
    (22, "a path"),
    (23, "a query"),
    (24, "ends in a dot"),
    (25, "private or special address"),
    (26, "https"),
    (27, "no_such_setting"),
    (28, "default"),
    (29, "not on an allowed origin"),
    (30, "not a url"),
    (31, "appears twice"),
    (32, "a choice without choices"),
    (33, "not an integer"),
    (34, "appears twice"),
    (35, "commit class"),
    (36, "0 seconds"),
    (37, "41 origins"),
    (38, "bytes"),
    (39, "utf-8"),
    (40, "over a limit"),
    (41, "0 seconds"),
];

#[test]
fn a_plugin_that_lies_in_its_manifest_or_harms_as_it_starts_is_refused_with_the_reason() {
    let street = Street::new();
    let folder = street.home.path().join("plugins");
    let good = guest("second_well_behaved");
    let starts = [
        ("loops_in_its_start", 1, "ms of CPU used, 2000 allowed"),
        ("traps_in_its_start", 1, "trapped"),
        ("recurses_in_its_start", 1, "the stack of 512 KiB is used up"),
        ("table_bomb", 1, "table elements asked for, 20000 allowed"),
        ("giant_table", 1, "table elements asked for, 20000 allowed"),
        ("giant_memory", 1, "bytes of memory asked for, 67108864 allowed"),
        ("one_memory_more", 100, "memory"),
        ("one_table_more", 100, "table"),
        ("nothing_ten_thousand_times", 10_000, "instance"),
    ];
    for (module, times, _) in starts {
        fs::write(folder.join(format!("{module}.wasm")), with_module(&good, module, times)).expect("a file");
    }
    let liar = fs::read(guest("lies_in_its_manifest")).expect("a built plugin");
    let at = memchr::memmem::find(&liar, b"LIE-0000").expect("the place of the number");
    for (lie, _) in LIES {
        let mut bytes = liar.clone();
        bytes[at..at + 8].copy_from_slice(format!("LIE-{lie:04}").as_bytes());
        fs::write(folder.join(format!("lie-{lie:02}.wasm")), bytes).expect("a file");
    }
    for name in ["describe_traps", "describe_loops", "describe_sends"] {
        street.home.drop_plugin(&guest(name));
    }
    let described = [
        ("describe_traps", "trapped"),
        ("describe_loops", "ms of CPU used, 2000 allowed"),
        ("describe_sends", "bytes"),
    ];
    let expected: Vec<(String, &str)> = (starts.iter().map(|(file, _, why)| ((*file).to_owned(), *why)))
        .chain(LIES.iter().map(|(lie, why)| (format!("lie-{lie:02}"), *why)))
        .chain(described.iter().map(|(file, why)| ((*file).to_owned(), *why)))
        .collect();
    let plugins = wait_until(SOON * 3, "all are looked at", || {
        let status = street.home.json(&["status"]);
        let plugins = status["plugins"].as_array().expect("an array").clone();
        (plugins.len() == expected.len() + 1).then_some(plugins)
    });
    let mut wrong = Vec::new();
    for (file, why) in &expected {
        let file = format!("{file}.wasm");
        let plugin = plugins.iter().find(|plugin| plugin["file"] == file.as_str()).expect("it is listed");
        if plugin["state"] != "refused"
            || !plugin["reason"].as_str().is_some_and(|reason| reason.contains(why))
        {
            wrong.push(format!("{file}: {} {}, not {why}", plugin["state"], plugin["reason"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    street.leave();
}

#[test]
fn a_describe_that_depends_on_time_and_chance_says_the_same_each_time() {
    let home = TestHome::new();
    home.drop_plugin(&guest("describe_differs"));
    let daemon = home.serve();
    let asked = |state| home.wait_for_plugin("describe_differs.wasm", state)["permissions"].clone();
    let site = Site::start(content);
    let first = asked("active");
    let base_url = format!("base_url={}", site.url("a"));
    home.add("a", "describe-differs", "session=abcdefgh", &["--set", &base_url]);
    assert!(daemon.stop().success());
    let path = guest("describe_differs");
    let check = home.json(&["plugin", "check", path.to_str().expect("UTF-8")]);
    let _daemon = home.serve();
    assert_eq!(asked("active"), first);
    assert!(first.to_string().contains("https://t0-r"), "{first}");
    assert_eq!(check["permissions"], first);
}

/// One street, one collector and every way to it. `lands` is how many tries may be answered: by
/// the allowed service, and by nobody else.
fn each_try_is_refused(guests: &[(&str, usize)], react: fn(&Seen) -> Option<Vec<u8>>) -> (Street, Site) {
    let (street, site, collector) = (Street::new(), Site::start(react), Site::collector());
    let names: Vec<_> = guests.iter().map(|(name, _)| *name).collect();
    street.invite(&names);
    let secrets = Secrets::new();
    for name in &names {
        street.tempt(name, &site, &collector.address, &secrets);
    }
    let mut wrong = Vec::new();
    for (name, lands) in guests {
        let report = street.first_report(name);
        if report["status"] != "success" {
            wrong.push(format!("{name}: {report}"));
        }
        let told = site.told(name);
        let tried: Vec<_> = told.iter().map(|(what, came)| (what, String::from_utf8_lossy(came))).collect();
        let outcome = |start: &str| tried.iter().filter(|(_, came)| came.starts_with(start)).count();
        let shown = ["url", "header", "body", "captured", "extra"];
        let tries = tried.iter().filter(|(what, _)| !shown.contains(&what.as_str())).count();
        // Not a DNS error, not a connection that failed: it was never tried.
        let refused = outcome("Error::Denied") + outcome("Err(");
        if outcome("answered 200") != *lands || refused + lands != tries || tries == 0 {
            wrong.push(format!("{name}: {tried:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(collector.seen().is_empty(), "{:#?}", collector.seen());
    let log = street.daemon.log();
    for secret in [&secrets.session, &secrets.token] {
        assert!(!log.contains(secret.as_str()), "a secret is in the log");
    }
    (street, site)
}

#[test]
fn a_secret_leaves_for_the_allowed_origin_and_no_other() {
    let (street, site) = each_try_is_refused(
        &[
            ("steals_by_url", 0),
            ("steals_by_query", 0),
            ("steals_by_header", 0),
            ("steals_by_body", 0),
            ("steals_by_cookies", 0),
            ("steals_by_host_header", 0),
            ("steals_by_dns_name", 0),
            // A `?` or `#` ends the authority, so those two are the allowed host's own pages.
            ("steals_by_user_info", 2),
            ("steals_by_redirect", 0),
            ("steals_by_look_alike", 0),
            // An address with one dot at its end is the address.
            ("steals_by_trailing_dot", 1),
            ("steals_by_another_port", 0),
            ("steals_by_another_scheme", 0),
            ("steals_by_odd_addresses", 0),
        ],
        |seen| {
            let (path, to) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
            match path.rsplit_once("/redirect/") {
                Some((_, status)) => {
                    let location = format!("http://{to}/taken");
                    Some(answer(status.parse().expect("a status"), &[("Location", &location)], ""))
                }
                None => Some(answer(200, &[], "{}")),
            }
        },
    );
    // All that arrived where it may: the redirects, and three pages of the allowed host.
    assert_eq!(site.seen().len(), 8, "{:#?}", site.seen());
    street.leave();
}

#[test]
fn a_request_is_the_one_the_host_wrote() {
    let (street, site) = each_try_is_refused(
        &[
            ("smuggles_headers", 0),
            ("smuggles_by_url", 0),
            ("smuggles_by_method", 0),
            ("names_keys_it_does_not_own", 0),
            ("reveals_without_a_grant", 0),
            ("captures_what_is_not_its_own", 0),
        ],
        content,
    );
    // Refused before anything was sent, not repaired on the way.
    assert!(site.seen().is_empty(), "{:#?}", site.seen());
    street.leave();
}

/// Bytes as one run of DEFLATE literals: no byte of it stands where a byte of the text stood.
fn deflated(text: &[u8]) -> Vec<u8> {
    let (mut bits, mut out) = (vec![true, true, false], Vec::new());
    for byte in text {
        assert!(*byte < 144, "ASCII has eight bits here");
        bits.extend((0..8).rev().map(|place| (0x30 + byte) >> place & 1 == 1));
    }
    // The end of the block.
    bits.extend([false; 7]);
    for eight in bits.chunks(8) {
        out.push(eight.iter().enumerate().fold(0, |sum, (place, bit)| sum | u8::from(*bit) << place));
    }
    out
}

fn gzipped(text: &[u8]) -> Vec<u8> {
    let crc = text.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let length = u32::try_from(text.len()).expect("a small text");
    [&head[..], &deflated(text), &(!crc).to_le_bytes(), &length.to_le_bytes()].concat()
}

/// What a service may make of a secret on its way back.
struct Echo {
    name: &'static str,
    /// The spelling, and the whole answer with it.
    make: fn(&str) -> (Vec<u8>, Vec<u8>),
}

fn in_json(spelled: String) -> (Vec<u8>, Vec<u8>) {
    let answered =
        answer(200, &[("Content-Type", "application/json")], format!("{{\"echo\":\"{spelled}\"}}"));
    (spelled.into_bytes(), answered)
}

fn each(secret: &str, spell: impl Fn(u8) -> String) -> (Vec<u8>, Vec<u8>) {
    in_json(secret.bytes().map(spell).collect())
}

fn base64(secret: &str, before: &str, engine: &impl base64::Engine) -> (Vec<u8>, Vec<u8>) {
    in_json(engine.encode(format!("{before}{secret}{before}")))
}

fn coded(encoding: &str, bytes: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let answered = answer(200, &[("Content-Encoding", encoding)], &bytes);
    (bytes, answered)
}

fn percent(secret: &str, upper: bool) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric();
    let spell = |byte: u8| match upper {
        _ if keep(byte) => char::from(byte).to_string(),
        true => format!("%{byte:02X}"),
        false => format!("%{byte:02x}"),
    };
    secret.bytes().map(spell).collect()
}

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// What redaction promises to find.
const CAUGHT: &[Echo] = &[
    Echo { name: "raw", make: |s| (s.into(), answer(200, &[], s)) },
    Echo {
        name: "raw among much",
        make: |s| (s.into(), answer(200, &[], "x".repeat(90_000) + s + &"y".repeat(90_000))),
    },
    Echo { name: "in an error", make: |s| (s.into(), answer(403, &[], format!("no entry for {s}!"))) },
    Echo { name: "in a header", make: |s| (s.into(), answer(200, &[("X-Echo", s)], "")) },
    Echo {
        name: "in a redirect",
        make: |s| (s.into(), answer(302, &[("Location", &format!("/x?{s}"))], "")),
    },
    Echo {
        name: "json",
        make: |s| in_json(serde_json::to_string(s).expect("text").trim_matches('"').to_owned()),
    },
    Echo { name: "json, code points", make: |s| each(s, |byte| format!("\\u{byte:04x}")) },
    Echo { name: "json, upper code points", make: |s| each(s, |byte| format!("\\u{byte:04X}")) },
    Echo { name: "json, slashes", make: |s| in_json(s.replace('"', "\\\"").replace('/', "\\/")) },
    Echo { name: "percent", make: |s| in_json(percent(s, true)) },
    Echo { name: "percent, lower", make: |s| in_json(percent(s, false)) },
    Echo { name: "percent, every byte", make: |s| each(s, |byte| format!("%{byte:02X}")) },
    Echo { name: "html, decimal", make: |s| each(s, |byte| format!("&#{byte};")) },
    Echo { name: "html, hexadecimal", make: |s| each(s, |byte| format!("&#x{byte:x};")) },
    Echo {
        name: "html, names",
        make: |s| in_json(s.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")),
    },
    Echo { name: "hex", make: |s| in_json(hex::encode(s)) },
    Echo { name: "HEX", make: |s| in_json(hex::encode_upper(s)) },
    Echo { name: "base64, first place", make: |s| base64(s, "", &STANDARD) },
    Echo { name: "base64, second place", make: |s| base64(s, "u", &STANDARD) },
    Echo { name: "base64, third place", make: |s| base64(s, "us", &STANDARD_NO_PAD) },
    Echo { name: "base64url, first place", make: |s| base64(s, "use", &URL_SAFE_NO_PAD) },
    Echo { name: "base64url, second place", make: |s| base64(s, "user", &URL_SAFE) },
    Echo { name: "base64url, third place", make: |s| base64(s, "user:", &URL_SAFE_NO_PAD) },
    Echo { name: "gzip", make: |s| coded("gzip", gzipped(format!("{{\"echo\":\"{s}\"}}").as_bytes())) },
    Echo { name: "gzip in gzip", make: |s| coded("gzip", gzipped_again(s)) },
    Echo { name: "a gzip file", make: |s| (gzipped(s.as_bytes()), answer(200, &[], gzipped(s.as_bytes()))) },
    Echo { name: "deflate", make: |s| coded("deflate", deflated(s.as_bytes())) },
    Echo { name: "brotli", make: |s| coded("br", s.into()) },
    Echo { name: "zstd", make: |s| coded("zstd", s.into()) },
    Echo { name: "compress", make: |s| coded("x-compress", s.into()) },
    Echo {
        name: "split in two",
        make: |s| {
            let (a, b) = s.split_at(s.len() / 2);
            (b.into(), answer(200, &[], format!("{{\"a\":\"{a}\",\"b\":\"{b}\"}}")))
        },
    },
];

/// What is open, for each service that means to help: it has the secret already.
const OPEN: &[Echo] = &[
    Echo { name: "reversed", make: |s| in_json(s.chars().rev().collect()) },
    Echo { name: "a character a line", make: |s| each(s, |byte| format!("{}\n", char::from(byte))) },
    Echo { name: "half of it", make: |s| in_json(s[..s.len() / 2].to_owned()) },
    Echo { name: "another case", make: |s| in_json(s.to_ascii_uppercase()) },
    Echo { name: "a cipher", make: |s| each(s, |byte| char::from(byte ^ 1).to_string()) },
];

/// Compressed twice; the outer layer is what HTTP says it is. Bytes that are no ASCII are
/// stored, for the little compressor here knows no others.
fn gzipped_again(secret: &str) -> Vec<u8> {
    let inner = gzipped(secret.as_bytes());
    let crc = inner.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    let length = u16::try_from(inner.len()).expect("a small text");
    let stored = [&[1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), &inner].concat();
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    [&head[..], &stored, &(!crc).to_le_bytes(), &u32::from(length).to_le_bytes()].concat()
}

#[test]
fn a_plugin_is_given_no_spelling_of_a_secret_that_its_service_repeats() {
    let street = Street::new();
    street.invite(&["probes_the_echo", "computes_over_secrets", "captures_an_echo"]);
    let site = Site::start(|seen| {
        if let Some((_, place)) = seen.target.rsplit_once("/echo/") {
            let place: usize = place.parse().expect("a number");
            let echo = CAUGHT.iter().chain(OPEN).nth(place / 2).expect("an echo");
            // The cookie's and the header's value in turn.
            let secret = if place.is_multiple_of(2) { seen.session() } else { seen.header("authorization") };
            return Some((echo.make)(secret).1);
        }
        if seen.target.ends_with("/mirror") {
            let (session, token) = (seen.session(), String::from_utf8_lossy(&seen.body));
            let half = &session[..session.len() / 2];
            let body = serde_json::json!({
                "echo": session, "half": half, "token": token, "harmless": "harmless-value", "number": 60,
                "header": seen.header("x-token"),
            });
            return Some(answer(200, &[("X-Echo", session)], body.to_string()));
        }
        Some(answer(200, &[], &seen.body))
    });
    let secrets = Secrets::new();
    let probes = 2 * (CAUGHT.len() + OPEN.len());
    street.tempt("probes_the_echo", &site, &probes.to_string(), &secrets);
    street.tempt("computes_over_secrets", &site, "127.0.0.1:9", &secrets);
    street.tempt("captures_an_echo", &site, "127.0.0.1:9", &secrets);
    street.first_report("probes_the_echo");
    // Nineteen of them in each attempt.
    for _ in 1..probes.div_ceil(19) {
        street.home.json(&["credential", "validate", "probes_the_echo"]);
    }
    let told = site.told("probes_the_echo");
    assert_eq!(told.iter().filter(|(what, _)| what == "probe").count(), probes, "{told:?}");
    let seen: Vec<_> = told.iter().map(|(_, came)| came.as_slice()).collect();
    let is_seen = |spelling: &[u8]| seen.iter().any(|came| memchr::memmem::find(came, spelling).is_some());
    for secret in [&secrets.session, &secrets.token] {
        for echo in CAUGHT {
            assert!(!is_seen(&(echo.make)(secret).0), "{} of {secret} was given to the plugin", echo.name);
        }
        for echo in OPEN {
            assert!(
                is_seen(&(echo.make)(secret).0),
                "{} is caught now; say so where it is called open",
                echo.name
            );
        }
    }
    for guest in ["computes_over_secrets", "captures_an_echo"] {
        assert_eq!(street.first_report(guest)["status"], "success");
        let told = site.told(guest);
        assert!(told.iter().any(|(what, _)| what == "body"), "{told:?}");
        for (what, came) in told {
            for secret in [&secrets.session, &secrets.token] {
                for echo in CAUGHT {
                    let spelling = (echo.make)(secret).0;
                    assert!(
                        memchr::memmem::find(&came, &spelling).is_none(),
                        "{guest} {what}: {}",
                        echo.name
                    );
                }
            }
        }
    }
    // A careless plugin logged all it got.
    let log = street.daemon.log();
    for secret in [&secrets.session, &secrets.token] {
        for echo in CAUGHT {
            let spelling = (echo.make)(secret).0;
            assert!(memchr::memmem::find(log.as_bytes(), &spelling).is_none(), "{} is in the log", echo.name);
        }
    }
    street.leave();
}

/// The sets of a hostile service, and what comes back with the next request, by cookie name.
const COOKIES: [&[&str]; 8] = [
    &["foreign=1; Domain=collector.example", "parent=1; Domain=example", "other=1; Domain=127.0.0.2"],
    &["suffix=1; Domain=com", "suffix2=1; Domain=co.uk", "suffix3=1; Domain=github.io", "dot=1; Domain=."],
    &["__Host-a=1; Path=/", "__Host-b=1; Secure; Path=/x", "__host-c=1; Secure; Path=/; Domain=127.0.0.1"],
    &["__Secure-a=1; Path=/", "__SECURE-b=1"],
    &["tail=1; Domain=0.0.1", "range=1; Domain=127.0.0.0/8", "empty=1; Domain=;"],
    &["=nameless", "", ";", "control=a\u{1}b", "no-value"],
    &["past=1; Max-Age=0", "old=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "path=1; Path=/elsewhere"],
    &[
        "kept=1; Path=/",
        "far=1; Path=/; Max-Age=99999999999999999999",
        "far2=1; Path=/; Max-Age=9223372036854775807",
    ],
];

#[test]
fn a_service_sets_cookies_of_its_own_alone_and_not_too_many() {
    let street = Street::new();
    street.invite(&["collects_cookies", "collects_thousands_of_cookies"]);
    let site = Site::start(|seen| {
        let place = |part: &str| seen.target.rsplit_once(part)?.1.parse::<usize>().ok();
        if let Some(place) = place("/cookies/") {
            let lines: Vec<_> = COOKIES[place].iter().map(|line| ("Set-Cookie", *line)).collect();
            return Some(answer(200, &lines, "{}"));
        }
        if let Some(place) = place("/many/") {
            // The first is larger than any secret, the second than any cookie nobody mapped.
            let large =
                [format!("session={}; Path=/", "x".repeat(70_000)), format!("large={}", "x".repeat(5_000))];
            let number = |n| format!("c{place}-{n}=some-value-{n}; Path=/");
            let lines: Vec<_> = if place == 0 { large.into() } else { (0..120).map(number).collect() };
            let lines: Vec<_> = lines.iter().map(|line| ("Set-Cookie", line.as_str())).collect();
            return Some(answer(200, &lines, "{}"));
        }
        Some(answer(200, &[], "{}"))
    });
    let secrets = Secrets::new();
    for guest in ["collects_cookies", "collects_thousands_of_cookies"] {
        street.tempt(guest, &site, "127.0.0.1:9", &secrets);
        assert_eq!(street.first_report(guest)["status"], "success");
    }
    let back = |guest: &str| {
        let path = format!("/{guest}/seen");
        let seen = site.seen().into_iter().find(|seen| seen.target == path).expect("a last look");
        let cookies =
            seen.header("cookie").split("; ").map(|cookie| cookie.split('=').next().unwrap_or("").to_owned());
        cookies.collect::<Vec<_>>()
    };
    let mut few = back("collects_cookies");
    few.sort();
    assert_eq!(few, ["far", "far2", "kept", "session"]);
    let many = back("collects_thousands_of_cookies");
    assert_eq!(many.len(), 180, "the cookies a credential may have");
    assert!(many.contains(&"session".to_owned()) && !many.contains(&"large".to_owned()));
    let shown = street.home.json(&["credential", "show", "collects_thousands_of_cookies"]).to_string();
    assert!(!shown.contains("xxxxx"), "{shown}");
    street.leave();
}

#[test]
fn a_plugin_that_turns_bad_after_its_approval_can_do_no_more_than_before() {
    let street = Street::new();
    street.invite(&["turns_bad_after_approval"]);
    let (site, collector, secrets) = (Site::start(content), Site::collector(), Secrets::new());
    street.tempt("turns_bad_after_approval", &site, &collector.address, &secrets);
    street.first_report("turns_bad_after_approval");
    for _ in 0..2 {
        street.home.json(&["credential", "validate", "turns_bad_after_approval"]);
    }
    let told = site.told("turns_bad_after_approval");
    let came: Vec<_> = told.iter().map(|(_, came)| String::from_utf8_lossy(came)).collect();
    assert!(
        came.len() == 2 && came[0].starts_with("Error::Denied") && came[1].starts_with("Err("),
        "{came:?}"
    );
    assert!(collector.seen().is_empty(), "{:?}", collector.seen());

    // The approved file is written over where it lies, byte for byte, then by a rename.
    let (file, digest) =
        (street.home.path().join("plugins/turns_bad_after_approval.wasm"), |street: &Street| {
            street.home.json(&["credential", "validate", "spared"])["meta"]["plugin"].clone()
        });
    let before = digest(&street);
    fs::write(&file, fs::read(guest("wants_more_origins")).expect("a built plugin")).expect("in place");
    // It is for the neighbour's service now: its own, which has a credential, is left as it was.
    street.home.wait_for_plugin("turns_bad_after_approval.wasm", "refused");
    let next = street.home.outside().join("next.wasm");
    fs::copy(guest("wants_more_origins"), &next).expect("a copy");
    fs::rename(&next, street.home.path().join("plugins/well_behaved.wasm")).expect("a rename");
    // It asks; what was approved runs on from the store.
    street.home.wait_for_plugin("well_behaved.wasm", "pending-approval");
    street.home.wait_for_plugin("turns_bad_after_approval.wasm", "refused");
    assert_eq!(digest(&street), before);
    street.leave();
}

/// What was captured is tested and promoted, whatever the plugin did afterwards; where nothing was,
/// nothing is known and the present secret stays.
#[test]
fn a_plugin_that_fails_while_it_rotates_loses_nothing_that_was_issued() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    for (file, rotated) in
        [("traps_in_rotate", false), ("loops_in_rotate", false), ("traps_after_a_new_secret", true)]
    {
        home.drop_plugin(&guest(file));
        let before = home.add_session(file, &file.replace('_', "-"), &service, &[]);
        let report = home.run(&["credential", "rotate", file, "--json"]).json();
        let expected = if rotated { ("success", "valid") } else { ("failed", "unknown") };
        assert_eq!(report["status"], expected.0, "{report}");
        assert_eq!(report["meta"]["verdict"], expected.1, "{report}");
        assert_eq!(report["meta"]["rotated"] == true, rotated, "{report}");
        let exported = home.run(&["credential", "export", file, "--format", "json"]).ok().json();
        let now = exported["session"]["value"].as_str().expect("a value");
        assert!(service.is_alive(now), "{file}");
        assert_eq!(now != before, rotated, "{file}");
        assert_eq!(home.reports(file).len(), 1, "{file}");
    }
}

/// What a process has in memory that nobody else has, in KiB.
fn private_memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process is there");
    let lines = rollup.lines().filter_map(|line| line.strip_prefix("Private_"));
    let numbers = lines.filter_map(|line| line.split_whitespace().nth(1));
    numbers.map(|number| number.parse::<u64>().expect("a number")).sum()
}

#[test]
fn after_the_bombs_the_host_has_its_memory_back() {
    let street = Street::new();
    let bombs = [
        "memory_bomb",
        "log_flood",
        "print_of_many_lines",
        "giant_body",
        "giants_that_just_fit",
        "returns_a_giant",
        "returns_what_just_fits",
    ];
    street.invite(&bombs);
    let site = Site::start(content);
    for bomb in bombs {
        street.tempt(bomb, &site, "127.0.0.1:9", &Secrets::new());
        street.first_report(bomb);
    }
    let round = || {
        for bomb in bombs {
            street.home.run(&["credential", "validate", bomb, "--json"]);
        }
    };
    // Caches, pools and threads are there after the first rounds.
    round();
    round();
    let before = private_memory(street.daemon.pid());
    round();
    let allowed = before + before / 20 + (4 << 10);
    wait_until(SOON, &format!("the host has at most {allowed} KiB again, after {before}"), || {
        (private_memory(street.daemon.pid()) <= allowed).then_some(())
    });
    street.leave();
}

#[test]
fn after_a_thousand_attempts_no_worker_has_a_secret_in_its_memory() {
    let (home, secrets) = (TestHome::new(), Secrets::new());
    let site = Site::start(|seen| {
        let Some((_, place)) = seen.target.rsplit_once("/echo/") else {
            return Some(answer(200, &[], seen.header("cookie")));
        };
        let place: usize = place.parse().expect("a number");
        let secret = if place.is_multiple_of(2) { seen.session() } else { seen.header("authorization") };
        Some((CAUGHT[place / 2 % CAUGHT.len()].make)(secret).1)
    });
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&guest("probes_the_echo"));
    let _daemon = home.serve();
    home.wait_for_plugin("well_behaved.wasm", "active");
    home.wait_for_plugin("probes_the_echo.wasm", "active");
    for number in 0..60 {
        let base_url = format!("base_url={}", site.url("all"));
        let (id, well) = (format!("c{number}"), number % 2 == 0);
        // Nineteen echoes in each of eight attempts.
        let more = if well { vec![] } else { vec!["--set", "elsewhere=152"] };
        let service = if well { "well-behaved" } else { "probes-the-echo" };
        let token = if well { String::new() } else { format!("token={}\n", secrets.token) };
        let keys = format!("session={}\n{token}", secrets.session);
        home.add(&id, service, &keys, &[&["--every", "1s", "--set", &base_url], &more[..]].concat());
    }
    let reports = wait_until(SOON * 3, "there were a thousand attempts", || {
        let reports = home.json(&["reports", "list", "--limit", "1000"]);
        (reports.as_array()?.len() == 1_000).then_some(reports)
    });
    assert!(reports.as_array().expect("an array").iter().all(|report| report["status"] == "success"));
    let wanted = Wanted::new([secrets.session.as_str(), secrets.token.as_str()]);
    assert_nowhere(&home, &wanted, &["well-behaved", "probes-the-echo"]);
    assert_finds(&home, "c1", &wanted);
}
