//! When a credential is looked at next, for what, and why. Pure: facts and a clock in, a moment
//! out. It knows no database and no service; every rule of the schedule is in this file.
//!
//! Chance has no part in it: what looks random is a hash of the credential's name, alone for its
//! place among its siblings (`phase`) and with the number of the attempt for retries (`spread`).
//! So a second host plans the same, and a plan can be explained.

use crate::credential::Millis;
use crate::db::Action;
use crate::quiet::Quiet;

/// A valid credential is never asked more often than this, whatever it or its service says.
const SHORTEST: Millis = 1_000;
/// A dead credential is looked at this often: somebody may have revived it elsewhere.
const DEAD: Millis = 60 * 60_000;
/// Rotation starts when this part of a lifetime is left, at most `LONGEST_MARGIN`; and a session
/// that dies unused is used when this part of its idle time is left.
const MARGIN_PART: Millis = 4;
pub const LONGEST_MARGIN: Millis = 30 * 60_000;
/// What an attempt may take, from its due time to its report.
const LEAD: Millis = crate::limits::ATTEMPT_WALL.as_millis() as Millis;
/// Of many overdue credentials of one service this many start at once: as few as one person has.
pub const AT_ONCE: usize = 16;
/// And the others at this distance, ten a second: a service notices no more than a busy user.
pub const STEP: Millis = 100;

/// What the verdict of an attempt means for the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Alive,
    /// Nothing was learnt; the same question is asked again.
    Unclear,
    Dead,
}

/// What kept an attempt from a good verdict. Each kind has its backoff, see `backoff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Time-outs, 5xx, firewall pages: over in minutes, mostly.
    Unreachable,
    /// 429: every question makes it worse.
    Limited,
    /// The plugin failed, trapped or went over a limit: it will again, until it is replaced.
    Fault,
    /// Invalid, or a person must act.
    Refused,
}

/// Where retries begin, and where they stop growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Millis,
    pub longest: Millis,
}

/// The backoff of each kind of trouble. It doubles with each failure, and a retry comes at any
/// time between a second and that: full jitter, for those who failed together must not come back
/// together. A shorter interval begins with that interval.
pub const fn backoff(trouble: Trouble) -> Backoff {
    match trouble {
        Trouble::Unreachable => Backoff { first: 30_000, longest: 15 * 60_000 },
        Trouble::Limited | Trouble::Fault => Backoff { first: 60_000, longest: 60 * 60_000 },
        // No backoff but a seldom look, see `next`.
        Trouble::Refused => Backoff { first: DEAD, longest: DEAD },
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub now: Millis,
    pub standing: Standing,
    /// Read where `standing` isn't `Alive`.
    pub trouble: Trouble,
    pub action: Action,
    pub interval: Millis,
    /// When the keys in force stop working, if anybody knows.
    pub expires: Option<Millis>,
    /// When the generation in force was issued.
    pub issued: Millis,
    pub max_age: Option<Millis>,
    /// A session that nobody uses for this long dies.
    pub idle_limit: Option<Millis>,
    pub can_rotate: bool,
    pub consecutive_failures: u32,
    /// A token is missing or past its time: only a rotation can tell more.
    pub stale: bool,
    /// What the service asked for: `Retry-After`, or a hint when to come again.
    pub asked: Option<Millis>,
    /// Nothing is rotated by itself then, see `keep_quiet`.
    pub quiet: &'a Quiet,
    /// Evenly spread over credentials and attempts: those who failed together drift apart.
    pub spread: u64,
    /// Evenly spread over credentials and always the same for one: its place among its siblings.
    pub phase: u64,
}

/// The next look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    pub at: Millis,
    pub action: Action,
    /// In words for the operator.
    pub why: String,
}

impl Next {
    fn validate(at: Millis, why: impl Into<String>) -> Self {
        Self { at, action: Action::Validate, why: why.into() }
    }

    fn rotate(at: Millis, why: impl Into<String>) -> Self {
        Self { at, action: Action::Rotate, why: why.into() }
    }

    /// The earlier of two; of equals the first, so callers name the weightier reason first.
    fn or(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.at < self.at => other,
            _ => self,
        }
    }
}

