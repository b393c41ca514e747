//! A home that isn't there, isn't whole, isn't ours or can't be written: every command says
//! what is wrong and what to do, and leaves what it found as it was.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::*;

/// One command of each way to use a home: to read it, to open it, to serve it.
const COMMANDS: [&[&str]; 4] =
    [&["credential", "list"], &["plugin", "list"], &["credential", "validate", "ann"], &["serve"]];

/// Runs each command, which must fail alike.
#[track_caller]
fn all_refuse(home: &TestHome, commands: &[&[&str]], code: i32, reasons: &[&str]) {
    for arguments in commands {
        let refused = home.run(arguments);
        assert_eq!(refused.code(), code, "{arguments:?}: {refused:?}");
        for reason in reasons {
            assert!(refused.stderr.contains(reason), "{arguments:?}: {}\nlacks {reason}", refused.stderr);
        }
    }
}

/// A home with one credential that lives.
fn home_in_use() -> (TestHome, Service) {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &[]);
    home.json(&["credential", "validate", "ann"]);
    (home, service)
}

fn database(home: &TestHome) -> PathBuf {
    home.path().join("keywheel.db")
}

/// Runs SQL past Keywheel, as a newer binary or a person with a shell would.
#[expect(clippy::disallowed_methods, reason = "the test plays another program")]
fn sql(path: &Path, text: &str) {
    let db = rusqlite::Connection::open(path).expect("a database");
    db.execute_batch(text).expect("it runs");
}

#[expect(clippy::disallowed_methods, reason = "the test plays another program")]
fn version(path: &Path) -> u32 {
    let db = rusqlite::Connection::open(path).expect("a database");
    db.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a header")
}

#[test]
fn without_a_home_every_command_says_how_to_make_one() {
    let home = TestHome::without_init();
    all_refuse(&home, &COMMANDS, 78, &["no home: ", "doesn't exist; hint: `keywheel init` makes one"]);
    all_refuse(&home, &[&["status"], &["reports", "list"]], 78, &["hint: `keywheel init` makes one"]);
    assert!(!home.path().exists(), "no command but init makes a home");
}

#[test]
fn a_second_init_changes_nothing() {
    let home = TestHome::new();
    let files =
        || ["master.key", "config.toml"].map(|name| fs::read(home.path().join(name)).expect("a file"));
    let before = files();
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| home.serve());
        all_refuse(&home, &[&["init"]], 65, &["is a home already; hint: nothing was changed"]);
        assert_eq!(files(), before);
    }
    for name in ["", "master.key", "keywheel.db", "config.toml", "store", "cache", "plugins"] {
        let mode = fs::metadata(home.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is open to others: {mode:o}");
    }
}

#[test]
fn a_lost_database_is_never_replaced_by_an_empty_one() {
    let home = TestHome::new();
    for file in ["keywheel.db", "keywheel.db-wal", "keywheel.db-shm"] {
        let _ = std::fs::remove_file(home.path().join(file));
    }
    all_refuse(
        &home,
        &[&["serve"], &["status"], &["plugin", "list"]],
        78,
        &["no database at ", "put the backup"],
    );
    assert!(!home.path().join("keywheel.db").exists());
}

#[test]
fn an_init_that_was_cut_off_can_be_run_again() {
    let home = TestHome::new();
    fs::remove_file(home.path().join("master.key")).expect("the key comes last");
    home.run(&["init"]).ok();
    assert_eq!(home.json(&["credential", "list"]), json!([]));
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_with_its_line() {
    let home = TestHome::new();
    let opening = &COMMANDS[1..];
    for (text, reasons) in [
        ("isolaton = \"strict\"", &["config.toml", "unknown field `isolaton`", "isolation"][..]),
        ("isolation = \"none\"", &["unknown variant `none`", "`strict`", "`best-effort`"]),
        ("rescan_seconds = 0", &["seconds must be at least 1"]),
        ("rescan_seconds = \"soon\"", &["invalid type", "line 1"]),
        ("rescan_seconds", &["line 1"]),
        ("extra_ca_file = \"/nowhere/ca.pem\"", &["extra_ca_file can't be read"]),
    ] {
        fs::write(home.path().join("config.toml"), text).expect("the configuration");
        let code = if text.starts_with("extra_ca") { 1 } else { 78 };
        all_refuse(&home, opening, code, reasons);
        // Reading needs no configuration.
        assert_eq!(home.json(&["credential", "list"]), json!([]));
    }
    fs::remove_file(home.path().join("config.toml")).expect("the configuration");
    assert_eq!(home.json(&["plugin", "list"]), json!([]), "without a file every default holds");
}

#[test]
fn a_database_of_a_newer_binary_is_refused_and_left_as_it_is() {
    let (home, _service) = home_in_use();
    let present = version(&database(&home));
    sql(&database(&home), "PRAGMA user_version = 999;");
    let before = fs::read(database(&home)).expect("the database");
    let reasons = ["has schema 999, this binary knows up to", "hint: run the newer keywheel that wrote it"];
    all_refuse(&home, &COMMANDS, 78, &reasons);
    assert_eq!(fs::read(database(&home)).expect("the database"), before);
    sql(&database(&home), &format!("PRAGMA user_version = {present};"));
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.reports("ann").len(), 2, "nothing was lost");
}

