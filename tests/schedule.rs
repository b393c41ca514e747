//! When credentials are looked at, seen from outside: the reason that is shown, quiet windows,
//! backlogs, the operator's limits, services that ask to be left alone, and wrong clocks.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use serde_json::Value;

use crate::harness::*;

fn home() -> TestHome {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    home
}

fn configure(home: &TestHome, text: &str) {
    std::fs::write(home.path().join("config.toml"), text).expect("a configuration");
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn moment(value: &Value) -> jiff::Timestamp {
    value.as_str().expect("a moment").parse().expect("ISO 8601")
}

fn monitor(home: &TestHome, id: &str) -> Value {
    home.json(&["credential", "show", id])["credential"]["monitor"].clone()
}

fn reason(home: &TestHome, id: &str) -> String {
    monitor(home, id)["nextReason"].as_str().unwrap_or_default().to_owned()
}

/// A window by UTC from so many hours ago to so many hours from now.
fn around_now(before: u64, after: u64) -> String {
    let clock = |at: u64| format!("{:02}:{:02}", at / 3_600 % 24, at / 60 % 60);
    let now = seconds_now();
    format!("{}-{} UTC", clock(now - before * 3_600), clock(now + after * 3_600))
}

#[test]
fn show_says_when_next_for_what_and_why() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    for (id, more, action, why) in [
        ("plain", &["--every", "1h"][..], "validate", "cadence"),
        ("idle", &["--every", "9h", "--idle-limit", "20m"], "validate", "idle limit of 20 min"),
        ("old", &["--every", "9h", "--rotate-every", "30m"], "rotate", "its maximum age is 30 min"),
    ] {
        // Another look follows where the first came just before the credential's own moment.
        home.add_session(id, "well-behaved", &service, more);
        home.run(&["credential", "validate", id]).ok();
        let shown = monitor(&home, id);
        assert_eq!(
            (shown["nextAction"].as_str(), reason(&home, id).as_str()),
            (Some(action), why),
            "{shown}"
        );
        assert!(shown["nextDueAt"].is_string(), "{shown}");
    }
    let listed = home.run(&["credential", "list"]).ok().stdout;
    assert!(listed.contains("cadence") && listed.contains("idle limit of 20 min"), "{listed}");
}

#[test]
fn what_is_set_later_counts_from_the_next_look() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    home.add_session("ann", "well-behaved", &service, &["--every", "9h"]);
    home.run(&["credential", "set", "ann", "--idle-limit", "20m", "--quiet", "22:00-06:00 Europe/Berlin"])
        .ok();
    assert_eq!(reason(&home, "ann"), "its schedule was changed");
    home.run(&["credential", "validate", "ann"]).ok();
    assert_eq!(reason(&home, "ann"), "idle limit of 20 min");
    let shown = home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["quiet"], serde_json::json!(["22:00-06:00 Europe/Berlin"]));
    home.run(&["credential", "set", "ann", "--idle-limit", "default", "--never-quiet"]).ok();
    home.run(&["credential", "validate", "ann"]).ok();
    assert_eq!(reason(&home, "ann"), "cadence");
    for (arguments, code, part) in [
        (&["credential", "set", "ann"][..], 2, "required"),
        (&["credential", "set", "nobody", "--every", "1h"], 3, "no credential `nobody`"),
        (&["credential", "set", "ann", "--every", "soon"], 65, "allowed: 90s, 15m, 12h, 7d"),
        (&["credential", "set", "ann", "--quiet", "00:00-24:00 UTC"], 65, "is the whole day"),
        (&["credential", "set", "ann", "--quiet", "22-6 UTC"], 65, "allowed: 00:00 to 24:00"),
        (&["credential", "set", "ann", "--quiet", "22:00-06:00 Mars/Base"], 65, "IANA name such as"),
        (&["plugin", "every", "well-behaved", "0s"], 65, "allowed: 90s, 15m, 12h, 7d"),
        (&["plugin", "every", "nothing", "5m"], 3, "no plugin ever served `nothing`"),
        (&["plugin", "pause", "nothing"], 3, "no plugin ever served `nothing`"),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.code(), code, "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(part), "{arguments:?}: {}", output.stderr);
    }
}

