//! Brings notices to their channels: from the outbox in the order in which they were written, and
//! past it while the database can't be written. Each channel has a task of its own, so a slow
//! one holds up no other and nothing else. It decides nothing about alerts.
//!
//! At least once: a message is marked after it was taken. Whoever dies in between sends it
//! again, with the same key, by which its receiver knows it.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use super::channels;
use super::rules::Notice;
use crate::config::alerts::{Address, Channel, Email, Security, Target};
use crate::crash;
use crate::credential::{Millis, Secret, now};
use crate::db::alerts::{Tried, Waiting};
use crate::db::{Reader, Store, Writer};
use crate::egress::EgressError;
use crate::egress::delivery::{Delivery, DeliveryError, Message};
use crate::egress::mail::{self, Letter, MailError, Protection, Server};
use crate::hook;
use crate::limits;
use crate::webhook_signature::{self, SigningSecret};

/// Where the waits between two tries stop growing.
const LONGEST_WAIT: Millis = 30 * 60_000;

/// However old a message is, so many tries it gets: a clock that was set ahead makes all old.
const FEWEST_TRIES: u32 = 10;

/// Messages of one channel looked at together. Those behind them wait for their turn.
const TOGETHER: u32 = 32;

/// Between two looks at an outbox that nobody said anything of.
const LOOK: Duration = Duration::from_secs(15);

/// While the database can't be written.
const UNWRITABLE: Duration = Duration::from_secs(1);

/// Of an error, so much is kept.
const LONGEST_ERROR: usize = 300;

/// A file with an address, a token or a password.
const LONGEST_FILE: u64 = 64 << 10;

/// Notices past the outbox: what an incident of the database can come to with its reminders.
const PAST_THE_OUTBOX: usize = 16;

/// Why a message wasn't taken. The words hold no address and no secret.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct SendError {
    pub words: String,
    pub retry_after: Option<Duration>,
    /// It is the receiver that is away, and not this one message that it won't have.
    pub is_away: bool,
}

impl SendError {
    fn here(words: impl Into<String>) -> Self {
        Self { words: words.into(), retry_after: None, is_away: true }
    }
}

impl From<DeliveryError> for SendError {
    fn from(error: DeliveryError) -> Self {
        let (is_away, retry_after) = match &error {
            DeliveryError::Unreachable(_) | DeliveryError::TooLong => (true, None),
            DeliveryError::Refused { status, retry_after } => {
                (matches!(status, 408 | 429 | 502..=504), *retry_after)
            }
            DeliveryError::Header { .. } => (false, None),
        };
        Self { words: error.to_string(), retry_after, is_away }
    }
}

impl From<MailError> for SendError {
    fn from(error: MailError) -> Self {
        Self { is_away: error.is_away(), words: error.to_string(), retry_after: None }
    }
}

/// Sends one message to one channel, once.
#[derive(Debug)]
pub struct Sender {
    /// Files are absolute, or below it.
    home: PathBuf,
    delivery: Delivery,
    extra_ca_pem: Option<Vec<u8>>,
}

impl Sender {
    /// # Errors
    /// Where the HTTP client can't be set up.
    pub fn new(home: &Path, extra_ca_pem: Option<Vec<u8>>) -> Result<Self, EgressError> {
        let delivery = Delivery::new(extra_ca_pem.as_deref())?;
        Ok(Self { home: home.to_owned(), delivery, extra_ca_pem })
    }

