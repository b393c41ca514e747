//! Makes a fixture of a call that was run against the real service. Pure: it reads what the call
//! left behind and writes text.
//!
//! **Invariant:** no fixture is made that holds a secret of its call, in any spelling that
//! redaction knows; where one would be, there is none.

use std::collections::BTreeMap;

use toml::Value;

use super::fixture::{
    self, Failure, Request, Which, Written, WrittenAnswer, WrittenExchange, WrittenExpect, WrittenKey,
    WrittenRequest,
};
use super::scrub::{Note, Scrubber};
use super::{Case, Run, Said};
use crate::credential::{Millis, Secret};
use crate::egress::redact::FLOOR;
use crate::egress::unpacked;
use crate::protocol::HttpError;
use crate::report::iso8601;
use crate::rotation::asking::AskError;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(
        "the call ended without a verdict: {0}; hint: a fixture shows what the provider makes of an answer"
    )]
    NoAnswer(#[source] AskError),
    #[error("no request left, so there is no answer to record: {0}")]
    NoRequest(String),
    #[error("answer {number} can't be played again: {error}")]
    Unplayable { number: usize, error: HttpError },
    #[error("what was recorded can't be written down: {0}")]
    Unwritable(String),
    #[error(
        "nothing was written: a secret would still have been in the fixture, at line {line}; hint: write this one by hand"
    )]
    StillThere { line: usize },
}

/// What the author says of a recording.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub about: Option<String>,
    /// What the provider should say; None: what it said.
    pub expect: Option<String>,
    /// The secrets were never issued.
    pub made_up: bool,
    pub now: Millis,
}

#[derive(Debug)]
pub struct Recording {
    /// The fixture, as it stands in its file.
    pub text: String,
    /// What was taken out of it.
    pub notes: Vec<Note>,
}

/// # Errors
/// Where nothing can be played again, or something secret would stay.
pub fn recording(case: &Case, run: Run, wanted: &Wanted) -> Result<Recording, RecordError> {
    let said = match &run.said {
        Ok(said) => said,
        Err(_) => {
            // The error is the run's, and the run is ours.
            let Run { said, .. } = run;
            return Err(said.map_or_else(RecordError::NoAnswer, |_| RecordError::NoRequest(String::new())));
        }
    };
    if run.hops().next().is_none() {
        return Err(RecordError::NoRequest(
            said.message().unwrap_or("the provider asked for nothing").into(),
        ));
    }
    let known = stand_ins(case, &run);
    let too_short: Vec<Note> = known
        .iter()
        .filter(|known| known.secret.expose().len() < FLOOR)
        .map(|known| Note {
            place: format!("key `{}`", known.key),
            what: "too short to be looked for everywhere: look for its value yourself",
            count: 1,
        })
        .collect();
    let pairs = known.iter().map(|known| (known.secret.clone(), known.stand_in.clone()));
    let mut scrubber = Scrubber::new(&run.redactor, pairs);
    let mut exchanges = Vec::new();
    for (index, hop) in run.hops().enumerate() {
        let number = index + 1;
        exchanges.push(WrittenExchange {
            request: request(&mut scrubber, number, &hop.made.request),
            answer: answer(&mut scrubber, number, &hop.answer)?,
        });
    }
    let identity = said.evidence().and_then(|evidence| evidence.identity.as_deref());
    let identity = identity.map(|identity| scrubber.text("the identity", identity));

    let word = wanted.expect.clone().unwrap_or_else(|| said.word().to_owned());
    let as_said = word == said.word();
    let (call, method, verdict, outcome) = match &case.call {
        Which::Validate => ("validate", None, Some(word), None),
        Which::Rotate(method) => ("rotate", method.clone(), None, Some(word)),
    };
    let captured = matches!(said, Said::Outcome(_)).then(|| {
        let mut names: Vec<String> = run
            .captured
            .iter()
            .map(|fresh| fresh.key.clone())
            // A cookie that no key names.
            .filter(|name| !name.starts_with("cookie:"))
            .collect();
        names.sort();
        names
    });
    let shown = |stand_in: &str| {
        exchanges.iter().any(|exchange: &WrittenExchange| {
            let of_header = |value: &Value| value.to_string().contains(stand_in);
            exchange.answer.body.as_ref().is_some_and(|body| body.contains(stand_in))
                || exchange.answer.headers.values().any(of_header)
        })
    };
    let keys = case
        .keys
        .iter()
        .map(|given| {
            // Where the service repeats it, the replay must have the same value as its answer.
            let stand_in = known.iter().find(|known| known.key == given.name).map(|known| &known.stand_in);
            let value = stand_in.filter(|stand_in| shown(stand_in)).cloned();
            let expires = given.expires.map(|at| Value::String(iso8601(at)));
            (given.name.clone(), WrittenKey { value, expires })
        })
        .collect();
    let written = Written {
        about: wanted.about.clone(),
        source: Some(format!("recorded {}", iso8601(wanted.now).split('T').next().unwrap_or_default())),
        call: call.to_owned(),
        method,
        made_up: wanted.made_up,
        now: Some(Value::String(iso8601(wanted.now))),
        settings: case
            .settings
            .iter()
            .map(|(name, value)| (name.clone(), Value::String(value.clone())))
            .collect(),
        keys,
        expect: WrittenExpect {
            verdict,
            outcome,
            identity: identity.filter(|_| as_said),
            expires: None,
            captured: captured.filter(|_| as_said),
            message: None,
        },
        exchanges,
    };
    let text = fixture::write(&written).map_err(|error| RecordError::Unwritable(error.to_string()))?;
    // What was done above is not believed: the text as a whole is looked at once more.
    if run.redactor.hides(&text) {
        let line = text.lines().position(|line| run.redactor.hides(line)).map_or(0, |index| index + 1);
        return Err(RecordError::StillThere { line });
    }
    let mut notes = scrubber.notes();
    notes.extend(too_short);
    Ok(Recording { text, notes })
}

