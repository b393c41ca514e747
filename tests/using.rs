//! Secrets where they are used: real programs that go on while what they use is rotated under
//! them, sinks through failures and power cuts, commands with secrets, and consumers that a
//! rotation waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::faults::shim::{FOREVER, Faults, SINK};
use crate::harness::*;
use crate::peers::Grant;
use crate::power_cut::{add as add_account, exported};
use crate::secrets::Wanted;
use crate::services::{Class, Services, Terms};

fn text(path: &Path) -> String {
    path.to_str().expect("paths of tests are UTF-8").to_owned()
}

fn configure(home: &TestHome, text: &str) {
    fs::write(home.path().join("config.toml"), text).expect("the configuration");
}

/// A sink as `sink list` shows it.
#[track_caller]
fn sink(home: &TestHome, name: &str) -> Value {
    let list = home.json(&["sink", "list"]);
    let sinks = list.as_array().expect("an array");
    sinks.iter().find(|sink| sink["sink"] == name).unwrap_or_else(|| panic!("no {name} in {list}")).clone()
}

#[track_caller]
fn wait_in_step(home: &TestHome, name: &str) -> Value {
    wait_until(SOON, &format!("sink {name} is in step"), || {
        Some(sink(home, name)).filter(|sink| sink["state"] == "in-step")
    })
}

/// A program that runs beside the test, and ends with it.
struct Consumer {
    child: Child,
    log: PathBuf,
}

impl Consumer {
    fn start(command: &mut std::process::Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a descriptor")).stderr(file);
        Self { child: command.spawn().expect("it starts"), log }
    }

