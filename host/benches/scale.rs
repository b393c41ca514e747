//! A million credentials over a hundred services on one machine, each looked at every ten minutes
//! by a real daemon, at a service that takes a tenth of a second; and what one credential and one
//! report cost from a thousand credentials to a million, as a plot. Adds its numbers to
//! `target/bench/summary.json` and leaves `flatness.svg` and `flatness.json` beside it. Never
//! asserts: timings are no tests. It needs 4 GB of disk, and gives them back.
//!
//! `--credentials N` has N in the million's place, for a try; `--only million` and
//! `--only flatness` do one of the two.

#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
#![expect(clippy::disallowed_methods, reason = "a million rows go in by no command of ours")]

mod stage;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use keywheel::config::Home;
use keywheel::control::{self, Operation, Outcome};
use keywheel::credential::{Millis, Secret, now};
use keywheel::db::HomeLock;
use keywheel::db::queries::Reader;
use keywheel::db::writer::{ClaimDue, Gate, Writer};
use keywheel::report::parse_iso8601;
use keywheel::rotation::schedule;
use keywheel::vault::{Place, Vault};
use plotters::prelude::*;
use rusqlite::{Connection, OpenFlags, params};
use serde_json::json;
use stage::{Summary, median, private_kib, target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MILLION: u64 = 1_000_000;
const SERVICES: usize = 100;
/// How long the simulated service takes.
const LATENCY: Duration = Duration::from_millis(100);
/// How often each of the million is looked at.
const INTERVAL: Millis = 600_000;
/// Until all workers run and the paces are known, and then what is measured.
const WARM_UP: Duration = Duration::from_secs(20);
const WINDOW: Duration = Duration::from_secs(60);
/// What fell due at the window's end has so long to begin, or counts as late as this.
const STRAGGLERS: Duration = Duration::from_secs(5);

/// The plot's sizes, up to the million's.
const SIZES: [u64; 4] = [1_000, 10_000, 100_000, MILLION];
/// The same at every size, or it would be the rate that differs: the interval grows instead.
const ATTEMPTS_PER_S: u64 = 500;
/// Nothing is due for so long after a start, so that it can be seen what that costs.
const QUIET: Duration = Duration::from_secs(25);
/// Of the quiet time, what passes before the idle daemon is looked at, and for how long.
const SETTLES: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(10);
const FLAT_WARM_UP: Duration = Duration::from_secs(5);
const FLAT_WINDOW: Duration = Duration::from_secs(20);

const KEYWHEEL: &str = env!("CARGO_BIN_EXE_keywheel");
/// First argument of this binary where it is the service.
const SERVE: &str = "serve-slowly";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == SERVE) {
        slow_service();
        return;
    }
    let after = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)
    };
    let most = after("--credentials").map_or(MILLION, |count| count.parse().expect("a number"));
    let only = after("--only").map(String::as_str);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(most, only));
}

async fn run(most: u64, only: Option<&str>) {
    let out = target().join("bench");
    fs::create_dir_all(&out).expect("target/bench");
    let service = SlowService::start();
    let folder = tempfile::Builder::new().prefix("scale-").tempdir_in(&out).expect("a folder");
    let begun = Instant::now();
    let prepared = folder.path().join("prepared");
    let services = prepare(&prepared, &service.addresses).await;
    println!("{SERVICES} services prepared in {:.1?}", begun.elapsed());
    if only != Some("flatness") {
        million(folder.path(), &prepared, &services, most).await;
    }
    if only != Some("million") {
        let mut points = Vec::new();
        for credentials in SIZES.into_iter().filter(|size| *size <= most) {
            points.push(point(folder.path(), &prepared, &services, credentials).await);
        }
        leave(&out, &points);
    }
}

// The service

/// In a process of its own, so that its work is nobody else's: each service at an address of its
/// own, as services are. Ends with its standard input.
fn slow_service() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"user\":\"ann\"}";
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for n in 0..SERVICES {
            let host = [127, 0, 1, u8::try_from(n + 1).expect("fewer than an octet")];
            let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::from(host), 0)).await;
            let listener = listener.expect("loopback has many addresses");
            println!("{}", listener.local_addr().expect("an address"));
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(answer_slowly(client, ANSWER));
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

