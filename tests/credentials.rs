//! Credentials from the command line: secrets in every format and every wrong one, settings
//! that don't fit, exit codes, and what a service can answer without a credential being called
//! dead. Nothing here may print a secret unless an export was asked for.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::*;

/// A home with `http-session`, whose key `session` is the cookie `sid` of a made-up site.
fn home_with_site() -> TestHome {
    let home = TestHome::new();
    home.drop_plugin(&plugin("http-session"));
    home
}

const SITE: [&str; 6] =
    ["--service", "http-session", "--set", "base_url=https://site.example", "--set", "cookie_name=sid"];

fn add_site<'a>(id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["credential", "add", id], &SITE[..], more].concat()
}

fn file(home: &TestHome, name: &str, text: &str) -> PathBuf {
    let path = home.outside().join(name);
    fs::write(&path, text).expect("a file");
    path
}

/// A moment in ten years or, negative, ten years ago, in seconds since 1970.
fn years_away(years: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("a time") + years * 365 * 86_400
}

/// One cookie of each of two domains, in each of the formats with cookies.
fn cookies_in(format: &str, secret: &str, domain: &str, expires: i64) -> String {
    match format {
        "netscape" => format!(
            "# Netscape HTTP Cookie File\n#HttpOnly_{domain}\tFALSE\t/\tTRUE\t{expires}\tsid\t{secret}\n\
             other.example\tFALSE\t/\tTRUE\t0\tsid\tforeign\n"
        ),
        "storage-state" => json!({
            "cookies": [
                { "name": "sid", "value": secret, "domain": domain, "path": "/", "expires": expires,
                  "httpOnly": true, "secure": true, "sameSite": "Lax" },
                { "name": "sid", "value": "foreign", "domain": "other.example", "path": "/", "expires": -1,
                  "httpOnly": true, "secure": true, "sameSite": "Lax" },
            ],
            "origins": [],
        })
        .to_string(),
        "browser-json" => json!([
            { "name": "sid", "value": secret, "domain": domain, "hostOnly": true, "path": "/",
              "expirationDate": expires, "httpOnly": true, "secure": true, "sameSite": "lax" },
            { "name": "sid", "value": "foreign", "domain": "other.example", "hostOnly": true, "path": "/",
              "session": true, "httpOnly": true, "secure": true, "sameSite": "lax" },
        ])
        .to_string(),
        other => panic!("{other} has no cookies"),
    }
}

