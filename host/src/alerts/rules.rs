//! When somebody is told, and of what: facts, what was told so far, the operator's choices and a
//! clock in; new states and notices out. Pure. It reads no database and sends nothing, so the
//! same look twice decides the same, and a restart between two looks changes nothing.
//!
//! Told is what changed: a thing in trouble once, once more where it got worse, once when it is
//! well again, and a bounded number of reminders between. What changes and changes back before
//! its notice is told as what it comes to, which may be nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::credential::Millis;
use crate::db::alerts::{AlertChange, AlertGroup, AlertState, Kind, Severity, Told};
use crate::limits;

/// The operator's choices, as far as they decide here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub remind_every: Millis,
    pub remind_at_most: u32,
    pub group_wait: Millis,
    pub group_interval: Millis,
}

/// One thing that is in trouble now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub subject: String,
    pub group: String,
    pub service: Option<String>,
    pub kind: Kind,
    pub severity: Severity,
    /// Of an end that comes nearer: the days of the warning. Fewer are worse.
    pub stage: u32,
    pub since: Millis,
    pub what: String,
    pub why: Option<String>,
    pub hint: String,
    /// Not yet worth a word, but what was called trouble isn't over by it.
    pub is_faint: bool,
    /// Nobody wants to hear of it now: it is paused.
    pub is_muted: bool,
}

/// How something that was in trouble is found not to be any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Over,
    /// What it was about isn't kept any more.
    Gone,
    /// Another alert goes on from here, or nobody cares: no word of it.
    Silent,
}

/// What a look found.
pub struct Look<'a> {
    pub now: Millis,
    pub troubles: &'a [Trouble],
    /// What is surely over. A subject that is neither here nor in trouble wasn't looked at, and
    /// stays as it is.
    pub ended: &'a BTreeMap<String, End>,
    /// What the operator wants to hear nothing of for a while: subjects, or `service:NAME`.
    pub snoozed: &'a BTreeSet<String>,
}

/// What follows from a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decided {
    /// Without the deliveries, which are the notices' for each channel.
    pub change: AlertChange,
    pub notices: Vec<Notice>,
    /// When something is to be told that now is too early for.
    pub wake_at: Option<Millis>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Opened,
    /// Some are in trouble and some are well again.
    Changed,
    Reminder,
    Resolved,
    Test,
}

impl Event {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Changed => "changed",
            Self::Reminder => "reminder",
            Self::Resolved => "resolved",
            Self::Test => "test",
        }
    }
}

/// One message, for whichever channel. It lies in the outbox in this form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    pub event: Event,
    pub at: Millis,
    pub group: String,
    /// Within the group: the number of this notice.
    pub sequence: u64,
    pub service: Option<String>,
    pub severity: Severity,
    pub title: String,
    /// In trouble now, in this group.
    pub open: u32,
    /// Of these: new with this notice, or worse.
    pub opened: u32,
    /// Well again with this notice.
    pub resolved: u32,
    /// Which reminder of how many.
    pub reminder: Option<(u32, u32)>,
    /// The first of them; `opened`, `resolved` and `open` count all.
    pub alerts: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    pub subject: String,
    pub resolved: bool,
    pub kind: Kind,
    pub severity: Severity,
    pub what: String,
    pub since: Millis,
    pub why: Option<String>,
    pub hint: String,
}

impl Item {
    pub fn of(state: &AlertState) -> Self {
        Self {
            subject: state.subject.clone(),
            resolved: !state.is_open(),
            kind: state.kind,
            severity: state.told.map_or(state.severity, |told| told.severity.max(state.severity)),
            what: state.what.clone(),
            since: state.since,
            why: state.why.clone(),
            hint: state.hint.clone(),
        }
    }
}

/// Whether receivers have to hear of a state: it is new to them, or worse than they know.
fn is_news(state: &AlertState) -> bool {
    match state.told {
        _ if !state.is_open() => state.told.is_some(),
        None => true,
        Some(told) => told.severity < state.severity || (state.stage != 0 && state.stage < told.stage),
    }
}

