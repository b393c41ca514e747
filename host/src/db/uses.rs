//! What is written and read about the uses of secrets: what each sink got, and which consumers
//! have acknowledged what. Functions for the writer's transaction like those of `commands`, and
//! questions for a `Reader`. No row here holds a secret.

use super::sql::{self, Connection, Optional as _, params};
use serde::Serialize;

use super::SealedGeneration;
use super::column::{millis, read_generation, read_millis, read_optional_millis};
use super::commands::not_found;
use super::queries::{ReadError, Reader, iso_option};
use super::writer::{WriteError, Writer};
use crate::credential::{Millis, now};
use crate::limits;

type Written<T> = Result<T, WriteError>;
type Found<T> = Result<T, ReadError>;

/// How the reason begins for which a rotation waits for consumers.
pub const WAITS_FOR: &str = "waits for ";

/// What a sink got last, and how it fares since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkState {
    pub sink: String,
    /// The credential's row and its generation.
    pub got: Option<(i64, u32)>,
    pub delivered_at: Option<Millis>,
    pub tries: u32,
    pub next_try_at: Option<Millis>,
    pub last_error: Option<String>,
}

/// A credential's secrets in force, by what tells them from others; the values stay sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The credential's row.
    pub row: i64,
    pub service: String,
    /// None: it has none, as one whose secrets are with an external worker.
    pub generation: Option<u32>,
    /// When that came into being.
    pub rotated_at: Millis,
    /// A backup brought it back, and it was not found alive since.
    pub unheard: bool,
    /// Key, fingerprint and end of each secret.
    pub keys: Vec<(String, String, Option<Millis>)>,
}

/// Who says that it uses a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerRow {
    pub name: String,
    pub wait_seconds: u32,
    /// It is a sink of the configuration.
    pub sink: bool,
    pub acknowledged: Option<u32>,
    #[serde(serialize_with = "iso_option")]
    pub acknowledged_at: Option<Millis>,
}

/// A consumer that the configuration wants, in a sink's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SinkConsumer {
    pub credential_id: String,
    pub name: String,
    pub wait_seconds: u32,
}

/// What an acknowledgement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The generation in force.
    pub current: u32,
    /// A rotation had waited for it, and is due now.
    pub released: bool,
}

/// A consumer that hasn't taken the generation in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    pub name: String,
    pub wait_seconds: u32,
}

/// A delivery that came off, on its way into the state.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub sink: String,
    pub credential: i64,
    pub generation: u32,
    /// It counts as an acknowledgement.
    pub acknowledges: bool,
}

impl Writer {
    /// Returns whether a rotation had waited for it, and is due now.
    pub async fn sink_delivered(&self, delivered: Delivered) -> Written<bool> {
        let at = now();
        self.run(move |db| sink_delivered(db, &delivered, at)).await
    }

    pub async fn sink_failed(
        &self,
        sink: &str,
        error: String,
        tries: u32,
        next_try_at: Option<Millis>,
    ) -> Written<()> {
        let sink = sink.to_owned();
        self.run(move |db| sink_failed(db, &sink, &error, tries, next_try_at)).await
    }

    /// Forgets the sinks that there aren't any more, and brings the consumers that are sinks in
    /// line with the configuration. Returns whether a rotation is due for that.
    pub async fn settle_sinks(
        &self,
        of_host: &str,
        sinks: Vec<String>,
        consumers: Vec<SinkConsumer>,
    ) -> Written<bool> {
        let (of_host, at) = (of_host.to_owned(), now());
        self.run(move |db| settle_sinks(db, &of_host, &sinks, &consumers, at)).await
    }

    /// Adds a consumer, or changes how long it is waited for.
    pub async fn add_consumer(&self, credential_id: &str, name: &str, wait_seconds: u32) -> Written<()> {
        let (id, name) = (credential_id.to_owned(), name.to_owned());
        self.run(move |db| add_consumer(db, &id, &name, wait_seconds)).await
    }

    /// Returns whether a rotation had waited for it alone, and is due now.
    pub async fn remove_consumer(&self, credential_id: &str, name: &str) -> Written<bool> {
        let (id, name, at) = (credential_id.to_owned(), name.to_owned(), now());
        self.run(move |db| remove_consumer(db, &id, &name, at)).await
    }

    pub async fn acknowledge(
        &self,
        credential_id: &str,
        name: &str,
        generation: u32,
    ) -> Written<Acknowledged> {
        let (id, name, at) = (credential_id.to_owned(), name.to_owned(), now());
        self.run(move |db| acknowledge(db, &id, &name, generation, at)).await
    }
}

