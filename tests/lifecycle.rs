//! Plugins come, change and go while the daemon runs, and the daemon comes and goes itself.

use crate::harness::*;

#[test]
fn a_dropped_plugin_becomes_active_and_reports_appear() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    home.drop_plugin(&guest("well_behaved"));
    let plugin = home.wait_for_plugin("well_behaved.wasm", "active");
    assert_eq!(plugin["service"], "well-behaved");
    home.add_session("ann", "well-behaved", &service, &["--every", "1s"]);
    for (at, report) in home.wait_for_reports("ann", 2).iter().enumerate() {
        assert_eq!(report["status"], "success", "{report}");
        assert_eq!(report["service"], "well-behaved");
        assert_eq!(report["attemptNumber"], at + 1);
        assert_eq!(report["validateUrl"], format!("{}/check", service.url));
    }
}

#[test]
fn a_plugin_with_the_same_permissions_is_swapped_in_live() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &["--every", "1s"]);
    home.wait_for_reports("ann", 1);
    let old = home.worker_pid("well-behaved");
    home.drop_plugin_as(&guest("second_well_behaved"), "well_behaved.wasm");
    let plugin = wait_until(SOON, "version 0.2.0 is active", || {
        home.plugin("well_behaved.wasm").filter(|plugin| plugin["version"] == "0.2.0")
    });
    assert_eq!(plugin["state"], "active", "{plugin}");
    let reports = wait_until(SOON, "the new plugin reports", || {
        let reports = home.reports("ann");
        reports.iter().any(|report| report["meta"]["plugin"] == plugin["digest"]).then_some(reports)
    });
    for (at, report) in reports.iter().enumerate() {
        assert_eq!(report["status"], "success", "{report}");
        assert_eq!(report["attemptNumber"], at + 1);
    }
    wait_until(SOON, "the old worker is gone", || (!is_running(old)).then_some(()));
    assert_ne!(home.worker_pid("well-behaved"), old);
}

#[test]
fn a_removed_plugin_ends_its_worker_and_leaves_its_reports() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let _daemon = home.serve();
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &[]);
    home.wait_for_reports("ann", 1);
    let worker = home.worker_pid("well-behaved");
    std::fs::remove_file(home.path().join("plugins/well_behaved.wasm")).expect("the plugin is there");
    wait_until(SOON, "the worker is gone", || (!is_running(worker)).then_some(()));
    assert_eq!(home.plugin("well_behaved.wasm"), None);
    assert_eq!(home.worker("well-behaved"), None);
    assert_eq!(home.reports("ann").len(), 1);
    let refused = home.run(&["credential", "validate", "ann"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(service.count("/check"), 1);
    let reports = home.reports("ann");
    let message = reports[1]["message"].as_str().expect("a message");
    assert!(message.contains("no plugin serves `well-behaved`; hint: "), "{message}");
    // Put back, it serves the credential that it left.
    home.drop_plugin(&guest("well_behaved"));
    home.wait_for_plugin("well_behaved.wasm", "active");
    home.run(&["credential", "validate", "ann"]).ok();
}

#[test]
fn every_worker_announces_itself_again_after_a_restart() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    let services = ["well-behaved", "http-session"];
    home.drop_plugin(&guest("well_behaved"));
    home.drop_plugin(&plugin("http-session"));
    let daemon = home.serve();
    home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    home.add_session("bob", "http-session", &service, &["--every", "1h", "--set", "validate_path=/check"]);
    for id in ["ann", "bob"] {
        home.wait_for_reports(id, 1);
    }
    let old = services.map(|service| home.worker_pid(service));
    assert!(daemon.stop().success());
    for pid in old {
        wait_until(SOON, "the workers end with their daemon", || (!is_running(pid)).then_some(()));
    }
    let daemon = home.serve();
    let new = services.map(|service| home.worker_pid(service));
    for (service, pid) in services.iter().zip(new) {
        assert!(!old.contains(&pid));
        let log = daemon.log();
        let announced = log.lines().find(|line| line.contains("worker announced") && line.contains(service));
        assert!(announced.is_some_and(|line| line.contains(&pid.to_string())), "{service} {pid}: {log}");
    }
    // Nothing was due, so nothing was asked.
    for id in ["ann", "bob"] {
        assert_eq!(home.reports(id).len(), 1);
    }
}

#[test]
fn a_second_daemon_on_the_same_home_is_refused_and_the_first_goes_on() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let first = home.serve();
    home.add_session("ann", "well-behaved", &service, &["--every", "1s"]);
    let worker = home.worker_pid("well-behaved");
    let mut second = home.start_daemon(&[]);
    assert_eq!(second.ended().code(), Some(75), "{}", second.log());
    let why = format!("lock is in use by process {}; hint: ", first.pid());
    assert!(second.log().contains(&why), "{}", second.log());
    let so_far = home.reports("ann").len();
    let reports = home.wait_for_reports("ann", so_far + 1);
    assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
    assert_eq!(home.worker_pid("well-behaved"), worker);
    assert!(is_running(first.pid()));
}
