//! What a whole attempt and a whole rotation cost, side by side in one run: a bare HTTP client, the
//! script that somebody would write instead, and the same provider's work in-process with Extism.
//! Writes into `target/bench/summary.json`. Never asserts a timing: timings are no tests. With
//! `attempts` or `rotations` as argument only those run, and nothing is written: for a profiler.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "the bare client and the rivals are what it is compared with")]

mod stage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use keywheel::control::Operation;
use keywheel::credential::now;
use keywheel::daemon::Host;
use keywheel::db::Action;
use keywheel::db::writer::{Claim, ClaimDue, Finish, GenerationChange, MonitorUpdate, NewCredential};
use keywheel::protocol::{Call, PoolShape};
use keywheel::report::{Report, Status, iso8601};
use keywheel::worker::engine::{self, Plugin};
use stage::{Summary, add_many, code, median, open, plugin, service, target};
use tokio::sync::watch;

/// Tasks of the bare client.
const TASKS: usize = 64;
/// Long enough to be past warm-up, short enough to be run often.
const MEASURE: Duration = Duration::from_secs(4);
/// Credentials of the pipeline: more than it can do while it is measured.
const CREDENTIALS: usize = 120_000;
const REPEATS: usize = 3;
/// Attempts of the bench's own that end beside the pipeline's.
const PROBES: usize = 8;

const BODY: &str = "{\"user\":\"ann\"}";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let wanted = |name: &str| std::env::args().any(|argument| argument == name);
    let service = service(BODY);
    let folder = tempfile::tempdir().expect("a folder");
    let host = open(folder.path()).await;
    host.carry_out(Operation::PluginInstall { path: plugin("well_behaved") }).await.expect("installed");
    if wanted("attempts") || wanted("rotations") {
        add_many(&host, CREDENTIALS, &["well-behaved".into()], service).await;
        println!("measuring");
        if wanted("attempts") {
            println!("{:.0} attempts/s", attempts(&host).await);
        }
        if wanted("rotations") {
            make_all_due(&host, Action::Rotate).await;
            println!("{:.0} rotations/s", rotations(&host).await);
        }
        host.close().await;
        return;
    }
    let mut summary = Summary::open();

    let (mut fresh, mut rival) = (Vec::new(), Vec::new());
    host.supervisor.warm("well-behaved").await.expect("native code");
    for _ in 0..REPEATS {
        fresh.push(fresh_call(&host).await);
        rival.extend(Extism::fresh());
    }
    summary.put("fresh_call_us", median(fresh));
    rival.sort_by(|one, other| one.fresh_us.total_cmp(&other.fresh_us));
    let extism = rival.get(rival.len() / 2);
    if let Some(extism) = extism {
        summary.put("extism_fresh_us", extism.fresh_us);
        summary.put("extism_pooled_fresh_us", extism.pooled_us);
    }
    summary.put("reports_per_s", reports(&host).await);

    add_many(&host, CREDENTIALS, &["well-behaved".into()], service).await;
    let threads = extism.and_then(|extism| extism.threads(service));
    // Side by side, in turns, so that a noisy neighbour disturbs all alike.
    let (mut bare, mut pipeline, mut rotating) = (Vec::new(), Vec::new(), Vec::new());
    let (mut script, mut in_process) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        bare.push(bare_client(service).await);
        make_all_due(&host, Action::Validate).await;
        pipeline.push(attempts(&host).await);
        make_all_due(&host, Action::Rotate).await;
        rotating.push(rotations(&host).await);
        script.extend(aiohttp(service));
        if let (Some(extism), Some(threads)) = (extism, threads) {
            in_process.extend(extism.pipeline(service, threads, MEASURE));
        }
    }
    let (bare, pipeline, rotating) = (median(bare), median(pipeline), median(rotating));
    summary.put("reqwest_per_s", bare);
    summary.put("pipeline_per_s", pipeline);
    summary.put("pipeline_ratio", pipeline / bare);
    summary.put("rotations_per_s", rotating);
    // A rotation is two requests.
    summary.put("rotation_ratio", 2.0 * rotating / bare);
    for (name, runs) in [("aiohttp_per_s", script), ("extism_pipeline_per_s", in_process)] {
        if !runs.is_empty() {
            summary.put(name, median(runs));
        }
    }

    for n in 0..PROBES {
        add_unserved(&host, format!("probe{n}"), "probes").await;
    }
    let mut commits = Vec::new();
    for _ in 0..REPEATS {
        make_all_due(&host, Action::Validate).await;
        commits.push(commit_p99(&host).await);
    }
    summary.put("report_commit_p99_ms", median(commits));
    host.close().await;
}

