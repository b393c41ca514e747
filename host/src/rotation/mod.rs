//! The rotation engine: claims what is due within everybody's limits, runs each attempt, and
//! renews the leases of those in flight. `machine` holds the order of an attempt, `decide`,
//! `verdict`, `schedule`, `pace` and `rate` the rules; they do no I/O. `attempt` is the shell around
//! them. The queue is the database's: nothing here grows with the number of credentials.

pub mod asking;
pub mod attempt;
mod clock;
pub mod decide;
pub mod late;
pub mod machine;
mod pace;
pub mod plan;
mod resolved;
pub mod schedule;
pub mod self_test;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::config::ServiceRules;
use crate::config::host::Labels;
use crate::credential::{Millis, now};
use crate::db::Action;
use crate::db::queries::ServiceChoice;
use crate::db::uses::WAITS_FOR;
use crate::db::writer::{
    Allowed, Claim, ClaimDue, ClaimToken, Due, Gate, Passage, Renewed, WriteError, Writer,
};
use crate::egress::Egress;
use crate::limits;
use crate::meter::Meter;
use crate::provider::Resolved;
use crate::quiet::Quiet;
use crate::rate;
use crate::registry::Providers;
use crate::report::Report;
use crate::supervisor::Supervisor;
use crate::vault::Vault;

use clock::{ClockWatch, Jump};
use late::LateSecrets;

/// Attempts of one service in flight, and more where it is fast enough (`pace`).
const PER_SERVICE: usize = limits::CALL.in_flight as usize;

/// The longest sleep between two looks at the due queue.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The same where other hosts make things due: as late as their lost attempts are taken over.
const SHARED_SLEEP: Duration = Duration::from_secs(5);

/// Between two looks at the clocks: one that was set is noticed by then. Nothing is asked of the
/// database for it.
const CLOCK_LOOK: Duration = Duration::from_secs(2);

/// Ends of attempts within this are answered by one claim. Short beside any due time, long
/// beside a commit.
const BURST: Duration = Duration::from_millis(2);

/// Nobody looked for so long: the daemon wasn't running, or the machine slept. What fell due
/// meanwhile is started as after a downtime.
const DOWNTIME: Millis = 3 * LONGEST_SLEEP.as_millis() as Millis;

/// Between two tries to claim while the database can't be written.
const UNWRITABLE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Rotation {
    pub supervisor: Supervisor,
    pub egress: Arc<Egress>,
    pub vault: Arc<Vault>,
    pub writer: Writer,
    pub providers: Arc<Providers>,
    pub meter: Arc<Meter>,
    /// Names this host in claims.
    pub owner: String,
    /// What services may ask of the hosts that ask them.
    labels: Labels,
    /// What was issued and isn't in the store.
    pub late: LateSecrets,
    resolved: resolved::ResolvedSettings,
    in_flight: Mutex<HashMap<String, Held>>,
    /// What was asked for by command, from before the database hears of it: in flight as well.
    asked: Mutex<Vec<String>>,
    clock: Mutex<ClockWatch>,
    paces: Mutex<HashMap<String, pace::Pace>>,
    /// The operator's rules by service, and how far the rates among them are used up.
    rules: Mutex<Arc<BTreeMap<String, ServiceRules>>>,
    rates: Mutex<HashMap<String, rate::Rate>>,
    /// Services of which nothing is done by itself.
    paused: Mutex<BTreeSet<String>>,
    /// When it was last looked for what is due; 0: never.
    looked: AtomicU64,
    /// When the scheduler last began a round; None: it doesn't serve.
    turned: Mutex<Option<Instant>>,
    /// Which service is first at the next claim.
    turn: AtomicUsize,
    changed: Notify,
}

fn lease() -> Millis {
    now() + limits::lease().as_millis() as Millis
}

