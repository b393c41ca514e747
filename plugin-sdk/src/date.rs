//! Reads HTTP dates. Pure.

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 of an IMF-fixdate (RFC 9110 section 5.6.7), the one form in use:
/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn parse_http(text: &str) -> Option<u64> {
    let (_, date) = text.split_once(", ")?;
    let mut fields = date.split(' ');
    let day: u64 = fields.next()?.parse().ok()?;
    let month_name = fields.next()?;
    let month = 1 + MONTHS.iter().position(|month| *month == month_name)? as u64;
    let year: u64 = fields.next()?.parse().ok()?;
    let mut time = fields.next()?.splitn(3, ':');
    let hour: u64 = time.next()?.parse().ok()?;
    let minute: u64 = time.next()?.parse().ok()?;
    let second: u64 = time.next()?.parse().ok()?;
    let in_range =
        (1970..=9999).contains(&year) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !in_range || fields.next() != Some("GMT") {
        return None;
    }
    Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Counts with years that begin in March, so that a leap day comes last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let before_month = (153 * month + 2) / 5;
    // From 1 March of year 0 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    year * 365 + leap_days + before_month + day - 1 - EPOCH
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
}
