//! Whom alerts reach and when: the section `[alerts]`. It is checked as far as words go; whether
//! a channel answers is shown by `keywheel alert test`. Addresses may hold tokens, so nothing
//! here prints one. A leaf.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The section `[alerts]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// Failures in a row before anybody is told, where a person can't help at once.
    pub after_failures: u32,
    /// What is still in trouble is told again this often.
    pub remind_every: Span,
    /// So many times; 0: never.
    pub remind_at_most: u32,
    /// What happens to one service within this is one notice.
    pub group_wait: Span,
    /// Between two notices about the same service.
    pub group_interval: Span,
    /// Days before the end of a secret that Keywheel can't renew.
    pub expiry_days: Vec<u32>,
    /// Free space of the home's disk; 0: it isn't looked at.
    pub disk_low_mib: u64,
    /// Where backups go, and how old the newest file there may get.
    pub backup_folder: Option<PathBuf>,
    pub backup_max_age: Span,
    /// Asked for as long as everything turns, so that silence tells.
    pub heartbeat_url: Option<SecretUrl>,
    pub heartbeat_url_file: Option<PathBuf>,
    pub heartbeat_every: Span,
    /// The first wait after a message wasn't taken; it doubles, up to half an hour.
    pub retry_first: Span,
    pub channels: BTreeMap<String, Channel>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            after_failures: 3,
            remind_every: Span::seconds(24 * 3_600),
            remind_at_most: 7,
            group_wait: Span::seconds(30),
            group_interval: Span::seconds(300),
            expiry_days: vec![14, 7, 1],
            disk_low_mib: 256,
            backup_folder: None,
            backup_max_age: Span::seconds(48 * 3_600),
            heartbeat_url: None,
            heartbeat_url_file: None,
            heartbeat_every: Span::seconds(60),
            retry_first: Span::seconds(5),
            channels: BTreeMap::new(),
        }
    }
}

/// A time such as `"90s"`, `"15m"`, `"24h"` or `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u32);

/// A year: past it the number was meant as something else.
const LONGEST_SPAN: u32 = 366 * 86_400;

impl Span {
    const fn seconds(seconds: u32) -> Self {
        Self(seconds)
    }

    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    pub const fn millis(self) -> u64 {
        self.0 as u64 * 1_000
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let unit = match text.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            _ => 0,
        };
        text.get(..text.len().saturating_sub(1))
            .and_then(|digits| digits.parse::<u32>().ok())
            .and_then(|count| count.checked_mul(unit))
            .filter(|seconds| (1..=LONGEST_SPAN).contains(seconds))
            .map(Self)
            .ok_or_else(|| {
                D::Error::custom(format!(
                    "found {text:?}; allowed: a time of 1s to 366d, such as \"90s\", \"15m\", \"24h\" or \"7d\""
                ))
            })
    }
}

/// An address of a receiver's. Often it is all that its owner has to prove who he is, so it
/// can't be printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

/// Where something secret is: in the configuration itself, or in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Here(SecretUrl),
    /// Absolute, or below the home. It is read for each message.
    File(PathBuf),
}

/// Whom to tell, of what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Channel {
    pub target: Target,
    /// Nothing below this is told here.
    pub severity: Least,
    /// Only what is about these services; empty: everything.
    pub services: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Least {
    #[default]
    Warning,
    Critical,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// JSON in a shape of our own, signed where there is a secret.
    Webhook {
        url: Address,
        secret_file: Option<PathBuf>,
    },
    Slack {
        url: Address,
    },
    Discord {
        url: Address,
    },
    /// The URL ends in the topic.
    Ntfy {
        url: Address,
        token_file: Option<PathBuf>,
    },
    Email(Email),
    Command {
        command: Vec<String>,
    },
}

impl Target {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack { .. } => "slack",
            Self::Discord { .. } => "discord",
            Self::Ntfy { .. } => "ntfy",
            Self::Email(_) => "email",
            Self::Command { .. } => "command",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    pub server: String,
    pub port: u16,
    pub security: Security,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub from: String,
    pub to: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// From the first byte, port 465.
    Tls,
    /// After a word in the clear, port 587; without it nothing is sent.
    Starttls,
    /// On loopback alone, port 25.
    None,
}