#[test]
fn what_goes_in_by_one_format_comes_out_by_it_and_goes_in_again() {
    let (home, secret, expires) = (home_with_site(), random_secret(), years_away(10));
    for format in ["netscape", "storage-state", "browser-json"] {
        let path = file(&home, format, &cookies_in(format, &secret, "site.example", expires));
        let path = path.to_str().expect("UTF-8");
        // The format is found by itself; foreign cookies stay out, and their domain is named.
        let added = home.run(&add_site(format, &["--from", path])).ok();
        assert!(added.stderr.contains("left out, for other services: other.example"), "{added:?}");

        let out = home.outside().join(format!("{format}.out"));
        let out = out.to_str().expect("UTF-8");
        home.run(&["credential", "export", format, "--format", format, "--output", out]).ok();
        assert_eq!(fs::metadata(out).expect("the export").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(out).expect("the export");
        assert!(text.contains(&secret) && !text.contains("foreign"), "{text}");

        let again = format!("{format}-again");
        home.run(&add_site(&again, &["--from", out, "--format", format])).ok();
        let json_of = |id: &str| {
            let file = home.outside().join("export.json");
            let file = file.to_str().expect("UTF-8");
            home.run(&["credential", "export", id, "--format", "json", "--output", file]).ok();
            serde_json::from_slice::<Value>(&fs::read(file).expect("the export")).expect("JSON")
        };
        let first = json_of(format);
        assert_eq!(first["session"]["value"], secret.as_str());
        assert_eq!(first["session"]["cookie"]["domain"], "site.example");
        assert!(first["session"]["expires"].is_string(), "{first}");
        assert_eq!(first, json_of(&again), "{format}");
        // The same value has one fingerprint, and nothing else of it is shown.
        let fingerprint = |id: &str| {
            home.json(&["credential", "show", id])["generations"][0]["keys"][0]["fingerprint"].clone()
        };
        assert_eq!(fingerprint(format), fingerprint(&again));
    }
    assert!(!home.printed().contains(&secret), "exports went to files, and nothing else shows a secret");
}

#[test]
fn only_the_keys_of_the_mapping_say_when_a_credential_ends() {
    let home = home_with_site();
    let line =
        |name: &str, years: i64| format!("site.example\tFALSE\t/\tTRUE\t{}\t{name}\tx\n", years_away(years));
    let cookies = format!("{}{}", line("sid", 9), line("theme", 1));
    let path = file(&home, "cookies.txt", &cookies);
    let path = path.to_str().expect("UTF-8");
    home.run(&add_site("ann", &["--from", path])).ok();
    let ends = || home.json(&["credential", "list"])[0]["monitor"]["expiresAt"].clone();
    let at_first = ends();
    home.run(&["credential", "import", "ann", path]).ok();
    assert_eq!(ends(), at_first);
}

#[test]
fn tokens_come_from_standard_input_and_leave_as_env_or_json() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("oauth2-refresh"));
    let secret = format!("{}'=\" $HOME", random_secret());
    let arguments = ["credential", "add", "ann", "--service", "oauth2-refresh"];
    let settings = ["--set", "token_url=https://id.example/token", "--set", "client_id=keywheel"];
    home.run_with_input(
        &[&arguments[..], &settings].concat(),
        &format!("# from the sign-in\nrefresh_token={secret}\n"),
    )
    .ok();
    let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    assert_eq!(exported["refresh_token"]["value"], secret.as_str());
    let env = home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
    assert_eq!(env, format!("REFRESH_TOKEN='{}'\n", secret.replace('\'', "'\\''")));
    // It has no cookies to put into a cookie file or header.
    for format in ["netscape", "storage-state", "browser-json"] {
        let refused = home.run(&["credential", "export", "ann", "--format", format]);
        assert_eq!(refused.code(), 65, "{refused:?}");
        assert!(refused.stderr.contains("no cookies; hint: export its tokens as env or JSON"), "{refused:?}");
    }
}

#[test]
fn a_cookie_header_holds_what_a_browser_would_send_to_its_url() {
    let (home, secret) = (home_with_site(), random_secret());
    home.run_with_input(&add_site("ann", &[]), &format!("session={secret}")).ok();
    let header =
        |url: &[&str]| home.run(&[&["credential", "export", "ann", "--format", "header"], url].concat());
    let sent = header(&["--url", "https://site.example/account"]).ok();
    assert_eq!(sent.stdout.trim_end(), format!("Cookie: sid={secret}"));
    for (url, reason) in [
        (&["--url", "https://elsewhere.example/"][..], "no cookie of the credential is sent to"),
        (&["--url", "http://site.example/"], "no cookie of the credential is sent to"),
        (&["--url", "site.example"], "is not a url with a host"),
        (&[], "a cookie header needs a url: which cookies are sent depends on it; hint: --url"),
    ] {
        let refused = header(url);
        assert_eq!(refused.code(), 65, "{refused:?}");
        assert!(refused.stderr.contains(reason) && !refused.stderr.contains(&secret), "{refused:?}");
    }
}

