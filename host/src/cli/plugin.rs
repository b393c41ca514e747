//! `plugin`: what is in the folder, what it may do, and who decided.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Failure;
use super::author;
use super::connection::Connection;
use super::credential::seconds;
use super::layout::Column;
use super::output::{Output, coloured, relative};
use super::plugin_test;
use super::suggest;
use crate::catalogue::{self, CatalogueError};
use crate::config::{ConfigError, Home};
use crate::control::{Operation, Outcome};
use crate::db::queries::{AuditRow, Reader};
use crate::registry::{InUse, PluginStatus, Wish};
use crate::rotation::schedule::span;

/// What `--digest` must give at least: fewer digits, and another plugin can be made to begin
/// with them.
const DIGEST_PREFIX: usize = 16;

/// A public key file is two short lines.
const KEY_FILE_BYTES: u64 = 4 << 10;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// A new provider: a project that builds, with a passing test
    #[command(
        after_help = "Examples:\n  keywheel plugin new forge\n  keywheel plugin new forge --lang python --into ~/src/forge"
    )]
    New(author::new::Arguments),
    /// Build a project whenever it changes, and show what its fixtures make of it
    #[command(after_help = "Examples:\n  keywheel plugin dev\n  keywheel plugin dev forge --once")]
    Dev(author::dev::Arguments),
    /// Ask the real service once, and write its answer into a fixture without your secrets
    #[command(
        after_help = "Examples:\n  keywheel plugin record forge.wasm --out fixtures/alive.toml --set base_url=https://forge.example < token.env"
    )]
    Record(Box<author::record::Arguments>),
    /// Put together what is handed on: the plugin, its digest, what it may do
    #[command(after_help = "Examples:\n  keywheel plugin pack forge.wasm --out forge-0.1.0")]
    Pack(author::pack::Arguments),
    /// Every plugin file and where it stands
    #[command(after_help = "Examples:\n  keywheel plugin list\n  keywheel plugin list --available")]
    List {
        /// The providers that come with Keywheel, installed or not
        #[arg(long)]
        available: bool,
    },
    /// What serves a service, what it may do, and what waits to replace it
    #[command(after_help = "Examples:\n  keywheel plugin show gitlab")]
    Show { service: String },
    /// What a plugin file is and would be allowed, without installing it
    #[command(after_help = "Examples:\n  keywheel plugin check forge.wasm")]
    Check { file: PathBuf },
    /// Run a plugin's fixtures in the sandbox, with every answer gone wrong once, and say what is at fault
    #[command(after_help = "Examples:\n  keywheel plugin test forge.wasm --strict")]
    Test(plugin_test::Arguments),
    /// Copy a plugin file into the folder, with the signature beside it
    #[command(
        after_help = "Examples:\n  keywheel plugin install gitlab\n  keywheel plugin install ./forge.wasm"
    )]
    Install {
        /// The file, or the name of a provider that comes with Keywheel
        file: PathBuf,
    },
    /// Show what a service's plugin asks for beyond what it has, and grant exactly that
    #[command(
        after_help = "Examples:\n  keywheel plugin approve gitlab\n  keywheel plugin approve gitlab --digest 0123456789abcdef"
    )]
    Approve {
        service: String,
        /// Grant without asking
        #[arg(long)]
        yes: bool,
        /// Grant without asking, if what asks has this digest (16 digits of it or more)
        #[arg(long, value_name = "PREFIX")]
        digest: Option<String>,
    },
    /// Let a service whose worker kept dying run again
    #[command(after_help = "Examples:\n  keywheel plugin unpark gitlab")]
    Unpark { service: String },
    /// Stop everything that a service does by itself
    #[command(after_help = "Examples:\n  keywheel plugin pause gitlab")]
    Pause { service: String },
    /// Go on after a pause
    #[command(after_help = "Examples:\n  keywheel plugin resume gitlab")]
    Resume { service: String },
    /// How often the credentials of a service are checked, such as 90s, 15m, 12h
    #[command(
        after_help = "Examples:\n  keywheel plugin every gitlab 30m\n  keywheel plugin every gitlab default"
    )]
    Every {
        service: String,
        /// Or `default`: as the plugin says
        time: String,
    },
    /// Remove a service's plugin file; credentials and reports stay
    #[command(after_help = "Examples:\n  keywheel plugin remove gitlab")]
    Remove { service: String },
    /// What was decided about plugins, by whom and when, newest first
    #[command(
        after_help = "Examples:\n  keywheel plugin history\n  keywheel plugin history gitlab --limit 10"
    )]
    History {
        /// Of one service
        service: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Believe the signatures of a minisign key
    #[command(
        after_help = "Examples:\n  keywheel plugin trust minisign.pub --name Ann\n  keywheel plugin trust --list"
    )]
    Trust {
        /// The public key, or the file it is in
        #[arg(required_unless_present = "list")]
        key: Option<String>,
        /// Whose it is
        #[arg(long, value_name = "WHO")]
        name: Option<String>,
        /// Show the keys that are trusted
        #[arg(long, conflicts_with_all = ["key", "name"])]
        list: bool,
    },
    /// Believe a key no longer
    #[command(after_help = "Examples:\n  keywheel plugin distrust 0123456789ABCDEF")]
    Distrust {
        /// As `keywheel plugin keys` shows it
        key_id: String,
    },
    /// The keys that are trusted
    #[command(after_help = "Examples:\n  keywheel plugin keys")]
    Keys,
}

