//! The providers for GitLab, GitHub, GitHub Apps and Cloudflare, under the daemon, against
//! services that follow these services' documentation (`tests/services`). Each that rotates is
//! kept alive through five rotations; loses an answer, on either way; and is revoked at the
//! service, with the words that the operator reads.

use std::time::Duration;

use axum::http::Method;
use serde_json::Value;

use crate::harness::*;
use crate::services::cloudflare::Cloudflare;
use crate::services::fake::{Fake, Loss, Rules};
use crate::services::github::{GitHub, Limited};
use crate::services::github_app::{ACCESS_SECONDS, GitHubApp, Pair};
use crate::services::gitlab::{GitLab, Owner};

/// Five rotations at one a second, on a machine that builds as well.
const FIVE_ROTATIONS: Duration = Duration::from_secs(60);

fn seconds_now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970")
}

/// The credential `ann` of one of these services, under a daemon.
struct Ann {
    // Ends before its home does.
    daemon: Option<Daemon>,
    home: TestHome,
}

impl Ann {
    fn added(service: &str, keys: &str, settings: &[String], more: &[&str]) -> Self {
        let home = TestHome::new();
        home.drop_plugin(&plugin(service));
        let daemon = home.serve();
        let settings = settings.iter().flat_map(|setting| ["--set", setting.as_str()]);
        home.add("ann", service, keys, &more.iter().copied().chain(settings).collect::<Vec<_>>());
        Self { daemon: Some(daemon), home }
    }

    /// Rotated each second from now on.
    fn kept(service: &str, keys: &str, settings: &[String]) -> Self {
        Self::added(service, keys, settings, &["--every", "1s", "--rotate-every", "1s"])
    }

    /// Looked at once, and then when somebody asks.
    fn resting(service: &str, keys: &str, settings: &[String]) -> Self {
        let ann = Self::added(service, keys, settings, &["--every", "1h"]);
        let reports = ann.home.wait_for_reports("ann", 1);
        assert_eq!(reports[0]["status"], "success", "{}", reports[0]);
        ann
    }

    /// The daemon is stopped, and started again after this.
    fn without_daemon(&mut self, meanwhile: impl FnOnce()) {
        assert!(self.daemon.take().is_some_and(|daemon| daemon.stop().success()));
        meanwhile();
        self.daemon = Some(self.home.serve());
    }

    /// Stops, and shows what is in force for a key, once nothing is in flight.
    fn in_force(&self, key: &str) -> String {
        self.home.run(&["credential", "pause", "ann"]).ok();
        wait_until(SOON, "no attempt is in flight", || {
            (self.home.json(&["status"])["inFlight"] == 0).then_some(())
        });
        let exported = self.home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
        let name = format!("{}=", key.to_uppercase());
        let line = exported.lines().find(|line| line.contains(&name)).expect("the key is there");
        line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']).to_owned()
    }

    fn import(&self, keys: &str) {
        self.home.run_with_input(&["credential", "import", "ann", "-"], keys).ok();
    }

    /// What a command about it prints, and the report that it ends in.
    #[track_caller]
    fn ask(&self, action: &str) -> (String, Value) {
        // Whatever was imported is looked at by itself as well, and until that ended it is busy.
        let output = wait_until(SOON, "it isn't busy", || {
            Some(self.home.run(&["credential", action, "ann"])).filter(|output| output.code() != 75)
        });
        let report = self.home.reports("ann").pop().expect("a report");
        (output.stdout + &output.stderr, report)
    }

    #[track_caller]
    fn assert_only_successes(&self, rotations: usize) {
        let reports = self.home.reports("ann");
        assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
        let rotated = reports.iter().filter(|report| report["meta"]["rotated"] == true).count();
        assert!(rotated >= rotations, "{rotated} rotations in {reports:?}");
    }

    /// A person is called, and reads these words.
    #[track_caller]
    fn assert_called(&self, action: &str, verdict: &str, words: &[&str]) {
        let (printed, report) = self.ask(action);
        assert_eq!(report["meta"]["verdict"], verdict, "{report}");
        let message = report["message"].as_str().unwrap_or_default();
        for words in words {
            assert!(message.contains(words), "no `{words}` in {message}");
            assert!(printed.contains(words), "no `{words}` in what was printed: {printed}");
        }
    }

