//! A provider for the user access tokens of GitHub Apps: an access token of eight hours and the
//! refresh token that buys the next pair. A refresh ends both old tokens at once, so it is sent
//! once; and as both end together, an access token that works shows that nothing was spent.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

struct GitHubApp;

keywheel_sdk::export!(GitHubApp);

const REFRESHING: &str = "https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/refreshing-user-access-tokens";

const SECONDARY_LIMIT_SECONDS: u32 = 60;

impl Provider for GitHubApp {
    fn describe() -> Manifest {
        Manifest::new("github-app", "GitHub App user token", env!("CARGO_PKG_VERSION"))
            .source(REFRESHING)
            .setting(
                Setting::text("client_id")
                    .required()
                    .help("The app's client ID, which isn't its app ID, from the app's settings"),
            )
            .setting(
                Setting::url("login_url")
                    .default("https://github.com")
                    .help("Where people sign in: https://HOST on GitHub Enterprise Server"),
            )
            .setting(Setting::url("api_url").default("https://api.github.com").help(
                "The REST API: https://HOST/api/v3 on GitHub Enterprise Server, https://api.NAME.ghe.com with data \
                 residency",
            ))
            .origin("{login_url.origin}")
            .origin("{api_url.origin}")
            .validate_url("{api_url}/user")
            .key(Key::token("access_token").help("The user access token, as the app got it"))
            // Optional, so that a working access token, which dies with it, counts as the proof
            // that a refresh without an answer spent nothing.
            .key(
                Key::token("refresh_token")
                    .optional()
                    .help("The refresh token that came with it; without it nothing can be renewed"),
            )
            .key(
                Key::token("client_secret")
                    .optional()
                    .help("A client secret of the app; not needed where people signed in by device flow"),
            )
            .method(Method::new("refresh", CommitClass::BurnOnIssue).help(
                "Buys a new pair. The old access token stops working at once, so whatever uses it must take the new \
                 one from Keywheel",
            ))
            .class_source("refresh", REFRESHING)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx
            .get("{validate_url}")
            .header("accept", text("application/vnd.github+json"))
            .header("authorization", bearer("access_token"))
            .send()?;
        let end = cx.key("access_token").and_then(|token| token.expires);
        match answer.status() {
            200 => match (answer.pick("/id")?, answer.pick("/login")?) {
                (Some(id), Some(login)) => Ok(Verdict::Valid(
                    Evidence::new().identity(id).expires(end).note(format!("token of {login}")),
                )),
                _ => Err(answer.unexpected()),
            },
            401 if answer.said("/message")? != "Bad credentials" => Err(answer.unexpected()),
            401 => Ok(match end {
                // Known beforehand, and no word about the refresh token.
                Some(end) if end <= cx.now() => {
                    Verdict::Unknown(Reason::new("the access token has expired; a refresh is due").rotate_next())
                }
                // An imported one may have been of any age.
                None if cx.has("refresh_token") => Verdict::Unknown(
                    Reason::new(
                        "GitHub doesn't accept the access token (Bad credentials), and nobody knows its age: a \
                         refresh will tell",
                    )
                    .rotate_next(),
                ),
                _ => Verdict::invalid(
                    "GitHub doesn't accept the access token (Bad credentials): the app's authorization was revoked, \
                     or the token never was one. Sign in again and import both tokens",
                ),
            }),
            403 if answer.retry_after().is_none() && mentions(&answer.said("/message")?, "rate limit") => {
                Err(Stop::Unknown(Reason::new(answer.said("/message")?).retry_after(SECONDARY_LIMIT_SECONDS)))
            }
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        if !cx.has("refresh_token") {
            return Ok(Outcome::needs_human(
                "there is no refresh_token. Import the one that came with the access token; an app whose tokens don't \
                 expire has none, and then there is nothing to renew",
            ));
        }
        let mut fields = vec![
            ("grant_type", text("refresh_token")),
            ("refresh_token", secret("refresh_token")),
            ("client_id", text(cx.setting("client_id"))),
        ];
        if cx.has("client_secret") {
            fields.push(("client_secret", secret("client_secret")));
        }
        let answer = cx
            .post("{login_url}/login/oauth/access_token")
            // GitHub answers with a form otherwise.
            .header("accept", text("application/json"))
            .form(fields)
            .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
            .capture("refresh_token", json("/refresh_token").expires_in(json("/refresh_token_expires_in")))
            .send()?;
        if let Some(token) = answer.captured("access_token").filter(|token| token.is_new()) {
            return Ok(Outcome::Rotated(Evidence::new().expires(token.expires)));
        }
        // Refusals come with 200 as well.
        Err(refused(&answer)?)
    }
}

fn refused(answer: &Response) -> Result<Stop> {
    let description = answer.said("/error_description")?;
    Ok(match answer.pick("/error")?.as_deref() {
        Some("bad_refresh_token") => Stop::invalid(format!(
            "the refresh token is expired, used up or another app's ({description}): sign in to the app again and \
             import both tokens"
        )),
        Some(error @ "incorrect_client_credentials") => Stop::needs_human(format!(
            "GitHub doesn't accept the app ({error}): check the setting client_id and the key client_secret, which is \
             optional only where people signed in by device flow"
        )),
        Some(error @ ("unverified_user_email" | "unsupported_grant_type" | "application_suspended")) => {
            Stop::needs_human(format!(
                "GitHub doesn't renew tokens of this app or account ({error}: {description})"
            ))
        }
        _ => answer.unexpected(),
    })
}
