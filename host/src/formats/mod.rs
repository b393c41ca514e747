//! Owns the text forms in which credentials come in (here) and go out (`export`): cookie files,
//! browser exports, `key=value` lines. Pure functions on text. An error here never holds a
//! value, nor any text that could be one.

pub mod export;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value};
use thiserror::Error;
use url::Host;
use zeroize::Zeroize as _;

use crate::credential::{CookieAttributes, Millis, Secret, extra_cookie_key, is_subdomain};
use crate::limits;
use crate::provider::{CookieLocation, KeySpec, Location, Resolved};
use crate::registry::manifest::{did_you_mean, listed, nearest, shown};
use crate::report::iso8601;

/// 9999-12-31T23:59:59Z, the last second that ISO 8601 writes with four digits. Browsers cap
/// expiries far below; tools write any number for "never".
const LAST_SECOND: f64 = 253_402_300_799.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A `cookies.txt` of seven fields between tabs.
    Netscape,
    /// Playwright's `storageState` JSON.
    StorageState,
    /// The JSON list that browser extensions export.
    BrowserJson,
    /// Lines of `key=value`, by the names of the key mapping.
    KeyValue,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Netscape => "a Netscape cookies.txt",
            Self::StorageState => "a Playwright storageState",
            Self::BrowserJson => "a browser extension's cookie list (JSON)",
            Self::KeyValue => "key=value lines",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedCookie {
    pub attributes: CookieAttributes,
    pub value: Secret,
    /// None: it ends with the browser's session, so nothing says when it dies.
    pub expires: Option<Millis>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub cookies: Vec<ImportedCookie>,
    pub pairs: Vec<(String, Secret)>,
}

/// Where in a text something is wrong. Counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Line(usize),
    Cookie(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Cookie(number) => write!(f, "cookie {number} of the list"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error(
        "the text is empty; allowed: cookies.txt, storageState, a browser extension's JSON, key=value lines"
    )]
    Empty,
    #[error(
        "line {line} fits no known format; allowed: cookies.txt, storageState, a browser extension's JSON, key=value lines{hint}"
    )]
    Unrecognised { line: usize, hint: &'static str },
    #[error("found {found} where {asked} was asked for; hint: name the format that it is, or none")]
    WrongFormat { asked: Format, found: Format },
    #[error("not valid JSON: {problem}; hint: is the file complete?")]
    Json { problem: String },
    #[error(
        "JSON, but not of cookies; allowed: an object with a list `cookies`, or a list of cookie objects"
    )]
    Shape,
    #[error("line {line} has {found} fields; allowed: 7 between tabs{hint}")]
    Fields { line: usize, found: usize, hint: &'static str },
    #[error("{place}: `{field}` is {found}; allowed: {allowed}")]
    Field { place: Place, field: &'static str, found: &'static str, allowed: &'static str },
    #[error("line {line} has no `=`; allowed: key=value, empty lines and `#` comments")]
    Pair { line: usize },
    #[error(
        "line {line} has no key name before its `=`; allowed: a name of letters, digits, `_` and `-`; hint: cookies of a header go on a line each, by the names of the key mapping"
    )]
    PairName { line: usize },
    #[error("{format} without any {what} in it")]
    Nothing { format: Format, what: &'static str },
}

// ---------------------------------------------------------------------------------------------
// Which format

/// Lines with their numbers, without line ends. Only the line end goes: a value may begin or end
/// in white space.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    lines.enumerate().map(|(index, line)| (index + 1, line))
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

const HTTP_ONLY: &str = "#HttpOnly_";

fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || (line.starts_with('#') && !line.starts_with(HTTP_ONLY))
}

fn is_flag(field: &str) -> bool {
    field.eq_ignore_ascii_case("TRUE") || field.eq_ignore_ascii_case("FALSE")
}

