//! Counts over all credentials, for the metrics: one pass over the monitor, which takes time at a
//! million rows, so who asks keeps the answer for a while. Reads alone, and names no credential
//! unless it is asked to.

use std::collections::BTreeMap;

use super::sql::{self, Row};

use super::column::read_optional_millis;
use super::queries::{Found, Reader};
use crate::credential::Millis;

const DAY: Millis = 86_400_000;
const WINDOWS: [Millis; 3] = [DAY, 7 * DAY, 14 * DAY];

/// How a credential stands, by its last report. `pending`: it has none.
pub const STATES: [&str; 6] = ["valid", "invalid", "unknown", "needs-human", "failed", "pending"];

/// The credentials of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceCensus {
    pub service: String,
    /// As `STATES`.
    pub states: [u64; STATES.len()],
    /// With a failure behind them, and the most of one.
    pub failing: u64,
    pub most_failures: u64,
    /// With a due time at all; those past it, whom nobody has claimed.
    pub scheduled: u64,
    pub due: u64,
    pub expired: u64,
    /// Within a day, a week and two weeks, each with those before it.
    pub expiring: [u64; 3],
    /// The earliest that is still to come.
    pub next_expiry: Option<Millis>,
}

/// One credential, for operators who want a series of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialCensus {
    pub credential_id: String,
    pub service: String,
    pub failures: u64,
    pub last_success: Option<Millis>,
    pub expires: Option<Millis>,
    pub is_valid: bool,
}

pub(super) const FIRST_DUE: &str = "
    SELECT next_due_at FROM cookie_rotation_monitor INDEXED BY monitor_by_due
    WHERE service = ?1 AND next_due_at IS NOT NULL ORDER BY next_due_at LIMIT 1";

impl Reader {
    /// Every service that has credentials.
    pub fn census(&self, now: Millis) -> Found<Vec<ServiceCensus>> {
        // Row by row in the table's own order, and counted here: to group them SQLite sorts a million
        // rows, which took twenty times as long. The monitor alone, for joining costs as much.
        let mut select = self.connection().prepare_cached(
            "SELECT service, last_status, last_verdict, consecutive_failures, next_due_at, expires_at
             FROM cookie_rotation_monitor NOT INDEXED",
        )?;
        let mut rows = select.query([])?;
        let mut services: BTreeMap<String, ServiceCensus> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            add(&mut services, row, now)?;
        }
        let named = |(service, of)| ServiceCensus { service, ..of };
        Ok(services.into_iter().map(named).collect())
    }

    /// When the first credential of a service is due that isn't claimed: one step in the index of
    /// the queue.
    pub fn first_due(&self, service: &str) -> Found<Option<Millis>> {
        let found: Option<Option<Millis>> =
            self.one(FIRST_DUE, [service], |row| read_optional_millis(row, 0))?;
        Ok(found.flatten())
    }

    /// As many credentials as asked for, by name, and whether there are more.
    pub fn each_credential(&self, at_most: u32) -> Found<(Vec<CredentialCensus>, bool)> {
        let mut rows = self.all(
            "SELECT cookie_id, service, consecutive_failures, last_success_at, expires_at, last_status
             FROM cookie_rotation_monitor ORDER BY cookie_id LIMIT ?1",
            [at_most.saturating_add(1)],
            |row| {
                Ok(CredentialCensus {
                    credential_id: row.get(0)?,
                    service: row.get(1)?,
                    failures: row.get::<i64>(2)?.unsigned_abs(),
                    last_success: read_optional_millis(row, 3)?,
                    expires: read_optional_millis(row, 4)?,
                    is_valid: row.get::<Option<String>>(5)?.as_deref() == Some("success"),
                })
            },
        )?;
        let more = rows.len() > at_most as usize;
        rows.truncate(at_most as usize);
        Ok((rows, more))
    }

    /// Bytes of the database's file, and of its log; a server's log is its own business.
    pub fn size(&self) -> Found<(u64, u64)> {
        let Some(file) = self.connection().file() else {
            let size =
                self.connection()
                    .query_row("SELECT pg_database_size(current_database())", [], |row| row.get::<i64>(0))?;
            return Ok((size.unsigned_abs(), 0));
        };
        let pages: i64 = self.connection().query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let page: i64 = self.connection().query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let log = file.path().map(|path| format!("{path}-wal"));
        let log = log.and_then(|log| std::fs::metadata(log).ok()).map_or(0, |log| log.len());
        Ok((pages.unsigned_abs() * page.unsigned_abs(), log))
    }
}

