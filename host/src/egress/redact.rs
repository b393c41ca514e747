//! Takes known secrets out of what a plugin gets to see: bodies, headers, URLs, log lines.
//! Pure. It must never let a match through because it ran out of patience: past its work
//! limit it refuses the whole text.
//!
//! An allowed host that echoes the request is the hole of every broker that injects secrets.
//! Each value is looked for raw, in base64 of any alignment and in hex; and the text may
//! escape any character of a match: `%2F`, `+`, `\/`, `\u002f`, `&#x2F;`, `&amp;`. Matching
//! against the text *as it decodes* covers every mix of encoders with one pattern, where a
//! list of encoded spellings would know only some.
//!
//! A long value is also looked for in pieces, but what is taken out are pieces of the *whole*
//! value or nothing. To take out each part of a value wherever it stands would tell a plugin
//! which of its guesses are right: it knows the beginning of a token, has a service repeat that
//! and one character more, and reads the rest character by character.
//!
//! What stays open: an allowed host that helps on purpose (reversed, encrypted, a character at
//! a time, half in one answer and half in the next). It has the secret already; the operator
//! trusted it with that.

use std::borrow::Cow;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// What stands in for a secret. It names no key: in a body it must stay harmless inside JSON,
/// HTML and URLs, and it must not make a body much longer.
pub const MARKER: &str = "[redacted]";

/// Shorter values are not looked for: `1`, `true` or `en` occur by chance in every page, and
/// blanking them would garble answers and even tell the plugin what the value is. Where such
/// a value was captured, `capture` removes that very place.
pub const FLOOR: usize = 6;

/// The shortest piece of a value in pieces: too much to guess, or to try all of in one answer.
const PIECE: usize = 12;
/// Values that are looked for in pieces: of two of them at least, and of those that occur.
const IN_PIECES: std::ops::RangeInclusive<usize> = 2 * PIECE..=8 << 10;
/// How many bytes of a piece are looked up. Every piece has such a window that begins at a
/// multiple of the rest.
const WINDOW: usize = 8;
const STRIDE: usize = PIECE - WINDOW + 1;

/// How the usual compressed files begin: gzip, zstd, zip, xz, bzip2. What HTTP itself compressed
/// is unpacked by now, so this is compressed twice, and nothing could be found in it.
const COMPRESSED: &[&[u8]] = &[b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"\xfd7zXZ\0", b"BZh"];

/// Comparison steps allowed for each byte of text, and for any text. Ordinary answers need
/// less than one a byte; only values and text made to match almost everywhere need more, and
/// a service that does that must not hold a thread.
const WORK_PER_BYTE: usize = 16;
const WORK_FREE: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the text can't be searched for the credential's secrets: it is compressed, or resembles them too much"
)]
pub struct TooMuchWork;

struct Pattern {
    bytes: Zeroizing<Vec<u8>>,
    /// Base64 whose first or last character also holds bits of a neighbour: that character
    /// goes too.
    grows_left: bool,
    grows_right: bool,
}

/// The patterns of one exchange with an index over their first bytes.
#[derive(Default)]
pub struct Redactor {
    patterns: Vec<Pattern>,
    /// First four bytes and pattern, sorted.
    by_prefix: Vec<(u32, u32)>,
    /// First byte and pattern, sorted: for places where the text is escaped.
    by_first: Vec<(u8, u32)>,
    /// One bit for each byte that starts a pattern.
    firsts: [u64; 4],
    /// One bit for each hash of four bytes that starts a pattern.
    filter: Vec<u64>,
    shift: u32,
    /// A pattern has a space, so `+` may stand for one.
    spaces: bool,
    /// The values that may come in pieces, and an index over their windows.
    whole: Vec<Zeroizing<Vec<u8>>>,
    windows: OnceLock<Windows>,
}

/// Windows of values, sorted, and one bit for each hash of one.
struct Windows {
    sorted: Vec<Window>,
    filter: Vec<u64>,
    shift: u32,
}

/// A few bytes of a value, and where in which value they stand.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    bytes: u64,
    value: u32,
    at: u32,
}

/// Its patterns are the secrets.
impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("patterns", &self.patterns.len()).finish_non_exhaustive()
    }
}

