//! `validate` writes one log line of megabytes.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

/// More than one call to the host may carry, less than the guest's own memory.
const GIANT: usize = 12 << 20;

fn tries(_cx: &Cx) -> Result<Verdict> {
    log::error(&"x".repeat(GIANT));
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("giant-log-line", validate: tries);
