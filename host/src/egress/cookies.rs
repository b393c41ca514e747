//! Which cookies a request carries and what a `Set-Cookie` changes, by RFC 6265 with the
//! prefixes and the secure rules of its successor. Pure: it takes the moment as a value.
//!
//! A cookie of the key mapping is that key's value; any other cookie of the credential's own
//! sites travels along under `extra_cookie_key`. What a service may not set (foreign domains,
//! public suffixes, broken prefixes) is ignored and counted, never an error: such lines are
//! everyday.

use http::HeaderValue;
use url::{Host, Url};

use crate::credential::{CookieAttributes, Jar, Millis, Secret, extra_cookie_key};
use crate::egress::clock;
use crate::limits;
use crate::provider::{CookieLocation, Location, Resolved};

/// Name and value of a cookie that isn't mapped; what browsers accept. A mapped one may be as
/// long as any secret, for what was issued must not be lost.
const UNMAPPED_BYTES: usize = 4_096;

/// Domain and path; what browsers accept.
const ATTRIBUTE_BYTES: usize = 1_024;

/// Services delete a cookie by a moment at the beginning of time, or a little after it.
const LONG_PAST: Millis = 366 * 86_400_000;

/// A cookie a service set.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub secret: Secret,
    pub attributes: CookieAttributes,
    pub expires: Option<Millis>,
    /// It came already expired: the service deletes it.
    pub deletes: bool,
}

/// Why a `Set-Cookie` was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    #[error("not a cookie")]
    Malformed,
    #[error("too long")]
    TooLong,
    #[error("for a domain the answering host doesn't belong to")]
    ForeignDomain,
    #[error("for a public suffix")]
    PublicSuffix,
    #[error("breaks the rule of its name's prefix")]
    Prefix,
    #[error("secure, from an insecure origin")]
    Insecure,
    #[error("the credential has as many cookies as it may")]
    TooMany,
}

/// Reads one `Set-Cookie` as the answer of a URL. `ahead` is how far the clock of who answered is
/// ahead of ours, where the answer's own `Date` tells: an `Expires` is a moment by that clock, a
/// `Max-Age` counts from now by any. Browsers trust their own clock (RFC 6265), caches compare the
/// two of the answer (RFC 9111 section 4.2.1); here a wrong clock of the host must not make a good
/// session look dead, nor a dead one good.
pub fn receive(line: &[u8], url: &Url, now: Millis, ahead: Option<i64>) -> Result<Received, Ignored> {
    let line = std::str::from_utf8(line).map_err(|_| Ignored::Malformed)?;
    let parsed = cookie::Cookie::parse(line).map_err(|_| Ignored::Malformed)?;
    let (name, value) = parsed.name_value();
    if name.bytes().chain(value.bytes()).any(|byte| byte.is_ascii_control()) {
        return Err(Ignored::Malformed);
    }
    if name.len() + value.len() > limits::SECRET_BYTES {
        return Err(Ignored::TooLong);
    }
    let host = url.host_str().ok_or(Ignored::Malformed)?;
    let (domain, host_only) = match parsed.domain() {
        None => (host.to_owned(), true),
        Some(wanted) if wanted.len() > ATTRIBUTE_BYTES => return Err(Ignored::TooLong),
        Some(wanted) => settle_domain(wanted, host)?,
    };
    let path = match parsed.path() {
        Some(path) if path.len() > ATTRIBUTE_BYTES || path.bytes().any(|byte| byte.is_ascii_control()) => {
            return Err(Ignored::TooLong);
        }
        Some(path) if path.starts_with('/') => path.to_owned(),
        _ => default_path(url.path()).to_owned(),
    };
    let secure = parsed.secure() == Some(true);
    let trusted = is_trustworthy(url);
    if secure && !trusted {
        return Err(Ignored::Insecure);
    }
    let has_prefix =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    if has_prefix("__Secure-") && !secure {
        return Err(Ignored::Prefix);
    }
    if has_prefix("__Host-") && (!secure || parsed.domain().is_some() || parsed.path() != Some("/")) {
        return Err(Ignored::Prefix);
    }
    let expires = match (parsed.max_age(), parsed.expires_datetime()) {
        (Some(age), _) => Some(match u64::try_from(age.whole_milliseconds()) {
            _ if !age.is_positive() => 0,
            Ok(age) => now.saturating_add(age),
            Err(_) => u64::MAX,
        }),
        (None, Some(at)) => {
            let theirs = u64::try_from(at.unix_timestamp()).unwrap_or(0).saturating_mul(1_000);
            // What ends in the first days of 1970 is deleted, whatever the clocks say.
            Some(if theirs < LONG_PAST { theirs } else { clock::by_host(theirs, ahead) })
        }
        (None, None) => None,
    };
    Ok(Received {
        secret: Secret::new(value),
        attributes: CookieAttributes {
            name: name.to_owned(),
            domain,
            path,
            host_only,
            secure,
            http_only: parsed.http_only() == Some(true),
            same_site: parsed.same_site().map(|same_site| same_site.to_string()),
        },
        expires,
        deletes: expires.is_some_and(|at| at <= now),
    })
}

