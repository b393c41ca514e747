//! What is in trouble: rows of the database and what the parts of the daemon say of themselves,
//! turned into the words of `rules`. Pure: whoever gathers the facts is in `mod.rs`. Reasons come
//! from reports, which are redacted before they are stored.

use crate::config::alerts::Alerts;
use crate::credential::Millis;
use crate::db::alerts::{ExpiringRow, FailingRow, Kind, Severity};
use crate::report::iso8601;
use crate::rotation::schedule::span;

use super::rules::Trouble;

/// Of a reason: as much as fits into a message to a telephone.
const LONGEST_REASON: usize = 500;

const DAY: Millis = 86_400_000;

/// What of the host's own is in trouble, or None of each where it is well or not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Free bytes on the home's disk.
    pub disk_free: Option<u64>,
    /// By what the services say, in milliseconds.
    pub clock_behind: Option<i64>,
    /// When the clock was set while the daemon ran, and by how much.
    pub clock_was_set: Option<(Millis, i64)>,
    /// Since when attempts are due and none ends, and what shows it.
    pub stuck: Option<(Millis, String)>,
    /// When the newest backup was made; None within: there is none.
    pub backup: Option<Option<Millis>>,
    /// Files that don't serve: name, service, and why.
    pub plugins: Vec<(String, Option<String>, String)>,
    /// Services whose worker is parked, and why it ended last.
    pub parked: Vec<(String, Option<String>)>,
    /// External workers that fell silent: service, worker, last heard of.
    pub silent: Vec<(String, String, Millis)>,
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Which kind of failing, by the verdict where there is one: external workers only give a status.
fn kind_of(status: Option<&str>, verdict: Option<&str>) -> Kind {
    match (verdict, status) {
        (Some("needs-human"), _) => Kind::NeedsHuman,
        (Some("invalid"), _) | (_, Some("validation_failed")) => Kind::Invalid,
        (_, Some("unreachable")) => Kind::Unreachable,
        _ => Kind::Failed,
    }
}

/// Whether a person must act at once; the rest may pass by itself, so its failures are counted.
const fn is_final(kind: Kind) -> bool {
    matches!(kind, Kind::Invalid | Kind::NeedsHuman)
}

pub fn of_credential(row: &FailingRow, config: &Alerts) -> Trouble {
    let FailingRow { credential_id: id, service, failures, .. } = row;
    let kind = kind_of(row.status.as_deref(), row.verdict.as_deref());
    let times = if *failures == 1 { "1 attempt".to_owned() } else { format!("{failures} attempts in a row") };
    let (what, hint) = match kind {
        Kind::NeedsHuman => (
            format!("`{id}` of `{service}` needs a person"),
            format!(
                "sign in where it is used and bring the new secrets: `keywheel credential import {id} FILE`"
            ),
        ),
        Kind::Invalid => (
            format!("`{service}` says that the secrets of `{id}` are dead"),
            format!("sign in again and bring the new secrets: `keywheel credential import {id} FILE`"),
        ),
        Kind::Unreachable => (
            format!("`{id}` of `{service}` can't be asked about: {times}"),
            format!(
                "is the service up, and the network? `keywheel credential history {id}` has each attempt; the secrets stay as they are meanwhile"
            ),
        ),
        _ => (
            format!("the plugin of `{service}` fails for `{id}`: {times}"),
            format!("`keywheel credential history {id}` says how; a newer version of the plugin may help"),
        ),
    };
    Trouble {
        subject: format!("credential:{id}"),
        group: format!("service:{service}"),
        service: Some(service.clone()),
        kind,
        severity: if is_final(kind) { Severity::Critical } else { Severity::Warning },
        stage: 0,
        // Since then nothing shows that it lives.
        since: row.last_success_at.unwrap_or(row.created_at),
        what,
        why: row.message.as_deref().map(shortened),
        hint,
        is_faint: !is_final(kind) && *failures < config.after_failures,
        is_muted: row.paused,
    }
}

