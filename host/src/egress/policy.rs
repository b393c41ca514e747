//! What may leave: methods, URLs, header names, redirect steps and addresses. Pure: it takes
//! values and answers; it never resolves a name, opens a socket or sees a secret.
//!
//! Nothing here compares parts of host names. A host is allowed when it equals an allowed one
//! after the `url` crate has written both, so suffix tricks, look-alikes and odd spellings of
//! an address have nothing to slip through.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderName, Method, StatusCode};
use url::{Host, Url};

use crate::provider::AllowedOrigin;

/// The most redirects followed for one request, whatever the plugin asks (contract: `redirects`).
pub const MAX_REDIRECTS: u8 = 5;

/// Header fields of one request; browsers send about 20.
pub const MAX_HEADERS: usize = 64;

/// Names and values of one request's headers together. A token may have 64 KiB; twice that is
/// a request no server accepts.
pub const MAX_HEADER_BYTES: usize = 128 << 10;

/// How many allowed origins or keys a refusal lists before it says "and more".
const LISTED: usize = 8;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("method `{0}` is not allowed; allowed: GET, HEAD, POST, PUT, PATCH, DELETE")]
    Method(String),
    #[error("not an absolute URL: {0}")]
    Url(String),
    #[error("user or password in the URL; hint: use an `authorization` header template")]
    UserInfo,
    #[error("scheme `{0}` is not allowed; allowed: https, or http where the operator named the origin")]
    Scheme(String),
    #[error(
        "origin {found} is not allowed; allowed: {allowed}; hint: `origins` of the manifest, or a url setting, must name it"
    )]
    Origin { found: String, allowed: String },
    #[error("plain http to {0} is allowed only where the operator named that origin in a setting")]
    PlainHttp(String),
    #[error("header `{0}` belongs to the host and can't be set by a plugin")]
    HeaderReserved(String),
    #[error("`{0}` is not a valid header name")]
    HeaderName(String),
    #[error("{found} bytes of {what}, at most {allowed} allowed")]
    TooMuch { what: &'static str, found: usize, allowed: usize },
    #[error("{0} is {1} and can't be reached; hint: {2}")]
    Address(IpAddr, AddressClass, &'static str),
}

/// The methods of the contract and no other: CONNECT and TRACE would be holes, and an unknown
/// method is a typing mistake.
pub fn method(text: &str) -> Result<Method, PolicyError> {
    Ok(match text {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        other => return Err(PolicyError::Method(other.chars().take(32).collect())),
    })
}

/// The allowed origin a URL belongs to; every hop of every request passes here.
pub fn origin<'a>(url: &Url, allowed: &'a [AllowedOrigin]) -> Result<&'a AllowedOrigin, PolicyError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(PolicyError::UserInfo);
    }
    if !matches!(url.scheme(), "https" | "http") {
        return Err(PolicyError::Scheme(url.scheme().chars().take(32).collect()));
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(PolicyError::Url("it has no host".to_owned()));
    };
    let found = allowed
        .iter()
        .find(|origin| origin.port == port && origin.host == host && origin.scheme == url.scheme());
    match found {
        Some(origin) if origin.scheme == "http" && !origin.operator_named => {
            Err(PolicyError::PlainHttp(origin.to_string()))
        }
        Some(origin) => Ok(origin),
        None => Err(PolicyError::Origin {
            found: url.origin().ascii_serialization(),
            allowed: listed(allowed.iter().map(ToString::to_string)),
        }),
    }
}

/// A short list for people: what there is to choose from.
pub fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let total = names.len();
    if total == 0 {
        return "none".to_owned();
    }
    let mut text = names.take(LISTED).collect::<Vec<_>>().join(", ");
    if total > LISTED {
        text.push_str(&format!(" and {} more", total - LISTED));
    }
    text
}

/// Names a plugin may not set. Besides what frames the message (`Host`, lengths, hop by hop)
/// these would undo a promise: `Cookie` is attached by rule; `Accept-Encoding` could bring a
/// body redaction can't read; `Range` could fetch an echoed secret in pieces shorter than
/// what redaction looks for.
const RESERVED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "host",
    "http2-settings",
    "if-range",
    "keep-alive",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header name a plugin may use.
