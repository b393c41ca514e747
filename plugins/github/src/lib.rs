//! A provider for GitHub tokens that are made by hand: personal access tokens, classic and
//! fine-grained, and OAuth tokens without an end. GitHub has no way to renew these, so it only
//! asks whether they live and when they end.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::date;
use keywheel_sdk::prelude::*;

struct GitHub;

keywheel_sdk::export!(GitHub);

/// What GitHub asks for where a secondary limit names no time of its own.
const SECONDARY_LIMIT_SECONDS: u32 = 60;

impl Provider for GitHub {
    fn describe() -> Manifest {
        Manifest::new("github", "GitHub token", env!("CARGO_PKG_VERSION"))
            .source("https://docs.github.com/en/rest/users/users#get-the-authenticated-user")
            .setting(Setting::url("api_url").default("https://api.github.com").help(
                "The REST API: https://HOST/api/v3 on GitHub Enterprise Server, https://api.NAME.ghe.com with data \
                 residency",
            ))
            .origin("{api_url.origin}")
            .validate_url("{api_url}/user")
            .key(Key::token("token").help(
                "A personal access token, from Settings, Developer settings; any scope, or none, will do",
            ))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx
            .get("{validate_url}")
            .header("accept", text("application/vnd.github+json"))
            .header("authorization", bearer("token"))
            .send()?;
        match answer.status() {
            200 => alive(&answer),
            401 if answer.said("/message")? == "Bad credentials" => Ok(Verdict::invalid(
                "GitHub doesn't accept the token (Bad credentials): it expired, was revoked, or never was one. \
                 Make a new one and import it",
            )),
            403 => Err(forbidden(&answer)?),
            _ => Err(answer.unexpected()),
        }
    }
}

fn alive(answer: &Response) -> Result<Verdict> {
    // The number stays when an account is renamed.
    let (Some(id), Some(login)) = (answer.pick("/id")?, answer.pick("/login")?) else {
        return Err(answer.unexpected());
    };
    let mut note = format!("token of {login}");
    // Not sent for fine-grained tokens, and empty for one without scopes.
    match answer.header("x-oauth-scopes").map(str::trim) {
        Some("") => note.push_str(", without scopes"),
        Some(scopes) => note = note + ", scopes: " + scopes,
        None => {}
    }
    if answer.header("x-github-sso").is_some_and(|sso| sso.starts_with("partial-results")) {
        note.push_str("; not authorized for the single sign-on of every organization");
    }
    let end = answer.header("github-authentication-token-expiration").and_then(date::parse);
    Ok(Verdict::Valid(Evidence::new().identity(id).expires(end).note(note)))
}

/// 403 is never about the token's life: limits, too many bad tokens from somewhere, rights.
fn forbidden(answer: &Response) -> Result<Stop> {
    let said = answer.said("/message")?;
    Ok(if answer.retry_after().is_some() {
        answer.unexpected()
    } else if mentions(&said, "rate limit") {
        Stop::Unknown(Reason::new(said).retry_after(SECONDARY_LIMIT_SECONDS))
    } else if answer.header("x-github-sso").is_some_and(|sso| sso.starts_with("required")) {
        Stop::needs_human(
            "an organization wants the token authorized for its single sign-on: Settings, Developer settings, \
             Personal access tokens, Configure SSO",
        )
    } else if said.starts_with("Resource not accessible by") {
        Stop::needs_human(format!(
            "the token is not a user's ({said}): this provider checks tokens of people; the token of an app's \
             installation lives an hour and is made anew by the app"
        ))
    } else {
        answer.unexpected()
    })
}
