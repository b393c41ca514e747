//! Owns the judgement of a manifest: whether what an untrusted `describe` answered makes sense
//! (`check`), and what it comes to with one credential's settings (`resolve`). Pure: it does no
//! I/O, trusts no text of a plugin, and never lets a plugin name for itself what only the
//! operator may name: plain http and private addresses.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;
use url::{Host, Url};

use crate::provider::{
    AllowedOrigin, CommitClass, CookieLocation, KeySpec, Location, Manifest, Resolved, ResolvedMethod,
    SettingKind, SettingSpec,
};

/// A name of a service, key, setting or method; the contract says so.
const NAME: usize = 64;
/// One line of a table on an 80-column terminal.
const TITLE: usize = 80;
/// The longest version seen in the wild, with a commit's digest as build part, is under 64.
const VERSION: usize = 64;
/// Any other text. It is shown to people, and a help of more than a paragraph isn't read.
const TEXT: usize = 1 << 10;
/// Keys, settings, choices of one setting, extras: far above any real service, low enough that
/// a manifest stays something an operator can read before approving it.
const ENTRIES: usize = 64;
/// Each is a host the operator has to judge.
const ORIGINS: usize = 32;
const METHODS: usize = 16;
/// A value the operator types. URLs longer than this are refused by common servers.
const SETTING_VALUE: usize = 4 << 10;
/// How much of a wrong value an error shows.
const SHOWN: usize = 80;

/// Why a manifest is refused. For the author of the plugin, so each says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("{what} {} is not allowed; allowed: 1 to 64 of {allowed}", shown(.found))]
    Name { what: &'static str, found: String, allowed: &'static str },

    #[error("{field} has {found} bytes; allowed: at most {allowed}")]
    TooLong { field: String, found: usize, allowed: usize },

    #[error("{field} is empty; allowed: one line of text")]
    Empty { field: String },

    #[error(
        "{field} holds the character U+{:04X} at byte {at}; allowed: text of one line without control or direction characters",
        u32::from(*.found)
    )]
    Character { field: String, found: char, at: usize },

    #[error("{found} {what}; allowed: at most {allowed}")]
    TooMany { what: String, found: usize, allowed: usize },

    #[error("version {} is not a semantic version; allowed: for example `1.2.0` or `1.2.0-beta.1`", shown(.found))]
    Version { found: String },

    #[error("the key mapping is empty; hint: name at least one key, the secret that is kept alive")]
    NoKeys,

    #[error("{what} {} appears twice; hint: each needs a name of its own", shown(.name))]
    Duplicate { what: &'static str, name: String },

    #[error("{field} {}: {problem}", shown(.found))]
    Placeholder { field: String, found: String, problem: PlaceholderProblem },

    #[error("origin {}: {problem}", shown(.found))]
    Origin { found: String, problem: OriginProblem },

    #[error(
        "origin {} with its default {} filled in: {problem}; hint: leave the default out, and the operator names the host",
        shown(.found), shown(.filled)
    )]
    DefaultOrigin { found: String, filled: String, problem: OriginProblem },

    #[error("no origins, yet validate url {}; hint: list its origin, for nothing else may be reached", shown(.validate_url))]
    NoOrigins { validate_url: String },

    #[error("validate url {}: {problem}", shown(.found))]
    ValidateUrl { found: String, problem: String },

    #[error("validate url {} is not on an allowed origin; allowed: {}; hint: add its origin to `origins`", shown(.found), listed(.origins))]
    ValidateOutside { found: String, origins: Vec<String> },

    #[error("setting {} is a choice without choices; hint: list the values in `choices`", shown(.setting))]
    NoChoices { setting: String },

    #[error("setting {} has choices but is of kind {}; hint: make it a choice or leave them out", shown(.setting), kind_name(*.kind))]
    StrayChoices { setting: String, kind: SettingKind },

    #[error("default of setting {}: {problem}", shown(.setting))]
    Default { setting: String, problem: ValueProblem },

    #[error("method {} takes its commit class from setting {}, which {problem}; allowed: a choice among {}", shown(.method), shown(.setting), commit_classes())]
    CommitClassSetting { method: String, setting: String, problem: String },

    #[error("{field} is 0 seconds; allowed: 1 or more")]
    Zero { field: &'static str },

    #[error("cookie {field} {} of key {}: {problem}", shown(.found), shown(.key))]
    Cookie { key: String, field: &'static str, found: String, problem: CookieProblem },

    #[error("keys {} and {} are the same cookie; hint: a cookie belongs to one key", shown(.first), shown(.second))]
    SameCookie { first: String, second: String },
}

/// Why the operator's settings don't fit a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    #[error("what the database has for settings can't be read: {0}")]
    Unreadable(String),

    #[error("unknown setting {}; known: {}{}", shown(.name), listed(.known), did_you_mean(.nearest))]
    Unknown { name: String, known: Vec<String>, nearest: Option<String> },

    #[error("setting {} is given twice; hint: keep one", shown(.name))]
    Twice { name: String },

    #[error("required but not given: {}; hint: {help}", listed(.names))]
    Missing { names: Vec<String>, help: String },

    #[error("setting {}: {problem}", shown(.setting))]
    Value { setting: String, problem: ValueProblem },

    #[error("origin {} with the settings filled in: {problem}", shown(.template))]
    Origin { template: String, problem: OriginProblem },

    #[error("validate url {} with the settings filled in: {problem}", shown(.template))]
    ValidateUrl { template: String, problem: String },

    #[error(
        "validate url {} with the settings filled in is on {found}, where the plugin may not go; allowed: {}; hint: check the settings that name hosts",
        shown(.template), listed(.allowed)
    )]
    ValidateOutside { template: String, found: String, allowed: Vec<String> },

    #[error("key {} needs setting {} for its cookie; hint: give it a value", shown(.key), shown(.setting))]
    NeededByKey { key: String, setting: String },

    #[error("cookie {field} of key {} is {} with the settings filled in: {problem}", shown(.key), shown(.found))]
    Cookie { key: String, field: &'static str, found: String, problem: CookieProblem },

    #[error("private host {} is not a host; allowed: a name or an address, without scheme, port or path", shown(.found))]
    PrivateHost { found: String },

    /// Only for a manifest that `check` never saw.
    #[error("the manifest is not usable")]
    Manifest(#[source] ManifestError),
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlaceholderProblem {
    #[error("unbalanced braces; allowed: `{{setting}}`, `{{setting.host}}`, `{{setting.origin}}`")]
    Unbalanced,
    #[error("no setting is called {}; known: {}{}", shown(.name), listed(.known), did_you_mean(.nearest))]
    UnknownSetting { name: String, known: Vec<String>, nearest: Option<String> },
    #[error("a setting has no part {}; allowed: `host` and `origin`, of a setting of kind url", shown(.part))]
    UnknownPart { part: String },
    #[error("setting {} is of kind {} and has no part `{part}`; hint: make it a setting of kind url", shown(.name), kind_name(*.kind))]
    NotUrl { name: String, part: &'static str, kind: SettingKind },
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OriginProblem {
    #[error("no scheme https; allowed: `https://host[:port]` or a setting of kind url")]
    Scheme,
    #[error(
        "plain http; allowed: https; hint: only the operator may name a plain http origin, by a setting of kind url that is the whole origin, `{{base_url}}`"
    )]
    PlainHttp,
    #[error(
        "a wildcard; allowed: whole host names; hint: list each host, or let the operator name it by a setting"
    )]
    Wildcard,
    #[error("a path; allowed: `https://host[:port]` and nothing after it")]
    Path,
    #[error("a query or fragment; allowed: `https://host[:port]` and nothing after it")]
    Query,
    #[error("a user name; allowed: `https://host[:port]`; hint: secrets travel as keys")]
    User,
    #[error("not a host and port ({0}); allowed: `https://host[:port]`")]
    Malformed(String),
    #[error("a host that ends in a dot; hint: leave the dot out")]
    TrailingDot,
    #[error(
        "the private or special address {host}; allowed: public hosts; hint: only the operator may name a private one, by a setting of kind url that is the whole origin, or as a private host"
    )]
    Private { host: String },
    #[error("a setting of kind {} as the whole origin; allowed: a setting of kind url", kind_name(*.kind))]
    KindOfWhole { kind: SettingKind },
    #[error(
        "a url setting inside an origin; allowed: `{{setting}}` as the whole origin, or `https://{{setting.host}}`"
    )]
    UrlInside,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CookieProblem {
    #[error("not a cookie name; allowed: visible ASCII without `=`, `;` and `,`")]
    Name,
    #[error("not a host; allowed: a host name such as `example.com` or `{{base_url.host}}`")]
    Domain,
    #[error("not a cookie path; allowed: a path that begins with `/`, without `;`")]
    Path,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueProblem {
    #[error("{} is not an absolute url; allowed: `http://` or `https://` with a host", shown(.found))]
    Url { found: String },
    #[error(
        "a url with a user name or password; allowed: none; hint: secrets are keys, add them with `credential add`"
    )]
    UrlUser,
    #[error("a url with a query or fragment on {}; allowed: scheme, host, port and path", shown(.before))]
    UrlQuery { before: String },
    #[error("a url with the path {}; allowed: scheme, host and port; hint: the provider adds the paths itself, leave it out", shown(.path))]
    UrlPath { path: String },
    #[error("{} is not an integer; allowed: decimal digits, from {} to {}", shown(.found), i64::MIN, i64::MAX)]
    Integer { found: String },
    #[error("{} is not a boolean; allowed: `true` or `false`", shown(.found))]
    Boolean { found: String },
    #[error("{} is not a duration; allowed: whole seconds or a number with s, m, h or d, up to {} seconds, for example `90`, `15m`, `12h`, `7d`", shown(.found), u32::MAX)]
    Duration { found: String },
    #[error("{} is not among the choices; allowed: {}{}", shown(.found), listed(.choices), did_you_mean(.nearest))]
    Choice { found: String, choices: Vec<String>, nearest: Option<String> },
    #[error("{found} bytes; allowed: at most {allowed}")]
    TooLong { found: usize, allowed: usize },
    #[error("holds the control character U+{:04X}; allowed: text of one line", u32::from(*.found))]
    Character { found: char },
}

