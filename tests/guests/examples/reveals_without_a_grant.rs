//! `validate` asks to see every key, though its manifest asks for none.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    for key in ["session", "token", "other", "SESSION", "", "session\0", "*"] {
        told.note(key, format!("{:?}", raw::secrets::reveal(key)));
    }
    told.finish(cx)
}

keywheel_guests::guest!("reveals-without-a-grant", validate: tries);
