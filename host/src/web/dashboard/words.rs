//! How a credential stands, and what its attempts did, in words for a person. Pure: facts and the
//! clock in, words out. It never shows a secret, for it is given none.

use crate::credential::Millis;
use crate::db::queries::CredentialRow;
use crate::report::Status;

/// How far ahead an end is worth saying, where nothing puts it off by itself.
pub const SOON: Millis = 7 * 86_400_000;

/// Where a credential stands, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Person,
    Failing,
    Ending,
    Paused,
    New,
    Sound,
}

impl Standing {
    pub fn of(row: &CredentialRow, rotates: bool, now: Millis) -> Self {
        let monitor = &row.monitor;
        if monitor.consecutive_failures > 0 {
            let verdict = monitor.last_verdict.as_deref();
            return match matches!(verdict, Some("needs-human" | "invalid"))
                || monitor.last_status == Some(Status::ValidationFailed)
            {
                true => Self::Person,
                false => Self::Failing,
            };
        }
        if ends_unless_somebody_acts(row, rotates, now) {
            Self::Ending
        } else if row.paused || row.service_paused {
            Self::Paused
        } else if monitor.last_status.is_none() {
            Self::New
        } else {
            Self::Sound
        }
    }

    /// For a style sheet.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Failing => "failing",
            Self::Ending => "ending",
            Self::Paused => "paused",
            Self::New => "new",
            Self::Sound => "sound",
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Person => "Needs a person",
            Self::Failing => "Failing",
            Self::Ending => "Expiring",
            Self::Paused => "Paused",
            Self::New => "New",
            Self::Sound => "Healthy",
        }
    }
}

/// Whether it ends soon and nothing is planned that would put that off.
pub fn ends_unless_somebody_acts(row: &CredentialRow, rotates: bool, now: Millis) -> bool {
    let Some(end) = row.monitor.expires_at.filter(|end| *end < now + SOON) else { return false };
    let looked_at = row.monitor.next_due_at.is_some_and(|due| due < end);
    let renews = rotates && looked_at && !row.external && !row.paused && !row.service_paused;
    !renews
}

/// What its state means and what comes next, in a sentence or two.
pub fn sentence(row: &CredentialRow, standing: Standing, now: Millis) -> String {
    let monitor = &row.monitor;
    let times = match monitor.consecutive_failures {
        1 => String::from("once"),
        2 => String::from("twice"),
        count => format!("{count} times"),
    };
    if row.external {
        return match standing {
            Standing::Person | Standing::Failing if monitor.consecutive_failures == 1 => {
                String::from("An external worker keeps it, and its last report tells of trouble.")
            }
            Standing::Person | Standing::Failing => format!(
                "An external worker keeps it, and its last {} reports tell of trouble.",
                monitor.consecutive_failures
            ),
            _ => String::from("An external worker keeps it and reports on it; its secrets are not here."),
        };
    }
    match standing {
        Standing::Person if monitor.last_verdict.as_deref() == Some("invalid") => String::from(
            "The service says that this secret is dead. It is not rotated by itself any more: sign in anew and import the fresh secrets.",
        ),
        Standing::Person => String::from(
            "Keywheel can't go on by itself. Read what happened, then import fresh secrets or take the risk of rotating now.",
        ),
        Standing::Failing => format!(
            "Nothing could be learnt {times} in a row. The secret in force stays, and the same question is put again."
        ),
        Standing::Ending => match monitor.expires_at {
            Some(end) if end <= now => String::from(
                "It is past its expiry, and nothing here renews it: sign in anew and import the fresh secrets.",
            ),
            _ if row.paused || row.service_paused => {
                String::from("It ends soon and is paused, so nothing renews it.")
            }
            _ => String::from(
                "It ends soon, and nothing here renews it: sign in anew before that and import the fresh secrets.",
            ),
        },
        Standing::Paused if row.service_paused && !row.paused => {
            String::from("Its whole service is paused: nothing of it is done by itself.")
        }
        Standing::Paused => String::from("It is paused: nothing is done by itself."),
        Standing::New => String::from("It was not looked at yet."),
        Standing::Sound => String::from("Its last check found it alive."),
    }
}

/// A span in the largest unit that says enough.
pub fn span(millis: Millis) -> String {
    match millis / 1_000 {
        seconds @ 0..=89 => format!("{seconds} s"),
        seconds @ 90..=5_399 => format!("{} min", seconds / 60),
        seconds @ 5_400..=86_399 => format!("{} h", seconds / 3_600),
        // "1 d" would say half of what is left.
        seconds @ 86_400..=863_999 if seconds % 86_400 >= 3_600 => {
            format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600)
        }
        seconds => format!("{} d", seconds / 86_400),
    }
}

pub fn relative(at: Millis, now: Millis) -> String {
    match at > now {
        true => format!("in {}", span(at - now)),
        // Between two clocks of one page a second is nothing.
        false if now - at < 1_000 => String::from("just now"),
        false => format!("{} ago", span(now - at)),
    }
}

