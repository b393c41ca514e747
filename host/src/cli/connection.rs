//! One way to carry out an operation, whether a daemon runs or not.

use super::Failure;
use crate::config::{Config, Home};
use crate::control::{self, Operation, Outcome};
use crate::daemon::{Host, HostOptions, OpenError};
use crate::db::DbError;

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
        match Host::open(home.clone(), Config::load(home)?, HostOptions::default()).await {
            Ok(host) => Ok(Self::Direct(Box::new(host))),
            // A daemon that started this instant holds the lock and is about to listen.
            Err(OpenError::Db(DbError::Locked { .. })) if daemon_answers(home).await? => {
                Ok(Self::Daemon(home.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub async fn ask(&self, operation: Operation) -> Result<Outcome, Failure> {
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
