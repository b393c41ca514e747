//! Redirects: every hop is judged as the first, and what was meant for one origin stays there.

use super::*;

/// Both are loopback, so cookies tell them apart only by their host.
async fn on_other_host(scripts: impl IntoIterator<Item = Script>) -> Server {
    Server::start_at("127.0.0.2:0", scripts).await
}

fn redirects_to(status: &'static str, location: &str) -> Script {
    let headers = format!("location: {location}\r\n");
    Box::new(move |_| answer(status, &headers, ""))
}

#[tokio::test]
async fn another_allowed_host_gets_no_cookie_no_secret_header_and_no_authorization() {
    for (status, method) in [
        ("301 Moved Permanently", "GET"),
        ("302 Found", "POST"),
        ("303 See Other", "POST"),
        ("307 Temporary Redirect", "GET"),
        ("308 Permanent Redirect", "GET"),
    ] {
        let other = on_other_host([echo()]).await;
        let first = Server::start([redirects_to(status, &other.url("/there"))]).await;
        let mut request = with_secrets(&first.url("/"), method, 1);
        request.headers.push(("X-Digest".into(), vec![secret("token", Encoding::Sha256Hex)]));
        request.headers.push(("X-Api-Key".into(), vec![secret("token", Encoding::Raw)]));
        if method == "GET" {
            request.body = None;
        }
        egress().send(&mut exchange(&[&first, &other]), request).await.unwrap();
        let asked = first.requests().remove(0);
        assert!(asked.contains(OLD) && asked.contains(TOKEN), "{asked}");
        let sent = other.requests().remove(0);
        assert!(sent.starts_with("GET /there HTTP/1.1\r\n"), "{sent}");
        for gone in ["cookie", "authorization", "x-digest", "x-api-key", "token-value", OLD, "referer"] {
            assert!(!sent.contains(gone), "{status}: {gone} in {sent}");
        }
        assert!(sent.contains("x-plain: plain\r\n"), "{sent}");
    }
}

/// The way back is another origin's redirect: what the first hop dropped does not return.
#[tokio::test]
async fn a_redirect_there_and_back_brings_no_secret_header_back() {
    let back = Arc::new(Mutex::new(String::new()));
    let to = back.clone();
    let other = on_other_host([Box::new(move |_: &str| {
        answer("302 Found", &format!("location: {}\r\n", to.lock().unwrap()), "")
    }) as Script])
    .await;
    let first = Server::start([redirects_to("302 Found", &other.url("/")), echo()]).await;
    *back.lock().unwrap() = first.url("/back");
    let mut request = with_secrets(&first.url("/"), "GET", 2);
    request.body = None;
    egress().send(&mut exchange(&[&first, &other]), request).await.unwrap();
    let sent = first.requests().remove(1);
    assert!(sent.starts_with("GET /back HTTP/1.1\r\n"), "{sent}");
    assert!(!sent.contains("authorization") && !sent.contains("token-value"), "{sent}");
    // Cookies go by host, as in browsers.
    assert!(sent.contains(OLD), "{sent}");
}

#[tokio::test]
async fn a_307_takes_a_body_without_a_secret_to_another_origin_and_one_with_a_secret_nowhere() {
    for status in ["307 Temporary Redirect", "308 Permanent Redirect"] {
        let other = on_other_host([echo()]).await;
        let first = Server::start([redirects_to(status, &other.url("/there"))]).await;
        for part in [
            secret("token", Encoding::Raw),
            secret("token", Encoding::Sha256Hex),
            Part::Encoded {
                leaves: vec![Leaf::Secret { key: "session".into(), encoding: Encoding::Raw }],
                encoding: Encoding::Base64,
            },
        ] {
            let request = HttpRequest {
                method: "POST".into(),
                body: Some(vec![text("a="), part]),
                redirects: 1,
                ..get(&first.url("/"))
            };
            let error = egress().send(&mut exchange(&[&first, &other]), request).await.unwrap_err();
            assert!(matches!(error, HttpError::Denied(_)), "{error}");
            assert!(other.requests().is_empty());
        }
        let request = HttpRequest {
            method: "POST".into(),
            body: Some(vec![text("plain")]),
            redirects: 1,
            ..get(&first.url("/"))
        };
        egress().send(&mut exchange(&[&first, &other]), request).await.unwrap();
        assert!(other.requests()[0].ends_with("\r\n\r\nplain"), "{:?}", other.requests());
    }
}

