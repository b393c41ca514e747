//! What a token endpoint's error says of the credential (RFC 6749 section 5.2, OpenID Connect
//! Core section 3.1.2.6). Pure.

use keywheel_sdk::prelude::*;

/// Enough to recognise an error by; the text is the service's.
const DESCRIPTION_CHARS: usize = 120;

pub fn read(error: &str, description: Option<&str>) -> Stop {
    let said: String = match description {
        Some(description) => format!("{error}: {description}").chars().take(DESCRIPTION_CHARS).collect(),
        None => error.chars().take(DESCRIPTION_CHARS).collect(),
    };
    match error {
        // GitHub has its own name for it, in an answer with status 200.
        "invalid_grant" | "bad_refresh_token" => Stop::invalid(format!(
            "the refresh token is expired, revoked, already used or another client's: sign in again and import \
             the new one ({said})"
        )),
        "invalid_client" | "unauthorized_client" | "unsupported_grant_type" => Stop::needs_human(format!(
            "the service doesn't accept this client: check client_id, client_secret and client_auth ({said})"
        )),
        "invalid_scope" => Stop::needs_human(format!(
            "the service doesn't grant the scope: check the setting scope ({said})"
        )),
        "interaction_required" | "login_required" | "consent_required" | "account_selection_required" => {
            Stop::needs_human(format!("the service wants the account's owner: sign in again ({said})"))
        }
        "invalid_request" => Stop::failed(format!(
            "the service doesn't understand the request: check token_url, body_format and client_auth ({said})"
        )),
        _ => Stop::unknown(format!("the token endpoint answers {said}")),
    }
}
