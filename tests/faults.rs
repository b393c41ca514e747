//! What the machine under a daemon can do to it: disks that fill, fail, stall and turn
//! read-only, locks, clocks, missing descriptors, a stopped process. Each test strikes a real
//! daemon in the midst of a rotation and looks from outside; the expected of each is a row in
//! docs/operating.md.

pub mod shim;

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::*;
use shim::*;

/// The rows of the table "Faults" in docs/operating.md, and the tests that show them.
const ROWS: &[(&str, &[&str])] = &[
    (
        "the disk is full",
        &[
            "a_full_disk_loses_nothing_issued_starts_nothing_and_is_outlasted",
            "a_daemon_that_dies_on_a_full_disk_finds_what_was_issued_in_the_room_kept_for_it",
        ],
    ),
    (
        "the file system turns read-only under the daemon",
        &["a_file_system_that_turns_read_only_is_outlasted"],
    ),
    (
        "the home is mounted read-only",
        &["a_home_that_is_mounted_read_only_is_refused_in_words_and_used_again_once_it_is_not"],
    ),
    (
        "another program holds the database's write lock",
        &["a_foreign_writer_that_holds_the_lock_is_outlasted"],
    ),
    (
        "another program reads the database for long",
        &["a_foreign_reader_lets_the_log_grow_and_breaks_nothing"],
    ),
    (
        "the disk reports errors",
        &[
            "errors_of_the_disk_in_the_midst_of_receipt_and_end_cost_nothing",
            "what_is_acknowledged_after_a_failed_sync_survives_a_power_cut",
        ],
    ),
    (
        "the power goes",
        &[
            "a_power_cut_leaves_what_was_acknowledged_and_nothing_that_no_sync_covered",
            "a_daemon_that_dies_among_the_writes_of_receipt_and_end_loses_nothing",
        ],
    ),
    (
        "the store can't be reached for longer than an attempt lasts, or until the daemon dies",
        &[
            "a_daemon_that_dies_while_the_database_takes_no_secret_finds_it_at_home_and_calls_nobody",
            "a_database_that_is_away_for_longer_than_an_attempt_lasts_costs_nothing_issued",
            "what_was_issued_is_at_home_long_before_a_first_try_to_store_it_fails",
            "a_late_secret_that_was_damaged_is_set_aside_and_told_once",
        ],
    ),
    ("the disk is slow", &["slow_syncs_delay_and_break_nothing"]),
    (
        "no descriptors are left",
        &[
            "a_daemon_without_a_free_descriptor_says_so_and_recovers",
            "a_plugin_that_came_while_descriptors_were_short_is_looked_at_again_by_itself",
            "a_worker_that_lacks_descriptors_at_its_start_does_not_start_with_a_wall_less",
        ],
    ),
    (
        "the clock is set an hour ahead",
        &[
            "a_clock_that_jumps_an_hour_hands_no_attempt_in_flight_over_and_stops_no_schedule",
            "a_clock_set_ahead_makes_everything_due_once_and_set_back_makes_nothing_due",
        ],
    ),
    (
        "the clock is set an hour back",
        &[
            "a_clock_that_jumps_an_hour_hands_no_attempt_in_flight_over_and_stops_no_schedule",
            "a_clock_set_ahead_makes_everything_due_once_and_set_back_makes_nothing_due",
        ],
    ),
    (
        "the daemon is stopped, or the machine sleeps",
        &[
            "a_daemon_stopped_for_longer_than_a_lease_ends_its_own_attempts_once",
            "an_answer_that_came_while_the_daemon_was_stopped_past_every_deadline_is_kept",
        ],
    ),
];

#[test]
fn every_fault_has_its_row_and_its_test() {
    let page = std::fs::read_to_string(source("docs/operating.md")).expect("the page");
    let section = page.split("\n## ").find(|section| section.starts_with("Faults\n")).expect("the section");
    let rows: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|cell| *cell != "fault" && !cell.starts_with("---"))
        .collect();
    assert_eq!(rows, ROWS.iter().map(|(row, _)| *row).collect::<Vec<_>>());
    let tests = std::fs::read_to_string(source("tests/faults.rs")).expect("this file");
    for name in ROWS.iter().flat_map(|(_, names)| *names) {
        assert!(tests.contains(&format!("#[test]\nfn {name}() {{")), "there is no test {name}");
    }
}

/// Each attempt has one report, and none is missing.
#[track_caller]
fn assert_one_report_each(reports: &[Value]) {
    let numbers: Vec<_> = reports.iter().map(|report| report["attemptNumber"].as_u64()).collect();
    let expected: Vec<_> = (1..=reports.len() as u64).map(Some).collect();
    assert_eq!(numbers, expected);
}

