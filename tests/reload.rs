//! Plugins that are replaced, linked, moved, cut short and deleted while they work. Whatever a
//! file goes through, what was approved keeps serving until a good version takes over or the
//! file is deleted, no attempt is lost, and nothing stays behind. What a folder may hold at all
//! is in `plugins.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::harness::*;
use crate::plugins::{in_folder, listed_as, patched, text};

/// For what compiles a few hundred files in a debug build, beside the other tests.
const LONG: Duration = Duration::from_secs(120);

/// Two versions of one service, of the same length, that ask for the same.
fn two_versions() -> [Vec<u8>; 2] {
    let [old, new] =
        ["well_behaved", "second_well_behaved"].map(|name| fs::read(guest(name)).expect("a guest"));
    assert_eq!(old.len(), new.len(), "else a rewrite in place would show by its length");
    [old, new]
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// Puts bytes in place of a file as an installer does: whole, by a rename.
fn rename_over(home: &TestHome, name: &str, bytes: &[u8]) {
    let next = in_folder(home, ".next");
    fs::write(&next, bytes).and_then(|()| fs::rename(&next, in_folder(home, name))).expect("a rename");
}

/// The digest of the plugin that answered.
#[track_caller]
fn answered_by(home: &TestHome, credential: &str) -> String {
    let report = home.json(&["credential", "validate", credential]);
    assert_eq!(report["status"], "success", "{report}");
    text(&report["meta"], "plugin").to_owned()
}

/// Waits until a file's plugin has this digest and serves.
#[track_caller]
fn wait_for_digest(home: &TestHome, file: &str, digest: &str) {
    wait_until(LONG, &format!("{file} serves as {digest}"), || {
        home.plugin(file).filter(|plugin| {
            plugin["state"] == "active" && plugin["digest"] == digest && plugin["reason"].is_null()
        })
    });
}

/// A plugin whose code is no code, beneath a component that looks right.
fn uncompilable(plugin: &Path) -> Vec<u8> {
    let mut bytes = fs::read(plugin).expect("a guest");
    let longest = wasmparser::Parser::new(0)
        .parse_all(&bytes)
        .filter_map(|payload| match payload.expect("a guest parses") {
            wasmparser::Payload::CodeSectionEntry(body) => Some(body.range()),
            _ => None,
        })
        .max_by_key(std::ops::Range::len)
        .expect("a guest has code");
    let middle = usize::midpoint(longest.start, longest.end);
    bytes[middle..middle + 64].fill(0xff);
    bytes
}

#[test]
fn a_bad_update_leaves_the_approved_version_serving_until_a_good_one_or_none_is_there() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let good = guest("well_behaved");
    let [old, new] = two_versions();
    let mut daemon = home.serve();
    home.drop_plugin_as(&good, "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    let approved = digest_of(&old);

    let read = |name| fs::read(guest(name)).expect("a guest");
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("garbage", b"an error page of a proxy".to_vec(), "not WebAssembly"),
        ("nothing", Vec::new(), "empty"),
        ("half", old[..old.len() / 2].to_vec(), "cut short"),
        ("a core module", b"\0asm\x01\0\0\0".to_vec(), "a core module"),
        ("a later contract", patched(&good, "@0.1.0", "@0.9.0"), "contract version 0.9.0"),
        ("code that is none", uncompilable(&good), "doesn't compile"),
        ("a trap in describe", read("describe_traps"), "describe"),
        ("a lying manifest", patched(&good, "{base_url.origin}", "{base_urx.origin}"), "base_urx"),
        ("a bad service name", read("bad_service_name"), "Bad Service"),
    ];
    let goes_on = |reason: &str| {
        let refused = home.wait_for_plugin("p.wasm", "refused");
        let why = text(&refused, "reason");
        assert!(why.contains(reason), "{why}");
        assert!(why.contains("`well-behaved` goes on with its approved version 0.1.0; hint: "), "{why}");
        assert_eq!(refused["service"], "well-behaved", "{refused}");
        assert_eq!(answered_by(&home, "ann"), approved);
    };
    for (number, (_, bytes, reason)) in table.iter().enumerate() {
        // Every other one in place, as `cp` does.
        if number % 2 == 0 {
            rename_over(&home, "p.wasm", bytes);
        } else {
            fs::write(in_folder(&home, "p.wasm"), bytes).expect("a file");
        }
        wait_until(SOON, &format!("the reason is {reason}"), || {
            home.plugin("p.wasm")
                .filter(|plugin| plugin["reason"].as_str().is_some_and(|why| why.contains(reason)))
        });
        goes_on(reason);
        // And after a restart, an orderly one or not, when only the home remembers.
        if number < 2 {
            if number == 0 {
                assert!(daemon.stop().success())
            } else {
                daemon.kill_9()
            }
            assert_eq!(answered_by(&home, "ann"), approved, "without a daemon");
            daemon = home.serve();
            goes_on(reason);
        }
    }

    rename_over(&home, "p.wasm", &new);
    wait_for_digest(&home, "p.wasm", &digest_of(&new));
    assert_eq!(answered_by(&home, "ann"), digest_of(&new));
    rename_over(&home, "p.wasm", b"garbage");
    let refused = home.wait_for_plugin("p.wasm", "refused");
    assert!(text(&refused, "reason").contains("approved version 0.2.0"), "{refused}");
    assert_eq!(answered_by(&home, "ann"), digest_of(&new));

    // Deleted is deleted, and what comes under the name later is no update.
    home.json(&["plugin", "remove", "well-behaved"]);
    assert!(!in_folder(&home, "p.wasm").exists());
    rename_over(&home, "p.wasm", b"garbage");
    let refused = home.wait_for_plugin("p.wasm", "refused");
    assert!(!text(&refused, "reason").contains("goes on"), "{refused}");
    let orphan = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(orphan.json()["meta"]["verdict"], "needs-human", "{orphan:?}");
    drop(daemon);
    let orphan = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(orphan.json()["meta"]["verdict"], "needs-human", "{orphan:?}");
}