struct StandIn {
    key: String,
    secret: Secret,
    stand_in: String,
}

/// A made-up value for each value of each key.
fn stand_ins(case: &Case, run: &Run) -> Vec<StandIn> {
    let given = case.keys.iter().filter_map(|given| Some((&given.name, given.value.clone()?)));
    let fresh = run.captured.iter().map(|fresh| (&fresh.key, fresh.secret.clone()));
    let mut found: Vec<StandIn> = Vec::new();
    for (key, secret) in given.chain(fresh) {
        if found.iter().any(|known| known.secret == secret) {
            continue;
        }
        let number = found.iter().filter(|known| known.key == *key).count() + 1;
        let stand_in = stand_in(key, number, secret.expose());
        found.push(StandIn { key: key.clone(), secret, stand_in });
    }
    found
}

fn stand_in(key: &str, number: usize, secret: &[u8]) -> String {
    // Digits may stand in JSON without quotes, where only digits can take their place.
    if secret.iter().all(u8::is_ascii_digit) {
        let last = char::from_digit((number % 10) as u32, 10).unwrap_or('1');
        let mut digits = "7".repeat(secret.len().saturating_sub(1));
        digits.push(last);
        return digits;
    }
    // An extra cookie's key has marks that a cookie's value may not have.
    let key: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    if number == 1 { format!("made-up-{key}") } else { format!("made-up-{key}-{number}") }
}

/// A request as it was made: references already stand where secrets were. What a provider made of
/// a revealed one is text to everybody but the scrubber.
fn request(scrubber: &mut Scrubber<'_>, number: usize, made: &Request) -> WrittenRequest {
    let mut clean = |what: &str, text: &str| scrubber.known_only(&format!("request {number}, {what}"), text);
    let headers: BTreeMap<String, String> = made
        .headers
        .iter()
        // Those with a secret must be listed; the others may change without harm.
        .filter(|(_, value)| value.contains('{'))
        .map(|(name, value)| (name.clone(), clean("header", value)))
        .collect();
    WrittenRequest {
        method: made.method.clone(),
        url: clean("URL", &made.url),
        headers,
        cookies: made.cookies,
        body: made.body.as_ref().map(|body| clean("body", body)),
    }
}

fn answer(
    scrubber: &mut Scrubber<'_>,
    number: usize,
    answer: &Result<http::Response<bytes::Bytes>, HttpError>,
) -> Result<WrittenAnswer, RecordError> {
    let unplayable = |error: &HttpError| RecordError::Unplayable { number, error: error.clone() };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let fails = Failure::of(error).ok_or_else(|| unplayable(error))?;
            return Ok(WrittenAnswer { fails: Some(fails.word().to_owned()), ..WrittenAnswer::default() });
        }
    };
    let place = format!("answer {number}");
    let body = unpacked(answer).map_err(|error| unplayable(&error))?;
    let pairs = answer.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut headers: BTreeMap<String, Value> = BTreeMap::new();
    for (name, value) in scrubber.headers(&place, pairs) {
        let value = Value::String(value);
        match headers.remove(&name) {
            None => headers.insert(name, value),
            Some(Value::Array(mut values)) => {
                values.push(value);
                headers.insert(name, Value::Array(values))
            }
            Some(first) => headers.insert(name, Value::Array(vec![first, value])),
        };
    }
    let body = scrubber.body(&place, &body);
    Ok(WrittenAnswer {
        status: Some(answer.status().as_u16()),
        headers,
        body: Some(body).filter(|body| !body.is_empty()),
        fails: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_fit_where_their_values_stood() {
        assert_eq!(stand_in("token", 1, b"secret-value"), "made-up-token");
        assert_eq!(stand_in("token", 2, b"secret-value"), "made-up-token-2");
        assert_eq!(stand_in("cookie:a b", 1, b"secret-value"), "made-up-cookie-a-b");
        assert_eq!(stand_in("pin", 1, b"90807060"), "77777771");
        assert_eq!(stand_in("pin", 2, b"90807060"), "77777772");
    }
}