fn sink_delivered(db: &Connection, delivered: &Delivered, at: Millis) -> Written<bool> {
    let Delivered { sink, credential, generation, acknowledges } = delivered;
    db.hold_credential(*credential)?;
    db.prepare_cached(
        "INSERT INTO sink_states (sink, credential, generation, delivered_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (sink) DO UPDATE SET
             credential = excluded.credential,
             generation = excluded.generation,
             delivered_at = excluded.delivered_at,
             tries = 0,
             next_try_at = NULL,
             last_error = NULL",
    )?
    .execute(params![sink, credential, generation, millis(at)])?;
    if !acknowledges {
        return Ok(false);
    }
    note_acknowledgement(db, *credential, sink, *generation, at)?;
    release(db, *credential, at)
}

fn sink_failed(
    db: &Connection,
    sink: &str,
    error: &str,
    tries: u32,
    next_try_at: Option<Millis>,
) -> Written<()> {
    db.prepare_cached(
        "INSERT INTO sink_states (sink, tries, next_try_at, last_error) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (sink) DO UPDATE SET
             tries = excluded.tries,
             next_try_at = excluded.next_try_at,
             last_error = excluded.last_error",
    )?
    .execute(params![sink, tries, next_try_at.map(millis), error])?;
    Ok(())
}

fn settle_sinks(
    db: &Connection,
    of_host: &str,
    sinks: &[String],
    consumers: &[SinkConsumer],
    at: Millis,
) -> Written<bool> {
    let known: Vec<String> = db
        .prepare_cached("SELECT sink FROM sink_states")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for gone in known.iter().filter(|sink| sink.ends_with(of_host) && !sinks.contains(sink)) {
        db.prepare_cached("DELETE FROM sink_states WHERE sink = ?1")?.execute([gone])?;
    }
    let standing: Vec<(i64, SinkConsumer)> = db
        .prepare_cached(SINK_CONSUMERS)?
        .query_map([], |row| {
            let consumer =
                SinkConsumer { credential_id: row.get(1)?, name: row.get(2)?, wait_seconds: row.get(3)? };
            Ok((row.get(0)?, consumer))
        })?
        .collect::<Result<_, _>>()?;
    let mut due = false;
    for (credential, gone) in
        standing.iter().filter(|(_, gone)| gone.name.ends_with(of_host) && !consumers.contains(gone))
    {
        db.prepare_cached("DELETE FROM consumers WHERE credential = ?1 AND name = ?2")?
            .execute(params![credential, gone.name])?;
        due |= release(db, *credential, at)?;
    }
    for new in consumers.iter().filter(|new| !standing.iter().any(|(_, consumer)| consumer == *new)) {
        // One of the operator's with this name stays his: the sink acknowledges for it. What the
        // sink has delivered already counts.
        db.prepare_cached(
            "INSERT INTO consumers (credential, name, wait_seconds, sink, acknowledged, acknowledged_at)
             SELECT c.id, ?2, ?3, 1, s.generation, s.delivered_at
             FROM credentials c LEFT JOIN sink_states s ON s.sink = ?2 AND s.credential = c.id
             WHERE c.credential_id = ?1
             ON CONFLICT (credential, name) DO NOTHING",
        )?
        .execute(params![new.credential_id, new.name, new.wait_seconds])?;
    }
    Ok(due)
}

const SINK_CONSUMERS: &str = "
    SELECT k.credential, c.credential_id, k.name, k.wait_seconds
    FROM consumers k JOIN credentials c ON c.id = k.credential WHERE k.sink = 1";

