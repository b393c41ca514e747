//! HTTP/2, which a service chooses in the handshake: as good as HTTP/1 where it behaves, and no
//! way to the host's memory or time where it doesn't.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_rustls::server::TlsStream;

use super::tls::{Tls, trusting};
use super::*;

type Stream = TlsStream<TcpStream>;

/// A service that answers each request by this, over HTTP/2 and nothing else.
async fn serve<F, D>(run: F) -> Tls
where
    F: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> D + Clone + Send + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    Tls::start(&["h2"], move |stream| {
        let run = run.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(run(request, respond));
            }
        }
    })
    .await
}

fn fine() -> http::Response<()> {
    http::Response::builder().status(200).body(()).unwrap()
}

fn say_fine(respond: &mut h2::server::SendResponse<Bytes>, text: &'static str) {
    if let Ok(mut body) = respond.send_response(fine(), false) {
        let _ = body.send_data(Bytes::from_static(text.as_bytes()), true);
    }
}

async fn ask(egress: &Egress, server: &Tls, seconds: u32) -> Result<Exchanged, HttpError> {
    let request = HttpRequest { timeout: Some(seconds), cookies: true, ..get(&server.url("/")) };
    egress.send(&mut server.exchange(), request).await
}

#[tokio::test]
async fn cookies_secrets_and_captures_work_over_http2_and_one_connection_does_for_all() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let server = serve(move |request, mut respond| {
        let log = log.clone();
        async move {
            let (head, mut body) = request.into_parts();
            let mut text = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.len());
                text.extend_from_slice(&chunk);
            }
            log.lock().unwrap().push((head, String::from_utf8(text).unwrap()));
            let answer = http::Response::builder()
                .header("set-cookie", "sid=fresh-session-value; Path=/; Secure")
                .header("set-cookie", "second=another-cookie; Path=/")
                .body(())
                .unwrap();
            let mut body = respond.send_response(answer, false).unwrap();
            body.send_data(Bytes::from_static(br#"{"token":"fresh-token-value"}"#), true).unwrap();
        }
    })
    .await;
    let (egress, mut exchange) = (trusting(), server.exchange());
    let mut request = with_secrets(&server.url("/path"), "POST", 0);
    request.capture = vec![capture("refresh", "/token", None)];
    let got = egress.send(&mut exchange, request.clone()).await.unwrap();
    assert_eq!(got.changes.len(), 3, "{:?}", got.changes);
    assert_eq!(body(&got.response), r#"{"token":"[redacted]"}"#);
    // Also many at once, each with what it was given.
    egress.send(&mut exchange, request.clone()).await.unwrap();
    let (mut one, mut two) = (server.exchange(), server.exchange());
    let (first, second) =
        tokio::join!(egress.send(&mut one, request.clone()), egress.send(&mut two, request.clone()));
    assert!(first.is_ok() && second.is_ok());

    let seen = seen.lock().unwrap();
    let cookies = |head: &http::request::Parts| {
        // HTTP/2 may split the line into one field each.
        let fields = head.headers.get_all("cookie").iter().map(|value| value.to_str().unwrap().to_owned());
        fields.collect::<Vec<_>>().join("; ")
    };
    assert_eq!(cookies(&seen[0].0), format!("sid={OLD}"));
    assert_eq!(cookies(&seen[1].0), "sid=fresh-session-value; second=another-cookie");
    for (head, body) in seen.iter() {
        assert_eq!(head.version, http::Version::HTTP_2);
        assert_eq!(head.headers["authorization"], format!("Bearer {TOKEN}"));
        assert_eq!(body, "token-value%2Fwith%2Bspecials%3D");
    }
    assert_eq!(*server.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_stream_that_is_reset_and_a_connection_that_goes_away_end_the_request_and_are_not_repeated() {
    for reason in [
        h2::Reason::INTERNAL_ERROR,
        h2::Reason::REFUSED_STREAM,
        h2::Reason::CANCEL,
        h2::Reason::NO_ERROR,
        h2::Reason::HTTP_1_1_REQUIRED,
    ] {
        for (what, go_away, after_head) in
            [("reset", false, false), ("reset in the body", false, true), ("away", true, false)]
        {
            let requests = Arc::new(AtomicUsize::new(0));
            let count = requests.clone();
            let server = Tls::start(&["h2"], move |stream| {
                let count = count.clone();
                async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_request, mut respond))) = connection.accept().await {
                        count.fetch_add(1, Ordering::SeqCst);
                        if after_head {
                            let mut body = respond.send_response(fine(), false).unwrap();
                            body.send_data(Bytes::from_static(b"half of it"), false).unwrap();
                            body.send_reset(reason);
                        } else if go_away {
                            connection.abrupt_shutdown(reason);
                        } else {
                            respond.send_reset(reason);
                        }
                    }
                }
            })
            .await;
            let error = ask(&trusting(), &server, 20).await.unwrap_err();
            assert!(matches!(error, HttpError::Protocol(_)), "{what} {reason:?}: {error:?}");
            assert_eq!(requests.load(Ordering::SeqCst), 1, "{what} {reason:?}");
        }
    }
}

