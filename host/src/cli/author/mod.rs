//! The tools of a provider's author: a new project, a loop of building and trying, recorded
//! answers, and what is handed on. They work on a folder of the author's and leave the home alone,
//! but for `dev --install`.

mod build;
pub mod dev;
mod folder;
pub mod new;
pub mod pack;
pub mod record;
mod scaffold;
mod tools;
mod trace;

use std::path::Path;

use clap::ValueEnum;

/// What a provider is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    Js,
    Python,
}

impl Language {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Python => "python",
        }
    }

    /// The file that an author changes.
    const fn source(self) -> &'static str {
        match self {
            Self::Rust => "src/lib.rs",
            Self::Js => "src/provider.js",
            Self::Python => "provider.py",
        }
    }
}

/// A path as a person would type it: from here where it is below.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
        Ok(below) => below.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}
