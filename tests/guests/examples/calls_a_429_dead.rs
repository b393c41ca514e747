//! Takes a refusal to answer so soon for the end of the token.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn hurry(cx: &Cx) -> Result<Verdict> {
    let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send_any()?;
    match answer.status() {
        200 if answer.pick("/name")?.is_some() => Ok(Verdict::valid()),
        401 | 429 => Ok(Verdict::invalid("it is refused")),
        _ => Err(answer.unexpected()),
    }
}

keywheel_guests::careful!("calls-a-429-dead", careful, hurry, renew);
