//! How a home comes by the installation's master key: from a file of its own, or, where hosts share
//! a store, from there, sealed for this host's own key. And how hosts join, are admitted and get
//! another key. It keeps no key longer than it takes to make a vault of it.
//!
//! **Invariant:** at every moment of a change of keys, and wherever it is cut off, one of the files
//! at hand opens what is sealed in the store.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::store::{Store, StoreConfig};
use crate::config::{self, ConfigError, Home};
use crate::crash;
use crate::credential::{Millis, is_id};
use crate::db::host_keys::{Access, Ended, HostKeyError, HostKeyRow, HostKeys, MARKER};
use crate::db::queries::ReadError;
use crate::db::{DbError, HomeLock, Reader};
use crate::report::iso8601;
use crate::vault::wrapped::{HostKey, Recipient, fingerprint};
use crate::vault::{KeyBytes, Vault, VaultError};

/// What `is_id` allows, as short as a column of a table.
const LONGEST_NAME: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Row(#[from] HostKeyError),
    #[error(
        "nobody has admitted this host, `{name}`, yet; hint: on a host that has the master key: keywheel host admit {name} --fingerprint {fingerprint}"
    )]
    Asking { name: String, fingerprint: String },
    #[error(
        "this host, `{name}`, was revoked at {}; hint: to let the machine in again: keywheel host join, with a new home and another name", iso8601(*at)
    )]
    Revoked { name: String, at: Millis },
    #[error(
        "the store knows no host with the key in {} ({fingerprint}): it was refused, or it joined another store; hint: keywheel host join", path.display()
    )]
    Unknown { path: PathBuf, fingerprint: String },
    #[error(
        "nobody has used the store {0} yet, so there is no master key to be let in to; hint: name it in `[store]` of the first host's config.toml, then `keywheel init` there"
    )]
    Unused(String),
    #[error(
        "the store gives this host another master key ({found}) than it did before ({before}), and it was not used; hint: somebody put another installation in the store's place; if that was you, join again from a new home"
    )]
    OtherMaster { before: String, found: String },
    #[error("{0}")]
    Refused(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl KeyError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A vault, and the host of others' that it is for.
#[derive(Debug)]
pub struct Opened {
    pub vault: Vault,
    /// None: this home has the master key itself.
    pub host_id: Option<String>,
}

/// Opens the vault of a home, wherever its master key is.
///
/// # Errors
/// A key that can't be read or is another installation's; a host that isn't let in.
pub fn open(home: &Home) -> Result<Opened, KeyError> {
    let (master, host) = master_key(home)?;
    Ok(Opened { vault: Vault::of(&master), host_id: host.map(|host| host.host_id) })
}

/// Anybody can seal a key for a host, so whoever may write the store could have it take theirs, and
/// seal with that what is added from then on. The first that a host was given is the only one.
fn check_same(home: &Home, master: &KeyBytes) -> Result<(), KeyError> {
    let path = home.root().join("master.id");
    let found = Vault::of(master).streams().id();
    match fs::read_to_string(&path) {
        Ok(before) if before.trim() == found => Ok(()),
        Ok(before) => Err(KeyError::OtherMaster { before: before.trim().to_owned(), found }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A full disk must not keep a host from its secrets; the next time does it.
            if let Err(error) = config::write_atomically(&path, format!("{found}\n").as_bytes()) {
                tracing::warn!(%error, "which master key this host was given can't be written down");
            }
            Ok(())
        }
        Err(source) => Err(KeyError::Io { what: format!("{} can't be read", path.display()), source }),
    }
}

/// Brings a store that hosts share up to date: an older one doesn't say what is sealed for whom.
///
/// # Errors
/// Those of opening it for writing.
pub fn prepare(home: &Home) -> Result<(), KeyError> {
    if home.uses_host_key() {
        drop(HostKeys::open(&home.database())?);
    }
    Ok(())
}

/// The master key, and this host's row where it was sealed for that.
fn master_key(home: &Home) -> Result<(KeyBytes, Option<HostKeyRow>), KeyError> {
    if !home.uses_host_key() {
        let path = home.master_key();
        let master = match home.key_is_credential() {
            true => KeyBytes::master_credential(&path)?,
            false => KeyBytes::master(&path)?,
        };
        return Ok((master, None));
    }
    home.require()?;
    let reader = Reader::open(home.database())?;
    let (key, row) = own_row(home, &reader)?;
    let master = unsealed(&key, &row, &marker(home, &reader)?)?;
    check_same(home, &master)?;
    Ok((master, Some(row)))
}

fn unsealed(key: &HostKey, row: &HostKeyRow, marker: &[u8]) -> Result<KeyBytes, KeyError> {
    let name = row.name.clone();
    match (row.access(), &row.sealed_key, row.revoked_at) {
        (Access::Admitted, Some(sealed), _) => {
            let master = key.unwrap(recipient(marker, row, key.public()), sealed)?;
            master.check_marker(marker)?;
            Ok(master)
        }
        (_, _, Some(at)) => Err(KeyError::Revoked { name, at }),
        _ => Err(KeyError::Asking { name, fingerprint: fingerprint(&row.public_key) }),
    }
}

fn recipient<'a>(marker: &'a [u8], row: &'a HostKeyRow, public_key: &'a [u8]) -> Recipient<'a> {
    Recipient { installation: marker, host_id: &row.host_id, name: &row.name, public_key }
}