impl Rotation {
    #[expect(clippy::too_many_arguments, reason = "its parts, which the composition root hands over once")]
    pub fn new(
        supervisor: Supervisor,
        egress: Arc<Egress>,
        vault: Arc<Vault>,
        writer: Writer,
        providers: Arc<Providers>,
        owner: String,
        labels: Labels,
        late: LateSecrets,
        rules: BTreeMap<String, ServiceRules>,
    ) -> Arc<Self> {
        let rates = Mutex::new(rates_of(&rules));
        // Attempts are counted where their requests are.
        let meter = egress.meter();
        Arc::new(Self {
            supervisor,
            egress,
            vault,
            writer,
            providers,
            meter,
            owner,
            labels,
            late,
            resolved: resolved::ResolvedSettings::default(),
            in_flight: Mutex::default(),
            asked: Mutex::default(),
            clock: Mutex::new(ClockWatch::new(now(), Instant::now())),
            paces: Mutex::default(),
            rules: Mutex::new(Arc::new(rules)),
            rates,
            paused: Mutex::default(),
            looked: AtomicU64::new(0),
            turned: Mutex::default(),
            turn: AtomicUsize::new(0),
            changed: Notify::new(),
        })
    }

    /// Something may be due earlier than the scheduler knows.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// The operator's rules from now on. What a rate has let through counts on where the rate is
    /// the same.
    pub fn set_rules(&self, rules: BTreeMap<String, ServiceRules>) {
        let before = self.rules();
        if *before == rules {
            return;
        }
        let mut rates = rates_of(&rules);
        {
            let mut now = self.rates();
            let rate = |rules: &BTreeMap<String, ServiceRules>, service: &str| {
                rules.get(service).and_then(|rules| rules.rate_per_minute)
            };
            for (service, used) in
                now.drain().filter(|(service, _)| rate(&before, service) == rate(&rules, service))
            {
                rates.insert(service, used);
            }
            *now = rates;
        }
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.wake();
    }

