//! The rows of hosts that share a store: who has asked for the master key, for whom it lies sealed,
//! who was revoked. It can't open what is sealed, and judges nobody: `keys` does.
//!
//! These few rows are written beside the daemons' own writers, each change a transaction of its own
//! with its line in the audit. So they are for a server alone: a file has one writer.

use serde::Serialize;
use serde_json::json;

use super::column::{millis, read_millis, read_optional_millis};
use super::commands::{insert_audit, remember};
use super::queries::{Found, Reader};
use super::server::Server;
use super::sql::{self, Connection, Optional as _, Row, params};
use super::{Actor, AuditEntry, DbError, Store, WriteError, connect_for_writing};
use crate::credential::{Millis, now};
use crate::report::iso8601;

/// The value of `installation` that only the master key opens.
pub const MARKER: &str = "vault_marker";

#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error(
        "this home keeps everything in a file of its own, and no other host shares that; hint: hosts share a PostgreSQL store, named in `[store]` of config.toml"
    )]
    OnFile,
    #[error(
        "the name `{name}` is taken by host {host_id}; allowed: one that no host has or had; hint: --name"
    )]
    NameTaken { name: String, host_id: String },
    #[error("no host is called `{0}`; hint: `keywheel host list` shows all")]
    NotFound(String),
    #[error("host `{name}` was revoked at {}; hint: join again from a new home, under another name", iso8601(*at))]
    Revoked { name: String, at: Millis },
    #[error(
        "host `{0}` has another key by now, and nothing was done; hint: look at `keywheel host list` again"
    )]
    Changed(String),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("the store can't be written; hint: run the command again, what was done is not done twice")]
    Sql(#[from] sql::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
}

type Done<T> = Result<T, HostKeyError>;

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    Asking,
    Admitted,
    Revoked,
}

impl Access {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Admitted => "admitted",
            Self::Revoked => "revoked",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeyRow {
    pub host_id: String,
    pub name: String,
    pub public_key: Vec<u8>,
    pub sealed_key: Option<Vec<u8>>,
    pub asked_at: Millis,
    pub admitted_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
}

impl HostKeyRow {
    pub const fn access(&self) -> Access {
        match (self.revoked_at, &self.sealed_key) {
            (Some(_), _) => Access::Revoked,
            (None, Some(_)) => Access::Admitted,
            (None, None) => Access::Asking,
        }
    }

    fn note(&self, action: &'static str) -> AuditEntry {
        AuditEntry {
            actor: Actor::Operator,
            action,
            service: None,
            file: None,
            digest: None,
            signer: None,
            detail: json!({ "host": self.name, "hostId": self.host_id }),
        }
    }
}

const COLUMNS: &str = "SELECT host_id, name, public_key, sealed_key, asked_at, admitted_at, revoked_at
    FROM host_keys";

fn row_from(row: Row<'_>) -> sql::Result<HostKeyRow> {
    Ok(HostKeyRow {
        host_id: row.get(0)?,
        name: row.get(1)?,
        public_key: row.get(2)?,
        sealed_key: row.get(3)?,
        asked_at: read_millis(row, 4)?,
        admitted_at: read_optional_millis(row, 5)?,
        revoked_at: read_optional_millis(row, 6)?,
    })
}

fn by_name(db: &Connection, name: &str) -> sql::Result<Option<HostKeyRow>> {
    db.query_row(&format!("{COLUMNS} WHERE name = ?1"), [name], row_from).optional()
}

fn by_public_key(db: &Connection, key: &[u8]) -> sql::Result<Option<HostKeyRow>> {
    db.query_row(&format!("{COLUMNS} WHERE public_key = ?1"), [key], row_from).optional()
}

impl Reader {
    /// Every host that has ever asked, by name.
    pub fn host_keys(&self) -> Found<Vec<HostKeyRow>> {
        self.all(&format!("{COLUMNS} ORDER BY name"), [], row_from)
    }

    pub fn host_named(&self, name: &str) -> Found<Option<HostKeyRow>> {
        Ok(by_name(&self.db, name)?)
    }

    pub fn host_with_key(&self, public_key: &[u8]) -> Found<Option<HostKeyRow>> {
        Ok(by_public_key(&self.db, public_key)?)
    }

