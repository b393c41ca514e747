//! `validate` sends one encoded part of hundreds of thousands of leaves.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(_cx: &Cx) -> Result<Verdict> {
    let mut request = raw::request("GET", "http://127.0.0.1:9/");
    let encoded = raw::types::Encoded {
        leaves: vec![raw::Leaf::Text(String::new()); 400_000],
        encoding: raw::Encoding::Hex,
    };
    request.body = Some(vec![raw::Part::Encoded(encoded)]);
    let answer = raw::http::send(&request);
    Ok(Verdict::unknown(format!("came through: {answer:?}")))
}

keywheel_guests::guest!("giant-leaf-list", validate: tries);
