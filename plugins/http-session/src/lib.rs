//! A provider for any session that lives in a cookie, told by settings what a live one looks
//! like. It decides what an answer proves and nothing else; `invalid` needs the site's own word.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

mod evidence;
#[cfg(test)]
mod tests;

use evidence::{Page, Proof, Signs};
use keywheel_sdk::prelude::*;

struct HttpSession;

keywheel_sdk::export!(HttpSession);

impl Provider for HttpSession {
    fn describe() -> Manifest {
        Manifest::new("http-session", "Any cookie session", env!("CARGO_PKG_VERSION"))
            .setting(Setting::url("base_url").required().help("The site, such as https://shop.example"))
            .setting(
                Setting::text("validate_path")
                    .default("/")
                    .help("A page that a signed-in visitor sees differently, such as /account or /api/me"),
            )
            .setting(Setting::text("cookie_name").default("session").help("The session cookie"))
            .setting(Setting::integer("alive_status").default("200").help("The status of a live session"))
            .setting(
                Setting::text("alive_json_pointer")
                    .help("Where a live session's JSON answer has something, such as /user/id; null, false or missing means dead"),
            )
            .setting(Setting::text("alive_text").help("Text that only a signed-in visitor sees"))
            .setting(Setting::text("dead_text").help("Text that only a signed-out visitor sees"))
            .setting(
                Setting::text("login_path")
                    .help("Where a dead session is redirected to: a path, or a whole URL for single sign-on"),
            )
            .setting(
                Setting::text("refresh_path").help("What to visit to extend the session; validate_path if empty"),
            )
            .setting(
                Setting::choice("commit_class", CommitClass::NAMES)
                    .default("sliding")
                    .help("What a refresh does to the old session; burn-on-issue if refresh_path ends it at once"),
            )
            .origin("{base_url.origin}")
            .validate_url("{base_url}{validate_path}")
            .key(
                Key::cookie("session", "{cookie_name}", "{base_url.host}")
                    .help("The session cookie; other cookies of the site travel along"),
            )
            .method(
                Method::new("visit", CommitClass::Sliding)
                    .commit_class_from("commit_class")
                    .help("Visit refresh_path as a browser would; the site extends the session"),
            )
            .source("https://www.rfc-editor.org/rfc/rfc6265")
            // What a site does else, its operator says by the setting.
            .class_source(
                "visit",
                "https://docs.djangoproject.com/en/stable/topics/http/sessions/#when-sessions-are-saved",
            )
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = visit(cx, "{validate_url}")?;
        match signs(cx)?.read(&page(&answer)) {
            Proof::Alive => Ok(Verdict::Valid(evidence(cx, &answer))),
            Proof::Dead(why) => Ok(Verdict::invalid(why)),
            Proof::Nothing(why) => Err(unproven(&answer, why)),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let refresh_path = cx.setting("refresh_path");
        let elsewhere = !refresh_path.is_empty() && refresh_path != cx.setting("validate_path");
        let answer = visit(cx, if elsewhere { "{base_url}{refresh_path}" } else { "{validate_url}" })?;
        let signs = signs(cx)?;
        // What a live page holds is said of validate_path; another page may show nothing of it.
        let proof = if elsewhere { signs.of_death(&page(&answer)) } else { signs.read(&page(&answer)) };
        match proof {
            // A site that signs a visitor out hands a new anonymous session along: that is no rotation.
            Proof::Dead(why) => Ok(Outcome::invalid(why)),
            Proof::Alive => Ok(match answer.changed("session") {
                true => Outcome::Rotated(evidence(cx, &answer)),
                false => Outcome::Unchanged(evidence(cx, &answer)),
            }),
            Proof::Nothing(_) if elsewhere && answer.is_success() => match answer.changed("session") {
                // The host validates the new session before it counts.
                true => Ok(Outcome::Rotated(evidence(cx, &answer))),
                false => Self::validate(cx).map(unchanged_if_valid),
            },
            Proof::Nothing(why) => Err(unproven(&answer, why)),
        }
    }
}

fn visit(cx: &Cx, url: &str) -> Result<Response> {
    // No redirects: being sent to the login page is what a dead session looks like.
    cx.get(url).cookies().send()
}

fn signs(cx: &Cx) -> Result<Signs<'_>> {
    Ok(Signs {
        alive_status: cx.setting_as("alive_status")?,
        alive_json_pointer: cx.setting("alive_json_pointer"),
        alive_text: cx.setting("alive_text"),
        dead_text: cx.setting("dead_text"),
        login_path: cx.setting("login_path"),
    })
}

fn page(answer: &Response) -> Page<'_> {
    Page {
        url: answer.url(),
        status: answer.status(),
        location: answer.header("location"),
        is_html: answer.is_html(),
        body: answer.text(),
    }
}

fn evidence(cx: &Cx, answer: &Response) -> Evidence {
    let after = answer.captured("session").and_then(|session| session.expires);
    let before = cx.key("session").and_then(|session| session.expires);
    Evidence::new().expires(after.or(before))
}

fn unchanged_if_valid(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Valid(evidence) => Outcome::Unchanged(evidence),
        Verdict::Invalid(reason) => Outcome::Invalid(reason),
        Verdict::Unknown(reason) => Outcome::Unknown(reason),
        Verdict::NeedsHuman(reason) => Outcome::NeedsHuman(reason),
    }
}

fn unproven(answer: &Response, why: String) -> Stop {
    match answer.unexpected() {
        Stop::Unknown(reason) => {
            Stop::Unknown(Reason { message: format!("{}; {why}", reason.message), ..reason })
        }
        other => other,
    }
}
