//! Backups: made while everything rotates, taken back on another home, and what becomes of secrets
//! that were replaced meanwhile; and backups that are cut, changed or somebody else's.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::*;
use crate::power_cut::{add, exported, lines};
use crate::services::{Class, Services, Terms};

/// Of each class: some that rotate as fast as they may, and one that doesn't.
const BUSY_OF_EACH: usize = 3;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn rows(home: &TestHome) -> BTreeMap<String, Value> {
    let rows = home.json(&["credential", "list"]);
    let rows = rows.as_array().expect("an array").clone();
    rows.into_iter().map(|row| (row["credentialId"].as_str().expect("an id").to_owned(), row)).collect()
}

fn is_called(row: &Value) -> bool {
    matches!(row["monitor"]["lastVerdict"].as_str(), Some("needs-human" | "invalid"))
}

struct Fleet {
    services: Services,
    all: Vec<(String, Class)>,
}

impl Fleet {
    fn open(home: &TestHome) -> Self {
        for file in [plugin("oauth2-refresh"), plugin("http-session"), guest("commit_classes")] {
            home.drop_plugin(&file);
        }
        let services = Services::start(Terms::default());
        services.answer_within(Duration::from_millis(30));
        let names = (0..BUSY_OF_EACH).map(|number| format!("busy-{number}")).chain(["calm".to_owned()]);
        let all = names
            .flat_map(|name| Class::ALL.map(|class| (format!("{}-{name}", class.name()), class)))
            .collect();
        Self { services, all }
    }

    fn add_to(&self, home: &TestHome) {
        for (id, class) in &self.all {
            let keys = self.services.open(id, *class);
            let rotate = if id.ends_with("calm") { "1h" } else { "2s" };
            add(home, &self.services, id, *class, &keys, &["--every", "1s", "--rotate-every", rotate]);
        }
    }

    fn busy(&self) -> impl Iterator<Item = &String> {
        self.all.iter().map(|(id, _)| id).filter(|id| !id.ends_with("calm"))
    }

    fn rotations(&self) -> HashMap<String, u32> {
        self.busy().map(|id| (id.clone(), self.services.standing(id).rotations)).collect()
    }

    /// Waits until each of the busy ones was rotated since.
    fn wait_for_more_than(&self, before: &HashMap<String, u32>) {
        wait_until(2 * SOON, "everybody was rotated again", || {
            before.iter().all(|(id, before)| self.services.standing(id).rotations > *before).then_some(())
        });
    }

    /// Stops everybody where they stand, between two attempts.
    fn pause(&self, home: &TestHome) {
        for (id, _) in &self.all {
            home.run(&["credential", "pause", id]).ok();
        }
        wait_until(SOON, "no attempt is open", || {
            rows(home).values().all(|row| row["openAttempt"].is_null()).then_some(())
        });
    }

    #[track_caller]
    fn assert_nothing_was_spent_twice(&self) {
        for (id, _) in &self.all {
            let standing = self.services.standing(id);
            assert_eq!((standing.double_spends, standing.revocations), (0, 0), "{id}: {standing:?}");
        }
    }
}