/// The next look: when, whether to validate or to rotate, and why.
pub fn next(facts: &Facts<'_>) -> Next {
    let Facts { now, .. } = *facts;
    match facts.standing {
        Standing::Alive => {
            let cadence = Next::validate(now + phased(now, facts.interval, facts.phase), "cadence");
            let asked = facts.asked.map(|asked| {
                let wait = earlier(asked.max(SHORTEST), facts.spread);
                Next::validate(now + wait, format!("the service asked for {}", span(asked)))
            });
            let idle = facts.idle_limit.map(|limit| {
                let wait = earlier(before_idle(limit).max(SHORTEST), facts.spread);
                Next::validate(now + wait, format!("idle limit of {}", span(limit)))
            });
            let validate = cadence.or(asked).or(idle);
            match rotation(facts) {
                // Of equals the rotation, which validates as well.
                Some(rotate) => rotate.or(Some(validate)),
                None => validate,
            }
        }
        Standing::Unclear => unclear(facts),
        Standing::Dead => {
            let wait = facts.interval.max(SHORTEST).max(DEAD.min(facts.interval.saturating_mul(10)));
            Next::validate(now + earlier(wait, facts.spread), "refused, so it is looked at seldom")
        }
    }
}

fn unclear(facts: &Facts<'_>) -> Next {
    let Facts { now, .. } = *facts;
    let Backoff { first, longest } = backoff(facts.trouble);
    let first = facts.interval.clamp(SHORTEST, first);
    let doublings = facts.consecutive_failures.saturating_sub(1).min(12);
    // A session that dies unused is tried for a few times before it does.
    let idle = facts.idle_limit.map_or(Millis::MAX, |limit| (limit / MARGIN_PART).max(SHORTEST));
    let ceiling = (first << doublings).min(longest.max(first)).min(idle);
    // What the service asked for is a floor, so its jitter only adds.
    let floor = facts.asked.map_or(0, |asked| asked + facts.spread % (asked / 10 + 1));
    let wait = SHORTEST + facts.spread % (ceiling - SHORTEST + 1);
    let why = match facts.asked {
        Some(asked) if floor >= wait => format!("the service asked for {}", span(asked)),
        _ => format!(
            "backoff after {} failure{}",
            facts.consecutive_failures,
            plural(facts.consecutive_failures)
        ),
    };
    let retry = now + wait.max(floor);
    let as_before = match facts.action {
        Action::Validate => Next::validate(retry, why),
        Action::Rotate => in_quiet(facts, Next::rotate(retry, why)),
    };
    if !facts.can_rotate || facts.action == Action::Rotate {
        return as_before;
    }
    if facts.stale {
        let at = now + floor.max(SHORTEST);
        return in_quiet(facts, Next::rotate(at, "a token is missing or past its time")).or(Some(as_before));
    }
    // What can't be asked about may still be renewed: its end comes either way.
    match by_expiry(facts) {
        Some(due) => {
            let at = due.at.max(now + floor.max(SHORTEST));
            in_quiet(facts, Next { at, ..due }).or(Some(as_before))
        }
        None => as_before,
    }
}

/// When the generation in force should be rotated. None: never by itself.
fn rotation(facts: &Facts<'_>) -> Option<Next> {
    if !facts.can_rotate {
        return None;
    }
    let by_age = facts.max_age.map(|age| {
        // Siblings issued together turn old together.
        let at = facts.issued + age - facts.phase % (age / 10 + 1);
        Next::rotate(at, format!("its maximum age is {}", span(age)))
    });
    let wanted = match (by_expiry(facts), by_age) {
        (Some(one), other) => one.or(other),
        (None, other) => other?,
    };
    // A rotation that was due and just ran is not due again at once, or a lifetime too short for
    // its margin would be a tight loop that only gets itself rate-limited. Only then: a floor
    // after every validation would push a rotation away for ever.
    let floor = match facts.action {
        Action::Validate => facts.now,
        Action::Rotate if facts.issued >= facts.now => facts.now + SHORTEST,
        Action::Rotate => facts.now + facts.interval.max(SHORTEST),
    };
    Some(in_quiet(facts, Next { at: wanted.at.max(floor), ..wanted }))
}