/// What one step of an attempt was.
pub fn step(word: &str) -> Option<&'static str> {
    Some(match word {
        "recovered" => "An earlier attempt was interrupted; this one took it up.",
        "validate-only" => "The provider can't rotate, so it only looked.",
        "repeat" => "The rotation was put again: its commit class allows that.",
        "rotate" => "It asked the service for a fresh secret.",
        "refused" => "The service refused to rotate.",
        "no-answer" => "No answer came to the rotation.",
        "renew-pending" => "What an earlier attempt left had run out, and was rotated itself.",
        "not-spent" => "A look showed that nothing had been spent.",
        "probe-current" => "It looked whether the secret in force still lives.",
        "regressed" => "The fresh jar lacks a key that is needed.",
        "validate-pending" => "It tested the fresh secret.",
        "validate-current" => "It looked whether the secret in force lives.",
        "overruled" => "The verdict didn't stand on an answer of the service itself, and counts as unknown.",
        "second-look" => "The first \u{201c}dead\u{201d} is not believed: it asked again.",
        "other-account" => "The secret belongs to another account than the pinned one.",
        "promoted" => "The fresh secret was put in force.",
        "kept-pending" => "The fresh secret waits for its verdict.",
        "dropped" => "The fresh secret was dropped.",
        _ => return None,
    })
}

/// A status of the report contract.
pub const fn status(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::Failed => "failed",
        Status::ValidationFailed => "validation failed",
        Status::Unreachable => "unreachable",
    }
}

pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::db::Action;
    use crate::db::queries::MonitorRow;

    const NOW: Millis = 1_700_000_000_000;
    const HOUR: Millis = 3_600_000;

    fn row() -> CredentialRow {
        CredentialRow {
            credential_id: "ann".into(),
            profile_id: None,
            service: "forge".into(),
            settings: BTreeMap::new(),
            private_hosts: Vec::new(),
            method: None,
            validate_interval_seconds: None,
            max_age_seconds: None,
            idle_limit_seconds: None,
            quiet: Vec::new(),
            identity: None,
            paused: false,
            service_paused: false,
            attempt_number: 3,
            current_generation: Some(1),
            pending_generation: None,
            last_generation: 1,
            rotated_at: NOW,
            created_at: NOW,
            external: false,
            monitor: MonitorRow {
                last_status: Some(Status::Success),
                last_verdict: Some("valid".into()),
                last_message: None,
                last_attempt_at: Some(NOW),
                last_success_at: Some(NOW),
                consecutive_failures: 0,
                expires_at: None,
                next_due_at: Some(NOW + HOUR),
                next_action: Action::Validate,
                next_reason: None,
                last_report_id: Some(1),
                asked_until: None,
            },
            open_attempt: None,
        }
    }

    #[test]
    fn a_credential_stands_where_its_worst_fact_puts_it() {
        type Change = fn(&mut CredentialRow);
        let table: [(&str, Change, bool, Standing); 13] = [
            ("nothing", |_| {}, true, Standing::Sound),
            ("new", |row| row.monitor.last_status = None, true, Standing::New),
            ("failures", |row| row.monitor.consecutive_failures = 2, true, Standing::Failing),
            (
                "dead",
                |row| {
                    row.monitor.consecutive_failures = 1;
                    row.monitor.last_verdict = Some("invalid".into());
                },
                true,
                Standing::Person,
            ),
            (
                "an external worker says dead",
                |row| {
                    row.monitor.consecutive_failures = 1;
                    (row.monitor.last_verdict, row.monitor.last_status) =
                        (None, Some(Status::ValidationFailed));
                },
                true,
                Standing::Person,
            ),
            (
                "dead, and fresh secrets were imported since",
                |row| row.monitor.last_verdict = Some("invalid".into()),
                true,
                Standing::Sound,
            ),
            ("paused", |row| row.paused = true, true, Standing::Paused),
            ("its service is paused", |row| row.service_paused = true, true, Standing::Paused),
            (
                "an end that a look comes before",
                |row| row.monitor.expires_at = Some(NOW + 2 * HOUR),
                true,
                Standing::Sound,
            ),
            (
                "an end that no look comes before",
                |row| row.monitor.expires_at = Some(NOW + HOUR / 2),
                true,
                Standing::Ending,
            ),
            (
                "an end that nothing renews",
                |row| row.monitor.expires_at = Some(NOW + 2 * HOUR),
                false,
                Standing::Ending,
            ),
            (
                "a far end that nothing renews",
                |row| row.monitor.expires_at = Some(NOW + 2 * SOON),
                false,
                Standing::Sound,
            ),
            (
                "an end in a pause",
                |row| {
                    row.paused = true;
                    row.monitor.expires_at = Some(NOW + 2 * HOUR);
                },
                true,
                Standing::Ending,
            ),
        ];
        for (name, change, rotates, expected) in table {
            let mut row = row();
            change(&mut row);
            let standing = Standing::of(&row, rotates, NOW);
            assert_eq!(standing, expected, "{name}");
            assert!(sentence(&row, standing, NOW).ends_with('.'), "{name}");
        }
    }

    #[test]
    fn moments_are_told_in_the_unit_that_says_enough() {
        for (at, expected) in [
            (NOW, "just now"),
            (NOW - 999, "just now"),
            (NOW - 1_000, "1 s ago"),
            (NOW - 89_000, "89 s ago"),
            (NOW - 90_000, "1 min ago"),
            (NOW + 2 * HOUR, "in 2 h"),
            (NOW + 48 * HOUR, "in 2 d"),
            (NOW + 47 * HOUR, "in 1 d 23 h"),
            (NOW + 400 * HOUR, "in 16 d"),
        ] {
            assert_eq!(relative(at, NOW), expected);
        }
    }
}
