//! What the dashboard reads. Every query but one here is bounded whatever the size of the
//! database: it walks an index, and stops after so many rows. It never writes.

use super::sql::{Optional as _, params};

use super::Actor;
use super::column::{millis, read_json, read_millis, read_word};
use super::queries::{AuditRow, CREDENTIAL_COLUMNS, CredentialRow, Found, Reader, credential_from};
use crate::credential::Millis;
use crate::report::Status;

/// Rows that one page of a list looks at before it says how to go on: some ten milliseconds.
const LOOKED_AT: usize = 4_000;

/// Rows past which nobody pages through what fails.
pub const SKIPPED_AT_MOST: u32 = 2_000;

/// Of the next to expire so many are looked at: most of them renew themselves.
const EXPIRING_LOOKED_AT: u32 = 300;

/// Past this a number says no more than "many".
pub const COUNTED_AT_MOST: u32 = 1_000;

/// Rows of what is in trouble that one page looks at.
const TROUBLED_LOOKED_AT: u32 = 3_000;

/// As in the index of that name.
const WANTS_PERSON: &str = "m.consecutive_failures > 0
    AND (m.last_verdict IN ('needs-human', 'invalid') OR m.last_status = 'validation_failed')";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A person has to act.
    Person,
    /// The last attempts failed, and are made again without anybody.
    Failing,
}

impl Trouble {
    /// The index, what it holds, and which rows of it are meant.
    const fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Person => ("monitor_wants_person", WANTS_PERSON, "1 = 1"),
            Self::Failing => (
                "monitor_failing",
                "m.consecutive_failures > 0",
                "NOT (coalesce(w.last_verdict, '') IN ('needs-human', 'invalid')
                      OR coalesce(w.last_status, '') = 'validation_failed')",
            ),
        }
    }
}

/// Which credentials a list shows, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only ids after this one.
    pub after: String,
    pub service: Option<String>,
    /// In its id, account or profile; without regard to case.
    pub text: Option<String>,
    pub only: Only,
    pub limit: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Only {
    #[default]
    All,
    /// Without those that fail.
    Sound,
    Paused,
}

#[derive(Debug, Default)]
pub struct Listed {
    pub rows: Vec<CredentialRow>,
    /// Where the next page begins. There may be nothing left on it.
    pub next: Option<String>,
}

/// How many credentials a service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub service: String,
    pub credentials: u64,
    /// All that fail, and those of them that want a person; both counted up to
    /// `COUNTED_AT_MOST` over all services.
    pub failing: u64,
    pub person: u64,
}

/// One attempt in a row of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub id: i64,
    pub status: Status,
}

impl Reader {
    /// Credentials in trouble, whatever is for longest first.
    pub fn troubled(
        &self,
        trouble: Trouble,
        service: Option<&str>,
        skip: u32,
        limit: u32,
    ) -> Found<Vec<CredentialRow>> {
        let (index, holds, meant) = trouble.parts();
        // The ids first: what is skipped isn't looked up.
        self.all(
            &format!(
                "{CREDENTIAL_COLUMNS}
                 FROM (SELECT w.cookie_id AS id
                       FROM (SELECT m.cookie_id, m.service, m.last_verdict, m.last_status, m.last_success_at
                             FROM cookie_rotation_monitor m INDEXED BY {index}
                             WHERE {holds} ORDER BY m.last_success_at NULLS FIRST LIMIT {TROUBLED_LOOKED_AT}) w
                       WHERE (CAST(?1 AS TEXT) IS NULL OR w.service = ?1) AND {meant}
                       ORDER BY w.last_success_at NULLS FIRST LIMIT ?3 OFFSET ?2) found
                 CROSS JOIN cookie_rotation_monitor m ON m.cookie_id = found.id
                 CROSS JOIN credentials c ON c.credential_id = m.cookie_id
                 LEFT JOIN journal j ON j.credential = c.id
                 LEFT JOIN cookie_rotation_providers p ON p.service = c.service
                 ORDER BY m.last_success_at NULLS FIRST, m.cookie_id"
            ),
            params![service, skip.min(SKIPPED_AT_MOST), limit],
            credential_from,
        )
    }

