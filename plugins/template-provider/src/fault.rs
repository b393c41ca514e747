//! What is wrong with a template, in words for its author: where, what was found, what to write
//! instead. Owns the suggestions. Never
//! shows a value that could be a secret.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Deserialize;
use toml::de::DeTable;

use crate::place::{Span, line_and_column};
use crate::reader::{Misfit, Read};
use crate::template::Template;

/// Faults shown at once: the later ones often follow from the first.
const SHOWN: usize = 3;

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub span: Span,
    pub what: String,
    /// Another rule that has to do with it, and how.
    pub other: Option<(Span, String)>,
}

impl Fault {
    pub fn new(span: &Span, what: impl Into<String>) -> Self {
        Self { span: span.clone(), what: what.into(), other: None }
    }
}

/// Reads a template, without judging what the types can't.
///
/// # Errors
/// The first thing that isn't TOML, or isn't a template.
pub fn read(text: &str) -> Result<Template, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(text.len()..text.len());
        let what = error.message().lines().next().unwrap_or_default();
        Fault::new(&span, format!("this is not TOML: {what}"))
    })?;
    Template::deserialize(Read::Table(table.get_ref(), 0..0)).map_err(Misfit::into_fault)
}

/// Why a field can't be left out, where its name doesn't say it.
pub fn reason(missing: &str) -> &'static str {
    match missing {
        "source" => "; hint: say where the service documents this, source = \"https://…\"",
        "class" => {
            "; hint: say what a rotation does to the old secret; if you aren't sure, class = \"burn-on-issue\""
        }
        "class_source" => {
            "; hint: say where the service documents what happens to the old secret, class_source = \"https://…\""
        }
        "valid" => "; hint: add a [[validate.valid]] that says which answer shows a live credential",
        "message" => "; hint: say in words what happened and what to do",
        "keys" => "; hint: name the secret that is kept alive, [keys.token]",
        "validate" => "; hint: add a [validate] that says how to see whether a credential lives",
        _ => "",
    }
}

pub fn unknown_field(found: &str, known: &[&str]) -> String {
    // Fields that belong elsewhere, where no neighbour's name is near.
    let elsewhere = match found {
        "value" | "secret" | "token" | "password" if known.contains(&"cookie") => Some(
            "a template holds no secrets and may be shown to anyone; hint: delete the value here, give it with \
             `keywheel credential add`, and change it at the service if others saw this file",
        ),
        "max_age" if known.contains(&"class") => Some(
            "it is said once for the provider; hint: move it to the top of the file, before the first [table]",
        ),
        "message" if known.contains(&"status") => Some("only `invalid` and `needs_human` have one"),
        "not" if known.contains(&"status") => Some("a `not` has no `not` in it"),
        _ => None,
    };
    let shown = shown_name(found);
    match elsewhere {
        Some(why) => format!("unknown field `{shown}`: {why}"),
        None => format!("unknown field `{shown}`; {}", suggestion(found, known)),
    }
}

/// A name as the author wrote it, unless it is so long that it may be a pasted value.
fn shown_name(found: &str) -> String {
    match found.chars().count() {
        0..=64 => found.to_string(),
        long => format!("({long} characters)"),
    }
}

/// "did you mean `x`?", or all there is.
pub fn suggestion(found: &str, known: &[&str]) -> String {
    match nearest(found, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "nothing is allowed here".into(),
        None => format!("allowed: {}", listed(known)),
    }
}

pub fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The name that was probably meant: at most a third of its letters differ.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let found = found.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|name| (distance(&found, &name.replace('-', "_")), *name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein's distance with transpositions of neighbours, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    // What is longer than a name is no typing error.
    const LONGEST: usize = 128;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut next = Vec::from([i + 1]);
        for (j, r) in right.iter().enumerate() {
            let mut least = (row[j] + usize::from(l != r)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && left[i - 1] == *r && *l == right[j - 1] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = core::mem::replace(&mut row, next);
    }
    row[right.len()]
}

/// All faults as one text, each with line and column.
pub fn told(text: &str, faults: &[Fault]) -> String {
    let mut sorted: Vec<_> = faults.iter().collect();
    sorted.sort_by_key(|fault| fault.span.start);
    let mut told = sorted
        .iter()
        .take(SHOWN)
        .map(|fault| {
            let (line, column) = line_and_column(text, fault.span.start);
            let other = fault.other.as_ref().map_or_else(String::new, |(span, how)| {
                format!(": the rule in line {} {how}", line_and_column(text, span.start).0)
            });
            format!("line {line}, column {column}: {}{other}", fault.what)
        })
        .collect::<Vec<_>>()
        .join("; ");
    if sorted.len() > SHOWN {
        told += &format!("; and {} more", sorted.len() - SHOWN);
    }
    told
}
