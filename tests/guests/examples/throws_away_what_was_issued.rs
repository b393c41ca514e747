//! Calls the credential dead where what follows a renewal fails.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn confirm(cx: &Cx) -> Result<Outcome> {
    let outcome = renew(cx)?;
    if !matches!(outcome, Outcome::Rotated(_)) {
        return Ok(outcome);
    }
    match cx.post("{base_url}/confirm").header("authorization", bearer("token")).send() {
        Ok(answer) if answer.status() == 200 && answer.json()?.is_object() => Ok(outcome),
        _ => Ok(Outcome::invalid("it is not confirmed")),
    }
}

keywheel_guests::careful!("throws-away-what-was-issued", careful, me, confirm);
