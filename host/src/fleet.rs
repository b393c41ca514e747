//! This host among those that share its store. It says that it lives, goes by the store's clock,
//! takes the duties that one host alone has, and follows what was changed by way of another. It
//! decides nothing about attempts: the store does, by leases and fencing numbers. A home with a
//! file of its own is a host alone, which has every duty.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::config::{Live, write_atomically};
use crate::credential::{Millis, now};
use crate::db::hosts::Beat;
use crate::db::queries::ReadError;
use crate::db::{self, DbError, News, Reader, Store, Writer};
use crate::limits;
use crate::registry::Registry;
use crate::rotation::Rotation;

/// Telling of alerts, and deleting old reports.
pub const ALERTS: &str = "alerts";
pub const RETENTION: &str = "retention";
const DUTIES: &[&str] = &[ALERTS, RETENTION];

/// How often a host says that it lives. Four times within what it may say nothing for.
const BEAT: Duration = Duration::from_secs(5);

/// How long a duty is held without a word.
const HOLD: Millis = 20_000;

/// A host ends a duty by itself this long before another may have it: its clock and the store's
/// never agree better than an answer takes.
const MARGIN: Millis = 2_000;

/// News that wait to be looked at. Of each kind one is enough.
const NEWS: usize = 16;

/// The name of the file with a host's own number.
const ID_FILE: &str = "host-id";

#[derive(Debug)]
pub struct Fleet {
    host_id: String,
    /// The name under which it was admitted.
    joined_as: Option<String>,
    started_at: Millis,
    writer: Writer,
    store: Store,
    config: Live,
    /// Until when each duty is ours, by the steady clock.
    held: Mutex<HashMap<&'static str, Millis>>,
}

/// The number that this home goes by among hosts: the one it was given when it joined them, or one
/// that is made when it is asked for first.
///
/// # Errors
/// The system's.
pub fn host_id(home: &Path, given: Option<&str>) -> io::Result<String> {
    let path = home.join(ID_FILE);
    if let Some(given) = given {
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == given) {
            return Ok(given.to_owned());
        }
        write_atomically(&path, format!("{given}\n").as_bytes())?;
        return Ok(given.to_owned());
    }
    match fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => tracing::warn!(path = %path.display(), "no number of a host is in it, a new one is made"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let id = hex::encode(random);
    write_atomically(&path, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// What follows the names of a host's sinks in a store that it shares.
pub fn sink_suffix(store: &Store, host_id: &str) -> String {
    match store {
        Store::File(_) => String::new(),
        Store::Server(_) => format!("@{host_id}"),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
}

impl Fleet {
    pub fn new(
        host_id: String,
        joined_as: Option<String>,
        writer: Writer,
        store: Store,
        config: Live,
    ) -> Self {
        Self { host_id, joined_as, started_at: now(), writer, store, config, held: Mutex::default() }
    }

    pub fn host_id(&self) -> &str {
        &self.host_id
    }

    /// What follows the names of this host's sinks in the store.
    pub fn sink_suffix(&self) -> String {
        sink_suffix(&self.store, &self.host_id)
    }

    /// Whether a duty is this host's, now.
    pub fn holds(&self, duty: &str) -> bool {
        if !self.writer.is_shared() {
            return true;
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(duty).is_some_and(|until| clock::steady() < *until)
    }

    /// Lives until `stop`, and then says that it ends.
    pub async fn serve(
        self: Arc<Self>,
        rotation: Arc<Rotation>,
        registry: Arc<Registry>,
        mut stop: watch::Receiver<bool>,
    ) {
        if !self.writer.is_shared() {
            // Nobody else looks, and a disk needn't be woken for it.
            return;
        }
        let (tell, mut told) = mpsc::channel(NEWS);
        let listening = tokio::spawn(listen(self.store.clone(), tell));
        let mut every = tokio::time::interval(BEAT);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            tokio::select! {
                _ = every.tick() => {
                    if let Err(error) = self.beat(rotation.in_flight()).await {
                        tracing::warn!(%error, "the store was not told that this host lives");
                    }
                    // Who told nothing, or was not heard, is noticed so.
                    self.follow(&rotation).await;
                }
                Some(news) = told.recv() => match news {
                    News::Due => rotation.wake(),
                    News::Plugins => {
                        self.follow(&rotation).await;
                        let registry = Arc::clone(&registry);
                        tokio::spawn(async move {
                            if let Err(error) = registry.rescan().await {
                                tracing::warn!(%error, "another host's plugins can't be looked at");
                            }
                        });
                    }
                },
                _ = stop.changed() => {}
            }
        }
        listening.abort();
        if let Err(error) = self.writer.stop_host(&self.host_id).await {
            tracing::debug!(%error, "the store was not told that this host ends");
        }
    }

    /// Says once that this host lives.
    ///
    /// # Errors
    /// Where the store can't be written.
    pub async fn beat(&self, in_flight: usize) -> Result<(), crate::db::WriteError> {
        let config = self.config.get();
        let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let asked = clock::steady();
        let beaten = self
            .writer
            .beat_host(Beat {
                host_id: self.host_id.clone(),
                name: self.joined_as.clone().or_else(|| config.host.name.clone()).unwrap_or_else(machine),
                labels: config.host.labels.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: self.started_at,
                in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
                at_most: u32::try_from(limits::IN_FLIGHT).unwrap_or(u32::MAX),
                duties: DUTIES,
                hold: HOLD,
            })
            .await?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for duty in DUTIES {
            let had = held.contains_key(duty);
            if beaten.duties.contains(duty) {
                // From before it was asked for.
                held.insert(duty, asked + HOLD - MARGIN);
            } else {
                held.remove(duty);
            }
            if had != beaten.duties.contains(duty) {
                tracing::info!(duty, mine = !had, "a duty went from one host to another");
            }
        }
        Ok(())
    }

    /// Takes over what was chosen for services by way of another host.
    async fn follow(self: &Arc<Self>, rotation: &Rotation) {
        let fleet = Arc::clone(self);
        match tokio::task::spawn_blocking(move || fleet.services()).await {
            Ok(Ok(services)) => rotation.follow(&services),
            Ok(Err(error)) => tracing::warn!(%error, "what other hosts changed is not known"),
            Err(error) => tracing::error!(%error, "looking at what other hosts changed ended badly"),
        }
    }

    fn services(&self) -> Result<Vec<crate::db::queries::ServiceChoice>, FollowError> {
        Ok(Reader::open(&self.store)?.service_choices()?)
    }
}

/// Hears what other hosts tell, for as long as anybody listens.
async fn listen(store: Store, tell: mpsc::Sender<News>) {
    loop {
        let to = tell.clone();
        // What doesn't fit is said already, and looked at.
        let Some(ended) = db::listen(&store, move |news| {
            let _ = to.try_send(news);
        })
        .await
        else {
            return;
        };
        tracing::debug!(error = %ended, "what other hosts tell is not heard, it is looked for instead");
        tokio::time::sleep(BEAT).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Open(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_goes_by_the_same_number_ever_after() {
        let home = tempfile::tempdir().unwrap();
        let first = host_id(home.path(), None).unwrap();
        assert!(is_id(&first), "{first}");
        assert_eq!(host_id(home.path(), None).unwrap(), first);
        fs::write(home.path().join(ID_FILE), "half").unwrap();
        assert_ne!(host_id(home.path(), None).unwrap(), first);
        let given = "00112233aabbccdd";
        assert_eq!(host_id(home.path(), Some(given)).unwrap(), given);
        assert_eq!(host_id(home.path(), None).unwrap(), given);
    }
}
