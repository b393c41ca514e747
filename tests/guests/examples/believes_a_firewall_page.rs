//! Takes a 403 for the service's own word, and any page with 200 for a sign of life.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn believe(cx: &Cx) -> Result<Verdict> {
    let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
    match answer.status() {
        200 if answer.is_html() || answer.pick("/name")?.is_some() => Ok(Verdict::valid()),
        401 | 403 => Ok(Verdict::invalid("it is refused")),
        _ => Err(answer.unexpected()),
    }
}

keywheel_guests::careful!("believes-a-firewall-page", careful, believe, renew);
