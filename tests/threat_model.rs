//! docs/threat-model.md against the tests: each attack in it names the tests that show it is
//! stopped, and they exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::source;

/// The names of all functions with a test attribute, with the files they are in.
fn tests_below(folder: &Path, found: &mut BTreeSet<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                let line = line.trim();
                if !(line.starts_with("#[test") || line.starts_with("#[tokio::test")) {
                    continue;
                }
                let after = lines.by_ref().map(str::trim).find(|line| line.contains("fn "));
                if let Some(name) = after.and_then(|line| line.split("fn ").nth(1)?.split('(').next()) {
                    found.insert((path.display().to_string(), name.to_owned()));
                }
            }
        }
    }
}

/// Whether a test of this path is in a file of its module.
fn exists(name: &str, all: &BTreeSet<(String, String)>) -> bool {
    let parts: Vec<_> = name.split("::").collect();
    let Some((test, modules)) = parts.split_last() else { return false };
    let in_module = |file: &str| {
        let stem = Path::new(file).with_extension("").display().to_string();
        let file: Vec<_> = stem.split('/').collect();
        // The last module may be one inside the file (`tests`), so the one before counts too.
        modules.iter().rev().take(2).any(|module| {
            file.last() == Some(module)
                || (file.last() == Some(&"mod") && file.iter().rev().nth(1) == Some(module))
        })
    };
    all.iter().any(|(file, known)| known == test && in_module(file))
}

#[test]
fn every_attack_of_the_threat_model_names_tests_that_exist() {
    let mut all = BTreeSet::new();
    for folder in ["host/src", "tests", "plugin-sdk/src"] {
        tests_below(&source(folder), &mut all);
    }
    assert!(all.len() > 300, "only {} tests were found", all.len());
    assert!(exists("hostile::a_request_is_the_one_the_host_wrote", &all));
    assert!(
        !exists("hostile::no_such_test", &all)
            && !exists("secrets::a_request_is_the_one_the_host_wrote", &all)
    );

    let page = std::fs::read_to_string(source("docs/threat-model.md")).expect("the threat model");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let (mut attacks, mut wrong) = (0, Vec::new());
    for row in rows.filter(|row| !row.starts_with("| attack")) {
        let columns: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [attack, _, shown_by] = columns[..] else { panic!("not three columns: {row}") };
        attacks += 1;
        let names: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("no test: {attack}"));
        }
        wrong.extend(
            names.iter().filter(|name| !exists(name, &all)).map(|name| format!("no such test: {name}")),
        );
    }
    assert!(attacks > 35, "only {attacks} attacks");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
