//! Reads fixtures: one call of a provider, what it is expected to ask, and what the service
//! answers. Strict, so that a typo is not a test that checks nothing; pure but for `read_folder`.
//! It knows no manifest: whether names fit the provider is judged by whoever runs the call.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::credential::{Millis, Secret};
use crate::protocol::HttpError;
use crate::report::parse_iso8601;

/// 2026-01-01T00:00:00Z, so that a fixture says the same on every day.
pub const NOW: Millis = 1_767_225_600_000;

/// A fixture is written by hand, or holds one answer of a service.
const FILE_BYTES: u64 = 4 << 20;

/// More than any provider has; a folder with as many is another folder.
const FILES: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    #[error("{path} can't be read")]
    Io {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{path} holds no fixture; hint: a fixture is a .toml file, `docs/writing-a-provider.md` has the format"
    )]
    Empty { path: String },
    #[error("{path} has {found} bytes, at most {FILE_BYTES} are allowed")]
    TooLarge { path: String, found: u64 },
    #[error("{path} holds {found} fixtures, at most {FILES} are allowed; hint: is it the right folder?")]
    TooMany { path: String, found: usize },
    #[error("{file}, line {line}, column {column}: {message}")]
    Toml { file: String, line: usize, column: usize, message: String },
    #[error("{file}: `{place}` {problem}")]
    Value { file: String, place: String, problem: String },
}

/// One call, as it should go.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The file's name without its ending.
    pub name: String,
    pub about: Option<String>,
    /// Where the service documents its answer, or when it was recorded.
    pub source: Option<String>,
    pub call: Which,
    /// Shows how the service answers a secret that it never issued.
    pub made_up: bool,
    pub now: Millis,
    pub settings: Vec<(String, String)>,
    pub keys: Vec<Given>,
    pub expect: Expect,
    pub exchanges: Vec<Exchange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Validate,
    /// None: the first that the provider has.
    Rotate(Option<String>),
}

/// A key that the credential has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub name: String,
    /// None: made up anew for each run.
    pub value: Option<Secret>,
    pub expires: Option<Millis>,
}

/// What the provider should say. What isn't stated may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expect {
    /// `valid`, `rotated` and so on.
    pub says: String,
    pub identity: Option<String>,
    pub expires: Option<Millis>,
    pub captured: Option<Vec<String>>,
    pub message: Option<String>,
}

/// A request and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub request: Request,
    pub answer: Answer,
}

/// A request as it is written: references in place of secrets. Headers that aren't listed may be
/// anything without a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Request {
    pub method: String,
    pub url: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub cookies: bool,
    pub body: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Comes { status: u16, headers: Vec<(String, String)>, body: Bytes },
    Fails(Failure),
}

/// Why no answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Dns,
    Connect,
    Tls,
    Timeout,
    Protocol,
}

/// What a verdict of `validate` and an outcome of `rotate` may be.
pub const VERDICTS: [&str; 4] = ["valid", "invalid", "unknown", "needs-human"];
pub const OUTCOMES: [&str; 5] = ["rotated", "unchanged", "invalid", "unknown", "needs-human"];

impl Failure {
    const ALL: [(&'static str, Self); 5] = [
        ("dns", Self::Dns),
        ("connect", Self::Connect),
        ("tls", Self::Tls),
        ("timeout", Self::Timeout),
        ("protocol", Self::Protocol),
    ];

    /// As a fixture writes it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("protocol", |(word, _)| word)
    }

    /// None: what happened to it can't happen to a fixture's answer.
    pub const fn of(error: &HttpError) -> Option<Self> {
        match error {
            HttpError::Dns(_) => Some(Self::Dns),
            HttpError::Connect(_) => Some(Self::Connect),
            HttpError::Tls(_) => Some(Self::Tls),
            HttpError::Timeout => Some(Self::Timeout),
            HttpError::Protocol(_) => Some(Self::Protocol),
            _ => None,
        }
    }

    pub fn error(self) -> HttpError {
        match self {
            Self::Dns => HttpError::Dns("no such name".into()),
            Self::Connect => HttpError::Connect("connection refused".into()),
            Self::Tls => HttpError::Tls("the certificate is not acceptable".into()),
            Self::Timeout => HttpError::Timeout,
            Self::Protocol => HttpError::Protocol("the answer is no HTTP".into()),
        }
    }
}

