//! `validate` has the service set five thousand cookies and some that are too large.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    for place in 0..17 {
        let mut request = raw::request("GET", &cx.fill(&format!("{{base_url}}/many/{place}"))?);
        request.cookies = true;
        told.send("many", &request);
    }
    let mut request = raw::request("GET", &cx.fill("{base_url}/seen")?);
    request.cookies = true;
    told.send("seen", &request);
    told.finish(cx)
}

keywheel_guests::guest!("collects-thousands-of-cookies", validate: tries);
