//! `validate` makes up methods.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/check")?;
    for method in [
        "CONNECT",
        "TRACE",
        "OPTIONS",
        "get",
        "",
        "GET /smuggled HTTP/1.1\r\n\r\nGET",
        "PRI",
        "G\0T",
        "PROPFIND",
    ] {
        told.send("method", &raw::request(method, &url));
    }
    told.finish(cx)
}

keywheel_guests::guest!("smuggles-by-method", validate: tries);
