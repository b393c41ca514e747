//! A token at a service of each commit class, a method for each, written as the author of a
//! good provider would. What a service may do to the old token is its method's class.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        Manifest::new("commit-classes", "A token of each commit class", "0.1.0")
            .setting(Setting::url("base_url").required().help("Where the service is"))
            .origin("{base_url.origin}")
            .validate_url("{base_url}/check")
            .key(Key::token("token").help("The token"))
            .method(Method::new("burn", CommitClass::BurnOnIssue).help("The old one dies at issue"))
            .method(Method::new("grace", CommitClass::Grace).help("The old one lives for a while"))
            .method(Method::new("commit-on-use", CommitClass::CommitOnUse).help("Until the new one is used"))
            .method(Method::new("additive", CommitClass::Additive).help("The old one stays"))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
        match answer.status() {
            200 => Ok(Verdict::Valid(Evidence::new().identity(answer.pick("/sub")?))),
            401 => Ok(Verdict::invalid("/check answers 401")),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        if method == "additive" {
            delete_orphans(cx)?;
        }
        let request = cx.post("{base_url}/rotate").header("authorization", bearer("token"));
        let answer = request.json([("note", text(tag(cx)))]).capture("token", json("/token")).send()?;
        match answer.status() {
            200..=299 => Ok(answer.outcome()),
            401 => Ok(Outcome::invalid("/rotate answers 401")),
            _ => Err(answer.unexpected()),
        }
    }
}

/// Marks the tokens that this credential was issued, among all of its account.
fn tag(cx: &Cx) -> String {
    format!("keywheel:{}", cx.context().credential_id)
}

/// A call has a bounded number of requests; what is left over goes the next time.
const DELETED_AT_ONCE: usize = 10;

/// Before a new token is asked for, those of earlier rotations go: superseded by now, or issued
/// to an attempt that was cut off. Never the one that asks, and none of anybody else's.
fn delete_orphans(cx: &Cx) -> Result<()> {
    let asking = |url: &str| cx.get(url).header("authorization", bearer("token")).send();
    let Some(mine) = asking("{base_url}/tokens/self")?.pick("/id")? else { return Ok(()) };
    let tokens = asking("{base_url}/tokens")?.json()?;
    let tagged = tokens.as_array().into_iter().flatten().filter(|token| token["note"] == tag(cx).as_str());
    let orphans = tagged.filter_map(|token| token["id"].as_u64()).map(|id| format!("{id}"));
    for id in orphans.filter(|id| *id != mine).take(DELETED_AT_ONCE) {
        let request = cx.request("DELETE", "{base_url}/tokens").segment(text(id));
        request.header("authorization", bearer("token")).send()?;
    }
    Ok(())
}

keywheel_sdk::export!(Guest);
