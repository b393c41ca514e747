//! What alerts write and read: what is in trouble and what of it was told, snoozes, and the
//! outbox of deliveries. It stores decisions and makes none: `alerts::rules` does. Nothing here
//! holds a secret: addresses and tokens of channels are the configuration's.

use super::sql::{self, Connection, Optional as _, Row, params};
use serde::{Deserialize, Serialize};

use super::column::{millis, read_millis, read_optional_millis, read_optional_word, read_word};
use super::commands::not_found;
use super::queries::{ReadError, Reader};
use super::writer::{WriteError, Writer};
use crate::credential::{Millis, now};
use crate::limits;

type Written<T> = Result<T, WriteError>;
type Found<T> = Result<T, ReadError>;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It may pass by itself, and nothing is lost yet.
    Warning,
    /// Somebody must act, or a session is or will be lost.
    Critical,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Warning, Self::Critical].into_iter().find(|severity| severity.as_str() == text)
    }
}

/// What kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Unreachable,
    Failed,
    Invalid,
    NeedsHuman,
    Expiry,
    Database,
    Disk,
    Clock,
    Scheduler,
    Backup,
    Plugin,
    Worker,
    ExternalWorker,
    /// Nothing is wrong: somebody tries the channels.
    Test,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Unreachable,
        Self::Failed,
        Self::Invalid,
        Self::NeedsHuman,
        Self::Expiry,
        Self::Database,
        Self::Disk,
        Self::Clock,
        Self::Scheduler,
        Self::Backup,
        Self::Plugin,
        Self::Worker,
        Self::ExternalWorker,
        Self::Test,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::NeedsHuman => "needs-human",
            Self::Expiry => "expiry",
            Self::Database => "database",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Scheduler => "scheduler",
            Self::Backup => "backup",
            Self::Plugin => "plugin",
            Self::Worker => "worker",
            Self::ExternalWorker => "external-worker",
            Self::Test => "test",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What receivers were told of a subject last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub severity: Severity,
    pub stage: u32,
}

/// One thing that is in trouble, or was until lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertState {
    pub subject: String,
    pub group: String,
    pub service: Option<String>,
    pub kind: Kind,
    pub severity: Severity,
    /// Of an end that comes nearer: the days of the warning; else 0.
    pub stage: u32,
    #[serde(serialize_with = "super::queries::iso")]
    pub since: Millis,
    #[serde(serialize_with = "super::queries::iso")]
    pub opened_at: Millis,
    #[serde(serialize_with = "super::queries::iso_option")]
    pub closed_at: Option<Millis>,
    pub told: Option<Told>,
    pub what: String,
    pub why: Option<String>,
    pub hint: String,
}

impl AlertState {
    pub fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }
}

/// What is told together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertGroup {
    pub group: String,
    /// Notices until now.
    pub sequence: u64,
    /// Since when there is something to tell.
    pub changed_at: Option<Millis>,
    pub noticed_at: Option<Millis>,
    /// Since the last notice of a change.
    pub reminders: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snooze {
    pub subject: String,
    #[serde(serialize_with = "super::queries::iso")]
    pub until: Millis,
}

/// One message for one channel, on its way into the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    pub channel: String,
    /// The same message has the same one with every try, and no other has it.
    pub dedup_key: String,
    pub payload_json: String,
    /// It went out already, past the outbox.
    pub delivered_at: Option<Millis>,
}

/// What one look decided. All of it stands, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertChange {
    pub states: Vec<AlertState>,
    /// Subjects to forget.
    pub gone: Vec<String>,
    pub groups: Vec<AlertGroup>,
    pub deliveries: Vec<NewDelivery>,
}

impl AlertChange {
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.gone.is_empty() && self.groups.is_empty() && self.deliveries.is_empty()
    }
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    Delivered,
    /// To be tried again. `holds` keeps back what comes after it.
    Later {
        at: Millis,
        holds: bool,
        error: String,
    },
    GivenUp {
        error: String,
    },
}

/// A message that waits in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: i64,
    pub dedup_key: String,
    pub payload_json: String,
    pub created_at: Millis,
    pub tries: u32,
    pub next_try_at: Millis,
    pub holds: bool,
}

/// A message as `alert list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryRow {
    pub id: i64,
    pub channel: String,
    pub dedup_key: String,
    pub title: Option<String>,
    #[serde(serialize_with = "super::queries::iso")]
    pub created_at: Millis,
    pub tries: u32,
    #[serde(serialize_with = "super::queries::iso")]
    pub next_try_at: Millis,
    #[serde(serialize_with = "super::queries::iso_option")]
    pub failed_at: Option<Millis>,
    pub last_error: Option<String>,
}