// ---------------------------------------------------------------------------------------------
// Words for errors

/// A text of unknown origin, quoted, escaped and cut: safe for a terminal and a log.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

/// Names in a row, escaped; the first twenty of them.
pub(crate) fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    if names.is_empty() {
        return String::from("none");
    }
    let mut text = names.iter().take(MOST).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        let _ = write!(text, " and {} more", names.len() - MOST);
    }
    text
}

pub(crate) fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; hint: did you mean {}?", shown(name)))
}

/// The candidate that was probably meant: at most a third of its letters differ.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(left: &str, right: &str) -> usize {
    // A name has at most 64 characters; what is longer is no typing error, and the product of
    // two long texts would be slow.
    const LONGEST: usize = 2 * NAME;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

const fn kind_name(kind: SettingKind) -> &'static str {
    match kind {
        SettingKind::Text => "text",
        SettingKind::Url => "url",
        SettingKind::Integer => "integer",
        SettingKind::Boolean => "boolean",
        SettingKind::Duration => "duration",
        SettingKind::Choice => "choice",
    }
}

fn commit_classes() -> String {
    CommitClass::ALL.map(CommitClass::as_str).join(", ")
}

// ---------------------------------------------------------------------------------------------
// Placeholders

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Host,
    Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Setting { name: &'a str, part: Part },
}

/// Cuts a template at its placeholders. No setting needs to exist for it.
fn pieces(template: &str) -> Result<Vec<Piece<'_>>, PlaceholderProblem> {
    let mut found = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, tail) = rest.split_at(at);
        if !text.is_empty() {
            found.push(Piece::Text(text));
        }
        let inside = tail.strip_prefix('{').ok_or(PlaceholderProblem::Unbalanced)?;
        let (inside, after) = inside.split_once('}').ok_or(PlaceholderProblem::Unbalanced)?;
        if inside.contains('{') {
            return Err(PlaceholderProblem::Unbalanced);
        }
        let (name, part) = match inside.split_once('.') {
            None => (inside, Part::Whole),
            Some((name, "host")) => (name, Part::Host),
            Some((name, "origin")) => (name, Part::Origin),
            Some((_, part)) => {
                return Err(PlaceholderProblem::UnknownPart { part: part.to_owned() });
            }
        };
        found.push(Piece::Setting { name, part });
        rest = after;
    }
    if !rest.is_empty() {
        found.push(Piece::Text(rest));
    }
    Ok(found)
}

/// One setting with its value in normal form. An empty text means it has none.
#[derive(Debug, Clone)]
struct Value<'a> {
    spec: &'a SettingSpec,
    text: String,
    /// The parsed text where the kind is `url` and there is one.
    url: Option<Url>,
    /// The operator typed it. A default is the plugin's word and names nothing for the operator.
    given: bool,
}

impl<'a> Value<'a> {
    fn new(spec: &'a SettingSpec, text: &str, given: bool) -> Result<Self, ValueProblem> {
        let text = if text.is_empty() { String::new() } else { normalise(spec, text)? };
        let url = match spec.kind {
            SettingKind::Url => Url::parse(&text).ok(),
            _ => None,
        };
        Ok(Self { spec, text, url, given })
    }

    /// Empty where the setting has no value.
    fn part(&self, part: Part) -> Result<String, PlaceholderProblem> {
        let (name, kind) = (self.spec.name.clone(), self.spec.kind);
        match (part, kind) {
            (Part::Whole, _) => Ok(self.text.clone()),
            (Part::Host, SettingKind::Url) => {
                Ok(self.url.as_ref().and_then(Url::host_str).unwrap_or_default().to_owned())
            }
            (Part::Origin, SettingKind::Url) => {
                Ok(self.url.as_ref().map_or_else(String::new, |url| url.origin().ascii_serialization()))
            }
            (Part::Host, _) => Err(PlaceholderProblem::NotUrl { name, part: "host", kind }),
            (Part::Origin, _) => Err(PlaceholderProblem::NotUrl { name, part: "origin", kind }),
        }
    }
}

fn value_of<'v, 'a>(values: &'v [Value<'a>], name: &str) -> Result<&'v Value<'a>, PlaceholderProblem> {
    values.iter().find(|value| value.spec.name == name).ok_or_else(|| {
        let known: Vec<String> = values.iter().map(|value| value.spec.name.clone()).collect();
        PlaceholderProblem::UnknownSetting {
            name: name.to_owned(),
            nearest: nearest(name, known.iter().map(String::as_str)),
            known,
        }
    })
}

/// What a template comes to.
#[derive(Debug, PartialEq, Eq)]
enum Expanded {
    Text(String),
    /// This setting has no value, so neither has the template.
    Without(String),
}

/// Fills a template in. What follows a URL is joined to it as a path: one slash between them,
/// whatever the operator typed, so that `{base_url}{path}` can't become another host.
fn expand(template: &str, values: &[Value<'_>]) -> Result<Expanded, PlaceholderProblem> {
    let mut out = String::new();
    let mut after_url = false;
    let mut without = None;
    for piece in pieces(template)? {
        let (text, is_url) = match piece {
            Piece::Text(text) => (text.to_owned(), false),
            Piece::Setting { name, part } => {
                let value = value_of(values, name)?;
                let text = value.part(part)?;
                if text.is_empty() {
                    without.get_or_insert_with(|| name.to_owned());
                }
                (text, value.spec.kind == SettingKind::Url && part != Part::Host)
            }
        };
        if after_url && !text.is_empty() && !text.starts_with(['?', '#']) {
            out.truncate(out.trim_end_matches('/').len());
            if !text.starts_with('/') {
                out.push('/');
            }
        }
        out.push_str(&text);
        after_url = is_url;
    }
    Ok(without.map_or(Expanded::Text(out), Expanded::Without))
}

/// A template with the defaults of its settings filled in and the other placeholders left.
fn with_defaults(template: &str, values: &[Value<'_>]) -> Result<String, PlaceholderProblem> {
    let mut out = String::new();
    for piece in pieces(template)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Setting { name, part } => {
                let text = value_of(values, name)?.part(part)?;
                out.push_str(&match (text.is_empty(), part) {
                    (false, _) => text,
                    (true, Part::Whole) => format!("{{{name}}}"),
                    (true, Part::Host) => format!("{{{name}.host}}"),
                    (true, Part::Origin) => format!("{{{name}.origin}}"),
                });
            }
        }
    }
    Ok(out)
}

// ---------------------------------------------------------------------------------------------
// Values of settings

/// The normal form of a value, or what is wrong with it.
fn normalise(spec: &SettingSpec, text: &str) -> Result<String, ValueProblem> {
    if text.len() > SETTING_VALUE {
        return Err(ValueProblem::TooLong { found: text.len(), allowed: SETTING_VALUE });
    }
    if let Some(found) = text.chars().find(|c| c.is_control()) {
        return Err(ValueProblem::Character { found });
    }
    let found = || text.to_owned();
    match spec.kind {
        SettingKind::Text => Ok(text.to_owned()),
        SettingKind::Url => normalise_url(text),
        SettingKind::Integer => {
            // `parse` would take a plus sign, which no plugin expects to read.
            let number = text.parse::<i64>().ok().filter(|_| !text.starts_with('+'));
            number.map(|n| n.to_string()).ok_or_else(|| ValueProblem::Integer { found: found() })
        }
        SettingKind::Boolean => match text {
            "true" | "false" => Ok(text.to_owned()),
            _ => Err(ValueProblem::Boolean { found: found() }),
        },
        SettingKind::Duration => seconds(text)
            .map(|seconds| seconds.to_string())
            .ok_or_else(|| ValueProblem::Duration { found: found() }),
        SettingKind::Choice => {
            if spec.choices.iter().any(|choice| choice == text) {
                Ok(text.to_owned())
            } else {
                Err(ValueProblem::Choice {
                    found: found(),
                    nearest: nearest(text, spec.choices.iter().map(String::as_str)),
                    choices: spec.choices.clone(),
                })
            }
        }
    }
}