/// Decides what a look changes, and what is told.
pub fn step(
    rules: &Rules,
    states: &BTreeMap<String, AlertState>,
    groups: &BTreeMap<String, AlertGroup>,
    look: &Look<'_>,
) -> Decided {
    let mut decided = Decided::default();
    let mut next = states.clone();
    let mut muted: BTreeSet<&str> = BTreeSet::new();
    for trouble in look.troubles {
        if trouble.is_muted {
            muted.insert(&trouble.subject);
        }
        take_in(&mut next, trouble, look.now);
    }
    for (subject, end) in look.ended {
        let Some(state) = next.get_mut(subject).filter(|state| state.is_open()) else { continue };
        state.closed_at = Some(look.now);
        state.why = (*end == End::Gone).then(|| String::from("it was removed"));
        if *end == End::Silent {
            state.told = None;
        }
    }
    // What came and went before anybody heard of it never was.
    let never: Vec<String> = next
        .values()
        .filter(|state| {
            let was_told = states.get(&state.subject).is_some_and(|old| old.told.is_some() || !old.is_open());
            !state.is_open() && state.told.is_none() && !was_told
        })
        .map(|state| state.subject.clone())
        .collect();
    for subject in never {
        next.remove(&subject);
        if states.contains_key(&subject) {
            decided.change.gone.push(subject);
        }
    }

    let is_hushed = |state: &AlertState| {
        let of_service = state.service.as_ref().map(|service| format!("service:{service}"));
        // Whoever snoozes a credential means its end as well.
        let of_credential = state.subject.strip_prefix("expiry:").map(|id| format!("credential:{id}"));
        muted.contains(state.subject.as_str())
            || look.snoozed.contains(&state.subject)
            || [of_service, of_credential].into_iter().flatten().any(|name| look.snoozed.contains(&name))
    };
    let mut by_group: BTreeMap<String, Vec<&mut AlertState>> = BTreeMap::new();
    for state in next.values_mut() {
        by_group.entry(state.group.clone()).or_default().push(state);
    }
    for (name, mut members) in by_group {
        let new = AlertGroup { group: name.clone(), ..AlertGroup::default() };
        let old = groups.get(&name).unwrap_or(&new);
        let mut group = old.clone();
        let told = tell(rules, &mut group, &mut members, look.now, &is_hushed);
        decided.notices.extend(told.notice);
        decided.wake_at = earliest(decided.wake_at, told.wake_at);
        if group != *old {
            decided.change.groups.push(group);
        }
    }
    decided.change.states =
        next.into_values().filter(|state| states.get(&state.subject) != Some(state)).collect();
    decided
}

/// Brings what is known of a subject up to a trouble that was found.
fn take_in(next: &mut BTreeMap<String, AlertState>, trouble: &Trouble, now: Millis) {
    let old = next.get_mut(&trouble.subject);
    if trouble.is_faint && old.as_ref().is_none_or(|old| !old.is_open()) {
        return;
    }
    let fresh = |told| AlertState {
        subject: trouble.subject.clone(),
        group: trouble.group.clone(),
        service: trouble.service.clone(),
        kind: trouble.kind,
        severity: trouble.severity,
        stage: trouble.stage,
        since: trouble.since.min(now),
        opened_at: now,
        closed_at: None,
        told,
        what: trouble.what.clone(),
        why: trouble.why.clone(),
        hint: trouble.hint.clone(),
    };
    match old {
        // In trouble again before anybody was told that it was well: to them it never was.
        Some(old) if !old.is_open() => *old = fresh(old.told),
        Some(old) => {
            // It never gets milder but by its end: who must act still must when the service is
            // away as well.
            let is_worse = old.severity < trouble.severity
                || (trouble.stage != 0 && (old.stage == 0 || trouble.stage < old.stage));
            let is_known_kind = old.kind == trouble.kind || trouble.severity < old.severity;
            if trouble.stage > old.stage {
                // The end has moved away, and is told of again when it comes near.
                let told = Told { severity: trouble.severity, stage: trouble.stage };
                *old = fresh(old.told.map(|_| told));
                return;
            }
            if !trouble.is_faint && (is_worse || !is_known_kind) {
                let (since, opened_at) = (old.since, old.opened_at);
                *old = AlertState { since, opened_at, ..fresh(old.told) };
            }
        }
        None => {
            next.insert(trouble.subject.clone(), fresh(None));
        }
    }
}

struct Telling {
    notice: Option<Notice>,
    wake_at: Option<Millis>,
}

