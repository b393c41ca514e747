//! `credential`: what is kept alive. Secrets come from a file or standard input, never from
//! the command line, and leave only by `export`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;

use super::Failure;
use super::browser::Browser;
use super::connection::{Connection, daemon_answers};
use super::consumer;
use super::first;
use super::layout::Column;
use super::operator;
use super::output::{Output, coloured, relative};
use super::plugin::unexpected;
use super::suggest;
use crate::catalogue;
use crate::config::{Home, write_atomically};
use crate::control::{AddCredential, KeyInput, Operation, Outcome, RefusalKind, SecretInput, SetCredential};
use crate::credential::{ID_RULE, Jar, is_id, now};
use crate::db::Action;
use crate::db::queries::{CredentialRow, Reader};
use crate::db::writer::WriteError;
use crate::formats::export::{ExportError, Form, to_form};
use crate::formats::{self, Imported};
use crate::keys;
use crate::provider::{Manifest, Resolved};
use crate::quiet::Quiet;
use crate::registry::manifest;
use crate::report::{Report, Status};
use crate::rotation::attempt::open_jar;

/// A browser's whole cookie store is a few MiB.
const LARGEST_IMPORT: u64 = 16 << 20;

/// A credential that was just added is looked at by itself: nobody shall be told that it is busy
/// because they were quick. Most attempts end sooner.
const IN_THE_MIDDLE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add an account's credential; its secrets come from a file or standard input
    #[command(
        after_help = "Examples:\n  keywheel credential add ann --service gitlab < token.env\n  keywheel credential add ann --from-browser firefox --domain shop.example --set validate_path=/account\n  keywheel credential add ann --service http-session --from cookies.txt --set base_url=https://shop.example"
    )]
    Add(Box<Add>),
    /// Change when it is looked at; what isn't named stays
    #[command(override_usage = "keywheel credential set <ID> [OPTIONS]")]
    #[command(
        after_help = "Examples:\n  keywheel credential set ann --every 15m --rotate-every 7d\n  keywheel credential set ann --quiet \"22:00-06:00 Europe/Berlin\""
    )]
    Set(Set),
    /// Put new secrets into a credential
    #[command(
        after_help = "Examples:\n  keywheel credential import ann cookies.txt\n  keywheel credential import ann - < token.env"
    )]
    Import {
        id: String,
        /// cookies.txt, storageState, a browser extension's JSON or key=value lines; `-` is standard input
        file: PathBuf,
        #[arg(long)]
        format: Option<formats::Format>,
        /// They may be another account's: forget which one it is pinned to
        #[arg(long)]
        other_account: bool,
        /// Take values as they are, with white space or quotes around them
        #[arg(long)]
        exact: bool,
    },
    /// Every credential and where it stands
    #[command(
        after_help = "Examples:\n  keywheel credential list\n  keywheel credential list --failing --json"
    )]
    List {
        #[arg(long)]
        service: Option<String>,
        /// Only what fails, whatever has for longest first
        #[arg(long)]
        failing: bool,
        /// At most so many of those that fail
        #[arg(long, default_value_t = 100, requires = "failing")]
        limit: u32,
    },
    /// One credential with its keys' fingerprints and generations
    #[command(after_help = "Examples:\n  keywheel credential show ann")]
    Show { id: String },
    /// Its attempts, newest first: what each did and what came of it
    #[command(after_help = "Examples:\n  keywheel credential history ann --limit 5")]
    History {
        id: String,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// The next page: only attempts before this id
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
    },
    /// Ask the service now whether it lives
    #[command(
        after_help = "Examples:\n  keywheel credential validate ann    # 0 valid, 1 dead or needs a person, 4 could not tell"
    )]
    Validate { id: String },
    /// Get a fresh secret, unless it rests: paused, or its service asked to be left alone
    #[command(
        after_help = "Examples:\n  keywheel credential rotate ann --plan    # what would be sent; sends nothing\n  keywheel credential rotate ann"
    )]
    Rotate {
        id: String,
        /// Also where there is a reason to wait
        #[arg(long, conflicts_with = "plan")]
        now: bool,
        /// Show what would be sent, with every secret masked, and send nothing
        #[arg(long)]
        plan: bool,
    },
    /// Put an earlier generation of its secrets in force again, and validate it
    #[command(
        after_help = "Examples:\n  keywheel credential rollback ann\n  keywheel credential rollback ann --to 3 --yes"
    )]
    Rollback {
        id: String,
        /// Which one [default: the newest before the present one]
        #[arg(long, value_name = "GENERATION")]
        to: Option<u32>,
        /// Without a question
        #[arg(long)]
        yes: bool,
    },
    /// Ask the service about a made-up secret in its place, which must not be called valid
    #[command(after_help = "Examples:\n  keywheel credential self-test ann")]
    SelfTest { id: String },
    /// Stop what it does by itself
    #[command(after_help = "Examples:\n  keywheel credential pause ann")]
    Pause { id: String },
    /// Go on after a pause
    #[command(after_help = "Examples:\n  keywheel credential resume ann")]
    Resume { id: String },
    /// Who says that he uses its secrets, so that rotations wait for him: add, list, remove
    #[command(subcommand)]
    Consumer(consumer::Command),
    /// Say that a consumer uses a generation now
    #[command(after_help = "Examples:\n  keywheel credential ack ann --consumer crawler --generation 4")]
    Ack {
        id: String,
        /// As it was added
        /// Who uses it
        #[arg(long, value_name = "NAME")]
        consumer: String,
        /// As commands, webhooks and `credential show` tell it
        #[arg(long, value_name = "NUMBER")]
        generation: u32,
    },
    /// Print its secrets, in clear
    #[command(
        after_help = "Examples:\n  keywheel credential export ann --output cookies.txt\n  keywheel credential export ann --format header --url https://shop.example/"
    )]
    Export {
        id: String,
        #[arg(long, default_value = "netscape")]
        format: Form,
        /// The URL that a cookie header is for
        #[arg(long)]
        url: Option<String>,
        /// Write to a file of mode 0600 instead, whole or not at all
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Forget it and its secrets; its reports stay
    #[command(after_help = "Examples:\n  keywheel credential remove ann")]
    Remove { id: String },
}

