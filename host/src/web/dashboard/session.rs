//! Who is signed in: one-time links, sessions and when they end, and what tells a form of ours
//! from a stranger's. A link and a session are 256 bits of chance, of which only a keyed tag is
//! kept, in memory alone: a restart signs everybody out. The clock is given.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::watch;

use crate::credential::{Millis, Secret};
use crate::limits;
use crate::vault::Vault;

/// A moment on two clocks: the steady one stands still while a machine sleeps, the other may be
/// set. Whichever says more time went by is believed.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub steady: Instant,
    pub wall: Millis,
}

impl Moment {
    pub fn now() -> Self {
        Self { steady: Instant::now(), wall: crate::credential::now() }
    }

    fn since(self, earlier: Self) -> Duration {
        let by_wall = Duration::from_millis(self.wall.saturating_sub(earlier.wall));
        self.steady.saturating_duration_since(earlier.steady).max(by_wall)
    }
}

/// What became of something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub tone: Tone,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    UnderWay,
}

/// A session as a page knows it.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Public: what the audit calls it.
    pub id: String,
    /// Stands in each form. Hexadecimal.
    pub csrf: String,
}

struct Session {
    tag: [u8; 32],
    id: String,
    began: Moment,
    used: Moment,
    said: VecDeque<(u32, Said)>,
}

impl Session {
    fn is_over(&self, now: Moment) -> bool {
        now.since(self.began) >= limits::DASHBOARD_SESSION || now.since(self.used) >= limits::DASHBOARD_IDLE
    }
}

#[derive(Default)]
struct Open {
    links: VecDeque<([u8; 32], Moment)>,
    sessions: Vec<Session>,
    last_said: u32,
}

impl Open {
    fn sweep(&mut self, now: Moment) {
        self.links.retain(|(_, made)| now.since(*made) < limits::DASHBOARD_LINK);
        self.sessions.retain(|session| !session.is_over(now));
    }
}

/// Every session there is.
pub struct Sessions {
    vault: Arc<Vault>,
    open: Mutex<Open>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    /// Changes when a message does, or a session ends.
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// Tags of one purpose fit no other.
fn named(purpose: &str, text: &[u8]) -> Vec<u8> {
    [b"keywheel dashboard ", purpose.as_bytes(), b"\0", text].concat()
}

fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(bytes)
}

impl Sessions {
    pub fn new(vault: Arc<Vault>) -> Self {
        let burst = NonZeroU32::new(limits::HTTP_FAILED_SIGN_INS).unwrap_or(NonZeroU32::MIN);
        Self {
            vault,
            open: Mutex::default(),
            failures: RateLimiter::keyed(Quota::per_second(NonZeroU32::MIN).allow_burst(burst)),
            changes: watch::Sender::new(0),
        }
    }

