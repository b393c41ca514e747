//! What lies in the plugin folder: files that are no plugin, plugins that are none of ours,
//! newer versions that ask for more, and files that come, change and go in every odd way. What
//! was good keeps working beside each of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::*;

/// The smallest component there is: a header and nothing.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A plugin with a text in it replaced by one of the same length, wherever it stands.
pub fn patched(plugin: &Path, old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len(), "no offset in the file may move");
    let mut bytes = fs::read(plugin).expect("a built plugin");
    let found: Vec<usize> = bytes
        .windows(old.len())
        .enumerate()
        .filter(|(_, w)| *w == old.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!found.is_empty(), "{old} doesn't occur in {}", plugin.display());
    for at in found {
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    bytes
}

pub fn in_folder(home: &TestHome, name: &str) -> PathBuf {
    home.path().join("plugins").join(name)
}

/// `plugin list`, which looks at the folder first, with or without a daemon.
#[track_caller]
pub fn listed(home: &TestHome) -> Vec<Value> {
    home.json(&["plugin", "list"]).as_array().expect("an array").clone()
}

#[track_caller]
pub fn listed_as(home: &TestHome, file: &str) -> Value {
    let all = listed(home);
    all.iter()
        .find(|plugin| plugin["file"] == file)
        .cloned()
        .unwrap_or_else(|| panic!("no {file} in {all:?}"))
}

#[track_caller]
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}"))
}

#[test]
fn what_is_no_usable_plugin_is_refused_with_its_reason_while_the_others_work() {
    let home = TestHome::new();
    // It looks at each file once; every command without it would look at all of them again.
    let _daemon = home.serve();
    let good = guest("well_behaved");
    let whole = fs::read(&good).expect("a built plugin");
    let table: &[(&str, &[u8], &[&str])] = &[
        ("empty.wasm", b"", &["empty", "may still be copied"]),
        ("script.wasm", b"#!/bin/sh\nexit 0\n", &["not WebAssembly", "23212f62", "hint: build it with"]),
        ("module.wasm", EMPTY_MODULE, &["a core module, not a component", "wasm-tools component new"]),
        ("bare.wasm", EMPTY_COMPONENT, &["lacks the export keywheel:provider/guest@0.1.0", "export!("]),
        ("truncated.wasm", &whole[..whole.len() / 2], &["damaged or cut short at byte"]),
        (
            "later.wasm",
            &patched(&good, "@0.1.0", "@0.9.0"),
            &["contract version 0.9.0", "this host knows 0.1.0", "hint: rebuild the plugin"],
        ),
        (
            "outside.wasm",
            &patched(&good, "keywheel:provider/http@", "sockets:anywhere/tcp-x@"),
            &[
                "imports `sockets:anywhere/tcp-x@0.1.0`, which no host offers",
                "allowed are keywheel:provider/",
            ],
        ),
        (
            "renamed.wasm",
            &patched(&good, "keywheel:provider/guest@", "keywheel:provider/ghost@"),
            &["lacks the export keywheel:provider/guest@0.1.0", "it exports keywheel:provider/ghost@0.1.0"],
        ),
    ];
    for (name, bytes, _) in table {
        fs::write(in_folder(&home, name), bytes).expect("a file");
    }
    let guests: &[(&str, &[&str])] = &[
        ("describe_traps", &["describe"]),
        ("describe_loops", &["describe"]),
        ("bad_service_name", &["Bad Service/..", "allowed"]),
        ("no_keys", &["key"]),
        ("star_origin", &["https://*"]),
    ];
    for (name, _) in guests {
        home.drop_plugin(&guest(name));
    }
    home.drop_plugin(&good);
    fs::write(in_folder(&home, "README.txt"), "no plugin by its name").expect("a file");
    fs::create_dir(in_folder(&home, "folder.wasm")).expect("a folder");

    let all = listed(&home);
    assert_eq!(all.len(), table.len() + guests.len() + 1, "{all:#?}");
    let reasons = table.iter().map(|(name, _, reasons)| ((*name).to_owned(), *reasons));
    let of_guests = guests.iter().map(|(name, reasons)| (format!("{name}.wasm"), *reasons));
    for (file, reasons) in reasons.chain(of_guests) {
        let plugin = all.iter().find(|plugin| plugin["file"] == file.as_str()).expect("it is listed");
        assert_eq!(plugin["state"], "refused", "{plugin}");
        for reason in reasons {
            assert!(text(plugin, "reason").contains(reason), "{file}: {}\nlacks {reason}", plugin["reason"]);
        }
        // The same file by hand gives the same reason, and installs nothing.
        for verb in ["check", "install"] {
            if file == "describe_loops.wasm" && verb == "install" {
                continue; // Two seconds each, and `check` has shown the way.
            }
            let refused = home.run(&["plugin", verb, in_folder(&home, &file).to_str().expect("UTF-8")]);
            assert_eq!(refused.code(), 65, "{refused:?}");
            assert!(refused.stderr.contains(reasons[0]), "{file}: {}", refused.stderr);
        }
    }
    assert_eq!(listed_as(&home, "well_behaved.wasm")["state"], "active");
    // Nothing of the refused ones stays behind.
    let mut store: Vec<_> = fs::read_dir(home.path().join("store"))
        .expect("the store")
        .map(|entry| entry.expect("an entry").path().extension().map(|end| end.to_owned()))
        .collect();
    store.sort();
    assert_eq!(store, [Some("wasm".into())], "only the plugin in use is kept");
}

