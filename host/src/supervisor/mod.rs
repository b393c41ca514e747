//! Desired against running: one worker process for each service, started when there is work,
//! stopped when idle, drained when its plugin is replaced, restarted when it dies and parked
//! when it keeps dying. Knows nothing of credentials, HTTP or the database: a call's questions
//! go to whoever started the call.

mod inbox;
pub mod link;
pub mod probe;
pub mod restart_policy;
pub mod worker_process;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::credential::{Millis, now};
use crate::limits;
use crate::protocol::{
    self, BUILD, Call, CallId, CallLimits, Confinement, FromWorker, HttpError, HttpResponse, Layer,
    PoolShape, Require, ToWorker, Used,
};
use crate::provider::Manifest;
use inbox::Events;
pub use link::CallEvent;
use link::{HostLink, LinkEnd};
use restart_policy::{Decision, RestartPolicy};
use worker_process::{Spawned, Spawner, Task};

/// A plugin ready to run: native code whose tag was verified when it was opened.
#[derive(Debug)]
pub struct Code {
    pub digest: String,
    pub file: File,
    pub shape: Option<PoolShape>,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no plugin serves `{0}`")]
    NoPlugin(String),
    #[error(
        "the worker of `{service}` is parked after {crashes} crashes; hint: replace the plugin, or `keywheel plugin unpark {service}` to try again"
    )]
    Parked { service: String, crashes: usize },
    #[error("the worker could not be started: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("the worker is unfit: {0}")]
    Unfit(String),
    #[error("the worker died: {0}")]
    Died(String),
    #[error("the host is shutting down")]
    ShuttingDown,
}

/// What `status` shows of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub service: String,
    pub digest: String,
    /// `running`, `idle` (also between a crash and the restart) or `parked`.
    pub state: String,
    pub pid: Option<u32>,
    pub worker_id: Option<String>,
    pub in_flight: u32,
    pub starts: u32,
    pub crashes: u32,
    pub last_end: Option<String>,
    pub layers: Vec<Layer>,
}

/// A worker that announced itself.
#[derive(Debug)]
struct Worker {
    id: String,
    pid: u32,
    layers: Vec<Layer>,
    link: Arc<HostLink>,
    slots: Arc<Semaphore>,
    in_flight: AtomicU32,
    last_used: AtomicU64,
    /// Set before it is asked to end, so that its end is no crash.
    retired: AtomicBool,
    /// When its plugin last went over a limit; 0 is never. From then on it runs when nobody else
    /// wants to.
    went_over: AtomicU64,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
struct Service {
    name: String,
    code: RwLock<Arc<Code>>,
    current: RwLock<Option<Arc<Worker>>>,
    /// Held while a worker is being started, so that one is.
    starting: tokio::sync::Mutex<()>,
    /// Where each call has its own process: how many of them at once.
    alone: Arc<Semaphore>,
    policy: Mutex<RestartPolicy>,
    parked: AtomicBool,
    /// No file serves it any more: a worker that is just being started must end.
    removed: AtomicBool,
    starts: AtomicU32,
    crashes: AtomicU32,
    last_end: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Inner {
    spawner: Spawner,
    services: RwLock<HashMap<String, Arc<Service>>>,
    require: Require,
    /// Each call in a process of its own, instead of a worker for each service.
    process_per_call: bool,
    next_worker: AtomicU32,
    closing: AtomicBool,
}

/// Cheap to clone; one per host.
#[derive(Debug, Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    /// # Errors
    /// Where the spawner's thread can't be started.
    pub fn new(executable: &Path, require: Require, process_per_call: bool) -> std::io::Result<Self> {
        let spawner = Spawner::start(executable, tokio::runtime::Handle::current())?;
        Ok(Self {
            inner: Arc::new(Inner {
                spawner,
                services: RwLock::default(),
                require,
                process_per_call,
                next_worker: AtomicU32::new(1),
                closing: AtomicBool::new(false),
            }),
        })
    }

    pub fn spawner(&self) -> &Spawner {
        &self.inner.spawner
    }

    pub fn require(&self) -> Require {
        self.inner.require
    }

