//! `validate` logs at a level that the contract doesn't have.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    // SAFETY: none; the host has to look what it is given.
    unsafe { raw::imports::emit(77, 16, 4) };
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("lying-log-level", validate: tries);
