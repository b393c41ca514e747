//! The operator's own hand: bringing a secret back, rotating now or only seeing what that would
//! do, new secrets for another account, and what happened so far.

use serde_json::{Value, json};

use crate::credentials::{http_answer, says};
use crate::harness::*;

/// A home with a daemon and a credential that was validated once.
fn home_with(service: &Service, more: &[&str]) -> (TestHome, Daemon) {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve();
    home.add_session("ann", "well-behaved", service, &[&["--every", "12h"], more].concat());
    home.wait_for_reports("ann", 1);
    (home, daemon)
}

fn session(home: &TestHome) -> String {
    let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    exported["session"]["value"].as_str().expect("a value").to_owned()
}

/// Generation and state, newest first.
fn generations(home: &TestHome) -> Vec<(u64, String)> {
    let shown = home.json(&["credential", "show", "ann"]);
    let list = shown["generations"].as_array().expect("an array").clone();
    let pair = |row: &Value| {
        (row["generation"].as_u64().expect("a number"), row["state"].as_str().expect("a word").to_owned())
    };
    list.iter().map(pair).collect()
}

fn states(pairs: &[(u64, &str)]) -> Vec<(u64, String)> {
    pairs.iter().map(|(generation, state)| (*generation, (*state).to_owned())).collect()
}

#[test]
fn a_rollback_brings_an_earlier_secret_back_as_a_new_generation_and_validates_it_first() {
    let service = Service::start(OldSession::Stays);
    let (home, daemon) = home_with(&service, &[]);
    let first = session(&home);
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_ne!(session(&home), first);
    let back = home.json(&["credential", "rollback", "ann", "--yes"]);
    assert_eq!(
        (&back["restored"], &back["generation"], &back["next"]),
        (&json!(1), &json!(3), &json!("validate"))
    );
    assert_eq!(session(&home), first);
    assert_eq!(generations(&home), states(&[(3, "current"), (2, "previous"), (1, "previous")]));
    let reports = home.wait_for_reports("ann", 3);
    assert_eq!(
        (&reports[2]["meta"]["action"], &reports[2]["status"]),
        (&json!("validate"), &json!("success"))
    );
    assert_eq!(service.count("/rotate"), 1, "nothing rotates by itself");
    let history = home.json(&["plugin", "history", "well-behaved"]);
    let noted = history.as_array().expect("an array").iter().find(|row| row["action"] == "rolled-back");
    let detail = &noted.expect("an audit row")["detail"];
    assert_eq!(
        (&detail["restored"], &detail["replaced"], &detail["generation"]),
        (&json!(1), &json!(2), &json!(3))
    );
    // And forth again, without a daemon, to the one that is named.
    assert!(daemon.stop().success());
    home.run(&["credential", "rollback", "ann", "--to", "2", "--yes"]).ok();
    assert_eq!(session(&home), service.issued()[1]);
    assert_eq!(
        generations(&home),
        states(&[(4, "current"), (3, "previous"), (2, "previous"), (1, "previous")])
    );
    home.run(&["credential", "validate", "ann"]).ok();
    let shown = home.run(&["credential", "show", "ann"]).ok().stdout;
    for words in
        ["brought back from 2", "brought back from 1", "issued in attempt 2", "imported", "not pinned yet"]
    {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert!(!home.printed().contains(&service.issued()[0].repeat(2)));
}

#[test]
fn a_rollback_says_its_risk_and_does_nothing_where_nobody_can_be_asked() {
    let service = Service::start(OldSession::Dies);
    let (home, _daemon) = home_with(&service, &["--set", "commit_class=burn-on-issue"]);
    home.run(&["credential", "rotate", "ann"]).ok();
    let before = generations(&home);
    let unasked = home.run(&["credential", "rollback", "ann"]);
    assert_eq!(unasked.code(), 2, "{unasked:?}");
    for words in
        ["may revoke every token", "burn-on-issue", "hint: `keywheel credential rollback ann --to 1 --yes`"]
    {
        assert!(unasked.stderr.contains(words), "{words}\n{unasked:?}");
    }
    assert_eq!(generations(&home), before);
    // The old one is dead, and that is all that happens: no rotation follows by itself.
    home.run(&["credential", "rollback", "ann", "--yes"]).ok();
    let reports = home.wait_for_reports("ann", 3);
    assert_eq!(reports[2]["meta"]["verdict"], "invalid", "{}", reports[2]);
    assert_eq!(service.count("/rotate"), 1);
    let row = home.json(&["credential", "show", "ann"])["credential"]["monitor"].clone();
    assert_eq!(row["nextAction"], "validate", "{row}");
}

#[test]
fn what_cannot_be_brought_back_is_refused_with_what_can() {
    let service = Service::start(OldSession::Stays);
    let (home, _daemon) = home_with(&service, &[]);
    let alone = home.run(&["credential", "rollback", "ann", "--yes"]);
    assert_eq!(alone.code(), 65, "{alone:?}");
    assert!(alone.stderr.contains("has no earlier generation: nothing can be restored"), "{alone:?}");
    for _ in 0..5 {
        home.run(&["credential", "rotate", "ann"]).ok();
    }
    for (to, why) in
        [("6", "is the one in force"), ("1", "is not there, or was kept no longer"), ("9", "is not there")]
    {
        let refused = home.run(&["credential", "rollback", "ann", "--to", to, "--yes"]);
        assert_eq!(refused.code(), 65, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
        assert!(refused.stderr.contains("what can be restored: 5, 4, 3"), "{refused:?}");
    }
    let nobody = home.run(&["credential", "rollback", "nobody", "--yes"]);
    assert_eq!(nobody.code(), 3, "{nobody:?}");
    // Under an open attempt nothing is brought back.
    service.hold("/check");
    std::thread::scope(|scope| {
        let validating = scope.spawn(|| home.run(&["credential", "validate", "ann"]));
        service.wait_held("/check");
        let busy = home.run(&["credential", "rollback", "ann", "--yes"]);
        assert_eq!(busy.code(), 75, "{busy:?}");
        assert!(busy.stderr.contains("busy with attempt"), "{busy:?}");
        service.release("/check");
        validating.join().expect("the command ends").ok();
    });
}

#[test]
fn a_dropped_generation_has_nothing_to_bring_back() {
    // Issues a session that it then doesn't know.
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &["--every", "12h"]);
    home.wait_for_reports("ann", 1);
    service.hold("/rotate");
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| home.run(&["credential", "rotate", "ann"]));
        service.wait_held("/rotate");
        service.forget(&service.issued()[1]);
        service.release("/rotate");
        assert_eq!(rotating.join().expect("the command ends").code(), 4);
    });
    assert_eq!(generations(&home), states(&[(2, "dropped"), (1, "current")]));
    let refused = home.run(&["credential", "rollback", "ann", "--to", "2", "--yes"]);
    assert_eq!(refused.code(), 65, "{refused:?}");
    assert!(
        refused.stderr.contains("was dropped, and its keys with it; nothing can be restored"),
        "{refused:?}"
    );
}

