//! The one thread that writes the database. Everyone else holds a `Writer` and sends it
//! commands; it runs what waits in one transaction and answers after the commit, which means
//! after the fsync. It never answers "done" for what a power cut could take back, and no
//! command's failure touches another's work.
//!
//! The futures here need no particular runtime: a bounded channel and a one-shot answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::commands::{self, FinishRow};
use super::server::Server;
use super::sql::{self, Connection};
use super::uses::Behind;
use super::{
    Action, AuditEntry, DbError, HomeLock, Phase, SealedGeneration, SealedKey, Signer, Store, TrustedKey,
    connect_for_writing, open_for_writing, set_checkpoint,
};
use crate::crash;
use crate::credential::{Millis, now};
use crate::limits::{WRITER_BATCH, WRITER_QUEUE};
use crate::provider::{CommitClass, Manifest};
use crate::report::{Report, iso8601, parse_iso8601};

/// Tries of one batch before its commands are told that the database can't be written. With
/// the pauses below that is about two thirds of a second: longer than a snapshot or a busy
/// disk takes, short enough that an attempt still has time to say what happened.
const TRIES: u32 = 5;

/// The pause after the first failed try; each later one is three times as long.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// Generations that were current before and stay restorable.
pub const PREVIOUS_KEPT: u32 = 3;

/// What a command ends in when it did nothing.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("credential {credential_id} exists; hint: import new secrets into it, or remove it first")]
    Duplicate { credential_id: String },
    #[error("no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    #[error("credential {credential_id} is busy with attempt {attempt}; hint: try again when that has ended")]
    Busy { credential_id: String, attempt: u32 },
    #[error("credential {credential_id} {rest}; hint: --now rotates it all the same")]
    Resting { credential_id: String, rest: Rest },
    #[error(
        "fence {fence} of credential {credential_id} is no longer the newest: the attempt has another owner or has ended"
    )]
    Fenced { credential_id: String, fence: i64 },
    #[error("generation {found} of credential {credential_id} was offered, the next one is {expected}")]
    Stale { credential_id: String, found: u32, expected: u32 },
    #[error("`{service}` got its first credential meanwhile, and what its plugin may do is pinned")]
    Pinned { service: String },
    #[error(
        "another host decided about the plugin of `{service}` meanwhile; hint: look again, `keywheel plugin show {service}`"
    )]
    Changed { service: String },
    #[error(
        "the plugin of `{service}` was replaced meanwhile; hint: `keywheel plugin show {service}` says what it may do now, then add the credential again"
    )]
    Replaced { service: String },
    #[error(
        "credential {credential_id} is external: its secrets are with the worker that reports on it; hint: to have Keywheel keep it, `keywheel credential remove {credential_id}`, then `keywheel credential add {credential_id}`"
    )]
    External { credential_id: String },
    #[error("credential {credential_id} belongs to another service than the token's")]
    OtherService { credential_id: String },
    #[error("the token has brought {allowed} {what} already, which is as many as it may")]
    TooMany { what: &'static str, allowed: u32 },
    #[error("{0}")]
    Invalid(String),
    #[error(
        "the database can't be written ({tries} tries): {reason}; hint: look at the disk's free space and at who else has the file open"
    )]
    Unavailable { tries: u32, reason: String },
    #[error("the database writer has ended")]
    Closed,
    #[error("the database refused the command: {0}")]
    Sql(#[from] sql::Error),
}

/// Why a credential isn't rotated now unless a person insists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    Paused,
    /// The service asked to be left alone, by `Retry-After` or in its answer.
    Asked {
        until: Millis,
    },
    /// The gate's word, such as quiet time.
    Held {
        why: String,
    },
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Paused => f.write_str("is paused"),
            Self::Held { why } => write!(f, "rests: {why}"),
            Self::Asked { until } => {
                write!(f, "rests until {}: its service asked for that", iso8601(*until))
            }
        }
    }
}

/// Proof of a claim: every write of an attempt carries it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimToken {
    pub credential_row: i64,
    pub credential_id: String,
    pub fence: i64,
}

