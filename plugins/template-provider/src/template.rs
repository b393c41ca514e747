//! What a template may say: the types that the TOML is read into, and that the schema for editors
//! is derived from. Owns the shape alone; what the shape can't say is `check`'s, and what it means
//! is `run`'s.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

#[cfg(not(target_family = "wasm"))]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::place::{At, Entries};

/// A provider for one service, said in TOML.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[cfg_attr(not(target_family = "wasm"), schemars(title = "Keywheel template provider"))]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The service: a-z, 0-9 and `-`. The file is named after it, `<service>.toml`.
    pub service: At<String>,
    /// One line for people.
    pub title: At<String>,
    /// The template's own version, such as `1.0.0`.
    pub version: At<String>,
    /// Where the service documents what this template relies on.
    pub source: At<String>,
    /// How old a secret may get before it is rotated, such as `30d`. Without it: only before it expires.
    pub max_age: Option<At<Duration>>,
    /// How long a session may go unused before the service ends it; it is used before.
    pub idle_limit: Option<At<Duration>>,
    /// Values that the operator chooses for each credential, by name.
    #[serde(default)]
    pub settings: Entries<SettingTable>,
    /// The secrets of a credential, by name.
    pub keys: Entries<KeyTable>,
    /// How to see whether a credential lives.
    pub validate: ValidateTable,
    /// Ways to get fresh secrets, by name; the first is preferred. Without any the template only validates.
    #[serde(default)]
    pub rotate: Entries<MethodTable>,
    /// When to come back after an answer that puts off.
    pub retry: Option<RetryTable>,
}

/// A value that the operator chooses for each credential.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SettingTable {
    /// What the value is. A url also gives `{name.host}` and `{name.origin}`.
    #[serde(default)]
    pub kind: Kind,
    /// The value where the operator gives none.
    pub default: Option<At<Scalar>>,
    /// Without it a credential can't be added.
    #[serde(default)]
    pub required: bool,
    /// The allowed values where the kind is `choice`.
    pub choices: Option<At<Vec<String>>>,
    /// One sentence for the person who adds a credential.
    #[serde(default)]
    pub help: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Text,
    /// An absolute http or https URL without user, query or fragment.
    Url,
    Integer,
    Boolean,
    /// Whole seconds, or a number with the unit s, m, h or d.
    Duration,
    /// One of `choices`.
    Choice,
}

/// One secret of a credential.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct KeyTable {
    /// The secret is this cookie: Keywheel attaches and captures it. Without it the secret is a token.
    pub cookie: Option<CookieTable>,
    /// A credential may lack it.
    #[serde(default)]
    pub optional: bool,
    /// One sentence for the person who adds a credential: where to get it.
    #[serde(default)]
    pub help: String,
}

/// A cookie as the service sets it. Each part may use settings.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CookieTable {
    pub name: At<String>,
    /// The host the cookie belongs to, such as `example.com` or `{base_url.host}`.
    pub domain: At<String>,
    /// `/` unless said otherwise.
    pub path: Option<At<String>>,
}

/// A table with the fields of one request, and its own before them.
macro_rules! request_table {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// `GET` unless said otherwise.
            #[serde(default)]
            pub method: Verb,
            /// Where the request goes. May use settings, and keys after the host; both are percent-encoded there, but for a url setting.
            pub url: At<String>,
            /// Added to the URL, each value percent-encoded.
            #[serde(default)]
            pub query: Entries<At<String>>,
            /// Headers of the request, such as `authorization = "Bearer {token}"`.
            #[serde(default)]
            pub headers: Entries<At<String>>,
            /// A JSON body; keys and settings in its strings are escaped.
            pub json: Option<At<Node>>,
            /// A form body; every value is encoded.
            pub form: Option<At<Entries<At<String>>>>,
            /// Any other body.
            pub body: Option<At<String>>,
            /// Attach the credential's cookies.
            #[serde(default)]
            pub cookies: bool,
            /// How many redirects to follow, at most 5. Without it a redirect is the answer.
            pub redirects: Option<At<u8>>,
            /// For the whole exchange, such as `10s`.
            pub timeout: Option<At<Duration>>,
        }

        impl $name {
            pub fn request(&self) -> RequestFields<'_> {
                RequestFields {
                    method: self.method,
                    url: &self.url,
                    query: &self.query,
                    headers: &self.headers,
                    json: self.json.as_ref(),
                    form: self.form.as_ref(),
                    body: self.body.as_ref(),
                    cookies: self.cookies,
                    redirects: self.redirects.as_ref(),
                    timeout: self.timeout.as_ref(),
                }
            }
        }
    };
}

