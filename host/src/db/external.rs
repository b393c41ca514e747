//! What external workers may write, and what the operator writes about them: a function for
//! each command, run inside the writer's transaction like those of `commands`. They check
//! everything before they write anything, and no report moves a credential's state backwards.

use super::sql::{Connection, Optional as _, params};

use super::column::{millis, read_millis, read_optional_millis};
use super::commands::{insert_audit, json, not_found};
use super::writer::{WriteError, Writer};
use super::{Actor, AuditEntry};
use crate::credential::{Millis, now};
use crate::external::Presence;
use crate::limits;
use crate::report::{Report, iso8601, parse_iso8601};
use crate::token::TokenState;

type Written<T> = Result<T, WriteError>;

/// What the monitor shows of a message: as much as of the host's own.
const SHOWN: usize = 500;

/// A report's start is moved by a millisecond for each other report of the same credential,
/// number and start. Host and workers at once make two of them; a hundred is no accident.
const SAME_START: u64 = 100;

#[derive(Debug, Clone)]
pub struct NewWorkerToken {
    pub token_id: String,
    pub name: String,
    pub service: String,
    pub tag: [u8; 32],
    pub expires_at: Option<Millis>,
}

/// A report as it came with a token: checked, its values fingerprinted.
#[derive(Debug, Clone)]
pub struct ExternalReport {
    pub token_id: String,
    pub report: Report,
    /// Where it says which of the token's workers it is from.
    pub worker_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub id: i64,
    /// It was here before; nothing was changed.
    pub duplicate: bool,
}

#[derive(Debug, Clone)]
pub struct Announcement {
    pub token_id: String,
    pub service: String,
    pub worker_id: String,
    pub pid: u32,
    pub version: Option<String>,
    pub interval_seconds: u32,
}

impl Writer {
    pub async fn create_worker_token(&self, token: NewWorkerToken) -> Written<()> {
        let at = now();
        self.run(move |db| create_token(db, &token, at)).await
    }

    /// Ends a token for good and forgets its workers. Once more changes nothing.
    pub async fn revoke_worker_token(&self, token_id: &str) -> Written<()> {
        let (token_id, at) = (token_id.to_owned(), now());
        self.run(move |db| revoke_token(db, &token_id, at)).await
    }

    /// Keeps an external worker's report, once, with what follows from it.
    pub async fn accept_report(&self, new: ExternalReport) -> Written<Accepted> {
        let row = ReportRow::of(new)?;
        let at = now();
        self.run(move |db| accept(db, &row, at)).await
    }

    /// True where the worker is new.
    pub async fn announce_worker(&self, new: Announcement) -> Written<bool> {
        let at = now();
        self.run(move |db| announce(db, &new, at)).await
    }
}

/// An external report whose text columns were made on the caller's thread.
struct ReportRow {
    token_id: String,
    worker_id: Option<String>,
    report: Report,
    cookie_keys_json: String,
    meta_json: String,
    idempotency_key: String,
    started: Millis,
    finished: Millis,
    shown: Option<String>,
}

impl ReportRow {
    fn of(new: ExternalReport) -> Written<Self> {
        let ExternalReport { token_id, report, worker_id } = new;
        let moment = |name: &str, text: &str| {
            parse_iso8601(text).ok_or_else(|| WriteError::Invalid(format!("{name} is not ISO 8601")))
        };
        let shown = report.message.as_ref().map(|message| match message.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message.clone(),
        });
        Ok(Self {
            cookie_keys_json: json(&report.cookie_keys)?,
            meta_json: json(&report.meta)?,
            idempotency_key: report.idempotency_key(),
            started: moment("startedAt", &report.started_at)?,
            finished: moment("finishedAt", &report.finished_at)?,
            shown,
            token_id,
            worker_id,
            report,
        })
    }
}

fn create_token(db: &Connection, token: &NewWorkerToken, at: Millis) -> Written<()> {
    db.prepare_cached(
        "INSERT INTO worker_tokens (token_id, name, service, tag, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        token.token_id,
        token.name,
        token.service,
        token.tag,
        millis(at),
        token.expires_at.map(millis),
    ])?;
    let detail = serde_json::json!({
        "tokenId": token.token_id, "name": token.name, "expiresAt": token.expires_at.map(iso8601),
    });
    insert_audit(db, &by_operator("worker-token-created", &token.service, detail), at)
}

fn by_operator(action: &'static str, service: &str, detail: serde_json::Value) -> AuditEntry {
    AuditEntry {
        actor: Actor::Operator,
        action,
        service: Some(service.to_owned()),
        file: None,
        digest: None,
        signer: None,
        detail,
    }
}

