//! `validate` writes the allowed host with dots at its end. One after an address is still that
//! address; anything else is another name.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let base = cx.fill("{base_url.origin}")?;
    let host = base.trim_start_matches("http://");
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    for url in [format!("http://{name}.:{port}/check"), format!("http://{name}..:{port}/check")] {
        let mut request = raw::request("GET", &url);
        request.cookies = true;
        told.send(&url, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-trailing-dot", validate: tries);
