//! The providers for Slack and Atlassian against services made from their documentation, under
//! the daemon, and the one for Google sessions, whose addresses are fixed, in the conformance kit
//! against what public projects found: kept
//! alive rotation after rotation, one answer lost, and everything revoked at the service, with
//! the words that an operator then reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Method;
use keywheel::credential::Secret;
use keywheel::kit::fixture::{Given, Which};
use keywheel::kit::{Case, Kit, Options, Run, Service};
use keywheel::protocol::HttpError;
use serde_json::Value;

use crate::harness::*;
use crate::services::atlassian::{self, Atlassian};
use crate::services::fake::{Fake, Loss, Rules};
use crate::services::google::{self, Google};
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
    let report = output.json();
    let code = if report["meta"]["verdict"] == "unknown" { 4 } else { 1 };
    assert_eq!(output.code(), code, "{output:?}");
    report
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
fn five_rotations<S: Rules>(home: &TestHome, service: &Fake<S>, rotations: impl Fn(&mut S) -> u32) {
    wait_until(SOON, "five rotations are done", || (service.with(|s| rotations(s)) >= 5).then_some(()));
    home.run(&["credential", "pause", "ann"]).ok();
    wait_until(SOON, "no attempt is in flight", || (home.json(&["status"])["inFlight"] == 0).then_some(()));
    let reports = home.reports("ann");
    // The first look finds no access token yet, which is no fault; from then on all is well.
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert!(reports.iter().filter(|report| report["meta"]["rotated"] == true).count() >= 5, "{reports:?}");
}

fn slack(home: &TestHome, kind: Kind, more: &[&str]) -> (Fake<Slack>, (String, String)) {
    let service = Fake::start(Slack::new());
    let now = service.now();
    let pair = service.with(|slack| slack.install(kind, "T01", "U01", now));
    home.drop_plugin(&plugin("slack"));
    let (url, client) =
        (format!("api_url={}", service.url), service.with(|slack| format!("client_id={}", slack.client_id)));
    let mut arguments = vec!["--set", &url];
    if kind == Kind::Config {
        arguments.extend(["--method", "config"]);
    } else {
        arguments.extend(["--set", &client]);
    }
    arguments.extend(more);
    let secret = match kind {
        Kind::Config => String::new(),
        _ => service.with(|slack| format!("client_secret={}\n", slack.client_secret)),
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
        let now = service.now();
        service.with(|slack| {
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
    service.put_clock_ahead(Duration::from_secs(13 * 3_600));
    let report = refused(&home, &["credential", "validate", "ann"]);
    assert_says(&report, "unknown", &["token_expired", "says nothing of the refresh token"]);
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!((&report["status"], service.with(|slack| slack.reused)), (&"success".into(), 0), "{report}");
}

#[test]
fn a_lost_answer_of_slack_calls_a_human_and_repeats_nothing() {
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::Bot, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let before = exported(&home, "ACCESS_TOKEN");
    service.lose_next(Loss::OnTheWayBack, Method::POST, "/api/oauth.v2.access");
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["whether it spent the secret can't be seen", "rotate --now"]);
    // Two rotations at Slack, one heard; the refresh token in force is spent, and isn't sent again.
    let again = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&again, "needs-human", &["whether it spent the secret can't be seen"]);
    assert_eq!(service.count(&Method::POST, "/api/oauth.v2.access"), 2);
    assert_eq!(exported(&home, "ACCESS_TOKEN"), before, "the former token works on, and stays in force");
    let now = service.now();
    service.with(|slack| {
        assert_eq!((slack.rotations, slack.reused), (2, 0));
        assert!(slack.accepts(&before, now));
    });
    // A person insists, and Slack says what became of it.
    let insisted = refused(&home, &["credential", "rotate", "ann", "--now"]);
    assert_says(&insisted, "needs-human", &["invalid_refresh_token", "install the app again"]);
    assert_eq!(service.with(|slack| slack.reused), 1);
    // The way out of it, as the message says.
    let now = service.now();
    let (access, refresh) = service.with(|slack| slack.install(Kind::Bot, "T01", "U01", now));
    let secret = service.with(|slack| slack.client_secret.clone());
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
        service.with(|slack| slack.remove_app("T01"));
        let report = refused(&home, &["credential", "validate", "ann"]);
        assert_says(&report, "invalid", &[said, "install the app again and import its new tokens"]);
        assert_eq!(report["status"], "validation_failed", "{report}");
        let report = refused(&home, &["credential", "rotate", "ann"]);
        assert_says(&report, "needs-human", &["rotation was refused", "install the app again"]);
    }
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::User, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let token = exported(&home, "ACCESS_TOKEN");
    service.with(|slack| slack.revoke(&token));
    assert_says(&refused(&home, &["credential", "validate", "ann"]), "invalid", &["token_revoked"]);
}

