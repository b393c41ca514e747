//! SQL as the rest of `db` speaks it, to either engine: a SQLite file (`rusqlite`) or a PostgreSQL
//! server (`postgres`). There is one text for each statement, in what both understand. It is
//! written with SQLite's `?1`; what only one of them has stands in it so that the other passes
//! over it: `INDEXED BY` is SQLite's, `/*pg … */` PostgreSQL's.
//!
//! Calls block. Nothing here knows a table.

pub mod postgres;
mod text;

use rusqlite::types::{ToSqlOutput, ValueRef};

pub use text::for_postgres;

/// Why a statement did nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("a row was asked for and there is none")]
    NoRow,
    #[error("column {column} is not readable: {why}")]
    Unreadable { column: usize, why: String },
    #[error("the statement has {expected} parameters and got {found}")]
    Parameters { expected: usize, found: usize },
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::QueryReturnedNoRows => Self::NoRow,
            error => Self::Sqlite(error),
        }
    }
}

impl Error {
    /// A failure of the machine or the moment rather than of the statement: another try of its
    /// transaction may succeed.
    pub fn is_transient(&self) -> bool {
        use rusqlite::ErrorCode;
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                        | ErrorCode::DiskFull
                        | ErrorCode::SystemIoFailure
                        | ErrorCode::OutOfMemory
                        | ErrorCode::CannotOpen
                        | ErrorCode::ReadOnly
                )
            ),
            Self::Postgres(error) => error.is_transient(),
            Self::NoRow | Self::Unreadable { .. } | Self::Parameters { .. } => false,
        }
    }
}

/// No row is an answer too.
pub trait Optional<T> {
    fn optional(self) -> Result<Option<T>>;
}

impl<T> Optional<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Error::NoRow) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What a column holds or a parameter brings. A truth is 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'v> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'v str),
    Blob(&'v [u8]),
}

impl<'v> Value<'v> {
    fn mismatch(self, wanted: &str) -> String {
        let found = match self {
            Self::Null => "NULL",
            Self::Integer(_) => "an integer",
            Self::Real(_) => "a real number",
            Self::Text(_) => "text",
            Self::Blob(_) => "bytes",
        };
        format!("it holds {found}, not {wanted}")
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Null => ValueRef::Null,
            Self::Integer(value) => ValueRef::Integer(value),
            Self::Real(value) => ValueRef::Real(value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// What can be given to a statement.
pub trait Param {
    fn value(&self) -> Value<'_>;
}

impl<T: Param + ?Sized> Param for &T {
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

impl<T: Param> Param for Option<T> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Param::value)
    }
}

impl Param for i64 {
    fn value(&self) -> Value<'_> {
        Value::Integer(*self)
    }
}

impl Param for u32 {
    fn value(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl Param for i32 {
    fn value(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl Param for bool {
    fn value(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl Param for str {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Param for String {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Param for [u8] {
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl<const N: usize> Param for [u8; N] {
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl Param for Vec<u8> {
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl Param for Value<'_> {
    fn value(&self) -> Value<'_> {
        *self
    }
}

/// A parameter that was put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl Param for Owned {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Integer(value) => Value::Integer(*value),
            Self::Text(text) => Value::Text(text),
            Self::Blob(bytes) => Value::Blob(bytes),
        }
    }
}

impl From<i64> for Owned {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<String> for Owned {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for Owned {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(bytes)
    }
}

/// All parameters of a statement, in their order.
pub trait Params {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T;
}

impl Params for &[&dyn Param] {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        to(self)
    }
}

/// `[]`, and what `params!` makes.
impl<const N: usize> Params for &[&dyn Param; N] {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        to(self.as_slice())
    }
}

impl Params for [&dyn Param; 0] {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        to(&[])
    }
}

impl<P: Param> Params for [P; 1] {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        to(&[&self[0]])
    }
}

impl<P: Param> Params for [P; 2] {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        to(&[&self[0], &self[1]])
    }
}

impl Params for Vec<Owned> {
    fn give<T>(&self, to: impl FnOnce(&[&dyn Param]) -> T) -> T {
        let all: Vec<&dyn Param> = self.iter().map(|value| value as &dyn Param).collect();
        to(&all)
    }
}

/// Parameters of several types.
macro_rules! params {
    ($($value:expr),* $(,)?) => { &[$(&$value as &dyn $crate::db::sql::Param),*] as &[&dyn $crate::db::sql::Param] };
}
pub(crate) use params;

/// What a column can be read as.
pub trait Column<'v>: Sized {
    fn read(value: Value<'v>) -> std::result::Result<Self, String>;
}

impl Column<'_> for i64 {
    fn read(value: Value<'_>) -> std::result::Result<Self, String> {
        match value {
            Value::Integer(value) => Ok(value),
            other => Err(other.mismatch("an integer")),
        }
    }
}

impl Column<'_> for u32 {
    fn read(value: Value<'_>) -> std::result::Result<Self, String> {
        let wide = i64::read(value)?;
        Self::try_from(wide).map_err(|_| format!("{wide} is out of range; allowed: 0 to {}", Self::MAX))
    }
}

