//! Workers that can't be plugins, as the rest of the host knows them: when one counts as silent.
//! A leaf, and pure.

use serde::Serialize;

use crate::credential::Millis;

/// A worker that doesn't say how often it reports is missed after this.
pub const DEFAULT_INTERVAL_SECONDS: u32 = 3_600;

/// Whether an external worker keeps its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    Heard,
    /// Nothing came from it for longer than it said.
    Silent,
}

impl Presence {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
        }
    }

    /// A worker last heard of after `now` (a clock was set back) isn't silent.
    pub const fn of(last_seen: Millis, interval_seconds: u32, now: Millis) -> Self {
        if now.saturating_sub(last_seen) > interval_seconds as Millis * 1_000 {
            Self::Silent
        } else {
            Self::Heard
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_silent_once_its_own_interval_has_passed_and_no_sooner() {
        const NOW: Millis = 1_700_000_000_000;
        for (last_seen, interval, expected) in [
            (NOW, 1, Presence::Heard),
            (NOW - 1_000, 1, Presence::Heard),
            (NOW - 1_001, 1, Presence::Silent),
            (NOW - 3_600_000, 3_600, Presence::Heard),
            (NOW - 3_600_001, 3_600, Presence::Silent),
            (NOW - 3_600_001, 7_200, Presence::Heard),
            // A clock that was set back, and one that never was set.
            (NOW + 60_000, 1, Presence::Heard),
            (0, u32::MAX, Presence::Heard),
            (0, 1, Presence::Silent),
        ] {
            assert_eq!(Presence::of(last_seen, interval, NOW), expected, "{last_seen} {interval}");
        }
    }
}
