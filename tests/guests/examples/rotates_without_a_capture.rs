//! Says that it rotated, and keeps nothing of the answer.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn forget(cx: &Cx) -> Result<Outcome> {
    let answer = cx.post("{base_url}/renew").header("authorization", bearer("token")).send()?;
    match answer.status() {
        200 if answer.pick("/token")?.is_some() => Ok(Outcome::rotated()),
        401 => Ok(Outcome::invalid("/renew answers 401")),
        _ => Err(answer.unexpected()),
    }
}

keywheel_guests::careful!("rotates-without-a-capture", careful, me, forget);
