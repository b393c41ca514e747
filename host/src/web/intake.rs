//! What a message of an external worker must look like: bytes, a service and a clock in, a
//! report or the field and the reason out. Pure.
//!
//! A value of `cookieKeys` leaves here as a fingerprint and in no other form: where it stands in
//! a text that is kept it is taken out, and where it stands in a name the report is refused. No
//! reason quotes what was sent, but for the name of a field that there isn't.

use std::cell::{Cell, RefCell};
use std::fmt;

use axum::http::StatusCode;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::answer::Refused;
use crate::credential::{ID_RULE, Millis, Secret, is_id};
use crate::db::external::Announcement;
use crate::egress::redact::{MARKER, Redactor};
use crate::external::DEFAULT_INTERVAL_SECONDS;
use crate::limits;
use crate::report::{Report, Status, iso8601, parse_iso8601};

/// Names of profiles, workers and versions: as long as a credential's id may be.
const NAME_BYTES: usize = 128;
/// What browsers and servers agree on for URLs.
const URL_BYTES: usize = 2_048;
/// The longest that a worker may be silent by its own word: a month.
const LONGEST_INTERVAL: u32 = 31 * 86_400;
/// Of the name of a field that there isn't, what an answer repeats.
const SHOWN_NAME: usize = 64;

const REPORT_FIELDS: [&str; 11] = [
    "cookieId",
    "profileId",
    "service",
    "validateUrl",
    "cookieKeys",
    "status",
    "message",
    "startedAt",
    "finishedAt",
    "attemptNumber",
    "meta",
];

const ANNOUNCEMENT_FIELDS: [&str; 5] = ["pid", "workerId", "service", "version", "intervalSeconds"];

/// A report that is fit to be kept.
#[derive(Debug)]
pub struct Arrived {
    pub report: Report,
    /// `meta.workerId`.
    pub worker_id: Option<String>,
}

/// # Errors
/// The first thing that is wrong, with its field.
pub fn report(
    body: &[u8],
    service: &str,
    token: &Secret,
    now: Millis,
    fingerprint: impl Fn(&Secret) -> String,
) -> Result<Arrived, Refused> {
    let mut fields = Fields::read(body, &REPORT_FIELDS)?;
    let values = cookie_keys(fields.optional("cookieKeys"))?;
    fields.hidden.add(token.expose());
    fields.hidden.add_all(values.iter().map(|(_, value)| value.expose()));
    fields.only_known("; hint: what is extra belongs into meta")?;

    let cookie_id = fields.text("cookieId", NAME_BYTES)?;
    if !is_id(&cookie_id) {
        return Err(wrong("cookieId", format!("not allowed as an id; allowed: {ID_RULE}")));
    }
    let profile_id = fields.optional_text("profileId", NAME_BYTES)?;
    let own = fields.own_service(service)?;
    let validate_url = fields.text("validateUrl", URL_BYTES)?;
    check_url(&validate_url)?;
    let status = fields.text("status", NAME_BYTES)?;
    let status = Status::parse(&status)
        .ok_or_else(|| wrong("status", "allowed: success, failed, validation_failed, unreachable"))?;
    let message = match fields.optional("message") {
        None => None,
        Some(Value::String(text)) => {
            bounded("message", &text, limits::EXTERNAL_MESSAGE_BYTES)?;
            Some(fields.redacted(&one_line(&text)))
        }
        Some(other) => return Err(wrong_type("message", &other, "a string or null")),
    };
    let started = moment("startedAt", fields.text("startedAt", NAME_BYTES)?)?;
    let finished = moment("finishedAt", fields.text("finishedAt", NAME_BYTES)?)?;
    let latest = now + u64::try_from(limits::EXTERNAL_CLOCK_SKEW.as_millis()).unwrap_or(0);
    if finished > latest {
        return Err(wrong(
            "finishedAt",
            "in the future; hint: look at this machine's clock and at the worker's",
        ));
    }
    if finished < started {
        return Err(wrong("finishedAt", "before startedAt"));
    }
    let attempt_number = fields.number("attemptNumber", 1, u32::MAX)?;
    let meta = match fields.optional("meta") {
        None => Map::new(),
        Some(Value::Object(meta)) => meta,
        Some(other) => return Err(wrong_type("meta", &other, "an object")),
    };
    let length = serde_json::to_string(&meta).map_or(usize::MAX, |text| text.len());
    if length > limits::EXTERNAL_META_BYTES {
        let most = limits::EXTERNAL_META_BYTES;
        return Err(wrong("meta", format!("{length} bytes long as JSON; allowed are {most}")));
    }
    let worker_id = meta.get("workerId").and_then(Value::as_str).map(str::to_owned);

    for (field, text) in [("cookieId", Some(&cookie_id)), ("profileId", profile_id.as_ref())] {
        fields.no_value_in(field, text.map(String::as_str))?;
    }
    for (name, _) in &values {
        fields.no_value_in("cookieKeys", Some(name))?;
    }
    Ok(Arrived {
        worker_id,
        report: Report {
            cookie_id,
            profile_id,
            service: own,
            validate_url: fields.redacted(&validate_url),
            cookie_keys: values.into_iter().map(|(name, value)| (name, fingerprint(&value))).collect(),
            status,
            message,
            started_at: iso8601(started),
            finished_at: iso8601(finished),
            attempt_number,
            meta: fields.redacted_map(meta),
        },
    })
}

