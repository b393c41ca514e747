//! `validate` refers to keys that aren't in its mapping, in every place a reference can stand.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/check")?;
    let names = [
        "other",
        "SESSION",
        "session ",
        "session\0",
        "",
        "*",
        "../session",
        "cookie:extra",
        "master",
        "{session}",
        "ann/session",
        "spared/session",
        "session/2",
        "previous",
        "pending",
        "__proto__",
    ];
    for name in names {
        let mut request = raw::request("POST", &url);
        request.body = Some(vec![raw::secret(name)]);
        told.send(name, &request);
    }
    let encoded = |encoding| {
        let reference = raw::types::SecretRef { key: "other".into(), encoding: raw::Encoding::Raw };
        raw::Part::Encoded(raw::types::Encoded { leaves: vec![raw::Leaf::Secret(reference)], encoding })
    };
    for encoding in [raw::Encoding::Base64, raw::Encoding::Sha256Hex] {
        told.send(
            "leaf",
            &raw::http::Request { body: Some(vec![encoded(encoding)]), ..raw::request("POST", &url) },
        );
    }
    let mut request = raw::request("GET", "");
    request.url = raw::text(&(url.clone() + "?k="));
    request.url.push(raw::secret("other"));
    told.send("query", &request);
    let headers = vec![("authorization".into(), vec![raw::secret("other")])];
    told.send("in a header", &raw::http::Request { headers, ..raw::request("GET", &url) });
    told.finish(cx)
}

keywheel_guests::guest!("names-keys-it-does-not-own", validate: tries);
