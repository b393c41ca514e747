//! The read API as a program uses it: real curl against a real daemon. Who is let in, who isn't
//! and what the history says of it, what a reader gets and in which form, and how it waits.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::*;
use crate::secrets::Wanted;

/// A daemon with an open port and two credentials of one service.
struct Site {
    home: TestHome,
    service: Service,
    /// `http://127.0.0.1:…`
    url: String,
    ann: String,
    bob: String,
    _daemon: Daemon,
}

impl Site {
    fn new(http: &str) -> Self {
        let home = TestHome::new();
        let config = format!("[http]\nlisten = \"127.0.0.1:0\"\n{http}");
        std::fs::write(home.path().join("config.toml"), config).expect("the configuration");
        home.drop_plugin(&guest("well_behaved"));
        let daemon = home.serve();
        let service = Service::start(OldSession::Stays);
        let ann = home.add_session("ann", "well-behaved", &service, &["--profile", "team"]);
        let bob = home.add_session("bob", "well-behaved", &service, &[]);
        let listening = home.json(&["status"])["http"]["listening"].as_str().expect("a port").to_owned();
        Self { home, service, url: format!("http://{listening}"), ann, bob, _daemon: daemon }
    }

    fn token(&self, more: &[&str]) -> String {
        let made = self.home.run(&[&["api-token", "create", "--name", "a program"], more].concat()).ok();
        assert!(made.stdout.starts_with("kwa_") && made.stdout.ends_with('\n'), "the token alone is printed");
        made.stdout.trim_end().to_owned()
    }

    fn curl(&self, path: &str, token: Option<&str>, more: &[&str]) -> Reply {
        curl(&format!("{}{path}", self.url), token, more)
    }

    fn history(&self) -> Vec<Value> {
        self.home.json(&["api-token", "history"]).as_array().expect("an array").clone()
    }

    /// The rows of the history for one reason.
    fn refused(&self, what: &str) -> Vec<Value> {
        self.history().into_iter().filter(|row| row["what"] == what).collect()
    }
}