#[tokio::test]
async fn a_loop_over_two_hosts_ends_after_the_maximum() {
    let other = Server::start_at(
        "127.0.0.2:0",
        [Box::new(|request: &str| {
            let port = request.lines().find_map(|line| line.strip_prefix("x-plain: ")).unwrap().to_owned();
            answer("302 Found", &format!("location: http://127.0.0.1:{port}/\r\n"), "")
        }) as Script],
    )
    .await;
    let first = Server::start([redirects_to("302 Found", &other.url("/"))]).await;
    let request = HttpRequest {
        headers: vec![("X-Plain".into(), vec![text(&first.at.port().to_string())])],
        redirects: u8::MAX,
        ..get(&first.url("/"))
    };
    let got = egress().send(&mut exchange(&[&first, &other]), request).await.unwrap();
    assert_eq!(got.response.status, 302);
    assert_eq!((first.requests().len(), other.requests().len()), (3, 3));
}

#[tokio::test]
async fn a_hop_can_set_cookies_for_its_own_host_only() {
    let other = on_other_host([echo()]).await;
    let headers = format!(
        "location: {}\r\n\
         set-cookie: sid=stolen-for-other; Domain=127.0.0.2; Path=/\r\n\
         set-cookie: evil=planted-value; Domain=127.0.0.2\r\n\
         set-cookie: evil2=planted-value; Domain=.0.2\r\n",
        other.url("/")
    );
    let first = Server::start([Box::new(move |_: &str| answer("302 Found", &headers, "")) as Script]).await;
    let mut exchange = exchange(&[&first, &other]);
    let request = HttpRequest { redirects: 1, cookies: true, ..get(&first.url("/")) };
    let got = egress().send(&mut exchange, request).await.unwrap();
    assert_eq!(got.response.extras, [("cookies-ignored".to_owned(), "3".to_owned())]);
    assert_eq!(got.changes, []);
    assert_eq!(exchange.jar.get("session").unwrap().secret, Secret::new(OLD));
    assert!(!other.requests()[0].contains("cookie"), "{:?}", other.requests());
}

