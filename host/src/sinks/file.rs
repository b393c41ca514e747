//! Writes a sink's file: whole or not at all, never through a symbolic link, never for a moment
//! readable by others than its owner will be. The old file stays where anything goes wrong. It
//! makes no folder, for a disk that isn't mounted would go unnoticed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::config::sinks::{Mode, Owner};

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} can't be written; hint: its folder must exist and be writable for the daemon's user: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can't be written: its folder doesn't exist; hint: make it, Keywheel doesn't", .0.display())]
    NoFolder(PathBuf),
    #[error("{} is {what}; allowed: a file, or nothing yet; hint: name the file itself", path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("there is no {what} `{name}` in {file}; hint: a number does as well")]
    NoSuchOwner { what: &'static str, name: String, file: &'static str },
    #[error("{} can't be given to its owner: {source}; hint: only root gives files to another user, and a user only to groups of his own", path.display())]
    Owner {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a file looks like from outside. While it stays the same nobody has touched the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    place: (u64, u64),
    size: u64,
    times: [i64; 4],
    mode: u32,
    owner: (u32, u32),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            place: (found.dev(), found.ino()),
            size: found.size(),
            times: [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()],
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
        }
    }

    /// None: there is no file, or none that can be looked at.
    pub fn at(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().map(|found| Self::of(&found))
    }
}

/// The numbers of an owner's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ids {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

impl Ids {
    /// # Errors
    /// A name that this machine's own files don't have.
    pub fn of(owner: Option<&Owner>) -> Result<Self, FileError> {
        let Some(owner) = owner else { return Ok(Self::default()) };
        let number = |name: &Option<String>, what, file: &'static str| {
            let Some(name) = name else { return Ok(None) };
            let listed = || number_in(&std::fs::read_to_string(file).unwrap_or_default(), name);
            match name.parse().ok().or_else(listed) {
                Some(number) => Ok(Some(number)),
                None => Err(FileError::NoSuchOwner { what, name: name.clone(), file }),
            }
        };
        Ok(Self {
            user: number(&owner.user, "user", "/etc/passwd")?,
            group: number(&owner.group, "group", "/etc/group")?,
        })
    }
}

/// The number beside a name, in the form of passwd(5) and group(5).
fn number_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Makes the file hold these bytes, with this mode and owner. Returns whether it had to be written.
///
/// # Errors
/// Why it can't be; what was there is untouched then.
pub fn put(path: &Path, bytes: &[u8], mode: Mode, ids: Ids) -> Result<bool, FileError> {
    if is_there(path, bytes, mode, ids)? {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(FileError::NoFolder(path.to_owned()));
    }
    // Always the same name: what a daemon that was killed left behind is taken away by the next
    // try, and two of a sink's deliveries never run at once.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.keywheel"));
    let written = write_beside(&beside, bytes, mode, ids, path).and_then(|()| {
        let replace = || {
            std::fs::rename(&beside, path)?;
            File::open(folder)?.sync_all()
        };
        replace().map_err(|source| FileError::Write { path: path.to_owned(), source })
    });
    if written.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| true)
}

fn write_beside(beside: &Path, bytes: &[u8], mode: Mode, ids: Ids, path: &Path) -> Result<(), FileError> {
    let write = |source| FileError::Write { path: path.to_owned(), source };
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
        _ => {}
    }
    // Of its own: neither a file nor a link that somebody put there meanwhile is opened.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside).map_err(write)?;
    file.write_all(bytes).map_err(write)?;
    if ids != Ids::default() {
        fchown(&file, ids.user, ids.group)
            .map_err(|source| FileError::Owner { path: path.to_owned(), source })?;
    }
    // Last, for until then it is for its owner alone; and never less by anybody's umask.
    file.set_permissions(std::fs::Permissions::from_mode(mode.0)).map_err(write)?;
    file.sync_all().map_err(write)
}

