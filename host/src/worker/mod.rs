//! The child processes: a worker that runs one plugin, and the compiler that makes its native
//! code. A worker owns one socket and nothing else; it never sees the database, the vault or
//! the network, and knows of ours only `protocol`, `provider` and `limits`.

mod bindings;
pub mod compile;
mod convert;
pub mod engine;
mod host_api;
mod link;
pub mod probe;
pub mod sandbox;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use wasmtime::Store;

use crate::protocol::{
    self, Answer, BUILD, Call, CallId, CallLimits, Confinement, Fault, FromWorker, Kind, Layer, PoolShape,
    ToWorker,
};
use engine::Plugin;
use host_api::{Guest, Meter, OverLimit};
use link::{Link, Reply};
use sandbox::Sandbox;

/// Where the parent puts the socket and the native code.
pub const SOCKET_FD: RawFd = 3;
pub const CODE_FD: RawFd = 4;
/// Where the parent of a compiler puts the file that takes the native code.
pub const OUTPUT_FD: RawFd = 5;

/// What one host call may copy out of the guest; wasmtime's own default is 128 MiB.
const HOST_CALL_BYTES: usize = 4 << 20;

/// Runs a worker until its socket closes.
pub fn run() -> ExitCode {
    // SAFETY: the parent placed the socket here and nothing else in this process owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
    match serve(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(socket: OwnedFd) -> io::Result<()> {
    let mut stream = std::fs::File::from(socket);
    let Some(ToWorker::Hello { worker_id, service, limits, pool, confinement }) = read_message(&mut stream)?
    else {
        return Err(io::Error::other("the host spoke before its greeting"));
    };
    // Asked for now: once confined, this process may not even do that.
    let pid = pid_outside()?;
    let load =
        |engine: &wasmtime::Engine| Plugin::load(engine, Path::new(&format!("/proc/self/fd/{CODE_FD}")));
    let ready = confine(&stream, &limits, pool, confinement, true, load);
    let (plugin, runtime, ticker, layers) = match ready {
        Ok(ready) => ready,
        Err(why) => {
            write_message(&mut stream, &FromWorker::Unfit(why))?;
            return Ok(());
        }
    };
    write_message(
        &mut stream,
        &FromWorker::Announce {
            pid,
            worker_id,
            service,
            abi: abi().to_owned(),
            build: BUILD.to_owned(),
            layers,
            shape: plugin.shape,
        },
    )?;
    runtime.block_on(async {
        let socket = OwnedFd::from(stream);
        // SAFETY: the descriptor is owned by the AsyncFd and stays open until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }?;
        let worker = Worker { plugin: Arc::new(plugin), link: Arc::default(), limits, ticker };
        let running: Arc<Mutex<HashMap<CallId, AbortHandle>>> = Arc::default();
        tokio::select! {
            end = link::read_all(&socket, |message| worker.handle(message, &running)) => end,
            end = worker.link.write_all(&socket) => end,
        }
    })
}

const fn abi() -> &'static str {
    protocol::ABI_VERSIONS[protocol::ABI_VERSIONS.len() - 1]
}

/// The number by which the host knows this process; in a namespace of its own it is 1.
pub(crate) fn pid_outside() -> io::Result<u32> {
    let link = std::fs::read_link("/proc/self")?;
    link.to_str()
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self names no process"))
}

/// Goes through every layer in its order, and on the way makes what can't be made later.
/// Without `filtered` system calls stay open, which only a probe asks for.
fn confine<T>(
    socket: &std::fs::File,
    limits: &CallLimits,
    pool: Option<PoolShape>,
    confinement: Confinement,
    filtered: bool,
    load: impl FnOnce(&wasmtime::Engine) -> Result<T, String>,
) -> Result<(T, tokio::runtime::Runtime, Arc<Ticker>, Vec<Layer>), String> {
    let mut sandbox = Sandbox::enter(confinement, CODE_FD);
    // Processor time is counted for each call.
    sandbox.bound(engine::address_space(limits, pool), 0, None);
    let engine = engine::running(limits, pool).map_err(|error| format!("{error:#}"))?;
    let loaded = load(&engine)?;
    // SAFETY: the parent placed the native code here; it is mapped now, and nobody else in
    // this process owns the descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(CODE_FD) });
    sandbox.leave_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let ticker = Ticker::start(engine).map_err(|error| error.to_string())?;
    // From here on the socket is read by the event loop; the announcement is far smaller than
    // the socket's buffer, so its one write never has to wait.
    rustix::io::ioctl_fionbio(socket, true).map_err(|error| error.to_string())?;
    if filtered {
        sandbox.filter_calls(Kind::Worker);
    }
    Ok((loaded, runtime, ticker, sandbox.finish()?))
}

struct Worker {
    plugin: Arc<Plugin>,
    link: Arc<Link>,
    limits: CallLimits,
    ticker: Arc<Ticker>,
}

impl Worker {
    fn handle(&self, message: ToWorker, running: &Arc<Mutex<HashMap<CallId, AbortHandle>>>) {
        let hold = || running.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            ToWorker::Hello { .. } => {}
            ToWorker::Start { id, call } => {
                let (plugin, link, limits) = (Arc::clone(&self.plugin), Arc::clone(&self.link), self.limits);
                let computing = self.ticker.computing();
                let table = Arc::clone(running);
                let task = tokio::spawn(async move {
                    let meter = Meter::default();
                    let result = run_call(&plugin, &link, limits, id, call, &meter).await;
                    drop(computing);
                    table.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    link.send(&FromWorker::Finished { id, result, used: meter.used() });
                });
                hold().insert(id, task.abort_handle());
            }
            ToWorker::HttpDone { id, result } => self.link.reply(id, Reply::Http(result)),
            ToWorker::RevealDone { id, result } => self.link.reply(id, Reply::Reveal(result)),
            ToWorker::Cancel { id } => {
                if let Some(task) = hold().remove(&id) {
                    task.abort();
                }
                self.link.forget(id);
            }
        }
    }
}

