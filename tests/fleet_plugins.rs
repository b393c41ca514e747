//! Plugins where several hosts share one store: each has its own folder, and all of them do what
//! the store says. What comes by one host serves on every host, is approved on any, and is undone
//! by no file that merely lies in another host's folder.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::harness::*;
use crate::plugins::{in_folder, listed, patched, text};
use crate::postgres_server::Postgres;

/// Hosts of one store; the first of them made it.
struct Fleet {
    first: TestHome,
    second: TestHome,
    server: Postgres,
}

impl Fleet {
    fn new() -> Self {
        let server = Postgres::start();
        let first = home_on(&server.with_database("keywheel"));
        first.run(&["init"]).ok();
        let second = join(&first, &server.url("keywheel"));
        Self { first, second, server }
    }

    fn hosts(&self) -> [&TestHome; 2] {
        [&self.first, &self.second]
    }

    /// A host more, whose daemon never ran.
    fn another(&self) -> TestHome {
        join(&self.first, &self.server.url("keywheel"))
    }

    /// Waits until every host answers for ann with this plugin.
    #[track_caller]
    fn wait_until_all_serve(&self, digest: &str) {
        for host in self.hosts() {
            wait_until_it_serves(host, digest);
        }
    }
}

/// It looks at its folder and at the store every second, besides when it is told to.
const CONFIG: &str = "rescan_seconds = 1\n";

fn home_on(url: &str) -> TestHome {
    let home = TestHome::without_init().with_store(url);
    fs::create_dir_all(home.path()).expect("a folder");
    fs::write(home.path().join("config.toml"), CONFIG).expect("the configuration");
    home
}

/// A home for the same store and the same secrets.
fn join(first: &TestHome, url: &str) -> TestHome {
    let home = home_on(url);
    fs::create_dir(home.path().join("plugins")).expect("a folder");
    fs::copy(first.path().join("master.key"), home.path().join("master.key")).expect("the key");
    home
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// Writes a file as an installer does: whole, by a rename.
fn put(home: &TestHome, name: &str, bytes: &[u8]) {
    let beside = in_folder(home, ".next");
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, in_folder(home, name))).expect("a file");
}

/// A version of `well-behaved` that asks for what all of them ask for.
fn version(number: usize) -> Vec<u8> {
    patched(&guest("well_behaved"), "A guest of the tests", &format!("A guest, number {number:04}"))
}

/// The digest of the plugin that answers for ann; none: nobody serves her.
fn serving(home: &TestHome) -> Option<String> {
    let report = home.run(&["credential", "validate", "ann", "--json"]);
    if report.code() != 0 {
        return None;
    }
    Some(text(&report.json()["meta"], "plugin").to_owned())
}

#[track_caller]
fn wait_until_it_serves(home: &TestHome, digest: &str) {
    wait_until(SOON, &format!("{digest} serves"), || (serving(home)? == digest).then_some(()));
}

/// The state of a file of a host's own folder, by a look at it now.
#[track_caller]
fn state_of(home: &TestHome, file: &str) -> String {
    let all = listed(home);
    let found = all.iter().find(|plugin| plugin["file"] == file && plugin["elsewhere"].is_null());
    text(found.unwrap_or_else(|| panic!("no {file} in {all:?}")), "state").to_owned()
}

/// How often something was decided.
fn decided(home: &TestHome, action: &str) -> usize {
    let rows = home.json(&["plugin", "history", "--limit", "500"]);
    rows.as_array().expect("an array").iter().filter(|row| row["action"] == action).count()
}

/// The plugin that a host runs for a service, as `status` shows it, without asking anybody.
fn in_use(home: &TestHome) -> Option<Value> {
    let status = home.json(&["status"]);
    let plugins = status["plugins"].as_array().expect("an array");
    let of = plugins.iter().find(|plugin| plugin["service"] == "well-behaved")?;
    of["inUse"].get("digest").cloned()
}

