//! What a store says of itself: whether it is in use, a copy that isn't finished, or retired
//! because everything moved elsewhere; and what it is. The marks are rows of `installation`; no
//! copy takes them along.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::server::Server;
use super::sql::{self, Connection, Optional as _, params};
use super::{DbError, Store, connect_for_looking, migrations, open_as_it_is, tables};
use crate::credential::Millis;
use crate::report::iso8601;

const COPYING: &str = "copying";
const MOVED_TO: &str = "moved_to";
const CAME_FROM: &str = "came_from";

/// A condition that leaves the marks out of the table they are in.
pub(super) const WITHOUT_MARKS: &str = "key NOT IN ('copying', 'moved_to', 'came_from')";

/// In a copy that nobody may use yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// Of which installation it is.
    pub installation: String,
    /// The store it is made of, as it is said to people.
    pub from: String,
    /// The number of the move.
    pub by: String,
    /// Everything is in it, and was compared.
    pub whole: bool,
}

/// In a store that was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedTo {
    pub to: Store,
    /// As it is said to people.
    pub name: String,
    pub by: String,
    pub at: Millis,
    /// The home names the other store by now: nothing is left to do.
    pub ended: bool,
}

/// In a store that everything moved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CameFrom {
    pub name: String,
    pub by: String,
    pub at: Millis,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    pub copying: Option<Copying>,
    pub moved_to: Option<MovedTo>,
    pub came_from: Option<CameFrom>,
}

impl Marks {
    /// Of a database whose schema is ours.
    pub(super) fn of(db: &Connection) -> sql::Result<Self> {
        Ok(Self {
            copying: read(db, COPYING)?,
            moved_to: read(db, MOVED_TO)?,
            came_from: read(db, CAME_FROM)?,
        })
    }
}

fn read<T: DeserializeOwned>(db: &Connection, key: &str) -> sql::Result<Option<T>> {
    let mut select = db.prepare_cached("SELECT value FROM installation WHERE key = ?1")?;
    let value: Option<Vec<u8>> = select.query_row([key], |row| row.get(0)).optional()?;
    let unreadable = |error: serde_json::Error| sql::Error::Unreadable { column: 0, why: error.to_string() };
    value.map(|value| serde_json::from_slice(&value).map_err(unreadable)).transpose()
}

fn put(db: &Connection, key: &str, mark: &impl Serialize) -> sql::Result<()> {
    let value = serde_json::to_vec(mark)
        .map_err(|error| sql::Error::Unreadable { column: 0, why: error.to_string() })?;
    db.execute(
        "INSERT INTO installation (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        params![key, value],
    )
    .map(drop)
}

pub(super) fn put_copying(db: &Connection, mark: &Copying) -> sql::Result<()> {
    put(db, COPYING, mark)
}

pub(super) fn put_moved_to(db: &Connection, mark: &MovedTo) -> sql::Result<()> {
    put(db, MOVED_TO, mark)
}

/// The copy is in use from here on.
pub(super) fn open_copy(db: &Connection, mark: &CameFrom) -> sql::Result<()> {
    put(db, CAME_FROM, mark)?;
    db.execute("DELETE FROM installation WHERE key = ?1", [COPYING]).map(drop)
}

pub(super) fn remove_moved_to(db: &Connection) -> sql::Result<()> {
    db.execute("DELETE FROM installation WHERE key = ?1", [MOVED_TO]).map(drop)
}

/// Refuses a store that nobody may write: two in use at once would each rotate.
pub(super) fn check_in_use(db: &Connection, store: &str) -> Result<(), DbError> {
    let marks = Marks::of(db).map_err(|source| DbError::at(store, source))?;
    let store = store.to_owned();
    if let Some(moved) = marks.moved_to {
        return Err(DbError::Moved { store, to: moved.name, at: iso8601(moved.at) });
    }
    match marks.copying {
        Some(copying) => Err(DbError::Unfinished { store, from: copying.from }),
        None => Ok(()),
    }
}

/// A store as it is, whatever its marks say, with its schema's number; 0: it is empty.
pub(super) fn open(store: &Store) -> Result<(Connection, String, u32), DbError> {
    match store {
        Store::File(path) => {
            let name = path.display().to_string();
            if !path.exists() {
                return Err(DbError::Missing(name));
            }
            let (db, schema) = open_as_it_is(path, None)?;
            Ok((db, name, schema))
        }
        Store::Server(config) => {
            let server = Server::named(config)?;
            let db = Connection::Postgres(server.session()?);
            let schema = migrations::check_ours(&db, &server.name)?;
            Ok((db, server.name.clone(), schema))
        }
    }
}

/// The same only to look at it: a daemon may be at work.
pub(super) fn look(store: &Store) -> Result<(Connection, String, u32), DbError> {
    let Store::File(path) = store else { return open(store) };
    let name = path.display().to_string();
    let db = connect_for_looking(path)?;
    let schema = migrations::check_ours(&db, &name)?;
    Ok((db, name, schema))
}

/// How a store is called before people.
///
/// # Errors
/// An address that can't be used.
pub fn name(store: &Store) -> Result<String, DbError> {
    match store {
        Store::File(path) => Ok(path.display().to_string()),
        Store::Server(config) => Ok(Server::named(config)?.name.clone()),
    }
}

/// What a store is, and what is in it.
#[derive(Debug)]
pub struct Described {
    /// Of the engine.
    pub version: String,
    /// 0: nothing is in it yet.
    pub schema: u32,
    pub bytes: u64,
    pub marks: Marks,
    /// By table.
    pub rows: BTreeMap<&'static str, u64>,
}

/// # Errors
/// A store that can't be reached, or isn't ours.
pub fn describe(store: &Store) -> Result<Described, DbError> {
    let (db, name, schema) = look(store)?;
    let known = migrations::current();
    if schema > known {
        return Err(DbError::Newer { store: name, found: schema, known });
    }
    let at = |source| DbError::at(&name, source);
    let (version, bytes) = match &db {
        Connection::Sqlite(_) => (
            "SELECT sqlite_version()",
            "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        ),
        Connection::Postgres(_) => (
            "SELECT current_setting('server_version')",
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
             WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'",
        ),
    };
    let version: String = db.query_row(version, [], |row| row.get(0)).map_err(at)?;
    let bytes = db.query_row(bytes, [], |row| row.get::<i64>(0)).map_err(at)?.unsigned_abs();
    let (mut marks, mut rows) = (Marks::default(), BTreeMap::new());
    // Of an older schema not every table is there.
    if schema == known {
        marks = Marks::of(&db).map_err(at)?;
        for table in tables::ALL {
            let count = format!("SELECT count(*) FROM {}", table.name);
            let count: i64 = db.query_row(&count, [], |row| row.get(0)).map_err(at)?;
            rows.insert(table.name, count.unsigned_abs());
        }
    }
    Ok(Described { version, schema, bytes, marks, rows })
}