/// A secret that ends and isn't renewed by itself: the warning it is due for, if any.
pub fn of_expiry(row: &ExpiringRow, can_rotate: bool, config: &Alerts, now: Millis) -> Option<Trouble> {
    let ExpiringRow { credential_id: id, service, expires_at, issued_at, .. } = row;
    let left = expires_at.checked_sub(now).filter(|left| *left > 0)?;
    let kind = kind_of(row.status.as_deref(), row.verdict.as_deref());
    let rotation_fails = row.failures > 0 && (is_final(kind) || row.failures >= config.after_failures);
    if can_rotate && !rotation_fails {
        return None;
    }
    let life = expires_at.saturating_sub(*issued_at);
    let stage = config
        .expiry_days
        .iter()
        .copied()
        // What never lives longer than a day is always in its last one.
        .filter(|days| !can_rotate || life > Millis::from(*days) * DAY)
        .filter(|days| left <= Millis::from(*days) * DAY)
        .min()?;
    let nearest = config.expiry_days.iter().copied().min() == Some(stage);
    let (what, why, hint) = if can_rotate {
        (
            format!("`{id}` of `{service}` ends in {}, and renewing it fails", span(left)),
            Some(format!("its secrets are good until {}", iso8601(*expires_at))),
            format!("`keywheel credential history {id}` says why it isn't renewed"),
        )
    } else {
        (
            format!("`{id}` of `{service}` ends in {}", span(left)),
            Some(format!(
                "its secrets are good until {}, and its plugin can't renew them",
                iso8601(*expires_at)
            )),
            format!("get new ones and bring them: `keywheel credential import {id} FILE`"),
        )
    };
    Some(Trouble {
        subject: format!("expiry:{id}"),
        group: format!("expiry:{service}"),
        service: Some(service.clone()),
        kind: Kind::Expiry,
        severity: if nearest { Severity::Critical } else { Severity::Warning },
        stage,
        since: now,
        what,
        why,
        hint,
        is_faint: false,
        is_muted: row.paused,
    })
}

/// The farthest end that a warning is about.
pub fn horizon(config: &Alerts, now: Millis) -> Millis {
    let days = config.expiry_days.iter().copied().max().unwrap_or(0);
    now.saturating_add(Millis::from(days) * DAY)
}

fn of_host(subject: &str, kind: Kind, severity: Severity, since: Millis) -> Trouble {
    Trouble {
        subject: subject.to_owned(),
        group: subject.to_owned(),
        service: None,
        kind,
        severity,
        stage: 0,
        since,
        what: String::new(),
        why: None,
        hint: String::new(),
        is_faint: false,
        is_muted: false,
    }
}

pub fn of_database(since: Millis, reason: &str) -> Trouble {
    Trouble {
        what: String::from("Keywheel's database can't be written: nothing is rotated until it can"),
        why: Some(shortened(reason)),
        hint: String::from(
            "look at the disk's free space, whether it is mounted read-only, and who else has the file open; nothing acknowledged is lost",
        ),
        ..of_host("host:database", Kind::Database, Severity::Critical, since)
    }
}

