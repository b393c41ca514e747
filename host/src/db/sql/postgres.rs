//! A session with a PostgreSQL server: connecting, what is asked of a server before it is
//! believed, statements with a deadline each, and what an error means. Blocking calls over
//! `tokio-postgres`, whose connections turn on a runtime of their own: callers are threads, with
//! or without one.
//!
//! No wait here is without an end: a network that swallows packets answers nothing, ever.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, private::BytesMut};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Param, Value};
use crate::clock::{self, Millis};

/// The oldest server that is spoken to: the oldest that its makers still mend.
pub const OLDEST: u32 = 14;

/// How long a connection may take, hosts that don't answer included, and any statement. A commit
/// waits for a disk, perhaps that of a standby; a lease lasts many times longer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Connections that are kept for their next use: what commands and pages of one host need at once.
const KEPT: usize = 24;

/// The server ends what its client has given up a moment ago, and lets go of its locks: also where
/// it never learns that the client is gone.
const SETTINGS: &str = "
    SET statement_timeout = '9s'; SET lock_timeout = '4s';
    SET idle_in_transaction_session_timeout = '9s';
    SET default_transaction_isolation = 'read committed'; SET TimeZone = 'UTC';
    SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;
    SELECT set_config('synchronous_commit',
        CASE WHEN current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
             THEN 'on' ELSE current_setting('synchronous_commit') END, false)";

/// All connections of the process turn here.
static TURNING: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("db-connections").enable_all().build()
});

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", said(.0))]
    Server(#[from] tokio_postgres::Error),
    #[error("the server did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("no thread for connections: {0}")]
    Threads(String),
    #[error("the connection was lost")]
    Lost,
}

/// The server's own words; `tokio-postgres` says "db error".
fn said(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => {
            let mut text = format!("{} ({})", said.message(), said.code().code());
            for more in [said.detail(), said.hint()].into_iter().flatten() {
                text.push_str("; ");
                text.push_str(more);
            }
            text
        }
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

impl Error {
    /// Whether another try may succeed: the connection, the server's state, or somebody else's
    /// transaction stood in the way.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Silent(_) | Self::Lost => true,
            Self::Threads(_) => false,
            Self::Server(error) => match error.code() {
                None => true,
                Some(code) => {
                    *code == SqlState::T_R_SERIALIZATION_FAILURE
                        || *code == SqlState::T_R_DEADLOCK_DETECTED
                        || *code == SqlState::LOCK_NOT_AVAILABLE
                        || *code == SqlState::QUERY_CANCELED
                        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
                        || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
                        || ["08", "53", "57P", "58"].iter().any(|class| code.code().starts_with(class))
                }
            },
        }
    }

    /// Whether nothing more can be asked over the connection that said this.
    fn ends_session(&self) -> bool {
        match self {
            Self::Silent(_) | Self::Lost | Self::Threads(_) => true,
            Self::Server(error) => {
                error.is_closed()
                    || error.as_db_error().is_none_or(|said| {
                        matches!(said.parsed_severity(), Some(severity) if {
                            use tokio_postgres::error::Severity;
                            severity == Severity::Fatal || severity == Severity::Panic
                        })
                    })
            }
        }
    }
}

/// Waits on the calling thread, which may be one of another runtime's, and no longer than that.
fn wait<T>(
    within: Duration,
    what: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let runtime = TURNING.as_ref().map_err(|error| Error::Threads(error.to_string()))?;
    let waiting = || {
        let _in = runtime.enter();
        futures_executor::block_on(async {
            tokio::time::timeout(within, what).await.map_err(|_| Error::Silent(within))?.map_err(Error::from)
        })
    };
    // A task that waits for a server must not keep others from its thread.
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(waiting),
        _ => waiting(),
    }
}

/// What a server says of itself when it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Such as 15.
    pub version: u32,
    /// Its clock, and ours before and after it was asked.
    pub clock: Clock,
    /// Reads only: a standby, or a server that was told to.
    pub read_only: bool,
    /// A commit means that the disk has it.
    pub syncs: bool,
    /// Which server this is, and since when it remembers: another after a crash, which forgets the
    /// transactions that weren't written down, and another of a standby that was promoted. None:
    /// it can't be told now.
    pub memory: Option<String>,
}

/// Where hosts tell each other.
pub const CHANNEL: &str = "keywheel";

/// How often a listener that hears nothing asks whether the server is still there.
const STILL_THERE: Duration = Duration::from_secs(15);