#[test]
fn a_file_that_turns_to_another_service_takes_none_from_its_credentials() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let other = patched(&guest("well_behaved"), "well-behaved", "other-people");
    let old = digest_of(&two_versions()[0]);
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    // Nothing is lost where there is no credential.
    rename_over(&home, "p.wasm", &other);
    wait_for_digest(&home, "p.wasm", &digest_of(&other));
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    wait_for_digest(&home, "p.wasm", &old);

    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    rename_over(&home, "p.wasm", &other);
    let refused = home.wait_for_plugin("p.wasm", "refused");
    let why = text(&refused, "reason");
    assert!(
        why.contains("served `well-behaved`, which has credentials, and is for `other-people` now"),
        "{why}"
    );
    assert_eq!(answered_by(&home, "ann"), old);
    // Under a name of its own it is welcome, and the first service has no file any more.
    fs::rename(in_folder(&home, "p.wasm"), in_folder(&home, "other.wasm")).expect("a rename");
    wait_for_digest(&home, "other.wasm", &digest_of(&other));
    let orphan = home.run(&["credential", "validate", "ann", "--json"]);
    assert_eq!(orphan.json()["meta"]["verdict"], "needs-human", "{orphan:?}");
}

#[test]
fn a_pending_version_that_is_withdrawn_for_garbage_can_no_longer_be_approved() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let old = digest_of(&two_versions()[0]);
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    home.drop_plugin_as(&guest("wants_more_origins"), "p.wasm");
    home.wait_for_plugin("p.wasm", "pending-approval");
    rename_over(&home, "p.wasm", b"garbage");
    home.wait_for_plugin("p.wasm", "refused");
    let wish = home.json(&["plugin", "approve", "well-behaved", "--yes"]);
    assert_eq!((&wish["needsApproval"], &wish["granted"]), (&false.into(), &false.into()), "{wish}");
    assert_eq!(answered_by(&home, "ann"), old);
}

#[test]
fn a_backup_beside_a_plugin_takes_over_neither_from_its_update_nor_from_a_bad_one() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let [old, backup] = two_versions();
    let update = patched(&guest("well_behaved"), "A guest of the tests", "A guest, once better");
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    // By name it comes first.
    fs::write(in_folder(&home, "a.wasm"), &backup).expect("a file");
    home.wait_for_plugin("a.wasm", "conflict");
    rename_over(&home, "p.wasm", b"garbage");
    home.wait_for_plugin("p.wasm", "refused");
    assert_eq!(answered_by(&home, "ann"), digest_of(&old));
    rename_over(&home, "p.wasm", &update);
    wait_for_digest(&home, "p.wasm", &digest_of(&update));
    assert_eq!(home.wait_for_plugin("a.wasm", "conflict")["version"], "0.2.0");
    assert_eq!(answered_by(&home, "ann"), digest_of(&update));
}

