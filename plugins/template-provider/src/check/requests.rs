//! What is wrong with a request: where it goes, what it carries, and how that is written.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Check, encoding_name, names};
use crate::notation::{Leaf, Piece, Placeholder, placeholders};
use crate::place::{At, Span};
use crate::request::{Place, values};
use crate::template::{Kind, RequestFields, Source, Verb};
use crate::url;

/// What Keywheel sets by itself.
const KEYWHEELS: [&str; 12] = [
    "host",
    "cookie",
    "content-length",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// The contract's.
const REDIRECTS: u8 = 5;

impl<'t> Check<'t> {
    pub(super) fn request(&mut self, fields: &RequestFields<'t>, of: &str) {
        let before = self.faults.len();
        for (value, place) in values(fields) {
            let pieces = self.pieces(value);
            for one in placeholders(&pieces) {
                self.known(one, &value.span);
            }
            match place {
                Place::Url => self.url(pieces, value),
                place => self.encodings(&pieces, place, &value.span),
            }
            if place == Place::Verbatim && fields.body.is_none_or(|body| body.span != value.span) {
                self.header_value(value);
            }
        }
        self.headers(fields);
        let bodies: Vec<&Span> = [
            fields.json.map(|json| &json.span),
            fields.form.map(|form| &form.span),
            fields.body.map(|body| &body.span),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let [_, second, ..] = bodies.as_slice() {
            self.fault(second, "a second body; hint: keep one of `json`, `form` and `body`");
        }
        if let ([body, ..], Verb::Get | Verb::Head) = (bodies.as_slice(), fields.method) {
            self.fault(
                body,
                format!(
                    "a {} request has no body; hint: method = \"POST\", or `query`",
                    fields.method.as_str()
                ),
            );
        }
        if let Some(redirects) = fields.redirects.filter(|redirects| redirects.value > REDIRECTS) {
            self.fault(
                &redirects.span,
                format!("{} redirects; at most {REDIRECTS} are followed", redirects.value),
            );
        }
        let has_cookie = self.template.keys.iter().any(|(_, key)| key.cookie.is_some());
        if fields.cookies && !has_cookie {
            self.fault(&fields.url.span, format!("`cookies = true` in {of}, and no key is a cookie; hint: cookie = {{ name = \"…\", domain = \"…\" }} on the key that is"));
        } else if self.faults.len() == before && self.carries_nothing(fields) {
            self.fault(
                &fields.url.span,
                format!(
                    "the request of {of} carries no key, so it would say the same of any credential; hint: put one of {} into a header, \
                     such as authorization = \"Bearer {{…}}\", or cookies = true",
                    names(&self.template.keys)
                ),
            );
        }
    }

    fn url(&mut self, pieces: Vec<Piece<'t>>, value: &'t At<String>) {
        if pieces.is_empty() {
            if value.is_empty() {
                self.fault(&value.span, "the URL is empty");
            }
            return;
        }
        if value.contains(char::is_whitespace) {
            self.fault(&value.span, "a space in the URL; hint: write `%20`, or use `query`");
        }
        for one in placeholders(&pieces) {
            if let Some(setting) = self.template.settings.get(one.name)
                && !setting.required
                && setting.default.is_none()
            {
                self.fault(
                    &value.span,
                    format!(
                        "the URL needs `{}`, which may be empty; hint: required = true, or a default",
                        one.name
                    ),
                );
            }
        }
        let past_host =
            pieces.iter().position(|piece| matches!(piece, Piece::Leaf(Leaf::Text(_)))).unwrap_or(0);
        self.encodings(&pieces[past_host..], Place::Url, &value.span);
        // A name that isn't known was told above, and its kind would be a guess.
        let known = |one: &Placeholder<'_>| {
            self.template.settings.get(one.name).is_some() || self.template.keys.get(one.name).is_some()
        };
        if placeholders(&pieces).all(known)
            && let Err(why) = url::read(pieces, &self.template.settings)
        {
            self.fault(&value.span, why);
        }
    }

    /// Whether what is encoded can stand where it goes.
    fn encodings(&mut self, pieces: &[Piece<'t>], place: Place, span: &Span) {
        let what = match place {
            Place::Verbatim => return,
            Place::Url => "a URL",
            Place::Query => "a query parameter",
            Place::Form => "a form field",
            Place::Json => "a JSON string",
        };
        for piece in pieces {
            match piece {
                Piece::Leaf(Leaf::Text(_)) => {}
                Piece::Leaf(Leaf::Placeholder(one)) => {
                    let Some(encoding) = one.encoding.filter(|encoding| !place.takes(*encoding)) else {
                        continue;
                    };
                    let name = encoding_name(encoding);
                    if matches!(name, "raw" | "form" | "percent" | "json") {
                        self.fault(
                            span,
                            format!(
                                "`{{{}|{name}}}`: {what} is encoded anyway; hint: write `{{{}}}`",
                                one.name, one.name
                            ),
                        );
                    }
                }
                Piece::Group(leaves, encoding) => {
                    let name = encoding_name(*encoding);
                    let is_url = |one: &Leaf<'_>| matches!(one, Leaf::Placeholder(one) if self.template.settings.get(one.name).is_some_and(|setting| setting.kind == Kind::Url));
                    if !place.takes(*encoding)
                        || name == "raw"
                        || (place == Place::Url && leaves.iter().any(is_url))
                    {
                        self.fault(span, format!("what is encoded as `{name}` can't stand in {what}, which would encode it again; hint: `base64-url` and `hex` can"));
                    }
                }
            }
        }
    }

    fn headers(&mut self, fields: &RequestFields<'t>) {
        for (index, (name, _)) in fields.headers.iter().enumerate() {
            self.header_name(name);
            let lower = name.to_ascii_lowercase();
            if KEYWHEELS.contains(&lower.as_str()) {
                let instead = match lower.as_str() {
                    "cookie" => "; hint: cookies = true, and a key with `cookie`",
                    _ => "",
                };
                self.fault(&name.span, format!("the header `{}` is Keywheel's to set{instead}", name.value));
            }
            if fields.headers[..index].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                self.fault(&name.span, format!("the header `{}` is given twice", name.value));
            }
        }
    }

    pub(super) fn header_name(&mut self, name: &At<String>) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(allowed) {
            self.fault(&name.span, "this is no name of a header; hint: letters, digits and `-`");
        }
    }

    fn header_value(&mut self, value: &'t At<String>) {
        if value.bytes().any(|byte| !(byte == b'\t' || (b' '..=b'~').contains(&byte))) {
            self.fault(&value.span, "a header is one line of visible ASCII; hint: encode what isn't");
        }
    }

    pub(super) fn source(&mut self, source: &Source, has_body: bool) {
        match source {
            Source::Json(pointer) => self.pointer(pointer, has_body),
            Source::Header(name) => self.answered_header(name),
        }
    }

    pub(super) fn answered_header(&mut self, name: &At<String>) {
        self.header_name(name);
        if name.eq_ignore_ascii_case("set-cookie") {
            self.fault(
                &name.span,
                "Keywheel takes `Set-Cookie` out of every answer; hint: a key with `cookie` captures it",
            );
        }
    }

    pub(super) fn pointer(&mut self, pointer: &At<String>, has_body: bool) {
        if !pointer.starts_with('/') {
            let guess: String = pointer.replace('.', "/");
            let hint = match pointer.is_empty() {
                true => "write the way to the value, such as \"/data/id\"".into(),
                false => format!("write \"/{}\"", guess.trim_start_matches(['$', '/'])),
            };
            self.fault(&pointer.span, format!("a JSON pointer begins with `/`; hint: {hint}"));
        } else if pointer.split('~').skip(1).any(|after| !after.starts_with(['0', '1'])) {
            self.fault(&pointer.span, "a `~` in a JSON pointer is written `~0`, and a `/` in a name `~1`");
        }
        if !has_body {
            self.fault(&pointer.span, "the answer to a HEAD request has no body; hint: method = \"GET\"");
        }
    }
}
