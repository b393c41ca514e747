//! What the host and a worker say to each other over their one socket: frames of a length and
//! a postcard message. A leaf: it opens nothing and decides nothing. No type here is
//! recursive, for a nested frame would overflow the reader's stack.
//!
//! Both ends are the same binary, so the encoding needs no self-description; `BUILD` in the
//! handshake proves it. The host treats every frame as hostile all the same.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::provider::{Encoding, Manifest};

/// The contract versions this host can load, oldest first.
pub const ABI_VERSIONS: &[&str] = &["0.1.0"];

/// Names this very build; a worker of another build is refused.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", "protocol-2");

/// The largest frame either side accepts. A response body is capped at 2 MiB by `limits`,
/// and everything else of a frame is small; four leaves room without letting a hostile
/// worker make the host allocate.
pub const MAX_FRAME: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaf {
    Text(String),
    Secret { key: String, encoding: Encoding },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    Text(String),
    Secret { key: String, encoding: Encoding },
    Encoded { leaves: Vec<Leaf>, encoding: Encoding },
}

pub type Template = Vec<Part>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    JsonPointer(String),
    Header(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    pub key: String,
    pub from: Source,
    pub expires_in: Option<Source>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    pub method: String,
    pub url: Template,
    pub headers: Vec<(String, Template)>,
    pub body: Option<Template>,
    pub cookies: bool,
    pub capture: Vec<Capture>,
    pub redirects: u8,
    /// Seconds.
    pub timeout: Option<u32>,
    pub extras: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    pub key: String,
    pub fingerprint: Option<String>,
    pub changed: bool,
    pub expires: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpResponse {
    pub status: u16,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub captured: Vec<Captured>,
    pub extras: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum HttpError {
    #[error("denied: {0}")]
    Denied(String),
    #[error("name resolution failed: {0}")]
    Dns(String),
    #[error("connection failed: {0}")]
    Connect(String),
    #[error("TLS failed: {0}")]
    Tls(String),
    #[error("timed out")]
    Timeout,
    #[error("the answer is longer than {0} bytes")]
    TooLarge(u64),
    #[error("protocol error: {0}")]
    Protocol(String),
    #[error("the attempt's budget is used up: {0}")]
    Budget(String),
    #[error("{0}")]
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    pub name: String,
    pub present: bool,
    pub fingerprint: Option<String>,
    pub expires: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub credential_id: String,
    pub profile_id: Option<String>,
    pub settings: Vec<(String, String)>,
    pub keys: Vec<KeyState>,
    pub attempt: u32,
    pub now: u64,
    pub extras: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Evidence {
    pub expires: Option<u64>,
    pub identity: Option<String>,
    pub next: Option<u32>,
    pub note: Option<String>,
    pub extras: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reason {
    pub message: String,
    pub retry_after: Option<u32>,
    pub extras: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Valid(Evidence),
    Invalid(Reason),
    Unknown(Reason),
    NeedsHuman(Reason),
}

impl Verdict {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Valid(_) => "valid",
            Self::Invalid(_) => "invalid",
            Self::Unknown(_) => "unknown",
            Self::NeedsHuman(_) => "needs-human",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Rotated(Evidence),
    Unchanged(Evidence),
    Invalid(Reason),
    Unknown(Reason),
    NeedsHuman(Reason),
}

/// What the host asks a worker to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    Describe,
    Validate(Context),
    Rotate(Context, String),
}

/// What came of a call whose guest returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Described(Box<Manifest>),
    Validated(Verdict),
    Rotated(Outcome),
}

/// How a call ended without an answer. A guest's own failure, a trap and a limit are three
/// different things; a worker's death is a fourth, which no worker can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    #[error("the provider failed: {0}")]
    Guest(String),
    #[error("the plugin trapped: {0}")]
    Trap(String),
    #[error("the plugin went over a limit: {0}")]
    Limit(String),
    #[error("the plugin can't be run: {0}")]
    Load(String),
}

/// Numbers the calls in flight on one worker.
pub type CallId = u32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// First, and once. Without a pool the worker allocates on demand, for the one call that
    /// describes a plugin nobody knows yet.
    Hello {
        worker_id: String,
        service: Option<String>,
        limits: CallLimits,
        pool: Option<PoolShape>,
        confinement: Confinement,
    },
    Start {
        id: CallId,
        call: Call,
    },
    HttpDone {
        id: CallId,
        result: Result<HttpResponse, HttpError>,
    },
    RevealDone {
        id: CallId,
        result: Result<Vec<u8>, String>,
    },
    /// Drop the call; nothing more will be answered for it.
    Cancel {
        id: CallId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// `worker-announce`: the answer to `Hello`.
    Announce {
        pid: u32,
        worker_id: String,
        service: Option<String>,
        abi: String,
        build: String,
        layers: Vec<Layer>,
        shape: PoolShape,
    },
    /// The worker could not get ready and ends.
    Unfit(String),
    Http {
        id: CallId,
        request: HttpRequest,
    },
    Reveal {
        id: CallId,
        key: String,
    },
    Log {
        id: CallId,
        level: LogLevel,
        message: String,
    },
    /// `worker-report`: a call's end.
    Finished {
        id: CallId,
        result: Result<Answer, Fault>,
        used: Used,
    },
}

/// What a call took of the limits that only its worker can count. A worker may lie about it, so
/// it is for the author of the plugin to read and bounds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Used {
    pub cpu_us: u64,
    /// Of its largest memory, at the most.
    pub memory_bytes: u64,
    /// By the clock on the wall: until its instance was there, and until it ended.
    pub instantiate_us: u64,
    pub total_us: u64,
}

