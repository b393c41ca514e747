//! What a person types and sees: one file per noun. Commands that change something ask the
//! running daemon, or open the home themselves where none runs; commands that only read do so
//! from the database either way.

mod alert;
mod author;
mod completions;
mod connection;
mod credential;
mod demo;
mod doctor;
mod init;
mod operator;
mod output;
mod plugin;
mod plugin_test;
mod prune;
mod reports;
mod serve;
mod status;
mod worker_token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, Home};
use crate::control::{Refusal, RefusalKind};
use crate::daemon::OpenError;
use crate::db::DbError;
use crate::db::queries::ReadError;
use crate::kit::KitError;
use crate::vault::VaultError;
use output::Output;

/// Keeps sessions, tokens and API keys alive, one sandboxed provider plugin per service.
#[derive(Debug, Parser)]
#[command(name = "keywheel", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    /// The installation's folder [default: $XDG_DATA_HOME/keywheel]
    #[arg(long, global = true, env = "KEYWHEEL_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the credential isn't healthy, the plugin has a fault, or the command failed; 2 wrong usage; \
3 not found; 65 bad input; 75 busy or not writable now, try again; 77 no permission; \
78 the home or its configuration can't be used";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a home: folders, master key, database, configuration
    Init,
    /// Run the daemon
    Serve(serve::Arguments),
    /// Watch a whole day of Keywheel in seconds, in a home of its own
    Demo(demo::Arguments),
    /// What runs, what is healthy, what is not
    Status,
    /// What of the sandbox this machine gives, and whether that is enough
    Doctor(doctor::Arguments),
    /// Provider plugins: new, dev, record, pack, list, show, check, test, install, approve, unpark, pause, resume, every, remove, history, trust, distrust, keys
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Credentials: add, set, import, list, show, history, validate, self-test, rotate, rollback, pause, resume, export, remove
    #[command(subcommand)]
    Credential(credential::Command),
    /// Reports of attempts: list, show, tail, prune
    #[command(subcommand)]
    Reports(reports::Command),
    /// Tokens for workers that can't be plugins: create, list, revoke
    #[command(subcommand)]
    WorkerToken(worker_token::Command),
    /// Alerts: list, test, snooze, unsnooze
    #[command(subcommand)]
    Alert(alert::Command),
    /// Print a completion script for a shell
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
    /// Everything was said already; only the exit code is left.
    #[error("unhealthy")]
    Unhealthy,
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
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::BadInput(_) => 65,
            Self::Config(_) => 78,
            Self::Db(error) => db_code(error),
            Self::Vault(_) => 77,
            Self::Open(error) | Self::Kit(KitError::Open(error)) => match error {
                OpenError::Config(_) => 78,
                OpenError::Db(error) => db_code(error),
                OpenError::Vault(_) => 77,
                OpenError::Write(_) => 75,
                OpenError::NotNew(_) => 65,
                _ => 1,
            },
            Self::Kit(KitError::Refused(_) | KitError::Case(_)) => 65,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 3,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => 77,
            Self::Read(_) | Self::Other(_) | Self::Io { .. } | Self::Kit(_) | Self::Unhealthy => 1,
        }
    }
}

const fn db_code(error: &DbError) -> u8 {
    match error {
        DbError::Locked { .. } | DbError::Sqlite { .. } => 75,
        _ => 78,
    }
}

/// Parses the command line, runs the command and says how it went.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json };
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
            if !matches!(failure, Failure::Unhealthy) {
                output.error(&with_causes(&failure));
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn dispatch(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let home = || Home::locate(arguments.home.clone());
    match arguments.command {
        Command::Init => init::run(&home()?, output),
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
        Command::Reports(command) => reports::run(&home()?, command, output).await,
        Command::WorkerToken(command) => worker_token::run(&home()?, command, output).await,
        Command::Alert(command) => alert::run(&home()?, command, output).await,
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
