//! Whose clock is right: what the `Date` of answers says of the host's clock, and of one
//! origin's. Pure: headers and moments in, offsets out. It corrects nothing by itself.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, header};

use crate::credential::Millis;

/// Origins remembered. A host with more services than this still has the newest.
const ORIGINS: usize = 256;

/// How long an answer says something of the host's clock.
const FRESH: Millis = 60 * 60_000;

/// Below this nothing is corrected or said: `Date` counts whole seconds, is made before the
/// answer is, and clocks that are kept right at all are closer.
pub const TOLERATED: u64 = 30_000;

/// Past this a `Date` is no clock but a mistake, and nothing follows from it.
const BELIEVED: u64 = 36 * 60 * 60_000;

/// An answer that took longer may say when the question came as well as when it was answered.
const SLOWEST: Millis = 10_000;

/// Between two looks at what all origins say together.
const LOOKED_OVER: Millis = 1_000;

const AGE: HeaderName = header::AGE;

/// A date of HTTP, in the form that everybody sends.
fn http_date(headers: &HeaderMap, name: HeaderName) -> Option<Millis> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    moment(value.to_str().ok()?)
}

fn moment(text: &str) -> Option<Millis> {
    let zoned = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
    u64::try_from(zoned.timestamp().as_millisecond()).ok()
}

/// How far an origin's clock is ahead of the host's, in milliseconds, by one answer. None where
/// the answer says nothing of it: no `Date`, garbage, or a copy that a cache kept.
pub fn ahead(headers: &HeaderMap, sent: Millis, received: Millis) -> Option<i64> {
    if headers.contains_key(AGE) || received.saturating_sub(sent) > SLOWEST {
        return None;
    }
    let date = i64::try_from(http_date(headers, header::DATE)?).ok()?;
    let middle = i64::try_from(sent.midpoint(received)).ok()?;
    let ahead = date.checked_sub(middle)?;
    (ahead.unsigned_abs() <= BELIEVED).then_some(ahead)
}

/// A moment by the origin's clock, in the host's time. A session ends by the clock of those who
/// end it.
pub fn by_host(theirs: Millis, ahead: Option<i64>) -> Millis {
    match ahead {
        Some(ahead) if ahead.unsigned_abs() > TOLERATED => {
            theirs.saturating_add_signed(ahead.saturating_neg())
        }
        _ => theirs,
    }
}

/// How long an answer asks to be left alone: seconds, or a date by its own clock.
pub fn retry_after(headers: &HeaderMap, received: Millis) -> Option<Millis> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // What doesn't fit is longer than anybody waits.
        return Some(value.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1_000));
    }
    let until = moment(value)?;
    let theirs = http_date(headers, header::DATE).unwrap_or(received);
    Some(until.saturating_sub(theirs))
}

/// What the latest answers of each origin said.
#[derive(Debug, Default)]
pub struct Clocks {
    heard: HashMap<String, (Millis, i64)>,
    /// What was last said of the host's clock.
    told: Option<i64>,
    /// When that was last looked at, and whether something else was heard since.
    looked: Millis,
    changed: bool,
}

impl Clocks {
    pub fn hear(&mut self, origin: &str, ahead: i64, now: Millis) {
        if self.heard.len() >= ORIGINS && !self.heard.contains_key(origin) {
            let oldest = self.heard.iter().min_by_key(|(_, (at, _))| *at).map(|(origin, _)| origin.clone());
            if let Some(oldest) = oldest {
                self.heard.remove(&oldest);
            }
        }
        let before = self.heard.insert(origin.to_owned(), (now, ahead));
        self.changed |= before.is_none_or(|(_, before)| before.abs_diff(ahead) > TOLERATED / 2);
    }

    /// How far the others' clocks are ahead of the host's: the median over two origins or more
    /// that answered within the hour, and of two middle ones the more favourable. One origin
    /// alone may as well be wrong itself. None: not known, or within what is tolerated.
    pub fn host_is_behind(&self, now: Millis) -> Option<i64> {
        let mut known: Vec<i64> = self
            .heard
            .values()
            .filter(|(at, _)| now.abs_diff(*at) <= FRESH)
            .map(|(_, ahead)| *ahead)
            .collect();
        if known.len() < 2 {
            return None;
        }
        known.sort_unstable();
        let middles = [known[(known.len() - 1) / 2], known[known.len() / 2]];
        if middles[0].signum() != middles[1].signum() {
            return None;
        }
        let median = middles.into_iter().min_by_key(|ahead| ahead.unsigned_abs())?;
        (median.unsigned_abs() > TOLERATED).then_some(median)
    }