/// The domain a cookie gets and whether it is for the host alone (RFC 6265 section 5.3).
fn settle_domain(wanted: &str, host: &str) -> Result<(String, bool), Ignored> {
    let wanted = wanted.strip_prefix('.').unwrap_or(wanted);
    // As the url crate writes hosts: lower case, punycode, one spelling of an address.
    let domain = match Host::parse(wanted) {
        Ok(domain) => domain.to_string(),
        Err(_) => return Err(Ignored::ForeignDomain),
    };
    if !domain_matches(host, &domain) {
        return Err(Ignored::ForeignDomain);
    }
    if crate::egress::policy::literal(host).is_some() {
        return Ok((domain, true));
    }
    // A name without a dot, like `localhost` or `intranet`, is its own suffix by the list's
    // default rule and passes as the host itself.
    if psl::suffix(domain.as_bytes()).is_some_and(|suffix| suffix.as_bytes() == domain.as_bytes()) {
        return if domain == host { Ok((domain, true)) } else { Err(Ignored::PublicSuffix) };
    }
    Ok((domain, false))
}

/// RFC 6265 section 5.1.3; both in lower case.
pub fn domain_matches(host: &str, domain: &str) -> bool {
    if host == domain {
        return true;
    }
    let is_subdomain = host.strip_suffix(domain).is_some_and(|head| head.ends_with('.') && head.len() > 1);
    is_subdomain && !domain.is_empty() && crate::egress::policy::literal(host).is_none()
}

/// RFC 6265 section 5.1.4.
pub fn path_matches(request: &str, cookie: &str) -> bool {
    request == cookie
        || request.strip_prefix(cookie).is_some_and(|rest| cookie.ends_with('/') || rest.starts_with('/'))
}

fn default_path(request: &str) -> &str {
    match request.rfind('/') {
        None | Some(0) => "/",
        Some(end) => &request[..end],
    }
}

/// Where secure cookies may go and come from: https, and this very machine, as browsers do.
pub fn is_trustworthy(url: &Url) -> bool {
    url.scheme() == "https"
        || match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
}

/// Key, cookie and value of what a request to a URL carries, in the jar's order.
pub fn chosen<'j>(jar: &'j Jar, url: &Url, now: Millis) -> Vec<(&'j str, &'j CookieAttributes, &'j Secret)> {
    let Some(host) = url.host_str() else { return Vec::new() };
    let trusted = is_trustworthy(url);
    let mut chosen: Vec<(&str, &CookieAttributes, &Secret)> = Vec::new();
    for key in &jar.keys {
        let Some(cookie) = &key.cookie else { continue };
        let domain_ok =
            if cookie.host_only { host == cookie.domain } else { domain_matches(host, &cookie.domain) };
        if domain_ok
            && path_matches(url.path(), &cookie.path)
            && (trusted || !cookie.secure)
            && key.expires.is_none_or(|at| at > now)
        {
            chosen.push((&key.name, cookie, &key.secret));
        }
    }
    chosen
}

