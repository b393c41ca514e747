//! `validate` asks to see a key whose name is no text.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let _ = raw::secrets::reveal(&raw::not_utf8());
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("invalid-utf8-in-a-key-name", validate: tries);
