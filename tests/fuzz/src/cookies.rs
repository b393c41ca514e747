//! `Set-Cookie` of a hostile service, through `receive`, `place` and into a `Cookie` header: no
//! cookie for a domain that isn't the answering host's own, none for a public suffix, no header
//! with a line break, and no service can block the requests of its own credential.

use keywheel::credential::{Jar, Key};
use keywheel::egress::{cookies, policy};
use keywheel::limits;
use keywheel::provider::{CookieLocation, KeySpec, Location, Resolved};
use url::Url;

use crate::{read, write};

/// Answering URL, its lines, the URL asked next, the moment.
type Input = (String, Vec<Vec<u8>>, String, u64);

fn resolved() -> Resolved {
    let spec = |name: &str, cookie: &str, domain: &str, path: &str| KeySpec {
        name: name.into(),
        location: Location::Cookie(CookieLocation {
            name: cookie.into(),
            domain: domain.into(),
            path: path.into(),
        }),
        required: true,
        reveal: false,
        help: String::new(),
    };
    Resolved {
        validate_url: String::new(),
        keys: vec![
            spec("session", "sid", "www.a.example", "/"),
            spec("admin", "sid", "www.a.example", "/admin"),
            spec("site", "site", "a.example", "/"),
            spec("address", "sid", "127.0.0.1", "/"),
        ],
        origins: vec![],
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    }
}

/// Written anew from RFC 6265, to be another opinion than the code's.
fn is_own(host: &str, domain: &str) -> bool {
    let is_address = host.parse::<std::net::Ipv4Addr>().is_ok() || host.starts_with('[');
    host == domain || (!is_address && host.ends_with(&format!(".{domain}")) && !domain.is_empty())
}

pub fn run(input: &[u8]) {
    let Some((from, lines, to, now)) = read::<Input>(input) else { return };
    let (Ok(from), Ok(to)) = (Url::parse(&from), Url::parse(&to)) else { return };
    // Whatever else came this far was refused before it was asked.
    if ![&from, &to].iter().all(|url| matches!(url.scheme(), "http" | "https")) {
        return;
    }
    let Some(host) = from.host_str() else { return };
    // The moments of a clock, not of a proof.
    let now = now % (1 << 50);
    let resolved = resolved();
    let mut jar = Jar::default();
    for line in &lines {
        let Ok(received) = cookies::receive(line, &from, now, None) else { continue };
        let cookie = &received.attributes;
        assert!(is_own(host, &cookie.domain), "{host} set a cookie for {}", cookie.domain);
        if cookie.host_only {
            assert_eq!(cookie.domain, host);
        } else {
            assert!(policy::literal(host).is_none(), "{host} has no subdomains");
            let suffix = psl::suffix(cookie.domain.as_bytes()).map(|suffix| suffix.as_bytes().to_vec());
            assert_ne!(suffix.as_deref(), Some(cookie.domain.as_bytes()), "{} is a suffix", cookie.domain);
        }
        assert!(cookie.path.starts_with('/'), "{:?}", cookie.path);
        for text in [&cookie.name, &cookie.path, &cookie.domain] {
            assert!(!text.chars().any(|c| c.is_ascii_control()), "{text:?}");
        }
        let bytes = received.secret.expose();
        assert!(bytes.len() <= limits::SECRET_BYTES && !bytes.iter().any(u8::is_ascii_control));
        assert!(!cookie.secure || cookies::is_trustworthy(&from), "secure from {from}");
        let Ok(place) = cookies::place(&received, &resolved, &jar, cookies::is_trustworthy(&from)) else {
            continue;
        };
        let name = match place {
            cookies::Place::Mapped(name) => {
                let spec = resolved.keys.iter().find(|spec| spec.name == name).expect("a key of the mapping");
                let Location::Cookie(wanted) = &spec.location else { panic!("{name} is no cookie") };
                assert_eq!(wanted.name, cookie.name);
                let related =
                    is_own(&wanted.domain, &cookie.domain) || is_own(&cookie.domain, &wanted.domain);
                assert!(related, "{} fills a key of {}", cookie.domain, wanted.domain);
                name
            }
            cookies::Place::Extra(name) => name,
        };
        if received.deletes {
            jar.remove(&name);
        } else {
            jar.put(Key {
                name,
                secret: received.secret,
                fingerprint: String::new(),
                expires: received.expires,
                cookie: Some(received.attributes),
            });
        }
    }
    assert!(jar.keys.len() <= limits::COOKIES + resolved.keys.len());
    let header = cookies::header(&jar, &to, now);
    let header = header.unwrap_or_else(|key| panic!("{key}, which the service set, blocks every request"));
    let own = |key: &&Key| {
        let cookie = key.cookie.as_ref().expect("a cookie");
        to.host_str().is_some_and(|host| is_own(host, &cookie.domain))
            && (!cookie.secure || cookies::is_trustworthy(&to))
    };
    let count = jar.keys.iter().filter(own).count();
    match header {
        None => {}
        Some(line) => {
            assert!(!line.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{line:?}");
            let sent = line.as_bytes().split(|byte| *byte == b';').count();
            assert!(sent <= count, "{sent} cookies to {to}, {count} belong there");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let lines = |lines: &[&str]| lines.iter().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>();
    let inputs: Vec<Input> = vec![
        (
            "https://www.a.example/x/y".into(),
            lines(&[
                "sid=v; Path=/; Secure; HttpOnly; SameSite=Lax",
                "site=\"q\"; Domain=.a.example; Max-Age=60",
                "sid=; Path=/admin; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            ]),
            "https://www.a.example/x/y/z?q".into(),
            1_700_000_000_000,
        ),
        (
            "https://me.github.io/".into(),
            lines(&["a=b; Domain=github.io", "a=b; Domain=me.github.io", "__Host-a=b; Secure; Path=/"]),
            "https://sub.me.github.io/".into(),
            1_700_000_000_000,
        ),
        (
            "http://127.0.0.1:8080/".into(),
            lines(&["sid=v; Secure", "sid=w; Domain=0.0.1", "__Secure-x=y; Secure; Domain=127.0.0.1"]),
            "http://127.0.0.1/".into(),
            0,
        ),
        ("http://localhost/".into(), lines(&["a=b; Domain=localhost"]), "http://x.localhost/".into(), 1),
        ("https://[::1]/".into(), lines(&["a=b; Domain=[::1]; Path=/"]), "https://[::1]/".into(), 1),
        ("https://a.co.uk./".into(), lines(&["a=b; Domain=co.uk.", "a=b"]), "https://b.co.uk./".into(), 1),
        (
            "https://bücher.example/".into(),
            lines(&["a=b; Domain=bücher.example", "a=é; Domain=EXAMPLE"]),
            "https://www.bücher.example/".into(),
            1,
        ),
    ];
    inputs.iter().map(write).collect()
}
