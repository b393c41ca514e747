//! The composition root: opens an installation, wires its parts and carries out what is asked
//! of it. The same `Host` serves a running daemon and a command that works without one; only
//! the daemon also schedules, watches and listens.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::alerts::Alerts;
use crate::catalogue;
use crate::config::{self, Config, ConfigError, Home, Isolation, Live};
use crate::control::{self, ApiToken, DashboardLink, Operation, Outcome, Refusal, SecretInput, WorkerToken};
use crate::credential::{ID_RULE, Jar, Key, Millis, Secret, is_id, now};
use crate::db::api_tokens::NewApiToken;
use crate::db::external::NewWorkerToken;
use crate::db::host_keys::MARKER;
use crate::db::queries::{GenerationRow, ReadError, Reader};
use crate::db::writer::{NewCredential, NewGeneration, ScheduleChange, WriteError, Writer, WriterThread};
use crate::db::{Action, Actor, AuditEntry, DbError, HomeLock, Store};
use crate::egress::{Between, Egress, EgressError, EgressOptions};
use crate::fleet::{self, Fleet};
use crate::keys::{self, KeyError};
use crate::limits;
use crate::moving::{self, MovingError};
use crate::notify_systemd::{self, Pulse};
use crate::provider::KeySpec;
use crate::quiet::Quiet;
use crate::registry::{self, PluginState, Providers, Registry, RegistryError};
use crate::reload::{self, Reloaded};
use crate::retention::{Effort, Position, Retention, RetentionError, Rules};
use crate::rotation::Rotation;
use crate::rotation::attempt::{open_jar, seal_jar};
use crate::rotation::late::LateSecrets;
use crate::sinks::Sinks;
use crate::supervisor::Supervisor;
use crate::telemetry;
use crate::token::{self, Reach, Scope};
use crate::vault::{Vault, VaultError};
use crate::web;

/// A column of a table.
const LONGEST_TOKEN_NAME: usize = 64;

/// What alerts about the host itself are about.
const HOST_SUBJECTS: [&str; 5] = ["database", "disk", "clock", "scheduler", "backup"];

/// How often idle workers are looked for, and half the shortest idle time that is honoured.
const IDLE_LOOK: Duration = Duration::from_secs(15);

/// What the writing thread may take for a command that does nothing, behind all that waits: a
/// slow disk takes seconds, and the five tries of a failing one six.
const WRITER_TURN: Duration = Duration::from_secs(60);

/// How often a host that others have admitted looks whether it still is: one row, by its key.
const REVOKED_LOOK: Duration = Duration::from_secs(5);

/// How often the daemon looks for reports that end.
const PRUNE: Duration = Duration::from_secs(60);

/// How often a host looks whether a duty has become its own.
const NOT_ON_DUTY: Duration = Duration::from_secs(2);

/// One step of a clean-up, the daemon's or by hand: short enough that whoever waits for the other
/// to be done, or watches it, sees it move.
const PRUNE_STEP: Effort = Effort { time: Duration::from_secs(1), credentials: u32::MAX };

/// The counts of so many credentials a minute are read through by the daemon, a second's work of
/// one thread at ten thousand reports each; what is too old goes at once.
const COUNTED: Effort = Effort { time: Duration::from_secs(10), credentials: 1_000 };

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Move(#[from] MovingError),
    #[error("{0}")]
    NotNew(String),
    #[error("http.listen is {listen}, which can't be had; hint: another program may have it")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// An opened installation.
#[derive(Debug)]
pub struct Host {
    pub home: Home,
    pub config: Live,
    pub vault: Arc<Vault>,
    /// Of a host that was admitted by others; None: the home has the master key itself.
    pub host_id: Option<String>,
    pub writer: Writer,
    pub supervisor: Supervisor,
    pub registry: Arc<Registry>,
    pub rotation: Arc<Rotation>,
    /// Set once the port is open.
    http: OnceLock<Arc<web::Port>>,
    pub retention: Arc<Retention>,
    pub alerts: Arc<Alerts>,
    /// The configuration's text when this was opened.
    started_with: String,
    pub sinks: Arc<Sinks>,
    pub fleet: Arc<Fleet>,
    thread: WriterThread,
}

/// What may differ between the daemon, the tools of plugin authors, a test and a benchmark.
#[derive(Clone)]
pub struct HostOptions {
    /// The binary that workers are started from.
    pub executable: PathBuf,
    /// Stands between the egress and the network; a daemon has none.
    pub between: Option<Arc<Between>>,
}

impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions").field("executable", &self.executable).finish_non_exhaustive()
    }
}

impl Default for HostOptions {
    fn default() -> Self {
        // The very binary that runs, even if its file was replaced meanwhile.
        Self { executable: PathBuf::from("/proc/self/exe"), between: None }
    }
}

/// Makes a home: the folders, the master key, the configuration and an up-to-date database.
///
/// # Errors
/// Where it is a home already, or what is there is half of one.
pub fn make_home(home: &Home) -> Result<(), OpenError> {
    home.make_folders()?;
    // The key comes last of what marks a home, so that a half-made one isn't taken for whole.
    if !home.config().exists() {
        config::write_atomically(&home.config(), config::TEMPLATE.as_bytes())
            .map_err(|source| OpenError::Io { what: "config.toml can't be written", source })?;
    }
    // A key that was made elsewhere beforehand is no home yet.
    let made =
        if home.own_master_key() == home.master_key() { home.exists() } else { home.database().exists() };
    if made {
        return Err(OpenError::NotNew(format!(
            "{} is a home already; hint: nothing was changed, `keywheel status` shows it",
            home.root().display()
        )));
    }
    let lock = HomeLock::acquire(&home.lock())?;
    let (writer, thread) = Writer::start(home.database(), lock)?;
    drop(writer);
    thread.join();
    let sealed = Reader::open(home.database())?.counts()?.credentials;
    if sealed > 0 {
        return Err(OpenError::NotNew(format!(
            "the database holds {sealed} credential{} sealed with a master key that isn't at {}; hint: put the backup of it back",
            if sealed == 1 { "" } else { "s" },
            home.master_key().display()
        )));
    }
    let taken = || {
        OpenError::NotNew(format!(
            "the store belongs to an installation whose master key isn't at {}; hint: `keywheel host join` lets this machine in, or put the backup of the key there",
            home.master_key().display()
        ))
    };
    let shared = match home.database() {
        Store::File(_) => None,
        Store::Server(store) => Some(store),
    };
    let is_new = !home.exists();
    if is_new && shared.is_some() && Reader::open(home.database())?.installation(MARKER)?.is_some() {
        return Err(taken());
    }
    let vault = if is_new { Vault::create(&home.master_key())? } else { keys::open(home)?.vault };
    match shared.map(|store| keys::claim(&store, &vault)) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(KeyError::Vault(VaultError::WrongKey))) => {
            // Another host was faster, so nothing was ever sealed with this one.
            if is_new {
                let _ = std::fs::remove_file(home.master_key());
            }
            Err(taken())
        }
        Some(Err(error)) => Err(error.into()),
    }
}

