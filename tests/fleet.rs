//! Three hosts on one PostgreSQL, each in a network of its own, with one service between them that
//! burns a secret when it is spent. Hosts are killed, stopped past their lease, cut off from the
//! store, from the services or from both, their wall clocks are a minute apart, and the store itself
//! crashes. At the end the services' books and the reports must agree, as in `soak`: nothing was
//! spent twice, nothing issued is lost, whatever was due was done.
//!
//! Where no network can be made it says so and ends (`machines`).

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::shim::Faults;
use crate::harness::*;
use crate::machines::{self, Machine, Network};
use crate::postgres_server::Postgres;
use crate::power_cut::{add, exported, lines};
use crate::services::{Class, Services, Terms};
use crate::soak::{Dice, from_environment};

const HOSTS: usize = 3;

/// In a test run; `FLEET_SECONDS` says otherwise, and `FLEET_BALLAST` how many credentials wait beside.
const SHORT: u64 = 30;

const CREDENTIALS: usize = 60;

/// A lease, for which a test needn't wait a minute.
const LEASE: Duration = Duration::from_secs(6);

const SLOWEST_ANSWER: Duration = Duration::from_millis(60);

const SETTLED: Duration = Duration::from_secs(180);

/// What is done to a host, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Killed,
    Stopped,
    CutFromStore,
    /// It is heard there, and hears nothing.
    StoreUnheard,
    CutFromServices,
    CutFromBoth,
}

const TROUBLES: [Trouble; 6] = [
    Trouble::Killed,
    Trouble::Stopped,
    Trouble::CutFromStore,
    Trouble::StoreUnheard,
    Trouble::CutFromServices,
    Trouble::CutFromBoth,
];

struct Fleet {
    homes: Vec<TestHome>,
    /// Each host's wall clock: a minute behind, right, a minute ahead.
    clocks: Vec<Faults>,
    daemons: Vec<Option<Daemon>>,
    network: Network,
    /// One for each host, then the store's and the services'.
    machines: Vec<Machine>,
    shop: Machine,
    store_at: Machine,
    services: Services,
    store: Postgres,
    credentials: Vec<(String, Class)>,
    called: BTreeMap<String, u32>,
    lost: Vec<String>,
}

