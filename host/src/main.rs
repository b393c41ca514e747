//! Runs, and maps the end to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Children are entered before anything else exists: no runtime, no logging, no arguments
    // but the one that names them.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|first| first.to_str()) {
        Some("__worker") => return keywheel::worker::run(),
        Some("__compile") => {
            let require = arguments.next().is_some_and(|flag| flag == "--require-sandbox");
            return keywheel::worker::compile::run(require);
        }
        _ => {}
    }
    keywheel::cli::run()
}
