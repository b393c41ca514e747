//! The help of every command there is, whoever added it: it fits, it has an example, and each
//! example is one that the parser takes.

use clap::{Command, CommandFactory, Parser};

use super::Arguments;

/// As wide as help may be.
const WIDEST: usize = 100;

/// Each command that does something, with its full name. Nouns only lead to their verbs.
fn commands() -> Vec<(String, Command)> {
    fn walk(path: &str, command: &Command, found: &mut Vec<(String, Command)>) {
        let below: Vec<&Command> =
            command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        if below.is_empty() && !command.is_hide_set() {
            found.push((path.to_owned(), command.clone()));
        }
        for next in below {
            walk(&format!("{path} {}", next.get_name()), next, found);
        }
    }
    let mut found = Vec::new();
    let mut whole = Arguments::command();
    // As the parser does, so that each knows what holds for all of them.
    whole.build();
    walk("keywheel", &whole, &mut found);
    assert!(found.len() > 40, "only {} commands", found.len());
    found
}

fn examples(command: &Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let Some((_, examples)) = help.split_once("Examples:\n") else { return Vec::new() };
    let lines = examples.lines().take_while(|line| line.starts_with("  ")).map(str::trim);
    lines.map(str::to_owned).collect()
}

/// The words of our own command in a shell's line, without what other programs are given.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            (letter, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            ('<' | '>' | '|' | ';' | '&', None) => break,
            (' ', None) => words.extend(word.take()),
            (letter, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[test]
fn a_shells_line_is_read_as_a_shell_reads_it() {
    for (line, want) in [
        ("keywheel a  b", vec!["keywheel", "a", "b"]),
        ("keywheel a \"b c\" 'd \"e'", vec!["keywheel", "a", "b c", "d \"e"]),
        ("keywheel a < b | c", vec!["keywheel", "a"]),
        ("keywheel a    # why", vec!["keywheel", "a"]),
    ] {
        assert_eq!(words(line), want);
    }
}

#[test]
fn every_command_has_an_example_that_the_parser_takes() {
    let mut wrong = Vec::new();
    for (name, command) in commands() {
        let examples = examples(&command);
        if !examples.iter().any(|example| example.contains(&name)) {
            wrong.push(format!("`{name}` has no example of itself"));
        }
        for example in examples {
            // What leads to it may be another program's, such as `cat`.
            let ours = example
                .split("| ")
                .find(|part| part.trim_start().starts_with("keywheel "))
                .unwrap_or(&example);
            if let Err(error) = Arguments::try_parse_from(words(ours.trim())) {
                wrong.push(format!("`{name}`: {example}\n{error}"));
            }
        }
    }
    for example in examples(&Arguments::command()) {
        if let Err(error) = Arguments::try_parse_from(words(&example)) {
            wrong.push(format!("{example}\n{error}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn help_fits_a_hundred_columns_and_says_what_everything_is() {
    let mut wrong = Vec::new();
    for (name, mut command) in commands() {
        let help = command.render_long_help().to_string();
        for line in help.lines().filter(|line| line.chars().count() > WIDEST && line.contains(' ')) {
            wrong.push(format!("`{name}` is wider than {WIDEST}: {line}"));
        }
        if command.get_about().is_none() {
            wrong.push(format!("`{name}` doesn't say what it is"));
        }
        // Options and arguments say what they are, unless their very names do.
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let plain = [
                "id", "file", "service", "token_id", "key_id", "shell", "format", "help", "version",
                "profile", "method",
            ];
            if argument.get_help().is_none() && !plain.contains(&argument.get_id().as_str()) {
                wrong.push(format!("`{name}` doesn't say what {} is", argument.get_id()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