fn atlassian(home: &TestHome, scopes: &[&str], more: &[&str]) -> Fake<Atlassian> {
    let service = Fake::start(Atlassian::new());
    let now = service.now();
    let (_, refresh) = service.with(|atlassian| atlassian.consent("557058:ann", scopes, now));
    home.drop_plugin(&plugin("atlassian"));
    let (auth, api) = (format!("auth_url={}", service.url), format!("api_url={}", service.url));
    let arguments = [&["--set", &auth, "--set", &api, "--set", "client_id=the-app"], more].concat();
    let secret = service.with(|atlassian| atlassian.client_secret.clone());
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
        let now = service.now();
        service.with(|atlassian| {
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
    service.lose_next(Loss::OnTheWayBack, Method::POST, "/oauth/token");
    assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success");
    assert_eq!(service.with(|atlassian| (atlassian.rotations, atlassian.breaches)), (3, 0));
    let token = exported(&home, "ACCESS_TOKEN");
    let now = service.now();
    assert!(service.with(|atlassian| atlassian.accepts(&token, now)));
}

#[test]
fn an_answer_of_atlassian_that_is_lost_again_calls_a_human_and_after_ten_minutes_it_is_too_late() {
    for late in [false, true] {
        let home = TestHome::new();
        let service = atlassian(&home, &["offline_access", "read:me"], &[]);
        home.json(&["credential", "rotate", "ann"]);
        service.lose_next(Loss::OnTheWayBack, Method::POST, "/oauth/token");
        service.lose_next(Loss::OnTheWayBack, Method::POST, "/oauth/token");
        let report = refused(&home, &["credential", "rotate", "ann"]);
        assert_says(&report, "needs-human", &["whether it spent the secret can't be seen", "rotate --now"]);
        let asked = service.count(&Method::POST, "/oauth/token");
        // Without a person's word it isn't tried again, for nobody knows how late it will be.
        refused(&home, &["credential", "rotate", "ann"]);
        assert_eq!(service.count(&Method::POST, "/oauth/token"), asked);
        if late {
            service.put_clock_ahead(atlassian::LEEWAY + Duration::from_secs(1));
            let insisted = refused(&home, &["credential", "rotate", "ann", "--now"]);
            assert_says(
                &insisted,
                "needs-human",
                &["invalid_grant", "consent again and import the new tokens"],
            );
            assert_eq!(service.with(|atlassian| atlassian.breaches), 1);
        } else {
            assert_eq!(home.json(&["credential", "rotate", "ann", "--now"])["status"], "success");
            assert_eq!(service.with(|atlassian| atlassian.breaches), 0);
        }
    }
}

#[test]
fn where_a_lost_exchange_ended_the_former_access_token_a_human_is_called() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.with(|atlassian| atlassian.ends_former_tokens = true);
    service.lose_next(Loss::OnTheWayBack, Method::POST, "/oauth/token");
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["the present secret is dead", "rotate it once by hand"]);
    assert_eq!(home.json(&["credential", "rotate", "ann", "--now"])["status"], "success");
    assert_eq!(service.with(|atlassian| atlassian.breaches), 0);
}