async fn run_call(
    plugin: &Plugin,
    link: &Arc<Link>,
    limits: CallLimits,
    id: CallId,
    call: Call,
    meter: &Meter,
) -> Result<Answer, Fault> {
    let open = !matches!(call, Call::Describe);
    let guest = Guest::new(id, Arc::clone(link), limits, open, plugin.wants_wasi, meter);
    let mut store = Store::new(&plugin.engine, guest);
    store.limiter(|guest| guest);
    store.set_hostcall_fuel(HOST_CALL_BYTES);
    store.epoch_deadline_callback(|cx| cx.data().tick());
    store.set_epoch_deadline(1);
    if !plugin.wants_wasi {
        return run_in(plugin, store, call, meter).await;
    }
    // Only WASI has something to sleep with.
    let overslept = store.data().overslept();
    tokio::select! {
        ended = run_in(plugin, store, call, meter) => ended,
        over = overslept => Err(Fault::Limit(over.0)),
    }
}

async fn run_in(
    plugin: &Plugin,
    mut store: Store<Guest>,
    call: Call,
    meter: &Meter,
) -> Result<Answer, Fault> {
    let instance = plugin.pre.instantiate_async(&mut store).await.map_err(fault)?;
    meter.instantiated();
    let exports = instance.keywheel_provider_guest();
    match call {
        Call::Describe => {
            let manifest = exports.call_describe(&mut store).await.map_err(fault)?;
            Ok(Answer::Described(Box::new(convert::manifest(manifest))))
        }
        Call::Validate(context) => {
            let context = convert::context(context);
            match exports.call_validate(&mut store, &context).await.map_err(fault)? {
                Ok(verdict) => Ok(Answer::Validated(convert::verdict(verdict))),
                Err(failure) => Err(Fault::Guest(failure.message)),
            }
        }
        Call::Rotate(context, method) => {
            let context = convert::context(context);
            match exports.call_rotate(&mut store, &context, &method).await.map_err(fault)? {
                Ok(outcome) => Ok(Answer::Rotated(convert::outcome(outcome))),
                Err(failure) => Err(Fault::Guest(failure.message)),
            }
        }
    }
}

/// One call in this very process, with nobody to answer host calls: what a benchmark measures
/// when it wants a fresh instance and a call, and nothing around it.
///
/// # Errors
/// As a worker would report it.
pub async fn run_alone(plugin: &Plugin, call: Call) -> Result<Answer, Fault> {
    run_call(plugin, &Arc::default(), crate::limits::CALL, 1, call, &Meter::default()).await
}

/// A limit, a trap and an exit look alike to wasmtime's caller; here they part.
fn fault(error: wasmtime::Error) -> Fault {
    if let Some(over) = error.downcast_ref::<OverLimit>() {
        return Fault::Limit(over.0.clone());
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::StackOverflow) => Fault::Limit("the stack of 512 KiB is used up".into()),
        Some(wasmtime::Trap::Interrupt) => Fault::Limit("the CPU deadline passed".into()),
        Some(trap) => Fault::Trap(trap.to_string()),
        None => {
            let text = format!("{error:#}");
            // The types of exports are compared by the first instance, and nothing has run by then.
            if text.contains("failed to convert function to given type") {
                return Fault::Guest(engine::misfit(&text));
            }
            // The pool refuses a memory whose declared minimum is over the cap, and a copy
            // over the host-call budget, with plain errors.
            if text.contains("exceeds the limit") || text.contains("fuel allocated for hostcalls") {
                Fault::Limit(text)
            } else {
                Fault::Trap(text)
            }
        }
    }
}

/// Advances the epoch while calls are in flight, and sleeps otherwise so that an idle worker
/// uses no CPU at all.
struct Ticker {
    calls: Mutex<usize>,
    changed: Condvar,
}

struct Computing(Arc<Ticker>);

impl Ticker {
    fn start(engine: wasmtime::Engine) -> io::Result<Arc<Self>> {
        let ticker = Arc::new(Self { calls: Mutex::new(0), changed: Condvar::new() });
        let of_thread = Arc::clone(&ticker);
        // A thread that is still starting makes system calls that the filter kills for.
        let (tell_started, started) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("epoch".into()).stack_size(64 << 10).spawn(move || {
            let _ = tell_started.send(());
            loop {
                let mut calls = of_thread.calls.lock().unwrap_or_else(PoisonError::into_inner);
                while *calls == 0 {
                    calls = of_thread.changed.wait(calls).unwrap_or_else(PoisonError::into_inner);
                }
                drop(calls);
                std::thread::sleep(engine::TICK);
                engine.increment_epoch();
            }
        })?;
        started.recv().map_err(io::Error::other)?;
        Ok(ticker)
    }

    fn computing(self: &Arc<Self>) -> Computing {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_one();
        Computing(Arc::clone(self))
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        *self.0.calls.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// Reads one frame from a blocking descriptor. None at its end.
pub fn read_message<T: serde::de::DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = protocol::frame_length(&head).map_err(io::Error::other)?.unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    protocol::decode(&body).map(Some).map_err(io::Error::other)
}

/// Writes one frame to a blocking descriptor.
pub fn write_message(stream: &mut impl Write, message: &impl serde::Serialize) -> io::Result<()> {
    let mut frame = Vec::new();
    protocol::encode(message, &mut frame).map_err(io::Error::other)?;
    stream.write_all(&frame)
}
