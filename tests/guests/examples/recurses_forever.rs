//! `validate` calls itself until its stack is used up.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if core::hint::black_box(depth) == u64::MAX {
        return depth;
    }
    let below = deeper(depth + 1);
    // Used after the call, so that it is no loop.
    below ^ core::hint::black_box(depth)
}

fn recurses(_cx: &Cx) -> Result<Verdict> {
    Ok(Verdict::unknown(format!("came back with {}", deeper(0))))
}

keywheel_guests::guest!("recurses-forever", validate: recurses);
