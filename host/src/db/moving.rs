//! Everything of one store into another: rows as they are, in batches, and the proof that both
//! hold the same. It opens no secret, gives no id out twice, and never touches a store that holds
//! something else. When a home goes over from the one to the other is `crate::moving`'s.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::copies::{Restored, begin_restored};
use super::marks::{self, CameFrom, Copying, Marks, MovedTo, WITHOUT_MARKS};
use super::server::Server;
use super::sql::{self, Connection, Optional as _, Owned, Row, Value, params};
use super::tables::{self, Table};
use super::writer::WriteError;
use super::{DbError, Store, connect_for_writing, migrations, open_as_it_is, open_for_writing};
use crate::credential::{Millis, now};
use crate::limits::LEASE;
use crate::report::iso8601;

/// Rows of one batch: some hundred KiB, and fewer parameters in all than either engine takes.
const BATCH: usize = 500;

/// Rows of a table whose rows have megabytes.
const LARGE_ROWS: (&str, usize) = ("plugin_files", 1);

/// The snapshot of a server's rows waits while the other side writes. One that never comes back is
/// ended by then, and its locks with it.
const PATIENCE: &str = "SET LOCAL idle_in_transaction_session_timeout = '600s'";

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(
        "{store} is in use by the host `{host}`, last heard of {seconds} s ago; hint: stop its daemon; one that is lost counts until a minute has passed"
    )]
    HostAlive { store: String, host: String, seconds: i64 },
    #[error("{store} is being written by another program; hint: stop it, then try again")]
    Written { store: String },
    #[error(
        "{store} holds {what}, and was left as it is; allowed: an empty database, or what an earlier try of this very move left; hint: name another database, or another schema with ?options=-csearch_path%3DNAME"
    )]
    NotEmpty { store: String, what: String },
    #[error(
        "the copy is not the original: table {table} has {original}, the copy {copy}; the home keeps the store it has; hint: try again, and report this if it stays"
    )]
    Differs { table: &'static str, original: String, copy: String },
    #[error("{store} isn't retired; hint: `keywheel store show` says what it is")]
    NotRetired { store: String },
    #[error("{} can't be put in place", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A table as it was found: how many rows, and a SHA-256 over all of them in the order of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub table: &'static str,
    pub rows: u64,
    pub digest: String,
}

/// The store that everything is copied out of, held so that nobody writes it meanwhile. Dropped,
/// it is as it was.
pub struct Source {
    db: Connection,
    name: String,
    installation: String,
}

impl Source {
    /// Hosts but `own` must have ended.
    ///
    /// # Errors
    /// A store that can't be used, or that others use.
    pub fn hold(store: &Store, own: &str) -> Result<Self, MoveError> {
        let (db, name) = match store {
            Store::File(path) => (open_for_writing(path, None)?, path.display().to_string()),
            Store::Server(config) => {
                let server = Server::named(config)?;
                (connect_for_writing(&server)?, server.name.clone())
            }
        };
        let at = |source| at(&name, source);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| at(sql::Error::NoRow))?;
        // Committed by itself: an earlier try is known by it.
        let installation = super::commands::remember(&db, "installation_id", hex::encode(random).as_bytes())
            .map_err(|error| match error {
                WriteError::Sql(source) => at(source),
                error => at(sql::Error::Unreadable { column: 0, why: error.to_string() }),
            })?;
        let installation = String::from_utf8_lossy(&installation).into_owned();
        match &db {
            Connection::Sqlite(_) => db.execute_batch("BEGIN IMMEDIATE").map_err(at)?,
            Connection::Postgres(_) => {
                let all: Vec<&str> = tables::ALL.iter().map(|table| table.name).collect();
                // The snapshot is taken by the first question, and so after the locks.
                let locks = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", all.join(", "));
                db.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    .and_then(|()| db.execute_batch(PATIENCE))
                    .map_err(at)?;
                db.execute_batch(&locks).map_err(|source| match &source {
                    sql::Error::Postgres(error) if error.is_transient() => {
                        MoveError::Written { store: name.clone() }
                    }
                    _ => at(source),
                })?;
                check_nobody_lives(&db, &name, own)?;
            }
        }
        Ok(Self { db, name, installation })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// About how many rows there are, for who waits.
    pub fn estimate(&self) -> u64 {
        let count = |table: &Table| -> sql::Result<i64> {
            match &self.db {
                Connection::Sqlite(_) => {
                    self.db.query_row(&format!("SELECT count(*) FROM {}", table.name), [], |row| row.get(0))
                }
                Connection::Postgres(_) => self.db.query_row(
                    "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(?1)",
                    [table.name],
                    |row| row.get(0),
                ),
            }
        };
        tables::ALL.iter().map(|table| count(table).unwrap_or(0).max(0).unsigned_abs()).sum()
    }

