//! What is counted while the daemon works: attempts and requests, by service. A leaf. Counting
//! takes a lookup without an allocation and a few atomic additions; who wants to see the numbers
//! reads them all. It knows credentials by their service alone, and keeps no name of one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub const ACTIONS: [&str; 2] = ["validate", "rotate"];
pub const VERDICTS: [&str; 4] = ["valid", "invalid", "unknown", "needs-human"];

/// How one request of the egress ended, redirects counted one by one: the kind of its status, or
/// what was in its way.
pub const OUTCOMES: [&str; 12] =
    ["1xx", "2xx", "3xx", "429", "4xx", "5xx", "denied", "dns", "connect", "tls", "timeout", "other"];

/// A service answers in tens of milliseconds, and an attempt may take a minute.
pub const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Counts of times, by `BOUNDS` and past the last of them.
#[derive(Debug, Default)]
pub struct Times {
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// Microseconds: half a million years of them fit.
    sum: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// The count of each place, not of those below it.
    pub fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        std::array::from_fn(|place| self.counts[place].load(Ordering::Relaxed))
    }

    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum.load(Ordering::Relaxed))
    }
}

/// The counts of one service.
#[derive(Debug, Default)]
pub struct OfService {
    attempts: [[AtomicU64; VERDICTS.len()]; ACTIONS.len()],
    attempt_times: [Times; ACTIONS.len()],
    /// New secrets that came into force.
    rotations: AtomicU64,
    requests: [AtomicU64; OUTCOMES.len()],
    request_times: Times,
}

impl OfService {
    pub fn attempts(&self, action: usize, verdict: usize) -> u64 {
        self.attempts[action][verdict].load(Ordering::Relaxed)
    }

    pub fn attempt_times(&self, action: usize) -> &Times {
        &self.attempt_times[action]
    }

    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    pub fn requests(&self, outcome: usize) -> u64 {
        self.requests[outcome].load(Ordering::Relaxed)
    }

    pub const fn request_times(&self) -> &Times {
        &self.request_times
    }
}

/// All that is counted since the daemon started.
#[derive(Debug, Default)]
pub struct Meter {
    services: RwLock<BTreeMap<String, Arc<OfService>>>,
}

impl Meter {
    /// An attempt that ended in its report, by the words of its action and verdict.
    pub fn attempt(&self, service: &str, action: &str, verdict: &str, rotated: bool, took: Duration) {
        let of = |words: &[&str], word: &str| words.iter().position(|known| *known == word);
        let (Some(action), Some(verdict)) = (of(&ACTIONS, action), of(&VERDICTS, verdict)) else { return };
        let counts = self.service(service);
        counts.attempts[action][verdict].fetch_add(1, Ordering::Relaxed);
        counts.attempt_times[action].add(took);
        if rotated {
            counts.rotations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request that was sent for a service, or kept from being sent.
    pub fn request(&self, service: &str, outcome: &str, took: Duration) {
        let Some(place) = OUTCOMES.iter().position(|known| *known == outcome) else { return };
        let counts = self.service(service);
        counts.requests[place].fetch_add(1, Ordering::Relaxed);
        counts.request_times.add(took);
    }

    fn service(&self, name: &str) -> Arc<OfService> {
        if let Some(counts) = self.services.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(counts);
        }
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(services.entry(name.to_owned()).or_default())
    }

    /// By service, in the order of their names.
    pub fn services(&self) -> Vec<(String, Arc<OfService>)> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.iter().map(|(name, counts)| (name.clone(), Arc::clone(counts))).collect()
    }
}

/// The outcome of an answer.
pub const fn status_class(status: u16) -> &'static str {
    match status {
        429 => "429",
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_the_place_that_ends_with_its_bound() {
        let times = Times::default();
        for millis in [0, 5, 6, 60_000, 60_001] {
            times.add(Duration::from_millis(millis));
        }
        let mut expected = [0; BOUNDS.len() + 1];
        (expected[0], expected[1], expected[11], expected[12]) = (2, 1, 1, 1);
        assert_eq!(times.counts(), expected);
        assert_eq!(times.sum(), Duration::from_millis(120_012));
    }

    #[test]
    fn each_service_has_counts_of_its_own() {
        let meter = Meter::default();
        meter.attempt("a", "rotate", "valid", true, Duration::from_millis(20));
        meter.attempt("a", "validate", "unknown", false, Duration::ZERO);
        meter.attempt("b", "validate", "no-such-verdict", true, Duration::ZERO);
        meter.request("b", status_class(429), Duration::ZERO);
        meter.request("b", status_class(503), Duration::ZERO);
        let services = meter.services();
        let names: Vec<_> = services.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let (a, b) = (&services[0].1, &services[1].1);
        assert_eq!((a.attempts(1, 0), a.attempts(0, 2), a.rotations()), (1, 1, 1));
        assert_eq!((b.attempts(0, 0), b.rotations(), b.requests(3), b.requests(5)), (0, 0, 1, 1));
        assert_eq!(b.request_times().counts().iter().sum::<u64>(), 2);
    }

    #[test]
    fn every_status_has_an_outcome() {
        for status in 0..=999 {
            assert!(OUTCOMES.contains(&status_class(status)), "{status}");
        }
    }
}
