//! Builds an author's project: which language it is in, by which command, and which file comes of
//! it. The compiler's words are the author's to read, so they are passed on as they are.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Language, tools};
use crate::cli::Failure;

/// What a folder or a file is to `plugin dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub folder: PathBuf,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Source(Language),
    /// A template provider: nothing to build.
    Template(PathBuf),
}

/// What came of a build.
#[derive(Debug)]
pub enum Built {
    Plugin(PathBuf),
    /// The compiler's words, or ours where it said nothing.
    Failed(String),
}

/// What builds a project that cargo doesn't, and where its plugin goes.
const SCRIPT: &str = "build.sh";
const BUILT: &str = "dist";

/// Folders that hold no source.
pub const NO_SOURCE: [&str; 7] = ["target", "node_modules", "dist", "build", "__pycache__", ".venv", "venv"];

impl Project {
    /// # Errors
    /// Where nothing says what it is.
    pub fn at(place: &Path) -> Result<Self, Failure> {
        let place =
            std::path::absolute(place).map_err(Failure::io(format!("{} can't be found", place.display())))?;
        let is_template = place.extension().is_some_and(|kind| kind == "toml");
        if place.is_file() && is_template && place.file_name().is_some_and(|name| name != "Cargo.toml") {
            let folder = place.parent().unwrap_or(Path::new("/")).to_owned();
            return Ok(Self { folder, kind: Kind::Template(place) });
        }
        let marks = [
            ("Cargo.toml", Language::Rust),
            ("package.json", Language::Js),
            ("pyproject.toml", Language::Python),
            ("requirements.txt", Language::Python),
        ];
        let found = marks.iter().find(|(mark, _)| place.join(mark).is_file());
        match found {
            Some((_, language)) => Ok(Self { folder: place, kind: Kind::Source(*language) }),
            None => Err(Failure::NotFound(format!(
                "{} is no provider's project; allowed: a folder with Cargo.toml, package.json or pyproject.toml, or a template's .toml file; hint: `keywheel plugin new SERVICE` makes one",
                place.display()
            ))),
        }
    }

    /// Builds it once.
    ///
    /// # Errors
    /// Where a tool isn't there or can't be started; what a compiler refuses is no error of ours.
    pub async fn build(&self) -> Result<Built, Failure> {
        match &self.kind {
            Kind::Template(file) => Ok(Built::Plugin(file.clone())),
            Kind::Source(language) => {
                tools::require(*language, &self.folder).await?;
                match language {
                    Language::Rust => self.cargo().await,
                    Language::Js => self.npm().await,
                    Language::Python => self.script().await,
                }
            }
        }
    }

    async fn cargo(&self) -> Result<Built, Failure> {
        let colour = [("CARGO_TERM_COLOR", "never")];
        let arguments = [
            "build",
            "--quiet",
            "--release",
            "--target",
            tools::TARGET,
            "--message-format=json-render-diagnostics",
        ];
        let ran = tools::run("cargo", &arguments, &self.folder, &colour)
            .await
            .map_err(Failure::io("`cargo` can't be started"))?;
        if !ran.ok {
            return Ok(Built::Failed(ran.talk));
        }
        let manifest = self.folder.join("Cargo.toml");
        Ok(match artefact(&ran.data, &manifest) {
            Some(plugin) => Built::Plugin(plugin),
            None => Built::Failed(
                "cargo built no .wasm of this package; hint: `crate-type = [\"cdylib\"]` under [lib]"
                    .to_owned(),
            ),
        })
    }

    async fn npm(&self) -> Result<Built, Failure> {
        let run = async |arguments: &[&str]| {
            let ran = tools::run("npm", arguments, &self.folder, &[]).await;
            ran.map_err(Failure::io("`npm` can't be started"))
        };
        if !self.folder.join("node_modules").is_dir() {
            let ran = run(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).await?;
            if !ran.ok {
                return Ok(Built::Failed(ran.all()));
            }
        }
        Ok(self.newest(run(&["run", "--silent", "build"]).await?))
    }

    /// The project's own script: what a toolchain wants is the scaffold's to know.
    async fn script(&self) -> Result<Built, Failure> {
        if !self.folder.join(SCRIPT).is_file() {
            return Ok(Built::Failed(format!(
                "there is no {SCRIPT} in {}; hint: `keywheel plugin new` writes one that builds into the folder {BUILT}",
                self.folder.display()
            )));
        }
        let ran = tools::run("bash", &[SCRIPT], &self.folder, &[]).await;
        Ok(self.newest(ran.map_err(Failure::io("`bash` can't be started"))?))
    }

    /// The plugin that the script made.
    fn newest(&self, ran: tools::Ran) -> Built {
        if !ran.ok {
            return Built::Failed(ran.all());
        }
        let made = std::fs::read_dir(self.folder.join(BUILT))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "wasm"))
            .max_by_key(|path| path.metadata().and_then(|found| found.modified()).ok());
        match made {
            Some(plugin) => Built::Plugin(plugin),
            None => Built::Failed(format!("{}the build made no .wasm file in the folder {BUILT}", ran.all())),
        }
    }
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// The plugin among what cargo says it made, whichever target folder it uses.
fn artefact(messages: &str, manifest: &Path) -> Option<PathBuf> {
    let same = |path: &Path| {
        path == manifest
            || path.canonicalize().ok().is_some_and(|path| manifest.canonicalize().ok() == Some(path))
    };
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| message.manifest_path.as_deref().is_some_and(same))
        .flat_map(|message| message.filenames)
        .find(|file| file.extension().is_some_and(|kind| kind == "wasm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_found_among_what_cargo_says_it_made() {
        let line = |manifest: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{manifest}","filenames":["{file}"],"x":1}}"#
            )
        };
        let messages = [
            line("/p/keywheel-sdk/Cargo.toml", "/t/libkeywheel_sdk.rlib"),
            "a line of a build script".to_owned(),
            line("/p/Cargo.toml", "/t/forge_provider.wasm"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let found = artefact(&messages, Path::new("/p/Cargo.toml"));
        assert_eq!(found.as_deref(), Some(Path::new("/t/forge_provider.wasm")));
        assert_eq!(artefact(&messages, Path::new("/q/Cargo.toml")), None);
    }

    #[test]
    fn a_project_is_told_by_its_files_and_what_is_none_says_what_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let said = Project::at(folder.path()).unwrap_err().to_string();
        assert!(said.contains("Cargo.toml, package.json") && said.contains("hint:"), "{said}");
        for (mark, language) in [
            ("pyproject.toml", Language::Python),
            ("package.json", Language::Js),
            ("Cargo.toml", Language::Rust),
        ] {
            std::fs::write(folder.path().join(mark), "").unwrap();
            assert_eq!(Project::at(folder.path()).unwrap().kind, Kind::Source(language), "{mark}");
        }
        let template = folder.path().join("shop.toml");
        std::fs::write(&template, "").unwrap();
        assert_eq!(Project::at(&template).unwrap().kind, Kind::Template(template));
    }
}
