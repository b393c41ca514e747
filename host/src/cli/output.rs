//! Everything that reaches a terminal: tables for people, JSON for programs. Data goes to
//! standard output, talk to standard error; colour only where a person looks. Text that plugins
//! and services wrote passes here last, and never acts on the terminal: what could move its
//! cursor, colour it or turn its reading direction is shown escaped.

#![expect(clippy::print_stderr, reason = "the one place that prints")]

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use dialoguer::console::{Term, measure_text_width};
use serde::Serialize;

use super::layout::{self, Column};
use crate::credential::{Millis, Secret, now};
use crate::registry::manifest::is_deceptive;

/// Of a terminal that says nothing of itself.
const USUAL: usize = 80;

#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    /// Tables with everything in them, however wide the terminal.
    pub wide: bool,
}

impl Output {
    /// One value, as JSON or as the given words.
    pub fn value(self, value: &impl Serialize, words: impl FnOnce() -> String) {
        if self.json {
            self.json_line(value, true);
        } else {
            line(&inert(&words()));
        }
    }

    /// Many values, as a JSON array or as a table: on a terminal one that fits it, elsewhere one
    /// line for each row with tabs between the columns, whole.
    pub fn table<T: Serialize, C: Copy + Into<Column>>(
        self,
        rows: &[T],
        header: &[C],
        cells: impl Fn(&T) -> Vec<Cell>,
        empty: &str,
    ) {
        if self.json {
            self.json_line(&rows, true);
        } else if rows.is_empty() {
            eprintln!("{}", inert(empty));
        } else {
            self.rows(header, rows.iter().map(cells).collect());
        }
    }