#[test]
fn a_configuration_that_asks_for_nonsense_says_what_is_allowed() {
    let home = home();
    for (text, part) in [
        ("[services.shop]\nrate_per_minute = 0", "rate_per_minute is 0; allowed: 1 to 60000"),
        ("[services.shop]\nrate_per_minute = 70000", "rate_per_minute is 70000; allowed: 1 to 60000"),
        ("[services.shop]\nrate_per_minute = -1", "invalid value"),
        ("[services.shop]\nconcurrency = 0", "concurrency is 0; allowed: 1 or more"),
        ("[services.shop]\nrate = 5", "expected one of `concurrency`, `rate_per_minute`, `quiet`"),
        ("[services.shop]\nquiet = [\"22:00-06:00 Mars/Base\"]", "time zone \"Mars/Base\" is not known here"),
        ("[services.shop]\nquiet = [\"00:00-12:00 UTC\", \"12:00-24:00 UTC\"]", "together are the whole day"),
        ("[services.Shop]\nconcurrency = 1", "no name of a service; allowed: 1 to 64 of a-z, 0-9 and -"),
    ] {
        configure(&home, text);
        let output = home.run(&["plugin", "list"]);
        assert_eq!(output.code(), 78, "{text}: {output:?}");
        assert!(output.stderr.contains(part), "{text}: {}", output.stderr);
    }
}

#[test]
fn quiet_time_holds_rotations_back_and_nothing_else() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    let night = around_now(2, 3);
    // Both its own windows and its service's count.
    configure(&home, &format!("[services.well-behaved]\nquiet = [\"{night}\"]\n"));
    let far = around_now(12, 13).replace("UTC", "Etc/UTC");
    home.add_session(
        "ann",
        "well-behaved",
        &service,
        &["--every", "1s", "--rotate-every", "1s", "--quiet", &far],
    );
    let daemon = home.serve();
    home.wait_for_reports("ann", 3);
    assert_eq!(service.count("/rotate"), 0);
    // A person is told, and not held back who insists.
    let rests = home.run(&["credential", "rotate", "ann"]);
    assert_eq!(rests.code(), 75, "{rests:?}");
    assert!(rests.stderr.contains("rests: quiet until") && rests.stderr.contains("hint: --now"), "{rests:?}");
    let plan = home.json(&["credential", "rotate", "ann", "--plan"]);
    assert!(plan["rests"].as_str().is_some_and(|why| why.starts_with("quiet until")), "{plan}");
    assert_eq!(service.count("/rotate"), 0);
    home.run(&["credential", "rotate", "ann", "--now"]).ok();
    assert_eq!(service.count("/rotate"), 1);
    home.wait_for_reports("ann", 6);
    assert_eq!(service.count("/rotate"), 1);
    drop(daemon);

    // Seldom enough checked that the end of quiet time comes first.
    home.run(&["credential", "set", "ann", "--every", "7d", "--rotate-every", "1h"]).ok();
    home.run(&["credential", "validate", "ann"]).ok();
    let until = night.split(['-', ' ']).nth(1).expect("an end");
    assert_eq!(monitor(&home, "ann")["nextAction"], "rotate");
    assert_eq!(reason(&home, "ann"), format!("quiet until {until} UTC"));
}

#[test]
fn a_rotation_that_was_planned_before_it_became_quiet_waits_as_well() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    // Seldom enough checked that the end of quiet time comes first, at any time of the day.
    home.add_session("ann", "well-behaved", &service, &["--every", "30d", "--rotate-every", "1s"]);
    home.run(&["credential", "validate", "ann"]).ok();
    assert_eq!(monitor(&home, "ann")["nextAction"], "rotate");
    configure(&home, &format!("[services.well-behaved]\nquiet = [\"{}\"]\n", around_now(1, 2)));
    let _daemon = home.serve();
    // It is asked how it is instead, and its rotation planned anew.
    let reports = home.wait_for_reports("ann", 2);
    assert_eq!(reports[1]["meta"]["action"], "validate", "{}", reports[1]);
    assert!(reason(&home, "ann").starts_with("quiet until "), "{}", monitor(&home, "ann"));
    assert_eq!(service.count("/rotate"), 0);
}

