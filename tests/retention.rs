//! Old reports, deleted by hand and by the daemon: what stays, what the archive holds, and that
//! no failure between the two loses a report.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::*;

/// A home with a credential of a service that answers, and so many reports of it. No daemon.
fn home_with_reports(service: &Service, count: usize) -> TestHome {
    let home = TestHome::new();
    home.drop_plugin(&guest("well_behaved"));
    {
        let _daemon = home.serve();
        home.add_session("ann", "well-behaved", service, &["--every", "12h"]);
        home.wait_for_reports("ann", 1);
        for _ in 1..count {
            // A dead session ends with 1, and is a report all the same.
            home.run(&["credential", "validate", "ann"]);
        }
    }
    assert_eq!(home.reports("ann").len(), count);
    home
}

/// Every line of every file of an archive.
fn archived(folder: &Path) -> Vec<Value> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut lines = Vec::new();
    for file in files {
        let path = file.expect("an entry").path();
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let mut text = String::new();
        let file = std::fs::File::open(&path).expect("a file");
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).expect("whole gzip members");
        lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")));
    }
    lines.sort_by_key(|line| line["id"].as_i64());
    lines
}

fn ids(reports: &[Value]) -> Vec<i64> {
    reports.iter().map(|report| report["id"].as_i64().expect("an id")).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_dry_run_counts_and_changes_nothing_and_a_real_one_leaves_the_newest() {
    let service = Service::start(OldSession::Stays);
    for with_daemon in [false, true] {
        let home = home_with_reports(&service, 6);
        let before = home.reports("ann");
        let _daemon = with_daemon.then(|| home.serve());
        let dry = home.json(&["reports", "prune", "--keep", "2", "--dry-run"]);
        assert_eq!(dry["dryRun"], true);
        assert_eq!((&dry["would"]["reports"], &dry["would"]["credentials"]), (&4.into(), &1.into()), "{dry}");
        assert_eq!(dry["would"]["oldest"], before[0]["createdAt"]);
        assert_eq!(dry["would"]["newest"], before[3]["createdAt"]);
        assert_eq!(home.reports("ann"), before, "a dry run changes nothing");

        let folder = home.outside().join("archive");
        let done = home.json(&["reports", "prune", "--keep", "2", "--archive", path(&folder)]);
        assert_eq!(done["deleted"], 4, "{done}");
        assert_eq!(home.reports("ann"), before[4..]);
        assert_eq!(archived(&folder), before[..4], "a line is what `reports list --json` showed");
        let again = home.json(&["reports", "prune", "--keep", "2", "--dry-run"]);
        assert_eq!(again["would"]["reports"], 0, "{again}");
    }
}

#[test]
fn age_and_credential_narrow_it_and_the_last_two_words_on_a_credential_stay() {
    let service = Service::start(OldSession::Dies);
    let home = home_with_reports(&service, 3);
    let session = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    let session = session["session"]["value"].as_str().expect("a value").to_owned();
    // Somebody else takes a new session, and this one is dead.
    http("POST", &format!("{}/rotate", service.url), &[&format!("Cookie: session={session}")]);
    for _ in 0..3 {
        assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 1);
    }
    let before = home.reports("ann");
    let none = home.json(&["reports", "prune", "--older-than", "1h", "--keep", "0", "--dry-run"]);
    assert_eq!(none["would"]["reports"], 0, "nothing is an hour old");
    let other = home.json(&["reports", "prune", "--keep", "1", "--credential", "nobody"]);
    assert_eq!(other["deleted"], 0, "{other}");
    // Every report is older than a second by the time the newest is.
    let newest = before.last().expect("a report")["createdAt"].clone();
    wait_until(SOON, "the last report is a second old", || {
        let would = home.json(&["reports", "prune", "--older-than", "1s", "--keep", "0", "--dry-run"]);
        (would["would"]["reports"] == 4).then_some(())
    });
    let done = home.json(&["reports", "prune", "--older-than", "1s", "--keep", "0", "--credential", "ann"]);
    assert_eq!(done["deleted"], 4, "{done}");
    let left = home.reports("ann");
    assert_eq!(ids(&left), [ids(&before)[2], ids(&before)[5]], "the last success and the last report");
    assert_eq!(left[1]["createdAt"], newest);
    // Without a credential there is nothing to last.
    home.run(&["credential", "remove", "ann"]).ok();
    wait_until(SOON, "the last one is a second old, too", || {
        home.run(&["reports", "prune", "--older-than", "1s"]).ok();
        home.reports("ann").is_empty().then_some(())
    });
}

