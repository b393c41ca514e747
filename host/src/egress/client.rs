//! The shell around the pure parts: resolves, connects, sends, reads and keeps the time. The
//! only place that opens an outward socket. It decides nothing that `policy` could decide.
//!
//! Connections are pooled over credentials, which is what makes a request cheap; three clients
//! keep apart what may not be shared. Each has a resolver that lets through one `Reach` only:
//! public addresses, loopback for `localhost`, or also private ones. The reach follows from
//! origin and operator permission, so a connection that was opened to a private address under
//! a permission sits in a pool that only requests with the same permission for the same host
//! ever ask. An IP literal is its own pool key and is judged before each request, for hyper
//! asks no resolver about it. A client for each credential would be as safe, but would shake
//! hands anew for every attempt.
//!
//! A client holds no state that could cross: no cookie store, no redirects, no proxy, no
//! retries, and authentication that binds to a connection is refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
#[cfg(test)]
use std::future::Ready;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use super::clock::{self, Clocks};
use super::policy::{self, PolicyError, Reach};
use super::restraint::Restraints;
use super::seen;
use super::template::{Filled, Filler, TemplateError};
use super::{
    EgressError, EgressOptions, Exchange, Exchanged, Fingerprint, KeyChange, capture, cookies, newest_of_each,
};
use crate::credential::{self, Key, Millis};
use crate::limits;
use crate::meter::{self, Meter};
use crate::protocol::{Captured, HttpError, HttpRequest, HttpResponse};
use crate::provider::{AllowedOrigin, Resolved};

/// Names and values of an answer's headers together. The largest real ones are cookies of a
/// few KiB each.
const RESPONSE_HEADER_BYTES: usize = 256 << 10;

/// A URL with its secrets. Servers refuse lines of 8 to 64 KiB.
const URL_BYTES: usize = 64 << 10;

/// Connecting with TLS, all addresses of a host together: 10 s. A third of a request's time: past
/// it the host is down.
fn connect_within() -> Duration {
    limits::lease() / 6
}

/// What was sent and the service's machine hasn't confirmed for this part of a lease, the kernel
/// forgets, and the connection with it: also of a host that was killed. A network that was cut
/// would else deliver a request minutes later, when another host has taken the attempt over and
/// the secret in it is spent. A claim was last renewed two thirds of a lease before at the most, so
/// this and connecting end within the rest.
const UNHEARD: u32 = 8;

/// How long an HTTP/2 connection with requests may be silent before it is asked whether it lives,
/// and how long it may take to say so. Together far less than a request's time.
const PING: Duration = Duration::from_secs(5);

/// An idle connection; most servers close theirs after 60 to 75 s.
const IDLE: Duration = Duration::from_secs(55);

/// A timer that is late by this much didn't just wait for its turn.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// For reading what lies in a socket: milliseconds, and a loaded machine is no reason to lose it.
const ARRIVED: Duration = Duration::from_secs(2);

/// Hosts remembered without a request in flight, before the idle ones are forgotten.
const IDLE_GATES: usize = 1_024;

/// Lookups of one name at once. Each takes a thread of a pool of 512 for as long as the system's
/// resolver likes, also after everybody gave up waiting for it.
const LOOKUPS_OF_A_NAME: usize = 8;

/// Addresses of a name that are dialled, of each family. Big services answer with about that
/// many; whoever answers with thousands has this host knock at doors.
const DIALLED: usize = 8;

/// Sent where the plugin sets none; some services refuse requests without.
const USER_AGENT: &str = concat!("keywheel/", env!("CARGO_PKG_VERSION"));

type Looked = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type Lookup = dyn Fn(String) -> Looked + Send + Sync;
type AskSystem = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

type Exchanging = Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send>>;

/// Stands between the egress and the network, for the tools of plugin authors: it answers a
/// request that was composed, judged and filled with secrets like any other, or has it sent with
/// `over_network` and looks on. A daemon has none.
pub type Between = dyn Fn(reqwest::Request, reqwest::Client) -> Exchanging + Send + Sync;

/// In the extensions of a `Between`'s answer: the connection breaks when its body was sent.
#[derive(Debug, Clone, Copy)]
pub struct BreaksOff;

/// What a `Between` answered, as if it had come over the network.
fn arrived(answer: http::Response<Bytes>) -> reqwest::Response {
    if answer.extensions().get::<BreaksOff>().is_none() {
        return answer.into();
    }
    let lost = io::Error::other("the connection was closed in the middle of the answer");
    answer.map(|begun| reqwest::Body::wrap_stream(futures_util::stream::iter([Ok(begun), Err(lost)]))).into()
}

/// Sends what came to a `Between`, and reads the answer whole, up to the cap of any answer.
///
/// # Errors
/// As for any request.
pub async fn over_network(
    request: reqwest::Request,
    client: reqwest::Client,
) -> Result<http::Response<Bytes>, HttpError> {
    let mut answer = client.execute(request).await.map_err(classify)?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(classify)? {
        if body.len() + chunk.len() > limits::RESPONSE_BYTES {
            return Err(HttpError::TooLarge(limits::RESPONSE_BYTES as u64));
        }
        body.extend_from_slice(&chunk);
    }
    let mut whole = http::Response::new(Bytes::from(body));
    *whole.status_mut() = answer.status();
    *whole.headers_mut() = answer.headers().clone();
    Ok(whole)
}