#[test]
fn secrets_that_do_not_fit_are_refused_with_what_was_found_and_nothing_is_kept() {
    let (home, secret) = (home_with_site(), random_secret());
    let future = years_away(10);
    let good = |format: &str| cookies_in(format, &secret, "site.example", future);
    let spaces = good("netscape").replace('\t', "    ");
    let cut = good("storage-state")[..60].to_owned();
    let late = cookies_in("netscape", &secret, "site.example", years_away(-10));
    let foreign = cookies_in("netscape", &secret, "elsewhere.example", future);
    let unnamed = good("netscape").replace("\tsid\t", "\tother\t");
    let newline = json!([{ "name": "sid", "value": format!("{secret}\r\nX: y"), "domain": "site.example" }]);
    let table: &[(&str, Option<&str>, &[&str])] = &[
        (
            &good("netscape"),
            Some("storage-state"),
            &["found a Netscape cookies.txt where a Playwright storageState was asked for"],
        ),
        (
            &good("storage-state"),
            Some("netscape"),
            &["found a Playwright storageState where a Netscape cookies.txt was asked for"],
        ),
        (
            &good("browser-json"),
            Some("key-value"),
            &["found a browser extension's cookie list (JSON) where key=value lines was asked for"],
        ),
        (&spaces, None, &["whose tabs became spaces"]),
        (&cut, None, &["not valid JSON", "is the file complete?"]),
        (&format!("<html>{secret}</html>"), None, &["fits no known format", "looks like HTML"]),
        ("", None, &["the text is empty"]),
        ("[]", None, &["without any cookie in it"]),
        (&format!("{{\"token\": \"{secret}\"}}"), None, &["JSON, but not of cookies"]),
        (&late, None, &["cookie \"sid\" of key \"session\" expired at 20", "log in again"]),
        (&foreign, None, &["they are for \"elsewhere.example\"", "allowed: \"site.example\""]),
        (&unnamed, None, &["required key \"session\" is missing", "found: \"other\""]),
        (&newline.to_string(), None, &["can't be a cookie", "control character"]),
        (&format!("sid={secret}"), None, &["names no key of the mapping", "did you mean \"session\"?"]),
        (&format!("session={secret}\nsession={secret}"), None, &["key \"session\" is given twice"]),
        ("session=", None, &["key \"session\" has an empty value"]),
        (&format!("{secret}\n{secret}"), Some("key-value"), &["line 1 has no `=`"]),
        (&format!("session={}", "x".repeat(70_000)), None, &["has 70000 bytes; allowed: at most 65536"]),
        (&"x=y\n".repeat(5 << 20), None, &["is over 16 MiB"]),
    ];
    // A credential that is there already: a failed import leaves its secret as it was.
    home.run_with_input(&add_site("old", &[]), "session=before").ok();
    for (text, format, reasons) in table {
        let path = file(&home, "secrets", text);
        let path = path.to_str().expect("UTF-8");
        let format: Vec<&str> = format.iter().flat_map(|format| ["--format", format]).collect();
        let more = [&["--from", path], &format[..]].concat();
        let import = [&["credential", "import", "old", path], &format[..]].concat();
        for arguments in [add_site("ann", &more), import] {
            let refused = home.run(&arguments);
            assert_eq!(refused.code(), 65, "{refused:?}");
            assert_eq!(refused.stdout, "");
            for reason in *reasons {
                assert!(refused.stderr.contains(reason), "{}\nlacks {reason}", refused.stderr);
            }
        }
    }
    let list = home.json(&["credential", "list"]);
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let old = home.run(&["credential", "export", "old", "--format", "json"]).ok().json();
    assert_eq!(old["session"]["value"], "before");
    assert!(!home.printed().contains(&secret), "no error shows a secret");
}