#[test]
fn a_file_over_the_cap_is_refused_without_being_read() {
    let home = TestHome::new();
    let daemon = home.serve();
    let read = |pid: u32| -> u64 {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the daemon is there");
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar").parse().expect("a number")
    };
    let before = read(daemon.pid());
    fs::File::create(in_folder(&home, "film.wasm"))
        .and_then(|file| file.set_len(200 << 20))
        .expect("a sparse file");
    let refused = home.wait_for_plugin("film.wasm", "refused");
    assert_eq!(text(&refused, "reason"), "209715200 bytes, at most 67108864 are allowed");
    let read = read(daemon.pid()) - before;
    assert!(read < 32 << 20, "{read} bytes were read");
    let check = home.run(&["plugin", "check", in_folder(&home, "film.wasm").to_str().expect("UTF-8")]);
    assert_eq!(check.code(), 65, "{check:?}");
}

#[test]
fn a_file_that_is_still_being_copied_becomes_active_when_it_is_whole() {
    let (home, bytes) = (TestHome::new(), fs::read(guest("well_behaved")).expect("a built plugin"));
    let _daemon = home.serve();
    let mut file = fs::File::create(in_folder(&home, "slow.wasm")).expect("a file");
    file.write_all(&bytes[..bytes.len() / 2]).expect("half of it");
    let half = home.wait_for_plugin("slow.wasm", "refused");
    assert!(text(&half, "reason").contains("cut short"), "{half}");
    file.write_all(&bytes[bytes.len() / 2..]).expect("the other half");
    drop(file);
    assert_eq!(home.wait_for_plugin("slow.wasm", "active")["service"], "well-behaved");
}

#[test]
fn files_that_change_again_while_others_are_compiled_are_looked_at_again_and_not_refused() {
    let names = ["well_behaved", "uses_everything", "traps_in_validate", "exits", "memory_bomb", "log_flood"];
    let (home, stop) = (TestHome::new(), AtomicBool::new(false));
    let put = |name: &str| {
        let part = in_folder(&home, &format!("{name}.part"));
        fs::copy(guest(name), &part).expect("a copy");
        fs::rename(&part, in_folder(&home, &format!("{name}.wasm"))).expect("a rename");
    };
    names.iter().copied().for_each(put);
    let plugins = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                names.iter().copied().for_each(put);
            }
        });
        let plugins = listed(&home);
        stop.store(true, Ordering::Relaxed);
        plugins
    });
    assert!(plugins.iter().all(|plugin| plugin["state"] != "refused"), "{plugins:#?}");
    // Left alone, all of them are what they are.
    let plugins = listed(&home);
    assert_eq!(plugins.len(), names.len(), "{plugins:#?}");
    assert!(plugins.iter().all(|plugin| plugin["state"] == "active"), "{plugins:#?}");
}

