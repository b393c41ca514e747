//! Owns the text forms in which credentials come in and go out: cookie files, browser exports,
//! `key=value` lines. Pure functions on text. An error here never holds a value, nor any text
//! that could be one; exports hold values in clear, for that is what they are for.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;
use url::{Host, Url};
use zeroize::Zeroize as _;

use crate::credential::{CookieAttributes, Jar, Key, Millis, Secret, extra_cookie_key, is_subdomain};
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

// ---------------------------------------------------------------------------------------------
// Export

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExportError {
    #[error("the credential has no cookies; hint: export its tokens as env or JSON")]
    NoCookies,
    #[error("no cookie of the credential is sent to {}; it has cookies for {}", shown(.host), listed(.domains))]
    NoneFor { host: String, domains: Vec<String> },
    #[error("{} is not a url with a host; allowed: `https://host/path`", shown(.found))]
    Url { found: String },
    #[error("key {} holds {what}, which {format} can't express; hint: export as JSON", shown(.key))]
    Inexpressible { key: String, what: &'static str, format: &'static str },
    #[error("key {} is not UTF-8 text, and no text form can express it", shown(.key))]
    NotText { key: String },
    #[error("keys {} and {} would both be the variable {variable}; hint: export as JSON", shown(.first), shown(.second))]
    SameVariable { first: String, second: String, variable: String },
}

fn text_of(key: &Key) -> Result<&str, ExportError> {
    std::str::from_utf8(key.secret.expose()).map_err(|_| ExportError::NotText { key: key.name.clone() })
}

fn cookies_of(jar: &Jar) -> Result<Vec<(&Key, &CookieAttributes)>, ExportError> {
    let cookies: Vec<_> = jar.keys.iter().filter_map(|key| Some((key, key.cookie.as_ref()?))).collect();
    if cookies.is_empty() { Err(ExportError::NoCookies) } else { Ok(cookies) }
}

fn dotted(cookie: &CookieAttributes) -> String {
    let dot = if cookie.host_only { "" } else { "." };
    format!("{dot}{}", cookie.domain)
}

/// The cookies as `cookies.txt`; tokens have no place in one. Expiries lose their milliseconds.
pub fn to_netscape(jar: &Jar) -> Result<Secret, ExportError> {
    let mut out = Text::new(jar);
    out.push("# Netscape HTTP Cookie File\n");
    for (key, cookie) in cookies_of(jar)? {
        let value = text_of(key)?;
        for text in [&cookie.name, &cookie.path, &cookie.domain, value] {
            if text.contains(['\t', '\n', '\r', '\0']) {
                let (what, format) = ("a tab or line break", "cookies.txt");
                return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
            }
        }
        let flag = |on: bool| if on { "TRUE" } else { "FALSE" };
        // 0 would say that it never expires.
        let expires = key.expires.map_or(0, |at| (at / 1_000).max(1));
        out.push(if cookie.http_only { HTTP_ONLY } else { "" });
        let expires = expires.to_string();
        let fields = [
            &dotted(cookie),
            flag(!cookie.host_only),
            &cookie.path,
            flag(cookie.secure),
            &expires,
            &cookie.name,
            value,
        ];
        for (index, field) in fields.iter().enumerate() {
            out.push(if index > 0 { "\t" } else { "" });
            out.push(field);
        }
        out.push("\n");
    }
    Ok(out.finish())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateCookie<'a> {
    name: &'a str,
    value: &'a str,
    domain: String,
    path: &'a str,
    expires: f64,
    http_only: bool,
    secure: bool,
    same_site: &'a str,
}

#[derive(Serialize)]
struct State<'a> {
    cookies: Vec<StateCookie<'a>>,
    origins: [(); 0],
}

