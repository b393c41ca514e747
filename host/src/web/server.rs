//! Connections: how many, for how long, and how they end. It knows nothing of what is served.
//!
//! HTTP has no time limits of its own, so each connection carries one: from its beginning, or
//! from the last byte of ours that it took, it has `HTTP_REQUEST_WALL` to deliver a whole request
//! or to take more of the answer. A client that dribbles bytes gains nothing by it. A route that
//! makes its client wait says so by `Peer::patience`.

use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::limits;

/// Who is at the other end, for routes.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    patience: Patience,
}

/// Until when an answer may keep its client waiting.
#[derive(Debug, Clone, Default)]
struct Patience(Arc<Mutex<Option<Instant>>>);

impl Patience {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// The answer to this request comes by then, and the connection lasts as long.
    pub fn patience(&self, until: Instant) {
        *self.patience.until() = Some(until);
    }
}

impl Connected<IncomingStream<'_, Entrance>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Entrance>) -> Self {
        Self { address: *stream.remote_addr(), patience: stream.io().patience.clone() }
    }
}

/// The port before anyone is let in.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// # Errors
    /// The system's.
    pub async fn open(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Lets in as many as there are places.
pub struct Entrance {
    door: Door,
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Listener for Entrance {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        // Those beyond wait in the kernel's queue; a place is free after the wall at the latest.
        let place = loop {
            match Arc::clone(&self.places).acquire_owned().await {
                Ok(place) => break place,
                // Nobody closes it.
                Err(_) => std::future::pending().await,
            }
        };
        loop {
            match self.door.listener.accept().await {
                Ok((stream, peer)) => {
                    // Answers are one small packet; without it each would wait for the client.
                    let _ = stream.set_nodelay(true);
                    return (Guarded::new(stream, place, self.stop.clone()), peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "an HTTP client can't be accepted");
                    // Out of descriptors: a moment of rest, or this loop burns a core.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.door.address)
    }
}

/// A connection with its deadline, and its place.
pub struct Guarded {
    stream: TcpStream,
    wall: Pin<Box<Sleep>>,
    patience: Patience,
    /// Ends a moment after the daemon is told to.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, stop: watch::Receiver<bool>) -> Self {
        let end = Box::pin(async move {
            stopped(stop).await;
            tokio::time::sleep(limits::HTTP_DRAIN).await;
        });
        let wall = Box::pin(tokio::time::sleep(limits::HTTP_REQUEST_WALL));
        Self { stream, wall, patience: Patience::default(), end, _place: place }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        while self.wall.as_mut().poll(context).is_ready() {
            // Once: a client that doesn't take its late answer has the usual time for it.
            match self.patience.until().take().filter(|until| *until > Instant::now()) {
                Some(until) => self.wall.as_mut().reset(until),
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            this.wall.as_mut().reset(Instant::now() + limits::HTTP_REQUEST_WALL);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// An error means the sender is gone, which ends the daemon just as well.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves until `stop`; then nothing new is taken, and what was begun may end within
/// `HTTP_DRAIN`, after which its connection is cut.
pub async fn serve(door: Door, routes: Router, stop: watch::Receiver<bool>) {
    let entrance =
        Entrance { door, places: Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS)), stop: stop.clone() };
    let service = routes.into_make_service_with_connect_info::<Peer>();
    let served = axum::serve(entrance, service).with_graceful_shutdown(stopped(stop)).into_future();
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP port ended");
    }
}
