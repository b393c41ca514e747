//! How a command talks to the running daemon: one JSON line each way over a Unix socket that
//! only its owner may open. The operations are plain data; `daemon` carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::alerts::{TestError, Tested};
use crate::credential::{CookieAttributes, Millis, Secret};
use crate::daemon::Host;
use crate::db::writer::WriteError;
use crate::db::{Action, TrustedKey};
use crate::limits;
use crate::registry::{PluginStatus, RegistryError, Wish};
use crate::reload::Reloaded;
use crate::report::Report;
use crate::retention::{Position, Pruned, RetentionError, Rules};
use crate::rotation::plan::{PlanError, Preview};
use crate::rotation::self_test::SelfTest;
use crate::sinks::SinkError;
use crate::supervisor::WorkerStatus;
use crate::token::{Reach, Scope};

/// A request with every cookie of a large jar fits; anything longer is no request of ours.
const LONGEST_LINE: u64 = 4 << 20;

/// A client that says nothing is let go.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum Operation {
    Status,
    /// What metrics and readiness look at, without a query.
    Vitals,
    PluginList,
    PluginCheck {
        path: PathBuf,
    },
    PluginInstall {
        path: PathBuf,
    },
    /// What approving would change; changes nothing.
    PluginWish {
        service: String,
    },
    /// Grants what was shown: this digest, vouched for by this key.
    PluginApprove {
        service: String,
        digest: String,
        signer: Option<String>,
    },
    PluginUnpark {
        service: String,
    },
    /// Stops or resumes what a whole service does by itself.
    PluginPause {
        service: String,
        paused: bool,
    },
    /// How often the credentials of a service are checked; None: as the plugin says.
    PluginEvery {
        service: String,
        seconds: Option<u32>,
    },
    /// The key's own line, or the text of its file.
    PluginTrust {
        key: String,
        name: Option<String>,
    },
    PluginDistrust {
        key_id: String,
    },
    PluginRemove {
        service: String,
    },
    CredentialAdd(Box<AddCredential>),
    CredentialImport {
        credential_id: String,
        keys: Vec<KeyInput>,
        /// These secrets may be another account's than the pinned one.
        #[serde(default)]
        other_account: bool,
    },
    /// Brings an earlier generation's keys back as a new one.
    CredentialRollback {
        credential_id: String,
        generation: u32,
    },
    CredentialRemove {
        credential_id: String,
    },
    CredentialPause {
        credential_id: String,
        paused: bool,
    },
    CredentialRun {
        credential_id: String,
        action: Action,
        /// Also in a pause, a quiet window, or while the service asked for rest.
        #[serde(default)]
        now: bool,
    },
    /// What rotating would send; sends nothing.
    CredentialPlan {
        credential_id: String,
    },
    /// Asks about a made-up secret in the credential's place.
    CredentialSelfTest {
        credential_id: String,
    },
    /// Deletes what ends, for a moment; the answer says from where to go on.
    ReportsPrune {
        rules: Rules,
        archive: Option<PathBuf>,
        from: Position,
    },
    WorkerTokenCreate {
        service: String,
        name: String,
        /// From now.
        expires_seconds: Option<u32>,
    },
    WorkerTokenRevoke {
        token_id: String,
    },
    ApiTokenCreate {
        name: String,
        reach: Reach,
        scopes: Vec<Scope>,
        /// From now; None: never over by itself.
        expires_seconds: Option<u32>,
    },
    ApiTokenRevoke {
        token_id: String,
    },
    CredentialSet(SetCredential),
    /// Sends a message through one channel, or all.
    AlertTest {
        channel: Option<String>,
    },
    AlertSnooze {
        subject: String,
        /// From now.
        seconds: u32,
    },
    AlertUnsnooze {
        subject: String,
    },
    /// Reads the configuration anew.
    Reload,
    /// The texts of the configuration that the daemon was started with, and that is in force.
    Configuration,
    /// Delivers to a sink now.
    SinkSync {
        sink: String,
    },
    ConsumerAdd {
        credential_id: String,
        name: String,
        wait_seconds: u32,
    },
    ConsumerRemove {
        credential_id: String,
        name: String,
    },
    /// A consumer uses this generation.
    CredentialAck {
        credential_id: String,
        consumer: String,
        generation: u32,
    },
    /// A link into the dashboard, for one use.
    DashboardLink,
    /// Ends every session of the dashboard.
    DashboardSignOut,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct AddCredential {
    pub credential_id: String,
    pub profile_id: Option<String>,
    pub service: String,
    pub settings: Vec<(String, String)>,
    pub private_hosts: Vec<String>,
    pub method: Option<String>,
    pub validate_interval: Option<u32>,
    pub max_age: Option<u32>,
    /// The account to pin from the start.
    #[serde(default)]
    pub identity: Option<String>,
    pub idle_limit: Option<u32>,
    pub quiet: Vec<String>,
    pub keys: Vec<KeyInput>,
}