#[test]
fn settings_and_options_that_do_not_fit_are_refused_with_what_is_allowed() {
    let (home, secret) = (home_with_site(), random_secret());
    let keys = format!("session={secret}");
    let service = ["--service", "http-session"];
    let base = ["--set", "base_url=https://site.example"];
    let table: &[(&[&str], i32, &[&str])] = &[
        (
            &["--set", "base_ulr=https://site.example"],
            65,
            &["unknown setting \"base_ulr\"", "did you mean \"base_url\"?"],
        ),
        (&[], 65, &["required but not given: \"base_url\""]),
        (&["--set", "base_url=site.example"], 65, &["setting \"base_url\""]),
        (&["--set", "base_url=ftp://site.example"], 65, &["setting \"base_url\"", "http"]),
        (&["--set", "alive_status=ok", base[0], base[1]], 65, &["setting \"alive_status\""]),
        (&[base[0], base[1], base[0], base[1]], 65, &["setting \"base_url\" is given twice"]),
        (&["--set", "base_url"], 65, &["allowed is NAME=VALUE"]),
        (&["--method", "wish", base[0], base[1]], 65, &["no method `wish`; known: visit"]),
        (&["--every", "soon", base[0], base[1]], 65, &["\"soon\" is no time; allowed: 90s, 15m, 12h, 7d"]),
        (&["--rotate-every", "0s", base[0], base[1]], 65, &["\"0s\" is no time"]),
        (&["--frobnicate"], 2, &["--frobnicate"]),
        (&["--format", "xml"], 2, &["invalid value 'xml'", "netscape"]),
    ];
    for (more, code, reasons) in table {
        let refused =
            home.run_with_input(&[&["credential", "add", "ann"], &service[..], more].concat(), &keys);
        assert_eq!(refused.code(), *code, "{more:?}: {refused:?}");
        for reason in *reasons {
            assert!(refused.stderr.contains(reason), "{}\nlacks {reason}", refused.stderr);
        }
    }
    // A secret where a setting goes is a mistake that must not show it.
    let mistake = format!("session={secret}");
    let refused = home.run(&["credential", "add", "ann", service[0], service[1], "--set", &mistake]);
    assert_eq!(refused.code(), 65, "{refused:?}");

    let id = "a/b";
    let refused = home.run_with_input(&add_site(id, &[]), &keys);
    assert_eq!(refused.code(), 65, "{refused:?}");
    assert!(refused.stderr.contains("credential id \"a/b\" is not allowed"), "{refused:?}");
    let nobody = home.run_with_input(&["credential", "add", "ann", "--service", "nobody"], &keys);
    assert_eq!(nobody.code(), 3, "{nobody:?}");
    assert!(nobody.stderr.contains("no plugin serves `nobody`"), "{nobody:?}");
    assert_eq!(home.json(&["credential", "list"]), json!([]));

    home.run_with_input(&add_site("ann", &[]), &keys).ok();
    let twice = home.run_with_input(&add_site("ann", &[]), &keys);
    assert_eq!(twice.code(), 65, "{twice:?}");
    assert!(twice.stderr.contains("credential ann exists; hint: import"), "{twice:?}");
    assert!(!home.printed().contains(&secret), "no error shows a secret");
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| home.serve());
        for arguments in [
            &["credential", "show", "nobody"][..],
            &["credential", "validate", "nobody"],
            &["credential", "rotate", "nobody"],
            &["credential", "pause", "nobody"],
            &["credential", "resume", "nobody"],
            &["credential", "export", "nobody"],
            &["credential", "remove", "nobody"],
            &["credential", "import", "nobody", "-"],
            &["reports", "show", "999"],
            &["plugin", "remove", "nobody"],
        ] {
            let missing = home.run(arguments);
            assert_eq!(missing.code(), 3, "{arguments:?}: {missing:?}");
            assert!(missing.stderr.starts_with("error: "), "{missing:?}");
            let error = home.run(&[arguments, &["--json"]].concat());
            assert_eq!((error.code(), error.stdout.as_str()), (3, ""), "{error:?}");
            let parsed: Value = serde_json::from_str(&error.stderr).expect("errors are JSON with --json");
            assert!(parsed["error"].is_string(), "{parsed}");
        }
        for arguments in [&["credential"][..], &["credential", "add"], &["frobnicate"], &[]] {
            assert_eq!(home.run(arguments).code(), 2, "{arguments:?}");
        }
        for arguments in
            [&["reports", "list", "--status", "well"][..], &["reports", "list", "--since", "yesterday"]]
        {
            let refused = home.run(arguments);
            assert_eq!(refused.code(), 65, "{arguments:?}: {refused:?}");
            assert!(
                refused.stderr.contains("known: ") || refused.stderr.contains("allowed: "),
                "{refused:?}"
            );
        }
        assert_eq!(home.run(&["credential", "list"]).code(), 0);
        let missing = home.run_with_input(
            &[
                "credential",
                "add",
                "x",
                "--service",
                "well-behaved",
                "--set",
                "base_url=http://127.0.0.1:1",
                "--from",
                "/nowhere/at-all",
            ],
            "",
        );
        assert_eq!(missing.code(), 3, "{missing:?}");
    }
    // A dead session is no failure of the command, and still not healthy.
    home.add("dead", "well-behaved", "session=made-up", &["--set", &format!("base_url={}", service.url)]);
    let dead = home.run(&["credential", "validate", "dead", "--json"]);
    assert_eq!(dead.code(), 1, "{dead:?}");
    assert_eq!(dead.json()["status"], "validation_failed");
    assert_eq!(dead.stderr, "");
    // Its lines end where the terminal's do.
    let help = home.run(&["--help"]).ok().stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in [
        "0 done",
        "1 something",
        "2 wrong",
        "3 not",
        "4 it could not",
        "65 bad",
        "75 busy",
        "77 no",
        "78 the",
    ] {
        assert!(help.contains(code), "{help}");
    }
}