pub async fn run(home: Result<Home, ConfigError>, command: Command, output: Output) -> Result<(), Failure> {
    // What needs no home must work without one.
    let command = match command {
        Command::Test(arguments) => return plugin_test::run(arguments, output).await,
        Command::New(arguments) => return author::new::run(arguments, output).await,
        Command::Dev(arguments) => return author::dev::run(home, arguments, output).await,
        Command::Record(arguments) => return author::record::run(*arguments, output).await,
        Command::Pack(arguments) => return author::pack::run(arguments, output).await,
        command => command,
    };
    let home = home?;
    let service = match &command {
        Command::Show { service }
        | Command::Approve { service, .. }
        | Command::Unpark { service }
        | Command::Pause { service }
        | Command::Resume { service }
        | Command::Every { service, .. }
        | Command::Remove { service } => Some(service.clone()),
        _ => None,
    };
    let ran = run_at(&home, command, output).await;
    match service {
        Some(service) => ran.map_err(|failure| suggest::with_service(&home, &service, failure)),
        None => ran,
    }
}

async fn run_at(home: &Home, command: Command, output: Output) -> Result<(), Failure> {
    let absolute = |file: PathBuf| {
        // The daemon has another working folder.
        std::path::absolute(&file).map_err(Failure::io(format!("{} can't be found", file.display())))
    };
    match command {
        Command::List { available: false } => list(home, output).await,
        Command::List { available: true } => available(home, output),
        Command::Show { service } => show(home, &service, output).await,
        Command::Check { file } => {
            describe(home, Operation::PluginCheck { path: absolute(file)? }, output).await
        }
        Command::Install { file } => {
            let file = if is_name(&file) { of_catalogue(&file.to_string_lossy())? } else { absolute(file)? };
            describe(home, Operation::PluginInstall { path: file }, output).await
        }
        Command::Approve { service, yes, digest } => {
            approve(home, &service, yes, digest.as_deref(), output).await
        }
        Command::Unpark { service } => {
            let operation = Operation::PluginUnpark { service: service.clone() };
            let Outcome::Unparked(parked) = Connection::once(home, operation).await? else {
                return Err(unexpected());
            };
            output.value(&json!({ "service": service, "unparked": parked }), || match parked {
                true => format!("`{service}` may run again"),
                false => format!("`{service}` isn't parked"),
            });
            Ok(())
        }
        Command::Pause { service } => pause(home, service, true, output).await,
        Command::Resume { service } => pause(home, service, false, output).await,
        Command::Every { service, time } => {
            let seconds = if time == "default" { None } else { Some(seconds(&time)?) };
            Connection::once(home, Operation::PluginEvery { service: service.clone(), seconds }).await?;
            output.value(&json!({ "service": service, "every": seconds }), || match seconds {
                Some(_) => format!("credentials of `{service}` are checked every {time}, those with a time of their own as before"),
                None => format!("credentials of `{service}` are checked as often as its plugin says"),
            });
            Ok(())
        }
        Command::Remove { service } => {
            let Outcome::Lines(lines) = Connection::once(home, Operation::PluginRemove { service }).await?
            else {
                return Err(unexpected());
            };
            output.value(&lines, || lines.join("\n"));
            Ok(())
        }
        Command::History { service, limit } => history(home, service.as_deref(), limit, output),
        Command::Trust { key: Some(key), name, .. } => trust(home, &key, name, output).await,
        Command::Trust { key: None, .. } | Command::Keys => keys(home, output),
        Command::Test(_) | Command::New(_) | Command::Dev(_) | Command::Record(_) | Command::Pack(_) => {
            Ok(())
        }
        Command::Distrust { key_id } => {
            let Outcome::Lines(ids) = Connection::once(home, Operation::PluginDistrust { key_id }).await?
            else {
                return Err(unexpected());
            };
            output.value(&json!({ "distrusted": ids.first() }), || {
                format!("signatures of key {} count no longer", ids.join(", "))
            });
            Ok(())
        }
    }
}