fn revoke_token(db: &Connection, token_id: &str, at: Millis) -> Written<()> {
    let found: Option<(String, String, Option<Millis>)> = db
        .prepare_cached("SELECT name, service, revoked_at FROM worker_tokens WHERE token_id = ?1")?
        .query_row([token_id], |row| Ok((row.get(0)?, row.get(1)?, read_optional_millis(row, 2)?)))
        .optional()?;
    let Some((name, service, revoked)) = found else { return Err(not_found("worker token", token_id)) };
    if revoked.is_some() {
        return Ok(());
    }
    db.prepare_cached("UPDATE worker_tokens SET revoked_at = ?2 WHERE token_id = ?1")?
        .execute(params![token_id, millis(at)])?;
    // They can't be heard of any more, and would be shown as silent for ever.
    db.prepare_cached("DELETE FROM external_workers WHERE token_id = ?1")?.execute([token_id])?;
    let detail = serde_json::json!({ "tokenId": token_id, "name": name });
    insert_audit(db, &by_operator("worker-token-revoked", &service, detail), at)
}

/// A token that was revoked or ran out since it was looked at must not write.
fn check_token(db: &Connection, token_id: &str, service: &str, at: Millis) -> Written<()> {
    let usable: Option<bool> = db
        .prepare_cached("SELECT service, expires_at, revoked_at FROM worker_tokens WHERE token_id = ?1")?
        .query_row([token_id], |row| {
            let own: String = row.get(0)?;
            let state = TokenState::of(read_optional_millis(row, 1)?, read_optional_millis(row, 2)?, at);
            Ok(own == service && state == TokenState::Active)
        })
        .optional()?;
    if usable == Some(true) { Ok(()) } else { Err(not_found("active worker token", token_id)) }
}

fn use_token(db: &Connection, token_id: &str, at: Millis) -> Written<()> {
    db.prepare_cached("UPDATE worker_tokens SET last_used_at = ?2 WHERE token_id = ?1")?
        .execute(params![token_id, millis(at)])?;
    Ok(())
}

