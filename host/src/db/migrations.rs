//! Brings a database's schema up to date: forward only, one transaction for each step. It never
//! changes a file that isn't ours or that a newer binary wrote.

use super::sql::{self, Connection};
use super::{APPLICATION_ID, DbError};

/// One step, in the words of each engine. Its number is its place in the list, counted from 1.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub name: &'static str,
    pub sqlite: &'static str,
    pub postgres: &'static str,
}

/// The two files of a step.
macro_rules! step {
    ($name:literal) => {
        Migration {
            name: $name,
            sqlite: include_str!(concat!("../../../migrations/sqlite/", $name, ".sql")),
            postgres: include_str!(concat!("../../../migrations/postgres/", $name, ".sql")),
        }
    };
}

/// Every step there is, oldest first. A released one is never edited.
pub const ALL: &[Migration] = &[
    step!("0001_initial"),
    step!("0002_audit_and_trust"),
    step!("0003_schedule"),
    step!("0004_external_workers"),
    step!("0005_retention"),
    step!("0006_rotation"),
    step!("0007_beyond_the_host"),
    step!("0008_cheaper_checks"),
    step!("0009_fleet"),
    step!("0010_plugins_in_the_store"),
    step!("0011_host_keys"),
];

/// The schema this binary reads and writes.
pub fn current() -> u32 {
    version_after(ALL)
}

fn version_after(steps: &[Migration]) -> u32 {
    u32::try_from(steps.len()).unwrap_or(u32::MAX)
}

/// What a database says of itself.
struct Header {
    version: u32,
    /// What else there is, where it isn't ours.
    foreign: Option<String>,
}

fn header(db: &Connection) -> sql::Result<Header> {
    match db {
        Connection::Sqlite(_) => {
            let number = |sql: &str| db.query_row(sql, [], |row| row.get::<i64>(0));
            let (application, version) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
            let objects = number("SELECT count(*) FROM sqlite_schema")?;
            let is_empty = application == 0 && version == 0 && objects == 0;
            let is_ours = is_empty || application == i64::from(APPLICATION_ID);
            let foreign = || format!("application id {application}, {objects} tables and indexes");
            Ok(Header { version: u32::try_from(version).unwrap_or(0), foreign: (!is_ours).then(foreign) })
        }
        Connection::Postgres(_) => {
            // Of the schema that tables are made in; who wants another one names it in search_path.
            let (schema, ours, others): (String, bool, i64) = db.query_row(
                "SELECT current_schema(), to_regclass('keywheel_schema') IS NOT NULL,
                     (SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace)",
                [],
                |row| Ok((row.get::<Option<String>>(0)?.unwrap_or_default(), row.get(1)?, row.get(2)?)),
            )?;
            if ours {
                let version = db.query_row("SELECT version FROM keywheel_schema", [], |row| row.get(0))?;
                return Ok(Header { version, foreign: None });
            }
            let foreign =
                || format!("its schema `{schema}` holds {others} tables and indexes of something else");
            Ok(Header { version: 0, foreign: (others > 0).then(foreign) })
        }
    }
}

/// Refuses a database that another program made. An empty one becomes ours.
pub(super) fn check_ours(db: &Connection, store: &str) -> Result<u32, DbError> {
    let Header { version, foreign } = header(db).map_err(|source| DbError::at(store, source))?;
    match foreign {
        None => Ok(version),
        Some(found) => Err(DbError::Foreign { store: store.to_owned(), found }),
    }
}

/// Refuses every schema but this binary's, for those who can't bring it up to date.
pub(super) fn check_current(db: &Connection, store: &str) -> Result<(), DbError> {
    let found = check_ours(db, store)?;
    let known = current();
    let store = store.to_owned();
    match found {
        0 => Err(DbError::Missing(store)),
        found if found > known => Err(DbError::Newer { store, found, known }),
        found if found < known => Err(DbError::Older { store, found, known }),
        _ => Ok(()),
    }
}