/// The token's id is for the caller to put in.
///
/// # Errors
/// The first thing that is wrong, with its field.
pub fn announcement(body: &[u8], service: &str, token: &Secret) -> Result<Announcement, Refused> {
    let mut fields = Fields::read(body, &ANNOUNCEMENT_FIELDS)?;
    fields.hidden.add(token.expose());
    fields.only_known("")?;
    let worker_id = fields.text("workerId", NAME_BYTES)?;
    if worker_id.is_empty() || worker_id.contains(char::is_control) {
        return Err(wrong("workerId", "empty, or with control characters"));
    }
    fields.no_value_in("workerId", Some(&worker_id))?;
    let version = fields.optional_text("version", NAME_BYTES)?;
    fields.no_value_in("version", version.as_deref())?;
    let interval = match fields.optional("intervalSeconds") {
        None => DEFAULT_INTERVAL_SECONDS,
        Some(value) => whole_number("intervalSeconds", &value, 1, LONGEST_INTERVAL)?,
    };
    Ok(Announcement {
        token_id: String::new(),
        service: fields.own_service(service)?,
        worker_id,
        pid: fields.number("pid", 1, u32::MAX)?,
        version,
        interval_seconds: interval,
    })
}

fn refused(code: &'static str, field: &str, message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, code, message).at(field)
}

fn wrong(field: &str, message: impl Into<String>) -> Refused {
    refused("bad-value", field, message)
}

fn wrong_type(field: &str, found: &Value, allowed: &str) -> Refused {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    refused("wrong-type", field, format!("{found}; allowed is {allowed}"))
}

/// The fields of one message, taken out one by one.
struct Fields {
    map: Map<String, Value>,
    known: &'static [&'static str],
    /// What may appear in nothing that is kept or answered.
    hidden: Redactor,
}

impl Fields {
    fn read(body: &[u8], known: &'static [&'static str]) -> Result<Self, Refused> {
        Ok(Self { map: parse(body, known)?, known, hidden: Redactor::default() })
    }

    fn only_known(&self, hint: &str) -> Result<(), Refused> {
        let Some(name) = self.map.keys().find(|name| !self.known.contains(&name.as_str())) else {
            return Ok(());
        };
        let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-'], "");
        let meant = self.known.iter().find(|known| plain(known) == plain(name));
        let message = match meant {
            Some(meant) => format!("no such field; hint: it is spelled `{meant}`"),
            None => format!("no such field; known: {}{hint}", self.known.join(", ")),
        };
        let shown: String = one_line(name).chars().take(SHOWN_NAME).collect();
        Err(refused("unknown-field", &self.redacted(&shown), message))
    }

    /// Null is as good as nothing.
    fn optional(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    fn required(&mut self, name: &str) -> Result<Value, Refused> {
        self.map.remove(name).ok_or_else(|| refused("missing-field", name, "missing"))
    }

    fn text(&mut self, name: &str, most: usize) -> Result<String, Refused> {
        match self.required(name)? {
            Value::String(text) => bounded(name, &text, most).map(|()| text),
            other => Err(wrong_type(name, &other, "a string")),
        }
    }

    /// A name that is shown to people: without control characters.
    fn optional_text(&mut self, name: &str, most: usize) -> Result<Option<String>, Refused> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::String(text)) => {
                bounded(name, &text, most)?;
                if text.is_empty() || text.contains(char::is_control) {
                    return Err(wrong(
                        name,
                        "empty, or with control characters; hint: null where there is none",
                    ));
                }
                Ok(Some(text))
            }
            Some(other) => Err(wrong_type(name, &other, "a string or null")),
        }
    }

    fn number(&mut self, name: &str, least: u32, most: u32) -> Result<u32, Refused> {
        let value = self.required(name)?;
        whole_number(name, &value, least, most)
    }

    fn own_service(&mut self, own: &str) -> Result<String, Refused> {
        if self.text("service", NAME_BYTES)? == own {
            return Ok(own.to_owned());
        }
        let message =
            format!("the token is for `{own}`; hint: a worker needs a token of its own for each service");
        Err(Refused::new(StatusCode::FORBIDDEN, "other-service", message).at("service"))
    }

    fn no_value_in(&self, field: &str, text: Option<&str>) -> Result<(), Refused> {
        if text.is_some_and(|text| self.hidden.hides(text)) {
            let message = "holds a value of cookieKeys or the token, and those are kept nowhere; hint: use another name, or leave that key out of cookieKeys";
            return Err(wrong(field, message));
        }
        Ok(())
    }

    /// What can't be searched is not kept.
    fn redacted(&self, text: &str) -> String {
        match self.hidden.redact(text.as_bytes()) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => MARKER.to_owned(),
        }
    }

    fn redacted_map(&self, map: Map<String, Value>) -> Map<String, Value> {
        map.into_iter().map(|(name, value)| (self.redacted(&name), self.redacted_value(value))).collect()
    }

    fn redacted_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.redacted(&text)),
            // A value may be all digits.
            Value::Number(number) if self.hidden.hides(&number.to_string()) => MARKER.into(),
            Value::Array(list) => list.into_iter().map(|value| self.redacted_value(value)).collect(),
            Value::Object(map) => Value::Object(self.redacted_map(map)),
            other => other,
        }
    }
}