#[test]
fn of_two_plugins_for_one_service_the_first_stays_and_the_second_is_a_conflict() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    home.drop_plugin(&guest("well_behaved"));
    home.wait_for_plugin("well_behaved.wasm", "active");
    // By name it would come first.
    home.drop_plugin_as(&guest("second_well_behaved"), "a.wasm");
    let second = home.wait_for_plugin("a.wasm", "conflict");
    assert_eq!(
        text(&second, "reason"),
        "`well-behaved` is served by well_behaved.wasm; hint: remove one of the two"
    );
    assert_eq!(home.wait_for_plugin("well_behaved.wasm", "active")["version"], "0.1.0");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    // The same decision again by another process, from the folder alone.
    assert!(daemon.stop().success());
    assert_eq!(listed_as(&home, "well_behaved.wasm")["state"], "active");
    assert_eq!(listed_as(&home, "a.wasm")["state"], "conflict");
    // Without the first there is no conflict, and the second asks for nothing more.
    home.json(&["plugin", "remove", "well-behaved"]);
    assert_eq!(listed_as(&home, "a.wasm")["state"], "active");
    home.json(&["credential", "validate", "ann"]);
}

#[test]
fn a_version_that_asks_for_more_waits_for_approval_while_the_old_one_works() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    let old = home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);

    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    let waiting = home.wait_for_plugin("p.wasm", "pending-approval");
    assert!(text(&waiting, "reason").contains("keywheel plugin approve well-behaved"), "{waiting}");
    let asks = waiting["permissions"].as_array().expect("lines");
    assert!(asks.iter().any(|line| line.as_str().is_some_and(|l| l.contains("https://collector.example"))));
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["meta"]["plugin"], old["digest"], "{report}");

    // A restart finds the approved bytes in the store, with and without a daemon.
    assert!(daemon.stop().success());
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["meta"]["plugin"], old["digest"], "{report}");
    let _daemon = home.serve();
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["meta"]["plugin"], old["digest"], "{report}");

    let granted = home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    assert_eq!(granted["difference"]["addedOrigins"][0], "https://collector.example", "{granted}");
    let new = home.wait_for_plugin("p.wasm", "active");
    assert_eq!(new["version"], "0.3.0");
    assert_ne!(new["digest"], old["digest"]);
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["meta"]["plugin"], new["digest"], "{report}");
    // Asked again, there is nothing left to grant.
    let nothing = home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    assert_eq!((&nothing["needsApproval"], &nothing["granted"]), (&false.into(), &false.into()));
}

#[test]
fn a_version_that_asks_for_more_is_accepted_at_once_where_there_is_nothing_to_harm() {
    let home = TestHome::new();
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    assert_eq!(listed_as(&home, "p.wasm")["version"], "0.1.0");
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    let plugin = listed_as(&home, "p.wasm");
    assert_eq!((&plugin["state"], &plugin["version"]), (&"active".into(), &"0.3.0".into()));
}

#[test]
fn a_version_that_asks_for_the_same_takes_over_with_credentials_there() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    home.add_session("ann", "well-behaved", &service, &[]);
    let check = home.json(&["plugin", "check", guest("second_well_behaved").to_str().expect("UTF-8")]);
    assert!(check["permissions"].to_string().contains("asks for the same"), "{check}");
    home.drop_plugin_as(&guest("second_well_behaved"), "p.wasm");
    let plugin = listed_as(&home, "p.wasm");
    assert_eq!((&plugin["state"], &plugin["version"]), (&"active".into(), &"0.2.0".into()));
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["meta"]["plugin"], plugin["digest"]);
}

