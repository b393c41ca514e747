//! A provider for GitLab access tokens: personal ones, and those of projects and groups. A token
//! tells about itself and rotates itself. A rotation revokes the old token at once, and rotating
//! with a revoked one revokes its successor as well, so a rotation is sent once and never again.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::date;
use keywheel_sdk::prelude::*;

struct GitLab;

keywheel_sdk::export!(GitLab);

const API: &str = "https://docs.gitlab.com/api/personal_access_tokens/";

/// "One year or less from the rotation date", with a day for the time zone between two clocks.
const LONGEST_DAYS: u64 = 364;
const DAY_MILLIS: u64 = 86_400_000;
/// Monthly, so that eleven months of a token's year are left for whoever was called.
const MAX_AGE: u32 = 30 * 86_400;

impl Provider for GitLab {
    fn describe() -> Manifest {
        Manifest::new("gitlab", "GitLab access token", env!("CARGO_PKG_VERSION"))
            .source(API)
            .setting(
                Setting::url("base_url")
                    .default("https://gitlab.com")
                    .help("Your GitLab, such as https://gitlab.example or https://example.com/gitlab"),
            )
            .setting(
                Setting::integer("lifetime_days")
                    .default("364")
                    .help("How long a new token lives, in days from 1 to 364; your GitLab may allow less"),
            )
            .setting(Setting::duration("expiry_margin").default("1d").help(
                "How long before its end a token is rotated; a token ends at 00:00 UTC of the day it names",
            ))
            .setting(
                Setting::text("project")
                    .help("For a project access token: the project's number or path, such as team/app"),
            )
            .setting(
                Setting::text("group")
                    .help("For a group access token: the group's number or path, such as team"),
            )
            .origin("{base_url.origin}")
            .validate_url("{base_url}/api/v4/personal_access_tokens/self")
            .key(Key::token("token").help(
                "An access token with the scope self_rotate (or api), from the page Access tokens of your \
                 profile, project or group",
            ))
            .method(Method::new("self-rotate", CommitClass::BurnOnIssue).help(
                "Lets the token replace itself. The old one is revoked at once, so whatever uses it must take \
                 the new one from Keywheel",
            ))
            .class_source("self-rotate", "https://docs.gitlab.com/api/personal_access_tokens/#automatic-reuse-detection")
            .max_age(MAX_AGE)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx.get("{validate_url}").header("private-token", secret("token")).send()?;
        if answer.status() != 200 {
            return Err(refused(&answer, false)?);
        }
        if answer.pick("/revoked")?.as_deref() == Some("true") {
            return Ok(Verdict::invalid(
                "GitLab says that the token is revoked: make a new one and import it",
            ));
        }
        match answer.pick("/active")?.as_deref() {
            Some("true") => Ok(Verdict::Valid(evidence(cx, &answer)?)),
            Some("false") => {
                Ok(Verdict::invalid("GitLab says that the token is not active: make a new one and import it"))
            }
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = rotation(cx)?
            .header("private-token", secret("token"))
            .json([("expires_at", text(new_end(cx)?))])
            .capture("token", json("/token"))
            .send()?;
        match answer.status() {
            200 | 201 if answer.changed("token") => Ok(Outcome::Rotated(evidence(cx, &answer)?)),
            400 => {
                let said = answer.said("/message")? + &answer.said("/error")?;
                Err(match said.is_empty() {
                    true => answer.unexpected(),
                    false => Stop::needs_human(format!(
                        "GitLab doesn't rotate the token ({said}); if its end is too far away for your GitLab, \
                         set lifetime_days lower"
                    )),
                })
            }
            _ => Err(refused(&answer, true)?),
        }
    }
}

/// A token of a project or group is rotated by that, everything else about it is asked as of a
/// personal one: GitLab keeps it as the personal token of a user of its own.
fn rotation(cx: &Cx) -> Result<Request> {
    let of = |kind: &str, name: &str| {
        cx.post(&format!("{{base_url}}/api/v4/{kind}"))
            .segment(text(name))
            .segment(text("access_tokens"))
            .segment(text("self"))
            .segment(text("rotate"))
    };
    match (cx.setting("project"), cx.setting("group")) {
        ("", "") => Ok(cx.post("{base_url}/api/v4/personal_access_tokens/self/rotate")),
        (project, "") => Ok(of("projects", project)),
        ("", group) => Ok(of("groups", group)),
        _ => Err(Stop::needs_human(
            "both project and group are set, and a token belongs to one of them: add the credential with one",
        )),
    }
}

/// The day that a new token shall end. It is always sent: without it a token lives for a week.
fn new_end(cx: &Cx) -> Result<String> {
    let days: u64 = cx.setting_as("lifetime_days")?;
    if !(1..=LONGEST_DAYS).contains(&days) {
        return Err(Stop::needs_human(format!(
            "lifetime_days is {days}; GitLab allows 1 to {LONGEST_DAYS}: add the credential with one of these"
        )));
    }
    let margin = u64::from(cx.setting_seconds("expiry_margin")?) * 1_000;
    // The day has begun when a token is made, so it lives up to a day less than asked for.
    if (days - 1) * DAY_MILLIS < margin {
        return Err(Stop::needs_human(format!(
            "lifetime_days is {days} and expiry_margin {}: a new token would be due at once. Make one longer or \
             the other shorter",
            cx.setting("expiry_margin")
        )));
    }
    Ok(date::day(cx.now() + days * DAY_MILLIS))
}

/// What GitLab says of a token that works. Its owner's number stays over a rotation, its own
/// doesn't. Without `expires_at` it has no end.
fn evidence(cx: &Cx, answer: &Response) -> Result<Evidence> {
    let margin = u64::from(cx.setting_seconds("expiry_margin")?) * 1_000;
    let body = answer.json()?;
    let scopes: Vec<&str> =
        body["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let rotates = scopes.iter().any(|scope| ["api", "self_rotate"].contains(scope));
    let note = format!(
        "scopes: {}{}",
        scopes.join(", "),
        if rotates { "" } else { "; it can't rotate itself without self_rotate or api" }
    );
    Ok(Evidence::new()
        .expires(answer.date("/expires_at")?.map(|end| end.saturating_sub(margin)))
        .identity(answer.pick("/user_id")?)
        .note(note))
}

/// What GitLab means where it doesn't do as asked.
fn refused(answer: &Response, rotating: bool) -> Result<Stop> {
    let (error, message) = (answer.said("/error")?, answer.said("/message")?);
    let description = answer.said("/error_description")?;
    Ok(match (answer.status(), error.as_str()) {
        // An administrator may allow these again.
        (401, "invalid_token") if mentions(&description, "impersonation") => Stop::needs_human(format!(
            "GitLab doesn't accept this kind of token at present ({description}): ask its administrator"
        )),
        (401, "invalid_token") => {
            Stop::invalid(format!("GitLab refuses the token ({description}): make a new one and import it"))
        }
        (401, "dpop_error") => Stop::needs_human(
            "the account accepts tokens only with a proof of possession (DPoP), which Keywheel doesn't make: \
             turn that off in its preferences, or use a token of a project or group",
        ),
        // Also the answer to a living token that asks for another's rotation.
        (401, "") if message.starts_with("401 Unauthorized") && rotating => Stop::needs_human(format!(
            "GitLab doesn't let the token rotate itself ({message}): it is dead, or of another kind than the \
             settings project and group say"
        )),
        (401, "") if message.starts_with("401 Unauthorized") => {
            Stop::invalid(format!("GitLab doesn't know the token ({message}): make a new one and import it"))
        }
        (403, "insufficient_scope") => Stop::needs_human(
            "the token lives but may not do this: it needs the scope self_rotate or api. Make one that has it, \
             and import it",
        ),
        (403, "") if message.starts_with("403 Forbidden - ") => Stop::needs_human(format!(
            "GitLab refuses the account, not the token ({message}): sign in there and see what it wants"
        )),
        (403, "") if message == "403 Forbidden" => Stop::needs_human(
            "GitLab doesn't allow the token to do this (403 Forbidden): see its scopes and its owner's role",
        ),
        (404, _) if rotating && (mentions(&error, "Not Found") || mentions(&message, "Not Found")) => {
            Stop::needs_human(format!(
                "GitLab finds nothing to rotate there ({error}{message}): check the settings project and group; \
                 a token rotates itself from GitLab 16.10 on"
            ))
        }
        (405, _) if rotating && !(error.is_empty() && message.is_empty()) => Stop::needs_human(
            "this token is of another kind: set project or group where it belongs to one. Deploy tokens and \
             OAuth tokens don't rotate themselves",
        ),
        _ => answer.unexpected(),
    })
}
