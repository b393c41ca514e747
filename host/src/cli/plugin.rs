//! `plugin`: what is in the folder, what it may do, and who decided.

use std::path::PathBuf;

use clap::Subcommand;
use comfy_table::Cell;

use super::Failure;
use super::connection::Connection;
use super::output::{Output, coloured};
use crate::config::Home;
use crate::control::{Operation, Outcome};
use crate::registry::PluginStatus;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every plugin file and where it stands
    List,
    /// What a plugin file is and would be allowed, without installing it
    Check { file: PathBuf },
    /// Copy a plugin file into the folder
    Install { file: PathBuf },
    /// Grant what a service's plugin asks for
    Approve { service: String },
    /// Remove a service's plugin file; credentials and reports stay
    Remove { service: String },
}

pub async fn run(home: Home, command: Command, output: Output) -> Result<(), Failure> {
    let absolute = |file: PathBuf| {
        // The daemon has another working folder.
        std::path::absolute(&file).map_err(Failure::io(format!("{} can't be found", file.display())))
    };
    match command {
        Command::List => {
            let Outcome::Plugins(plugins) = Connection::once(&home, Operation::PluginList).await? else {
                return Err(unexpected());
            };
            output.table(
                &plugins,
                &["file", "state", "service", "version", "reason"],
                |plugin| {
                    vec![
                        Cell::new(&plugin.file),
                        coloured(&state(plugin)),
                        Cell::new(plugin.service.as_deref().unwrap_or("–")),
                        Cell::new(plugin.version.as_deref().unwrap_or("–")),
                        Cell::new(plugin.reason.as_deref().unwrap_or("")),
                    ]
                },
                &format!("no plugins; hint: put .wasm files into {}", home.plugins().display()),
            );
            Ok(())
        }
        Command::Check { file } => {
            show(&home, Operation::PluginCheck { path: absolute(file)? }, output).await
        }
        Command::Install { file } => {
            show(&home, Operation::PluginInstall { path: absolute(file)? }, output).await
        }
        Command::Approve { service } => {
            let operation = Operation::PluginApprove { service: service.clone() };
            let Outcome::Lines(lines) = Connection::once(&home, operation).await? else {
                return Err(unexpected());
            };
            output.value(&lines, || {
                if lines.is_empty() {
                    format!("`{service}` had everything it asks for already")
                } else {
                    format!("granted to `{service}`:\n  {}", lines.join("\n  "))
                }
            });
            Ok(())
        }
        Command::Remove { service } => {
            let Outcome::Lines(lines) = Connection::once(&home, Operation::PluginRemove { service }).await?
            else {
                return Err(unexpected());
            };
            output.value(&lines, || lines.join("\n"));
            Ok(())
        }
    }
}

async fn show(home: &Home, operation: Operation, output: Output) -> Result<(), Failure> {
    let Outcome::Plugins(plugins) = Connection::once(home, operation).await? else {
        return Err(unexpected());
    };
    for plugin in &plugins {
        output.value(plugin, || {
            let mut text = format!(
                "{} {} ({}), service `{}`\ndigest {}\n",
                plugin.title.as_deref().unwrap_or("untitled"),
                plugin.version.as_deref().unwrap_or("?"),
                state(plugin),
                plugin.service.as_deref().unwrap_or("?"),
                plugin.digest.as_deref().unwrap_or("?"),
            );
            for line in plugin.reason.iter().chain(&plugin.permissions) {
                text.push_str("  ");
                text.push_str(line);
                text.push('\n');
            }
            text.trim_end().to_owned()
        });
    }
    Ok(())
}

fn state(plugin: &PluginStatus) -> String {
    serde_json::to_value(plugin.state)
        .ok()
        .and_then(|state| state.as_str().map(str::to_owned))
        .unwrap_or_default()
}

pub fn unexpected() -> Failure {
    Failure::Other("the daemon answered another question; hint: it is of another version, restart it".into())
}