fn marker(home: &Home, reader: &Reader) -> Result<Vec<u8>, KeyError> {
    reader.installation(MARKER)?.ok_or_else(|| KeyError::Unused(name_of(&home.database())))
}

fn name_of(store: &Store) -> String {
    match store {
        Store::File(path) => path.display().to_string(),
        Store::Server(config) => config.url.clone(),
    }
}

fn open_key(home: &Home, path: &Path) -> Result<HostKey, VaultError> {
    match home.host_key_is_credential() {
        true => HostKey::open_credential(path),
        false => HostKey::open(path),
    }
}

/// Where the key lies that will replace the host's own.
fn next_key(home: &Home) -> PathBuf {
    let mut path = home.host_key().into_os_string();
    path.push(".next");
    path.into()
}

/// This host's key and its row. A change that was cut off leaves two keys, one of which counts.
fn own_row(home: &Home, reader: &Reader) -> Result<(HostKey, HostKeyRow), KeyError> {
    let next = next_key(home);
    if next.exists() {
        let key = HostKey::open(&next)?;
        if let Some(row) = reader.host_with_key(key.public())? {
            return Ok((key, row));
        }
    }
    let path = home.host_key();
    let key = open_key(home, &path)?;
    match reader.host_with_key(key.public())? {
        Some(row) => Ok((key, row)),
        None => Err(KeyError::Unknown { path, fingerprint: fingerprint(key.public()) }),
    }
}

/// Writes down whose installation a new store is, before anything is sealed in it.
///
/// # Errors
/// Where it is another's already, and the store's own.
pub fn claim(store: &StoreConfig, vault: &Vault) -> Result<(), KeyError> {
    let keys = HostKeys::open(&Store::Server(store.clone()))?;
    let stands = keys.remember_marker(&vault.marker()?)?;
    Ok(vault.check_marker(&stands)?)
}

// Joining

/// What `join` is told.
#[derive(Debug)]
pub struct Joining {
    pub store: StoreConfig,
    /// None: the machine's.
    pub name: Option<String>,
}

