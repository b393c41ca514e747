//! The `[sinks.NAME]` tables: whose secrets go where, in which form, and who is told. Judged here
//! when they are read; delivering is `sinks`. Holds no secret: a webhook's is named by its file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use url::Url;

use super::Home;
use crate::credential::{Form, ID_RULE, is_id};
use crate::limits;

/// Every sink by its name.
pub type Sinks = BTreeMap<String, Sink>;

/// One place that gets a credential's secrets, or hears that they changed: a file, a command, a
/// webhook, in this order where there are several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    pub credential: String,
    /// The file that holds the secrets in force.
    pub path: Option<PathBuf>,
    pub format: Option<Form>,
    /// What a cookie header is for.
    pub url: Option<String>,
    #[serde(default)]
    pub mode: Mode,
    pub owner: Option<Owner>,
    /// A program and its arguments, run when new secrets have come into force.
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default = "command_seconds")]
    pub command_seconds: u64,
    #[serde(default, deserialize_with = "address")]
    pub webhook: Option<Url>,
    pub webhook_secret_file: Option<PathBuf>,
    /// A delivery counts as the acknowledgement of a consumer of the sink's name.
    #[serde(default)]
    pub acknowledges: bool,
    #[serde(default = "acknowledge_wait_seconds")]
    pub acknowledge_wait_seconds: u32,
}

const fn command_seconds() -> u64 {
    limits::HOOK_WALL.as_secs()
}

const fn acknowledge_wait_seconds() -> u32 {
    limits::ACKNOWLEDGE_WAIT
}

impl Sink {
    pub const fn command_wall(&self) -> Duration {
        Duration::from_secs(self.command_seconds)
    }
}

/// What can't be read as a URL is judged in `check`: an error here would quote the line, and with
/// it a token.
fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(from)?;
    Url::parse(&text).or_else(|_| Url::parse("unreadable:")).map(Some).map_err(D::Error::custom)
}

/// The permissions of a sink's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Default for Mode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Only a text: of a bare number nobody knows whether it is octal.
        let text = String::deserialize(from)?;
        let bits = u32::from_str_radix(&text, 8).ok().filter(|bits| {
            let digits = text.len() == 3 || (text.len() == 4 && text.starts_with('0'));
            digits && bits & !0o660 == 0 && bits & 0o400 != 0
        });
        bits.map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "mode is {text:?}; allowed: \"0600\", \"0640\", \"0660\", \"0400\" or \"0440\", for others never read a secret; hint: `owner` gives the file to a group"
            ))
        })
    }
}

/// Whose a sink's file becomes: `user`, `user:group` or `:group`, each a name or a number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    pub user: Option<String>,
    pub group: Option<String>,
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text.as_str(), None),
        };
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-$".contains(c);
            !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.chars().all(allowed)
        };
        let fits = match (user, group) {
            ("", Some(group)) => is_name(group),
            (user, Some(group)) => is_name(user) && is_name(group),
            (user, None) => is_name(user),
        };
        if !fits {
            return Err(D::Error::custom(format!(
                "owner is {text:?}; allowed: \"user\", \"user:group\" or \":group\", names or numbers"
            )));
        }
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        Ok(Self { user: some(user), group: group.and_then(some) })
    }
}