/// Decides about one group, and marks what is told.
fn tell(
    rules: &Rules,
    group: &mut AlertGroup,
    members: &mut [&mut AlertState],
    now: Millis,
    is_hushed: &impl Fn(&AlertState) -> bool,
) -> Telling {
    // A clock that was set back must not put anything off beyond its time.
    let past = |at: Option<Millis>| at.map(|at| at.min(now));
    (group.changed_at, group.noticed_at) = (past(group.changed_at), past(group.noticed_at));
    // That something is over is said also of what is snoozed: it ends the story.
    let has_news = |state: &AlertState| is_news(state) && (!state.is_open() || !is_hushed(state));
    if members.iter().any(|state| has_news(state)) {
        let changed_at = *group.changed_at.get_or_insert(now);
        // Also after what was resolved: this is what bounds whatever comes and goes.
        let again = group.noticed_at.map_or(0, |at| at + rules.group_interval);
        let at = (changed_at + rules.group_wait).max(again);
        if at > now {
            return Telling { notice: None, wake_at: Some(at) };
        }
        let notice = changed(group, members, now, &has_news);
        for state in members.iter_mut().filter(|state| has_news(state)) {
            state.told = state.is_open().then_some(Told { severity: state.severity, stage: state.stage });
        }
        return Telling { notice: Some(notice), wake_at: reminder_at(rules, group, members, is_hushed) };
    }
    group.changed_at = None;
    match reminder_at(rules, group, members, is_hushed) {
        Some(at) if at <= now => {
            group.reminders += 1;
            let notice = reminder(rules, group, members, now, is_hushed);
            Telling { notice: Some(notice), wake_at: reminder_at(rules, group, members, is_hushed) }
        }
        wake_at => Telling { notice: None, wake_at },
    }
}

/// An end that comes nearer has its stages in a reminder's place.
fn is_reminded(state: &AlertState, is_hushed: &impl Fn(&AlertState) -> bool) -> bool {
    state.is_open() && state.told.is_some() && state.kind != Kind::Expiry && !is_hushed(state)
}

fn reminder_at(
    rules: &Rules,
    group: &AlertGroup,
    members: &[&mut AlertState],
    is_hushed: &impl Fn(&AlertState) -> bool,
) -> Option<Millis> {
    let is_wanted =
        group.reminders < rules.remind_at_most && members.iter().any(|state| is_reminded(state, is_hushed));
    is_wanted.then(|| group.noticed_at.unwrap_or(0).saturating_add(rules.remind_every))
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn changed(
    group: &mut AlertGroup,
    members: &[&mut AlertState],
    now: Millis,
    has_news: &impl Fn(&AlertState) -> bool,
) -> Notice {
    let news: Vec<&AlertState> =
        members.iter().map(|state| &**state).filter(|state| has_news(state)).collect();
    let (opened, resolved): (Vec<_>, Vec<_>) = news.into_iter().partition(|state| state.is_open());
    let open = members.iter().filter(|state| state.is_open()).count();
    let event = match (opened.is_empty(), resolved.is_empty(), open) {
        (false, true, _) => Event::Opened,
        (true, false, 0) => Event::Resolved,
        _ => Event::Changed,
    };
    let items: Vec<Item> = worst_first(opened.iter().chain(&resolved).copied());
    let severity = items.iter().map(|item| item.severity).max().unwrap_or(Severity::Warning);
    let service = service_of(members);
    group.sequence += 1;
    (group.noticed_at, group.changed_at, group.reminders) = (Some(now), None, 0);
    let title = match event {
        Event::Opened => opened_title(&opened, open, service.as_deref()),
        Event::Resolved => resolved_title(&resolved, service.as_deref()),
        _ => format!(
            "{}: {} more in trouble, {} well again, {open} in trouble now",
            service.as_deref().map_or_else(|| group.group.clone(), |service| format!("`{service}`")),
            opened.len(),
            resolved.len(),
        ),
    };
    Notice {
        event,
        at: now,
        group: group.group.clone(),
        sequence: group.sequence,
        service,
        severity,
        title,
        open: count(open),
        opened: count(opened.len()),
        resolved: count(resolved.len()),
        reminder: None,
        alerts: items.into_iter().take(limits::ALERTS_LISTED).collect(),
    }
}

fn reminder(
    rules: &Rules,
    group: &mut AlertGroup,
    members: &[&mut AlertState],
    now: Millis,
    is_hushed: &impl Fn(&AlertState) -> bool,
) -> Notice {
    let still: Vec<&AlertState> =
        members.iter().map(|state| &**state).filter(|state| is_reminded(state, is_hushed)).collect();
    let service = service_of(members);
    let items = worst_first(still.iter().copied());
    group.sequence += 1;
    group.noticed_at = Some(now);
    Notice {
        event: Event::Reminder,
        at: now,
        group: group.group.clone(),
        sequence: group.sequence,
        severity: items.iter().map(|item| item.severity).max().unwrap_or(Severity::Warning),
        title: format!("still: {}", opened_title(&still, still.len(), service.as_deref())),
        service,
        open: count(still.len()),
        opened: 0,
        resolved: 0,
        reminder: Some((group.reminders, rules.remind_at_most)),
        alerts: items.into_iter().take(limits::ALERTS_LISTED).collect(),
    }
}

/// The one service that all of them are about.
fn service_of(members: &[&mut AlertState]) -> Option<String> {
    let mut services = members.iter().map(|state| state.service.as_ref());
    let first = services.next()??;
    services.all(|service| service == Some(first)).then(|| first.clone())
}

fn worst_first<'a>(states: impl Iterator<Item = &'a AlertState>) -> Vec<Item> {
    let mut items: Vec<Item> = states.map(Item::of).collect();
    items.sort_by(|a, b| (a.resolved, b.severity, a.since).cmp(&(b.resolved, a.severity, b.since)));
    items
}