/// Returns once this host was revoked, with what is to be said of it. A store that can't be asked
/// revokes nobody.
pub async fn until_revoked(home: Home, host_id: String) -> KeyError {
    loop {
        tokio::time::sleep(REVOKED_LOOK).await;
        let (asked, id) = (home.clone(), host_id.clone());
        let look = tokio::task::spawn_blocking(move || {
            Ok::<_, KeyError>(Reader::open(asked.database())?.host_is_revoked(&id)?)
        });
        match look.await {
            // Why is the store's to say; one that can't be asked for that revokes nobody either.
            Ok(Ok(true)) => {
                if let Err(
                    error @ (KeyError::Asking { .. } | KeyError::Revoked { .. } | KeyError::Unknown { .. }),
                ) = keys::open(&home)
                {
                    return error;
                }
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "whether this host was revoked can't be asked"),
            Err(error) => tracing::error!(%error, "whether this host was revoked was not asked"),
        }
    }
}

impl Host {
    /// Opens the home for writing, with the folder scanned once.
    ///
    /// # Errors
    /// What stops it: no home, another host, a newer database, the wrong master key.
    pub async fn open(home: Home, config: Config, options: HostOptions) -> Result<Self, OpenError> {
        home.require()?;
        home.make_folders()?;
        let lock = HomeLock::acquire(&home.lock())?;
        // Whoever moved its store may have died before the last step.
        let (home, config) = if moving::take_up(&home)? {
            tracing::info!("a move to another store was brought to its end");
            let home = home.looked_at_anew();
            let config = Config::load(&home)?;
            (home, config)
        } else {
            (home, config)
        };
        keys::prepare(&home)?;
        let keys::Opened { vault, host_id } = keys::open(&home)?;
        let vault = Arc::new(vault);
        let (writer, thread) = Writer::start(home.database(), lock)?;
        let own_id = fleet::host_id(home.root(), host_id.as_deref())
            .map_err(|source| OpenError::Io { what: "host-id can't be read or made", source })?;
        let joined_as = match &host_id {
            None => None,
            Some(id) => {
                let rows = Reader::open(home.database())?.host_keys()?;
                rows.into_iter().find(|row| row.host_id == *id).map(|row| row.name)
            }
        };
        let marker = writer.remember(MARKER, vault.marker()?).await?;
        vault.check_marker(&marker)?;
        let extra_ca_pem = match &config.extra_ca_file {
            Some(path) => Some(
                std::fs::read(path)
                    .map_err(|source| OpenError::Io { what: "extra_ca_file can't be read", source })?,
            ),
            None => None,
        };
        let of_egress = Arc::clone(&vault);
        let mut egress = Egress::new(
            EgressOptions { extra_ca_pem: extra_ca_pem.clone() },
            Arc::new(move |secret: &Secret| of_egress.fingerprint(secret)),
        )?;
        if let Some(between) = options.between {
            egress = egress.with_between(between);
        }
        let paranoid = config.isolation == Isolation::Paranoid;
        let supervisor = Supervisor::new(&options.executable, config.isolation.requires(), paranoid)
            .map_err(|source| OpenError::Io { what: "the spawner can't be started", source })?;
        let providers = Arc::new(Providers::default());
        let registry = Registry::new(
            &home,
            supervisor.clone(),
            Arc::clone(&vault),
            writer.clone(),
            Arc::clone(&providers),
            config.plugin_policy,
        );
        let rotation = Rotation::new(
            supervisor.clone(),
            Arc::new(egress),
            Arc::clone(&vault),
            writer.clone(),
            providers,
            // The process's part keeps it apart from the one before it.
            format!("{own_id}:{}:{}", std::process::id(), now()),
            config.host.labels.clone(),
            LateSecrets::new(home.late()),
            config.services.clone(),
        );
        registry.rescan().await?;
        for service in Reader::open(home.database())?.paused_services()? {
            rotation.set_paused(&service, true);
        }
        let http = OnceLock::new();
        let retention = Arc::new(Retention::new(home.database(), writer.clone()));
        let started_with = config.text.clone();
        let config = Live::new(config);
        let fleet = Arc::new(Fleet::new(own_id, joined_as, writer.clone(), home.database(), config.clone()));
        let alerts = Arc::new(Alerts::new(
            &home,
            config.clone(),
            writer.clone(),
            Arc::clone(&registry),
            supervisor.clone(),
            Arc::clone(&rotation),
            Arc::clone(&fleet),
            extra_ca_pem.clone(),
        )?);
        let waiting = Arc::clone(&rotation);
        let sinks = Sinks::new(
            home.database(),
            fleet.sink_suffix(),
            Arc::clone(&vault),
            writer.clone(),
            config.clone(),
            extra_ca_pem,
            move || waiting.wake(),
        );
        Ok(Self {
            home,
            config,
            vault,
            host_id,
            writer,
            supervisor,
            registry,
            rotation,
            retention,
            alerts,
            sinks,
            fleet,
            http,
            started_with,
            thread,
        })
    }

