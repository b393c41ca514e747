//! Takes the cookies of one site out of a browser's own store: Firefox's, whichever profile and
//! container they are in, also while it runs. It reads, and changes nothing of the browser's.
//!
//! Chromium and its relatives seal theirs with a key in the desktop's keyring, which only a
//! program of the desktop gets at; for them there is an extension's export.

mod profiles;

use std::fs;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::db::firefox::{self, FirefoxCookie};
use crate::formats::ImportedCookie;
use profiles::{Profile, containers, profiles};

/// Below the user's home, where Firefox keeps its profiles: its own place, the newer one, snap's,
/// flatpak's.
const PLACES: [&str; 4] = [
    ".mozilla/firefox",
    ".config/mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
];

/// A store is copied while Firefox may write it; so often until it held still meanwhile.
const COPIES: usize = 20;

/// Which store: `firefox`, `firefox:PROFILE` or `firefox:/its/folder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Browser {
    profile: Option<String>,
}

impl std::str::FromStr for Browser {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (browser, profile) = match text.split_once(':') {
            Some((browser, profile)) => (browser, Some(profile)),
            None => (text, None),
        };
        if profile.is_some_and(str::is_empty) {
            return Err("no profile after the `:`; allowed: firefox, firefox:PROFILE".into());
        }
        match browser.to_ascii_lowercase().as_str() {
            "firefox" => Ok(Self { profile: profile.map(str::to_owned) }),
            "chromium" | "chrome" | "google-chrome" | "brave" | "edge" | "vivaldi" | "opera" => Err(format!(
                "{browser} seals its cookies with a key of the desktop's keyring; allowed: firefox, firefox:PROFILE; \
                 hint: export cookies.txt or JSON with an extension of yours, or Playwright's storageState, and give it with --from"
            )),
            _ => Err(format!("{browser:?} is no browser that is known; allowed: firefox, firefox:PROFILE")),
        }
    }
}

impl std::fmt::Display for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.profile {
            Some(profile) => write!(f, "firefox:{profile}"),
            None => f.write_str("firefox"),
        }
    }
}

/// What was found, and where.
#[derive(Debug)]
pub struct Taken {
    pub cookies: Vec<ImportedCookie>,
    /// In words that name the same again: `firefox:default`.
    pub browser: String,
    pub container: Option<String>,
    /// None of them was ever set over HTTPS.
    pub plain_http: bool,
}

/// The cookies of a host and of those below it.
///
/// # Errors
/// No profile, no cookie, or several places of which one must be named.
pub fn take(browser: &Browser, container: Option<&str>, host: &str) -> Result<Taken, Failure> {
    let known = known_profiles(browser)?;
    let mut found = Vec::new();
    for profile in &known {
        let cookies = cookies_of(profile, host)?;
        if !cookies.is_empty() {
            found.push((profile, cookies));
        }
    }
    // Where it is in several, the one that Firefox opens by itself is meant.
    if found.len() > 1 && found.iter().any(|(profile, _)| profile.default) {
        found.retain(|(profile, _)| profile.default);
    }
    if found.len() > 1 {
        let names: Vec<_> = found.iter().map(|(profile, _)| format!("firefox:{}", profile.name)).collect();
        return Err(Failure::BadInput(format!(
            "several profiles have cookies of {host}: {}; hint: --from-browser names one",
            names.join(", ")
        )));
    }
    let Some((profile, cookies)) = found.pop() else {
        let names: Vec<_> = known.iter().map(|profile| format!("`{}`", profile.name)).collect();
        return Err(Failure::NotFound(format!(
            "no cookie of {host} in Firefox's {} {}; hint: sign in there first. Cookies that end with the browser's \
             session are not in its store: export them with an extension, and give them with --from",
            if names.len() == 1 { "profile" } else { "profiles" },
            names.join(", ")
        )));
    };
    let names = fs::read_to_string(profile.folder.join("containers.json")).unwrap_or_default();
    let (container, cookies) = of_container(cookies, container, &containers(&names), host)?;
    Ok(Taken {
        browser: format!("firefox:{}", profile.name),
        container,
        plain_http: cookies.iter().all(|cookie| cookie.plain_http),
        cookies: cookies
            .into_iter()
            .map(|cookie| ImportedCookie {
                attributes: cookie.attributes,
                value: cookie.value,
                expires: cookie.expires,
            })
            .collect(),
    })
}

