//! `validate` returns a message of tens of megabytes.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn returns(_cx: &Cx) -> Result<Verdict> {
    Ok(Verdict::unknown("x".repeat(24 << 20)))
}

keywheel_guests::guest!("returns-a-giant", validate: returns);
