//! Where the host asks for room for its arguments, it is sent behind the guest's memory.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

#[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "exported on wasm alone"))]
struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        tempted("lying-allocator")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        check(cx)
    }
}

// What `export!` would have written, but for the allocator it offers the host.
#[cfg(target_family = "wasm")]
mod exports {
    use keywheel_sdk::guest::freestanding;

    type Exported = keywheel_sdk::guest::Exported<super::Guest>;
    keywheel_sdk::bindings::export!(Exported with_types_in keywheel_sdk::bindings);

    #[global_allocator]
    static ALLOCATOR: freestanding::Allocator = freestanding::Allocator;

    #[panic_handler]
    fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
        freestanding::panic(panic)
    }

    #[unsafe(no_mangle)]
    extern "C" fn cabi_realloc(_old: usize, _old_size: usize, _align: usize, _new_size: usize) -> usize {
        0xffff_ff00
    }
}
