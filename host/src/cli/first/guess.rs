//! From a site to what keeps its sessions: which provider is meant, which cookie is the session's,
//! which settings follow. Pure. A guess is said to be one, and is tried before it is kept.

use url::{Host, Url};

use crate::catalogue::Entry;
use crate::provider::SettingKind;

/// Keeps any session that lives in a cookie.
pub const ANY_SESSION: &str = "http-session";

/// Where a site is: what was typed, as far as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Lower case; an IPv6 address with its brackets.
    pub host: String,
    pub port: Option<u16>,
    /// None: not said.
    pub scheme: Option<&'static str>,
    /// A page that only a signed-in visitor sees, if one was named.
    pub page: Option<String>,
}

impl Site {
    /// `shop.example`, `shop.example:8443` or `https://shop.example/account`.
    ///
    /// # Errors
    /// What is no site, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = "allowed: a name such as shop.example, or a URL such as https://shop.example/account";
        let wrong = |what: &str| Err(format!("{text:?} {what}; {allowed}"));
        let (whole, named) = match text.split_once("://") {
            Some(("https", _)) => (text.to_owned(), Some("https")),
            Some(("http", _)) => (text.to_owned(), Some("http")),
            Some((_, _)) => return wrong("has another scheme than http and https"),
            None => (format!("https://{}", text.trim_start_matches('.')), None),
        };
        let Ok(url) = Url::parse(&whole) else { return wrong("is no site") };
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => format!("[{address}]"),
            _ => return wrong("is no site"),
        };
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return wrong("has more in it than a site");
        }
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let page = format!("{}{query}", url.path());
        Ok(Self { host, port: url.port(), scheme: named, page: (page != "/").then_some(page) })
    }

    /// Without a page. `plain_http`: its cookies came over plain HTTP alone.
    pub fn url(&self, plain_http: bool) -> String {
        let scheme = self.scheme.unwrap_or(if plain_http { "http" } else { "https" });
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}{port}", self.host)
    }

    /// What its sessions can be called.
    pub fn id(&self) -> String {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '-' };
        self.host.chars().map(allowed).collect::<String>().trim_matches('-').to_owned()
    }
}

/// What is there to be kept: names, never values.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// Cookies, by their names.
    Cookies(&'a [&'a str]),
    /// `key=value` lines, by their keys.
    Keys(&'a [&'a str]),
}

/// Which provider a site's secrets are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub service: String,
    /// Providers that are made for the site, but for other secrets than these.
    pub others: Vec<String>,
}

/// The provider that is made for the site and takes what is given; for cookies otherwise the one
/// for any session.
pub fn provider(entries: &[Entry], site: &Site, given: Given<'_>) -> Option<Choice> {
    let (mut fitting, mut others) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| is_made_for(entry, &site.host)) {
        let takes = entry.keys.iter().filter(|key| key.required).all(|key| match (&key.cookie, given) {
            (Some(cookie), Given::Cookies(names)) => {
                // `NAME of HOST`.
                let name = cookie.rsplit_once(" of ").map_or(cookie.as_str(), |(name, _)| name);
                names.contains(&name)
            }
            (None, Given::Keys(names)) | (Some(_), Given::Keys(names)) => names.contains(&key.name.as_str()),
            (None, Given::Cookies(_)) => false,
        });
        let missing = entry.settings.iter().filter(|setting| setting.required).count();
        if takes {
            fitting.push((missing, entry.service.clone()))
        } else {
            others.push(entry.service.clone())
        }
    }
    // The one that needs to be told least.
    fitting.sort();
    match (fitting.into_iter().next(), given) {
        (Some((_, service)), _) => Some(Choice { service, others }),
        (None, Given::Cookies(_)) => Some(Choice { service: ANY_SESSION.into(), others }),
        (None, Given::Keys(_)) => None,
    }
}

/// Those that are made for a site, whatever they take.
pub fn made_for(entries: &[Entry], site: &Site) -> Vec<String> {
    let made = entries.iter().filter(|entry| is_made_for(entry, &site.host));
    made.map(|entry| format!("`{}`", entry.service)).collect()
}

