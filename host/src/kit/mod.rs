//! The conformance kit: runs single calls of a plugin as a daemon would, against answers that
//! stand in the network's place, and says what is wrong with it. The workers, the sandbox, the
//! egress and the registry are the real ones, in a temporary home that is gone afterwards.
//!
//! **Invariant:** it never touches the operator's home, and no check of it goes to the network.

pub mod checks;
pub mod fixture;
pub mod record;
mod scene;
mod script;
pub mod scrub;
mod trouble;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::config::{Config, Home};
use crate::credential::{CookieAttributes, Jar, Key, Millis, Secret, now};
use crate::daemon::{self, Host, HostOptions, OpenError};
use crate::egress::redact::Redactor;
use crate::egress::{Exchange, Seen, redact_text};
use crate::limits;
use crate::protocol::{
    Answer, Call, Context, Evidence, HttpError, HttpResponse, KeyState, LogLevel, Outcome, Reason, Verdict,
};
use crate::provider::{Location, Manifest, Resolved};
use crate::registry::{ActiveProvider, PluginState, PluginStatus, RegistryError, manifest};
use crate::rotation::asking::{AskError, Asking};
use crate::rotation::{decide, verdict};
use fixture::{Fixture, Given, Which, did_you_mean};
pub use scene::{Answering, Asked, Hop, Made, Service};
use scene::{SCENE, Scene, Watch};

/// What a call of the kit is about; a name that stands for no account.
const CREDENTIAL: &str = "kit";

#[derive(Debug, thiserror::Error)]
pub enum KitError {
    #[error("no temporary folder can be made; hint: TMPDIR names where")]
    Folder(#[source] std::io::Error),
    #[error("{} can't be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the operator of a daemon would read of this file.
    #[error("{0}")]
    Refused(String),
    /// The case doesn't fit the provider.
    #[error("{0}")]
    Case(String),
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The binary that workers are started from; None: this one.
    pub executable: Option<PathBuf>,
}

/// A plugin that was taken as a daemon takes it, ready to be asked.
#[derive(Debug)]
pub struct Kit {
    host: Host,
    provider: Arc<ActiveProvider>,
    status: PluginStatus,
    file: PathBuf,
    /// The home, gone with the value.
    _folder: TempDir,
}

/// One call to come.
#[derive(Debug, Clone)]
pub struct Case {
    pub call: Which,
    pub settings: Vec<(String, String)>,
    /// Hosts that may resolve to private addresses.
    pub private_hosts: Vec<String>,
    pub keys: Vec<Given>,
    /// None: the present moment.
    pub now: Option<Millis>,
}

/// What a provider answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Verdict(Verdict),
    Outcome(Outcome),
}

/// A key that has a value it had not when the call began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    pub key: String,
    pub secret: Secret,
    pub expires: Option<Millis>,
}

/// What a call used of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Redirects included.
    pub requests: u32,
    /// Requests, reveals and log lines.
    pub host_calls: u32,
    pub log_bytes: usize,
    /// Of the longest answer.
    pub answer_bytes: usize,
    /// Of the plugin's own work.
    pub cpu: Duration,
    pub memory_bytes: u64,
    /// From the call's beginning to its end.
    pub wall: Duration,
}

/// A text of the plugin that shows what it must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// Where: a log line, a message.
    pub place: String,
    /// What: the value or the fingerprint of which key.
    pub what: String,
}

/// How a call went.
#[derive(Debug)]
pub struct Run {
    /// The plugin's own word.
    pub said: Result<Said, AskError>,
    /// What the host would make of it, by what it saw of the service.
    pub judged: Option<Said>,
    /// Each request of the plugin, with what became of it.
    pub asked: Vec<Asked>,
    pub captured: Vec<Fresh>,
    /// The credential's keys after the call.
    pub jar: Jar,
    /// As the plugin wrote it: it may hold what it must not.
    pub log: Vec<(LogLevel, String)>,
    pub revealed: Vec<String>,
    pub leaks: Vec<Leak>,
    pub seen: Seen,
    pub used: Used,
    /// Knows every secret of the call, for whoever shows anything of it.
    pub redactor: Redactor,
}

impl Kit {
    /// Takes a plugin file as a daemon would that has no other.
    ///
    /// # Errors
    /// `Refused` where a daemon would refuse it.
    pub async fn open(file: &Path, options: Options) -> Result<Self, KitError> {
        let source = |source| KitError::File { path: file.to_owned(), source };
        std::fs::metadata(file).map_err(source)?;
        let file = std::path::absolute(file).map_err(source)?;
        let folder = tempfile::Builder::new().prefix("keywheel-kit-").tempdir().map_err(KitError::Folder)?;
        let home = Home::locate(Some(folder.path().to_owned())).map_err(OpenError::Config)?;
        daemon::make_home(&home)?;
        let host_options = HostOptions::default();
        let executable = options.executable.unwrap_or(host_options.executable);
        let host_options = HostOptions { executable, between: Some(scene::between()) };
        let host = Host::open(home, Config::default(), host_options).await?;
        match Self::take(&host, &file).await {
            Ok((status, provider)) => Ok(Self { host, provider, status, file, _folder: folder }),
            Err(error) => {
                host.close().await;
                Err(error)
            }
        }
    }