/// Makes a home whose host asks for the master key. In a home that has asked before it says how
/// that stands.
///
/// # Errors
/// A store that can't be joined, a name that is taken, a home that is another's. Nothing stays of a
/// home that was begun, unless the store was lost in the middle: then the same again goes on.
pub fn join(home: &Home, joining: &Joining) -> Result<HostKeyRow, KeyError> {
    let store = &joining.store;
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = &joining.name.clone().unwrap_or_else(machine);
    if !is_id(name) || name.len() > LONGEST_NAME {
        return Err(KeyError::Refused(format!(
            "the name {name:?} can't be a host's; allowed: 1 to {LONGEST_NAME} letters, digits and . _ @ + -, not starting with -; hint: --name"
        )));
    }
    check_home(home, store)?;
    let server = Store::Server(store.clone());
    // All that can be wrong with the store is looked for before anything is made.
    let reader = match Reader::open(&server) {
        Err(DbError::Missing(store)) => return Err(KeyError::Unused(store)),
        opened => opened?,
    };
    if reader.installation(MARKER)?.is_none() {
        return Err(KeyError::Unused(name_of(&server)));
    }
    let known = home.uses_host_key();
    if !known && let Some(row) = reader.host_named(name)? {
        return Err(HostKeyError::NameTaken { name: name.clone(), host_id: row.host_id }.into());
    }
    drop(reader);

    let mut made = Made::default();
    let asked = make(home, store, &mut made).and_then(|key| {
        crash::point("join.made");
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(VaultError::Random)?;
        Ok(HostKeys::open(&server)?.ask(&hex::encode(id), name, key.public())?)
    });
    match asked {
        // Whether it was written isn't known, and the key must not be lost if it was.
        Err(KeyError::Row(HostKeyError::Sql(_))) | Ok(_) => {}
        Err(_) => made.take_back(),
    }
    let row = asked?;
    match row.revoked_at {
        Some(at) => Err(KeyError::Revoked { name: row.name, at }),
        None if joining.name.as_ref().is_some_and(|name| *name != row.name) => {
            Err(KeyError::Refused(format!(
                "this home has joined as `{}`, not as `{name}`; hint: leave --name out, or join from a new home",
                row.name
            )))
        }
        None => Ok(row),
    }
}

/// Whether a folder is none yet, or the very home that has asked before.
fn check_home(home: &Home, store: &StoreConfig) -> Result<(), KeyError> {
    let root = home.root().display();
    if home.master_key() != home.own_master_key() {
        return Err(KeyError::Refused(format!(
            "the master key is said to be at {}, and a host that joins has none; hint: unset KEYWHEEL_MASTER_KEY",
            home.master_key().display()
        )));
    }
    if home.master_key().exists() {
        return Err(KeyError::Refused(format!(
            "{root} has the master key itself; hint: nothing was changed, join from another home"
        )));
    }
    if home.database_file().exists() {
        return Err(KeyError::Refused(format!(
            "{root} has a database of its own; hint: nothing was changed, join from another home"
        )));
    }
    match Store::named_in(&home.config()).map_err(|source| ConfigError::Io { path: home.config(), source })? {
        Some(named) if named == *store => Ok(()),
        None if !home.config().exists() => Ok(()),
        found => {
            let found = found.map_or_else(|| String::from("no store"), |found| found.url);
            Err(KeyError::Refused(format!(
                "{} is there and names {found}; hint: nothing was changed; give the same --store, --password-file and --ca-file as are in it, or join from another home",
                home.config().display()
            )))
        }
    }
}

