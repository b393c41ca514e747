//! Runs a template provider: what a service needs, said in TOML instead of code. The host joins
//! this plugin and the TOML file into one plugin; alone it is no provider.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod fault;
pub mod notation;
pub mod place;
#[cfg(not(target_family = "wasm"))]
pub mod schema;
pub mod template;
#[cfg(test)]
mod tests;

use keywheel_sdk::prelude::*;

struct TemplateProvider;

keywheel_sdk::export!(TemplateProvider);

impl Provider for TemplateProvider {
    fn describe() -> Manifest {
        panic!(
            "this plugin runs template providers and is none itself; hint: put a <service>.toml into the folder"
        )
    }

    fn validate(_cx: &Cx) -> Result<Verdict> {
        Err(Stop::failed("there is no template"))
    }
}
