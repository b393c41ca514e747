//! Odd rows of every table on their way from one engine to the other and back, and what is refused.

use super::*;
use crate::db::scratch::{Scratch, add_rows, is_on_postgres};
use crate::db::{HomeLock, Reader, Writer};

/// More than a batch.
const ROWS: usize = BATCH + 3;

const TEXTS: [&str; 7] = ["", "a", "Zz", "ü – 字 \u{10348}", "it's \"so\"\n\\ \t", "\u{feff}", "NULL"];
const NUMBERS: [i64; 5] = [i64::MIN, -1, 0, 1, i64::MAX];

const PLAIN: Suffix<'static> = Suffix { from: "", to: "" };

/// Ids with a gap, one below zero among them.
fn id(row: usize) -> i64 {
    [-7, 0].get(row).copied().unwrap_or_else(|| 10 * i64::try_from(row).unwrap())
}

/// A value as odd as the column lets it be, and another for each row where it must be.
fn odd(table: &Table, column: &str, kind: &str, is_null_allowed: bool, row: usize) -> Owned {
    let word = |words: &[&str]| Owned::from(words[row % words.len()].to_owned());
    let distinct = || format!("{}{row}", ["a", "B", "ü", "字", "~", "", "\u{10348}"][row % 7]);
    match (table.name, column) {
        (_, "id") => return Owned::Integer(id(row)),
        ("generations" | "generation_keys" | "journal" | "consumers", "credential") => {
            return Owned::Integer(id(row));
        }
        ("generations" | "generation_keys", "generation") => return Owned::Integer(1),
        (_, "credential_id" | "cookie_id") => return distinct().into(),
        // None of them is alive.
        ("hosts", "stopped_at") => return Owned::Integer(1),
        (_, "paused" | "external" | "holds") | ("consumers", "sink") => {
            return Owned::Integer(i64::from(row.is_multiple_of(2)));
        }
        ("generations", "state") => return word(&["current", "pending", "previous", "dropped"]),
        ("journal", "phase") => return word(&["claimed", "rotating", "captured"]),
        ("journal", "action") | (_, "next_action") => return word(&["validate", "rotate"]),
        ("audit", "actor") => return word(&["operator", "host"]),
        (_, "severity") => return word(&["warning", "critical"]),
        (_, "told_severity") if row.is_multiple_of(2) => return word(&["warning", "critical"]),
        (_, "told_severity" | "told_stage") if !row.is_multiple_of(2) => return Owned::Null,
        (_, "told_stage") => return Owned::Integer(3),
        (_, "pending_digest" | "pending_manifest_json") if !row.is_multiple_of(2) => return Owned::Null,
        (_, "pending_digest" | "pending_manifest_json") => return Owned::Text(String::new()),
        (_, "status") => return word(&["success", "failed", "validation_failed", "unreachable"]),
        (_, "last_status") if row.is_multiple_of(3) => {
            return word(&["success", "failed", "validation_failed"]);
        }
        (_, "last_status") => return Owned::Null,
        (_, name) if name.ends_with("_seconds") => return Owned::Integer([1, i64::MAX][row % 2]),
        ("host_keys", "public_key") => return distinct().into_bytes().into(),
        ("trusted_keys", "public_key") | ("hosts" | "host_keys", "name") | (_, "dedup_key") => {
            return distinct().into();
        }
        ("external_workers", "token_id") => return distinct().into(),
        (_, name) if table.key().any(|part| part == name) => return distinct().into(),
        _ => {}
    }
    if is_null_allowed && row % 4 == 3 {
        return Owned::Null;
    }
    match kind {
        "INTEGER" => Owned::Integer(NUMBERS[row % NUMBERS.len()]),
        "TEXT" => word(&TEXTS),
        "BLOB" => Owned::Blob([vec![], vec![0, 255, 0, 39, 92], vec![7; 3_000]][row % 3].clone()),
        other => panic!("a column of type {other}"),
    }
}