    /// Ends the workers, then waits until everything sent to the database is committed.
    pub async fn close(self) {
        let Self { writer, supervisor, registry, rotation, retention, alerts, sinks, fleet, thread, .. } =
            self;
        supervisor.close().await;
        drop((writer, registry, rotation, retention, alerts, sinks, fleet));
        // The thread ends when the last writer is gone; tasks just told to stop may hold one
        // for a moment longer.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }

    pub fn reader(&self) -> Result<Reader, DbError> {
        Reader::open(self.home.database())
    }

    /// Carries out one operation. The same for the control socket and for a command that works
    /// without a daemon.
    ///
    /// # Errors
    /// A refusal in words, with its kind.
    pub async fn carry_out(&self, operation: Operation) -> Result<Outcome, Refusal> {
        match operation {
            Operation::Status => Ok(Outcome::Status {
                workers: self.supervisor.status(),
                plugins: self.registry.status(),
                in_flight: self.rotation.in_flight(),
                http: self.http.get().map(|port| port.status()),
                held: self.rotation.holds(),
                clock_behind: self.rotation.egress.host_is_behind(),
                not_writable: self.writer.progress().borrow().failing.clone(),
            }),
            Operation::Vitals => Ok(Outcome::Vitals(Box::new(self.vitals()))),
            Operation::PluginList => {
                self.registry.rescan_until_still().await?;
                Ok(Outcome::Plugins(self.registry.status()))
            }
            Operation::PluginCheck { path } => Ok(Outcome::Plugins(vec![self.registry.check(&path).await?])),
            Operation::PluginInstall { path } => {
                Ok(Outcome::Plugins(vec![self.registry.install(&path).await?]))
            }
            Operation::PluginWish { service } => {
                Ok(Outcome::Wish(Box::new(self.registry.wish(&service).await?)))
            }
            Operation::PluginApprove { service, digest, signer } => {
                let wish = self.registry.approve(&service, &digest, signer.as_deref()).await?;
                Ok(Outcome::Wish(Box::new(wish)))
            }
            Operation::PluginUnpark { service } => {
                let parked = self.registry.unpark(&service).await?;
                self.rotation.wake();
                Ok(Outcome::Unparked(parked))
            }
            Operation::PluginPause { service, paused } => {
                self.writer.set_provider_paused(&service, paused).await.map_err(unknown_service)?;
                if !paused {
                    // What fell due meanwhile, before anything of it is claimed.
                    self.rotation.catch_up(std::slice::from_ref(&service)).await?;
                }
                self.rotation.set_paused(&service, paused);
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::PluginEvery { service, seconds } => {
                self.writer.set_provider_cadence(&service, seconds).await.map_err(unknown_service)?;
                self.rotation.providers.set_cadence(&service, seconds);
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::PluginTrust { key, name } => {
                Ok(Outcome::Trusted(self.registry.trust(&key, name).await?))
            }
            Operation::PluginDistrust { key_id } => {
                Ok(Outcome::Lines(vec![self.registry.distrust(&key_id).await?]))
            }
            Operation::PluginRemove { service } => {
                let file = self.registry.remove(&service).await?;
                Ok(Outcome::Lines(vec![format!(
                    "removed {file}; credentials and reports of `{service}` stay"
                )]))
            }
            Operation::CredentialAdd(new) => {
                self.add(*new).await?;
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::CredentialImport { credential_id, keys, other_account } => {
                self.import(&credential_id, keys, other_account).await?;
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::CredentialRemove { credential_id } => {
                self.writer.remove_credential(&credential_id).await?;
                Ok(Outcome::Done)
            }
            Operation::CredentialPause { credential_id, paused } => {
                self.writer.set_paused(&credential_id, paused, now()).await?;
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::CredentialRollback { credential_id, generation } => {
                let restored = self.roll_back(&credential_id, generation).await?;
                self.rotation.wake();
                Ok(Outcome::Restored(restored))
            }
            Operation::CredentialSet(change) => {
                let windows = change.quiet.as_deref().unwrap_or_default();
                Quiet::parse(windows).map_err(|error| Refusal::bad_input(error.to_string()))?;
                let or_default = |seconds: u32| (seconds > 0).then_some(seconds);
                let id = change.credential_id;
                let change = ScheduleChange {
                    validate_interval: change.validate_interval.map(or_default),
                    max_age: change.max_age.map(or_default),
                    idle_limit: change.idle_limit.map(or_default),
                    quiet: change.quiet,
                };
                self.writer.set_schedule(&id, change).await?;
                self.rotation.wake();
                Ok(Outcome::Done)
            }
            Operation::CredentialRun { credential_id, action, now } => {
                self.check_may_ask(&credential_id)?;
                let report = self.rotation.run_one_now(&credential_id, action, now).await?;
                Ok(Outcome::Report(Box::new(Arc::unwrap_or_clone(report))))
            }
            Operation::WorkerTokenCreate { service, name, expires_seconds } => {
                let token = self.create_worker_token(service, name, expires_seconds).await?;
                Ok(Outcome::WorkerToken(Box::new(token)))
            }
            Operation::WorkerTokenRevoke { token_id } => {
                self.writer.revoke_worker_token(&token_id).await?;
                Ok(Outcome::Done)
            }
            Operation::ApiTokenCreate { name, reach, scopes, expires_seconds } => {
                let token = self.create_api_token(name, reach, scopes, expires_seconds).await?;
                Ok(Outcome::ApiToken(Box::new(token)))
            }
            Operation::ApiTokenRevoke { token_id } => {
                self.writer.revoke_api_token(&token_id).await?;
                Ok(Outcome::Done)
            }
            Operation::DashboardLink => {
                let (listening, token) = self.port()?.dashboard_link().map_err(|error| {
                    Refusal::internal(format!("the system gives no random bytes: {error}"))
                })?;
                let seconds = limits::DASHBOARD_LINK.as_secs();
                let link = DashboardLink { listening, token: SecretInput::new(&token), seconds };
                Ok(Outcome::DashboardLink(Box::new(link)))
            }
            Operation::DashboardSignOut => Ok(Outcome::SignedOut(self.port()?.sign_out_all())),
            Operation::CredentialSelfTest { credential_id } => {
                let reader = self.reader().map_err(|error| Refusal::internal(error.to_string()))?;
                Ok(Outcome::SelfTested(self.rotation.self_test(reader, &credential_id).await?))
            }
            Operation::CredentialPlan { credential_id } => {
                let reader = self.reader().map_err(|error| Refusal::internal(error.to_string()))?;
                let planned = self.rotation.preview(reader, &credential_id).await?;
                Ok(Outcome::Planned(Box::new(planned)))
            }
            Operation::AlertTest { channel } => {
                Ok(Outcome::AlertTested(self.alerts.test(channel.as_deref()).await?))
            }
            Operation::AlertSnooze { subject, seconds } => {
                let subject = self.alert_subject(&subject)?;
                let until = now().saturating_add(Millis::from(seconds) * 1_000);
                self.writer.snooze_alert(&subject, until).await?;
                Ok(Outcome::Snoozed { subject, until: Some(until) })
            }
            Operation::AlertUnsnooze { subject } => {
                let subject = self.snoozed_subject(&subject)?;
                self.writer.unsnooze_alert(&subject).await?;
                Ok(Outcome::Snoozed { subject, until: None })
            }
            Operation::Reload => Ok(Outcome::Reloaded(self.reload()?)),
            Operation::Configuration => Ok(Outcome::Configuration {
                started: self.started_with.clone(),
                now: self.config.get().text.clone(),
            }),
            Operation::SinkSync { sink } => {
                self.sinks.sync(&sink).await?;
                Ok(Outcome::Done)
            }
            Operation::ConsumerAdd { credential_id, name, wait_seconds } => {
                if !is_id(&name) {
                    return Err(Refusal::bad_input(format!(
                        "a consumer can't be named {name:?}; allowed: {ID_RULE}"
                    )));
                }
                let longest = limits::LONGEST_ACKNOWLEDGE_WAIT;
                if wait_seconds == 0 || wait_seconds > longest {
                    return Err(Refusal::bad_input(format!(
                        "a wait of {wait_seconds} s; allowed: 1 s to {} days",
                        longest / 86_400
                    )));
                }
                self.writer.add_consumer(&credential_id, &name, wait_seconds).await?;
                Ok(Outcome::Done)
            }
            Operation::ConsumerRemove { credential_id, name } => {
                if self.writer.remove_consumer(&credential_id, &name).await? {
                    self.rotation.wake();
                }
                Ok(Outcome::Done)
            }
            Operation::CredentialAck { credential_id, consumer, generation } => {
                let acknowledged = self.writer.acknowledge(&credential_id, &consumer, generation).await?;
                if acknowledged.released {
                    self.rotation.wake();
                }
                Ok(Outcome::Acknowledged { current: acknowledged.current })
            }
            Operation::ReportsPrune { rules, archive, from } => {
                Ok(Outcome::Pruned(self.retention.prune(&rules, archive, from, PRUNE_STEP).await?))
            }
        }
    }

    /// Refuses what only hosts with other labels may do.
    fn check_may_ask(&self, credential_id: &str) -> Result<(), Refusal> {
        let reader = self.reader().map_err(|error| Refusal::internal(error.to_string()))?;
        let row = reader.credential(credential_id).map_err(|error| Refusal::internal(error.to_string()))?;
        let Some(service) = row.map(|row| row.service) else { return Ok(()) };
        match self.rotation.lacks(&service) {
            None => Ok(()),
            Some(label) => Err(Refusal::bad_input(format!(
                "`{service}` is asked only by hosts with {label} (services.{service}.only_on in config.toml), which this one hasn't; hint: `keywheel host list` shows who has, run it there"
            ))),
        }
    }

    /// What an alert is about, in full, from what a person types: a credential, a service, or
    /// the subject that `alert list` shows.
    fn alert_subject(&self, text: &str) -> Result<String, Refusal> {
        let internal = |error: &dyn fmt::Display| Refusal::internal(error.to_string());
        let reader = self.reader().map_err(|error| internal(&error))?;
        let is_credential = |id: &str| -> Result<bool, Refusal> {
            Ok(reader.credential(id).map_err(|error| internal(&error))?.is_some())
        };
        let is_service = |name: &str| -> Result<bool, Refusal> {
            let has_provider = reader.provider(name).map_err(|error| internal(&error))?.is_some();
            Ok(has_provider || reader.has_credentials(name).map_err(|error| internal(&error))?)
        };
        let known = reader.alert_states().map_err(|error| internal(&error))?;
        let is_known = known.iter().any(|state| state.subject == text)
            || match text.split_once(':') {
                Some(("credential" | "expiry", id)) => is_credential(id)?,
                Some(("service" | "worker", name)) => is_service(name)?,
                Some(("host", name)) => HOST_SUBJECTS.contains(&name),
                _ => false,
            };
        if is_known {
            return Ok(text.to_owned());
        }
        match (is_credential(text)?, is_service(text)?) {
            (true, true) => Err(Refusal::bad_input(format!(
                "`{text}` is a credential and a service; hint: `credential:{text}` or `service:{text}`"
            ))),
            (true, false) => Ok(format!("credential:{text}")),
            (false, true) => Ok(format!("service:{text}")),
            (false, false) => Err(Refusal::not_found(format!(
                "no alert is about `{text}`; allowed: a credential, a service, host:{}, or a subject of `keywheel alert list`",
                HOST_SUBJECTS.join(", host:")
            ))),
        }
    }

    /// The same among what is snoozed, for that may be about what isn't kept any more.
    fn snoozed_subject(&self, text: &str) -> Result<String, Refusal> {
        let internal = |error: &dyn fmt::Display| Refusal::internal(error.to_string());
        let reader = self.reader().map_err(|error| internal(&error))?;
        let snoozed = reader.snoozes(now()).map_err(|error| internal(&error))?;
        let is_meant = |subject: &str| {
            subject == text
                || subject.strip_prefix("credential:") == Some(text)
                || subject.strip_prefix("service:") == Some(text)
        };
        let found: Vec<_> = snoozed.into_iter().filter(|snooze| is_meant(&snooze.subject)).collect();
        match found.as_slice() {
            [one] => Ok(one.subject.clone()),
            [] => Err(Refusal::not_found(format!(
                "`{text}` is not snoozed; hint: `keywheel alert list` shows what is"
            ))),
            _ => Err(Refusal::bad_input(format!(
                "`{text}` is a credential and a service, and both are snoozed; hint: `credential:{text}` or `service:{text}`"
            ))),
        }
    }

    fn vitals(&self) -> control::Vitals {
        let mut plugins: BTreeMap<String, u64> =
            PluginState::ALL.iter().map(|state| (state.as_str().to_owned(), 0)).collect();
        for plugin in self.registry.status() {
            *plugins.entry(plugin.state.as_str().to_owned()).or_default() += 1;
        }
        control::Vitals {
            workers: self.supervisor.status(),
            plugins,
            services: self.rotation.providers.services().into_iter().collect(),
            paused: self.rotation.paused(),
            held: self.rotation.holds().into_iter().map(|(service, _)| service).collect(),
            in_flight: self.rotation.in_flight(),
            clock_behind: self.rotation.egress.host_is_behind(),
            turned: self.rotation.turned().map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Reads the configuration anew and puts in force what can change while the daemon runs.
    ///
    /// # Errors
    /// One that can't be used, in words. Nothing has changed then.
    pub fn reload(&self) -> Result<Reloaded, Refusal> {
        let new = Config::load(&self.home).map_err(|error| {
            tracing::error!(%error, "the configuration can't be used, the one before stays in force");
            Refusal::bad_input(format!("{error}; nothing was changed"))
        })?;
        let before = self.config.get();
        let reloaded = reload::compare(&self.started_with, &before.text, &new.text);
        self.rotation.set_rules(new.services.clone());
        self.config.replace(reload::in_force(&before, new));
        for line in reloaded.words() {
            tracing::info!("configuration read anew, {line}");
        }
        Ok(reloaded)
    }

    /// Whether scheduler and writer turn, asked of them.
    async fn pulse(&self) -> Pulse {
        let writer = tokio::time::timeout(WRITER_TURN, self.writer.turn()).await;
        Pulse {
            scheduler: self.rotation.turned(),
            // An error is an answer; that the thread has ended is none.
            writer: matches!(writer, Ok(answer) if !matches!(answer, Err(WriteError::Closed))),
            in_flight: self.rotation.in_flight(),
            failing: self.writer.progress().borrow().failing.clone(),
        }
    }

    /// The open port, of a daemon that has one.
    fn port(&self) -> Result<&web::Port, Refusal> {
        let none = "no dashboard is served; hint: it needs `http.listen` in config.toml and a daemon that was started since";
        self.http.get().map(|port| &**port).ok_or_else(|| Refusal::not_found(none))
    }

    async fn create_worker_token(
        &self,
        service: String,
        name: String,
        expires_seconds: Option<u32>,
    ) -> Result<WorkerToken, Refusal> {
        registry::manifest::check_service_name(&service)
            .map_err(|error| Refusal::bad_input(error.to_string()))?;
        check_token_name(&name)?;
        let token = token::Kind::Worker.make().map_err(no_chance)?;
        let expires_at = expires_seconds.map(|seconds| now() + Millis::from(seconds) * 1_000);
        let served = self.rotation.providers.get(&service).is_some();
        self.writer
            .create_worker_token(NewWorkerToken {
                token_id: token.id.clone(),
                name,
                service,
                tag: self.vault.tag(token::Kind::Worker.tagged(&token.text).expose()),
                expires_at,
            })
            .await?;
        Ok(WorkerToken { token_id: token.id, token: SecretInput::new(&token.text), expires_at, served })
    }

    async fn create_api_token(
        &self,
        name: String,
        reach: Reach,
        mut scopes: Vec<Scope>,
        expires_seconds: Option<u32>,
    ) -> Result<ApiToken, Refusal> {
        check_token_name(&name)?;
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() {
            return Err(Refusal::bad_input("a token needs a scope; allowed: read, state, ack, metrics"));
        }
        let needs_reach = scopes.iter().any(|scope| *scope != Scope::Metrics);
        let reach = self.check_reach(reach, needs_reach)?;
        let token = token::Kind::Api.make().map_err(no_chance)?;
        let expires_at = expires_seconds.map(|seconds| now() + Millis::from(seconds) * 1_000);
        self.writer
            .create_api_token(NewApiToken {
                token_id: token.id.clone(),
                name,
                tag: self.vault.tag(token::Kind::Api.tagged(&token.text).expose()),
                scopes,
                reach,
                expires_at,
            })
            .await?;
        Ok(ApiToken { token_id: token.id, token: SecretInput::new(&token.text), expires_at })
    }

    /// What a token is to reach, where that can be: a name that nobody has is a slip more often
    /// than a plan.
    fn check_reach(&self, reach: Reach, is_needed: bool) -> Result<Reach, Refusal> {
        match reach {
            Reach::Nothing if is_needed => Err(Refusal::bad_input(
                "a token for secrets, states or acknowledgements must reach some; allowed: credentials, a service or a profile",
            )),
            Reach::Nothing => Ok(Reach::Nothing),
            _ if !is_needed => Err(Refusal::bad_input(
                "a token for metrics alone reaches no credential; hint: leave credentials, service and profile out",
            )),
            Reach::Credentials(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                let most = limits::API_CREDENTIALS_PER_TOKEN;
                if ids.is_empty() || ids.len() > most {
                    return Err(Refusal::bad_input(format!(
                        "a token can't name {} credentials; allowed: 1 to {most}; hint: a service or a profile has any number",
                        ids.len()
                    )));
                }
                let reader = self.reader().map_err(|error| Refusal::internal(error.to_string()))?;
                for id in &ids {
                    let found =
                        reader.credential(id).map_err(|error| Refusal::internal(error.to_string()))?;
                    if found.is_none() {
                        return Err(Refusal::not_found(format!("no credential `{id}`")));
                    }
                }
                Ok(Reach::Credentials(ids))
            }
            Reach::Service(service) => {
                registry::manifest::check_service_name(&service)
                    .map_err(|error| Refusal::bad_input(error.to_string()))?;
                Ok(Reach::Service(service))
            }
            Reach::Profile(profile) if is_id(&profile) => Ok(Reach::Profile(profile)),
            Reach::Profile(profile) => {
                Err(Refusal::bad_input(format!("{profile:?} is no profile; allowed: {ID_RULE}")))
            }
        }
    }

    async fn add(&self, new: control::AddCredential) -> Result<(), Refusal> {
        let provider = self.rotation.providers.get(&new.service).ok_or_else(|| {
            let next = catalogue::next_step(&new.service);
            Refusal::not_found(format!("no plugin serves `{}`; hint: {next}", new.service))
        })?;
        let resolved = registry::manifest::resolve(&provider.manifest, &new.settings, &new.private_hosts)
            .map_err(|error| Refusal::bad_input(error.to_string()))?;
        if let Some(method) = &new.method
            && !resolved.methods.iter().any(|known| known.name == *method)
        {
            let known: Vec<_> = resolved.methods.iter().map(|method| method.name.as_str()).collect();
            let nearest = registry::manifest::nearest(method, known.iter().copied());
            return Err(Refusal::bad_input(format!(
                "`{}` has no method `{method}`; known: {}{}",
                new.service,
                known.join(", "),
                registry::manifest::did_you_mean(&nearest)
            )));
        }
        Quiet::parse(&new.quiet).map_err(|error| Refusal::bad_input(error.to_string()))?;
        let jar = self.jar(new.keys);
        let lost = crate::rotation::decide::lost_keys(&jar, &resolved.keys);
        if !lost.is_empty() {
            return Err(Refusal::bad_input(format!("required key `{}` is missing", lost.join("`, `"))));
        }
        let expires = earliest_expiry(&jar, &resolved.keys);
        let keys = seal_jar(&self.vault, &new.credential_id, 1, &jar)
            .map_err(|error| Refusal::internal(error.to_string()))?;
        self.writer
            .add_credential(NewCredential {
                credential_id: new.credential_id,
                profile_id: new.profile_id,
                service: new.service,
                plugin_digest: Some(provider.digest.clone()),
                settings: new.settings,
                private_hosts: new.private_hosts,
                method: new.method,
                validate_interval: new.validate_interval,
                max_age: new.max_age,
                identity: new.identity,
                idle_limit: new.idle_limit,
                quiet: new.quiet,
                keys,
                expires,
                first_due: now(),
                // A first rotation is never a surprise: the first thing done is to look.
                first_action: Action::Validate,
            })
            .await?;
        Ok(())
    }

    async fn import(
        &self,
        credential_id: &str,
        keys: Vec<control::KeyInput>,
        other_account: bool,
    ) -> Result<(), Refusal> {
        let reader = self.reader().map_err(|error| Refusal::internal(error.to_string()))?;
        let row = reader
            .credential(credential_id)
            .map_err(|error| Refusal::internal(error.to_string()))?
            .ok_or_else(|| Refusal::not_found(format!("no credential `{credential_id}`")))?;
        if row.external {
            return Err(WriteError::External { credential_id: row.credential_id }.into());
        }
        let mapping = reader
            .provider(&row.service)
            .map_err(|error| Refusal::internal(error.to_string()))?
            .map(|provider| provider.key_mapping)
            .unwrap_or_default();
        let generation = row.last_generation + 1;
        let jar = self.jar(keys);
        let expires = earliest_expiry(&jar, &mapping);
        let keys = seal_jar(&self.vault, credential_id, generation, &jar)
            .map_err(|error| Refusal::internal(error.to_string()))?;
        self.writer
            .replace_generation(NewGeneration {
                credential_id: credential_id.to_owned(),
                generation,
                keys,
                expires,
                due: now(),
                action: Action::Validate,
                unpin_identity: other_account,
                restored_from: None,
                note: None,
            })
            .await?;
        Ok(())
    }

    /// Makes an earlier generation's keys current again, sealed anew: a seal binds a value to
    /// its generation. The first thing that follows is to look whether they live.
    async fn roll_back(&self, credential_id: &str, generation: u32) -> Result<u32, Refusal> {
        let internal = |error: &dyn std::fmt::Display| Refusal::internal(error.to_string());
        let reader = self.reader().map_err(|error| internal(&error))?;
        let row = reader
            .credential(credential_id)
            .map_err(|error| internal(&error))?
            .ok_or_else(|| Refusal::not_found(format!("no credential `{credential_id}`")))?;
        if row.external {
            return Err(WriteError::External { credential_id: row.credential_id }.into());
        }
        let generations = reader.generations(credential_id).map_err(|error| internal(&error))?;
        restorable(credential_id, &generations, Some(generation))?;
        let sealed = reader
            .sealed_generation_of(credential_id, generation)
            .map_err(|error| internal(&error))?
            .ok_or_else(|| Refusal::not_found(format!("`{credential_id}` has no generation {generation}")))?;
        let jar = open_jar(&self.vault, credential_id, &sealed).map_err(|error| internal(&error))?;
        let mapping = reader
            .provider(&row.service)
            .map_err(|error| internal(&error))?
            .map(|provider| provider.key_mapping)
            .unwrap_or_default();
        let next = row.last_generation + 1;
        self.writer
            .replace_generation(NewGeneration {
                credential_id: credential_id.to_owned(),
                generation: next,
                keys: seal_jar(&self.vault, credential_id, next, &jar).map_err(|error| internal(&error))?,
                expires: earliest_expiry(&jar, &mapping),
                due: now(),
                action: Action::Validate,
                unpin_identity: false,
                restored_from: Some(generation),
                note: Some(AuditEntry {
                    actor: Actor::Operator,
                    action: "rolled-back",
                    service: Some(row.service),
                    file: None,
                    digest: None,
                    signer: None,
                    detail: serde_json::json!({
                        "credential": credential_id, "restored": generation, "replaced": row.current_generation,
                        "generation": next,
                    }),
                }),
            })
            .await?;
        Ok(next)
    }

    fn jar(&self, keys: Vec<control::KeyInput>) -> Jar {
        let keys = keys
            .into_iter()
            .map(|key| {
                let secret = key.value.into_secret();
                Key {
                    fingerprint: self.vault.fingerprint(&secret),
                    name: key.name,
                    secret,
                    expires: key.expires,
                    cookie: key.cookie,
                }
            })
            .collect();
        Jar { keys }
    }
}

fn check_token_name(name: &str) -> Result<(), Refusal> {
    let is_short = !name.is_empty() && name.len() <= LONGEST_TOKEN_NAME;
    if is_short && !name.contains(registry::manifest::is_deceptive) {
        return Ok(());
    }
    Err(Refusal::bad_input(format!(
        "a token can't be named {name:?}; allowed: 1 to {LONGEST_TOKEN_NAME} bytes of printable text"
    )))
}

fn no_chance(error: impl fmt::Display) -> Refusal {
    Refusal::internal(format!("the system gives no random bytes: {error}"))
}

/// Which generation a rollback brings back: the one that was named, or the newest that was in
/// force before this one.
///
/// # Errors
/// Where it can't be, with what can.
pub fn restorable(
    credential_id: &str,
    generations: &[GenerationRow],
    wanted: Option<u32>,
) -> Result<u32, Refusal> {
    let possible = || generations.iter().filter(|row| row.state == "previous" && !row.keys.is_empty());
    let names: Vec<String> = possible().map(|row| row.generation.to_string()).collect();
    let can = match names.is_empty() {
        true => {
            String::from("nothing can be restored; hint: `keywheel credential import` brings new secrets")
        }
        false => format!("what can be restored: {}", names.join(", ")),
    };
    let Some(wanted) = wanted else {
        return possible().map(|row| row.generation).next().ok_or_else(|| {
            Refusal::bad_input(format!("`{credential_id}` has no earlier generation: {can}"))
        });
    };
    let why = match generations.iter().find(|row| row.generation == wanted) {
        None => "is not there, or was kept no longer",
        Some(row) if row.state == "current" => "is the one in force",
        Some(row) if row.state == "pending" => "waits for its verdict, which the next attempt asks for",
        Some(row) if row.state == "dropped" || row.keys.is_empty() => "was dropped, and its keys with it",
        Some(_) => return Ok(wanted),
    };
    Err(Refusal::bad_input(format!("generation {wanted} of `{credential_id}` {why}; {can}")))
}

fn unknown_service(error: WriteError) -> Refusal {
    match error {
        WriteError::NotFound { id, .. } => Refusal::not_found(format!(
            "no plugin ever served `{id}`; hint: `keywheel plugin list` shows what there is"
        )),
        error => error.into(),
    }
}

/// When the first of the mapped keys ends. Other cookies travel along, and their end says
/// nothing of the session.
fn earliest_expiry(jar: &Jar, mapping: &[KeySpec]) -> Option<Millis> {
    let mapped = jar.keys.iter().filter(|key| mapping.iter().any(|spec| spec.name == key.name));
    mapped.filter_map(|key| key.expires).min()
}

/// Runs the daemon until `stop`.
///
/// # Errors
/// Where the control socket can't be made.
pub async fn serve(
    host: Host,
    stop: watch::Receiver<bool>,
    ready: impl FnOnce(&Host),
) -> Result<(), OpenError> {
    let host = Arc::new(host);
    telemetry::start(&host.config.get().telemetry);
    let listener = control::listen(&host.home.socket())
        .map_err(|source| OpenError::Io { what: "the control socket can't be made", source })?;
    let web = open_port(&host).await?;
    // Before anything new is claimed: what an earlier host began is ended first.
    let interrupted = host.rotation.reclaim().await?;
    // And what fell due while nobody ran is put in line.
    host.rotation.catch_up(&host.rotation.providers.services()).await?;
    let reader = host.reader()?;
    for service in host.rotation.providers.services() {
        // An index probe each: counting a million credentials would hold the start up.
        if !reader.has_credentials(&service)? {
            continue;
        }
        let supervisor = host.supervisor.clone();
        // Every service with credentials gets its worker at once, so that each announces
        // itself after a restart whether or not something is due.
        tokio::spawn(async move {
            if let Err(error) = supervisor.warm(&service).await {
                tracing::warn!(service, %error, "worker not started");
            }
        });
    }
    drop(reader);
    let scheduler = tokio::spawn(Arc::clone(&host.rotation).serve(interrupted, stop.clone()));
    let watcher = tokio::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        async move {
            let plugins = host.home.plugins();
            registry::watch(Arc::clone(&host.registry), &plugins, &host.config, stop).await;
        }
    });
    let keeper = tokio::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        async move { keep_house(&host, stop).await }
    });
    let pruner = tokio::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        async move { prune(&host, stop).await }
    });
    let alerts = tokio::spawn(Arc::clone(&host.alerts).serve(stop.clone()));
    let fleet = tokio::spawn(Arc::clone(&host.fleet).serve(
        Arc::clone(&host.rotation),
        Arc::clone(&host.registry),
        stop.clone(),
    ));
    let reloader = tokio::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        async move { reload_on_hangup(&host, stop).await }
    });
    let heart = tokio::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        async move { notify_systemd::keep_alive(|| host.pulse(), stop).await }
    });
    // It ends last: what the others still bring about is delivered too.
    let (end_sinks, sinks_stop) = watch::channel(false);
    let sinks = tokio::spawn(Arc::clone(&host.sinks).serve(sinks_stop));
    let control = tokio::spawn(control::serve(listener, Arc::clone(&host), stop.clone()));
    let web_stop = stop.clone();
    let web = tokio::spawn(async move {
        if let Some(web) = web {
            web.serve(web_stop).await;
        }
    });
    ready(&host);
    let mut stop = stop;
    // An error means the sender is gone, which ends the daemon just as well.
    let _ = stop.wait_for(|stop| *stop).await;
    tracing::info!("stopping: what is in flight may end");
    notify_systemd::stopping();
    for task in [scheduler, watcher, keeper, pruner, alerts, fleet, reloader, heart, web, control] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a part of the daemon ended badly");
        }
    }
    end_sinks.send_replace(true);
    if let Err(error) = sinks.await {
        tracing::error!(%error, "the sinks ended badly");
    }
    // The socket goes last: until then a command still learns that a daemon is there.
    let _ = std::fs::remove_file(host.home.socket());
    match Arc::try_unwrap(host) {
        Ok(host) => host.close().await,
        Err(host) => host.supervisor.close().await,
    }
    // Sending blocks; who waits for it here has a deadline within.
    let _ = tokio::task::spawn_blocking(telemetry::stop).await;
    Ok(())
}

