//! Runs a template provider: what a service needs, said in TOML instead of code. The host joins
//! this plugin and the TOML file into one plugin; alone it is no provider. A template that is
//! wrong describes itself as refused, with the reason, and does nothing else.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod check;
pub mod fault;
pub mod notation;
pub mod place;
pub mod predicate;
mod reader;
pub mod request;
pub mod run;
#[cfg(not(target_family = "wasm"))]
pub mod schema;
pub mod slot;
pub mod template;
#[cfg(test)]
mod tests;
pub mod url;

use keywheel_sdk::prelude::*;

/// The extra of a manifest that says why there is no provider.
const REFUSED: &str = "refused";

#[derive(Debug)]
pub struct TemplateProvider;

keywheel_sdk::export!(TemplateProvider);

impl Provider for TemplateProvider {
    fn describe() -> Manifest {
        let Some(text) = slot::text() else {
            return refused(
                "this plugin runs template providers and is none itself; hint: delete it here, and put a \
                 <service>.toml into the folder",
            );
        };
        let faults = match fault::read(&text) {
            Ok(template) => match check::check(&template) {
                faults if faults.is_empty() => return run::manifest(&template),
                faults => faults,
            },
            Err(fault) => vec![fault],
        };
        refused(&fault::told(&text, &faults))
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        run::validate(&template()?, cx)
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        run::rotate(&template()?, cx, method)
    }
}

fn refused(why: &str) -> Manifest {
    let mut manifest = Manifest::new("template", "A template provider", "0.0.0");
    manifest.extras.push((REFUSED.into(), why.into()));
    manifest
}

/// What `describe` accepted, so it isn't judged again.
fn template() -> Result<template::Template> {
    let text = slot::text().ok_or_else(|| Stop::failed("there is no template"))?;
    fault::read(&text).map_err(|fault| Stop::failed(fault::told(&text, &[fault])))
}
