//! Ten million reports: how long the questions take that people ask of them, and how long a
//! write waits while a million of them are deleted. Runs after `pipeline` and adds its numbers to
//! `target/bench/summary.json`. Never asserts: timings are no tests. It needs 6 GB of disk for
//! three minutes, and gives them back. `cargo bench -p keywheel --bench history -- 1000000` does
//! it with fewer, to look at something, and leaves the summary alone.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "ten million rows go in by no command of ours")]

mod stage;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keywheel::credential::{Millis, now};
use keywheel::db::queries::{Reader, ReportFilter};
use keywheel::db::writer::{Finish, GenerationChange, MonitorUpdate, Writer};
use keywheel::db::{Action, HomeLock};
use keywheel::report::{Report, Status, iso8601};
use keywheel::retention::{Effort, Position, Retention, Rules};
use rusqlite::params;
use serde_json::json;
use stage::{Summary, target};

const REPORTS: u64 = 10_000_000;
const CREDENTIALS: u64 = 20_000;
/// So many of its last reports a failing credential failed.
const FAILED: u32 = 10;
/// One in so many fails: a bad day.
const FAILING: u64 = 20;
const SPAN: Millis = 100 * 86_400_000;
/// What is older than this is a tenth of all.
const KEEP: Millis = 90 * 86_400_000;
/// What `credential history` and `credential list --failing` show.
const PAGE: u32 = 20;
const LIST: u32 = 100;
/// Tasks that write, and their rest between two writes: some hundreds a second.
const TASKS: u64 = 4;
const REST: Duration = Duration::from_millis(5);
const BEFORE: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    runtime.block_on(run(asked.unwrap_or(REPORTS)));
}

async fn run(reports: u64) {
    let out = target().join("bench");
    fs::create_dir_all(&out).expect("target/bench");
    let folder = tempfile::Builder::new().prefix("history-").tempdir_in(&out).expect("a folder");
    let path = folder.path().join("keywheel.db");
    let begun = Instant::now();
    fill(folder.path(), &path, reports);
    let bytes = fs::metadata(&path).expect("the database").len();
    println!("{reports} reports, {:.1} GB, filled in {:.0?}", bytes as f64 / 1e9, begun.elapsed());

    let slowest = questions(&path, reports);
    let (before, during) = prune(folder.path(), &path).await;
    let times = |writes: &[Write]| writes.iter().map(|write| write.ms).collect::<Vec<_>>();
    for (name, writes) in [("before", &before), ("while pruning", &during)] {
        let mut writes = writes.clone();
        writes.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        // Where the long ones lie tells what made them wait.
        let longest = writes.iter().take(5).map(|write| format!("{:.2} at {:.1} s", write.ms, write.at));
        println!("longest writes {name}, ms: {}", longest.collect::<Vec<_>>().join(", "));
    }
    let (before, during) = (times(&before), times(&during));
    let usual = quantile(&before, 0.5);
    let longest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    for (name, times) in [("before", &before), ("while pruning", &during)] {
        println!(
            "writes {name}: {} of them, ms: median {:.2}, 99 % {:.2}, 99.9 % {:.2}, longest {:.2}",
            times.len(),
            quantile(times, 0.5),
            quantile(times, 0.99),
            quantile(times, 0.999),
            longest(times)
        );
    }
    if reports != REPORTS {
        return;
    }
    let mut summary = Summary::open();
    summary.put("history_query_ms", slowest);
    summary.put("write_longest_ms", longest(&before));
    // By how much more than usual the unluckiest write took.
    summary.put("prune_max_stall_ms", (longest(&during) - usual).max(0.0));
}

