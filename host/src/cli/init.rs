//! `init`: makes a home, once.

use serde_json::json;

use super::Failure;
use super::output::Output;
use crate::config::Home;
use crate::daemon;

pub fn run(home: &Home, output: Output) -> Result<(), Failure> {
    daemon::make_home(home)?;
    let root = home.root().display().to_string();
    output.value(&json!({ "home": root }), || {
        format!(
            "Made {root}\n\nNext:\n  copy a provider's .wasm or .toml file into {}\n  keywheel serve\n\nKeep a copy of {} in a safe place: without it no stored secret can be read.",
            home.plugins().display(),
            home.master_key().display()
        )
    });
    Ok(())
}