/// Tells the format by the text itself.
pub fn detect(text: &str) -> Result<Format, FormatError> {
    let text = without_mark(text);
    match text.trim_start().as_bytes().first() {
        None => return Err(FormatError::Empty),
        Some(b'{' | b'[') => return Ok(read_json(text)?.0),
        Some(_) => {}
    }
    let header = numbered(text)
        .any(|(_, line)| matches!(line.trim_end(), "# Netscape HTTP Cookie File" | "# HTTP Cookie File"));
    let Some((number, line)) = numbered(text).find(|(_, line)| !is_comment(line)) else {
        return if header { Ok(Format::Netscape) } else { Err(FormatError::Empty) };
    };
    let fields: Vec<&str> = line.split('\t').collect();
    if header || (fields.len() >= 4 && is_flag(fields[1])) {
        return Ok(Format::Netscape);
    }
    let hint = if lost_tabs(line) {
        LOST_TABS
    } else if line.trim_start().starts_with('<') {
        "; hint: this looks like HTML"
    } else if line.contains('=') {
        return Ok(Format::KeyValue);
    } else {
        ""
    };
    Err(FormatError::Unrecognised { line: number, hint })
}

const LOST_TABS: &str =
    "; hint: this looks like a cookies.txt whose tabs became spaces: save it again as it was";

/// Copying a cookies.txt through a terminal or a chat turns its tabs into spaces.
fn lost_tabs(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    !line.contains('\t') && (6..=7).contains(&fields.len()) && is_flag(fields[1]) && is_flag(fields[3])
}

/// Reads a text as the format asked for, or as the one it looks like.
pub fn parse(text: &str, format: Option<Format>) -> Result<Imported, FormatError> {
    let found = detect(text);
    let format = match (format, found) {
        (Some(asked), Ok(found)) if asked != found => {
            return Err(FormatError::WrongFormat { asked, found });
        }
        // Its own reader says more precisely what is wrong with the line.
        (Some(asked @ (Format::Netscape | Format::KeyValue)), Err(FormatError::Unrecognised { .. })) => asked,
        (_, found) => found?,
    };
    let text = without_mark(text);
    let imported = match format {
        Format::Netscape => parse_netscape(text)?,
        Format::KeyValue => parse_pairs(text)?,
        Format::StorageState | Format::BrowserJson => parse_json(text)?,
    };
    if imported.cookies.is_empty() && imported.pairs.is_empty() {
        let what = if format == Format::KeyValue { "pair" } else { "cookie" };
        return Err(FormatError::Nothing { format, what });
    }
    Ok(imported)
}

// ---------------------------------------------------------------------------------------------
// Netscape

fn parse_netscape(text: &str) -> Result<Imported, FormatError> {
    let mut cookies = Vec::new();
    for (line, content) in numbered(text).filter(|(_, line)| !is_comment(line)) {
        cookies.push(netscape_line(line, content)?);
    }
    Ok(Imported { cookies, pairs: Vec::new() })
}

/// Where the fields of a line are shifted any of them may be the value, so errors name the field
/// and show none.
fn netscape_line(line: usize, content: &str) -> Result<ImportedCookie, FormatError> {
    let (content, http_only) = content.strip_prefix(HTTP_ONLY).map_or((content, false), |rest| (rest, true));
    let fields: Vec<&str> = content.split('\t').collect();
    let [domain, subdomains, path, secure, expires, name, value] = fields.as_slice() else {
        let hint = if lost_tabs(content) { LOST_TABS } else { "" };
        return Err(FormatError::Fields { line, found: fields.len(), hint });
    };
    let place = Place::Line(line);
    let flag = |field: &'static str, text: &str| {
        if is_flag(text) {
            return Ok(text.eq_ignore_ascii_case("TRUE"));
        }
        let (found, allowed) = ("neither", "TRUE or FALSE");
        Err(FormatError::Field { place, field, found, allowed })
    };
    let expires = match expires.trim() {
        "" => None,
        text => match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => moment(seconds),
            _ => {
                return Err(FormatError::Field {
                    place,
                    field: "expiry",
                    found: "not a number",
                    allowed: "seconds since 1970, or 0 for a session cookie",
                });
            }
        },
    };
    Ok(ImportedCookie {
        attributes: CookieAttributes {
            name: (*name).to_owned(),
            domain: domain_of(place, domain)?,
            path: path_of(place, path)?,
            host_only: !flag("include subdomains", subdomains)?,
            secure: flag("secure", secure)?,
            http_only,
            same_site: None,
        },
        value: Secret::new(*value),
        expires,
    })
}