#[test]
fn a_plan_shows_what_would_be_sent_masked_and_changes_nothing_with_and_without_a_daemon() {
    let service = Service::start(OldSession::Dies);
    let (home, daemon) = home_with(&service, &["--set", "commit_class=burn-on-issue"]);
    let before = (home.json(&["credential", "show", "ann"]), home.reports("ann"), service.count("/check"));
    let check = || {
        let plan = home.json(&["credential", "rotate", "ann", "--plan"]);
        assert_eq!((&plan["method"], &plan["commitClass"]), (&json!("refresh"), &json!("burn-on-issue")));
        assert!(
            plan["ifAnswerLost"].as_str().is_some_and(|cost| cost.contains("a person must sign in again"))
        );
        let request = &plan["request"];
        assert_eq!(
            (&request["method"], &request["url"]),
            (&json!("POST"), &json!(format!("{}/rotate", service.url)))
        );
        assert_eq!(
            (&request["headers"], &request["refused"]),
            (&json!([["cookie", "session={session}"]]), &Value::Null)
        );
        assert_eq!(request["captures"], json!(["session"]));
        assert_eq!((&plan["fromGeneration"], &plan["nextGeneration"]), (&json!(1), &json!(2)));
        assert!(plan["nextDueAt"].is_string() && plan["rests"].is_null(), "{plan}");
        let words = home.run(&["credential", "rotate", "ann", "--plan"]).ok().stdout;
        for said in [
            "Nothing is sent",
            "cookie: session={session}",
            "permissions     allow it",
            "costs the credential",
        ] {
            assert!(words.contains(said), "{said}\n{words}");
        }
    };
    check();
    assert!(daemon.stop().success());
    check();
    let after = (home.json(&["credential", "show", "ann"]), home.reports("ann"), service.count("/check"));
    assert_eq!(after, before);
    assert_eq!(service.count("/rotate"), 0, "nothing was sent");
    assert!(service.is_alive(&service.issued()[0]));
    assert!(!home.printed().contains(&service.issued()[0]));
}

