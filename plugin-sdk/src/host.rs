//! The one door to the host API. In a plugin it is the contract's imports; on the native target
//! it is the script of [`crate::testing`]. Nothing else calls the imports.

use alloc::string::String;
use alloc::vec::Vec;

use crate::bindings::keywheel::provider::{http, log};
#[cfg(not(target_family = "wasm"))]
use crate::testing::stage;

pub(crate) fn send(request: &http::Request) -> Result<http::Response, http::Error> {
    #[cfg(target_family = "wasm")]
    return http::send(request);
    #[cfg(not(target_family = "wasm"))]
    return stage::send(request);
}

pub(crate) fn reveal(key: &str) -> Result<Vec<u8>, String> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::keywheel::provider::secrets::reveal(key);
    #[cfg(not(target_family = "wasm"))]
    return stage::reveal(key);
}

pub(crate) fn emit(level: log::Level, message: &str) {
    #[cfg(target_family = "wasm")]
    log::emit(level, message);
    #[cfg(not(target_family = "wasm"))]
    stage::emit(level, message);
}