impl Answer {
    /// As it comes to the egress.
    ///
    /// # Errors
    /// Where none comes.
    pub fn arrive(&self) -> Result<http::Response<Bytes>, HttpError> {
        let (status, headers, body) = match self {
            Self::Comes { status, headers, body } => (*status, headers, body),
            Self::Fails(failure) => return Err(failure.error()),
        };
        let mut answer = http::Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(name, value);
        }
        // Both were read as what they must be.
        answer.body(body.clone()).map_err(|error| HttpError::Other(error.to_string()))
    }
}

impl Request {
    /// What another request has that this one, which was expected, has not: one line each.
    pub fn difference(&self, made: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut differ = |what: &str, expected: &str, found: &str| {
            if expected != found {
                lines.push(format!("{what} is `{found}`, the fixture has `{expected}`"));
            }
        };
        differ("the method", &self.method, &made.method);
        differ("the URL", &self.url, &made.url);
        let with = |cookies: bool| if cookies { "with the credential's cookies" } else { "without cookies" };
        differ("it", with(self.cookies), with(made.cookies));
        let of = |request: &Self, name: &str| {
            let found = request.headers.iter().find(|(known, _)| known == name);
            found.map_or_else(|| "(not there)".to_owned(), |(_, value)| value.clone())
        };
        for (name, value) in &self.headers {
            differ(&format!("the header `{name}`"), value, &of(made, name));
        }
        for (name, value) in made.headers.iter().filter(|(_, value)| holds_reference(value)) {
            if !self.headers.iter().any(|(known, _)| known == name) {
                differ(&format!("the header `{name}`, which has a secret,"), "(not there)", value);
            }
        }
        let body = |request: &Self| request.body.clone().unwrap_or_else(|| "(none)".to_owned());
        differ("the body", &body(self), &body(made));
        lines
    }
}

/// Whether a rendered value shows a secret's place.
fn holds_reference(value: &str) -> bool {
    value.contains('{')
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)?;
        if self.cookies {
            f.write_str(" with the credential's cookies")?;
        }
        for (name, value) in &self.headers {
            write!(f, "\n    {name}: {value}")?;
        }
        match &self.body {
            Some(body) => write!(f, "\n    {body}"),
            None => Ok(()),
        }
    }
}

/// A fixture as it is written down.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub call: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, WrittenKey>,
    pub expect: WrittenExpect,
    #[serde(default, rename = "exchange", skip_serializing_if = "Vec::is_empty")]
    pub exchanges: Vec<WrittenExchange>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenExpect {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenExchange {
    pub request: WrittenRequest,
    pub answer: WrittenAnswer,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRequest {
    pub method: String,
    pub url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookies: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenAnswer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fails: Option<String>,
}

/// Every fixture of a folder, by name; or why some can't be read, all of them at once.
///
/// # Errors
/// One for each file that is no fixture.
pub fn read_folder(folder: &Path) -> Result<Vec<Fixture>, Vec<FixtureError>> {
    let path = folder.display().to_string();
    let io = |path: &Path, source| FixtureError::Io { path: path.display().to_string(), source };
    let entries = fs::read_dir(folder).map_err(|source| vec![io(folder, source)])?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    match files.len() {
        0 => return Err(vec![FixtureError::Empty { path }]),
        found if found > FILES => return Err(vec![FixtureError::TooMany { path, found }]),
        _ => {}
    }
    let (mut fixtures, mut errors) = (Vec::new(), Vec::new());
    for file in files {
        let read = || {
            let found = fs::metadata(&file).map_err(|source| io(&file, source))?.len();
            if found > FILE_BYTES {
                return Err(FixtureError::TooLarge { path: file.display().to_string(), found });
            }
            let text = fs::read_to_string(&file).map_err(|source| io(&file, source))?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            read(&name, &text)
        };
        match read() {
            Ok(fixture) => fixtures.push(fixture),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(fixtures) } else { Err(errors) }
}

/// Reads the fixture of a file of that name.
///
/// # Errors
/// What is wrong in it, and where.
pub fn read(file: &str, text: &str) -> Result<Fixture, FixtureError> {
    let written: Written = toml::from_str(text).map_err(|error| {
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        FixtureError::Toml { file: file.to_owned(), line, column, message: with_suggestion(error.message()) }
    })?;
    Reader { file }.fixture(written)
}

/// Writes a fixture down, so that `read` gives it back.
///
/// # Errors
/// Where it can't be written as TOML, which none of ours is.
pub fn write(written: &Written) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(written)
}

/// Line and column, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// serde says what was found and what is known, in backticks; the nearest is named.
fn with_suggestion(message: &str) -> String {
    let line = message.lines().next().unwrap_or(message);
    let Some(rest) = line.strip_prefix("unknown field `") else { return line.to_owned() };
    let mut ticked = rest.split('`').step_by(2);
    let found = ticked.next().unwrap_or_default();
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    format!(
        "unknown field `{found}`; allowed: {}{}",
        known.join(", "),
        did_you_mean(found, known.iter().copied())
    )
}

/// `; hint: did you mean …`, where something is near enough.
pub fn did_you_mean<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let near = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(found.len()) / 3)
        .min();
    near.map_or_else(String::new, |(_, name)| format!("; hint: did you mean `{name}`?"))
}