#[test]
fn an_old_file_in_one_folder_undoes_no_update_that_came_by_another_host() {
    let (fleet, service) = (Fleet::new(), Service::start(OldSession::Stays));
    let [a, b] = fleet.hosts();
    let versions: Vec<_> = (0..4).map(version).collect();
    let digests: Vec<_> = versions.iter().map(|bytes| digest_of(bytes)).collect();
    for host in [a, b] {
        put(host, "p.wasm", &versions[0]);
    }
    let _daemon = a.serve();
    let mut other = b.serve();
    a.add_session("ann", "well-behaved", &service, &[]);
    fleet.wait_until_all_serve(&digests[0]);

    put(a, "p.wasm", &versions[1]);
    fleet.wait_until_all_serve(&digests[1]);
    assert_eq!(state_of(b, "p.wasm"), "superseded");
    assert!(other.stop().success());
    other = b.serve();
    // Copied once more it says nothing new, and neither does another name.
    put(b, "p.wasm", &versions[0]);
    fs::rename(in_folder(b, "p.wasm"), in_folder(b, "old.wasm")).expect("a rename");
    assert_eq!((state_of(a, "p.wasm"), state_of(b, "old.wasm")), ("active".into(), "superseded".into()));
    fleet.wait_until_all_serve(&digests[1]);

    // New bytes are a wish, by whichever host they come.
    put(b, "old.wasm", &versions[2]);
    fleet.wait_until_all_serve(&digests[2]);
    assert_eq!((state_of(a, "p.wasm"), state_of(b, "old.wasm")), ("superseded".into(), "active".into()));
    put(a, "p.wasm", &versions[3]);
    fleet.wait_until_all_serve(&digests[3]);
    other.kill_9();
    let _other = b.serve();
    assert_eq!(state_of(b, "old.wasm"), "superseded");
    fleet.wait_until_all_serve(&digests[3]);
    assert_eq!(decided(a, "swapped"), 3, "nothing was undone and done again");

    // A host that joins with what an old image holds changes nothing either.
    let late = fleet.another();
    put(&late, "p.wasm", &versions[0]);
    let _late_daemon = late.serve();
    wait_until_it_serves(&late, &digests[3]);
    assert_eq!(state_of(&late, "p.wasm"), "superseded");
    // Who means it says so.
    let old = in_folder(&late, "p.wasm");
    late.json(&["plugin", "install", old.to_str().expect("UTF-8")]);
    fleet.wait_until_all_serve(&digests[0]);
    assert_eq!(state_of(a, "p.wasm"), "superseded");
}

#[test]
fn what_waits_by_one_host_is_approved_on_another_and_serves_on_hosts_without_a_file() {
    let (fleet, service) = (Fleet::new(), Service::start(OldSession::Stays));
    let [a, b] = fleet.hosts();
    let (_daemon, _other) = (a.serve(), b.serve());
    put(a, "p.wasm", &version(0));
    a.wait_for_plugin("p.wasm", "active");
    a.add_session("ann", "well-behaved", &service, &[]);
    fleet.wait_until_all_serve(&digest_of(&version(0)));

    let wider = fs::read(guest("wants_more_origins")).expect("a guest");
    let digest = digest_of(&wider);
    put(a, "p.wasm", &wider);
    for host in [a, b] {
        wait_until(SOON, "it waits on every host", || {
            listed(host)
                .into_iter()
                .find(|plugin| plugin["state"] == "pending-approval" && plugin["digest"] == digest.as_str())
        });
    }
    fleet.wait_until_all_serve(&digest_of(&version(0)));
    let shown = b.json(&["plugin", "approve", "well-behaved"]);
    assert_eq!(shown["difference"]["addedOrigins"], serde_json::json!(["https://collector.example"]));
    b.json(&["plugin", "approve", "well-behaved", "--digest", &digest]);
    fleet.wait_until_all_serve(&digest);
    assert_eq!((decided(a, "granted"), decided(a, "waits")), (1, 1));
    assert_eq!(fs::read_dir(b.path().join("plugins")).expect("a folder").count(), 0);
    let all = listed(b);
    assert_eq!((all.len(), &all[0]["elsewhere"]), (1, &Value::Bool(true)), "{all:?}");

    // A home that lost everything that can be made again has it all back.
    fs::remove_dir_all(b.path().join("store")).expect("the store");
    fs::remove_dir_all(b.path().join("cache")).expect("the cache");
    drop(_other);
    let _other = b.serve();
    wait_until_it_serves(b, &digest);
    let stored = fs::read(b.path().join("store").join(format!("{digest}.wasm"))).expect("its bytes");
    assert_eq!(digest_of(&stored), digest);

    // The store has each of them once, and what nobody runs any more is gone.
    assert_eq!(fleet.server.sql("keywheel", "SELECT digest FROM plugin_files"), digest);
    // Who can write there and nothing else gives no host anything to run.
    fleet.server.sql("keywheel", "UPDATE plugin_files SET bytes = '\\x00' || bytes");
    let late = fleet.another();
    let _late_daemon = late.serve();
    let refused = wait_until(SOON, "the new host says why", || listed(&late).into_iter().next());
    assert_eq!(refused["state"], "refused", "{refused}");
    assert!(text(&refused, "reason").contains("others than its digest says"), "{refused}");
    assert_eq!(serving(&late), None);
    wait_until_it_serves(a, &digest);
}

