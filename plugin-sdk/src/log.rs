//! Lines in the host's log, attributed to the plugin. Secrets are redacted there; all the same,
//! say what happened and not what was answered.
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! fn note(answer: &Response) {
//!     log::info(&format!("the session page answered {}", answer.status()));
//! }
//! ```

use crate::bindings::keywheel::provider::log::Level;
use crate::host;

pub fn debug(message: &str) {
    host::emit(Level::Debug, message);
}

pub fn info(message: &str) {
    host::emit(Level::Info, message);
}

pub fn warn(message: &str) {
    host::emit(Level::Warn, message);
}

pub fn error(message: &str) {
    host::emit(Level::Error, message);
}
