//! The providers of Matrix and JupyterHub against the real servers: kept alive through their own
//! expiry, through lost answers and a killed daemon; and what a person reads when the server ends
//! a session for good. Each server is started once and shared; each test has a user of its own.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::harness::*;

/// The value of a key as a person exports it.
fn exported(home: &TestHome, credential: &str, key: &str) -> String {
    let exported = home.run(&["credential", "export", credential, "--format", "env"]).ok().stdout;
    let name = format!("{key}=");
    let line = exported.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("no {key}"));
    line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']).to_owned()
}

/// By this machine's clock, which is the reports' own.
fn seconds_since(time: &str) -> f64 {
    let then: jiff::Timestamp = time.parse().expect("a time");
    (jiff::Timestamp::now() - then).total(jiff::Unit::Second).expect("seconds")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn rotations(home: &TestHome, credential: &str) -> usize {
    home.reports(credential).iter().filter(|report| report["meta"]["rotated"] == true).count()
}

/// Rotates by hand, and gives what the report says: verdict and words.
fn refused_rotation(home: &TestHome, credential: &str) -> (String, String) {
    let attempt = wait_until(SOON, "no other attempt is in flight", || {
        let output = home.run(&["credential", "rotate", credential, "--now", "--json"]);
        // The schedule may be at it itself.
        (output.code() != 75).then_some(output)
    });
    let report = home.reports(credential).pop().unwrap_or_else(|| panic!("{attempt:?}"));
    (text(&report["meta"]["verdict"]), text(&report["message"]))
}

/// A rotation by hand whose end the test doesn't wait for.
fn start_rotation(home: &TestHome) -> std::process::Child {
    let mut command = home.command(&["credential", "rotate", "ann", "--now"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().expect("the binary starts")
}

// Matrix

const ACCESS_TTL: u32 = 3;

fn homeserver() -> &'static Peer {
    static STARTED: OnceLock<Peer> = OnceLock::new();
    STARTED.get_or_init(|| Peer::synapse(ACCESS_TTL))
}

fn matrix(method: &str, path: &str, token: Option<&str>, body: &Value) -> Answer {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
    let headers: Vec<&str> = authorization.as_deref().into_iter().collect();
    http_with(method, &homeserver().url(&format!("/_matrix/client/v3/{path}")), &headers, &body.to_string())
}

const PASSWORD: &str = "made-up-password";

/// A new account with a device and its tokens.
fn register(user: &str) -> Value {
    let dummy = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": user, "password": PASSWORD, "refresh_token": true, "auth": dummy });
    let answer = matrix("POST", "register", None, &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn sign_in(user: &str) -> Value {
    let user = json!({ "type": "m.id.user", "user": user });
    let body = json!({ "type": "m.login.password", "identifier": user, "password": PASSWORD, "refresh_token": true });
    let answer = matrix("POST", "login", None, &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn whoami(token: &str) -> Answer {
    matrix("GET", "account/whoami", Some(token), &json!({}))
}

fn refresh(token: &str) -> Answer {
    matrix("POST", "refresh", None, &json!({ "refresh_token": token }))
}

fn add_matrix(home: &TestHome, url: &str, keys: &str, more: &[&str]) {
    let homeserver = format!("homeserver={url}");
    home.add("ann", "matrix", keys, &[&["--set", homeserver.as_str()], more].concat());
}

/// The access token in force, which the homeserver must know. Between export and question it may
/// be replaced, so only the same one twice counts.
fn assert_in_force(home: &TestHome, user: &str) {
    let mut tried = String::new();
    loop {
        let token = exported(home, "ann", "ACCESS_TOKEN");
        let answer = whoami(&token);
        if answer.status == 200 {
            return assert_eq!(answer.json()["user_id"], format!("@{user}:matrix.example"));
        }
        assert_ne!(token, tried, "the token in force is dead: {}", answer.body);
        tried = token;
    }
}

#[test]
fn a_matrix_session_lives_on_by_the_ends_that_its_homeserver_states() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("matrix"));
    let daemon = home.serve();
    let session = register("expiring");
    let (refresh_token, access_token) = (text(&session["refresh_token"]), text(&session["access_token"]));
    // The refresh token alone: the first access token comes from the first rotation.
    add_matrix(&home, &homeserver().url(""), &format!("refresh_token={refresh_token}\n"), &[]);
    wait_until(SOON, "there is an access token", || (rotations(&home, "ann") >= 1).then_some(()));
    // No cadence was asked for: each of these comes from `expires_in_ms`.
    wait_until(SOON, "five rotations are done", || {
        assert_in_force(&home, "expiring");
        (rotations(&home, "ann") >= 5).then_some(())
    });
    let reports = home.reports("ann");
    assert_eq!(reports[0]["status"], "unreachable", "{}", reports[0]);
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    // What was used before is dead: the new pair was used.
    assert_eq!(whoami(&access_token).status, 401);
    assert_eq!(refresh(&refresh_token).status, 401);
    let shown = home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "@expiring:matrix.example", "{shown}");
    let before = rotations(&home, "ann");

    // Nobody is there while the access token runs out.
    assert!(daemon.stop().success());
    let ended = exported(&home, "ann", "ACCESS_TOKEN");
    let said = wait_until(SOON, "the access token runs out", || {
        Some(whoami(&ended)).filter(|answer| answer.status == 401)
    });
    assert_eq!(
        (&said.json()["errcode"], &said.json()["soft_logout"]),
        (&json!("M_UNKNOWN_TOKEN"), &json!(true))
    );
    let _daemon = home.serve();
    wait_until(SOON, "the session lives again", || (rotations(&home, "ann") > before).then_some(()));
    assert_in_force(&home, "expiring");
}

#[test]
fn an_access_token_that_was_imported_after_its_end_is_rotated_and_not_called_dead() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("matrix"));
    let session = register("late");
    let (refresh_token, access_token) = (text(&session["refresh_token"]), text(&session["access_token"]));
    wait_until(SOON, "the access token runs out", || (whoami(&access_token).status == 401).then_some(()));
    let _daemon = home.serve();
    let keys = format!("refresh_token={refresh_token}\naccess_token={access_token}\n");
    add_matrix(&home, &homeserver().url(""), &keys, &[]);
    wait_until(SOON, "it is rotated", || (rotations(&home, "ann") >= 1).then_some(()));
    let first = home.reports("ann").swap_remove(0);
    let words = "the access token has ended; a rotation is due (M_UNKNOWN_TOKEN: Access token has expired)";
    assert_eq!((&first["meta"]["verdict"], &first["message"]), (&json!("unknown"), &json!(words)));
    assert_in_force(&home, "late");
}

#[test]
fn a_daemon_killed_after_the_homeserver_rotated_repeats_the_rotation() {
    let (home, cut) = (TestHome::new(), Cut::before(&homeserver().url("")));
    home.drop_plugin(&plugin("matrix"));
    let daemon = home.serve();
    let session = register("killed");
    add_matrix(
        &home,
        &cut.url,
        &format!(
            "refresh_token={}\naccess_token={}\n",
            text(&session["refresh_token"]),
            text(&session["access_token"])
        ),
        &["--every", "1h"],
    );
    home.wait_for_reports("ann", 1);
    cut.hang("POST /_matrix/client/v3/refresh");
    // The command ends with the daemon.
    let mut asking = start_rotation(&home);
    wait_until(SOON, "the homeserver has issued a pair that nobody gets", || (cut.kept() >= 1).then_some(()));
    daemon.kill_9();
    asking.wait().expect("the command ends");
    cut.heal();
    let _daemon = home.serve();
    wait_until(SOON, "the rotation was repeated", || (rotations(&home, "ann") >= 1).then_some(()));
    let reports = home.reports("ann");
    let repeated = reports.iter().find(|report| report["meta"]["rotated"] == true).expect("a rotation");
    assert_eq!(repeated["meta"]["interruptedIn"], "rotating", "{repeated}");
    let steps = ["recovered", "repeat", "rotate", "validate-pending", "promoted"];
    assert_eq!(repeated["meta"]["path"], json!(steps), "{repeated}");
    assert_in_force(&home, "killed");
}

#[test]
fn a_pair_that_ran_out_before_it_could_be_tested_is_rotated_itself() {
    let (home, cut) = (TestHome::new(), Cut::before(&homeserver().url("")));
    home.drop_plugin(&plugin("matrix"));
    let _daemon = home.serve();
    cut.lose("GET /_matrix/client/v3/account/whoami");
    let session = register("untested");
    let keys = format!("refresh_token={}\n", text(&session["refresh_token"]));
    add_matrix(&home, &cut.url, &keys, &["--every", "1s"]);
    // The homeserver answers its refresh and then nothing, for longer than the new pair's life.
    let pending = wait_until(SOON, "a new pair waits for its verdict", || {
        let reports = home.reports("ann");
        let path = |report: &&Value| report["meta"]["path"].to_string().contains("kept-pending");
        reports.iter().find(path).cloned()
    });
    let tests = cut.kept();
    let issued = pending["finishedAt"].as_str().expect("a time").to_owned();
    wait_until(SOON, "the new pair has run out", || {
        let now = http("GET", &homeserver().url("/_matrix/client/versions"), &[]);
        assert_eq!(now.status, 200);
        (seconds_since(&issued) > f64::from(ACCESS_TTL)).then_some(())
    });
    assert!(cut.kept() >= tests);
    cut.heal();
    wait_until(SOON, "the session lives again", || (rotations(&home, "ann") >= 1).then_some(()));
    let reports = home.reports("ann");
    let renewed = reports.iter().find(|report| report["meta"]["rotated"] == true).expect("a rotation");
    let steps = ["validate-pending", "renew-pending", "rotate", "validate-pending", "promoted"];
    assert_eq!(renewed["meta"]["path"], json!(steps), "{renewed}");
    assert_in_force(&home, "untested");
}

#[test]
fn a_matrix_device_that_was_signed_out_needs_a_human_who_is_told_what_to_do() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("matrix"));
    let _daemon = home.serve();
    let session = register("revoked");
    add_matrix(
        &home,
        &homeserver().url(""),
        &format!("refresh_token={}\n", text(&session["refresh_token"])),
        &["--rotate-every", "1s"],
    );
    wait_until(SOON, "five rotations are done", || (rotations(&home, "ann") >= 5).then_some(()));
    // Paused, so that the token that signs out is the one in force.
    home.run(&["credential", "pause", "ann"]).ok();
    wait_until(SOON, "no attempt is in flight", || (home.json(&["status"])["inFlight"] == 0).then_some(()));
    let token = exported(&home, "ann", "ACCESS_TOKEN");
    assert_eq!(matrix("POST", "logout", Some(&token), &json!({})).status, 200);
    let (verdict, words) = refused_rotation(&home, "ann");
    assert_eq!(verdict, "needs-human", "{words}");
    assert_eq!(
        words,
        "rotation was refused and the present secret is dead: the homeserver ended the session or its refresh \
         token: sign in again and import the new tokens (M_UNKNOWN_TOKEN: refresh token does not exist); hint: \
         `keywheel credential import` puts fresh secrets in force"
    );
    let report = home.reports("ann").pop().expect("a report");
    let path = ["rotate", "refused", "second-look"];
    assert_eq!(report["meta"]["path"], json!(path), "{report}");
    // What the person does then.
    let fresh = home.outside().join("fresh.env");
    let keys = format!("refresh_token={}\n", text(&sign_in("revoked")["refresh_token"]));
    std::fs::write(&fresh, keys).expect("a file");
    let rotated = rotations(&home, "ann");
    home.run(&["credential", "import", "ann", fresh.to_str().expect("UTF-8")]).ok();
    home.run(&["credential", "resume", "ann"]).ok();
    wait_until(SOON, "the imported session is rotated", || (rotations(&home, "ann") > rotated).then_some(()));
    assert_in_force(&home, "revoked");
}

