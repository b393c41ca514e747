//! What processes cost: to start them, to have a hundred of them, to do nothing with them, and to
//! wait for one that isn't there yet. Writes into `target/bench/summary.json`.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "a daemon of its own is what is measured")]

mod stage;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keywheel::config::{Config, Home};
use keywheel::control::{self, Operation};
use keywheel::daemon::Host;
use keywheel::db::Action;
use keywheel::db::queries::Reader;
use stage::{
    Summary, add, add_many, add_to, code, many_plugins, median, open, open_with, plugin, private_kib,
    service, worker,
};
use tokio::sync::watch;

const REPEATS: usize = 3;
const SERVICES: usize = 100;
const IDLE_CREDENTIALS: usize = 10_000;
/// How long doing nothing is watched.
const IDLE: Duration = Duration::from_secs(30);

const BODY: &str = "{\"user\":\"ann\"}";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let service = service(BODY);
    let mut summary = Summary::open();

    let folder = tempfile::tempdir().expect("a folder");
    let host = open(folder.path()).await;
    let plugin = plugin("well_behaved");
    host.carry_out(Operation::PluginInstall { path: plugin.clone() }).await.expect("the plugin is installed");
    summary.put("worker_spawn_ready_ms", spawn_ready(&host).await);

    add(&host, "warm", service).await;
    host.rotation.run_one("warm", Action::Validate).await.expect("a first attempt");
    // Two of them, as the pages that all workers share would be one worker's own otherwise.
    host.carry_out(Operation::PluginInstall { path: stage::plugin("slow_check") })
        .await
        .expect("another plugin");
    add_to(&host, "other", "slow-check", service).await;
    host.rotation.run_one("other", Action::Validate).await.expect("an attempt of it");
    summary.put("worker_private_kib", private_kib(worker(&host, "well-behaved").expect("a worker")));
    summary.put("cold_first_report_ms", cold_first_report(&host).await);

    let (alone, beside) = beside_attackers(&host, service).await;
    summary.put("attempt_p99_ms", alone);
    summary.put("attempt_p99_beside_attackers_ms", beside);
    summary.put("attackers_p99_ratio", beside / alone);
    host.close().await;

    summary.put("paranoid_attempt_ms", paranoid_attempt(service).await);
    summary.put("drop_to_first_report_ms", drop_to_first_report(service, &plugin).await);
    many_services(&mut summary, service).await;
}

/// From the order to an attempt's durable report, where the worker was stopped for being idle.
async fn cold_first_report(host: &Host) -> f64 {
    let mut runs = Vec::new();
    for _ in 0..31 {
        let pid = worker(host, "well-behaved").expect("a worker of the attempt before");
        let began = Instant::now();
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "the idle worker lives");
            host.supervisor.stop_idle(Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let started = Instant::now();
        host.rotation.run_one("warm", Action::Validate).await.expect("an attempt");
        runs.push(started.elapsed().as_secs_f64() * 1e3);
    }
    median(runs)
}

/// A daemon as an operator starts it; it ends with the value.
struct Daemon(Child);

