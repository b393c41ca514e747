//! What the compiler says of the usual mistakes: each is a program that must not compile, with
//! words that its error must have. All of them are checked by one cargo, in a crate of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use keywheel_sdk::serde_json::Value;

/// A name, what the author wrote, and what the error says of it.
const MISTAKES: [(&str, &str, &[&str]); 5] = [
    (
        "a_number_in_a_form",
        r#"pub fn mistake(cx: &Cx) -> Request {
            cx.post("https://example.com").form([("seconds", 3600)])
        }"#,
        &["`{integer}` can't be one value of a form, of JSON or of a query", "text(number.to_string())"],
    ),
    (
        "encoded_twice",
        r#"pub fn mistake(cx: &Cx) -> Request {
            let computed = (text("robot:") + secret("password")).base64();
            cx.post("https://example.com").form([("login", computed)])
        }"#,
        &["`Template` can't be one value of a form", "can't be encoded again"],
    ),
    (
        "a_list_as_a_header",
        r#"pub fn mistake(cx: &Cx) -> Request {
            cx.get("https://example.com").header("accept", ["text/html", "text/plain"])
        }"#,
        &["`[&str; 2]` can't stand in a request", "a template is a string, text(…)"],
    ),
    (
        "exporting_what_is_no_provider",
        "pub struct Forum;
        keywheel_sdk::export!(Forum);",
        &["`Forum` is no provider", "write `impl Provider for Forum`"],
    ),
    (
        "judging_a_request_that_was_not_sent",
        r#"pub fn mistake(cx: &Cx) -> u16 {
            cx.get("https://example.com").status()
        }"#,
        &["no method named `status` found for struct `keywheel_sdk::request::Request`"],
    ),
];

#[test]
#[expect(clippy::disallowed_methods, reason = "the test does what an author does")]
fn the_usual_mistakes_are_named_by_the_compiler() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("mistakes");
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(folder.join("src/bin")).expect("a folder");
    let manifest = format!(
        "[package]\nname = \"mistakes\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         keywheel-sdk = {{ path = {sdk:?} }}\n\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest).expect("the manifest");
    // The same dependencies as everything here, and none that would have to be fetched.
    if !folder.join("Cargo.lock").exists() {
        fs::copy(sdk.join("../Cargo.lock"), folder.join("Cargo.lock")).expect("the lock file");
    }
    for (name, code, _) in MISTAKES {
        let program =
            format!("#![allow(unused_imports)]\nuse keywheel_sdk::prelude::*;\n\n{code}\n\nfn main() {{}}\n");
        fs::write(folder.join(format!("src/bin/{name}.rs")), program).expect("a program");
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(&folder).env("CARGO_TARGET_DIR", folder.join("target"));
    cargo.args(["check", "--offline", "--quiet", "--bins", "--keep-going", "--message-format", "json"]);
    let output = cargo.output().expect("cargo starts");
    assert!(!output.status.success(), "every mistake compiled");
    let messages: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| keywheel_sdk::serde_json::from_str(line).ok())
        .collect();
    for (name, _, words) in MISTAKES {
        let said: String = messages
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .filter_map(|message| message["message"]["rendered"].as_str())
            .collect();
        assert!(
            !said.is_empty(),
            "{name} compiles, or cargo failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for word in words {
            assert!(said.contains(word), "{name} isn't told {word:?}, but:\n{said}");
        }
    }
}
