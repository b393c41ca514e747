//! The targets under libFuzzer, one process for each: `FUZZ_TARGET` names it, the arguments are
//! libFuzzer's. With `FUZZ_SEEDS` it only writes the target's seeds into that folder.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use keywheel_fuzz::{TARGETS, Target, target};

static CHOSEN: OnceLock<&Target> = OnceLock::new();

/// The two functions libFuzzer looks for by name.
mod entry {
    /// Called once, before the first input.
    #[unsafe(no_mangle)]
    extern "C" fn LLVMFuzzerInitialize(_count: *const i32, _arguments: *const *const *const u8) -> i32 {
        // A panic that some task or thread caught is a finding all the same.
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            std::process::abort();
        }));
        super::choose();
        0
    }

    #[unsafe(no_mangle)]
    extern "C" fn LLVMFuzzerTestOneInput(input: *const u8, length: usize) -> i32 {
        // SAFETY: libFuzzer gives `length` readable bytes, which live as long as this call.
        let input = if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(input, length) } };
        super::run(input);
        0
    }
}

fn choose() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(found) = target(&name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ_TARGET is `{name}`; allowed: {}", names.join(", "));
    };
    if let Ok(folder) = std::env::var("FUZZ_SEEDS") {
        for (number, seed) in (found.seeds)().into_iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed)
                .expect("a seed is written");
        }
        std::process::exit(0);
    }
    CHOSEN.get_or_init(|| found);
}

fn run(input: &[u8]) {
    (CHOSEN.get().expect("libFuzzer initialises first").run)(input);
}