impl Daemon {
    async fn start(home: &Home) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_keywheel"))
            .arg("serve")
            .env("KEYWHEEL_HOME", home.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a daemon");
        let mut daemon = Self(child);
        let began = Instant::now();
        while !matches!(control::ask(&home.socket(), &Operation::Vitals).await, Ok(Some(Ok(_)))) {
            assert!(daemon.0.try_wait().expect("a child").is_none(), "the daemon ended");
            assert!(began.elapsed() < Duration::from_secs(120), "the daemon doesn't answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon
    }

    /// It and all that it started, once it has that many workers.
    async fn processes(&self, workers: usize) -> Vec<u32> {
        let began = Instant::now();
        loop {
            let all = with_children(self.0.id());
            if all.len() > workers {
                return all;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{} processes are too few", all.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the daemon is there");
        self.0.wait().expect("its end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Where a bench failed; otherwise it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What stands in `/proc/PID/stat` behind the name, which may hold anything: the state is first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

fn with_children(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    found
}

/// Processor time of one process and its threads, in seconds. By the scheduler's own count where
/// the kernel shows it: `stat` has whole hundredths, and a hundred processes may hide a second.
fn processor_time(pid: u32) -> f64 {
    let exact = || -> Option<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            nanoseconds += text.split_whitespace().next()?.parse::<f64>().ok()?;
        }
        Some(nanoseconds / 1e9)
    };
    exact().unwrap_or_else(|| processor_ticks(pid))
}

/// The same by `stat`: user and system time.
fn processor_ticks(pid: u32) -> f64 {
    let fields = stat(pid).expect("the process is there");
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("a number")).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// A daemon with a hundred services: what it takes when each has served an attempt, and what it
/// costs to have it with ten thousand credentials of which none is due.
async fn many_services(summary: &mut Summary, service: SocketAddr) {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::locate(Some(folder.path().to_owned())).expect("a home");
    home.make_folders().expect("folders");
    let services = many_plugins(&home.plugins(), SERVICES);
    let host = open(folder.path()).await;
    for (n, name) in services.iter().enumerate() {
        add_to(&host, &format!("first{n}"), name, service).await;
    }
    host.close().await;

    let daemon = Daemon::start(&home).await;
    for n in 0..SERVICES {
        let credential_id = format!("first{n}");
        let run = Operation::CredentialRun { credential_id, action: Action::Validate, now: false };
        // Busy, where it is doing so already.
        let _ = control::ask(&home.socket(), &run).await.expect("an answer");
    }
    let reader = Reader::open(home.database()).expect("a reader");
    let began = Instant::now();
    while reader.failing(None, 1).expect("failures").1 > 0
        || (0..SERVICES)
            .any(|n| reader.report_after_newest(&format!("first{n}"), 0).expect("a report").is_none())
    {
        assert!(began.elapsed() < Duration::from_secs(60), "not every service has served an attempt");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(reader);
    let all = daemon.processes(SERVICES).await;
    let private: Vec<f64> = all.iter().map(|&pid| private_kib(pid) / 1_024.0).collect();
    println!("{} processes; the host has {:.1} MiB of its own", all.len(), private[0]);
    summary.put("hundred_services_private_mib", private.iter().sum());
    daemon.stop();

    let host = open(folder.path()).await;
    add_many(&host, IDLE_CREDENTIALS - SERVICES, &services, service).await;
    all_served(&host, IDLE_CREDENTIALS).await;
    host.close().await;
    let daemon = Daemon::start(&home).await;
    let all = daemon.processes(SERVICES).await;
    // What a start brings is over.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let reader = Reader::open(home.database()).expect("a reader");
    let reports = reader.last_report_id().expect("an id");
    let sum = |of: fn(u32) -> f64| all.iter().map(|&pid| of(pid)).sum::<f64>();
    let (before, ticks, of_host) = (sum(processor_time), sum(processor_ticks), processor_time(all[0]));
    let started = Instant::now();
    tokio::time::sleep(IDLE).await;
    let elapsed = started.elapsed().as_secs_f64();
    let (used, of_host) = (sum(processor_time) - before, processor_time(all[0]) - of_host);
    println!(
        "idle for {elapsed:.1} s: {:.1} ms of processor time, {:.1} of them the host's; {:.0} by whole ticks; {} reports",
        used * 1e3,
        of_host * 1e3,
        (sum(processor_ticks) - ticks) * 1e3,
        reader.last_report_id().expect("an id") - reports
    );
    summary.put("idle_cpu_percent", used / elapsed * 100.0);
    daemon.stop();
}

/// Lets the scheduler work until so many attempts have ended, so that nothing is due any more.
async fn all_served(host: &Host, attempts: usize) {
    let (tell, stop) = watch::channel(false);
    let reader = host.reader().expect("a reader");
    let scheduler = tokio::spawn(Arc::clone(&host.rotation).serve(Vec::new(), stop));
    let began = Instant::now();
    while (reader.last_report_id().expect("an id") as usize) < attempts {
        assert!(began.elapsed() < Duration::from_secs(300), "not every credential was served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tell.send(true).expect("the scheduler listens");
    scheduler.await.expect("the scheduler ends");
}

/// From the order to the first call's answer: process, sandbox, announcement, call.
async fn spawn_ready(host: &Host) -> f64 {
    let code = code(host);
    let mut runs = Vec::new();
    for _ in 0..31 {
        let file = fs::File::open(&code).expect("native code");
        let started = Instant::now();
        host.supervisor.describe(file).await.expect("a description");
        runs.push(started.elapsed().as_secs_f64() * 1e3);
    }
    median(runs)
}

/// The slowest hundredth of a well-behaved plugin's attempts, one every 10 ms: alone, and then
/// beside plugins that loop, take memory and flood the host, each over and over with a tenth of a
/// second between: hundreds of times what the schedule gives a plugin that fails. In turns.
async fn beside_attackers(host: &Host, service: SocketAddr) -> (f64, f64) {
    const ATTEMPTS: usize = 400;
    const ATTACKERS: [&str; 3] = ["loops_forever", "memory_bomb", "host_call_flood"];
    for file in ATTACKERS {
        host.carry_out(Operation::PluginInstall { path: plugin(file) }).await.expect("an attacker");
        add_to(host, file, &file.replace('_', "-"), service).await;
    }
    let p99 = async || {
        let mut took = Vec::new();
        for _ in 0..ATTEMPTS {
            let started = Instant::now();
            host.rotation.run_one("warm", Action::Validate).await.expect("an attempt");
            took.push(started.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        took.sort_by(f64::total_cmp);
        took[ATTEMPTS * 99 / 100]
    };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        alone.push(p99().await);
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let attackers: Vec<_> = ATTACKERS
            .iter()
            .map(|id| {
                let (rotation, over) = (Arc::clone(&host.rotation), Arc::clone(&over));
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        rotation.run_one(id, Action::Validate).await.expect("an attack is an attempt");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                })
            })
            .collect();
        beside.push(p99().await);
        over.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.await.expect("an attacker ends");
        }
    }
    (median(alone), median(beside))
}

/// One attempt where each call gets a process of its own.
async fn paranoid_attempt(service: SocketAddr) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { isolation: keywheel::config::Isolation::Paranoid, ..Config::default() };
    let host = open_with(folder.path(), config).await;
    host.carry_out(Operation::PluginInstall { path: plugin("well_behaved") }).await.expect("installed");
    add(&host, "warm", service).await;
    let mut runs = Vec::new();
    for _ in 0..101 {
        let started = Instant::now();
        host.rotation.run_one("warm", Action::Validate).await.expect("an attempt");
        runs.push(started.elapsed().as_secs_f64() * 1e3);
    }
    host.close().await;
    median(runs)
}

/// From the rename that puts the plugin into the folder to its first durable report, compiled
/// from nothing. The credential waits for it.
async fn drop_to_first_report(service: SocketAddr, plugin: &Path) -> f64 {
    let mut runs = Vec::new();
    for _ in 0..5 {
        let folder = tempfile::tempdir().expect("a folder");
        let host = open(folder.path()).await;
        host.carry_out(Operation::PluginInstall { path: plugin.to_owned() }).await.expect("installed");
        add(&host, "waiting", service).await;
        host.carry_out(Operation::PluginRemove { service: "well-behaved".into() }).await.expect("removed");
        fs::remove_dir_all(host.home.cache()).expect("the cache is emptied");
        host.home.make_folders().expect("folders");
        // The name is kept by nobody: the daemon finds the file by looking.
        let (tell, stop) = watch::channel(false);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let plugins = host.home.plugins();
        let database = host.home.database_file();
        let staged = folder.path().join("staged");
        fs::copy(plugin, &staged).expect("a copy");
        let daemon = tokio::spawn(keywheel::daemon::serve(host, stop, |_| {
            let _ = ready.send(());
        }));
        is_ready.await.expect("the daemon is ready");
        let reader = keywheel::db::queries::Reader::open(&database).expect("a reader");
        let before = reader.counts().expect("counts").reports;
        let started = Instant::now();
        fs::rename(&staged, plugins.join("dropped.wasm")).expect("the drop");
        while reader.counts().expect("counts").reports == before {
            assert!(started.elapsed() < Duration::from_secs(20), "no report came");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        runs.push(started.elapsed().as_secs_f64() * 1e3);
        tell.send(true).expect("the daemon listens");
        daemon.await.expect("it ends").expect("and ends well");
    }
    median(runs)
}