#[derive(Debug, Default, clap::Args)]
pub struct Add {
    /// Your name for it, unique in this installation
    pub id: String,
    /// The provider [default with --domain: found by the site]
    #[arg(long, required_unless_present = "domain")]
    pub service: Option<String>,
    /// The site; with its page that only a signed-in visitor sees, such as https://shop.example/account
    #[arg(long, value_name = "SITE")]
    pub domain: Option<String>,
    /// Take the site's cookies from this browser: firefox, or firefox:PROFILE
    #[arg(long, value_name = "BROWSER", requires = "domain", conflicts_with_all = ["from", "format"])]
    pub from_browser: Option<Browser>,
    /// Of this container tab of the browser's
    #[arg(long, value_name = "NAME", requires = "from_browser")]
    pub container: Option<String>,
    /// Groups credentials
    #[arg(long)]
    pub profile: Option<String>,
    /// A setting of the provider; `plugin check` lists them
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// A host name that may lead to a private address
    #[arg(long = "allow-private", value_name = "HOST")]
    pub private_hosts: Vec<String>,
    /// The account it is for, as the service names it: no other's secrets are accepted
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Which of the provider's methods rotates it
    #[arg(long)]
    pub method: Option<String>,
    /// How often to validate, such as 90s, 15m, 12h
    #[arg(long, value_name = "TIME")]
    pub every: Option<String>,
    /// How old a secret may get before it is rotated, such as 30m, 7d
    #[arg(long, value_name = "TIME")]
    pub rotate_every: Option<String>,
    /// How long its session may go unused before the service ends it, such as 20m
    #[arg(long, value_name = "TIME")]
    pub idle_limit: Option<String>,
    /// When it isn't rotated by itself, such as "22:00-06:00 Europe/Berlin"; may be given again
    #[arg(long, value_name = "WINDOW")]
    pub quiet: Vec<String>,
    /// The secrets [default: key=value lines on standard input]
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    #[arg(long)]
    pub format: Option<formats::Format>,
    /// Take values as they are, with white space or quotes around them
    #[arg(long)]
    pub exact: bool,
}

impl Add {
    /// What can be said of the options before the secrets are asked for.
    fn check(&self) -> Result<(), Failure> {
        check_id(&self.id)?;
        settings(&self.settings)?;
        if let Some(account) = &self.account
            && (account.trim().is_empty() || account.chars().any(char::is_control))
        {
            return Err(Failure::BadInput(format!("--account {account:?}: allowed is a name, on one line")));
        }
        for time in [&self.every, &self.rotate_every, &self.idle_limit].into_iter().flatten() {
            seconds(time)?;
        }
        Quiet::parse(&self.quiet).map_err(|error| Failure::BadInput(error.to_string()))?;
        Ok(())
    }

