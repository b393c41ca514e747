//! From a request of a template to one that the SDK sends. Owns where each value goes and how it
//! is encoded there; it never sees a secret and judges no answer.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use keywheel_sdk::encode;
use keywheel_sdk::prelude::{Cx, Leaves, Request, Stop, Template as Value, secret, text};

use crate::notation::{self, Encoding, Leaf, Piece, Placeholder, placeholders};
use crate::place::Entries;
use crate::template::{Kind, Node, RequestFields, SettingTable, Source, Template};

/// What has to be escaped where a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A header or a body by hand: the author says how.
    Verbatim,
    Url,
    Query,
    Form,
    Json,
}

impl Place {
    /// How a value without an encoding of its own is written there.
    const fn encoding(self) -> Encoding {
        match self {
            Self::Verbatim => Encoding::Raw,
            Self::Url | Self::Query => Encoding::Percent,
            Self::Form => Encoding::Form,
            Self::Json => Encoding::Json,
        }
    }

    /// Whether what an encoding writes can stand there as it is.
    pub const fn takes(self, written: Encoding) -> bool {
        match written {
            Encoding::Hex | Encoding::Base64Url | Encoding::Sha1Hex | Encoding::Sha256Hex => true,
            Encoding::Base64 => matches!(self, Self::Verbatim | Self::Json),
            Encoding::Percent => matches!(self, Self::Verbatim | Self::Url | Self::Json),
            Encoding::Form => matches!(self, Self::Verbatim | Self::Json),
            Encoding::Json | Encoding::Raw => matches!(self, Self::Verbatim | Self::Url),
        }
    }
}

/// Fills in one credential's settings.
pub struct Filler<'a> {
    cx: &'a Cx,
    settings: &'a Entries<SettingTable>,
}

impl<'a> Filler<'a> {
    pub fn new(cx: &'a Cx, template: &'a Template) -> Self {
        Self { cx, settings: &template.settings }
    }