/// SIGHUP: the same as `keywheel reload`, and the log has the answer.
async fn reload_on_hangup(host: &Host, mut stop: watch::Receiver<bool>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::error!(%error, "SIGHUP can't be watched; `keywheel reload` does the same");
            return;
        }
    };
    while !*stop.borrow() {
        tokio::select! {
            _ = hangup.recv() => {
                notify_systemd::reloading();
                // Either way it was said in the log.
                let _ = host.reload();
                notify_systemd::ready();
            }
            _ = stop.changed() => {}
        }
    }
}

/// Opens the HTTP port where the configuration asks for one. One that can't be had stops the
/// daemon: whoever asked for it would miss its reports without knowing.
async fn open_port(host: &Arc<Host>) -> Result<Option<web::Web>, OpenError> {
    let Some(listen) = host.config.get().http.listen else { return Ok(None) };
    let of_port = Arc::clone(host);
    let parts = web::Parts {
        vault: Arc::clone(&host.vault),
        writer: host.writer.clone(),
        reader: host.reader()?,
        counter: host.reader()?,
        meter: Arc::clone(&host.rotation.meter),
        metrics: host.config.get().metrics.clone(),
        pages: host.reader()?,
        counting: host.reader()?,
        config: host.config.clone(),
        command: Arc::new(move |operation| {
            let host = Arc::clone(&of_port);
            Box::pin(async move { host.carry_out(operation).await })
        }),
    };
    let web = web::Web::open(listen, host.config.get().http.clone(), parts)
        .await
        .map_err(|source| OpenError::Listen { listen, source })?;
    host.http.get_or_init(|| web.port());
    Ok(Some(web))
}

