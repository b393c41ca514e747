//! Copies while the source is written, copies before a migration, and what a restore makes of the
//! rows, on the real schema.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::migrations::{ALL, run};
use super::super::open_for_writing;
use super::*;
use crate::db::HomeLock;

const AT: Millis = 1_800_000_000_000;

fn open(path: &Path) -> rusqlite::Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    connect(path, flags, None).unwrap()
}

#[test]
fn a_copy_made_while_another_writes_is_one_moments_and_whole() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keywheel.db");
    let db = open_for_writing(&path, None).unwrap();
    // Two rows that are always equal, and enough pages for many steps.
    db.execute_batch(
        "INSERT INTO installation VALUES ('left', x''), ('right', x'');
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO installation SELECT 'fill' || i, randomblob(4000) FROM n;",
    )
    .unwrap();
    let (done, copies) = (AtomicBool::new(false), 3);
    std::thread::scope(|scope| {
        let done_for = &done;
        let writing = scope.spawn(move || {
            let (db, done) = (db, done_for);
            let mut rounds = 0_u32;
            while !done.load(Ordering::Relaxed) {
                rounds += 1;
                db.execute(
                    "UPDATE installation SET value = ?1 WHERE key IN ('left', 'right')",
                    [rounds.to_string().into_bytes()],
                )
                .unwrap();
            }
            rounds
        });
        let reader = Reader::open(&path).unwrap();
        let mut steps = 0;
        for number in 0..copies {
            let copy = home.path().join(format!("copy-{number}"));
            let mut last = Copied { done: 0, of: 0 };
            reader
                .copy_to(&copy, &mut |copied| {
                    assert_eq!(last.of.max(copied.of), copied.of, "it began anew");
                    (last, steps) = (copied, steps + 1);
                })
                .unwrap();
            assert_eq!(last.done, last.of);
            assert_eq!(look_through(&copy, true).unwrap().schema, migrations::current());
            let values: Vec<Vec<u8>> = open(&copy)
                .prepare("SELECT value FROM installation WHERE key IN ('left', 'right')")
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert_eq!(values[0], values[1], "half of a transaction was copied");
        }
        done.store(true, Ordering::Relaxed);
        assert!(steps > 2 * copies, "{steps} steps");
        assert!(writing.join().unwrap() > 0);
    });
}

#[test]
fn a_damaged_an_empty_and_a_newer_copy_are_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keywheel.db");
    drop(open_for_writing(&path, None).unwrap());
    assert_eq!(look_through(&path, true).unwrap().credentials, 0);
    let mut bytes = fs::read(&path).unwrap();
    let damaged = home.path().join("damaged");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8_192].fill(0x5a);
    fs::write(&damaged, &bytes).unwrap();
    assert!(matches!(look_through(&damaged, true), Err(CopyError::Damaged(_))));
    let empty = home.path().join("empty");
    fs::write(&empty, b"").unwrap();
    assert!(matches!(look_through(&empty, true), Err(CopyError::Damaged(_))));
    open(&path).execute_batch("PRAGMA user_version = 99").unwrap();
    let newer = look_through(&path, true).unwrap_err().to_string();
    assert!(newer.contains("schema 99"), "{newer}");
}

#[test]
fn a_database_of_an_earlier_schema_is_kept_before_it_is_changed_and_the_oldest_go() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keywheel.db");
    for start in 1..ALL.len() {
        let number = u32::try_from(start).unwrap();
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(home.path().join(format!("keywheel.db{suffix}")));
        }
        let db = Connection::Sqlite(open(&path));
        run(&db, path.to_str().unwrap(), &ALL[..start]).unwrap();
        db.execute("INSERT INTO installation VALUES ('mark', ?1)", [number.to_string().into_bytes()])
            .unwrap();
        drop(db);
        drop(open_for_writing(&path, None).unwrap());
        let kept = kept_name(&path, number);
        let copy = open(&kept);
        let mark: Vec<u8> = copy
            .query_row("SELECT value FROM installation WHERE key = 'mark'", [], |row| row.get(0))
            .unwrap();
        let version: u32 = copy.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!((mark, version), (number.to_string().into_bytes(), number), "as it was");
    }
    let copies = fs::read_dir(home.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".schema-"))
        .count();
    assert_eq!(copies, SCHEMA_COPIES);
    // Nothing is kept of a new one, or of one that is up to date.
    drop(open_for_writing(&path, None).unwrap());
    let fresh = home.path().join("fresh.db");
    drop(open_for_writing(&fresh, None).unwrap());
    assert!((0..=ALL.len()).all(|of| !kept_name(&fresh, u32::try_from(of).unwrap()).exists()));
}