/// Runs the steps a database hasn't had. A step that fails, or whose process dies, leaves the
/// schema before it.
pub(super) fn run(db: &Connection, store: &str, steps: &[Migration]) -> Result<(), DbError> {
    let known = version_after(steps);
    let found = check_ours(db, store)?;
    if found > known {
        return Err(DbError::Newer { store: store.to_owned(), found, known });
    }
    for (version, step) in (1..).zip(steps).skip(found as usize) {
        let failed = |source| DbError::Migration { name: step.name, source };
        let applied = apply(db, version, step);
        if applied.is_err() && db.is_in_transaction() {
            db.execute_batch("ROLLBACK").map_err(failed)?;
        }
        applied.map_err(failed)?;
    }
    Ok(())
}

fn apply(db: &Connection, version: u32, step: &Migration) -> sql::Result<()> {
    // Version and schema change in one transaction, so neither is ever ahead of the other. The
    // version is asked again under the lock: another process may have been here a moment ago.
    match db {
        Connection::Sqlite(_) => {
            db.execute_batch("BEGIN IMMEDIATE")?;
            if db.query_row("PRAGMA user_version", [], |row| row.get::<u32>(0))? < version {
                db.execute_batch(step.sqlite)?;
                db.execute_batch(&format!(
                    "PRAGMA user_version = {version}; PRAGMA application_id = {APPLICATION_ID};"
                ))?;
            }
        }
        Connection::Postgres(_) => {
            db.execute_batch("BEGIN")?;
            db.hold("keywheel schema")?;
            db.execute_batch(
                "CREATE TABLE IF NOT EXISTS keywheel_schema (version bigint NOT NULL);
                 INSERT INTO keywheel_schema SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM keywheel_schema)",
            )?;
            let found = db.query_row("SELECT version FROM keywheel_schema", [], |row| row.get::<u32>(0))?;
            if found < version {
                db.execute_batch(step.postgres)?;
                db.execute_batch(&format!("UPDATE keywheel_schema SET version = {version}"))?;
            }
        }
    }
    db.execute_batch("COMMIT")
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::{connect, open_for_writing};
    use super::*;
    use crate::db::Reader;
    use rusqlite::OpenFlags;

    fn empty(home: &tempfile::TempDir) -> (Connection, PathBuf) {
        let path = home.path().join("keywheel.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        (Connection::Sqlite(connect(&path, flags, None).unwrap()), path)
    }

    fn name(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    fn schema(db: &Connection) -> Vec<String> {
        db.prepare_cached("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<sql::Result<_>>()
            .unwrap()
    }

    #[test]
    fn every_file_in_migrations_is_a_step_under_its_number() {
        let steps: Vec<String> = ALL.iter().map(|step| format!("{}.sql", step.name)).collect();
        for engine in ["sqlite", "postgres"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(engine);
            let mut files: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            assert_eq!(files, steps, "{engine}");
        }
        for (number, step) in (1..).zip(ALL) {
            assert!(step.name.starts_with(&format!("{number:04}_")), "{}", step.name);
        }
    }

    #[test]
    fn from_every_earlier_version_the_same_schema_comes_out() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        run(&db, name(&path), ALL).unwrap();
        let expected = schema(&db);
        for start in 0..=ALL.len() {
            let home = tempfile::tempdir().unwrap();
            let (db, path) = empty(&home);
            run(&db, name(&path), &ALL[..start]).unwrap();
            run(&db, name(&path), ALL).unwrap();
            assert_eq!(schema(&db), expected, "from version {start}");
            run(&db, name(&path), ALL).unwrap();
            assert_eq!(schema(&db), expected, "a second run changes nothing");
        }
    }

    #[test]
    fn rows_of_the_first_version_stand_as_they_were_with_nobody_as_signer() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        run(&db, name(&path), &ALL[..1]).unwrap();
        let manifest = r#"{"service":"shop","title":"Shop","version":"1.0.0","validate_url":"https://s.example/me",
            "keys":[],"origins":["https://s.example"],"settings":[],"methods":[],"validate_interval":60,
            "max_age":null,"extras":[]}"#;
        db.execute(
            "INSERT INTO cookie_rotation_providers (service, title, version, validate_url,
                 key_mapping_json, validate_interval_seconds, plugin_digest, permissions_json,
                 manifest_json, state, pending_digest, pending_manifest_json, updated_at)
             VALUES ('shop', 'Shop', '1.0.0', 'https://s.example/me', '[]', 60, 'd1', '{}', ?1,
                 'active', 'd2', ?1, 7)",
            [manifest],
        )
        .unwrap();
        db.execute_batch(
            "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                 last_generation, rotated_at, created_at)
             VALUES ('ann', 'shop', '[]', '[]', 1, 7, 7);
             INSERT INTO cookie_rotation_monitor (cookie_id, service, next_action)
             VALUES ('ann', 'shop', 'validate');",
        )
        .unwrap();
        drop(db);

        drop(open_for_writing(&path, None).unwrap());
        let reader = Reader::open(&path).unwrap();
        let row = reader.provider("shop").unwrap().unwrap();
        assert_eq!((row.plugin_digest.as_str(), row.state.as_str(), row.updated_at), ("d1", "active", 7));
        assert_eq!((row.signer, row.file), (None, None));
        let pending = row.pending.unwrap();
        assert_eq!((pending.plugin_digest.as_str(), pending.signer), ("d2", None));
        assert!(reader.has_credentials("shop").unwrap());
        assert_eq!(reader.trusted_keys().unwrap(), []);
        assert_eq!(reader.audit(None, 10).unwrap(), [], "what nobody wrote down then isn't made up now");
    }

    #[test]
    fn a_step_that_fails_midway_leaves_the_version_before_it_whole() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        run(&db, name(&path), ALL).unwrap();
        let before = schema(&db);
        let broken =
            Migration { name: "broken", sqlite: "CREATE TABLE half (x); SELECT nonsense;", postgres: "" };
        let steps = [ALL, &[broken]].concat();
        assert!(matches!(run(&db, name(&path), &steps), Err(DbError::Migration { name: "broken", .. })));
        assert_eq!(schema(&db), before);
        assert_eq!(check_ours(&db, name(&path)).unwrap(), current());

        let mended = Migration { name: "broken", sqlite: "CREATE TABLE whole (x);", postgres: "" };
        run(&db, name(&path), &[ALL, &[mended]].concat()).unwrap();
        assert_eq!(check_ours(&db, name(&path)).unwrap(), current() + 1);
    }

    #[test]
    fn a_process_that_dies_inside_a_step_leaves_a_database_the_next_one_finishes() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        db.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE;").unwrap();
        db.execute_batch(ALL[0].sqlite).unwrap();
        // What a killed process leaves: the files as they are now, and no one to roll back.
        let copy = home.path().join("copy.db");
        for suffix in ["", "-wal"] {
            let from = home.path().join(format!("keywheel.db{suffix}"));
            if from.exists() {
                std::fs::copy(from, home.path().join(format!("copy.db{suffix}"))).unwrap();
            }
        }
        drop(db);
        let finished = open_for_writing(&copy, None).unwrap();
        assert_eq!(check_ours(&finished, name(&copy)).unwrap(), current());
        drop(path);
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        run(&db, name(&path), ALL).unwrap();
        db.execute_batch("PRAGMA user_version = 99").unwrap();
        for error in [open_for_writing(&path, None).err().unwrap(), Reader::open(&path).err().unwrap()] {
            let text = error.to_string();
            assert!(text.contains("schema 99"), "{text}");
            assert!(text.contains(&format!("up to {}", current())), "{text}");
        }
    }

    #[test]
    fn no_table_is_built_to_check_a_row_that_is_written() {
        let home = tempfile::tempdir().unwrap();
        let db = open_for_writing(&home.path().join("keywheel.db"), None).unwrap();
        let column = |sql: &str, index| -> Vec<String> {
            let mut query = db.prepare_cached(sql).unwrap();
            query.query_map([], |row| row.get(index)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        let tables = column("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%CHECK%'", 0);
        assert!(tables.len() > 5, "{tables:?}");
        for table in tables {
            let columns = column(&format!("SELECT name FROM pragma_table_info('{table}')"), 0);
            let nothing = vec!["NULL"; columns.len()].join(", ");
            let program = column(&format!("EXPLAIN INSERT INTO {table} VALUES ({nothing})"), 1);
            assert!(!program.iter().any(|step| step == "OpenEphemeral"), "{table}");
        }
    }
}
