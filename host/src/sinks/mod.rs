//! Brings the secrets in force to where they are used: a file, a command, a webhook for each sink
//! of the configuration. Nobody tells it what changed: it compares what each sink got with what is
//! in force, whenever something was committed, the configuration changed, or some time went by. So
//! whatever it missed it finds, and nothing is lost where the daemon dies between a rotation and
//! its delivery.
//!
//! It runs beside the rotations and none of them waits for it. Only the generation in force ever
//! leaves, never a pending one; a command and a webhook are told that there is one, never which
//! secrets are in it.

pub mod decide;
mod file;
mod message;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::Live;
use crate::config::sinks::Sink;
use crate::crash;
use crate::credential::{Millis, Secret, now};
use crate::db::queries::{ReadError, Reader};
use crate::db::uses::{Delivered, InForce, SinkConsumer, SinkState};
use crate::db::writer::{WriteError, Writer};
use crate::db::{DbError, Store};
use crate::egress::EgressError;
use crate::egress::delivery::{Delivery, DeliveryError, Message};
use crate::formats::export::{ExportError, to_form};
use crate::hook::{self, HookError};
use crate::limits;
use crate::sealing::open_jar;
use crate::vault::{Vault, VaultError};
use crate::webhook_signature::{self, SigningSecret};
use decide::{Facts, Generation, Need, Trouble};
use file::{FileError, Ids, Stamp};

/// A webhook's secret is a line.
const SECRET_FILE_BYTES: u64 = 1_024;

#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("no sink `{name}` in config.toml; there {}", listed(known))]
    NoSuchSink { name: String, known: Vec<String> },
    #[error("there is no credential `{0}`; hint: `keywheel credential list`")]
    NoCredential(String),
    #[error("the secrets of `{0}` aren't kept here")]
    NoSecrets(String),
    #[error("the sink is being served; hint: try again when that has ended")]
    Busy,
    #[error("{} can't be written: its file system has not answered for {} s", .0.display(), limits::SINK_FILE_WALL.as_secs())]
    Silent(PathBuf),
    #[error("webhook_secret_file {} {why}", path.display())]
    Secret { path: PathBuf, why: String },
    #[error("the webhook was not taken: {0}")]
    Webhook(#[from] DeliveryError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Form(#[from] ExportError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("webhooks can't be sent: {0}")]
    Egress(#[from] EgressError),
    #[error("a delivery ended badly")]
    Panicked,
}

fn listed(known: &[String]) -> String {
    match known {
        [] => String::from("is none"),
        names => format!("are: {}", names.join(", ")),
    }
}

impl SinkError {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Webhook(DeliveryError::Refused { retry_after: Some(wait), .. }) => Trouble::Asked(*wait),
            Self::Webhook(error) if error.is_lasting() => Trouble::Refused,
            _ => Trouble::Passing,
        }
    }
}

/// Every sink of an installation. The same for the daemon and for a command that works without one.
pub struct Sinks {
    database: Store,
    /// What follows a sink's name in a store that several hosts share, each with sinks of its own.
    of_host: String,
    vault: Arc<Vault>,
    writer: Writer,
    config: Live,
    extra_ca_pem: Option<Vec<u8>>,
    /// Told when a rotation is due because a delivery was an acknowledgement.
    released: Box<dyn Fn() + Send + Sync>,
    /// Made for the first webhook.
    delivery: Mutex<Option<Delivery>>,
    /// What is remembered of each sink; locked while it is served.
    places: Mutex<HashMap<String, Arc<Turn<Place>>>>,
    at_once: Arc<Semaphore>,
    /// A sink was served, and may be behind again.
    served: Notify,
}

/// The states of one host's sinks, by the names that its configuration has.
///
/// # Errors
/// The database's.
pub fn own_states(reader: &Reader, of_host: &str) -> Result<Vec<SinkState>, ReadError> {
    let own = |state: SinkState| {
        let name = state.sink.strip_suffix(of_host)?.to_owned();
        Some(SinkState { sink: name, ..state })
    };
    Ok(reader.sink_states()?.into_iter().filter_map(own).collect())
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks").field("database", &self.database).finish_non_exhaustive()
    }
}

/// What is known of a sink beyond the database, to spare work: all of it can be found out again.
#[derive(Debug, Default)]
struct Place {
    /// The file as it was last found right: for what, and how it looked.
    file: Option<(u64, Stamp)>,
    /// The generation of which the command was run, while its webhook isn't taken yet.
    commanded: Option<Generation>,
}

