//! `validate` allocates until it is stopped.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn misbehaves(_cx: &Cx) -> Result<Verdict> {
    let mut hoard = Vec::new();
    loop {
        hoard.push(core::hint::black_box(vec![0xAA_u8; 1 << 20]));
    }
}

keywheel_guests::guest!("memory-bomb", validate: misbehaves);