impl Fleet {
    fn start(network: Network) -> Self {
        let (store_at, shop) = (network.machine(), network.machine());
        let machines: Vec<Machine> = (0..HOSTS).map(|_| network.machine()).collect();
        let store = store_at.postgres(&[]);
        store.with_database("keywheel");
        let address: Ipv4Addr = shop.address.parse().expect("an address");
        let services = shop.run(move || Services::start_at(address, Terms::default()));
        services.answer_within(SLOWEST_ANSWER);
        let url = store_at.url("keywheel");
        let homes: Vec<TestHome> = (0..HOSTS)
            .map(|host| {
                let home = TestHome::without_init().in_network(&machines[host].space);
                std::fs::create_dir_all(home.path()).expect("a folder");
                // Nothing that is secret travels here but between test processes.
                let text =
                    format!("[store]\nurl = \"{url}\"\ntls = \"disable\"\n[host]\nname = \"host-{host}\"\n");
                std::fs::write(home.path().join("config.toml"), text).expect("a configuration");
                home
            })
            .collect();
        homes[0].run(&["init"]).ok();
        for other in &homes[1..] {
            std::fs::create_dir_all(other.path().join("plugins")).expect("a folder");
            std::fs::copy(homes[0].path().join("master.key"), other.path().join("master.key"))
                .expect("the key is shared");
        }
        let clocks: Vec<Faults> = homes.iter().map(Faults::of).collect();
        for (minutes, clock) in (-1..).zip(&clocks) {
            clock.set_clock(minutes * 60);
        }
        // One class that forgives nothing, and one that forgives a while.
        let classes = [Class::Burn, Class::BurnPair, Class::Burn, Class::Grace];
        let credentials = classes.iter().cycle().take(CREDENTIALS);
        let credentials =
            credentials.enumerate().map(|(number, class)| (format!("{}-{number}", class.name()), *class));
        let credentials = credentials.collect();
        let daemons = homes.iter().map(|_| None).collect();
        Self {
            homes,
            clocks,
            daemons,
            network,
            machines,
            shop,
            store_at,
            services,
            store,
            credentials,
            called: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    fn start_host(&mut self, host: usize) {
        let lease = LEASE.as_millis().to_string();
        let mut environment = self.clocks[host].environment().to_vec();
        environment.push(("KEYWHEEL_LEASE_MS", &lease));
        self.daemons[host] = Some(self.homes[host].start_daemon_with(&environment));
    }

    fn wait_for_host(&self, host: usize) {
        wait_until(3 * SOON, "the daemon answers", || {
            let status = self.homes[host].run(&["status", "--json"]);
            (status.code() <= 1 && status.json()["daemon"] == true).then_some(())
        });
    }

    fn trouble(&mut self, host: usize, trouble: Trouble) {
        match trouble {
            Trouble::Killed => {
                if let Some(daemon) = self.daemons[host].take() {
                    daemon.kill_9();
                }
            }
            Trouble::Stopped => machines::stop(self.daemons[host].as_ref().expect("it runs")),
            Trouble::CutFromStore => self.network.cut(&self.machines[host], &self.store_at),
            Trouble::StoreUnheard => self.network.cut_one_way(&self.store_at, &self.machines[host]),
            Trouble::CutFromServices => self.network.cut(&self.machines[host], &self.shop),
            Trouble::CutFromBoth => self.network.isolate(&self.machines[host]),
        }
    }

    fn end_trouble(&mut self, host: usize, trouble: Trouble) {
        match trouble {
            Trouble::Killed => self.start_host(host),
            Trouble::Stopped => machines::go_on(self.daemons[host].as_ref().expect("it runs")),
            // All that was cut: troubles end together.
            _ => self.network.heal(),
        }
    }

    /// As a person sees them, by way of any host whose store can be asked.
    fn rows(&self, by: usize) -> Vec<Value> {
        let of = |service| self.homes[by].json(&["credential", "list", "--service", service]);
        ["commit-classes", "oauth2-refresh"]
            .into_iter()
            .flat_map(|service| of(service).as_array().expect("an array").clone())
            .collect()
    }

    /// As many credentials of a third service that wait for their day, among which those that are due
    /// must be found.
    fn lay_ballast(&self, count: u64) {
        self.store.sql(
            "keywheel",
            &format!(
                "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
                     current_generation, last_generation, rotated_at, created_at)
                 SELECT 'ballast-' || n, 'http-session', '[]', '[]', 1, 1, 0, 0
                 FROM generate_series(1, {count}) n;
                 INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict,
                     last_success_at, next_due_at, next_action, next_reason)
                 SELECT 'ballast-' || n, 'http-session', 'success', 'valid', 0,
                     (extract(epoch FROM now()) * 1000)::bigint + 86400000 + n, 'validate', 'its turn'
                 FROM generate_series(1, {count}) n"
            ),
        );
    }

    /// Signs in again for whom a person is called, by way of a host that is well.
    fn be_the_human(&mut self, by: usize, after_all: bool) {
        for row in self.rows(by) {
            let verdict = row["monitor"]["lastVerdict"].as_str();
            if !row["openAttempt"].is_null() || !matches!(verdict, Some("needs-human" | "invalid")) {
                continue;
            }
            let id = row["credentialId"].as_str().expect("an id").to_owned();
            let class = self.credentials.iter().find(|(known, _)| *known == id).expect("ours").1;
            let standing = self.services.standing(&id);
            let held = exported(&self.homes[by], &id);
            let burns = matches!(class, Class::Burn | Class::BurnPair);
            let why = if held == standing.last_issued && class == Class::BurnPair {
                "its answer may have been cut off"
            } else if burns && held != standing.last_issued && !standing.newest_was_used {
                // It may still lie with a host that is away: nobody signs in before all are back.
                if !after_all {
                    continue;
                }
                "its answer was cut off"
            } else {
                if !after_all {
                    continue;
                }
                let message = row["monitor"]["lastMessage"].as_str().unwrap_or_default();
                self.lost.push(format!("{id} called a human: {message}; {standing:?}; {row}"));
                "lost"
            };
            let keys = self.services.sign_in(&id);
            let import = self.homes[by].run_with_input(&["credential", "import", &id, "-"], &lines(&keys));
            if import.code() == 0 {
                *self.called.entry(format!("{}: {why}", class.name())).or_default() += 1;
            }
        }
    }
}

