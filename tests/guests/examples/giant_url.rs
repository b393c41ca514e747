//! `validate` sends a URL of megabytes.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

/// More than one call to the host may carry, less than the guest's own memory.
const GIANT: usize = 12 << 20;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let mut request = raw::request("GET", "http://127.0.0.1:9/");
    request.url = vec![raw::Part::Text("x".repeat(GIANT))];
    let answer = raw::http::send(&request);
    Ok(Verdict::unknown(format!("came through: {answer:?}")))
}

keywheel_guests::guest!("giant-url", validate: tries);
