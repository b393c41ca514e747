//! The providers for Slack and Atlassian against services made from their documentation, under
//! the daemon, and the one for Google sessions against one that public projects described: kept
//! alive rotation after rotation, one answer lost, and everything revoked at the service, with
//! the words that an operator then reads.

use std::time::Duration;

use serde_json::Value;

use crate::harness::*;
use crate::services::atlassian::{self, Atlassian};
use crate::services::played::{Fake, Plays};
use crate::services::slack::{Kind, Slack};

/// A key's value as an export shows it.
fn exported(home: &TestHome, key: &str) -> String {
    let env = home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
    let line = env.lines().find(|line| line.contains(&format!("{key}="))).expect("the key is there");
    line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']).to_owned()
}

/// A report that isn't good, of a command that says so by its exit code.
#[track_caller]
fn refused(home: &TestHome, arguments: &[&str]) -> Value {
    let output = home.run(&[arguments, &["--json"]].concat());
    assert_eq!(output.code(), 1, "{output:?}");
    output.json()
}

#[track_caller]
fn assert_says(report: &Value, verdict: &str, words: &[&str]) {
    assert_eq!(report["meta"]["verdict"], verdict, "{report}");
    let message = report["message"].as_str().expect("a message");
    for part in words {
        assert!(message.contains(part), "`{part}` in {message}");
    }
}

/// Waits for five rotations on schedule, then for quiet.
fn five_rotations<S: Plays>(home: &TestHome, service: &Fake<S>, rotations: impl Fn(&mut S) -> u32) {
    wait_until(SOON, "five rotations are done", || (service.with(|s, _| rotations(s)) >= 5).then_some(()));
    home.run(&["credential", "pause", "ann"]).ok();
    wait_until(SOON, "no attempt is in flight", || (home.json(&["status"])["inFlight"] == 0).then_some(()));
    let reports = home.reports("ann");
    // The first look finds no access token yet, which is no fault; from then on all is well.
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert!(reports.iter().filter(|report| report["meta"]["rotated"] == true).count() >= 5, "{reports:?}");
}

fn slack(home: &TestHome, kind: Kind, more: &[&str]) -> (Fake<Slack>, (String, String)) {
    let service = Fake::start(Slack::new());
    let pair = service.with(|slack, now| slack.install(kind, "T01", "U01", now));
    home.drop_plugin(&plugin("slack"));
    let (url, client) = (
        format!("api_url={}", service.url),
        service.with(|slack, _| format!("client_id={}", slack.client_id)),
    );
    let mut arguments = vec!["--set", &url];
    if kind == Kind::Config {
        arguments.extend(["--method", "config"]);
    } else {
        arguments.extend(["--set", &client]);
    }
    arguments.extend(more);
    let secret = match kind {
        Kind::Config => String::new(),
        _ => service.with(|slack, _| format!("client_secret={}\n", slack.client_secret)),
    };
    home.add("ann", "slack", &format!("refresh_token={}\n{secret}", pair.1), &arguments);
    (service, pair)
}

#[test]
fn slack_tokens_are_kept_alive_and_no_refresh_token_comes_twice() {
    for kind in [Kind::Bot, Kind::Config] {
        let home = TestHome::new();
        let _daemon = home.serve();
        let (service, _) = slack(&home, kind, &["--every", "1s", "--rotate-every", "1s"]);
        five_rotations(&home, &service, |slack| slack.rotations);
        let token = exported(&home, "ACCESS_TOKEN");
        service.with(|slack, now| {
            assert_eq!(slack.reused, 0);
            assert!(slack.accepts(&token, now), "what is in force is what works");
        });
        assert_eq!(home.json(&["credential", "show", "ann"])["credential"]["identity"], "T01/U01");
    }
}

#[test]
fn a_slack_token_that_ran_out_is_renewed_by_its_refresh_token() {
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::User, &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.pass(Duration::from_secs(13 * 3_600));
    let report = refused(&home, &["credential", "validate", "ann"]);
    assert_says(&report, "unknown", &["token_expired", "says nothing of the refresh token"]);
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!(
        (&report["status"], service.with(|slack, _| slack.reused)),
        (&"success".into(), 0),
        "{report}"
    );
}

