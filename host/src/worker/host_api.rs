//! The host API as a plugin sees it: each call becomes a message to the host, and nothing is
//! decided here but the caps. One `Guest` belongs to one call and dies with it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, UpdateDeadline};
use wasmtime_wasi::p2::OutputStream;
use wasmtime_wasi::{
    Deterministic, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
};

use super::bindings::{http, log, secrets, types};
use super::convert;
use super::link::{Link, Reply};
use crate::protocol::{CallId, CallLimits, FromWorker, LogLevel, Used};

/// A log line that a plugin may send; longer ones are cut.
const LOG_LINE: usize = 4 << 10;

/// The name of a key; the contract says so.
const KEY_NAME: usize = 64;

/// The call went over one of its limits. Told apart from a trap by its type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OverLimit(pub String);

/// What belongs to one call.
pub struct Guest {
    id: CallId,
    link: Arc<Link>,
    limits: CallLimits,
    spent: Arc<Spent>,
    /// False while `describe` runs: it has no host API at all.
    open: bool,
    cpu: CpuClock,
    memory: Arc<AtomicU64>,
    wasi: Option<Box<Wasi>>,
}

struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
}

/// What a call used of its budget; printing and logging draw on the same.
#[derive(Default)]
struct Spent {
    host_calls: AtomicU32,
    log_bytes: AtomicU32,
}

impl Spent {
    fn call(&self, limits: &CallLimits) -> Result<(), OverLimit> {
        // One thread, and a call ends long before the number overflows.
        if self.host_calls.fetch_add(1, Ordering::Relaxed) < limits.host_calls {
            return Ok(());
        }
        Err(OverLimit(format!("more than {} calls to the host", limits.host_calls)))
    }

    /// A line of log is a call of its own: each is a message that waits at the host.
    fn line(&self, line: &str, limits: &CallLimits) -> Result<(), OverLimit> {
        self.call(limits)?;
        let bytes = u32::try_from(line.len()).unwrap_or(u32::MAX);
        let before = self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.checked_add(bytes).is_some_and(|all| all <= limits.log_bytes) {
            return Ok(());
        }
        Err(OverLimit(format!("more than {} bytes of log", limits.log_bytes)))
    }
}

/// Guest CPU time: wall time since the call began, less what it spent waiting for the host
/// and for its turn. Sleeping counts: a plugin has nothing to sleep for.
#[derive(Clone)]
struct CpuClock {
    started: Instant,
    waited_ns: Arc<AtomicU64>,
    /// The host has been asked something and hasn't answered yet.
    asking: Arc<AtomicBool>,
}

impl CpuClock {
    fn start() -> Self {
        Self { started: Instant::now(), waited_ns: Arc::default(), asking: Arc::default() }
    }

    fn waited(&self, since: Instant) {
        let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    fn used(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed)))
    }

    fn check(&self, limits: &CallLimits) -> Result<(), OverLimit> {
        let (used, allowed) = (self.used(), Duration::from_millis(u64::from(limits.cpu_ms)));
        if used <= allowed {
            return Ok(());
        }
        Err(OverLimit(format!("{} ms of CPU used, {} allowed", used.as_millis(), allowed.as_millis())))
    }
}

/// Reads what a call used, when it is over and its guest is gone.
pub struct Meter {
    cpu: OnceLock<CpuClock>,
    memory: Arc<AtomicU64>,
    began: Instant,
    instantiated: OnceLock<Duration>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            cpu: OnceLock::new(),
            memory: Arc::default(),
            began: Instant::now(),
            instantiated: OnceLock::new(),
        }
    }
}

impl Meter {
    /// The call's instance is there.
    pub fn instantiated(&self) {
        let _ = self.instantiated.set(self.began.elapsed());
    }

    pub fn used(&self) -> Used {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Used {
            cpu_us: self.cpu.get().map_or(0, |clock| micros(clock.used())),
            memory_bytes: self.memory.load(Ordering::Relaxed),
            instantiate_us: self.instantiated.get().copied().map_or(0, micros),
            total_us: micros(self.began.elapsed()),
        }
    }
}

/// Time stands still while `describe` runs, so that it can't answer by the clock.
struct Still;

