//! Runs, and maps the end to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Children are entered before anything else exists: no runtime, no logging, no arguments
    // but the one that names them.
    match std::env::args_os().nth(1).as_deref().and_then(|first| first.to_str()) {
        Some("__worker") => keywheel::worker::run(),
        Some("__compile") => keywheel::worker::compile::run(),
        Some("__probe") => keywheel::worker::probe::run(),
        _ => keywheel::cli::run(),
    }
}