    /// Its lines: what, which file, which status, after how many tries.
    fn lines(&self) -> Vec<(String, String, String, u32)> {
        let log = fs::read_to_string(&self.log).expect("a log");
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let [what, sum, status, tries] = words[..] else { panic!("{line:?} in\n{log}") };
            (what.into(), sum.into(), status.into(), tries.parse().unwrap_or_else(|_| panic!("{line:?}")))
        };
        whole.lines().map(line).collect()
    }

    /// How many different files a kind of request used that succeeded.
    fn used(&self, kind: &str) -> usize {
        let lines = self.lines();
        let good = lines.iter().filter(|(what, _, status, _)| what == kind && status == "200");
        good.map(|(_, sum, ..)| sum).collect::<BTreeSet<_>>().len()
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    fn end(mut self) -> Vec<(String, String, String, u32)> {
        let status = wait_until(SOON, "the consumer ends", || self.child.try_wait().expect("a child"));
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.success(), "{status}\n{}", log());
        self.lines()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

#[test]
fn scripts_with_curl_and_a_browser_go_on_while_what_they_use_is_rotated() {
    const GENERATIONS: usize = 6;
    let playwright = playwright();
    let home = TestHome::new();
    let out = home.outside().join("out");
    fs::create_dir(&out).expect("a folder");
    let file = |name: &str| text(&out.join(name));
    configure(
        &home,
        &format!(
            "[sinks.cookies]\ncredential = 'shop'\npath = '{}'\nformat = 'netscape'\n\
             [sinks.state]\ncredential = 'shop'\npath = '{}'\nformat = 'playwright'\n\
             [sinks.environment]\ncredential = 'ann'\npath = '{}'\nformat = 'env'\n\
             [sinks.tokens]\ncredential = 'ann'\npath = '{}'\nformat = 'json'\n",
            file("cookies.txt"),
            file("state.json"),
            file("api.env"),
            file("tokens.json")
        ),
    );
    let (site, grant) = (Peer::django(600), Grant::living("peer-client-secret-basic", 30));
    home.drop_plugin(&plugin("http-session"));
    home.drop_plugin(&plugin("oauth2-refresh"));
    let daemon = home.serve();
    let issued = http("POST", &site.url("/test/issue/?user=ann"), &[]).json();
    let session = issued["cookie"]["value"].as_str().expect("a session").to_owned();
    let base_url = format!("base_url={}", site.url(""));
    let settings = [
        &base_url,
        "validate_path=/account/",
        "refresh_path=/refresh/",
        "login_path=/login/",
        "cookie_name=sessionid",
        "commit_class=burn-on-issue",
    ];
    let cadence = ["--every", "1s", "--rotate-every", "1s"];
    let mut arguments = cadence.to_vec();
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    home.add("shop", "http-session", &format!("session={session}"), &arguments);
    grant.add(&home, "header", &cadence);
    wait_until(SOON, "there is an access token to begin with", || {
        fs::read_to_string(out.join("api.env")).ok().filter(|env| env.contains("ACCESS_TOKEN="))
    });
    for name in ["cookies", "state"] {
        wait_until(SOON, "there is a session to begin with", || {
            (!sink(&home, name)["deliveredAt"].is_null()).then_some(())
        });
    }

    let stop = file("stop");
    let urls = [site.url("/account/"), grant.site.ready["userinfo_url"].as_str().expect("a URL").to_owned()];
    let mut curl = command("sh");
    curl.arg(source("tests/using/curl.sh")).args([file("cookies.txt"), file("api.env")]);
    let curl = Consumer::start(curl.args(&urls).arg(&stop), out.join("curl.log"));
    let mut browser = command("node");
    browser.arg(source("tests/using/browser.mjs")).args([file("state.json"), file("tokens.json")]);
    browser.env("PLAYWRIGHT", playwright).env("HOME", &out).env("TMPDIR", &out);
    let browser = Consumer::start(browser.args(&urls).arg(&stop), out.join("browser.log"));
    wait_until(3 * SOON, "each of them has used six generations", || {
        let used = [curl.used("site"), curl.used("api"), browser.used("browser"), browser.used("fetch")];
        used.iter().all(|&used| used >= GENERATIONS).then_some(())
    });
    fs::write(&stop, "").expect("a file");
    let lines = [curl.end(), browser.end()].concat();
    for line in &lines {
        assert_eq!(line.2, "200", "{line:?}");
    }
    // Where the old secret lives on, nobody is ever refused.
    for (what, .., tries) in lines.iter().filter(|(what, ..)| matches!(what.as_str(), "api" | "fetch")) {
        assert_eq!(*tries, 1, "{what}");
    }
    // They were never signed in anew, and the provider saw no token twice.
    let stats = http("GET", &site.url("/stats/"), &[]).json();
    assert_eq!(stats["logins"], 0, "{stats}");
    assert!(stats["cycles"].as_u64().is_some_and(|cycles| cycles >= 5), "{stats}");
    grant.assert_never_reused();
    assert!(daemon.stop().success());
}

/// Takes webhooks as a careful receiver does: checks each signature, and lets each id have its
/// effect once.
#[derive(Clone)]
struct Receiver {
    url: String,
    state: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    key: Vec<u8>,
    down: bool,
    /// Ids that were refused because it was down.
    refused: Vec<String>,
    /// Ids as they came, again and again.
    accepted: Vec<String>,
    /// By id, once.
    effects: BTreeMap<String, Value>,
    /// What was wrong with any of them.
    wrong: Vec<String>,
    all: Vec<u8>,
}

impl Receiver {
    fn start(key: &[u8]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}/hook?token=t0ken", listener.local_addr().expect("an address"));
        let state = Received { key: key.to_vec(), ..Received::default() };
        let receiver = Self { url, state: Arc::new(Mutex::new(state)) };
        let of_thread = receiver.clone();
        // Ends with the test process, like the listener.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let receiver = of_thread.clone();
                std::thread::spawn(move || drop(receiver.answer(stream)));
            }
        });
        receiver
    }

    fn state(&self) -> MutexGuard<'_, Received> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(SOON))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut head, mut headers, mut length) = (String::new(), BTreeMap::new(), 0);
        reader.read_line(&mut head)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            head.push_str(&line);
        }
        if let Some(value) = headers.get("content-length") {
            length = value.parse().expect("a length");
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let status = self.react(&head, &headers, &body);
        write!(stream, "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    }

    fn react(&self, head: &str, headers: &BTreeMap<String, String>, body: &[u8]) -> u16 {
        let mut state = self.state();
        state.all.extend_from_slice(head.as_bytes());
        state.all.extend_from_slice(body);
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let (id, moment) = (header("webhook-id"), header("webhook-timestamp"));
        let mut mac = Hmac::<Sha256>::new_from_slice(&state.key).expect("any length");
        mac.update(format!("{id}.{moment}.").as_bytes());
        mac.update(body);
        let wanted = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        if header("webhook-signature") != wanted || header("content-type") != "application/json" {
            state.wrong.push(head.to_owned());
            return 401;
        }
        if state.down {
            state.refused.push(id);
            return 503;
        }
        state.accepted.push(id.clone());
        state.effects.entry(id).or_insert_with(|| serde_json::from_slice(body).expect("JSON"));
        204
    }

    /// The generations that had their effect, in the order of their ids' first arrival.
    fn generations(&self) -> Vec<u64> {
        let state = self.state();
        let mut seen = BTreeSet::new();
        let first = state.accepted.iter().filter(|id| seen.insert((*id).clone()));
        first.map(|id| state.effects[id]["data"]["generation"].as_u64().expect("a number")).collect()
    }
}

/// A credential with a sink that is a file, a command and a webhook.
struct Kept {
    home: TestHome,
    service: Service,
    receiver: Receiver,
    out: PathBuf,
    commands: PathBuf,
}

impl Kept {
    fn new() -> Self {
        let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
        let (out, commands) = (home.outside().join("out"), home.outside().join("commands"));
        fs::create_dir(&out).expect("a folder");
        let key: Vec<u8> = (0..32).map(|number: u8| number.wrapping_mul(37)).collect();
        let secret = home.outside().join("hook.secret");
        fs::write(&secret, format!("whsec_{}\n", STANDARD.encode(&key))).expect("a file");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
        let receiver = Receiver::start(&key);
        let script = format!(
            "{{ cat; echo; env | grep ^KEYWHEEL_ | sort | tr '\\n' ' '; echo; }} >> {}",
            commands.display()
        );
        configure(
            &home,
            &format!(
                "[sinks.app]\ncredential = 'ann'\npath = '{}'\nformat = 'json'\nmode = '0640'\n\
                 command = ['/bin/sh', '-c', \"{script}\"]\nwebhook = '{}'\nwebhook_secret_file = '{}'\n\
                 [sinks.stray]\ncredential = 'nobody'\ncommand = ['/bin/false']\n",
                out.join("app.json").display(),
                receiver.url,
                secret.display()
            )
            .replace("\\n' ' '", "\\\\n' ' '"),
        );
        home.drop_plugin(&guest("well_behaved"));
        Self { home, service, receiver, out, commands }
    }

    #[track_caller]
    fn rotate(&self) {
        // The schedule may be at it itself.
        wait_until(SOON, "it is rotated", || {
            (self.home.run(&["credential", "rotate", "ann"]).code() == 0).then_some(())
        });
    }

    fn file(&self) -> PathBuf {
        self.out.join("app.json")
    }

    fn held(&self) -> String {
        fs::read_to_string(self.file()).expect("the sink's file")
    }

    fn in_force(&self) -> String {
        self.home.run(&["credential", "export", "ann", "--format", "json"]).ok().stdout
    }

    /// What the command was told, each time: the message and its variables.
    fn commands(&self) -> Vec<(Value, String)> {
        let log = fs::read_to_string(&self.commands).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let told = |pair: &[&str]| (serde_json::from_str(pair[0]).expect("JSON"), pair[1].trim().to_owned());
        lines.chunks(2).filter(|pair| pair.len() == 2).map(told).collect()
    }

    fn commanded(&self) -> Vec<u64> {
        self.commands()
            .iter()
            .map(|(told, _)| told["data"]["generation"].as_u64().expect("a number"))
            .collect()
    }

    #[track_caller]
    fn wait_failing(&self, words: &str) -> Value {
        wait_until(SOON, &format!("the sink fails: {words}"), || {
            let sink = sink(&self.home, "app");
            let said = sink["error"].as_str().is_some_and(|error| error.contains(words));
            (sink["state"] == "failing" && said).then_some(sink)
        })
    }

    #[track_caller]
    fn assert_in_step(&self) {
        wait_in_step(&self.home, "app");
        assert_eq!(self.held(), self.in_force());
    }
}

#[test]
fn a_sink_gets_each_generation_once_whatever_is_down_full_missing_or_killed() {
    let kept = Kept::new();
    let home = &kept.home;
    let faults = Faults::of(home);
    let daemon = home.serve_in(&faults.environment());
    home.add_session("ann", "well-behaved", &kept.service, &["--every", "1h"]);
    kept.assert_in_step();
    assert_eq!(kept.file().metadata().expect("the file").permissions().mode() & 0o7777, 0o640);
    let (told, variables) = kept.commands().remove(0);
    assert_eq!((&told["type"], &told["data"]["credential"]), (&json!("credential.changed"), &json!("ann")));
    assert_eq!(
        variables,
        format!(
            "KEYWHEEL_CREDENTIAL=ann KEYWHEEL_GENERATION=1 KEYWHEEL_PATH={} KEYWHEEL_SINK=app",
            kept.file().display()
        )
    );
    assert_eq!(kept.receiver.generations(), [1]);
    let stray = sink(home, "stray");
    assert_eq!((&stray["state"], &stray["generation"]), (&json!("no-credential"), &Value::Null), "{stray}");

    // One that is added while the daemon runs is served, and forgotten when it is gone.
    let config = fs::read_to_string(home.path().join("config.toml")).expect("the configuration");
    let late = kept.out.join("late.env");
    let table = format!("[sinks.late]\ncredential = 'ann'\npath = '{}'\nformat = 'env'\n", late.display());
    configure(home, &format!("{config}\n{table}"));
    home.run(&["reload"]).ok();
    wait_in_step(home, "late");
    let exported = home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout;
    assert_eq!(fs::read_to_string(&late).expect("its file"), exported);
    configure(home, &config);
    home.run(&["reload"]).ok();
    fs::remove_file(&late).expect("its file");

    // The receiver is down: the file and the command don't wait for it, and nothing is done twice.
    kept.receiver.state().down = true;
    kept.rotate();
    let failing = kept.wait_failing("the webhook was not taken: answered with 503");
    assert_eq!((&failing["generation"], &failing["current"]), (&json!(1), &json!(2)), "{failing}");
    assert_eq!(kept.held(), kept.in_force());
    wait_until(SOON, "it is tried again", || (kept.receiver.state().refused.len() >= 2).then_some(()));
    kept.receiver.state().down = false;
    kept.assert_in_step();
    assert_eq!((kept.receiver.generations(), kept.commanded()), (vec![1, 2], vec![1, 2]));
    {
        let state = kept.receiver.state();
        let last = state.accepted.last().expect("an id");
        assert!(state.refused.iter().all(|id| id == last), "{:?} {last}", state.refused);
    }
    // By hand everything is done again, and the receiver knows it by its id.
    home.run(&["sink", "sync", "app"]).ok();
    assert_eq!((kept.receiver.generations(), kept.commanded()), (vec![1, 2], vec![1, 2, 2]));
    assert_eq!(kept.receiver.state().accepted.len(), 3);

    // The folder is gone.
    let away = home.outside().join("away");
    fs::rename(&kept.out, &away).expect("a folder");
    let before = fs::read_to_string(away.join("app.json")).expect("the old file");
    kept.rotate();
    kept.wait_failing("its folder doesn't exist; hint: make it");
    let refused = home.run(&["sink", "sync", "app"]);
    assert_eq!(refused.code(), 75, "{refused:?}");
    assert_eq!(fs::read_to_string(away.join("app.json")).expect("the old file"), before);
    fs::rename(&away, &kept.out).expect("a folder");
    home.run(&["sink", "sync", "app"]).ok();
    kept.assert_in_step();
    assert_eq!(kept.receiver.generations(), [1, 2, 3]);

    // Its disk is full.
    let before = kept.held();
    faults.fail_writes(libc::ENOSPC, FOREVER, SINK);
    kept.rotate();
    kept.wait_failing("No space left on device");
    assert_eq!(kept.held(), before);
    faults.release();
    kept.assert_in_step();
    let names: Vec<_> =
        fs::read_dir(&kept.out).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(names, ["app.json"]);

    // Somebody deletes the file, or writes into it.
    let commanded = kept.commanded();
    fs::remove_file(kept.file()).expect("the file");
    wait_until(SOON, "the file is back", || {
        fs::read_to_string(kept.file()).ok().filter(|held| *held == kept.in_force())
    });
    fs::write(kept.file(), "something else").expect("the file");
    wait_until(SOON, "the file is right again", || (kept.held() == kept.in_force()).then_some(()));
    assert_eq!(kept.commanded(), commanded, "only new secrets are told");
    assert!(daemon.stop().success());

    // The power goes between a rotation and its delivery.
    let fuse = home.outside().join("fuse");
    let environment = [("KEYWHEEL_CRASH_AT", "sink.delivering"), ("KEYWHEEL_CRASH_ARMED_BY", &text(&fuse))];
    let mut daemon = home.serve_in(&environment);
    wait_in_step(home, "app");
    let (before, told) = (kept.held(), kept.receiver.generations());
    fs::write(&fuse, "").expect("a fuse");
    home.run(&["credential", "rotate", "ann"]);
    assert_eq!(daemon.ended().signal(), Some(9));
    fs::remove_file(&fuse).expect("the fuse");
    assert_ne!(kept.in_force(), before, "the rotation was committed");
    assert_eq!((kept.held(), kept.receiver.generations()), (before, told));
    let shown = sink(home, "app");
    assert_eq!(shown["state"], "behind", "{shown}");
    let daemon = home.serve();
    kept.assert_in_step();
    let last = sink(home, "app")["current"].as_u64().expect("a number");
    assert_eq!(kept.receiver.generations(), (1..=last).collect::<Vec<_>>());

    // No secret went anywhere but into the file, and no signature was wrong.
    let log = home.printed();
    let strays = log.matches("isn't there, or has no secrets here sink=\"stray\"").count();
    assert_eq!(strays, 3, "once for each daemon");
    assert!(!log.contains("t0ken"), "{log}");
    let issued = kept.service.issued();
    let wanted = Wanted::new(issued.iter().map(String::as_str));
    assert!(wanted.is_in(kept.held().as_bytes()), "it is shown to find");
    let state = kept.receiver.state();
    assert_eq!(state.wrong, Vec::<String>::new());
    assert!(!wanted.is_in(&state.all) && !wanted.is_in(daemon.log().as_bytes()));
    assert!(!wanted.is_in(&fs::read(&kept.commands).expect("a log")));
}

#[test]
fn a_sink_that_can_not_be_is_refused_by_its_name_and_key() {
    let home = TestHome::new();
    configure(
        &home,
        "[sinks.app]\ncredential = 'ann'\npath = '/run/app'\nformat = 'netscape'\nmode = '0644'\n",
    );
    let refused = home.run(&["serve"]);
    assert_eq!(refused.code(), 78, "{refused:?}");
    assert!(refused.stderr.contains("mode is \"0644\"; allowed: \"0600\""), "{refused:?}");
    configure(&home, "[sinks.app]\ncredential = 'ann'\nwebhook = 'https://app.example/?token=t0ken'\n");
    let refused = home.run(&["serve"]);
    assert_eq!(refused.code(), 78, "{refused:?}");
    assert!(refused.stderr.contains("sinks.app.webhook_secret_file is missing"), "{refused:?}");
    assert!(!refused.stderr.contains("t0ken"), "{refused:?}");
    configure(&home, "[sinks.app]\ncredential = 'ann'\ncommand = ['/bin/true']\n");
    let unknown = home.run(&["sink", "sync", "other"]);
    assert_eq!(unknown.code(), 3, "{unknown:?}");
    assert!(unknown.stderr.contains("no sink `other` in config.toml; there are: app"), "{unknown:?}");
}

#[test]
fn a_command_gets_secrets_in_variables_and_files_that_end_with_it() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let ann = home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    let bob = home.add_session("bob", "well-behaved", &service, &["--every", "1h"]);
    let run = |arguments: &[&str]| home.run(&[&["run"], arguments].concat());
    let sh = |options: &[&str], script: &str| run(&[options, &["--", "sh", "-c", script]].concat());

    assert_eq!(sh(&["--credential", "ann"], "printf %s \"$SESSION\"").ok().stdout, ann);
    let both = ["--credential", "ann", "--credential", "bob"];
    let said = sh(&both, "printf %s \"$ANN_SESSION $BOB_SESSION ${SESSION-none}\"").ok().stdout;
    assert_eq!(said, format!("{ann} {bob} none"));
    let named = ["--credential", "ann", "--env", "TOKEN=session"];
    assert_eq!(sh(&named, "printf %s \"$TOKEN ${SESSION-none}\"").ok().stdout, format!("{ann} none"));

    // A file, its mode and its folder's, and the exit code that is the command's.
    let with_file = ["--credential", "ann", "--file", "STATE=storage-state"];
    let script = "stat -c %a \"$STATE\" \"$(dirname \"$STATE\")\"; echo \"$STATE\"; cat \"$STATE\"; exit 7";
    let ended = sh(&with_file, script);
    assert_eq!(ended.code(), 7, "{ended:?}");
    let mut lines = ended.stdout.lines();
    assert_eq!((lines.next(), lines.next()), (Some("600"), Some("700")));
    let path = PathBuf::from(lines.next().expect("a path"));
    assert!(lines.collect::<String>().contains(&ann));
    assert!(!path.parent().expect("a folder").exists(), "the folder is gone");
    assert_eq!(ended.stderr, "", "nothing is said beside the command");
    assert_eq!(sh(&with_file, "kill -9 $$").code(), 128 + 9);

    // A signal reaches the command, which ends as it likes, and then the files are gone.
    for (number, code) in [(rustix::process::Signal::TERM, 3), (rustix::process::Signal::INT, 4)] {
        let script = "trap 'exit 3' TERM; trap 'exit 4' INT; echo \"$STATE\"; while :; do sleep 0.05; done";
        let mut child = home
            .command(&[&["run"], &with_file[..], &["--", "sh", "-c", script]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let path = PathBuf::from(line.trim());
        assert!(path.exists());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), number).expect("it runs");
        let status = wait_until(SOON, "the command ends", || child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(code));
        assert!(!path.parent().expect("a folder").exists(), "the folder is gone");
    }

    // What can't be given is told before anything is started.
    let marker = home.outside().join("marker");
    let touch = format!("touch {}", marker.display());
    for (options, code, words) in [
        (&["--credential", "carol"][..], 3, "no credential `carol`"),
        (&["--credential", "ann", "--env", "T=other"], 3, "`ann` has no key `other`; it has: session"),
        (&["--credential", "ann", "--file", "F=header"], 65, "a cookie header needs a url"),
        (&["--credential", "ann", "--env", "T"], 2, "--env T: allowed is NAME=KEY"),
        (&[], 2, "--credential <ID>"),
    ] {
        let refused = sh(options, &touch);
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    assert!(!marker.exists());
    assert_eq!(run(&["--credential", "ann", "--", "/no/such/program"]).code(), 127);
    // It has the words that people have for the forms.
    let state = home.run(&["credential", "export", "ann", "--format", "playwright"]).ok().json();
    assert_eq!(state["cookies"][0]["value"], ann.as_str());
    let env = home.run(&["credential", "export", "ann", "--format", ".env"]).ok().stdout;
    assert_eq!(env, format!("SESSION={ann}\n"));
}

#[test]
fn a_rotation_waits_for_consumers_as_long_as_they_are_given_unless_a_person_insists() {
    let (home, services) = (TestHome::new(), Services::start(Terms::default()));
    configure(
        &home,
        "[http]\nlisten = '127.0.0.1:0'\n\
         [sinks.told]\ncredential = 'ann'\ncommand = ['/bin/true']\nacknowledges = true\nacknowledge_wait_seconds = 3600\n",
    );
    home.drop_plugin(&guest("commit_classes"));
    let _daemon = home.serve();
    let keys = services.open("ann", Class::Additive);
    add_account(&home, &services, "ann", Class::Additive, &keys, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    let rotations = || services.standing("ann").rotations;
    let ack = |consumer: &str, generation: &str| {
        home.run(&["credential", "ack", "ann", "--consumer", consumer, "--generation", generation])
    };
    let consumers = || home.json(&["credential", "consumer", "list", "ann"]);
    let rotated = || {
        let reports = home.reports("ann");
        reports.into_iter().filter(|report| report["meta"]["rotated"] == true).collect::<Vec<_>>()
    };
    let waits = |generation: u32| {
        wait_until(SOON, "a rotation waits", || {
            let shown = home.json(&["credential", "show", "ann"])["credential"].clone();
            let why = shown["monitor"]["nextReason"].as_str() == Some("waits for app to acknowledge");
            (why && shown["currentGeneration"] == generation).then_some(())
        });
    };
    home.run(&["credential", "consumer", "add", "ann", "app", "--wait", "1h"]).ok();
    // From here on it is due each second.
    home.run(&["credential", "set", "ann", "--rotate-every", "1s"]).ok();
    waits(1);
    assert_eq!(rotations(), 0);
    let refused = home.run(&["credential", "rotate", "ann"]);
    assert_eq!(refused.code(), 75, "{refused:?}");
    assert!(
        refused.stderr.contains("waits for app to acknowledge; hint: --now rotates it all"),
        "{refused:?}"
    );
    home.run(&["credential", "rotate", "ann", "--now"]).ok();
    assert_eq!(rotated()[0]["meta"]["unacknowledged"], json!(["app"]));

    // The next one waits as well: an acknowledgement is of one generation. The sink has said by
    // itself that it uses this one.
    waits(2);
    for (consumer, generation, code) in [("app", "1", 0), ("app", "9", 65), ("other", "2", 3)] {
        let said = ack(consumer, generation);
        assert_eq!(said.code(), code, "{said:?}");
    }
    assert_eq!(rotations(), 1);
    let listed = consumers();
    assert_eq!((&listed[0]["name"], &listed[0]["acknowledged"]), (&json!("app"), &json!(1)), "{listed}");
    assert_eq!((&listed[1]["name"], &listed[1]["acknowledged"]), (&json!("told"), &json!(2)), "{listed}");
    assert_eq!(listed[1]["sink"], true, "{listed}");
    let refused = home.run(&["credential", "consumer", "remove", "ann", "told"]);
    assert_eq!(refused.code(), 65, "{refused:?}");
    ack("app", "2").ok();
    wait_until(SOON, "the rotation that waited is done", || (rotations() == 2).then_some(()));
    waits(3);
    assert_eq!(rotated()[1]["meta"]["unacknowledged"], Value::Null);

    // By HTTP, with a token that may.
    let listening = home.json(&["status"])["http"]["listening"].as_str().expect("a port").to_owned();
    let token = |more: &[&str]| {
        let made = home.run(&[&["api-token", "create", "--name", "a program"], more].concat()).ok();
        format!("Authorization: Bearer {}", made.stdout.trim_end())
    };
    let may = token(&["--credential", "ann", "--scope", "ack"]);
    let may_read = token(&["--credential", "ann"]);
    let of_another = token(&["--service", "another", "--scope", "ack"]);
    let post = |authorization: &str, body: &str| {
        let url = format!("http://{listening}/v1/credentials/ann/ack");
        let answer = http_with("POST", &url, &[authorization, "Content-Type: application/json"], body);
        (answer.status, answer.json())
    };
    let good = r#"{"consumer": "app", "generation": 3}"#;
    for (authorization, body, status, code) in [
        ("X-None: 1", good, 401, "unauthenticated"),
        (&may_read, good, 403, "forbidden"),
        (&of_another, good, 403, "forbidden"),
        (&may, "{}", 400, "malformed"),
        (&may, r#"{"consumer": "other", "generation": 3}"#, 404, "no-such-consumer"),
        (&may, r#"{"consumer": "app", "generation": 9}"#, 409, "not-in-force"),
    ] {
        let (answered, said) = post(authorization, body);
        assert_eq!((answered, said["error"]["code"].as_str()), (status, Some(code)), "{said}");
    }
    assert_eq!(rotations(), 2);
    let (status, said) = post(&may, good);
    assert_eq!((status, said), (200, json!({ "consumer": "app", "acknowledged": 3, "current": 3 })));
    wait_until(SOON, "the rotation that waited is done", || (rotations() == 3).then_some(()));
    waits(4);

    // Whoever says nothing is waited for no longer than was said.
    home.run(&["credential", "consumer", "add", "ann", "app", "--wait", "1s"]).ok();
    home.run(&["credential", "rotate", "ann", "--now"]).ok();
    wait_until(SOON, "rotations go on without an acknowledgement", || (rotations() >= 6).then_some(()));
    let reports = rotated();
    assert_eq!(reports.last().expect("one")["meta"]["unacknowledged"], json!(["app"]), "{reports:?}");
    home.run(&["credential", "consumer", "remove", "ann", "app"]).ok();
    let before = rotations();
    wait_until(SOON, "rotations go on", || (rotations() > before + 1).then_some(()));
    let reports = rotated();
    assert_eq!(reports.last().expect("one")["meta"]["unacknowledged"], Value::Null, "{reports:?}");
    let standing = services.standing("ann");
    assert_eq!((standing.double_spends, standing.revocations), (0, 0));
    assert!(services.accepts("ann", exported(&home, "ann").values()));
}
