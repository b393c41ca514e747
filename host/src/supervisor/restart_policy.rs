//! When a worker that died may run again. Pure: crashes and a clock go in, a decision comes out.

use std::collections::VecDeque;
use std::time::Duration;

use crate::credential::Millis;

/// Crashes are counted over this long.
const WINDOW: Duration = Duration::from_secs(600);
/// This many crashes in the window park the service: a plugin that dies on every call would
/// otherwise burn a core and fill the reports with the same line.
const PARK_AFTER: usize = 5;
/// The first restart is at once for a person's eyes; later ones grow to five minutes.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    RestartAfter(Duration),
    /// Not until the plugin changes or the operator says so.
    Park,
}

#[derive(Debug, Default)]
pub struct RestartPolicy {
    crashes: VecDeque<Millis>,
}

impl RestartPolicy {
    /// Takes note of a crash and says what follows.
    pub fn crashed(&mut self, now: Millis) -> Decision {
        let window = WINDOW.as_millis() as u64;
        // A clock that went back must not keep crashes for ever.
        self.crashes.retain(|&at| at <= now && now - at < window);
        self.crashes.push_back(now);
        if self.crashes.len() >= PARK_AFTER {
            return Decision::Park;
        }
        let doublings = (self.crashes.len() - 1) as u32 * 3;
        Decision::RestartAfter(FIRST.saturating_mul(1 << doublings).min(LONGEST))
    }

    /// The plugin changed, or the operator said go on.
    pub fn forgive(&mut self) {
        self.crashes.clear();
    }

    pub fn recent_crashes(&self) -> usize {
        self.crashes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_crash_restarts_well_within_a_second() {
        let Decision::RestartAfter(delay) = RestartPolicy::default().crashed(0) else { panic!() };
        assert!(delay < Duration::from_millis(500));
    }

    #[test]
    fn delays_grow_until_the_service_is_parked() {
        let mut policy = RestartPolicy::default();
        let mut last = Duration::ZERO;
        for at in 0..4 {
            let Decision::RestartAfter(delay) = policy.crashed(at) else { panic!("parked early") };
            assert!(delay > last);
            last = delay;
        }
        assert_eq!(policy.crashed(5), Decision::Park);
    }

    #[test]
    fn crashes_far_apart_never_park() {
        let mut policy = RestartPolicy::default();
        for n in 0..50 {
            assert!(matches!(policy.crashed(n * 700_000), Decision::RestartAfter(_)));
        }
    }

    #[test]
    fn a_clock_that_goes_back_forgets_crashes_of_the_future() {
        let mut policy = RestartPolicy::default();
        for _ in 0..4 {
            policy.crashed(10_000_000);
        }
        assert!(matches!(policy.crashed(1_000), Decision::RestartAfter(_)));
    }

    #[test]
    fn a_forgiven_service_starts_from_the_beginning() {
        let mut policy = RestartPolicy::default();
        for at in 0..5 {
            policy.crashed(at);
        }
        policy.forgive();
        assert_eq!(policy.crashed(6), Decision::RestartAfter(FIRST));
    }
}