async fn answer_slowly(mut client: tokio::net::TcpStream, answer: &'static [u8]) {
    let _ = client.set_nodelay(true);
    let (mut buffer, mut filled) = ([0; 4 << 10], 0);
    while filled < buffer.len() {
        match client.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => filled += read,
        }
        // Requests here have no body, so the blank line is their end.
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            tokio::time::sleep(LATENCY).await;
            if client.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

struct SlowService {
    addresses: Vec<SocketAddr>,
    process: Child,
    _out: BufReader<ChildStdout>,
}

impl SlowService {
    fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().expect("an executable"))
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let mut out = BufReader::new(process.stdout.take().expect("its output"));
        let addresses = (0..SERVICES).map(|_| {
            let mut line = String::new();
            out.read_line(&mut line).expect("an address");
            line.trim().parse().expect("an address")
        });
        let addresses = addresses.collect();
        Self { addresses, process, _out: out }
    }
}

impl Drop for SlowService {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

// Homes

/// A service as the rows of its credentials need it.
struct Service {
    name: String,
    settings_json: String,
    cookie_json: String,
}

/// A home with a hundred plugins, compiled and with their permissions pinned: each has one
/// credential, added as any other and never due while something is measured.
async fn prepare(root: &Path, addresses: &[SocketAddr]) -> Vec<Service> {
    let home = Home::locate(Some(root.to_owned())).expect("a home");
    home.make_folders().expect("folders");
    let names = stage::many_plugins(&home.plugins(), SERVICES);
    let host = stage::open(root).await;
    host.carry_out(Operation::PluginList).await.expect("all plugins are read");
    for (name, address) in names.iter().zip(addresses) {
        stage::add_to(&host, &format!("first-{name}"), name, *address).await;
    }
    host.close().await;
    let db = Connection::open(home.database_file()).expect("the database");
    let day = (now() + 86_400_000).cast_signed();
    db.execute("UPDATE cookie_rotation_monitor SET next_due_at = ?1", [day]).expect("all of them");
    let row = |name: String| {
        let (settings_json, cookie_json) = db
            .query_row(
                "SELECT c.settings_json, k.cookie_json
                 FROM credentials c JOIN generation_keys k ON k.credential = c.id WHERE c.service = ?1",
                [&name],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .expect("its first credential");
        Service { name, settings_json, cookie_json }
    };
    names.into_iter().map(row).collect()
}

fn name(credential: u64) -> String {
    format!("account-{credential:07}")
}

/// A copy of the prepared home with so many credentials, each with its real place in the schedule.
struct Filled {
    home: Home,
    credentials: u64,
    interval: Millis,
    /// Bytes of the database that the credentials brought.
    bytes: u64,
}

impl Filled {
    fn make(
        folder: &Path,
        prepared: &Path,
        services: &[Service],
        credentials: u64,
        interval: Millis,
    ) -> Self {
        let root = folder.join(format!("{credentials}-by-{interval}"));
        copy(prepared, &root);
        let home = Home::locate(Some(root)).expect("a home");
        let before = size(&home);
        let begun = Instant::now();
        fill(&home, services, credentials, interval);
        let bytes = size(&home).saturating_sub(before);
        println!(
            "{credentials} credentials, {:.1} MiB, filled in {:.1?}",
            bytes as f64 / f64::from(1 << 20),
            begun.elapsed()
        );
        Self { home, credentials, interval, bytes }
    }

    /// The first moments of each credential from then on, as the schedule has them; written down.
    fn first_due_from(&self, at: Millis) -> Vec<Millis> {
        let due_of = |n| {
            let phase = schedule::phase(&name(n)) % self.interval;
            at + (phase + self.interval - at % self.interval) % self.interval
        };
        let due: Vec<Millis> = (0..self.credentials).map(due_of).collect();
        let mut db = fast(&self.home);
        let all = db.transaction().expect("a transaction");
        {
            // Most of them have it already: only who would be overdue moves.
            let mut select = all
                .prepare(
                    "SELECT cookie_id FROM cookie_rotation_monitor
                     WHERE next_due_at < ?1 AND cookie_id LIKE 'account-%'",
                )
                .expect("a statement");
            let overdue: Vec<String> = select
                .query_map([at.cast_signed()], |row| row.get(0))
                .and_then(Iterator::collect)
                .expect("who is overdue");
            let mut update = all
                .prepare("UPDATE cookie_rotation_monitor SET next_due_at = ?2 WHERE cookie_id = ?1")
                .expect("a statement");
            for id in overdue {
                let moment = due[number(&id).expect("one of ours") as usize];
                update.execute(params![id, moment.cast_signed()]).expect("a due time");
            }
        }
        all.commit().expect("a commit");
        drop(db);
        let file = fs::File::open(self.home.database_file()).expect("the database");
        file.sync_all().expect("on the disk");
        // As after a restart of the machine, or nearly: what the disk has is read from there.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        due
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.home.root());
    }
}

fn number(credential: &str) -> Option<u64> {
    credential.strip_prefix("account-")?.parse().ok()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    fs::set_permissions(to, fs::metadata(from).expect("a folder").permissions()).expect("its mode");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (source, copied) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy(&source, &copied);
        } else {
            fs::copy(&source, &copied).expect("a copy");
        }
    }
}

