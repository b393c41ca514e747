//! What can be written, one function for each command: they run inside the writer's transaction
//! and either do all of their work or return an error, on which the writer takes it back. None
//! of them commits, waits or reads a clock.
//!
//! Fencing: whatever belongs to an attempt compares its token with the journal row of the open
//! attempt. A token from before a newer claim finds no such row and changes nothing.

use std::sync::{Arc, LazyLock};

use super::sql::{self, Connection, News, Optional as _, Row, params};

use super::column::{
    millis, read_generation, read_millis, read_optional_json, read_optional_millis, read_optional_word,
    read_word,
};
use super::uses::{self, Behind};
use super::writer::{
    Allowed, Claim, ClaimDue, ClaimToken, Claims, Due, Gate, GenerationChange, Interrupted, MonitorUpdate,
    NewCredential, NewGeneration, OverdueRow, PREVIOUS_KEPT, Passage, PendingProvider, ProviderUpdate,
    Renewed, Rest, ScheduleChange, WriteError,
};
use super::{Action, Actor, AuditEntry, Phase, SealedKey, Signer, TrustedKey};
use crate::credential::Millis;
use crate::limits::IN_FLIGHT;
use crate::provider::{CommitClass, Manifest};
use crate::rate::Rate;
use crate::report::{Report, iso8601, parse_iso8601};

type Written<T> = Result<T, WriteError>;

pub(super) fn json<T: serde::Serialize>(value: &T) -> Written<String> {
    serde_json::to_string(value).map_err(|error| WriteError::Invalid(error.to_string()))
}

pub(super) fn not_found(what: &'static str, id: &str) -> WriteError {
    WriteError::NotFound { what, id: id.to_owned() }
}

// Installation and providers

pub(super) fn remember(db: &Connection, key: &str, value: &[u8]) -> Written<Vec<u8>> {
    db.prepare_cached("INSERT INTO installation (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING")?
        .execute(params![key, value])?;
    let stored = db
        .prepare_cached("SELECT value FROM installation WHERE key = ?1")?
        .query_row([key], |row| row.get(0))?;
    Ok(stored)
}

pub(super) fn put_provider(
    db: &Connection,
    row: &ProviderUpdate,
    note: Option<&AuditEntry>,
    at: Millis,
) -> Written<()> {
    db.tell(News::Plugins)?;
    if row.only_without_credentials && has_credentials(db, &row.manifest.service)? {
        return Err(WriteError::Pinned { service: row.manifest.service.clone() });
    }
    let Manifest { service, title, version, validate_url, keys, validate_interval, max_age, .. } =
        &row.manifest;
    let signer = row.signer.as_ref().map(json).transpose()?;
    db.prepare_cached(
        "INSERT INTO cookie_rotation_providers (service, title, version, validate_url,
             key_mapping_json, validate_interval_seconds, max_age_seconds, plugin_digest,
             permissions_json, manifest_json, state, signer_json, file, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (service) DO UPDATE SET
             title = excluded.title,
             version = excluded.version,
             validate_url = excluded.validate_url,
             key_mapping_json = excluded.key_mapping_json,
             validate_interval_seconds = excluded.validate_interval_seconds,
             max_age_seconds = excluded.max_age_seconds,
             plugin_digest = excluded.plugin_digest,
             permissions_json = excluded.permissions_json,
             manifest_json = excluded.manifest_json,
             state = excluded.state,
             pending_digest = NULL,
             pending_manifest_json = NULL,
             pending_signer_json = NULL,
             signer_json = excluded.signer_json,
             file = excluded.file,
             updated_at = excluded.updated_at",
    )?
    .execute(params![
        service,
        title,
        version,
        validate_url,
        json(keys)?,
        validate_interval,
        max_age,
        row.plugin_digest,
        row.permissions_json,
        json(&row.manifest)?,
        row.state,
        signer,
        row.file,
        millis(at),
    ])?;
    note.map_or(Ok(()), |note| insert_audit(db, note, at))
}

pub(super) fn set_provider_pending(
    db: &Connection,
    service: &str,
    pending: Option<&PendingProvider>,
    note: Option<&AuditEntry>,
    at: Millis,
) -> Written<()> {
    db.tell(News::Plugins)?;
    let manifest = pending.map(|pending| json(&pending.manifest)).transpose()?;
    let signer = pending.and_then(|pending| pending.signer.as_ref()).map(json).transpose()?;
    let changed = db
        .prepare_cached(
            "UPDATE cookie_rotation_providers
             SET pending_digest = ?2, pending_manifest_json = ?3, pending_signer_json = ?4, updated_at = ?5
             WHERE service = ?1",
        )?
        .execute(params![
            service,
            pending.map(|pending| &pending.plugin_digest),
            manifest,
            signer,
            millis(at)
        ])?;
    if changed == 0 {
        return Err(not_found("provider", service));
    }
    note.map_or(Ok(()), |note| insert_audit(db, note, at))
}

/// A provider that doesn't serve waits for nothing either.
pub(super) fn set_provider_state(
    db: &Connection,
    service: &str,
    state: &str,
    note: &AuditEntry,
    at: Millis,
) -> Written<()> {
    db.tell(News::Plugins)?;
    let changed = db
        .prepare_cached(
            "UPDATE cookie_rotation_providers
             SET state = ?2, pending_digest = NULL, pending_manifest_json = NULL,
                 pending_signer_json = NULL, updated_at = ?3
             WHERE service = ?1",
        )?
        .execute(params![service, state, millis(at)])?;
    if changed == 0 { Err(not_found("provider", service)) } else { insert_audit(db, note, at) }
}

pub(super) fn set_provider_cadence(
    db: &Connection,
    service: &str,
    seconds: Option<u32>,
    at: Millis,
) -> Written<()> {
    db.tell(News::Plugins)?;
    let changed = db
        .prepare_cached(
            "UPDATE cookie_rotation_providers
             SET operator_validate_interval_seconds = ?2, updated_at = ?3 WHERE service = ?1",
        )?
        .execute(params![service, seconds, millis(at)])?;
    if changed == 0 {
        return Err(not_found("provider", service));
    }
    if let Some(seconds) = seconds {
        // Who would come later than the new cadence comes at some time within it instead: spread,
        // for all of them come from one moment.
        db.prepare_cached(
            "UPDATE cookie_rotation_monitor
             SET next_due_at = ?2 + (SELECT c.id * 2654435761 % CAST(?3 AS BIGINT) FROM credentials c
                                     WHERE c.credential_id = cookie_id), next_reason = 'the cadence was changed',
                 next_action = 'validate'
             WHERE service = ?1 AND next_due_at > CAST(?2 AS BIGINT) + CAST(?3 AS BIGINT)
               AND EXISTS (SELECT 1 FROM credentials c WHERE c.credential_id = cookie_id
                           AND c.validate_interval_seconds IS NULL
                           AND NOT EXISTS (SELECT 1 FROM journal j WHERE j.credential = c.id))",
        )?
        .execute(params![service, millis(at), i64::from(seconds) * 1_000])?;
    }
    Ok(())
}

pub(super) fn set_provider_paused(db: &Connection, service: &str, paused: bool, at: Millis) -> Written<()> {
    db.tell(News::Plugins)?;
    let changed = db
        .prepare_cached(
            "UPDATE cookie_rotation_providers SET paused = ?2, updated_at = ?3 WHERE service = ?1",
        )?
        .execute(params![service, paused, millis(at)])?;
    if changed == 0 { Err(not_found("provider", service)) } else { Ok(()) }
}