    fn open(&self, now: Moment) -> MutexGuard<'_, Open> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sweep(now);
        open
    }

    /// A link for one use, as the text that goes into its address.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn new_link(&self, now: Moment) -> std::io::Result<Secret> {
        let text = Secret::new(hex::encode(random()?));
        let mut open = self.open(now);
        if open.links.len() >= limits::DASHBOARD_LINKS {
            open.links.pop_front();
        }
        open.links.push_back((self.vault.tag(&named("link", text.expose())), now));
        Ok(text)
    }

    /// Whether a link may still be used. It stays as it is: programs that look at every link in a
    /// message must not use one up.
    pub fn is_link(&self, text: &str, now: Moment) -> bool {
        let tag = self.vault.tag(&named("link", text.as_bytes()));
        self.open(now).links.iter().any(|(known, _)| *known == tag)
    }

    /// Uses a link up. None: there is none, or no longer. Else the new session's cookie and its
    /// public id.
    ///
    /// # Errors
    /// Where the system gives no random bytes; the link stays then.
    pub fn sign_in(&self, text: &str, now: Moment) -> std::io::Result<Option<(Secret, String)>> {
        let (cookie, id) = (Secret::new(hex::encode(random()?)), hex::encode(&random()?[..4]));
        let tag = self.vault.tag(&named("link", text.as_bytes()));
        let mut open = self.open(now);
        let Some(at) = open.links.iter().position(|(known, _)| *known == tag) else { return Ok(None) };
        open.links.remove(at);
        if open.sessions.len() >= limits::DASHBOARD_SESSIONS {
            let longest = open.sessions.iter().enumerate().max_by_key(|(_, session)| now.since(session.used));
            if let Some(at) = longest.map(|(at, _)| at) {
                open.sessions.remove(at);
            }
        }
        open.sessions.push(Session {
            tag: self.vault.tag(&named("session", cookie.expose())),
            id: id.clone(),
            began: now,
            used: now,
            said: VecDeque::new(),
        });
        Ok(Some((cookie, id)))
    }

    /// The session of a cookie. With `used` it counts as used now: by a person, not by a page that
    /// keeps itself up to date.
    pub fn find(&self, cookie: &str, now: Moment, used: bool) -> Option<Signed> {
        let tag = self.vault.tag(&named("session", cookie.as_bytes()));
        let mut open = self.open(now);
        let session = open.sessions.iter_mut().find(|session| session.tag == tag)?;
        if used {
            session.used = now;
        }
        let csrf = hex::encode(self.vault.tag(&named("form", cookie.as_bytes())));
        Some(Signed { id: session.id.clone(), csrf })
    }

    /// Whether a form came from a page of this session.
    pub fn is_form_of(&self, cookie: &str, shown: &str) -> bool {
        hex::decode(shown).is_ok_and(|tag| self.vault.verify_tag(&named("form", cookie.as_bytes()), &tag))
    }

    pub fn is_open(&self, id: &str, now: Moment) -> bool {
        self.open(now).sessions.iter().any(|session| session.id == id)
    }

    pub fn sign_out(&self, id: &str, now: Moment) {
        self.open(now).sessions.retain(|session| session.id != id);
        self.changed();
    }

    /// Ends every session and every link, and says how many sessions there were.
    pub fn sign_out_all(&self, now: Moment) -> usize {
        let mut open = self.open(now);
        open.links.clear();
        let count = open.sessions.drain(..).count();
        drop(open);
        self.changed();
        count
    }

    /// A place for what becomes of something.
    pub fn say(&self, id: &str, said: Said, now: Moment) -> u32 {
        let mut open = self.open(now);
        open.last_said = open.last_said.wrapping_add(1);
        let number = open.last_said;
        if let Some(session) = open.sessions.iter_mut().find(|session| session.id == id) {
            if session.said.len() >= limits::DASHBOARD_MESSAGES {
                session.said.pop_front();
            }
            session.said.push_back((number, said));
        }
        drop(open);
        self.changed();
        number
    }

    /// Puts a newer word in its place.
    pub fn say_again(&self, id: &str, number: u32, said: Said, now: Moment) {
        let mut open = self.open(now);
        let session = open.sessions.iter_mut().find(|session| session.id == id);
        if let Some(place) = session.and_then(|session| session.said.iter_mut().find(|(at, _)| *at == number))
        {
            place.1 = said;
        }
        drop(open);
        self.changed();
    }

    pub fn said(&self, id: &str, number: u32, now: Moment) -> Option<Said> {
        let open = self.open(now);
        let session = open.sessions.iter().find(|session| session.id == id)?;
        session.said.iter().find(|(at, _)| *at == number).map(|(_, said)| said.clone())
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Counts a failed sign-in. False: too many from there.
    pub fn may_fail_again(&self, peer: IpAddr) -> bool {
        if self.failures.len() >= limits::HTTP_PEERS {
            self.failures.retain_recent();
        }
        let peer =
            if self.failures.len() >= limits::HTTP_PEERS { Ipv6Addr::UNSPECIFIED.into() } else { peer };
        self.failures.check_key(&super::super::gate::network(peer)).is_ok()
    }
}

/// Whether a proxy in front of us speaks TLS. Whoever makes this up changes his own cookie's name.
pub fn is_behind_tls(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// With `__Host-` a browser takes the cookie from this very host and over TLS alone.
const SECURE: &str = "__Host-keywheel";
const PLAIN: &str = "keywheel";

fn cookie_name(headers: &HeaderMap) -> &'static str {
    if is_behind_tls(headers) { SECURE } else { PLAIN }
}

/// The session's cookie as the browser showed it. One that stands twice is none: somebody put
/// another beside it.
pub fn shown_cookie(headers: &HeaderMap) -> Option<String> {
    let name = cookie_name(headers);
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut values = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('=').filter(|(found, _)| *found == name))
        .map(|(_, value)| value.to_owned());
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// What sets the cookie; None ends it. It goes with the browser: no date is given.
pub fn set_cookie(headers: &HeaderMap, cookie: Option<&Secret>) -> String {
    let (name, place) = match is_behind_tls(headers) {
        true => (SECURE, "Path=/; Secure"),
        // Ports don't keep cookies apart, so it is at least sent nowhere else on this host.
        false => (PLAIN, "Path=/dashboard"),
    };
    let value = cookie.and_then(|cookie| std::str::from_utf8(cookie.expose()).ok()).unwrap_or_default();
    let end = if cookie.is_some() { "" } else { "; Max-Age=0" };
    format!("{name}={value}; {place}; HttpOnly; SameSite=Strict{end}")
}

