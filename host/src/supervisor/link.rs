//! The host's end of a worker's socket. Every frame is hostile until checked: who may speak is
//! decided by which socket spoke, and a worker that breaks the protocol is killed.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use crate::protocol::{self, Answer, CallId, Fault, FromWorker, HttpRequest, LogLevel, ToWorker};

/// Messages of one call that wait. A guest waits for each answer, so only log lines can pile
/// up here, and a worker honest about its log cap never fills it.
const CALL_QUEUE: usize = 512;

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
    calls: Mutex<Option<HashMap<CallId, mpsc::Sender<CallEvent>>>>,
    next: AtomicU32,
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
        Arc::new(Self {
            out: Mutex::default(),
            filled: Notify::new(),
            calls: Mutex::new(Some(HashMap::new())),
            next: AtomicU32::new(1),
        })
    }

    /// Registers a call before it is sent, so that no answer can come unexpected. None: the
    /// worker is gone.
    pub fn register(&self) -> Option<(CallId, mpsc::Receiver<CallEvent>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (events, received) = mpsc::channel(CALL_QUEUE);
        hold(&self.calls).as_mut()?.insert(id, events);
        Some((id, received))
    }

    pub fn forget(&self, id: CallId) -> bool {
        hold(&self.calls).as_mut().is_some_and(|calls| calls.remove(&id).is_some())
    }

    /// # Errors
    /// Where the message fits no frame.
    pub fn send(&self, message: &ToWorker) -> Result<(), protocol::FrameError> {
        protocol::encode(message, &mut hold(&self.out))?;
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
            socket.write_all(&batch).await?;
            batch.clear();
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
                if let Err(why) = self.route(message) {
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

    fn route(&self, message: FromWorker) -> Result<(), String> {
        let (id, event) = match message {
            FromWorker::Http { id, request } => (id, CallEvent::Http(request)),
            FromWorker::Reveal { id, key } => (id, CallEvent::Reveal(key)),
            FromWorker::Log { id, level, message } => (id, CallEvent::Log(level, message)),
            FromWorker::Finished { id, result } => (id, CallEvent::Finished(result)),
            FromWorker::Announce { .. } | FromWorker::Unfit(_) => {
                return Err("a second announcement".into());
            }
        };
        let last = matches!(event, CallEvent::Finished(_));
        let mut calls = hold(&self.calls);
        let Some(calls) = calls.as_mut() else { return Ok(()) };
        let sender = if last { calls.remove(&id) } else { calls.get(&id).cloned() };
        match sender {
            Some(sender) => sender.try_send(event).or_else(|error| match error {
                mpsc::error::TrySendError::Full(_) => Err(format!("call {id} floods the host")),
                // The attempt gave up on the call; its cancellation is on the way.
                mpsc::error::TrySendError::Closed(_) => Ok(()),
            }),
            None if id < self.next.load(Ordering::Relaxed) => Ok(()),
            None => Err(format!("a message for call {id}, which never was")),
        }
    }
}
