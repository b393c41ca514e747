//! What Firefox's own files say of its profiles and containers. Pure: texts in, values out.

use std::path::{Path, PathBuf};

use configparser::ini::Ini;
use serde_json::Value;

/// A profile, as `profiles.ini` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub name: String,
    pub folder: PathBuf,
    /// What Firefox opens where nobody says which.
    pub default: bool,
}

/// The profiles of a `profiles.ini` that lies in `root`.
///
/// # Errors
/// What isn't such a file, in words.
pub fn profiles(text: &str, root: &Path) -> Result<Vec<Profile>, String> {
    let mut ini = Ini::new_cs();
    let sections = ini.read(text.to_owned())?;
    let value =
        |section: &str, key: &str| sections.get(section).and_then(|keys| keys.get(key).cloned().flatten());
    // An installation's own choice weighs more than the mark from before there were several.
    let of_installations: Vec<String> = sections
        .keys()
        .filter(|section| section.starts_with("Install"))
        .filter_map(|section| value(section, "Default"))
        .collect();
    let mut names: Vec<&String> = sections.keys().filter(|section| section.starts_with("Profile")).collect();
    names.sort();
    let profile = |section: &String| {
        let path = value(section, "Path")?;
        let relative = value(section, "IsRelative").is_none_or(|flag| flag.trim() != "0");
        let marked = value(section, "Default").is_some_and(|flag| flag.trim() == "1");
        Some(Profile {
            name: value(section, "Name").unwrap_or_else(|| path.clone()),
            default: match of_installations.is_empty() {
                true => marked,
                false => of_installations.contains(&path),
            },
            folder: if relative { root.join(&path) } else { PathBuf::from(&path) },
        })
    };
    Ok(names.into_iter().filter_map(profile).collect())
}

/// The containers of a `containers.json`, with their numbers. One that nobody named has the name
/// that Firefox gives it in English.
pub fn containers(text: &str) -> Vec<(u32, String)> {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let identities = value.get("identities").and_then(Value::as_array).cloned().unwrap_or_default();
    let container = |identity: &Value| {
        let number = u32::try_from(identity.get("userContextId")?.as_u64()?).ok()?;
        let named = identity.get("name").and_then(Value::as_str).map(str::to_owned);
        let given = || {
            let id = identity.get("l10nID").or_else(|| identity.get("l10nId")).and_then(Value::as_str)?;
            let word = id.trim_start_matches("userContext").trim_start_matches("user-context-");
            let word = word.trim_end_matches(".label");
            let mut letters = word.chars();
            let first = letters.next()?;
            Some(first.to_uppercase().chain(letters).collect::<String>())
        };
        let public = identity.get("public").and_then(Value::as_bool).unwrap_or(true);
        public.then(|| (number, named.or_else(given).unwrap_or_else(|| number.to_string())))
    };
    identities.iter().filter_map(container).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_of_an_installation_is_the_default() {
        let text = "[Install4F96D1932A9F858E]\nDefault=abc.default-esr\nLocked=1\n\n[Profile1]\nName=default\nIsRelative=1\nPath=old.default\nDefault=1\n\n[Profile0]\nName=default-esr\nIsRelative=1\nPath=abc.default-esr\n\n[Profile2]\nName=work: two\nIsRelative=0\nPath=/srv/firefox/work\n\n[General]\nStartWithLastProfile=1\nVersion=2\n";
        let found = profiles(text, Path::new("/root")).unwrap();
        let profile =
            |name: &str, folder: &str, default| Profile { name: name.into(), folder: folder.into(), default };
        assert_eq!(
            found,
            [
                profile("default-esr", "/root/abc.default-esr", true),
                profile("default", "/root/old.default", false),
                profile("work: two", "/srv/firefox/work", false),
            ]
        );
        let text = "[Profile0]\nName=default\nIsRelative=1\nPath=old.default\nDefault=1\n";
        assert!(profiles(text, Path::new("/root")).unwrap()[0].default);
        assert_eq!(profiles("", Path::new("/root")).unwrap(), []);
    }

    #[test]
    fn containers_have_the_names_that_people_see() {
        let text = r#"{"version":5,"lastUserContextId":6,"identities":[
            {"userContextId":1,"public":true,"icon":"fingerprint","l10nId":"user-context-personal"},
            {"userContextId":2,"public":true,"icon":"briefcase","l10nID":"userContextWork.label"},
            {"userContextId":6,"public":true,"icon":"tree","name":"Second shop"},
            {"userContextId":5,"public":false,"name":"userContextIdInternal.thumbnail"}]}"#;
        let want = [(1, "Personal".into()), (2, "Work".into()), (6, "Second shop".into())];
        assert_eq!(containers(text), want);
        assert_eq!(containers("not json"), []);
    }
}
