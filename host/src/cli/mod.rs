//! What a person types and sees: one file per noun. Commands that change something ask the
//! running daemon, or open the home themselves where none runs; commands that only read do so
//! from the database either way.

mod alert;
mod api_token;
mod author;
mod backup;
mod browser;
mod completions;
mod config;
mod connection;
mod consumer;
mod credential;
mod dashboard;
mod demo;
mod doctor;
mod first;
#[cfg(test)]
mod help_tests;
mod host;
mod init;
mod layout;
mod man;
mod needs;
mod operator;
mod output;
mod plugin;
mod plugin_test;
mod progress;
mod prune;
mod reports;
mod run;
mod serve;
mod sink;
mod status;
mod suggest;
mod worker_token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, Home};
use crate::control::{Refusal, RefusalKind};
use crate::daemon::OpenError;
use crate::db::DbError;
use crate::db::host_keys::HostKeyError;
use crate::db::queries::ReadError;
use crate::keys::KeyError;
use crate::kit::KitError;
use crate::vault::VaultError;
use output::Output;

/// Keeps sessions, tokens and API keys alive, one sandboxed provider plugin per service.
#[derive(Debug, Parser)]
#[command(name = "keywheel", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    /// The installation's folder [default: $XDG_DATA_HOME/keywheel]
    #[arg(long, global = true, env = "KEYWHEEL_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Print every column of a table, however wide the terminal
    #[arg(long, global = true)]
    wide: bool,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  keywheel init                     # asks, and keeps a first credential alive
  keywheel serve                    # the daemon
  keywheel status                   # is everything fine, and if not, what to do
  keywheel credential list --json

Exit codes:
   0  done; of `status`: everything is fine; of `credential validate` and `rotate`: valid
   1  something needs a person, a plugin has a fault, or the command failed
   2  wrong usage
   3  not found: a credential, a service, a report, a file
   4  it could not be told whether a credential lives: try again later
  65  bad input: a file, a setting, a plugin
  75  busy, or the database can't be written now: try again
  77  no permission: a file of the system, or the master key
  78  the home or its configuration can't be used
 130  ended by a second signal";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a home, and keep a first credential alive in it
    #[command(
        after_help = "Examples:\n  keywheel init    # asks\n  keywheel init --http --from-browser firefox --domain https://shop.example/account\n  keywheel init --yes --no-http"
    )]
    Init(Box<init::Arguments>),
    /// Run the daemon
    #[command(
        after_help = "Examples:\n  keywheel serve\n  keywheel serve --log info,keywheel::rotation=debug --log-json"
    )]
    Serve(serve::Arguments),
    /// Watch a whole day of Keywheel in seconds, in a home of its own
    #[command(after_help = "Examples:\n  keywheel demo --once")]
    Demo(demo::Arguments),
    /// Is everything fine, and if not, what to do
    #[command(after_help = "Examples:\n  keywheel status\n  keywheel status --json")]
    Status,
    /// What of the sandbox this machine gives, and whether that is enough
    #[command(after_help = "Examples:\n  keywheel doctor\n  keywheel doctor --self-test")]
    Doctor(doctor::Arguments),
    /// Provider plugins: new, dev, record, pack, list, show, check, test, install, approve, unpark, pause, resume, every, remove, history, trust, distrust, keys
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Credentials: add, set, import, list, show, history, validate, self-test, rotate, rollback, pause, resume, export, consumer, ack, remove
    #[command(subcommand)]
    Credential(credential::Command),
    /// Run a command with a credential's secrets, in its environment or in files that end with it
    Run(run::Arguments),
    /// Files, commands and webhooks that get new secrets by themselves: list, sync
    #[command(subcommand)]
    Sink(sink::Command),
    /// Reports of attempts: list, show, tail, prune
    #[command(subcommand)]
    Reports(reports::Command),
    /// Tokens for workers that can't be plugins: create, list, revoke
    #[command(subcommand)]
    WorkerToken(worker_token::Command),
    /// Alerts: list, test, snooze, unsnooze
    #[command(subcommand)]
    Alert(alert::Command),
    /// Tokens for programs that read secrets over HTTP: create, list, revoke, history
    #[command(subcommand)]
    ApiToken(api_token::Command),
    /// Hosts that share a store: join, admit, list, revoke, rekey
    #[command(subcommand)]
    Host(host::Command),
    /// Copy the whole home, but for its master key, into one sealed file; the daemon may run
    #[command(
        after_help = "Examples:\n  keywheel backup /mnt/backups/monday.backup\n  keywheel backup /mnt/backups --keep 14"
    )]
    Backup(backup::Arguments),
    /// Make a home of a backup, in an empty folder
    #[command(
        after_help = "What the backup brings back may have been rotated since it was made. So each credential is validated first, and where that can't prove that nothing was spent, you are called.\n\nExamples:\n  keywheel restore monday.backup --home /var/lib/keywheel --master-key /root/master.key"
    )]
    Restore(backup::RestoreArguments),
    /// Print the commented default configuration; check a file, show what is in force
    #[command(after_help = "Examples:\n  keywheel config > config.toml")]
    Config(config::Arguments),
    /// Let the running daemon read its configuration anew
    #[command(
        after_help = "The same as SIGHUP, with the answer here. A file that can't be used changes nothing.\n\nExamples:\n  keywheel reload"
    )]
    Reload,
    /// Write manual pages for all commands
    #[command(after_help = "Examples:\n  keywheel man ~/.local/share/man/man1")]
    Man(man::Arguments),
    /// Open the dashboard: print a link that signs a browser in, once
    #[command(
        after_help = "Examples:\n  keywheel dashboard\n  keywheel dashboard --url https://keywheel.example"
    )]
    Dashboard(dashboard::Arguments),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  keywheel completions bash > ~/.local/share/bash-completion/completions/keywheel"
    )]
    Completions { shell: clap_complete::Shell },
}

