//! `validate` has the service set cookies of every wrong kind, and looks which come back.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    for place in 0..8 {
        let mut request = raw::request("GET", &cx.fill(&format!("{{base_url}}/cookies/{place}"))?);
        request.cookies = true;
        told.send("cookies", &request);
    }
    let mut request = raw::request("GET", &cx.fill("{base_url}/seen")?);
    request.cookies = true;
    told.send("seen", &request);
    told.finish(cx)
}

keywheel_guests::guest!("collects-cookies", validate: tries);
