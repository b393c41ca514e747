//! `[host]`: what this machine is to the others that share its store. A leaf.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Such as `region = "eu"`.
pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// What people call it; None: the machine's own name.
    pub name: Option<String>,
    pub labels: Labels,
}

const LONGEST: usize = 64;

impl HostConfig {
    /// What is wrong with it, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_word = |text: &str| {
            !text.is_empty()
                && text.len() <= LONGEST
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if let Some(name) = self.name.as_ref().filter(|name| !is_word(name)) {
            return Err(format!("host.name is {name:?}; allowed: 1 to {LONGEST} letters, digits and . _ -"));
        }
        match self.labels.iter().find(|(label, value)| !is_word(label) || !is_word(value)) {
            Some((label, value)) => Err(format!(
                "host.labels has {label} = {value:?}; allowed: names and values of 1 to {LONGEST} letters, digits and . _ -"
            )),
            None => Ok(()),
        }
    }
}
