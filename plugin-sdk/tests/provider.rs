//! The SDK as a provider's author meets it, and the testing module as a strict host.

use keywheel_sdk::manifest::Location;
use keywheel_sdk::prelude::*;
use keywheel_sdk::testing::{Answer, Case, Level, NOW, Request, answer, fails, faults, get, post};

struct Shop;

impl Provider for Shop {
    fn describe() -> Manifest {
        Manifest::new("shop", "Shop", "0.1.0")
            .setting(Setting::url("base_url").required())
            .setting(Setting::duration("grace").default("2m"))
            .origin("{base_url.origin}")
            .validate_url("{base_url}/me")
            .key(Key::cookie("session", "sid", "{base_url.host}"))
            .key(Key::token("token").optional().reveal())
            .method(Method::new("refresh", CommitClass::Sliding))
            .method(Method::new("signed", CommitClass::Grace))
            .method(Method::new("stray", CommitClass::Grace))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx.get("{validate_url}").cookies().send()?;
        log::info("asked");
        match answer.status() {
            200 => Ok(Verdict::Valid(Evidence::new().identity(answer.pick("/id")?))),
            401 => Ok(Verdict::invalid("401")),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        match method {
            "refresh" => Ok(cx.post("{base_url}/session").cookies().send()?.outcome()),
            "signed" => {
                let length = cx.reveal("token")?.len();
                let answer = cx
                    .post("{base_url.origin}/sign")
                    .segment(secret("token"))
                    .query("a b", text("c&d"))
                    .query("grace", text(format!("{}", cx.setting_seconds("grace")?)))
                    .header("x-length", format!("{length}"))
                    .json([("proof", text("v1:") + secret("token"))])
                    .capture("token", header("x-next").expires_in(json("/lives")))
                    .send()?;
                let expires = answer.captured("token").and_then(|token| token.expires);
                log::debug(&answer.text());
                Ok(Outcome::Rotated(Evidence::new().expires(expires)))
            }
            _ => Ok(cx.post("{nowhere}/x").send()?.outcome()),
        }
    }
}

fn shop() -> Case<Shop> {
    Case::new().setting("base_url", "https://shop.example").key("session")
}

fn me() -> Request {
    get("https://shop.example/me").cookies()
}

#[test]
fn the_account_is_read_from_numbers_and_text() {
    for (body, identity) in [(r#"{"id":7}"#, Some("7")), (r#"{"id":"ann"}"#, Some("ann")), ("{}", None)] {
        let run = shop().expect(me(), answer(200).json(body)).validate();
        assert_eq!(run.log, [(Level::Info, String::from("asked"))]);
        assert_eq!(run.verdict(), Verdict::Valid(Evidence::new().identity(identity.map(String::from))));
    }
}

/// A service that says what is left of a limit.
fn limited(remaining: &str, reset: &str) -> Answer {
    answer(429).header("x-ratelimit-remaining", remaining).header("x-ratelimit-reset", reset)
}

#[test]
fn an_answer_that_teaches_nothing_stops_as_unknown_and_carries_retry_after() {
    let date = "Thu, 01 Jan 2026 00:01:30 GMT"; // 90 s after NOW
    let cases = [
        (answer(429).header("retry-after", "30"), Some(30)),
        (answer(503).header("Retry-After", date), Some(90)),
        (answer(503).header("retry-after", "soon"), None),
        // GitHub's way, with a moment; and the same with seconds.
        (limited("0", "1767225630"), Some(30)),
        (limited("0", "45"), Some(45)),
        (limited("0", "1767225000"), Some(0)),
        (limited("7", "1767225630"), None),
        (limited("0", "later"), None),
        (limited("0", "1767225630").header("retry-after", "60"), Some(60)),
        // GitLab's.
        (answer(429).header("ratelimit-remaining", "0").header("ratelimit-reset", "1767225690"), Some(90)),
        (answer(408), None),
        (answer(200).html("<!doctype html>"), None),
        (answer(200).body("  <html>"), None),
        (answer(200).json("{"), None),
        (answer(307).header("location", "https://elsewhere.example/"), None),
        (fails(SendError::Connect("refused".into())), None),
        (fails(SendError::TooLarge(5)), None),
    ];
    for (answer, expected) in cases {
        let verdict = shop().expect(me(), answer.clone()).validate().verdict();
        let Verdict::Unknown(reason) = verdict else { panic!("{answer:?} made {verdict:?}") };
        assert_eq!(reason.retry_after, expected, "for {answer:?}");
    }
}

#[test]
fn what_the_plugin_did_wrong_is_a_failure() {
    let denied = shop().expect(me(), fails(SendError::Denied("no".into()))).validate();
    assert!(denied.result.is_err());
    let unknown_setting = shop().rotate("stray").result.expect_err("no setting is called nowhere");
    assert!(
        unknown_setting.message.contains("`nowhere`, which is no setting"),
        "{}",
        unknown_setting.message
    );
}

#[test]
fn a_mapped_cookie_is_captured_without_a_rule() {
    let refresh = || post("https://shop.example/session").cookies();
    let run = shop().expect(refresh(), answer(204).set_cookie("sid", "fresh; Path=/")).rotate("refresh");
    assert_eq!(run.captured("session"), Some("fresh"));
    assert_eq!(run.outcome(), Outcome::rotated());
    let same = shop().expect(refresh(), answer(204).set_cookie("sid", "old-session")).rotate("refresh");
    assert_eq!(same.outcome(), Outcome::unchanged());
}

#[test]
fn every_place_of_a_request_encodes_what_goes_there() {
    let request = post("https://shop.example/sign/{token|percent}?a%20b=c%26d&grace=120")
        .header("x-length", "6")
        .body(r#"{"proof":"{v1:{token}|json}"}"#);
    let issued = answer(200).header("x-next", "fresh-token").json(r#"{"lives":60,"echo":"fresh-token"}"#);
    let run = shop().key_with_value("token", "old-tk").granted().expect(request, issued).rotate("signed");
    assert_eq!(run.captured("token"), Some("fresh-token"));
    assert_eq!(run.log, [(Level::Debug, String::from(r#"{"lives":60,"echo":"[redacted]"}"#))]);
    assert_eq!(run.outcome(), Outcome::Rotated(Evidence::new().expires(NOW + 60_000)));
}

#[test]
fn a_key_that_was_not_granted_needs_a_human() {
    let run = shop().key("token").rotate("signed");
    assert!(matches!(run.outcome(), Outcome::NeedsHuman(reason) if reason.message.contains("`token`")));
}

#[test]
#[should_panic(expected = "a request the script doesn't expect")]
fn a_request_outside_the_script_fails_the_test() {
    let _ = shop().validate();
}

#[test]
#[should_panic(expected = "the provider never made these requests")]
fn a_request_that_is_never_made_fails_the_test() {
    let _ = shop().expect(me(), answer(200).json("{}")).expect(me(), answer(200)).validate();
}

#[test]
#[should_panic(expected = "but the provider made")]
fn cookies_that_nobody_expected_fail_the_test() {
    let _ = shop().expect(get("https://shop.example/me"), answer(200)).validate();
}

#[test]
#[should_panic(expected = "uses key `token`, which this credential doesn't have")]
fn a_key_that_is_not_there_fails_the_test() {
    struct Forgetful;
    impl Provider for Forgetful {
        fn describe() -> Manifest {
            Shop::describe()
        }
        fn validate(cx: &Cx) -> Result<Verdict> {
            cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
            Ok(Verdict::valid())
        }
    }
    let _ = Case::<Forgetful>::new().setting("base_url", "https://shop.example").validate();
}

#[test]
fn another_origin_is_denied_as_the_host_would() {
    struct Stray;
    impl Provider for Stray {
        fn describe() -> Manifest {
            Shop::describe()
        }
        fn validate(cx: &Cx) -> Result<Verdict> {
            match cx.get("https://shop.example.collector.example/").cookies().send_any() {
                Err(SendError::Denied(_)) => Ok(Verdict::unknown("denied")),
                other => Err(Stop::failed(format!("{other:?}"))),
            }
        }
    }
    let run = Case::<Stray>::new().setting("base_url", "https://shop.example").validate();
    assert_eq!(run.verdict(), Verdict::unknown("denied"));
}

#[test]
fn a_manifest_the_host_would_refuse_has_its_faults_named() {
    let good = Shop::describe;
    let cases: [(Manifest, &str); 12] = [
        (Manifest { service: "Shop".into(), ..good() }, "service `Shop`"),
        (Manifest { keys: Vec::new(), ..good() }, "no keys"),
        (Manifest { validate_interval: 0, ..good() }, "validate-interval"),
        (good().key(Key::token("session")), "two keys"),
        (good().key(Key::token("a b")), "key `a b`"),
        (good().setting(Setting::text("Up")), "setting `Up`"),
        (good().setting(Setting::choice("pick", ["a"]).default("b")), "default `b` is no choice"),
        (good().method(Method::new("refresh", CommitClass::Grace)), "two methods"),
        (
            good().method(Method::new("m", CommitClass::Grace).commit_class_from("grace_class")),
            "`grace_class`",
        ),
        (good().origin("https://*.example"), "origin `https://*.example`"),
        (good().origin("http://plain.example"), "origin `http://plain.example`"),
        (good().validate_url("https://elsewhere.example/"), "not at one of the origins"),
    ];
    assert_eq!(faults(&good()), Vec::<String>::new());
    for (manifest, expected) in cases {
        let found = faults(&manifest);
        assert!(found.iter().any(|fault| fault.contains(expected)), "wanted {expected}, found {found:?}");
    }
    assert!(matches!(&good().keys[0].location, Location::Cookie(cookie) if cookie.path == "/"));
}
