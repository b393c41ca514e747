//! `validate` returns a message that is no text.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn returns(_cx: &Cx) -> Result<Verdict> {
    Ok(Verdict::unknown(raw::not_utf8()))
}

keywheel_guests::guest!("invalid-utf8-in-a-verdict", validate: returns);
