//! The conformance kit: single calls of real plugins in real workers, against services played
//! here, and what it says of providers that are deliberately wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use keywheel::egress::BreaksOff;
use keywheel::kit::checks::{self, Report, Weight};
use keywheel::kit::fixture::{self, Given, Which};
use keywheel::kit::{Case, Kit, KitError, Options, Run, Service};
use serde_json::Value;

use crate::harness::*;

/// Work of the kit, in a runtime of its own.
fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(work)
}

async fn open(plugin: &Path) -> Result<Kit, KitError> {
    // The test binary is no worker.
    Kit::open(plugin, Options { executable: Some(env!("CARGO_BIN_EXE_keywheel").into()) }).await
}

/// A case of one of the guests, at a service that is nowhere.
fn case(call: Which) -> Case {
    Case {
        call,
        settings: vec![("base_url".into(), "https://shop.example".into())],
        private_hosts: vec![],
        keys: vec![Given { name: "session".into(), value: None, expires: None }],
        now: None,
    }
}

fn said(run: &Run) -> &'static str {
    run.said.as_ref().expect("the call ends with an answer").word()
}

#[test]
fn a_call_in_the_kit_meets_a_service_that_is_nowhere_and_everything_of_it_is_told() {
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let of_service = Arc::clone(&seen);
    let service = Service::fake(move |request: &Request<Bytes>| {
        let cookie = request.headers()["cookie"].to_str().expect("text").to_owned();
        of_service.lock().unwrap_or_else(PoisonError::into_inner).push(cookie);
        let answer = Response::builder().header("set-cookie", "session=fresh-and-made-up");
        answer.body(Bytes::from_static(b"{}")).expect("an answer")
    });
    run(async {
        let kit = open(&guest("well_behaved")).await.expect("it is taken");
        let rotated = kit.run(&case(Which::Rotate(None)), service.clone()).await.expect("it fits");
        assert_eq!(said(&rotated), "rotated");
        let asked: Vec<String> = rotated.hops().map(|hop| hop.made.request.to_string()).collect();
        assert_eq!(asked, ["POST https://shop.example/rotate with the credential's cookies"]);
        let captured: Vec<_> = rotated.captured.iter().map(|fresh| fresh.key.as_str()).collect();
        assert_eq!((captured, rotated.leaks.len()), (vec!["session"], 0));

        // The next call of the same credential carries what this one captured.
        let next = Case { keys: rotated.keys(), ..case(Which::Validate) };
        let valid = kit.run(&next, service).await.expect("it fits");
        assert_eq!((said(&valid), valid.used.requests), ("valid", 1));
        let last = seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        assert_eq!(last.as_deref(), Some("session=fresh-and-made-up"));
        kit.close().await;
    });
}

#[test]
fn what_an_answer_issues_before_its_connection_breaks_is_captured() {
    let service = Service::fake(|_| {
        let answer = Response::builder().header("set-cookie", "session=fresh-and-made-up");
        let mut answer = answer.body(Bytes::from_static(b"{\"half\":")).expect("an answer");
        answer.extensions_mut().insert(BreaksOff);
        answer
    });
    run(async {
        let kit = open(&guest("well_behaved")).await.expect("it is taken");
        let lost = kit.run(&case(Which::Rotate(None)), service).await.expect("it fits");
        assert_eq!(said(&lost), "unknown");
        let heard = lost.asked[0].heard.clone().expect("it hears of it").expect_err("no answer came");
        assert!(heard.to_string().contains("closed in the middle of the answer"), "{heard}");
        assert_eq!(lost.captured[0].secret.expose(), b"fresh-and-made-up");
        kit.close().await;
    });
}

#[test]
fn a_case_that_does_not_fit_the_provider_is_refused_with_what_would() {
    run(async {
        let kit = open(&guest("well_behaved")).await.expect("it is taken");
        let refused = async |case: Case| {
            let service = Service::fake(|_| Response::default());
            kit.run(&case, service).await.expect_err("it doesn't fit").to_string()
        };
        let mut other = case(Which::Validate);
        other.keys[0].name = "sesion".into();
        assert!(refused(other).await.ends_with("known: session; hint: did you mean `session`?"));
        let said = refused(case(Which::Rotate(Some("refrsh".into())))).await;
        assert!(said.ends_with("known: refresh; hint: did you mean `refresh`?"), "{said}");
        kit.close().await;
    });
}