#[test]
fn three_hosts_spend_nothing_twice_and_lose_nothing_whatever_happens_to_two_of_them() {
    let Some(network) = Network::new() else { return };
    let seconds = from_environment("FLEET_SECONDS").unwrap_or(SHORT);
    let seed = from_environment("FLEET_SEED")
        .unwrap_or_else(|| u64::from_str_radix(&random_secret()[..12], 16).expect("hexadecimal"));
    eprintln!("three hosts for {seconds} s with FLEET_SEED={seed}");
    let mut dice = Dice(seed);
    let mut fleet = Fleet::start(network);
    for file in [plugin("oauth2-refresh"), plugin("http-session"), guest("commit_classes")] {
        for home in &fleet.homes {
            home.drop_plugin(&file);
        }
    }
    for host in 0..HOSTS {
        fleet.start_host(host);
    }
    for host in 0..HOSTS {
        fleet.wait_for_host(host);
    }
    // What a log says of the time is a host's own clock.
    let log = fleet.daemons[0].as_ref().expect("it runs").log();
    let half_a_minute_ago = keywheel::report::iso8601(keywheel::credential::now() - 30_000);
    assert!(
        log.lines().next().is_some_and(|line| line < half_a_minute_ago.as_str()),
        "its clock is right: {log}"
    );
    let private = fleet.shop.address.clone();
    for (id, class) in &fleet.credentials {
        let keys = fleet.services.open(id, *class);
        let often = ["--every", "1s", "--rotate-every", "2s", "--allow-private", &private];
        add(&fleet.homes[0], &fleet.services, id, *class, &keys, &often);
    }
    fleet.lay_ballast(from_environment("FLEET_BALLAST").unwrap_or(2_000));
    let begun = Instant::now();
    let mut troubles: BTreeMap<String, u32> = BTreeMap::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Two of three may be in trouble at once, and one is well.
        let first = dice.roll(HOSTS as u64) as usize;
        let second = (first + 1 + dice.roll(HOSTS as u64 - 1) as usize) % HOSTS;
        let well = (0..HOSTS).find(|host| *host != first && *host != second).expect("one of three");
        let count = 1 + dice.roll(2) as usize;
        let chosen: Vec<(usize, Trouble)> = [first, second][..count]
            .iter()
            .map(|host| (*host, TROUBLES[dice.roll(TROUBLES.len() as u64) as usize]))
            .collect();
        for (host, trouble) in &chosen {
            fleet.trouble(*host, *trouble);
            *troubles.entry(format!("{trouble:?}")).or_default() += 1;
        }
        // Half of them for longer than a lease.
        let lasts = Duration::from_millis(500 + dice.roll(2 * LEASE.as_millis() as u64));
        let end = Instant::now() + lasts;
        if dice.roll(6) == 0 {
            fleet.store.crash();
            *troubles.entry(String::from("StoreCrashed")).or_default() += 1;
        } else {
            fleet.be_the_human(well, false);
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        for (host, trouble) in chosen {
            fleet.end_trouble(host, trouble);
        }
        std::thread::sleep(Duration::from_millis(dice.roll(2_000)));
    }
    settle(&mut fleet);
    report(fleet, seed, begun.elapsed(), &troubles);
}

/// Waits until everybody is well without further trouble, then stops them all.
fn settle(fleet: &mut Fleet) {
    for host in 0..HOSTS {
        fleet.wait_for_host(host);
    }
    let from = keywheel::report::iso8601(keywheel::credential::now());
    let end = Instant::now() + SETTLED;
    // What a host brings back late is tested first.
    let patience = Instant::now() + 3 * LEASE + Duration::from_secs(20);
    loop {
        fleet.be_the_human(0, Instant::now() > patience);
        let unwell: Vec<_> = fleet
            .rows(0)
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
            fleet.lost.extend(unwell.iter().map(|row| format!("unwell: {row}")));
            break;
        }
    }
    for (id, _) in &fleet.credentials {
        fleet.homes[0].run(&["credential", "pause", id]).ok();
    }
    wait_until(2 * SOON, "no attempt is open", || {
        fleet.rows(0).iter().all(|row| row["openAttempt"].is_null()).then_some(())
    });
}