/// What one look at all sinks came to.
#[derive(Debug, Default)]
struct Looked {
    serve: Vec<Served>,
    /// The next moment at which a pause is over.
    next: Option<Millis>,
    /// Sinks whose credential isn't there.
    strays: BTreeSet<String>,
}

/// A sink to be served now.
#[derive(Debug)]
struct Served {
    name: String,
    sink: Sink,
    /// It got everything: only its file may have been touched.
    only_look: bool,
    /// What should be in its file.
    contents: u64,
}

impl Sinks {
    /// `released` is called when a rotation that had waited is due.
    pub fn new(
        database: Store,
        of_host: String,
        vault: Arc<Vault>,
        writer: Writer,
        config: Live,
        extra_ca_pem: Option<Vec<u8>>,
        released: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            database,
            of_host,
            vault,
            writer,
            config,
            extra_ca_pem,
            released: Box::new(released),
            delivery: Mutex::default(),
            places: Mutex::default(),
            at_once: Arc::new(Semaphore::new(limits::SINK_DELIVERIES)),
            served: Notify::new(),
        })
    }

    /// Serves the sinks until `stop`, and then for a moment what was issued last.
    pub async fn serve(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let (mut commits, mut configs) = (self.writer.progress(), self.config.changes());
        let mut rounds = Rounds::default();
        let mut running = JoinSet::new();
        let mut files_looked_at: Option<Instant> = None;
        while !*stop.borrow() {
            commits.borrow_and_update();
            configs.borrow_and_update();
            let files = files_looked_at.is_none_or(|at| at.elapsed() >= limits::SINK_CHECK);
            if files {
                files_looked_at = Some(Instant::now());
            }
            let next = self.round(&mut rounds, &mut running, files).await;
            let has_sinks = !self.config.get().sinks.is_empty();
            let pause = match next {
                Some(at) => Duration::from_millis(at.saturating_sub(now()).max(1)).min(limits::SINK_CHECK),
                None => limits::SINK_CHECK,
            };
            tokio::select! {
                changed = commits.changed(), if has_sinks => match changed {
                    // What a rotation writes comes in several commits.
                    Ok(()) => tokio::time::sleep(limits::SINK_DEBOUNCE).await,
                    Err(_) => break,
                },
                () = self.served.notified() => {}
                () = tokio::time::sleep(pause), if has_sinks => {}
                _ = configs.changed() => {}
                _ = stop.changed() => {}
            }
            while running.try_join_next().is_some() {}
        }
        let drained = async {
            loop {
                self.round(&mut rounds, &mut running, false).await;
                if running.join_next().await.is_none() {
                    break;
                }
            }
        };
        if tokio::time::timeout(limits::SINK_DRAIN, drained).await.is_err() {
            tracing::warn!("deliveries still under way are left to the next start");
        }
        running.shutdown().await;
    }

    /// Looks at every sink once, also at the files themselves if that is said, and starts what is
    /// to be done. Returns when a pause is over.
    async fn round(
        self: &Arc<Self>,
        rounds: &mut Rounds,
        running: &mut JoinSet<()>,
        files: bool,
    ) -> Option<Millis> {
        let looked = match self.look(rounds, files).await {
            Ok(looked) => {
                rounds.failing = false;
                looked
            }
            Err(error) => {
                // Once, not every five seconds for as long as it lasts.
                if !std::mem::replace(&mut rounds.failing, true) {
                    tracing::error!(%error, "the sinks can't be looked at");
                }
                return None;
            }
        };
        for sink in looked.strays.difference(&rounds.strays) {
            tracing::warn!(sink, "the credential of this sink isn't there, or has no secrets here");
        }
        rounds.strays = looked.strays;
        for Served { name, sink, only_look, contents } in looked.serve {
            // One that is being served says when it is done, and is looked at then.
            let Ok(turn) = self.place(&name).try_lock_owned() else { continue };
            let sinks = Arc::clone(self);
            running.spawn(async move {
                let permit = Arc::clone(&sinks.at_once).acquire_owned().await;
                let turn = match only_look {
                    false => Some(turn),
                    true => touched(&sink, contents, turn).await,
                };
                if let Some(turn) = turn {
                    // It was told where it happened, and stands in the sink's state.
                    let _ = sinks.bring(&name, &sink, turn, false).await;
                    sinks.served.notify_one();
                }
                drop(permit);
            });
        }
        looked.next
    }

    fn place(&self, name: &str) -> Arc<Turn<Place>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(name.to_owned()).or_default())
    }

    async fn look(&self, rounds: &mut Rounds, files: bool) -> Result<Looked, SinkError> {
        let config = self.config.get();
        if config.sinks.is_empty() && rounds.had_none {
            return Ok(Looked::default());
        }
        let reader = match rounds.reader.take() {
            Some(reader) => reader,
            None => Reader::open(&self.database)?,
        };
        let states: BTreeMap<_, _> = own_states(&reader, &self.of_host)?
            .into_iter()
            .map(|state| (state.sink.clone(), state))
            .collect();
        let (mut looked, mut consumers) = (Looked::default(), BTreeSet::new());
        let at = now();
        for (name, sink) in &config.sinks {
            let in_force = reader.in_force(&sink.credential)?;
            let Some((in_force, generation)) =
                in_force.as_ref().and_then(|found| Some((found, found.generation?)))
            else {
                looked.strays.insert(name.clone());
                continue;
            };
            if sink.acknowledges {
                consumers.insert(SinkConsumer {
                    credential_id: sink.credential.clone(),
                    name: self.stored(name),
                    wait_seconds: sink.acknowledge_wait_seconds,
                });
            }
            if in_force.unheard {
                // What the sink has may be newer than the backup, and the only one that lives.
                continue;
            }
            let (state, contents) = (states.get(name), contents(sink, in_force, at));
            let need = decide::need(Facts {
                in_force: Some((in_force.row, generation)),
                got: state.and_then(|state| state.got),
                file_is_known: sink.path.is_none() || (!files && self.file_is_known(name, contents)),
                next_try_at: state.and_then(|state| state.next_try_at),
                now: at,
            });
            match need {
                Need::Nothing => {}
                Need::At(moment) => looked.next = Some(looked.next.map_or(moment, |next| next.min(moment))),
                Need::Look | Need::Deliver => looked.serve.push(Served {
                    name: name.clone(),
                    sink: sink.clone(),
                    only_look: need == Need::Look && state.is_none_or(|state| state.last_error.is_none()),
                    contents,
                }),
            }
        }
        let is_own = |consumer: &SinkConsumer| consumer.name.ends_with(&self.of_host);
        let standing: BTreeSet<_> = reader.sink_consumers()?.into_iter().filter(is_own).collect();
        rounds.reader = Some(reader);
        let forgotten = states.keys().any(|sink| !config.sinks.contains_key(sink));
        if forgotten {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.retain(|name, _| config.sinks.contains_key(name));
        }
        if consumers != standing || forgotten {
            // What the operator declared under a sink's name stays his, so the two may differ for
            // good: the same difference is settled once.
            let difference = (consumers, standing);
            if forgotten || rounds.settling.as_ref() != Some(&difference) {
                let wanted = difference.0.iter().cloned().collect();
                let sinks = config.sinks.keys().map(|name| self.stored(name)).collect();
                if self.writer.settle_sinks(&self.of_host, sinks, wanted).await? {
                    (self.released)();
                }
                rounds.settling = Some(difference);
            }
        }
        rounds.had_none = config.sinks.is_empty();
        Ok(looked)
    }

    /// A sink's name as the store has it.
    fn stored(&self, name: &str) -> String {
        format!("{name}{}", self.of_host)
    }

    /// Whether the same should be in a sink's file as when that was last found right. One that is
    /// being served needs no look.
    fn file_is_known(&self, name: &str, contents: u64) -> bool {
        let place = self.place(name);
        let Ok(place) = place.try_lock() else { return true };
        place.file.is_some_and(|(what, _)| what == contents)
    }

    /// Delivers to one sink now, whatever it got before.
    ///
    /// # Errors
    /// Why it can't be, which then stands in the sink's state as well.
    pub async fn sync(self: &Arc<Self>, name: &str) -> Result<(), SinkError> {
        let config = self.config.get();
        let Some(sink) = config.sinks.get(name) else {
            let known = config.sinks.keys().cloned().collect();
            return Err(SinkError::NoSuchSink { name: name.to_owned(), known });
        };
        let turn = tokio::time::timeout(limits::SINK_FILE_WALL, self.place(name).lock_owned())
            .await
            .map_err(|_| SinkError::Busy)?;
        self.bring(name, sink, turn, true).await
    }

    /// Brings one sink in step, and writes down how it went.
    async fn bring(
        &self,
        name: &str,
        sink: &Sink,
        turn: OwnedMutexGuard<Place>,
        insisted: bool,
    ) -> Result<(), SinkError> {
        let states = own_states(&Reader::open(&self.database)?, &self.of_host)?;
        let state = states.into_iter().find(|state| state.sink == name);
        let state = state.unwrap_or_default();
        // Held until it is written down how it went, or the next look would begin anew.
        let mut turn = Some(turn);
        let brought = self.deliver(name, sink, &mut turn, state.got, insisted).await;
        match brought {
            // It was in step, and its file as it should be.
            Ok(None) if state.last_error.is_none() => Ok(()),
            Ok(done) => {
                let Some((credential, generation)) = done.or(state.got) else { return Ok(()) };
                if state.last_error.is_some() {
                    tracing::info!(sink = name, generation, "the sink is in step again");
                } else {
                    tracing::debug!(sink = name, generation, "delivered");
                }
                let delivered = Delivered {
                    sink: self.stored(name),
                    credential,
                    generation,
                    acknowledges: sink.acknowledges,
                };
                if self.writer.sink_delivered(delivered).await? {
                    (self.released)();
                }
                Ok(())
            }
            Err(error) => {
                let (tries, said) = (state.tries.saturating_add(1), error.to_string());
                if state.last_error.as_deref() != Some(&said) {
                    tracing::warn!(sink = name, error = said, "the sink can't be served, it is tried again");
                }
                let next = now() + decide::pause(tries, error.trouble()).as_millis() as Millis;
                self.writer.sink_failed(&self.stored(name), said, tries, Some(next)).await?;
                Err(error)
            }
        }
    }

    /// The delivery itself: the file, then the command, then the webhook. Returns what was
    /// delivered; None: nothing had to be.
    async fn deliver(
        &self,
        name: &str,
        sink: &Sink,
        turn: &mut Option<OwnedMutexGuard<Place>>,
        got: Option<Generation>,
        insisted: bool,
    ) -> Result<Option<Generation>, SinkError> {
        crash::point("sink.delivering");
        let (in_force, wrote) = self.write_file(sink, turn).await?;
        let this = (in_force.row, in_force.generation.unwrap_or_default());
        if got == Some(this) && !insisted {
            return Ok(wrote.then_some(this));
        }
        let body = message::body(name, &sink.credential, &in_force);
        let commanded = turn.as_ref().and_then(|place| place.commanded);
        if !sink.command.is_empty() && (insisted || commanded != Some(this)) {
            let generation = this.1.to_string();
            let path = sink.path.as_ref().map(|path| path.to_string_lossy().into_owned());
            let mut environment = vec![
                ("KEYWHEEL_SINK", name),
                ("KEYWHEEL_CREDENTIAL", sink.credential.as_str()),
                ("KEYWHEEL_GENERATION", generation.as_str()),
            ];
            environment.extend(path.as_deref().map(|path| ("KEYWHEEL_PATH", path)));
            hook::run(&sink.command, &environment, &body, sink.command_wall()).await?;
            if let Some(place) = turn {
                place.commanded = Some(this);
            }
        }
        self.send_webhook(name, sink, &in_force, body).await?;
        if let Some(place) = turn {
            place.commanded = None;
        }
        crash::point("sink.delivered");
        Ok(Some(this))
    }

    /// Reads what is in force, and makes the file hold it, on a thread that may wait for a disk.
    async fn write_file(
        &self,
        sink: &Sink,
        turn: &mut Option<OwnedMutexGuard<Place>>,
    ) -> Result<(InForce, bool), SinkError> {
        let silent = || SinkError::Silent(sink.path.clone().unwrap_or_default());
        let place = turn.take().ok_or_else(silent)?;
        let (database, vault, of_thread) = (self.database.clone(), Arc::clone(&self.vault), sink.clone());
        let known = place.file;
        let writing = tokio::task::spawn_blocking(move || written(&database, &vault, &of_thread, known));
        let (mut place, ended) = in_time(writing, place).await.ok_or_else(silent)?;
        let ended = ended.ok_or(SinkError::Panicked).flatten();
        place.file = ended.as_ref().ok().and_then(|(_, _, file)| *file);
        *turn = Some(place);
        let (in_force, wrote, _) = ended?;
        Ok((in_force, wrote))
    }

    async fn send_webhook(
        &self,
        name: &str,
        sink: &Sink,
        in_force: &InForce,
        body: Vec<u8>,
    ) -> Result<(), SinkError> {
        let Some((url, file)) = sink.webhook.as_ref().zip(sink.webhook_secret_file.as_ref()) else {
            return Ok(());
        };
        let secret = webhook_secret(file)?;
        let headers = webhook_signature::headers(&message::id(name, in_force), now(), &body, &secret);
        let message = Message {
            method: http::Method::POST,
            url: url.clone(),
            headers,
            content_type: "application/json",
            body,
        };
        self.delivery()?.send(message).await?;
        Ok(())
    }

    fn delivery(&self) -> Result<Delivery, EgressError> {
        let mut kept = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(delivery) = &*kept {
            return Ok(delivery.clone());
        }
        let delivery = Delivery::new(self.extra_ca_pem.as_deref())?;
        *kept = Some(delivery.clone());
        Ok(delivery)
    }
}