#[tokio::test]
async fn the_caps_on_headers_and_bodies_hold_over_http2() {
    let over = limits::RESPONSE_BYTES + 1;
    let server = serve(move |request, mut respond| async move {
        let answer = http::Response::builder();
        let answer = match request.uri().path() {
            "/many" => {
                (0..=limits::RESPONSE_HEADERS).fold(answer, |answer, n| answer.header(format!("x-{n}"), "1"))
            }
            "/long" => answer.header("x", "v".repeat(RESPONSE_HEADER_BYTES + 1)),
            "/announced" => answer.header("content-length", over.to_string()),
            "/lies" => answer.header("content-length", "3"),
            _ => answer,
        };
        let Ok(mut body) = respond.send_response(answer.body(()).unwrap(), false) else { return };
        let whole = if request.uri().path() == "/lies" { 10 } else { over };
        let mut sent = 0;
        while sent < whole {
            body.reserve_capacity((whole - sent).min(16 << 10));
            let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { return };
            sent += room;
            if body.send_data(Bytes::from(vec![b'x'; room]), sent >= whole).is_err() {
                return;
            }
        }
    })
    .await;
    let egress = trusting();
    for (path, large) in
        [("/many", false), ("/long", false), ("/lies", false), ("/announced", true), ("/body", true)]
    {
        let error = egress.send(&mut server.exchange(), get(&server.url(path))).await.unwrap_err();
        let expected = match error {
            HttpError::TooLarge(_) => large,
            HttpError::Protocol(_) => !large,
            _ => false,
        };
        assert!(expected, "{path}: {error:?}");
    }
}

/// A frame by hand, for what no library would send.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// `:status: 200` of the static table.
const STATUS_200: &[u8] = &[0x88];

/// Waits for the first request's HEADERS, says this, and repeats that until the client leaves.
async fn forever(stream: Stream, settings: Vec<u8>, once: Vec<u8>, again: Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut buffer = vec![0; 24];
    if read.read_exact(&mut buffer).await.is_err() {
        return;
    }
    let _ = write.write_all(&frame(SETTINGS, 0, 0, &settings)).await;
    let _ = write.write_all(&frame(SETTINGS, 1, 0, &[])).await;
    let _ = write.flush().await;
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            return;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if read.read_exact(&mut payload).await.is_err() {
            return;
        }
        if head[3] == HEADERS {
            break;
        }
    }
    // What the client says further must not fill the socket.
    let drain = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    let _ = write.write_all(&once).await;
    let _ = write.flush().await;
    if !again.is_empty() {
        let block = again.repeat(((64 << 10) / again.len()).max(1));
        while write.write_all(&block).await.is_ok() && write.flush().await.is_ok() {}
    }
    let _ = drain.await;
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
}

