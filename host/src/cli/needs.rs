//! What needs a person, worst first, each with the command that comes next. Pure: it is given
//! what was found and finds nothing itself.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalogue;
use crate::credential::Millis;
use crate::db::alerts::DeliveryRow;
use crate::db::glance::{COUNTED_AT_MOST, Glance};
use crate::db::queries::{CredentialRow, ExternalWorkerRow, ProviderRow};
use crate::db::uses::SinkState;
use crate::external::Presence;
use crate::limits;
use crate::registry::{PluginState, PluginStatus};
use crate::rotation::late::Waiting;
use crate::supervisor::WorkerStatus;

/// So many are shown; whoever has more begins at the top anyway.
pub const SHOWN: usize = 10;

/// What is told unclear for longer than this is no hiccup of the service's: retries are a quarter
/// of an hour apart by then.
const UNCLEAR: Millis = 60 * 60_000;

/// What ends sooner than this and isn't renewed by itself is told.
pub const ENDS_SOON: Millis = 3 * 86_400_000;

/// A daemon starts what is due within a second; what is due for longer, and held up by nothing
/// that is known, is stuck.
const LATE: Millis = 5 * 60_000;

/// In the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Database,
    Unstored,
    Disk,
    Daemon,
    Clock,
    Parked,
    Unserved,
    NeedsHuman,
    Invalid,
    Late,
    Unclear,
    Ending,
    Sink,
    Untold,
    Approval,
    Refused,
    Conflict,
    Silent,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    pub kind: Kind,
    /// A credential, a service, a file; None: the host itself.
    pub about: Option<String>,
    /// In words.
    pub what: String,
    /// What to run next, or to do where no command of ours helps.
    pub next: String,
}

impl Need {
    fn new(kind: Kind, about: Option<&str>, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, about: about.map(str::to_owned), what: what.into(), next: next.into() }
    }
}

/// Whether a daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Runs,
    /// It has the socket, and doesn't answer in time.
    Hangs,
    None,
}

/// What was found.
#[derive(Debug)]
pub struct Found<'a> {
    pub now: Millis,
    pub daemon: Daemon,
    /// Why the daemon can't write the database, or why nobody could.
    pub not_writable: Option<&'a str>,
    /// Issued secrets that lie on this home's disk alone.
    pub late: Waiting,
    /// Bytes left where the home is; None: unknown.
    pub free: Option<u64>,
    /// How far this host's clock is behind the services', in seconds.
    pub clock_behind: Option<i64>,
    pub glance: &'a Glance,
    pub providers: &'a [ProviderRow],
    pub plugins: &'a [PluginStatus],
    pub workers: &'a [WorkerStatus],
    pub held: &'a [(String, String)],
    pub external_workers: &'a [ExternalWorkerRow],
    pub sinks: &'a [SinkState],
    /// Messages of alerts that didn't arrive, newest first.
    pub undelivered: &'a [DeliveryRow],
}

/// Everything that needs a person. What there is more of than is named counts in the second.
pub fn of(found: &Found<'_>) -> (Vec<Need>, u64) {
    let mut needs = of_the_host(found);
    needs.extend(of_services(found));
    needs.extend(found.glance.person.iter().map(of_credential));
    needs.extend(found.glance.ending.iter().filter_map(|row| ending(row, found)));
    needs.extend(found.plugins.iter().filter_map(of_plugin));
    for worker in found.external_workers.iter().filter(|worker| worker.presence == Presence::Silent) {
        let what = format!(
            "external worker `{}` of `{}` was last heard of {}",
            worker.worker_id,
            worker.service,
            ago(found.now, Some(worker.last_seen_at))
        );
        needs.push(Need::new(
            Kind::Silent,
            Some(&worker.worker_id),
            what,
            format!("see to it where it runs; `keywheel worker-token revoke {}` forgets it", worker.token_id),
        ));
    }
    for sink in found.sinks.iter().filter(|sink| sink.tries > 0) {
        let why = sink.last_error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        needs.push(Need::new(
            Kind::Sink,
            Some(&sink.sink),
            format!("sink `{}` has not got the secrets in force{why}", sink.sink),
            format!("keywheel sink sync {}", sink.sink),
        ));
    }
    needs.extend(untold(found.undelivered));
    // Of equals the order in which they were found, which is the longest first.
    needs.sort_by_key(|need| need.kind);
    let named = found.glance.person.len() as u64;
    (needs, u64::from(found.glance.person_count).saturating_sub(named))
}

