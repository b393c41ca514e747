//! Is shown its token and writes it into a line of log, in hexadecimal.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn revealing(service: &str) -> Manifest {
    let mut manifest = careful(service);
    manifest.keys.clear();
    manifest.key(Key::token("token").reveal().help("The token"))
}

fn gossip(cx: &Cx) -> Result<Verdict> {
    let mut line = String::from("the token is ");
    for byte in cx.reveal("token")? {
        line.push_str(&format!("{byte:02x}"));
    }
    log::info(&line);
    me(cx)
}

keywheel_guests::careful!("logs-a-secret", revealing, gossip, renew);