    /// What the daemon is asked to do.
    pub fn operation(
        &self,
        service: &str,
        settings: Vec<(String, String)>,
        keys: Vec<KeyInput>,
    ) -> Result<AddCredential, Failure> {
        Ok(AddCredential {
            credential_id: self.id.clone(),
            profile_id: self.profile.clone(),
            service: service.to_owned(),
            settings,
            private_hosts: self.private_hosts.clone(),
            method: self.method.clone(),
            validate_interval: self.every.as_deref().map(seconds).transpose()?,
            max_age: self.rotate_every.as_deref().map(seconds).transpose()?,
            identity: self.account.clone(),
            idle_limit: self.idle_limit.as_deref().map(seconds).transpose()?,
            quiet: self.quiet.clone(),
            keys,
        })
    }
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// How often to validate, such as 90s, 15m, 12h; `default`: as for its service
    #[arg(long, value_name = "TIME")]
    every: Option<String>,
    /// How old a secret may get before it is rotated; `default`: as the plugin says
    #[arg(long, value_name = "TIME")]
    rotate_every: Option<String>,
    /// How long its session may go unused; `default`: as the plugin says
    #[arg(long, value_name = "TIME")]
    idle_limit: Option<String>,
    /// When it isn't rotated by itself, in place of what was said before; may be given again
    #[arg(long, value_name = "WINDOW")]
    quiet: Vec<String>,
    /// Rotate it at any time
    #[arg(long, conflicts_with = "quiet")]
    never_quiet: bool,
}

#[derive(Debug, clap::Args)]
pub struct Set {
    id: String,
    #[command(flatten)]
    changes: Changes,
}

pub async fn run(home: Home, command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Add(new) => add(&home, *new, output).await,
        Command::Set(set) => change(&home, set, output).await,
        Command::Import { id, file, format, other_account, exact } => {
            let source = Source { from: Some(&file), format, exact };
            import(&home, &id, source, other_account, output).await
        }
        Command::List { service, failing: true, limit } => failing(&home, service.as_deref(), limit, output),
        Command::List { service, .. } => list(&home, service.as_deref(), output),
        Command::Show { id } => operator::show(&home, &id, output),
        Command::History { id, limit, before } => operator::history(&home, &id, limit, before, output),
        Command::Validate { id } => run_now(&home, id, Action::Validate, false, output).await,
        Command::Rotate { id, plan: true, .. } => operator::plan(&home, id, output).await,
        Command::Rotate { id, now, .. } => run_now(&home, id, Action::Rotate, now, output).await,
        Command::Rollback { id, to, yes } => operator::roll_back(&home, &id, to, yes, output).await,
        Command::SelfTest { id } => operator::self_test(&home, id, output).await,
        Command::Pause { id } => pause(&home, id, true, output).await,
        Command::Resume { id } => pause(&home, id, false, output).await,
        Command::Consumer(command) => consumer::run(&home, command, output).await,
        Command::Ack { id, consumer, generation } => {
            consumer::acknowledge(&home, id, consumer, generation, output).await
        }
        Command::Export { id, format, url, output: file } => {
            export(&home, &id, format, url.as_deref(), file.as_deref(), output)
        }
        Command::Remove { id } => {
            let operation = Operation::CredentialRemove { credential_id: id.clone() };
            let removed = Connection::once(&home, operation).await;
            removed.map_err(|failure| suggest::with_credential(&home, &id, failure))?;
            output.value(&json!({ "removed": id }), || format!("removed `{id}`; its reports stay"));
            Ok(())
        }
    }
}