#[test]
fn a_credential_in_the_middle_of_a_long_attempt_is_busy() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    service.hold("/check");
    home.add_session("ann", "well-behaved", &service, &[]);
    service.wait_held("/check");
    for verb in ["validate", "rotate"] {
        let busy = home.run(&["credential", verb, "ann"]);
        assert_eq!(busy.code(), 75, "{busy:?}");
        assert!(busy.stderr.contains("busy with attempt 1; hint: try again"), "{busy:?}");
    }
    // Who asks while it is about to end is not sent away.
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| home.run(&["credential", "validate", "ann"]));
        service.release("/check");
        asked.join().expect("no panic")
    });
    assert_eq!(asked.code(), 0, "{asked:?}");
    let reports = home.wait_for_reports("ann", 2);
    assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert_eq!(service.count("/rotate"), 0);
}

#[test]
fn every_listing_is_json_when_asked_in_an_empty_home_and_in_a_full_one() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let lists = [
        &["plugin", "list"][..],
        &["credential", "list"],
        &["reports", "list"],
        &["credential", "list", "--service", "x"],
    ];
    for arguments in lists {
        assert_eq!(home.json(arguments), json!([]), "{arguments:?}");
    }
    assert_eq!(home.json(&["status"])["daemon"], false);
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &["--profile", "team"]);
    let report = home.json(&["credential", "validate", "ann"]);
    for arguments in &lists[..3] {
        assert_eq!(home.json(arguments).as_array().map(Vec::len), Some(1), "{arguments:?}");
    }
    let listed = &home.json(&["reports", "list"])[0];
    assert_eq!(listed["startedAt"], report["startedAt"]);
    let id = listed["id"].to_string();
    let shown = home.json(&["reports", "show", &id]);
    for field in [
        "cookieId",
        "profileId",
        "service",
        "validateUrl",
        "cookieKeys",
        "status",
        "message",
        "startedAt",
        "finishedAt",
        "attemptNumber",
        "meta",
    ] {
        assert!(shown.get(field).is_some(), "{field} is missing from {shown}");
        assert_eq!(shown[field], report[field], "{field}");
    }
    assert_eq!(shown["profileId"], "team");
    assert_eq!(home.json(&["credential", "show", "ann"])["credential"]["credentialId"], "ann");
    for (filter, count) in [
        (&["--credential", "ann"][..], 1),
        (&["--credential", "bob"], 0),
        (&["--service", "well-behaved"], 1),
        (&["--status", "success"], 1),
        (&["--status", "failed"], 0),
        (&["--since", "2999-01-01T00:00:00Z"], 0),
        (&["--limit", "0"], 0),
    ] {
        let found = home.json(&[&["reports", "list"], filter].concat());
        assert_eq!(found.as_array().map(Vec::len), Some(count), "{filter:?}: {found}");
    }
    // Tables for people say the same, without colour where there is no terminal.
    for arguments in lists.iter().take(3).copied().chain([&["status"][..]]) {
        let table = home.run(arguments);
        // No daemon runs, which `status` says by its code.
        assert_eq!(table.code(), i32::from(arguments == ["status"]), "{table:?}");
        assert!(!table.stdout.contains('\u{1b}'), "{table:?}");
    }
}

