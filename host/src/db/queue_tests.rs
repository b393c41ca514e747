//! The queue of what is due, at size: what a claim's statements cost when hardly anything is due,
//! and how many bytes one scheduled credential takes.

use std::fmt::Write;

use rusqlite::StatementStatus;
use tempfile::TempDir;

use super::super::census::FIRST_DUE;
use super::super::open_for_writing;
use super::super::queries::Reader;
use super::super::scratch::{Scratch, is_on_postgres};
use super::super::sql::{Connection, Owned, for_postgres, params};
use super::{DUE, NEXT_DUE};
use crate::credential::Millis;

const T0: Millis = 1_700_000_000_000;
const SERVICES: u32 = 100;

/// As many as `KEYWHEEL_SCHEDULED` says: a million take a minute, and change no number here.
fn scheduled() -> u32 {
    std::env::var("KEYWHEEL_SCHEDULED").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000)
}

/// A database with as many credentials over a hundred services, due within the coming day; every
/// tenth is paused. Names arrive in no order, as people's do.
fn queue(count: u32) -> (TempDir, Connection) {
    let folder = TempDir::new().unwrap();
    let db = open_for_writing(&folder.path().join("keywheel.db"), None).unwrap();
    db.execute_batch("BEGIN").unwrap();
    for number in 0..count {
        let id = format!("account-{:08x}", number.wrapping_mul(0x9E37_79B1));
        let service = format!("service-{:02}", number % SERVICES);
        db.prepare_cached(
            "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                 current_generation, last_generation, rotated_at, created_at)
             VALUES (?1, ?2, '[[\"base_url\",\"https://site.example\"]]', '[]', 1, 1, ?3, ?3)",
        )
        .unwrap()
        .execute(params![id, service, T0 as i64])
        .unwrap();
        let due = (number % 10 != 0).then_some((T0 + 60_000 + u64::from(number) % 86_400_000) as i64);
        db.prepare_cached(
            "INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict,
                 last_attempt_at, last_success_at, expires_at, next_due_at, next_action,
                 last_report_id, next_reason)
             VALUES (?1, ?2, 'success', 'valid', ?3, ?3, ?3, ?4, 'validate', 1000000, ?5)",
        )
        .unwrap()
        .execute(params![id, service, T0 as i64, due, "to rotate 30 min before expiry"])
        .unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    (folder, db)
}

/// What a glance says at size: `KEYWHEEL_SCHEDULED` says how many, and how long it took is printed.
#[test]
#[expect(clippy::print_stdout, reason = "whoever asks for a million wants to see the number")]
fn a_glance_at_many_names_the_few_and_counts_the_rest() {
    let count = scheduled();
    let (folder, db) = queue(count);
    // Of each hundred: one needs a person, one fails, one waits for its first look.
    db.execute_batch(
        "UPDATE cookie_rotation_monitor SET last_status = 'failed', last_verdict = 'needs-human',
                 consecutive_failures = 2
             WHERE cookie_id IN (SELECT credential_id FROM credentials WHERE id % 100 = 1);
             UPDATE cookie_rotation_monitor SET last_status = 'unreachable', last_verdict = 'unknown',
                 consecutive_failures = 1
             WHERE cookie_id IN (SELECT credential_id FROM credentials WHERE id % 100 = 2);
             UPDATE cookie_rotation_monitor SET last_status = NULL, last_verdict = NULL
             WHERE cookie_id IN (SELECT credential_id FROM credentials WHERE id % 100 = 3);
             UPDATE credentials SET paused = 1 WHERE id % 10 = 5;",
    )
    .unwrap();
    let reader = Reader::open(folder.path().join("keywheel.db")).unwrap();
    let begin = std::time::Instant::now();
    let glance = reader.glance(T0, T0 + 1).unwrap();
    println!("{:?} for a glance at {count}", begin.elapsed());
    assert_eq!(glance.counts, reader.counts().unwrap());
    assert_eq!(glance.services.len() as u32, SERVICES);
    assert_eq!(glance.services.iter().map(|row| row.credentials).sum::<u64>(), u64::from(count));
    assert_eq!(glance.services.iter().map(|row| row.failing).sum::<u64>(), u64::from(count / 50));
    assert_eq!(glance.person.len(), 10);
    assert_eq!(glance.person_count, (count / 100).min(1_000));
    assert_eq!(glance.unclear.iter().map(|row| row.count).sum::<u32>(), (count / 100).min(1_000));
    // Of those that end first so many are looked at, and the failing among them are named above.
    assert!(!glance.ending.is_empty() && glance.ending.len() <= 300, "{}", glance.ending.len());
}