/// The session in force, as an export has it.
#[track_caller]
fn session_in_force(home: &TestHome, id: &str, service: &Service) -> String {
    let header =
        home.run(&["credential", "export", id, "--format", "header", "--url", &service.url]).ok().stdout;
    header.split("session=").nth(1).expect("a session cookie").trim_end().to_owned()
}

/// A credential of a service whose old session dies at each rotation: losing what was issued,
/// or asking twice, can't be made good.
fn burning(home: &TestHome, more: &[&str]) -> Service {
    let service = Service::start(OldSession::Dies);
    home.drop_plugin(&guest("well_behaved"));
    home.add_session(
        "ann",
        "well-behaved",
        &service,
        &[&["--set", "commit_class=burn-on-issue"], more].concat(),
    );
    service
}

/// The shim's own promise, on which the tests of power cuts stand.
#[test]
fn a_sync_that_succeeds_after_one_that_failed_covers_only_what_was_written_since() {
    let home = TestHome::without_init();
    std::fs::create_dir(home.path()).expect("a folder");
    let faults = Faults::of(&home);
    faults.keep_images();
    faults.fail_syncs(libc::EIO, 1, DB);
    let script = "import os, sys\n\
        file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n\
        os.pwrite(file, b'a' * 4096, 0)\n\
        try: os.fsync(file)\n\
        except OSError: print('failed')\n\
        os.fsync(file)\n\
        os.pwrite(file, b'b' * 4096, 4096)\n\
        os.fsync(file)\n\
        os.pwrite(file, b'c' * 4096, 8192)\n";
    let file = home.path().join("keywheel.db");
    let run = command("python3")
        .args(["-c", script])
        .arg(&file)
        .envs(faults.environment())
        .output()
        .expect("python3, which the peers need too");
    assert_eq!(String::from_utf8_lossy(&run.stdout), "failed\n", "{run:?}");
    assert_eq!(std::fs::read(&file).expect("the file").len(), 3 * 4096);
    let image = std::fs::read(home.path().join("keywheel.db.synced")).expect("the image");
    assert_eq!(image, [[0; 4096], [b'b'; 4096]].concat());
}

#[test]
fn a_power_cut_leaves_what_was_acknowledged_and_nothing_that_no_sync_covered() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.keep_images();
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    let before = home.reports("ann");
    // Written, and in the file for everybody who looks, but never on the disk.
    faults.fail_syncs(libc::EIO, FOREVER, DB | WAL);
    let refused = home.run(&["credential", "rotate", "ann"]);
    assert_eq!(refused.code(), 75, "{refused:?}");
    daemon.kill_9();
    let of = |name: &str| std::fs::read(home.path().join(name)).expect("a file of the home");
    assert_ne!(of("keywheel.db-wal"), of("keywheel.db-wal.synced"));
    faults.cut_power();
    let _daemon = home.serve_in(&faults.environment());
    assert_eq!(home.reports("ann"), before);
    assert_eq!(session_in_force(&home, "ann", &service), service.issued()[1]);
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_one_report_each(&home.wait_for_reports("ann", 3));
    assert_eq!(service.count("/rotate"), 2);
}

/// Rotates by command; whatever `strike` does comes while the service holds its answer back, so
/// the receipt and the end of the attempt are still to be written.
fn rotate_struck(home: &TestHome, service: &Service, strike: impl FnOnce()) -> Output {
    service.hold("/rotate");
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| home.run(&["credential", "rotate", "ann"]));
        service.wait_held("/rotate");
        strike();
        service.release("/rotate");
        rotating.join().expect("the command ends")
    })
}

/// The receipt's sync, the end's, and with the third none of this attempt's own.
const SYNCS_OF_A_ROTATION: u64 = 2;

#[test]
fn what_is_acknowledged_after_a_failed_sync_survives_a_power_cut() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.keep_images();
    let mut daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    for skip in 0..SYNCS_OF_A_ROTATION {
        // One failure: the cache then looks clean, and the next sync lies about what it covers.
        let failed = faults.failed_syncs();
        rotate_struck(&home, &service, || faults.fail_syncs_after(skip, libc::EIO, 1, WAL)).ok();
        assert_eq!(faults.failed_syncs(), failed + 1);
        let (before, newest) = (home.reports("ann"), service.issued().pop());
        assert!(daemon.log().contains("a database transaction failed, trying again"));
        daemon.kill_9();
        faults.cut_power();
        daemon = home.serve_in(&faults.environment());
        assert_eq!(home.reports("ann"), before);
        assert_eq!(Some(session_in_force(&home, "ann", &service)), newest);
    }
    assert_eq!(service.count("/rotate"), u32::try_from(SYNCS_OF_A_ROTATION).expect("a few"));
}

