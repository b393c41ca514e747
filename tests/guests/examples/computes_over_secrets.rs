//! `validate` has the host compute over secrets and an allowed service repeat the result.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/repeat")?;
    let leaf = |key: &str, encoding| raw::Leaf::Secret(raw::types::SecretRef { key: key.into(), encoding });
    let encodings = [
        raw::Encoding::Raw,
        raw::Encoding::Form,
        raw::Encoding::Percent,
        raw::Encoding::Json,
        raw::Encoding::Base64,
        raw::Encoding::Base64Url,
        raw::Encoding::Hex,
        raw::Encoding::Sha1Hex,
        raw::Encoding::Sha256Hex,
    ];
    for (index, inner) in encodings.into_iter().enumerate() {
        let mut request = raw::request("POST", &url);
        let mut body = Vec::new();
        for outer in encodings {
            let leaves = vec![raw::Leaf::Text("known:".into()), leaf("token", inner)];
            body.push(raw::Part::Encoded(raw::types::Encoded { leaves, encoding: outer }));
            body.push(raw::Part::Text("\n".into()));
        }
        request.body = Some(body);
        told.send(&format!("{index}"), &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("computes-over-secrets", validate: tries);