/// Whether one of the hosts that a provider always asks, or asks unless set, is of the same site.
fn is_made_for(entry: &Entry, host: &str) -> bool {
    let defaults = entry.settings.iter().filter(|setting| setting.kind == SettingKind::Url);
    let urls = entry.origins.iter().chain(defaults.filter_map(|setting| setting.default.as_ref()));
    let site = registrable(host);
    urls.filter_map(|url| Url::parse(url).ok())
        .filter_map(|url| url.host_str().map(registrable))
        .any(|of| of.is_some() && of == site)
}

/// `shop.example` of `www.shop.example`. None: an address, or no more than a suffix.
fn registrable(host: &str) -> Option<String> {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => psl::domain_str(&name).map(str::to_owned),
        _ => None,
    }
}

/// A cookie, as far as guessing takes it.
#[derive(Debug, Clone, Copy)]
pub struct Crumb<'a> {
    pub name: &'a str,
    pub http_only: bool,
}

/// Names that frameworks give the session's cookie, lower case; part of the name is enough where
/// it ends in `*`.
const SESSIONS: [&str; 22] = [
    "sessionid",
    "session",
    "session_id",
    "sid",
    "connect.sid",
    "phpsessid",
    "jsessionid",
    "asp.net_sessionid",
    ".aspnetcore.cookies",
    ".aspxauth",
    "laravel_session",
    "_session_id",
    "ci_session",
    "rack.session",
    "beaker.session.id",
    "symfony",
    "wordpress_logged_in*",
    "sess*",
    "ssess*",
    "__secure-session*",
    "__host-session*",
    "__secure-next-auth.session-token*",
];

/// Never the session's, whatever it looks like.
const NEVER: [&str; 14] = [
    "csrf",
    "xsrf",
    "_ga",
    "_gid",
    "_gat",
    "_fbp",
    "_gcl",
    "_hj",
    "__cf",
    "cf_clearance",
    "consent",
    "locale",
    "theme",
    "_pk_",
];

