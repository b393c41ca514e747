//! `validate` writes as much log as it can, in the longest lines there are.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn floods(_cx: &Cx) -> Result<Verdict> {
    let line = "x".repeat(4 << 10);
    loop {
        log::info(&line);
    }
}

keywheel_guests::guest!("log-flood", validate: floods);
