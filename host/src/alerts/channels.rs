//! What a notice looks like to each kind of receiver. Pure: a notice in, bytes out. The shapes
//! are those of the receivers' public documentation, named beside each; our own is documented in
//! docs/operating.md and grows only by new names.

use serde_json::{Value, json};

use super::rules::{Event, Item, Notice};
use crate::db::alerts::Severity;
use crate::report::iso8601;

/// Bodies of HTTP channels and of commands are JSON.
pub const JSON: &str = "application/json";

/// Of a message to a chat. Discord takes 2,000 characters and ntfy 4,096 bytes.
const LONGEST_CHAT: usize = 1_900;

/// The shape of our own, for webhooks and commands.
pub fn webhook(key: &str, notice: &Notice) -> Value {
    let item = |item: &Item| {
        json!({
            "subject": item.subject,
            "state": if item.resolved { "resolved" } else { "open" },
            "kind": item.kind,
            "severity": item.severity,
            "what": item.what,
            "since": iso8601(item.since),
            "why": item.why,
            "hint": item.hint,
        })
    };
    json!({
        "type": format!("alert.{}", notice.event.as_str()),
        "timestamp": iso8601(notice.at),
        "data": {
            "id": key,
            "group": notice.group,
            "sequence": notice.sequence,
            "service": notice.service,
            "severity": notice.severity,
            "title": notice.title,
            "text": text(notice),
            "open": notice.open,
            "opened": notice.opened,
            "resolved": notice.resolved,
            "reminder": notice.reminder.map(|(number, of)| json!({ "number": number, "of": of })),
            "alerts": notice.alerts.iter().map(item).collect::<Vec<_>>(),
        },
    })
}

/// A message for a person: what, since when, why, what to do.
pub fn text(notice: &Notice) -> String {
    let mut lines = Vec::new();
    for item in &notice.alerts {
        if item.resolved {
            lines.push(format!("well again: {} (it was: {})", item.subject, item.what));
            continue;
        }
        lines.push(format!("{}: {}", item.severity.as_str(), item.what));
        lines.push(format!("  since {}", iso8601(item.since)));
        lines.extend(item.why.as_ref().map(|why| format!("  why: {}", one_line(why))));
        lines.push(format!("  next: {}", item.hint));
    }
    let told = match notice.event {
        Event::Reminder => notice.open,
        _ => notice.opened + notice.resolved,
    };
    let listed = u32::try_from(notice.alerts.len()).unwrap_or(u32::MAX);
    if told > listed {
        lines.push(format!("and {} more: `keywheel alert list`", told - listed));
    }
    if let Some((number, of)) = notice.reminder {
        lines.push(format!("reminder {number} of {of}; `keywheel alert snooze` stops them for a while"));
    }
    lines.join("\n")
}

/// A reason may have lines of its own, which must not pass for ours.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A word for the eye before the title.
fn mark(notice: &Notice) -> &'static str {
    match (notice.event, notice.severity) {
        (Event::Resolved, _) => "OK",
        (Event::Test, _) => "TEST",
        (_, Severity::Critical) => "CRITICAL",
        (_, Severity::Warning) => "WARNING",
    }
}

