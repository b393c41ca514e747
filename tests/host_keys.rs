//! Hosts that share a store: joining, being let in, another key and the end of it, on a real
//! PostgreSQL server; what goes wrong on the way, and what a stolen copy of the store tells.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::harness::*;

/// The server that the tests run on: the one that is named, or one of their own.
fn server() -> &'static str {
    static SERVER: OnceLock<(String, Option<Child>)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| {
        if let Ok(named) = std::env::var("KEYWHEEL_TEST_POSTGRES") {
            return (named, None);
        }
        // It lasts as long as its standard input: as long as this process.
        let mut started = command(source("tests/peers/postgres.sh"))
            .args(["sh", "-c", "echo \"$KEYWHEEL_TEST_POSTGRES\"; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script starts");
        let mut url = String::new();
        BufReader::new(started.stdout.take().expect("piped"))
            .read_line(&mut url)
            .expect("the server's address");
        assert!(url.starts_with("postgres://"), "no server: {url:?}");
        (url.trim().to_owned(), Some(started))
    });
    url
}

/// A schema of its own at that server.
struct Schema {
    name: String,
}

impl Schema {
    /// Empty.
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("hosts_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let schema = Self { name };
        schema.sql(&format!("CREATE SCHEMA {}", schema.name));
        schema
    }

    fn url(&self) -> String {
        let joined = if server().contains('?') { '&' } else { '?' };
        format!("{}{joined}options=-csearch_path%3D{}", server(), self.name)
    }

    /// Runs SQL past Keywheel, as a person with a shell would, and returns what it printed.
    fn sql(&self, text: &str) -> String {
        run_tool("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", text])
    }

    /// All that is in the store, as whoever steals it has it.
    fn dump(&self) -> String {
        run_tool("pg_dump", &["--inserts", "-n", &self.name, "-d", &self.url()])
    }
}