/// The URL as the `url` crate writes it, but a lone root slash is left out: `https://a.example`
/// and `https://a.example/` are one value, while `…/token/` and `…/token` stay two.
fn normalise_url(text: &str) -> Result<String, ValueProblem> {
    // A value with an `@` may hold a password and one with a query a token: neither is echoed.
    let before = text.split(['?', '#']).next().unwrap_or_default();
    let quotable = || {
        if before.contains('@') { String::from("…@…") } else { before.to_owned() }
    };
    let url = Url::parse(text).map_err(|_| ValueProblem::Url { found: quotable() })?;
    let written_in_full =
        text.split_once("://").is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with(['/', '\\']));
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !written_in_full {
        return Err(ValueProblem::Url { found: quotable() });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ValueProblem::UrlUser);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(ValueProblem::UrlQuery { before: quotable() });
    }
    if !url.host_str().is_some_and(is_plain_host) {
        return Err(ValueProblem::Url { found: quotable() });
    }
    let mut text = String::from(url);
    if text.matches('/').count() == 3 && text.ends_with('/') {
        text.pop();
    }
    Ok(text)
}

/// `90`, `90s`, `15m`, `12h`, `7d`; what the contract's `seconds` can hold.
fn seconds(text: &str) -> Option<u32> {
    let (digits, unit) = match text.as_bytes().last()? {
        b's' => (&text[..text.len() - 1], 1),
        b'm' => (&text[..text.len() - 1], 60),
        b'h' => (&text[..text.len() - 1], 60 * 60),
        b'd' => (&text[..text.len() - 1], 24 * 60 * 60),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u32>().ok()?.checked_mul(unit)
}

// ---------------------------------------------------------------------------------------------
// Origins

/// Reads a literal origin by the rules for what a plugin may name itself. `private_hosts` are
/// those the operator allowed.
fn literal_origin(text: &str, private_hosts: &[String]) -> Result<AllowedOrigin, OriginProblem> {
    let lower = text.to_ascii_lowercase();
    if lower.contains('*') {
        return Err(OriginProblem::Wildcard);
    }
    if lower.starts_with("http://") {
        return Err(OriginProblem::PlainHttp);
    }
    let rest = lower.strip_prefix("https://").ok_or(OriginProblem::Scheme)?;
    if let Some(found) = rest.chars().find(|c| matches!(c, '@' | '/' | '\\' | '?' | '#')) {
        return Err(match found {
            '@' => OriginProblem::User,
            '/' | '\\' => OriginProblem::Path,
            _ => OriginProblem::Query,
        });
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(OriginProblem::Malformed(String::from("white space")));
    }
    let url = Url::parse(&lower).map_err(|error| OriginProblem::Malformed(error.to_string()))?;
    let origin = origin_of(&url, false).ok_or_else(|| OriginProblem::Malformed(String::from("no host")))?;
    if origin.host.ends_with('.') {
        return Err(OriginProblem::TrailingDot);
    }
    if !is_plain_host(&origin.host) {
        return Err(OriginProblem::Malformed(String::from("odd characters in the host")));
    }
    let allowed = private_hosts.contains(&origin.host);
    if is_private(&url) && !allowed {
        return Err(OriginProblem::Private { host: origin.host });
    }
    Ok(origin)
}

/// The `url` crate lets quotes, braces and more stand in a host; no real one has them.
fn is_plain_host(host: &str) -> bool {
    !host.ends_with('.') && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b))
}

fn origin_of(url: &Url, operator_named: bool) -> Option<AllowedOrigin> {
    Some(AllowedOrigin {
        scheme: url.scheme().to_owned(),
        host: url.host_str()?.to_owned(),
        port: url.port_or_known_default()?,
        operator_named,
    })
}

/// The host is `localhost` or an address that isn't a public unicast one. The `url` crate has
/// already turned `0x7f.1` and its like into addresses.
fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => !is_public(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => !is_public(IpAddr::V6(address)),
        None => true,
    }
}

/// By the IANA registries of special-purpose addresses. A first look only: the addresses names
/// resolve to are the egress policy's to judge.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(a == 0
                || a >= 224
                || v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_documentation()
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            let embedded = |high: u16, low: u16| {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                is_public(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            };
            match s {
                // Mapped, NAT64 and 6to4 lead to the IPv4 address inside.
                [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
                [0x2002, high, low, ..] => embedded(high, low),
                [0x2001, second, ..] if second == 0x0db8 || second < 0x0200 => false,
                // Everything outside 2000::/3 is reserved, local or multicast.
                _ => (s[0] & 0xe000) == 0x2000,
            }
        }
    }
}

/// The setting whose URL is the whole of an origin template, if that is what it is.
fn whole_setting<'v, 'a>(
    template: &str,
    values: &'v [Value<'a>],
) -> Result<Option<&'v Value<'a>>, PlaceholderProblem> {
    match pieces(template)?.as_slice() {
        [Piece::Setting { name, part: Part::Whole | Part::Origin }] => value_of(values, name).map(Some),
        _ => Ok(None),
    }
}

#[derive(Debug)]
enum OriginError {
    Placeholder(PlaceholderProblem),
    Origin(OriginProblem),
}

impl From<PlaceholderProblem> for OriginError {
    fn from(problem: PlaceholderProblem) -> Self {
        Self::Placeholder(problem)
    }
}

impl From<OriginProblem> for OriginError {
    fn from(problem: OriginProblem) -> Self {
        Self::Origin(problem)
    }
}

/// What an origin template comes to; None where it uses a setting without a value.
fn expand_origin(
    template: &str,
    values: &[Value<'_>],
    private_hosts: &[String],
) -> Result<Option<AllowedOrigin>, OriginError> {
    if let Some(value) = whole_setting(template, values)? {
        if value.spec.kind != SettingKind::Url {
            return Err(OriginProblem::KindOfWhole { kind: value.spec.kind }.into());
        }
        let Some(url) = &value.url else {
            return Ok(None);
        };
        if value.given {
            return Ok(origin_of(url, true));
        }
        return Ok(Some(literal_origin(&url.origin().ascii_serialization(), private_hosts)?));
    }
    for (index, piece) in pieces(template)?.into_iter().enumerate() {
        match piece {
            // The scheme has to be the manifest's own word.
            Piece::Setting { .. } if index == 0 => return Err(OriginProblem::Scheme.into()),
            Piece::Setting { name, part: Part::Whole | Part::Origin }
                if value_of(values, name)?.spec.kind == SettingKind::Url =>
            {
                return Err(OriginProblem::UrlInside.into());
            }
            _ => {}
        }
    }
    match expand(template, values)? {
        Expanded::Text(text) => Ok(Some(literal_origin(&text, private_hosts)?)),
        Expanded::Without(_) => Ok(None),
    }
}

/// The origins a plugin asks for, in one spelling each, as templates: literals as the `url`
/// crate writes them, and beside a template that a default completes, what it comes to. The
/// last is so that a new version with another default asks for another origin.
pub(super) fn origin_templates(manifest: &Manifest) -> Vec<String> {
    let values = default_values(manifest);
    let mut templates = Vec::new();
    for template in &manifest.origins {
        let canonical = |text: &str| {
            literal_origin(text, &[])
                .map_or_else(|_| text.replace(".origin}", "}"), |origin| origin.to_string())
        };
        let whole = whole_setting(template, &values).ok().flatten();
        templates.push(canonical(template));
        let filled = match whole.and_then(|value| value.url.as_ref()) {
            Some(url) => url.origin().ascii_serialization(),
            None => with_defaults(template, &values).unwrap_or_default(),
        };
        if !filled.is_empty() && filled != *template {
            templates.push(canonical(&filled));
        }
    }
    templates.sort();
    templates.dedup();
    templates
}

/// Every setting with its default; one that fails its kind counts as none.
fn default_values(manifest: &Manifest) -> Vec<Value<'_>> {
    manifest
        .settings
        .iter()
        .map(|spec| {
            let text = spec.default.as_deref().unwrap_or_default();
            Value::new(spec, text, false).unwrap_or(Value {
                spec,
                text: String::new(),
                url: None,
                given: false,
            })
        })
        .collect()
}

// ---------------------------------------------------------------------------------------------
// Cookies

/// Browsers and servers take more than the RFC's token; what they can't take is a separator.
fn is_cookie_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'=' | b';' | b','))
}

/// The host in lower case and without a leading dot.
fn cookie_domain(domain: &str) -> Option<String> {
    let domain = domain.strip_prefix('.').unwrap_or(domain);
    let host = Host::parse(domain).ok()?.to_string();
    is_plain_host(&host).then_some(host)
}

fn is_cookie_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains(|c: char| c == ';' || c.is_control())
}

// ---------------------------------------------------------------------------------------------
// check

/// Says whether a manifest can be used at all. Everything in it is untrusted, and all of it is
/// shown to people later, so lengths and characters are judged first.
pub fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    check_counts(manifest)?;
    check_texts(manifest)?;
    check_names(manifest)?;
    if !is_semver(&manifest.version) {
        return Err(ManifestError::Version { found: manifest.version.clone() });
    }
    if manifest.validate_interval == 0 {
        return Err(ManifestError::Zero { field: "validate interval" });
    }
    if manifest.max_age == Some(0) {
        return Err(ManifestError::Zero { field: "max age" });
    }
    check_settings(manifest)?;
    check_methods(manifest)?;
    let stand_ins = stand_ins(manifest);
    check_keys(manifest, &stand_ins)?;
    check_origins(manifest, &stand_ins)
}

