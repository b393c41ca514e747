//! `[store]`: where everything is kept, if not in a file of the home. A leaf.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Whom its certificate must come from, in PEM; None: who the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// None: required, unless the server is on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// Whether the environment says where everything is, and no file does.
pub fn is_from_environment() -> bool {
    StoreConfig::from_environment().is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    Require,
    Disable,
}

/// Where everything is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
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
        match std::fs::read_to_string(config) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => Ok(named_in(&text?)),
        }
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

fn named_in(text: &str) -> Option<StoreConfig> {
    #[derive(Deserialize)]
    struct Section {
        store: Option<StoreConfig>,
    }
    toml::from_str::<Section>(text).ok().and_then(|section| section.store)
}

/// The text of a configuration that names this store, and is otherwise the same to the byte; a
/// file needs no name. None: what names the store in it isn't written so that it can be replaced.
pub fn renamed(text: &str, store: &Store) -> Option<String> {
    let mut renamed = without_section(text);
    let wanted = match store {
        Store::File(_) => None,
        Store::Server(config) => {
            if !renamed.is_empty() && !renamed.ends_with('\n') {
                renamed.push('\n');
            }
            renamed.push_str("\n[store]\n");
            renamed.push_str(&toml::to_string(config).ok()?);
            Some(config)
        }
    };
    // Believed only once it was read again.
    let rest = |text: &str| {
        let mut table: toml::Table = toml::from_str(text).ok()?;
        table.remove("store");
        Some(table)
    };
    let same = rest(&renamed).is_some() && rest(&renamed) == rest(text);
    (same && named_in(&renamed).as_ref() == wanted).then_some(renamed)
}

/// Takes out the section's line, the blank one before it, and its keys. Comments stay.
fn without_section(text: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut within = false;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if content.starts_with('[') {
            within = content.split('#').next().is_some_and(|head| head.trim() == "[store]");
            if within {
                if kept.last().is_some_and(|before| before.trim().is_empty()) {
                    kept.pop();
                }
                continue;
            }
        }
        if !within || content.is_empty() || content.starts_with('#') {
            kept.push(line);
        }
    }
    kept.concat()
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

impl From<PathBuf> for Store {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
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

    fn server() -> Store {
        Store::Server(StoreConfig {
            url: String::from("postgres://keywheel@db.example:5432/keywheel"),
            password_file: Some(PathBuf::from("/etc/keywheel/db \"password\"")),
            ca_file: None,
            tls: Some(Tls::Require),
        })
    }

    #[test]
    fn naming_another_store_and_taking_it_back_leaves_every_byte() {
        let file = Store::File(PathBuf::from("keywheel.db"));
        for text in [
            "",
            crate::config::TEMPLATE,
            "isolation = \"strict\"\n",
            "# ü\r\nlog = \"info\"\r\n[services.shop]\r\nquiet = []\r\n",
            "[http]\n# the end\n\n",
        ] {
            let named = renamed(text, &server()).unwrap();
            assert!(named.starts_with(text), "{named}");
            assert_eq!(named_in(&named).map(Store::Server), Some(server()), "{named}");
            assert_eq!(renamed(&named, &file).unwrap(), text);
        }
        let unended = renamed("log = \"info\"", &server()).unwrap();
        assert_eq!(renamed(&unended, &file).unwrap(), "log = \"info\"\n");
    }

    #[test]
    fn a_section_in_the_middle_goes_and_its_neighbours_and_comments_stay() {
        let text = "[http]\nhosts = []\n\n[store] # here\n# who\nurl = \"postgres://a@b/c\"\n\n[reports]\nkeep_days = 1\n";
        let file = Store::File(PathBuf::from("keywheel.db"));
        assert_eq!(
            renamed(text, &file).as_deref(),
            Some("[http]\nhosts = []\n# who\n\n[reports]\nkeep_days = 1\n")
        );
    }

    #[test]
    fn a_store_that_is_named_in_another_way_is_left_to_a_person() {
        let file = Store::File(PathBuf::from("keywheel.db"));
        for text in
            ["store = { url = \"postgres://a@b/c\" }\n", "store.url = \"postgres://a@b/c\"\n", "not TOML"]
        {
            assert_eq!(renamed(text, &file), None, "{text}");
        }
    }
}
