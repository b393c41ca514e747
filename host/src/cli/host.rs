//! `host`: which machines share the store, and who of them may open its secrets. A new one joins
//! and shows the fingerprint of its key; whoever has the master key compares that and admits it.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::output::{Output, coloured, relative};
use crate::config::Home;
use crate::config::store::{Store, StoreConfig};
use crate::credential::{Millis, now};
use crate::db::host_keys::{Access, Ended, HostKeyError, HostKeyRow};
use crate::db::hosts::HostRow;
use crate::db::queries::Reader;
use crate::keys::{self, Joining, KeyError};
use crate::report::iso8601;
use crate::vault::wrapped::{fingerprint, is_fingerprint_of};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a home on this machine whose host asks to be let in to a store
    #[command(
        after_help = "Run it again to see how that stands. Nothing secret is told or stored: the store gets the public half of a key that never leaves this machine.\n\nExamples:\n  keywheel host join --store postgres://keywheel@db.example/keywheel --password-file /etc/keywheel/db.password --name eu-2"
    )]
    Join(Join),
    /// Let a host have the master key; run it where that is
    #[command(
        after_help = "The fingerprint is what `keywheel host join` has shown on that host's own screen. Without it a person is asked, on a terminal.\n\nExamples:\n  keywheel host admit eu-2 --fingerprint 0a1b-2c3d-4e5f-6071-8293-a4b5-c6d7-e8f9"
    )]
    Admit {
        /// As `keywheel host list` shows it
        name: String,
        /// Of its key, as that host has shown it
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
    },
    /// Every host: whether it runs, what it has in flight, and whether it may open the secrets
    #[command(after_help = "Examples:\n  keywheel host list --json")]
    List,
    /// Take a host's access away, or refuse one that asks
    #[command(
        after_help = "Its daemon stops within seconds, and can't start again. The master key that it had stays the same, so whoever may have taken it from that host still has it.\n\nExamples:\n  keywheel host revoke eu-2"
    )]
    Revoke {
        /// As `keywheel host list` shows it
        name: String,
    },
    /// Give this host another key of its own; the daemon may run
    #[command(after_help = "Examples:\n  keywheel host rekey")]
    Rekey,
}

#[derive(Debug, Args)]
pub struct Join {
    /// The store that the other hosts use
    #[arg(long, value_name = "URL")]
    store: String,
    /// With the password of the URL's user
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Whom the server's certificate must come from, in PEM [default: who the system trusts]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// What to call this host [default: the machine's name]
    #[arg(long)]
    name: Option<String>,
}

pub fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Join(arguments) => join(home, arguments, output),
        Command::Admit { name, fingerprint } => admit(home, &name, fingerprint.as_deref(), output),
        Command::List => list(home, output),
        Command::Revoke { name } => revoke(home, &name, output),
        Command::Rekey => rekey(home, output),
    }
}

fn join(home: &Home, arguments: Join, output: Output) -> Result<(), Failure> {
    // Absolute, as they will stand in config.toml.
    let absolute = |path: Option<PathBuf>| -> Result<Option<PathBuf>, Failure> {
        path.map(std::path::absolute).transpose().map_err(Failure::io("the folder can't be found"))
    };
    let store = StoreConfig {
        url: arguments.store,
        password_file: absolute(arguments.password_file)?,
        ca_file: absolute(arguments.ca_file)?,
        tls: None,
    };
    let host = keys::join(home, &Joining { store, name: arguments.name })?;
    output.value(&object(&host), || {
        let (name, print) = (&host.name, fingerprint(&host.public_key));
        match host.access() {
            Access::Admitted => {
                format!("`{name}` is admitted\n\nNext:\n  {}", here(home, "serve"))
            }
            _ => format!(
                "`{name}` asks for the master key. The fingerprint of its key:\n\n  {print}\n\nNext, on a host that has the master key:\n  keywheel host admit {name} --fingerprint {print}\n\nThen here:\n  {}",
                here(home, "serve")
            ),
        }
    });
    Ok(())
}

/// A command for this very home.
fn here(home: &Home, command: &str) -> String {
    format!("keywheel --home {} {command}", super::first::quoted(&home.root().display().to_string()))
}

fn admit(home: &Home, name: &str, said: Option<&str>, output: Output) -> Result<(), Failure> {
    let host = keys::look_at(home, name)?;
    let print = fingerprint(&host.public_key);
    if let Some(at) = host.revoked_at {
        return Err(KeyError::Row(HostKeyError::Revoked { name: host.name, at }).into());
    }
    match said {
        Some(said) if is_fingerprint_of(&host.public_key, said) => {}
        Some(said) => {
            return Err(Failure::BadInput(format!(
                "the key of `{name}` in the store has the fingerprint {print}, not {said}; nothing was done; hint: `keywheel host join` shows it again on that host; where it differs from this one, somebody else asks in its name"
            )));
        }
        None if output.json || !std::io::stdin().is_terminal() => {
            return Err(Failure::Usage(format!(
                "nobody is here to compare the fingerprint; hint: keywheel host admit {name} --fingerprint, and what `keywheel host join` has shown on that host"
            )));
        }
        None => {
            output.say(&format!("`{name}` has asked with a key of this fingerprint:\n\n  {print}\n"));
            let same = output
                .ask("Does that host show the very same?")
                .map_err(Failure::io("the question was not answered"))?;
            if !same {
                return Err(Failure::Other(format!("`{name}` was not admitted")));
            }
        }
    }
    if host.access() != Access::Admitted {
        keys::admit(home, &host)?;
    }
    output.value(&json!({ "admitted": host.name, "fingerprint": print }), || {
        format!("`{name}` may open the secrets")
    });
    Ok(())
}

