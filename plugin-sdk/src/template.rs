//! Templates: what a request says, with secrets by reference. Nothing here ever holds a secret;
//! the host puts the bytes in. One level of computing over secrets is all the contract has, and
//! the three types make a second level a compile error.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Add;

use crate::bindings::keywheel::provider::types;
use crate::encode;

pub use types::Encoding;

/// One piece: plain text or a secret by name. Made by [`text`] and [`secret`].
#[derive(Debug, Clone)]
pub struct Leaf(types::Leaf);

/// Pieces in a row, which the host can encode or hash as a whole.
#[derive(Debug, Clone)]
pub struct Leaves(Vec<types::Leaf>);

/// What goes into a URL, a header or a body.
#[derive(Debug, Clone, Default)]
pub struct Template(Vec<types::Part>);

/// What may stand in a header, a URL or a body: text, secrets, sums of them, encoded or not.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't stand in a request",
    label = "not a template",
    note = "a template is a string, text(…), secret(\"key\"), bearer(\"key\"), basic(…), or a sum of them with `+`",
    note = "for a number: text(number.to_string())"
)]
pub trait IntoTemplate {
    fn into_template(self) -> Template;
}

/// What can be one value of a form, of JSON or of a query, or be encoded and hashed: text,
/// secrets and sums of them. A sum that was encoded as a whole is one no more: the contract has
/// one level.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be one value of a form, of JSON or of a query",
    label = "not made of pieces",
    note = "a value is a string, text(…), secret(\"key\"), or a sum of those with `+`",
    note = "for a number: text(number.to_string())",
    note = "what was encoded or hashed as a whole (a `Template`) can't be encoded again: put it into a header, or write the body with text(…) around it"
)]
pub trait IntoLeaves {
    fn into_leaves(self) -> Leaves;
}

macro_rules! into {
    ($($kind:ty),* => $made:ident by $trait:ident::$function:ident) => {$(
        impl $trait for $kind {
            fn $function(self) -> $made {
                self.into()
            }
        }
    )*};
}

into! { &str, &String, String, Leaf, Leaves, Template => Template by IntoTemplate::into_template }
into! { &str, &String, String, Leaf, Leaves => Leaves by IntoLeaves::into_leaves }

/// Plain text, known to the plugin.
pub fn text(text: impl Into<String>) -> Leaf {
    Leaf(types::Leaf::Text(text.into()))
}

/// The value of a key of this credential, put in by the host.
pub fn secret(key: impl Into<String>) -> Leaf {
    Leaf(types::Leaf::Secret(types::SecretRef { key: key.into(), encoding: Encoding::Raw }))
}

/// `Bearer <key>`, for the `Authorization` header (RFC 6750).
pub fn bearer(key: impl Into<String>) -> Template {
    (text("Bearer ") + secret(key)).into()
}

/// `Basic <base64 of user:password>`, for the `Authorization` header (RFC 7617).
///
/// ```
/// use keywheel_sdk::prelude::*;
/// let header = basic(text("robot"), secret("api_key"));
/// assert_eq!(header.to_string(), "Basic {robot:{api_key}|base64}");
/// ```
///
/// OAuth 2.0 wants both form-encoded first: `basic(text(id).form(), secret("key").form())`.
pub fn basic(user: impl IntoLeaves, password: impl IntoLeaves) -> Template {
    text("Basic ") + (user.into_leaves() + text(":") + password.into_leaves()).base64()
}

/// A form body; names and values are form-encoded, secrets by the host.
///
/// ```
/// use keywheel_sdk::prelude::*;
/// let body = form([("grant_type", text("a b")), ("refresh_token", secret("refresh_token"))]);
/// assert_eq!(body.to_string(), "grant_type=a+b&refresh_token={refresh_token|form}");
/// ```
pub fn form<'a, V: IntoLeaves>(fields: impl IntoIterator<Item = (&'a str, V)>) -> Template {
    let mut body = Template::default();
    for (index, (name, value)) in fields.into_iter().enumerate() {
        let separator = if index == 0 { "" } else { "&" };
        body = body
            + text([separator, &encode::form(name), "="].concat())
            + value.into_leaves().within(Encoding::Form);
    }
    body
}

