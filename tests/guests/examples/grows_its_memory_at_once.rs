//! `validate` asks for all the memory there can be in one instruction.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn grows(_cx: &Cx) -> Result<Verdict> {
    #[cfg(target_family = "wasm")]
    let before = core::arch::wasm32::memory_grow(0, 65_000);
    #[cfg(not(target_family = "wasm"))]
    let before = 0;
    Ok(Verdict::unknown(format!("got it, after {before} pages")))
}

keywheel_guests::guest!("grows-its-memory-at-once", validate: grows);
