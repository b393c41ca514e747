//! `validate` captures the echo of one key into another, and looks for it in all it is told then.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/mirror")?;
    let rule = |from: &str, expires: &str| raw::http::Capture {
        key: "token".into(),
        from: raw::http::Source::JsonPointer(from.into()),
        expires_in: Some(raw::http::Source::JsonPointer(expires.into())),
    };
    for (from, expires) in
        [("/echo", "/echo"), ("/half", "/echo"), ("/harmless", "/echo"), ("/harmless", "/number")]
    {
        let mut request = raw::request("GET", &url);
        request.cookies = true;
        request.capture = vec![rule(from, expires)];
        told.send(from, &request);
    }
    // What it captured is a key now: sent and echoed, it must come back as little as the others.
    let mut request = raw::request("POST", &url);
    request.body = Some(vec![raw::secret("token")]);
    request.headers.push(("x-token".into(), vec![raw::secret("token")]));
    told.send("the key", &request);
    told.finish(cx)
}

keywheel_guests::guest!("captures-an-echo", validate: tries);
