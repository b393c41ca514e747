//! What the guests share: the manifest and the two calls of a provider that behaves. Each guest
//! in `examples/` changes one thing about it. Never shipped.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

/// A service at `{base_url}` with one session cookie. The commit class is a setting, so that one
/// guest serves the tests of every class.
pub fn manifest(service: &str, version: &str) -> Manifest {
    Manifest::new(service, "A guest of the tests", version)
        .setting(Setting::url("base_url").required().help("Where the service is"))
        .setting(Setting::choice("commit_class", CommitClass::NAMES).default("sliding"))
        .origin("{base_url.origin}")
        .validate_url("{base_url}/check")
        .key(Key::cookie("session", "session", "{base_url.host}").help("The session cookie"))
        .method(Method::new("refresh", CommitClass::Sliding).commit_class_from("commit_class"))
}

/// GET `{base_url}/check` with the cookies: 200 lives, 401 is dead.
pub fn check(cx: &Cx) -> Result<Verdict> {
    let answer = cx.get("{validate_url}").cookies().send()?;
    match answer.status() {
        200 => Ok(Verdict::valid()),
        401 => Ok(Verdict::invalid("/check answers 401")),
        _ => Err(answer.unexpected()),
    }
}

/// POST `{base_url}/rotate` with the cookies: the answer sets a fresh session cookie.
pub fn refresh(cx: &Cx) -> Result<Outcome> {
    let answer = cx.post("{base_url}/rotate").cookies().send()?;
    match answer.status() {
        200..=299 => Ok(answer.outcome()),
        401 => Ok(Outcome::invalid("/rotate answers 401")),
        _ => Err(answer.unexpected()),
    }
}