pub(super) fn remove_provider(db: &Connection, service: &str) -> Written<()> {
    db.tell(News::Plugins)?;
    let changed =
        db.prepare_cached("DELETE FROM cookie_rotation_providers WHERE service = ?1")?.execute([service])?;
    if changed == 0 { Err(not_found("provider", service)) } else { Ok(()) }
}

fn has_credentials(db: &Connection, service: &str) -> Written<bool> {
    // External ones are nothing to a plugin: it gets no call for them.
    let found = db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM credentials WHERE service = ?1 AND external = 0)")?
        .query_row([service], |row| row.get(0))?;
    Ok(found)
}

// The audit, and the keys that are believed

pub(super) fn insert_audit(db: &Connection, entry: &AuditEntry, at: Millis) -> Written<()> {
    db.prepare_cached(
        "INSERT INTO audit (at, actor, action, service, file, digest, signer, detail_json)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        millis(at),
        entry.actor.as_str(),
        entry.action,
        entry.service,
        entry.file,
        entry.digest,
        entry.signer,
        json(&entry.detail)?,
    ])?;
    Ok(())
}

/// Writes down what changed nothing else. What repeats the newest row about its file is left
/// out, so that another look, or another process's, adds nothing.
pub(super) fn note(db: &Connection, entries: &[AuditEntry], at: Millis) -> Written<()> {
    for entry in entries {
        let repeated = match &entry.file {
            None => false,
            Some(file) => db
                .prepare_cached(
                    "SELECT action = ?2 AND service IS NOT DISTINCT FROM ?3
                         AND digest IS NOT DISTINCT FROM ?4 AND signer IS NOT DISTINCT FROM ?5
                         AND detail_json = ?6
                     FROM audit WHERE file = ?1 ORDER BY id DESC LIMIT 1",
                )?
                .query_row(
                    params![
                        file,
                        entry.action,
                        entry.service,
                        entry.digest,
                        entry.signer,
                        json(&entry.detail)?
                    ],
                    |row| row.get::<bool>(0),
                )
                .optional()?
                .unwrap_or(false),
        };
        if !repeated {
            insert_audit(db, entry, at)?;
        }
    }
    Ok(())
}

/// Returns the key as it stands: the same one again changes its name alone.
pub(super) fn trust_key(
    db: &Connection,
    key: &TrustedKey,
    note: &AuditEntry,
    at: Millis,
) -> Written<TrustedKey> {
    db.tell(News::Plugins)?;
    db.hold("trusted keys")?;
    let known: Option<TrustedKey> = db
        .prepare_cached("SELECT public_key, name, added_at FROM trusted_keys WHERE key_id = ?1")?
        .query_row([&key.key_id], |row| {
            Ok(TrustedKey {
                key_id: key.key_id.clone(),
                public_key: row.get(0)?,
                name: row.get(1)?,
                added_at: read_millis(row, 2)?,
            })
        })
        .optional()?;
    let key = match known {
        // Ids are chosen by who makes the key: a second one with this id may be meant to pass
        // for the first.
        Some(known) if known.public_key != key.public_key => {
            return Err(WriteError::Invalid(format!(
                "key id {} is trusted already, for another key; hint: `keywheel plugin distrust {}` first, if this one replaces it",
                key.key_id, key.key_id
            )));
        }
        Some(known) if known.name == key.name => return Ok(known),
        Some(known) => TrustedKey { name: key.name.clone(), ..known },
        None => TrustedKey { added_at: at, ..key.clone() },
    };
    db.prepare_cached(
        "INSERT INTO trusted_keys (key_id, public_key, name, added_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (key_id) DO UPDATE SET name = excluded.name",
    )?
    .execute(params![key.key_id, key.public_key, key.name, millis(key.added_at)])?;
    insert_audit(db, note, at)?;
    Ok(key)
}

pub(super) fn distrust_key(db: &Connection, key_id: &str, at: Millis) -> Written<()> {
    db.tell(News::Plugins)?;
    let gone: Option<(String, Option<String>)> = db
        .prepare_cached("DELETE FROM trusted_keys WHERE key_id = ?1 RETURNING public_key, name")?
        .query_row([key_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((public_key, name)) = gone else { return Err(not_found("trusted key", key_id)) };
    let entry = AuditEntry {
        actor: Actor::Operator,
        action: "distrusted",
        service: None,
        file: None,
        digest: None,
        signer: Some(key_id.to_owned()),
        detail: serde_json::json!({ "publicKey": public_key, "name": name }),
    };
    insert_audit(db, &entry, at)
}

/// What the first credential of a service pins, written down with it.
fn note_pinned(db: &Connection, service: &str, credential_id: &str, at: Millis) -> Written<()> {
    let pinned = db
        .prepare_cached(
            "SELECT plugin_digest, permissions_json, signer_json, file, version
             FROM cookie_rotation_providers WHERE service = ?1",
        )?
        .query_row([service], |row| {
            let (permissions, signer): (String, Option<String>) = (row.get(1)?, row.get(2)?);
            // What can't be read is no reason to refuse a credential; the digest says it all.
            let permissions: serde_json::Value = serde_json::from_str(&permissions).unwrap_or_default();
            let signer: Option<Signer> = signer.and_then(|signer| serde_json::from_str(&signer).ok());
            let version: String = row.get(4)?;
            Ok(AuditEntry {
                actor: Actor::Operator,
                action: "pinned",
                service: Some(service.to_owned()),
                file: row.get(3)?,
                digest: row.get(0)?,
                signer: signer.map(|signer| signer.key_id),
                detail: serde_json::json!({
                    "version": version, "granted": permissions, "credential": credential_id,
                }),
            })
        })
        .optional()?;
    // A provider that isn't there can't be harmed by, nor harm, anything.
    pinned.map_or(Ok(()), |entry| insert_audit(db, &entry, at))
}

// Credentials, by the operator

pub(super) fn add_credential(db: &Connection, new: &NewCredential, at: Millis) -> Written<()> {
    db.tell(News::Due)?;
    if let Some(shown) = &new.plugin_digest {
        let found: Option<String> = db
            .prepare_cached("SELECT plugin_digest FROM cookie_rotation_providers WHERE service = ?1")?
            .query_row([&new.service], |row| row.get(0))
            .optional()?;
        if found.as_ref() != Some(shown) {
            return Err(WriteError::Replaced { service: new.service.clone() });
        }
    }
    let first = !has_credentials(db, &new.service)?;
    let inserted = db.insert(
        "INSERT INTO credentials (credential_id, profile_id, service, settings_json,
                 private_hosts_json, method, validate_interval_seconds, max_age_seconds, identity,
                 current_generation, last_generation, rotated_at, created_at, idle_limit_seconds,
                 quiet_json)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, 1, ?10, ?10, ?11, ?12)
             ON CONFLICT (credential_id) DO NOTHING",
        params![
            new.credential_id,
            new.profile_id,
            new.service,
            json(&new.settings)?,
            json(&new.private_hosts)?,
            new.method,
            new.validate_interval,
            new.max_age,
            new.identity,
            millis(at),
            new.idle_limit,
            quiet_json(&new.quiet)?,
        ],
    )?;
    let Some(credential) = inserted else {
        standing(db, &new.credential_id)?.kept(&new.credential_id)?;
        return Err(WriteError::Duplicate { credential_id: new.credential_id.clone() });
    };
    insert_generation(db, credential, 1, "current", Origin::IMPORTED, &new.keys, at)?;
    db.prepare_cached(
        "INSERT INTO cookie_rotation_monitor (cookie_id, service, expires_at, next_due_at, next_action,
             next_reason)
         VALUES (?1, ?2, ?3, ?4, ?5, 'just added')",
    )?
    .execute(params![
        new.credential_id,
        new.service,
        new.expires.map(millis),
        millis(new.first_due),
        new.first_action.as_str(),
    ])?;
    if first { note_pinned(db, &new.service, &new.credential_id, at) } else { Ok(()) }
}