#[test]
fn a_session_that_would_end_in_quiet_time_is_rotated_all_the_same() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    configure(&home, &format!("[services.well-behaved]\nquiet = [\"{}\"]\n", around_now(2, 3)));
    let (session, ends) = (service.issue(), seconds_now() + 600);
    let line = format!("127.0.0.1\tFALSE\t/\tFALSE\t{ends}\tsession\t{session}\n");
    let base_url = format!("base_url={}", service.url);
    let more = ["--set", &base_url, "--format", "netscape", "--rotate-every", "1s", "--every", "1s"];
    home.add("ann", "well-behaved", &line, &more);
    let _daemon = home.serve();
    wait_until(SOON, "it is rotated", || (service.count("/rotate") > 0).then_some(()));
}

/// Credentials of a service that is paused, so that all of them fall due together.
fn backlog(home: &TestHome, service: &Service, count: usize, urgent: usize) {
    home.run(&["plugin", "list"]).ok();
    home.run(&["plugin", "pause", "well-behaved"]).ok();
    let daemon = home.serve();
    let base_url = format!("base_url={}", service.url);
    for number in 0..count {
        // The urgent ones come last, so that their names and ages say nothing for them.
        let ends = if number < count - urgent { 30 * 86_400 } else { 1_500 } + seconds_now();
        let line = format!("127.0.0.1\tFALSE\t/\tFALSE\t{ends}\tsession\t{}\n", service.issue());
        let more = ["--set", &base_url, "--format", "netscape", "--every", "1h"];
        home.add(&format!("a{number:03}"), "well-behaved", &line, &more);
    }
    assert_eq!(service.count("/check"), 0, "nothing is done by itself while it is paused");
    drop(daemon);
}

/// Every report, in the order in which their attempts began.
fn all_reports(home: &TestHome) -> Vec<(jiff::Timestamp, String)> {
    let list = home.json(&["reports", "list", "--limit", "10000"]);
    let mut reports: Vec<_> = (list.as_array().expect("an array").iter())
        .map(|report| (moment(&report["startedAt"]), report["cookieId"].as_str().expect("an id").to_owned()))
        .collect();
    reports.sort();
    reports
}

#[test]
fn after_a_downtime_a_backlog_is_started_one_after_another_and_the_urgent_first() {
    const COUNT: usize = 300;
    let (home, service) = (home(), Service::start(OldSession::Stays));
    backlog(&home, &service, COUNT, 10);
    home.run(&["plugin", "resume", "well-behaved"]).ok();
    let daemon = home.serve();
    let enough = 90;
    let reports = wait_until(3 * SOON, "a third of them has been looked at", || {
        let reports = all_reports(&home);
        (reports.len() >= enough).then_some(reports)
    });
    let mut first: Vec<_> = reports[..20].iter().map(|(_, id)| id.as_str()).collect();
    first.sort_unstable();
    let urgent: Vec<_> = (COUNT - 10..COUNT).map(|number| format!("a{number:03}")).collect();
    assert!(urgent.iter().all(|id| first.contains(&id.as_str())), "{first:?}");
    // Sixteen at once and ten a second; a herd would be through in one.
    let took = reports[enough - 1].0.duration_since(reports[0].0);
    assert!(took >= jiff::SignedDuration::from_secs(5), "{enough} within {took:?}");
    assert!(daemon.log().contains("many are overdue"), "{}", daemon.log());
    let waiting = (0..COUNT)
        .map(|number| format!("a{number:03}"))
        .find(|id| reason(&home, id) == "in its turn, for many were overdue together");
    assert!(waiting.is_some() || all_reports(&home).len() >= COUNT, "who waits is told why");
}

#[test]
fn a_rate_holds_attempts_back_says_so_and_loses_none() {
    const COUNT: usize = 9;
    let (home, service) = (home(), Service::start(OldSession::Stays));
    backlog(&home, &service, COUNT, 0);
    home.run(&["plugin", "resume", "well-behaved"]).ok();
    configure(&home, "[services.well-behaved]\nrate_per_minute = 60\n");
    let _daemon = home.serve();
    wait_until(SOON, "status says what holds it up", || {
        let held = home.json(&["status"])["held"].to_string();
        held.contains("60 requests a minute").then_some(())
    });
    let reports = wait_until(2 * SOON, "every one has been looked at", || {
        let reports = all_reports(&home);
        (reports.len() >= COUNT).then_some(reports)
    });
    // Five at once, then one a second.
    let took = reports[COUNT - 1].0.duration_since(reports[0].0);
    assert!(took >= jiff::SignedDuration::from_millis(2_900), "{COUNT} within {took:?}");
}

