//! `validate` calls the host without end.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn misbehaves(_cx: &Cx) -> Result<Verdict> {
    loop {
        log::debug("one more");
    }
}

keywheel_guests::guest!("host-call-flood", validate: misbehaves);