/// The request of `validate` or of a rotation method.
#[derive(Debug, Clone, Copy)]
pub struct RequestFields<'a> {
    pub method: Verb,
    pub url: &'a At<String>,
    pub query: &'a Entries<At<String>>,
    pub headers: &'a Entries<At<String>>,
    pub json: Option<&'a At<Node>>,
    pub form: Option<&'a At<Entries<At<String>>>>,
    pub body: Option<&'a At<String>>,
    pub cookies: bool,
    pub redirects: Option<&'a At<u8>>,
    pub timeout: Option<&'a At<Duration>>,
}

request_table! {
    /// How to see whether a credential lives. What no rule speaks of is `unknown`.
    pub struct ValidateTable {
        /// How often, unless the operator says otherwise; `15m` without it.
        pub every: Option<At<Duration>>,
        /// The account behind the credential, which a valid answer must name: a JSON pointer, or `{ header = "…" }`. The first one seen is pinned.
        pub identity: Option<Source>,
        /// When the credential ends, where the answer says so.
        pub expires: Option<ExpiresTable>,
        /// The service accepted the credential. All conditions of a rule must hold; one rule is enough.
        pub valid: Vec<At<Rule>>,
        /// The service said plainly that the credential is dead.
        #[serde(default)]
        pub invalid: Vec<At<Refusal>>,
        /// Only a person can go on.
        #[serde(default)]
        pub needs_human: Vec<At<Refusal>>,
    }
}

request_table! {
    /// A way to get fresh secrets.
    pub struct MethodTable {
        /// What it does to the old secret.
        pub class: At<Class>,
        /// Where the service documents that.
        pub class_source: At<String>,
        /// A choice setting by which the operator says what the service at hand does.
        pub class_setting: Option<At<String>>,
        /// One sentence for the operator.
        #[serde(default)]
        pub help: String,
        /// Where a successful answer holds the new value of a key. A cookie needs no entry.
        #[serde(default)]
        pub capture: Entries<CaptureTable>,
        /// What else must hold besides a new secret for the rotation to count. Without any: a status from 200 to 299.
        #[serde(default)]
        pub rotated: Vec<At<Rule>>,
        /// The service was asked and kept the secret.
        #[serde(default)]
        pub unchanged: Vec<At<Rule>>,
        /// The service said plainly that the credential is dead.
        #[serde(default)]
        pub invalid: Vec<At<Refusal>>,
        /// Only a person can go on.
        #[serde(default)]
        pub needs_human: Vec<At<Refusal>>,
    }
}

/// A table with conditions on an answer, and its own fields after them.
macro_rules! rule_table {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* } $(not = $not:ident)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// A number, a list of them, or a range such as `"200-299"`. 429 and 5xx count only where a single number names them.
            pub status: Option<At<Statuses>>,
            /// By JSON pointer: a value, or tests such as `{ present = true }`.
            #[serde(default)]
            pub json: Entries<At<Test>>,
            /// By the name of a response header.
            #[serde(default)]
            pub header: Entries<At<Test>>,
            /// The body as text. The one condition that may hold for a web page.
            pub text: Option<At<TextTest>>,
            $($own)*
        }

        impl $name {
            pub fn conditions(&self) -> ConditionFields<'_> {
                ConditionFields {
                    status: self.status.as_ref(),
                    json: &self.json,
                    header: &self.header,
                    text: self.text.as_ref(),
                    not: None $(.or(self.$not.as_ref()))?,
                }
            }
        }
    };
}

/// The conditions of a rule.
#[derive(Debug, Clone, Copy)]
pub struct ConditionFields<'a> {
    pub status: Option<&'a At<Statuses>>,
    pub json: &'a Entries<At<Test>>,
    pub header: &'a Entries<At<Test>>,
    pub text: Option<&'a At<TextTest>>,
    pub not: Option<&'a At<Exception>>,
}

rule_table! {
    /// Conditions that must all hold.
    pub struct Rule {
        /// Conditions that must not all hold.
        pub not: Option<At<Exception>>,
    }
    not = not
}

rule_table! {
    /// Conditions that must all hold, and what to tell the operator.
    pub struct Refusal {
        /// Conditions that must not all hold.
        pub not: Option<At<Exception>>,
        /// What happened and what to do, for the operator.
        pub message: At<String>,
        /// Where the answer says more, added to the message: a JSON pointer, or `{ header = "…" }`.
        pub detail: Option<Source>,
    }
    not = not
}

rule_table! {
    /// Conditions that must not all hold.
    pub struct Exception {}
}