/// NULL where there is none: most credentials have none, and a claim looks at each.
fn quiet_json(windows: &Vec<String>) -> Written<Option<String>> {
    if windows.is_empty() { Ok(None) } else { json(windows).map(Some) }
}

pub(super) fn set_schedule(
    db: &Connection,
    credential_id: &str,
    change: &ScheduleChange,
    at: Millis,
) -> Written<()> {
    db.tell(News::Due)?;
    let standing = standing(db, credential_id)?.kept(credential_id)?;
    for (column, value) in [
        ("validate_interval_seconds", change.validate_interval),
        ("max_age_seconds", change.max_age),
        ("idle_limit_seconds", change.idle_limit),
    ] {
        if let Some(value) = value {
            db.prepare_cached(&format!("UPDATE credentials SET {column} = ?2 WHERE id = ?1"))?
                .execute(params![standing.row, value])?;
        }
    }
    if let Some(windows) = &change.quiet {
        db.prepare_cached("UPDATE credentials SET quiet_json = ?2 WHERE id = ?1")?
            .execute(params![standing.row, quiet_json(windows)?])?;
    }
    if standing.open.is_none() {
        // Paused ones have no due time, and get one when they are resumed.
        db.prepare_cached(
            "UPDATE cookie_rotation_monitor
             SET next_due_at = min(next_due_at, ?2), next_reason = 'its schedule was changed'
             WHERE cookie_id = ?1 AND next_due_at IS NOT NULL",
        )?
        .execute(params![credential_id, millis(at)])?;
    }
    Ok(())
}

/// A credential as the operator's commands need it.
struct Standing {
    row: i64,
    current: Option<u32>,
    pending: Option<u32>,
    last: u32,
    /// The number of the open attempt.
    open: Option<u32>,
    external: bool,
}

impl Standing {
    /// For what needs secrets, or a schedule.
    fn kept(self, credential_id: &str) -> Written<Self> {
        if self.external {
            Err(WriteError::External { credential_id: credential_id.to_owned() })
        } else {
            Ok(self)
        }
    }
}

fn standing(db: &Connection, credential_id: &str) -> Written<Standing> {
    db.hold_credential_named(credential_id)?;
    db.prepare_cached(
        "SELECT c.id, c.current_generation, c.pending_generation, c.last_generation,
                j.attempt_number, c.external
         FROM credentials c LEFT JOIN journal j ON j.credential = c.id
         WHERE c.credential_id = ?1",
    )?
    .query_row([credential_id], |row| {
        Ok(Standing {
            row: row.get(0)?,
            current: row.get(1)?,
            pending: row.get(2)?,
            last: row.get(3)?,
            open: row.get(4)?,
            external: row.get(5)?,
        })
    })
    .optional()?
    .ok_or_else(|| not_found("credential", credential_id))
}

/// For what must not happen under an open attempt.
fn idle(db: &Connection, credential_id: &str) -> Written<Standing> {
    let standing = standing(db, credential_id)?;
    match standing.open {
        None => Ok(standing),
        Some(attempt) => Err(WriteError::Busy { credential_id: credential_id.to_owned(), attempt }),
    }
}

pub(super) fn replace_generation(db: &Connection, new: &NewGeneration, at: Millis) -> Written<()> {
    db.tell(News::Due)?;
    let standing = idle(db, &new.credential_id)?.kept(&new.credential_id)?;
    let expected = standing.last + 1;
    if new.generation != expected {
        return Err(WriteError::Stale {
            credential_id: new.credential_id.clone(),
            found: new.generation,
            expected,
        });
    }
    // A pending one may hold the only live secret: it steps back, it isn't thrown away.
    for retired in [standing.current, standing.pending].into_iter().flatten() {
        set_state(db, standing.row, retired, "previous")?;
    }
    let origin = Origin { restored_from: new.restored_from, ..Origin::IMPORTED };
    insert_generation(db, standing.row, new.generation, "current", origin, &new.keys, at)?;
    db.prepare_cached(
        "UPDATE credentials SET current_generation = ?2, pending_generation = NULL,
             last_generation = ?2, rotated_at = ?3,
             identity = CASE WHEN ?4 THEN NULL ELSE identity END
         WHERE id = ?1",
    )?
    .execute(params![standing.row, new.generation, millis(at), new.unpin_identity])?;
    prune_generations(db, standing.row)?;
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor
         SET next_due_at = CASE WHEN (SELECT paused FROM credentials WHERE id = ?1) = 1 THEN NULL ELSE CAST(?3 AS BIGINT) END,
             next_action = ?4, expires_at = ?5, consecutive_failures = 0, waits_since = NULL,
             next_reason = 'new secrets were imported'
         WHERE cookie_id = ?2",
    )?
    .execute(params![
        standing.row,
        new.credential_id,
        millis(new.due),
        new.action.as_str(),
        new.expires.map(millis),
    ])?;
    new.note.as_ref().map_or(Ok(()), |note| insert_audit(db, note, at))
}

pub(super) fn remove_credential(db: &Connection, credential_id: &str) -> Written<()> {
    let standing = idle(db, credential_id)?;
    // Monitor, generations and their keys go with it by ON DELETE CASCADE.
    db.prepare_cached("DELETE FROM credentials WHERE id = ?1")?.execute([standing.row])?;
    Ok(())
}

pub(super) fn set_paused(
    db: &Connection,
    credential_id: &str,
    paused: bool,
    resume_at: Millis,
) -> Written<()> {
    db.tell(News::Due)?;
    let standing = standing(db, credential_id)?.kept(credential_id)?;
    db.prepare_cached("UPDATE credentials SET paused = ?2 WHERE id = ?1")?
        .execute(params![standing.row, paused])?;
    // An open attempt goes on, and its row keeps the end of its lease; `finish` looks at
    // `paused` again.
    if standing.open.is_none() {
        let due = (!paused).then_some(millis(resume_at));
        db.prepare_cached(
            "UPDATE cookie_rotation_monitor SET next_due_at = ?2, next_reason = ?3 WHERE cookie_id = ?1",
        )?
        .execute(params![credential_id, due, if paused { "paused" } else { "resumed" }])?;
    }
    Ok(())
}

pub(super) fn make_due(db: &Connection, credential_id: &str, action: Action, due: Millis) -> Written<()> {
    db.tell(News::Due)?;
    idle(db, credential_id)?.kept(credential_id)?;
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor SET next_due_at = ?2, next_action = ?3, next_reason = NULL
         WHERE cookie_id = ?1",
    )?
    .execute(params![credential_id, millis(due), action.as_str()])?;
    Ok(())
}

