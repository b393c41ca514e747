//! Reads the dates that services write, and writes a day where one asks for it. Pure.
//!
//! ```
//! use keywheel_sdk::date;
//!
//! assert_eq!(date::parse("2026-01-01T01:00:00+01:00"), Some(1_767_225_600_000));
//! assert_eq!(date::parse("2026-01-01"), Some(1_767_225_600_000));
//! assert_eq!(date::parse("soon"), None);
//! assert_eq!(date::day(1_767_225_600_000), "2026-01-01");
//! ```

use alloc::format;
use alloc::string::String;

use time::{Date, Month, OffsetDateTime, Time};

/// Milliseconds since 1970 of a date as RFC 3339 has it (`2026-01-01T00:00:00Z`), as HTTP has it
/// (`Thu, 01 Jan 2026 00:00:00 GMT`), as `2026-01-01 00:00:00 UTC` or `… +0100`, or of a day's
/// beginning in UTC (`2026-01-01`). None for anything else, and for dates before 1970.
///
/// The calendar is a library's, the reading our own: a parser of any format there may be was a
/// quarter of a plugin.
pub fn parse(text: &str) -> Option<u64> {
    let mut rest = Rest(text.as_bytes());
    if !rest.0.first()?.is_ascii_digit() {
        return parse_http(text)?.checked_mul(1_000);
    }
    let (year, month, day) = (rest.number(4)?, rest.after(b"-")?.number(2)?, rest.after(b"-")?.number(2)?);
    let date = date(year, month, day)?;
    if rest.0.is_empty() {
        return u64::try_from(date.midnight().assume_utc().unix_timestamp()).ok()?.checked_mul(1_000);
    }
    // RFC 3339 has a `T`, and lets others have what is easier to read.
    rest.byte().filter(|separator| !separator.is_ascii_digit())?;
    let time = rest.time()?;
    let milliseconds = rest.fraction()?;
    let seconds = date.with_time(time).assume_utc().unix_timestamp() - rest.offset()?;
    u64::try_from(seconds).ok()?.checked_mul(1_000)?.checked_add(milliseconds)
}

/// The day of a moment in milliseconds since 1970, in UTC: `2026-01-01`. The last day that has a
/// four-digit year for what lies behind it.
pub fn day(at: u64) -> String {
    let seconds = i64::try_from(at / 1_000).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date);
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// Seconds since 1970 of a date in an HTTP header: IMF-fixdate (RFC 9110 section 5.6.7), such as
/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn parse_http(text: &str) -> Option<u64> {
    const DAYS: &[u8] = b"MonTueWedThuFriSatSun";
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut rest = Rest(text.as_bytes());
    rest.name(DAYS)?;
    let day = rest.after(b", ")?.number(2)?;
    let month = rest.after(b" ")?.name(MONTHS)?;
    let year = rest.after(b" ")?.number(4)?;
    let time = rest.after(b" ")?.time()?;
    let at = date(year, month, day)?.with_time(time).assume_utc();
    (rest.0 == b" GMT").then(|| u64::try_from(at.unix_timestamp()).ok())?
}

fn date(year: u16, month: u16, day: u16) -> Option<Date> {
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    Date::from_calendar_date(year.into(), month, u8::try_from(day).ok()?).ok()
}