fn bounded(field: &str, text: &str, most: usize) -> Result<(), Refused> {
    if text.len() > most {
        return Err(wrong(field, format!("{} bytes long; allowed are {most}", text.len())));
    }
    Ok(())
}

fn whole_number(field: &str, value: &Value, least: u32, most: u32) -> Result<u32, Refused> {
    let Value::Number(number) = value else { return Err(wrong_type(field, value, "a whole number")) };
    let found = number.as_u64().and_then(|number| u32::try_from(number).ok());
    found
        .filter(|found| (least..=most).contains(found))
        .ok_or_else(|| wrong(field, format!("allowed are whole numbers from {least} to {most}")))
}

fn moment(field: &str, text: String) -> Result<Millis, Refused> {
    parse_iso8601(&text).ok_or_else(|| {
        wrong(field, "not ISO 8601 with a date, a time and an offset, such as 2026-01-02T03:04:05.678Z")
    })
}

fn check_url(text: &str) -> Result<(), Refused> {
    let is_plain = |url: &url::Url| {
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
    };
    match url::Url::parse(text) {
        Ok(url) if is_plain(&url) && !text.contains(char::is_control) => Ok(()),
        _ => Err(wrong("validateUrl", "allowed is an absolute http or https URL without user and password")),
    }
}

fn cookie_keys(found: Option<Value>) -> Result<Vec<(String, Secret)>, Refused> {
    let keys = match found {
        None => return Ok(Vec::new()),
        Some(Value::Object(keys)) => keys,
        Some(other) => return Err(wrong_type("cookieKeys", &other, "an object of strings")),
    };
    if keys.len() > limits::COOKIES {
        let message = format!("{} keys; allowed are {}", keys.len(), limits::COOKIES);
        return Err(wrong("cookieKeys", message));
    }
    // Told by their place: a worker that mixes up names and values must not find them in a log.
    (1..)
        .zip(keys)
        .map(|(place, (name, value))| {
            if name.is_empty() || name.len() > NAME_BYTES || name.contains(char::is_control) {
                let message = format!(
                    "the name of key {place} is {} bytes long or has control characters; allowed are 1 to {NAME_BYTES} bytes",
                    name.len()
                );
                return Err(wrong("cookieKeys", message));
            }
            match value {
                Value::String(value) => Ok((name, Secret::new(value))),
                other => {
                    let Refused { message, .. } = wrong_type("", &other, "a string");
                    let message = format!("the value of key {place} is {message}");
                    Err(refused("wrong-type", "cookieKeys", message))
                }
            }
        })
        .collect()
}

/// For tables and logs: nothing that forges a second line or moves a cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a reader of JSON saw that isn't JSON's own fault.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    Twice,
    TooDeep,
    Zero,
}