/// Restores into a new home, which nobody has begun anything in.
fn restored(backup: &Path, key: &Path, more: &[&str]) -> TestHome {
    let home = TestHome::without_init();
    let arguments = [&["restore", text(backup), "--master-key", text(key)], more].concat();
    home.run(&arguments).ok();
    for name in ["", "master.key", "keywheel.db", "config.toml", "store", "cache", "plugins"] {
        let mode = fs::metadata(home.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is open to others: {mode:o}");
    }
    home
}

/// Each report of a home by what tells one from another.
fn reports(home: &TestHome, id: &str) -> Vec<(u64, String)> {
    let of = |report: &Value| {
        let number = report["attemptNumber"].as_u64().expect("a number");
        (number, report["startedAt"].as_str().expect("a moment").to_owned())
    };
    home.reports(id).iter().map(of).collect()
}

#[test]
fn a_backup_under_full_load_restores_to_a_daemon_that_loses_nothing_and_spends_nothing_twice() {
    let home = TestHome::new();
    let fleet = Fleet::open(&home);
    // Somebody uses what one of them is given, from a file that outlives all three homes.
    let (used, user) = (home.outside().join("used.json"), "burn-busy-0");
    let sink =
        format!("[sinks.app]\ncredential = \"{user}\"\npath = \"{}\"\nformat = \"json\"\n", text(&used));
    fs::write(home.path().join("config.toml"), sink).expect("the configuration");
    let holds_the_newest = || {
        let held = fs::read_to_string(&used).unwrap_or_default();
        fleet.services.standing(user).last_issued.values().all(|value| held.contains(value))
    };
    let daemon = home.serve();
    fleet.add_to(&home);
    fleet.wait_for_more_than(&fleet.busy().map(|id| (id.clone(), 0)).collect());
    let (early, late) = (home.outside().join("early.backup"), home.outside().join("late.backup"));
    let key = home.path().join("master.key");

    // In the midst of it all.
    let before = fleet.rotations();
    let made = home.json(&["backup", text(&early)]);
    assert_eq!(made["contents"]["credentials"], fleet.all.len());
    assert_eq!(fs::metadata(&early).expect("made").permissions().mode() & 0o777, 0o600);
    assert_eq!(home.json(&["backup", "verify", text(&early)])["ok"], true);
    fleet.wait_for_more_than(&before);
    fleet.wait_for_more_than(&fleet.rotations());

    // At the very end, when nothing is in flight.
    fleet.pause(&home);
    home.run(&["backup", text(&late)]).ok();
    assert_eq!(daemon.stop().code(), Some(0));

    // The home moves to another machine: all of it goes on, and nobody is called.
    let moved = restored(&late, &key, &["--nothing-ran-since"]);
    for (id, _) in &fleet.all {
        assert_eq!(exported(&moved, id), fleet.services.standing(id).last_issued, "{id}");
        assert_eq!(reports(&moved, id), reports(&home, id), "{id}");
    }
    let daemon = moved.serve();
    let before = fleet.rotations();
    for (id, _) in &fleet.all {
        moved.run(&["credential", "resume", id]).ok();
    }
    fleet.wait_for_more_than(&before);
    fleet.pause(&moved);
    for (id, row) in rows(&moved) {
        assert!(!is_called(&row), "{id}: {row}");
        assert_eq!(exported(&moved, &id), fleet.services.standing(&id).last_issued, "{id}");
    }
    wait_until(SOON, "the file has what was issued last", || holds_the_newest().then_some(()));
    let newest: HashMap<String, u64> = rows(&moved)
        .iter()
        .map(|(id, row)| (id.clone(), row["attemptNumber"].as_u64().expect("a number")))
        .collect();
    assert_eq!(daemon.stop().code(), Some(0));
    fleet.assert_nothing_was_spent_twice();

    // The old state comes back, of which most is spent by now.
    let old = restored(&early, &key, &[]);
    let daemon = old.serve();
    let before = fleet.rotations();
    wait_until(2 * SOON, "everybody busy was rotated again, or a person called", || {
        let rows = rows(&old);
        let settled =
            |id: &String| is_called(&rows[id]) || fleet.services.standing(id).rotations > before[id];
        fleet.busy().all(settled).then_some(())
    });
    // What was delivered since is the only living one, and isn't replaced by the backup's.
    assert!(is_called(&rows(&old)[user]), "its token was spent");
    assert!(holds_the_newest(), "an old secret was delivered over a new one");
    // Who wasn't rotated since the backup goes on where a look can tell, and only there.
    for (id, class) in fleet.all.iter().filter(|(id, _)| id.ends_with("calm")) {
        let ended = old.run(&["credential", "rotate", id, "--json"]);
        let verdict = ended.json()["meta"]["verdict"].clone();
        match class {
            Class::Additive | Class::Sliding => assert_eq!(verdict, "valid", "{id}: {ended:?}"),
            // The look has shown that it lives, and so was not spent.
            Class::Burn => assert_eq!(verdict, "valid", "{id}: {ended:?}"),
            // What works (an access token, or one within its time of grace) proves nothing.
            Class::BurnPair | Class::Grace => assert_eq!(verdict, "needs-human", "{id}: {ended:?}"),
            Class::CommitOnUse => assert!(verdict == "valid" || verdict == "needs-human", "{id}: {ended:?}"),
        }
    }
    fleet.assert_nothing_was_spent_twice();
    // No report has the number of one that the other homes delivered.
    for (id, _) in &fleet.all {
        let since: Vec<_> = reports(&old, id).into_iter().filter(|(_, at)| *at > made_at(&made)).collect();
        assert!(!since.is_empty(), "{id} has reports of its own");
        assert!(since.iter().all(|(number, _)| *number > newest[id]), "{id}: {since:?} after {}", newest[id]);
    }

    // A person signs in again where one was called, and everybody goes on.
    wait_until(2 * SOON, "everybody is well", || {
        for (id, row) in rows(&old) {
            if is_called(&row) && row["openAttempt"].is_null() {
                let keys = fleet.services.sign_in(&id);
                // Refused while an attempt is open: then with the next look.
                old.run_with_input(&["credential", "import", &id, "-"], &lines(&keys));
            }
        }
        rows(&old).values().all(|row| row["monitor"]["lastStatus"] == "success").then_some(())
    });
    fleet.wait_for_more_than(&fleet.rotations());
    fleet.pause(&old);
    wait_until(SOON, "the file has what was issued last", || holds_the_newest().then_some(()));
    for (id, _) in &fleet.all {
        let standing = fleet.services.standing(id);
        assert_eq!(exported(&old, id), standing.last_issued, "{id}: {standing:?}");
    }
    assert_eq!(daemon.stop().code(), Some(0));
    fleet.assert_nothing_was_spent_twice();
}

fn made_at(made: &Value) -> String {
    made["contents"]["madeAt"].as_str().expect("a moment").to_owned()
}

/// A home with a credential and a plugin, its backup, and the secret in it.
fn backed_up() -> (TestHome, PathBuf, String) {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let session = home.add_session("ann", "well-behaved", &service, &[]);
    let file = home.outside().join("one.backup");
    home.run(&["backup", text(&file)]).ok();
    (home, file, session)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_that_is_cut_changed_foreign_or_of_another_key_restores_nothing() {
    let (home, file, session) = backed_up();
    let key = home.path().join("master.key");
    let whole = fs::read(&file).expect("the backup");
    assert!(memchr::memmem::find(&whole, session.as_bytes()).is_none());
    assert!(memchr::memmem::find(&whole, b"SQLite").is_none(), "not even the database's head is in clear");
    let other = TestHome::new();
    let other_key = other.path().join("master.key");
    let wrong = home.outside().join("wrong.backup");
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let table: [(&[u8], &Path, i32, &str); 6] = [
        (&whole[..whole.len() - 1], &key, 65, "cut short or changed"),
        (&whole[..whole.len() / 2], &key, 65, "cut short or changed"),
        (&whole[..10], &key, 65, "no backup of Keywheel's"),
        (&changed, &key, 65, "cut short or changed"),
        (b"PK\x03\x04 some archive of another program's", &key, 65, "no backup of Keywheel's"),
        (&whole, &other_key, 65, "sealed with another master key"),
    ];
    for (bytes, key, code, words) in table {
        fs::write(&wrong, bytes).expect("a file");
        let new = TestHome::without_init();
        let refusals = [
            new.run(&["restore", text(&wrong), "--master-key", text(key)]),
            new.run(&["backup", "verify", text(&wrong), "--master-key", text(key)]),
        ];
        for refused in refusals {
            assert_eq!(refused.code(), code, "{words}: {refused:?}");
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
        assert!(!new.path().exists(), "nothing is left: {:?}", names(new.outside()));
        // An empty folder that was there stays, empty.
        fs::create_dir(new.path()).expect("a folder");
        assert_eq!(new.run(&["restore", text(&wrong), "--master-key", text(key)]).code(), code);
        assert_eq!(names(&new.path()), [""; 0]);
        // And takes the good one afterwards.
        new.run(&["restore", text(&file), "--master-key", text(&home.path().join("master.key"))]).ok();
        assert_eq!(exported(&new, "ann")["session"], session);
    }
    let refused = other.run(&["restore", text(&file), "--master-key", text(&key)]);
    assert_eq!(refused.code(), 65, "{refused:?}");
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    assert_eq!(other.json(&["credential", "list"]), serde_json::json!([]), "it is as it was");
    let no_key = TestHome::without_init().run(&["restore", text(&file)]);
    assert_eq!(no_key.code(), 2, "{no_key:?}");
    assert!(no_key.stderr.contains("--master-key FILE"), "{}", no_key.stderr);
}

#[test]
fn backups_in_a_folder_are_named_by_their_moment_and_the_oldest_go() {
    let (home, file, _) = backed_up();
    let there = home.run(&["backup", text(&file)]);
    assert_eq!(there.code(), 65, "{there:?}");
    assert!(there.stderr.contains("--replace"), "{}", there.stderr);
    home.run(&["backup", text(&file), "--replace"]).ok();
    let folder = home.outside().join("backups");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("mine.txt"), "stays").expect("a file");
    for _ in 0..3 {
        home.run(&["backup", text(&folder), "--keep", "2"]).ok();
    }
    let left = names(&folder);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left[0].starts_with("keywheel-20") && left[0].ends_with("Z.backup") && left[2] == "mine.txt");
    home.run(&["backup", "verify", text(&folder.join(&left[0]))]).ok();
    assert_eq!(home.run(&["backup", text(&file), "--keep", "2", "--replace"]).code(), 2);
    // What a backup was put together in is gone.
    let leftover: Vec<_> = names(&home.path()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(leftover, [""; 0]);
}

#[test]
fn a_backup_of_an_older_schema_is_brought_up_to_date_and_its_database_is_kept_on_an_upgrade() {
    let (home, _, session) = backed_up();
    // As the version before this one left it.
    let database = home.path().join("keywheel.db");
    downgrade(&database);
    let before = fs::read(&database).expect("the database");
    let key = home.path().join("master.key");
    // An upgrade: the first command that opens it for writing.
    home.run(&["plugin", "list"]).ok();
    let kept = home.path().join("keywheel.db.schema-6");
    assert_eq!(version(&kept), 6);
    assert_eq!(fs::metadata(&kept).expect("kept").permissions().mode() & 0o777, 0o600);
    assert_eq!(exported(&home, "ann")["session"], session);

    // The way back, as the operator's page says it: the copy in the database's place.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(home.path().join(format!("keywheel.db{suffix}")));
    }
    fs::rename(&kept, &database).expect("it is put back");
    assert_eq!(version(&database), 6);
    assert_eq!(fs::read(&database).expect("the database").len(), before.len());
    home.run(&["plugin", "list"]).ok();
    assert_eq!(exported(&home, "ann")["session"], session);
    assert!(key.exists());
}

#[expect(clippy::disallowed_methods, reason = "the test plays an older binary")]
fn version(path: &Path) -> u32 {
    let db = rusqlite::Connection::open(path).expect("a database");
    db.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a header")
}

/// Makes the database what schema 6 was: the tables and columns that 0007 added go.
#[expect(clippy::disallowed_methods, reason = "the test plays an older binary")]
fn downgrade(path: &Path) {
    let db = rusqlite::Connection::open(path).expect("a database");
    let now = objects(&db);
    let old = rusqlite::Connection::open_in_memory().expect("memory");
    for number in 1..=6 {
        let folder = fs::read_dir(source("migrations/sqlite")).expect("the migrations");
        let file = folder
            .map(|entry| entry.expect("an entry").path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&format!("{number:04}_")))
            })
            .expect("a step");
        old.execute_batch(&fs::read_to_string(file).expect("UTF-8")).expect("it runs");
    }
    let then = objects(&old);
    db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA journal_mode = DELETE").expect("it runs");
    for (name, (kind, _)) in &now {
        if !then.contains_key(name) {
            db.execute_batch(&format!("DROP {kind} IF EXISTS \"{name}\"")).expect("it runs");
        }
    }
    for (name, (kind, columns)) in &then {
        if kind == "table" {
            for column in &now[name].1 {
                if !columns.contains(column) {
                    db.execute_batch(&format!("ALTER TABLE \"{name}\" DROP COLUMN \"{column}\""))
                        .expect("it runs");
                }
            }
        }
    }
    db.execute_batch("PRAGMA user_version = 6").expect("it runs");
}

/// Tables and indexes with their columns.
fn objects(db: &rusqlite::Connection) -> BTreeMap<String, (String, Vec<String>)> {
    let mut select =
        db.prepare("SELECT name, type FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'").expect("it is SQL");
    let named: Vec<(String, String)> = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("rows")
        .map(|row| row.expect("a row"))
        .collect();
    let columns = |name: &str| -> Vec<String> {
        let mut select =
            db.prepare(&format!("SELECT name FROM pragma_table_info('{name}')")).expect("it is SQL");
        select.query_map([], |row| row.get(0)).expect("rows").map(|row| row.expect("a name")).collect()
    };
    named.into_iter().map(|(name, kind)| (name.clone(), (kind, columns(&name)))).collect()
}