    /// # Errors
    /// The engine's.
    pub fn content(&self) -> Result<Vec<Content>, MoveError> {
        content(&self.db).map_err(|source| at(&self.name, source))
    }

    /// Nobody writes it any more. From here on the copy is the store.
    ///
    /// # Errors
    /// The engine's. Where a server's answer was lost it may be retired all the same.
    pub fn retire(self, mark: &MovedTo) -> Result<(), MoveError> {
        marks::put_moved_to(&self.db, mark)
            .and_then(|()| self.db.execute_batch("COMMIT"))
            .map_err(|source| at(&self.name, source))
    }
}

fn at(store: &str, source: sql::Error) -> MoveError {
    MoveError::Db(DbError::at(store, source))
}

/// By the store's clock: hosts have their own.
fn check_nobody_lives(db: &Connection, store: &str, own: &str) -> Result<(), MoveError> {
    let alive = db
        .query_row(
            "SELECT name, (now - last_seen_at) / 1000
             FROM hosts, (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now) clock
             WHERE stopped_at IS NULL AND last_seen_at > now - ?1 AND host_id <> ?2
             ORDER BY last_seen_at DESC LIMIT 1",
            params![i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX), own],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
        .map_err(|source| at(store, source))?;
    match alive {
        Some((host, seconds)) => Err(MoveError::HostAlive { store: store.to_owned(), host, seconds }),
        None => Ok(()),
    }
}

/// The store that everything is copied into. Nobody may use it before it is opened.
pub struct Target {
    db: Connection,
    name: String,
    copying: Copying,
    /// Where it goes once it is whole, and who goes from there.
    place: Option<(PathBuf, InTheWay)>,
}

/// What lies where the file of a home belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InTheWay {
    Nothing,
    /// What a move left that died before its end.
    Remains,
    /// The retired store of an earlier move.
    Retired,
}

impl Target {
    /// Makes room for a copy and marks it as one.
    ///
    /// # Errors
    /// A store that can't be used, or that holds something else.
    pub fn prepare(store: &Store, source: &Source, by: &str) -> Result<Self, MoveError> {
        let copying = Copying {
            installation: source.installation.clone(),
            from: source.name.clone(),
            by: by.to_owned(),
            whole: false,
        };
        match store {
            Store::File(path) => Self::prepare_file(path, copying),
            Store::Server(_) => Self::prepare_server(store, copying),
        }
    }

    fn prepare_file(path: &Path, copying: Copying) -> Result<Self, MoveError> {
        let in_the_way = in_the_way(path, &copying.installation)?;
        let beside = beside(path);
        remove_database(&beside)?;
        let db = open_for_writing(&beside, None)?;
        let name = path.display().to_string();
        // Nobody reads it before it is whole, and it is synced then.
        db.execute_batch("PRAGMA synchronous = OFF")
            .and_then(|()| marks::put_copying(&db, &copying))
            .map_err(|source| at(&name, source))?;
        Ok(Self { db, name, copying, place: Some((path.to_owned(), in_the_way)) })
    }

