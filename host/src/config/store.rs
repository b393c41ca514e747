//! `[store]`: where everything is kept, if not in a file of the home. A leaf.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    pub password_file: Option<PathBuf>,
    /// Whom its certificate must come from, in PEM; None: who the system trusts.
    pub ca_file: Option<PathBuf>,
    /// None: required, unless the server is on this machine.
    pub tls: Option<Tls>,
}

/// Takes the place of `[store]`, for containers that are told everything so. Never a password.
pub const URL_VARIABLE: &str = "KEYWHEEL_STORE_URL";
pub const PASSWORD_FILE_VARIABLE: &str = "KEYWHEEL_STORE_PASSWORD_FILE";
pub const CA_FILE_VARIABLE: &str = "KEYWHEEL_STORE_CA_FILE";

impl StoreConfig {
    fn from_environment() -> Option<Self> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            url: set(URL_VARIABLE)?,
            password_file: set(PASSWORD_FILE_VARIABLE).map(PathBuf::from),
            ca_file: set(CA_FILE_VARIABLE).map(PathBuf::from),
            tls: None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    Require,
    Disable,
}

/// Where everything is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A SQLite file in the home.
    File(PathBuf),
    Server(StoreConfig),
}

impl Store {
    /// What the environment says, else a home's configuration, with the file where it says nothing or can't be read: who
    /// loads it whole says what is wrong with it.
    pub(super) fn of(config: &Path, file: PathBuf) -> Self {
        let named = StoreConfig::from_environment().or_else(|| Self::named_in(config).unwrap_or_default());
        named.map_or(Self::File(file), Self::Server)
    }

    /// The server that a configuration names.
    ///
    /// # Errors
    /// Those of reading it; one that isn't there names none.
    pub fn named_in(config: &Path) -> std::io::Result<Option<StoreConfig>> {
        #[derive(Deserialize)]
        struct Section {
            store: Option<StoreConfig>,
        }
        let text = match std::fs::read_to_string(config) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        Ok(toml::from_str::<Section>(&text).ok().and_then(|section| section.store))
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }

    /// As far as can be told without asking a server.
    pub fn exists(&self) -> bool {
        self.file().is_none_or(Path::exists)
    }
}

impl StoreConfig {
    /// The section as it stands in `config.toml`.
    pub fn section(&self) -> String {
        let text = |text: &str| toml::Value::from(text).to_string();
        let mut lines = format!("[store]\nurl = {}\n", text(&self.url));
        for (name, path) in [("password_file", &self.password_file), ("ca_file", &self.ca_file)] {
            if let Some(path) = path {
                lines.push_str(&format!("{name} = {}\n", text(&path.to_string_lossy())));
            }
        }
        match self.tls {
            None => {}
            Some(Tls::Require) => lines.push_str("tls = \"require\"\n"),
            Some(Tls::Disable) => lines.push_str("tls = \"disable\"\n"),
        }
        lines
    }
}

impl From<&Path> for Store {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for Store {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for Store {
    fn from(store: &Self) -> Self {
        store.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_that_was_written_is_read_as_it_was_meant() {
        #[derive(Deserialize)]
        struct Sections {
            store: StoreConfig,
        }
        let bare = StoreConfig {
            url: String::from("postgres://keywheel@db.example/keywheel"),
            password_file: None,
            ca_file: None,
            tls: None,
        };
        let full = StoreConfig {
            url: String::from("postgres://k@db/k?application_name=a\"b\\c"),
            password_file: Some(PathBuf::from("/etc/key wheel/it's \"this\"")),
            ca_file: Some(PathBuf::from("/etc/ca.pem")),
            tls: Some(Tls::Require),
        };
        for config in [bare, full] {
            let text = format!("{}\n{}", crate::config::TEMPLATE, config.section());
            let read: Sections = toml::from_str(&text).unwrap();
            assert_eq!(read.store, config);
        }
    }
}
