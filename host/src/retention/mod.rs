//! Which reports end, and how: chosen on a read-only connection, written to the archive first
//! where there is one, then deleted through the one writer, so few at a time that no other write
//! waits noticeably behind them. It never deletes a credential's last report nor its last
//! successful one, and never a row that the archive didn't take.

mod archive;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::crash;
use crate::credential::Millis;
use crate::db::queries::{OldReport, ReadError, Reader, ReportRow};
use crate::db::writer::{WriteError, Writer};
use crate::db::{DbError, Store};
use archive::Archive;

/// Rows of one command. Each is deleted from three B-trees, two of them at a place of its own,
/// so a thousand change some three thousand pages; how many it may be is found out by trying.
const FEWEST: u32 = 16;
const MOST: u32 = 1_024;
const FIRST: u32 = 64;

/// How long one command may take, commit included: far below the 50 ms that a write may wait.
const COMMAND: Duration = Duration::from_millis(10);

/// Credentials looked at in one go while nothing of them is over the count.
const LOOKED_AT: u32 = 64;

#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(transparent)]
    Open(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(
        "the archive in {} can't be written, so no report is deleted: {source}; hint: look at its permissions and the disk's free space", folder.display()
    )]
    Archive { folder: PathBuf, source: std::io::Error },
    #[error("a report is not in the database any more; hint: try again")]
    Vanished,
    #[error("the search for old reports ended badly")]
    Broken,
}

/// What ends. Without any of the two limits nothing does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Whatever was stored before this moment.
    pub stored_before: Option<Millis>,
    /// Whatever is past so many newest of its credential; at least 1.
    pub keep: Option<u32>,
    /// Of this credential alone.
    pub credential: Option<String>,
}

/// How far a walk over the reports came. First goes what is old, then, credential by credential,
/// what is too many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Every old report up to this id was seen.
    Old(i64),
    /// Every credential up to this one was seen.
    Past(String),
    /// Of this credential, every report up to this id.
    Within(String, i64),
    End,
}

impl Position {
    pub const START: Self = Self::Old(0);
}

/// One step of the walk: what ends, which may be nothing, and where it goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub ending: Vec<OldReport>,
    /// Credentials whose count was looked at.
    pub looked_at: u32,
    pub next: Position,
}

/// The last and the last successful report of each credential that was met.
pub type Lasting = HashMap<String, Vec<i64>>;

/// The next reports that end, `limit` at most, oldest first. Every report is named once on the
/// way from the start to the end, whether or not it is deleted in between.
///
/// # Errors
/// The database's.
pub fn step(
    reader: &Reader,
    rules: &Rules,
    lasting: &mut Lasting,
    from: Position,
    limit: u32,
) -> Result<Step, ReadError> {
    let old_before = match rules.stored_before {
        Some(moment) => Some((reader.first_report_since(moment)?, moment)),
        None => None,
    };
    let mut looked_at = 0;
    let mut position = from;
    loop {
        let (mut found, next) = match position {
            Position::Old(after) => {
                let found = match (old_before, &rules.credential) {
                    (None, _) => Vec::new(),
                    (Some((before, moment)), None) => reader.old_reports(after, before, moment, limit)?,
                    (Some((before, moment)), Some(id)) => {
                        reader.old_reports_of(id, after, before, moment, limit)?
                    }
                };
                let next = match found.last() {
                    Some(last) if found.len() == limit as usize => Position::Old(last.id),
                    _ => match &rules.credential {
                        _ if rules.keep.is_none() => Position::End,
                        Some(id) => Position::Within(id.clone(), 0),
                        None => Position::Past(String::new()),
                    },
                };
                (found, next)
            }
            Position::Past(credential) => match reader.next_with_reports(&credential)? {
                Some(next) => (Vec::new(), Position::Within(next, 0)),
                None => (Vec::new(), Position::End),
            },
            Position::Within(credential, after) => {
                looked_at += 1;
                let found = match reader.report_after_newest(&credential, rules.keep.unwrap_or(u32::MAX))? {
                    Some(last) => reader.old_reports_of(&credential, after, last + 1, Millis::MAX, limit)?,
                    None => Vec::new(),
                };
                let next = match found.last() {
                    Some(last) if found.len() == limit as usize => Position::Within(credential, last.id),
                    _ if rules.credential.is_some() => Position::End,
                    _ => Position::Past(credential),
                };
                // What is old was named before.
                let found = match old_before {
                    Some((before, moment)) => {
                        let moment = crate::report::iso8601(moment);
                        let is_old = |report: &OldReport| report.id < before && report.created_at < moment;
                        found.into_iter().filter(|report| !is_old(report)).collect()
                    }
                    None => found,
                };
                (found, next)
            }
            Position::End => return Ok(Step { ending: Vec::new(), looked_at, next: Position::End }),
        };
        for report in &found {
            if !lasting.contains_key(&report.credential_id) {
                lasting.insert(report.credential_id.clone(), reader.lasting_reports(&report.credential_id)?);
            }
        }
        found.retain(|report| !lasting[&report.credential_id].contains(&report.id));
        if !found.is_empty() || looked_at >= LOOKED_AT || next == Position::End {
            return Ok(Step { ending: found, looked_at, next });
        }
        position = next;
    }
}

/// What would end, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    pub reports: u64,
    pub credentials: u64,
    /// When the first and the last of them were stored.
    pub oldest: Option<String>,
    pub newest: Option<String>,
}

