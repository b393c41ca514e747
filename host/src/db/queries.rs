//! What can be read, over a connection that can't write: while a daemon writes, and when none
//! runs. The rows are made to be shown and serialised, and hold no secret in any form; only
//! `sealed_generation` returns sealed bytes, for an export that the vault opens.

use std::collections::BTreeMap;

use super::sql::{self, Connection, Optional as _, Owned, Row, params};
use serde::{Serialize, Serializer};

use super::column::{
    millis, read_generation, read_json, read_millis, read_optional_json, read_optional_millis,
    read_optional_word, read_word,
};
use super::server::Server;
use super::{
    Action, Actor, DbError, Phase, SealedGeneration, Signer, Store, TrustedKey, migrations, open_for_reading,
};
use crate::credential::{CookieAttributes, Millis};
use crate::external::Presence;
use crate::provider::{KeySpec, Manifest};
use crate::report::{Report, Status, iso8601};

/// Rows of reports that one query gives at most: what a terminal or a page can show, and small
/// enough that no caller's mistake reads a table of millions into memory.
pub const REPORTS_AT_MOST: u32 = 10_000;

/// How far the clock may be set back, or commands wait for the disk, without a report being
/// missed by `since`.
const CLOCK_STEP: Millis = 5 * 60_000;

/// As many decisions as one query gives at most, for the same reasons.
pub const AUDIT_AT_MOST: u32 = 10_000;

/// A read-only connection. `Send`, not `Sync`: one for each thread or each use.
pub struct Reader {
    pub(super) db: Connection,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the database can't be read: {0}")]
    Sql(#[from] sql::Error),
}

pub(super) type Found<T> = Result<T, ReadError>;

pub(super) fn iso<S: Serializer>(at: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&iso8601(*at))
}

#[expect(clippy::ref_option, reason = "the signature is serde's")]
pub(super) fn iso_option<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.serialize_some(&iso8601(*at)),
        None => serializer.serialize_none(),
    }
}

/// A service's provider as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderRow {
    pub service: String,
    pub title: String,
    pub version: String,
    pub validate_url: String,
    pub key_mapping: Vec<KeySpec>,
    pub validate_interval_seconds: u32,
    pub max_age_seconds: Option<u32>,
    pub plugin_digest: String,
    /// The registry's words, as it gave them.
    pub permissions_json: String,
    pub manifest: Manifest,
    pub state: String,
    pub pending: Option<PendingRow>,
    /// Who had signed what is accepted.
    pub signer: Option<Signer>,
    /// The file that served last.
    pub file: Option<String>,
    pub operator_validate_interval_seconds: Option<u32>,
    /// Nothing of it is done by itself.
    pub paused: bool,
    #[serde(serialize_with = "iso")]
    pub updated_at: Millis,
    /// Another one after each decision.
    #[serde(skip)]
    pub revision: u32,
}

/// What the operator chose for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceChoice {
    pub service: String,
    pub paused: bool,
    pub validate_interval_seconds: Option<u32>,
}

/// A newer plugin that waits for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingRow {
    pub plugin_digest: String,
    pub manifest: Manifest,
    pub signer: Option<Signer>,
}

/// One decision about a plugin or a key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    pub id: i64,
    #[serde(serialize_with = "iso")]
    pub at: Millis,
    pub actor: Actor,
    pub action: String,
    pub service: Option<String>,
    pub file: Option<String>,
    pub digest: Option<String>,
    pub signer: Option<String>,
    pub detail: serde_json::Value,
}

