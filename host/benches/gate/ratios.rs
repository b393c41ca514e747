//! The ratios. Whatever is compared is done in alternating turns, close together in time: what
//! disturbs the machine for longer than a turn disturbs both sides, and which side goes first
//! alternates, too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use keywheel::control::Operation;
use keywheel::credential::now;
use keywheel::daemon::Host;
use keywheel::db::writer::{ClaimDue, Finish, Gate as Open, GenerationChange, MonitorUpdate, NewCredential};
use keywheel::db::{Action, HomeLock, Writer};
use keywheel::protocol::{Call, PoolShape};
use keywheel::report::{Report, Status, iso8601};
use keywheel::worker::engine::{self, Plugin};
use rusqlite::types::Value;
use tokio::sync::watch;

use crate::Gate;
use crate::recorded::{FRESH, PIPELINE, WRITER};
use crate::stage;

/// Of one side of the pipeline's ratio, which must get into its stride. The other sides take tens
/// of milliseconds, and have many turns: the shorter a pair, the more alike its two moments.
const TURN: Duration = Duration::from_millis(1_500);
const PIPELINE_TURNS: usize = 5;
const FRESH_TURNS: usize = 41;
const WRITER_TURNS: usize = 21;

/// More than the pipeline does in a turn.
const CREDENTIALS: usize = 45_000;

/// Tasks of the bare client, as many as there are calls in flight on a worker.
const TASKS: usize = 64;

pub async fn measure(gate: &mut Gate) {
    let folder = tempfile::tempdir().expect("a folder");
    let host = stage::open(folder.path()).await;
    let plugin = stage::plugin("well_behaved");
    host.carry_out(Operation::PluginInstall { path: plugin }).await.expect("the plugin is installed");

    let code = native_code(&host);
    gate.ratio(&FRESH, async || fresh(&code).await).await;

    let service = stage::service("{\"user\":\"ann\"}");
    stage::add(&host, "warm", service).await;
    host.rotation.run_one("warm", Action::Validate).await.expect("a first attempt");
    futures_util::stream::iter(0..CREDENTIALS)
        .map(|n| {
            let host = &host;
            async move { stage::add(host, &format!("c{n}"), service).await }
        })
        .buffer_unordered(256)
        .for_each(|()| async {})
        .await;
    let url = format!("http://{service}/check");
    gate.ratio(&PIPELINE, async || pipeline(&host, &url).await).await;
    host.close().await;

    gate.ratio(&WRITER, async || writer().await).await;
}

/// Runs both sides for each turn, and returns the first's result by the second's.
async fn in_turns(
    turns: usize,
    mut one: impl AsyncFnMut() -> f64,
    mut other: impl AsyncFnMut() -> f64,
) -> Vec<f64> {
    let mut ratios = Vec::new();
    for turn in 0..turns {
        let (left, right) = if turn % 2 == 0 {
            let left = one().await;
            (left, other().await)
        } else {
            let right = other().await;
            (one().await, right)
        };
        ratios.push(left / right);
    }
    ratios
}

async fn pipeline(host: &Host, url: &str) -> Vec<f64> {
    in_turns(
        PIPELINE_TURNS,
        async || {
            make_all_due(host).await;
            attempts(host).await
        },
        async || bare_client(url).await,
    )
    .await
}

/// Everything switched on: the scheduler claims what is due, workers run it, the egress asks, and
/// an attempt counts when its report is durable.
async fn attempts(host: &Host) -> f64 {
    let (tell, stop) = watch::channel(false);
    let reader = host.reader().expect("a reader");
    let before = reader.counts().expect("counts").reports;
    let started = Instant::now();
    let scheduler = tokio::spawn(Arc::clone(&host.rotation).serve(Vec::new(), stop));
    tokio::time::sleep(TURN).await;
    let done = reader.counts().expect("counts").reports - before;
    let elapsed = started.elapsed();
    tell.send(true).expect("the scheduler listens");
    scheduler.await.expect("the scheduler ends");
    assert!((done as usize) < CREDENTIALS * 9 / 10, "{done} attempts in a turn: it needs more CREDENTIALS");
    done as f64 / elapsed.as_secs_f64()
}

