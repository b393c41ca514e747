//! What `plugin new` writes: the files of `plugin-sdk/scaffold` with a service's name in place of
//! `my-service`, and the SDK beside them. Pure: names and files in, files out.
//!
//! The SDK is on no package registry, so its source comes along in this program, and its manifest
//! is made to stand alone. A Rust project also gets the part of our own lock file that the SDK
//! needs: with it a new project builds what Keywheel was tested with, whatever was published
//! since, and without a network where those crates are there. Cargo leaves out of it what the
//! project doesn't use, and adds nothing.

use include_dir::{Dir, DirEntry, include_dir};
use serde::Deserialize;
use toml::{Table, Value};

use super::Language;
use super::build::NO_SOURCE;
use super::folder::File;

static SCAFFOLD: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugin-sdk/scaffold");
static SDK_SOURCE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugin-sdk/src");
static CONTRACT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugin-sdk/wit");
const SDK_MANIFEST: &str = include_str!("../../../../plugin-sdk/Cargo.toml");
const WORKSPACE: &str = include_str!("../../../../Cargo.toml");
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// Where the SDK goes in a Rust project, as the scaffold's manifest says.
const SDK_FOLDER: &str = "keywheel-sdk";

/// Where the layer for another language is in its project.
const LAYER: &str = "keywheel/";

/// Types that a provider's source has from the SDK or the language: one of its own by that name
/// would hide it.
const TAKEN: [&str; 31] = [
    "CommitClass",
    "Cx",
    "Evidence",
    "IntoLeaves",
    "IntoTemplate",
    "Key",
    "Leaf",
    "Leaves",
    "Manifest",
    "Method",
    "Option",
    "Outcome",
    "Provider",
    "Reason",
    "Request",
    "Response",
    "Result",
    "Self",
    "SendError",
    "Setting",
    "Some",
    "None",
    "Ok",
    "Err",
    "Stop",
    "String",
    "Template",
    "Value",
    "Vec",
    "Verdict",
    "Box",
];

#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    #[error("this program was built without a scaffold for {0}; hint: build it from the whole source folder")]
    NoScaffold(&'static str),
    #[error("what this program carries of the SDK can't be used: {0}")]
    Sdk(String),
}

/// What a service is called in each place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub service: String,
    /// The crate or package.
    pub package: String,
    type_name: String,
    title: String,
}

impl Names {
    /// Of a service whose name the registry would accept.
    pub fn of(service: &str) -> Self {
        // A crate's name begins with a letter.
        let package = match service.starts_with(|first: char| first.is_ascii_alphabetic()) {
            true => format!("{service}-provider"),
            false => format!("provider-{service}"),
        };
        let mut type_name: String = service.split('-').map(capitalised).collect();
        if !type_name.starts_with(|first: char| first.is_ascii_alphabetic()) {
            type_name.insert_str(0, "Service");
        }
        if TAKEN.contains(&type_name.as_str()) {
            type_name.push_str("Service");
        }
        let title = capitalised(service.replace('-', " ").trim());
        Self { service: service.to_owned(), package, type_name, title }
    }

    /// The file that cargo makes of the crate.
    pub fn artefact(&self) -> String {
        format!("{}.wasm", self.package.replace('-', "_"))
    }