/// A JSON object of strings; secrets are escaped by the host. For anything deeper, write the
/// JSON as text around `secret("key").json()`.
///
/// ```
/// use keywheel_sdk::prelude::*;
/// let body = json_object([("user", text("a\"b")), ("token", secret("token"))]);
/// assert_eq!(body.to_string(), r#"{"user":"a\"b","token":"{token|json}"}"#);
/// ```
pub fn json_object<'a, V: IntoLeaves>(fields: impl IntoIterator<Item = (&'a str, V)>) -> Template {
    let mut body = Template::from("{");
    for (index, (name, value)) in fields.into_iter().enumerate() {
        let separator = if index == 0 { "\"" } else { ",\"" };
        body = body
            + text([separator, &encode::json(name), "\":\""].concat())
            + value.into_leaves().within(Encoding::Json)
            + text("\"");
    }
    body + text("}")
}

impl Leaf {
    pub fn form(self) -> Leaves {
        self.encoded(Encoding::Form, encode::form)
    }

    pub fn percent(self) -> Leaves {
        self.encoded(Encoding::Percent, encode::percent)
    }

    /// The inside of a JSON string, without the quotes.
    pub fn json(self) -> Leaves {
        self.encoded(Encoding::Json, encode::json)
    }

    pub fn base64(self) -> Leaves {
        self.encoded(Encoding::Base64, encode::base64)
    }

    pub fn base64_url(self) -> Leaves {
        self.encoded(Encoding::Base64Url, encode::base64_url)
    }

    pub fn hex(self) -> Leaves {
        self.encoded(Encoding::Hex, encode::hex)
    }

    pub fn sha1_hex(self) -> Template {
        Leaves::from(self).sha1_hex()
    }

    pub fn sha256_hex(self) -> Template {
        Leaves::from(self).sha256_hex()
    }

    fn encoded(self, encoding: Encoding, by_hand: fn(&str) -> String) -> Leaves {
        Leaves(vec![match self.0 {
            types::Leaf::Text(text) => types::Leaf::Text(by_hand(&text)),
            types::Leaf::Secret(secret) => types::Leaf::Secret(types::SecretRef { encoding, ..secret }),
        }])
    }
}

impl Leaves {
    pub fn form(self) -> Template {
        self.encoded(Encoding::Form)
    }

    pub fn percent(self) -> Template {
        self.encoded(Encoding::Percent)
    }

    /// The inside of a JSON string, without the quotes.
    pub fn json(self) -> Template {
        self.encoded(Encoding::Json)
    }

    pub fn base64(self) -> Template {
        self.encoded(Encoding::Base64)
    }

    pub fn base64_url(self) -> Template {
        self.encoded(Encoding::Base64Url)
    }

    pub fn hex(self) -> Template {
        self.encoded(Encoding::Hex)
    }

    pub fn sha1_hex(self) -> Template {
        self.encoded(Encoding::Sha1Hex)
    }

    pub fn sha256_hex(self) -> Template {
        self.encoded(Encoding::Sha256Hex)
    }

    fn encoded(self, encoding: Encoding) -> Template {
        Template(vec![types::Part::Encoded(types::Encoded { leaves: self.0, encoding })])
    }

    /// Encoded as one value of a body or query; a lone piece needs no second level.
    pub(crate) fn within(mut self, encoding: Encoding) -> Template {
        let lone = match self.0.as_slice() {
            [types::Leaf::Text(_)] => true,
            [types::Leaf::Secret(secret)] => secret.encoding == Encoding::Raw,
            _ => false,
        };
        let by_hand = match encoding {
            Encoding::Form => encode::form,
            Encoding::Json => encode::json,
            Encoding::Percent => encode::percent,
            _ => return self.encoded(encoding),
        };
        match self.0.pop() {
            Some(leaf) if lone => Leaf(leaf).encoded(encoding, by_hand).into(),
            Some(leaf) => {
                self.0.push(leaf);
                self.encoded(encoding)
            }
            None => Template::default(),
        }
    }
}

impl Template {
    pub(crate) fn into_parts(self) -> Vec<types::Part> {
        self.0
    }

    /// Whether the plain text in it has `character`.
    pub(crate) fn has_text(&self, character: char) -> bool {
        self.0.iter().any(|part| matches!(part, types::Part::Text(text) if text.contains(character)))
    }
}

