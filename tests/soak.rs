//! Random kills under full load: credentials of every commit class rotate as fast as they may,
//! the daemon and its workers are killed with SIGKILL at random moments, and a person signs in
//! again where one is called. At the end the services' books and the reports must agree: nothing
//! issued is lost, nothing was spent twice, each attempt has one report.
//!
//! A test run soaks for some seconds; `make soak` for SOAK_SECONDS, ten minutes unless it says
//! otherwise. SOAK_SEED repeats the kills of an earlier run, as far as a machine repeats itself.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::*;
use crate::power_cut::{add, exported, lines};
use crate::services::{Class, Services, Terms};

/// In a test run.
const SHORT: u64 = 20;

const CREDENTIALS: usize = 120;

/// The longest that a service takes to answer, after its effect: the longer, the more kills fall
/// between the two.
const SLOWEST_ANSWER: Duration = Duration::from_millis(60);

/// A service is parked by its fifth crash within ten minutes, unless the daemon starts anew.
const WORKER_KILLS_OF_ONE_DAEMON: u32 = 3;

/// For backoffs that kills in a row have grown.
const SETTLED: Duration = Duration::from_secs(120);

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

#[derive(Default)]
struct Tally {
    daemon_kills: u32,
    worker_kills: u32,
    /// What a person was called for, by class and reason.
    called: BTreeMap<String, u32>,
    /// What is not as it must be, in words.
    lost: Vec<String>,
}

struct Soak {
    home: TestHome,
    services: Services,
    credentials: Vec<(String, Class)>,
    tally: Tally,
}

impl Soak {
    /// Opens an account of each class in turn and adds its credential.
    fn start() -> Self {
        let home = TestHome::new();
        for file in [plugin("oauth2-refresh"), plugin("http-session"), guest("commit_classes")] {
            home.drop_plugin(&file);
        }
        let services = Services::start(Terms::default());
        services.answer_within(SLOWEST_ANSWER);
        let classes = Class::ALL.iter().cycle().take(CREDENTIALS);
        let credentials =
            classes.enumerate().map(|(number, class)| (format!("{}-{number}", class.name()), *class));
        Self { home, services, credentials: credentials.collect(), tally: Tally::default() }
    }

    fn add_all(&self) {
        let quarter = self.credentials.len().div_ceil(4);
        std::thread::scope(|scope| {
            for some in self.credentials.chunks(quarter) {
                scope.spawn(|| {
                    for (number, (id, class)) in some.iter().enumerate() {
                        // Sites either renew a session's value or its end alone.
                        let keys = match class {
                            Class::Sliding if number % 2 == 0 => self.services.open_keeping(id),
                            class => self.services.open(id, *class),
                        };
                        let often = ["--every", "1s", "--rotate-every", "2s"];
                        add(&self.home, &self.services, id, *class, &keys, &often);
                    }
                });
            }
        });
    }

    fn rows(&self) -> Vec<Value> {
        self.home.json(&["credential", "list"]).as_array().expect("an array").clone()
    }

    /// The paths of a credential's attempts since the last that brought a new secret, newest
    /// first.
    fn paths_since_the_last_rotation(&self, id: &str) -> Vec<Value> {
        let reports = self.home.json(&["reports", "list", "--credential", id, "--limit", "100"]);
        let reports = reports.as_array().expect("an array");
        let since = reports.iter().take_while(|report| report["meta"]["rotated"] != true);
        since.map(|report| report["meta"]["path"].clone()).collect()
    }

    /// Does for everybody who needs one what a person does: signs in again. Returns how many
    /// needed one.
    fn be_the_human(&mut self) -> usize {
        let rows = self.rows();
        let calls = rows.iter().filter(|row| {
            row["openAttempt"].is_null()
                && matches!(row["monitor"]["lastVerdict"].as_str(), Some("needs-human" | "invalid"))
        });
        let mut called = 0;
        for row in calls {
            called += 1;
            let id = row["credentialId"].as_str().expect("an id");
            let class = self.credentials.iter().find(|(known, _)| known == id).expect("ours").1;
            let standing = self.services.standing(id);
            let held = exported(&self.home, id);
            // The worker's death is no excuse: the host hears the answer in its place. The
            // attempt that was cut may have ended in doubt, and a later one have called.
            let paths = self.paths_since_the_last_rotation(id);
            let unheard = held != standing.last_issued
                && !standing.newest_was_used
                && paths.iter().any(|path| path[0] == "recovered");
            let message = row["monitor"]["lastMessage"].as_str().unwrap_or_default();
            let why = match class {
                // The answer went down with the daemon, before anything of it was used.
                Class::Burn | Class::BurnPair if unheard => "its answer was cut off",
                // Whether the refresh token was spent, nobody can know.
                Class::BurnPair if held == standing.last_issued => "its answer may have been cut off",
                _ => {
                    self.tally.lost.push(format!("{id} called a human: {message}; {standing:?}, {paths:?}"));
                    "lost"
                }
            };
            let keys = self.services.sign_in(id);
            let import = self.home.run_with_input(&["credential", "import", id, "-"], &lines(&keys));
            // Refused while an attempt is open: a person tries again, and so does this one.
            if import.code() == 0 {
                *self.tally.called.entry(format!("{}: {why}", class.name())).or_default() += 1;
            }
        }
        called
    }