/// Whoever relies on alerts must learn elsewhere that a channel doesn't bring them. One that was
/// never tried only waits for its moment.
fn untold(undelivered: &[DeliveryRow]) -> impl Iterator<Item = Need> {
    let mut channels: BTreeMap<&str, (usize, Option<&str>)> = BTreeMap::new();
    for row in undelivered.iter().filter(|row| row.tries > 0) {
        let (messages, why) = channels.entry(&row.channel).or_default();
        *messages += 1;
        *why = why.or(row.last_error.as_deref());
    }
    channels.into_iter().map(|(channel, (messages, why))| {
        let what = format!(
            "{messages} alert{} did not arrive by `{channel}`: {}",
            if messages == 1 { "" } else { "s" },
            why.unwrap_or("no answer")
        );
        Need::new(Kind::Untold, Some(channel), what, format!("keywheel alert test {channel}"))
    })
}

fn of_the_host(found: &Found<'_>) -> Vec<Need> {
    let mut needs = Vec::new();
    if let Some(why) = found.not_writable {
        needs.push(Need::new(
            Kind::Database,
            None,
            format!("the database can't be written, so nothing is rotated: {why}"),
            "make room on its disk, or make it writable; it goes on by itself",
        ));
    }
    let Waiting { waiting, aside } = found.late;
    if waiting > 0 {
        let secrets = if waiting == 1 { "an issued secret waits" } else { "issued secrets wait" };
        needs.push(Need::new(
            Kind::Unstored,
            None,
            format!("{secrets} on this home's disk to be stored ({waiting} in late/)"),
            "leave the files alone: the daemon stores them once it can",
        ));
    }
    if aside > 0 {
        needs.push(Need::new(
            Kind::Unstored,
            None,
            format!("{aside} in late/ can't be read, and may have been the only secret that lived"),
            "keywheel credential list --failing, then delete what ends in .unreadable there",
        ));
    }
    if let Some(free) = found.free.filter(|&free| free < limits::LITTLE_SPACE) {
        needs.push(Need::new(
            Kind::Disk,
            None,
            format!("{} MiB are left on the home's disk", free >> 20),
            "keywheel reports prune --older-than 30d, or make room there",
        ));
    }
    match found.daemon {
        Daemon::Runs => {}
        Daemon::None => needs.push(Need::new(
            Kind::Daemon,
            None,
            "no daemon runs, so nothing is kept alive",
            "keywheel serve",
        )),
        Daemon::Hangs => needs.push(Need::new(
            Kind::Daemon,
            None,
            "the daemon doesn't answer",
            "look at its log, and restart it",
        )),
    }
    if let Some(behind) = found.clock_behind {
        let way = if behind < 0 { "ahead" } else { "behind" };
        needs.push(Need::new(
            Kind::Clock,
            None,
            format!("this host's clock is {} s {way}, by what the services say", behind.unsigned_abs()),
            "timedatectl set-ntp true",
        ));
    }
    needs
}