impl Column<'_> for bool {
    fn read(value: Value<'_>) -> std::result::Result<Self, String> {
        i64::read(value).map(|value| value != 0)
    }
}

impl Column<'_> for String {
    fn read(value: Value<'_>) -> std::result::Result<Self, String> {
        <&str>::read(value).map(str::to_owned)
    }
}

impl<'v> Column<'v> for &'v str {
    fn read(value: Value<'v>) -> std::result::Result<Self, String> {
        match value {
            Value::Text(text) => Ok(text),
            other => Err(other.mismatch("text")),
        }
    }
}

impl Column<'_> for Vec<u8> {
    fn read(value: Value<'_>) -> std::result::Result<Self, String> {
        match value {
            Value::Blob(bytes) => Ok(bytes.to_vec()),
            other => Err(other.mismatch("bytes")),
        }
    }
}

impl<'v, T: Column<'v>> Column<'v> for Option<T> {
    fn read(value: Value<'v>) -> std::result::Result<Self, String> {
        match value {
            Value::Null => Ok(None),
            value => T::read(value).map(Some),
        }
    }
}

/// One row of an answer.
#[derive(Clone, Copy)]
pub enum Row<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r tokio_postgres::Row),
}

impl<'r> Row<'r> {
    /// # Errors
    /// Where there is no such column, or no text that is UTF-8.
    pub fn value(self, column: usize) -> Result<Value<'r>> {
        match self {
            Self::Sqlite(row) => Ok(match row.get_ref(column)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(value) => Value::Integer(value),
                ValueRef::Real(value) => Value::Real(value),
                ValueRef::Text(text) => Value::Text(
                    std::str::from_utf8(text)
                        .map_err(|error| Error::Unreadable { column, why: error.to_string() })?,
                ),
                ValueRef::Blob(bytes) => Value::Blob(bytes),
            }),
            Self::Postgres(row) => postgres::value(row, column),
        }
    }

    /// # Errors
    /// As `value`, and where the column holds something else.
    pub fn get<T: Column<'r>>(self, column: usize) -> Result<T> {
        T::read(self.value(column)?).map_err(|why| Error::Unreadable { column, why })
    }

    pub fn columns(self) -> usize {
        match self {
            Self::Sqlite(row) => row.as_ref().column_count(),
            Self::Postgres(row) => row.len(),
        }
    }
}

/// What one host changed that others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Something may be due earlier than they know.
    Due,
    /// Plugins, what was approved of them, or what was chosen for their services.
    Plugins,
}

impl News {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Plugins => "plugins",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Due, Self::Plugins].into_iter().find(|news| news.as_str() == text)
    }
}

/// A connection to either engine. `Send`, not `Sync`.
pub enum Connection {
    Sqlite(rusqlite::Connection),
    Postgres(postgres::Session),
}