fn opened_title(opened: &[&AlertState], open: usize, service: Option<&str>) -> String {
    if let [one] = opened {
        let others = match open.saturating_sub(1) {
            0 => String::new(),
            others => format!(" (and {others} more since before)"),
        };
        return format!("{}{others}", one.what);
    }
    let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
    for state in opened {
        *kinds.entry(state.kind).or_default() += 1;
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|(kind, count)| format!("{count} {}", phrase(kind))).collect();
    let of = service.map(|service| format!(" of `{service}`")).unwrap_or_default();
    format!("{} {}{of}: {}", opened.len(), noun(opened), kinds.join(", "))
}

fn resolved_title(resolved: &[&AlertState], service: Option<&str>) -> String {
    match resolved {
        [one] => format!("resolved: {}", name(one)),
        _ => {
            let of = service.map(|service| format!(" of `{service}`")).unwrap_or_default();
            format!("resolved: all {} {}{of}", resolved.len(), noun(resolved))
        }
    }
}

const fn noun(states: &[&AlertState]) -> &'static str {
    match states {
        [first, ..] => match first.kind {
            Kind::Plugin => "plugin files",
            Kind::Worker => "workers",
            Kind::ExternalWorker => "external workers",
            _ => "credentials",
        },
        [] => "alerts",
    }
}

/// What several of a kind do, after their number.
const fn phrase(kind: Kind) -> &'static str {
    match kind {
        Kind::Unreachable => "can't be asked about",
        Kind::Failed => "fail",
        Kind::Invalid => "are dead",
        Kind::NeedsHuman => "need a person",
        Kind::Expiry => "expire soon",
        Kind::Plugin => "don't serve",
        Kind::Worker => "are parked",
        Kind::ExternalWorker => "are silent",
        _ => "in trouble",
    }
}

/// What a subject is called where it is well again.
fn name(state: &AlertState) -> String {
    let of = state.service.as_ref().map(|service| format!(" of `{service}`")).unwrap_or_default();
    match state.subject.split_once(':') {
        Some(("credential" | "expiry", id)) if state.why.is_some() => format!("`{id}`{of} was removed"),
        Some(("credential", id)) => format!("`{id}`{of} works again"),
        Some(("expiry", id)) => format!("`{id}`{of} was renewed, or is renewed by itself again"),
        Some(("plugin", file)) => format!("plugin file {file}"),
        Some(("worker", service)) => format!("the worker of `{service}` may run again"),
        Some(("external", worker)) => format!("external worker {worker}"),
        Some(("host", "database")) => String::from("the database can be written again"),
        Some(("host", "disk")) => String::from("there is space on the disk again"),
        Some(("host", "clock")) => String::from("this host's clock agrees with the services again"),
        Some(("host", "scheduler")) => String::from("attempts end again"),
        Some(("host", "backup")) => String::from("there is a recent backup"),
        _ => state.subject.clone(),
    }
}

fn earliest(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