#[test]
fn a_paused_credential_rests_until_it_is_resumed() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    for id in ["rests", "works"] {
        home.add_session(id, "well-behaved", &service, &["--every", "1s"]);
        home.wait_for_reports(id, 1);
    }
    home.json(&["credential", "pause", "rests"]);
    let table = home.run(&["credential", "list"]).ok().stdout;
    assert!(table.lines().any(|line| line.contains("rests") && line.contains("paused")), "{table}");
    // An attempt that was under way may still end; after it there is none.
    home.wait_for_reports("works", 2);
    let before = home.reports("rests").len();
    home.wait_for_reports("works", 4);
    assert_eq!(home.reports("rests").len(), before);
    home.json(&["credential", "resume", "rests"]);
    home.wait_for_reports("rests", before + 1);
}

#[test]
fn removing_a_credential_keeps_its_reports_and_forgets_its_secrets() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &[]);
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.json(&["credential", "remove", "ann"]), json!({ "removed": "ann" }));
    assert_eq!(home.json(&["credential", "list"]), json!([]));
    assert_eq!(home.run(&["credential", "export", "ann"]).code(), 3);
    assert_eq!(home.reports("ann").len(), 1);
    // The name is free again, and the old reports stand beside the new.
    home.add_session("ann", "well-behaved", &service, &[]);
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.reports("ann").len(), 2);
}

#[test]
fn validating_rotating_and_importing_work_without_a_daemon() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    home.drop_plugin(&guest("well_behaved"));
    let first = home.add_session("ann", "well-behaved", &service, &[]);
    let value = || {
        let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
        exported["session"]["value"].as_str().expect("a value").to_owned()
    };
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!(
        (&report["status"], &report["meta"]["rotated"]),
        (&"success".into(), &true.into()),
        "{report}"
    );
    let second = value();
    assert_ne!(second, first);
    assert!(service.is_alive(&second) && !service.is_alive(&first));

    let third = service.issue();
    let imported =
        home.run_with_input(&["credential", "import", "ann", "-", "--json"], &format!("session={third}"));
    assert_eq!(imported.ok().json(), json!({ "imported": "ann", "keys": ["session"], "next": "validate" }));
    assert_eq!(value(), third);
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    let numbers: Vec<_> = home.reports("ann").iter().map(|report| report["attemptNumber"].clone()).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

/// A service that reads a request and answers as it likes.
fn odd(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + 'static) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // Ends with the test process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(copy) = stream.try_clone() else { continue };
            let mut lines = BufReader::new(copy).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            // Keywheel hangs up on some of these answers.
            let _ = answer(&mut stream);
        }
    });
    url
}

pub fn says(answer: String) -> String {
    odd(move |stream| stream.write_all(answer.as_bytes()))
}

pub fn http_answer(status: &str, kind: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// 100 MiB, announced or not, in pieces.
fn too_long(head: &'static str) -> String {
    odd(move |stream| {
        stream.write_all(head.as_bytes())?;
        let piece = [b' '; 64 << 10];
        for _ in 0..1_600 {
            stream.write_all(&piece)?;
        }
        Ok(())
    })
}

#[test]
fn an_answer_that_says_nothing_of_the_credential_never_makes_it_dead() {
    let home = home_with_site();
    let page = "<!doctype html><html><title>Back soon</title></html>";
    let json = "application/json";
    let closed = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        format!("http://{}", listener.local_addr().expect("an address"))
    };
    let table = [
        ("html", says(http_answer("200 OK", "text/html", "", page))),
        ("html-as-json", says(http_answer("200 OK", json, "", page))),
        ("cut-json", says(http_answer("200 OK", json, "", "{\"user\": "))),
        ("firewall", says(http_answer("403 Forbidden", "text/html", "", page))),
        ("proxy", says(http_answer("407 Proxy Authentication Required", "text/html", "", page))),
        ("redirect", says(http_answer("302 Found", "text/html", "Location: https://other.example/\r\n", ""))),
        ("teapot", says(http_answer("418 I'm a teapot", json, "", "{}"))),
        ("500", says(http_answer("500 Internal Server Error", json, "", "{\"user\": null}"))),
        ("503", says(http_answer("503 Service Unavailable", "text/html", "", page))),
        ("429", says(http_answer("429 Too Many Requests", json, "Retry-After: 600\r\n", "{}"))),
        ("garbage", says(String::from("\u{1}\u{2}\u{3} no protocol at all\r\n\r\n"))),
        ("half", says(String::from("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"user\""))),
        ("silent", odd(|stream| stream.shutdown(std::net::Shutdown::Both))),
        ("long", too_long("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")),
        (
            "announced",
            too_long(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n",
            ),
        ),
        ("closed", closed),
    ];
    // With a daemon, so that the home is opened once.
    let _daemon = home.serve();
    for (id, url) in &table {
        let base_url = format!("base_url={url}");
        let settings =
            ["--set", &base_url, "--set", "validate_path=/me", "--set", "alive_json_pointer=/user"];
        home.add(id, "http-session", "session=made-up", &[&settings[..], &["--every", "1h"]].concat());
    }
    for (id, _) in &table {
        let report = &home.wait_for_reports(id, 1)[0];
        assert_eq!(report["status"], "unreachable", "{id}: {report}");
        assert_eq!(report["meta"]["verdict"], "unknown", "{id}: {report}");
        assert!(report["message"].as_str().is_some_and(|message| message.len() < 400), "{id}: {report}");
        // It will be asked again by itself, with the secret it has.
        let shown = home.json(&["credential", "show", id]);
        assert!(shown["credential"]["monitor"]["nextDueAt"].is_string(), "{shown}");
        assert_eq!(shown["credential"]["currentGeneration"], 1);
    }
    let message = |id: &str| home.reports(id)[0]["message"].as_str().expect("a message").to_owned();
    for id in ["long", "announced"] {
        assert!(message(id).contains("longer than 2097152 bytes"), "{}", message(id));
    }
    assert!(message("429").contains("429"), "{}", message("429"));
}