/// What the kit says of one of the guests, with the fixtures of that name.
fn report(name: &str, fixtures: &str) -> Report {
    let fixtures = source("tests/guests/fixtures").join(fixtures);
    let fixtures = fixture::read_folder(&fixtures).unwrap_or_else(|errors| panic!("{errors:?}"));
    run(async {
        let kit = open(&guest(name)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let report = checks::check(&kit, &fixtures).await.expect("the kit goes on");
        kit.close().await;
        report
    })
}

/// Every fault and warning, one a line.
fn lines(report: &Report) -> String {
    let line = |weight: Weight| {
        report.findings(weight).map(move |(check, found)| {
            let fixture = found.fixture.as_deref().unwrap_or("-");
            format!("{weight:?} {check} {fixture} {}: {}", found.exchange.unwrap_or(0), found.text)
        })
    };
    line(Weight::Fault).chain(line(Weight::Warning)).collect::<Vec<_>>().join("\n")
}

/// A guest with one fault is told that one: these checks fail, and each of these words is said.
#[track_caller]
fn assert_named(name: &str, fixtures: &str, failing: &[&str], words: &[&str]) {
    let report = report(name, fixtures);
    let lines = lines(&report);
    let failed: BTreeSet<&str> = report.faults().map(|(check, _)| check).collect();
    assert_eq!(failed, failing.iter().copied().collect(), "{name}:\n{lines}");
    for word in words {
        assert!(lines.contains(word), "{name}: `{word}` is not in\n{lines}");
    }
}

#[test]
fn a_provider_that_does_everything_right_has_no_fault_and_no_warning() {
    let report = report("judges_with_care", "careful");
    assert_eq!(lines(&report), "");
    assert!(report.held() && report.checks.iter().all(|check| check.made && check.held()));
    assert_eq!(report.fixtures, 6);
    // Six as they are written, and each answer of theirs with each trouble.
    assert!(report.calls > 6 * 10, "{}", report.calls);
}

#[test]
fn a_provider_that_calls_everything_valid_is_named() {
    let words = [
        "Fault made-up made-up 0: says `valid` of a secret that was made up",
        "Fault calls ended 0: says `valid`, the fixture has `invalid`",
        "Fault trouble alive 1: where the answer is an HTML page (200), an HTML page (403)",
        "it says `valid`; it should say `unknown`",
    ];
    assert_named("calls_everything_valid", "careful", &["calls", "made-up", "trouble"], &words);
}

#[test]
fn a_provider_that_believes_a_firewall_page_is_named() {
    let words = [
        "Fault trouble alive 1: where the answer is an HTML page (200), it says `valid`",
        "Fault trouble alive 1: where the answer is an HTML page (403), it says `invalid`",
    ];
    assert_named("believes_a_firewall_page", "careful", &["trouble"], &words);
}

#[test]
fn a_provider_that_calls_a_429_dead_is_named() {
    let words = [
        "Fault calls limited 0: says `invalid` (it is refused), the fixture has `unknown`",
        "Fault trouble alive 1: where the answer is 429, it says `invalid`; it should say `unknown`",
    ];
    assert_named("calls_a_429_dead", "careful", &["calls", "trouble"], &words);
}

#[test]
fn a_provider_that_repeats_a_burn_after_a_lost_answer_is_named() {
    let words = [
        "Fault lost-answer renewed 1: ",
        "a time-out or a connection that breaks in the middle",
        "it sends key `token` again, which method `renew` (burn-on-issue) may have spent",
    ];
    assert_named("repeats_a_burn", "careful", &["lost-answer"], &words);
}

#[test]
fn a_provider_that_throws_away_what_was_issued_is_named() {
    let words = ["Fault lost-answer renewed 2: ", "says `invalid`, though key `token` was just issued"];
    assert_named("throws_away_what_was_issued", "confirmed", &["lost-answer", "trouble"], &words);
}

#[test]
fn a_provider_that_says_rotated_without_a_capture_is_named() {
    let words = ["Fault calls renewed 0: says `rotated`, and no answer brought a new value of a key"];
    assert_named("rotates_without_a_capture", "careful", &["calls"], &words);
}

#[test]
fn a_provider_that_writes_a_revealed_secret_into_a_log_line_is_named() {
    let words = ["Fault leaks alive 0: log line 1 holds the value of key `token`"];
    assert_named("logs_a_secret", "careful", &["leaks"], &words);
}

#[test]
fn a_provider_that_writes_a_fingerprint_into_a_log_line_is_named() {
    let words = ["Fault leaks alive 0: log line 1 holds the fingerprint of key `token`"];
    assert_named("logs_a_fingerprint", "careful", &["leaks"], &words);
}

#[test]
fn a_provider_whose_identity_is_a_secret_is_named() {
    let words = ["Fault leaks alive 0: the identity holds the value of key `token`"];
    assert_named("names_its_account_by_a_secret", "careful", &["leaks"], &words);
}

#[test]
fn a_provider_that_asks_for_every_origin_is_named() {
    let refused = run(open(&guest("star_origin"))).expect_err("it isn't taken").to_string();
    let report = Report::refused(&refused);
    assert!(
        lines(&report).starts_with("Fault manifest - 0: origin \"https://*\": a wildcard"),
        "{}",
        lines(&report)
    );
    assert!(report.checks.iter().skip(1).all(|check| !check.made && !check.held()));
}

#[test]
fn a_provider_that_would_describe_itself_by_time_and_chance_describes_itself_the_same_twice() {
    run(async {
        let kit = open(&guest("describe_differs")).await.expect("it is taken");
        assert_eq!(kit.describe().await.expect("it describes itself"), *kit.manifest());
        kit.close().await;
    });
}

#[test]
fn a_provider_that_comes_near_its_limits_is_warned() {
    let report = report("comes_near_its_limits", "careful");
    let lines = lines(&report);
    assert!(report.held(), "{lines}");
    for word in [
        "Warning limits alive 0: uses 4",
        "bytes of memory, 67108864 are allowed",
        "Warning limits alive 0: uses 36000 bytes of log, 65536 are allowed",
    ] {
        assert!(lines.contains(word), "`{word}` is not in\n{lines}");
    }
}

#[test]
fn what_a_provider_asks_for_is_shown_in_words() {
    let notes = |name| {
        let report = report(name, "careful");
        let notes = report.findings(Weight::Note).map(|(check, found)| format!("{check}: {}", found.text));
        notes.collect::<Vec<_>>().join("\n")
    };
    let careful = notes("judges_with_care");
    assert!(careful.contains("permissions: may reach the address in setting \"base_url\""), "{careful}");
    assert!(careful.contains("permissions: imports nothing but Keywheel's contract"), "{careful}");
    let revealing = notes("logs_a_secret");
    assert!(revealing.contains("asks to see the bytes of key \"token\""), "{revealing}");
    assert!(notes("uses_std").contains("permissions: imports of WASI: wasi:"), "{}", notes("uses_std"));
}

/// The command as an author runs it who has no home and no daemon, and whose home folder stays
/// as it is.
fn plugin_test(folder: &TestHome, arguments: &[&str]) -> Output {
    let mut command = folder.command(&[&["plugin", "test"], arguments].concat());
    command.env_remove("KEYWHEEL_HOME").env("TMPDIR", std::env::temp_dir());
    let output = command.output().expect("the command ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn the_command_works_without_a_home_and_tells_by_table_and_by_exit_code() {
    let folder = TestHome::without_init();
    let fixtures = source("tests/guests/fixtures/careful");
    let fixtures = fixtures.to_str().expect("UTF-8");
    let test = |guest_name: &str, more: &[&str]| {
        let file = guest(guest_name);
        let file = file.to_str().expect("UTF-8");
        plugin_test(&folder, &[&[file, "--fixtures", fixtures], more].concat())
    };
    let good = test("judges_with_care", &[]).ok();
    assert!(good.stdout.contains("✓\tmade-up\t"), "{}", good.stdout);
    assert!(!good.stdout.contains('✗') && !good.stdout.contains('\u{1b}'), "{}", good.stdout);
    assert!(good.stdout.contains("`judges-with-care` 0.1.0 holds in "), "{}", good.stdout);

    let bad = test("calls_everything_valid", &[]);
    assert_eq!(bad.code(), 1, "{}", bad.stderr);
    let first = bad.stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with("✗ calls: ended.toml: says `valid`"), "faults come first: {first}");
    assert!(bad.stdout.contains("✗\tmade-up\t") && bad.stdout.contains("✓\tleaks\t"), "{}", bad.stdout);

    assert_eq!(test("comes_near_its_limits", &[]).code(), 0, "a warning is no fault");
    let strict = test("comes_near_its_limits", &["--strict"]);
    assert_eq!((strict.code(), strict.stdout.contains("✗\tlimits\t")), (1, true), "{}", strict.stdout);

    let json = test("calls_everything_valid", &["--json"]);
    assert_eq!(json.code(), 1);
    let check = json.json()["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .find(|check| check["name"] == "made-up")
        .cloned();
    assert_eq!(check.expect("it is there")["findings"][0]["fixture"], "made-up");

    let star = test("star_origin", &[]);
    assert_eq!(star.code(), 1);
    assert!(star.stdout.starts_with("✗ manifest: origin \"https://*\""), "{}", star.stdout);
    let left: Vec<_> = std::fs::read_dir(folder.outside()).expect("a folder").collect();
    assert!(left.is_empty(), "the home folder has {left:?}");
}

#[test]
fn fixtures_that_cannot_be_read_are_told_all_at_once_before_anything_runs() {
    let folder = TestHome::without_init();
    let at = |name: &str| folder.outside().join(name);
    std::fs::create_dir(at("fixtures")).expect("a folder");
    std::fs::write(at("fixtures/one.toml"), "call = \"validat\"\n[expect]\nverdict = \"valid\"\n")
        .expect("a file");
    std::fs::write(at("fixtures/two.toml"), "call = \"validate\"\nexpcet = 1\n").expect("a file");
    std::fs::copy(guest("judges_with_care"), at("mine.wasm")).expect("a copy");
    let file = at("mine.wasm");
    let said = plugin_test(&folder, &[file.to_str().expect("UTF-8")]);
    assert_eq!(said.code(), 65, "{}", said.stderr);
    assert!(said.stderr.contains("one.toml: `call` is `validat`"), "{}", said.stderr);
    assert!(said.stderr.contains("two.toml, line 2, column 1: unknown field `expcet`"), "{}", said.stderr);

    let missing = plugin_test(&folder, &["nowhere.wasm"]);
    assert_eq!(
        (missing.code(), missing.stderr.contains("build the plugin first")),
        (3, true),
        "{}",
        missing.stderr
    );
    std::fs::remove_dir_all(at("fixtures")).expect("it goes");
    let none = plugin_test(&folder, &[file.to_str().expect("UTF-8")]);
    assert_eq!(none.code(), 1);
    assert!(
        none.stdout.contains("✗ fixtures: there is no folder `fixtures` in its project or beside"),
        "{}",
        none.stdout
    );
}

#[test]
fn a_secret_that_was_made_up_must_have_a_fixture() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixtures = source("tests/guests/fixtures/careful");
    for name in ["alive", "renewed"] {
        let name = format!("{name}.toml");
        std::fs::copy(fixtures.join(&name), folder.path().join(&name)).expect("it can be copied");
    }
    let report = report("judges_with_care", folder.path().to_str().expect("UTF-8"));
    let faults: Vec<_> = report.faults().map(|(check, found)| format!("{check}: {}", found.text)).collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("made-up: no fixture shows what the service answers"), "{faults:?}");
    let warned: Vec<_> = report.findings(Weight::Warning).map(|(check, _)| check).collect();
    assert_eq!(warned, ["fixtures", "fixtures"]);
}

