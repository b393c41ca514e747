//! `validate` calls whatever answers alive: a dead session too.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn believes(cx: &Cx) -> Result<Verdict> {
    cx.get("{validate_url}").cookies().send()?;
    Ok(Verdict::valid())
}

keywheel_guests::guest!("believes-every-answer", validate: believes);
