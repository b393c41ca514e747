//! Where an installation lives and what its operator chose. A configuration never changes; a
//! running daemon may be given another one (`Live`), and each part says whether it follows. A leaf.

pub mod alerts;
pub mod host;
pub mod metrics;
pub mod place;
pub mod sinks;
pub mod store;
pub mod telemetry;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::protocol::Require;
use crate::quiet::Quiet;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no home: {0} doesn't exist; hint: `keywheel init` makes one")]
    NoHome(PathBuf),
    #[error(
        "no master key at {0}, and a database beside it; hint: put the backup of it back, name the file in KEYWHEEL_MASTER_KEY if it lies elsewhere, or run `keywheel init` if this home was never finished"
    )]
    NoKey(PathBuf),
    #[error(
        "no database at {0}, and its master key beside it; hint: put the backup of it back, or begin anew in another home"
    )]
    NoDatabase(PathBuf),
    #[error(
        "{0} has a host key, and config.toml names no store; hint: put its section `[store]` back, with the url of the store that the host has joined"
    )]
    NoStore(PathBuf),
    #[error("no home to use: neither --home, KEYWHEEL_HOME, XDG_DATA_HOME nor HOME is set")]
    Nowhere,
    #[error("{path} can't be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Live(Arc<watch::Sender<Arc<Config>>>);

impl Live {
    pub fn new(config: Config) -> Self {
        Self(Arc::new(watch::channel(Arc::new(config)).0))
    }

    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow())
    }

    /// Wakes whoever follows changes.
    pub fn changes(&self) -> watch::Receiver<Arc<Config>> {
        self.0.subscribe()
    }

    pub fn replace(&self, config: Config) {
        self.0.send_replace(Arc::new(config));
    }
}

/// The folder of one installation.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    /// Where the master key is, if not in the home.
    key: Option<KeyElsewhere>,
    /// The same for the host's own.
    host_key: Option<KeyElsewhere>,
    /// Where everything is kept, once somebody asked.
    store: Arc<OnceLock<store::Store>>,
}

/// A key outside of the home: who has a copy of the home has no secret then.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyElsewhere {
    /// The file that `KEYWHEEL_MASTER_KEY` or `KEYWHEEL_HOST_KEY` names.
    Named(PathBuf),
    /// What systemd put into the folder that it made for this service alone.
    Credential(PathBuf),
}

/// The name of a systemd credential, and of the file in the home.
pub const KEY_NAME: &str = "master.key";

/// The same for the key of a host that has joined others.
const HOST_KEY_NAME: &str = "host.key";

impl KeyElsewhere {
    fn find(variable: &str, name: &str) -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(named) = set(variable) {
            // Absolute, as the home is: children change their folder.
            return Some(Self::Named(std::path::absolute(&named).unwrap_or(named)));
        }
        let credential = set("CREDENTIALS_DIRECTORY")?.join(name);
        credential.exists().then_some(Self::Credential(credential))
    }
}

impl Home {
    /// The folder that was named, or the usual place for a user's own data.
    ///
    /// # Errors
    /// Where nothing says what a usual place would be.
    pub fn locate(named: Option<PathBuf>) -> Result<Self, ConfigError> {
        let usual = || {
            std::env::var_os("XDG_DATA_HOME")
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
                .map(|data| data.join("keywheel"))
        };
        let root = named.or_else(usual).ok_or(ConfigError::Nowhere)?;
        // A relative home would follow the caller's folder; children change theirs.
        let root = std::path::absolute(&root).map_err(|source| ConfigError::Io { path: root, source })?;
        let key = KeyElsewhere::find("KEYWHEEL_MASTER_KEY", KEY_NAME);
        let host_key = KeyElsewhere::find("KEYWHEEL_HOST_KEY", HOST_KEY_NAME);
        Ok(Self { root, key, host_key, store: Arc::default() })
    }