#[test]
fn a_daemon_that_dies_among_the_writes_of_receipt_and_end_loses_nothing() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.keep_images();
    let mut daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    rotate_struck(&home, &service, || faults.kill_at(0, Moment::Before)).ok();
    let all = faults.done();
    assert!(all > 4 && faults.writes() > all - SYNCS_OF_A_ROTATION, "{all} writes and syncs");
    let mut count = 2;
    for (number, moment) in
        [(2, Moment::Before), (all / 2, Moment::After), (all, Moment::Before), (all, Moment::After)]
    {
        let asked = service.count("/rotate");
        let cut_off = rotate_struck(&home, &service, || faults.kill_at(number, moment));
        assert_eq!(daemon.ended().signal(), Some(9), "{cut_off:?}");
        faults.cut_power();
        daemon = home.serve_in(&faults.environment());
        count += 1;
        let reports = home.wait_for_reports("ann", count);
        assert_one_report_each(&reports);
        assert_eq!(service.count("/rotate"), asked + 1);
        let last = reports.last().expect("a report");
        if last["status"] == "success" {
            assert_eq!(Some(session_in_force(&home, "ann", &service)), service.issued().pop());
        } else {
            // Cut before the receipt's sync nothing was stored, and only a person can go on.
            assert_eq!((number, &last["meta"]["verdict"]), (2, &Value::from("needs-human")), "{last}");
            let session = format!("session={}", service.issue());
            home.run_with_input(&["credential", "import", "ann", "-"], &session).ok();
            count += 1;
            home.wait_for_reports("ann", count);
        }
    }
}

#[test]
fn slow_syncs_delay_and_break_nothing() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.delay_syncs(Duration::from_millis(200));
    let environment = [&faults.environment()[..], &[("KEYWHEEL_LEASE_MS", "1500")]].concat();
    let daemon = home.serve_in(&environment);
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let _ticking = add_ticking(&home);
    let rotated = rotate_struck(&home, &service, || {
        // Several leases long, each renewed by a slow commit.
        wait_for_rounds(&home, 4);
        assert_eq!(home.json(&["status"])["daemon"], true);
    });
    rotated.ok();
    assert_rotated_once(&home, &service);
    assert_eq!(service.count("/rotate"), 1);
    assert_one_report_each(&home.reports("tick"));
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    assert!(faults.syncs() > 20, "{} syncs", faults.syncs());
}

/// A second credential, at a service of its own, that shows by its reports that the scheduler
/// goes round.
fn add_ticking(home: &TestHome) -> Service {
    let service = Service::start(OldSession::Stays);
    home.add_session("tick", "well-behaved", &service, &["--every", "1s"]);
    home.wait_for_reports("tick", 1);
    service
}

#[track_caller]
fn wait_for_rounds(home: &TestHome, count: usize) {
    let before = home.reports("tick").len();
    home.wait_for_reports("tick", before + count);
}

const HOUR: i64 = 3_600;

/// The rotation in flight was ended by those who began it.
#[track_caller]
fn assert_rotated_once(home: &TestHome, service: &Service) {
    let reports = home.reports("ann");
    assert_one_report_each(&reports);
    let last = reports.last().expect("a report");
    assert_eq!(last["meta"]["path"], serde_json::json!(["rotate", "validate-pending", "promoted"]), "{last}");
    assert_eq!(Some(session_in_force(home, "ann", service)), service.issued().pop());
}

#[test]
fn a_clock_that_jumps_an_hour_hands_no_attempt_in_flight_over_and_stops_no_schedule() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let _ticking = add_ticking(&home);
    for seconds in [HOUR, 0, -HOUR] {
        let rotated = rotate_struck(&home, &service, || {
            faults.set_clock(seconds);
            wait_for_rounds(&home, 2);
        });
        rotated.ok();
        assert_rotated_once(&home, &service);
    }
    assert_eq!(service.count("/rotate"), 3);
    let log = daemon.log();
    assert!(log.contains("the clock was set ahead"), "{log}");
    assert!(log.contains("the clock was set back"), "{log}");
    // Nor one that was set back while no daemon ran.
    assert!(daemon.stop().success());
    faults.set_clock(-2 * HOUR);
    let _daemon = home.serve_in(&faults.environment());
    wait_for_rounds(&home, 1);
}

#[test]
fn a_clock_set_ahead_makes_everything_due_once_and_set_back_makes_nothing_due() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let _daemon = home.serve_in(&faults.environment());
    let service = Service::start(OldSession::Stays);
    home.drop_plugin(&guest("well_behaved"));
    let ids: Vec<_> = (0..8).map(|number| format!("hourly-{number}")).collect();
    for id in &ids {
        home.add_session(id, "well-behaved", &service, &["--every", "1h"]);
    }
    let _ticking = add_ticking(&home);
    let each_has = |count: usize| {
        for id in &ids {
            assert_one_report_each(&home.wait_for_reports(id, count));
            assert_eq!(home.reports(id).len(), count);
        }
    };
    each_has(1);
    faults.set_clock(2 * HOUR);
    each_has(2);
    wait_for_rounds(&home, 2);
    faults.set_clock(0);
    wait_for_rounds(&home, 2);
    each_has(2);
}

