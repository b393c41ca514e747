//! What time it is. A host alone goes by its wall clock. Hosts that share a store go by the store's,
//! all of them by the same: a lease that one writes is judged by another, and what their own clocks
//! say plays no part. Between two looks at the store's clock the machine's steady clock counts on,
//! which nobody sets and which does not stand still while the machine sleeps.

use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = u64;

/// What the store's clock is ahead of the steady one; `ALONE`: there is no such clock.
static AHEAD: AtomicI64 = AtomicI64::new(ALONE);
const ALONE: i64 = i64::MIN;

/// Below this a look says no more than the last: it took longer than it differs.
const AGREES_WITHIN: Millis = 2;

/// The present moment.
pub fn now() -> Millis {
    match AHEAD.load(Ordering::Relaxed) {
        ALONE => wall(),
        ahead => steady().saturating_add_signed(ahead),
    }
}

/// By this machine's wall clock.
pub fn wall() -> Millis {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX))
}

/// Time since the machine was started, sleep included.
pub fn steady() -> Millis {
    let at = clock_gettime(ClockId::Boottime);
    Millis::try_from(at.tv_sec).unwrap_or(0) * 1_000 + Millis::try_from(at.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Goes by the store's clock from now on. It said `store` at some moment between the two of the
/// steady clock.
pub fn follow(store: Millis, asked: Millis, answered: Millis) {
    let middle = asked + answered.saturating_sub(asked) / 2;
    let ahead = i64::try_from(store).unwrap_or(i64::MAX) - i64::try_from(middle).unwrap_or(0);
    let before = AHEAD.load(Ordering::Relaxed);
    let uncertain = answered.saturating_sub(asked) / 2 + AGREES_WITHIN;
    if before == ALONE || before.abs_diff(ahead) > uncertain {
        AHEAD.store(ahead, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, for the clock is the process's.
    #[test]
    fn the_stores_clock_counts_on_steadily_and_a_look_that_says_nothing_new_moves_nothing() {
        assert!(now().abs_diff(wall()) < 1_000);
        let at = steady();
        let store = wall() + 3_600_000;
        follow(store, at, at + 10);
        let ahead = AHEAD.load(Ordering::Relaxed);
        assert!(now().abs_diff(store) < 5_000);
        follow(store + 6, at, at + 10);
        assert_eq!(AHEAD.load(Ordering::Relaxed), ahead, "six of ten are within what the look took");
        follow(store + 60_000, at, at + 10);
        assert_eq!(AHEAD.load(Ordering::Relaxed), ahead + 60_000);
        AHEAD.store(ALONE, Ordering::Relaxed);
    }
}