/// One open attempt and all it starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub token: ClaimToken,
    pub profile_id: Option<String>,
    pub service: String,
    /// JSON, as they are stored: what follows from them is known by this text.
    pub settings_json: String,
    pub private_hosts_json: String,
    /// The operator's pick among the provider's methods.
    pub method: Option<String>,
    /// The account the credential is pinned to.
    pub identity: Option<String>,
    pub attempt_number: u32,
    pub started_at: Millis,
    pub action: Action,
    pub current: Option<SealedGeneration>,
    pub pending: Option<SealedGeneration>,
    /// For the first capture of this attempt.
    pub next_generation: u32,
    /// When the current generation was issued.
    pub rotated_at: Millis,
    /// Seconds.
    pub validate_interval_override: Option<u32>,
    /// Seconds.
    pub max_age_override: Option<u32>,
    /// Seconds.
    pub idle_limit_override: Option<u32>,
    /// As the operator wrote them.
    pub quiet: Vec<String>,
    pub consecutive_failures: u32,
    pub last_verdict: Option<String>,
    pub expires_at: Option<Millis>,
    /// A person insisted, whatever it may cost: quiet times, the service's wish for rest and a
    /// doubtful generation don't hold it back.
    pub forced: bool,
    /// Set where an earlier owner began this attempt and didn't end it.
    pub interrupted: Option<Interrupted>,
    /// The generation that a rotation may have spent without anybody's knowing.
    pub doubtful_generation: Option<u32>,
    /// The generation that a backup brought back.
    pub restored_generation: Option<u32>,
    /// The consumers that haven't acknowledged the current generation, where it is to be rotated.
    pub unacknowledged: Vec<String>,
}

impl Claim {
    /// Whether the current generation may have been spent.
    pub fn in_doubt(&self) -> bool {
        let current = self.current.as_ref().map(|current| current.generation);
        current.is_some() && self.doubtful_generation == current
    }

    /// Whether it is in doubt because it comes from a backup.
    pub fn is_restored(&self) -> bool {
        self.in_doubt() && self.restored_generation == self.doubtful_generation
    }
}

/// How far the earlier owner came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    pub phase: Phase,
    pub method: Option<String>,
    pub commit_class: Option<CommitClass>,
    pub from_generation: Option<u32>,
    pub action: Action,
}

impl Interrupted {
    /// A rotation request may have reached the service.
    pub fn may_have_spent(&self) -> bool {
        self.phase != Phase::Claimed
    }
}

/// A due credential, as the gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct Due<'r> {
    pub service: &'r str,
    pub credential_id: &'r str,
    pub action: Action,
    pub expires: Option<Millis>,
    /// JSON, as they are stored; few gates look.
    pub quiet_json: Option<&'r str>,
    pub settings_json: &'r str,
    pub private_hosts_json: &'r str,
    /// The operator's pick among the provider's methods.
    pub method: Option<&'r str>,
    /// When it fell due.
    pub due_at: Millis,
    /// When the current generation was issued.
    pub issued: Millis,
    /// Who hasn't acknowledged the current generation, where this is a rotation that nothing of
    /// has been done yet.
    pub behind: &'r [Behind],
    /// Since when it waits for them.
    pub waits_since: Option<Millis>,
}

/// What becomes of a due credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// It is claimed, for this.
    Go(Action),
    /// It isn't yet, and comes back then.
    Wait { until: Millis, why: String },
    /// The same for a rotation that waits for consumers, since then.
    Await { until: Millis, since: Millis, why: String },
}

/// Asked about each due credential before it is claimed. It runs in the writer's transaction, so
/// it must be quick, and may be asked twice.
#[derive(Clone, Default)]
pub struct Gate(Option<Arc<Judge>>);

type Judge = dyn Fn(Due<'_>) -> Passage + Send + Sync;

impl Gate {
    pub fn new(judge: impl Fn(Due<'_>) -> Passage + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(judge)))
    }

    pub(super) fn judge(&self, due: Due<'_>) -> Passage {
        self.0.as_ref().map_or(Passage::Go(due.action), |judge| judge(due))
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Gate(…)" } else { "Gate(open)" })
    }
}

/// An overdue credential that nobody has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueRow {
    pub credential_row: i64,
    pub due: Millis,
    pub action: Action,
    pub expires: Option<Millis>,
}

/// What the operator changes about when a credential is looked at. None: as it is.
#[derive(Debug, Clone, Default)]
pub struct ScheduleChange {
    /// Seconds; None within: the provider's.
    pub validate_interval: Option<Option<u32>>,
    pub max_age: Option<Option<u32>>,
    pub idle_limit: Option<Option<u32>>,
    pub quiet: Option<Vec<String>>,
}

#[derive(Debug, Clone)]
pub struct ClaimDue {
    pub owner: String,
    pub now: Millis,
    pub lease_until: Millis,
    /// Service and how many of its credentials may be claimed.
    pub quotas: Vec<(String, u32)>,
    /// Over all of them; who is first in `quotas` is served first.
    pub at_most: u32,
    /// What holds over all hosts that share the store; a home alone keeps to it by its quotas.
    pub allowed: BTreeMap<String, Allowed>,
    pub gate: Gate,
}

/// What the operator allows of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Attempts at once.
    pub concurrency: Option<u32>,
    /// Requests in a minute.
    pub per_minute: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Claims {
    pub claims: Vec<Claim>,
    /// Attempts of the asker's own whose lease has run out by `now`. They are left as they are:
    /// it renews what it still works on, and resumes what it gave up.
    pub overdue: Vec<ClaimToken>,
    /// The earliest moment at which one of these services has something to claim: a due time,
    /// or the end of a lease nobody renewed. Not after `now` where a quota cut the claims short.
    pub next_due: Option<Millis>,
}

/// What became of leases that were to be extended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Still the asker's, and extended.
    pub held: Vec<ClaimToken>,
    /// Their attempts are another's by now.
    pub lost: Vec<ClaimToken>,
}