/// What is kept from one look to the next.
#[derive(Default)]
struct Rounds {
    reader: Option<Reader>,
    strays: BTreeSet<String>,
    /// The consumers that the configuration wants and those there are, when that was settled last.
    settling: Option<(BTreeSet<SinkConsumer>, BTreeSet<SinkConsumer>)>,
    /// There was no sink at the last look, and nothing is left of an earlier one.
    had_none: bool,
    failing: bool,
}

/// The end of a thread's work on a sink's file; None: it has none in time. The thread itself can't
/// be ended, and until it is done nobody else may work on that file.
async fn in_time<T: Send + 'static>(
    mut working: JoinHandle<T>,
    turn: OwnedMutexGuard<Place>,
) -> Option<(OwnedMutexGuard<Place>, Option<T>)> {
    match tokio::time::timeout(limits::SINK_FILE_WALL, &mut working).await {
        Ok(ended) => Some((turn, ended.ok())),
        Err(_) => {
            tokio::spawn(async move {
                let _ = working.await;
                drop(turn);
            });
            None
        }
    }
}

/// The sink again, where its file isn't as it was when it was last found right.
async fn touched(sink: &Sink, contents: u64, turn: OwnedMutexGuard<Place>) -> Option<OwnedMutexGuard<Place>> {
    let (path, known) = (sink.path.clone()?, turn.file);
    let looking = tokio::task::spawn_blocking(move || {
        known.is_some_and(|(what, stamp)| what == contents && Stamp::at(&path) == Some(stamp))
    });
    let (turn, is_known) = in_time(looking, turn).await?;
    (is_known != Some(true)).then_some(turn)
}

