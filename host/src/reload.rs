//! What a configuration that was read anew changes in a running daemon: which keys, which of them
//! are followed at once, and which wait for a restart and why. Pure; `daemon` reads the file and
//! does it. A leaf but for `config`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Config, place};

/// What is fixed when the daemon starts, by key or by the section above it, with the reason. All
/// else is looked up in the configuration in force whenever it is needed.
const AT_RESTART: &[(&str, &str)] = &[
    ("isolation", "workers that run keep the walls they were started with"),
    ("plugin_policy", "which plugins may run is decided when they are first looked at"),
    ("extra_ca_file", "the connections that are open were checked with the old certificates"),
    ("http", "the port is open"),
    ("metrics", "the port is open"),
    ("telemetry", "traces are on their way"),
    ("store", "what is in flight is written where it began"),
    ("host", "the other hosts know this one as it began"),
];

/// What a reload came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reloaded {
    /// Keys that are in force from now on.
    pub at_once: Vec<String>,
    /// Keys that wait for a restart, each with the reason.
    pub at_restart: Vec<(String, String)>,
}

impl Reloaded {
    /// In words, a line each.
    pub fn words(&self) -> Vec<String> {
        if self.at_once.is_empty() && self.at_restart.is_empty() {
            return vec![String::from("nothing changed")];
        }
        let mut lines = Vec::new();
        if !self.at_once.is_empty() {
            lines.push(format!("in force now: {}", self.at_once.join(", ")));
        }
        for (key, why) in &self.at_restart {
            lines.push(format!("waits for a restart: {key} ({why})"));
        }
        lines
    }
}

/// Why a key waits for a restart; None: it doesn't.
pub fn waits(key: &str) -> Option<&'static str> {
    let is_it = |of: &str| key.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    AT_RESTART.iter().find(|(of, _)| is_it(of)).map(|(_, why)| *why)
}

/// The texts are those that the daemon was started with, that was in force until now, and that is
/// from now on. All of them were read without a mistake.
pub fn compare(started: &str, before: &str, now: &str) -> Reloaded {
    let values = |text: &str| -> BTreeMap<String, toml::Value> {
        let keys = place::keys(text).unwrap_or_default();
        keys.into_iter().map(|(key, (_, value))| (key, value)).collect()
    };
    let differing = |one: &BTreeMap<_, _>, two: &BTreeMap<_, _>| -> BTreeSet<String> {
        let keys = one.keys().chain(two.keys());
        keys.filter(|key| one.get(*key) != two.get(*key)).cloned().collect()
    };
    let (started, before, now) = (values(started), values(before), values(now));
    let at_once = differing(&before, &now).into_iter().filter(|key| waits(key).is_none()).collect();
    // Against the start: what was changed and changed back needs no restart any more.
    let at_restart = differing(&started, &now)
        .into_iter()
        .filter_map(|key| waits(&key).map(|why| (key.clone(), why.to_owned())))
        .collect();
    Reloaded { at_once, at_restart }
}

/// The new configuration, with what can't change while the daemon runs as it was.
pub fn in_force(before: &Config, new: Config) -> Config {
    Config {
        isolation: before.isolation,
        plugin_policy: before.plugin_policy,
        extra_ca_file: before.extra_ca_file.clone(),
        http: before.http.clone(),
        metrics: before.metrics.clone(),
        telemetry: before.telemetry.clone(),
        host: before.host.clone(),
        store: before.store.clone(),
        ..new
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const STARTED: &str = "isolation = \"strict\"\nrescan_seconds = 5\n[services.shop]\nconcurrency = 2\n";

    #[test]
    fn each_changed_key_is_named_with_when_it_is_followed() {
        let now = "isolation = \"paranoid\"\n[services.shop]\nconcurrency = 3\nquiet = [\"22:00-06:00 UTC\"]\n[http]\nlisten = \"127.0.0.1:1\"\n";
        let reloaded = compare(STARTED, STARTED, now);
        assert_eq!(reloaded.at_once, ["rescan_seconds", "services.shop.concurrency", "services.shop.quiet"]);
        let waiting: Vec<_> = reloaded.at_restart.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(waiting, ["http.listen", "isolation"]);
        let words = reloaded.words().join("\n");
        assert!(words.contains("waits for a restart: isolation (workers"), "{words}");
    }

    #[test]
    fn what_still_waits_is_said_each_time_until_it_is_changed_back() {
        let other = STARTED.replace("strict", "paranoid");
        let again = compare(STARTED, &other, &other);
        assert_eq!((again.at_once.len(), again.at_restart.len()), (0, 1));
        assert_eq!(compare(STARTED, &other, STARTED), Reloaded::default());
        assert_eq!(Reloaded::default().words(), ["nothing changed"]);
    }

    #[test]
    fn what_waits_for_a_restart_stays_as_it_was_in_the_configuration_in_force() {
        let read = |text: &str| Config::parse(text, Path::new("config.toml"), None).unwrap();
        let new = "isolation = \"paranoid\"\nplugin_policy = \"signed-only\"\nextra_ca_file = \"/x\"\nrescan_seconds = 9\n[http]\nlisten = \"127.0.0.1:1\"\n[metrics]\nper_credential = true\n";
        let merged = in_force(&read(STARTED), read(new));
        assert_eq!(merged.rescan_seconds, 9);
        // Everything that AT_RESTART names, by its own key.
        let restored =
            Config { rescan_seconds: 5, services: read(STARTED).services, text: String::new(), ..merged };
        let started = Config { text: String::new(), ..read(STARTED) };
        assert_eq!(format!("{restored:?}"), format!("{started:?}"));
    }

    #[test]
    fn a_section_waits_with_all_its_keys_and_no_other_begins_like_it() {
        assert!(waits("http").is_some() && waits("http.hosts").is_some());
        assert_eq!((waits("https"), waits("services.http")), (None, None));
    }
}