    async fn take(host: &Host, file: &Path) -> Result<(PluginStatus, Arc<ActiveProvider>), KitError> {
        let refused = |error: RegistryError| KitError::Refused(error.to_string());
        let status = host.registry.install(file).await.map_err(refused)?;
        let reason = || status.reason.clone().unwrap_or_else(|| "it isn't taken".into());
        let service = match (&status.service, status.state) {
            (Some(service), PluginState::Active) => service.clone(),
            _ => return Err(KitError::Refused(reason())),
        };
        // What it asks to see it gets: whether that is wise is for the operator to judge.
        let wish = host.registry.wish(&service).await.map_err(refused)?;
        if wish.needs_approval {
            host.registry.approve(&service, &wish.to.digest, wish.to.public_key()).await.map_err(refused)?;
        }
        let provider = host.rotation.providers.get(&service).ok_or_else(|| KitError::Refused(reason()))?;
        Ok((status, provider))
    }

    pub fn manifest(&self) -> &Manifest {
        &self.provider.manifest
    }

    pub fn digest(&self) -> &str {
        &self.provider.digest
    }

    /// As `keywheel plugin check` shows it.
    pub fn status(&self) -> &PluginStatus {
        &self.status
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The interfaces of WASI that it imports.
    pub fn wasi_imports(&self) -> Vec<String> {
        let all = self.host.registry.imports(self.digest()).unwrap_or_default();
        all.into_iter().filter(|name| name.starts_with("wasi:")).collect()
    }

    /// How the file describes itself when it is asked once more.
    ///
    /// # Errors
    /// Where it doesn't any more.
    pub async fn describe(&self) -> Result<Manifest, KitError> {
        let described = self.host.registry.describe(&self.file).await;
        described.map_err(|error| KitError::Refused(error.to_string()))
    }

    pub async fn close(self) {
        self.host.close().await;
    }

    /// What a case comes to: the settings filled in.
    ///
    /// # Errors
    /// Where it doesn't fit the provider.
    pub fn resolve(&self, case: &Case) -> Result<Arc<Resolved>, KitError> {
        let resolved = manifest::resolve(self.manifest(), &case.settings, &case.private_hosts)
            .map_err(|error| KitError::Case(error.to_string()))?;
        let known = || resolved.keys.iter().map(|spec| spec.name.as_str());
        for given in &case.keys {
            if !known().any(|name| name == given.name) {
                return Err(KitError::Case(format!(
                    "key `{}` is not in the key mapping; known: {}{}",
                    given.name,
                    known().collect::<Vec<_>>().join(", "),
                    did_you_mean(&given.name, known())
                )));
            }
        }
        if let Which::Rotate(named) = &case.call {
            let known = || resolved.methods.iter().map(|method| method.name.as_str());
            match named {
                None if resolved.methods.is_empty() => {
                    return Err(KitError::Case("the provider has no way to rotate".into()));
                }
                Some(name) if !known().any(|known| known == name) => {
                    return Err(KitError::Case(format!(
                        "method `{name}` is not in the manifest; known: {}{}",
                        known().collect::<Vec<_>>().join(", "),
                        did_you_mean(name, known())
                    )));
                }
                _ => {}
            }
        }
        Ok(Arc::new(resolved))
    }

    /// Runs one call in the plugin's worker, against a service that stands in the network's place.
    ///
    /// # Errors
    /// Where the case doesn't fit the provider; how the call itself went is in the `Run`.
    pub async fn run(&self, case: &Case, service: Service) -> Result<Run, KitError> {
        let resolved = self.resolve(case)?;
        let jar = self.jar(case, &resolved)?;
        let moment = case.now.unwrap_or_else(now);
        let call = call(case, &resolved, &jar, moment);
        let deadline = tokio::time::Instant::now() + limits::CALL_WALL;
        let mut exchange = Exchange::new(Arc::clone(&resolved), jar.clone(), deadline).at(moment);
        let scene = Arc::new(Scene::new(service, &jar));
        let mut watch = Watch {
            scene: Arc::clone(&scene),
            log: vec![],
            revealed: vec![],
            used: Default::default(),
            issued: vec![],
        };
        let began = Instant::now();
        let answered = SCENE.scope(Arc::clone(&scene), async {
            let engine = &self.host.rotation;
            let asking = Asking::begin(&engine.supervisor, &self.manifest().service, call).await?;
            asking.serve(&engine.egress, &mut exchange, &self.provider.reveal, &mut watch).await
        });
        let said = Box::pin(answered).await.and_then(|answer| match answer {
            Answer::Validated(verdict) => Ok(Said::Verdict(verdict)),
            Answer::Rotated(outcome) => Ok(Said::Outcome(outcome)),
            Answer::Described(_) => Err(AskError::Lost("it answered another call".into())),
        });
        let wall = began.elapsed();
        let deleted: Vec<String> = decide::lost_keys(&exchange.jar, &resolved.keys)
            .into_iter()
            .filter(|name| jar.get(name).is_some())
            .map(str::to_owned)
            .collect();
        let grounds = verdict::Grounds {
            seen: &exchange.seen,
            deleted: &deleted,
            keys: &resolved.keys,
            jar: &jar,
            now: moment,
        };
        let judged = said.as_ref().ok().map(|said| match said.clone() {
            Said::Verdict(claimed) => Said::Verdict(verdict::judge(claimed, grounds)),
            Said::Outcome(claimed) => Said::Outcome(verdict::judge_refusal(claimed, &exchange.seen)),
        });
        let Watch { log, revealed, issued, used: counted, .. } = watch;
        let captured = captured(&jar, &exchange.jar);
        let asked = scene.take();
        let leaks = leaks(&said, &log, &exchange, jar.keys.iter().chain(&issued));
        let hops = || asked.iter().flat_map(|asked| &asked.hops);
        let used = Used {
            requests: hops().count() as u32,
            host_calls: (asked.len() + revealed.len() + log.len()) as u32,
            log_bytes: log.iter().map(|(_, line)| line.len()).sum(),
            answer_bytes: hops()
                .filter_map(|hop| Some(hop.answer.as_ref().ok()?.body().len()))
                .max()
                .unwrap_or(0),
            cpu: Duration::from_micros(counted.cpu_us),
            memory_bytes: counted.memory_bytes,
            wall,
        };
        let (jar, seen, redactor) = exchange.end();
        Ok(Run { said, judged, asked, captured, jar, log, revealed, leaks, seen, used, redactor })
    }

    /// The keys of a case, with values that no other run has where none is given.
    fn jar(&self, case: &Case, resolved: &Resolved) -> Result<Jar, KitError> {
        let key = |given: &Given| {
            let secret = match &given.value {
                Some(value) => value.clone(),
                None => made_up()?,
            };
            let spec = resolved.keys.iter().find(|spec| spec.name == given.name);
            let cookie = match spec.map(|spec| &spec.location) {
                Some(Location::Cookie(location)) => {
                    Some(CookieAttributes::narrowest(location, &resolved.origins))
                }
                _ => None,
            };
            Ok(Key {
                name: given.name.clone(),
                fingerprint: self.host.vault.fingerprint(&secret),
                secret,
                expires: given.expires,
                cookie,
            })
        };
        Ok(Jar { keys: case.keys.iter().map(key).collect::<Result<_, KitError>>()? })
    }
}

impl Case {
    pub fn of(fixture: &Fixture) -> Self {
        Self {
            call: fixture.call.clone(),
            settings: fixture.settings.clone(),
            private_hosts: Vec::new(),
            keys: fixture.keys.clone(),
            now: Some(fixture.now),
        }
    }
}

impl Run {
    /// The keys after the call, for the next case of the same credential.
    pub fn keys(&self) -> Vec<Given> {
        let given = |key: &Key| Given {
            name: key.name.clone(),
            value: Some(key.secret.clone()),
            expires: key.expires,
        };
        self.jar.keys.iter().map(given).collect()
    }