/// The cookies as Playwright's `storageState`. It knows no unset `sameSite`; `Lax` is what
/// browsers take that for.
pub fn to_storage_state(jar: &Jar) -> Result<Secret, ExportError> {
    let mut cookies = Vec::new();
    for (key, cookie) in cookies_of(jar)? {
        cookies.push(StateCookie {
            name: &cookie.name,
            value: text_of(key)?,
            domain: dotted(cookie),
            path: &cookie.path,
            expires: key.expires.map_or(-1.0, |at| at as f64 / 1_000.0),
            http_only: cookie.http_only,
            secure: cookie.secure,
            same_site: cookie.same_site.as_deref().unwrap_or("Lax"),
        });
    }
    Ok(json(jar, &State { cookies, origins: [] }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BrowserCookie<'a> {
    name: &'a str,
    value: &'a str,
    domain: String,
    path: &'a str,
    host_only: bool,
    session: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_date: Option<f64>,
    http_only: bool,
    secure: bool,
    same_site: &'a str,
}

/// The cookies as the list that browser extensions import.
pub fn to_browser_json(jar: &Jar) -> Result<Secret, ExportError> {
    let mut cookies = Vec::new();
    for (key, cookie) in cookies_of(jar)? {
        cookies.push(BrowserCookie {
            name: &cookie.name,
            value: text_of(key)?,
            domain: dotted(cookie),
            path: &cookie.path,
            host_only: cookie.host_only,
            session: key.expires.is_none(),
            expiration_date: key.expires.map(|at| at as f64 / 1_000.0),
            http_only: cookie.http_only,
            secure: cookie.secure,
            same_site: match cookie.same_site.as_deref() {
                Some("Strict") => "strict",
                Some("Lax") => "lax",
                Some("None") => "no_restriction",
                _ => "unspecified",
            },
        });
    }
    Ok(json(jar, &cookies))
}

#[derive(Serialize)]
struct JsonKey<'a> {
    value: &'a str,
    expires: Option<String>,
    cookie: Option<&'a CookieAttributes>,
}

/// Every key by its name: `{"session": {"value": …, "expires": …, "cookie": …}}`.
pub fn to_json(jar: &Jar) -> Result<Secret, ExportError> {
    let mut keys = BTreeMap::new();
    for key in &jar.keys {
        let (value, expires) = (text_of(key)?, key.expires.map(iso8601));
        keys.insert(&key.name, JsonKey { value, expires, cookie: key.cookie.as_ref() });
    }
    Ok(json(jar, &keys))
}

/// The line `Cookie: a=1; b=2` that a browser would send to `url` at `now`, RFC 6265
/// section 5.4: longer paths first, no secure cookie over plain http, none that expired.
pub fn to_cookie_header(jar: &Jar, url: &str, now: Millis) -> Result<Secret, ExportError> {
    let parsed = Url::parse(url).ok().filter(Url::has_host);
    let Some(url) = parsed else {
        // A URL may hold a secret in its query.
        let found = url.split(['?', '#']).next().unwrap_or_default();
        let found = if found.contains('@') { "…@…" } else { found };
        return Err(ExportError::Url { found: found.to_owned() });
    };
    let host = url.host_str().unwrap_or_default();
    let cookies = cookies_of(jar)?;
    let mut sent: Vec<_> = cookies
        .iter()
        .filter(|(key, cookie)| {
            is_sent_to(cookie, host)
                && is_path_within(url.path(), &cookie.path)
                && (!cookie.secure || url.scheme() == "https")
                && !is_past(key.expires, now)
        })
        .collect();
    if sent.is_empty() {
        let domains: BTreeSet<String> = cookies.iter().map(|(_, c)| c.domain.clone()).collect();
        let domains = domains.into_iter().collect();
        return Err(ExportError::NoneFor { host: host.to_owned(), domains });
    }
    // A stable sort, so cookies of one path keep the jar's order.
    sent.sort_by_key(|(_, cookie)| std::cmp::Reverse(cookie.path.len()));
    let mut out = Text::new(jar);
    for (index, (key, cookie)) in sent.into_iter().enumerate() {
        let value = text_of(key)?;
        if unfit_for_header(cookie, value.as_bytes()).is_some() {
            let (what, format) = ("a control character or a separator", "a header");
            return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
        }
        out.push(if index == 0 { "Cookie: " } else { "; " });
        out.push(&cookie.name);
        out.push("=");
        out.push(value);
    }
    Ok(out.finish())
}

/// RFC 6265 section 5.1.4.
fn is_path_within(path: &str, cookie: &str) -> bool {
    path.strip_prefix(cookie)
        .is_some_and(|rest| rest.is_empty() || cookie.ends_with('/') || rest.starts_with('/'))
}

/// Lines `NAME='value'` that a POSIX shell reads back: everything but a single quote means
/// itself between single quotes, line breaks included.
pub fn to_env(jar: &Jar) -> Result<Secret, ExportError> {
    let mut out = Text::new(jar);
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for key in &jar.keys {
        let variable = variable(&key.name);
        if let Some(first) = seen.insert(variable.clone(), &key.name) {
            let (first, second) = (first.to_owned(), key.name.clone());
            return Err(ExportError::SameVariable { first, second, variable });
        }
        let value = text_of(key)?;
        if value.contains('\0') {
            let (what, format) = ("a zero byte", "a shell variable");
            return Err(ExportError::Inexpressible { key: key.name.clone(), what, format });
        }
        out.push(&variable);
        out.push("='");
        for (index, part) in value.split('\'').enumerate() {
            out.push(if index > 0 { r"'\''" } else { "" });
            out.push(part);
        }
        out.push("'\n");
    }
    Ok(out.finish())
}

/// `refresh-token` is `REFRESH_TOKEN`.
fn variable(name: &str) -> String {
    let mut variable = String::new();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        variable.push('_');
    }
    variable.extend(name.chars().map(
        |c| {
            if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }
        },
    ));
    variable
}

/// A text that becomes a `Secret`. Room for all of it is taken first, because a buffer that
/// grows leaves what it held behind unwiped.
struct Text(zeroize::Zeroizing<String>);

impl Text {
    fn new(jar: &Jar) -> Self {
        Self(zeroize::Zeroizing::new(String::with_capacity(room(jar))))
    }