/// Ten million reports in the order of their time, over all credentials in turn, by the real
/// schema.
fn fill(folder: &Path, path: &Path, reports: u64) {
    let lock = HomeLock::acquire(&folder.join("lock")).expect("the lock");
    let (writer, thread) = Writer::start(path, lock).expect("a database");
    drop(writer);
    thread.join();
    let mut db = rusqlite::Connection::open(path).expect("the database");
    db.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;
         DROP INDEX reports_by_credential;",
    )
    .expect("a fast connection");
    let all = db.transaction().expect("a transaction");
    let begin = now() - SPAN;
    let meta = json!({
        "verdict": "valid", "action": "validate", "path": ["validate-current"], "requests": 1,
        "worker": "service-7-41", "plugin": "0123456789abcdef".repeat(4),
    })
    .to_string();
    {
        let mut report = all
            .prepare(
                "INSERT INTO cookie_rotation_reports (cookie_id, service, validate_url,
                     cookie_keys_json, status, message, attempt_number, started_at, finished_at,
                     created_at, idempotency_key, meta_json)
                 VALUES (?1, ?2, 'https://service.example/check', '{\"session\":\"0123456789abcdef\"}',
                     ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9)",
            )
            .expect("a statement");
        for n in 0..reports {
            // A prime stride: neighbours in time are strangers in every other order.
            let credential = n * 7_919 % CREDENTIALS;
            let (id, attempt) = (name(credential), n / CREDENTIALS + 1);
            let at = begin + n * SPAN / reports;
            let failed =
                credential.is_multiple_of(FAILING) && attempt > reports / CREDENTIALS - u64::from(FAILED);
            let started = iso8601(at);
            report
                .execute(params![
                    id,
                    service(credential),
                    if failed { "unreachable" } else { "success" },
                    failed.then_some("the service answered 503"),
                    attempt as i64,
                    started,
                    iso8601(at + 210),
                    format!("{id}/{attempt}/{started}"),
                    meta,
                ])
                .expect("a report");
        }
        let mut credential = all
            .prepare(
                "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                     attempt_number, current_generation, last_generation, rotated_at, created_at)
                 VALUES (?1, ?2, '[[\"base_url\",\"https://service.example\"]]', '[]', ?3, 1, 1, ?4, ?4)",
            )
            .expect("a statement");
        let mut monitor = all
            .prepare(
                "INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict,
                     last_attempt_at, last_success_at, consecutive_failures, next_due_at, next_action)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, 'validate')",
            )
            .expect("a statement");
        for n in 0..CREDENTIALS {
            let (id, service, end) = (name(n), service(n), (begin + SPAN) as i64);
            credential
                .execute(params![id, service, (reports / CREDENTIALS) as i64, begin as i64])
                .expect("a credential");
            let (status, verdict, failures) = if n.is_multiple_of(FAILING) {
                ("unreachable", "unknown", FAILED)
            } else {
                ("success", "valid", 0)
            };
            monitor
                .execute(params![id, service, status, verdict, end - n as i64, failures, end + 86_400_000])
                .expect("a monitor row");
        }
    }
    all.execute_batch(
        "CREATE INDEX reports_by_credential ON cookie_rotation_reports (cookie_id);
         UPDATE cookie_rotation_monitor SET last_report_id =
             (SELECT max(id) FROM cookie_rotation_reports r WHERE r.cookie_id = cookie_rotation_monitor.cookie_id);",
    )
    .expect("the index again");
    all.commit().expect("a commit");
    drop(db);
    fs::File::open(path).and_then(|file| file.sync_all()).expect("on the disk");
}

fn name(credential: u64) -> String {
    format!("account-{credential}")
}

fn service(credential: u64) -> String {
    format!("service-{}", credential % 20)
}

type Question<'q> = (&'q str, &'q dyn Fn(&Reader, u64));

