//! The host's end of a worker's socket. Every frame is hostile until checked: who may speak is
//! decided by which socket spoke, and a worker that breaks the protocol is killed. What it may
//! make the host hold is bounded call by call, for an escaped worker keeps none of the caps
//! that `worker::host_api` counts.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::inbox::{Events, Teller, inbox};
use crate::limits;
use crate::protocol::{
    self, Answer, CallId, Fault, FromWorker, HttpError, HttpRequest, LogLevel, Outcome, Part, ToWorker, Used,
    Verdict,
};

/// Messages of one call that wait. A guest waits for each answer, so only log lines can pile
/// up here; those that find no place are dropped.
const CALL_QUEUE: usize = 512;

/// Places of the queue that log lines may not take: a question's and the end's.
const KEPT_FREE: usize = 2;

/// Bytes a worker may still say of a call that the host gave up: a question or the end, and the
/// log lines that were on their way when the cancellation went out.
const AFTERWARDS: usize = 2 * protocol::MAX_FRAME;

/// What a running call says.
#[derive(Debug)]
pub enum CallEvent {
    Http(HttpRequest),
    Reveal(String),
    Log(LogLevel, String),
    Finished(Result<Answer, Fault>),
}

/// One worker's socket, shared by its calls.
#[derive(Debug)]
pub struct HostLink {
    out: Mutex<Vec<u8>>,
    filled: Notify,
    calls: Mutex<Option<Calls>>,
    next: AtomicU32,
    /// `limits::UNREAD_WALL`; tests don't wait that long.
    patience: Duration,
}

#[derive(Debug, Default)]
struct Calls {
    open: HashMap<CallId, OpenCall>,
    /// Bytes about calls the host gave up that are still forgiven, over all of them.
    forgiven: usize,
}

/// What one call said, and may still say.
#[derive(Debug)]
struct OpenCall {
    events: Teller,
    used: Arc<OnceLock<Used>>,
    /// It asked and has no answer yet: no guest can ask again before.
    asking: bool,
    questions: u32,
    log_bytes: usize,
}

fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a worker's link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    #[error("the worker closed its socket")]
    Closed,
    #[error("the worker broke the protocol: {0}")]
    Violation(String),
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl HostLink {
    pub fn new() -> Arc<Self> {
        Self::with_patience(limits::UNREAD_WALL)
    }

    fn with_patience(patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            out: Mutex::default(),
            filled: Notify::new(),
            calls: Mutex::new(Some(Calls::default())),
            next: AtomicU32::new(1),
            patience,
        })
    }

    /// Registers a call before it is sent, so that no answer can come unexpected. None: the
    /// worker is gone.
    pub fn register(&self) -> Option<(CallId, Events)> {
        self.register_with(Arc::default())
    }

    /// As `register`; what the call used is there when it has ended.
    pub fn register_with(&self, used: Arc<OnceLock<Used>>) -> Option<(CallId, Events)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (events, received) = inbox();
        let call = OpenCall { events, used, asking: false, questions: 0, log_bytes: 0 };
        hold(&self.calls).as_mut()?.open.insert(id, call);
        Some((id, received))
    }

    pub fn forget(&self, id: CallId) -> bool {
        hold(&self.calls).as_mut().is_some_and(|calls| {
            let was_open = calls.open.remove(&id).is_some();
            if was_open {
                calls.forgiven = calls.forgiven.saturating_add(AFTERWARDS);
            }
            was_open
        })
    }

    /// # Errors
    /// Where the message fits no frame.
    pub fn send(&self, message: &ToWorker) -> Result<(), protocol::FrameError> {
        // Before the worker can have the answer, for it may ask the next question at once.
        if let ToWorker::HttpDone { id, .. } | ToWorker::RevealDone { id, .. } = message
            && let Some(call) = hold(&self.calls).as_mut().and_then(|calls| calls.open.get_mut(id))
        {
            call.asking = false;
        }
        let mut out = hold(&self.out);
        // Past the bound `write_all` ends the worker, and nothing more is kept for it.
        if out.len() <= limits::UNREAD_BYTES {
            protocol::encode(message, &mut out)?;
        }
        drop(out);
        self.filled.notify_one();
        Ok(())
    }

    /// Ends every call: their receivers see the end of the channel.
    pub fn close(&self) {
        hold(&self.calls).take();
    }

    pub async fn write_all(&self, socket: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            self.filled.notified().await;
            std::mem::swap(&mut batch, &mut hold(&self.out));
            let mut rest = batch.as_slice();
            let mut since = Instant::now();
            while !rest.is_empty() {
                let writing = tokio::time::timeout_at(since + self.patience, socket.write(rest));
                tokio::select! {
                    written = writing => {
                        rest = &rest[written.map_err(|_| unread())??..];
                        since = Instant::now();
                    }
                    // Looks at the bound whenever something was added meanwhile.
                    () = self.filled.notified() => {}
                }
                // Twice the bound is what there is at most: a batch and what gathered behind it.
                if hold(&self.out).len() > limits::UNREAD_BYTES {
                    return Err(unread());
                }
            }
            batch.clear();
            if !hold(&self.out).is_empty() {
                self.filled.notify_one();
            }
            // A burst must not keep its memory for good.
            batch.shrink_to(256 << 10);
        }
    }

    pub async fn read_all(&self, socket: &mut OwnedReadHalf) -> LinkEnd {
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            let mut start = 0;
            loop {
                let length = match protocol::frame_length(&buffer[start..]) {
                    Ok(Some(length)) => length,
                    Ok(None) => break,
                    Err(error) => return LinkEnd::Violation(error.to_string()),
                };
                let Some(body) = buffer.get(start + 4..start + 4 + length) else { break };
                let message = match protocol::decode(body) {
                    Ok(message) => message,
                    Err(error) => return LinkEnd::Violation(error.to_string()),
                };
                if let Err(why) = self.route(message, length) {
                    return LinkEnd::Violation(why);
                }
                start += 4 + length;
            }
            buffer.drain(..start);
            match socket.read_buf(&mut buffer).await {
                Ok(0) => return LinkEnd::Closed,
                Ok(_) => {}
                Err(error) => return LinkEnd::Io(error),
            }
        }
    }

    fn route(&self, message: FromWorker, length: usize) -> Result<(), String> {
        let pieces = pieces(&message);
        let over = (pieces > limits::PIECES || length > limits::MESSAGE_BYTES).then(|| {
            format!(
                "a message of {pieces} pieces and {length} bytes; allowed: {} and {}",
                limits::PIECES,
                limits::MESSAGE_BYTES
            )
        });
        let mut calls = hold(&self.calls);
        let Some(calls) = calls.as_mut() else { return Ok(()) };
        let id = match &message {
            FromWorker::Http { id, .. }
            | FromWorker::Reveal { id, .. }
            | FromWorker::Log { id, .. }
            | FromWorker::Finished { id, .. } => *id,
            FromWorker::Announce { .. } | FromWorker::Unfit(_) => {
                return Err("a second announcement".into());
            }
        };
        let Some(call) = calls.open.get_mut(&id) else {
            if id >= self.next.load(Ordering::Relaxed) {
                return Err(format!("a message for call {id}, which never was"));
            }
            calls.forgiven = calls
                .forgiven
                .checked_sub(length)
                .ok_or_else(|| format!("a message for call {id}, which has ended"))?;
            return Ok(());
        };
        let event = match message {
            FromWorker::Log { level, message, .. } => {
                call.log_bytes = call.log_bytes.saturating_add(message.len() + 1);
                if call.log_bytes > limits::CALL_LOG_FLOOD {
                    return Err(format!("call {id} floods the host with log lines"));
                }
                if call.events.waiting() >= CALL_QUEUE - KEPT_FREE {
                    return Ok(());
                }
                CallEvent::Log(level, message)
            }
            FromWorker::Http { request, .. } => {
                call.ask(id)?;
                match over {
                    None => CallEvent::Http(request),
                    Some(over) => {
                        return self
                            .refuse(call, ToWorker::HttpDone { id, result: Err(HttpError::Denied(over)) });
                    }
                }
            }
            FromWorker::Reveal { key, .. } => {
                call.ask(id)?;
                match over {
                    None => CallEvent::Reveal(key),
                    Some(over) => return self.refuse(call, ToWorker::RevealDone { id, result: Err(over) }),
                }
            }
            FromWorker::Finished { result, used, .. } => {
                // Once: the call is forgotten below.
                let _ = call.used.set(used);
                CallEvent::Finished(match over {
                    Some(over) => Err(Fault::Limit(over)),
                    None => result,
                })
            }
            // Refused above.
            FromWorker::Announce { .. } | FromWorker::Unfit(_) => return Ok(()),
        };
        let last = matches!(event, CallEvent::Finished(_));
        if call.events.waiting() >= CALL_QUEUE {
            return Err(format!("call {id} floods the host"));
        }
        // Where the attempt gave up on the call its cancellation is on the way.
        call.events.tell(event);
        if last {
            calls.open.remove(&id);
        }
        Ok(())
    }

    /// Answers what is too large to be handed on. A plugin can ask such a thing, so it is no
    /// reason to end its worker.
    fn refuse(&self, call: &mut OpenCall, answer: ToWorker) -> Result<(), String> {
        call.asking = false;
        self.filled.notify_one();
        protocol::encode(&answer, &mut hold(&self.out)).map_err(|error| error.to_string())
    }
}