    /// Every request that came to the service, in order.
    pub fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.asked.iter().flat_map(|asked| &asked.hops)
    }
}

impl Said {
    /// `valid`, `rotated` and so on.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Verdict(verdict) => verdict.as_str(),
            Self::Outcome(Outcome::Rotated(_)) => "rotated",
            Self::Outcome(Outcome::Unchanged(_)) => "unchanged",
            Self::Outcome(Outcome::Invalid(_)) => "invalid",
            Self::Outcome(Outcome::Unknown(_)) => "unknown",
            Self::Outcome(Outcome::NeedsHuman(_)) => "needs-human",
        }
    }

    pub const fn evidence(&self) -> Option<&Evidence> {
        match self {
            Self::Verdict(Verdict::Valid(evidence))
            | Self::Outcome(Outcome::Rotated(evidence) | Outcome::Unchanged(evidence)) => Some(evidence),
            _ => None,
        }
    }

    pub const fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Verdict(Verdict::Invalid(why) | Verdict::Unknown(why) | Verdict::NeedsHuman(why))
            | Self::Outcome(Outcome::Invalid(why) | Outcome::Unknown(why) | Outcome::NeedsHuman(why)) => {
                Some(why)
            }
            _ => None,
        }
    }

    /// What it says in words beside its verdict.
    pub fn message(&self) -> Option<&str> {
        match self.reason() {
            Some(why) => Some(&why.message),
            None => self.evidence().and_then(|evidence| evidence.note.as_deref()),
        }
    }
}

