//! What a person and a script get from the command line itself, whatever the command: tables that
//! fit, a status that says what to do, names that were probably meant, exit codes that agree with
//! what is written of them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::*;

/// Runs a command on a terminal so wide, and returns what it showed, colours and all.
fn on_terminal(home: &TestHome, columns: u32, environment: &str, line: &str) -> (i32, String) {
    let program = env!("CARGO_BIN_EXE_keywheel");
    let inside = format!("stty cols {columns} rows 50; {environment} {program} {line}");
    let mut script = command("script");
    script.args(["--quiet", "--return", "--echo", "never", "--command", &inside, "/dev/null"]);
    script.env_clear().env("HOME", home.outside()).env("KEYWHEEL_HOME", home.path()).env("TERM", "xterm");
    script.env("PATH", std::env::var_os("PATH").expect("a PATH"));
    let output = script.stdin(Stdio::null()).output().expect("`script` of util-linux starts");
    let shown = String::from_utf8(output.stdout).expect("UTF-8").replace('\r', "");
    (output.status.code().unwrap_or(-1), shown)
}

/// Without what colours it.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            letters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(letter);
        }
    }
    plain
}

const LONG: &str = "the-shop-account-of-the-whole-team-in-the-second-office-01";

/// Two sessions, one of which has a long name.
fn home_in_use() -> (TestHome, Service) {
    let (home, service) = (TestHome::new(), Service::start(OldSession::Stays));
    home.drop_plugin(&guest("well_behaved"));
    home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    home.add_session(LONG, "well-behaved", &service, &["--every", "1h"]);
    (home, service)
}

#[test]
fn a_table_fits_its_terminal_and_a_pipe_gets_all_of_it() {
    let (home, service) = home_in_use();
    for id in ["ann", LONG] {
        assert_eq!(home.run(&["credential", "validate", id]).code(), 0);
    }
    service.forget(&service.issued()[0]);
    assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 1);
    for columns in [60, 80, 120, 200] {
        for line in ["credential list", "reports list", "credential history ann", "plugin list", "status"] {
            let (_, shown) = on_terminal(&home, columns, "", line);
            let shown = plain(&shown);
            for row in shown.lines() {
                let is_wide = row.chars().count() > columns as usize;
                // What is said beside the table is prose, and the terminal's to wrap.
                let is_prose =
                    row.starts_with("left out") || row.starts_with("older ones") || row.starts_with("     ");
                assert!(!is_wide || is_prose, "{line} at {columns}:\n{shown}");
            }
        }
        let (_, list) = on_terminal(&home, columns, "", "credential list");
        let list = plain(&list);
        assert!(list.contains("CREDENTIAL") && list.contains("STATUS"), "{columns}:\n{list}");
        // The long name is told from others by both of its ends.
        assert!(list.contains("the-s") && list.contains("01"), "{columns}:\n{list}");
        assert!(list.contains("validation_failed") && list.contains("success"), "{columns}:\n{list}");
        assert_eq!(list.contains("--wide shows all"), columns < 120, "{columns}:\n{list}");
    }
    let (_, wide) = on_terminal(&home, 60, "", "credential list --wide");
    assert!(plain(&wide).contains(LONG) && plain(&wide).contains("LAST ATTEMPT"), "{wide}");
    assert!(wide.contains('\u{1b}'), "colours on a terminal: {wide:?}");
    let (_, grey) = on_terminal(&home, 80, "NO_COLOR=1", "credential list");
    assert!(!grey.contains("\u{1b}[3"), "{grey:?}");

    let piped = home.run(&["credential", "list"]).ok();
    let lines: Vec<Vec<&str>> = piped.stdout.lines().map(|line| line.split('\t').collect()).collect();
    let header = ["CREDENTIAL", "SERVICE", "STATUS", "LAST ATTEMPT", "EXPIRES", "NEXT", "MESSAGE"];
    assert_eq!(lines[0], header);
    assert!(lines.iter().all(|line| line.len() == header.len()), "{lines:?}");
    assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), ["CREDENTIAL", "ann", LONG]);
    assert!(!piped.stdout.contains('\u{1b}'));
}