    /// Makes this plugin the one that serves the service. A worker of another digest finishes
    /// what it has and ends; new calls go to the new plugin at once.
    pub fn set(&self, service: &str, code: Code) {
        let code = Arc::new(code);
        let existing = read(&self.inner.services).get(service).cloned();
        match existing {
            Some(service) => {
                let changed = read(&service.code).digest != code.digest;
                *write(&service.code) = code;
                if changed {
                    service.policy.lock().unwrap_or_else(PoisonError::into_inner).forgive();
                    service.parked.store(false, Ordering::Relaxed);
                    if let Some(old) = write(&service.current).take() {
                        self.retire(old);
                    }
                }
            }
            None => {
                let entry = Arc::new(Service {
                    name: service.to_owned(),
                    code: RwLock::new(code),
                    current: RwLock::default(),
                    starting: tokio::sync::Mutex::default(),
                    alone: Arc::new(Semaphore::new(limits::PROCESSES_PER_SERVICE)),
                    policy: Mutex::default(),
                    parked: AtomicBool::new(false),
                    removed: AtomicBool::new(false),
                    starts: AtomicU32::new(0),
                    crashes: AtomicU32::new(0),
                    last_end: Mutex::default(),
                });
                write(&self.inner.services).insert(service.to_owned(), entry);
            }
        }
    }

    /// Stops serving a service, its running calls drained.
    pub fn remove(&self, service: &str) {
        let Some(service) = write(&self.inner.services).remove(service) else { return };
        service.removed.store(true, Ordering::SeqCst);
        if let Some(old) = write(&service.current).take() {
            self.retire(old);
        }
    }

    /// Lets a parked service run again.
    pub fn unpark(&self, service: &str) {
        if let Some(service) = read(&self.inner.services).get(service) {
            service.policy.lock().unwrap_or_else(PoisonError::into_inner).forgive();
            service.parked.store(false, Ordering::Relaxed);
        }
    }

    pub fn status(&self) -> Vec<WorkerStatus> {
        let mut all: Vec<_> = read(&self.inner.services).values().map(|service| service.status()).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }

    /// Starts a call on the service's worker, which is started first if none runs.
    ///
    /// # Errors
    /// Where no worker can run it now.
    pub async fn call(&self, service: &str, call: Call) -> Result<RunningCall, CallError> {
        let service = read(&self.inner.services)
            .get(service)
            .cloned()
            .ok_or_else(|| CallError::NoPlugin(service.to_owned()))?;
        if self.inner.process_per_call {
            return self.call_alone(&service, call).await;
        }
        let mut call = call;
        // A worker may end between being found and being asked; then a second one is started.
        for _ in 0..2 {
            let worker = self.worker(&service).await?;
            match worker.start(call).await? {
                Ok(running) => return Ok(running),
                Err(back) => call = back,
            }
        }
        Err(CallError::Died("twice before the call began".into()))
    }

    /// Starts the service's worker if none runs, so that it announces itself.
    ///
    /// # Errors
    /// As `call`.
    pub async fn warm(&self, service: &str) -> Result<(), CallError> {
        let service = read(&self.inner.services)
            .get(service)
            .cloned()
            .ok_or_else(|| CallError::NoPlugin(service.to_owned()))?;
        if self.inner.process_per_call {
            return Ok(());
        }
        self.worker(&service).await.map(drop)
    }

    /// Runs a call in a process of its own, which ends with it.
    async fn call_alone(&self, service: &Arc<Service>, call: Call) -> Result<RunningCall, CallError> {
        let turn = Arc::clone(&service.alone).acquire_owned().await.map_err(|_| CallError::ShuttingDown)?;
        self.may_start(service)?;
        let code = Arc::clone(&read(&service.code));
        let (supervisor, of) = (self.clone(), Arc::clone(service));
        let on_end = move |worker: &Arc<Worker>, why: &str| supervisor.ended(&of, worker, why);
        let worker = service.note(self.spawn_worker(Some(&service.name), &code, 1, on_end).await)?;
        let started = worker.start(call).await?;
        let mut running = started.map_err(|_| CallError::Died("before the call began".into()))?;
        running.alone = Some(turn);
        Ok(running)
    }

