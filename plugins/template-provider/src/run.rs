//! What a template comes to: the manifest, the verdict of an answer, the outcome of a rotation.
//! Owns the order in which rules are asked. It claims nothing that no rule says, and nothing of
//! an answer on which two rules contradict each other.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Deref;

use keywheel_sdk::date;
use keywheel_sdk::manifest::{CommitClass, Key, Manifest, Method, Setting};
use keywheel_sdk::prelude::{
    Cx, Evidence, Outcome, Request, Response, Result, Stop, Value, Verdict, header, json,
};

use crate::notation::{self, placeholders};
use crate::place::At;
use crate::predicate::{Claim, Seen};
use crate::request::{Filler, place_of, values};
use crate::template::{
    CaptureTable, Class, ExpiresTable, From, Kind, Refusal, RequestFields, RetryTable, Scalar, Source,
    Template, Unit,
};
use crate::url;

/// Enough to recognise an error by; the text is the service's.
const DETAIL_CHARS: usize = 120;

/// What the manifest says of a template that `check` accepted.
pub fn manifest(template: &Template) -> Manifest {
    let mut manifest =
        Manifest::new(&template.service, &template.title, &template.version).source(&template.source);
    for (name, setting) in template.settings.iter() {
        let mut made = match setting.kind {
            Kind::Text => Setting::text(name),
            Kind::Url => Setting::url(name),
            Kind::Integer => Setting::integer(name),
            Kind::Boolean => Setting::boolean(name),
            Kind::Duration => Setting::duration(name),
            Kind::Choice => {
                let choices =
                    setting.choices.as_ref().map(|choices| choices.value.as_slice()).unwrap_or_default();
                Setting::choice(name, choices.iter().map(String::as_str))
            }
        };
        if setting.required {
            made = made.required();
        }
        if let Some(default) = &setting.default {
            made = made.default(&plain(default));
        }
        manifest = manifest.setting(made.help(&setting.help));
    }
    for (name, key) in template.keys.iter() {
        let mut made = match &key.cookie {
            Some(cookie) => {
                let path = cookie.path.as_ref().map_or("/", |path| path.value.as_str());
                Key::cookie(name, &cookie.name, &cookie.domain).path(path)
            }
            None => Key::token(name),
        };
        if key.optional {
            made = made.optional();
        }
        manifest = manifest.key(made.help(&key.help));
    }
    let requests = core::iter::once(template.validate.request())
        .chain(template.rotate.iter().map(|(_, method)| method.request()));
    for (index, request) in requests.enumerate() {
        let Some(url) =
            notation::read(request.url).ok().and_then(|pieces| url::read(pieces, &template.settings).ok())
        else {
            continue;
        };
        if index == 0 {
            manifest = manifest.validate_url(&url.without_keys(&template.settings));
        }
        if !manifest.origins.contains(&url.origin) {
            manifest = manifest.origin(&url.origin);
        }
    }
    for (name, method) in template.rotate.iter() {
        let mut made = Method::new(name, contract_class(*method.class)).help(&method.help);
        if let Some(setting) = &method.class_setting {
            made = made.commit_class_from(setting);
        }
        manifest = manifest.method(made).class_source(name, &method.class_source);
    }
    if let Some(every) = &template.validate.every {
        manifest = manifest.validate_every(every.0);
    }
    if let Some(age) = &template.max_age {
        manifest = manifest.max_age(age.0);
    }
    match &template.idle_limit {
        Some(limit) => manifest.idle_limit(limit.0),
        None => manifest,
    }
}

const fn contract_class(class: Class) -> CommitClass {
    match class {
        Class::Sliding => CommitClass::Sliding,
        Class::Additive => CommitClass::Additive,
        Class::CommitOnUse => CommitClass::CommitOnUse,
        Class::Grace => CommitClass::Grace,
        Class::BurnOnIssue => CommitClass::BurnOnIssue,
    }
}