#[test]
fn a_plugin_rewritten_in_place_by_a_copy_that_stalls_is_served_all_along() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let [old, new] = two_versions();
    fs::write(in_folder(&home, "p.wasm"), &old).expect("a file");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    // Truncated first, as `cp` does.
    let mut file = fs::File::create(in_folder(&home, "p.wasm")).expect("a file");
    for chunk in new[..new.len() / 2].chunks(4096) {
        file.write_all(chunk).expect("a chunk");
        assert_eq!(answered_by(&home, "ann"), digest_of(&old));
    }
    // It stalls for longer than a file may take to be called half-written, and goes on.
    let half = home.wait_for_plugin("p.wasm", "refused");
    assert!(text(&half, "reason").contains("cut short"), "{half}");
    assert_eq!(answered_by(&home, "ann"), digest_of(&old));
    file.write_all(&new[new.len() / 2..]).expect("the rest");
    drop(file);
    wait_for_digest(&home, "p.wasm", &digest_of(&new));
    assert_eq!(answered_by(&home, "ann"), digest_of(&new));
}

#[test]
fn a_worker_that_was_starting_when_its_plugin_was_replaced_or_removed_serves_nothing_new() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    // Each asks at a path of its own, so that the service knows who asked.
    let paths = ["/check", "/chekk"];
    let versions = paths.map(|path| patched(&guest("well_behaved"), "/check", path));
    rename_over(&home, "p.wasm", &versions[0]);
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    for round in 1..40 {
        let (bytes, path) = (&versions[round % 2], paths[round % 2]);
        std::thread::scope(|scope| {
            // The worker of the round before is retired, so each of these may start one.
            scope.spawn(|| rename_over(&home, "p.wasm", bytes));
            std::thread::sleep(Duration::from_micros(rand_below(40_000)));
            for _ in 0..3 {
                answered_by(&home, "ann");
            }
        });
        wait_for_digest(&home, "p.wasm", &digest_of(bytes));
        let before = service.count(path);
        answered_by(&home, "ann");
        assert_eq!(service.count(path), before + 1, "round {round}: the old version answered");
        // Every few rounds it goes in the middle of that, too.
        if round % 4 == 0 {
            rename_over(&home, "p.wasm", &versions[(round + 1) % 2]);
            wait_for_digest(&home, "p.wasm", &digest_of(&versions[(round + 1) % 2]));
            std::thread::scope(|scope| {
                scope.spawn(|| home.run(&["credential", "validate", "ann"]));
                std::thread::sleep(Duration::from_micros(rand_below(15_000)));
                fs::remove_file(in_folder(&home, "p.wasm")).expect("the file");
            });
            wait_until(SOON, "no worker is left", || (Held::of(&home, &daemon).children == 0).then_some(()));
            rename_over(&home, "p.wasm", bytes);
            wait_for_digest(&home, "p.wasm", &digest_of(bytes));
        }
    }
}

#[test]
fn other_bytes_of_the_same_length_time_and_inode_are_seen() {
    let home = TestHome::new();
    let _daemon = home.serve();
    let versions = two_versions();
    let path = in_folder(&home, "p.wasm");
    // The file's own time may be anything; `cp -p` brings it along.
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    for time in [now - day, now + 3_650 * day, SystemTime::UNIX_EPOCH] {
        for round in 0..4 {
            let bytes = &versions[round % 2];
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).expect("a file");
            file.write_all(bytes).expect("it can be rewritten");
            file.set_modified(time).expect("its time can be set");
            drop(file);
            wait_for_digest(&home, "p.wasm", &digest_of(bytes));
        }
    }
    // Written again and again, with no pause or a short one: the last bytes count.
    for round in 0..60 {
        let mut file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
        file.write_all(&versions[round % 2]).expect("it can be rewritten");
        file.set_modified(now).expect("its time can be set");
        std::thread::sleep(Duration::from_millis(round as u64 % 30));
    }
    wait_for_digest(&home, "p.wasm", &digest_of(&versions[1]));
}

/// What a running daemon holds of the machine.
#[derive(Debug)]
struct Held {
    children: usize,
    descriptors: usize,
    threads: usize,
    resident_kib: u64,
    stored: usize,
    cached: usize,
}

