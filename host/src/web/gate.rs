//! Who may come in: the name they call us by, the token they show, and how often. It tells a
//! stranger nothing of a token that isn't his, and a token is never stored, printed or compared
//! byte by byte.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode, header};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::answer::Refused;
use crate::config::Http;
use crate::credential::{Secret, now};
use crate::db::api_tokens::{ApiRefusal, ApiTokenRow, RefusalReason};
use crate::db::queries::{ReadError, Reader};
use crate::limits;
use crate::report::iso8601;
use crate::token::{Kind, TokenState};
use crate::vault::Vault;

/// A worker's token that was checked.
pub struct Bearer {
    pub token_id: String,
    pub service: String,
    /// So that it can be taken out of what its worker writes.
    pub text: Secret,
}

/// A request of the API that isn't let in: what it is told, and what the history says of it.
/// None: it was no refusal of ours to write down, or one of too many, which are counted.
pub struct Turned {
    pub refused: Refused,
    pub note: Option<Box<ApiRefusal>>,
}

impl From<Refused> for Turned {
    fn from(refused: Refused) -> Self {
        Self { refused, note: None }
    }
}

pub struct Gate {
    /// None: any name will do.
    names: Option<Vec<String>>,
    vault: Arc<Vault>,
    reader: Arc<Mutex<Reader>>,
    by_token: DefaultKeyedRateLimiter<String>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    /// Refusals of the API that came too often to be written down one by one.
    passed_over: Mutex<BTreeMap<(String, Option<String>), u32>>,
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
            passed_over: Mutex::default(),
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

