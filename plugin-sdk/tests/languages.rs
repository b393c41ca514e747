//! What the layers for JavaScript and Python are held to (`tests/languages/sdk.json`) is what this
//! SDK says. Their own tests put the same cases to them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use keywheel_sdk::prelude::*;
use keywheel_sdk::testing::{Answer, Case, Request, answer, fails, get};
use keywheel_sdk::{SendError, date, encode};
use serde_json::Value;

fn cases() -> Value {
    serde_json::from_str(include_str!("../../tests/languages/sdk.json")).expect("JSON")
}

fn rows<'v>(cases: &'v Value, name: &str) -> &'v Vec<Value> {
    cases[name].as_array().expect("a list")
}

fn words(value: &Value) -> &str {
    value.as_str().expect("text")
}

thread_local! {
    static PATTERN: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Shop;

impl Provider for Shop {
    fn describe() -> Manifest {
        Manifest::new("shop", "The shop", "0.1.0")
            .origin("https://shop.example")
            .validate_url("https://shop.example/me")
            .key(Key::token("token"))
            .setting(Setting::duration("every"))
            .setting(Setting::url("base_url"))
            .setting(Setting::url("local"))
            .setting(Setting::text("path"))
            .method(Method::new("seconds", CommitClass::Grace))
            .method(Method::new("fill", CommitClass::Grace))
            .method(Method::new("url", CommitClass::Grace))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let found = cx.get("{validate_url}").send()?;
        match found.status() {
            200 => Ok(Verdict::Valid(Evidence::new().identity(found.pick("/login")?))),
            401 => Ok(Verdict::invalid("it is dead")),
            _ => Err(found.unexpected()),
        }
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        let evidence = Evidence::new();
        Ok(Outcome::Unchanged(match method {
            "seconds" => evidence.next(cx.setting_seconds("every")?),
            "fill" => evidence.note(PATTERN.with_borrow(|pattern| cx.fill(pattern))?),
            _ => {
                let _ = cx
                    .get("{validate_url}")
                    .query("a", text("1"))
                    .query("b", text("x y"))
                    .query("c", secret("token"))
                    .send()?;
                let _ = cx.get("{validate_url}").segment(text("a/b")).segment(secret("token")).send()?;
                evidence
            }
        }))
    }
}

fn account() -> Case<Shop> {
    Case::new().key("token")
}

fn me() -> Request {
    get("https://shop.example/me")
}

#[test]
fn encodings_and_dates_are_those_of_every_language() {
    let cases = cases();
    for row in rows(&cases, "encode") {
        let encode = match words(&row[0]) {
            "percent" => encode::percent,
            "form" => encode::form,
            "json" => encode::json,
            "base64" => encode::base64,
            "base64_url" => encode::base64_url,
            "hex" => encode::hex,
            other => panic!("{other}"),
        };
        assert_eq!(encode(words(&row[1])), words(&row[2]), "{row}");
    }
    for row in rows(&cases, "date") {
        assert_eq!(date::parse(words(&row[0])), row[1].as_u64(), "{row}");
    }
}

#[test]
fn placeholders_and_durations_are_those_of_every_language() {
    let cases = cases();
    for row in rows(&cases, "fill") {
        PATTERN.replace(words(&row[0]).to_owned());
        let mut case = account();
        for (name, value) in cases["settings"].as_object().expect("an object") {
            case = case.setting(name, words(value));
        }
        let said = match case.rotate("fill").result {
            Ok(Outcome::Unchanged(evidence)) => evidence.note.unwrap_or_default(),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => format!("error: {}", failure.message),
        };
        assert_eq!(said, words(&row[1]));
    }
    for row in rows(&cases, "seconds") {
        let run = account().setting("every", words(&row[0])).rotate("seconds");
        match run.result {
            Ok(Outcome::Unchanged(evidence)) => {
                assert_eq!(evidence.next.map(u64::from), row[1].as_u64(), "{row}");
            }
            Err(failure) => assert!(row[1].is_null(), "{row}: {}", failure.message),
            Ok(other) => panic!("{other:?}"),
        }
    }
}

fn scripted(case: &Value) -> Answer {
    if let Some(tag) = case["fails"].as_str() {
        let what = case["what"].as_str().unwrap_or("as scripted").to_owned();
        return fails(match tag {
            "denied" => SendError::Denied(what),
            "dns" => SendError::Dns(what),
            "connect" => SendError::Connect(what),
            "tls" => SendError::Tls(what),
            "timeout" => SendError::Timeout,
            "too-large" => SendError::TooLarge(what.parse().expect("bytes")),
            "protocol" => SendError::Protocol(what),
            "budget" => SendError::Budget(what),
            "other" => SendError::Other(what),
            other => panic!("{other}"),
        });
    }
    let status = case["status"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
    let headers = case["headers"].as_object().into_iter().flatten();
    let back = answer(status).body(case["body"].as_str().unwrap_or_default());
    headers.fold(back, |back, (name, value)| back.header(name, words(value)))
}

#[test]
fn answers_mean_what_they_mean_in_every_language() {
    let cases = cases();
    for case in rows(&cases, "answers") {
        let run = account().expect(me(), scripted(case)).validate();
        let (said, wait) = match run.result {
            Ok(Verdict::Valid(evidence)) => {
                (format!("valid: {}", evidence.identity.as_deref().unwrap_or("nobody")), None)
            }
            Ok(Verdict::Invalid(reason)) => (format!("invalid: {}", reason.message), reason.retry_after),
            Ok(Verdict::Unknown(reason)) => (format!("unknown: {}", reason.message), reason.retry_after),
            Ok(Verdict::NeedsHuman(reason)) => (format!("needs-human: {}", reason.message), None),
            Err(failure) => (format!("failed: {}", failure.message), None),
        };
        // Each language has its own words for what is wrong with JSON.
        let said = said.split_once(" (").map_or(said.as_str(), |(before, _)| before);
        assert_eq!(said, words(&case["says"]), "{}", case["about"]);
        assert_eq!(wait.map(u64::from), case["retry_after"].as_u64(), "{}", case["about"]);
    }
}

#[test]
fn templates_show_what_they_show_in_every_language() {
    let cases = cases();
    let wanted = &cases["templates"];
    let said: BTreeMap<&str, Template> = BTreeMap::from([
        ("bearer", bearer("access_token")),
        ("one secret", secret("a").form().into()),
        ("one text", text("a b").form().into()),
        ("computed", (text("id") + text(":") + secret("key").form()).base64()),
        ("computed secret", text("1 ") + secret("sid").sha1_hex()),
        ("text and secret in a form", form([("both", text("a") + secret("b"))])),
        ("twice", form([("twice", secret("b").base64())])),
        ("an empty object", json_object::<Leaf>([])),
        ("an object", json_object([("user", text("a\"b")), ("token", secret("token"))])),
        ("a form", form([("grant_type", text("a b")), ("refresh_token", secret("refresh_token"))])),
        ("basic", basic(text("robot"), secret("api_key"))),
    ]);
    for (name, template) in said {
        assert_eq!(template.to_string(), words(&wanted[name]), "{name}");
    }
    let run = account()
        .expect(get(words(&wanted["a query"])), answer(200))
        .expect(get(words(&wanted["a segment"])), answer(200))
        .rotate("url");
    assert_eq!(run.outcome(), Outcome::unchanged());
}