    /// # Errors
    /// It wasn't taken, or nobody knows whether it was.
    pub async fn send(&self, channel: &Channel, key: &str, notice: &Notice) -> Result<(), SendError> {
        match &channel.target {
            Target::Webhook { url, secret_file } => {
                let body = bytes(&channels::webhook(key, notice));
                let headers = match secret_file {
                    None => webhook_signature::unsigned(key, now()),
                    Some(file) => {
                        let secret = SigningSecret::parse(&self.file(file)?)
                            .map_err(|error| SendError::here(format!("{}: {error}", file.display())))?;
                        webhook_signature::headers(key, now(), &body, &secret)
                    }
                };
                self.post(self.url(url)?, headers, body).await
            }
            Target::Slack { url } => {
                self.post(self.url(url)?, Vec::new(), bytes(&channels::slack(notice))).await
            }
            Target::Discord { url } => {
                self.post(self.url(url)?, Vec::new(), bytes(&channels::discord(notice))).await
            }
            Target::Ntfy { url, token_file } => {
                let mut url = self.url(url)?;
                // As JSON a message goes to the server itself and names its topic.
                let topic =
                    url.path_segments().and_then(|mut segments| segments.next_back().map(str::to_owned));
                let topic = topic.filter(|topic| !topic.is_empty()).ok_or_else(|| {
                    SendError::here(
                        "the url has no topic; hint: it ends in one, as https://ntfy.example/topic",
                    )
                })?;
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.pop();
                }
                let headers = match token_file {
                    Some(file) => {
                        let token = self.file(file)?;
                        let value = [b"Bearer ", token.expose().trim_ascii()].concat();
                        vec![(String::from("authorization"), Secret::new(value))]
                    }
                    None => Vec::new(),
                };
                self.post(url, headers, bytes(&channels::ntfy(&topic, notice))).await
            }
            Target::Email(email) => self.mail(email, key, notice).await,
            Target::Command { command } => {
                let body = bytes(&channels::webhook(key, notice));
                let event = format!("alert.{}", notice.event.as_str());
                let environment = [("KEYWHEEL_EVENT", event.as_str()), ("KEYWHEEL_ALERT_ID", key)];
                hook::run(command, &environment, &body, hook::WALL).await.map_err(|error| {
                    // A program that isn't there is missed by all messages.
                    let is_away = !matches!(error, hook::HookError::Failed { .. });
                    SendError { words: with_cause(&error), retry_after: None, is_away }
                })
            }
        }
    }

    async fn post(&self, url: Url, headers: Vec<(String, Secret)>, body: Vec<u8>) -> Result<(), SendError> {
        let method = http::Method::POST;
        let message = Message { method, url, headers, content_type: channels::JSON, body };
        Ok(self.delivery.send(message).await?)
    }

    /// Asks an address that watches for silence.
    ///
    /// # Errors
    /// It wasn't heard, or nobody knows whether it was.
    pub async fn beat(&self, address: &Address) -> Result<(), SendError> {
        let message = Message {
            method: http::Method::GET,
            url: self.url(address)?,
            headers: Vec::new(),
            content_type: "text/plain",
            body: Vec::new(),
        };
        Ok(self.delivery.send(message).await?)
    }

    async fn mail(&self, email: &Email, key: &str, notice: &Notice) -> Result<(), SendError> {
        let login = match (&email.user, &email.password_file) {
            (Some(user), Some(file)) => {
                let password = self.file(file)?;
                // The line's end is the editor's.
                let password = Secret::new(password.expose().trim_ascii_end());
                Some((user.as_str(), password))
            }
            _ => None,
        };
        let (subject, body) = channels::letter(notice);
        let server = Server {
            host: email.server.trim_start_matches('[').trim_end_matches(']'),
            port: email.port,
            protection: match email.security {
                Security::Tls => Protection::Tls,
                Security::Starttls => Protection::Starttls,
                Security::None => Protection::None,
            },
            login,
            extra_ca_pem: self.extra_ca_pem.as_deref(),
        };
        let letter = Letter {
            from: &email.from,
            to: &email.to,
            subject: &subject,
            body: &body,
            id: key,
            at: notice.at,
        };
        Ok(mail::send(&server, &letter).await?)
    }

    fn url(&self, address: &Address) -> Result<Url, SendError> {
        // The parser's words quote nothing, but what it parsed may be a token.
        let parse = |text: &str, place: &str| {
            Url::parse(text.trim())
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .ok_or_else(|| SendError::here(format!("{place} holds no https:// or http:// address")))
        };
        match address {
            Address::Here(url) => parse(url.expose(), "url"),
            Address::File(file) => {
                let text = self.file(file)?;
                parse(&String::from_utf8_lossy(text.expose()), &file.display().to_string())
            }
        }
    }

    fn file(&self, file: &Path) -> Result<Secret, SendError> {
        let unread = |error: &dyn std::fmt::Display| {
            SendError::here(format!("{} can't be read: {error}", file.display()))
        };
        let path = self.home.join(file);
        let found = std::fs::metadata(&path).map_err(|error| unread(&error))?;
        if found.mode() & 0o007 != 0 {
            return Err(SendError::here(format!(
                "{} is for everybody to use (mode {:04o}); hint: chmod 600",
                file.display(),
                found.mode() & 0o7777
            )));
        }
        if found.len() > LONGEST_FILE {
            return Err(unread(&format!("it has {} bytes; allowed: {LONGEST_FILE}", found.len())));
        }
        std::fs::read(&path).map(Secret::new).map_err(|error| unread(&error))
    }
}

