//! Write a Keywheel provider: what one service's credentials are, how to see that they live, and
//! how to get fresh ones. The plugin never holds a secret; it composes requests that refer to
//! keys by name, and the host puts the bytes in.
//!
//! The smallest honest provider:
//!
//! ```
//! #![cfg_attr(target_family = "wasm", no_std)]
//! use keywheel_sdk::prelude::*;
//!
//! struct Example;
//!
//! impl Provider for Example {
//!     fn describe() -> Manifest {
//!         Manifest::new("example", "Example", env!("CARGO_PKG_VERSION"))
//!             .origin("https://example.com")
//!             .validate_url("https://example.com/api/me")
//!             .key(Key::cookie("session", "sessionid", "example.com"))
//!             .method(Method::new("refresh", CommitClass::Sliding))
//!     }
//!
//!     fn validate(cx: &Cx) -> Result<Verdict> {
//!         let answer = cx.get("{validate_url}").cookies().send()?;
//!         match answer.status() {
//!             200 => Ok(Verdict::Valid(Evidence::new().identity(answer.pick("/login")?))),
//!             401 => Ok(Verdict::invalid("/api/me answers 401")),
//!             _ => Err(answer.unexpected()),
//!         }
//!     }
//!
//!     fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
//!         let answer = cx.post("https://example.com/api/session").cookies().send()?;
//!         if answer.is_success() { Ok(answer.outcome()) } else { Err(answer.unexpected()) }
//!     }
//! }
//!
//! keywheel_sdk::export!(Example);
//! # fn main() {}
//! ```
//!
//! `send()?` never hands a time-out, a rate limit, a server error or a challenge page to the
//! provider: those end the attempt as `unknown`, for they say nothing of the credential. And a
//! page where JSON was due does the same at `json()?` and `pick()?`.
//!
//! A token instead of a cookie, with a new one captured from the answer:
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! fn rotate(cx: &Cx) -> Result<Outcome> {
//!     let answer = cx
//!         .post("{base_url}/token")
//!         .form([("grant_type", text("refresh_token")), ("refresh_token", secret("refresh_token"))])
//!         .capture("access_token", json("/access_token").expires_in(json("/expires_in")))
//!         .capture("refresh_token", json("/refresh_token"))
//!         .send()?;
//!     match answer.status() {
//!         200 if answer.changed("access_token") => Ok(Outcome::rotated()),
//!         _ => Err(answer.unexpected()),
//!     }
//! }
//! ```
//!
//! Unit tests run natively, against a script: see [`testing`].

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

#[doc(hidden)]
#[allow(
    missing_docs,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    reason = "written by the bindings generator from wit/provider.wit, where everything is documented"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "provider",
        additional_derives: [PartialEq, Eq],
        pub_export_macro: true,
        default_bindings_module: "keywheel_sdk::bindings",
        runtime_path: "::keywheel_sdk::wit_bindgen::rt",
    });
}

pub mod cx;
pub mod date;
pub mod encode;
#[doc(hidden)]
pub mod guest;
mod host;
pub mod log;
pub mod manifest;
mod placeholders;
pub mod request;
pub mod response;
pub mod template;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
pub mod verdict;

// The generated export macro expands in the plugin's crate and names the runtime through ours.
extern crate self as keywheel_sdk;
#[doc(hidden)]
pub use wit_bindgen;

pub use cx::Cx;
pub use manifest::Manifest;
pub use request::SendError;
pub use serde_json;
pub use verdict::{Outcome, Stop, Verdict};

/// What validate and rotate give back; `?` on anything of this SDK fits.
pub type Result<T, E = Stop> = core::result::Result<T, E>;

/// What a provider needs in one `use`.
pub mod prelude {
    pub use alloc::string::String;
    pub use alloc::vec::Vec;
    pub use alloc::{format, vec};

    pub use crate::manifest::{CommitClass, Key, Manifest, Method, Setting};
    pub use crate::request::{Request, SendError, header, json};
    pub use crate::response::{Response, mentions};
    pub use crate::template::{
        IntoLeaves, IntoTemplate, Leaf, Leaves, Template, basic, bearer, secret, text,
    };
    pub use crate::template::{form, json_object};
    pub use crate::verdict::{Evidence, Outcome, Reason, Stop, Verdict};
    pub use crate::{Cx, Provider, Result, log};
    pub use serde_json::Value;
}

/// One service's knowledge. Implement `describe` and `validate`, and `rotate` where the service
/// issues fresh secrets; then [`export!`] it. Every call runs in a fresh instance, so nothing may be kept between
/// calls.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no provider",
    label = "not a provider",
    note = "write `impl Provider for {Self}` with `describe` and `validate`, and `rotate` if the service issues fresh secrets"
)]
pub trait Provider {
    /// Says what the plugin is. Runs without the host API and always answers the same.
    fn describe() -> Manifest;

    /// Finds out whether the credential lives.
    fn validate(cx: &Cx) -> Result<Verdict>;

    /// Gets a fresh secret by one of the manifest's methods. A provider without methods keeps
    /// this one, and is never asked.
    fn rotate(_cx: &Cx, method: &str) -> Result<Outcome> {
        Err(Stop::failed(alloc::format!("this provider has no method `{method}`: it only validates")))
    }
}