/// What is changed about when a credential is looked at; None: as it is. Seconds; 0 stands for
/// the provider's word, and no window for none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SetCredential {
    pub credential_id: String,
    pub validate_interval: Option<u32>,
    pub max_age: Option<u32>,
    pub idle_limit: Option<u32>,
    pub quiet: Option<Vec<String>>,
}

/// A secret on its way into the vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyInput {
    pub name: String,
    pub value: SecretInput,
    pub expires: Option<Millis>,
    pub cookie: Option<CookieAttributes>,
}

/// A token for an external worker, the one time that it is shown.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerToken {
    pub token_id: String,
    pub token: SecretInput,
    pub expires_at: Option<Millis>,
    /// Whether a plugin serves its service too.
    pub served: bool,
}

/// A token of the API, the one time that it is shown.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApiToken {
    pub token_id: String,
    pub token: SecretInput,
    pub expires_at: Option<Millis>,
}

/// A link into the dashboard: where it is served, and the one-time part.
#[derive(Debug, Serialize, Deserialize)]
pub struct DashboardLink {
    pub listening: SocketAddr,
    pub token: SecretInput,
    pub seconds: u64,
}

/// The one place where a secret is serialised: between two processes of one user, over a
/// socket in a private folder. Hexadecimal, for secrets are bytes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretInput(String);

impl SecretInput {
    pub fn new(secret: &Secret) -> Self {
        Self(hex::encode(secret.expose()))
    }

    /// What isn't hexadecimal never came from `new`, and is an empty secret.
    pub fn into_secret(self) -> Secret {
        Secret::new(hex::decode(self.0).unwrap_or_default())
    }
}

impl fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretInput(…)")
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Done,
    Lines(Vec<String>),
    Plugins(Vec<PluginStatus>),
    Wish(Box<Wish>),
    Unparked(bool),
    Trusted(TrustedKey),
    Report(Box<Report>),
    /// The generation that is current now.
    Restored(u32),
    Planned(Box<Preview>),
    SelfTested(SelfTest),
    Pruned(Pruned),
    Status {
        workers: Vec<WorkerStatus>,
        plugins: Vec<PluginStatus>,
        in_flight: usize,
        /// None: no port is open.
        http: Option<HttpStatus>,
        /// Service, and what holds it up.
        held: Vec<(String, String)>,
        /// How far the services' clocks are ahead of this host's, in milliseconds, where it matters.
        clock_behind: Option<i64>,
        /// Why the last batch could not be written; None: it was.
        #[serde(default)]
        not_writable: Option<String>,
    },
    WorkerToken(Box<WorkerToken>),
    DashboardLink(Box<DashboardLink>),
    /// How many sessions there were.
    SignedOut(usize),
    AlertTested(Vec<Tested>),
    /// The subject in full, and until when.
    Snoozed {
        subject: String,
        until: Option<Millis>,
    },
    /// The generation that is in force.
    Acknowledged {
        current: u32,
    },
    ApiToken(Box<ApiToken>),
    Vitals(Box<Vitals>),
    Reloaded(Reloaded),
    Configuration {
        started: String,
        now: String,
    },
}

/// How the daemon's parts are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Vitals {
    pub workers: Vec<WorkerStatus>,
    /// Files of the plugin folder by state.
    pub plugins: BTreeMap<String, u64>,
    /// Those that a plugin serves.
    pub services: BTreeSet<String>,
    pub paused: BTreeSet<String>,
    /// Those that something holds up, the paused ones included.
    pub held: BTreeSet<String>,
    pub in_flight: usize,
    /// How far the services' clocks are ahead of this host's, in milliseconds, where it matters.
    pub clock_behind: Option<i64>,
    /// Milliseconds since the scheduler began its last round; None: it doesn't serve.
    pub turned: Option<u64>,
}

/// What the running daemon says of its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpStatus {
    pub listening: SocketAddr,
    /// Clients that wait for a newer generation.
    pub waiting: usize,
    #[serde(flatten)]
    pub counted: Counted,
}

/// Since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    pub announced: u64,
    /// Reports that were kept.
    pub accepted: u64,
    /// Reports that were here before.
    pub duplicates: u64,
    /// What was refused, by the code of the answer.
    pub refused: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    NotFound,
    BadInput,
    Busy,
    /// Try again later: the database can't be written now.
    Unavailable,
    Internal,
}

/// Why an operation was not carried out, in words for the operator.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
}

impl Refusal {
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::NotFound, message: message.into() }
    }

    pub fn bad_input(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::BadInput, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Internal, message: message.into() }
    }
}