#[test]
fn a_scheduled_look_at_a_deactivated_matrix_account_says_it_plainly() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("matrix"));
    let _daemon = home.serve();
    let session = register("deactivated");
    let (refresh_token, access_token) = (text(&session["refresh_token"]), text(&session["access_token"]));
    add_matrix(
        &home,
        &homeserver().url(""),
        &format!("refresh_token={refresh_token}\naccess_token={access_token}\n"),
        &["--every", "1s"],
    );
    home.wait_for_reports("ann", 1);
    let user = json!({ "type": "m.id.user", "user": "deactivated" });
    let auth = json!({ "type": "m.login.password", "identifier": user, "password": PASSWORD });
    let gone = matrix("POST", "account/deactivate", Some(&access_token), &json!({ "auth": auth }));
    assert_eq!(gone.status, 200, "{}", gone.body);
    let report = wait_until(SOON, "a look finds out", || {
        home.reports("ann").pop().filter(|report| report["meta"]["verdict"] == "invalid")
    });
    assert_eq!(
        report["message"],
        "the session was ended, signed out or never was: sign in again and import the new tokens (M_UNKNOWN_TOKEN: \
         Invalid access token passed.)"
    );
    assert_eq!(report["status"], "validation_failed");
    let shown = home.json(&["credential", "list", "--failing"]);
    assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
}

