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

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

/// IMF-fixdate (RFC 9110 section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
const HTTP: &[BorrowedFormatItem<'_>] = format_description!(
    version = 2,
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
/// Without the `T`, in UTC.
const SPACED: &[BorrowedFormatItem<'_>] =
    format_description!(version = 2, "[year]-[month]-[day] [hour]:[minute]:[second] UTC");
/// GitHub's header about a token's end has either this or the form before it.
const SPACED_WITH_OFFSET: &[BorrowedFormatItem<'_>] = format_description!(
    version = 2,
    "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
);
const DAY: &[BorrowedFormatItem<'_>] = format_description!(version = 2, "[year]-[month]-[day]");

/// Milliseconds since 1970 of a date as RFC 3339 has it (`2026-01-01T00:00:00Z`), as HTTP has it
/// (`Thu, 01 Jan 2026 00:00:00 GMT`), as `2026-01-01 00:00:00 UTC` or `… +0100`, or of a day's
/// beginning in UTC (`2026-01-01`). None for anything else, and for dates before 1970.
pub fn parse(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| PrimitiveDateTime::parse(text, HTTP).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| PrimitiveDateTime::parse(text, SPACED).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| OffsetDateTime::parse(text, SPACED_WITH_OFFSET))
        .or_else(|_| Date::parse(text, DAY).map(|day| day.midnight().assume_utc()))
        .ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// The day of a moment in milliseconds since 1970, in UTC: `2026-01-01`. The last day that has a
/// four-digit year for what lies behind it.
pub fn day(at: u64) -> String {
    let seconds = i64::try_from(at / 1_000).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date);
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// Seconds since 1970 of a date in an HTTP header.
pub(crate) fn parse_http(text: &str) -> Option<u64> {
    let at = PrimitiveDateTime::parse(text, HTTP).ok()?.assume_utc();
    u64::try_from(at.unix_timestamp()).ok()
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
        assert_eq!(parse("2026-01-01T00:00:00.250Z"), Some(1_767_225_600_250));
        for no_date in [
            "",
            "soon",
            "2026-02-30",
            "2026-01-01T00:00:00",
            "1969-12-31",
            "1767225600",
            "2026-01-01 00:00:00 0100",
        ] {
            assert_eq!(parse(no_date), None, "for {no_date:?}");
        }
    }
}