fn signal(daemon: &Daemon, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the daemon is there");
}

#[test]
fn an_answer_that_came_while_the_daemon_was_stopped_past_every_deadline_is_kept() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &["--every", "1s"]);
    home.wait_for_reports("ann", 1);
    for round in 1..=3 {
        rotate_struck(&home, &service, || {
            signal(&daemon, rustix::process::Signal::STOP);
            service.release("/rotate");
            wait_until(SOON, "the answer is on its way", || service.is_idle("/rotate").then_some(()));
            faults.lengthen_stop(Duration::from_secs(600));
            signal(&daemon, rustix::process::Signal::CONT);
        });
        // Tested by this attempt, or by the next where this one had no time left.
        wait_until(SOON, "what was issued is in force", || {
            (Some(session_in_force(&home, "ann", &service)) == service.issued().pop()).then_some(())
        });
        assert_eq!(service.count("/rotate"), round);
    }
    assert_one_report_each(&home.reports("ann"));
}

#[test]
fn a_daemon_stopped_for_longer_than_a_lease_ends_its_own_attempts_once() {
    const LEASE: Duration = Duration::from_secs(1);
    let home = TestHome::new();
    let daemon = home.serve_in(&[("KEYWHEEL_LEASE_MS", &LEASE.as_millis().to_string())]);
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let _ticking = add_ticking(&home);
    // The service answers while nobody listens, or long after everybody does again.
    for answers_meanwhile in [true, false] {
        let rotated = rotate_struck(&home, &service, || {
            signal(&daemon, rustix::process::Signal::STOP);
            let stopped = Instant::now();
            if answers_meanwhile {
                service.release("/rotate");
            }
            // The stop itself is the fault, and this its length.
            wait_until(SOON, "the lease is over", || (stopped.elapsed() > LEASE * 2).then_some(()));
            signal(&daemon, rustix::process::Signal::CONT);
            wait_for_rounds(&home, 2);
        });
        rotated.ok();
        assert_rotated_once(&home, &service);
    }
    assert_eq!(service.count("/rotate"), 2);
}

/// A small disk of the test's own under its home, in a mount namespace of its own.
struct SmallDisk {
    home: TestHome,
}