impl Held {
    fn of(home: &TestHome, daemon: &Daemon) -> Self {
        let proc = format!("/proc/{}", daemon.pid());
        let entries = |path: &Path| fs::read_dir(path).expect("a folder").count();
        let tasks: Vec<_> = fs::read_dir(format!("{proc}/task"))
            .expect("its threads")
            // A thread may end while its siblings are counted.
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
            .collect();
        let status = fs::read_to_string(format!("{proc}/status")).expect("the daemon is there");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        Self {
            children: tasks.iter().map(|children| children.split_whitespace().count()).sum(),
            descriptors: entries(Path::new(&format!("{proc}/fd"))),
            threads: tasks.len(),
            resident_kib: resident.trim_end_matches("kB").trim().parse().expect("a number"),
            stored: entries(&home.path().join("store")),
            cached: entries(&home.path().join("cache")),
        }
    }
}

#[test]
fn a_thousand_reloads_leave_no_process_descriptor_thread_memory_or_file_behind() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    // Ten services, so that each look at the folder reloads ten: the time is mostly the wait
    // for the end of a burst.
    let fleet: Vec<(String, [Vec<u8>; 2])> = (0..10)
        .map(|number| {
            let name = format!("fleet-{number:06}");
            let versions = ["well_behaved", "second_well_behaved"]
                .map(|version| patched(&guest(version), "well-behaved", &name));
            (name, versions)
        })
        .collect();
    // Changes all and waits until all are changed; `ask` starts a worker of some.
    let round = |number: usize, ask: bool| {
        for (name, versions) in &fleet {
            rename_over(&home, &format!("{name}.wasm"), &versions[number % 2]);
        }
        let wanted: BTreeSet<String> =
            fleet.iter().map(|(_, versions)| digest_of(&versions[number % 2])).collect();
        wait_until(LONG, "all have changed", || {
            let status = home.json(&["status"]);
            let plugins = status["plugins"].as_array().expect("an array");
            let active = plugins.iter().filter(|plugin| plugin["state"] == "active");
            let digests: BTreeSet<String> = active.map(|plugin| text(plugin, "digest").to_owned()).collect();
            (digests == wanted).then_some(())
        });
        if ask {
            for which in [number % 10, (number + 5) % 10] {
                let (name, versions) = &fleet[which];
                assert_eq!(answered_by(&home, name), digest_of(&versions[number % 2]));
            }
        }
    };
    // Without a worker: those of the versions before have ended, those of the last never began.
    let at_rest = || {
        wait_until(LONG, "the retired workers have ended", || {
            let held = Held::of(&home, &daemon);
            (held.children == 0).then_some(held)
        })
    };
    round(0, false);
    for (name, _) in &fleet {
        home.add_session(name, name, &service, &[]);
        home.wait_for_reports(name, 1);
    }
    for number in 1..=20 {
        round(number, true);
    }
    round(21, false);
    let before = at_rest();
    for number in 22..=121 {
        round(number, true);
    }
    round(122, false);
    let after = at_rest();
    // The pool keeps a thread or two for ten seconds; a leak of one for each reload is a thousand.
    assert!(after.descriptors <= before.descriptors + 8, "{before:?} {after:?}");
    assert!(after.threads <= before.threads + 8, "{before:?} {after:?}");
    let most = before.resident_kib + before.resident_kib / 10 + (8 << 10);
    assert!(after.resident_kib <= most, "{before:?} {after:?}");
    // Two versions of each, two files for each in both folders.
    assert!(after.stored <= 40 && after.cached <= 40, "{after:?}");
}

#[test]
fn many_versions_in_a_row_leave_two_in_store_and_cache() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    for number in 0..20 {
        let title = format!("A guest, number {number:04}");
        let bytes = patched(&guest("well_behaved"), "A guest of the tests", &title);
        rename_over(&home, "p.wasm", &bytes);
        wait_for_digest(&home, "p.wasm", &digest_of(&bytes));
        // Every second one is followed by what is no update at all.
        if number % 2 == 0 {
            let bad = patched(
                &guest("well_behaved"),
                "{base_url.origin}",
                &format!("{{base_ur{number:02}_rigin}}"),
            );
            rename_over(&home, "p.wasm", &bad);
            home.wait_for_plugin("p.wasm", "refused");
        }
    }
    let held = Held::of(&home, &daemon);
    // The one before is kept, for it is the likeliest to come back, and one until the next change.
    assert!(held.stored <= 6, "{held:?}");
    // What was refused is gone from the store, and its native code with the next change.
    assert!(held.cached <= 8, "{held:?}");
}

