//! docs/scaling.md: its tables are what its simulation prints, and its way from one host to two is
//! walked as it is written there.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::*;
use crate::postgres_server::Postgres;

#[test]
fn the_tables_of_the_page_on_scaling_are_what_its_simulation_prints() {
    let output = command("python3")
        .arg(source("docs/scaling/simulate.py"))
        .stdin(Stdio::null())
        .output()
        .expect("python3 starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let page = std::fs::read_to_string(source("docs/scaling.md")).expect("the page");
    let tables: Vec<&str> = printed.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect();
    // A title and a table each.
    assert!(tables.len() >= 10, "{printed}");
    for table in tables {
        assert!(page.contains(table), "this is not on the page:\n{table}");
    }
}

/// The lines of the shell that a section of the page shows, one after the other.
fn lines_of(page: &str, section: &str) -> Vec<String> {
    let part = page.split("\n## ").find(|part| part.starts_with(section)).expect("the section");
    let blocks = part.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.flat_map(str::lines).map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Two machines, of which one has lived on a file. What the page calls by other names here: the
/// server's address, the file with the password, and the fingerprint that a screen shows.
#[test]
fn whoever_follows_the_page_goes_from_one_host_on_a_file_to_two_on_postgresql() {
    const PASSWORD: &str = "chosen-for-this-test";
    let server = Postgres::start();
    server.sql("postgres", "DROP ROLE keywheel");
    let (one, two) = (TestHome::on_file(), TestHome::without_init());
    let service = Service::start(OldSession::Stays);
    one.drop_plugin(&guest("well_behaved"));
    one.add_session("ann", "well-behaved", &service, &["--every", "1h"]);
    let secret = one.run(&["credential", "export", "ann", "--format", "json"]).ok().stdout;
    let mut daemons = vec![one.serve()];

    let password_file = one.outside().join("db.password");
    std::fs::write(&password_file, format!("{PASSWORD}\n")).expect("a file");
    let address = server.url("keywheel");
    let mut fingerprint = String::new();
    let mut typed = 0;
    for line in
        lines_of(&std::fs::read_to_string(source("docs/scaling.md")).expect("the page"), "From one host")
    {
        let line = line
            .replace("postgres://keywheel@db.example/keywheel", &address)
            .replace("/etc/keywheel/db.password", password_file.to_str().expect("UTF-8"))
            .replace("0a1b-2c3d-4e5f-6071-8293-a4b5-c6d7-e8f9", &fingerprint);
        let words: Vec<&str> = line.split_whitespace().collect();
        typed += 1;
        match words.as_slice() {
            ["createuser" | "createdb", more @ ..] => {
                let mut client = command(words[0]);
                client
                    .args(more)
                    .env("PGHOST", server.socket().parent().expect("a folder"))
                    .env("PGUSER", "postgres");
                // It asks a terminal, where there is one, and here its input.
                let mut asked = command("setsid");
                asked.arg(client.get_program()).args(client.get_args());
                asked.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
                let mut asked = asked.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
                let mut answers = asked.stdin.take().expect("piped");
                // Who asks for none may be gone.
                let _ = writeln!(answers, "{PASSWORD}\n{PASSWORD}");
                drop(answers);
                assert!(asked.wait().expect("it ends").success(), "{line}");
                if words[0] == "createdb" {
                    server.ask_for_password("keywheel", PASSWORD);
                }
            }
            ["systemctl", "stop", "keywheel"] => {
                let daemon = daemons.pop().expect("it runs");
                assert_eq!(daemon.stop().code(), Some(0));
            }
            ["systemctl", "start", "keywheel"] => daemons.push(one.serve()),
            ["keywheel", "host", "join", more @ ..] => {
                let joined = two.run(&[&["host", "join"], more].concat()).ok();
                let digits = |word: &&str| word.len() == 39 && word.split('-').all(|part| part.len() == 4);
                fingerprint =
                    joined.stdout.split_whitespace().find(digits).expect("a fingerprint").to_owned();
            }
            ["keywheel", more @ ..] => drop(one.run(more).ok()),
            _ => panic!("the page says `{line}`"),
        }
    }
    assert_eq!(typed, 8, "a step more or less: look whether it is walked here");
    daemons.push(two.serve());

    for home in [&one, &two] {
        wait_until(SOON, "both hosts run", || {
            let list = home.json(&["host", "list"]);
            let running = |row: &&Value| row["state"] == "running";
            (list.as_array().expect("an array").iter().filter(running).count() == 2).then_some(())
        });
    }
    // The second has everything, and goes on alone: the plugin that it was never given, and the secret.
    assert_eq!(daemons.remove(0).stop().code(), Some(0));
    let report = two.json(&["credential", "validate", "ann"]);
    assert_eq!(report["status"], "success", "{report}");
    assert_eq!(two.run(&["credential", "export", "ann", "--format", "json"]).ok().stdout, secret);
}