pub(super) fn overdue(db: &Connection, service: &str, now: Millis) -> Written<Vec<OverdueRow>> {
    let rows = db
        .prepare_cached(
            "SELECT c.id, m.next_due_at, m.next_action, m.expires_at
             FROM cookie_rotation_monitor m
             JOIN credentials c ON c.credential_id = m.cookie_id
             LEFT JOIN journal j ON j.credential = c.id
             WHERE m.service = ?1 AND m.next_due_at <= ?2 AND j.credential IS NULL",
        )?
        .query_map(params![service, millis(now)], |row| {
            Ok(OverdueRow {
                credential_row: row.get(0)?,
                due: read_millis(row, 1)?,
                action: read_word(row, 2, Action::parse)?,
                expires: read_optional_millis(row, 3)?,
            })
        })?
        .collect::<sql::Result<_>>()?;
    Ok(rows)
}

pub(super) fn put_off(db: &Connection, rows: &[(i64, Millis)], why: &str) -> Written<()> {
    let mut update = db.prepare_cached(
        "UPDATE cookie_rotation_monitor SET next_due_at = ?2, next_reason = ?3
         WHERE cookie_id = (SELECT credential_id FROM credentials WHERE id = ?1)
           AND next_due_at IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM journal WHERE credential = ?1)",
    )?;
    for (row, due) in rows {
        db.hold_credential(*row)?;
        update.execute(params![row, millis(*due), why])?;
    }
    Ok(())
}

// Claims

pub(super) fn claim_due(db: &Connection, claim: &ClaimDue) -> Written<Claims> {
    let now = millis(claim.now);
    let (mut claims, mut overdue) = (Vec::new(), Vec::new());
    let mut next_due: Option<Millis> = None;
    let mut earliest = db.prepare_cached(NEXT_DUE)?;
    let mut earliest = |service: &str| earliest.query_row([service], |row| read_optional_millis(row, 0));
    for (service, quota) in &claim.quotas {
        // With a hundred services nearly all have nothing due, and this is the cheapest question.
        let next = earliest(service)?;
        let left = claim.at_most.saturating_sub(u32::try_from(claims.len()).unwrap_or(u32::MAX));
        let quota = left.min(*quota);
        if quota == 0 || next.is_none_or(|next| next > claim.now) {
            next_due = [next_due, next].into_iter().flatten().min();
            continue;
        }
        let allowed = claim.allowed.get(service).copied().unwrap_or_default();
        let (quota, claimed_before) =
            (quota.min(free_over_all(db, service, allowed, claim.now)?), claims.len());
        let mut left = quota;
        for _ in 0..if quota == 0 { 0 } else { GATE_ROUNDS } {
            let due = due_of(db, service, now, left, claim)?;
            let held = due.iter().filter(|found| matches!(found, Found::Held(..))).count();
            for found in due {
                match found {
                    // Only the owner knows whether it still works on it.
                    Found::Open(token, true) => overdue.push(token),
                    Found::Open(token, false) => {
                        claims.push(take_over(db, token.credential_row, &claim.owner, claim.lease_until)?);
                    }
                    Found::Due(credential, action) => claims.push(open_attempt(
                        db,
                        *credential,
                        action,
                        &claim.owner,
                        claim.now,
                        claim.lease_until,
                    )?),
                    Found::Held(credential, passage) => {
                        let (Passage::Wait { until, why } | Passage::Await { until, why, .. }) = &passage
                        else {
                            continue;
                        };
                        // Past the clock that found it due, or it would be found again.
                        put_off(db, &[(credential, (*until).max(claim.now + 1))], why)?;
                        if let Passage::Await { since, .. } = passage {
                            uses::wait(db, credential, since)?;
                        }
                    }
                }
            }
            // Those who were sent away left their places to others.
            left = u32::try_from(held).unwrap_or(u32::MAX);
            if left == 0 {
                break;
            }
        }
        book(db, service, allowed, claims.len() - claimed_before, claim.now)?;
        next_due = [next_due, earliest(service)?].into_iter().flatten().min();
    }
    Ok(Claims { claims, overdue, next_due })
}

/// How many more of a service may begin, by what the operator allows over all hosts. Whoever asks
/// is alone in asking until its claim is committed. A home alone counts for itself.
fn free_over_all(db: &Connection, service: &str, allowed: Allowed, now: Millis) -> Written<u32> {
    if db.file().is_some() || allowed == Allowed::default() {
        return Ok(u32::MAX);
    }
    db.hold(&format!("limits of {service}"))?;
    let mut free = u32::MAX;
    if let Some(most) = allowed.concurrency {
        let open: u32 = db
            .prepare_cached(
                "SELECT count(*) FROM journal j JOIN credentials c ON c.id = j.credential WHERE c.service = ?1",
            )?
            .query_row([service], |row| row.get(0))?;
        free = most.saturating_sub(open);
    }
    if let Some(per_minute) = allowed.per_minute {
        let rate = Rate::left_at(per_minute, next_request(db, service)?);
        free = free.min(u32::try_from(rate.free(now)).unwrap_or(u32::MAX));
    }
    Ok(free)
}

fn next_request(db: &Connection, service: &str) -> Written<u64> {
    let next: Option<i64> = db
        .prepare_cached("SELECT next_at FROM service_rates WHERE service = ?1")?
        .query_row([service], |row| row.get(0))
        .optional()?;
    Ok(next.unwrap_or(0).unsigned_abs())
}

/// Books requests of a service that begin, over all hosts.
pub(super) fn book(
    db: &Connection,
    service: &str,
    allowed: Allowed,
    requests: usize,
    now: Millis,
) -> Written<()> {
    let Some(per_minute) = allowed.per_minute else { return Ok(()) };
    if db.file().is_some() || requests == 0 {
        return Ok(());
    }
    db.hold(&format!("limits of {service}"))?;
    let mut rate = Rate::left_at(per_minute, next_request(db, service)?);
    rate.take(requests, now);
    db.prepare_cached(
        "INSERT INTO service_rates (service, next_at) VALUES (?1, ?2)
         ON CONFLICT (service) DO UPDATE SET next_at = excluded.next_at",
    )?
    .execute(params![service, i64::try_from(rate.next()).unwrap_or(i64::MAX)])?;
    Ok(())
}

/// Takes over these attempts of a claimant's own that it gave up.
pub(super) fn resume(
    db: &Connection,
    tokens: &[ClaimToken],
    owner: &str,
    lease_until: Millis,
) -> Written<Vec<Claim>> {
    let mut claims = Vec::new();
    for token in tokens {
        db.hold_credential(token.credential_row)?;
        let open = db
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM journal WHERE credential = ?1 AND fence = ?2)")?
            .query_row(params![token.credential_row, token.fence], |row| row.get(0))?;
        if open {
            claims.push(take_over(db, token.credential_row, owner, lease_until)?);
        }
    }
    Ok(claims)
}

/// Moves what was written down by a clock that was ahead: what an attempt of then made due, what
/// was added then, and the leases of `owner`. `by` is how far it was ahead where that is known;
/// else a credential waits from now as long as it would have from its last attempt.
///
/// On a server all times are its own clock's, which no host's can be ahead of.
pub(super) fn set_back(db: &Connection, owner: &str, now: Millis, by: Option<Millis>) -> Written<usize> {
    if db.file().is_none() {
        return Ok(0);
    }
    db.prepare_cached("UPDATE journal SET lease_until = max(?2, lease_until - ?3) WHERE owner = ?1")?
        .execute(params![owner, millis(now), by.map_or(0, millis)])?;
    let moved = if by.is_some() || was_ahead(db, now)? { set_credentials_back(db, now, by)? } else { 0 };
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor SET next_due_at = j.lease_until
         FROM journal j JOIN credentials c ON c.id = j.credential
         WHERE c.credential_id = cookie_id AND j.owner = ?1",
    )?
    .execute([owner])?;
    Ok(moved)
}

