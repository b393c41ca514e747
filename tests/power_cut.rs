//! The power goes at every named step of a rotation, for every commit class: the real daemon is
//! killed there with SIGKILL, started again, and asked what it made of it, while a service with
//! the real semantics of that class keeps its own books. Whatever the step, each attempt has one
//! report, nothing issued is lost, and nothing is spent twice.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use keywheel::crash::POINTS;
use serde_json::Value;

use crate::faults::shim::{Faults, Moment};
use crate::harness::*;
use crate::services::{Class, Services, Standing, Terms};

/// How far a rotation has come where it is cut, as far as its recovery can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nothing was written.
    Unclaimed,
    /// An attempt is open, and no request can have left.
    Claimed,
    /// The intent is written: a request may have left. It hasn't.
    Intended,
    /// The service has issued a new secret, and nobody kept it.
    Answered,
    /// The new secret is stored.
    Kept,
    /// The report is written.
    Reported,
}

/// What is right afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There was no attempt.
    Nothing,
    /// The secret issued last is in force.
    Rotated,
    /// The old secret is in force and lives; the schedule rotates it later.
    Alive,
    /// Nobody but a person can know, or help.
    Human,
}

const STRETCHES: &[(Cut, &[&str])] = &[
    (Cut::Unclaimed, &["claim.begin", "claim.written"]),
    (Cut::Claimed, &["claim.committed", "attempt.claimed", "intent.begin", "intent.written"]),
    (Cut::Intended, &["intent.committed", "rotate.calling", "request.sending"]),
    (Cut::Answered, &["answer.received", "receipt.begin", "receipt.written"]),
    (
        Cut::Kept,
        &[
            "receipt.committed",
            "answer.delivering",
            "rotate.ended",
            "validate.calling",
            "validate.ended",
            "finish.begin",
            "finish.written",
        ],
    ),
    (Cut::Reported, &["finish.committed", "attempt.finished"]),
];

/// `meta.path` of the attempt that was cut, and what is right afterwards. A burnt token can't be
/// asked for again, so what was issued and not kept is gone with the power: that is the class,
/// and the host's part is to say so and to spend nothing twice.
fn expected(cut: Cut, class: Class) -> (&'static str, End) {
    use Class::{Additive, Burn, BurnPair, CommitOnUse, Grace, Sliding};
    match (cut, class) {
        (Cut::Unclaimed, _) => ("", End::Nothing),
        (Cut::Claimed, _) => ("recovered rotate validate-pending promoted", End::Rotated),
        (Cut::Intended | Cut::Answered, Sliding | Additive | CommitOnUse) => {
            ("recovered repeat rotate validate-pending promoted", End::Rotated)
        }
        // Its old token may buy again, as long as a look shows that it lives.
        (Cut::Intended | Cut::Answered, Grace) => {
            ("recovered probe-current repeat rotate validate-pending promoted", End::Rotated)
        }
        (Cut::Intended, Burn) => ("recovered probe-current", End::Alive),
        (Cut::Answered, Burn) => ("recovered probe-current second-look", End::Human),
        // The access token lives on and says nothing of the refresh token.
        (Cut::Intended | Cut::Answered, BurnPair) => ("recovered probe-current", End::Human),
        (Cut::Kept, _) => ("recovered validate-pending promoted", End::Rotated),
        (Cut::Reported, _) => ("rotate validate-pending promoted", End::Rotated),
    }
}

#[test]
fn every_crash_point_is_cut_and_in_its_order() {
    let cut: Vec<_> = STRETCHES.iter().flat_map(|(_, points)| *points).copied().collect();
    assert_eq!(cut, POINTS);
}

/// One account of a class, its credential, and the daemon that keeps it.
struct Victim {
    class: Class,
    home: TestHome,
    services: Services,
    /// Arms the crash point.
    fuse: PathBuf,
}

/// The account at the service, and its credential.
const ID: &str = "ann";

impl Victim {
    fn of(class: Class) -> Self {
        let home = TestHome::new();
        let plugin = match class {
            Class::BurnPair => plugin("oauth2-refresh"),
            Class::Sliding => plugin("http-session"),
            _ => guest("commit_classes"),
        };
        home.drop_plugin(&plugin);
        let fuse = home.outside().join("fuse");
        Self { class, home, services: Services::start(Terms::default()), fuse }
    }