/// A file with odd rows in every table.
fn filled() -> Scratch {
    let scratch = Scratch::on_file();
    let db = scratch.connection();
    db.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
    for table in tables::ALL {
        let mut columns = db
            .prepare_cached(&format!(
                "SELECT name, type, \"notnull\" FROM pragma_table_info('{}')",
                table.name
            ))
            .unwrap();
        let columns: Vec<(String, String, bool)> = columns
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .collect::<sql::Result<_>>()
            .unwrap();
        let names: Vec<&str> = columns.iter().map(|(name, ..)| name.as_str()).collect();
        let places: Vec<String> = (1..=names.len()).map(|place| format!("?{place}")).collect();
        let insert =
            format!("INSERT INTO {} ({}) VALUES ({})", table.name, names.join(", "), places.join(", "));
        let rows = if table.name == LARGE_ROWS.0 { 3 } else { ROWS };
        for row in 0..rows {
            let values: Vec<Owned> =
                columns.iter().map(|(name, kind, not_null)| odd(table, name, kind, !not_null, row)).collect();
            db.execute(&insert, values).unwrap_or_else(|error| panic!("{}: {error}", table.name));
        }
    }
    db.execute_batch("COMMIT").unwrap();
    scratch
}

/// Every value there is.
fn everything(db: &Connection) -> Vec<(&'static str, Vec<Vec<Owned>>)> {
    let all = |table: &'static Table| {
        let (mut rows, mut found) = (rows_of(table), Vec::new());
        loop {
            let batch = rows.next(db).unwrap();
            if batch.is_empty() {
                return (table.name, found);
            }
            found.extend(batch);
        }
    };
    tables::ALL.iter().map(all).collect()
}

fn raw(store: &Store) -> Connection {
    marks::open(store).unwrap().0
}

/// As `crate::moving` does it, without a home.
fn carry(from: &Store, to: &Store) -> Result<u64, MoveError> {
    let source = Source::hold(from, "own")?;
    let target = Target::prepare(to, &source, "a-move")?;
    let replaced = target.fill(&source, &mut |_| {})?;
    compare(&source.content()?, &target.content()?)?;
    target.complete(&source, PLAIN)?;
    let name = marks::name(to)?;
    let moved = MovedTo { to: to.clone(), name, by: "a-move".into(), at: 7_000, ended: false };
    source.retire(&moved)?;
    assert!(open_copy(&moved, &marks::name(from)?)?);
    Ok(replaced)
}

fn elsewhere(folder: &tempfile::TempDir) -> Store {
    Store::File(folder.path().join("keywheel.db"))
}

#[test]
fn everything_goes_to_the_other_store_and_back_and_is_the_same() {
    let (first, second, folder) = (filled(), Scratch::new(), tempfile::tempdir().unwrap());
    let third = elsewhere(&folder);
    assert_eq!(carry(first.store(), second.store()).unwrap(), 0);
    let before = everything(&raw(first.store()));
    assert!(before.iter().all(|(_, rows)| rows.len() >= 3), "{before:?}");
    assert_eq!(everything(&raw(second.store())), before);
    assert_eq!(carry(second.store(), &third).unwrap(), 0);
    assert_eq!(everything(&raw(&third)), before);
    let original = content(&raw(first.store())).unwrap();
    assert_eq!(content(&raw(&third)).unwrap(), original);
    assert!(original.iter().all(|of| of.rows >= 3 && of.digest.len() == 64), "{original:?}");
}

