//! A provider for Atlassian OAuth 2.0 (3LO) tokens, with rotating refresh tokens. It asks
//! Atlassian who the access token is, and renews the pair. A refused access token is never taken
//! for a refused refresh token, and a missing scope never for a dead token.
#![cfg_attr(target_family = "wasm", no_std)]

mod refusal;

use keywheel_sdk::prelude::*;

struct Atlassian;

keywheel_sdk::export!(Atlassian);

const DOCUMENTED: &str = "https://developer.atlassian.com/cloud/oauth/getting-started/refresh-tokens/";

impl Provider for Atlassian {
    fn describe() -> Manifest {
        Manifest::new("atlassian", "Atlassian OAuth 2.0 (3LO)", env!("CARGO_PKG_VERSION"))
            .source(DOCUMENTED)
            .setting(
                Setting::url("auth_url")
                    .default("https://auth.atlassian.com")
                    .help("Where tokens are issued; the default is right for Atlassian's cloud"),
            )
            .setting(
                Setting::url("api_url")
                    .default("https://api.atlassian.com")
                    .help("Where tokens are checked; the default is right for Atlassian's cloud"),
            )
            .setting(
                Setting::text("client_id")
                    .required()
                    .help("The app's client ID, from its page Settings in the developer console"),
            )
            .without_path("auth_url")
            .without_path("api_url")
            .origin("{auth_url.origin}")
            .origin("{api_url.origin}")
            .validate_url("{api_url}/oauth/token/accessible-resources")
            .key(Key::token("refresh_token").help("From a consent with the scope offline_access"))
            .key(
                Key::token("access_token")
                    .optional()
                    .help("The access token; may be left out, for a rotation brings one"),
            )
            .key(
                Key::token("client_secret")
                    .help("The app's secret, from its page Settings in the developer console"),
            )
            .method(
                Method::new("refresh", CommitClass::Grace)
                    .help("Swap the pair for a new one; the old refresh token can repeat it for ten minutes"),
            )
            .class_source("refresh", DOCUMENTED)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let Some(token) = cx.key("access_token").filter(|token| token.present) else {
            return Ok(Verdict::unknown("there is no access token yet; a rotation brings one"));
        };
        // Names the account, where the token has the scope read:me. What else it answers decides
        // nothing: Atlassian says 401 to a missing scope as well.
        let me = ask(cx, "{api_url}/me")?;
        let body = me.json()?;
        if me.status() == 200 {
            return match body.get("account_id").and_then(Value::as_str) {
                Some(account) => {
                    Ok(Verdict::Valid(Evidence::new().identity(String::from(account)).expires(token.expires)))
                }
                None => Err(me.unexpected()),
            };
        }
        if !matches!(me.status(), 401 | 403) {
            return Err(me.unexpected());
        }
        // Needs no scope of its own.
        let sites = ask(cx, "{validate_url}")?;
        let body = sites.json()?;
        match (sites.status(), &body) {
            (200, Value::Array(list)) => {
                let evidence = Evidence::new().expires(token.expires);
                Ok(Verdict::Valid(match list.is_empty() {
                    true => evidence.note("the token lives and is allowed on no site"),
                    false => evidence,
                }))
            }
            // Its end was known beforehand, and it says nothing of the refresh token.
            (401, _) if token.expires.is_some_and(|expires| expires <= cx.now()) => {
                Ok(Verdict::unknown("the access token has expired; a rotation is due"))
            }
            (401, _) => Ok(Verdict::invalid(
                "Atlassian answers 401 to the access token: consent was withdrawn, the account's password changed, \
                 or the pair was renewed elsewhere; rotate it once by hand, and where that fails let the account's \
                 owner consent again and import the new tokens",
            )),
            _ => Err(sites.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = cx
            .post("{auth_url}/oauth/token")
            .header("accept", "application/json")
            .json([
                ("grant_type", text("refresh_token")),
                ("client_id", text(cx.setting("client_id"))),
                ("client_secret", secret("client_secret")),
                ("refresh_token", secret("refresh_token")),
            ])
            .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
            .capture("refresh_token", json("/refresh_token"))
            .send()?;
        // Before looking at the rest: what was issued counts.
        if answer.changed("access_token") {
            let ends = answer.captured("access_token").and_then(|token| token.expires);
            return Ok(Outcome::Rotated(Evidence::new().expires(ends)));
        }
        let body = answer.json()?;
        let text = |name| body.get(name).and_then(Value::as_str);
        match (answer.status(), text("error")) {
            (400..=403, Some(error)) => {
                Err(refusal::read(error, text("error_description").unwrap_or_default()))
            }
            _ => Err(answer.unexpected()),
        }
    }
}

fn ask(cx: &Cx, url: &str) -> Result<Response> {
    cx.get(url).header("authorization", bearer("access_token")).header("accept", "application/json").send()
}
