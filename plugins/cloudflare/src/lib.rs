//! A provider for Cloudflare API tokens, a user's or an account's. It asks Cloudflare about the
//! token, and rolls it where it may: a roll replaces the secret and ends the old one at once, so
//! it is sent once. A token's end and rights stay as they are.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

struct Cloudflare;

keywheel_sdk::export!(Cloudflare);

impl Provider for Cloudflare {
    fn describe() -> Manifest {
        Manifest::new("cloudflare", "Cloudflare API token", env!("CARGO_PKG_VERSION"))
            .source("https://developers.cloudflare.com/api/resources/user/subresources/tokens/")
            .setting(
                Setting::url("api_url")
                    .default("https://api.cloudflare.com/client/v4")
                    .help("The API; another one only for tests"),
            )
            .setting(Setting::text("owner").default("user").help(
                "Whose token it is: user for one of your profile, accounts/ID for one of an account (Manage account, \
                 API tokens)",
            ))
            .origin("{api_url.origin}")
            .validate_url("{api_url}/{owner}/tokens/verify")
            .key(Key::token("token").help(
                "The API token, not the Global API Key; to be rolled it needs the permission API Tokens: Edit itself",
            ))
            .method(Method::new("roll", CommitClass::BurnOnIssue).help(
                "Replaces the token's secret. The old one stops working at once, so whatever uses it must take the \
                 new one from Keywheel. Its end and its rights stay",
            ))
            .class_source("roll", "https://developers.cloudflare.com/fundamentals/api/how-to/roll-token/")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let token = verified(cx)?;
        // The end is no reason to rotate, which evidence would make it: a roll doesn't move it.
        let note = match token.ends {
            Some(end) => format!("ends {end}, and rolling it doesn't change that"),
            None => String::from("without an end"),
        };
        Ok(Verdict::Valid(Evidence::new().identity(token.id).note(note)))
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        // The token knows its own number, and a dead one isn't worth a roll.
        let token = verified(cx)?;
        let answer = cx
            .request("PUT", "{api_url}/{owner}/tokens")
            .segment(text(token.id.as_str()))
            .segment(text("value"))
            .header("authorization", bearer("token"))
            .header("content-type", text("application/json"))
            .body(text("{}"))
            .capture("token", json("/result"))
            .send()?;
        if answer.status() == 200 && answer.changed("token") {
            return Ok(Outcome::Rotated(Evidence::new().identity(token.id)));
        }
        let said = answer.said("/errors/0/message")?;
        Err(match (answer.status(), answer.pick("/errors/0/code")?) {
            // It was alive a moment ago, so this is about its rights.
            (401 | 403, Some(code)) => Stop::needs_human(format!(
                "the token works, and Cloudflare doesn't let it roll tokens ({code}: {said}): roll it in the dashboard \
                 and import the new one, or give it the permission API Tokens: Edit, which is much power for a token"
            )),
            (400 | 404, Some(code)) => Stop::needs_human(format!(
                "Cloudflare doesn't roll the token ({code}: {said}): roll it in the dashboard"
            )),
            _ => answer.unexpected(),
        })
    }
}

struct Token {
    id: String,
    ends: Option<String>,
}

/// Asks whether the token works. Whatever else Cloudflare says stops the attempt.
fn verified(cx: &Cx) -> Result<Token> {
    check_owner(cx.setting("owner"))?;
    let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
    if answer.status() != 200 {
        return Err(refused(cx, &answer)?);
    }
    match (answer.pick("/result/status")?.as_deref(), answer.pick("/result/id")?) {
        (Some("active"), Some(id)) => Ok(Token { id, ends: answer.pick("/result/expires_on")? }),
        (Some("disabled"), _) => Err(Stop::invalid(
            "the token is disabled: turn it on in the dashboard, or make a new one and import it",
        )),
        (Some("expired"), _) => Err(Stop::invalid(
            "the token has expired: give it a later end in the dashboard, or make a new one and import it",
        )),
        _ => Err(answer.unexpected()),
    }
}

fn check_owner(owner: &str) -> Result<()> {
    let is_id = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if owner == "user" || owner.strip_prefix("accounts/").is_some_and(is_id) {
        return Ok(());
    }
    Err(Stop::needs_human(format!(
        "owner is `{owner}`; allowed are `user` and `accounts/` with the 32 hexadecimal digits of an account's ID: add \
         the credential with one of these"
    )))
}

fn refused(cx: &Cx, answer: &Response) -> Result<Stop> {
    let said = answer.said("/errors/0/message")?;
    let code = answer.pick("/errors/0/code")?.unwrap_or_default();
    Ok(match (answer.status(), code.as_str()) {
        (400, "6003") => Stop::invalid(format!(
            "this is no API token ({said}): copy it whole; the Global API Key doesn't work here"
        )),
        // A token of an account isn't known at `user`, and the other way round.
        (401, "1000") => Stop::invalid(format!(
            "Cloudflare doesn't know the token ({said}): it was rolled or deleted, or is not one of what the setting \
             owner says ({})",
            cx.setting("owner")
        )),
        (403, "9109") => Stop::needs_human(format!(
            "Cloudflare doesn't accept the token from here ({said}): see the token's Client IP Address Filtering"
        )),
        (401 | 403, "10000") => Stop::needs_human(format!(
            "Cloudflare doesn't accept the token for this account ({said}): check the setting owner"
        )),
        _ => answer.unexpected(),
    })
}
