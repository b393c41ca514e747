//! Tells a clock that was set from time that went by. Pure: both clocks in, what happened out.
//! Due times and leases are wall time, for they outlive the process; a wall clock may be wrong,
//! be corrected, and go on while the machine sleeps.

use std::time::{Duration, Instant};

use crate::credential::Millis;

/// A difference below this is the way clocks are kept right, and moves no due time that matters.
const STEP: Duration = Duration::from_secs(1);

/// What the wall clock did since the last look beside going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    None,
    /// It was set ahead, or the machine slept.
    Ahead(Duration),
    Back(Duration),
}

#[derive(Debug)]
pub struct ClockWatch {
    wall: Millis,
    steady: Instant,
}

impl ClockWatch {
    pub fn new(wall: Millis, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// Compares with the last look, which this one replaces.
    pub fn look(&mut self, wall: Millis, steady: Instant) -> Jump {
        let jump = self.jump(wall, steady);
        (self.wall, self.steady) = (wall, steady);
        jump
    }

    /// Whether the next look will find a jump.
    pub fn has_jumped(&self, wall: Millis, steady: Instant) -> bool {
        self.jump(wall, steady) != Jump::None
    }

    /// Lets the next look find a jump back again that couldn't be acted upon.
    pub fn undo(&mut self, back: Duration) {
        self.wall += back.as_millis() as Millis;
    }

    fn jump(&self, wall: Millis, steady: Instant) -> Jump {
        let passed = steady.saturating_duration_since(self.steady);
        let expected = Duration::from_millis(self.wall) + passed;
        let found = Duration::from_millis(wall);
        let (ahead, back) = (found.saturating_sub(expected), expected.saturating_sub(found));
        if ahead >= STEP {
            Jump::Ahead(ahead)
        } else if back >= STEP {
            Jump::Back(back)
        } else {
            Jump::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Millis = 1_800_000_000_000;
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn time_that_goes_by_is_no_jump_however_long() {
        let start = Instant::now();
        let mut watch = ClockWatch::new(WALL, start);
        assert_eq!(watch.look(WALL + 3_600_000, start + HOUR), Jump::None);
        // Nor is a clock that is slewed.
        assert_eq!(watch.look(WALL + 7_200_900, start + 2 * HOUR), Jump::None);
    }

    #[test]
    fn a_clock_that_was_set_shows_by_how_much_and_once() {
        let start = Instant::now();
        let mut watch = ClockWatch::new(WALL, start);
        let later = start + Duration::from_secs(5);
        assert_eq!(watch.look(WALL + 3_605_000, later), Jump::Ahead(HOUR));
        assert_eq!(watch.look(WALL + 3_605_000, later), Jump::None);
        assert_eq!(watch.look(WALL + 5_000, later), Jump::Back(HOUR));
        assert_eq!(watch.look(WALL + 5_000, later), Jump::None);
    }

    #[test]
    fn a_clock_before_its_epoch_is_no_crash() {
        let start = Instant::now();
        assert_eq!(ClockWatch::new(WALL, start).look(0, start), Jump::Back(Duration::from_millis(WALL)));
    }
}
