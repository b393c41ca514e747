//! What `status` reads: how everything stands, by indexes and in bounded steps, so that it is
//! there at once whether a home holds ten credentials or a million.

use std::collections::BTreeMap;

use super::sql::{self, params};
use serde::Serialize;

use super::column::{millis, read_optional_millis};
use super::queries::{CREDENTIAL_COLUMNS, Counts, CredentialRow, Found, Reader, credential_from};
use crate::credential::Millis;

/// So many of those that a person has to look after are named; the others are counted.
const NAMED: usize = 10;

/// Past this a number says no more than "many".
pub const COUNTED_AT_MOST: u32 = 1_000;

/// Of the next to expire so many are looked at: most of them renew themselves.
const ENDING_LOOKED_AT: u32 = 300;

/// Everything that `status` says of credentials.
#[derive(Debug, Default)]
pub struct Glance {
    /// As `Reader::counts` has them. Of reports it is the span of their ids: as many or fewer.
    pub counts: Counts,
    pub services: Vec<ServiceRow>,
    /// Those that a person has to look after, whatever has been for longest first; the first few.
    pub person: Vec<CredentialRow>,
    /// How many there are in all, counted up to `COUNTED_AT_MOST`.
    pub person_count: u32,
    /// Those that told nothing the last times, by service.
    pub unclear: Vec<Unclear>,
    /// Sound ones that end before the moment that was asked about, the first to end first.
    pub ending: Vec<CredentialRow>,
}

/// One service's credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    pub service: String,
    /// The host's own.
    pub credentials: u64,
    /// Whose last report is no success.
    pub failing: u64,
    /// Due and not claimed.
    pub due: u64,
    #[serde(serialize_with = "super::queries::iso_option")]
    pub next_due_at: Option<Millis>,
    /// The operator's: nothing of it is done by itself.
    pub paused: bool,
}

/// Credentials of a service that can't be told alive or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclear {
    pub service: String,
    /// Up to `COUNTED_AT_MOST`, of all services together.
    pub count: u32,
    /// When the first of them was last known to live; None: never.
    pub since: Option<Millis>,
    /// What the last attempt of that one came to.
    pub message: Option<String>,
}

impl Reader {
    /// # Errors
    /// SQLite's.
    pub fn glance(&self, now: Millis, ends_before: Millis) -> Found<Glance> {
        // What is counted here and named there shall be of one moment.
        let _snapshot = self.db.snapshot()?;
        let mut glance = Glance { services: self.service_rows(now)?, ..Glance::default() };
        glance.counts = self.glance_counts(&glance.services)?;
        glance.person_count = self.person_count()?;
        if glance.person_count > 0 {
            glance.person = self.person_rows()?;
        }
        glance.unclear = self.unclear()?;
        glance.ending = self.all(
            &format!(
                "{CREDENTIAL_COLUMNS}
                 FROM (SELECT m.cookie_id AS id
                       FROM cookie_rotation_monitor m INDEXED BY monitor_by_expiry
                       WHERE m.expires_at IS NOT NULL AND m.expires_at < ?1
                       ORDER BY m.expires_at LIMIT {ENDING_LOOKED_AT}) found
                 CROSS JOIN cookie_rotation_monitor m ON m.cookie_id = found.id
                 CROSS JOIN credentials c ON c.credential_id = m.cookie_id
                 LEFT JOIN journal j ON j.credential = c.id
                 LEFT JOIN cookie_rotation_providers p ON p.service = c.service
                 WHERE m.consecutive_failures = 0 AND c.external = 0
                 ORDER BY m.expires_at"
            ),
            params![millis(ends_before)],
            credential_from,
        )?;
        Ok(glance)
    }

