//! Tables and random histories of the rules: what receivers believe is what is, each thing is
//! told once, and no clock, flapping or crowd makes it more.

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { remind_every: 1_000, remind_at_most: 2, group_wait: 10, group_interval: 100 };

/// Rules with their memory, as the database keeps it.
#[derive(Default)]
struct World {
    states: BTreeMap<String, AlertState>,
    groups: BTreeMap<String, AlertGroup>,
    notices: Vec<Notice>,
    snoozed: BTreeSet<String>,
}

fn trouble(id: &str) -> Trouble {
    Trouble {
        subject: format!("credential:{id}"),
        group: "service:forge".into(),
        service: Some("forge".into()),
        kind: Kind::Unreachable,
        severity: Severity::Warning,
        stage: 0,
        since: 0,
        what: format!("{id} is away"),
        why: None,
        hint: "wait".into(),
        is_faint: false,
        is_muted: false,
    }
}

fn worse(id: &str) -> Trouble {
    Trouble { kind: Kind::NeedsHuman, severity: Severity::Critical, ..trouble(id) }
}

impl World {
    /// A look in which everything that isn't in trouble is over. Returns what is told.
    fn look(&mut self, now: Millis, troubles: &[Trouble]) -> Vec<Notice> {
        let of = |state: &&AlertState| !troubles.iter().any(|trouble| trouble.subject == state.subject);
        let ended: BTreeMap<_, _> =
            self.states.values().filter(of).map(|state| (state.subject.clone(), End::Over)).collect();
        self.look_with(now, troubles, &ended).0
    }

    fn look_with(
        &mut self,
        now: Millis,
        troubles: &[Trouble],
        ended: &BTreeMap<String, End>,
    ) -> (Vec<Notice>, Option<Millis>) {
        let look = Look { now, troubles, ended, snoozed: &self.snoozed };
        let decided = step(&RULES, &self.states, &self.groups, &look);
        for state in decided.change.states {
            self.states.insert(state.subject.clone(), state);
        }
        for subject in &decided.change.gone {
            self.states.remove(subject);
        }
        for group in decided.change.groups {
            self.groups.insert(group.group.clone(), group);
        }
        self.notices.extend(decided.notices.clone());
        (decided.notices, decided.wake_at)
    }
}

fn events(notices: &[Notice]) -> Vec<Event> {
    notices.iter().map(|notice| notice.event).collect()
}

#[test]
fn a_trouble_is_told_once_after_the_wait_and_its_end_once_after_the_interval() {
    let mut world = World::default();
    let down = [trouble("ann")];
    assert_eq!(world.look_with(0, &down, &BTreeMap::new()), (vec![], Some(10)));
    assert_eq!(world.look(9, &down), []);
    let told = world.look(10, &down);
    assert_eq!((told[0].event, told[0].title.as_str(), told[0].open), (Event::Opened, "ann is away", 1));
    assert_eq!(world.look(11, &down), []);
    assert_eq!(world.look(50, &[]), []);
    let told = world.look(110, &[]);
    assert_eq!(events(&told), [Event::Resolved]);
    assert_eq!((told[0].open, told[0].resolved, told[0].alerts[0].resolved), (0, 1, true));
    for later in [111, 1_000, 1_000_000] {
        assert_eq!(world.look(later, &[]), []);
    }
    let keys: Vec<_> = world.notices.iter().map(|notice| notice.sequence).collect();
    assert_eq!(keys, [1, 2]);
}

#[test]
fn what_passes_within_the_wait_was_never_there() {
    let mut world = World::default();
    world.look(0, &[trouble("ann")]);
    assert_eq!(world.look(5, &[]), []);
    assert!(world.states.is_empty());
    assert_eq!(world.look(500, &[]), []);
}

#[test]
fn what_comes_back_before_its_end_was_told_is_not_told_again() {
    let mut world = World::default();
    world.look(0, &[trouble("ann")]);
    assert_eq!(world.look(10, &[trouble("ann")]).len(), 1);
    world.look(20, &[]);
    world.look(30, &[trouble("ann")]);
    assert_eq!(world.look(200, &[trouble("ann")]), []);
}

#[test]
fn two_hundred_of_one_service_are_one_notice_and_one_end() {
    let mut world = World::default();
    let all: Vec<_> = (0..200).map(|n| trouble(&format!("c{n:03}"))).collect();
    world.look(0, &all[..50]);
    let told = world.look(10, &all);
    assert_eq!(events(&told), [Event::Opened]);
    assert_eq!(told[0].title, "200 credentials of `forge`: 200 can't be asked about");
    assert_eq!((told[0].opened, told[0].alerts.len()), (200, limits::ALERTS_LISTED));
    world.look(20, &all[..20]);
    let told = world.look(110, &all[..10]);
    assert_eq!(events(&told), [Event::Changed]);
    assert_eq!((told[0].open, told[0].opened, told[0].resolved), (10, 0, 190));
    world.look(150, &[]);
    let told = world.look(210, &[]);
    assert_eq!(
        (told[0].event, told[0].title.as_str()),
        (Event::Resolved, "resolved: all 10 credentials of `forge`")
    );
    assert_eq!(world.notices.len(), 3);
}

