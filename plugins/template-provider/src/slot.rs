//! The room for the template. The host finds it in this plugin's file by its marker and writes
//! the TOML into it, which makes the file a provider. Owns the room's shape, which the host knows
//! too (`host/src/registry/joined.rs`).

#[cfg(target_family = "wasm")]
use alloc::string::String;

/// Begins the room; 32 bytes that nothing else in the file has.
pub const BEGIN: [u8; 32] = *b"<keywheel-template-provider-v1>\n";
/// Ends it.
pub const END: [u8; 32] = *b"\n</keywheel-template-provider-v1";
/// What a template may have at most. The largest that came along has 4 KiB.
pub const CAPACITY: usize = 64 << 10;

#[cfg(target_family = "wasm")]
#[repr(C)]
struct Slot {
    begin: [u8; 32],
    text: [u8; CAPACITY],
    end: [u8; 32],
}

/// Filled with spaces, which are nothing to TOML, so that neither the template's length nor its
/// end has to be written down; and not with zeros, which a linker may leave out of the file.
#[cfg(target_family = "wasm")]
static SLOT: Slot = Slot { begin: BEGIN, text: [b' '; CAPACITY], end: END };

/// The template of this plugin; None where the host joined none.
#[cfg(target_family = "wasm")]
pub fn text() -> Option<String> {
    // Read through a pointer that the compiler can't look through, or it would take the spaces
    // for the text.
    let slot: &Slot = core::hint::black_box(&SLOT);
    let text = core::str::from_utf8(&slot.text).ok()?.trim_ascii_end();
    (!text.trim_ascii().is_empty()).then(|| text.into())
}

#[cfg(not(target_family = "wasm"))]
pub use native::{text, with};

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::cell::RefCell;

    thread_local! {
        static TEXT: RefCell<Option<String>> = const { RefCell::new(None) };
    }

    pub fn text() -> Option<String> {
        TEXT.with_borrow(Clone::clone)
    }

    /// Runs `act` with a template in place, for native tests.
    pub fn with<T>(template: &str, act: impl FnOnce() -> T) -> T {
        struct Put(Option<String>);
        impl Drop for Put {
            fn drop(&mut self) {
                TEXT.with_borrow_mut(|text| *text = self.0.take());
            }
        }
        let _put = Put(TEXT.with_borrow_mut(|text| text.replace(template.into())));
        act()
    }
}
