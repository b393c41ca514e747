//! What the name of a Slack error says of a token. Pure. What isn't plain is `unknown`.

use keywheel_sdk::prelude::*;

/// Names are short; this is for what isn't one.
const NAME_CHARS: usize = 80;

/// Errors of `auth.test`.
pub fn of_token(error: &str) -> Stop {
    match error {
        "invalid_auth" => Stop::invalid(
            "Slack answers invalid_auth: it doesn't know this token any more, or the app's list of allowed \
             IP addresses lacks this machine; look at that list, else install the app again and import its new tokens",
        ),
        "account_inactive" => Stop::invalid(
            "Slack answers account_inactive: the token's user or workspace is gone, or the app was removed; \
             install the app again and import its new tokens",
        ),
        "token_revoked" => Stop::invalid(
            "Slack answers token_revoked: somebody revoked the token or removed the app; \
             install the app again and import its new tokens",
        ),
        // Twelve hours are over. The refresh token has no such end.
        "token_expired" => Stop::unknown(
            "Slack answers token_expired, which says nothing of the refresh token; a rotation brings a new token",
        ),
        "not_allowed_token_type" => Stop::needs_human(
            "Slack answers not_allowed_token_type: access_token must be a bot, user or app configuration token",
        ),
        "two_factor_setup_required" => Stop::needs_human(
            "Slack answers two_factor_setup_required: the token's user must set that up first",
        ),
        _ => other(error),
    }
}

/// Errors of `oauth.v2.access` and `tooling.tokens.rotate`.
pub fn of_rotation(error: &str) -> Stop {
    match error {
        "invalid_refresh_token" => Stop::invalid(
            "Slack answers invalid_refresh_token: it was used already, revoked, or is another app's; \
             install the app again and import its new tokens",
        ),
        "invalid_client_id" | "bad_client_secret" => Stop::needs_human(format!(
            "Slack answers {error}: compare the setting client_id and the key client_secret with the app's page \
             Basic Information"
        )),
        "token_rotation_not_enabled" => Stop::needs_human(
            "Slack answers token_rotation_not_enabled: turn token rotation on under OAuth & Permissions, \
             or use a provider that only checks tokens",
        ),
        "account_inactive" | "token_revoked" | "invalid_auth" => of_token(error),
        _ => other(error),
    }
}

/// Among these are internal_error and fatal_error, after which a part may have happened.
fn other(error: &str) -> Stop {
    let name: String = error.chars().take(NAME_CHARS).collect();
    Stop::unknown(format!("Slack answers {name}"))
}
