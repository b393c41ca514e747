//! Who asked to be left alone: an origin that answered 429 to one credential is not asked by
//! the others of that service either until it may be again. Pure, bounded, in memory alone: a
//! restart forgets, and learns again from the next answer. Another service's plugin is never
//! held up by it, whatever its neighbour made of an origin that both ask.

use std::collections::HashMap;

use crate::credential::Millis;

/// Origins remembered, over all services. Past it the one that is free first is forgotten.
const REMEMBERED: usize = 1_024;

/// A 429 that says no time: this long, twice as long for each that follows.
const UNSAID: Millis = 30_000;
const UNSAID_AT_MOST: Millis = 15 * 60_000;

/// The longest that one answer holds a whole service up. A credential keeps to what it was told
/// itself, which may be longer.
const AT_MOST: Millis = 60 * 60_000;

/// Of those who waited one begins at a time, this far apart.
const APART: Millis = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Restraint {
    /// When the last 429 came.
    heard: Millis,
    /// What its answer asked for, uncut.
    asked: Option<Millis>,
    until: Millis,
    /// 429 in a row.
    times: u32,
    /// How many were sent away to come back then.
    waiting: u64,
}

#[derive(Debug, Default)]
pub struct Restraints(HashMap<(String, String), Restraint>);

impl Restraints {
    /// An answer of an origin to one of a service's credentials.
    pub fn hear(
        &mut self,
        service: &str,
        origin: &str,
        status: u16,
        retry_after: Option<Millis>,
        now: Millis,
    ) {
        let name = || (service.to_owned(), origin.to_owned());
        if status != 429 {
            // Answers that crossed the 429 don't lift it, later ones end the series.
            if !self.0.is_empty() && self.0.get(&name()).is_some_and(|known| known.until <= now) {
                self.0.remove(&name());
            }
            return;
        }
        let times = self.0.get(&name()).map_or(0, |known| known.times);
        // Those that were on their way count as one.
        let series = self.0.get(&name()).is_some_and(|known| known.until > now);
        let times = if series { times.max(1) } else { times.saturating_add(1) };
        let unsaid = (UNSAID << (times - 1).min(8)).min(UNSAID_AT_MOST);
        let until = now.saturating_add(retry_after.unwrap_or(unsaid).clamp(1_000, AT_MOST));
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&name()) {
            let first = self.0.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| name.clone());
            if let Some(first) = first {
                self.0.remove(&first);
            }
        }
        let known =
            self.0.entry(name()).or_insert(Restraint { heard: now, asked: None, until, times, waiting: 0 });
        *known = Restraint {
            heard: now,
            asked: retry_after,
            until: known.until.max(until),
            times,
            waiting: if series { known.waiting } else { 0 },
        };
    }

    /// Whether a service's origin answered 429 since then, and what it asked for.
    pub fn heard_since(&self, service: &str, origins: &[String], since: Millis) -> Option<Option<Millis>> {
        let known = origins.iter().filter_map(|origin| self.0.get(&(service.to_owned(), origin.clone())));
        known.filter(|known| known.heard >= since).map(|known| known.asked).max()
    }

    /// The clock was set back by so much: nobody is left alone for longer than was asked.
    pub fn set_back(&mut self, by: Millis) {
        for known in self.0.values_mut() {
            known.heard = known.heard.saturating_sub(by);
            known.until = known.until.saturating_sub(by);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which origin of these is not to be asked now, and when the caller may come back: each at
    /// a time of its own.
    pub fn hold(&mut self, service: &str, origins: &[String], now: Millis) -> Option<(String, Millis)> {
        let held = origins
            .iter()
            .filter(|origin| {
                self.0.get(&(service.to_owned(), (*origin).clone())).is_some_and(|known| known.until > now)
            })
            .max_by_key(|origin| {
                self.0.get(&(service.to_owned(), (*origin).clone())).map(|known| known.until)
            })?
            .clone();
        let known = self.0.get_mut(&(service.to_owned(), held.clone()))?;
        let back = known.until + APART * known.waiting;
        known.waiting += 1;
        Some((held, back))
    }

    /// Every origin that isn't asked now, for people.
    pub fn standing(&self, now: Millis) -> Vec<(String, String, Millis)> {
        let held = self.0.iter().filter(|(_, known)| known.until > now);
        held.map(|((service, origin), known)| (service.clone(), origin.clone(), known.until)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_000_000;

    fn origins(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_429_holds_the_siblings_at_that_origin_and_nobody_else() {
        let mut held = Restraints::default();
        held.hear("shop", "https://api.example", 429, Some(60_000), NOW);
        let api = origins(&["https://login.example", "https://api.example"]);
        let found = held.hold("shop", &api, NOW + 1);
        assert_eq!(found, Some(("https://api.example".into(), NOW + 60_000)));
        // Each comes back at a time of its own.
        assert_eq!(held.hold("shop", &api, NOW + 2).unwrap().1, NOW + 60_100);
        assert_eq!(held.hold("shop", &origins(&["https://login.example"]), NOW + 1), None);
        assert_eq!(held.hold("bank", &api, NOW + 1), None);
        assert_eq!(held.hold("shop", &api, NOW + 60_000), None);
    }

    #[test]
    fn a_clock_set_back_leaves_nobody_alone_for_longer() {
        const HOUR: Millis = 3_600_000;
        let mut held = Restraints::default();
        held.hear("shop", "o", 429, Some(60_000), NOW + HOUR);
        held.set_back(HOUR);
        assert_eq!(held.hold("shop", &origins(&["o"]), NOW + 1), Some(("o".into(), NOW + 60_000)));
        assert_eq!(held.hold("shop", &origins(&["o"]), NOW + 60_000), None);
    }

    #[test]
    fn what_says_no_time_doubles_and_what_says_much_is_cut() {
        let api = origins(&["o"]);
        let mut held = Restraints::default();
        let mut now = NOW;
        let mut waits = Vec::new();
        for _ in 0..7 {
            held.hear("shop", "o", 429, None, now);
            // On its way while the first was answered.
            held.hear("shop", "o", 429, None, now);
            let until = held.standing(now)[0].2;
            waits.push((until - now) / 1_000);
            now = until;
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900]);
        held.hear("shop", "o", 200, None, now);
        assert!(held.is_empty(), "a good answer ends the series");
        held.hear("shop", "o", 429, Some(u64::MAX), now);
        assert_eq!(held.hold("shop", &api, now).unwrap().1, now + AT_MOST);
        // An answer that crossed it doesn't lift it.
        held.hear("shop", "o", 200, None, now + 1);
        assert!(held.hold("shop", &api, now + 2).is_some());
        assert_eq!(held.heard_since("shop", &api, now), Some(Some(u64::MAX)));
        assert_eq!(held.heard_since("shop", &api, now + 1), None);
    }

    #[test]
    fn no_more_origins_are_remembered_than_there_is_room_for() {
        let mut held = Restraints::default();
        for number in 0..2 * REMEMBERED as u64 {
            held.hear("shop", &number.to_string(), 429, Some(1_000 + number), NOW);
        }
        assert_eq!(held.0.len(), REMEMBERED);
        assert!(held.hold("shop", &origins(&["0"]), NOW).is_none(), "the first to be free is forgotten");
        assert!(held.hold("shop", &origins(&["2047"]), NOW).is_some());
    }
}
