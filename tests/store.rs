//! A home's store goes to PostgreSQL and back, by the binary and a real server: nothing is lost
//! whatever dies when, everything says the same before and after, and what can't be a target is
//! left as it is.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use serde_json::Value;

use crate::harness::*;
use crate::postgres_server::Postgres;

/// Every place a move can be cut at, in its order, and whether the other store is the one then.
const CUTS: [(&str, bool); 7] = [
    ("move.begun", false),
    ("move.copied", false),
    ("move.comparing", false),
    ("move.whole", false),
    ("move.retired", true),
    ("move.opened", true),
    ("move.named", true),
];

/// A home with credentials, one of them dead, and their reports.
fn home_in_use() -> (TestHome, Service) {
    let (home, service) = (TestHome::on_file(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    for id in ["ann", "bob", "cam"] {
        home.add_session(id, "well-behaved", &service, &["--every", "1h"]);
        home.json(&["credential", "validate", id]);
    }
    home.run(&["credential", "pause", "bob"]).ok();
    (home, service)
}

/// All that a person can ask without a daemon.
fn said(home: &TestHome) -> Vec<Value> {
    let mut status = home.json(&["status"]);
    // How much room there is isn't the store's.
    status.as_object_mut().expect("an object").remove("needs");
    let mut said = vec![status];
    for arguments in [
        &["credential", "list"][..],
        &["credential", "show", "ann"],
        &["credential", "export", "ann", "--format", "json"],
        &["credential", "export", "bob", "--format", "json"],
        &["reports", "list"],
        &["plugin", "history"],
    ] {
        said.push(home.json(arguments));
    }
    said
}

fn server_of_ours() -> Postgres {
    let server = Postgres::start();
    server.with_database("keywheel");
    server
}

/// The address of a new and empty schema there.
fn place(server: &Postgres, schema: &str) -> String {
    server.sql("keywheel", &format!("CREATE SCHEMA {schema} AUTHORIZATION keywheel"));
    in_schema(&server.url("keywheel"), schema)
}

fn in_schema(url: &str, schema: &str) -> String {
    format!("{url}?options=-csearch_path%3D{schema}")
}

fn to_server(url: &str) -> [&str; 6] {
    ["store", "migrate", "--to", "postgres", "--url", url]
}

const TO_FILE: [&str; 4] = ["store", "migrate", "--to", "sqlite"];

fn config(home: &TestHome) -> String {
    fs::read_to_string(home.path().join("config.toml")).expect("config.toml")
}

#[test]
fn a_home_goes_to_a_server_and_back_and_says_the_same_of_everything() {
    let (home, service) = home_in_use();
    let (before, config_before) = (said(&home), config(&home));
    let server = server_of_ours();
    let url = place(&server, "there");
    let shown = home.json(&["store", "show"]);
    assert_eq!((&shown["engine"], &shown["state"]), (&"sqlite".into(), &"in-use".into()), "{shown}");
    assert_eq!(shown["rows"]["credentials"], 3, "{shown}");

    // With a key that opens nothing: no secret is opened on the way.
    let key = home.path().join("master.key");
    let genuine = fs::read(&key).expect("the key");
    let mut other = genuine.clone();
    for byte in &mut other {
        if byte.is_ascii_hexdigit() {
            *byte = if *byte == b'0' { b'1' } else { b'0' };
        }
    }
    fs::write(&key, &other).expect("another key");
    let moved = home.json(&[&to_server(&url)[..], &["--from", "sqlite"]].concat());
    fs::write(&key, &genuine).expect("the key");
    assert_eq!(moved["outcome"], "copied", "{moved}");
    let reports = moved["tables"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|of| of["table"] == "cookie_rotation_reports");
    assert_eq!(reports.expect("the reports")["rows"], 3, "{moved}");

    assert_eq!(said(&home), before);
    assert_eq!(server.sql("keywheel", "SELECT count(*) FROM there.credentials"), "3");
    assert!(config(&home).starts_with(&config_before), "{}", config(&home));
    let shown = home.json(&["store", "show"]);
    assert_eq!((&shown["engine"], &shown["state"]), (&"postgres".into(), &"in-use".into()), "{shown}");
    assert!(shown["cameFrom"]["name"].as_str().is_some_and(|name| name.ends_with("keywheel.db")), "{shown}");
    assert_eq!(home.json(&to_server(&url))["outcome"], "already");

    // Everything goes on there.
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
    home.add_session("dora", "well-behaved", &service, &[]);
    let there = said(&home);

    // A person reads it as a table, too.
    let back = home.run(&TO_FILE).ok();
    assert!(back.stdout.contains("both sides are the same"), "{}", back.stdout);
    assert_eq!(said(&home), there);
    assert_eq!(config(&home), config_before);
    assert_eq!(home.json(&["store", "show"])["engine"], "sqlite");
    let aside = fs::read_dir(home.path()).expect("the home").flatten();
    assert!(
        aside
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("keywheel.db.retired-")),
        "the first file is kept"
    );
}

#[test]
fn killed_at_any_step_either_way_the_home_has_one_store_and_the_next_try_ends_the_move() {
    let (home, _service) = home_in_use();
    let (before, server) = (said(&home), server_of_ours());
    let cut = |arguments: &[&str], point: &str| {
        let cut = home.command(arguments).env("KEYWHEEL_CRASH_AT", point).output().expect("it starts");
        assert_eq!(cut.status.signal(), Some(9), "{point}: {cut:?}");
    };
    for (number, (point, is_over)) in CUTS.into_iter().enumerate() {
        let url = place(&server, &format!("cut_{number}"));
        for arguments in [&to_server(&url)[..], &TO_FILE[..]] {
            cut(arguments, point);
            assert_eq!(said(&home), before, "{point}, {arguments:?}");
            // Who opens the home to write does what was left; before its end the old store is whole.
            if number % 2 == 0 {
                home.run(&["credential", "pause", "bob"]).ok();
            }
            let outcome = home.json(arguments)["outcome"].clone();
            match is_over {
                false => assert_eq!(outcome, "copied", "{point}"),
                true => assert!(outcome == "finished" || outcome == "already", "{point}: {outcome}"),
            }
            assert_eq!(said(&home), before, "{point}, {arguments:?}, again");
        }
        // The file that went there and was retired is of no use to the next.
        for entry in fs::read_dir(home.path()).expect("the home").flatten() {
            if entry.file_name().to_string_lossy().contains(".retired-") {
                fs::remove_file(entry.path()).expect("it goes");
            }
        }
    }
}

#[test]
fn a_daemon_goes_on_after_a_move_was_cut_and_ends_it_first() {
    let (home, _service) = home_in_use();
    let server = server_of_ours();
    let url = place(&server, "taken_up");
    let cut =
        home.command(&to_server(&url)).env("KEYWHEEL_CRASH_AT", "move.retired").output().expect("it starts");
    assert_eq!(cut.status.signal(), Some(9), "{cut:?}");
    assert_eq!(home.json(&["store", "show"])["state"], "retired");
    let daemon = home.serve();
    assert_eq!(home.json(&["store", "show"])["engine"], "postgres");
    // A store in use doesn't move.
    let refused = home.run(&TO_FILE);
    assert_eq!(refused.code(), 75, "{refused:?}");
    assert!(refused.stderr.contains(&format!("process {}", daemon.pid())), "{}", refused.stderr);
    daemon.stop();
    home.run(&TO_FILE).ok();
}

#[test]
fn what_cannot_be_a_target_is_refused_and_neither_side_is_changed() {
    let (home, _service) = home_in_use();
    let server = server_of_ours();
    let (before, config_before) = (said(&home), config(&home));
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let refused = home.run(arguments);
        assert_eq!(refused.code(), code, "{arguments:?}: {refused:?}");
        for word in words {
            assert!(refused.stderr.contains(word), "{arguments:?}: {}\nlacks {word}", refused.stderr);
        }
        assert_eq!(said(&home), before, "{arguments:?}");
        assert_eq!(config(&home), config_before, "{arguments:?}");
    };

    let foreign = place(&server, "foreign_one");
    server.sql(
        "keywheel",
        "CREATE TABLE foreign_one.notes (text text); INSERT INTO foreign_one.notes VALUES ('mine')",
    );
    refused(&to_server(&foreign), 78, &["is not a Keywheel database", "left as it is"]);
    assert_eq!(server.sql("keywheel", "SELECT text FROM foreign_one.notes"), "mine");
    assert_eq!(server.sql("keywheel", "SELECT count(*) FROM pg_class WHERE relname = 'credentials'"), "0");

    // Another home's, first in use and then retired.
    let (theirs, _their_service) = home_in_use();
    let taken = place(&server, "taken");
    theirs.run(&to_server(&taken)).ok();
    let count = || server.sql("keywheel", "SELECT count(*), max(length(sealed)) FROM taken.generation_keys");
    let there = count();
    refused(&to_server(&taken), 65, &["was left as it is", "of its own", "hint:"]);
    theirs.run(&TO_FILE).ok();
    refused(&to_server(&taken), 65, &["what moved to"]);
    assert_eq!(count(), there);

    let newer = place(&server, "newer");
    server.sql("keywheel", "CREATE TABLE newer.keywheel_schema (version bigint)");
    server.sql("keywheel", "INSERT INTO newer.keywheel_schema VALUES (999)");
    server.sql("keywheel", "ALTER TABLE newer.keywheel_schema OWNER TO keywheel");
    refused(&to_server(&newer), 78, &["schema 999"]);

    server.sql("keywheel", "CREATE ROLE guarded LOGIN PASSWORD 'right-horse'");
    server.sql("keywheel", "CREATE SCHEMA guarded AUTHORIZATION guarded");
    let rules = "local all guarded scram-sha-256\nlocal all all trust\n";
    fs::write(server.socket().with_file_name("data").join("pg_hba.conf"), rules).expect("the rules");
    server.sql("keywheel", "SELECT pg_reload_conf()");
    let (locked, file) = (
        in_schema(&server.url("keywheel").replace("keywheel@", "guarded@"), "guarded"),
        home.outside().join("password"),
    );
    let with_password =
        [&to_server(&locked)[..], &["--password-file", file.to_str().expect("UTF-8")]].concat();
    refused(&with_password, 78, &["password"]);
    fs::write(&file, "wrong-horse\n").expect("a file");
    refused(&with_password, 75, &["password authentication failed"]);
    refused(&to_server("postgres://keywheel@127.0.0.1:1/keywheel"), 75, &["can't be used"]);
    refused(&to_server("postgres://keywheel:secret@127.0.0.1:1/keywheel"), 78, &["password in it"]);
    refused(&[&TO_FILE[..], &["--from", "postgres"]].concat(), 0, &[]);
    refused(&[&to_server(&locked)[..], &["--from", "postgres"]].concat(), 2, &["this home uses sqlite"]);
    refused(&[&TO_FILE[..], &["--url", &locked]].concat(), 2, &[]);
    refused(&["store", "migrate", "--to", "postgres"], 2, &["--url"]);

    // And the right one.
    fs::write(&file, "right-horse\n").expect("a file");
    home.run(&with_password).ok();
    assert_eq!(said(&home), before);
    assert!(config(&home).contains("password_file = "), "{}", config(&home));
}

