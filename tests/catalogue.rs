//! What comes with Keywheel is what the catalogue says: `plugins/catalogue.json` and
//! `docs/providers/README.md` are written from the providers' own manifests, as a sandboxed
//! worker reads them out. With `KEYWHEEL_WRITE=1` these tests write both anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::*;

/// Every provider's file that comes with Keywheel, by service.
pub fn files() -> BTreeMap<String, PathBuf> {
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let is_plugin = path.extension().is_some_and(|extension| extension == "wasm" || extension == "toml");
        let service = path.file_stem()?.to_str()?.to_owned();
        (is_plugin && service != "template-provider").then_some((service, path))
    };
    fs::read_dir(providers()).expect("the providers").filter_map(file).collect()
}

/// What each says of itself, in the catalogue's form.
fn described() -> Vec<Value> {
    let home = TestHome::new();
    let _daemon = home.serve();
    let files = files();
    let waiting: Arc<Mutex<Vec<PathBuf>>> = Arc::new(Mutex::new(files.values().cloned().collect()));
    let said = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(file) = waiting.lock().expect("no panic").pop() else { return };
                    let checked = home.json(&["plugin", "check", file.to_str().expect("UTF-8")]);
                    let service = checked["service"].as_str().expect("a service").to_owned();
                    said.lock().expect("no panic").insert(service, checked["provider"].clone());
                }
            });
        }
    });
    let said = said.into_inner().expect("no panic");
    let named: Vec<_> = said.keys().collect();
    assert_eq!(named, files.keys().collect::<Vec<_>>(), "each file is named after its service");
    said.into_values().collect()
}

fn page_of(service: &str) -> PathBuf {
    source(&format!("docs/providers/{service}.md"))
}

fn is_template(service: &str) -> bool {
    source(&format!("plugins/template-provider/providers/{service}.toml")).exists()
}

fn readme(entries: &[Value]) -> String {
    let mut text = String::from(
        "# Providers that come with Keywheel\n\n\
         `keywheel plugin install SERVICE` installs one, `keywheel plugin list --available` lists them. \
         What a provider needs and what its rotation does to the old secret stands on its page; the \
         words for that are the [commit classes](../writing-a-provider.md#commit-classes). This page is \
         written from the providers' manifests by a test (`tests/catalogue.rs`).\n",
    );
    let (rotating, validating): (Vec<_>, Vec<_>) = entries
        .iter()
        .partition(|entry| entry["methods"].as_array().is_some_and(|methods| !methods.is_empty()));
    for (heading, entries) in [("Validated and rotated", rotating), ("Validated", validating)] {
        let rotates = heading.contains("rotated");
        let class = if rotates { " rotation |" } else { "" };
        let rule = if rotates { " --- |" } else { "" };
        write!(
            text,
            "\n## {heading}\n\n| service | what |{class} keys | settings | made of |\n| --- | --- |{rule} --- | --- | --- |\n"
        )
        .expect("a String takes everything");
        for entry in entries {
            let service = entry["service"].as_str().expect("a service");
            let names = |list: &Value| {
                let mut names = Vec::new();
                for item in list.as_array().expect("a list") {
                    let name = item["name"].as_str().expect("a name");
                    let required = item["required"] == true;
                    names.push(if required { format!("**{name}**") } else { name.to_owned() });
                }
                names.join(", ")
            };
            let methods = entry["methods"].as_array().expect("a list");
            let class = methods.iter().map(|method| {
                let class = method["commitClass"].as_str().expect("a class");
                match method["source"].as_str() {
                    Some(url) => format!("[{class}]({url})"),
                    None => class.to_owned(),
                }
            });
            let class: Vec<_> = class.collect();
            let class = if rotates { format!(" {} |", class.join(", ")) } else { String::new() };
            writeln!(
                text,
                "| [`{service}`]({service}.md) | {} |{class} {} | {} | {} |",
                entry["title"].as_str().expect("a title"),
                names(&entry["keys"]),
                names(&entry["settings"]),
                if is_template(service) { "template" } else { "code" },
            )
            .expect("a String takes everything");
        }
    }
    text.push_str("\nRequired keys and settings are bold.\n");
    text
}

