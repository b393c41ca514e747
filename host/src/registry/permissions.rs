//! Owns what a plugin asks to be allowed, in a form that can be pinned, compared and read out.
//! Pure. It never grants: an operator does.

use serde::{Deserialize, Serialize};

use super::manifest::{origin_templates, shown};
use crate::provider::Manifest;

/// What a manifest asks for. Every list is sorted and without repeats, so equal wishes are equal
/// values and equal JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// Origins as in the manifest, literals in one spelling. Where defaults fill a template in,
    /// what they come to stands beside it: a new default is a new origin.
    pub origins: Vec<String>,
    pub keys: Vec<String>,
    /// Keys whose bytes the plugin asks to see.
    pub reveal: Vec<String>,
    pub settings: Vec<String>,
    /// Keys and settings without which a credential is incomplete. They are no permission, and
    /// are kept so that a new version that needs more of them is noticed.
    pub required_keys: Vec<String>,
    pub required_settings: Vec<String>,
}

impl Permissions {
    /// What a manifest accepted by `manifest::check` asks for.
    pub fn of(manifest: &Manifest) -> Self {
        let keys = || manifest.keys.iter();
        let settings = || manifest.settings.iter();
        Self {
            origins: origin_templates(manifest),
            keys: sorted(keys().map(|key| &key.name)),
            reveal: sorted(keys().filter(|key| key.reveal).map(|key| &key.name)),
            settings: sorted(settings().map(|setting| &setting.name)),
            required_keys: sorted(keys().filter(|key| key.required).map(|key| &key.name)),
            // One with a default is never missing.
            required_settings: sorted(
                settings()
                    .filter(|setting| setting.required && setting.default.is_none())
                    .map(|setting| &setting.name),
            ),
        }
    }

    /// In words, a line each: for `plugin check`, and before `plugin approve`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.origins.iter().map(|o| may_reach(o)).collect();
        if lines.is_empty() {
            lines.push(String::from("may reach nothing"));
        }
        lines.extend(self.reveal.iter().map(|key| asks_to_see(key)));
        let unseen = self.keys.iter().filter(|key| !self.reveal.contains(key));
        lines.extend(unseen.map(|key| format!("uses key {} without seeing its bytes", shown(key))));
        lines.extend(self.settings.iter().map(|setting| {
            let need = if self.required_settings.contains(setting) { "needs" } else { "takes" };
            format!("{need} setting {}", shown(setting))
        }));
        lines
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    names.sort();
    names.dedup();
    names
}

fn may_reach(origin: &str) -> String {
    let setting = origin.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match setting {
        Some(name) if !name.contains(['{', '}']) => {
            format!("may reach the address in setting {}, also plain http or private", shown(name))
        }
        _ if origin.contains('{') => format!("may reach {origin:?}, with its settings filled in"),
        // Already in the spelling of the `url` crate: nothing in it needs quotes.
        _ => format!("may reach {}", origin.escape_debug()),
    }
}

fn asks_to_see(key: &str) -> String {
    format!("asks to see the bytes of key {}", shown(key))
}

/// How two sets of wishes differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    pub added_origins: Vec<String>,
    pub removed_origins: Vec<String>,
    pub added_keys: Vec<String>,
    pub removed_keys: Vec<String>,
    pub added_reveal: Vec<String>,
    pub removed_reveal: Vec<String>,
    pub added_settings: Vec<String>,
    pub removed_settings: Vec<String>,
    /// Credentials made before may lack these.
    pub newly_required_keys: Vec<String>,
    pub newly_required_settings: Vec<String>,
}