fn bytes(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The key of a message: of this installation, this group and this number in it, and no other.
pub fn dedup_key(installation: &[u8], group: &str, number: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(installation);
    hash.update([0]);
    hash.update(group.as_bytes());
    hash.update([0]);
    hash.update(number.to_be_bytes());
    format!("kw-{}", hex::encode(&hash.finalize()[..16]))
}

/// What a channel does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The place of the message among those that wait.
    Send(usize),
    /// Nothing until then.
    Wait(Millis),
    Idle,
}

/// Which of the waiting messages goes out now. One whose receiver was away keeps the others
/// behind it: nobody should hear that it is well before that it wasn't.
fn plan(waiting: &[Waiting], at: Millis) -> Step {
    let mut earliest: Option<Millis> = None;
    for (place, message) in waiting.iter().enumerate() {
        if message.next_try_at <= at {
            return Step::Send(place);
        }
        earliest = Some(earliest.map_or(message.next_try_at, |so_far| so_far.min(message.next_try_at)));
        if message.holds {
            break;
        }
    }
    earliest.map_or(Step::Idle, Step::Wait)
}

/// How long to wait after so many failed tries: doubling, and for each message at another time.
fn backoff(first: Millis, tries: u32, key: &str) -> Millis {
    let most = first.saturating_mul(1 << tries.min(20)).min(LONGEST_WAIT.max(first));
    let chance = Sha256::digest(format!("{key}/{tries}"));
    let chance = u64::from_be_bytes(chance[..8].try_into().expect("eight bytes"));
    most / 2 + chance % (most / 2 + 1)
}

/// What follows from a try that failed.
fn after_failure(message: &Waiting, error: &SendError, retry_first: Millis, at: Millis) -> Tried {
    let wait = backoff(retry_first, message.tries, &message.dedup_key);
    let give_up = limits::ALERT_GIVE_UP.as_millis() as Millis;
    let asked = error.retry_after.map_or(0, |asked| asked.as_millis() as Millis).min(give_up);
    let error_words = match error.words.char_indices().nth(LONGEST_ERROR) {
        Some((end, _)) => format!("{}…", &error.words[..end]),
        None => error.words.clone(),
    };
    let is_old = at.saturating_sub(message.created_at) >= give_up;
    if is_old && message.tries + 1 >= FEWEST_TRIES {
        return Tried::GivenUp { error: error_words };
    }
    Tried::Later { at: at + wait.max(asked), holds: error.is_away, error: error_words }
}

/// Messages that can't be written down because the database can't be written, by channel. They
/// are put into the outbox when it can, so that none is lost and each keeps its key.
#[derive(Debug, Default)]
pub struct PastTheOutbox(Mutex<BTreeMap<String, VecDeque<Unwritten>>>);

#[derive(Debug, Clone)]
struct Unwritten {
    key: String,
    notice: Notice,
    sent_at: Option<Millis>,
    is_under_way: bool,
    tries: u32,
    not_before: Option<Instant>,
}

impl PastTheOutbox {
    fn hold(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, VecDeque<Unwritten>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, channel: &str, key: &str, notice: &Notice) {
        let mut all = self.hold();
        let of_channel = all.entry(channel.to_owned()).or_default();
        if of_channel.len() < PAST_THE_OUTBOX {
            of_channel.push_back(Unwritten {
                key: key.to_owned(),
                notice: notice.clone(),
                sent_at: None,
                is_under_way: false,
                tries: 0,
                not_before: None,
            });
        }
    }

    /// The first that isn't sent, which then is under way; or when it may be tried again.
    fn take(&self, channel: &str) -> Option<Result<(String, Notice, u32), Instant>> {
        let mut all = self.hold();
        let next = all.get_mut(channel)?.iter_mut().find(|one| one.sent_at.is_none())?;
        if let Some(at) = next.not_before.filter(|at| *at > Instant::now()) {
            return Some(Err(at));
        }
        next.is_under_way = true;
        Some(Ok((next.key.clone(), next.notice.clone(), next.tries)))
    }

    fn tried(&self, channel: &str, key: &str, again_in: Option<Duration>) {
        let mut all = self.hold();
        let found = all.get_mut(channel).and_then(|list| list.iter_mut().find(|one| one.key == key));
        if let Some(one) = found {
            one.is_under_way = false;
            one.tries += 1;
            match again_in {
                None => one.sent_at = Some(now()),
                Some(wait) => one.not_before = Some(Instant::now() + wait),
            }
        }
    }

    /// Takes all of them, to be written down. None while one is under way, for nobody knows yet
    /// whether it was sent.
    pub fn take_all(&self) -> Option<Taken> {
        let mut all = self.hold();
        if all.values().flatten().any(|one| one.is_under_way) {
            return None;
        }
        Some(Taken(std::mem::take(&mut *all)))
    }

