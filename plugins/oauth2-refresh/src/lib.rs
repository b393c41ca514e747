//! A provider for OAuth 2.0 refresh tokens (RFC 6749 section 6). It asks the token endpoint for
//! fresh tokens and tells a dead grant from a broken service. It never retries with another way
//! to authenticate: the first try may have spent the token.
#![cfg_attr(target_family = "wasm", no_std)]

#[cfg(test)]
mod tests;
mod token_error;

use keywheel_sdk::prelude::*;

struct OAuth2Refresh;

keywheel_sdk::export!(OAuth2Refresh);

impl Provider for OAuth2Refresh {
    fn describe() -> Manifest {
        Manifest::new("oauth2-refresh", "OAuth 2.0 refresh token", env!("CARGO_PKG_VERSION"))
            .setting(Setting::url("token_url").required().help("The token endpoint"))
            .setting(Setting::url("validate_url").help(
                "Answers 200 to a live access token and 401 to a dead one, such as the userinfo \
                 endpoint; without it a token is judged by the expiry it was issued with",
            ))
            .setting(Setting::text("client_id").required().help("The client the refresh token was issued to"))
            .setting(
                Setting::choice("client_auth", ["header", "body", "none"])
                    .default("header")
                    .help("Where the client's secret goes; none for a public client"),
            )
            .setting(Setting::choice("body_format", ["form", "json"]).default("form"))
            .setting(Setting::text("scope").help("Asks for fewer scopes than were granted; usually empty"))
            .setting(
                Setting::choice("commit_class", CommitClass::NAMES)
                    .default("burn-on-issue")
                    .help("What a refresh does to the old refresh token; the default is the careful one"),
            )
            .setting(
                Setting::duration("refresh_margin")
                    .default("0s")
                    .help("How long before its end an access token counts as used up"),
            )
            .origin("{token_url.origin}")
            .origin("{validate_url.origin}")
            // The setting validate_url may be empty, and the token endpoint always has a say.
            .validate_url("{token_url}")
            .key(Key::token("refresh_token").help("The refresh token"))
            .key(Key::token("access_token").optional().help("The access token; a rotation brings one"))
            .key(
                Key::token("client_secret")
                    .optional()
                    .help("The client's secret, unless it is a public client"),
            )
            .method(
                Method::new("refresh", CommitClass::BurnOnIssue)
                    .commit_class_from("commit_class")
                    .help("The refresh token grant of RFC 6749 section 6"),
            )
            .source("https://www.rfc-editor.org/rfc/rfc6749#section-6")
            .class_source("refresh", "https://www.rfc-editor.org/rfc/rfc9700#section-4.14.2")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let Some(token) = cx.key("access_token").filter(|token| token.present) else {
            return Ok(wants_rotation("there is no access token yet; a rotation brings one"));
        };
        let expired = token.expires.is_some_and(|expires| expires <= cx.now());
        if cx.setting("validate_url").is_empty() {
            return by_expiry(cx, token.expires, expired);
        }
        let answer = cx.get("{validate_url}").header("authorization", bearer("access_token")).send()?;
        match answer.status() {
            _ if answer.is_html() => Err(answer.unexpected()),
            200 => Ok(Verdict::Valid(until(cx, token.expires)?.identity(account(&answer)?))),
            // Its end was known beforehand, and it says nothing of the refresh token.
            401 if expired => Ok(wants_rotation("the access token has expired; a rotation is due")),
            401 => Ok(Verdict::invalid("the service answers 401 to the access token")),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = grant(cx)?
            .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
            // Kept as it is where the answer omits it, as the RFC has it.
            .capture("refresh_token", json("/refresh_token").expires_in(json("/refresh_token_expires_in")))
            .send()?;
        // Before looking at the body: what was issued counts, whatever else the answer says.
        if let Some(token) = answer.captured("access_token") {
            let evidence = until(cx, token.expires)?;
            return Ok(if answer.changed_any() {
                Outcome::Rotated(evidence)
            } else {
                Outcome::Unchanged(evidence)
            });
        }
        let body = answer.json()?;
        match body.get("error").and_then(Value::as_str) {
            Some(error) => {
                Err(token_error::read(error, body.get("error_description").and_then(Value::as_str)))
            }
            None => Err(answer.unexpected()),
        }
    }
}

/// Whom a 200 names. Only a JSON answer can, and another one is no less valid; but half of one
/// and nothing at all are not the endpoint's answer.
fn account(answer: &Response) -> Result<Option<String>> {
    let text = answer.text();
    let text = text.trim_start();
    if text.is_empty() {
        return Err(answer.unexpected());
    }
    let says_json = answer.header("content-type").is_some_and(|kind| mentions(kind, "json"));
    match says_json || text.starts_with(['{', '[']) {
        true => answer.pick("/sub"),
        false => Ok(None),
    }
}

/// Also where the credential has been rotated before: fresh secrets may come without an access token.
fn wants_rotation(why: &str) -> Verdict {
    Verdict::Unknown(Reason::new(why).rotate_next())
}

/// Without an endpoint to ask, the service's word at issue is the evidence: its end lies ahead.
/// A token without a known end could be made up, so nothing is claimed of it.
fn by_expiry(cx: &Cx, expires: Option<u64>, expired: bool) -> Result<Verdict> {
    match expires {
        Some(_) if expired => Ok(wants_rotation("the access token has expired; a rotation is due")),
        Some(_) => Ok(Verdict::Valid(until(cx, expires)?.note("by the expiry it was issued with"))),
        None => Ok(Verdict::unknown(
            "the access token says nothing of its expiry; set validate_url to an endpoint that accepts it",
        )),
    }
}

/// The request of RFC 6749 section 6 with the client's authentication of section 2.3.1.
fn grant(cx: &Cx) -> Result<Request> {
    let client_id = || text(cx.setting("client_id"));
    let mut request = cx.post("{token_url}").header("accept", "application/json");
    let mut fields = vec![("grant_type", text("refresh_token")), ("refresh_token", secret("refresh_token"))];
    if !cx.setting("scope").is_empty() {
        fields.push(("scope", text(cx.setting("scope"))));
    }
    let auth = cx.setting("client_auth");
    if auth != "none" && !cx.has("client_secret") {
        return Err(Stop::needs_human(format!(
            "client_auth is `{auth}` and the credential has no client_secret: add it, or set client_auth to none"
        )));
    }
    match auth {
        "header" => {
            request =
                request.header("authorization", basic(client_id().form(), secret("client_secret").form()))
        }
        "body" => fields.extend([("client_id", client_id()), ("client_secret", secret("client_secret"))]),
        _ => fields.push(("client_id", client_id())),
    }
    Ok(match cx.setting("body_format") {
        "json" => request.json(fields),
        _ => request.form(fields),
    })
}

fn until(cx: &Cx, expires: Option<u64>) -> Result<Evidence> {
    let margin = u64::from(cx.setting_seconds("refresh_margin")?) * 1_000;
    Ok(Evidence::new().expires(expires.map(|expires| expires.saturating_sub(margin))))
}