fn of_services(found: &Found<'_>) -> Vec<Need> {
    let mut needs = Vec::new();
    for worker in found.workers.iter().filter(|worker| worker.state == "parked") {
        needs.push(Need::new(
            Kind::Parked,
            Some(&worker.service),
            format!("the worker of `{}` keeps dying and is parked", worker.service),
            format!("keywheel plugin unpark {}", worker.service),
        ));
    }
    for row in &found.glance.services {
        let service = row.service.as_str();
        let is_active = |plugin: &&PluginStatus| {
            plugin.service.as_deref() == Some(service)
                && (plugin.state == PluginState::Active || plugin.in_use.is_some())
        };
        let served = found.workers.iter().any(|worker| worker.service == service)
            || found.plugins.iter().any(|plugin| is_active(&plugin));
        if row.credentials > 0 && found.daemon == Daemon::Runs && !served {
            needs.push(Need::new(
                Kind::Unserved,
                Some(service),
                format!("no plugin serves `{service}`, which has {}", counted(row.credentials, "credential")),
                match catalogue::file(service) {
                    Ok(_) => format!("keywheel plugin install {service}"),
                    Err(_) => "keywheel plugin list".into(),
                },
            ));
        }
        let is_held = row.paused || found.held.iter().any(|(held, _)| held == service);
        let since = row.next_due_at.map_or(0, |due| found.now.saturating_sub(due));
        if found.daemon == Daemon::Runs && served && !is_held && row.due > 0 && since > LATE {
            needs.push(Need::new(
                Kind::Late,
                Some(service),
                format!(
                    "{} of `{service}` should have begun {}",
                    counted(row.due, "look"),
                    ago(found.now, row.next_due_at)
                ),
                "look at the daemon's log",
            ));
        }
    }
    for unclear in &found.glance.unclear {
        let for_long = unclear.since.is_none_or(|since| found.now.saturating_sub(since) > UNCLEAR);
        let is_paused = found.glance.services.iter().any(|row| row.service == unclear.service && row.paused);
        if for_long && !is_paused {
            let many = if unclear.count >= COUNTED_AT_MOST { " or more" } else { "" };
            let why = unclear.message.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let last = match unclear.since {
                Some(since) => format!(", one of them since {}", ago(found.now, Some(since))),
                None => ", one of them ever".into(),
            };
            needs.push(Need::new(
                Kind::Unclear,
                Some(&unclear.service),
                format!(
                    "{}{many} of `{}` could not be told alive or dead{last}{why}",
                    counted(u64::from(unclear.count), "credential"),
                    unclear.service
                ),
                format!("keywheel credential list --failing --service {}", unclear.service),
            ));
        }
    }
    needs
}

fn of_credential(row: &CredentialRow) -> Need {
    let (id, monitor) = (row.credential_id.as_str(), &row.monitor);
    let needs_human = monitor.last_verdict.as_deref() == Some("needs-human");
    let (kind, state) = match needs_human {
        true => (Kind::NeedsHuman, "needs a person"),
        false => (Kind::Invalid, "is dead"),
    };
    let why = monitor.last_message.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    // The message of a report ends in a hint of its own; the command below says it.
    let why = why.split("; hint:").next().unwrap_or_default().to_owned();
    let next = match row.external {
        true => format!("sign in where its worker runs; keywheel reports list --credential {id} --limit 1"),
        false => format!("keywheel credential import {id} FILE"),
    };
    Need::new(kind, Some(id), format!("`{id}` of `{}` {state}{why}", row.service), next)
}

/// A secret that ends before long and that nothing renews by itself.
fn ending(row: &CredentialRow, found: &Found<'_>) -> Option<Need> {
    let (id, at) = (row.credential_id.as_str(), row.monitor.expires_at?);
    let provider = found.providers.iter().find(|provider| provider.service == row.service);
    let rotates = provider.is_some_and(|provider| !provider.manifest.methods.is_empty());
    if rotates && !row.paused && !row.service_paused {
        return None;
    }
    let (why, next) = match rotates {
        true => (
            "it is paused".to_owned(),
            match row.paused {
                true => format!("keywheel credential resume {id}"),
                false => format!("keywheel plugin resume {}", row.service),
            },
        ),
        false => {
            (format!("`{}` can't renew it", row.service), format!("keywheel credential import {id} FILE"))
        }
    };
    let when = if at > found.now { "ends" } else { "ended" };
    let what = format!("`{id}` of `{}` {when} {}, and {why}", row.service, ago(found.now, Some(at)));
    Some(Need::new(Kind::Ending, Some(id), what, next))
}

