//! Quiet windows: times of day at a place in which nothing is rotated by itself. A leaf, and
//! pure: moments go in as values. It knows no credential; `rotation::schedule` decides what a
//! window delays and what it must not.
//!
//! A window holds while a clock on the wall of its place shows a time in it. So it is right over
//! the days on which that clock jumps: a time that is skipped neither opens nor closes anything
//! but the jump itself, and what the clock shows twice is quiet twice.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::credential::Millis;

/// Windows of one credential or service. More are a timetable, and no one reads it.
pub const WINDOWS: usize = 8;

/// How far a window's end is looked for. Windows repeat daily; what isn't over by then never is.
const HORIZON_DAYS: i64 = 3;

/// A time by clock without a day that leaves no doubt: local midnight of some day in the middle
/// of a year and of a winter, where `check` looks whether anything is left of the day.
const SAMPLES: [i64; 2] = [1_768_435_200, 1_784_073_600];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuietError {
    #[error(
        "quiet window {0:?} can't be read; allowed: \"22:00-06:00 Europe/Berlin\", with an IANA time zone, `UTC` or `local`"
    )]
    Shape(String),
    #[error("quiet window {window:?}: {found:?} is no time of day; allowed: 00:00 to 24:00")]
    Time { window: String, found: String },
    #[error(
        "quiet window {window:?}: time zone {found:?} is not known here; allowed: `UTC`, `local` or an IANA name such as Europe/Berlin; hint: names are in /usr/share/zoneinfo"
    )]
    Zone { window: String, found: String },
    #[error(
        "quiet window {0:?} is the whole day, so nothing would ever be rotated; hint: leave an hour, or pause the credential"
    )]
    WholeDay(String),
    #[error(
        "the quiet windows together are the whole day, so nothing would ever be rotated; hint: leave an hour, or pause the credential"
    )]
    NothingLeft,
    #[error("{0} quiet windows; allowed: at most {WINDOWS}")]
    TooMany(usize),
}

#[derive(Debug, Clone)]
struct Window {
    from: Time,
    /// Not in it any more. At or before `from`: on the next day.
    to: Time,
    zone: TimeZone,
    /// As it was written.
    text: String,
    place: String,
}

impl Window {
    fn parse(text: &str) -> Result<Self, QuietError> {
        let shape = || QuietError::Shape(text.to_owned());
        let mut words = text.split_whitespace();
        let (times, place) = (words.next().ok_or_else(shape)?, words.next().ok_or_else(shape)?);
        if words.next().is_some() {
            return Err(shape());
        }
        let (from, to) = times.split_once('-').ok_or_else(shape)?;
        let time = |found: &str| {
            minutes(found)
                .ok_or_else(|| QuietError::Time { window: text.to_owned(), found: found.to_owned() })
        };
        let (from, to) = (time(from)? % DAY, time(to)? % DAY);
        if from == to {
            return Err(QuietError::WholeDay(text.to_owned()));
        }
        let zone = match place {
            "local" => Some(TimeZone::system()),
            "UTC" => Some(TimeZone::UTC),
            name => TimeZone::get(name).ok(),
        };
        let zone =
            zone.ok_or_else(|| QuietError::Zone { window: text.to_owned(), found: place.to_owned() })?;
        let clock = |minutes: i16| Time::constant((minutes / 60) as i8, (minutes % 60) as i8, 0, 0);
        Ok(Self { from: clock(from), to: clock(to), zone, text: text.to_owned(), place: place.to_owned() })
    }

    fn holds(&self, at: Timestamp) -> bool {
        let clock = self.zone.to_datetime(at).time();
        if self.from < self.to {
            (self.from..self.to).contains(&clock)
        } else {
            clock >= self.from || clock < self.to
        }
    }