/// Parses the body as one object, in which no name stands twice, not even deep within: of two
/// values each reader believes another.
fn parse(body: &[u8], known: &[&'static str]) -> Result<Map<String, Value>, Refused> {
    let (field, flaw) = (RefCell::new(String::new()), Cell::new(None));
    let mut reader = serde_json::Deserializer::from_slice(body);
    let top = Object { depth: 0, flaw: &flaw, field: Some(&field) };
    let read = top.deserialize(&mut reader).and_then(|map| reader.end().map(|()| map));
    let error = match read {
        Ok(map) => return Ok(map),
        Err(error) => error,
    };
    let field = field.into_inner();
    // Another name may be anything, a secret that lost its quotes too.
    let at = known.iter().find(|known| **known == field).copied().unwrap_or("body");
    let place = format!("at line {}, column {}", error.line(), error.column());
    Err(match (flaw.get(), error.classify()) {
        (Some(Flaw::Twice), _) => {
            refused("duplicate-field", at, format!("a name stands twice in one object, {place}"))
        }
        (Some(Flaw::TooDeep), _) => {
            let most = limits::EXTERNAL_META_DEPTH;
            refused("bad-value", at, format!("nested deeper than {most}, {place}"))
        }
        (Some(Flaw::Zero), _) => refused("bad-value", at, format!("a zero character, {place}")),
        (None, Category::Data) => refused("wrong-type", "body", "allowed is a JSON object"),
        (None, Category::Eof) => refused("bad-json", at, "the JSON ends too soon"),
        (None, _) => refused("bad-json", at, format!("no JSON {place}")),
    })
}

/// Any JSON value, read strictly.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    flaw: &'a Cell<Option<Flaw>>,
}