/// What is wrong, the settings, what is said once and what without end; and whether the only
/// right end is the deadline.
type Attack = (&'static str, Vec<u8>, Vec<u8>, Vec<u8>, bool);

fn attacks() -> Vec<Attack> {
    let ok = frame(HEADERS, END_HEADERS, 1, STATUS_200);
    let begun = frame(HEADERS, 0, 1, STATUS_200);
    // A literal header without indexing: 7-bit length 1 name, 100 bytes value.
    let header = [&[0, 1, b'x', 100], [b'v'; 100].as_slice()].concat();
    // Incrementally indexed, so that each also grows the decoder's table.
    let indexed = [&[0x40, 1, b'x', 100], [b'v'; 100].as_slice()].concat();
    // Ten thousand times one byte that stands for the entry of 4,000 bytes before it.
    let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e], [b'v'; 4_000].as_slice()].concat();
    let hpack_bomb = [STATUS_200, &entry, &[0xbe; 10_000]].concat();
    let once = Vec::new;
    vec![
        ("nothing", once(), once(), once(), true),
        ("a window that never opens", setting(4, 0), once(), once(), true),
        ("pings", once(), once(), frame(PING, 0, 0, &[1; 8]), true),
        ("settings", once(), once(), frame(SETTINGS, 0, 0, &setting(3, 100)), true),
        ("empty settings", once(), once(), frame(SETTINGS, 0, 0, &[]), true),
        (
            "table sizes",
            once(),
            once(),
            frame(SETTINGS, 0, 0, &[setting(1, 0), setting(1, u32::MAX)].concat()),
            true,
        ),
        ("priorities", once(), once(), frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]), true),
        ("unknown frames", once(), once(), frame(0x77, 0, 1, &[0; 100]), true),
        ("empty data", once(), ok.clone(), frame(DATA, 0, 1, &[]), false),
        ("padded empty data", once(), ok.clone(), frame(DATA, 8, 1, &[2, 0, 0]), false),
        ("one byte of data", once(), ok.clone(), frame(DATA, 0, 1, b"x"), false),
        ("data past the window", once(), ok.clone(), frame(DATA, 0, 1, &[b'x'; 16_384]), false),
        ("data of a stream nobody opened", once(), once(), frame(DATA, 0, 5, b"x"), false),
        ("data before headers", once(), once(), frame(DATA, 0, 1, b"x"), false),
        ("early hints", once(), once(), frame(HEADERS, END_HEADERS, 1, &[8, 3, b'1', b'0', b'3']), false),
        ("trailers after trailers", once(), ok.clone(), frame(HEADERS, END_HEADERS, 1, &header), false),
        ("windows of one", once(), once(), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), false),
        ("windows of one on the stream", once(), once(), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), false),
        ("a window of nothing", once(), frame(WINDOW_UPDATE, 0, 0, &[0; 4]), once(), false),
        (
            "windows past their maximum",
            once(),
            once(),
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            false,
        ),
        (
            "a promise of a push",
            once(),
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82, 0x87, 0x84]),
            once(),
            false,
        ),
        ("empty continuations", once(), begun.clone(), frame(CONTINUATION, 0, 1, &[]), false),
        ("continuations", once(), begun.clone(), frame(CONTINUATION, 0, 1, &header), false),
        ("indexed continuations", once(), begun.clone(), frame(CONTINUATION, 0, 1, &indexed), false),
        ("a continuation of another stream", once(), begun, frame(CONTINUATION, 0, 3, &header), false),
        ("a bomb of the header table", once(), frame(HEADERS, END_HEADERS, 1, &hpack_bomb), once(), false),
        (
            "an index of no entry",
            once(),
            frame(HEADERS, END_HEADERS, 1, &[0xff, 0x80, 0x80, 0x01]),
            once(),
            false,
        ),
        ("headers without status", once(), frame(HEADERS, END_HEADERS, 1, &header), once(), false),
        ("a frame longer than allowed", once(), vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], once(), false),
        ("resets of streams nobody opened", once(), once(), frame(RST_STREAM, 0, 7, &[0; 4]), false),
        ("an even stream", once(), frame(HEADERS, END_HEADERS, 2, STATUS_200), once(), false),
        ("going away and more", once(), frame(GOAWAY, 0, 0, &[0; 8]), frame(PING, 0, 0, &[1; 8]), false),
        (
            "a going away of many words",
            once(),
            frame(GOAWAY, 0, 0, &[[0_u8; 8].as_slice(), &[b'w'; 16_000]].concat()),
            once(),
            false,
        ),
        ("no HTTP/2 at all", once(), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(), once(), false),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_frames_come_the_request_ends_typed_and_in_time_and_others_go_on() {
    let neighbour = serve(|_, mut respond| async move { say_fine(&mut respond, "fine") }).await;
    let egress = trusting();
    let mut all = attacks();
    while !all.is_empty() {
        // A few at once: each waits for its deadline most of the time.
        let some = all.drain(..all.len().min(4)).map(|attack| survive(&egress, &neighbour, attack));
        futures_util::future::join_all(some).await;
    }
}