#[test]
fn a_plan_of_a_token_shows_the_form_and_where_it_may_not_go() {
    let (home, secret) = (TestHome::new(), random_secret());
    home.drop_plugin(&plugin("oauth2-refresh"));
    let settings = ["--set", "token_url=https://id.example/token", "--set", "client_id=keywheel"];
    home.add(
        "ann",
        "oauth2-refresh",
        &format!("refresh_token={secret}"),
        &[&settings[..], &["--set", "client_auth=none"]].concat(),
    );
    let plan = home.json(&["credential", "rotate", "ann", "--plan"]);
    let request = &plan["request"];
    assert_eq!(request["url"], "https://id.example/token", "{plan}");
    let body = request["body"].as_str().expect("a body");
    assert!(body.contains("grant_type=refresh_token&refresh_token={refresh_token|form}"), "{body}");
    assert_eq!(request["captures"], json!(["access_token", "refresh_token"]));
    assert_eq!(request["refused"], Value::Null);
    // What the plugin says instead of asking is told, and a secret that is missing as well.
    home.add("ben", "oauth2-refresh", &format!("refresh_token={secret}"), &settings);
    let plan = home.json(&["credential", "rotate", "ben", "--plan"]);
    assert!(plan["request"].is_null(), "{plan}");
    assert!(plan["instead"].as_str().is_some_and(|said| said.contains("client_secret")), "{plan}");
    assert!(!home.printed().contains(&secret));
}

#[test]
fn a_rotation_waits_for_a_pause_and_for_what_the_service_asked_and_now_insists() {
    let service = Service::start(OldSession::Stays);
    let (home, _daemon) = home_with(&service, &[]);
    home.run(&["credential", "pause", "ann"]).ok();
    let rests = home.run(&["credential", "rotate", "ann"]);
    assert_eq!(rests.code(), 75, "{rests:?}");
    assert!(rests.stderr.contains("is paused; hint: --now"), "{rests:?}");
    assert_eq!(home.json(&["credential", "rotate", "ann", "--plan"])["rests"], "it is paused");
    assert_eq!((service.count("/rotate"), home.reports("ann").len()), (0, 1));
    let rotated = home.json(&["credential", "rotate", "ann", "--now"]);
    assert_eq!(rotated["meta"]["rotated"], true, "{rotated}");

    let busy = says(http_answer("429 Too Many Requests", "application/json", "Retry-After: 3600\r\n", "{}"));
    home.drop_plugin(&plugin("http-session"));
    home.add(
        "ben",
        "http-session",
        "session=made-up",
        &["--set", &format!("base_url={busy}"), "--every", "1s"],
    );
    home.wait_for_reports("ben", 1);
    let rests = home.run(&["credential", "rotate", "ben"]);
    assert_eq!(rests.code(), 75, "{rests:?}");
    assert!(rests.stderr.contains("its service asked for that; hint: --now"), "{rests:?}");
    assert_eq!(home.reports("ben").len(), 1, "nothing was asked");
    assert_eq!(home.run(&["credential", "rotate", "ben", "--now"]).code(), 4);
    assert_eq!(home.reports("ben").len(), 2);
    let both = home.run(&["credential", "rotate", "ben", "--now", "--plan"]);
    assert_eq!(both.code(), 2, "{both:?}");
}

#[test]
fn an_account_is_pinned_from_the_start_and_new_secrets_may_be_of_another_only_if_said_so() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("oauth2-refresh"));
    let names = says(http_answer("200 OK", "application/json", "", r#"{"sub":"bob"}"#));
    let url = format!("validate_url={names}/me");
    let token_url = format!("token_url={names}/token");
    let keys = "access_token=made-up\nrefresh_token=made-up";
    let settings =
        ["--set", &token_url, "--set", "client_id=keywheel", "--set", "client_auth=none", "--set", &url];
    home.add("ann", "oauth2-refresh", keys, &[&settings[..], &["--account", "ann@shop"]].concat());
    let identity = || home.json(&["credential", "show", "ann"])["credential"]["identity"].clone();
    assert_eq!(identity(), "ann@shop");
    let validated = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(validated.json()["meta"]["verdict"], "needs-human", "{validated:?}");
    assert!(
        validated.stdout.contains("the service says account bob, this credential was pinned to ann@shop")
    );

    let file = home.outside().join("keys");
    std::fs::write(&file, keys).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let same = home.run(&["credential", "import", "ann", file]).ok();
    assert!(same.stdout.contains("validated next, and not rotated before that says so"), "{same:?}");
    assert_eq!(identity(), "ann@shop");
    let next = || home.json(&["credential", "show", "ann"])["credential"]["monitor"]["nextAction"].clone();
    assert_eq!(next(), "validate");
    assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 1);

    home.run(&["credential", "import", "ann", file, "--other-account"]).ok();
    assert_eq!((identity(), next()), (Value::Null, json!("validate")));
    home.run(&["credential", "validate", "ann"]).ok();
    assert_eq!(identity(), "bob");
    for account in ["", "two\nlines"] {
        let arguments = [
            &["credential", "add", "cam", "--service", "oauth2-refresh", "--account", account][..],
            &settings,
        ]
        .concat();
        let refused = home.run_with_input(&arguments, keys);
        assert_eq!(refused.code(), 65, "{refused:?}");
    }
}

