//! TLS: who may answer at all, and in what words a person reads why one may not. Certificates
//! are made here, at run time, and never kept.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;

/// The authority of all tests here.
fn authority() -> &'static CertifiedIssuer<'static, KeyPair> {
    static AUTHORITY: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    AUTHORITY.get_or_init(|| new_authority("Tests"))
}

fn new_authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// An egress that trusts the authority besides the system's.
pub(super) fn trusting() -> Egress {
    let options = EgressOptions { extra_ca_pem: Some(authority().pem().into_bytes()) };
    Egress::new(options, Arc::new(fingerprint)).unwrap()
}

fn for_names(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}

/// A server's side: this certificate, signed by that authority or by itself.
fn acceptor(
    params: &CertificateParams,
    signer: Option<&CertifiedIssuer<'static, KeyPair>>,
    alpn: &[&str],
) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = match signer {
        Some(signer) => params.signed_by(&key, signer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Runs this for every connection that shook hands.
pub(super) struct Tls {
    pub(super) at: SocketAddr,
    pub(super) connections: Arc<Mutex<usize>>,
}

impl Tls {
    async fn start_with<F, D>(acceptor: TlsAcceptor, run: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>) -> D + Clone + Send + 'static,
        D: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, run, count) = (acceptor.clone(), run.clone(), count.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        *count.lock().unwrap() += 1;
                        run(stream).await;
                    }
                });
            }
        });
        Self { at, connections }
    }

    /// With a certificate that is good for 127.0.0.1.
    pub(super) async fn start<F, D>(alpn: &[&str], run: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>) -> D + Clone + Send + 'static,
        D: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(acceptor(&for_names(&["127.0.0.1"]), Some(authority()), alpn), run).await
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.at)
    }

    pub(super) fn exchange(&self) -> Exchange {
        exchange_with(resolved(vec![https(self.at.port())]))
    }
}

fn https(port: u16) -> AllowedOrigin {
    AllowedOrigin { scheme: "https".into(), host: "127.0.0.1".into(), port, operator_named: true }
}

async fn says_fine(mut stream: TlsStream<TcpStream>) {
    let mut buffer = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
        }
        while let Some(request) = take_request(&mut buffer) {
            let _ = stream.write_all(&answer("200 OK", "", &request)).await;
            if stream.flush().await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_service_with_a_certificate_of_the_extra_authority_is_reached_and_gets_secure_cookies() {
    let server = Tls::start(&[], says_fine).await;
    let request = with_secrets(&server.url("/"), "POST", 0);
    let got = trusting().send(&mut server.exchange(), request).await.unwrap();
    assert!(body(&got.response).contains("cookie: sid=[redacted]\r\n"), "{}", body(&got.response));
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_ends_the_request_before_it_is_sent_and_says_why() {
    let good = for_names(&["127.0.0.1"]);
    let mut expired = good.clone();
    (expired.not_before, expired.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 2, 3));
    let mut early = good.clone();
    (early.not_before, early.not_after) = (date_time_ymd(2999, 1, 2), date_time_ymd(3000, 1, 1));
    let many: Vec<String> = (0..2_000).map(|n| format!("name-{n}.example")).collect();
    let many = CertificateParams::new(many).unwrap();
    let mut authority_itself = good.clone();
    authority_itself.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut for_clients = good.clone();
    for_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let stranger = new_authority("A stranger");
    let ours = Some(authority());
    for (what, acceptor, words) in [
        (
            "another name",
            acceptor(&for_names(&["other.example"]), ours, &[]),
            "is for other.example, not for 127.0.0.1",
        ),
        ("another address", acceptor(&for_names(&["127.0.0.2"]), ours, &[]), "not for 127.0.0.1"),
        ("many names", acceptor(&many, ours, &[]), "and 1992 more, not for 127.0.0.1"),
        ("no name", acceptor(&for_names(&[]), ours, &[]), "is for no name, not for 127.0.0.1"),
        ("expired", acceptor(&expired, ours, &[]), "expired on 2020-02-03"),
        ("too early", acceptor(&early, ours, &[]), "is not valid before 2999-01-02"),
        (
            "a stranger's",
            acceptor(&good, Some(&stranger), &[]),
            "signed by an authority this machine does not trust",
        ),
        ("its own", acceptor(&good, None, &[]), "signed by an authority this machine does not trust"),
        ("an authority's, its own", acceptor(&authority_itself, None, &[]), "the certificate"),
        ("for clients", acceptor(&for_clients, ours, &[]), "the certificate"),
    ] {
        let server = Tls::start_with(acceptor, says_fine).await;
        let error = trusting()
            .send(&mut server.exchange(), with_secrets(&server.url("/"), "POST", 0))
            .await
            .unwrap_err();
        assert!(matches!(&error, HttpError::Tls(text) if text.contains(words)), "{what}: {error:?}");
        assert!(error.to_string().len() < 400, "{what}: {} bytes", error.to_string().len());
        assert_eq!(*server.connections.lock().unwrap(), 0, "{what}");
    }
}

#[tokio::test]
async fn what_is_no_tls_is_said_so() {
    for (what, said, words) in [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "does not speak TLS"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "does not speak TLS"),
        ("zeros", vec![0; 64 << 10], "does not speak TLS"),
        ("an alert", vec![0x15, 3, 3, 0, 2, 2, 40], "ended the handshake: HandshakeFailure"),
        ("an unknown alert", vec![0x15, 3, 3, 0, 2, 2, 255], "ended the handshake"),
        ("TLS 1.1", server_hello(0x02), "allowed: TLS 1.2 and 1.3"),
        ("TLS 1.0", server_hello(0x01), "allowed: TLS 1.2 and 1.3"),
        ("SSL 3.0", server_hello(0x00), "allowed: TLS 1.2 and 1.3"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.write_all(&said).await;
            let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
        });
        let request = get(&format!("https://127.0.0.1:{port}/"));
        let error = trusting().send(&mut exchange_with(resolved(vec![https(port)])), request).await;
        let error = error.unwrap_err();
        assert!(matches!(&error, HttpError::Tls(text) if text.contains(words)), "{what}: {error:?}");
        assert!(error.to_string().contains("hint: "), "{what}: {error}");
    }
}

