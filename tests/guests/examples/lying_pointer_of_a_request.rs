//! `validate` sends a request that lies behind its memory.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    // SAFETY: none; the host has to look where it reads.
    unsafe { raw::imports::send(0xffff_ff00, 1024) };
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("lying-pointer-of-a-request", validate: tries);
