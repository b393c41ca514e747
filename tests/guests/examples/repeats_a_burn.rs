//! Sends the token to be renewed once more where the answer was lost, though the first try may have spent it.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn insist(cx: &Cx) -> Result<Outcome> {
    renew(cx).or_else(|_| renew(cx))
}

keywheel_guests::careful!("repeats-a-burn", careful, me, insist);