// JupyterHub

fn hub() -> &'static Peer {
    static STARTED: OnceLock<Peer> = OnceLock::new();
    STARTED.get_or_init(Peer::hub)
}

/// The hub's API as its administrator asks it.
fn operator(method: &str, path: &str, body: &Value) -> Answer {
    asked_hub(method, path, &text(&hub().ready["operator_token"]), body)
}

fn asked_hub(method: &str, path: &str, token: &str, body: &Value) -> Answer {
    let authorization = format!("Authorization: token {token}");
    http_with(method, &hub().url(&format!("/hub/api/{path}")), &[&authorization], &body.to_string())
}

/// A new user, and a first token made by hand.
fn new_user(user: &str, token: &Value) -> String {
    assert_eq!(operator("POST", &format!("users/{user}"), &json!({})).status, 201);
    let answer = operator("POST", &format!("users/{user}/tokens"), token);
    assert_eq!(answer.status, 201, "{}", answer.body);
    text(&answer.json()["token"])
}

/// Notes of a user's living tokens by id, in the order in which they were made.
fn living(user: &str) -> Vec<(String, String)> {
    let answer = operator("GET", &format!("users/{user}/tokens"), &json!({}));
    let tokens = answer.json()["api_tokens"].as_array().expect("a list").clone();
    let mut living: Vec<_> = tokens.iter().map(|token| (text(&token["id"]), text(&token["note"]))).collect();
    living.sort_by_key(|(id, _)| id[1..].parse::<u32>().expect("a number"));
    living
}

