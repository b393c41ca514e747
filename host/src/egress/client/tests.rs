//! The door against real servers on loopback: hand-written, so that they can misbehave.

use std::collections::VecDeque;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::credential::{CookieAttributes, Jar, Secret};
use crate::protocol::{Capture, Leaf, Part, Source};
use crate::provider::{AllowedOrigin, CookieLocation, Encoding, KeySpec, Location, Resolved};

mod dns;
mod http1;
mod http2;
mod pools;
mod redirects;
mod tls;

const OLD: &str = "old-session-value";
const TOKEN: &str = "token-value/with+specials=";

/// Answers each request with the next script; the last one repeats. A script gets the request
/// as text and gives raw bytes.
struct Server {
    at: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

type Script = Box<dyn FnMut(&str) -> Vec<u8> + Send>;

impl Server {
    async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self::start_at("127.0.0.1:0", scripts).await
    }

    async fn start_at(address: &str, scripts: impl IntoIterator<Item = Script>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let scripts: Arc<Mutex<VecDeque<Script>>> = Arc::new(Mutex::new(scripts.into_iter().collect()));
        let (log, count) = (seen.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                tokio::spawn(Self::serve(socket, scripts.clone(), log.clone()));
            }
        });
        Self { at, seen, connections }
    }

    async fn serve(
        mut socket: TcpStream,
        scripts: Arc<Mutex<VecDeque<Script>>>,
        log: Arc<Mutex<Vec<String>>>,
    ) {
        let mut buffer = Vec::new();
        loop {
            let request = loop {
                if let Some(request) = take_request(&mut buffer) {
                    break request;
                }
                let mut chunk = [0; 4096];
                match socket.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => buffer.extend_from_slice(&chunk[..read]),
                }
            };
            log.lock().unwrap().push(request.clone());
            let answer = {
                let mut scripts = scripts.lock().unwrap();
                let mut script = scripts.pop_front().unwrap();
                let answer = script(&request);
                if scripts.is_empty() {
                    scripts.push_front(script);
                }
                answer
            };
            if answer.is_empty() {
                // Holds the connection open and says nothing more, until the client leaves.
                let _ = socket.read(&mut [0; 1]).await;
                return;
            }
            if socket.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    fn origin(&self) -> AllowedOrigin {
        AllowedOrigin {
            scheme: "http".into(),
            host: Url::parse(&self.url("/")).unwrap().host_str().unwrap().into(),
            port: self.at.port(),
            operator_named: true,
        }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn take_request(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let body = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().unwrap());
    if buffer.len() < end + body {
        return None;
    }
    let request = String::from_utf8_lossy(&buffer[..end + body]).into_owned();
    buffer.drain(..end + body);
    Some(request)
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn say(status: &'static str, headers: &'static str, body: &'static str) -> Script {
    Box::new(move |_| answer(status, headers, body))
}

fn bytes(raw: Vec<u8>) -> Script {
    Box::new(move |_| raw.clone())
}

/// Answers with what was asked, request line and headers and body.
fn echo() -> Script {
    Box::new(|request| {
        let line = request.lines().next().unwrap().to_owned();
        answer("200 OK", &format!("x-echo: {line}\r\n"), request)
    })
}

fn silence() -> Script {
    bytes(Vec::new())
}

fn egress() -> Egress {
    Egress::new(EgressOptions::default(), Arc::new(fingerprint)).unwrap()
}

fn fingerprint(secret: &Secret) -> String {
    format!("fp{}", secret.expose().len())
}

fn spec(name: &str, location: Location) -> KeySpec {
    KeySpec { name: name.into(), location, required: false, reveal: false, help: String::new() }
}

fn resolved(origins: Vec<AllowedOrigin>) -> Resolved {
    let cookie = CookieLocation { name: "sid".into(), domain: "127.0.0.1".into(), path: "/".into() };
    Resolved {
        validate_url: String::new(),
        keys: vec![
            spec("session", Location::Cookie(cookie)),
            spec("token", Location::Token),
            spec("refresh", Location::Token),
        ],
        origins,
        private_hosts: vec![],
        settings: vec![],
        methods: vec![],
    }
}

fn jar() -> Jar {
    let cookie = CookieAttributes {
        name: "sid".into(),
        domain: "127.0.0.1".into(),
        path: "/".into(),
        host_only: true,
        secure: true,
        http_only: true,
        same_site: None,
    };
    let key = |name: &str, value: &str, cookie| Key {
        name: name.into(),
        secret: Secret::new(value),
        fingerprint: fingerprint(&Secret::new(value)),
        expires: None,
        cookie,
    };
    Jar { keys: vec![key("session", OLD, Some(cookie)), key("token", TOKEN, None)] }
}

fn exchange_with(resolved: Resolved) -> Exchange {
    Exchange::new(Arc::new(resolved), jar(), Instant::now() + Duration::from_secs(20))
}

fn exchange(servers: &[&Server]) -> Exchange {
    exchange_with(resolved(servers.iter().map(|server| server.origin()).collect()))
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

fn secret(key: &str, encoding: Encoding) -> Part {
    Part::Secret { key: key.into(), encoding }
}

fn get(url: &str) -> HttpRequest {
    HttpRequest {
        method: "GET".into(),
        url: vec![text(url)],
        headers: vec![],
        body: None,
        cookies: false,
        capture: vec![],
        redirects: 0,
        timeout: None,
        extras: vec![],
    }
}

fn with_secrets(url: &str, method: &str, redirects: u8) -> HttpRequest {
    HttpRequest {
        method: method.into(),
        headers: vec![
            ("Authorization".into(), vec![text("Bearer "), secret("token", Encoding::Raw)]),
            ("X-Plain".into(), vec![text("plain")]),
            ("Content-Type".into(), vec![text("text/plain")]),
        ],
        body: Some(vec![secret("token", Encoding::Form)]),
        cookies: true,
        redirects,
        ..get(url)
    }
}

fn capture(key: &str, pointer: &str, expires: Option<&str>) -> Capture {
    Capture {
        key: key.into(),
        from: Source::JsonPointer(pointer.into()),
        expires_in: expires.map(|pointer| Source::JsonPointer(pointer.into())),
    }
}

fn body(response: &HttpResponse) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

#[tokio::test]
async fn secrets_go_out_and_an_echo_of_them_comes_back_redacted() {
    let server = Server::start([echo()]).await;
    let mut exchange = exchange(&[&server]);
    let mut request = with_secrets("", "POST", 0);
    request.url = vec![text(&server.url("/path?q=")), secret("token", Encoding::Raw)];
    request.headers.push((
        "X-Basic".into(),
        vec![Part::Encoded {
            leaves: vec![
                Leaf::Text("user:".into()),
                Leaf::Secret { key: "token".into(), encoding: Encoding::Raw },
            ],
            encoding: Encoding::Base64,
        }],
    ));
    request.headers.push(("X-Digest".into(), vec![secret("token", Encoding::Sha256Hex)]));
    let got = egress().send(&mut exchange, request).await.unwrap();

    let sent = server.requests().remove(0);
    assert!(sent.starts_with("POST /path?q=token-value%2Fwith%2Bspecials%3D HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("authorization: Bearer token-value/with+specials=\r\n"), "{sent}");
    assert!(sent.contains("cookie: sid=old-session-value\r\n"), "{sent}");
    assert!(sent.ends_with("\r\n\r\ntoken-value%2Fwith%2Bspecials%3D"), "{sent}");

    let shown = format!("{:?} {}", got.response, body(&got.response));
    for value in [OLD, TOKEN, "token-value", "specials"] {
        assert!(!shown.contains(value), "{value} in {shown}");
    }
    let shown = body(&got.response);
    assert!(shown.contains("authorization: Bearer [redacted]\r\n"), "{shown}");
    assert!(shown.contains("x-basic: [redacted]\r\n"), "{shown}");
    assert!(shown.contains("x-digest: [redacted]\r\n"), "{shown}");
    assert!(shown.contains("x-plain: plain\r\n"), "{shown}");
    assert_eq!(got.response.url, server.url("/path?q=[redacted]"));
    assert_eq!(got.changes, []);
}

#[tokio::test]
async fn a_mapped_cookie_is_captured_by_the_mapping_alone_and_removed_from_the_answer() {
    let server = Server::start([
        say(
            "200 OK",
            "set-cookie: sid=fresh-session-value; Path=/; Max-Age=60\r\n\
             set-cookie: lang=de; Path=/\r\n\
             set-cookie: spy=1; Domain=evil.test\r\n",
            "your session is fresh-session-value, it was old-session-value",
        ),
        say("200 OK", "set-cookie: sid=fresh-session-value; Path=/; Max-Age=600\r\n", ""),
        say("200 OK", "set-cookie: sid=; Path=/; Max-Age=0\r\n", ""),
        echo(),
    ])
    .await;
    let (egress, mut exchange) = (egress(), exchange(&[&server]));
    // Asking for no cookies captures all the same.
    let got = egress.send(&mut exchange, get(&server.url("/"))).await.unwrap();
    assert_eq!(body(&got.response), "your session is [redacted], it was [redacted]");
    assert!(got.response.headers.iter().all(|(name, _)| name != "set-cookie"));
    assert_eq!(got.response.extras, [("cookies-ignored".to_owned(), "1".to_owned())]);
    let keys: Vec<&str> = got.response.captured.iter().map(|captured| captured.key.as_str()).collect();
    assert_eq!(keys, ["session", "cookie:lang@127.0.0.1/"]);
    assert!(got.response.captured[0].changed);
    assert_eq!(got.response.captured[0].fingerprint.as_deref(), Some("fp19"));
    let [KeyChange::Set(session), KeyChange::Set(_)] = got.changes.as_slice() else {
        panic!("{:?}", got.changes)
    };
    assert_eq!(session.secret, Secret::new("fresh-session-value"));
    assert_eq!(exchange.jar.get("session"), Some(session));

    // The same value lives longer now.
    let got = egress.send(&mut exchange, get(&server.url("/"))).await.unwrap();
    assert!(
        matches!(got.changes.as_slice(), [KeyChange::Touched(key)] if key.name == "session"),
        "{:?}",
        got.changes
    );

    let got = egress.send(&mut exchange, get(&server.url("/"))).await.unwrap();
    assert_eq!(got.changes, [KeyChange::Deleted("session".into())]);
    assert_eq!(got.response.captured[0].fingerprint, None);

    let request = HttpRequest { cookies: true, ..get(&server.url("/")) };
    let got = egress.send(&mut exchange, request).await.unwrap();
    assert!(body(&got.response).contains("cookie: lang=de\r\n"), "{}", body(&got.response));
    // One connection did for all of it.
    assert_eq!(*server.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn tokens_are_captured_from_a_2xx_answer_and_from_no_other() {
    let tokens = r#"{"access_token":"fresh-access-value","refresh_token":"fresh-refresh-value","expires_in":"60","pin":42}"#;
    let server = Server::start([
        say("200 OK", "", tokens),
        say("400 Bad Request", "", r#"{"access_token":"not-kept-value"}"#),
    ])
    .await;
    let (egress, mut exchange) = (egress(), exchange(&[&server]));
    let request = HttpRequest {
        capture: vec![
            capture("token", "/access_token", Some("/expires_in")),
            capture("refresh", "/refresh_token", None),
        ],
        ..get(&server.url("/token"))
    };
    let before = credential::now();
    let got = egress.send(&mut exchange, request.clone()).await.unwrap();
    assert_eq!(
        body(&got.response),
        r#"{"access_token":"[redacted]","refresh_token":"[redacted]","expires_in":"60","pin":42}"#
    );
    assert_eq!(got.changes.len(), 2);
    assert!(got.response.captured.iter().all(|captured| captured.changed));
    assert!(got.response.captured[0].expires.unwrap() >= before + 60_000);
    assert_eq!(exchange.jar.get("refresh").unwrap().secret, Secret::new("fresh-refresh-value"));

    let got = egress.send(&mut exchange, request).await.unwrap();
    assert_eq!((got.response.status, got.changes.len()), (400, 0));
    assert_eq!(exchange.jar.get("token").unwrap().secret, Secret::new("fresh-access-value"));
}

#[tokio::test]
async fn a_capture_rule_that_can_not_be_kept_is_refused_before_anything_is_sent() {
    let server = Server::start([say("200 OK", "", "{}")]).await;
    let request = HttpRequest { capture: vec![capture("session", "/x", None)], ..get(&server.url("/")) };
    let error = egress().send(&mut exchange(&[&server]), request).await.unwrap_err();
    assert!(matches!(&error, HttpError::Denied(text) if text.contains("token, refresh")), "{error}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_capture_that_found_nothing_says_why() {
    let server = Server::start([say("200 OK", "", "<html>")]).await;
    let request = HttpRequest { capture: vec![capture("token", "/x", None)], ..get(&server.url("/")) };
    let got = egress().send(&mut exchange(&[&server]), request).await.unwrap();
    assert_eq!(
        got.response.extras,
        [("capture-skipped".to_owned(), "token: the body is not JSON".to_owned())]
    );
    assert!(got.response.captured.is_empty());
}

#[tokio::test]
async fn a_redirect_is_followed_only_as_often_as_asked() {
    let server = Server::start([say("302 Found", "location: /next\r\n", "")]).await;
    for (asked, requests) in [(0, 1), (2, 3), (5, 6), (255, 6)] {
        server.seen.lock().unwrap().clear();
        let request = HttpRequest { redirects: asked, ..get(&server.url("/first")) };
        let got = egress().send(&mut exchange(&[&server]), request).await.unwrap();
        assert_eq!(got.response.status, 302);
        assert_eq!(server.requests().len(), requests, "{asked}");
    }
}

#[tokio::test]
async fn a_redirect_within_the_origin_keeps_secrets_and_changes_the_method_as_browsers_do() {
    for (status, method, keeps_body) in
        [("303 See Other", "GET", false), ("307 Temporary Redirect", "POST", true)]
    {
        let headers: &'static str =
            "location: ../next?x#fragment\r\nset-cookie: sid=hop-session-value; Path=/\r\n";
        let server = Server::start([say(status, headers, ""), echo()]).await;
        let mut exchange = exchange(&[&server]);
        let got = egress().send(&mut exchange, with_secrets(&server.url("/a/b"), "POST", 1)).await.unwrap();
        assert_eq!(got.response.url, server.url("/next?x"));
        let sent = server.requests().remove(1);
        assert!(sent.starts_with(&format!("{method} /next?x HTTP/1.1\r\n")), "{sent}");
        assert!(sent.contains("authorization: Bearer "), "{sent}");
        assert!(sent.contains("cookie: sid=hop-session-value\r\n"), "{sent}");
        assert_eq!(sent.contains("content-type"), keeps_body, "{sent}");
        assert_eq!(sent.ends_with("\r\n\r\n"), !keeps_body, "{sent}");
        assert!(!body(&got.response).contains("hop-session-value"));
        assert_eq!(got.changes.len(), 1);
    }
}

#[tokio::test]
async fn a_redirect_to_another_allowed_origin_takes_no_secret_along() {
    let other = Server::start([echo()]).await;
    let location = format!("location: {}\r\n", other.url("/there"));
    let first = Server::start([Box::new(move |_: &str| answer("302 Found", &location, "")) as Script]).await;
    let got = egress()
        .send(&mut exchange(&[&first, &other]), with_secrets(&first.url("/"), "POST", 1))
        .await
        .unwrap();
    assert_eq!(got.response.status, 200);
    let sent = other.requests().remove(0);
    assert!(sent.starts_with("GET /there HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("x-plain: plain\r\n"), "{sent}");
    assert!(!sent.contains("authorization") && !sent.contains("token-value"), "{sent}");
    // Cookies know no port (RFC 6265 section 8.5): the same host gets them, as in browsers.
    assert!(sent.contains("cookie: sid="), "{sent}");
}

#[tokio::test]
async fn a_307_does_not_carry_a_secret_body_to_another_origin() {
    let other = Server::start([echo()]).await;
    let location = format!("location: {}\r\n", other.url("/there"));
    let first =
        Server::start([Box::new(move |_: &str| answer("307 Temporary Redirect", &location, "")) as Script])
            .await;
    let error = egress()
        .send(&mut exchange(&[&first, &other]), with_secrets(&first.url("/"), "POST", 1))
        .await
        .unwrap_err();
    assert!(matches!(error, HttpError::Denied(_)), "{error}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_redirect_to_an_origin_that_is_not_allowed_stops_there() {
    let outside = Server::start([echo()]).await;
    let port = outside.at.port();
    for location in [
        outside.url("/"),
        format!("//127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "https://evil.test/".to_owned(),
        "http://[::ffff:169.254.169.254]/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "data:text/plain,x".to_owned(),
    ] {
        let headers = format!("location: {location}\r\nset-cookie: sid=issued-on-the-way; Path=/\r\n");
        let server =
            Server::start([Box::new(move |_: &str| answer("302 Found", &headers, "")) as Script]).await;
        let mut exchange = exchange(&[&server]);
        let error = egress().send(&mut exchange, with_secrets(&server.url("/"), "GET", 5)).await.unwrap_err();
        assert!(matches!(error, HttpError::Denied(_)), "{location}: {error}");
        assert_eq!(server.requests().len(), 1);
        // What the first hop issued isn't lost with the error.
        assert!(matches!(exchange.take_changes().as_slice(), [KeyChange::Set(key)] if key.name == "session"));
    }
    assert!(outside.requests().is_empty());
}

#[tokio::test]
async fn userinfo_in_a_redirect_is_refused_and_a_missing_location_ends_the_chain() {
    let server = Server::start([
        Box::new(|request: &str| {
            let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
            answer("302 Found", &format!("location: http://user:pass@{host}/\r\n"), "")
        }) as Script,
        say("302 Found", "", "nowhere to go"),
    ])
    .await;
    let request = HttpRequest { redirects: 3, ..get(&server.url("/")) };
    let error = egress().send(&mut exchange(&[&server]), request.clone()).await.unwrap_err();
    assert!(matches!(error, HttpError::Denied(_)), "{error}");
    let got = egress().send(&mut exchange(&[&server]), request).await.unwrap();
    assert_eq!(got.response.status, 302);
}

#[tokio::test]
async fn each_hop_is_kept_before_the_next_one_and_the_answer() {
    let server = Server::start([
        say("302 Found", "location: /two\r\nset-cookie: sid=first-hop-value; Path=/\r\n", ""),
        say("200 OK", "set-cookie: sid=second-hop-value; Path=/\r\n", ""),
    ])
    .await;
    let mut exchange = exchange(&[&server]);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let request = HttpRequest { redirects: 1, ..get(&server.url("/one")) };
    let got = egress()
        .send_keeping(&mut exchange, request.clone(), |changes| {
            kept.lock().unwrap().push((changes, server.requests().len()));
            std::future::ready(Ok(()))
        })
        .await
        .unwrap();
    assert_eq!(got.changes, []);
    let kept = kept.lock().unwrap();
    let told: Vec<(&[u8], usize)> = kept
        .iter()
        .map(|(changes, after)| match changes.as_slice() {
            [KeyChange::Set(key)] => (key.secret.expose(), *after),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [(b"first-hop-value".as_slice(), 1), (b"second-hop-value".as_slice(), 2)]);
}

#[tokio::test]
async fn a_store_that_fails_fails_the_request_and_the_change_stays() {
    let server = Server::start([say(
        "302 Found",
        "location: /two\r\nset-cookie: sid=first-hop-value; Path=/\r\n",
        "",
    )])
    .await;
    let mut exchange = exchange(&[&server]);
    let request = HttpRequest { redirects: 1, ..get(&server.url("/one")) };
    let error = egress()
        .send_keeping(&mut exchange, request, |_| {
            std::future::ready(Err(HttpError::Other("disk full".into())))
        })
        .await
        .unwrap_err();
    assert_eq!(error, HttpError::Other("disk full".into()));
    assert_eq!(server.requests().len(), 1);
    assert_eq!(exchange.changes().len(), 1);
}

#[tokio::test]
async fn requests_and_redirects_draw_on_one_budget() {
    let server = Server::start([say("302 Found", "location: /\r\n", "")]).await;
    let (egress, mut exchange) = (egress(), exchange(&[&server]));
    let request = HttpRequest { redirects: 4, ..get(&server.url("/")) };
    for _ in 0..limits::REQUESTS_PER_CALL / 5 {
        egress.send(&mut exchange, request.clone()).await.unwrap();
    }
    let error = egress.send(&mut exchange, request).await.unwrap_err();
    assert!(matches!(error, HttpError::Budget(_)), "{error}");
    assert_eq!(server.requests().len(), limits::REQUESTS_PER_CALL as usize);
}

#[tokio::test]
async fn a_call_whose_time_is_over_sends_nothing() {
    let server = Server::start([echo()]).await;
    let resolved = Arc::new(resolved(vec![server.origin()]));
    let mut exchange = Exchange::new(resolved, jar(), Instant::now());
    let error = egress().send(&mut exchange, get(&server.url("/"))).await.unwrap_err();
    assert!(matches!(error, HttpError::Budget(_)), "{error}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_server_that_stalls_anywhere_is_left_at_the_deadline() {
    let stall = |head: &'static str| -> Script { Box::new(move |_| head.as_bytes().to_vec()) };
    for script in [
        silence(),
        stall("HTTP/1.1 200 OK\r\nx-slow: "),
        stall("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes."),
        stall("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ] {
        let server = Server::start([script]).await;
        let resolved = Arc::new(resolved(vec![server.origin()]));
        let mut exchange = Exchange::new(resolved, jar(), Instant::now() + Duration::from_millis(150));
        let error = egress().send(&mut exchange, get(&server.url("/"))).await.unwrap_err();
        assert_eq!(error, HttpError::Timeout);
    }
}

#[tokio::test]
async fn an_answer_over_the_cap_is_refused_announced_or_not() {
    let over = limits::RESPONSE_BYTES + 1;
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {over}\r\n\r\n").into_bytes();
    let mut endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    endless.resize(endless.len() + over, b'x');
    let mut fits = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: ".to_vec();
    fits.extend_from_slice(format!("{}\r\n\r\n", limits::RESPONSE_BYTES).as_bytes());
    fits.resize(fits.len() + limits::RESPONSE_BYTES, b'x');
    for (name, script, passes) in [
        ("announced", bytes(announced), false),
        ("endless", bytes(endless), false),
        ("fits", bytes(fits), true),
    ] {
        let server = Server::start([script]).await;
        match egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await {
            Ok(got) => {
                assert!(passes && got.response.body.len() == limits::RESPONSE_BYTES, "{name}")
            }
            Err(error) => {
                assert!(!passes, "{name}: {error}");
                assert_eq!(error, HttpError::TooLarge(limits::RESPONSE_BYTES as u64), "{name}");
            }
        }
    }
}

/// Gzip of zeros, made by hand: one literal, then matches of length 258 at distance 1 in the
/// fixed Huffman code. 13 bits each.
fn gzip_of_zeros(matches: usize) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut pending, mut filled) = (0_u64, 0_u32);
    let mut put = |value: u64, bits: u32| {
        pending |= value << filled;
        filled += bits;
        while filled >= 8 {
            out.push(pending as u8);
            pending >>= 8;
            filled -= 8;
        }
    };
    put(0b011, 3); // last block, fixed codes
    put(u64::from(0x30_u8.reverse_bits()), 8); // literal 0
    for _ in 0..matches {
        put(u64::from(0b1100_0101_u8.reverse_bits()), 8); // length 258
        put(0, 5); // distance 1
    }
    put(0, 7 + 8); // end of block, and to the byte
    out.extend_from_slice(&[0; 8]); // a checksum the cap never reaches
    out
}

#[tokio::test]
async fn a_gzip_bomb_is_stopped_at_the_cap_after_decompression() {
    let bomb = gzip_of_zeros(400_000); // 100 MiB in 650 KB
    let mut raw =
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", bomb.len())
            .into_bytes();
    raw.extend_from_slice(&bomb);
    let server = Server::start([bytes(raw)]).await;
    let error = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap_err();
    assert_eq!(error, HttpError::TooLarge(limits::RESPONSE_BYTES as u64));
    assert!(server.requests()[0].contains("accept-encoding: gzip\r\n"));
}

#[tokio::test]
async fn an_encoding_redaction_could_not_read_is_refused() {
    for encoding in ["br", "gzip, gzip", "zstd"] {
        let raw = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: 3\r\n\r\nabc")
            .into_bytes();
        let server = Server::start([bytes(raw)]).await;
        let error = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap_err();
        assert!(matches!(error, HttpError::Protocol(_)), "{encoding}: {error}");
    }
}

#[tokio::test]
async fn header_floods_and_garbage_are_protocol_errors() {
    let mut flood = "HTTP/1.1 200 OK\r\n".to_owned();
    for n in 0..=limits::RESPONSE_HEADERS {
        flood.push_str(&format!("x-{n}: 1\r\n"));
    }
    flood.push_str("\r\n");
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "v".repeat(RESPONSE_HEADER_BYTES + 1));
    for raw in [
        flood,
        long,
        "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_owned(),
    ] {
        let server = Server::start([bytes(raw.clone().into_bytes())]).await;
        let error = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap_err();
        assert!(matches!(error, HttpError::Protocol(_)), "{error} for {}", &raw[..40]);
    }
}

#[tokio::test]
async fn what_a_plugin_may_not_ask_is_refused_before_it_is_sent() {
    let server = Server::start([echo()]).await;
    let url = server.url("/");
    let header =
        |name: &str, value: Vec<Part>| HttpRequest { headers: vec![(name.into(), value)], ..get(&url) };
    for request in [
        HttpRequest { method: "CONNECT".into(), ..get(&url) },
        get("http://127.0.0.1:1/"),
        get("https://example.com/"),
        get(&url.replace("http://", "http://user@")),
        get(&url.replace("http", "ftp")),
        HttpRequest { url: vec![text("http://"), secret("token", Encoding::Raw)], ..get(&url) },
        header("Host", vec![text("evil.test")]),
        header("Cookie", vec![text("a=b")]),
        header("Range", vec![text("bytes=0-4")]),
        header("X-A", vec![text("a\r\nHost: evil.test")]),
        header("X-A", vec![secret("nope", Encoding::Raw)]),
        header("X-A", vec![secret("refresh", Encoding::Raw)]),
        header("Authorization", vec![text("NTLM abc")]),
        HttpRequest { body: Some(vec![text(&"x".repeat(limits::REQUEST_BYTES + 1))]), ..get(&url) },
        HttpRequest { headers: vec![("x".into(), vec![]); policy::MAX_HEADERS + 1], ..get(&url) },
    ] {
        let error = egress().send(&mut exchange(&[&server]), request.clone()).await.unwrap_err();
        assert!(matches!(error, HttpError::Denied(_)), "{error} for {request:?}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_literal_private_address_is_reached_only_where_the_operator_named_it() {
    let server = Server::start([echo()]).await;
    let mut origin = server.origin();
    origin.scheme = "https".into();
    origin.operator_named = false;
    let request = get(&format!("https://127.0.0.1:{}/", server.at.port()));
    let error = egress().send(&mut exchange_with(resolved(vec![origin])), request).await.unwrap_err();
    assert!(matches!(&error, HttpError::Denied(text) if text.contains("loopback")), "{error}");
    assert_eq!(*server.connections.lock().unwrap(), 0);
}

fn egress_resolving(
    answers: &'static [(&'static str, &'static [&'static str])],
) -> (Egress, Arc<Mutex<usize>>) {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let lookup: Arc<Lookup> = Arc::new(move |name| {
        *count.lock().unwrap() += 1;
        let found = answers.iter().find(|(known, _)| *known == name);
        Box::pin(async move {
            match found {
                Some((_, ips)) => Ok(ips.iter().map(|ip| ip.parse().unwrap()).collect()),
                None => Err(io::Error::other("no such host")),
            }
        })
    });
    (Egress::with_lookup(EgressOptions::default(), Arc::new(fingerprint), &lookup).unwrap(), asked)
}

fn named(server: &Server, host: &str) -> AllowedOrigin {
    AllowedOrigin { host: host.into(), ..server.origin() }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_refused_address_is_denied() {
    let server = Server::start([echo()]).await;
    let (egress, _) = egress_resolving(&[
        ("rebound.example", &["127.0.0.1"]),
        ("mixed.example", &["1.1.1.1", "10.0.0.1"]),
        ("mapped.example", &["::ffff:127.0.0.1"]),
        ("cloud.example", &["169.254.169.254"]),
        ("open.example", &["169.254.169.254"]),
    ]);
    for host in ["rebound.example", "mixed.example", "mapped.example", "cloud.example", "open.example"] {
        let mut resolved = resolved(vec![named(&server, host)]);
        resolved.private_hosts = vec!["open.example".into()];
        let request = get(&format!("http://{host}:{}/", server.at.port()));
        let error = egress.send(&mut exchange_with(resolved), request).await.unwrap_err();
        assert!(matches!(error, HttpError::Denied(_)), "{host}: {error}");
    }
    assert_eq!(*server.connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_connection_opened_under_a_permission_serves_no_one_without_it() {
    let server = Server::start([echo()]).await;
    let (egress, asked) = egress_resolving(&[("nas.example", &["127.0.0.1"])]);
    let request = get(&format!("http://nas.example:{}/", server.at.port()));
    let mut open = resolved(vec![named(&server, "nas.example")]);
    open.private_hosts = vec!["nas.example".into()];
    egress.send(&mut exchange_with(open.clone()), request.clone()).await.unwrap();

    let closed = resolved(vec![named(&server, "nas.example")]);
    let error = egress.send(&mut exchange_with(closed), request.clone()).await.unwrap_err();
    assert!(matches!(error, HttpError::Denied(_)), "{error}");

    egress.send(&mut exchange_with(open), request).await.unwrap();
    assert_eq!(server.requests().len(), 2);
    assert_eq!(*server.connections.lock().unwrap(), 1);
    assert_eq!(*asked.lock().unwrap(), 2);
}

#[tokio::test]
async fn localhost_is_this_machine_and_no_resolver_is_asked() {
    let server = Server::start([echo()]).await;
    let (egress, asked) = egress_resolving(&[("localhost", &["10.0.0.1"])]);
    let request = get(&format!("http://localhost:{}/", server.at.port()));
    let got =
        egress.send(&mut exchange_with(resolved(vec![named(&server, "localhost")])), request).await.unwrap();
    assert_eq!(got.response.status, 200);
    assert_eq!(*asked.lock().unwrap(), 0);
}

#[tokio::test]
async fn failures_to_connect_have_their_own_kinds_and_name_no_secret() {
    let (egress, _) = egress_resolving(&[]);
    let nowhere = AllowedOrigin {
        scheme: "https".into(),
        host: "gone.example".into(),
        port: 443,
        operator_named: false,
    };
    let request = HttpRequest {
        url: vec![text("https://gone.example/?t="), secret("token", Encoding::Raw)],
        ..get("")
    };
    let error = egress.send(&mut exchange_with(resolved(vec![nowhere])), request).await.unwrap_err();
    assert_eq!(error, HttpError::Dns("no such host".into()));

    // A port that was just given back: nobody listens.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let origin =
        AllowedOrigin { scheme: "http".into(), host: "127.0.0.1".into(), port: closed, operator_named: true };
    let request = HttpRequest {
        url: vec![text(&format!("http://127.0.0.1:{closed}/?t=")), secret("token", Encoding::Raw)],
        ..get("")
    };
    let error = egress.send(&mut exchange_with(resolved(vec![origin])), request).await.unwrap_err();
    assert!(matches!(&error, HttpError::Connect(text) if text.contains("refused")), "{error}");
    assert!(!error.to_string().contains("token-value"));

    // Plain HTTP where TLS was due.
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = garbage.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = garbage.accept().await.unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = socket.read(&mut [0; 4096]).await;
    });
    let origin =
        AllowedOrigin { scheme: "https".into(), host: "127.0.0.1".into(), port, operator_named: true };
    let request = get(&format!("https://127.0.0.1:{port}/"));
    let error = egress.send(&mut exchange_with(resolved(vec![origin])), request).await.unwrap_err();
    assert!(matches!(error, HttpError::Tls(_)), "{error:?}");
}

#[tokio::test]
async fn an_error_that_quotes_the_service_is_redacted() {
    let server = Server::start([Box::new(|_: &str| {
        answer("302 Found", &format!("location: https://{OLD}.evil.test/\r\n"), "")
    }) as Script])
    .await;
    let request = HttpRequest { redirects: 1, ..get(&server.url("/")) };
    let error = egress().send(&mut exchange(&[&server]), request).await.unwrap_err();
    assert!(error.to_string().contains("https://[redacted].evil.test"), "{error}");
}

#[tokio::test]
async fn a_post_without_a_body_has_a_length_and_a_head_has_no_body() {
    let server = Server::start([say("200 OK", "", "")]).await;
    let (egress, mut exchange) = (egress(), exchange(&[&server]));
    egress.send(&mut exchange, HttpRequest { method: "POST".into(), ..get(&server.url("/")) }).await.unwrap();
    assert!(server.requests()[0].contains("content-length: 0\r\n"), "{:?}", server.requests());
    assert!(server.requests()[0].contains("user-agent: keywheel/"), "{:?}", server.requests());
    egress.send(&mut exchange, HttpRequest { method: "HEAD".into(), ..get(&server.url("/")) }).await.unwrap();
    assert!(server.requests()[1].starts_with("HEAD / "));
}

#[tokio::test]
async fn a_header_given_twice_is_sent_twice() {
    let server = Server::start([echo()]).await;
    let headers = vec![("X-A".into(), vec![text("1")]), ("x-a".into(), vec![text("2")])];
    let request = HttpRequest { headers, ..get(&server.url("/")) };
    egress().send(&mut exchange(&[&server]), request).await.unwrap();
    let sent = server.requests().remove(0);
    assert!(sent.contains("x-a: 1\r\n") && sent.contains("x-a: 2\r\n"), "{sent}");
}

#[tokio::test]
async fn one_host_serves_as_many_requests_at_once_as_its_gate_lets_through() {
    let gates = Gates::new(limits::PER_HOST_CONCURRENCY);
    let gate = gates.of("a.example");
    let held: Vec<_> =
        (0..limits::PER_HOST_CONCURRENCY).map(|_| gate.clone().try_acquire_owned().unwrap()).collect();
    assert!(gates.of("a.example").try_acquire_owned().is_err());
    assert!(gates.of("b.example").try_acquire_owned().is_ok());
    drop(held);
    assert!(gates.of("a.example").try_acquire_owned().is_ok());
}

#[test]
fn gates_of_idle_hosts_are_forgotten_and_those_in_use_are_not() {
    let gates = Gates::new(limits::PER_HOST_CONCURRENCY);
    let used = gates.of("used.example");
    for n in 0..IDLE_GATES * 2 {
        gates.of(&format!("h{n}.example"));
    }
    assert!(gates.by_host.lock().unwrap().len() <= IDLE_GATES);
    assert!(Arc::ptr_eq(&used, &gates.of("used.example")));
}

#[test]
fn a_ca_file_without_certificates_is_refused() {
    for pem in [b"".as_slice(), b"not pem"] {
        let options = EgressOptions { extra_ca_pem: Some(pem.to_vec()) };
        let error = Egress::new(options, Arc::new(fingerprint)).err().unwrap();
        assert!(matches!(error, EgressError::ExtraCa(_)), "{error}");
    }
}

/// Whether this process runs that test and no other; where not, it runs itself again so, with a
/// proxy in every variable that programs look for one, and checks that it passed.
fn alone(test: &str) -> bool {
    const CHILD: &str = "KEYWHEEL_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "the test runs itself, not a worker")]
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(name, "http://127.0.0.1:1");
    }
    let output = child.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{why}");
    false
}

/// The environment can't be changed in a process with threads, so this runs itself again in
/// one whose proxy variables all point to a closed port.
#[test]
fn a_proxy_in_the_environment_is_ignored() {
    if !alone("egress::client::tests::a_proxy_in_the_environment_is_ignored") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::start([echo()]).await;
        egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap();
    });
}

#[tokio::test]
async fn base64_of_a_cookie_in_an_answer_is_redacted() {
    let server = Server::start([Box::new(|_: &str| {
        let whole = base64::engine::general_purpose::STANDARD.encode(format!("{{\"s\":\"{OLD}\"}}"));
        answer("200 OK", "", &format!("jwt.{whole}.sig"))
    }) as Script])
    .await;
    let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap();
    assert!(body(&got.response).contains("[redacted]"), "{}", body(&got.response));
}

#[tokio::test]
async fn an_exchange_can_run_in_a_task_of_its_own() {
    let server = Server::start([echo()]).await;
    let (egress, mut exchange) = (Arc::new(egress()), exchange(&[&server]));
    let request = get(&server.url("/"));
    let task = tokio::spawn(async move {
        egress.send(&mut exchange, request.clone()).await?;
        egress.send_keeping(&mut exchange, request, async |_changes: Vec<KeyChange>| Ok(())).await
    });
    assert_eq!(task.await.unwrap().unwrap().response.status, 200);
}