/// A provider as the registry wants it to stand. The operator's cadence isn't part of it.
#[derive(Debug, Clone)]
pub struct ProviderUpdate {
    pub manifest: Manifest,
    pub plugin_digest: String,
    /// What was granted, in the registry's words.
    pub permissions_json: String,
    pub state: String,
    pub signer: Option<Signer>,
    /// Its name in the plugin folder.
    pub file: Option<String>,
    /// Refuse this where there is a credential: what it asks for was compared with nothing.
    pub only_without_credentials: bool,
    /// The plugin itself, for a store that several hosts share.
    pub bytes: Option<Arc<[u8]>>,
    /// The revision of the row that this was decided on, 0 where there was none. None: whatever
    /// stands.
    pub seen: Option<u32>,
}

/// A newer plugin that waits for the operator.
#[derive(Debug, Clone)]
pub struct PendingProvider {
    pub plugin_digest: String,
    pub manifest: Manifest,
    pub signer: Option<Signer>,
    /// As in `ProviderUpdate`.
    pub bytes: Option<Arc<[u8]>>,
}

/// A credential with its keys sealed for generation 1.
#[derive(Debug, Clone)]
pub struct NewCredential {
    pub credential_id: String,
    pub profile_id: Option<String>,
    pub service: String,
    /// The plugin that the operator saw. Refused where another serves by now: the first
    /// credential pins what its plugin may do.
    pub plugin_digest: Option<String>,
    pub settings: Vec<(String, String)>,
    pub private_hosts: Vec<String>,
    pub method: Option<String>,
    /// Seconds.
    pub validate_interval: Option<u32>,
    /// Seconds.
    pub max_age: Option<u32>,
    /// Seconds.
    pub idle_limit: Option<u32>,
    /// Read and judged already.
    pub quiet: Vec<String>,
    pub identity: Option<String>,
    pub keys: Vec<SealedKey>,
    pub expires: Option<Millis>,
    pub first_due: Millis,
    pub first_action: Action,
}

/// New secrets from the operator, sealed for the generation after the last.
#[derive(Debug, Clone)]
pub struct NewGeneration {
    pub credential_id: String,
    pub generation: u32,
    pub keys: Vec<SealedKey>,
    pub expires: Option<Millis>,
    pub due: Millis,
    pub action: Action,
    /// Forget the pinned account: these secrets may be another's.
    pub unpin_identity: bool,
    /// The generation whose keys these are, where the operator brought one back.
    pub restored_from: Option<u32>,
    /// Written down with it: either both stand or neither.
    pub note: Option<AuditEntry>,
}

#[derive(Debug, Clone)]
pub struct Finish {
    pub token: ClaimToken,
    pub report: Arc<Report>,
    pub verdict: String,
    pub monitor: MonitorUpdate,
    pub generations: GenerationChange,
    /// New expiries of keys of the generation that is current afterwards.
    pub expiry_updates: Vec<(String, Option<Millis>)>,
    /// Pinned where no account is pinned yet.
    pub identity: Option<String>,
    /// Whether the generation that is current afterwards may have been spent; None: as before,
    /// which was no. It spares nearly every attempt a statement.
    pub in_doubt: Option<bool>,
}

#[derive(Debug, Clone)]
pub struct MonitorUpdate {
    pub consecutive_failures: u32,
    pub expires_at: Option<Millis>,
    /// None: not by itself, a person must act. A paused credential gets none either way.
    pub next_due_at: Option<Millis>,
    pub next_action: Action,
    /// Until when the service itself asked to be left alone.
    pub asked_until: Option<Millis>,
    /// Why then, in words.
    pub next_reason: String,
}

/// What an attempt's end does to the pending generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationChange {
    /// Nothing; there may be none.
    None,
    /// It becomes current, and current becomes previous.
    Promote(u32),
    /// Its keys are deleted.
    Drop(u32),
    /// It stays pending for a later attempt to judge; it must exist.
    Keep,
}

/// A batch of this many commands means that many attempts run at once.
const BUSY_BATCH: usize = 8;

/// Threads, and connections, that write to a server at once. Each command is a transaction of its
/// own there: the server gathers commits by itself, and a command that waits for a row keeps no
/// other from its own.
const WRITERS: usize = 8;

