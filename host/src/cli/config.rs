//! `config` and `reload`: the commented default, a file judged before it is used, what is in force
//! and where each value comes from, and a running daemon told to read its file anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use comfy_table::Cell;
use serde::Serialize;
use serde_json::json;
use toml::Value;

use super::Failure;
use super::connection::{Connection, daemon_answers};
use super::output::Output;
use super::plugin::unexpected;
use crate::config::{Config, ConfigError, Home, TEMPLATE, place};
use crate::control::{Operation, Outcome};
use crate::reload;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a configuration and say what is wrong with it, by line and column
    #[command(
        after_help = "Examples:\n  keywheel config check new.toml && cp new.toml \"$KEYWHEEL_HOME/config.toml\""
    )]
    Check {
        /// The home's config.toml unless another is named
        file: Option<PathBuf>,
    },
    /// What is in force, and where each value comes from
    #[command(after_help = "Examples:\n  keywheel config show --json")]
    Show,
}

pub async fn run(
    home: Result<Home, ConfigError>,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    match arguments.command {
        None => {
            output.line(TEMPLATE.trim_end());
            Ok(())
        }
        Some(Command::Check { file }) => {
            let path = match file {
                Some(file) => file,
                None => home.as_ref().map_err(|_| ConfigError::Nowhere)?.config(),
            };
            check(&path, home.ok().as_ref(), output)
        }
        Some(Command::Show) => show(&home?, output).await,
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(Failure::io(format!("{} can't be read", path.display())))
}

fn check(path: &Path, home: Option<&Home>, output: Output) -> Result<(), Failure> {
    let text = read(path)?;
    let config = Config::parse(&text, path, home).map_err(|error| Failure::BadInput(error.to_string()))?;
    if let Some(file) = &config.extra_ca_file {
        fs::metadata(file).map_err(Failure::io(format!("extra_ca_file {} can't be read", file.display())))?;
    }
    let set = place::keys(&text).map_or(0, |keys| keys.len());
    output.value(&json!({ "file": path, "ok": true, "keys": set }), || {
        format!("{} can be used; it sets {set} key{}", path.display(), if set == 1 { "" } else { "s" })
    });
    Ok(())
}

/// One key as it stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    key: String,
    /// As TOML; None: unset, and that is the default.
    value: Option<String>,
    from: String,
    /// Why what the file says isn't in force yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<String>,
}

async fn show(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    let path = home.config();
    // None there is a configuration, too.
    let file = if path.exists() { read(&path)? } else { String::new() };
    let (started, now) = if daemon_answers(home).await? {
        match Connection::once(home, Operation::Configuration).await? {
            Outcome::Configuration { started, now } => (started, now),
            _ => return Err(unexpected()),
        }
    } else {
        Config::parse(&file, &path, Some(home))?;
        (file.clone(), file.clone())
    };
    let rows = rows(&started, &now, &file);
    let row = |row: &Row| {
        let value = row.value.clone().unwrap_or_else(|| String::from("–"));
        let note = row.waiting.clone().unwrap_or_default();
        vec![Cell::new(&row.key), Cell::new(value), Cell::new(&row.from), Cell::new(note)]
    };
    output.table(&rows, &["key", "value", "from", ""], row, "no keys");
    Ok(())
}

/// The keys that can be, and those that are. Three texts: what the daemon was started with, what it
/// has read since, and what lies in the file now.
fn rows(started: &str, now: &str, file: &str) -> Vec<Row> {
    let keys = |text| place::keys(text).unwrap_or_default();
    let (started, now, file) = (keys(started), keys(now), keys(file));
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let known = defaults();
    for key in known.keys().chain(now.keys()).chain(started.keys()).chain(file.keys()) {
        let of = if reload::waits(key).is_some() { &started } else { &now };
        let (value, from) = match of.get(key) {
            Some((line, value)) => (Some(shown(key, value)), format!("config.toml, line {line}")),
            None => (known.get(key).cloned().flatten(), String::from("default")),
        };
        let same = |a: &BTreeMap<String, (usize, Value)>| {
            a.get(key).map(|(_, value)| value) == of.get(key).map(|(_, value)| value)
        };
        let waiting = match (same(&now), same(&file)) {
            (false, _) => Some("changed, waits for a restart"),
            (true, false) => Some("the file says otherwise since, `keywheel reload` reads it"),
            (true, true) => None,
        };
        // What is neither known nor in force: a new key of the file's.
        let row = Row { key: key.clone(), value, from, waiting: waiting.map(str::to_owned) };
        rows.insert(key, row);
    }
    rows.into_values().collect()
}