#[test]
fn the_daemon_prunes_by_itself_and_an_archive_it_cannot_write_stops_it_and_loses_nothing() {
    let service = Service::start(OldSession::Stays);
    let home = home_with_reports(&service, 5);
    let before = home.reports("ann");
    let folder = home.path().join("kept/reports");
    let config = "[reports]\nkeep_per_credential = 2\narchive = \"kept/reports\"\n";
    std::fs::write(home.path().join("config.toml"), config).expect("the configuration");
    {
        let daemon = home.serve();
        wait_until(SOON, "the daemon says that it can't", || {
            daemon.log().contains("can't be written, so no report is deleted").then_some(())
        });
        let refused = home.run(&["reports", "prune"]);
        assert_eq!(refused.code(), 75, "{refused:?}");
        assert!(refused.stderr.contains("hint: look at its permissions"), "{refused:?}");
    }
    assert_eq!(home.reports("ann"), before);
    std::fs::create_dir(home.path().join("kept")).expect("the folder above");
    let _daemon = home.serve();
    wait_until(SOON, "only two are left", || (home.reports("ann").len() == 2).then_some(()));
    assert_eq!(home.reports("ann"), before[3..]);
    assert_eq!(archived(&folder), before[..3]);
}

#[test]
fn a_power_cut_between_archive_and_deletion_gives_a_line_twice_and_loses_none() {
    let service = Service::start(OldSession::Stays);
    let home = home_with_reports(&service, 5);
    let before = home.reports("ann");
    let folder = home.outside().join("archive");
    let prune = ["reports", "prune", "--keep", "1", "--archive", path(&folder)];
    let cut = home.command(&prune).env("KEYWHEEL_CRASH_AT", "prune.archived").output().expect("it starts");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&cut.status), Some(9), "{cut:?}");
    assert_eq!(home.reports("ann"), before, "nothing is deleted yet");
    assert_eq!(archived(&folder), before[..4]);
    assert_eq!(home.json(&prune)["deleted"], 4);
    let mut lines = ids(&archived(&folder));
    assert_eq!(lines.len(), 8, "each twice");
    lines.dedup();
    assert_eq!(lines, ids(&before[..4]));
}

#[test]
fn attempts_go_on_while_reports_are_pruned_over_and_over() {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    for id in ["ann", "ben", "cam"] {
        home.add_session(id, "well-behaved", &service, &["--every", "1s"]);
    }
    let attempts = |id: &str| {
        home.json(&["credential", "show", id])["credential"]["attemptNumber"].as_u64().expect("a number")
    };
    wait_until(SOON, "five attempts of each are over", || {
        home.json(&["reports", "prune", "--keep", "1"]);
        ["ann", "ben", "cam"].iter().all(|id| attempts(id) > 5).then_some(())
    });
    let attempts_before: std::collections::BTreeMap<_, _> =
        ["ann", "ben", "cam"].into_iter().map(|id| (id, attempts(id))).collect();
    for id in ["ann", "ben", "cam"] {
        let reports = home.reports(id);
        assert!(reports.iter().all(|report| report["status"] == "success"), "{reports:?}");
        let last = reports.last().expect("the last stays")["attemptNumber"].as_u64().expect("a number");
        // One more may have begun, and none ended without its report.
        assert!(last + 1 >= attempts_before[id], "{last} of {}", attempts_before[id]);
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_with_what_was_found_and_what_is_allowed() {
    let home = TestHome::new();
    for (lines, said) in [
        ("keep_days = -1", "found -1; allowed: 0 (for ever) to 36500 days"),
        ("keep_days = 40000", "found 40000; allowed: 0 (for ever) to 36500 days"),
        ("keep_per_credential = -5", "found -5; allowed: 0 (all of them) to 1000000000"),
        ("keep_days = \"90\"", "invalid type: string \"90\""),
        ("archive = \"\"", "reports.archive is empty; allowed: a folder"),
        ("keep_weeks = 3", "unknown field `keep_weeks`"),
    ] {
        std::fs::write(home.path().join("config.toml"), format!("[reports]\n{lines}\n")).expect("a file");
        let refused = home.run(&["reports", "prune", "--dry-run"]);
        assert_eq!(refused.code(), 78, "{lines}: {refused:?}");
        assert!(refused.stderr.contains(said), "{lines}: {refused:?}");
    }
    std::fs::write(home.path().join("config.toml"), "[reports]\nkeep_days = 0\nkeep_per_credential = 0\n")
        .expect("a file");
    let refused = home.run(&["reports", "prune"]);
    assert_eq!(refused.code(), 2, "{refused:?}");
    assert!(refused.stderr.contains("hint: --older-than 30d"), "{refused:?}");
}
