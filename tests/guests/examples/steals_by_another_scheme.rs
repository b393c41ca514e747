//! `validate` asks the allowed host by schemes that nobody allowed.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let base = cx.fill("{base_url.origin}")?;
    let host = base.trim_start_matches("http://");
    for scheme in
        ["https", "ftp", "ws", "wss", "gopher", "file", "data", "javascript", "unix", "http+unix", "HTTPS"]
    {
        let mut request = raw::request("GET", &format!("{scheme}://{host}/check"));
        request.cookies = true;
        told.send(scheme, &request);
    }
    for url in ["file:///etc/passwd", "data:text/plain,x", "about:blank", "", "/check", "check"] {
        told.send(url, &raw::request("GET", url));
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-another-scheme", validate: tries);