/// Secrets as `{key}`, encodings as `{key|form}`, computed parts as `{user:{key}|base64}`: what
/// tests compare with.
impl core::fmt::Display for Template {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        render(&self.0, f)
    }
}

pub(crate) fn render(parts: &[types::Part], out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    for part in parts {
        match part {
            types::Part::Text(text) => out.write_str(text)?,
            types::Part::Secret(secret) => render_secret(secret, out)?,
            types::Part::Encoded(encoded) => {
                out.write_str("{")?;
                for leaf in &encoded.leaves {
                    match leaf {
                        types::Leaf::Text(text) => out.write_str(text)?,
                        types::Leaf::Secret(secret) => render_secret(secret, out)?,
                    }
                }
                write!(out, "|{}}}", encoding_name(encoded.encoding))?;
            }
        }
    }
    Ok(())
}

fn render_secret(secret: &types::SecretRef, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    match secret.encoding {
        Encoding::Raw => write!(out, "{{{}}}", secret.key),
        encoding => write!(out, "{{{}|{}}}", secret.key, encoding_name(encoding)),
    }
}

fn encoding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Form => "form",
        Encoding::Percent => "percent",
        Encoding::Json => "json",
        Encoding::Base64 => "base64",
        Encoding::Base64Url => "base64-url",
        Encoding::Hex => "hex",
        Encoding::Sha1Hex => "sha1-hex",
        Encoding::Sha256Hex => "sha256-hex",
    }
}

impl From<Leaf> for Leaves {
    fn from(leaf: Leaf) -> Self {
        Self(vec![leaf.0])
    }
}

impl From<Leaf> for Template {
    fn from(leaf: Leaf) -> Self {
        Leaves::from(leaf).into()
    }
}

impl From<Leaves> for Template {
    fn from(leaves: Leaves) -> Self {
        Self(leaves.0.into_iter().map(part).collect())
    }
}

impl From<&str> for Leaves {
    fn from(plain: &str) -> Self {
        text(plain).into()
    }
}

impl From<&String> for Leaves {
    fn from(plain: &String) -> Self {
        text(plain).into()
    }
}

impl From<String> for Leaves {
    fn from(plain: String) -> Self {
        text(plain).into()
    }
}

impl From<&String> for Template {
    fn from(plain: &String) -> Self {
        text(plain).into()
    }
}

impl From<&str> for Template {
    fn from(plain: &str) -> Self {
        text(plain).into()
    }
}

impl From<String> for Template {
    fn from(plain: String) -> Self {
        text(plain).into()
    }
}

fn part(leaf: types::Leaf) -> types::Part {
    match leaf {
        types::Leaf::Text(text) => types::Part::Text(text),
        types::Leaf::Secret(secret) => types::Part::Secret(secret),
    }
}

/// Leaves stay leaves when added, so that the sum can still be encoded as a whole.
macro_rules! adds {
    ($($left:ty, $right:ty => $sum:ty;)*) => {$(
        impl Add<$right> for $left {
            type Output = $sum;
            fn add(self, right: $right) -> $sum {
                let mut sum = <$sum>::from(self);
                sum.0.extend(<$sum>::from(right).0);
                sum
            }
        }
    )*};
}

adds! {
    Leaf, Leaf => Leaves;
    Leaf, Leaves => Leaves;
    Leaves, Leaf => Leaves;
    Leaves, Leaves => Leaves;
    Leaf, Template => Template;
    Leaves, Template => Template;
    Template, Leaf => Template;
    Template, Leaves => Template;
    Template, Template => Template;
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_template_renders_where_each_secret_goes_and_how() {
        let cases: [(Template, &str); 8] = [
            (bearer("access_token"), "Bearer {access_token}"),
            (secret("a").form().into(), "{a|form}"),
            (text("a b").form().into(), "a+b"),
            ((text("id") + text(":") + secret("key").form()).base64(), "{id:{key|form}|base64}"),
            (text("1 ") + secret("sid").sha1_hex(), "1 {{sid}|sha1-hex}"),
            (form([("both", text("a") + secret("b"))]), "both={a{b}|form}"),
            (form([("twice", secret("b").base64())]), "twice={{b|base64}|form}"),
            (json_object::<Leaf>([]), "{}"),
        ];
        for (template, expected) in cases {
            assert_eq!(template.to_string(), expected);
        }
    }
}
