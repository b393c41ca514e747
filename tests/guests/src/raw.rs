//! The contract without the SDK's manners: requests built field by field, and the imported
//! functions by pointer and length, so that a guest can lie about both.

use alloc::string::String;
use alloc::vec::Vec;

pub use keywheel_sdk::bindings::keywheel::provider::{http, log, secrets, types};
pub use types::{Encoding, Leaf, Part};

/// A request for a URL of literal text, without anything else.
pub fn request(method: &str, url: &str) -> http::Request {
    http::Request {
        method: method.into(),
        url: text(url),
        headers: Vec::new(),
        body: None,
        cookies: false,
        capture: Vec::new(),
        redirects: 0,
        timeout: Some(5),
        extras: Vec::new(),
    }
}

pub fn text(plain: &str) -> Vec<Part> {
    alloc::vec![Part::Text(plain.into())]
}

pub fn secret(key: &str) -> Part {
    Part::Secret(types::SecretRef { key: key.into(), encoding: Encoding::Raw })
}

/// Text that is none.
pub fn not_utf8() -> String {
    // SAFETY: not upheld on purpose. The string goes to the host as it is; nothing here reads it.
    unsafe { String::from_utf8_unchecked(alloc::vec![b'a', 0xff, 0xfe, b'b']) }
}

/// The functions of the host as the component's core module imports them.
#[cfg(target_family = "wasm")]
pub mod imports {
    #[link(wasm_import_module = "keywheel:provider/log@0.1.0")]
    unsafe extern "C" {
        #[link_name = "emit"]
        pub fn emit(level: i32, pointer: usize, length: usize);
    }

    #[link(wasm_import_module = "keywheel:provider/secrets@0.1.0")]
    unsafe extern "C" {
        #[link_name = "reveal"]
        pub fn reveal(pointer: usize, length: usize, answer: usize);
    }

    #[link(wasm_import_module = "keywheel:provider/http@0.1.0")]
    unsafe extern "C" {
        #[link_name = "send"]
        pub fn send(request: usize, answer: usize);
    }
}

/// On the native target there is no host; the guests are only checked there.
#[cfg(not(target_family = "wasm"))]
pub mod imports {
    /// # Safety
    /// None needed.
    pub unsafe fn emit(_level: i32, _pointer: usize, _length: usize) {}

    /// # Safety
    /// None needed.
    pub unsafe fn reveal(_pointer: usize, _length: usize, _answer: usize) {}

    /// # Safety
    /// None needed.
    pub unsafe fn send(_request: usize, _answer: usize) {}
}

/// The three exports by hand, for guests that lie in what they return. `validate` is an
/// expression: the address it answers. `describe` tells the truth.
#[macro_export]
macro_rules! raw_guest {
    ($service:literal, validate: $address:expr) => {
        struct Guest;

        impl ::keywheel_sdk::Provider for Guest {
            fn describe() -> ::keywheel_sdk::Manifest {
                $crate::tempted($service)
            }

            fn validate(cx: &::keywheel_sdk::Cx) -> ::keywheel_sdk::Result<::keywheel_sdk::Verdict> {
                $crate::check(cx)
            }
        }

        // What names the exports of the core module to the linker.
        #[allow(
            dead_code,
            missing_docs,
            clippy::all,
            clippy::undocumented_unsafe_blocks,
            clippy::allow_attributes_without_reason,
            reason = "written by the bindings generator"
        )]
        mod contract {
            ::keywheel_sdk::wit_bindgen::generate!({
                path: "../../plugin-sdk/wit",
                world: "provider",
                runtime_path: "::keywheel_sdk::wit_bindgen::rt",
            });
        }

        #[cfg(target_family = "wasm")]
        mod exports {
            use ::keywheel_sdk::bindings::exports::keywheel::provider::guest;

            type Exported = ::keywheel_sdk::guest::Exported<super::Guest>;

            #[unsafe(export_name = "keywheel:provider/guest@0.1.0#describe")]
            unsafe extern "C" fn describe() -> *mut u8 {
                // SAFETY: called by the host by the rules of the canonical ABI.
                unsafe { guest::_export_describe_cabi::<Exported>() }
            }

            #[unsafe(export_name = "keywheel:provider/guest@0.1.0#validate")]
            extern "C" fn validate(
                _: usize,
                _: usize,
                _: i32,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: i32,
                _: i64,
                _: usize,
                _: usize,
            ) -> usize {
                $address
            }

            #[unsafe(export_name = "keywheel:provider/guest@0.1.0#rotate")]
            extern "C" fn rotate(
                _: usize,
                _: usize,
                _: i32,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
                _: i32,
                _: i64,
                _: usize,
                _: usize,
                _: usize,
                _: usize,
            ) -> usize {
                core::arch::wasm32::unreachable()
            }
        }
    };
}