/// A channel as it is written: every name that any kind has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: String,
    #[serde(default)]
    severity: Least,
    #[serde(default)]
    services: Vec<String>,
    url: Option<SecretUrl>,
    url_file: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    server: Option<String>,
    port: Option<u16>,
    security: Option<Security>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    from: Option<String>,
    to: Option<Vec<String>>,
    command: Option<Vec<String>>,
}

impl Written {
    /// The names that are there and that a channel of this kind doesn't have.
    fn strangers(&self, known: &[&str]) -> Option<&'static str> {
        [
            ("url", self.url.is_some()),
            ("url_file", self.url_file.is_some()),
            ("secret_file", self.secret_file.is_some()),
            ("token_file", self.token_file.is_some()),
            ("server", self.server.is_some()),
            ("port", self.port.is_some()),
            ("security", self.security.is_some()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
            ("from", self.from.is_some()),
            ("to", self.to.is_some()),
            ("command", self.command.is_some()),
        ]
        .into_iter()
        .find_map(|(name, is_there)| (is_there && !known.contains(&name)).then_some(name))
    }

    fn address(&mut self) -> Result<Address, String> {
        address(self.url.take(), self.url_file.take(), "url")?.ok_or_else(|| {
            format!("a channel of kind {:?} has no url and no url_file; hint: give it one", self.kind)
        })
    }

    fn email(&mut self) -> Result<Email, String> {
        let missing = |name: &str| format!("a channel of kind \"email\" has no {name}");
        let server =
            self.server.take().filter(|server| !server.is_empty()).ok_or_else(|| missing("server"))?;
        let from = self.from.take().ok_or_else(|| missing("from"))?;
        let to = self.to.take().filter(|to| !to.is_empty()).ok_or_else(|| missing("to"))?;
        if let Some(found) = [&from].into_iter().chain(&to).find(|text| !is_address(text)) {
            return Err(format!(
                "{found:?} is no e-mail address; allowed: such as \"ops@example.org\" or \"Ops <ops@example.org>\""
            ));
        }
        let security = self.security.unwrap_or(Security::Starttls);
        if security == Security::None && !is_loopback(&server) {
            return Err(format!(
                "security is \"none\" and server is {server:?}: the message would cross a network in the clear; allowed: \"none\" for localhost, 127.0.0.1 and [::1]; hint: \"starttls\" or \"tls\""
            ));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err(String::from("user and password_file go together; hint: give both, or neither"));
        }
        let usual = match security {
            Security::Tls => 465,
            Security::Starttls => 587,
            Security::None => 25,
        };
        Ok(Email {
            server,
            port: self.port.unwrap_or(usual),
            security,
            user: self.user.take(),
            password_file: self.password_file.take(),
            from,
            to,
        })
    }
}

impl TryFrom<Written> for Channel {
    type Error = String;

    fn try_from(mut written: Written) -> Result<Self, String> {
        let known: &[&str] = match written.kind.as_str() {
            "webhook" => &["url", "url_file", "secret_file"],
            "slack" | "discord" => &["url", "url_file"],
            "ntfy" => &["url", "url_file", "token_file"],
            "email" => &["server", "port", "security", "user", "password_file", "from", "to"],
            "command" => &["command"],
            other => {
                return Err(format!(
                    "kind is {other:?}; allowed: \"webhook\", \"slack\", \"discord\", \"ntfy\", \"email\", \"command\""
                ));
            }
        };
        if let Some(stranger) = written.strangers(known) {
            return Err(format!(
                "a channel of kind {:?} has no {stranger}; allowed: {}, severity, services",
                written.kind,
                known.join(", ")
            ));
        }
        if written.kind == "email" && !cfg!(feature = "mail") {
            return Err(String::from(
                "kind is \"email\", and this build can't send mail; hint: `cargo build --features keywheel/mail` makes \
                 one that can, or take another kind",
            ));
        }
        let target = match written.kind.as_str() {
            "webhook" => Target::Webhook { url: written.address()?, secret_file: written.secret_file.take() },
            "slack" => Target::Slack { url: written.address()? },
            "discord" => Target::Discord { url: written.address()? },
            "ntfy" => Target::Ntfy { url: written.address()?, token_file: written.token_file.take() },
            "email" => Target::Email(written.email()?),
            _ => {
                let command = written.command.take().unwrap_or_default();
                if command.first().is_none_or(String::is_empty) {
                    return Err(String::from(
                        "command is empty; allowed: a program and its arguments, such as [\"/usr/local/bin/tell\", \"ops\"]",
                    ));
                }
                Target::Command { command }
            }
        };
        Ok(Self { target, severity: written.severity, services: written.services })
    }
}

