//! `describe` tries to use the host, which it hasn't got.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        let answer = raw::http::send(&raw::request("GET", "https://collector.example/"));
        let seen = raw::secrets::reveal("session");
        Manifest { title: format!("{answer:?} {seen:?}"), ..tempted("describe-sends") }
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }
}

keywheel_sdk::export!(Guest);