/// How a hop ended, for the counts.
fn outcome_of<T>(answered: &Result<(reqwest::Response, T), HttpError>) -> &'static str {
    match answered {
        Ok((response, _)) => meter::status_class(response.status().as_u16()),
        Err(HttpError::Denied(_) | HttpError::Budget(_)) => "denied",
        Err(HttpError::Dns(_)) => "dns",
        Err(HttpError::Connect(_)) => "connect",
        Err(HttpError::Tls(_)) => "tls",
        Err(HttpError::Timeout) => "timeout",
        Err(HttpError::TooLarge(_) | HttpError::Protocol(_) | HttpError::Other(_)) => "other",
    }
}

/// The HTTP broker of a host; share it in an `Arc`.
pub struct Egress {
    clients: [reqwest::Client; Reach::ALL.len()],
    gates: Gates,
    fingerprint: Arc<Fingerprint>,
    clocks: Mutex<Clocks>,
    restraints: Mutex<Restraints>,
    between: Option<Arc<Between>>,
    meter: Arc<Meter>,
}

impl Egress {
    /// # Errors
    /// A CA file without certificates, or a TLS setup that fails.
    pub fn new(options: EgressOptions, fingerprint: Arc<Fingerprint>) -> Result<Self, EgressError> {
        let ask: Arc<AskSystem> =
            Arc::new(|name: &str| Ok((name, 0).to_socket_addrs()?.map(|at| at.ip()).collect()));
        Self::with_lookup(options, fingerprint, &system_lookup(ask))
    }

    fn with_lookup(
        options: EgressOptions,
        fingerprint: Arc<Fingerprint>,
        lookup: &Arc<Lookup>,
    ) -> Result<Self, EgressError> {
        // reqwest takes the process's provider and panics without one. Whoever came first
        // installed the same: there is no other in the build.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let extra = extra_certificates(options.extra_ca_pem.as_deref())?;
        let build = |reach| build_client(reach, lookup, &extra);
        let [public, loopback, private] = Reach::ALL;
        Ok(Self {
            clients: [build(public)?, build(loopback)?, build(private)?],
            gates: Gates::new(limits::PER_HOST_CONCURRENCY),
            fingerprint,
            clocks: Mutex::default(),
            restraints: Mutex::default(),
            between: None,
            meter: Arc::default(),
        })
    }

    /// Where its requests are counted.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Puts something between this egress and the network.
    #[must_use]
    pub fn with_between(mut self, between: Arc<Between>) -> Self {
        self.between = Some(between);
        self
    }

    /// One request of one call, with nothing kept on the way: for tests of what it captures. When this returns, with an answer or
    /// without, the exchange's jar has whatever was captured. An answer lists in `changes`
    /// what the caller must store durably *before* it hands the answer to the worker; after
    /// an error that is in `exchange.take_changes()`.
    #[cfg(test)]
    pub async fn send(&self, exchange: &mut Exchange, request: HttpRequest) -> Result<Exchanged, HttpError> {
        self.run(exchange, request, None::<fn(Vec<KeyChange>) -> Ready<Result<(), HttpError>>>).await
    }

    /// One request of one call, with its redirects. Changes are kept as they happen: `keep`
    /// stores them durably, and only then the next redirect is followed or the answer returned.
    /// So a host that dies during a later hop loses nothing an earlier one issued. `changes` of
    /// the answer is empty. Where `keep` fails the request fails with its error and the changes
    /// stay in the exchange.
    pub async fn send_keeping<F, K>(
        &self,
        exchange: &mut Exchange,
        request: HttpRequest,
        keep: F,
    ) -> Result<Exchanged, HttpError>
    where
        F: FnMut(Vec<KeyChange>) -> K,
        K: Future<Output = Result<(), HttpError>>,
    {
        self.run(exchange, request, Some(keep)).await
    }

    async fn run<F, K>(
        &self,
        exchange: &mut Exchange,
        request: HttpRequest,
        keep: Option<F>,
    ) -> Result<Exchanged, HttpError>
    where
        F: FnMut(Vec<KeyChange>) -> K,
        K: Future<Output = Result<(), HttpError>>,
    {
        // Boxed: the future of a whole exchange is large, and callers put it into theirs.
        exchange.seen.begin();
        let result = Box::pin(self.follow(exchange, request, keep)).await;
        exchange.seen.end();
        result.map_err(|error| redact_error(exchange, error))
    }

