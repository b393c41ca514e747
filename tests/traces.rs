//! Traces before a collector: a small server that reads OTLP, by its published encoding and with
//! nothing of the exporter's. Only in builds with the feature.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use crate::harness::*;
use crate::secrets::Wanted;

/// A span as it came to the collector.
#[derive(Debug, Clone, Default)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, String>,
}

/// One field of a protobuf message.
enum Field<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

/// The fields of a protobuf message with their numbers, by its published encoding.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    fn take<'b>(bytes: &mut &'b [u8], length: usize) -> &'b [u8] {
        let (taken, rest) = bytes.split_at(length);
        *bytes = rest;
        taken
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().expect("eight bytes"))),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).expect("a length");
                Field::Bytes(take(&mut bytes, length))
            }
            5 => {
                let four: [u8; 4] = take(&mut bytes, 4).try_into().expect("four bytes");
                Field::Number(u32::from_le_bytes(four).into())
            }
            kind => panic!("no kind {kind}"),
        };
        found.push((key >> 3, field));
    }
    found
}

/// The parts of a message that have this number.
fn parts(bytes: &[u8], number: u64) -> Vec<&[u8]> {
    let part = |(found, field)| match field {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    };
    fields(bytes).into_iter().filter_map(part).collect()
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans(request: &[u8]) -> Vec<Span> {
    let scopes = parts(request, 1).into_iter().flat_map(|resource| parts(resource, 2));
    scopes.flat_map(|scope| parts(scope, 2)).map(span).collect()
}

fn span(bytes: &[u8]) -> Span {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let mut span = Span::default();
    for (number, field) in fields(bytes) {
        match (number, field) {
            (1, Field::Bytes(bytes)) => span.trace = bytes.to_vec(),
            (2, Field::Bytes(bytes)) => span.id = bytes.to_vec(),
            (4, Field::Bytes(bytes)) => span.parent = bytes.to_vec(),
            (5, Field::Bytes(bytes)) => span.name = text(bytes),
            (7, Field::Number(at)) => span.start = at,
            (8, Field::Number(at)) => span.end = at,
            (9, Field::Bytes(bytes)) => {
                let value = parts(bytes, 2).concat();
                let value = match fields(&value).pop() {
                    Some((_, Field::Bytes(bytes))) => text(bytes),
                    Some((_, Field::Number(number))) => number.to_string(),
                    None => String::new(),
                };
                span.attributes.insert(text(&parts(bytes, 1).concat()), value);
            }
            _ => {}
        }
    }
    span
}

/// A collector of traces; it ends with the test process.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<(Vec<Span>, Vec<u8>)>>);

impl Collector {
    fn start() -> (Self, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let collector = Self::default();
        let of_thread = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let collector = of_thread.clone();
                std::thread::spawn(move || drop(collector.take(stream)));
            }
        });
        (collector, url)
    }

    fn take(&self, mut stream: std::net::TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let (mut first, mut length) = (String::new(), 0);
            if reader.read_line(&mut first)? == 0 {
                return Ok(());
            }
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                let Some((name, value)) = line.trim_end().split_once(':') else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            assert!(first.starts_with("POST /v1/traces "), "{first}");
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.0.extend(spans(&body));
            all.1.extend(body);
            drop(all);
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n",
            )?;
        }
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

#[test]
fn an_attempt_is_one_trace_from_the_claim_over_the_worker_to_the_report() {
    let home = TestHome::new();
    let (collector, url) = Collector::start();
    std::fs::write(
        home.path().join("config.toml"),
        format!("[telemetry]\notlp_endpoint = \"{url}\"\nsample = 1.0\n"),
    )
    .expect("the configuration");
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve();
    let service = Service::start(OldSession::Stays);
    home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    // What is left is sent when it stops.
    assert!(daemon.stop().success());
    let all = collector.spans();
    let root = all.iter().find(|span| span.name == "attempt rotate").expect("the rotation");
    assert!(root.parent.is_empty() && root.trace.len() == 16, "{root:?}");
    let expected = [
        ("keywheel.service", "well-behaved"),
        ("keywheel.credential", "ann"),
        ("keywheel.action", "rotate"),
        ("keywheel.attempt", "2"),
        ("keywheel.verdict", "valid"),
        ("keywheel.rotated", "1"),
    ];
    for (name, value) in expected {
        assert_eq!(root.attributes.get(name).map(String::as_str), Some(value), "{root:?}");
    }
    let trace: Vec<&Span> = all.iter().filter(|span| span.trace == root.trace).collect();
    let below = |parent: &Span| {
        let mut spans: Vec<&Span> = trace.iter().filter(|span| span.parent == parent.id).copied().collect();
        spans.sort_by_key(|span| (span.start, span.end));
        spans
    };
    let names = |spans: &[&Span]| spans.iter().map(|span| span.name.clone()).collect::<Vec<_>>();
    let steps = below(root);
    assert_eq!(
        names(&steps),
        ["claim", "intent", "call rotate", "call validate", "verdict", "finish"],
        "{trace:#?}"
    );
    let of_call = |name: &str| {
        let call = steps.iter().find(|span| span.name == name).expect(name);
        let mut steps = below(call);
        // The worker's part runs beside the requests it asks for.
        steps.sort_by_key(|span| span.name.clone());
        steps
    };
    for call in ["call rotate", "call validate"] {
        let expected = ["egress.request", "worker.instantiate", "worker.place", "worker.run"];
        assert_eq!(names(&of_call(call)), expected, "{trace:#?}");
    }
    let request = of_call("call rotate")[0];
    assert_eq!(request.attributes["http.request.method"], "POST");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    let stored = below(request);
    assert_eq!(names(&stored), ["capture.store"]);
    assert_eq!(stored[0].attributes["keywheel.generation"], "2");
    // Each within its parent; the moments of the claim and the verdict are of whole milliseconds.
    for span in &trace {
        let parent = trace.iter().find(|parent| parent.id == span.parent);
        let Some(parent) = parent else { continue };
        assert!(span.start <= span.end, "{span:?}");
        assert!(
            span.start + 1_000_000 >= parent.start && span.end <= parent.end + 1_000_000,
            "{span:?} {parent:?}"
        );
    }
    // One trace for each attempt, and no secret in any of it.
    let roots: BTreeSet<_> =
        all.iter().filter(|span| span.parent.is_empty()).map(|span| span.trace.clone()).collect();
    assert_eq!(roots.len(), home.reports("ann").len());
    let issued = service.issued();
    let bytes = collector.bytes();
    assert!(!Wanted::new(issued.iter().map(String::as_str)).is_in(&bytes));
    assert!(memchr::memmem::find(&bytes, service.url.as_bytes()).is_none(), "a URL in a span");

    // A collector that is gone holds nobody up, and a share or an address that can't be is told.
    std::fs::write(
        home.path().join("config.toml"),
        "[telemetry]\notlp_endpoint = \"http://127.0.0.1:9\"\nsample = 1.0\n",
    )
    .expect("the configuration");
    let daemon = home.serve();
    home.run(&["credential", "rotate", "ann"]).ok();
    assert!(daemon.stop().success());
    for (line, word) in [("sample = 0.0", "telemetry.sample"), ("otlp_endpoint = \"x:y@z\"", "otlp_endpoint")]
    {
        std::fs::write(home.path().join("config.toml"), format!("[telemetry]\n{line}\n"))
            .expect("the configuration");
        let refused = home.run(&["serve"]);
        assert_eq!(refused.code(), 78, "{refused:?}");
        assert!(refused.stderr.contains(word) && refused.stderr.contains("allowed:"), "{refused:?}");
    }
}
