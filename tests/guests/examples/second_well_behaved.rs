//! A newer version of `well_behaved` that asks for nothing more.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("well-behaved", "0.2.0")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