async fn pause(home: &Home, service: String, paused: bool, output: Output) -> Result<(), Failure> {
    Connection::once(home, Operation::PluginPause { service: service.clone(), paused }).await?;
    output.value(&json!({ "service": service, "paused": paused }), || match paused {
        true => format!("paused `{service}`: nothing of it is done by itself"),
        false => format!("`{service}` goes on; what fell due meanwhile is started one after another"),
    });
    Ok(())
}

async fn plugins(home: &Home, operation: Operation) -> Result<Vec<PluginStatus>, Failure> {
    match Connection::once(home, operation).await? {
        Outcome::Plugins(plugins) => Ok(plugins),
        _ => Err(unexpected()),
    }
}

async fn list(home: &Home, output: Output) -> Result<(), Failure> {
    output.table(
        &plugins(home, Operation::PluginList).await?,
        &[
            Column::kept("file"),
            Column::word("state"),
            Column::ranked("service", 3),
            Column::ranked("version", 4),
            Column::ranked("signer", 5),
            Column::ranked("reason", 1),
        ],
        |plugin| {
            vec![
                Cell::new(&plugin.file),
                coloured(&state(plugin)),
                Cell::new(plugin.service.as_deref().unwrap_or("–")),
                Cell::new(plugin.version.as_deref().unwrap_or("–")),
                Cell::new(plugin.signature.as_ref().map_or("–".into(), |signature| signature.short())),
                Cell::new(plugin.reason.as_deref().unwrap_or("")),
            ]
        },
        &format!("no plugins; hint: put .wasm or .toml files into {}", home.plugins().display()),
    );
    Ok(())
}

/// A word that names no file is a service's name.
fn is_name(file: &Path) -> bool {
    file.extension().is_none() && file.components().count() == 1 && !file.exists()
}

fn of_catalogue(service: &str) -> Result<PathBuf, Failure> {
    catalogue::file(service).map_err(no_catalogue)
}

pub fn no_catalogue(error: CatalogueError) -> Failure {
    let what = error.to_string();
    match error {
        CatalogueError::NoSuchService { .. } | CatalogueError::Missing(_) => Failure::NotFound(what),
        CatalogueError::Program(source) | CatalogueError::Index { source, .. } => {
            Failure::Io { what, source }
        }
    }
}

/// What comes with Keywheel. Which of it is installed is read without a daemon.
fn available(home: &Home, output: Output) -> Result<(), Failure> {
    let entries = catalogue::entries().map_err(no_catalogue)?;
    let installed: Vec<String> = match home.database().exists() {
        true => Reader::open(home.database())?.providers()?.into_iter().map(|row| row.service).collect(),
        false => Vec::new(),
    };
    output.table(
        &entries,
        &["service", "title", "version", "rotation", "installed"],
        |entry| {
            vec![
                Cell::new(&entry.service),
                Cell::new(&entry.title),
                Cell::new(&entry.version),
                Cell::new(entry.rotates()),
                Cell::new(if installed.contains(&entry.service) { "yes" } else { "" }),
            ]
        },
        "no providers come with this build",
    );
    output.say("hint: `keywheel plugin install SERVICE` installs one");
    Ok(())
}

