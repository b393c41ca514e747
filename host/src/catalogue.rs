//! The providers that come with Keywheel: a folder beside the program with one file for each
//! service, and `catalogue.json`, which says of each what it needs. A leaf: it opens no plugin
//! and decides nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::provider::{CommitClass, KeySpec, Location, Manifest, SettingKind, SettingSpec};

/// Runs template providers; not a provider itself.
pub const TEMPLATE_PROVIDER: &str = "template-provider.wasm";

/// What the providers say of themselves. Written from their manifests; a test compares.
const INDEX: &str = "catalogue.json";

/// Names the folder, where it is not beside the program.
const ENVIRONMENT: &str = "KEYWHEEL_PROVIDERS";

/// From the program's own folder: a release's, a build's, an installation's.
const PLACES: [&str; 3] = ["providers", "../providers", "../share/keywheel/providers"];

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("this program's place is unknown")]
    Program(#[source] std::io::Error),
    #[error(
        "the providers that come with Keywheel are not in {0}; hint: KEYWHEEL_PROVIDERS names their folder, \
         and in the source folder `make plugins` builds them"
    )]
    Missing(String),
    #[error(
        "no provider for `{service}` comes with Keywheel; {nearest}hint: `keywheel plugin list --available` \
         shows all, and a path such as ./{service}.wasm names a file of yours"
    )]
    NoSuchService { service: String, nearest: String },
    #[error("{path} can't be read")]
    Index {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a provider says of itself, for the person who is about to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub service: String,
    pub title: String,
    pub version: String,
    /// Where the service documents what the provider relies on.
    pub source: Option<String>,
    pub origins: Vec<String>,
    pub keys: Vec<EntryKey>,
    pub settings: Vec<EntrySetting>,
    /// Empty: it only validates.
    pub methods: Vec<EntryMethod>,
    pub validate_every_seconds: u32,
    pub max_age_seconds: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryKey {
    pub name: String,
    /// As the service names it, and the host it belongs to; None for a token.
    pub cookie: Option<String>,
    pub required: bool,
    pub reveal: bool,
    pub help: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntrySetting {
    pub name: String,
    pub kind: SettingKind,
    pub required: bool,
    pub default: Option<String>,
    pub choices: Vec<String>,
    pub help: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryMethod {
    pub name: String,
    pub commit_class: CommitClass,
    /// The setting by which the operator says otherwise.
    pub commit_class_setting: Option<String>,
    /// Where the service documents what becomes of the old secret.
    pub source: Option<String>,
    pub help: String,
}

impl Entry {
    pub fn of(manifest: &Manifest) -> Self {
        let key = |key: &KeySpec| EntryKey {
            name: key.name.clone(),
            cookie: match &key.location {
                Location::Cookie(cookie) => Some(format!("{} of {}", cookie.name, cookie.domain)),
                Location::Token => None,
            },
            required: key.required,
            reveal: key.reveal,
            help: key.help.clone(),
        };
        let setting = |setting: &SettingSpec| EntrySetting {
            name: setting.name.clone(),
            kind: setting.kind,
            required: setting.required,
            default: setting.default.clone(),
            choices: setting.choices.clone(),
            help: setting.help.clone(),
        };
        let methods = manifest.methods.iter().map(|method| EntryMethod {
            name: method.name.clone(),
            commit_class: method.commit_class,
            commit_class_setting: method.commit_class_setting.clone(),
            source: manifest.class_source(&method.name).map(str::to_owned),
            help: method.help.clone(),
        });
        Self {
            service: manifest.service.clone(),
            title: manifest.title.clone(),
            version: manifest.version.clone(),
            source: manifest.source().map(str::to_owned),
            origins: manifest.origins.clone(),
            keys: manifest.keys.iter().map(key).collect(),
            settings: manifest.settings.iter().map(setting).collect(),
            methods: methods.collect(),
            validate_every_seconds: manifest.validate_interval,
            max_age_seconds: manifest.max_age,
        }
    }

    /// How it rotates, in a word for a table.
    pub fn rotates(&self) -> String {
        match self.methods.as_slice() {
            [] => "validates only".into(),
            [first, ..] => match &first.commit_class_setting {
                Some(_) => format!("{}, or as set", first.commit_class),
                None => first.commit_class.to_string(),
            },
        }
    }

    /// What to give it and what it does, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for key in &self.keys {
            let need = if key.required { "needs" } else { "takes" };
            let cookie = key.cookie.as_ref().map(|cookie| format!(", the cookie {cookie}"));
            lines.push(with_help(
                format!("{need} key `{}`{}", key.name, cookie.unwrap_or_default()),
                &key.help,
            ));
        }
        for setting in &self.settings {
            let need = if setting.required { "needs" } else { "takes" };
            let mut kind = match setting.choices.as_slice() {
                [] => kind_word(setting.kind).to_owned(),
                choices => choices.join(", "),
            };
            if let Some(default) = setting.default.as_ref().filter(|default| !default.is_empty()) {
                kind.push_str(&format!("; {default} unless set"));
            }
            lines.push(with_help(format!("{need} setting `{}` ({kind})", setting.name), &setting.help));
        }
        for method in &self.methods {
            lines.push(with_help(
                format!("rotates by `{}` ({})", method.name, method.commit_class),
                &method.help,
            ));
        }
        if self.methods.is_empty() {
            lines.push("only validates".into());
        }
        lines.extend(self.source.as_ref().map(|url| format!("documented at {url}")));
        lines
    }
}

fn with_help(line: String, help: &str) -> String {
    if help.is_empty() { line } else { format!("{line}: {help}") }
}

const fn kind_word(kind: SettingKind) -> &'static str {
    match kind {
        SettingKind::Text => "text",
        SettingKind::Url => "url",
        SettingKind::Integer => "integer",
        SettingKind::Boolean => "boolean",
        SettingKind::Duration => "duration",
        SettingKind::Choice => "choice",
    }
}