/// A default as the contract has it.
pub fn plain(value: &Scalar) -> String {
    match value {
        Scalar::Text(text) => text.clone(),
        Scalar::Integer(number) => number.to_string(),
        Scalar::Float(number) => number.to_string(),
        Scalar::Boolean(boolean) => boolean.to_string(),
    }
}

pub fn validate(template: &Template, cx: &Cx) -> Result<Verdict> {
    let table = &template.validate;
    let fields = table.request();
    let used = keys_used(template, &fields);
    let lacking = used.iter().find(|key| !cx.has(key) && is_brought(template, key));
    if let Some(key) = lacking {
        return Ok(Verdict::unknown(format!("there is no {key} yet; a rotation brings one")));
    }
    if !used.iter().any(|key| cx.has(key)) {
        return Ok(Verdict::unknown("the credential has none of the keys that this request carries"));
    }
    let answer = Filler::new(cx, template).request(&fields)?.send_any()?;
    let seen = Seen::new(&answer);
    let (valid, refusal) = judged(template, &seen);
    match (valid, refusal) {
        (false, None) => Err(put_off(template, cx, &answer)),
        (true, Some(_)) => Err(contradiction(template, cx, &answer)),
        (false, Some(Refused::Invalid(_))) if let Some(key) = ended(template, cx, &used) => {
            // Its end was known beforehand, and it says nothing of what a rotation starts from.
            Ok(Verdict::unknown(format!("{key} has expired; a rotation is due")))
        }
        (false, Some(refused)) => Err(refused.stop(&seen)),
        (true, None) => {
            let identity = match &table.identity {
                None => None,
                Some(source) => match seen.pick_text(source) {
                    Some(identity) => Some(identity),
                    None => {
                        let what = format!("the answer names no account at {}", place_of(source));
                        return Err(explained(put_off(template, cx, &answer), &what));
                    }
                },
            };
            let told = table.expires.as_ref().and_then(|expires| ends(expires, &seen, cx.now()));
            let known = used.iter().filter_map(|key| cx.key(key)?.expires).filter(|&at| at > cx.now()).min();
            Ok(Verdict::Valid(Evidence::new().identity(identity).expires(told.or(known))))
        }
    }
}

/// What the rules of `validate` say of an answer: whether one calls it valid, and the first that
/// calls it something else.
fn judged<'t>(template: &'t Template, seen: &Seen<'_>) -> (bool, Option<Refused<'t>>) {
    let table = &template.validate;
    let valid = any(&table.valid, |rule| seen.fulfils(&rule.conditions(), Claim::Valid));
    (valid, refusal(seen, &table.needs_human, &table.invalid))
}

/// Whether an answer makes a credential valid, for those who only ask that.
pub fn says_valid(template: &Template, seen: &Seen<'_>) -> bool {
    let identity = template.validate.identity.as_ref();
    matches!(judged(template, seen), (true, None))
        && identity.is_none_or(|source| seen.pick_text(source).is_some())
}

/// Whether an answer makes a credential anything but unknown.
pub fn says_something(template: &Template, seen: &Seen<'_>) -> bool {
    !matches!(judged(template, seen), (false, None))
}