fn by_expiry(facts: &Facts<'_>) -> Option<Next> {
    let expires = facts.expires?;
    let lifetime = expires.saturating_sub(facts.issued);
    let margin = (lifetime / MARGIN_PART).clamp(SHORTEST.min(lifetime), LONGEST_MARGIN);
    let at = expires.saturating_sub(margin + facts.phase % (margin / 5 + 1));
    let why = match expires.checked_sub(at.max(facts.now)) {
        Some(left) => format!("to rotate {} before expiry", span(left)),
        None => String::from("it has expired"),
    };
    Some(Next::rotate(at, why))
}

fn in_quiet(facts: &Facts<'_>, wanted: Next) -> Next {
    keep_quiet(facts.quiet, facts.now, facts.expires, wanted)
}

/// Moves a rotation out of the quiet windows: after them, or before where the secret would end
/// within. Too late for that, it stays inside: a lost session is worse than a disturbed night.
pub fn keep_quiet(quiet: &Quiet, now: Millis, expires: Option<Millis>, wanted: Next) -> Next {
    let Some(span) = quiet.around(wanted.at) else { return wanted };
    // What has ended already can wait.
    if expires.is_none_or(|expires| expires <= now || expires >= span.ends + LEAD) {
        return Next { at: span.ends, why: format!("quiet until {}", quiet.clock(span.ends)), ..wanted };
    }
    let before = span.begins.saturating_sub(LEAD);
    if before >= now && !quiet.holds(before) {
        let why = format!("before it is quiet from {}, for it would expire then", quiet.clock(span.begins));
        return Next { at: before, why, ..wanted };
    }
    if span.begins > now {
        let why = format!("before it is quiet from {}, for it would expire then", quiet.clock(span.begins));
        return Next { at: now, why, ..wanted };
    }
    Next {
        why: format!("{}, in quiet time: it would expire before {}", wanted.why, quiet.clock(span.ends)),
        ..wanted
    }
}

/// Until when a rotation that has been due since then waits for a consumer to take the present
/// secret: as long as that consumer is given, and never so long that the secret could end first.
/// None: no longer.
pub fn patience(
    now: Millis,
    since: Millis,
    wait: Millis,
    expires: Option<Millis>,
    issued: Millis,
) -> Option<Millis> {
    // A clock that was set back must not lengthen it.
    let end = since.min(now).saturating_add(wait);
    // A rotation by expiry is due when a quarter is left: half of that is for the rotation.
    let lead = |expires: Millis| LEAD.min(expires.saturating_sub(issued) / (2 * MARGIN_PART));
    let end = expires.map_or(end, |expires| end.min(expires.saturating_sub(lead(expires))));
    (end > now).then_some(end)
}

/// An overdue credential, as the daemon finds it after a downtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    pub row: i64,
    pub due: Millis,
    pub action: Action,
    pub expires: Option<Millis>,
}

/// Starts many overdue credentials of one service one after another, the most urgent first: what
/// is about to expire or due to be rotated, then the rest as long as it has waited. A few start
/// at once. The others follow at `step`, or faster where that would take longer than `interval`,
/// for then their service is used to more. What would expire while it waits comes in time.
pub fn catch_up(
    mut overdue: Vec<Overdue>,
    now: Millis,
    interval: Millis,
    step: Millis,
) -> Vec<(Overdue, Millis)> {
    let urgent = |one: &Overdue| {
        let ends = one.expires.filter(|&expires| expires > now);
        one.action == Action::Rotate || ends.is_some_and(|ends| ends <= now + LONGEST_MARGIN)
    };
    overdue.sort_by_key(|one| match urgent(one) {
        true => (false, one.expires.filter(|&expires| expires > now).unwrap_or(Millis::MAX), one.due),
        false => (true, one.due, 0),
    });
    let step = step.min((interval / (overdue.len() as Millis).max(1)).max(1));
    // Those who start at once are due already, and in their order too: a claim may have room for
    // one of them alone.
    let place = |index: usize| match index.checked_sub(AT_ONCE) {
        Some(turn) => now + step * turn as Millis,
        None => now.saturating_sub((AT_ONCE - index) as Millis),
    };
    overdue
        .into_iter()
        .enumerate()
        .map(|(index, one)| {
            let in_time = one
                .expires
                .filter(|&expires| expires > now)
                .map_or(Millis::MAX, |expires| expires.saturating_sub(LEAD).max(now));
            let due = place(index).min(in_time);
            (one, due)
        })
        .collect()
}

