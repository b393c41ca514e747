//! `validate` sends hundreds of thousands of headers.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let mut request = raw::request("GET", "http://127.0.0.1:9/");
    request.headers = vec![(String::new(), Vec::new()); 400_000];
    let answer = raw::http::send(&request);
    Ok(Verdict::unknown(format!("came through: {answer:?}")))
}

keywheel_guests::guest!("giant-header-list", validate: tries);