/// Tests of one value. All that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TestTable {
    /// It is exactly this: `1` is not `"1"`.
    pub is: Option<Scalar>,
    /// It is there and something else.
    pub is_not: Option<Scalar>,
    /// It is one of these.
    #[serde(rename = "in")]
    pub one_of: Option<Vec<Scalar>>,
    /// It is there, and not null; or with `false`: it isn't there, or null.
    pub present: Option<bool>,
    /// A text with this in it, or a list with this text as an entry.
    pub contains: Option<String>,
    /// A text that begins with this.
    pub starts_with: Option<String>,
    /// A number below this.
    pub less: Option<Number>,
    /// A number above this.
    pub greater: Option<Number>,
}

/// Tests of one value, or the value itself: `true` is `{ is = true }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Test(pub TestTable);

/// Tests of the whole body.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TextTest {
    /// It is this, white space around it aside.
    pub is: Option<String>,
    pub contains: Option<String>,
    /// It begins with this, white space before it aside.
    pub starts_with: Option<String>,
}

/// Where an answer holds something: a JSON pointer, or `{ json = "…" }`, or `{ header = "…" }`.
#[derive(Debug, Clone)]
pub enum Source {
    Json(At<String>),
    Header(At<String>),
}

/// Where a new value of a key is.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CaptureTable {
    /// A JSON pointer.
    pub json: Option<At<String>>,
    /// The name of a response header.
    pub header: Option<At<String>>,
    /// Where the answer says how many seconds the value lives: a JSON pointer, or `{ header = "…" }`.
    pub expires_in: Option<Source>,
}

/// Where an answer says when the credential ends: as a date, or as a number with `unit` and `from`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExpiresTable {
    /// A JSON pointer.
    pub json: Option<At<String>>,
    /// The name of a response header.
    pub header: Option<At<String>>,
    /// The value is a number of these; without it the value is a date.
    pub unit: Option<At<Unit>>,
    /// Since when the number counts: since now, or since 1970.
    pub from: Option<At<From>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
pub enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// From now on.
    Now,
    /// From 1970-01-01T00:00:00Z on.
    Epoch,
}

/// When to come back after an answer that puts off. `Retry-After` is understood without it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RetryTable {
    /// The answers that put off; 429 and 503 without it.
    pub status: Option<At<Statuses>>,
    /// The header that says when to come back, where there is no `Retry-After`.
    pub header: Option<At<String>>,
    /// What the header counts; `s` without it.
    pub unit: Option<At<Unit>>,
    /// Since when it counts; `now` without it.
    pub from: Option<At<From>>,
    /// Never come back sooner than after this.
    pub at_least: Option<At<Duration>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What a rotation does to the old secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Old and new are the same session.
    Sliding,
    /// The old one stays valid until it is deleted.
    Additive,
    /// The old one stays valid until the new one is used.
    CommitOnUse,
    /// The old one stays valid for a while.
    Grace,
    /// The old one died when the service answered. If you aren't sure, this one.
    BurnOnIssue,
}

/// Whole seconds, written as a number with s, m, h or d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duration(pub u32);

/// One value of TOML.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

/// A number, whole or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f64);

/// The set of statuses a condition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(pub Vec<RangeInclusive<u16>>);

/// A piece of a JSON body.
#[derive(Debug, Clone)]
pub enum Node {
    Text(At<String>),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Entries<Node>),
}

// ---------------------------------------------------------------------------------------------
// What may be written in more than one way is read by hand: an untagged enum of serde forgets
// places and unknown fields.

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration(&text).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "`{text}` is no duration; hint: write a whole number above 0 with s, m, h or d, such as \"90s\", \
                 \"15m\", \"12h\" or \"30d\""
            ))
        })
    }
}

/// Seconds; None for what is none, or too long, or no time at all.
pub fn duration(text: &str) -> Option<u32> {
    let (at, unit) = text.char_indices().last()?;
    let unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let digits = &text[..at];
    let number: u32 = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    number.checked_mul(unit).filter(|&seconds| seconds > 0)
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true or false")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.into()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
        finite(number).map(Scalar::Float)
    }

    fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<Scalar, E> {
        Ok(Scalar::Boolean(boolean))
    }
}

