//! The tools of a provider's author, from outside: a new project, building and trying, recording
//! from a real service, packing. What takes a compiler is in `newcomer.rs`; here projects are
//! built by a script that copies a provider that is there already.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use keywheel::egress::redact::Redactor;
use minisign::KeyPair;
use serde_json::Value;

use crate::harness::*;

/// A folder of an author's, and the command line in it.
struct Desk {
    home: TestHome,
}

impl Desk {
    fn new() -> Self {
        Self { home: TestHome::without_init() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.outside().join(path)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // One that refuses its arguments never reads its input.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("the command ends");
        let text = |bytes| String::from_utf8(bytes).expect("commands print UTF-8");
        Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// With the tools that an author has.
    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.home.command(arguments);
        with_tools(&mut command).current_dir(self.home.outside());
        command
    }

    /// A project whose build copies a provider that comes with Keywheel, with its fixtures.
    fn project(&self, service: &str) -> PathBuf {
        let project = self.at("project");
        fs::create_dir_all(project.join("fixtures")).expect("a folder");
        fs::write(project.join("pyproject.toml"), "[project]\nname = \"x\"\n").expect("a file");
        let script = format!("mkdir -p dist && cp '{}' dist/{service}.wasm\n", plugin(service).display());
        fs::write(project.join("build.sh"), script).expect("a file");
        for name in ["active.toml", "unknown-token.toml"] {
            let fixture = source(&format!("plugins/{service}/fixtures/{name}"));
            fs::copy(fixture, project.join("fixtures").join(name)).expect("a fixture");
        }
        project
    }
}

/// A GitLab that repeats the secrets it deals with, old and new, in every spelling that redaction
/// promises to find.
#[derive(Clone)]
struct Echo {
    url: String,
    token: String,
    fresh: String,
    requests: Arc<Mutex<u32>>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let odd = |text: String| format!("{}/+{}=\"~", &text[..24], &text[24..]);
        let echo =
            Self { url, token: odd(random_secret()), fresh: odd(random_secret()), requests: Arc::default() };
        let of_thread = echo.clone();
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                drop(of_thread.answer(stream));
            }
        });
        echo
    }

    fn asked(&self) -> u32 {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spellings(secret: &str) -> Vec<String> {
        let each = |write: fn(u8) -> String| secret.bytes().map(write).collect::<String>();
        let mut all = vec![
            secret.to_owned(),
            each(|byte| format!("%{byte:02x}")),
            each(|byte| format!("%{byte:02X}")),
            each(|byte| format!("&#{byte};")),
            url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            hex::encode(secret),
            hex::encode_upper(secret),
        ];
        for before in ["", "u", "us", "user:"] {
            all.push(STANDARD.encode(format!("{before}{secret}")));
            all.push(URL_SAFE_NO_PAD.encode(format!("{before}{secret}:more")));
        }
        all
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut request, mut length, mut token) = (String::new(), 0, String::new());
        reader.read_line(&mut request)?;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "private-token" => token = value.to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        reader.take(length).read_to_end(&mut Vec::new())?;
        let known = [&self.token, &self.fresh].contains(&&token);
        let rotates = request.starts_with("POST ");
        let mut secrets = vec![&token];
        let mut body = serde_json::json!({
            "id": 7, "name": "made up", "active": true, "revoked": false, "user_id": 42,
            "created_at": "2026-11-24T10:00:00.000Z", "expires_at": "2027-11-24", "scopes": ["self_rotate"],
            "owner": "ann@corp.example", "trace": "q8Zt2LmN4xRv7Kp1WdA9",
        });
        if rotates {
            secrets.push(&self.fresh);
            body["token"] = self.fresh.as_str().into();
        }
        let mut headers = String::new();
        let mut echoes: Vec<Value> = Vec::new();
        for secret in secrets {
            echoes.extend(Self::spellings(secret).into_iter().map(Value::from));
            // In two fields.
            let (head, tail) = secret.split_at(26);
            echoes.push(serde_json::json!({ "head": head, "tail": tail }));
            headers.push_str(&format!(
                "X-You-Sent: {secret}\r\nSet-Cookie: seen={}; Path=/\r\n",
                hex::encode(secret)
            ));
        }
        body["echo"] = Value::Array(echoes);
        let mut body = body.to_string();
        // As some writers do.
        body.push_str(&format!("\n<!-- {} -->", token.replace('/', "\\/")));
        let body = if known {
            body.split("\n<!--").next().unwrap_or_default().replace("\"made up\"", "\"m\\u0061de up\"")
        } else {
            r#"{"message":"401 Unauthorized"}"#.to_owned()
        };
        let status = if known { 200 } else { 401 };
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn set(&self) -> String {
        format!("base_url={}", self.url)
    }

    /// Nothing of either token is in a text, however it is spelled.
    #[track_caller]
    fn is_not_in(&self, text: &str) {
        let redactor = Redactor::new([self.token.as_bytes(), self.fresh.as_bytes()]);
        assert!(!redactor.hides(text), "a token is in\n{text}");
        for secret in [&self.token, &self.fresh] {
            for spelled in Self::spellings(secret) {
                // Without the ends, which base64 shares with its neighbours.
                let inner = &spelled[4..spelled.len() - 4];
                assert!(!text.contains(inner), "{inner} is in\n{text}");
            }
        }
    }
}

