//! The provider against scripted token endpoints.

use keywheel_sdk::prelude::*;
use keywheel_sdk::testing::{Case, NOW, Request, answer, fails, get, post};

use crate::OAuth2Refresh;

const ISSUED: &str =
    r#"{"access_token":"new-access","token_type":"Bearer","expires_in":3600,"refresh_token":"new-refresh"}"#;
const BODY: &str = "grant_type=refresh_token&refresh_token={refresh_token|form}";

fn account() -> Case<OAuth2Refresh> {
    Case::new()
        .setting("token_url", "https://id.example/token")
        .setting("client_id", "desk top:1")
        .key("refresh_token")
        .key("client_secret")
}

fn token_request() -> Request {
    post("https://id.example/token")
        .header("authorization", "Basic {desk+top%3A1:{client_secret|form}|base64}")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(BODY)
}

fn userinfo() -> Request {
    get("https://api.example/userinfo").header("authorization", "Bearer {access_token}")
}

fn with_userinfo() -> Case<OAuth2Refresh> {
    account().setting("validate_url", "https://api.example/userinfo").key("access_token")
}

#[test]
fn fresh_tokens_are_captured_and_end_when_the_service_says() {
    let run = account().expect(token_request(), answer(200).json(ISSUED)).rotate("refresh");
    assert_eq!(run.captured("access_token"), Some("new-access"));
    assert_eq!(run.captured("refresh_token"), Some("new-refresh"));
    assert_eq!(run.outcome(), Outcome::Rotated(Evidence::new().expires(NOW + 3_600_000)));
}

#[test]
fn an_answer_without_a_refresh_token_keeps_the_old_one() {
    let issued = answer(200).json(r#"{"access_token":"new-access","token_type":"Bearer"}"#);
    let run = account().expect(token_request(), issued).rotate("refresh");
    assert_eq!(run.captured("refresh_token"), None);
    assert_eq!(run.outcome(), Outcome::rotated());
}

#[test]
fn the_clients_secret_goes_where_the_setting_says() {
    let in_body = post("https://id.example/token").body(
        "grant_type=refresh_token&refresh_token={refresh_token|form}&scope=a+b&client_id=desk+top%3A1\
         &client_secret={client_secret|form}",
    );
    let run = account()
        .setting("client_auth", "body")
        .setting("scope", "a b")
        .expect(in_body, answer(200).json(ISSUED));
    assert!(matches!(run.rotate("refresh").outcome(), Outcome::Rotated(_)));

    let public = post("https://id.example/token").header("content-type", "application/json").body(
        r#"{"grant_type":"refresh_token","refresh_token":"{refresh_token|json}","client_id":"desk top:1"}"#,
    );
    let run = account().setting("client_auth", "none").setting("body_format", "json");
    let run = run.expect(public, answer(200).json(ISSUED)).rotate("refresh");
    assert!(matches!(run.outcome(), Outcome::Rotated(_)));
}

#[test]
fn a_confidential_client_without_its_secret_needs_a_human_and_sends_nothing() {
    let run = Case::<OAuth2Refresh>::new()
        .setting("token_url", "https://id.example/token")
        .setting("client_id", "desktop")
        .key("refresh_token")
        .rotate("refresh");
    assert!(matches!(run.outcome(), Outcome::NeedsHuman(_)));
}

#[test]
fn each_error_of_the_token_endpoint_says_what_it_says_and_no_more() {
    let cases = [
        (answer(400).json(r#"{"error":"invalid_grant","error_description":"revoked"}"#), "invalid"),
        (answer(403).json(r#"{"error":"invalid_grant"}"#), "invalid"),
        (answer(200).json(r#"{"error":"bad_refresh_token"}"#), "invalid"),
        (answer(401).json(r#"{"error":"invalid_client"}"#), "needs-human"),
        (answer(400).json(r#"{"error":"unauthorized_client"}"#), "needs-human"),
        (answer(400).json(r#"{"error":"invalid_scope"}"#), "needs-human"),
        (answer(400).json(r#"{"error":"interaction_required"}"#), "needs-human"),
        (answer(400).json(r#"{"error":"invalid_request"}"#), "failed"),
        (answer(400).json(r#"{"error":"temporarily_unavailable"}"#), "unknown"),
        (answer(400).json(r#"{"error":"of_our_own"}"#), "unknown"),
        (answer(400).json("{}"), "unknown"),
        (answer(200).json("{}"), "unknown"),
        (answer(200).json("[1"), "unknown"),
        (answer(400).html("<h1>Bad request</h1>"), "unknown"),
        (answer(401).html("<h1>Proxy</h1>"), "unknown"),
        (answer(429).json(r#"{"error":"invalid_grant"}"#), "unknown"),
        (answer(503).json(r#"{"error":"temporarily_unavailable"}"#), "unknown"),
        (answer(302).header("location", "/login"), "unknown"),
        (fails(SendError::Timeout), "unknown"),
        (fails(SendError::Budget("20 requests".into())), "failed"),
    ];
    for (answer, expected) in cases {
        let run = account().expect(token_request(), answer.clone()).rotate("refresh");
        let got = match run.result {
            Ok(Outcome::Rotated(_)) => "rotated",
            Ok(Outcome::Unchanged(_)) => "unchanged",
            Ok(Outcome::Invalid(_)) => "invalid",
            Ok(Outcome::Unknown(_)) => "unknown",
            Ok(Outcome::NeedsHuman(_)) => "needs-human",
            Err(_) => "failed",
        };
        assert_eq!(got, expected, "for {answer:?}");
    }
}

#[test]
fn the_validate_url_decides_where_there_is_one() {
    let alive = with_userinfo().expect(userinfo(), answer(200).json(r#"{"sub":"u-1"}"#)).validate();
    assert_eq!(alive.verdict(), Verdict::Valid(Evidence::new().identity(String::from("u-1"))));

    let dead = with_userinfo().expect(userinfo(), answer(401).json("{}")).validate();
    assert!(matches!(dead.verdict(), Verdict::Invalid(_)));

    let other = with_userinfo().expect(userinfo(), answer(200).body("signed in")).validate();
    assert_eq!(other.verdict(), Verdict::valid());

    for silent in [
        answer(403),
        answer(404),
        answer(500),
        answer(401).html("<p>proxy"),
        answer(200).html("<p>log in"),
        answer(200),
        answer(200).json(r#"{"sub":"u"#),
        answer(200).body(r#"{"sub":"u"#),
    ] {
        let verdict = with_userinfo().expect(userinfo(), silent.clone()).validate().verdict();
        assert!(matches!(verdict, Verdict::Unknown(_)), "{silent:?} made {verdict:?}");
    }
}

#[test]
fn a_refused_access_token_that_had_expired_says_nothing_of_the_refresh_token() {
    let run = with_userinfo().expires(NOW - 1).expect(userinfo(), answer(401).json("{}")).validate();
    assert!(matches!(run.verdict(), Verdict::Unknown(_)));
}

#[test]
fn without_a_validate_url_only_an_end_ahead_is_evidence() {
    let ahead =
        account().setting("refresh_margin", "1m").key("access_token").expires(NOW + 90_000).validate();
    assert!(matches!(ahead.verdict(), Verdict::Valid(evidence) if evidence.expires == Some(NOW + 30_000)));
    for case in [account(), account().key("access_token"), account().key("access_token").expires(NOW)] {
        assert!(matches!(case.validate().verdict(), Verdict::Unknown(_)));
    }
}
