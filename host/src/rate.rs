//! How many requests of a service may be begun: the operator's rate, as a bucket that leaks
//! evenly (GCRA). Pure: a clock in, a number out. `governor` answers yes or no for one request
//! and books it; a claim must know how many it may ask for, and books what it got.

use crate::credential::Millis;

/// Within this a service may be asked as often as it likes, if the rate allows as many: what
/// came due together needn't trickle.
const BURST_MILLIS: u64 = 5_000;

#[derive(Debug)]
pub struct Rate {
    /// Between two requests, in microseconds: 60,000,000 a minute is the fastest there is.
    distance: u64,
    /// How far ahead of an even pace one may be.
    slack: u64,
    /// When an even pace would have the next request, in microseconds.
    next: u64,
}

impl Rate {
    pub fn new(per_minute: u32) -> Self {
        let distance = 60_000_000 / u64::from(per_minute.max(1));
        let burst = (BURST_MILLIS * 1_000 / distance).max(1);
        Self { distance, slack: (burst - 1) * distance, next: 0 }
    }

    /// As it was left: a rate, and when an even pace would have its next request.
    pub fn left_at(per_minute: u32, next: u64) -> Self {
        Self { next, ..Self::new(per_minute) }
    }

    /// When an even pace would have the next request, in microseconds.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// How many may begin now.
    pub fn free(&self, now: Millis) -> usize {
        let now = now.saturating_mul(1_000);
        let pace = self.next.max(now);
        (now + self.slack).checked_sub(pace).map_or(0, |room| room / self.distance + 1) as usize
    }

    /// Books what began. More than was free makes the next wait longer: an attempt learns how
    /// many requests it needed only when it ends.
    pub fn take(&mut self, count: usize, now: Millis) {
        // A clock that went back would hold everything up for as long as it jumped.
        let now = now.saturating_mul(1_000);
        if self.next > now + self.slack + 3_600_000_000 {
            self.next = now;
        }
        self.next = self.next.max(now) + self.distance * count as u64;
    }

    /// The clock was set back by so much: what was booked by it comes nearer.
    pub fn set_back(&mut self, by: Millis) {
        self.next = self.next.saturating_sub(by.saturating_mul(1_000));
    }

    /// When at least one may begin.
    pub fn ready(&self) -> Millis {
        self.next.saturating_sub(self.slack).div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_clock_set_back_holds_nothing_up() {
        const HOUR: Millis = 3_600_000;
        let mut rate = Rate::new(60);
        rate.take(5, 2 * HOUR);
        assert_eq!(rate.free(HOUR), 0);
        rate.set_back(HOUR);
        assert_eq!((rate.free(HOUR), rate.ready()), (0, HOUR + 1_000));
    }

    #[test]
    fn a_burst_is_free_and_then_one_at_a_time() {
        let mut rate = Rate::new(60);
        assert_eq!(rate.free(10_000), 5);
        rate.take(5, 10_000);
        assert_eq!((rate.free(10_000), rate.ready()), (0, 11_000));
        assert_eq!(rate.free(10_999), 0);
        assert_eq!(rate.free(11_000), 1);
        assert_eq!(rate.free(20_000), 5);
    }

    #[test]
    fn a_slow_rate_lets_one_through_and_what_was_taken_beyond_it_is_owed() {
        let mut rate = Rate::new(1);
        assert_eq!(rate.free(1_000), 1);
        rate.take(3, 1_000);
        assert_eq!(rate.ready(), 181_000);
        assert_eq!(rate.free(180_999), 0);
        assert_eq!(rate.free(181_000), 1);
    }

    #[test]
    fn a_clock_that_goes_back_does_not_hold_a_service_up_for_as_long() {
        let mut rate = Rate::new(60);
        rate.take(1, 1_000_000_000);
        rate.take(1, 1_000);
        assert!(rate.ready() <= 2_000, "{}", rate.ready());
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_its_rate_and_one_burst(
            per_minute in 1_u32..6_000,
            steps in prop::collection::vec((0_u64..5_000, 0_usize..200), 1..200),
        ) {
            let (mut rate, mut now, mut begun) = (Rate::new(per_minute), 0, Vec::new());
            for (pause, wanted) in steps {
                now += pause;
                let count = wanted.min(rate.free(now));
                rate.take(count, now);
                begun.extend(std::iter::repeat_n(now, count));
                if rate.free(now) == 0 {
                    prop_assert!(rate.ready() > now && rate.free(rate.ready()) > 0);
                }
            }
            let most = per_minute as usize + (per_minute as usize / 12).max(1) + 1;
            for minute in begun.windows(most + 1) {
                prop_assert!(minute[most] >= minute[0] + 60_000, "more than {most} in a minute");
            }
        }
    }
}
