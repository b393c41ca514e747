//! The rotation engine: claims what is due, runs each attempt, and renews the leases of those
//! in flight. `machine` holds the order of an attempt, `decide`, `verdict` and `schedule` the
//! rules; they do no I/O. `attempt` is the shell around them.

pub mod attempt;
pub mod decide;
pub mod machine;
mod pace;
pub mod plan;
mod resolved;
pub mod schedule;
pub mod verdict;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::credential::{Millis, now};
use crate::db::Action;
use crate::db::writer::{Claim, ClaimDue, ClaimToken, WriteError, Writer};
use crate::egress::Egress;
use crate::limits;
use crate::registry::Providers;
use crate::report::Report;
use crate::supervisor::Supervisor;
use crate::vault::Vault;

/// Attempts of one service in flight, and more where it is fast enough (`pace`).
const PER_SERVICE: usize = limits::CALL.in_flight as usize;

/// The longest sleep between two looks at the due queue: a clock that jumped is noticed by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Ends of attempts within this are answered by one claim. Short beside any due time, long
/// beside a commit.
const BURST: Duration = Duration::from_millis(2);

/// Between two tries to claim while the database can't be written.
const UNWRITABLE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Rotation {
    pub supervisor: Supervisor,
    pub egress: Arc<Egress>,
    pub vault: Arc<Vault>,
    pub writer: Writer,
    pub providers: Arc<Providers>,
    /// Names this host in claims.
    pub owner: String,
    resolved: resolved::ResolvedSettings,
    in_flight: Mutex<HashMap<String, (String, ClaimToken)>>,
    paces: Mutex<HashMap<String, pace::Pace>>,
    /// Which service is first at the next claim.
    turn: AtomicUsize,
    changed: Notify,
}

fn lease() -> Millis {
    now() + limits::LEASE.as_millis() as Millis
}

