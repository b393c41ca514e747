//! Where in a configuration a mistake stands, which name was probably meant, and which names a
//! text sets. Pure, and knows no key by itself: what there is follows from the template.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

/// How far a misspelled name may be from the one it is taken for.
const CLOSE: usize = 3;

/// One line with the place, the mistake and what was probably meant.
pub fn of_syntax(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let hint = suggestion(&message).map(|name| format!("; hint: did you mean `{name}`?"));
    let words = format!("{message}{}", hint.unwrap_or_default());
    match error.span() {
        Some(span) => {
            // Of a value the parser says what is wrong with it, and not whose it is.
            let key = key_before(text, span.start).map(|key| format!("{key}: "));
            format!("{}: {}{words}", line_and_column(text, span.start), key.unwrap_or_default())
        }
        None => words,
    }
}

/// The same for a mistake in the meaning, whose words begin with the key that it is in, as in
/// `http.listen is …`.
pub fn of_meaning(text: &str, message: &str) -> String {
    let key = message.split([' ', ':', ',']).next().unwrap_or_default();
    match DeTable::parse(text).ok().and_then(|table| span_of(table.get_ref(), key)) {
        Some(span) => format!("{}: {message}", line_and_column(text, span.start)),
        None => message.to_owned(),
    }
}

/// The keys that a text sets, dotted, each with its line and its value as TOML.
pub fn keys(text: &str) -> Result<BTreeMap<String, (usize, Value)>, toml::de::Error> {
    let spans = DeTable::parse(text)?;
    let values: toml::Table = toml::from_str(text)?;
    let mut found = BTreeMap::new();
    collect("", &values, &mut |path, value| {
        let line = span_of(spans.get_ref(), path).map_or(0, |span| line(text, span.start));
        found.insert(path.to_owned(), (line, value.clone()));
    });
    Ok(found)
}

/// The template with every line in force that shows a key or a section.
pub fn uncommented(template: &str) -> String {
    let is_key = |line: &str| {
        let name: &str = line.split(['=', ' ']).next().unwrap_or_default();
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        line.starts_with('[') || (!name.is_empty() && line.contains(" = ") && name.chars().all(named))
    };
    template
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|line| is_key(line)))
        // NAME stands for a name, and those have no capitals.
        .map(
            |line| {
                if line.starts_with('[') { format!("{}\n", line.to_lowercase()) } else { format!("{line}\n") }
            },
        )
        .collect()
}

fn collect(above: &str, table: &toml::Table, each: &mut impl FnMut(&str, &Value)) {
    for (name, value) in table {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Table(below) if !below.is_empty() => collect(&path, below, each),
            value => each(&path, value),
        }
    }
}

/// Where the value of a dotted key stands; where it isn't set, its section.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let (mut table, mut rest, mut span) = (table, key, None);
    loop {
        // A name may have dots of its own, so the longest that fits is taken.
        let (name, value) = table
            .iter()
            .filter(|(name, _)| {
                let name = name.get_ref().as_ref();
                rest.strip_prefix(name).is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
            })
            .max_by_key(|(name, _)| name.get_ref().len())
            .map_or((None, None), |(name, value)| (Some(name), Some(value)));
        let (Some(name), Some(value)) = (name, value) else { return span };
        span = Some(name.span());
        rest = rest.strip_prefix(name.get_ref().as_ref())?.trim_start_matches('.');
        table = match (value.get_ref(), rest) {
            (_, "") => return span,
            (DeValue::Table(below), _) => below,
            (DeValue::Array(items), _) => {
                // `alerts.channels[1].url`: the number in brackets, counted from 0.
                let (number, after) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))?;
                let item: &Spanned<DeValue<'_>> = items.get(number.parse::<usize>().ok()?)?;
                span = Some(item.span());
                rest = after.trim_start_matches('.');
                match item.get_ref() {
                    DeValue::Table(below) if !rest.is_empty() => below,
                    _ => return span,
                }
            }
            _ => return span,
        };
    }
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The key whose value is at this place, where both are on one line.
fn key_before(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?.rsplit('\n').next()?;
    let key = before.split_once('=')?.0.trim();
    let named = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (!key.is_empty() && key.chars().all(named)).then_some(key)
}

fn line_and_column(text: &str, at: usize) -> String {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {}, column {column}", line(text, at))
}

/// Of the names that an error lists as allowed, the one that looks like the one it found.
fn suggestion(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let found = names.next()?;
    let close = |name: &&str| strsim::damerau_levenshtein(found, name);
    names.min_by_key(close).filter(|name| close(name) <= CLOSE.min(name.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "isolation = \"strict\"\n\n[http]\n  listen = \"127.0.0.1:1\"\n[services.\"a.b\"]\nconcurrency = 0\n[[many]]\na = 1\n[[many]]\nb = 2\n";

    #[test]
    fn a_mistake_in_the_meaning_is_placed_by_the_key_its_words_begin_with() {
        let table = [
            ("http.listen is 1, which isn't allowed", "line 4, column 3: "),
            ("http.allow_remote is missing", "line 3, column 2: "),
            ("services.a.b.concurrency is 0", "line 6, column 1: "),
            ("isolation: no such word", "line 1, column 1: "),
            ("many[1].b is 2", "line 10, column 1: "),
            ("many[1].c is missing", "line 9, column 1: "),
            ("nothing of that is right", ""),
        ];
        for (message, place) in table {
            assert_eq!(of_meaning(TEXT, message), format!("{place}{message}"));
        }
        assert_eq!(of_meaning("[", "http.listen is bad"), "http.listen is bad", "no TOML, no place");
    }

    #[test]
    fn a_mistake_in_the_writing_has_its_place_and_what_was_probably_meant() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Some {
            #[expect(dead_code, reason = "read by the parser alone")]
            isolation: Option<String>,
            #[expect(dead_code, reason = "read by the parser alone")]
            rescan_seconds: Option<u32>,
        }
        let table = [
            (
                "isolaton = 1",
                "line 1, column 1: unknown field `isolaton`, expected `isolation` or `rescan_seconds`; hint: did you mean `isolation`?",
            ),
            (
                "\n zebra = 1",
                "line 2, column 2: unknown field `zebra`, expected `isolation` or `rescan_seconds`",
            ),
            (
                "rescan_seconds = \"é\"",
                "line 1, column 18: rescan_seconds: invalid type: string \"é\", expected u32",
            ),
        ];
        for (text, expected) in table {
            let error = toml::from_str::<Some>(text).unwrap_err();
            assert_eq!(of_syntax(text, &error), expected);
        }
        let error = toml::from_str::<Some>("a = 1\nb = \n").unwrap_err();
        assert!(of_syntax("a = 1\nb = \n", &error).starts_with("line 2, column "), "{error}");
    }

    #[test]
    fn every_key_that_a_text_sets_is_found_with_its_line() {
        let keys = keys(TEXT).unwrap();
        let lines: Vec<_> = keys.iter().map(|(key, (line, _))| (key.as_str(), *line)).collect();
        assert_eq!(
            lines,
            [("http.listen", 4), ("isolation", 1), ("many", 7), ("services.a.b.concurrency", 6)]
        );
    }
}