#[test]
fn a_consent_that_was_withdrawn_and_one_that_ran_out_ask_for_a_new_one() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    home.json(&["credential", "rotate", "ann"]);
    service.with(|atlassian| atlassian.withdraw("557058:ann"));
    let report = refused(&home, &["credential", "validate", "ann"]);
    assert_says(&report, "invalid", &["answers 401", "consent again and import the new tokens"]);
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["Unknown or invalid refresh token", "consent again"]);

    for (gone_by, ends) in [(atlassian::INACTIVITY, true), (Duration::from_secs(89 * 86_400), false)] {
        let home = TestHome::new();
        let service = atlassian(&home, &["offline_access", "read:me"], &[]);
        home.json(&["credential", "rotate", "ann"]);
        service.put_clock_ahead(gone_by);
        match ends {
            true => {
                let report = refused(&home, &["credential", "rotate", "ann"]);
                assert_says(&report, "needs-human", &["unused for 90 days"]);
            }
            false => assert_eq!(home.json(&["credential", "rotate", "ann"])["status"], "success"),
        }
    }
}

#[test]
fn a_wrong_client_is_the_operators_to_mend_and_no_dead_token() {
    let home = TestHome::new();
    let service = atlassian(&home, &["offline_access", "read:me"], &[]);
    service.with(|atlassian| atlassian.client_secret = random_secret());
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["client_secret", "developer console"]);

    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::Bot, &[]);
    service.with(|slack| slack.client_secret = random_secret());
    let report = refused(&home, &["credential", "rotate", "ann"]);
    assert_says(&report, "needs-human", &["bad_client_secret", "Basic Information"]);
}

#[test]
fn tokens_of_another_account_are_never_taken_over_and_both_accounts_are_named() {
    let home = TestHome::new();
    let (service, _) = slack(&home, Kind::User, &[]);
    home.json(&["credential", "rotate", "ann"]);
    let now = service.now();
    let (other, secret) =
        service.with(|slack| (slack.install(Kind::User, "T02", "U09", now), slack.client_secret.clone()));
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
    assert_eq!(service.with(|slack| slack.rotations), 1, "its refresh token isn't spent either");
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

/// A Google session, the credential that has its cookies, and the time.
struct Session {
    kit: Kit,
    google: Arc<Mutex<(Google, u64)>>,
    keys: Vec<Given>,
    /// The next rotation has its effect, and its answer is never heard.
    loses: Arc<Mutex<bool>>,
}

fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    async fn new() -> Self {
        let executable = Some(env!("CARGO_BIN_EXE_keywheel").into());
        let kit = Kit::open(&plugin("google-session"), Options { executable }).await.expect("it is taken");
        let google = Google::sign_in("100000000000000000001");
        let given = |name: &str, value: &str| Given {
            name: name.into(),
            value: Some(Secret::new(value)),
            expires: None,
        };
        let keys = vec![given("psid", &google.psid), given("psidts", google.psidts())];
        let google = Arc::new(Mutex::new((google, 1_000_000)));
        Self { kit, google, keys, loses: Arc::default() }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Google) -> T) -> T {
        look(&mut hold(&self.google).0)
    }

    fn pass(&self, seconds: u64) {
        hold(&self.google).1 += seconds;
    }

    async fn call(&mut self, call: Which) -> Run {
        let (google, loses) = (Arc::clone(&self.google), Arc::clone(&self.loses));
        let service = Service::answers(move |_, request| {
            let (google, now) = &mut *hold(&google);
            let answer = google.answer(request, *now);
            match request.method() == Method::POST && std::mem::take(&mut *hold(&loses)) {
                true => Err(HttpError::Protocol("the connection ended".into())),
                false => Ok(answer),
            }
        });
        let case = Case {
            call,
            settings: Vec::new(),
            private_hosts: Vec::new(),
            keys: self.keys.clone(),
            now: None,
        };
        let run = self.kit.run(&case, service).await.expect("it fits");
        assert!(run.leaks.is_empty(), "{:?}", run.leaks);
        // Those of the key mapping; the kit's cases name no others.
        self.keys = run.keys().into_iter().filter(|key| key.name.starts_with("psid")).collect();
        run
    }

    async fn rotate(&mut self) -> Run {
        self.call(Which::Rotate(None)).await
    }

    async fn validate(&mut self) -> Run {
        self.call(Which::Validate).await
    }
}

