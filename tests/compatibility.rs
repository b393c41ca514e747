//! What was released stays usable: compiled plugins of every released contract run on this host,
//! and a released contract never changes. What a host can't run is refused in words that help.
//! `docs/compatibility.md` is the policy.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use crate::harness::*;
use crate::plugins::patched;

fn fixtures() -> PathBuf {
    source("tests/fixtures/abi")
}

/// The files of every released version, as `0.1.0/name`.
fn kept() -> BTreeSet<String> {
    let mut kept = BTreeSet::new();
    for version in fs::read_dir(fixtures()).expect("the fixtures").flatten() {
        let Ok(files) = fs::read_dir(version.path()) else { continue };
        for file in files.flatten() {
            kept.insert(format!(
                "{}/{}",
                version.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            ));
        }
    }
    kept
}

#[test]
fn no_fixture_of_a_released_contract_was_changed_added_in_silence_or_lost() {
    use sha2::Digest;
    let readme = fs::read_to_string(fixtures().join("README.md")).expect("its README");
    let listed: BTreeSet<(String, String)> = readme
        .lines()
        .filter_map(|line| line.split_once("  "))
        .filter(|(digest, _)| digest.len() == 64)
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();
    let found: BTreeSet<(String, String)> = kept()
        .into_iter()
        .map(|name| {
            let bytes = fs::read(fixtures().join(&name)).expect("a fixture");
            (name, hex::encode(sha2::Sha256::digest(bytes)))
        })
        .collect();
    assert_eq!(
        found, listed,
        "hint: fixtures are never rebuilt or edited; take them from git, and list those of a new version in README.md"
    );
}

/// A contract without comments and layout: what makes types fit or not.
fn structure(wit: &str) -> String {
    let code = wit.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_contract_of_a_released_version_is_frozen() {
    let now = fs::read_to_string(source("plugin-sdk/wit/provider.wit")).expect("the contract");
    let version = now
        .lines()
        .find_map(|line| line.strip_prefix("package keywheel:provider@")?.strip_suffix(';'))
        .expect("the contract names its version");
    let released = fs::read_to_string(fixtures().join(version).join("provider.wit")).unwrap_or_else(|_| {
        panic!(
            "contract {version} has no fixtures; hint: at its release, compile them as tests/fixtures/abi/README.md says"
        )
    });
    assert!(
        structure(&now) == structure(&released),
        "plugin-sdk/wit/provider.wit differs from contract {version} as it was released, so no compiled plugin would \
         load any more; hint: put the change into a new interface of a new package version, keep {version} loadable, \
         and keep new fixtures (docs/compatibility.md)"
    );
    // The check itself sees one more case, and doesn't mind a comment.
    assert_ne!(structure(&now.replace("sha256-hex,", "sha256-hex, sha512-hex,")), structure(&released));
    assert_eq!(structure(&format!("// A comment.\n{now}")), structure(&released));
}

/// A service of tokens: `/token` and `/rotate` issue, `/check` and `/me` ask for what was issued.
fn token_service() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // Ends with the test process, like the listener.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away early is no error of the service.
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
    url
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap_or(0);
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let fresh = random_secret();
    let body = match first.split(' ').nth(1).unwrap_or_default() {
        "/token" => format!(r#"{{"access_token":"{fresh}","expires_in":3600}}"#),
        "/rotate" => format!(r#"{{"fresh":"{fresh}","expires_in":3600}}"#),
        _ => r#"{"sub":"the account"}"#.to_owned(),
    };
    write!(
        stream,
        "HTTP/1.1 200 x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn every_compiled_plugin_of_every_released_contract_describes_validates_and_rotates() {
    let plugins: Vec<String> = kept().into_iter().filter(|name| name.ends_with(".wasm")).collect();
    assert!(plugins.len() >= 5, "{plugins:?}");
    let tokens = token_service();
    for name in plugins {
        // The versions of a plugin serve one service, so each gets a home of its own.
        let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
        let _daemon = home.serve();
        home.drop_plugin_as(&fixtures().join(&name), "p.wasm");
        let plugin = home.wait_for_plugin("p.wasm", "active");
        let base_url = format!("base_url={tokens}");
        match name.split_once('/').expect("version and name").1 {
            "http_session.wasm" => {
                let settings = ["--set", "validate_path=/check", "--set", "refresh_path=/rotate"];
                home.add_session("ann", "http-session", &service, &settings);
            }
            "well_behaved.wasm" => drop(home.add_session("ann", "well-behaved", &service, &[])),
            "uses_std.wasm" => drop(home.add_session("ann", "uses-std", &service, &[])),
            "oauth2_refresh.wasm" => {
                let settings = [
                    format!("token_url={tokens}/token"),
                    format!("validate_url={tokens}/me"),
                    "client_id=keywheel".to_owned(),
                    "client_auth=none".to_owned(),
                ];
                let more: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
                let keys = format!("refresh_token={}\naccess_token={}", random_secret(), random_secret());
                home.add("ann", "oauth2-refresh", &keys, &more);
            }
            "uses_everything.wasm" => {
                let keys = format!("session={}\ntoken={}", random_secret(), random_secret());
                home.add("ann", "uses-everything", &keys, &["--set", &base_url]);
                home.json(&["plugin", "approve", "uses-everything", "--yes"]);
            }
            other => panic!("{other} is new: say here how it is asked, and never drop an old one"),
        }
        // Of the first look, which may come before the approval.
        home.wait_for_reports("ann", 1);
        for verb in ["validate", "rotate"] {
            let report = home.json(&["credential", verb, "ann"]);
            assert_eq!(
                (&report["status"], &report["meta"]["verdict"]),
                (&"success".into(), &"valid".into()),
                "{name}: {report}"
            );
            assert_eq!(report["meta"]["plugin"], plugin["digest"], "{name}");
        }
    }
}

#[test]
fn what_was_built_for_another_contract_is_refused_with_what_was_found_known_and_next() {
    let home = TestHome::new();
    let (good, with_std) = (guest("well_behaved"), guest("uses_std"));
    let table = [
        (
            "later",
            patched(&good, "@0.1.0", "@0.9.0"),
            vec!["contract version 0.9.0", "knows 0.1.0", "hint: rebuild"],
        ),
        (
            "earlier",
            patched(&good, "@0.1.0", "@0.0.9"),
            vec!["contract version 0.0.9", "knows 0.1.0", "hint: rebuild"],
        ),
        // A type of an import, of an export, and a function that no host has.
        (
            "case",
            patched(&good, "sha256-hex", "sha512-hex"),
            vec!["differs from contract version 0.1.0", "sha512-hex", "hint: "],
        ),
        (
            "field",
            patched(&good, "validate-interval", "validate-in-weeks"),
            vec!["differs from contract version 0.1.0", "hint: "],
        ),
        (
            "wasi",
            patched(&with_std, "wasi:cli/stdout@0.2", "wasi:cli/stdout@0.3"),
            vec!["wasi:cli/stdout@0.3", "hint: "],
        ),
        (
            "unknown",
            patched(&with_std, "wasi:cli/stdout@", "wasi:cli/stdoux@"),
            vec!["wasi:cli/stdoux@0.2", "hint: "],
        ),
    ];
    for (name, bytes, reasons) in table {
        let file = home.outside().join(format!("{name}.wasm"));
        fs::write(&file, bytes).expect("a file");
        let refused = home.run(&["plugin", "check", file.to_str().expect("UTF-8")]);
        assert_eq!(refused.code(), 65, "{refused:?}");
        for reason in reasons {
            assert!(refused.stderr.contains(reason), "{name} lacks {reason}: {}", refused.stderr);
        }
    }
}
