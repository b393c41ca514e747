//! `validate` wants an answer to be written behind its memory.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    // SAFETY: none; the host has to look where it writes.
    unsafe { raw::imports::reveal(1024, 8, 0xffff_fff0) };
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("lying-pointer-for-an-answer", validate: tries);