#[test]
fn an_id_that_was_ever_given_out_is_not_given_out_again() {
    let (first, second, folder) = (Scratch::on_file(), Scratch::new(), tempfile::tempdir().unwrap());
    let third = elsewhere(&folder);
    let add = |db: &Connection, name: &str| {
        db.insert(
            "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                 last_generation, rotated_at, created_at) VALUES (?1, 'shop', '[]', '[]', 1, 0, 0)",
            [name],
        )
        .unwrap()
        .unwrap()
    };
    let db = first.connection();
    add(&db, "ann");
    let highest = add(&db, "bob");
    db.execute("DELETE FROM credentials WHERE credential_id = 'bob'", []).unwrap();
    drop(db);
    carry(first.store(), second.store()).unwrap();
    let db = raw(second.store());
    let next = add(&db, "carl");
    assert!(next > highest, "{next} after {highest}");
    db.execute("DELETE FROM credentials WHERE credential_id = 'carl'", []).unwrap();
    drop(db);
    carry(second.store(), &third).unwrap();
    let last = add(&raw(&third), "dora");
    assert!(last > next, "{last} after {next}");
}

#[test]
fn a_text_that_only_a_file_can_hold_is_replaced_and_counted_and_both_sides_are_the_same() {
    let (first, second) = (Scratch::on_file(), Scratch::new());
    let db = first.connection();
    add_rows(&db, "ann", "shop", "");
    db.execute("UPDATE cookie_rotation_monitor SET last_message = ?1", ["no\0such\0thing"]).unwrap();
    drop(db);
    assert_eq!(carry(first.store(), second.store()).unwrap(), 1);
    let message: String = raw(second.store())
        .query_row("SELECT last_message FROM cookie_rotation_monitor", [], |row| row.get(0))
        .unwrap();
    assert_eq!(message, "no\u{fffd}such\u{fffd}thing");
}

#[test]
fn a_hosts_sinks_are_called_as_the_new_store_calls_them_and_those_of_others_are_not() {
    let scratch = Scratch::new();
    let db = scratch.connection();
    add_rows(&db, "ann", "shop", "");
    let names = |sql: &str| -> Vec<String> {
        db.prepare_cached(sql)
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<sql::Result<_>>()
            .unwrap()
    };
    let sinks = || names("SELECT sink FROM sink_states ORDER BY sink");
    let consumers = || names("SELECT name FROM consumers ORDER BY name");
    for sink in ["app", "web"] {
        db.execute("INSERT INTO sink_states (sink) VALUES (?1)", [sink]).unwrap();
    }
    let consumer = "INSERT INTO consumers (credential, name, wait_seconds, sink)
         SELECT id, ?1, 60, ?2 FROM credentials";
    db.execute(consumer, params!["app", true]).unwrap();
    db.execute(consumer, params!["person", false]).unwrap();
    rename_sinks(&db, Suffix { from: "", to: "@one" }).unwrap();
    assert_eq!(sinks(), ["app@one", "web@one"]);
    assert_eq!(consumers(), ["app@one", "person"]);

    db.execute("INSERT INTO sink_states (sink) VALUES ('app@two')", []).unwrap();
    rename_sinks(&db, Suffix { from: "@one", to: "" }).unwrap();
    assert_eq!(sinks(), ["app", "app@two", "web"]);
    assert_eq!(consumers(), ["app", "person"]);

    // A person's consumer may have the name already.
    db.execute(consumer, params!["person@one", true]).unwrap();
    rename_sinks(&db, Suffix { from: "@one", to: "" }).unwrap();
    assert_eq!(consumers(), ["app", "person", "person@one"]);
}

#[test]
fn one_changed_value_and_one_lost_row_are_found_and_named() {
    for change in [
        "UPDATE credentials SET fence = fence + 1 WHERE credential_id = 'ann'",
        "UPDATE credentials SET profile_id = '' WHERE credential_id = 'ann'",
        "UPDATE credentials SET method = profile_id, profile_id = method WHERE credential_id = 'bob'",
        "DELETE FROM credentials WHERE credential_id = 'carl'",
    ] {
        let (first, second) = (Scratch::on_file(), Scratch::new());
        let db = first.connection();
        for name in ["ann", "bob", "carl"] {
            add_rows(&db, name, "shop", "");
        }
        db.execute("UPDATE credentials SET profile_id = 'p' WHERE credential_id = 'bob'", []).unwrap();
        drop(db);
        let source = Source::hold(first.store(), "own").unwrap();
        let target = Target::prepare(second.store(), &source, "a-move").unwrap();
        target.fill(&source, &mut |_| {}).unwrap();
        let original = source.content().unwrap();
        compare(&original, &target.content().unwrap()).unwrap();
        target.db.execute(change, []).unwrap();
        match compare(&original, &target.content().unwrap()) {
            Err(MoveError::Differs { table, .. }) => assert_eq!(table, "credentials", "{change}"),
            other => panic!("{change}: {other:?}"),
        }
    }
}

