//! The plugin folder against what runs. A rescan takes no input: it looks at the folder, the
//! database and what is active, and brings them together; whoever wakes it only says "look
//! again". It compiles and describes plugins through the supervisor and never reads their
//! code itself.
//!
//! Where several hosts share a store, the providers' rows are what all of them follow, with the
//! plugins' bytes beside them, and a folder only brings wishes (`inbox`).

pub mod cache;
mod inbox;
pub mod joined;
pub mod manifest;
pub mod permissions;
pub mod signature;
mod watcher;
mod words;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::catalogue::{self, Entry};
use crate::config::{Home, PluginPolicy};
use crate::db::queries::{ProviderRow, ReadError, Reader};
use crate::db::writer::{PendingProvider, ProviderUpdate, WriteError, Writer};
use crate::db::{Actor, AuditEntry, DbError, Signer, TrustedKey};
use crate::limits;
use crate::protocol::PoolShape;
use crate::provider::Manifest;
use crate::supervisor::{CallError, Code, Supervisor};
use crate::vault::Vault;
use cache::{Cache, CacheError, is_plugin_name};
use inbox::{Inbox, Letter, Standing};
use permissions::{Permissions, difference};
use signature::{SIGNATURE_BYTES, Signed};
pub use watcher::watch;
pub use words::{InUse, PluginState, PluginStatus, Signature, SignatureState, Version, Wish};
use words::{action, entry, name_of, refused};

/// Plugins compiled at once: each compiler may take 2 GiB and a core.
const AT_ONCE: usize = 2;

/// A file changed this recently may still be copied; its error is not shown yet.
pub const SETTLING: Duration = Duration::from_millis(500);

/// What a plugin says of why it is none: a few faults of a template, each with what to do.
const REFUSAL_CHARS: usize = 1_500;

/// It runs without time and chance, so this takes a hole in the sandbox or in us.
const DESCRIBES_ITSELF_OTHERWISE: &str = "describes itself otherwise than when it was accepted, and asks for more; hint: remove it and ask its author";

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

    /// The operator's cadence for a whole service, from the next attempt on.
    pub fn set_cadence(&self, service: &str, validate_interval: Option<u32>) {
        let mut providers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(provider) = providers.get_mut(service) {
            let ActiveProvider { manifest, digest, reveal, .. } = provider.as_ref();
            let (manifest, digest, reveal) = (manifest.clone(), digest.clone(), reveal.clone());
            *provider = Arc::new(ActiveProvider { manifest, digest, reveal, validate_interval });
        }
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
    #[error("what the plugin folder said can't be written down")]
    Inbox(#[source] std::io::Error),
    #[error("no plugin for `{0}`; hint: `keywheel plugin list` shows what there is")]
    NoSuchService(String),
    #[error("{0}")]
    Refused(String),
}

/// What a plugin file turned out to be.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub digest: String,
    /// A digest of the file itself and of the signature beside it.
    content: String,
    pub manifest: Manifest,
    signed: Signed,
    shape: PoolShape,
}

/// A file of the folder, read once.
#[derive(Debug)]
struct Bytes {
    /// What is compiled and runs: the file, or what a template is joined to.
    plugin: Vec<u8>,
    digest: String,
    signed: Signed,
}

/// Size, times and identity of a file: while these stay, its bytes are not read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FileStamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// `cp -p` and `touch` set the other time to what they like; this one only the kernel sets.
    changed: Option<SystemTime>,
    inode: u64,
    device: u64,
}

/// A plugin and the signature beside it: either of them may come, change or go first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    plugin: FileStamp,
    signature: Option<FileStamp>,
    /// What runs it, where it is a template: the file that comes with Keywheel may be another
    /// after an upgrade.
    interpreter: Option<FileStamp>,
}

#[derive(Debug, Clone)]
struct Seen {
    stamp: Stamp,
    /// Read so soon after its last change that the stamp may be true of other bytes.
    unsure: bool,
    /// The keys its signature was judged by.
    trusted: Arc<[TrustedKey]>,
    result: Result<Candidate, Unfit>,
}

impl Seen {
    /// Whether what is wrong with the file may be that it isn't whole yet: it changed a moment
    /// ago, or since it was looked at, which may be a while where others were compiled meanwhile.
    fn is_unsettled(&self, path: &Path) -> bool {
        self.result.is_err()
            && (self.stamp.is_settling() || stamp_of(path).is_ok_and(|now| now != self.stamp))
    }

    /// Whether what was seen may be otherwise by now.
    fn is_stale(&self, stamp: &Stamp, trusted: &Arc<[TrustedKey]>) -> bool {
        let by_trust = match &self.result {
            // Where it inherited one, there is none beside it.
            Ok(candidate) => self.stamp.signature.is_some() || candidate.signed != Signed::No,
            Err(unfit) => unfit.signed.is_some(),
        };
        self.stamp != *stamp
            || self.unsure
            || self.result.as_ref().is_err_and(|unfit| unfit.passing)
            || (by_trust && self.trusted != *trusted)
    }
}

/// Every file of the folder, as it was seen last.
type Folder = HashMap<PathBuf, Seen>;

/// Why a file is not taken.
#[derive(Debug, Clone, Default)]
struct Unfit {
    why: String,
    /// It is the machine's fault and not the file's, a full disk for example: the next scan
    /// tries again, though the file stays as it is.
    passing: bool,
    digest: Option<String>,
    /// Set where the signature is the reason, or that there is none.
    signed: Option<Box<Signed>>,
}

impl Unfit {
    fn passing(why: String) -> Self {
        Self { why, passing: true, ..Self::default() }
    }
}