    async fn follow<F, K>(
        &self,
        exchange: &mut Exchange,
        request: HttpRequest,
        mut keep: Option<F>,
    ) -> Result<Exchanged, HttpError>
    where
        F: FnMut(Vec<KeyChange>) -> K,
        K: Future<Output = Result<(), HttpError>>,
    {
        let now = exchange.now();
        let start = Instant::now();
        if start >= exchange.deadline {
            return Err(HttpError::Budget("the call's time is over".to_owned()));
        }
        let wanted = request
            .timeout
            .map_or(limits::REQUEST_WALL, |seconds| Duration::from_secs(seconds.max(1).into()));
        let deadline = exchange.deadline.min(start + wanted.min(limits::REQUEST_WALL));

        capture::check(&request.capture, &exchange.resolved).map_err(denied)?;
        let mut outgoing = Outgoing::prepare(&request, exchange)?;
        let mut keys = seen::keys_of(&request);
        let mut redirects_left = request.redirects.min(policy::MAX_REDIRECTS);
        let mut captured = Vec::new();
        let mut ignored = 0_usize;
        loop {
            if request.cookies {
                let cookies = cookies::chosen(&exchange.jar, &outgoing.url, now);
                keys.extend(cookies.into_iter().map(|(key, ..)| key.to_owned()));
            }
            let sent = exchange.now();
            let began = Instant::now();
            let answered = self.hop(exchange, &outgoing, request.cookies, now, deadline).await;
            if !exchange.service.is_empty() {
                self.meter.request(&exchange.service, outcome_of(&answered), began.elapsed());
            }
            let held_back = matches!(
                answered,
                Err(HttpError::Denied(_) | HttpError::Budget(_) | HttpError::Dns(_) | HttpError::Connect(_))
            );
            if !held_back {
                exchange.seen.sent(&mut keys);
            }
            let (response, permit) = answered?;
            check_headers(response.headers())?;
            let ahead = self.heed(exchange, &outgoing.url, &response, sent);
            ignored += self.absorb(exchange, &outgoing.url, response.headers(), now, ahead, &mut captured);
            keep_changes(exchange, keep.as_mut()).await?;

            if redirects_left > 0
                && let Some(step) = policy::step(response.status(), &outgoing.method)
                && let Some(location) = response.headers().get(header::LOCATION)
            {
                redirects_left -= 1;
                outgoing.redirect(step, location)?;
                continue;
            }
            let exchanged = self
                .finish(exchange, response, &request, &outgoing.url, now, deadline, captured, ignored)
                .await?;
            drop(permit);
            exchange.seen.answered(&request, &exchanged);
            keep_changes(exchange, keep.as_mut()).await?;
            return Ok(Exchanged { response: exchanged, changes: exchange.take_changes() });
        }
    }

    /// Judges and sends one hop, up to the answer's headers.
    async fn hop(
        &self,
        exchange: &mut Exchange,
        outgoing: &Outgoing,
        with_cookies: bool,
        now: Millis,
        deadline: Instant,
    ) -> Result<(reqwest::Response, OwnedSemaphorePermit), HttpError> {
        let resolved = &exchange.resolved;
        let origin = permitted(&outgoing.url, resolved)?;
        let reach = policy::reach(origin, &resolved.private_hosts);
        exchange.requests_left = exchange.requests_left.checked_sub(1).ok_or_else(|| {
            HttpError::Budget(format!(
                "a call may make {} requests, redirects included",
                limits::REQUESTS_PER_CALL
            ))
        })?;

        let mut request = reqwest::Request::new(outgoing.method.clone(), outgoing.url.clone());
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        for field in &outgoing.headers {
            // A name given twice is sent twice.
            request.headers_mut().append(field.name.clone(), field.value.clone());
        }
        if with_cookies {
            let line = cookies::header(&exchange.jar, &outgoing.url, now).map_err(|key| {
                HttpError::Denied(format!("the cookie of key `{key}` holds a byte no header may carry"))
            })?;
            if let Some(line) = line {
                request.headers_mut().insert(header::COOKIE, line);
            }
        }
        if let Some(body) = &outgoing.body {
            *request.body_mut() = Some(body.clone().into());
        } else if outgoing.method == Method::POST
            || outgoing.method == Method::PUT
            || outgoing.method == Method::PATCH
        {
            // Without it some servers answer 411.
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }

        let client = &self.clients[reach as usize];
        let gate = self.gates.of(&origin.host);
        let answered = by(deadline, async move {
            let permit =
                gate.acquire_owned().await.map_err(|_| HttpError::Other("shutting down".to_owned()))?;
            let response = match &self.between {
                None => client.execute(request).await.map_err(classify)?,
                Some(between) => arrived(between(request, client.clone()).await?),
            };
            Ok((response, permit))
        });
        answered.await.ok_or(HttpError::Timeout)?
    }