impl HostWallClock for Still {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Still {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

impl Guest {
    pub fn new(
        id: CallId,
        link: Arc<Link>,
        limits: CallLimits,
        open: bool,
        wants_wasi: bool,
        meter: &Meter,
    ) -> Self {
        let spent = Arc::<Spent>::default();
        let wasi = wants_wasi.then(|| {
            let lines =
                |level| GuestLines { id, link: Arc::clone(&link), level, limits, spent: Arc::clone(&spent) };
            let mut wasi = WasiCtxBuilder::new();
            wasi.stdout(lines(LogLevel::Info)).stderr(lines(LogLevel::Warn)).max_random_size(64 << 10);
            if !open {
                // What is approved is what `describe` said. It must not say something else the
                // next time, so it has nothing to tell one time from another.
                wasi.wall_clock(Still).monotonic_clock(Still).insecure_random_seed(0);
                wasi.secure_random(Deterministic::new(vec![0])).insecure_random(Deterministic::new(vec![0]));
            }
            Box::new(Wasi { ctx: wasi.build(), table: ResourceTable::new() })
        });
        let cpu = meter.cpu.get_or_init(CpuClock::start).clone();
        Self { id, link, limits, spent, open, cpu, memory: Arc::clone(&meter.memory), wasi }
    }

    /// Runs at each epoch tick that finds the guest still computing: other calls of this
    /// worker get their turn, and the CPU deadline is checked.
    pub fn tick(&self) -> wasmtime::Result<UpdateDeadline> {
        self.cpu.check(&self.limits)?;
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

    /// Ends when the guest went over its CPU deadline without computing: no tick finds a guest
    /// that sleeps.
    pub fn overslept(&self) -> impl Future<Output = OverLimit> + use<> {
        let (clock, limits) = (self.cpu.clone(), self.limits);
        async move {
            let allowed = Duration::from_millis(u64::from(limits.cpu_ms));
            loop {
                let left = if clock.asking.load(Ordering::Relaxed) {
                    // Its time stands still meanwhile, so there is at least nothing due before.
                    allowed
                } else if let Err(over) = clock.check(&limits) {
                    return over;
                } else {
                    allowed.saturating_sub(clock.used())
                };
                tokio::time::sleep(left + Duration::from_millis(1)).await;
            }
        }
    }

    fn count_call(&self) -> wasmtime::Result<()> {
        Ok(self.spent.call(&self.limits)?)
    }

    async fn ask(&mut self, message: FromWorker) -> wasmtime::Result<Reply> {
        let since = Instant::now();
        let (answer, answered) = oneshot::channel();
        self.link.expect_reply(self.id, answer);
        self.link.send(&message);
        self.cpu.asking.store(true, Ordering::Relaxed);
        let reply = answered.await;
        self.cpu.waited(since);
        self.cpu.asking.store(false, Ordering::Relaxed);
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
        self.memory.fetch_max(desired as u64, Ordering::Relaxed);
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

    fn tables(&self) -> usize {
        // A module has one; the pool keeps room for as many in each of its slots.
        16
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
        if message.len() > LOG_LINE {
            let mut end = LOG_LINE;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        self.spent.line(&message, &self.limits)?;
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
        if key.len() > KEY_NAME {
            // The host names the key in its refusal, and a frame has no room for it twice.
            return Ok(Err(format!("a key's name has at most {KEY_NAME} bytes, this one has {}", key.len())));
        }
        match self.ask(FromWorker::Reveal { id: self.id, key }).await? {
            Reply::Reveal(result) => Ok(result),
            Reply::Http(_) => Err(wasmtime::format_err!("the host answered another question")),
        }
    }
}

/// A plugin's standard output and error become log lines, within the call's one budget: a plugin
/// may ask for as many streams as it likes.
#[derive(Clone)]
struct GuestLines {
    id: CallId,
    link: Arc<Link>,
    level: LogLevel,
    limits: CallLimits,
    spent: Arc<Spent>,
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
        for line in String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty()) {
            self.spent
                .line(line, &self.limits)
                .map_err(|over| wasmtime_wasi::p2::StreamError::Trap(over.into()))?;
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