/// How long commands are gathered then: about as long as their commit and its fsync take. The more
/// share one, the fewer pages are written twice.
const GATHER: Duration = Duration::from_millis(1);

/// The handle to the writing thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
    progress: watch::Receiver<Progress>,
    shared: bool,
}

/// What the writing thread has done since it started. Whoever watches it wakes after each commit,
/// and looks in the database for what it means to him.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    pub commits: u64,
    pub commands: u64,
    /// Tries that failed, of which the next may have succeeded.
    pub failed_tries: u64,
    /// All time spent in transactions, their syncs included.
    pub busy: Duration,
    /// Why the last batch could not be written; None: it was.
    pub failing: Option<String>,
}

/// The writing threads themselves: one for a file, several for a server. They end when the last
/// `Writer` is gone and the queue is empty.
#[derive(Debug)]
pub struct WriterThread {
    handles: Vec<thread::JoinHandle<()>>,
}

impl WriterThread {
    /// Waits until everything that was sent is committed and the file is closed.
    pub fn join(self) {
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("the database writer panicked");
            }
        }
    }
}

impl Writer {
    /// Opens the database for writing, brings its schema up to date and starts the threads. The
    /// lock goes with them: another daemon of the home gets it only after they are done.
    ///
    /// # Errors
    /// Those of opening and migrating.
    pub fn start(store: impl Into<Store>, lock: HomeLock) -> Result<(Self, WriterThread), DbError> {
        match store.into() {
            Store::File(path) => Self::start_with(open_for_writing(&path, None)?, &path, lock, FIRST_PAUSE),
            Store::Server(config) => Self::start_on(Server::named(&config)?, lock),
        }
    }

    fn start_with(
        db: Connection,
        path: &Path,
        lock: HomeLock,
        first_pause: Duration,
    ) -> Result<(Self, WriterThread), DbError> {
        let (queue, jobs) = mpsc::channel(WRITER_QUEUE);
        let (tell, progress) = watch::channel(Progress::default());
        let handle = thread::Builder::new()
            .name(String::from("db-writer"))
            .spawn(move || {
                serve(&db, jobs, first_pause, &tell);
                // Closing folds the WAL into the file; only then may another host come.
                if let Connection::Sqlite(db) = db
                    && let Err((_, error)) = db.close()
                {
                    tracing::error!(%error, "the database did not close cleanly");
                }
                drop(lock);
            })
            .map_err(|source| DbError::Io { path: path.to_owned(), source })?;
        Ok((Self { queue, progress, shared: false }, WriterThread { handles: vec![handle] }))
    }

    fn start_on(server: Arc<Server>, lock: HomeLock) -> Result<(Self, WriterThread), DbError> {
        drop(connect_for_writing(&server)?);
        let (queue, jobs) = mpsc::channel(WRITER_QUEUE);
        let (tell, progress) = watch::channel(Progress::default());
        let (jobs, tell, lock) = (Arc::new(Mutex::new(jobs)), Arc::new(tell), Arc::new(lock));
        let mut handles = Vec::new();
        for number in 0..WRITERS {
            let (server, jobs, tell, lock) =
                (Arc::clone(&server), Arc::clone(&jobs), Arc::clone(&tell), Arc::clone(&lock));
            let handle = thread::Builder::new()
                .name(format!("db-writer-{number}"))
                .spawn(move || {
                    over_server::serve(&server, &jobs, &tell);
                    drop(lock);
                })
                .map_err(|source| DbError::Io { path: PathBuf::from("db-writer"), source })?;
            handles.push(handle);
        }
        Ok((Self { queue, progress, shared: true }, WriterThread { handles }))
    }

    /// Whether other hosts may write here too.
    pub const fn is_shared(&self) -> bool {
        self.shared
    }

    /// Changes with each commit, and when the database can't be written.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Goes once through the writing thread and changes nothing: whoever asks learns that it turns.
    ///
    /// # Errors
    /// Where the database can't be written, which the thread then says.
    pub async fn turn(&self) -> Result<(), WriteError> {
        self.run(|_| Ok(())).await
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        self.run_at(&[], work).await
    }