async fn show(home: &Home, service: &str, output: Output) -> Result<(), Failure> {
    let mut files = plugins(home, Operation::PluginList).await?;
    files.retain(|file| file.service.as_deref() == Some(service));
    if files.is_empty() {
        let why = format!("no plugin for `{service}`; hint: `keywheel plugin list` shows what there is");
        return Err(Failure::NotFound(why));
    }
    let in_use = files.iter().find_map(|file| file.in_use.as_ref());
    let row = Reader::open(home.database())?.provider(service)?;
    let paused = row.as_ref().is_some_and(|row| row.paused);
    let every = row.as_ref().and_then(|row| row.operator_validate_interval_seconds);
    let shown = json!({
        "service": service, "inUse": in_use, "files": files, "paused": paused, "everySeconds": every,
    });
    output.value(&shown, || {
        let mut text = in_use.map_or_else(|| "nothing is in use".into(), in_use_words);
        if let Some(seconds) = every {
            text.push_str(&format!("\nchecked every {}, as you said", span(u64::from(seconds) * 1_000)));
        }
        if paused {
            text.push_str("\npaused: nothing of it is done by itself");
        }
        for file in &files {
            text.push_str("\n\n");
            text.push_str(&words(file));
        }
        text
    });
    Ok(())
}

async fn describe(home: &Home, operation: Operation, output: Output) -> Result<(), Failure> {
    for plugin in &plugins(home, operation).await? {
        output.value(plugin, || words(plugin));
    }
    Ok(())
}

/// A file in a paragraph.
fn words(plugin: &PluginStatus) -> String {
    let mut text = format!(
        "{}: {} {} ({}), service `{}`\ndigest {}\n{}",
        plugin.file,
        plugin.title.as_deref().unwrap_or("untitled"),
        plugin.version.as_deref().unwrap_or("?"),
        state(plugin),
        plugin.service.as_deref().unwrap_or("?"),
        plugin.digest.as_deref().unwrap_or("?"),
        plugin.signature.as_ref().map_or("unsigned".into(), |signature| signature.words()),
    );
    let said = plugin.provider.as_ref().map(|provider| provider.lines()).unwrap_or_default();
    for line in plugin.reason.iter().chain(&plugin.permissions).chain(&said) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

fn in_use_words(in_use: &InUse) -> String {
    let mut text = format!(
        "in use: version {}\ndigest {}\n{}\n{}",
        in_use.version,
        in_use.digest,
        in_use.signature.as_ref().map_or("unsigned".into(), |signature| signature.words()),
        match in_use.pinned {
            true => "pinned: a version that asks for more than this waits for you",
            false => "not pinned: the first credential pins it",
        },
    );
    for line in in_use.accepted.lines() {
        text.push_str("\n  ");
        text.push_str(&line);
    }
    for key in &in_use.revealed {
        text.push_str("\n  you let it see the bytes of key ");
        text.push_str(key);
    }
    text
}

/// Looks, shows, asks and grants. Between the look and the grant nothing is held, so the grant
/// names what was shown, and the daemon compares.
async fn approve(
    home: &Home,
    service: &str,
    yes: bool,
    digest: Option<&str>,
    output: Output,
) -> Result<(), Failure> {
    let looking = Operation::PluginWish { service: service.to_owned() };
    let Outcome::Wish(wish) = Connection::once(home, looking).await? else { return Err(unexpected()) };
    if let Some(prefix) = digest {
        let prefix = prefix.trim().to_ascii_lowercase();
        if prefix.len() < DIGEST_PREFIX {
            return Err(Failure::Usage(format!(
                "--digest has {} digits; allowed: {DIGEST_PREFIX} or more of {}",
                prefix.len(),
                wish.to.digest
            )));
        }
        if !wish.to.digest.starts_with(&prefix) {
            return Err(Failure::BadInput(format!(
                "nothing was granted to `{service}`: what is there has digest {}, not {prefix}; hint: `keywheel plugin approve {service}` shows it",
                wish.to.digest
            )));
        }
    }
    let unasked = yes || digest.is_some();
    if !wish.needs_approval || (output.json && !unasked) {
        output.value(&wish, || format!("`{service}` has everything it asks for"));
        return Ok(());
    }
    if !output.json {
        output.line(&wish_words(&wish));
    }
    if !unasked {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Failure::Usage(format!(
                "nobody is here to ask, so nothing was granted; hint: `keywheel plugin approve {service} --digest {}` grants what is shown",
                &wish.to.digest[..DIGEST_PREFIX.min(wish.to.digest.len())]
            )));
        }
        if !output.ask("grant this?").map_err(Failure::io("standard input can't be read"))? {
            return Err(Failure::Other("nothing was granted".into()));
        }
    }
    let granting = Operation::PluginApprove {
        service: service.to_owned(),
        digest: wish.to.digest.clone(),
        signer: wish.to.public_key().map(str::to_owned),
    };
    let Outcome::Wish(granted) = Connection::once(home, granting).await? else { return Err(unexpected()) };
    output.value(&granted, || format!("granted to `{service}`"));
    Ok(())
}