impl From<rusqlite::Connection> for Connection {
    fn from(connection: rusqlite::Connection) -> Self {
        Self::Sqlite(connection)
    }
}

impl Connection {
    /// The SQLite connection, for what only a file has: pragmas and copies.
    pub fn file(&self) -> Option<&rusqlite::Connection> {
        match self {
            Self::Sqlite(db) => Some(db),
            Self::Postgres(_) => None,
        }
    }

    /// A statement, from those that were prepared before.
    ///
    /// # Errors
    /// The engine's.
    pub fn prepare_cached(&self, sql: &str) -> Result<Statement<'_>> {
        Ok(match self {
            Self::Sqlite(db) => Statement::Sqlite(db.prepare_cached(sql)?),
            Self::Postgres(session) => Statement::Postgres(session, session.prepare(sql)?),
        })
    }

    /// # Errors
    /// The engine's.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// # Errors
    /// The engine's, `NoRow`, and the reader's own.
    pub fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(Row<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_cached(sql)?.query_row(params, read)
    }

    /// Inserts a row into a table that numbers its rows in a column `id`, and returns the number;
    /// None where the statement found a conflict and did nothing.
    ///
    /// # Errors
    /// The engine's.
    pub fn insert(&self, sql: &str, params: impl Params) -> Result<Option<i64>> {
        match self {
            // RETURNING would build a table for its row.
            Self::Sqlite(db) => {
                let inserted = self.prepare_cached(sql)?.execute(params)?;
                Ok((inserted > 0).then(|| db.last_insert_rowid()))
            }
            Self::Postgres(_) => self
                .prepare_cached(&format!("{sql} RETURNING id"))?
                .query_row(params, |row| row.get(0))
                .optional(),
        }
    }

    /// Several statements without parameters, in the engine's own words.
    ///
    /// # Errors
    /// The engine's.
    pub fn execute_batch(&self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(db) => Ok(db.execute_batch(sql)?),
            Self::Postgres(session) => Ok(session.batch(sql)?),
        }
    }

    /// Locks the credential's row until the transaction ends, so that what is read of it next
    /// stays true until it is written. Everything that changes a credential begins with this.
    ///
    /// SQLite's one writer has every row for itself.
    ///
    /// # Errors
    /// The engine's.
    pub fn hold_credential(&self, row: i64) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => {
                self.execute("SELECT 1 FROM credentials WHERE id = ?1 FOR UPDATE", params![row]).map(drop)
            }
        }
    }

    /// As `hold_credential`, by its name. It may not be there.
    ///
    /// # Errors
    /// The engine's.
    pub fn hold_credential_named(&self, id: &str) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => self
                .execute("SELECT 1 FROM credentials WHERE credential_id = ?1 FOR UPDATE", params![id])
                .map(drop),
        }
    }

    /// As `hold_credential`, for what has no row of its own to lock, or none yet.
    ///
    /// # Errors
    /// The engine's.
    pub fn hold(&self, what: &str) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => self.query_row(
                "SELECT pg_advisory_xact_lock(hashtextextended(?1, 0)) IS NULL",
                params![what],
                |_| Ok(()),
            ),
        }
    }

    /// Tells every host that shares the store once the transaction stands. Who doesn't hear it looks
    /// by itself a little later.
    ///
    /// # Errors
    /// The engine's.
    pub fn tell(&self, news: News) -> Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(session) if !session.can_tell() => Ok(()),
            Self::Postgres(_) => {
                let channel = postgres::CHANNEL;
                self.query_row(
                    "SELECT pg_notify(?1, ?2) IS NULL",
                    params![channel, news.as_str()],
                    |_| Ok(()),
                )
            }
        }
    }

    /// Goes by the store's clock from now on, where that isn't this machine's.
    ///
    /// # Errors
    /// The engine's.
    pub fn follow_clock(&self) -> Result<()> {
        if let Self::Postgres(session) = self {
            session.clock()?.follow();
        }
        Ok(())
    }

    /// Until what it returns is dropped every question is answered from one moment.
    ///
    /// # Errors
    /// The engine's.
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        match self {
            Self::Sqlite(db) => db.execute_batch("BEGIN")?,
            Self::Postgres(session) => session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?,
        }
        Ok(Snapshot(self))
    }

    /// How many rows this connection has changed. It counts what is taken back, too.
    pub fn changes(&self) -> u64 {
        match self {
            Self::Sqlite(db) => db.total_changes(),
            Self::Postgres(session) => session.changes(),
        }
    }

    pub fn is_in_transaction(&self) -> bool {
        match self {
            Self::Sqlite(db) => !db.is_autocommit(),
            Self::Postgres(session) => session.is_in_transaction(),
        }
    }
}

