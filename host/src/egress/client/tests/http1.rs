//! HTTP/1 services that want something of the host itself: its time, its memory, its slots, or
//! an answer that another request believes. Each ends as its typed error, by its deadline, and
//! leaves the next request as if it had never been.

use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// Runs this for every connection, whatever was asked.
struct Raw {
    at: SocketAddr,
    connections: Arc<Mutex<usize>>,
}

impl Raw {
    async fn start<F, D>(address: &str, run: F) -> Self
    where
        F: Fn(TcpStream) -> D + Send + Sync + 'static,
        D: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let at = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                // It ends in an error where the client hangs up, which is what it should do.
                tokio::spawn(run(socket));
            }
        });
        Self { at, connections }
    }

    fn origin(&self) -> AllowedOrigin {
        AllowedOrigin {
            scheme: "http".into(),
            host: self.at.ip().to_string(),
            port: self.at.port(),
            operator_named: true,
        }
    }

    async fn ask(&self, egress: &Egress, seconds: u32) -> Result<Exchanged, HttpError> {
        let request = HttpRequest { timeout: Some(seconds), ..get(&format!("http://{}/", self.at)) };
        egress.send(&mut exchange_with(resolved(vec![self.origin()])), request).await
    }
}

/// Reads a request's head and throws it away.
async fn asked(socket: &mut TcpStream) -> io::Result<()> {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
        match socket.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => seen.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(())
}