    /// A worker's token.
    ///
    /// # Errors
    /// No token, none that is valid, or too many requests.
    pub async fn token(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Bearer, Refused> {
        let bearer = match shown(headers) {
            Some(text) => self.look_up(text).await?,
            None => None,
        };
        let Some(bearer) = bearer else {
            self.may_fail(peer)?;
            return Err(Refused::unauthenticated());
        };
        self.may_go_on(&bearer.token_id)?;
        Ok(bearer)
    }

    /// A token of the API, whatever it may do.
    ///
    /// # Errors
    /// As for `token`; and a page of another site, whose reader is the operator's own browser.
    pub async fn api(&self, headers: &HeaderMap, peer: IpAddr) -> Result<ApiTokenRow, Turned> {
        if let Err(refused) = self.no_other_site(headers) {
            return Err(self.turned(peer, refused, RefusalReason::OtherSite, None));
        }
        match self.look_up_api(headers).await? {
            Ok(row) => match self.may_go_on(&row.token_id) {
                Ok(()) => Ok(row),
                Err(refused) => {
                    self.pass_over(peer, Some(row.token_id));
                    Err(refused.into())
                }
            },
            Err(Unfit { reason, message, token_id }) => {
                let refused = Refused::unauthenticated_api(message);
                Err(self.turned(peer, refused, reason, token_id))
            }
        }
    }

    /// # Errors
    /// A page of another site asks in a browser.
    pub fn no_other_site(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if !is_of_another_site(headers) {
            return Ok(());
        }
        let message = "a page of another site asked for this in a browser; hint: programs send neither Origin nor Sec-Fetch-Site";
        Err(Refused::new(StatusCode::FORBIDDEN, "other-site", message).at("Origin"))
    }

    /// Reads the database, away from the threads that serve.
    ///
    /// # Errors
    /// Where it can't be read.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Refused> {
        let reader = Arc::clone(&self.reader);
        let answer = tokio::task::spawn_blocking(move || {
            query(&reader.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match answer.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(unreadable(&error)),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// The refusals that were only counted, since this was last asked.
    pub fn passed_over(&self) -> Vec<ApiRefusal> {
        let counted = std::mem::take(&mut *self.passed_over.lock().unwrap_or_else(PoisonError::into_inner));
        let refusal = |((peer, token_id), times)| ApiRefusal {
            reason: RefusalReason::TooOften,
            token_id,
            peer,
            credential_id: None,
            times,
        };
        counted.into_iter().map(refusal).collect()
    }

    fn pass_over(&self, peer: IpAddr, token_id: Option<String>) {
        let mut counted = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (peer_text(peer), token_id);
        if counted.len() >= limits::HTTP_PEERS && !counted.contains_key(&key) {
            key = (peer_text(Ipv6Addr::UNSPECIFIED.into()), None);
        }
        let times = counted.entry(key).or_default();
        *times = times.saturating_add(1);
    }

    /// A refusal that is written down, or one of so many from there that it is only counted.
    fn turned(
        &self,
        peer: IpAddr,
        refused: Refused,
        reason: RefusalReason,
        token_id: Option<String>,
    ) -> Turned {
        match self.may_fail(peer) {
            Ok(()) => {
                let note =
                    ApiRefusal { reason, token_id, peer: peer_text(peer), credential_id: None, times: 1 };
                Turned { refused, note: Some(Box::new(note)) }
            }
            Err(refused) => {
                self.pass_over(peer, token_id);
                refused.into()
            }
        }
    }

    async fn look_up(&self, text: Secret) -> Result<Option<Bearer>, Refused> {
        let id = std::str::from_utf8(text.expose()).ok().and_then(|text| Kind::Worker.id_in(text));
        let Some(id) = id.map(str::to_owned) else { return Ok(None) };
        let Some((row, tag)) = self.read(move |reader| reader.worker_token(&id)).await? else {
            return Ok(None);
        };
        let usable = TokenState::of(row.expires_at, row.revoked_at, now()) == TokenState::Active;
        // Whether it is over says nothing to who doesn't have it, so both are looked at.
        let genuine = self.vault.verify_tag(Kind::Worker.tagged(&text).expose(), &tag);
        Ok((genuine && usable).then_some(Bearer { token_id: row.token_id, service: row.service, text }))
    }

    async fn look_up_api(&self, headers: &HeaderMap) -> Result<Result<ApiTokenRow, Unfit>, Refused> {
        let unfit =
            |reason, message: &str| Ok(Err(Unfit { reason, message: message.to_owned(), token_id: None }));
        let Some(text) = shown(headers) else {
            return match headers.contains_key(header::AUTHORIZATION) {
                true => unfit(RefusalReason::MalformedToken, "the Authorization header holds no token"),
                false => unfit(RefusalReason::NoToken, "there is no token"),
            };
        };
        let id = std::str::from_utf8(text.expose()).ok().and_then(|text| Kind::Api.id_in(text));
        let Some(id) = id.map(str::to_owned) else {
            return unfit(RefusalReason::MalformedToken, "what was sent is no token of the API");
        };
        let Some((row, tag)) = self.read(move |reader| reader.api_token(&id)).await? else {
            return unfit(RefusalReason::UnknownToken, "the token is not known");
        };
        if !self.vault.verify_tag(Kind::Api.tagged(&text).expose(), &tag) {
            let token_id = Some(row.token_id);
            let message = "the token is not known".to_owned();
            return Ok(Err(Unfit { reason: RefusalReason::UnknownToken, message, token_id }));
        }
        // Who shows the whole token may know what became of it.
        let (reason, message) = match TokenState::of(row.expires_at, row.revoked_at, now()) {
            TokenState::Active => return Ok(Ok(row)),
            TokenState::Expired => {
                let at = row.expires_at.map(iso8601).unwrap_or_default();
                (RefusalReason::ExpiredToken, format!("the token expired at {at}"))
            }
            TokenState::Revoked => {
                let at = row.revoked_at.map(iso8601).unwrap_or_default();
                (RefusalReason::RevokedToken, format!("the token was revoked at {at}"))
            }
        };
        Ok(Err(Unfit { reason, message, token_id: Some(row.token_id) }))
    }

    fn may_go_on(&self, token_id: &String) -> Result<(), Refused> {
        self.by_token.check_key(token_id).map_err(|until| {
            let wait = until.wait_time_from(self.clock.now());
            too_often("the token is used too often").again_after(wait.as_secs() + 1)
        })
    }

    /// Counted by address, and only failures: all workers behind a proxy have one address, and
    /// a stranger there must not shut out those with a token.
    fn may_fail(&self, peer: IpAddr) -> Result<(), Refused> {
        if self.failures.len() >= limits::HTTP_PEERS {
            self.failures.retain_recent();
        }
        let peer =
            if self.failures.len() >= limits::HTTP_PEERS { Ipv6Addr::UNSPECIFIED.into() } else { peer };
        match self.failures.check_key(&network(peer)) {
            Ok(()) => {
                tracing::info!(%peer, "a request without a valid token was refused");
                Ok(())
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                Err(too_often("too many requests without a valid token from this address")
                    .again_after(wait.as_secs() + 1))
            }
        }
    }
}

/// A token of the API that lets nobody in.
struct Unfit {
    reason: RefusalReason,
    message: String,
    token_id: Option<String>,
}

/// How the history names an address: of IPv6 the network, as failures are counted.
pub fn peer_text(peer: IpAddr) -> String {
    match (peer.to_canonical(), network(peer)) {
        (IpAddr::V6(address), _) if address.is_loopback() || address.is_unspecified() => address.to_string(),
        (IpAddr::V6(_), network) => format!("{network}/64"),
        (v4 @ IpAddr::V4(_), _) => v4.to_string(),
    }
}

/// Whether a browser says that a page of another site is behind this. Such a page can't read the
/// answer, for nothing here allows it to, nor send a token; it needn't get to try. Pure.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site != "same-origin" && site != "none",
        (None, Some(origin)) => {
            let own = text("host").unwrap_or_default();
            origin.split_once("://").is_none_or(|(_, host)| !host.eq_ignore_ascii_case(own))
        }
        (None, None) => false,
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
    fn a_page_of_another_site_is_told_from_a_program_and_from_a_page_of_ours() {
        for (lines, expected) in [
            (&[][..], false),
            (&[("host", "127.0.0.1:1")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")], false),
            (&[("sec-fetch-site", "cross-site")], true),
            // Another port of this machine is of the same site and another origin.
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "\u{e9}")], true),
            (&[("host", "localhost:1"), ("origin", "http://localhost:1")], false),
            (&[("host", "localhost:1"), ("origin", "http://localhost:2")], true),
            (&[("host", "localhost:1"), ("origin", "https://evil.example")], true),
            (&[("host", "localhost:1"), ("origin", "null")], true),
        ] {
            let mut headers = HeaderMap::new();
            for &(name, value) in lines {
                headers.insert(name, axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(is_of_another_site(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_address_is_named_as_it_is_counted() {
        for (peer, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::1", "::1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ] {
            assert_eq!(peer_text(peer.parse().unwrap()), expected);
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
