//! The targets: each takes any bytes, puts them where a stranger's bytes come in, and panics
//! where a promise of the host is broken. They assert properties alone; what the right answer
//! to one input is, the unit tests say.
//!
//! Most inputs are postcard of a tuple, so that what libFuzzer makes of them is a manifest or a
//! request more often than noise. Seeds are made by code, for kept bytes would rot when a type
//! grows a field; `corpus` keeps what the long runs found beside them.

mod artefacts;
mod capture;
mod component;
mod control;
mod cookies;
mod formats;
mod frames;
mod intake;
mod interpreter;
mod link;
mod manifest;
mod redact;
mod store;
mod template;
mod urls;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// One target: its name is its folder below `corpus`.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "artefacts", run: artefacts::run, seeds: artefacts::seeds },
    Target { name: "capture", run: capture::run, seeds: capture::seeds },
    Target { name: "component", run: component::run, seeds: component::seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "cookies", run: cookies::run, seeds: cookies::seeds },
    Target { name: "formats", run: formats::run, seeds: formats::seeds },
    Target { name: "frames", run: frames::run, seeds: frames::seeds },
    Target { name: "intake", run: intake::run, seeds: intake::seeds },
    Target { name: "interpreter", run: interpreter::run, seeds: interpreter::seeds },
    Target { name: "link", run: link::run, seeds: link::seeds },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds },
    Target { name: "redact", run: redact::run, seeds: redact::seeds },
    Target { name: "store", run: store::run, seeds: store::seeds },
    Target { name: "template", run: template::run, seeds: template::seeds },
    Target { name: "urls", run: urls::run, seeds: urls::seeds },
];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The value an input stands for; what follows it is ignored, so that more inputs are one.
fn read<T: DeserializeOwned>(input: &[u8]) -> Option<T> {
    postcard::take_from_bytes(input).ok().map(|(value, _)| value)
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("a seed is serialisable")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
