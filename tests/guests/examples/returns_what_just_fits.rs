//! `validate` returns a note and an account name as large as a message may be, and asks to be left
//! alone for ever.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

fn returns(cx: &Cx) -> Result<Verdict> {
    keywheel_guests::check(cx)?;
    let evidence = Evidence::new().note("n".repeat(1 << 20)).next(u32::MAX).expires(u64::MAX);
    Ok(Verdict::Valid(evidence))
}

keywheel_guests::guest!("returns-what-just-fits", validate: returns);