/// A credential whose last attempts failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingRow {
    pub credential_id: String,
    pub service: String,
    pub status: Option<String>,
    pub verdict: Option<String>,
    /// Redacted when it was stored.
    pub message: Option<String>,
    pub failures: u32,
    pub last_success_at: Option<Millis>,
    pub created_at: Millis,
    /// It, or its service.
    pub paused: bool,
}

/// A credential whose secret has an end, as far as it matters before that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiringRow {
    pub credential_id: String,
    pub service: String,
    pub expires_at: Millis,
    /// When the secret in force was issued or imported.
    pub issued_at: Millis,
    pub status: Option<String>,
    pub verdict: Option<String>,
    pub failures: u32,
    pub paused: bool,
}

/// How a credential is that had an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingRow {
    pub failures: u32,
    pub expires_at: Option<Millis>,
}

impl Writer {
    /// Writes down what a look decided, with the messages that follow from it.
    pub async fn apply_alerts(&self, change: AlertChange) -> Written<()> {
        let at = now();
        self.run(move |db| apply(db, &change, at)).await
    }

    pub async fn delivery_tried(&self, id: i64, tried: Tried) -> Written<()> {
        let at = now();
        self.run(move |db| mark(db, id, &tried, at)).await
    }

    /// Says nothing of a subject until then.
    pub async fn snooze_alert(&self, subject: &str, until: Millis) -> Written<()> {
        let (subject, at) = (subject.to_owned(), now());
        self.run(move |db| {
            db.prepare_cached(
                "INSERT INTO alert_snoozes (subject, until, created_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (subject) DO UPDATE SET until = excluded.until, created_at = excluded.created_at",
            )?
            .execute(params![subject, millis(until), millis(at)])?;
            Ok(())
        })
        .await
    }

    pub async fn unsnooze_alert(&self, subject: &str) -> Written<()> {
        let subject = subject.to_owned();
        self.run(move |db| {
            let gone =
                db.prepare_cached("DELETE FROM alert_snoozes WHERE subject = ?1")?.execute([&subject])?;
            if gone == 0 { Err(not_found("snoozed alert", &subject)) } else { Ok(()) }
        })
        .await
    }

    /// Shows that the database can be written: a row of the installation is made anew.
    pub async fn beat(&self) -> Written<()> {
        let at = now();
        self.run(move |db| {
            db.prepare_cached(
                "INSERT INTO installation (key, value) VALUES ('heartbeat', ?1)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute([at.to_string().into_bytes()])?;
            Ok(())
        })
        .await
    }

    /// Forgets what nobody looks at any more, and gives up what waited past its time, also for
    /// channels that are no more.
    pub async fn sweep_alerts(&self) -> Written<()> {
        let at = now();
        self.run(move |db| sweep(db, at)).await
    }
}

fn apply(db: &Connection, change: &AlertChange, at: Millis) -> Written<()> {
    db.hold("alerts")?;
    let mut put = db.prepare_cached(
        "INSERT INTO alert_states (subject, group_key, service, kind, severity, stage, since,
             opened_at, closed_at, told_severity, told_stage, what, why, hint)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (subject) DO UPDATE SET
             group_key = excluded.group_key, service = excluded.service, kind = excluded.kind,
             severity = excluded.severity, stage = excluded.stage, since = excluded.since,
             opened_at = excluded.opened_at, closed_at = excluded.closed_at,
             told_severity = excluded.told_severity, told_stage = excluded.told_stage,
             what = excluded.what, why = excluded.why, hint = excluded.hint",
    )?;
    for state in &change.states {
        put.execute(params![
            state.subject,
            state.group,
            state.service,
            state.kind.as_str(),
            state.severity.as_str(),
            state.stage,
            millis(state.since),
            millis(state.opened_at),
            state.closed_at.map(millis),
            state.told.map(|told| told.severity.as_str()),
            state.told.map(|told| told.stage),
            state.what,
            state.why,
            state.hint,
        ])?;
    }
    let mut forget = db.prepare_cached("DELETE FROM alert_states WHERE subject = ?1")?;
    for subject in &change.gone {
        forget.execute([subject])?;
    }
    let mut put = db.prepare_cached(
        "INSERT INTO alert_groups (group_key, sequence, changed_at, noticed_at, reminders)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (group_key) DO UPDATE SET
             sequence = excluded.sequence, changed_at = excluded.changed_at,
             noticed_at = excluded.noticed_at, reminders = excluded.reminders",
    )?;
    for group in &change.groups {
        put.execute(params![
            group.group,
            i64::try_from(group.sequence).unwrap_or(i64::MAX),
            group.changed_at.map(millis),
            group.noticed_at.map(millis),
            group.reminders,
        ])?;
    }
    let mut send = db.prepare_cached(
        // What is there already is the same message.
        "INSERT INTO deliveries (channel, dedup_key, payload_json, created_at, next_try_at, delivered_at)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5)
         ON CONFLICT (channel, dedup_key) DO NOTHING",
    )?;
    // A receiver that is away for good must not fill the disk: the oldest make room.
    let mut make_room = db.prepare_cached(
        "UPDATE deliveries SET failed_at = ?2, last_error = ?4
         WHERE channel = ?1 AND delivered_at IS NULL AND failed_at IS NULL AND id <= (
             SELECT id FROM deliveries
             WHERE channel = ?1 AND delivered_at IS NULL AND failed_at IS NULL
             ORDER BY id DESC LIMIT 1 OFFSET ?3)",
    )?;
    for new in &change.deliveries {
        send.execute(params![
            new.channel,
            new.dedup_key,
            new.payload_json,
            millis(at),
            new.delivered_at.map(millis),
        ])?;
        make_room.execute(params![
            new.channel,
            millis(at),
            limits::ALERTS_WAITING,
            format!("more than {} messages wait for this channel", limits::ALERTS_WAITING),
        ])?;
    }
    Ok(())
}