/// A credential with where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRow {
    pub credential_id: String,
    pub profile_id: Option<String>,
    pub service: String,
    pub settings: BTreeMap<String, String>,
    pub private_hosts: Vec<String>,
    pub method: Option<String>,
    pub validate_interval_seconds: Option<u32>,
    pub max_age_seconds: Option<u32>,
    pub idle_limit_seconds: Option<u32>,
    pub quiet: Vec<String>,
    pub identity: Option<String>,
    pub paused: bool,
    pub service_paused: bool,
    pub attempt_number: u32,
    pub current_generation: Option<u32>,
    pub pending_generation: Option<u32>,
    pub last_generation: u32,
    #[serde(serialize_with = "iso")]
    pub rotated_at: Millis,
    #[serde(serialize_with = "iso")]
    pub created_at: Millis,
    /// Its secrets are elsewhere: an external worker reports on it.
    pub external: bool,
    pub monitor: MonitorRow,
    /// The attempt that is open now.
    pub open_attempt: Option<OpenAttempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorRow {
    pub last_status: Option<Status>,
    pub last_verdict: Option<String>,
    pub last_message: Option<String>,
    #[serde(serialize_with = "iso_option")]
    pub last_attempt_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub last_success_at: Option<Millis>,
    pub consecutive_failures: u32,
    #[serde(serialize_with = "iso_option")]
    pub expires_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub next_due_at: Option<Millis>,
    pub next_action: Action,
    /// Why then, in words.
    pub next_reason: Option<String>,
    pub last_report_id: Option<i64>,
    /// Until when the service itself asked to be left alone.
    #[serde(serialize_with = "iso_option")]
    pub asked_until: Option<Millis>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenAttempt {
    pub attempt_number: u32,
    pub action: Action,
    pub phase: Phase,
    pub method: Option<String>,
    #[serde(serialize_with = "iso")]
    pub started_at: Millis,
    #[serde(serialize_with = "iso")]
    pub lease_until: Millis,
}

/// A generation and the keys it has, without their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationRow {
    pub generation: u32,
    pub state: String,
    /// The attempt that captured it; None: imported or restored.
    pub attempt_number: Option<u32>,
    /// The generation whose keys the operator brought back as this one.
    pub restored_from: Option<u32>,
    #[serde(serialize_with = "iso")]
    pub created_at: Millis,
    pub keys: Vec<KeyRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRow {
    pub name: String,
    pub fingerprint: String,
    #[serde(serialize_with = "iso_option")]
    pub expires_at: Option<Millis>,
    pub cookie: Option<CookieAttributes>,
}

/// A stored report: the contract's fields, its number and when it was stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportRow {
    pub id: i64,
    pub created_at: String,
    /// The token that an external worker's report came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_token: Option<String>,
    #[serde(flatten)]
    pub report: Report,
}

/// A token for external workers, without anything that it could be recognised by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerTokenRow {
    pub token_id: String,
    pub name: String,
    pub service: String,
    #[serde(serialize_with = "iso")]
    pub created_at: Millis,
    #[serde(serialize_with = "iso_option")]
    pub last_used_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub expires_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub revoked_at: Option<Millis>,
}

/// A worker that can't be a plugin, as it announced itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkerRow {
    pub service: String,
    pub worker_id: String,
    pub token_id: String,
    pub token_name: String,
    pub pid: u32,
    pub version: Option<String>,
    pub interval_seconds: u32,
    #[serde(serialize_with = "iso")]
    pub announced_at: Millis,
    #[serde(serialize_with = "iso")]
    pub last_seen_at: Millis,
    pub presence: Presence,
}

/// Which reports; the default is the newest hundred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFilter {
    pub credential_id: Option<String>,
    pub service: Option<String>,
    pub status: Option<Status>,
    /// Stored at or after this moment.
    pub since: Option<Millis>,
    /// For a tail: only reports after this one, oldest first. Without it, newest first.
    pub after_id: Option<i64>,
    /// For the next page: only reports before this one.
    pub before_id: Option<i64>,
    /// At most `REPORTS_AT_MOST`.
    pub limit: u32,
}

impl Default for ReportFilter {
    fn default() -> Self {
        Self {
            credential_id: None,
            service: None,
            status: None,
            since: None,
            after_id: None,
            before_id: None,
            limit: 100,
        }
    }
}

/// A stored report, as far as deciding about its end takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldReport {
    pub id: i64,
    pub credential_id: String,
    /// ISO 8601.
    pub created_at: String,
}

/// Numbers for a status line, counted over credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub credentials: u64,
    /// Of these: whose secrets are elsewhere.
    pub external: u64,
    pub paused: u64,
    /// Attempts open now.
    pub open_attempts: u64,
    /// Credentials by the status of their last report; `pending` for those without one.
    pub by_status: BTreeMap<String, u64>,
    pub providers: u64,
    pub reports: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DueCount {
    pub service: String,
    pub credentials: u64,
    /// Due and not claimed.
    pub due: u64,
    #[serde(serialize_with = "iso_option")]
    pub next_due_at: Option<Millis>,
}