async fn survive(egress: &Egress, neighbour: &Tls, attack: Attack) {
    let (what, settings, once, again, timeout) = attack;
    let first = Arc::new(AtomicUsize::new(0));
    let server = Tls::start(&["h2"], move |stream| {
        let (settings, once, again) = (settings.clone(), once.clone(), again.clone());
        let turn = first.fetch_add(1, Ordering::SeqCst);
        async move {
            if turn == 0 {
                return forever(stream, settings, once, again).await;
            }
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                say_fine(&mut respond, "fine");
            }
        }
    })
    .await;
    let started = Instant::now();
    let with_body = HttpRequest {
        timeout: Some(2),
        method: "POST".into(),
        body: Some(vec![text(&"x".repeat(100_000))]),
        ..get(&server.url("/"))
    };
    let mut exchange = server.exchange();
    let attack = egress.send(&mut exchange, with_body);
    let others = async {
        for _ in 0..3 {
            let got = ask(egress, neighbour, 20).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(body(&got.response), "fine", "{what}");
        }
    };
    let (got, ()) = tokio::join!(attack, others);
    let error = got.map(|got| got.response.status).expect_err(what);
    let expected = match error {
        HttpError::Timeout => true,
        HttpError::Protocol(_) | HttpError::TooLarge(_) => !timeout,
        _ => false,
    };
    assert!(expected, "{what}: {error:?}");
    assert!(error.to_string().len() < 400, "{what}: {} bytes", error.to_string().len());
    assert!(started.elapsed() < Duration::from_secs(20), "{what}: {:?}", started.elapsed());
}

/// Else a connection that died without a word would hold up every credential of the service, for
/// the pool gives the same one to all.
#[tokio::test]
async fn a_connection_that_fell_silent_is_left_for_a_new_one() {
    let turn = Arc::new(AtomicUsize::new(0));
    let server = Tls::start(&["h2"], move |stream| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if turn == 0 {
                    // Nobody reads or writes it any more, pings included.
                    return std::future::pending().await;
                }
                say_fine(&mut respond, "fine");
            }
        }
    })
    .await;
    let egress = trusting();
    assert_eq!(ask(&egress, &server, 2).await.unwrap_err(), HttpError::Timeout);
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = ask(&egress, &server, 20).await {
        assert!(
            matches!(error, HttpError::Timeout | HttpError::Protocol(_) | HttpError::Connect(_)),
            "{error:?}"
        );
        assert!(Instant::now() < end, "still on the silent connection");
    }
    // One that works is kept.
    ask(&egress, &server, 20).await.unwrap();
    assert_eq!(*server.connections.lock().unwrap(), 2);
}