#[test]
fn a_retired_store_is_refused_where_it_is_named_again_until_it_is_reopened_in_doubt() {
    let (home, _service) = home_in_use();
    let config_before = config(&home);
    let server = server_of_ours();
    let url = place(&server, "named_again");
    home.run(&to_server(&url)).ok();
    fs::write(home.path().join("config.toml"), &config_before).expect("config.toml");
    for arguments in [&["serve"][..], &["credential", "pause", "ann"], &to_server(&url)] {
        let refused = home.run(arguments);
        assert_eq!(refused.code(), 78, "{arguments:?}: {refused:?}");
        for word in ["retired", "postgres://", "keywheel store reopen"] {
            assert!(refused.stderr.contains(word), "{arguments:?}: {}", refused.stderr);
        }
    }
    assert_eq!(config(&home), config_before);
    let shown = home.json(&["store", "show"]);
    assert_eq!(shown["state"], "retired");
    assert!(shown["movedTo"]["name"].as_str().is_some_and(|name| name.starts_with("postgres://")), "{shown}");

    let asked = home.run(&["store", "reopen"]);
    assert_eq!(asked.code(), 2, "{asked:?}");
    assert_eq!(home.json(&["store", "reopen", "--yes"])["credentials"], 3);
    let again = home.run(&["store", "reopen", "--yes"]);
    assert_eq!(again.code(), 65, "{again:?}");
    assert_eq!(home.json(&["credential", "validate", "ann"])["status"], "success");
}

