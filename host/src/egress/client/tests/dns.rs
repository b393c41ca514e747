//! Names: the address that was checked is the one that is dialled, and no answer of a resolver,
//! nor the lack of one, reaches further than the request that asked.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// An egress whose resolver is this function, and the number of times it was asked.
fn egress_asking(
    answer: impl Fn(&str, usize) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
) -> (Egress, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let lookup: Arc<Lookup> = Arc::new(move |name| {
        let answer = answer(&name, count.fetch_add(1, Ordering::SeqCst));
        Box::pin(std::future::ready(answer))
    });
    (Egress::with_lookup(EgressOptions::default(), Arc::new(fingerprint), &lookup).unwrap(), asked)
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// A host the operator opened, so that it may be a loopback address here.
fn opened(port: u16, host: &str) -> Exchange {
    let origin = AllowedOrigin { scheme: "http".into(), host: host.into(), port, operator_named: true };
    let mut resolved = resolved(vec![origin]);
    resolved.private_hosts = vec![host.into()];
    exchange_with(resolved)
}

#[tokio::test]
async fn a_name_that_changes_its_answer_is_looked_up_once_for_each_connection_and_dialled_as_checked() {
    let closes = || say("200 OK", "connection: close\r\n", "");
    let first = Server::start([closes()]).await;
    let port = first.at.port();
    let second = Server::start_at(&format!("127.0.0.2:{port}"), [closes()]).await;
    let answers = ["127.0.0.1", "169.254.169.254", "127.0.0.2", "0.0.0.0", "127.0.0.1"];
    let (egress, asked) = egress_asking(move |_, turn| Ok(ips(&answers[turn..=turn])));
    let url = format!("http://rebind.example:{port}/");
    for (turn, passes) in [true, false, true, false, true].into_iter().enumerate() {
        let got = egress.send(&mut opened(port, "rebind.example"), get(&url)).await;
        match got {
            Ok(got) => assert!(passes && got.response.status == 200, "{turn}"),
            Err(error) => assert!(!passes && matches!(error, HttpError::Denied(_)), "{turn}: {error}"),
        }
        assert_eq!(asked.load(Ordering::SeqCst), turn + 1, "a second look could see another answer");
    }
    assert_eq!((first.requests().len(), second.requests().len()), (2, 1));
}

#[tokio::test]
async fn a_name_is_refused_if_any_of_its_addresses_is() {
    let server = Server::start([echo()]).await;
    let port = server.at.port();
    for bad in [
        "127.0.0.1",
        "127.200.3.4",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::1",
        "2001::1",
    ] {
        for answer in [vec![bad], vec![bad, "1.1.1.1"], vec!["1.1.1.1", "2606:4700::1111", bad]] {
            let answer = ips(&answer);
            let (egress, asked) = egress_asking(move |_, _| Ok(answer.clone()));
            let origin = named(&server, "public.example");
            let request = get(&format!("http://public.example:{port}/"));
            let error = egress.send(&mut exchange_with(resolved(vec![origin])), request).await.unwrap_err();
            assert!(matches!(error, HttpError::Denied(_)), "{bad}: {error}");
            assert_eq!(asked.load(Ordering::SeqCst), 1);
        }
    }
    // What the operator opened is private networks, not everything.
    for bad in ["169.254.1.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "0.0.0.0", "::", "ff02::1"] {
        let (egress, _) = egress_asking(move |_, _| Ok(ips(&["127.0.0.1", bad])));
        let request = get(&format!("http://nas.example:{port}/"));
        let error = egress.send(&mut opened(port, "nas.example"), request).await.unwrap_err();
        assert!(matches!(error, HttpError::Denied(_)), "{bad}: {error}");
    }
    assert_eq!(*server.connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_name_without_addresses_is_a_resolution_failure() {
    let (egress, _) = egress_asking(|_, _| Ok(Vec::new()));
    let error = egress.send(&mut opened(80, "none.example"), get("http://none.example/")).await.unwrap_err();
    assert!(matches!(&error, HttpError::Dns(text) if text.contains("no address")), "{error:?}");
}

/// Else whoever answers DNS could have this host knock at ten thousand doors, or wait behind
/// nine thousand dead ones.
#[tokio::test]
async fn of_ten_thousand_addresses_only_a_few_are_dialled() {
    let server = Server::start([echo()]).await;
    let port = server.at.port();
    // Nobody listens on the port at these, and the server is the last.
    let mut many: Vec<IpAddr> = (0..9_999_u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x7f01_0000 + n))).collect();
    many.push(server.at.ip());
    let (egress, asked) = egress_asking(move |_, _| Ok(many.clone()));
    let request = get(&format!("http://many.example:{port}/"));
    let error = egress.send(&mut opened(port, "many.example"), request).await.unwrap_err();
    assert!(matches!(error, HttpError::Connect(_)), "{error:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(*server.connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_resolver_that_never_answers_holds_up_only_requests_for_its_name() {
    let server = Server::start([echo()]).await;
    let port = server.at.port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let lookup: Arc<Lookup> = Arc::new(move |name| {
        if name == "hangs.example" {
            count.fetch_add(1, Ordering::SeqCst);
            return Box::pin(std::future::pending());
        }
        Box::pin(std::future::ready(Ok(ips(&["127.0.0.1"]))))
    });
    let egress =
        Arc::new(Egress::with_lookup(EgressOptions::default(), Arc::new(fingerprint), &lookup).unwrap());
    let hang = || {
        let egress = egress.clone();
        tokio::spawn(async move {
            let request = HttpRequest { timeout: Some(1), ..get(&format!("http://hangs.example:{port}/")) };
            egress.send(&mut opened(port, "hangs.example"), request).await.unwrap_err()
        })
    };
    let hanging: Vec<_> = (0..limits::PER_HOST_CONCURRENCY * 2).map(|_| hang()).collect();
    let request = get(&format!("http://works.example:{port}/"));
    let got = egress.send(&mut opened(port, "works.example"), request).await.unwrap();
    assert_eq!(got.response.status, 200);
    for task in hanging {
        assert_eq!(task.await.unwrap(), HttpError::Timeout);
    }
    // Nobody holds a slot of that host any longer: the next request gets as far as these did.
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(hang().await.unwrap(), HttpError::Timeout);
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
}

/// The system's resolver can't be cancelled: whoever gives up leaves a thread behind in it. A
/// name whose server doesn't answer must not use up the threads that every other name needs.
#[tokio::test]
async fn lookups_that_hang_in_the_system_take_few_threads_of_one_name() {
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (now, most) = (running.clone(), peak.clone());
    let lookup = system_lookup(Arc::new(move |name: &str| {
        if name == "hangs.example" {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Until the test drops its end.
            let _ = released.lock().unwrap_or_else(PoisonError::into_inner).recv();
            now.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }));
    for _ in 0..3 {
        let round = (0..LOOKUPS_OF_A_NAME * 2).map(|_| {
            let looked = lookup("hangs.example".to_owned());
            async move { tokio::time::timeout(Duration::from_millis(50), looked).await.is_err() }
        });
        assert!(futures_util::future::join_all(round).await.into_iter().all(|gave_up| gave_up));
    }
    let other = tokio::time::timeout(Duration::from_secs(10), lookup("other.example".to_owned())).await;
    assert_eq!(other.unwrap().unwrap(), ips(&["127.0.0.1"]));
    assert_eq!(peak.load(Ordering::SeqCst), LOOKUPS_OF_A_NAME);
    // Once the server answers, the name is looked up again.
    drop(release);
    let again = tokio::time::timeout(Duration::from_secs(10), lookup("hangs.example".to_owned())).await;
    assert_eq!(again.unwrap().unwrap(), ips(&["127.0.0.1"]));
}