/// The `Cookie` header for a URL: longest path first, older first among equals.
///
/// # Errors
/// The name of the key whose cookie can't stand in a header.
pub fn header<'j>(jar: &'j Jar, url: &Url, now: Millis) -> Result<Option<HeaderValue>, &'j str> {
    let mut chosen = chosen(jar, url, now);
    if chosen.is_empty() {
        return Ok(None);
    }
    // Stable: among equal paths the jar's order stands, which is the order they came in.
    chosen.sort_by_key(|(_, cookie, _)| std::cmp::Reverse(cookie.path.len()));
    let mut line = Vec::with_capacity(
        chosen.iter().map(|(_, cookie, secret)| cookie.name.len() + secret.expose().len() + 3).sum(),
    );
    for (key, cookie, secret) in chosen {
        // A value could come from an import; a `;` in it would forge a second cookie.
        let bad = |byte: &u8| byte.is_ascii_control() || *byte == b';';
        if secret.expose().iter().any(bad) || cookie.name.bytes().any(|byte| bad(&byte) || byte == b'=') {
            return Err(key);
        }
        if !line.is_empty() {
            line.extend_from_slice(b"; ");
        }
        line.extend_from_slice(cookie.name.as_bytes());
        line.push(b'=');
        line.extend_from_slice(secret.expose());
    }
    // Only control bytes are refused by the type, and those were ruled out above.
    Ok(HeaderValue::from_bytes(&line).ok().map(|mut value| {
        value.set_sensitive(true);
        value
    }))
}

/// Which key of the credential a received cookie is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// Key name from the mapping.
    Mapped(String),
    /// Key name made by `extra_cookie_key`.
    Extra(String),
}

/// Finds the key of a received cookie.
///
/// Authors name a location by the site they see, services set cookies for the host or its
/// parent; so name and related domain suffice, and the closest location wins. Two things are
/// strict, for they could take a good session away: a deletion must be of the very cookie the
/// credential has, and a subdomain's cookie is not its parent's unless the credential's cookie
/// lives there already, or none is there yet.
pub fn place(received: &Received, resolved: &Resolved, jar: &Jar, trusted: bool) -> Result<Place, Ignored> {
    let cookie = &received.attributes;
    let current = |name: &str| jar.get(name).and_then(|key| key.cookie.as_ref());
    let mapped = resolved
        .keys
        .iter()
        .filter_map(|spec| match &spec.location {
            Location::Cookie(location) => {
                closeness(cookie, location, current(&spec.name)).map(|close| (close, spec.name.as_str()))
            }
            Location::Token => None,
        })
        // The first of equals: `max_by_key` would take the last.
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    let extra = || extra_cookie_key(&cookie.name, &cookie.domain, &cookie.path);
    let place = match mapped {
        Some((_, name)) if received.deletes => {
            let is_current = current(name).is_none_or(|own| {
                own.name == cookie.name && own.domain == cookie.domain && own.path == cookie.path
            });
            if is_current { Place::Mapped(name.to_owned()) } else { Place::Extra(extra()) }
        }
        Some((_, name)) => Place::Mapped(name.to_owned()),
        None => Place::Extra(extra()),
    };
    let name = match &place {
        Place::Mapped(name) | Place::Extra(name) => name,
    };
    // An origin without TLS may not touch what TLS protects.
    if !trusted && current(name).is_some_and(|own| own.secure) {
        return Err(Ignored::Insecure);
    }
    if matches!(place, Place::Extra(_)) && !received.deletes {
        if cookie.name.len() + received.secret.expose().len() > UNMAPPED_BYTES {
            return Err(Ignored::TooLong);
        }
        let is_new = jar.get(name).is_none();
        if is_new && jar.keys.iter().filter(|key| key.cookie.is_some()).count() >= limits::COOKIES {
            return Err(Ignored::TooMany);
        }
    }
    Ok(place)
}