    /// They could not be written down after all.
    pub fn put_back(&self, taken: Taken) {
        let mut all = self.hold();
        for (channel, mut list) in taken.0 {
            let newer = all.remove(&channel).unwrap_or_default();
            list.extend(newer);
            all.insert(channel, list);
        }
    }
}

/// What went past the outbox, or should have.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<String, VecDeque<Unwritten>>);

impl Taken {
    /// Channel, key, notice, and when it was sent.
    pub fn all(&self) -> impl Iterator<Item = (&String, &String, &Notice, Option<Millis>)> {
        let of = |(channel, list)| {
            let list: &VecDeque<Unwritten> = list;
            list.iter().map(move |one| (channel, &one.key, &one.notice, one.sent_at))
        };
        self.0.iter().flat_map(of)
    }
}

/// The task of one channel.
pub struct Postman {
    pub name: String,
    pub channel: Channel,
    pub sender: Arc<Sender>,
    pub database: Store,
    pub writer: Writer,
    pub retry_first: Millis,
    pub past_the_outbox: Arc<PastTheOutbox>,
    /// Changes when there may be something new.
    pub news: watch::Receiver<u64>,
    /// The channel was just changed, so what it didn't take before is tried at once.
    pub is_changed: bool,
}

impl Postman {
    pub async fn serve(mut self, mut stop: watch::Receiver<bool>) {
        let (mut reader, mut unmarked) = (None, Vec::new());
        let mut failing = false;
        while !*stop.borrow() {
            let pause = match self.round(&mut reader, &mut unmarked).await {
                Ok(pause) => {
                    failing = false;
                    pause
                }
                Err(error) => {
                    // Once, not each second for as long as it lasts.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(channel = self.name, error, "the outbox can't be read or marked");
                    }
                    reader = None;
                    UNWRITABLE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.news.changed() => if changed.is_err() { return },
                _ = stop.changed() => {}
            }
        }
    }

