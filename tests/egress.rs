//! What a user sees of a service that is down, hostile or not who it says it is: a real daemon
//! and real plugins against services on loopback. Nothing of it may make a credential dead, and
//! nothing may keep the daemon from serving the others. Certificates are made at run time.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::harness::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

fn for_name(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).expect("a name")
}

fn server_config(params: &CertificateParams, signer: Option<&Authority>) -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let certificate = match signer {
        Some(signer) => params.signed_by(&key, signer),
        None => params.self_signed(&key),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("a certificate").der().clone()], key);
    Arc::new(config.expect("a key that fits"))
}

/// Runs this for every connection, in threads that end with the test process.
fn listen(at: &str, run: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(at).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let run = Arc::new(run);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let run = run.clone();
            // Keywheel hangs up on some of them, which is as it should be.
            std::thread::spawn(move || drop(run(stream)));
        }
    });
    port
}

/// The TLS front of a plain service: passes bytes both ways.
fn tls_front(config: Arc<ServerConfig>, service: &Service) -> String {
    let behind = service.url.strip_prefix("http://").expect("a plain service").to_owned();
    let port = listen("127.0.0.1:0", move |stream| {
        stream.set_read_timeout(Some(SOON))?;
        let connection = ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
        let mut secure = StreamOwned::new(connection, stream);
        let request = read_request(&mut secure)?;
        let mut plain = TcpStream::connect(&behind)?;
        plain.write_all(&request)?;
        let mut answer = Vec::new();
        plain.read_to_end(&mut answer)?;
        secure.write_all(&answer)?;
        secure.conn.send_close_notify();
        secure.flush()
    });
    format!("https://127.0.0.1:{port}")
}

/// A request's head; the guests send no bodies.
fn read_request(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(request)
}

/// A home whose daemon trusts this authority besides the system's.
fn home_trusting(authority: &Authority) -> TestHome {
    let home = TestHome::new();
    let file = home.outside().join("authority.pem");
    fs::write(&file, authority.pem()).expect("a file");
    let config = format!("extra_ca_file = {file:?}\n");
    fs::write(home.path().join("config.toml"), config).expect("the configuration");
    home
}

fn add(home: &TestHome, id: &str, guest: &str, url: &str, session: &str) {
    let (base_url, keys) = (format!("base_url={url}"), format!("session={session}"));
    home.add(id, guest, &keys, &["--set", &base_url, "--every", "1h"]);
}

/// It says nothing of the credential, which keeps its secret and is asked again by itself.
#[track_caller]
fn assert_unknown(home: &TestHome, id: &str, report: &Value) {
    assert_eq!(report["status"], "unreachable", "{id}: {report}");
    assert_eq!(report["meta"]["verdict"], "unknown", "{id}: {report}");
    let shown = home.json(&["credential", "show", id]);
    assert_eq!(shown["credential"]["currentGeneration"], 1, "{shown}");
    assert!(shown["credential"]["monitor"]["nextDueAt"].is_string(), "{shown}");
}

#[test]
fn sessions_are_kept_over_https_with_an_authority_of_the_operators() {
    let ours = authority("Ours");
    let (home, service) = (home_trusting(&ours), Service::start(OldSession::Dies));
    home.drop_plugin(&plugin("http-session"));
    home.drop_plugin(&guest("well_behaved"));
    let url = tls_front(server_config(&for_name("127.0.0.1"), Some(&ours)), &service);
    let _daemon = home.serve();

    let session = service.issue();
    let base_url = format!("base_url={url}");
    let settings = ["--set", "validate_path=/check", "--set", "refresh_path=/rotate"];
    let arguments = [&["--set", &base_url][..], &settings, &["--set", "commit_class=burn-on-issue"]].concat();
    home.add("ann", "http-session", &format!("session={session}"), &arguments);
    home.wait_for_reports("ann", 1);
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");

    add(&home, "bob", "well-behaved", &url, &service.issue());
    home.wait_for_reports("bob", 1);
    for _ in 0..3 {
        let report = home.json(&["credential", "rotate", "bob"]);
        assert_eq!(
            (&report["status"], &report["meta"]["rotated"]),
            (&"success".into(), &true.into()),
            "{report}"
        );
    }
    let exported = home.run(&["credential", "export", "bob", "--format", "json"]).ok().json();
    assert!(service.is_alive(exported["session"]["value"].as_str().expect("a value")));
    // A dead session is dead over https as well, by the service's word.
    add(&home, "eve", "well-behaved", &url, &random_secret());
    let report = &home.wait_for_reports("eve", 1)[0];
    assert_eq!(report["status"], "validation_failed", "{report}");
}

