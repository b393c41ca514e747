//! The notation for values with settings and keys: `{key}`, `{key|form}`, `{user:{key}|base64}`,
//! and `{{` and `}}` for a brace. Owns reading it; what a name stands for is not its matter.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// How a value is written into its place, by the contract's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Form,
    Percent,
    Json,
    Base64,
    Base64Url,
    Hex,
    Sha1Hex,
    Sha256Hex,
}

impl Encoding {
    pub const NAMES: [&str; 9] =
        ["raw", "form", "percent", "json", "base64", "base64-url", "hex", "sha1-hex", "sha256-hex"];

    fn read(name: &str) -> Option<Self> {
        Some(match name {
            "raw" => Self::Raw,
            "form" => Self::Form,
            "percent" => Self::Percent,
            "json" => Self::Json,
            "base64" => Self::Base64,
            "base64-url" => Self::Base64Url,
            "hex" => Self::Hex,
            "sha1-hex" => Self::Sha1Hex,
            "sha256-hex" => Self::Sha256Hex,
            _ => return None,
        })
    }
}

/// A setting or a key by name, perhaps a part of it, perhaps encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder<'a> {
    pub name: &'a str,
    /// `host` or `origin` of a url setting.
    pub part: Option<&'a str>,
    pub encoding: Option<Encoding>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf<'a> {
    Text(String),
    Placeholder(Placeholder<'a>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    Leaf(Leaf<'a>),
    /// Leaves that are encoded or hashed as a whole.
    Group(Vec<Leaf<'a>>, Encoding),
}

impl<'a> Piece<'a> {
    pub fn leaves(&self) -> &[Leaf<'a>] {
        match self {
            Self::Leaf(leaf) => core::slice::from_ref(leaf),
            Self::Group(leaves, _) => leaves,
        }
    }
}

/// Every placeholder of a value, in order.
pub fn placeholders<'p, 'a>(pieces: &'p [Piece<'a>]) -> impl Iterator<Item = &'p Placeholder<'a>> {
    pieces.iter().flat_map(Piece::leaves).filter_map(|leaf| match leaf {
        Leaf::Placeholder(placeholder) => Some(placeholder),
        Leaf::Text(_) => None,
    })
}

/// Cuts a value into its pieces.
///
/// # Errors
/// What is wrong with its braces or encodings.
pub fn read(value: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = value;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        // `{{` begins a group whose first piece is a placeholder where it can be read so. It
        // never can where it stands for a brace, because the braces would not come out even.
        let piece = match group(rest) {
            Some(read) => Some(read),
            None if rest.starts_with("{{") || rest.starts_with("}}") => None,
            None => Some(placeholder(rest)?),
        };
        match piece {
            Some((piece, after)) => {
                flush(&mut text, &mut pieces);
                pieces.push(piece);
                rest = after;
            }
            None => {
                text.push_str(&rest[..1]);
                rest = &rest[2..];
            }
        }
    }
    text.push_str(rest);
    flush(&mut text, &mut pieces);
    Ok(pieces)
}

fn flush(text: &mut String, pieces: &mut Vec<Piece<'_>>) {
    if !text.is_empty() {
        pieces.push(Piece::Leaf(Leaf::Text(core::mem::take(text))));
    }
}

/// `{name}`, `{name.part}` or `{name|encoding}` at the beginning of `rest`, with what follows.
fn placeholder(rest: &str) -> Result<(Piece<'_>, &str), String> {
    let hint = "hint: a brace as it is is written `{{` or `}}`";
    let Some(inside) = rest.strip_prefix('{') else {
        return Err(format!("a `}}` without its `{{`; {hint}"));
    };
    let end = inside.find(['{', '}']).ok_or_else(|| format!("a `{{` without its `}}`; {hint}"))?;
    if inside[end..].starts_with('{') {
        return Err(format!(
            "`{{{}` is not closed before the next `{{`; {hint}, and what is encoded as a whole ends in an encoding, \
             such as `{{user:{{key}}|base64}}`",
            &inside[..end]
        ));
    }
    let (inside, after) = (&inside[..end], &inside[end + 1..]);
    let leaf = read_placeholder(inside)?;
    Ok((Piece::Leaf(Leaf::Placeholder(leaf)), after))
}

fn read_placeholder(inside: &str) -> Result<Placeholder<'_>, String> {
    let (inside, encoding) = match inside.rsplit_once('|') {
        Some((name, encoding)) => (name, Some(read_encoding(encoding)?)),
        None => (inside, None),
    };
    let (name, part) = match inside.split_once('.') {
        Some((name, part)) => (name, Some(part)),
        None => (inside, None),
    };
    if !is_name(name) {
        return Err(format!(
            "`{{{inside}}}` names no setting and no key; hint: a brace as it is is written `{{{{` or `}}}}`"
        ));
    }
    if part.is_some_and(|part| !matches!(part, "host" | "origin")) {
        return Err(format!(
            "`{{{inside}}}`: a setting has no such part; allowed: `.host` and `.origin` of a url"
        ));
    }
    Ok(Placeholder { name, part, encoding })
}