fn plan(db: &Connection, sql: &str, count: usize) -> String {
    let mut explain = db.prepare_cached(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let values = vec![Owned::Null; count];
    let mut rows = explain.query(values).unwrap();
    let mut text = String::new();
    while let Some(row) = rows.next().unwrap() {
        writeln!(text, "{}", row.get::<&str>(3).unwrap()).unwrap();
    }
    text
}

#[test]
fn a_claim_finds_what_is_due_by_index_probes_alone() {
    let (_folder, db) = queue(1_000);
    for (sql, count) in [(DUE.as_str(), 4), (NEXT_DUE, 1)] {
        let plan = plan(&db, sql, count);
        assert!(plan.lines().all(|line| line.starts_with("SEARCH")), "{plan}");
        assert!(plan.contains("monitor_by_due (service=?"), "{plan}");
    }
}

#[test]
fn a_claim_of_nothing_costs_the_same_however_many_wait() {
    let steps = |count| {
        let (_folder, db) = queue(count);
        let file = db.file().unwrap();
        let mut due = file.prepare(&DUE).unwrap();
        let mut next = file.prepare(NEXT_DUE).unwrap();
        let mut rows = due.query(rusqlite::params!["service-07", T0 as i64, 64, "host"]).unwrap();
        assert!(rows.next().unwrap().is_none());
        drop(rows);
        // The paused ones have no due time and come first in the index.
        let earliest: i64 = next.query_row(["service-07"], |row| row.get(0)).unwrap();
        assert!(earliest > T0 as i64);
        (due.get_status(StatementStatus::VmStep), next.get_status(StatementStatus::VmStep))
    };
    let (few, many) = (steps(1_000), steps(20_000));
    assert_eq!(few, many);
    assert!(many.0 < 100 && many.1 < 100, "{many:?}");
}

#[test]
#[expect(clippy::print_stdout, reason = "whoever asks for a million wants to see the number")]
fn a_scheduled_credential_takes_less_than_three_hundred_bytes_of_the_queue() {
    let count = scheduled();
    let (_folder, db) = queue(count);
    let bytes: i64 = db
        .query_row(
            "SELECT sum(pgsize) FROM dbstat WHERE name IN ('cookie_rotation_monitor', 'monitor_by_due')",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let each = bytes / i64::from(count);
    println!("{each} bytes each for {count}");
    assert!(each < 300, "{each} bytes each");
}

#[test]
#[expect(clippy::print_stdout, reason = "whoever asks for a million wants to see the number")]
fn a_scrape_finds_the_first_that_is_due_in_the_same_few_steps_and_counts_the_rest_in_one_pass() {
    let steps = |count| {
        let (_folder, db) = queue(count);
        let plan = plan(&db, FIRST_DUE, 1);
        assert!(plan.lines().all(|line| line.starts_with("SEARCH")), "{plan}");
        let mut first = db.file().unwrap().prepare(FIRST_DUE).unwrap();
        let due: i64 = first.query_row(["service-07"], |row| row.get(0)).unwrap();
        assert!(due > T0 as i64);
        first.get_status(StatementStatus::VmStep)
    };
    assert_eq!(steps(1_000), steps(20_000));

    let count = scheduled();
    let (folder, _db) = queue(count);
    let reader = crate::db::Reader::open(folder.path().join("keywheel.db")).unwrap();
    let began = std::time::Instant::now();
    let services = reader.census(T0).unwrap();
    println!("{count} counted in {:?}", began.elapsed());
    assert_eq!(services.len(), SERVICES as usize);
    assert_eq!(services.iter().map(|of| of.states[0]).sum::<u64>(), u64::from(count));
    let paused = count.div_ceil(10);
    assert_eq!(services.iter().map(|of| of.scheduled).sum::<u64>(), u64::from(count - paused));
}

/// Whatever a server's planner believes of the journal: usually that no lease in it has run out.
#[test]
fn a_claim_on_a_server_reads_no_table_whole() {
    if !is_on_postgres() {
        return;
    }
    let scratch = Scratch::new();
    let db = scratch.connection();
    let fill = format!(
        "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
             current_generation, last_generation, rotated_at, created_at)
         SELECT 'account-' || n, 'service-' || n % 100, '[]', '[]', 1, 1, {T0}, {T0} FROM generate_series(1, 20000) n;
         INSERT INTO cookie_rotation_monitor (cookie_id, service, next_due_at, next_action)
         SELECT credential_id, service, {T0} + id * 2654435761 % 600000, 'validate' FROM credentials;
         INSERT INTO journal (credential, attempt_number, fence, owner, lease_until, action, started_at, phase)
         SELECT id, 1, 1, 'host-a', {T0} + 360000 + id, 'validate', {T0}, 'claimed' FROM credentials WHERE id <= 400;
         ANALYZE;
         PREPARE due AS {};",
        for_postgres(&DUE)
    );
    db.execute_batch(&fill).unwrap();
    for plans in ["force_custom_plan", "force_generic_plan"] {
        db.execute_batch(&format!("SET plan_cache_mode = {plans}")).unwrap();
        let explain = format!("EXPLAIN EXECUTE due('service-7', {}, 64, 'host-b')", T0 + 300_000);
        let mut select = db.prepare_cached(&explain).unwrap();
        let plan: Vec<String> =
            select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains("monitor_by_due"), "{plans}:\n{plan}");
        assert!(!plan.contains("Seq Scan on c"), "{plans}:\n{plan}");
    }
}