    /// The rows of a table that has some.
    pub fn rows<C: Copy + Into<Column>>(self, header: &[C], rows: Vec<Vec<Cell>>) {
        let columns: Vec<Column> = header.iter().map(|&column| column.into()).collect();
        let rows: Vec<Vec<Cell>> =
            rows.into_iter().map(|row| row.into_iter().map(inert_cell).collect()).collect();
        let titles: Vec<String> = columns.iter().map(|column| column.name.to_uppercase()).collect();
        let Some(room) = width() else {
            let mut text = titles.join("\t");
            for row in rows {
                let cells: Vec<String> = row.iter().map(|cell| cell.content().replace('\t', " ")).collect();
                text.push('\n');
                text.push_str(&cells.join("\t"));
            }
            line(&text);
            return;
        };
        let widest = |place: usize| {
            let cells = rows.iter().filter_map(|row| row.get(place));
            let cells = cells.map(|cell| measure_text_width(&cell.content()));
            cells.chain([measure_text_width(&titles[place])]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(widest).collect();
        let layout = layout::fit(&columns, &widths, if self.wide { usize::MAX } else { room });
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colours() {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(layout.shown.iter().map(|&(place, _)| Cell::new(&titles[place])));
        for row in rows {
            let mut row: Vec<Option<Cell>> = row.into_iter().map(Some).collect();
            table.add_row(layout.shown.iter().map(|&(place, room)| {
                let cell = row.get_mut(place).and_then(Option::take).unwrap_or_else(|| Cell::new(""));
                let text = cell.content();
                if measure_text_width(&text) <= room {
                    cell
                } else {
                    Cell::new(layout::shortened(&text, room))
                }
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, u16::try_from(layout::GAP).unwrap_or(0)));
        }
        // The colours are the table's own: what is in the cells was made inert before.
        line(&table.trim_fmt());
        if !layout.left_out.is_empty() {
            self.say(&format!("left out for want of room: {}; --wide shows all", layout.left_out.join(", ")));
        }
    }

    /// One JSON value a line, for streams and results.
    pub fn json_line(self, value: &impl Serialize, pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        match text {
            Ok(text) => line(&inert_json(text)),
            Err(error) => self.error(&format!("the result can't be written as JSON: {error}")),
        }
    }

    /// One line of data for people.
    pub fn line(self, text: &str) {
        line(&inert(text));
    }

    /// The first line of an answer, green or red where a person looks.
    pub fn headline(self, good: bool, text: &str) {
        let text = inert(text);
        match (colours(), good) {
            (false, _) => line(&text),
            (true, true) => line(&format!("\u{1b}[1;32m{text}\u{1b}[0m")),
            (true, false) => line(&format!("\u{1b}[1;31m{text}\u{1b}[0m")),
        }
    }

    /// One line of data that takes no more than one of a terminal; elsewhere all of it.
    pub fn short_line(self, before: &str, text: &str) {
        let whole = inert(text);
        match width().filter(|_| !self.wide) {
            None => line(&format!("{before}{whole}")),
            Some(room) => {
                let room = room.saturating_sub(measure_text_width(before));
                line(&format!("{before}{}", layout::shortened(&whole, room)));
            }
        }
    }

    /// Asks a person, who answers with a line; anything but yes is no.
    ///
    /// # Errors
    /// Standard input's.
    pub fn ask(self, question: &str) -> std::io::Result<bool> {
        eprint!("{} [y/N] ", inert(question));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// The same for a command that must still clean up when nobody reads any more.
    ///
    /// # Errors
    /// Standard output's, such as a closed pipe.
    pub fn try_line(self, text: &str) -> std::io::Result<()> {
        write_line(&inert(text))
    }

    /// Talk beside the data.
    pub fn say(self, text: &str) {
        if !self.json {
            eprintln!("{}", inert(text));
        }
    }

    pub fn error(self, text: &str) {
        if self.json {
            let mut object = serde_json::Map::new();
            object.insert("error".into(), text.into());
            eprintln!("{}", inert_json(serde_json::Value::Object(object).to_string()));
        } else {
            eprintln!("error: {}", inert(text));
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
    if write_line(text).is_err() {
        std::process::exit(0);
    }
}

fn write_line(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// Text as it may go to a terminal. Line ends and tabs are the layout of our own words; a
/// message of a plugin's is one line before it comes here.
fn inert(text: &str) -> Cow<'_, str> {
    let acts = |c: char| is_deceptive(c) && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::new(), |mut escaped, c| {
        if acts(c) {
            escaped.extend(c.escape_unicode())
        } else {
            escaped.push(c)
        }
        escaped
    });
    Cow::Owned(escaped)
}

/// In a cell a line end could pass for another row.
fn inert_cell(cell: Cell) -> Cell {
    let text = cell.content();
    if text.contains(is_deceptive) { Cell::new(inert(&text.escape_debug().to_string())) } else { cell }
}

/// JSON whose strings are the same, with everything escaped that a terminal could act on.
/// Outside of strings JSON has none of these but line ends.
fn inert_json(text: String) -> String {
    let acts = |c: char| is_deceptive(c) && c != '\n';
    if !text.contains(acts) {
        return text;
    }
    text.chars().fold(String::new(), |mut escaped, c| {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a string can't fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
        escaped
    })
}

/// How wide the terminal is that standard output is. None: it is none.
pub fn width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    // A terminal that doesn't say how wide it is has the usual width.
    Some(Term::stdout().size_checked().map_or(USUAL, |(_, columns)| usize::from(columns).max(1)))
}

/// Whether standard output is a person's terminal that wants colour.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A word in the colour of its meaning.
pub fn coloured(word: &str) -> Cell {
    let cell = Cell::new(word);
    match word {
        "success" | "valid" | "active" | "running" | "on" | "heard" | "in-step" | "admitted" => {
            cell.fg(Color::Green)
        }
        "unreachable" | "unknown" | "pending-approval" | "conflict" | "idle" | "paused" | "silent"
        | "expired" | "warning" | "waiting" | "behind" | "asking" => cell.fg(Color::Yellow),
        "failed" | "validation_failed" | "invalid" | "needs-human" | "refused" | "parked" | "revoked"
        | "failing" | "no-credential" | "no-secrets" | "critical" => cell.fg(Color::Red),
        _ => cell,
    }
}

/// How long ago or ahead, in the largest unit that says enough.
pub fn relative(at: Option<Millis>) -> String {
    relative_to(now(), at)
}

/// The same by another clock.
pub fn relative_to(now: Millis, at: Option<Millis>) -> String {
    let Some(at) = at else { return "–".into() };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Clears the screen, a C1 control sequence, a turned reading direction, a tag character.
    const HOSTILE: &str = "a\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\u{61c}\u{e0041}z";

    #[test]
    fn text_that_would_act_on_a_terminal_is_shown_escaped() {
        assert_eq!(inert(HOSTILE), r"a\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\u{61c}\u{e0041}z");
        let plain = "two lines\n\tand – “quotes”, ünïcode, 字";
        assert!(matches!(inert(plain), Cow::Borrowed(same) if same == plain));
    }

    #[test]
    fn json_keeps_its_value_and_loses_what_acts_on_a_terminal() {
        let value = serde_json::json!({ "title": HOSTILE, "lines": "a\nb" });
        let text = inert_json(serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c| is_deceptive(c) && c != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_cell_is_one_line_of_plain_text() {
        let cell = inert_cell(Cell::new(format!("{HOSTILE}\nactive")));
        assert!(!cell.content().contains(is_deceptive), "{:?}", cell.content());
        assert!(cell.content().contains(r"z\nactive"), "{:?}", cell.content());
        assert_eq!(inert_cell(Cell::new("a \"b\" – c")).content(), "a \"b\" – c");
    }
}
