//! What the machine under a daemon can do to it: disks that fill, fail, stall and turn
//! read-only, locks, clocks, missing descriptors, a stopped process. Each test strikes a real
//! daemon in the midst of a rotation and looks from outside; the expected of each is a row in
//! docs/operating.md.

pub mod shim;

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::*;
use shim::*;

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

#[test]
fn what_was_acknowledged_is_in_the_image_of_a_power_cut_and_a_daemon_starts_on_it() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.keep_images();
    let daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    let before = home.reports("ann");
    daemon.kill_9();
    faults.cut_power();
    let _daemon = home.serve_in(&faults.environment());
    assert_eq!(home.reports("ann"), before);
    assert_eq!(session_in_force(&home, "ann", &service), service.issued()[1]);
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_one_report_each(&home.wait_for_reports("ann", 3));
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
fn a_daemon_that_dies_at_any_write_or_sync_of_a_rotation_loses_nothing() {
    for (number, moment) in [(1, Moment::Before), (2, Moment::After), (4, Moment::Before), (4, Moment::After)]
    {
        let home = TestHome::new();
        let faults = Faults::of(&home);
        faults.keep_images();
        let mut daemon = home.serve_in(&faults.environment());
        let service = burning(&home, &[]);
        home.wait_for_reports("ann", 1);
        service.hold("/rotate");
        std::thread::scope(|scope| {
            let rotating = scope.spawn(|| home.run(&["credential", "rotate", "ann"]));
            service.wait_held("/rotate");
            faults.kill_at(number, moment);
            service.release("/rotate");
            daemon.ended();
            rotating.join().expect("the command ends");
        });
        faults.cut_power();
        let _daemon = home.serve_in(&faults.environment());
        let reports = home.wait_for_reports("ann", 2);
        assert_one_report_each(&reports);
        assert_eq!(service.count("/rotate"), 1);
    }
}

#[test]
fn slow_syncs_delay_and_break_nothing() {
    let home = TestHome::new();
    let faults = Faults::of(&home);
    faults.delay_syncs(Duration::from_millis(200));
    let _daemon = home.serve_in(&faults.environment());
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    home.run(&["credential", "rotate", "ann"]).ok();
    assert_one_report_each(&home.wait_for_reports("ann", 2));
    assert_eq!(service.count("/rotate"), 1);
    assert_eq!(session_in_force(&home, "ann", &service), service.issued()[1]);
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

#[test]
fn a_daemon_stopped_for_longer_than_a_lease_ends_its_own_attempts_once() {
    const LEASE: Duration = Duration::from_secs(1);
    let home = TestHome::new();
    let daemon = home.serve_in(&[("KEYWHEEL_LEASE_MS", &LEASE.as_millis().to_string())]);
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("the daemon is there");
    };
    let service = burning(&home, &[]);
    home.wait_for_reports("ann", 1);
    let _ticking = add_ticking(&home);
    // The service answers while nobody listens, or long after everybody does again.
    for answers_meanwhile in [true, false] {
        let rotated = rotate_struck(&home, &service, || {
            signal(rustix::process::Signal::STOP);
            let stopped = Instant::now();
            if answers_meanwhile {
                service.release("/rotate");
            }
            // The stop itself is the fault, and this its length.
            wait_until(SOON, "the lease is over", || (stopped.elapsed() > LEASE * 2).then_some(()));
            signal(rustix::process::Signal::CONT);
            wait_for_rounds(&home, 2);
        });
        rotated.ok();
        assert_rotated_once(&home, &service);
    }
    assert_eq!(service.count("/rotate"), 2);
}