/// Which profiles there are, or the one that was named.
///
/// # Errors
/// None, or none of that name.
fn known_profiles(browser: &Browser) -> Result<Vec<Profile>, Failure> {
    if let Some(folder) = browser.profile.as_deref().filter(|profile| profile.contains('/')) {
        let folder = PathBuf::from(folder);
        return match folder.join(STORE).is_file() {
            true => Ok(vec![Profile { name: folder.display().to_string(), folder, default: true }]),
            false => Err(Failure::NotFound(format!("{} has no {STORE}", folder.display()))),
        };
    }
    let found = installed();
    let Some(name) = &browser.profile else {
        return match found.is_empty() {
            false => Ok(found),
            true => Err(Failure::NotFound(format!(
                "no profile of Firefox with cookies; looked in {}; hint: --from-browser firefox:/its/folder names one",
                PLACES.map(|place| format!("~/{place}")).join(", ")
            ))),
        };
    };
    let names: Vec<String> = found.iter().map(|profile| profile.name.clone()).collect();
    let named: Vec<Profile> = found.into_iter().filter(|profile| profile.name == *name).collect();
    if named.is_empty() {
        let nearest = super::suggest::nearest(name, names.iter().map(String::as_str));
        return Err(Failure::NotFound(format!(
            "Firefox has no profile {name:?}; there are: {}{nearest}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        )));
    }
    Ok(named)
}

const STORE: &str = "cookies.sqlite";

/// The profiles of this user that have a store, those that Firefox opens by itself first.
pub fn installed() -> Vec<Profile> {
    let Some(user) = std::env::var_os("HOME").map(PathBuf::from) else { return Vec::new() };
    let mut found: Vec<Profile> = Vec::new();
    for root in PLACES.map(|place| user.join(place)) {
        let text = fs::read_to_string(root.join("profiles.ini")).unwrap_or_default();
        // What can't be read as one names no profile.
        found.extend(profiles(&text, &root).unwrap_or_default());
    }
    found.retain(|profile| profile.folder.join(STORE).is_file());
    found.sort_by_key(|profile| !profile.default);
    found
}

fn cookies_of(profile: &Profile, host: &str) -> Result<Vec<FirefoxCookie>, Failure> {
    let store = profile.folder.join(STORE);
    let copy = copied(&store).map_err(Failure::io(format!("{} can't be copied", store.display())))?;
    firefox::cookies(&copy.path().join(STORE), host)
        .map_err(|error| Failure::BadInput(format!("{}: {}", store.display(), super::with_causes(&error))))
}

/// A copy of a store and of what isn't folded into it yet, in memory where there is a place for
/// that, private, and gone with the value. Firefox locks its own, and needn't be disturbed.
fn copied(store: &Path) -> std::io::Result<tempfile::TempDir> {
    let in_memory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = in_memory.into_iter().chain([PathBuf::from("/dev/shm"), std::env::temp_dir()]);
    let folder = places
        .filter_map(|place| tempfile::Builder::new().prefix("keywheel-").tempdir_in(place).ok())
        .next()
        .ok_or_else(|| std::io::Error::other("there is no place for it"))?;
    let log = store.with_file_name(format!("{STORE}-wal"));
    let stamp = |path: &Path| fs::metadata(path).ok().map(|of| (of.len(), of.modified().ok()));
    for _ in 0..COPIES {
        let before = (stamp(store), stamp(&log));
        fs::copy(store, folder.path().join(STORE))?;
        match fs::copy(&log, folder.path().join(format!("{STORE}-wal"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if before == (stamp(store), stamp(&log)) {
            return Ok(folder);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(std::io::Error::other("it changes all the time; hint: close the browser"))
}

/// The cookies of the container that is meant: the one that was named, or else none at all.
fn of_container(
    cookies: Vec<FirefoxCookie>,
    wanted: Option<&str>,
    names: &[(u32, String)],
    host: &str,
) -> Result<(Option<String>, Vec<FirefoxCookie>), Failure> {
    let name_of = |number: u32| match names.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => name.clone(),
        None if number == 0 => "none".into(),
        None => number.to_string(),
    };
    let number = match wanted {
        None => 0,
        Some(text) => {
            let named =
                names.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(number, _)| *number);
            named.or_else(|| text.parse().ok()).ok_or_else(|| {
                let known: Vec<_> = names.iter().map(|(_, name)| name.as_str()).collect();
                let nearest = super::suggest::nearest(text, known.iter().copied());
                Failure::NotFound(format!("no container {text:?}; there are: {}{nearest}", known.join(", ")))
            })?
        }
    };
    let mut others: Vec<u32> = cookies.iter().map(|cookie| cookie.container).collect();
    others.sort_unstable();
    others.dedup();
    let of: Vec<FirefoxCookie> = cookies.into_iter().filter(|cookie| cookie.container == number).collect();
    if of.is_empty() {
        let others: Vec<_> =
            others.into_iter().map(|other| format!("--container {:?}", name_of(other))).collect();
        return Err(Failure::NotFound(format!(
            "no cookie of {host} {}; hint: there are some with {}",
            if number == 0 {
                "outside of containers".into()
            } else {
                format!("in container {:?}", name_of(number))
            },
            others.join(", ")
        )));
    }
    Ok(((number != 0).then(|| name_of(number)), of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{CookieAttributes, Secret};

    fn cookie(container: u32) -> FirefoxCookie {
        FirefoxCookie {
            attributes: CookieAttributes {
                name: "sid".into(),
                domain: "shop.example".into(),
                path: "/".into(),
                host_only: true,
                secure: true,
                http_only: true,
                same_site: None,
            },
            value: Secret::new("x"),
            expires: None,
            container,
            plain_http: false,
        }
    }

    #[test]
    fn browsers_are_named_with_their_profile() {
        let of = |text: &str| text.parse::<Browser>();
        assert_eq!(of("firefox"), Ok(Browser { profile: None }));
        assert_eq!(of("Firefox:work"), Ok(Browser { profile: Some("work".into()) }));
        assert!(of("firefox:").unwrap_err().contains("no profile"));
        assert!(of("chrome").unwrap_err().contains("--from"));
        assert!(of("lynx").unwrap_err().contains("allowed: firefox"));
    }

    #[test]
    fn without_a_name_no_container_is_meant_and_the_others_are_told() {
        let names = [(2, "Work".to_owned())];
        let of = |cookies: &[u32], wanted| {
            of_container(
                cookies.iter().map(|&number| cookie(number)).collect(),
                wanted,
                &names,
                "shop.example",
            )
        };
        assert_eq!(of(&[0, 2], None).unwrap().1.len(), 1);
        assert_eq!(of(&[0, 2], Some("work")).unwrap().0.as_deref(), Some("Work"));
        assert_eq!(of(&[0, 7], Some("7")).unwrap().1[0].container, 7);
        let said = |result: Result<_, Failure>| result.map(|_: (_, Vec<_>)| ()).unwrap_err().to_string();
        assert!(said(of(&[2], None)).contains("--container \"Work\""));
        assert!(said(of(&[0], Some("Wrok"))).contains("did you mean"));
    }
}