/// The public part of a token.
fn id(token: &str) -> &str {
    &token[4..20]
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Nothing but the reason, in the one form of every refusal.
    #[track_caller]
    fn refused(&self, status: u16, code: &str, field: Option<&str>) -> &Self {
        let body = self.json();
        assert_eq!((self.status, body["error"]["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(body["error"]["field"].as_str(), field, "{self:?}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.len() > 6), "{self:?}");
        assert_eq!(body.as_object().expect("an object").len(), 1, "{self:?}");
        self
    }
}

/// The header comes by standard input: other users of a machine see a program's arguments.
fn curl(url: &str, token: Option<&str>, more: &[&str]) -> Reply {
    let header = token.map(|token| format!("header = \"Authorization: Bearer {token}\"\n"));
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--include", "--max-time", "50", "--config", "-"]);
    let mut child = curl
        .args(more)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl starts; hint: apt-get install curl");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(header.unwrap_or_default().as_bytes()).expect("curl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("curl ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

const SECRET: &str = "/v1/credentials/ann/secret";

#[test]
fn whoever_has_no_valid_token_for_a_credential_gets_a_clear_refusal_that_stands_in_the_history() {
    let site = Site::new("");
    let good = site.token(&["--credential", "ann"]);
    assert_eq!(site.curl(SECRET, Some(&good), &[]).status, 200);

    // None, something else, another kind's, one that nobody made, one with another secret.
    site.curl(SECRET, None, &[]).refused(401, "unauthenticated", Some("Authorization"));
    assert_eq!(site.refused("no-token").len(), 1);
    let worker = site
        .home
        .run(&["worker-token", "create", "well-behaved", "--name", "w"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    for malformed in
        ["", "kwa_", "kwa_0a_1b", &good[..84], &format!("{good}0"), &good.to_uppercase(), &worker]
    {
        site.curl(SECRET, Some(malformed), &[]).refused(401, "unauthenticated", Some("Authorization"));
    }
    assert_eq!(site.refused("malformed-token")[0]["times"], 7, "folded into one row");
    let mut forged = good.clone();
    forged.replace_range(84.., if good.ends_with('0') { "1" } else { "0" });
    let nobodys = format!("kwa_{}_{}", "0a".repeat(8), "1b".repeat(32));
    for unknown in [&forged, &nobodys] {
        let reply = site.curl(SECRET, Some(unknown), &[]);
        reply.refused(401, "unauthenticated", Some("Authorization"));
        assert!(reply.body.contains("not known"), "{reply:?}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"keywheel\""));
    }
    let mut unknown: Vec<_> =
        site.refused("unknown-token").iter().map(|row| row["tokenId"].as_str().map(str::to_owned)).collect();
    unknown.sort();
    assert_eq!(unknown, [None, Some(id(&good).to_owned())]);

    // Over by itself, and ended by hand.
    let short = site.token(&["--credential", "ann", "--expires", "1s"]);
    let reply = wait_until(SOON, "the token is over", || {
        Some(site.curl(SECRET, Some(&short), &[])).filter(|reply| reply.status != 200)
    });
    reply.refused(401, "unauthenticated", Some("Authorization"));
    assert!(reply.body.contains("expired at 20"), "{reply:?}");
    assert_eq!(site.refused("expired-token")[0]["tokenId"], id(&short));
    let revoked = site.token(&["--credential", "ann", "--expires", "never"]);
    assert_eq!(site.curl(SECRET, Some(&revoked), &[]).status, 200);
    for _ in 0..2 {
        site.home.run(&["api-token", "revoke", id(&revoked)]).ok();
    }
    let reply = site.curl(SECRET, Some(&revoked), &[]);
    reply.refused(401, "unauthenticated", Some("Authorization"));
    assert!(reply.body.contains("revoked at 20"), "{reply:?}");
    assert_eq!(site.refused("revoked-token")[0]["tokenId"], id(&revoked));

    // Genuine, for something else: the same words whether or not there is such a credential.
    let foreign = site.curl("/v1/credentials/bob/secret", Some(&good), &[]);
    foreign.refused(403, "forbidden", None);
    for path in
        ["/v1/credentials/nobody/secret", "/v1/credentials/ANN/secret", "/v1/credentials/..%2Fann/secret"]
    {
        assert_eq!(site.curl(path, Some(&good), &[]).refused(403, "forbidden", None).body, foreign.body);
    }
    let stated = site.token(&["--credential", "ann", "--scope", "state"]);
    assert_eq!(site.curl(SECRET, Some(&stated), &[]).refused(403, "forbidden", None).body, foreign.body);
    let mut tried: Vec<_> =
        site.refused("foreign-credential").iter().map(|row| row["credentialId"].clone()).collect();
    tried.sort_by_key(Value::to_string);
    assert_eq!(tried, [json!("ANN"), json!("bob"), json!("nobody"), json!(null)]);
    assert_eq!(site.refused("scope")[0]["tokenId"], id(&stated));

    // A page in the operator's own browser can't even ask.
    for line in ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"] {
        let reply = site.curl(SECRET, Some(&good), &["--header", line]);
        reply.refused(403, "other-site", Some("Origin"));
        assert_eq!(reply.header("access-control-allow-origin"), None, "{reply:?}");
    }
    let preflight =
        site.curl(SECRET, None, &["--request", "OPTIONS", "--header", "Origin: https://evil.example"]);
    preflight.refused(405, "method-not-allowed", None);
    assert_eq!(preflight.header("allow"), Some("GET,HEAD"));
    site.curl(SECRET, Some(&good), &["--header", "Host: evil.example"]).refused(
        403,
        "unknown-host",
        Some("Host"),
    );
    assert_eq!(site.refused("other-site")[0]["times"], 3);

    // None of it was a secret's way out, and the one read before it is written down.
    let reads: Vec<Value> = site.history().into_iter().filter(|row| row["refused"] == false).collect();
    let by = |token: &str| reads.iter().find(|row| row["tokenId"] == id(token)).cloned();
    let row = by(&good).expect("it was read");
    assert_eq!(
        (&row["credentialId"], &row["generation"], &row["times"], &row["peer"], &row["form"]),
        (&json!("ann"), &json!(1), &json!(1), &json!("127.0.0.1"), &json!("json"))
    );
    assert_eq!(by(&stated), None);
    // Decisions are in the audit, and no token is in anything that was kept or logged.
    let list = site.home.json(&["api-token", "list"]);
    assert_eq!(list.as_array().expect("an array").len(), 4);
    let state = |token: &str| {
        list.as_array().unwrap().iter().find(|row| row["tokenId"] == id(token)).unwrap()["state"].clone()
    };
    assert_eq!(
        (state(&good), state(&short), state(&revoked)),
        (json!("active"), json!("expired"), json!("revoked"))
    );
    let tokens = [&good[21..], &short[21..], &revoked[21..], &stated[21..]];
    Wanted::new(tokens).assert_in_no_file(&site.home.path());
    assert!(!Wanted::new(tokens).is_in(site._daemon.log().as_bytes()), "a token in the log");
    assert!(!Wanted::new([site.ann.as_str(), &site.bob]).is_in(site._daemon.log().as_bytes()));
}

#[test]
fn a_program_gets_the_secret_in_force_in_the_form_it_asks_for_and_waits_for_the_next() {
    let site = Site::new("requests_per_second = 1000\nrequests_at_once = 1000\n");
    site.home.wait_for_reports("ann", 1);
    let token = site.token(&["--credential", "ann", "--credential", "bob"]);
    let get = |query: &str, more: &[&str]| site.curl(&format!("{SECRET}{query}"), Some(&token), more);

    let first = get("", &[]);
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.json()["session"]["value"], site.ann.as_str());
    for (name, expected) in [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("keywheel-generation", "1"),
    ] {
        assert_eq!(first.header(name), Some(expected), "{first:?}");
    }
    let host = format!("{}/", site.service.url).replace(':', "%3A").replace('/', "%2F");
    for (query, kind, part) in [
        ("?format=netscape", "text/plain; charset=utf-8", "# Netscape HTTP Cookie File"),
        ("?format=storage-state", "application/json", "\"origins\""),
        ("?format=browser-json", "application/json", "hostOnly"),
        ("?format=env", "text/plain; charset=utf-8", "SESSION="),
        (&format!("?format=header&url={host}"), "text/plain; charset=utf-8", "Cookie: session="),
    ] {
        let reply = get(query, &[]);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{query} {reply:?}");
        assert!(reply.body.contains(part) && reply.body.contains(&site.ann), "{query}: {}", reply.body);
    }
    for (query, status, code, field) in [
        ("?format=playwright", 400, "bad-parameter", "format"),
        ("?format=header", 400, "bad-parameter", "url"),
        ("?format=header&url=nowhere", 400, "bad-parameter", "url"),
        ("?format=header&url=https://other.example/", 409, "not-in-this-form", "format"),
        ("?wait=30s", 400, "bad-parameter", "wait"),
        ("?wait=1h&after=1", 400, "bad-parameter", "wait"),
        ("?token=x", 400, "bad-parameter", "query"),
    ] {
        get(query, &[]).refused(status, code, Some(field));
    }

    // What the client has isn't sent again.
    let etag = first.header("etag").expect("a tag").to_owned();
    assert!(etag.starts_with("\"1."), "{etag}");
    let same = get("", &["--header", &format!("If-None-Match: {etag}")]);
    assert_eq!((same.status, same.body.as_str(), same.header("etag")), (304, "", Some(etag.as_str())));
    assert_eq!(get("?after=1", &[]).status, 304);
    assert_eq!(get("?after=1&wait=1s", &[]).status, 304, "nothing newer came in time");

    // A new generation ends the wait, and a pending one doesn't: held at its test it isn't in force.
    site.service.hold("/check");
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| site.home.run(&["credential", "rotate", "ann"]));
        site.service.wait_held("/check");
        assert_eq!(get("?after=1", &[]).status, 304, "a pending generation never leaves");
        let waiting = scope.spawn(|| get("?after=1&wait=45s", &[]));
        wait_until(SOON, "the client waits", || {
            let status = site.home.json(&["status"]);
            (status["http"]["waiting"] == 1).then_some(())
        });
        site.service.release("/check");
        rotating.join().expect("it ends").ok();
        let second = waiting.join().expect("an answer");
        assert_eq!((second.status, second.header("keywheel-generation")), (200, Some("2")), "{second:?}");
        let value = second.json()["session"]["value"].as_str().expect("text").to_owned();
        assert!(site.service.is_alive(&value) && value != site.ann);
        let none = get("", &["--header", &format!("If-None-Match: {etag}")]);
        assert_eq!(none.status, 200, "the tag of the old one");
    });

    // How it stands, without a secret; and all that the token reaches.
    let state = site.curl("/v1/credentials/ann", Some(&token), &[]);
    assert_eq!((state.status, &state.json()["generation"]), (200, &json!(2)), "{state:?}");
    assert_eq!(state.json()["monitor"]["lastStatus"], "success");
    let names = |token: &str, query: &str| {
        let reply = site.curl(&format!("/v1/credentials{query}"), Some(token), &[]);
        assert_eq!(reply.status, 200, "{reply:?}");
        let body = reply.json();
        let rows = body["credentials"].as_array().expect("an array").clone();
        let ids: Vec<_> = rows.iter().map(|row| row["credentialId"].as_str().unwrap().to_owned()).collect();
        (ids, body["next"].as_i64())
    };
    assert_eq!(names(&token, ""), (vec!["ann".into(), "bob".into()], None));
    let of_service = site.token(&["--service", "well-behaved", "--scope", "state,ack"]);
    let (page, next) = names(&of_service, "?limit=1");
    assert_eq!(page, ["ann"]);
    assert_eq!(
        names(&of_service, &format!("?limit=1&after={}", next.expect("more"))),
        (vec!["bob".into()], None)
    );
    let of_profile = site.token(&["--profile", "team"]);
    assert_eq!(names(&of_profile, ""), (vec!["ann".into()], None));
    assert_eq!(site.curl("/v1/credentials/bob", Some(&of_profile), &[]).status, 403);
    let nothing = site.token(&["--scope", "metrics"]);
    assert_eq!(site.curl("/v1/credentials", Some(&nothing), &[]).status, 403);
    let answers = [state.body, site.curl("/v1/credentials", Some(&of_service), &[]).body];
    let secrets = site.service.issued();
    for answer in answers {
        assert!(!Wanted::new(secrets.iter().map(String::as_str)).is_in(answer.as_bytes()), "{answer}");
    }
    // A named credential that is gone is told to who may know of it.
    site.home.run(&["credential", "remove", "bob"]).ok();
    site.curl("/v1/credentials/bob/secret", Some(&token), &[]).refused(404, "no-such-credential", None);

    // What is typed wrong makes no token.
    for (arguments, code) in [
        (&["--credential", "nobody"][..], 3),
        (&["--scope", "read"], 65),
        (&["--credential", "ann", "--scope", "metrics"], 65),
        (&["--credential", "ann", "--expires", "soon"], 65),
        (&["--credential", "ann", "--service", "well-behaved"], 2),
        (&["--profile", "no profile"], 65),
        (&["--credential", "ann", "--scope", "write"], 2),
    ] {
        let made = site.home.run(&[&["api-token", "create", "--name", "x"], arguments].concat());
        assert_eq!((made.code(), made.stdout.as_str()), (code, ""), "{arguments:?} {made:?}");
    }
    let pasted = site.home.run(&["api-token", "revoke", &token]);
    assert_eq!(pasted.code(), 65);
    assert!(!pasted.stderr.contains(&token[21..]), "a token in an error");
}