impl Strict<'_> {
    fn flawed<E: serde::de::Error>(self, flaw: Flaw) -> E {
        self.flaw.set(Some(flaw));
        // Never shown: `parse` has words of its own.
        E::custom("flawed")
    }

    fn text<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        if text.contains('\0') { Err(self.flawed(Flaw::Zero)) } else { Ok(text.to_owned()) }
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= limits::EXTERNAL_META_DEPTH {
            return Err(self.flawed(Flaw::TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.text(value).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(value) = from.next_element_seed(inner)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        let inner = self.deeper::<A::Error>()?;
        Object { depth: inner.depth, flaw: self.flaw, field: None }.visit_map(from).map(Value::Object)
    }
}

/// An object, each name once.
struct Object<'a> {
    depth: usize,
    flaw: &'a Cell<Option<Flaw>>,
    /// Where the name that is being read is left, for the outermost object.
    field: Option<&'a RefCell<String>>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Map<String, Value>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let inner = Strict { depth: self.depth, flaw: self.flaw };
        let mut map = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let name = inner.text::<A::Error>(&name)?;
            if let Some(field) = self.field {
                field.replace(name.clone());
            }
            if map.contains_key(&name) {
                return Err(inner.flawed(Flaw::Twice));
            }
            let value = from.next_value_seed(inner)?;
            map.insert(name, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Millis = 1_800_000_000_000;
    const VALUE: &str = "c2VjcmV0LXZhbHVl+/c2Vj";

    fn good() -> Value {
        json!({
            "cookieId": "ann", "profileId": null, "service": "shop", "validateUrl": "https://shop.example/me",
            "cookieKeys": { "SID": VALUE }, "status": "success", "message": null,
            "startedAt": "2027-01-15T07:59:59.123456+00:00", "finishedAt": "2027-01-15T09:00:00+01:00",
            "attemptNumber": 1, "meta": {}
        })
    }

    fn taken(body: &str) -> Result<Arrived, Refused> {
        let token = Secret::new(*b"kwt_of_this_worker");
        report(body.as_bytes(), "shop", &token, NOW, |value| {
            format!("print of {} bytes", value.expose().len())
        })
    }

    #[track_caller]
    fn refused(body: &str) -> (String, &'static str) {
        let refused = taken(body).unwrap_err();
        let words = format!("{refused:?}");
        assert!(!words.contains(VALUE) && !words.contains("kwt_of"), "{words}");
        (refused.field.expect("a field"), refused.code)
    }

    #[test]
    fn a_good_report_comes_out_with_utc_times_and_prints_in_place_of_values() {
        let report = taken(&good().to_string()).unwrap().report;
        assert_eq!(report.started_at, "2027-01-15T07:59:59.123Z");
        assert_eq!(report.finished_at, "2027-01-15T08:00:00.000Z");
        assert_eq!(report.cookie_keys["SID"], format!("print of {} bytes", VALUE.len()));
        // Only what the contract calls optional may be left out.
        let mut bare = good();
        for name in ["profileId", "cookieKeys", "message", "meta"] {
            bare.as_object_mut().unwrap().remove(name);
        }
        let report = taken(&bare.to_string()).unwrap().report;
        assert!(report.cookie_keys.is_empty() && report.meta.is_empty() && report.message.is_none());
    }

    #[test]
    fn the_bounds_are_where_they_are_said_to_be() {
        let at = |field: &str, value: Value| {
            let mut report = good();
            report[field] = value;
            taken(&report.to_string()).map(|_| ()).map_err(|refused| refused.field.unwrap())
        };
        let (text, skew) = (|length: usize| json!("x".repeat(length)), limits::EXTERNAL_CLOCK_SKEW.as_secs());
        let later = |seconds: u64| json!(iso8601(NOW + seconds * 1_000));
        let nested = |depth: usize| {
            let deep = (1..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
            json!(deep)
        };
        for (field, fits, does_not) in [
            ("cookieId", text(128), text(129)),
            ("profileId", text(128), text(129)),
            ("message", text(4 << 10), text((4 << 10) + 1)),
            (
                "validateUrl",
                json!(format!("https://x/{}", "y".repeat(2_038))),
                json!(format!("https://x/{}", "y".repeat(2_039))),
            ),
            ("attemptNumber", json!(u32::MAX), json!(u64::from(u32::MAX) + 1)),
            ("finishedAt", later(skew), later(skew + 1)),
            ("meta", json!({ "a": "x".repeat(8_184) }), json!({ "a": "x".repeat(8_185) })),
            ("meta", nested(limits::EXTERNAL_META_DEPTH), nested(limits::EXTERNAL_META_DEPTH + 1)),
        ] {
            assert_eq!(at(field, fits), Ok(()), "{field}");
            assert_eq!(at(field, does_not), Err(field.to_owned()), "{field}");
        }
    }

    #[test]
    fn a_misspelled_field_is_told_by_its_right_name() {
        for (found, meant) in
            [("cookie_id", "cookieId"), ("Attempt-Number", "attemptNumber"), ("META", "meta")]
        {
            let mut report = good();
            report[found] = json!(1);
            let refused = taken(&report.to_string()).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some(found));
            assert!(refused.message.contains(&format!("`{meant}`")), "{}", refused.message);
        }
    }

    #[test]
    fn a_value_of_cookie_keys_is_taken_out_of_texts_and_refused_in_names() {
        let mut leaky = good();
        leaky["message"] = json!(format!("got {VALUE} from kwt_of_this_worker"));
        leaky["validateUrl"] = json!("https://shop.example/?s=c2VjcmV0LXZhbHVl%2B%2Fc2Vj");
        leaky["meta"] = json!({ "pin": 12_345_678, "list": [VALUE, { VALUE: true }] });
        leaky["cookieKeys"]["pin"] = json!("12345678");
        let report = taken(&leaky.to_string()).unwrap().report;
        assert_eq!(report.message.as_deref(), Some("got [redacted] from [redacted]"));
        assert_eq!(report.validate_url, "https://shop.example/?s=[redacted]");
        let meta = json!({ "pin": "[redacted]", "list": ["[redacted]", { "[redacted]": true }] });
        assert_eq!(Value::Object(report.meta), meta);

        for field in ["cookieId", "profileId", "cookieKeys"] {
            let mut leaky = good();
            // A value that is allowed as an id.
            leaky["cookieKeys"] = json!({ "SID": "plain-value-7" });
            leaky[field] = if field == "cookieKeys" {
                json!({ "plain-value-7": "plain-value-7" })
            } else {
                json!("plain-value-7")
            };
            let refused = taken(&leaky.to_string()).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some(field));
            assert!(!format!("{refused:?}").contains("plain-value-7"));
        }
    }

    #[test]
    fn what_is_no_report_is_refused_in_words_of_our_own() {
        let text = good().to_string();
        for (body, field, code) in [
            (String::new(), "body", "bad-json"),
            (format!("\"{VALUE}\""), "body", "wrong-type"),
            (format!("[{text}]"), "body", "wrong-type"),
            (format!("{text}{text}"), "validateUrl", "bad-json"),
            (format!("{{\"{VALUE}\": x}}"), "body", "bad-json"),
            (format!("{{\"status\": {VALUE}}}"), "status", "bad-json"),
            (format!("{{\"{VALUE}\": 1, \"{VALUE}\": 2}}"), "body", "duplicate-field"),
            (
                text.replace("\"SID\":", &format!("\"SID\":\"{VALUE}\",\"SID\":")),
                "cookieKeys",
                "duplicate-field",
            ),
            (text.replace("\"SID\":", "\"SID\\u0000\":"), "cookieKeys", "bad-value"),
            (
                text.replace("{}", &format!("{{\"a\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000))),
                "meta",
                "bad-value",
            ),
        ] {
            assert_eq!(refused(&body), (field.to_owned(), code), "{}", &body[..body.len().min(80)]);
        }
    }
}