#[test]
fn a_service_that_asks_for_time_is_left_alone_that_long() {
    let home = home_with_site();
    let _daemon = home.serve();
    let url = says(http_answer("429 Too Many Requests", "application/json", "Retry-After: 3600\r\n", "{}"));
    let base_url = format!("base_url={url}");
    home.add("ann", "http-session", "session=made-up", &["--set", &base_url, "--every", "1s"]);
    let report = &home.wait_for_reports("ann", 1)[0];
    let shown = home.json(&["credential", "show", "ann"]);
    let due = shown["credential"]["monitor"]["nextDueAt"].as_str().expect("a moment");
    let finished = report["finishedAt"].as_str().expect("a moment");
    let waits = milliseconds(due) - milliseconds(finished);
    assert!((3_600_000..4_000_000).contains(&waits), "{waits} ms, from {finished} to {due}");
}

/// Milliseconds of a moment such as `2026-01-02T03:04:05.678Z`.
fn milliseconds(text: &str) -> i128 {
    let moment = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    moment.expect("ISO 8601").unix_timestamp_nanos() / 1_000_000
}

#[test]
fn a_token_pasted_with_something_around_it_is_refused_before_anything_is_stored() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("oauth2-refresh"));
    let secret = random_secret();
    let add = ["credential", "add", "ann", "--service", "oauth2-refresh", "--set", "client_id=desktop"];
    let add = [&add[..], &["--set", "token_url=https://id.example/token"]].concat();
    let cases = [
        (format!("refresh_token={secret} \n"), "white space"),
        (format!("refresh_token=\"{secret}\"\n"), "in quotes"),
        (format!("refresh_token=Bearer {secret}\n"), "the word of a header"),
    ];
    for (pairs, found) in cases {
        let refused = home.run_with_input(&add, &pairs);
        assert_eq!(refused.code(), 65, "{}", refused.stderr);
        assert!(refused.stderr.contains("key \"refresh_token\" (pair 1)"), "{}", refused.stderr);
        assert!(refused.stderr.contains(found) && refused.stderr.contains("hint: "), "{}", refused.stderr);
        assert!(!refused.stderr.contains(&secret), "the value is shown");
    }
    assert_eq!(home.json(&["credential", "list"]), serde_json::json!([]));
    // Whoever means it says so, and a line's own end is no part of a value.
    home.run_with_input(&[&add[..], &["--exact"]].concat(), &format!("refresh_token={secret} \r\n")).ok();
    let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    assert_eq!(exported["refresh_token"]["value"], format!("{secret} "));
}