impl SmallDisk {
    /// Runs the calling test, whose name this is, once more inside namespaces of its own, and
    /// returns None when it has passed there. Inside, returns the disk.
    fn for_test(name: &str, bytes: u64) -> Option<Self> {
        const INSIDE: &str = "KEYWHEEL_TEST_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            let home = TestHome::without_init();
            std::fs::create_dir(home.path()).expect("a folder for the home");
            let disk = Self { home };
            disk.mount(0, &format!("size={bytes},mode=700"));
            disk.home.run(&["init"]).ok();
            return Some(disk);
        }
        let this = std::env::current_exe().expect("the test's own binary");
        let run = command("unshare")
            .args(["--user", "--map-root-user", "--mount", "--kill-child"])
            .arg(this)
            .args(["--exact", &format!("faults::{name}"), "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .expect("unshare, of util-linux");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&run.stdout), text(&run.stderr));
        // A name that no test has would pass for nothing.
        assert!(
            run.status.success() && stdout.contains("1 passed"),
            "{name} failed inside user and mount namespaces of its own; if it could not even start \
             there, this machine refuses them to `unshare --user --map-root-user --mount`\n{stdout}\n{stderr}"
        );
        None
    }

    fn mount(&self, flags: libc::c_ulong, options: &str) {
        use std::os::unix::ffi::OsStrExt;
        let text = |text: &[u8]| std::ffi::CString::new(text).expect("no zero byte");
        let (place, options) = (text(self.home.path().as_os_str().as_bytes()), text(options.as_bytes()));
        // SAFETY: all four are C strings that live until it returns.
        let done = unsafe {
            let kind = c"tmpfs".as_ptr();
            libc::mount(kind, place.as_ptr(), kind, flags, options.as_ptr().cast())
        };
        assert_eq!(done, 0, "a tmpfs can't be mounted: {}", std::io::Error::last_os_error());
    }

    fn remount(&self, read_only: bool) {
        self.mount(libc::MS_REMOUNT | if read_only { libc::MS_RDONLY } else { 0 }, "");
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.home.path().join("ballast")
    }

    /// Leaves not one page.
    fn fill(&self) {
        use std::io::Write;
        let mut ballast = std::fs::File::create(self.ballast()).expect("a file");
        let mut piece = 1 << 20;
        while piece >= 4096 {
            match ballast.write_all(&vec![0; piece]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => piece /= 2,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        use std::os::unix::ffi::OsStrExt;
        let place = std::ffi::CString::new(self.home.path().as_os_str().as_bytes()).expect("no zero byte");
        // SAFETY: a C string that lives until it returns. Detached, for the folder is removed next,
        // and a failed test's daemon may still be in it.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    }
}

#[track_caller]
fn wait_for_log(daemon: &Daemon, line: &str) {
    wait_until(SOON, &format!("the log says {line:?}"), || daemon.log().contains(line).then_some(()));
}

/// Strikes a rotation between the service's answer and its receipt, with something that keeps the
/// database from being written until `repair`, and expects of the daemon what it owes.
#[track_caller]
fn expect_an_unwritable_database_to_be_outlasted(
    home: &TestHome,
    daemon: &Daemon,
    strike: impl FnOnce(),
    repair: impl FnOnce(),
) -> Service {
    let service = burning(home, &[]);
    home.wait_for_reports("ann", 1);
    add_ticking(home);
    let rotated = rotate_struck(home, &service, || {
        strike();
        service.release("/rotate");
        wait_for_log(daemon, "an issued secret can't be stored yet");
        wait_for_log(daemon, "severity=\"critical\"");
        // Reads go on, and nothing new is begun.
        assert_eq!(home.json(&["credential", "list"]).as_array().expect("an array").len(), 2);
        assert_eq!(home.reports("ann").len(), 1);
        let refused = home.run(&["credential", "rotate", "tick"]);
        assert_eq!(refused.code(), 75, "{refused:?}");
        assert!(refused.stderr.contains("the database can't be written"), "{refused:?}");
        assert_eq!(home.json(&["status"])["daemon"], true);
        repair();
    });
    rotated.ok();
    assert_rotated_once(home, &service);
    assert_eq!(service.count("/rotate"), 1);
    wait_for_log(daemon, "the database can be written again");
    wait_for_rounds(home, 2);
    home.run(&["credential", "rotate", "tick"]).ok();
    service
}

#[test]
fn a_full_disk_loses_nothing_issued_starts_nothing_and_is_outlasted() {
    let name = "a_full_disk_loses_nothing_issued_starts_nothing_and_is_outlasted";
    let Some(disk) = SmallDisk::for_test(name, 16 << 20) else { return };
    let daemon = disk.home.serve();
    expect_an_unwritable_database_to_be_outlasted(&disk.home, &daemon, || disk.fill(), || disk.free());
    // And nobody needed that space for the file itself.
    assert!(daemon.stop().success());
    let _daemon = disk.home.serve();
    wait_for_rounds(&disk.home, 1);
}

#[test]
fn a_file_system_that_turns_read_only_is_outlasted() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    // What a kernel that found an error on the disk answers for files that are open.
    let turn = || {
        faults.fail_writes(libc::EROFS, FOREVER, DB | WAL | SHM);
        faults.fail_syncs(libc::EROFS, FOREVER, DB | WAL | SHM);
    };
    expect_an_unwritable_database_to_be_outlasted(&home, &daemon, turn, || faults.release());
}

/// The files of issued secrets that wait at home, by the end of their names.
fn late(home: &TestHome, end: &str) -> Vec<std::path::PathBuf> {
    let folder = std::fs::read_dir(home.path().join("late")).expect("the folder");
    let files = folder.map(|entry| entry.expect("an entry").path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == end)).collect()
}

/// Answers a rotation while the database takes nothing, and returns where its secret lies.
#[track_caller]
fn answer_unstored(home: &TestHome, faults: &Faults, service: &Service) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    faults.fail_writes(libc::EROFS, FOREVER, DB | WAL | SHM);
    faults.fail_syncs(libc::EROFS, FOREVER, DB | WAL | SHM);
    service.release("/rotate");
    let file = wait_until(SOON, "what was issued is on disk", || late(home, "json").pop());
    let text = std::fs::read_to_string(&file).expect("a text");
    let issued = service.issued().pop().expect("a session");
    assert!(!text.contains(&issued), "{text}");
    assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    file
}

/// What was issued last is in force, after one rotation and without a person.
#[track_caller]
fn assert_recovered_by_itself(home: &TestHome, service: &Service) {
    let reports = home.wait_for_reports("ann", 2);
    assert_one_report_each(&reports);
    let last = reports.last().expect("a report");
    assert_eq!(
        last["meta"]["path"],
        serde_json::json!(["recovered", "validate-pending", "promoted"]),
        "{last}"
    );
    assert_eq!(Some(session_in_force(home, "ann", service)), service.issued().pop());
    assert_eq!(service.count("/rotate"), 1);
    assert!(late(home, "json").is_empty());
    let status = home.run(&["status", "--json"]).stdout;
    assert!(!status.contains("unstored") && !status.contains("needs-human"), "{status}");
}

#[test]
fn a_daemon_that_dies_while_the_database_takes_no_secret_finds_it_at_home_and_calls_nobody() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    rotate_struck(&home, &service, || {
        answer_unstored(&home, &faults, &service);
        daemon.kill_9();
    });
    let unwell = home.run(&["status", "--json"]);
    assert!(unwell.stdout.contains("issued secret waits on this home's disk"), "{unwell:?}");
    faults.release();
    let _daemon = home.serve_in(&faults.environment());
    assert_recovered_by_itself(&home, &service);
}