#[test]
fn a_key_is_revealed_only_after_the_operator_granted_it() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("reveals"));
    let token = random_secret();
    let keys = format!("session={}\ntoken={token}", service.issue());
    let base_url = format!("base_url={}", service.url);
    home.add("ann", "reveals", &keys, &["--set", &base_url]);

    let refused = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    let report = refused.json();
    assert_eq!((&report["status"], &report["meta"]["verdict"]), (&"failed".into(), &"needs-human".into()));
    let message = text(&report, "message");
    assert!(message.contains("`token`") && message.contains("keywheel plugin approve reveals"), "{message}");

    let granted = home.json(&["plugin", "approve", "reveals", "--yes"]);
    assert_eq!(granted["difference"]["addedReveal"], serde_json::json!(["token"]), "{granted}");
    let report = home.json(&["credential", "validate", "ann"]);
    assert_eq!(report["status"], "success", "{report}");
    assert!(report.to_string().contains(&format!("the token has {} bytes", token.len())), "{report}");
    assert!(!home.printed().contains(&token), "a granted key is no licence to print it");
}

#[test]
fn a_hundred_files_at_once_all_find_their_place() {
    let (home, good) = (TestHome::new(), guest("well_behaved"));
    let _daemon = home.serve();
    for number in 0..100 {
        let name = format!("{number:03}.wasm");
        match number % 4 {
            // A plugin of its own: the service's name is part of its bytes.
            0 => {
                let bytes = patched(&good, "well-behaved", &format!("fleet-{number:06}"));
                fs::write(in_folder(&home, &name), bytes).expect("a file");
            }
            1 => home.drop_plugin_as(&good, &name),
            2 => fs::write(in_folder(&home, &name), EMPTY_COMPONENT).expect("a file"),
            _ => fs::write(in_folder(&home, &name), format!("garbage {number}")).expect("a file"),
        }
    }
    let count = |state: &str, all: &[Value]| all.iter().filter(|plugin| plugin["state"] == state).count();
    let all = wait_until(SOON, "all hundred are settled", || {
        let all = home.json(&["status"])["plugins"].as_array().expect("an array").clone();
        (all.len() == 100).then_some(all)
    });
    let broken: Vec<_> = all
        .iter()
        .filter(|plugin| plugin["state"] == "refused")
        .map(|plugin| format!("{}: {}", plugin["file"], plugin["reason"]))
        .collect();
    assert_eq!(broken.len(), 50, "{broken:#?}");
    // 25 of their own and the first of those that are the same.
    assert_eq!(count("active", &all), 26);
    assert_eq!(count("conflict", &all), 24);
}

#[test]
fn a_plugin_follows_its_file_through_renames_links_and_deletion() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    home.drop_plugin_as(&guest("well_behaved"), "one.wasm");
    home.wait_for_plugin("one.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);

    fs::rename(in_folder(&home, "one.wasm"), in_folder(&home, "two.wasm")).expect("a rename");
    home.wait_for_plugin("two.wasm", "active");
    assert_eq!(home.plugin("one.wasm"), None);
    home.json(&["credential", "validate", "ann"]);

    fs::remove_file(in_folder(&home, "two.wasm")).expect("a file");
    wait_until(SOON, "the plugin is gone", || home.plugin("two.wasm").is_none().then_some(()));
    let orphan = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(orphan.code(), 1, "{orphan:?}");
    assert_ne!(orphan.json()["status"], "validation_failed", "no plugin is no verdict");
    assert_eq!(home.json(&["credential", "list"])[0]["credentialId"], "ann");

    // Back as a link to a file elsewhere: its bytes count.
    std::os::unix::fs::symlink(guest("well_behaved"), in_folder(&home, "link.wasm")).expect("a link");
    home.wait_for_plugin("link.wasm", "active");
    home.json(&["credential", "validate", "ann"]);
    // Turned to one that asks for more, it is a newer version like any other.
    std::os::unix::fs::symlink(guest("wants_more_origins"), in_folder(&home, ".next")).expect("a link");
    fs::rename(in_folder(&home, ".next"), in_folder(&home, "link.wasm")).expect("a rename");
    home.wait_for_plugin("link.wasm", "pending-approval");
    home.json(&["credential", "validate", "ann"]);
    // A link to nowhere is no file.
    fs::remove_file(in_folder(&home, "link.wasm")).expect("a link");
    std::os::unix::fs::symlink("/nowhere/at-all.wasm", in_folder(&home, "link.wasm")).expect("a link");
    wait_until(SOON, "the plugin is gone", || home.plugin("link.wasm").is_none().then_some(()));
}