    /// Whether a host that was let in is so no more: it has to stop.
    pub fn host_is_revoked(&self, host_id: &str) -> Found<bool> {
        Ok(is_revoked(&self.db, host_id)?)
    }
}

/// Whether nothing is sealed for a host any more. One whose row is gone is revoked as well.
pub fn is_revoked(db: &Connection, host_id: &str) -> sql::Result<bool> {
    db.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM host_keys
             WHERE host_id = ?1 AND sealed_key IS NOT NULL AND revoked_at IS NULL)",
        [host_id],
        |row| row.get(0),
    )
}

/// What became of a host that was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Revoked,
    /// It had only asked: nothing of it stays.
    Refused,
    Already(Millis),
}

/// A connection that writes these rows, and nothing else.
pub struct HostKeys {
    db: Connection,
}

impl HostKeys {
    /// Opens a server, whose schema is brought up to date.
    ///
    /// # Errors
    /// Where everything is in a file; else those of opening.
    pub fn open(store: &Store) -> Done<Self> {
        match store {
            Store::File(_) => Err(HostKeyError::OnFile),
            Store::Server(config) => Ok(Self { db: connect_for_writing(&*Server::named(config)?)? }),
        }
    }

    /// All changes of these rows come one after the other, so that what is read first holds.
    fn change<T>(&self, work: impl FnOnce(&Connection) -> Done<T>) -> Done<T> {
        self.db.execute_batch(match &self.db {
            Connection::Sqlite(_) => "BEGIN IMMEDIATE",
            Connection::Postgres(_) => "BEGIN",
        })?;
        let done = self.db.hold("host keys").map_err(HostKeyError::from).and_then(|()| work(&self.db));
        let ended = self.db.execute_batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" });
        let done = done?;
        ended?;
        Ok(done)
    }

    /// Keeps the marker of an installation unless there is one, and returns the one that stands.
    ///
    /// # Errors
    /// The store's.
    pub fn remember_marker(&self, marker: &[u8]) -> Done<Vec<u8>> {
        self.change(|db| Ok(remember(db, MARKER, marker)?))
    }

    /// The host with this key, after every change that is under way.
    ///
    /// # Errors
    /// The store's.
    pub fn with_key(&self, public_key: &[u8]) -> Done<Option<HostKeyRow>> {
        self.change(|db| Ok(by_public_key(db, public_key)?))
    }

