//! The writer's commands on a database in memory, one transaction each, for tests that drive
//! many thousands of histories through the real schema and the real fencing.

use super::copies::{self, Restored};
use super::late::{self, Late, Rescued};
use super::sql::{Connection, Owned, Value};
use super::writer::{Claim, ClaimDue, ClaimToken, Finish, NewCredential, WriteError, finish_row};
use super::{SealedKey, commands, migrations};
use crate::credential::Millis;
use crate::provider::CommitClass;

pub struct InMemory(Connection);

/// What an attempt's writes can change, in the order in which rows refer to each other.
const TABLES: [&str; 6] = [
    "credentials",
    "generations",
    "generation_keys",
    "journal",
    "cookie_rotation_monitor",
    "cookie_rotation_reports",
];

pub struct Rows {
    rows: Vec<Vec<Vec<Owned>>>,
}

/// A generation as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub generation: u32,
    pub state: String,
    pub values: Vec<Vec<u8>>,
}

impl Default for InMemory {
    fn default() -> Self {
        let db = rusqlite::Connection::open_in_memory().expect("memory");
        db.set_prepared_statement_cache_capacity(128);
        let db = Connection::Sqlite(db);
        migrations::run(&db, ":memory:", migrations::ALL).expect("the schema");
        db.execute_batch("PRAGMA foreign_keys = ON").expect("a pragma");
        Self(db)
    }
}

impl InMemory {
    /// As new.
    pub fn clear(&self) {
        self.0
            .execute_batch(
                "DELETE FROM journal; DELETE FROM cookie_rotation_reports; DELETE FROM credentials;
                 DELETE FROM audit; DELETE FROM sqlite_sequence;",
            )
            .expect("tables can be emptied");
    }

    fn transact<T>(&self, work: impl FnOnce(&Connection) -> Result<T, WriteError>) -> Result<T, WriteError> {
        self.0.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(&self.0);
        self.0.execute_batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        done
    }

    pub fn add_credential(&self, new: &NewCredential, at: Millis) {
        self.transact(|db| commands::add_credential(db, new, at)).expect("a new credential");
    }

    pub fn claim_due(&self, claim: &ClaimDue) -> Vec<Claim> {
        self.transact(|db| commands::claim_due(db, claim)).expect("a claim").claims
    }

    pub fn reclaim(&self, owner: &str, lease_until: Millis) -> Vec<Claim> {
        self.transact(|db| commands::reclaim_interrupted(db, owner, lease_until)).expect("a claim")
    }

    pub fn make_due(&self, id: &str, action: super::Action, due: Millis) -> Result<(), WriteError> {
        self.transact(|db| commands::make_due(db, id, action, due))
    }

    pub fn renew(&self, token: &ClaimToken, lease_until: Millis) -> bool {
        let renewed = self.transact(|db| commands::renew(db, std::slice::from_ref(token), lease_until));
        renewed.expect("renewing").held.contains(token)
    }

    pub fn intent(
        &self,
        token: &ClaimToken,
        method: &str,
        class: CommitClass,
        from: u32,
    ) -> Result<(), WriteError> {
        self.transact(|db| commands::journal_rotation(db, token, method, class, from))
    }

    pub fn receipt(
        &self,
        token: &ClaimToken,
        generation: u32,
        keys: &[SealedKey],
        at: Millis,
    ) -> Result<(), WriteError> {
        self.transact(|db| commands::store_pending(db, token, generation, keys, at))
    }

    pub fn rescue(&self, late: &Late, at: Millis) -> Result<Rescued, WriteError> {
        self.transact(|db| late::rescue(db, late, at))
    }

    pub fn finish(&self, end: Finish, at: Millis) -> Result<i64, WriteError> {
        let row = finish_row(end, at)?;
        self.transact(|db| commands::finish(db, &row))
    }

    /// All rows as they are now.
    pub fn backup(&self) -> Rows {
        let rows = |table: &&str| {
            let mut select = self.0.prepare_cached(&format!("SELECT * FROM {table}")).expect("a statement");
            let owned = |value: Value<'_>| match value {
                Value::Null => Owned::Null,
                Value::Integer(value) => Owned::Integer(value),
                Value::Real(_) => unreachable!("no column holds one"),
                Value::Text(text) => Owned::Text(text.to_owned()),
                Value::Blob(bytes) => Owned::Blob(bytes.to_owned()),
            };
            let rows =
                select.query_map([], |row| (0..row.columns()).map(|at| row.value(at).map(owned)).collect());
            rows.expect("rows").collect::<Result<Vec<_>, _>>().expect("rows")
        };
        Rows { rows: TABLES.iter().map(rows).collect() }
    }

    /// What a restore makes of such rows.
    pub fn restore(&self, backup: &Rows, restored: Restored, at: Millis) {
        self.clear();
        for (table, rows) in TABLES.iter().zip(&backup.rows) {
            for row in rows {
                let places: Vec<String> = (1..=row.len()).map(|place| format!("?{place}")).collect();
                let places = places.join(", ");
                let insert = format!("INSERT INTO {table} VALUES ({places})");
                self.0.execute(&insert, row.clone()).expect("a row");
            }
        }
        self.transact(|db| copies::begin_restored(db, restored, at)).expect("it is restored");
    }

    fn numbers(&self, sql: &str) -> Vec<i64> {
        let mut found = self.0.prepare_cached(sql).expect("a statement");
        found.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_, _>>().expect("numbers")
    }

    /// Attempt numbers of all reports, in the order they were written.
    pub fn reported(&self) -> Vec<i64> {
        self.numbers("SELECT attempt_number FROM cookie_rotation_reports ORDER BY id")
    }

    /// Fencing numbers of the open attempts.
    pub fn open(&self) -> Vec<i64> {
        self.numbers("SELECT fence FROM journal")
    }

    pub fn attempts_begun(&self) -> i64 {
        self.numbers("SELECT attempt_number FROM credentials")[0]
    }

    pub fn last_verdict(&self) -> Option<String> {
        let sql = "SELECT last_verdict FROM cookie_rotation_monitor";
        self.0.prepare_cached(sql).and_then(|mut found| found.query_row([], |row| row.get(0))).expect("a row")
    }

    pub fn generations(&self) -> Vec<Stored> {
        let mut found = self
            .0
            .prepare_cached(
                "SELECT g.generation, g.state, k.sealed FROM generations g
                 LEFT JOIN generation_keys k USING (credential, generation) ORDER BY g.generation, k.key",
            )
            .expect("a statement");
        let rows = found
            .query_map([], |row| {
                Ok((row.get::<u32>(0)?, row.get::<String>(1)?, row.get::<Option<Vec<u8>>>(2)?))
            })
            .expect("rows");
        let mut generations: Vec<Stored> = Vec::new();
        for row in rows {
            let (generation, state, value) = row.expect("a row");
            if generations.last().is_none_or(|last| last.generation != generation) {
                generations.push(Stored { generation, state, values: Vec::new() });
            }
            if let Some(last) = generations.last_mut() {
                last.values.extend(value);
            }
        }
        generations
    }

    /// Everything that an attempt's writes can change, as text to compare.
    pub fn content(&self) -> String {
        format!(
            "{:?} {:?} {:?} {:?}",
            self.generations(),
            self.reported(),
            self.open(),
            self.numbers("SELECT coalesce(current_generation, 0) * 1000 + coalesce(pending_generation, 0) FROM credentials")
        )
    }
}