/// Two credentials, one with an open attempt that has captured something, one paused; and an
/// external one.
fn lived_in(db: &Connection) {
    db.execute_batch(
        "INSERT INTO credentials (id, credential_id, service, settings_json, private_hosts_json, fence,
             attempt_number, current_generation, pending_generation, last_generation, rotated_at,
             created_at, paused, external)
         VALUES (1, 'open', 's', '[]', '[]', 40, 30, 2, 3, 3, 7, 7, 0, 0),
                (2, 'paused', 's', '[]', '[]', 9, 8, 1, NULL, 1, 7, 7, 1, 0),
                (3, 'external', 's', '[]', '[]', 0, 5, NULL, NULL, 0, 7, 7, 0, 1);
         INSERT INTO generations (credential, generation, state, attempt_number, created_at)
         VALUES (1, 2, 'current', 20, 7), (1, 3, 'pending', 30, 7), (2, 1, 'current', NULL, 7);
         INSERT INTO journal (credential, attempt_number, fence, owner, lease_until, action, started_at, phase)
         VALUES (1, 30, 40, 'old', 8, 'rotate', 6, 'captured');
         INSERT INTO cookie_rotation_monitor (cookie_id, service, next_due_at, next_action)
         VALUES ('open', 's', 8, 'rotate'), ('paused', 's', NULL, 'rotate'), ('external', 's', NULL, 'validate');",
    )
    .unwrap();
}

fn numbers(db: &Connection, sql: &str) -> Vec<Option<i64>> {
    let mut select = db.prepare_cached(sql).unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn what_a_backup_brings_back_is_in_doubt_and_counts_on_where_nobody_counted() {
    let home = tempfile::tempdir().unwrap();
    let db = open_for_writing(&home.path().join("keywheel.db"), None).unwrap();
    lived_in(&db);
    let hour = 3_600;
    let restored = Restored { backup_of: AT - hour * 1_000, nothing_ran_since: false };
    assert_eq!(begin_restored(&db, restored, AT).unwrap(), 2);
    let leap = i64::try_from(ASKED_FOR_BY_HAND + hour).unwrap();
    assert_eq!(
        numbers(&db, "SELECT attempt_number FROM credentials ORDER BY id"),
        [Some(30 + leap), Some(8 + leap), Some(5)]
    );
    assert_eq!(numbers(&db, "SELECT fence FROM credentials ORDER BY id")[0], Some(40 + leap));
    for column in ["doubtful_generation", "restored_generation"] {
        let of = numbers(&db, &format!("SELECT {column} FROM credentials ORDER BY id"));
        assert_eq!(of, [Some(2), Some(1), None], "{column}");
    }
    // The open attempt is another one now, and still knows what it captured.
    let journal = "SELECT attempt_number FROM journal UNION ALL SELECT fence FROM journal
                   UNION ALL SELECT started_at FROM journal
                   UNION ALL SELECT attempt_number FROM generations WHERE state = 'pending'";
    let at = i64::try_from(AT).unwrap();
    assert_eq!(numbers(&db, journal), [Some(30 + leap), Some(40 + leap), Some(at), Some(30 + leap)]);
    assert_eq!(
        numbers(&db, "SELECT next_due_at FROM cookie_rotation_monitor ORDER BY cookie_id"),
        [None, Some(at), None],
        "who was paused stays so, and nobody is due for an external one"
    );
    assert_eq!(numbers(&db, "SELECT count(*) FROM audit WHERE action = 'restored'"), [Some(1)]);
}

#[test]
fn a_home_that_only_moves_goes_on_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let db = open_for_writing(&home.path().join("keywheel.db"), None).unwrap();
    lived_in(&db);
    let before = "SELECT attempt_number FROM credentials UNION ALL SELECT fence FROM journal
                  UNION ALL SELECT doubtful_generation FROM credentials
                  UNION ALL SELECT next_due_at FROM cookie_rotation_monitor";
    let was = numbers(&db, before);
    begin_restored(&db, Restored { backup_of: AT, nothing_ran_since: true }, AT + 5_000).unwrap();
    assert_eq!(numbers(&db, before), was);
}

#[tokio::test]
async fn a_turn_through_the_writing_thread_writes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keywheel.db");
    let lock = HomeLock::acquire(&home.path().join("lock")).unwrap();
    let (writer, thread) = Writer::start(&path, lock).unwrap();
    writer.turn().await.unwrap();
    let wal = home.path().join("keywheel.db-wal");
    let before = fs::metadata(&wal).unwrap().len();
    for _ in 0..10 {
        writer.turn().await.unwrap();
    }
    assert_eq!(fs::metadata(&wal).unwrap().len(), before);
    drop(writer);
    tokio::task::spawn_blocking(move || thread.join()).await.unwrap();
}
