//! Who may let a plugin do what: what the first credential pins, what waits, what an approval
//! shows and grants, whose signatures count, and what is written down of it all. An attacker
//! here has the plugin folder's files, or a plugin's own words; never the operator's commands.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use minisign::KeyPair;
use serde_json::Value;

use crate::harness::*;

fn in_folder(home: &TestHome, name: &str) -> PathBuf {
    home.path().join("plugins").join(name)
}

/// A guest with a text in it replaced by one of the same length.
fn patched(name: &str, old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len(), "no offset in the file may move");
    let mut bytes = fs::read(guest(name)).expect("a built plugin");
    let found: Vec<usize> = (0..bytes.len().saturating_sub(old.len()))
        .filter(|&at| bytes[at..].starts_with(old.as_bytes()))
        .collect();
    assert!(!found.is_empty(), "{old} doesn't occur in {name}");
    for at in found {
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    bytes
}

/// Writes a file as an installer does: whole, by a rename.
fn put(home: &TestHome, name: &str, bytes: &[u8]) {
    let beside = in_folder(home, ".next");
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, in_folder(home, name))).expect("a file");
}

/// As another operator's key, or an attacker's: made here and gone with the test.
fn key() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().expect("the system has random bytes")
}

fn signature(key: &KeyPair, bytes: &[u8]) -> String {
    signature_saying(key, bytes, "made by a test")
}

fn signature_saying(key: &KeyPair, bytes: &[u8], comment: &str) -> String {
    let signed = minisign::sign(None, &key.sk, Cursor::new(bytes), Some(comment), None);
    signed.expect("it can be signed").into_string()
}

fn put_signed(home: &TestHome, name: &str, bytes: &[u8], key: &KeyPair) {
    put(home, &format!("{name}.minisig"), signature(key, bytes).as_bytes());
    put(home, name, bytes);
}

fn trust(home: &TestHome, key: &KeyPair, name: &str) -> String {
    let trusted = home.json(&["plugin", "trust", &key.pk.to_base64(), "--name", name]);
    trusted["keyId"].as_str().expect("an id").to_owned()
}

fn signed_only(home: &TestHome) {
    fs::write(home.path().join("config.toml"), "plugin_policy = \"signed-only\"\n").expect("a file");
}

/// `plugin list`, which looks at the folder first, with or without a daemon.
#[track_caller]
fn listed(home: &TestHome, file: &str) -> Value {
    let all = home.json(&["plugin", "list"]);
    let found = all.as_array().expect("an array").iter().find(|plugin| plugin["file"] == file);
    found.cloned().unwrap_or_else(|| panic!("no {file} in {all}"))
}

#[track_caller]
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}"))
}

/// What was decided, oldest first.
#[track_caller]
fn history(home: &TestHome) -> Vec<Value> {
    let mut rows = home.json(&["plugin", "history"]).as_array().expect("an array").clone();
    rows.reverse();
    rows
}

#[track_caller]
fn actions(home: &TestHome) -> Vec<String> {
    history(home).iter().map(|row| text(row, "action").to_owned()).collect()
}

/// A command at a terminal, as a person has one.
struct Terminal {
    child: Child,
    keyboard: fs::File,
    screen: Arc<Mutex<String>>,
    reading: Option<std::thread::JoinHandle<()>>,
}