/// Seconds since 1970 as tools write them: none, 0 or -1 is a session cookie.
fn moment(seconds: f64) -> Option<Millis> {
    // The cast saturates, and both ends are in range.
    (seconds > 0.0).then(|| (seconds.min(LAST_SECOND) * 1_000.0).round() as Millis)
}

fn domain_of(place: Place, text: &str) -> Result<String, FormatError> {
    let text = text.trim();
    let host = Host::parse(text.strip_prefix('.').unwrap_or(text)).map(|host| host.to_string());
    // The `url` crate takes an empty first label, with which a cookie would be sent nowhere.
    host.ok().filter(|host| !host.starts_with('.')).ok_or(FormatError::Field {
        place,
        field: "domain",
        found: "not a host",
        allowed: "a host name such as `example.com`",
    })
}

fn path_of(place: Place, text: &str) -> Result<String, FormatError> {
    if text.starts_with('/') && !text.contains(|c: char| c.is_control()) {
        return Ok(text.to_owned());
    }
    let (found, allowed) = ("not a path", "a path that begins with `/`");
    Err(FormatError::Field { place, field: "path", found, allowed })
}

// ---------------------------------------------------------------------------------------------
// JSON

/// A parsed document whose texts are wiped when it goes.
struct Document(Value);

impl Drop for Document {
    fn drop(&mut self) {
        fn wipe(value: &mut Value) {
            match value {
                Value::String(text) => text.zeroize(),
                Value::Array(items) => items.iter_mut().for_each(wipe),
                Value::Object(fields) => fields.values_mut().for_each(wipe),
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        wipe(&mut self.0);
    }
}

impl Document {
    fn cookies(&mut self) -> Option<&mut Vec<Value>> {
        match &mut self.0 {
            Value::Array(cookies) => Some(cookies),
            Value::Object(fields) => fields.get_mut("cookies")?.as_array_mut(),
            _ => None,
        }
    }
}

fn read_json(text: &str) -> Result<(Format, Document), FormatError> {
    // Into a `Value` first: its errors are about syntax alone and quote nothing, while those of
    // a typed parse quote the value they did not like.
    let value =
        serde_json::from_str(text).map_err(|error| FormatError::Json { problem: error.to_string() })?;
    let mut document = Document(value);
    let format = if document.0.is_array() { Format::BrowserJson } else { Format::StorageState };
    match document.cookies() {
        Some(cookies) if cookies.iter().all(Value::is_object) => Ok((format, document)),
        _ => Err(FormatError::Shape),
    }
}

fn parse_json(text: &str) -> Result<Imported, FormatError> {
    let (_, mut document) = read_json(text)?;
    let mut cookies = Vec::new();
    for (index, cookie) in document.cookies().into_iter().flatten().enumerate() {
        let fields = cookie.as_object_mut().ok_or(FormatError::Shape)?;
        cookies.push(json_cookie(Place::Cookie(index + 1), fields)?);
    }
    Ok(Imported { cookies, pairs: Vec::new() })
}

const fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn json_text(
    place: Place,
    fields: &mut Map<String, Value>,
    field: &'static str,
) -> Result<String, FormatError> {
    match fields.get_mut(field) {
        // Taken, not copied: there shall be one copy of a value to wipe.
        Some(Value::String(text)) => Ok(std::mem::take(text)),
        other => Err(FormatError::Field {
            place,
            field,
            found: other.map_or("missing", |value| json_kind(value)),
            allowed: "a string",
        }),
    }
}

fn json_flag(
    place: Place,
    fields: &Map<String, Value>,
    field: &'static str,
) -> Result<Option<bool>, FormatError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => {
            let (found, allowed) = (json_kind(other), "true or false");
            Err(FormatError::Field { place, field, found, allowed })
        }
    }
}

