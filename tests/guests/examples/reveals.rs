//! Asks to see the key `token` and tells how long it is.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("reveals", "0.1.0").key(Key::token("token").reveal().help("A token the plugin asks to see"))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let token = cx.reveal("token")?;
        Ok(match check(cx)? {
            Verdict::Valid(found) => {
                Verdict::Valid(found.note(format!("the token has {} bytes", token.len())))
            }
            other => other,
        })
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