pub(super) const CREDENTIAL_COLUMNS: &str = "
    SELECT c.credential_id, c.profile_id, c.service, c.settings_json, c.private_hosts_json,
           c.method, c.validate_interval_seconds, c.identity, c.paused, c.attempt_number,
           c.current_generation, c.pending_generation, c.last_generation, c.rotated_at,
           c.created_at, m.last_status, m.last_verdict, m.last_message, m.last_attempt_at,
           m.last_success_at, m.consecutive_failures, m.expires_at, m.next_due_at,
           m.next_action, m.last_report_id, j.attempt_number, j.action, j.phase, j.method,
           j.started_at, j.lease_until, c.max_age_seconds, c.external, m.asked_until,
           c.idle_limit_seconds, c.quiet_json, m.next_reason, coalesce(p.paused, 0)";

const CREDENTIAL_TABLES: &str = "
    FROM credentials c
    JOIN cookie_rotation_monitor m ON m.cookie_id = c.credential_id
    LEFT JOIN journal j ON j.credential = c.id
    LEFT JOIN cookie_rotation_providers p ON p.service = c.service";

const PROVIDER_COLUMNS: &str = "
    SELECT service, title, version, validate_url, key_mapping_json, validate_interval_seconds,
           max_age_seconds, plugin_digest, permissions_json, manifest_json, state,
           pending_digest, pending_manifest_json, operator_validate_interval_seconds, updated_at,
           signer_json, pending_signer_json, file, paused, revision
    FROM cookie_rotation_providers";

const TOKEN_COLUMNS: &str = "
    SELECT token_id, name, service, created_at, last_used_at, expires_at, revoked_at, tag
    FROM worker_tokens";

const REPORT_COLUMNS: &str = "
    SELECT id, cookie_id, profile_id, service, validate_url, cookie_keys_json, status, message,
           attempt_number, started_at, finished_at, created_at, meta_json, worker_token
    FROM cookie_rotation_reports";

impl Reader {
    /// # Errors
    /// No database, another program's, one of another schema, or one that can't be read.
    pub fn open(store: impl Into<Store>) -> Result<Self, DbError> {
        match store.into() {
            Store::File(path) => Ok(Self { db: open_for_reading(&path)? }),
            Store::Server(config) => {
                let server = Server::named(&config)?;
                let db = Connection::Postgres(server.session()?);
                migrations::check_current(&db, &server.name)?;
                Ok(Self { db })
            }
        }
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.db
    }

    /// A value of the installation.
    pub fn installation(&self, key: &str) -> Found<Option<Vec<u8>>> {
        let value = self
            .db
            .prepare_cached("SELECT value FROM installation WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        Ok(value)
    }

    pub fn providers(&self) -> Found<Vec<ProviderRow>> {
        self.all(&format!("{PROVIDER_COLUMNS} ORDER BY service"), [], provider_from)
    }

    pub fn provider(&self, service: &str) -> Found<Option<ProviderRow>> {
        self.one(&format!("{PROVIDER_COLUMNS} WHERE service = ?1"), [service], provider_from)
    }

    /// A plugin's bytes, where the store has them. They are what somebody put there: whoever runs
    /// them holds them against their digest first.
    pub fn plugin_bytes(&self, digest: &str) -> Found<Option<Vec<u8>>> {
        self.one("SELECT bytes FROM plugin_files WHERE digest = ?1", [digest], |row| row.get(0))
    }

    /// The digests of the plugins that the store has.
    pub fn kept_plugins(&self) -> Found<Vec<String>> {
        self.all("SELECT digest FROM plugin_files", [], |row| row.get(0))
    }

    /// What the operator chose for each service, apart from its plugin.
    pub fn service_choices(&self) -> Found<Vec<ServiceChoice>> {
        self.all(
            "SELECT service, paused, operator_validate_interval_seconds FROM cookie_rotation_providers",
            [],
            |row| {
                Ok(ServiceChoice {
                    service: row.get(0)?,
                    paused: row.get(1)?,
                    validate_interval_seconds: row.get(2)?,
                })
            },
        )
    }

    /// The services of which nothing is done by itself.
    pub fn paused_services(&self) -> Found<Vec<String>> {
        self.all("SELECT service FROM cookie_rotation_providers WHERE paused = 1", [], |row| row.get(0))
    }

    /// Whether a service has anything that its plugin could harm.
    pub fn has_credentials(&self, service: &str) -> Found<bool> {
        let found = self
            .db
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM credentials WHERE service = ?1 AND external = 0)")?
            .query_row([service], |row| row.get(0))?;
        Ok(found)
    }

