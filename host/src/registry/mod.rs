//! The plugin folder against what runs. A rescan takes no input: it looks at the folder, the
//! database and what is active, and brings them together; whoever wakes it only says "look
//! again". It compiles and describes plugins through the supervisor and never reads their
//! code itself.

pub mod cache;
pub mod manifest;
pub mod permissions;
mod watcher;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Home;
use crate::db::DbError;
use crate::db::queries::{ProviderRow, ReadError, Reader};
use crate::db::writer::{PendingProvider, ProviderUpdate, WriteError, Writer};
use crate::limits;
use crate::protocol::PoolShape;
use crate::provider::Manifest;
use crate::supervisor::{CallError, Code, Supervisor};
use crate::vault::Vault;
use cache::{Cache, CacheError, is_plugin_name};
use permissions::{Permissions, difference};
pub use watcher::watch;

/// Plugins compiled at once: each compiler may take 2 GiB and a core.
const AT_ONCE: usize = 2;

/// A file changed this recently may still be copied; its error is not shown yet.
pub const SETTLING: Duration = Duration::from_millis(500);

/// File systems stamp by a clock that ticks every 4 to 10 ms. A file read within the tick of its
/// last change may change once more without its stamp showing it.
const TICK: Duration = Duration::from_millis(20);

/// A provider that may be asked: what the rotation engine knows of a plugin.
#[derive(Debug)]
pub struct ActiveProvider {
    pub manifest: Manifest,
    pub digest: String,
    /// Keys whose bytes the operator lets the plugin see.
    pub reveal: Vec<String>,
    /// The operator's cadence for the whole service, in seconds.
    pub validate_interval: Option<u32>,
}

/// The active providers, by service.
#[derive(Debug, Default)]
pub struct Providers(RwLock<BTreeMap<String, Arc<ActiveProvider>>>);

impl Providers {
    pub fn get(&self, service: &str) -> Option<Arc<ActiveProvider>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }

    pub fn services(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn set(&self, service: &str, provider: ActiveProvider) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(service.to_owned(), Arc::new(provider));
    }

    fn remove(&self, service: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(service);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{path} can't be read")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Open(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("no plugin for `{0}`; hint: `keywheel plugin list` shows what there is")]
    NoSuchService(String),
    #[error("{0}")]
    Refused(String),
}

/// Where a plugin file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginState {
    /// It serves its service.
    Active,
    /// It asks for more than was granted; the approved one keeps working.
    PendingApproval,
    /// Another file serves the same service.
    Conflict,
    /// It is no usable plugin; `reason` says why.
    Refused,
}

/// One file of the folder, as `plugin list` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginStatus {
    pub file: String,
    pub state: PluginState,
    pub service: Option<String>,
    pub title: Option<String>,
    pub version: Option<String>,
    pub digest: Option<String>,
    pub reason: Option<String>,
    /// What it may do, or what a pending one asks for beyond that, a line each.
    pub permissions: Vec<String>,
}

/// What a plugin file turned out to be.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub digest: String,
    pub manifest: Manifest,
    shape: PoolShape,
}

/// Size, times and identity of a file: while these stay, its bytes are not read again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// `cp -p` and `touch` set the other time to what they like; this one only the kernel sets.
    changed: Option<SystemTime>,
    inode: u64,
    device: u64,
}

#[derive(Debug, Clone)]
struct Seen {
    stamp: Stamp,
    /// Read so soon after its last change that the stamp may be true of other bytes.
    unsure: bool,
    result: Result<Candidate, Unfit>,
}

/// Why a file is not taken.
#[derive(Debug, Clone)]
struct Unfit {
    why: String,
    /// It is the machine's fault and not the file's, a full disk for example: the next scan
    /// tries again, though the file stays as it is.
    passing: bool,
}

impl Unfit {
    fn passing(why: String) -> Self {
        Self { why, passing: true }
    }
}

impl From<String> for Unfit {
    fn from(why: String) -> Self {
        Self { why, passing: false }
    }
}

impl From<CacheError> for Unfit {
    fn from(error: CacheError) -> Self {
        match &error {
            CacheError::Io(source) => Self::passing(format!("{error}: {source}")),
            CacheError::Refused(_) | CacheError::Compiler(_) => error.to_string().into(),
        }
    }
}

