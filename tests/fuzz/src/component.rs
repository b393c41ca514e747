//! Plugin files as the compiler process first looks at them: any bytes are told apart without a
//! panic, and what passes imports nothing but the contract and WASI.

use keywheel::worker::compile::inspect;

pub fn run(input: &[u8]) {
    match inspect(input) {
        Ok(imports) => {
            for name in imports {
                assert!(
                    name.starts_with("keywheel:provider/") || name.starts_with("wasi:"),
                    "import `{name}` passed"
                );
            }
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

fn named(section: u8, name: &str, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![1, 0, u8::try_from(name.len()).expect("a short name")];
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(rest);
    let mut bytes = vec![section, u8::try_from(body.len()).expect("a short section")];
    bytes.extend(body);
    bytes
}

/// A component with one import and one export of an instance, and nothing inside.
fn component(import: &str, export: &str) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    // A type section: one instance type without anything in it.
    bytes.extend_from_slice(&[7, 3, 1, 0x42, 0]);
    bytes.extend(named(10, import, &[5, 0]));
    // An instance of no exports, to have something to export.
    bytes.extend_from_slice(&[5, 3, 1, 1, 0]);
    bytes.extend(named(11, export, &[5, 1, 0]));
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let whole = component("keywheel:provider/http@0.1.0", "keywheel:provider/guest@0.1.0");
    assert!(inspect(&whole).is_ok(), "{:?}", inspect(&whole));
    let mut nested = b"\0asm\x0d\0\x01\0".to_vec();
    nested.extend_from_slice(&[1, 8]);
    nested.extend_from_slice(b"\0asm\x01\0\0\0");
    nested.extend_from_slice(&[4, 8]);
    nested.extend_from_slice(b"\0asm\x0d\0\x01\0");
    nested.extend_from_slice(&whole[8..]);
    vec![
        whole,
        nested,
        component("evil:host/exec@1.0.0", "keywheel:provider/guest@0.1.0"),
        component("wasi:io/poll@0.2.0", "keywheel:provider/guest@0.9.0"),
        b"\0asm\x01\0\0\0".to_vec(),
        b"\0asm\x0d\0\x01\0\x01\xff\x7f".to_vec(),
        b"#!/bin/sh".to_vec(),
        Vec::new(),
    ]
}