fn size(home: &Home) -> u64 {
    Reader::open(&home.database()).expect("a database").size().expect("a size").0
}

fn fast(home: &Home) -> Connection {
    let db = Connection::open(home.database_file()).expect("the database");
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -500000;")
        .expect("a fast connection");
    db
}

/// Credentials with secrets that open, as if each had been valid at its last look.
fn fill(home: &Home, services: &[Service], credentials: u64, interval: Millis) {
    let vault = Vault::open(&home.master_key()).expect("the key");
    let mut db = fast(home);
    let all = db.transaction().expect("a transaction");
    // Rows come in any order of their due times, and an index that is made at the end takes a tenth.
    let indexes: Vec<(String, String)> = all
        .prepare("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = 'cookie_rotation_monitor'")
        .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .expect("the indexes");
    for (index, _) in &indexes {
        all.execute_batch(&format!("DROP INDEX {index}")).expect("without it for now");
    }
    let at = now();
    {
        let mut credential = all
            .prepare(
                "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                     validate_interval_seconds, attempt_number, fence, current_generation, last_generation,
                     rotated_at, created_at)
                 VALUES (?1, ?2, ?3, '[]', ?4, 40, 40, 1, 1, ?5, ?5)",
            )
            .expect("a statement");
        let mut generation = all
            .prepare(
                "INSERT INTO generations (credential, generation, state, created_at)
                 VALUES (?1, 1, 'current', ?2)",
            )
            .expect("a statement");
        let mut key = all
            .prepare(
                "INSERT INTO generation_keys (credential, generation, key, sealed, fingerprint, cookie_json)
                 VALUES (?1, 1, 'session', ?2, ?3, ?4)",
            )
            .expect("a statement");
        let mut monitor = all
            .prepare(
                "INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict,
                     last_attempt_at, last_success_at, next_due_at, next_action, next_reason)
                 VALUES (?1, ?2, 'success', 'valid', ?3, ?3, ?4, 'validate', 'cadence')",
            )
            .expect("a statement");
        for n in 0..credentials {
            let id = name(n);
            let service = &services[n as usize % services.len()];
            let secret = Secret::new(format!("a-session-of-{id}-0123456789abcdef"));
            let place = Place { credential: &id, generation: 1, key: "session" };
            let sealed = vault.seal(place, &secret).expect("a seal");
            let due = at + (schedule::phase(&id) % interval + interval - at % interval) % interval;
            credential
                .execute(params![
                    id,
                    service.name,
                    service.settings_json,
                    (interval / 1_000).cast_signed(),
                    (at - 86_400_000).cast_signed()
                ])
                .expect("a credential");
            let row = all.last_insert_rowid();
            generation.execute(params![row, (at - 86_400_000).cast_signed()]).expect("a generation");
            key.execute(params![row, sealed, vault.fingerprint(&secret), service.cookie_json])
                .expect("a key");
            monitor
                .execute(params![id, service.name, (due - interval).cast_signed(), due.cast_signed()])
                .expect("a monitor row");
        }
    }
    for (_, sql) in indexes {
        all.execute_batch(&sql).expect("the index again");
    }
    all.commit().expect("a commit");
}

// The daemon