    /// As `run`, for a step of an attempt: with its crash points.
    async fn run_at<T: Send + 'static>(
        &self,
        points: CrashPoints,
        work: impl FnMut(&Connection) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Command { work, outcome: None, reply, points });
        self.queue.send(job).await.map_err(|_| WriteError::Closed)?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// Keeps a value of the installation unless there is one, and returns the one that stands.
    pub async fn remember(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>, WriteError> {
        let key = key.to_owned();
        self.run(move |db| commands::remember(db, &key, &value)).await
    }

    /// Adds a provider, or makes it stand as given, with nothing waiting. The note goes with
    /// it: either both stand or neither.
    pub async fn put_provider(
        &self,
        row: ProviderUpdate,
        note: Option<AuditEntry>,
    ) -> Result<(), WriteError> {
        let at = now();
        self.run(move |db| commands::put_provider(db, &row, note.as_ref(), at)).await
    }

    /// `seen` as in `ProviderUpdate`.
    pub async fn set_provider_pending(
        &self,
        service: &str,
        seen: Option<u32>,
        pending: Option<PendingProvider>,
        note: Option<AuditEntry>,
    ) -> Result<(), WriteError> {
        let (service, at) = (service.to_owned(), now());
        self.run(move |db| {
            commands::set_provider_pending(db, &service, seen, pending.as_ref(), note.as_ref(), at)
        })
        .await
    }

    /// For a provider that doesn't serve any more; what waited waits no longer. `seen` as in
    /// `ProviderUpdate`.
    pub async fn set_provider_state(
        &self,
        service: &str,
        seen: Option<u32>,
        state: &'static str,
        note: AuditEntry,
    ) -> Result<(), WriteError> {
        let (service, at) = (service.to_owned(), now());
        self.run(move |db| commands::set_provider_state(db, &service, seen, state, &note, at)).await
    }

    /// Puts a plugin into the store that its provider's row names and that isn't there. One that it
    /// doesn't name any more is left out.
    pub async fn keep_plugin(&self, service: &str, digest: &str, bytes: Arc<[u8]>) -> Result<(), WriteError> {
        let (service, digest, at) = (service.to_owned(), digest.to_owned(), now());
        self.run(move |db| commands::keep_plugin(db, &service, &digest, &bytes, at)).await
    }

    /// Writes decisions down that change no other row. One that repeats the newest about its
    /// file is left out.
    pub async fn note(&self, entries: Vec<AuditEntry>) -> Result<(), WriteError> {
        let at = now();
        self.run(move |db| commands::note(db, &entries, at)).await
    }

    /// Believes a key's signatures from now on. Returns it as it stands.
    pub async fn trust_key(&self, key: TrustedKey, note: AuditEntry) -> Result<TrustedKey, WriteError> {
        let at = now();
        self.run(move |db| commands::trust_key(db, &key, &note, at)).await
    }

    pub async fn distrust_key(&self, key_id: &str) -> Result<(), WriteError> {
        let (key_id, at) = (key_id.to_owned(), now());
        self.run(move |db| commands::distrust_key(db, &key_id, at)).await
    }

    /// The operator's validate interval for a whole service, in seconds; None: the provider's.
    pub async fn set_provider_cadence(&self, service: &str, seconds: Option<u32>) -> Result<(), WriteError> {
        let (service, at) = (service.to_owned(), now());
        self.run(move |db| commands::set_provider_cadence(db, &service, seconds, at)).await
    }

    /// Stops or resumes what a whole service does by itself. Due times stay.
    pub async fn set_provider_paused(&self, service: &str, paused: bool) -> Result<(), WriteError> {
        let (service, at) = (service.to_owned(), now());
        self.run(move |db| commands::set_provider_paused(db, &service, paused, at)).await
    }

    /// The credentials of a service that are due and not claimed.
    pub async fn overdue(&self, service: &str, now: Millis) -> Result<Vec<OverdueRow>, WriteError> {
        let service = service.to_owned();
        self.run(move |db| commands::overdue(db, &service, now)).await
    }

    /// Moves due times of credentials that nobody claimed meanwhile.
    pub async fn put_off(&self, rows: Vec<(i64, Millis)>, why: &'static str) -> Result<(), WriteError> {
        self.run(move |db| commands::put_off(db, &rows, why)).await
    }

    /// Changes when a credential is looked at. It is due at once, unless it is paused or an
    /// attempt is open: that look plans anew.
    pub async fn set_schedule(&self, credential_id: &str, change: ScheduleChange) -> Result<(), WriteError> {
        let (id, at) = (credential_id.to_owned(), now());
        self.run(move |db| commands::set_schedule(db, &id, &change, at)).await
    }

    pub async fn remove_provider(&self, service: &str) -> Result<(), WriteError> {
        let service = service.to_owned();
        self.run(move |db| commands::remove_provider(db, &service)).await
    }

    pub async fn add_credential(&self, new: NewCredential) -> Result<(), WriteError> {
        let at = now();
        self.run(move |db| commands::add_credential(db, &new, at)).await
    }

    /// Makes the operator's new secrets current. Refused while an attempt is open; a pending
    /// generation steps back to previous.
    pub async fn replace_generation(&self, new: NewGeneration) -> Result<(), WriteError> {
        let at = now();
        self.run(move |db| commands::replace_generation(db, &new, at)).await
    }

    /// Removes a credential and its secrets; its reports stay. Refused while an attempt is open.
    pub async fn remove_credential(&self, credential_id: &str) -> Result<(), WriteError> {
        let id = credential_id.to_owned();
        self.run(move |db| commands::remove_credential(db, &id)).await
    }

    /// Stops or resumes what a credential does by itself. An open attempt ends as it would.
    pub async fn set_paused(
        &self,
        credential_id: &str,
        paused: bool,
        resume_at: Millis,
    ) -> Result<(), WriteError> {
        let id = credential_id.to_owned();
        self.run(move |db| commands::set_paused(db, &id, paused, resume_at)).await
    }

    /// Moves a credential's due time. Refused while an attempt is open.
    pub async fn make_due(&self, credential_id: &str, action: Action, due: Millis) -> Result<(), WriteError> {
        let id = credential_id.to_owned();
        self.run(move |db| commands::make_due(db, &id, action, due)).await
    }

    /// Opens an attempt for what is due, earliest first, and takes over those of others whose
    /// lease ran out.
    pub async fn claim_due(&self, claim: ClaimDue) -> Result<Claims, WriteError> {
        self.run_at(CLAIM, move |db| commands::claim_due(db, &claim)).await
    }

    /// Books requests that were made beside the first of an attempt with all hosts.
    pub async fn book(&self, service: &str, allowed: Allowed, requests: usize) -> Result<(), WriteError> {
        let (service, at) = (service.to_owned(), now());
        self.run(move |db| commands::book(db, &service, allowed, requests, at)).await
    }

    /// Takes over attempts of one's own that nobody works on any more. What has ended meanwhile
    /// is left out.
    pub async fn resume(
        &self,
        tokens: Vec<ClaimToken>,
        owner: &str,
        lease_until: Millis,
    ) -> Result<Vec<Claim>, WriteError> {
        let owner = owner.to_owned();
        self.run(move |db| commands::resume(db, &tokens, &owner, lease_until)).await
    }

    /// Says that the clock was ahead until now, and by how much, if that is known. Returns how
    /// many credentials are due earlier for that.
    pub async fn set_back(&self, owner: &str, now: Millis, by: Option<Millis>) -> Result<usize, WriteError> {
        let owner = owner.to_owned();
        self.run(move |db| commands::set_back(db, &owner, now, by)).await
    }

    /// Opens an attempt because a person asked, due or not. A rotation is refused where there is
    /// a reason to wait, unless it is forced.
    pub async fn claim_one(
        &self,
        credential_id: &str,
        action: Action,
        owner: &str,
        now: Millis,
        lease_until: Millis,
        forced: bool,
    ) -> Result<Claim, WriteError> {
        self.claim_one_through(Gate::default(), credential_id, action, owner, now, lease_until, forced).await
    }

    /// As `claim_one`, where a gate may know more reasons to wait.
    #[expect(clippy::too_many_arguments, reason = "a claim's own words, and the gate")]
    pub async fn claim_one_through(
        &self,
        gate: Gate,
        credential_id: &str,
        action: Action,
        owner: &str,
        now: Millis,
        lease_until: Millis,
        forced: bool,
    ) -> Result<Claim, WriteError> {
        let (id, owner) = (credential_id.to_owned(), owner.to_owned());
        self.run_at(CLAIM, move |db| {
            commands::claim_one(db, &id, action, &owner, now, lease_until, forced, &gate)
        })
        .await
    }

    /// Takes over every open attempt, whoever owned it. For the one host, when it starts.
    pub async fn reclaim_interrupted(
        &self,
        owner: &str,
        lease_until: Millis,
    ) -> Result<Vec<Claim>, WriteError> {
        let owner = owner.to_owned();
        self.run(move |db| commands::reclaim_interrupted(db, &owner, lease_until)).await
    }

    /// Makes the intent to rotate durable. No rotation request may leave before this returned.
    pub async fn journal_rotation(
        &self,
        token: &ClaimToken,
        method: &str,
        commit_class: CommitClass,
        from_generation: u32,
    ) -> Result<(), WriteError> {
        let (token, method) = (token.clone(), method.to_owned());
        self.run_at(INTENT, move |db| {
            commands::journal_rotation(db, &token, &method, commit_class, from_generation)
        })
        .await
    }

    /// Makes what a service issued durable. A later capture of the same attempt replaces the
    /// whole jar of the same generation.
    pub async fn store_pending(
        &self,
        token: &ClaimToken,
        generation: u32,
        keys: Vec<SealedKey>,
    ) -> Result<(), WriteError> {
        let (token, at) = (token.clone(), now());
        self.run_at(RECEIPT, move |db| commands::store_pending(db, &token, generation, &keys, at)).await
    }

    /// Ends an attempt: report, monitor, generation and journal in one transaction. Returns the
    /// report's id, the first one's where this is a second delivery.
    pub async fn finish(&self, end: Finish) -> Result<i64, WriteError> {
        let row = finish_row(end, now())?;
        self.run_at(FINISH, move |db| commands::finish(db, &row)).await
    }

    /// Deletes reports, in one transaction with whatever else waits: the caller keeps the number
    /// so small that nobody notices. Returns how many there were.
    pub async fn delete_reports(&self, ids: Vec<i64>) -> Result<usize, WriteError> {
        self.run(move |db| commands::delete_reports(db, &ids)).await
    }

    /// While rows are deleted every page of the log is another, and folding the usual number of
    /// them into the file takes longer than a write may wait: then it is done more often.
    pub async fn checkpoint_often(&self, often: bool) -> Result<(), WriteError> {
        self.run(move |db| Ok(set_checkpoint(db, often)?)).await
    }

    /// Extends leases. A claim whose attempt has ended is neither held nor lost.
    pub async fn renew(&self, tokens: Vec<ClaimToken>, lease_until: Millis) -> Result<Renewed, WriteError> {
        self.run(move |db| commands::renew(db, &tokens, lease_until)).await
    }
}