fn set_credentials_back(db: &Connection, now: Millis, by: Option<Millis>) -> Written<usize> {
    // A verdict of "dead" may come of that clock: cookies that seemed to have ended aren't sent.
    let moved = db
        .prepare_cached(
            "UPDATE cookie_rotation_monitor
             SET next_due_at = CASE
                 WHEN last_attempt_at IS NULL OR last_verdict IN ('invalid', 'needs-human') THEN ?1
                 WHEN ?2 IS NULL THEN max(?1, ?1 + next_due_at - last_attempt_at)
                 ELSE max(?1, next_due_at - ?2) END,
                 asked_until = asked_until - coalesce(?2, last_attempt_at - ?1)
             WHERE next_due_at > ?1 AND (last_attempt_at IS NULL OR last_attempt_at > ?1)
               AND NOT EXISTS (SELECT 1 FROM journal j JOIN credentials c ON c.id = j.credential
                               WHERE c.credential_id = cookie_id)",
        )?
        .execute(params![millis(now), by.map(millis)])?;
    Ok(moved)
}

/// Whether the newest of what was written down is from the future: then a clock was ahead when
/// this host was last at work. Where it wasn't, a start is spared the look at every credential,
/// seconds for a million. More are looked at than can have ended by the right clock since.
fn was_ahead(db: &Connection, now: Millis) -> Written<bool> {
    let newest = 2 * IN_FLIGHT as i64;
    let ahead = db
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM (SELECT created_at FROM cookie_rotation_reports
                                           ORDER BY id DESC LIMIT ?3) newest WHERE created_at > ?2)
                 OR EXISTS (SELECT 1 FROM (SELECT created_at FROM credentials
                                           ORDER BY id DESC LIMIT ?3) newest WHERE created_at > ?1)",
        )?
        .query_row(params![millis(now), iso8601(now), newest], |row| row.get(0))?;
    Ok(ahead)
}

/// How often a claim asks for more where the gate sent some away.
const GATE_ROUNDS: usize = 16;

enum Found {
    /// What is due, to be claimed for this.
    Due(Box<Unopened>, Action),
    /// What is due and not let through.
    Held(i64, Passage),
    /// Its lease ran out, and whether it is the claimant's own.
    Open(ClaimToken, bool),
}

/// A credential `c` with its monitor row `m` and the journal row `j` of its open attempt, if any:
/// all that a claim says but for the secrets. `claim_from` reads it.
const CLAIM: &str = "
    c.id, c.credential_id, c.fence, c.attempt_number, c.profile_id, c.service, c.settings_json,
    c.private_hosts_json, c.method, c.identity, c.current_generation, c.pending_generation,
    c.last_generation, c.rotated_at, c.validate_interval_seconds, c.max_age_seconds,
    c.idle_limit_seconds, c.quiet_json, c.doubtful_generation, c.restored_generation,
    m.consecutive_failures, m.last_verdict, m.expires_at, j.started_at, j.action";

/// Columns in `CLAIM`; what follows it begins here.
const AFTER_CLAIM: usize = 25;

/// Rows of open attempts have their lease's end as due time, so one that is due here with a
/// journal row lost its owner, or its owner is the one who asks. What another host looks at in this
/// moment is passed over; what it took a moment ago shows itself by the monitor row, which every
/// claim writes.
///
/// Asked as "no row, or one that ran out" of one joined journal row, PostgreSQL took nearly nothing
/// for left after that and read all credentials first, 250 ms for 200,000.
static DUE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {CLAIM}, j.fence, j.owner = ?4, m.next_action, m.next_due_at, m.waits_since
         FROM cookie_rotation_monitor m
         JOIN credentials c ON c.credential_id = m.cookie_id
         LEFT JOIN journal j ON j.credential = c.id
         LEFT JOIN journal held ON held.credential = c.id AND held.lease_until > ?2
         WHERE m.service = ?1 AND m.next_due_at <= ?2 AND held.credential IS NULL
         ORDER BY m.next_due_at LIMIT ?3
         /*pg FOR UPDATE OF m, c SKIP LOCKED*/"
    )
});

static BY_ID: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {CLAIM}
         FROM credentials c
         JOIN cookie_rotation_monitor m ON m.cookie_id = c.credential_id
         LEFT JOIN journal j ON j.credential = c.id
         WHERE c.id = ?1"
    )
});

const NEXT_DUE: &str = "SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = ?1";

fn due_of(
    db: &Connection,
    service: &str,
    now: i64,
    at_most: u32,
    claim: &ClaimDue,
) -> sql::Result<Vec<Found>> {
    db.prepare_cached(&DUE)?
        .query_map(params![service, now, at_most, claim.owner], |row| {
            let credential = row.get(0)?;
            if let Some(fence) = row.get(AFTER_CLAIM)? {
                let token = ClaimToken { credential_row: credential, credential_id: row.get(1)?, fence };
                let own = row.get::<Option<bool>>(AFTER_CLAIM + 1)?.unwrap_or(false);
                return Ok(Found::Open(token, own));
            }
            let action = read_word(row, AFTER_CLAIM + 2, Action::parse)?;
            let pending: Option<u32> = row.get(11)?;
            let passage = claim.gate.judge(Due {
                service,
                action,
                credential_id: row.get::<&str>(1)?,
                expires: read_optional_millis(row, 22)?,
                quiet_json: row.get::<Option<&str>>(17)?,
                settings_json: row.get::<&str>(6)?,
                private_hosts_json: row.get::<&str>(7)?,
                method: row.get::<Option<&str>>(8)?,
                due_at: read_millis(row, AFTER_CLAIM + 3)?,
                issued: read_millis(row, 13)?,
                behind: &behind_rotation(db, credential, action, pending.is_some())?,
                waits_since: read_optional_millis(row, AFTER_CLAIM + 4)?,
            });
            match passage {
                Passage::Go(action) => Ok(Found::Due(Box::new(claim_from(row)?), action)),
                passage => Ok(Found::Held(credential, passage)),
            }
        })?
        .collect()
}

/// Who hasn't acknowledged what a rotation starts from. Of one that issued something already there
/// is nothing to wait for: that is only tested.
fn behind_rotation(
    db: &Connection,
    credential: i64,
    action: Action,
    has_pending: bool,
) -> sql::Result<Vec<Behind>> {
    match action {
        Action::Rotate if !has_pending => uses::behind(db, credential),
        Action::Rotate | Action::Validate => Ok(Vec::new()),
    }
}

#[expect(clippy::too_many_arguments, reason = "as the writer is asked, and the gate")]
pub(super) fn claim_one(
    db: &Connection,
    credential_id: &str,
    action: Action,
    owner: &str,
    now: Millis,
    lease_until: Millis,
    forced: bool,
    gate: &Gate,
) -> Written<Claim> {
    let standing = idle(db, credential_id)?.kept(credential_id)?;
    if action == Action::Rotate
        && !forced
        && let Some(rest) = rest_of(db, standing.row, now, gate)?
    {
        return Err(WriteError::Resting { credential_id: credential_id.to_owned(), rest });
    }
    let claim = open_attempt(db, Unopened::read(db, standing.row)?, action, owner, now, lease_until)?;
    Ok(Claim { forced, ..claim })
}