impl Terminal {
    fn open(home: &TestHome, arguments: &[&str]) -> Self {
        let mut name = [0; 128];
        // SAFETY: the calls get a descriptor of their own and a buffer with its true length.
        let master = unsafe {
            let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert!(master >= 0, "a terminal: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(master)
        };
        // SAFETY: as above; the descriptor lives until the end of this function at least.
        let ready = unsafe {
            libc::grantpt(master.as_raw_fd())
                | libc::unlockpt(master.as_raw_fd())
                | libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len())
        };
        assert_eq!(ready, 0, "a terminal: {}", std::io::Error::last_os_error());
        let name: Vec<u8> =
            name.iter().take_while(|&&c| c != 0).map(|&c| u8::try_from(c).expect("ASCII")).collect();
        let slave = fs::File::options()
            .read(true)
            .write(true)
            .open(String::from_utf8(name).expect("a path"))
            .expect("the terminal");
        let copy = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = home
            .command(arguments)
            .stdin(copy())
            .stdout(copy())
            .stderr(copy())
            .spawn()
            .expect("the binary starts");
        let keyboard = fs::File::from(master);
        let mut display = keyboard.try_clone().expect("a descriptor");
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        let reading = std::thread::spawn(move || {
            let mut bytes = [0; 1_024];
            while let Ok(read @ 1..) = display.read(&mut bytes) {
                shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Self { child, keyboard, screen, reading: Some(reading) }
    }

    fn screen(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for(&self, what: &str) {
        wait_until(SOON, what, || self.screen().contains(what).then_some(()));
    }

    /// Answers, and returns how the command ended and all that was on the screen.
    fn answer(mut self, line: &str) -> (i32, String) {
        writeln!(self.keyboard, "{line}").expect("it can be typed");
        let status = wait_until(SOON, "the command ends", || self.child.try_wait().expect("a child"));
        let reading = self.reading.take().expect("it is read once");
        // It ends when the command, the terminal's last user, has.
        reading.join().expect("the screen can be read");
        (status.code().unwrap_or(-1), self.screen())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A home whose `well-behaved` is pinned by ann's credential, in `p.wasm`.
fn pinned(home: &TestHome, service: &Service) -> Value {
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    let plugin = listed(home, "p.wasm");
    home.add_session("ann", "well-behaved", service, &[]);
    plugin
}

/// The digest of what answers for ann.
#[track_caller]
fn serving(home: &TestHome) -> String {
    let report = home.json(&["credential", "validate", "ann"]);
    text(&report["meta"], "plugin").to_owned()
}

#[test]
fn a_plugin_that_is_replaced_between_being_shown_and_being_approved_is_not_approved() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let old = pinned(&home, &service);
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    let shown = home.wait_for_plugin("p.wasm", "pending-approval");

    let terminal = Terminal::open(&home, &["plugin", "approve", "well-behaved"]);
    terminal.wait_for("grant this? [y/N]");
    let screen = terminal.screen();
    assert!(
        screen.contains(text(&shown, "digest")) && screen.contains("https://collector.example"),
        "{screen}"
    );
    // While a person reads that, the file becomes another one.
    put(&home, "p.wasm", &patched("wants_more_origins", "collector.example", "collectar.example"));
    let (code, screen) = terminal.answer("y");
    assert_eq!(code, 65, "{screen}");
    assert!(screen.contains("nothing was granted to `well-behaved`"), "{screen}");
    let found = listed(&home, "p.wasm");
    assert_eq!(found["state"], "pending-approval");
    assert_ne!(found["digest"], shown["digest"]);
    assert!(screen.contains(&text(&found, "digest")[..16]), "it says what was found: {screen}");
    assert_eq!(found["inUse"]["digest"], old["digest"]);
    assert_eq!(serving(&home), text(&old, "digest"));

    // The same for a script that names what it has read.
    let late = home.run(&["plugin", "approve", "well-behaved", "--digest", text(&shown, "digest")]);
    assert_eq!(late.code(), 65, "{late:?}");
    // And where the new file is no plugin at all, nothing waits any more.
    let digest = text(&found, "digest");
    put(&home, "p.wasm", b"garbage");
    let late = home.run(&["plugin", "approve", "well-behaved", "--digest", digest]);
    assert_eq!(late.code(), 65, "{late:?}");
    assert_eq!(serving(&home), text(&old, "digest"));
    assert!(!actions(&home).contains(&"granted".to_owned()));
    assert!(actions(&home).contains(&"not-granted".to_owned()));
}

#[test]
fn an_approval_shows_what_it_changes_and_asks_first() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let old = pinned(&home, &service);
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    let new = listed(&home, "p.wasm");
    let approve = ["plugin", "approve", "well-behaved"];
    // Nobody is there to ask.
    let unasked = home.run(&approve);
    assert_eq!(unasked.code(), 2, "{unasked:?}");
    for shown in ["0.1.0 → 0.3.0", text(&old, "digest"), text(&new, "digest"), "https://collector.example"]
    {
        assert!(unasked.stdout.contains(shown), "{unasked:?}");
    }
    assert!(unasked.stderr.contains("hint: `keywheel plugin approve well-behaved --digest"), "{unasked:?}");
    // As an object, which is a look and no more.
    let wish = home.json(&approve);
    assert_eq!((&wish["needsApproval"], &wish["granted"]), (&true.into(), &false.into()));
    assert_eq!((&wish["from"]["digest"], &wish["to"]["digest"]), (&old["digest"], &new["digest"]));
    assert_eq!(wish["difference"]["addedOrigins"], serde_json::json!(["https://collector.example"]));
    let digest = text(&new, "digest");
    for (prefix, code) in [(&digest[..15], 2), ("0123456789abcdef", 65)] {
        let refused = home.run(&[&approve[..], &["--digest", prefix]].concat());
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let terminal = Terminal::open(&home, &approve);
    terminal.wait_for("grant this? [y/N]");
    let (code, screen) = terminal.answer("");
    assert_eq!(code, 1, "{screen}");
    assert_eq!(serving(&home), text(&old, "digest"), "all of that granted nothing");

    home.json(&[&approve[..], &["--digest", &digest[..16]]].concat());
    assert_eq!(serving(&home), digest);
    let granted =
        history(&home).into_iter().find(|row| row["action"] == "granted").expect("it is written down");
    assert_eq!((&granted["actor"], &granted["digest"]), (&"operator".into(), &new["digest"]));
    assert!(granted["detail"]["changes"].to_string().contains("https://collector.example"), "{granted}");
    let nothing = home.run(&approve).ok();
    assert!(nothing.stdout.contains("has everything it asks for"), "{nothing:?}");
}

#[test]
fn a_person_at_a_terminal_grants_with_yes() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    pinned(&home, &service);
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    let terminal = Terminal::open(&home, &["plugin", "approve", "well-behaved"]);
    terminal.wait_for("grant this? [y/N]");
    let (code, screen) = terminal.answer("y");
    assert_eq!(code, 0, "{screen}");
    assert_eq!(listed(&home, "p.wasm")["inUse"]["version"], "0.3.0");
}

#[test]
fn the_first_credential_pins_what_is_shown_and_until_then_newcomers_replace_freely() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    assert_eq!(listed(&home, "p.wasm")["inUse"]["pinned"], false);
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    assert_eq!(listed(&home, "p.wasm")["inUse"]["pinned"], false);
    home.add_session("ann", "well-behaved", &service, &[]);

    let plugin = listed(&home, "p.wasm");
    let in_use = &plugin["inUse"];
    assert_eq!((&in_use["pinned"], &in_use["digest"]), (&true.into(), &plugin["digest"]));
    assert_eq!(in_use["accepted"]["origins"], serde_json::json!(["{base_url}"]));
    assert_eq!(in_use["accepted"]["keys"], serde_json::json!(["session"]));
    assert_eq!(in_use["accepted"]["settings"], serde_json::json!(["base_url", "commit_class"]));
    assert_eq!(in_use["revealed"], serde_json::json!([]));
    assert_eq!(home.json(&["plugin", "show", "well-behaved"])["inUse"], *in_use);
    let check = home.json(&["plugin", "check", guest("wants_more_origins").to_str().expect("UTF-8")]);
    assert_eq!(check["inUse"], *in_use);
    assert!(
        check["permissions"].to_string().contains("newly may reach https://collector.example"),
        "{check}"
    );
    let shown = home.run(&["plugin", "show", "well-behaved"]).ok();
    assert!(shown.stdout.contains("pinned: a version that asks for more"), "{}", shown.stdout);

    let rows = history(&home);
    let last = rows.last().expect("a row");
    assert_eq!((&last["action"], &last["actor"]), (&"pinned".into(), &"operator".into()));
    assert_eq!((&last["digest"], &last["detail"]["credential"]), (&plugin["digest"], &"ann".into()));
    assert_eq!(last["detail"]["granted"]["accepted"], in_use["accepted"]);
    // From now on more of anything waits.
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    assert_eq!(listed(&home, "p.wasm")["state"], "pending-approval");
    // With the last credential gone there is nothing to harm again.
    home.run(&["credential", "remove", "ann"]).ok();
    assert_eq!(listed(&home, "p.wasm")["state"], "active");
}

#[test]
fn every_decision_is_written_down_once_however_often_it_is_looked_at() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let session = {
        home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
        listed(&home, "p.wasm");
        home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
        listed(&home, "p.wasm");
        home.add_session("ann", "well-behaved", &service, &[])
    };
    home.drop_plugin_as(&guest("second_well_behaved"), "p.wasm");
    listed(&home, "p.wasm");
    home.drop_plugin_as(&guest("slow_check"), "q.wasm");
    home.drop_plugin_as(&guest("well_behaved"), "r.wasm");
    put(&home, "s.wasm", b"#!/bin/sh\n");
    listed(&home, "p.wasm");
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    fs::remove_file(in_folder(&home, "r.wasm")).expect("a file");
    listed(&home, "p.wasm");
    home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    home.json(&["plugin", "remove", "well-behaved"]);
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    listed(&home, "p.wasm");
    fs::remove_file(in_folder(&home, "q.wasm")).expect("a file");
    listed(&home, "p.wasm");
    let rows = history(&home);
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            format!("{} {} {}", text(row, "actor"), text(row, "action"), row["file"].as_str().unwrap_or("-"))
        })
        .collect();
    assert_eq!(
        told,
        [
            "host first-seen p.wasm",
            "host replaced p.wasm",
            "operator pinned p.wasm",
            "host swapped p.wasm",
            "host first-seen q.wasm",
            "host conflict r.wasm",
            "host refused s.wasm",
            "host waits p.wasm",
            "operator granted p.wasm",
            "operator removed p.wasm",
            "host returned p.wasm",
            "host removed q.wasm",
        ]
    );
    // Neither another look, nor another process, nor a daemon's start finds anything to add.
    listed(&home, "p.wasm");
    let daemon = home.serve();
    for _ in 0..3 {
        listed(&home, "p.wasm");
    }
    assert!(daemon.stop().success());
    listed(&home, "p.wasm");
    assert_eq!(history(&home), rows);
    let of_one = home.json(&["plugin", "history", "slow-check", "--limit", "1"]);
    assert_eq!(of_one.as_array().map(Vec::len), Some(1));
    assert_eq!(of_one[0]["action"], "removed", "the newest comes first");
    assert!(!home.printed().contains(&session), "a decision needs no secret");
}

