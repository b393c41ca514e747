//! What one host's plugin folder has said already, where several hosts share a store. There the
//! folder is an inbox: a file is the operator's wish once, when it comes, and not for as long as
//! it lies there, or two hosts with two versions would undo each other for ever. It decides
//! nothing of what becomes of a wish. Pure but for the file that it is kept in.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A file that was read, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'l> {
    /// Its name in the folder.
    pub name: &'l str,
    /// A digest of the file and of the signature beside it.
    pub content: &'l str,
    /// The plugin that it comes to. A template comes to another one with each interpreter.
    pub plugin: &'l str,
}

/// What there was of the service when it was read.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'s> {
    pub revision: u32,
    pub plugin: &'s str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Heard {
    content: String,
    plugin: String,
    /// The revision of the provider's row when it was heard first, 0 where there was none. It is
    /// a wish while nobody has decided since, so a host that died before it could decide does so
    /// when it is back, and one that died after has nothing more to say. None: it never was one.
    at: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbox {
    /// The folder was looked through once. What a new host brings along says nothing about
    /// services that others serve already: it may be an old image that was started again.
    opened: bool,
    heard: BTreeMap<String, Heard>,
}

impl Inbox {
    /// As it was left; a new one where there is none, or none that can be read.
    pub fn load(path: &Path) -> Self {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what the plugin folder said is forgotten");
                return Self::default();
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "what the plugin folder said is forgotten");
            Self::default()
        })
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        crate::config::write_atomically(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Whether a file is a wish now. What is heard for the first time is written down by that, and
    /// must be saved before anything is done about it.
    pub fn hear(&mut self, letter: Letter<'_>, standing: Option<Standing<'_>>) -> bool {
        let Letter { name, content, plugin } = letter;
        // Under another name it says nothing new.
        let heard = self.heard.get(name).filter(|heard| heard.content == content);
        let heard = heard.or_else(|| self.heard.values().find(|heard| heard.content == content));
        let at = match (heard, standing) {
            (_, None) => Some(0),
            (Some(heard), Some(_)) if heard.plugin == plugin => heard.at,
            // The same template and another interpreter, after an upgrade. It counts where what
            // serves is this template still.
            (Some(heard), Some(now)) => (heard.plugin == now.plugin).then_some(now.revision),
            (None, Some(now)) => self.opened.then_some(now.revision),
        };
        self.heard.insert(name.to_owned(), Heard { content: content.into(), plugin: plugin.into(), at });
        at == Some(standing.map_or(0, |now| now.revision))
    }

    /// The folder was looked through; these are the names of all plugin files in it. What is gone
    /// is forgotten and may come again. An empty folder says nothing: its disk may not be mounted.
    pub fn looked_through(&mut self, names: &HashSet<String>) {
        self.opened = true;
        if !names.is_empty() {
            self.heard.retain(|name, _| names.contains(name));
        }
    }

    /// The operator means this file, whatever it said before.
    pub fn forget(&mut self, content: &str) {
        self.heard.retain(|_, heard| heard.content != content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter<'l>(name: &'l str, content: &'l str) -> Letter<'l> {
        Letter { name, content, plugin: content }
    }

    fn at(revision: u32, plugin: &str) -> Option<Standing<'_>> {
        Some(Standing { revision, plugin })
    }

    /// The inbox of a host that has been there for a while.
    fn opened() -> Inbox {
        Inbox { opened: true, ..Inbox::default() }
    }

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_file_is_a_wish_until_somebody_has_decided_and_never_again() {
        let mut inbox = opened();
        assert!(inbox.hear(letter("p.wasm", "v1"), None));
        // It died before it was done, or was refused for a full disk.
        assert!(inbox.clone().hear(letter("p.wasm", "v1"), None));
        for (revision, plugin) in [(1, "v1"), (2, "v2"), (3, "v1"), (9, "v3")] {
            assert!(!inbox.hear(letter("p.wasm", "v1"), at(revision, plugin)), "{revision}");
        }
        assert!(inbox.hear(letter("p.wasm", "v4"), at(9, "v3")), "other bytes");
        assert!(inbox.hear(letter("p.wasm", "v4"), at(9, "v3")), "nobody has decided yet");
        assert!(!inbox.hear(letter("p.wasm", "v4"), at(10, "v5")), "another host was faster");
        assert!(inbox.hear(letter("p.wasm", "v1"), at(10, "v5")), "back to the first version");
    }

    #[test]
    fn what_a_new_host_brings_along_is_a_wish_only_where_nobody_serves() {
        let mut inbox = Inbox::default();
        assert!(!inbox.hear(letter("p.wasm", "v1"), at(4, "v2")));
        assert!(inbox.hear(letter("q.wasm", "w1"), None));
        inbox.looked_through(&names(&["p.wasm", "q.wasm"]));
        assert!(!inbox.hear(letter("p.wasm", "v1"), at(4, "v2")));
        assert!(inbox.hear(letter("p.wasm", "v3"), at(4, "v2")));
    }

    #[test]
    fn another_name_a_broken_copy_or_an_empty_folder_makes_no_wish_of_an_old_file() {
        let mut inbox = opened();
        inbox.hear(letter("p.wasm", "v1"), None);
        assert!(!inbox.hear(letter("moved.wasm", "v1"), at(2, "v2")));
        // While it is copied anew it is no plugin, and so isn't heard at all.
        inbox.looked_through(&names(&["moved.wasm", "other.wasm"]));
        assert!(!inbox.hear(letter("moved.wasm", "v1"), at(2, "v2")));
        inbox.looked_through(&names(&[]));
        assert!(!inbox.hear(letter("moved.wasm", "v1"), at(2, "v2")));
        // Taken away and put back is a wish, and so is what the operator insists on.
        inbox.looked_through(&names(&["other.wasm"]));
        assert!(inbox.hear(letter("moved.wasm", "v1"), at(2, "v2")));
        assert!(!inbox.hear(letter("moved.wasm", "v1"), at(3, "v1")));
        inbox.forget("v1");
        assert!(inbox.hear(letter("moved.wasm", "v1"), at(3, "v1")));
    }

    #[test]
    fn an_upgraded_interpreter_counts_where_the_template_still_serves() {
        let joined = |plugin| Letter { name: "t.toml", content: "text", plugin };
        let mut inbox = opened();
        assert!(inbox.hear(joined("text+1"), None));
        let mut stale = inbox.clone();
        assert!(inbox.hear(joined("text+2"), at(1, "text+1")));
        assert!(!inbox.hear(joined("text+2"), at(2, "text+2")));
        // Another host changed the text meanwhile.
        assert!(!stale.hear(joined("text+2"), at(2, "newer+1")));
        assert!(!stale.hear(joined("text+2"), at(2, "newer+1")));
    }

    #[test]
    fn it_outlives_a_restart_and_a_damaged_file_makes_no_wishes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inbox.json");
        let mut inbox = Inbox::load(&path);
        assert_eq!(inbox, Inbox::default());
        inbox.hear(letter("p.wasm", "v1"), None);
        inbox.looked_through(&names(&["p.wasm"]));
        inbox.save(&path).unwrap();
        assert_eq!(Inbox::load(&path), inbox);
        std::fs::write(&path, "{").unwrap();
        assert!(!Inbox::load(&path).hear(letter("p.wasm", "v1"), at(2, "v2")));
    }
}