#[test]
fn reminders_come_on_schedule_bounded_and_anew_after_a_change() {
    let mut world = World::default();
    let down = [trouble("ann")];
    world.look(0, &down);
    world.look(10, &down);
    assert_eq!(world.look_with(1_009, &down, &BTreeMap::new()), (vec![], Some(1_010)));
    let told = world.look(1_010, &down);
    assert_eq!((told[0].event, told[0].reminder), (Event::Reminder, Some((1, 2))));
    assert_eq!(told[0].title, "still: ann is away");
    // A look that comes late makes one of it, not several.
    assert_eq!(events(&world.look(9_000, &down)), [Event::Reminder]);
    assert_eq!(world.look(99_000, &down), []);
    let both = [trouble("ann"), trouble("bob")];
    world.look(99_000, &both);
    assert_eq!(world.look(99_010, &both)[0].title, "bob is away (and 1 more since before)");
    assert_eq!(events(&world.look(100_010, &both)), [Event::Reminder]);
}

#[test]
fn worse_is_told_once_and_milder_is_not_news() {
    let mut world = World::default();
    world.look(0, &[trouble("ann")]);
    world.look(10, &[trouble("ann")]);
    world.look(20, &[worse("ann")]);
    let told = world.look(110, &[worse("ann")]);
    assert_eq!((told[0].event, told[0].severity), (Event::Opened, Severity::Critical));
    // The service is away: whoever must act still must.
    assert_eq!(world.look(500, &[trouble("ann")]), []);
    assert_eq!(world.states["credential:ann"].kind, Kind::NeedsHuman);
    world.look(510, &[]);
    let told = world.look(600, &[]);
    assert_eq!((told[0].event, told[0].severity), (Event::Resolved, Severity::Critical));
}

#[test]
fn a_few_failures_open_nothing_and_end_nothing() {
    let faint = Trouble { is_faint: true, ..trouble("ann") };
    let mut world = World::default();
    world.look(0, std::slice::from_ref(&faint));
    assert!(world.states.is_empty());
    world.look(10, &[trouble("ann")]);
    world.look(20, &[trouble("ann")]);
    // It worked once between two looks and fails again.
    assert_eq!(world.look(200, &[faint]), []);
    assert!(world.states["credential:ann"].is_open());
}

#[test]
fn what_was_not_looked_at_stays_as_it_is() {
    let mut world = World::default();
    world.look(0, &[trouble("ann")]);
    world.look(10, &[trouble("ann")]);
    assert_eq!(world.look_with(500, &[], &BTreeMap::new()).0, []);
    assert!(world.states["credential:ann"].is_open());
    let ended = BTreeMap::from([("credential:ann".to_owned(), End::Silent)]);
    assert_eq!(world.look_with(600, &[], &ended).0, []);
    assert!(!world.states["credential:ann"].is_open());
}

#[test]
fn snoozed_and_paused_are_silent_until_they_are_not_and_their_end_is_told() {
    for snooze in [Some("credential:ann"), Some("service:forge"), None] {
        let hushed = Trouble { is_muted: snooze.is_none(), ..trouble("ann") };
        let mut world = World::default();
        world.snoozed.extend(snooze.map(str::to_owned));
        world.look(0, std::slice::from_ref(&hushed));
        assert_eq!(world.look(5_000, std::slice::from_ref(&hushed)), [], "{snooze:?}");
        world.snoozed.clear();
        world.look(6_000, &[trouble("ann")]);
        assert_eq!(events(&world.look(6_010, &[trouble("ann")])), [Event::Opened], "{snooze:?}");
        // Told, and hushed after that: no reminder, but its end.
        world.snoozed.extend(snooze.map(str::to_owned));
        assert_eq!(world.look(9_000, &[hushed]), [], "{snooze:?}");
        world.look(9_001, &[]);
        assert_eq!(events(&world.look(9_011, &[])), [Event::Resolved], "{snooze:?}");
    }
}

#[test]
fn an_end_that_comes_nearer_is_told_at_each_stage_once_and_again_after_a_renewal() {
    let at = |stage: u32| Trouble {
        subject: "expiry:ann".into(),
        group: "expiry:forge".into(),
        kind: Kind::Expiry,
        stage,
        severity: if stage <= 1 { Severity::Critical } else { Severity::Warning },
        ..trouble("ann")
    };
    let mut world = World::default();
    let mut told = Vec::new();
    for (now, stage) in [
        (0, 14),
        (1_000, 14),
        (5_000, 14),
        (6_000, 7),
        (6_500, 7),
        (7_000, 1),
        (9_000, 1),
        (20_000, 14),
        (20_500, 14),
        (30_000, 7),
        (30_500, 7),
    ] {
        for notice in world.look(now, &[at(stage)]) {
            told.push((stage, notice.event));
        }
    }
    assert_eq!(told, [14, 7, 1, 7].map(|stage| (stage, Event::Opened)));
    // Snoozed with its credential.
    world.snoozed.insert("credential:ann".into());
    world.look(40_000, &[at(1)]);
    assert_eq!(world.look(41_000, &[at(1)]), []);
}

