//! `describe` never returns.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        let mut turns = 0_u64;
        loop {
            turns = core::hint::black_box(turns.wrapping_add(1));
        }
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