    fn push(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn finish(mut self) -> Secret {
        Secret::new(std::mem::take(&mut *self.0).into_bytes())
    }
}

/// A bound on any of the forms: an escape makes at most six bytes of one, and what stands around
/// a value is field names and attributes.
fn room(jar: &Jar) -> usize {
    let key = |key: &Key| {
        let cookie = key.cookie.as_ref();
        let attributes = cookie.map_or(0, |c| c.name.len() + c.domain.len() + c.path.len());
        512 + 6 * (key.secret.expose().len() + key.name.len() + attributes)
    };
    256 + jar.keys.iter().map(key).sum::<usize>()
}

fn json(jar: &Jar, value: &impl Serialize) -> Secret {
    let mut out = zeroize::Zeroizing::new(Vec::with_capacity(room(jar)));
    serde_json::to_writer_pretty(&mut *out, value)
        .expect("texts, numbers and flags always serialise, and a vector takes every write");
    out.push(b'\n');
    Secret::new(std::mem::take(&mut *out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::AllowedOrigin;

    /// Stands for every value that no error may hold.
    const VALUE: &str = "v4lue-n0t-to-print";
    const NOW: Millis = 1_700_000_000_000;

    fn netscape(domain: &str, expires: &str, name: &str) -> String {
        let tail = if domain.starts_with('.') { "TRUE" } else { "FALSE" };
        format!("{domain}\t{tail}\t/\tTRUE\t{expires}\t{name}\t{VALUE}\n")
    }

    fn origin(scheme: &str, host: &str) -> AllowedOrigin {
        AllowedOrigin {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port: if scheme == "https" { 443 } else { 80 },
            operator_named: scheme == "http",
        }
    }

    fn spec(name: &str, required: bool, cookie: Option<(&str, &str)>) -> KeySpec {
        let location = match cookie {
            None => Location::Token,
            Some((name, domain)) => Location::Cookie(CookieLocation {
                name: name.to_owned(),
                domain: domain.to_owned(),
                path: String::from("/"),
            }),
        };
        KeySpec { name: name.to_owned(), location, required, reveal: false, help: String::new() }
    }

    /// A required cookie, an optional cookie, an optional token; one origin.
    fn resolved() -> Resolved {
        Resolved {
            validate_url: String::from("https://app.example.com/me"),
            keys: vec![
                spec("session", true, Some(("sessionid", "app.example.com"))),
                spec("remember", false, Some(("remember_me", "app.example.com"))),
                spec("csrf_token", false, None),
            ],
            origins: vec![origin("https", "app.example.com")],
            private_hosts: Vec::new(),
            settings: Vec::new(),
            methods: Vec::new(),
        }
    }

    fn import(text: &str) -> Imported {
        parse(text, None).expect("this text is readable")
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection.keys.iter().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn formats_are_told_apart_by_their_text() {
        let table = [
            ("# Netscape HTTP Cookie File\n", Ok(Format::Netscape)),
            ("\u{feff}# HTTP Cookie File\r\n\r\n", Ok(Format::Netscape)),
            ("a.example\tFALSE\t/\tTRUE\t0\tn\tv=w", Ok(Format::Netscape)),
            ("#HttpOnly_a.example\tFALSE\t/\tTRUE\t0\tn\tv", Ok(Format::Netscape)),
            (" {\"cookies\": [], \"origins\": []}", Ok(Format::StorageState)),
            ("[]", Ok(Format::BrowserJson)),
            ("session=abc", Ok(Format::KeyValue)),
            ("# mine\n\nsession=a\tb\tc\td\te", Ok(Format::KeyValue)),
            ("", Err(FormatError::Empty)),
            (" \r\n\t", Err(FormatError::Empty)),
            ("# only a comment", Err(FormatError::Empty)),
            ("\n\nhello", Err(FormatError::Unrecognised { line: 3, hint: "" })),
            ("<html a=b>", Err(FormatError::Unrecognised { line: 1, hint: "; hint: this looks like HTML" })),
            ("a.example TRUE / FALSE 0 n v=w", Err(FormatError::Unrecognised { line: 1, hint: LOST_TABS })),
            ("{\"a\": 1}", Err(FormatError::Shape)),
            ("[1]", Err(FormatError::Shape)),
            ("{\"cookies\": {}}", Err(FormatError::Shape)),
        ];
        for (text, wanted) in table {
            assert_eq!(detect(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn another_format_than_the_one_asked_for_is_named() {
        let file = netscape("a.example", "0", "n");
        let state = "{\"cookies\": []}";
        for (text, asked, found) in [
            (state, Format::Netscape, Format::StorageState),
            ("[]", Format::Netscape, Format::BrowserJson),
            ("[]", Format::StorageState, Format::BrowserJson),
            (state, Format::KeyValue, Format::StorageState),
            (file.as_str(), Format::KeyValue, Format::Netscape),
            (file.as_str(), Format::StorageState, Format::Netscape),
            ("a=b", Format::Netscape, Format::KeyValue),
        ] {
            assert_eq!(parse(text, Some(asked)), Err(FormatError::WrongFormat { asked, found }));
        }
        assert_eq!(
            FormatError::WrongFormat { asked: Format::Netscape, found: Format::StorageState }.to_string(),
            "found a Playwright storageState where a Netscape cookies.txt was asked for; hint: name the format that it is, or none"
        );
    }

    #[test]
    fn a_netscape_file_is_read_with_its_prefixes_line_ends_and_odd_expiries() {
        let text = "# Netscape HTTP Cookie File\r\n# made by hand\r\n\r\n\
            #HttpOnly_.Example.COM\tTRUE\t/app\tTRUE\t1800000000\tsid\t a=b; \r\n\
            www.example.com\tfalse\t/\tFALSE\t0\tplain\t\r\n\
            a.example\tFALSE\t/\tFALSE\t\tempty\tv\r\n\
            b.example\tFALSE\t/\tFALSE\t-1\tminus\tv\r\n\
            c.example\tFALSE\t/\tFALSE\t1800000000.25\tfloat\tv\r\n\
            d.example\tFALSE\t/\tFALSE\t99999999999999\tforever\tv";
        let imported = import(text);
        assert_eq!(
            imported.cookies[0],
            ImportedCookie {
                attributes: CookieAttributes {
                    name: "sid".into(),
                    domain: "example.com".into(),
                    path: "/app".into(),
                    host_only: false,
                    secure: true,
                    http_only: true,
                    same_site: None,
                },
                value: Secret::new(" a=b; "),
                expires: Some(1_800_000_000_000),
            }
        );
        assert!(imported.cookies[1].attributes.host_only);
        let expiries: Vec<_> = imported.cookies.iter().skip(1).map(|c| c.expires).collect();
        let last = Some(253_402_300_799_000);
        assert_eq!(expiries, [None, None, None, Some(1_800_000_000_250), last]);
    }

    #[test]
    fn a_storage_state_is_read() {
        let text = r#"{"cookies": [
            {"name":"a","value":"1","domain":".example.com","path":"/x","expires":1800000000.5,
             "httpOnly":true,"secure":true,"sameSite":"Strict"},
            {"name":"b","value":"","domain":"example.com","path":"/","expires":-1,
             "httpOnly":false,"secure":false,"sameSite":"None"}], "origins": [{"origin": "x"}]}"#;
        let cookies = import(text).cookies;
        assert_eq!(cookies[0].expires, Some(1_800_000_000_500));
        assert_eq!(cookies[0].attributes.same_site.as_deref(), Some("Strict"));
        assert!(!cookies[0].attributes.host_only && cookies[0].attributes.http_only);
        assert_eq!(cookies[1].expires, None);
        assert!(cookies[1].attributes.host_only && !cookies[1].attributes.secure);
    }

    #[test]
    fn a_browser_extensions_list_is_read() {
        let text = r#"[
            {"name":"a","value":"1","domain":".example.com","hostOnly":false,"path":"/",
             "expirationDate":1800000000.123,"session":false,"sameSite":"no_restriction",
             "secure":true,"httpOnly":true,"storeId":"0","id":1},
            {"name":"b","value":"2","domain":"example.com","hostOnly":true,"session":true,
             "expirationDate":1800000000,"sameSite":"unspecified"},
            {"name":"c","value":"3","domain":"example.com","hostOnly":false,"sameSite":null,"path":null}]"#;
        let cookies = import(text).cookies;
        assert_eq!(cookies[0].expires, Some(1_800_000_000_123));
        assert_eq!(cookies[0].attributes.same_site.as_deref(), Some("None"));
        assert_eq!((cookies[1].expires, &cookies[1].attributes.same_site), (None, &None));
        assert!(cookies[1].attributes.host_only && !cookies[2].attributes.host_only);
        assert_eq!(cookies[2].attributes.path, "/");
    }

    #[test]
    fn pairs_keep_their_values_as_they_are() {
        let text = "# comment\r\n\r\n a = x=y \r\nb=\nc= # not a comment\n";
        let pairs: Vec<_> = import(text).pairs;
        let wanted = [("a", " x=y "), ("b", ""), ("c", " # not a comment")]
            .map(|(name, value)| (name.to_owned(), Secret::new(value)));
        assert_eq!(pairs, wanted);
    }

    #[test]
    fn a_text_that_is_wrong_says_where_and_never_what_the_value_was() {
        let good = netscape("a.example", "0", "n");
        let row = |fields: [&str; 7]| good.clone() + &fields.join("\t");
        let cookie =
            |fields: &str| format!(r#"[{{"name":"n","value":"v","domain":"a.example"}}, {{{fields}}}]"#);
        let table = [
            (
                row(["a.example", "YES", "/", "TRUE", "0", "n", VALUE]),
                "line 2: `include subdomains` is neither; allowed: TRUE or FALSE",
            ),
            (row(["a.example", "TRUE", "/", VALUE, "0", "n", "v"]), "line 2: `secure` is neither"),
            (
                row(["a.example", "TRUE", "/", "TRUE", VALUE, "n", "v"]),
                "line 2: `expiry` is not a number; allowed: seconds since 1970, or 0",
            ),
            (row(["a.example", "TRUE", "/", "TRUE", "nan", "n", VALUE]), "line 2: `expiry` is not a number"),
            (row(["a.example", "TRUE", VALUE, "TRUE", "0", "n", "v"]), "line 2: `path` is not a path"),
            (row(["", "TRUE", "/", "TRUE", "0", "n", VALUE]), "line 2: `domain` is not a host"),
            (row(["..a.example", "TRUE", "/", "TRUE", "0", "n", VALUE]), "line 2: `domain` is not a host"),
            (
                good.clone() + "a.example\tTRUE\t/\tTRUE\t0\t" + VALUE,
                "line 2 has 6 fields; allowed: 7 between tabs",
            ),
            (good.clone() + &good.trim_end().replace(VALUE, "a\tb"), "line 2 has 8 fields"),
            (
                good.clone() + &good.replace('\t', " "),
                "line 2 has 1 fields; allowed: 7 between tabs; hint: this looks like a cookies.txt whose tabs became spaces",
            ),
            (good.clone() + VALUE, "line 2 has 1 fields"),
            (format!("a=b\n{VALUE}"), "line 2 has no `=`"),
            (format!("a=b\n={VALUE}"), "line 2 has no key name before its `=`"),
            (format!("Cookie: a={VALUE}; b={VALUE}"), "line 1 has no key name before its `=`"),
            (format!("[{{\"value\": \"{VALUE}\""), "not valid JSON: EOF while parsing an object at line 1"),
            (format!("[\"{VALUE}\"]"), "JSON, but not of cookies"),
            (
                cookie(&format!(r#""name":"n","value":["{VALUE}"],"domain":"a.example""#)),
                "cookie 2 of the list: `value` is a list; allowed: a string",
            ),
            (
                cookie(&format!(r#""value":"{VALUE}","domain":"a.example""#)),
                "cookie 2 of the list: `name` is missing",
            ),
            (
                cookie(&format!(r#""name":"n","value":"{VALUE}""#)),
                "cookie 2 of the list: `domain` is missing",
            ),
            (
                cookie(&format!(r#""name":"n","value":"v","domain":"{VALUE} x""#)),
                "cookie 2 of the list: `domain` is not a host",
            ),
            (
                cookie(&format!(r#""name":"n","value":"v","domain":"a.example","path":"{VALUE}""#)),
                "cookie 2 of the list: `path` is not a path",
            ),
            (
                cookie(&format!(r#""name":"n","value":"v","domain":"a.example","expires":"{VALUE}""#)),
                "cookie 2 of the list: `expires` is a string; allowed: seconds since 1970",
            ),
            (
                cookie(&format!(r#""name":"n","value":"v","domain":"a.example","secure":"{VALUE}""#)),
                "cookie 2 of the list: `secure` is a string; allowed: true or false",
            ),
            (String::from("[]"), "a browser extension's cookie list (JSON) without any cookie in it"),
            (
                String::from("# Netscape HTTP Cookie File\n"),
                "a Netscape cookies.txt without any cookie in it",
            ),
        ];
        for (text, wanted) in table {
            let error = parse(&text, None).expect_err(wanted);
            let said = error.to_string();
            assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
            assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
        }
    }

    #[test]
    fn a_line_that_fits_nothing_is_judged_by_the_format_asked_for() {
        let text = format!("{VALUE}\n");
        for (asked, wanted) in [
            (Some(Format::Netscape), "line 1 has 1 fields"),
            (Some(Format::KeyValue), "line 1 has no `=`"),
            (None, "line 1 fits no known format"),
        ] {
            let said = parse(&text, asked).expect_err(wanted).to_string();
            assert!(said.starts_with(wanted) && !said.contains(VALUE), "{said}");
        }
    }

    #[test]
    fn mapped_cookies_become_keys_others_of_the_service_come_along_and_foreign_ones_stay_out() {
        let text = netscape("app.example.com", "1800000000", "sessionid")
            + &netscape(".example.com", "0", "theme")
            + &netscape("app.example.com", "1600000000", "old")
            + &netscape("example.com", "0", "parent")
            + &netscape(".bank.example", "0", "sessionid")
            + &netscape("notexample.com", "0", "x")
            + &netscape(".bank.example", "0", "y");
        let selection = select(import(&text), &resolved(), NOW).expect("selects");
        assert_eq!(names(&selection), ["session", "cookie:theme@example.com/"]);
        assert_eq!(selection.keys[0].expires, Some(1_800_000_000_000));
        assert_eq!(selection.skipped_foreign, ["bank.example", "example.com", "notexample.com"]);
        assert_eq!(selection.skipped_expired, ["old@app.example.com"]);
    }

    #[test]
    fn the_cookie_nearest_to_its_place_in_the_mapping_is_the_key() {
        let own = netscape("app.example.com", "0", "sessionid");
        let parent = netscape(".example.com", "0", "sessionid");
        let dead = netscape("app.example.com", "1600000000", "sessionid");
        for (text, domain, count) in [
            (own.clone(), "app.example.com", 1),
            (parent.clone(), "example.com", 1),
            (parent.clone() + &own, "app.example.com", 2),
            (own.clone() + &parent, "app.example.com", 2),
            // A live cookie beats a dead one in a better place, and a dead twin.
            (dead.clone() + &parent, "example.com", 1),
            (own.clone() + &dead, "app.example.com", 1),
            (dead + &own, "app.example.com", 1),
        ] {
            let selection = select(import(&text), &resolved(), NOW).expect("selects");
            assert_eq!(selection.keys.len(), count, "{text}");
            assert_eq!(selection.keys[0].name, "session");
            let cookie = selection.keys[0].cookie.as_ref().expect("a cookie");
            assert_eq!(cookie.domain, domain, "{text}");
        }
    }

    #[test]
    fn a_cookie_below_the_mapped_domain_counts_where_its_host_is_allowed() {
        let mut resolved = resolved();
        resolved.keys[0] = spec("session", true, Some(("sessionid", "example.com")));
        let text = netscape("app.example.com", "0", "sessionid");
        let selection = select(import(&text), &resolved, NOW).expect("selects");
        assert_eq!(names(&selection), ["session"]);
        let text = netscape("other.example.com", "0", "sessionid");
        assert!(matches!(select(import(&text), &resolved, NOW), Err(SelectError::Foreign { .. })));
    }

    #[test]
    fn addresses_have_no_subdomains() {
        assert!(is_subdomain("a.example.com", "example.com"));
        assert!(!is_subdomain("aexample.com", "example.com"));
        assert!(!is_subdomain("example.com", "example.com"));
        assert!(!is_subdomain("10.0.0.1", "0.0.1"));
        assert!(!is_subdomain("[::1]", ":1]"));
    }

    #[test]
    fn what_can_not_be_selected_says_what_was_wanted_and_no_value() {
        let table = [
            (
                netscape(".a.example", "0", "x") + &netscape("b.example", "0", "y"),
                r#"no cookie is for this service: they are for "a.example", "b.example"; allowed: "app.example.com"; hint:"#,
            ),
            (
                netscape("app.example.com", "1600000000", "sessionid"),
                r#"cookie "sessionid" of key "session" expired at 2020-09-13T12:26:40.000Z; hint: log in again"#,
            ),
            (
                netscape("app.example.com", "0", "sessionid")
                    + &netscape("app.example.com", "1700000000", "remember_me"),
                r#"cookie "remember_me" of key "remember" expired at 2023-11-14T22:13:20.000Z"#,
            ),
            (
                netscape("app.example.com", "0", "theme"),
                r#"required key "session" is missing; it is cookie "sessionid" of "app.example.com"; found: "theme""#,
            ),
            (format!("csrf_token={VALUE}"), r#"required key "session" is missing"#),
            (format!("session={VALUE}\nsession={VALUE}"), r#"key "session" is given twice"#),
            (
                format!("session={VALUE}\ncsrf-token={VALUE}"),
                r#"pair 2 names no key of the mapping; allowed: "session", "remember", "csrf_token"; hint: did you mean "csrf_token"?"#,
            ),
            (format!("sessionid={VALUE}"), r#"hint: did you mean "session"?"#),
            (format!("{VALUE}=="), r#"pair 1 names no key of the mapping"#),
            (String::from("session="), r#"key "session" has an empty value"#),
            (format!("session={VALUE}\ncsrf_token="), r#"key "csrf_token" has an empty value"#),
            (format!("session={VALUE}; admin=1"), r#"key "session" can't be a cookie: its value holds"#),
            (format!("session={VALUE}\x07"), r#"key "session" can't be a cookie: its value holds"#),
            (
                format!("session={}", VALUE.repeat(5_000)),
                r#"key "session" has 90000 bytes; allowed: at most 65536"#,
            ),
            (
                (0..181).map(|n| netscape("app.example.com", "0", &format!("c{n}"))).collect::<String>()
                    + &netscape("app.example.com", "0", "sessionid"),
                r#"182 cookies are for this service; allowed: at most 180"#,
            ),
        ];
        for (text, wanted) in table {
            let error = select(import(&text), &resolved(), NOW).expect_err(wanted);
            let said = error.to_string();
            assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
            assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
        }
        let mut optional = resolved();
        optional.keys[0].required = false;
        let text = netscape("app.example.com", "1600000000", "old");
        let error = select(import(&text), &optional, NOW).expect_err("expired");
        assert_eq!(error, SelectError::AllExpired { expired: vec!["old@app.example.com".into()] });
    }

    #[test]
    fn a_missing_token_says_how_to_give_it() {
        let mut resolved = resolved();
        resolved.keys[2].required = true;
        resolved.keys[2].help = String::from("Settings, then Tokens");
        let text = netscape("app.example.com", "0", "sessionid");
        let said = select(import(&text), &resolved, NOW).expect_err("missing").to_string();
        assert_eq!(
            said,
            "required key \"csrf_token\" is missing; it is a token; hint: give `csrf_token=…` on standard input (Settings, then Tokens); found: \"sessionid\""
        );
    }

    #[test]
    fn a_pair_for_a_cookie_gets_the_narrowest_attributes_that_reach_the_service() {
        type Origins = &'static [(&'static str, &'static str)];
        let table: [(&str, Origins, bool, bool); 4] = [
            ("app.example.com", &[("https", "app.example.com")], true, true),
            ("app.example.com", &[("http", "app.example.com")], true, false),
            ("example.com", &[("https", "example.com"), ("https", "app.example.com")], true, true),
            ("example.com", &[("https", "app.example.com")], false, true),
        ];
        for (domain, origins, host_only, secure) in table {
            let mut resolved = resolved();
            resolved.keys = vec![spec("session", true, Some(("sid", domain)))];
            resolved.origins = origins.iter().map(|(s, h)| origin(s, h)).collect();
            let selection = select(import("session=x"), &resolved, NOW).expect("selects");
            let cookie = selection.keys[0].cookie.as_ref().expect("a cookie");
            assert_eq!((cookie.host_only, cookie.secure), (host_only, secure), "{domain}");
            assert_eq!((cookie.name.as_str(), cookie.path.as_str()), ("sid", "/"));
            assert!(resolved.origins.iter().any(|origin| is_sent_to(cookie, &origin.host)));
        }
        let selection = select(import("session=x\ncsrf_token=a=b;c"), &resolved(), NOW);
        let selection = selection.expect("selects");
        assert_eq!(selection.keys[1].cookie, None);
        assert_eq!(selection.keys[1].secret, Secret::new("a=b;c"));
    }

    #[test]
    fn a_token_that_was_pasted_with_something_around_it_is_refused_by_its_place() {
        let said = |pairs: &str| {
            check_pasted(&import(pairs), &resolved()).err().map(|error| error.to_string()).unwrap_or_default()
        };
        for (value, found) in [
            (" made-up", "white space"),
            ("made-up ", "white space"),
            ("made-up\t", "white space"),
            ("\"made-up\"", "is in quotes"),
            ("'made-up'", "is in quotes"),
            ("Bearer made-up", "the word of a header"),
            ("bearer made-up", "the word of a header"),
        ] {
            let said = said(&format!("session=x\ncsrf_token={value}"));
            assert!(
                said.contains("key \"csrf_token\" (pair 2)") && said.contains(found),
                "{value:?}: {said}"
            );
            assert!(!said.contains("made-up"), "{said}");
        }
        for value in ["made-up", "made up", "\"", "made\"up", "Bearer", "bearers"] {
            assert_eq!(said(&format!("csrf_token={value}")), "", "{value:?}");
        }
        // A cookie's value may well be in quotes.
        assert_eq!(said("session=\"x\""), "");
    }

    fn key(name: &str, value: &str, expires: Option<Millis>, cookie: Option<CookieAttributes>) -> Key {
        Key {
            name: name.to_owned(),
            secret: Secret::new(value),
            fingerprint: String::from("f"),
            expires,
            cookie,
        }
    }

    fn cookie(name: &str, domain: &str, path: &str) -> CookieAttributes {
        CookieAttributes {
            name: name.to_owned(),
            domain: domain.to_owned(),
            path: path.to_owned(),
            host_only: true,
            secure: true,
            http_only: false,
            same_site: None,
        }
    }

    /// Every combination of attributes with every kind of value.
    fn jar(values: &[&str]) -> Jar {
        let mut jar = Jar::default();
        for (v, value) in values.iter().enumerate() {
            for bits in 0..16_u8 {
                let name = format!("c{v}-{bits}");
                let attributes = CookieAttributes {
                    host_only: bits & 1 == 0,
                    secure: bits & 2 == 0,
                    http_only: bits & 4 == 0,
                    same_site: Some(String::from("Strict")),
                    ..cookie(&name, "app.example.com", "/a b")
                };
                let expires = (bits & 8 == 0).then_some(1_800_000_000_000 + u64::from(bits) * 1_000);
                jar.put(key(&name, value, expires, Some(attributes)));
            }
        }
        jar
    }

    const VALUES: &[&str] = &[
        "plain",
        "",
        "a=b==",
        " space ",
        "\"quoted\"",
        "it's",
        "ünï→🔑",
        "#HttpOnly_",
        "\\n$HOME`x`",
        "a,b|c",
    ];

    fn text(secret: &Secret) -> String {
        String::from_utf8(secret.expose().to_vec()).expect("text")
    }

    #[test]
    fn what_is_exported_as_cookies_is_imported_again_the_same() {
        type Export = fn(&Jar) -> Result<Secret, ExportError>;
        let jar = jar(VALUES);
        let forms: [(Export, Format, bool); 3] = [
            (to_netscape, Format::Netscape, false),
            (to_storage_state, Format::StorageState, true),
            (to_browser_json, Format::BrowserJson, true),
        ];
        for (export, format, keeps_same_site) in forms {
            let out = text(&export(&jar).expect("exports"));
            assert_eq!(detect(&out), Ok(format));
            let imported = parse(&out, Some(format)).expect("imports").cookies;
            assert_eq!(imported.len(), jar.keys.len());
            for (key, cookie) in jar.keys.iter().zip(imported) {
                let mut attributes = key.cookie.clone().expect("a cookie");
                if !keeps_same_site {
                    attributes.same_site = None;
                }
                assert_eq!(cookie.attributes, attributes, "{format}");
                assert_eq!(cookie.value, key.secret, "{format}");
                assert_eq!(cookie.expires, key.expires, "{format}");
            }
        }
    }

    #[test]
    fn the_json_forms_keep_milliseconds_and_line_breaks() {
        let mut jar = Jar::default();
        jar.put(key("a", "x\ty\nz", Some(1_800_000_000_123), Some(cookie("a", "a.example", "/"))));
        for export in [to_storage_state, to_browser_json] {
            let imported = import(&text(&export(&jar).expect("exports")));
            assert_eq!(imported.cookies[0].expires, Some(1_800_000_000_123));
            assert_eq!(imported.cookies[0].value, jar.keys[0].secret);
        }
    }

    #[test]
    fn json_has_every_key_by_name() {
        let mut jar = Jar::default();
        jar.put(key("token", "x\"y", Some(1_000), None));
        jar.put(key("session", "s", None, Some(cookie("sid", "a.example", "/"))));
        let out = to_json(&jar).expect("exports");
        let value: Value = serde_json::from_slice(out.expose()).expect("parses");
        assert_eq!(value["token"]["value"], "x\"y");
        assert_eq!(value["token"]["expires"], "1970-01-01T00:00:01.000Z");
        assert_eq!(value["token"]["cookie"], Value::Null);
        assert_eq!(value["session"]["cookie"]["name"], "sid");
    }

    /// Reads what POSIX says of quotes: between single quotes everything means itself, and a
    /// backslash outside of them quotes what follows.
    fn shell_reads(text: &str) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        let mut letters = text.chars();
        loop {
            let name: String = letters.by_ref().take_while(|c| *c != '=').collect();
            if name.is_empty() {
                return variables;
            }
            let (mut value, mut quoted) = (String::new(), false);
            loop {
                match letters.next() {
                    Some('\'') => quoted = !quoted,
                    Some('\\') if !quoted => value.extend(letters.next()),
                    Some('\n') | None if !quoted => break,
                    Some(c) => {
                        assert!(quoted, "{c:?} stands outside of quotes");
                        value.push(c);
                    }
                    None => panic!("a quote is never closed"),
                }
            }
            variables.push((name, value));
        }
    }

    #[test]
    fn a_shell_reads_back_what_env_wrote() {
        let mut values = VALUES.to_vec();
        values.extend(["a\nb", "'", "''", "'; id; '", "\\'", "a\tb\r"]);
        let mut jar = Jar::default();
        for (index, value) in values.iter().enumerate() {
            jar.put(key(&format!("key-{index}"), value, None, None));
        }
        let read = shell_reads(&text(&to_env(&jar).expect("exports")));
        let wanted: Vec<_> = values
            .iter()
            .enumerate()
            .map(|(index, value)| (format!("KEY_{index}"), (*value).to_owned()))
            .collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn variables_are_names_a_shell_accepts() {
        for (name, wanted) in [
            ("refresh_token", "REFRESH_TOKEN"),
            ("api-key", "API_KEY"),
            ("2fa", "_2FA"),
            ("cookie:a@b.example/", "COOKIE_A_B_EXAMPLE_"),
        ] {
            assert_eq!(variable(name), wanted);
        }
    }

    #[test]
    fn a_header_holds_what_a_browser_would_send() {
        let domain = |mut c: CookieAttributes| {
            c.host_only = false;
            c
        };
        let open = |mut c: CookieAttributes| {
            c.secure = false;
            c
        };
        let mut jar = Jar::default();
        jar.put(key("a", "1", None, Some(open(cookie("a", "app.example.com", "/")))));
        jar.put(key("b", "2", None, Some(cookie("b", "app.example.com", "/"))));
        jar.put(key("c", "3", None, Some(open(cookie("c", "app.example.com", "/api")))));
        jar.put(key("d", "4", None, Some(open(domain(cookie("d", "example.com", "/"))))));
        jar.put(key("e", "5", None, Some(open(cookie("e", "example.com", "/")))));
        jar.put(key("f", "6", Some(NOW), Some(open(cookie("f", "app.example.com", "/")))));
        jar.put(key("t", "7", None, None));
        for (url, wanted) in [
            ("https://app.example.com/", Some("Cookie: a=1; b=2; d=4")),
            ("http://app.example.com:8080/x", Some("Cookie: a=1; d=4")),
            ("https://APP.example.com/api/me", Some("Cookie: c=3; a=1; b=2; d=4")),
            ("https://app.example.com/apiary", Some("Cookie: a=1; b=2; d=4")),
            ("https://example.com/", Some("Cookie: d=4; e=5")),
            ("https://notexample.com/", None),
        ] {
            let header = to_cookie_header(&jar, url, NOW);
            assert_eq!(header.as_ref().ok().map(text).as_deref(), wanted, "{url}");
        }
        let said = to_cookie_header(&jar, "https://x.example/", NOW).expect_err("none").to_string();
        assert_eq!(
            said,
            "no cookie of the credential is sent to \"x.example\"; it has cookies for \"app.example.com\", \"example.com\""
        );
        assert!(matches!(to_cookie_header(&jar, "x.example", NOW), Err(ExportError::Url { .. })));
    }

    #[test]
    fn what_a_form_can_not_express_is_refused_without_the_value() {
        type Export = fn(&Jar) -> Result<Secret, ExportError>;
        let header: Export = |jar| to_cookie_header(jar, "https://a.example/", NOW);
        let tab = format!("{VALUE}\t");
        let line = format!("{VALUE}\n");
        let semicolon = format!("{VALUE}; x=y");
        let zero = format!("{VALUE}\0");
        let one = |value: &[u8]| Jar {
            keys: vec![Key {
                secret: Secret::new(value),
                ..key("session", "", None, Some(cookie("sid", "a.example", "/")))
            }],
        };
        let tokens = Jar { keys: vec![key("token", VALUE, None, None)] };
        let same = Jar { keys: vec![key("a-b", VALUE, None, None), key("a_b", VALUE, None, None)] };
        let binary = [VALUE.as_bytes(), &[0xff]].concat();
        let table: [(Export, Jar, &str); 12] = [
            (
                to_netscape,
                one(tab.as_bytes()),
                "key \"session\" holds a tab or line break, which cookies.txt can't express; hint: export as JSON",
            ),
            (to_netscape, one(line.as_bytes()), "cookies.txt can't express"),
            (header, one(line.as_bytes()), "a header can't express"),
            (header, one(semicolon.as_bytes()), "a header can't express"),
            (to_env, one(zero.as_bytes()), "a shell variable can't express"),
            (to_env, same, "keys \"a-b\" and \"a_b\" would both be the variable A_B"),
            (
                to_netscape,
                tokens.clone(),
                "the credential has no cookies; hint: export its tokens as env or JSON",
            ),
            (to_storage_state, tokens.clone(), "has no cookies"),
            (header, tokens, "has no cookies"),
            (to_json, one(&binary), "key \"session\" is not UTF-8 text"),
            (to_env, one(&binary), "is not UTF-8 text"),
            (to_netscape, one(&binary), "is not UTF-8 text"),
        ];
        for (export, jar, wanted) in table {
            let error = export(&jar).expect_err(wanted);
            let said = error.to_string();
            assert!(said.contains(wanted), "{said}\n  lacks {wanted}");
            assert!(!format!("{said} {error:?}").contains(VALUE), "{said}");
        }
    }

    #[test]
    fn an_export_takes_the_room_it_needs_at_once() {
        let mut jar = jar(VALUES);
        jar.put(key("hard", &"\u{1}\"'".repeat(2_000), None, Some(cookie("h", "a.example", "/"))));
        for export in [to_netscape, to_storage_state, to_browser_json, to_json, to_env] {
            assert!(export(&jar).expect("exports").expose().len() <= room(&jar));
        }
    }
}
