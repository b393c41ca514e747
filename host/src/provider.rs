//! What a provider says of itself and what that comes to for one credential: plain values of
//! the domain. A leaf: it does no I/O and imports nothing of ours.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bytes are written into the place where they go (contract: `encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    Raw,
    Form,
    Percent,
    Json,
    Base64,
    Base64Url,
    Hex,
    Sha1Hex,
    Sha256Hex,
}

/// What a rotation does to the old secret; decides what may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitClass {
    Sliding,
    Additive,
    CommitOnUse,
    Grace,
    BurnOnIssue,
}

impl CommitClass {
    pub const ALL: [CommitClass; 5] =
        [Self::Sliding, Self::Additive, Self::CommitOnUse, Self::Grace, Self::BurnOnIssue];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sliding => "sliding",
            Self::Additive => "additive",
            Self::CommitOnUse => "commit-on-use",
            Self::Grace => "grace",
            Self::BurnOnIssue => "burn-on-issue",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }
}

impl fmt::Display for CommitClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cookie as the service sets it. In a manifest the fields may hold `{setting}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CookieLocation {
    pub name: String,
    pub domain: String,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    Cookie(CookieLocation),
    Token,
}

/// One entry of the key mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    pub name: String,
    pub location: Location,
    pub required: bool,
    pub reveal: bool,
    pub help: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SettingKind {
    Text,
    Url,
    Integer,
    Boolean,
    Duration,
    Choice,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingSpec {
    pub name: String,
    pub kind: SettingKind,
    pub required: bool,
    pub default: Option<String>,
    pub choices: Vec<String>,
    pub help: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodSpec {
    pub name: String,
    pub commit_class: CommitClass,
    pub commit_class_setting: Option<String>,
    pub help: String,
}

/// What `describe` answered. Untrusted until `registry::manifest::check` accepted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub service: String,
    pub title: String,
    pub version: String,
    pub validate_url: String,
    pub keys: Vec<KeySpec>,
    pub origins: Vec<String>,
    pub settings: Vec<SettingSpec>,
    pub methods: Vec<MethodSpec>,
    pub validate_interval: u32,
    pub max_age: Option<u32>,
    pub extras: Vec<(String, String)>,
}

/// How long a session may go unused before the service ends it, in seconds. Optional.
const IDLE_LIMIT: &str = "idle-limit-seconds";

/// A url setting whose value may have no path, for the provider adds its own. Once for each.
const WITHOUT_PATH: &str = "without-path";

/// Where the service documents what the provider relies on. Optional.
const SOURCE: &str = "source";

/// Why there is no provider, in words for its author: what a template with a mistake says.
const REFUSED: &str = "refused";

/// Before a method's name: where the service documents what the method does to the old secret.
const CLASS_SOURCE: &str = "class-source:";

impl Manifest {
    /// What isn't a number of seconds says nothing, as the contract wants it of its extras.
    pub fn idle_limit(&self) -> Option<u32> {
        self.extra(IDLE_LIMIT)?.parse().ok().filter(|&seconds| seconds > 0)
    }

    /// Whether a setting is the address of a host and no path of it.
    pub fn is_without_path(&self, setting: &str) -> bool {
        self.extras.iter().any(|(name, value)| name == WITHOUT_PATH && value == setting)
    }

    pub fn source(&self) -> Option<&str> {
        self.extra(SOURCE)
    }

    pub fn class_source(&self, method: &str) -> Option<&str> {
        self.extra(&format!("{CLASS_SOURCE}{method}"))
    }

    pub fn refused(&self) -> Option<&str> {
        self.extra(REFUSED)
    }

    fn extra(&self, wanted: &str) -> Option<&str> {
        self.extras.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }
}

/// An origin a plugin may reach for one credential, settings filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AllowedOrigin {
    /// `https`, or `http` where the operator named the origin.
    pub scheme: String,
    /// Lower case, as the `url` crate writes it; an IPv6 literal has brackets.
    pub host: String,
    pub port: u16,
    /// The operator typed it as a setting: plain http is allowed, and a literal private
    /// address or `localhost` may be reached.
    pub operator_named: bool,
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default_port = matches!((self.scheme.as_str(), self.port), ("https", 443) | ("http", 80));
        if default_port {
            write!(f, "{}://{}", self.scheme, self.host)
        } else {
            write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
        }
    }
}

/// A manifest with one credential's settings filled in: what the plugin may do for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub validate_url: String,
    pub keys: Vec<KeySpec>,
    pub origins: Vec<AllowedOrigin>,
    /// Hosts the operator allows to resolve to private addresses, lower case.
    pub private_hosts: Vec<String>,
    /// Every setting of the manifest, with its value or default.
    pub settings: Vec<(String, String)>,
    pub methods: Vec<ResolvedMethod>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMethod {
    pub name: String,
    pub commit_class: CommitClass,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_limit_is_a_number_of_seconds_and_anything_else_says_nothing() {
        for (value, want) in [
            ("1200", Some(1_200)),
            ("0", None),
            ("-1", None),
            ("20m", None),
            ("99999999999", None),
            ("", None),
        ] {
            let manifest = Manifest {
                service: String::new(),
                title: String::new(),
                version: String::new(),
                validate_url: String::new(),
                keys: vec![],
                origins: vec![],
                settings: vec![],
                methods: vec![],
                validate_interval: 1,
                max_age: None,
                extras: vec![("other".into(), "7".into()), ("idle-limit-seconds".into(), value.into())],
            };
            assert_eq!(manifest.idle_limit(), want, "{value:?}");
        }
    }
}