impl OpenCall {
    fn ask(&mut self, id: CallId) -> Result<(), String> {
        if self.asking {
            return Err(format!("call {id} asks before it was answered"));
        }
        self.questions += 1;
        if self.questions > limits::CALL.host_calls {
            return Err(format!("call {id} asks more than {} times", limits::CALL.host_calls));
        }
        self.asking = true;
        Ok(())
    }
}

fn unread() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the worker doesn't read what it is told")
}

/// Entries of all lists of a message.
fn pieces(message: &FromWorker) -> usize {
    let template = |template: &protocol::Template| {
        template
            .iter()
            .map(|part| match part {
                Part::Encoded { leaves, .. } => 1 + leaves.len(),
                Part::Text(_) | Part::Secret { .. } => 1,
            })
            .sum::<usize>()
    };
    match message {
        FromWorker::Http { request, .. } => {
            let templates = request.headers.iter().map(|(_, value)| value).chain(&request.body);
            template(&request.url)
                + templates.map(template).sum::<usize>()
                + request.headers.len()
                + request.capture.len()
                + request.extras.len()
        }
        FromWorker::Finished { result: Ok(answer), .. } => match answer {
            Answer::Described(manifest) => {
                let choices = manifest.settings.iter().map(|setting| setting.choices.len());
                choices.sum::<usize>()
                    + manifest.keys.len()
                    + manifest.origins.len()
                    + manifest.settings.len()
                    + manifest.methods.len()
                    + manifest.extras.len()
            }
            Answer::Validated(Verdict::Valid(found))
            | Answer::Rotated(Outcome::Rotated(found) | Outcome::Unchanged(found)) => found.extras.len(),
            Answer::Validated(Verdict::Invalid(why) | Verdict::Unknown(why) | Verdict::NeedsHuman(why))
            | Answer::Rotated(Outcome::Invalid(why) | Outcome::Unknown(why) | Outcome::NeedsHuman(why)) => {
                why.extras.len()
            }
        },
        _ => 0,
    }
}

#[cfg(test)]
#[path = "hostile_worker_tests.rs"]
mod hostile_worker_tests;