pub fn rotate(template: &Template, cx: &Cx, method: &str) -> Result<Outcome> {
    let Some(table) = template.rotate.get(method) else {
        return Err(Stop::failed(format!("the template has no [rotate.{method}]")));
    };
    let fields = table.request();
    let used = keys_used(template, &fields);
    // A request without the secret that it should replace would be another request.
    let lacking = used.iter().find(|key| !cx.has(key) && is_brought(template, key));
    if let Some(key) = lacking.or(used.first().filter(|_| !used.iter().any(|key| cx.has(key)))) {
        return Err(Stop::needs_human(format!(
            "the credential has no {key}: add it with `keywheel credential import`"
        )));
    }
    let request = Filler::new(cx, template).request(&fields)?;
    let request =
        table.capture.iter().fold(request, |request, (key, capture)| captured(request, key, capture));
    let answer = request.send_any()?;
    let seen = Seen::new(&answer);
    let is_ours = |key: &str| match table.capture.is_empty() {
        true => template.keys.get(key).is_some_and(|key| key.cookie.is_some()),
        false => table.capture.get(key).is_some(),
    };
    let found: Vec<_> =
        template.keys.names().filter(|key| is_ours(key)).filter_map(|key| answer.captured(key)).collect();
    let plain_success = answer.is_success() && !seen.is_page() && !seen.is_garbled() && !seen.is_challenge();
    let evidence = || {
        let ends = found.iter().filter_map(|captured| captured.expires).filter(|&at| at > cx.now()).min();
        Evidence::new().expires(ends)
    };
    let counts = match table.rotated.is_empty() {
        true => plain_success,
        false => any(&table.rotated, |rule| seen.fulfils(&rule.conditions(), Claim::Other)),
    };
    // First of all: what was issued counts, whatever else the answer says.
    if counts && found.iter().any(|captured| captured.is_new()) {
        return Ok(Outcome::Rotated(evidence()));
    }
    let same = plain_success && !found.is_empty() && found.iter().all(|captured| !captured.changed);
    let unchanged = same || any(&table.unchanged, |rule| seen.fulfils(&rule.conditions(), Claim::Other));
    match (unchanged, refusal(&seen, &table.needs_human, &table.invalid)) {
        (true, None) => Ok(Outcome::Unchanged(evidence())),
        (false, Some(refused)) => Err(refused.stop(&seen)),
        (true, Some(_)) => Err(contradiction(template, cx, &answer)),
        (false, None) => Err(put_off(template, cx, &answer)),
    }
}

fn any<R>(rules: &[At<R>], fulfils: impl Fn(&R) -> bool) -> bool {
    rules.iter().any(|rule| fulfils(rule.deref()))
}

/// The keys that a request carries, each once.
pub fn keys_used<'t>(template: &'t Template, fields: &RequestFields<'t>) -> Vec<&'t str> {
    let mut used: Vec<&str> = Vec::new();
    for (value, _) in values(fields) {
        let pieces = notation::read(value).unwrap_or_default();
        for one in placeholders(&pieces) {
            if let Some(key) = template.keys.names().find(|key| *key == one.name)
                && !used.contains(&key)
            {
                used.push(key);
            }
        }
    }
    if fields.cookies {
        let cookies = template.keys.iter().filter(|(_, key)| key.cookie.is_some());
        used.extend(cookies.map(|(name, _)| name.value.as_str()));
    }
    used
}

/// Whether a rotation captures this token.
fn is_brought(template: &Template, key: &str) -> bool {
    template.rotate.iter().any(|(_, method)| method.capture.get(key).is_some())
}

/// A token that a rotation replaces and whose end has come.
fn ended<'k>(template: &Template, cx: &Cx, used: &[&'k str]) -> Option<&'k str> {
    used.iter().copied().find(|key| {
        is_brought(template, key) && cx.key(key).and_then(|key| key.expires).is_some_and(|at| at <= cx.now())
    })
}

enum Refused<'t> {
    Invalid(&'t Refusal),
    NeedsHuman(&'t Refusal),
}

/// The first rule that holds; what only a person can do is asked first.
fn refusal<'t>(
    seen: &Seen<'_>,
    needs_human: &'t [At<Refusal>],
    invalid: &'t [At<Refusal>],
) -> Option<Refused<'t>> {
    let first = |rules: &'t [At<Refusal>]| {
        rules.iter().map(Deref::deref).find(|rule| seen.fulfils(&rule.conditions(), Claim::Other))
    };
    first(needs_human).map(Refused::NeedsHuman).or_else(|| first(invalid).map(Refused::Invalid))
}

