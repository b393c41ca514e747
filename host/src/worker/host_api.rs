//! The host API as a plugin sees it: each call becomes a message to the host, and nothing is
//! decided here but the caps. One `Guest` belongs to one call and dies with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, UpdateDeadline};
use wasmtime_wasi::p2::OutputStream;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::bindings::{http, log, secrets, types};
use super::convert;
use super::link::{Link, Reply};
use crate::protocol::{CallId, CallLimits, FromWorker, LogLevel};

/// A log line that a plugin may send; longer ones are cut.
const LOG_LINE: usize = 4 << 10;

/// The call went over one of its limits. Told apart from a trap by its type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OverLimit(pub String);

/// What belongs to one call.
pub struct Guest {
    id: CallId,
    link: Arc<Link>,
    limits: CallLimits,
    host_calls: u32,
    log_bytes: u32,
    /// False while `describe` runs: it has no host API at all.
    open: bool,
    cpu: CpuClock,
    wasi: Option<Box<Wasi>>,
}

struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
}

/// Guest CPU time: wall time since the call began, less what it spent waiting for the host
/// and for its turn.
#[derive(Clone)]
struct CpuClock {
    started: Instant,
    waited_ns: Arc<AtomicU64>,
}

impl CpuClock {
    fn start() -> Self {
        Self { started: Instant::now(), waited_ns: Arc::new(AtomicU64::new(0)) }
    }

    fn waited(&self, since: Instant) {
        let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    fn used(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed)))
    }
}

impl Guest {
    pub fn new(id: CallId, link: Arc<Link>, limits: CallLimits, open: bool, wants_wasi: bool) -> Self {
        let wasi = wants_wasi.then(|| {
            let lines = |level| GuestLines { id, link: Arc::clone(&link), level, left: limits.log_bytes };
            Box::new(Wasi {
                ctx: WasiCtxBuilder::new()
                    .stdout(lines(LogLevel::Info))
                    .stderr(lines(LogLevel::Warn))
                    .max_random_size(64 << 10)
                    .build(),
                table: ResourceTable::new(),
            })
        });
        Self { id, link, limits, host_calls: 0, log_bytes: 0, open, cpu: CpuClock::start(), wasi }
    }

    /// Runs at each epoch tick that finds the guest still computing: other calls of this
    /// worker get their turn, and the CPU deadline is checked.
    pub fn tick(&self) -> wasmtime::Result<UpdateDeadline> {
        let used = self.cpu.used();
        let allowed = Duration::from_millis(u64::from(self.limits.cpu_ms));
        if used > allowed {
            return Err(OverLimit(format!(
                "{} ms of CPU used, {} allowed",
                used.as_millis(),
                allowed.as_millis()
            ))
            .into());
        }
        let clock = self.cpu.clone();
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                let since = Instant::now();
                tokio::task::yield_now().await;
                clock.waited(since);
            }),
        ))
    }

    fn count_call(&mut self) -> wasmtime::Result<()> {
        self.host_calls += 1;
        if self.host_calls > self.limits.host_calls {
            return Err(OverLimit(format!("more than {} calls to the host", self.limits.host_calls)).into());
        }
        Ok(())
    }

    async fn ask(&mut self, message: FromWorker) -> wasmtime::Result<Reply> {
        let since = Instant::now();
        let (answer, answered) = oneshot::channel();
        self.link.expect_reply(self.id, answer);
        self.link.send(&message);
        let reply = answered.await;
        self.cpu.waited(since);
        // The sender is gone only when the call was cancelled, and then nobody reads this.
        reply.map_err(|_| wasmtime::format_err!("the call was cancelled"))
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired as u64 > self.limits.memory_bytes {
            return Err(OverLimit(format!(
                "{desired} bytes of memory asked for, {} allowed",
                self.limits.memory_bytes
            ))
            .into());
        }
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        const ELEMENTS: usize = 20_000;
        if desired > ELEMENTS {
            return Err(OverLimit(format!("{desired} table elements asked for, {ELEMENTS} allowed")).into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        128
    }

    fn memories(&self) -> usize {
        8
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi.get_or_insert_with(|| {
            Box::new(Wasi { ctx: WasiCtxBuilder::new().build(), table: ResourceTable::new() })
        });
        WasiCtxView { ctx: &mut wasi.ctx, table: &mut wasi.table }
    }
}

impl types::Host for Guest {}

impl http::Host for Guest {
    async fn send(
        &mut self,
        request: http::Request,
    ) -> wasmtime::Result<Result<http::Response, http::Error>> {
        self.count_call()?;
        if !self.open {
            return Ok(Err(http::Error::Denied("describe runs without the host API".into())));
        }
        let message = FromWorker::Http { id: self.id, request: convert::request(request) };
        match self.ask(message).await? {
            Reply::Http(result) => Ok(result.map(convert::response).map_err(convert::http_error)),
            Reply::Reveal(_) => Err(wasmtime::format_err!("the host answered another question")),
        }
    }
}

impl log::Host for Guest {
    fn emit(&mut self, level: log::Level, mut message: String) -> wasmtime::Result<()> {
        self.count_call()?;
        if message.len() > LOG_LINE {
            let mut end = LOG_LINE;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        self.log_bytes = self.log_bytes.saturating_add(u32::try_from(message.len()).unwrap_or(u32::MAX));
        if self.log_bytes > self.limits.log_bytes {
            return Err(OverLimit(format!("more than {} bytes of log", self.limits.log_bytes)).into());
        }
        self.link.send(&FromWorker::Log { id: self.id, level: convert::log_level(level), message });
        Ok(())
    }
}

impl secrets::Host for Guest {
    async fn reveal(&mut self, key: String) -> wasmtime::Result<Result<Vec<u8>, String>> {
        self.count_call()?;
        if !self.open {
            return Ok(Err("describe runs without the host API".into()));
        }
        match self.ask(FromWorker::Reveal { id: self.id, key }).await? {
            Reply::Reveal(result) => Ok(result),
            Reply::Http(_) => Err(wasmtime::format_err!("the host answered another question")),
        }
    }
}

/// A plugin's standard output and error become log lines, within the same budget.
#[derive(Clone)]
struct GuestLines {
    id: CallId,
    link: Arc<Link>,
    level: LogLevel,
    left: u32,
}

impl wasmtime_wasi::cli::IsTerminal for GuestLines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl wasmtime_wasi::cli::StdoutStream for GuestLines {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl wasmtime_wasi::p2::Pollable for GuestLines {
    async fn ready(&mut self) {}
}

impl OutputStream for GuestLines {
    fn write(&mut self, bytes: bytes::Bytes) -> wasmtime_wasi::p2::StreamResult<()> {
        let taken = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if taken > self.left {
            return Err(wasmtime_wasi::p2::StreamError::Trap(
                OverLimit("more output than a call may write".into()).into(),
            ));
        }
        self.left -= taken;
        for line in String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty()) {
            self.link.send(&FromWorker::Log { id: self.id, level: self.level, message: line.to_owned() });
        }
        Ok(())
    }

    fn flush(&mut self) -> wasmtime_wasi::p2::StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> wasmtime_wasi::p2::StreamResult<usize> {
        Ok(LOG_LINE)
    }
}