type Written = (InForce, bool, Option<(u64, Stamp)>);

/// Returns what is in force, whether the file had to be written, and how it looks now.
fn written(
    database: &Store,
    vault: &Vault,
    sink: &Sink,
    known: Option<(u64, Stamp)>,
) -> Result<Written, SinkError> {
    let found = Reader::open(database)?.in_force_with_keys(&sink.credential)?;
    let (in_force, sealed) = found.ok_or_else(|| SinkError::NoCredential(sink.credential.clone()))?;
    let sealed = sealed.ok_or_else(|| SinkError::NoSecrets(sink.credential.clone()))?;
    let Some((path, format)) = sink.path.as_ref().zip(sink.format) else {
        return Ok((in_force, false, None));
    };
    let at = now();
    let what = contents(sink, &in_force, at);
    if let Some(known) = known.filter(|(of, stamp)| *of == what && Stamp::at(path) == Some(*stamp)) {
        return Ok((in_force, false, Some(known)));
    }
    let jar = open_jar(vault, &sink.credential, &sealed)?;
    let text = to_form(&jar, format, sink.url.as_deref(), at)?;
    let wrote = file::put(path, text.expose(), sink.mode, Ids::of(sink.owner.as_ref())?)?;
    Ok((in_force, wrote, Stamp::at(path).map(|stamp| (what, stamp))))
}

