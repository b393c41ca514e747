//! What the documentation says is tried: its example is what a new project has (which
//! `newcomer.rs` builds and runs), and every command it names exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::architecture::without_what_is_not_built;
use crate::harness::*;

/// README.md, every page in docs/ and those of the providers.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["docs", "docs/providers"]
        .iter()
        .flat_map(|folder| fs::read_dir(source(folder)).expect("a folder of pages"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.extend(Some(source("README.md")).filter(|path| path.exists()));
    pages.sort();
    pages
}

/// The fenced blocks of a page, without their fences.
pub fn blocks(page: &str) -> Vec<&str> {
    page.split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.split_once('\n'))
        .map(|(_, code)| code)
        .collect()
}

/// The blocks whose first line says which file of a new project they are from, with that name.
fn excerpts<'a>(page: &'a str) -> Vec<(&'a str, &'a str)> {
    let of = |block: &'a str| {
        let (first, rest) = block.split_once('\n')?;
        let name = first.strip_prefix("# from ").or_else(|| first.strip_prefix("// from "))?;
        Some((name, rest.trim_end()))
    };
    blocks(page).into_iter().filter_map(of).collect()
}

/// There is one example: what the page shows and explains is what `plugin new` writes.
#[test]
fn the_page_on_providers_shows_the_text_of_a_new_project() {
    let page = fs::read_to_string(source("docs/writing-a-provider.md")).expect("the page");
    let home = TestHome::without_init();
    let mut new = home.command(&["plugin", "new", "forge"]);
    let output = with_tools(&mut new).current_dir(home.outside()).output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let excerpts = excerpts(&page);
    for (name, text) in &excerpts {
        let file = fs::read_to_string(home.outside().join("forge").join(name)).expect(name);
        assert!(file.contains(text), "the page has of {name} what isn't in it:\n{text}");
    }
    let names: Vec<_> = excerpts.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["src/lib.rs", "src/lib.rs", "src/lib.rs", "src/lib.rs", "fixtures/alive.toml"]);
}

/// The command lines of a page that start `keywheel`, in blocks and between backticks.
fn command_lines(page: &str) -> Vec<Vec<String>> {
    let fenced = blocks(page).into_iter().flat_map(str::lines);
    let prose: String = page.split("\n```").step_by(2).collect();
    let spans: Vec<&str> = prose.split('`').skip(1).step_by(2).collect();
    let mut found = Vec::new();
    for line in fenced.chain(spans) {
        for command in line.split(['|', ';', '&']) {
            let words = command.split_whitespace().skip_while(|word| *word == "$" || word.contains('='));
            let words: Vec<String> = words.take_while(|word| *word != "#").map(str::to_owned).collect();
            let is_log = words[1.min(words.len())..] == ["is", "ready"];
            let is_ours = words.first().is_some_and(|word| word == "keywheel" || word.ends_with("/keywheel"));
            // The daemon's first line of log is quoted as well.
            if is_ours && !is_log {
                found.push(words[1..].to_vec());
            }
        }
    }
    found
}

#[test]
fn command_lines_are_found_in_blocks_and_in_prose() {
    let page = "Run `keywheel init`.\n\n```sh\n$ A=b ./target/keywheel plugin check x.wasm --json # look\ncat x | keywheel credential add ann\nkeywheels no\n```\n\nThen `cargo run -p keywheel`.\n";
    let found: Vec<String> = command_lines(page).iter().map(|words| words.join(" ")).collect();
    assert_eq!(found, ["plugin check x.wasm --json", "credential add ann", "init"]);
}

#[test]
fn every_command_that_the_documentation_names_exists_with_its_options() {
    let home = TestHome::without_init();
    let is_name = |word: &&String| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let mut seen = BTreeSet::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("UTF-8");
        for words in command_lines(&without_what_is_not_built(&text)) {
            let place = format!("{}: keywheel {}", page.display(), words.join(" "));
            let mut path: Vec<&str> = Vec::new();
            let mut help = home.run(&["--help"]).ok().stdout;
            for word in words.iter().take_while(|word| !word.starts_with('-')).filter(is_name) {
                // Below the last noun or verb come arguments, which may look like anything.
                if !help.contains("\nCommands:") {
                    break;
                }
                path.push(word);
                let output = home.run(&[&path[..], &["--help"]].concat());
                assert_eq!(output.code(), 0, "{place}\n{}", output.stderr);
                help = output.stdout;
            }
            for option in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let name = option.split('=').next().unwrap_or(option);
                let known = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == name);
                assert!(known, "{place}\nhas no option {name}:\n{help}");
            }
            seen.insert(path.join(" "));
        }
    }
    assert!(seen.len() > 3, "only {seen:?} are named");
}