#[test]
fn an_update_of_the_same_signer_swaps_live_and_any_other_waits() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let (ann, bob) = (key(), key());
    let ann_id = trust(&home, &ann, "ann");
    put_signed(&home, "p.wasm", &fs::read(guest("well_behaved")).expect("a plugin"), &ann);
    let first = listed(&home, "p.wasm");
    assert_eq!(
        (&first["signature"]["state"], &first["signature"]["name"]),
        (&"trusted".into(), &"ann".into())
    );
    assert_eq!(first["signature"]["comment"], "made by a test");
    home.add_session("ann", "well-behaved", &service, &[]);
    let _daemon = home.serve();

    let update = fs::read(guest("second_well_behaved")).expect("a plugin");
    put_signed(&home, "p.wasm", &update, &ann);
    let second = listed(&home, "p.wasm");
    assert_eq!((&second["state"], &second["version"]), (&"active".into(), &"0.2.0".into()));
    assert_eq!(serving(&home), text(&second, "digest"));

    // The same wishes, of nobody: somebody took over the folder, or the author's site.
    let next = patched("second_well_behaved", "0.2.0", "0.2.1");
    fs::remove_file(in_folder(&home, "p.wasm.minisig")).expect("a signature");
    put(&home, "p.wasm", &next);
    let unsigned = listed(&home, "p.wasm");
    assert_eq!(unsigned["state"], "pending-approval", "{unsigned}");
    assert!(
        unsigned["permissions"][0].as_str().is_some_and(|line| line.contains("another signer")),
        "{unsigned}"
    );
    assert_eq!(unsigned["inUse"]["signature"]["keyId"], ann_id.as_str());
    // Of a stranger, and of somebody trusted who is not its author.
    put(&home, "p.wasm.minisig", signature(&bob, &next).as_bytes());
    let strange = listed(&home, "p.wasm");
    assert_eq!(
        (&strange["state"], &strange["signature"]["state"]),
        (&"pending-approval".into(), &"unknown".into())
    );
    let bob_id = trust(&home, &bob, "bob");
    let other = listed(&home, "p.wasm");
    assert_eq!(
        (&other["state"], &other["signature"]["keyId"]),
        (&"pending-approval".into(), &bob_id.as_str().into())
    );
    assert_eq!(serving(&home), text(&second, "digest"));

    // An approval shows both signers, and names the new one.
    let wish = home.json(&["plugin", "approve", "well-behaved"]);
    assert_eq!(wish["from"]["signature"]["keyId"], ann_id.as_str());
    assert_eq!(wish["to"]["signature"]["keyId"], bob_id.as_str());
    home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    assert_eq!(listed(&home, "p.wasm")["inUse"]["signature"]["keyId"], bob_id.as_str());
    // What ann signs waits now.
    put_signed(&home, "p.wasm", &update, &ann);
    assert_eq!(listed(&home, "p.wasm")["state"], "pending-approval");
    let signers: Vec<_> =
        history(&home).iter().filter_map(|row| row["signer"].as_str().map(str::to_owned)).collect();
    assert!(signers.contains(&ann_id) && signers.contains(&bob_id));
}