fn list(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let reader = Reader::open(home.database())?;
    let (lives, keys) = (reader.hosts(now())?, reader.host_keys()?);
    // One that has asked and never ran, one that runs with the master key itself, and both in one.
    let asked = keys.iter().filter(|key| !lives.iter().any(|host| host.host_id == key.host_id));
    let mut rows: Vec<(Option<&HostRow>, Option<&HostKeyRow>)> = lives
        .iter()
        .map(|host| (Some(host), keys.iter().find(|key| key.host_id == host.host_id)))
        .chain(asked.map(|key| (None, Some(key))))
        .collect();
    rows.sort_by_key(|(host, key)| host.map(|host| &host.name).or(key.map(|key| &key.name)));
    if output.json {
        let objects: Vec<Value> = rows.iter().map(|(host, key)| both(*host, *key)).collect();
        output.json_line(&objects, true);
        return Ok(());
    }
    if rows.is_empty() {
        output.say(match home.database() {
            Store::Server(_) => "no host has ever run on this store; hint: keywheel serve",
            Store::File(_) => {
                "this home keeps everything in a file of its own, and no other host shares that"
            }
        });
        return Ok(());
    }
    let cells = |(host, key): &(Option<&HostRow>, Option<&HostKeyRow>)| {
        let labels =
            host.iter().flat_map(|host| &host.labels).map(|(label, value)| format!("{label}={value}"));
        vec![
            Cell::new(
                host.map(|host| host.name.as_str()).or(key.map(|key| key.name.as_str())).unwrap_or_default(),
            ),
            coloured(host.map_or("never ran", |host| host.state.as_str())),
            coloured(key.map_or("master key", |key| key.access().as_str())),
            Cell::new(host.map_or(0, |host| host.open_attempts)),
            Cell::new(relative(host.map(|host| host.last_seen_at))),
            Cell::new(host.map(|host| host.duties.join(", ")).unwrap_or_default()),
            Cell::new(labels.collect::<Vec<_>>().join(", ")),
            Cell::new(key.map(|key| fingerprint(&key.public_key)).unwrap_or_default()),
        ]
    };
    output.rows(
        &["host", "state", "access", "attempts", "seen", "duties", "labels", "fingerprint"],
        rows.iter().map(cells).collect(),
    );
    Ok(())
}

/// What a host said of itself, and what it may open.
fn both(host: Option<&HostRow>, key: Option<&HostKeyRow>) -> Value {
    let name = host.map(|host| &host.name);
    let mut all = key.map_or_else(|| json!({ "host": name, "access": "master key" }), object);
    let said = host.map(|host| json!(host));
    if let (Some(all), Some(Value::Object(said))) = (all.as_object_mut(), said) {
        all.extend(said);
    }
    all
}

fn revoke(home: &Home, name: &str, output: Output) -> Result<(), Failure> {
    let ended = keys::revoke(home, name)?;
    let (what, at): (_, Option<Millis>) = match ended {
        Ended::Revoked => ("revoked", None),
        Ended::Refused => ("refused", None),
        Ended::Already(at) => ("revoked", Some(at)),
    };
    output.value(&json!({ what: name, "since": at.map(iso8601) }), || match (ended, at) {
        (_, Some(at)) => format!("`{name}` was revoked at {} already", iso8601(at)),
        (Ended::Refused, _) => format!("`{name}` had only asked, and is forgotten"),
        _ => format!(
            "`{name}` is revoked: its daemon stops within seconds, and can't start again\n\nIt knew the master key, which stays the same: whoever took that from it can open a copy of the store, then and now. If that may have happened, take its way to the database too, and renew the secrets themselves: keywheel credential rotate ID"
        ),
    });
    Ok(())
}

fn rekey(home: &Home, output: Output) -> Result<(), Failure> {
    let host = keys::rekey(home)?;
    output.value(&object(&host), || {
        format!("`{}` has another key, of the fingerprint {}", host.name, fingerprint(&host.public_key))
    });
    Ok(())
}

/// Never what is sealed: nobody has a use for it.
fn object(row: &HostKeyRow) -> Value {
    json!({
        "host": row.name,
        "hostId": row.host_id,
        "access": row.access(),
        "fingerprint": fingerprint(&row.public_key),
        "askedAt": iso8601(row.asked_at),
        "admittedAt": row.admitted_at.map(iso8601),
        "revokedAt": row.revoked_at.map(iso8601),
    })
}