fn mark(db: &Connection, id: i64, tried: &Tried, at: Millis) -> Written<()> {
    match tried {
        Tried::Delivered => db
            .prepare_cached(
                "UPDATE deliveries SET tries = tries + 1, delivered_at = ?2, failed_at = NULL, holds = 0
                 WHERE id = ?1",
            )?
            .execute(params![id, millis(at)])?,
        Tried::Later { at: next, holds, error } => db
            .prepare_cached(
                "UPDATE deliveries SET tries = tries + 1, next_try_at = ?2, holds = ?3, last_error = ?4
                 WHERE id = ?1",
            )?
            .execute(params![id, millis(*next), holds, error])?,
        Tried::GivenUp { error } => db
            .prepare_cached(
                "UPDATE deliveries SET tries = tries + 1, failed_at = ?2, holds = 0, last_error = ?3
                 WHERE id = ?1 AND delivered_at IS NULL",
            )?
            .execute(params![id, millis(at), error])?,
    };
    Ok(())
}

/// Rows of one sweep: a step that nobody's write waits for.
const SWEPT: u32 = 500;

fn sweep(db: &Connection, at: Millis) -> Written<()> {
    const DAY: Millis = 86_400_000;
    let ago = |days: Millis| millis(at.saturating_sub(days * DAY));
    let long = limits::ALERT_GIVE_UP.as_millis() as Millis;
    db.prepare_cached(
        "UPDATE deliveries SET failed_at = ?1, last_error = coalesce(last_error, 'its channel is not configured any more')
         WHERE id IN (SELECT id FROM deliveries
                      WHERE delivered_at IS NULL AND failed_at IS NULL AND created_at < ?2 LIMIT ?3)",
    )?
    // Twice, for its own channel gives it up first, with the better reason.
    .execute(params![millis(at), millis(at.saturating_sub(2 * long)), SWEPT])?;
    db.prepare_cached(
        "DELETE FROM deliveries WHERE id IN (
             SELECT id FROM deliveries WHERE delivered_at < ?1 OR failed_at < ?2 LIMIT ?3)",
    )?
    .execute(params![ago(7), ago(30), SWEPT])?;
    db.prepare_cached(
        "DELETE FROM alert_states WHERE subject IN (
             SELECT subject FROM alert_states
             WHERE closed_at < ?1 AND told_severity IS NULL LIMIT ?2)",
    )?
    .execute(params![ago(7), SWEPT])?;
    db.prepare_cached("DELETE FROM alert_snoozes WHERE until < ?1")?.execute([millis(at)])?;
    Ok(())
}

const STATE_COLUMNS: &str = "
    SELECT subject, group_key, service, kind, severity, stage, since, opened_at, closed_at,
           told_severity, told_stage, what, why, hint FROM alert_states";