    /// The same home with its master key in this file.
    #[must_use]
    pub fn with_master_key(self, file: PathBuf) -> Self {
        Self { key: Some(KeyElsewhere::Named(file)), ..self }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub fn master_key(&self) -> PathBuf {
        match &self.key {
            None => self.root.join(KEY_NAME),
            Some(KeyElsewhere::Named(path) | KeyElsewhere::Credential(path)) => path.clone(),
        }
    }

    /// Where the key lies by itself.
    pub fn own_master_key(&self) -> PathBuf {
        self.root.join(KEY_NAME)
    }

    /// Whether systemd keeps the key for this service.
    pub fn key_is_credential(&self) -> bool {
        matches!(self.key, Some(KeyElsewhere::Credential(_)))
    }

    /// The host's own key, for which the master key lies sealed in the store.
    pub fn host_key(&self) -> PathBuf {
        match &self.host_key {
            None => self.root.join(HOST_KEY_NAME),
            Some(KeyElsewhere::Named(path) | KeyElsewhere::Credential(path)) => path.clone(),
        }
    }

    /// Whether systemd keeps the host's key for this service.
    pub fn host_key_is_credential(&self) -> bool {
        matches!(self.host_key, Some(KeyElsewhere::Credential(_)))
    }

    /// Whether the master key is had from the store, by a key of this host's own.
    pub fn uses_host_key(&self) -> bool {
        self.key.is_none() && !self.master_key().exists() && self.host_key().exists()
    }

    /// Where everything is kept. It stays as it is found first: another one is another daemon's.
    pub fn database(&self) -> store::Store {
        self.store.get_or_init(|| store::Store::of(&self.config(), self.database_file())).clone()
    }

    /// The same home, whose configuration may name another store by now.
    #[must_use]
    pub fn looked_at_anew(&self) -> Self {
        Self { store: Arc::default(), ..self.clone() }
    }

    /// The file that everything is in, unless the configuration names a server.
    pub fn database_file(&self) -> PathBuf {
        self.root.join("keywheel.db")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn socket(&self) -> PathBuf {
        self.root.join("keywheel.sock")
    }

    /// Where the operator drops plugins.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// The bytes of every plugin in use, by digest: what is approved keeps running when the
    /// file in the folder is replaced.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// What the plugin folder has said already, where several hosts share a store.
    pub fn inbox(&self) -> PathBuf {
        self.root.join("inbox.json")
    }

    /// Native code made from the store; may be deleted at any time.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Issued secrets that the store couldn't take yet, sealed as they would be there.
    pub fn late(&self) -> PathBuf {
        self.root.join("late")
    }

    /// Where reports go before they are deleted, if they do.
    pub fn archive(&self, reports: &Reports) -> Option<PathBuf> {
        reports.archive.as_ref().map(|folder| self.root.join(folder))
    }

    pub fn exists(&self) -> bool {
        self.master_key().exists() || self.uses_host_key()
    }

    /// # Errors
    /// Where the home isn't one yet.
    pub fn require(&self) -> Result<(), ConfigError> {
        if self.uses_host_key() && self.database().file().is_some() {
            Err(ConfigError::NoStore(self.root.clone()))
        } else if self.exists() && self.database().exists() {
            Ok(())
        } else if self.exists() && self.key.is_none() {
            // A new one in its place would look like an installation that never had a credential.
            Err(ConfigError::NoDatabase(self.database_file()))
        } else if self.database().exists() {
            // A daemon that runs has its key, wherever that is; it isn't this process's business.
            match std::os::unix::net::UnixStream::connect(self.socket()) {
                Ok(_) => Ok(()),
                Err(_) => Err(ConfigError::NoKey(self.master_key())),
            }
        } else {
            Err(ConfigError::NoHome(self.root.clone()))
        }
    }

    /// Makes the folders, private to the user.
    ///
    /// # Errors
    /// The system's.
    pub fn make_folders(&self) -> Result<(), ConfigError> {
        for path in [self.root.clone(), self.plugins(), self.store(), self.cache(), self.late()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| ConfigError::Io { path, source })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Plugins run only with every layer of the sandbox, the namespaces alone excepted: many
    /// containers don't give them to those who aren't root.
    #[default]
    Strict,
    /// Plugins run with the layers this kernel has.
    BestEffort,
    /// Namespaces too, and a process for each call.
    Paranoid,
}

impl Isolation {
    pub const fn requires(self) -> Require {
        match self {
            Self::Strict => Require::AllButNamespaces,
            Self::BestEffort => Require::Nothing,
            Self::Paranoid => Require::All,
        }
    }
}

/// Which plugins may run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginPolicy {
    /// Any that the operator put into the folder.
    #[default]
    Any,
    /// Those alone that a trusted key has signed.
    SignedOnly,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub isolation: Isolation,
    pub plugin_policy: PluginPolicy,
    /// A worker without a call for this long is stopped.
    pub idle_stop_seconds: u64,
    /// The plugin folder is looked at this often, whatever the watcher says.
    pub rescan_seconds: u64,
    /// Certificates to trust beside the system's, in PEM.
    pub extra_ca_file: Option<PathBuf>,
    pub http: Http,
    pub metrics: metrics::Metrics,
    pub telemetry: telemetry::Telemetry,
    pub reports: Reports,
    pub alerts: alerts::Alerts,
    /// What is logged, where the command line doesn't say: a level, or tracing's filters.
    pub log: Option<String>,
    /// The file's own text.
    #[serde(skip)]
    pub text: String,
    /// The operator's rules for services, by name. A service needn't be there yet.
    pub services: BTreeMap<String, ServiceRules>,
    /// Where secrets go that are in force, by name.
    pub sinks: sinks::Sinks,
    /// What this machine is to the others that share its store.
    pub host: host::HostConfig,
    /// A server that keeps everything; None: a file in the home does.
    pub store: Option<store::StoreConfig>,
}

/// The HTTP port: none unless it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub listen: Option<SocketAddr>,
    /// Lets `listen` be an address that other machines reach.
    pub allow_remote: bool,
    /// Names beside those of loopback by which clients may call.
    pub hosts: Vec<String>,
    /// What one token may send for long, and at once.
    pub requests_per_second: NonZeroU32,
    pub requests_at_once: NonZeroU32,
}

impl Default for Http {
    fn default() -> Self {
        const fn number(of: u32) -> NonZeroU32 {
            NonZeroU32::new(of).expect("not zero")
        }
        Self {
            listen: None,
            allow_remote: false,
            hosts: Vec::new(),
            requests_per_second: number(10),
            requests_at_once: number(50),
        }
    }
}

impl Http {
    /// What is wrong with it, in words.
    fn check(&self) -> Result<(), String> {
        if let Some(listen) = self.listen
            && !listen.ip().is_loopback()
            && !self.allow_remote
        {
            return Err(format!(
                "http.listen is {listen}, which other machines reach, and the port speaks plain HTTP; allowed: a loopback address such as 127.0.0.1:7878; hint: put a proxy with TLS in front of a loopback address, or set http.allow_remote = true"
            ));
        }
        // As in a Host header, without its port.
        let is_name = |name: &String| {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-[:]".contains(c);
            !name.is_empty()
                && name.len() <= 255
                && name.chars().all(allowed)
                && (!name.contains(':') || name.starts_with('['))
        };
        match self.hosts.iter().find(|name| !is_name(name)) {
            Some(name) => Err(format!(
                "http.hosts has {name:?}; allowed: host names in lower case, without scheme and port, such as \"keywheel.example\""
            )),
            None => Ok(()),
        }
    }
}

/// Which reports are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reports {
    /// For so many days; 0: for ever.
    #[serde(deserialize_with = "days")]
    pub keep_days: u32,
    /// So many of each credential; 0: all.
    #[serde(deserialize_with = "count")]
    pub keep_per_credential: u32,
    /// Where they go before they are deleted: absolute, or below the home. None: nowhere.
    pub archive: Option<PathBuf>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { keep_days: 90, keep_per_credential: 10_000, archive: None }
    }
}