    /// Signs in at the service and adds the credential, to a daemon that runs.
    fn add(&self) {
        let keys = self.services.open(ID, self.class);
        add(&self.home, &self.services, ID, self.class, &keys, &["--every", "1h"]);
        self.home.wait_for_reports(ID, 1);
    }

    /// Starts the daemon; it dies at the point once the fuse is lit, and until then it is as any
    /// other.
    fn serve(&self, point: &str) -> Daemon {
        let fuse = self.fuse.to_str().expect("UTF-8");
        self.home.serve_in(&[("KEYWHEEL_CRASH_AT", point), ("KEYWHEEL_CRASH_ARMED_BY", fuse)])
    }

    /// Asks for a rotation and cuts it at the point. False: the scheduler came by there first,
    /// on its own errand.
    fn cut(&self, daemon: &mut Daemon, point: &str, cut: Cut) -> bool {
        let attempts = self.row()["attemptNumber"].as_u64();
        // What lies behind the request is armed by the service when it gets it: a provider may
        // ask for other things before.
        match cut {
            Cut::Unclaimed | Cut::Claimed | Cut::Intended => std::fs::write(&self.fuse, "").expect("a file"),
            Cut::Answered | Cut::Kept | Cut::Reported => self.services.alarm(self.fuse.clone()),
        }
        let asked = self.home.run(&["credential", "rotate", ID]);
        assert!(asked.code() != 0 || !is_running(daemon.pid()), "{point} was never reached: {asked:?}");
        assert_eq!(daemon.ended().signal(), Some(9), "{point}: {asked:?}");
        std::fs::remove_file(&self.fuse).expect("the fuse was lit");
        // Without a daemon the command rotates by itself.
        let claimed = self.row()["attemptNumber"].as_u64() != attempts;
        asked.code() != 0 && (claimed || cut == Cut::Unclaimed)
    }

    /// `credential show`, whether or not a daemon runs.
    fn row(&self) -> Value {
        self.home.json(&["credential", "show", ID])["credential"].clone()
    }

    /// Waits until nothing is open, and returns the reports: one for each attempt.
    fn settled(&self) -> Vec<Value> {
        let row = wait_until(SOON, "no attempt is open", || {
            Some(self.row()).filter(|row| row["openAttempt"].is_null())
        });
        let reports = self.home.reports(ID);
        let numbers: Vec<_> = reports.iter().map(|report| report["attemptNumber"].as_u64()).collect();
        let attempts = row["attemptNumber"].as_u64().expect("a number");
        assert_eq!(numbers, (1..=attempts).map(Some).collect::<Vec<_>>());
        reports
    }

    fn standing(&self) -> Standing {
        self.services.standing(ID)
    }

    /// The secret in force is the one that the service issued last, and the service takes it.
    #[track_caller]
    fn assert_has_the_newest(&self) {
        let held = exported(&self.home, ID);
        assert_eq!(held, self.standing().last_issued);
        assert!(self.services.accepts(ID, held.values()));
    }

    #[track_caller]
    fn assert_nothing_was_spent_twice(&self) {
        let standing = self.standing();
        assert_eq!((standing.double_spends, standing.revocations), (0, 0));
    }
}

/// Adds the credential of an account.
pub fn add(
    home: &TestHome,
    services: &Services,
    id: &str,
    class: Class,
    keys: &HashMap<String, String>,
    more: &[&str],
) {
    let url = services.url(class);
    let base_url = format!("base_url={url}");
    let (token_url, validate_url) = (format!("token_url={url}/token"), format!("validate_url={url}/check"));
    let (service, mut arguments) = match class {
        Class::BurnPair => (
            "oauth2-refresh",
            vec![
                "--set",
                &token_url,
                "--set",
                &validate_url,
                "--set",
                "client_id=k",
                "--set",
                "client_auth=none",
            ],
        ),
        Class::Sliding => (
            "http-session",
            vec!["--set", &base_url, "--set", "validate_path=/check", "--set", "refresh_path=/rotate"],
        ),
        _ => ("commit-classes", vec!["--set", &base_url, "--method", class.name()]),
    };
    arguments.extend(more);
    home.add(id, service, &lines(keys), &arguments);
}