impl Rotation {
    pub fn new(
        supervisor: Supervisor,
        egress: Arc<Egress>,
        vault: Arc<Vault>,
        writer: Writer,
        providers: Arc<Providers>,
        owner: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            supervisor,
            egress,
            vault,
            writer,
            providers,
            owner,
            resolved: resolved::ResolvedSettings::default(),
            in_flight: Mutex::default(),
            paces: Mutex::default(),
            turn: AtomicUsize::new(0),
            changed: Notify::new(),
        })
    }

    /// Something may be due earlier than the scheduler knows.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    pub fn in_flight(&self) -> usize {
        self.hold().len()
    }

    fn hold(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, ClaimToken)>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a claimed attempt to its report.
    ///
    /// # Errors
    /// Where the database refused the report.
    pub async fn run(&self, claim: Claim) -> Result<Report, WriteError> {
        let (id, service) = (claim.token.credential_id.clone(), claim.service.clone());
        self.hold().insert(id.clone(), (service, claim.token.clone()));
        let result = attempt::run(self, claim).await;
        if let Some((service, _)) = self.hold().remove(&id) {
            let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
            paces.entry(service).or_default().ended(now());
        }
        if let Err(error) = &result {
            // The journal row stays; the lease runs out and the attempt is recovered.
            tracing::error!(credential = id, %error, "an attempt could not be written down");
        }
        self.changed.notify_one();
        result
    }

    /// Claims one credential because a person asked, and runs its attempt.
    ///
    /// # Errors
    /// Where it doesn't exist, is busy, or the database can't be written.
    pub async fn run_one(&self, credential_id: &str, action: Action) -> Result<Report, WriteError> {
        self.run_one_now(credential_id, action, false).await
    }

    /// As `run_one`; forced, also where there is a reason to wait.
    ///
    /// # Errors
    /// As `run_one`'s.
    pub async fn run_one_now(
        &self,
        credential_id: &str,
        action: Action,
        forced: bool,
    ) -> Result<Report, WriteError> {
        let claim = self.writer.claim_one(credential_id, action, &self.owner, now(), lease(), forced).await?;
        self.run(claim).await
    }

    /// Takes over what an earlier host left open. Before anything else is claimed.
    ///
    /// # Errors
    /// Where the database can't be written.
    pub async fn reclaim(&self) -> Result<Vec<Claim>, WriteError> {
        self.writer.reclaim_interrupted(&self.owner, lease()).await
    }

    /// Claims and runs what is due until `stop`; then lets what is in flight end.
    pub async fn serve(self: Arc<Self>, interrupted: Vec<Claim>, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        for claim in interrupted {
            self.start(&mut running, claim);
        }
        let renewing = tokio::spawn(Arc::clone(&self).renew_leases());
        while !*stop.borrow() {
            let sleep = match self.claim_due(&mut running).await {
                Ok(sleep) => sleep,
                Err(error) => {
                    tracing::error!(%error, "nothing can be claimed, rotations are stopped");
                    UNWRITABLE
                }
            };
            tokio::select! {
                // The ends of attempts come in bursts, and one claim serves them all.
                () = self.changed.notified() => tokio::time::sleep(BURST).await,
                () = tokio::time::sleep(sleep) => {}
                _ = stop.changed() => {}
            }
            while running.try_join_next().is_some() {}
        }
        let drained = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::DRAIN, drained).await.is_err() {
            tracing::warn!("attempts still in flight are left to the next start");
        }
        renewing.abort();
    }

    fn start(self: &Arc<Self>, running: &mut JoinSet<()>, claim: Claim) {
        // Registered here and not in the task, so that the next quota already counts it.
        self.hold().insert(claim.token.credential_id.clone(), (claim.service.clone(), claim.token.clone()));
        let engine = Arc::clone(self);
        running.spawn(async move {
            // The error was logged where it happened, and the journal row leads to recovery.
            let _ = engine.run(claim).await;
        });
    }

    /// Claims what is due within the free capacity. Returns how long nothing will be.
    async fn claim_due(self: &Arc<Self>, running: &mut JoinSet<()>) -> Result<Duration, WriteError> {
        let (total, per_service) = {
            let in_flight = self.hold();
            let mut per_service: HashMap<String, usize> = HashMap::new();
            for (service, _) in in_flight.values() {
                *per_service.entry(service.clone()).or_default() += 1;
            }
            (in_flight.len(), per_service)
        };
        let free = limits::IN_FLIGHT.saturating_sub(total);
        let at = now();
        let room: Vec<_> = {
            let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
            let room = |service: String| {
                let used = per_service.get(&service).copied().unwrap_or(0);
                let ahead = paces.get_mut(&service).map_or(0, |pace| pace.ahead(at));
                ((PER_SERVICE + ahead).saturating_sub(used), service)
            };
            self.providers.services().into_iter().map(room).collect()
        };
        let quotas = quotas(room, free, self.turn.fetch_add(1, Ordering::Relaxed));
        if quotas.is_empty() {
            return Ok(LONGEST_SLEEP);
        }
        let at_most = u32::try_from(free).unwrap_or(u32::MAX);
        let claims = self
            .writer
            .claim_due(ClaimDue { owner: self.owner.clone(), now: at, lease_until: lease(), quotas, at_most })
            .await?;
        for claim in claims.claims {
            self.start(running, claim);
        }
        let until =
            claims.next_due.map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.saturating_sub(now())));
        // A quota that was cut short is claimed again when an attempt ends and wakes us.
        let busy = claims.next_due.is_some_and(|due| due <= at);
        Ok(if busy { UNWRITABLE } else { until.min(LONGEST_SLEEP) })
    }

    async fn renew_leases(self: Arc<Self>) {
        let mut every = tokio::time::interval(limits::LEASE / 3);
        loop {
            every.tick().await;
            let tokens: Vec<_> = self.hold().values().map(|(_, token)| token.clone()).collect();
            if tokens.is_empty() {
                continue;
            }
            match self.writer.renew(tokens, lease()).await {
                Ok(lost) => {
                    for token in lost {
                        tracing::warn!(
                            credential = token.credential_id,
                            "claim lost, its attempt will be refused"
                        );
                    }
                }
                Err(error) => tracing::error!(%error, "leases can't be renewed"),
            }
        }
    }
}

/// How many of each service may be claimed. Every service with room is asked for each time, or
/// what is due there would be seen late; where there isn't enough for all, another is first.
fn quotas(room: Vec<(usize, String)>, free: usize, turn: usize) -> Vec<(String, u32)> {
    let mut quotas: Vec<_> = room
        .into_iter()
        .map(|(room, service)| (service, u32::try_from(room.min(free)).unwrap_or(u32::MAX)))
        .filter(|(_, quota)| *quota > 0)
        .collect();
    if !quotas.is_empty() {
        let first = turn % quotas.len();
        quotas.rotate_left(first);
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(count: usize) -> Vec<(usize, String)> {
        (0..count).map(|n| (PER_SERVICE, format!("s{n}"))).collect()
    }

    #[test]
    fn every_one_of_many_services_is_asked_for_however_little_is_free() {
        assert_eq!(quotas(services(300), 1, 0).len(), 300);
    }

    #[test]
    fn a_full_service_and_a_full_host_claim_nothing() {
        assert!(quotas(vec![(0, "s".into())], 10, 0).is_empty());
        assert!(quotas(services(3), 0, 0).is_empty());
    }

    #[test]
    fn each_service_is_first_in_its_turn() {
        let first: Vec<_> = (0..4).map(|turn| quotas(services(3), 9, turn)[0].0.clone()).collect();
        assert_eq!(first, ["s0", "s1", "s2", "s0"]);
    }
}