#[test]
fn no_more_attempts_run_at_once_than_the_operator_allows() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    configure(&home, "[services.well-behaved]\nconcurrency = 2\n");
    service.hold("/check");
    for id in ["a", "b", "c", "d", "e"] {
        home.add_session(id, "well-behaved", &service, &["--every", "1h"]);
    }
    let _daemon = home.serve();
    wait_until(SOON, "two are asked about", || (service.count("/check") >= 2).then_some(()));
    let status = wait_until(SOON, "status says what holds it up", || {
        let status = home.json(&["status"]);
        status["held"].to_string().contains("2 at once").then_some(status)
    });
    assert_eq!(status["inFlight"], 2, "{status}");
    assert_eq!(service.count("/check"), 2);
    service.release("/check");
    for id in ["a", "b", "c", "d", "e"] {
        home.wait_for_reports(id, 1);
    }
}

#[test]
fn a_paused_service_does_nothing_by_itself_also_after_a_restart() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    home.drop_plugin(&plugin("http-session"));
    home.run(&["plugin", "list"]).ok();
    let daemon = home.serve();
    home.run(&["plugin", "pause", "well-behaved"]).ok();
    home.add_session("held", "well-behaved", &service, &["--every", "1s"]);
    drop(daemon);
    let _daemon = home.serve();
    assert!(home.json(&["status"])["held"].to_string().contains("paused"));
    // Another service shows that time goes by.
    let other = Service::start(OldSession::Stays);
    home.add_session("free", "http-session", &other, &["--every", "1s", "--set", "validate_path=/check"]);
    home.wait_for_reports("free", 3);
    assert_eq!(service.count("/check"), 0);
    assert_eq!(home.json(&["credential", "show", "held"])["credential"]["servicePaused"], true);
    // A person may ask all the same.
    home.run(&["credential", "validate", "held"]).ok();
    home.run(&["plugin", "resume", "well-behaved"]).ok();
    home.wait_for_reports("held", 3);
}

#[test]
fn the_cadence_of_a_service_can_be_changed_while_it_runs() {
    let (home, service) = (home(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    // Without a cadence of their own they follow the plugin's, a quarter of an hour.
    home.add_session("ann", "well-behaved", &service, &[]);
    home.add_session("own", "well-behaved", &service, &["--every", "9h"]);
    home.wait_for_reports("ann", 1);
    home.wait_for_reports("own", 1);
    home.run(&["plugin", "every", "well-behaved", "1s"]).ok();
    home.wait_for_reports("ann", 3);
    assert_eq!(home.reports("own").len(), 1);
    let shown = home.run(&["plugin", "show", "well-behaved"]).ok().stdout;
    assert!(shown.contains("checked every 1 s, as you said"), "{shown}");
    home.run(&["plugin", "every", "well-behaved", "default"]).ok();
}

/// A service that answers every request with these header lines, made from the session it was
/// asked with. Returns its URL and the number of its requests.
fn answering(status: u16, lines: impl Fn(&str) -> String + Send + 'static) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    // Ends with the test process, like the listener.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let (mut session, mut header) = (String::new(), String::new());
            while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
                if let Some((_, found)) = header.trim_end().split_once("session=") {
                    found.split(';').next().unwrap_or_default().clone_into(&mut session);
                }
                header.clear();
            }
            counter.fetch_add(1, Ordering::Relaxed);
            let lines = lines(&session);
            // A client that was stopped is no error of the service.
            let _ = write!(
                stream,
                "HTTP/1.1 {status} x\r\n{lines}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}"
            );
        }
    });
    (url, asked)
}