#[test]
fn an_approval_names_the_signer_that_was_shown() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let (ann, bob) = (key(), key());
    trust(&home, &ann, "ann");
    trust(&home, &bob, "bob");
    let _daemon = home.serve();
    pinned(&home, &service);
    let wide = fs::read(guest("wants_more_origins")).expect("a plugin");
    put_signed(&home, "p.wasm", &wide, &ann);
    wait_until(SOON, "ann's version waits", || {
        let plugin = home.plugin("p.wasm")?;
        (plugin["state"] == "pending-approval" && plugin["signature"]["name"] == "ann").then_some(())
    });
    let terminal = Terminal::open(&home, &["plugin", "approve", "well-behaved"]);
    terminal.wait_for("grant this? [y/N]");
    put(&home, "p.wasm.minisig", signature(&bob, &wide).as_bytes());
    let (code, screen) = terminal.answer("y");
    assert_eq!(code, 65, "{screen}");
    assert!(screen.contains("nothing was granted") && screen.contains("(bob)"), "{screen}");
}

#[test]
fn a_plugin_and_its_signature_settle_in_either_order_and_half_copied() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = key();
    trust(&home, &ann, "ann");
    signed_only(&home);
    let _daemon = home.serve();
    let first = fs::read(guest("well_behaved")).expect("a plugin");
    // Plugin first, then half of the signature, then the rest.
    put(&home, "p.wasm", &first);
    home.wait_for_plugin("p.wasm", "refused");
    let whole = signature(&ann, &first);
    let mut file = fs::File::create(in_folder(&home, "p.wasm.minisig")).expect("a file");
    file.write_all(&whole.as_bytes()[..whole.len() / 2]).expect("half of it");
    wait_until(SOON, "half a signature is told as one", || {
        let plugin = home.plugin("p.wasm")?;
        plugin["reason"].as_str()?.contains("cut short").then_some(())
    });
    file.write_all(&whole.as_bytes()[whole.len() / 2..]).expect("the other half");
    drop(file);
    let old = home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);

    // Signature first: it does not fit what is there, which works on meanwhile.
    let update = fs::read(guest("second_well_behaved")).expect("a plugin");
    put(&home, "p.wasm.minisig", signature(&ann, &update).as_bytes());
    let early = home.wait_for_plugin("p.wasm", "refused");
    assert!(text(&early, "reason").contains("does not fit these bytes"), "{early}");
    assert_eq!(serving(&home), text(&old, "digest"));
    put(&home, "p.wasm", &update);
    let new = home.wait_for_plugin("p.wasm", "active");
    assert_eq!(new["version"], "0.2.0");
    assert_eq!(serving(&home), text(&new, "digest"));
}