impl Reader {
    /// Everything that is open, or closed and not yet told or only lately so.
    pub fn alert_states(&self) -> Found<Vec<AlertState>> {
        self.all(&format!("{STATE_COLUMNS} ORDER BY subject"), [], state_from)
    }

    pub fn alert_groups(&self) -> Found<Vec<AlertGroup>> {
        self.all(
            "SELECT group_key, sequence, changed_at, noticed_at, reminders FROM alert_groups",
            [],
            |row| {
                Ok(AlertGroup {
                    group: row.get(0)?,
                    sequence: row.get::<i64>(1)?.unsigned_abs(),
                    changed_at: read_optional_millis(row, 2)?,
                    noticed_at: read_optional_millis(row, 3)?,
                    reminders: row.get(4)?,
                })
            },
        )
    }

    /// What is snoozed at this moment.
    pub fn snoozes(&self, now: Millis) -> Found<Vec<Snooze>> {
        self.all(
            "SELECT subject, until FROM alert_snoozes WHERE until > ?1 ORDER BY subject",
            [millis(now)],
            |row| Ok(Snooze { subject: row.get(0)?, until: read_millis(row, 1)? }),
        )
    }

    /// What fails, whatever has for longest first.
    pub fn failing_rows(&self, limit: u32) -> Found<Vec<FailingRow>> {
        self.all(
            "SELECT m.cookie_id, m.service, m.last_status, m.last_verdict, m.last_message,
                    m.consecutive_failures, m.last_success_at, c.created_at,
                    c.paused = 1 OR coalesce(p.paused, 0) = 1
             FROM cookie_rotation_monitor m INDEXED BY monitor_failing
             CROSS JOIN credentials c ON c.credential_id = m.cookie_id
             LEFT JOIN cookie_rotation_providers p ON p.service = c.service
             WHERE m.consecutive_failures > 0 ORDER BY m.last_success_at NULLS FIRST LIMIT ?1",
            [limit],
            |row| {
                Ok(FailingRow {
                    credential_id: row.get(0)?,
                    service: row.get(1)?,
                    status: row.get(2)?,
                    verdict: row.get(3)?,
                    message: row.get(4)?,
                    failures: row.get(5)?,
                    last_success_at: read_optional_millis(row, 6)?,
                    created_at: read_millis(row, 7)?,
                    paused: row.get(8)?,
                })
            },
        )
    }

    /// Secrets that end between two moments, the soonest first.
    pub fn expiring_rows(&self, after: Millis, before: Millis, limit: u32) -> Found<Vec<ExpiringRow>> {
        self.all(
            "SELECT m.cookie_id, m.service, m.expires_at, c.rotated_at, m.last_status,
                    m.last_verdict, m.consecutive_failures, c.paused = 1 OR coalesce(p.paused, 0) = 1
             FROM cookie_rotation_monitor m
             JOIN credentials c ON c.credential_id = m.cookie_id
             LEFT JOIN cookie_rotation_providers p ON p.service = c.service
             WHERE m.expires_at > ?1 AND m.expires_at <= ?2 ORDER BY m.expires_at LIMIT ?3",
            params![millis(after), millis(before), limit],
            |row| {
                Ok(ExpiringRow {
                    credential_id: row.get(0)?,
                    service: row.get(1)?,
                    expires_at: read_millis(row, 2)?,
                    issued_at: read_millis(row, 3)?,
                    status: row.get(4)?,
                    verdict: row.get(5)?,
                    failures: row.get(6)?,
                    paused: row.get(7)?,
                })
            },
        )
    }

    /// How a credential is now; None: it is no more.
    pub fn standing_row(&self, credential_id: &str) -> Found<Option<StandingRow>> {
        self.one(
            "SELECT consecutive_failures, expires_at FROM cookie_rotation_monitor WHERE cookie_id = ?1",
            [credential_id],
            |row| Ok(StandingRow { failures: row.get(0)?, expires_at: read_optional_millis(row, 1)? }),
        )
    }

    /// The earliest due time of a service's credentials. An open attempt's is the end of its lease.
    pub fn earliest_due(&self, service: &str) -> Found<Option<Millis>> {
        let at = self
            .db
            .prepare_cached("SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = ?1")?
            .query_row([service], |row| read_optional_millis(row, 0))?;
        Ok(at)
    }

