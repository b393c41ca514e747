//! What a homeserver's refusal says of the credential, by the error codes of the Matrix
//! specification (client-server API, "API standards"). It reads one answer and decides nothing
//! else.

use keywheel_sdk::prelude::*;

/// Enough to recognise an error by; the text is the homeserver's.
const ERROR_CHARS: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// With the access token, whose known end has passed or not.
    Whoami { ended: bool },
    /// With the refresh token.
    Refresh,
}

pub fn read(answer: &Response, asked: Asked) -> Stop {
    let Ok(body) = answer.json() else { return answer.unexpected() };
    let text = |name| body.get(name).and_then(Value::as_str);
    let Some(code) = text("errcode") else { return answer.unexpected() };
    let said: String = match text("error") {
        Some(error) => format!("{code}: {error}").chars().take(ERROR_CHARS).collect(),
        None => code.chars().take(ERROR_CHARS).collect(),
    };
    let soft_logout = body.get("soft_logout").and_then(Value::as_bool) == Some(true);
    match (answer.status(), code) {
        (429, _) | (_, "M_LIMIT_EXCEEDED") => {
            // In the body until version 1.10 of the specification, in a header since.
            let in_body = body.get("retry_after_ms").and_then(Value::as_u64).map(whole_seconds);
            let wait = answer.retry_after().or(in_body);
            Stop::Unknown(
                Reason::new(format!("the homeserver asks for fewer requests ({said})")).retry_after(wait),
            )
        }
        (500.., _) => answer.unexpected(),
        (_, "M_USER_LOCKED") => Stop::needs_human(format!(
            "the account is locked: an administrator of the homeserver can unlock it, the tokens stay ({said})"
        )),
        (_, "M_USER_DEACTIVATED") => Stop::invalid(format!(
            "the account is deactivated: only an administrator of the homeserver can bring it back ({said})"
        )),
        (_, "M_CONSENT_NOT_GIVEN") => Stop::needs_human(format!(
            "the homeserver wants the account's owner to accept its terms: sign in with a client ({said})"
        )),
        (401 | 403, "M_UNKNOWN_TOKEN" | "M_FORBIDDEN") if asked == Asked::Refresh => {
            let device = match soft_logout {
                true => "; the device is still there, so sign in with its device id",
                false => "",
            };
            Stop::invalid(format!(
                "the homeserver ended the session or its refresh token: sign in again and import the new \
                 tokens{device} ({said})"
            ))
        }
        (401, "M_UNKNOWN_TOKEN") => match asked {
            Asked::Whoami { ended } if ended || soft_logout => Stop::Unknown(
                Reason::new(format!("the access token has ended; a rotation is due ({said})")).rotate_next(),
            ),
            _ => Stop::invalid(format!(
                "the session was ended, signed out or never was: sign in again and import the new tokens \
                 ({said})"
            )),
        },
        (404, "M_UNRECOGNIZED") if asked == Asked::Refresh => Stop::needs_human(format!(
            "this homeserver has no refresh tokens: check the setting homeserver ({said})"
        )),
        _ => Stop::Unknown(
            Reason::new(format!("the homeserver answers {} {said}", answer.status()))
                .retry_after(answer.retry_after()),
        ),
    }
}

/// Rounded up: a moment too early would be refused again.
fn whole_seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX)
}