/// Stops idle workers and wakes the scheduler when the active plugins change.
async fn keep_house(host: &Host, mut stop: watch::Receiver<bool>) {
    let mut changes = host.registry.changes();
    while !*stop.borrow() {
        let idle_stop = host.config.get().idle_stop();
        tokio::select! {
            () = tokio::time::sleep(IDLE_LOOK.min(idle_stop)) => host.supervisor.stop_idle(idle_stop),
            changed = changes.changed() => if changed.is_ok() { host.rotation.wake() },
            _ = stop.changed() => {}
        }
    }
}

/// Deletes the reports that end, a little each minute.
async fn prune(host: &Host, mut stop: watch::Receiver<bool>) {
    let past = Position::Past(String::new());
    let mut from = past.clone();
    while !*stop.borrow() {
        if !host.fleet.holds(fleet::RETENTION) {
            tokio::select! {
                () = tokio::time::sleep(NOT_ON_DUTY) => continue,
                _ = stop.changed() => return,
            }
        }
        // Anew each time, for the configuration may be another one by now.
        let config = host.config.get();
        let config = &config.reports;
        let archive = host.home.archive(config);
        let keep = (config.keep_per_credential > 0).then_some(config.keep_per_credential);
        let days = Millis::from(config.keep_days) * 86_400_000;
        let stored_before = (days > 0).then(|| now().saturating_sub(days));
        let look = async {
            // What is too old, all of it; of what is too many, the next credentials' share.
            let old = Rules { stored_before, ..Rules::default() };
            let start = if stored_before.is_some() { Position::START } else { Position::End };
            let (mut reports, mut position) = (0, start);
            while position != Position::End {
                let pruned = host.retention.prune(&old, archive.clone(), position, PRUNE_STEP).await?;
                (reports, position) = (reports + pruned.reports, pruned.next);
            }
            if keep.is_none() {
                return Ok((reports, Position::End));
            }
            let many = Rules { keep, ..Rules::default() };
            let pruned = host.retention.prune(&many, archive.clone(), from.clone(), COUNTED).await?;
            Ok::<_, RetentionError>((reports + pruned.reports, pruned.next))
        };
        let looked = tokio::select! {
            looked = look => looked,
            _ = stop.changed() => return,
        };
        match looked {
            Ok((reports, next)) => {
                if reports > 0 {
                    tracing::info!(reports, "old reports deleted");
                }
                from = if next == Position::End { past.clone() } else { next };
            }
            Err(error) => tracing::error!(%error, "old reports can't be deleted, they are kept"),
        }
        tokio::select! {
            () = tokio::time::sleep(PRUNE) => {}
            _ = stop.changed() => {}
        }
    }
}