fn made_by_keywheel(user: &str) -> usize {
    living(user).iter().filter(|(_, note)| note.starts_with("Keywheel: ann, attempt ")).count()
}

fn user_of(token: &str) -> Answer {
    asked_hub("GET", "user", token, &json!({}))
}

fn add_hub(home: &TestHome, url: &str, token: &str, more: &[&str]) {
    let base_url = format!("base_url={url}");
    let arguments = [&["--set", base_url.as_str()], more].concat();
    home.add("ann", "jupyterhub", &format!("token={token}\n"), &arguments);
}

/// The token in force, which the hub must know; see `assert_in_force`.
fn assert_token_in_force(home: &TestHome, user: &str) {
    let mut tried = String::new();
    loop {
        let token = exported(home, "ann", "TOKEN");
        let answer = user_of(&token);
        if answer.status == 200 {
            return assert_eq!(answer.json()["name"], user);
        }
        assert_ne!(token, tried, "the token in force is dead: {}", answer.body);
        tried = token;
    }
}

#[test]
fn a_hub_token_lives_on_by_the_end_that_the_hub_states_and_leaves_no_heap() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("jupyterhub"));
    let daemon = home.serve();
    let first = new_user("expiring", &json!({ "note": "made by hand", "expires_in": 4 }));
    let strangers = operator(
        "POST",
        "users/expiring/tokens",
        &json!({ "note": "Keywheel: annabel, attempt 1, from a1", "expires_in": 600 }),
    );
    add_hub(&home, &hub().url(""), &first, &["--set", "expires_in=4s"]);
    // No cadence was asked for: each of these comes from `expires_at`.
    wait_until(SOON, "five rotations are done", || {
        assert_token_in_force(&home, "expiring");
        let count = made_by_keywheel("expiring");
        assert!(count <= 3, "the one before, the one in force, and one on its way: {:?}", living("expiring"));
        (rotations(&home, "ann") >= 5).then_some(())
    });
    let reports = home.reports("ann");
    assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
    // The first one ran out long ago, and what isn't ours was left alone.
    assert_eq!(user_of(&first).status, 403);
    assert_eq!(user_of(&text(&strangers.json()["token"])).status, 200);
    let shown = home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "expiring", "{shown}");

    // Nobody is there while it runs out, and without a living token nothing makes a new one.
    assert!(daemon.stop().success());
    let ended = exported(&home, "ann", "TOKEN");
    wait_until(SOON, "the token runs out", || (user_of(&ended).status == 403).then_some(()));
    let _daemon = home.serve();
    let report = wait_until(SOON, "the end is found out", || {
        home.reports("ann").pop().filter(|report| report["status"] != "success")
    });
    assert_eq!(report["meta"]["verdict"], "needs-human", "{report}");
}