/// Says the head at once and then one piece after another, without end.
async fn forever(
    mut socket: TcpStream,
    head: &'static [u8],
    piece: &'static [u8],
    pause: Option<Duration>,
) -> io::Result<()> {
    asked(&mut socket).await?;
    socket.write_all(head).await?;
    // Many at once where there is no pause, so that the client and not this loop is the limit.
    let block = if pause.is_some() { piece.to_vec() } else { piece.repeat((64 << 10) / piece.len()) };
    loop {
        socket.write_all(&block).await?;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
}

const DRIP: Option<Duration> = Some(Duration::from_millis(20));

/// Head, endless piece, and the pause between two pieces.
type Endless = (&'static str, &'static [u8], &'static [u8], Option<Duration>);

/// Gzip of nothing: however many come, the body stays empty.
const EMPTY_MEMBER: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const NEVER_ENDING: &[Endless] = &[
    ("a head, byte by byte", b"HTTP/1.1 200 OK\r\n", b"x", DRIP),
    ("a status line, byte by byte", b"HTTP/1.1 200 ", b"x", DRIP),
    ("headers, byte by byte", b"HTTP/1.1 200 OK\r\nx: ", b"y", DRIP),
    ("a body, byte by byte", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"x", DRIP),
    ("a body until the close, byte by byte", b"HTTP/1.1 200 OK\r\n\r\n", b"x", DRIP),
    ("chunks, one byte each", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", DRIP),
    ("a chunk's size, byte by byte", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0", DRIP),
    ("processing, slowly", b"", b"HTTP/1.1 102 Processing\r\n\r\n", DRIP),
    (
        "early hints, as fast as they go",
        b"",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n",
        None,
    ),
    ("continue, as fast as it goes", b"", b"HTTP/1.1 100 Continue\r\n\r\n", None),
    ("empty gzip members, slowly", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", EMPTY_MEMBER, DRIP),
    (
        "a gzip file name without end",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\x03",
        b"name",
        DRIP,
    ),
];

#[tokio::test]
async fn an_answer_without_end_is_left_at_the_deadline_and_the_host_can_be_asked_again() {
    let egress = Arc::new(egress());
    let tasks: Vec<_> = (NEVER_ENDING.iter().enumerate())
        .map(|(n, (what, head, piece, pause))| {
            let egress = egress.clone();
            tokio::spawn(async move {
                let kind = AtomicBool::new(true);
                // The first connection misbehaves, the others do not.
                let server = Raw::start(&format!("127.0.1.{}:0", n + 1), move |mut socket| {
                    let bad = kind.swap(false, Ordering::SeqCst);
                    async move {
                        if bad {
                            return forever(socket, head, piece, *pause).await;
                        }
                        asked(&mut socket).await?;
                        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
                    }
                })
                .await;
                let started = Instant::now();
                let error = server.ask(&egress, 1).await.unwrap_err();
                assert_eq!(error, HttpError::Timeout, "{what}");
                assert!(started.elapsed() < Duration::from_secs(15), "{what}: {:?}", started.elapsed());
                assert_eq!(server.ask(&egress, 20).await.unwrap().response.status, 200, "{what}");
                assert_eq!(*server.connections.lock().unwrap(), 2, "{what}");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_hangs_takes_its_own_slots_and_gives_them_back() {
    let egress = Arc::new(egress());
    let hangs = Arc::new(AtomicBool::new(true));
    let still = hangs.clone();
    let bad = Arc::new(
        Raw::start("127.0.0.1:0", move |mut socket| {
            let hangs = still.load(Ordering::SeqCst);
            async move {
                asked(&mut socket).await?;
                if hangs {
                    let _ = socket.read(&mut [0; 1]).await;
                    return Ok(());
                }
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
            }
        })
        .await,
    );
    let good = Server::start_at("127.0.0.2:0", [echo()]).await;
    let hanging: Vec<_> = (0..limits::PER_HOST_CONCURRENCY * 2)
        .map(|_| {
            let (egress, bad) = (egress.clone(), bad.clone());
            tokio::spawn(async move { bad.ask(&egress, 2).await.unwrap_err() })
        })
        .collect();
    while *bad.connections.lock().unwrap() < limits::PER_HOST_CONCURRENCY {
        tokio::task::yield_now().await;
    }
    // All slots of that host are taken, and its neighbour answers at once.
    for _ in 0..10 {
        let request = HttpRequest { timeout: Some(1), ..get(&good.url("/")) };
        egress.send(&mut exchange(&[&good]), request).await.unwrap();
    }
    assert_eq!(*bad.connections.lock().unwrap(), limits::PER_HOST_CONCURRENCY, "no more than its slots");
    for task in hanging {
        assert_eq!(task.await.unwrap(), HttpError::Timeout);
    }
    hangs.store(false, Ordering::SeqCst);
    // A slot that stayed taken would make one of these wait for it in vain.
    let again = (0..limits::PER_HOST_CONCURRENCY).map(|_| bad.ask(&egress, 20));
    assert!(futures_util::future::join_all(again).await.into_iter().all(|got| got.is_ok()));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_never_a_shorter_answer() {
    let cut: &[(&str, &[u8])] = &[
        ("nothing", b""),
        ("half a status line", b"HTTP/1.1 20"),
        ("half a head", b"HTTP/1.1 200 OK\r\ncontent-le"),
        ("half a body", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"),
        ("half a chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"),
        ("no last chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"),
    ];
    for reset in [false, true] {
        for (what, said) in cut {
            let said = said.to_vec();
            let server = Raw::start("127.0.0.1:0", move |mut socket| {
                let said = said.clone();
                async move {
                    asked(&mut socket).await?;
                    socket.write_all(&said).await?;
                    if reset {
                        // A close that throws away what wasn't sent is a RST.
                        socket.set_zero_linger()?;
                    }
                    Ok(())
                }
            })
            .await;
            let error = server.ask(&egress(), 20).await.unwrap_err();
            assert!(matches!(error, HttpError::Protocol(_)), "{what}, reset {reset}: {error:?}");
            // What was sent may have had its effect, so nobody sends it again.
            assert_eq!(*server.connections.lock().unwrap(), 1, "{what}");
        }
    }
    let closes = Raw::start("127.0.0.1:0", |_| std::future::ready(Ok(()))).await;
    let error = closes.ask(&egress(), 20).await.unwrap_err();
    assert!(matches!(error, HttpError::Protocol(_) | HttpError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn what_is_no_http_answer_is_a_protocol_error() {
    let many: String = (0..100_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    for (what, said) in [
        ("a TLS alert", b"\x15\x03\x03\x00\x02\x02\x28".to_vec()),
        ("an SSH banner", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("an SMTP banner", b"220 mail.example ESMTP\r\n".to_vec()),
        ("HTTP/0.9", b"<html>old times</html>".to_vec()),
        ("HTTP/2 without being asked", b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64".to_vec()),
        ("HTTP/3.0", b"HTTP/3.0 200 OK\r\n\r\n".to_vec()),
        ("no status", b"HTTP/1.1 OK\r\n\r\n".to_vec()),
        ("status 99", b"HTTP/1.1 099 Low\r\n\r\n".to_vec()),
        ("status 1000", b"HTTP/1.1 1000 High\r\n\r\n".to_vec()),
        ("zeros", vec![0; 1 << 20]),
        ("a status line of a mebibyte", [b"HTTP/1.1 200 ".as_slice(), &[b'x'; 1 << 20]].concat()),
        ("a header of a mebibyte", [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; 1 << 20]].concat()),
        ("a name of a mebibyte", [b"HTTP/1.1 200 OK\r\n".as_slice(), &[b'x'; 1 << 20]].concat()),
        ("100,000 headers", format!("HTTP/1.1 200 OK\r\n{many}\r\n").into_bytes()),
        ("a folded header", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("a space before the colon", b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n".to_vec()),
        ("a header without colon", b"HTTP/1.1 200 OK\r\ncontent-length\r\n\r\n".to_vec()),
        ("a NUL in a value", b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd".to_vec()),
        ("two lengths in one", b"HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabcd".to_vec()),
        ("a negative length", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_vec()),
        ("a signed length", b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na".to_vec()),
        (
            "a length past 64 bits",
            b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n".to_vec(),
        ),
        ("a chunk size that is none", chunked(b"xyz\r\n")),
        ("a chunk size past 64 bits", chunked(b"10000000000000000\r\nabc")),
        ("a signed chunk size", chunked(b"+1\r\na\r\n0\r\n\r\n")),
        ("a negative chunk size", chunked(b"-1\r\na\r\n0\r\n\r\n")),
        ("a chunk longer than said", chunked(b"1\r\nabc\r\n0\r\n\r\n")),
        ("a chunk extension without end", chunked(&[b"1;".as_slice(), &[b'x'; 1 << 20]].concat())),
        ("trailers without end", chunked(&[b"0\r\n".as_slice(), &b"x: y\r\n".repeat(200_000)].concat())),
    ] {
        let server = Raw::start("127.0.0.1:0", move |mut socket| {
            let said = said.clone();
            async move {
                asked(&mut socket).await?;
                socket.write_all(&said).await?;
                socket.shutdown().await?;
                // Unread bytes would turn the close into a RST.
                tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.map(drop)
            }
        })
        .await;
        let error = server.ask(&egress(), 20).await.unwrap_err();
        assert!(matches!(error, HttpError::Protocol(_)), "{what}: {error:?}");
        assert!(error.to_string().len() < 400, "{what}: {} bytes", error.to_string().len());
    }
}

fn chunked(body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", body].concat()
}

/// An answer in which a second one hides: if its bytes stay in a pooled connection, the next
/// request, perhaps another credential's, takes them for its own.
#[tokio::test]
async fn bytes_after_an_answer_are_never_the_answer_of_the_next_request() {
    let hidden = "HTTP/1.1 200 OK\r\nset-cookie: sid=planted; Path=/\r\ncontent-length: 7\r\n\r\nplanted";
    let length = hidden.len();
    for (what, said) in [
        ("after a length", format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine{hidden}")),
        ("after no body", format!("HTTP/1.1 204 No Content\r\n\r\n{hidden}")),
        ("after a 304", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {length}\r\n\r\n{hidden}")),
        (
            "after the last chunk",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "length and chunks, the length longer",
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
                length + 5
            ),
        ),
        (
            "length and chunks, the chunks longer",
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"
            ),
        ),
        (
            "chunked twice",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "an encoding after chunked",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "a switch nobody asked for",
            format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{hidden}"),
        ),
        ("one more line break", format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\r\n{hidden}")),
    ] {
        let first = AtomicBool::new(true);
        let server = Raw::start("127.0.0.1:0", move |mut socket| {
            let mut said = first.swap(false, Ordering::SeqCst).then(|| said.clone());
            async move {
                loop {
                    asked(&mut socket).await?;
                    match said.take() {
                        Some(said) => socket.write_all(said.as_bytes()).await?,
                        None => {
                            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhonest").await?;
                        }
                    }
                }
            }
        })
        .await;
        let egress = egress();
        // Whether the first one is an answer or an error is not the question here.
        let _ = server.ask(&egress, 2).await;
        for _ in 0..3 {
            let got = server.ask(&egress, 20).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((body(&got.response), got.changes.len()), ("honest", 0), "{what}");
        }
    }
}

/// A service may close a kept connection at any time. Where it had read the request, sending
/// it again could burn a session.
#[tokio::test]
async fn a_request_that_a_kept_connection_swallowed_is_not_sent_again() {
    let seen = Arc::new(Mutex::new(0));
    let count = seen.clone();
    let server = Raw::start("127.0.0.1:0", move |mut socket| {
        let count = count.clone();
        async move {
            asked(&mut socket).await?;
            *count.lock().unwrap() += 1;
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            asked(&mut socket).await?;
            *count.lock().unwrap() += 1;
            Ok(())
        }
    })
    .await;
    let egress = egress();
    server.ask(&egress, 20).await.unwrap();
    let error = server.ask(&egress, 20).await.unwrap_err();
    assert!(matches!(error, HttpError::Protocol(_)), "{error:?}");
    assert_eq!((*seen.lock().unwrap(), *server.connections.lock().unwrap()), (2, 1));
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut encoder, plain).unwrap();
    encoder.finish().unwrap()
}

fn encoded(encoding: &str, body: &[u8]) -> Script {
    let mut raw =
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n", body.len())
            .into_bytes();
    raw.extend_from_slice(body);
    bytes(raw)
}

#[tokio::test]
async fn gzip_that_is_cut_or_followed_by_anything_is_an_error_and_never_a_shorter_answer() {
    let whole = gzip(b"the whole answer");
    let junk = [whole.as_slice(), b"junk after it"].concat();
    let wrong = {
        let mut wrong = whole.clone();
        let at = wrong.len() - 5;
        wrong[at] ^= 1;
        wrong
    };
    for (what, sent) in [
        ("nothing but a header", &whole[..10]),
        ("cut in the data", &whole[..whole.len() - 12]),
        ("cut in the checksum", &whole[..whole.len() - 2]),
        ("a wrong checksum", &wrong),
        ("not gzip", b"plain text".as_slice()),
        ("junk after it", &junk),
    ] {
        let server = Server::start([encoded("gzip", sent)]).await;
        let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await;
        assert!(
            matches!(got, Err(HttpError::Protocol(_))),
            "{what}: {:?}",
            got.map(|got| got.response.body.len())
        );
    }
    // A gzip of several members is one text.
    for encoding in ["gzip", "GZIP", "x-gzip"] {
        let server = Server::start([encoded(encoding, &[whole.as_slice(), &whole].concat())]).await;
        let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap();
        assert_eq!(body(&got.response), "the whole answerthe whole answer");
        assert!(got.response.headers.is_empty(), "{:?}", got.response.headers);
    }
    // Without a body there is nothing to decode, whatever the header says.
    let server = Server::start([encoded("gzip", b"")]).await;
    let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await.unwrap();
    assert_eq!(body(&got.response), "");
}

#[tokio::test]
async fn only_one_layer_of_gzip_is_ever_undone() {
    let once = gzip(&vec![0; 8 << 20]);
    let (twice, plain) = (gzip(&once), b"x".as_slice());
    for (encoding, sent) in [
        ("gzip, gzip", twice.as_slice()),
        ("gzip,gzip", &twice),
        ("gzip, identity", &once),
        ("identity, gzip", &once),
        ("deflate", &once[10..]),
        ("br", plain),
        ("zstd", plain),
        ("compress", plain),
        ("aes128gcm", plain),
        ("", plain),
        ("gzip;q=1", &once),
    ] {
        let server = Server::start([encoded(encoding, sent)]).await;
        let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await;
        assert!(matches!(got, Err(HttpError::Protocol(_))), "{encoding:?}");
    }
    // In two headers, of which a client might see one.
    let mut raw = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-encoding: gzip\r\n".to_vec();
    raw.extend_from_slice(format!("content-length: {}\r\n\r\n", twice.len()).as_bytes());
    raw.extend_from_slice(&twice);
    let server = Server::start([bytes(raw)]).await;
    let got = egress().send(&mut exchange(&[&server]), get(&server.url("/"))).await;
    assert!(matches!(got, Err(HttpError::Protocol(_))), "two headers");
}

/// The highest memory this process ever had, in KiB.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Peaks are of a whole process, so this runs itself again in one of its own.
#[test]
fn no_answer_makes_the_host_take_more_memory_than_its_cap_allows() {
    if !alone("egress::client::tests::http1::no_answer_makes_the_host_take_more_memory_than_its_cap_allows") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // A GiB of zeros: 1 MiB of gzip. Members, because no buffer here should be that large.
        let bomb = gzip(&vec![0; 64 << 20]).repeat(16);
        let nested = gzip(&bomb);
        let egress = egress();
        let honest = Server::start([say("200 OK", "", "fine")]).await;
        egress.send(&mut exchange(&[&honest]), get(&honest.url("/"))).await.unwrap();
        let before = peak_memory();
        for (what, script) in
            [("a bomb", encoded("gzip", &bomb)), ("a bomb in a bomb", encoded("gzip", &nested))]
        {
            let server = Server::start([script]).await;
            let got = egress.send(&mut exchange(&[&server]), get(&server.url("/"))).await;
            match got {
                Err(HttpError::TooLarge(_)) => {}
                // One layer is undone, and what is compressed still can't be searched for secrets.
                Err(HttpError::Protocol(why)) if what == "a bomb in a bomb" => {
                    assert!(why.contains("compressed"), "{why}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        for (what, head, piece) in [
            ("a body", b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), b"x".as_slice()),
            ("chunks", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            ("a header", b"HTTP/1.1 200 OK\r\nx: ", b"x"),
            ("headers", b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
            ("a status line", b"HTTP/1.1 200 ", b"x"),
            ("trailers", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
            ("a chunk extension", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
            ("early hints", b"", b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"),
            ("gzip members", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", EMPTY_MEMBER),
            (
                "a gzip comment",
                b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08\x10\0\0\0\0\0\x03",
                b"comment",
            ),
        ] {
            let server = Raw::start("127.0.0.1:0", move |socket| forever(socket, head, piece, None)).await;
            let error = server.ask(&egress, 1).await.unwrap_err();
            let expected =
                matches!(error, HttpError::Timeout | HttpError::TooLarge(_) | HttpError::Protocol(_));
            assert!(expected, "{what}: {error:?}");
        }
        let grown = peak_memory() - before;
        // What the servers here hold is counted too; a bomb that got through is a GiB.
        assert!(grown < 96 << 10, "{grown} KiB");
    });
}