/// A hundred years: past it the number was meant as something else.
const MOST_DAYS: u32 = 36_500;

fn days<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    bounded(from, MOST_DAYS, "0 (for ever) to 36500 days")
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    bounded(from, 1_000_000_000, "0 (all of them) to 1000000000")
}

fn bounded<'de, D: Deserializer<'de>>(from: D, most: u32, allowed: &str) -> Result<u32, D::Error> {
    let found = i64::deserialize(from)?;
    u32::try_from(found)
        .ok()
        .filter(|number| *number <= most)
        .ok_or_else(|| D::Error::custom(format!("found {found}; allowed: {allowed}")))
}

/// How much a service may be asked, and when not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceRules {
    /// Attempts at once.
    pub concurrency: Option<u32>,
    /// Requests in a minute.
    pub rate_per_minute: Option<u32>,
    /// Nothing of it is rotated by itself then.
    #[serde(deserialize_with = "quiet_windows")]
    pub quiet: Quiet,
    /// Only hosts with all of these labels ask this service.
    pub only_on: host::Labels,
}

fn quiet_windows<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Quiet, D::Error> {
    let windows = Vec::<String>::deserialize(deserializer)?;
    Quiet::parse(&windows).map_err(serde::de::Error::custom)
}

/// The fastest rate there is: more can't be told from none.
const FASTEST: u32 = 60_000;