/// One cookie of either JSON form: storageState writes `expires` and marks a cookie for
/// subdomains by a leading dot, extensions write `expirationDate`, `hostOnly` and `session`.
fn json_cookie(place: Place, fields: &mut Map<String, Value>) -> Result<ImportedCookie, FormatError> {
    let domain = json_text(place, fields, "domain")?;
    let leading_dot = domain.trim_start().starts_with('.');
    let path = match fields.get("path") {
        None | Some(Value::Null) => String::from("/"),
        Some(_) => path_of(place, &json_text(place, fields, "path")?)?,
    };
    let same_site = match fields.get("sameSite").and_then(Value::as_str) {
        Some(text) if text.eq_ignore_ascii_case("strict") => Some("Strict"),
        Some(text) if text.eq_ignore_ascii_case("lax") => Some("Lax"),
        Some(text) if text.eq_ignore_ascii_case("none") || text == "no_restriction" => Some("None"),
        _ => None,
    };
    let mut expires = None;
    for field in ["expires", "expirationDate"] {
        match fields.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Number(number)) => expires = number.as_f64().and_then(moment),
            Some(other) => {
                let (found, allowed) = (json_kind(other), "seconds since 1970");
                return Err(FormatError::Field { place, field, found, allowed });
            }
        }
    }
    if json_flag(place, fields, "session")? == Some(true) {
        expires = None;
    }
    Ok(ImportedCookie {
        attributes: CookieAttributes {
            domain: domain_of(place, &domain)?,
            path,
            host_only: json_flag(place, fields, "hostOnly")?.unwrap_or(!leading_dot),
            secure: json_flag(place, fields, "secure")?.unwrap_or(false),
            http_only: json_flag(place, fields, "httpOnly")?.unwrap_or(false),
            same_site: same_site.map(str::to_owned),
            name: json_text(place, fields, "name")?,
        },
        value: Secret::new(json_text(place, fields, "value")?),
        expires,
    })
}

// ---------------------------------------------------------------------------------------------
// key=value

fn parse_pairs(text: &str) -> Result<Imported, FormatError> {
    let mut pairs = Vec::new();
    for (line, content) in numbered(text) {
        if content.trim().is_empty() || content.trim_start().starts_with('#') {
            continue;
        }
        let (name, value) = content.split_once('=').ok_or(FormatError::Pair { line })?;
        let name = name.trim();
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(FormatError::PairName { line });
        }
        pairs.push((name.to_owned(), Secret::new(value)));
    }
    Ok(Imported { cookies: Vec::new(), pairs })
}

// ---------------------------------------------------------------------------------------------
// From what was imported to the keys of a credential

