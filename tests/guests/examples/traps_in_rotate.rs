//! `rotate` panics, while `validate` works.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn panics(_cx: &Cx) -> Result<Outcome> {
    panic!("this guest panics in rotate")
}

keywheel_guests::guest!("traps-in-rotate", rotate: panics);
