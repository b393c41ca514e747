//! Copies of the database: one for a backup while everything goes on, one before its schema is
//! changed, and what is done to one that was brought back. A copy is read in one transaction, so
//! it is one moment's; it holds no lock that a writer waits for.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::OpenFlags;
use rusqlite::backup::{Backup, StepResult};

use super::column::{millis, read_millis};
use super::commands::insert_audit;
use super::queries::{ReadError, Reader};
use super::sql::{self, Connection, Optional as _, params};
use super::writer::{WriteError, Writer};
use super::{Actor, AuditEntry, DbError, connect, migrations};
use crate::credential::{Millis, now};
use crate::limits::SCHEMA_COPIES;

/// Pages of one step, 4 MiB: a copy of gigabytes shows how far it is, and ends soon when its
/// reader has gone.
const STEP: std::ffi::c_int = 1_024;

/// What two hosts can't have in common: attempts that the host of the backup may have made since.
/// Each takes a second at least, for no interval is shorter, and a person asks for some more.
const ASKED_FOR_BY_HAND: u64 = 1_000;

/// How far a copy is, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub done: u64,
    pub of: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{} can't be made", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the database can't be copied; hint: look at the free space of the home's disk")]
    Copy(#[source] rusqlite::Error),
    #[error("the database of the backup is damaged: {0}; hint: use another copy of the backup")]
    Damaged(String),
    #[error(
        "the store is a PostgreSQL server, and this copies the file of a home; hint: pg_dump, or its own continuous archiving, makes backups of it"
    )]
    Server,
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Reader {
    /// Copies the database as it is at this moment into a new file, private to its owner.
    ///
    /// # Errors
    /// Where the file is there already or can't be made, or reading fails.
    pub fn copy_to(&self, path: &Path, tell: &mut dyn FnMut(Copied)) -> Result<(), CopyError> {
        let file = self.connection().file().ok_or(CopyError::Server)?;
        copy(file, path, tell)
    }
}

fn copy(from: &rusqlite::Connection, path: &Path, tell: &mut dyn FnMut(Copied)) -> Result<(), CopyError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| CopyError::Make { path: path.to_owned(), source })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut into = connect(path, flags, None)?;
    let copied = (|| {
        // Nobody reads it before it is whole, and whoever keeps it syncs it.
        into.execute_batch("PRAGMA synchronous = OFF")?;
        // Held through all steps: a copy whose source changes between two of them begins anew, and
        // under load would never end.
        from.execute_batch("BEGIN")?;
        from.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let backup = Backup::new(from, &mut into)?;
        loop {
            let step = backup.step(STEP)?;
            let progress = backup.progress();
            let number = |pages: std::ffi::c_int| u64::try_from(pages).unwrap_or(0);
            let of = number(progress.pagecount);
            tell(Copied { done: of - number(progress.remaining).min(of), of });
            match step {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                // Another program holds the source or the copy for a moment.
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    })();
    // Whatever came of it: a read transaction that stays open makes the log grow.
    let ended = if from.is_autocommit() { Ok(()) } else { from.execute_batch("ROLLBACK") };
    copied.and(ended).map_err(CopyError::Copy)
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holds {
    pub schema: u32,
    pub credentials: u64,
    pub reports: u64,
    pub marker: Option<Vec<u8>>,
    /// The plugins that are accepted or wait.
    pub digests: Vec<String>,
}

/// Looks a copy through, every page of it where `thoroughly`. Nothing is changed, and it may be of
/// an older schema.
///
/// # Errors
/// A foreign or newer file, or one that is damaged.
pub fn look_through(path: &Path, thoroughly: bool) -> Result<Holds, CopyError> {
    // `immutable`: it is nobody's but the caller's, and making a log's index beside it would be a
    // change.
    let mut name = url::Url::from_file_path(path).map_err(|()| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no absolute path");
        CopyError::Make { path: path.to_owned(), source }
    })?;
    name.set_query(Some("immutable=1"));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::Sqlite(connect(Path::new(name.as_str()), flags, None)?);
    let store = path.display().to_string();
    let schema = migrations::check_ours(&db, &store)?;
    let known = migrations::current();
    if schema > known {
        return Err(DbError::Newer { store, found: schema, known }.into());
    }
    if schema == 0 {
        return Err(CopyError::Damaged(String::from("it is empty")));
    }
    let damaged = |error: sql::Error| CopyError::Damaged(error.to_string());
    if thoroughly {
        let found: String =
            db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(damaged)?;
        if found != "ok" {
            return Err(CopyError::Damaged(found));
        }
    }
    let count = |sql: &str| db.query_row(sql, [], |row| read_millis(row, 0)).map_err(damaged);
    let credentials = count("SELECT count(*) FROM credentials")?;
    let reports = count("SELECT count(*) FROM cookie_rotation_reports")?;
    let marker = db
        .query_row("SELECT value FROM installation WHERE key = 'vault_marker'", [], |row| row.get(0))
        .optional()
        .map_err(damaged)?;
    let digests = db
        .prepare_cached(
            "SELECT plugin_digest FROM cookie_rotation_providers
             UNION SELECT pending_digest FROM cookie_rotation_providers WHERE pending_digest IS NOT NULL",
        )
        .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
        .map_err(damaged)?;
    Ok(Holds { schema, credentials, reports, marker, digests })
}

/// Keeps the database as it is before its schema changes, beside it and named by its version. The
/// oldest of such copies go.
pub(super) fn keep_before_migrating(
    db: &rusqlite::Connection,
    path: &Path,
    schema: u32,
) -> Result<(), DbError> {
    let kept = kept_name(path, schema);
    let unfinished = kept.with_extension("part");
    let io = |source| DbError::Io { path: kept.clone(), source };
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    copy(db, &unfinished, &mut |_| {}).map_err(|error| match error {
        CopyError::Make { source, .. } => io(source),
        CopyError::Copy(source) => DbError::at(&kept.display().to_string(), source),
        CopyError::Db(error) => error,
        error => io(io::Error::other(error.to_string())),
    })?;
    fs::File::open(&unfinished)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, &kept))
        .map_err(io)?;
    tracing::info!(copy = %kept.display(), schema, "the database was copied before its schema is changed");
    let mut copies: Vec<(u32, PathBuf)> = (0..migrations::current())
        .map(|of| (of, kept_name(path, of)))
        .filter(|(_, at)| at.exists())
        .collect();
    copies.sort_by_key(|(of, _)| std::cmp::Reverse(*of));
    for (_, old) in copies.into_iter().skip(SCHEMA_COPIES) {
        // Best effort: one more than wished costs nothing but space.
        let _ = fs::remove_file(old);
    }
    Ok(())
}

