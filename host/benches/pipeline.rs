//! The numbers of `make bench`, from one run on one machine: a bare HTTP client beside the whole
//! pipeline doing the same requests, and the parts the pipeline is made of. Writes
//! `target/bench/summary.json`. Never asserts: timings are no tests. With `attempts` as argument
//! only the pipeline runs, and nothing is written: for a profiler.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "the bare client is what the pipeline is compared with")]

mod stage;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keywheel::config::Config;
use keywheel::control::{AddCredential, KeyInput, Operation, SecretInput};
use keywheel::credential::{Secret, now};
use keywheel::daemon::Host;
use keywheel::db::Action;
use keywheel::db::writer::{ClaimDue, Finish, GenerationChange, MonitorUpdate};
use keywheel::protocol::{Call, PoolShape};
use keywheel::report::{Report, Status, iso8601};
use keywheel::worker::engine::{self, Plugin};
use stage::{Summary, add, add_to, median, open, open_with, plugin, private_kib, service, target};
use tokio::sync::watch;

/// Tasks of the bare client, and calls in flight on one worker.
const TASKS: usize = 64;
/// Long enough to be past warm-up, short enough to be run often.
const MEASURE: Duration = Duration::from_secs(4);
/// Credentials of the pipeline: more than it can do while it is measured.
const CREDENTIALS: usize = 60_000;
const REPEATS: usize = 3;

const BODY: &str = "{\"user\":\"ann\"}";
/// What each of the languages' providers takes for a living account.
const ANY_ACCOUNT: &str = "{\"user\":\"ann\",\"login\":\"ann\",\"id\":7,\"ocs\":{\"data\":{\"id\":\"ann\"}}}";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    if std::env::args().any(|argument| argument == "attempts") {
        let service = service(BODY);
        let folder = tempfile::tempdir().expect("a folder");
        let host = open(folder.path()).await;
        host.carry_out(Operation::PluginInstall { path: plugin("well_behaved") }).await.expect("installed");
        for n in 0..CREDENTIALS {
            add(&host, &format!("c{n}"), service).await;
        }
        println!("measuring");
        println!("{:.0} attempts/s", attempts(&host).await);
        host.close().await;
        return;
    }
    let service = service(BODY);
    let mut summary = Summary::open();
    let mut put = |name: &str, value: f64| summary.put(name, value);

    let folder = tempfile::tempdir().expect("a folder");
    let host = open(folder.path()).await;
    let plugin = plugin("well_behaved");
    host.carry_out(Operation::PluginInstall { path: plugin.clone() }).await.expect("the plugin is installed");

    put("fresh_call_us", fresh_call(&host, &plugin).await);
    put("worker_spawn_ready_ms", spawn_ready(&host, &plugin).await);

    add(&host, "warm", service).await;
    host.rotation.run_one("warm", Action::Validate).await.expect("a first attempt");
    // Two of them, as the pages that all workers share would be one worker's own otherwise.
    host.carry_out(Operation::PluginInstall { path: stage::plugin("slow_check") })
        .await
        .expect("another plugin");
    host.supervisor.warm("slow-check").await.expect("another worker");
    let workers = host.supervisor.status();
    let pid = workers.iter().find(|worker| worker.service == "well-behaved").and_then(|worker| worker.pid);
    put("worker_private_kib", private_kib(pid.expect("a worker")));

    put("reports_per_s", reports(&host).await);

    let (alone, beside) = beside_attackers(&host, service).await;
    put("attempt_p99_ms", alone);
    put("attempt_p99_beside_attackers_ms", beside);
    put("attackers_p99_ratio", beside / alone);

    for n in 0..CREDENTIALS {
        add(&host, &format!("c{n}"), service).await;
    }
    // Side by side, in turns, so that a noisy neighbour disturbs both alike.
    let (mut bare, mut pipeline) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        bare.push(bare_client(service).await);
        make_all_due(&host).await;
        pipeline.push(attempts(&host).await);
    }
    let (bare, pipeline) = (median(bare), median(pipeline));
    put("reqwest_per_s", bare);
    put("pipeline_per_s", pipeline);
    put("pipeline_ratio", pipeline / bare);
    host.close().await;

    put("paranoid_attempt_ms", paranoid_attempt(service).await);
    put("drop_to_first_report_ms", drop_to_first_report(service, &plugin).await);

    languages(&mut put).await;
}