impl Redactor {
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut redactor = Self::default();
        redactor.add_all(values);
        redactor
    }

    pub fn add(&mut self, value: &[u8]) {
        self.add_all([value]);
    }

    pub fn add_all<'a>(&mut self, values: impl IntoIterator<Item = &'a [u8]>) {
        let before = self.patterns.len();
        for value in values {
            self.spell(value);
            // A cookie's value is often percent-encoded by the service, which knows and may
            // show the decoded one; or quoted.
            if value.contains(&b'%') {
                let decoded = Zeroizing::new(percent_decode(value));
                if decoded.as_slice() != value {
                    self.spell(&decoded);
                }
            }
            if let [b'"', inner @ .., b'"'] = value {
                self.spell(inner);
            }
        }
        if self.patterns.len() != before {
            self.index();
        }
    }

    /// Whether a text holds a value, in any spelling, or can't be searched.
    pub fn hides(&self, text: &str) -> bool {
        !matches!(self.redact(text.as_bytes()), Ok(Cow::Borrowed(_)))
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns of one value.
    fn spell(&mut self, value: &[u8]) {
        if value.len() < FLOOR || self.patterns.iter().any(|old| old.bytes.as_slice() == value) {
            return;
        }
        self.push(value.to_vec(), false, false);
        if IN_PIECES.contains(&value.len()) {
            self.whole.push(Zeroizing::new(value.to_vec()));
            self.windows.take();
        }
        // Inside a longer base64 text a value starts at one of three offsets within a group.
        let mut padded = Zeroizing::new(vec![0; 2]);
        padded.extend_from_slice(value);
        for offset in 0..3_usize {
            let input = &padded[2 - offset..];
            // Characters that hold bits of what stands before, and whole characters in all.
            let skip = [0, 2, 3][offset];
            let end = input.len() * 8 / 6;
            let (left, right) = (offset != 0, !(input.len() * 8).is_multiple_of(6));
            let standard = STANDARD_NO_PAD.encode(input);
            let text = &standard.as_bytes()[skip..end];
            if text.iter().any(|byte| matches!(byte, b'+' | b'/')) {
                let url_safe = URL_SAFE_NO_PAD.encode(input);
                self.push(url_safe.as_bytes()[skip..end].to_vec(), left, right);
            }
            self.push(text.to_vec(), left, right);
        }
        let lower = hex::encode(value);
        let upper = lower.to_ascii_uppercase();
        if upper != lower {
            self.push(upper.into_bytes(), false, false);
        }
        self.push(lower.into_bytes(), false, false);
        if !value.is_ascii()
            && let Ok(text) = std::str::from_utf8(value)
        {
            // JSON writers that keep to ASCII: the only escapes the matcher doesn't decode.
            let mut escaped = String::new();
            for unit in text.encode_utf16() {
                match u8::try_from(unit) {
                    Ok(byte) if byte.is_ascii() => escaped.push(char::from(byte)),
                    _ => escaped.push_str(&format!("\\u{unit:04x}")),
                }
            }
            self.push(escaped.into_bytes(), false, false);
        }
    }

    fn push(&mut self, bytes: Vec<u8>, grows_left: bool, grows_right: bool) {
        self.patterns.push(Pattern { bytes: Zeroizing::new(bytes), grows_left, grows_right });
    }

    fn index(&mut self) {
        (self.filter, self.shift) = empty_filter(self.patterns.len());
        self.by_prefix.clear();
        self.by_first.clear();
        self.firsts = [0; 4];
        self.spaces = false;
        for (number, pattern) in (0_u32..).zip(&self.patterns) {
            let Some(head) = pattern.bytes.first_chunk::<4>() else { continue };
            self.by_prefix.push((u32::from_le_bytes(*head), number));
            self.by_first.push((head[0], number));
            self.firsts[usize::from(head[0] >> 6)] |= 1 << (head[0] & 63);
            if pattern.bytes.contains(&b' ') {
                self.spaces = true;
                if head.contains(&b' ') {
                    let form = head.map(|byte| if byte == b' ' { b'+' } else { byte });
                    self.by_prefix.push((u32::from_le_bytes(form), number));
                }
            }
        }
        self.by_prefix.sort_unstable();
        self.by_first.sort_unstable();
        for (prefix, _) in &self.by_prefix {
            let bit = hash(*prefix, self.shift);
            self.filter[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The text without any known value.
    ///
    /// # Errors
    /// Where the work limit is reached; the text must not be used then.
    pub fn redact<'t>(&self, text: &'t [u8]) -> Result<Cow<'t, [u8]>, TooMuchWork> {
        if self.patterns.is_empty() {
            return Ok(Cow::Borrowed(text));
        }
        if COMPRESSED.iter().any(|magic| text.starts_with(magic)) {
            return Err(TooMuchWork);
        }
        let mut work = text.len().saturating_mul(WORK_PER_BYTE).saturating_add(WORK_FREE);
        let mut out: Vec<u8> = Vec::new();
        let mut copied = 0;
        let mut at = 0;
        let mut next_escape = self.find_escape(text, 0);
        while let Some(head) = text.get(at..).and_then(<[u8]>::first_chunk::<4>) {
            if next_escape < at {
                next_escape = self.find_escape(text, at);
            }
            let word = u32::from_le_bytes(*head);
            let bit = hash(word, self.shift);
            let mut best: Option<(usize, u32)> = None;
            if self.filter[bit / 64] >> (bit % 64) & 1 == 1 {
                let from = self.by_prefix.partition_point(|(prefix, _)| *prefix < word);
                for (_, number) in self.by_prefix[from..].iter().take_while(|(prefix, _)| *prefix == word) {
                    self.try_match(*number, text, at, &mut work, &mut best)?;
                }
            }
            if next_escape < at + 4 {
                let (first, _) = unescape(text, at);
                self.try_first(first, text, at, &mut work, &mut best)?;
                // Only a bare plus is a form's space; one that was escaped is a plus.
                if text[at] == b'+' && self.spaces {
                    self.try_first(b' ', text, at, &mut work, &mut best)?;
                }
            }
            let Some((mut end, number)) = best else {
                at += 1;
                continue;
            };
            let pattern = &self.patterns[number as usize];
            let mut start = at;
            if pattern.grows_left && start > copied && is_base64(text[start - 1]) {
                start -= 1;
            }
            if pattern.grows_right && text.get(end).copied().is_some_and(is_base64) {
                end += 1;
            }
            out.extend_from_slice(&text[copied..start]);
            out.extend_from_slice(MARKER.as_bytes());
            copied = end;
            at = end;
        }
        if copied == 0 {
            return Ok(match self.pieces(text, &mut work)? {
                None => Cow::Borrowed(text),
                Some(without) => Cow::Owned(without),
            });
        }
        out.extend_from_slice(&text[copied..]);
        Ok(Cow::Owned(match self.pieces(&out, &mut work)? {
            None => out,
            Some(without) => without,
        }))
    }

    /// The text without the pieces of each value that is there whole, in pieces of some length.
    /// What stands between pieces, like the dots of a token, may be missing.
    fn pieces(&self, text: &[u8], work: &mut usize) -> Result<Option<Vec<u8>>, TooMuchWork> {
        if self.whole.is_empty() || text.len() < *IN_PIECES.start() {
            return Ok(None);
        }
        let windows = self.windows.get_or_init(|| self.windows());
        let mut found: Vec<(u32, std::ops::Range<usize>, usize)> = Vec::new();
        for (at, eight) in text.windows(WINDOW).enumerate() {
            let bytes = u64::from_le_bytes(eight.try_into().unwrap_or_default());
            if !windows.may_have(bytes) {
                continue;
            }
            let from = windows.sorted.partition_point(|window| window.bytes < bytes);
            for window in windows.sorted[from..].iter().take_while(|window| window.bytes == bytes) {
                spend(work, 1)?;
                let value = self.whole[window.value as usize].as_slice();
                let inside = window.at as usize;
                // A long piece has many windows, and the first one found it whole.
                let known = found.iter().rev().take(4).any(|(of, piece, start)| {
                    *of == window.value && piece.contains(&at) && at - piece.start + start == inside
                });
                if known {
                    continue;
                }
                let before = value[..inside].iter().rev().zip(text[..at].iter().rev());
                let before = before.take_while(|(a, b)| a == b).count();
                let after = value[inside..].iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
                spend(work, before + after)?;
                if before + after >= PIECE {
                    found.push((window.value, at - before..at + after, inside - before));
                }
            }
        }
        let mut gone: Vec<std::ops::Range<usize>> = Vec::new();
        for (number, value) in (0_u32..).zip(&self.whole) {
            let pieces = || found.iter().filter(|(of, ..)| *of == number);
            let mut seen = vec![false; if pieces().next().is_some() { value.len() } else { 0 }];
            for (_, piece, start) in pieces() {
                spend(work, piece.len())?;
                seen[*start..start + piece.len()].fill(true);
            }
            let missing = value.iter().zip(&seen).any(|(byte, seen)| byte.is_ascii_alphanumeric() && !seen);
            if !seen.is_empty() && !missing {
                gone.extend(pieces().map(|(_, piece, _)| piece.clone()));
            }
        }
        if gone.is_empty() {
            return Ok(None);
        }
        gone.sort_by_key(|piece| piece.start);
        let (mut out, mut copied) = (Vec::with_capacity(text.len()), 0);
        for piece in gone {
            if piece.end > copied {
                out.extend_from_slice(&text[copied..piece.start.max(copied)]);
                out.extend_from_slice(MARKER.as_bytes());
                copied = piece.end;
            }
        }
        out.extend_from_slice(&text[copied..]);
        Ok(Some(out))
    }

    fn windows(&self) -> Windows {
        let mut sorted = Vec::new();
        for (number, value) in (0_u32..).zip(&self.whole) {
            for (at, bytes) in value.windows(WINDOW).enumerate().step_by(STRIDE) {
                let bytes = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
                // A value is at most a few thousand bytes, so its places fit.
                sorted.push(Window { bytes, value: number, at: at as u32 });
            }
        }
        sorted.sort_unstable();
        // A value that repeats itself is no token, and would match everywhere.
        sorted.dedup_by(|next, kept| (next.bytes, next.value) == (kept.bytes, kept.value));
        let (mut filter, shift) = empty_filter(sorted.len());
        for window in &sorted {
            let bit = hash(fold(window.bytes), shift);
            filter[bit / 64] |= 1 << (bit % 64);
        }
        Windows { sorted, filter, shift }
    }

    /// For lines people read. Text that can't be redacted in bounded work is dropped whole.
    pub fn redact_text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.redact(text.as_bytes()) {
            Ok(Cow::Borrowed(_)) => Cow::Borrowed(text),
            Ok(Cow::Owned(bytes)) => Cow::Owned(match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            }),
            Err(TooMuchWork) => Cow::Borrowed(MARKER),
        }
    }

    /// Tries the patterns that start with this byte.
    fn try_first(
        &self,
        first: u8,
        text: &[u8],
        at: usize,
        work: &mut usize,
        best: &mut Option<(usize, u32)>,
    ) -> Result<(), TooMuchWork> {
        if self.firsts[usize::from(first >> 6)] >> (first & 63) & 1 == 1 {
            let from = self.by_first.partition_point(|(byte, _)| *byte < first);
            for (_, number) in self.by_first[from..].iter().take_while(|(byte, _)| *byte == first) {
                self.try_match(*number, text, at, work, best)?;
            }
        }
        Ok(())
    }

    /// Keeps the longest match, so that a value that starts with another goes whole.
    fn try_match(
        &self,
        number: u32,
        text: &[u8],
        at: usize,
        work: &mut usize,
        best: &mut Option<(usize, u32)>,
    ) -> Result<(), TooMuchWork> {
        let pattern = self.patterns[number as usize].bytes.as_slice();
        let end = if text[at..].starts_with(pattern) {
            spend(work, pattern.len() / 16 + 1)?;
            Some(at + pattern.len())
        } else {
            matches_escaped(pattern, text, at, work)?
        };
        if let Some(end) = end
            && best.is_none_or(|(longest, _)| end > longest)
        {
            *best = Some((end, number));
        }
        Ok(())
    }

    fn find_escape(&self, text: &[u8], from: usize) -> usize {
        text[from..]
            .iter()
            .position(|byte| matches!(byte, b'%' | b'\\' | b'&') || (*byte == b'+' && self.spaces))
            .map_or(usize::MAX, |found| from + found)
    }
}