/// One key of the new credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedKey {
    pub name: String,
    pub secret: Secret,
    pub expires: Option<Millis>,
    /// Present where the key is a cookie.
    pub cookie: Option<CookieAttributes>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Mapped keys first, in the order of the mapping.
    pub keys: Vec<SelectedKey>,
    /// Domains no allowed origin belongs to, sorted.
    pub skipped_foreign: Vec<String>,
    /// `name@domain` of cookies outside the mapping that are past their time.
    pub skipped_expired: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectError {
    #[error("no cookie is for this service: they are for {}; allowed: {}; hint: export the cookies while its page is open, or check the settings that name hosts", listed(.found), listed(.allowed))]
    Foreign { found: Vec<String>, allowed: Vec<String> },
    #[error("cookie {} of key {} expired at {at}; hint: log in again and export a fresh one", shown(.cookie), shown(.key))]
    Expired { cookie: String, key: String, at: String },
    #[error("required key {} is missing; it is {wanted}; found: {}", shown(.key), listed(.found))]
    Missing { key: String, wanted: String, found: Vec<String> },
    #[error("pair {position} names no key of the mapping; allowed: {}{}", listed(.known), did_you_mean(.nearest))]
    UnknownPair { position: usize, known: Vec<String>, nearest: Option<String> },
    #[error("key {} is given twice; hint: keep one", shown(.key))]
    Twice { key: String },
    #[error("key {} has an empty value; hint: leave the line out if there is none", shown(.key))]
    EmptyValue { key: String },
    #[error("key {} (pair {position}) {found}; hint: {fix}; --exact takes values as they are", shown(.key))]
    Pasted { key: String, position: usize, found: &'static str, fix: &'static str },
    #[error("key {} has {found} bytes; allowed: at most {allowed}", shown(.key))]
    TooLong { key: String, found: usize, allowed: usize },
    #[error("key {} can't be a cookie: its {what} holds a control character or a separator; allowed: text without line breaks and `;`", shown(.key))]
    Characters { key: String, what: &'static str },
    #[error("{found} cookies are for this service; allowed: at most {allowed}; hint: export fewer, the key mapping needs {}", listed(.mapped))]
    TooMany { found: usize, allowed: usize, mapped: Vec<String> },
    #[error("nothing to import: every cookie for this service has expired: {}; hint: log in again and export fresh ones", listed(.expired))]
    AllExpired { expired: Vec<String> },
}

/// RFC 6265 section 5.1.3 for a cookie: whether it is sent to `host`.
fn is_sent_to(cookie: &CookieAttributes, host: &str) -> bool {
    host == cookie.domain || (!cookie.host_only && is_subdomain(host, &cookie.domain))
}

/// How well a cookie fits the place where the mapping expects one; None where it doesn't.
fn fit(cookie: &CookieAttributes, wanted: &CookieLocation) -> Option<u8> {
    if cookie.name != wanted.name {
        return None;
    }
    let domain = if cookie.domain == wanted.domain {
        3
    } else if is_sent_to(cookie, &wanted.domain) {
        2
    } else if is_subdomain(&cookie.domain, &wanted.domain) {
        // The mapping says `example.com` and the service sets it for `www.example.com`.
        1
    } else {
        return None;
    };
    Some(domain * 2 + u8::from(cookie.path == wanted.path))
}

/// Chooses from an import what belongs to the credential. Whatever no allowed origin would ever
/// get is left out, so that a whole browser's export stores nothing of other services.
pub fn select(imported: Imported, resolved: &Resolved, now: Millis) -> Result<Selection, SelectError> {
    let reaches =
        |cookie: &CookieAttributes| resolved.origins.iter().any(|origin| is_sent_to(cookie, &origin.host));
    let (mut own, foreign): (Vec<_>, Vec<_>) =
        without_repeats(imported.cookies, now).into_iter().partition(|c| reaches(&c.attributes));
    let foreign: BTreeSet<String> = foreign.into_iter().map(|cookie| cookie.attributes.domain).collect();
    let mut selection = Selection { skipped_foreign: foreign.into_iter().collect(), ..Selection::default() };
    if own.is_empty() && imported.pairs.is_empty() && !selection.skipped_foreign.is_empty() {
        return Err(SelectError::Foreign {
            found: selection.skipped_foreign,
            allowed: resolved.origins.iter().map(|origin| origin.host.clone()).collect(),
        });
    }
    // Listed before they are taken out one by one.
    let found: BTreeSet<String> = own
        .iter()
        .map(|cookie| cookie.attributes.name.clone())
        .chain(imported.pairs.iter().filter_map(|(name, _)| {
            resolved.keys.iter().find(|key| key.name == *name).map(|key| key.name.clone())
        }))
        .collect();

    let mut pairs = select_pairs(imported.pairs, resolved)?;
    for spec in &resolved.keys {
        let pair = pairs.iter().position(|key| key.name == spec.name).map(|at| pairs.remove(at));
        let cookie = take_mapped(&mut own, spec, now)?;
        match (pair, cookie) {
            (Some(_), Some(_)) => {
                return Err(SelectError::Twice { key: spec.name.clone() });
            }
            (Some(key), None) | (None, Some(key)) => selection.keys.push(key),
            (None, None) if spec.required => {
                return Err(SelectError::Missing {
                    key: spec.name.clone(),
                    wanted: wanted(spec),
                    found: found.into_iter().collect(),
                });
            }
            (None, None) => {}
        }
    }
    for cookie in own {
        let CookieAttributes { name, domain, path, .. } = &cookie.attributes;
        if is_past(cookie.expires, now) {
            selection.skipped_expired.push(format!("{name}@{domain}"));
            continue;
        }
        let key = extra_cookie_key(name, domain, path);
        selection.keys.push(selected(key, cookie));
    }
    if selection.keys.is_empty() {
        return Err(SelectError::AllExpired { expired: selection.skipped_expired });
    }
    check_keys(&selection, resolved)?;
    Ok(selection)
}

/// A cookie is its name, domain and path: of two such the later one stays, as in a browser, but
/// one that expired takes nothing from one that lives. Exports repeat cookies where a browser
/// keeps them apart by the page around them.
fn without_repeats(cookies: Vec<ImportedCookie>, now: Millis) -> Vec<ImportedCookie> {
    let mut kept: Vec<ImportedCookie> = Vec::with_capacity(cookies.len());
    let mut places = HashMap::new();
    for cookie in cookies {
        let CookieAttributes { name, domain, path, .. } = &cookie.attributes;
        match places.entry((name.clone(), domain.clone(), path.clone())) {
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push(cookie);
            }
            Entry::Occupied(place) => {
                let old = &mut kept[*place.get()];
                if !is_past(cookie.expires, now) || is_past(old.expires, now) {
                    *old = cookie;
                }
            }
        }
    }
    kept
}

