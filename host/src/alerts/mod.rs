//! Tells the operator what is in trouble and what is well again. Level-triggered: it wakes when
//! something was committed, and on a timer, looks at what is, compares it with what was told, and
//! writes down in one transaction what changes and which messages follow. Attempts pay nothing
//! for it: nothing here stands on their way, and nothing of an alert is kept in memory alone but
//! what the database can't take.
//!
//! `rules` decides, `facts` puts into words, `channels` shapes, `deliver` brings; the heartbeat
//! for those who watch the watchman is here. Without a channel nobody is told, so nothing is
//! watched.

mod channels;
mod deliver;
mod facts;
pub mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::alerts::{Address, Alerts as Config, Channel, Least};
use crate::config::{Home, Live};
use crate::crash;
use crate::credential::{Millis, now};
use crate::db::alerts::{AlertGroup, AlertState, Kind, NewDelivery, Severity, Told};
use crate::db::queries::ReadError;
use crate::db::{Reader, Writer};
use crate::egress::EgressError;
use crate::external::Presence;
use crate::fleet::{self, Fleet};
use crate::limits;
use crate::registry::{PluginState, Registry};
use crate::rotation::Rotation;
use crate::rotation::schedule::span;
use crate::supervisor::Supervisor;

use deliver::{PastTheOutbox, Postman, Sender, Taken};
use facts::HostFacts;
use rules::{End, Event, Item, Look, Notice, Rules, Trouble};

/// How often a host looks whether telling is its duty.
const DUTY_LOOK: Duration = Duration::from_secs(1);

/// Between two looks, whatever happens: attempts end hundreds of times a second.
const PACE: Duration = Duration::from_millis(500);

/// A look takes at most this part of the time: with ten thousand failing it takes longer.
const SHARE: u32 = 20;

/// Between two looks when nothing happens: disks fill and workers park without a commit.
const LOOK: Duration = Duration::from_secs(15);

/// Thousands of secrets may end within a fortnight; looking at them takes a hundredth of the time.
const ENDS_SHARE: u32 = 100;

/// While the database can't be written.
const UNWRITABLE: Duration = Duration::from_secs(1);

/// A database that can't be written stops everything, so its notice waits no longer than this.
const DATABASE_WAIT: Duration = Duration::from_secs(10);

/// A clock that differs by more from one look to the next was set.
const CLOCK_STEP: i64 = 60_000;

/// How long it is said that the clock was set.
const CLOCK_TOLD: Duration = Duration::from_secs(3_600);

/// The scheduler turns at least twice a minute.
const TURNS: Duration = Duration::from_secs(180);

/// So long something is due and nothing ends: past every attempt's time, several times over.
const OVERDUE: Millis = 15 * 60_000;

/// And that for so long, for a clock that was set makes everything overdue for a moment.
const OVERDUE_HOLDS: Duration = Duration::from_secs(120);

/// What is under way when the daemon ends may end.
const END: Duration = Duration::from_secs(5);

const SWEEP: Duration = Duration::from_secs(3_600);

const DATABASE: &str = "host:database";

