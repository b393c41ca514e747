//! `plugin new`: a project that builds and passes its tests at once. It is written beside its
//! place and moved there, so that whatever fails leaves nothing behind.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::scaffold::{self, File, Names};
use super::{Language, shown, tools};
use crate::cli::Failure;
use crate::cli::output::Output;
use crate::registry::manifest::check_service_name;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service it is for: a-z, 0-9 and `-`
    service: String,
    /// What to write it in
    #[arg(long, default_value = "rust")]
    lang: Language,
    /// The project's folder, which must be new or empty [default: the service's name]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Another SDK for Rust than the one this program carries
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Arguments { service, lang, into, sdk } = arguments;
    check_service_name(&service).map_err(|error| Failure::BadInput(error.to_string()))?;
    let folder = into.unwrap_or_else(|| PathBuf::from(&service));
    let folder = std::path::absolute(&folder)
        .map_err(Failure::io(format!("{} can't be a folder", folder.display())))?;
    require_empty(&folder)?;
    let parent = folder.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(Failure::NotFound(format!(
            "{} is to be made in {}, which is no folder; hint: `mkdir -p {}`",
            folder.display(),
            parent.display(),
            parent.display()
        )));
    }
    let sdk = sdk.map(|sdk| sdk_at(&sdk, lang)).transpose()?;
    tools::require(lang, parent).await?;

    let names = Names::of(&service);
    let files =
        scaffold::project(lang, &names, sdk.as_deref()).map_err(|error| Failure::Other(error.to_string()))?;
    write(&folder, &files).map_err(Failure::io(format!("{} can't be written", folder.display())))?;

    let made = json!({
        "service": service,
        "language": lang.word(),
        "folder": folder,
        "files": files.iter().map(|file| &file.path).collect::<Vec<_>>(),
    });
    output.value(&made, || {
        let next = match lang {
            Language::Rust => format!(
                "cargo test\n  cargo build --release --target {}\n  keywheel plugin test target/{}/release/{}",
                tools::TARGET,
                tools::TARGET,
                names.artefact()
            ),
            Language::Js | Language::Python => "keywheel plugin dev --once".to_owned(),
        };
        format!(
            "{} is a provider for `{service}`: a token that is checked and swapped. Make it your service's in {}, and try it:\n  cd {}\n  {next}",
            shown(&folder),
            lang.source(),
            shown(&folder),
        )
    });
    Ok(())
}

fn require_empty(folder: &Path) -> Result<(), Failure> {
    let there = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // A file, or not ours to read.
        Err(_) => true,
    };
    if there {
        return Err(Failure::BadInput(format!(
            "{} is there and not empty; allowed: a new or an empty folder; hint: `--into DIR` names another",
            folder.display()
        )));
    }
    Ok(())
}

/// The SDK that was named, as an absolute path.
fn sdk_at(sdk: &Path, language: Language) -> Result<String, Failure> {
    if language != Language::Rust {
        return Err(Failure::Usage(format!(
            "--sdk names the SDK for Rust; a provider in {} needs only the contract, which is written along",
            language.word()
        )));
    }
    let found = sdk.canonicalize().map_err(Failure::io(format!("{} can't be found", sdk.display())))?;
    let manifest = std::fs::read_to_string(found.join("Cargo.toml")).unwrap_or_default();
    let is_sdk = manifest.parse::<toml::Table>().is_ok_and(|manifest| {
        manifest.get("package").and_then(|package| package.get("name")?.as_str()) == Some("keywheel-sdk")
    });
    if !is_sdk {
        return Err(Failure::BadInput(format!(
            "{} is not the SDK; allowed: a folder whose Cargo.toml names the package `keywheel-sdk`; hint: it is `plugin-sdk` in Keywheel's source, and without --sdk this program writes its own",
            sdk.display()
        )));
    }
    found.into_os_string().into_string().map_err(|_| Failure::BadInput("--sdk: its path is no text".into()))
}

/// All of them or none.
fn write(folder: &Path, files: &[File]) -> io::Result<()> {
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
        assert!(said.contains("not empty") && said.contains("--into"), "{said}");
        assert!(require_empty(&outside.path().join("x")).is_err());
    }
}
