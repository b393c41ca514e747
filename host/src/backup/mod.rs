//! Backups: one sealed file with everything that a home needs but its master key, made while the
//! daemon runs, and the way back into an empty home. It reads the database through copies alone,
//! never changes the home that it copies, and never leaves half a home behind.
//!
//! **Invariant:** what a backup brings back is in doubt until its service has been asked: nothing
//! of it is rotated blindly, for it may have been replaced since.
//!
//! In the sealed stream (`vault::stream`) lies a compressed tar: `backup.json`, which says what
//! follows, then `keywheel.db`, `config.toml`, `plugins/` and `store/`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use crate::config::{Home, KEY_NAME};
use crate::credential::{Millis, now};
use crate::db::copies::{self, Copied, CopyError, Holds, Restored};
use crate::db::{DbError, HomeLock, Reader, WriteError, Writer};
use crate::limits::BACKUP_FILE_BYTES;
use crate::report::iso8601;
use crate::vault::stream::{StreamError, StreamKey};
use crate::vault::{self, Vault, VaultError};

/// Of what lies in the tar. The stream around it has a version of its own.
const FORMAT: u32 = 1;

const CONTENTS: &str = "backup.json";
const DATABASE: &str = "keywheel.db";
const CONFIG: &str = "config.toml";
/// Folders, whose files are copied with their names.
const FOLDERS: [&str; 2] = ["plugins", "store"];

/// Where a copy or a home is put together, in the home itself: on the disk that has the room.
const SCRATCH: &str = ".backup-";
const STAGE: &str = ".restoring";

/// How often a copy is begun again whose plugins were replaced meanwhile.
const TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the backup holds {found}; allowed: {allowed}; nothing was restored")]
    Odd { found: String, allowed: &'static str },
    #[error(
        "{} is not empty ({found} is there); hint: a backup is restored into a new home, name another with --home", path.display()
    )]
    NotEmpty { path: PathBuf, found: String },
}

impl BackupError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        // What a stream found wrong with itself comes as an error of reading.
        move |source| match source.get_ref().and_then(|inner| inner.downcast_ref::<StreamError>()) {
            Some(_) => match source.into_inner().map(|inner| inner.downcast::<StreamError>()) {
                Some(Ok(error)) => Self::Stream(*error),
                _ => Self::Io { what, source: io::Error::from(io::ErrorKind::InvalidData) },
            },
            None => Self::Io { what, source },
        }
    }
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    pub format: u32,
    /// The keywheel that made it.
    pub keywheel: String,
    pub schema: u32,
    /// The moment of the database's copy.
    pub made_at: Millis,
    pub credentials: u64,
    pub reports: u64,
    /// Plugins that the database speaks of and the home has no file of.
    pub missing_plugins: Vec<String>,
}

/// Makes a backup of a home into `out`, which isn't synced here.
///
/// # Errors
/// Where the home can't be read or the receiver can't be written. What was written then is cut
/// short, and opens nowhere.
pub fn make(
    home: &Home,
    key: &StreamKey,
    out: impl Write,
    tell: &mut dyn FnMut(Copied),
) -> Result<Contents, BackupError> {
    let scratch = scratch(home)?;
    let copy = scratch.path().join(DATABASE);
    let (mut made_at, mut holds) = copy_database(home, &copy, tell)?;
    for _ in 1..TRIES {
        if missing(home, &holds).is_empty() {
            break;
        }
        // A plugin was replaced between the copy and this look.
        fs::remove_file(&copy).map_err(BackupError::io("the copy can't be made anew"))?;
        (made_at, holds) = copy_database(home, &copy, tell)?;
    }
    let contents = Contents {
        format: FORMAT,
        keywheel: env!("CARGO_PKG_VERSION").to_owned(),
        schema: holds.schema,
        made_at,
        credentials: holds.credentials,
        reports: holds.reports,
        missing_plugins: missing(home, &holds),
    };
    let unwritten = || BackupError::io("the backup can't be written");
    let sealing = key.seal(out).map_err(unwritten())?;
    // The fastest: the rest of the work is done for the disk and the cipher anyway.
    let mut tar = tar::Builder::new(GzEncoder::new(sealing, Compression::fast()));
    let said = serde_json::to_vec_pretty(&contents).map_err(|error| BackupError::Io {
        what: String::from("the backup can't be described"),
        source: io::Error::other(error),
    })?;
    append(&mut tar, CONTENTS, said.len() as u64, said.as_slice())?;
    append_file(&mut tar, DATABASE, &copy)?;
    if home.config().exists() {
        append_file(&mut tar, CONFIG, &home.config())?;
    }
    for folder in FOLDERS {
        for (name, path) in files_of(&home.root().join(folder))? {
            append_file(&mut tar, &format!("{folder}/{name}"), &path)?;
        }
    }
    let finished = tar.into_inner().and_then(GzEncoder::finish).map_err(unwritten())?;
    finished.finish().map_err(unwritten())?;
    Ok(contents)
}