/// Every provider of the catalogue that is there, by service: a build may leave some out.
///
/// # Errors
/// Where there is no catalogue, or it can't be read.
pub fn entries() -> Result<Vec<Entry>, CatalogueError> {
    let folder = folder()?;
    let path = folder.join(INDEX);
    let read = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    let mut entries: Vec<Entry> = read.map_err(|source| CatalogueError::Index { path, source })?;
    entries.retain(|entry| file_in(&folder, &entry.service).is_some());
    Ok(entries)
}

fn file_in(folder: &Path, service: &str) -> Option<PathBuf> {
    let files = ["wasm", "toml"].map(|extension| folder.join(format!("{service}.{extension}")));
    files.into_iter().find(|file| file.is_file())
}

/// The file of one of its services.
///
/// # Errors
/// Where there is no such service; names the nearest.
pub fn file(service: &str) -> Result<PathBuf, CatalogueError> {
    let (folder, entries) = (folder()?, entries()?);
    let known = entries.iter().find(|entry| entry.service == service);
    known.and_then(|entry| file_in(&folder, &entry.service)).ok_or_else(|| {
        let nearest = entries
            .iter()
            .map(|entry| (strsim::damerau_levenshtein(&entry.service, service), &entry.service))
            .min()
            .filter(|(distance, _)| *distance <= 1 + service.len() / 4);
        CatalogueError::NoSuchService {
            service: service.to_owned(),
            nearest: nearest.map(|(_, name)| format!("did you mean `{name}`? ")).unwrap_or_default(),
        }
    })
}

/// The folder of the providers that come with Keywheel.
///
/// # Errors
/// Where it was looked for in vain.
pub fn folder() -> Result<PathBuf, CatalogueError> {
    if let Some(named) = std::env::var_os(ENVIRONMENT) {
        return found(vec![PathBuf::from(named)]);
    }
    let program = std::env::current_exe().map_err(CatalogueError::Program)?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    found(PLACES.map(|place| beside.join(place)).to_vec())
}

fn found(places: Vec<PathBuf>) -> Result<PathBuf, CatalogueError> {
    places.iter().find(|place| place.join(TEMPLATE_PROVIDER).is_file()).cloned().ok_or_else(|| {
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        CatalogueError::Missing(looked.join(" or "))
    })
}

/// What to do where no plugin serves a service.
pub fn next_step(service: &str) -> String {
    match file(service) {
        Ok(_) => format!("`keywheel plugin install {service}` installs the one that comes with Keywheel"),
        Err(_) => "`keywheel plugin list` shows what there is".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_with_the_files_is_taken_and_none_names_them_all() {
        let folder = tempfile::tempdir().unwrap();
        let places = vec![folder.path().join("a"), folder.path().join("b")];
        let said = found(places.clone()).unwrap_err().to_string();
        assert!(said.contains("/a or ") && said.contains("/b;"), "{said}");
        std::fs::create_dir_all(&places[1]).unwrap();
        std::fs::write(places[1].join(TEMPLATE_PROVIDER), b"").unwrap();
        assert_eq!(found(places.clone()).unwrap(), places[1]);
    }
}