#[test]
fn a_tampered_plugin_of_a_trusted_signer_is_refused_while_the_accepted_one_works() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = key();
    let ann_id = trust(&home, &ann, "ann");
    let genuine = fs::read(guest("well_behaved")).expect("a plugin");
    put_signed(&home, "p.wasm", &genuine, &ann);
    let old = listed(&home, "p.wasm");
    home.add_session("ann", "well-behaved", &service, &[]);
    // The policy is "any": it would run unsigned. With a signature that lies it doesn't.
    put(&home, "p.wasm", &patched("second_well_behaved", "0.2.0", "0.2.1"));
    let bad = listed(&home, "p.wasm");
    assert_eq!((&bad["state"], &bad["signature"]["state"]), (&"refused".into(), &"bad".into()), "{bad}");
    assert!(text(&bad, "reason").contains(&ann_id), "{bad}");
    assert_eq!(serving(&home), text(&old, "digest"));
    // Also in a service nobody serves yet.
    let other = fs::read(guest("slow_check")).expect("a plugin");
    put(&home, "q.wasm.minisig", signature(&ann, &genuine).as_bytes());
    put(&home, "q.wasm", &other);
    assert_eq!(listed(&home, "q.wasm")["state"], "refused");
    assert_eq!(actions(&home).iter().filter(|action| *action == "signature-refused").count(), 2);
    // A daemon that starts with the tampered file goes on with what was accepted.
    let _daemon = home.serve();
    assert_eq!(serving(&home), text(&old, "digest"));
}