fn spend(work: &mut usize, steps: usize) -> Result<(), TooMuchWork> {
    *work = work.checked_sub(steps).ok_or(TooMuchWork)?;
    Ok(())
}

/// Compares a pattern with the text as it decodes. No backtracking: where a character both
/// decodes to the wanted one and is it, the decoded reading wins; the plain reading of the
/// whole was tried before.
fn matches_escaped(
    pattern: &[u8],
    text: &[u8],
    start: usize,
    work: &mut usize,
) -> Result<Option<usize>, TooMuchWork> {
    let mut at = start;
    for (seen, wanted) in pattern.iter().enumerate() {
        let Some(plain) = text.get(at) else {
            spend(work, seen + 1)?;
            return Ok(None);
        };
        let (decoded, length) = unescape(text, at);
        if decoded == *wanted {
            at += length;
        } else if plain == wanted || (*plain == b'+' && *wanted == b' ') {
            at += 1;
        } else {
            spend(work, seen + 1)?;
            return Ok(None);
        }
    }
    spend(work, pattern.len())?;
    Ok(Some(at))
}

/// The character at a place, read through percent-encoding, JSON escapes and HTML entities,
/// and how many bytes it takes.
fn unescape(text: &[u8], at: usize) -> (u8, usize) {
    let rest = &text[at..];
    let plain = (rest[0], 1);
    match rest {
        [b'%', high, low, ..] => match (hex_digit(*high), hex_digit(*low)) {
            (Some(high), Some(low)) => (high << 4 | low, 3),
            _ => plain,
        },
        [b'\\', b'u', digits @ ..] => match digits.first_chunk::<4>().and_then(|four| number(four, 16)) {
            Some(value) if value < 0x80 => (value as u8, 6),
            _ => plain,
        },
        [b'\\', escaped, ..] => match escaped {
            b'/' | b'"' | b'\\' | b'\'' => (*escaped, 2),
            b'n' => (b'\n', 2),
            b'r' => (b'\r', 2),
            b't' => (b'\t', 2),
            b'b' => (8, 2),
            b'f' => (12, 2),
            _ => plain,
        },
        [b'&', ..] => entity(rest).unwrap_or(plain),
        _ => plain,
    }
}

