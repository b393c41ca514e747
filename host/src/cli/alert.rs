//! `alert`: what is in trouble, who is told of it, and whether they hear it.

use clap::Subcommand;
use comfy_table::Cell;
use serde::Serialize;
use serde_json::json;

use super::Failure;
use super::connection::Connection;
use super::credential::seconds;
use super::output::{Output, coloured, relative};
use super::plugin::unexpected;
use crate::config::{Config, Home};
use crate::control::{Operation, Outcome};
use crate::credential::now;
use crate::db::alerts::{AlertState, DeliveryRow, Snooze};
use crate::db::queries::Reader;
use crate::report::iso8601;

/// Of what was resolved and of messages, so many are shown.
const SHOWN: u32 = 100;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What is in trouble or was until lately, what is snoozed, and messages that didn't arrive
    #[command(after_help = "Examples:\n  keywheel alert list\n  keywheel alert list --json")]
    List,
    /// Send a message through a channel, or all of them, and say what each answered
    #[command(
        after_help = "Ends with 1 where one of them didn't take it.\n\nExamples:\n  keywheel alert test\n  keywheel alert test mail"
    )]
    Test {
        /// Its name in config.toml [default: all of them]
        channel: Option<String>,
    },
    /// Hear nothing of something for a while; that it is well again is told all the same
    #[command(
        after_help = "Examples:\n  keywheel alert snooze shop-account --for 4h\n  keywheel alert snooze service:shop --for 2d\n  keywheel alert snooze host:disk --for 1h"
    )]
    Snooze {
        /// A credential, a service, or a subject of `alert list`
        subject: String,
        /// How long, such as 30m, 4h or 7d
        #[arg(long = "for", value_name = "TIME")]
        time: String,
    },
    /// Hear of it again
    #[command(after_help = "Examples:\n  keywheel alert unsnooze shop-account")]
    Unsnooze {
        /// As it was snoozed, or as `alert list` shows it
        subject: String,
    },
}

pub async fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::List => list(home, output),
        Command::Test { channel } => test(home, channel, output).await,
        Command::Snooze { subject, time } => {
            let seconds = seconds(&time)?;
            let operation = Operation::AlertSnooze { subject, seconds };
            let Outcome::Snoozed { subject, until } = Connection::once(home, operation).await? else {
                return Err(unexpected());
            };
            output.value(&json!({ "snoozed": subject, "until": until.map(iso8601) }), || {
                format!("{subject} is snoozed, {}", relative(until))
            });
            Ok(())
        }
        Command::Unsnooze { subject } => {
            let operation = Operation::AlertUnsnooze { subject };
            let Outcome::Snoozed { subject, .. } = Connection::once(home, operation).await? else {
                return Err(unexpected());
            };
            output.value(&json!({ "unsnoozed": subject }), || format!("{subject} is heard of again"));
            Ok(())
        }
    }
}

async fn test(home: &Home, channel: Option<String>, output: Output) -> Result<(), Failure> {
    let Outcome::AlertTested(tested) = Connection::once(home, Operation::AlertTest { channel }).await? else {
        return Err(unexpected());
    };
    output.table(
        &tested,
        &["channel", "kind", "answer"],
        |one| {
            let answer = match &one.error {
                None => Cell::new("taken"),
                Some(error) => Cell::new(error),
            };
            vec![Cell::new(&one.channel), Cell::new(&one.kind), answer]
        },
        "",
    );
    if tested.iter().any(|one| one.error.is_some()) { Err(Failure::Unhealthy) } else { Ok(()) }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// By name; empty: nobody is told of anything.
    channels: Vec<String>,
    open: Vec<AlertState>,
    resolved: Vec<AlertState>,
    snoozed: Vec<Snooze>,
    /// Messages that wait for their channel, or were given up.
    undelivered: Vec<DeliveryRow>,
}

fn list(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let config = Config::load(home)?;
    let reader = Reader::open(home.database())?;
    let (mut open, mut resolved): (Vec<_>, Vec<_>) =
        reader.alert_states()?.into_iter().partition(AlertState::is_open);
    open.sort_by_key(|state| (std::cmp::Reverse(state.severity), state.since));
    resolved.sort_by_key(|state| std::cmp::Reverse(state.closed_at));
    resolved.truncate(SHOWN as usize);
    let listed = Listed {
        channels: config.alerts.channels.into_keys().collect(),
        open,
        resolved,
        snoozed: reader.snoozes(now())?,
        undelivered: reader.undelivered(SHOWN)?,
    };
    if output.json {
        output.json_line(&listed, true);
        return Ok(());
    }
    if listed.channels.is_empty() {
        output.say(
            "no channel is configured, so nothing is watched; hint: [alerts.channels.NAME] in config.toml",
        );
    }
    let cells = |state: &AlertState| {
        vec![
            Cell::new(&state.subject),
            coloured(state.severity.as_str()),
            Cell::new(relative(Some(state.since))),
            Cell::new(&state.what),
            Cell::new(state.why.as_deref().unwrap_or("–")),
            Cell::new(&state.hint),
        ]
    };
    output.table(
        &listed.open,
        &["subject", "severity", "since", "what", "why", "next"],
        cells,
        "no alert is open",
    );
    if !listed.snoozed.is_empty() {
        output.say("");
        output.table(
            &listed.snoozed,
            &["snoozed", "until"],
            |snooze| vec![Cell::new(&snooze.subject), Cell::new(relative(Some(snooze.until)))],
            "",
        );
    }
    if !listed.resolved.is_empty() {
        output.say("");
        output.table(
            &listed.resolved,
            &["resolved", "ended", "what it was"],
            |state| {
                vec![Cell::new(&state.subject), Cell::new(relative(state.closed_at)), Cell::new(&state.what)]
            },
            "",
        );
    }
    if !listed.undelivered.is_empty() {
        output.say("");
        output.table(
            &listed.undelivered,
            &["message", "channel", "state", "tries", "next try", "last error", "title"],
            |row| {
                let (state, next) = match row.failed_at {
                    Some(_) => ("failed", None),
                    None => ("waiting", Some(row.next_try_at)),
                };
                vec![
                    Cell::new(row.id),
                    Cell::new(&row.channel),
                    coloured(state),
                    Cell::new(row.tries),
                    Cell::new(relative(next)),
                    Cell::new(row.last_error.as_deref().unwrap_or("–")),
                    Cell::new(row.title.as_deref().unwrap_or("–")),
                ]
            },
            "",
        );
    }
    Ok(())
}
