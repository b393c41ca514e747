//! `validate` tries to end a header early, to add one of its own, and to set those of the host.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let url = cx.fill("{base_url}/check")?;
    let values = [
        "x\r\nx-smuggled: 1",
        "x\nx-smuggled: 1",
        "x\rx-smuggled: 1",
        "x\0y",
        "x\u{b}y",
        "x\u{7f}y",
        "\u{10d}\u{10a}x-smuggled: 1",
        "\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    ];
    for value in values {
        let mut request = raw::request("POST", &url);
        request.headers.push(("x-value".into(), raw::text(value)));
        told.send("value", &request);
    }
    let names = [
        "x-smuggled: 1\r\nx",
        "x smuggled",
        "x-smuggled:",
        "",
        "x\0",
        " x-smuggled",
        "x-smuggled\t",
        "(x)",
        "\u{e9}",
        "Transfer-Encoding",
        "transfer-encoding",
        "Content-Length",
        "CONTENT-LENGTH",
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Cookie",
        "Cookie2",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Proxy-Anything",
        "Accept-Encoding",
        "Range",
        "If-Range",
        "HTTP2-Settings",
        "Set-Cookie",
    ];
    for name in names {
        let mut request = raw::request("POST", &url);
        request.headers.push((name.into(), raw::text("smuggled")));
        told.send("name", &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("smuggles-headers", validate: tries);
