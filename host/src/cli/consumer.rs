//! `credential consumer` and `credential ack`: who says that he uses a generation, so that a
//! rotation doesn't take the one before away from under him.

use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;

use super::Failure;
use super::connection::Connection;
use super::credential::{find, seconds};
use super::output::{Output, relative};
use super::plugin::unexpected;
use crate::config::Home;
use crate::control::{Operation, Outcome};
use crate::db::queries::Reader;
use crate::limits;
use crate::rotation::schedule::span;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add one, or change how long it is waited for
    #[command(after_help = "Examples:\n  keywheel credential consumer add ann reporter --wait 10m")]
    Add {
        id: String,
        /// Yours, to acknowledge with
        name: String,
        /// How long a due rotation waits for it, such as 90s, 10m, 2h [default: 10m]
        #[arg(long, value_name = "TIME")]
        wait: Option<String>,
    },
    /// Every consumer of a credential, and what it acknowledged
    #[command(after_help = "Examples:\n  keywheel credential consumer list ann")]
    List { id: String },
    /// Wait for it no more
    #[command(after_help = "Examples:\n  keywheel credential consumer remove ann reporter")]
    Remove {
        id: String,
        /// The one to wait for no more
        name: String,
    },
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Add { id, name, wait } => {
            let wait_seconds = wait.as_deref().map_or(Ok(limits::ACKNOWLEDGE_WAIT), seconds)?;
            let operation =
                Operation::ConsumerAdd { credential_id: id.clone(), name: name.clone(), wait_seconds };
            Connection::once(home, operation).await?;
            output.value(&json!({ "credential": id, "consumer": name, "waitSeconds": wait_seconds }), || {
                let wait = span(u64::from(wait_seconds) * 1_000);
                format!("a rotation of `{id}` waits up to {wait} for `{name}`")
            });
            Ok(())
        }
        Command::List { id } => list(home, &id, output),
        Command::Remove { id, name } => {
            let operation = Operation::ConsumerRemove { credential_id: id.clone(), name: name.clone() };
            Connection::once(home, operation).await?;
            output.value(&json!({ "credential": id, "removed": name }), || {
                format!("no rotation of `{id}` waits for `{name}` any more")
            });
            Ok(())
        }
    }
}

pub async fn acknowledge(
    home: &Home,
    id: String,
    consumer: String,
    generation: u32,
    output: Output,
) -> Result<(), Failure> {
    let operation = Operation::CredentialAck { credential_id: id, consumer: consumer.clone(), generation };
    let Outcome::Acknowledged { current } = Connection::once(home, operation).await? else {
        return Err(unexpected());
    };
    output.value(&json!({ "consumer": consumer, "acknowledged": generation, "current": current }), || {
        match current == generation {
            true => format!("`{consumer}` uses generation {generation}"),
            false => format!("`{consumer}` uses generation {generation}; in force is {current}"),
        }
    });
    Ok(())
}

fn list(home: &Home, id: &str, output: Output) -> Result<(), Failure> {
    let current = find(home, id)?.current_generation;
    let rows = Reader::open(home.database())?.consumers(id)?;
    output.table(
        &rows,
        &["consumer", "waited for", "acknowledged", "when", ""],
        |row| {
            let behind = row.acknowledged < current;
            vec![
                Cell::new(&row.name),
                Cell::new(span(u64::from(row.wait_seconds) * 1_000)),
                Cell::new(row.acknowledged.map_or("–".into(), |generation| generation.to_string())),
                Cell::new(relative(row.acknowledged_at)),
                Cell::new(match (behind, row.sink) {
                    (true, _) => format!("in force is {}", current.unwrap_or_default()),
                    (false, true) => String::from("a sink"),
                    (false, false) => String::new(),
                }),
            ]
        },
        "no consumers; hint: `keywheel credential consumer add --help`",
    );
    Ok(())
}