pub fn of_the_host(facts: &HostFacts, config: &Alerts, now: Millis) -> Vec<Trouble> {
    let mut found = Vec::new();
    let low = config.disk_low_mib << 20;
    if let Some(free) = facts.disk_free.filter(|_| low > 0) {
        let severity = if free < low / 8 { Severity::Critical } else { Severity::Warning };
        // A quarter above the limit it still is no relief.
        if free < low + low / 4 {
            found.push(Trouble {
                what: format!("the disk of Keywheel's home has {} MiB left", free >> 20),
                why: Some(format!("alerts.disk_low_mib is {}", config.disk_low_mib)),
                hint: String::from("make room: where the database can't be written nothing is rotated"),
                is_faint: free >= low,
                ..of_host("host:disk", Kind::Disk, severity, now)
            });
        }
    }
    if let Some(behind) = facts.clock_behind {
        let way = if behind < 0 { "ahead" } else { "behind" };
        found.push(Trouble {
            what: format!("this machine's clock is {} {way}", span(behind.unsigned_abs())),
            why: Some(String::from("two services or more agree on it, by the Date of their answers")),
            hint: String::from("let it be set by NTP"),
            ..of_host("host:clock", Kind::Clock, Severity::Critical, now)
        });
    } else if let Some((at, by)) = facts.clock_was_set {
        let way = if by < 0 { "back" } else { "ahead" };
        found.push(Trouble {
            // The two clocks were not read at the same moment.
            what: format!("this machine's clock was set {way} by {}", span(by.unsigned_abs() + 500)),
            why: None,
            hint: String::from(
                "nothing to do if it is right now; times in reports around then are the clock's",
            ),
            ..of_host("host:clock", Kind::Clock, Severity::Warning, at)
        });
    }
    if let Some((since, shows)) = &facts.stuck {
        found.push(Trouble {
            what: String::from("attempts are due, and none ends"),
            why: Some(shows.clone()),
            hint: String::from(
                "`keywheel status` says what is held up; if nothing is, restart the daemon and keep its log",
            ),
            ..of_host("host:scheduler", Kind::Scheduler, Severity::Critical, *since)
        });
    }
    if let Some(newest) = facts.backup {
        let oldest = now.saturating_sub(config.backup_max_age.millis());
        if newest.is_none_or(|at| at < oldest) {
            let longest = span(config.backup_max_age.millis());
            found.push(Trouble {
                what: match newest {
                    Some(at) => format!("the newest backup is {} old", span(now.saturating_sub(at))),
                    None => String::from("there is no backup"),
                },
                why: Some(format!("alerts.backup_folder has no file younger than {longest}")),
                hint: String::from("look at what makes the backups"),
                ..of_host("host:backup", Kind::Backup, Severity::Warning, newest.unwrap_or(now))
            });
        }
    }
    for (file, service, why) in &facts.plugins {
        found.push(Trouble {
            what: format!("plugin file {file} does not serve"),
            why: Some(shortened(why)),
            hint: String::from("`keywheel plugin list` shows where each file stands"),
            service: service.clone(),
            group: String::from("plugins"),
            ..of_host(&format!("plugin:{file}"), Kind::Plugin, Severity::Warning, now)
        });
    }
    for (service, why) in &facts.parked {
        found.push(Trouble {
            what: format!("the worker of `{service}` keeps dying and is parked"),
            why: why.as_deref().map(shortened),
            hint: format!("replace the plugin, or `keywheel plugin unpark {service}`"),
            service: Some(service.clone()),
            group: String::from("workers"),
            ..of_host(&format!("worker:{service}"), Kind::Worker, Severity::Warning, now)
        });
    }
    for (service, worker, heard) in &facts.silent {
        found.push(Trouble {
            what: format!("external worker `{worker}` of `{service}` is silent"),
            why: Some(format!("last heard of {}", iso8601(*heard))),
            hint: String::from("look whether it still runs; `keywheel worker-token revoke ID` forgets the workers of a token"),
            service: Some(service.clone()),
            group: format!("external:{service}"),
            ..of_host(
                &format!("external:{service}/{worker}"),
                Kind::ExternalWorker,
                Severity::Warning,
                *heard,
            )
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_700_000_000_000;

    fn failing(status: &str, verdict: Option<&str>, failures: u32) -> FailingRow {
        FailingRow {
            credential_id: "ann".into(),
            service: "forge".into(),
            status: Some(status.into()),
            verdict: verdict.map(str::to_owned),
            message: Some("no answer".into()),
            failures,
            last_success_at: Some(NOW - 60_000),
            created_at: 0,
            paused: false,
        }
    }

    #[test]
    fn a_person_is_called_at_once_and_for_the_rest_failures_are_counted() {
        let config = Alerts::default();
        for (status, verdict, failures, kind, severity, is_faint) in [
            ("unreachable", Some("unknown"), 1, Kind::Unreachable, Severity::Warning, true),
            ("unreachable", Some("unknown"), 3, Kind::Unreachable, Severity::Warning, false),
            ("failed", Some("unknown"), 2, Kind::Failed, Severity::Warning, true),
            ("failed", Some("unknown"), 4, Kind::Failed, Severity::Warning, false),
            ("failed", Some("needs-human"), 1, Kind::NeedsHuman, Severity::Critical, false),
            ("validation_failed", Some("invalid"), 1, Kind::Invalid, Severity::Critical, false),
            ("validation_failed", None, 1, Kind::Invalid, Severity::Critical, false),
            ("failed", None, 1, Kind::Failed, Severity::Warning, true),
        ] {
            let trouble = of_credential(&failing(status, verdict, failures), &config);
            assert_eq!(
                (trouble.kind, trouble.severity, trouble.is_faint),
                (kind, severity, is_faint),
                "{status} {verdict:?} {failures}"
            );
            assert_eq!(trouble.since, NOW - 60_000);
            assert!(trouble.what.contains("ann") && trouble.hint.contains("ann"));
        }
        let long = FailingRow { message: Some("ä".repeat(9_000)), ..failing("failed", None, 9) };
        assert!(of_credential(&long, &config).why.unwrap().chars().count() <= LONGEST_REASON + 1);
    }

    #[test]
    fn an_end_is_told_where_nobody_renews_it_and_at_the_stage_it_is_in() {
        let config = Alerts::default();
        let row = |left: i64, life_days: u64, failures: u32| {
            let expires_at = NOW.checked_add_signed(left).unwrap();
            ExpiringRow {
                credential_id: "ann".into(),
                service: "forge".into(),
                expires_at,
                issued_at: expires_at - life_days * DAY,
                status: Some("unreachable".into()),
                verdict: Some("unknown".into()),
                failures,
                paused: false,
            }
        };
        let day = i64::try_from(DAY).unwrap();
        for (left, life, failures, can_rotate, want) in [
            (20 * day, 90, 0, false, None),
            (14 * day, 90, 0, false, Some((14, Severity::Warning))),
            (10 * day, 90, 0, false, Some((14, Severity::Warning))),
            (7 * day, 90, 0, false, Some((7, Severity::Warning))),
            (day, 90, 0, false, Some((1, Severity::Critical))),
            (1, 90, 0, false, Some((1, Severity::Critical))),
            (0, 90, 0, false, None),
            (-day, 90, 0, false, None),
            // It is renewed by itself, and that works or hasn't failed for long.
            (day, 90, 0, true, None),
            (day, 90, 2, true, None),
            (5 * day, 90, 3, true, Some((7, Severity::Warning))),
            // An hour's token is always in its last day.
            (day / 48, 0, 9, true, None),
            (day / 2, 5, 9, true, Some((1, Severity::Critical))),
        ] {
            let found = of_expiry(&row(left, life, failures), can_rotate, &config, NOW);
            let found = found.map(|trouble| (trouble.stage, trouble.severity));
            assert_eq!(found, want, "{left} of {life} days, {failures} failures, {can_rotate}");
        }
        assert_eq!(horizon(&config, NOW), NOW + 14 * DAY);
    }

    #[test]
    fn the_hosts_own_trouble_is_told_and_a_well_host_has_none() {
        let config = Alerts { backup_folder: Some("/backups".into()), ..Alerts::default() };
        let well =
            HostFacts { disk_free: Some(1 << 40), backup: Some(Some(NOW - DAY)), ..HostFacts::default() };
        assert_eq!(of_the_host(&well, &config, NOW), []);
        let bad = HostFacts {
            disk_free: Some(20 << 20),
            clock_behind: Some(-3_600_000),
            clock_was_set: Some((NOW, 1)),
            stuck: Some((NOW, "no turn".into())),
            backup: Some(None),
            plugins: vec![("a.wasm".into(), None, "no component".into())],
            parked: vec![("forge".into(), None)],
            silent: vec![("forge".into(), "w".into(), NOW)],
        };
        let found = of_the_host(&bad, &config, NOW);
        let shown: Vec<_> =
            found.iter().map(|trouble| (trouble.subject.as_str(), trouble.severity)).collect();
        assert_eq!(
            shown,
            [
                ("host:disk", Severity::Critical),
                ("host:clock", Severity::Critical),
                ("host:scheduler", Severity::Critical),
                ("host:backup", Severity::Warning),
                ("plugin:a.wasm", Severity::Warning),
                ("worker:forge", Severity::Warning),
                ("external:forge/w", Severity::Warning),
            ]
        );
        assert!(found.iter().all(|trouble| !trouble.what.is_empty() && !trouble.hint.is_empty()));
        // Between the limit and a quarter above it nothing begins and nothing ends.
        for (mib, want) in [(255, Some(false)), (256, Some(true)), (319, Some(true)), (320, None)] {
            let facts = HostFacts { disk_free: Some(mib << 20), ..HostFacts::default() };
            let found = of_the_host(&facts, &config, NOW);
            assert_eq!(found.first().map(|trouble| trouble.is_faint), want, "{mib}");
        }
    }
}