#[test]
fn a_clock_that_jumps_puts_nothing_off_and_makes_no_crowd() {
    let mut world = World::default();
    let down = [trouble("ann")];
    world.look(1_000_000, &down);
    // Set back far: it still waits no longer than the wait.
    world.look(0, &down);
    assert_eq!(events(&world.look(10, &down)), [Event::Opened]);
    // Set ahead by years: one reminder, not thousands.
    assert_eq!(events(&world.look(100_000_000, &down)), [Event::Reminder]);
    assert_eq!(world.look(100_000_001, &down), []);
    world.look(50, &down);
    assert_eq!(events(&world.look(50 + 1_000, &down)), [Event::Reminder]);
}

/// One thing that happens between two looks.
#[derive(Debug, Clone)]
enum Turn {
    Fails(u8),
    Dies(u8),
    Heals(u8),
    Passes(u16),
    SetBack(u16),
    Snooze(u8),
    Wake,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let who = 0..4_u8;
    prop::collection::vec(
        prop_oneof![
            4 => who.clone().prop_map(Turn::Fails),
            1 => who.clone().prop_map(Turn::Dies),
            4 => who.clone().prop_map(Turn::Heals),
            6 => (0..400_u16).prop_map(Turn::Passes),
            1 => (0..2_000_u16).prop_map(Turn::SetBack),
            1 => who.prop_map(Turn::Snooze),
            1 => Just(Turn::Wake),
        ],
        1..80,
    )
}

/// What a receiver believes who hears every notice: subject, and how bad.
fn believe(believed: &mut BTreeMap<String, Severity>, notice: &Notice) {
    for item in &notice.alerts {
        if item.resolved {
            assert!(believed.remove(&item.subject).is_some(), "{} ended and never began", item.subject);
        } else if notice.event == Event::Reminder {
            assert_eq!(believed.get(&item.subject), Some(&item.severity), "a reminder of what nobody knows");
        } else {
            let before = believed.insert(item.subject.clone(), item.severity);
            assert!(before.is_none_or(|before| before < item.severity), "{} told twice", item.subject);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn receivers_believe_in_the_end_what_is_and_hear_nothing_twice(turns in turns()) {
        let mut world = World::default();
        let mut failing: BTreeMap<u8, Trouble> = BTreeMap::new();
        let (mut now, mut believed) = (10_000_u64, BTreeMap::new());
        let mut set_back = false;
        for turn in &turns {
            match *turn {
                Turn::Fails(who) => { failing.entry(who).or_insert_with(|| trouble(&who.to_string())); }
                Turn::Dies(who) => { failing.insert(who, worse(&who.to_string())); }
                Turn::Heals(who) => { failing.remove(&who); }
                Turn::Passes(by) => now += u64::from(by),
                Turn::SetBack(by) => { now -= u64::from(by).min(now); set_back = true; }
                Turn::Snooze(who) => { world.snoozed.insert(format!("credential:{who}")); }
                Turn::Wake => world.snoozed.clear(),
            }
            let troubles: Vec<_> = failing.values().cloned().collect();
            for notice in world.look(now, &troubles) {
                believe(&mut believed, &notice);
            }
        }
        // Nobody is snoozed any more, and time goes by.
        world.snoozed.clear();
        let troubles: Vec<_> = failing.values().cloned().collect();
        for _ in 0..3 {
            for notice in world.look(now, &troubles) {
                believe(&mut believed, &notice);
            }
            now += RULES.group_wait + RULES.group_interval;
        }
        let is: BTreeMap<String, Severity> = failing
            .values()
            .map(|trouble| (trouble.subject.clone(), believed.get(&trouble.subject).copied().unwrap_or(trouble.severity).max(trouble.severity)))
            .collect();
        prop_assert_eq!(&believed, &is);
        let mut keys: Vec<_> = world.notices.iter().map(|notice| notice.sequence).collect();
        keys.dedup();
        prop_assert_eq!(keys.len(), world.notices.len());
        if !set_back {
            // However it flaps: changes are told no more often than the interval allows.
            let changes: Vec<_> = world.notices.iter().filter(|notice| notice.event != Event::Reminder).collect();
            for pair in changes.windows(2) {
                prop_assert!(pair[1].at - pair[0].at >= RULES.group_interval);
            }
        }
        for window in world.notices.windows(3) {
            prop_assert!(window.iter().any(|notice| notice.event != Event::Reminder), "more than two reminders in a row");
        }
    }
}
