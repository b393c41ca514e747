//! `validate` panics, while `rotate` works.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn misbehaves(_cx: &Cx) -> Result<Verdict> {
    panic!("this guest panics in validate")
}

keywheel_guests::guest!("traps-in-validate", validate: misbehaves);
