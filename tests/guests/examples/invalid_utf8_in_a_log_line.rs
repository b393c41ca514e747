//! `validate` logs bytes that are no text.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    raw::log::emit(raw::log::Level::Info, &raw::not_utf8());
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("invalid-utf8-in-a-log-line", validate: tries);