/// Compares a file with what it should be, or writes it.
fn holds(path: &Path, wanted: &str) {
    if std::env::var_os("KEYWHEEL_WRITE").is_some() {
        fs::write(path, wanted).expect("the file can be written");
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the providers say of themselves; hint: KEYWHEEL_WRITE=1 cargo test -p keywheel \
         --test integration catalogue:: writes it anew, then plugins/build.sh puts it beside them",
        path.display()
    );
}

#[test]
fn catalogue_and_page_say_what_the_providers_say_of_themselves() {
    let entries = described();
    let json = serde_json::to_string_pretty(&entries).expect("JSON") + "\n";
    holds(&source("plugins/catalogue.json"), &json);
    holds(&source("docs/providers/README.md"), &readme(&entries));
    for entry in &entries {
        let service = entry["service"].as_str().expect("a service");
        let page = fs::read_to_string(page_of(service))
            .unwrap_or_else(|error| panic!("{} says nothing: {error}", page_of(service).display()));
        for name in ["keys", "settings"].iter().flat_map(|part| entry[part].as_array().expect("a list")) {
            let name = format!("`{}`", name["name"].as_str().expect("a name"));
            assert!(page.contains(&name), "docs/providers/{service}.md doesn't speak of {name}");
        }
    }
}

/// What a plugin may have in bytes: it is copied, hashed, compiled, mapped into each of its workers
/// and kept by every operator.
pub const ROOM: u64 = 100 << 10;

/// Those of the folder that are crates. The interpreter of templates is none of them: it carries a
/// TOML parser and the room for a template's text, and one file of it serves every template.
#[test]
fn every_provider_in_rust_fits_into_100_kib() {
    let crates: Vec<String> = fs::read_dir(source("plugins"))
        .expect("the folder of providers")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("Cargo.toml").exists() && !path.ends_with("template-provider"))
        .map(|path| path.file_name().expect("a name").to_str().expect("UTF-8").to_owned())
        .collect();
    assert!(crates.iter().any(|name| name == "oauth2-refresh"), "not the providers: {crates:?}");
    let size = |name: &String| {
        fs::metadata(providers().join(format!("{name}.wasm"))).expect("`make plugins` built it").len()
    };
    let too_large: Vec<_> =
        crates.iter().map(|name| (name, size(name))).filter(|(_, size)| *size >= ROOM).collect();
    assert!(too_large.is_empty(), "larger than {ROOM} bytes: {too_large:?}");
}

#[test]
fn a_provider_is_installed_by_its_name_and_a_mistyped_name_is_told_the_nearest() {
    let home = TestHome::new();
    let available = home.json(&["plugin", "list", "--available"]);
    let services: Vec<_> =
        available.as_array().expect("a list").iter().filter_map(|entry| entry["service"].as_str()).collect();
    assert_eq!(services, files().keys().collect::<Vec<_>>());
    let add = ["credential", "add", "ann", "--service", "oauth2-refresh"];
    let refused = home.run_with_input(&add, "refresh_token=made-up");
    assert_eq!(refused.code(), 3);
    assert!(refused.stderr.contains("`keywheel plugin install oauth2-refresh`"), "{}", refused.stderr);
    assert_eq!(home.json(&["plugin", "install", "oauth2-refresh"])["state"], "active");
    let listed = home.run(&["plugin", "list", "--available"]).ok().stdout;
    let line = listed.lines().find(|line| line.contains("oauth2-refresh")).expect("its line");
    assert!(line.contains("yes"), "{line}");
    let refused = home.run(&["plugin", "install", "oauth2-refesh"]);
    assert_eq!(refused.code(), 3);
    assert!(refused.stderr.contains("did you mean `oauth2-refresh`?"), "{}", refused.stderr);
    // A file of one's own is meant where there is one.
    let missing = home.run(&["plugin", "install", "./oauth2-refresh.wasm"]);
    assert!(missing.stderr.contains("oauth2-refresh.wasm"), "{}", missing.stderr);
    assert!(!missing.stderr.contains("comes with Keywheel"), "{}", missing.stderr);
}
