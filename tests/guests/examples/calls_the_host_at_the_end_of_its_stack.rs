//! `validate` asks the host for something from ever deeper in its stack, until there is none left.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

/// Goes down, asks once, comes up.
#[inline(never)]
fn from(depth: u32) -> u64 {
    if core::hint::black_box(depth) == 0 {
        let refused = raw::secrets::reveal("session");
        return u64::from(refused.is_err());
    }
    from(depth - 1) ^ core::hint::black_box(u64::from(depth))
}

fn asks(_cx: &Cx) -> Result<Verdict> {
    for step in 1..200_u32 {
        core::hint::black_box(from(step * 160));
    }
    Ok(Verdict::unknown("the stack never ended"))
}

keywheel_guests::guest!("calls-the-host-at-the-end-of-its-stack", validate: asks);