fn is_past(expires: Option<Millis>, now: Millis) -> bool {
    expires.is_some_and(|at| at <= now)
}

fn selected(name: String, cookie: ImportedCookie) -> SelectedKey {
    SelectedKey { name, secret: cookie.value, expires: cookie.expires, cookie: Some(cookie.attributes) }
}

/// Takes the best cookie for a key out of the list; a live one beats any that expired.
fn take_mapped(
    own: &mut Vec<ImportedCookie>,
    spec: &KeySpec,
    now: Millis,
) -> Result<Option<SelectedKey>, SelectError> {
    let Location::Cookie(location) = &spec.location else {
        return Ok(None);
    };
    let best = own
        .iter()
        .enumerate()
        .filter_map(|(at, cookie)| Some((fit(&cookie.attributes, location)?, at, cookie)))
        .max_by_key(|(fit, at, cookie)| (!is_past(cookie.expires, now), *fit, std::cmp::Reverse(*at)))
        .map(|(_, at, _)| at);
    let Some(cookie) = best.map(|at| own.remove(at)) else {
        return Ok(None);
    };
    match cookie.expires {
        Some(at) if at <= now => Err(SelectError::Expired {
            cookie: cookie.attributes.name,
            key: spec.name.clone(),
            at: iso8601(at),
        }),
        _ => Ok(Some(selected(spec.name.clone(), cookie))),
    }
}

fn wanted(spec: &KeySpec) -> String {
    let place = match &spec.location {
        Location::Cookie(CookieLocation { name, domain, .. }) => {
            format!("cookie {} of {}", shown(name), shown(domain))
        }
        Location::Token => format!("a token; hint: give `{}=…` on standard input", spec.name),
    };
    if spec.help.is_empty() { place } else { format!("{place} ({})", spec.help) }
}