#[derive(Debug)]
pub struct Registry {
    home: Home,
    cache: Cache,
    supervisor: Supervisor,
    vault: Arc<Vault>,
    writer: Writer,
    providers: Arc<Providers>,
    /// Held during a rescan: two at once would compile everything twice.
    seen: tokio::sync::Mutex<HashMap<PathBuf, Seen>>,
    /// One of them is held while a digest is stored and compiled, so that files with the same
    /// bytes don't do so over each other. Chosen by the digest's first digit.
    looking: [tokio::sync::Mutex<()>; 16],
    /// What each service ran before what it runs now: kept, for it is the likeliest to come back.
    previous: Mutex<HashMap<String, String>>,
    status: Mutex<Vec<PluginStatus>>,
    /// Woken whenever the active set changed.
    changed: tokio::sync::watch::Sender<u64>,
}

/// What granted permissions look like in the provider's row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Grants {
    /// What the accepted manifest asked for.
    accepted: Permissions,
    /// The keys the operator lets the plugin see.
    reveal: Vec<String>,
}

impl Registry {
    pub fn new(
        home: &Home,
        supervisor: Supervisor,
        vault: Arc<Vault>,
        writer: Writer,
        providers: Arc<Providers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            home: home.clone(),
            cache: Cache::new(home),
            supervisor,
            vault,
            writer,
            providers,
            seen: tokio::sync::Mutex::default(),
            looking: Default::default(),
            previous: Mutex::default(),
            status: Mutex::default(),
            changed: tokio::sync::watch::channel(0).0,
        })
    }

    pub fn status(&self) -> Vec<PluginStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn reader(&self) -> Result<Reader, RegistryError> {
        Ok(Reader::open(&self.home.database())?)
    }

    /// Compares the folder with what is active. Returns whether a file looks half-written, so
    /// that another look soon is worth it.
    ///
    /// # Errors
    /// Where the folder or the database can't be used; what is active stays so.
    pub async fn rescan(&self) -> Result<bool, RegistryError> {
        let mut seen = self.seen.lock().await;
        let now = SystemTime::now();
        let files = list(&self.home.plugins())?;
        let unread: Vec<_> = files
            .iter()
            .filter(|(path, stamp)| {
                let known = seen.get(*path).filter(|old| old.stamp == **stamp);
                known.is_none_or(|old| old.unsure || old.result.as_ref().is_err_and(|unfit| unfit.passing))
            })
            .map(|(path, stamp)| (path.clone(), stamp.clone()))
            .collect();
        let looked: Vec<_> = stream::iter(unread)
            .map(|(path, stamp)| async move {
                let unsure = stamp.is_within(TICK, now);
                let result = self.look(&path, &stamp).await;
                (path, Seen { stamp, unsure, result })
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        seen.retain(|path, _| files.contains_key(path));
        seen.extend(looked);

        let now = SystemTime::now();
        let settling = seen.values().any(|file| file.result.is_err() && file.stamp.is_within(SETTLING, now));
        let rows: BTreeMap<String, ProviderRow> =
            self.reader()?.providers()?.into_iter().map(|row| (row.service.clone(), row)).collect();
        let mut claimed: BTreeMap<String, Vec<(PathBuf, Candidate)>> = BTreeMap::new();
        let mut status = Vec::new();
        let mut paths: Vec<_> = seen.iter().collect();
        paths.sort_by(|a, b| a.0.cmp(b.0));
        for (path, file) in paths {
            match &file.result {
                Ok(candidate) => {
                    let service = candidate.manifest.service.clone();
                    claimed.entry(service).or_default().push((path.clone(), candidate.clone()));
                }
                Err(unfit) if !file.stamp.is_within(SETTLING, now) => {
                    status.push(refused(path, &unfit.why));
                }
                Err(_) => {}
            }
        }
        let mut served = HashSet::new();
        let mut changed = false;
        for (service, row) in &rows {
            if let Some(update) = self.bad_update(service, row, &seen, &rows, &claimed)? {
                served.insert(service.clone());
                changed |= self.fall_back(row, &update, &mut claimed, &mut status).await?;
            }
        }
        served.extend(claimed.keys().cloned());
        for (service, candidates) in claimed {
            let file = candidates.first().map(|(path, _)| path.clone()).unwrap_or_default();
            match self.settle(&service, candidates, rows.get(&service), &mut status).await {
                Ok(activated) => changed |= activated,
                // One plugin's trouble is not the others'.
                Err(RegistryError::Refused(why)) => {
                    status.retain(|known| known.service.as_deref() != Some(service.as_str()));
                    status.push(refused(&file, &why));
                }
                Err(error) => return Err(error),
            }
        }
        for row in rows.values().filter(|row| !served.contains(&row.service)) {
            // Its file is gone, and with it the plugin: what comes later under that name is no
            // bad update.
            self.cache.forget_file(&row.plugin_digest);
        }
        for service in self.providers.services() {
            if !served.contains(&service) {
                tracing::info!(service, "plugin removed");
                self.supervisor.remove(&service);
                self.providers.remove(&service);
                self.previous.lock().unwrap_or_else(PoisonError::into_inner).remove(&service);
                changed = true;
            }
        }
        status.sort_by(|a, b| a.file.cmp(&b.file));
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        if changed {
            self.changed.send_modify(|count| *count += 1);
            self.prune(&rows);
        }
        Ok(settling)
    }

    /// Whether the file that a service is served by was replaced by one that can't serve it,
    /// while no other file brings the approved version.
    fn bad_update(
        &self,
        service: &str,
        row: &ProviderRow,
        seen: &HashMap<PathBuf, Seen>,
        rows: &BTreeMap<String, ProviderRow>,
        claimed: &BTreeMap<String, Vec<(PathBuf, Candidate)>>,
    ) -> Result<Option<BadUpdate>, RegistryError> {
        let candidates = claimed.get(service).map(Vec::as_slice).unwrap_or_default();
        if candidates.iter().any(|(_, found)| found.digest == row.plugin_digest) {
            return Ok(None);
        }
        let Some(path) = self.cache.file_of(&row.plugin_digest).map(|name| self.home.plugins().join(name))
        else {
            return Ok(None);
        };
        let Some(file) = seen.get(&path) else { return Ok(None) };
        let why = match &file.result {
            // Half-written as a rule; the last good version is as good as it was.
            Err(unfit) => unfit.why.clone(),
            // A newer version, which is judged like any other.
            Ok(found) if found.manifest.service == service => return Ok(None),
            Ok(found) => {
                let has_credentials = |service: &str| -> Result<bool, RegistryError> {
                    Ok(!self.reader()?.credentials(Some(service))?.is_empty())
                };
                let other = &found.manifest.service;
                // An approved plugin that was moved here must not lose its own service for it.
                let moved = rows.get(other).is_some_and(|row| row.plugin_digest == found.digest)
                    && claimed.get(other).is_some_and(|all| {
                        all.iter().filter(|(_, same)| same.digest == found.digest).count() == 1
                    });
                if !has_credentials(service)? || (moved && has_credentials(other)?) {
                    return Ok(None);
                }
                format!(
                    "served `{service}`, which has credentials, and is for `{other}` now; hint: give it a file name of its own"
                )
            }
        };
        let settling = file.result.is_err() && file.stamp.is_within(SETTLING, SystemTime::now());
        Ok(Some(BadUpdate { path, why, settling }))
    }

    /// Keeps a service on its approved version, from the store.
    async fn fall_back(
        &self,
        row: &ProviderRow,
        update: &BadUpdate,
        claimed: &mut BTreeMap<String, Vec<(PathBuf, Candidate)>>,
        status: &mut Vec<PluginStatus>,
    ) -> Result<bool, RegistryError> {
        let service = &row.service;
        let name = name_of(&update.path);
        for (other, found) in claimed.remove(service).unwrap_or_default() {
            status.push(conflict(service, &name, &other, &found));
        }
        for candidates in claimed.values_mut() {
            candidates.retain(|(path, _)| *path != update.path);
        }
        claimed.retain(|_, candidates| !candidates.is_empty());
        if row.pending.is_some() {
            // The file that waited for approval is no more; what is approved must be there.
            self.writer.set_provider_pending(service, None).await?;
        }
        let changed = self.keep_approved(service, row, &grants_of(row)).await?;
        let running = self.providers.get(service).is_some_and(|active| active.digest == row.plugin_digest);
        let goes_on = if running {
            format!(
                "`{service}` goes on with its approved version {}; hint: put a working plugin in place of {name}, or delete it to stop serving `{service}`",
                row.version
            )
        } else {
            format!(
                "the approved version {} of `{service}` can't be run either; hint: put it in place of {name}",
                row.version
            )
        };
        status.retain(|known| known.file != name);
        status.push(PluginStatus {
            service: Some(service.clone()),
            ..if running && update.settling {
                PluginStatus {
                    state: PluginState::Active,
                    title: Some(row.manifest.title.clone()),
                    version: Some(row.version.clone()),
                    digest: Some(row.plugin_digest.clone()),
                    ..refused(&update.path, &format!("the file is being written; {goes_on}"))
                }
            } else {
                refused(&update.path, &format!("{}; {goes_on}", update.why))
            }
        });
        Ok(changed)
    }

    /// One service: which of its files serves it, and what that one may do.
    async fn settle(
        &self,
        service: &str,
        mut candidates: Vec<(PathBuf, Candidate)>,
        row: Option<&ProviderRow>,
        status: &mut Vec<PluginStatus>,
    ) -> Result<bool, RegistryError> {
        // The approved one stays, or else what replaced its file; among newcomers the first by
        // name, so that a rescan decides the same again.
        let chosen = row
            .and_then(|row| {
                candidates.iter().position(|(_, found)| found.digest == row.plugin_digest).or_else(|| {
                    let file = self.cache.file_of(&row.plugin_digest)?;
                    candidates.iter().position(|(path, _)| path.file_name() == Some(file.as_os_str()))
                })
            })
            .unwrap_or(0);
        let (path, candidate) = candidates.remove(chosen);
        for (other, found) in candidates {
            status.push(conflict(service, &name_of(&path), &other, &found));
        }
        let asked = Permissions::of(&candidate.manifest);
        let granted = row.map(grants_of);
        let has_credentials = match row {
            Some(_) => !self.reader()?.credentials(Some(service))?.is_empty(),
            None => false,
        };
        let same = row.is_some_and(|row| row.plugin_digest == candidate.digest);
        if let (Some(row), Some(granted), false, true) = (row, &granted, same, has_credentials) {
            let difference = difference(&granted.accepted, &asked);
            if difference.is_wider() {
                status.push(PluginStatus {
                    reason: Some(format!(
                        "asks for more than was granted; hint: `keywheel plugin approve {service}`"
                    )),
                    state: PluginState::PendingApproval,
                    permissions: difference.lines(),
                    ..described(&path, &candidate)
                });
                if row.pending.as_ref().is_none_or(|pending| pending.plugin_digest != candidate.digest) {
                    let pending = PendingProvider {
                        plugin_digest: candidate.digest.clone(),
                        manifest: candidate.manifest.clone(),
                    };
                    self.writer.set_provider_pending(service, Some(pending)).await?;
                }
                self.remember_file(&row.plugin_digest, &path);
                return self.keep_approved(service, row, granted).await;
            }
        }
        status.push(PluginStatus { permissions: asked.lines(), ..described(&path, &candidate) });
        let reveal = granted
            .map(|granted| granted.reveal.into_iter().filter(|key| asked.reveal.contains(key)).collect())
            .unwrap_or_default();
        let grants = Grants { accepted: asked, reveal };
        if !same || row.is_some_and(|row| row.pending.is_some() || row.state != "active") {
            self.writer.put_provider(update(&candidate, &grants)?).await?;
        }
        self.remember_file(&candidate.digest, &path);
        self.activate(service, &candidate, grants.reveal, row).await
    }

    /// Notes which file a service is served by, for the day a bad one takes its place.
    fn remember_file(&self, digest: &str, path: &Path) {
        let Some(name) = path.file_name() else { return };
        if let Err(error) = self.cache.remember_file(digest, name) {
            tracing::warn!(%error, file = %path.display(), "not noted: after a restart a bad update of it ends its service");
        }
    }

    /// The approved version runs from the store while a newer file waits or can't serve.
    async fn keep_approved(
        &self,
        service: &str,
        row: &ProviderRow,
        granted: &Grants,
    ) -> Result<bool, RegistryError> {
        let active = self.providers.get(service);
        if active.is_some_and(|active| active.digest == row.plugin_digest && active.reveal == granted.reveal)
        {
            return Ok(false);
        }
        match self.inspect(&row.plugin_digest).await {
            Ok(candidate) => self.activate(service, &candidate, granted.reveal.clone(), Some(row)).await,
            Err(Unfit { why, .. }) => {
                tracing::error!(service, why, "the approved plugin can't be run from the store");
                Ok(false)
            }
        }
    }

    async fn activate(
        &self,
        service: &str,
        candidate: &Candidate,
        reveal: Vec<String>,
        row: Option<&ProviderRow>,
    ) -> Result<bool, RegistryError> {
        let active = self.providers.get(service);
        if active.as_ref().is_some_and(|now| now.digest == candidate.digest && now.reveal == reveal) {
            return Ok(false);
        }
        let code = self
            .cache
            .load(&candidate.digest, &self.vault, self.supervisor.spawner(), self.supervisor.require())
            .await
            .map_err(|error| RegistryError::Refused(error.to_string()))?;
        self.supervisor.set(
            service,
            Code { digest: candidate.digest.clone(), file: code, shape: Some(candidate.shape) },
        );
        self.providers.set(
            service,
            ActiveProvider {
                manifest: candidate.manifest.clone(),
                digest: candidate.digest.clone(),
                reveal,
                validate_interval: row.and_then(|row| row.operator_validate_interval_seconds),
            },
        );
        if let Some(old) = active.filter(|old| old.digest != candidate.digest) {
            let mut previous = self.previous.lock().unwrap_or_else(PoisonError::into_inner);
            previous.insert(service.to_owned(), old.digest.clone());
        }
        tracing::info!(
            service,
            digest = &candidate.digest[..12],
            version = candidate.manifest.version,
            "plugin active"
        );
        Ok(true)
    }

    /// Reads a file once: what is hashed here is what will run.
    async fn look(&self, path: &Path, stamp: &Stamp) -> Result<Candidate, Unfit> {
        if stamp.bytes > limits::PLUGIN_BYTES {
            return Err(format!("{} bytes, at most {} are allowed", stamp.bytes, limits::PLUGIN_BYTES).into());
        }
        let bytes = read_capped(path).map_err(|error| Unfit::passing(format!("can't be read: {error}")))?;
        let digest = hex::encode(Sha256::digest(&bytes));
        let stripe = digest.chars().next().and_then(|digit| digit.to_digit(16)).unwrap_or(0);
        let _alone = self.looking[stripe as usize].lock().await;
        let known = self.cache.stored(&digest).exists();
        self.cache
            .keep(&digest, &bytes)
            .map_err(|error| Unfit::passing(format!("can't be stored: {error}")))?;
        drop(bytes);
        let found = self.inspect(&digest).await;
        if found.is_err() && !known {
            // Nothing refers to it, and a folder of broken files must not fill the store.
            let _ = fs::remove_file(self.cache.stored(&digest));
        }
        found
    }

    /// Compiles and describes a plugin of the store.
    async fn inspect(&self, digest: &str) -> Result<Candidate, Unfit> {
        let code = self
            .cache
            .load(digest, &self.vault, self.supervisor.spawner(), self.supervisor.require())
            .await?;
        let described = self.supervisor.describe(code).await;
        let (manifest, shape) = described.map_err(|error| match error {
            // In words about the plugin, which has no worker yet.
            CallError::Unfit(why) => why,
            other => other.to_string(),
        })?;
        manifest::check(&manifest).map_err(|error| error.to_string())?;
        Ok(Candidate { digest: digest.to_owned(), manifest, shape })
    }

    /// What a file would be allowed, without installing it.
    ///
    /// # Errors
    /// Why it is no usable plugin.
    pub async fn check(&self, path: &Path) -> Result<PluginStatus, RegistryError> {
        let stamp =
            stamp_of(path).map_err(|source| RegistryError::Folder { path: path.to_owned(), source })?;
        // A scan meanwhile would tidy away what is being looked at.
        let _no_scan = self.seen.lock().await;
        let candidate = self.look(path, &stamp).await.map_err(|unfit| RegistryError::Refused(unfit.why))?;
        let row = self.reader()?.provider(&candidate.manifest.service)?;
        let asked = Permissions::of(&candidate.manifest);
        let mut lines = asked.lines();
        if let Some(row) = row.filter(|row| row.plugin_digest != candidate.digest) {
            let difference = difference(&grants_of(&row).accepted, &asked);
            lines.push(format!("against version {} in use:", row.version));
            let changes = difference.lines();
            if changes.is_empty() {
                lines.push("  asks for the same".into());
            }
            lines.extend(changes.into_iter().map(|line| format!("  {line}")));
        }
        Ok(PluginStatus { permissions: lines, ..described(path, &candidate) })
    }

    /// Grants what the plugin asks for: its pending version, or the keys it wants to see.
    ///
    /// # Errors
    /// Where there is no such service or nothing to approve.
    pub async fn approve(&self, service: &str) -> Result<Vec<String>, RegistryError> {
        let row = self
            .reader()?
            .provider(service)?
            .ok_or_else(|| RegistryError::NoSuchService(service.to_owned()))?;
        let granted = grants_of(&row);
        self.supervisor.unpark(service);
        let (manifest, digest) = match &row.pending {
            Some(pending) => (pending.manifest.clone(), pending.plugin_digest.clone()),
            None => (row.manifest.clone(), row.plugin_digest.clone()),
        };
        let asked = Permissions::of(&manifest);
        let before = Permissions { reveal: granted.reveal, ..granted.accepted };
        let lines = difference(&before, &asked).lines();
        let grants = Grants { reveal: asked.reveal.clone(), accepted: asked };
        self.writer
            .put_provider(ProviderUpdate {
                manifest,
                plugin_digest: digest,
                permissions_json: to_json(&grants)?,
                state: "active".into(),
                pending: None,
            })
            .await?;
        self.rescan().await?;
        Ok(lines)
    }

    /// Copies a plugin into the folder, whole or not at all.
    ///
    /// # Errors
    /// Why it is no usable plugin, or why it can't be copied.
    pub async fn install(&self, path: &Path) -> Result<PluginStatus, RegistryError> {
        let checked = self.check(path).await?;
        let service = checked.service.clone().unwrap_or_default();
        let bytes =
            read_capped(path).map_err(|source| RegistryError::Folder { path: path.to_owned(), source })?;
        let target =
            self.file_of(&service).unwrap_or_else(|| self.home.plugins().join(format!("{service}.wasm")));
        crate::config::write_atomically(&target, &bytes)
            .map_err(|source| RegistryError::Folder { path: target.clone(), source })?;
        self.rescan().await?;
        let name = name_of(&target);
        self.status()
            .into_iter()
            .find(|status| status.file == name)
            .ok_or_else(|| RegistryError::Refused(format!("{name} was changed while it was installed")))
    }

    /// Removes a service's file; its credentials and reports stay.
    ///
    /// # Errors
    /// Where no file serves it.
    pub async fn remove(&self, service: &str) -> Result<String, RegistryError> {
        let path = self.file_of(service).ok_or_else(|| RegistryError::NoSuchService(service.to_owned()))?;
        fs::remove_file(&path).map_err(|source| RegistryError::Folder { path: path.clone(), source })?;
        self.rescan().await?;
        Ok(name_of(&path))
    }

    fn file_of(&self, service: &str) -> Option<PathBuf> {
        let status = self.status();
        let of = |state| {
            status.iter().find(|status| status.service.as_deref() == Some(service) && status.state == state)
        };
        of(PluginState::Active)
            .or_else(|| of(PluginState::PendingApproval))
            // A bad update: what it replaced is still served.
            .or_else(|| of(PluginState::Refused))
            .and_then(|status| {
                // By what it is shown as, for a name may hold what can't be shown.
                let mut entries = fs::read_dir(self.home.plugins()).ok()?.flatten();
                entries.find(|entry| name_of(&entry.path()) == status.file).map(|entry| entry.path())
            })
    }

    fn prune(&self, rows: &BTreeMap<String, ProviderRow>) {
        let mut used: HashSet<String> = rows.values().map(|row| row.plugin_digest.clone()).collect();
        used.extend(
            rows.values().filter_map(|row| row.pending.as_ref()).map(|pending| pending.plugin_digest.clone()),
        );
        used.extend(self.status().into_iter().filter_map(|status| status.digest));
        used.extend(self.previous.lock().unwrap_or_else(PoisonError::into_inner).values().cloned());
        self.cache.prune(|digest| used.contains(digest));
    }
}

/// The file of a service whose new content can't serve it.
struct BadUpdate {
    path: PathBuf,
    why: String,
    /// It may still be copied.
    settling: bool,
}

fn update(candidate: &Candidate, grants: &Grants) -> Result<ProviderUpdate, RegistryError> {
    Ok(ProviderUpdate {
        manifest: candidate.manifest.clone(),
        plugin_digest: candidate.digest.clone(),
        permissions_json: to_json(grants)?,
        state: "active".into(),
        pending: None,
    })
}

fn to_json(grants: &Grants) -> Result<String, RegistryError> {
    serde_json::to_string(grants).map_err(|error| RegistryError::Refused(error.to_string()))
}

/// A row whose grants can't be read grants nothing.
fn grants_of(row: &ProviderRow) -> Grants {
    serde_json::from_str(&row.permissions_json).unwrap_or_default()
}

/// A file's name as people see it: in one line, and without what a terminal would obey.
fn name_of(path: &Path) -> String {
    plain(&path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn plain(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut shown, c| {
        if c.is_control() {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        shown
    })
}

fn refused(path: &Path, why: &str) -> PluginStatus {
    PluginStatus {
        file: name_of(path),
        state: PluginState::Refused,
        service: None,
        title: None,
        version: None,
        digest: None,
        // A trap's text is the plugin's own.
        reason: Some(plain(why)),
        permissions: Vec::new(),
    }
}

/// Another file serves the service.
fn conflict(service: &str, by: &str, path: &Path, found: &Candidate) -> PluginStatus {
    PluginStatus {
        reason: Some(format!("`{service}` is served by {by}; hint: remove one of the two")),
        state: PluginState::Conflict,
        ..described(path, found)
    }
}

fn described(path: &Path, candidate: &Candidate) -> PluginStatus {
    PluginStatus {
        file: name_of(path),
        state: PluginState::Active,
        service: Some(candidate.manifest.service.clone()),
        title: Some(candidate.manifest.title.clone()),
        version: Some(candidate.manifest.version.clone()),
        digest: Some(candidate.digest.clone()),
        reason: None,
        permissions: Vec::new(),
    }
}

impl Stamp {
    /// Whether the file changed at most `span` before `now`.
    fn is_within(&self, span: Duration, now: SystemTime) -> bool {
        let young = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < span);
        // A file system without one of the times has the other.
        self.modified.is_some_and(young) || self.changed.is_some_and(young)
    }
}

fn stamp_of(path: &Path) -> std::io::Result<Stamp> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let changed = u64::try_from(found.ctime()).ok().zip(u32::try_from(found.ctime_nsec()).ok());
    Ok(Stamp {
        bytes: found.len(),
        modified: found.modified().ok(),
        changed: changed.map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)),
        inode: found.ino(),
        device: found.dev(),
    })
}

/// The plugin files of the folder. A link counts as what it points to: its bytes are hashed
/// like any other's, so a link that is turned elsewhere is a changed plugin.
fn list(folder: &Path) -> Result<HashMap<PathBuf, Stamp>, RegistryError> {
    let failed = |source| RegistryError::Folder { path: folder.to_owned(), source };
    let mut files = HashMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // A file that vanished meanwhile is looked at by the next scan, as absent.
        if is_plugin_name(&path)
            && let Ok(stamp) = stamp_of(&path)
        {
            files.insert(path, stamp);
        }
    }
    Ok(files)
}

/// Reads at most one byte more than allowed, whatever the file's size was a moment ago, and
/// never waits: a pipe may have taken the file's place since it was looked at.
fn read_capped(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    file.take(limits::PLUGIN_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::PLUGIN_BYTES {
        return Err(std::io::Error::other(format!("more than {} bytes", limits::PLUGIN_BYTES)));
    }
    Ok(bytes)
}
