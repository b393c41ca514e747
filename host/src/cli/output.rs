//! Everything that reaches a terminal: tables for people, JSON for programs. Data goes to
//! standard output, talk to standard error; colour only where a person looks.

#![expect(clippy::print_stderr, reason = "the one place that prints")]

use std::io::{IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::credential::{Millis, Secret, now};

#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// One value, as JSON or as the given words.
    pub fn value(self, value: &impl Serialize, words: impl FnOnce() -> String) {
        if self.json {
            self.json_line(value, true);
        } else {
            line(&words());
        }
    }

    /// Many values, as a JSON array or as a table.
    pub fn table<T: Serialize>(
        self,
        rows: &[T],
        header: &[&str],
        cells: impl Fn(&T) -> Vec<Cell>,
        empty: &str,
    ) {
        if self.json {
            self.json_line(&rows, true);
        } else if rows.is_empty() {
            eprintln!("{empty}");
        } else {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            if !colours() {
                table.force_no_tty();
            }
            table.set_header(header.iter().map(|name| Cell::new(name.to_uppercase())));
            for row in rows {
                table.add_row(cells(row));
            }
            line(&table.trim_fmt());
        }
    }

    /// One JSON value a line, for streams and results.
    pub fn json_line(self, value: &impl Serialize, pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        match text {
            Ok(text) => line(&text),
            Err(error) => self.error(&format!("the result can't be written as JSON: {error}")),
        }
    }

    /// One line of data for people.
    pub fn line(self, text: &str) {
        line(text);
    }

    /// The same for a command that must still clean up when nobody reads any more.
    ///
    /// # Errors
    /// Standard output's, such as a closed pipe.
    pub fn try_line(self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush())
    }

    /// Talk beside the data.
    pub fn say(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    pub fn error(self, text: &str) {
        if self.json {
            let mut object = serde_json::Map::new();
            object.insert("error".into(), text.into());
            eprintln!("{}", serde_json::Value::Object(object));
        } else {
            eprintln!("error: {text}");
        }
    }

    /// Secrets, in clear, because that is what was asked for.
    pub fn secret(self, text: &Secret) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.expose())?;
        out.flush()
    }
}

/// A closed pipe is how `head` says it has enough; it is no error and no reason to panic.
fn line(text: &str) {
    if (Output { json: false }).try_line(text).is_err() {
        std::process::exit(0);
    }
}

/// Whether standard output is a person's terminal that wants colour.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A word in the colour of its meaning.
pub fn coloured(word: &str) -> Cell {
    let cell = Cell::new(word);
    match word {
        "success" | "valid" | "active" | "running" | "on" => cell.fg(Color::Green),
        "unreachable" | "unknown" | "pending-approval" | "conflict" | "idle" | "paused" => {
            cell.fg(Color::Yellow)
        }
        "failed" | "validation_failed" | "invalid" | "needs-human" | "refused" | "parked" => {
            cell.fg(Color::Red)
        }
        _ => cell,
    }
}

/// How long ago or ahead, in the largest unit that says enough.
pub fn relative(at: Option<Millis>) -> String {
    let Some(at) = at else { return "–".into() };
    let now = now();
    let (ahead, span) = if at > now { (true, at - now) } else { (false, now - at) };
    let seconds = span / 1_000;
    let words = match seconds {
        0..=89 => format!("{seconds} s"),
        90..=5_399 => format!("{} min", seconds / 60),
        5_400..=129_599 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    };
    if ahead { format!("in {words}") } else { format!("{words} ago") }
}