/// Whether the file is there as it should be.
fn is_there(path: &Path, bytes: &[u8], mode: Mode, ids: Ids) -> Result<bool, FileError> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(FileError::Write { path: path.to_owned(), source }),
    };
    let what = match found.file_type() {
        kind if kind.is_file() => None,
        // Followed, it would let whoever may write the link choose the file; replaced, whoever
        // made it would wonder.
        kind if kind.is_symlink() => Some("a symbolic link"),
        kind if kind.is_dir() => Some("a folder"),
        _ => Some("neither a file nor a folder"),
    };
    if let Some(what) = what {
        return Err(FileError::NotAFile { path: path.to_owned(), what });
    }
    let is_owners =
        ids.user.is_none_or(|user| user == found.uid()) && ids.group.is_none_or(|group| group == found.gid());
    if found.size() != bytes.len() as u64 || found.mode() & 0o7777 != mode.0 || !is_owners {
        return Ok(false);
    }
    let mut held = zeroize::Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    let read = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.take(bytes.len() as u64 + 1).read_to_end(&mut held));
    // What can't be read can still be replaced.
    Ok(read.is_ok() && *held == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Mode = Mode(0o600);

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_once_with_its_mode_and_again_only_where_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cookies.txt");
        let put = |bytes: &[u8], mode| put(&path, bytes, mode, Ids::default()).unwrap();
        assert!(put(b"one", Mode(0o640)));
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640);
        let first = Stamp::at(&path).unwrap();
        assert!(!put(b"one", Mode(0o640)));
        assert_eq!(Stamp::at(&path), Some(first));
        assert!(put(b"one", PRIVATE));
        assert!(put(b"two", PRIVATE));
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        // As long and of the same mode, but not the same.
        std::fs::write(&path, "2wo").unwrap();
        assert!(put(b"two", PRIVATE));
        std::fs::remove_file(&path).unwrap();
        assert!(put(b"two", PRIVATE));
        assert_eq!(names(folder.path()), ["cookies.txt"]);
    }

    #[test]
    fn what_is_no_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, "mine").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let said = put(&link, b"secret", PRIVATE, Ids::default()).unwrap_err().to_string();
        assert!(said.contains("is a symbolic link; allowed: a file, or nothing yet"), "{said}");
        let said = put(folder.path(), b"secret", PRIVATE, Ids::default()).unwrap_err().to_string();
        assert!(said.contains("is a folder"), "{said}");
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["link", "other"]);
    }

    #[test]
    fn what_fails_leaves_the_old_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "old").unwrap();
        // Something that can't be taken away is in the way of what is written first.
        std::fs::create_dir(folder.path().join(".f.keywheel")).unwrap();
        let said = put(&path, b"new", PRIVATE, Ids::default()).unwrap_err().to_string();
        assert!(said.contains("can't be written; hint: its folder must exist"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        std::fs::remove_dir(folder.path().join(".f.keywheel")).unwrap();
        assert!(put(&path, b"new", PRIVATE, Ids::default()).unwrap());
        assert_eq!(names(folder.path()), ["f"]);
        let said = put(&folder.path().join("no/f"), b"new", PRIVATE, Ids::default()).unwrap_err().to_string();
        assert!(said.contains("its folder doesn't exist; hint: make it"), "{said}");
    }

    #[test]
    fn a_leftover_of_a_killed_daemon_is_taken_away_and_a_link_in_its_place_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) = (folder.path().join("f"), folder.path().join(".f.keywheel"));
        std::fs::write(&beside, "half a secr").unwrap();
        assert!(put(&path, b"new", PRIVATE, Ids::default()).unwrap());
        assert_eq!(names(folder.path()), ["f"]);
        let other = folder.path().join("other");
        std::fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, &beside).unwrap();
        assert!(put(&path, b"newer", PRIVATE, Ids::default()).unwrap());
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["f", "other"]);
    }

    #[test]
    fn an_owner_is_a_number_or_a_name_of_this_machine() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:997:996::/srv/app:/usr/sbin/nologin\n";
        assert_eq!(number_in(passwd, "app"), Some(997));
        assert_eq!(number_in(passwd, "ap"), None);
        let owner = |user: Option<&str>, group: Option<&str>| Owner {
            user: user.map(str::to_owned),
            group: group.map(str::to_owned),
        };
        assert_eq!(Ids::of(Some(&owner(Some("12"), None))).unwrap(), Ids { user: Some(12), group: None });
        assert_eq!(Ids::of(Some(&owner(None, Some("root")))).unwrap(), Ids { user: None, group: Some(0) });
        assert_eq!(Ids::of(None).unwrap(), Ids::default());
        let said = Ids::of(Some(&owner(Some("no-such-user"), None))).unwrap_err().to_string();
        assert!(said.starts_with("there is no user `no-such-user` in /etc/passwd; hint: a number"), "{said}");
    }
}
