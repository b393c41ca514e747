//! A provider's work in-process with Extism, as its competent user would write it: a compiled
//! plugin, a fresh instance for each attempt, HTTP over kept connections, and one thread that
//! writes reports durably, many a commit. Prints its numbers as JSON for `pipeline.rs`.
//!
//! `keywheel-bench-extism PLUGIN fresh` times a fresh instance and a call in it;
//! `keywheel-bench-extism PLUGIN pipeline SERVICE FOLDER on-demand|pooled THREADS SECONDS` counts
//! attempts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use extism::convert::Json;
use extism::{CompiledPlugin, Manifest, PTR, Plugin, PluginBuilder, ToBytes, UserData, Wasm, host_fn};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// As many accounts as the pipeline has.
const ACCOUNTS: usize = 60_000;
/// Reports of one commit, at most.
const BATCH: usize = 256;

#[derive(Serialize, ToBytes)]
#[encoding(Json)]
struct Answer {
    status: u16,
    body: String,
}

#[derive(Serialize)]
struct Context<'a> {
    url: &'a str,
    cookie: String,
}

#[derive(Deserialize)]
struct Verdict {
    valid: bool,
    user: Option<String>,
}

struct Report {
    account: usize,
    verdict: Result<Verdict, String>,
    started_at: u64,
    finished_at: u64,
}

thread_local! {
    // One a thread: a pool of connections that all share would be a lock that all wait for.
    static AGENT: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
}

host_fn!(get(_nothing: (); url: String, cookie: String) -> Answer {
    let mut answer = AGENT.with(|agent| agent.get(&url).header("cookie", &cookie).call())?;
    Ok(Answer { status: answer.status().as_u16(), body: answer.body_mut().read_to_string()? })
});

fn compiled(plugin: &Path, pooled: bool) -> Result<CompiledPlugin, extism::Error> {
    let manifest = Manifest::new([Wasm::data(std::fs::read(plugin)?)]);
    let mut builder = PluginBuilder::new(manifest)
        .with_wasi(false)
        .with_cache_disabled()
        .with_function("get", [PTR, PTR], [PTR], UserData::new(()), get);
    if pooled {
        let mut pool = wasmtime::PoolingAllocationConfig::default();
        // What makes our own pool fast.
        pool.linear_memory_keep_resident(256 << 10).table_keep_resident(64 << 10);
        let mut config = wasmtime::Config::new();
        config.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
        builder = builder.with_wasmtime_config(config);
    }
    builder.compile()
}

fn fresh_us(compiled: &CompiledPlugin) -> Result<f64, extism::Error> {
    const CALLS: u32 = 1_000;
    let mut runs = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        for _ in 0..CALLS {
            let mut plugin = Plugin::new_from_compiled(compiled)?;
            let described: String = plugin.call("describe", ())?;
            assert!(described.contains("well-behaved"), "a description");
        }
        runs.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
    }
    runs.sort_by(f64::total_cmp);
    Ok(runs[runs.len() / 2])
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Writes what comes until nobody sends any more, and returns how many it was.
fn write(mut db: Connection, reports: &Receiver<Report>) -> rusqlite::Result<usize> {
    let mut written = 0;
    while let Ok(first) = reports.recv() {
        let transaction = db.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO reports (account, status, message, started_at, finished_at) VALUES (?, ?, ?, ?, ?)",
            )?;
            let rest = std::iter::from_fn(|| reports.try_recv().ok());
            for report in std::iter::once(first).chain(rest).take(BATCH) {
                let (status, message) = match report.verdict {
                    Ok(Verdict { valid: true, user }) => ("success", user),
                    Ok(Verdict { valid: false, .. }) => ("validation_failed", None),
                    Err(error) => ("failed", Some(error)),
                };
                let (from, to) = (report.started_at as i64, report.finished_at as i64);
                insert.execute((format!("c{}", report.account), status, message, from, to))?;
                written += 1;
            }
        }
        transaction.commit()?;
    }
    Ok(written)
}

/// Attempts a second, each with a durable report.
fn pipeline(
    compiled: &Arc<CompiledPlugin>,
    service: &str,
    folder: &Path,
    threads: usize,
    measure: Duration,
) -> Result<f64, extism::Error> {
    let db = Connection::open(folder.join("extism.sqlite3"))?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS reports (id INTEGER PRIMARY KEY, account TEXT NOT NULL, status TEXT NOT NULL,
            message TEXT, started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL) STRICT",
    )?;
    let (report, reports) = sync_channel(1_024);
    let writer = std::thread::spawn(move || write(db, &reports));
    let started = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let (compiled, report, url) = (Arc::clone(compiled), report.clone(), format!("{service}/check"));
            std::thread::spawn(move || {
                let mut account = thread;
                while started.elapsed() < measure {
                    let started_at = now();
                    let context = Context {
                        url: &url,
                        cookie: format!("session=a-session-of-c{account}-0123456789abcdef"),
                    };
                    let verdict = Plugin::new_from_compiled(&compiled)
                        .and_then(|mut plugin| plugin.call("validate", Json(context)))
                        .map(|Json(verdict): Json<Verdict>| verdict)
                        .map_err(|error| error.to_string());
                    let ended = Report { account, verdict, started_at, finished_at: now() };
                    report.send(ended).expect("the writer listens");
                    account = (account + threads) % ACCOUNTS;
                }
            })
        })
        .collect();
    drop(report);
    for worker in workers {
        worker.join().expect("a thread");
    }
    let written = writer.join().expect("the writer")?;
    let took = started.elapsed().as_secs_f64();
    let db = Connection::open(folder.join("extism.sqlite3"))?;
    let bad: Option<String> = db.query_row(
        "SELECT max(coalesce(message, status)) FROM reports WHERE status <> 'success'",
        [],
        |row| row.get(0),
    )?;
    assert!(bad.is_none(), "an attempt failed: {bad:?}");
    Ok(written as f64 / took)
}

fn main() -> Result<(), extism::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut numbers = BTreeMap::new();
    match arguments[..] {
        [plugin, "fresh"] => {
            let plugin = Path::new(plugin);
            numbers.insert("on_demand_us", fresh_us(&compiled(plugin, false)?)?);
            numbers.insert("pooled_us", fresh_us(&compiled(plugin, true)?)?);
        }
        [plugin, "pipeline", service, folder, allocator, threads, seconds] => {
            let compiled = Arc::new(compiled(Path::new(plugin), allocator == "pooled")?);
            let measure = Duration::from_secs_f64(seconds.parse()?);
            let per_s = pipeline(&compiled, service, Path::new(folder), threads.parse()?, measure)?;
            numbers.insert("per_s", per_s);
        }
        _ => panic!("which plugin, and `fresh` or `pipeline SERVICE FOLDER on-demand|pooled THREADS SECONDS`"),
    }
    println!("{}", serde_json::to_string(&numbers)?);
    Ok(())
}