async fn make_all_due(host: &Host) {
    futures_util::stream::iter(0..CREDENTIALS)
        .map(|n| async move { host.writer.make_due(&format!("c{n}"), Action::Validate, now()).await })
        .buffer_unordered(1_024)
        .for_each(|made| async move { made.expect("an idle credential") })
        .await;
}

#[expect(clippy::disallowed_methods, reason = "the bare client is what the pipeline is compared with")]
async fn bare_client(url: &str) -> f64 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + TURN;
    let started = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let (client, url, done) = (client.clone(), url.to_owned(), Arc::clone(&done));
            tokio::spawn(async move {
                while Instant::now() < until {
                    let request = client.get(&url).header("cookie", format!("session=a-session-of-{n}"));
                    let answer = request.send().await.expect("an answer");
                    answer.bytes().await.expect("a body");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task");
    }
    done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

fn native_code(host: &Host) -> PathBuf {
    let entries = std::fs::read_dir(host.home.cache()).expect("a cache").flatten();
    let mut files = entries.map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|ending| ending == "cwasm")).expect("native code")
}

const CALLS: u32 = 500;

async fn fresh(code: &Path) -> Vec<f64> {
    let shape = PoolShape { memories: 1, tables: 4 };
    let engine = engine::running(&keywheel::limits::CALL, Some(shape)).expect("an engine");
    let plugin = Plugin::load(&engine, code).expect("the plugin loads");
    let (bare_engine, bare) = instances(code);
    // Times, so the other way round than rates: the bare one's is the first.
    in_turns(
        FRESH_TURNS,
        async || {
            let started = Instant::now();
            for _ in 0..CALLS {
                let mut store = wasmtime::Store::new(&bare_engine, ());
                store.set_epoch_deadline(1 << 40);
                bare.instantiate_async(&mut store).await.expect("an instance");
            }
            started.elapsed().as_secs_f64()
        },
        async || {
            let started = Instant::now();
            for _ in 0..CALLS {
                keywheel::worker::run_alone(&plugin, Call::Describe).await.expect("a description");
            }
            started.elapsed().as_secs_f64()
        },
    )
    .await
}

/// The same native code without us: nothing it imports is there, and nothing of it is called. The
/// pool's numbers stand here, so that a change of ours shows in the ratio.
fn instances(code: &Path) -> (wasmtime::Engine, wasmtime::component::InstancePre<()>) {
    let mut pool = wasmtime::PoolingAllocationConfig::new();
    pool.max_memory_size(usize::try_from(keywheel::limits::CALL.memory_bytes).expect("it fits"))
        .total_component_instances(64)
        .total_core_instances(512)
        .total_memories(64)
        .total_tables(256)
        .total_stacks(64)
        .max_memories_per_component(1)
        .max_tables_per_component(4)
        // Kernels differ in it, which is no news about us.
        .pagemap_scan(wasmtime::Enabled::Auto)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .async_stack_keep_resident(64 << 10);
    // What the code was compiled for is ours to keep.
    let mut settings = engine::settings();
    settings.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
    let engine = wasmtime::Engine::new(&settings).expect("an engine");
    // SAFETY: the host compiled the file a moment ago into a folder that nobody else has.
    let component = unsafe { wasmtime::component::Component::deserialize_file(&engine, code) }.expect("code");
    let mut linker = wasmtime::component::Linker::new(&engine);
    linker.define_unknown_imports_as_traps(&component).expect("imports");
    let bare = linker.instantiate_pre(&component).expect("it links");
    (engine, bare)
}

/// Ends of attempts in a turn of the writer.
const REPORTS: usize = 4_000;

