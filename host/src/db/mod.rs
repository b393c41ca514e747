//! The database: a SQLite file with one thread that writes it, or a PostgreSQL server that several
//! hosts share (`writer`), connections that only read for everyone else (`queries`), and the
//! runner that brings its schema up to date (`migrations`). It holds sealed secrets and
//! fingerprints, and can't open the former.
//!
//! This file owns how connections are opened and the lock that keeps a second host away.

pub mod alerts;
pub mod api_tokens;
pub mod census;
mod commands;
pub mod copies;
pub mod external;
pub mod firefox;
pub mod glance;
pub mod host_keys;
pub mod hosts;
#[cfg(test)]
#[path = "in_memory_tests.rs"]
pub mod in_memory;
pub mod late;
pub mod migrations;
mod pulse;
pub mod queries;
#[cfg(test)]
#[path = "scratch_tests.rs"]
pub mod scratch;
mod server;
pub mod sql;
#[cfg(test)]
mod sync_probe;
pub mod uses;
pub mod views;
pub mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{ErrorCode, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::credential::{CookieAttributes, Millis};
use server::Server;
use sql::Connection;

pub use crate::config::store::Store;
pub use queries::Reader;
pub use sql::News;
pub use writer::{WriteError, Writer, WriterThread};

/// `KEYW`: in the header of every database of ours, so that another program's is refused.
const APPLICATION_ID: i32 = 0x4b45_5957;

/// How long one statement waits for another process's lock. Only a person with a SQLite shell
/// takes one, and the writer retries on top of this.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pages of WAL before a checkpoint: 16 MiB. Four times the default halves the checkpoint's
/// share of a busy writer's time, and reading a WAL of this size costs nothing that shows.
const CHECKPOINT_PAGES: u32 = 4_096;

/// As many while rows are deleted, each on a page of its own: measured 12 ms, where the others
/// were 57.
const CHECKPOINT_PAGES_OFTEN: u32 = 512;

/// A WAL that outgrew this behind a long reader is cut back at the next checkpoint.
const WAL_BYTES: u32 = 64 << 20;

/// Page cache of a connection, in KiB, taken as it is needed: what 100,000 credentials touch.
const CACHE_KIB: i32 = 64 << 10;

/// Every statement of `commands` and of `queries` stays prepared.
const STATEMENTS: usize = 128;

/// What stops a database from being opened. `store` is a file's path or a server's address.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("no database at {0}; hint: `keywheel init` makes a home")]
    Missing(String),
    #[error("{store} is not a Keywheel database ({found}); it was left as it is")]
    Foreign { store: String, found: String },
    #[error(
        "{store} has schema {found}, this binary knows up to {known}; hint: run the newer keywheel that wrote it"
    )]
    Newer { store: String, found: u32, known: u32 },
    #[error(
        "{store} has schema {found}, this binary reads {known}; hint: start the daemon once, it brings the database up to date"
    )]
    Older { store: String, found: u32, known: u32 },
    #[error("migration {name} failed and was taken back")]
    Migration {
        name: &'static str,
        #[source]
        source: sql::Error,
    },
    #[error("{} can't have a write-ahead log, its journal mode is {found}; hint: put the home on a local disk", path.display())]
    NoLog { path: PathBuf, found: String },
    #[error("{} is in use by process {pid}; hint: stop that daemon, or let the command talk to it", path.display())]
    Locked { path: PathBuf, pid: String },
    #[error("{} can't be opened for writing; hint: the home must be writable for its user, and its file system not read-only", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{store} can't be used; hint: it and its folder must be writable, and the disk not full")]
    File {
        store: String,
        #[source]
        source: sql::Error,
    },
    #[error("{0}")]
    Misnamed(String),
    #[error("{name} can't be used; hint: `[store]` in config.toml names it, and its user must be let in")]
    Server {
        name: String,
        #[source]
        source: sql::Error,
    },
    #[error("{name} can't be the store: {why}")]
    Unfit { name: String, why: String },
}

impl DbError {
    /// An engine's error about a store, told apart where a file is another program's.
    fn at(store: &str, source: impl Into<sql::Error>) -> Self {
        let store = store.to_owned();
        match source.into() {
            source @ sql::Error::Postgres(_) => Self::Server { name: store, source },
            sql::Error::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                Self::Foreign { store, found: String::from("not a SQLite file") }
            }
            source => Self::File { store, source },
        }
    }
}