impl From<String> for Unfit {
    fn from(why: String) -> Self {
        Self { why, ..Self::default() }
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

/// What a scan decides by: what was accepted before, and whose signatures count.
#[derive(Debug)]
struct Known {
    rows: BTreeMap<String, ProviderRow>,
    trusted: Arc<[TrustedKey]>,
}

impl Known {
    fn trusts(&self, signer: &Signer) -> bool {
        self.trusted.iter().any(|key| key.public_key == signer.public_key)
    }

    /// Who had signed these bytes when they were accepted.
    fn accepted_signer(&self, digest: &str) -> Option<&Signer> {
        self.rows.values().find(|row| row.plugin_digest == digest)?.signer.as_ref()
    }
}

/// A file that makes a plugin of its service.
struct Found {
    path: PathBuf,
    candidate: Candidate,
    /// The plugin or its signature came a moment ago: the other of the two may follow.
    fresh: bool,
}

/// The file of a service whose new content can't serve it.
struct BadUpdate {
    path: PathBuf,
    unfit: Unfit,
    /// It may still be copied.
    settling: bool,
}

/// What became of a service in one scan.
#[derive(Default)]
struct Settled {
    status: Vec<PluginStatus>,
    changed: bool,
    settling: bool,
}

/// What became of the accepted version of a service.
#[derive(Default)]
struct Kept {
    changed: bool,
    /// Why it doesn't run.
    unfit: Option<String>,
}

/// What `states` of a provider's row there are.
mod state {
    pub const ACTIVE: &str = "active";
    /// No file of the folder is its plugin any more.
    pub const REMOVED: &str = "removed";
    /// Its plugin may not run under the policy.
    pub const REFUSED: &str = "refused";
}

#[derive(Debug)]
pub struct Registry {
    home: Home,
    cache: Cache,
    supervisor: Supervisor,
    vault: Arc<Vault>,
    writer: Writer,
    providers: Arc<Providers>,
    policy: PluginPolicy,
    /// Held during a rescan: two at once would compile everything twice.
    seen: tokio::sync::Mutex<Folder>,
    /// Set where other hosts share the store.
    inbox: Option<Mutex<Inbox>>,
    /// What was written down about files that changed nothing else, by file: another scan has
    /// nothing to add.
    noted: Mutex<BTreeMap<String, AuditEntry>>,
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
        policy: PluginPolicy,
    ) -> Arc<Self> {
        Arc::new(Self {
            inbox: writer.is_shared().then(|| Mutex::new(Inbox::load(&home.inbox()))),
            home: home.clone(),
            cache: Cache::new(home),
            supervisor,
            vault,
            writer,
            providers,
            policy,
            noted: Mutex::default(),
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
        Ok(Reader::open(self.home.database())?)
    }

    fn known(&self) -> Result<Known, RegistryError> {
        let reader = self.reader()?;
        let rows = reader.providers()?.into_iter().map(|row| (row.service.clone(), row)).collect();
        Ok(Known { rows, trusted: reader.trusted_keys()?.into() })
    }

    /// Compares the folder with what is active. Returns whether a file looks half-written, so
    /// that another look soon is worth it.
    ///
    /// # Errors
    /// Where the folder or the database can't be used; what is active stays so.
    pub async fn rescan(&self) -> Result<bool, RegistryError> {
        let mut seen = self.seen.lock().await;
        self.scan(&mut seen, None).await
    }

    /// Rescans for a person who has just changed a file and wants its verdict, not "wait". A
    /// file that never stops changing is waited for no longer than any other.
    ///
    /// # Errors
    /// As for `rescan`.
    pub async fn rescan_until_still(&self) -> Result<(), RegistryError> {
        const LOOKS: u32 = 8;
        for _ in 0..LOOKS {
            if !self.rescan().await? {
                break;
            }
            tokio::time::sleep(SETTLING / 4).await;
        }
        Ok(())
    }

    /// The rescan itself. `removing` is the service whose file the operator has just removed.
    async fn scan(&self, seen: &mut Folder, removing: Option<&str>) -> Result<bool, RegistryError> {
        let files = list(&self.home.plugins())?;
        let (known, now) = (self.known()?, SystemTime::now());
        let unread: Vec<_> = files
            .iter()
            .filter(|(path, stamp)| seen.get(*path).is_none_or(|old| old.is_stale(stamp, &known.trusted)))
            .map(|(path, stamp)| (path.clone(), stamp.clone()))
            .collect();
        let looked: Vec<_> = stream::iter(unread)
            .map(|(path, stamp)| {
                let known = &known;
                async move {
                    let unsure = stamp.is_within(TICK, now);
                    let result = self.look(&path, &stamp, known).await;
                    (path, Seen { stamp, unsure, trusted: Arc::clone(&known.trusted), result })
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        seen.retain(|path, _| files.contains_key(path));
        seen.extend(looked);

        let mut settling = false;
        let mut claimed: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        let mut status = Vec::new();
        let mut paths: Vec<_> = seen.iter().collect();
        paths.sort_by(|a, b| a.0.cmp(b.0));
        for (path, file) in paths {
            match &file.result {
                Ok(candidate) => {
                    let service = candidate.manifest.service.clone();
                    let (candidate, fresh) = (candidate.clone(), file.stamp.is_settling());
                    claimed.entry(service).or_default().push(Found { path: path.clone(), candidate, fresh });
                }
                // What served something is judged below, with what else there is.
                Err(_) if file.is_unsettled(path) => settling = true,
                Err(unfit) => status.push(refused(path, unfit)),
            }
        }
        let mut bad = Vec::new();
        // A shared store's rows stand whatever becomes of files.
        let mine = known.rows.values().filter(|row| row.state != state::REMOVED && self.inbox.is_none());
        for row in mine {
            if let Some(update) = self.bad_update(row, seen, &known, &claimed)? {
                for other in claimed.remove(&row.service).unwrap_or_default() {
                    status.push(self.conflict(&row.service, &update.path, &other, &known));
                }
                for found in claimed.values_mut() {
                    found.retain(|found| found.path != update.path);
                }
                bad.push((row, update));
            }
        }
        claimed.retain(|_, found| !found.is_empty());
        // Without a candidate they are left to what was accepted.
        claimed.extend(bad.iter().map(|(row, _)| (row.service.clone(), Vec::new())));
        let served: HashSet<String> = claimed.keys().cloned().collect();
        let mut changed = false;
        for (service, found) in claimed {
            let file = found.first().map(|found| found.path.clone()).unwrap_or_default();
            match self.settle_unless_pinned(&service, &found, &known).await {
                Ok(settled) => {
                    changed |= settled.changed;
                    settling |= settled.settling;
                    status.extend(settled.status);
                }
                // One plugin's trouble is not the others'.
                Err(RegistryError::Refused(why)) => status.push(refused(&file, &why.into())),
                // Another host was faster, more than once: its word counts at the next look.
                Err(RegistryError::Write(WriteError::Changed { .. })) => settling = true,
                Err(error) => return Err(error),
            }
        }
        if self.inbox.is_some() {
            let names = seen.keys().map(|path| unmistakable(path)).collect();
            self.in_inbox(|inbox| inbox.looked_through(&names))?;
            for row in known.rows.values().filter(|row| !served.contains(&row.service)) {
                match self.follow(row, &known, Settled::default()).await {
                    Ok(settled) => {
                        changed |= settled.changed;
                        status.extend(settled.status);
                    }
                    Err(RegistryError::Refused(why)) => {
                        status.push(words::accepted_elsewhere(row, Some(why), &known.trusted));
                    }
                    Err(error) => return Err(error),
                }
            }
            self.give(&known).await?;
        } else {
            changed |= self.remove_unserved(&served, &known, removing).await?;
        }
        for (row, update) in bad {
            status.retain(|known| known.file != name_of(&update.path));
            status.push(self.after_bad_update(row, &update));
        }
        self.complete(&mut status)?;
        status.sort_by(|a, b| a.file.cmp(&b.file));
        self.note(&status).await;
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        if changed {
            self.changed.send_modify(|count| *count += 1);
            // Another host may have decided since the rows were read.
            let rows = if self.inbox.is_some() { self.known()?.rows } else { known.rows };
            self.prune(&rows);
        }
        Ok(settling)
    }

    /// Whether the file that a service is served by was replaced by one that can't serve it,
    /// while no other file brings the accepted version. What no longer makes sense takes nothing
    /// away: the service goes on with what was accepted.
    fn bad_update(
        &self,
        row: &ProviderRow,
        seen: &Folder,
        known: &Known,
        claimed: &BTreeMap<String, Vec<Found>>,
    ) -> Result<Option<BadUpdate>, RegistryError> {
        let brings = |service: &str, digest: &str| {
            let of = claimed.get(service).map(Vec::as_slice).unwrap_or_default();
            of.iter().filter(|found| found.candidate.digest == digest).count()
        };
        if brings(&row.service, &row.plugin_digest) > 0 {
            return Ok(None);
        }
        let Some((path, file)) = seen.iter().find(|(path, _)| row.file.as_deref() == Some(&name_of(path)))
        else {
            return Ok(None);
        };
        let unfit = match &file.result {
            Err(unfit) => unfit.clone(),
            // A newer version, which is judged like any other.
            Ok(found) if found.manifest.service == row.service => return Ok(None),
            Ok(found) => {
                let (reader, other) = (self.reader()?, &found.manifest.service);
                // An accepted plugin that was moved here must not lose its own service for it.
                let moved = known.rows.get(other).is_some_and(|row| row.plugin_digest == found.digest)
                    && brings(other, &found.digest) == 1;
                if !reader.has_credentials(&row.service)? || (moved && reader.has_credentials(other)?) {
                    return Ok(None);
                }
                format!(
                    "served `{}`, which has credentials, and is for `{other}` now; hint: give it a file name of its own",
                    row.service
                )
                .into()
            }
        };
        Ok(Some(BadUpdate { path: path.clone(), unfit, settling: file.is_unsettled(path) }))
    }

    fn after_bad_update(&self, row: &ProviderRow, update: &BadUpdate) -> PluginStatus {
        let (service, version, name) = (&row.service, &row.version, name_of(&update.path));
        let running = self.providers.get(service).is_some_and(|active| active.digest == row.plugin_digest);
        let what_now = if running {
            format!(
                "`{service}` goes on with its approved version {version}; hint: put a working plugin in place of {name}, or delete it to stop serving `{service}`"
            )
        } else {
            format!(
                "the approved version {version} of `{service}` can't be run either; hint: put it in place of {name}"
            )
        };
        let with = |why: &str| {
            refused(&update.path, &Unfit { why: format!("{why}; {what_now}"), ..update.unfit.clone() })
        };
        let status = if running && update.settling {
            PluginStatus {
                state: PluginState::Active,
                title: Some(row.manifest.title.clone()),
                version: Some(row.version.clone()),
                digest: Some(row.plugin_digest.clone()),
                ..with("the file is being written")
            }
        } else {
            with(&update.unfit.why)
        };
        PluginStatus { service: Some(service.clone()), ..status }
    }

    fn conflict(&self, service: &str, by: &Path, other: &Found, known: &Known) -> PluginStatus {
        PluginStatus {
            reason: Some(format!("`{service}` is served by {}; hint: remove one of the two", name_of(by))),
            state: PluginState::Conflict,
            ..self.described(other, known)
        }
    }

    /// A first credential that comes while its service is settled pins it, so that is done anew,
    /// against what is pinned.
    async fn settle_unless_pinned(
        &self,
        service: &str,
        found: &[Found],
        known: &Known,
    ) -> Result<Settled, RegistryError> {
        match self.settle(service, found, known).await {
            Err(RegistryError::Write(WriteError::Pinned { .. })) => self.settle(service, found, known).await,
            Err(RegistryError::Write(WriteError::Changed { .. })) => {
                self.settle(service, found, &self.known()?).await
            }
            settled => settled,
        }
    }

    /// Does something with what the folder has said, and makes it last.
    fn in_inbox<T: Default>(&self, what: impl FnOnce(&mut Inbox) -> T) -> Result<T, RegistryError> {
        let Some(inbox) = &self.inbox else { return Ok(T::default()) };
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = inbox.clone();
        let done = what(&mut next);
        if next != *inbox {
            next.save(&self.home.inbox()).map_err(RegistryError::Inbox)?;
            *inbox = next;
        }
        Ok(done)
    }

    /// Whether a file says what the operator wants now. Where nobody shares the store it always
    /// does.
    fn is_wish(
        &self,
        found: &Found,
        signer: Option<&Signer>,
        row: Option<&ProviderRow>,
        known: &Known,
    ) -> Result<bool, RegistryError> {
        if self.inbox.is_none() {
            return Ok(true);
        }
        let Candidate { content, digest, .. } = &found.candidate;
        let name = unmistakable(&found.path);
        let letter = Letter { name: &name, content, plugin: digest };
        let standing = row.map(|row| Standing { revision: row.revision, plugin: &row.plugin_digest });
        if self.in_inbox(|inbox| inbox.hear(letter, standing))? {
            return Ok(true);
        }
        // Who is trusted since vouches for what runs already: that takes nothing from anybody.
        Ok(row.is_some_and(|row| {
            row.plugin_digest == *digest
                && row.state == state::ACTIVE
                && row.pending.is_none()
                && signer.is_some_and(|signer| known.trusts(signer))
                && !row.signer.as_ref().is_some_and(|signer| known.trusts(signer))
        }))
    }

    /// The revision that a decision is about, where another host may decide at the same time.
    fn seen_at(&self, row: Option<&ProviderRow>) -> Option<u32> {
        self.inbox.is_some().then(|| row.map_or(0, |row| row.revision))
    }

    /// A plugin of the home's store for the shared one, if there is one.
    fn for_the_others(&self, digest: &str) -> Result<Option<Arc<[u8]>>, RegistryError> {
        if self.inbox.is_none() {
            return Ok(None);
        }
        let path = self.cache.stored(digest);
        let bytes = read_capped(&path, None)
            .map_err(|source| RegistryError::Folder { path: path.clone(), source })?;
        if hex::encode(Sha256::digest(&bytes)) != digest {
            return Err(RegistryError::Refused(format!("{} is damaged", path.display())));
        }
        Ok(Some(bytes.into()))
    }

    /// Puts into the shared store what a row names and only a home has: the rows came from a store
    /// that nobody shared.
    async fn give(&self, known: &Known) -> Result<(), RegistryError> {
        let kept: HashSet<String> = self.reader()?.kept_plugins()?.into_iter().collect();
        for row in known.rows.values() {
            let pending = row.pending.as_ref().map(|pending| &pending.plugin_digest);
            for digest in [Some(&row.plugin_digest), pending].into_iter().flatten() {
                if kept.contains(digest) || !self.cache.stored(digest).exists() {
                    continue;
                }
                match self.for_the_others(digest) {
                    Ok(Some(bytes)) => self.writer.keep_plugin(&row.service, digest, bytes).await?,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(service = row.service, %error, "a plugin isn't given to the other hosts");
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes a plugin out of the shared store into the home's.
    fn take(&self, digest: &str) -> Result<(), Unfit> {
        if self.cache.stored(digest).exists() {
            return Ok(());
        }
        let unreadable = |error: &dyn std::fmt::Display| Unfit::passing(format!("can't be fetched: {error}"));
        let reader = self.reader().map_err(|error| unreadable(&error))?;
        let Some(bytes) = reader.plugin_bytes(digest).map_err(|error| unreadable(&error))? else {
            return match self.cache.native(digest).exists() {
                true => Ok(()),
                false => {
                    Err(Unfit::passing("its bytes are gone; hint: `keywheel plugin install FILE`".into()))
                }
            };
        };
        if hex::encode(Sha256::digest(&bytes)) != digest {
            return Err(Unfit::passing("its bytes in the store are others than its digest says".into()));
        }
        self.cache.keep(digest, &bytes).map_err(|error| Unfit::passing(format!("can't be stored: {error}")))
    }

    /// Makes this host do what a provider's row says, whoever brought it, and says how each version
    /// stands of which this folder has no file.
    async fn follow(
        &self,
        row: &ProviderRow,
        known: &Known,
        mut settled: Settled,
    ) -> Result<Settled, RegistryError> {
        let removed = row.state == state::REMOVED;
        let kept = match removed {
            true => Kept { changed: self.end(&row.service), unfit: None },
            false => self.run_accepted(row, known).await?,
        };
        settled.changed |= kept.changed;
        if let Some(pending) = &row.pending
            && let Err(Unfit { why, .. }) = self.take(&pending.plugin_digest)
        {
            tracing::warn!(service = row.service, why, "the version that waits isn't here yet");
        }
        let unfit = kept.unfit.is_some();
        let accepted = words::accepted_elsewhere(row, kept.unfit, &known.trusted);
        let line = |status: &[PluginStatus], digest: &str| {
            status.iter().position(|status| status.digest.as_deref() == Some(digest))
        };
        match line(&settled.status, &row.plugin_digest) {
            Some(at) if unfit => {
                let line = &mut settled.status[at];
                (line.state, line.reason) = (accepted.state, accepted.reason);
            }
            Some(_) => {}
            None if removed => {}
            // A file of the service says already what is in use.
            None if settled.status.is_empty() || unfit => settled.status.push(accepted),
            None => {}
        }
        if let Some(pending) = &row.pending
            && line(&settled.status, &pending.plugin_digest).is_none()
        {
            settled.status.push(words::waits_elsewhere(row, pending, &known.trusted));
        }
        Ok(settled)
    }

    /// A file that is no wish, as it stands beside what is accepted.
    fn beside(
        &self,
        found: &Found,
        signer: Option<&Signer>,
        row: &ProviderRow,
        known: &Known,
    ) -> PluginStatus {
        let described = self.described(found, known);
        let Candidate { digest, manifest, .. } = &found.candidate;
        let asked = Permissions::of(manifest);
        if row.state != state::REMOVED && row.plugin_digest == *digest {
            return PluginStatus { permissions: asked.lines(), ..described };
        }
        if row.pending.as_ref().is_some_and(|pending| pending.plugin_digest == *digest) {
            let waits = words::Waits::of(row, signer, &asked);
            return PluginStatus {
                reason: Some(waits.reason()),
                state: PluginState::PendingApproval,
                permissions: waits.lines(),
                ..described
            };
        }
        PluginStatus { reason: Some(words::superseded(row)), state: PluginState::Superseded, ..described }
    }

    /// One service: which of its files serves it, and what that one may do.
    async fn settle(&self, service: &str, found: &[Found], known: &Known) -> Result<Settled, RegistryError> {
        let row = known.rows.get(service);
        let mut settled = Settled::default();
        let mut fit = Vec::new();
        for found in found {
            let Candidate { signed, digest, .. } = &found.candidate;
            match self.admit(signed, digest, known) {
                Ok(signer) => fit.push((found, signer)),
                Err(why) => settled.status.push(PluginStatus {
                    state: PluginState::Refused,
                    reason: Some(why),
                    ..self.described(found, known)
                }),
            }
        }
        if fit.is_empty() {
            return match row.filter(|row| row.state != state::REMOVED) {
                Some(row) if self.inbox.is_some() => self.follow(row, known, settled).await,
                Some(row) => {
                    self.withdraw(row, "the file that waited is gone").await?;
                    settled.changed = self.keep_approved(row, known).await?;
                    Ok(settled)
                }
                None => Ok(settled),
            };
        }
        // The approved one stays, or else what replaced its file; among newcomers the first by
        // name, so that a rescan decides the same again.
        let chosen = row
            .and_then(|row| {
                let digest = |found: &Found| found.candidate.digest == row.plugin_digest;
                let file = |found: &Found| row.file.as_deref() == Some(&name_of(&found.path));
                let place = |of: &dyn Fn(&Found) -> bool| fit.iter().position(|(found, _)| of(found));
                place(&digest).or_else(|| place(&file))
            })
            .unwrap_or(0);
        let (chosen, signer) = fit.remove(chosen);
        for (other, _) in fit {
            settled.status.push(self.conflict(service, &chosen.path, other, known));
        }
        if !self.is_wish(chosen, signer.as_ref(), row, known)?
            && let Some(row) = row
        {
            settled.status.push(self.beside(chosen, signer.as_ref(), row, known));
            return self.follow(row, known, settled).await;
        }
        let candidate = &chosen.candidate;
        let asked = Permissions::of(&candidate.manifest);
        let granted = row.map(grants_of);
        let pinned = self.reader()?.has_credentials(service)?;
        let same = row.is_some_and(|row| row.plugin_digest == candidate.digest);
        if let (Some(granted), true, true) = (&granted, same, pinned)
            && difference(&granted.accepted, &asked).is_wider()
        {
            return Err(RegistryError::Refused(DESCRIBES_ITSELF_OTHERWISE.into()));
        }
        if let (Some(row), Some(granted), false, true) = (row, &granted, same, pinned) {
            let difference = difference(&granted.accepted, &asked);
            let resigned = row.signer.as_ref().is_some_and(|was| !is_same(Some(was), signer.as_ref()));
            if resigned && chosen.fresh {
                // Its signature may still be on the way.
                if self.inbox.is_none() {
                    self.withdraw(row, "the file that waited was replaced").await?;
                }
                settled.settling = true;
                settled.changed = self.keep_approved(row, known).await?;
                return Ok(settled);
            }
            if difference.is_wider() || resigned {
                let waits = words::Waits { row, signer: signer.as_ref(), difference, resigned };
                settled.status.push(PluginStatus {
                    reason: Some(waits.reason()),
                    state: PluginState::PendingApproval,
                    permissions: waits.lines(),
                    ..self.described(chosen, known)
                });
                let is_known = row.pending.as_ref().is_some_and(|pending| {
                    pending.plugin_digest == candidate.digest
                        && is_same(pending.signer.as_ref(), signer.as_ref())
                });
                if !is_known {
                    let note = waits.note(&chosen.path, candidate);
                    let pending = PendingProvider {
                        plugin_digest: candidate.digest.clone(),
                        manifest: candidate.manifest.clone(),
                        signer: signer.clone(),
                        bytes: self.for_the_others(&candidate.digest)?,
                    };
                    let seen = self.seen_at(Some(row));
                    self.writer.set_provider_pending(service, seen, Some(pending), Some(note)).await?;
                }
                // Where it was removed for all hosts only an approval brings it back.
                if self.inbox.is_none() || row.state != state::REMOVED {
                    settled.changed = self.keep_approved(row, known).await?;
                }
                return Ok(settled);
            }
        }
        settled.status.push(PluginStatus { permissions: asked.lines(), ..self.described(chosen, known) });
        let reveal = granted
            .map(|granted| granted.reveal.into_iter().filter(|key| asked.reveal.contains(key)).collect())
            .unwrap_or_default();
        let grants = Grants { accepted: asked, reveal };
        let accepted =
            words::Accepted { row, candidate, signer: signer.as_ref(), path: &chosen.path, pinned };
        if accepted.is_news() {
            let update = ProviderUpdate {
                manifest: candidate.manifest.clone(),
                plugin_digest: candidate.digest.clone(),
                permissions_json: to_json(&grants)?,
                state: state::ACTIVE.into(),
                signer: signer.clone(),
                file: Some(name_of(&chosen.path)),
                only_without_credentials: !pinned && !same,
                bytes: self.for_the_others(&candidate.digest)?,
                seen: self.seen_at(row),
            };
            self.writer.put_provider(update, accepted.note(&grants)).await?;
        }
        settled.changed = self.activate(service, candidate, grants.reveal, row).await?;
        Ok(settled)
    }

    /// Whether these bytes may run, and whose they are.
    ///
    /// # Errors
    /// Why they may not.
    fn admit(&self, signed: &Signed, digest: &str, known: &Known) -> Result<Option<Signer>, String> {
        // A signature is about bytes: what was verified when they were accepted still holds
        // where the file beside them is gone by now.
        let accepted = known.accepted_signer(digest);
        let believed = accepted.filter(|signer| known.trusts(signer)).cloned();
        match (signed, self.policy) {
            (Signed::Bad(why), _) => Err(why.clone()),
            (Signed::By(signer), _) => Ok(Some(believed.unwrap_or_else(|| signer.clone()))),
            (Signed::No | Signed::Unknown { .. }, PluginPolicy::Any) => Ok(accepted.cloned()),
            (Signed::No | Signed::Unknown { .. }, PluginPolicy::SignedOnly) if believed.is_some() => {
                Ok(believed)
            }
            (_, PluginPolicy::SignedOnly) => Err(words::unsigned(signed, accepted)),
        }
    }

    /// What was accepted runs from the store while the file in the folder waits, or is no good.
    async fn keep_approved(&self, row: &ProviderRow, known: &Known) -> Result<bool, RegistryError> {
        Ok(self.run_accepted(row, known).await?.changed)
    }

    async fn run_accepted(&self, row: &ProviderRow, known: &Known) -> Result<Kept, RegistryError> {
        let service = row.service.as_str();
        let believed = row.signer.as_ref().is_some_and(|signer| known.trusts(signer));
        if self.policy == PluginPolicy::SignedOnly && !believed {
            let unfit = Some(words::unsigned(&Signed::No, row.signer.as_ref()));
            return Ok(Kept { changed: self.stop(row).await?, unfit });
        }
        let Grants { accepted, reveal } = grants_of(row);
        // A key may have been granted by way of another host.
        let runs = self.providers.get(service).is_some_and(|active| {
            active.digest == row.plugin_digest && (self.inbox.is_none() || active.reveal == reveal)
        });
        if runs {
            return Ok(Kept::default());
        }
        let found = match self.take(&row.plugin_digest) {
            Ok(()) => self.inspect(&row.plugin_digest).await,
            Err(unfit) => Err(unfit),
        };
        let unfit = match found {
            // It was another host that looked at it.
            Ok((manifest, _))
                if self.inbox.is_some()
                    && self.reader()?.has_credentials(service)?
                    && difference(&accepted, &Permissions::of(&manifest)).is_wider() =>
            {
                DESCRIBES_ITSELF_OTHERWISE.to_owned()
            }
            Ok((manifest, shape)) => {
                let (digest, content) = (row.plugin_digest.clone(), String::new());
                let candidate = Candidate { digest, content, manifest, signed: Signed::No, shape };
                // What one host's policy says is nothing to the others.
                if row.state != state::ACTIVE && self.inbox.is_none() {
                    let note = words::of_row(action::RETURNED, row);
                    self.writer.set_provider_state(service, None, state::ACTIVE, note).await?;
                }
                let changed = self.activate(service, &candidate, reveal, Some(row)).await?;
                return Ok(Kept { changed, unfit: None });
            }
            Err(Unfit { why, .. }) => why,
        };
        tracing::error!(service, why = unfit, "the approved plugin can't be run from the store");
        Ok(Kept { changed: false, unfit: Some(unfit) })
    }

    /// Ends what ran, because the policy doesn't let it run any more.
    async fn stop(&self, row: &ProviderRow) -> Result<bool, RegistryError> {
        let service = row.service.as_str();
        let ran = self.providers.get(service).is_some();
        if row.state != state::REFUSED && self.inbox.is_none() {
            let note = words::of_row(action::STOPPED, row);
            self.writer.set_provider_state(service, None, state::REFUSED, note).await?;
        }
        if ran {
            tracing::warn!(service, "plugin stopped: nobody who is trusted signed it");
            self.supervisor.remove(service);
            self.providers.remove(service);
        }
        Ok(ran)
    }

    /// Nothing waits any more.
    async fn withdraw(&self, row: &ProviderRow, why: &str) -> Result<(), RegistryError> {
        if let Some(pending) = &row.pending {
            let note = AuditEntry {
                service: Some(row.service.clone()),
                file: row.file.clone(),
                digest: Some(pending.plugin_digest.clone()),
                signer: pending.signer.as_ref().map(|signer| signer.key_id.clone()),
                ..entry(Actor::Host, action::WITHDRAWN, serde_json::json!({ "reason": why }))
            };
            self.writer.set_provider_pending(&row.service, None, None, Some(note)).await?;
        }
        Ok(())
    }

    /// Services without a file: their plugins end.
    async fn remove_unserved(
        &self,
        served: &HashSet<String>,
        known: &Known,
        removing: Option<&str>,
    ) -> Result<bool, RegistryError> {
        let mut changed = false;
        for row in known.rows.values().filter(|row| !served.contains(&row.service)) {
            if row.state != state::REMOVED {
                let by = if removing == Some(&row.service) { Actor::Operator } else { Actor::Host };
                let note = AuditEntry { actor: by, ..words::of_row(action::REMOVED, row) };
                self.writer.set_provider_state(&row.service, None, state::REMOVED, note).await?;
            }
        }
        for service in self.providers.services() {
            if !served.contains(&service) {
                changed |= self.end(&service);
            }
        }
        Ok(changed)
    }

    /// Ends what runs for a service. Returns whether anything did.
    fn end(&self, service: &str) -> bool {
        let ran = self.providers.get(service).is_some();
        if ran {
            tracing::info!(service, "plugin removed");
            self.supervisor.remove(service);
            self.providers.remove(service);
            self.previous.lock().unwrap_or_else(PoisonError::into_inner).remove(service);
        }
        ran
    }

    /// Adds to each file what is accepted for its service, as the scan left it.
    fn complete(&self, status: &mut [PluginStatus]) -> Result<(), RegistryError> {
        let (known, reader) = (self.known()?, self.reader()?);
        let mut in_use: HashMap<String, Option<InUse>> = HashMap::new();
        for status in status {
            let Some(service) = status.service.clone() else { continue };
            if !in_use.contains_key(&service) {
                let found = self.in_use(&service, &known, &reader)?;
                in_use.insert(service.clone(), found);
            }
            status.in_use = in_use.get(&service).cloned().flatten();
        }
        Ok(())
    }

    fn in_use(&self, service: &str, known: &Known, reader: &Reader) -> Result<Option<InUse>, RegistryError> {
        let Some(row) = known.rows.get(service).filter(|_| self.providers.get(service).is_some()) else {
            return Ok(None);
        };
        let Grants { accepted, reveal } = grants_of(row);
        Ok(Some(InUse {
            digest: row.plugin_digest.clone(),
            version: row.version.clone(),
            signature: Signature::of(&Signed::No, row.signer.as_ref(), &known.trusted),
            pinned: reader.has_credentials(service)?,
            revealed: reveal,
            accepted,
        }))
    }

    /// Writes down what was decided about files and changed no provider. It is tried again at
    /// the next scan if the database can't be written now: that must not stop plugins.
    async fn note(&self, status: &[PluginStatus]) {
        let current: BTreeMap<String, AuditEntry> =
            status.iter().filter_map(|status| Some((status.file.clone(), words::of_file(status)?))).collect();
        let news: Vec<_> = {
            let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            current
                .iter()
                .filter(|(file, entry)| noted.get(*file) != Some(*entry))
                .map(|(_, e)| e.clone())
                .collect()
        };
        if !news.is_empty()
            && let Err(error) = self.writer.note(news).await
        {
            tracing::warn!(%error, "decisions about plugin files can't be written down yet");
            return;
        }
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }

    fn described(&self, found: &Found, known: &Known) -> PluginStatus {
        let Candidate { digest, signed, .. } = &found.candidate;
        let signer = match signed {
            Signed::By(signer) => Some(signer),
            _ => known.accepted_signer(digest),
        };
        let signature = Signature::of(signed, signer, &known.trusted);
        words::described(&found.path, &found.candidate, signature)
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

    /// Reads a file once: what is hashed here is what will run, and what its signature is
    /// checked against.
    async fn look(&self, path: &Path, stamp: &Stamp, known: &Known) -> Result<Candidate, Unfit> {
        let size = stamp.plugin.bytes;
        if size > limits::PLUGIN_BYTES {
            return Err(format!("{size} bytes, at most {} are allowed", limits::PLUGIN_BYTES).into());
        }
        let unreadable = |error| Unfit::passing(format!("can't be read: {error}"));
        let signature = match &stamp.signature {
            Some(found) => Some(
                read_signature(&signature::beside(path), Some(found))
                    .map_err(|error| Unfit::passing(format!("its signature can't be read: {error}")))?,
            ),
            None => None,
        };
        let bytes = read_capped(path, Some(&stamp.plugin)).map_err(unreadable)?;
        let signed = signature::judge(&bytes, signature.as_deref(), &known.trusted);
        let content = content_of(&bytes, signature.as_deref());
        let Bytes { plugin: bytes, digest, signed } = match joined::is_template(path) {
            true => self.joined(&bytes, signed, known)?,
            false => Bytes { digest: hex::encode(Sha256::digest(&bytes)), plugin: bytes, signed },
        };
        // Before anything tries to make sense of it: what may not run is not compiled either.
        if let Err(why) = self.admit(&signed, &digest, known) {
            return Err(Unfit { why, passing: false, digest: Some(digest), signed: Some(Box::new(signed)) });
        }
        let stripe = digest.chars().next().and_then(|digit| digit.to_digit(16)).unwrap_or(0);
        let _alone = self.looking[stripe as usize].lock().await;
        let stored = self.cache.stored(&digest).exists();
        self.cache
            .keep(&digest, &bytes)
            .map_err(|error| Unfit::passing(format!("can't be stored: {error}")))?;
        drop(bytes);
        let inspected = self.inspect(&digest).await.and_then(|(manifest, shape)| {
            named_after_its_service(path, &manifest)?;
            Ok((manifest, shape))
        });
        match inspected {
            Ok((manifest, shape)) => Ok(Candidate { digest, content, manifest, signed, shape }),
            Err(unfit) => {
                if !stored {
                    // Nothing refers to it, and a folder of broken files must not fill the store.
                    let _ = fs::remove_file(self.cache.stored(&digest));
                }
                Err(Unfit { digest: Some(digest), ..unfit })
            }
        }
    }

    /// The plugin that a template's text comes to. Its digest covers the text and what runs it;
    /// a signature covers the text alone, so that one made once goes on through each upgrade.
    fn joined(&self, text: &[u8], signed: Signed, known: &Known) -> Result<Bytes, Unfit> {
        let missing = |why: String| Unfit::passing(format!("a template, and nothing to run it: {why}"));
        let folder = catalogue::folder().map_err(|error| missing(error.to_string()))?;
        let interpreter = read_capped(&folder.join(catalogue::TEMPLATE_PROVIDER), None)
            .map_err(|error| missing(format!("{} can't be read: {error}", catalogue::TEMPLATE_PROVIDER)))?;
        let plugin = joined::join(&interpreter, text).map_err(|error| match error {
            joined::JoinError::NoRoom => Unfit::passing(error.to_string()),
            _ => error.to_string().into(),
        })?;
        let digest = hex::encode(Sha256::digest(&plugin));
        // What was verified when this text was accepted still holds where its signature is gone
        // by now, though an upgrade made another file of it.
        let accepted = |row: &&ProviderRow| {
            let stored = read_capped(&self.cache.stored(&row.plugin_digest), None);
            stored.is_ok_and(|stored| joined::is_of(&stored, text))
        };
        let signed = match signed {
            Signed::No => {
                let signers = known
                    .rows
                    .values()
                    .filter(|row| row.signer.as_ref().is_some_and(|signer| known.trusts(signer)));
                signers
                    .clone()
                    .find(accepted)
                    .and_then(|row| row.signer.clone())
                    .map_or(Signed::No, Signed::By)
            }
            other => other,
        };
        Ok(Bytes { plugin, digest, signed })
    }

    /// Compiles and describes a plugin of the store.
    async fn inspect(&self, digest: &str) -> Result<(Manifest, PoolShape), Unfit> {
        let code = self
            .cache
            .load(digest, &self.vault, self.supervisor.spawner(), self.supervisor.require())
            .await?;
        let described = self.supervisor.describe(code).await;
        let (manifest, shape) = described.map_err(|error| match error {
            // In words about the plugin, which has no worker yet.
            CallError::Unfit(why) => Unfit::from(why),
            // Out of descriptors or processes: that is nothing of the plugin's.
            CallError::Spawn(_) | CallError::ShuttingDown => Unfit::passing(error.to_string()),
            other => other.to_string().into(),
        })?;
        if let Some(why) = manifest.refused() {
            return Err(manifest::inert(why, REFUSAL_CHARS).into());
        }
        manifest::check(&manifest).map_err(|error| error.to_string())?;
        Ok((manifest, shape))
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
        let known = self.known()?;
        let candidate =
            self.look(path, &stamp, &known).await.map_err(|unfit| RegistryError::Refused(unfit.why))?;
        let service = candidate.manifest.service.clone();
        let asked = Permissions::of(&candidate.manifest);
        let mut lines = asked.lines();
        if let Some(row) = known.rows.get(&service).filter(|row| row.plugin_digest != candidate.digest) {
            let signer = match &candidate.signed {
                Signed::By(signer) => Some(signer),
                _ => None,
            };
            let resigned = row.signer.is_some() && !is_same(row.signer.as_ref(), signer);
            let difference = difference(&grants_of(row).accepted, &asked);
            lines.push(format!("against version {} in use:", row.version));
            let changes = words::Waits { row, signer, difference, resigned }.lines();
            if changes.is_empty() {
                lines.push("  asks for the same".into());
            }
            lines.extend(changes.into_iter().map(|line| format!("  {line}")));
        }
        let provider = Some(Box::new(Entry::of(&candidate.manifest)));
        let found = Found { path: path.to_owned(), candidate, fresh: false };
        let in_use = self.in_use(&service, &known, &self.reader()?)?;
        Ok(PluginStatus { permissions: lines, in_use, provider, ..self.described(&found, &known) })
    }

    /// The interfaces that a plugin imports, where it was compiled since the host began.
    pub fn imports(&self, digest: &str) -> Option<Vec<String>> {
        self.cache.imports(digest)
    }

    /// How a plugin file describes itself now: in a new process, each time it is asked.
    ///
    /// # Errors
    /// Why it is no usable plugin.
    pub async fn describe(&self, path: &Path) -> Result<Manifest, RegistryError> {
        let stamp =
            stamp_of(path).map_err(|source| RegistryError::Folder { path: path.to_owned(), source })?;
        let _no_scan = self.seen.lock().await;
        let known = self.known()?;
        let candidate =
            self.look(path, &stamp, &known).await.map_err(|unfit| RegistryError::Refused(unfit.why))?;
        Ok(candidate.manifest)
    }

    /// What approving a service's plugin would change, by a look at the folder as it is now.
    ///
    /// # Errors
    /// Where there is no such service.
    pub async fn wish(&self, service: &str) -> Result<Wish, RegistryError> {
        self.rescan_until_still().await?;
        Ok(self.wished(service)?.0)
    }

    fn wished(&self, service: &str) -> Result<(Wish, ProviderRow), RegistryError> {
        let known = self.known()?;
        let row = known
            .rows
            .get(service)
            .filter(|row| row.state != state::REMOVED || row.pending.is_some())
            .ok_or_else(|| RegistryError::NoSuchService(service.to_owned()))?;
        let Grants { accepted, reveal } = grants_of(row);
        let asked = Permissions::of(row.pending.as_ref().map_or(&row.manifest, |pending| &pending.manifest));
        let difference = difference(&Permissions { reveal, ..accepted }, &asked);
        let status = self.status();
        let wish = Wish::of(row, difference, &status, &known.trusted);
        Ok((wish, row.clone()))
    }

    /// Grants what was shown: a pending version, or the keys the present one wants to see.
    ///
    /// # Errors
    /// Where there is no such service, or it is another plugin by now. Nothing is granted then.
    pub async fn approve(
        &self,
        service: &str,
        digest: &str,
        signer: Option<&str>,
    ) -> Result<Wish, RegistryError> {
        let mut seen = self.seen.lock().await;
        self.scan(&mut seen, None).await?;
        let (mut wish, row) = self.wished(service)?;
        if wish.to.digest != digest || wish.to.public_key() != signer {
            let why = wish.not_what_was_shown(digest);
            self.writer.note(vec![wish.note(action::NOT_GRANTED, Some(digest))]).await?;
            return Err(RegistryError::Refused(why));
        }
        if !wish.needs_approval {
            return Ok(wish);
        }
        let decided_on = self.seen_at(Some(&row));
        let (manifest, signer) = match row.pending {
            Some(pending) => (pending.manifest, pending.signer),
            None => (row.manifest, row.signer),
        };
        let asked = Permissions::of(&manifest);
        let update = ProviderUpdate {
            manifest,
            plugin_digest: wish.to.digest.clone(),
            permissions_json: to_json(&Grants { reveal: asked.reveal.clone(), accepted: asked })?,
            state: if self.inbox.is_some() { state::ACTIVE.into() } else { row.state },
            signer,
            file: wish.file.clone().or(row.file.clone()),
            only_without_credentials: false,
            // What waits is in the store since it waits.
            bytes: None,
            seen: decided_on,
        };
        self.writer.put_provider(update, Some(wish.note(action::GRANTED, None))).await?;
        wish.granted = true;
        self.scan(&mut seen, None).await?;
        Ok(wish)
    }

    /// Lets a service whose worker kept dying run again. Returns whether it was parked.
    ///
    /// # Errors
    /// Where nothing serves it.
    pub async fn unpark(&self, service: &str) -> Result<bool, RegistryError> {
        let Some(active) = self.providers.get(service) else {
            return Err(RegistryError::NoSuchService(service.to_owned()));
        };
        let parked = self.supervisor.status().iter().any(|w| w.service == service && w.state == "parked");
        if parked {
            let note = AuditEntry {
                service: Some(service.to_owned()),
                digest: Some(active.digest.clone()),
                ..entry(Actor::Operator, action::UNPARKED, serde_json::json!({}))
            };
            self.writer.note(vec![note]).await?;
            self.supervisor.unpark(service);
        }
        Ok(parked)
    }

    /// Believes signatures of a key from now on.
    ///
    /// # Errors
    /// Where it is no key, or its id is another's.
    pub async fn trust(&self, key: &str, name: Option<String>) -> Result<TrustedKey, RegistryError> {
        let bad = |error: signature::KeyError| RegistryError::Refused(error.to_string());
        let (key_id, public_key) = signature::read_public_key(key).map_err(bad)?;
        if let Some(name) = &name {
            signature::check_name(name).map_err(bad)?;
        }
        // The writer says since when.
        let key = TrustedKey { key_id, public_key, name, added_at: 0 };
        let note = AuditEntry {
            signer: Some(key.key_id.clone()),
            ..entry(
                Actor::Operator,
                action::TRUSTED,
                serde_json::json!({ "publicKey": key.public_key, "name": key.name }),
            )
        };
        let key = self.writer.trust_key(key, note).await?;
        self.rescan().await?;
        Ok(key)
    }

    /// Believes a key no longer.
    ///
    /// # Errors
    /// Where it wasn't trusted.
    pub async fn distrust(&self, key_id: &str) -> Result<String, RegistryError> {
        let key_id = key_id.trim().to_ascii_uppercase();
        self.writer.distrust_key(&key_id).await?;
        self.rescan().await?;
        Ok(key_id)
    }

    /// Copies a plugin into the folder, whole or not at all, with the signature beside it.
    ///
    /// # Errors
    /// Why it is no usable plugin, or why it can't be copied.
    pub async fn install(&self, path: &Path) -> Result<PluginStatus, RegistryError> {
        let checked = self.check(path).await?;
        let service = checked.service.clone().unwrap_or_default();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RegistryError::Folder { path, source }
        };
        let bytes = read_capped(path, None).map_err(failed(path))?;
        let signature = match read_signature(&signature::beside(path), None) {
            Ok(signature) => Some(signature),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(&signature::beside(path))(source)),
        };
        let content = content_of(&bytes, signature.as_deref());
        let kind = if joined::is_template(path) { "toml" } else { "wasm" };
        let target =
            self.file_of(&service).unwrap_or_else(|| self.home.plugins().join(format!("{service}.{kind}")));
        if joined::is_template(path) != joined::is_template(&target) {
            return Err(RegistryError::Refused(format!(
                "`{service}` is served by {}, which is of the other kind; hint: `keywheel plugin remove {service}` takes it away, and its credentials stay",
                name_of(&target)
            )));
        }
        {
            // No scan may come between the two files.
            let _no_scan = self.seen.lock().await;
            let beside = signature::beside(&target);
            match signature {
                Some(signature) => {
                    crate::config::write_atomically(&beside, &signature).map_err(failed(&beside))?;
                }
                None => remove_if_there(&beside).map_err(failed(&beside))?,
            }
            crate::config::write_atomically(&target, &bytes).map_err(failed(&target))?;
            // Whatever it said before, it is meant now.
            self.in_inbox(|inbox| inbox.forget(&content))?;
        }
        self.rescan_until_still().await?;
        let name = name_of(&target);
        let installed =
            self.status().into_iter().find(|status| status.file == name && !status.elsewhere).ok_or_else(
                || RegistryError::Refused(format!("{name} was changed while it was installed")),
            )?;
        match installed.state {
            PluginState::Superseded => Err(WriteError::Changed { service }.into()),
            _ => Ok(installed),
        }
    }

    /// Removes a service's file and its signature; its credentials and reports stay. Where several
    /// hosts share the store none of them serves it any more, whichever had its file.
    ///
    /// # Errors
    /// Where nothing serves it.
    pub async fn remove(&self, service: &str) -> Result<String, RegistryError> {
        let nobody = || RegistryError::NoSuchService(service.to_owned());
        let path = self.file_of(service);
        if path.is_none() && self.inbox.is_none() {
            return Err(nobody());
        }
        let mut seen = self.seen.lock().await;
        let mut name = None;
        if self.inbox.is_some() {
            let known = self.known()?;
            let row = known.rows.get(service).filter(|row| row.state != state::REMOVED);
            // First of all: a file that is left over then says nothing any more.
            if let Some(row) = row {
                let note = AuditEntry { actor: Actor::Operator, ..words::of_row(action::REMOVED, row) };
                let decided_on = self.seen_at(Some(row));
                self.writer.set_provider_state(service, decided_on, state::REMOVED, note).await?;
                name = Some(row.file.clone().unwrap_or_else(|| service.to_owned()));
            }
        }
        if let Some(path) = &path {
            let failed = |path: &Path| {
                let path = path.to_owned();
                move |source| RegistryError::Folder { path, source }
            };
            fs::remove_file(path).map_err(failed(path))?;
            let beside = signature::beside(path);
            remove_if_there(&beside).map_err(failed(&beside))?;
            name = Some(name_of(path));
        }
        self.scan(&mut seen, Some(service)).await?;
        name.ok_or_else(nobody)
    }

    fn file_of(&self, service: &str) -> Option<PathBuf> {
        let status = self.status();
        let of = |state| {
            status.iter().find(|status| {
                status.service.as_deref() == Some(service) && status.state == state && !status.elsewhere
            })
        };
        of(PluginState::Active)
            .or_else(|| of(PluginState::PendingApproval))
            // A bad update: what it replaced is still served.
            .or_else(|| of(PluginState::Refused))
            .or_else(|| of(PluginState::Superseded))
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

/// A file's name as no other file of the folder has it, in text.
fn unmistakable(path: &Path) -> String {
    path.file_name().map(|name| name.as_bytes().escape_ascii().to_string()).unwrap_or_default()
}

/// A digest of a file and of the signature beside it.
fn content_of(bytes: &[u8], signature: Option<&[u8]>) -> String {
    let file = hex::encode(Sha256::digest(bytes));
    match signature {
        Some(signature) => hex::encode(Sha256::new().chain_update(&file).chain_update(signature).finalize()),
        None => file,
    }
}

/// Whether two versions were signed by the same key.
fn is_same(one: Option<&Signer>, other: Option<&Signer>) -> bool {
    one.map(|signer| &signer.public_key) == other.map(|signer| &signer.public_key)
}

fn to_json(grants: &Grants) -> Result<String, RegistryError> {
    serde_json::to_string(grants).map_err(|error| RegistryError::Refused(error.to_string()))
}

/// A row whose grants can't be read grants nothing.
fn grants_of(row: &ProviderRow) -> Grants {
    serde_json::from_str(&row.permissions_json).unwrap_or_default()
}

impl FileStamp {
    fn of(found: &fs::Metadata) -> Self {
        let changed = u64::try_from(found.ctime()).ok().zip(u32::try_from(found.ctime_nsec()).ok());
        Self {
            bytes: found.len(),
            modified: found.modified().ok(),
            changed: changed.map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)),
            inode: found.ino(),
            device: found.dev(),
        }
    }

    fn is_within(&self, span: Duration, now: SystemTime) -> bool {
        let young = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < span);
        // A file system without one of the times has the other.
        self.modified.is_some_and(young) || self.changed.is_some_and(young)
    }
}

impl Stamp {
    /// Whether the plugin or its signature may still be copied.
    fn is_settling(&self) -> bool {
        self.is_within(SETTLING, SystemTime::now())
    }

    /// Whether the plugin or its signature changed at most `span` before `now`.
    fn is_within(&self, span: Duration, now: SystemTime) -> bool {
        self.plugin.is_within(span, now)
            || self.signature.as_ref().is_some_and(|signature| signature.is_within(span, now))
    }
}

fn stamp_of(path: &Path) -> std::io::Result<Stamp> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let signature = match fs::metadata(signature::beside(path)) {
        Ok(found) => Some(FileStamp::of(&found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        // It is there, and reading it says what is wrong.
        Err(_) => Some(FileStamp::default()),
    };
    let interpreter = match joined::is_template(path) {
        // Where there is none, reading it says so.
        true => catalogue::folder()
            .ok()
            .and_then(|folder| fs::metadata(folder.join(catalogue::TEMPLATE_PROVIDER)).ok())
            .map(|found| FileStamp::of(&found)),
        false => None,
    };
    Ok(Stamp { plugin: FileStamp::of(&found), signature, interpreter })
}

/// A template is found by its service, so its file is named after it.
fn named_after_its_service(path: &Path, manifest: &Manifest) -> Result<(), String> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if !joined::is_template(path) || stem == manifest.service {
        return Ok(());
    }
    let (file, service) = (manifest::shown(&name_of(path)), &manifest.service);
    Err(format!(
        "the template is for the service `{service}` and its file is named {file}; hint: rename it to {service}.toml, or correct `service`"
    ))
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

/// Reads at most one byte more than allowed, whatever the file's size was a moment ago.
fn read_capped(path: &Path, stamp: Option<&FileStamp>) -> std::io::Result<Vec<u8>> {
    let bytes = read_at_most(path, stamp, limits::PLUGIN_BYTES + 1)?;
    if bytes.len() as u64 > limits::PLUGIN_BYTES {
        return Err(std::io::Error::other(format!("more than {} bytes", limits::PLUGIN_BYTES)));
    }
    Ok(bytes)
}

/// Never waits: a pipe may have taken the file's place since it was looked at.
/// With a stamp, it is of that very file: where a link was turned meanwhile, the bytes of one
/// would be remembered under the stamp of the other.
fn read_at_most(path: &Path, stamp: Option<&FileStamp>, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    if stamp.is_some_and(|stamp| *stamp != FileStamp::of(&found)) {
        return Err(std::io::Error::other("changed since it was looked at"));
    }
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_signature(path: &Path, stamp: Option<&FileStamp>) -> std::io::Result<Vec<u8>> {
    read_at_most(path, stamp, SIGNATURE_BYTES + 1)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