fn entity(text: &[u8]) -> Option<(u8, usize)> {
    // The longest of these is `&#x0000002f;`; nobody pads further.
    let end = text.iter().take(12).position(|byte| *byte == b';')?;
    let value = match &text[1..end] {
        b"amp" => b'&',
        b"lt" => b'<',
        b"gt" => b'>',
        b"quot" => b'"',
        b"apos" => b'\'',
        b"sol" => b'/',
        b"plus" => b'+',
        b"equals" => b'=',
        [b'#', b'x' | b'X', digits @ ..] => u8::try_from(number(digits, 16)?).ok()?,
        [b'#', digits @ ..] => u8::try_from(number(digits, 10)?).ok()?,
        _ => return None,
    };
    Some((value, end + 1))
}

fn number(digits: &[u8], base: u32) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u32, |sum, digit| sum.checked_mul(base)?.checked_add(char::from(*digit).to_digit(base)?))
}

fn hex_digit(byte: u8) -> Option<u8> {
    // A digit fits a byte.
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn percent_decode(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        let (byte, length) = if value[at] == b'%' { unescape(value, at) } else { (value[at], 1) };
        out.push(byte);
        at += length;
    }
    out
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

impl Windows {
    fn may_have(&self, bytes: u64) -> bool {
        let bit = hash(fold(bytes), self.shift);
        self.filter[bit / 64] >> (bit % 64) & 1 == 1
    }
}

/// Room for the hashes of so many entries, and how far to shift a hash for it.
fn empty_filter(entries: usize) -> (Vec<u64>, u32) {
    // 32 bits an entry keep chance hits near 3 %.
    let bits = (entries * 32).next_power_of_two().max(512);
    (vec![0; bits / 64], 32 - bits.trailing_zeros())
}

fn fold(bytes: u64) -> u32 {
    // Both halves count; what is cut off is in the other operand.
    (bytes ^ bytes >> 32) as u32
}

fn hash(word: u32, shift: u32) -> usize {
    // Knuth's multiplicative hash: the high bits are the well-mixed ones.
    (word.wrapping_mul(0x9E37_79B1) >> shift) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    const VALUE: &str = "s3cr/t+va lue=&\"ok";

    fn redact(values: &[&str], text: &str) -> String {
        let redactor = Redactor::new(values.iter().map(|value| value.as_bytes()));
        String::from_utf8(redactor.redact(text.as_bytes()).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn a_value_is_found_in_every_common_spelling() {
        for (name, spelling) in [
            ("raw", VALUE.to_owned()),
            ("percent, upper", "s3cr%2Ft%2Bva%20lue%3D%26%22ok".to_owned()),
            ("percent, lower", "s3cr%2ft%2bva%20lue%3d%26%22ok".to_owned()),
            ("percent, all", VALUE.bytes().map(|byte| format!("%{byte:02X}")).collect()),
            ("percent, some", "s3cr/t%2Bva%20lue=&\"ok".to_owned()),
            ("form", "s3cr%2Ft%2Bva+lue%3D%26%22ok".to_owned()),
            ("json", "s3cr/t+va lue=&\\\"ok".to_owned()),
            ("json, slashes", "s3cr\\/t+va lue=&\\\"ok".to_owned()),
            ("json, code points", "s3cr\\u002ft\\u002Bva lue=\\u0026\\u0022ok".to_owned()),
            ("html", "s3cr/t+va lue=&amp;&quot;ok".to_owned()),
            ("html, numbers", "s3cr&#x2F;t&#43;va lue&#x3d;&#38;&#34;ok".to_owned()),
            ("base64", STANDARD.encode(VALUE)),
            ("base64url", URL_SAFE.encode(VALUE)),
            ("hex", hex::encode(VALUE)),
            ("HEX", hex::encode_upper(VALUE)),
            ("percent of base64", STANDARD.encode(VALUE).replace('+', "%2B").replace('/', "%2F")),
        ] {
            let got = redact(&[VALUE], &format!("before {spelling} after"));
            // Padding of base64 is no secret and may stay.
            let got = got.replace("]==", "]").replace("]=", "]");
            assert_eq!(got, "before [redacted] after", "{name}: {spelling}");
        }
    }

    #[test]
    fn a_value_inside_longer_base64_is_found_at_every_offset() {
        for before in ["", "u", "us", "use", "user", "Aladdin"] {
            for after in ["", "x", "xy", "xyz"] {
                let whole = format!("{before}topsecretvalue{after}");
                for encoded in [STANDARD.encode(&whole), URL_SAFE.encode(&whole)] {
                    let got = redact(&["topsecretvalue"], &format!("[{encoded}]"));
                    assert!(got.contains(MARKER), "{whole}: {got}");
                    // No character is left that holds a bit of the value.
                    let (head, tail) = got.split_once(MARKER).unwrap();
                    assert!(head.len() - 1 <= before.len() * 8 / 6, "{whole}: {got}");
                    let left = tail.trim_end_matches(['=', ']']);
                    assert!(left.len() <= (after.len() * 8).div_ceil(6), "{whole}: {got}");
                }
            }
        }
    }

    #[test]
    fn a_value_the_service_sees_decoded_or_unquoted_is_found_too() {
        assert_eq!(redact(&["abc%2Fdef%3D"], "x abc/def= y"), "x [redacted] y");
        assert_eq!(redact(&["abc%2Fdef%3D"], "x abc%2Fdef%3D y"), "x [redacted] y");
        assert_eq!(redact(&["abc%2Fdef%3D"], "x abc%252Fdef%253D y"), "x [redacted] y");
        assert_eq!(redact(&["\"abcdef\""], "x abcdef y"), "x [redacted] y");
        assert_eq!(redact(&["naïve-tökén"], "x na\\u00efve-t\\u00f6k\\u00e9n y"), "x [redacted] y");
        assert_eq!(redact(&["naïve-tökén"], "x na%C3%AFve-t%c3%b6k%C3%A9n y"), "x [redacted] y");
    }

    #[test]
    fn a_value_that_begins_with_a_plus_is_found_beside_one_with_a_space() {
        for text in ["+bc/def", "%2Bbc%2Fdef", "+bc%2Fdef", "%2Bbc/def"] {
            assert_eq!(redact(&["+bc/def", "a space"], text), MARKER, "{text}");
        }
        assert_eq!(redact(&["+bc/def", " space/d"], "+space%2Fd %20space%2Fd"), "[redacted] [redacted]");
    }

    #[test]
    fn bytes_that_are_no_text_are_redacted_and_the_rest_is_untouched() {
        let value = [0xff, 0x00, 0x80, 0x7f, 0x01, 0xfe];
        let redactor = Redactor::new([value.as_slice()]);
        let mut body = vec![0xc3, 0x28];
        body.extend_from_slice(&value);
        body.push(0xff);
        let mut want = vec![0xc3, 0x28];
        want.extend_from_slice(MARKER.as_bytes());
        want.push(0xff);
        assert_eq!(redactor.redact(&body).unwrap().as_ref(), want);
    }

    #[test]
    fn the_longest_of_several_values_goes_whole_and_all_occurrences_go() {
        assert_eq!(redact(&["session", "session-12345"], "session-12345 session"), "[redacted] [redacted]");
        assert_eq!(redact(&["abcdef", "xyzuvw"], "abcdefxyzuvwabcdef"), "[redacted][redacted][redacted]");
    }

    #[test]
    fn a_value_in_pieces_goes_if_all_of_it_is_there_and_stays_if_not() {
        let (head, middle, tail) = ("0123456789abcdef", "ghijklmnopqr", "STUVWXYZ01234567");
        let value = format!("{head}.{middle}.{tail}");
        for (text, shown) in [
            (format!("{{\"a\":\"{head}\",\"b\":\"{middle}{tail}\"}}"), "{\"a\":\"#\",\"b\":\"##\"}"),
            (format!("{tail} {middle} {head}"), "# # #"),
            (format!("{head}. .{middle}.{tail}"), "# #"),
            // Known in part and guessed in part, it tells nothing of the guess.
            (format!("{head}.{middle}.STUVWXYZ0123456"), ""),
            (format!("{head} {middle} STUVWXYZ0123456x"), ""),
            (format!("{head} {middle}"), ""),
            // Too short a piece: all of it could be tried.
            (format!("{head} {middle} STUVWXYZ 01234567"), ""),
        ] {
            let want = if shown.is_empty() { text.clone() } else { shown.replace('#', MARKER) };
            assert_eq!(redact(&[&value], &text), want);
        }
        // Two at once, one of them in pieces, and a piece found whole only once.
        let other = "another-secret-of-some-length";
        let text = format!("{other} {head} {middle} {tail} {head}");
        assert_eq!(redact(&[&value, other], &text), "# # # # #".replace('#', MARKER));
    }

    #[test]
    fn values_full_of_repetition_are_looked_for_in_pieces_in_bounded_work() {
        let values: Vec<String> = (0..150).map(|n| format!("{}{n:04}", "ab".repeat(2_000))).collect();
        let redactor = Redactor::new(values.iter().map(|value| value.as_bytes()));
        let text = "ab".repeat(1_000) + &"c".repeat(1 << 20);
        assert!(Redactor::new([values[0].as_bytes()]).redact(text.as_bytes()).is_ok());
        assert_eq!(redactor.redact(text.as_bytes()), Err(TooMuchWork));
    }

    #[test]
    fn what_is_compressed_twice_is_refused() {
        let redactor = Redactor::new([VALUE.as_bytes()]);
        for magic in COMPRESSED {
            assert_eq!(redactor.redact(&[magic, b"anything".as_slice()].concat()), Err(TooMuchWork));
        }
        assert!(redactor.redact(b"BZ and PK are letters").is_ok());
    }

    #[test]
    fn short_values_are_left_alone() {
        assert_eq!(redact(&["12345", "en", ""], "12345 en"), "12345 en");
        assert_eq!(redact(&["123456"], "123456"), MARKER);
    }

    #[test]
    fn text_without_a_value_is_not_copied() {
        let redactor = Redactor::new([VALUE.as_bytes()]);
        for text in
            ["", "abc", "s3cr", "s3cr/t+va lue=&\"o", "%", "%2", "\\", "\\u00", "&", "&#", "&#x;", "&;", "+"]
        {
            assert!(matches!(redactor.redact(text.as_bytes()), Ok(Cow::Borrowed(_))), "{text}");
        }
    }

    #[test]
    fn a_text_made_to_match_almost_everywhere_is_refused_in_bounded_work() {
        let values: Vec<String> = (0..150).map(|n| format!("{}{n:04}", "%41".repeat(1000))).collect();
        let redactor = Redactor::new(values.iter().map(|value| value.as_bytes()));
        assert_eq!(redactor.redact("A".repeat(1 << 20).as_bytes()), Err(TooMuchWork));
        assert_eq!(redactor.redact_text(&"A".repeat(1 << 20)), MARKER);
    }

    #[test]
    fn a_value_added_later_is_found_beside_the_earlier_ones() {
        let mut redactor = Redactor::new([b"first-value".as_slice()]);
        redactor.add(b"second-value");
        redactor.add(b"second-value");
        assert_eq!(redactor.redact_text("first-value, second-value"), "[redacted], [redacted]");
    }
}