#[test]
fn what_was_issued_is_at_home_long_before_a_first_try_to_store_it_fails() {
    let home = TestHome::new();
    let daemon = home.serve();
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    rotate_struck(&home, &service, || {
        let foreign = Foreign::holding(&home, &["BEGIN EXCLUSIVE"]);
        service.release("/rotate");
        wait_until(SOON, "what was issued is on disk", || late(&home, "json").pop());
        let log = daemon.log();
        daemon.kill_9();
        assert!(!log.contains("severity=\"critical\""), "{log}");
        foreign.let_go();
    });
    let _daemon = home.serve();
    assert_recovered_by_itself(&home, &service);
}

#[test]
fn a_daemon_that_dies_on_a_full_disk_finds_what_was_issued_in_the_room_kept_for_it() {
    let name = "a_daemon_that_dies_on_a_full_disk_finds_what_was_issued_in_the_room_kept_for_it";
    let Some(disk) = SmallDisk::for_test(name, 16 << 20) else { return };
    let home = &disk.home;
    let daemon = home.serve();
    let service = burning(home, &[]);
    home.wait_for_reports("ann", 1);
    wait_until(SOON, "room is kept", || home.path().join("late/room-3").exists().then_some(()));
    rotate_struck(home, &service, || {
        disk.fill();
        service.release("/rotate");
        wait_until(SOON, "what was issued is on disk", || late(home, "json").pop());
        daemon.kill_9();
    });
    disk.free();
    let _daemon = home.serve();
    assert_recovered_by_itself(home, &service);
}

#[test]
fn a_database_that_is_away_for_longer_than_an_attempt_lasts_costs_nothing_issued() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let environment = [&faults.environment()[..], &[("KEYWHEEL_LEASE_MS", "1000")]].concat();
    let daemon = home.serve_in(&environment);
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    rotate_struck(&home, &service, || {
        answer_unstored(&home, &faults, &service);
        wait_for_log(&daemon, "an issued secret can't be stored yet");
        signal(&daemon, rustix::process::Signal::STOP);
        faults.lengthen_stop(Duration::from_secs(600));
        signal(&daemon, rustix::process::Signal::CONT);
        wait_for_log(&daemon, "an attempt could not be written down");
        assert_eq!(late(&home, "json").len(), 1);
        faults.release();
    });
    assert_recovered_by_itself(&home, &service);
}

#[test]
fn a_late_secret_that_was_damaged_is_set_aside_and_told_once() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let mut file = std::path::PathBuf::new();
    rotate_struck(&home, &service, || {
        file = answer_unstored(&home, &faults, &service);
        daemon.kill_9();
    });
    faults.release();
    let text = std::fs::read_to_string(&file).expect("a text");
    // One digit of the seal's last byte.
    let seal = text.find("\"sealed\":\"").expect("a seal");
    let end = seal + 10 + text[seal + 10..].find('"').expect("its end") - 1;
    let other = if text.as_bytes()[end] == b'0' { "1" } else { "0" };
    std::fs::write(&file, format!("{}{other}{}", &text[..end], &text[end + 1..])).expect("a file");
    for _ in 0..2 {
        let daemon = home.serve_in(&faults.environment());
        // The old secret is dead, and a person has to know.
        home.wait_for_reports("ann", 2);
        assert!(daemon.stop().success());
    }
    assert_eq!((late(&home, "json").len(), late(&home, "unreadable").len()), (0, 1));
    let audit = home.json(&["plugin", "history", "--limit", "100"]);
    let told = audit.as_array().expect("an array").iter().filter(|row| row["action"] == "set-aside").count();
    assert_eq!(told, 1, "{audit}");
    assert_eq!(home.reports("ann")[1]["meta"]["verdict"], "needs-human");
}

#[test]
fn a_home_that_is_mounted_read_only_is_refused_in_words_and_used_again_once_it_is_not() {
    let name = "a_home_that_is_mounted_read_only_is_refused_in_words_and_used_again_once_it_is_not";
    let Some(disk) = SmallDisk::for_test(name, 16 << 20) else { return };
    let home = &disk.home;
    let daemon = home.serve();
    let service = burning(home, &[]);
    home.wait_for_reports("ann", 1);
    assert!(daemon.stop().success());
    disk.remount(true);
    for refused in [home.run(&["serve"]), home.run(&["credential", "rotate", "ann"])] {
        assert_eq!(refused.code(), 78, "{refused:?}");
        assert!(refused.stderr.contains("ead-only file system"), "{refused:?}");
        assert!(refused.stderr.contains("hint: the home must be writable"), "{refused:?}");
    }
    assert_eq!(home.reports("ann").len(), 1);
    assert_eq!(service.count("/rotate"), 0);
    disk.remount(false);
    let daemon = home.serve();
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_rotated_once(home, &service);
    // What a killed daemon leaves can be read, but not without the index of its log.
    daemon.kill_9();
    disk.remount(true);
    assert_eq!(home.reports("ann").len(), 2);
    disk.remount(false);
    std::fs::remove_file(home.path().join("keywheel.db-shm")).expect("the index");
    disk.remount(true);
    let refused = home.run(&["reports", "list"]);
    assert_eq!(refused.code(), 75, "{refused:?}");
    disk.remount(false);
    assert_eq!(home.reports("ann").len(), 2);
}