/// Everything about a report that can be made off the writing thread, which is the one
/// everybody waits for.
pub(super) fn finish_row(end: Finish, at: Millis) -> Result<FinishRow, WriteError> {
    let Finish { token, report, verdict, monitor, generations, expiry_updates, identity, in_doubt } = end;
    if report.cookie_id != token.credential_id {
        return Err(WriteError::Invalid(format!(
            "a report of {} can't end an attempt of {}",
            report.cookie_id, token.credential_id
        )));
    }
    let unwritable = |error: serde_json::Error| WriteError::Invalid(error.to_string());
    let cookie_keys_json = serde_json::to_string(&report.cookie_keys).map_err(unwritable)?;
    let meta_json = serde_json::to_string(&report.meta).map_err(unwritable)?;
    let Some(finished_millis) = parse_iso8601(&report.finished_at) else {
        return Err(WriteError::Invalid(format!(
            "finishedAt `{}` is not ISO 8601, such as 2026-01-02T03:04:05.678Z",
            report.finished_at
        )));
    };
    let idempotency_key = report.idempotency_key();
    Ok(FinishRow {
        token,
        report,
        cookie_keys_json,
        finished_millis,
        created_at: iso8601(at),
        idempotency_key,
        meta_json,
        verdict,
        monitor,
        generations,
        expiry_updates,
        identity,
        in_doubt,
    })
}

