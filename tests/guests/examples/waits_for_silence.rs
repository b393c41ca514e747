//! `validate` asks a service that never answers, again and again, for as long as it may.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn waits(cx: &Cx) -> Result<Verdict> {
    loop {
        let answer = cx.get("{base_url}/silence").timeout(1).send_any();
        match answer {
            Err(SendError::Timeout) => {}
            Err(SendError::Budget(why)) => return Ok(Verdict::unknown(why)),
            other => return Ok(Verdict::unknown(format!("{other:?}"))),
        }
    }
}

keywheel_guests::guest!("waits-for-silence", validate: waits);