fn call(case: &Case, resolved: &Resolved, jar: &Jar, now: Millis) -> Call {
    let mut keys: Vec<KeyState> = resolved
        .keys
        .iter()
        .map(|spec| {
            let key = jar.get(&spec.name);
            KeyState {
                name: spec.name.clone(),
                present: key.is_some(),
                fingerprint: key.map(|key| key.fingerprint.clone()),
                expires: key.and_then(|key| key.expires),
            }
        })
        .collect();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    let context = Context {
        credential_id: CREDENTIAL.to_owned(),
        profile_id: None,
        settings: resolved.settings.clone(),
        keys,
        attempt: 1,
        now,
        extras: Vec::new(),
    };
    match &case.call {
        Which::Validate => Call::Validate(context),
        Which::Rotate(named) => {
            let first = || resolved.methods.first().map(|method| method.name.clone());
            Call::Rotate(context, named.clone().or_else(first).unwrap_or_default())
        }
    }
}

/// A secret that no service issued and no other run has.
fn made_up() -> Result<Secret, KitError> {
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes)
        .map_err(|error| KitError::Case(format!("the system gives no random bytes: {error}")))?;
    Ok(Secret::new(hex::encode(bytes)))
}

fn captured(before: &Jar, after: &Jar) -> Vec<Fresh> {
    let fresh = |key: &&Key| before.get(&key.name).is_none_or(|old| old.secret != key.secret);
    let told = |key: &Key| Fresh { key: key.name.clone(), secret: key.secret.clone(), expires: key.expires };
    after.keys.iter().filter(fresh).map(told).collect()
}

/// Every text that a plugin wrote, with where it stands.
fn texts<'t>(said: &'t Result<Said, AskError>, log: &'t [(LogLevel, String)]) -> Vec<(String, &'t str)> {
    let mut texts: Vec<(String, &str)> = log
        .iter()
        .enumerate()
        .map(|(index, (_, line))| (format!("log line {}", index + 1), line.as_str()))
        .collect();
    let extras = |texts: &mut Vec<(String, &'t str)>, extras: &'t [(String, String)]| {
        for (name, value) in extras {
            texts.push((format!("the extra `{name}`"), value));
            texts.push(("an extra's name".to_owned(), name));
        }
    };
    match said {
        Ok(said) => {
            if let Some(why) = said.reason() {
                texts.push(("the message".to_owned(), &why.message));
                extras(&mut texts, &why.extras);
            }
            if let Some(evidence) = said.evidence() {
                texts.extend(evidence.note.iter().map(|note| ("the note".to_owned(), note.as_str())));
                texts.extend(evidence.identity.iter().map(|who| ("the identity".to_owned(), who.as_str())));
                extras(&mut texts, &evidence.extras);
            }
        }
        Err(AskError::Fault(crate::protocol::Fault::Guest(why) | crate::protocol::Fault::Trap(why))) => {
            texts.push(("the failure".to_owned(), why));
        }
        Err(_) => {}
    }
    texts
}

fn leaks<'k>(
    said: &Result<Said, AskError>,
    log: &[(LogLevel, String)],
    exchange: &Exchange,
    keys: impl Iterator<Item = &'k Key>,
) -> Vec<Leak> {
    let keys: Vec<&Key> = keys.collect();
    let mut leaks = Vec::new();
    for (place, text) in texts(said, log) {
        let whose = |key: &&&Key| Redactor::new([key.secret.expose()]).hides(text);
        if let Some(key) = keys.iter().find(whose) {
            leaks.push(Leak { place, what: format!("the value of key `{}`", key.name) });
        } else if matches!(redact_text(exchange, text), std::borrow::Cow::Owned(_)) {
            leaks.push(Leak { place, what: "what was computed from a secret".to_owned() });
        } else if let Some(key) = keys.iter().find(|key| text.contains(&key.fingerprint)) {
            leaks.push(Leak { place, what: format!("the fingerprint of key `{}`", key.name) });
        }
    }
    leaks
}

/// What came of a request, as the plugin heard it.
pub type Heard = Result<HttpResponse, HttpError>;