#[test]
fn no_store_but_an_empty_one_or_an_earlier_try_of_the_same_is_written_over() {
    let from = Scratch::on_file();
    add_rows(&from.connection(), "ann", "shop", "");
    let source = Source::hold(from.store(), "own").unwrap();
    let prepare = |to: &Store| Target::prepare(to, &source, "a-move").map(drop);
    let refused = |to: &Store| {
        let before = content(&raw(to)).unwrap();
        let text = prepare(to).unwrap_err().to_string();
        assert_eq!(content(&raw(to)).unwrap(), before, "{text}");
        text
    };

    let own = Scratch::new();
    add_rows(&own.connection(), "bob", "shop", "");
    assert!(refused(own.store()).contains("of its own"));

    // One that another installation began.
    let theirs = Scratch::new();
    drop(theirs.connection());
    let mark = Copying {
        installation: "another".into(),
        from: "somewhere".into(),
        by: "another-move".into(),
        whole: false,
    };
    marks::put_copying(&raw(theirs.store()), &mark).unwrap();
    refused(theirs.store());

    // A retired one.
    let (retired, away) = (Scratch::new(), tempfile::tempdir().unwrap());
    add_rows(&retired.connection(), "carl", "shop", "");
    carry(retired.store(), &elsewhere(&away)).unwrap();
    refused(retired.store());

    let newer = Scratch::new();
    let db = newer.connection();
    db.execute_batch(match &db {
        Connection::Sqlite(_) => "PRAGMA user_version = 999",
        Connection::Postgres(_) => "UPDATE keywheel_schema SET version = 999",
    })
    .unwrap();
    drop(db);
    assert!(prepare(newer.store()).unwrap_err().to_string().contains("schema 999"));

    let foreign = Scratch::new();
    let db = match foreign.store() {
        Store::File(path) => {
            fs::write(path, "x".repeat(4_096)).unwrap();
            None
        }
        Store::Server(_) => Some(raw(foreign.store())),
    };
    if let Some(db) = db {
        db.execute_batch("CREATE TABLE notes (text text)").unwrap();
    }
    assert!(matches!(prepare(foreign.store()), Err(MoveError::Db(DbError::Foreign { .. }))));

    let again = Scratch::new();
    prepare_and_fill(&source, again.store());
    prepare_and_fill(&source, again.store());
}

fn prepare_and_fill(source: &Source, to: &Store) {
    let target = Target::prepare(to, source, "a-move").unwrap();
    target.fill(source, &mut |_| {}).unwrap();
    compare(&source.content().unwrap(), &target.content().unwrap()).unwrap();
}

fn start(store: &Store) -> Result<(), DbError> {
    let folder = tempfile::tempdir().unwrap();
    let (writer, thread) = Writer::start(store, HomeLock::acquire(&folder.path().join("lock")).unwrap())?;
    drop(writer);
    thread.join();
    Ok(())
}