fn copy_database(
    home: &Home,
    copy: &Path,
    tell: &mut dyn FnMut(Copied),
) -> Result<(Millis, Holds), BackupError> {
    let made_at = now();
    Reader::open(home.database())?.copy_to(copy, tell)?;
    Ok((made_at, copies::look_through(copy, false)?))
}

fn missing(home: &Home, holds: &Holds) -> Vec<String> {
    let has = |digest: &&String| home.store().join(format!("{digest}.wasm")).exists();
    holds.digests.iter().filter(|digest| !has(digest)).cloned().collect()
}

/// A folder for the copy. What killed backups left behind goes.
fn scratch(home: &Home) -> Result<tempfile::TempDir, BackupError> {
    let unusable = || BackupError::io("the home has no room for the copy");
    for entry in fs::read_dir(home.root()).map_err(unusable())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix(SCRATCH).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if pid.bytes().all(|byte| byte.is_ascii_digit()) && !Path::new("/proc").join(pid).exists() {
            // Best effort: it takes room and nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{SCRATCH}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(home.root()).map_err(unusable())
}

/// The regular files of a folder, by their names. A link counts as what it leads to, as for the
/// registry; hidden ones are somebody's unfinished copies.
fn files_of(folder: &Path) -> Result<Vec<(String, PathBuf)>, BackupError> {
    let unreadable = || BackupError::io(format!("{} can't be read", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable())?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable())?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with('.') && path.is_file() {
            files.push((name.to_owned(), path.clone()));
        }
    }
    files.sort();
    Ok(files)
}

fn append_file(tar: &mut tar::Builder<impl Write>, name: &str, path: &Path) -> Result<(), BackupError> {
    let unreadable = || BackupError::io(format!("{} can't be copied", path.display()));
    let file = match File::open(path) {
        // Removed since the folder was listed: it is in nobody's backup then.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(unreadable())?,
    };
    let length = file.metadata().map_err(unreadable())?.len();
    append(tar, name, length, file)
}

/// One that grows while it is read ends where it ended before; one that shrinks is an error.
fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    length: u64,
    from: impl Read,
) -> Result<(), BackupError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o600);
    header.set_mtime(now() / 1_000);
    let mut counted = from.take(length);
    let appended = tar.append_data(&mut header, name, &mut counted);
    appended.map_err(BackupError::io(format!("{name} can't be written into the backup")))?;
    if counted.limit() > 0 {
        return Err(BackupError::Io {
            what: format!("{name} became shorter while it was copied; hint: try again"),
            source: io::Error::from(io::ErrorKind::UnexpectedEof),
        });
    }
    Ok(())
}

/// Takes a backup apart in a folder and looks at everything in it, the whole database included.
///
/// # Errors
/// Where it isn't whole, isn't of this master key, or holds what it shouldn't.
fn unpack(from: impl Read, vault: &Vault, into: &Path) -> Result<Contents, BackupError> {
    let unreadable = || BackupError::io("the backup can't be read");
    let opening = vault.streams().open(from).map_err(unreadable())?;
    let mut tar = tar::Archive::new(GzDecoder::new(opening));
    let mut contents = None;
    for entry in tar.entries().map_err(unreadable())? {
        let mut entry = entry.map_err(unreadable())?;
        let path = entry.path().map_err(unreadable())?.into_owned();
        let name = name_of(&path, entry.header().entry_type())?;
        let size = entry.size();
        if name == CONTENTS {
            let said: Contents = read_contents(&mut entry)?;
            contents = Some(said);
            continue;
        }
        if contents.is_none() {
            return Err(BackupError::Odd { found: name, allowed: "backup.json at first" });
        }
        if name != DATABASE && size > BACKUP_FILE_BYTES {
            let found = format!("{name} of {} MiB", size >> 20);
            return Err(BackupError::Odd { found, allowed: "files of 128 MiB at the most" });
        }
        write_file(&into.join(&name), &mut entry)?;
    }
    // What follows the archive's end is read as well: only the stream's end proves that it is whole.
    let mut rest = tar.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(unreadable())?;
    io::copy(&mut rest.into_inner(), &mut io::sink()).map_err(unreadable())?;
    let contents =
        contents.ok_or(BackupError::Odd { found: "nothing".into(), allowed: "backup.json at first" })?;
    let database = into.join(DATABASE);
    if !database.exists() {
        return Err(BackupError::Odd { found: "no database".into(), allowed: "one with it" });
    }
    let holds = copies::look_through(&database, true)?;
    if (holds.schema, holds.credentials) != (contents.schema, contents.credentials) {
        let found = format!("schema {} and {} credentials", holds.schema, holds.credentials);
        return Err(BackupError::Odd { found, allowed: "what backup.json says" });
    }
    match &holds.marker {
        Some(marker) => vault.check_marker(marker)?,
        // A home whose daemon never ran has none, and no secret either.
        None if holds.credentials == 0 => {}
        None => return Err(VaultError::WrongKey.into()),
    }
    Ok(contents)
}

