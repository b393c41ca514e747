//! The provider against scripted sites.

use keywheel_sdk::prelude::*;
use keywheel_sdk::testing::{Case, Request, answer, fails, get};

use crate::HttpSession;

fn site() -> Case<HttpSession> {
    Case::new().setting("base_url", "https://shop.example/").setting("validate_path", "/me").key("session")
}

fn me() -> Request {
    get("https://shop.example/me").cookies()
}

#[test]
fn a_live_session_is_valid() {
    assert_eq!(site().expect(me(), answer(200)).validate().verdict(), Verdict::valid());
}

#[test]
fn what_says_nothing_of_the_session_is_unknown() {
    let answers = [
        answer(429).header("retry-after", "120"),
        answer(503).html("<h1>Back soon</h1>"),
        answer(403).html("<h1>Checking your browser</h1>"),
        answer(200).header("cf-mitigated", "challenge"),
        answer(302).header("location", "https://elsewhere.example/"),
        answer(404),
        fails(SendError::Timeout),
        fails(SendError::Dns("no such name".into())),
        fails(SendError::Tls("expired".into())),
    ];
    for answer in answers {
        let verdict =
            site().setting("login_path", "/login").expect(me(), answer.clone()).validate().verdict();
        assert!(matches!(verdict, Verdict::Unknown(_)), "{answer:?} made {verdict:?}");
    }
}

#[test]
fn a_rate_limit_says_when_to_come_back() {
    let limited = site().expect(me(), answer(429).header("retry-after", "120")).validate();
    assert!(matches!(limited.verdict(), Verdict::Unknown(Reason { retry_after: Some(120), .. })));
}

#[test]
fn a_redirect_to_the_login_page_is_invalid_and_no_rotation() {
    let sent_away = || answer(302).header("location", "/login?next=/me").set_cookie("session", "anonymous");
    let site = || site().setting("login_path", "/login").expect(me(), sent_away());
    assert!(matches!(site().validate().verdict(), Verdict::Invalid(_)));
    assert!(matches!(site().rotate("visit").outcome(), Outcome::Invalid(_)));
}

#[test]
fn a_visit_that_brings_a_new_cookie_is_a_rotation() {
    let run = site().expect(me(), answer(200).set_cookie("session", "fresh")).rotate("visit");
    assert_eq!(run.captured("session"), Some("fresh"));
    assert_eq!(run.outcome(), Outcome::rotated());
}

#[test]
fn a_visit_without_a_new_cookie_leaves_a_live_session_unchanged() {
    assert_eq!(site().expect(me(), answer(200)).rotate("visit").outcome(), Outcome::unchanged());
}

#[test]
fn a_blocked_visit_is_unknown_even_with_a_new_cookie() {
    let blocked = answer(403).html("<h1>No</h1>").set_cookie("session", "firewall");
    assert!(matches!(site().expect(me(), blocked).rotate("visit").outcome(), Outcome::Unknown(_)));
}

#[test]
fn another_refresh_path_proves_a_rotation_by_the_new_cookie_or_by_a_look_at_the_validate_path() {
    let site = || site().setting("refresh_path", "/keepalive").setting("alive_text", "Sign out");
    let keepalive = || get("https://shop.example/keepalive").cookies();

    let fresh = site().expect(keepalive(), answer(204).set_cookie("session", "fresh")).rotate("visit");
    assert_eq!(fresh.outcome(), Outcome::rotated());

    let same =
        site().expect(keepalive(), answer(204)).expect(me(), answer(200).html("<a>Sign out")).rotate("visit");
    assert_eq!(same.outcome(), Outcome::unchanged());

    let silent =
        site().expect(keepalive(), answer(204)).expect(me(), answer(200).html("<a>Hello")).rotate("visit");
    assert!(matches!(silent.outcome(), Outcome::Unknown(_)));
}

#[test]
fn the_cookie_name_is_the_operators() {
    let run = site()
        .setting("cookie_name", "sessionid")
        .expect(me(), answer(200).set_cookie("session", "other").set_cookie("sessionid", "fresh"))
        .rotate("visit");
    assert_eq!(run.captured("session"), Some("fresh"));
}

#[test]
fn a_status_that_is_no_number_fails_with_the_settings_name() {
    let failure = site().setting("alive_status", "ok").expect(me(), answer(200)).validate().result;
    assert!(failure.is_err_and(|failure| failure.message.contains("`alive_status` is `ok`")));
}