impl ServiceRules {
    fn check(&self, service: &str) -> Result<(), String> {
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if service.is_empty() || service.len() > 64 || !service.chars().all(named) {
            return Err(format!(
                "services.{service:?}: no name of a service; allowed: 1 to 64 of a-z, 0-9 and -"
            ));
        }
        if self.concurrency == Some(0) {
            return Err(format!(
                "services.{service}.concurrency is 0; allowed: 1 or more; hint: `keywheel plugin pause {service}` stops it"
            ));
        }
        match self.rate_per_minute {
            Some(found) if found == 0 || found > FASTEST => Err(format!(
                "services.{service}.rate_per_minute is {found}; allowed: 1 to {FASTEST}, or no line for no limit; hint: `keywheel plugin pause {service}` stops it"
            )),
            _ => Ok(()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            isolation: Isolation::Strict,
            plugin_policy: PluginPolicy::Any,
            idle_stop_seconds: 300,
            rescan_seconds: 30,
            extra_ca_file: None,
            http: Http::default(),
            metrics: metrics::Metrics::default(),
            telemetry: telemetry::Telemetry::default(),
            reports: Reports::default(),
            alerts: alerts::Alerts::default(),
            log: None,
            text: String::new(),
            services: BTreeMap::new(),
            sinks: sinks::Sinks::new(),
            host: host::HostConfig::default(),
            store: None,
        }
    }
}

/// What `init` writes: every choice with its default, so that nobody has to look it up.
pub const TEMPLATE: &str = r#"# Keywheel's configuration. Every line shows its default.

# "strict" runs plugins only inside the whole sandbox, of which the kernel may withhold the
# namespaces alone; "best-effort" runs them with what this kernel has; "paranoid" wants the
# namespaces too and gives each call of a plugin a process of its own, 3 ms dearer.
# `keywheel doctor` shows what there is.
#isolation = "strict"

# "any" runs what lies in the plugin folder; "signed-only" runs what a key that you trust
# (`keywheel plugin trust`) has signed, and nothing else.
#plugin_policy = "any"

# A worker without work for this long is stopped; it starts again when something is due.
#idle_stop_seconds = 300

# What is logged, where neither --log nor KEYWHEEL_LOG says: a level, or tracing's filters such as
# "info,keywheel::rotation=debug".
#log = "info"

# The plugin folder is watched, and looked at this often all the same.
#rescan_seconds = 30

# Certificates to trust beside the system's, in PEM.
#extra_ca_file = "/etc/keywheel/ca.pem"

# The HTTP port, for the dashboard, for workers that can't be plugins, for programs that read
# secrets, and for metrics. Without `listen` there is none. It speaks plain HTTP: only loopback
# addresses are allowed, unless `allow_remote` is true. `hosts` are the
# names by which a proxy in front of it is called. The other two are limits for each token.
#[http]
#listen = "127.0.0.1:7878"
#allow_remote = false
#hosts = []
#requests_per_second = 10
#requests_at_once = 50

# /metrics on that port. "token" lets in tokens with the scope `metrics` alone; "open" everyone who
# reaches the port. Without a line it is "open" where only loopback does and there are no series
# for each credential. `per_credential` gives each of the first 10000 its own.
#[metrics]
#access = "open"
#per_credential = false

# Traces of attempts, by OTLP over HTTP, in builds with the feature `otel`. Without an endpoint
# there are none. `sample` is the share of attempts that is traced, 1 for all of them.
#[telemetry]
#otlp_endpoint = "http://127.0.0.1:4318"
#sample = 0.1

# Reports of attempts older than so many days are deleted, and so are those past so many newest
# of a credential; 0 means no such limit. The last report of each credential and its last
# success always stay.
#[reports]
#keep_days = 90
#keep_per_credential = 10000
# Before that they are written here, as compressed JSON Lines (unset: nowhere); absolute, or
# below this folder. The folder above it must exist.
#archive = "archive"

# Who is told when something is in trouble, and when it is well again. Without a channel nobody is
# and nothing is watched; `keywheel alert test` tries them. Times are such as "90s", "15m", "24h".
#[alerts]
# Told after so many failures in a row; at once where a person must act.
#after_failures = 3
# Told again this often while it lasts, so many times.
#remind_every = "24h"
#remind_at_most = 7
# What happens to one service within the first is one notice; the next comes after the second.
#group_wait = "30s"
#group_interval = "5m"
# Days before the end of a secret that Keywheel can't renew by itself.
#expiry_days = [14, 7, 1]
# Free space of this folder's disk, in MiB; an eighth of it is critical. 0: not looked at.
#disk_low_mib = 256
# Where backups go, and how old the newest file there may get (unset: not looked at).
#backup_folder = "/var/backups/keywheel"
#backup_max_age = "2d"
# Asked for while everything turns, and only then: a watchdog elsewhere notices the silence.
#heartbeat_url = "https://watchdog.example/ping/keywheel"
#heartbeat_every = "1m"
# The first wait after a message wasn't taken; it doubles up to half an hour, for a day.
#retry_first = "5s"

# One section for each channel, with a name of yours. `severity` is "warning" or "critical", the
# least that is told there; `services` are the only ones it is told about. Addresses and tokens
# may be in files of their own: `url_file` in place of `url`.
#[alerts.channels.NAME]
#kind = "webhook"        # or "slack", "discord", "ntfy", "email", "command"
#url = "https://receiver.example/alerts"
#secret_file = "alerts.secret"
#severity = "warning"
#services = []

# Rules for one service, by the name that `keywheel plugin list` shows. None of them has a default.
#[services.NAME]
# Attempts at once, and requests in a minute, of all its credentials together.
#concurrency = 4
#rate_per_minute = 60
# Nothing is rotated by itself then, unless the secret would expire meanwhile; checks go on.
#quiet = ["22:00-06:00 Europe/Berlin"]
# Only hosts with these labels ask it, where several share a store, such as { region = "eu" }.
#only_on = {}

# A PostgreSQL server in place of the file keywheel.db, for several hosts that share everything;
# `keywheel store migrate` moves there. No password in it: that is in a file of mode 0600. TLS is
# required, unless the server is on this machine.
#[store]
#url = "postgres://keywheel@db.example:5432/keywheel"
#password_file = "/etc/keywheel/store.password"
#ca_file = "/etc/keywheel/store-ca.pem"
#tls = "require"

# What this machine is to the others then. It is called as the machine is, if nothing is said.
#[host]
#name = "one"
# Such as { region = "eu" }, for `only_on` of a service.
#labels = {}

# A sink, by a name of your own: where a credential's secrets go whenever new ones are in force.
# A file, then a command, then a webhook; any of them will do. None of it has a default but the
# file's mode and the two times.
#[sinks.NAME]
#credential = "ann"
# netscape (cookies.txt), storage-state (Playwright), browser-json, header, env or json. The file
# is replaced whole or not at all; the folder must exist.
#path = "/run/app/cookies.txt"
#format = "netscape"
# For format = "header": which cookies are sent depends on it.
#url = "https://shop.example/"
#mode = "0600"
#owner = "app:app"
# Run after the file was written: a program and its arguments, no shell.
#command = ["systemctl", "reload", "app"]
#command_seconds = 30
# Told that there are new secrets, never what they are; signed, see docs/operating.md.
#webhook = "https://app.example/hooks/keywheel"
#webhook_secret_file = "/etc/keywheel/webhook.secret"
# A delivery is an acknowledgement: rotations that would retire the secret before wait for it.
#acknowledges = false
#acknowledge_wait_seconds = 600
"#;

impl Config {
    /// # Errors
    /// An unreadable file, an unknown field or a value that isn't allowed.
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Io { path, source }),
        };
        Self::parse(&text, &path, Some(home))
    }

    /// Reads and judges a configuration; `path` is for the words alone. Without a home what it
    /// says of paths isn't compared with that.
    ///
    /// # Errors
    /// An unknown field or a value that isn't allowed, with line and column.
    pub fn parse(text: &str, path: &Path, home: Option<&Home>) -> Result<Self, ConfigError> {
        Self::judge(text, path.to_owned(), home).map_err(|error| match error {
            // What is wrong with the writing has its place already.
            ConfigError::Parse { path, message } if !message.starts_with("line ") => {
                ConfigError::Parse { path, message: place::of_meaning(text, &message) }
            }
            error => error,
        })
    }

    /// Each check's words begin with the key that they are about.
    fn judge(text: &str, path: PathBuf, home: Option<&Home>) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let message = place::of_syntax(text, &error);
            ConfigError::Parse { path: path.clone(), message }
        })?;
        text.clone_into(&mut config.text);
        for (key, found) in
            [("rescan_seconds", config.rescan_seconds), ("idle_stop_seconds", config.idle_stop_seconds)]
        {
            if found == 0 {
                let message = format!("{key} is 0; seconds must be at least 1");
                return Err(ConfigError::Parse { path, message });
            }
        }
        if let Some(Err(error)) = config.log.as_ref().map(EnvFilter::try_new) {
            let message = format!(
                "log is {:?}, which can't be read: {error}; allowed: off, error, warn, info, debug, trace, or filters such as \"info,keywheel::rotation=debug\"",
                config.log.as_deref().unwrap_or_default()
            );
            return Err(ConfigError::Parse { path, message });
        }
        let parts = config.http.check().and_then(|()| config.telemetry.check());
        if let Err(message) = parts.and_then(|()| config.host.check()) {
            return Err(ConfigError::Parse { path, message });
        }
        if config.reports.archive.as_ref().is_some_and(|folder| folder.as_os_str().is_empty()) {
            let message = "reports.archive is empty; allowed: a folder, or leave the line out".into();
            return Err(ConfigError::Parse { path, message });
        }
        if let Err(message) = config.alerts.check() {
            return Err(ConfigError::Parse { path, message });
        }
        for (service, rules) in &config.services {
            if let Err(message) = rules.check(service) {
                return Err(ConfigError::Parse { path, message });
            }
        }
        if let Err(message) = sinks::check(&config.sinks, home) {
            return Err(ConfigError::Parse { path, message });
        }
        Ok(config)
    }

    pub const fn idle_stop(&self) -> Duration {
        Duration::from_secs(self.idle_stop_seconds)
    }

    pub const fn rescan(&self) -> Duration {
        Duration::from_secs(self.rescan_seconds)
    }
}

/// Writes a file so that it is there whole or not at all, with mode 0600.
///
/// # Errors
/// The system's; the old file, if any, is untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let temporary = folder.join(format!(".{}.tmp", hex::encode(random)));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = fs::remove_file(&temporary);
    }
    written
}