/// Until the next of a credential's moments: every interval has one, at a place of its own. So
/// siblings are spread evenly over their interval, however they came together. Where one was asked
/// just before its moment, the next look is half-way to the following one. Never longer than the
/// interval: a session that lives exactly one survives.
fn phased(now: Millis, interval: Millis, phase: u64) -> Millis {
    let interval = interval.max(SHORTEST);
    let since = (now % interval + interval - phase % interval) % interval;
    let wait = interval - since;
    if wait < interval / 10 { interval / 2 + wait } else { wait }.max(SHORTEST)
}

/// Up to a tenth earlier, never later.
fn earlier(wait: Millis, spread: u64) -> Millis {
    let tenth = wait / 10;
    if tenth == 0 { wait } else { wait - spread % (tenth + 1) }
}

/// How long a session may be left alone.
fn before_idle(limit: Millis) -> Millis {
    limit - (limit / MARGIN_PART).min(LONGEST_MARGIN)
}

/// A credential's place among its siblings: FNV-1a over its name, stirred, for names that differ
/// in their last letter alone must not be neighbours.
pub fn phase(credential: &str) -> u64 {
    let hash = credential.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// A duration as people say it.
pub fn span(wait: Millis) -> String {
    let seconds = wait / 1_000;
    match seconds {
        0 => format!("{wait} ms"),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

const fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static NEVER: Quiet = Quiet::NONE;

    fn alive() -> Facts<'static> {
        Facts {
            now: 1_000_000_000,
            standing: Standing::Alive,
            trouble: Trouble::Unreachable,
            action: Action::Validate,
            interval: 60_000,
            expires: None,
            issued: 1_000_000_000,
            max_age: None,
            idle_limit: None,
            can_rotate: true,
            consecutive_failures: 0,
            stale: false,
            asked: None,
            quiet: &NEVER,
            spread: 0,
            // On its place: 1,000,000,000 is 40 s into a minute.
            phase: 40_000,
        }
    }

    const NOW: Millis = 1_000_000_000;

    fn at(facts: &Facts<'_>) -> (Millis, Action) {
        let next = next(facts);
        (next.at, next.action)
    }

    #[test]
    fn the_earliest_of_all_reasons_wins_and_is_named() {
        let minute = 60_000;
        // Of which NOW is a multiple, so it is on its place.
        let base = Facts { interval: 4_000_000, phase: 0, ..alive() };
        for (facts, wait, action, why) in [
            (base, 4_000_000, Action::Validate, "cadence"),
            (
                Facts { asked: Some(15 * minute), ..base },
                15 * minute,
                Action::Validate,
                "the service asked for 15 min",
            ),
            // A hint for later than the cadence doesn't stretch what the operator chose.
            (Facts { asked: Some(90 * minute), ..base }, 4_000_000, Action::Validate, "cadence"),
            (
                Facts { idle_limit: Some(20 * minute), ..base },
                15 * minute,
                Action::Validate,
                "idle limit of 20 min",
            ),
            (
                Facts { idle_limit: Some(20 * minute), asked: Some(5 * minute), ..base },
                5 * minute,
                Action::Validate,
                "the service asked for 5 min",
            ),
            (
                Facts { expires: Some(NOW + 28 * minute), ..base },
                21 * minute,
                Action::Rotate,
                "to rotate 7 min before expiry",
            ),
            (
                Facts { max_age: Some(10 * minute), ..base },
                10 * minute,
                Action::Rotate,
                "its maximum age is 10 min",
            ),
            (
                Facts {
                    idle_limit: Some(20 * minute),
                    expires: Some(NOW + 28 * minute),
                    max_age: Some(30 * minute),
                    asked: Some(25 * minute),
                    ..base
                },
                15 * minute,
                Action::Validate,
                "idle limit of 20 min",
            ),
            (
                Facts { expires: Some(NOW + 28 * minute), can_rotate: false, ..base },
                4_000_000,
                Action::Validate,
                "cadence",
            ),
        ] {
            let next = next(&facts);
            assert_eq!((next.at - NOW, next.action, next.why.as_str()), (wait, action, why));
        }
    }

    #[test]
    fn a_rotation_waits_for_a_consumer_as_long_as_that_was_given_and_never_past_the_secrets_end() {
        let minute = 60_000;
        let issued = NOW - 60 * minute;
        for (since, wait, expires, until) in [
            // Just due, and no end is known.
            (NOW, 10 * minute, None, Some(NOW + 10 * minute)),
            (NOW - 4 * minute, 10 * minute, None, Some(NOW + 6 * minute)),
            (NOW - 10 * minute, 10 * minute, None, None),
            // It ends long after.
            (NOW, 10 * minute, Some(NOW + 60 * minute), Some(NOW + 10 * minute)),
            // It ends soon: an attempt has to fit before that.
            (NOW, 10 * minute, Some(NOW + 8 * minute), Some(NOW + 6 * minute)),
            (NOW, 10 * minute, Some(NOW + 2 * minute), None),
            (NOW, 10 * minute, Some(NOW - 1), None),
            // By a clock that was ahead.
            (NOW + 60 * minute, 10 * minute, None, Some(NOW + 10 * minute)),
        ] {
            assert_eq!(patience(NOW, since, wait, expires, issued), until, "{since} {expires:?}");
        }
        // Of a short life an eighth is kept for the rotation.
        assert_eq!(patience(NOW, NOW, minute, Some(NOW + 2_000), NOW - 6_000), Some(NOW + 1_000));
    }

    #[test]
    fn age_alone_makes_a_rotation_due() {
        let facts = Facts { max_age: Some(5_000), phase: 0, ..alive() };
        assert_eq!(at(&facts), (NOW + 5_000, Action::Rotate));
    }

    #[test]
    fn frequent_validations_never_push_a_rotation_away() {
        let mut facts = Facts { interval: 1_000, max_age: Some(2_000), phase: 0, ..alive() };
        for _ in 0..4 {
            let (due, action) = at(&facts);
            if action == Action::Rotate {
                assert_eq!(due, NOW + 2_000);
                return;
            }
            facts.now = due;
        }
        panic!("never rotated");
    }

    #[test]
    fn a_provider_that_only_validates_is_never_asked_to_rotate() {
        for standing in [Standing::Alive, Standing::Unclear, Standing::Dead] {
            let facts = Facts {
                standing,
                expires: Some(NOW + 1_000),
                max_age: Some(1),
                can_rotate: false,
                stale: true,
                ..alive()
            };
            assert_eq!(next(&facts).action, Action::Validate);
        }
    }

    #[test]
    fn an_expiry_in_the_past_rotates_at_once_but_not_in_a_tight_loop() {
        let due = Facts { expires: Some(NOW - 100_000), issued: NOW - 200_000, phase: 0, ..alive() };
        assert_eq!(at(&due), (NOW, Action::Rotate));
        assert_eq!(next(&due).why, "it has expired");
        let unchanged = Facts { action: Action::Rotate, phase: 40_000, ..due };
        assert_eq!(at(&unchanged), (NOW + 60_000, Action::Rotate));
        let rotated =
            Facts { action: Action::Rotate, issued: NOW, expires: Some(NOW + 500), phase: 0, ..alive() };
        assert_eq!(at(&rotated), (NOW + 1_000, Action::Rotate));
    }

    #[test]
    fn each_kind_of_trouble_has_its_backoff_with_full_jitter() {
        for (trouble, ceilings) in [
            (Trouble::Unreachable, [30, 60, 120, 240, 480, 900, 900]),
            (Trouble::Limited, [60, 120, 240, 480, 960, 1_920, 3_600]),
            (Trouble::Fault, [60, 120, 240, 480, 960, 1_920, 3_600]),
        ] {
            for (failures, ceiling) in (1..).zip(ceilings) {
                let facts = Facts {
                    standing: Standing::Unclear,
                    trouble,
                    action: Action::Rotate,
                    interval: 600_000,
                    consecutive_failures: failures,
                    ..alive()
                };
                let wait = |spread| {
                    let next = next(&Facts { spread, ..facts });
                    assert_eq!(next.action, Action::Rotate, "the same question");
                    assert!(next.why.starts_with(&format!("backoff after {failures} failure")));
                    next.at - NOW
                };
                let most = ceiling * 1_000 - SHORTEST;
                assert_eq!((wait(0), wait(most)), (SHORTEST, ceiling * 1_000), "{trouble:?} {failures}");
            }
        }
    }

    #[test]
    fn a_stale_token_that_cannot_be_judged_is_rotated() {
        let facts = Facts {
            standing: Standing::Unclear,
            stale: true,
            consecutive_failures: 1,
            spread: 9_999,
            ..alive()
        };
        assert_eq!(at(&facts), (NOW + 1_000, Action::Rotate));
        let validate_only = Facts { can_rotate: false, ..facts };
        assert_eq!(next(&validate_only).action, Action::Validate);
    }

    #[test]
    fn what_cannot_be_judged_is_still_rotated_before_it_expires() {
        let facts = Facts {
            standing: Standing::Unclear,
            consecutive_failures: 9,
            expires: Some(NOW + 400_000),
            phase: 0,
            spread: 800_000,
            ..alive()
        };
        assert_eq!(at(&facts), (NOW + 300_000, Action::Rotate));
        // What the service asked for stays a floor.
        let held = Facts { asked: Some(350_000), ..facts };
        assert!(next(&held).at >= NOW + 350_000);
    }

    #[test]
    fn retry_after_is_a_floor() {
        let facts = Facts {
            standing: Standing::Unclear,
            trouble: Trouble::Limited,
            asked: Some(3_600_000),
            consecutive_failures: 1,
            ..alive()
        };
        assert_eq!(next(&facts).at, NOW + 3_600_000);
        assert_eq!(next(&facts).why, "the service asked for 60 min");
        for (spread, stale) in
            (0..2_000_000).step_by(999).flat_map(|spread| [(spread, false), (spread, true)])
        {
            let wait = next(&Facts { spread, stale, ..facts }).at - NOW;
            assert!((3_600_000..=3_960_000).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn a_dead_credential_is_only_validated_and_less_often() {
        let facts = Facts {
            standing: Standing::Dead,
            trouble: Trouble::Refused,
            action: Action::Rotate,
            idle_limit: Some(60_000),
            ..alive()
        };
        assert_eq!(at(&facts), (NOW + 600_000, Action::Validate));
    }

    fn quiet(windows: &[&str]) -> Quiet {
        Quiet::parse(windows).unwrap()
    }

    /// Midnight, UTC.
    const DAY: Millis = 1_700_006_400_000;
    const HOUR: Millis = 3_600_000;

    #[test]
    fn a_rotation_waits_for_the_end_of_quiet_time_unless_the_secret_would_not() {
        let night = quiet(&["22:00-06:00 UTC"]);
        let wanted = |at| Next::rotate(at, "to rotate 7 min before expiry");
        for (now, due, expires, at, why) in [
            // Not quiet then.
            (20, 21, None, 21, "to rotate 7 min before expiry"),
            (20, 23, None, 30, "quiet until 06:00 UTC"),
            (20, 23, Some(40), 30, "quiet until 06:00 UTC"),
            (23, 24, Some(40), 30, "quiet until 06:00 UTC"),
            // What has ended already can wait.
            (23, 23, Some(22), 30, "quiet until 06:00 UTC"),
        ] {
            let (now, due) = (DAY + now * HOUR, DAY + due * HOUR);
            let next = keep_quiet(&night, now, expires.map(|hours: u64| DAY + hours * HOUR), wanted(due));
            assert_eq!((next.at, next.why.as_str()), (DAY + at * HOUR, why));
        }
        // Ends at 01:00, inside: just before it begins, at once where that is near, or inside.
        let expires = Some(DAY + 25 * HOUR);
        let due = DAY + 24 * HOUR;
        let early = keep_quiet(&night, DAY + 20 * HOUR, expires, wanted(due));
        assert_eq!(early.at, DAY + 22 * HOUR - LEAD);
        assert_eq!(early.why, "before it is quiet from 22:00 UTC, for it would expire then");
        let minute_before = DAY + 22 * HOUR - 60_000;
        assert_eq!(keep_quiet(&night, minute_before, expires, wanted(due)).at, minute_before);
        let late = keep_quiet(&night, DAY + 23 * HOUR, expires, wanted(due));
        assert_eq!(late.at, due);
        assert!(late.why.ends_with("in quiet time: it would expire before 06:00 UTC"), "{}", late.why);
    }

    #[test]
    fn validations_go_on_while_it_is_quiet() {
        let night = quiet(&["22:00-06:00 UTC"]);
        let now = DAY + 23 * HOUR;
        let facts = Facts {
            now,
            issued: now - HOUR,
            max_age: Some(HOUR),
            interval: HOUR,
            quiet: &night,
            phase: 0,
            ..alive()
        };
        assert_eq!(at(&facts), (now + HOUR, Action::Validate));
        // Three o'clock is its place among its siblings, before six.
        let rare = Facts { interval: 24 * HOUR, phase: 3 * HOUR, ..facts };
        assert_eq!(at(&rare), (now + 4 * HOUR, Action::Validate));
        let other = Facts { phase: 12 * HOUR, ..rare };
        assert_eq!(at(&other), (DAY + 30 * HOUR, Action::Rotate));
    }

    #[test]
    fn siblings_added_together_spread_evenly_over_their_interval() {
        let mut tenths = [0_u32; 10];
        for number in 0..2_000 {
            let phase = phase(&format!("account-{number:04}"));
            let mut facts = Facts { interval: 600_000, phase, ..alive() };
            // The second look is on its place, or the third where that was near.
            for _ in 0..3 {
                facts.now = next(&facts).at + 250;
            }
            tenths[(facts.now % 600_000 / 60_000) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| (140..=260).contains(&count)), "{tenths:?}");
    }

    fn overdue(count: i64, of: impl Fn(i64) -> (Action, Option<Millis>)) -> Vec<Overdue> {
        let one = |row| {
            let (action, expires) = of(row);
            Overdue { row, due: NOW - 1_000 * row.unsigned_abs(), action, expires }
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn after_a_downtime_the_urgent_come_first_and_the_rest_one_by_one() {
        let mixed = overdue(300, |row| match row % 30 {
            0 => (Action::Rotate, Some(NOW + 600_000 + row.unsigned_abs())),
            1 => (Action::Rotate, None),
            2 => (Action::Validate, Some(NOW + 900_000)),
            _ => (Action::Validate, Some(NOW + 30 * 86_400_000)),
        });
        let plan = catch_up(mixed, NOW, 3_600_000, STEP);
        let urgent = |one: &Overdue| one.action == Action::Rotate || one.expires < Some(NOW + 1_000_000);
        assert!(plan[..30].iter().all(|(one, _)| urgent(one)), "{:?}", &plan[..30]);
        assert!(plan[30..].iter().all(|(one, _)| !urgent(one)));
        // The nearest end first; without one last of the urgent.
        assert!(plan[..10].iter().all(|(one, _)| one.row % 30 == 0));
        // Of the rest, who has waited longest.
        assert!(plan[30..].windows(2).all(|pair| pair[0].0.due <= pair[1].0.due));
        assert!(plan.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert_eq!(plan[299].1, NOW + STEP * (299 - AT_ONCE as Millis));
    }

    proptest! {
        #[test]
        fn a_look_is_never_later_than_what_keeps_the_session_alive(
            now in 1_000_000_u64..2_000_000_000_000,
            interval in 1_u64..100_000_000,
            asked in prop::option::of(1_u64..100_000_000),
            idle in prop::option::of(1_u64..100_000_000),
            left in prop::option::of(0_u64..100_000_000),
            age in prop::option::of(1_u64..100_000_000),
            spread: u64,
            phase: u64,
        ) {
            let facts = Facts {
                now, interval, asked, spread, phase, idle_limit: idle, max_age: age, issued: now,
                expires: left.map(|left| now + left), ..alive()
            };
            let next = next(&facts);
            prop_assert!(next.at >= now);
            prop_assert!(next.at <= now + interval.max(SHORTEST));
            for limit in [asked, idle, age].into_iter().flatten() {
                prop_assert!(next.at <= now + limit.max(SHORTEST), "{limit}: {next:?}");
            }
            if let Some(left) = left {
                prop_assert!(next.at <= now + left, "{left}: {next:?}");
            }
            if let Some(idle) = idle.filter(|&idle| idle >= 4 * SHORTEST) {
                prop_assert!(next.at < now + idle, "used before it dies: {next:?}");
            }
        }

        #[test]
        fn retries_stay_between_floor_and_ceiling(
            trouble in prop::sample::select(vec![Trouble::Unreachable, Trouble::Limited, Trouble::Fault]),
            failures in 1_u32..100,
            interval in 1_u64..100_000_000,
            asked in prop::option::of(1_u64..10_000_000),
            idle in prop::option::of(1_u64..10_000_000),
            stale: bool,
            spread: u64,
        ) {
            let facts = Facts {
                standing: Standing::Unclear, trouble, consecutive_failures: failures, interval, asked,
                idle_limit: idle, stale, spread, ..alive()
            };
            let wait = next(&facts).at - NOW;
            let floor = asked.unwrap_or(0).max(SHORTEST);
            let ceiling = backoff(trouble).longest;
            prop_assert!(wait >= floor);
            prop_assert!(wait <= ceiling.max(floor + floor / 10), "{wait}");
        }

        /// At any time of two years of jumping clocks: a rotation lies outside quiet time, or its
        /// secret would have ended there.
        #[test]
        fn a_rotation_is_in_quiet_time_only_to_save_the_session(
            now in 1_735_689_600_000_u64..1_798_761_600_000,
            later in 0_u64..172_800_000,
            life in prop::option::of(0_u64..259_200_000),
            window in prop::sample::select(vec![
                "22:00-06:00 Europe/Berlin", "01:30-02:30 Europe/Berlin", "02:30-04:00 Australia/Lord_Howe",
                "00:00-23:00 America/New_York",
            ]),
        ) {
            let quiet = quiet(&[window]);
            let expires = life.map(|life| now + life);
            let wanted = Next::rotate(now + later, "x");
            let next = keep_quiet(&quiet, now, expires, wanted.clone());
            prop_assert!(next.at >= now);
            match quiet.around(next.at) {
                None => {}
                Some(span) => {
                    let ends_inside = expires.is_some_and(|expires| expires > now && expires < span.ends + LEAD);
                    prop_assert!(ends_inside, "{next:?} without need in {span:?}");
                    prop_assert!(span.begins <= now || !quiet.holds(now), "{next:?}: there was time before");
                }
            }
            if let Some(expires) = expires && expires > now && wanted.at < expires {
                prop_assert!(next.at < expires, "{next:?} after its end {expires}");
            }
        }

        #[test]
        fn a_backlog_of_any_size_is_started_at_a_bounded_rate_and_in_time(
            count in 1_i64..3_000,
            interval in 1_000_u64..86_400_000,
            every in 1_i64..50,
            life in 1_u64..10_000_000,
        ) {
            let expires = |row: i64| (row % every == 0).then_some(NOW + life + row.unsigned_abs());
            let plan = catch_up(overdue(count, |row| (Action::Validate, expires(row))), NOW, interval, STEP);
            prop_assert_eq!(plan.len() as i64, count, "nobody is lost");
            for (one, due) in &plan {
                prop_assert!(*due >= NOW - AT_ONCE as Millis);
                if let Some(expires) = one.expires {
                    prop_assert!(*due <= expires.saturating_sub(LEAD).max(NOW), "too late for {one:?}");
                }
            }
            // In any second no more than a few at once and the steady rate, those about to end
            // left out.
            let mut calm: Vec<Millis> =
                plan.iter().filter(|(one, _)| one.expires.is_none()).map(|(_, due)| *due).collect();
            calm.sort_unstable();
            let rate = (1_000 / STEP).max(count.unsigned_abs() * 1_000 / interval + 1) as usize;
            let most = AT_ONCE + 2 * rate + 2;
            for second in calm.windows(most) {
                prop_assert!(second[most - 1] - second[0] >= 1_000, "more than {most} within {second:?}");
            }
        }
    }
}