fn check_counts(manifest: &Manifest) -> Result<(), ManifestError> {
    let counts = [
        ("keys", manifest.keys.len(), ENTRIES),
        ("settings", manifest.settings.len(), ENTRIES),
        ("origins", manifest.origins.len(), ORIGINS),
        ("methods", manifest.methods.len(), METHODS),
        ("extras", manifest.extras.len(), ENTRIES),
    ];
    let choices = manifest.settings.iter().map(|s| ("choices", s.choices.len(), ENTRIES));
    match counts.into_iter().chain(choices).find(|(_, found, allowed)| found > allowed) {
        Some((what, found, allowed)) => Err(ManifestError::TooMany { what: what.to_owned(), found, allowed }),
        None if manifest.keys.is_empty() => Err(ManifestError::NoKeys),
        None => Ok(()),
    }
}

fn check_texts(manifest: &Manifest) -> Result<(), ManifestError> {
    if manifest.title.is_empty() {
        return Err(ManifestError::Empty { field: String::from("title") });
    }
    check_text("service name", &manifest.service, TEXT)?;
    check_text("title", &manifest.title, TITLE)?;
    check_text("version", &manifest.version, VERSION)?;
    check_text("validate url", &manifest.validate_url, TEXT)?;
    for origin in &manifest.origins {
        check_text("origin", origin, TEXT)?;
    }
    for (index, key) in manifest.keys.iter().enumerate() {
        let field = |what| format!("{what} of key {}", index + 1);
        check_text(field("name"), &key.name, TEXT)?;
        check_text(field("help"), &key.help, TEXT)?;
        if let Location::Cookie(cookie) = &key.location {
            check_text(field("cookie name"), &cookie.name, TEXT)?;
            check_text(field("cookie domain"), &cookie.domain, TEXT)?;
            check_text(field("cookie path"), &cookie.path, TEXT)?;
        }
    }
    for (index, setting) in manifest.settings.iter().enumerate() {
        let field = |what| format!("{what} of setting {}", index + 1);
        check_text(field("name"), &setting.name, TEXT)?;
        check_text(field("help"), &setting.help, TEXT)?;
        if let Some(default) = &setting.default {
            check_text(field("default"), default, TEXT)?;
        }
        for choice in &setting.choices {
            check_text(field("choice"), choice, TEXT)?;
        }
    }
    for (index, method) in manifest.methods.iter().enumerate() {
        let field = |what| format!("{what} of method {}", index + 1);
        check_text(field("name"), &method.name, TEXT)?;
        check_text(field("help"), &method.help, TEXT)?;
        if let Some(setting) = &method.commit_class_setting {
            check_text(field("commit class setting"), setting, TEXT)?;
        }
    }
    for (name, value) in &manifest.extras {
        check_text("name of an extra", name, TEXT)?;
        check_text("value of an extra", value, TEXT)?;
    }
    Ok(())
}

fn check_text(field: impl Into<String>, text: &str, allowed: usize) -> Result<(), ManifestError> {
    if text.len() > allowed {
        return Err(ManifestError::TooLong { field: field.into(), found: text.len(), allowed });
    }
    match text.char_indices().find(|(_, c)| is_deceptive(*c)) {
        Some((at, found)) => Err(ManifestError::Character { field: field.into(), found, at }),
        None => Ok(()),
    }
}

/// Characters that move a cursor, break a line or turn the reading direction: with them a title
/// could overwrite the question an operator is asked.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A text of unknown origin as it may stand in one line of a terminal: what could act there is
/// escaped, and past so many characters it is cut.
pub fn inert(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars().take(most) {
        if is_deceptive(c) { line.extend(c.escape_unicode()) } else { line.push(c) }
    }
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

const DASHED: &str = "a-z, 0-9 and `-`";

/// # Errors
/// What is allowed, where it isn't.
pub fn check_service_name(service: &str) -> Result<(), ManifestError> {
    check_name("service name", service, DASHED, b"-")
}

fn check_names(manifest: &Manifest) -> Result<(), ManifestError> {
    check_service_name(&manifest.service)?;
    let keys = manifest.keys.iter().map(|key| &key.name);
    check_set("key", "key name", keys, "a-z, 0-9, `_` and `-`", b"_-")?;
    let settings = manifest.settings.iter().map(|setting| &setting.name);
    check_set("setting", "setting name", settings, "a-z, 0-9 and `_`", b"_")?;
    let methods = manifest.methods.iter().map(|method| &method.name);
    check_set("method", "method name", methods, DASHED, b"-")
}

fn check_set<'a>(
    what: &'static str,
    what_name: &'static str,
    names: impl Iterator<Item = &'a String>,
    allowed: &'static str,
    marks: &[u8],
) -> Result<(), ManifestError> {
    let mut seen = HashSet::new();
    for name in names {
        check_name(what_name, name, allowed, marks)?;
        if !seen.insert(name) {
            return Err(ManifestError::Duplicate { what, name: name.clone() });
        }
    }
    Ok(())
}

fn check_name(
    what: &'static str,
    name: &str,
    allowed: &'static str,
    marks: &[u8],
) -> Result<(), ManifestError> {
    let fits = (1..=NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || marks.contains(&b));
    if fits { Ok(()) } else { Err(ManifestError::Name { what, found: name.to_owned(), allowed }) }
}

/// Semantic Versioning 2.0.0, items 2, 9 and 10.
fn is_semver(version: &str) -> bool {
    let digits = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
    let number = |id: &str| digits(id) && (id == "0" || !id.starts_with('0'));
    let label = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = version.split_once('+').map_or((version, None), |(r, b)| (r, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|id| label(id) && (!digits(id) || number(id))))
        && build.is_none_or(|build| build.split('.').all(label))
}

fn check_settings(manifest: &Manifest) -> Result<(), ManifestError> {
    for spec in &manifest.settings {
        let setting = spec.name.clone();
        match (spec.kind, spec.choices.is_empty()) {
            (SettingKind::Choice, true) => return Err(ManifestError::NoChoices { setting }),
            (SettingKind::Choice, false) | (_, true) => {}
            (kind, false) => return Err(ManifestError::StrayChoices { setting, kind }),
        }
        // An empty choice would be the same as no value.
        if spec.choices.iter().any(String::is_empty) {
            return Err(ManifestError::Empty { field: format!("a choice of setting {setting}") });
        }
        if let Some(Err(problem)) = spec.default.as_ref().map(|text| normalise(spec, text)) {
            return Err(ManifestError::Default { setting, problem });
        }
    }
    Ok(())
}

fn check_methods(manifest: &Manifest) -> Result<(), ManifestError> {
    for method in &manifest.methods {
        let Some(name) = &method.commit_class_setting else {
            continue;
        };
        let refuse = |problem: String| {
            let (method, setting) = (method.name.clone(), name.clone());
            Err(ManifestError::CommitClassSetting { method, setting, problem })
        };
        let Some(spec) = manifest.settings.iter().find(|spec| spec.name == *name) else {
            return refuse(String::from("does not exist"));
        };
        if spec.kind != SettingKind::Choice {
            return refuse(format!("is of kind {}", kind_name(spec.kind)));
        }
        if let Some(odd) = spec.choices.iter().find(|c| CommitClass::parse(c).is_none()) {
            return refuse(format!("offers {}", shown(odd)));
        }
    }
    Ok(())
}

/// A different, plausible value for each setting. Two templates that come to the same text with
/// these are the same for every value.
fn stand_ins(manifest: &Manifest) -> Vec<Value<'_>> {
    let stand_in = |(index, spec): (usize, &SettingSpec)| match spec.kind {
        SettingKind::Text => format!("setting-{index}"),
        SettingKind::Url => format!("https://setting-{index}.invalid"),
        // Any of it could be a port.
        SettingKind::Integer => (40_000 + index).to_string(),
        SettingKind::Boolean => String::from("true"),
        SettingKind::Duration => String::from("60"),
        SettingKind::Choice => spec.choices.first().cloned().unwrap_or_default(),
    };
    let texts = manifest.settings.iter().enumerate().map(stand_in);
    manifest
        .settings
        .iter()
        .zip(texts)
        .map(|(spec, text)| Value { spec, url: Url::parse(&text).ok(), text, given: false })
        .collect()
}

fn check_keys(manifest: &Manifest, stand_ins: &[Value<'_>]) -> Result<(), ManifestError> {
    let mut seen: Vec<(&str, CookieLocation)> = Vec::new();
    for key in &manifest.keys {
        let Location::Cookie(cookie) = &key.location else {
            continue;
        };
        let fill = |field: &'static str, template: &String| match expand(template, stand_ins) {
            Ok(Expanded::Text(text) | Expanded::Without(text)) => Ok(text),
            Err(problem) => Err(ManifestError::Placeholder {
                field: format!("cookie {field} of key {}", shown(&key.name)),
                found: template.clone(),
                problem,
            }),
        };
        let refuse = |field: &'static str, found: &String, problem: CookieProblem| {
            let (key, found) = (key.name.clone(), found.clone());
            Err(ManifestError::Cookie { key, field, found, problem })
        };
        let name = fill("name", &cookie.name)?;
        if !is_cookie_name(&name) {
            return refuse("name", &cookie.name, CookieProblem::Name);
        }
        let Some(domain) = cookie_domain(&fill("domain", &cookie.domain)?) else {
            return refuse("domain", &cookie.domain, CookieProblem::Domain);
        };
        let path = fill("path", &cookie.path)?;
        // Where a setting begins the path, the operator's value is judged instead.
        if !cookie.path.starts_with('{') && !is_cookie_path(&path) {
            return refuse("path", &cookie.path, CookieProblem::Path);
        }
        let location = CookieLocation { name, domain, path };
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == location) {
            let (first, second) = ((*first).to_owned(), key.name.clone());
            return Err(ManifestError::SameCookie { first, second });
        }
        seen.push((&key.name, location));
    }
    Ok(())
}