fn of_plugin(plugin: &PluginStatus) -> Option<Need> {
    let (file, service) = (plugin.file.as_str(), plugin.service.as_deref());
    let why = plugin.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match plugin.state {
        PluginState::Active => None,
        PluginState::PendingApproval => Some(Need::new(
            Kind::Approval,
            Some(file),
            format!("{file} waits for your approval{why}"),
            format!("keywheel plugin approve {}", service.unwrap_or("SERVICE")),
        )),
        PluginState::Refused => Some(Need::new(
            Kind::Refused,
            Some(file),
            format!("{file} is refused{why}"),
            "put a good one in its place, or delete it; keywheel plugin list",
        )),
        PluginState::Conflict => Some(Need::new(
            Kind::Conflict,
            Some(file),
            format!("{file} is one too many{why}"),
            "delete one of the two; keywheel plugin list",
        )),
    }
}

pub fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// By a clock that is given, in the words of `output::relative`.
fn ago(now: Millis, at: Option<Millis>) -> String {
    super::output::relative_to(now, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::glance::{ServiceRow, Unclear};

    const NOW: Millis = 1_700_000_000_000;
    const HOUR: Millis = 3_600_000;

    fn nothing(glance: &Glance) -> Found<'_> {
        Found {
            now: NOW,
            daemon: Daemon::Runs,
            not_writable: None,
            late: Waiting::default(),
            free: Some(1 << 40),
            clock_behind: None,
            glance,
            providers: &[],
            plugins: &[],
            workers: &[],
            held: &[],
            external_workers: &[],
            sinks: &[],
            undelivered: &[],
        }
    }

    fn plugin(file: &str, state: PluginState, service: &str) -> PluginStatus {
        serde_json::from_value(serde_json::json!({
            "file": file, "state": state, "service": service, "title": null, "version": null,
            "digest": null, "permissions": [], "reason": "why not", "inUse": null,
            "provider": null, "signature": null,
        }))
        .unwrap()
    }

    fn worker(service: &str, state: &str) -> WorkerStatus {
        WorkerStatus {
            service: service.into(),
            digest: String::new(),
            state: state.into(),
            pid: None,
            worker_id: None,
            in_flight: 0,
            starts: 0,
            crashes: 5,
            last_end: None,
            layers: Vec::new(),
        }
    }

    fn kinds(found: &Found<'_>) -> Vec<Kind> {
        of(found).0.into_iter().map(|need| need.kind).collect()
    }

    #[test]
    fn where_nothing_is_wrong_nobody_is_needed() {
        let glance = Glance {
            services: vec![ServiceRow { service: "shop".into(), credentials: 3, ..ServiceRow::default() }],
            ..Glance::default()
        };
        let workers = [worker("shop", "running")];
        assert_eq!(of(&Found { workers: &workers, ..nothing(&glance) }), (vec![], 0));
    }

    #[test]
    fn the_worst_comes_first_and_each_says_what_to_run() {
        let glance = Glance {
            services: vec![
                ServiceRow { service: "gone".into(), credentials: 1, ..ServiceRow::default() },
                ServiceRow {
                    service: "late".into(),
                    credentials: 9,
                    due: 9,
                    next_due_at: Some(NOW - HOUR),
                    ..ServiceRow::default()
                },
            ],
            unclear: vec![Unclear {
                service: "late".into(),
                count: 4,
                since: Some(NOW - 2 * HOUR),
                message: Some("time-out".into()),
            }],
            person_count: 12,
            ..Glance::default()
        };
        let found = Found {
            not_writable: Some("disk is full"),
            late: Waiting { waiting: 2, aside: 1 },
            free: Some(1 << 20),
            clock_behind: Some(-40),
            plugins: &[
                plugin("a.wasm", PluginState::Conflict, "late"),
                plugin("b.wasm", PluginState::PendingApproval, "late"),
                plugin("c.wasm", PluginState::Refused, "x"),
            ],
            workers: &[worker("late", "running"), worker("sick", "parked")],
            ..nothing(&glance)
        };
        let sink = SinkState {
            sink: "jar".into(),
            got: None,
            delivered_at: None,
            tries: 2,
            next_try_at: None,
            last_error: Some("no such folder".into()),
        };
        let sinks = [sink];
        let message = |channel: &str, tries: u32| DeliveryRow {
            id: 1,
            channel: channel.into(),
            dedup_key: "key".into(),
            title: None,
            created_at: NOW,
            tries,
            next_try_at: NOW,
            failed_at: None,
            last_error: Some("answered with 503".into()),
        };
        let undelivered = [message("phone", 2), message("mail", 0), message("phone", 1)];
        let found = Found { sinks: &sinks, undelivered: &undelivered, ..found };
        let (needs, more) = of(&found);
        let said: Vec<_> = needs.iter().map(|need| (need.kind, need.next.as_str())).collect();
        assert_eq!(
            said,
            [
                (Kind::Database, "make room on its disk, or make it writable; it goes on by itself"),
                (Kind::Unstored, "leave the files alone: the daemon stores them once it can"),
                (
                    Kind::Unstored,
                    "keywheel credential list --failing, then delete what ends in .unreadable there",
                ),
                (Kind::Disk, "keywheel reports prune --older-than 30d, or make room there"),
                (Kind::Clock, "timedatectl set-ntp true"),
                (Kind::Parked, "keywheel plugin unpark sick"),
                (Kind::Unserved, "keywheel plugin list"),
                (Kind::Late, "look at the daemon's log"),
                (Kind::Unclear, "keywheel credential list --failing --service late"),
                (Kind::Sink, "keywheel sink sync jar"),
                (Kind::Untold, "keywheel alert test phone"),
                (Kind::Approval, "keywheel plugin approve late"),
                (Kind::Refused, "put a good one in its place, or delete it; keywheel plugin list"),
                (Kind::Conflict, "delete one of the two; keywheel plugin list"),
            ]
        );
        assert!(needs[4].what.contains("40 s ahead"), "{}", needs[4].what);
        assert_eq!(needs[1].what, "issued secrets wait on this home's disk to be stored (2 in late/)");
        assert_eq!(needs[10].what, "2 alerts did not arrive by `phone`: answered with 503");
        // Those that are counted and not named are not forgotten.
        assert_eq!(more, 12);
    }

    #[test]
    fn what_is_held_up_or_just_failed_is_no_need() {
        let late = ServiceRow {
            service: "late".into(),
            credentials: 9,
            due: 9,
            next_due_at: Some(NOW - HOUR),
            ..ServiceRow::default()
        };
        let unclear = Unclear { service: "late".into(), count: 1, since: Some(NOW - 60_000), message: None };
        let glance = Glance { services: vec![late.clone()], unclear: vec![unclear], ..Glance::default() };
        let workers = [worker("late", "idle")];
        let held = [("late".to_owned(), "the rate limit".to_owned())];
        let found = Found { workers: &workers, ..nothing(&glance) };
        assert_eq!(kinds(&Found { held: &held, ..found }), []);
        let found = Found { workers: &workers, ..nothing(&glance) };
        assert_eq!(kinds(&found), [Kind::Late]);
        // Without a daemon that is the one thing to say.
        let found = Found { daemon: Daemon::None, ..nothing(&glance) };
        assert_eq!(kinds(&found), [Kind::Daemon]);
    }
}
