//! `validate` sends a request with a list of four thousand million headers.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    // A request as the canonical ABI lays it out: text, then lists, each as pointer and length.
    let mut words = [0_u32; 32];
    words[4] = 64;
    words[5] = 0x7fff_ffff;
    // SAFETY: none; the host has to look where it reads.
    unsafe { raw::imports::send(words.as_ptr() as usize, words.as_ptr() as usize) };
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("lying-length-of-a-list", validate: tries);