    /// The keys whose signatures the operator believes, by id.
    pub fn trusted_keys(&self) -> Found<Vec<TrustedKey>> {
        self.all("SELECT key_id, public_key, name, added_at FROM trusted_keys ORDER BY key_id", [], |row| {
            Ok(TrustedKey {
                key_id: row.get(0)?,
                public_key: row.get(1)?,
                name: row.get(2)?,
                added_at: read_millis(row, 3)?,
            })
        })
    }

    /// Decisions, newest first: all, or those about one service.
    pub fn audit(&self, service: Option<&str>, limit: u32) -> Found<Vec<AuditRow>> {
        let limit = limit.min(AUDIT_AT_MOST);
        let (filter, parameter) = match service {
            Some(service) => ("WHERE service = ?1", vec![Owned::from(service.to_owned())]),
            None => ("", Vec::new()),
        };
        let sql = format!(
            "SELECT id, at, actor, action, service, file, digest, signer, detail_json
             FROM audit {filter} ORDER BY id DESC LIMIT {limit}"
        );
        self.all(&sql, parameter, |row| {
            Ok(AuditRow {
                id: row.get(0)?,
                at: read_millis(row, 1)?,
                actor: read_word(row, 2, Actor::parse)?,
                action: row.get(3)?,
                service: row.get(4)?,
                file: row.get(5)?,
                digest: row.get(6)?,
                signer: row.get(7)?,
                detail: read_json(row, 8)?,
            })
        })
    }

    /// Every credential, or those of one service, by id.
    pub fn credentials(&self, service: Option<&str>) -> Found<Vec<CredentialRow>> {
        let sql = format!(
            "{CREDENTIAL_COLUMNS}{CREDENTIAL_TABLES} WHERE CAST(?1 AS TEXT) IS NULL OR c.service = ?1 ORDER BY c.credential_id"
        );
        self.all(&sql, [service], credential_from)
    }

    pub fn credential(&self, credential_id: &str) -> Found<Option<CredentialRow>> {
        let sql = format!("{CREDENTIAL_COLUMNS}{CREDENTIAL_TABLES} WHERE c.credential_id = ?1");
        self.one(&sql, [credential_id], credential_from)
    }

    /// The generations of a credential, newest first.
    pub fn generations(&self, credential_id: &str) -> Found<Vec<GenerationRow>> {
        // One statement, so that what a writer does in between can't tear the answer.
        let mut select = self.db.prepare_cached(
            "SELECT g.generation, g.state, g.attempt_number, g.created_at, k.key, k.fingerprint,
                    k.expires_at, k.cookie_json, g.restored_from
             FROM credentials c
             JOIN generations g ON g.credential = c.id
             LEFT JOIN generation_keys k
                 ON k.credential = g.credential AND k.generation = g.generation
             WHERE c.credential_id = ?1 ORDER BY g.generation DESC, k.key",
        )?;
        let mut rows = select.query([credential_id])?;
        let mut generations: Vec<GenerationRow> = Vec::new();
        while let Some(row) = rows.next()? {
            let generation = row.get(0)?;
            if generations.last().is_none_or(|last| last.generation != generation) {
                generations.push(GenerationRow {
                    generation,
                    state: row.get(1)?,
                    attempt_number: row.get(2)?,
                    restored_from: row.get(8)?,
                    created_at: read_millis(row, 3)?,
                    keys: Vec::new(),
                });
            }
            let name: Option<String> = row.get(4)?;
            if let (Some(name), Some(last)) = (name, generations.last_mut()) {
                last.keys.push(KeyRow {
                    name,
                    fingerprint: row.get(5)?,
                    expires_at: read_optional_millis(row, 6)?,
                    cookie: read_optional_json(row, 7)?,
                });
            }
        }
        Ok(generations)
    }

    /// One generation, sealed, for a restoration.
    pub fn sealed_generation_of(
        &self,
        credential_id: &str,
        generation: u32,
    ) -> Found<Option<SealedGeneration>> {
        let snapshot = self.db.snapshot()?;
        let credential: Option<i64> = snapshot
            .prepare_cached("SELECT id FROM credentials WHERE credential_id = ?1")?
            .query_row([credential_id], |row| row.get(0))
            .optional()?;
        match credential {
            Some(credential) => Ok(read_generation(&snapshot, credential, generation)?),
            None => Ok(None),
        }
    }