#[test]
fn a_recorded_answer_holds_when_it_is_played_and_has_no_secret_in_any_spelling() {
    let (desk, echo) = (Desk::new(), Echo::start());
    let gitlab = plugin("gitlab");
    let gitlab = gitlab.to_str().expect("UTF-8");
    let told = desk
        .run(
            &[
                "plugin",
                "record",
                gitlab,
                "--out",
                "alive.toml",
                "--set",
                &echo.set(),
                "--about",
                "it lives",
                "--json",
            ],
            &format!("token={}\n", echo.token),
        )
        .ok();
    let fixture = fs::read_to_string(desk.at("alive.toml")).expect("the fixture");
    for text in [&fixture, &told.stdout, &told.stderr] {
        echo.is_not_in(text);
    }
    let told = told.json();
    assert_eq!(
        (told["says"].as_str(), told["holds"].as_bool()),
        (Some("valid"), Some(true)),
        "{told}\n{fixture}"
    );
    // The look-alikes are counted, and dates and amounts are still what they were.
    let removed = told["removed"].to_string();
    for what in ["secret", "what looks like a token", "e-mail address"] {
        assert!(removed.contains(what), "{what} is not told in {removed}");
    }
    assert!(!fixture.contains("ann@corp") && !fixture.contains("q8Zt2LmN4xRv7Kp1WdA9"), "{fixture}");
    for kept in ["2026-11-24T10:00:00.000Z", "2027-11-24", "self_rotate", "private-token = \"{token}\""] {
        assert!(fixture.contains(kept), "{kept} is missing in\n{fixture}");
    }

    // What is there is never written over, and nothing is asked then.
    let before = echo.asked();
    let again = desk.run(
        &["plugin", "record", gitlab, "--out", "alive.toml", "--set", &echo.set()],
        &format!("token={}\n", echo.token),
    );
    assert_eq!((again.code(), echo.asked()), (65, before), "{}", again.stderr);
}

#[test]
fn a_made_up_secret_is_recorded_as_such() {
    let (desk, echo) = (Desk::new(), Echo::start());
    let gitlab = plugin("gitlab");
    let arguments = [
        "plugin",
        "record",
        gitlab.to_str().expect("UTF-8"),
        "--made-up",
        "--out",
        "made-up.toml",
        "--set",
        &echo.set(),
    ];
    let told = desk.run(&arguments, "").ok();
    let fixture = fs::read_to_string(desk.at("made-up.toml")).expect("the fixture");
    assert!(fixture.contains("made_up = true") && fixture.contains("verdict = \"invalid\""), "{fixture}");
    assert!(told.stdout.contains("played again, it holds"), "{}", told.stdout);
}