fn run_tool(name: &str, arguments: &[&str]) -> String {
    let folders = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's programs");
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    let tool = folders.pop().expect("a version").join("bin").join(name);
    let output = command(tool).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A home on the store that has the master key itself.
fn first_host(store: &Schema) -> TestHome {
    let home = TestHome::without_init();
    fs::create_dir(home.path()).expect("the home");
    fs::write(home.path().join("config.toml"), format!("[store]\nurl = \"{}\"\n", store.url()))
        .expect("the configuration");
    home.run(&["init"]).ok();
    home
}

/// The same, with a credential; and the secret of that.
fn first_host_in_use(store: &Schema) -> (TestHome, Service, String) {
    let (home, service) = (first_host(store), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    let session = home.add_session("ann", "well-behaved", &service, &[]);
    (home, service, session)
}

#[track_caller]
fn join(store: &Schema, name: &str) -> (TestHome, String) {
    let home = TestHome::without_init();
    let joined = home.json(&["host", "join", "--store", &store.url(), "--name", name]);
    assert_eq!((&joined["host"], &joined["access"]), (&json!(name), &json!("asking")));
    let print = joined["fingerprint"].as_str().expect("a fingerprint").to_owned();
    (home, print)
}

#[track_caller]
fn joined_and_admitted(store: &Schema, first: &TestHome, name: &str) -> TestHome {
    let (home, print) = join(store, name);
    first.run(&["host", "admit", name, "--fingerprint", &print]).ok();
    home
}

#[track_caller]
fn refuses(home: &TestHome, arguments: &[&str], code: i32, reasons: &[&str]) {
    let refused = home.run(arguments);
    assert_eq!(refused.code(), code, "{arguments:?}: {refused:?}");
    for reason in reasons {
        assert!(refused.stderr.contains(reason), "{arguments:?}: {}\nlacks {reason}", refused.stderr);
    }
}

/// The daemon of a home, once it is ready.
fn serving(home: &TestHome) -> Daemon {
    let daemon = home.start_daemon(&[]);
    wait_until(3 * SOON, "the daemon is ready", || daemon.log().contains("keywheel is ready").then_some(()));
    daemon
}

/// Runs a command that dies where it is told to.
#[track_caller]
fn killed_at(home: &TestHome, point: &str, arguments: &[&str]) {
    let cut = home.command(arguments).env("KEYWHEEL_CRASH_AT", point).output().expect("it starts");
    assert_eq!(cut.status.code(), None, "{point}: it lived on, {cut:?}");
}

fn exported(home: &TestHome) -> String {
    home.run(&["credential", "export", "ann", "--format", "env"]).ok().stdout
}

fn host_key(home: &TestHome) -> PathBuf {
    home.path().join("host.key")
}

/// The access of each host in the list that has asked for some, by name.
fn accesses(home: &TestHome) -> Vec<(String, String)> {
    let list = home.json(&["host", "list"]);
    let text = |row: &Value, name: &str| row[name].as_str().expect("text").to_owned();
    let rows = list.as_array().expect("an array");
    let asked = rows.iter().filter(|row| row["access"] != "master key");
    asked.map(|row| (text(row, "host"), text(row, "access"))).collect()
}

#[test]
fn a_host_that_joins_opens_the_secrets_once_it_was_admitted_and_never_after_it_was_revoked() {
    let store = Schema::new();
    let (first, _service, session) = first_host_in_use(&store);
    let (second, print) = join(&store, "eu-2");
    assert!(!second.path().join("master.key").exists());

    // It asks, and has nothing yet.
    let admit =
        format!("hint: on a host that has the master key: keywheel host admit eu-2 --fingerprint {print}");
    for arguments in [
        &["credential", "export", "ann"][..],
        &["serve"],
        &["credential", "validate", "ann"],
        &["host", "rekey"],
    ] {
        refuses(&second, arguments, 77, &[&admit]);
    }
    refuses(&second, &["host", "admit", "eu-2", "--fingerprint", &print], 77, &[&admit]);
    assert_eq!(accesses(&second), accesses(&first), "what is no secret is read all the same");

    // Whoever has the key looks twice. A daemon that runs there is in nobody's way.
    let _first_daemon = serving(&first);
    assert_eq!(accesses(&first), [("eu-2".into(), "asking".into())]);
    let other = print.replace(|digit: char| digit.is_ascii_hexdigit(), "0");
    refuses(&first, &["host", "admit", "eu-2", "--fingerprint", &other], 65, &[&print, "nothing was done"]);
    refuses(&first, &["host", "admit", "eu-2"], 2, &["nobody is here to compare", "--fingerprint"]);
    refuses(&first, &["host", "admit", "eu-3", "--fingerprint", &print], 3, &["no host is called `eu-3`"]);
    assert_eq!(accesses(&first), [("eu-2".into(), "asking".into())]);
    for _ in 0..2 {
        first.run(&["host", "admit", "eu-2", "--fingerprint", &print.to_uppercase()]).ok();
    }
    let list = second.json(&["host", "list"]);
    assert_eq!((&list[0]["access"], &list[0]["fingerprint"]), (&json!("admitted"), &json!(print)));
    assert!(list[0].get("sealedKey").is_none() && list[0]["admittedAt"].is_string(), "{list}");

    assert!(exported(&second).contains(&session));
    assert_eq!(exported(&second), exported(&first));
    second.drop_plugin(&guest("well_behaved"));
    second.json(&["credential", "validate", "ann"]);
    // Joining again says how it stands.
    for name in [&["--name", "eu-2"][..], &[]] {
        let again = second.json(&[&["host", "join", "--store", &store.url()], name].concat());
        assert_eq!((&again["host"], &again["access"]), (&json!("eu-2"), &json!("admitted")));
    }
    // And so a third may be admitted by the second.
    let third = joined_and_admitted(&store, &second, "us-1");
    assert_eq!(exported(&third), exported(&first));

    refuses(&second, &["host", "revoke", "eu-2"], 65, &["this host itself", "from another host"]);
    let mut daemon = serving(&second);
    let revoked = first.run(&["host", "revoke", "eu-2"]).ok();
    assert!(revoked.stdout.contains("It knew the master key"), "{}", revoked.stdout);
    assert_eq!(daemon.ended().code(), Some(77), "a running daemon stops by itself");
    assert!(daemon.log().contains("was revoked at"), "{}", daemon.log());
    for arguments in [&["credential", "export", "ann"][..], &["serve"]] {
        refuses(&second, arguments, 77, &["this host, `eu-2`, was revoked at ", "another name"]);
    }
    refuses(&second, &["host", "join", "--store", &store.url()], 77, &["was revoked at "]);
    refuses(&first, &["host", "admit", "eu-2", "--fingerprint", &print], 65, &["was revoked at "]);
    assert!(first.run(&["host", "revoke", "eu-2"]).ok().stdout.contains("already"));
    assert_eq!(accesses(&first), [("eu-2".into(), "revoked".into()), ("us-1".into(), "admitted".into())]);
    assert_eq!(exported(&third), exported(&first));
    for home in [&first, &second, &third] {
        let printed = home.printed();
        for key in [
            fs::read(first.path().join("master.key")).expect("the key"),
            fs::read(host_key(&second)).expect("the key"),
        ] {
            assert!(!printed.contains(&hex::encode(key)), "a key was printed");
        }
    }
}

#[test]
fn a_host_that_had_only_asked_is_forgotten_when_it_is_refused_and_may_ask_again() {
    let store = Schema::new();
    let first = first_host(&store);
    let (second, print) = join(&store, "eu-2");
    let refused = first.run(&["host", "revoke", "eu-2", "--json"]).ok().json();
    assert_eq!(refused["refused"], "eu-2");
    assert_eq!(first.json(&["host", "list"]), json!([]));
    refuses(
        &second,
        &["serve"],
        77,
        &["the store knows no host with the key in ", "hint: keywheel host join"],
    );
    let again = second.json(&["host", "join", "--store", &store.url(), "--name", "eu-2"]);
    assert_eq!(again["fingerprint"], print.as_str(), "the key is the same");
    let words = second.run(&["host", "join", "--store", &store.url()]).ok().stdout;
    assert!(words.contains(&format!("keywheel host admit eu-2 --fingerprint {print}")), "{words}");
}

#[test]
fn a_store_that_cannot_be_joined_is_told_apart_and_nothing_is_left_behind() {
    let store = Schema::new();
    let first = first_host(&store);
    let tried = |url: &str, more: &[&str], code: i32, reasons: &[&str]| {
        let home = TestHome::without_init();
        refuses(&home, &[&["host", "join", "--store", url], more].concat(), code, reasons);
        assert!(!home.path().exists(), "{url}: {:?}", fs::read_dir(home.path()).map(Iterator::count));
    };
    let empty = Schema::new();
    tried(&empty.url(), &["--name", "eu-2"], 78, &["nobody has used the store", "`keywheel init` there"]);
    assert_eq!(empty.dump().matches("CREATE TABLE").count(), 0, "nothing is made there either");
    let foreign = Schema::new();
    foreign.sql("CREATE TABLE theirs (x bigint)");
    tried(&foreign.url(), &["--name", "eu-2"], 78, &["is not a Keywheel database", "left as it is"]);
    let newer = Schema::new();
    drop(first_host(&newer));
    newer.sql("UPDATE keywheel_schema SET version = 999");
    tried(&newer.url(), &["--name", "eu-2"], 78, &["has schema 999, this binary knows up to"]);
    tried("postgres://keywheel@127.0.0.1:1/none", &["--name", "eu-2"], 75, &["can't be used"]);
    tried("postgres://keywheel:pass@db.example/k", &["--name", "eu-2"], 78, &["has a password in it"]);
    tried("mysql://db.example/k", &["--name", "eu-2"], 78, &["postgres://USER@HOST:PORT/DATABASE"]);
    tried(&store.url(), &["--name", "eu 2"], 65, &["the name \"eu 2\" can't be a host's", "hint: --name"]);
    tried(&store.url(), &["--password-file", "/nowhere/password"], 78, &["/nowhere/password can't be read"]);
    tried(&store.url(), &["--ca-file", "/nowhere/ca.pem"], 78, &["/nowhere/ca.pem can't be used"]);
    let (_second, _) = join(&store, "eu-2");
    tried(&store.url(), &["--name", "eu-2"], 65, &["the name `eu-2` is taken by host ", "hint: --name"]);
    assert_eq!(accesses(&first), [("eu-2".into(), "asking".into())]);

    // Nor is a folder touched that is something else already.
    refuses(&first, &["host", "join", "--store", &store.url()], 65, &["has the master key itself"]);
    let elsewhere = TestHome::new();
    refuses(&elsewhere, &["host", "join", "--store", &store.url()], 65, &["has the master key itself"]);
    fs::remove_file(elsewhere.path().join("master.key")).expect("the key");
    refuses(&elsewhere, &["host", "join", "--store", &store.url()], 65, &["has a database of its own"]);
    let configured = TestHome::without_init();
    fs::create_dir(configured.path()).expect("a folder");
    let text = "[store]\nurl = \"postgres://k@another.example/k\"\n";
    fs::write(configured.path().join("config.toml"), text).expect("a configuration");
    let arguments = ["host", "join", "--store", &store.url(), "--name", "eu-3"];
    refuses(&configured, &arguments, 65, &["names postgres://k@another.example/k", "nothing was changed"]);
    let files: Vec<_> = fs::read_dir(configured.path()).expect("the folder").collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[test]
fn a_join_that_was_cut_off_goes_on_where_it_was() {
    let store = Schema::new();
    let first = first_host(&store);
    let second = TestHome::without_init();
    let arguments = ["host", "join", "--store", &store.url(), "--name", "eu-2"];
    killed_at(&second, "join.made", &arguments);
    assert_eq!(first.json(&["host", "list"]), json!([]));
    let key = fs::read(host_key(&second)).expect("the key was made");
    refuses(
        &second,
        &["serve"],
        77,
        &["the store knows no host with the key in ", "hint: keywheel host join"],
    );
    second.run(&arguments).ok();
    assert_eq!(fs::read(host_key(&second)).expect("a key"), key);
    assert_eq!(accesses(&first), [("eu-2".into(), "asking".into())]);
}

#[test]
fn a_name_that_is_taken_at_the_last_moment_leaves_no_home_either() {
    let store = Schema::new();
    drop(first_host(&store));
    // A daemon of that name, which the look before doesn't see.
    store.sql(
        "INSERT INTO hosts (host_id, name, labels_json, version, first_at, started_at, last_seen_at)
         VALUES ('00000000000000a1', 'eu-2', '{}', '0.1.0', 0, 0, 0)",
    );
    let home = TestHome::without_init();
    refuses(
        &home,
        &["host", "join", "--store", &store.url(), "--name", "eu-2"],
        65,
        &["is taken by host 00000000000000a1"],
    );
    assert!(!home.path().exists());
    home.run(&["host", "join", "--store", &store.url(), "--name", "eu-3"]).ok();
}

#[test]
fn a_second_installation_is_not_made_of_a_store_that_has_one() {
    let store = Schema::new();
    let first = first_host(&store);
    let second = TestHome::without_init();
    fs::create_dir(second.path()).expect("the home");
    fs::copy(first.path().join("config.toml"), second.path().join("config.toml")).expect("the configuration");
    refuses(&second, &["init"], 65, &["the store belongs to an installation", "`keywheel host join`"]);
    assert!(!second.path().join("master.key").exists());
    // One that is tried with another key changes nothing, and admits nobody.
    let (_third, print) = join(&store, "eu-3");
    fs::write(second.path().join("master.key"), [7; 32]).expect("a key");
    fs::set_permissions(second.path().join("master.key"), fs::Permissions::from_mode(0o600)).expect("a key");
    let wrong = "this master key is not the one";
    refuses(&second, &["host", "admit", "eu-3", "--fingerprint", &print], 77, &[wrong]);
    refuses(&second, &["serve"], 77, &[wrong]);
    assert_eq!(accesses(&first), [("eu-3".into(), "asking".into())]);
}

#[test]
fn what_is_sealed_for_a_host_opens_in_no_other_row_and_with_no_other_key() {
    let store = Schema::new();
    let (first, _service, session) = first_host_in_use(&store);
    let second = joined_and_admitted(&store, &first, "eu-2");
    let third = joined_and_admitted(&store, &first, "eu-3");
    let (stranger, _) = join(&store, "eu-4");
    let unopened = ["what the store holds for host `", "doesn't open with its key"];

    // Who can write the store copies what was sealed for another.
    store.sql(
        "UPDATE host_keys SET sealed_key = (SELECT sealed_key FROM host_keys WHERE name = 'eu-2')
         WHERE name = 'eu-4'",
    );
    refuses(&stranger, &["credential", "export", "ann"], 77, &unopened);
    // Who takes another's place in the list gets nothing by it.
    let own = store.sql("SELECT encode(sealed_key, 'hex') FROM host_keys WHERE name = 'eu-3'");
    store.sql("UPDATE host_keys SET name = 'eu-5' WHERE name = 'eu-3'");
    refuses(&third, &["credential", "export", "ann"], 77, &unopened);
    store.sql("UPDATE host_keys SET name = 'eu-3' WHERE name = 'eu-5'");
    store.sql("UPDATE host_keys SET host_id = '00000000000000ff' WHERE name = 'eu-3'");
    refuses(&third, &["serve"], 77, &unopened);
    assert!(exported(&second).contains(&session));
    let changed = format!("{}00", &own.trim()[..own.trim().len() - 2]);
    store.sql(&format!("UPDATE host_keys SET sealed_key = decode('{changed}', 'hex') WHERE name = 'eu-3'"));
    refuses(&third, &["serve"], 77, &unopened);

    // Another key in the file, or one that others may read.
    let path = host_key(&second);
    let right = fs::read(&path).expect("the key");
    fs::write(&path, [7; 32]).expect("a key");
    refuses(&second, &["serve"], 77, &["the store knows no host with the key in "]);
    fs::write(&path, &right[..31]).expect("a key");
    refuses(&second, &["serve"], 77, &["host key of 31 bytes, exactly 32 are needed"]);
    fs::write(&path, &right).expect("the key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("the key");
    refuses(&second, &["serve"], 77, &["host key ", "has mode 0644, at most 0600 is allowed"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the key");
    assert!(exported(&second).contains(&session));

    // A configuration that names no store any more.
    let config = fs::read_to_string(second.path().join("config.toml")).expect("the configuration");
    fs::write(second.path().join("config.toml"), config.replace("[store]", "[forgotten]"))
        .expect("a configuration");
    for arguments in [&["serve"][..], &["credential", "list"], &["host", "list"]] {
        refuses(&second, arguments, 78, &["has a host key, and config.toml names no store"]);
    }
    fs::write(second.path().join("config.toml"), config).expect("the configuration");
    // The key may lie elsewhere: in a file that is named, or with systemd.
    let moved = second.outside().join("host.key");
    fs::rename(&path, &moved).expect("the key");
    let run = |variable: &str, place: &Path, arguments: &[&str]| {
        let output = second.command(arguments).env(variable, place).output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    let export = ["credential", "export", "ann", "--format", "env"];
    assert!(run("KEYWHEEL_HOST_KEY", &moved, &export).ok().stdout.contains(&session));
    run("KEYWHEEL_HOST_KEY", &moved, &["host", "rekey"]).ok();
    fs::set_permissions(&moved, fs::Permissions::from_mode(0o440)).expect("the key");
    assert!(run("CREDENTIALS_DIRECTORY", second.outside(), &export).ok().stdout.contains(&session));
    let kept = run("CREDENTIALS_DIRECTORY", second.outside(), &["host", "rekey"]);
    assert_eq!(kept.code(), 65, "{kept:?}");
    assert!(kept.stderr.contains("systemd keeps this host's key"), "{kept:?}");
}

#[test]
fn a_host_takes_no_other_master_key_than_the_one_it_was_given_first() {
    let store = Schema::new();
    let (first, _service, session) = first_host_in_use(&store);
    let second = joined_and_admitted(&store, &first, "eu-2");
    assert!(exported(&second).contains(&session));

    // Who can write the store puts an installation of their own in its place, and admits the host.
    let theirs = Schema::new();
    let thief = first_host(&theirs);
    let (of, ours) = (&theirs.name, &store.name);
    store.sql(&format!(
        "INSERT INTO {of}.host_keys (host_id, name, public_key, asked_at)
        SELECT host_id, name, public_key, asked_at FROM {ours}.host_keys"
    ));
    let print = thief.json(&["host", "list"])[0]["fingerprint"].as_str().expect("a fingerprint").to_owned();
    thief.run(&["host", "admit", "eu-2", "--fingerprint", &print]).ok();
    store.sql(&format!("UPDATE {ours}.host_keys SET sealed_key = (SELECT sealed_key FROM {of}.host_keys);
        UPDATE {ours}.installation SET value = (SELECT value FROM {of}.installation WHERE key = 'vault_marker')
            WHERE key = 'vault_marker'"));
    for arguments in [&["credential", "export", "ann"][..], &["serve"], &["host", "rekey"]] {
        refuses(&second, arguments, 77, &["another master key (", "it was not used"]);
    }
    refuses(&first, &["serve"], 77, &["this master key is not the one"]);
}

#[test]
fn a_host_gets_another_key_and_whatever_a_cut_leaves_behind_one_key_opens() {
    let store = Schema::new();
    let (first, _service, session) = first_host_in_use(&store);
    let second = joined_and_admitted(&store, &first, "eu-2");
    let (path, next) = (host_key(&second), second.path().join("host.key.next"));
    let read = |path: &Path| fs::read(path).expect("a key");
    let print = |home: &TestHome| home.json(&["host", "list"])[0]["fingerprint"].clone();

    let (before, print_before) = (read(&path), print(&first));
    let daemon = serving(&second);
    let rekeyed = second.json(&["host", "rekey"]);
    assert_ne!(rekeyed["fingerprint"], print_before);
    assert_eq!(print(&first), rekeyed["fingerprint"]);
    assert_ne!(read(&path), before);
    assert!(!next.exists());
    assert!(exported(&second).contains(&session));
    assert!(is_running(daemon.pid()), "the daemon goes on");
    drop(daemon);

    // Killed before the store has heard of the new key, and before that stood in the old one's place.
    for (point, is_stored) in [("rekey.written", false), ("rekey.stored", true)] {
        let (own, known) = (read(&path), print(&first));
        killed_at(&second, point, &["host", "rekey"]);
        assert_eq!((read(&path) == own, next.exists()), (true, true), "{point}");
        assert_eq!(print(&first) != known, is_stored, "{point}");
        assert!(exported(&second).contains(&session), "{point}");
        let begun = read(&next);
        second.run(&["host", "rekey"]).ok();
        assert!(![own, begun].contains(&read(&path)) && !next.exists(), "{point}");
        assert!(exported(&second).contains(&session), "{point}");
    }

    // The old one is worth nothing.
    fs::write(&path, before).expect("the first key");
    refuses(&second, &["credential", "export", "ann"], 77, &["the store knows no host with the key in "]);
    refuses(&first, &["host", "rekey"], 65, &["has the master key itself"]);
}

#[test]
fn a_stolen_copy_of_the_store_has_neither_a_key_nor_a_secret() {
    let store = Schema::new();
    let (first, _service, session) = first_host_in_use(&store);
    let second = joined_and_admitted(&store, &first, "eu-2");
    second.run(&["host", "rekey"]).ok();
    let dump = store.dump();
    assert!(dump.contains("'eu-2'") && dump.contains("'ann'"), "the dump isn't of this store:\n{dump}");
    let mut secret = vec![("the session", session.into_bytes())];
    for (what, path) in
        [("the master key", first.path().join("master.key")), ("the host key", host_key(&second))]
    {
        secret.push((what, fs::read(path).expect(what)));
    }
    let dump = dump.to_lowercase();
    for (what, bytes) in secret {
        let as_base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        for form in [hex::encode(&bytes), as_base64.to_lowercase(), text] {
            assert!(!dump.contains(&form), "{what} is in the dump");
        }
    }
    // Neither does a home on it open anything that was never admitted.
    let (thief, _) = join(&store, "thief");
    refuses(&thief, &["credential", "export", "ann"], 77, &["nobody has admitted this host"]);
}

#[test]
fn a_home_with_a_file_of_its_own_has_no_hosts_to_let_in() {
    let home = TestHome::new();
    assert_eq!(home.json(&["host", "list"]), json!([]));
    let alone = "this home keeps everything in a file of its own";
    assert!(home.run(&["host", "list"]).ok().stderr.contains(alone));
    refuses(&home, &["host", "revoke", "eu-2"], 65, &[alone]);
    refuses(&home, &["host", "admit", "eu-2", "--fingerprint", "00"], 3, &["no host is called `eu-2`"]);
    refuses(&home, &["host", "rekey"], 65, &["has the master key itself"]);
}