/// Whether a page of ours sent this. Browsers that say more than `Origin` must say the same; one
/// that says nothing is not believed.
pub fn is_of_our_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin") {
        return false;
    }
    let (Some(origin), Some(host)) = (text("origin"), text("host")) else { return false };
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let scheme_fits = scheme == "https" || (scheme == "http" && !is_behind_tls(headers));
    scheme_fits && authority.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Arc::new(Vault::from_bytes(&[7; 32]).unwrap()))
    }

    fn start() -> Moment {
        Moment { steady: Instant::now(), wall: 1_700_000_000_000 }
    }

    fn later(moment: Moment, by: Duration) -> Moment {
        Moment { steady: moment.steady + by, wall: moment.wall + by.as_millis() as Millis }
    }

    fn text(secret: &Secret) -> String {
        String::from_utf8(secret.expose().to_vec()).unwrap()
    }

    #[test]
    fn a_link_signs_in_once_within_five_minutes_and_looking_does_not_use_it_up() {
        let (sessions, now) = (sessions(), start());
        let link = text(&sessions.new_link(now).unwrap());
        assert_eq!(link.len(), 64);
        for _ in 0..3 {
            assert!(sessions.is_link(&link, now));
        }
        assert!(sessions.sign_in("00", now).unwrap().is_none());
        let (cookie, id) = sessions.sign_in(&link, now).unwrap().unwrap();
        assert_eq!(sessions.find(&text(&cookie), now, true).unwrap().id, id);
        assert!(!sessions.is_link(&link, now));
        assert!(sessions.sign_in(&link, now).unwrap().is_none());
        assert!(sessions.find(&link, now, true).is_none(), "a link is no cookie");

        let link = text(&sessions.new_link(now).unwrap());
        let second = Duration::from_secs(1);
        assert!(sessions.is_link(&link, later(now, limits::DASHBOARD_LINK - second)));
        assert!(sessions.sign_in(&link, later(now, limits::DASHBOARD_LINK)).unwrap().is_none());
    }

    #[test]
    fn a_session_ends_unused_after_half_an_hour_and_used_after_twelve() {
        let (sessions, now) = (sessions(), start());
        let sign_in = |at| {
            let link = text(&sessions.new_link(at).unwrap());
            text(&sessions.sign_in(&link, at).unwrap().unwrap().0)
        };
        let minute = Duration::from_secs(60);
        let cookie = sign_in(now);
        // A page that keeps itself up to date keeps nobody signed in.
        for minutes in [10, 20, 29] {
            assert!(sessions.find(&cookie, later(now, minute * minutes), false).is_some());
        }
        assert!(sessions.find(&cookie, later(now, minute * 30), false).is_none());
        let cookie = sign_in(now);
        for minutes in (20..720).step_by(20) {
            assert!(sessions.find(&cookie, later(now, minute * minutes), true).is_some(), "{minutes}");
        }
        assert!(sessions.find(&cookie, later(now, minute * 720), true).is_none());
        // A clock that is set ahead, or a machine that slept, ends it as well.
        let cookie = sign_in(now);
        let slept = Moment { wall: now.wall + 31 * 60_000, ..now };
        assert!(sessions.find(&cookie, slept, true).is_none());
    }

    #[test]
    fn links_sessions_and_messages_are_bounded_and_the_oldest_go_first() {
        let (sessions, now) = (sessions(), start());
        let first = text(&sessions.new_link(now).unwrap());
        for _ in 0..limits::DASHBOARD_LINKS {
            sessions.new_link(now).unwrap();
        }
        assert!(!sessions.is_link(&first, now));
        let cookies: Vec<String> = (0..=limits::DASHBOARD_SESSIONS as u64)
            .map(|number| {
                let at = later(now, Duration::from_secs(number));
                let link = text(&sessions.new_link(at).unwrap());
                text(&sessions.sign_in(&link, at).unwrap().unwrap().0)
            })
            .collect();
        let at = later(now, Duration::from_secs(100));
        assert!(sessions.find(&cookies[0], at, false).is_none());
        let id = sessions.find(&cookies[1], at, false).unwrap().id;
        let said = |text: &str| Said { tone: Tone::Good, text: text.into() };
        let numbers: Vec<u32> =
            (0..=limits::DASHBOARD_MESSAGES).map(|_| sessions.say(&id, said("a"), at)).collect();
        assert_eq!(sessions.said(&id, numbers[0], at), None);
        sessions.say_again(&id, numbers[1], said("b"), at);
        assert_eq!(sessions.said(&id, numbers[1], at), Some(said("b")));
        let other = sessions.find(&cookies[2], at, false).unwrap().id;
        assert_eq!(sessions.said(&other, numbers[1], at), None, "each sees what it asked for alone");
        assert_eq!(sessions.sign_out_all(at), limits::DASHBOARD_SESSIONS);
        assert!(sessions.find(&cookies[1], at, false).is_none());
    }

    #[test]
    fn a_form_belongs_to_one_session() {
        let (sessions, now) = (sessions(), start());
        let sign_in = || {
            let link = text(&sessions.new_link(now).unwrap());
            text(&sessions.sign_in(&link, now).unwrap().unwrap().0)
        };
        let (mine, other) = (sign_in(), sign_in());
        let csrf = sessions.find(&mine, now, true).unwrap().csrf;
        assert!(sessions.is_form_of(&mine, &csrf));
        for (cookie, shown) in [(&other, csrf.as_str()), (&mine, ""), (&mine, "zz"), (&mine, &csrf[2..])] {
            assert!(!sessions.is_form_of(cookie, shown), "{shown}");
        }
    }

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in of {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_a_page_of_the_same_origin_may_post() {
        let host = ("host", "127.0.0.1:7878");
        for (of, expected) in [
            (&[host, ("origin", "http://127.0.0.1:7878")][..], true),
            (&[host, ("origin", "http://127.0.0.1:7878"), ("sec-fetch-site", "same-origin")], true),
            (&[host, ("origin", "https://127.0.0.1:7878"), ("x-forwarded-proto", "https")], true),
            (&[host, ("origin", "http://127.0.0.1:7878"), ("x-forwarded-proto", "https")], false),
            // Another port of the same host is the same site, and another origin.
            (&[host, ("origin", "http://127.0.0.1:9999"), ("sec-fetch-site", "same-site")], false),
            (&[host, ("origin", "http://127.0.0.1:9999")], false),
            (&[host, ("origin", "http://127.0.0.1:7878"), ("sec-fetch-site", "cross-site")], false),
            (&[host, ("origin", "http://127.0.0.1:7878"), ("sec-fetch-site", "none")], false),
            (&[host, ("origin", "http://evil.example")], false),
            (&[host, ("origin", "null"), ("sec-fetch-site", "same-origin")], false),
            (&[host, ("origin", "ftp://127.0.0.1:7878")], false),
            (&[host, ("sec-fetch-site", "same-origin")], false),
            (&[host], false),
            (&[("origin", "http://127.0.0.1:7878")], false),
        ] {
            assert_eq!(is_of_our_page(&headers(of)), expected, "{of:?}");
        }
    }

    #[test]
    fn the_cookie_is_bound_to_its_host_behind_tls_and_to_its_path_without() {
        let cookie = Secret::new("c0ffee");
        let plain = set_cookie(&headers(&[]), Some(&cookie));
        assert_eq!(plain, "keywheel=c0ffee; Path=/dashboard; HttpOnly; SameSite=Strict");
        let tls = headers(&[("x-forwarded-proto", "https")]);
        let secure = set_cookie(&tls, Some(&cookie));
        assert_eq!(secure, "__Host-keywheel=c0ffee; Path=/; Secure; HttpOnly; SameSite=Strict");
        assert!(set_cookie(&tls, None).ends_with("; Max-Age=0"));
        for (of, expected) in [
            (&[("cookie", "a=b; keywheel=c0ffee")][..], Some("c0ffee")),
            (&[("cookie", "keywheel=c0ffee; keywheel=dead")], None),
            (&[("cookie", "keywheel=c0ffee"), ("cookie", "keywheel=dead")], None),
            (&[("cookie", "__Host-keywheel=c0ffee")], None),
            (
                &[("cookie", "__Host-keywheel=c0ffee; keywheel=x"), ("x-forwarded-proto", "https")],
                Some("c0ffee"),
            ),
            (&[("cookie", "xkeywheel=c0ffee")], None),
            (&[], None),
        ] {
            assert_eq!(shown_cookie(&headers(of)).as_deref(), expected, "{of:?}");
        }
    }

    #[test]
    fn failed_sign_ins_of_one_network_are_limited() {
        let sessions = sessions();
        let peer: IpAddr = "192.0.2.7".parse().unwrap();
        let tries = (0..limits::HTTP_FAILED_SIGN_INS * 2).filter(|_| sessions.may_fail_again(peer)).count();
        assert!((limits::HTTP_FAILED_SIGN_INS as usize..40).contains(&tries), "{tries}");
        assert!(sessions.may_fail_again("192.0.2.8".parse().unwrap()));
    }
}