pub fn difference(granted: &Permissions, asked: &Permissions) -> Difference {
    let only_in = |left: &[String], right: &[String]| -> Vec<String> {
        left.iter().filter(|name| !right.contains(name)).cloned().collect()
    };
    Difference {
        added_origins: only_in(&asked.origins, &granted.origins),
        removed_origins: only_in(&granted.origins, &asked.origins),
        added_keys: only_in(&asked.keys, &granted.keys),
        removed_keys: only_in(&granted.keys, &asked.keys),
        added_reveal: only_in(&asked.reveal, &granted.reveal),
        removed_reveal: only_in(&granted.reveal, &asked.reveal),
        added_settings: only_in(&asked.settings, &granted.settings),
        removed_settings: only_in(&granted.settings, &asked.settings),
        newly_required_keys: only_in(&asked.required_keys, &granted.required_keys),
        newly_required_settings: only_in(&asked.required_settings, &granted.required_settings),
    }
}

impl Difference {
    /// More can leak than before: another place to send secrets to, or another secret to see.
    /// Such a version waits for the operator. A new key or setting alone reaches nothing new.
    pub fn is_wider(&self) -> bool {
        !self.added_origins.is_empty() || !self.added_reveal.is_empty()
    }

    /// Existing credentials may lack what the new version needs: not wider, but somebody has to
    /// fill it in.
    pub fn needs_attention(&self) -> bool {
        !self.newly_required_keys.is_empty() || !self.newly_required_settings.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// In words, a line each; what widens comes first.
    pub fn lines(&self) -> Vec<String> {
        fn each<'a>(
            names: &'a [String],
            line: impl Fn(&str) -> String + 'a,
        ) -> impl Iterator<Item = String> + 'a {
            names.iter().map(move |name| line(name))
        }
        let plain = |verb: &'static str| move |name: &str| format!("{verb} {}", shown(name));
        each(&self.added_origins, |origin| format!("newly {}", may_reach(origin)))
            .chain(each(&self.added_reveal, |key| format!("newly {}", asks_to_see(key))))
            .chain(each(&self.newly_required_keys, |key| {
                format!("newly needs key {}; existing credentials may lack it", shown(key))
            }))
            .chain(each(&self.newly_required_settings, |setting| {
                format!("newly needs setting {}; existing credentials may lack it", shown(setting))
            }))
            .chain(each(&self.added_keys, plain("new key")))
            .chain(each(&self.added_settings, plain("new setting")))
            .chain(each(&self.removed_origins, |origin| format!("no longer {}", may_reach(origin))))
            .chain(each(&self.removed_reveal, |key| format!("no longer {}", asks_to_see(key))))
            .chain(each(&self.removed_keys, plain("no longer has key")))
            .chain(each(&self.removed_settings, plain("no longer has setting")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{KeySpec, Location, SettingKind, SettingSpec};

    fn key(name: &str, required: bool, reveal: bool) -> KeySpec {
        let help = String::new();
        KeySpec { name: name.to_owned(), location: Location::Token, required, reveal, help }
    }

    fn setting(name: &str, required: bool, default: Option<&str>) -> SettingSpec {
        SettingSpec {
            name: name.to_owned(),
            kind: if name == "base_url" { SettingKind::Url } else { SettingKind::Text },
            required,
            default: default.map(str::to_owned),
            choices: Vec::new(),
            help: String::new(),
        }
    }

    fn asked() -> Manifest {
        Manifest {
            service: String::from("forge"),
            title: String::from("Forge"),
            version: String::from("1.0.0"),
            validate_url: String::from("{base_url}/api/user"),
            keys: vec![key("token", true, false), key("device", false, true)],
            origins: vec![String::from("{base_url}"), String::from("https://API.example.com:443")],
            settings: vec![setting("base_url", true, None), setting("region", false, None)],
            methods: Vec::new(),
            validate_interval: 60,
            max_age: None,
            extras: Vec::new(),
        }
    }

    #[test]
    fn permissions_are_what_the_manifest_asks_for_in_one_spelling() {
        assert_eq!(
            Permissions::of(&asked()),
            Permissions {
                origins: vec!["https://api.example.com".into(), "{base_url}".into()],
                keys: vec!["device".into(), "token".into()],
                reveal: vec!["device".into()],
                settings: vec!["base_url".into(), "region".into()],
                required_keys: vec!["token".into()],
                required_settings: vec!["base_url".into()],
            }
        );
    }

    #[test]
    fn only_new_origins_and_new_revealed_keys_are_wider() {
        type Change = fn(&mut Manifest);
        let table: [(&str, Change, bool, bool); 14] = [
            ("nothing", |_| {}, false, false),
            ("an origin more", |m| m.origins.push("https://b.example".into()), true, false),
            ("an origin less", |m| drop(m.origins.pop()), false, false),
            (
                "the same origin, spelled anew",
                |m| m.origins[1] = "https://api.example.com".into(),
                false,
                false,
            ),
            ("the same setting, spelled anew", |m| m.origins[0] = "{base_url.origin}".into(), false, false),
            ("another port", |m| m.origins[1] = "https://api.example.com:8443".into(), true, false),
            (
                "a default for the address",
                |m| m.settings[0].default = Some("https://c.example/x".into()),
                true,
                false,
            ),
            ("sees a known key", |m| m.keys[0].reveal = true, true, false),
            ("sees a new key", |m| m.keys.push(key("new", false, true)), true, false),
            ("sees a key no more", |m| m.keys[1].reveal = false, false, false),
            ("an optional key more", |m| m.keys.push(key("new", false, false)), false, false),
            ("a required key more", |m| m.keys.push(key("new", true, false)), false, true),
            ("a setting becomes required", |m| m.settings[1].required = true, false, true),
            (
                "a required setting with a default",
                |m| m.settings.push(setting("x", true, Some("y"))),
                false,
                false,
            ),
        ];
        let granted = Permissions::of(&asked());
        for (what, change, wider, attention) in table {
            let mut manifest = asked();
            change(&mut manifest);
            let difference = difference(&granted, &Permissions::of(&manifest));
            assert_eq!(difference.is_wider(), wider, "{what}: {difference:?}");
            assert_eq!(difference.needs_attention(), attention, "{what}: {difference:?}");
        }
    }

    #[test]
    fn a_new_default_inside_an_origin_is_wider() {
        let with = |default: &str| {
            let mut manifest = asked();
            manifest.origins = vec!["https://{tenant}.{zone}".into()];
            manifest.settings = vec![setting("tenant", true, None), setting("zone", false, Some(default))];
            Permissions::of(&manifest)
        };
        let (before, after) = (with("good.example"), with("evil.example"));
        assert!(!difference(&before, &before).is_wider());
        let difference = difference(&before, &after);
        assert_eq!(difference.added_origins, ["https://{tenant}.evil.example"]);
        assert!(difference.is_wider());
    }

    #[test]
    fn permissions_read_as_sentences() {
        assert_eq!(
            Permissions::of(&asked()).lines(),
            [
                "may reach https://api.example.com",
                "may reach the address in setting \"base_url\", also plain http or private",
                "asks to see the bytes of key \"device\"",
                "uses key \"token\" without seeing its bytes",
                "needs setting \"base_url\"",
                "takes setting \"region\"",
            ]
        );
    }

    #[test]
    fn a_difference_names_what_widens_first() {
        let mut manifest = asked();
        manifest.origins = vec!["{base_url}".into(), "https://cdn.example.net".into()];
        manifest.keys[0].reveal = true;
        manifest.settings[1].required = true;
        let difference = difference(&Permissions::of(&asked()), &Permissions::of(&manifest));
        assert_eq!(
            difference.lines(),
            [
                "newly may reach https://cdn.example.net",
                "newly asks to see the bytes of key \"token\"",
                "newly needs setting \"region\"; existing credentials may lack it",
                "no longer may reach https://api.example.com",
            ]
        );
    }

    #[test]
    fn permissions_survive_json_and_a_missing_list_grants_nothing() {
        let permissions = Permissions::of(&asked());
        let text = serde_json::to_string(&permissions).expect("serialises");
        assert_eq!(serde_json::from_str::<Permissions>(&text).expect("parses"), permissions);
        let old: Permissions = serde_json::from_str(r#"{"keys":["token"]}"#).expect("parses");
        assert!(old.origins.is_empty() && old.reveal.is_empty());
    }
}