struct Reader<'f> {
    file: &'f str,
}

impl Reader<'_> {
    fn wrong(&self, place: impl Into<String>, problem: impl Into<String>) -> FixtureError {
        FixtureError::Value { file: self.file.to_owned(), place: place.into(), problem: problem.into() }
    }

    fn fixture(&self, written: Written) -> Result<Fixture, FixtureError> {
        let name = self.file.strip_suffix(".toml").unwrap_or(self.file).to_owned();
        let call = match (written.call.as_str(), written.method) {
            ("validate", None) => Which::Validate,
            ("validate", Some(_)) => {
                return Err(self.wrong("method", "names a way to rotate, and `call` is `validate`"));
            }
            ("rotate", method) => Which::Rotate(method),
            (other, _) => {
                let hint = did_you_mean(other, ["validate", "rotate"]);
                return Err(self.wrong("call", format!("is `{other}`; allowed: validate, rotate{hint}")));
            }
        };
        if written.made_up && call != Which::Validate {
            return Err(self.wrong(
                "made_up",
                "is for `call = \"validate\"`: a made-up secret is asked about, never rotated",
            ));
        }
        let now = match &written.now {
            Some(value) => self.moment("now", value)?,
            None => NOW,
        };
        let settings = written.settings.iter().map(|(name, value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Boolean(word) => word.to_string(),
                other => {
                    let place = format!("settings.{name}");
                    return Err(self.wrong(
                        place,
                        format!("is {}; allowed: a string, a number, true or false", kind(other)),
                    ));
                }
            };
            Ok((name.clone(), text))
        });
        let settings = settings.collect::<Result<_, _>>()?;
        let keys = written.keys.into_iter().map(|(name, key)| {
            let expires = match &key.expires {
                Some(value) => Some(self.moment(&format!("keys.{name}.expires"), value)?),
                None => None,
            };
            if key.value.as_deref() == Some("") {
                return Err(self.wrong(
                    format!("keys.{name}.value"),
                    "is empty; hint: leave it out, and one is made up",
                ));
            }
            Ok(Given { name, value: key.value.map(Secret::new), expires })
        });
        let keys = keys.collect::<Result<_, _>>()?;
        let expect = self.expect(&call, written.expect)?;
        let exchanges = (written.exchanges.into_iter().enumerate())
            .map(|(index, exchange)| self.exchange(index + 1, exchange))
            .collect::<Result<_, _>>()?;
        let Written { about, source, made_up, .. } = written;
        Ok(Fixture { name, about, source, call, made_up, now, settings, keys, expect, exchanges })
    }

    fn expect(&self, call: &Which, written: WrittenExpect) -> Result<Expect, FixtureError> {
        let (place, other, says, stray, allowed): (_, _, _, _, &[&str]) = match call {
            Which::Validate => ("verdict", "outcome", written.verdict, written.outcome, &VERDICTS),
            Which::Rotate(_) => ("outcome", "verdict", written.outcome, written.verdict, &OUTCOMES),
        };
        let of = if *call == Which::Validate { "validate" } else { "rotate" };
        let place = format!("expect.{place}");
        if stray.is_some() {
            return Err(self.wrong(
                format!("expect.{other}"),
                format!("is not what `{of}` gives; hint: write `{place}`"),
            ));
        }
        let Some(says) = says else {
            return Err(self.wrong(place, format!("is missing; allowed: {}", allowed.join(", "))));
        };
        if !allowed.contains(&says.as_str()) {
            let hint = did_you_mean(&says, allowed.iter().copied());
            return Err(self.wrong(place, format!("is `{says}`; allowed: {}{hint}", allowed.join(", "))));
        }
        let expires = match &written.expires {
            Some(value) => Some(self.moment("expect.expires", value)?),
            None => None,
        };
        let WrittenExpect { identity, captured, message, .. } = written;
        Ok(Expect { says, identity, expires, captured, message })
    }

    fn exchange(&self, number: usize, written: WrittenExchange) -> Result<Exchange, FixtureError> {
        let at = |place: &str| format!("exchange[{number}].{place}");
        let WrittenRequest { method, url, headers, cookies, body } = written.request;
        if Method::from_bytes(method.as_bytes()).is_err() || method.is_empty() {
            return Err(self
                .wrong(at("request.method"), format!("is `{method}`; allowed: an HTTP method such as GET")));
        }
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(
                self.wrong(at("request.url"), format!("is `{url}`; allowed: a whole URL with https://"))
            );
        }
        let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let request = Request { method, url, headers, cookies, body };
        let answer = match (written.answer.status, written.answer.fails) {
            (Some(_), Some(_)) => {
                return Err(
                    self.wrong(at("answer.fails"), "stands beside `status`; hint: an answer comes or fails")
                );
            }
            (None, None) => {
                return Err(self.wrong(
                    at("answer.status"),
                    "is missing; hint: write a status, or `fails = \"timeout\"`",
                ));
            }
            (None, Some(fails)) => {
                if written.answer.body.is_some() || !written.answer.headers.is_empty() {
                    return Err(self.wrong(
                        at("answer.fails"),
                        "stands beside headers or a body; hint: what fails has neither",
                    ));
                }
                match Failure::ALL.iter().find(|(name, _)| *name == fails) {
                    Some((_, failure)) => Answer::Fails(*failure),
                    None => {
                        let known = Failure::ALL.map(|(name, _)| name);
                        let hint = did_you_mean(&fails, known);
                        let problem = format!("is `{fails}`; allowed: {}{hint}", known.join(", "));
                        return Err(self.wrong(at("answer.fails"), problem));
                    }
                }
            }
            (Some(status), None) => {
                if !(200..=599).contains(&status) {
                    return Err(self.wrong(at("answer.status"), format!("is {status}; allowed: 200 to 599")));
                }
                let mut headers = Vec::new();
                for (name, value) in &written.answer.headers {
                    headers.extend(self.header(&at("answer.headers"), name, value)?);
                }
                Answer::Comes { status, headers, body: Bytes::from(written.answer.body.unwrap_or_default()) }
            }
        };
        Ok(Exchange { request, answer })
    }

    fn header(&self, place: &str, name: &str, value: &Value) -> Result<Vec<(String, String)>, FixtureError> {
        let place = format!("{place}.{name}");
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(self.wrong(place, "is no header's name"));
        }
        let one = |value: &Value| match value {
            Value::String(text) if HeaderValue::from_str(text).is_ok() => {
                Ok((name.to_ascii_lowercase(), text.clone()))
            }
            Value::String(_) => Err(self.wrong(&place, "holds what no header may")),
            Value::Integer(number) => Ok((name.to_ascii_lowercase(), number.to_string())),
            other => {
                Err(self.wrong(&place, format!("is {}; allowed: a string, or a list of them", kind(other))))
            }
        };
        match value {
            Value::Array(values) => values.iter().map(one).collect(),
            value => Ok(vec![one(value)?]),
        }
    }

    fn moment(&self, place: &str, value: &Value) -> Result<Millis, FixtureError> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Datetime(moment) => moment.to_string(),
            other => kind(other).to_owned(),
        };
        parse_iso8601(&text).ok_or_else(|| {
            self.wrong(place, format!("is `{text}`; allowed: a moment such as \"2026-01-01T00:00:00Z\""))
        })
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a moment",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
about = "an active token"
source = "https://docs.example/api"
call = "validate"
[settings]
base_url = "https://git.example"
depth = 3
[keys]
token = { expires = 2026-01-02T00:00:00Z }
[expect]
verdict = "valid"
identity = "42"
expires = "2026-02-01T00:00:00Z"
[[exchange]]
[exchange.request]
method = "GET"
url = "https://git.example/self"
headers = { Private-Token = "{token}" }
[exchange.answer]
status = 200
headers = { content-type = "application/json", set-cookie = ["a=1", "b=2"] }
body = '{"id":42}'
"#;

    fn refused(text: &str) -> String {
        read("alive.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_fixture_is_read() {
        let fixture = read("alive.toml", WHOLE).unwrap();
        assert_eq!((fixture.name.as_str(), fixture.now, &fixture.call), ("alive", NOW, &Which::Validate));
        assert_eq!(
            fixture.settings,
            [("base_url".into(), "https://git.example".into()), ("depth".into(), "3".into())]
        );
        assert_eq!(fixture.keys[0].expires, Some(NOW + 86_400_000));
        assert_eq!(fixture.expect.expires, Some(NOW + 31 * 86_400_000));
        let exchange = &fixture.exchanges[0];
        assert_eq!(exchange.request.headers, [("private-token".to_owned(), "{token}".to_owned())]);
        let answer = exchange.answer.arrive().unwrap();
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.body().as_ref(), br#"{"id":42}"#);
    }

    #[test]
    fn what_is_written_down_is_read_back() {
        let written: Written = toml::from_str(WHOLE).unwrap();
        let again: Written = toml::from_str(&write(&written).unwrap()).unwrap();
        assert_eq!(again, written);
    }

    #[test]
    fn an_unknown_field_names_its_place_and_the_nearest_known_one() {
        let said = refused(&WHOLE.replace("verdict =", "verdit ="));
        assert!(said.starts_with("alive.toml, line 11, column 1: unknown field `verdit`"), "{said}");
        assert!(said.ends_with("hint: did you mean `verdict`?"), "{said}");
        let said = refused(&WHOLE.replace("[exchange.answer]\nstatus", "[exchange.answer]\nstatsu"));
        assert!(said.contains("line 20") && said.ends_with("did you mean `status`?"), "{said}");
        let said = refused(&format!("colour = 1\n{WHOLE}"));
        assert!(said.contains("unknown field `colour`; allowed: ") && !said.contains("hint"), "{said}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place_and_what_is_allowed() {
        for (from, to, place, says) in [
            ("call = \"validate\"", "call = \"valdate\"", "`call`", "did you mean `validate`?"),
            ("call = \"validate\"", "call = \"rotate\"", "`expect.verdict`", "write `expect.outcome`"),
            (
                "call = \"validate\"",
                "call = \"validate\"\nmethod = \"x\"",
                "`method`",
                "`call` is `validate`",
            ),
            ("verdict = \"valid\"", "", "`expect.verdict`", "is missing; allowed: valid"),
            ("verdict = \"valid\"", "verdict = \"vaild\"", "`expect.verdict`", "did you mean `valid`?"),
            ("status = 200", "", "`exchange[1].answer.status`", "is missing"),
            ("status = 200", "status = 42", "`exchange[1].answer.status`", "allowed: 200 to 599"),
            ("status = 200", "status = 200\nfails = \"dns\"", "`exchange[1].answer.fails`", "comes or fails"),
            ("url = \"https://git", "url = \"git", "`exchange[1].request.url`", "a whole URL"),
            ("method = \"GET\"", "method = \"G T\"", "`exchange[1].request.method`", "an HTTP method"),
            ("\"2026-02-01T00:00:00Z\"", "\"tomorrow\"", "`expect.expires`", "is `tomorrow`"),
            ("depth = 3", "depth = [3]", "`settings.depth`", "is a list"),
            ("\"application/json\"", "true", "`exchange[1].answer.headers.content-type`", "is true or false"),
        ] {
            assert!(WHOLE.contains(from), "{from}");
            let said = refused(&WHOLE.replace(from, to));
            assert!(
                said.starts_with("alive.toml: ") && said.contains(place) && said.contains(says),
                "{said}"
            );
        }
        let fails = WHOLE.split("[exchange.answer]").next().unwrap().to_owned()
            + "[exchange.answer]\nfails = \"timout\"";
        assert!(refused(&fails).ends_with("did you mean `timeout`?"), "{}", refused(&fails));
    }

    #[test]
    fn a_request_that_differs_is_told_by_what_differs() {
        let fixture = read("alive.toml", WHOLE).unwrap();
        let expected = &fixture.exchanges[0].request;
        assert_eq!(expected.difference(expected), [] as [String; 0]);
        let mut made = expected.clone();
        made.headers.push(("accept".into(), "application/json".into()));
        assert_eq!(
            expected.difference(&made),
            [] as [String; 0],
            "a header without a secret may be anything"
        );
        made.headers.push(("x-also".into(), "{token}".into()));
        made.url.push_str("?a=1");
        made.cookies = true;
        let said = expected.difference(&made).join("\n");
        assert!(said.contains("the URL is `https://git.example/self?a=1`"), "{said}");
        assert!(
            said.contains("`x-also`, which has a secret,") && said.contains("with the credential's cookies"),
            "{said}"
        );
    }

    #[test]
    fn a_folder_without_fixtures_says_so_and_a_broken_file_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let said = read_folder(folder.path()).unwrap_err()[0].to_string();
        assert!(said.contains("holds no fixture"), "{said}");
        fs::write(folder.path().join("b.toml"), "call = ").unwrap();
        fs::write(folder.path().join("a.toml"), WHOLE.replace("GET", "")).unwrap();
        fs::write(folder.path().join("c.toml"), WHOLE).unwrap();
        let errors = read_folder(folder.path()).unwrap_err();
        let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("a.toml") && said[1].starts_with("b.toml, line 1"), "{said:?}");
    }
}