/// The three questions, asked of other credentials each time: by a new connection, with the whole
/// file taken out of memory before each, as after a start of the machine; by a new connection
/// with what the kernel remembers, as a command asks; and by one that stays open. Returns the
/// slowest of the medians of the latter two, in milliseconds: where a daemon runs, the pages of
/// credentials are in memory, for it writes them all the time. The first is printed beside them.
fn questions(path: &Path, reports: u64) -> f64 {
    const ASKED: u64 = 60;
    let status = |reader: &Reader, n: u64| {
        let row = reader.credential(&name(n)).expect("an answer").expect("a credential");
        assert!(row.monitor.last_status.is_some());
    };
    let failing = |reader: &Reader, _: u64| {
        let (rows, all) = reader.failing(None, LIST).expect("an answer");
        assert_eq!((rows.len() as u32, all), (LIST, CREDENTIALS / FAILING));
    };
    let history = |reader: &Reader, n: u64| {
        // A page in the middle, past the newest quarter.
        let before = Some((reports * 3 / 4) as i64);
        let filter = ReportFilter {
            credential_id: Some(name(n)),
            before_id: before,
            limit: PAGE,
            ..ReportFilter::default()
        };
        assert_eq!(reader.reports(&filter).expect("an answer").len() as u32, PAGE);
    };
    let questions: [Question<'_>; 3] =
        [("latest status", &status), ("failing list", &failing), ("page of history", &history)];
    let mut slowest: f64 = 0.0;
    for (what, ask) in questions {
        let time = |reader: &Reader, n: u64| {
            let started = Instant::now();
            ask(reader, n);
            started.elapsed().as_secs_f64() * 1e3
        };
        let anew = |from_disk: bool| -> Vec<f64> {
            forget(path);
            let ask_one = |n: u64| {
                if from_disk {
                    forget(path);
                }
                let started = Instant::now();
                let reader = Reader::open(path).expect("a reader");
                ask(&reader, n * 331 % CREDENTIALS);
                started.elapsed().as_secs_f64() * 1e3
            };
            (0..ASKED).map(ask_one).collect()
        };
        let (disk, cold) = (anew(true), anew(false));
        let reader = Reader::open(path).expect("a reader");
        let warm: Vec<f64> = (0..ASKED).map(|n| time(&reader, n * 331 % CREDENTIALS)).collect();
        let ways = [("all from the disk", &disk, 0.0), ("anew", &cold, 1.0), ("kept open", &warm, 1.0)];
        for (how, times, counts) in ways {
            let (median, worst) = (quantile(times, 0.5), quantile(times, 1.0));
            println!("{what}, {how}: ms: median {median:.2}, worst {worst:.2}");
            slowest = slowest.max(median * counts);
        }
    }
    slowest
}

/// Asks the kernel to drop what it has of the file in memory. It may keep some.
fn forget(path: &Path) {
    let file = fs::File::open(path).expect("the database");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
}

/// One write: when it began, in seconds after the first, and how long it took.
#[derive(Debug, Clone, Copy)]
struct Write {
    at: f64,
    ms: f64,
}

/// How long writes take: before, and while a tenth of the reports is deleted.
async fn prune(folder: &Path, path: &Path) -> (Vec<Write>, Vec<Write>) {
    let lock = HomeLock::acquire(&folder.join("lock")).expect("the lock");
    let (writer, thread) = Writer::start(path, lock).expect("the database");
    let before = {
        let load = Load::start(&writer);
        tokio::time::sleep(BEFORE).await;
        load.stop().await
    };
    let retention = Retention::new(path.to_owned(), writer.clone());
    let rules = Rules { stored_before: Some(now() - KEEP), ..Rules::default() };
    let load = Load::start(&writer);
    let started = Instant::now();
    let effort = Effort { time: Duration::from_secs(3_600), credentials: u32::MAX };
    let pruned = retention.prune(&rules, None, Position::START, effort).await.expect("pruned");
    let took = started.elapsed();
    let during = load.stop().await;
    println!(
        "{} reports pruned in {took:.0?}, {:.0} a second",
        pruned.reports,
        pruned.reports as f64 / took.as_secs_f64()
    );
    drop((retention, writer));
    thread.join();
    (before, during)
}

/// Attempts that begin and end at a steady rate, each write timed until it is durable.
struct Load {
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<Write>>>,
}

impl Load {
    fn start(writer: &Writer) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let write = move |started: Instant| Write {
            at: (started - begun).as_secs_f64(),
            ms: started.elapsed().as_secs_f64() * 1e3,
        };
        let task = |first: u64| {
            let (writer, over) = (writer.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut n = first;
                while !over.load(Ordering::Relaxed) {
                    n = (n + TASKS * 271) % CREDENTIALS;
                    let started = Instant::now();
                    let claim = writer
                        .claim_one(&name(n), Action::Validate, "bench", now(), now() + 60_000, true)
                        .await
                        .expect("a claim");
                    times.push(write(started));
                    tokio::time::sleep(REST).await;
                    let started = Instant::now();
                    writer.finish(end_of(claim)).await.expect("a report");
                    times.push(write(started));
                    tokio::time::sleep(REST).await;
                }
                times
            })
        };
        let tasks = (0..TASKS).map(task).collect();
        Self { over, tasks }
    }

    async fn stop(self) -> Vec<Write> {
        self.over.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for task in self.tasks {
            times.extend(task.await.expect("a task"));
        }
        times
    }
}

fn end_of(claim: keywheel::db::writer::Claim) -> Finish {
    let report = Report {
        cookie_id: claim.token.credential_id.clone(),
        profile_id: None,
        service: claim.service,
        validate_url: "https://service.example/check".into(),
        cookie_keys: [("session".to_owned(), "0123456789abcdef".to_owned())].into(),
        status: Status::Success,
        message: None,
        started_at: iso8601(claim.started_at),
        finished_at: iso8601(now()),
        attempt_number: claim.attempt_number,
        meta: serde_json::Map::new(),
    };
    Finish {
        token: claim.token,
        report: report.into(),
        verdict: "valid".into(),
        monitor: MonitorUpdate {
            next_reason: String::from("after its interval"),
            consecutive_failures: 0,
            expires_at: None,
            next_due_at: Some(now() + 3_600_000),
            next_action: Action::Validate,
            asked_until: None,
        },
        generations: GenerationChange::None,
        expiry_updates: Vec::new(),
        identity: None,
        in_doubt: None,
    }
}

fn quantile(times: &[f64], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted[at.min(sorted.len() - 1)]
}
