//! How far ahead of its worker a service's credentials may be claimed. Pure: ends and a clock in,
//! a number out. A fast service is claimed ahead so that its worker never waits for the disk; a
//! slow one isn't, or its claims would queue for minutes.

use crate::credential::Millis;

/// The most that is claimed ahead: at ten thousand a second, what two commits take.
const AHEAD: u32 = 448;

/// Counts a service's ends by the second.
#[derive(Debug, Default)]
pub struct Pace {
    second: Millis,
    this: u32,
    last: u32,
}

impl Pace {
    fn turn(&mut self, now: Millis) {
        let second = now / 1_000;
        if second != self.second {
            self.last = if second == self.second + 1 { self.this } else { 0 };
            self.this = 0;
            self.second = second;
        }
    }

    pub fn ended(&mut self, now: Millis) {
        self.turn(now);
        self.this = self.this.saturating_add(1);
    }

    /// What may be claimed beyond the worker's own capacity: what would end within a second.
    pub fn ahead(&mut self, now: Millis) -> usize {
        self.turn(now);
        self.this.max(self.last).min(AHEAD) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_never_ended_an_attempt_is_not_claimed_ahead() {
        assert_eq!(Pace::default().ahead(5_000), 0);
    }

    #[test]
    fn a_fast_service_is_claimed_ahead_up_to_the_cap() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.ended(1_000);
        }
        assert_eq!(pace.ahead(1_500), 100);
        for _ in 0..10_000 {
            pace.ended(1_900);
        }
        assert_eq!(pace.ahead(2_100), AHEAD as usize);
    }

    #[test]
    fn a_service_that_slowed_down_is_soon_claimed_no_further() {
        let mut pace = Pace::default();
        for _ in 0..1_000 {
            pace.ended(1_000);
        }
        assert_eq!(pace.ahead(2_000), AHEAD as usize);
        assert_eq!(pace.ahead(3_000), 0);
    }

    #[test]
    fn a_clock_that_goes_back_only_forgets() {
        let mut pace = Pace::default();
        pace.ended(10_000);
        assert_eq!(pace.ahead(1_000), 0);
    }
}