/// Where the fixtures of a provider lie that comes with Keywheel.
fn fixtures_of(service: &str) -> PathBuf {
    let own = source(&format!("plugins/{service}/fixtures"));
    let of_template = source(&format!("plugins/template-provider/fixtures/{service}"));
    if own.is_dir() { own } else { of_template }
}

/// What is wrong with a provider that comes with Keywheel, one a line, by the command and as
/// strictly as it can: what a stranger is only warned of is wrong here.
fn wrong_with(home: &TestHome, service: &str, file: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let page = source(&format!("docs/providers/{service}.md"));
    if !page.is_file() {
        wrong.push(format!("it has no page: {} is not there", page.display()));
    }
    let fixtures = fixtures_of(service);
    let [file, fixtures] = [file, &fixtures].map(|path| path.to_str().expect("UTF-8"));
    let said = plugin_test(home, &[file, "--fixtures", fixtures, "--strict", "--json"]);
    if said.code() == 0 {
        return wrong;
    }
    let Ok(report) = serde_json::from_str::<Value>(&said.stdout) else {
        wrong.push(format!("{}{}", said.stdout, said.stderr));
        return wrong;
    };
    for check in report["checks"].as_array().expect("checks") {
        for found in check["findings"].as_array().expect("findings") {
            if found["weight"] == "fault" {
                wrong.push(format!(
                    "{} {} {}: {}",
                    check["name"], found["fixture"], found["exchange"], found["text"]
                ));
            }
        }
    }
    wrong
}

#[test]
fn every_provider_that_comes_along_holds_against_all_that_the_kit_demands() {
    let files = crate::catalogue::files();
    assert!(files.len() > 1, "only {files:?}");
    let (home, waiting, told) = (TestHome::without_init(), Mutex::new(files.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((service, file)) = next else { return };
                    let wrong = wrong_with(&home, service, file);
                    if !wrong.is_empty() {
                        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                        told.push(format!("{service}:\n  {}", wrong.join("\n  ")));
                    }
                }
            });
        }
    });
    let told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(told.is_empty(), "\n{}", told.join("\n"));
}
