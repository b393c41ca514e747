//! A folder that is filled whole or not at all: written beside its place and moved there, so that
//! whatever fails leaves nothing behind.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cli::Failure;

/// One file, below its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub bytes: Vec<u8>,
    pub executable: bool,
}

/// Only a new or an empty folder may be filled.
pub fn require_empty(folder: &Path) -> Result<(), Failure> {
    let there = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // A file, or not ours to read.
        Err(_) => true,
    };
    if there {
        return Err(Failure::BadInput(format!(
            "{} is there and not empty; allowed: a new or an empty folder; hint: name another",
            folder.display()
        )));
    }
    Ok(())
}

/// The folder that it is made in.
pub fn require_parent(folder: &Path) -> Result<&Path, Failure> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(Failure::NotFound(format!(
            "{} is to be made in {}, which is no folder; hint: `mkdir -p {}`",
            folder.display(),
            parent.display(),
            parent.display()
        )));
    }
    Ok(parent)
}

/// All of them or none.
pub fn write(folder: &Path, files: &[File]) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let beside = tempfile::Builder::new().prefix(".keywheel-new-").tempdir_in(parent)?;
    // A folder within, for that of `tempfile` is closed to everybody else.
    let project = beside.path().join("project");
    std::fs::create_dir(&project)?;
    for file in files {
        let path = project.join(&file.path);
        std::fs::create_dir_all(path.parent().unwrap_or(&project))?;
        std::fs::write(&path, &file.bytes)?;
        if file.executable {
            let mut permissions = std::fs::metadata(&path)?.permissions();
            permissions.set_mode(permissions.mode() | 0o111);
            std::fs::set_permissions(&path, permissions)?;
        }
    }
    // Over an empty folder this works as over none; one that was filled meanwhile stays as it is.
    let place = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    std::fs::rename(&project, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<File> {
        let file = |path: &str| File { path: path.into(), bytes: b"x".to_vec(), executable: false };
        vec![file("a"), file("b/c")]
    }

    #[test]
    fn a_folder_is_filled_whole_or_not_at_all() {
        let outside = tempfile::tempdir().unwrap();
        let there = |name: &str| outside.path().join(name);
        let entries = || {
            let mut names: Vec<_> = std::fs::read_dir(outside.path()).unwrap().flatten().collect();
            names.sort_by_key(std::fs::DirEntry::file_name);
            names.into_iter().map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        write(&there("new"), &files()).unwrap();
        assert_eq!(std::fs::read(there("new/b/c")).unwrap(), b"x");
        std::fs::create_dir(there("empty")).unwrap();
        write(&there("empty"), &files()).unwrap();
        // Somebody was faster.
        std::fs::create_dir_all(there("full/of")).unwrap();
        assert!(write(&there("full"), &files()).is_err());
        // A file that can't be written: its folder is a file.
        let clash = [files(), vec![File { path: "a/d".into(), bytes: vec![], executable: false }]].concat();
        assert!(write(&there("broken"), &clash).is_err());
        assert_eq!(entries(), ["empty", "full", "new"]);
    }

    #[test]
    fn only_a_new_or_an_empty_folder_is_taken() {
        let outside = tempfile::tempdir().unwrap();
        assert!(require_empty(&outside.path().join("new")).is_ok());
        assert!(require_empty(outside.path()).is_ok());
        std::fs::write(outside.path().join("x"), b"").unwrap();
        let said = require_empty(outside.path()).unwrap_err().to_string();
        assert!(said.contains("not empty"), "{said}");
        assert!(require_empty(&outside.path().join("x")).is_err());
    }
}