/// Where a command's transaction can be cut: before it begins, before its commit, and before
/// anybody is told. Empty: nowhere.
type CrashPoints = &'static [&'static str];

const CLAIM: CrashPoints = &["claim.begin", "claim.written", "claim.committed"];
const INTENT: CrashPoints = &["intent.begin", "intent.written", "intent.committed"];
const RECEIPT: CrashPoints = &["receipt.begin", "receipt.written", "receipt.committed"];
const FINISH: CrashPoints = &["finish.begin", "finish.written", "finish.committed"];

/// A queued command. It may run more than once, for its batch may be retried; only the run
/// whose transaction committed is answered.
trait Job: Send {
    /// Err ends the whole transaction.
    fn run(&mut self, db: &Connection, keep: Keep) -> Result<(), Stop>;
    fn committed(self: Box<Self>);
    fn unavailable(self: Box<Self>, reason: &str);
    fn points(&self) -> CrashPoints;
}

/// Comes by the crash points of every command of a batch.
fn come_by(batch: &[Box<dyn Job>], step: usize) {
    for name in batch.iter().filter_map(|job| job.points().get(step)) {
        crash::point(name);
    }
}

/// How a batch keeps a failing command from its neighbours' work.
///
/// A savepoint for each command makes SQLite copy every page the command touches, which is
/// half of what a command costs. Commands that fail nearly always do so before they write (a
/// fence, a duplicate, nothing found), so a batch first runs without savepoints. If one fails
/// after it wrote, the transaction is taken back and the batch runs again with them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Whole,
    Savepoints,
}

/// Why a transaction can't go on.
enum Stop {
    /// A command failed after it wrote, and there was no savepoint to go back to.
    HalfDone,
    Failed(sql::Error),
}

impl From<sql::Error> for Stop {
    fn from(error: sql::Error) -> Self {
        Self::Failed(error)
    }
}

struct Command<W, T> {
    work: W,
    outcome: Option<Result<T, WriteError>>,
    reply: oneshot::Sender<Result<T, WriteError>>,
    points: CrashPoints,
}