/// What of a date is still to be read. Nothing is skipped that isn't expected.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn after(&mut self, literal: &[u8]) -> Option<&mut Self> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(self)
    }

    /// So many digits and no sign; four at most, so that it fits.
    fn number(&mut self, digits: usize) -> Option<u16> {
        (0..digits).try_fold(0, |number, _| {
            let digit = self.byte().filter(u8::is_ascii_digit)?;
            Some(number * 10 + u16::from(digit - b'0'))
        })
    }

    /// Which of the three-letter names stands here, counted from 1.
    fn name(&mut self, names: &[u8]) -> Option<u16> {
        let (name, rest) = self.0.split_at_checked(3)?;
        self.0 = rest;
        names.chunks(3).zip(1..).find(|(known, _)| *known == name).map(|(_, number)| number)
    }

    /// `hh:mm:ss`. A leap second is the second before it: the clock that we count by has none.
    fn time(&mut self) -> Option<Time> {
        let (hour, minute) = (self.number(2)?, self.after(b":")?.number(2)?);
        let second = match self.after(b":")?.number(2)? {
            60 => 59,
            second => second,
        };
        let byte = |number| u8::try_from(number).ok();
        Time::from_hms(byte(hour)?, byte(minute)?, byte(second)?).ok()
    }

    /// Milliseconds, from as many digits as there are after a point; none without a point.
    fn fraction(&mut self) -> Option<u64> {
        if self.after(b".").is_none() {
            return Some(0);
        }
        let (mut milliseconds, mut worth) = (u64::from(self.number(1)?) * 100, 10);
        while let Some(digit) = self.0.first().filter(|byte| byte.is_ascii_digit()) {
            milliseconds += u64::from(digit - b'0') * worth;
            worth /= 10;
            self.byte();
        }
        Some(milliseconds)
    }

    /// Seconds ahead of UTC, up to the end: `Z`, ` UTC`, `+01:00` or ` +0100`.
    fn offset(&mut self) -> Option<i64> {
        if matches!(self.0, b"Z" | b"z" | b" UTC") {
            return Some(0);
        }
        let colon: &[u8] = if self.after(b" ").is_some() { b"" } else { b":" };
        let sign = match self.byte()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let (hours, minutes) = (self.number(2)?, self.after(colon)?.number(2)?);
        let whole = self.0.is_empty() && hours < 24 && minutes < 60;
        whole.then(|| sign * (i64::from(hours) * 3_600 + i64::from(minutes) * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_become_seconds_since_1970() {
        let cases = [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_799)),
            ("Xyz, 06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 GMT+1", None),
            ("Sun, 06 Nox 1994 08:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("120", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_http(text), expected, "for {text:?}");
        }
    }

    #[test]
    fn a_moment_becomes_its_day_in_utc() {
        let cases = [
            (0, "1970-01-01"),
            (951_868_799_999, "2000-02-29"),
            (951_868_800_000, "2000-03-01"),
            (1_767_225_599_999, "2025-12-31"),
            (1_767_225_600_000, "2026-01-01"),
            (u64::MAX, "9999-12-31"),
        ];
        for (at, expected) in cases {
            assert_eq!(day(at), expected, "for {at}");
        }
    }

    #[test]
    fn every_form_of_one_moment_is_the_same_and_what_is_no_date_is_none() {
        let new_year = Some(1_767_225_600_000);
        let forms = [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.000Z",
            "2026-01-01T01:00:00+01:00",
            "2025-12-31T19:00:00-05:00",
            "Thu, 01 Jan 2026 00:00:00 GMT",
            "2026-01-01 00:00:00 UTC",
            "2026-01-01 09:00:00 +0900",
            "2025-12-31 16:30:00 -0730",
            "2026-01-01",
        ];
        for form in forms {
            assert_eq!(parse(form), new_year, "for {form:?}");
        }
        for (form, milliseconds) in [(".250", 250), (".2", 200), (".2509", 250), (".000999999999", 0)] {
            let form = format!("2026-01-01T00:00:00{form}Z");
            assert_eq!(parse(&form), Some(1_767_225_600_000 + milliseconds), "for {form:?}");
        }
        for no_date in [
            "",
            "soon",
            "2026-02-30",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00Zulu",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+01:60",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T0:00:00Z",
            "2026-01-01000:00:00Z",
            "+026-01-01",
            "2026-01-01T00:00:0é",
            "2026-01-01T00:00:00",
            "1969-12-31",
            "1767225600",
            "2026-01-01 00:00:00 0100",
        ] {
            assert_eq!(parse(no_date), None, "for {no_date:?}");
        }
    }
}
