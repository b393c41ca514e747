//! `rotate` never returns.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn loops(_cx: &Cx) -> Result<Outcome> {
    let mut turns = 0_u64;
    loop {
        turns = core::hint::black_box(turns.wrapping_add(1));
    }
}

keywheel_guests::guest!("loops-in-rotate", rotate: loops);