#[test]
fn native_code_that_the_host_did_not_make_is_compiled_again() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&guest("slow_check"));
    home.add_session("ann", "well-behaved", &service, &[]);
    let native = |file: &str| {
        let digest = text(&listed_as(&home, file), "digest").to_owned();
        let cached = fs::read_dir(home.path().join("cache")).expect("the cache");
        cached
            .map(|entry| entry.expect("an entry").path())
            .find(|path| {
                path.extension().is_some_and(|extension| extension == "cwasm")
                    && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&digest))
            })
            .expect("native code in the cache")
    };
    let (ours, other) = (native("well_behaved.wasm"), native("slow_check.wasm"));
    let genuine = fs::read(&ours).expect("native code");

    let mut flipped = genuine.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let truncated = genuine[..genuine.len() / 2].to_vec();
    for bad in [flipped, truncated, Vec::new()] {
        // By a new file: one that a running worker has mapped may not change.
        fs::remove_file(&ours).and_then(|()| fs::write(&ours, &bad)).expect("the cache");
        assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
        assert_ne!(fs::read(&ours).expect("native code"), bad);
    }
    // Genuine code of another plugin, with its genuine tag, under this one's name.
    let swapped = fs::read(&other).expect("native code");
    fs::write(&ours, &swapped).expect("the cache");
    fs::copy(other.with_extension("tag"), ours.with_extension("tag")).expect("the cache");
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    assert_ne!(fs::read(&ours).expect("native code"), swapped);
    // The whole cache may go at any time.
    fs::remove_dir_all(home.path().join("cache")).expect("the cache");
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
}

#[test]
fn plugins_are_checked_installed_and_removed_with_and_without_a_daemon() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let file = guest("well_behaved");
    let (file, newer) = (file.to_str().expect("UTF-8"), guest("second_well_behaved"));
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| home.serve());
        let check = home.json(&["plugin", "check", file]);
        assert_eq!((&check["service"], &check["version"]), (&"well-behaved".into(), &"0.1.0".into()));
        assert!(check["permissions"].to_string().contains("may reach the address in setting"), "{check}");
        assert_eq!(listed(&home), Vec::<Value>::new(), "a check installs nothing");

        assert_eq!(home.json(&["plugin", "install", file])["state"], "active");
        assert_eq!(listed_as(&home, "well-behaved.wasm")["state"], "active");
        let id = format!("ann-{with_daemon}");
        home.add_session(&id, "well-behaved", &service, &[]);
        if with_daemon {
            home.wait_for_reports(&id, 1);
        }
        home.json(&["credential", "validate", &id]);
        // Installed again it replaces its file and makes no second one.
        let replaced = home.json(&["plugin", "install", newer.to_str().expect("UTF-8")]);
        assert_eq!((&replaced["state"], &replaced["version"]), (&"active".into(), &"0.2.0".into()));
        assert_eq!(listed(&home).len(), 1);

        home.json(&["plugin", "remove", "well-behaved"]);
        assert_eq!(listed(&home), Vec::<Value>::new());
        let again = home.run(&["plugin", "remove", "well-behaved"]);
        assert_eq!(again.code(), 3, "{again:?}");
        assert!(again.stderr.contains("no plugin for `well-behaved`"), "{again:?}");
        assert_eq!(home.json(&["credential", "show", &id])["credential"]["service"], "well-behaved");

        let nobody = home.run(&["plugin", "approve", "nobody"]);
        assert_eq!(nobody.code(), 3, "{nobody:?}");
        for verb in ["check", "install"] {
            let missing = home.run(&["plugin", verb, "/nowhere/at-all.wasm", "--json"]);
            assert_eq!(missing.code(), 3, "{missing:?}");
            let error: Value = serde_json::from_str(&missing.stderr).expect("JSON");
            assert!(text(&error, "error").contains("/nowhere/at-all.wasm"), "{error}");
        }
    }
}
