//! The two providers against servers that nobody here wrote: a Django site whose sessions
//! expire, and an OpenID provider that revokes everything when a refresh token comes twice.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::*;

#[test]
fn a_django_session_outlives_its_own_expiry_under_the_daemon_and_dies_without_it() {
    // Rotated each second, so that a busy machine may be three seconds late.
    const AGE: u32 = 4;
    let (home, site) = (TestHome::new(), Peer::django(AGE));
    let issue = |user: &str| {
        let issued = http("POST", &site.url(&format!("/test/issue/?user={user}")), &[]).json();
        issued["cookie"]["value"].as_str().expect("a session").to_owned()
    };
    let account =
        |session: &str| http("GET", &site.url("/account/"), &[&format!("Cookie: sessionid={session}")]);
    home.drop_plugin(&plugin("http-session"));
    let daemon = home.serve();
    let (kept, left_alone) = (issue("ann"), issue("bob"));
    assert_eq!(account(&left_alone).status, 200);
    let started = Instant::now();
    let base_url = format!("base_url={}", site.url(""));
    let settings = [
        &base_url,
        "validate_path=/account/",
        "refresh_path=/refresh/",
        "login_path=/login/",
        "cookie_name=sessionid",
    ];
    let mut arguments = vec!["--every", "1s", "--rotate-every", "1s"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    home.add("ann", "http-session", &format!("session={kept}"), &arguments);
    wait_until(SOON, "the session has lived three times its age", || {
        (started.elapsed() > Duration::from_secs(3 * u64::from(AGE))).then_some(())
    });
    let stats = http("GET", &site.url("/stats/"), &[]).json();
    assert_eq!(stats["dead_session_requests"], 0, "{stats}");
    assert!(stats["cycles"].as_u64().is_some_and(|cycles| cycles >= 5), "{stats}");
    assert_eq!(stats["logins"], 0, "{stats}");
    let reports = home.reports("ann");
    assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
    let header = home
        .run(&["credential", "export", "ann", "--format", "header", "--url", &site.url("/account/")])
        .ok()
        .stdout;
    let now = header.split("sessionid=").nth(1).expect("a session cookie").trim_end();
    let page = account(now);
    assert_eq!((page.status, page.json()["user"].as_str()), (200, Some("ann")));
    // Nobody looked after this one, and the first one was replaced.
    assert_eq!(account(&left_alone).status, 302);
    assert_eq!(account(&kept).status, 302);
    assert!(daemon.stop().success());
    wait_until(SOON, "the session dies once nobody keeps it", || {
        (http("GET", &site.url("/stats/"), &[]).json()["live_sessions"] == 0).then_some(())
    });
}

#[test]
fn a_django_session_that_was_deleted_needs_a_human_who_is_told_what_to_do() {
    let (home, site) = (TestHome::new(), Peer::django(600));
    home.drop_plugin(&plugin("http-session"));
    let _daemon = home.serve();
    let issue = || http("POST", &site.url("/test/issue/?user=ann"), &[]).json()["cookie"]["value"].clone();
    let session = issue();
    let base_url = format!("base_url={}", site.url(""));
    let settings = [
        &base_url,
        "validate_path=/account/",
        "refresh_path=/refresh/",
        "login_path=/login/",
        "cookie_name=sessionid",
        "commit_class=burn-on-issue",
    ];
    let mut arguments = vec!["--every", "1h"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    home.add("ann", "http-session", &format!("session={}", session.as_str().expect("text")), &arguments);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    let ended = http("POST", &site.url("/test/end/?user=ann"), &[]).json();
    assert_eq!(ended["ended"], 1, "{ended}");
    // Whoever only looks says that it is dead; whoever rotates has nothing left to try.
    for (command, verdict, words) in [
        ("validate", "invalid", "the site redirects to the login page /login/"),
        (
            "rotate",
            "needs-human",
            "rotation was refused and the present secret is dead: the site redirects to the login page /login/; \
             hint: `keywheel credential import` puts fresh secrets in force",
        ),
    ] {
        home.run(&["credential", command, "ann"]);
        let report = home.reports("ann").pop().expect("a report");
        assert_eq!(
            (report["meta"]["verdict"].as_str(), report["message"].as_str()),
            (Some(verdict), Some(words)),
            "{report}"
        );
    }
    let fresh = home.outside().join("fresh.env");
    std::fs::write(&fresh, format!("session={}\n", issue().as_str().expect("text"))).expect("a file");
    home.run(&["credential", "import", "ann", fresh.to_str().expect("UTF-8")]).ok();
    // What was imported is validated first.
    wait_until(SOON, "the imported session is rotated", || {
        (home.run(&["credential", "rotate", "ann"]).code() == 0).then_some(())
    });
    let stats = http("GET", &site.url("/stats/"), &[]).json();
    assert_eq!((&stats["cycles"], &stats["live_sessions"]), (&2.into(), &1.into()), "{stats}");
}

pub struct Grant {
    pub site: Peer,
    client: Value,
    tokens: Value,
}

impl Grant {
    fn new(client_id: &str) -> Self {
        Self::living(client_id, 5)
    }

    /// Its access tokens live this many seconds.
    pub fn living(client_id: &str, access_ttl: u32) -> Self {
        let site = Peer::oidc(access_ttl);
        let clients = site.ready["clients"].as_array().expect("an array");
        let client =
            clients.iter().find(|client| client["client_id"] == client_id).expect("the client").clone();
        let mut grant = Self { site, client, tokens: Value::Null };
        grant.tokens = grant.issue();
        grant
    }

    /// The first tokens of a new grant, as after a sign-in.
    fn issue(&self) -> Value {
        let client_id = self.client["client_id"].as_str().expect("text");
        http("POST", &self.site.url(&format!("/test/issue?client={client_id}&account=ann")), &[]).json()
    }

    /// What RFC 7009 calls revocation, as the account's page or an administrator does it.
    fn revoke(&self, refresh_token: &str) {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let body = format!(
            "token={refresh_token}&token_type_hint=refresh_token&client_id={}&client_secret={}",
            text(&self.client["client_id"]),
            text(&self.client["client_secret"])
        );
        let form = "Content-Type: application/x-www-form-urlencoded";
        let url = text(&self.site.ready["revocation_url"]);
        assert_eq!(http_with("POST", &url, &[form], &body).status, 200);
    }

    pub fn add(&self, home: &TestHome, client_auth: &str, more: &[&str]) {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let settings = [
            format!("token_url={}", text(&self.site.ready["token_url"])),
            format!("validate_url={}", text(&self.site.ready["userinfo_url"])),
            format!("client_id={}", text(&self.client["client_id"])),
            format!("client_auth={client_auth}"),
        ];
        let keys = format!(
            "refresh_token={}\nclient_secret={}\n",
            text(&self.tokens["refresh_token"]),
            text(&self.client["client_secret"])
        );
        let mut arguments = more.to_vec();
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
        home.add("ann", "oauth2-refresh", &keys, &arguments);
    }

    pub fn events(&self) -> Value {
        http("GET", &self.site.url("/test/events"), &[]).json()
    }

    #[track_caller]
    pub fn assert_never_reused(&self) {
        let events = self.events();
        for trouble in ["reuse_detected", "grants_revoked", "refresh_errors", "server_errors"] {
            assert_eq!(events[trouble], 0, "{trouble} in {events}");
        }
    }

    /// What the provider itself says to the access token that an export shows.
    fn userinfo(&self, home: &TestHome) -> Answer {
        let exported = home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
        let line = exported.lines().find(|line| line.contains("ACCESS_TOKEN=")).expect("an access token");
        let token = line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']);
        let url = self.site.ready["userinfo_url"].as_str().expect("a URL");
        http("GET", url, &[&format!("Authorization: Bearer {token}")])
    }
}

#[test]
fn a_refresh_token_is_rotated_on_schedule_again_and_again_without_reuse() {
    let (home, grant) = (TestHome::new(), Grant::new("peer-client-secret-basic"));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let _daemon = home.serve();
    grant.add(&home, "header", &["--every", "1s", "--rotate-every", "1s"]);
    wait_until(SOON, "six rotations are done", || {
        grant.events()["refresh_exchanges"].as_u64().filter(|&exchanges| exchanges >= 6)
    });
    grant.assert_never_reused();
    // The first look finds no access token yet, which is no fault; from then on all is well.
    let reports = home.reports("ann");
    assert_eq!(reports[0]["status"], "unreachable", "{}", reports[0]);
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert!(reports[1..].iter().filter(|report| report["meta"]["rotated"] == true).count() >= 5);
    home.run(&["credential", "pause", "ann"]).ok();
    let answer = wait_until(SOON, "no attempt is in flight", || {
        (home.json(&["status"])["inFlight"] == 0).then(|| grant.userinfo(&home))
    });
    assert_eq!((answer.status, answer.json()["sub"].as_str()), (200, Some("ann")));
}

#[test]
fn a_refresh_token_is_rotated_on_demand_again_and_again_without_reuse() {
    let (home, grant) = (TestHome::new(), Grant::new("peer-client-secret-post"));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let _daemon = home.serve();
    grant.add(&home, "body", &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    wait_until(SOON, "six rotations are done", || {
        let output = home.run(&["credential", "rotate", "ann"]);
        // The schedule may be at it itself, for the first rotation brings the access token.
        assert!(output.status.success() || output.code() == 75, "{output:?}");
        (grant.events()["refresh_exchanges"].as_u64() >= Some(6)).then_some(())
    });
    grant.assert_never_reused();
    let answer = grant.userinfo(&home);
    assert_eq!((answer.status, answer.json()["sub"].as_str()), (200, Some("ann")));
    let shown = home.json(&["credential", "show", "ann"]);
    assert_eq!(shown["credential"]["identity"], "ann", "{shown}");
}

#[test]
fn an_oauth_session_lives_on_by_the_ends_that_its_provider_states() {
    let (home, grant) = (TestHome::new(), Grant::living("peer-client-secret-basic", 3));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let daemon = home.serve();
    // No cadence is asked for: each rotation comes from `expires_in`.
    grant.add(&home, "header", &[]);
    wait_until(SOON, "five rotations are done", || {
        grant.events()["refresh_exchanges"].as_u64().filter(|&exchanges| exchanges >= 5)
    });
    let reports = home.reports("ann");
    assert!(reports[1..].iter().all(|report| report["status"] == "success"), "{reports:?}");
    // Nobody is there while the access token runs out.
    assert!(daemon.stop().success());
    let before = grant.events()["refresh_exchanges"].as_u64();
    wait_until(SOON, "the access token runs out", || (grant.userinfo(&home).status == 401).then_some(()));
    let _daemon = home.serve();
    wait_until(SOON, "the session lives again", || {
        (grant.events()["refresh_exchanges"].as_u64() > before && grant.userinfo(&home).status == 200)
            .then_some(())
    });
    grant.assert_never_reused();
}

#[test]
fn an_oauth_grant_that_was_revoked_needs_a_human_who_is_told_what_to_do() {
    let (home, grant) = (TestHome::new(), Grant::new("peer-client-secret-post"));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let _daemon = home.serve();
    grant.add(&home, "body", &["--every", "1h", "--rotate-every", "1h"]);
    wait_until(SOON, "there is an access token", || {
        (home.json(&["status"])["inFlight"] == 0 && grant.events()["refresh_exchanges"] == 1).then_some(())
    });
    let exported = home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
    let line = exported.lines().find(|line| line.contains("REFRESH_TOKEN=")).expect("a refresh token");
    grant.revoke(line.split_once('=').expect("NAME=VALUE").1.trim_matches(['\'', '"']));
    home.run(&["credential", "rotate", "ann", "--now"]);
    let report = home.reports("ann").pop().expect("a report");
    assert_eq!(
        (report["meta"]["verdict"].as_str(), report["message"].as_str()),
        (
            Some("needs-human"),
            Some(
                "rotation was refused and the present secret is dead: the refresh token is expired, revoked, already \
                 used or another client's: sign in again and import the new one (invalid_grant: grant request is \
                 invalid); hint: `keywheel credential import` puts fresh secrets in force"
            )
        ),
        "{report}"
    );
    // What the person does then. The client's secret stays as it is.
    let fresh = home.outside().join("fresh.env");
    let client_secret = grant.client["client_secret"].as_str().expect("text");
    let refresh_token = grant.issue()["refresh_token"].as_str().expect("text").to_owned();
    std::fs::write(&fresh, format!("refresh_token={refresh_token}\nclient_secret={client_secret}\n"))
        .expect("a file");
    home.run(&["credential", "import", "ann", fresh.to_str().expect("UTF-8")]).ok();
    wait_until(SOON, "the imported grant is rotated", || {
        home.reports("ann").pop().filter(|report| report["meta"]["rotated"] == true)
    });
    assert_eq!(grant.userinfo(&home).status, 200);
}