/// Held by the one process that may write a home. The kernel lets go of it when that process
/// ends, however it ends.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

impl HomeLock {
    /// # Errors
    /// `Locked`, with the holder's process id, where another process has it.
    pub fn acquire(path: &Path) -> Result<Self, DbError> {
        let io = |source: io::Error| DbError::Io { path: path.to_owned(), source };
        // Not truncated on opening: until the lock is ours, what's in it is the holder's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let readable = (&mut file).take(32).read_to_string(&mut pid).is_ok();
                let known = readable && pid.trim().parse::<u32>().is_ok();
                let pid = if known { pid.trim().to_owned() } else { String::from("(starting)") };
                return Err(DbError::Locked { path: path.to_owned(), pid });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// Hears what the hosts of a shared store tell each other, until the connection ends; then it says
/// why. None: a file, which has one host.
pub async fn listen(store: &Store, hear: impl FnMut(News) + Send + 'static) -> Option<DbError> {
    match store {
        Store::File(_) => None,
        Store::Server(config) => match Server::named(config) {
            Ok(server) => Some(server.listen(hear).await),
            Err(error) => Some(error),
        },
    }
}

/// A server that holds our schema, and its connection, brought up to date.
fn connect_for_writing(server: &Server) -> Result<Connection, DbError> {
    let db = Connection::Postgres(server.session()?);
    migrations::run(&db, &server.name, migrations::ALL)?;
    Ok(db)
}

/// Opens the one writing connection and brings the schema up to date. The file is made, for
/// its owner alone, where there is none.
fn open_for_writing(path: &Path, vfs: Option<&str>) -> Result<Connection, DbError> {
    // SQLite would make it readable for all; its -wal and -shm copy this file's mode.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(DbError::Io { path: path.to_owned(), source }),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let name = path.display().to_string();
    let db = Connection::Sqlite(connect(path, flags, vfs)?);
    // Before anything is changed: this may be another program's file.
    let found = migrations::check_ours(&db, &name)?;
    let at = |source| DbError::at(&name, source);
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(at)?;
    if mode != "wal" {
        return Err(DbError::NoLog { path: path.to_owned(), found: mode });
    }
    db.execute_batch(&format!(
        // FULL is the promise: a commit returns after fsync. It is the default of most builds,
        // and nothing here may hang on a build's default.
        "PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
         PRAGMA journal_size_limit = {WAL_BYTES};"
    ))
    .map_err(at)?;
    if found > 0
        && found < migrations::current()
        && let Some(file) = db.file()
    {
        copies::keep_before_migrating(file, path, found)?;
    }
    migrations::run(&db, &name, migrations::ALL)?;
    Ok(db)
}

/// How much log there may be before it is folded into the file.
fn set_checkpoint(db: &Connection, often: bool) -> sql::Result<()> {
    let pages = if often { CHECKPOINT_PAGES_OFTEN } else { CHECKPOINT_PAGES };
    match db {
        Connection::Sqlite(db) => {
            Ok(db.query_row(&format!("PRAGMA wal_autocheckpoint = {pages}"), [], |_| Ok(()))?)
        }
        // A server's own business.
        Connection::Postgres(_) => Ok(()),
    }
}

/// Opens a connection that can't write, whether or not a writer runs.
fn open_for_reading(path: &Path) -> Result<Connection, DbError> {
    if !path.exists() {
        return Err(DbError::Missing(path.display().to_string()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    match open_current(path, path, flags) {
        // Where no writer runs even a reader has to make the log's index first, and can't on a
        // full or read-only disk. That must not stop reading. Without a log the file is whole,
        // and nobody is about to write it there.
        Err(DbError::File { source: sql::Error::Sqlite(source), .. })
            if lacks_index(&source) && !has_log(path) =>
        {
            let name = path.display().to_string();
            let mut url = url::Url::from_file_path(path).map_err(|()| DbError::at(&name, source))?;
            url.set_query(Some("immutable=1"));
            open_current(path, Path::new(url.as_str()), flags | OpenFlags::SQLITE_OPEN_URI)
        }
        opened => opened,
    }
}

fn open_current(path: &Path, name: &Path, flags: OpenFlags) -> Result<Connection, DbError> {
    let db = Connection::Sqlite(connect(name, flags, None)?);
    migrations::check_current(&db, &path.display().to_string())?;
    Ok(db)
}

fn lacks_index(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly)
    )
}

/// Whether there is anything that isn't in the database file itself.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that opens connections")]
fn connect(path: &Path, flags: OpenFlags, vfs: Option<&str>) -> Result<rusqlite::Connection, DbError> {
    let at = |source| DbError::at(&path.display().to_string(), source);
    let db = match vfs {
        None => rusqlite::Connection::open_with_flags(path, flags),
        Some(vfs) => rusqlite::Connection::open_with_flags_and_vfs(path, flags, vfs),
    }
    .map_err(at)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.busy_timeout(BUSY_TIMEOUT).map_err(at)?;
    // Without it SQLite prepares a kept statement anew whenever a bound value could change its
    // plan: a quarter of a claim's time went there, and there is one good plan for each.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(at)?;
    db.execute_batch(&format!(
        // No memory map: a disk error in a mapped page is a SIGBUS that ends the host, where
        // a read is an error it can answer. Reads here are small and cached.
        "PRAGMA mmap_size = 0;
         PRAGMA cache_size = -{CACHE_KIB};
         PRAGMA temp_store = MEMORY;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;"
    ))
    .map_err(at)?;
    Ok(db)
}

/// What an attempt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Validate,
    Rotate,
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Rotate => "rotate",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Validate, Self::Rotate].into_iter().find(|action| action.as_str() == text)
    }
}

