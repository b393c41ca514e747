//! `validate` asks `{base_url}/slow`, where the service takes its time.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("slow-check", "0.1.0")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        match cx.get("{base_url}/slow").cookies().send()?.status() {
            200 => Ok(Verdict::valid()),
            status => Ok(Verdict::unknown(format!("/slow answers {status}"))),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