/// Why a credential shouldn't be rotated now unless a person insists: its own reasons, then the
/// gate's, such as a quiet window.
fn rest_of(db: &Connection, credential: i64, now: Millis, gate: &Gate) -> Written<Option<Rest>> {
    let rest = db
        .prepare_cached(
            "SELECT c.paused, m.asked_until, c.service, c.credential_id, m.expires_at, c.quiet_json,
                    c.settings_json, c.private_hosts_json, c.method, m.next_due_at, c.rotated_at,
                    m.waits_since, c.pending_generation IS NOT NULL
             FROM credentials c
             JOIN cookie_rotation_monitor m ON m.cookie_id = c.credential_id WHERE c.id = ?1",
        )?
        .query_row([credential], |row| {
            if row.get(0)? {
                return Ok(Some(Rest::Paused));
            }
            if let Some(until) = read_optional_millis(row, 1)?.filter(|&until| until > now) {
                return Ok(Some(Rest::Asked { until }));
            }
            let passage = gate.judge(Due {
                service: row.get::<&str>(2)?,
                action: Action::Rotate,
                credential_id: row.get::<&str>(3)?,
                expires: read_optional_millis(row, 4)?,
                quiet_json: row.get::<Option<&str>>(5)?,
                settings_json: row.get::<&str>(6)?,
                private_hosts_json: row.get::<&str>(7)?,
                method: row.get::<Option<&str>>(8)?,
                due_at: read_optional_millis(row, 9)?.unwrap_or(now),
                issued: read_millis(row, 10)?,
                behind: &behind_rotation(db, credential, Action::Rotate, row.get(12)?)?,
                waits_since: read_optional_millis(row, 11)?,
            });
            Ok(match passage {
                Passage::Go(_) => None,
                Passage::Wait { why, .. } | Passage::Await { why, .. } => Some(Rest::Held { why }),
            })
        })?;
    Ok(rest)
}

/// Of a file all that is open, for nobody else can be at it. On a server what this very host began
/// before it was started again; what others began is theirs until their leases run out.
pub(super) fn reclaim_interrupted(db: &Connection, owner: &str, lease_until: Millis) -> Written<Vec<Claim>> {
    let host = match (db.file(), owner.split_once(':')) {
        (None, Some((host, _))) => format!("{host}:"),
        _ => String::new(),
    };
    let open: Vec<i64> = db
        .prepare_cached(
            "SELECT credential FROM journal WHERE substr(owner, 1, length(?1)) = ?1 ORDER BY started_at",
        )?
        .query_map([host], |row| row.get(0))?
        .collect::<sql::Result<_>>()?;
    open.into_iter().map(|credential| take_over(db, credential, owner, lease_until)).collect()
}

/// A credential as it stands before an attempt of it is opened, or under an open one.
struct Unopened {
    /// Without its secrets, and of the last attempt.
    claim: Claim,
    current: Option<u32>,
    pending: Option<u32>,
}

impl Unopened {
    fn read(db: &Connection, credential: i64) -> Written<Self> {
        Ok(db.prepare_cached(&BY_ID)?.query_row([credential], claim_from)?)
    }

    /// Adds what lies in other tables.
    fn complete(self, db: &Connection) -> Written<Claim> {
        let Self { mut claim, current, pending } = self;
        let credential = claim.token.credential_row;
        if let Some(generation) = current {
            claim.current = read_generation(db, credential, generation)?;
        }
        if let Some(generation) = pending {
            claim.pending = read_generation(db, credential, generation)?;
        }
        let behind = behind_rotation(db, credential, claim.action, claim.pending.is_some())?;
        claim.unacknowledged = behind.into_iter().map(|consumer| consumer.name).collect();
        Ok(claim)
    }
}

/// Three statements and no look at what they wrote: every attempt pays for them.
fn open_attempt(
    db: &Connection,
    mut credential: Unopened,
    action: Action,
    owner: &str,
    now: Millis,
    lease_until: Millis,
) -> Written<Claim> {
    let claim = &mut credential.claim;
    claim.action = action;
    claim.started_at = now;
    claim.attempt_number += 1;
    claim.token.fence += 1;
    let row = claim.token.credential_row;
    db.prepare_cached("UPDATE credentials SET fence = ?2, attempt_number = ?3 WHERE id = ?1")?
        .execute(params![row, claim.token.fence, claim.attempt_number])?;
    db.prepare_cached(
        "INSERT INTO journal (credential, attempt_number, fence, owner, lease_until, action,
             started_at, phase)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'claimed')",
    )?
    .execute(params![
        row,
        claim.attempt_number,
        claim.token.fence,
        owner,
        millis(lease_until),
        action.as_str(),
        millis(now)
    ])?;
    lease_monitor(db, &claim.token.credential_id, lease_until)?;
    credential.complete(db)
}

/// The same attempt under a new fence, for a new owner.
fn take_over(db: &Connection, credential: i64, owner: &str, lease_until: Millis) -> Written<Claim> {
    db.prepare_cached("UPDATE credentials SET fence = fence + 1 WHERE id = ?1")?.execute([credential])?;
    db.prepare_cached(
        "UPDATE journal SET owner = ?2, lease_until = ?3,
             fence = (SELECT fence FROM credentials WHERE id = ?1)
         WHERE credential = ?1",
    )?
    .execute(params![credential, owner, millis(lease_until)])?;
    let mut open = Unopened::read(db, credential)?;
    lease_monitor(db, &open.claim.token.credential_id, lease_until)?;
    open.claim.interrupted = db
        .prepare_cached(
            "SELECT phase, method, commit_class, from_generation FROM journal WHERE credential = ?1",
        )?
        .query_row([credential], |row| {
            Ok(Some(Interrupted {
                phase: read_word(row, 0, Phase::parse)?,
                method: row.get(1)?,
                commit_class: read_optional_word(row, 2, CommitClass::parse)?,
                from_generation: row.get(3)?,
                action: open.claim.action,
            }))
        })?;
    open.complete(db)
}

fn lease_monitor(db: &Connection, credential_id: &str, lease_until: Millis) -> Written<()> {
    db.prepare_cached("UPDATE cookie_rotation_monitor SET next_due_at = ?2 WHERE cookie_id = ?1")?
        .execute(params![credential_id, millis(lease_until)])?;
    Ok(())
}

fn claim_from(row: Row<'_>) -> sql::Result<Unopened> {
    let claim = Claim {
        token: ClaimToken { credential_row: row.get(0)?, credential_id: row.get(1)?, fence: row.get(2)? },
        attempt_number: row.get(3)?,
        profile_id: row.get(4)?,
        service: row.get(5)?,
        settings_json: row.get(6)?,
        private_hosts_json: row.get(7)?,
        method: row.get(8)?,
        identity: row.get(9)?,
        current: None,
        pending: None,
        next_generation: row.get::<u32>(12)? + 1,
        rotated_at: read_millis(row, 13)?,
        validate_interval_override: row.get(14)?,
        max_age_override: row.get(15)?,
        idle_limit_override: row.get(16)?,
        quiet: read_optional_json(row, 17)?.unwrap_or_default(),
        doubtful_generation: row.get(18)?,
        restored_generation: row.get(19)?,
        consecutive_failures: row.get(20)?,
        last_verdict: row.get(21)?,
        expires_at: read_optional_millis(row, 22)?,
        started_at: read_optional_millis(row, 23)?.unwrap_or(0),
        action: read_optional_word(row, 24, Action::parse)?.unwrap_or(Action::Validate),
        forced: false,
        interrupted: None,
        unacknowledged: Vec::new(),
    };
    Ok(Unopened { claim, current: row.get(10)?, pending: row.get(11)? })
}