struct Daemon {
    process: Child,
    socket: PathBuf,
    spawned: Instant,
    /// From its spawn to its first answer.
    ready: Duration,
}

impl Daemon {
    async fn start(home: &Home) -> Self {
        let log = fs::File::create(home.root().join("log")).expect("a log");
        let spawned = Instant::now();
        let process = Command::new(KEYWHEEL)
            .arg("--home")
            .arg(home.root())
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Self { process, socket: home.socket(), ready: Duration::ZERO, spawned };
        daemon.until(|_| true).await;
        daemon.ready = spawned.elapsed();
        daemon
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the daemon says so; the argument is how many attempts are in flight.
    async fn until(&mut self, is_so: impl Fn(usize) -> bool) {
        loop {
            if let Some(status) = self.process.try_wait().expect("a daemon of ours") {
                panic!("the daemon ended: {status}; its log is {}", self.log());
            }
            if let Ok(Some(Ok(Outcome::Status { in_flight, .. }))) =
                control::ask(&self.socket, &Operation::Status).await
                && is_so(in_flight)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.socket.with_file_name("log")).unwrap_or_default()
    }

    /// Seconds of processor time of the host alone, its workers not counted.
    fn processor_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a process of ours");
        let after_name = stat.rsplit_once(')').expect("a name").1;
        let ticks = |field: usize| -> f64 {
            after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("ticks")
        };
        (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
    }

    fn rss_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process of ours");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1_024.0
    }

    /// What all its workers have for themselves, and how many there are.
    fn workers(&self) -> (f64, usize) {
        let mut found: Vec<u32> = Vec::new();
        let mut parents = vec![self.pid()];
        while let Some(parent) = parents.pop() {
            let threads = fs::read_dir(format!("/proc/{parent}/task"));
            let children = threads
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
            for child in children.collect::<String>().split_whitespace().filter_map(|pid| pid.parse().ok()) {
                found.push(child);
                parents.push(child);
            }
        }
        (found.iter().map(|pid| private_kib(*pid)).sum::<f64>() / 1_024.0, found.len())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

/// What the daemon wrote down since a report.
struct Reports {
    db: Connection,
}

impl Reports {
    fn of(home: &Home) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self { db: Connection::open_with_flags(home.database(), flags).expect("the database") }
    }

    fn last(&self) -> i64 {
        self.db
            .query_row("SELECT coalesce(max(id), 0) FROM cookie_rotation_reports", [], |row| row.get(0))
            .expect("a number")
    }

    /// Number, begin and success of each after that one.
    fn after(&self, id: i64) -> Vec<(u64, Millis, bool)> {
        let mut select = self
            .db
            .prepare("SELECT cookie_id, started_at, status FROM cookie_rotation_reports WHERE id > ?1")
            .expect("a statement");
        let rows = select.query_map([id], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        });
        rows.expect("rows")
            .map(|row| row.expect("a row"))
            .filter_map(|(id, started, status)| {
                Some((number(&id)?, parse_iso8601(&started)?, status == "success"))
            })
            .collect()
    }
}

// The million