    /// Every moment around `at` at which it may open or close, and perhaps a few more.
    fn edges(&self, at: Timestamp, edges: &mut Vec<Timestamp>) {
        let today = self.zone.to_datetime(at).date();
        for day in -HORIZON_DAYS..=HORIZON_DAYS {
            let Ok(date) = today.checked_add(jiff::Span::new().days(day)) else { continue };
            for time in [self.from, self.to] {
                let clock = DateTime::from_parts(date, time);
                let ambiguous = self.zone.to_ambiguous_timestamp(clock);
                let offsets = match ambiguous.offset() {
                    AmbiguousOffset::Unambiguous { offset } => [offset, offset],
                    AmbiguousOffset::Gap { before, after } | AmbiguousOffset::Fold { before, after } => {
                        [before, after]
                    }
                };
                edges.extend(offsets.into_iter().filter_map(|offset| offset.to_timestamp(clock).ok()));
            }
        }
        // Where the clock jumps, what it skips or shows again is in or out from that moment on.
        let span = jiff::SignedDuration::from_hours(24 * HORIZON_DAYS);
        let (Ok(first), Ok(last)) = (at.checked_sub(span), at.checked_add(span)) else { return };
        edges.extend(
            self.zone
                .following(first)
                .map(|jump| jump.timestamp())
                .take_while(|&jump| jump <= last)
                .take(4 * HORIZON_DAYS as usize),
        );
    }
}

/// Minutes of a day.
const DAY: i16 = 24 * 60;

/// `HH:MM`, two digits each; `24:00` is the end of the day.
fn minutes(text: &str) -> Option<i16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let two_digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        two_digits.then(|| text.parse::<i16>().ok()).flatten()
    };
    let total = number(hours)? * 60 + number(minutes).filter(|&minutes| minutes < 60)?;
    (total <= DAY).then_some(total)
}

/// All windows that hold for something; quiet while any of them does.
#[derive(Debug, Clone, Default)]
pub struct Quiet(Vec<Window>);

impl PartialEq for Quiet {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|window| &window.text).eq(other.0.iter().map(|window| &window.text))
    }
}

impl Eq for Quiet {}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows: Vec<_> = self.0.iter().map(|window| window.text.as_str()).collect();
        f.write_str(&windows.join(", "))
    }
}

impl Quiet {
    /// It is never quiet.
    pub const NONE: Self = Self(Vec::new());

    /// # Errors
    /// What isn't a window, with what is allowed; windows that leave nothing of the day.
    pub fn parse<T: AsRef<str>>(windows: &[T]) -> Result<Self, QuietError> {
        if windows.len() > WINDOWS {
            return Err(QuietError::TooMany(windows.len()));
        }
        let windows = windows.iter().map(|text| Window::parse(text.as_ref())).collect::<Result<_, _>>()?;
        let quiet = Self(windows);
        for sample in SAMPLES {
            let sample = Timestamp::from_second(sample).map_err(|_| QuietError::NothingLeft)?;
            if quiet.holds_at(sample) && quiet.end_of(sample).is_none() {
                return Err(QuietError::NothingLeft);
            }
        }
        Ok(quiet)
    }

    /// Both together.
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn holds_at(&self, at: Timestamp) -> bool {
        self.0.iter().any(|window| window.holds(at))
    }

    fn edges(&self, at: Timestamp) -> Vec<Timestamp> {
        let mut edges = Vec::new();
        for window in &self.0 {
            window.edges(at, &mut edges);
        }
        edges.sort_unstable();
        edges
    }

    fn end_of(&self, at: Timestamp) -> Option<Timestamp> {
        self.edges(at).into_iter().find(|&edge| edge > at && !self.holds_at(edge))
    }

    pub fn holds(&self, at: Millis) -> bool {
        !self.0.is_empty() && timestamp(at).is_some_and(|at| self.holds_at(at))
    }

    /// The quiet time around a moment; none where it isn't quiet then.
    pub fn around(&self, at: Millis) -> Option<Span> {
        if self.0.is_empty() {
            return None;
        }
        let moment = timestamp(at).filter(|&at| self.holds_at(at))?;
        let ends = self.end_of(moment)?;
        let edges = self.edges(moment);
        // Backwards to the edge before which nothing holds.
        let before = |edge: Timestamp| edge.checked_sub(jiff::SignedDuration::from_millis(1)).ok();
        let begins = edges
            .into_iter()
            .rev()
            .filter(|&edge| edge <= moment)
            .find(|&edge| before(edge).is_some_and(|before| !self.holds_at(before)))
            .unwrap_or(moment);
        Some(Span { begins: millis(begins), ends: millis(ends) })
    }

