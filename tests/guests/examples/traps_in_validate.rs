//! `validate` panics, while `rotate` works.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("traps-in-validate", "0.1.0")
    }

    fn validate(_cx: &Cx) -> Result<Verdict> {
        panic!("this guest panics in validate")
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