/// How far an open attempt has come, as far as the disk knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No rotation request has left.
    Claimed,
    /// The intent is durable: a rotation request may have left.
    Rotating,
    /// A new secret is stored as the pending generation.
    Captured,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Rotating => "rotating",
            Self::Captured => "captured",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Claimed, Self::Rotating, Self::Captured].into_iter().find(|phase| phase.as_str() == text)
    }
}

/// Who signed a plugin, as it was verified then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signer {
    pub key_id: String,
    /// In base64. This is the identity: anybody can make a key with another's id.
    pub public_key: String,
    pub name: Option<String>,
    /// The trusted comment of the signature, safe to print.
    pub comment: Option<String>,
}

/// A key whose signatures the operator believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustedKey {
    pub key_id: String,
    pub public_key: String,
    pub name: Option<String>,
    pub added_at: Millis,
}

impl TrustedKey {
    /// Its id, and whose it is.
    pub fn full_name(&self) -> String {
        self.name.as_ref().map_or_else(|| self.key_id.clone(), |name| format!("{} ({name})", self.key_id))
    }
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    Operator,
    Host,
}

impl Actor {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Host => "host",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Operator, Self::Host].into_iter().find(|actor| actor.as_str() == text)
    }
}

/// One decision about a plugin or a key, on its way into the audit.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    pub actor: Actor,
    /// A word of the registry's.
    pub action: &'static str,
    pub service: Option<String>,
    pub file: Option<String>,
    pub digest: Option<String>,
    /// The id of the signer's key.
    pub signer: Option<String>,
    pub detail: serde_json::Value,
}

/// One key as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKey {
    pub name: String,
    #[serde(with = "late::in_hex")]
    pub sealed: Vec<u8>,
    pub fingerprint: String,
    pub expires: Option<Millis>,
    pub cookie: Option<CookieAttributes>,
}

/// All keys of one generation, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedGeneration {
    pub generation: u32,
    pub created_at: Millis,
    pub keys: Vec<SealedKey>,
}

/// Column values that signed integers hold, and their way back.
mod column {
    use serde::de::DeserializeOwned;

    use super::sql::{self, Connection, Row};
    use super::{Millis, SealedGeneration, SealedKey};

    /// No clock reaches 2^63 ms, so the cap changes nothing that can be meant.
    pub fn millis(at: Millis) -> i64 {
        i64::try_from(at).unwrap_or(i64::MAX)
    }

    pub fn read_millis(row: Row<'_>, index: usize) -> sql::Result<Millis> {
        row.get::<i64>(index).map(|at| Millis::try_from(at).unwrap_or(0))
    }

    pub fn read_optional_millis(row: Row<'_>, index: usize) -> sql::Result<Option<Millis>> {
        let at = row.get::<Option<i64>>(index)?;
        Ok(at.map(|at| Millis::try_from(at).unwrap_or(0)))
    }