/// `keywheel.db.schema-6`.
fn kept_name(path: &Path, schema: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{schema}"));
    PathBuf::from(name)
}

/// How an old state comes back.
#[derive(Debug, Clone, Copy)]
pub struct Restored {
    pub backup_of: Millis,
    /// Nothing ran since, so nothing can have been spent: the home only moves.
    pub nothing_ran_since: bool,
}

impl Writer {
    /// Puts what a backup brought back in doubt, and begins its attempts anew under numbers that
    /// no report has. Returns how many credentials it is about.
    ///
    /// # Errors
    /// Where the database can't be written.
    pub async fn begin_restored(&self, restored: Restored) -> Result<usize, WriteError> {
        let at = now();
        self.run(move |db| begin_restored(db, restored, at)).await
    }
}

pub(super) fn begin_restored(db: &Connection, restored: Restored, at: Millis) -> Result<usize, WriteError> {
    let leap = match restored.nothing_ran_since {
        true => 0,
        false => ASKED_FOR_BY_HAND + at.saturating_sub(restored.backup_of) / 1_000,
    };
    let credentials = db.execute(
        "UPDATE credentials
         SET attempt_number = attempt_number + ?1, fence = fence + ?1,
             doubtful_generation = CASE WHEN ?2 THEN current_generation ELSE doubtful_generation END,
             restored_generation = CASE WHEN ?2 THEN current_generation ELSE restored_generation END
         WHERE external = 0",
        params![i64::try_from(leap).unwrap_or(i64::MAX), !restored.nothing_ran_since],
    )?;
    if !restored.nothing_ran_since {
        // An attempt that was open then ended on the old host, with a report of its own. Here it is
        // taken up under another number, so that nobody has two reports of one attempt.
        db.execute(
            "UPDATE generations SET attempt_number = c.attempt_number
             FROM journal j JOIN credentials c ON c.id = j.credential
             WHERE generations.credential = c.id AND generations.generation = c.pending_generation
               AND generations.attempt_number = j.attempt_number",
            [],
        )?;
        db.execute(
            "UPDATE journal SET attempt_number = c.attempt_number, fence = c.fence, started_at = ?1
             FROM credentials c WHERE c.id = journal.credential",
            [millis(at)],
        )?;
        db.execute(
            "UPDATE cookie_rotation_monitor
             SET next_action = 'validate', next_reason = 'it was restored from a backup',
                 next_due_at = CASE c.paused WHEN 0 THEN CAST(?1 AS bigint) END, asked_until = NULL,
                 -- Until it is looked at nothing is known of it.
                 last_status = NULL, last_verdict = NULL, last_message = NULL
             FROM credentials c
             WHERE c.credential_id = cookie_id AND c.external = 0",
            [millis(at)],
        )?;
    }
    let detail = serde_json::json!({
        "backupOf": crate::report::iso8601(restored.backup_of),
        "credentials": credentials,
        "nothingRanSince": restored.nothing_ran_since,
        "attemptNumbersSkipped": leap,
    });
    let note = AuditEntry {
        actor: Actor::Operator,
        action: "restored",
        service: None,
        file: None,
        digest: None,
        signer: None,
        detail,
    };
    insert_audit(db, &note, at)?;
    Ok(credentials)
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