    /// # Errors
    /// Where the template can't be read, which `check` rules out.
    pub fn request(&self, fields: &RequestFields<'_>) -> Result<Request, Stop> {
        let mut url = self.url(&fields.url.value)?;
        let mut separator = if fields.url.contains('?') { "&" } else { "?" };
        for (name, value) in fields.query.iter() {
            if let Some(value) = self.value(value, Place::Query)? {
                url = url + text([separator, &encode::percent(name), "="].concat()) + value;
                separator = "&";
            }
        }
        let mut request = self.cx.request_to(fields.method.as_str(), url);
        let mut content_type = match (fields.json, fields.form) {
            (Some(_), _) => Some("application/json"),
            (_, Some(_)) => Some("application/x-www-form-urlencoded"),
            _ => None,
        };
        for (name, value) in fields.headers.iter() {
            if let Some(value) = self.value(value, Place::Verbatim)? {
                content_type = content_type.filter(|_| !name.eq_ignore_ascii_case("content-type"));
                request = request.header(name, value);
            }
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        if let Some(body) = self.body(fields)? {
            request = request.body(body);
        }
        if fields.cookies {
            request = request.cookies();
        }
        if let Some(hops) = fields.redirects {
            request = request.redirects(hops.value);
        }
        if let Some(timeout) = fields.timeout {
            request = request.timeout(timeout.0);
        }
        Ok(request)
    }

    fn body(&self, fields: &RequestFields<'_>) -> Result<Option<Value>, Stop> {
        if let Some(node) = fields.json {
            return Ok(Some(self.node(node)?.unwrap_or_default()));
        }
        if let Some(form) = fields.form {
            let mut body = Value::default();
            let mut separator = "";
            for (name, value) in form.iter() {
                if let Some(value) = self.value(value, Place::Form)? {
                    body = body + text([separator, &encode::form(name), "="].concat()) + value;
                    separator = "&";
                }
            }
            return Ok(Some(body));
        }
        match fields.body {
            Some(body) => Ok(Some(self.pieces(&read(body)?, Place::Verbatim))),
            None => Ok(None),
        }
    }

    /// None where the text uses something this credential lacks.
    fn node(&self, node: &Node) -> Result<Option<Value>, Stop> {
        Ok(Some(match node {
            Node::Text(value) => {
                return Ok(self.value(value, Place::Json)?.map(|value| text("\"") + value + text("\"")));
            }
            Node::Integer(number) => number.to_string().into(),
            Node::Float(number) => number.to_string().into(),
            Node::Boolean(boolean) => boolean.to_string().into(),
            Node::List(nodes) => {
                let mut list = Value::from("[");
                let mut separator = "";
                for node in nodes {
                    if let Some(node) = self.node(node)? {
                        list = list + text(separator) + node;
                        separator = ",";
                    }
                }
                list + text("]")
            }
            Node::Table(entries) => {
                let mut table = Value::from("{");
                let mut separator = "";
                for (name, node) in entries.iter() {
                    if let Some(node) = self.node(node)? {
                        table = table + text([separator, "\"", &encode::json(name), "\":"].concat()) + node;
                        separator = ",";
                    }
                }
                table + text("}")
            }
        }))
    }

    fn value(&self, value: &str, place: Place) -> Result<Option<Value>, Stop> {
        let pieces = read(value)?;
        let lacking = placeholders(&pieces).any(|one| self.lacks(one.name));
        Ok((!lacking).then(|| self.pieces(&pieces, place)))
    }

    fn lacks(&self, name: &str) -> bool {
        match self.settings.get(name) {
            Some(_) => self.cx.setting(name).is_empty(),
            None => !self.cx.has(name),
        }
    }

    fn url(&self, value: &str) -> Result<Value, Stop> {
        let pieces = read(value)?;
        let mut url = Value::default();
        for (index, piece) in pieces.iter().enumerate() {
            url = match piece {
                // The operator's URL is as it is, but one slash is enough.
                Piece::Leaf(Leaf::Placeholder(one)) if self.is_url(one) && one.encoding.is_none() => {
                    let filled = self.cx.fill(&written(one))?;
                    let doubled = matches!(pieces.get(index + 1), Some(Piece::Leaf(Leaf::Text(next))) if next.starts_with('/'));
                    url + text(if doubled { filled.trim_end_matches('/') } else { filled.as_str() })
                }
                // Part of the host: the host judges what the operator typed.
                _ if !is_past_host(&pieces[..index]) => {
                    url + self.pieces(core::slice::from_ref(piece), Place::Verbatim)
                }
                Piece::Leaf(Leaf::Text(plain)) => url + text(plain.as_str()),
                _ => url + self.pieces(core::slice::from_ref(piece), Place::Url),
            };
        }
        Ok(url)
    }

    fn is_url(&self, one: &Placeholder<'_>) -> bool {
        self.settings.get(one.name).is_some_and(|setting| setting.kind == Kind::Url)
    }

    fn pieces(&self, pieces: &[Piece<'_>], place: Place) -> Value {
        let mut filled = Value::default();
        for piece in pieces {
            filled = match piece {
                Piece::Leaf(Leaf::Text(plain)) => filled + text(by_hand(place.encoding(), plain)),
                Piece::Leaf(Leaf::Placeholder(one)) => filled + self.placeholder(one, place),
                Piece::Group(leaves, encoding) => filled + as_a_whole(self.leaves(leaves), *encoding),
            };
        }
        filled
    }

    fn placeholder(&self, one: &Placeholder<'_>, place: Place) -> Value {
        let encoding = one.encoding.unwrap_or(place.encoding());
        match self.setting(one) {
            Some(value) => match encoding {
                Encoding::Sha1Hex | Encoding::Sha256Hex => as_a_whole(text(value).into(), encoding),
                known if one.encoding.is_none() || place.takes(known) => text(by_hand(known, &value)).into(),
                twice => text(by_hand(place.encoding(), &by_hand(twice, &value))).into(),
            },
            None if place.takes(encoding) || one.encoding.is_none() => leaf_of(one.name, encoding),
            // The value's own encoding first, then the place's over it.
            None => as_a_whole(leaves_of(one.name, encoding), place.encoding()),
        }
    }

    fn leaves(&self, leaves: &[Leaf<'_>]) -> Leaves {
        let mut sum: Option<Leaves> = None;
        let mut plain = String::new();
        let mut all: Vec<Leaves> = Vec::new();
        for leaf in leaves {
            match leaf {
                Leaf::Text(piece) => plain.push_str(piece),
                Leaf::Placeholder(one) => match self.setting(one) {
                    Some(value) => plain.push_str(&by_hand(one.encoding.unwrap_or(Encoding::Raw), &value)),
                    None => {
                        if !plain.is_empty() {
                            all.push(text(core::mem::take(&mut plain)).into());
                        }
                        all.push(leaves_of(one.name, one.encoding.unwrap_or(Encoding::Raw)));
                    }
                },
            }
        }
        if !plain.is_empty() {
            all.push(text(plain).into());
        }
        for one in all {
            sum = Some(match sum {
                Some(sum) => sum + one,
                None => one,
            });
        }
        sum.unwrap_or_else(|| text("").into())
    }

    /// The value of a setting; None where the name is a key's.
    fn setting(&self, one: &Placeholder<'_>) -> Option<String> {
        self.settings.get(one.name)?;
        match one.part {
            Some(_) => self.cx.fill(&written(one)).ok(),
            None => Some(self.cx.setting(one.name).into()),
        }
    }
}

/// As the SDK reads it.
fn written(one: &Placeholder<'_>) -> String {
    match one.part {
        Some(part) => format!("{{{}.{part}}}", one.name),
        None => format!("{{{}}}", one.name),
    }
}

fn read(value: &str) -> Result<Vec<Piece<'_>>, Stop> {
    notation::read(value).map_err(Stop::failed)
}

/// Whether the pieces so far hold the whole origin.
fn is_past_host(before: &[Piece<'_>]) -> bool {
    match before {
        [Piece::Leaf(Leaf::Text(first)), rest @ ..] => {
            let after_scheme = first.strip_prefix("https://").unwrap_or(first);
            after_scheme.contains(['/', '?'])
                || rest
                    .iter()
                    .any(|piece| matches!(piece, Piece::Leaf(Leaf::Text(text)) if text.contains(['/', '?'])))
        }
        [] => false,
        _ => true,
    }
}

fn by_hand(encoding: Encoding, plain: &str) -> String {
    match encoding {
        Encoding::Form => encode::form(plain),
        Encoding::Percent => encode::percent(plain),
        Encoding::Json => encode::json(plain),
        Encoding::Base64 => encode::base64(plain),
        Encoding::Base64Url => encode::base64_url(plain),
        Encoding::Hex => encode::hex(plain),
        // Only the host computes digests, and `check` keeps them out of where this is asked.
        Encoding::Raw | Encoding::Sha1Hex | Encoding::Sha256Hex => plain.into(),
    }
}

fn leaves_of(key: &str, encoding: Encoding) -> Leaves {
    match encoding {
        Encoding::Form => secret(key).form(),
        Encoding::Percent => secret(key).percent(),
        Encoding::Json => secret(key).json(),
        Encoding::Base64 => secret(key).base64(),
        Encoding::Base64Url => secret(key).base64_url(),
        Encoding::Hex => secret(key).hex(),
        Encoding::Raw | Encoding::Sha1Hex | Encoding::Sha256Hex => secret(key).into(),
    }
}

fn leaf_of(key: &str, encoding: Encoding) -> Value {
    match encoding {
        Encoding::Sha1Hex => secret(key).sha1_hex(),
        Encoding::Sha256Hex => secret(key).sha256_hex(),
        other => leaves_of(key, other).into(),
    }
}

fn as_a_whole(leaves: Leaves, encoding: Encoding) -> Value {
    match encoding {
        Encoding::Form => leaves.form(),
        Encoding::Percent => leaves.percent(),
        Encoding::Json => leaves.json(),
        Encoding::Base64 => leaves.base64(),
        Encoding::Base64Url => leaves.base64_url(),
        Encoding::Hex => leaves.hex(),
        Encoding::Sha1Hex => leaves.sha1_hex(),
        Encoding::Sha256Hex => leaves.sha256_hex(),
        Encoding::Raw => leaves.into(),
    }
}

/// Every value of a request with its place in it, for those who look at what it uses.
pub fn values<'t>(fields: &RequestFields<'t>) -> Vec<(&'t crate::place::At<String>, Place)> {
    let mut values = Vec::from([(fields.url, Place::Url)]);
    values.extend(fields.query.iter().map(|(_, value)| (value, Place::Query)));
    values.extend(fields.headers.iter().map(|(_, value)| (value, Place::Verbatim)));
    if let Some(form) = fields.form {
        values.extend(form.value.iter().map(|(_, value)| (value, Place::Form)));
    }
    values.extend(fields.body.map(|body| (body, Place::Verbatim)));
    if let Some(node) = fields.json {
        strings(&node.value, &mut values);
    }
    values
}

fn strings<'t>(node: &'t Node, found: &mut Vec<(&'t crate::place::At<String>, Place)>) {
    match node {
        Node::Text(value) => found.push((value, Place::Json)),
        Node::List(nodes) => nodes.iter().for_each(|node| strings(node, found)),
        Node::Table(entries) => entries.iter().for_each(|(_, node)| strings(node, found)),
        Node::Integer(_) | Node::Float(_) | Node::Boolean(_) => {}
    }
}

/// Where a source looks, for words.
pub fn place_of(source: &Source) -> String {
    match source {
        Source::Json(pointer) => pointer.value.clone(),
        Source::Header(name) => format!("header {}", name.value),
    }
}
