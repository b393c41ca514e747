//! A provider for Slack tokens with token rotation: those of an app's installation, and a
//! person's app configuration tokens. Slack says errors with status 200, so it reads `ok` and
//! `error` and never a status alone. It never sends a refresh token twice in one call.
#![cfg_attr(target_family = "wasm", no_std)]

mod errors;

use keywheel_sdk::prelude::*;

struct Slack;

keywheel_sdk::export!(Slack);

const ROTATION: &str = "https://docs.slack.dev/authentication/using-token-rotation";

/// Tokens live for twelve hours, and Slack's own libraries renew them two hours before the end.
const MAX_AGE_SECONDS: u32 = 10 * 3_600;

impl Provider for Slack {
    fn describe() -> Manifest {
        Manifest::new("slack", "Slack tokens with rotation", env!("CARGO_PKG_VERSION"))
            .source("https://docs.slack.dev/reference/methods/auth.test")
            .setting(
                Setting::url("api_url")
                    .default("https://slack.com")
                    .help("Slack's address; https://slack-gov.com for GovSlack"),
            )
            .setting(Setting::text("client_id").help(
                "The app's client ID, from its page Basic Information; app configuration tokens need none",
            ))
            .without_path("api_url")
            .origin("{api_url.origin}")
            .validate_url("{api_url}/api/auth.test")
            .key(Key::token("refresh_token").help("The refresh token that came with the token"))
            .key(
                Key::token("access_token")
                    .optional()
                    .help("The token that calls Slack; may be left out, for a rotation brings one"),
            )
            .key(
                Key::token("client_secret").optional().help(
                    "The app's client secret, from Basic Information; app configuration tokens need none",
                ),
            )
            .method(
                Method::new("refresh", CommitClass::BurnOnIssue)
                    .help("oauth.v2.access with the refresh token: bot and user tokens of an app"),
            )
            .method(
                Method::new("config", CommitClass::BurnOnIssue)
                    .help("tooling.tokens.rotate: a person's app configuration token"),
            )
            .class_source("refresh", ROTATION)
            .class_source("config", "https://docs.slack.dev/reference/methods/tooling.tokens.rotate")
            .max_age(MAX_AGE_SECONDS)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        if !cx.has("access_token") {
            return Ok(Verdict::unknown("there is no access token yet; a rotation brings one"));
        }
        let answer = cx
            .post("{validate_url}")
            .header("authorization", bearer("access_token"))
            .header("accept", "application/json")
            .send()?;
        let body = answer.json()?;
        match said(&body) {
            Said::Ok => Ok(Verdict::Valid(evidence(cx, &body))),
            Said::Error(error) => Err(errors::of_token(error)),
            Said::Neither => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        let config = method == "config";
        let request = if config {
            cx.post("{api_url}/api/tooling.tokens.rotate")
                .form([("refresh_token", secret("refresh_token"))])
                .capture("access_token", json("/token"))
        } else {
            cx.post("{api_url}/api/oauth.v2.access")
                .form(grant(cx)?)
                .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
        };
        let answer = request
            .header("accept", "application/json")
            .capture("refresh_token", json("/refresh_token"))
            .send()?;
        // Before looking at the rest: what was issued counts.
        if answer.changed("access_token") {
            let ends = answer.captured("access_token").and_then(|token| token.expires);
            // Configuration tokens say their end as a moment.
            let moment = || Some(answer.json().ok()?.get("exp")?.as_u64()?.saturating_mul(1_000));
            let ends = if config { moment() } else { ends };
            return Ok(Outcome::Rotated(Evidence::new().expires(ends)));
        }
        match said(&answer.json()?) {
            Said::Error(error) => Err(errors::of_rotation(error)),
            Said::Ok | Said::Neither => Err(answer.unexpected()),
        }
    }
}

enum Said<'a> {
    Ok,
    Error(&'a str),
    Neither,
}

/// Slack's word on a call: `ok`, or an error's name.
fn said(body: &Value) -> Said<'_> {
    match (body.get("ok").and_then(Value::as_bool), body.get("error").and_then(Value::as_str)) {
        (Some(true), _) => Said::Ok,
        (Some(false), Some(error)) => Said::Error(error),
        _ => Said::Neither,
    }
}

/// The workspace and who the token speaks for there: a user, or the app's bot user.
fn evidence(cx: &Cx, body: &Value) -> Evidence {
    let text = |name| body.get(name).and_then(Value::as_str);
    let who = text("user_id").or_else(|| text("bot_id"));
    let identity = text("team_id").zip(who).map(|(team, who)| format!("{team}/{who}"));
    Evidence::new().identity(identity).expires(cx.key("access_token").and_then(|token| token.expires))
}

fn grant(cx: &Cx) -> Result<Vec<(&'static str, Leaf)>> {
    let client_id = cx.setting("client_id");
    if client_id.is_empty() || !cx.has("client_secret") {
        return Err(Stop::needs_human(
            "Slack renews an app's token only for the app: give the setting client_id and the key client_secret \
             from the app's page Basic Information; an app configuration token is rotated by the method config",
        ));
    }
    Ok(vec![
        ("grant_type", text("refresh_token")),
        ("refresh_token", secret("refresh_token")),
        ("client_id", text(client_id)),
        ("client_secret", secret("client_secret")),
    ])
}