#[test]
fn signed_only_runs_nothing_that_nobody_trusted_has_signed_and_compiles_none_of_it() {
    let home = TestHome::new();
    let (ann, mallory) = (key(), key());
    trust(&home, &ann, "ann");
    signed_only(&home);
    let plugin = fs::read(guest("well_behaved")).expect("a plugin");
    put(&home, "unsigned.wasm", &plugin);
    put_signed(&home, "stranger.wasm", &patched("well_behaved", "well-behaved", "well-bahaved"), &mallory);
    put(&home, "tampered.wasm.minisig", signature(&ann, &plugin).as_bytes());
    put(&home, "tampered.wasm", &patched("well_behaved", "well-behaved", "well-behived"));
    for (file, reason) in [
        (
            "unsigned.wasm",
            "unsigned, and `plugin_policy` is \"signed-only\"; hint: put its signature beside it",
        ),
        (
            "stranger.wasm",
            "which isn't trusted, and `plugin_policy` is \"signed-only\"; hint: `keywheel plugin trust KEY`",
        ),
        ("tampered.wasm", "(ann), and does not fit these bytes"),
    ] {
        let refused = listed(&home, file);
        assert_eq!(refused["state"], "refused");
        assert!(text(&refused, "reason").contains(reason), "{refused}");
        for verb in ["check", "install"] {
            let by_hand = home.run(&["plugin", verb, in_folder(&home, file).to_str().expect("UTF-8")]);
            assert_eq!(by_hand.code(), 65, "{by_hand:?}");
            assert!(by_hand.stderr.contains(reason), "{by_hand:?}");
        }
    }
    for folder in ["store", "cache"] {
        let kept = fs::read_dir(home.path().join(folder)).expect("a folder").count();
        assert_eq!(kept, 0, "nothing of theirs came into {folder}");
    }
    // Whose it is, is the operator's to know.
    let mallory_id = trust(&home, &mallory, "mallory");
    assert_eq!(listed(&home, "stranger.wasm")["state"], "active");
    let keys = home.json(&["plugin", "keys"]);
    assert!(
        keys.as_array().expect("an array").iter().any(|key| key["keyId"] == mallory_id.as_str()),
        "{keys}"
    );
}

#[test]
fn a_key_that_is_distrusted_stops_what_it_signed_under_signed_only() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = key();
    let id = trust(&home, &ann, "ann");
    signed_only(&home);
    put_signed(&home, "p.wasm", &fs::read(guest("well_behaved")).expect("a plugin"), &ann);
    let _daemon = home.serve();
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    home.json(&["plugin", "distrust", &id.to_lowercase()]);
    let refused = listed(&home, "p.wasm");
    assert_eq!((&refused["state"], &refused["inUse"]), (&"refused".into(), &Value::Null));
    assert!(text(&refused, "reason").contains("trusted no longer"), "{refused}");
    let orphan = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(orphan.code(), 1, "{orphan:?}");
    assert_ne!(orphan.json()["status"], "validation_failed", "no plugin is no verdict");
    trust(&home, &ann, "ann");
    assert_eq!(listed(&home, "p.wasm")["state"], "active");
    home.json(&["credential", "validate", "ann"]);
    let told = actions(&home);
    let end = ["distrusted", "stopped", "refused", "trusted", "returned"];
    assert!(end.iter().all(|action| told.contains(&(*action).to_owned())), "{told:?}");
}

#[test]
fn a_key_that_is_distrusted_is_shown_as_such_under_any_and_its_updates_wait() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = key();
    let id = trust(&home, &ann, "ann");
    put_signed(&home, "p.wasm", &fs::read(guest("well_behaved")).expect("a plugin"), &ann);
    listed(&home, "p.wasm");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.json(&["plugin", "distrust", &id]);
    let plugin = listed(&home, "p.wasm");
    assert_eq!((&plugin["state"], &plugin["signature"]["state"]), (&"active".into(), &"distrusted".into()));
    assert_eq!(plugin["inUse"]["signature"]["state"], "distrusted");
    home.json(&["credential", "validate", "ann"]);
    put_signed(&home, "p.wasm", &fs::read(guest("second_well_behaved")).expect("a plugin"), &ann);
    assert_eq!(listed(&home, "p.wasm")["state"], "pending-approval");
}