async fn writer() -> Vec<f64> {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (folder.path().join("ours.db"), folder.path().join("theirs.db"));
    let start = |path: &Path, lock: &str| {
        let lock = HomeLock::acquire(&folder.path().join(lock)).expect("a lock");
        Writer::start(path, lock).expect("a database")
    };
    // SQLite alone writes into the same schema.
    let (writer, thread) = start(&theirs, "theirs.lock");
    drop(writer);
    thread.join();
    let alone = connection(&theirs);
    let (writer, thread) = start(&ours, "ours.lock");
    futures_util::stream::iter(0..REPORTS)
        .map(|n| writer.add_credential(credential(n)))
        .buffer_unordered(1_024)
        .for_each(|added| async move { added.expect("a credential") })
        .await;

    let written = connection(&ours);
    let mut ratios = Vec::new();
    for _ in 0..WRITER_TURNS {
        let newest = written
            .query_row("SELECT max(id) FROM cookie_rotation_reports", [], |row| row.get::<_, Option<i64>>(0));
        let newest = newest.expect("a count").unwrap_or(0);
        let (per_second, batch) = finish_all(&writer).await;
        // The very rows the writer wrote, so SQLite alone comes second in every turn.
        ratios.push(per_second / inserts(&alone, &rows_after(&written, newest), batch));
    }
    drop(writer);
    thread.join();
    ratios
}

#[expect(clippy::disallowed_methods, reason = "SQLite alone is what the writer is compared with")]
fn connection(path: &Path) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(path).expect("a database");
    db.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4096").expect("settings");
    db
}

fn credential(n: usize) -> NewCredential {
    NewCredential {
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
        keys: Vec::new(),
        expires: None,
        first_due: 0,
        first_action: Action::Validate,
    }
}

/// Claims all and ends all, 256 waiting at a time. Returns the ends per second, and how many were
/// in a commit.
async fn finish_all(writer: &Writer) -> (f64, usize) {
    let claim = ClaimDue {
        owner: "gate".into(),
        now: now(),
        lease_until: now() + 600_000,
        quotas: vec![("reports".into(), u32::MAX)],
        at_most: u32::MAX,
        allowed: std::collections::BTreeMap::new(),
        gate: Open::default(),
    };
    let claims = writer.claim_due(claim).await.expect("claims").claims;
    assert_eq!(claims.len(), REPORTS, "all are due");
    let ends: Vec<Finish> = claims
        .into_iter()
        .map(|claim| Finish {
            report: Arc::new(Report {
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
            }),
            token: claim.token,
            verdict: "valid".into(),
            monitor: MonitorUpdate {
                consecutive_failures: 0,
                expires_at: None,
                // Due again at once, for the next turn.
                next_due_at: Some(0),
                next_action: Action::Validate,
                asked_until: None,
                next_reason: "cadence".into(),
            },
            generations: GenerationChange::None,
            expiry_updates: Vec::new(),
            identity: None,
            in_doubt: None,
        })
        .collect();
    let before = writer.progress().borrow().clone();
    let started = Instant::now();
    futures_util::stream::iter(ends)
        .map(|end| writer.finish(end))
        .buffer_unordered(256)
        .for_each(|ended| async move {
            ended.expect("a report");
        })
        .await;
    let elapsed = started.elapsed();
    // The thread answers after it counted, so all of them are in.
    let after = writer.progress().borrow().clone();
    let commits = (after.commits - before.commits).max(1);
    (REPORTS as f64 / elapsed.as_secs_f64(), REPORTS / commits as usize)
}

fn rows_after(db: &rusqlite::Connection, id: i64) -> Vec<Vec<Value>> {
    let mut select =
        db.prepare("SELECT * FROM cookie_rotation_reports WHERE id > ?1 ORDER BY id").expect("a query");
    let columns = select.column_count();
    let rows = select.query_map([id], |row| (0..columns).map(|column| row.get(column)).collect());
    rows.expect("rows").collect::<Result<_, _>>().expect("values")
}

fn inserts(db: &rusqlite::Connection, rows: &[Vec<Value>], batch: usize) -> f64 {
    assert_eq!(rows.len(), REPORTS, "each end of an attempt has its row");
    let places = vec!["?"; rows[0].len()].join(", ");
    let statement = format!("INSERT INTO cookie_rotation_reports VALUES ({places})");
    let started = Instant::now();
    for batch in rows.chunks(batch.max(1)) {
        db.execute_batch("BEGIN IMMEDIATE").expect("a transaction");
        let mut insert = db.prepare_cached(&statement).expect("a statement");
        for row in batch {
            insert.execute(rusqlite::params_from_iter(row)).expect("a row");
        }
        db.execute_batch("COMMIT").expect("a commit");
    }
    rows.len() as f64 / started.elapsed().as_secs_f64()
}