fn read_encoding(name: &str) -> Result<Encoding, String> {
    Encoding::read(name).ok_or_else(|| {
        format!("`{name}` is no encoding; {}", crate::fault::suggestion(name, &Encoding::NAMES))
    })
}

fn is_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    !name.is_empty() && name.bytes().all(allowed)
}

/// `{…|encoding}` with at least one placeholder in it, at the beginning of `rest`. Its text
/// doesn't begin with a brace: of `{{{{x}|hex}}}` the first two are one.
fn group(rest: &str) -> Option<(Piece<'_>, &str)> {
    if rest.starts_with("{{{") {
        return None;
    }
    let mut inside = rest.strip_prefix('{')?;
    let mut leaves = Vec::new();
    let mut text = String::new();
    let mut nested = false;
    loop {
        let at = inside.find(['{', '}'])?;
        text.push_str(&inside[..at]);
        inside = &inside[at..];
        if inside.starts_with("{{") || (inside.starts_with("}}") && !ends_group(&text)) {
            text.push_str(&inside[..1]);
            inside = &inside[2..];
        } else if inside.starts_with('{') {
            let (Piece::Leaf(leaf), after) = placeholder(inside).ok()? else { return None };
            if !text.is_empty() {
                leaves.push(Leaf::Text(core::mem::take(&mut text)));
            }
            leaves.push(leaf);
            (inside, nested) = (after, true);
        } else {
            let (before, encoding) = text.rsplit_once('|')?;
            let encoding = Encoding::read(encoding)?;
            if !before.is_empty() {
                leaves.push(Leaf::Text(before.to_string()));
            }
            return nested.then_some((Piece::Group(leaves, encoding), &inside[1..]));
        }
    }
}

/// Whether a group may end after this text, so that a `}` after it is not half of a `}}`:
/// `{{"a":"{{x}|base64}"}}` ends its group before the quote, not after a brace.
fn ends_group(text: &str) -> bool {
    text.rsplit_once('|').is_some_and(|(_, encoding)| Encoding::read(encoding).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> String {
        let leaf = |leaf: &Leaf<'_>| match leaf {
            Leaf::Text(text) => format!("'{text}'"),
            Leaf::Placeholder(Placeholder { name, part, encoding }) => {
                let part = part.map_or_else(String::new, |part| format!(".{part}"));
                let encoding = encoding.map_or_else(String::new, |encoding| format!("|{encoding:?}"));
                format!("<{name}{part}{encoding}>")
            }
        };
        match read(value) {
            Ok(pieces) => pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Leaf(one) => leaf(one),
                    Piece::Group(leaves, encoding) => {
                        format!("({}|{encoding:?})", leaves.iter().map(leaf).collect::<String>())
                    }
                })
                .collect(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn a_value_is_text_placeholders_and_groups_and_a_doubled_brace_is_a_brace() {
        let cases = [
            ("plain", "'plain'"),
            ("", ""),
            ("Bearer {token}", "'Bearer '<token>"),
            ("{a}{b|form}", "<a><b|Form>"),
            ("{base_url.origin}/x", "<base_url.origin>'/x'"),
            ("{user:{key}|base64}", "('user:'<key>|Base64)"),
            ("Basic {{client_id}:{secret|form}|base64}", "'Basic '(<client_id>':'<secret|Form>|Base64)"),
            ("{{sid}|sha1-hex}", "(<sid>|Sha1Hex)"),
            ("{{ viewer {{ id }} }}", "'{ viewer { id } }'"),
            ("{{{x}}}", "'{'<x>'}'"),
            ("{{x}}", "'{x}'"),
            (r#"{{"token":"{token|json}"}}"#, r#"'{"token":"'<token|Json>'"}'"#),
            (r#"{{"a":"{{x}|base64}"}}"#, r#"'{"a":"'(<x>|Base64)'"}'"#),
            ("{{{{x}|hex}}}", "'{'(<x>|Hex)'}'"),
            ("{{a}|b:{x}|base64}", "(<a>'|b:'<x>|Base64)"),
        ];
        for (value, expected) in cases {
            assert_eq!(shown(value), expected, "for {value}");
        }
    }

    #[test]
    fn what_cant_be_read_says_what_to_write() {
        let cases = [
            ("{token", "a `{` without its `}`"),
            ("token}", "a `}` without its `{`"),
            ("{Token}", "`{Token}` names no setting and no key"),
            ("{}", "`{}` names no setting and no key"),
            ("{a|bsae64}", "`bsae64` is no encoding; did you mean `base64`?"),
            ("{a.port}", "a setting has no such part"),
            ("{ viewer { id } }", "is not closed before the next"),
            ("{a:{b}}", "is not closed before the next"),
        ];
        for (value, expected) in cases {
            let said = read(value).unwrap_err();
            assert!(said.contains(expected), "{value}: {said}");
        }
    }
}
