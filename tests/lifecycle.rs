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
    let reports = home.wait_for_reports("ann", 2);
    for (at, report) in reports.iter().enumerate() {
        assert_eq!(report["status"], "success", "{report}");
        assert_eq!(report["attemptNumber"], at + 1);
        assert_eq!(report["validateUrl"], format!("{}/check", service.url));
    }
}
