//! Retention on real databases: what ends is compared with a model of the rules, and nothing of
//! what must last ends, whatever the times are.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::db::scratch::{Scratch, add_rows};
use crate::db::sql::{self, params};
use crate::report::iso8601;

const DAY: Millis = 86_400_000;
const T0: Millis = 1_700_000_000_000;

/// A database with the credentials 0 to 2, and reports of those and of 3, which was removed.
struct Home {
    scratch: Scratch,
    writer: Writer,
    db: sql::Connection,
}

#[derive(Debug, Clone)]
struct Row {
    credential: u8,
    success: bool,
    stored: Millis,
}

impl Home {
    fn new() -> Self {
        let scratch = Scratch::new();
        let (writer, _thread) = scratch.writer();
        let db = scratch.connection();
        if scratch.store().file().is_some() {
            db.execute_batch("PRAGMA synchronous = OFF; PRAGMA busy_timeout = 20000").unwrap();
        }
        for credential in 0..3 {
            add_rows(&db, &name(credential), "shop", "");
        }
        Self { scratch, writer, db }
    }

    fn fill(&self, rows: &[Row]) -> Vec<i64> {
        let all = &self.db;
        all.execute_batch("BEGIN").unwrap();
        all.execute_batch("DELETE FROM cookie_rotation_reports").unwrap();
        let mut ids = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let id = all.insert(
                "INSERT INTO cookie_rotation_reports (cookie_id, service, validate_url,
                     cookie_keys_json, status, attempt_number, started_at, finished_at, created_at,
                     idempotency_key, meta_json)
                 VALUES (?1, 'shop', '', '{}', ?2, ?3, ?4, ?4, ?4, '', '{}')",
                params![
                    name(row.credential),
                    if row.success { "success" } else { "unreachable" },
                    i64::try_from(number).unwrap(),
                    iso8601(row.stored)
                ],
            );
            ids.push(id.unwrap().unwrap());
        }
        all.execute_batch(
            "UPDATE cookie_rotation_monitor SET last_report_id =
                 (SELECT max(id) FROM cookie_rotation_reports r WHERE r.cookie_id = cookie_rotation_monitor.cookie_id)",
        )
        .unwrap();
        all.execute_batch("COMMIT").unwrap();
        ids
    }

    fn ids(&self) -> BTreeSet<i64> {
        let mut select = self.db.prepare_cached("SELECT id FROM cookie_rotation_reports").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn reader(&self) -> Reader {
        Reader::open(self.scratch.store()).unwrap()
    }

    fn retention(&self) -> Retention {
        Retention::new(self.scratch.store(), self.writer.clone())
    }
}

fn name(credential: u8) -> String {
    format!("account-{credential}")
}

const ALL: Effort = Effort { time: Duration::from_secs(60), credentials: u32::MAX };

fn row() -> impl Strategy<Value = Row> {
    (0_u8..4, any::<bool>(), 0..40 * DAY).prop_map(|(credential, success, ago)| Row {
        credential,
        success,
        stored: T0 + ago,
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    let moment = proptest::option::of((0..41 * DAY).prop_map(|ago| T0 + ago));
    let credential = proptest::option::of((0_u8..4).prop_map(name));
    (moment, proptest::option::of(1_u32..6), credential).prop_map(|(stored_before, keep, credential)| Rules {
        stored_before,
        keep,
        credential,
    })
}

/// The last and the last successful report of each credential that is still there.
fn must_last(rows: &[Row], ids: &[i64]) -> BTreeSet<i64> {
    let mut last = BTreeSet::new();
    for credential in 0..3 {
        let of = || rows.iter().zip(ids).filter(move |(row, _)| row.credential == credential);
        last.extend(of().map(|(_, id)| *id).max());
        last.extend(of().filter(|(row, _)| row.success).map(|(_, id)| *id).max());
    }
    last
}

fn is_old(rules: &Rules, row: &Row) -> bool {
    rules.stored_before.is_some_and(|moment| row.stored < moment)
}

fn is_too_many(rules: &Rules, rows: &[Row], at: usize) -> bool {
    let newer = rows[at + 1..].iter().filter(|row| row.credential == rows[at].credential).count();
    rules.keep.is_some_and(|keep| newer >= keep as usize)
}

fn is_asked(rules: &Rules, row: &Row) -> bool {
    rules.credential.as_ref().is_none_or(|credential| *credential == name(row.credential))
}

/// Walks to the end in steps of this many, and names each report once.
fn walked(home: &Home, rules: &Rules, limit: u32) -> Vec<i64> {
    let (reader, mut lasting, mut position) = (home.reader(), Lasting::new(), Position::START);
    let mut named = Vec::new();
    while position != Position::End {
        let step = step(&reader, rules, &mut lasting, position, limit).unwrap();
        assert!(step.ending.len() <= limit as usize);
        named.extend(step.ending.iter().map(|report| report.id));
        position = step.next;
    }
    named
}

#[test]
fn what_ends_is_what_the_rules_say_and_the_survey_counts_the_same() {
    let (home, runtime) = (Home::new(), tokio::runtime::Runtime::new().unwrap());
    let rows = proptest::collection::vec(row(), 0..60);
    proptest!(ProptestConfig::with_cases(200), |(mut rows in rows, rules in rules(), limit in 1_u32..9)| {
        rows.sort_by_key(|row| row.stored);
        let ids = home.fill(&rows);
        let lasts = must_last(&rows, &ids);
        let ends = |at: &usize| {
            is_asked(&rules, &rows[*at])
                && (is_old(&rules, &rows[*at]) || is_too_many(&rules, &rows, *at))
                && !lasts.contains(&ids[*at])
        };
        let expected: BTreeSet<i64> = (0..rows.len()).filter(ends).map(|at| ids[at]).collect();
        let named = walked(&home, &rules, limit);
        prop_assert_eq!(named.len(), named.iter().collect::<BTreeSet<_>>().len(), "each is named once");
        prop_assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), expected.clone());
        let survey = survey(&home.reader(), &rules).unwrap();
        prop_assert_eq!(survey.reports, expected.len() as u64);

        let pruned = runtime.block_on(home.retention().prune(&rules, None, Position::START, ALL)).unwrap();
        prop_assert_eq!((pruned.reports, pruned.next), (expected.len() as u64, Position::End));
        let left: BTreeSet<i64> = ids.into_iter().filter(|id| !expected.contains(id)).collect();
        prop_assert_eq!(home.ids(), left);
        prop_assert_eq!(walked(&home, &rules, limit), Vec::<i64>::new(), "a second time there is nothing");
    });
}