    fn prepare_server(store: &Store, copying: Copying) -> Result<Self, MoveError> {
        let (db, name, schema) = marks::open(store)?;
        if schema == 0 {
            migrations::run(&db, &name, migrations::ALL)?;
        }
        migrations::check_current(&db, &name)?;
        let at = |source| at(&name, source);
        db.execute_batch("BEGIN").and_then(|()| db.hold("keywheel schema")).map_err(at)?;
        let found = Marks::of(&db).map_err(at)?;
        // Of an earlier try of this move: the rest of it is worth nothing.
        let remains = found.moved_to.is_none()
            && found.copying.as_ref().is_some_and(|found| found.installation == copying.installation);
        if !remains {
            check_empty(&db, &name, &found)?;
        }
        let all: Vec<&str> = tables::ALL.iter().map(|table| table.name).collect();
        db.execute_batch(&format!("TRUNCATE {}", all.join(", ")))
            .and_then(|()| marks::put_copying(&db, &copying))
            .and_then(|()| db.execute_batch("COMMIT"))
            .map_err(at)?;
        Ok(Self { db, name, copying, place: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Copies all rows, and says after each batch how many it has. Returns how many texts had a
    /// character that only a file can hold, and have another in its place.
    ///
    /// # Errors
    /// Either engine's.
    pub fn fill(&self, source: &Source, tell: &mut dyn FnMut(u64)) -> Result<u64, MoveError> {
        let (mut copied, mut replaced) = (0, 0);
        for table in tables::ALL {
            let mut rows = rows_of(table);
            loop {
                let batch = rows.next(&source.db).map_err(|error| at(&source.name, error))?;
                if batch.is_empty() {
                    break;
                }
                let texts = batch.iter().flatten().filter(|value| is_replaced(value)).count();
                replaced += texts as u64;
                copied += batch.len() as u64;
                self.insert(table, batch).map_err(|error| at(&self.name, error))?;
                tell(copied);
            }
        }
        Ok(replaced)
    }

    fn insert(&self, table: &Table, rows: Vec<Vec<Owned>>) -> sql::Result<()> {
        let columns = table.columns().count();
        let row = |number: usize| {
            let places: Vec<String> =
                (1..=columns).map(|column| format!("?{}", number * columns + column)).collect();
            format!("({})", places.join(", "))
        };
        let values: Vec<String> = (0..rows.len()).map(row).collect();
        let insert = format!("INSERT INTO {} ({}) VALUES {}", table.name, table.columns, values.join(", "));
        self.db.execute_batch("BEGIN")?;
        self.db.execute(&insert, rows.into_iter().flatten().map(without_nul).collect::<Vec<_>>())?;
        self.db.execute_batch("COMMIT")
    }

    /// # Errors
    /// The engine's.
    pub fn content(&self) -> Result<Vec<Content>, MoveError> {
        content(&self.db).map_err(|source| at(&self.name, source))
    }

    /// Ends the copy: no id that was ever given out is given out again, the host's sinks are called
    /// as its new store calls them, and a file is in its place, on its disk. It still waits to be
    /// opened.
    ///
    /// # Errors
    /// Either engine's, and the system's.
    pub fn complete(self, source: &Source, suffix: Suffix<'_>) -> Result<(), MoveError> {
        let Self { db, name, mut copying, place } = self;
        copying.whole = true;
        let ended = (|| {
            db.execute_batch("BEGIN")?;
            for table in tables::ALL.iter().filter(|table| table.numbered) {
                set_last_id(&db, table, last_id(&source.db, table)?)?;
            }
            rename_sinks(&db, suffix)?;
            marks::put_copying(&db, &copying)?;
            db.execute_batch("COMMIT")
        })();
        ended.map_err(|source| at(&name, source))?;
        let Some((path, in_the_way)) = place else { return Ok(()) };
        // The last to close it folds the log into the file.
        drop(db);
        let beside = beside(&path);
        let unplaced = |source| MoveError::Io { path: path.clone(), source };
        File::open(&beside).and_then(|file| file.sync_all()).map_err(unplaced)?;
        match in_the_way {
            InTheWay::Nothing => {}
            InTheWay::Remains => remove_database(&path)?,
            InTheWay::Retired => fs::rename(&path, retired_name(&path, now())).map_err(unplaced)?,
        }
        fs::rename(&beside, &path).map_err(unplaced)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(unplaced)
    }
}

fn check_empty(db: &Connection, store: &str, found: &Marks) -> Result<(), MoveError> {
    let what = if let Some(moved) = &found.moved_to {
        format!("what moved to {} at {}", moved.name, iso8601(moved.at))
    } else if let Some(copying) = &found.copying {
        format!("an unfinished copy of {}", copying.from)
    } else {
        let mut held = None;
        for table in tables::ALL {
            let count = format!("SELECT count(*) FROM (SELECT 1 FROM {} LIMIT 1) found", table.name);
            let rows: i64 = db.query_row(&count, [], |row| row.get(0)).map_err(|source| at(store, source))?;
            if rows > 0 {
                held = Some(format!("rows of a Keywheel of its own, in `{}`", table.name));
                break;
            }
        }
        let Some(held) = held else { return Ok(()) };
        held
    };
    Err(MoveError::NotEmpty { store: store.to_owned(), what })
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".moving");
    PathBuf::from(name)
}

/// `keywheel.db.retired-20260102T030405678Z`.
fn retired_name(path: &Path, at: Millis) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    let moment: String = iso8601(at).chars().filter(char::is_ascii_alphanumeric).collect();
    name.push(format!(".retired-{moment}"));
    PathBuf::from(name)
}

/// With its log and the log's index.
fn remove_database(path: &Path) -> Result<(), MoveError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MoveError::Io { path: name.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses where a file is in the way that is more than a move's own remains.
fn in_the_way(path: &Path, installation: &str) -> Result<InTheWay, MoveError> {
    if !path.exists() {
        return Ok(InTheWay::Nothing);
    }
    let name = path.display().to_string();
    let (db, schema) = open_as_it_is(path, None)?;
    if schema == 0 {
        return Ok(InTheWay::Remains);
    }
    let known = migrations::current();
    if schema > known {
        return Err(DbError::Newer { store: name, found: schema, known }.into());
    }
    let found = Marks::of(&db).map_err(|source| at(&name, source))?;
    let own: Option<Vec<u8>> = db
        .query_row("SELECT value FROM installation WHERE key = 'installation_id'", [], |row| row.get(0))
        .optional()
        .map_err(|source| at(&name, source))?;
    if found.moved_to.is_some() && own.as_deref() == Some(installation.as_bytes()) {
        return Ok(InTheWay::Retired);
    }
    if found.moved_to.is_none() && found.copying.is_some_and(|copy| copy.installation == installation) {
        return Ok(InTheWay::Remains);
    }
    Err(MoveError::NotEmpty { store: name, what: String::from("a Keywheel database of its own") })
}

/// All rows of a table, in the order of its key.
struct Rows {
    first: String,
    next: String,
    /// Where the parts of the key stand among the columns.
    key: Vec<usize>,
    at_most: usize,
    after: Option<Vec<Owned>>,
    ended: bool,
}

fn rows_of(table: &Table) -> Rows {
    let at_most = if table.name == LARGE_ROWS.0 { LARGE_ROWS.1 } else { BATCH };
    let key: Vec<usize> =
        table.key().filter_map(|part| table.columns().position(|column| column == part)).collect();
    let places: Vec<String> = (1..=key.len()).map(|place| format!("?{place}")).collect();
    let marks = if table.name == "installation" { WITHOUT_MARKS } else { "1 = 1" };
    let of = |condition: &str| {
        format!(
            "SELECT {} FROM {} WHERE {marks}{condition} ORDER BY {} LIMIT {at_most}",
            table.columns, table.name, table.key
        )
    };
    let next = of(&format!(" AND ({}) > ({})", table.key, places.join(", ")));
    Rows { first: of(""), next, key, at_most, after: None, ended: false }
}

impl Rows {
    /// The next batch; an empty one is the end.
    fn next(&mut self, db: &Connection) -> sql::Result<Vec<Vec<Owned>>> {
        if self.ended {
            return Ok(Vec::new());
        }
        let mut batch = Vec::new();
        let (sql, after) = match self.after.take() {
            None => (&self.first, Vec::new()),
            Some(after) => (&self.next, after),
        };
        let mut select = db.prepare_cached(sql)?;
        let mut rows = select.query(after)?;
        while let Some(row) = rows.next()? {
            batch.push(read_row(row)?);
        }
        self.ended = batch.len() < self.at_most;
        self.after =
            batch.last().map(|last: &Vec<Owned>| self.key.iter().map(|&at| last[at].clone()).collect());
        Ok(batch)
    }
}

fn read_row(row: Row<'_>) -> sql::Result<Vec<Owned>> {
    (0..row.columns())
        .map(|column| {
            Ok(match row.value(column)? {
                Value::Null => Owned::Null,
                Value::Integer(value) => Owned::Integer(value),
                Value::Text(text) => Owned::Text(text.to_owned()),
                Value::Blob(bytes) => Owned::Blob(bytes.to_vec()),
                // No column of the schema is one.
                Value::Real(value) => {
                    return Err(sql::Error::Unreadable {
                        column,
                        why: format!("it holds {value}, which no column may"),
                    });
                }
            })
        })
        .collect()
}

/// PostgreSQL's text can't hold this one character. A service's message may.
fn is_replaced(value: &Owned) -> bool {
    matches!(value, Owned::Text(text) if text.contains('\0'))
}

fn without_nul(value: Owned) -> Owned {
    match value {
        Owned::Text(text) if text.contains('\0') => Owned::Text(text.replace('\0', "\u{fffd}")),
        value => value,
    }
}

/// Reads everything there is. Both engines give the same for the same rows.
fn content(db: &Connection) -> sql::Result<Vec<Content>> {
    tables::ALL
        .iter()
        .map(|table| {
            let (mut hash, mut count) = (Sha256::new(), 0);
            let mut rows = rows_of(table);
            loop {
                let batch = rows.next(db)?;
                if batch.is_empty() {
                    break;
                }
                count += batch.len() as u64;
                for value in batch.into_iter().flatten() {
                    feed(&mut hash, &without_nul(value));
                }
            }
            Ok(Content { table: table.name, rows: count, digest: hex::encode(hash.finalize()) })
        })
        .collect()
}

/// What a value is, how long, and its bytes: no two rows look alike that aren't.
fn feed(hash: &mut Sha256, value: &Owned) {
    let mut put = |tag: u8, bytes: &[u8]| {
        hash.update([tag]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    match value {
        Owned::Null => put(0, &[]),
        Owned::Integer(number) => put(1, &number.to_be_bytes()),
        Owned::Text(text) => put(2, text.as_bytes()),
        Owned::Blob(bytes) => put(3, bytes),
    }
}

/// # Errors
/// The first table in which the two are not the same.
pub fn compare(original: &[Content], copy: &[Content]) -> Result<(), MoveError> {
    let words = |of: &Content| format!("{} rows with digest {}", of.rows, of.digest);
    match original.iter().zip(copy).find(|(original, copy)| original != copy) {
        Some((original, copy)) => {
            Err(MoveError::Differs { table: original.table, original: words(original), copy: words(copy) })
        }
        None => Ok(()),
    }
}

/// The highest id that a table has ever given out.
fn last_id(db: &Connection, table: &Table) -> sql::Result<i64> {
    let highest: Option<i64> =
        db.query_row(&format!("SELECT max(id) FROM {}", table.name), [], |row| row.get(0))?;
    let given: Option<i64> = match db {
        Connection::Sqlite(_) => db
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [table.name], |row| row.get(0))
            .optional()?,
        Connection::Postgres(_) => {
            let sequence: String =
                db.query_row("SELECT pg_get_serial_sequence(?1, 'id')", [table.name], |row| row.get(0))?;
            let given = format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}");
            Some(db.query_row(&given, [], |row| row.get(0))?)
        }
    };
    Ok(highest.unwrap_or(0).max(given.unwrap_or(0)))
}

fn set_last_id(db: &Connection, table: &Table, last: i64) -> sql::Result<()> {
    if last < 1 {
        return Ok(());
    }
    match db {
        Connection::Sqlite(_) => {
            db.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [table.name])?;
            db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)", params![table.name, last])
                .map(drop)
        }
        Connection::Postgres(_) => db.query_row(
            "SELECT setval(pg_get_serial_sequence(?1, 'id')::regclass, ?2)",
            params![table.name, last],
            |_| Ok(()),
        ),
    }
}