    /// Takes note of what an answer says of the clocks, and of whether to ask again so soon.
    /// Returns how far the origin's clock is ahead, where it tells.
    fn heed(
        &self,
        exchange: &Exchange,
        url: &Url,
        response: &reqwest::Response,
        sent: Millis,
    ) -> Option<i64> {
        let origin = policy::origin(url, &exchange.resolved.origins).ok()?;
        let (headers, received) = (response.headers(), exchange.now());
        let status = response.status().as_u16();
        // Nearly always there is nothing to note, and nothing that it could lift.
        if !exchange.service.is_empty() && (status == 429 || self.is_restrained()) {
            self.restraints().hear(
                &exchange.service,
                &origin.to_string(),
                status,
                clock::retry_after(headers, received),
                received,
            );
        }
        let ahead = clock::ahead(headers, sent, received)?;
        let mut clocks = self.clocks();
        clocks.hear(&origin.to_string(), ahead, received);
        match clocks.news(received) {
            Some(Some(behind)) => tracing::warn!(
                seconds = behind / 1_000,
                "this host's clock is wrong: the services' is ahead by so much; hint: let it be set by NTP"
            ),
            Some(None) => tracing::info!("this host's clock agrees with the services' again"),
            None => {}
        }
        Some(ahead)
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restraints(&self) -> MutexGuard<'_, Restraints> {
        self.restraints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the services' clocks are ahead of the host's, in milliseconds, where that matters.
    pub fn host_is_behind(&self) -> Option<i64> {
        self.clocks().host_is_behind(credential::now())
    }

    /// Whether any service's origin is left alone, or was not long ago.
    pub fn is_restrained(&self) -> bool {
        !self.restraints().is_empty()
    }

    /// Whether one of a service's origins is to be left alone now, which, and when the caller may
    /// come back.
    pub fn hold(&self, service: &str, origins: &[AllowedOrigin], now: Millis) -> Option<(String, Millis)> {
        let mut restraints = self.restraints();
        if restraints.is_empty() { None } else { restraints.hold(service, &texts(origins), now) }
    }

    /// Whether one of a service's origins answered 429 since then, and what it asked for.
    pub fn limited_since(
        &self,
        service: &str,
        origins: &[AllowedOrigin],
        since: Millis,
    ) -> Option<Option<Millis>> {
        let restraints = self.restraints();
        if restraints.is_empty() { None } else { restraints.heard_since(service, &texts(origins), since) }
    }

    /// The clock was set back by so much.
    pub fn set_back(&self, by: Millis) {
        self.restraints().set_back(by);
    }

    /// Service, origin and until when, for people.
    pub fn left_alone(&self) -> Vec<(String, String, Millis)> {
        self.restraints().standing(credential::now())
    }

    /// Takes the cookies of one hop into the jar and says how many it ignored.
    fn absorb(
        &self,
        exchange: &mut Exchange,
        url: &Url,
        headers: &HeaderMap,
        now: Millis,
        ahead: Option<i64>,
        captured: &mut Vec<Captured>,
    ) -> usize {
        let mut ignored = 0;
        for line in headers.get_all(header::SET_COOKIE) {
            let settled = cookies::receive(line.as_bytes(), url, now, ahead).and_then(|received| {
                let trusted = cookies::is_trustworthy(url);
                let place = cookies::place(&received, &exchange.resolved, &exchange.jar, trusted)?;
                Ok((received, place))
            });
            let Ok((received, cookies::Place::Mapped(name) | cookies::Place::Extra(name))) = settled else {
                ignored += 1;
                continue;
            };
            if received.deletes {
                captured.extend(exchange.delete(&name));
            } else {
                let fingerprint = (self.fingerprint)(&received.secret);
                captured.push(exchange.set(Key {
                    name,
                    fingerprint,
                    secret: received.secret,
                    expires: received.expires,
                    cookie: Some(received.attributes),
                }));
            }
        }
        ignored
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one request; a struct for one call would only rename it"
    )]
    async fn finish(
        &self,
        exchange: &mut Exchange,
        mut response: reqwest::Response,
        request: &HttpRequest,
        url: &Url,
        now: Millis,
        deadline: Instant,
        mut captured: Vec<Captured>,
        ignored: usize,
    ) -> Result<HttpResponse, HttpError> {
        let status = response.status();
        let mut headers = std::mem::take(response.headers_mut());
        let gzip = is_gzip(&headers)?;
        let mut body = by(deadline, read_body(response)).await.ok_or(HttpError::Timeout)??;
        if gzip {
            body = unzip(&body)?;
            headers.remove(header::CONTENT_ENCODING);
            headers.remove(header::CONTENT_LENGTH);
        }
        let mut extras = Vec::new();
        if status.is_success() {
            let known = exchange.redactor();
            let harvest =
                capture::harvest(&request.capture, &request.extras, &mut headers, &mut body, now, known);
            for taken in harvest.taken {
                let fingerprint = (self.fingerprint)(&taken.secret);
                captured.push(exchange.set(Key {
                    name: taken.key,
                    fingerprint,
                    secret: taken.secret,
                    expires: taken.expires,
                    cookie: None,
                }));
            }
            extras.extend(
                (harvest.skipped.into_iter())
                    .map(|(key, reason)| ("capture-skipped".to_owned(), format!("{key}: {reason}"))),
            );
        }
        if ignored > 0 {
            extras.push(("cookies-ignored".to_owned(), ignored.to_string()));
        }

        // From here on nothing may be shown that wasn't redacted.
        let redactor = exchange.redactor();
        let unreadable = |_| HttpError::Protocol(super::redact::TooMuchWork.to_string());
        let body = match redactor.redact(&body).map_err(unreadable)? {
            Cow::Borrowed(_) => body,
            Cow::Owned(redacted) => redacted,
        };
        if body.len() > limits::RESPONSE_BYTES {
            // The marker may be longer than what it stands for.
            return Err(too_large());
        }
        headers.remove(header::SET_COOKIE);
        headers.remove("set-cookie2");
        let mut shown = Vec::with_capacity(headers.len());
        for (name, value) in &headers {
            let value = redactor.redact(value.as_bytes()).map_err(unreadable)?;
            shown.push((
                redactor.redact_text(name.as_str()).into_owned(),
                String::from_utf8_lossy(&value).into_owned(),
            ));
        }
        Ok(HttpResponse {
            status: status.as_u16(),
            url: redactor.redact_text(url.as_str()).into_owned(),
            headers: shown,
            body,
            captured: newest_of_each(captured),
            extras,
        })
    }
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

/// What comes by the deadline. One that was overslept, because the process or the machine was
/// stopped, leaves a moment to take what has arrived meanwhile: it may be the only copy of a
/// new secret, and only waits to be read.
async fn by<F: Future>(deadline: Instant, answer: F) -> Option<F::Output> {
    let mut answer = std::pin::pin!(answer);
    if let Ok(answer) = timeout_at(deadline, &mut answer).await {
        return Some(answer);
    }
    if deadline.elapsed() < OVERSLEPT {
        return None;
    }
    timeout_at(Instant::now() + ARRIVED, answer).await.ok()
}

/// Judges a request as its first hop would, up to the moment it would be sent. Names aren't
/// resolved, so the address behind one is judged by a real request alone.
pub(super) fn judge(request: &HttpRequest, exchange: &mut Exchange) -> Result<Url, HttpError> {
    capture::check(&request.capture, &exchange.resolved).map_err(denied)?;
    let outgoing = Outgoing::prepare(request, exchange)?;
    permitted(&outgoing.url, &exchange.resolved)?;
    Ok(outgoing.url)
}

/// The origin of a URL, where the policy lets a request go there.
fn permitted<'r>(url: &Url, resolved: &'r Resolved) -> Result<&'r AllowedOrigin, HttpError> {
    let origin = policy::origin(url, &resolved.origins).map_err(denied)?;
    let literal = match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    };
    if let Some(ip) = literal {
        policy::allowed_address(ip, origin, &resolved.private_hosts).map_err(denied)?;
    }
    Ok(origin)
}

