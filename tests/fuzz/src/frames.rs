//! Frames between host and children: whatever the bytes, reading ends in a message or a typed
//! error, and a message is the same after it was written and read again.

use std::fmt::Debug;
use std::io::Cursor;

use keywheel::protocol::{
    self, Answer, BUILD, Call, CallLimits, Capture, CompileAnswer, Confinement, Context, Evidence, Fault,
    FromWorker, HttpError, HttpRequest, HttpResponse, KeyState, Layer, LayerState, Leaf, LogLevel, MAX_FRAME,
    Part, PoolShape, ProbeAnswer, Reason, Require, Source, ToWorker, Used, Verdict,
};
use keywheel::provider::Encoding;
use keywheel::worker::read_message;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub fn run(input: &[u8]) {
    let [kind, stream @ ..] = input else { return };
    match kind {
        250..=252 => stream_of::<Confinement>(stream),
        253.. => stream_of::<ProbeAnswer>(stream),
        _ => between_host_and_worker(kind % 3, stream),
    }
}

fn between_host_and_worker(kind: u8, stream: &[u8]) {
    match kind {
        0 => stream_of::<FromWorker>(stream),
        1 => stream_of::<ToWorker>(stream),
        _ => stream_of::<CompileAnswer>(stream),
    }
}

/// As the worker and the compiler's parent read: frame after frame until the end or an error.
fn stream_of<T: DeserializeOwned + Serialize + PartialEq + Debug>(stream: &[u8]) {
    if let Ok(Some(length)) = protocol::frame_length(stream) {
        assert!(length <= MAX_FRAME, "a frame of {length} bytes passed");
    }
    let mut stream = Cursor::new(stream);
    while let Ok(Some(message)) = read_message::<T>(&mut stream) {
        let mut frame = b"before".to_vec();
        protocol::encode(&message, &mut frame).expect("what came in one frame fits one");
        let frame = frame.strip_prefix(b"before").expect("what was there stays");
        let length = protocol::frame_length(frame).expect("its own length").expect("four bytes");
        assert_eq!(frame.len(), 4 + length);
        assert_eq!(protocol::decode::<T>(&frame[4..]).expect("its own message"), message);
        // No other kind of message may be in the same bytes with some left over unnoticed.
        let mut longer = frame[4..].to_vec();
        longer.push(0);
        assert!(protocol::decode::<T>(&longer).is_err(), "a byte too many passed");
    }
}

pub fn request() -> HttpRequest {
    HttpRequest {
        method: "POST".into(),
        url: vec![
            Part::Text("https://api.example.com/v1/".into()),
            Part::Secret { key: "session".into(), encoding: Encoding::Percent },
        ],
        headers: vec![(
            "authorization".into(),
            vec![
                Part::Text("Basic ".into()),
                Part::Encoded {
                    leaves: vec![
                        Leaf::Text("user:".into()),
                        Leaf::Secret { key: "token".into(), encoding: Encoding::Raw },
                    ],
                    encoding: Encoding::Base64,
                },
            ],
        )],
        body: Some(vec![
            Part::Text("{\"t\":\"".into()),
            Part::Secret { key: "token".into(), encoding: Encoding::Json },
            Part::Text("\"}".into()),
        ]),
        cookies: true,
        capture: vec![Capture {
            key: "token".into(),
            from: Source::JsonPointer("/access_token".into()),
            expires_in: Some(Source::Header("x-expires".into())),
        }],
        redirects: 3,
        timeout: Some(10),
        extras: vec![("a".into(), "b".into())],
    }
}

pub fn from_worker() -> Vec<FromWorker> {
    let reason = Reason { message: "no".into(), retry_after: Some(30), extras: vec![] };
    vec![
        FromWorker::Announce {
            pid: 7,
            worker_id: "w1".into(),
            service: Some("forge".into()),
            abi: "0.1.0".into(),
            build: BUILD.into(),
            layers: vec![Layer { name: "landlock".into(), state: LayerState::Unavailable("old".into()) }],
            shape: PoolShape { memories: 1, tables: 1 },
        },
        FromWorker::Unfit("no sandbox".into()),
        FromWorker::Http { id: 1, request: request() },
        FromWorker::Reveal { id: 1, key: "token".into() },
        FromWorker::Log { id: 1, level: LogLevel::Info, message: "hello".into() },
        FromWorker::Finished {
            id: 1,
            result: Ok(Answer::Validated(Verdict::Valid(Evidence {
                expires: Some(u64::MAX),
                identity: Some("me".into()),
                next: Some(60),
                note: Some("fine".into()),
                extras: vec![("k".into(), "v".into())],
            }))),
            used: Used::default(),
        },
        FromWorker::Finished {
            id: 2,
            result: Ok(Answer::Validated(Verdict::Invalid(reason))),
            used: Used::default(),
        },
        FromWorker::Finished {
            id: 3,
            result: Err(Fault::Trap("unreachable".into())),
            used: Used { cpu_us: 1, memory_bytes: u64::MAX, ..Used::default() },
        },
    ]
}

fn framed(kind: u8, message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![kind];
    protocol::encode(message, &mut bytes).expect("a seed fits a frame");
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = from_worker().iter().map(|message| framed(0, message)).collect();
    let context = Context {
        credential_id: "c".into(),
        profile_id: None,
        settings: vec![("base_url".into(), "https://a.example".into())],
        keys: vec![KeyState {
            name: "session".into(),
            present: true,
            fingerprint: Some("00".into()),
            expires: None,
        }],
        attempt: 1,
        now: 1,
        extras: vec![],
    };
    let response = HttpResponse {
        status: 200,
        url: "https://a.example/".into(),
        headers: vec![("a".into(), "b".into())],
        body: b"{}".to_vec(),
        captured: vec![],
        extras: vec![],
    };
    let limits = CallLimits { memory_bytes: 1, cpu_ms: 1, host_calls: 1, log_bytes: 1, in_flight: 1 };
    seeds.extend(
        [
            ToWorker::Hello {
                worker_id: "w1".into(),
                service: None,
                limits,
                pool: Some(PoolShape { memories: 1, tables: 1 }),
                confinement: Confinement { require: Require::AllButNamespaces, namespaces: LayerState::On },
            },
            ToWorker::Start { id: 1, call: Call::Rotate(context, "refresh".into()) },
            ToWorker::HttpDone { id: 1, result: Ok(response) },
            ToWorker::HttpDone { id: 1, result: Err(HttpError::TooLarge(9)) },
            ToWorker::RevealDone { id: 1, result: Ok(vec![1]) },
            ToWorker::Cancel { id: 1 },
        ]
        .iter()
        .map(|message| framed(1, message)),
    );
    seeds.push(framed(2, &CompileAnswer::Compiled { bytes: 1, imports: vec!["wasi:io/poll".into()] }));
    seeds.push(framed(2, &CompileAnswer::Refused("no".into())));
    seeds
}