fn report(mut fleet: Fleet, seed: u64, took: Duration, troubles: &BTreeMap<String, u32>) {
    let (mut attempts, mut rotations, mut double_spent, mut revoked) = (0, 0, 0, 0);
    let (mut duplicates, mut missing) = (0, 0);
    for row in fleet.rows(1) {
        let id = row["credentialId"].as_str().expect("an id").to_owned();
        let standing = fleet.services.standing(&id);
        let held = exported(&fleet.homes[2], &id);
        if held != standing.last_issued || !fleet.services.accepts(&id, held.values()) {
            fleet.lost.push(format!("{id} holds another secret than its service: {standing:?}, {row}"));
        }
        rotations += standing.rotations;
        double_spent += standing.double_spends;
        revoked += standing.revocations;
        let number = row["attemptNumber"].as_u64().expect("a number");
        attempts += number;
        let list = fleet.homes[0].json(&["reports", "list", "--credential", &id, "--limit", "10000"]);
        let numbers =
            list.as_array().expect("an array").iter().map(|report| report["attemptNumber"].as_u64());
        let numbers: Vec<_> = numbers.map(|number| number.expect("a number")).collect();
        let different: HashSet<_> = numbers.iter().copied().collect();
        duplicates += numbers.len() - different.len();
        missing += (1..=number).filter(|number| !different.contains(number)).count();
    }
    for daemon in fleet.daemons.iter_mut().filter_map(Option::take) {
        assert_eq!(daemon.stop().code(), Some(0));
    }
    let summary = json!({
        "seed": seed, "seconds": took.as_secs(), "hosts": HOSTS, "credentials": fleet.credentials.len(),
        "attempts": attempts, "rotations": rotations, "troubles": troubles,
        "lost": fleet.lost.len(), "double_spent": double_spent, "revoked": revoked,
        "duplicate_reports": duplicates, "missing_reports": missing, "needs_human": fleet.called,
    });
    eprintln!("{summary}");
    assert_eq!(fleet.lost, Vec::<String>::new());
    assert_eq!((double_spent, revoked, duplicates, missing), (0, 0, 0, 0), "{summary}");
    assert!(rotations > fleet.credentials.len() as u32, "hardly anything happened: {summary}");
}

/// Two servers as an operator names them, the first of which is lost with all it had in memory.
#[test]
fn hosts_go_on_where_a_synchronous_standby_takes_over_and_nothing_acknowledged_is_gone() {
    const ACCOUNTS: usize = 12;
    let primary = Postgres::start();
    primary.with_database("keywheel");
    let standby = primary.standby(true);
    let folder = |server: &Postgres| {
        server.socket().parent().and_then(std::path::Path::to_str).expect("UTF-8").replace('/', "%2F")
    };
    let url = format!("postgres://keywheel@{},{}/keywheel", folder(&primary), folder(&standby));
    let homes = [TestHome::without_init().with_store(&url), TestHome::without_init().with_store(&url)];
    homes[0].run(&["init"]).ok();
    std::fs::create_dir_all(homes[1].path()).expect("a folder");
    std::fs::copy(homes[0].path().join("master.key"), homes[1].path().join("master.key"))
        .expect("the key is shared");
    homes[0].drop_plugin(&guest("commit_classes"));
    let services = Services::start(Terms::default());
    services.answer_within(SLOWEST_ANSWER);
    let lease = LEASE.as_millis().to_string();
    let daemons: Vec<Daemon> =
        homes.iter().map(|home| home.serve_in(&[("KEYWHEEL_LEASE_MS", &lease)])).collect();
    let ids: Vec<String> = (0..ACCOUNTS).map(|number| format!("burn-{number}")).collect();
    for id in &ids {
        let keys = services.open(id, Class::Burn);
        add(&homes[0], &services, id, Class::Burn, &keys, &["--every", "1s", "--rotate-every", "1s"]);
    }
    let all_rotate = |times: u32| {
        let from: Vec<u32> = ids.iter().map(|id| services.standing(id).rotations).collect();
        wait_until(3 * SOON, "every account is rotated", || {
            let done =
                ids.iter().zip(&from).all(|(id, from)| services.standing(id).rotations >= from + times);
            done.then_some(())
        });
    };
    all_rotate(2);
    primary.stop();
    standby.promote();
    all_rotate(3);
    for id in &ids {
        homes[1].run(&["credential", "pause", id]).ok();
    }
    let rows = || homes[1].json(&["credential", "list"]).as_array().expect("an array").clone();
    wait_until(2 * SOON, "no attempt is open", || {
        rows().iter().all(|row| row["openAttempt"].is_null()).then_some(())
    });
    for id in &ids {
        let standing = services.standing(id);
        assert_eq!((standing.double_spends, standing.revocations), (0, 0), "{id}: {standing:?}");
        assert_eq!(exported(&homes[0], id), standing.last_issued, "{id}");
    }
    for daemon in daemons {
        assert_eq!(daemon.stop().code(), Some(0));
    }
}