    fn put_into(&self, text: &str) -> String {
        // The longer names first, for the shorter are in them.
        [
            ("my-service-provider", self.package.as_str()),
            ("my_service_provider", &self.package.replace('-', "_")),
            ("my-service", &self.service),
            ("my_service", &self.service.replace('-', "_")),
            ("MyService", &self.type_name),
            ("My service", &self.title),
        ]
        .iter()
        .fold(text.to_owned(), |text, (ours, theirs)| text.replace(ours, theirs))
    }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

/// Every file of a new project. `sdk` is the path of another SDK, instead of the one that this
/// program carries.
///
/// # Errors
/// Where this program was built without them.
pub fn project(language: Language, names: &Names, sdk: Option<&str>) -> Result<Vec<File>, ScaffoldError> {
    let folder = SCAFFOLD.get_dir(language.word()).ok_or(ScaffoldError::NoScaffold(language.word()))?;
    let mut files = below(folder, language.word(), "");
    // The layer for the language is nobody's but ours.
    for file in files.iter_mut().filter(|file| !file.path.starts_with(LAYER)) {
        file.path = names.put_into(&file.path);
        // All of them are text.
        if let Ok(text) = std::str::from_utf8(&file.bytes) {
            file.bytes = names.put_into(text).into_bytes();
        }
    }
    if language != Language::Rust {
        // Their layer came along, with the contract in it.
        return Ok(files);
    }
    files.push(text_file("Cargo.lock", lock(&names.package)?));
    match sdk {
        None => {
            files.extend(below(&SDK_SOURCE, "", &format!("{SDK_FOLDER}/src/")));
            files.extend(below(&CONTRACT, "", &format!("{SDK_FOLDER}/wit/")));
            files.push(text_file(&format!("{SDK_FOLDER}/Cargo.toml"), standing_alone()?));
        }
        Some(sdk) => {
            let ours = format!("path = \"{SDK_FOLDER}\"");
            let theirs = format!("path = {}", Value::String(sdk.to_owned()));
            for file in files.iter_mut().filter(|file| file.path == "Cargo.toml") {
                let manifest = String::from_utf8_lossy(&file.bytes).replace(&ours, &theirs);
                file.bytes = manifest.into_bytes();
            }
        }
    }
    Ok(files)
}

fn text_file(path: &str, text: String) -> File {
    File { path: path.to_owned(), bytes: text.into_bytes(), executable: false }
}

/// The files of an embedded folder, with another beginning of their paths.
fn below(folder: &Dir<'_>, strip: &str, prefix: &str) -> Vec<File> {
    let mut files = Vec::new();
    for entry in folder.entries() {
        match entry {
            DirEntry::Dir(inner) => {
                let name = inner.path().file_name().unwrap_or_default().to_string_lossy();
                // What a run of the scaffold itself left in our source folder.
                if !NO_SOURCE.contains(&&*name) {
                    files.extend(below(inner, strip, prefix));
                }
            }
            DirEntry::File(file) => {
                let path = file.path().to_string_lossy();
                let path = path.strip_prefix(strip).unwrap_or(&path).trim_start_matches('/');
                files.push(File {
                    path: format!("{prefix}{path}"),
                    bytes: file.contents().to_vec(),
                    executable: path.ends_with(".sh"),
                });
            }
        }
    }
    files
}

/// The SDK's manifest with everything in it that it inherits from our workspace.
fn standing_alone() -> Result<String, ScaffoldError> {
    let read = |text: &str| text.parse::<Table>().map_err(|error| ScaffoldError::Sdk(error.to_string()));
    let (mut manifest, workspace) = (read(SDK_MANIFEST)?, read(WORKSPACE)?);
    let missing = |what: &str| ScaffoldError::Sdk(format!("the workspace has no {what}"));
    let workspace =
        workspace.get("workspace").and_then(Value::as_table).ok_or_else(|| missing("[workspace]"))?;
    let shared = |section: &str| workspace.get(section).and_then(Value::as_table);
    // Our rules of style are no business of another project, and its tests stayed with us.
    manifest.remove("lints");
    manifest.remove("dev-dependencies");
    for section in ["package", "dependencies"] {
        let from = shared(section).ok_or_else(|| missing(section))?;
        let Some(entries) = manifest.get_mut(section).and_then(Value::as_table_mut) else { continue };
        for (name, value) in entries.iter_mut() {
            let Some(table) = value.as_table() else { continue };
            if table.get("workspace").and_then(Value::as_bool) != Some(true) {
                continue;
            }
            let mut inherited = from.get(name).ok_or_else(|| missing(name))?.clone();
            let mut own = table.clone();
            own.remove("workspace");
            if !own.is_empty() {
                let mut whole = match inherited {
                    Value::Table(table) => table,
                    version => Table::from_iter([("version".to_owned(), version)]),
                };
                whole.extend(own);
                inherited = Value::Table(whole);
            }
            *value = inherited;
        }
    }
    let text = toml::to_string(&manifest).map_err(|error| ScaffoldError::Sdk(error.to_string()))?;
    Ok(format!("# The SDK of Keywheel {}, as it came with it.\n{text}", env!("CARGO_PKG_VERSION")))
}

#[derive(Debug, Deserialize)]
struct Lock {
    version: u32,
    package: Vec<Locked>,
}

#[derive(Debug, Clone, Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// The part of our lock file that a crate with the SDK as its one dependency needs.
fn lock(package: &str) -> Result<String, ScaffoldError> {
    let lock: Lock = toml::from_str(LOCK).map_err(|error| ScaffoldError::Sdk(error.to_string()))?;
    // `name`, or `name version` where there are several.
    let find = |dependency: &str| {
        let (name, version) = dependency.split_once(' ').unwrap_or((dependency, ""));
        let fits =
            |locked: &&Locked| locked.name == name && (version.is_empty() || locked.version == version);
        lock.package.iter().find(fits)
    };
    let mut wanted: Vec<Locked> = vec![Locked {
        name: package.to_owned(),
        version: "0.1.0".to_owned(),
        source: None,
        checksum: None,
        dependencies: vec!["keywheel-sdk".to_owned()],
    }];
    let mut at = 0;
    while at < wanted.len() {
        for dependency in wanted[at].dependencies.clone() {
            let found = find(&dependency)
                .ok_or_else(|| ScaffoldError::Sdk(format!("our lock file has no {dependency}")))?;
            if !wanted.iter().any(|have| have.name == found.name && have.version == found.version) {
                wanted.push(found.clone());
            }
        }
        at += 1;
    }
    wanted.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    let count = |name: &str| wanted.iter().filter(|locked| locked.name == name).count();
    let mut text = format!(
        "# This file is automatically @generated by Cargo.\n# It is not intended for manual editing.\nversion = {}\n",
        lock.version
    );
    for locked in &wanted {
        text.push_str(&format!(
            "\n[[package]]\nname = \"{}\"\nversion = \"{}\"\n",
            locked.name, locked.version
        ));
        for (field, value) in [("source", &locked.source), ("checksum", &locked.checksum)] {
            if let Some(value) = value {
                text.push_str(&format!("{field} = \"{value}\"\n"));
            }
        }
        if !locked.dependencies.is_empty() {
            text.push_str("dependencies = [\n");
            for dependency in &locked.dependencies {
                let name = dependency.split(' ').next().unwrap_or(dependency);
                let shown = if count(name) > 1 { dependency } else { name };
                text.push_str(&format!(" \"{shown}\",\n"));
            }
            text.push_str("]\n");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text<'f>(files: &'f [File], path: &str) -> &'f str {
        let file = files.iter().find(|file| file.path == path);
        std::str::from_utf8(&file.unwrap_or_else(|| panic!("no {path}")).bytes).unwrap()
    }

    #[test]
    fn every_accepted_service_name_gives_names_that_each_place_accepts() {
        for (service, package, type_name, title) in [
            ("forge", "forge-provider", "Forge", "Forge"),
            ("my-forge-2", "my-forge-2-provider", "MyForge2", "My forge 2"),
            ("9gag", "provider-9gag", "Service9gag", "9gag"),
            ("-", "provider--", "Service", ""),
            ("key", "key-provider", "KeyService", "Key"),
            ("self", "self-provider", "SelfService", "Self"),
        ] {
            let names = Names::of(service);
            assert_eq!((names.package.as_str(), names.type_name.as_str()), (package, type_name));
            assert_eq!(names.title, title);
        }
        assert_eq!(Names::of("my-forge").artefact(), "my_forge_provider.wasm");
    }

    #[test]
    fn no_type_of_the_prelude_can_be_hidden_by_a_service() {
        let lib = SDK_SOURCE.get_file("lib.rs").and_then(|file| file.contents_utf8()).unwrap();
        let prelude = lib.split_once("pub mod prelude {").unwrap().1.split_once("\n}").unwrap().0;
        let types = prelude
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
        for name in types {
            assert!(TAKEN.contains(&name), "`{name}` of the prelude is missing in TAKEN");
        }
    }

    #[test]
    fn nothing_of_the_scaffolds_own_name_is_left_in_a_project() {
        let files = project(Language::Rust, &Names::of("forge"), None).unwrap();
        for file in files.iter().filter(|file| !file.path.starts_with(SDK_FOLDER)) {
            let text = String::from_utf8(file.bytes.clone()).unwrap();
            for ours in ["my-service", "my_service", "MyService", "My service"] {
                assert!(!text.contains(ours) && !file.path.contains(ours), "{}: {ours}", file.path);
            }
        }
        assert!(text(&files, "src/lib.rs").contains("impl Provider for Forge {"));
        assert!(text(&files, "README.md").contains("target/wasm32-wasip2/release/forge_provider.wasm"));
    }

    #[test]
    fn the_program_carries_only_sources() {
        let all = below(&SCAFFOLD, "", "").into_iter().chain(below(&SDK_SOURCE, "", ""));
        for file in all {
            assert!(std::str::from_utf8(&file.bytes).is_ok(), "{} is not text", file.path);
        }
    }

    #[test]
    fn the_sdks_manifest_stands_alone_and_keeps_its_dependencies() {
        let files = project(Language::Rust, &Names::of("forge"), None).unwrap();
        let alone: Table = text(&files, "keywheel-sdk/Cargo.toml").parse().unwrap();
        assert!(!alone.to_string().contains("workspace"), "{alone}");
        let before: Table = SDK_MANIFEST.parse().unwrap();
        let names = |table: &Table, section: &str| -> BTreeSet<String> {
            table[section].as_table().unwrap().keys().cloned().collect()
        };
        assert_eq!(names(&alone, "dependencies"), names(&before, "dependencies"));
        assert_eq!(alone["target"], before["target"]);
        assert_eq!(alone["package"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(alone["dependencies"]["wit-bindgen"]["default-features"].as_bool(), Some(false));
        for path in
            ["keywheel-sdk/src/lib.rs", "keywheel-sdk/src/testing.rs", "keywheel-sdk/wit/provider.wit"]
        {
            assert!(!text(&files, path).is_empty());
        }
    }

    #[test]
    fn the_lock_file_has_what_the_sdk_needs_and_nothing_of_the_host() {
        let files = project(Language::Rust, &Names::of("forge"), None).unwrap();
        let lock: Lock = toml::from_str(text(&files, "Cargo.lock")).unwrap();
        let names: BTreeSet<&str> = lock.package.iter().map(|locked| locked.name.as_str()).collect();
        for name in ["forge-provider", "keywheel-sdk", "wit-bindgen", "serde_json", "dlmalloc"] {
            assert!(names.contains(name), "{name} is missing");
        }
        for name in ["keywheel", "wasmtime", "tokio", "reqwest"] {
            assert!(!names.contains(name), "{name} is no dependency of the SDK");
        }
        for locked in lock.package.iter().filter(|locked| locked.source.is_some()) {
            assert!(locked.checksum.is_some(), "{} has no checksum", locked.name);
        }
    }

    #[test]
    fn a_project_in_another_language_has_its_layer_and_the_contract() {
        for (language, source, layer) in [
            (Language::Js, "src/provider.js", "keywheel/index.js"),
            (Language::Python, "provider.py", "keywheel/provider.py"),
        ] {
            let files = project(language, &Names::of("forge"), None).unwrap();
            assert!(text(&files, source).contains("forge"), "{source}");
            assert!(!text(&files, layer).is_empty());
            assert!(text(&files, "README.md").contains("dist/forge.wasm"));
            let wit = files.iter().filter(|file| file.path.ends_with("provider.wit"));
            assert_eq!(wit.count(), 1);
            let script = files.iter().find(|file| file.path == "build.sh");
            assert_eq!(script.is_some_and(|file| file.executable), language == Language::Python);
            for file in files.iter().filter(|file| !file.path.starts_with(LAYER)) {
                let text = String::from_utf8_lossy(&file.bytes);
                assert!(!text.contains("my-service") && !text.contains("MyService"), "{}", file.path);
            }
        }
    }

    #[test]
    fn another_sdk_is_named_and_none_is_written() {
        let files = project(Language::Rust, &Names::of("forge"), Some("/some \"sdk\"")).unwrap();
        assert!(files.iter().all(|file| !file.path.starts_with(SDK_FOLDER)));
        let manifest: Table = text(&files, "Cargo.toml").parse().unwrap();
        assert_eq!(manifest["dependencies"]["keywheel-sdk"]["path"].as_str(), Some("/some \"sdk\""));
    }
}