/// Why a command ended without doing what was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Kit(#[from] KitError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    BadInput(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Other(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// A credential that is dead, or that a person must see to.
    #[error("{0}")]
    Dead(String),
    /// Everything was said already; only the exit code is left.
    #[error("unhealthy")]
    Unhealthy,
    /// Nothing was learnt of a credential.
    #[error("{0}")]
    CouldNotTell(String),
    /// As `Unhealthy`, where nothing was learnt of it.
    #[error("unclear")]
    Unclear,
    /// The end of a command that was run, which has spoken for itself.
    #[error("exit code {0}")]
    Exit(u8),
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The documented exit code of each kind.
    fn code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::NotFound => 3,
                RefusalKind::BadInput => 65,
                RefusalKind::Busy | RefusalKind::Unavailable => 75,
                RefusalKind::Internal => 1,
            },
            Self::Exit(code) => *code,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unclear | Self::CouldNotTell(_) => 4,
            Self::BadInput(_) => 65,
            Self::Config(_) => 78,
            Self::Db(error) => db_code(error),
            Self::Vault(_) => 77,
            Self::Key(error) => key_code(error),
            Self::Open(error) | Self::Kit(KitError::Open(error)) => match error {
                OpenError::Config(_) => 78,
                OpenError::Db(error) => db_code(error),
                OpenError::Vault(_) => 77,
                OpenError::Key(error) => key_code(error),
                OpenError::Write(_) => 75,
                OpenError::NotNew(_) => 65,
                _ => 1,
            },
            Self::Kit(KitError::Refused(_) | KitError::Case(_)) => 65,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 3,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => 77,
            Self::Read(_)
            | Self::Other(_)
            | Self::Dead(_)
            | Self::Io { .. }
            | Self::Kit(_)
            | Self::Unhealthy => 1,
        }
    }
}

const fn db_code(error: &DbError) -> u8 {
    match error {
        DbError::Locked { .. } | DbError::File { .. } | DbError::Server { .. } => 75,
        _ => 78,
    }
}

fn key_code(error: &KeyError) -> u8 {
    match error {
        KeyError::Config(_) | KeyError::Unused(_) => 78,
        KeyError::Db(error) | KeyError::Row(HostKeyError::Db(error)) => db_code(error),
        KeyError::Vault(_)
        | KeyError::Asking { .. }
        | KeyError::Revoked { .. }
        | KeyError::Unknown { .. }
        | KeyError::OtherMaster { .. } => 77,
        KeyError::Row(HostKeyError::NotFound(_)) => 3,
        KeyError::Row(HostKeyError::Sql(_) | HostKeyError::Write(_)) => 75,
        KeyError::Row(_) | KeyError::Refused(_) => 65,
        KeyError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => 77,
        KeyError::Read(_) | KeyError::Io { .. } => 1,
    }
}

/// Parses the command line, runs the command and says how it went.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json, wide: arguments.wide };
    progress::allow(!output.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&format!("the runtime can't be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(arguments, output));
    // What a command left running must not hold up its end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Unhealthy | Failure::Unclear | Failure::Exit(_)) {
                output.error(&with_causes(&failure));
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn dispatch(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let home = || Home::locate(arguments.home.clone());
    match arguments.command {
        Command::Init(arguments) => init::run(&home()?, *arguments, output).await,
        Command::Serve(arguments) => serve::run(home()?, arguments).await,
        Command::Demo(arguments) => demo::run(arguments, output).await,
        Command::Status => status::run(&home()?, output).await,
        Command::Doctor(arguments) => {
            // Before `init`, and on a machine that only wants to know, there is no home.
            let home = home().ok().filter(Home::exists);
            doctor::run(home.as_ref(), &arguments, output).await
        }
        Command::Plugin(command) => plugin::run(home(), command, output).await,
        Command::Credential(command) => credential::run(home()?, command, output).await,
        Command::Run(arguments) => run::run(&home()?, arguments, output).await,
        Command::Sink(command) => sink::run(&home()?, command, output).await,
        Command::Reports(command) => reports::run(&home()?, command, output).await,
        Command::WorkerToken(command) => worker_token::run(&home()?, command, output).await,
        Command::Alert(command) => alert::run(&home()?, command, output).await,
        Command::ApiToken(command) => api_token::run(&home()?, command, output).await,
        Command::Host(command) => host::run(&home()?, command, output),
        Command::Backup(arguments) => backup::run(home(), &arguments, output),
        Command::Restore(arguments) => backup::restore(&home()?, &arguments, output).await,
        Command::Config(arguments) => config::run(home(), arguments, output).await,
        Command::Reload => config::reload(&home()?, output).await,
        Command::Man(arguments) => man::run(&arguments, output),
        Command::Dashboard(arguments) => dashboard::run(&home()?, &arguments, output).await,
        Command::Completions { shell } => {
            completions::print(shell, output);
            Ok(())
        }
    }
}

/// The error and what caused it, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let line = next.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = next.source();
    }
    text
}