/// Which cookie is most likely the session's. None: none looks like one.
pub fn session_cookie(cookies: &[Crumb<'_>]) -> Option<usize> {
    let scored = cookies.iter().enumerate().filter_map(|(place, cookie)| {
        let score = score(cookie);
        (score > 0).then_some((score, std::cmp::Reverse(place)))
    });
    scored.max().map(|(_, std::cmp::Reverse(place))| place)
}

fn score(cookie: &Crumb<'_>) -> u32 {
    let name = cookie.name.to_ascii_lowercase();
    if NEVER.iter().any(|never| name.contains(never)) {
        return 0;
    }
    let is_known = SESSIONS.iter().any(|known| match known.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *known,
    });
    let by_name = match () {
        () if is_known => 8,
        () if name.contains("sess") => 6,
        () if ["auth", "token", "login", "sid", "jwt", "user"].iter().any(|part| name.contains(part)) => 4,
        () => 0,
    };
    // Nothing but a session is hidden from a page's scripts; but not every one is.
    by_name + if cookie.http_only { 3 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{EntryKey, EntrySetting};

    #[test]
    fn a_site_is_what_people_type_for_one() {
        let site = |host: &str, port, scheme, page: Option<&str>| Site {
            host: host.into(),
            port,
            scheme,
            page: page.map(str::to_owned),
        };
        for (text, want, url) in [
            ("shop.example", site("shop.example", None, None, None), "https://shop.example"),
            ("Shop.Example", site("shop.example", None, None, None), "https://shop.example"),
            (".shop.example", site("shop.example", None, None, None), "https://shop.example"),
            ("shop.example:8443", site("shop.example", Some(8443), None, None), "https://shop.example:8443"),
            (
                "https://shop.example/account?tab=1",
                site("shop.example", None, Some("https"), Some("/account?tab=1")),
                "https://shop.example",
            ),
            (
                "http://127.0.0.1:8000/",
                site("127.0.0.1", Some(8000), Some("http"), None),
                "http://127.0.0.1:8000",
            ),
            (
                "shop.example/account",
                site("shop.example", None, None, Some("/account")),
                "https://shop.example",
            ),
            ("[::1]:80", site("[::1]", Some(80), None, None), "https://[::1]:80"),
        ] {
            assert_eq!(Site::parse(text).as_ref(), Ok(&want), "{text}");
            assert_eq!(want.url(false), url);
        }
        assert_eq!(Site::parse("shop.example").unwrap().url(true), "http://shop.example");
        for text in
            ["", "ftp://shop.example", "https://ann:pw@shop.example", "a b", "https://shop.example/#x"]
        {
            assert!(Site::parse(text).unwrap_err().contains("allowed: a name"), "{text}");
        }
        assert_eq!(Site::parse("[::1]").unwrap().id(), "1");
        assert_eq!(Site::parse("shop.example").unwrap().id(), "shop.example");
    }

    fn entry(service: &str, origins: &[&str], keys: &[(&str, Option<&str>)], default: Option<&str>) -> Entry {
        let setting = |default: &str| EntrySetting {
            name: "base_url".into(),
            kind: SettingKind::Url,
            required: false,
            default: Some(default.into()),
            choices: vec![],
            help: String::new(),
        };
        let key = |(name, cookie): &(&str, Option<&str>)| EntryKey {
            name: (*name).into(),
            cookie: cookie.map(str::to_owned),
            required: true,
            reveal: false,
            help: String::new(),
        };
        Entry {
            service: service.into(),
            title: String::new(),
            version: String::new(),
            source: None,
            origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
            keys: keys.iter().map(key).collect(),
            settings: default.into_iter().map(setting).collect(),
            methods: vec![],
            validate_every_seconds: 1,
            max_age_seconds: None,
        }
    }

    #[test]
    fn the_provider_is_the_one_for_the_site_that_takes_what_is_there() {
        let entries = [
            entry("forge", &["{base_url.origin}"], &[("token", None)], Some("https://forge.com")),
            entry("mail", &["https://accounts.mail.com"], &[("sid", Some("__Secure-SID of mail.com"))], None),
            entry("api", &["https://api.store.co.uk"], &[("token", None)], None),
            entry(
                ANY_SESSION,
                &["{base_url.origin}"],
                &[("session", Some("{cookie_name} of {base_url.host}"))],
                None,
            ),
        ];
        let of = |host: &str, given| {
            provider(&entries, &Site::parse(host).unwrap(), given)
                .map(|choice| (choice.service, choice.others))
        };
        let any = |others: &[&str]| {
            Some((ANY_SESSION.to_owned(), others.iter().map(|&other| other.to_owned()).collect::<Vec<_>>()))
        };
        let some = |service: &str| Some((service.to_owned(), vec![]));
        for (host, given, want) in [
            ("www.forge.com", Given::Keys(&["token"]), some("forge")),
            ("www.forge.com", Given::Cookies(&["session"]), any(&["forge"])),
            ("inbox.mail.com", Given::Cookies(&["__Secure-SID", "x"]), some("mail")),
            ("inbox.mail.com", Given::Cookies(&["x"]), any(&["mail"])),
            ("store.co.uk", Given::Keys(&["token"]), some("api")),
            ("other.co.uk", Given::Keys(&["token"]), None),
            ("shop.example", Given::Cookies(&["sid"]), any(&[])),
            ("127.0.0.1", Given::Cookies(&["sid"]), any(&[])),
        ] {
            assert_eq!(of(host, given), want, "{host} {given:?}");
        }
    }

    #[test]
    fn the_sessions_cookie_is_told_by_its_name_and_by_being_hidden() {
        for (cookies, want) in [
            (&[("csrftoken", false), ("sessionid", true)][..], Some("sessionid")),
            (&[("_ga", false), ("PHPSESSID", false), ("theme", false)], Some("PHPSESSID")),
            (&[("wordpress_logged_in_0f", true), ("wp-settings-1", false)], Some("wordpress_logged_in_0f")),
            (&[("remember_user_token", true), ("_gitlab_session", true)], Some("_gitlab_session")),
            (&[("a", false), ("b", true)], Some("b")),
            (&[("__cf_bm", true), ("csrf_session", true), ("lang", false)], None),
            (&[], None),
        ] {
            let crumbs: Vec<_> = cookies.iter().map(|&(name, http_only)| Crumb { name, http_only }).collect();
            assert_eq!(session_cookie(&crumbs).map(|place| crumbs[place].name), want, "{cookies:?}");
        }
    }
}