    /// When the newest report was stored; None: there is none.
    pub fn newest_report_at(&self) -> Found<Option<Millis>> {
        let text: Option<String> = self
            .db
            .prepare_cached("SELECT created_at FROM cookie_rotation_reports ORDER BY id DESC LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(text.and_then(|text| crate::report::parse_iso8601(&text)))
    }

    /// The first messages that wait for a channel, in the order in which they were written.
    pub fn waiting(&self, channel: &str, limit: u32) -> Found<Vec<Waiting>> {
        self.all(
            "SELECT id, dedup_key, payload_json, created_at, tries, next_try_at, holds FROM deliveries
             WHERE channel = ?1 AND delivered_at IS NULL AND failed_at IS NULL ORDER BY id LIMIT ?2",
            params![channel, limit],
            |row| {
                Ok(Waiting {
                    id: row.get(0)?,
                    dedup_key: row.get(1)?,
                    payload_json: row.get(2)?,
                    created_at: read_millis(row, 3)?,
                    tries: row.get(4)?,
                    next_try_at: read_millis(row, 5)?,
                    holds: row.get(6)?,
                })
            },
        )
    }

    /// Messages that didn't arrive: those that wait, and those that were given up, newest first.
    pub fn undelivered(&self, limit: u32) -> Found<Vec<DeliveryRow>> {
        self.all(
            "SELECT id, channel, dedup_key, payload_json, created_at, tries,
                    next_try_at, failed_at, last_error
             FROM deliveries WHERE delivered_at IS NULL ORDER BY id DESC LIMIT ?1",
            [limit],
            |row| {
                Ok(DeliveryRow {
                    id: row.get(0)?,
                    channel: row.get(1)?,
                    dedup_key: row.get(2)?,
                    title: title_of(row.get(3)?),
                    created_at: read_millis(row, 4)?,
                    tries: row.get(5)?,
                    next_try_at: read_millis(row, 6)?,
                    failed_at: read_optional_millis(row, 7)?,
                    last_error: row.get(8)?,
                })
            },
        )
    }
}

/// What a message is called, as its receivers see it.
fn title_of(payload_json: &str) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_str(payload_json).ok()?;
    Some(payload.get("title")?.as_str()?.to_owned())
}

