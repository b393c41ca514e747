//! The conformance kit: single calls of real plugins in real workers, against services played
//! here, and what it says of providers that are deliberately wrong.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use keywheel::kit::fixture::{Given, Which};
use keywheel::kit::{Case, Kit, KitError, Options, Run, Service};

use crate::harness::*;

/// Work of the kit, in a runtime of its own.
fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(work)
}

async fn open(plugin: &Path) -> Result<Kit, KitError> {
    // The test binary is no worker.
    Kit::open(plugin, Options { executable: Some(env!("CARGO_BIN_EXE_keywheel").into()) }).await
}

/// A case of one of the guests, at a service that is nowhere.
fn case(call: Which) -> Case {
    Case {
        call,
        settings: vec![("base_url".into(), "https://shop.example".into())],
        private_hosts: vec![],
        keys: vec![Given { name: "session".into(), value: None, expires: None }],
        now: None,
    }
}

fn said(run: &Run) -> &'static str {
    run.said.as_ref().expect("the call ends with an answer").word()
}

#[test]
fn a_call_in_the_kit_meets_a_service_that_is_nowhere_and_everything_of_it_is_told() {
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let of_service = Arc::clone(&seen);
    let service = Service::fake(move |request: &Request<Bytes>| {
        let cookie = request.headers()["cookie"].to_str().expect("text").to_owned();
        of_service.lock().unwrap_or_else(PoisonError::into_inner).push(cookie);
        let answer = Response::builder().header("set-cookie", "session=fresh-and-made-up");
        answer.body(Bytes::from_static(b"{}")).expect("an answer")
    });
    run(async {
        let kit = open(&guest("well_behaved")).await.expect("it is taken");
        let rotated = kit.run(&case(Which::Rotate(None)), service.clone()).await.expect("it fits");
        assert_eq!(said(&rotated), "rotated");
        let asked: Vec<String> = rotated.hops().map(|hop| hop.made.request.to_string()).collect();
        assert_eq!(asked, ["POST https://shop.example/rotate with the credential's cookies"]);
        let captured: Vec<_> = rotated.captured.iter().map(|fresh| fresh.key.as_str()).collect();
        assert_eq!((captured, rotated.leaks.len()), (vec!["session"], 0));

        // The next call of the same credential carries what this one captured.
        let next = Case { keys: rotated.keys(), ..case(Which::Validate) };
        let valid = kit.run(&next, service).await.expect("it fits");
        assert_eq!((said(&valid), valid.used.requests), ("valid", 1));
        let last = seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        assert_eq!(last.as_deref(), Some("session=fresh-and-made-up"));
        kit.close().await;
    });
}

#[test]
fn a_case_that_does_not_fit_the_provider_is_refused_with_what_would() {
    run(async {
        let kit = open(&guest("well_behaved")).await.expect("it is taken");
        let refused = async |case: Case| {
            let service = Service::fake(|_| Response::default());
            kit.run(&case, service).await.expect_err("it doesn't fit").to_string()
        };
        let mut other = case(Which::Validate);
        other.keys[0].name = "sesion".into();
        assert!(refused(other).await.ends_with("known: session; hint: did you mean `session`?"));
        let said = refused(case(Which::Rotate(Some("refrsh".into())))).await;
        assert!(said.ends_with("known: refresh; hint: did you mean `refresh`?"), "{said}");
        kit.close().await;
    });
}
