//! What a sink needs, from what it got and what is in force, and when a delivery that failed is
//! tried again. Pure: facts and a clock in, a decision out.

use std::time::Duration;

use crate::credential::Millis;
use crate::db::uses::{InForce, SinkState};
use crate::limits;

/// A credential's row and one of its generations.
pub type Generation = (i64, u32);

#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub in_force: Option<Generation>,
    pub got: Option<Generation>,
    /// Whether the file, if there is one, was found as it should be and hasn't been touched since.
    pub file_is_known: bool,
    /// After a try that failed.
    pub next_try_at: Option<Millis>,
    pub now: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// After the pause of an earlier failure.
    At(Millis),
    /// The file may not be what it should be.
    Look,
    /// There are new secrets.
    Deliver,
}

pub fn need(facts: Facts) -> Need {
    let Some(in_force) = facts.in_force else { return Need::Nothing };
    // A pause longer than any that is ever made was written by a clock that was ahead.
    let longest = facts.now.saturating_add(limits::SINK_REFUSED_PAUSE.as_millis() as Millis);
    if let Some(at) = facts.next_try_at.filter(|&at| at > facts.now && at <= longest) {
        return Need::At(at);
    }
    match facts.got == Some(in_force) {
        false => Need::Deliver,
        true if facts.file_is_known && facts.next_try_at.is_none() => Need::Nothing,
        true => Need::Look,
    }
}

/// The kind of a failure, as far as the next try depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Passing,
    /// The receiver said when to come again.
    Asked(Duration),
    /// The receiver won't take this, whatever comes.
    Refused,
}

/// Until the next try, after so many failed ones. There is always a next one.
pub fn pause(tries: u32, trouble: Trouble) -> Duration {
    let doublings = tries.saturating_sub(1).min(16);
    let growing = (limits::SINK_FIRST_PAUSE * (1 << doublings)).min(limits::SINK_LONGEST_PAUSE);
    match trouble {
        Trouble::Passing => growing,
        Trouble::Asked(wait) => wait.clamp(growing, limits::SINK_REFUSED_PAUSE),
        Trouble::Refused => limits::SINK_REFUSED_PAUSE,
    }
}

/// Where a sink stands, in a word for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    InStep,
    Behind,
    Failing,
    NoCredential,
    /// Such as one whose secrets are with an external worker.
    NoSecrets,
}

impl Standing {
    pub fn of(in_force: Option<&InForce>, state: Option<&SinkState>) -> Self {
        let Some(in_force) = in_force else { return Self::NoCredential };
        let Some(generation) = in_force.generation else { return Self::NoSecrets };
        match state {
            Some(state) if state.last_error.is_some() => Self::Failing,
            Some(state) if state.got == Some((in_force.row, generation)) => Self::InStep,
            _ => Self::Behind,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InStep => "in-step",
            Self::Behind => "behind",
            Self::Failing => "failing",
            Self::NoCredential => "no-credential",
            Self::NoSecrets => "no-secrets",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_000_000_000;

    #[test]
    fn a_sink_needs_what_it_lacks_and_never_before_its_pause_is_over() {
        let at = Facts {
            in_force: Some((7, 3)),
            got: Some((7, 3)),
            file_is_known: true,
            next_try_at: None,
            now: NOW,
        };
        for (facts, wanted) in [
            (at, Need::Nothing),
            (Facts { file_is_known: false, ..at }, Need::Look),
            (Facts { got: Some((7, 2)), ..at }, Need::Deliver),
            (Facts { got: None, ..at }, Need::Deliver),
            // The same number of another credential that has its name now.
            (Facts { got: Some((6, 3)), ..at }, Need::Deliver),
            (Facts { in_force: None, ..at }, Need::Nothing),
            (Facts { got: None, next_try_at: Some(NOW + 1), ..at }, Need::At(NOW + 1)),
            (Facts { got: None, next_try_at: Some(NOW), ..at }, Need::Deliver),
            // It got everything and its file was in trouble since.
            (Facts { next_try_at: Some(NOW - 1), ..at }, Need::Look),
            // By a clock that was ahead.
            (Facts { got: None, next_try_at: Some(NOW + 3_600_000), ..at }, Need::Deliver),
        ] {
            assert_eq!(need(facts), wanted, "{facts:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_a_receivers_wish_is_kept_to() {
        let passing = |tries| pause(tries, Trouble::Passing).as_secs();
        assert_eq!((1..=8).map(passing).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(passing(u32::MAX), 60);
        let asked = |tries, seconds| pause(tries, Trouble::Asked(Duration::from_secs(seconds))).as_secs();
        assert_eq!([asked(1, 30), asked(7, 30), asked(1, 100_000)], [30, 60, 600]);
        assert_eq!(pause(1, Trouble::Refused).as_secs(), 600);
    }

    #[test]
    fn where_a_sink_stands_is_one_word() {
        let in_force = InForce {
            row: 7,
            service: String::from("shop"),
            generation: Some(3),
            rotated_at: NOW,
            unheard: false,
            keys: Vec::new(),
        };
        let got = |generation, error: Option<&str>| SinkState {
            got: Some((7, generation)),
            last_error: error.map(str::to_owned),
            ..SinkState::default()
        };
        let of = |state: Option<&SinkState>| Standing::of(Some(&in_force), state).as_str();
        assert_eq!(of(None), "behind");
        assert_eq!(of(Some(&got(2, None))), "behind");
        assert_eq!(of(Some(&got(3, None))), "in-step");
        assert_eq!(of(Some(&got(2, Some("x")))), "failing");
        assert_eq!(of(Some(&got(3, Some("its file is gone")))), "failing");
        assert_eq!(Standing::of(None, None).as_str(), "no-credential");
        let elsewhere = InForce { generation: None, ..in_force.clone() };
        assert_eq!(Standing::of(Some(&elsewhere), None).as_str(), "no-secrets");
    }
}