/// What a server's clock said, and what the steady one did before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub store: Millis,
    pub asked: Millis,
    pub answered: Millis,
}

impl Clock {
    /// Goes by it from now on.
    pub fn follow(self) {
        clock::follow(self.store, self.asked, self.answered);
    }
}

/// How to connect, and the connections that wait for their next use.
pub struct Pool {
    config: Config,
    tls: MakeRustlsConnect,
    idle: Mutex<Vec<Idle>>,
    /// The server has no NOTIFY, as some that speak the same protocol.
    is_mute: AtomicBool,
}

struct Idle {
    client: Arc<Client>,
    statements: HashMap<String, Statement>,
    memory: Option<String>,
}

impl Pool {
    pub fn new(mut config: Config, tls: rustls::ClientConfig) -> Self {
        let hosts = config.get_hosts().len();
        config
            .application_name("keywheel")
            .connect_timeout(CONNECT_WITHIN)
            .tcp_user_timeout(ANSWER_WITHIN)
            // Of several hosts the one that can be written: after a failover another than before.
            .target_session_attrs(match hosts {
                0 | 1 => TargetSessionAttrs::Any,
                _ => TargetSessionAttrs::ReadWrite,
            });
        Self {
            config,
            tls: MakeRustlsConnect::new(tls),
            idle: Mutex::default(),
            is_mute: AtomicBool::new(false),
        }
    }

    /// A connection that was used before; or a new one, with what its server says of itself.
    ///
    /// # Errors
    /// No server that answers, or none that lets us in.
    pub fn session(self: &Arc<Self>) -> Result<(Session, Option<Greeting>), Error> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(idle) if idle.client.is_closed() => {}
                Some(Idle { client, statements, memory }) => {
                    return Ok((Session::over(client, statements, memory, Arc::clone(self)), None));
                }
                None => {
                    let client = Arc::new(self.connect()?);
                    let session = Session::over(client, HashMap::new(), None, Arc::clone(self));
                    let greeting = session.greet()?;
                    session.memory.replace(greeting.memory.clone());
                    return Ok((session, Some(greeting)));
                }
            }
        }
    }

    /// Hears what hosts tell each other, until the connection ends; then it says why.
    pub async fn listen(&self, mut hear: impl FnMut(&str) + Send + 'static) -> Error {
        match self.listening(&mut hear).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn listening(
        &self,
        hear: &mut (impl FnMut(&str) + Send),
    ) -> Result<std::convert::Infallible, Error> {
        if self.config.get_ssl_mode() == SslMode::Disable {
            let (client, connection) = self.config.connect(NoTls).await?;
            hearing(client, connection, hear).await
        } else {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            hearing(client, connection, hear).await
        }
    }

    fn connect(&self) -> Result<Client, Error> {
        let runtime = TURNING.as_ref().map_err(|error| Error::Threads(error.to_string()))?;
        // Each host has its time.
        let within = CONNECT_WITHIN * u32::try_from(self.config.get_hosts().len() + 1).unwrap_or(2);
        wait(within, async {
            if self.config.get_ssl_mode() == SslMode::Disable {
                let (client, connection) = self.config.connect(NoTls).await?;
                runtime.spawn(turn(connection));
                Ok(client)
            } else {
                let (client, connection) = self.config.connect(self.tls.clone()).await?;
                runtime.spawn(turn(connection));
                Ok(client)
            }
        })
    }
}

/// One connection. It goes back to its pool when it is dropped.
pub struct Session {
    client: RefCell<Arc<Client>>,
    statements: RefCell<HashMap<String, Statement>>,
    memory: RefCell<Option<String>>,
    pool: Arc<Pool>,
    changes: Cell<u64>,
    in_transaction: Cell<bool>,
    lost: Cell<bool>,
}

impl Session {
    /// Whether the server can pass on what hosts tell each other.
    pub fn can_tell(&self) -> bool {
        !self.pool.is_mute.load(Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_open() || self.in_transaction.get() {
            return;
        }
        let idle = Idle {
            client: Arc::clone(&self.client.borrow()),
            statements: self.statements.take(),
            memory: self.memory.take(),
        };
        let mut kept = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(idle);
        }
    }
}