    #[track_caller]
    fn assert_made_up_secret_is_refused(&self) {
        let output = self.home.run(&["credential", "self-test", "ann"]);
        assert_eq!(output.code(), 0, "{output:?}");
    }
}

/// Five rotations, each of which the service granted.
fn wait_for_five<R: Rules>(fake: &Fake<R>, rotations: impl Fn(&R) -> u32) {
    wait_until(FIVE_ROTATIONS, "five rotations are done", || {
        (fake.with(|rules| rotations(rules)) >= 5).then_some(())
    });
}

// GitLab

fn gitlab(owner: Owner, scopes: &[&'static str]) -> (Fake<GitLab>, String) {
    let fake = Fake::start(GitLab::default());
    let token = fake.with(|gitlab| gitlab.issue(owner, 1337, scopes, 30, seconds_now()));
    let key = format!("token={token}");
    (fake, key)
}

fn base_url(fake: &Fake<GitLab>) -> String {
    format!("base_url={}", fake.url)
}

#[test]
fn a_gitlab_token_is_kept_through_five_rotations_and_never_used_twice() {
    let (fake, key) = gitlab(Owner::Person, &["self_rotate", "read_api"]);
    let ann = Ann::kept("gitlab", &key, &[base_url(&fake)]);
    wait_for_five(&fake, |gitlab| gitlab.rotations);
    let token = ann.in_force("token");
    ann.assert_only_successes(5);
    fake.with(|gitlab| {
        assert_eq!(gitlab.newest().value, token);
        assert!(gitlab.authenticate(&token, seconds_now()).is_ok());
        assert_eq!((gitlab.families_revoked, gitlab.living(seconds_now())), (0, 1));
    });
    let shown = ann.home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "1337", "{shown}");
    // Half a year is left, and more: a token without a date would live a week.
    let end: jiff::Timestamp = {
        let monitor = &shown["credential"]["monitor"];
        monitor["expiresAt"]
            .as_str()
            .unwrap_or_else(|| panic!("no end in {monitor}"))
            .parse()
            .expect("a date")
    };
    assert!(u64::try_from(end.as_second()).expect("a date") > seconds_now() + 180 * 86_400, "{end}");
}

#[test]
fn a_gitlab_token_of_a_project_or_group_is_rotated_by_that_also_below_a_path() {
    for (owner, setting, place) in [
        (Owner::Project("team/app"), "project=team/app", "projects/team%2Fapp"),
        (Owner::Group("team"), "group=team", "groups/team"),
    ] {
        let (fake, key) = gitlab(owner, &["api"]);
        let settings = [format!("base_url={}/gitlab", fake.url), setting.to_owned()];
        let ann = Ann::resting("gitlab", &key, &settings);
        assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
        let path = format!("/gitlab/api/v4/{place}/access_tokens/self/rotate");
        assert_eq!(fake.count(&Method::POST, &path), 1);
        assert_eq!(ann.in_force("token"), fake.with(|gitlab| gitlab.newest().value.clone()));
    }
}

#[test]
fn a_gitlab_rotation_without_an_answer_is_not_sent_again_and_its_successor_lives() {
    let (fake, key) = gitlab(Owner::Person, &["self_rotate"]);
    let ann = Ann::resting("gitlab", &key, &[base_url(&fake)]);
    fake.lose_next(Loss::OnTheWayBack, Method::POST, "/rotate");
    let words = ["the present secret is dead", "Token was revoked"];
    ann.assert_called("rotate", "needs-human", &words);
    // Asked again, it only looks: a second rotation would have cost the new token as well.
    ann.assert_called("rotate", "needs-human", &["Token was revoked"]);
    assert_eq!(fake.count(&Method::POST, "/rotate"), 1);
    let newest = fake.with(|gitlab| {
        assert_eq!((gitlab.families_revoked, gitlab.living(seconds_now())), (0, 1));
        gitlab.newest().value.clone()
    });
    ann.import(&format!("token={newest}"));
    assert_eq!(ann.ask("validate").1["status"], "success");
}

