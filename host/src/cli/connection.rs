//! One way to carry out an operation, whether a daemon runs or not.

use std::time::Duration;

use tokio::time::Instant;

use super::Failure;
use super::progress::Progress;
use crate::config::{Config, Home};
use crate::control::{self, Operation, Outcome};
use crate::daemon::{Host, HostOptions, OpenError};
use crate::db::DbError;

/// How long the home may be taken by a process that doesn't answer yet. A daemon that starts
/// compiles new plugins before it listens: 50 ms for a Rust one, 6 s for a Python one. Another
/// command at work is done sooner.
const STARTING: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub enum Connection {
    Daemon(Home),
    Direct(Box<Host>),
}

impl Connection {
    /// Finds the daemon, or opens the home in its place.
    pub async fn open(home: &Home) -> Result<Self, Failure> {
        home.require()?;
        if daemon_answers(home).await? {
            return Ok(Self::Daemon(home.clone()));
        }
        let config = Config::load(home)?;
        let _progress = Progress::of("opening the home, and compiling what is new in it");
        let until = Instant::now() + STARTING;
        loop {
            match Host::open(home.clone(), config.clone(), HostOptions::default()).await {
                Ok(host) => return Ok(Self::Direct(Box::new(host))),
                Err(OpenError::Db(DbError::Locked { .. })) if daemon_answers(home).await? => {
                    return Ok(Self::Daemon(home.clone()));
                }
                Err(OpenError::Db(DbError::Locked { .. })) if Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub async fn ask(&self, operation: Operation) -> Result<Outcome, Failure> {
        let _progress = what_takes_time(&operation).map(Progress::of);
        match self {
            Self::Direct(host) => Ok(host.carry_out(operation).await?),
            Self::Daemon(home) => control::ask(&home.socket(), &operation)
                .await
                .map_err(Failure::io("the daemon can't be asked"))?
                .ok_or_else(|| Failure::Other("the daemon ended meanwhile; hint: try again".into()))?
                .map_err(Failure::from),
        }
    }

    pub async fn close(self) {
        if let Self::Direct(host) = self {
            host.close().await;
        }
    }

    /// Opens, asks once and closes.
    pub async fn once(home: &Home, operation: Operation) -> Result<Outcome, Failure> {
        let connection = Self::open(home).await?;
        let outcome = connection.ask(operation).await;
        connection.close().await;
        outcome
    }
}

/// What somebody who waits is told: a component in Python compiles for six seconds.
const fn what_takes_time(operation: &Operation) -> Option<&'static str> {
    match operation {
        Operation::PluginList | Operation::PluginCheck { .. } | Operation::PluginInstall { .. } => {
            Some("compiling what is new, and asking it what it is")
        }
        Operation::CredentialRun { .. } | Operation::CredentialSelfTest { .. } => Some("asking the service"),
        _ => None,
    }
}

pub async fn daemon_answers(home: &Home) -> Result<bool, Failure> {
    match tokio::net::UnixStream::connect(home.socket()).await {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(Failure::Io { what: "the daemon's socket can't be used".into(), source: error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::HomeLock;

    #[tokio::test]
    async fn a_command_waits_for_a_daemon_that_has_the_home_and_does_not_listen_yet() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(folder.path().join("home"))).unwrap();
        crate::daemon::make_home(&home).unwrap();
        let _daemons = HomeLock::acquire(&home.lock()).unwrap();
        let command = Connection::open(&home);
        let daemon = async {
            // The command has found the lock taken by then, and goes on looking.
            tokio::task::yield_now().await;
            tokio::net::UnixListener::bind(home.socket()).unwrap()
        };
        let (connection, _listener) = tokio::join!(command, daemon);
        assert!(matches!(connection, Ok(Connection::Daemon(_))));
    }
}
