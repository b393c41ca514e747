//! Which of a user's tokens a rotation may delete. The note of each token that Keywheel makes
//! says for which credential, in which attempt, and with which token it was made; that chain
//! tells what an interrupted rotation left from a stranger's token, and from one that another
//! Keywheel made for a credential of the same name. Pure.

use keywheel_sdk::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag<'a> {
    pub credential: &'a str,
    pub attempt: u32,
    /// The id of the token that asked for this one.
    pub from: &'a str,
}

impl<'a> Tag<'a> {
    pub fn note(&self) -> String {
        format!("Keywheel: {}, attempt {}, from {}", self.credential, self.attempt, self.from)
    }

    /// The tag in a note, if it is one of this credential. Whatever a person wrote is none.
    fn read(note: &'a str, credential: &'a str) -> Option<Self> {
        let rest = note.strip_prefix("Keywheel: ")?.strip_prefix(credential)?.strip_prefix(", attempt ")?;
        let (attempt, from) = rest.split_once(',')?;
        let from = from.strip_prefix(" from ")?;
        let tag = Self { credential, attempt: attempt.parse().ok()?, from };
        // Whole, or it isn't ours: no blanks, no signs, nothing after it.
        (tag.note() == note && is_id(from)).then_some(tag)
    }
}

/// `a` and a number, in every JupyterHub that gives ids to tokens.
fn is_id(text: &str) -> bool {
    text.strip_prefix('a')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The ids to delete: what was made with the token in use (its answer was lost, or it was never
/// put in force), what was made with its predecessor beside it, and that predecessor if Keywheel
/// made it.
pub fn left_behind<'a>(all: &'a [Value], credential: &'a str, in_use: &str) -> Vec<&'a str> {
    let tagged: Vec<(&str, Tag<'_>)> = all
        .iter()
        .filter_map(|token| {
            let text = |name| token.get(name).and_then(Value::as_str);
            let id = text("id").filter(|id| is_id(id))?;
            Some((id, Tag::read(text("note")?, credential)?))
        })
        .collect();
    let before = tagged.iter().find(|(id, _)| *id == in_use).map(|(_, tag)| tag.from);
    tagged
        .iter()
        .filter(|(id, _)| *id != in_use)
        .filter(|(id, tag)| tag.from == in_use || before == Some(tag.from) || before == Some(*id))
        .map(|(id, _)| *id)
        .collect()
}

#[cfg(test)]
mod tests {
    use keywheel_sdk::serde_json;

    use super::*;

    fn list(tokens: &[(&str, &str)]) -> Vec<Value> {
        let token = |(id, note): &(&str, &str)| serde_json::json!({ "id": id, "note": note });
        tokens.iter().map(token).collect()
    }

    #[test]
    fn only_what_the_chain_of_notes_reaches_is_left_behind() {
        let all = list(&[
            ("a1", "made by hand"),
            ("a3", "Keywheel: ann, attempt 2, from a1"),
            ("a4", "Keywheel: ann, attempt 3, from a3"),
            ("a5", "Keywheel: ann, attempt 4, from a3"),
            ("a6", "Keywheel: ann, attempt 5, from a5"),
            ("a7", "Keywheel: ann, attempt 6, from a5"),
            // Another home's credential of the same name, from a token of its own.
            ("a8", "Keywheel: ann, attempt 9, from a2"),
        ]);
        // In use: a5, made with a3; beside it a4, whose answer was lost; a6 and a7 likewise.
        assert_eq!(left_behind(&all, "ann", "a5"), ["a3", "a4", "a6", "a7"]);
        // The first rotation: nothing before it is ours.
        assert_eq!(left_behind(&all, "ann", "a1"), ["a3"]);
        assert_eq!(left_behind(&all, "bob", "a5"), [""; 0]);
    }

    #[test]
    fn a_token_without_our_whole_tag_is_never_left_behind() {
        let all = list(&[
            ("a2", "Keywheel: annabel, attempt 1, from a1"),
            ("a3", "Keywheel: ann, attempt 1, from a1 and more"),
            ("a4", "Keywheel: ann, attempt +1, from a1"),
            ("a5", "Keywheel: ann, attempt 1, attempt 1, from a1"),
            ("a6", "keywheel: ann, attempt 1, from a1"),
            ("a7", "Keywheel: ann, attempt 1, from a"),
            ("../a8", "Keywheel: ann, attempt 1, from a1"),
            ("a9", ""),
        ]);
        assert_eq!(left_behind(&all, "ann", "a1"), [""; 0]);
    }

    #[test]
    fn the_token_in_use_is_never_left_behind() {
        // Even where its own note says what it can't.
        let all = list(&[("a1", "Keywheel: ann, attempt 1, from a1")]);
        assert_eq!(left_behind(&all, "ann", "a1"), [""; 0]);
    }
}
