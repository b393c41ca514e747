//! `serve`: the daemon, until a signal.

use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::{Config, Home};
use crate::daemon::{self, Host, HostOptions};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to log: a level, or tracing's filter syntax
    #[arg(long, env = "KEYWHEEL_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

pub async fn run(home: Home, arguments: Arguments) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&arguments.log)
        .map_err(|error| Failure::BadInput(format!("--log {}: {error}", arguments.log)))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if arguments.log_json {
        lines.json().init();
    } else {
        lines.init();
    }
    home.require()?;
    let config = Config::load(&home)?;
    let (tell, stop) = watch::channel(false);
    let stopping = stop_on_signal(tell).map_err(Failure::io("signals can't be watched"))?;
    let host = Host::open(home, config, HostOptions::default()).await?;
    let served = daemon::serve(host, stop, |host| {
        tracing::info!(home = %host.home.root().display(), pid = std::process::id(), "keywheel is ready");
    })
    .await;
    stopping.abort();
    Ok(served?)
}

/// The first signal drains, the second ends at once.
fn stop_on_signal(tell: watch::Sender<bool>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                // Everything acknowledged is on disk, and the journal knows the rest.
                std::process::exit(130);
            }
            let _ = tell.send(true);
        }
    }))
}