impl<W, T> Job for Command<W, T>
where
    W: FnMut(&Connection) -> Result<T, WriteError> + Send,
    T: Send,
{
    fn run(&mut self, db: &Connection, keep: Keep) -> Result<(), Stop> {
        if keep == Keep::Savepoints {
            db.prepare_cached("SAVEPOINT command")?.execute([])?;
        }
        let before = db.changes();
        let outcome = match (self.work)(db) {
            Err(WriteError::Sql(error)) if error.is_transient() => return Err(error.into()),
            outcome => outcome,
        };
        match &outcome {
            Ok(_) => {}
            Err(_) if keep == Keep::Savepoints => {
                db.prepare_cached("ROLLBACK TO command")?.execute([])?;
            }
            Err(_) if db.changes() != before => return Err(Stop::HalfDone),
            Err(_) => {}
        }
        if keep == Keep::Savepoints {
            db.prepare_cached("RELEASE command")?.execute([])?;
        }
        self.outcome = Some(outcome);
        Ok(())
    }

    fn committed(self: Box<Self>) {
        let outcome = self.outcome.unwrap_or(Err(WriteError::Closed));
        // Nobody waits any more: the write stands all the same.
        let _gone = self.reply.send(outcome);
    }

    fn unavailable(self: Box<Self>, reason: &str) {
        let error = WriteError::Unavailable { tries: TRIES, reason: reason.to_owned() };
        let _gone = self.reply.send(Err(error));
    }

    fn points(&self) -> CrashPoints {
        self.points
    }
}

fn serve(
    db: &Connection,
    mut jobs: mpsc::Receiver<Box<dyn Job>>,
    first_pause: Duration,
    progress: &watch::Sender<Progress>,
) {
    let (mut failing, mut last_batch) = (false, 0);
    while let Some(first) = jobs.blocking_recv() {
        // Under load a moment's wait lets more commands share a commit, whose price is the same
        // for one and for many; a lone command never waits.
        if last_batch >= BUSY_BATCH {
            thread::sleep(GATHER);
        }
        // What came while the last commit waited for the disk shares the next one.
        let mut batch = vec![first];
        while batch.len() < WRITER_BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        last_batch = batch.len();
        let (began, mut failed_tries) = (Instant::now(), 0);
        let persisted = persist(db, &mut batch, first_pause, &mut failed_tries);
        progress.send_modify(|so_far| {
            so_far.commits += u64::from(persisted.is_ok());
            so_far.commands += if persisted.is_ok() { last_batch as u64 } else { 0 };
            so_far.failed_tries += failed_tries;
            so_far.busy += began.elapsed();
            so_far.failing = persisted.as_ref().err().map(ToString::to_string);
        });
        match persisted {
            Ok(()) => {
                if failing {
                    tracing::info!("the database can be written again");
                }
                failing = false;
                batch.into_iter().for_each(Job::committed);
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(
                    severity = "critical",
                    commands = batch.len(),
                    tries = TRIES,
                    %reason,
                    "the database can't be written: no rotation starts until it can"
                );
                failing = true;
                batch.into_iter().for_each(|job| job.unavailable(&reason));
            }
        }
    }
}

/// Commits a batch, with a bounded number of tries.
fn persist(
    db: &Connection,
    batch: &mut [Box<dyn Job>],
    first_pause: Duration,
    failed: &mut u64,
) -> Result<(), sql::Error> {
    let mut pause = first_pause;
    let mut tried = 1;
    loop {
        let done = transact(db, batch);
        *failed += u64::from(done.is_err());
        match done {
            Ok(()) => return Ok(()),
            Err(error) if tried < TRIES => {
                tracing::warn!(%error, tried, "a database transaction failed, trying again");
                tried += 1;
                thread::sleep(pause);
                pause *= 3;
            }
            Err(error) => return Err(error),
        }
    }
}

fn transact(db: &Connection, batch: &mut [Box<dyn Job>]) -> Result<(), sql::Error> {
    match attempt(db, batch, Keep::Whole) {
        Ok(()) => Ok(()),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::HalfDone) => attempt(db, batch, Keep::Savepoints).map_err(|stop| match stop {
            Stop::Failed(error) => error,
            Stop::HalfDone => unreachable!("a savepoint takes a failed command's writes back"),
        }),
    }
}

fn attempt(db: &Connection, batch: &mut [Box<dyn Job>], keep: Keep) -> Result<(), Stop> {
    let mut run = || {
        come_by(batch, 0);
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for job in batch.iter_mut() {
            job.run(db, keep)?;
        }
        come_by(batch, 1);
        db.prepare_cached("COMMIT")?.execute([])?;
        come_by(batch, 2);
        Ok(())
    };
    let done = run();
    // SQLite ends some failed transactions itself and leaves others open.
    if done.is_err() && db.is_in_transaction() {
        db.execute_batch("ROLLBACK")?;
    }
    done
}

#[path = "over_server.rs"]
mod over_server;

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