/// What follows the names of this host's sinks in the one store and in the other.
#[derive(Debug, Clone, Copy)]
pub struct Suffix<'s> {
    pub from: &'s str,
    pub to: &'s str,
}

/// Left under their old names nobody would know them: what they got is delivered again, and a
/// rotation waits for those that acknowledge.
fn rename_sinks(db: &Connection, Suffix { from, to }: Suffix<'_>) -> sql::Result<()> {
    let renamed = |name: &str| {
        let end = format!("length({name}) - length(CAST(?1 AS text))");
        (format!("substr({name}, 1, {end}) || CAST(?2 AS text)"), format!("substr({name}, {end} + 1) = ?1"))
    };
    let (new, is_own) = renamed("sink");
    db.execute(&format!("UPDATE sink_states SET sink = {new} WHERE {is_own}"), params![from, to])?;
    let (new, is_own) = renamed("name");
    let (taken, _) = renamed("consumers.name");
    db.execute(
        &format!(
            "UPDATE consumers SET name = {new} WHERE sink = 1 AND {is_own} AND NOT EXISTS (
                 SELECT 1 FROM consumers other
                 WHERE other.credential = consumers.credential AND other.name = {taken})"
        ),
        params![from, to],
    )
    .map(drop)
}

/// The marks of a store; None: there is no file, or nothing is in it.
///
/// # Errors
/// A store that can't be used.
pub fn marks(store: &Store) -> Result<Option<Marks>, MoveError> {
    let (db, name, schema) = match marks::look(store) {
        Err(DbError::Missing(_)) => return Ok(None),
        opened => opened?,
    };
    if !(1..=migrations::current()).contains(&schema) {
        return Ok(None);
    }
    Ok(Some(Marks::of(&db).map_err(|source| at(&name, source))?))
}