/// What a provider said and what the host makes of it, which must be the same.
#[track_caller]
fn agreed(run: &Run) -> (&'static str, String) {
    let said = run.said.as_ref().expect("the call ends with an answer");
    assert_eq!(run.judged.as_ref().map(|judged| judged.word()), Some(said.word()));
    (said.word(), said.message().unwrap_or_default().to_owned())
}

fn with_session<F: Future<Output = ()>>(work: impl FnOnce(Session) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { work(Session::new().await).await });
}

#[test]
fn a_google_session_is_kept_alive_long_after_its_first_cookie_died() {
    with_session(async |mut session| {
        let first = session.keys.clone();
        for number in 1..=5 {
            session.pass(600);
            let run = session.rotate().await;
            assert_eq!(agreed(&run).0, "rotated");
            let evidence = run.said.as_ref().ok().and_then(|said| said.evidence()).expect("evidence");
            assert_eq!(evidence.next, Some(600), "Google's own hint");
            assert_eq!(session.with(|google| google.rotations), number);
            let run = session.validate().await;
            assert_eq!(agreed(&run).0, "valid");
            let evidence = run.said.as_ref().ok().and_then(|said| said.evidence()).expect("evidence");
            assert_eq!(evidence.identity.as_deref(), Some("100000000000000000001"));
        }
        // Whoever kept the first cookie has nothing left: one consumer per session.
        session.pass(google::SUPERSEDED);
        let kept = std::mem::replace(&mut session.keys, first);
        let (verdict, words) = agreed(&session.validate().await);
        assert_eq!(verdict, "invalid");
        assert!(
            words.contains("another client rotated it") && words.contains("import all its cookies"),
            "{words}"
        );
        session.keys = kept;
        assert_eq!(agreed(&session.validate().await).0, "valid");
        session.kit.close().await;
    });
}

#[test]
fn a_lost_answer_of_google_is_repeated_once_its_floor_is_over() {
    with_session(async |mut session| {
        *hold(&session.loses) = true;
        assert_eq!(agreed(&session.rotate().await).0, "unknown");
        assert_eq!(session.with(|google| google.rotations), 1, "it had its effect");
        assert_eq!(agreed(&session.validate().await).0, "valid", "the former value works on for a while");
        // At once is too soon for Google, and it is left alone for a minute.
        let run = session.rotate().await;
        assert_eq!(agreed(&run).0, "unknown");
        let reason = run.said.as_ref().ok().and_then(|said| said.reason()).expect("a reason");
        assert_eq!(reason.retry_after, Some(60));
        session.pass(60);
        assert_eq!(agreed(&session.rotate().await).0, "rotated");
        assert_eq!(agreed(&session.validate().await).0, "valid");
        session.kit.close().await;
    });
}

#[test]
fn an_answer_of_google_without_a_fresh_half_is_no_rotation() {
    with_session(async |mut session| {
        session.with(|google| google.content = true);
        let (outcome, words) = agreed(&session.rotate().await);
        assert_eq!(outcome, "unchanged");
        assert!(words.contains("no fresh PSIDTS cookie"), "{words}");
        assert_eq!(agreed(&session.validate().await).0, "valid");
        session.kit.close().await;
    });
}