#[test]
fn a_gitlab_rotation_that_never_arrived_is_seen_to_have_spent_nothing() {
    let (fake, key) = gitlab(Owner::Person, &["self_rotate"]);
    let ann = Ann::resting("gitlab", &key, &[base_url(&fake)]);
    fake.lose_next(Loss::OnTheWay, Method::POST, "/rotate");
    let (_, report) = ann.ask("rotate");
    assert_eq!(report["status"], "unreachable", "{report}");
    assert!(report["message"].as_str().is_some_and(|why| why.contains("still works")), "{report}");
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
    fake.with(|gitlab| assert_eq!((gitlab.rotations, gitlab.families_revoked), (1, 0)));
}

#[test]
fn a_gitlab_token_that_is_revoked_or_expired_at_gitlab_calls_a_person_with_the_reason() {
    let (fake, key) = gitlab(Owner::Person, &["self_rotate"]);
    let ann = Ann::resting("gitlab", &key, &[base_url(&fake)]);
    ann.assert_made_up_secret_is_refused();
    fake.with(|gitlab| gitlab.revoke(1337));
    ann.assert_called("validate", "invalid", &["Token was revoked", "make a new one and import it"]);

    let next = fake.with(|gitlab| gitlab.issue(Owner::Person, 1337, &["self_rotate"], 30, seconds_now()));
    ann.import(&format!("token={next}"));
    assert_eq!(ann.ask("validate").1["status"], "success");
    fake.put_clock_ahead(Duration::from_secs(31 * 86_400));
    ann.assert_called("validate", "invalid", &["Token is expired", "make a new one and import it"]);
    assert_eq!(fake.count(&Method::POST, "/rotate"), 0);
}

#[test]
fn what_gitlab_refuses_for_other_reasons_leaves_the_token_alone() {
    let (fake, key) = gitlab(Owner::Person, &["read_api"]);
    let ann = Ann::resting("gitlab", &key, &[base_url(&fake)]);
    ann.assert_called("rotate", "needs-human", &["the token lives", "self_rotate"]);
    assert_eq!(ann.ask("validate").1["status"], "success");
    fake.with(|gitlab| gitlab.block(1337));
    ann.assert_called("validate", "needs-human", &["the account, not the token", "has been blocked"]);
    fake.with(|gitlab| assert_eq!((gitlab.rotations, gitlab.living(seconds_now())), (0, 1)));
    fake.with(|gitlab| gitlab.limited = 1);
    assert_eq!(ann.ask("validate").1["status"], "unreachable");
}

// GitHub App

fn keys_of(app: &GitHubApp, pair: &Pair) -> String {
    let (access, refresh) = (&pair.access, &pair.refresh);
    format!("access_token={access}\nrefresh_token={refresh}\nclient_secret={}\n", app.client_secret)
}

fn github_app() -> (Fake<GitHubApp>, String, Vec<String>) {
    let fake = Fake::start(GitHubApp::new());
    let (keys, id) = fake.with(|app| {
        let pair = app.sign_in(seconds_now());
        (keys_of(app, &pair), app.client_id.clone())
    });
    let settings =
        vec![format!("login_url={}", fake.url), format!("api_url={}", fake.url), format!("client_id={id}")];
    (fake, keys, settings)
}

#[test]
fn a_github_app_token_is_kept_through_five_refreshes_and_no_token_comes_twice() {
    let (fake, keys, settings) = github_app();
    let ann = Ann::kept("github-app", &keys, &settings);
    wait_for_five(&fake, |app| app.refreshes);
    let (access, refresh) = (ann.in_force("access_token"), ann.in_force("refresh_token"));
    ann.assert_only_successes(5);
    fake.with(|app| {
        assert_eq!((&app.newest().access, &app.newest().refresh), (&access, &refresh));
        assert!(app.accepts(&access, seconds_now()));
        assert_eq!(app.refused, 0);
    });
    let shown = ann.home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "4711", "{shown}");
}