#[test]
fn a_store_that_is_away_is_said_to_be_and_why() {
    let (home, _service) = home_in_use();
    let server = server_of_ours();
    home.run(&to_server(&server.url("keywheel"))).ok();
    server.stop();
    let shown = home.run(&["store", "show", "--json"]);
    assert_eq!(shown.code(), 75, "{shown:?}");
    let value = shown.json();
    assert_eq!((&value["engine"], &value["reachable"]), (&"postgres".into(), &false.into()), "{value}");
    assert!(value["why"].as_str().is_some_and(|why| !why.is_empty()), "{value}");
    server.restart();
    assert_eq!(home.json(&["store", "show"])["reachable"], true);
    home.run(&TO_FILE).ok();
}

#[test]
fn a_standby_a_server_that_does_not_sync_and_one_without_tls_are_no_stores() {
    let server = server_of_ours();
    let home = TestHome::without_init().with_store(&server.url("keywheel"));
    home.run(&["init"]).ok();
    let refused = |home: TestHome, words: &[&str]| {
        for arguments in [&["status"][..], &["credential", "list"], &["serve"]] {
            let refused = home.run(arguments);
            assert!([75, 78].contains(&refused.code()), "{arguments:?}: {refused:?}");
            for word in words {
                assert!(refused.stderr.contains(word), "{arguments:?}: {}\nlacks {word}", refused.stderr);
            }
        }
        home
    };
    let standby = server.standby(false);
    let home = refused(
        home.with_store(&standby.url("keywheel")),
        &["can't be the store", "as a standby can't", "hint:"],
    );

    let careless = Postgres::start_with(&["fsync=off"]);
    careless.with_database("keywheel");
    let home = refused(home.with_store(&careless.url("keywheel")), &["its fsync is off", "hint:"]);

    // The same server, where the configuration asks for more than it has.
    let text = format!("[store]\nurl = \"{}\"\ntls = \"require\"\n", server.url("keywheel"));
    fs::write(home.path().join("config.toml"), text).expect("a configuration");
    refused(home.with_store(""), &["can't be used", "TLS"]);
}