fn texts(origins: &[AllowedOrigin]) -> Vec<String> {
    origins.iter().map(ToString::to_string).collect()
}

async fn keep_changes<F, K>(exchange: &mut Exchange, keep: Option<&mut F>) -> Result<(), HttpError>
where
    F: FnMut(Vec<KeyChange>) -> K,
    K: Future<Output = Result<(), HttpError>>,
{
    if let Some(keep) = keep
        && !exchange.changes.is_empty()
    {
        // A copy: dropped half-way or failed, the changes are still in the exchange. No
        // deadline here: what was issued is worth waiting for, and the store has its own.
        keep(exchange.changes.clone()).await?;
        exchange.changes.clear();
    }
    Ok(())
}

struct Field {
    name: HeaderName,
    value: HeaderValue,
    /// A secret is in it, or it authenticates.
    bound_to_origin: bool,
}

/// What the next hop sends.
struct Outgoing {
    method: Method,
    url: Url,
    headers: Vec<Field>,
    body: Option<Bytes>,
    body_secret: bool,
}

impl Outgoing {
    fn prepare(request: &HttpRequest, exchange: &mut Exchange) -> Result<Self, HttpError> {
        let method = policy::method(&request.method).map_err(denied)?;
        let resolved = exchange.resolved.clone();
        let mut filler = Filler::new(&resolved, &exchange.jar);

        let filled = filler.url(&request.url, URL_BYTES).map_err(denied)?;
        // The parser's message names the fault, never the text.
        let url = std::str::from_utf8(&filled.bytes)
            .map_err(|_| PolicyError::Url("it is not text".to_owned()))
            .and_then(|text| Url::parse(text).map_err(|fault| PolicyError::Url(fault.to_string())));
        let mut url = url.map_err(denied)?;
        url.set_fragment(None);
        // Before anything is filled in for it: a refused origin shouldn't cost the templates.
        policy::origin(&url, &resolved.origins).map_err(denied)?;

        if request.headers.len() > policy::MAX_HEADERS {
            let (found, allowed) = (request.headers.len(), policy::MAX_HEADERS);
            return Err(HttpError::Denied(format!("{found} request headers, at most {allowed} allowed")));
        }
        let mut room = policy::MAX_HEADER_BYTES;
        let mut headers = Vec::with_capacity(request.headers.len() + 1);
        for (name, template) in &request.headers {
            let name = policy::header_name(name).map_err(denied)?;
            let filled = filler.header(name.as_str(), template, room).map_err(denied)?;
            room = room.checked_sub(filled.bytes.len() + name.as_str().len()).ok_or_else(|| {
                denied(TemplateError::TooLong { what: "header", allowed: policy::MAX_HEADER_BYTES })
            })?;
            headers.push(Field::new(name, filled)?);
        }
        if !headers.iter().any(|field| field.name == header::USER_AGENT) {
            headers.push(Field {
                name: header::USER_AGENT,
                value: HeaderValue::from_static(USER_AGENT),
                bound_to_origin: false,
            });
        }
        let body = match &request.body {
            Some(template) => Some(filler.body(template, limits::REQUEST_BYTES).map_err(denied)?),
            None => None,
        };
        let derived = std::mem::take(&mut filler.derived);
        if !derived.is_empty() {
            exchange.remember(&derived);
        }
        let body_secret = body.as_ref().is_some_and(|body| body.secret);
        Ok(Self { method, url, headers, body: body.map(|body| body.bytes.into()), body_secret })
    }