pub(super) fn renew(db: &Connection, tokens: &[ClaimToken], lease_until: Millis) -> Written<Renewed> {
    let mut all = Renewed::default();
    for token in tokens {
        db.hold_credential(token.credential_row)?;
        let renewed = db
            .prepare_cached("UPDATE journal SET lease_until = ?3 WHERE credential = ?1 AND fence = ?2")?
            .execute(params![token.credential_row, token.fence, millis(lease_until)])?;
        if renewed != 0 {
            lease_monitor(db, &token.credential_id, lease_until)?;
            all.held.push(token.clone());
            continue;
        }
        // An attempt may end while its renewal waits behind a slow commit: that is no loss. But
        // nor is it held: it may as well be another who took it over and ended it.
        let open = db
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM journal WHERE credential = ?1)")?
            .query_row([token.credential_row], |row| row.get(0))?;
        if open {
            all.lost.push(token.clone());
        }
    }
    Ok(all)
}

// An open attempt

fn fenced(token: &ClaimToken) -> WriteError {
    WriteError::Fenced { credential_id: token.credential_id.clone(), fence: token.fence }
}

pub(super) fn journal_rotation(
    db: &Connection,
    token: &ClaimToken,
    method: &str,
    commit_class: CommitClass,
    from_generation: u32,
) -> Written<()> {
    // `captured` is further than `rotating` and says more after a crash: it stays.
    let written = db
        .prepare_cached(
            "UPDATE journal SET method = ?3, commit_class = ?4, from_generation = ?5,
                 phase = CASE phase WHEN 'claimed' THEN 'rotating' ELSE phase END
             WHERE credential = ?1 AND fence = ?2",
        )?
        .execute(params![
            token.credential_row,
            token.fence,
            method,
            commit_class.as_str(),
            from_generation,
        ])?;
    if written == 0 { Err(fenced(token)) } else { Ok(()) }
}

pub(super) fn store_pending(
    db: &Connection,
    token: &ClaimToken,
    generation: u32,
    keys: &[SealedKey],
    at: Millis,
) -> Written<()> {
    let credential = token.credential_row;
    db.hold_credential(credential)?;
    let attempt: u32 = db
        .prepare_cached(
            "UPDATE journal SET phase = 'captured' WHERE credential = ?1 AND fence = ?2
             RETURNING attempt_number",
        )?
        .query_row(params![credential, token.fence], |row| row.get(0))
        .optional()?
        .ok_or_else(|| fenced(token))?;
    let (pending, captured_by, last): (Option<u32>, Option<u32>, u32) = db
        .prepare_cached(
            "SELECT c.pending_generation, g.attempt_number, c.last_generation
             FROM credentials c
             LEFT JOIN generations g
                 ON g.credential = c.id AND g.generation = c.pending_generation
             WHERE c.id = ?1",
        )?
        .query_row([credential], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;

    // A later capture of the same attempt: the same generation, its whole jar anew.
    if pending == Some(generation) && captured_by == Some(attempt) {
        db.prepare_cached("DELETE FROM generation_keys WHERE credential = ?1 AND generation = ?2")?
            .execute(params![credential, generation])?;
        return insert_keys(db, credential, generation, keys);
    }
    if generation != last + 1 {
        return Err(WriteError::Stale {
            credential_id: token.credential_id.clone(),
            found: generation,
            expected: last + 1,
        });
    }
    // An earlier attempt's capture that nobody could judge yet stays restorable.
    if let Some(unjudged) = pending {
        set_state(db, credential, unjudged, "previous")?;
    }
    let origin = Origin { attempt: Some(attempt), ..Origin::IMPORTED };
    insert_generation(db, credential, generation, "pending", origin, keys, at)?;
    db.prepare_cached("UPDATE credentials SET pending_generation = ?2, last_generation = ?2 WHERE id = ?1")?
        .execute(params![credential, generation])?;
    Ok(())
}

/// A `Finish` whose text columns were made on the caller's thread.
pub(super) struct FinishRow {
    pub token: ClaimToken,
    pub report: Arc<Report>,
    pub cookie_keys_json: String,
    pub finished_millis: Millis,
    pub created_at: String,
    pub idempotency_key: String,
    pub meta_json: String,
    pub verdict: String,
    pub monitor: MonitorUpdate,
    pub generations: GenerationChange,
    pub expiry_updates: Vec<(String, Option<Millis>)>,
    pub identity: Option<String>,
    pub in_doubt: Option<bool>,
}

pub(super) fn finish(db: &Connection, end: &FinishRow) -> Written<i64> {
    let credential = end.token.credential_row;
    db.hold_credential(credential)?;
    let closed = db
        .prepare_cached("DELETE FROM journal WHERE credential = ?1 AND fence = ?2 AND attempt_number = ?3")?
        .execute(params![credential, end.token.fence, end.report.attempt_number])?;
    if closed == 0 {
        return finish_again(db, end);
    }

    change_generations(db, &end.token, end.generations)?;
    for (key, expires) in &end.expiry_updates {
        db.prepare_cached(
            "UPDATE generation_keys SET expires_at = ?3
             WHERE credential = ?1 AND key = ?2
               AND generation = (SELECT current_generation FROM credentials WHERE id = ?1)",
        )?
        .execute(params![credential, key, expires.map(millis)])?;
    }
    if let Some(identity) = &end.identity {
        // The first one seen is pinned.
        db.prepare_cached("UPDATE credentials SET identity = ?2 WHERE id = ?1 AND identity IS NULL")?
            .execute(params![credential, identity])?;
    }

    if let Some(in_doubt) = end.in_doubt {
        db.prepare_cached(
            // A doubt from a backup goes over to what was promoted in it; any other end ends it.
            "UPDATE credentials
             SET doubtful_generation = CASE WHEN ?2 THEN current_generation END,
                 restored_generation = CASE WHEN ?2 AND restored_generation = doubtful_generation
                                            THEN current_generation END
             WHERE id = ?1",
        )?
        .execute(params![credential, in_doubt])?;
    }

    let insert = "INSERT INTO cookie_rotation_reports (cookie_id, profile_id, service, validate_url,
             cookie_keys_json, status, message, attempt_number, started_at, finished_at,
             created_at, idempotency_key, meta_json)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (cookie_id, attempt_number, started_at) DO NOTHING";
    let insert_at = |started_at: &str| {
        db.insert(
            insert,
            params![
                end.token.credential_id,
                end.report.profile_id,
                end.report.service,
                end.report.validate_url,
                end.cookie_keys_json,
                end.report.status.as_str(),
                end.report.message,
                end.report.attempt_number,
                started_at,
                end.report.finished_at,
                end.created_at,
                end.idempotency_key,
                end.meta_json,
            ],
        )
    };
    // The attempt was open until now, so a report in its place is an external worker's, by
    // accident or on purpose. It must not keep the attempt from its end.
    let mut inserted = insert_at(&end.report.started_at)?;
    let mut started = parse_iso8601(&end.report.started_at).unwrap_or(0);
    let report = loop {
        if let Some(report) = inserted {
            break report;
        }
        started += 1;
        inserted = insert_at(&iso8601(started))?;
    };

    // It may have been paused meanwhile.
    let paused: bool = db
        .prepare_cached("SELECT paused FROM credentials WHERE id = ?1")?
        .query_row([credential], |row| row.get(0))?;
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor
         SET last_status = ?3, last_verdict = ?4, last_message = ?5, last_attempt_at = ?6,
             last_success_at = CASE WHEN ?3 = 'success' THEN ?6 ELSE last_success_at END,
             consecutive_failures = ?7, expires_at = ?8,
             next_due_at = ?9, next_action = ?10, last_report_id = ?11, asked_until = ?12,
             waits_since = CASE WHEN ?1 THEN NULL ELSE waits_since END, next_reason = ?13
         WHERE cookie_id = ?2",
    )?
    .execute(params![
        matches!(end.generations, GenerationChange::Promote(_)),
        end.token.credential_id,
        end.report.status.as_str(),
        end.verdict,
        end.report.message,
        millis(end.finished_millis),
        end.monitor.consecutive_failures,
        end.monitor.expires_at.map(millis),
        if paused { None } else { end.monitor.next_due_at.map(millis) },
        end.monitor.next_action.as_str(),
        report,
        end.monitor.asked_until.map(millis),
        if paused { "paused" } else { &end.monitor.next_reason },
    ])?;
    Ok(report)
}