fn row_of(db: &Connection, credential_id: &str) -> Written<(i64, Option<u32>)> {
    db.hold_credential_named(credential_id)?;
    let found: Option<(i64, Option<u32>, bool)> = db
        .prepare_cached("SELECT id, current_generation, external FROM credentials WHERE credential_id = ?1")?
        .query_row([credential_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    match found {
        None => Err(not_found("credential", credential_id)),
        Some((_, _, true)) => Err(WriteError::External { credential_id: credential_id.to_owned() }),
        Some((row, current, false)) => Ok((row, current)),
    }
}

fn add_consumer(db: &Connection, credential_id: &str, name: &str, wait_seconds: u32) -> Written<()> {
    let (credential, _) = row_of(db, credential_id)?;
    let others: u32 = db
        .prepare_cached("SELECT count(*) FROM consumers WHERE credential = ?1 AND name <> ?2")?
        .query_row(params![credential, name], |row| row.get(0))?;
    if others >= limits::CONSUMERS {
        return Err(WriteError::Invalid(format!(
            "credential {credential_id} has {others} consumers; allowed: {}",
            limits::CONSUMERS
        )));
    }
    db.prepare_cached(
        "INSERT INTO consumers (credential, name, wait_seconds) VALUES (?1, ?2, ?3)
         ON CONFLICT (credential, name) DO UPDATE SET wait_seconds = excluded.wait_seconds, sink = 0",
    )?
    .execute(params![credential, name, wait_seconds])?;
    Ok(())
}

fn remove_consumer(db: &Connection, credential_id: &str, name: &str, at: Millis) -> Written<bool> {
    let (credential, _) = row_of(db, credential_id)?;
    let sink: Option<bool> = db
        .prepare_cached("SELECT sink FROM consumers WHERE credential = ?1 AND name = ?2")?
        .query_row(params![credential, name], |row| row.get(0))
        .optional()?;
    match sink {
        None => return Err(not_found("consumer", name)),
        Some(true) => {
            return Err(WriteError::Invalid(format!(
                "consumer `{name}` is a sink; hint: acknowledges = false in [sinks.{name}] of config.toml"
            )));
        }
        Some(false) => {}
    }
    db.prepare_cached("DELETE FROM consumers WHERE credential = ?1 AND name = ?2")?
        .execute(params![credential, name])?;
    release(db, credential, at)
}

fn acknowledge(
    db: &Connection,
    credential_id: &str,
    name: &str,
    generation: u32,
    at: Millis,
) -> Written<Acknowledged> {
    let (credential, current) = row_of(db, credential_id)?;
    let current = current.unwrap_or(0);
    let known: bool = db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM consumers WHERE credential = ?1 AND name = ?2)")?
        .query_row(params![credential, name], |row| row.get(0))?;
    if !known {
        return Err(not_found("consumer", name));
    }
    if generation == 0 || generation > current {
        return Err(WriteError::Invalid(format!(
            "generation {generation} of {credential_id} was never in force; the one in force is {current}"
        )));
    }
    note_acknowledgement(db, credential, name, generation, at)?;
    Ok(Acknowledged { current, released: release(db, credential, at)? })
}

/// An older one that arrives late changes nothing.
fn note_acknowledgement(
    db: &Connection,
    credential: i64,
    name: &str,
    generation: u32,
    at: Millis,
) -> Written<()> {
    db.prepare_cached(
        "UPDATE consumers SET acknowledged = ?3, acknowledged_at = ?4
         WHERE credential = ?1 AND name = ?2 AND coalesce(acknowledged, 0) < ?3",
    )?
    .execute(params![credential, name, generation, millis(at)])?;
    Ok(())
}

/// The consumers of a credential that haven't acknowledged its generation in force.
pub(super) fn behind(db: &Connection, credential: i64) -> sql::Result<Vec<Behind>> {
    db.prepare_cached(
        "SELECT k.name, k.wait_seconds FROM consumers k JOIN credentials c ON c.id = k.credential
         WHERE k.credential = ?1 AND coalesce(k.acknowledged, 0) < coalesce(c.current_generation, 0)
         ORDER BY k.name",
    )?
    .query_map([credential], |row| Ok(Behind { name: row.get(0)?, wait_seconds: row.get(1)? }))?
    .collect()
}

/// Makes a rotation due that waited for consumers, once there is none left to wait for.
fn release(db: &Connection, credential: i64, at: Millis) -> Written<bool> {
    if !behind(db, credential)?.is_empty() {
        return Ok(false);
    }
    // The reason tells it from one that waits for something else by now, such as its backoff.
    let moved = db
        .prepare_cached(
            "UPDATE cookie_rotation_monitor SET next_due_at = min(next_due_at, ?2)
             WHERE cookie_id = (SELECT credential_id FROM credentials WHERE id = ?1)
               AND waits_since IS NOT NULL AND next_due_at IS NOT NULL
               AND substr(next_reason, 1, length(?3)) = ?3
               AND NOT EXISTS (SELECT 1 FROM journal WHERE credential = ?1)",
        )?
        .execute(params![credential, millis(at), WAITS_FOR])?;
    Ok(moved > 0)
}

/// Notes since when a due rotation waits, where it just began to.
pub(super) fn wait(db: &Connection, credential: i64, since: Millis) -> sql::Result<()> {
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor SET waits_since = ?2
         WHERE cookie_id = (SELECT credential_id FROM credentials WHERE id = ?1) AND waits_since IS NULL",
    )?
    .execute(params![credential, millis(since)])?;
    Ok(())
}