#[test]
fn a_github_app_refresh_without_an_answer_calls_a_person_and_is_not_sent_again() {
    let (fake, keys, settings) = github_app();
    let ann = Ann::resting("github-app", &keys, &settings);
    // Of what was imported nobody knows the age, of what Keywheel got itself it does.
    for (refreshes, words) in [(1, "nothing that still works can tell"), (3, "the present secret is dead")] {
        fake.lose_next(Loss::OnTheWayBack, Method::POST, "/access_token");
        ann.assert_called("rotate", "needs-human", &[words, "Bad credentials"]);
        ann.assert_called("rotate", "needs-human", &["Bad credentials"]);
        assert_eq!(fake.count(&Method::POST, "/access_token"), refreshes);
        let keys = fake.with(|app| {
            assert_eq!((app.refreshes as usize, app.refused), (refreshes, 0));
            keys_of(app, &app.newest().clone())
        });
        ann.import(&keys);
        if refreshes == 1 {
            assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
        }
    }
}

#[test]
fn a_github_app_token_without_a_refresh_token_is_watched_and_nothing_is_sent_to_renew_it() {
    let (fake, keys, settings) = github_app();
    let access = keys.lines().find(|line| line.starts_with("access_token=")).expect("an access token");
    let ann = Ann::resting("github-app", access, &settings);
    ann.assert_made_up_secret_is_refused();
    ann.assert_called("rotate", "needs-human", &["no refresh_token"]);
    fake.with(GitHubApp::revoke);
    ann.assert_called("validate", "invalid", &["Bad credentials", "Sign in again and import both"]);
    assert_eq!(fake.count(&Method::POST, "/access_token"), 0);
}

#[test]
fn an_imported_github_app_token_that_is_too_old_is_renewed_by_itself() {
    let (fake, keys, settings) = github_app();
    fake.with(|app| app.access_seconds = 0);
    let ann = Ann::added("github-app", &keys, &settings, &["--every", "1h"]);
    let reports = ann.home.wait_for_reports("ann", 1);
    assert_eq!(reports[0]["meta"]["verdict"], "unknown", "{}", reports[0]);
    fake.with(|app| app.access_seconds = ACCESS_SECONDS);
    let reports = ann.home.wait_for_reports("ann", 2);
    assert_eq!(reports[1]["meta"]["rotated"], true, "{}", reports[1]);
    fake.with(|app| assert_eq!((app.refreshes, app.refused), (1, 0)));
}

#[test]
fn a_github_app_access_token_that_works_shows_that_a_lost_refresh_spent_nothing() {
    let (fake, keys, settings) = github_app();
    let ann = Ann::resting("github-app", &keys, &settings);
    fake.lose_next(Loss::OnTheWay, Method::POST, "/access_token");
    let (_, report) = ann.ask("rotate");
    assert_eq!(report["status"], "unreachable", "{report}");
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
    fake.with(|app| assert_eq!((app.refreshes, app.refused), (1, 0)));
}

#[test]
fn a_github_app_whose_authorization_is_revoked_calls_a_person_with_the_reason() {
    let (fake, keys, settings) = github_app();
    let ann = Ann::resting("github-app", &keys, &settings);
    fake.with(GitHubApp::revoke);
    // Nobody knows whether what was imported is only too old, so the refresh token is asked.
    assert_eq!(ann.ask("validate").1["meta"]["verdict"], "unknown");
    let words = ["rotation was refused", "expired, used up or another app's", "import both"];
    ann.assert_called("rotate", "needs-human", &words);

    let keys = fake.with(|app| {
        let pair = app.sign_in(seconds_now());
        keys_of(app, &pair)
    });
    ann.import(&keys);
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
    fake.with(GitHubApp::revoke);
    ann.assert_called("validate", "invalid", &["Bad credentials", "Sign in again and import both"]);
}

#[test]
fn a_refused_refresh_calls_a_person_also_after_the_access_token_has_run_out() {
    let (fake, keys, settings) = github_app();
    let mut ann = Ann::resting("github-app", &keys, &settings);
    fake.with(|app| app.access_seconds = 2);
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
    ann.without_daemon(|| {
        wait_until(SOON, "the access token has run out", || {
            fake.with(|app| !app.accepts(&app.newest().access, seconds_now())).then_some(())
        });
        fake.with(GitHubApp::revoke);
    });
    let called = wait_until(SOON, "a person is called", || {
        ann.home.reports("ann").into_iter().find(|report| report["meta"]["verdict"] == "needs-human")
    });
    let message = called["message"].as_str().expect("words");
    assert!(message.contains("used up or another app's"), "{called}");
    assert!(message.contains("import both tokens"), "{called}");
}