/// Each is written so that one reader sees an allowed place and another does not.
#[tokio::test]
async fn a_location_goes_where_the_parser_of_the_check_says_or_nowhere() {
    let outside = on_other_host([echo()]).await;
    let (port, host) = (outside.at.port(), outside.at);
    for location in [
        format!("//{host}/"),
        format!("\\\\{host}\\"),
        format!("/\\{host}/"),
        format!("\\/{host}/"),
        format!("http:\\\\{host}\\"),
        format!("http:/\\{host}"),
        format!("http:////{host}/"),
        format!("http:///{host}/"),
        format!("h\tt\ttp://127.\t0.0.2:{port}/"),
        format!("HTTP://{host}/"),
        format!("http://2130706434:{port}/"),
        format!("http://0x7f000002:{port}/"),
        format!("http://0177.0.0.02:{port}/"),
        format!("http://127.2:{port}/"),
        format!("http://127.0.0.2.:{port}/"),
        format!("http://127%2e0.0.2:{port}/"),
        format!("http://[::ffff:127.0.0.2]:{port}/"),
        format!("http://\u{ff11}\u{ff12}\u{ff17}.0.0.2:{port}/"),
        format!("http://127\u{3002}0.0.2:{port}/"),
        format!("http://127.0.0.1:{port}@{host}/"),
        format!("http://127.0.0.1%40{host}/"),
        format!("http://127.0.0.1\\@{host}/"),
        format!("http://{host}#@127.0.0.1/"),
        format!("http://{host}\\@127.0.0.1/"),
        format!("http://{host}?@127.0.0.1/"),
        format!("http://user@{host}/"),
        format!("http://:password@{host}/"),
        format!("https://{host}/"),
        format!("ws://{host}/"),
        format!("gopher://{host}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://[fd00:ec2::254]/latest/meta-data/".into(),
        "http://100.100.100.200/".into(),
        "http://168.63.129.16/".into(),
        "http://0xa9fea9fe/".into(),
        "http://metadata.google.internal/".into(),
        "http://localhost/".into(),
        "http://[::1]/".into(),
        "http://0/".into(),
        "javascript:alert(1)".into(),
        "file:///etc/passwd".into(),
        "about:blank".into(),
        "http://".into(),
        "http://[::1".into(),
        "http://127.0.0.1:99999/".into(),
    ] {
        let first = Server::start([redirects_to("302 Found", &location)]).await;
        let request = with_secrets(&first.url("/"), "GET", 5);
        let error = match egress().send(&mut exchange(&[&first]), request).await {
            Err(error) => error,
            // The same host in another spelling of a path is where it is allowed to go.
            Ok(got) => panic!("{location:?}: {}", got.response.url),
        };
        assert!(matches!(error, HttpError::Denied(_) | HttpError::Protocol(_)), "{location:?}: {error:?}");
        assert_eq!(first.requests().len(), 1, "{location:?}");
    }
    assert!(outside.requests().is_empty());
}

#[tokio::test]
async fn a_location_with_line_breaks_or_control_bytes_ends_the_request() {
    for location in [
        b"/next\r\nx-injected: 1".as_slice(), // a header of the answer, and no part of the URL
        b"/ne\x01xt",
        b"/ne\x00xt",
        b"/ne\x7fxt",
        b"/ne\rxt",
        b"/ne\xffxt",
        b"/ne\xc3\x28xt",
    ] {
        let raw =
            [b"HTTP/1.1 302 Found\r\nlocation: ".as_slice(), location, b"\r\ncontent-length: 0\r\n\r\n"]
                .concat();
        let server = Server::start([bytes(raw), echo()]).await;
        let request = HttpRequest { redirects: 1, ..get(&server.url("/")) };
        match egress().send(&mut exchange(&[&server]), request).await {
            Ok(got) => {
                let sent = server.requests().remove(1);
                assert!(location.ends_with(b": 1") && sent.starts_with("GET /next HTTP/1.1\r\n"), "{sent}");
                assert!(!sent.contains("x-injected"), "{sent}");
                assert_eq!(got.response.status, 200);
            }
            Err(error) => {
                assert!(matches!(error, HttpError::Protocol(_)), "{location:?}: {error}");
                assert_eq!(server.requests().len(), 1);
            }
        }
    }
    // Breaks that are encoded stay encoded.
    let server = Server::start([redirects_to("302 Found", "/a%0d%0aX-Injected:%201?q=%0a"), echo()]).await;
    let request = HttpRequest { redirects: 1, ..get(&server.url("/")) };
    egress().send(&mut exchange(&[&server]), request).await.unwrap();
    assert!(server.requests()[1].starts_with("GET /a%0d%0aX-Injected:%201?q=%0a HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_location_longer_than_any_url_is_refused() {
    let long = format!("/{}", "x".repeat(URL_BYTES));
    let server = Server::start([redirects_to("302 Found", &long), echo()]).await;
    let request = HttpRequest { redirects: 1, ..get(&server.url("/")) };
    let error = egress().send(&mut exchange(&[&server]), request).await.unwrap_err();
    assert!(matches!(error, HttpError::Protocol(_)), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn relative_locations_stay_with_their_origin() {
    for (location, expected) in [
        ("next", "/a/next"),
        ("/next", "/next"),
        ("?q", "/a/b?q"),
        ("../../../next", "/next"),
        ("%2e%2e/next", "/next"),
        ("//127.0.0.1:PORT/next", "/next"),
        ("http:next", "/a/next"),
        ("\\next", "/next"),
        ("#only", "/a/b"),
        ("", "/a/b"),
    ] {
        let server = Server::start([
            Box::new(move |request: &str| {
                let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
                let location = location.replace("127.0.0.1:PORT", host);
                answer("302 Found", &format!("location: {location}\r\n"), "")
            }) as Script,
            echo(),
        ])
        .await;
        let request = with_secrets(&server.url("/a/b"), "GET", 1);
        egress().send(&mut exchange(&[&server]), request).await.unwrap();
        let sent = server.requests().remove(1);
        assert!(sent.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{location}: {sent}");
        assert!(sent.contains("authorization") && sent.contains(OLD), "{sent}");
    }
}