#[test]
fn a_sign_out_at_google_and_a_session_bound_to_a_device_are_told_apart() {
    with_session(async |mut session| {
        session.with(|google| google.bound = true);
        let (outcome, words) = agreed(&session.rotate().await);
        assert_eq!(outcome, "needs-human");
        assert!(words.contains("bound to the device") && words.contains("Firefox"), "{words}");
        session.with(|google| (google.bound, google.signed_out) = (false, true));
        let (outcome, words) = agreed(&session.rotate().await);
        assert_eq!(outcome, "invalid");
        assert!(words.contains("answers 401") && words.contains("sign in again"), "{words}");
        let (verdict, words) = agreed(&session.validate().await);
        assert_eq!(verdict, "invalid");
        assert!(words.contains("what a stranger sees"), "{words}");
        session.kit.close().await;
    });
}

#[test]
fn a_browsers_export_of_google_brings_its_whole_jar_and_one_of_another_site_is_refused() {
    let home = TestHome::new();
    home.drop_plugin(&plugin("google-session"));
    let file = home.outside().join("cookies.txt");
    let secret = random_secret();
    let line = |domain: &str, name: &str| {
        let subdomains = if domain.starts_with('.') { "TRUE" } else { "FALSE" };
        format!("{domain}\t{subdomains}\t/\tTRUE\t0\t{name}\t{secret}\n")
    };
    let add = |cookies: &[(&str, &str)]| {
        let lines: String = cookies.iter().map(|(domain, name)| line(domain, name)).collect();
        std::fs::write(&file, format!("# Netscape HTTP Cookie File\n{lines}")).expect("a file");
        let from = file.to_str().expect("UTF-8");
        home.run(&["credential", "add", "ann", "--service", "google-session", "--from", from])
    };
    // Nothing is stored of what can't be right, and no value is shown.
    let refusals = [
        (
            &[(".youtube.com", "LOGIN_INFO"), ("forum.example", "sid")][..],
            &["youtube.com", "forum.example", "accounts.google.com", "gemini.google.com"][..],
        ),
        (&[(".google.com", "NID"), (".google.com", "SIDCC")], &["psid", "__Secure-1PSID", "NID"]),
        (&[(".google.com", "__Secure-1PSID")], &["psidts", "__Secure-1PSIDTS"]),
    ];
    for (cookies, words) in refusals {
        let refused = add(cookies);
        assert_eq!(refused.code(), 65, "{}", refused.stderr);
        for word in words {
            assert!(refused.stderr.contains(word), "`{word}` in {}", refused.stderr);
        }
        assert!(!refused.stderr.contains(&secret), "the value is shown");
    }
    assert_eq!(home.json(&["credential", "list"]), serde_json::json!([]));

    let whole = [
        (".google.com", "__Secure-1PSID"),
        (".google.com", "__Secure-1PSIDTS"),
        (".google.com", "SAPISID"),
        ("accounts.google.com", "__Host-GAPS"),
        (".youtube.com", "LOGIN_INFO"),
    ];
    let added = add(&whole).ok();
    assert!(added.stderr.contains("youtube.com"), "{}", added.stderr);
    let sent = |url: &str| {
        let export = ["credential", "export", "ann", "--format", "header", "--url", url];
        let header = home.run(&export).ok().stdout;
        let names = header.trim_start_matches("Cookie: ").split("; ").filter_map(|pair| pair.split_once('='));
        let mut names: Vec<_> = names.map(|(name, _)| name.to_owned()).collect();
        names.sort();
        names
    };
    let everywhere = ["SAPISID", "__Secure-1PSID", "__Secure-1PSIDTS"];
    assert_eq!(sent("https://gemini.google.com/app"), everywhere);
    assert_eq!(
        sent("https://accounts.google.com/RotateCookies"),
        [&everywhere[..1], &["__Host-GAPS"], &everywhere[1..]].concat()
    );
}
