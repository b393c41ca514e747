//! When a credential is looked at next, and for what. Pure: facts and a clock in, a time out.

use crate::credential::Millis;
use crate::db::Action;

/// A valid credential is never asked more often than this, whatever it or its service says.
const SHORTEST: Millis = 1_000;
/// Retries of what could not be known start here at the latest, and grow to `LONGEST_RETRY`.
const FIRST_RETRY: Millis = 30_000;
const LONGEST_RETRY: Millis = 15 * 60_000;
/// A dead credential is looked at this often: somebody may have revived it elsewhere.
const DEAD: Millis = 60 * 60_000;
/// Rotation starts when this part of a lifetime is left, at most `LONGEST_MARGIN`.
const MARGIN_PART: Millis = 4;
const LONGEST_MARGIN: Millis = 30 * 60_000;

/// What the verdict of an attempt means for the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Alive,
    /// Nothing was learnt; the same question is asked again.
    Unclear,
    Dead,
}

#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub now: Millis,
    pub standing: Standing,
    pub action: Action,
    pub interval: Millis,
    /// When the keys in force stop working, if anybody knows.
    pub expires: Option<Millis>,
    /// When the generation in force was issued.
    pub issued: Millis,
    pub max_age: Option<Millis>,
    pub can_rotate: bool,
    pub consecutive_failures: u32,
    /// A token is missing or past its time: only a rotation can tell more.
    pub stale: bool,
    /// What the service asked for: `Retry-After`, or a hint when to come again.
    pub asked: Option<Millis>,
    /// Something evenly spread, so that credentials added together drift apart.
    pub spread: u64,
}

/// The next look: when, and whether to validate or to rotate.
pub fn next(facts: &Facts) -> (Millis, Action) {
    let Facts { now, .. } = *facts;
    match facts.standing {
        Standing::Alive => {
            let wanted = facts.asked.unwrap_or(facts.interval).max(SHORTEST);
            let validate = now + jittered(wanted, facts.spread);
            match rotation(facts) {
                Some(rotate) if rotate <= validate => (rotate, Action::Rotate),
                _ => (validate, Action::Validate),
            }
        }
        Standing::Unclear => {
            let first = facts.interval.clamp(SHORTEST, FIRST_RETRY);
            let doublings = facts.consecutive_failures.saturating_sub(1).min(10);
            let backoff = (first << doublings).min(LONGEST_RETRY.max(first));
            // What the service asked for is a floor, so its jitter only adds.
            let floor = facts.asked.map_or(0, |asked| asked + facts.spread % (asked / 10 + 1));
            if facts.stale && facts.can_rotate && facts.action == Action::Validate {
                return (now + floor.max(SHORTEST), Action::Rotate);
            }
            (now + jittered(backoff, facts.spread).max(floor), facts.action)
        }
        Standing::Dead => {
            let wait = jittered(
                facts.interval.max(SHORTEST).max(DEAD.min(facts.interval.saturating_mul(10))),
                facts.spread,
            );
            (now + wait, Action::Validate)
        }
    }
}

/// When the generation in force should be rotated. None: never by itself.
fn rotation(facts: &Facts) -> Option<Millis> {
    if !facts.can_rotate {
        return None;
    }
    let by_expiry = facts.expires.map(|expires| {
        let lifetime = expires.saturating_sub(facts.issued);
        let margin = (lifetime / MARGIN_PART).clamp(SHORTEST.min(lifetime), LONGEST_MARGIN);
        expires.saturating_sub(margin)
    });
    let by_age = facts.max_age.map(|age| facts.issued + age);
    let wanted = match (by_expiry, by_age) {
        (Some(a), Some(b)) => a.min(b),
        (one, other) => one.or(other)?,
    };
    // A rotation that was due and just ran is not due again at once, or a lifetime too short for
    // its margin would be a tight loop that only gets itself rate-limited. Only then: a floor
    // after every validation would push a rotation away for ever.
    let floor = match facts.action {
        Action::Validate => facts.now,
        Action::Rotate if facts.issued >= facts.now => facts.now + SHORTEST,
        Action::Rotate => facts.now + facts.interval.max(SHORTEST),
    };
    Some(wanted.max(floor))
}