fn check_origins(manifest: &Manifest, stand_ins: &[Value<'_>]) -> Result<(), ManifestError> {
    let defaults = default_values(manifest);
    let mut allowed = Vec::new();
    for template in &manifest.origins {
        let found = template.clone();
        // A wildcard is what authors try first; say so before anything else is wrong with it.
        if template.contains('*') {
            return Err(ManifestError::Origin { found, problem: OriginProblem::Wildcard });
        }
        match expand_origin(template, stand_ins, &[]) {
            Ok(origin) => allowed.extend(origin),
            Err(OriginError::Origin(problem)) => {
                return Err(ManifestError::Origin { found, problem });
            }
            Err(OriginError::Placeholder(problem)) => {
                let field = String::from("origin");
                return Err(ManifestError::Placeholder { field, found, problem });
            }
        }
        if let Err(OriginError::Origin(problem)) = expand_origin(template, &defaults, &[]) {
            let filled = with_defaults(template, &defaults).unwrap_or_default();
            return Err(ManifestError::DefaultOrigin { found, filled, problem });
        }
    }

    let found = manifest.validate_url.clone();
    if found.is_empty() {
        return Ok(());
    }
    if manifest.origins.is_empty() {
        return Err(ManifestError::NoOrigins { validate_url: found });
    }
    let text = match expand(&found, stand_ins) {
        Ok(Expanded::Text(text) | Expanded::Without(text)) => text,
        Err(problem) => {
            let field = String::from("validate url");
            return Err(ManifestError::Placeholder { field, found, problem });
        }
    };
    match absolute_url(&text) {
        Err(problem) => Err(ManifestError::ValidateUrl { found, problem }),
        Ok(url) if is_among(&url, &allowed) => Ok(()),
        Ok(url) if url.scheme() == "http" => {
            Err(ManifestError::ValidateUrl { found, problem: OriginProblem::PlainHttp.to_string() })
        }
        Ok(_) => Err(ManifestError::ValidateOutside { found, origins: manifest.origins.clone() }),
    }
}

fn is_among(url: &Url, origins: &[AllowedOrigin]) -> bool {
    origin_of(url, false).is_some_and(|wanted| {
        origins.iter().any(|origin| {
            (&origin.scheme, &origin.host, origin.port) == (&wanted.scheme, &wanted.host, wanted.port)
        })
    })
}

fn absolute_url(text: &str) -> Result<Url, String> {
    const ALLOWED: &str = "allowed: `https://host/path`, or a setting of kind url and a path";
    let url = Url::parse(text).map_err(|error| format!("{error}; {ALLOWED}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("not http or https; {ALLOWED}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("a user name; {ALLOWED}"));
    }
    if url.fragment().is_some() {
        return Err(format!("a fragment; {ALLOWED}"));
    }
    Ok(url)
}

// ---------------------------------------------------------------------------------------------
// resolve

/// Fills one credential's settings into a manifest that `check` accepted.
///
/// `settings` are the ones the operator gave, and only those: an origin that is wholly a setting
/// counts as named by the operator where its value is here, and as the plugin's own word where
/// it is a default. So store what was given, never what was resolved. An empty value leaves a
/// setting without one, also where there is a default.
///
/// An origin that uses a setting without a value is dropped, and so is an optional key whose
/// cookie does. A validate URL that does becomes the first origin, for reports name the place
/// that was asked; with no origin either it is empty.
pub fn resolve(
    manifest: &Manifest,
    settings: &[(String, String)],
    private_hosts: &[String],
) -> Result<Resolved, SettingsError> {
    let values = values(manifest, settings)?;
    let private_hosts = private_hosts.iter().map(|host| private_host(host)).collect::<Result<Vec<_>, _>>()?;
    let origins = resolve_origins(manifest, &values, &private_hosts)?;
    Ok(Resolved {
        validate_url: resolve_validate_url(manifest, &values, &origins)?,
        keys: resolve_keys(manifest, &values)?,
        origins,
        private_hosts,
        methods: manifest
            .methods
            .iter()
            .map(|method| {
                let chosen = method.commit_class_setting.as_ref().and_then(|name| {
                    let value = values.iter().find(|value| value.spec.name == *name)?;
                    CommitClass::parse(&value.text)
                });
                let commit_class = chosen.unwrap_or(method.commit_class);
                ResolvedMethod { name: method.name.clone(), commit_class }
            })
            .collect(),
        settings: values.into_iter().map(|value| (value.spec.name.clone(), value.text)).collect(),
    })
}

fn values<'a>(
    manifest: &'a Manifest,
    settings: &[(String, String)],
) -> Result<Vec<Value<'a>>, SettingsError> {
    let mut seen = HashSet::new();
    for (name, _) in settings {
        if !manifest.settings.iter().any(|spec| spec.name == *name) {
            let known: Vec<String> = manifest.settings.iter().map(|spec| spec.name.clone()).collect();
            let nearest = nearest(name, known.iter().map(String::as_str));
            return Err(SettingsError::Unknown { name: name.clone(), known, nearest });
        }
        if !seen.insert(name) {
            return Err(SettingsError::Twice { name: name.clone() });
        }
    }
    let mut values = Vec::new();
    let mut missing: Vec<&SettingSpec> = Vec::new();
    for spec in &manifest.settings {
        let given = settings.iter().find(|(name, _)| *name == spec.name);
        let text = given.map(|(_, text)| text.as_str()).or(spec.default.as_deref()).unwrap_or_default();
        if text.is_empty() && spec.required {
            missing.push(spec);
        }
        let value = Value::new(spec, text, given.is_some())
            .and_then(|value| match path_of(&value.text) {
                Some(path) if manifest.is_without_path(&spec.name) => {
                    Err(ValueProblem::UrlPath { path: path.to_owned() })
                }
                _ => Ok(value),
            })
            .map_err(|problem| SettingsError::Value { setting: spec.name.clone(), problem })?;
        values.push(value);
    }
    match missing.first() {
        None => Ok(values),
        Some(first) => Err(SettingsError::Missing {
            help: format!("{} is: {}", first.name, first.help),
            names: missing.iter().map(|spec| spec.name.clone()).collect(),
        }),
    }
}

/// The path of a url as `Value` keeps it, where it has one.
fn path_of(url: &str) -> Option<&str> {
    let (_, after_scheme) = url.split_once("://")?;
    after_scheme.find('/').map(|at| &after_scheme[at..]).filter(|path| *path != "/")
}

fn private_host(text: &str) -> Result<String, SettingsError> {
    let bare_v6 = text.parse::<Ipv6Addr>().ok().map(|address| format!("[{address}]"));
    let host = Host::parse(bare_v6.as_deref().unwrap_or(text)).map(|host| host.to_string());
    host.ok()
        .filter(|host| is_plain_host(host))
        .ok_or_else(|| SettingsError::PrivateHost { found: text.to_owned() })
}

fn unusable(field: &str, found: &str, problem: PlaceholderProblem) -> SettingsError {
    let (field, found) = (field.to_owned(), found.to_owned());
    SettingsError::Manifest(ManifestError::Placeholder { field, found, problem })
}