#[test]
fn a_name_that_is_none_is_answered_with_the_one_that_was_meant() {
    let (home, _service) = home_in_use();
    for (arguments, code, meant) in [
        (&["credential", "show", "anm"][..], 3, "did you mean `ann`?"),
        (&["credential", "validate", "nan"], 3, "did you mean `ann`?"),
        (&["credential", "rotate", "anna"], 3, "did you mean `ann`?"),
        (&["credential", "rotate", "anna", "--plan"], 3, "did you mean `ann`?"),
        (&["credential", "export", "an"], 3, "did you mean `ann`?"),
        (&["credential", "remove", "anm"], 3, "did you mean `ann`?"),
        (&["credential", "list", "--service", "well-behavd"], 0, "did you mean `well-behaved`?"),
        (&["plugin", "pause", "wel-behaved"], 3, "did you mean `well-behaved`?"),
        (&["plugin", "show", "well-behave"], 3, "did you mean `well-behaved`?"),
        (&["plugin", "unpark", "wellbehaved"], 3, "did you mean `well-behaved`?"),
        (&["plugin", "install", "gitlub"], 3, "did you mean `git"),
        (&["credential", "add", "x", "--service", "wel-behaved"], 3, "did you mean `well-behaved`?"),
        (&["credential", "lits"], 2, "a similar subcommand exists: 'list'"),
        (&["credential", "list", "--failin"], 2, "a similar argument exists: '--failing'"),
    ] {
        let said = home.run(arguments);
        assert_eq!(said.code(), code, "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(meant), "{arguments:?}: {}\nlacks {meant}", said.stderr);
    }
    // What is nowhere near is not suggested.
    let said = home.run(&["credential", "show", "zzzzzz"]);
    assert!(!said.stderr.contains("did you mean"), "{said:?}");
}

fn needs(status: &Value) -> Vec<(String, String)> {
    let needs = status["needs"].as_array().expect("an array");
    let text = |need: &Value, name: &str| need[name].as_str().expect("text").to_owned();
    needs.iter().map(|need| (text(need, "kind"), text(need, "next"))).collect()
}

#[test]
fn status_says_whether_all_is_fine_and_else_what_to_do() {
    let home = TestHome::new();
    let empty = home.run(&["status"]);
    assert_eq!(empty.code(), 1, "no daemon runs: {empty:?}");
    assert!(empty.stdout.starts_with("1 thing needs you\n"), "{}", empty.stdout);
    assert!(empty.stdout.contains("\n     keywheel serve\n"), "{}", empty.stdout);

    let service = Service::start(OldSession::Stays);
    home.drop_plugin(&guest("well_behaved"));
    let _daemon = home.serve();
    let nothing = home.run(&["status"]).ok();
    assert!(nothing.stdout.starts_with("Everything is fine, and nothing is kept alive yet"), "{nothing:?}");
    let session = home.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    home.add_session("bob", "well-behaved", &service, &["--every", "1h"]);
    home.wait_for_reports("ann", 1);
    home.wait_for_reports("bob", 1);
    let fine = home.run(&["status"]).ok();
    assert!(fine.stdout.starts_with("Everything is fine: 2 credentials, next look in "), "{}", fine.stdout);
    let status = home.json(&["status"]);
    assert_eq!((&status["fine"], &status["needs"]), (&json!(true), &json!([])), "{status}");
    assert_eq!(status["counts"]["byStatus"], json!({ "success": 2 }), "{status}");
    assert_eq!(status["due"][0]["credentials"], 2, "{status}");

    // Worst first: the dead session, then the file that is no plugin.
    service.forget(&session);
    assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 1);
    fs::write(home.path().join("plugins/broken.wasm"), "no plugin").expect("a file");
    home.wait_for_plugin("broken.wasm", "refused");
    let status = home.json(&["status"]);
    let kinds: Vec<String> = needs(&status).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["invalid", "refused"], "{status}");
    let shown = home.run(&["status"]);
    assert_eq!(shown.code(), 1);
    assert!(shown.stdout.starts_with("2 things need you\n"), "{}", shown.stdout);
    let (first, second) =
        (shown.stdout.find("  1. `ann` of `well-behaved` is dead"), shown.stdout.find("  2. broken.wasm"));
    assert!(first.is_some() && first < second, "{}", shown.stdout);
    assert!(shown.stdout.contains("\n     keywheel credential import ann FILE\n"), "{}", shown.stdout);

    // A paused one is its operator's choice, and nobody is called for it.
    home.run(&["credential", "pause", "ann"]).ok();
    fs::remove_file(home.path().join("plugins/broken.wasm")).expect("the file");
    wait_until(SOON, "nothing needs a person", || (home.run(&["status"]).code() == 0).then_some(()));
    assert_eq!(home.json(&["status"])["counts"]["paused"], 1);
}

#[test]
fn a_script_can_tell_the_dead_from_what_could_not_be_told() {
    let home = TestHome::new();
    let service = Service::start(OldSession::Stays);
    home.drop_plugin(&guest("well_behaved"));
    let session = home.add_session("ann", "well-behaved", &service, &[]);
    assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 0);
    service.forget(&session);
    assert_eq!(home.run(&["credential", "validate", "ann"]).code(), 1);
    // Nobody listens there.
    let nowhere = "base_url=http://127.0.0.1:9";
    home.add("bob", "well-behaved", "session=x", &["--set", nowhere]);
    let unknown = home.run(&["credential", "validate", "bob"]);
    assert_eq!(unknown.code(), 4, "{unknown:?}");
    assert_eq!(home.run(&["credential", "validate", "nobody"]).code(), 3);
}

/// The codes of a text whose lines or rows begin with them.
fn codes(text: &str) -> BTreeMap<u16, String> {
    let row = |line: &str| {
        let line = line.trim().trim_start_matches('|').trim();
        let end = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len());
        let code = line[..end].parse().ok()?;
        Some((code, line[end..].trim_matches([' ', '|']).to_owned()))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn the_exit_codes_of_the_help_are_those_of_the_page() {
    let home = TestHome::without_init();
    let help = home.run(&["--help"]).ok().stdout;
    let (_, of_help) = help.split_once("Exit codes:\n").expect("the codes");
    let page = fs::read_to_string(source("docs/operating.md")).expect("the page");
    let (_, section) = page.split_once("\n| code | meaning |\n").expect("the table");
    let of_page = section.split("\n\n").next().expect("a table");
    let (of_help, of_page) = (codes(of_help), codes(of_page));
    let list = |codes: &BTreeMap<u16, String>| codes.keys().copied().collect::<Vec<_>>();
    assert_eq!(list(&of_help), [0, 1, 2, 3, 4, 65, 75, 77, 78, 130]);
    assert_eq!(list(&of_help), list(&of_page));
}
