//! The dashboard, from outside: who gets in and who doesn't, over bare sockets; and everything a
//! person sees and does, in a real Chromium. The screenshots stay in the target folder.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::faults::shim::{DB, FOREVER, Faults, WAL};
use crate::harness::*;
use crate::plugins::patched;

fn listening() -> TestHome {
    let home = TestHome::new();
    fs::write(home.path().join("config.toml"), "[http]\nlisten = \"127.0.0.1:0\"\n").expect("written");
    home
}

fn base(home: &TestHome) -> String {
    let status = home.json(&["status"]);
    format!("http://{}", status["http"]["listening"].as_str().expect("the port is open"))
}

fn link(home: &TestHome) -> String {
    home.json(&["dashboard"])["url"].as_str().expect("a link").to_owned()
}

/// What a browser says of a form of the page it shows.
fn of_page(base: &str) -> String {
    format!("Origin: {base}")
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// Uses a link, and returns the cookie's line.
fn sign_in(base: &str, link: &str) -> String {
    let head = http_head("POST", link, &[&of_page(base)]);
    assert!(head.starts_with("HTTP/1.0 303") || head.starts_with("HTTP/1.1 303"), "{head}");
    let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(set.ends_with("; Path=/dashboard; HttpOnly; SameSite=Strict"), "{set}");
    format!("Cookie: {}", set.split(';').next().expect("a cookie"))
}

/// The token of the forms on a page.
fn csrf(page: &str) -> String {
    let field = page.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    field.expect("a form").to_owned()
}

/// The head of an answer.
fn http_head(method: &str, url: &str, headers: &[&str]) -> String {
    http_with_head(method, url, headers, "")
}

fn http_with_head(method: &str, url: &str, headers: &[&str], body: &str) -> String {
    use std::io::{Read, Write};
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = std::net::TcpStream::connect(host).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout can be set");
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    write!(
        stream,
        "{method} /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n{lines}\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text.split_once("\r\n\r\n").map(|(head, _)| head.to_owned()).expect("a head")
}

#[test]
fn without_a_port_the_command_says_what_to_write_into_the_configuration() {
    let home = TestHome::new();
    let refused = home.run(&["dashboard"]);
    assert_eq!(refused.code(), 65);
    for said in ["config.toml", "[http]", "listen = \"127.0.0.1:7878\"", "restart the daemon"] {
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    let home = listening();
    let refused = home.run(&["dashboard"]);
    assert_eq!(refused.code(), 3);
    assert!(refused.stderr.contains("no daemon runs here"), "{}", refused.stderr);
    let _daemon = home.serve();
    let refused = home.run(&["dashboard", "--url", "https://keywheel.example/path"]);
    assert_eq!(refused.code(), 65);
    let made = home.run(&["dashboard", "--url", "https://keywheel.example"]).ok();
    assert!(made.stdout.starts_with("https://keywheel.example/dashboard/sign-in/"), "{}", made.stdout);
    assert_eq!(made.stdout.lines().count(), 1, "the link alone is data");
}

#[test]
fn nobody_gets_in_without_a_fresh_link_or_does_a_thing_without_a_form_of_the_session() {
    let home = listening();
    let daemon = home.serve();
    let base = base(&home);
    let at = |path: &str| format!("{base}{path}");

    // Without a session every page says how to get one, and nothing is sent elsewhere.
    for path in [
        "",
        "?show=all",
        "/credential?id=ann",
        "/report?id=1",
        "/plugins",
        "/workers",
        "/audit",
        "/events",
        "/confirm?do=pause&id=ann",
        "/do",
        "/nothing",
    ] {
        let answer = http("GET", &at(&format!("/dashboard{path}")), &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.body.contains("keywheel dashboard"), "{path}");
    }
    assert_eq!(http("GET", &at("/"), &[]).status, 303);
    // Under a name that isn't ours there is nothing at all.
    let head = http_head("GET", &at("/dashboard"), &["Host: evil.example"]);
    assert!(head.contains(" 403 "), "{head}");

    // Every answer tells the browser to keep to itself.
    let head = http_head("GET", &at("/dashboard"), &[]);
    for line in [
        "content-security-policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: same-origin",
        "cache-control: no-store",
        "cross-origin-opener-policy: same-origin",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(head.lines().any(|found| found == line), "{line}\n{head}");
    }

    // A link is looked at as often as one likes, and used once, by a page of ours alone.
    let first = link(&home);
    for _ in 0..3 {
        assert_eq!(http("GET", &first, &[]).status, 200);
    }
    assert_eq!(http("POST", &first, &[]).status, 403);
    assert_eq!(http("POST", &first, &["Origin: http://evil.example"]).status, 403);
    let cookie = sign_in(&base, &first);
    assert_eq!(http("POST", &first, &[&of_page(&base)]).status, 403);
    let page = http("GET", &at("/dashboard"), &[&cookie]);
    assert_eq!(page.status, 200);
    let assets: Vec<&str> =
        page.body.split('"').filter(|part| part.starts_with("/dashboard/assets/")).collect();
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let head = http_head("GET", &at(asset), &[]);
        assert!(
            head.contains(" 200 ") && head.contains("cache-control: public, max-age=31536000, immutable"),
            "{head}"
        );
    }

    // Cookies that are another's, none's, or two.
    let (name, value) = cookie.split_once('=').expect("a pair");
    for wrong in [
        format!("{name}={}", "0".repeat(64)),
        format!("{name}="),
        format!("{name}={value}; keywheel={value}"),
        format!("Cookie: __Host-keywheel={value}"),
    ] {
        assert_eq!(http("GET", &at("/dashboard"), &[&wrong]).status, 401, "{wrong}");
    }

    // A form belongs to the session whose page it is on.
    let mine = csrf(&page.body);
    let other = sign_in(&base, &link(&home));
    let theirs = csrf(&http("GET", &at("/dashboard"), &[&other]).body);
    assert_ne!(mine, theirs);
    let origin = of_page(&base);
    let post = |headers: &[&str], token: &str| {
        let body = format!("do=pause-service&service=forge&csrf={token}");
        http_with("POST", &at("/dashboard/do"), &[headers, &[&cookie, FORM]].concat(), &body).status
    };
    assert_eq!(post(&[&origin], &theirs), 403);
    assert_eq!(post(&[&origin], ""), 403);
    assert_eq!(post(&[], &mine), 403);
    assert_eq!(post(&["Origin: http://127.0.0.1:1"], &mine), 403);
    assert_eq!(post(&[&origin, "Sec-Fetch-Site: cross-site"], &mine), 403);
    assert_eq!(post(&[&origin, "Sec-Fetch-Site: same-origin"], &mine), 303);
    let long = format!("csrf={mine}&do={}", "x".repeat(9_000));
    assert_eq!(http_with("POST", &at("/dashboard/do"), &[&origin, &cookie, FORM], &long).status, 400);

    // What was done stands in the audit with the session that did it; what was refused doesn't.
    let audit = home.json(&["plugin", "history"]);
    let rows: Vec<&Value> = audit.as_array().expect("rows").iter().rev().collect();
    let actions: Vec<_> = rows.iter().map(|row| row["action"].as_str().expect("a word")).collect();
    assert_eq!(actions, ["dashboard-signed-in", "dashboard-signed-in", "dashboard-did"]);
    assert_eq!(rows[2]["detail"]["did"], "pause-service");
    assert_eq!(rows[2]["detail"]["session"], rows[0]["detail"]["session"]);

    // Signing out ends one session, signing everybody out all of them and every link.
    let body = format!("csrf={mine}");
    assert_eq!(http_with("POST", &at("/dashboard/sign-out"), &[&origin, &cookie, FORM], &body).status, 303);
    assert_eq!(http("GET", &at("/dashboard"), &[&cookie]).status, 401);
    assert_eq!(http("GET", &at("/dashboard"), &[&other]).status, 200);
    let unused = link(&home);
    assert_eq!(home.json(&["dashboard", "--sign-out-all"]), json!({ "signedOut": 1 }));
    assert_eq!(http("GET", &at("/dashboard"), &[&other]).status, 401);
    assert_eq!(http("GET", &unused, &[]).status, 403);

    // Guessing is slow, and shuts out nobody who has a link.
    let guess = at(&format!("/dashboard/sign-in/{}", "0".repeat(64)));
    let refused: Vec<u16> = (0..40).map(|_| http("GET", &guess, &[]).status).collect();
    assert!(refused.contains(&403) && refused.contains(&429), "{refused:?}");
    sign_in(&base, &link(&home));

    // No link and no cookie in what anybody printed but the links themselves.
    let log = daemon.log();
    for secret in [value, first.rsplit('/').next().expect("a token"), &mine] {
        assert!(!log.contains(secret), "{log}");
    }
    daemon.stop();
}

#[test]
fn what_cant_be_written_down_is_not_done_and_the_pages_go_on_and_say_why() {
    let home = listening();
    let faults = Faults::of(&home);
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve_in(&faults.environment());
    let base = base(&home);
    let cookie = sign_in(&base, &link(&home));
    let page = http("GET", &format!("{base}/dashboard"), &[&cookie]);
    let csrf = csrf(&page.body);
    assert!(!page.body.contains("can\u{2019}t be written"), "{}", page.body);

    faults.fail_writes(libc::ENOSPC, FOREVER, DB | WAL);
    let body = format!("do=pause-service&service=well-behaved&csrf={csrf}");
    let origin = of_page(&base);
    let url = format!("{base}/dashboard/do");
    let head = http_with_head("POST", &url, &[&cookie, &origin, FORM], &body);
    let back = head.lines().find_map(|line| line.strip_prefix("location: ")).expect("a page to go to");
    let page = http("GET", &format!("{base}{back}"), &[&cookie]);
    assert_eq!(page.status, 200);
    assert!(page.body.contains("It could not be written down, so nothing was done"), "{}", page.body);
    let overview = http("GET", &format!("{base}/dashboard"), &[&cookie]);
    assert!(overview.body.contains("The database can\u{2019}t be written."), "{}", overview.body);

    faults.release();
    assert_eq!(home.json(&["plugin", "show", "well-behaved"])["paused"], false);
    wait_until(SOON, "the pages are quiet again", || {
        let overview = http("GET", &format!("{base}/dashboard"), &[&cookie]);
        (!overview.body.contains("can\u{2019}t be written")).then_some(())
    });
    assert_eq!(http_with("POST", &url, &[&cookie, &origin, FORM], &body).status, 303);
    assert_eq!(home.json(&["plugin", "show", "well-behaved"])["paused"], true);
    daemon.stop();
}

/// A home with one credential of each kind.
fn rich(home: &TestHome, service: &Service, base: &str) -> i64 {
    let validate = |id: &str| home.run(&["credential", "validate", id]);
    let quiet: &[&str] = &["--every", "7d"];
    for id in ["ann", "dee", "ida"] {
        home.add_session(id, "well-behaved", service, quiet);
    }
    let dead = home.add_session("bob", "well-behaved", service, quiet);
    home.add(
        "cy",
        "well-behaved",
        "session=never-read",
        &[&["--set", "base_url=http://127.0.0.1:9"], quiet].concat(),
    );
    let burns = ["--set", "commit_class=burn-on-issue", "--account", "eve@example.org"];
    home.add_session("eve", "well-behaved", service, &[&burns, quiet].concat());
    home.add_session("fay", "well-behaved", service, &[&["--profile", "office"], quiet].concat());
    home.add_session("joe", "second-guest", service, quiet);
    for id in ["ann", "ann", "ann", "dee", "eve", "fay", "joe"] {
        validate(id).ok();
    }
    home.run(&["credential", "rotate", "fay"]).ok();
    service.forget(&dead);
    validate("bob");
    validate("cy");
    home.run(&["credential", "pause", "dee"]).ok();

    // One that ends the day after tomorrow, and is paused.
    let ends =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
            + 2 * 86_400;
    let session = service.issue();
    let jar =
        format!("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t{ends}\tsession\t{session}\n");
    let base_url = format!("base_url={}", service.url);
    let file = home.outside().join("cookies.txt");
    fs::write(&file, jar).expect("written");
    let from = ["--set", &base_url, "--from", file.to_str().expect("UTF-8")];
    home.add("gus", "well-behaved", "", &[&from, quiet].concat());
    validate("gus").ok();
    home.run(&["credential", "pause", "gus"]).ok();

    // One that an external worker reports on, with a message that means harm.
    let create = ["worker-token", "create", "intranet", "--name", "a worker"];
    let bearer = format!("Authorization: Bearer {}", home.run(&create).ok().stdout.trim());
    let send = |path: &str, message: &Value| {
        let headers = [bearer.as_str(), "Content-Type: application/json"];
        http_with("POST", &format!("{base}/v1/{path}"), &headers, &message.to_string())
    };
    let announcement = json!({ "pid": 4711, "workerId": "kiosk-1", "service": "intranet", "version": "1.4.0", "intervalSeconds": 3600 });
    assert_eq!(send("worker-announce", &announcement).status, 201);
    let earlier = &home.reports("ann")[0];
    let report = json!({
        "cookieId": "hal", "profileId": null, "service": "intranet", "validateUrl": "https://intranet.example/me",
        "cookieKeys": { "SID": random_secret() }, "status": "validation_failed",
        "message": "signed out: <img src=x onerror=ran=1> and \u{202e}desrever",
        "startedAt": earlier["startedAt"], "finishedAt": earlier["finishedAt"], "attemptNumber": 1, "meta": {},
    });
    let kept = send("worker-reports", &report);
    assert_eq!(kept.status, 201, "{}", kept.body);

    // A version that asks for more, and a file that is no plugin, with a name that means harm.
    home.drop_plugin_as(&guest("wants_more_origins"), "well_behaved.wasm");
    fs::write(home.path().join("plugins").join("<b>not a plugin\u{202e}.wasm"), "no").expect("written");
    home.wait_for_plugin("well_behaved.wasm", "pending-approval");
    wait_until(SOON, "an alert is open, and its message waits", || {
        let alerts = home.json(&["alert", "list"]);
        let open = alerts["open"].as_array().expect("alerts");
        let waits = !alerts["undelivered"].as_array().expect("messages").is_empty();
        (waits && open.iter().any(|alert| alert["subject"] == "credential:bob")).then_some(())
    });
    kept.json()["id"].as_i64().expect("its number")
}

#[test]
fn a_person_sees_and_does_everything_in_a_real_browser() {
    let home = listening();
    // A channel that takes nothing, so that messages wait.
    let told = "[alerts]\ngroup_wait = \"1s\"\ndisk_low_mib = 0\n[alerts.channels.ops]\nkind = \"command\"\ncommand = [\"false\"]\n";
    fs::write(home.path().join("config.toml"), format!("[http]\nlisten = \"127.0.0.1:0\"\n{told}"))
        .expect("written");
    let second = home.path().join("plugins").join("second.wasm");
    // Its title is a script.
    let titled = patched(&guest("well_behaved"), "A guest of the tests", "<script>x()</script>");
    let path = home.outside().join("titled.wasm");
    fs::write(&path, titled).expect("written");
    fs::write(second, patched(&path, "well-behaved", "second-guest")).expect("written");
    home.drop_plugin(&guest("well_behaved"));
    let service = Service::start(OldSession::Stays);
    let daemon = home.serve();
    let base = base(&home);
    let hostile = rich(&home, &service, &base);

    let shots = artefacts("dashboard");
    let _ = fs::remove_dir_all(&shots);
    fs::create_dir_all(&shots).expect("a folder");
    let mut browser = dashboard_browser();
    browser
        .env("HOME", home.outside())
        .env("TMPDIR", home.outside())
        .env("KEYWHEEL", env!("CARGO_BIN_EXE_keywheel"))
        .env("KEYWHEEL_HOME", home.path())
        .env("BASE", &base)
        .env("SHOTS", &shots)
        .env("HOSTILE_REPORT", hostile.to_string());
    let output = browser.stdin(Stdio::null()).output().expect("node starts");
    let (said, talk) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{talk}");
    let seen: Value = serde_json::from_str(said.trim()).expect("JSON");
    fs::write(shots.join("seen.json"), said.trim()).expect("written");

    // Each page was kept as a picture, in both sizes and both schemes.
    for name in seen["pages"].as_array().expect("names") {
        for size in [1280, 380] {
            for scheme in ["light", "dark"] {
                let shot = shots.join(format!("{}-{size}-{scheme}.png", name.as_str().expect("a name")));
                assert!(shot.metadata().is_ok_and(|file| file.len() > 1_000), "{}", shot.display());
            }
        }
    }

    // What was done there was done: by the service's books and the command line.
    let show = |id: &str| home.json(&["credential", "show", id])["credential"].clone();
    assert_eq!(show("eve")["currentGeneration"], 2);
    // Rotated by hand before, then on a page, then rolled back.
    assert_eq!(show("fay")["lastGeneration"], 4);
    assert_eq!(service.count("/rotate"), 3);
    assert_eq!(show("ann")["paused"], false);
    assert_eq!(home.plugin("well_behaved.wasm").expect("the file")["state"], "active");
    assert_eq!(home.json(&["plugin", "show", "second-guest"])["paused"], false);
    let audit = home.json(&["plugin", "history", "--limit", "100"]);
    let did: Vec<_> = audit
        .as_array()
        .expect("rows")
        .iter()
        .rev()
        .filter(|row| row["action"] == "dashboard-did")
        .map(|row| row["detail"]["did"].as_str().expect("a word"))
        .collect();
    assert_eq!(
        did,
        [
            "validate",
            "validate",
            "rotate",
            "rotate-now",
            "roll-back",
            "pause",
            "resume",
            "rotate",
            "pause-service",
            "resume-service",
            "approve",
            "snooze",
            "unsnooze",
            "unpark",
        ]
    );
    // And none of the secrets was on any page that was kept, or in the log.
    let log = daemon.log();
    assert!(service.issued().iter().all(|secret| !log.contains(secret)));
    daemon.stop();
}
