//! Any process may be killed at any instant: each attempt still ends in exactly one report,
//! nothing issued is lost, and nothing is spent twice. Others never notice.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::*;

/// Each attempt has one report, and none is missing.
#[track_caller]
fn assert_one_report_each(reports: &[Value]) {
    let numbers: Vec<_> = reports.iter().map(|report| report["attemptNumber"].as_u64()).collect();
    let expected: Vec<_> = (1..=reports.len() as u64).map(Some).collect();
    assert_eq!(numbers, expected);
}

#[track_caller]
fn assert_path(report: &Value, expected: &[&str]) {
    assert_eq!(report["meta"]["path"], serde_json::json!(expected), "{report}");
}

/// The session that is in force, as an export has it. It lives.
fn exported_session(home: &TestHome, id: &str, service: &Service) -> String {
    let header =
        home.run(&["credential", "export", id, "--format", "header", "--url", &service.url]).ok().stdout;
    let session = header.split("session=").nth(1).expect("a session cookie");
    let session = session.trim_end().to_owned();
    assert!(service.is_alive(&session));
    session
}

#[test]
fn a_worker_killed_in_an_attempt_costs_one_report_and_no_neighbour() {
    let (home, struck) = (TestHome::new(), Service::start(OldSession::Stays));
    let spared = Service::start(OldSession::Stays);
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&plugin("http-session"));
    let _daemon = home.serve();
    home.add_session("spared", "http-session", &spared, &["--every", "1s", "--set", "validate_path=/check"]);
    home.wait_for_reports("spared", 1);
    struck.hold("/check");
    home.add_session("struck", "well-behaved", &struck, &["--every", "1s"]);
    struck.wait_held("/check");
    let (victim, neighbour) = (home.worker_pid("well-behaved"), home.worker_pid("http-session"));
    let before = home.reports("spared").len();
    kill_9(victim);
    let killed = Instant::now();
    wait_until(SOON, "the worker is back", || {
        home.worker("well-behaved")?["pid"].as_u64().filter(|&pid| pid != u64::from(victim))
    });
    assert!(killed.elapsed() < Duration::from_secs(1), "back after {:?}", killed.elapsed());
    // The neighbour reports on while the struck attempt still waits for its service.
    home.wait_for_reports("spared", before + 2);
    struck.release("/check");
    let reports = home.wait_for_reports("struck", 2);
    assert_one_report_each(&reports);
    assert_eq!(reports[0]["status"], "unreachable", "{}", reports[0]);
    assert!(reports[0]["message"].as_str().is_some_and(|why| why.contains("killed")), "{}", reports[0]);
    assert_eq!(reports[1]["status"], "success", "{}", reports[1]);
    let spared = home.reports("spared");
    assert_one_report_each(&spared);
    assert!(spared.iter().all(|report| report["status"] == "success"), "{spared:?}");
    assert_eq!(home.worker_pid("http-session"), neighbour);
}

#[test]
fn an_answer_that_arrives_after_its_worker_died_is_kept_and_promoted() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &["--set", "commit_class=burn-on-issue"]);
    home.wait_for_reports("ann", 1);
    service.hold("/rotate");
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| home.run(&["credential", "rotate", "ann"]));
        service.wait_held("/rotate");
        kill_9(home.worker_pid("well-behaved"));
        wait_until(SOON, "the death is noticed", || {
            (home.worker("well-behaved")?["crashes"] == 1).then_some(())
        });
        service.release("/rotate");
        rotating.join().expect("the command ends").ok();
    });
    let reports = home.reports("ann");
    assert_one_report_each(&reports);
    assert_eq!(reports.len(), 2);
    assert_path(&reports[1], &["rotate", "no-answer", "validate-pending", "promoted"]);
    assert_eq!(service.count("/rotate"), 1);
    assert_eq!(exported_session(&home, "ann", &service), service.issued()[1]);
}

/// Kills the daemon while its rotation waits for the answer of `held`, starts it again, and
/// returns the reports once the rotation has its own.
fn rotation_with_a_killed_daemon(home: &TestHome, service: &Service, class: &str, held: &str) -> Vec<Value> {
    home.drop_plugin(&guest("well_behaved"));
    let daemon = home.serve();
    home.add_session("ann", "well-behaved", service, &["--set", &format!("commit_class={class}")]);
    home.wait_for_reports("ann", 1);
    let worker = home.worker_pid("well-behaved");
    service.hold(held);
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| home.run(&["credential", "rotate", "ann"]));
        service.wait_held(held);
        daemon.kill_9();
        let cut_off = rotating.join().expect("the command ends");
        assert_eq!(cut_off.code(), 1, "{cut_off:?}");
    });
    wait_until(SOON, "the worker ends with its host", || (!is_running(worker)).then_some(()));
    assert_eq!(home.reports("ann").len(), 1);
    service.release(held);
    let _daemon = home.serve();
    let reports = home.wait_for_reports("ann", 2);
    assert_one_report_each(&reports);
    assert_eq!(reports[1]["meta"]["action"], "rotate");
    reports
}

#[test]
fn a_stored_receipt_survives_the_daemon_and_is_promoted_without_asking_again() {
    for (class, old) in [("burn-on-issue", OldSession::Dies), ("sliding", OldSession::Stays)] {
        let (home, service) = (TestHome::new(), Service::start(old));
        let reports = rotation_with_a_killed_daemon(&home, &service, class, "/check");
        assert_eq!(reports[1]["status"], "success", "{}", reports[1]);
        assert_eq!(reports[1]["meta"]["rotated"], true);
        assert_path(&reports[1], &["recovered", "validate-pending", "promoted"]);
        assert_eq!(service.count("/rotate"), 1, "{class}");
        assert_eq!(exported_session(&home, "ann", &service), service.issued()[1]);
    }
}

#[test]
fn a_rotation_that_burns_is_never_repeated_blindly_and_calls_a_human() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Dies));
    let reports = rotation_with_a_killed_daemon(&home, &service, "burn-on-issue", "/rotate");
    assert_eq!(reports[1]["status"], "failed", "{}", reports[1]);
    assert_eq!(reports[1]["meta"]["verdict"], "needs-human");
    assert_path(&reports[1], &["recovered", "probe-current", "second-look"]);
    assert_eq!(service.count("/rotate"), 1);
}

#[test]
fn a_rotation_that_burns_but_spent_nothing_is_left_to_the_schedule() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let reports = rotation_with_a_killed_daemon(&home, &service, "burn-on-issue", "/rotate");
    assert_eq!(reports[1]["status"], "unreachable", "{}", reports[1]);
    assert_path(&reports[1], &["recovered", "probe-current"]);
    assert_eq!(service.count("/rotate"), 1);
}

#[test]
fn a_sliding_rotation_without_an_answer_is_repeated_within_its_attempt() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let reports = rotation_with_a_killed_daemon(&home, &service, "sliding", "/rotate");
    assert_eq!(reports[1]["status"], "success", "{}", reports[1]);
    assert_path(&reports[1], &["recovered", "repeat", "rotate", "validate-pending", "promoted"]);
    assert_eq!(service.count("/rotate"), 2);
    assert_eq!(exported_session(&home, "ann", &service), service.issued()[2]);
}
