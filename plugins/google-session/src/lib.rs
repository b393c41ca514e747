//! A provider for the cookies of a browser's Google session. An experiment: Google documents none
//! of it. It takes nothing for evidence but Google's own page and Google's own endpoint, it makes
//! no sign-in, and it knows no credential of the whole account.
#![cfg_attr(target_family = "wasm", no_std)]

mod answers;

use answers::{Page, read_page, rotation_hint};
use keywheel_sdk::prelude::*;

struct GoogleSession;

keywheel_sdk::export!(GoogleSession);

/// What browsers send, byte for byte; it is no JSON.
const ROTATE: &str = r#"[000,"-0000000000000000000"]"#;

/// Google answers 429 to whoever asks more often.
const FLOOR_SECONDS: u32 = 60;

/// What Google's own hint says (`identity.hfcr`).
const MAX_AGE_SECONDS: u32 = 600;

const NOTES: &str =
    "https://github.com/HanaokaYuzu/Gemini-API/blob/master/src/gemini_webapi/utils/rotate_1psidts.py";

impl Provider for GoogleSession {
    fn describe() -> Manifest {
        Manifest::new("google-session", "Google session cookies (experimental)", env!("CARGO_PKG_VERSION"))
            .source(NOTES)
            .setting(Setting::text("user_agent").help(
                "The User-Agent of the browser that the cookies are from; empty sends Keywheel's own",
            ))
            .origin("https://accounts.google.com")
            .origin("https://gemini.google.com")
            .validate_url("https://gemini.google.com/app")
            .key(
                Key::cookie("psid", "__Secure-1PSID", "google.com")
                    .help("Experimental: the session; import all cookies of google.com and its subdomains with it"),
            )
            .key(
                Key::cookie("psidts", "__Secure-1PSIDTS", "google.com")
                    .help("Its fresh half, which a rotation replaces; the browser must not rotate it too"),
            )
            .key(
                Key::cookie("psidts_3p", "__Secure-3PSIDTS", "google.com")
                    .optional()
                    .help("The same for Google inside other sites"),
            )
            .method(
                Method::new("rotate-cookies", CommitClass::Sliding)
                    .help("Experimental: RotateCookies as a browser asks it; old cookies live on for about half an hour"),
            )
            .class_source(
                "rotate-cookies",
                "https://github.com/teng-lin/notebooklm-py/blob/main/docs/auth-cookie-lifecycle.md",
            )
            .max_age(MAX_AGE_SECONDS)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        // No redirects: being sent to the sign-in page is what a dead session looks like.
        let answer = as_browser(cx, cx.get("{validate_url}")).cookies().send()?;
        if answers::is_sign_in(answer.status(), answer.header("location")) {
            return Ok(Verdict::invalid(signed_out("sends this session to its sign-in page")));
        }
        if answer.status() != 200 || !answer.is_html() {
            return Err(answer.unexpected());
        }
        match read_page(&answer.text()) {
            Page::SignedIn(account) => Ok(Verdict::Valid(Evidence::new().identity(account))),
            Page::SignedOut => Ok(Verdict::invalid(signed_out("shows this session what a stranger sees"))),
            Page::Other => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = as_browser(cx, cx.post("https://accounts.google.com/RotateCookies"))
            .header("content-type", "application/json")
            .header("origin", "https://accounts.google.com")
            .cookies()
            .body(ROTATE)
            .send_any()?;
        match answer.status() {
            // Chromium answers this by a signature of the device's own key.
            _ if answer.header("sec-session-google-challenge").is_some() => Err(Stop::needs_human(
                "this session is bound to the device it was made on, and only a browser there can renew it: sign in \
                 with a browser that binds no sessions (a private window of Firefox), and import its cookies",
            )),
            200 => renewed(&answer),
            401 => Ok(Outcome::invalid(signed_out("answers 401 to this session"))),
            429 => {
                let wait = answer.retry_after().unwrap_or_default().max(FLOOR_SECONDS);
                let message =
                    "Google answers 429: somebody rotates these cookies too often; one consumer per session";
                Ok(Outcome::Unknown(Reason::new(message).retry_after(wait)))
            }
            _ => Err(answer.unexpected()),
        }
    }
}

fn renewed(answer: &Response) -> Result<Outcome> {
    // A page in its place says nothing; what it set, Keywheel keeps and tests all the same.
    let hint = rotation_hint(&answer.text()).ok_or_else(|| answer.unexpected())?;
    let evidence = Evidence::new().next(hint.map(|seconds| seconds.max(FLOOR_SECONDS)));
    Ok(match answer.changed("psidts") || answer.changed("psidts_3p") {
        true => Outcome::Rotated(evidence),
        // Of the others, those of the SIDCC family change with every answer.
        false => {
            Outcome::Unchanged(evidence.note("Google answered and rotated nothing: no fresh PSIDTS cookie"))
        }
    })
}

fn as_browser(cx: &Cx, request: Request) -> Request {
    match cx.setting("user_agent") {
        "" => request,
        agent => request.header("user-agent", text(agent)),
    }
}

fn signed_out(what: &str) -> String {
    format!(
        "Google {what}: it was signed out, its password changed, or another client rotated it; sign in again in a \
         private window and import all its cookies"
    )
}