/// Cut where a receiver would refuse more.
fn cut(text: String, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn chat(notice: &Notice) -> String {
    cut(format!("[{}] Keywheel: {}\n{}", mark(notice), notice.title, text(notice)), LONGEST_CHAT)
}

/// An incoming webhook of Slack: <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/>.
/// Three characters are its own: <https://docs.slack.dev/messaging/formatting-message-text/>.
pub fn slack(notice: &Notice) -> Value {
    let text = chat(notice).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    json!({ "text": text })
}

/// A webhook of Discord: <https://docs.discord.com/developers/resources/webhook#execute-webhook>.
pub fn discord(notice: &Notice) -> Value {
    // Names of credentials must call nobody.
    json!({ "content": chat(notice), "allowed_mentions": { "parse": [] } })
}

/// A message of ntfy as JSON: <https://docs.ntfy.sh/publish/#publish-as-json>.
pub fn ntfy(topic: &str, notice: &Notice) -> Value {
    let (priority, tag) = match (notice.event, notice.severity) {
        (Event::Resolved, _) => (3, "white_check_mark"),
        (Event::Test, _) => (3, "wrench"),
        (_, Severity::Critical) => (5, "rotating_light"),
        (_, Severity::Warning) => (4, "warning"),
    };
    json!({
        "topic": topic,
        "title": cut(format!("Keywheel: {}", notice.title), 200),
        "message": cut(text(notice), LONGEST_CHAT),
        "priority": priority,
        "tags": [tag],
    })
}

/// Subject and body of a letter.
pub fn letter(notice: &Notice) -> (String, String) {
    let subject = one_line(&format!("[Keywheel] {}: {}", mark(notice), cut(notice.title.clone(), 150)));
    (subject, format!("{}\n\n{}\n", notice.title, text(notice)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::alerts::Kind;

    fn notice() -> Notice {
        Notice {
            event: Event::Opened,
            at: 1_700_000_000_000,
            group: "service:forge".into(),
            sequence: 3,
            service: Some("forge".into()),
            severity: Severity::Critical,
            title: "`ann` of `forge` needs a person".into(),
            open: 30,
            opened: 30,
            resolved: 0,
            reminder: None,
            alerts: vec![Item {
                subject: "credential:ann".into(),
                resolved: false,
                kind: Kind::NeedsHuman,
                severity: Severity::Critical,
                what: "`ann` of `forge` needs a person".into(),
                since: 1_699_999_000_000,
                why: Some("<b>401</b> & nothing\n@everyone".into()),
                hint: "sign in again".into(),
            }],
        }
    }

    #[test]
    fn a_text_says_what_since_when_why_and_what_next() {
        assert_eq!(
            text(&notice()),
            "critical: `ann` of `forge` needs a person\n  since 2023-11-14T21:56:40.000Z\n  why: <b>401</b> & nothing @everyone\n  next: sign in again\nand 29 more: `keywheel alert list`"
        );
    }

    #[test]
    fn each_shape_is_the_receivers_own() {
        let notice = notice();
        let own = webhook("kw-1", &notice);
        assert_eq!(own["type"], "alert.opened");
        assert_eq!(own["timestamp"], "2023-11-14T22:13:20.000Z");
        assert_eq!((&own["data"]["id"], &own["data"]["opened"]), (&json!("kw-1"), &json!(30)));
        assert_eq!(own["data"]["alerts"][0]["state"], "open");
        assert_eq!(own["data"]["alerts"][0]["kind"], "needs-human");
        let slack = slack(&notice);
        let text = slack["text"].as_str().unwrap();
        assert!(text.starts_with("[CRITICAL] Keywheel: `ann`"), "{text}");
        assert!(text.contains("&lt;b&gt;401&lt;/b&gt; &amp; nothing"), "{text}");
        let discord = discord(&notice);
        assert_eq!(discord["allowed_mentions"], json!({ "parse": [] }));
        assert!(discord["content"].as_str().unwrap().contains("needs a person"));
        let ntfy = ntfy("ops", &notice);
        assert_eq!((&ntfy["topic"], &ntfy["priority"]), (&json!("ops"), &json!(5)));
        let (subject, body) = letter(&notice);
        assert_eq!(subject, "[Keywheel] CRITICAL: `ann` of `forge` needs a person");
        assert!(body.contains("next: sign in again"));
    }

    #[test]
    fn the_longest_notice_fits_every_receiver() {
        let mut notice = notice();
        notice.title = "t".repeat(9_000);
        let item = notice.alerts[0].clone();
        notice.alerts = vec![Item { why: Some("ü".repeat(500)), ..item }; 20];
        assert!(discord(&notice)["content"].as_str().unwrap().chars().count() <= 2_000);
        let ntfy = ntfy("ops", &notice);
        assert!(ntfy["message"].as_str().unwrap().len() <= 4_096);
        assert!(letter(&notice).0.chars().count() < 200);
    }
}
