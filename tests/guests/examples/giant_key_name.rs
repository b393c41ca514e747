//! `validate` asks to see a key with a name of megabytes.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

/// More than one call to the host may carry, less than the guest's own memory.
const GIANT: usize = 12 << 20;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let answer = raw::secrets::reveal(&"x".repeat(GIANT));
    Ok(Verdict::unknown(format!("came through: {answer:?}")))
}

keywheel_guests::guest!("giant-key-name", validate: tries);