#[test]
fn a_rotation_is_recorded_only_on_request_and_its_new_secret_is_kept_first() {
    let (desk, echo) = (Desk::new(), Echo::start());
    let gitlab = plugin("gitlab");
    let gitlab = gitlab.to_str().expect("UTF-8");
    let set = echo.set();
    let rotate = |more: &[&str]| {
        let begin = ["plugin", "record", gitlab, "--call", "rotate", "--out", "rotate.toml", "--set", &set];
        desk.run(&[&begin, more].concat(), &format!("token={}\n", echo.token))
    };
    // Without a word for it, and without a place for the new secret, nothing is asked.
    for (more, code) in [
        (vec![], 2),
        (vec!["--yes-rotate"], 2),
        (vec!["--yes-rotate", "--save", "missing/new"], 3),
        (vec!["--yes-rotate", "--save", "new", "--expect", "rotatd"], 2),
    ] {
        let refused = rotate(&more);
        assert_eq!((refused.code(), echo.asked()), (code, 0), "{more:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("hint:") || more.len() == 1 || code == 3, "{}", refused.stderr);
    }
    let told = rotate(&["--yes-rotate", "--save", "new"]).ok();
    let saved = fs::read_to_string(desk.at("new")).expect("the new secrets");
    assert_eq!(saved, format!("token={}\n", echo.fresh));
    let mode = fs::metadata(desk.at("new")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let fixture = fs::read_to_string(desk.at("rotate.toml")).expect("the fixture");
    for text in [&fixture, &told.stdout, &told.stderr] {
        echo.is_not_in(text);
    }
    assert!(told.stdout.contains("played again, it holds"), "{}\n{fixture}", told.stdout);
    assert!(fixture.contains("captured = [\"token\"]"), "{fixture}");
}

#[test]
fn a_project_is_built_and_every_fixture_is_shown_with_its_requests() {
    let desk = Desk::new();
    let project = desk.project("gitlab");
    let once = |more: &[&str]| desk.run(&[&["plugin", "dev", "project", "--once"], more].concat(), "");
    let shown = once(&[]).ok().stdout;
    for line in [
        "service `gitlab`",
        "may reach the address in setting \"base_url\"",
        "✓ active",
        "→ GET https://",
        "private-token: {token}",
        "← 200, ",
        "= valid (identity ",
        "2 of 2 fixtures hold",
    ] {
        assert!(shown.contains(line), "{line} is missing in\n{shown}");
    }

    let fixture = project.join("fixtures/active.toml");
    let text = fs::read_to_string(&fixture).expect("a fixture");
    fs::write(&fixture, text.replace("verdict = \"valid\"", "verdict = \"invalid\"")).expect("a file");
    let broken = once(&["--json"]);
    assert_eq!(broken.code(), 1);
    assert!(
        broken.json()["fixtures"][0]["findings"][0]
            .as_str()
            .is_some_and(|said| said.contains("says `valid`"))
    );

    fs::write(project.join("build.sh"), "echo 'error[E0425]: no such thing' >&2; exit 1\n").expect("a file");
    let failed = once(&[]);
    assert_eq!(failed.code(), 1);
    assert!(failed.stdout.contains("error[E0425]: no such thing"), "{}", failed.stdout);
}

#[test]
fn the_real_service_is_asked_on_request_and_good_builds_are_installed() {
    let (desk, echo) = (Desk::new(), Echo::start());
    desk.project("gitlab");
    let live = ["plugin", "dev", "project", "--once", "--live", "--set", &echo.set()];
    let shown = desk.run(&live, &format!("token={}\n", echo.token)).ok();
    assert!(shown.stdout.contains("✓ live: the real service") && echo.asked() == 1, "{}", shown.stdout);
    echo.is_not_in(&shown.stdout);

    // A home is needed only by an installation.
    let install = ["plugin", "dev", "project", "--once", "--install"];
    assert_eq!(desk.run(&install, "").code(), 78);
    desk.run(&["init"], "").ok();
    let _daemon = desk.home.serve();
    assert!(desk.run(&install, "").ok().stdout.contains("; installed"));
    desk.home.wait_for_plugin("gitlab.wasm", "active");
}

/// `plugin dev` at work, with what it says.
struct Dev {
    child: Child,
    said: PathBuf,
}

impl Dev {
    fn start(desk: &Desk) -> Self {
        let said = desk.at("said");
        let file = File::create(&said).expect("a file");
        let mut command = desk.command(&["plugin", "dev", "project"]);
        command.stdin(Stdio::null()).stderr(file.try_clone().expect("a second descriptor")).stdout(file);
        Self { child: command.spawn().expect("it starts"), said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("what it said")
    }

    fn wait_for(&self, count: usize, what: &str) {
        wait_until(3 * SOON, &format!("it says `{what}` {count} times"), || {
            (self.said().matches(what).count() >= count).then_some(())
        });
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

#[test]
fn a_saved_file_is_another_round_and_an_interrupt_ends_it_cleanly() {
    let desk = Desk::new();
    let project = desk.project("gitlab");
    let mut dev = Dev::start(&desk);
    dev.wait_for(1, "2 of 2 fixtures hold");
    dev.wait_for(1, "waiting for a change");
    // What an editor leaves beside is none; a source is.
    fs::write(project.join("fixtures/.active.toml.swp"), "x").expect("a file");
    fs::copy(project.join("fixtures/active.toml"), project.join("fixtures/again.toml")).expect("a fixture");
    dev.wait_for(1, "3 of 3 fixtures hold");
    fs::write(project.join("build.sh"), "exit 1\n").expect("a file");
    dev.wait_for(1, "there is no plugin to try");
    dev.wait_for(3, "waiting for a change");
    assert_eq!(dev.said().matches("fixtures hold").count(), 2, "{}", dev.said());
    let pid = rustix::process::Pid::from_child(&dev.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
    let status = wait_until(SOON, "it ends", || dev.child.try_wait().expect("a child can be waited for"));
    assert!(status.success(), "{status}");
}

#[test]
fn what_is_handed_on_is_tested_and_names_its_digest_and_permissions() {
    let desk = Desk::new();
    let wasm = plugin("gitlab");
    let fixtures = source("plugins/gitlab/fixtures");
    let pack = |out: &str, more: &[&str]| {
        let begin = ["plugin", "pack", wasm.to_str().expect("UTF-8"), "--out", out];
        desk.run(&[&begin, more].concat(), "")
    };
    let tested = ["--fixtures", fixtures.to_str().expect("UTF-8")];
    let packed = pack("packed", &[&tested[..], &["--json"]].concat()).ok().json();
    let name = packed["file"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("gitlab-") && name.ends_with(".wasm"), "{name}");
    assert_eq!(fs::read(desk.at("packed").join(&name)).expect("the plugin"), fs::read(&wasm).expect("it"));
    let checked =
        command("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(desk.at("packed")).output();
    assert!(checked.expect("sha256sum starts").status.success());
    let permissions = fs::read_to_string(desk.at("packed/permissions.txt")).expect("the permissions");
    assert!(
        permissions.contains("service `gitlab`") && permissions.contains("key \"token\""),
        "{permissions}"
    );

    assert_eq!(pack("packed", &tested).code(), 65);
    // Without fixtures it fails the test: nothing is written, unless that is what is wanted.
    let empty = desk.at("none");
    fs::create_dir(&empty).expect("a folder");
    let untested = ["--fixtures", empty.to_str().expect("UTF-8")];
    let refused = pack("other", &untested);
    assert!(refused.code() == 1 && refused.stderr.contains("--untested"), "{}", refused.stderr);
    assert!(!desk.at("other").exists());
    assert!(pack("other", &["--untested"]).ok().stdout.contains("minisign -Sm other/"));
    let permissions = fs::read_to_string(desk.at("other/permissions.txt")).expect("the permissions");
    assert!(permissions.contains("not tested"));
}

#[test]
fn a_signature_goes_along_only_if_it_is_of_the_key_that_was_named() {
    let desk = Desk::new();
    let wasm = desk.at("mine.wasm");
    fs::copy(plugin("gitlab"), &wasm).expect("the plugin");
    let key = KeyPair::generate_unencrypted_keypair().expect("a key");
    let other = KeyPair::generate_unencrypted_keypair().expect("a key");
    let bytes = fs::read(&wasm).expect("the plugin");
    let signed = minisign::sign(None, &key.sk, Cursor::new(bytes), Some("mine"), None).expect("a signature");
    fs::write(desk.at("mine.wasm.minisig"), signed.into_string()).expect("a file");
    let pack = |more: &[&str]| {
        desk.run(&[&["plugin", "pack", "mine.wasm", "--untested", "--out", "packed"], more].concat(), "")
    };
    assert_eq!(pack(&[]).code(), 2);
    let stranger = pack(&["--key", &other.pk.to_base64()]);
    assert!(stranger.code() == 65 && stranger.stderr.contains("--key is"), "{}", stranger.stderr);
    assert!(!desk.at("packed").exists());
    let packed = pack(&["--key", &key.pk.to_base64(), "--json"]).ok().json();
    assert_eq!(packed["signed"], true);
    let name = format!("packed/{}.minisig", packed["file"].as_str().expect("a name"));
    assert!(desk.at(&name).exists());
    // Damaged on the way.
    fs::remove_dir_all(desk.at("packed")).expect("the folder");
    File::options().append(true).open(&wasm).and_then(|mut file| file.write_all(b"x")).expect("a byte more");
    assert_eq!(pack(&["--key", &key.pk.to_base64()]).code(), 65);
}

#[test]
fn a_new_project_is_refused_with_its_reason_and_nothing_is_left_behind() {
    let desk = Desk::new();
    let entries = || fs::read_dir(desk.home.outside()).expect("the desk").count();
    let before = entries();
    for (arguments, code, said) in [
        (vec!["Forge"], 65, "a-z"),
        (vec!["forge", "--into", "a/b"], 3, "mkdir -p"),
        (vec!["forge", "--sdk", "/nowhere"], 3, "/nowhere"),
        (vec!["forge", "--sdk", "/"], 65, "keywheel-sdk"),
        (vec!["forge", "--lang", "js", "--sdk", "/"], 2, "--sdk"),
        (vec!["forge", "--lang", "cobol"], 2, "rust, js, python"),
    ] {
        let refused = desk.run(&[&["plugin", "new"], &arguments[..]].concat(), "");
        assert_eq!(refused.code(), code, "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(said), "{arguments:?}: {}", refused.stderr);
        assert_eq!(entries(), before, "{arguments:?}");
    }
    // Without a compiler on the PATH.
    let bare = desk.home.run(&["plugin", "new", "forge", "--into", desk.at("x").to_str().expect("UTF-8")]);
    assert!(bare.code() == 3 && bare.stderr.contains("rustup.rs"), "{}", bare.stderr);
    assert_eq!(entries(), before);
    fs::create_dir(desk.at("forge")).expect("a folder");
    fs::write(desk.at("forge/x"), "").expect("a file");
    assert_eq!(desk.run(&["plugin", "new", "forge"], "").code(), 65);
}

#[test]
fn a_project_in_another_language_passes_its_own_tests() {
    for (language, test) in [
        ("js", vec!["npm", "test", "--silent"]),
        ("python", vec!["python3", "-m", "unittest", "discover", "-s", "test"]),
    ] {
        let desk = Desk::new();
        desk.run(&["plugin", "new", "forge", "--lang", language], "").ok();
        let ran =
            command(test[0]).args(&test[1..]).current_dir(desk.at("forge")).output().expect("it starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(ran.status.success(), "{language}: {}{}", said(&ran.stdout), said(&ran.stderr));
    }
}