#[test]
fn another_programs_file_in_the_databases_place_is_refused_and_left_as_it_is() {
    let home = TestHome::new();
    let not_sqlite = "not a database, but long enough to have a header ".repeat(100);
    for foreign in [None, Some(not_sqlite)] {
        fs::remove_file(database(&home)).expect("the database");
        match &foreign {
            None => sql(&database(&home), "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1);"),
            Some(text) => fs::write(database(&home), text).expect("a file"),
        }
        let before = fs::read(database(&home)).expect("their file");
        all_refuse(&home, &COMMANDS, 78, &["is not a Keywheel database", "it was left as it is"]);
        assert_eq!(fs::read(database(&home)).expect("their file"), before);
    }
}

#[test]
fn a_master_key_that_is_wrong_short_open_to_others_or_gone_is_refused_before_anything_changes() {
    let (home, _service) = home_in_use();
    let key = home.path().join("master.key");
    let right = fs::read(&key).expect("the key");
    let database_before = fs::read(database(&home)).expect("the database");
    let put = |bytes: &[u8], mode: u32| {
        fs::write(&key, bytes).expect("the key");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("the key");
    };
    let opening = &COMMANDS[1..];

    let mut wrong = right.clone();
    wrong[0] ^= 1;
    put(&wrong, 0o600);
    all_refuse(
        &home,
        opening,
        77,
        &["not the one the database was sealed with", "put the backup of master.key back"],
    );
    all_refuse(&home, &[&["credential", "export", "ann"]], 77, &["does not open", "another master key"]);
    put(&right[..31], 0o600);
    all_refuse(&home, opening, 77, &["master key of 31 bytes, exactly 32 are needed"]);
    for mode in [0o644, 0o640, 0o604] {
        put(&right, mode);
        let found = format!("has mode {mode:04o}, at most 0600 is allowed; hint: chmod 600 ");
        all_refuse(&home, opening, 77, &[&found]);
    }
    fs::remove_file(&key).expect("the key");
    all_refuse(&home, &COMMANDS, 78, &["no master key at ", "put the backup of it back"]);
    // A new key would not open what is there, and would stand in the backup's way.
    all_refuse(&home, &[&["init"]], 65, &["1 credential", "put the backup of it back"]);
    assert!(!key.exists());

    put(&right, 0o600);
    assert_eq!(fs::read(database(&home)).expect("the database"), database_before);
    home.json(&["credential", "validate", "ann"]);
}

#[test]
fn a_second_daemon_on_the_same_home_is_refused_and_the_first_goes_on() {
    let (home, _service) = home_in_use();
    let first = home.serve();
    let second = home.run(&["serve"]);
    assert_eq!(second.code(), 75, "{second:?}");
    assert!(second.stderr.contains(&format!("is in use by process {}", first.pid())), "{second:?}");
    home.json(&["credential", "validate", "ann"]);
    assert!(first.stop().success());
}

#[test]
fn what_a_killed_daemon_leaves_behind_is_in_nobodys_way() {
    let (home, _service) = home_in_use();
    home.serve().kill_9();
    assert!(home.path().join("keywheel.sock").exists(), "it had no time to tidy up");
    assert_eq!(home.json(&["status"])["daemon"], false);
    home.json(&["credential", "validate", "ann"]);
    assert_eq!(home.json(&["plugin", "list"])[0]["state"], "active");
    let daemon = home.serve();
    home.json(&["credential", "validate", "ann"]);
    assert!(daemon.stop().success());
    assert!(!home.path().join("keywheel.sock").exists());
    assert_eq!(home.reports("ann").len(), 3);
}