    /// Asks for the master key. Whoever has asked before is found as it stands.
    ///
    /// # Errors
    /// `NameTaken`, and the store's.
    pub fn ask(&self, host_id: &str, name: &str, public_key: &[u8]) -> Done<HostKeyRow> {
        self.change(|db| {
            if let Some(row) = by_public_key(db, public_key)? {
                return Ok(row);
            }
            // Of hosts that run with a key of another kind, too.
            let taken: Option<String> = db
                .query_row(
                    "SELECT host_id FROM host_keys WHERE name = ?1
                     UNION SELECT host_id FROM hosts WHERE name = ?1 LIMIT 1",
                    [name],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(host_id) = taken {
                return Err(HostKeyError::NameTaken { name: name.to_owned(), host_id });
            }
            let row = HostKeyRow {
                host_id: host_id.to_owned(),
                name: name.to_owned(),
                public_key: public_key.to_owned(),
                sealed_key: None,
                asked_at: now(),
                admitted_at: None,
                revoked_at: None,
            };
            db.execute(
                "INSERT INTO host_keys (host_id, name, public_key, asked_at) VALUES (?1, ?2, ?3, ?4)",
                params![host_id, name, public_key, millis(row.asked_at)],
            )?;
            insert_audit(db, &row.note("host-asked"), row.asked_at)?;
            Ok(row)
        })
    }

    /// Stores the master key sealed for a host, if that is still as it was looked at.
    ///
    /// # Errors
    /// `Revoked`, `Changed`, `NotFound`, and the store's.
    pub fn admit(&self, host: &HostKeyRow, sealed: &[u8]) -> Done<()> {
        self.change(|db| {
            still(db, host)?;
            let at = now();
            db.execute(
                "UPDATE host_keys SET sealed_key = ?2, admitted_at = ?3 WHERE host_id = ?1",
                params![host.host_id, sealed, millis(at)],
            )?;
            Ok(insert_audit(db, &host.note("host-admitted"), at)?)
        })
    }

    /// Gives a host another key, and the master key sealed for that, in one step.
    ///
    /// # Errors
    /// `Revoked`, `Changed`, `NotFound`, and the store's.
    pub fn replace(&self, host: &HostKeyRow, public_key: &[u8], sealed: &[u8]) -> Done<()> {
        self.change(|db| {
            still(db, host)?;
            db.execute(
                "UPDATE host_keys SET public_key = ?2, sealed_key = ?3 WHERE host_id = ?1",
                params![host.host_id, public_key, sealed],
            )?;
            Ok(insert_audit(db, &host.note("host-rekeyed"), now())?)
        })
    }

    /// Takes away what is sealed for a host. Its row stays, so that nobody gets its name.
    ///
    /// # Errors
    /// `NotFound`, and the store's.
    pub fn revoke(&self, name: &str) -> Done<Ended> {
        self.change(|db| {
            let host = by_name(db, name)?.ok_or_else(|| HostKeyError::NotFound(name.to_owned()))?;
            let at = now();
            let (ended, action) = match (host.access(), host.revoked_at) {
                (Access::Revoked, Some(at)) => return Ok(Ended::Already(at)),
                (Access::Asking, _) => {
                    db.execute("DELETE FROM host_keys WHERE host_id = ?1", [&host.host_id])?;
                    (Ended::Refused, "host-refused")
                }
                _ => {
                    db.execute(
                        "UPDATE host_keys SET sealed_key = NULL, revoked_at = ?2 WHERE host_id = ?1",
                        params![host.host_id, millis(at)],
                    )?;
                    (Ended::Revoked, "host-revoked")
                }
            };
            insert_audit(db, &host.note(action), at)?;
            Ok(ended)
        })
    }
}

/// That a host has the key which it was seen with, and may have something sealed for it.
fn still(db: &Connection, host: &HostKeyRow) -> Done<()> {
    let found = by_name(db, &host.name)?.filter(|found| found.host_id == host.host_id);
    match found {
        None => Err(HostKeyError::NotFound(host.name.clone())),
        Some(HostKeyRow { revoked_at: Some(at), name, .. }) => Err(HostKeyError::Revoked { name, at }),
        Some(found) if found.public_key != host.public_key => Err(HostKeyError::Changed(found.name)),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::scratch::Scratch;

    const ONE: &[u8] = &[1; 32];
    const OTHER: &[u8] = &[2; 32];

    fn empty() -> (Scratch, HostKeys) {
        let scratch = Scratch::new();
        let keys = HostKeys { db: scratch.connection() };
        (scratch, keys)
    }

    fn actions(scratch: &Scratch) -> Vec<String> {
        let rows = scratch.reader().audit(None, 20).unwrap();
        rows.into_iter().rev().map(|row| row.action).collect()
    }

    #[test]
    fn a_host_asks_is_admitted_and_revoked_and_each_step_stands_in_the_audit() {
        let (scratch, keys) = empty();
        let asked = keys.ask("a1", "eu-1", ONE).unwrap();
        assert_eq!(asked.access(), Access::Asking);
        assert!(scratch.reader().host_is_revoked("a1").unwrap(), "nothing is sealed for it yet");

        keys.admit(&asked, b"sealed").unwrap();
        let row = scratch.reader().host_named("eu-1").unwrap().unwrap();
        assert_eq!((row.access(), row.sealed_key.as_deref()), (Access::Admitted, Some(&b"sealed"[..])));
        assert!(row.admitted_at.is_some());
        assert!(!scratch.reader().host_is_revoked("a1").unwrap());

        assert_eq!(keys.revoke("eu-1").unwrap(), Ended::Revoked);
        let row = scratch.reader().host_named("eu-1").unwrap().unwrap();
        assert_eq!((row.access(), row.sealed_key), (Access::Revoked, None));
        assert!(scratch.reader().host_is_revoked("a1").unwrap());
        assert_eq!(keys.revoke("eu-1").unwrap(), Ended::Already(row.revoked_at.unwrap()));
        assert_eq!(actions(&scratch), ["host-asked", "host-admitted", "host-revoked"]);
        let audit = scratch.reader().audit(None, 1).unwrap();
        assert_eq!(audit[0].detail, json!({ "host": "eu-1", "hostId": "a1" }));
    }

    #[test]
    fn whoever_asks_again_with_the_same_key_is_found_as_it_stands() {
        let (scratch, keys) = empty();
        let asked = keys.ask("a1", "eu-1", ONE).unwrap();
        assert_eq!(keys.ask("a2", "eu-2", ONE).unwrap(), asked, "neither another id nor another name");
        keys.admit(&asked, b"sealed").unwrap();
        assert_eq!(keys.ask("a1", "eu-1", ONE).unwrap().access(), Access::Admitted);
        assert_eq!(keys.with_key(ONE).unwrap().unwrap().host_id, "a1");
        assert_eq!(keys.with_key(OTHER).unwrap(), None);
        assert_eq!(actions(&scratch), ["host-asked", "host-admitted"]);
    }

    #[test]
    fn a_name_that_any_host_has_or_had_is_refused_to_another_key() {
        let (scratch, keys) = empty();
        let taken = |name: &str| match keys.ask("a9", name, OTHER) {
            Err(HostKeyError::NameTaken { host_id, .. }) => host_id,
            other => panic!("{other:?}"),
        };
        let asked = keys.ask("a1", "eu-1", ONE).unwrap();
        assert_eq!(taken("eu-1"), "a1");
        keys.admit(&asked, b"sealed").unwrap();
        keys.revoke("eu-1").unwrap();
        assert_eq!(taken("eu-1"), "a1");
        keys.db
            .execute(
                "INSERT INTO hosts (host_id, name, labels_json, version, first_at, started_at, last_seen_at)
                 VALUES ('a3', 'first', '{}', '0.1.0', 0, 0, 0)",
                [],
            )
            .unwrap();
        assert_eq!(taken("first"), "a3");
        assert_eq!(scratch.reader().host_keys().unwrap().len(), 1);
        // One that had only asked leaves nothing, and so no name.
        keys.ask("a4", "us-1", &[4; 32]).unwrap();
        assert_eq!(keys.revoke("us-1").unwrap(), Ended::Refused);
        keys.ask("a9", "us-1", OTHER).unwrap();
    }

    #[test]
    fn nothing_is_sealed_for_a_host_that_is_not_as_it_was_looked_at() {
        let (scratch, keys) = empty();
        let asked = keys.ask("a1", "eu-1", ONE).unwrap();
        let disguised = HostKeyRow { public_key: OTHER.to_owned(), ..asked.clone() };
        assert!(matches!(keys.admit(&disguised, b"sealed"), Err(HostKeyError::Changed(_))));
        let unknown = HostKeyRow { name: "eu-2".into(), ..asked.clone() };
        assert!(matches!(keys.admit(&unknown, b"sealed"), Err(HostKeyError::NotFound(_))));
        assert_eq!(scratch.reader().host_named("eu-1").unwrap().unwrap(), asked);

        keys.admit(&asked, b"sealed").unwrap();
        keys.revoke("eu-1").unwrap();
        assert!(matches!(keys.admit(&asked, b"sealed"), Err(HostKeyError::Revoked { .. })));
        assert!(matches!(keys.replace(&asked, OTHER, b"sealed"), Err(HostKeyError::Revoked { .. })));
        assert_eq!(actions(&scratch), ["host-asked", "host-admitted", "host-revoked"]);
        assert!(matches!(keys.revoke("eu-9"), Err(HostKeyError::NotFound(_))));
    }

    #[test]
    fn another_key_and_what_is_sealed_for_it_come_in_one_step() {
        let (scratch, keys) = empty();
        let asked = keys.ask("a1", "eu-1", ONE).unwrap();
        keys.admit(&asked, b"for one").unwrap();
        keys.replace(&asked, OTHER, b"for the other").unwrap();
        assert_eq!(scratch.reader().host_with_key(ONE).unwrap(), None);
        let row = scratch.reader().host_with_key(OTHER).unwrap().unwrap();
        assert_eq!((row.host_id.as_str(), row.sealed_key.as_deref()), ("a1", Some(&b"for the other"[..])));
        assert!(matches!(keys.replace(&asked, ONE, b"again"), Err(HostKeyError::Changed(_))));
    }

    #[test]
    fn the_first_marker_stands_and_a_file_has_no_hosts_to_share_it() {
        let (scratch, keys) = empty();
        assert_eq!(keys.remember_marker(b"first").unwrap(), b"first");
        assert_eq!(keys.remember_marker(b"second").unwrap(), b"first");
        assert_eq!(scratch.reader().installation(MARKER).unwrap().unwrap(), b"first");
        let file = Store::File(scratch.file());
        assert!(matches!(HostKeys::open(&file), Err(HostKeyError::OnFile)));
    }
}