pub fn header_name(text: &str) -> Result<HeaderName, PolicyError> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| PolicyError::HeaderName(text.escape_debug().take(64).collect()))?;
    if name.as_str().starts_with("proxy-") || RESERVED.binary_search(&name.as_str()).is_ok() {
        return Err(PolicyError::HeaderReserved(name.as_str().to_owned()));
    }
    Ok(name)
}

/// Whether an `Authorization` value would authenticate the *connection* (NTLM, Negotiate)
/// instead of the request. Connections are pooled over credentials, so these are refused.
pub fn authenticates_connection(value: &[u8]) -> bool {
    let scheme = value.trim_ascii_start().split(|byte| *byte == b' ').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
}

/// What a redirect does to the request that met it (Fetch standard, HTTP-redirect fetch).
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub method: Method,
    pub keeps_body: bool,
}

/// The next step of a redirect, or nothing where the status is no redirect.
pub fn step(status: StatusCode, method: &Method) -> Option<Step> {
    let to_get = match status.as_u16() {
        301 | 302 => *method == Method::POST,
        303 => *method != Method::GET && *method != Method::HEAD,
        307 | 308 => false,
        _ => return None,
    };
    Some(if to_get {
        Step { method: Method::GET, keeps_body: false }
    } else {
        Step { method: method.clone(), keeps_body: true }
    })
}

/// Scheme, host and port are the same: what was meant for one is safe with the other.
pub fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// What kind of network an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    Public,
    Loopback,
    /// RFC 1918, CGNAT, unique local.
    Private,
    LinkLocal,
    /// The credentials of a cloud machine: never, whatever the operator typed.
    Metadata,
    /// Multicast, unspecified, documentation, benchmarking, reserved.
    Special,
}

impl std::fmt::Display for AddressClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Special => "a special-purpose address",
        })
    }
}

/// Sorts an address by the IANA special-purpose registries. IPv4 inside IPv6 (mapped, NAT64,
/// 6to4) is what it carries, for that is where the packets end up.
pub fn classify(ip: IpAddr) -> AddressClass {
    match ip {
        IpAddr::V4(ip) => classify_v4(ip),
        IpAddr::V6(ip) => classify_v6(ip),
    }
}

fn classify_v4(ip: Ipv4Addr) -> AddressClass {
    use AddressClass::{LinkLocal, Loopback, Metadata, Private, Public, Special};
    match ip.octets() {
        // AWS, GCP, Azure and most others; ECS and EKS task roles; Scaleway; Tencent; Alibaba;
        // Azure's wire server, which is a public address; Oracle.
        [169, 254, 169, 254]
        | [169, 254, 170, 2 | 23]
        | [169, 254, 42, 42]
        | [169, 254, 0, 23]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16]
        | [192, 0, 0, 192] => Metadata,
        [127, ..] => Loopback,
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] | [100, 64..=127, ..] => Private,
        [169, 254, ..] => LinkLocal,
        // "This network"; IETF assignments; documentation (three); 6to4 relays; benchmarking;
        // multicast, reserved and broadcast.
        [0, ..]
        | [192, 0, 0 | 2, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [224..=255, ..] => Special,
        _ => Public,
    }
}

fn classify_v6(ip: Ipv6Addr) -> AddressClass {
    use AddressClass::{LinkLocal, Loopback, Metadata, Private, Public, Special};
    if let Some(inner) = carried_v4(ip) {
        return classify_v4(inner);
    }
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Loopback,
        // AWS and its EKS pod roles, GCP, Akamai, Scaleway, OpenStack.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254 | 0x23]
        | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        | [0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]
        | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]
        | [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe] => Metadata,
        [0xfe80..=0xfebf, ..] => LinkLocal,
        // Unique local, and site-local that came before it.
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Private,
        // IETF assignments with Teredo, ORCHID and benchmarking; documentation (two).
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Special,
        // Global unicast is 2000::/3; everything else is unassigned, multicast, discard-only,
        // unspecified, IPv4-compatible or local-use NAT64.
        [0x2000..=0x3fff, ..] => Public,
        _ => Special,
    }
}

/// The IPv4 address inside a mapped, NAT64 (well-known prefix) or 6to4 address.
fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(pair(high, low)),
        [0x2002, high, low, ..] => Some(pair(high, low)),
        _ => None,
    }
}