/// An address that alerts go to is often all that its owner has to prove who he is.
fn shown(key: &str, value: &Value) -> String {
    let is_address = key.starts_with("alerts.") && (key.ends_with(".url") || key.ends_with("heartbeat_url"));
    if is_address { String::from("(set, not shown)") } else { written(value) }
}

fn written(value: &Value) -> String {
    value.to_string()
}

/// Every key of the template, with its default; None: it is unset by default, and what the
/// template shows is an example.
fn defaults() -> BTreeMap<String, Option<String>> {
    let text = place::uncommented(TEMPLATE);
    let plain = format!("{:?}", without_text(Config::default()));
    let all = place::keys(&text).unwrap_or_default();
    all.into_iter()
        // Sections that exist by a name of the operator's alone.
        .filter(|(key, _)| !key.contains(".name.") && !key.starts_with("alerts.channels."))
        .map(|(key, (_, value))| {
            let alone = alone(&key, &value);
            let same = Config::parse(&alone, Path::new("config.toml"), None)
                .is_ok_and(|config| format!("{:?}", without_text(config)) == plain);
            (key, same.then(|| written(&value)))
        })
        .collect()
}

fn without_text(config: Config) -> Config {
    Config { text: String::new(), ..config }
}

/// A configuration that sets this key and nothing else.
fn alone(key: &str, value: &Value) -> String {
    let table = key
        .rsplit('.')
        .fold(value.clone(), |inner, name| Value::Table(toml::Table::from_iter([(name.to_owned(), inner)])));
    toml::to_string(&table).unwrap_or_default()
}

pub async fn reload(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    if !daemon_answers(home).await? {
        return Err(Failure::NotFound(
            "no daemon runs here, so there is nothing to reload; hint: `keywheel config check` judges the file, `keywheel serve` reads it".into(),
        ));
    }
    match Connection::once(home, Operation::Reload).await? {
        Outcome::Reloaded(reloaded) => {
            output.value(&reloaded, || reloaded.words().join("\n"));
            Ok(())
        }
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_in_force_is_a_configuration_and_shows_every_default() {
        let text = place::uncommented(TEMPLATE);
        assert!(text.contains("\n[http]\n") && text.contains("\nlisten = "), "{text}");
        // Every name is one, although not all of them go together.
        toml::from_str::<Config>(&text).unwrap();
        let defaults = defaults();
        assert_eq!(defaults["isolation"].as_deref(), Some("\"strict\""));
        assert_eq!(defaults["reports.keep_days"].as_deref(), Some("90"));
        assert_eq!(defaults["http.listen"], None, "an example is no default");
        assert!(!defaults.contains_key("services.name.quiet"), "{defaults:?}");
    }

    #[test]
    fn each_value_is_shown_with_its_source_and_what_still_waits() {
        let started = "isolation = \"strict\"\nrescan_seconds = 5\n";
        let now = "isolation = \"paranoid\"\nrescan_seconds = 5\n[services.shop]\nconcurrency = 2\n";
        let file = "isolation = \"paranoid\"\nrescan_seconds = 6\n";
        let rows = rows(started, now, file);
        let row = |key: &str| rows.iter().find(|row| row.key == key).unwrap();
        let of = |key: &str| (row(key).value.as_deref(), row(key).from.as_str(), row(key).waiting.as_deref());
        let isolation = of("isolation");
        assert_eq!((isolation.0, isolation.1), (Some("\"strict\""), "config.toml, line 1"));
        assert!(isolation.2.unwrap().contains("restart"));
        let rescan = of("rescan_seconds");
        assert_eq!((rescan.0, rescan.1), (Some("5"), "config.toml, line 2"));
        assert!(rescan.2.unwrap().contains("keywheel reload"));
        let concurrency = of("services.shop.concurrency");
        assert_eq!((concurrency.0, concurrency.1), (Some("2"), "config.toml, line 4"));
        assert_eq!(of("idle_stop_seconds"), (Some("300"), "default", None));
        assert_eq!(of("extra_ca_file"), (None, "default", None));
    }
}