impl Reader {
    /// What is in force of a credential; None: there is no such credential.
    pub fn in_force(&self, credential_id: &str) -> Found<Option<InForce>> {
        Ok(self.in_force_sealed(credential_id, false)?.map(|(in_force, _)| in_force))
    }

    /// The same with its keys, sealed, both of one moment.
    pub fn in_force_with_keys(
        &self,
        credential_id: &str,
    ) -> Found<Option<(InForce, Option<SealedGeneration>)>> {
        self.in_force_sealed(credential_id, true)
    }

    fn in_force_sealed(
        &self,
        credential_id: &str,
        sealed: bool,
    ) -> Found<Option<(InForce, Option<SealedGeneration>)>> {
        // Several statements see one state only inside a transaction.
        let snapshot = self.db.snapshot()?;
        let found = snapshot
            .prepare_cached(
                "SELECT c.id, c.service, c.current_generation, c.rotated_at,
                     coalesce(c.restored_generation = c.current_generation, false)
                         AND coalesce(c.doubtful_generation = c.current_generation, false)
                         AND m.last_verdict IS DISTINCT FROM 'valid'
                 FROM credentials c
                 LEFT JOIN cookie_rotation_monitor m ON m.cookie_id = c.credential_id
                 WHERE c.credential_id = ?1",
            )?
            .query_row([credential_id], |row| {
                Ok(InForce {
                    row: row.get(0)?,
                    service: row.get(1)?,
                    generation: row.get(2)?,
                    rotated_at: read_millis(row, 3)?,
                    unheard: row.get(4)?,
                    keys: Vec::new(),
                })
            })
            .optional()?;
        let Some(mut in_force) = found else { return Ok(None) };
        let Some(generation) = in_force.generation else { return Ok(Some((in_force, None))) };
        in_force.keys = snapshot
            .prepare_cached(
                "SELECT key, fingerprint, expires_at FROM generation_keys
                 WHERE credential = ?1 AND generation = ?2 ORDER BY key",
            )?
            .query_map(params![in_force.row, generation], |row| {
                Ok((row.get(0)?, row.get(1)?, read_optional_millis(row, 2)?))
            })?
            .collect::<Result<_, _>>()?;
        let keys = if sealed { read_generation(&snapshot, in_force.row, generation)? } else { None };
        Ok(Some((in_force, keys)))
    }

    /// What every sink got, by name.
    pub fn sink_states(&self) -> Found<Vec<SinkState>> {
        self.all(
            "SELECT sink, credential, generation, delivered_at, tries, next_try_at, last_error
             FROM sink_states ORDER BY sink",
            [],
            |row| {
                let (credential, generation): (Option<i64>, Option<u32>) = (row.get(1)?, row.get(2)?);
                Ok(SinkState {
                    sink: row.get(0)?,
                    got: credential.zip(generation),
                    delivered_at: read_optional_millis(row, 3)?,
                    tries: row.get(4)?,
                    next_try_at: read_optional_millis(row, 5)?,
                    last_error: row.get(6)?,
                })
            },
        )
    }

    /// The consumers that are sinks.
    pub fn sink_consumers(&self) -> Found<Vec<SinkConsumer>> {
        self.all(SINK_CONSUMERS, [], |row| {
            Ok(SinkConsumer { credential_id: row.get(1)?, name: row.get(2)?, wait_seconds: row.get(3)? })
        })
    }

    /// The consumers of a credential, by name.
    pub fn consumers(&self, credential_id: &str) -> Found<Vec<ConsumerRow>> {
        self.all(
            "SELECT k.name, k.wait_seconds, k.sink, k.acknowledged, k.acknowledged_at
             FROM consumers k JOIN credentials c ON c.id = k.credential
             WHERE c.credential_id = ?1 ORDER BY k.name",
            [credential_id],
            |row| {
                Ok(ConsumerRow {
                    name: row.get(0)?,
                    wait_seconds: row.get(1)?,
                    sink: row.get(2)?,
                    acknowledged: row.get(3)?,
                    acknowledged_at: read_optional_millis(row, 4)?,
                })
            },
        )
    }
}