    /// Kills the worker of some service. None: all have had their share.
    fn kill_a_worker(&mut self, dice: &mut Dice, killed: &mut BTreeMap<String, u32>) -> Option<()> {
        let status = self.home.json(&["status"]);
        let workers = status["workers"].as_array().expect("an array");
        let spared = |service: &str| killed.get(service).is_none_or(|&n| n < WORKER_KILLS_OF_ONE_DAEMON);
        let workers: Vec<_> = workers
            .iter()
            .filter_map(|worker| Some((worker["service"].as_str()?, worker["pid"].as_u64()?)))
            .filter(|(service, _)| spared(service))
            .collect();
        let (service, pid) = workers.get(dice.roll(workers.len().max(1) as u64) as usize)?;
        let pid = u32::try_from(*pid).expect("a pid");
        // It may have ended by itself meanwhile.
        if is_running(pid) {
            kill_9(pid);
            self.tally.worker_kills += 1;
        }
        *killed.entry((*service).to_owned()).or_default() += 1;
        Some(())
    }

    /// Waits until everybody is well without another kill, then stops them all.
    fn settle(&mut self) {
        let from = keywheel::report::iso8601(keywheel::credential::now());
        let end = Instant::now() + SETTLED;
        loop {
            self.be_the_human();
            let unwell: Vec<_> = self
                .rows()
                .into_iter()
                .filter(|row| {
                    let monitor = &row["monitor"];
                    let since = monitor["lastSuccessAt"].as_str().unwrap_or_default();
                    monitor["lastStatus"] != "success" || since <= from.as_str()
                })
                .collect();
            if unwell.is_empty() {
                break;
            }
            if Instant::now() > end {
                self.tally.lost.extend(unwell.iter().map(|row| format!("unwell: {row}")));
                break;
            }
        }
        for (id, _) in &self.credentials {
            self.home.run(&["credential", "pause", id]).ok();
        }
        wait_until(SOON, "no attempt is open", || {
            self.rows().iter().all(|row| row["openAttempt"].is_null()).then_some(())
        });
    }
}

#[test]
fn random_kills_under_full_load_lose_nothing_and_spend_nothing_twice() {
    let seconds = from_environment("SOAK_SECONDS").unwrap_or(SHORT);
    let seed = from_environment("SOAK_SEED")
        .unwrap_or_else(|| u64::from_str_radix(&random_secret()[..12], 16).expect("hexadecimal"));
    eprintln!("soaking {seconds} s with SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    let mut soak = Soak::start();
    let mut daemon = soak.home.serve();
    soak.add_all();
    let begun = Instant::now();
    let mut workers_killed = BTreeMap::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let pause = Duration::from_millis(400 + dice.roll(1_600));
        let next = Instant::now() + pause;
        soak.be_the_human();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        if dice.roll(3) == 0 && soak.kill_a_worker(&mut dice, &mut workers_killed).is_some() {
            continue;
        }
        daemon.kill_9();
        soak.tally.daemon_kills += 1;
        workers_killed.clear();
        daemon = soak.home.serve();
    }
    let kills = soak.tally.daemon_kills + soak.tally.worker_kills;
    soak.settle();
    assert_eq!(daemon.stop().code(), Some(0));

    let (mut attempts, mut rotations, mut double_spent, mut revoked) = (0, 0, 0, 0);
    let (mut duplicates, mut missing) = (0, 0);
    for row in soak.rows() {
        let id = row["credentialId"].as_str().expect("an id");
        let standing = soak.services.standing(id);
        let held = exported(&soak.home, id);
        if held != standing.last_issued || !soak.services.accepts(id, held.values()) {
            soak.tally.lost.push(format!("{id} holds another secret than its service: {standing:?}, {row}"));
        }
        rotations += standing.rotations;
        double_spent += standing.double_spends;
        revoked += standing.revocations;
        let number = row["attemptNumber"].as_u64().expect("a number");
        attempts += number;
        let list = soak.home.json(&["reports", "list", "--credential", id, "--limit", "10000"]);
        let numbers =
            list.as_array().expect("an array").iter().map(|report| report["attemptNumber"].as_u64());
        let numbers: Vec<_> = numbers.map(|number| number.expect("a number")).collect();
        let different: HashSet<_> = numbers.iter().copied().collect();
        duplicates += numbers.len() - different.len();
        missing += (1..=number).filter(|number| !different.contains(number)).count();
    }
    let summary = json!({
        "seed": seed,
        "seconds": begun.elapsed().as_secs(),
        "credentials": soak.credentials.len(),
        "attempts": attempts,
        "rotations": rotations,
        "kills": kills,
        "daemon_kills": soak.tally.daemon_kills,
        "worker_kills": soak.tally.worker_kills,
        "lost": soak.tally.lost.len(),
        "double_spent": double_spent,
        "revoked": revoked,
        "duplicate_reports": duplicates,
        "missing_reports": missing,
        "needs_human": soak.tally.called,
    });
    eprintln!("{summary}");
    assert_eq!(soak.tally.lost, Vec::<String>::new());
    assert_eq!((double_spent, revoked, duplicates, missing), (0, 0, 0, 0), "{summary}");
    assert!(rotations > soak.credentials.len() as u32, "hardly anything happened: {summary}");
    // The measure: two hundred in ten minutes.
    assert!(u64::from(kills) >= seconds / 3, "too few kills: {summary}");
}
