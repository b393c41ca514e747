//! `validate` reads behind its memory.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let behind: *const u64 = core::ptr::without_provenance(0xffff_0000);
    // SAFETY: none; this has to trap.
    core::hint::black_box(unsafe { behind.read_volatile() });
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("reads-out-of-bounds", validate: tries);