#[test]
fn a_signature_that_goes_away_takes_nothing_from_bytes_it_was_checked_against() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let ann = key();
    trust(&home, &ann, "ann");
    signed_only(&home);
    put_signed(&home, "p.wasm", &fs::read(guest("well_behaved")).expect("a plugin"), &ann);
    listed(&home, "p.wasm");
    home.add_session("ann", "well-behaved", &service, &[]);
    fs::remove_file(in_folder(&home, "p.wasm.minisig")).expect("a signature");
    let plugin = listed(&home, "p.wasm");
    assert_eq!(
        (&plugin["state"], &plugin["signature"]["name"]),
        (&"active".into(), &"ann".into()),
        "{plugin}"
    );
    home.json(&["credential", "validate", "ann"]);
}

#[test]
fn a_broken_update_leaves_the_accepted_version_at_work_also_after_a_restart() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    let old = pinned(&home, &service);
    put(&home, "p.wasm", b"#!/bin/sh\nexit 0\n");
    home.wait_for_plugin("p.wasm", "refused");
    assert_eq!(serving(&home), text(&old, "digest"));
    assert!(daemon.stop().success());
    let daemon = home.serve();
    assert_eq!(serving(&home), text(&old, "digest"));
    // A file that is gone is another matter: its service is removed.
    fs::remove_file(in_folder(&home, "p.wasm")).expect("a file");
    wait_until(SOON, "the plugin is gone", || home.plugin("p.wasm").is_none().then_some(()));
    let orphan = home.run(&["credential", "validate", "ann"]);
    assert_eq!(orphan.code(), 1, "{orphan:?}");
    drop(daemon);
}

#[test]
fn what_lies_beside_a_plugin_and_is_no_signature_holds_nothing_up() {
    let home = TestHome::new();
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    let beside = in_folder(&home, "p.wasm.minisig");
    fs::create_dir(&beside).expect("a folder");
    assert_eq!(listed(&home, "p.wasm")["state"], "refused");
    fs::remove_dir(&beside).expect("a folder");
    // A pipe that nobody writes to would be read for ever.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &beside,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a pipe");
    let piped = listed(&home, "p.wasm");
    assert!(text(&piped, "reason").contains("its signature can't be read: not a file"), "{piped}");
    fs::remove_file(&beside).expect("a pipe");
    fs::write(&beside, vec![b'x'; 1 << 20]).expect("a file");
    assert!(text(&listed(&home, "p.wasm"), "reason").contains("over 16384 bytes"));
    fs::remove_file(&beside).expect("a file");
    assert_eq!(listed(&home, "p.wasm")["state"], "active");
}

#[test]
fn a_plugin_is_installed_and_removed_with_its_signature() {
    let home = TestHome::new();
    let ann = key();
    let public = home.outside().join("ann.pub");
    fs::write(&public, ann.pk.to_box().expect("a key").to_string()).expect("a file");
    let public = public.to_str().expect("UTF-8");
    let trusted = home.json(&["plugin", "trust", public, "--name", "ann"]);
    assert_eq!(trusted, home.json(&["plugin", "trust", public, "--name", "ann"]), "once is enough");
    assert_eq!(home.json(&["plugin", "trust", "--list"]), Value::Array(vec![trusted.clone()]));
    signed_only(&home);
    let file = home.outside().join("new.wasm");
    let bytes = fs::read(guest("well_behaved")).expect("a plugin");
    fs::write(&file, &bytes).expect("a file");
    fs::write(file.with_extension("wasm.minisig"), signature(&ann, &bytes)).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let checked = home.run(&["plugin", "check", file]).ok();
    assert!(checked.stdout.contains(&format!("signed by {} (ann): made by a test", text(&trusted, "keyId"))));
    assert_eq!(home.json(&["plugin", "install", file])["state"], "active");
    home.json(&["plugin", "remove", "well-behaved"]);
    assert_eq!(fs::read_dir(home.path().join("plugins")).expect("the folder").count(), 0);

    for (key, code) in [("RWnonsense", 65), ("nowhere.pub", 3)] {
        let refused = home.run(&["plugin", "trust", key]);
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let nobody = home.run(&["plugin", "distrust", "0000000000000000"]);
    assert_eq!(nobody.code(), 3, "{nobody:?}");
}

#[test]
fn an_unknown_policy_is_refused_with_those_there_are() {
    let home = TestHome::new();
    fs::write(home.path().join("config.toml"), "plugin_policy = \"sometimes\"\n").expect("a file");
    let refused = home.run(&["plugin", "list"]);
    assert_eq!(refused.code(), 78, "{refused:?}");
    for word in ["sometimes", "any", "signed-only", "config.toml"] {
        assert!(refused.stderr.contains(word), "{refused:?}");
    }
}

#[test]
fn a_parked_service_runs_again_by_unpark_and_not_by_an_approval() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    pinned(&home, &service);
    home.wait_for_reports("ann", 1);
    assert_eq!(home.json(&["plugin", "unpark", "well-behaved"])["unparked"], false);
    for crash in 1..=5 {
        // A call starts the worker at once, whatever the pause after a crash.
        home.run(&["credential", "validate", "ann"]);
        kill_9(home.worker_pid("well-behaved"));
        wait_until(SOON, "the crash is counted", || {
            (home.worker("well-behaved")?["crashes"].as_u64()? >= crash).then_some(())
        });
    }
    wait_until(SOON, "it is parked", || (home.worker("well-behaved")?["state"] == "parked").then_some(()));
    let parked = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(parked.code(), 4, "{parked:?}");
    assert!(parked.stdout.contains("keywheel plugin unpark well-behaved"), "{parked:?}");
    home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    assert_eq!(home.worker("well-behaved").expect("a worker")["state"], "parked");

    assert_eq!(home.json(&["plugin", "unpark", "well-behaved"])["unparked"], true);
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(actions(&home).iter().filter(|action| *action == "unparked").count(), 1);
    let nobody = home.run(&["plugin", "unpark", "nobody"]);
    assert_eq!(nobody.code(), 3, "{nobody:?}");
}