#[test]
fn lost_answers_and_a_killed_daemon_leave_no_heap_of_hub_tokens() {
    let (home, cut) = (TestHome::new(), Cut::before(&hub().url("")));
    home.drop_plugin(&plugin("jupyterhub"));
    let mut daemon = home.serve();
    let first = new_user("lossy", &json!({ "note": "made by hand", "expires_in": 600 }));
    add_hub(&home, &cut.url, &first, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    let making = "POST /jupyter/hub/api/users/lossy/tokens";
    for lost in 1..=4 {
        cut.lose(making);
        home.run(&["credential", "rotate", "ann", "--now"]);
        assert_eq!(cut.kept(), lost);
        let last = home.reports("ann").pop().expect("a report");
        assert_eq!(last["meta"]["verdict"], "unknown", "{last}");
        // Each try deleted what the one before had left.
        assert_eq!(made_by_keywheel("lossy"), 1, "{:?}", living("lossy"));
    }
    cut.hang(making);
    let mut asking = start_rotation(&home);
    wait_until(SOON, "the hub has made a token that nobody gets", || (cut.kept() >= 5).then_some(()));
    daemon.kill_9();
    asking.wait().expect("the command ends");
    cut.heal();
    daemon = home.serve();
    wait_until(SOON, "the rotation was repeated", || (rotations(&home, "ann") >= 1).then_some(()));
    assert_eq!(made_by_keywheel("lossy"), 1, "{:?}", living("lossy"));
    assert_token_in_force(&home, "lossy");
    for rotation in 2..=5 {
        home.run(&["credential", "rotate", "ann", "--now"]).ok();
        assert_eq!(rotations(&home, "ann"), rotation);
        assert_eq!(made_by_keywheel("lossy"), 2, "the one before lives for its users: {:?}", living("lossy"));
        assert_token_in_force(&home, "lossy");
    }
    // Never one without our tag.
    assert_eq!(user_of(&first).status, 200);
    drop(daemon);
}

#[test]
fn a_hub_token_that_was_deleted_needs_a_human_who_is_told_what_to_do() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("jupyterhub"));
    let _daemon = home.serve();
    let first = new_user("revoked", &json!({ "note": "made by hand", "expires_in": 600 }));
    add_hub(&home, &hub().url(""), &first, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann", "--now"]).ok();
    let (in_force, note) = living("revoked").pop().expect("a token");
    assert!(note.starts_with("Keywheel: ann, attempt 2, from a"), "{note}");
    assert_eq!(operator("DELETE", &format!("users/revoked/tokens/{in_force}"), &json!({})).status, 204);
    let (verdict, words) = refused_rotation(&home, "ann");
    assert_eq!(verdict, "needs-human", "{words}");
    assert_eq!(
        words,
        "rotation was refused and the present secret is dead: the hub doesn't know the token: it expired, was \
         deleted, or its user was; make a new one on the hub's page Token and import it (no reason given); hint: \
         `keywheel credential import` puts fresh secrets in force"
    );
}

#[test]
fn a_hub_token_is_replaced_by_one_with_the_same_scopes_and_not_more() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("jupyterhub"));
    let _daemon = home.serve();
    let scopes = json!(["tokens!user", "read:users:name!user"]);
    let narrow = new_user("narrow", &json!({ "note": "made by hand", "scopes": scopes }));
    add_hub(&home, &hub().url(""), &narrow, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann", "--now"]).ok();
    let fresh = exported(&home, "ann", "TOKEN");
    assert_ne!(fresh, narrow);
    assert_eq!(user_of(&fresh).json()["scopes"], user_of(&narrow).json()["scopes"]);
    // A hub gives all of its user's scopes to a token that names none.
    let all = new_user("wide", &json!({ "note": "made by hand" }));
    let count = |token: &str| user_of(token).json()["scopes"].as_array().map(Vec::len);
    assert!(count(&fresh) < count(&all), "{:?} of {:?}", count(&fresh), count(&all));
}

#[test]
fn a_hub_token_that_may_make_none_is_alive_and_its_rotation_calls_a_human() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("jupyterhub"));
    let _daemon = home.serve();
    let reader = new_user("reader", &json!({ "note": "made by hand", "scopes": ["read:users:name!user"] }));
    add_hub(&home, &hub().url(""), &reader, &["--every", "1h"]);
    let report = home.wait_for_reports("ann", 1).swap_remove(0);
    assert_eq!(
        (&report["status"], &report["message"]),
        (&json!("success"), &json!("the token may not read when it expires"))
    );
    let (verdict, words) = refused_rotation(&home, "ann");
    assert_eq!(verdict, "needs-human");
    assert_eq!(
        words,
        "the token lives, but may not make and delete tokens: import one with the scope tokens!user, or only \
         validate this one (Action is not authorized with current scopes; requires any of [read:tokens])"
    );
}