impl Session {
    fn over(
        client: Arc<Client>,
        statements: HashMap<String, Statement>,
        memory: Option<String>,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            client: RefCell::new(client),
            statements: RefCell::new(statements),
            memory: RefCell::new(memory),
            pool,
            changes: Cell::new(0),
            in_transaction: Cell::new(false),
            lost: Cell::new(false),
        }
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.borrow())
    }

    fn greet(&self) -> Result<Greeting, Error> {
        self.batch(SETTINGS)?;
        let clock = self.clock()?;
        let said = self.ask(
            "SELECT current_setting('server_version_num'),
                    pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on',
                    current_setting('fsync'), to_regproc('pg_catalog.pg_notify') IS NOT NULL,
                    -- A crash ends all its processes but the first, which starts others. An ordinary
                    -- user isn't told what each is, but that these serve nobody.
                    pg_postmaster_start_time()::text || ' ' ||
                        (SELECT min(pid) FROM pg_stat_activity WHERE datid IS NULL AND usesysid IS NULL)",
        )?;
        let has_notify = said.get(3).is_some_and(|word| word == "t");
        self.pool.is_mute.store(!has_notify, Ordering::Relaxed);
        Ok(Greeting {
            clock,
            version: said.first().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0) / 10_000,
            read_only: said.get(1).is_some_and(|word| word == "t"),
            syncs: said.get(2).is_some_and(|word| word == "on"),
            memory: said.get(4).filter(|text| !text.is_empty()).cloned(),
        })
    }

    /// # Errors
    /// The server's, or silence.
    pub fn clock(&self) -> Result<Clock, Error> {
        let asked = clock::steady();
        let said = self.ask("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")?;
        let store = said.first().and_then(|millis| millis.parse().ok()).unwrap_or(0);
        Ok(Clock { store, asked, answered: clock::steady() })
    }

    /// What its greeting said of it.
    pub fn memory(&self) -> Option<String> {
        self.memory.borrow().clone()
    }

    fn finish<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &answer
            && error.ends_session()
        {
            self.lost.set(true);
        }
        answer
    }

    /// Another connection in place of one that was lost between transactions: those who keep a
    /// session for hours outlive a server's restart so.
    fn renew(&self) -> Result<(), Error> {
        if self.is_open() || self.in_transaction.get() {
            return Ok(());
        }
        let (mut other, _) = self.pool.session()?;
        std::mem::swap(&mut *self.client.borrow_mut(), other.client.get_mut());
        self.statements.swap(&other.statements);
        self.memory.swap(&other.memory);
        self.lost.set(false);
        // What is dropped here is the lost one, and not kept.
        other.lost.set(true);
        Ok(())
    }

    /// Whether it can still be used.
    pub fn is_open(&self) -> bool {
        !self.lost.get() && !self.client.borrow().is_closed()
    }

    /// # Errors
    /// The server's, or silence.
    pub fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        self.renew()?;
        if let Some(known) = self.statements.borrow().get(sql) {
            return Ok(known.clone());
        }
        let text = super::for_postgres(sql);
        let statement = self.finish(wait(ANSWER_WITHIN, self.client().prepare(&text)))?;
        self.statements.borrow_mut().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// # Errors
    /// The server's, or silence.
    pub fn execute(&self, statement: &Statement, params: &[&dyn Param]) -> Result<usize, Error> {
        let values: Vec<Value<'_>> = params.iter().map(|param| param.value()).collect();
        let changed = self.finish(wait(ANSWER_WITHIN, self.client().execute_raw(statement, &values)))?;
        self.changes.set(self.changes.get() + changed);
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    /// # Errors
    /// The server's, or silence.
    pub fn query(
        &self,
        statement: &Statement,
        params: &[&dyn Param],
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        let values: Vec<Value<'_>> = params.iter().map(|param| param.value()).collect();
        let values: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let rows = self.finish(wait(ANSWER_WITHIN, self.client().query(statement, &values)))?;
        // A statement that writes and returns rows counts as many.
        if self.in_transaction.get() {
            self.changes.set(self.changes.get() + rows.len() as u64);
        }
        Ok(rows)
    }

    /// Statements without parameters. One that opens or closes a transaction comes this way.
    ///
    /// # Errors
    /// The server's, or silence.
    pub fn batch(&self, sql: &str) -> Result<(), Error> {
        self.renew()?;
        self.note_begin(sql);
        let answer = self.finish(wait(ANSWER_WITHIN, self.client().batch_execute(sql)));
        match &answer {
            Ok(()) => self.note_end(sql),
            // Whatever it was, it ended with its connection, or never began.
            Err(_) if self.lost.get() && ["BEGIN", "ROLLBACK"].contains(&first_word(sql)) => {
                self.in_transaction.set(false);
            }
            Err(_) => {}
        }
        answer
    }

    /// As `batch`, and returns the one row of its last answer as text.
    ///
    /// # Errors
    /// The server's, or silence.
    pub fn ask(&self, sql: &str) -> Result<Vec<String>, Error> {
        self.renew()?;
        self.note_begin(sql);
        let messages = self.finish(wait(ANSWER_WITHIN, self.client().simple_query(sql)))?;
        self.note_end(sql);
        let row = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map_or_else(Vec::new, |row| {
            (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect()
        }))
    }

    /// Before it is asked: of several statements a later one may fail, and the first stands.
    fn note_begin(&self, sql: &str) {
        if first_word(sql) == "BEGIN" {
            self.in_transaction.set(true);
        }
    }

    fn note_end(&self, sql: &str) {
        let ends = match first_word(sql) {
            "COMMIT" => true,
            "ROLLBACK" => !sql.contains(" TO "),
            _ => false,
        };
        if ends {
            self.in_transaction.set(false);
        }
    }

    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    pub fn is_in_transaction(&self) -> bool {
        self.in_transaction.get()
    }
}

