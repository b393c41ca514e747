//! Fits a table into the width of a terminal: which columns stay, and what of a long cell is
//! shown. Pure; it prints nothing, and what it leaves out it names.

use std::borrow::Cow;

use dialoguer::console::measure_text_width;

/// Between two columns.
pub const GAP: usize = 2;

/// A long cell is never cut below this: what is left must still tell one row from the next.
const SHORTEST: usize = 12;

/// A table without its first column says of nothing what it says.
const NEVER: u8 = 0;

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// What goes first where there is too little room: the highest. None: the last one.
    rank: Option<u8>,
    /// Its words lose their meaning where they lose a letter.
    whole: bool,
}

impl From<&'static str> for Column {
    fn from(name: &'static str) -> Self {
        Self { name, rank: None, whole: false }
    }
}

impl Column {
    /// Stays whatever the width.
    pub fn kept(name: &'static str) -> Self {
        Self { name, rank: Some(NEVER), whole: false }
    }

    /// Stays too, and is never shortened: a word of few, such as a status.
    pub fn word(name: &'static str) -> Self {
        Self { name, rank: Some(NEVER), whole: true }
    }

    /// Goes earlier than those of a lower rank.
    pub fn ranked(name: &'static str, rank: u8) -> Self {
        Self { name, rank: Some(rank), whole: false }
    }

    /// Without a rank of its own a column goes before those to the left of it.
    fn rank(self, place: usize) -> u8 {
        self.rank.unwrap_or_else(|| u8::try_from(place).unwrap_or(u8::MAX))
    }
}

/// How a table is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The places of the columns that stay, in their order, and how wide each may be.
    pub shown: Vec<(usize, usize)>,
    /// The names of those that don't.
    pub left_out: Vec<&'static str>,
}

/// Chooses columns and widths. `widths` are the widest cells, the header among them.
pub fn fit(columns: &[Column], widths: &[usize], room: usize) -> Layout {
    let mut places: Vec<usize> = (0..columns.len()).collect();
    let mut left_out = Vec::new();
    // What a column needs at the least: a short one all of it, a long one what tells it apart.
    let least = |place: usize| match columns[place].whole {
        true => widths[place],
        false => widths[place].min(SHORTEST.max(measure_text_width(columns[place].name))),
    };
    loop {
        let needed: usize =
            places.iter().map(|&place| least(place)).sum::<usize>() + GAP * places.len().saturating_sub(1);
        if needed <= room {
            break;
        }
        let worst = places
            .iter()
            .copied()
            .filter(|&place| columns[place].rank(place) > NEVER)
            .max_by_key(|&place| (columns[place].rank(place), place));
        let Some(worst) = worst else { break };
        places.retain(|&place| place != worst);
        left_out.push(columns[worst].name);
    }
    left_out.reverse();
    let mut shown: Vec<(usize, usize)> = places.iter().map(|&place| (place, least(place))).collect();
    let mut spare = room.saturating_sub(
        shown.iter().map(|(_, width)| width).sum::<usize>() + GAP * shown.len().saturating_sub(1),
    );
    // A column of a hand's breadth more is worth more than a long one's last words.
    while spare > 0 {
        let wanting = shown.iter_mut().filter(|(place, width)| *width < widths[*place]);
        let Some((_, width)) = wanting.min_by_key(|(_, width)| *width) else { break };
        (*width, spare) = (*width + 1, spare - 1);
    }
    Layout { shown, left_out }
}

/// A cell in so many columns: words lose their end, a name without spaces its middle, for ids
/// often differ in their last digits.
pub fn shortened(text: &str, room: usize) -> Cow<'_, str> {
    if measure_text_width(text) <= room {
        return Cow::Borrowed(text);
    }
    let left = room.saturating_sub(1);
    if text.contains(' ') {
        return Cow::Owned(format!("{}…", taken(text.chars(), left).trim_end()));
    }
    let head = taken(text.chars(), left.div_ceil(2));
    let tail: String = taken(text.chars().rev(), left / 2).chars().rev().collect();
    Cow::Owned(format!("{head}…{tail}"))
}

/// As many letters as fit.
fn taken(letters: impl Iterator<Item = char>, room: usize) -> String {
    let mut text = String::new();
    for letter in letters {
        text.push(letter);
        if measure_text_width(&text) > room {
            text.pop();
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            Column::kept("credential"),
            Column::from("service"),
            Column::word("status"),
            Column::ranked("last attempt", 9),
            Column::ranked("expires", 8),
            Column::ranked("next", 3),
            Column::ranked("message", 2),
        ]
    }

    #[test]
    fn columns_go_by_rank_until_the_rest_fits() {
        let widths = [40, 12, 17, 12, 10, 50, 80];
        for (room, left_out) in [
            (260, vec![]),
            (200, vec![]),
            (120, vec![]),
            (80, vec!["expires", "last attempt"]),
            (60, vec!["next", "expires", "last attempt"]),
            (32, vec!["service", "message", "next", "expires", "last attempt"]),
        ] {
            let layout = fit(&columns(), &widths, room);
            assert_eq!(layout.left_out, left_out, "{room}");
            let taken: usize = layout.shown.iter().map(|(_, width)| width + GAP).sum::<usize>() - GAP;
            assert!(taken <= room, "{taken} of {room}: {layout:?}");
            assert!(layout.shown.iter().all(|(place, width)| *width <= widths[*place]), "{layout:?}");
        }
    }

    #[test]
    fn what_must_stay_stays_even_where_nothing_fits() {
        let layout = fit(&columns(), &[40, 12, 17, 12, 10, 50, 80], 5);
        let names: Vec<_> = layout.shown.iter().map(|(place, _)| columns()[*place].name).collect();
        assert_eq!(names, ["credential", "status"]);
    }

    #[test]
    fn room_that_is_there_is_used_and_no_more() {
        let layout = fit(&["a".into(), "b".into()], &[5, 300], 50);
        assert_eq!(layout.shown, [(0, 5), (1, 43)]);
        let layout = fit(&["a".into(), "b".into()], &[5, 20], 50);
        assert_eq!(layout.shown, [(0, 5), (1, 20)]);
    }

    #[test]
    fn words_lose_their_end_and_names_their_middle() {
        for (text, room, want) in [
            ("short", 5, "short"),
            ("account-0123456789abcdef", 13, "accoun…abcdef"),
            ("the site redirects to the login page", 14, "the site redi…"),
            ("the site redirects", 10, "the site…"),
            ("日本語日本語日本語", 8, "日本…語"),
            ("x", 0, "…"),
        ] {
            assert_eq!(shortened(text, room), want, "{text} in {room}");
        }
    }
}
