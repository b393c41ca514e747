//! Wants to reach every host.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("star-origin", "0.1.0").origin("https://*")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