fn state_from(row: Row<'_>) -> sql::Result<AlertState> {
    let told_severity = read_optional_word(row, 9, Severity::parse)?;
    let told_stage: Option<u32> = row.get(10)?;
    Ok(AlertState {
        subject: row.get(0)?,
        group: row.get(1)?,
        service: row.get(2)?,
        kind: read_word(row, 3, Kind::parse)?,
        severity: read_word(row, 4, Severity::parse)?,
        stage: row.get(5)?,
        since: read_millis(row, 6)?,
        opened_at: read_millis(row, 7)?,
        closed_at: read_optional_millis(row, 8)?,
        told: told_severity.zip(told_stage).map(|(severity, stage)| Told { severity, stage }),
        what: row.get(11)?,
        why: row.get(12)?,
        hint: row.get(13)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::scratch::Scratch;

    const DAY: Millis = 86_400_000;

    /// One that writes as well.
    fn reader() -> Reader {
        Reader { db: Scratch::new().connection() }
    }

    fn state(subject: &str, told: Option<Told>, closed_at: Option<Millis>) -> AlertState {
        AlertState {
            subject: subject.into(),
            group: "service:forge".into(),
            service: Some("forge".into()),
            kind: Kind::NeedsHuman,
            severity: Severity::Critical,
            stage: 0,
            since: 1,
            opened_at: 2,
            closed_at,
            told,
            what: "what".into(),
            why: None,
            hint: "hint".into(),
        }
    }

    fn delivery(key: u32) -> NewDelivery {
        NewDelivery {
            channel: "ops".into(),
            dedup_key: format!("kw-{key}"),
            payload_json: r#"{"title":"t"}"#.into(),
            delivered_at: None,
        }
    }

    fn sent(deliveries: Vec<NewDelivery>) -> AlertChange {
        AlertChange { deliveries, ..AlertChange::default() }
    }

    #[test]
    fn what_was_decided_is_read_back_as_it_was() {
        let reader = reader();
        let told = Some(Told { severity: Severity::Warning, stage: 7 });
        let states = vec![state("credential:ann", told, None), state("credential:bob", None, Some(9))];
        let group = AlertGroup {
            group: "service:forge".into(),
            sequence: 3,
            changed_at: Some(5),
            noticed_at: None,
            reminders: 1,
        };
        let change =
            AlertChange { states: states.clone(), groups: vec![group.clone()], ..AlertChange::default() };
        apply(&reader.db, &change, 1).unwrap();
        assert_eq!(reader.alert_states().unwrap(), states);
        assert_eq!(reader.alert_groups().unwrap(), [group]);
        let gone = AlertChange { gone: vec!["credential:ann".into()], ..AlertChange::default() };
        apply(&reader.db, &gone, 1).unwrap();
        let left: Vec<_> = reader.alert_states().unwrap().into_iter().map(|state| state.subject).collect();
        assert_eq!(left, ["credential:bob"]);
    }

    #[test]
    fn a_key_goes_into_the_outbox_once_and_out_of_it_when_it_was_delivered() {
        let reader = reader();
        apply(&reader.db, &sent(vec![delivery(1), delivery(2), delivery(1)]), 1).unwrap();
        apply(&reader.db, &sent(vec![delivery(2)]), 2).unwrap();
        let waiting = reader.waiting("ops", 9).unwrap();
        let keys: Vec<_> = waiting.iter().map(|one| one.dedup_key.as_str()).collect();
        assert_eq!(keys, ["kw-1", "kw-2"]);
        let later = Tried::Later { at: 77, holds: true, error: "no".into() };
        mark(&reader.db, waiting[0].id, &later, 3).unwrap();
        mark(&reader.db, waiting[1].id, &Tried::Delivered, 3).unwrap();
        let [left] = &reader.waiting("ops", 9).unwrap()[..] else { panic!() };
        assert_eq!((left.tries, left.next_try_at, left.holds), (1, 77, true));
        mark(&reader.db, left.id, &Tried::GivenUp { error: "gone".into() }, 4).unwrap();
        assert_eq!(reader.waiting("ops", 9).unwrap(), []);
        let [shown] = &reader.undelivered(9).unwrap()[..] else { panic!() };
        assert_eq!((shown.failed_at, shown.last_error.as_deref()), (Some(4), Some("gone")));
        assert_eq!(shown.title.as_deref(), Some("t"));
        // Delivered after all, by the try that was under way.
        mark(&reader.db, left.id, &Tried::Delivered, 5).unwrap();
        assert_eq!(reader.undelivered(9).unwrap(), []);
    }

    #[test]
    fn past_what_may_wait_for_a_channel_the_oldest_are_given_up() {
        let reader = reader();
        let many = (0..limits::ALERTS_WAITING + 2).map(delivery).collect();
        apply(&reader.db, &sent(many), 1).unwrap();
        let waiting = reader.waiting("ops", u32::MAX).unwrap();
        assert_eq!((waiting.len(), waiting[0].dedup_key.as_str()), (limits::ALERTS_WAITING as usize, "kw-2"));
        let all = reader.undelivered(u32::MAX).unwrap();
        let given_up: Vec<_> = all.into_iter().filter(|row| row.failed_at.is_some()).collect();
        assert_eq!(given_up.len(), 2);
        assert!(given_up[0].last_error.as_ref().is_some_and(|error| error.contains("more than 1000")));
    }

    #[test]
    fn a_sweep_forgets_what_is_over_and_keeps_what_is_not() {
        let reader = reader();
        let told = Some(Told { severity: Severity::Warning, stage: 0 });
        let states = vec![
            state("credential:open", told, None),
            state("credential:fresh", None, Some(9 * DAY)),
            state("credential:old", None, Some(DAY)),
            state("credential:untold", told, Some(DAY)),
        ];
        let deliveries = vec![delivery(1), NewDelivery { delivered_at: Some(DAY), ..delivery(2) }];
        apply(&reader.db, &AlertChange { states, deliveries, ..AlertChange::default() }, DAY).unwrap();
        sweep(&reader.db, 10 * DAY).unwrap();
        let left: Vec<_> = reader.alert_states().unwrap().into_iter().map(|state| state.subject).collect();
        assert_eq!(left, ["credential:fresh", "credential:open", "credential:untold"]);
        // Its channel is no more, so nobody gave it up.
        let [shown] = &reader.undelivered(9).unwrap()[..] else { panic!() };
        assert!(shown.last_error.as_ref().is_some_and(|error| error.contains("not configured any more")));
        let all: i64 = reader.db.query_row("SELECT count(*) FROM deliveries", [], |row| row.get(0)).unwrap();
        assert_eq!(all, 1);
        sweep(&reader.db, 60 * DAY).unwrap();
        assert_eq!(reader.undelivered(9).unwrap(), []);
    }
}