/// Up to a tenth earlier, never later: a session that lives exactly one interval survives.
fn jittered(wait: Millis, spread: u64) -> Millis {
    let tenth = wait / 10;
    if tenth == 0 { wait } else { wait - spread % (tenth + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive() -> Facts {
        Facts {
            now: 1_000_000,
            standing: Standing::Alive,
            action: Action::Validate,
            interval: 60_000,
            expires: None,
            issued: 1_000_000,
            max_age: None,
            can_rotate: true,
            consecutive_failures: 0,
            stale: false,
            asked: None,
            spread: 0,
        }
    }

    #[test]
    fn a_living_credential_is_validated_after_its_interval() {
        assert_eq!(next(&alive()), (1_060_000, Action::Validate));
    }

    #[test]
    fn jitter_never_makes_a_look_late() {
        for spread in 0..20_000 {
            let (at, _) = next(&Facts { spread, ..alive() });
            assert!((1_054_000..=1_060_000).contains(&at), "{at}");
        }
    }

    #[test]
    fn rotation_comes_before_expiry_with_a_margin() {
        let facts = Facts { expires: Some(1_040_000), ..alive() };
        assert_eq!(next(&facts), (1_030_000, Action::Rotate));
    }

    #[test]
    fn age_alone_makes_a_rotation_due() {
        let facts = Facts { max_age: Some(5_000), ..alive() };
        assert_eq!(next(&facts), (1_005_000, Action::Rotate));
    }

    #[test]
    fn frequent_validations_never_push_a_rotation_away() {
        let mut facts = Facts { interval: 1_000, max_age: Some(2_000), ..alive() };
        for _ in 0..4 {
            let (at, action) = next(&facts);
            if action == Action::Rotate {
                assert_eq!(at, 1_002_000);
                return;
            }
            facts.now = at;
        }
        panic!("never rotated");
    }

    #[test]
    fn a_provider_that_only_validates_is_never_asked_to_rotate() {
        let facts = Facts { expires: Some(1_001_000), max_age: Some(1), can_rotate: false, ..alive() };
        assert_eq!(next(&facts).1, Action::Validate);
    }

    #[test]
    fn an_expiry_in_the_past_rotates_at_once_but_not_in_a_tight_loop() {
        let due = Facts { expires: Some(900_000), issued: 800_000, ..alive() };
        assert_eq!(next(&due), (1_000_000, Action::Rotate));
        let unchanged = Facts { action: Action::Rotate, ..due };
        assert_eq!(next(&unchanged), (1_060_000, Action::Rotate));
        let rotated =
            Facts { action: Action::Rotate, issued: 1_000_000, expires: Some(1_000_500), ..alive() };
        assert_eq!(next(&rotated), (1_001_000, Action::Rotate));
    }

    #[test]
    fn unclear_answers_back_off_and_ask_the_same_question() {
        let base =
            Facts { standing: Standing::Unclear, action: Action::Rotate, interval: 600_000, ..alive() };
        let waits: Vec<_> = (1..12)
            .map(|failures| next(&Facts { consecutive_failures: failures, ..base }).0 - base.now)
            .collect();
        assert_eq!(waits[..3], [30_000, 60_000, 120_000]);
        assert!(waits.iter().all(|&wait| wait <= LONGEST_RETRY));
        assert_eq!(next(&base).1, Action::Rotate);
    }

    #[test]
    fn a_stale_token_that_cannot_be_judged_is_rotated() {
        let facts = Facts { standing: Standing::Unclear, stale: true, consecutive_failures: 1, ..alive() };
        assert_eq!(next(&facts), (1_001_000, Action::Rotate));
        let validate_only = Facts { can_rotate: false, ..facts };
        assert_eq!(next(&validate_only).1, Action::Validate);
    }

    #[test]
    fn retry_after_is_honoured_when_it_is_longer() {
        let facts =
            Facts { standing: Standing::Unclear, asked: Some(3_600_000), consecutive_failures: 1, ..alive() };
        assert_eq!(next(&facts).0, 1_000_000 + 3_600_000);
        for (spread, stale) in
            (0..2_000_000).step_by(999).flat_map(|spread| [(spread, false), (spread, true)])
        {
            let (at, _) = next(&Facts { spread, stale, ..facts });
            assert!((4_600_000..=4_960_000).contains(&at), "{at}");
        }
    }

    #[test]
    fn a_dead_credential_is_only_validated_and_less_often() {
        let facts = Facts { standing: Standing::Dead, action: Action::Rotate, ..alive() };
        assert_eq!(next(&facts), (1_000_000 + 600_000, Action::Validate));
    }
}
