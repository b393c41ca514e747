//! Connections are shared by credentials, and nothing but the connection: no cookie, no
//! authentication and no answer of one credential reaches another.

use super::tls::{Tls, trusting};
use super::*;

const OTHER: &str = "other-session-value";

/// The same service with another account's session and no token.
fn as_other(mut exchange: Exchange) -> Exchange {
    exchange.jar.keys.retain(|key| key.name == "session");
    exchange.jar.keys[0].secret = Secret::new(OTHER);
    exchange
}

fn asks(url: &str) -> HttpRequest {
    HttpRequest { cookies: true, ..get(url) }
}

const TEMPTING: &str = "www-authenticate: Negotiate\r\n\
    www-authenticate: NTLM\r\n\
    www-authenticate: Basic realm=\"x\"\r\n\
    authentication-info: nextnonce=\"abc\"\r\n\
    set-cookie: sid=fresh-of-the-first; Path=/\r\n\
    set-cookie: track=marks-the-first; Path=/\r\n\
    set-cookie2: old=style\r\n\
    clear-site-data: \"cookies\"\r\n\
    alt-svc: h2=\":1\"\r\n\
    strict-transport-security: max-age=31536000\r\n\
    refresh: 0; url=/again\r\n\
    link: </pushed>; rel=preload\r\n\
    connection: keep-alive, upgrade\r\n\
    upgrade: h2c\r\n";

#[tokio::test]
async fn what_an_answer_sets_for_one_credential_is_never_in_the_request_of_another() {
    let server = Server::start([
        say("401 Unauthorized", TEMPTING, ""),
        say("407 Proxy Authentication Required", "proxy-authenticate: NTLM\r\n", ""),
        echo(),
    ])
    .await;
    let (egress, mut first) = (egress(), exchange(&[&server]));
    let got = egress.send(&mut first, with_secrets(&server.url("/"), "GET", 5)).await.unwrap();
    // Nobody answers a challenge, and nothing of what the answer suggests is fetched.
    assert_eq!((got.response.status, got.changes.len(), server.requests().len()), (401, 2, 1));
    let got = egress.send(&mut first, asks(&server.url("/"))).await.unwrap();
    assert_eq!((got.response.status, server.requests().len()), (407, 2));
    egress.send(&mut first, asks(&server.url("/"))).await.unwrap();
    for _ in 0..2 {
        egress.send(&mut as_other(exchange(&[&server])), asks(&server.url("/"))).await.unwrap();
    }
    egress.send(&mut first, asks(&server.url("/"))).await.unwrap();
    let seen = server.requests();
    for own in [&seen[2], &seen[5]] {
        assert!(own.contains("cookie: sid=fresh-of-the-first; track=marks-the-first\r\n"), "{own}");
        assert!(!own.contains("authorization"), "{own}");
    }
    for other in [&seen[3], &seen[4]] {
        assert!(other.contains(&format!("cookie: sid={OTHER}\r\n")), "{other}");
        for foreign in ["authorization", "first", OLD, "token-value", "x-plain", "upgrade", "proxy-"] {
            assert!(!other.contains(foreign), "{foreign} in {other}");
        }
    }
    assert_eq!(*server.connections.lock().unwrap(), 1, "else this test shows nothing");
}

#[tokio::test]
async fn credentials_that_share_an_http2_connection_share_no_header() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let server = Tls::start(&["h2"], move |stream| {
        let log = log.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                log.lock().unwrap().push(format!("{:?} {:?}", request.uri(), request.headers()));
                let answer = http::Response::builder()
                    .header("set-cookie", "track=marks-the-first; Path=/")
                    .header("www-authenticate", "Negotiate")
                    .status(401);
                let _ = respond.send_response(answer.body(()).unwrap(), true);
            }
        }
    })
    .await;
    let egress = trusting();
    let mut first = server.exchange();
    egress.send(&mut first, with_secrets(&server.url("/first"), "GET", 0)).await.unwrap();
    let (mut again, mut others) = (asks(&server.url("/first")), Vec::new());
    again.headers = with_secrets("", "GET", 0).headers;
    for _ in 0..8 {
        others.push(as_other(server.exchange()));
    }
    let all = others.iter_mut().map(|other| egress.send(other, asks(&server.url("/other"))));
    let (mine, theirs) = tokio::join!(egress.send(&mut first, again), futures_util::future::join_all(all));
    assert!(mine.is_ok() && theirs.iter().all(Result::is_ok));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 10);
    for request in seen.iter().filter(|request| request.contains("/other")) {
        for foreign in ["authorization", "first", OLD, "token-value", "x-plain"] {
            assert!(!request.contains(foreign), "{foreign} in {request}");
        }
    }
    assert_eq!(*server.connections.lock().unwrap(), 1, "else this test shows nothing");
}

/// Each answer goes to the request that asked, however many share a connection.
#[tokio::test]
async fn every_credential_gets_its_own_answer() {
    let server = Server::start([echo()]).await;
    let egress = egress();
    let all = (0..200).map(|n| {
        let (egress, server) = (&egress, &server);
        async move {
            let mut exchange = exchange(&[server]);
            let got = egress.send(&mut exchange, get(&server.url(&format!("/{n}")))).await.unwrap();
            assert!(body(&got.response).starts_with(&format!("GET /{n} HTTP/1.1\r\n")));
        }
    });
    futures_util::future::join_all(all).await;
    assert!(*server.connections.lock().unwrap() <= limits::PER_HOST_CONCURRENCY);
}
