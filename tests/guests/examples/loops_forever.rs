//! `validate` never returns and never calls the host.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn misbehaves(_cx: &Cx) -> Result<Verdict> {
    let mut turns = 0_u64;
    loop {
        turns = core::hint::black_box(turns.wrapping_add(1));
    }
}

keywheel_guests::guest!("loops-forever", validate: misbehaves);