fn finite<E: de::Error>(number: f64) -> Result<f64, E> {
    match number.is_finite() {
        true => Ok(number),
        false => Err(E::custom("`inf` and `nan` are no numbers of JSON; hint: write a number")),
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Integer(number) => Ok(Self(number as f64)),
            Scalar::Float(number) => Ok(Self(number)),
            Scalar::Text(_) | Scalar::Boolean(_) => {
                Err(de::Error::custom("only a number is less or greater; hint: write one without quotes"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StatusesVisitor)
    }
}

struct StatusesVisitor;

impl<'de> Visitor<'de> for StatusesVisitor {
    type Value = Statuses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status such as 200, a list such as [401, 403], or a range such as \"200-299\"")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Statuses, E> {
        let status = u16::try_from(number).ok().filter(|status| (100..600).contains(status));
        let status = status.ok_or_else(|| {
            E::custom(format!("no answer has the status {number}; hint: statuses go from 100 to 599"))
        })?;
        Ok(Statuses([status..=status].into()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Statuses, E> {
        let ends = text
            .split_once('-')
            .and_then(|(from, to)| Some((from.trim().parse::<u16>().ok()?, to.trim().parse::<u16>().ok()?)));
        match ends {
            Some((from, to)) if from >= 100 && to < 600 && from <= to => Ok(Statuses([from..=to].into())),
            Some((from, to)) if from > to => Err(E::custom(format!(
                "the range `{text}` is empty; hint: write the lower status first, \"{to}-{from}\""
            ))),
            Some(_) => Err(E::custom(format!("the range `{text}` leaves 100 to 599, and no answer does"))),
            None => Err(E::custom(format!(
                "`{text}` is no status; hint: write a number such as 200, or a range such as \"200-299\""
            ))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Statuses, A::Error> {
        let mut all = Vec::new();
        while let Some(Statuses(some)) = list.next_element()? {
            all.extend(some);
        }
        match all.is_empty() {
            true => Err(de::Error::custom("no status is in an empty list; hint: leave `status` out")),
            false => Ok(Statuses(all)),
        }
    }
}

impl<'de> Deserialize<'de> for Test {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TestVisitor)
    }
}

struct TestVisitor;

impl TestVisitor {
    fn is<E>(value: Result<Scalar, E>) -> Result<Test, E> {
        value.map(|value| Test(TestTable { is: Some(value), ..TestTable::default() }))
    }
}

impl<'de> Visitor<'de> for TestVisitor {
    type Value = Test;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, or tests such as { present = true }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Test, E> {
        Self::is(ScalarVisitor.visit_str(text))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Test, E> {
        Self::is(ScalarVisitor.visit_i64(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Test, E> {
        Self::is(ScalarVisitor.visit_f64(number))
    }

    fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<Test, E> {
        Self::is(ScalarVisitor.visit_bool(boolean))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Test, A::Error> {
        TestTable::deserialize(MapAccessDeserializer::new(map)).map(Test)
    }
}

#[derive(Deserialize)]
#[cfg_attr(not(target_family = "wasm"), derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceTable {
    /// A JSON pointer.
    json: Option<At<String>>,
    /// The name of a response header.
    header: Option<At<String>>,
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The place is the text's own where it is one, and the field's inside a table.
        let written = At::<SourceWritten>::deserialize(deserializer)?;
        Ok(match written.value {
            SourceWritten::Pointer(pointer) => Self::Json(At { value: pointer, span: written.span }),
            SourceWritten::Table(source) => source,
        })
    }
}

enum SourceWritten {
    Pointer(String),
    Table(Source),
}

impl<'de> Deserialize<'de> for SourceWritten {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SourceVisitor)
    }
}

struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = SourceWritten;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON pointer such as \"/data/id\", or { header = \"…\" }")
    }

    fn visit_str<E: de::Error>(self, pointer: &str) -> Result<SourceWritten, E> {
        Ok(SourceWritten::Pointer(pointer.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SourceWritten, A::Error> {
        let table = SourceTable::deserialize(MapAccessDeserializer::new(map))?;
        Source::of(table.json, table.header).map(SourceWritten::Table).map_err(de::Error::custom)
    }
}

impl Source {
    /// # Errors
    /// Where it is none of the two places, or both.
    pub fn of(json: Option<At<String>>, header: Option<At<String>>) -> Result<Self, &'static str> {
        match (json, header) {
            (Some(pointer), None) => Ok(Self::Json(pointer)),
            (None, Some(name)) => Ok(Self::Header(name)),
            (None, None) => Err("neither `json` nor `header` says where to look; hint: give one of them"),
            (Some(_), Some(_)) => Err("both `json` and `header` say where to look; hint: keep one of them"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = At::<Written>::deserialize(deserializer)?;
        Ok(match written.value {
            Written::Text(text) => Self::Text(At { value: text, span: written.span }),
            Written::Other(node) => node,
        })
    }
}

enum Written {
    Text(String),
    Other(Node),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true, false, a list or a table")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
        Ok(Written::Text(text.into()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Written, E> {
        Ok(Written::Other(Node::Integer(number)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Written, E> {
        finite(number).map(|number| Written::Other(Node::Float(number)))
    }

    fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<Written, E> {
        Ok(Written::Other(Node::Boolean(boolean)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Written::Other(Node::List(nodes)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
        Entries::<Node>::deserialize(MapAccessDeserializer::new(map))
            .map(|table| Written::Other(Node::Table(table)))
    }
}