/// Refuses tokens that were pasted with something around them: no service would take them, and
/// the first sign of it would be a dead credential.
pub fn check_pasted(imported: &Imported, resolved: &Resolved) -> Result<(), SelectError> {
    for (index, (name, secret)) in imported.pairs.iter().enumerate() {
        let token = resolved.keys.iter().any(|key| key.name == *name && key.location == Location::Token);
        let value = secret.expose();
        let quoted =
            |quote: u8| value.len() > 1 && value.first() == Some(&quote) && value.last() == Some(&quote);
        let scheme = |name: &str| {
            value.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name.as_bytes()))
        };
        let (found, fix) = if value.trim_ascii().len() < value.len() {
            ("begins or ends with white space", "paste it without")
        } else if quoted(b'"') || quoted(b'\'') {
            ("is in quotes", "a line is NAME=VALUE, without quotes")
        } else if scheme("Bearer ") || scheme("Basic ") || scheme("token ") {
            ("begins with the word of a header", "paste what follows it")
        } else {
            continue;
        };
        if token {
            return Err(SelectError::Pasted { key: name.clone(), position: index + 1, found, fix });
        }
    }
    Ok(())
}

/// What stands before a `=` may be the beginning of a secret that ends in one, as base64 does, so
/// an unknown name is counted and not shown.
fn select_pairs(pairs: Vec<(String, Secret)>, resolved: &Resolved) -> Result<Vec<SelectedKey>, SelectError> {
    let mut keys: Vec<SelectedKey> = Vec::new();
    for (index, (name, secret)) in pairs.into_iter().enumerate() {
        let Some(spec) = resolved.keys.iter().find(|key| key.name == name) else {
            let known: Vec<String> = resolved.keys.iter().map(|key| key.name.clone()).collect();
            // Many will type the cookie's name, which the mapping may call otherwise.
            let by_cookie = resolved
                .keys
                .iter()
                .find(|key| matches!(&key.location, Location::Cookie(cookie) if cookie.name == name));
            return Err(SelectError::UnknownPair {
                position: index + 1,
                nearest: by_cookie
                    .map(|key| key.name.clone())
                    .or_else(|| nearest(&name, known.iter().map(String::as_str))),
                known,
            });
        };
        if keys.iter().any(|key| key.name == name) {
            return Err(SelectError::Twice { key: name });
        }
        let cookie = match &spec.location {
            Location::Token => None,
            Location::Cookie(location) => Some(CookieAttributes::narrowest(location, &resolved.origins)),
        };
        keys.push(SelectedKey { name, secret, expires: None, cookie });
    }
    Ok(keys)
}

fn check_keys(selection: &Selection, resolved: &Resolved) -> Result<(), SelectError> {
    let cookies = selection.keys.iter().filter(|key| key.cookie.is_some()).count();
    if cookies > limits::COOKIES {
        let mapped = resolved.keys.iter().map(|key| key.name.clone()).collect();
        return Err(SelectError::TooMany { found: cookies, allowed: limits::COOKIES, mapped });
    }
    for key in &selection.keys {
        let name = || key.name.clone();
        let bytes = key.secret.expose();
        if bytes.len() > limits::SECRET_BYTES {
            let (found, allowed) = (bytes.len(), limits::SECRET_BYTES);
            return Err(SelectError::TooLong { key: name(), found, allowed });
        }
        let unfit = key.cookie.as_ref().and_then(|cookie| unfit_for_header(cookie, bytes));
        if let Some(what) = unfit {
            return Err(SelectError::Characters { key: name(), what });
        }
        // A site may set an empty cookie, but the one that is kept alive has a value.
        let mapped = resolved.keys.iter().any(|spec| spec.name == key.name);
        if mapped && bytes.is_empty() {
            return Err(SelectError::EmptyValue { key: name() });
        }
    }
    Ok(())
}

/// Which part of a cookie would change the meaning of a `Cookie` header.
fn unfit_for_header(cookie: &CookieAttributes, value: &[u8]) -> Option<&'static str> {
    let breaks = |b: &u8| b.is_ascii_control() || *b == b';';
    if cookie.name.is_empty()
        || cookie.name.bytes().any(|b| breaks(&b) || b == b'=' || b.is_ascii_whitespace())
    {
        Some("name")
    } else if value.iter().any(breaks) {
        Some("value")
    } else if cookie.path.bytes().any(|b| breaks(&b)) {
        Some("path")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
