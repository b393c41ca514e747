//! `validate` allocates until it is stopped.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("memory-bomb", "0.1.0")
    }

    fn validate(_cx: &Cx) -> Result<Verdict> {
        let mut hoard = Vec::new();
        loop {
            hoard.push(core::hint::black_box(vec![0xAA_u8; 1 << 20]));
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