/// Drives a listener's connection.
async fn hearing<S, T>(
    client: Client,
    mut connection: tokio_postgres::Connection<S, T>,
    hear: &mut (impl FnMut(&str) + Send),
) -> Result<std::convert::Infallible, Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let asking = async {
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        loop {
            tokio::time::sleep(STILL_THERE).await;
            let answer = tokio::time::timeout(ANSWER_WITHIN, client.batch_execute("")).await;
            answer.map_err(|_| Error::Silent(ANSWER_WITHIN))??;
        }
    };
    let turning = async {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(told))) => hear(told.payload()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Error::from(error)),
                None => return Err(Error::Lost),
            }
        }
    };
    tokio::select! {
        ended = asking => ended,
        ended = turning => ended,
    }
}

fn first_word(sql: &str) -> &str {
    sql.trim_start().split([' ', ';']).next().unwrap_or_default()
}

/// Drives a connection until either side ends it.
async fn turn<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = connection.await {
        tracing::debug!(error = said(&error), "a connection to the database ended");
    }
}

/// A column, whatever its type.
struct Any<'v>(Value<'v>);

impl<'v> FromSql<'v> for Any<'v> {
    fn from_sql(ty: &Type, raw: &'v [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *ty {
            Type::BOOL => Value::Integer(i64::from(bool::from_sql(ty, raw)?)),
            Type::INT2 => Value::Integer(i64::from(i16::from_sql(ty, raw)?)),
            Type::INT4 => Value::Integer(i64::from(i32::from_sql(ty, raw)?)),
            Type::INT8 => Value::Integer(i64::from_sql(ty, raw)?),
            Type::FLOAT8 => Value::Real(f64::from_sql(ty, raw)?),
            Type::BYTEA => Value::Blob(raw),
            _ => Value::Text(<&str>::from_sql(ty, raw)?),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Value::Null))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(
            *ty,
            Type::BOOL
                | Type::INT2
                | Type::INT4
                | Type::INT8
                | Type::FLOAT8
                | Type::BYTEA
                | Type::TEXT
                | Type::VARCHAR
                | Type::NAME
                | Type::UNKNOWN
        )
    }
}

pub(super) fn value(row: &tokio_postgres::Row, column: usize) -> super::Result<Value<'_>> {
    row.try_get::<_, Any<'_>>(column)
        .map(|any| any.0)
        .map_err(|error| super::Error::Unreadable { column, why: said(&error) })
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (*self, ty) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Integer(value), &Type::BOOL) => (value != 0).to_sql(ty, out),
            (Self::Integer(value), &Type::INT2) => i16::try_from(value)?.to_sql(ty, out),
            (Self::Integer(value), &Type::INT4) => i32::try_from(value)?.to_sql(ty, out),
            (Self::Integer(value), &Type::INT8) => value.to_sql(ty, out),
            (Self::Integer(value), &Type::TEXT) => value.to_string().to_sql(ty, out),
            (Self::Real(value), &Type::FLOAT8) => value.to_sql(ty, out),
            // PostgreSQL's text can't hold this one character. A service's message may.
            (Self::Text(text), _) if text.contains('\0') => {
                text.replace('\0', "\u{fffd}").to_sql(&Type::TEXT, out)
            }
            (Self::Text(text), _) => text.to_sql(&Type::TEXT, out),
            (Self::Blob(bytes), &Type::BYTEA) => bytes.to_sql(ty, out),
            (value, ty) => Err(format!("{value:?} was given where {ty} is due").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}