#[test]
fn attempts_in_flight_end_on_the_old_version_and_new_ones_begin_on_the_new() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let [old, new] = two_versions();
    rename_over(&home, "p.wasm", &old);
    home.wait_for_plugin("p.wasm", "active");
    service.hold("/check");
    let ids: Vec<String> = (0..50).map(|number| format!("old-{number:02}")).collect();
    for id in &ids {
        home.add_session(id, "well-behaved", &service, &[]);
    }
    let in_flight = |count: u64| {
        wait_until(SOON, &format!("{count} attempts are in flight"), || {
            home.worker("well-behaved")
                .filter(|worker| worker["inFlight"] == count || worker["in_flight"] == count)
        })
    };
    let old_worker = in_flight(50);
    let old_pid = u32::try_from(old_worker["pid"].as_u64().expect("a pid")).expect("a pid");
    rename_over(&home, "p.wasm", &new);
    wait_for_digest(&home, "p.wasm", &digest_of(&new));
    for number in 0..5 {
        home.add_session(&format!("new-{number:02}"), "well-behaved", &service, &[]);
    }
    let new_worker = in_flight(5);
    assert_ne!(new_worker["pid"], old_worker["pid"]);
    assert!(is_running(old_pid), "the old worker has fifty attempts to end");
    service.release("/check");
    let new_ids: Vec<String> = (0..5).map(|number| format!("new-{number:02}")).collect();
    let expected: BTreeMap<&String, String> = ids
        .iter()
        .map(|id| (id, digest_of(&old)))
        .chain(new_ids.iter().map(|id| (id, digest_of(&new))))
        .collect();
    for (id, digest) in expected {
        let reports = home.wait_for_reports(id, 1);
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert_eq!(reports[0]["status"], "success", "{}", reports[0]);
        assert_eq!(reports[0]["meta"]["plugin"], digest.as_str(), "{}", reports[0]);
    }
    wait_until(SOON, "the old worker ends", || (!is_running(old_pid)).then_some(()));
    assert_eq!(service.count("/check"), 55, "each was asked about once");
}

/// Makes what is no plugin in every way a folder allows, and says how many of them are files.
fn odd_entries(home: &TestHome, number: usize) -> Option<&'static str> {
    let name = |what: &str| in_folder(home, &format!("{number:03}-{what}.wasm"));
    let node = |path: &Path, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from_raw_mode(0o600), device)
    };
    let special = match number % 10 {
        0 => {
            node(&name("pipe"), rustix::fs::FileType::Fifo, 0).expect("a pipe");
            true
        }
        1 => {
            std::os::unix::net::UnixListener::bind(name("socket")).expect("a socket");
            true
        }
        2 => {
            // Making a device takes privileges; a link to one doesn't.
            if node(&name("device"), rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(5, 0))
                .is_err()
            {
                symlink("/dev/tty", name("device")).expect("a link");
            }
            symlink("/dev/zero", name("endless")).expect("a link");
            true
        }
        3 => {
            fs::create_dir(name("folder")).expect("a folder");
            true
        }
        4 => {
            fs::write(in_folder(home, &format!(".{number:03}-hidden.wasm")), "garbage").expect("a file");
            true
        }
        5 => {
            symlink("/nowhere/at-all.wasm", name("nowhere")).expect("a link");
            symlink(name("round"), name("round")).expect("a link");
            true
        }
        _ => false,
    };
    if special {
        return None;
    }
    Some(match number % 10 {
        6 => {
            fs::write(name("unreadable"), "garbage").expect("a file");
            fs::set_permissions(name("unreadable"), fs::Permissions::from_mode(0o000)).expect("its mode");
            "unreadable"
        }
        7 => {
            // 255 bytes, the most there is.
            let long = format!("{number:03}{}.wasm", "x".repeat(247));
            fs::write(in_folder(home, &long), "garbage").expect("a file");
            "long name"
        }
        8 => {
            let mut odd = format!("{number:03}-").into_bytes();
            odd.extend_from_slice(b"\xff\xfe\n\x1b[31m.wasm");
            let path = home.path().join("plugins").join(OsStr::from_bytes(&odd));
            fs::write(path, "garbage").expect("a file");
            "not UTF-8"
        }
        _ => {
            symlink("/proc/self/maps", name("proc")).expect("a link");
            "a file of the kernel"
        }
    })
}

