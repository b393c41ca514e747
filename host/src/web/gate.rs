//! Who may come in: the name they call us by, the token they show, and how often. It never
//! tells a stranger what was wrong with a token, and a token is never stored, printed or
//! compared byte by byte.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode, header};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::answer::Refused;
use crate::config::Http;
use crate::credential::{Secret, now};
use crate::db::queries::Reader;
use crate::external::{TokenState, tagged, token_id};
use crate::limits;
use crate::vault::Vault;

/// A token that was checked.
pub struct Bearer {
    pub token_id: String,
    pub service: String,
    /// So that it can be taken out of what its worker writes.
    pub text: Secret,
}

pub struct Gate {
    /// None: any name will do.
    names: Option<Vec<String>>,
    vault: Arc<Vault>,
    reader: Arc<Mutex<Reader>>,
    by_token: DefaultKeyedRateLimiter<String>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

impl Gate {
    pub fn new(options: &Http, reader: Reader, vault: Arc<Vault>) -> Self {
        let any = options.allow_remote && options.hosts.is_empty();
        let failures = NonZeroU32::new(limits::HTTP_FAILED_SIGN_INS).unwrap_or(NonZeroU32::MIN);
        let by_token = Quota::per_second(options.requests_per_second).allow_burst(options.requests_at_once);
        Self {
            names: (!any).then(|| options.hosts.clone()),
            vault,
            reader: Arc::new(Mutex::new(reader)),
            by_token: RateLimiter::keyed(by_token),
            failures: RateLimiter::keyed(Quota::per_second(NonZeroU32::MIN).allow_burst(failures)),
            clock: DefaultClock::default(),
        }
    }

    pub fn host(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(names) = &self.names else { return Ok(()) };
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        if hosts.next().is_none() && host.is_some_and(|host| is_known_host(host, names)) {
            return Ok(());
        }
        let message = "called by a name that isn't this port's; allowed: localhost, loopback addresses and the names in http.hosts";
        Err(Refused::new(StatusCode::FORBIDDEN, "unknown-host", message).at("Host"))
    }

    /// # Errors
    /// No token, none that is valid, or too many requests.
    pub async fn token(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Bearer, Refused> {
        let bearer = match shown(headers) {
            Some(text) => self.look_up(text).await?,
            None => None,
        };
        let Some(bearer) = bearer else { return Err(self.failed(peer)) };
        match self.by_token.check_key(&bearer.token_id) {
            Ok(()) => Ok(bearer),
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                Err(too_often("the token is used too often").again_after(wait.as_secs() + 1))
            }
        }
    }

    async fn look_up(&self, text: Secret) -> Result<Option<Bearer>, Refused> {
        let Some(id) = std::str::from_utf8(text.expose()).ok().and_then(token_id) else { return Ok(None) };
        let (id, reader) = (id.to_owned(), Arc::clone(&self.reader));
        let found = tokio::task::spawn_blocking(move || {
            reader.lock().unwrap_or_else(PoisonError::into_inner).worker_token(&id)
        });
        let found = match found.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(unreadable(&error)),
            Err(error) => return Err(unreadable(&error)),
        };
        let Some((row, tag)) = found else { return Ok(None) };
        let usable = TokenState::of(row.expires_at, row.revoked_at, now()) == TokenState::Active;
        // Whether it is over says nothing to who doesn't have it, so both are looked at.
        let genuine = self.vault.verify_tag(tagged(&text).expose(), &tag);
        Ok((genuine && usable).then_some(Bearer { token_id: row.token_id, service: row.service, text }))
    }

    /// Counted by address, and only failures: all workers behind a proxy have one address, and
    /// a stranger there must not shut out those with a token.
    fn failed(&self, peer: IpAddr) -> Refused {
        if self.failures.len() >= limits::HTTP_PEERS {
            self.failures.retain_recent();
        }
        let peer =
            if self.failures.len() >= limits::HTTP_PEERS { Ipv6Addr::UNSPECIFIED.into() } else { peer };
        match self.failures.check_key(&network(peer)) {
            Ok(()) => {
                tracing::info!(%peer, "a request without a valid token was refused");
                Refused::unauthenticated()
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                too_often("too many requests without a valid token from this address")
                    .again_after(wait.as_secs() + 1)
            }
        }
    }
}

fn too_often(message: &str) -> Refused {
    Refused::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", message)
}

fn unreadable(error: &dyn std::error::Error) -> Refused {
    tracing::error!(%error, "a token can't be looked up");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the database can't be read now")
        .again_after(5)
}

/// What one customer of a provider gets: a single IPv6 host has 2^64 addresses.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The token of the one `Authorization` header.
fn shown(headers: &HeaderMap) -> Option<Secret> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (all.next()?, all.next()) else { return None };
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Secret::new(token.trim()))
}

/// Loopback by address or by name, or one of the operator's names; with any port, for it may be
/// forwarded. Pure.
fn is_known_host(host: &str, names: &[String]) -> bool {
    let Some(name) = without_port(host) else { return false };
    let name = name.to_ascii_lowercase();
    let is_loopback = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None => {
            name == "localhost"
                || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
    };
    is_loopback || names.contains(&name)
}

fn without_port(host: &str) -> Option<&str> {
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, rest) = host.split_at(end);
    let is_port = |rest: &str| {
        rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    (rest.is_empty() || is_port(rest)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_the_operators_names_are_known_hosts() {
        let names = ["keywheel.example".to_owned(), "[fd00::1]".to_owned()];
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.0.0.1:7878", true),
            ("127.8.9.1", true),
            ("localhost", true),
            ("LocalHost:1", true),
            ("[::1]:7878", true),
            ("[::1]", true),
            ("keywheel.example", true),
            ("Keywheel.Example:443", true),
            ("[fd00::1]:80", true),
            ("", false),
            (":7878", false),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("evil.example:127.0.0.1", false),
            ("192.168.0.1", false),
            ("0.0.0.0", false),
            ("[::]", false),
            ("[::1", false),
            ("[::1]x", false),
            ("::1", false),
            ("localhost:80:80", false),
            ("2130706433", false),
        ] {
            assert_eq!(is_known_host(host, &names), expected, "{host}");
        }
    }

    #[test]
    fn addresses_of_one_network_share_their_failures() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_token_is_read_from_one_bearer_header_alone() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            headers
        };
        for values in [&["Bearer kwt_x"][..], &["bearer  kwt_x"], &["BEARER kwt_x "]] {
            assert_eq!(shown(&headers(values)).unwrap().expose(), b"kwt_x", "{values:?}");
        }
        for values in [&[][..], &["kwt_x"], &["Basic kwt_x"], &["Bearer"], &["Bearer kwt_x", "Bearer kwt_x"]]
        {
            assert!(shown(&headers(values)).is_none(), "{values:?}");
        }
    }
}
