//! `validate` sends hundreds of thousands of capture rules.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let mut request = raw::request("GET", "http://127.0.0.1:9/");
    let rule = raw::http::Capture {
        key: String::new(),
        from: raw::http::Source::Header(String::new()),
        expires_in: None,
    };
    request.capture = vec![rule; 200_000];
    let answer = raw::http::send(&request);
    Ok(Verdict::unknown(format!("came through: {answer:?}")))
}

keywheel_guests::guest!("giant-capture-list", validate: tries);
