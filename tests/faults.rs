//! What the machine under a daemon can do to it: disks that fill, fail, stall and turn
//! read-only, locks, clocks, missing descriptors, a stopped process. Each test strikes a real
//! daemon in the midst of a rotation and looks from outside; the expected of each is a row in
//! docs/operating.md.

pub mod shim;

use std::time::Duration;

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