#[test]
fn a_lost_answer_of_slack_calls_a_human_and_repeats_nothing() {
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::Bot, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let before = exported(&home, "ACCESS_TOKEN");
    service.lose_next_answer("/api/oauth.v2.access");
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["whether it spent the secret can't be seen", "rotate --now"]);
    // Two rotations at Slack, one heard; the refresh token in force is spent, and isn't sent again.
    let again = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&again, "needs-human", &["whether it spent the secret can't be seen"]);
    assert_eq!(service.count("/api/oauth.v2.access"), 2);
    assert_eq!(exported(&home, "ACCESS_TOKEN"), before, "the former token works on, and stays in force");
    service.with(|slack, now| {
        assert_eq!((slack.rotations, slack.reused), (2, 0));
        assert!(slack.accepts(&before, now));
    });
    // A person insists, and Slack says what became of it.
    let insisted = refused(&home, &["credential", "rotate", "ann", "--now"]);
    assert_says(&insisted, "needs-human", &["invalid_refresh_token", "install the app again"]);
    assert_eq!(service.with(|slack, _| slack.reused), 1);
    // The way out of it, as the message says.
    let (access, refresh) = service.with(|slack, now| slack.install(Kind::Bot, "T01", "U01", now));
    let secret = service.with(|slack, _| slack.client_secret.clone());
    let keys = format!("access_token={access}\nrefresh_token={refresh}\nclient_secret={secret}\n");
    let file = home.outside().join("tokens");
    std::fs::write(&file, keys).expect("a file");
    home.run(&["credential", "import", "ann", file.to_str().expect("UTF-8")]).ok();
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success");
}

#[test]
fn an_app_that_was_removed_from_slack_is_told_from_a_token_that_was_revoked() {
    for (kind, said) in [(Kind::Bot, "account_inactive"), (Kind::User, "token_revoked")] {
        let home = TestHome::new();
        let (service, _) = slack(&home, kind, &[]);
        home.json(&["credential", "rotate", "ann"]);
        service.with(|slack, _| slack.remove_app("T01"));
        let report = refused(&home, &["credential", "validate", "ann"]);
        assert_says(&report, "invalid", &[said, "install the app again and import its new tokens"]);
        assert_eq!(report["status"], "validation_failed", "{report}");
        let report = refused(&home, &["credential", "rotate", "ann"]);
        assert_says(&report, "invalid", &["install the app again"]);
    }
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::User, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let token = exported(&home, "ACCESS_TOKEN");
    service.with(|slack, _| slack.revoke(&token));
    assert_says(&refused(&home, &["credential", "validate", "ann"]), "invalid", &["token_revoked"]);
}

fn atlassian(home: &TestHome, scopes: &[&str], more: &[&str]) -> Fake<Atlassian> {
    let service = Fake::start(Atlassian::new());
    let (_, refresh) = service.with(|atlassian, now| atlassian.consent("557058:ann", scopes, now));
    home.drop_plugin(&plugin("atlassian"));
    let (auth, api) = (format!("auth_url={}", service.url), format!("api_url={}", service.url));
    let arguments = [&["--set", &auth, "--set", &api, "--set", "client_id=the-app"], more].concat();
    let secret = service.with(|atlassian, _| atlassian.client_secret.clone());
    home.add("ann", "atlassian", &format!("refresh_token={refresh}\nclient_secret={secret}\n"), &arguments);
    service
}

#[test]
fn atlassian_tokens_are_kept_alive_with_and_without_the_scope_that_names_the_account() {
    for (scopes, identity) in [
        (&["offline_access", "read:me"][..], Value::from("557058:ann")),
        (&["offline_access", "read:jira-work"], Value::Null),
    ] {
        let home = TestHome::new();
        let _daemon = home.serve();
        let service = atlassian(&home, scopes, &["--every", "1s", "--rotate-every", "1s"]);
        five_rotations(&home, &service, |atlassian| atlassian.rotations);
        let token = exported(&home, "ACCESS_TOKEN");
        service.with(|atlassian, now| {
            assert_eq!(atlassian.breaches, 0);
            assert!(atlassian.accepts(&token, now), "what is in force is what works");
        });
        assert_eq!(home.json(&["credential", "show", "ann"])["credential"]["identity"], identity);
    }
}

#[test]
fn a_lost_answer_of_atlassian_is_repeated_within_its_ten_minutes_by_itself() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.lose_next_answer("/oauth/token");
    assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success");
    assert_eq!(service.with(|atlassian, _| (atlassian.rotations, atlassian.breaches)), (3, 0));
    let token = exported(&home, "ACCESS_TOKEN");
    assert!(service.with(|atlassian, now| atlassian.accepts(&token, now)));
}