    /// Turns to the target of a redirect. What was meant for one origin stays there: another
    /// allowed one gets no header and no body with a secret. The hop itself judges the URL.
    fn redirect(&mut self, step: policy::Step, location: &HeaderValue) -> Result<(), HttpError> {
        let malformed = || HttpError::Protocol("the redirect's location is no URL".to_owned());
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| malformed())?;
        if location.len() > URL_BYTES {
            return Err(malformed());
        }
        let mut next = self.url.join(location).map_err(|_| malformed())?;
        next.set_fragment(None);
        self.method = step.method;
        if !step.keeps_body {
            self.body = None;
            self.body_secret = false;
            self.headers.retain(|field| !field.name.as_str().starts_with("content-"));
        }
        if !policy::same_origin(&self.url, &next) {
            if self.body_secret {
                return Err(HttpError::Denied(format!(
                    "a redirect from {} to {} would take a body with a secret along",
                    self.url.origin().ascii_serialization(),
                    next.origin().ascii_serialization(),
                )));
            }
            self.headers.retain(|field| !field.bound_to_origin);
        }
        self.url = next;
        Ok(())
    }
}

impl Field {
    fn new(name: HeaderName, filled: Filled) -> Result<Self, HttpError> {
        let authenticates = name == header::AUTHORIZATION;
        if authenticates && policy::authenticates_connection(&filled.bytes) {
            return Err(HttpError::Denied(
                "NTLM and Negotiate authenticate a connection, which credentials share".to_owned(),
            ));
        }
        let mut value = HeaderValue::from_maybe_shared(Bytes::from(filled.bytes))
            .map_err(|_| denied(TemplateError::HeaderByte(name.as_str().to_owned())))?;
        value.set_sensitive(filled.secret);
        Ok(Self { name, value, bound_to_origin: filled.secret || authenticates })
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), HttpError> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > limits::RESPONSE_HEADERS || bytes > RESPONSE_HEADER_BYTES {
        return Err(HttpError::Protocol(format!(
            "{} answer headers of {bytes} bytes, at most {} of {RESPONSE_HEADER_BYTES} allowed",
            headers.len(),
            limits::RESPONSE_HEADERS,
        )));
    }
    Ok(())
}

/// Whether a body is gzip. Anything but that or nothing couldn't be redacted.
fn is_gzip(headers: &HeaderMap) -> Result<bool, HttpError> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let gzip = match encodings.next() {
        Some(one) if one.eq_ignore_ascii_case(b"gzip") || one.eq_ignore_ascii_case(b"x-gzip") => Some(true),
        Some(one) if one.eq_ignore_ascii_case(b"identity") => Some(false),
        Some(_) => None,
        None => Some(false),
    };
    match (gzip, encodings.next()) {
        (Some(gzip), None) => Ok(gzip),
        _ => Err(HttpError::Protocol(
            "the answer has a content encoding that wasn't asked for; asked for: gzip, once".to_owned(),
        )),
    }
}

/// The body of an answer that a `Between` saw, as the egress would read it.
///
/// # Errors
/// Where the egress would refuse it.
pub fn unpacked(answer: &http::Response<Bytes>) -> Result<Vec<u8>, HttpError> {
    if is_gzip(answer.headers())? { unzip(answer.body()) } else { Ok(answer.body().to_vec()) }
}

/// One layer of gzip, all its members, up to the cap. An answer that ends early is none.
fn unzip(body: &[u8]) -> Result<Vec<u8>, HttpError> {
    let mut plain = Vec::new();
    if body.is_empty() {
        // What HEAD and 304 say of a body they don't bring.
        return Ok(plain);
    }
    // One byte more than allowed tells a bomb from a body that just fits.
    MultiGzDecoder::new(body)
        .take(limits::RESPONSE_BYTES as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|error| HttpError::Protocol(format!("the answer is no whole gzip: {error}")))?;
    if plain.len() > limits::RESPONSE_BYTES { Err(too_large()) } else { Ok(plain) }
}

