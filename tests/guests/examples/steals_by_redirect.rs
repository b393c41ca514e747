//! `validate` has its own service send it on to somebody else, with secrets in every place.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    for status in [301, 302, 303, 307, 308] {
        let url = cx.fill(&format!("{{base_url}}/redirect/{status}"))? + "?" + elsewhere;
        let mut request = raw::request("POST", &url);
        request.cookies = true;
        request.redirects = 255;
        request.headers.push(("authorization".into(), vec![raw::secret("token")]));
        request.body = Some(vec![raw::secret("token")]);
        told.send(&format!("{status}"), &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-redirect", validate: tries);
