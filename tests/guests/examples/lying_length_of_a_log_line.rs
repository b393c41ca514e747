//! `validate` logs a line that ends far behind its memory.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    // SAFETY: none; the host has to look where it reads.
    unsafe { raw::imports::emit(1, 16, 0xffff_fff0) };
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("lying-length-of-a-log-line", validate: tries);