/// Reads a body up to the cap, which counts again after decompression.
async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, HttpError> {
    let announced = response.content_length().unwrap_or(0);
    if announced > limits::RESPONSE_BYTES as u64 {
        return Err(too_large());
    }
    // Announced lengths cost the service nothing: 64 KiB are taken on trust.
    let mut body = Vec::with_capacity((announced as usize).min(64 << 10));
    while let Some(chunk) = response.chunk().await.map_err(classify)? {
        if body.len() + chunk.len() > limits::RESPONSE_BYTES {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn too_large() -> HttpError {
    HttpError::TooLarge(limits::RESPONSE_BYTES as u64)
}

fn denied(error: impl std::fmt::Display) -> HttpError {
    HttpError::Denied(error.to_string())
}

/// Messages may quote the service (an HTTP/2 peer's debug text, a redirect's host).
fn redact_error(exchange: &Exchange, error: HttpError) -> HttpError {
    let redact = |text: String| match super::redact_text(exchange, &text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(redacted) => redacted,
    };
    match error {
        HttpError::Denied(text) => HttpError::Denied(redact(text)),
        HttpError::Dns(text) => HttpError::Dns(redact(text)),
        HttpError::Connect(text) => HttpError::Connect(redact(text)),
        HttpError::Tls(text) => HttpError::Tls(redact(text)),
        HttpError::Protocol(text) => HttpError::Protocol(redact(text)),
        HttpError::Budget(text) => HttpError::Budget(redact(text)),
        HttpError::Other(text) => HttpError::Other(redact(text)),
        HttpError::Timeout | HttpError::TooLarge(_) => error,
    }
}

/// Finds out what went wrong from the chain of causes; reqwest's own text names URLs.
fn classify(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let mut deepest = String::new();
    let mut cause = error.source();
    while let Some(current) = cause {
        if let Some(refused) = current.downcast_ref::<PolicyError>() {
            return denied(refused);
        }
        if let Some(tls) = tls_error(current) {
            return HttpError::Tls(in_words(tls));
        }
        deepest = current.to_string();
        cause = current.source();
    }
    let deepest = if deepest.contains("close_notify") {
        // rustls explains itself at length; what it means to an operator is this.
        "the connection was closed in the middle of the answer".to_owned()
    } else {
        short(&deepest)
    };
    if error.is_timeout() {
        HttpError::Timeout
    } else if error.is_dns() {
        HttpError::Dns(deepest)
    } else if error.is_connect() {
        HttpError::Connect(deepest)
    } else if error.is_builder() {
        HttpError::Other("the request can't be built".to_owned())
    } else {
        HttpError::Protocol(deepest)
    }
}

/// An `io::Error` hides what it carries from `source`, and TLS errors come in two of them.
fn tls_error<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    while let Some(carried) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = carried;
    }
    error.downcast_ref()
}

/// What is wrong with a service's TLS, for the operator who reads it in a report. A certificate's
/// names are the service's own text, and there may be thousands.
fn in_words(error: &rustls::Error) -> String {
    use rustls::{CertificateError as Bad, Error};
    let day = |at: &rustls::pki_types::UnixTime| {
        i64::try_from(at.as_secs())
            .ok()
            .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .map_or_else(|| "a day long gone or far off".to_owned(), |moment| moment.date().to_string())
    };
    match error {
        Error::InvalidCertificate(bad) => match bad {
            Bad::ExpiredContext { not_after, .. } => format!(
                "the certificate expired on {}; hint: the service has to renew it, unless this machine's clock is wrong",
                day(not_after)
            ),
            Bad::NotValidYetContext { not_before, .. } => format!(
                "the certificate is not valid before {}; hint: is this machine's clock right?",
                day(not_before)
            ),
            Bad::NotValidForNameContext { expected, presented } => format!(
                "the certificate is for {}, not for {}; hint: use a name the certificate has",
                presented_names(presented),
                expected.to_str()
            ),
            Bad::UnknownIssuer => "the certificate is signed by an authority this machine does not trust; hint: if you trust it, name its file as `extra_ca_file` in config.toml".to_owned(),
            Bad::Revoked => "the certificate was revoked; hint: the service has to renew it".to_owned(),
            other => format!("the certificate is not acceptable: {}", short(&other.to_string())),
        },
        Error::InvalidMessage(_) => {
            "the service does not speak TLS here; hint: is it plain http, or another port?".to_owned()
        }
        Error::AlertReceived(alert) => {
            format!("the service ended the handshake: {alert:?}; hint: it may want a client certificate or another TLS version")
        }
        Error::PeerIncompatible(why) => format!(
            "the service and this host have no TLS version or cipher in common ({why:?}), allowed: TLS 1.2 and 1.3; hint: the service has to be updated"
        ),
        other => short(&other.to_string()),
    }
}

fn presented_names(presented: &[String]) -> String {
    // rustls writes them as `DnsName("example.com")`.
    let bare = |name: &String| {
        name.split_once('(')
            .map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'))
            .trim_matches('"')
            .to_owned()
    };
    if presented.is_empty() {
        return "no name".to_owned();
    }
    short(&policy::listed(presented.iter().map(bare)))
}

/// Text that a service may have had a say in: on one line and not much of it.
fn short(text: &str) -> String {
    const CHARACTERS: usize = 256;
    let mut line = String::new();
    for character in text.chars().take(CHARACTERS) {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    if text.chars().nth(CHARACTERS).is_some() {
        line.push('…');
    }
    line
}

/// The certificates to trust beside the system's.
pub(super) fn extra_certificates(pem: Option<&[u8]>) -> Result<Vec<reqwest::Certificate>, EgressError> {
    let Some(pem) = pem else { return Ok(Vec::new()) };
    let certificates =
        reqwest::Certificate::from_pem_bundle(pem).map_err(|error| EgressError::ExtraCa(Some(error)))?;
    if certificates.is_empty() { Err(EgressError::ExtraCa(None)) } else { Ok(certificates) }
}

/// A client that trusts the system's certificates and these.
pub(super) fn trusting(
    extra: &[reqwest::Certificate],
    builder: impl Fn() -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, EgressError> {
    match builder().tls_certs_merge(extra.iter().cloned()).build() {
        Err(error) if extra.is_empty() => {
            // A machine without CA certificates, like a bare container: plain http on
            // loopback must still work, and https fails with its reason.
            tracing::warn!(%error, "no system CA certificates, https will fail; hint: install ca-certificates");
            builder().tls_certs_only([]).build().map_err(EgressError::Client)
        }
        built => built.map_err(EgressError::Client),
    }
}

fn build_client(
    reach: Reach,
    lookup: &Arc<Lookup>,
    extra: &[reqwest::Certificate],
) -> Result<reqwest::Client, EgressError> {
    #[expect(clippy::disallowed_methods, reason = "this is egress, the one place that may")]
    trusting(extra, || {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .dns_resolver(Checked { reach, lookup: lookup.clone() })
            .connect_timeout(connect_within())
            .tcp_user_timeout(limits::lease() / UNHEARD)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(limits::PER_HOST_CONCURRENCY)
            // Every credential of a service shares its HTTP/2 connection: one that died without a
            // word, behind a balancer say, must not hold them all up.
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .http1_max_headers(limits::RESPONSE_HEADERS)
            // It fits a u32 by far; hyper's own 16 KiB are too few for cookies with claims.
            .http2_max_header_list_size(RESPONSE_HEADER_BYTES as u32)
    })
}

/// Resolves a name and lets through only what its reach allows. The connector dials exactly
/// what this returned, so a name that answers differently the next time gains nothing.
struct Checked {
    reach: Reach,
    lookup: Arc<Lookup>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        if reach == Reach::Loopback {
            // RFC 6761: `localhost` is this machine, and no resolver is asked about it.
            let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            return Box::pin(async move { Ok(dialable(both.to_vec())) });
        }
        let looked = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let found = looked.await?;
            // One refused address refuses the name: a mix of public and private is either an
            // attack or a setup whose operator should say what is meant.
            for ip in &found {
                let class = policy::classify(*ip);
                if !reach.allows(class) {
                    return Err(policy::refused(*ip, class).into());
                }
            }
            if found.is_empty() {
                return Err("the name has no address".into());
            }
            Ok(dialable(found))
        })
    }
}