    /// Sends one message, if one may go, and says how long none will.
    async fn round(
        &mut self,
        reader: &mut Option<Reader>,
        unmarked: &mut Vec<i64>,
    ) -> Result<Duration, String> {
        match self.past_the_outbox.take(&self.name) {
            Some(Ok((key, notice, tries))) => {
                let sent = self.sender.send(&self.channel, &key, &notice).await;
                let wait = sent.err().map(|error| {
                    tracing::warn!(channel = self.name, %error, "an alert was not taken, it is tried again");
                    Duration::from_millis(backoff(self.retry_first, tries, &key))
                });
                self.past_the_outbox.tried(&self.name, &key, wait);
                return Ok(Duration::ZERO);
            }
            Some(Err(at)) => return Ok(at.saturating_duration_since(Instant::now()).min(UNWRITABLE)),
            None => {}
        }
        while let Some(id) = unmarked.first().copied() {
            self.writer.delivery_tried(id, Tried::Delivered).await.map_err(|error| error.to_string())?;
            unmarked.remove(0);
            crash::point("alert.marked");
        }
        if self.writer.progress().borrow().failing.is_some() {
            // What can't be marked would be sent again and again.
            return Ok(UNWRITABLE);
        }
        let (held, database, name) = (reader.take(), self.database.clone(), self.name.clone());
        let read = move || {
            let reader = match held {
                Some(reader) => reader,
                None => Reader::open(&database).map_err(|error| error.to_string())?,
            };
            let waiting = reader.waiting(&name, TOGETHER).map_err(|error| error.to_string())?;
            Ok::<_, String>((reader, waiting))
        };
        let (held, mut waiting) =
            tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())??;
        *reader = Some(held);
        if std::mem::take(&mut self.is_changed)
            && let Some(first) = waiting.first_mut()
        {
            first.next_try_at = 0;
        }
        match plan(&waiting, now()) {
            Step::Idle => Ok(LOOK),
            Step::Wait(until) => Ok(Duration::from_millis(until.saturating_sub(now())).min(LOOK)),
            Step::Send(place) => {
                self.deliver(&waiting[place], unmarked).await?;
                Ok(Duration::ZERO)
            }
        }
    }

    async fn deliver(&self, message: &Waiting, unmarked: &mut Vec<i64>) -> Result<(), String> {
        crash::point("alert.sending");
        let sent = match serde_json::from_str::<Notice>(&message.payload_json) {
            Ok(notice) => self.sender.send(&self.channel, &message.dedup_key, &notice).await,
            Err(error) => Err(SendError {
                words: format!("not a message of this version: {error}"),
                retry_after: None,
                is_away: false,
            }),
        };
        match sent {
            Ok(()) => {
                crash::point("alert.sent");
                // Marked with the next round, and until it is: never sent again by this process.
                unmarked.push(message.id);
                Ok(())
            }
            Err(error) => {
                let tried = after_failure(message, &error, self.retry_first, now());
                tracing::warn!(
                    channel = self.name,
                    tries = message.tries + 1,
                    given_up = matches!(tried, Tried::GivenUp { .. }),
                    %error,
                    "an alert was not taken"
                );
                self.writer.delivery_tried(message.id, tried).await.map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: i64, next_try_at: Millis, holds: bool) -> Waiting {
        Waiting {
            id,
            dedup_key: format!("kw-{id}"),
            payload_json: String::new(),
            created_at: 0,
            tries: 0,
            next_try_at,
            holds,
        }
    }

    fn error(is_away: bool, retry_after: Option<u64>) -> SendError {
        SendError { words: "no".into(), retry_after: retry_after.map(Duration::from_secs), is_away }
    }

    #[test]
    fn messages_go_in_their_order_and_wait_behind_a_receiver_that_is_away() {
        let at = 100;
        for (waiting, want) in [
            (vec![], Step::Idle),
            (vec![message(1, 0, false), message(2, 0, false)], Step::Send(0)),
            // That one message wasn't taken; the next may be.
            (vec![message(1, 500, false), message(2, 0, false)], Step::Send(1)),
            (vec![message(1, 500, true), message(2, 0, false)], Step::Wait(500)),
            (vec![message(1, 500, false), message(2, 300, false)], Step::Wait(300)),
            (vec![message(1, 100, true), message(2, 0, false)], Step::Send(0)),
            (vec![message(1, 500, false), message(2, 700, true), message(3, 0, false)], Step::Wait(500)),
        ] {
            assert_eq!(plan(&waiting, at), want, "{waiting:?}");
        }
    }

    #[test]
    fn tries_come_at_growing_distances_for_a_day_and_as_late_as_the_receiver_asks() {
        let first = 5_000;
        for tries in 0..40 {
            let most = (first << tries.min(20)).min(LONGEST_WAIT);
            let wait = backoff(first, tries, "kw-1");
            assert!((most / 2..=most).contains(&wait), "{tries}: {wait}");
        }
        assert_ne!(backoff(first, 3, "kw-1"), backoff(first, 3, "kw-2"));
        let Tried::Later { at, holds, .. } =
            after_failure(&message(1, 0, false), &error(true, Some(60)), first, 1_000)
        else {
            panic!()
        };
        assert_eq!((at, holds), (61_000, true));
        let day = limits::ALERT_GIVE_UP.as_millis() as Millis;
        let tried = |tries, at| {
            after_failure(&Waiting { tries, ..message(1, 0, false) }, &error(false, None), first, at)
        };
        assert!(matches!(tried(50, day - 1), Tried::Later { holds: false, .. }));
        assert!(matches!(tried(50, day), Tried::GivenUp { .. }));
        // A clock that was set ahead makes every message old at once.
        assert!(matches!(tried(2, 10 * day), Tried::Later { .. }));
    }

    #[test]
    fn a_key_is_one_message_s_and_no_other_s() {
        let key = dedup_key(b"here", "service:forge", 1);
        assert_eq!(key, dedup_key(b"here", "service:forge", 1));
        let others = [
            dedup_key(b"there", "service:forge", 1),
            dedup_key(b"here", "service:forge", 2),
            dedup_key(b"here", "service:gorge", 1),
        ];
        assert!(others.iter().all(|other| *other != key));
    }

    #[test]
    fn what_is_under_way_past_the_outbox_is_not_written_down_before_it_is_known() {
        let past = PastTheOutbox::default();
        let notice = super::super::test_notice(0);
        past.put("ops", "kw-1", &notice);
        past.put("mail", "kw-1", &notice);
        let (key, _, _) = past.take("ops").unwrap().unwrap();
        assert!(past.take_all().is_none());
        past.tried("ops", &key, None);
        assert!(past.take("ops").is_none());
        let taken = past.take_all().unwrap();
        let sent: Vec<_> = taken.all().map(|(channel, _, _, at)| (channel.as_str(), at.is_some())).collect();
        assert_eq!(sent, [("mail", false), ("ops", true)]);
        // Nobody sends what is just being written down.
        assert!(past.take("mail").is_none());
        past.put("mail", "kw-2", &notice);
        past.put_back(taken);
        past.take("mail").unwrap().unwrap();
        past.tried("mail", "kw-1", Some(Duration::from_secs(60)));
        assert!(past.take("mail").unwrap().is_err());
    }
}
