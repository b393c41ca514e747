//! `validate` tries to end the request line early.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let base = cx.fill("{base_url}")?;
    for tail in [
        "/check HTTP/1.1\r\nx-smuggled: 1\r\n\r\nGET /smuggled",
        "/check\r\nx-smuggled: 1",
        "/check\nx",
        "/a b",
        "/\tcheck",
        "/\0",
        "\\..\\smuggled",
        "/check\u{7f}",
    ] {
        told.send("tail", &raw::request("GET", &(base.clone() + tail)));
    }
    told.finish(cx)
}

keywheel_guests::guest!("smuggles-by-url", validate: tries);