    fn may_start(&self, service: &Service) -> Result<(), CallError> {
        if self.inner.closing.load(Ordering::Relaxed) {
            return Err(CallError::ShuttingDown);
        }
        if service.parked.load(Ordering::Relaxed) {
            let crashes = service.policy.lock().unwrap_or_else(PoisonError::into_inner).recent_crashes();
            return Err(CallError::Parked { service: service.name.clone(), crashes });
        }
        Ok(())
    }

    /// Runs `describe` in a process of its own, with no host API, and ends it.
    ///
    /// # Errors
    /// What the plugin did instead of describing itself.
    pub async fn describe(&self, code: File) -> Result<(Manifest, PoolShape), CallError> {
        let (worker, shape) = self
            .spawn_worker(None, &Code { digest: String::new(), file: code, shape: None }, 1, |_, _| {})
            .await?;
        let answer = async {
            let mut running = match worker.start(Call::Describe).await? {
                Ok(running) => running,
                Err(_) => return Err(CallError::Died("before it was asked".into())),
            };
            loop {
                match running.next().await? {
                    CallEvent::Finished(Ok(protocol::Answer::Described(manifest))) => return Ok(*manifest),
                    CallEvent::Finished(Ok(_)) => {
                        return Err(CallError::Unfit("it answered another call".into()));
                    }
                    CallEvent::Finished(Err(fault)) => {
                        return Err(CallError::Unfit(format!("describe: {fault}")));
                    }
                    CallEvent::Log(_, line) => tracing::debug!(line, "describe"),
                    CallEvent::Http(_) | CallEvent::Reveal(_) => {
                        return Err(CallError::Unfit("describe used the host API".into()));
                    }
                }
            }
        };
        let deadline = Duration::from_millis(u64::from(limits::CALL.cpu_ms)) + limits::WORKER_READY;
        let manifest = tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(CallError::Unfit("describe took too long".into())));
        worker.end();
        manifest.map(|manifest| (manifest, shape))
    }

    async fn worker(&self, service: &Arc<Service>) -> Result<Arc<Worker>, CallError> {
        if let Some(worker) = service.alive() {
            return Ok(worker);
        }
        let _one = service.starting.lock().await;
        if let Some(worker) = service.alive() {
            return Ok(worker);
        }
        self.may_start(service)?;
        loop {
            let code = Arc::clone(&read(&service.code));
            let (supervisor, of) = (self.clone(), Arc::clone(service));
            let spawned = self
                .spawn_worker(Some(&service.name), &code, limits::CALL.in_flight, move |worker, why| {
                    supervisor.ended(&of, worker, why);
                })
                .await;
            let worker = service.note(spawned)?;
            tracing::info!(service = service.name, worker = worker.id, pid = worker.pid, "worker announced");
            let mut current = write(&service.current);
            // While it started, its plugin may have been replaced or removed by someone who found
            // no worker to retire. Both change what is compared here before they look for one.
            if service.removed.load(Ordering::SeqCst) {
                self.retire(worker);
                return Err(CallError::NoPlugin(service.name.clone()));
            }
            if read(&service.code).digest == code.digest {
                *current = Some(Arc::clone(&worker));
                return Ok(worker);
            }
            drop(current);
            self.retire(worker);
        }
    }

