//! Does its work, with more memory, time and words than anybody needs.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

const MEMORY: usize = 40 << 20;

fn lavish(cx: &Cx) -> Result<Verdict> {
    let memory = vec![1_u8; MEMORY];
    let line = "so it is. ".repeat(300);
    for _ in 0..12 {
        log::debug(&line);
    }
    let sum: usize = memory.iter().map(|&byte| usize::from(byte)).sum();
    match sum {
        MEMORY => me(cx),
        _ => Err(Stop::failed("memory that forgets")),
    }
}

keywheel_guests::careful!("comes-near-its-limits", careful, lavish, renew);
