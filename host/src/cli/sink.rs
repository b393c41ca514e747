//! `sink`: where secrets go by themselves. What there is stands in `config.toml`; here it is shown
//! how each fares, and one is served at once.

use clap::Subcommand;
use comfy_table::Cell;
use serde::Serialize;
use serde_json::{Value, json};

use super::Failure;
use super::connection::Connection;
use super::output::{Output, coloured, relative};
use crate::config::sinks::Sink;
use crate::config::{Config, Home};
use crate::control::Operation;
use crate::db::queries::Reader;
use crate::db::uses::SinkState;
use crate::fleet;
use crate::report::iso8601;
use crate::sinks::decide::Standing;
use crate::sinks::own_states;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every sink: what it got last, and whether it is in step
    #[command(after_help = "Examples:\n  keywheel sink list\n  keywheel sink list --json")]
    List,
    /// Deliver to a sink now, whatever it got before
    #[command(after_help = "Examples:\n  keywheel sink sync app")]
    Sync {
        /// As in [sinks.NAME] of config.toml
        name: String,
    },
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::List => list(home, output),
        Command::Sync { name } => {
            Connection::once(home, Operation::SinkSync { sink: name.clone() }).await?;
            output.value(&json!({ "delivered": name }), || format!("delivered to `{name}`"));
            Ok(())
        }
    }
}

struct Row {
    name: String,
    sink: Sink,
    standing: Standing,
    current: Option<u32>,
    state: SinkState,
}

fn rows(home: &Home) -> Result<Vec<Row>, Failure> {
    let (config, store) = (Config::load(home)?, home.database());
    let reader = &Reader::open(&store)?;
    let host_id = fleet::host_id(home.root(), None).map_err(|error| Failure::Other(error.to_string()))?;
    let mut states = own_states(reader, &fleet::sink_suffix(&store, &host_id))?;
    let row = |(name, sink): (String, Sink)| {
        let in_force = reader.in_force(&sink.credential)?;
        let at = states.iter().position(|state| state.sink == name);
        let state = at.map(|at| states.swap_remove(at));
        let standing = Standing::of(in_force.as_ref(), state.as_ref());
        let current = in_force.and_then(|in_force| in_force.generation);
        Ok(Row { name, sink, standing, current, state: state.unwrap_or_default() })
    };
    config.sinks.into_iter().map(row).collect()
}

fn list(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let rows = rows(home)?;
    output.table(
        &rows,
        &["sink", "credential", "to", "state", "generation", "delivered", "error"],
        Row::cells,
        "no sinks; hint: [sinks.NAME] in config.toml sends a credential's secrets to a file, a command or a webhook",
    );
    Ok(())
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

impl Row {
    /// Where it leads; of a webhook no more than its host, for its address may hold a token.
    fn to(&self) -> Vec<String> {
        let file = self.sink.path.as_ref().map(|path| path.display().to_string());
        let command = self.sink.command.first().map(|program| format!("command {program}"));
        let webhook = self.sink.webhook.as_ref().map(|url| {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("webhook {}{port}", url.host_str().unwrap_or_default())
        });
        [file, command, webhook].into_iter().flatten().collect()
    }

    fn json(&self) -> Value {
        json!({
            "sink": self.name,
            "credential": self.sink.credential,
            "to": self.to(),
            "format": self.sink.format,
            "acknowledges": self.sink.acknowledges,
            "state": self.standing,
            "generation": self.state.got.map(|(_, generation)| generation),
            "current": self.current,
            "deliveredAt": self.state.delivered_at.map(iso8601),
            "tries": self.state.tries,
            "nextTryAt": self.state.next_try_at.map(iso8601),
            "error": self.state.last_error,
        })
    }

    fn cells(&self) -> Vec<Cell> {
        let number = |generation: Option<u32>| generation.map_or("–".into(), |number| number.to_string());
        let got = self.state.got.map(|(_, generation)| generation);
        let generation = match got == self.current {
            true => number(got),
            false => format!("{} of {}", number(got), number(self.current)),
        };
        vec![
            Cell::new(&self.name),
            Cell::new(&self.sink.credential),
            Cell::new(self.to().join(", ")),
            coloured(self.standing.as_str()),
            Cell::new(generation),
            Cell::new(relative(self.state.delivered_at)),
            Cell::new(match &self.state.last_error {
                Some(error) => format!("{error} (tried {} times)", self.state.tries),
                None => String::new(),
            }),
        ]
    }
}