async fn add(home: &Home, new: Add, output: Output) -> Result<(), Failure> {
    new.check()?;
    let Some(service) = new.service.clone().filter(|_| new.domain.is_none()) else {
        return first::keep(home, new, output).await;
    };
    let settings = settings(&new.settings)?;
    let connection = Connection::open(home).await?;
    let added = async {
        // So that a plugin dropped a moment ago is known.
        connection.ask(Operation::PluginList).await?;
        let manifest = manifest_of(home, &service)?;
        let resolved = manifest::resolve(&manifest, &settings, &new.private_hosts)
            .map_err(|error| Failure::BadInput(error.to_string()))?;
        let source = Source { from: new.from.as_deref(), format: new.format, exact: new.exact };
        let keys = read_keys(source, &resolved, output)?;
        connection.ask(Operation::CredentialAdd(Box::new(new.operation(&service, settings, keys)?))).await
    }
    .await;
    connection.close().await;
    added?;
    let daemon = daemon_answers(home).await?;
    let follows = first::what_follows(home, &find(home, &new.id)?, daemon, true)?;
    output.value(&json!({ "added": new.id, "service": service }), || {
        format!(
            "added `{0}`; hint: `keywheel credential validate {0}` asks the service now\n{1}",
            new.id,
            follows.join("\n")
        )
    });
    Ok(())
}

/// What `--set` gave.
pub fn settings(pairs: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let pair = |pair: &String| {
        pair.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| Failure::BadInput(format!("--set {pair}: allowed is NAME=VALUE")))
    };
    pairs.iter().map(pair).collect()
}

async fn change(home: &Home, set: Set, output: Output) -> Result<(), Failure> {
    let Set { id, changes } = set;
    find(home, &id)?;
    Quiet::parse(&changes.quiet).map_err(|error| Failure::BadInput(error.to_string()))?;
    let or_default = |text: &str| if text == "default" { Ok(0) } else { seconds(text) };
    let quiet = (changes.never_quiet || !changes.quiet.is_empty()).then_some(changes.quiet);
    let operation = Operation::CredentialSet(SetCredential {
        credential_id: id.clone(),
        validate_interval: changes.every.as_deref().map(or_default).transpose()?,
        max_age: changes.rotate_every.as_deref().map(or_default).transpose()?,
        idle_limit: changes.idle_limit.as_deref().map(or_default).transpose()?,
        quiet,
    });
    Connection::once(home, operation).await?;
    output.value(&json!({ "changed": id }), || {
        format!("changed when `{id}` is looked at; it is looked at now")
    });
    Ok(())
}

async fn import(
    home: &Home,
    id: &str,
    source: Source<'_>,
    other_account: bool,
    output: Output,
) -> Result<(), Failure> {
    let row = find(home, id)?;
    refuse_external(&row)?;
    let settings: Vec<_> = row.settings.into_iter().collect();
    let resolved = manifest::resolve(&manifest_of(home, &row.service)?, &settings, &row.private_hosts)
        .map_err(|error| Failure::BadInput(error.to_string()))?;
    let keys = read_keys(source, &resolved, output)?;
    let names: Vec<_> = keys.iter().map(|key| key.name.clone()).collect();
    let operation = Operation::CredentialImport { credential_id: id.to_owned(), keys, other_account };
    Connection::once(home, operation).await?;
    output.value(&json!({ "imported": id, "keys": names, "next": "validate" }), || {
        let next = match row.paused {
            true => "it is paused, and validated first once it is resumed",
            false => "validated next, and not rotated before that says so",
        };
        format!("imported {} into `{id}`: {next}", names.join(", "))
    });
    Ok(())
}

/// Where secrets come from, and how they are to be read.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    from: Option<&'a Path>,
    format: Option<formats::Format>,
    exact: bool,
}

/// Reads and sorts out secrets for what the provider's key mapping wants.
fn read_keys(source: Source<'_>, resolved: &Resolved, output: Output) -> Result<Vec<KeyInput>, Failure> {
    let Source { from, format, exact } = source;
    let format = format.or_else(|| from.is_none().then_some(formats::Format::KeyValue));
    sorted_out(&read_secrets(from)?, format, exact, resolved, output)
}

/// The text of a file with secrets, or what comes on standard input.
pub fn read_secrets(from: Option<&Path>) -> Result<String, Failure> {
    match from {
        Some(path) if path != Path::new("-") => {
            let file = std::fs::File::open(path)
                .map_err(Failure::io(format!("{} can't be read", path.display())))?;
            read_text(file, &path.display().to_string())
        }
        _ => read_text(std::io::stdin(), "standard input"),
    }
}

