//! Joins a template and the interpreter that runs it into one ordinary plugin: the text goes into
//! the room that the interpreter's file keeps for it. Pure. It never reads the template as TOML:
//! what the text says is the plugin's to make sense of, in its sandbox.

use std::path::Path;

/// Begin and end the room, which `plugins/template-provider/src/slot.rs` lays out.
const BEGIN: &[u8; 32] = b"<keywheel-template-provider-v1>\n";
const END: &[u8; 32] = b"\n</keywheel-template-provider-v1";
/// What the room holds besides the text: white space, which is nothing to TOML.
const FILLING: u8 = b' ';

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("a template of {found} bytes; at most {allowed} are allowed")]
    TooLong { found: usize, allowed: usize },
    #[error("the template is empty; hint: docs/writing-a-template.md has a whole one to begin with")]
    Empty,
    #[error("not UTF-8 in line {line}; hint: save the file as UTF-8")]
    NotText { line: usize },
    #[error(
        "template-provider.wasm, which comes with Keywheel, is another version's or damaged; hint: take the \
         folder `providers` from the release of this Keywheel"
    )]
    NoRoom,
}

/// Whether a file of the plugin folder is a template.
pub fn is_template(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// The plugin that a template comes to.
///
/// # Errors
/// Why the text is none, or the interpreter isn't one.
pub fn join(interpreter: &[u8], template: &[u8]) -> Result<Vec<u8>, JoinError> {
    if let Err(error) = std::str::from_utf8(template) {
        let before = &template[..error.valid_up_to()];
        return Err(JoinError::NotText { line: before.iter().filter(|byte| **byte == b'\n').count() + 1 });
    }
    if template.trim_ascii().is_empty() {
        return Err(JoinError::Empty);
    }
    let room = room(interpreter).ok_or(JoinError::NoRoom)?;
    if template.len() > room.len() {
        return Err(JoinError::TooLong { found: template.len(), allowed: room.len() });
    }
    let mut joined = interpreter.to_vec();
    let text = &mut joined[room];
    text.fill(FILLING);
    text[..template.len()].copy_from_slice(template);
    Ok(joined)
}

/// Whether a plugin was joined from this very text, by whichever interpreter.
pub fn is_of(plugin: &[u8], template: &[u8]) -> bool {
    room(plugin).is_some_and(|room| {
        let room = &plugin[room];
        room.strip_prefix(template).is_some_and(|rest| rest.iter().all(|byte| *byte == FILLING))
    })
}

/// Where the room is. A file with two of its marks is none that we made.
fn room(file: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut begins = places(file, BEGIN);
    let begin = begins.next()? + BEGIN.len();
    if begins.next().is_some() {
        return None;
    }
    // A template may have the mark in its text, so the room ends at the last.
    let end = begin + places(&file[begin..], END).last()?;
    (begin < end).then_some(begin..end)
}

fn places<'a>(file: &'a [u8], mark: &'a [u8; 32]) -> impl Iterator<Item = usize> + use<'a> {
    file.windows(mark.len()).enumerate().filter(move |(_, found)| found == mark).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter(room: usize) -> Vec<u8> {
        [b"code ".as_slice(), BEGIN, &vec![FILLING; room], END, b" more code"].concat()
    }

    #[test]
    fn the_text_fills_the_room_and_nothing_else_changes() {
        let joined = join(&interpreter(20), b"service = 1\n").unwrap();
        assert_eq!(
            joined,
            [b"code ".as_slice(), BEGIN, b"service = 1\n        ", END, b" more code"].concat()
        );
        assert!(is_of(&joined, b"service = 1\n"));
        assert!(!is_of(&joined, b"service = 2\n") && !is_of(&joined, b"service") && !is_of(b"code", b""));
        assert_eq!(join(&joined, b"x").unwrap(), join(&interpreter(20), b"x").unwrap());
    }

    #[test]
    fn what_has_no_room_or_is_no_text_is_refused() {
        let twice = [interpreter(9), interpreter(9)].concat();
        let cases: [(&[u8], &[u8], JoinError); 7] = [
            (b"code", b"a", JoinError::NoRoom),
            (&twice, b"a", JoinError::NoRoom),
            (&[END.as_slice(), BEGIN].concat(), b"a", JoinError::NoRoom),
            (&interpreter(0), b"a", JoinError::NoRoom),
            (&interpreter(3), b"abcd", JoinError::TooLong { found: 4, allowed: 3 }),
            (&interpreter(3), b" \n", JoinError::Empty),
            (&interpreter(9), b"a\nb\xff", JoinError::NotText { line: 2 }),
        ];
        for (interpreter, template, expected) in cases {
            assert_eq!(join(interpreter, template).unwrap_err(), expected);
        }
        assert_eq!(
            join(&interpreter(4), b"abcd").unwrap(),
            [b"code ".as_slice(), BEGIN, b"abcd", END, b" more code"].concat()
        );
    }

    #[test]
    fn only_toml_files_are_templates() {
        assert!(is_template(Path::new("/p/linear.toml")));
        assert!(!is_template(Path::new("/p/linear.wasm")) && !is_template(Path::new("/p/toml")));
    }
}
