//! A credential's secrets while they are in the host's memory. A leaf: it stores nothing and
//! imports only `provider`. A value here can't be printed by accident.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Host;
use zeroize::Zeroizing;

use crate::provider::{AllowedOrigin, CookieLocation};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub use crate::clock::{Millis, now};

/// Secret bytes: wiped when dropped, and invisible to `Debug`, `Display` and serde.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves. Every call is a place to look at in review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The attributes of a cookie that decide where it is sent (RFC 6265 section 5.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieAttributes {
    pub name: String,
    /// Lower case, without a leading dot.
    pub domain: String,
    pub path: String,
    /// Sent to `domain` alone, not to its subdomains.
    pub host_only: bool,
    pub secure: bool,
    pub http_only: bool,
    /// `Strict`, `Lax`, `None` or nothing: kept for exports, not used for sending.
    pub same_site: Option<String>,
}

impl CookieAttributes {
    /// The narrowest attributes under which a bare value reaches the service: its own host alone,
    /// or the allowed hosts below it where the mapping's domain isn't one of them.
    pub fn narrowest(location: &CookieLocation, origins: &[AllowedOrigin]) -> Self {
        let exact = origins.iter().find(|origin| origin.host == location.domain);
        let below = || origins.iter().find(|origin| is_subdomain(&origin.host, &location.domain));
        let secure = exact.or_else(below).is_none_or(|origin| origin.scheme == "https");
        Self {
            name: location.name.clone(),
            domain: location.domain.clone(),
            path: location.path.clone(),
            host_only: exact.is_some() || below().is_none(),
            secure,
            http_only: true,
            same_site: None,
        }
    }
}

/// An address has no subdomains, though `1.10.0.0.1` would end in one.
pub fn is_subdomain(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
        && matches!(Host::parse(host), Ok(Host::Domain(_)))
}

/// One named secret of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// From the key mapping, or `extra_cookie_key` of a cookie that isn't mapped.
    pub name: String,
    pub secret: Secret,
    /// Keyed HMAC of the value: the only trace of it outside the vault.
    pub fingerprint: String,
    pub expires: Option<Millis>,
    /// Present where the key is a cookie.
    pub cookie: Option<CookieAttributes>,
}

/// All keys of one generation, opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Jar {
    pub keys: Vec<Key>,
}

impl Jar {
    pub fn get(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Puts a key in, in place of the one with its name.
    pub fn put(&mut self, key: Key) {
        match self.keys.iter_mut().find(|old| old.name == key.name) {
            Some(old) => *old = key,
            None => self.keys.push(key),
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<Key> {
        let index = self.keys.iter().position(|key| key.name == name)?;
        Some(self.keys.remove(index))
    }
}

/// A text form in which a credential's secrets go out, by its name: the same for commands, sinks
/// and the port. `formats::export` writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `cookies.txt`, as curl and wget read it.
    #[serde(alias = "cookies.txt")]
    #[value(alias = "cookies.txt")]
    Netscape,
    /// Playwright's.
    #[serde(alias = "playwright")]
    #[value(alias = "playwright")]
    StorageState,
    /// The list that browser extensions import.
    BrowserJson,
    /// One `Cookie:` line for one URL.
    Header,
    /// Assignments that a shell and readers of `.env` files take.
    #[serde(alias = ".env", alias = "dotenv")]
    #[value(alias = ".env", alias = "dotenv")]
    Env,
    /// Every key by its name.
    Json,
}

/// An id ends in file names, logs and URLs.
pub fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    !text.is_empty() && text.len() <= LONGEST_ID && !text.starts_with('-') && text.chars().all(allowed)
}

/// What `is_id` allows, in words.
pub const ID_RULE: &str = "1 to 128 letters, digits and . _ @ + -, not starting with -";

pub const LONGEST_ID: usize = 128;

/// The key name of a cookie that travels with the credential but isn't in the key mapping.
pub fn extra_cookie_key(name: &str, domain: &str, path: &str) -> String {
    format!("cookie:{name}@{domain}{path}")
}
