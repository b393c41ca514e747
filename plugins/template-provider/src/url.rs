//! What the URL of a request is made of: the origin, which the operator allows, and what follows.
//! Pure. A key never comes before the path.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::notation::{Leaf, Piece, Placeholder};
use crate::place::Entries;
use crate::template::{Kind, SettingTable};

/// A URL cut where its origin ends.
#[derive(Debug)]
pub struct Url<'a> {
    /// As the host's manifest wants it: `https://api.example` or `{base_url.origin}`.
    pub origin: String,
    pub pieces: Vec<Piece<'a>>,
}

/// # Errors
/// Why it can't be the URL of a request.
pub fn read<'a>(pieces: Vec<Piece<'a>>, settings: &Entries<SettingTable>) -> Result<Url<'a>, String> {
    let kind = |name: &str| settings.get(name).map(|setting| setting.kind);
    let origin = match pieces.as_slice() {
        [Piece::Leaf(Leaf::Placeholder(first)), rest @ ..]
            if kind(first.name) == Some(Kind::Url) && first.part != Some("host") =>
        {
            if first.encoding.is_some() {
                return Err(format!("`{{{}}}` begins the URL, so it can't be encoded", first.name));
            }
            match rest {
                [] => {}
                [Piece::Leaf(Leaf::Text(text)), ..] if text.starts_with(['/', '?']) => {}
                _ => {
                    return Err(format!(
                        "what follows `{{{}}}` could become another host; hint: begin it with `/`",
                        first.name
                    ));
                }
            }
            format!("{{{}.origin}}", first.name)
        }
        [Piece::Leaf(Leaf::Text(text)), ..] => literal(text, &pieces, &kind)?,
        _ => {
            return Err("scheme and host are neither text nor a setting of kind url; hint: begin with \
                        `https://…` or `{base_url}`"
                .into());
        }
    };
    if pieces.iter().any(|piece| matches!(piece, Piece::Leaf(Leaf::Text(text)) if text.contains('#'))) {
        return Err("a fragment (`#…`) is never sent; hint: leave it out".into());
    }
    Ok(Url { origin, pieces })
}

fn literal(first: &str, pieces: &[Piece<'_>], kind: &dyn Fn(&str) -> Option<Kind>) -> Result<String, String> {
    if first.starts_with("http://") {
        return Err(
            "plain http; hint: write https, or let the operator name the host by a setting of kind url"
                .into(),
        );
    }
    let Some(after_scheme) = first.strip_prefix("https://") else {
        return Err("no `https://` at its beginning; hint: begin with `https://…` or a setting of kind url, `{base_url}`".into());
    };
    let mut origin = String::from("https://");
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Leaf(Leaf::Text(text)) => {
                let text = if index == 0 { after_scheme } else { text.as_str() };
                let end = text.find(['/', '?', '#']);
                origin.push_str(&text[..end.unwrap_or(text.len())]);
                if end.is_some() {
                    break;
                }
            }
            Piece::Leaf(Leaf::Placeholder(Placeholder { name, part, encoding: None })) => {
                match (kind(name), part) {
                    (Some(Kind::Url), Some("host")) => origin.push_str(&format!("{{{name}.host}}")),
                    (Some(Kind::Url), _) => {
                        return Err(format!(
                            "`{{{name}}}` is a whole URL; hint: write `{{{name}.host}}` inside a host"
                        ));
                    }
                    (Some(_), None) => origin.push_str(&format!("{{{name}}}")),
                    (Some(_), Some(part)) => {
                        return Err(format!("`{{{name}.{part}}}`: only a setting of kind url has parts"));
                    }
                    (None, _) => {
                        return Err(format!(
                            "the key `{name}` would be part of the host, and everyone on the way would see it; hint: put it after the host"
                        ));
                    }
                }
            }
            Piece::Leaf(Leaf::Placeholder(Placeholder { name, .. })) => {
                return Err(format!("`{{{name}}}` is part of the host, so it can't be encoded"));
            }
            Piece::Group(..) => {
                return Err("a host can't be computed; hint: write it as text or as a setting".into());
            }
        }
    }
    if origin.contains('@') {
        return Err("a user name before the host; hint: secrets are keys, `headers = { authorization = \"Basic {{user}:{password}|base64}\" }`".into());
    }
    if origin.contains('*') {
        return Err(
            "a wildcard in the host; hint: each host has a name, or the operator gives it by a setting"
                .into(),
        );
    }
    if origin.len() == "https://".len() {
        return Err("no host after `https://`".into());
    }
    Ok(origin)
}

impl Url<'_> {
    /// The part that no key is in, as the host's manifest wants it.
    pub fn without_keys(&self, settings: &Entries<SettingTable>) -> String {
        let mut shown = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Leaf(Leaf::Text(text)) => {
                    let text = text.split('?').next().unwrap_or_default();
                    // A brace would be a placeholder there.
                    shown.push_str(&text.replace('{', "%7B").replace('}', "%7D"));
                }
                Piece::Leaf(Leaf::Placeholder(Placeholder { name, part, .. }))
                    if settings.get(name).is_some() =>
                {
                    let part = part.map_or_else(String::new, |part| format!(".{part}"));
                    shown.push_str(&format!("{{{name}{part}}}"));
                    continue;
                }
                _ => {
                    // Half a segment would be another place.
                    shown.truncate(shown.rfind('/').map_or(shown.len(), |at| at + 1));
                    break;
                }
            }
            if matches!(piece, Piece::Leaf(Leaf::Text(text)) if text.contains('?')) {
                break;
            }
        }
        shown
    }
}