/// Stands for what should be in a sink's file, without opening any secret.
fn contents(sink: &Sink, in_force: &InForce, at: Millis) -> u64 {
    let mut hash = DefaultHasher::new();
    (in_force.row, in_force.generation, &in_force.keys).hash(&mut hash);
    // A cookie that has ended is left out of a header.
    in_force
        .keys
        .iter()
        .filter(|(_, _, expires)| expires.is_some_and(|end| end <= at))
        .count()
        .hash(&mut hash);
    (&sink.path, sink.format.map(|format| format as u8), &sink.url, sink.mode.0).hash(&mut hash);
    sink.owner.as_ref().map(|owner| (&owner.user, &owner.group)).hash(&mut hash);
    hash.finish()
}

fn webhook_secret(path: &Path) -> Result<SigningSecret, SinkError> {
    let wrong = |why: String| SinkError::Secret { path: path.to_owned(), why };
    let unreadable = |error: std::io::Error| wrong(format!("can't be read: {error}"));
    let found = path.metadata().map_err(unreadable)?;
    if found.mode() & 0o007 != 0 {
        return Err(wrong(format!(
            "is for everybody to use (mode {:04o}); hint: chmod 600",
            found.mode() & 0o7777
        )));
    }
    if found.len() > SECRET_FILE_BYTES {
        return Err(wrong(format!("has {} bytes; allowed: one line", found.len())));
    }
    let text = Secret::new(std::fs::read(path).map_err(unreadable)?);
    SigningSecret::parse(&text).map_err(|error| wrong(format!("can't be used: {error}")))
}