/// As a person types them.
pub fn lines(keys: &HashMap<String, String>) -> String {
    keys.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// The secrets in force, by their keys.
pub fn exported(home: &TestHome, id: &str) -> HashMap<String, String> {
    let keys = home.run(&["credential", "export", id, "--format", "json"]).ok().json();
    let keys = keys.as_object().expect("an object");
    keys.iter().map(|(name, key)| (name.clone(), key["value"].as_str().expect("text").to_owned())).collect()
}

/// Cuts the power at every point in turn, with one credential that goes through all of it.
fn survives_every_cut(class: Class) {
    let victim = Victim::of(class);
    let mut daemon = victim.serve(POINTS[0]);
    victim.add();
    let points: Vec<_> =
        STRETCHES.iter().flat_map(|(cut, points)| points.iter().map(|point| (*cut, *point))).collect();
    for (number, (cut, point)) in points.iter().copied().enumerate() {
        let mut before = (victim.settled(), victim.standing());
        for tries in 1.. {
            if victim.cut(&mut daemon, point, cut) {
                break;
            }
            assert!(tries < 5, "{point}: the scheduler always comes first");
            daemon = victim.serve(point);
            before = (victim.settled(), victim.standing());
        }
        // Alive at first in the power of nobody but the next point's fuse.
        daemon = victim.serve(points.get(number + 1).map_or("", |(_, next)| next));
        let at = format!("{class:?} cut at {point}");
        eprintln!("{at}");
        assert_settled_well(&victim, &before.0, &before.1, cut, &at);
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

fn assert_settled_well(victim: &Victim, reports: &[Value], before: &Standing, cut: Cut, at: &str) {
    let (path, end) = expected(cut, victim.class);
    let after = victim.settled();
    victim.assert_nothing_was_spent_twice();
    if end == End::Nothing {
        assert_eq!(after, reports, "{at}");
        victim.assert_has_the_newest();
    } else {
        assert_eq!(after.len(), reports.len() + 1, "{at}");
        let report = after.last().expect("the report of the attempt that was cut");
        assert_eq!(report["meta"]["action"], "rotate", "{at}: {report}");
        let steps: Vec<_> = path.split(' ').collect();
        assert_eq!(report["meta"]["path"], serde_json::json!(steps), "{at}: {report}");
        let spent = victim.standing().rotations - before.rotations;
        match end {
            End::Nothing => {}
            End::Rotated => {
                assert_eq!(report["status"], "success", "{at}: {report}");
                assert_eq!(report["meta"]["rotated"], true, "{at}: {report}");
                // Only an answer that nobody kept is asked for again.
                assert_eq!(spent, if cut == Cut::Answered { 2 } else { 1 }, "{at}");
                victim.assert_has_the_newest();
            }
            End::Alive => {
                assert_eq!(report["status"], "unreachable", "{at}: {report}");
                assert_eq!(spent, u32::from(cut == Cut::Answered), "{at}");
                assert!(victim.services.accepts(ID, exported(&victim.home, ID).values()), "{at}");
                assert_eq!(victim.row()["monitor"]["nextAction"], "rotate", "{at}");
            }
            End::Human => {
                assert_eq!(report["status"], "failed", "{at}: {report}");
                assert_eq!(report["meta"]["verdict"], "needs-human", "{at}: {report}");
                assert_eq!(spent, u32::from(cut == Cut::Answered), "{at}: repeated");
                assert_eq!(victim.row()["monitor"]["nextAction"], "validate", "{at}");
                sign_in_again(victim);
            }
        }
    }
    victim.home.run(&["credential", "rotate", ID]).ok();
    victim.settled();
    victim.assert_nothing_was_spent_twice();
    victim.assert_has_the_newest();
    if victim.class == Class::Additive {
        // The one in force, its predecessor, and the one signed in with: orphans are gone.
        assert!(victim.standing().living <= 3, "{at}: {:?}", victim.standing());
    }
}

/// What a person does who was called.
fn sign_in_again(victim: &Victim) {
    let keys = victim.services.sign_in(ID);
    let reports = victim.home.reports(ID).len();
    victim.home.run_with_input(&["credential", "import", ID, "-"], &lines(&keys)).ok();
    let reports = victim.home.wait_for_reports(ID, reports + 1);
    assert_eq!(reports.last().expect("one")["status"], "success", "{reports:?}");
}

/// Where a rotation was cut, told by what its recovery says and by what the service saw until
/// then. It may only be later than the service knows, never earlier.
fn found_cut(victim: &Victim, before: &(Vec<Value>, Standing), dead: &Standing, told: bool, at: &str) -> Cut {
    let after = victim.settled();
    let asked = dead.rotations - before.1.rotations;
    let used = dead.newest_was_used && asked > 0;
    let path = after.get(before.0.len()).map(|report| report["meta"]["path"].to_string());
    let cut = match path.as_deref() {
        None => Cut::Unclaimed,
        Some(r#"["recovered","rotate","validate-pending","promoted"]"#) => Cut::Claimed,
        Some(r#"["recovered","validate-pending","promoted"]"#) => Cut::Kept,
        Some(r#"["rotate","validate-pending","promoted"]"#) => Cut::Reported,
        Some(_) if asked == 0 => Cut::Intended,
        Some(_) => Cut::Answered,
    };
    let rank = |cut| STRETCHES.iter().position(|(known, _)| *known == cut).expect("one of them");
    // A request leaves after its intent is durable, and a new secret is shown to the service
    // after its receipt is: neither order may show in what a power cut leaves.
    let at_least = match (told, used, asked) {
        (true, ..) => Cut::Reported,
        (_, true, _) => Cut::Kept,
        (_, _, 0) => Cut::Unclaimed,
        _ => Cut::Answered,
    };
    assert!(rank(cut) >= rank(at_least), "{at}: {cut:?} by its recovery, {at_least:?} by what it did");
    cut
}

#[test]
fn a_token_that_burns_survives_every_power_cut_or_calls_a_human() {
    survives_every_cut(Class::Burn);
}

#[test]
fn a_token_with_a_grace_period_survives_every_power_cut() {
    survives_every_cut(Class::Grace);
}

#[test]
fn a_token_committed_by_its_use_survives_every_power_cut() {
    survives_every_cut(Class::CommitOnUse);
}

#[test]
fn an_added_token_survives_every_power_cut_and_its_orphans_do_not() {
    survives_every_cut(Class::Additive);
}

#[test]
fn a_sliding_session_survives_every_power_cut() {
    survives_every_cut(Class::Sliding);
}

/// Kills the daemon at writes and syncs of its database, counted from the moment a rotation is
/// asked for, and starts the next one on what a power cut would have left of the files. From
/// the first that it is told on, and on by a stride, until a rotation runs through.
fn survives_every_cut_of_its_writes(class: Class, first: u64, stride: usize) {
    let victim = Victim::of(class);
    let faults = Faults::of(&victim.home);
    faults.keep_images();
    let mut daemon = victim.home.serve_in(&faults.environment());
    victim.add();
    let mut number = first;
    loop {
        let before = (victim.settled(), victim.standing());
        // Before every other one, after the rest: both ends of a sync come by in some class.
        let moment = if number.is_multiple_of(2) { Moment::Before } else { Moment::After };
        faults.kill_at(number, moment);
        let asked = victim.home.run(&["credential", "rotate", ID]);
        if asked.code() == 0 && is_running(daemon.pid()) {
            break;
        }
        assert_eq!(daemon.ended().signal(), Some(9), "write {number}: {asked:?}");
        let dead = victim.standing();
        faults.cut_power();
        daemon = victim.home.serve_in(&faults.environment());
        let at = format!("{class:?} cut {moment:?} write {number}");
        let cut = found_cut(&victim, &before, &dead, asked.code() == 0, &at);
        assert_settled_well(&victim, &before.0, &before.1, cut, &at);
        eprintln!("{at}: {cut:?}");
        number += stride as u64;
    }
    // Four commits of a few pages each: with fewer writes nothing was cut.
    assert!(number > 24, "{class:?}: a rotation makes only {number} writes");
    faults.kill_at(0, Moment::Before);
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_token_that_burns_survives_a_power_cut_at_every_write() {
    survives_every_cut_of_its_writes(Class::Burn, 1, 1);
}

#[test]
fn a_refresh_token_survives_every_power_cut_or_calls_a_human() {
    survives_every_cut(Class::BurnPair);
}

#[test]
fn a_refresh_token_survives_a_power_cut_at_its_writes() {
    survives_every_cut_of_its_writes(Class::BurnPair, 2, 3);
}

/// The access token outlives the refresh token that bought it, so that a credential which looks
/// well may hold a spent one. Sending that again would end the whole family.
#[test]
fn a_refresh_token_that_may_be_spent_is_never_sent_again_by_itself() {
    let victim = Victim::of(Class::BurnPair);
    let mut daemon = victim.serve("receipt.begin");
    let keys = victim.services.open(ID, victim.class);
    // A rotation falls due with every look.
    let often = ["--every", "1s", "--rotate-every", "1s"];
    victim.services.alarm(victim.fuse.clone());
    add(&victim.home, &victim.services, ID, victim.class, &keys, &often);
    assert_eq!(daemon.ended().signal(), Some(9));
    std::fs::remove_file(&victim.fuse).expect("the fuse was lit");
    let before = victim.home.reports(ID).len();
    let _daemon = victim.serve("");
    let reports = victim.home.wait_for_reports(ID, before + 1);
    assert_eq!(reports[before]["meta"]["verdict"], "needs-human", "{}", reports[before]);
    // Whoever asks finds the access token well, and then the schedule looks again as well.
    for _ in 0..3 {
        victim.home.run(&["credential", "validate", ID]);
    }
    let reports = victim.home.wait_for_reports(ID, before + 5);
    let spent = |report: &Value| report["meta"]["path"].to_string().contains("\"rotate\"");
    assert!(!reports.iter().any(spent), "{reports:#?}");
    assert_eq!(victim.standing().rotations, 1);
    victim.assert_nothing_was_spent_twice();
    // New secrets end that, and the schedule rotates again.
    let keys = victim.services.sign_in(ID);
    wait_until(SOON, "no attempt is in the way of the import", || {
        let import = victim.home.run_with_input(&["credential", "import", ID, "-"], &lines(&keys));
        (import.code() == 0).then_some(())
    });
    wait_until(SOON, "the schedule rotates", || (victim.standing().rotations > 1).then_some(()));
    victim.assert_nothing_was_spent_twice();
}

#[test]
fn a_person_may_send_a_refresh_token_in_doubt_again_and_only_by_saying_so() {
    let victim = Victim::of(Class::BurnPair);
    // Cut before the request leaves: nothing is spent, and nobody can know.
    let mut daemon = victim.serve("request.sending");
    let keys = victim.services.open(ID, victim.class);
    add(&victim.home, &victim.services, ID, victim.class, &keys, &["--every", "12h"]);
    victim.home.wait_for_reports(ID, 1);
    std::fs::write(&victim.fuse, "").expect("the fuse is lit");
    let cut_off = victim.home.run(&["credential", "rotate", ID]);
    assert_ne!(cut_off.code(), 0, "{cut_off:?}");
    assert_eq!(daemon.ended().signal(), Some(9));
    std::fs::remove_file(&victim.fuse).expect("the fuse was lit");
    let _daemon = victim.serve("");
    let reports = victim.home.wait_for_reports(ID, 2);
    assert_eq!(reports[1]["meta"]["verdict"], "needs-human", "{}", reports[1]);
    assert_eq!(reports[1]["meta"]["inDoubt"], true, "{}", reports[1]);
    let asked = victim.home.run(&["credential", "rotate", ID]);
    assert_eq!(asked.code(), 1, "{asked:?}");
    assert!(format!("{asked:?}").contains("--now"), "{asked:?}");
    assert_eq!(victim.standing().rotations, 0);
    victim.home.run(&["credential", "rotate", ID, "--now"]).ok();
    assert_eq!(victim.standing().rotations, 1);
    let last = victim.home.reports(ID).pop().expect("a report");
    assert_eq!(last["meta"]["inDoubt"], Value::Null, "{last}");
    victim.assert_nothing_was_spent_twice();
}

/// The database is written alike for every class, so between them these come by every write.
#[test]
fn the_other_classes_survive_a_power_cut_at_their_writes() {
    let others = [Class::Grace, Class::CommitOnUse, Class::Additive, Class::Sliding];
    std::thread::scope(|scope| {
        for (first, class) in (1..).zip(others) {
            scope.spawn(move || survives_every_cut_of_its_writes(class, first, others.len()));
        }
    });
}