    /// A word of an enum; one this binary doesn't know is an error, not a guess.
    pub fn read_word<T>(row: Row<'_>, index: usize, parse: impl Fn(&str) -> Option<T>) -> sql::Result<T> {
        let text = row.get::<&str>(index)?;
        parse(text).ok_or_else(|| unreadable(index, format!("unknown word `{text}`")))
    }

    pub fn read_optional_word<T>(
        row: Row<'_>,
        index: usize,
        parse: impl Fn(&str) -> Option<T>,
    ) -> sql::Result<Option<T>> {
        match row.get::<Option<&str>>(index)? {
            None => Ok(None),
            Some(_) => read_word(row, index, parse).map(Some),
        }
    }

    pub fn read_json<T: DeserializeOwned>(row: Row<'_>, index: usize) -> sql::Result<T> {
        let text = row.get::<&str>(index)?;
        serde_json::from_str(text).map_err(|error| unreadable(index, error.to_string()))
    }

    pub fn read_optional_json<T: DeserializeOwned>(row: Row<'_>, index: usize) -> sql::Result<Option<T>> {
        match row.get::<Option<&str>>(index)? {
            None => Ok(None),
            Some(_) => read_json(row, index).map(Some),
        }
    }

    /// The keys of one generation; None where there is no such generation.
    pub fn read_generation(
        db: &Connection,
        credential: i64,
        generation: u32,
    ) -> sql::Result<Option<SealedGeneration>> {
        let mut select = db.prepare_cached(
            "SELECT g.created_at, k.key, k.sealed, k.fingerprint, k.expires_at, k.cookie_json
             FROM generations g
             LEFT JOIN generation_keys k ON k.credential = g.credential AND k.generation = g.generation
             WHERE g.credential = ?1 AND g.generation = ?2 ORDER BY k.key",
        )?;
        let mut rows = select.query(sql::params![credential, generation])?;
        let mut found: Option<SealedGeneration> = None;
        while let Some(row) = rows.next()? {
            let created_at = read_millis(row, 0)?;
            let found =
                found.get_or_insert_with(|| SealedGeneration { generation, created_at, keys: Vec::new() });
            // A generation without keys is one row of nothing else.
            if let Some(name) = row.get(1)? {
                found.keys.push(SealedKey {
                    name,
                    sealed: row.get(2)?,
                    fingerprint: row.get(3)?,
                    expires: read_optional_millis(row, 4)?,
                    cookie: read_optional_json(row, 5)?,
                });
            }
        }
        Ok(found)
    }

    fn unreadable(column: usize, why: String) -> sql::Error {
        sql::Error::Unreadable { column, why }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lock");
        let held = HomeLock::acquire(&path).unwrap();
        match HomeLock::acquire(&path) {
            Err(DbError::Locked { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(held);
        HomeLock::acquire(&path).unwrap();
    }

    #[test]
    fn the_writing_connection_syncs_fully_and_its_files_are_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keywheel.db");
        let db = open_for_writing(&path, None).unwrap();
        let pragma =
            |name: &str| -> i64 { db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap() };
        assert_eq!(pragma("synchronous"), 2);
        assert_eq!(pragma("foreign_keys"), 1);
        assert_eq!(pragma("application_id"), i64::from(APPLICATION_ID));
        for name in ["keywheel.db", "keywheel.db-wal", "keywheel.db-shm"] {
            let mode = fs::metadata(home.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn another_programs_file_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let text = home.path().join("notes.txt");
        fs::write(&text, "x".repeat(4_096)).unwrap();
        assert!(matches!(open_for_writing(&text, None), Err(DbError::Foreign { .. })));
        assert_eq!(fs::read(&text).unwrap(), "x".repeat(4_096).as_bytes());

        let other = home.path().join("other.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        connect(&other, flags, None).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        let before = fs::read(&other).unwrap();
        assert!(matches!(open_for_writing(&other, None), Err(DbError::Foreign { .. })));
        assert!(matches!(Reader::open(&other), Err(DbError::Foreign { .. })));
        assert_eq!(fs::read(&other).unwrap(), before);
    }

    #[test]
    fn a_missing_database_is_not_made_by_a_reader() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keywheel.db");
        assert!(matches!(Reader::open(&path), Err(DbError::Missing(_))));
        assert!(!path.exists());
    }
}