/// Counts one row of the monitor.
fn add(services: &mut BTreeMap<String, ServiceCensus>, row: Row<'_>, now: Millis) -> sql::Result<()> {
    let name = row.get::<&str>(0)?;
    let of = match services.get_mut(name) {
        Some(of) => of,
        None => services.entry(name.to_owned()).or_default(),
    };
    let verdict = row.get::<Option<&str>>(2)?;
    let state = match row.get::<Option<&str>>(1)? {
        Some("success") => 0,
        Some("validation_failed") => 1,
        Some("unreachable") => 2,
        Some(_) if verdict == Some("needs-human") => 3,
        Some(_) => 4,
        None => 5,
    };
    of.states[state] += 1;
    let failures = row.get::<i64>(3)?.unsigned_abs();
    of.failing += u64::from(failures > 0);
    of.most_failures = of.most_failures.max(failures);
    if let Some(due) = read_optional_millis(row, 4)? {
        of.scheduled += 1;
        of.due += u64::from(due <= now);
    }
    let Some(expires) = read_optional_millis(row, 5)? else { return Ok(()) };
    if expires <= now {
        of.expired += 1;
        return Ok(());
    }
    for (within, window) in of.expiring.iter_mut().zip(WINDOWS) {
        *within += u64::from(expires <= now + window);
    }
    of.next_expiry = Some(of.next_expiry.map_or(expires, |earliest| earliest.min(expires)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, add_rows as add};
    use super::*;

    const NOW: Millis = 1_700_000_000_000;

    #[test]
    fn the_census_counts_states_due_times_and_expiries_by_service() {
        let scratch = Scratch::new();
        let db = scratch.connection();
        let at = |ahead: i64| NOW as i64 + ahead;
        let day = DAY as i64;
        add(
            &db,
            "a1",
            "a",
            &format!("last_status = 'success', next_due_at = {}, expires_at = {}", at(5), at(day)),
        );
        add(
            &db,
            "a2",
            "a",
            &format!("last_status = 'success', next_due_at = {}, expires_at = {}", at(0), at(8 * day)),
        );
        add(
            &db,
            "a3",
            "a",
            &format!(
                "last_status = 'failed', last_verdict = 'needs-human', consecutive_failures = 7, expires_at = {}",
                at(0)
            ),
        );
        add(&db, "a4", "a", "last_status = 'failed', last_verdict = 'unknown', consecutive_failures = 2");
        add(&db, "b1", "b", "");
        add(
            &db,
            "b2",
            "b",
            "last_status = 'unreachable', last_verdict = 'unknown', consecutive_failures = 1",
        );
        add(&db, "b3", "b", "last_status = 'validation_failed', last_verdict = 'invalid'");
        let reader = scratch.reader();
        let expected = [
            ServiceCensus {
                service: "a".into(),
                states: [2, 0, 0, 1, 1, 0],
                failing: 2,
                most_failures: 7,
                scheduled: 2,
                due: 1,
                expired: 1,
                expiring: [1, 1, 2],
                next_expiry: Some(NOW + DAY),
            },
            ServiceCensus {
                service: "b".into(),
                states: [0, 1, 1, 0, 0, 1],
                failing: 1,
                most_failures: 1,
                ..ServiceCensus::default()
            },
        ];
        assert_eq!(reader.census(NOW).unwrap(), expected);
        assert_eq!(reader.first_due("a").unwrap(), Some(NOW));
        assert_eq!(reader.first_due("b").unwrap(), None);
        let (each, more) = reader.each_credential(2).unwrap();
        assert!(more && each.len() == 2 && each[0].is_valid, "{each:?}");
        assert!(reader.size().unwrap().0 > 4_096);
    }
}