/// The system's resolver, asked on a thread that stays behind where the caller gives up.
fn system_lookup(ask: Arc<AskSystem>) -> Arc<Lookup> {
    let gates = Gates::new(LOOKUPS_OF_A_NAME);
    Arc::new(move |name| {
        let ask = ask.clone();
        let gate = gates.of(&name);
        Box::pin(async move {
            let permit = gate.acquire_owned().await.map_err(io::Error::other)?;
            tokio::task::spawn_blocking(move || {
                let _until_the_thread_is_free = permit;
                ask(&name)
            })
            .await?
        })
    })
}

fn dialable(found: Vec<IpAddr>) -> Addrs {
    let (mut v4, mut v6) = (DIALLED, DIALLED);
    // Port 0: the connector puts the URL's port in.
    Box::new(found.into_iter().filter_map(move |ip| {
        let left = if ip.is_ipv4() { &mut v4 } else { &mut v6 };
        *left = left.checked_sub(1)?;
        Some(SocketAddr::new(ip, 0))
    }))
}

/// What may be in flight of each host at once, over all credentials.
struct Gates {
    permits: usize,
    by_host: Mutex<HashMap<Box<str>, Arc<Semaphore>>>,
}

impl Gates {
    fn new(permits: usize) -> Self {
        Self { permits, by_host: Mutex::default() }
    }

    fn of(&self, host: &str) -> Arc<Semaphore> {
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = by_host.get(host) {
            return gate.clone();
        }
        if by_host.len() >= IDLE_GATES {
            // Held elsewhere means in use or about to be; permits hold their gate too.
            by_host.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        let gate = Arc::new(Semaphore::new(self.permits));
        by_host.insert(host.into(), gate.clone());
        gate
    }
}

#[cfg(test)]
mod tests;