#[test]
fn history_tells_each_attempt_and_pages_by_cursor_as_the_list_of_reports_does() {
    let service = Service::start(OldSession::Stays);
    let (home, _daemon) = home_with(&service, &[]);
    home.run(&["credential", "rotate", "ann"]).ok();
    for _ in 0..3 {
        home.run(&["credential", "validate", "ann"]).ok();
    }
    let all = home.json(&["credential", "history", "ann"]);
    let all = all.as_array().expect("an array");
    assert_eq!(all.len(), 5);
    for command in [
        &["credential", "history", "ann"][..],
        &["reports", "list", "--credential", "ann"],
        &["reports", "list"],
    ] {
        let (mut paged, mut before) = (Vec::new(), String::from("999999"));
        loop {
            let page = home.json(&[command, &["--limit", "2", "--before", &before]].concat());
            let page = page.as_array().expect("an array").clone();
            let Some(last) = page.last() else { break };
            before = last["id"].to_string();
            paged.extend(page);
        }
        assert_eq!(paged, *all, "{command:?}");
    }
    let shown = home.run(&["credential", "history", "ann", "--limit", "4"]).ok();
    for words in ["rotate", "valid", "2 in force", "rotate › validate-pending › promoted"] {
        assert!(shown.stdout.contains(words), "{words}\n{shown:?}");
    }
    assert!(shown.stderr.contains("older ones: --before"), "{shown:?}");
    home.run(&["credential", "remove", "ann"]).ok();
    assert_eq!(
        home.json(&["credential", "history", "ann"]).as_array().map(Vec::len),
        Some(5),
        "it outlives it"
    );
    assert_eq!(home.run(&["credential", "history", "nobody"]).code(), 3);
}

#[test]
fn the_failing_list_holds_what_fails_and_nothing_else() {
    let service = Service::start(OldSession::Stays);
    let (home, _daemon) = home_with(&service, &[]);
    let failing = || {
        let list = home.json(&["credential", "list", "--failing"]);
        let ids = list.as_array().expect("an array").iter().map(|row| row["credentialId"].clone());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(failing(), [] as [Value; 0]);
    for id in ["ben", "cam"] {
        let url = format!("base_url={}", service.url);
        home.add(id, "well-behaved", "session=made-up", &["--set", &url, "--every", "12h"]);
        home.wait_for_reports(id, 1);
    }
    let mut found = failing();
    found.sort_by_key(Value::to_string);
    assert_eq!(found, ["ben", "cam"]);
    let some = home.run(&["credential", "list", "--failing", "--limit", "1"]).ok();
    assert!(some.stderr.contains("1 of 2 that fail"), "{some:?}");
    assert_eq!(home.json(&["credential", "list", "--failing", "--service", "other"]), json!([]));
}

#[test]
fn a_made_up_secret_must_not_be_called_valid_and_a_provider_that_does_is_found_out() {
    let service = Service::start(OldSession::Stays);
    let (home, _daemon) = home_with(&service, &[]);
    let passed = home.json(&["credential", "self-test", "ann"]);
    assert_eq!(
        (&passed["claimed"], &passed["verdict"], &passed["answer"]),
        (&json!("invalid"), &json!("invalid"), &json!("401"))
    );
    home.drop_plugin(&guest("believes_every_answer"));
    home.wait_for_plugin("believes_every_answer.wasm", "active");
    let held = home.add_session("bob", "believes-every-answer", &service, &["--every", "12h"]);
    home.wait_for_reports("bob", 1);
    let asked = service.count("/check");
    let found_out = home.run(&["credential", "self-test", "bob"]);
    assert_eq!(found_out.code(), 65, "{found_out:?}");
    assert!(found_out.stderr.contains("a made-up secret is called valid"), "{found_out:?}");
    assert_eq!(service.count("/check"), asked + 1);
    // It wrote nothing, and the real session is where it was.
    assert_eq!((home.reports("ann").len(), home.reports("bob").len()), (1, 1));
    assert!(service.is_alive(&held));
    let unheard = home.run(&["credential", "self-test", "nobody"]);
    assert_eq!(unheard.code(), 3, "{unheard:?}");
}

#[test]
fn a_service_that_does_not_answer_leaves_the_self_test_inconclusive() {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    let nobody = ["--set", "base_url=http://127.0.0.1:9", "--every", "12h"];
    home.add("ann", "well-behaved", &format!("session={}", random_secret()), &nobody);
    let unclear = home.run(&["credential", "self-test", "ann"]);
    assert_eq!(unclear.code(), 4, "{unclear:?}");
    assert!(unclear.stderr.contains("inconclusive"), "{unclear:?}");
}