/// Another program that has the database open, until it is told to let go or dropped.
pub struct Foreign(std::process::Child);

impl Foreign {
    /// With a transaction that begins with these statements.
    pub fn holding(home: &TestHome, statements: &[&str]) -> Self {
        let script = "import sqlite3, sys\n\
            db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n\
            for statement in sys.argv[2:]: db.execute(statement).fetchall()\n\
            print('held', flush=True)\n\
            sys.stdin.read()\n\
            db.rollback()\n";
        let mut child = command("python3")
            .args(["-c", script])
            .arg(home.path().join("keywheel.db"))
            .args(statements)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3, which the peers need too");
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut output, &mut line).expect("python speaks UTF-8");
        assert_eq!(line, "held\n");
        Self(child)
    }

    pub fn let_go(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("a child can be waited for");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_foreign_writer_that_holds_the_lock_is_outlasted() {
    let home = TestHome::new();
    let daemon = home.serve();
    let foreign = std::cell::Cell::new(None);
    let strike = || foreign.set(Some(Foreign::holding(&home, &["BEGIN EXCLUSIVE"])));
    let repair = || foreign.take().expect("struck").let_go();
    expect_an_unwritable_database_to_be_outlasted(&home, &daemon, strike, repair);
    assert!(daemon.log().contains("database is locked"));
}

#[test]
fn a_foreign_reader_lets_the_log_grow_and_breaks_nothing() {
    const CHECKPOINT_BYTES: u64 = 16 << 20;
    let home = TestHome::new();
    let _daemon = home.serve();
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let log_bytes = || std::fs::metadata(home.path().join("keywheel.db-wal")).expect("the log").len();
    let reader = Foreign::holding(&home, &["BEGIN", "SELECT count(*) FROM credentials"]);
    // Jars as large as they may be, each stored anew; paused, so that nobody sends them.
    home.add_session("large", "well-behaved", &service, &["--every", "1h"]);
    home.wait_for_reports("large", 1);
    home.run(&["credential", "pause", "large"]).ok();
    let value = "x".repeat(60 << 10);
    let jar: String =
        (0..25).map(|n| format!("127.0.0.1\tFALSE\t/\tFALSE\t0\tlarge_{n}\t{value}\n")).collect();
    let jar = format!(
        "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\t{}\n{jar}",
        service.issue()
    );
    let grow = || home.run_with_input(&["credential", "import", "large", "-"], &jar).ok();
    let mut rounds = 0;
    while log_bytes() <= CHECKPOINT_BYTES {
        rounds += 1;
        assert!(rounds < 40, "the log has {} bytes", log_bytes());
        grow();
    }
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_rotated_once(&home, &service);
    reader.let_go();
    // The next commits fold it back and begin it anew.
    grow();
    let peak = log_bytes();
    for _ in 0..3 {
        grow();
    }
    assert_eq!(log_bytes(), peak);
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_rotated_once(&home, &service);
}

#[test]
fn errors_of_the_disk_in_the_midst_of_receipt_and_end_cost_nothing() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    let environment = [&faults.environment()[..], &[("KEYWHEEL_LEASE_MS", "1000")]].concat();
    let daemon = home.serve_in(&environment);
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    // Single writes that fail, wherever in the receipt's and the end's transactions.
    for skip in 0..8 {
        rotate_struck(&home, &service, || faults.fail_writes_after(skip, libc::EIO, 1, WAL)).ok();
        assert_rotated_once(&home, &service);
    }
    assert!(faults.failed_writes() >= 8, "{}", faults.failed_writes());
    faults.release();
    // The receipt goes well and the end doesn't: the attempt is taken up again, and what it
    // stored is promoted, by the journal and not by asking again.
    let asked = service.count("/rotate");
    service.hold("/check");
    let failed = rotate_struck(&home, &service, || {
        service.release("/rotate");
        service.wait_held("/check");
        faults.fail_syncs(libc::EIO, FOREVER, WAL);
        service.release("/check");
    });
    assert_eq!(failed.code(), 75, "{failed:?}");
    wait_for_log(&daemon, "an attempt could not be written down");
    faults.release();
    let reports = home.wait_for_reports("ann", 10);
    assert_one_report_each(&reports);
    assert_eq!(reports[9]["meta"]["path"], serde_json::json!(["recovered", "validate-pending", "promoted"]));
    assert_eq!(service.count("/rotate"), asked + 1);
    assert_eq!(Some(session_in_force(&home, "ann", &service)), service.issued().pop());
}