fn accept(db: &Connection, new: &ReportRow, at: Millis) -> Written<Accepted> {
    let report = &new.report;
    // Two reports of one credential, or of one token that brings new ones, come one after the other.
    db.hold(&format!("worker token {}", new.token_id))?;
    db.hold_credential_named(&report.cookie_id)?;
    check_token(db, &new.token_id, &report.service, at)?;
    let other_service = || WriteError::OtherService { credential_id: report.cookie_id.clone() };

    let first: Option<(i64, String)> = db
        .prepare_cached(
            "SELECT id, service FROM cookie_rotation_reports
             WHERE cookie_id = ?1 AND attempt_number = ?2 AND started_at BETWEEN ?3 AND ?4
               AND idempotency_key = ?5 AND worker_token IS NOT NULL",
        )?
        .query_row(
            params![
                report.cookie_id,
                report.attempt_number,
                iso8601(new.started),
                iso8601(new.started.saturating_add(SAME_START)),
                new.idempotency_key,
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match first {
        Some((_, service)) if service != report.service => return Err(other_service()),
        Some((id, _)) => return Ok(Accepted { id, duplicate: true }),
        None => {}
    }

    let credential: Option<(String, bool)> = db
        .prepare_cached("SELECT service, external FROM credentials WHERE credential_id = ?1")?
        .query_row([&report.cookie_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let external = match credential {
        Some((service, _)) if service != report.service => return Err(other_service()),
        Some((_, external)) => external,
        None => {
            add_external(db, new, at)?;
            true
        }
    };
    let id = insert_report(db, new, at)?;
    update_monitor(db, new, id, external, at)?;
    use_token(db, &new.token_id, at)?;
    // A report says by `meta.workerId` whose it is; a token with one worker needs no word.
    db.prepare_cached(
        "UPDATE external_workers SET last_seen_at = max(last_seen_at, ?4)
         WHERE token_id = ?1 AND service = ?2
           AND (worker_id = ?3
                OR (CAST(?3 AS TEXT) IS NULL AND (SELECT count(*) FROM external_workers WHERE token_id = ?1) = 1))",
    )?
    .execute(params![new.token_id, report.service, new.worker_id, millis(at)])?;
    Ok(Accepted { id, duplicate: false })
}

fn add_external(db: &Connection, new: &ReportRow, at: Millis) -> Written<()> {
    let brought: u32 = db
        .prepare_cached("SELECT count(*) FROM credentials WHERE external_token = ?1")?
        .query_row([&new.token_id], |row| row.get(0))?;
    let allowed = limits::EXTERNAL_CREDENTIALS_PER_TOKEN;
    if brought >= allowed {
        return Err(WriteError::TooMany { what: "credentials", allowed });
    }
    let report = &new.report;
    db.prepare_cached(
        "INSERT INTO credentials (credential_id, profile_id, service, settings_json,
             private_hosts_json, last_generation, rotated_at, created_at, external, external_token)
         VALUES (?1, ?2, ?3, '[]', '[]', 0, ?4, ?4, 1, ?5)",
    )?
    .execute(params![report.cookie_id, report.profile_id, report.service, millis(at), new.token_id])?;
    db.prepare_cached(
        "INSERT INTO cookie_rotation_monitor (cookie_id, service, next_action) VALUES (?1, ?2, 'validate')",
    )?
    .execute(params![report.cookie_id, report.service])?;
    Ok(())
}

fn insert_report(db: &Connection, new: &ReportRow, at: Millis) -> Written<i64> {
    let report = &new.report;
    let insert = "INSERT INTO cookie_rotation_reports (cookie_id, profile_id, service, validate_url,
             cookie_keys_json, status, message, attempt_number, started_at, finished_at,
             created_at, idempotency_key, meta_json, worker_token)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (cookie_id, attempt_number, started_at) DO NOTHING";
    // Another report has this place, with another key: the host's own, or one that was moved.
    for moved in 0..SAME_START {
        let inserted = db.insert(
            insert,
            params![
                report.cookie_id,
                report.profile_id,
                report.service,
                report.validate_url,
                new.cookie_keys_json,
                report.status.as_str(),
                report.message,
                report.attempt_number,
                iso8601(new.started.saturating_add(moved)),
                report.finished_at,
                iso8601(at),
                new.idempotency_key,
                new.meta_json,
                new.token_id,
            ],
        )?;
        if let Some(id) = inserted {
            return Ok(id);
        }
    }
    Err(WriteError::Invalid(String::from("too many reports with this attemptNumber and startedAt")))
}

fn update_monitor(db: &Connection, new: &ReportRow, id: i64, external: bool, at: Millis) -> Written<()> {
    let report = &new.report;
    // A worker's clock that runs ahead must not hide what comes after.
    let finished = new.finished.min(at);
    // The host's own credentials keep their schedule, and the failures that it goes by.
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor
         SET last_status = ?2, last_message = ?3, last_attempt_at = ?4, last_report_id = ?5,
             consecutive_failures = CASE WHEN NOT ?6 THEN consecutive_failures
                                         WHEN ?2 = 'success' THEN 0
                                         ELSE consecutive_failures + 1 END
         WHERE cookie_id = ?1 AND coalesce(last_attempt_at, 0) <= ?4",
    )?
    .execute(params![
        report.cookie_id,
        report.status.as_str(),
        new.shown,
        millis(finished),
        id,
        external,
    ])?;
    if report.status == crate::report::Status::Success {
        db.prepare_cached(
            "UPDATE cookie_rotation_monitor SET last_success_at = max(coalesce(last_success_at, 0), ?2)
             WHERE cookie_id = ?1",
        )?
        .execute(params![report.cookie_id, millis(finished)])?;
    }
    Ok(())
}

fn announce(db: &Connection, new: &Announcement, at: Millis) -> Written<bool> {
    check_token(db, &new.token_id, &new.service, at)?;
    let known: bool = db
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM external_workers
                            WHERE service = ?1 AND worker_id = ?2 AND token_id = ?3)",
        )?
        .query_row(params![new.service, new.worker_id, new.token_id], |row| row.get(0))?;
    if !known {
        make_room(db, &new.token_id, at)?;
    }
    // A worker that comes with another token of its service is the same one.
    db.prepare_cached(
        "INSERT INTO external_workers (service, worker_id, token_id, pid, version,
             interval_seconds, announced_at, last_seen_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
         ON CONFLICT (service, worker_id) DO UPDATE SET
             token_id = excluded.token_id,
             pid = excluded.pid,
             version = excluded.version,
             interval_seconds = excluded.interval_seconds,
             announced_at = excluded.announced_at,
             last_seen_at = excluded.last_seen_at",
    )?
    .execute(params![
        new.service,
        new.worker_id,
        new.token_id,
        new.pid,
        new.version,
        new.interval_seconds,
        millis(at),
    ])?;
    use_token(db, &new.token_id, at)?;
    Ok(!known)
}

/// Where a token has all the workers it may, the one silent for longest makes room.
fn make_room(db: &Connection, token_id: &str, at: Millis) -> Written<()> {
    let allowed = limits::EXTERNAL_WORKERS_PER_TOKEN;
    let workers: u32 = db
        .prepare_cached("SELECT count(*) FROM external_workers WHERE token_id = ?1")?
        .query_row([token_id], |row| row.get(0))?;
    if workers < allowed {
        return Ok(());
    }
    let oldest: Option<(String, String, Millis, u32)> = db
        .prepare_cached(
            "SELECT service, worker_id, last_seen_at, interval_seconds FROM external_workers
             WHERE token_id = ?1 ORDER BY last_seen_at + interval_seconds * 1000 LIMIT 1",
        )?
        .query_row([token_id], |row| Ok((row.get(0)?, row.get(1)?, read_millis(row, 2)?, row.get(3)?)))
        .optional()?;
    match oldest {
        Some((service, worker_id, last_seen, interval))
            if Presence::of(last_seen, interval, at) == Presence::Silent =>
        {
            db.prepare_cached("DELETE FROM external_workers WHERE service = ?1 AND worker_id = ?2")?
                .execute([service, worker_id])?;
            Ok(())
        }
        _ => Err(WriteError::TooMany { what: "workers", allowed }),
    }
}