#[test]
fn five_hundred_files_of_every_kind_settle_while_a_neighbour_works_and_status_answers() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let good = guest("well_behaved");
    let whole = fs::read(&good).expect("a guest");
    home.drop_plugin_as(&good, "neighbour.wasm");
    home.wait_for_plugin("neighbour.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);

    let (mut shown, mut active, mut conflicts, mut odd) = (1, 1, 0, 0);
    for number in 0..500 {
        let path = in_folder(&home, &format!("{number:03}.wasm"));
        let write = |bytes: &[u8]| fs::write(&path, bytes).expect("a file");
        match number % 10 {
            // Compiling is what takes time in a debug build, so few are good.
            0 if number < 200 => {
                active += 1;
                write(&patched(&good, "well-behaved", &format!("fleet-{number:06}")));
            }
            0 | 1 => {
                conflicts += 1;
                write(&whole);
            }
            2 => write(format!("garbage {number}").as_bytes()),
            3 => write(&whole[..whole.len() * (number + 1) / 501]),
            4 => write(b"\0asm\x01\0\0\0"),
            5 => write(b""),
            _ => {
                shown += usize::from(odd_entries(&home, odd).is_some());
                odd += 1;
                continue;
            }
        }
        shown += 1;
    }
    let answering = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let (mut attempts, mut slowest) = (0_u32, Duration::ZERO);
            while answering.load(Ordering::Relaxed) {
                answered_by(&home, "ann");
                attempts += 1;
                let asked = Instant::now();
                home.json(&["status"]);
                slowest = slowest.max(asked.elapsed());
            }
            (attempts, slowest)
        });
        let all = wait_until(LONG, "all are settled", || {
            let all = home.json(&["status"])["plugins"].as_array().expect("an array").clone();
            (all.len() == shown).then_some(all)
        });
        answering.store(false, Ordering::Relaxed);
        let (attempts, slowest) = neighbour.join().expect("every attempt of the neighbour succeeds");
        let count = |state: &str| all.iter().filter(|plugin| plugin["state"] == state).count();
        assert_eq!((count("active"), count("conflict")), (active, conflicts), "{all:#?}");
        assert_eq!(count("refused"), shown - active - conflicts);
        // The scan was at work all the time, so the neighbour's attempts ran beside it.
        assert!(attempts > 0 && slowest < SOON, "{attempts} attempts, status in {slowest:?}");
    });
    // Whatever a file is called, it is one line and colours no terminal.
    let table = home.run(&["plugin", "list"]).ok().stdout;
    assert!(!table.contains('\x1b'), "{table}");
    // And all of it can be tidied up.
    for entry in fs::read_dir(home.path().join("plugins")).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }
            .expect("it can be removed");
    }
    wait_until(SOON, "the folder is empty", || {
        home.json(&["status"])["plugins"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn a_pipe_that_takes_a_plugins_place_never_blocks_the_scan() {
    let home = TestHome::new();
    let _daemon = home.serve();
    let versions = two_versions();
    let pipe = in_folder(&home, ".pipe");
    // Between the look at a file's kind and the reading it may become another.
    for round in 0..100 {
        rename_over(&home, "p.wasm", &versions[round % 2]);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a pipe");
        std::thread::sleep(Duration::from_micros(rand_below(25_000)));
        fs::rename(&pipe, in_folder(&home, "p.wasm")).expect("a rename");
    }
    rename_over(&home, "p.wasm", &versions[0]);
    wait_for_digest(&home, "p.wasm", &digest_of(&versions[0]));
}

fn rand_below(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    u64::from_le_bytes(bytes) % bound
}

#[test]
fn forty_slow_copies_at_once_all_become_active_when_they_are_whole() {
    let (home, good) = (TestHome::new(), guest("well_behaved"));
    let _daemon = home.serve();
    let plugins: Vec<(String, Vec<u8>)> = (0..40)
        .map(|number| {
            let name = format!("fleet-{number:06}");
            let bytes = patched(&good, "well-behaved", &name);
            (name, bytes)
        })
        .collect();
    std::thread::scope(|scope| {
        for (name, bytes) in &plugins {
            let path = in_folder(&home, &format!("{name}.wasm"));
            scope.spawn(move || {
                let mut file = fs::File::create(path).expect("a file");
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let length = rest.len().min(1 + usize::try_from(rand_below(16_000)).expect("small"));
                    file.write_all(&rest[..length]).expect("a chunk");
                    rest = &rest[length..];
                    std::thread::sleep(Duration::from_micros(rand_below(60_000)));
                }
            });
        }
    });
    let active = wait_until(LONG, "all are active", || {
        let all = home.json(&["status"])["plugins"].as_array().expect("an array").clone();
        let active: BTreeMap<String, String> = all
            .iter()
            .filter(|plugin| plugin["state"] == "active")
            .map(|plugin| (text(plugin, "service").to_owned(), text(plugin, "digest").to_owned()))
            .collect();
        (active.len() == plugins.len()).then_some(active)
    });
    for (name, bytes) in &plugins {
        assert_eq!(active[name], digest_of(bytes), "{name} is what was copied");
    }
}

#[test]
fn a_link_counts_as_what_it_points_to_however_it_is_turned() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    let versions = two_versions();
    let digests = [digest_of(&versions[0]), digest_of(&versions[1])];
    for (name, bytes) in ["old.wasm", "new.wasm"].iter().zip(&versions) {
        fs::write(home.outside().join(name), bytes).expect("a file");
    }
    let turn = |target: &Path| {
        let next = in_folder(&home, ".next");
        symlink(target, &next).and_then(|()| fs::rename(&next, in_folder(&home, "p.wasm"))).expect("a link");
    };
    let outside = |name: &str| home.outside().join(name);
    turn(&outside("old.wasm"));
    wait_for_digest(&home, "p.wasm", &digests[0]);
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    turn(&outside("new.wasm"));
    wait_for_digest(&home, "p.wasm", &digests[1]);
    // A chain is followed to its end.
    symlink(outside("old.wasm"), outside("hop")).expect("a link");
    turn(&outside("hop"));
    wait_for_digest(&home, "p.wasm", &digests[0]);
    // To what is no file it is as good as deleted, and comes back.
    let gone = |target: &Path| {
        turn(target);
        wait_until(SOON, "the plugin is gone", || home.plugin("p.wasm").is_none().then_some(()));
        turn(&outside("new.wasm"));
        wait_for_digest(&home, "p.wasm", &digests[1]);
        assert_eq!(answered_by(&home, "ann"), digests[1]);
    };
    gone(Path::new("/nowhere/at-all.wasm"));
    gone(home.outside());
    gone(Path::new("p.wasm"));
    gone(Path::new("/dev/zero"));
    // What the kernel makes up on reading is a file, and no plugin.
    for target in ["/proc/self/maps", "/proc/self/mem", "/proc/self/exe"] {
        turn(Path::new(target));
        let refused = home.wait_for_plugin("p.wasm", "refused");
        let why = text(&refused, "reason");
        assert!(why.contains("goes on with its approved version 0.2.0"), "{target}: {why}");
        assert_eq!(answered_by(&home, "ann"), digests[1], "{target}");
        turn(&outside("new.wasm"));
        wait_for_digest(&home, "p.wasm", &digests[1]);
    }
    for round in 0..200 {
        turn(&outside(["old.wasm", "new.wasm", "hop"][round % 3]));
        std::thread::sleep(Duration::from_micros(rand_below(5_000)));
    }
    turn(&outside("old.wasm"));
    wait_for_digest(&home, "p.wasm", &digests[0]);
    assert_eq!(answered_by(&home, "ann"), digests[0]);
    assert!(!daemon.log().contains("panicked"));
}

#[test]
fn the_plugin_folder_may_be_a_link_that_is_turned_or_a_folder_that_is_made_anew() {
    let home = TestHome::new();
    fs::write(home.path().join("config.toml"), "rescan_seconds = 1\n").expect("the configuration");
    let versions = two_versions();
    let folder = home.path().join("plugins");
    fs::remove_dir(&folder).expect("an empty folder");
    for (name, bytes) in ["one", "two"].iter().zip(&versions) {
        fs::create_dir(home.outside().join(name)).expect("a folder");
        fs::write(home.outside().join(name).join("p.wasm"), bytes).expect("a file");
    }
    symlink(home.outside().join("one"), &folder).expect("a link");
    let _daemon = home.serve();
    wait_for_digest(&home, "p.wasm", &digest_of(&versions[0]));
    let next = home.path().join("next");
    symlink(home.outside().join("two"), &next).and_then(|()| fs::rename(&next, &folder)).expect("a link");
    wait_for_digest(&home, "p.wasm", &digest_of(&versions[1]));
    // Away for a moment, as when a disk is mounted: what serves goes on.
    fs::remove_file(&folder).expect("a link");
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(home.plugin("p.wasm").is_some_and(|plugin| plugin["state"] == "active"));
    fs::create_dir(&folder).and_then(|()| fs::write(folder.join("p.wasm"), &versions[0])).expect("a folder");
    wait_for_digest(&home, "p.wasm", &digest_of(&versions[0]));
}

#[test]
fn files_deleted_while_they_are_compiled_and_folders_deleted_while_they_are_used_do_no_harm() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let daemon = home.serve();
    let good = guest("well_behaved");
    home.drop_plugin_as(&good, "p.wasm");
    home.wait_for_plugin("p.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    for number in 0..12 {
        let name = format!("fleet-{number:06}");
        let path = in_folder(&home, &format!("{name}.wasm"));
        let bytes = patched(&good, "well-behaved", &name);
        rename_over(&home, &format!("{name}.wasm"), &bytes);
        std::thread::sleep(Duration::from_micros(rand_below(200_000)));
        if number % 3 == 0 {
            for folder in ["store", "cache"] {
                // It may be written to meanwhile, and then isn't empty.
                let _ = fs::remove_dir_all(home.path().join(folder));
            }
            // What was hit comes by itself, or with the next look at the folder.
            wait_until(LONG, "it is active all the same", || {
                home.json(&["plugin", "list"]);
                home.plugin(&format!("{name}.wasm")).filter(|plugin| plugin["state"] == "active")
            });
        }
        fs::remove_file(path).expect("the file");
        answered_by(&home, "ann");
    }
    wait_until(LONG, "only the first is left", || {
        let plugins = home.json(&["status"])["plugins"].as_array().expect("an array").clone();
        (plugins.len() == 1).then_some(())
    });
    let [old, new] = two_versions();
    rename_over(&home, "p.wasm", &new);
    wait_for_digest(&home, "p.wasm", &digest_of(&new));
    // A worker that dies is started again from code whose file is no more.
    fs::remove_dir_all(home.path().join("store")).expect("the store");
    fs::remove_dir_all(home.path().join("cache")).expect("the cache");
    assert_eq!(answered_by(&home, "ann"), digest_of(&new));
    kill_9(home.worker_pid("well-behaved"));
    wait_until(SOON, "it is served again", || {
        let report = home.run(&["credential", "validate", "ann", "--json"]);
        (report.code() == 0).then_some(())
    });
    rename_over(&home, "p.wasm", &old);
    wait_for_digest(&home, "p.wasm", &digest_of(&old));
    assert_eq!(answered_by(&home, "ann"), digest_of(&old));
    assert!(!daemon.log().contains("panicked"));
}