    /// The current generation, sealed, for an export.
    pub fn sealed_generation(&self, credential_id: &str) -> Found<Option<SealedGeneration>> {
        // Two statements see one state only inside a transaction.
        let snapshot = self.db.snapshot()?;
        let current: Option<(i64, Option<u32>)> = snapshot
            .prepare_cached("SELECT id, current_generation FROM credentials WHERE credential_id = ?1")?
            .query_row([credential_id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match current {
            Some((credential, Some(generation))) => Ok(read_generation(&snapshot, credential, generation)?),
            _ => Ok(None),
        }
    }

    pub fn reports(&self, filter: &ReportFilter) -> Found<Vec<ReportRow>> {
        let mut clauses = Vec::new();
        let mut values: Vec<Owned> = Vec::new();
        let mut add = |clause: &str, value: Owned| {
            values.push(value);
            clauses.push(format!("{clause} ?{}", values.len()));
        };
        let mut index = "";
        if let Some(id) = &filter.credential_id {
            add("cookie_id =", id.clone().into());
            // In the order of ids already, so that a page reads its own rows and no others.
            index = " INDEXED BY reports_by_credential";
        }
        if let Some(service) = &filter.service {
            add("service =", service.clone().into());
        }
        if let Some(status) = filter.status {
            add("status =", status.as_str().to_owned().into());
        }
        if let Some(since) = filter.since {
            add("id >=", self.first_report_since(since.saturating_sub(CLOCK_STEP))?.into());
            add("created_at >=", iso8601(since).into());
        }
        if let Some(after) = filter.after_id {
            // Where several hosts write, a lower number may be committed after a higher one: what
            // follows only sees rows before which nothing is under way any more.
            add(
                "/*pg age(xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid) AND */id >",
                after.into(),
            );
        }
        if let Some(before) = filter.before_id {
            add("id <", before.into());
        }
        let filters = match clauses.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", clauses.join(" AND ")),
        };
        let order = if filter.after_id.is_some() { "ASC" } else { "DESC" };
        let limit = filter.limit.min(REPORTS_AT_MOST);
        let sql = format!("{REPORT_COLUMNS}{index}{filters} ORDER BY id {order} LIMIT {limit}");
        self.all(&sql, values, report_from)
    }

    /// The id of the first report stored at or after a moment, or one more than the last one's.
    /// Found by halving, for rows arrive in the order of their time; where the clock was set
    /// back meanwhile it is one of the places that fit.
    pub fn first_report_since(&self, at: Millis) -> Found<i64> {
        let (mut low, mut high): (i64, i64) = self
            .db
            .prepare_cached(
                "SELECT coalesce((SELECT min(id) FROM cookie_rotation_reports), 1),
                        coalesce((SELECT max(id) FROM cookie_rotation_reports), 0) + 1",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let at = iso8601(at);
        let mut probe = self.db.prepare_cached(
            "SELECT id, created_at >= ?2 FROM cookie_rotation_reports WHERE id >= ?1 ORDER BY id LIMIT 1",
        )?;
        while low < high {
            let middle = low + (high - low) / 2;
            let found: Option<(i64, bool)> =
                probe.query_row(params![middle, at], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            match found {
                Some((id, false)) => low = id + 1,
                Some((_, true)) | None => high = middle,
            }
        }
        Ok(low)
    }

    /// Reports of all credentials between two ids, exclusive, that were stored before a moment:
    /// the oldest, so many at most.
    pub fn old_reports(&self, after: i64, before: i64, stored: Millis, limit: u32) -> Found<Vec<OldReport>> {
        self.all(
            "SELECT id, cookie_id, created_at FROM cookie_rotation_reports
             WHERE id > ?1 AND id < ?2 AND created_at < ?3 ORDER BY id LIMIT ?4",
            params![after, before, iso8601(stored), limit],
            old_from,
        )
    }

    /// As `old_reports`, of one credential.
    pub fn old_reports_of(
        &self,
        credential_id: &str,
        after: i64,
        before: i64,
        stored: Millis,
        limit: u32,
    ) -> Found<Vec<OldReport>> {
        self.all(
            "SELECT id, cookie_id, created_at
             FROM cookie_rotation_reports INDEXED BY reports_by_credential
             WHERE cookie_id = ?1 AND id > ?2 AND id < ?3 AND created_at < ?4 ORDER BY id LIMIT ?5",
            params![credential_id, after, before, iso8601(stored), limit],
            old_from,
        )
    }

    /// The next credential, by its id, that has reports; also one that was removed.
    pub fn next_with_reports(&self, after: &str) -> Found<Option<String>> {
        let next = self
            .db
            .prepare_cached(
                "SELECT min(cookie_id) FROM cookie_rotation_reports INDEXED BY reports_by_credential
                 WHERE cookie_id > ?1",
            )?
            .query_row([after], |row| row.get(0))?;
        Ok(next)
    }

    /// The id of a credential's newest report past the `skipped` newest.
    pub fn report_after_newest(&self, credential_id: &str, skipped: u32) -> Found<Option<i64>> {
        let id = self
            .db
            .prepare_cached(
                "SELECT id FROM cookie_rotation_reports INDEXED BY reports_by_credential
                 WHERE cookie_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2",
            )?
            .query_row(params![credential_id, skipped], |row| row.get(0))
            .optional()?;
        Ok(id)
    }

    /// The reports of a credential that are never deleted: its last and its last successful one,
    /// and the one its monitor row points to, which is another where an older one arrived late.
    /// None of a credential that was removed.
    pub fn lasting_reports(&self, credential_id: &str) -> Found<Vec<i64>> {
        let pointed_to: Option<Option<i64>> = self
            .db
            .prepare_cached("SELECT last_report_id FROM cookie_rotation_monitor WHERE cookie_id = ?1")?
            .query_row([credential_id], |row| row.get(0))
            .optional()?;
        let Some(pointed_to) = pointed_to else { return Ok(Vec::new()) };
        let newest = "SELECT id FROM cookie_rotation_reports INDEXED BY reports_by_credential
             WHERE cookie_id = ?1";
        let mut lasting: Vec<i64> = pointed_to.into_iter().collect();
        for condition in ["", " AND status = 'success'"] {
            let id: Option<i64> = self
                .db
                .prepare_cached(&format!("{newest}{condition} ORDER BY id DESC LIMIT 1"))?
                .query_row([credential_id], |row| row.get(0))
                .optional()?;
            lasting.extend(id);
        }
        Ok(lasting)
    }

    /// Reads what a deletion of this report will change, its entries in both indexes beside the row,
    /// so that the machine has those pages in memory by then. Old ones come from the disk, at a
    /// place each, and the writer would wait for them while everybody waits for the writer.
    pub fn warm_report(&self, id: i64) -> Found<()> {
        let unique = self.one(
            "SELECT cookie_id, attempt_number, started_at FROM cookie_rotation_reports WHERE id = ?1",
            [id],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let Some((credential, attempt, started)): Option<(String, i64, String)> = unique else {
            return Ok(());
        };
        self.one(
            "SELECT 1 FROM cookie_rotation_reports
             WHERE cookie_id = ?1 AND attempt_number = ?2 AND started_at = ?3",
            params![credential, attempt, started],
            |_| Ok(()),
        )?;
        self.one(
            "SELECT 1 FROM cookie_rotation_reports INDEXED BY reports_by_credential
             WHERE cookie_id = ?1 AND id = ?2",
            params![credential, id],
            |_| Ok(()),
        )?;
        Ok(())
    }

    /// What fails, whatever has for longest first, and how many there are in all.
    pub fn failing(&self, service: Option<&str>, limit: u32) -> Found<(Vec<CredentialRow>, u64)> {
        let snapshot = self.db.snapshot()?;
        let from = "FROM cookie_rotation_monitor m INDEXED BY monitor_failing";
        let filter = "WHERE m.consecutive_failures > 0 AND (CAST(?1 AS TEXT) IS NULL OR m.service = ?1)";
        let rows = self.all(
            &format!(
                "{CREDENTIAL_COLUMNS} {from}
                 CROSS JOIN credentials c ON c.credential_id = m.cookie_id
                 LEFT JOIN journal j ON j.credential = c.id
                 LEFT JOIN cookie_rotation_providers p ON p.service = c.service
                 {filter} ORDER BY m.last_success_at NULLS FIRST LIMIT ?2"
            ),
            params![service, limit],
            credential_from,
        )?;
        let count: i64 = snapshot
            .prepare_cached(&format!("SELECT count(*) {from} {filter}"))?
            .query_row([service], |row| row.get(0))?;
        Ok((rows, count.unsigned_abs()))
    }

    pub fn report(&self, id: i64) -> Found<Option<ReportRow>> {
        self.one(&format!("{REPORT_COLUMNS} WHERE id = ?1"), [id], report_from)
    }

    /// The newest report's id, 0 where there is none: where a tail begins.
    pub fn last_report_id(&self) -> Found<i64> {
        let id = self
            .db
            .prepare_cached("SELECT coalesce(max(id), 0) FROM cookie_rotation_reports")?
            .query_row([], |row| row.get(0))?;
        Ok(id)
    }

    pub fn counts(&self) -> Found<Counts> {
        let snapshot = self.db.snapshot()?;
        let count = |sql: &str| -> sql::Result<u64> {
            let count: i64 = snapshot.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        };
        let by_status = snapshot
            .prepare_cached(
                "SELECT coalesce(last_status, 'pending'), count(*)
                 FROM cookie_rotation_monitor GROUP BY 1",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get::<i64>(1)?.unsigned_abs())))?
            .collect::<sql::Result<_>>()?;
        Ok(Counts {
            credentials: count("SELECT count(*) FROM credentials")?,
            external: count("SELECT count(*) FROM credentials WHERE external = 1")?,
            paused: count("SELECT count(*) FROM credentials WHERE paused = 1")?,
            open_attempts: count("SELECT count(*) FROM journal")?,
            by_status,
            providers: count("SELECT count(*) FROM cookie_rotation_providers")?,
            reports: count("SELECT count(*) FROM cookie_rotation_reports")?,
        })
    }

    /// What is due, by service.
    pub fn due(&self, now: Millis) -> Found<Vec<DueCount>> {
        self.all(
            "SELECT m.service, count(*),
                    count(*) FILTER (WHERE m.next_due_at <= ?1 AND j.credential IS NULL),
                    min(m.next_due_at) FILTER (WHERE j.credential IS NULL)
             FROM cookie_rotation_monitor m
             JOIN credentials c ON c.credential_id = m.cookie_id
             LEFT JOIN journal j ON j.credential = c.id
             WHERE c.external = 0
             GROUP BY m.service ORDER BY m.service",
            params![millis(now)],
            |row| {
                Ok(DueCount {
                    service: row.get(0)?,
                    credentials: row.get::<i64>(1)?.unsigned_abs(),
                    due: row.get::<i64>(2)?.unsigned_abs(),
                    next_due_at: read_optional_millis(row, 3)?,
                })
            },
        )
    }

    /// A token by its id, with what it is recognised by.
    pub fn worker_token(&self, token_id: &str) -> Found<Option<(WorkerTokenRow, Vec<u8>)>> {
        self.one(&format!("{TOKEN_COLUMNS} WHERE token_id = ?1"), [token_id], |row| {
            Ok((token_from(row)?, row.get(7)?))
        })
    }

    /// Every token there ever was, the newest first.
    pub fn worker_tokens(&self) -> Found<Vec<WorkerTokenRow>> {
        self.all(&format!("{TOKEN_COLUMNS} ORDER BY created_at DESC, token_id"), [], token_from)
    }

    /// The workers that announced themselves, by service.
    pub fn external_workers(&self, now: Millis) -> Found<Vec<ExternalWorkerRow>> {
        self.all(
            "SELECT w.service, w.worker_id, w.token_id, t.name, w.pid, w.version,
                    w.interval_seconds, w.announced_at, w.last_seen_at
             FROM external_workers w JOIN worker_tokens t ON t.token_id = w.token_id
             ORDER BY w.service, w.worker_id",
            [],
            |row| {
                let (interval_seconds, last_seen_at) = (row.get(6)?, read_millis(row, 8)?);
                Ok(ExternalWorkerRow {
                    service: row.get(0)?,
                    worker_id: row.get(1)?,
                    token_id: row.get(2)?,
                    token_name: row.get(3)?,
                    pid: row.get(4)?,
                    version: row.get(5)?,
                    interval_seconds,
                    announced_at: read_millis(row, 7)?,
                    last_seen_at,
                    presence: Presence::of(last_seen_at, interval_seconds, now),
                })
            },
        )
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl sql::Params,
        from: impl FnMut(Row<'_>) -> sql::Result<T>,
    ) -> Found<Vec<T>> {
        let mut select = self.db.prepare_cached(sql)?;
        let rows = select.query_map(params, from)?.collect::<sql::Result<_>>()?;
        Ok(rows)
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl sql::Params,
        from: impl FnOnce(Row<'_>) -> sql::Result<T>,
    ) -> Found<Option<T>> {
        Ok(self.db.prepare_cached(sql)?.query_row(params, from).optional()?)
    }
}

fn provider_from(row: Row<'_>) -> sql::Result<ProviderRow> {
    let pending_digest: Option<String> = row.get(11)?;
    let pending_manifest: Option<Manifest> = read_optional_json(row, 12)?;
    let pending_signer: Option<Signer> = read_optional_json(row, 16)?;
    Ok(ProviderRow {
        service: row.get(0)?,
        title: row.get(1)?,
        version: row.get(2)?,
        validate_url: row.get(3)?,
        key_mapping: read_json(row, 4)?,
        validate_interval_seconds: row.get(5)?,
        max_age_seconds: row.get(6)?,
        plugin_digest: row.get(7)?,
        permissions_json: row.get(8)?,
        manifest: read_json(row, 9)?,
        state: row.get(10)?,
        pending: pending_digest.zip(pending_manifest).map(|(plugin_digest, manifest)| PendingRow {
            plugin_digest,
            manifest,
            signer: pending_signer,
        }),
        signer: read_optional_json(row, 15)?,
        file: row.get(17)?,
        operator_validate_interval_seconds: row.get(13)?,
        paused: row.get(18)?,
        updated_at: read_millis(row, 14)?,
        revision: row.get(19)?,
    })
}

pub(super) fn credential_from(row: Row<'_>) -> sql::Result<CredentialRow> {
    let settings: Vec<(String, String)> = read_json(row, 3)?;
    let open: Option<u32> = row.get(25)?;
    Ok(CredentialRow {
        credential_id: row.get(0)?,
        profile_id: row.get(1)?,
        service: row.get(2)?,
        settings: settings.into_iter().collect(),
        private_hosts: read_json(row, 4)?,
        method: row.get(5)?,
        validate_interval_seconds: row.get(6)?,
        max_age_seconds: row.get(31)?,
        idle_limit_seconds: row.get(34)?,
        quiet: read_optional_json(row, 35)?.unwrap_or_default(),
        identity: row.get(7)?,
        paused: row.get(8)?,
        service_paused: row.get(37)?,
        attempt_number: row.get(9)?,
        current_generation: row.get(10)?,
        pending_generation: row.get(11)?,
        last_generation: row.get(12)?,
        rotated_at: read_millis(row, 13)?,
        created_at: read_millis(row, 14)?,
        external: row.get(32)?,
        monitor: MonitorRow {
            last_status: read_optional_word(row, 15, Status::parse)?,
            last_verdict: row.get(16)?,
            last_message: row.get(17)?,
            last_attempt_at: read_optional_millis(row, 18)?,
            last_success_at: read_optional_millis(row, 19)?,
            consecutive_failures: row.get(20)?,
            expires_at: read_optional_millis(row, 21)?,
            next_due_at: read_optional_millis(row, 22)?,
            next_action: read_word(row, 23, Action::parse)?,
            next_reason: row.get(36)?,
            last_report_id: row.get(24)?,
            asked_until: read_optional_millis(row, 33)?,
        },
        open_attempt: match open {
            None => None,
            Some(attempt_number) => Some(OpenAttempt {
                attempt_number,
                action: read_word(row, 26, Action::parse)?,
                phase: read_word(row, 27, Phase::parse)?,
                method: row.get(28)?,
                started_at: read_millis(row, 29)?,
                lease_until: read_millis(row, 30)?,
            }),
        },
    })
}

fn token_from(row: Row<'_>) -> sql::Result<WorkerTokenRow> {
    Ok(WorkerTokenRow {
        token_id: row.get(0)?,
        name: row.get(1)?,
        service: row.get(2)?,
        created_at: read_millis(row, 3)?,
        last_used_at: read_optional_millis(row, 4)?,
        expires_at: read_optional_millis(row, 5)?,
        revoked_at: read_optional_millis(row, 6)?,
    })
}

fn old_from(row: Row<'_>) -> sql::Result<OldReport> {
    Ok(OldReport { id: row.get(0)?, credential_id: row.get(1)?, created_at: row.get(2)? })
}

fn report_from(row: Row<'_>) -> sql::Result<ReportRow> {
    Ok(ReportRow {
        id: row.get(0)?,
        created_at: row.get(11)?,
        worker_token: row.get(13)?,
        report: Report {
            cookie_id: row.get(1)?,
            profile_id: row.get(2)?,
            service: row.get(3)?,
            validate_url: row.get(4)?,
            cookie_keys: read_json(row, 5)?,
            status: read_word(row, 6, Status::parse)?,
            message: row.get(7)?,
            attempt_number: row.get(8)?,
            started_at: row.get(9)?,
            finished_at: row.get(10)?,
            meta: read_json(row, 12)?,
        },
    })
}