fn wish_words(wish: &Wish) -> String {
    let Wish { from, to, .. } = wish;
    let mut text = match from.digest == to.digest {
        true => format!("`{}` ({}), version {}", wish.service, to.title, to.version),
        false => format!("`{}` ({}), version {} → {}", wish.service, to.title, from.version, to.version),
    };
    if from.digest != to.digest {
        text.push_str(&format!("\n  digest was {}", from.digest));
    }
    text.push_str(&format!("\n  digest  is {}", to.digest));
    text.push_str(&format!("\n  signer  is {}", to.signer()));
    for line in &wish.lines {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

async fn trust(home: &Home, key: &str, name: Option<String>, output: Output) -> Result<(), Failure> {
    // A key has no dot and is no path of anybody's; a file that isn't there is told as one.
    let path = Path::new(key);
    let text = if path.exists() || path.extension().is_some() {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(KEY_FILE_BYTES).read_to_string(&mut text))
            .map_err(Failure::io(format!("{key} can't be read")))?;
        text
    } else {
        key.to_owned()
    };
    let Outcome::Trusted(key) = Connection::once(home, Operation::PluginTrust { key: text, name }).await?
    else {
        return Err(unexpected());
    };
    output.value(&key, || format!("signatures of {} count from now on", key.full_name()));
    Ok(())
}

fn keys(home: &Home, output: Output) -> Result<(), Failure> {
    home.require()?;
    output.table(
        &Reader::open(home.database())?.trusted_keys()?,
        &["key", "name", "trusted", "public key"],
        |key| {
            vec![
                Cell::new(&key.key_id),
                Cell::new(key.name.as_deref().unwrap_or("–")),
                Cell::new(relative(Some(key.added_at))),
                Cell::new(&key.public_key),
            ]
        },
        "no key is trusted; hint: `keywheel plugin trust KEY --name WHO`",
    );
    Ok(())
}

fn history(home: &Home, service: Option<&str>, limit: u32, output: Output) -> Result<(), Failure> {
    home.require()?;
    output.table(
        &Reader::open(home.database())?.audit(service, limit)?,
        &[
            Column::kept("when"),
            Column::ranked("by", 4),
            Column::word("what"),
            Column::ranked("service", 2),
            Column::ranked("file", 3),
            Column::ranked("digest", 5),
            Column::ranked("signer", 6),
            Column::ranked("detail", 1),
        ],
        |row| {
            let word = |text: &Option<String>| Cell::new(text.as_deref().unwrap_or("–"));
            vec![
                Cell::new(relative(Some(row.at))),
                Cell::new(row.actor.as_str()),
                coloured(&row.action),
                word(&row.service),
                word(&row.file),
                Cell::new(row.digest.as_deref().map_or("–", |digest| digest.get(..12).unwrap_or(digest))),
                word(&row.signer),
                Cell::new(detail(row)),
            ]
        },
        "nothing was decided yet",
    );
    Ok(())
}

/// What a person reads of a decision; all of it is in the JSON.
fn detail(row: &AuditRow) -> String {
    let text = |name: &str| row.detail.get(name).and_then(Value::as_str).map(str::to_owned);
    let changes = row
        .detail
        .get("changes")
        .and_then(Value::as_array)
        .map(|changes| changes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "));
    changes
        .filter(|changes| !changes.is_empty())
        .or_else(|| text("reason"))
        .or_else(|| text("name"))
        .unwrap_or_default()
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