    /// How many want a person, and how many fail beside them, both counted up to
    /// `COUNTED_AT_MOST`.
    pub fn count_troubled(&self) -> Found<(u32, u32)> {
        let count = |index: &str, holds: &str, most: u32| -> Found<u32> {
            let sql = format!(
                "SELECT count(*) FROM (SELECT 1 FROM cookie_rotation_monitor m INDEXED BY {index}
                                       WHERE {holds} LIMIT {most}) counted"
            );
            Ok(self.db.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
        };
        let person = count("monitor_wants_person", WANTS_PERSON, COUNTED_AT_MOST)?;
        let all = count("monitor_failing", "m.consecutive_failures > 0", 2 * COUNTED_AT_MOST)?;
        Ok((person, (all - person).min(COUNTED_AT_MOST)))
    }

    /// Sound credentials that end before a moment, where nothing is planned that puts it off, the
    /// first to end first; `rotates` are the services whose provider can rotate. It looks at so
    /// many of those that end first and no more.
    pub fn ending(&self, before: Millis, rotates: &[String]) -> Found<Vec<CredentialRow>> {
        let rows = self.all(
            &format!(
                "{CREDENTIAL_COLUMNS}
                 FROM (SELECT m.cookie_id AS id
                       FROM cookie_rotation_monitor m INDEXED BY monitor_by_expiry
                       WHERE m.expires_at IS NOT NULL AND m.expires_at < ?1
                       ORDER BY m.expires_at LIMIT {EXPIRING_LOOKED_AT}) found
                 CROSS JOIN cookie_rotation_monitor m ON m.cookie_id = found.id
                 CROSS JOIN credentials c ON c.credential_id = m.cookie_id
                 LEFT JOIN journal j ON j.credential = c.id
                 LEFT JOIN cookie_rotation_providers p ON p.service = c.service
                 WHERE m.consecutive_failures = 0
                 ORDER BY m.expires_at"
            ),
            params![millis(before)],
            credential_from,
        )?;
        let nothing_planned = |row: &CredentialRow| {
            let Some(expires) = row.monitor.expires_at else { return false };
            row.external
                || row.paused
                || row.service_paused
                || row.monitor.next_due_at.is_none_or(|due| due >= expires)
                || !rotates.contains(&row.service)
        };
        Ok(rows.into_iter().filter(nothing_planned).collect())
    }

    /// A page of a list by id.
    pub fn listed(&self, filter: &ListFilter) -> Found<Listed> {
        let wanted = filter.text.as_deref().map(str::to_ascii_lowercase);
        let has =
            |field: &str| wanted.as_deref().is_none_or(|wanted| field.to_ascii_lowercase().contains(wanted));
        let mut walk = self.db.prepare_cached(
            "SELECT m.cookie_id, m.service, m.consecutive_failures, c.paused,
                    coalesce(c.identity, ''), coalesce(c.profile_id, '')
             FROM cookie_rotation_monitor m
             CROSS JOIN credentials c ON c.credential_id = m.cookie_id
             WHERE m.cookie_id > ?1 ORDER BY m.cookie_id LIMIT ?2",
        )?;
        let mut rows = walk.query(params![filter.after, LOOKED_AT as i64 + 1])?;
        let (mut found, mut looked_at, mut last) = (Vec::new(), 0, String::new());
        let mut next = None;
        while let Some(row) = rows.next()? {
            if looked_at == LOOKED_AT || found.len() == filter.limit {
                next = Some(last);
                break;
            }
            let (id, service): (String, String) = (row.get(0)?, row.get(1)?);
            let (failures, paused): (u32, bool) = (row.get(2)?, row.get(3)?);
            let kind = match filter.only {
                Only::All => true,
                Only::Sound => failures == 0,
                Only::Paused => paused,
            };
            let of_service = filter.service.as_ref().is_none_or(|wanted| *wanted == service);
            if kind && of_service && (has(&id) || has(&row.get::<String>(4)?) || has(&row.get::<String>(5)?))
            {
                found.push(id.clone());
            }
            (looked_at, last) = (looked_at + 1, id);
        }
        let mut listed = Listed { rows: Vec::new(), next };
        for id in found {
            // One that was removed in between is simply gone.
            listed.rows.extend(self.credential(&id)?);
        }
        Ok(listed)
    }