/// Lets the copy of a retired store be used. Again it changes nothing. False: it isn't there.
///
/// # Errors
/// Either store's.
pub fn open_copy(moved: &MovedTo, from: &str) -> Result<bool, MoveError> {
    let (db, name, schema) = match marks::open(&moved.to) {
        Err(DbError::Missing(_)) => return Ok(false),
        opened => opened?,
    };
    if schema != migrations::current() {
        return Ok(false);
    }
    let at = |source| at(&name, source);
    let found = Marks::of(&db).map_err(at)?;
    if found.came_from.as_ref().is_some_and(|from| from.by == moved.by) {
        return Ok(true);
    }
    if !found.copying.as_ref().is_some_and(|copy| copy.whole && copy.by == moved.by) {
        return Ok(false);
    }
    let mark = CameFrom { name: from.to_owned(), by: moved.by.clone(), at: moved.at };
    db.execute_batch("BEGIN")
        .and_then(|()| marks::open_copy(&db, &mark))
        .and_then(|()| db.execute_batch("COMMIT"))
        .map_err(at)?;
    Ok(true)
}

/// Notes in the retired store that nothing is left to do.
///
/// # Errors
/// The store's.
pub fn end(store: &Store, moved: &MovedTo) -> Result<(), MoveError> {
    let (db, name, _) = marks::open(store)?;
    marks::put_moved_to(&db, &MovedTo { ended: true, ..moved.clone() }).map_err(|source| at(&name, source))
}

/// Takes a retired store up as it was left. What is in it is as old as a backup, and as much in
/// doubt. Returns how many credentials it is about.
///
/// # Errors
/// A store that isn't retired, or can't be written.
pub fn reopen(store: &Store) -> Result<usize, MoveError> {
    let (db, name, schema) = marks::open(store)?;
    if schema != migrations::current() {
        migrations::check_current(&db, &name)?;
    }
    let failed = |source| at(&name, source);
    let Some(moved) = Marks::of(&db).map_err(failed)?.moved_to else {
        return Err(MoveError::NotRetired { store: name });
    };
    db.execute_batch("BEGIN").map_err(failed)?;
    let restored = Restored { backup_of: moved.at, nothing_ran_since: false };
    let credentials = begin_restored(&db, restored, now()).map_err(|error| match error {
        WriteError::Sql(source) => failed(source),
        error => failed(sql::Error::Unreadable { column: 0, why: error.to_string() }),
    })?;
    marks::remove_moved_to(&db).and_then(|()| db.execute_batch("COMMIT")).map_err(failed)?;
    Ok(credentials)
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
