//! `validate` writes addresses in every way a parser may misread.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    let elsewhere = cx.setting("elsewhere");
    let port = elsewhere.rsplit(':').next().unwrap_or_default();
    for host in [
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[64:ff9b::7f00:1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[::1",
        "0",
        "0.0.0.0",
        "127.1",
        "127.0.0.2",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "0xa9fea9fe",
        "169.254.43518",
        "100.100.100.200",
        "localhost",
        "ip6-localhost",
    ] {
        let mut request = raw::request("GET", &format!("http://{host}:{port}/"));
        request.cookies = true;
        told.send(host, &request);
    }
    told.finish(cx)
}

keywheel_guests::guest!("steals-by-odd-addresses", validate: tries);