    /// Credentials by service. The one question here that takes longer the more there are, some
    /// tenth of a second for a million: ask it seldom.
    pub fn tallies(&self) -> Found<Vec<Tally>> {
        let mut tallies = self.all(
            "SELECT service, count(*) FROM cookie_rotation_monitor INDEXED BY monitor_by_due
             GROUP BY service ORDER BY service",
            [],
            |row| {
                Ok(Tally {
                    service: row.get(0)?,
                    credentials: row.get::<i64>(1)?.unsigned_abs(),
                    failing: 0,
                    person: 0,
                })
            },
        )?;
        for trouble in [Trouble::Failing, Trouble::Person] {
            let (index, condition, _) = trouble.parts();
            let counts: Vec<(String, i64)> = self.all(
                &format!(
                    "SELECT service, count(*) FROM
                         (SELECT m.service FROM cookie_rotation_monitor m INDEXED BY {index}
                          WHERE {condition} LIMIT {COUNTED_AT_MOST}) counted
                     GROUP BY service"
                ),
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            for (service, count) in counts {
                let Some(tally) = tallies.iter_mut().find(|tally| tally.service == service) else { continue };
                match trouble {
                    Trouble::Failing => tally.failing = count.unsigned_abs(),
                    Trouble::Person => tally.person = count.unsigned_abs(),
                }
            }
        }
        Ok(tallies)
    }

    /// A credential's last attempts, oldest first.
    pub fn beats(&self, credential_id: &str, limit: u32) -> Found<Vec<Beat>> {
        let mut beats = self.all(
            "SELECT id, status FROM cookie_rotation_reports INDEXED BY reports_by_credential
             WHERE cookie_id = ?1 ORDER BY id DESC LIMIT ?2",
            params![credential_id, limit],
            |row| Ok(Beat { id: row.get(0)?, status: read_word(row, 1, Status::parse)? }),
        )?;
        beats.reverse();
        Ok(beats)
    }

    /// The reports of the same credential before and after this one.
    pub fn beside(&self, credential_id: &str, report: i64) -> Found<(Option<i64>, Option<i64>)> {
        let of = |sql: &str| -> Found<Option<i64>> {
            Ok(self
                .db
                .prepare_cached(sql)?
                .query_row(params![credential_id, report], |row| row.get(0))
                .optional()?)
        };
        Ok((
            of("SELECT id FROM cookie_rotation_reports INDEXED BY reports_by_credential
                WHERE cookie_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT 1")?,
            of("SELECT id FROM cookie_rotation_reports INDEXED BY reports_by_credential
                WHERE cookie_id = ?1 AND id > ?2 ORDER BY id LIMIT 1")?,
        ))
    }

    /// Decisions before one of them, newest first.
    pub fn audit_before(&self, before: Option<i64>, limit: u32) -> Found<Vec<AuditRow>> {
        self.all(
            "SELECT id, at, actor, action, service, file, digest, signer, detail_json
             FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            params![before.unwrap_or(i64::MAX), limit],
            |row| {
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
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::super::scratch::Scratch;
    use super::*;

    const T0: Millis = 1_700_000_000_000;

    /// A hundred credentials: each tenth fails, each twentieth wants a person, the others end an
    /// hour apart; every seventh is paused.
    fn filled() -> (Scratch, Reader) {
        filled_in(Scratch::new())
    }

    fn filled_in(scratch: Scratch) -> (Scratch, Reader) {
        let db = scratch.connection();
        for number in 0..100_i64 {
            let id = format!("account-{number:03}");
            let service = format!("service-{}", number % 4);
            db.execute(
                "INSERT INTO credentials (credential_id, profile_id, service, settings_json, private_hosts_json,
                     identity, paused, current_generation, last_generation, rotated_at, created_at)
                 VALUES (?1, 'Office', ?2, '[]', '[]', ?3, ?4, 1, 1, ?5, ?5)",
                params![id, service, format!("{number}@Example.org"), number % 7 == 0, T0 as i64],
            )
            .unwrap();
            let failures = i64::from(number % 10 == 0);
            let (status, verdict) = match number % 20 {
                0 => ("validation_failed", "invalid"),
                10 => ("unreachable", "unknown"),
                _ => ("success", "valid"),
            };
            db.execute(
                "INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict,
                     last_success_at, consecutive_failures, expires_at, next_due_at, next_action)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'validate')",
                params![
                    id,
                    service,
                    status,
                    verdict,
                    T0 as i64 - number,
                    failures,
                    T0 as i64 + number * 3_600_000,
                    T0 as i64
                ],
            )
            .unwrap();
        }
        drop(db);
        let reader = scratch.reader();
        (scratch, reader)
    }

    fn ids(rows: &[CredentialRow]) -> Vec<&str> {
        rows.iter().map(|row| row.credential_id.trim_start_matches("account-")).collect()
    }

    #[test]
    fn trouble_is_found_whatever_has_it_for_longest_first() {
        let (_folder, reader) = filled();
        let person = reader.troubled(Trouble::Person, None, 0, 3).unwrap();
        assert_eq!(ids(&person), ["080", "060", "040"]);
        assert_eq!(ids(&reader.troubled(Trouble::Person, None, 3, 9).unwrap()), ["020", "000"]);
        assert_eq!(ids(&reader.troubled(Trouble::Failing, None, 0, 3).unwrap()), ["090", "070", "050"]);
        let of_one = reader.troubled(Trouble::Failing, Some("service-2"), 0, 9).unwrap();
        assert_eq!(ids(&of_one), ["090", "070", "050", "030", "010"]);
        assert_eq!(reader.count_troubled().unwrap(), (5, 5));
    }

    #[test]
    fn what_ends_first_comes_first_and_what_fails_is_told_elsewhere() {
        let (_folder, reader) = filled();
        let soon = T0 + 8 * 3_600_000 + 1;
        assert_eq!(
            ids(&reader.ending(soon, &[]).unwrap()),
            ["001", "002", "003", "004", "005", "006", "007", "008"]
        );
        // Where a look comes first that can rotate, it is of nobody's concern, unless it is paused.
        let rotates = ["service-0", "service-1", "service-3"].map(str::to_owned);
        assert_eq!(ids(&reader.ending(soon, &rotates).unwrap()), ["002", "006", "007"]);
    }

    #[test]
    fn a_list_is_walked_page_by_page_and_searched_without_regard_to_case() {
        let (_folder, reader) = filled();
        let (mut after, mut seen, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let filter = ListFilter { after, only: Only::Sound, limit: 40, ..ListFilter::default() };
            let page = reader.listed(&filter).unwrap();
            seen.extend(page.rows.iter().map(|row| row.credential_id.clone()));
            pages += 1;
            let Some(next) = page.next else { break };
            after = next;
        }
        assert_eq!((seen.len(), pages), (90, 3));
        assert!(seen.is_sorted());
        let search = |text: &str, service: Option<&str>, only| {
            let filter = ListFilter {
                text: Some(text.into()),
                service: service.map(str::to_owned),
                only,
                limit: 100,
                ..ListFilter::default()
            };
            reader.listed(&filter).unwrap().rows.len()
        };
        assert_eq!(search("COUNT-01", None, Only::All), 10);
        assert_eq!(search("17@example", None, Only::All), 1);
        assert_eq!(search("office", Some("service-1"), Only::All), 25);
        assert_eq!(search("office", None, Only::Paused), 15);
        assert_eq!(search("nobody", None, Only::All), 0);
    }

    #[test]
    fn every_service_is_counted_with_its_trouble() {
        let (_folder, reader) = filled();
        let tallies = reader.tallies().unwrap();
        let seen: Vec<_> =
            tallies.iter().map(|tally| (tally.credentials, tally.failing, tally.person)).collect();
        assert_eq!(seen, [(25, 5, 5), (25, 0, 0), (25, 5, 0), (25, 0, 0)]);
    }

    /// The steps of SQLite's machine say what a million would cost, and no clock does.
    #[test]
    fn a_page_walks_indexes_and_sorts_nothing() {
        let (_scratch, reader) = filled_in(Scratch::on_file());
        let plan = |sql: &str| {
            let mut explain = reader.db.prepare_cached(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let mut rows = explain.query([]).unwrap();
            let mut text = String::new();
            while let Some(row) = rows.next().unwrap() {
                writeln!(text, "{}", row.get::<&str>(3).unwrap()).unwrap();
            }
            text
        };
        for (index, sql) in [
            (
                "monitor_wants_person",
                format!(
                    "SELECT m.cookie_id FROM cookie_rotation_monitor m WHERE {WANTS_PERSON} ORDER BY m.last_success_at LIMIT 9"
                ),
            ),
            (
                "monitor_by_expiry",
                "SELECT m.cookie_id FROM cookie_rotation_monitor m
                 WHERE m.expires_at IS NOT NULL AND m.expires_at < 1 ORDER BY m.expires_at LIMIT 9"
                    .to_owned(),
            ),
            (
                "reports_by_credential",
                "SELECT id FROM cookie_rotation_reports INDEXED BY reports_by_credential
                 WHERE cookie_id = 'a' ORDER BY id DESC LIMIT 9"
                    .to_owned(),
            ),
            (
                "PRIMARY KEY",
                "SELECT cookie_id FROM cookie_rotation_monitor WHERE cookie_id > 'a' ORDER BY cookie_id"
                    .to_owned(),
            ),
        ] {
            let plan = plan(&sql);
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
        }
    }
}
