//! What an error of Atlassian's token endpoint says. Pure. What isn't plain is `unknown`.

use keywheel_sdk::prelude::*;

/// Enough to recognise an error by; the text is Atlassian's.
const SAID_CHARS: usize = 120;

pub fn read(error: &str, description: &str) -> Stop {
    let said: String = match description {
        "" => error.chars().take(SAID_CHARS).collect(),
        _ => format!("{error}: {description}").chars().take(SAID_CHARS).collect(),
    };
    match error {
        "invalid_grant" => dead(&said),
        // An older way to say the same, told apart by its words.
        "unauthorized_client" if mentions(description, "refresh_token is invalid") => dead(&said),
        // The same word for a wrong secret as for a person's no.
        "access_denied" | "invalid_client" | "unauthorized_client" => Stop::needs_human(format!(
            "Atlassian doesn't accept this client: compare the setting client_id and the key client_secret with the \
             app's page Settings in the developer console ({said})"
        )),
        "invalid_request" | "unsupported_grant_type" => {
            Stop::failed(format!("Atlassian doesn't understand the request: check auth_url ({said})"))
        }
        _ => Stop::unknown(format!("Atlassian answers {said}")),
    }
}

fn dead(said: &str) -> Stop {
    Stop::invalid(format!(
        "the refresh token is used up, unused for 90 days, a year old, or the account's password changed: let its \
         owner consent again and import the new tokens ({said})"
    ))
}
