//! `store`: where a home keeps everything, and how it goes over to another place.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::layout::Column;
use super::output::Output;
use super::progress::Progress;
use crate::config::Home;
use crate::config::store::{Store, StoreConfig, Tls};
use crate::db::marks::{self, Described, Marks};
use crate::db::moving::Content;
use crate::db::{DbError, HomeLock, migrations, moving as db_moving};
use crate::moving::{self, Moved, MovingError, Step};
use crate::report::iso8601;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Where everything is kept, what of it, and whether it can be reached
    #[command(after_help = "Examples:\n  keywheel store show\n  keywheel store show --json")]
    Show,
    /// Move everything to another store, compare both, and use that from then on
    #[command(
        after_help = "No daemon may run meanwhile. The old store stays as it is, retired. A move that was cut off\nchanges nothing, or is brought to its end by the next command or daemon: run it again.\n\nExamples:\n  keywheel store migrate --to postgres --url postgres://keywheel@db.example/keywheel --password-file /etc/keywheel/db.password\n  keywheel store migrate --from postgres --to sqlite"
    )]
    Migrate(Migrate),
    /// Take up a retired store as it was left, where the one that it moved to is lost
    #[command(
        after_help = "As after a restore, each credential is validated before anything is rotated. The store that\nit moved to must never be used again.\n\nExamples:\n  keywheel store reopen --yes"
    )]
    Reopen {
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    const fn of(store: &Store) -> Self {
        match store {
            Store::File(_) => Self::Sqlite,
            Store::Server(_) => Self::Postgres,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TlsChoice {
    Require,
    Disable,
}

#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// What the home uses now; refused if it uses something else
    #[arg(long, value_name = "ENGINE")]
    from: Option<Engine>,
    /// sqlite is a file in the home
    #[arg(long, value_name = "ENGINE")]
    to: Engine,
    /// The server, as in postgres://USER@HOST:PORT/DATABASE
    #[arg(long, required_if_eq("to", "postgres"))]
    url: Option<String>,
    /// A file with its password
    #[arg(long, value_name = "FILE", requires = "url")]
    password_file: Option<PathBuf>,
    /// Whom the server's certificate must come from, in PEM
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// Whether TLS is a must; unless the server is on this machine it is
    #[arg(long, value_name = "WHETHER", requires = "url")]
    tls: Option<TlsChoice>,
}

pub fn run(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    home.require()?;
    match command {
        Command::Show => show(home, output),
        Command::Migrate(order) => migrate(home, &order, output),
        Command::Reopen { yes } => reopen(home, yes, output),
    }
}

fn target(home: &Home, order: &Migrate) -> Result<Store, Failure> {
    match (order.to, &order.url) {
        (Engine::Sqlite, None) => Ok(Store::File(home.database_file())),
        (Engine::Sqlite, Some(_)) => Err(Failure::Usage(
            "--url names a server, and --to is sqlite; allowed: --url with --to postgres".into(),
        )),
        (Engine::Postgres, url) => {
            // As it is written into config.toml: daemons have other folders.
            let absolute = |path: &Option<PathBuf>, option: &str| {
                let absolute = path.as_ref().map(std::path::absolute).transpose();
                absolute.map_err(Failure::io(format!("{option} is no file")))
            };
            Ok(Store::Server(StoreConfig {
                url: url.clone().unwrap_or_default(),
                password_file: absolute(&order.password_file, "--password-file")?,
                ca_file: absolute(&order.ca_file, "--ca-file")?,
                tls: order.tls.map(|tls| match tls {
                    TlsChoice::Require => Tls::Require,
                    TlsChoice::Disable => Tls::Disable,
                }),
            }))
        }
    }
}

fn migrate(home: &Home, order: &Migrate, output: Output) -> Result<(), Failure> {
    let (from, to) = (home.database(), target(home, order)?);
    let uses = Engine::of(&from);
    if let Some(said) = order.from
        && said != uses
        && from != to
    {
        return Err(Failure::Usage(format!(
            "--from is {}, and this home uses {}; allowed: --from {}",
            said.as_str(),
            uses.as_str(),
            uses.as_str()
        )));
    }
    if uses == order.to && from != to {
        return Err(Failure::Usage(
            "this home uses postgres already; allowed: --to sqlite; hint: to another server it goes by way of the file".into(),
        ));
    }
    let mut shown = None;
    let moved = moving::migrate(home, &to, &mut |step| match (step, &shown) {
        (Step::Begun(rows), _) => shown = Some(Progress::counted(rows, "rows copied")),
        (Step::Copied(rows), Some(progress)) => progress.reached(rows),
        (Step::Comparing, _) => shown = Some(Progress::of("comparing both sides")),
        (Step::Whole, _) => shown = None,
        _ => {}
    });
    drop(shown);
    say(&moved?, output);
    Ok(())
}

fn say(moved: &Moved, output: Output) {
    let next = "config.toml names it now. The old store is retired and stays as a backup: daemons refuse it.\n\nNext:\n  keywheel serve";
    match moved {
        Moved::Already { to } => {
            output.value(&json!({ "outcome": "already", "to": to }), || format!("{to} is this home's store"));
        }
        Moved::Finished { from, to } => {
            output.value(&json!({ "outcome": "finished", "from": from, "to": to }), || {
                format!("An earlier move from {from} to {to} had lacked its end, and has it now.\n{next}")
            });
        }
        Moved::Copied { from, to, content, replaced } => {
            let value = json!({
                "outcome": "copied",
                "from": from,
                "to": to,
                "tables": content.iter().map(content_value).collect::<Vec<_>>(),
                "replacedTexts": replaced,
            });
            if output.json {
                output.json_line(&value, true);
                return;
            }
            let header = [Column::kept("table"), Column::kept("rows"), Column::kept("digest of both sides")];
            let row =
                |of: &Content| vec![Cell::new(of.table), Cell::new(of.rows), Cell::new(&of.digest[..16])];
            output.rows(&header, content.iter().filter(|of| of.rows > 0).map(row).collect());
            let rows: u64 = content.iter().map(|of| of.rows).sum();
            output
                .line(&format!("\nMoved {rows} rows from {from} to {to}; both sides are the same.\n{next}"));
            if *replaced > 0 {
                output.say(&format!(
                    "warning: {replaced} texts had a NUL character, which PostgreSQL can't hold; U+FFFD is in its place"
                ));
            }
        }
    }
}

fn content_value(of: &Content) -> Value {
    json!({ "table": of.table, "rows": of.rows, "sha256": of.digest })
}

/// A daemon refuses the one and the other.
fn state(marks: &Marks) -> &'static str {
    if marks.moved_to.is_some() {
        "retired"
    } else if marks.copying.is_some() {
        "unfinished"
    } else {
        "in-use"
    }
}

fn show(home: &Home, output: Output) -> Result<(), Failure> {
    let store = home.database();
    let engine = Engine::of(&store).as_str();
    let name = marks::name(&store)?;
    match marks::describe(&store) {
        Ok(described) => {
            let value = shown(engine, &name, &described);
            output.value(&value, || words(engine, &name, &described));
            Ok(())
        }
        Err(error) => {
            let why = super::with_causes(&error);
            let value = json!({ "engine": engine, "name": name, "reachable": false, "why": why });
            output.value(&value, || format!("{name} ({engine}) can't be used now\n{why}"));
            Err(Failure::Exit(super::db_code(&error)))
        }
    }
}

fn shown(engine: &str, name: &str, described: &Described) -> Value {
    let Described { version, schema, bytes, marks, rows } = described;
    json!({
        "engine": engine,
        "name": name,
        "reachable": true,
        "state": state(marks),
        "movedTo": marks.moved_to.as_ref().map(|moved| json!({ "name": moved.name, "at": iso8601(moved.at) })),
        "cameFrom": marks.came_from.as_ref().map(|from| json!({ "name": from.name, "at": iso8601(from.at) })),
        "copyOf": marks.copying.as_ref().map(|copying| &copying.from),
        "version": version,
        "schema": schema,
        "schemaKnown": migrations::current(),
        "bytes": bytes,
        "rows": rows,
    })
}

fn words(engine: &str, name: &str, described: &Described) -> String {
    let Described { version, schema, bytes, marks, rows } = described;
    let count = |table: &str| rows.get(table).copied().unwrap_or(0);
    let known = migrations::current();
    let schema = match schema {
        0 => String::from("none yet"),
        schema if *schema == known => schema.to_string(),
        schema => format!("{schema}, this keywheel's is {known}"),
    };
    let mut lines = vec![
        format!("store    {name}"),
        format!("engine   {engine} {version}"),
        format!("schema   {schema}"),
        format!("size     {:.1} MiB", *bytes as f64 / f64::from(1 << 20)),
        format!(
            "rows     {} in all, {} credentials, {} reports",
            rows.values().sum::<u64>(),
            count("credentials"),
            count("cookie_rotation_reports")
        ),
        format!("state    {}", state(marks)),
    ];
    if let Some(moved) = &marks.moved_to {
        lines.push(format!("moved    to {} at {}", moved.name, iso8601(moved.at)));
    }
    if let Some(copying) = &marks.copying {
        lines.push(format!("copy of  {}", copying.from));
    }
    if let Some(from) = &marks.came_from {
        lines.push(format!("came     from {} at {}", from.name, iso8601(from.at)));
    }
    lines.join("\n")
}

fn reopen(home: &Home, yes: bool, output: Output) -> Result<(), Failure> {
    let store = home.database();
    let lock: &Path = &home.lock();
    let _lock = HomeLock::acquire(lock).map_err(|error| match error {
        DbError::Locked { pid, .. } => Failure::Moving(MovingError::Running { pid }),
        error => error.into(),
    })?;
    let described = marks::describe(&store)?;
    if let Some(moved) = &described.marks.moved_to
        && !yes
    {
        let question = format!(
            "Everything moved to {} at {}. What happened since is lost here, and two stores in use would each rotate. Is that place gone for good?",
            moved.name,
            iso8601(moved.at)
        );
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Usage(format!("{question} hint: --yes says so")));
        }
        if !output.ask(&question).map_err(Failure::io("no answer"))? {
            return Err(Failure::Other("nothing was changed".into()));
        }
    }
    let credentials = db_moving::reopen(&store).map_err(MovingError::from)?;
    output.value(&json!({ "reopened": marks::name(&store)?, "credentials": credentials }), || {
        format!("Reopened. Each of {credentials} credentials is validated before anything is rotated.\n\nNext:\n  keywheel serve")
    });
    Ok(())
}
