//! `validate` asks the allowed host at other ports.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    let port = elsewhere.rsplit(':').next().unwrap_or_default();
    for port in [port, "80", "443", "22", "0", "65535", "65536", "-1", "00080"] {
        let mut request = raw::request("GET", &format!("http://127.0.0.1:{port}/"));
        request.cookies = true;
        told.send(port, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-another-port", validate: tries);