fn resolve_origins(
    manifest: &Manifest,
    values: &[Value<'_>],
    private_hosts: &[String],
) -> Result<Vec<AllowedOrigin>, SettingsError> {
    let mut origins: Vec<AllowedOrigin> = Vec::new();
    for template in &manifest.origins {
        let origin = match expand_origin(template, values, private_hosts) {
            Ok(Some(origin)) => origin,
            Ok(None) => continue,
            Err(OriginError::Placeholder(problem)) => {
                return Err(unusable("origin", template, problem));
            }
            Err(OriginError::Origin(problem)) => {
                return Err(SettingsError::Origin { template: template.clone(), problem });
            }
        };
        let same = |other: &&mut AllowedOrigin| {
            (&other.scheme, &other.host, other.port) == (&origin.scheme, &origin.host, origin.port)
        };
        match origins.iter_mut().find(same) {
            Some(other) => other.operator_named |= origin.operator_named,
            None => origins.push(origin),
        }
    }
    Ok(origins)
}

fn resolve_validate_url(
    manifest: &Manifest,
    values: &[Value<'_>],
    origins: &[AllowedOrigin],
) -> Result<String, SettingsError> {
    let template = manifest.validate_url.clone();
    let text = match expand(&template, values) {
        Ok(Expanded::Text(text)) if !text.is_empty() => text,
        Ok(_) => {
            return Ok(origins.first().map_or_else(String::new, |origin| format!("{origin}/")));
        }
        Err(problem) => return Err(unusable("validate url", &template, problem)),
    };
    let url = match absolute_url(&text) {
        Ok(url) => url,
        Err(problem) => return Err(SettingsError::ValidateUrl { template, problem }),
    };
    if is_among(&url, origins) {
        return Ok(String::from(url));
    }
    Err(SettingsError::ValidateOutside {
        template,
        found: url.origin().ascii_serialization(),
        allowed: origins.iter().map(AllowedOrigin::to_string).collect(),
    })
}

fn resolve_keys(manifest: &Manifest, values: &[Value<'_>]) -> Result<Vec<KeySpec>, SettingsError> {
    let mut keys = Vec::new();
    for key in &manifest.keys {
        let location = match &key.location {
            Location::Token => Location::Token,
            Location::Cookie(cookie) => match resolve_cookie(key, cookie, values) {
                Ok(cookie) => Location::Cookie(cookie),
                Err(SettingsError::NeededByKey { .. }) if !key.required => continue,
                Err(error) => return Err(error),
            },
        };
        keys.push(KeySpec { location, ..key.clone() });
    }
    Ok(keys)
}

fn resolve_cookie(
    key: &KeySpec,
    cookie: &CookieLocation,
    values: &[Value<'_>],
) -> Result<CookieLocation, SettingsError> {
    let fill = |field: &str, template: &str| match expand(template, values) {
        Ok(Expanded::Text(text)) => Ok(text),
        Ok(Expanded::Without(setting)) => Err(SettingsError::NeededByKey { key: key.name.clone(), setting }),
        Err(problem) => Err(unusable(field, template, problem)),
    };
    let refuse = |field: &'static str, found: String, problem: CookieProblem| {
        Err(SettingsError::Cookie { key: key.name.clone(), field, found, problem })
    };
    let name = fill("cookie name", &cookie.name)?;
    let domain = fill("cookie domain", &cookie.domain)?;
    let path = fill("cookie path", &cookie.path)?;
    if !is_cookie_name(&name) {
        return refuse("name", name, CookieProblem::Name);
    }
    if !is_cookie_path(&path) {
        return refuse("path", path, CookieProblem::Path);
    }
    match cookie_domain(&domain) {
        Some(domain) => Ok(CookieLocation { name, domain, path }),
        None => refuse("domain", domain, CookieProblem::Domain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::MethodSpec;

    fn setting(name: &str, kind: SettingKind) -> SettingSpec {
        SettingSpec {
            name: name.to_owned(),
            kind,
            required: false,
            default: None,
            choices: Vec::new(),
            help: String::from("what it is for"),
        }
    }

    fn cookie(name: &str, domain: &str, path: &str) -> Location {
        Location::Cookie(CookieLocation {
            name: name.to_owned(),
            domain: domain.to_owned(),
            path: path.to_owned(),
        })
    }

    fn key(name: &str, location: Location) -> KeySpec {
        let help = String::from("where it is found");
        KeySpec { name: name.to_owned(), location, required: true, reveal: false, help }
    }

    fn given(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    /// Uses every feature once.
    fn session() -> Manifest {
        let mut base_url = setting("base_url", SettingKind::Url);
        base_url.required = true;
        let mut path = setting("validate_path", SettingKind::Text);
        path.default = Some(String::from("/"));
        let mut cookie_name = setting("cookie_name", SettingKind::Text);
        cookie_name.default = Some(String::from("sessionid"));
        let mut class = setting("class", SettingKind::Choice);
        class.choices = vec![String::from("sliding"), String::from("grace")];
        class.default = Some(String::from("sliding"));
        Manifest {
            service: String::from("http-session"),
            title: String::from("Any cookie session"),
            version: String::from("0.1.0"),
            validate_url: String::from("{base_url}{validate_path}"),
            keys: vec![
                key("session", cookie("{cookie_name}", "{base_url.host}", "/")),
                key("csrf", Location::Token),
            ],
            origins: vec![
                String::from("{base_url}"),
                String::from("{login_url}"),
                String::from("https://static.example.com"),
            ],
            settings: vec![
                base_url,
                path,
                cookie_name,
                class,
                setting("login_url", SettingKind::Url),
                setting("window", SettingKind::Duration),
                setting("retries", SettingKind::Integer),
                setting("strict", SettingKind::Boolean),
            ],
            methods: vec![MethodSpec {
                name: String::from("refresh"),
                commit_class: CommitClass::BurnOnIssue,
                commit_class_setting: Some(String::from("class")),
                help: String::new(),
            }],
            validate_interval: 300,
            max_age: Some(3_600),
            extras: Vec::new(),
        }
    }

    fn refused(change: impl FnOnce(&mut Manifest)) -> ManifestError {
        let mut manifest = session();
        change(&mut manifest);
        check(&manifest).expect_err("this manifest is refused")
    }

    #[test]
    fn a_path_is_refused_where_the_provider_has_its_own() {
        let mut manifest = session();
        let with = |manifest: &Manifest, url: &str| {
            resolve(manifest, &[("base_url".into(), url.into())], &[])
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(with(&manifest, "https://a.example/api/v4"), Ok(()));
        manifest.extras.push(("without-path".into(), "base_url".into()));
        for bare in ["https://a.example", "https://a.example/", "https://a.example:8443"] {
            assert_eq!(with(&manifest, bare), Ok(()), "{bare}");
        }
        let said = with(&manifest, "https://a.example/api/v4").unwrap_err();
        assert!(said.contains(r#"setting "base_url": a url with the path "/api/v4""#), "{said}");
    }

    #[test]
    fn a_full_manifest_is_accepted() {
        assert_eq!(check(&session()), Ok(()));
    }

    #[test]
    fn whatever_describe_gets_wrong_is_refused_with_what_was_found_and_what_is_allowed() {
        type Change = fn(&mut Manifest);
        let table: &[(Change, &str)] = &[
            (
                |m| m.service = "Forge".into(),
                r#"service name "Forge" is not allowed; allowed: 1 to 64 of a-z, 0-9 and `-`"#,
            ),
            (|m| m.service.clear(), r#"service name "" is not allowed"#),
            (|m| m.service = "a".repeat(65), "is not allowed; allowed: 1 to 64"),
            (|m| m.title.clear(), "title is empty"),
            (|m| m.title = "t".repeat(81), "title has 81 bytes; allowed: at most 80"),
            (|m| m.title = "a\u{1b}[2Jb".into(), "title holds the character U+001B at byte 1"),
            (|m| m.title = "a\nb".into(), "U+000A"),
            (|m| m.title = "a\u{202e}b".into(), "U+202E"),
            (|m| m.version = "1.0".into(), r#"version "1.0" is not a semantic version"#),
            (|m| m.version = format!("1.0.0-{}", "x".repeat(64)), "version has 70 bytes"),
            (|m| m.keys.clear(), "the key mapping is empty; hint:"),
            (|m| m.keys[1].name = "session".into(), r#"key "session" appears twice"#),
            (
                |m| m.keys[1].name = "a b".into(),
                r#"key name "a b" is not allowed; allowed: 1 to 64 of a-z, 0-9, `_` and `-`"#,
            ),
            (|m| m.keys[0].help = "h".repeat(1025), "help of key 1 has 1025 bytes; allowed: at most 1024"),
            (
                |m| m.keys = (0..65).map(|n| key(&format!("k{n}"), Location::Token)).collect(),
                "65 keys; allowed: at most 64",
            ),
            (|m| m.origins = vec!["https://a.example".into(); 33], "33 origins; allowed: at most 32"),
            (|m| m.settings = vec![setting("s", SettingKind::Text); 65], "65 settings; allowed: at most 64"),
            (|m| m.methods = vec![m.methods[0].clone(); 17], "17 methods; allowed: at most 16"),
            (|m| m.extras = vec![("a".into(), "b".into()); 65], "65 extras; allowed: at most 64"),
            (
                |m| m.extras = vec![("a".into(), "\u{9b}31m".into())],
                "value of an extra holds the character U+009B",
            ),
            (|m| m.settings[1].name = "base_url".into(), r#"setting "base_url" appears twice"#),
            (|m| m.settings[4].name = "login-url".into(), r#"setting name "login-url" is not allowed"#),
            (|m| m.methods.push(m.methods[0].clone()), r#"method "refresh" appears twice"#),
            (|m| m.methods[0].name = "Refresh".into(), r#"method name "Refresh" is not allowed"#),
            (|m| m.validate_interval = 0, "validate interval is 0 seconds; allowed: 1 or more"),
            (|m| m.max_age = Some(0), "max age is 0 seconds"),
            (|m| m.settings[3].choices.clear(), r#"setting "class" is a choice without choices"#),
            (|m| m.settings[3].choices[0].clear(), "a choice of setting class is empty"),
            (
                |m| m.settings[1].choices.push("x".into()),
                r#"setting "validate_path" has choices but is of kind text"#,
            ),
            (
                |m| m.settings[3].default = Some("slidin".into()),
                r#"default of setting "class": "slidin" is not among the choices; allowed: "sliding", "grace"; hint: did you mean "sliding"?"#,
            ),
            (
                |m| m.settings[5].default = Some("soon".into()),
                r#"default of setting "window": "soon" is not a duration"#,
            ),
            (|m| m.settings[6].default = Some("many".into()), "is not an integer"),
            (|m| m.settings[7].default = Some("yes".into()), "is not a boolean; allowed: `true` or `false`"),
            (|m| m.settings[0].default = Some("gitlab.com".into()), "is not an absolute url"),
            (
                |m| m.methods[0].commit_class_setting = Some("klass".into()),
                r#"method "refresh" takes its commit class from setting "klass", which does not exist; allowed: a choice among sliding,"#,
            ),
            (|m| m.methods[0].commit_class_setting = Some("window".into()), "which is of kind duration"),
            (|m| m.settings[3].choices.push("never".into()), r#"which offers "never""#),
            (
                |m| m.keys[0].location = cookie("a;b", "example.com", "/"),
                r#"cookie name "a;b" of key "session": not a cookie name"#,
            ),
            (
                |m| m.keys[0].location = cookie("a", "{base_url}", "/"),
                r#"cookie domain "{base_url}" of key "session": not a host"#,
            ),
            (|m| m.keys[0].location = cookie("a", "*.example.com", "/"), "not a host"),
            (|m| m.keys[0].location = cookie("a", "example.com", "x"), "not a cookie path"),
            (
                |m| m.keys[0].location = cookie("{cokie_name}", "example.com", "/"),
                r#"no setting is called "cokie_name""#,
            ),
            (
                |m| m.keys[1].location = m.keys[0].location.clone(),
                r#"keys "session" and "csrf" are the same cookie"#,
            ),
        ];
        for (change, wanted) in table {
            let error = refused(change).to_string();
            assert!(error.contains(wanted), "{error}\n  lacks {wanted}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn an_origin_a_plugin_may_not_name_is_refused() {
        let table = [
            ("*", "a wildcard; allowed: whole host names"),
            ("https://*.example.com", "a wildcard"),
            ("https://*", "a wildcard"),
            ("http://example.com", "plain http; allowed: https; hint: only the operator"),
            ("HTTP://example.com", "plain http"),
            ("ftp://example.com", "no scheme https"),
            ("example.com", "no scheme https"),
            ("", "no scheme https"),
            ("https://", "not a host and port"),
            ("https://example.com/", "a path"),
            ("https://example.com/api", "a path"),
            ("https://example.com\\api", "a path"),
            ("https://example.com?x", "a query or fragment"),
            ("https://user@example.com", "a user name"),
            ("https://example.com:99999", "not a host and port"),
            ("https://exam ple.com", "white space"),
            ("https://exam\"ple.com", "odd characters"),
            ("https://example.com.", "ends in a dot"),
            ("https://127.0.0.1", r#"private or special address 127.0.0.1"#),
            ("https://0x7f.1", "address 127.0.0.1"),
            ("https://2130706433", "address 127.0.0.1"),
            ("https://10.1.2.3:8443", "address 10.1.2.3"),
            ("https://100.64.0.1", "address 100.64.0.1"),
            ("https://169.254.169.254", "address 169.254.169.254"),
            ("https://192.168.0.1", "address 192.168.0.1"),
            ("https://0.0.0.0", "address 0.0.0.0"),
            ("https://[::1]", "address [::1]"),
            ("https://[::ffff:10.0.0.1]", "private or special"),
            ("https://[64:ff9b::a00:1]", "private or special"),
            ("https://[fd00::1]", "private or special"),
            ("https://[fe80::1]", "private or special"),
            ("https://localhost", "address localhost"),
            ("https://a.LOCALHOST:8000", "address a.localhost"),
            ("{base_url", "unbalanced braces"),
            ("base_url}", "unbalanced braces"),
            ("{{base_url}}", "unbalanced braces"),
            ("{bas_url}", r#"no setting is called "bas_url"; known: "base_url""#),
            ("{base_url.port}", r#"no part "port"; allowed: `host` and `origin`"#),
            ("https://{cookie_name.host}", "is of kind text and has no part `host`"),
            ("{cookie_name}", "a setting of kind text as the whole origin"),
            ("{base_url.host}", "no scheme https"),
            ("{base_url}:8443", "no scheme https"),
            ("https://{base_url}", "a url setting inside an origin"),
            ("https://{base_url.host}/x", "a path"),
        ];
        for (origin, wanted) in table {
            let error = refused(|m| m.origins.push(origin.to_owned())).to_string();
            assert!(error.contains(wanted), "{origin}: {error}\n  lacks {wanted}");
        }
    }

    #[test]
    fn a_default_names_no_origin_that_the_plugin_could_not_name() {
        for default in ["http://a.example", "https://10.0.0.1", "https://localhost:8000/app"] {
            let error = refused(|m| m.settings[0].default = Some(default.to_owned()));
            assert!(matches!(error, ManifestError::DefaultOrigin { .. }), "{default}: {error}");
        }
    }

    #[test]
    fn origins_a_plugin_may_name_are_accepted() {
        for origin in [
            "https://example.com",
            "https://EXAMPLE.com:443",
            "https://bücher.example",
            "https://1.1.1.1",
            "https://[2606:4700::1111]:8443",
            "https://{base_url.host}",
            "https://{cookie_name}.example.com",
            "https://{base_url.host}:{retries}",
            "{base_url.origin}",
        ] {
            let mut manifest = session();
            manifest.origins.push(origin.to_owned());
            assert_eq!(check(&manifest), Ok(()), "{origin}");
        }
    }

    #[test]
    fn a_validate_url_has_to_be_on_an_origin_of_the_manifest() {
        let table = [
            ("https://static.example.com/me?full={strict}", None),
            ("https://STATIC.example.com:443/me", None),
            ("{base_url}", None),
            ("{base_url.origin}/me", None),
            ("{login_url}", None),
            ("https://{base_url.host}/me", None),
            ("", None),
            ("https://other.example.com/me", Some("is not on an allowed origin; allowed: \"{base_url}\"")),
            ("https://static.example.com:8443/", Some("is not on an allowed origin")),
            ("https://static.example.com{validate_path}", Some("is not on an allowed origin")),
            ("http://static.example.com/me", Some("plain http")),
            ("https://u:p@static.example.com/me", Some("a user name")),
            ("https://static.example.com/me#x", Some("a fragment")),
            ("file:///etc/passwd", Some("not http or https")),
            ("/me", Some("allowed: `https://host/path`")),
            ("{cookie_name}", Some("allowed: `https://host/path`")),
            ("{nope}", Some("no setting is called \"nope\"")),
        ];
        for (url, wanted) in table {
            let mut manifest = session();
            manifest.validate_url = url.to_owned();
            match (check(&manifest), wanted) {
                (Ok(()), None) => {}
                (Err(error), Some(wanted)) if error.to_string().contains(wanted) => {}
                (found, wanted) => panic!("{url}: {found:?}, wanted {wanted:?}"),
            }
        }
        let error = refused(|m| m.origins.clear());
        assert!(error.to_string().starts_with("no origins, yet validate url"), "{error}");
    }

    #[test]
    fn semantic_versions_are_told_from_others() {
        for good in ["0.0.0", "1.2.3", "1.0.0-alpha.1", "1.0.0-0a", "1.0.0+build.01", "1.0.0-x-y+z"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "01.2.3",
            "v1.2.3",
            "1.2.x",
            "1.2.3-",
            "1.2.3-01",
            "1.2.3+",
            "1.2.3-a..b",
            "1.2.3 ",
        ] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn settings_fill_everything_in() {
        let settings = given(&[
            ("base_url", "HTTP://Forge.Internal:8080/app/"),
            ("validate_path", "me?x=1"),
            ("class", "grace"),
            ("window", "15m"),
        ]);
        let private = [String::from("Forge.Internal"), String::from("fd00::1")];
        let resolved = resolve(&session(), &settings, &private).expect("resolves");
        assert_eq!(resolved.validate_url, "http://forge.internal:8080/app/me?x=1");
        assert_eq!(
            resolved.keys[0].location,
            cookie("sessionid", "forge.internal", "/"),
            "the host without its port, in lower case"
        );
        assert_eq!(resolved.private_hosts, ["forge.internal", "[fd00::1]"]);
        let origins: Vec<(String, bool)> =
            resolved.origins.iter().map(|o| (o.to_string(), o.operator_named)).collect();
        assert_eq!(
            origins,
            [
                (String::from("http://forge.internal:8080"), true),
                (String::from("https://static.example.com"), false),
            ],
            "the origin of an optional setting without a value is dropped"
        );
        assert_eq!(resolved.methods[0].commit_class, CommitClass::Grace);
        assert_eq!(
            resolved.settings,
            given(&[
                ("base_url", "http://forge.internal:8080/app/"),
                ("validate_path", "me?x=1"),
                ("cookie_name", "sessionid"),
                ("class", "grace"),
                ("login_url", ""),
                ("window", "900"),
                ("retries", ""),
                ("strict", ""),
            ])
        );
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let table: &[(&[(&str, &str)], &str)] = &[
            (&[("base_ulr", "x")], r#"unknown setting "base_ulr"; known: "base_url", "validate_path""#),
            (&[("base_ulr", "x")], r#"hint: did you mean "base_url"?"#),
            (&[("zzzzzz", "x")], r#""strict""#),
            (
                &[("base_url", "https://a.example"), ("base_url", "https://b.example")],
                r#"setting "base_url" is given twice"#,
            ),
            (&[], r#"required but not given: "base_url"; hint: base_url is: what it is for"#),
            (&[("base_url", "")], "required but not given"),
            (
                &[("base_url", "forge.example")],
                r#"setting "base_url": "forge.example" is not an absolute url; allowed: `http://` or `https://`"#,
            ),
            (&[("base_url", "https:forge.example")], "is not an absolute url"),
            (&[("base_url", "https:///forge.example")], "is not an absolute url"),
            (&[("base_url", "file:///x")], "is not an absolute url"),
            (
                &[("base_url", "https://a.example/?q=1")],
                r#"a url with a query or fragment on "https://a.example/""#,
            ),
            (&[("base_url", "https://a.example/#f")], "a url with a query or fragment"),
            (&[("base_url", "https://a.example/\nx")], "holds the control character U+000A"),
            (&[("base_url", "https://a.example"), ("retries", "+3")], r#""+3" is not an integer"#),
            (&[("base_url", "https://a.example"), ("retries", "9223372036854775808")], "is not an integer"),
            (&[("base_url", "https://a.example"), ("strict", "TRUE")], "is not a boolean"),
            (&[("base_url", "https://a.example"), ("window", "1w")], r#""1w" is not a duration"#),
            (&[("base_url", "https://a.example"), ("window", "99999999d")], "is not a duration"),
            (
                &[("base_url", "https://a.example"), ("class", "gracee")],
                r#"allowed: "sliding", "grace"; hint: did you mean "grace"?"#,
            ),
            (&[("base_url", "https://a.example"), ("class", "")], ""),
            (
                &[("base_url", "https://a.example"), ("cookie_name", "a=b")],
                r#"cookie name of key "session" is "a=b" with the settings filled in"#,
            ),
            (
                &[("base_url", "https://a.example"), ("cookie_name", "")],
                r#"key "session" needs setting "cookie_name" for its cookie"#,
            ),
        ];
        for (settings, wanted) in table {
            match resolve(&session(), &given(settings), &[]) {
                Err(error) => {
                    let text = error.to_string();
                    assert!(!wanted.is_empty() && text.contains(wanted), "{text}\n  lacks {wanted}");
                }
                Ok(_) => assert!(wanted.is_empty(), "{settings:?} was accepted"),
            }
        }
    }

    #[test]
    fn a_password_or_token_in_a_url_setting_is_not_echoed() {
        for url in [
            "https://me:hunter2@a.example",
            "ftp://me:hunter2@a.example",
            "https://me:hunter2@[",
            "https://a.example/?key=hunter2",
            "https://a.example/#hunter2",
        ] {
            let error = resolve(&session(), &given(&[("base_url", url)]), &[]).expect_err(url);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_private_host_is_a_host() {
        let settings = given(&[("base_url", "https://a.example")]);
        for bad in ["https://nas.example", "nas.example:80", "", "a/b", "*.example"] {
            let error = resolve(&session(), &settings, &[bad.to_owned()]).expect_err(bad);
            assert!(matches!(error, SettingsError::PrivateHost { .. }), "{error}");
        }
    }

    #[test]
    fn only_what_the_operator_gave_is_named_by_the_operator() {
        let mut manifest = session();
        manifest.settings[0].default = Some(String::from("https://forge.example"));
        assert_eq!(check(&manifest), Ok(()));
        let named = |settings: &[(&str, &str)]| {
            let resolved = resolve(&manifest, &given(settings), &[]).expect("resolves");
            (resolved.origins[0].to_string(), resolved.origins[0].operator_named)
        };
        assert_eq!(named(&[]), ("https://forge.example".into(), false));
        assert_eq!(named(&[("base_url", "http://10.0.0.5:80")]), ("http://10.0.0.5".into(), true));
    }

    #[test]
    fn a_setting_inside_an_origin_brings_neither_another_host_nor_a_private_one() {
        let mut manifest = session();
        manifest.origins.push(String::from("https://{cookie_name}.example.com"));
        let origins = |tenant: &str, private: &[&str]| {
            let settings = given(&[("base_url", "https://a.example"), ("cookie_name", tenant)]);
            let private: Vec<String> = private.iter().map(|host| (*host).to_owned()).collect();
            resolve(&manifest, &settings, &private)
        };
        let good = origins("acme", &[]).expect("resolves");
        assert!(good.origins.iter().any(|o| o.host == "acme.example.com" && !o.operator_named));
        for tenant in ["evil.example/", "evil.example#", "evil.example?", "u@evil", "a b", "*"] {
            assert!(matches!(origins(tenant, &[]), Err(SettingsError::Origin { .. })), "{tenant}");
        }

        manifest.origins[3] = String::from("https://{base_url.host}:8443");
        let settings = given(&[("base_url", "https://10.0.0.5")]);
        let error = resolve(&manifest, &settings, &[]).expect_err("private");
        assert!(error.to_string().contains("private or special address 10.0.0.5"), "{error}");
        let allowed = resolve(&manifest, &settings, &[String::from("10.0.0.5")]);
        assert!(allowed.is_ok_and(|r| r.origins.iter().any(|o| o.port == 8443)));
    }

    #[test]
    fn the_same_origin_twice_is_one_and_keeps_the_operators_word() {
        let settings = given(&[("base_url", "https://static.example.com/x")]);
        let resolved = resolve(&session(), &settings, &[]).expect("resolves");
        assert_eq!(resolved.origins.len(), 1);
        assert!(resolved.origins[0].operator_named);
    }

    #[test]
    fn a_url_and_a_path_meet_in_one_slash() {
        let table = [
            ("https://a.example", "/me", "https://a.example/me"),
            ("https://a.example/", "/me", "https://a.example/me"),
            ("https://a.example/app", "me", "https://a.example/app/me"),
            ("https://a.example/app/", "/me/", "https://a.example/app/me/"),
            ("https://a.example/app//", "me", "https://a.example/app/me"),
            ("https://a.example/app", "?x=1", "https://a.example/app?x=1"),
            // Neither of these can leave the host the operator named.
            ("https://a.example", ".evil.example/", "https://a.example/.evil.example/"),
            ("https://a.example", "@evil.example/", "https://a.example/@evil.example/"),
            ("https://a.example", "//evil.example/", "https://a.example//evil.example/"),
            ("https://a.example", ":8443/", "https://a.example/:8443/"),
            ("https://a.example/app", "/../me", "https://a.example/me"),
        ];
        for (base, path, wanted) in table {
            let settings = given(&[("base_url", base), ("validate_path", path)]);
            let resolved = resolve(&session(), &settings, &[]).expect(path);
            assert_eq!(resolved.validate_url, wanted, "{base} and {path}");
        }
    }

    #[test]
    fn a_url_setting_that_is_the_whole_validate_url_keeps_its_last_slash() {
        let mut manifest = session();
        manifest.validate_url = String::from("{base_url}");
        let settings = given(&[("base_url", "https://a.example/o/token/")]);
        let resolved = resolve(&manifest, &settings, &[]).expect("resolves");
        assert_eq!(resolved.validate_url, "https://a.example/o/token/");
    }

    #[test]
    fn a_validate_url_without_its_setting_becomes_the_first_origin_or_nothing() {
        let mut manifest = session();
        manifest.validate_url = String::from("{login_url}/me");
        let settings = given(&[("base_url", "https://a.example/app")]);
        let resolved = resolve(&manifest, &settings, &[]).expect("resolves");
        assert_eq!(resolved.validate_url, "https://a.example/");

        manifest.origins = vec![String::from("{login_url}")];
        let resolved = resolve(&manifest, &settings, &[]).expect("resolves");
        assert_eq!((resolved.validate_url.as_str(), resolved.origins.len()), ("", 0));
    }

    #[test]
    fn a_validate_url_that_the_settings_move_off_the_origins_is_refused() {
        let mut manifest = session();
        manifest.validate_url = String::from("https://{base_url.host}/me");
        assert_eq!(check(&manifest), Ok(()));
        let settings = given(&[("base_url", "http://a.example:8080")]);
        let error = resolve(&manifest, &settings, &[]).expect_err("another origin");
        assert!(
            error.to_string().contains(
                "is on https://a.example, where the plugin may not go; allowed: \"http://a.example:8080\""
            ),
            "{error}"
        );
    }

    #[test]
    fn an_optional_key_goes_with_the_setting_its_cookie_needs() {
        let mut manifest = session();
        manifest.keys[0].required = false;
        let settings = given(&[("base_url", "https://a.example"), ("cookie_name", "")]);
        let resolved = resolve(&manifest, &settings, &[]).expect("resolves");
        assert_eq!(resolved.keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["csrf"]);
    }

    #[test]
    fn a_method_without_a_chosen_class_keeps_its_own() {
        let settings = given(&[("base_url", "https://a.example"), ("class", "")]);
        let resolved = resolve(&session(), &settings, &[]).expect("resolves");
        assert_eq!(resolved.methods[0].commit_class, CommitClass::BurnOnIssue);
    }

    #[test]
    fn durations_become_seconds() {
        for (text, wanted) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("12h", Some(43_200)),
            ("7d", Some(604_800)),
            ("49710d", Some(4_294_944_000)),
            ("49711d", None),
            ("m", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5h", None),
            ("1 h", None),
            ("5µ", None),
            ("1H", None),
        ] {
            assert_eq!(seconds(text), wanted, "{text}");
        }
    }

    #[test]
    fn resolving_a_manifest_that_was_never_checked_does_not_panic() {
        let mut manifest = session();
        manifest.validate_url = String::from("{nope}");
        let settings = given(&[("base_url", "https://a.example")]);
        assert!(matches!(resolve(&manifest, &settings, &[]), Err(SettingsError::Manifest(_))));
    }

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        let known = ["session", "refresh_token", "csrf"];
        for (typed, wanted) in [
            ("sesion", Some("session")),
            ("refresh-token", Some("refresh_token")),
            ("csfr", None),
            ("crsf", None),
            ("csr", Some("csrf")),
            ("password", None),
        ] {
            assert_eq!(nearest(typed, known).as_deref(), wanted, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
    }
}