fn address(url: Option<SecretUrl>, file: Option<PathBuf>, name: &str) -> Result<Option<Address>, String> {
    match (url, file) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_file are both there; allowed: one of them")),
        (Some(url), None) => {
            // Not quoted: it may hold a token.
            let fits = ["http://", "https://"].iter().any(|scheme| url.0.starts_with(scheme));
            if fits {
                Ok(Some(Address::Here(url)))
            } else {
                Err(format!("{name} must begin with https:// or http://"))
            }
        }
        (None, Some(file)) => Ok(Some(Address::File(file))),
        (None, None) => Ok(None),
    }
}

fn is_address(text: &str) -> bool {
    let address = match text.split_once('<') {
        Some((_, rest)) => rest.strip_suffix('>').unwrap_or_default(),
        None => text,
    };
    let (name, host) = address.rsplit_once('@').unwrap_or_default();
    !name.is_empty() && !host.is_empty() && !text.contains(|c: char| c.is_control())
}

fn is_loopback(server: &str) -> bool {
    let bare = server.trim_start_matches('[').trim_end_matches(']');
    server == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Alerts {
    /// Whether anybody is told of anything. Where nobody is, nothing is watched and written.
    pub fn is_on(&self) -> bool {
        !self.channels.is_empty()
    }

    pub fn heartbeat(&self) -> Option<Address> {
        address(self.heartbeat_url.clone(), self.heartbeat_url_file.clone(), "heartbeat_url").ok().flatten()
    }

    /// What is wrong with it, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.after_failures == 0 {
            return Err(String::from("alerts.after_failures is 0; allowed: 1 or more"));
        }
        address(self.heartbeat_url.clone(), self.heartbeat_url_file.clone(), "alerts.heartbeat_url")?;
        if let Some(found) = self.expiry_days.iter().find(|days| !(1..=366).contains(*days)) {
            return Err(format!("alerts.expiry_days has {found}; allowed: 1 to 366, or [] for no warning"));
        }
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !name.is_empty() && name.len() <= 64 && name.chars().all(allowed)
        };
        match self.channels.keys().find(|name| !is_name(name)) {
            Some(name) => Err(format!(
                "alerts.channels has {name:?}; allowed: names of 1 to 64 letters, digits, - and _"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Alerts, String> {
        let alerts: Alerts = toml::from_str(text).map_err(|error| error.to_string())?;
        alerts.check()?;
        Ok(alerts)
    }

    #[test]
    fn every_kind_of_channel_is_read() {
        let alerts = read(
            r#"
            remind_every = "12h"
            heartbeat_url_file = "beat.url"
            [channels.hook]
            kind = "webhook"
            url = "https://receiver.example/x"
            secret_file = "hook.secret"
            severity = "critical"
            services = ["forge"]
            [channels.team]
            kind = "slack"
            url_file = "slack.url"
            [channels.chat]
            kind = "discord"
            url = "https://chat.example/api"
            [channels.phone]
            kind = "ntfy"
            url = "https://ntfy.example/topic"
            token_file = "ntfy.token"
            [channels.mail]
            kind = "email"
            server = "mail.example.org"
            user = "keywheel"
            password_file = "mail.password"
            from = "Keywheel <keywheel@example.org>"
            to = ["ops@example.org"]
            [channels.own]
            kind = "command"
            command = ["/usr/local/bin/tell", "ops"]
            "#,
        )
        .unwrap();
        let kinds: Vec<_> = alerts.channels.values().map(|channel| channel.target.kind()).collect();
        assert_eq!(kinds, ["discord", "webhook", "email", "command", "ntfy", "slack"]);
        assert_eq!(alerts.channels["hook"].severity, Least::Critical);
        let Target::Email(mail) = &alerts.channels["mail"].target else { panic!() };
        assert_eq!((mail.security, mail.port), (Security::Starttls, 587));
        assert_eq!(alerts.remind_every.millis(), 12 * 3_600_000);
        assert_eq!(alerts.heartbeat(), Some(Address::File("beat.url".into())));
        // An address is often a secret.
        assert!(!format!("{alerts:?}").contains("receiver.example"));
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_what_is_allowed() {
        let channel = |lines: &str| format!("[channels.a]\n{lines}");
        for (text, words) in [
            ("after_failures = 0".into(), &["after_failures is 0", "1 or more"][..]),
            ("remind_every = \"soon\"".into(), &["\"soon\"", "\"24h\""]),
            ("remind_every = \"0s\"".into(), &["\"0s\"", "1s to 366d"]),
            ("group_wait = 30".into(), &["string"]),
            ("expiry_days = [0]".into(), &["expiry_days has 0"]),
            ("heartbeat_url = \"ftp://x\"".into(), &["heartbeat_url must begin with https://"]),
            ("colour = 1".into(), &["colour"]),
            (channel("kind = \"pager\""), &["\"pager\"", "\"ntfy\""]),
            (channel("kind = \"slack\""), &["no url and no url_file"]),
            (channel("kind = \"slack\"\nurl = \"https://a\"\nurl_file = \"b\""), &["both there"]),
            (channel("kind = \"slack\"\nurl = \"hooks/secret\""), &["must begin with"]),
            (channel("kind = \"slack\"\nurl = \"https://a\"\nport = 1"), &["has no port", "url_file"]),
            (channel("kind = \"command\"\ncommand = []"), &["command is empty"]),
            (channel("kind = \"email\"\nserver = \"m\"\nfrom = \"a@b\""), &["has no to"]),
            (
                channel("kind = \"email\"\nserver = \"m\"\nfrom = \"a\"\nto = [\"a@b\"]"),
                &["\"a\" is no e-mail"],
            ),
            (
                channel(
                    "kind = \"email\"\nserver = \"m\"\nsecurity = \"none\"\nfrom = \"a@b\"\nto = [\"a@b\"]",
                ),
                &["in the clear", "localhost"],
            ),
            (
                channel("kind = \"email\"\nserver = \"m\"\nuser = \"u\"\nfrom = \"a@b\"\nto = [\"a@b\"]"),
                &["go together"],
            ),
            ("[channels.\"a b\"]\nkind = \"slack\"\nurl = \"https://a\"".into(), &["\"a b\"", "letters"]),
        ] {
            let error = read(&text).expect_err(&text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
        let quoted = read(&channel("kind = \"slack\"\nurl = \"hooks/secret\"")).unwrap_err();
        // The parser quotes lines for their place; the reason itself must not repeat the address.
        assert!(!quoted.lines().last().unwrap_or_default().contains("hooks/secret"), "{quoted}");
    }

    #[test]
    fn a_channel_by_mail_needs_a_build_that_sends_mail() {
        let text = "[channels.a]\nkind = \"email\"\nserver = \"m\"\nfrom = \"a@b\"\nto = [\"a@b\"]";
        let answer = read(text);
        assert_eq!(answer.is_ok(), cfg!(feature = "mail"));
        assert!(answer.err().is_none_or(|error| error.contains("keywheel/mail")));
    }

    #[test]
    fn the_commented_section_shows_the_defaults() {
        let lines = crate::config::TEMPLATE.lines().filter_map(|line| line.strip_prefix('#'));
        let text: Vec<_> = lines
            .filter(|line| !line.starts_with(' '))
            .skip_while(|line| *line != "[alerts]")
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .collect();
        assert!(text.len() > 10, "{text:?}");
        let shown = read(&text.join("\n")).unwrap();
        let as_default = Alerts {
            backup_folder: shown.backup_folder.clone(),
            heartbeat_url: shown.heartbeat_url.clone(),
            ..Alerts::default()
        };
        assert_eq!(shown, as_default);
    }
}