    /// A moment by the clock of the first window that ends or begins then, as a person says it.
    pub fn clock(&self, at: Millis) -> String {
        let Some(moment) = timestamp(at) else { return String::new() };
        let of = |window: &Window| window.zone.to_datetime(moment).time();
        let named = self.0.iter().find(|window| [window.from, window.to].contains(&of(window)));
        named.or(self.0.first()).map_or_else(String::new, |window| {
            let time = of(window);
            format!("{:02}:{:02} {}", time.hour(), time.minute(), window.place)
        })
    }
}

/// A quiet time: from the first moment to the first that isn't quiet any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub begins: Millis,
    pub ends: Millis,
}

fn timestamp(at: Millis) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()
}

fn millis(at: Timestamp) -> Millis {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quiet(windows: &[&str]) -> Quiet {
        Quiet::parse(windows).unwrap()
    }

    fn at(text: &str) -> Millis {
        millis(text.parse().unwrap())
    }

    #[test]
    fn a_window_holds_by_the_clock_of_its_place_and_over_midnight() {
        let berlin = quiet(&["22:00-06:00 Europe/Berlin"]);
        for (moment, holds) in [
            ("2026-01-10T20:59:59Z", false),
            ("2026-01-10T21:00:00Z", true),
            ("2026-01-11T04:59:59.999Z", true),
            ("2026-01-11T05:00:00Z", false),
            ("2026-07-10T20:00:00Z", true),
            ("2026-07-11T04:00:00Z", false),
        ] {
            assert_eq!(berlin.holds(at(moment)), holds, "{moment}");
        }
        let span = berlin.around(at("2026-01-11T01:00:00Z")).unwrap();
        assert_eq!(span, Span { begins: at("2026-01-10T21:00:00Z"), ends: at("2026-01-11T05:00:00Z") });
        assert_eq!(berlin.clock(span.ends), "06:00 Europe/Berlin");
        assert_eq!(berlin.around(at("2026-01-11T12:00:00Z")), None);
        assert_eq!(Quiet::default().around(at("2026-01-11T01:00:00Z")), None);
    }

    #[test]
    fn windows_that_touch_or_overlap_are_one_quiet_time() {
        let both = quiet(&["22:00-02:00 UTC", "01:30-06:00 UTC", "12:00-13:00 UTC"]);
        let span = both.around(at("2026-01-10T23:00:00Z")).unwrap();
        assert_eq!(span, Span { begins: at("2026-01-10T22:00:00Z"), ends: at("2026-01-11T06:00:00Z") });
        let to_the_end = quiet(&["18:00-24:00 UTC"]);
        assert_eq!(to_the_end.around(at("2026-01-10T19:00:00Z")).unwrap().ends, at("2026-01-11T00:00:00Z"));
    }

    #[test]
    fn a_clock_that_jumps_moves_the_ends_of_a_window_and_never_loses_one() {
        for (window, inside, begins, ends) in [
            // Berlin skips 02:00 to 03:00 on 29 March 2026, at 01:00 UTC.
            (
                "01:00-02:30 Europe/Berlin",
                "2026-03-29T00:30:00Z",
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:00:00Z",
            ),
            (
                "02:30-04:00 Europe/Berlin",
                "2026-03-29T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T02:00:00Z",
            ),
            (
                "22:00-06:00 Europe/Berlin",
                "2026-03-29T01:00:00Z",
                "2026-03-28T21:00:00Z",
                "2026-03-29T04:00:00Z",
            ),
            // And shows 02:00 to 03:00 twice on 25 October 2026, from 00:00 UTC.
            (
                "02:00-03:00 Europe/Berlin",
                "2026-10-25T01:30:00Z",
                "2026-10-25T00:00:00Z",
                "2026-10-25T02:00:00Z",
            ),
            (
                "22:00-06:00 Europe/Berlin",
                "2026-10-25T01:00:00Z",
                "2026-10-24T20:00:00Z",
                "2026-10-25T05:00:00Z",
            ),
            // Between the two, the clock shows times after the end, and then again before it.
            (
                "01:00-02:30 Europe/Berlin",
                "2026-10-25T00:00:00Z",
                "2026-10-24T23:00:00Z",
                "2026-10-25T00:30:00Z",
            ),
            (
                "01:00-02:30 Europe/Berlin",
                "2026-10-25T01:10:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
            ),
        ] {
            let span = quiet(&[window]).around(at(inside));
            assert_eq!(span, Some(Span { begins: at(begins), ends: at(ends) }), "{window} at {inside}");
        }
        // Wholly skipped, so it isn't there that day.
        assert!(!quiet(&["02:10-02:50 Europe/Berlin"]).holds(at("2026-03-29T01:00:00Z")));
    }

    #[test]
    fn what_is_no_window_is_refused_with_what_is_allowed() {
        for (window, part) in [
            ("", "can't be read"),
            ("22:00-06:00", "can't be read; allowed: \"22:00-06:00 Europe/Berlin\""),
            ("22:00 06:00 UTC", "can't be read"),
            ("22:00-06:00 UTC daily", "can't be read"),
            ("22-06 UTC", "\"22\" is no time of day; allowed: 00:00 to 24:00"),
            ("22:00-25:00 UTC", "\"25:00\" is no time of day"),
            ("22:60-23:00 UTC", "\"22:60\" is no time of day"),
            ("+1:00-23:00 UTC", "\"+1:00\" is no time of day"),
            ("22:00-06:00 Europe/Atlantis", "time zone \"Europe/Atlantis\" is not known here"),
            ("00:00-24:00 UTC", "is the whole day"),
            ("08:00-08:00 local", "is the whole day"),
        ] {
            let error = Quiet::parse(&[window]).unwrap_err().to_string();
            assert!(error.contains(part), "{window:?}: {error}");
        }
        let halves = Quiet::parse(&["00:00-12:00 UTC", "12:00-24:00 UTC"]);
        assert_eq!(halves, Err(QuietError::NothingLeft));
        assert_eq!(Quiet::parse(&["00:00-01:00 UTC"; 9]), Err(QuietError::TooMany(9)));
    }

    fn any_window() -> impl Strategy<Value = String> {
        let zone = prop::sample::select(vec![
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "America/St_Johns",
            "Asia/Kathmandu",
        ]);
        (0..DAY, 1..DAY, zone).prop_map(|(from, length, zone)| {
            let to = (from + length) % DAY;
            format!("{:02}:{:02}-{:02}:{:02} {zone}", from / 60, from % 60, to / 60, to % 60)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Over two years with all their jumps: inside it is quiet, at its end and before its
        /// begin it isn't, and nothing within was left out.
        #[test]
        fn the_quiet_time_around_a_moment_is_exactly_where_it_holds(
            windows in prop::collection::vec(any_window(), 1..4),
            moment in 1_735_689_600_000_u64..1_798_761_600_000,
        ) {
            let Ok(quiet) = Quiet::parse(&windows) else { return Ok(()) };
            match quiet.around(moment) {
                None => prop_assert!(!quiet.holds(moment)),
                Some(Span { begins, ends }) => {
                    prop_assert!(begins <= moment && moment < ends);
                    prop_assert!(!quiet.holds(ends), "{windows:?}: quiet at its end {ends}");
                    prop_assert!(!quiet.holds(begins - 1), "{windows:?}: quiet before {begins}");
                    for minute in (begins..ends).step_by(7 * 60_000) {
                        prop_assert!(quiet.holds(minute), "{windows:?}: not quiet at {minute}");
                    }
                }
            }
        }
    }
}
