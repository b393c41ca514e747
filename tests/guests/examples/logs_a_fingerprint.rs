//! Writes the fingerprint of its token into a line of log.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn gossip(cx: &Cx) -> Result<Verdict> {
    let fingerprint = cx.key("token").and_then(|key| key.fingerprint.clone());
    log::info(&format!("checking {}", fingerprint.unwrap_or_default()));
    me(cx)
}

keywheel_guests::careful!("logs-a-fingerprint", careful, gossip, renew);
