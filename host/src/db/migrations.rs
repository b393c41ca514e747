//! Brings a database's schema up to date: forward only, one transaction for each step. It never
//! changes a file that isn't ours or that a newer binary wrote.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{APPLICATION_ID, DbError};

/// One step. Its number is its place in the list, counted from 1.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub name: &'static str,
    pub sql: &'static str,
}

/// Every step there is, oldest first. A released one is never edited.
pub const ALL: &[Migration] = &[
    Migration { name: "0001_initial", sql: include_str!("../../../migrations/0001_initial.sql") },
    Migration {
        name: "0002_audit_and_trust",
        sql: include_str!("../../../migrations/0002_audit_and_trust.sql"),
    },
    Migration { name: "0003_schedule", sql: include_str!("../../../migrations/0003_schedule.sql") },
    Migration {
        name: "0004_external_workers",
        sql: include_str!("../../../migrations/0004_external_workers.sql"),
    },
    Migration { name: "0005_retention", sql: include_str!("../../../migrations/0005_retention.sql") },
    Migration { name: "0006_rotation", sql: include_str!("../../../migrations/0006_rotation.sql") },
    Migration {
        name: "0007_beyond_the_host",
        sql: include_str!("../../../migrations/0007_beyond_the_host.sql"),
    },
    Migration {
        name: "0008_cheaper_checks",
        sql: include_str!("../../../migrations/0008_cheaper_checks.sql"),
    },
];

/// The schema this binary reads and writes.
pub fn current() -> u32 {
    version_after(ALL)
}

fn version_after(steps: &[Migration]) -> u32 {
    u32::try_from(steps.len()).unwrap_or(u32::MAX)
}

/// What a database says of itself in its header.
struct Header {
    application_id: i32,
    version: u32,
    objects: u32,
}

fn header(db: &Connection) -> rusqlite::Result<Header> {
    Ok(Header {
        application_id: db.query_row("PRAGMA application_id", [], |row| row.get(0))?,
        version: db.query_row("PRAGMA user_version", [], |row| row.get(0))?,
        objects: db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    })
}

/// Refuses a database that another program made. An empty one becomes ours.
pub(super) fn check_ours(db: &Connection, path: &Path) -> Result<u32, DbError> {
    let Header { application_id, version, objects } =
        header(db).map_err(|source| DbError::at(path, source))?;
    let empty = application_id == 0 && version == 0 && objects == 0;
    if empty || application_id == APPLICATION_ID {
        return Ok(version);
    }
    let found = format!("application id {application_id}, {objects} tables and indexes");
    Err(DbError::Foreign { path: path.to_owned(), found })
}

/// Refuses every schema but this binary's, for those who can't bring it up to date.
pub(super) fn check_current(db: &Connection, path: &Path) -> Result<(), DbError> {
    let found = check_ours(db, path)?;
    let known = current();
    let path = path.to_owned();
    match found {
        0 => Err(DbError::Missing(path)),
        found if found > known => Err(DbError::Newer { path, found, known }),
        found if found < known => Err(DbError::Older { path, found, known }),
        _ => Ok(()),
    }
}

/// Runs the steps a database hasn't had. A step that fails, or whose process dies, leaves the
/// schema before it.
pub(super) fn run(db: &mut Connection, path: &Path, steps: &[Migration]) -> Result<(), DbError> {
    let known = version_after(steps);
    let found = check_ours(db, path)?;
    if found > known {
        return Err(DbError::Newer { path: path.to_owned(), found, known });
    }
    for (version, step) in (1..).zip(steps).skip(found as usize) {
        apply(db, version, step).map_err(|source| DbError::Migration { name: step.name, source })?;
    }
    Ok(())
}

fn apply(db: &mut Connection, version: u32, step: &Migration) -> rusqlite::Result<()> {
    let step_in = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Asked again under the lock: another process may have been here a moment ago.
    let found: u32 = step_in.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found >= version {
        return Ok(());
    }
    step_in.execute_batch(step.sql)?;
    // Header fields are part of the transaction, so neither is ever ahead of the schema.
    step_in.execute_batch(&format!(
        "PRAGMA user_version = {version}; PRAGMA application_id = {APPLICATION_ID};"
    ))?;
    step_in.commit()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{connect, open_for_writing};
    use super::*;
    use crate::db::Reader;
    use rusqlite::OpenFlags;

    fn empty(home: &tempfile::TempDir) -> (Connection, PathBuf) {
        let path = home.path().join("keywheel.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        (connect(&path, flags, None).unwrap(), path)
    }

    fn schema(db: &Connection) -> Vec<String> {
        db.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap()
    }

    #[test]
    fn every_file_in_migrations_is_a_step_under_its_number() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let steps: Vec<String> = ALL.iter().map(|step| format!("{}.sql", step.name)).collect();
        assert_eq!(files, steps);
        for (number, step) in (1..).zip(ALL) {
            assert!(step.name.starts_with(&format!("{number:04}_")), "{}", step.name);
        }
    }

    #[test]
    fn from_every_earlier_version_the_same_schema_comes_out() {
        let home = tempfile::tempdir().unwrap();
        let (mut db, path) = empty(&home);
        run(&mut db, &path, ALL).unwrap();
        let expected = schema(&db);
        for start in 0..=ALL.len() {
            let home = tempfile::tempdir().unwrap();
            let (mut db, path) = empty(&home);
            run(&mut db, &path, &ALL[..start]).unwrap();
            run(&mut db, &path, ALL).unwrap();
            assert_eq!(schema(&db), expected, "from version {start}");
            run(&mut db, &path, ALL).unwrap();
            assert_eq!(schema(&db), expected, "a second run changes nothing");
        }
    }

    #[test]
    fn rows_of_the_first_version_stand_as_they_were_with_nobody_as_signer() {
        let home = tempfile::tempdir().unwrap();
        let (mut db, path) = empty(&home);
        run(&mut db, &path, &ALL[..1]).unwrap();
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
        let (mut db, path) = empty(&home);
        run(&mut db, &path, ALL).unwrap();
        let before = schema(&db);
        let broken = Migration { name: "broken", sql: "CREATE TABLE half (x); SELECT nonsense;" };
        let steps = [ALL, &[broken]].concat();
        assert!(matches!(run(&mut db, &path, &steps), Err(DbError::Migration { name: "broken", .. })));
        assert_eq!(schema(&db), before);
        assert_eq!(check_ours(&db, &path).unwrap(), current());

        let mended = Migration { name: "broken", sql: "CREATE TABLE whole (x);" };
        run(&mut db, &path, &[ALL, &[mended]].concat()).unwrap();
        assert_eq!(check_ours(&db, &path).unwrap(), current() + 1);
    }

    #[test]
    fn a_process_that_dies_inside_a_step_leaves_a_database_the_next_one_finishes() {
        let home = tempfile::tempdir().unwrap();
        let (db, path) = empty(&home);
        db.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE;").unwrap();
        db.execute_batch(ALL[0].sql).unwrap();
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
        assert_eq!(check_ours(&finished, &copy).unwrap(), current());
        drop(path);
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let home = tempfile::tempdir().unwrap();
        let (mut db, path) = empty(&home);
        run(&mut db, &path, ALL).unwrap();
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
            let mut query = db.prepare(sql).unwrap();
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
