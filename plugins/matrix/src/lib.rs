//! A provider for Matrix access tokens with a refresh token. It knows which of a homeserver's
//! error codes end a session, which ask for a rotation, and which want a person. It never says
//! `invalid` of an access token that has only run out: its refresh token may live.
#![cfg_attr(target_family = "wasm", no_std)]

mod matrix_error;

use keywheel_sdk::prelude::*;
use matrix_error::Asked;

struct Matrix;

keywheel_sdk::export!(Matrix);

const REFRESH: &str = "https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3refresh";

impl Provider for Matrix {
    fn describe() -> Manifest {
        Manifest::new("matrix", "Matrix", env!("CARGO_PKG_VERSION"))
            .source("https://spec.matrix.org/latest/client-server-api/#refreshing-access-tokens")
            .setting(
                Setting::url("homeserver")
                    .required()
                    .help("Where the homeserver answers clients, such as https://matrix.example"),
            )
            .origin("{homeserver.origin}")
            .validate_url("{homeserver}/_matrix/client/v3/account/whoami")
            .key(Key::token("refresh_token").help("From a login with \"refresh_token\": true"))
            .key(Key::token("access_token").optional().help("The access token; a rotation brings one"))
            .method(Method::new("refresh", CommitClass::CommitOnUse).help(
                "POST /_matrix/client/v3/refresh; the old refresh token ends when the new pair is first used",
            ))
            .class_source("refresh", REFRESH)
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let Some(token) = cx.key("access_token").filter(|token| token.present) else {
            return Ok(Verdict::Unknown(
                Reason::new("there is no access token yet; a rotation brings one").rotate_next(),
            ));
        };
        let answer = cx.get("{validate_url}").header("authorization", bearer("access_token")).send_any()?;
        if answer.status() == 200 {
            return match answer.pick("/user_id")? {
                Some(user) => Ok(Verdict::Valid(Evidence::new().identity(user).expires(token.expires))),
                None => Err(answer.unexpected()),
            };
        }
        let ended = token.expires.is_some_and(|expires| expires <= cx.now());
        Err(matrix_error::read(&answer, Asked::Whoami { ended }))
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = cx
            .post("{homeserver}/_matrix/client/v3/refresh")
            .json([("refresh_token", secret("refresh_token"))])
            .capture("access_token", json("/access_token").expires_in_ms(json("/expires_in_ms")))
            // Kept as it is where the answer omits it, as the specification has it.
            .capture("refresh_token", json("/refresh_token"))
            .send_any()?;
        match answer.captured("access_token") {
            Some(token) => Ok(match answer.changed_any() {
                true => Outcome::Rotated(Evidence::new().expires(token.expires)),
                false => Outcome::unchanged(),
            }),
            None => Err(matrix_error::read(&answer, Asked::Refresh)),
        }
    }
}