#[test]
fn a_store_that_is_retired_or_half_copied_is_not_written_and_says_where_to_go() {
    for (from, to) in [(Scratch::on_file(), Scratch::new()), (Scratch::new(), Scratch::on_file())] {
        add_rows(&from.connection(), "ann", "shop", "");
        let source = Source::hold(from.store(), "own").unwrap();
        let target = Target::prepare(to.store(), &source, "a-move").unwrap();
        target.fill(&source, &mut |_| {}).unwrap();
        let name = target.name().to_owned();
        target.complete(&source, PLAIN).unwrap();
        match start(to.store()) {
            Err(DbError::Unfinished { from, .. }) => assert_eq!(from, source.name()),
            other => panic!("{other:?}"),
        }
        let moved = MovedTo { to: to.store().clone(), name, by: "a-move".into(), at: 7_000, ended: false };
        source.retire(&moved).unwrap();
        let text = start(from.store()).unwrap_err().to_string();
        assert!(text.contains(&moved.name) && text.contains("keywheel store reopen"), "{text}");
        assert!(matches!(start(to.store()), Err(DbError::Unfinished { .. })));
        // Reading what was goes on.
        assert_eq!(Reader::open(from.store()).unwrap().counts().unwrap().credentials, 1);

        let stranger = MovedTo { by: "another-move".into(), ..moved.clone() };
        assert!(!open_copy(&stranger, "somewhere").unwrap());
        assert!(open_copy(&moved, "there").unwrap() && open_copy(&moved, "there").unwrap());
        start(to.store()).unwrap();
        assert!(matches!(start(from.store()), Err(DbError::Moved { .. })));
    }
}

#[test]
fn a_retired_store_that_is_taken_up_again_is_in_doubt() {
    let (from, folder) = (Scratch::new(), tempfile::tempdir().unwrap());
    let db = from.connection();
    add_rows(&db, "ann", "shop", "");
    db.execute("UPDATE credentials SET current_generation = 1", []).unwrap();
    drop(db);
    assert!(matches!(reopen(from.store()), Err(MoveError::NotRetired { .. })));
    carry(from.store(), &elsewhere(&folder)).unwrap();
    assert_eq!(reopen(from.store()).unwrap(), 1);
    start(from.store()).unwrap();
    let doubt: Option<i64> = raw(from.store())
        .query_row("SELECT restored_generation FROM credentials", [], |row| row.get(0))
        .unwrap();
    assert_eq!(doubt, Some(1));
}

#[test]
fn a_source_that_somebody_still_writes_is_not_moved() {
    // A file has the lock of its home.
    if !is_on_postgres() {
        return;
    }
    let from = Scratch::new();
    let db = from.connection();
    db.execute(
        "INSERT INTO hosts (host_id, name, labels_json, version, first_at, started_at, last_seen_at)
         VALUES ('h', 'north', '{}', '1', 0, 0, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)",
        [],
    )
    .unwrap();
    match Source::hold(from.store(), "own") {
        Err(MoveError::HostAlive { host, .. }) => assert_eq!(host, "north"),
        other => panic!("{:?}", other.err()),
    }
    for enough in
        ["last_seen_at = last_seen_at - 61000", "last_seen_at = last_seen_at + 61000, stopped_at = 1"]
    {
        db.execute(&format!("UPDATE hosts SET {enough}"), []).unwrap();
        drop(Source::hold(from.store(), "own").unwrap());
    }
    db.execute_batch("BEGIN").unwrap();
    add_rows(&db, "ann", "shop", "");
    assert!(matches!(Source::hold(from.store(), "own"), Err(MoveError::Written { .. })));
}

#[test]
fn a_host_that_had_the_store_open_writes_nothing_into_it_once_it_is_retired() {
    if !is_on_postgres() {
        return;
    }
    let (from, folder) = (Scratch::new(), tempfile::tempdir().unwrap());
    let (writer, thread) = from.writer();
    futures_executor::block_on(writer.remember("before", vec![1])).unwrap();
    carry(from.store(), &elsewhere(&folder)).unwrap();
    let refused = futures_executor::block_on(writer.remember("after", vec![1]));
    assert!(refused.unwrap_err().to_string().contains("retired"));
    assert_eq!(from.reader().installation("after").unwrap(), None);
    assert_eq!(from.reader().installation("before").unwrap(), Some(vec![1]));
    drop(writer);
    thread.join();
}