/// Anything that a terminal could act on, but line ends and the tabs between a table's columns.
fn acts(text: &str) -> bool {
    text.contains(|c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t')) || ('\u{202a}'..='\u{202e}').contains(&c)
    })
}

#[test]
fn what_a_plugin_or_its_signer_writes_stays_inert_on_a_terminal() {
    let home = TestHome::new();
    let ann = key();
    trust(&home, &ann, "ann");
    // A title that clears the screen is refused, in words that don't.
    put(&home, "title.wasm", &patched("well_behaved", "A guest of the tests", "A \u{1b}[2Jt of the tests"));
    // A trusted comment, and the file's own name.
    let bytes = fs::read(guest("slow_check")).expect("a plugin");
    let comment = "\u{1b}]0;owned\u{7}\u{202e}\u{9b}31m";
    put(&home, "c.wasm.minisig", signature_saying(&ann, &bytes, comment).as_bytes());
    put(&home, "c.wasm", &bytes);
    let red = "\u{1b}[31mred\u{202e}.wasm";
    home.drop_plugin_as(&guest("well_behaved"), red);
    put(&home, "a\nforged.wasm", b"garbage");
    assert!(text(&listed(&home, "title.wasm"), "reason").contains("title holds the character U+001B"));
    let file = in_folder(&home, "c.wasm");
    let file = file.to_str().expect("UTF-8");
    for arguments in [
        &["plugin", "list"][..],
        &["plugin", "list", "--json"],
        &["plugin", "show", "slow-check"],
        // It names its file outside of any table.
        &["plugin", "show", "well-behaved"],
        &["plugin", "check", file],
        &["plugin", "check", file, "--json"],
        &["plugin", "history"],
        &["plugin", "history", "--json"],
        &["status"],
    ] {
        let printed = home.run(arguments);
        // A refused plugin needs a person, which `status` says by its code.
        assert_eq!(printed.code(), i32::from(arguments == ["status"]), "{arguments:?}: {printed:?}");
        let all = printed.stdout + &printed.stderr;
        assert!(!acts(&all), "{arguments:?}: {all:?}");
        assert!(!all.contains("\nforged"), "{arguments:?}: {all:?}");
    }
    assert!(home.run(&["plugin", "list"]).stdout.contains(r"\u{1b}[31mred\u{202e}.wasm"));
    assert!(
        text(&home.json(&["plugin", "check", file])["signature"], "comment").contains(r"\u{1b}]0;owned\u{7}")
    );
    let title = in_folder(&home, "title.wasm");
    let refused = home.run(&["plugin", "check", Path::new(&title).to_str().expect("UTF-8")]);
    assert_eq!(refused.code(), 65, "{refused:?}");
    assert!(!acts(&refused.stderr), "{refused:?}");
}