#[test]
fn a_removal_holds_on_every_host_and_a_file_that_goes_takes_nothing_away() {
    let (fleet, service) = (Fleet::new(), Service::start(OldSession::Stays));
    let [a, b] = fleet.hosts();
    let (daemon, _other) = (a.serve(), b.serve());
    let (bytes, digest) = (version(0), digest_of(&version(0)));
    put(a, "p.wasm", &bytes);
    a.wait_for_plugin("p.wasm", "active");
    a.add_session("ann", "well-behaved", &service, &[]);
    fleet.wait_until_all_serve(&digest);

    // By the host that has no file of it.
    b.json(&["plugin", "remove", "well-behaved"]);
    for host in [a, b] {
        wait_until(SOON, "nobody serves", || serving(host).is_none().then_some(()));
    }
    assert_eq!(state_of(a, "p.wasm"), "superseded");
    assert!(daemon.stop().success());
    let _daemon = a.serve();
    assert_eq!((state_of(a, "p.wasm"), serving(a)), ("superseded".into(), None));
    let again = b.run(&["plugin", "remove", "well-behaved"]);
    assert_eq!(again.code(), 3, "{again:?}");

    let kept = in_folder(a, "p.wasm");
    a.json(&["plugin", "install", kept.to_str().expect("UTF-8")]);
    fleet.wait_until_all_serve(&digest);
    fs::remove_file(&kept).expect("a file");
    for host in [a, b] {
        listed(host);
    }
    fleet.wait_until_all_serve(&digest);
    assert_eq!(decided(a, "removed"), 1);
}

#[test]
fn hosts_that_get_other_versions_at_once_end_with_one_of_them_and_with_nothing_unapproved() {
    let (fleet, service) = (Fleet::new(), Service::start(OldSession::Stays));
    let [a, b] = fleet.hosts();
    let (_daemon, _other) = (a.serve(), b.serve());
    put(a, "p.wasm", &version(0));
    a.wait_for_plugin("p.wasm", "active");
    a.add_session("ann", "well-behaved", &service, &[]);
    fleet.wait_until_all_serve(&digest_of(&version(0)));
    let wider = fs::read(guest("wants_more_origins")).expect("a guest");
    for round in 1..6 {
        // In the last one, of the two, the first asks for more than anybody granted.
        let ours = if round == 5 { wider.clone() } else { version(2 * round) };
        let theirs = version(2 * round + 1);
        let before = in_use(a).and_then(|digest| digest.as_str().map(str::to_owned)).expect("a plugin");
        let new: BTreeSet<_> = match round {
            5 => [before, digest_of(&theirs)].into(),
            _ => [digest_of(&ours), digest_of(&theirs)].into(),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| put(a, "p.wasm", &ours));
            scope.spawn(|| put(b, "p.wasm", &theirs));
        });
        // Each looks at its folder, then at what the other made of its own.
        for host in [a, b, a, b] {
            listed(host);
        }
        let one = in_use(a).expect("a plugin");
        assert_eq!(Some(&one), in_use(b).as_ref(), "round {round}");
        assert!(new.contains(one.as_str().expect("a digest")), "round {round}: {one} of {new:?}");
        fleet.wait_until_all_serve(one.as_str().expect("a digest"));
    }
    assert_eq!(decided(a, "granted"), 0);
}

#[test]
fn a_host_that_runs_signed_plugins_alone_stops_no_other_host() {
    let (fleet, service) = (Fleet::new(), Service::start(OldSession::Stays));
    let [a, b] = fleet.hosts();
    let strict = format!("plugin_policy = \"signed-only\"\n{CONFIG}");
    fs::write(b.path().join("config.toml"), strict).expect("the configuration");
    let (_daemon, _other) = (a.serve(), b.serve());
    put(a, "p.wasm", &version(0));
    a.wait_for_plugin("p.wasm", "active");
    a.add_session("ann", "well-behaved", &service, &[]);
    let refused = wait_until(SOON, "the strict host says why", || listed(b).into_iter().next());
    assert_eq!((&refused["state"], &refused["elsewhere"]), (&"refused".into(), &Value::Bool(true)));
    assert!(text(&refused, "reason").contains("`plugin_policy` is \"signed-only\""), "{refused}");
    for host in [a, b, a] {
        listed(host);
    }
    assert_eq!(serving(b), None);
    wait_until_it_serves(a, &digest_of(&version(0)));
    assert_eq!((decided(a, "stopped"), decided(a, "returned")), (0, 0));
}