    /// Ids that a misspelt one may stand for: those with its first letter, then others, so many at
    /// most.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ids_like(&self, typed: &str, at_most: u32) -> Found<Vec<String>> {
        let first: String = typed.chars().take(1).collect();
        self.all(
            "SELECT credential_id FROM (SELECT credential_id FROM credentials
                 WHERE credential_id >= ?1 AND credential_id < ?2
                 ORDER BY credential_id LIMIT ?3) alike
             UNION SELECT credential_id FROM (SELECT credential_id FROM credentials
                 ORDER BY credential_id LIMIT 1000) others",
            params![first, format!("{first}\u{10FFFF}"), at_most],
            |row| row.get(0),
        )
    }

    /// Every service that has a provider or a credential.
    ///
    /// # Errors
    /// SQLite's.
    pub fn service_names(&self) -> Found<Vec<String>> {
        // Each probe of the index finds the next service, however many credentials are in between.
        self.all(
            "WITH RECURSIVE known (service) AS (
                 SELECT min(service) FROM credentials INDEXED BY credentials_kept WHERE external = 0
                 UNION ALL
                 SELECT (SELECT min(service) FROM credentials INDEXED BY credentials_kept
                         WHERE external = 0 AND service > known.service)
                 FROM known WHERE known.service IS NOT NULL)
             SELECT service FROM known WHERE service IS NOT NULL
             UNION SELECT service FROM cookie_rotation_providers",
            [],
            |row| row.get(0),
        )
    }

    fn service_rows(&self, now: Millis) -> Found<Vec<ServiceRow>> {
        let mut services: BTreeMap<String, ServiceRow> = BTreeMap::new();
        let named = |name: String| ServiceRow { service: name, ..ServiceRow::default() };
        let kept = self.all(
            "SELECT service, count(*) FROM credentials INDEXED BY credentials_kept
             WHERE external = 0 GROUP BY service",
            [],
            |row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?.unsigned_abs())),
        )?;
        for (service, credentials) in kept {
            services.entry(service.clone()).or_insert_with(|| named(service)).credentials = credentials;
        }
        let providers = self.all("SELECT service, paused FROM cookie_rotation_providers", [], |row| {
            Ok((row.get::<String>(0)?, row.get::<bool>(1)?))
        })?;
        for (service, paused) in providers {
            services.entry(service.clone()).or_insert_with(|| named(service)).paused = paused;
        }
        let failing = self.all(
            "SELECT service, count(*) FROM cookie_rotation_monitor INDEXED BY monitor_unwell
             WHERE last_status IS DISTINCT FROM 'success' AND last_status IS NOT NULL GROUP BY last_status, service",
            [],
            |row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?.unsigned_abs())),
        )?;
        for (service, count) in failing {
            services.entry(service.clone()).or_insert_with(|| named(service)).failing += count;
        }
        // An open attempt's due time is the end of its lease, so it is not among what is due.
        let mut due = self.db.prepare_cached(
            "SELECT count(*) FROM cookie_rotation_monitor INDEXED BY monitor_by_due
             WHERE service = ?1 AND next_due_at <= ?2",
        )?;
        let mut next = self.db.prepare_cached(
            "SELECT m.next_due_at FROM cookie_rotation_monitor m INDEXED BY monitor_by_due
             WHERE m.service = ?1 AND m.next_due_at IS NOT NULL AND NOT EXISTS
                 (SELECT 1 FROM credentials c JOIN journal j ON j.credential = c.id
                  WHERE c.credential_id = m.cookie_id)
             ORDER BY m.next_due_at LIMIT 1",
        )?;
        for row in services.values_mut() {
            let count: i64 = due.query_row(params![row.service, millis(now)], |found| found.get(0))?;
            row.due = count.unsigned_abs();
            let mut found = next.query([&row.service])?;
            row.next_due_at = match found.next()? {
                Some(found) => read_optional_millis(found, 0)?,
                None => None,
            };
        }
        Ok(services.into_values().collect())
    }

    fn glance_counts(&self, services: &[ServiceRow]) -> Found<Counts> {
        let count = |sql: &str| -> sql::Result<u64> {
            let count: i64 = self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        };
        let credentials = count("SELECT count(*) FROM credentials")?;
        let mut by_status: BTreeMap<String, u64> = self
            .all(
                "SELECT coalesce(last_status, 'pending'), count(*)
                 FROM cookie_rotation_monitor INDEXED BY monitor_unwell
                 WHERE last_status IS DISTINCT FROM 'success' GROUP BY last_status",
                [],
                |row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?.unsigned_abs())),
            )?
            .into_iter()
            .collect();
        let well = credentials.saturating_sub(by_status.values().sum());
        if well > 0 {
            by_status.insert("success".into(), well);
        }
        let kept: u64 = services.iter().map(|service| service.credentials).sum();
        Ok(Counts {
            credentials,
            external: credentials.saturating_sub(kept),
            paused: count("SELECT count(*) FROM credentials INDEXED BY credentials_paused WHERE paused = 1")?,
            open_attempts: count("SELECT count(*) FROM journal")?,
            by_status,
            providers: count("SELECT count(*) FROM cookie_rotation_providers")?,
            // Each end is one step; counting would read a row of every attempt there ever was.
            reports: count(
                "SELECT coalesce((SELECT max(id) FROM cookie_rotation_reports)
                     - (SELECT min(id) FROM cookie_rotation_reports) + 1, 0)",
            )?,
        })
    }

    fn person_count(&self) -> Found<u32> {
        let count = self
            .db
            .prepare_cached(&format!(
                "SELECT count(*) FROM
                     (SELECT 1 FROM cookie_rotation_monitor m INDEXED BY monitor_wants_person
                      JOIN credentials c ON c.credential_id = m.cookie_id
                      WHERE {WANTS_PERSON} AND c.paused = 0 LIMIT {COUNTED_AT_MOST}) counted"
            ))?
            .query_row([], |row| row.get(0))?;
        Ok(count)
    }

    fn person_rows(&self) -> Found<Vec<CredentialRow>> {
        self.all(
            &format!(
                "{CREDENTIAL_COLUMNS}
                 FROM cookie_rotation_monitor m INDEXED BY monitor_wants_person
                 CROSS JOIN credentials c ON c.credential_id = m.cookie_id
                 LEFT JOIN journal j ON j.credential = c.id
                 LEFT JOIN cookie_rotation_providers p ON p.service = c.service
                 WHERE {WANTS_PERSON} AND c.paused = 0
                 ORDER BY m.last_success_at NULLS FIRST LIMIT {NAMED}"
            ),
            [],
            credential_from,
        )
    }

    fn unclear(&self) -> Found<Vec<Unclear>> {
        let rows = self.all(
            &format!(
                "SELECT m.service, m.last_success_at, m.last_message
                 FROM cookie_rotation_monitor m INDEXED BY monitor_failing
                 JOIN credentials c ON c.credential_id = m.cookie_id
                 WHERE m.consecutive_failures > 0 AND c.paused = 0
                   AND NOT (coalesce(m.last_verdict, '') IN ('needs-human', 'invalid')
                            OR coalesce(m.last_status, '') = 'validation_failed')
                 ORDER BY m.last_success_at NULLS FIRST LIMIT {COUNTED_AT_MOST}"
            ),
            [],
            |row| Ok((row.get::<String>(0)?, read_optional_millis(row, 1)?, row.get(2)?)),
        )?;
        let mut by_service: Vec<Unclear> = Vec::new();
        for (service, since, message) in rows {
            match by_service.iter_mut().find(|known| known.service == service) {
                // They come with the longest first.
                Some(known) => known.count += 1,
                None => by_service.push(Unclear { service, count: 1, since, message }),
            }
        }
        Ok(by_service)
    }
}

/// As in the index of that name.
const WANTS_PERSON: &str = "m.consecutive_failures > 0
    AND (m.last_verdict IN ('needs-human', 'invalid') OR m.last_status = 'validation_failed')";