/// Sets how many descriptors a running process may have, and returns how many it might before.
fn limit_descriptors(pid: u32, soft: libc::rlim_t) -> libc::rlim_t {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes structs that live until it returns.
    let done =
        unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let new = libc::rlimit { rlim_cur: soft, rlim_max: old.rlim_max };
    // SAFETY: as above.
    let done = unsafe {
        libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    old.rlim_cur
}

#[test]
fn a_daemon_without_a_free_descriptor_says_so_and_recovers() {
    let home = TestHome::new();
    let daemon = home.serve();
    let service = burning(&home, &["--every", "1s"]);
    home.wait_for_reports("ann", 1);
    let _ticking = add_ticking(&home);
    let mut usual = 0;
    let unclear = rotate_struck(&home, &service, || {
        // Below what it has open for good: nothing can be opened any more.
        usual = limit_descriptors(daemon.pid(), 8);
    });
    // The receipt was stored; what it is worth can't be asked.
    assert_eq!(unclear.code(), 4, "{unclear:?}");
    let rotation = |report: &Value| report["meta"]["action"] == "rotate";
    let report = home.reports("ann").into_iter().find(rotation).expect("its report");
    assert_eq!(report["status"], "unreachable", "{report}");
    kill_9(home_worker(&daemon));
    wait_for_log(&daemon, "worker not restarted");
    let unreachable = wait_until(SOON, "an attempt finds no worker", || {
        home.reports("tick").into_iter().find(|report| report["message"].to_string().contains("open files"))
    });
    assert_eq!(unreachable["status"], "unreachable", "{unreachable}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| home.json(&["status"]));
        wait_for_log(&daemon, "a client can't be accepted");
        limit_descriptors(daemon.pid(), usual);
        assert_eq!(waiting.join().expect("the command ends")["daemon"], true);
    });
    wait_for_log(&daemon, "clients are accepted again");
    wait_until(SOON, "what was issued is in force", || {
        (Some(session_in_force(&home, "ann", &service)) == service.issued().pop()).then_some(())
    });
    assert_eq!(service.count("/rotate"), 1);
    assert_one_report_each(&home.reports("ann"));
    wait_until(SOON, "attempts succeed again", || {
        (home.reports("tick").last()?["status"] == "success").then_some(())
    });
    assert_one_report_each(&home.reports("tick"));
}

/// The one worker of a daemon that can't be asked.
fn home_worker(daemon: &Daemon) -> u32 {
    let [worker] = daemon.children()[..] else { panic!("{:?}", daemon.children()) };
    worker
}

#[test]
fn a_worker_that_lacks_descriptors_at_its_start_does_not_start_with_a_wall_less() {
    let home = TestHome::new();
    let check = |error: i32| {
        let kernel = Kernel::whole().without(libc::SYS_clone, libc::CLONE_NEWUSER as u64, error);
        let plugin = guest("well_behaved");
        home.run_on(&kernel, &["plugin", "check", plugin.to_str().expect("paths of tests are UTF-8")])
    };
    // Refused for good, as in containers: the other layers hold without them.
    check(libc::EPERM).ok();
    for shortage in [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOMEM] {
        let failed = check(shortage);
        let why = std::io::Error::from_raw_os_error(shortage).to_string();
        assert_ne!(failed.code(), 0, "{failed:?}");
        assert!(format!("{}{}", failed.stdout, failed.stderr).contains(&why), "{failed:?}");
    }
}

#[test]
fn a_plugin_that_came_while_descriptors_were_short_is_looked_at_again_by_itself() {
    let home = TestHome::new();
    std::fs::write(home.path().join("config.toml"), "rescan_seconds = 1\n").expect("a configuration");
    let daemon = home.serve();
    home.drop_plugin(&guest("well_behaved"));
    home.wait_for_plugin("well_behaved.wasm", "active");
    std::fs::remove_file(home.path().join("plugins/well_behaved.wasm")).expect("the file is there");
    wait_until(SOON, "the plugin is gone", || home.plugin("well_behaved.wasm").is_none().then_some(()));
    // Enough to read a file and to answer a command, too little to start a process.
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its descriptors").count();
    let usual = limit_descriptors(daemon.pid(), open as libc::rlim_t + 5);
    home.drop_plugin(&guest("well_behaved"));
    let refused = home.wait_for_plugin("well_behaved.wasm", "refused");
    assert!(refused.to_string().contains("open files"), "{refused}");
    limit_descriptors(daemon.pid(), usual);
    home.wait_for_plugin("well_behaved.wasm", "active");
}