/// Which layers of the sandbox a process must have before it touches a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Require {
    Nothing,
    /// Containers often deny namespaces to those who aren't root; the other layers hold alone.
    AllButNamespaces,
    All,
}

/// The name of the one layer that `Require::AllButNamespaces` does without.
pub const NAMESPACES: &str = "namespaces";

impl Require {
    /// In words, the layers of these that are missing and may not be.
    pub fn unmet(self, layers: &[Layer]) -> Vec<String> {
        let needed = |layer: &&Layer| match self {
            Self::Nothing => false,
            Self::AllButNamespaces => layer.name != NAMESPACES,
            Self::All => true,
        };
        layers.iter().filter(needed).filter_map(Layer::missing).collect()
    }
}

/// What a child can't find out about its sandbox by itself. For a compiler it is the whole order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    pub require: Require,
    pub namespaces: LayerState,
}

/// What kind of process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Runs native code that is mapped already: no executable mapping from here on.
    Worker,
    /// Turns WebAssembly into native code: a file in, a file out.
    Compiler,
}

/// What a probe is asked to do once it is confined as a real process of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeOrder {
    pub kind: Kind,
    pub confinement: Confinement,
    /// False: everything but the filter of system calls, to see what the other layers hold.
    pub filtered: bool,
    /// One of `worker::probe::ATTEMPTS`; None: only say which layers there are.
    pub attempt: Option<u32>,
    pub targets: Targets,
}

/// Real things within reach of an unconfined process, for an attempt to fail at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Targets {
    pub host_pid: i32,
    /// A listening socket on 127.0.0.1.
    pub tcp_port: u16,
    /// One for datagrams.
    pub udp_port: u16,
    /// The name of a listening socket in the abstract namespace.
    pub abstract_name: String,
    /// A folder that its user may write.
    pub folder: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAnswer {
    Confined(Vec<Layer>),
    Unfit(String),
    /// The attempt returned: an error number of the system, or none because it succeeded.
    Returned(Option<i32>),
}

/// One layer of the sandbox, as the process itself found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub name: String,
    pub state: LayerState,
}

impl Layer {
    /// What is amiss, in words, if it isn't on.
    pub fn missing(&self) -> Option<String> {
        match &self.state {
            LayerState::On => None,
            LayerState::Off => Some(format!("{} is off", self.name)),
            LayerState::Unavailable(why) => Some(format!("{}: {why}", self.name)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    On,
    Off,
    Unavailable(String),
}

/// What one instance of a plugin needs of the pooling allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolShape {
    pub memories: u32,
    pub tables: u32,
}

/// What the compiler process answers, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompileAnswer {
    Compiled { bytes: u64, imports: Vec<String> },
    Refused(String),
}

/// What one call may use. The numbers and their reasons are in `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLimits {
    pub memory_bytes: u64,
    pub cpu_ms: u32,
    pub host_calls: u32,
    pub log_bytes: u32,
    pub in_flight: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {found} bytes, at most {MAX_FRAME} allowed")]
    TooLarge { found: usize },
    #[error("frame is not a known message")]
    Malformed,
    #[error("{0} bytes follow the message in its frame")]
    Trailing(usize),
}

/// Appends a message as one frame: `u32` little-endian length, then postcard.
///
/// # Errors
/// `TooLarge` where the message does not fit a frame; nothing is appended then.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let taken = std::mem::take(out);
    match postcard::to_extend(message, taken) {
        Ok(mut filled) => {
            let length = filled.len() - start - 4;
            if length > MAX_FRAME {
                filled.truncate(start);
                *out = filled;
                return Err(FrameError::TooLarge { found: length });
            }
            // MAX_FRAME fits a u32, so this never truncates.
            filled[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
            *out = filled;
            Ok(())
        }
        Err(_) => Err(FrameError::Malformed),
    }
}

/// The length of the frame whose first bytes these are, once four are there.
///
/// # Errors
/// `TooLarge` before anything is allocated for it.
pub fn frame_length(head: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(head) = head.first_chunk::<4>() else { return Ok(None) };
    let found = u32::from_le_bytes(*head) as usize;
    if found > MAX_FRAME { Err(FrameError::TooLarge { found }) } else { Ok(Some(found)) }
}

/// Reads the message of one whole frame's body.
///
/// # Errors
/// Bytes that are no message, and bytes left after it.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
}