async fn million(folder: &Path, prepared: &Path, services: &[Service], credentials: u64) {
    let filled = Filled::make(folder, prepared, services, credentials, INTERVAL);
    let due = filled.first_due_from(now());
    let mut daemon = Daemon::start(&filled.home).await;
    daemon.until(|in_flight| in_flight > 0).await;
    let first_attempt = daemon.spawned.elapsed();
    println!("ready after {:.2?}, the first attempt runs after {first_attempt:.2?}", daemon.ready);
    tokio::time::sleep(WARM_UP).await;

    let reports = Reports::of(&filled.home);
    let (first, pages, processor, begin) = (reports.last(), size(&filled.home), daemon.processor_s(), now());
    let rss_before = daemon.rss_mib();
    let started = Instant::now();
    tokio::time::sleep(WINDOW).await;
    let took = started.elapsed().as_secs_f64();
    let (last, end) = (reports.last(), now());
    let (grown, processor) = (size(&filled.home) - pages, daemon.processor_s() - processor);
    let rss = daemon.rss_mib();
    let (workers_mib, workers) = daemon.workers();
    tokio::time::sleep(STRAGGLERS).await;

    let attempts = (last - first) as f64;
    let per_s = attempts / took;
    let found = reports.after(0);
    let failed = found.iter().filter(|(_, _, success)| !success).count();
    let lags = lags(&due, &found, begin, end);
    println!(
        "{:.0} attempts/s where {:.0} fall due, {failed} of {} without success",
        per_s,
        credentials as f64 * 1_000.0 / INTERVAL as f64,
        found.len()
    );
    println!(
        "lag of {} attempts, ms: median {}, 99 % {}, 99.9 % {}, longest {}",
        lags.len(),
        quantile(&lags, 0.5),
        quantile(&lags, 0.99),
        quantile(&lags, 0.999),
        quantile(&lags, 1.0)
    );
    println!(
        "host {rss_before:.0} MiB resident at the window's begin and {rss:.0} at its end; {workers} processes of workers have {workers_mib:.0} MiB for themselves"
    );
    println!(
        "host {:.0} % of one processor, {:.0} µs an attempt",
        processor * 100.0 / took,
        processor * 1e6 / attempts
    );
    let mut summary = Summary::open();
    summary.put("million_attempts_per_s", per_s);
    summary.put("million_lag_p99_ms", quantile(&lags, 0.99) as f64);
    // The host's own; its workers are in `hundred_services_private_mib`.
    summary.put("million_rss_mib", rss);
    summary.put("million_start_s", first_attempt.as_secs_f64());
    // What the reports of a day take before any is deleted.
    let a_day = per_s * 86_400.0;
    summary.put("million_db_mib_per_day", grown as f64 / attempts * a_day / f64::from(1 << 20));
}

/// How late what fell due in that time began. Who had not begun by now is as late as it is.
fn lags(due: &[Millis], found: &[(u64, Millis, bool)], begin: Millis, end: Millis) -> Vec<Millis> {
    let mut begun: Vec<Option<Millis>> = vec![None; due.len()];
    for (number, started, _) in found {
        let (number, started) = (*number as usize, *started);
        // Its first since it fell due: one before was planned by nobody here.
        if started >= due[number] && begun[number].is_none_or(|known| started < known) {
            begun[number] = Some(started);
        }
    }
    let at = now();
    let in_time = due.iter().zip(&begun).filter(|(due, _)| (begin..end).contains(*due));
    let mut lags: Vec<Millis> = in_time.map(|(due, begun)| begun.unwrap_or(at) - due).collect();
    lags.sort_unstable();
    lags
}

fn quantile(sorted: &[Millis], part: f64) -> Millis {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(0)
}

// The plot

/// What so many credentials cost.
#[derive(Debug, serde::Serialize)]
struct Point {
    credentials: u64,
    bytes_per_credential: f64,
    claim_of_nothing_us: f64,
    ready_ms: f64,
    status_ms: f64,
    idle_cpu_percent: f64,
    cpu_us_per_attempt: f64,
    attempts: f64,
    rss_mib: f64,
}

async fn point(folder: &Path, prepared: &Path, services: &[Service], credentials: u64) -> Point {
    let interval = credentials * 1_000 / ATTEMPTS_PER_S;
    let filled = Filled::make(folder, prepared, services, credentials, interval);
    let claim_of_nothing_us = claim_of_nothing(&filled.home, services).await;
    let begin = now() + QUIET.as_millis() as Millis;
    filled.first_due_from(begin);
    let daemon = Daemon::start(&filled.home).await;
    let ready_ms = daemon.ready.as_secs_f64() * 1e3;
    let until = async |at: Millis| tokio::time::sleep(Duration::from_millis(at.saturating_sub(now()))).await;
    let status_ms = median((0..5).map(|_| status_ms(&filled.home)).collect());

    tokio::time::sleep(SETTLES).await;
    let processor = daemon.processor_s();
    tokio::time::sleep(IDLE.min(Duration::from_millis(begin.saturating_sub(now())))).await;
    let idle_cpu_percent = (daemon.processor_s() - processor) * 100.0 / IDLE.as_secs_f64();

    until(begin).await;
    tokio::time::sleep(FLAT_WARM_UP).await;
    let reports = Reports::of(&filled.home);
    let (first, processor) = (reports.last(), daemon.processor_s());
    tokio::time::sleep(FLAT_WINDOW).await;
    let (last, processor) = (reports.last(), daemon.processor_s() - processor);
    let attempts = (last - first) as f64;
    let point = Point {
        credentials,
        bytes_per_credential: filled.bytes as f64 / credentials as f64,
        claim_of_nothing_us,
        ready_ms,
        status_ms,
        idle_cpu_percent,
        cpu_us_per_attempt: processor * 1e6 / attempts,
        attempts,
        rss_mib: daemon.rss_mib(),
    };
    println!("{point:?}");
    point
}

