//! `serve`: the daemon, until a signal.

use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::{Config, Home, Live};
use crate::daemon::{self, Host, HostOptions};
use crate::keys::KeyError;
use crate::notify_systemd;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to log: a level, or tracing's filter syntax [default: `log` in config.toml, or info]
    #[arg(long, env = "KEYWHEEL_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

pub async fn run(home: Home, arguments: Arguments) -> Result<(), Failure> {
    home.require()?;
    let config = Config::load(&home)?;
    let filter = start_logging(&config, &arguments)?;
    let (tell, stop) = watch::channel(false);
    let stopping = stop_on_signal(tell.clone()).map_err(Failure::io("signals can't be watched"))?;
    // From here on it no longer ends the process; the daemon listens for it once it serves.
    let _registered = signal(SignalKind::hangup()).map_err(Failure::io("signals can't be watched"))?;
    let host = Host::open(home.clone(), config, HostOptions::default()).await?;
    let revoked = host.host_id.clone().map(|id| tokio::spawn(stop_when_revoked(home, id, tell)));
    let mut following = None;
    let served = daemon::serve(host, stop, |host| {
        following = filter.map(|filter| tokio::spawn(follow(host.config.clone(), filter)));
        tracing::info!(home = %host.home.root().display(), pid = std::process::id(), "keywheel is ready");
        notify_systemd::ready();
    })
    .await;
    stopping.abort();
    if let Some(following) = following {
        following.abort();
    }
    served?;
    match revoked {
        Some(revoked) if revoked.is_finished() => match revoked.await {
            Ok(error) => Err(error.into()),
            Err(_) => Ok(()),
        },
        Some(watching) => {
            watching.abort();
            Ok(())
        }
        None => Ok(()),
    }
}

/// A host that was revoked lets what is in flight end, and stops.
async fn stop_when_revoked(home: Home, host_id: String, tell: watch::Sender<bool>) -> KeyError {
    let error = daemon::until_revoked(home, host_id).await;
    tracing::error!(severity = "critical", %error, "this host must stop");
    let _ = tell.send(true);
    error
}

/// Puts another filter in force.
type SetFilter = Box<dyn Fn(EnvFilter) + Send>;

/// Returns how the filter is changed later. None: the command line has the last word.
fn start_logging(config: &Config, arguments: &Arguments) -> Result<Option<SetFilter>, Failure> {
    let filter = match &arguments.log {
        Some(log) => {
            EnvFilter::try_new(log).map_err(|error| Failure::BadInput(format!("--log {log}: {error}")))?
        }
        None => filter_of(config),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that logging has ended, and then nobody misses the filter.
    let set: SetFilter = if arguments.log_json {
        let lines = lines.json().with_filter_reloading();
        let handle = lines.reload_handle();
        lines.init();
        Box::new(move |filter| drop(handle.reload(filter)))
    } else {
        let lines = lines.with_filter_reloading();
        let handle = lines.reload_handle();
        lines.init();
        Box::new(move |filter| drop(handle.reload(filter)))
    };
    Ok(arguments.log.is_none().then_some(set))
}

/// It was judged when the configuration was read.
fn filter_of(config: &Config) -> EnvFilter {
    EnvFilter::new(config.log.as_deref().unwrap_or("info"))
}

/// Logs as the configuration in force says.
async fn follow(config: Live, set: SetFilter) {
    let mut changes = config.changes();
    let mut before = config.get().log.clone();
    while changes.changed().await.is_ok() {
        let now = config.get();
        if now.log != before {
            set(filter_of(&now));
            before.clone_from(&now.log);
        }
    }
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
