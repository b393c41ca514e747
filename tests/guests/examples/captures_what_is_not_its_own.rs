//! `validate` has rules that would write a cookie, a key that isn't there, or one key twice, or read
//! a cookie.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/mirror")?;
    let rule = |key: &str, from| raw::http::Capture { key: key.into(), from, expires_in: None };
    let body = || raw::http::Source::JsonPointer("/echo".into());
    let header = |name: &str| raw::http::Source::Header(name.into());
    let cases = [
        ("cookie", vec![rule("session", body())]),
        ("unknown", vec![rule("other", body())]),
        ("twice", vec![rule("token", body()), rule("token", header("x-echo"))]),
        ("set-cookie", vec![rule("token", header("Set-Cookie"))]),
        ("bad header", vec![rule("token", header("a b\r\n"))]),
        ("bad pointer", vec![rule("token", raw::http::Source::JsonPointer("echo".into()))]),
        ("many", vec![rule("token", body()); 33]),
        (
            "expiry from a cookie",
            vec![raw::http::Capture { expires_in: Some(header("set-cookie")), ..rule("token", body()) }],
        ),
    ];
    for (what, capture) in cases {
        let mut request = raw::request("GET", &url);
        request.cookies = true;
        request.capture = capture;
        told.send(what, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("captures-what-is-not-its-own", validate: tries);