#[test]
fn one_429_keeps_the_siblings_away_and_no_other_origin() {
    let (home, fine) = (home(), Service::start(OldSession::Stays));
    configure(&home, "[services.well-behaved]\nconcurrency = 1\n");
    let (limited, asked) = answering(429, |_| "Retry-After: 3000\r\n".to_owned());
    let base_url = format!("base_url={limited}");
    for id in ["a", "b", "c"] {
        home.add(id, "well-behaved", "session=made-up", &["--set", &base_url, "--every", "1s"]);
    }
    home.add_session("fine", "well-behaved", &fine, &["--every", "1s"]);
    let _daemon = home.serve();
    // The other origin of the same service is asked on and on.
    home.wait_for_reports("fine", 3);
    let reasons = wait_until(SOON, "one was told, and two are kept away", || {
        let reasons = ["a", "b", "c"].map(|id| reason(&home, id));
        let told = reasons.iter().filter(|reason| *reason == "the service asked for 50 min").count();
        let kept =
            reasons.iter().filter(|reason| reason.contains("429 to another of its credentials")).count();
        ((told, kept) == (1, 2)).then_some(reasons)
    });
    assert_eq!(asked.load(Ordering::Relaxed), 1, "{reasons:?}");
    let held = home.json(&["status"])["held"].to_string();
    assert!(held.contains(&limited) && held.contains("answered 429 and is left alone for"), "{held}");
    for id in ["a", "b", "c"] {
        let due = moment(&monitor(&home, id)["nextDueAt"]);
        let wait = due.duration_since(jiff::Timestamp::now());
        assert!(wait > jiff::SignedDuration::from_mins(40), "{id} is due in {wait:?}");
    }
}

/// `Date` and `Expires` as a clock writes them that is so many hours ahead.
fn http_date(hours_ahead: i64, more_seconds: i64) -> String {
    let seconds = i64::try_from(seconds_now()).expect("a time") + hours_ahead * 3_600 + more_seconds;
    let at = jiff::Timestamp::from_second(seconds).expect("a time");
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[test]
fn a_wrong_clock_is_told_and_misjudges_no_expiry() {
    for hours in [5, -5] {
        let home = home();
        let _daemon = home.serve();
        for id in ["a", "b"] {
            // Ten minutes of life, by the service's clock.
            let (url, _) = answering(200, move |session| {
                let (date, ends) = (http_date(hours, 0), http_date(hours, 600));
                format!("Date: {date}\r\nSet-Cookie: session={session}; Path=/; Expires={ends}\r\n")
            });
            let base_url = format!("base_url={url}");
            home.add(id, "well-behaved", "session=made-up-and-long", &["--set", &base_url, "--every", "9h"]);
            home.wait_for_reports(id, 1);
        }
        let status = home.json(&["status"]);
        let behind = status["clockBehindSeconds"].as_i64().unwrap_or_default();
        assert!((behind - hours * 3_600).abs() < 30, "{status}");
        let said = home.run(&["status"]);
        assert_eq!(said.code(), 1, "a wrong clock needs a person: {said:?}");
        let way = if hours > 0 { "behind" } else { "ahead" };
        assert!(said.stderr.contains(way) || said.stdout.contains(way), "{said:?}");
        for id in ["a", "b"] {
            let shown = monitor(&home, id);
            let left = moment(&shown["expiresAt"]).duration_since(jiff::Timestamp::now());
            assert!((500..=601).contains(&left.as_secs()), "{hours} h: {shown}");
            assert_eq!(shown["nextAction"], "rotate", "{shown}");
            assert!(reason(&home, id).ends_with("before expiry"), "{shown}");
        }
    }
}

#[test]
fn garbage_for_a_date_changes_nothing() {
    let home = home();
    let _daemon = home.serve();
    for (id, date) in [("garbage", "whenever"), ("epoch", "Thu, 01 Jan 1970 00:00:00 GMT"), ("none", "")] {
        let (url, _) = answering(200, move |session| {
            let date = if date.is_empty() { String::new() } else { format!("Date: {date}\r\n") };
            format!("{date}Set-Cookie: session={session}; Path=/; Expires={}\r\n", http_date(0, 600))
        });
        let base_url = format!("base_url={url}");
        home.add(id, "well-behaved", "session=made-up-and-long", &["--set", &base_url, "--every", "9h"]);
        home.wait_for_reports(id, 1);
        let shown = monitor(&home, id);
        let left = moment(&shown["expiresAt"]).duration_since(jiff::Timestamp::now());
        assert!((500..=601).contains(&left.as_secs()), "{id}: {shown}");
    }
    assert_eq!(home.json(&["status"])["clockBehindSeconds"], Value::Null);
}
