//! `validate` asks its own service in the name of another host.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    for name in ["Host", "host", "HOST", ":authority", "X-Forwarded-Host\r\nHost", "Host "] {
        let mut request = raw::request("GET", &cx.fill("{base_url}/check")?);
        request.headers.push((name.into(), raw::text(elsewhere)));
        told.send(name, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-host-header", validate: tries);