/// Walks the whole way and changes nothing.
///
/// # Errors
/// The database's.
pub fn survey(reader: &Reader, rules: &Rules) -> Result<Survey, ReadError> {
    let (mut survey, mut lasting) = (Survey::default(), Lasting::new());
    let mut credentials = std::collections::HashSet::new();
    let mut position = Position::START;
    while position != Position::End {
        let step = step(reader, rules, &mut lasting, position, MOST)?;
        for report in step.ending {
            survey.reports += 1;
            if survey.oldest.as_ref().is_none_or(|oldest| report.created_at < *oldest) {
                survey.oldest = Some(report.created_at.clone());
            }
            if survey.newest.as_ref().is_none_or(|newest| report.created_at > *newest) {
                survey.newest = Some(report.created_at);
            }
            credentials.insert(report.credential_id);
        }
        position = step.next;
    }
    survey.credentials = credentials.len() as u64;
    Ok(survey)
}

/// What one call does at most.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub time: Duration,
    /// Credentials whose count is looked at.
    pub credentials: u32,
}

/// How far a call came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub reports: u64,
    pub next: Position,
}

/// Deletes what ends. One call at a time: two would name the same reports.
#[derive(Debug)]
pub struct Retention {
    database: Store,
    writer: Writer,
    archive: Mutex<Option<Archive>>,
}

impl Retention {
    pub fn new(database: impl Into<Store>, writer: Writer) -> Self {
        Self { database: database.into(), writer, archive: Mutex::new(None) }
    }

    /// Deletes from a position on until the end, or until the effort is spent.
    ///
    /// # Errors
    /// Where the database can't be read or written, or the archive can't be written. Nothing
    /// that wasn't archived is deleted.
    pub async fn prune(
        &self,
        rules: &Rules,
        folder: Option<PathBuf>,
        from: Position,
        effort: Effort,
    ) -> Result<Pruned, RetentionError> {
        let mut archive = self.archive.lock().await;
        if archive.as_ref().map(Archive::folder) != folder.as_deref() {
            *archive = folder.map(Archive::new);
        }
        // Best effort: without it the deletions are done all the same.
        let _ = self.writer.checkpoint_often(true).await;
        let done = self.prune_with(&mut archive, rules, from, effort).await;
        let _ = self.writer.checkpoint_often(false).await;
        done
    }

    async fn prune_with(
        &self,
        archive: &mut Option<Archive>,
        rules: &Rules,
        from: Position,
        effort: Effort,
    ) -> Result<Pruned, RetentionError> {
        let until = Instant::now() + effort.time;
        let mut search = Search {
            reader: Reader::open(&self.database)?,
            rules: rules.clone(),
            lasting: Lasting::new(),
            archive: archive.take(),
            position: from,
        };
        let (mut reports, mut looked_at, mut rows) = (0, 0, FIRST);
        loop {
            // Reading, compressing and waiting for the archive's disk: none of it on the threads
            // that serve everybody.
            let (back, found) = tokio::task::spawn_blocking(move || {
                let found = search.next(rows);
                (search, found)
            })
            .await
            .map_err(|_| RetentionError::Broken)?;
            search = back;
            let done = async {
                let (ending, seen) = found?;
                looked_at += seen;
                if ending.is_empty() {
                    return Ok(0);
                }
                crash::point("prune.archived");
                let started = Instant::now();
                let deleted = self.writer.delete_reports(ending).await?;
                let took = started.elapsed();
                rows = paced(rows, took);
                // Half of the writer's time is everybody else's, whatever this one takes.
                tokio::time::sleep(took.max(Duration::from_millis(1))).await;
                Ok(deleted as u64)
            }
            .await;
            match done {
                Ok(deleted) => reports += deleted,
                Err(error) => {
                    *archive = search.archive;
                    return Err(error);
                }
            }
            let spent = Instant::now() >= until || looked_at >= effort.credentials;
            if spent || search.position == Position::End {
                *archive = search.archive;
                return Ok(Pruned { reports, next: search.position });
            }
        }
    }
}

/// How many rows the next command has, after one that took so long.
fn paced(rows: u32, took: Duration) -> u32 {
    if took > COMMAND {
        (rows / 2).max(FEWEST)
    } else if took < COMMAND / 2 {
        (rows + rows / 4).min(MOST)
    } else {
        rows
    }
}

/// Everything that blocks.
struct Search {
    reader: Reader,
    rules: Rules,
    lasting: Lasting,
    archive: Option<Archive>,
    position: Position,
}

impl Search {
    /// The next ids to delete, archived and in memory by then, and how many credentials were looked at.
    fn next(&mut self, rows: u32) -> Result<(Vec<i64>, u32), RetentionError> {
        let step = step(&self.reader, &self.rules, &mut self.lasting, self.position.clone(), rows)?;
        let ids: Vec<i64> = step.ending.iter().map(|report| report.id).collect();
        for id in &ids {
            self.reader.warm_report(*id)?;
        }
        if let Some(archive) = &mut self.archive
            && !ids.is_empty()
        {
            let whole = |id: &i64| self.reader.report(*id)?.ok_or(RetentionError::Vanished);
            let whole: Vec<ReportRow> = ids.iter().map(whole).collect::<Result<_, _>>()?;
            archive
                .append(&whole)
                .map_err(|source| RetentionError::Archive { folder: archive.folder().to_owned(), source })?;
        }
        self.position = step.next;
        Ok((ids, step.looked_at))
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