/// What of such a text the provider's key mapping wants; `exact`, also where it looks pasted.
pub fn sorted_out(
    text: &str,
    format: Option<formats::Format>,
    exact: bool,
    resolved: &Resolved,
    output: Output,
) -> Result<Vec<KeyInput>, Failure> {
    let imported = formats::parse(text, format).map_err(|error| Failure::BadInput(error.to_string()))?;
    if !exact {
        formats::check_pasted(&imported, resolved).map_err(|error| Failure::BadInput(error.to_string()))?;
    }
    chosen(imported, resolved, output)
}

/// What of an import the provider's key mapping wants.
pub fn chosen(imported: Imported, resolved: &Resolved, output: Output) -> Result<Vec<KeyInput>, Failure> {
    let selection =
        formats::select(imported, resolved, now()).map_err(|error| Failure::BadInput(error.to_string()))?;
    if !selection.skipped_foreign.is_empty() {
        output.say(&format!("left out, for other services: {}", selection.skipped_foreign.join(", ")));
    }
    if !selection.skipped_expired.is_empty() {
        output.say(&format!("left out, expired: {}", selection.skipped_expired.join(", ")));
    }
    Ok(selection
        .keys
        .into_iter()
        .map(|key| KeyInput {
            name: key.name,
            value: SecretInput::new(&key.secret),
            expires: key.expires,
            cookie: key.cookie,
        })
        .collect())
}

fn read_text(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(LARGEST_IMPORT + 1)
        .read_to_string(&mut text)
        .map_err(Failure::io(format!("{name} can't be read as text")))?;
    if text.len() as u64 > LARGEST_IMPORT {
        return Err(Failure::BadInput(format!("{name} is over {} MiB", LARGEST_IMPORT >> 20)));
    }
    Ok(text)
}

fn list(home: &Home, service: Option<&str>, output: Output) -> Result<(), Failure> {
    home.require()?;
    let rows = Reader::open(&home.database())?.credentials(service)?;
    let empty = match service {
        Some(name) => format!("no credentials of `{name}`{}", suggest::unless_known(home, name)),
        None => "no credentials; hint: `keywheel credential add --help`".into(),
    };
    table(&rows, &empty, output);
    Ok(())
}

fn failing(home: &Home, service: Option<&str>, limit: u32, output: Output) -> Result<(), Failure> {
    home.require()?;
    let (rows, all) = Reader::open(&home.database())?.failing(service, limit)?;
    table(&rows, "nothing fails", output);
    if all > rows.len() as u64 {
        output.say(&format!("{} of {all} that fail; --limit shows more", rows.len()));
    }
    Ok(())
}

fn table(rows: &[CredentialRow], empty: &str, output: Output) {
    output.table(
        rows,
        &[
            Column::kept("credential"),
            Column::ranked("service", 4),
            Column::word("status"),
            Column::ranked("last attempt", 6),
            Column::ranked("expires", 5),
            Column::ranked("next", 2),
            Column::ranked("message", 1),
        ],
        |row| {
            let monitor = &row.monitor;
            let status = if row.paused || row.service_paused {
                "paused"
            } else {
                monitor.last_status.map_or("pending", Status::as_str)
            };
            vec![
                Cell::new(&row.credential_id),
                Cell::new(&row.service),
                coloured(status),
                Cell::new(relative(monitor.last_attempt_at)),
                Cell::new(relative(monitor.expires_at)),
                Cell::new(match monitor.next_due_at {
                    Some(at) => {
                        let why = match &monitor.next_reason {
                            Some(why) => format!(", {why}"),
                            None => String::new(),
                        };
                        format!("{} {}{why}", monitor.next_action.as_str(), relative(Some(at)))
                    }
                    None if row.external => "external".into(),
                    None => "–".into(),
                }),
                Cell::new(monitor.last_message.as_deref().unwrap_or("")),
            ]
        },
        empty,
    );
}

async fn run_now(home: &Home, id: String, action: Action, now: bool, output: Output) -> Result<(), Failure> {
    let until = Instant::now() + IN_THE_MIDDLE;
    let outcome = loop {
        let operation = Operation::CredentialRun { credential_id: id.clone(), action, now };
        match Connection::once(home, operation).await {
            Err(Failure::Refused(refusal)) if refusal.kind == RefusalKind::Busy && Instant::now() < until => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            ended => break ended.map_err(|failure| suggest::with_credential(home, &id, failure))?,
        }
    };
    let Outcome::Report(report) = outcome else { return Err(unexpected()) };
    output.value(&report, || {
        let verdict = report.meta.get("verdict").and_then(serde_json::Value::as_str).unwrap_or("?");
        let rotated = report.meta.get("rotated").and_then(serde_json::Value::as_bool).unwrap_or(false);
        format!(
            "{}: {verdict}{}{}",
            report.cookie_id,
            if rotated { ", rotated" } else { "" },
            report.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default()
        )
    });
    verdict_of(&report)
}