    /// A worker of the service ended, whoever wanted it.
    fn ended(&self, service: &Arc<Service>, worker: &Arc<Worker>, why: &str) {
        {
            let mut current = write(&service.current);
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, worker)) {
                *current = None;
            }
        }
        if worker.retired.load(Ordering::Relaxed) || self.inner.closing.load(Ordering::Relaxed) {
            return;
        }
        service.crashes.fetch_add(1, Ordering::Relaxed);
        *service.last_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
        let decision = service.policy.lock().unwrap_or_else(PoisonError::into_inner).crashed(now());
        match decision {
            Decision::RestartAfter(_) if self.inner.process_per_call => {
                tracing::warn!(service = service.name, worker = worker.id, why, "worker died");
            }
            Decision::RestartAfter(delay) => {
                tracing::warn!(
                    service = service.name,
                    worker = worker.id,
                    why,
                    ?delay,
                    "worker died, restarting"
                );
                let (supervisor, service) = (self.clone(), Arc::clone(service));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    if let Err(error) = supervisor.worker(&service).await {
                        tracing::warn!(service = service.name, %error, "worker not restarted");
                    }
                });
            }
            Decision::Park => {
                service.parked.store(true, Ordering::Relaxed);
                tracing::error!(
                    service = service.name,
                    worker = worker.id,
                    why,
                    "worker keeps dying, parked"
                );
            }
        }
    }

    async fn spawn_worker(
        &self,
        service: Option<&str>,
        code: &Code,
        in_flight: u32,
        on_end: impl FnOnce(&Arc<Worker>, &str) + Send + 'static,
    ) -> Result<(Arc<Worker>, PoolShape), CallError> {
        let id = format!("w{}", self.inner.next_worker.fetch_add(1, Ordering::Relaxed));
        let fd = code.file.as_fd().try_clone_to_owned().map_err(CallError::Spawn)?;
        let Spawned { mut child, socket, namespaces } =
            self.inner.spawner.spawn(Task::Worker { code: fd }).await.map_err(CallError::Spawn)?;
        let pid = child.pid();
        let (mut from, mut to) = socket.into_split();
        let hello = ToWorker::Hello {
            worker_id: id.clone(),
            service: service.map(str::to_owned),
            limits: CallLimits { in_flight, ..limits::CALL },
            pool: code.shape,
            confinement: Confinement { require: self.inner.require, namespaces },
        };
        let announced = tokio::time::timeout(limits::WORKER_READY, handshake(&mut from, &mut to, &hello))
            .await
            .unwrap_or_else(|_| Err(CallError::Unfit("it did not announce itself in time".into())));
        let announced = match announced {
            Ok(announced) => announced,
            Err(CallError::Died(why)) => {
                child.kill();
                let status = child.wait().await.map_err(CallError::Spawn)?;
                return Err(CallError::Died(format!("{why} ({})", describe_exit(status))));
            }
            Err(error) => return Err(error),
        };
        let FromWorker::Announce { pid: claimed, worker_id, service: of, abi, build, layers, shape } =
            announced
        else {
            return Err(match announced {
                FromWorker::Unfit(why) => CallError::Unfit(why),
                _ => CallError::Unfit("it did not announce itself first".into()),
            });
        };
        if (claimed, worker_id.as_str(), of.as_deref(), build.as_str()) != (pid, id.as_str(), service, BUILD)
            || !protocol::ABI_VERSIONS.contains(&abi.as_str())
        {
            return Err(CallError::Unfit(format!(
                "it announced itself as pid {claimed}, worker {worker_id}, build {build}; expected pid {pid}, worker {id}, build {BUILD}"
            )));
        }
        let link = HostLink::new();
        let (stop, mut stopped) = watch::channel(false);
        let (tell_end, ended) = watch::channel(None);
        let worker = Arc::new(Worker {
            id,
            pid,
            layers,
            link: Arc::clone(&link),
            slots: Arc::new(Semaphore::new(in_flight as usize)),
            in_flight: AtomicU32::new(0),
            last_used: AtomicU64::new(now()),
            retired: AtomicBool::new(false),
            went_over: AtomicU64::new(0),
            stop,
            ended,
        });
        let of_task = Arc::clone(&worker);
        tokio::spawn(async move {
            let why = tokio::select! {
                end = link.read_all(&mut from) => end,
                end = link.write_all(&mut to) => match end {
                    Ok(()) => LinkEnd::Closed,
                    Err(error) => LinkEnd::Io(error),
                },
                _ = stopped.wait_for(|stop| *stop) => LinkEnd::Closed,
            };
            of_task.slots.close();
            // Closing the socket ends an honest worker; the kill is for any other.
            child.kill();
            let status = child.wait().await;
            let why = match (why, status) {
                (LinkEnd::Closed, Ok(status)) => describe_exit(status),
                (why, _) => why.to_string(),
            };
            // Told before the calls end, so that they can say why.
            let _ = tell_end.send(Some(why.clone()));
            link.close();
            on_end(&of_task, &why);
        });
        Ok((worker, shape))
    }

    /// Lets a worker finish its calls, then ends it.
    fn retire(&self, worker: Arc<Worker>) {
        worker.retired.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            let idle = worker.slots.acquire_many(limits::CALL.in_flight);
            // Past the drain its calls fail, each with its own report.
            let _ = tokio::time::timeout(limits::DRAIN, idle).await;
            worker.end();
        });
    }

    /// Ends workers that had no call for `idle`, and those whose disgrace is over.
    pub fn stop_idle(&self, idle: Duration) {
        let oldest = now().saturating_sub(idle.as_millis() as Millis);
        let services: Vec<_> = read(&self.inner.services).values().cloned().collect();
        for service in services {
            let mut current = write(&service.current);
            let unused = current.as_ref().is_some_and(|worker| {
                worker.in_flight.load(Ordering::Relaxed) == 0
                    && worker.last_used.load(Ordering::Relaxed) < oldest
            });
            let forgiven = current.as_ref().is_some_and(|worker| worker.is_forgiven());
            if (unused || forgiven)
                && let Some(worker) = current.take()
            {
                let why =
                    if unused { "worker idle, stopped" } else { "worker replaced: its plugin behaves again" };
                tracing::info!(service = service.name, worker = worker.id, "{why}");
                self.retire(worker);
            }
        }
    }

    /// Ends every worker. Calls in flight were drained before, or fail now.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
        let services: Vec<_> = read(&self.inner.services).values().cloned().collect();
        for service in services {
            let worker = write(&service.current).take();
            if let Some(worker) = worker {
                worker.retired.store(true, Ordering::Relaxed);
                worker.end();
                let mut ended = worker.ended.clone();
                let _ = tokio::time::timeout(Duration::from_secs(2), ended.wait_for(Option::is_some)).await;
            }
        }
    }
}