fn read_contents(entry: &mut impl Read) -> Result<Contents, BackupError> {
    let mut text = Vec::new();
    entry.take(1 << 20).read_to_end(&mut text).map_err(BackupError::io("the backup can't be read"))?;
    let said: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| BackupError::Odd { found: error.to_string(), allowed: "JSON in backup.json" })?;
    // Before its other fields: those of a later format may be others.
    if said["format"] != FORMAT {
        return Err(BackupError::Odd {
            found: format!("a tree of format {}", said["format"]),
            allowed: "1; hint: restore it with the keywheel that made it",
        });
    }
    serde_json::from_value(said)
        .map_err(|error| BackupError::Odd { found: error.to_string(), allowed: "the fields of format 1" })
}

/// The name that an entry has in a home, if there is a place for it.
fn name_of(path: &Path, kind: tar::EntryType) -> Result<String, BackupError> {
    let odd = || BackupError::Odd {
        found: format!("{:?}", path.display().to_string()),
        allowed: "backup.json, keywheel.db, config.toml and files in plugins/ and store/",
    };
    let parts: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().ok_or_else(odd),
            _ => Err(odd()),
        })
        .collect::<Result<_, _>>()?;
    let known = match parts.as_slice() {
        [CONTENTS | DATABASE | CONFIG] => true,
        [folder, name] => FOLDERS.contains(folder) && !name.starts_with('.'),
        _ => false,
    };
    if known && kind.is_file() { Ok(parts.join("/")) } else { Err(odd()) }
}

fn write_file(path: &Path, from: &mut impl Read) -> Result<(), BackupError> {
    let unwritten = || BackupError::io(format!("{} can't be written", path.display()));
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unwritten())?;
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(unwritten())?;
    io::copy(from, &mut file).map_err(unwritten())?;
    file.sync_all().map_err(unwritten())
}

/// Opens a backup and looks at everything in it; nothing of it stays.
///
/// # Errors
/// Those of `unpack`.
pub fn verify(from: impl Read, vault: &Vault, beside: &Path) -> Result<Contents, BackupError> {
    let folder = tempfile::Builder::new()
        .prefix(".keywheel-verify-")
        .tempdir_in(beside)
        .map_err(BackupError::io("there is no room to take the backup apart"))?;
    unpack(from, vault, folder.path())
}

/// Where a restored home's master key comes from.
#[derive(Debug, Clone)]
pub enum MasterKey {
    /// It is copied from this file into the home.
    Copied(PathBuf),
    /// It stays where it is: `KEYWHEEL_MASTER_KEY`, or a credential of systemd's.
    Elsewhere,
}

/// Makes a home of a backup, in a folder that is empty or not there yet. Everything is taken apart
/// and looked at in a folder within; only then it is put in place, the database last: before that
/// the folder is no home.
///
/// # Errors
/// Where the backup or the folder can't be used. The folder is as it was then.
pub async fn restore(
    from: impl Read,
    vault: &Vault,
    key: MasterKey,
    home: &Home,
    nothing_ran_since: bool,
) -> Result<Contents, BackupError> {
    let root = home.root();
    let unmade = || BackupError::io(format!("{} can't be made", root.display()));
    let was_there = root.exists();
    if was_there {
        let found = fs::read_dir(root).map_err(unmade())?.flatten().map(|entry| entry.file_name());
        // A file system of its own has the first in it, a restore that was killed leaves the second.
        let matters = |name: &std::ffi::OsString| name != "lost+found" && name != STAGE;
        if let Some(found) = found.into_iter().find(matters) {
            let found = found.to_string_lossy().into_owned();
            return Err(BackupError::NotEmpty { path: root.to_owned(), found });
        }
    }
    let stage = root.join(STAGE);
    if stage.exists() {
        fs::remove_dir_all(&stage).map_err(unmade())?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&stage).map_err(unmade())?;
    let restored = fill(from, vault, key, home, &stage, nothing_ran_since).await;
    if restored.is_err() {
        // Best effort: what went wrong is what is said.
        let _ = fs::remove_dir_all(&stage);
        for name in [DATABASE, CONFIG, KEY_NAME] {
            let _ = fs::remove_file(root.join(name));
        }
        for folder in FOLDERS {
            let _ = fs::remove_dir_all(root.join(folder));
        }
        if !was_there {
            let _ = fs::remove_dir(root);
        }
    }
    restored
}