#[test]
fn a_service_whose_tls_is_wrong_is_unreachable_and_the_report_says_what_is_wrong() {
    let (ours, stranger) = (authority("Ours"), authority("A stranger"));
    let (home, service) = (home_trusting(&ours), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let good = for_name("127.0.0.1");
    let mut expired = good.clone();
    (expired.not_before, expired.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 2, 3));
    let mut early = good.clone();
    (early.not_before, early.not_after) = (date_time_ymd(2999, 1, 2), date_time_ymd(3000, 1, 1));
    let port = listen("127.0.0.1:0", |mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    let plain = format!("https://127.0.0.1:{port}");
    let front = |params: &CertificateParams, signer| tls_front(server_config(params, signer), &service);
    let table = [
        (
            "wrong-name",
            front(&for_name("other.example"), Some(&ours)),
            "is for other.example, not for 127.0.0.1",
        ),
        ("expired", front(&expired, Some(&ours)), "expired on 2020-02-03"),
        ("early", front(&early, Some(&ours)), "not valid before 2999-01-02"),
        ("self-signed", front(&good, None), "an authority this machine does not trust"),
        ("stranger", front(&good, Some(&stranger)), "an authority this machine does not trust"),
        ("plain", plain, "does not speak TLS"),
    ];
    let _daemon = home.serve();
    for (id, url, _) in &table {
        add(&home, id, "well-behaved", url, &service.issue());
    }
    for (id, _, words) in &table {
        let report = home.wait_for_reports(id, 1).remove(0);
        assert_unknown(&home, id, &report);
        let message = report["message"].as_str().expect("a message");
        assert!(message.contains(words) && message.len() < 400, "{id}: {message}");
    }
    assert_eq!(service.count("/check"), 0, "no request left before the certificate was right");
}

/// Services that never come to an end, each in its own way, and one that works.
#[test]
fn services_that_never_finish_end_as_unknown_while_another_is_served_on_time() {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    let endless = |head: &'static [u8], piece: &'static [u8], pause: u64| {
        let port = listen("127.0.0.2:0", move |mut stream| {
            read_request(&mut stream)?;
            stream.write_all(head)?;
            let block = if pause > 0 { piece.to_vec() } else { piece.repeat(1_000) };
            loop {
                stream.write_all(&block)?;
                std::thread::sleep(Duration::from_millis(pause));
            }
        });
        format!("http://127.0.0.2:{port}")
    };
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".as_slice();
    let table = [
        ("never-accepts", {
            let listener = TcpListener::bind("127.0.0.2:0").expect("a free port");
            let port = listener.local_addr().expect("an address").port();
            // The kernel takes the connection, and nobody ever looks at it.
            std::mem::forget(listener);
            format!("http://127.0.0.2:{port}")
        }),
        ("slow-head", endless(b"HTTP/1.1 200 OK\r\nx: ", b"y", 100)),
        ("slow-body", endless(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x", 100)),
        ("slow-chunks", endless(chunked, b"1\r\nx\r\n", 100)),
        ("fast-hints", endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 1)),
    ];
    let works = Service::start(OldSession::Stays);
    let daemon = home.serve();
    for (id, url) in &table {
        add(&home, id, "well-behaved", url, &random_secret());
    }
    let mut served = Duration::ZERO;
    home.add_session("works", "well-behaved", &works, &["--every", "1s"]);
    let begun = std::time::Instant::now();
    // While they hang the neighbour keeps its pace, on the same worker.
    while served < Duration::from_secs(10) {
        let before = works.count("/check");
        wait_until(SOON, "the neighbour is served", || (works.count("/check") > before).then_some(()));
        served = begun.elapsed();
    }
    for (id, _) in &table {
        // A request has 30 s; nothing shorter can be asked for here.
        let report = wait_until(Duration::from_secs(90), &format!("`{id}` is reported"), || {
            home.reports(id).into_iter().next()
        });
        assert_unknown(&home, id, &report);
        assert!(
            report["message"].as_str().is_some_and(|text| text.contains("no answer in time")),
            "{id}: {report}"
        );
    }
    assert!(home.reports("works").iter().all(|report| report["status"] == "success"));
    assert!(daemon.log().len() < 64 << 10, "a service can't fill the log");
}

#[test]
fn hostile_answers_end_as_unknown_and_leave_the_daemon_as_it_was() {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    let zeros = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![0; 64 << 20]).expect("memory");
        encoder.finish().expect("memory").repeat(16)
    };
    let says = |head: &str, body: Vec<u8>| {
        let whole = [head.as_bytes(), &body].concat();
        let port = listen("127.0.0.1:0", move |mut stream| {
            read_request(&mut stream)?;
            stream.write_all(&whole)
        });
        format!("http://127.0.0.1:{port}")
    };
    let headers: String = (0..100_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cut = zeros[..zeros.len() / 2].to_vec();
    let table = [
        ("bomb", says("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", zeros.clone())),
        ("nested", says("HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\n\r\n", zeros.clone())),
        ("cut", says("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", cut)),
        ("brotli", says("HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\n", zeros)),
        ("headers", says("HTTP/1.1 200 OK\r\n", headers.into_bytes())),
        ("one-header", says("HTTP/1.1 200 OK\r\nx: ", vec![b'x'; 1 << 20])),
        ("ssh", says("SSH-2.0-OpenSSH_9.9\r\n", vec![])),
        ("chunk-size", says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", vec![])),
        ("two-lengths", says("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", vec![])),
    ];
    let works = Service::start(OldSession::Stays);
    let daemon = home.serve();
    home.add_session("works", "well-behaved", &works, &["--every", "1s"]);
    home.wait_for_reports("works", 2);
    let before = memory(daemon.pid(), "VmHWM:");
    for (id, url) in &table {
        add(&home, id, "well-behaved", url, &random_secret());
    }
    for (id, _) in &table {
        let report = home.wait_for_reports(id, 1).remove(0);
        assert_unknown(&home, id, &report);
        assert!(report["message"].as_str().is_some_and(|text| text.len() < 400), "{id}: {report}");
    }
    let grown = memory(daemon.pid(), "VmHWM:") - before;
    // Nine answers at once, at 2 MiB each; one bomb that got through would be a GiB.
    assert!(grown < 96 << 10, "the daemon's peak grew by {grown} KiB");
    let count = home.reports("works").len();
    home.wait_for_reports("works", count + 2);
}

/// A line of a process's status in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn no_spelling_of_a_metadata_address_is_reached_from_a_setting() {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    for (n, host) in [
        "169.254.169.254",
        "169.254.169.254.",
        "2852039166",
        "0xA9FEA9FE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169%2e254.169.254",
        "\u{ff11}\u{ff16}\u{ff19}.254.169.254",
        "169\u{3002}254.169.254",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "[::]",
        "[::127.0.0.1]",
    ]
    .iter()
    .enumerate()
    {
        let (id, base_url) = (format!("c{n}"), format!("base_url=http://{host}"));
        let arguments = ["credential", "add", &id, "--service", "well-behaved", "--set", &base_url];
        let added = home.run_with_input(&arguments, "session=made-up");
        if added.code() != 0 {
            assert_eq!(added.code(), 65, "{host}: {added:?}");
            continue;
        }
        let report = home.wait_for_reports(&id, 1).remove(0);
        let message = report["message"].as_str().expect("a message");
        assert!(message.contains("can't be reached"), "{host}: {report}");
        assert_ne!(report["status"], "success", "{host}: {report}");
        assert_ne!(report["status"], "validation_failed", "{host}: {report}");
    }
}

/// A proxy would see every request, and resolve names past every check of addresses.
#[test]
fn a_proxy_in_the_daemons_environment_is_not_asked() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let port = listen("127.0.0.1:0", move |_| {
        *count.lock().expect("no test failed here") += 1;
        Ok(())
    });
    let proxy = format!("http://127.0.0.1:{port}");
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let environment: Vec<(&str, &str)> = names.iter().map(|name| (*name, proxy.as_str())).collect();
    let _daemon = home.serve_in(&environment);
    home.add_session("ann", "well-behaved", &service, &[]);
    assert_eq!(home.wait_for_reports("ann", 1)[0]["status"], "success");
    assert_eq!(*asked.lock().expect("no test failed here"), 0);
}
