//! `rotate` panics once the service has issued a new secret.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn panics(cx: &Cx) -> Result<Outcome> {
    refresh(cx)?;
    panic!("this guest panics after the answer")
}

keywheel_guests::guest!("traps-after-a-new-secret", rotate: panics);