impl From<WriteError> for Refusal {
    fn from(error: WriteError) -> Self {
        let kind = match &error {
            WriteError::Duplicate { .. }
            | WriteError::Invalid(_)
            | WriteError::Stale { .. }
            | WriteError::External { .. }
            | WriteError::OtherService { .. }
            | WriteError::TooMany { .. } => RefusalKind::BadInput,
            WriteError::NotFound { .. } => RefusalKind::NotFound,
            WriteError::Busy { .. }
            | WriteError::Fenced { .. }
            | WriteError::Pinned { .. }
            | WriteError::Changed { .. }
            | WriteError::Resting { .. }
            | WriteError::Replaced { .. } => RefusalKind::Busy,
            _ => RefusalKind::Unavailable,
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<RetentionError> for Refusal {
    fn from(error: RetentionError) -> Self {
        match error {
            RetentionError::Write(error) => error.into(),
            RetentionError::Archive { .. } => {
                Self { kind: RefusalKind::Unavailable, message: error.to_string() }
            }
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<TestError> for Refusal {
    fn from(error: TestError) -> Self {
        match error {
            TestError::None => Self::bad_input(error.to_string()),
            TestError::Unknown { .. } => Self::not_found(error.to_string()),
        }
    }
}

impl From<SinkError> for Refusal {
    fn from(error: SinkError) -> Self {
        let kind = match error {
            SinkError::Write(error) => return error.into(),
            SinkError::NoSuchSink { .. } | SinkError::NoCredential(_) => RefusalKind::NotFound,
            SinkError::NoSecrets(_) | SinkError::Form(_) | SinkError::Secret { .. } => RefusalKind::BadInput,
            SinkError::Busy => RefusalKind::Busy,
            _ => RefusalKind::Unavailable,
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::NoCredential(_) | PlanError::NoPlugin(_) => Self::not_found(error.to_string()),
            PlanError::Unfit(_) => Self::bad_input(error.to_string()),
            PlanError::Read(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Write(error) => error.into(),
            RegistryError::NoSuchService(_) => Self::not_found(error.to_string()),
            RegistryError::Refused(_) => Self::bad_input(error.to_string()),
            RegistryError::Folder { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::not_found(format!("{error}: {source}"))
            }
            RegistryError::Folder { ref source, .. } => Self::bad_input(format!("{error}: {source}")),
            RegistryError::Inbox(ref source) => Self::internal(format!("{error}: {source}")),
            RegistryError::Open(_) | RegistryError::Read(_) => Self::internal(error.to_string()),
        }
    }
}

/// Carries out operations for a part of the daemon that must not know the host.
pub type Command = Arc<dyn Fn(Operation) -> BoxFuture<'static, Result<Outcome, Refusal>> + Send + Sync>;

/// Makes the socket, in place of one that a killed daemon left behind. The home's lock is
/// held, so no living daemon owns it.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The home is 0700 already; this holds where an operator opened it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers clients until `stop`.
pub async fn serve(listener: UnixListener, host: Arc<Host>, mut stop: watch::Receiver<bool>) {
    let mut clients = tokio::task::JoinSet::new();
    let mut failing = false;
    while !*stop.borrow() {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("clients are accepted again");
                    }
                    let host = Arc::clone(&host);
                    clients.spawn(async move {
                        if let Err(error) = answer(client, &host).await {
                            tracing::debug!(%error, "a client went away");
                        }
                    });
                }
                Err(error) => {
                    // Once, not ten times a second for as long as it lasts.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "a client can't be accepted; it waits");
                    }
                    // Out of descriptors: a moment of rest, or this loop burns a core.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = stop.changed() => {}
        }
        while clients.try_join_next().is_some() {}
    }
    // What was asked is finished: an attempt a person started is an attempt.
    let finished = async { while clients.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(limits::DRAIN, finished).await;
    clients.abort_all();
    while clients.join_next().await.is_some() {}
}

async fn answer(client: UnixStream, host: &Host) -> io::Result<()> {
    let (from, mut to) = client.into_split();
    let mut line = Vec::new();
    let mut from = BufReader::new(from.take(LONGEST_LINE));
    tokio::time::timeout(SILENCE, from.read_until(b'\n', &mut line)).await??;
    if line.is_empty() {
        // It only asked whether a daemon is here.
        return Ok(());
    }
    let outcome = match serde_json::from_slice::<Operation>(&line) {
        Ok(operation) => host.carry_out(operation).await,
        // The line may hold a secret, so the error doesn't quote it.
        Err(error) => {
            Err(Refusal::bad_input(format!("not an operation of this version (column {})", error.column())))
        }
    };
    let mut reply = serde_json::to_vec(&outcome).map_err(io::Error::other)?;
    reply.push(b'\n');
    to.write_all(&reply).await
}

/// Asks the running daemon. None: there is none.
///
/// # Errors
/// Where a daemon is there and the exchange failed.
pub async fn ask(socket: &Path, operation: &Operation) -> io::Result<Option<Result<Outcome, Refusal>>> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let (from, mut to) = stream.into_split();
    let mut line = serde_json::to_vec(operation).map_err(io::Error::other)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    let mut reply = Vec::new();
    BufReader::new(from).read_until(b'\n', &mut reply).await?;
    if reply.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon ended before it answered"));
    }
    serde_json::from_slice(&reply).map(Some).map_err(io::Error::other)
}
