//! The host's end of a worker's socket, the real one, with any bytes coming out of it: it ends
//! in a typed end, says nothing of a call that isn't open, and holds no more than it may.

use std::time::Duration;

use keywheel::protocol::{self, CallId};
use keywheel::supervisor::link::{CallEvent, HostLink};
use tokio::io::AsyncWriteExt;

use crate::frames;

pub fn run(input: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(converse(input)));
}

async fn converse(input: &[u8]) {
    let link = HostLink::new();
    let mut calls: Vec<(CallId, _)> = (0..3).filter_map(|_| link.register()).collect();
    // One call was given up before the worker said anything.
    let (given_up, _) = calls.pop().expect("three calls");
    link.forget(given_up);
    let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("a socket");
    let (mut from, _to) = ours.into_split();
    let hostile = async {
        // The host may have hung up already, which is its right.
        let _ = theirs.write_all(input).await;
        let _ = theirs.shutdown().await;
    };
    let both = async { tokio::join!(link.read_all(&mut from), hostile) };
    let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
    let (end, ()) = ended.expect("a closed socket ends the link");
    assert!(!end.to_string().is_empty());
    link.close();
    for (_, mut events) in calls {
        let (mut finished, mut asked) = (false, 0);
        while let Some(event) = events.next().await {
            assert!(!finished, "an event after the call's end");
            match event {
                CallEvent::Finished(_) => finished = true,
                CallEvent::Http(_) | CallEvent::Reveal(_) => asked += 1,
                CallEvent::Log(..) => {}
            }
        }
        assert!(asked <= 1, "{asked} questions at once, and none was answered");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for message in frames::from_worker() {
        let mut one = Vec::new();
        protocol::encode(&message, &mut one).expect("a seed fits a frame");
        all.extend_from_slice(&one);
        seeds.push(one);
    }
    seeds.push(all);
    seeds.push(vec![0xff; 4]);
    seeds.push(vec![0; 4]);
    seeds
}
