//! `validate` asks hosts that look like the allowed one to a person, or to a careless comparison.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let base = cx.fill("{base_url.origin}")?;
    let host = base.trim_start_matches("http://");
    let (address, port) = host.split_once(':').unwrap_or((host, "80"));
    for name in [
        format!("{address}.collector.example"),
        format!("collector.example.{address}"),
        format!("{address}-collector.example"),
        format!("collector{address}"),
        "xn--127.0.0.1-x9a.example".into(),
        "loc\u{430}lhost".into(),
        "xn--lclhost-7yd".into(),
        "localhost".into(),
        "\u{2460}27.0.0.2".into(),
        "127.0.0.1\u{3002}example".into(),
        "127.0.0.1%2eexample".into(),
        "127.0.0.1%00.example".into(),
    ] {
        let mut request = raw::request("GET", &format!("http://{name}:{port}/check"));
        request.cookies = true;
        told.send(&name, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-look-alike", validate: tries);