/// What is wrong with any of them, in words.
pub(super) fn check(sinks: &Sinks, home: Option<&Home>) -> Result<(), String> {
    let mut files: BTreeMap<&Path, &str> = BTreeMap::new();
    for (name, sink) in sinks {
        let in_words = |(key, what): (&str, String)| {
            let key = if key.is_empty() { String::new() } else { format!(".{key}") };
            format!("sinks.{name}{key} {what}")
        };
        check_name(name)?;
        check_one(sink, home).map_err(in_words)?;
        if let Some(path) = &sink.path
            && let Some(other) = files.insert(path, name)
        {
            return Err(in_words((
                "path",
                format!(
                    "is {}, which sinks.{other} writes already; allowed: a file for each",
                    path.display()
                ),
            )));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(named) {
        return Err(format!("sinks.{name:?}: no name of a sink; allowed: 1 to 64 of a-z, 0-9, - and _"));
    }
    Ok(())
}

/// The key and what is wrong with it.
fn check_one(sink: &Sink, home: Option<&Home>) -> Result<(), (&'static str, String)> {
    let wrong = |key, what: &str| Err((key, what.to_owned()));
    if !is_id(&sink.credential) {
        return Err(("credential", format!("is {:?}; allowed: {ID_RULE}", sink.credential)));
    }
    if sink.path.is_none() && sink.command.is_empty() && sink.webhook.is_none() {
        return wrong("", "does nothing; allowed: path, command and webhook, one of them at least");
    }
    match (&sink.path, sink.format) {
        (Some(path), _) if !path.is_absolute() || path.file_name().is_none() => {
            return Err(("path", format!("is {}; allowed: an absolute path of a file", path.display())));
        }
        (Some(path), _) if home.is_some_and(|home| path.starts_with(home.root())) => {
            return Err((
                "path",
                format!("is {}, in Keywheel's own home; allowed: anywhere else", path.display()),
            ));
        }
        (Some(_), None) => {
            return wrong(
                "format",
                "is missing; allowed: netscape, storage-state, browser-json, header, env, json",
            );
        }
        (None, Some(_)) => {
            return wrong("format", "is given without a path; hint: path = \"/run/app/secrets\"");
        }
        (None, None) if sink.owner.is_some() || sink.mode != Mode::default() => {
            return wrong("path", "is missing, and mode and owner are a file's");
        }
        _ => {}
    }
    match (sink.format, &sink.url) {
        (Some(Form::Header), None) => {
            return wrong(
                "url",
                "is missing: which cookies are sent depends on it; hint: url = \"https://…\"",
            );
        }
        (Some(Form::Header), Some(url)) if !Url::parse(url).is_ok_and(|url| url.has_host()) => {
            return wrong("url", "is no url with a host; allowed: \"https://host/path\"");
        }
        (Some(Form::Header), _) | (_, None) => {}
        (_, Some(_)) => return wrong("url", "is for format = \"header\" alone"),
    }
    if sink.command.iter().any(|word| word.contains('\0'))
        || sink.command.first().is_some_and(String::is_empty)
    {
        return wrong(
            "command",
            "can't be run; allowed: a program and its arguments, such as [\"systemctl\", \"reload\", \"app\"]",
        );
    }
    if !(1..=600).contains(&sink.command_seconds) {
        return Err(("command_seconds", format!("is {}; allowed: 1 to 600", sink.command_seconds)));
    }
    check_webhook(sink)?;
    if sink.acknowledge_wait_seconds == 0 || sink.acknowledge_wait_seconds > limits::LONGEST_ACKNOWLEDGE_WAIT
    {
        return Err((
            "acknowledge_wait_seconds",
            format!(
                "is {}; allowed: 1 to {}",
                sink.acknowledge_wait_seconds,
                limits::LONGEST_ACKNOWLEDGE_WAIT
            ),
        ));
    }
    Ok(())
}

fn check_webhook(sink: &Sink) -> Result<(), (&'static str, String)> {
    let wrong = |key, what: &str| Err((key, what.to_owned()));
    let Some(webhook) = &sink.webhook else {
        return match sink.webhook_secret_file {
            Some(_) => wrong("webhook_secret_file", "is given without a webhook"),
            None => Ok(()),
        };
    };
    // Not quoted: a URL may hold a token.
    if !matches!(webhook.scheme(), "http" | "https") || !webhook.has_host() {
        return wrong("webhook", "is no address of a webhook; allowed: \"https://host/path\"");
    }
    if !webhook.username().is_empty() || webhook.password().is_some() {
        return wrong("webhook", "has a user name or password in it; hint: its signature is what to check");
    }
    match &sink.webhook_secret_file {
        None => wrong(
            "webhook_secret_file",
            "is missing: what a webhook says is signed; hint: `(printf whsec_; openssl rand -base64 32) > /etc/keywheel/webhook.secret`, mode 0600",
        ),
        Some(path) if !path.is_absolute() => {
            Err(("webhook_secret_file", format!("is {}; allowed: an absolute path", path.display())))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Tables {
        sinks: Sinks,
    }

    fn read(text: &str) -> Result<Sinks, String> {
        let tables: Tables = toml::from_str(text).map_err(|error| error.to_string())?;
        let home = Home::locate(Some("/srv/keywheel".into())).map_err(|error| error.to_string())?;
        check(&tables.sinks, Some(&home))?;
        Ok(tables.sinks)
    }

    #[test]
    fn a_sink_is_a_file_a_command_a_webhook_or_all_of_them() {
        let sinks = read(
            r#"
            [sinks.shop]
            credential = "ann"
            path = "/run/app/cookies.txt"
            format = "netscape"
            mode = "0640"
            owner = "app:www-data"
            command = ["systemctl", "reload", "app"]
            webhook = "https://app.example/hook?token=x"
            webhook_secret_file = "/etc/keywheel/hook.secret"
            acknowledges = true

            [sinks.told]
            credential = "ann"
            command = ["/usr/local/bin/told"]

            [sinks.for-curl]
            credential = "ann"
            path = "/run/app/header"
            format = "header"
            url = "https://shop.example/"

            [sinks.browser]
            credential = "ann"
            path = "/run/app/state.json"
            format = "playwright"
            owner = ":app"
            "#,
        )
        .unwrap();
        let shop = &sinks["shop"];
        assert_eq!((shop.mode, shop.command_seconds), (Mode(0o640), 30));
        assert_eq!(shop.owner, Some(Owner { user: Some("app".into()), group: Some("www-data".into()) }));
        assert_eq!(sinks["browser"].format, Some(Form::StorageState));
        assert_eq!(sinks["browser"].owner, Some(Owner { user: None, group: Some("app".into()) }));
        assert_eq!((sinks["told"].mode, sinks["told"].acknowledges), (Mode(0o600), false));
    }

    #[test]
    fn what_is_wrong_with_a_sink_is_told_with_its_name_and_key() {
        let file = "credential = \"ann\"\npath = \"/run/a\"\nformat = \"json\"\n";
        let hook = "credential = \"ann\"\nwebhook_secret_file = \"/etc/s\"\n";
        for (table, wanted) in [
            ("credential = \"ann\"", "sinks.a does nothing; allowed: path, command and webhook"),
            ("command = [\"x\"]", "missing field `credential`"),
            ("credential = \"../x\"\ncommand = [\"x\"]", "sinks.a.credential is \"../x\"; allowed: 1 to 128"),
            ("credential = \"ann\"\npath = \"/run/a\"", "sinks.a.format is missing; allowed: netscape,"),
            (
                "credential = \"ann\"\npath = \"a.txt\"\nformat = \"env\"",
                "sinks.a.path is a.txt; allowed: an absolute",
            ),
            (
                "credential = \"ann\"\npath = \"/srv/keywheel/master.key\"\nformat = \"env\"",
                "sinks.a.path is /srv/keywheel/master.key, in Keywheel's own home",
            ),
            (
                "credential = \"ann\"\ncommand = [\"x\"]\nformat = \"env\"",
                "sinks.a.format is given without a path",
            ),
            (
                "credential = \"ann\"\ncommand = [\"x\"]\nowner = \"app\"",
                "sinks.a.path is missing, and mode and owner",
            ),
            ("credential = \"ann\"\npath = \"/run/a\"\nformat = \"header\"", "sinks.a.url is missing"),
            (&format!("{file}url = \"https://a.example\""), "sinks.a.url is for format = \"header\" alone"),
            (&format!("{file}mode = \"0644\""), "mode is \"0644\"; allowed: \"0600\""),
            (&format!("{file}mode = \"4600\""), "mode is \"4600\"; allowed: \"0600\""),
            (&format!("{file}mode = \"0200\""), "mode is \"0200\"; allowed: \"0600\""),
            (&format!("{file}mode = 600"), "invalid type: integer"),
            (&format!("{file}owner = \"a b\""), "owner is \"a b\"; allowed: \"user\""),
            (&format!("{file}owner = \":\""), "owner is \":\"; allowed: \"user\""),
            ("credential = \"ann\"\ncommand = [\"\"]", "sinks.a.command can't be run"),
            (
                "credential = \"ann\"\ncommand = [\"x\"]\ncommand_seconds = 0",
                "sinks.a.command_seconds is 0; allowed: 1 to 600",
            ),
            (hook, "sinks.a does nothing"),
            (&format!("{hook}command = [\"x\"]"), "sinks.a.webhook_secret_file is given without a webhook"),
            (
                "credential = \"ann\"\nwebhook = \"https://a.example/\"",
                "sinks.a.webhook_secret_file is missing",
            ),
            (&format!("{hook}webhook = \"ftp://a.example/\""), "sinks.a.webhook is no address of a webhook"),
            (&format!("{hook}webhook = \"a.example\""), "sinks.a.webhook is no address of a webhook"),
            (
                &format!("{hook}webhook = \"https://u:p@a.example/\""),
                "sinks.a.webhook has a user name or password",
            ),
            (
                &format!("{file}acknowledge_wait_seconds = 0"),
                "sinks.a.acknowledge_wait_seconds is 0; allowed: 1 to",
            ),
            (&format!("{file}to = \"x\""), "unknown field `to`"),
            (&format!("{file}\n[sinks.b]\n{file}"), "sinks.b.path is /run/a, which sinks.a writes already"),
        ] {
            let said = read(&format!("[sinks.a]\n{table}\n")).expect_err(wanted);
            assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
        }
        let said = read("[sinks.\"A b\"]\ncredential = \"ann\"\ncommand = [\"x\"]\n").unwrap_err();
        assert!(said.starts_with("sinks.\"A b\": no name of a sink"), "{said}");
    }

    #[test]
    fn an_error_never_repeats_a_webhooks_address() {
        let table = "[sinks.a]\ncredential = \"ann\"\nwebhook = \"https://u:p@a.example/?token=t0ken\"\n";
        let said = read(table).unwrap_err();
        assert!(!said.contains("t0ken") && !said.contains("u:p"), "{said}");
    }
}