#[test]
fn a_key_that_only_a_person_can_bring_is_no_reason_to_rotate_while_the_service_is_down() {
    let (fake, keys, settings) = github_app();
    let keys = keys.lines().filter(|line| !line.starts_with("client_secret=")).collect::<Vec<_>>().join("\n");
    fake.with(|app| (app.device_flow, app.down) = (true, true));
    let ann = Ann::added("github-app", &keys, &settings, &["--every", "1s"]);
    let reports = ann.home.wait_for_reports("ann", 2);
    for report in &reports {
        let what = (&report["meta"]["action"], &report["meta"]["verdict"]);
        assert_eq!(what, (&"validate".into(), &"unknown".into()), "{report}");
    }
    assert_eq!(fake.count(&Method::POST, "/access_token"), 0);
    fake.with(|app| app.down = false);
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
}

#[test]
fn a_wrong_client_secret_of_a_github_app_spends_nothing() {
    let (fake, keys, settings) = github_app();
    let keys = keys.replace("client_secret=", "client_secret=made-up-");
    let ann = Ann::resting("github-app", &keys, &settings);
    ann.assert_called("rotate", "needs-human", &["client_secret"]);
    assert_eq!(ann.ask("validate").1["status"], "success");
    fake.with(|app| assert_eq!((app.refreshes, app.refused), (0, 0)));
}

// Cloudflare

const ACCOUNT: &str = "accounts/0123456789abcdef0123456789abcdef";

fn cloudflare(owner: &str, rolls: bool) -> (Fake<Cloudflare>, String, String, Vec<String>) {
    let fake = Fake::start(Cloudflare::default());
    let token = fake.with(|cloudflare| cloudflare.issue(owner, rolls, None));
    let settings = vec![format!("api_url={}/client/v4", fake.url), format!("owner={owner}")];
    (fake, token.id, format!("token={}", token.value), settings)
}

#[test]
fn a_cloudflare_token_is_kept_through_five_rolls() {
    for owner in ["user", ACCOUNT] {
        let (fake, id, key, settings) = cloudflare(owner, true);
        let ann = Ann::kept("cloudflare", &key, &settings);
        wait_for_five(&fake, |cloudflare| cloudflare.rolls);
        let token = ann.in_force("token");
        ann.assert_only_successes(5);
        fake.with(|cloudflare| assert_eq!(cloudflare.value(&id), Some(token.as_str())));
        let shown = ann.home.json(&["credential", "show", "ann"]);
        assert_eq!(shown["credential"]["identity"], id, "{shown}");
        // What a reader of a report is told was asked.
        let asked = format!("{}/client/v4/{owner}/tokens/verify", fake.url);
        assert_eq!(ann.home.reports("ann")[0]["validateUrl"], asked);
    }
}

#[test]
fn a_cloudflare_roll_without_an_answer_calls_a_person_and_is_not_sent_again() {
    let (fake, id, key, settings) = cloudflare("user", true);
    let ann = Ann::resting("cloudflare", &key, &settings);
    fake.lose_next(Loss::OnTheWayBack, Method::PUT, "/value");
    ann.assert_called("rotate", "needs-human", &["the present secret is dead", "rolled or deleted"]);
    ann.assert_called("rotate", "needs-human", &["rolled or deleted"]);
    assert_eq!(fake.count(&Method::PUT, "/value"), 1);
    let now = fake.with(|cloudflare| cloudflare.value(&id).map(str::to_owned)).expect("it lives");
    ann.import(&format!("token={now}"));
    assert_eq!(ann.ask("validate").1["status"], "success");
}

#[test]
fn a_cloudflare_roll_that_never_arrived_is_seen_to_have_spent_nothing() {
    let (fake, _, key, settings) = cloudflare("user", true);
    let ann = Ann::resting("cloudflare", &key, &settings);
    fake.lose_next(Loss::OnTheWay, Method::PUT, "/value");
    assert_eq!(ann.ask("rotate").1["status"], "unreachable");
    assert_eq!(ann.ask("rotate").1["meta"]["rotated"], true);
    assert_eq!(fake.with(|cloudflare| cloudflare.rolls), 1);
}

