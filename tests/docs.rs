//! What the documentation says is tried: the worked example is built and run as it stands
//! there, and every command it names exists.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::architecture::without_what_is_not_built;
use crate::harness::*;

/// README.md, every page in docs/ and those of the providers.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["docs", "docs/providers"]
        .iter()
        .flat_map(|folder| fs::read_dir(source(folder)).expect("a folder of pages"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.extend(Some(source("README.md")).filter(|path| path.exists()));
    pages.sort();
    pages
}

/// The fenced blocks of a page, without their fences.
fn blocks(page: &str) -> Vec<&str> {
    page.split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.split_once('\n'))
        .map(|(_, code)| code)
        .collect()
}

/// The blocks whose first line names a file, with that name.
fn files<'a>(page: &'a str) -> Vec<(&'a str, &'a str)> {
    let name = |block: &'a str| {
        let first = block.lines().next()?;
        first.strip_prefix("# file: ").or_else(|| first.strip_prefix("// file: "))
    };
    blocks(page).into_iter().filter_map(|block| Some((name(block)?, block))).collect()
}

/// Unchanged files are left alone, so that cargo finds what it built before still fresh.
fn write_if_new(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder");
    fs::write(path, text).expect("a file");
}

#[expect(clippy::disallowed_methods, reason = "the test does what the page tells its reader to do")]
fn cargo(folder: &Path, arguments: &[&str]) {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(folder).env("CARGO_TARGET_DIR", folder.join("target"));
    let output = cargo.args(arguments).arg("--offline").output().expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo {}\n{}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds the example in a folder of its own, the way its reader does. Returns the plugin.
fn built_example(page: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("docs-example");
    let found = files(page);
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["Cargo.toml", "src/lib.rs"]);
    for (name, text) in found {
        let here = source("");
        let mut text =
            text.replace("<path to keywheel>", here.to_str().expect("UTF-8").trim_end_matches('/'));
        if name == "Cargo.toml" {
            // Its reader's folder lies in no other workspace; the target folder does.
            text.push_str("\n[workspace]\n");
        }
        write_if_new(&folder.join(name), &text);
    }
    // The same dependencies as everything here, and none that would have to be fetched.
    if !folder.join("Cargo.lock").exists() {
        fs::copy(source("Cargo.lock"), folder.join("Cargo.lock")).expect("the lock file");
    }
    // Where the guests are built, what the example depends on was fetched.
    guest("well_behaved");
    cargo(&folder, &["test"]);
    cargo(&folder, &["build", "--release", "--target", "wasm32-wasip2"]);
    let plugin = "target/wasm32-wasip2/release/forum_provider.wasm";
    assert!(page.contains(plugin), "the page says where the plugin is");
    folder.join(plugin)
}

#[test]
fn the_worked_example_builds_passes_its_tests_and_keeps_a_session_alive() {
    let page = fs::read_to_string(source("docs/writing-a-provider.md")).expect("the page");
    let plugin = built_example(&page);
    let plugin = plugin.to_str().expect("UTF-8");
    let forum = Forum::start();
    let home = TestHome::new();
    assert_eq!(home.json(&["plugin", "check", plugin])["service"], "forum");
    assert_eq!(home.json(&["plugin", "install", plugin])["state"], "active");
    home.add(
        "ann",
        "forum",
        &format!("session=first\napi_key={}", forum.api_key),
        &["--set", &format!("base_url={}", forum.url)],
    );
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["status"], "success", "{report}");
    assert_eq!(home.json(&["credential", "list"])[0]["identity"], "ann");
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!(report["meta"]["rotated"], true, "{report}");
    let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    assert_eq!(exported["session"]["value"], "fresh");
    assert_eq!(exported["api_key"]["value"], forum.api_key.as_str());
}

/// The forum of the page: `/api/me` says who is signed in, and a renewal wants the API key.
struct Forum {
    url: String,
    api_key: String,
}

impl Forum {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let api_key = random_secret();
        let bearer = format!("Bearer {api_key}");
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hung up is no error of the forum.
                let _ = Self::answer(stream, &bearer);
            }
        });
        Self { url, api_key }
    }

    fn answer(mut stream: TcpStream, bearer: &str) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut request, mut cookie, mut key) = (String::new(), String::new(), String::new());
        reader.read_line(&mut request)?;
        let mut length = 0;
        for line in reader.by_ref().lines() {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "cookie" => cookie = value.to_owned(),
                "authorization" => key = value.to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        reader.take(length).read_to_end(&mut Vec::new())?;
        let signed_in = ["forum_session=first", "forum_session=fresh"].contains(&cookie.as_str());
        let (status, header) = if request.starts_with("GET /api/me ") && signed_in {
            (200, "")
        } else if request.starts_with("POST /api/session/renew ") && signed_in && key == bearer {
            (200, "Set-Cookie: forum_session=fresh; Path=/; HttpOnly\r\n")
        } else {
            (401, "")
        };
        let body = r#"{"name":"ann"}"#;
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// The command lines of a page that start `keywheel`, in blocks and between backticks.
fn command_lines(page: &str) -> Vec<Vec<String>> {
    let fenced = blocks(page).into_iter().flat_map(str::lines);
    let prose: String = page.split("\n```").step_by(2).collect();
    let spans: Vec<&str> = prose.split('`').skip(1).step_by(2).collect();
    let mut found = Vec::new();
    for line in fenced.chain(spans) {
        for command in line.split(['|', ';', '&']) {
            let words = command.split_whitespace().skip_while(|word| *word == "$" || word.contains('='));
            let words: Vec<String> = words.take_while(|word| *word != "#").map(str::to_owned).collect();
            let is_log = words[1.min(words.len())..] == ["is", "ready"];
            let is_ours = words.first().is_some_and(|word| word == "keywheel" || word.ends_with("/keywheel"));
            // The daemon's first line of log is quoted as well.
            if is_ours && !is_log {
                found.push(words[1..].to_vec());
            }
        }
    }
    found
}

#[test]
fn command_lines_are_found_in_blocks_and_in_prose() {
    let page = "Run `keywheel init`.\n\n```sh\n$ A=b ./target/keywheel plugin check x.wasm --json # look\ncat x | keywheel credential add ann\nkeywheels no\n```\n\nThen `cargo run -p keywheel`.\n";
    let found: Vec<String> = command_lines(page).iter().map(|words| words.join(" ")).collect();
    assert_eq!(found, ["plugin check x.wasm --json", "credential add ann", "init"]);
}

#[test]
fn every_command_that_the_documentation_names_exists_with_its_options() {
    let home = TestHome::without_init();
    let is_name = |word: &&String| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let mut seen = BTreeSet::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("UTF-8");
        for words in command_lines(&without_what_is_not_built(&text)) {
            let place = format!("{}: keywheel {}", page.display(), words.join(" "));
            let mut path: Vec<&str> = Vec::new();
            let mut help = home.run(&["--help"]).ok().stdout;
            for word in words.iter().take_while(|word| !word.starts_with('-')).filter(is_name) {
                // Below the last noun or verb come arguments, which may look like anything.
                if !help.contains("\nCommands:") {
                    break;
                }
                path.push(word);
                let output = home.run(&[&path[..], &["--help"]].concat());
                assert_eq!(output.code(), 0, "{place}\n{}", output.stderr);
                help = output.stdout;
            }
            for option in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let name = option.split('=').next().unwrap_or(option);
                let known = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == name);
                assert!(known, "{place}\nhas no option {name}:\n{help}");
            }
            seen.insert(path.join(" "));
        }
    }
    assert!(seen.len() > 3, "only {seen:?} are named");
}