#[test]
fn the_same_bytes_under_two_names_are_one_plugin_that_outlives_either_name() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    let [old, new] = two_versions();
    fs::write(in_folder(&home, "a.wasm"), &old).expect("a file");
    home.wait_for_plugin("a.wasm", "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    let pid = home.worker_pid("well-behaved");
    fs::hard_link(in_folder(&home, "a.wasm"), in_folder(&home, "b.wasm")).expect("a hard link");
    home.wait_for_plugin("b.wasm", "conflict");
    fs::write(in_folder(&home, "c.wasm"), &old).expect("a copy");
    home.wait_for_plugin("c.wasm", "conflict");
    fs::remove_file(in_folder(&home, "a.wasm")).expect("a file");
    home.wait_for_plugin("b.wasm", "active");
    // In place: the copy still brings what was approved.
    fs::write(in_folder(&home, "b.wasm"), "garbage").expect("a file");
    home.wait_for_plugin("c.wasm", "active");
    assert!(!text(&home.wait_for_plugin("b.wasm", "refused"), "reason").contains("goes on"));
    assert_eq!(answered_by(&home, "ann"), digest_of(&old));
    assert_eq!(home.worker_pid("well-behaved"), pid, "nothing was replaced, so no worker was");
    // The last name counts as the plugin's own now.
    rename_over(&home, "c.wasm", b"garbage");
    assert!(text(&home.wait_for_plugin("c.wasm", "refused"), "reason").contains("goes on"));
    rename_over(&home, "c.wasm", &new);
    wait_for_digest(&home, "c.wasm", &digest_of(&new));
    assert_eq!(answered_by(&home, "ann"), digest_of(&new));
}

#[test]
fn a_damaged_file_of_the_store_is_never_run_and_comes_back() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let [old, new] = two_versions();
    home.drop_plugin_as(&guest("well_behaved"), "p.wasm");
    assert_eq!(listed_as(&home, "p.wasm")["state"], "active");
    home.add_session("ann", "well-behaved", &service, &[]);
    let stored = home.path().join("store").join(format!("{}.wasm", digest_of(&old)));
    // Another plugin under the digest of this one, and no native code that would hide it.
    fs::write(&stored, &new).expect("the store");
    fs::remove_dir_all(home.path().join("cache")).expect("the cache");
    wait_until(SOON, "the genuine one is back", || {
        home.json(&["plugin", "list"]);
        (fs::read(&stored).ok()? == old).then_some(())
    });
    assert_eq!(answered_by(&home, "ann"), digest_of(&old));
}