#[test]
fn a_full_disk_stops_rotations_and_not_reads_and_loses_nothing() {
    with_own_mounts(|| {
        let (home, service) = (TestHome::without_init(), Service::start(OldSession::Dies));
        fs::create_dir(home.path()).expect("a folder");
        let _mount = Mount::tmpfs(&home.path(), "size=16m,mode=700");
        home.run(&["init"]).ok();
        home.drop_plugin(&guest("well_behaved"));
        let first = home.add_session("ann", "well-behaved", &service, &[]);
        home.json(&["credential", "validate", "ann"]);

        for with_daemon in [true, false] {
            let daemon = with_daemon.then(|| home.serve());
            let filler = fill(&home.path());
            let rotations = service.count("/rotate");
            let alive = service.issued().into_iter().find(|session| service.is_alive(session));
            let refused = home.run(&["credential", "rotate", "ann"]);
            assert_eq!(refused.code(), 75, "{refused:?}");
            assert!(refused.stderr.contains("disk"), "{refused:?}");
            assert_eq!(service.count("/rotate"), rotations, "no request leaves without its intent on disk");
            assert!(service.is_alive(&alive.expect("a session")));
            assert_eq!(home.json(&["credential", "list"])[0]["monitor"]["lastStatus"], "success");
            assert!(!home.reports("ann").is_empty());

            fs::remove_file(filler).expect("the filler");
            let report = home.json(&["credential", "rotate", "ann"]);
            assert_eq!((&report["status"], &report["meta"]["rotated"]), (&"success".into(), &true.into()));
            if let Some(daemon) = daemon {
                assert!(daemon.stop().success());
            }
        }
        let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
        let kept = exported["session"]["value"].as_str().expect("a value");
        assert!(service.is_alive(kept) && !service.is_alive(&first));
        let numbers: Vec<_> =
            home.reports("ann").iter().map(|report| report["attemptNumber"].as_u64()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "each attempt has one report: {numbers:?}");
    });
}

#[test]
fn a_plugin_that_came_while_the_disk_was_full_becomes_active_when_it_no_longer_is() {
    with_own_mounts(|| {
        let home = TestHome::without_init();
        fs::create_dir(home.path()).expect("a folder");
        let _mount = Mount::tmpfs(&home.path(), "size=16m,mode=700");
        home.run(&["init"]).ok();
        let _daemon = home.serve();
        // The plugin fits, and nothing made from it.
        let plugin = guest("well_behaved");
        let size = usize::try_from(fs::metadata(&plugin).expect("built").len()).expect("small");
        fs::write(home.path().join("reserve"), vec![0; size + (16 << 10)]).expect("it fits");
        let filler = fill(&home.path());
        fs::remove_file(home.path().join("reserve")).expect("the reserve");
        home.drop_plugin(&plugin);
        let refused = home.wait_for_plugin("well_behaved.wasm", "refused");
        assert!(refused["reason"].as_str().is_some_and(|why| why.contains("No space left")), "{refused}");
        fs::remove_file(filler).expect("the filler");
        // `plugin list` looks again at once; the timer would do so later.
        assert_eq!(home.json(&["plugin", "list"])[0]["state"], "active");
    });
}

#[test]
fn a_read_only_home_can_be_read_and_nothing_else() {
    with_own_mounts(|| {
        let (home, service) = home_in_use();
        {
            let _mount = Mount::read_only(&home.path());
            for arguments in
                [&["credential", "validate", "ann"][..], &["credential", "remove", "ann"], &["serve"]]
            {
                let refused = home.run(arguments);
                assert!([75, 77, 78].contains(&refused.code()), "{arguments:?}: {refused:?}");
                assert!(refused.stderr.contains("Read-only file system"), "{arguments:?}: {refused:?}");
            }
            assert_eq!(home.json(&["credential", "list"])[0]["credentialId"], "ann");
            assert_eq!(home.reports("ann").len(), 1);
        }
        assert_eq!(service.count("/check"), 1);
        home.json(&["credential", "validate", "ann"]);
    });
}

/// Runs a test on a thread with a mount table of its own, which the commands it starts share.
/// Only root may have one; elsewhere it says so and tests nothing.
pub fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: it changes this thread's mount namespace and touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "no mount table of its own: {error}");
            eprintln!(
                "not tested: this needs a mount table of its own, and the system refuses one ({error})"
            );
            return;
        }
        // Otherwise a mount would spread to everyone else.
        mount(c"none", Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE, "");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount(from: &std::ffi::CStr, to: &Path, kind: &std::ffi::CStr, flags: libc::c_ulong, options: &str) {
    let text = |text: &str| std::ffi::CString::new(text).expect("no zero byte");
    let (target, options) = (text(to.to_str().expect("UTF-8")), text(options));
    // SAFETY: every pointer is to a string that ends in zero and outlives the call.
    let result =
        unsafe { libc::mount(from.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    assert_eq!(result, 0, "{} can't be mounted: {}", to.display(), std::io::Error::last_os_error());
}

/// Something mounted, until the value goes.
pub struct Mount(std::ffi::CString);

impl Mount {
    fn at(path: &Path) -> Self {
        Self(std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no zero byte"))
    }

    pub fn tmpfs(path: &Path, options: &str) -> Self {
        mount(c"tmpfs", path, c"tmpfs", 0, options);
        Self::at(path)
    }

    /// The folder itself, but nothing in it can be written.
    fn read_only(path: &Path) -> Self {
        let mounted = Self::at(path);
        mount(&mounted.0, path, c"", libc::MS_BIND, "");
        mount(c"none", path, c"", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "");
        mounted
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: the string ends in zero. A failure leaves it to the namespace's end.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Fills a file system to its last byte, and says with which file.
pub fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path).expect("a file");
    let block = [1; 4 << 10];
    loop {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return path,
            Err(error) => panic!("{error}"),
        }
    }
}