/// The end of an attempt that isn't open: the second delivery of a report answers as the first
/// did, anything else is late or wrong.
fn finish_again(db: &Connection, end: &FinishRow) -> Written<i64> {
    let first: Option<i64> = db
        .prepare_cached(
            "SELECT id FROM cookie_rotation_reports
             WHERE cookie_id = ?1 AND attempt_number = ?2 AND idempotency_key = ?3
               AND worker_token IS NULL",
        )?
        .query_row(params![end.token.credential_id, end.report.attempt_number, end.idempotency_key], |row| {
            row.get(0)
        })
        .optional()?;
    if let Some(first) = first {
        return Ok(first);
    }
    let open: Option<u32> = db
        .prepare_cached("SELECT attempt_number FROM journal WHERE credential = ?1 AND fence = ?2")?
        .query_row(params![end.token.credential_row, end.token.fence], |row| row.get(0))
        .optional()?;
    match open {
        Some(attempt) => Err(WriteError::Invalid(format!(
            "the report is of attempt {}, the open one is {attempt}",
            end.report.attempt_number
        ))),
        None => Err(fenced(&end.token)),
    }
}

// Retention

/// Deletes reports and says how many. A credential's last one stays whatever is asked: its
/// monitor row points to it.
pub(super) fn delete_reports(db: &Connection, ids: &[i64]) -> Written<usize> {
    let mut delete = db.prepare_cached(
        "DELETE FROM cookie_rotation_reports WHERE id = ?1 AND NOT EXISTS (
             SELECT 1 FROM cookie_rotation_monitor m
             WHERE m.cookie_id = cookie_rotation_reports.cookie_id AND m.last_report_id = ?1)",
    )?;
    let mut deleted = 0;
    for id in ids {
        deleted += delete.execute([id])?;
    }
    Ok(deleted)
}

// Generations

fn change_generations(db: &Connection, token: &ClaimToken, change: GenerationChange) -> Written<()> {
    let credential = token.credential_row;
    if change == GenerationChange::None {
        return Ok(());
    }
    let (current, pending): (Option<u32>, Option<u32>) = db
        .prepare_cached("SELECT current_generation, pending_generation FROM credentials WHERE id = ?1")?
        .query_row([credential], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let is_pending = |generation: u32| {
        if pending == Some(generation) {
            Ok(())
        } else {
            Err(WriteError::Invalid(format!(
                "generation {generation} of {} is not its pending one ({pending:?})",
                token.credential_id
            )))
        }
    };
    match change {
        GenerationChange::None => {}
        GenerationChange::Keep => {
            if pending.is_none() {
                return Err(WriteError::Invalid(format!(
                    "{} has no pending generation to keep",
                    token.credential_id
                )));
            }
        }
        GenerationChange::Promote(generation) => {
            is_pending(generation)?;
            if let Some(replaced) = current {
                set_state(db, credential, replaced, "previous")?;
            }
            set_state(db, credential, generation, "current")?;
            db.prepare_cached(
                "UPDATE credentials SET current_generation = ?2, pending_generation = NULL,
                     rotated_at = (SELECT created_at FROM generations
                                   WHERE credential = ?1 AND generation = ?2)
                 WHERE id = ?1",
            )?
            .execute(params![credential, generation])?;
            prune_generations(db, credential)?;
        }
        GenerationChange::Drop(generation) => {
            is_pending(generation)?;
            set_state(db, credential, generation, "dropped")?;
            db.prepare_cached("DELETE FROM generation_keys WHERE credential = ?1 AND generation = ?2")?
                .execute(params![credential, generation])?;
            db.prepare_cached("UPDATE credentials SET pending_generation = NULL WHERE id = ?1")?
                .execute([credential])?;
            prune_generations(db, credential)?;
        }
    }
    Ok(())
}

pub(super) fn set_state(db: &Connection, credential: i64, generation: u32, state: &str) -> Written<()> {
    db.prepare_cached("UPDATE generations SET state = ?3 WHERE credential = ?1 AND generation = ?2")?
        .execute(params![credential, generation, state])?;
    Ok(())
}

/// Where the keys of a generation come from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub attempt: Option<u32>,
    pub restored_from: Option<u32>,
}

impl Origin {
    pub const IMPORTED: Self = Self { attempt: None, restored_from: None };
}

pub(super) fn insert_generation(
    db: &Connection,
    credential: i64,
    generation: u32,
    state: &str,
    origin: Origin,
    keys: &[SealedKey],
    at: Millis,
) -> Written<()> {
    db.prepare_cached(
        "INSERT INTO generations (credential, generation, state, attempt_number, restored_from, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        credential,
        generation,
        state,
        origin.attempt,
        origin.restored_from,
        millis(at)
    ])?;
    insert_keys(db, credential, generation, keys)
}

fn insert_keys(db: &Connection, credential: i64, generation: u32, keys: &[SealedKey]) -> Written<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO generation_keys (credential, generation, key, sealed, fingerprint,
             expires_at, cookie_json)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for key in keys {
        let cookie = key.cookie.as_ref().map(json).transpose()?;
        insert.execute(params![
            credential,
            generation,
            key.name,
            key.sealed,
            key.fingerprint,
            key.expires.map(millis),
            cookie,
        ])?;
    }
    Ok(())
}

/// Deletes what is older than the last few previous generations, keys included. Dropped ones
/// have no keys any more and go with their age.
fn prune_generations(db: &Connection, credential: i64) -> Written<()> {
    db.prepare_cached(
        "DELETE FROM generations
         WHERE credential = ?1 AND state IN ('previous', 'dropped')
           AND generation < (SELECT generation FROM generations
                             WHERE credential = ?1 AND state = 'previous'
                             ORDER BY generation DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![credential, PREVIOUS_KEPT - 1])?;
    Ok(())
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod queue_tests;