/// A transaction that only reads.
pub struct Snapshot<'c>(&'c Connection);

impl std::ops::Deref for Snapshot<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.execute_batch("ROLLBACK") {
            tracing::debug!(%error, "a reading transaction did not end cleanly");
        }
    }
}

/// A prepared statement.
pub enum Statement<'c> {
    Sqlite(rusqlite::CachedStatement<'c>),
    Postgres(&'c postgres::Session, tokio_postgres::Statement),
}

impl Statement<'_> {
    /// # Errors
    /// The engine's.
    pub fn execute(&mut self, params: impl Params) -> Result<usize> {
        params.give(|params| match self {
            Self::Sqlite(statement) => {
                bind(statement, params)?;
                Ok(statement.raw_execute()?)
            }
            Self::Postgres(session, statement) => Ok(session.execute(statement, params)?),
        })
    }

    /// # Errors
    /// The engine's.
    pub fn query(&mut self, params: impl Params) -> Result<Rows<'_>> {
        params.give(|params| match self {
            Self::Sqlite(statement) => {
                bind(statement, params)?;
                Ok(Rows::Sqlite(statement.raw_query()))
            }
            Self::Postgres(session, statement) => {
                Ok(Rows::Postgres { rows: session.query(statement, params)?, next: 0 })
            }
        })
    }

    /// The first row.
    ///
    /// # Errors
    /// The engine's, `NoRow`, and the reader's own.
    pub fn query_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(Row<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.query(params)?.next()? {
            Some(row) => read(row),
            None => Err(Error::NoRow),
        }
    }

    /// # Errors
    /// The engine's; each row's come with it.
    pub fn query_map<T, F: FnMut(Row<'_>) -> Result<T>>(
        &mut self,
        params: impl Params,
        read: F,
    ) -> Result<Mapped<'_, F>> {
        Ok(Mapped { rows: self.query(params)?, read })
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, params: &[&dyn Param]) -> Result<()> {
    let (expected, found) = (statement.parameter_count(), params.len());
    if expected != found {
        return Err(Error::Parameters { expected, found });
    }
    for (index, param) in (1..).zip(params) {
        statement.raw_bind_parameter(index, param.value())?;
    }
    Ok(())
}

/// The rows of an answer, one after the other.
pub enum Rows<'s> {
    Sqlite(rusqlite::Rows<'s>),
    Postgres { rows: Vec<tokio_postgres::Row>, next: usize },
}

impl Rows<'_> {
    #[expect(clippy::should_implement_trait, reason = "a row lives only until the next one")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>> {
        match self {
            Self::Sqlite(rows) => Ok(rows.next()?.map(Row::Sqlite)),
            Self::Postgres { rows, next } => {
                *next += 1;
                Ok(rows.get(*next - 1).map(Row::Postgres))
            }
        }
    }
}

/// The rows of an answer, read.
pub struct Mapped<'s, F> {
    rows: Rows<'s>,
    read: F,
}

impl<T, F: FnMut(Row<'_>) -> Result<T>> Iterator for Mapped<'_, F> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        match self.rows.next() {
            Ok(Some(row)) => Some((self.read)(row)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