/// How well a cookie fits a location; nothing where it doesn't.
fn closeness(
    cookie: &CookieAttributes,
    location: &CookieLocation,
    current: Option<&CookieAttributes>,
) -> Option<(u8, bool)> {
    if cookie.name != location.name {
        return None;
    }
    let wanted = location.domain.strip_prefix('.').unwrap_or(&location.domain);
    let domain = if cookie.domain.eq_ignore_ascii_case(wanted) {
        3
    } else if domain_matches(&wanted.to_ascii_lowercase(), &cookie.domain) {
        2
    } else if domain_matches(&cookie.domain, &wanted.to_ascii_lowercase())
        && current.is_none_or(|own| own.domain == cookie.domain)
    {
        1
    } else {
        return None;
    };
    Some((domain, cookie.path == location.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Key;
    use crate::provider::KeySpec;

    const NOW: Millis = 1_700_000_000_000;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn cookie_key(name: &str, cookie: &str, value: &str, domain: &str, path: &str, host_only: bool) -> Key {
        Key {
            name: name.into(),
            secret: Secret::new(value),
            fingerprint: String::new(),
            expires: None,
            cookie: Some(CookieAttributes {
                name: cookie.into(),
                domain: domain.into(),
                path: path.into(),
                host_only,
                secure: false,
                http_only: false,
                same_site: None,
            }),
        }
    }

    fn mapping(locations: &[(&str, &str, &str, &str)]) -> Resolved {
        Resolved {
            validate_url: String::new(),
            keys: locations
                .iter()
                .map(|(key, name, domain, path)| KeySpec {
                    name: (*key).into(),
                    location: Location::Cookie(CookieLocation {
                        name: (*name).into(),
                        domain: (*domain).into(),
                        path: (*path).into(),
                    }),
                    required: true,
                    reveal: false,
                    help: String::new(),
                })
                .collect(),
            origins: vec![],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![],
        }
    }

    #[test]
    fn a_domain_matches_itself_and_its_subdomains_only() {
        for (host, domain, want) in [
            ("a.example", "a.example", true),
            ("b.a.example", "a.example", true),
            ("ba.example", "a.example", false),
            ("a.example", "b.a.example", false),
            ("a.example.evil.test", "a.example", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "0.0.1", false),
            ("[::1]", "[::1]", true),
            (".a.example", "a.example", false),
        ] {
            assert_eq!(domain_matches(host, domain), want, "{host} {domain}");
        }
    }

    #[test]
    fn a_path_matches_whole_segments() {
        for (request, cookie, want) in [
            ("/", "/", true),
            ("/a", "/", true),
            ("/a", "/a", true),
            ("/a/", "/a", true),
            ("/a/b", "/a", true),
            ("/ab", "/a", false),
            ("/a", "/a/", false),
            ("/a/b", "/a/", true),
            ("/", "/a", false),
        ] {
            assert_eq!(path_matches(request, cookie), want, "{request} {cookie}");
        }
        for (request, want) in [("/", "/"), ("/a", "/"), ("/a/b", "/a"), ("/a/b/", "/a/b"), ("", "/")] {
            assert_eq!(default_path(request), want);
        }
    }

    #[test]
    fn a_set_cookie_gets_domain_and_path_by_the_rules_or_is_ignored() {
        use Ignored::{ForeignDomain, Insecure, Malformed, Prefix, PublicSuffix};
        let https = "https://www.shop.example.com/a/b";
        for (line, from, want) in [
            ("s=v", https, Ok(("www.shop.example.com", "/a", true))),
            ("s=v; Domain=shop.example.com; Path=/", https, Ok(("shop.example.com", "/", false))),
            ("s=v; Domain=.Shop.Example.COM; Path=/x", https, Ok(("shop.example.com", "/x", false))),
            ("s=v; Domain=www.shop.example.com", https, Ok(("www.shop.example.com", "/a", false))),
            ("s=v; Domain=; Path=relative", https, Ok(("www.shop.example.com", "/a", true))),
            ("s=v; Domain=evil.test", https, Err(ForeignDomain)),
            ("s=v; Domain=op.example.com", https, Err(ForeignDomain)),
            ("s=v; Domain=sub.www.shop.example.com", https, Err(ForeignDomain)),
            ("s=v; Domain=com", https, Err(PublicSuffix)),
            ("s=v; Domain=..", https, Err(ForeignDomain)),
            ("s=v; Domain=co.uk", "https://a.co.uk/", Err(PublicSuffix)),
            ("s=v; Domain=github.io", "https://me.github.io/", Err(PublicSuffix)),
            ("s=v; Domain=me.github.io", "https://me.github.io/", Ok(("me.github.io", "/", false))),
            ("s=v; Domain=localhost", "http://localhost:1/", Ok(("localhost", "/", true))),
            ("s=v; Domain=127.0.0.1", "http://127.0.0.1:1/", Ok(("127.0.0.1", "/", true))),
            ("s=v; Domain=0.0.1", "http://127.0.0.1:1/", Err(ForeignDomain)),
            ("s=v; Domain=[::1]", "http://[::1]:1/", Ok(("[::1]", "/", true))),
            (
                "s=v; Domain=bücher.example",
                "https://www.bücher.example/",
                Ok(("xn--bcher-kva.example", "/", false)),
            ),
            ("s=v; Secure", https, Ok(("www.shop.example.com", "/a", true))),
            ("s=v; Secure", "http://intranet/", Err(Insecure)),
            ("s=v; Secure", "http://127.0.0.1/", Ok(("127.0.0.1", "/", true))),
            ("__Secure-s=v; Secure", https, Ok(("www.shop.example.com", "/a", true))),
            ("__Secure-s=v", https, Err(Prefix)),
            ("__Host-s=v; Secure; Path=/", https, Ok(("www.shop.example.com", "/", true))),
            ("__host-s=v; Secure; Path=/; Domain=www.shop.example.com", https, Err(Prefix)),
            ("__Host-s=v; Secure; Path=/a", https, Err(Prefix)),
            ("__Host-s=v; Secure", https, Err(Prefix)),
            ("__Host-s=v; Path=/", https, Err(Prefix)),
            ("s", https, Err(Malformed)),
            ("=v", https, Err(Malformed)),
            ("s=a\x01b", https, Err(Malformed)),
        ] {
            let got = receive(line.as_bytes(), &url(from), NOW, None);
            let got = got.as_ref().map(|cookie| {
                let attributes = &cookie.attributes;
                (attributes.domain.as_str(), attributes.path.as_str(), attributes.host_only)
            });
            assert_eq!(got, want.as_ref().map(|want| *want), "{line} from {from}");
        }
        assert_eq!(receive(b"s=\xff", &url(https), NOW, None), Err(Malformed));
    }

    #[test]
    fn max_age_beats_expires_and_the_past_deletes() {
        for (line, expires, deletes) in [
            ("s=v", None, false),
            ("s=v; Max-Age=60", Some(NOW + 60_000), false),
            ("s=v; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(NOW + 60_000), false),
            ("s=v; Max-Age=0", Some(0), true),
            ("s=v; Max-Age=-5", Some(0), true),
            ("s=v; Max-Age=99999999999999999999", Some(u64::MAX), false),
            ("s=v; Max-Age=soon", None, false),
            ("s=; Expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(0), true),
            ("s=v; Expires=Wed, 01-Jan-20 00:00:00 GMT", Some(1_577_836_800_000), true),
            ("s=v; Expires=Tue, 19 Jan 2038 03:14:07 GMT", Some(2_147_483_647_000), false),
            ("s=v; Expires=whenever", None, false),
        ] {
            let got = receive(line.as_bytes(), &url("https://a.example/"), NOW, None).unwrap();
            // The date parser's own maximum is below u64's.
            let capped = got.expires.map(|at| if at > NOW * 1_000 { u64::MAX } else { at });
            assert_eq!((capped, got.deletes), (expires, deletes), "{line}");
        }
    }

    #[test]
    fn an_absolute_end_is_by_the_clock_of_who_answered_and_a_relative_one_is_not() {
        const HOUR: u64 = 3_600_000;
        let from = url("https://a.example/");
        // Ten minutes of life by the service's clock, which is five hours ahead of ours, or behind.
        for ahead in [5 * HOUR.cast_signed(), -5 * HOUR.cast_signed()] {
            let theirs = NOW.saturating_add_signed(ahead) + 600_000;
            let date = jiff::Timestamp::from_millisecond(theirs.cast_signed()).unwrap();
            let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let absolute = format!("s=v; Expires={date}");
            let got = receive(absolute.as_bytes(), &from, NOW, Some(ahead)).unwrap();
            assert_eq!((got.expires, got.deletes), (Some(NOW + 600_000), false), "{ahead}");
            // Nothing is known of the clock: the moment stands as it is.
            let got = receive(absolute.as_bytes(), &from, NOW, None).unwrap();
            assert_eq!((got.expires, got.deletes), (Some(theirs), ahead < 0), "{ahead}");
            let relative = format!("s=v; Max-Age=600; Expires={date}");
            let got = receive(relative.as_bytes(), &from, NOW, Some(ahead)).unwrap();
            assert_eq!(got.expires, Some(NOW + 600_000), "{ahead}");
            let deleted = b"s=; Expires=Thu, 01 Jan 1970 00:00:00 GMT";
            assert_eq!(receive(deleted, &from, NOW, Some(ahead)).unwrap().expires, Some(0));
        }
    }

    #[test]
    fn a_request_carries_the_cookies_of_its_host_path_and_time_longest_path_first() {
        let mut jar = Jar::default();
        jar.put(cookie_key("host", "h", "1", "www.a.example", "/", true));
        jar.put(cookie_key("site", "d", "2", "a.example", "/", false));
        jar.put(cookie_key("deep", "p", "3", "a.example", "/x/y", false));
        jar.put(cookie_key("other", "o", "4", "b.example", "/", false));
        let mut secure = cookie_key("secure", "s", "5", "a.example", "/", false);
        secure.cookie.as_mut().unwrap().secure = true;
        jar.put(secure);
        let mut expired = cookie_key("expired", "e", "6", "a.example", "/", false);
        expired.expires = Some(NOW);
        jar.put(expired);
        jar.put(Key { cookie: None, ..cookie_key("token", "", "7", "", "", true) });
        for (to, want) in [
            ("https://www.a.example/", Some("h=1; d=2; s=5")),
            ("https://a.example/", Some("d=2; s=5")),
            ("http://a.example/", Some("d=2")),
            ("https://api.www.a.example/x/y/z?q#f", Some("p=3; d=2; s=5")),
            ("https://a.example/x/yy", Some("d=2; s=5")),
            ("https://aa.example/", None),
            ("https://b.example/", Some("o=4")),
        ] {
            let got = header(&jar, &url(to), NOW).unwrap();
            assert_eq!(got.as_ref().map(|value| value.to_str().unwrap()), want, "{to}");
            assert!(got.is_none_or(|value| value.is_sensitive()));
        }
    }

    #[test]
    fn a_cookie_that_could_forge_another_is_refused_by_its_key() {
        for value in ["a; b=c", "a\r\nx: y", "a\0"] {
            let jar = Jar { keys: vec![cookie_key("k", "s", value, "a.example", "/", true)] };
            assert_eq!(header(&jar, &url("https://a.example/"), NOW), Err("k"));
        }
    }

    #[test]
    fn a_received_cookie_finds_its_key() {
        let mapped = |name: &str| Ok(Place::Mapped(name.to_owned()));
        let extra = |name: &str| Ok(Place::Extra(name.to_owned()));
        let resolved = mapping(&[
            ("session", "sid", "www.a.example", "/"),
            ("admin", "sid", "www.a.example", "/admin"),
            ("site", "site", "a.example", "/"),
        ]);
        let jar = Jar {
            keys: vec![
                cookie_key("session", "sid", "v", "www.a.example", "/", true),
                cookie_key("site", "site", "v", "a.example", "/", false),
            ],
        };
        for (line, from, want) in [
            ("sid=n; Path=/", "https://www.a.example/", mapped("session")),
            ("sid=n; Path=/admin", "https://www.a.example/", mapped("admin")),
            ("sid=n; Path=/other", "https://www.a.example/", mapped("session")),
            ("sid=n; Path=/; Domain=a.example", "https://www.a.example/", mapped("session")),
            ("sid=n; Path=/", "https://cdn.a.example/", extra("cookie:sid@cdn.a.example/")),
            ("SID=n; Path=/", "https://www.a.example/", extra("cookie:SID@www.a.example/")),
            ("lang=en; Path=/", "https://www.a.example/", extra("cookie:lang@www.a.example/")),
            // A subdomain's own cookie doesn't replace the one the credential has.
            ("site=n; Path=/", "https://cdn.a.example/", extra("cookie:site@cdn.a.example/")),
            // Deletions are of the very cookie.
            ("sid=; Path=/; Max-Age=0", "https://www.a.example/", mapped("session")),
            (
                "sid=; Path=/; Max-Age=0; Domain=a.example",
                "https://www.a.example/",
                extra("cookie:sid@a.example/"),
            ),
            (
                "sid=; Path=/other; Max-Age=0",
                "https://www.a.example/",
                extra("cookie:sid@www.a.example/other"),
            ),
        ] {
            let received = receive(line.as_bytes(), &url(from), NOW, None).unwrap();
            assert_eq!(place(&received, &resolved, &jar, true), want, "{line} from {from}");
        }
        // With none there yet, a subdomain's cookie will do.
        let received = receive(b"site=n; Path=/", &url("https://app.a.example/"), NOW, None).unwrap();
        assert_eq!(place(&received, &resolved, &Jar::default(), true), mapped("site"));
    }

    #[test]
    fn an_insecure_origin_does_not_overwrite_a_secure_cookie() {
        let resolved = mapping(&[("session", "sid", "a.example", "/")]);
        let mut key = cookie_key("session", "sid", "v", "a.example", "/", true);
        key.cookie.as_mut().unwrap().secure = true;
        let jar = Jar { keys: vec![key] };
        let received = receive(b"sid=n; Path=/", &url("http://a.example/"), NOW, None).unwrap();
        assert_eq!(place(&received, &resolved, &jar, false), Err(Ignored::Insecure));
        assert!(place(&received, &resolved, &jar, true).is_ok());
    }

    #[test]
    fn unmapped_cookies_are_capped_in_size_and_number() {
        let resolved = mapping(&[("session", "sid", "a.example", "/")]);
        let from = url("https://a.example/");
        let long = "x".repeat(UNMAPPED_BYTES);
        let received = receive(format!("big={long}").as_bytes(), &from, NOW, None).unwrap();
        assert_eq!(place(&received, &resolved, &Jar::default(), true), Err(Ignored::TooLong));
        let received = receive(format!("sid={long}").as_bytes(), &from, NOW, None).unwrap();
        assert!(place(&received, &resolved, &Jar::default(), true).is_ok());
        let huge = "x".repeat(limits::SECRET_BYTES);
        assert_eq!(receive(format!("sid={huge}").as_bytes(), &from, NOW, None), Err(Ignored::TooLong));

        let keys = (0..limits::COOKIES)
            .map(|n| {
                cookie_key(&format!("cookie:c{n}@a.example/"), &format!("c{n}"), "v", "a.example", "/", true)
            })
            .collect();
        let full = Jar { keys };
        let one_more = receive(b"more=v", &from, NOW, None).unwrap();
        assert_eq!(place(&one_more, &resolved, &full, true), Err(Ignored::TooMany));
        let known = receive(b"c0=w", &from, NOW, None).unwrap();
        assert!(place(&known, &resolved, &full, true).is_ok());
        let mapped = receive(b"sid=w", &from, NOW, None).unwrap();
        assert!(place(&mapped, &resolved, &full, true).is_ok());
    }
}