#[test]
fn a_cloudflare_token_that_is_disabled_or_deleted_calls_a_person_with_the_reason() {
    let (fake, id, key, settings) = cloudflare("user", true);
    let ann = Ann::resting("cloudflare", &key, &settings);
    ann.assert_made_up_secret_is_refused();
    fake.with(|cloudflare| cloudflare.disable(&id));
    ann.assert_called("validate", "invalid", &["the token is disabled", "in the dashboard"]);
    fake.with(|cloudflare| cloudflare.delete(&id));
    ann.assert_called("validate", "invalid", &["doesn't know the token", "Invalid API Token"]);
    assert_eq!(fake.with(|cloudflare| cloudflare.rolls), 0);
}

#[test]
fn what_cloudflare_refuses_for_other_reasons_leaves_the_token_alone() {
    let (fake, id, key, settings) = cloudflare("user", false);
    let ann = Ann::resting("cloudflare", &key, &settings);
    ann.assert_called("rotate", "needs-human", &["the token works", "API Tokens: Edit"]);
    assert_eq!(ann.ask("validate").1["status"], "success");
    fake.with(|cloudflare| cloudflare.elsewhere = true);
    ann.assert_called("validate", "needs-human", &["Client IP Address Filtering"]);
    fake.with(|cloudflare| {
        assert!(cloudflare.value(&id).is_some_and(|value| key.ends_with(value)));
        (cloudflare.elsewhere, cloudflare.limited) = (false, true);
    });
    assert_eq!(ann.ask("validate").1["status"], "unreachable");
}

// GitHub

#[test]
fn a_github_token_is_watched_until_it_ends_and_its_end_is_known_before() {
    let fake = Fake::start(GitHub::default());
    let end = seconds_now() + 30 * 86_400;
    let token = fake.with(|github| github.issue(4711, "ann", Some("repo"), Some(end)));
    let ann = Ann::resting("github", &format!("token={token}"), &[format!("api_url={}", fake.url)]);
    ann.assert_made_up_secret_is_refused();
    let shown = ann.home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "4711", "{shown}");
    let expires = &shown["credential"]["monitor"]["expiresAt"];
    let known: jiff::Timestamp = expires.as_str().expect("an end").parse().expect("a date");
    assert_eq!(u64::try_from(known.as_second()), Ok(end));
    fake.put_clock_ahead(Duration::from_secs(31 * 86_400));
    ann.assert_called("validate", "invalid", &["Bad credentials", "Make a new one and import it"]);

    let other = fake.with(|github| github.issue(4711, "ann", None, None));
    ann.import(&format!("token={other}"));
    assert_eq!(ann.ask("validate").1["status"], "success");
    fake.with(|github| github.revoke(&other));
    ann.assert_called("validate", "invalid", &["Bad credentials"]);
}

#[test]
fn a_github_limit_says_nothing_of_the_token_and_is_waited_for() {
    let fake = Fake::start(GitHub::default());
    let token = fake.with(|github| github.issue(4711, "ann", None, None));
    let ann = Ann::resting("github", &format!("token={token}"), &[format!("api_url={}", fake.url)]);
    for (limited, least) in [(Limited::Secondary, 60), (Limited::Primary(seconds_now() + 2_400), 2_300)] {
        fake.with(|github| github.limited = Some(limited));
        let asked = seconds_now();
        let (_, report) = ann.ask("validate");
        assert_eq!(
            (&report["status"], &report["meta"]["verdict"]),
            (&"unreachable".into(), &"unknown".into())
        );
        let monitor = ann.home.json(&["credential", "show", "ann"])["credential"]["monitor"].clone();
        let due: jiff::Timestamp = monitor["nextDueAt"].as_str().expect("a moment").parse().expect("a date");
        assert!(u64::try_from(due.as_second()).expect("a date") >= asked + least, "{limited:?}: {monitor}");
    }
    fake.with(|github| github.limited = None);
    assert_eq!(ann.ask("validate").1["status"], "success");
}