/// What a script is told of a credential: that it lives, that it doesn't or a person must act, or
/// that nobody could tell.
pub fn verdict_of(report: &Report) -> Result<(), Failure> {
    match report.meta.get("verdict").and_then(serde_json::Value::as_str) {
        _ if report.status == Status::Success => Ok(()),
        Some("unknown") => Err(Failure::Unclear),
        _ => Err(Failure::Unhealthy),
    }
}

async fn pause(home: &Home, id: String, paused: bool, output: Output) -> Result<(), Failure> {
    let operation = Operation::CredentialPause { credential_id: id.clone(), paused };
    let asked = Connection::once(home, operation).await;
    asked.map_err(|failure| suggest::with_credential(home, &id, failure))?;
    output.value(&json!({ "credential": id, "paused": paused }), || {
        if paused { format!("paused `{id}`") } else { format!("`{id}` goes on") }
    });
    Ok(())
}

fn export(
    home: &Home,
    id: &str,
    format: Form,
    url: Option<&str>,
    file: Option<&Path>,
    output: Output,
) -> Result<(), Failure> {
    let jar = jar_in_force(home, id)?;
    let text = to_form(&jar, format, url, now()).map_err(|error| match error {
        ExportError::NoUrl => Failure::BadInput(format!("{error}; hint: --url https://…")),
        error => Failure::BadInput(error.to_string()),
    })?;
    match file {
        Some(path) => write_atomically(path, text.expose())
            .map_err(Failure::io(format!("{} can't be written", path.display()))),
        None => output.secret(&text).map_err(Failure::io("standard output can't be written")),
    }
}

/// The secrets in force, opened.
pub fn jar_in_force(home: &Home, id: &str) -> Result<Jar, Failure> {
    refuse_external(&find(home, id)?)?;
    let vault = keys::open(home)?.vault;
    let sealed = Reader::open(&home.database())?
        .sealed_generation(id)?
        .ok_or_else(|| Failure::NotFound(format!("`{id}` has no secrets")))?;
    Ok(open_jar(&vault, id, &sealed)?)
}

pub fn find(home: &Home, id: &str) -> Result<CredentialRow, Failure> {
    home.require()?;
    Reader::open(&home.database())?.credential(id)?.ok_or_else(|| no_credential(home, id))
}

/// With the id that was probably meant.
pub fn no_credential(home: &Home, id: &str) -> Failure {
    let nearest = suggest::credential(home, id);
    Failure::NotFound(format!("no credential `{id}`{nearest}; hint: `keywheel credential list`"))
}

/// The daemon refuses them as well; here before anything of theirs is looked for.
pub fn refuse_external(row: &CredentialRow) -> Result<(), Failure> {
    if row.external {
        let refused = WriteError::External { credential_id: row.credential_id.clone() };
        return Err(Failure::BadInput(refused.to_string()));
    }
    Ok(())
}

pub fn manifest_of(home: &Home, service: &str) -> Result<Manifest, Failure> {
    let row = Reader::open(&home.database())?.provider(service)?;
    row.map(|row| row.manifest).ok_or_else(|| {
        let next = catalogue::next_step(service);
        // One that comes along was hardly a slip for another.
        let nearest =
            if catalogue::file(service).is_ok() { String::new() } else { suggest::service(home, service) };
        Failure::NotFound(format!("no plugin serves `{service}`{nearest}; hint: {next}"))
    })
}

fn check_id(id: &str) -> Result<(), Failure> {
    if !is_id(id) {
        return Err(Failure::BadInput(format!("credential id {id:?} is not allowed; allowed: {ID_RULE}")));
    }
    Ok(())
}

/// `90`, `90s`, `15m`, `12h` or `7d`.
pub fn seconds(text: &str) -> Result<u32, Failure> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|&seconds| seconds > 0)
        .ok_or_else(|| Failure::BadInput(format!("{text:?} is no time; allowed: 90s, 15m, 12h, 7d")))
}
