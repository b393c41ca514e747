//! The worker's end of its one socket: frames in, frames out, and who waits for which answer.
//! Writes are gathered, so that many small messages make one system call.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use crate::protocol::{self, CallId, FromWorker, HttpError, HttpResponse, ToWorker};

/// What the host answers a guest that waits.
pub enum Reply {
    Http(Result<HttpResponse, HttpError>),
    Reveal(Result<Vec<u8>, String>),
}

#[derive(Default)]
pub struct Link {
    out: Mutex<Vec<u8>>,
    filled: Notify,
    waiting: Mutex<HashMap<CallId, oneshot::Sender<Reply>>>,
}

fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Queues a message. Its size is bounded by the guest's memory cap and the frame cap: a
    /// message that fits no frame is answered for the host, as an error.
    pub fn send(&self, message: &FromWorker) {
        if let Err(error) = protocol::encode(message, &mut hold(&self.out)) {
            match message {
                FromWorker::Http { id, .. } => {
                    self.reply(*id, Reply::Http(Err(HttpError::Denied(error.to_string()))));
                }
                FromWorker::Reveal { id, .. } => self.reply(*id, Reply::Reveal(Err(error.to_string()))),
                FromWorker::Finished { id, used, .. } => {
                    let fault = protocol::Fault::Limit(format!("the answer is too large: {error}"));
                    // A fault is a few dozen bytes, so this second message always fits.
                    self.send(&FromWorker::Finished { id: *id, result: Err(fault), used: *used });
                }
                FromWorker::Log { .. } | FromWorker::Announce { .. } | FromWorker::Unfit(_) => {}
            }
        }
        self.filled.notify_one();
    }

    pub fn expect_reply(&self, id: CallId, answer: oneshot::Sender<Reply>) {
        hold(&self.waiting).insert(id, answer);
    }

    pub fn reply(&self, id: CallId, reply: Reply) {
        if let Some(answer) = hold(&self.waiting).remove(&id) {
            // The call may have ended meanwhile; then the answer is nobody's.
            let _ = answer.send(reply);
        }
    }

    pub fn forget(&self, id: CallId) {
        hold(&self.waiting).remove(&id);
    }

    /// Writes what is queued, for as long as the socket lives.
    pub async fn write_all(&self, socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            self.filled.notified().await;
            // Calls that are ready now get to add their messages to this batch.
            tokio::task::yield_now().await;
            std::mem::swap(&mut batch, &mut hold(&self.out));
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let mut ready = socket.writable().await?;
                match ready.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), rest)?)) {
                    Ok(Ok(written)) => rest = &rest[written..],
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => {}
                }
            }
            batch.clear();
            // A burst must not keep its memory for good.
            batch.shrink_to(64 << 10);
        }
    }
}

/// Reads frames and hands each message on. Ends with the socket.
pub async fn read_all(socket: &AsyncFd<OwnedFd>, mut on_message: impl FnMut(ToWorker)) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut start = 0;
    loop {
        while let Some(length) = protocol::frame_length(&buffer[start..]).map_err(io::Error::other)? {
            let Some(body) = buffer.get(start + 4..start + 4 + length) else { break };
            on_message(protocol::decode(body).map_err(io::Error::other)?);
            start += 4 + length;
        }
        buffer.drain(..start);
        start = 0;
        buffer.reserve(16 << 10);
        let mut ready = socket.readable().await?;
        let spare = rustix::buffer::spare_capacity(&mut buffer);
        match ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), spare)?)) {
            Ok(Ok(0)) => return Ok(()),
            Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}