#[test]
fn an_answer_of_atlassian_that_is_lost_again_calls_a_human_and_after_ten_minutes_it_is_too_late() {
    for late in [false, true] {
        let home = TestHome::new();
        let service = atlassian(&home, &["offline_access", "read:me"], &[]);
        home.json(&["credential", "rotate", "ann"]);
        service.lose_next_answer("/oauth/token");
        service.lose_next_answer("/oauth/token");
        let report = refused(&home, &["credential", "rotate", "ann"]);
        assert_says(&report, "needs-human", &["whether it spent the secret can't be seen", "rotate --now"]);
        let asked = service.count("/oauth/token");
        // Without a person's word it isn't tried again, for nobody knows how late it will be.
        refused(&home, &["credential", "rotate", "ann"]);
        assert_eq!(service.count("/oauth/token"), asked);
        if late {
            service.pass(atlassian::LEEWAY + Duration::from_secs(1));
            let insisted = refused(&home, &["credential", "rotate", "ann", "--now"]);
            assert_says(&insisted, "invalid", &["invalid_grant", "consent again and import the new tokens"]);
            assert_eq!(service.with(|atlassian, _| atlassian.breaches), 1);
        } else {
            assert_eq!(home.json(&["credential", "rotate", "ann", "--now"])["status"], "success");
            assert_eq!(service.with(|atlassian, _| atlassian.breaches), 0);
        }
    }
}

#[test]
fn where_a_lost_exchange_ended_the_former_access_token_a_human_is_called() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.with(|atlassian, _| atlassian.ends_former_tokens = true);
    service.lose_next_answer("/oauth/token");
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["the present secret is dead", "rotate it once by hand"]);
    assert_eq!(home.json(&["credential", "rotate", "ann", "--now"])["status"], "success");
    assert_eq!(service.with(|atlassian, _| atlassian.breaches), 0);
}

#[test]
fn a_consent_that_was_withdrawn_and_one_that_ran_out_ask_for_a_new_one() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.with(|atlassian, _| atlassian.withdraw("557058:ann"));
    let report = refused(&home, &["credential", "validate", "ann"]);
    assert_says(&report, "invalid", &["answers 401", "consent again and import the new tokens"]);
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "invalid", &["Unknown or invalid refresh token", "consent again"]);

    for (gone_by, ends) in [(atlassian::INACTIVITY, true), (Duration::from_secs(89 * 86_400), false)] {
        let home = TestHome::new();
        let service = atlassian(&home, &["offline_access", "read:me"], &[]);
        home.json(&["credential", "rotate", "ann"]);
        service.pass(gone_by);
        match ends {
            true => {
                let report = refused(&home, &["credential", "rotate", "ann"]);
                assert_says(&report, "invalid", &["unused for 90 days"]);
            }
            false => assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success"),
        }
    }
}

#[test]
fn a_wrong_client_is_the_operators_to_mend_and_no_dead_token() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    service.with(|atlassian, _| atlassian.client_secret = random_secret());
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["client_secret", "developer console"]);

    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::Bot, &[]);
    service.with(|slack, _| slack.client_secret = random_secret());
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["bad_client_secret", "Basic Information"]);
}

#[test]
fn tokens_of_another_account_are_never_taken_over_and_both_accounts_are_named() {
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::User, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let (other, secret) = service
        .with(|slack, now| (slack.install(Kind::User, "T02", "U09", now), slack.client_secret.clone()));
    let file = home.outside().join("tokens");
    let keys = format!("access_token={}\nrefresh_token={}\nclient_secret={secret}\n", other.0, other.1);
    std::fs::write(&file, keys).expect("a file");
    let import = ["credential", "import", "ann", file.to_str().expect("UTF-8")];
    home.run(&import).ok();
    let report = refused(&home, &["credential", "validate", "ann"]);
    assert_says(
        &report,
        "needs-human",
        &["account T02/U09", "pinned to T01/U01", "hint: import the right account"],
    );
    assert_eq!(service.with(|slack, _| slack.rotations), 1, "its refresh token isn't spent either");
    // Whoever means it says so.
    home.run(&[&import[..], &["--other-account"]].concat()).ok();
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.json(&["credential", "show", "ann"])["credential"]["identity"], "T02/U09");
}

#[test]
fn addresses_with_a_path_or_a_password_are_refused_before_a_secret_is_asked_for() {
    let home = TestHome::new();
    for service in ["slack", "atlassian"] {
        home.drop_plugin(&plugin(service));
        for (value, said) in [
            ("https://slack.com/api", "a url with the path \"/api\""),
            ("https://ann:made-up@slack.com", "a user name or password"),
            ("slack.com", "is not an absolute url"),
        ] {
            let setting = format!("api_url={value}");
            let add = [
                "credential",
                "add",
                "ann",
                "--service",
                service,
                "--set",
                "client_id=1.2",
                "--set",
                &setting,
            ];
            let refused = home.run_with_input(&add, "");
            assert_eq!(refused.code(), 65, "{}", refused.stderr);
            assert!(
                refused.stderr.contains("setting \"api_url\"") && refused.stderr.contains(said),
                "{}",
                refused.stderr
            );
            assert!(!refused.stderr.contains("made-up"), "{}", refused.stderr);
        }
    }
    assert_eq!(home.json(&["credential", "list"]), serde_json::json!([]));
}