/// What was made, to be taken back.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Made {
    /// Best effort: what went wrong is what is said.
    fn take_back(self) {
        for file in self.files {
            let _ = fs::remove_file(file);
        }
        // Only those that are empty go.
        for folder in self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The folders, the configuration, and at last the key that makes a home of them.
fn make(home: &Home, store: &StoreConfig, made: &mut Made) -> Result<HostKey, KeyError> {
    let folders = [home.plugins(), home.store(), home.cache(), home.late(), home.root().to_owned()];
    made.folders = folders.into_iter().filter(|folder| !folder.exists()).collect();
    home.make_folders()?;
    if !home.config().exists() {
        let named = Store::Server(store.clone());
        let text = config::store::renamed(config::TEMPLATE, &named)
            .ok_or_else(|| KeyError::Refused(format!("`{}` can't be written into config.toml", store.url)))?;
        made.files.push(home.config());
        config::write_atomically(&home.config(), text.as_bytes())
            .map_err(KeyError::io("config.toml can't be written"))?;
    }
    let path = home.host_key();
    if path.exists() {
        return Ok(open_key(home, &path)?);
    }
    let key = HostKey::create(&path)?;
    made.files.push(path);
    Ok(key)
}

// Admitting and revoking

/// A host that asks, as a person is to look at it.
///
/// # Errors
/// `NotFound`, and what stops the store from being read.
pub fn look_at(home: &Home, name: &str) -> Result<HostKeyRow, KeyError> {
    home.require()?;
    let found = Reader::open(home.database())?.host_named(name)?;
    Ok(found.ok_or_else(|| HostKeyError::NotFound(name.to_owned()))?)
}

/// Seals the master key for a host, as it was looked at.
///
/// # Errors
/// A home without the master key; a host that was revoked or isn't as it was looked at.
pub fn admit(home: &Home, host: &HostKeyRow) -> Result<(), KeyError> {
    home.require()?;
    let store = home.database();
    let keys = HostKeys::open(&store)?;
    let (master, _) = master_key(home)?;
    let marker = marker(home, &Reader::open(&store)?)?;
    // A wrong key would be handed on with the best intentions.
    master.check_marker(&marker)?;
    let sealed = master.wrap(recipient(&marker, host, &host.public_key))?;
    Ok(keys.admit(host, &sealed)?)
}

/// Takes away what is sealed for a host.
///
/// # Errors
/// `NotFound`; this very host, who might be the last that has the key.
pub fn revoke(home: &Home, name: &str) -> Result<Ended, KeyError> {
    home.require()?;
    let store = home.database();
    let keys = HostKeys::open(&store)?;
    if home.uses_host_key()
        && let Ok((_, own)) = own_row(home, &Reader::open(&store)?)
        && own.name == name
    {
        return Err(KeyError::Refused(format!(
            "`{name}` is this host itself, which may be the last that has the master key; hint: revoke it from another host"
        )));
    }
    Ok(keys.revoke(name)?)
}

// Another key

/// Gives this host a new key, and the master key sealed for that.
///
/// The new key lies beside the old one until the store holds what is sealed for it. Whoever opens
/// the home meanwhile takes the one that the store knows.
///
/// # Errors
/// A home without a host key, or with one that can't be replaced; a host that isn't let in.
pub fn rekey(home: &Home) -> Result<HostKeyRow, KeyError> {
    if !home.uses_host_key() {
        return Err(KeyError::Refused(format!(
            "{} has the master key itself, and no key of its own that could be replaced",
            home.root().display()
        )));
    }
    if home.host_key_is_credential() {
        return Err(KeyError::Refused(String::from(
            "systemd keeps this host's key, which can't be replaced from here; hint: keywheel host join from a new home, then revoke this one",
        )));
    }
    home.require()?;
    let _alone = HomeLock::acquire(&home.root().join("rekey.lock"))?;
    let store = home.database();
    let keys = HostKeys::open(&store)?;
    settle(home, &keys)?;
    let reader = Reader::open(&store)?;
    let (old, row) = own_row(home, &reader)?;
    let marker = marker(home, &reader)?;
    let master = unsealed(&old, &row, &marker)?;
    check_same(home, &master)?;

    let path = next_key(home);
    let new = HostKey::create(&path)?;
    crash::point("rekey.written");
    let sealed = master.wrap(recipient(&marker, &row, new.public()))?;
    match keys.replace(&row, new.public(), &sealed) {
        Ok(()) => {}
        // Whether it was done isn't known; the next who comes settles it.
        Err(error @ HostKeyError::Sql(_)) => return Err(error.into()),
        Err(error) => {
            // Best effort: what the store doesn't know counts for nothing.
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
    }
    crash::point("rekey.stored");
    take_over(home, &path)?;
    let public_key = new.public().to_vec();
    Ok(HostKeyRow { public_key, sealed_key: Some(sealed), ..row })
}

/// Ends a change of keys that was cut off: the new key counts if the store knows it.
fn settle(home: &Home, keys: &HostKeys) -> Result<(), KeyError> {
    let path = next_key(home);
    if !path.exists() {
        return Ok(());
    }
    let next = HostKey::open(&path)?;
    match keys.with_key(next.public())? {
        Some(_) => take_over(home, &path),
        None => fs::remove_file(&path).map_err(KeyError::io(format!("{} can't be removed", path.display()))),
    }
}

fn take_over(home: &Home, next: &Path) -> Result<(), KeyError> {
    let path = home.host_key();
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::rename(next, &path)
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(KeyError::io(format!("the new key can't take the place of {}", path.display())))
}