/// The scheduler's question while nothing is due, over all services.
async fn claim_of_nothing(home: &Home, services: &[Service]) -> f64 {
    let lock = HomeLock::acquire(&home.lock()).expect("the lock");
    let (writer, thread) = Writer::start(&home.database(), lock).expect("a database");
    let mut took = Vec::new();
    for _ in 0..201 {
        let claim = ClaimDue {
            owner: "bench".into(),
            // Long before anything was due.
            now: 1_000,
            lease_until: 2_000,
            quotas: services.iter().map(|service| (service.name.clone(), 64)).collect(),
            at_most: 1_024,
            allowed: std::collections::BTreeMap::new(),
            gate: Gate::new(|due| keywheel::db::writer::Passage::Go(due.action)),
        };
        let started = Instant::now();
        let claims = writer.claim_due(claim).await.expect("an answer");
        took.push(started.elapsed().as_secs_f64() * 1e6);
        assert!(claims.claims.is_empty(), "something was due");
    }
    drop(writer);
    thread.join();
    median(took)
}

fn status_ms(home: &Home) -> f64 {
    let started = Instant::now();
    let status = Command::new(KEYWHEEL)
        .arg("--home")
        .arg(home.root())
        .arg("status")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("it runs");
    started.elapsed().as_secs_f64() * 1e3
}

/// One line of the plot: its name, its unit and where its number is.
type Line = (&'static str, &'static str, fn(&Point) -> f64);

const LINES: [Line; 5] = [
    ("processor time per attempt", "µs", |point| point.cpu_us_per_attempt),
    ("bytes per credential", "B", |point| point.bytes_per_credential),
    ("claim of nothing", "µs", |point| point.claim_of_nothing_us),
    ("start-up", "ms", |point| point.ready_ms),
    ("keywheel status", "ms", |point| point.status_ms),
];

fn leave(out: &Path, points: &[Point]) {
    let text = serde_json::to_string_pretty(&json!({
        "attempts_per_s": ATTEMPTS_PER_S, "services": SERVICES, "points": points,
    }));
    fs::write(out.join("flatness.json"), text.expect("numbers are JSON")).expect("flatness.json");
    let svg = out.join("flatness.svg");
    draw(&svg, points).expect("flatness.svg");
    println!("{} has the plot", svg.display());
}

/// Every cost as a multiple of its own at the smallest size: what doesn't grow is a level line,
/// what grows with the credentials climbs to the upper right corner.
fn draw(path: &Path, points: &[Point]) -> Result<(), Box<dyn std::error::Error>> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    let root = SVGBackend::new(path, (880, 500)).into_drawing_area();
    root.fill(&WHITE)?;
    let widest = (last.credentials as f64 / first.credentials as f64).max(10.0);
    let mut chart = ChartBuilder::on(&root)
        .caption("Cost by number of credentials, as a multiple of the first", ("sans-serif", 18))
        .margin(12)
        .margin_right(40)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(
            (first.credentials as f64..first.credentials as f64 * widest).log_scale(),
            (0.1..widest).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("credentials")
        .y_desc("times")
        .x_label_formatter(&|count| format!("{count:.0}"))
        .draw()?;
    let ideal = [(first.credentials as f64, 1.0), (first.credentials as f64 * widest, widest)];
    chart
        .draw_series(LineSeries::new(ideal, BLACK.mix(0.25).stroke_width(1)))?
        .label("what grows as the credentials do")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.mix(0.25)));
    for (index, (name, unit, number)) in LINES.into_iter().enumerate() {
        let base = number(first);
        let line = points.iter().map(|point| (point.credentials as f64, number(point) / base));
        let colour = Palette9999::pick(index).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line, colour).point_size(3))?
            .label(format!("{name}: {base:.0} {unit} to {:.0} {unit}", number(last)))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