impl Refused<'_> {
    fn stop(&self, seen: &Seen<'_>) -> Stop {
        let said = |rule: &Refusal| {
            let detail = rule.detail.as_ref().and_then(|source| seen.pick_text(source));
            match detail {
                Some(detail) => {
                    let detail: String = detail.chars().take(DETAIL_CHARS).collect();
                    format!("{} ({detail})", rule.message.value)
                }
                None => rule.message.value.clone(),
            }
        };
        match self {
            Self::Invalid(rule) => Stop::invalid(said(rule)),
            Self::NeedsHuman(rule) => Stop::needs_human(said(rule)),
        }
    }
}

fn captured(request: Request, key: &str, capture: &CaptureTable) -> Request {
    let place = |source: &Source| match source {
        Source::Json(pointer) => json(pointer),
        Source::Header(name) => header(name),
    };
    let Ok(source) = Source::of(capture.json.clone(), capture.header.clone()) else { return request };
    let from = place(&source);
    match &capture.expires_in {
        Some(seconds) => request.capture(key, from.expires_in(place(seconds))),
        None => request.capture(key, from),
    }
}

/// When the credential ends, in milliseconds since 1970. A number that isn't above zero means
/// that it never does.
fn ends(table: &ExpiresTable, seen: &Seen<'_>, now: u64) -> Option<u64> {
    let source = Source::of(table.json.clone(), table.header.clone()).ok()?;
    let found = seen.pick(&source)?;
    let Some(unit) = &table.unit else {
        return date::parse(found.as_str()?.trim());
    };
    let number = match &found {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    moment(number?, unit.value, table.from.as_ref().map(|from| from.value)?, now)
}

fn moment(number: f64, unit: Unit, from: From, now: u64) -> Option<u64> {
    let scale = match unit {
        Unit::Seconds => 1_000.0,
        Unit::Milliseconds => 1.0,
    };
    let milliseconds = number * scale;
    // What is past the year 9999 is no end but a way to say that there is none.
    const LAST: f64 = 253_402_300_799_000.0;
    if !(milliseconds > 0.0 && milliseconds <= LAST) {
        return None;
    }
    let milliseconds = milliseconds as u64;
    Some(match from {
        From::Now => now + milliseconds,
        From::Epoch => milliseconds,
    })
}

/// The stop for an answer that no rule speaks of, with when to come back.
fn put_off(template: &Template, cx: &Cx, answer: &Response) -> Stop {
    let stop = answer.unexpected();
    match (stop, &template.retry) {
        (Stop::Unknown(reason), Some(retry)) => {
            let wait = wait(retry, cx.now(), answer).or(reason.retry_after);
            Stop::Unknown(reason.retry_after(wait))
        }
        (stop, _) => stop,
    }
}

fn contradiction(template: &Template, cx: &Cx, answer: &Response) -> Stop {
    explained(put_off(template, cx, answer), "rules of the template contradict each other on this answer")
}

fn explained(stop: Stop, why: &str) -> Stop {
    match stop {
        Stop::Unknown(mut reason) => {
            reason.message = format!("{}: {why}", reason.message);
            Stop::Unknown(reason)
        }
        other => other,
    }
}

/// Seconds until the service wants to be asked again.
fn wait(retry: &RetryTable, now: u64, answer: &Response) -> Option<u32> {
    let status = answer.status();
    let meant = match &retry.status {
        Some(statuses) => statuses.contain(status),
        None => matches!(status, 429 | 503),
    };
    if !meant {
        return None;
    }
    let by_header = || {
        let number = answer.header(retry.header.as_ref()?)?.trim().parse().ok()?;
        let unit = retry.unit.as_ref().map_or(Unit::Seconds, |unit| unit.value);
        let from = retry.from.as_ref().map_or(From::Now, |from| from.value);
        let at = moment(number, unit, from, now)?;
        u32::try_from(at.saturating_sub(now).div_ceil(1_000)).ok()
    };
    let told = answer.retry_after().or_else(by_header);
    match &retry.at_least {
        Some(least) => Some(told.unwrap_or(0).max(least.0)),
        None => told,
    }
}