/// How one channel took the message of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tested {
    pub channel: String,
    pub kind: String,
    /// None: it was taken.
    pub error: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TestError {
    #[error("no channel is configured; hint: [alerts.channels.NAME] in config.toml, see docs/operating.md")]
    None,
    #[error("no channel `{found}`; configured: {known}")]
    Unknown { found: String, known: String },
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Open(#[from] crate::db::DbError),
    #[error(transparent)]
    Write(#[from] crate::db::WriteError),
    #[error("a notice can't be written: {0}")]
    Notice(#[from] serde_json::Error),
    #[error("the look ended badly: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// The parts of the daemon that alerts ask.
#[derive(Debug)]
pub struct Alerts {
    home: Home,
    config: Live,
    writer: Writer,
    registry: Arc<Registry>,
    supervisor: Supervisor,
    rotation: Arc<Rotation>,
    fleet: Arc<Fleet>,
    sender: Arc<Sender>,
}

impl Alerts {
    /// # Errors
    /// Where the HTTP client can't be set up.
    #[expect(clippy::too_many_arguments, reason = "the parts of the daemon, each once")]
    pub fn new(
        home: &Home,
        config: Live,
        writer: Writer,
        registry: Arc<Registry>,
        supervisor: Supervisor,
        rotation: Arc<Rotation>,
        fleet: Arc<Fleet>,
        extra_ca_pem: Option<Vec<u8>>,
    ) -> Result<Self, EgressError> {
        let sender = Arc::new(Sender::new(home.root(), extra_ca_pem)?);
        Ok(Self { home: home.clone(), config, writer, registry, supervisor, rotation, fleet, sender })
    }

    /// Watches and tells until `stop`, by the configuration in force.
    pub async fn serve(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.config.changes();
        let mut is_changed = false;
        while !*stop.borrow() {
            if !self.fleet.holds(fleet::ALERTS) {
                tokio::select! {
                    () = tokio::time::sleep(DUTY_LOOK) => continue,
                    _ = stop.changed() => return,
                }
            }
            let config = changes.borrow_and_update().alerts.clone();
            let (end, ending) = watch::channel(false);
            let mut tasks = JoinSet::new();
            self.start(&config, is_changed, &ending, &mut tasks);
            is_changed = true;
            loop {
                tokio::select! {
                    changed = changes.changed() => {
                        if changed.is_err() || changes.borrow().alerts != config {
                            break;
                        }
                    }
                    // Another host tells from now on.
                    () = tokio::time::sleep(DUTY_LOOK) => if !self.fleet.holds(fleet::ALERTS) { break },
                    _ = stop.changed() => break,
                }
            }
            let _ = end.send(true);
            let ended = async { while tasks.join_next().await.is_some() {} };
            // A message that is cut off here is sent again, with its key.
            let _ = tokio::time::timeout(END, ended).await;
            tasks.abort_all();
        }
    }

    fn start(
        self: &Arc<Self>,
        config: &Config,
        is_changed: bool,
        ending: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        if let Some(address) = config.heartbeat() {
            let (alerts, every) = (Arc::clone(self), config.heartbeat_every.duration());
            tasks.spawn(alerts.beat(address, every, ending.clone()));
        }
        if !config.is_on() {
            return;
        }
        let past_the_outbox = Arc::new(PastTheOutbox::default());
        let (tell, news) = watch::channel(0);
        for (name, channel) in &config.channels {
            let postman = Postman {
                name: name.clone(),
                channel: channel.clone(),
                sender: Arc::clone(&self.sender),
                database: self.home.database(),
                writer: self.writer.clone(),
                retry_first: config.retry_first.millis(),
                past_the_outbox: Arc::clone(&past_the_outbox),
                news: news.clone(),
                is_changed,
            };
            tasks.spawn(postman.serve(ending.clone()));
        }
        let watcher = Watcher::new(Arc::clone(self), config.clone(), past_the_outbox, tell);
        tasks.spawn(watcher.serve(ending.clone()));
    }

    /// Asks an address elsewhere for as long as all is well here, so that silence tells. Well is
    /// a scheduler that turns and a database that was written just now.
    async fn beat(self: Arc<Self>, address: Address, every: Duration, mut stop: watch::Receiver<bool>) {
        let mut said: Option<String> = None;
        while !*stop.borrow() {
            let wrong = match tokio::time::timeout(every.max(PACE), self.writer.beat()).await {
                Err(_) => Some(String::from("the database takes too long to be written")),
                Ok(Err(error)) => Some(error.to_string()),
                Ok(Ok(())) => self
                    .stands_still()
                    .map(|silent| format!("the scheduler has not turned for {} s", silent.as_secs())),
            };
            let wrong = match wrong {
                Some(wrong) => Some(format!("no heartbeat, for {wrong}")),
                None => {
                    let sent = self.sender.beat(&address).await;
                    sent.err().map(|error| format!("the heartbeat was not heard: {error}"))
                }
            };
            if said != wrong {
                match &wrong {
                    Some(wrong) => tracing::warn!("{wrong}"),
                    None if said.is_some() => tracing::info!("the heartbeat is heard again"),
                    None => {}
                }
                said = wrong;
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// How long the scheduler has begun no round, where that is too long. None as well before it
    /// serves.
    fn stands_still(&self) -> Option<Duration> {
        self.rotation.turned().filter(|silent| *silent > TURNS)
    }

    /// Sends a message through one channel or all of them, past the outbox, and says what came
    /// of each.
    ///
    /// # Errors
    /// Where there is no such channel.
    pub async fn test(&self, wanted: Option<&str>) -> Result<Vec<Tested>, TestError> {
        let config = self.config.get();
        let channels = &config.alerts.channels;
        if channels.is_empty() {
            return Err(TestError::None);
        }
        if let Some(name) = wanted.filter(|name| !channels.contains_key(*name)) {
            let known = channels.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(TestError::Unknown { found: name.to_owned(), known });
        }
        let notice = test_notice(now());
        let chosen = channels.iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
        let sends = chosen.map(|(name, channel)| {
            let notice = &notice;
            async move {
                let key = deliver::dedup_key(name.as_bytes(), "test", notice.at);
                let sent = self.sender.send(channel, &key, notice).await;
                Tested {
                    channel: name.clone(),
                    kind: channel.target.kind().to_owned(),
                    error: sent.err().map(|error| error.to_string()),
                }
            }
        });
        Ok(futures_util::future::join_all(sends).await)
    }
}

/// The message of `alert test`.
fn test_notice(at: Millis) -> Notice {
    let what = "this is a test: alerts of Keywheel reach you here";
    Notice {
        event: Event::Test,
        at,
        group: String::from("test"),
        sequence: 0,
        service: None,
        severity: Severity::Warning,
        title: what.to_owned(),
        open: 0,
        opened: 0,
        resolved: 0,
        reminder: None,
        alerts: vec![Item {
            subject: String::from("host:test"),
            resolved: false,
            kind: Kind::Test,
            severity: Severity::Warning,
            what: what.to_owned(),
            since: at,
            why: Some(String::from("`keywheel alert test` was run")),
            hint: String::from("nothing to do"),
        }],
    }
}

/// The wall clock against one that nobody sets and that goes on while the machine sleeps.
#[derive(Debug)]
struct ClockMark {
    /// Wall minus steady, in milliseconds.
    offset: i64,
    set: Option<(Millis, i64, Instant)>,
}

fn offset() -> i64 {
    let mut steady = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a struct that lives until it returns.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut steady) };
    now().cast_signed() - (steady.tv_sec * 1_000 + steady.tv_nsec / 1_000_000)
}

impl ClockMark {
    fn look(&mut self, offset: i64, at: Millis) -> Option<(Millis, i64)> {
        let by = offset - self.offset;
        self.offset = offset;
        if by.abs() > CLOCK_STEP {
            self.set = Some((at, by, Instant::now()));
        }
        self.set = self.set.filter(|(_, _, seen)| seen.elapsed() < CLOCK_TOLD);
        self.set.map(|(at, by, _)| (at, by))
    }
}

/// A time in which the database can't be written: known to nobody but this process.
#[derive(Debug)]
struct Incident {
    since: Millis,
    began: Instant,
    reason: String,
    noticed: Option<Instant>,
    notices: u64,
}

/// Compares what is with what was told.
struct Watcher {
    alerts: Arc<Alerts>,
    config: Config,
    rules: Rules,
    past_the_outbox: Arc<PastTheOutbox>,
    tell: watch::Sender<u64>,
    /// Makes the keys of this installation's messages its own.
    origin: Option<Vec<u8>>,
    reader: Option<Reader>,
    clock: ClockMark,
    overdue: Option<(Millis, Instant)>,
    /// When all ends are looked through next.
    ends_at: Instant,
    sweep_at: Instant,
    incident: Option<Incident>,
    /// When the last incident was told: one that comes and goes is not told each time.
    last_incident: Option<Instant>,
    snoozed: BTreeSet<String>,
}

/// What a look reads, on a thread that may wait for a disk.
struct Asked {
    config: Config,
    now: Millis,
    looks_at_ends: bool,
    home: std::path::PathBuf,
    host: HostFacts,
    /// Those with a plugin, and whether it can renew.
    services: BTreeMap<String, bool>,
}

struct Gathered {
    states: BTreeMap<String, AlertState>,
    groups: BTreeMap<String, AlertGroup>,
    snoozed: BTreeSet<String>,
    troubles: Vec<Trouble>,
    ended: BTreeMap<String, End>,
    /// Since when something is due while nothing ends.
    overdue: Option<Millis>,
    ends_took: Duration,
}

impl Watcher {
    fn new(
        alerts: Arc<Alerts>,
        config: Config,
        past_the_outbox: Arc<PastTheOutbox>,
        tell: watch::Sender<u64>,
    ) -> Self {
        let rules = Rules {
            remind_every: config.remind_every.millis(),
            remind_at_most: config.remind_at_most,
            group_wait: config.group_wait.millis(),
            group_interval: config.group_interval.millis(),
        };
        Self {
            alerts,
            config,
            rules,
            past_the_outbox,
            tell,
            origin: None,
            reader: None,
            clock: ClockMark { offset: offset(), set: None },
            overdue: None,
            ends_at: Instant::now(),
            sweep_at: Instant::now(),
            incident: None,
            last_incident: None,
            snoozed: BTreeSet::new(),
        }
    }

    async fn serve(mut self, mut stop: watch::Receiver<bool>) {
        let mut progress = self.alerts.writer.progress();
        let mut plugins = self.alerts.registry.changes();
        let mut failing = false;
        while !*stop.borrow() {
            let began = Instant::now();
            progress.mark_unchanged();
            let reason = progress.borrow().failing.clone();
            let pause = match reason {
                Some(reason) => {
                    self.unwritable(&reason);
                    UNWRITABLE
                }
                None => match self.look().await {
                    Ok(wake_at) => {
                        failing = false;
                        let until = |at: Millis| Duration::from_millis(at.saturating_sub(now()));
                        wake_at.map_or(LOOK, |at| until(at).min(LOOK))
                    }
                    Err(error) => {
                        // Once, not each second for as long as it lasts.
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!(%error, "what is in trouble can't be looked at");
                        }
                        self.reader = None;
                        UNWRITABLE
                    }
                },
            };
            let rest = PACE.max(began.elapsed() * SHARE);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = stop.changed() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(pause.saturating_sub(rest)) => {}
                changed = progress.changed() => if changed.is_err() { return },
                changed = plugins.changed() => if changed.is_err() { return },
                _ = stop.changed() => {}
            }
        }
    }

    /// One look, and what follows from it, written down. Returns when there is something to tell
    /// that now is too early for.
    async fn look(&mut self) -> Result<Option<Millis>, LookError> {
        let origin = self.origin().await?;
        if self.sweep_at <= Instant::now() {
            self.alerts.writer.sweep_alerts().await?;
            self.sweep_at = Instant::now() + SWEEP;
        }
        let at = now();
        let asked = self.ask(at);
        let (held, database) = (self.reader.take(), self.alerts.home.database());
        let looks_at_ends = asked.looks_at_ends;
        let read = move || {
            let reader = match held {
                Some(reader) => reader,
                None => Reader::open(&database)?,
            };
            let gathered = gather(&reader, &asked)?;
            Ok::<_, LookError>((reader, gathered))
        };
        let (reader, mut gathered) = tokio::task::spawn_blocking(read).await??;
        self.reader = Some(reader);
        if looks_at_ends {
            self.ends_at = Instant::now() + gathered.ends_took * ENDS_SHARE;
        }
        self.overdue = match (gathered.overdue, self.overdue) {
            (None, _) => None,
            (Some(_), Some(known)) => Some(known),
            (Some(since), None) => Some((since, Instant::now())),
        };
        let past = match &self.incident {
            None => Taken::default(),
            Some(incident) => {
                let Some(past) = self.past_the_outbox.take_all() else {
                    return Ok(Some(at + PACE.as_millis() as Millis));
                };
                if incident.noticed.is_some() {
                    gathered.ended.insert(DATABASE.to_owned(), End::Over);
                    gathered.states.insert(DATABASE.to_owned(), state_of(incident));
                }
                past
            }
        };
        let written = self.conclude(&origin, at, &gathered, &past).await;
        if written.is_err() {
            self.past_the_outbox.put_back(past);
        } else {
            self.incident = None;
            self.snoozed = gathered.snoozed;
        }
        written
    }

    /// Decides, and writes down what was decided together with what went past the outbox.
    async fn conclude(
        &mut self,
        origin: &[u8],
        at: Millis,
        gathered: &Gathered,
        past: &Taken,
    ) -> Result<Option<Millis>, LookError> {
        let look = Look {
            now: at,
            troubles: &gathered.troubles,
            ended: &gathered.ended,
            snoozed: &gathered.snoozed,
        };
        let decided = rules::step(&self.rules, &gathered.states, &gathered.groups, &look);
        let mut change = decided.change;
        for (channel, key, notice, sent_at) in past.all() {
            change.deliveries.push(new_delivery(channel, key, notice, sent_at)?);
        }
        for notice in &decided.notices {
            let key = deliver::dedup_key(origin, &notice.group, notice.sequence);
            for name in self.receivers(notice) {
                change.deliveries.push(new_delivery(name, &key, notice, None)?);
            }
        }
        let is_news = !change.deliveries.is_empty();
        if !change.is_empty() {
            self.alerts.writer.apply_alerts(change).await?;
        }
        for notice in &decided.notices {
            tracing::info!(group = notice.group, event = notice.event.as_str(), "{}", notice.title);
        }
        if is_news {
            crash::point("alert.noticed");
            self.tell.send_modify(|count| *count += 1);
        }
        Ok(decided.wake_at)
    }

    async fn origin(&mut self) -> Result<Vec<u8>, LookError> {
        if let Some(origin) = &self.origin {
            return Ok(origin.clone());
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| {
            crate::db::WriteError::Invalid(format!("the system gives no random bytes: {error}"))
        })?;
        let origin = self.alerts.writer.remember("alert_origin", random.to_vec()).await?;
        self.origin = Some(origin.clone());
        Ok(origin)
    }

    fn receivers<'a>(&'a self, notice: &'a Notice) -> impl Iterator<Item = &'a String> {
        self.config.channels.iter().filter(|(_, channel)| is_for(channel, notice)).map(|(name, _)| name)
    }

    /// What the parts of the daemon say of themselves.
    fn ask(&mut self, at: Millis) -> Asked {
        let Alerts { home, registry, supervisor, rotation, .. } = self.alerts.as_ref();
        let word = |state: PluginState| match state {
            PluginState::Active => "active",
            PluginState::PendingApproval => "waits for approval",
            PluginState::Conflict => "in conflict",
            PluginState::Refused => "refused",
            PluginState::Superseded => "superseded",
        };
        let plugins = registry
            .status()
            .into_iter()
            .filter(|plugin| !matches!(plugin.state, PluginState::Active | PluginState::Superseded))
            .map(|plugin| {
                let reason = plugin.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                (plugin.file, plugin.service, format!("{}{reason}", word(plugin.state)))
            })
            .collect();
        let parked = supervisor
            .status()
            .into_iter()
            .filter(|worker| worker.state == "parked")
            .map(|worker| (worker.service, worker.last_end))
            .collect();
        let stuck = match self.alerts.stands_still() {
            Some(silent) => {
                let silent = silent.as_millis() as Millis;
                Some((
                    at.saturating_sub(silent),
                    format!("the scheduler has not turned for {}", span(silent)),
                ))
            }
            None => self.overdue.filter(|(_, seen)| seen.elapsed() > OVERDUE_HOLDS).map(|(since, _)| {
                let words = format!("the earliest is due for {}", span(at.saturating_sub(since)));
                (since, words)
            }),
        };
        let services = rotation.providers.services().into_iter().filter_map(|service| {
            let provider = rotation.providers.get(&service)?;
            Some((service, !provider.manifest.methods.is_empty()))
        });
        Asked {
            config: self.config.clone(),
            now: at,
            looks_at_ends: !self.config.expiry_days.is_empty() && self.ends_at <= Instant::now(),
            home: home.root().to_owned(),
            host: HostFacts {
                clock_behind: rotation.egress.host_is_behind(),
                clock_was_set: self.clock.look(offset(), at),
                stuck,
                plugins,
                parked,
                ..HostFacts::default()
            },
            services: services.collect(),
        }
    }

    /// The database can't be written, so the outbox can't either: what is told of that goes past
    /// it, and is written down when it can be.
    fn unwritable(&mut self, reason: &str) {
        let incident = self.incident.get_or_insert_with(|| Incident {
            since: now(),
            began: Instant::now(),
            reason: reason.to_owned(),
            noticed: None,
            notices: 0,
        });
        let Some(origin) = &self.origin else { return };
        let wait = DATABASE_WAIT.min(Duration::from_millis(self.rules.group_wait));
        let interval = Duration::from_millis(self.rules.group_interval);
        let is_due = match incident.noticed {
            None => {
                incident.began.elapsed() >= wait
                    && self.last_incident.is_none_or(|last| last.elapsed() >= interval)
            }
            Some(last) => {
                last.elapsed() >= Duration::from_millis(self.rules.remind_every)
                    && incident.notices <= u64::from(self.rules.remind_at_most)
            }
        };
        if !is_due || self.snoozed.contains(DATABASE) {
            return;
        }
        let reminder = u32::try_from(incident.notices).ok().filter(|number| *number > 0);
        incident.notices += 1;
        (incident.noticed, self.last_incident) = (Some(Instant::now()), Some(Instant::now()));
        let state = state_of(incident);
        let notice = Notice {
            event: if reminder.is_some() { Event::Reminder } else { Event::Opened },
            at: now(),
            group: DATABASE.to_owned(),
            sequence: incident.notices,
            service: None,
            severity: Severity::Critical,
            title: format!("{}{}", if reminder.is_some() { "still: " } else { "" }, state.what),
            open: 1,
            opened: u32::from(reminder.is_none()),
            resolved: 0,
            reminder: reminder.map(|number| (number, self.rules.remind_at_most)),
            alerts: vec![Item::of(&state)],
        };
        // Of this incident alone: the number that the database counts can't be counted on.
        let key = deliver::dedup_key(origin, &format!("{DATABASE}@{}", incident.since), incident.notices);
        let names: Vec<String> = self.receivers(&notice).cloned().collect();
        for name in names {
            self.past_the_outbox.put(&name, &key, &notice);
        }
        tracing::info!(group = DATABASE, event = notice.event.as_str(), "{}", notice.title);
        self.tell.send_modify(|count| *count += 1);
    }
}

/// As if it had been written down when it was told.
fn state_of(incident: &Incident) -> AlertState {
    let trouble = facts::of_database(incident.since, &incident.reason);
    AlertState {
        subject: trouble.subject,
        group: trouble.group,
        service: None,
        kind: trouble.kind,
        severity: trouble.severity,
        stage: 0,
        since: incident.since,
        opened_at: incident.since,
        closed_at: None,
        told: Some(Told { severity: trouble.severity, stage: 0 }),
        what: trouble.what,
        why: trouble.why,
        hint: trouble.hint,
    }
}

fn new_delivery(
    channel: &str,
    dedup_key: &str,
    notice: &Notice,
    delivered_at: Option<Millis>,
) -> Result<NewDelivery, serde_json::Error> {
    Ok(NewDelivery {
        channel: channel.to_owned(),
        dedup_key: dedup_key.to_owned(),
        payload_json: serde_json::to_string(notice)?,
        delivered_at,
    })
}

/// Whether a channel wants to hear of it.
fn is_for(channel: &Channel, notice: &Notice) -> bool {
    let is_bad_enough = match channel.severity {
        Least::Warning => true,
        Least::Critical => notice.severity == Severity::Critical,
    };
    let is_wanted = channel.services.is_empty()
        || notice.service.as_ref().is_some_and(|service| channel.services.contains(service));
    is_bad_enough && is_wanted
}

fn gather(reader: &Reader, asked: &Asked) -> Result<Gathered, LookError> {
    let Asked { config, now, host, services, .. } = asked;
    let states: BTreeMap<String, AlertState> =
        reader.alert_states()?.into_iter().map(|state| (state.subject.clone(), state)).collect();
    let groups = reader.alert_groups()?.into_iter().map(|group| (group.group.clone(), group)).collect();
    let snoozed = reader.snoozes(*now)?.into_iter().map(|snooze| snooze.subject).collect();
    let mut troubles: Vec<Trouble> = reader
        .failing_rows(limits::ALERT_FACTS)?
        .iter()
        .map(|row| facts::of_credential(row, config))
        .collect();

    let began = Instant::now();
    let mut ends_are_all = false;
    if asked.looks_at_ends {
        let ending = reader.expiring_rows(*now, facts::horizon(config, *now), limits::ALERT_FACTS)?;
        ends_are_all = ending.len() < limits::ALERT_FACTS as usize;
        troubles.extend(ending.iter().filter_map(|row| {
            let can_rotate = services.get(&row.service).copied().unwrap_or(false);
            facts::of_expiry(row, can_rotate, config, *now)
        }));
    }
    let ends_took = began.elapsed();

    let silent = reader
        .external_workers(*now)?
        .into_iter()
        .filter(|worker| worker.presence == Presence::Silent)
        .map(|worker| (worker.service, worker.worker_id, worker.last_seen_at))
        .collect();
    let host = HostFacts {
        disk_free: free_space(&asked.home),
        backup: config.backup_folder.as_ref().map(|folder| newest_file(&asked.home.join(folder))),
        silent,
        ..host.clone()
    };
    troubles.extend(facts::of_the_host(&host, config, *now));

    let found: BTreeSet<&str> = troubles.iter().map(|trouble| trouble.subject.as_str()).collect();
    let mut ended = BTreeMap::new();
    for state in states.values().filter(|state| state.is_open() && !found.contains(state.subject.as_str())) {
        let end = match state.subject.split_once(':') {
            Some(("credential", id)) => match reader.standing_row(id)? {
                None => Some(End::Gone),
                Some(standing) => (standing.failures == 0).then_some(End::Over),
            },
            Some(("expiry", _)) if !asked.looks_at_ends => None,
            Some(("expiry", id)) => match reader.standing_row(id)? {
                None => Some(End::Gone),
                Some(standing) => match standing.expires_at {
                    // Whether it is dead now its next attempt says.
                    Some(at) if at <= *now => Some(End::Silent),
                    Some(at) if !ends_are_all && at <= facts::horizon(config, *now) => None,
                    _ => Some(End::Over),
                },
            },
            _ => Some(End::Over),
        };
        ended.extend(end.map(|end| (state.subject.clone(), end)));
    }
    let overdue = overdue(reader, services.keys(), *now)?;
    Ok(Gathered { states, groups, snoozed, troubles, ended, overdue, ends_took })
}

/// The due time of what is due for long while no attempt ends anywhere.
fn overdue<'a>(
    reader: &Reader,
    services: impl Iterator<Item = &'a String>,
    now: Millis,
) -> Result<Option<Millis>, LookError> {
    let long_ago = now.saturating_sub(OVERDUE);
    if reader.newest_report_at()?.is_none_or(|at| at > long_ago) {
        return Ok(None);
    }
    let paused = reader.paused_services()?;
    let mut earliest: Option<Millis> = None;
    for service in services.filter(|service| !paused.contains(service)) {
        if let Some(due) = reader.earliest_due(service)?.filter(|due| *due < long_ago) {
            earliest = Some(earliest.map_or(due, |so_far| so_far.min(due)));
        }
    }
    Ok(earliest)
}

/// Bytes that an ordinary user may still write.
fn free_space(home: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(home).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// When the newest file of a folder was written. None: there is none, or no such folder.
fn newest_file(folder: &Path) -> Option<Millis> {
    let entries = std::fs::read_dir(folder).ok()?;
    let newest = entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .filter_map(|file| file.modified().ok())
        .max()?;
    let since = newest.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_millis() as Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_hears_what_is_bad_enough_and_about_its_services() {
        let channel = |text: &str| {
            toml::from_str::<Channel>(&format!("kind = \"slack\"\nurl = \"https://a\"\n{text}")).unwrap()
        };
        let notice = |service: Option<&str>, severity| Notice {
            service: service.map(str::to_owned),
            severity,
            ..test_notice(0)
        };
        let (warning, critical) = (Severity::Warning, Severity::Critical);
        for (lines, service, severity, want) in [
            ("", None, warning, true),
            ("severity = \"critical\"", Some("forge"), warning, false),
            ("severity = \"critical\"", Some("forge"), critical, true),
            ("services = [\"forge\"]", Some("forge"), warning, true),
            ("services = [\"forge\"]", Some("gorge"), critical, false),
            // The host's own trouble is nobody's service.
            ("services = [\"forge\"]", None, critical, false),
        ] {
            assert_eq!(is_for(&channel(lines), &notice(service, severity)), want, "{lines} {service:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_told_for_a_while_and_one_that_drifts_is_not() {
        let mut mark = ClockMark { offset: 0, set: None };
        assert_eq!(mark.look(50_000, 1), None);
        assert_eq!(mark.look(100_000, 2), None);
        assert_eq!(mark.look(100_000 - 3_600_000, 3), Some((3, -3_600_000)));
        assert_eq!(mark.look(100_000 - 3_600_000, 4), Some((3, -3_600_000)));
        let aged = mark.set.map(|(at, by, _)| (at, by, Instant::now().checked_sub(CLOCK_TOLD).unwrap()));
        mark.set = aged;
        assert_eq!(mark.look(100_000 - 3_600_000, 5), None);
        // What both clocks agree on while a machine sleeps is no step.
        let first = offset();
        assert!((offset() - first).abs() < CLOCK_STEP);
    }

    #[test]
    fn the_newest_file_of_a_folder_is_found_and_no_folder_is_no_backup() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_file(folder.path()), None);
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(newest_file(folder.path()), None);
        std::fs::write(folder.path().join("a"), "x").unwrap();
        assert!(newest_file(folder.path()).is_some());
        assert_eq!(newest_file(&folder.path().join("missing")), None);
        assert!(free_space(folder.path()).is_some_and(|free| free > 0));
    }
}