/// A fresh instance and one call in it, in this process.
async fn fresh_call(host: &Host) -> f64 {
    let code = code(host);
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

/// Whole ends of attempts (report, monitor, journal), 256 waiting at a time.
async fn reports(host: &Host) -> f64 {
    const COUNT: usize = 20_000;
    let adding = (0..COUNT).map(|n| add_unserved(host, format!("r{n}"), "reports"));
    futures_util::stream::iter(adding).buffer_unordered(256).collect::<()>().await;
    let quotas = vec![("reports".to_owned(), u32::try_from(COUNT).expect("it fits"))];
    let claim = ClaimDue {
        owner: "bench".into(),
        now: now(),
        lease_until: now() + 600_000,
        quotas,
        at_most: u32::MAX,
        allowed: std::collections::BTreeMap::new(),
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
                    writer.finish(end(claim)).await.expect("a report");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task");
    }
    count as f64 / started.elapsed().as_secs_f64()
}

/// A valid session's end of an attempt.
fn end(claim: Claim) -> Finish {
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
    Finish {
        token: claim.token,
        report: report.into(),
        verdict: "valid".into(),
        monitor,
        generations: GenerationChange::None,
        expiry_updates: Vec::new(),
        identity: None,
        in_doubt: None,
    }
}

/// A credential that no plugin serves, without keys.
async fn add_unserved(host: &Host, credential_id: String, service: &str) {
    let new = NewCredential {
        plugin_digest: None,
        credential_id,
        profile_id: None,
        service: service.into(),
        settings: Vec::new(),
        private_hosts: Vec::new(),
        method: None,
        validate_interval: None,
        max_age: None,
        idle_limit: None,
        quiet: Vec::new(),
        identity: None,
        keys: Vec::new(),
        expires: None,
        first_due: 0,
        first_action: Action::Validate,
    };
    host.writer.add_credential(new).await.expect("a credential");
}

/// So that no repeat runs dry.
async fn make_all_due(host: &Host, action: Action) {
    let changes = (0..CREDENTIALS).map(|n| async move {
        let id = format!("c{n}");
        host.writer.make_due(&id, action, now()).await.expect("an idle credential");
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

/// Everything switched on for a while: the scheduler claims what is due, workers run it, the
/// egress asks, and each attempt counts when its report is durable. Returns the reports' ids and
/// what it took.
async fn at_full_load(host: &Host, beside: impl Future<Output = ()>) -> (i64, i64, f64) {
    let (tell, stop) = watch::channel(false);
    let reader = host.reader().expect("a reader");
    let before = reader.last_report_id().expect("an id");
    let started = Instant::now();
    let scheduler = tokio::spawn(Arc::clone(&host.rotation).serve(Vec::new(), stop));
    tokio::join!(tokio::time::sleep(MEASURE), beside);
    let after = reader.last_report_id().expect("an id");
    let elapsed = started.elapsed().as_secs_f64();
    tell.send(true).expect("the scheduler listens");
    scheduler.await.expect("the scheduler ends");
    (before, after, elapsed)
}

/// Those of the reports between two ids that say what a condition asks for, and how many don't.
fn count(host: &Host, (before, after): (i64, i64), condition: &str) -> (f64, u64) {
    let database = rusqlite::Connection::open(host.home.database_file()).expect("the database");
    let of = format!(
        "FROM cookie_rotation_reports WHERE id > ?1 AND id <= ?2 AND cookie_id LIKE 'c%' AND {condition}"
    );
    let of_other = format!(
        "FROM cookie_rotation_reports WHERE id > ?1 AND id <= ?2 AND cookie_id LIKE 'c%' AND NOT {condition}"
    );
    let number = |of: &str| {
        let select = format!("SELECT count(*) {of}");
        database.query_row(&select, [before, after], |row| row.get::<_, u32>(0)).expect("a count")
    };
    let counted = number(&of);
    if counted as usize + 1_000 > CREDENTIALS {
        println!("nearly all {CREDENTIALS} credentials were used up: the figure is too low");
    }
    (f64::from(counted), number(&of_other).into())
}

async fn attempts(host: &Host) -> f64 {
    let (before, after, elapsed) = at_full_load(host, async {}).await;
    let (valid, others) = count(host, (before, after), "status = 'success'");
    if others > 0 {
        println!("{others} attempts found no valid session, and don't count");
    }
    valid / elapsed
}

/// Whole rotations: intent, rotate with capture, receipt, validate, promote, report. Only a
/// report that says so counts.
async fn rotations(host: &Host) -> f64 {
    let issued = stage::ISSUED.load(Ordering::Relaxed);
    let (before, after, elapsed) = at_full_load(host, async {}).await;
    let (rotated, others) = count(host, (before, after), "coalesce(json_extract(meta_json, '$.rotated'), 0)");
    let issued = stage::ISSUED.load(Ordering::Relaxed) - issued;
    println!(
        "{rotated} rotations, {others} attempts that were none; {issued} secrets issued till all had ended"
    );
    rotated / elapsed
}

/// How long an attempt's end waits until it is durable while the pipeline does all it can: the
/// slowest hundredth. Credentials of a service that no plugin serves, so that the scheduler leaves
/// them alone, end their attempts by the writer's queue as all others do.
async fn commit_p99(host: &Host) -> f64 {
    let took = std::sync::Mutex::new(Vec::new());
    let until = Instant::now() + MEASURE;
    let probes = (0..PROBES).map(|n| {
        let took = &took;
        async move {
            let id = format!("probe{n}");
            while Instant::now() < until {
                let claim =
                    host.writer.claim_one(&id, Action::Validate, "bench", now(), now() + 600_000, false);
                let end = end(claim.await.expect("a claim"));
                let started = Instant::now();
                host.writer.finish(end).await.expect("a report");
                took.lock().expect("samples").push(started.elapsed().as_secs_f64() * 1e3);
            }
        }
    });
    let probes = async {
        futures_util::future::join_all(probes).await;
    };
    let (before, after, elapsed) = at_full_load(host, probes).await;
    let (beside, _) = count(host, (before, after), "status = 'success'");
    let mut took = took.into_inner().expect("samples");
    took.sort_by(f64::total_cmp);
    println!("{} ends of attempts beside {:.0} attempts/s", took.len(), beside / elapsed);
    assert!(took.len() >= 1_000, "too few samples for a hundredth");
    took[took.len() * 99 / 100]
}

/// The script that somebody writes in place of Keywheel, against the same service. None where it
/// isn't set up.
fn aiohttp(service: SocketAddr) -> Option<f64> {
    let python = target().join("peers/aiohttp-venv/bin/python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/aiohttp-script/script.py");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(&python);
    command.arg(script).args(["--service", &format!("http://{service}")]);
    command.arg("--db").arg(folder.path().join("results.sqlite3"));
    command.args(["--accounts", &CREDENTIALS.to_string(), "--seconds", &MEASURE.as_secs().to_string()]);
    let numbers = numbers_of(&python, &mut command)?;
    assert_eq!(numbers["failed"], 0.0, "the script got other answers");
    Some(numbers["written"] / numbers["seconds"])
}

/// The provider's work in-process with Extism, `host/benches/extism`.
struct Extism {
    /// Which allocator gives the faster fresh instance.
    allocator: &'static str,
    /// As Extism comes, and with the pool and its settings that Keywheel has.
    fresh_us: f64,
    pooled_us: f64,
}

impl Extism {
    fn command() -> (PathBuf, Command) {
        let program = target().join("extism/release/keywheel-bench-extism");
        let mut command = Command::new(&program);
        command.arg(target().join("extism/wasm32-unknown-unknown/release/keywheel_bench_extism_plugin.wasm"));
        (program, command)
    }

    fn fresh() -> Option<Self> {
        let (program, mut command) = Self::command();
        let numbers = numbers_of(&program, command.arg("fresh"))?;
        let (on_demand, pooled) = (numbers["on_demand_us"], numbers["pooled_us"]);
        let allocator = if pooled < on_demand { "pooled" } else { "on-demand" };
        Some(Self { allocator, fresh_us: on_demand, pooled_us: pooled })
    }

    fn pipeline(&self, service: SocketAddr, threads: u32, measure: Duration) -> Option<f64> {
        let (program, mut command) = Self::command();
        let folder = tempfile::tempdir().expect("a folder");
        command.args(["pipeline", &format!("http://{service}")]).arg(folder.path());
        command.args([self.allocator, &threads.to_string(), &measure.as_secs_f64().to_string()]);
        Some(numbers_of(&program, &mut command)?["per_s"])
    }

    /// As many threads as serve it best.
    fn threads(&self, service: SocketAddr) -> Option<u32> {
        let mut best = None;
        for threads in [2, 4, 8, 16] {
            let per_s = self.pipeline(service, threads, Duration::from_secs(2))?;
            println!("extism: {per_s:.0}/s by {threads} threads");
            if best.is_none_or(|(most, _)| per_s > most) {
                best = Some((per_s, threads));
            }
        }
        best.map(|(_, threads)| threads)
    }
}

/// What a rival prints, which it ends with.
fn numbers_of(program: &Path, command: &mut Command) -> Option<BTreeMap<String, f64>> {
    if !program.exists() {
        println!("{} is missing; hint: `make bench` sets it up", program.display());
        return None;
    }
    let output = command.output().expect("the rival starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("numbers"))
}
