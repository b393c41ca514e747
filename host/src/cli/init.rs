//! `init`: makes a home, once.

use serde_json::json;

use super::Failure;
use super::output::Output;
use crate::config::{Home, TEMPLATE, write_atomically};
use crate::db::writer::Writer;
use crate::db::{HomeLock, Reader};
use crate::vault::Vault;

pub fn run(home: &Home, output: Output) -> Result<(), Failure> {
    make(home)?;
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

/// The folders, the master key, the configuration and an up-to-date database.
pub fn make(home: &Home) -> Result<(), Failure> {
    home.make_folders()?;
    // The key comes last of what marks a home, so that a half-made one isn't taken for whole.
    if !home.config().exists() {
        write_atomically(&home.config(), TEMPLATE.as_bytes())
            .map_err(Failure::io("config.toml can't be written"))?;
    }
    if home.exists() {
        return Err(Failure::BadInput(format!(
            "{} is a home already; hint: nothing was changed, `keywheel status` shows it",
            home.root().display()
        )));
    }
    let lock = HomeLock::acquire(&home.lock())?;
    let (writer, thread) = Writer::start(&home.database(), lock)?;
    drop(writer);
    thread.join();
    let sealed = Reader::open(&home.database())?.counts()?.credentials;
    if sealed > 0 {
        return Err(Failure::BadInput(format!(
            "the database holds {sealed} credential{} sealed with a master key that isn't at {}; hint: put the backup of it back",
            if sealed == 1 { "" } else { "s" },
            home.master_key().display()
        )));
    }
    Vault::create(&home.master_key())?;
    Ok(())
}