#[test]
fn whatever_the_clock_did_nothing_young_nothing_wanted_and_nothing_last_ends() {
    let home = Home::new();
    let rows = proptest::collection::vec(row(), 0..60);
    proptest!(ProptestConfig::with_cases(200), |(rows in rows, rules in rules(), limit in 1_u32..9)| {
        let ids = home.fill(&rows);
        let lasts = must_last(&rows, &ids);
        for id in walked(&home, &rules, limit) {
            let at = ids.iter().position(|known| *known == id).unwrap();
            prop_assert!(!lasts.contains(&id));
            prop_assert!(is_asked(&rules, &rows[at]));
            prop_assert!(is_old(&rules, &rows[at]) || is_too_many(&rules, &rows, at));
        }
    });
}

#[test]
fn a_last_report_stays_even_if_its_deletion_is_commanded() {
    let (home, runtime) = (Home::new(), tokio::runtime::Runtime::new().unwrap());
    let ids = home.fill(&[
        Row { credential: 0, success: true, stored: T0 },
        Row { credential: 0, success: true, stored: T0 },
        Row { credential: 3, success: true, stored: T0 },
    ]);
    assert_eq!(runtime.block_on(home.writer.delete_reports(ids.clone())).unwrap(), 2);
    assert_eq!(home.ids(), BTreeSet::from([ids[1]]));
}

#[test]
fn a_report_that_the_monitor_points_to_stays_although_an_older_one_arrived_after_it() {
    let home = Home::new();
    let ids = home.fill(&[
        Row { credential: 0, success: true, stored: T0 },
        Row { credential: 0, success: true, stored: T0 },
        Row { credential: 0, success: true, stored: T0 },
    ]);
    home.db
        .execute(
            "UPDATE cookie_rotation_monitor SET last_report_id = ?1 WHERE cookie_id = 'account-0'",
            [ids[1]],
        )
        .unwrap();
    let rules = Rules { stored_before: Some(T0 + DAY), ..Rules::default() };
    assert_eq!(walked(&home, &rules, 9), ids[..1]);
}

#[test]
fn nothing_is_deleted_while_the_archive_cannot_be_written_and_all_of_it_once_it_can() {
    let (home, runtime) = (Home::new(), tokio::runtime::Runtime::new().unwrap());
    let rows: Vec<Row> =
        (0..300).map(|n| Row { credential: 3, success: true, stored: T0 + n * DAY / 10 }).collect();
    let ids = home.fill(&rows);
    let (parent, rules) = (home.scratch.folder().join("disk"), Rules { keep: Some(1), ..Rules::default() });
    let (retention, folder) = (home.retention(), parent.join("archive"));
    let prune = || runtime.block_on(retention.prune(&rules, Some(folder.clone()), Position::START, ALL));
    let error = prune().unwrap_err();
    assert!(matches!(error, RetentionError::Archive { .. }), "{error}");
    assert!(error.to_string().contains("no report is deleted"), "{error}");
    assert_eq!(home.ids().len(), ids.len());
    std::fs::create_dir(&parent).unwrap();
    assert_eq!(prune().unwrap().reports, 299);
    assert_eq!(home.ids(), BTreeSet::from([ids[299]]));
}

#[test]
fn an_effort_that_is_spent_says_where_to_go_on() {
    let (home, runtime) = (Home::new(), tokio::runtime::Runtime::new().unwrap());
    let rows: Vec<Row> =
        (0..40).map(|n| Row { credential: (n % 4) as u8, success: true, stored: T0 + n }).collect();
    home.fill(&rows);
    let rules = Rules { keep: Some(1), ..Rules::default() };
    let (retention, effort) = (home.retention(), Effort { credentials: 1, ..ALL });
    let (mut position, mut calls, mut deleted) = (Position::START, 0, 0);
    while position != Position::End {
        let pruned = runtime.block_on(retention.prune(&rules, None, position, effort)).unwrap();
        (position, calls, deleted) = (pruned.next, calls + 1, deleted + pruned.reports);
    }
    assert_eq!((deleted, home.ids().len()), (36, 4));
    assert!(calls >= 4, "one credential a call");
}

#[test]
fn a_command_that_took_long_is_followed_by_a_shorter_one() {
    let ms = Duration::from_millis;
    for (rows, took, next) in
        [(64, ms(1), 80), (64, ms(7), 64), (64, ms(11), 32), (16, ms(500), 16), (1_024, ms(0), 1_024)]
    {
        assert_eq!(paced(rows, took), next, "{rows} rows in {took:?}");
    }
}
