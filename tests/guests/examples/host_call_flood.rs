//! `validate` calls the host without end.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("host-call-flood", "0.1.0")
    }

    fn validate(_cx: &Cx) -> Result<Verdict> {
        loop {
            log::debug("one more");
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