/// A fresh instance and one call in it, in this process.
async fn fresh_call(host: &Host, plugin: &Path) -> f64 {
    let code = code(host, plugin);
    let shape = PoolShape { memories: 1, tables: 4 };
    let engine = engine::running(&keywheel::limits::CALL, Some(shape)).expect("an engine");
    let plugin = Plugin::load(&engine, &code).expect("the plugin loads");
    let mut runs = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        for _ in 0..2_000 {
            keywheel::worker::run_alone(&plugin, Call::Describe).await.expect("a description");
        }
        runs.push(started.elapsed().as_secs_f64() * 1e6 / 2_000.0);
    }
    median(runs)
}

fn code(host: &Host, _plugin: &Path) -> PathBuf {
    fs::read_dir(host.home.cache())
        .expect("a cache")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "cwasm"))
        .expect("native code")
}

/// From the order to the first call's answer: process, sandbox, announcement, call.
async fn spawn_ready(host: &Host, plugin: &Path) -> f64 {
    let code = code(host, plugin);
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

/// What the same contract costs by language: a provider of each, in a home of its own.
async fn languages(put: &mut impl FnMut(&str, f64)) {
    let service = service(ANY_ACCOUNT);
    let of_language = |name: &str| target().join(format!("providers/{name}.wasm"));
    let sdk = [
        ("rust", "well-behaved", plugin("well_behaved")),
        ("template", "gitea", target().join("providers/gitea.toml")),
        ("js", "nextcloud", of_language("nextcloud")),
        ("python", "wordpress", of_language("wordpress")),
    ];
    for (language, provider, file) in sdk {
        if !file.exists() {
            println!("{language}: {} is missing; hint: `make langs` builds it", file.display());
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let host = open(folder.path()).await;
        let mib = |path: &Path| fs::metadata(path).expect("a file").len() as f64 / f64::from(1 << 20);
        let component = match language {
            // A page of text; what runs it is what weighs.
            "template" => of_language("template-provider"),
            _ => file.clone(),
        };
        put(&format!("{language}_component_mib"), mib(&component));
        let started = Instant::now();
        host.carry_out(Operation::PluginInstall { path: file.clone() }).await.expect("installed");
        put(&format!("{language}_install_s"), started.elapsed().as_secs_f64());
        put(&format!("{language}_native_mib"), mib(&code(&host, &file)));

        if language == "rust" {
            add(&host, "one", service).await;
        } else {
            let mut credential = with_password("one", provider, service);
            if language == "template" {
                credential.settings.truncate(1);
                credential.keys[0].name = "token".into();
            }
            host.carry_out(Operation::CredentialAdd(Box::new(credential))).await.expect("a credential");
        }
        host.rotation.run_one("one", Action::Validate).await.expect("a first attempt");
        let mut runs = Vec::new();
        for _ in 0..201 {
            let started = Instant::now();
            host.rotation.run_one("one", Action::Validate).await.expect("an attempt");
            runs.push(started.elapsed().as_secs_f64() * 1e3);
        }
        put(&format!("{language}_validate_ms"), median(runs));
        let workers = host.supervisor.status();
        let pid = workers.iter().find(|worker| worker.service == provider).and_then(|worker| worker.pid);
        put(&format!("{language}_private_mib"), private_kib(pid.expect("a worker")) / 1_024.0);
        host.close().await;
    }
}

/// A credential of the providers whose one key is an app password, of somebody at a server.
fn with_password(id: &str, provider: &str, service: SocketAddr) -> AddCredential {
    AddCredential {
        credential_id: id.into(),
        profile_id: None,
        service: provider.into(),
        settings: vec![("base_url".into(), format!("http://{service}")), ("user".into(), "ann".into())],
        private_hosts: Vec::new(),
        method: None,
        validate_interval: Some(3_600),
        max_age: None,
        identity: None,
        idle_limit: None,
        quiet: Vec::new(),
        keys: vec![KeyInput {
            name: "app_password".into(),
            value: SecretInput::new(&Secret::new("an-app-password-0123456789abcdef".to_owned())),
            expires: None,
            cookie: None,
        }],
    }
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

/// Whole ends of attempts (report, monitor, journal), 256 waiting at a time.
async fn reports(host: &Host) -> f64 {
    const COUNT: usize = 20_000;
    let keys = |_: usize| Vec::new();
    for n in 0..COUNT {
        host.writer
            .add_credential(keywheel::db::writer::NewCredential {
                plugin_digest: None,
                credential_id: format!("r{n}"),
                profile_id: None,
                service: "reports".into(),
                settings: Vec::new(),
                private_hosts: Vec::new(),
                method: None,
                validate_interval: None,
                max_age: None,
                idle_limit: None,
                quiet: Vec::new(),
                identity: None,
                keys: keys(n),
                expires: None,
                first_due: 0,
                first_action: Action::Validate,
            })
            .await
            .expect("a credential");
    }
    let quotas = vec![("reports".to_owned(), u32::try_from(COUNT).expect("it fits"))];
    let claim = ClaimDue {
        owner: "bench".into(),
        now: now(),
        lease_until: now() + 600_000,
        quotas,
        at_most: u32::MAX,
        gate: keywheel::db::writer::Gate::default(),
    };
    let claims = host.writer.claim_due(claim).await.expect("claims").claims;
    let count = claims.len();
    let claims = Arc::new(tokio::sync::Mutex::new(claims));
    let started = Instant::now();
    let tasks: Vec<_> = (0..256)
        .map(|_| {
            let (claims, writer) = (Arc::clone(&claims), host.writer.clone());
            tokio::spawn(async move {
                loop {
                    let Some(claim) = claims.lock().await.pop() else { return };
                    let report = Report {
                        cookie_id: claim.token.credential_id.clone(),
                        profile_id: None,
                        service: claim.service,
                        validate_url: "http://127.0.0.1/check".into(),
                        cookie_keys: [("session".to_owned(), "0123456789abcdef".to_owned())].into(),
                        status: Status::Success,
                        message: None,
                        started_at: iso8601(claim.started_at),
                        finished_at: iso8601(now()),
                        attempt_number: claim.attempt_number,
                        meta: serde_json::Map::new(),
                    };
                    let monitor = MonitorUpdate {
                        consecutive_failures: 0,
                        expires_at: None,
                        next_due_at: Some(now() + 3_600_000),
                        next_action: Action::Validate,
                        asked_until: None,
                        next_reason: "cadence".into(),
                    };
                    let end = Finish {
                        token: claim.token,
                        report: report.into(),
                        verdict: "valid".into(),
                        monitor,
                        generations: GenerationChange::None,
                        expiry_updates: Vec::new(),
                        identity: None,
                        in_doubt: None,
                    };
                    writer.finish(end).await.expect("a report");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task");
    }
    count as f64 / started.elapsed().as_secs_f64()
}

/// So that no repeat runs dry.
async fn make_all_due(host: &Host) {
    let changes = (0..CREDENTIALS).map(|n| async move {
        let id = format!("c{n}");
        host.writer.make_due(&id, Action::Validate, now()).await.expect("an idle credential");
    });
    futures_util::future::join_all(changes).await;
}

async fn bare_client(service: SocketAddr) -> f64 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{service}/check");
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + MEASURE;
    let tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let (client, url, done) = (client.clone(), url.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                while Instant::now() < until {
                    let request = client
                        .get(&url)
                        .header("cookie", format!("session=a-session-of-{n}-0123456789abcdef"));
                    let answer = request.send().await.expect("an answer");
                    answer.bytes().await.expect("a body");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let started = Instant::now();
    for task in tasks {
        task.await.expect("a task");
    }
    done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// Everything switched on: the scheduler claims what is due, workers run it, the egress asks,
/// and each attempt counts when its report is durable.
async fn attempts(host: &Host) -> f64 {
    let (tell, stop) = watch::channel(false);
    let reader = host.reader().expect("a reader");
    let before = reader.counts().expect("counts").reports;
    let started = Instant::now();
    let scheduler = tokio::spawn(Arc::clone(&host.rotation).serve(Vec::new(), stop));
    tokio::time::sleep(MEASURE).await;
    let after = reader.counts().expect("counts").reports;
    let elapsed = started.elapsed();
    tell.send(true).expect("the scheduler listens");
    scheduler.await.expect("the scheduler ends");
    (after - before) as f64 / elapsed.as_secs_f64()
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
        let database = host.home.database();
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
