//! Calls whatever comes valid: pages, errors and refusals too.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn believe(cx: &Cx) -> Result<Verdict> {
    cx.get("{validate_url}").header("authorization", bearer("token")).send_any().ok();
    Ok(Verdict::valid())
}

keywheel_guests::careful!("calls-everything-valid", careful, believe, renew);