/// The first message of a server that knows nothing newer than 3.`minor` (TLS 1.1 is 3.2).
fn server_hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend_from_slice(&[7; 32]); // random
    hello.extend_from_slice(&[0, 0xc0, 0x13, 0]); // no session, ECDHE-RSA-AES128-SHA, no compression
    let mut record = vec![0x16, 3, minor, 0, 4 + hello.len() as u8, 2, 0, 0, hello.len() as u8];
    record.extend_from_slice(&hello);
    record
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_left_at_the_deadline() {
    for drip in [b"".as_slice(), &[0x16, 3, 3, 0x40, 0]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            if socket.write_all(drip).await.is_ok() {
                let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
            }
        });
        let request = HttpRequest { timeout: Some(1), ..get(&format!("https://127.0.0.1:{port}/")) };
        let got = trusting().send(&mut exchange_with(resolved(vec![https(port)])), request).await;
        assert_eq!(got.unwrap_err(), HttpError::Timeout);
    }
}

/// An `https` page may send a visitor on to plain `http`, where anybody on the way reads along.
#[tokio::test]
async fn a_downgrade_to_http_takes_no_secret_along_and_needs_an_operator_who_named_it() {
    let plain = Server::start([echo()]).await;
    let to = plain.url("/plain");
    let secure = Tls::start(&[], move |mut stream| {
        let to = to.clone();
        async move {
            let mut chunk = [0; 8192];
            if stream.read(&mut chunk).await.is_ok() {
                let _ = stream
                    .write_all(&answer("302 Found", &format!("connection: close\r\nlocation: {to}\r\n"), ""))
                    .await;
                let _ = stream.flush().await;
                let _ = stream.read(&mut chunk).await;
            }
        }
    })
    .await;
    let egress = trusting();
    for named in [false, true] {
        let mut other = plain.origin();
        other.operator_named = named;
        let mut exchange = exchange_with(resolved(vec![https(secure.at.port()), other]));
        let mut request = with_secrets(&secure.url("/"), "GET", 1);
        request.body = None;
        match egress.send(&mut exchange, request).await {
            Ok(_) => assert!(named),
            Err(error) => assert!(!named && matches!(error, HttpError::Denied(_)), "{error:?}"),
        }
        assert_eq!(plain.requests().len(), usize::from(named));
    }
    let sent = plain.requests().remove(0);
    assert!(!sent.contains("authorization") && !sent.contains(TOKEN), "{sent}");
}