    /// What to say of the host's clock, once for each change: it went wrong, it is another half
    /// minute off, or it is right again (None).
    pub fn news(&mut self, now: Millis) -> Option<Option<i64>> {
        // All origins are looked over for it, and answers come by the thousand, saying the same.
        if !self.changed && now.abs_diff(self.looked) < LOOKED_OVER {
            return None;
        }
        (self.looked, self.changed) = (now, false);
        let found = self.host_is_behind(now);
        let changed = match (self.told, found) {
            (None, None) => false,
            (Some(before), Some(after)) => before.abs_diff(after) > TOLERATED,
            _ => true,
        };
        if changed {
            self.told = found;
        }
        changed.then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6 November 1994, 08:49:37.
    const DATE: Millis = 784_111_777_000;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_date_tells_the_offset_and_a_bad_one_tells_nothing() {
        let good = "Sun, 06 Nov 1994 08:49:37 GMT";
        let hour = 3_600_000;
        for (lines, now, want) in [
            (&[("date", good)][..], DATE, Some(0)),
            (&[("date", good)], DATE - 5 * hour, Some(18_000_000)),
            (&[("date", good)], DATE + 5 * hour, Some(-18_000_000)),
            (&[("date", good), ("age", "0")], DATE, None),
            (&[("date", good), ("date", good)], DATE, None),
            (&[("date", good)], DATE + 365 * 24 * hour, None),
            (&[("date", "Thu, 01 Jan 1970 00:00:00 GMT")], DATE, None),
            (&[("date", "whenever")], DATE, None),
            (&[("date", "")], DATE, None),
            (&[("date", "784111777")], DATE, None),
            (&[("date", "Sun, 36 Nov 1994 08:49:37 GMT")], DATE, None),
            (&[], DATE, None),
        ] {
            assert_eq!(ahead(&headers(lines), now, now), want, "{lines:?}");
        }
        // The middle of question and answer; and an answer that took too long says nothing.
        assert_eq!(ahead(&headers(&[("date", good)]), DATE - 2_000, DATE), Some(1_000));
        assert_eq!(ahead(&headers(&[("date", good)]), DATE - 20_000, DATE), None);
    }

    #[test]
    fn only_an_offset_beyond_what_dates_are_worth_corrects_anything() {
        for (ahead, want) in [
            (None, DATE),
            (Some(0), DATE),
            (Some(29_000), DATE),
            (Some(-30_000), DATE),
            (Some(18_000_000), DATE - 18_000_000),
            (Some(-18_000_000), DATE + 18_000_000),
        ] {
            assert_eq!(by_host(DATE, ahead), want, "{ahead:?}");
        }
        assert_eq!(by_host(5, Some(i64::MAX)), 0);
        assert_eq!(by_host(u64::MAX, Some(i64::MIN)), u64::MAX);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_clock_that_wrote_it() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (lines, want) in [
            (&[("retry-after", "120")][..], Some(120_000)),
            (&[("retry-after", " 7 ")], Some(7_000)),
            (&[("retry-after", "99999999999999999999999")], Some(u64::MAX)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"), date], Some(60_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), date], Some(0)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "")], None),
            (&[], None),
        ] {
            // The host's own clock is hours off, which changes nothing.
            assert_eq!(retry_after(&headers(lines), DATE + 9_000_000), want, "{lines:?}");
        }
    }

    #[test]
    fn the_host_is_wrong_where_most_of_several_origins_say_so() {
        let hour = 3_600_000_i64;
        for (offsets, want) in [
            (&[][..], None),
            (&[5 * hour], None),
            (&[5 * hour, 5 * hour + 800], Some(5 * hour)),
            (&[-5 * hour, -5 * hour - 800], Some(-5 * hour)),
            (&[5 * hour, 400], None),
            (&[5 * hour, -5 * hour], None),
            (&[5 * hour, 300, -200], None),
            (&[5 * hour, 5 * hour, 20], Some(5 * hour)),
            (&[20_000, 29_000], None),
            (&[31_000, 40_000], Some(31_000)),
        ] {
            let mut clocks = Clocks::default();
            for (number, ahead) in offsets.iter().enumerate() {
                clocks.hear(&format!("https://{number}.example"), *ahead, DATE);
            }
            assert_eq!(clocks.host_is_behind(DATE), want, "{offsets:?}");
            assert_eq!(clocks.host_is_behind(DATE + FRESH + 1), None, "stale");
        }
    }

    #[test]
    fn a_change_is_news_once() {
        let mut clocks = Clocks::default();
        let mut both = |ahead: i64| {
            for origin in ["a", "b"] {
                clocks.hear(origin, ahead, DATE);
            }
            (clocks.news(DATE), clocks.news(DATE))
        };
        assert_eq!(both(100), (None, None));
        assert_eq!(both(3_600_000), (Some(Some(3_600_000)), None));
        assert_eq!(both(3_601_000), (None, None));
        assert_eq!(both(7_200_000), (Some(Some(7_200_000)), None));
        assert_eq!(both(0), (Some(None), None));
    }

    #[test]
    fn no_more_origins_are_remembered_than_there_is_room_for() {
        let mut clocks = Clocks::default();
        for number in 0..3 * ORIGINS {
            clocks.hear(&number.to_string(), 0, number as Millis);
        }
        assert_eq!(clocks.heard.len(), ORIGINS);
        assert!(clocks.heard.contains_key(&(3 * ORIGINS - 1).to_string()));
    }
}
