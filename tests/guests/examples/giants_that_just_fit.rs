//! `validate` makes requests as large as one call to the host may carry, at each place in turn.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let giant = || "x".repeat(3 << 20);
    let url = cx.fill("{base_url}/never")?;
    let plain = || raw::request("POST", &url);
    told.send("url", &raw::http::Request { url: raw::text(&(url.clone() + "/" + &giant())), ..plain() });
    told.send("method", &raw::http::Request { method: giant(), ..plain() });
    told.send("name", &raw::http::Request { headers: vec![(giant(), raw::text(""))], ..plain() });
    told.send("value", &raw::http::Request { headers: vec![("x-a".into(), raw::text(&giant()))], ..plain() });
    let headers = vec![("x-a".into(), Vec::new()); 30_000];
    told.send("headers", &raw::http::Request { headers, ..plain() });
    told.send("body", &raw::http::Request { body: Some(raw::text(&giant())), ..plain() });
    let key =
        raw::http::Capture { key: giant(), from: raw::http::Source::Header("x".into()), expires_in: None };
    told.send("capture", &raw::http::Request { capture: vec![key], ..plain() });
    told.send("secret", &raw::http::Request { body: Some(vec![raw::secret(&giant())]), ..plain() });
    told.note("reveal", format!("{:?}", raw::secrets::reveal(&"x".repeat((4 << 20) - 32))));
    told.finish(cx)
}

keywheel_guests::guest!("giants-that-just-fit", validate: tries);