/// Where a request to an allowed origin may connect. It is the key of the connection pools
/// (see `client`), so it must follow from the origin and the operator's permission alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Public addresses.
    Public,
    /// Loopback alone: the operator named `localhost`.
    Loopback,
    /// Also loopback and private addresses: the operator named this origin and opened its host.
    Private,
}

impl Reach {
    pub const ALL: [Reach; 3] = [Self::Public, Self::Loopback, Self::Private];

    pub const fn allows(self, class: AddressClass) -> bool {
        match (self, class) {
            (Self::Public | Self::Private, AddressClass::Public) => true,
            (Self::Loopback | Self::Private, AddressClass::Loopback) => true,
            (Self::Private, AddressClass::Private) => true,
            // Link-local by name would let whoever answers DNS choose the interface's
            // neighbours; only a literal opens it. Metadata and special: never.
            _ => false,
        }
    }
}

/// How far a request to this origin may reach, by name. A host the operator opened reaches
/// private addresses only under an origin the operator named.
pub fn reach(origin: &AllowedOrigin, private_hosts: &[String]) -> Reach {
    if !origin.operator_named {
        Reach::Public
    } else if origin.host == "localhost" {
        Reach::Loopback
    } else if private_hosts.contains(&origin.host) {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// Whether a connection for this origin may go to this address. Literals need no resolver,
/// and hyper asks none for them, so they are judged here before anything is sent.
pub fn allowed_address(
    ip: IpAddr,
    origin: &AllowedOrigin,
    private_hosts: &[String],
) -> Result<(), PolicyError> {
    let class = classify(ip);
    let by_name = reach(origin, private_hosts).allows(class);
    let by_literal = origin.operator_named
        && matches!(class, AddressClass::Loopback | AddressClass::Private | AddressClass::LinkLocal)
        && literal(&origin.host) == Some(ip);
    if by_name || by_literal { Ok(()) } else { Err(refused(ip, class)) }
}

/// The refusal of an address, with the way out where there is one.
pub fn refused(ip: IpAddr, class: AddressClass) -> PolicyError {
    let hint = match class {
        AddressClass::Loopback | AddressClass::Private => {
            "the operator can name the address itself in a url setting, or list the host in the credential's private hosts"
        }
        AddressClass::LinkLocal => "the operator can name the address itself in a url setting",
        AddressClass::Public => "`localhost` means this machine alone",
        AddressClass::Metadata | AddressClass::Special => "use the service's own address",
    };
    PolicyError::Address(ip, class, hint)
}

/// The address a host literal stands for, if it is one.
pub fn literal(host: &str) -> Option<IpAddr> {
    match Host::parse(host) {
        Ok(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Ok(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(scheme: &str, host: &str, port: u16, operator_named: bool) -> AllowedOrigin {
        AllowedOrigin { scheme: scheme.into(), host: host.into(), port, operator_named }
    }

    #[test]
    fn only_the_methods_of_the_contract_pass() {
        for good in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            assert_eq!(method(good).unwrap().as_str(), good);
        }
        for bad in ["get", "CONNECT", "TRACE", "OPTIONS", "", "GET ", "G\r\nET"] {
            assert!(method(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_passes_only_when_its_origin_equals_an_allowed_one() {
        let list = [
            allowed("https", "api.example.com", 443, false),
            allowed("https", "git.example.org", 8443, true),
            allowed("http", "intranet", 80, true),
            allowed("http", "plain.example", 80, false),
            allowed("https", "xn--bcher-kva.example", 443, false),
            allowed("http", "127.0.0.1", 8080, true),
            allowed("https", "[2001:db8::1]", 443, true),
        ];
        for (url, passes) in [
            ("https://api.example.com/", true),
            ("https://API.Example.COM:443/x?y#z", true),
            ("https://api.example.com:8443/", false),
            ("https://api.example.com./", false),
            ("https://api.example.com.evil.test/", false),
            ("https://evilapi.example.com/", false),
            ("https://example.com/", false),
            ("https://api.example.com@evil.test/", false),
            ("https://user@api.example.com/", false),
            ("https://:pass@api.example.com/", false),
            ("http://api.example.com/", false),
            ("http://api.example.com:443/", false),
            ("https://git.example.org:8443/x", true),
            ("https://git.example.org/x", false),
            ("http://intranet/", true),
            ("https://intranet/", false),
            ("http://plain.example/", false),
            ("https://bücher.example/", true),
            ("https://bUcher.example/", false),
            ("https://аpi.example.com/", false), // a Cyrillic first letter
            ("http://2130706433:8080/", true),   // other spellings of the named 127.0.0.1
            ("http://0x7f.1:8080/", true),
            ("http://0177.0.0.1:8080/", true),
            ("http://[::ffff:127.0.0.1]:8080/", false),
            ("https://[2001:DB8:0::1]/", true),
            ("ftp://api.example.com/", false),
            ("file:///etc/passwd", false),
            ("data:text/plain,x", false),
        ] {
            let parsed = Url::parse(url).unwrap();
            assert_eq!(origin(&parsed, &list).is_ok(), passes, "{url}");
        }
    }

    /// Whatever way an address is written, it is judged as the address: no spelling makes it
    /// the name of a host, and none that the `url` crate can't read is let through.
    #[test]
    fn no_spelling_of_an_address_hides_it() {
        let spellings = |ip: Ipv4Addr| {
            let [a, b, c, d] = ip.octets();
            let whole = u32::from(ip);
            let wide: String = ip.to_string().chars().map(full_width).collect();
            vec![
                format!("{ip}"),
                format!("{ip}."),
                format!("{whole}"),
                format!("{whole}."),
                format!("0x{whole:x}"),
                format!("0X{whole:X}"),
                format!("0{whole:o}"),
                format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("0000{a:o}.{b}.0x{c:x}.{d}"),
                format!("{a}.{}", whole & 0xff_ffff),
                format!("{a}.{b}.{}", whole & 0xffff),
                format!("{a}.0x{b:x}.{}", whole & 0xffff),
                format!("%{:x}{}", ip.to_string().as_bytes()[0], &ip.to_string()[1..]),
                ip.to_string().replace('.', "%2e"),
                ip.to_string().replace('.', "%E3%80%82"),
                ip.to_string().replace('.', "\u{3002}"),
                ip.to_string().replace('.', "\u{ff0e}"),
                ip.to_string().replace('.', "\u{ff61}"),
                wide.clone(),
                wide.replace('\u{ff0e}', "."),
                format!("\u{ad}{ip}"),
                format!("[::ffff:{ip}]"),
                format!("[0:0:0:0:0:FFFF:{ip}]"),
                format!("[::ffff:{:x}:{:x}]", whole >> 16, whole & 0xffff),
                format!("[::{ip}]"),
                format!("[::ffff:0:{ip}]"),
                format!("[64:ff9b::{ip}]"),
                format!("[2002:{:x}:{:x}::1]", whole >> 16, whole & 0xffff),
            ]
        };
        let mut hosts: Vec<String> = [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.0.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
        ]
        .into_iter()
        .flat_map(|ip| spellings(ip.parse().unwrap()))
        .collect();
        hosts.extend(
            [
                "127.1",
                "0",
                "0x",
                "[::]",
                "[::1]",
                "[0:0:0:0:0:0:0:1]",
                "[fd00:ec2::254]",
                "[FD00:EC2::0:254]",
            ]
            .map(str::to_owned),
        );
        for host in hosts {
            let text = format!("https://{host}/");
            let Ok(url) = Url::parse(&text) else { panic!("{text} is a spelling the table is about") };
            let Some(ip) = literal(url.host_str().unwrap()) else { panic!("{text} became a name: {url}") };
            let class = classify(ip);
            assert_ne!(class, AddressClass::Public, "{text}");
            // A plugin's own origin is refused at the address, one it didn't name at the origin.
            let mine = allowed("https", url.host_str().unwrap(), 443, false);
            assert!(allowed_address(ip, &mine, std::slice::from_ref(&mine.host)).is_err(), "{text}");
            let list = [allowed("https", "api.example.com", 443, false)];
            assert!(matches!(origin(&url, &list), Err(PolicyError::Origin { .. })), "{text}");
            // The operator's word opens loopback and private networks, never metadata.
            let named = allowed("https", url.host_str().unwrap(), 443, true);
            let opened = allowed_address(ip, &named, std::slice::from_ref(&named.host)).is_ok();
            let may = !matches!(class, AddressClass::Metadata | AddressClass::Special);
            assert_eq!(opened, may, "{text}");
        }
        // Not an address to anyone, so not a URL either: nothing is dialled and nothing resolved.
        for broken in [
            "https://[fe80::1%25lo]/",
            "https://[fe80::1%lo]/",
            "https://[::1/",
            "https://127.0.0.256/",
            "https://0x100000000/",
            "https://1.2.3.4.5/",
            "https://127.0.0.1%00.example.com/",
            "https://127.0.0.1%2f.example.com/",
            "https://127.0.0.1%0d%0a.example.com/",
            "https://exa%6dple%20.com/",
            "https://[127.0.0.1]/",
            "https://[v1.127]/",
            "https://٠x7f.1/",
            "https:///",
        ] {
            if let Ok(url) = Url::parse(broken) {
                panic!("{broken} became {url}");
            }
        }
    }

    fn full_width(c: char) -> char {
        char::from_u32(u32::from(c) + 0xfee0).unwrap()
    }

    #[test]
    fn a_refused_origin_names_what_is_allowed() {
        let list = [allowed("https", "api.example.com", 443, false)];
        let error = origin(&Url::parse("https://evil.test/a?b=c").unwrap(), &list).unwrap_err().to_string();
        assert!(
            error.contains("https://evil.test is not allowed; allowed: https://api.example.com"),
            "{error}"
        );
        assert!(!error.contains("b=c"));
    }

    #[test]
    fn the_reserved_header_names_are_in_order_for_the_binary_search() {
        assert!(RESERVED.is_sorted());
    }

    #[test]
    fn headers_of_the_host_and_malformed_names_are_refused() {
        for bad in [
            "Host",
            "cookie",
            "COOKIE2",
            "Content-Length",
            "transfer-encoding",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Proxy-Authorization",
            "proxy-connection",
            "Expect",
            "HTTP2-Settings",
            "Accept-Encoding",
            "Range",
            "If-Range",
            "Set-Cookie",
            "",
            "a b",
            "a:b",
            ":authority",
            "x\r\ny",
            "x\0",
            "ä",
        ] {
            assert!(header_name(bad).is_err(), "{bad:?}");
        }
        for good in ["Authorization", "X-Api-Key", "content-type", "Origin", "Accept", "User-Agent"] {
            assert!(header_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn connection_bound_authentication_is_recognised() {
        for (value, bound) in [
            ("NTLM abc", true),
            (" negotiate abc", true),
            ("Negotiate", true),
            ("Bearer ntlm", false),
            ("Basic x", false),
            ("", false),
        ] {
            assert_eq!(authenticates_connection(value.as_bytes()), bound, "{value}");
        }
    }

    #[test]
    fn redirects_change_the_method_as_browsers_do() {
        for (status, from, to, keeps) in [
            (301, "POST", Some("GET"), false),
            (302, "POST", Some("GET"), false),
            (301, "GET", Some("GET"), true),
            (302, "PUT", Some("PUT"), true),
            (303, "POST", Some("GET"), false),
            (303, "DELETE", Some("GET"), false),
            (303, "HEAD", Some("HEAD"), true),
            (307, "POST", Some("POST"), true),
            (308, "PATCH", Some("PATCH"), true),
            (300, "GET", None, false),
            (304, "GET", None, false),
            (200, "GET", None, false),
        ] {
            let got = step(StatusCode::from_u16(status).unwrap(), &method(from).unwrap());
            assert_eq!(
                got,
                to.map(|to| Step { method: method(to).unwrap(), keeps_body: keeps }),
                "{status} {from}"
            );
        }
    }

    #[test]
    fn addresses_are_sorted_by_the_special_purpose_registries() {
        use AddressClass::{LinkLocal, Loopback, Metadata, Private, Public, Special};
        for (ip, class) in [
            ("8.8.8.8", Public),
            ("1.1.1.1", Public),
            ("172.15.0.1", Public),
            ("172.32.0.1", Public),
            ("100.63.0.1", Public),
            ("100.128.0.1", Public),
            ("198.20.0.1", Public),
            ("127.0.0.1", Loopback),
            ("127.255.1.2", Loopback),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("169.254.1.1", LinkLocal),
            ("169.254.169.254", Metadata),
            ("169.254.170.2", Metadata),
            ("169.254.170.23", Metadata),
            ("169.254.42.42", Metadata),
            ("169.254.0.23", Metadata),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("192.0.0.192", Metadata),
            ("0.0.0.0", Special),
            ("0.1.2.3", Special),
            ("192.0.0.8", Special),
            ("192.0.2.1", Special),
            ("198.51.100.1", Special),
            ("203.0.113.1", Special),
            ("198.18.0.1", Special),
            ("192.88.99.1", Special),
            ("224.0.0.1", Special),
            ("240.0.0.1", Special),
            ("255.255.255.255", Special),
            ("2606:4700::1111", Public),
            ("::1", Loopback),
            ("::", Special),
            ("::127.0.0.1", Special),
            ("::8.8.8.8", Special),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:169.254.169.254", Metadata),
            ("::ffff:8.8.8.8", Public),
            ("64:ff9b::a00:1", Private),
            ("64:ff9b::7f00:1", Loopback),
            ("64:ff9b::a9fe:a9fe", Metadata),
            ("64:ff9b::808:808", Public),
            ("64:ff9b:1::a00:1", Special),
            ("2002:a00:1::", Private),
            ("2002:7f00:1::1", Loopback),
            ("2002:808:808::", Public),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("fc00::1", Private),
            ("fd12:3456::1", Private),
            ("fec0::1", Private),
            ("fd00:ec2::254", Metadata),
            ("fd00:ec2::23", Metadata),
            ("fd00:ec2:0:1::254", Private),
            ("fd20:ce::254", Metadata),
            ("fd00:a9fe:a9fe::1", Metadata),
            ("fd00:42::42", Metadata),
            ("fe80::a9fe:a9fe", Metadata),
            ("::ffff:0:127.0.0.1", Special),
            ("::ffff:100.100.100.200", Metadata),
            ("::ffff:168.63.129.16", Metadata),
            ("64:ff9b::6464:64c8", Metadata),
            ("2002:a9fe:a9fe::1", Metadata),
            ("2002:a83f:8110::", Metadata),
            ("ff02::1", Special),
            ("2001::1", Special),
            ("2001:db8::1", Special),
            ("3fff::1", Special),
            ("100::1", Special),
            ("5f00::1", Special),
        ] {
            assert_eq!(classify(ip.parse().unwrap()), class, "{ip}");
        }
    }

    #[test]
    fn a_private_address_needs_an_operator_who_named_it() {
        let open = ["nas.home".to_owned(), "plugin.example".to_owned()];
        for (ip, host, named, passes) in [
            ("8.8.8.8", "api.example.com", false, true),
            ("8.8.8.8", "api.example.com", true, true),
            ("10.0.0.1", "api.example.com", false, false),
            ("10.0.0.1", "api.example.com", true, false),
            ("127.0.0.1", "api.example.com", true, false),
            // The literal itself.
            ("10.0.0.1", "10.0.0.1", true, true),
            ("10.0.0.1", "10.0.0.1", false, false),
            ("10.0.0.2", "10.0.0.1", true, false),
            ("127.0.0.1", "127.0.0.1", true, true),
            ("::1", "[::1]", true, true),
            ("fd12::1", "[fd12::1]", true, true),
            ("169.254.7.7", "169.254.7.7", true, true),
            ("169.254.7.7", "169.254.7.7", false, false),
            ("169.254.169.254", "169.254.169.254", true, false),
            ("100.100.100.200", "100.100.100.200", true, false),
            ("168.63.129.16", "168.63.129.16", true, false),
            ("fd00:ec2::254", "[fd00:ec2::254]", true, false),
            ("::ffff:169.254.169.254", "[::ffff:a9fe:a9fe]", true, false),
            ("0.0.0.0", "0.0.0.0", true, false),
            ("224.0.0.1", "224.0.0.1", true, false),
            // localhost.
            ("127.0.0.1", "localhost", true, true),
            ("::1", "localhost", true, true),
            ("10.0.0.1", "localhost", true, false),
            ("8.8.8.8", "localhost", true, false),
            ("127.0.0.1", "localhost", false, false),
            // A host the operator opened.
            ("192.168.1.9", "nas.home", true, true),
            ("127.0.0.1", "nas.home", true, true),
            ("8.8.8.8", "nas.home", true, true),
            ("169.254.7.7", "nas.home", true, false),
            ("169.254.169.254", "nas.home", true, false),
            ("192.168.1.9", "plugin.example", false, false),
        ] {
            let origin = allowed("https", host, 443, named);
            assert_eq!(
                allowed_address(ip.parse().unwrap(), &origin, &open).is_ok(),
                passes,
                "{ip} for {host}, named {named}"
            );
        }
    }
}