#[test]
fn a_flood_of_refusals_is_counted_in_few_rows_and_shuts_out_nobody_with_a_token() {
    let site = Site::new("requests_per_second = 5\nrequests_at_once = 5\n");
    let token = site.token(&["--credential", "ann"]);
    let other = site.token(&["--credential", "ann"]);
    // One curl, two hundred requests.
    let url = format!("{}{SECRET}?[1-200]", site.url);
    let flood = |token: &str| {
        let mut curl = command("curl");
        curl.args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}\n",
            "--config",
            "-",
            &url,
        ]);
        let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("curl starts");
        let header = format!("header = \"Authorization: Bearer {token}\"\n");
        child.stdin.take().expect("piped").write_all(header.as_bytes()).expect("curl reads");
        let output = child.wait_with_output().expect("curl ends");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let codes = flood("kwa_x");
    let count = |codes: &str, code: &str| codes.lines().filter(|line| *line == code).count();
    let (unauthenticated, limited) = (count(&codes, "401"), count(&codes, "429"));
    assert_eq!(unauthenticated + limited, 200, "{codes}");
    assert!(limited > 0, "{codes}");
    assert_eq!(site.curl(SECRET, Some(&other), &[]).status, 200, "a token lets in, whoever else failed");
    let total = |what: &str| {
        let rows = site.refused(what);
        (rows.len(), rows.iter().map(|row| row["times"].as_u64().expect("a number")).sum::<u64>())
    };
    assert_eq!(total("malformed-token"), (1, unauthenticated as u64));
    wait_until(SOON, "those past the rate are counted", || {
        (total("too-often") == (1, limited as u64)).then_some(())
    });

    // A token that asks too often is told, and counted in its own row.
    let codes = flood(&token);
    let limited = count(&codes, "429");
    assert!(limited > 0 && limited + count(&codes, "400") == 200, "{codes}");
    wait_until(SOON, "the token's are counted", || {
        let rows = site.refused("too-often");
        let own = rows.iter().find(|row| row["tokenId"] == id(&token))?;
        (own["times"] == limited).then_some(())
    });
}