    fn rules(&self) -> Arc<BTreeMap<String, ServiceRules>> {
        Arc::clone(&self.rules.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long ago the scheduler began its last round; None: it doesn't serve.
    pub fn turned(&self) -> Option<Duration> {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    fn note_turn(&self, at: Option<Instant>) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Whether anything of a service is done by itself.
    pub fn set_paused(&self, service: &str, paused: bool) {
        let mut services = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if paused {
            services.insert(service.to_owned());
        } else {
            services.remove(service);
        }
    }

    /// What a service asks of the hosts that ask it and this one hasn't got, in words.
    pub fn lacks(&self, service: &str) -> Option<String> {
        let rules = self.rules();
        let wanted = &rules.get(service)?.only_on;
        let missing = wanted.iter().find(|wanted| !self.has_label(*wanted));
        missing.map(|(label, value)| format!("{label} = {value:?}"))
    }

    fn has_label(&self, (label, value): (&String, &String)) -> bool {
        self.labels.get(label) == Some(value)
    }

    /// Takes over what was chosen by way of another host.
    pub fn follow(&self, choices: &[ServiceChoice]) {
        let chosen: BTreeSet<String> =
            choices.iter().filter(|choice| choice.paused).map(|choice| choice.service.clone()).collect();
        let before = {
            let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *paused, chosen.clone())
        };
        for choice in choices {
            let known = self.providers.get(&choice.service);
            if known.is_some_and(|known| known.validate_interval != choice.validate_interval_seconds) {
                self.providers.set_cadence(&choice.service, choice.validate_interval_seconds);
            }
        }
        if before != chosen {
            self.wake();
        }
    }

    fn rates(&self) -> std::sync::MutexGuard<'_, HashMap<String, rate::Rate>> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When nothing of a credential is rotated by itself: its own windows and its service's.
    fn quiet(&self, service: &str, windows: &[String]) -> Quiet {
        static NEVER: Quiet = Quiet::NONE;
        let rules = self.rules();
        let of_service = rules.get(service).map_or(&NEVER, |rules| &rules.quiet);
        if windows.is_empty() {
            return of_service.clone();
        }
        match Quiet::parse(windows) {
            Ok(own) => own.and(of_service),
            Err(error) => {
                // They were good when they were set: the machine has lost a time zone.
                tracing::warn!(service, %error, "a credential's quiet windows can't be read any more");
                of_service.clone()
            }
        }
    }

    /// The services of which nothing is done by itself.
    pub fn paused(&self) -> BTreeSet<String> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds services up now, in words, by service.
    pub fn holds(&self) -> Vec<(String, String)> {
        let at = now();
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut holds: Vec<_> = paused.into_iter().map(|service| (service, "paused".to_owned())).collect();
        let used = self.used_by_service();
        let all_rules = self.rules();
        for (service, rules) in all_rules.iter() {
            if let Some(most) = rules.concurrency.filter(|&most| used_of(&used, service) >= most as usize) {
                holds.push((service.clone(), format!("{most} at once, and as many are in flight")));
            }
        }
        for (service, rate) in self.rates().iter().filter(|(_, rate)| rate.free(at) == 0) {
            let rate_per_minute = all_rules.get(service).and_then(|rules| rules.rate_per_minute);
            let wait = schedule::span(rate.ready().saturating_sub(at));
            let words =
                format!("{} requests a minute, the next in {wait}", rate_per_minute.unwrap_or_default());
            holds.push((service.clone(), words));
        }
        for (service, origin, until) in self.egress.left_alone() {
            let wait = schedule::span(until.saturating_sub(at));
            holds.push((service, format!("{origin} answered 429 and is left alone for {wait}")));
        }
        holds.sort();
        holds
    }

    /// Puts a backlog in line: of many overdue credentials of a service the urgent come first,
    /// and the rest one after another.
    ///
    /// # Errors
    /// Where the database can't be written; then all of them are due at once.
    pub async fn catch_up(&self, services: &[String]) -> Result<(), WriteError> {
        for service in services {
            let at = now();
            let overdue = self.writer.overdue(service, at).await?;
            if overdue.len() <= schedule::AT_ONCE {
                continue;
            }
            let provider = self.providers.get(service);
            let interval = provider.map_or(3_600, |provider| {
                provider.validate_interval.unwrap_or(provider.manifest.validate_interval)
            });
            let rate = self.rules().get(service).and_then(|rules| rules.rate_per_minute);
            let overdue: Vec<_> = overdue
                .into_iter()
                .map(|row| schedule::Overdue {
                    row: row.credential_row,
                    due: row.due,
                    action: row.action,
                    expires: row.expires,
                })
                .collect();
            let count = overdue.len();
            let plan = schedule::catch_up(overdue, at, Millis::from(interval) * 1_000, schedule::STEP);
            let rows: Vec<_> = plan.into_iter().map(|(one, due)| (one.row, due)).collect();
            let last = rows.iter().map(|(_, due)| *due).max().unwrap_or(at).max(at);
            self.writer.put_off(rows, "in its turn, for many were overdue together").await?;
            tracing::info!(
                service,
                credentials = count,
                seconds = (last - at) / 1_000,
                rate_per_minute = rate,
                "many are overdue, so they are started one after another"
            );
        }
        Ok(())
    }

    /// What becomes of a due credential, before it is claimed.
    fn judge(&self, due: Due<'_>, at: Millis) -> Passage {
        if self.egress.is_restrained()
            && let Some((origin, until)) = self.left_alone(due, at)
        {
            return Passage::Wait {
                until,
                why: format!("{origin} answered 429 to another of its credentials"),
            };
        }
        if due.action == Action::Rotate
            && self.quiet_until(due.service, &windows(&due), due.expires, at).is_some()
        {
            // It may still be asked how it is, and that look plans its rotation anew.
            return Passage::Go(Action::Validate);
        }
        if !due.behind.is_empty()
            && let Some(passage) = self.for_consumers(&due, at)
        {
            return passage;
        }
        Passage::Go(due.action)
    }

    /// A rotation of these classes leaves the present secret valid for a while and is the end of
    /// the one before. Who hasn't taken the present one yet would be left with none.
    fn for_consumers(&self, due: &Due<'_>, at: Millis) -> Option<Passage> {
        let resolved = self.resolved_of(due)?;
        let method =
            resolved.methods.iter().find(|method| due.method.is_none_or(|name| name == method.name))?;
        if !decide::waits_for_consumers(method.commit_class) {
            return None;
        }
        let since = due.waits_since.unwrap_or(due.due_at).min(at);
        let waits = due.behind.iter().filter_map(|consumer| {
            let wait = Millis::from(consumer.wait_seconds) * 1_000;
            Some((schedule::patience(at, since, wait, due.expires, due.issued)?, consumer.name.as_str()))
        });
        let (ends, names): (Vec<_>, Vec<_>) = waits.unzip();
        let until = ends.into_iter().max()?;
        Some(Passage::Await { until, since, why: format!("{WAITS_FOR}{} to acknowledge", names.join(", ")) })
    }

    /// What a person who asks for a rotation is told to wait for, without `--now`.
    fn judge_by_hand(&self, due: Due<'_>, at: Millis) -> Passage {
        match self.judge(due, at) {
            Passage::Go(Action::Validate) => {
                match self.quiet_until(due.service, &windows(&due), due.expires, at) {
                    Some((until, why)) => Passage::Wait { until, why },
                    None => Passage::Go(Action::Rotate),
                }
            }
            passage => passage,
        }
    }

    /// When quiet time ends that holds a rotation back now, in words as well.
    fn quiet_until(
        &self,
        service: &str,
        windows: &[String],
        expires: Option<Millis>,
        at: Millis,
    ) -> Option<(Millis, String)> {
        let wanted = schedule::Next { at, action: Action::Rotate, why: String::new() };
        let next = schedule::keep_quiet(&self.quiet(service, windows), at, expires, wanted);
        (next.at > at).then_some((next.at, next.why))
    }

    fn resolved_of(&self, due: &Due<'_>) -> Option<Arc<Resolved>> {
        let provider = self.providers.get(due.service)?;
        self.resolved.get(&provider, due.settings_json, due.private_hosts_json).ok()
    }

    fn left_alone(&self, due: Due<'_>, at: Millis) -> Option<(String, Millis)> {
        let resolved = self.resolved_of(&due)?;
        self.egress.hold(due.service, &resolved.origins, at)
    }

    pub fn in_flight(&self) -> usize {
        self.hold().len()
    }

    fn hold(&self) -> std::sync::MutexGuard<'_, HashMap<String, Held>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a claimed attempt to its report.
    ///
    /// # Errors
    /// Where the database refused the report.
    pub async fn run(&self, claim: Claim) -> Result<Arc<Report>, WriteError> {
        self.hold().insert(claim.token.credential_id.clone(), Held::new(&claim));
        self.run_held(claim).await
    }

    /// The same for one that is registered as in flight already.
    async fn run_held(&self, claim: Claim) -> Result<Arc<Report>, WriteError> {
        let id = claim.token.credential_id.clone();
        let held = InFlight { engine: self, id: &id };
        let result = attempt::run(self, claim).await;
        drop(held);
        if let Ok(report) = &result {
            self.book(report).await;
        }
        if let Err(error) = &result {
            // The journal row stays; the lease runs out and the attempt is recovered.
            tracing::error!(credential = id, %error, "an attempt could not be written down");
            // Nobody else stores what it was issued any more.
            self.late.look_now();
        }
        self.changed.notify_one();
        result
    }

    /// Books the requests of an attempt that has ended, where the service has a rate: here, and with
    /// the hosts that share the store.
    async fn book(&self, report: &Report) {
        let service = report.service.as_str();
        // The first was booked with the claim.
        let requests = report.meta.get("requests").and_then(serde_json::Value::as_u64).unwrap_or(0);
        let more = usize::try_from(requests.saturating_sub(1)).unwrap_or(0);
        match self.rates().get_mut(service) {
            Some(rate) => rate.take(more, now()),
            None => return,
        }
        if more == 0 || !self.writer.is_shared() {
            return;
        }
        let allowed = allowed(&self.rules()).get(service).copied().unwrap_or_default();
        if let Err(error) = self.writer.book(service, allowed, more).await {
            tracing::warn!(service, %error, "requests were not counted against the service's rate");
        }
    }

    /// Claims one credential because a person asked, and runs its attempt.
    ///
    /// # Errors
    /// Where it doesn't exist, is busy, or the database can't be written.
    pub async fn run_one(
        self: &Arc<Self>,
        credential_id: &str,
        action: Action,
    ) -> Result<Arc<Report>, WriteError> {
        self.run_one_now(credential_id, action, false).await
    }

    /// As `run_one`; forced, also where there is a reason to wait.
    ///
    /// # Errors
    /// As `run_one`'s.
    pub async fn run_one_now(
        self: &Arc<Self>,
        credential_id: &str,
        action: Action,
        forced: bool,
    ) -> Result<Arc<Report>, WriteError> {
        let _ours = Asked::new(self, credential_id);
        let (engine, at) = (Arc::clone(self), now());
        let gate = Gate::new(move |due| engine.judge_by_hand(due, at));
        let claim = self
            .writer
            .claim_one_through(gate, credential_id, action, &self.owner, at, lease(), forced)
            .await?;
        self.run(claim).await
    }

    /// Takes over what an earlier host left open. Before anything else is claimed.
    ///
    /// # Errors
    /// Where the database can't be written.
    pub async fn reclaim(&self) -> Result<Vec<Claim>, WriteError> {
        // Under the fences they were issued under: a recovered attempt then finds them.
        self.rescue().await?;
        // What an earlier host wrote down by a clock that has been set back since.
        self.writer.set_back(&self.owner, now(), None).await?;
        self.writer.reclaim_interrupted(&self.owner, lease()).await
    }

    /// Brings in issued secrets that the store couldn't take before. Always before anything is
    /// claimed: a secret that waits may be the only one that lives.
    async fn rescue(&self) -> Result<(), WriteError> {
        self.late.rescue(&self.vault, &self.writer, |credential| self.is_held(credential)).await
    }

    /// Claims and runs what is due until `stop`; then lets what is in flight end.
    pub async fn serve(self: Arc<Self>, interrupted: Vec<Claim>, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        for claim in interrupted {
            self.start(&mut running, claim);
        }
        let renewing = tokio::spawn(Arc::clone(&self).renew_leases());
        while !*stop.borrow() {
            self.note_turn(Some(Instant::now()));
            let looked = self.round(&mut running).await;
            let sleep = match looked {
                Ok(sleep) if self.writer.is_shared() => sleep.min(SHARED_SLEEP),
                Ok(sleep) => sleep,
                Err(error) => {
                    tracing::error!(%error, "nothing can be claimed, rotations are stopped");
                    UNWRITABLE
                }
            };
            tokio::select! {
                // The ends of attempts come in bursts, and one claim serves them all.
                () = self.changed.notified() => tokio::time::sleep(BURST).await,
                () = self.sleep(sleep) => {}
                _ = stop.changed() => {}
            }
            while running.try_join_next().is_some() {}
        }
        self.note_turn(None);
        let drained = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::DRAIN, drained).await.is_err() {
            tracing::warn!("attempts still in flight are left to the next start");
        }
        renewing.abort();
    }

    /// One round of the scheduler. Returns how long there is nothing to do.
    async fn round(self: &Arc<Self>, running: &mut JoinSet<()>) -> Result<Duration, WriteError> {
        self.look_at_the_clock().await?;
        if self.late.due_in().is_zero() {
            self.rescue().await?;
        }
        Ok(self.claim_due(running).await?.min(self.late.due_in()))
    }

    fn start(self: &Arc<Self>, running: &mut JoinSet<()>, claim: Claim) {
        // Registered here and not in the task, so that the next quota already counts it.
        self.hold().insert(claim.token.credential_id.clone(), Held::new(&claim));
        let engine = Arc::clone(self);
        // Boxed before it is handed over: it is large, and a spawn moves what it gets several times.
        running.spawn(Box::pin(async move {
            // The error was logged where it happened, and the journal row leads to recovery.
            let _ = engine.run_held(claim).await;
        }));
    }

    /// Claims what is due within the free capacity. Returns how long nothing will be.
    async fn claim_due(self: &Arc<Self>, running: &mut JoinSet<()>) -> Result<Duration, WriteError> {
        let per_service = self.used_by_service();
        let total: usize = per_service.values().sum();
        let free = limits::IN_FLIGHT.saturating_sub(total);
        let at = now();
        let looked = self.looked.swap(at, Ordering::Relaxed);
        if looked != 0 && at.saturating_sub(looked) > DOWNTIME {
            self.catch_up(&self.providers.services()).await?;
        }
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let room: Vec<_> = {
            let mut rates = self.rates();
            let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
            let rules = self.rules();
            let room = |service: String| {
                let used = used_of(&per_service, &service);
                let ahead = paces.get_mut(&service).map_or(0, |pace| pace.ahead(at));
                let most = rules.get(&service).and_then(|rules| rules.concurrency);
                // Nothing is claimed ahead of what the operator allows.
                let most = most.map_or(PER_SERVICE + ahead, |most| most as usize);
                let mut room = most.saturating_sub(used);
                if let Some(rate) = rates.get_mut(&service) {
                    room = room.min(rate.free(at));
                }
                (room, service)
            };
            let services = self.providers.services().into_iter();
            let here = |service: &String| {
                rules
                    .get(service)
                    .is_none_or(|rules| rules.only_on.iter().all(|wanted| self.has_label(wanted)))
            };
            services.filter(|service| !paused.contains(service) && here(service)).map(room).collect()
        };
        let quotas = quotas(room, free, self.turn.fetch_add(1, Ordering::Relaxed));
        if quotas.is_empty() {
            return Ok(self.until_a_rate_allows(at));
        }
        let at_most = u32::try_from(free).unwrap_or(u32::MAX);
        let engine = Arc::clone(self);
        let gate = Gate::new(move |due| engine.judge(due, at));
        let claims = self
            .writer
            .claim_due(ClaimDue {
                owner: self.owner.clone(),
                now: at,
                lease_until: lease(),
                quotas,
                at_most,
                allowed: allowed(&self.rules()),
                gate,
            })
            .await?;
        for claim in claims.claims {
            if let Some(rate) = self.rates().get_mut(&claim.service) {
                rate.take(1, at);
            }
            self.start(running, claim);
        }
        if !claims.overdue.is_empty() {
            self.settle(claims.overdue, running).await?;
            // They stood in the way of what else is due.
            return Ok(Duration::ZERO);
        }
        let until =
            claims.next_due.map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.saturating_sub(now())));
        // A quota that was cut short is claimed again when an attempt ends and wakes us.
        let busy = claims.next_due.is_some_and(|due| due <= at);
        Ok(if busy { UNWRITABLE } else { until }.min(self.until_a_rate_allows(at)))
    }

    /// At most `LONGEST_SLEEP`. A used up rate is looked at once more, when it lets one through.
    fn until_a_rate_allows(&self, at: Millis) -> Duration {
        let rates = self.rates();
        let ready = rates.values().filter(|rate| rate.free(at) == 0).map(rate::Rate::ready).min();
        ready.map_or(LONGEST_SLEEP, |ready| {
            Duration::from_millis(ready.saturating_sub(at).max(1)).min(LONGEST_SLEEP)
        })
    }

    fn used_by_service(&self) -> HashMap<String, usize> {
        let mut used: HashMap<String, usize> = HashMap::new();
        for Held { service, .. } in self.hold().values() {
            *used.entry(service.clone()).or_default() += 1;
        }
        used
    }

    /// Leases of our own that ran out, which happens where the process was stopped or the clock
    /// set ahead: what is in flight is renewed, and never begun a second time. What ended without
    /// its report is taken up again.
    async fn settle(
        self: &Arc<Self>,
        overdue: Vec<ClaimToken>,
        running: &mut JoinSet<()>,
    ) -> Result<(), WriteError> {
        let (held, given_up): (Vec<_>, Vec<_>) =
            overdue.into_iter().partition(|token| self.is_held(&token.credential_id));
        if !held.is_empty() {
            tracing::info!(attempts = held.len(), "leases ran out under attempts in flight, renewed");
            self.renew(held).await?;
        }
        if !given_up.is_empty() {
            // What they were issued, before their fence is another one.
            self.rescue().await?;
            for claim in self.writer.resume(given_up, &self.owner, lease()).await? {
                self.start(running, claim);
            }
        }
        Ok(())
    }

    fn is_held(&self, credential_id: &str) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().any(|id| id == credential_id) || self.hold().contains_key(credential_id)
    }

    /// Sleeps, but not past a jump of the clock.
    async fn sleep(&self, sleep: Duration) {
        let end = tokio::time::Instant::now() + sleep;
        while tokio::time::Instant::now() < end {
            tokio::time::sleep_until(end.min(tokio::time::Instant::now() + CLOCK_LOOK)).await;
            let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            if clock.has_jumped(now(), Instant::now()) {
                return;
            }
        }
    }

    /// Due times and leases are wall time. After a clock that was ahead they lie too far in the
    /// future, and come nearer by as much. After one that was behind everything is due at once,
    /// once, within the usual capacity.
    async fn look_at_the_clock(&self) -> Result<(), WriteError> {
        let (wall, jump) = {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            let wall = now();
            (wall, clock.look(wall, Instant::now()))
        };
        match jump {
            Jump::None => {}
            Jump::Ahead(by) => {
                tracing::warn!(seconds = by.as_secs(), "the clock was set ahead, or the machine slept");
            }
            Jump::Back(by) => {
                let millis = by.as_millis() as Millis;
                let moved =
                    self.writer.set_back(&self.owner, wall, Some(millis)).await.inspect_err(|_| {
                        // Looked at again with the next round: it must not be forgotten.
                        self.clock.lock().unwrap_or_else(PoisonError::into_inner).undo(by);
                    })?;
                self.rates().values_mut().for_each(|rate| rate.set_back(millis));
                self.egress.set_back(millis);
                tracing::warn!(seconds = by.as_secs(), credentials = moved, "the clock was set back");
            }
        }
        Ok(())
    }

    /// Renews leases, and says which are still ours, and which another's by now.
    async fn renew(&self, tokens: Vec<ClaimToken>) -> Result<Renewed, WriteError> {
        let asked = crate::clock::steady();
        let renewed = self.writer.renew(tokens, lease()).await?;
        let mut in_flight = self.hold();
        for token in &renewed.held {
            if let Some(held) = in_flight.get_mut(&token.credential_id)
                && held.token == *token
            {
                held.renewed = asked;
            }
        }
        Ok(renewed)
    }

    /// Whether a claim is still ours, before something leaves that can't be taken back. Nobody is
    /// asked while the lease can't have run out.
    pub(super) async fn owns(&self, token: &ClaimToken) -> Result<bool, WriteError> {
        let age = |held: &Held| Duration::from_millis(crate::clock::steady().saturating_sub(held.renewed));
        let fresh = |held: &Held| held.token == *token && age(held) < limits::lease() * 2 / 3;
        if self.hold().get(&token.credential_id).is_some_and(fresh) {
            return Ok(true);
        }
        Ok(self.renew(vec![token.clone()]).await?.held.contains(token))
    }

    async fn renew_leases(self: Arc<Self>) {
        let mut every = tokio::time::interval(limits::lease() / 3);
        loop {
            every.tick().await;
            let tokens: Vec<_> = self.hold().values().map(|held| held.token.clone()).collect();
            if tokens.is_empty() {
                continue;
            }
            match self.renew(tokens).await {
                Ok(renewed) => {
                    for token in renewed.lost {
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

fn rates_of(rules: &BTreeMap<String, ServiceRules>) -> HashMap<String, rate::Rate> {
    let rate = |(service, rules): (&String, &ServiceRules)| {
        rules.rate_per_minute.map(|rate| (service.clone(), rate::Rate::new(rate)))
    };
    rules.iter().filter_map(rate).collect()
}

/// The rules in the words of a claim, for those services that have any.
fn allowed(rules: &BTreeMap<String, ServiceRules>) -> BTreeMap<String, Allowed> {
    let of =
        |rules: &ServiceRules| Allowed { concurrency: rules.concurrency, per_minute: rules.rate_per_minute };
    let all = rules.iter().map(|(service, rules)| (service.clone(), of(rules)));
    all.filter(|(_, allowed)| *allowed != Allowed::default()).collect()
}

fn used_of(used: &HashMap<String, usize>, service: &str) -> usize {
    used.get(service).copied().unwrap_or(0)
}

/// A claim of ours that is worked on.
#[derive(Debug)]
struct Held {
    service: String,
    token: ClaimToken,
    /// When its lease was last known to be renewed, by the steady clock.
    renewed: Millis,
}

impl Held {
    fn new(claim: &Claim) -> Self {
        Self { service: claim.service.clone(), token: claim.token.clone(), renewed: crate::clock::steady() }
    }
}

/// An attempt is in flight as long as this lives: also one whose task panics ends so, and its
/// journal row leads to its recovery.
struct InFlight<'a> {
    engine: &'a Rotation,
    id: &'a str,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let removed = self.engine.hold().remove(self.id);
        if let Some(Held { service, .. }) = removed {
            let mut paces = self.engine.paces.lock().unwrap_or_else(PoisonError::into_inner);
            paces.entry(service).or_default().ended(now());
        }
    }
}

/// A claim that a person asked for, from before the database hears of it.
struct Asked<'a> {
    engine: &'a Rotation,
    id: &'a str,
}

impl<'a> Asked<'a> {
    fn new(engine: &'a Rotation, id: &'a str) -> Self {
        engine.asked.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
        Self { engine, id }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut asked = self.engine.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = asked.iter().position(|id| id == self.id) {
            asked.swap_remove(place);
        }
    }
}

/// A due credential's own quiet windows.
fn windows(due: &Due<'_>) -> Vec<String> {
    due.quiet_json.and_then(|windows| serde_json::from_str(windows).ok()).unwrap_or_default()
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