async fn handshake(
    from: &mut tokio::net::unix::OwnedReadHalf,
    to: &mut tokio::net::unix::OwnedWriteHalf,
    hello: &ToWorker,
) -> Result<FromWorker, CallError> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let died = |error: std::io::Error| CallError::Died(error.to_string());
    let mut frame = Vec::new();
    protocol::encode(hello, &mut frame).map_err(|error| CallError::Unfit(error.to_string()))?;
    to.write_all(&frame).await.map_err(died)?;
    let mut head = [0; 4];
    from.read_exact(&mut head).await.map_err(died)?;
    let length = protocol::frame_length(&head).map_err(|error| CallError::Unfit(error.to_string()))?;
    let mut body = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut body).await.map_err(died)?;
    protocol::decode(&body).map_err(|error| CallError::Unfit(error.to_string()))
}

fn describe_exit(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => "killed for a forbidden system call".into(),
        (Some(libc::SIGKILL), _) => "killed".into(),
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("ended with code {code}"),
        (None, None) => "ended".into(),
    }
}

impl Service {
    /// Takes note of a start for `status`.
    fn note(&self, spawned: Result<(Arc<Worker>, PoolShape), CallError>) -> Result<Arc<Worker>, CallError> {
        match spawned {
            Ok((worker, _)) => {
                self.starts.fetch_add(1, Ordering::Relaxed);
                Ok(worker)
            }
            Err(error) => {
                *self.last_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn alive(&self) -> Option<Arc<Worker>> {
        read(&self.current).as_ref().filter(|worker| !worker.slots.is_closed()).cloned()
    }

    fn status(&self) -> WorkerStatus {
        let current = read(&self.current).clone();
        let parked = self.parked.load(Ordering::Relaxed);
        let alone = limits::PROCESSES_PER_SERVICE - self.alone.available_permits();
        WorkerStatus {
            service: self.name.clone(),
            digest: read(&self.code).digest.clone(),
            state: match &current {
                Some(_) => "running",
                None if alone > 0 => "running",
                None if parked => "parked",
                None => "idle",
            }
            .to_owned(),
            pid: current.as_ref().map(|worker| worker.pid),
            worker_id: current.as_ref().map(|worker| worker.id.clone()),
            in_flight: current
                .as_ref()
                .map_or(alone as u32, |worker| worker.in_flight.load(Ordering::Relaxed)),
            starts: self.starts.load(Ordering::Relaxed),
            crashes: self.crashes.load(Ordering::Relaxed),
            last_end: self.last_end.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            layers: current.map(|worker| worker.layers.clone()).unwrap_or_default(),
        }
    }
}

impl Worker {
    /// Gives the call back where the worker is gone.
    async fn start(self: &Arc<Self>, call: Call) -> Result<Result<RunningCall, Call>, CallError> {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return Ok(Err(call)) };
        let used = Arc::default();
        let Some((id, events)) = self.link.register_with(Arc::clone(&used)) else { return Ok(Err(call)) };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let running = RunningCall {
            id,
            events,
            used,
            worker: Arc::clone(self),
            finished: false,
            _slot: slot,
            alone: None,
        };
        self.link
            .send(&ToWorker::Start { id, call })
            .map_err(|error| CallError::Unfit(format!("the call can't be sent: {error}")))?;
        Ok(Ok(running))
    }

    /// A plugin that burns what it is given must not hold up its neighbours, over and over: its
    /// process loses its share of the processor. The system doesn't give a share back, so that
    /// takes a new process, after a while without fault.
    fn judge(&self, result: &Result<protocol::Answer, protocol::Fault>) {
        if matches!(result, Err(protocol::Fault::Limit(_))) && !self.slots.is_closed() {
            worker_process::run_when_idle(self.pid);
            self.went_over.store(now(), Ordering::Relaxed);
        }
    }

    fn is_forgiven(&self) -> bool {
        let went_over = self.went_over.load(Ordering::Relaxed);
        went_over != 0 && now().saturating_sub(went_over) > limits::IN_DISGRACE.as_millis() as Millis
    }

    fn end(&self) {
        self.retired.store(true, Ordering::Relaxed);
        // The worker's task may be gone already.
        let _ = self.stop.send(true);
    }
}

/// A call in flight. Dropping it cancels the call.
#[derive(Debug)]
pub struct RunningCall {
    id: CallId,
    events: Events,
    used: Arc<OnceLock<Used>>,
    worker: Arc<Worker>,
    finished: bool,
    _slot: OwnedSemaphorePermit,
    /// Held where the process is this call's alone, and ends with it.
    alone: Option<OwnedSemaphorePermit>,
}

impl RunningCall {
    /// The next thing the call says; after `Finished` there is none.
    ///
    /// # Errors
    /// `Died` where the worker is gone.
    pub async fn next(&mut self) -> Result<CallEvent, CallError> {
        match self.events.next().await {
            Some(event) => {
                if let CallEvent::Finished(result) = &event {
                    self.finished = true;
                    self.worker.judge(result);
                }
                Ok(event)
            }
            None => {
                let why = self.worker.ended.borrow().clone();
                Err(CallError::Died(why.unwrap_or_else(|| "without a word".into())))
            }
        }
    }

    /// # Errors
    /// Where the answer fits no frame; the guest is told so.
    pub fn http_done(&self, result: Result<HttpResponse, HttpError>) {
        let answer = ToWorker::HttpDone { id: self.id, result };
        if let Err(error) = self.worker.link.send(&answer) {
            let refused =
                ToWorker::HttpDone { id: self.id, result: Err(HttpError::Other(error.to_string())) };
            // An error line always fits.
            let _ = self.worker.link.send(&refused);
        }
    }

    pub fn reveal_done(&self, result: Result<Vec<u8>, String>) {
        let _ = self.worker.link.send(&ToWorker::RevealDone { id: self.id, result });
    }

    /// What it used, by its worker's word; nothing before its end.
    pub fn used(&self) -> Used {
        self.used.get().copied().unwrap_or_default()
    }

    pub fn worker_id(&self) -> &str {
        &self.worker.id
    }

    pub fn pid(&self) -> u32 {
        self.worker.pid
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.worker.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.worker.last_used.store(now(), Ordering::Relaxed);
        if !self.finished && self.worker.link.forget(self.id) {
            let _ = self.worker.link.send(&ToWorker::Cancel { id: self.id });
        }
        if self.alone.is_some() {
            self.worker.end();
        }
    }
}