async fn fill(
    from: impl Read,
    vault: &Vault,
    key: MasterKey,
    home: &Home,
    stage: &Path,
    nothing_ran_since: bool,
) -> Result<Contents, BackupError> {
    let root = home.root();
    let contents = unpack(from, vault, stage)?;
    let lock = HomeLock::acquire(&stage.join("lock"))?;
    let database = stage.join(DATABASE);
    let (writer, thread) = Writer::start(&database, lock)?;
    let begun = writer.begin_restored(Restored { backup_of: contents.made_at, nothing_ran_since }).await;
    drop(writer);
    // Closed, so that everything is in the one file.
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    begun?;
    let unplaced = || BackupError::io(format!("{} can't be put together", root.display()));
    if let MasterKey::Copied(file) = &key {
        vault::copy_key(file, &stage.join(KEY_NAME))?;
    }
    for folder in FOLDERS {
        DirBuilder::new().recursive(true).mode(0o700).create(stage.join(folder)).map_err(unplaced())?;
        sync(&stage.join(folder)).map_err(unplaced())?;
    }
    sync(&database).and_then(|()| sync(stage)).map_err(unplaced())?;
    // The database last: without it nothing here counts as a home.
    for name in FOLDERS.into_iter().chain([CONFIG, KEY_NAME, DATABASE]) {
        if stage.join(name).exists() {
            fs::rename(stage.join(name), root.join(name)).map_err(unplaced())?;
        }
    }
    fs::remove_dir_all(stage).map_err(unplaced())?;
    home.make_folders().map_err(|error| BackupError::Io {
        what: String::from("the home's folders can't be made"),
        source: io::Error::other(error),
    })?;
    sync(root).map_err(unplaced())?;
    Ok(contents)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The name of a backup among others in a folder: the moment it is of.
pub fn file_name(at: Millis) -> String {
    let moment: String = iso8601(at).chars().filter(char::is_ascii_alphanumeric).collect();
    format!("keywheel-{moment}.backup")
}

/// Of the backups in a folder, those past the `keep` newest, by their names.
pub fn past(names: &[String], keep: usize) -> Vec<&String> {
    let ours = |name: &&String| {
        let moment = name.strip_prefix("keywheel-").and_then(|rest| rest.strip_suffix(".backup"));
        moment.is_some_and(|moment| moment.starts_with(|c: char| c.is_ascii_digit()) && moment.ends_with('Z'))
    };
    let mut ours: Vec<&String> = names.iter().filter(ours).collect();
    ours.sort_unstable_by(|one, other| other.cmp(one));
    ours.into_iter().skip(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_place_in_a_home_is_taken_out_of_a_backup() {
        let of = |path: &str, kind| name_of(Path::new(path), kind).is_ok();
        for good in ["keywheel.db", "config.toml", "backup.json", "plugins/a.wasm", "store/ab.wasm"] {
            assert!(of(good, tar::EntryType::Regular), "{good}");
        }
        for bad in [
            "master.key",
            "../keywheel.db",
            "/keywheel.db",
            "plugins/../master.key",
            "plugins/.hidden",
            "plugins/a/b",
            "cache/x",
            "plugins",
            "lock",
        ] {
            assert!(!of(bad, tar::EntryType::Regular), "{bad}");
        }
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Directory] {
            assert!(!of("plugins/a.wasm", kind), "{kind:?}");
        }
    }

    #[test]
    fn the_oldest_backups_go_and_nothing_else() {
        let names: Vec<String> = [1_700_000_000_000, 1_800_000_000_000, 1_750_000_000_000]
            .map(file_name)
            .into_iter()
            .chain(["keywheel-mine.backup".into(), "other.backup".into()])
            .collect();
        assert_eq!(names[1], "keywheel-20270115T080000000Z.backup");
        assert_eq!(past(&names, 2), [&names[0]]);
        assert_eq!(past(&names, 0).len(), 3);
        assert!(past(&names, 5).is_empty());
    }
}
