//! `validate` sends a header name that is no text.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let mut request = raw::request("GET", "http://127.0.0.1:9/");
    request.headers = vec![(raw::not_utf8(), raw::text("x"))];
    let _ = raw::http::send(&request);
    Ok(Verdict::unknown("came through"))
}

keywheel_guests::guest!("invalid-utf8-in-a-request", validate: tries);
