//! Whether an answer fulfils a rule. Pure. A condition that can't be judged, such as a JSON
//! pointer into a web page, neither holds nor fails, and no verdict rests on it.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;

use keywheel_sdk::prelude::{Response, Value};
use keywheel_sdk::serde_json;

use crate::template::{ConditionFields, Scalar, Source, Statuses, Test, TestTable, TextTest};

/// What a rule would claim, for a page is no evidence of life whatever its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Valid,
    Other,
}

/// The first header of a name, in any case.
pub type Header<'a> = Box<dyn Fn(&str) -> Option<&'a str> + 'a>;

/// An answer, read once.
pub struct Seen<'a> {
    status: u16,
    header: Header<'a>,
    json: Option<Value>,
    text: Cow<'a, str>,
    /// A page for people: a firewall's, a login form, an error.
    page: bool,
    /// It says or looks as if it were JSON, and isn't: cut on the way.
    garbled: Garbled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Garbled {
    No,
    /// By its first byte.
    Perhaps,
    Yes,
}

impl<'a> Seen<'a> {
    pub fn new(response: &'a Response) -> Self {
        let header = Box::new(|name: &str| response.header(name));
        Self::of(response.status(), header, response.bytes())
    }

    pub fn of(status: u16, header: Header<'a>, body: &'a [u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let trimmed = text.trim_start();
        let kind = header("content-type").map(str::to_ascii_lowercase);
        let page = match &kind {
            Some(kind) if kind.contains("html") => true,
            None if trimmed.starts_with('<') => true,
            // Firewalls don't always say what they send.
            _ => begins_like_a_page(trimmed),
        };
        let json: Option<Value> = if page { None } else { serde_json::from_slice(body).ok() };
        let garbled = match json {
            None if page || trimmed.is_empty() => Garbled::No,
            None if kind.is_some_and(|kind| kind.contains("json")) => Garbled::Yes,
            None if trimmed.starts_with(['{', '[']) => Garbled::Perhaps,
            _ => Garbled::No,
        };
        Self { status, header, json, text, page, garbled }
    }

    pub fn is_page(&self) -> bool {
        self.page
    }

    pub fn is_garbled(&self) -> bool {
        self.garbled != Garbled::No
    }

    /// Cloudflare marks its challenges so.
    pub fn is_challenge(&self) -> bool {
        (self.header)("cf-mitigated").is_some()
    }

    /// 408 and 425 ask to repeat the request; the others are about the service.
    pub fn puts_off(&self) -> bool {
        is_about_the_service(self.status)
    }

    /// Whether a rule holds of this answer, and the answer is one to rest `claim` on.
    pub fn fulfils(&self, rule: &ConditionFields<'_>, claim: Claim) -> bool {
        let named = |statuses: &Statuses| {
            statuses.0.iter().any(|range| range.start() == range.end() && range.contains(&self.status))
        };
        if self.is_challenge() || (self.puts_off() && !rule.status.is_some_and(|statuses| named(statuses))) {
            return false;
        }
        let by_text = rule.text.is_some();
        if self.page && !by_text && (claim == Claim::Valid || rule.header.is_empty() || self.puts_off()) {
            return false;
        }
        match self.garbled {
            Garbled::Yes => return false,
            Garbled::Perhaps if !by_text => return false,
            _ => {}
        }
        self.holds(rule) == Some(true)
    }

    /// None where it can't be said.
    fn holds(&self, rule: &ConditionFields<'_>) -> Option<bool> {
        let mut unclear = false;
        let mut take = |holds: Option<bool>| match holds {
            Some(true) => true,
            Some(false) => false,
            None => {
                unclear = true;
                true
            }
        };
        let all = take(rule.status.map_or(Some(true), |statuses| Some(statuses.contain(self.status))))
            && rule.json.iter().all(|(pointer, test)| {
                take(self.json.as_ref().map(|json| test.holds(json.pointer(pointer))))
            })
            && rule.header.iter().all(|(name, test)| take(Some(test.holds_for_text((self.header)(name)))))
            && take(rule.text.map_or(Some(true), |test| Some(test.holds(&self.text))))
            && take(rule.not.map_or(Some(true), |not| self.holds(&not.conditions()).map(|holds| !holds)));
        match (all, unclear) {
            (false, _) => Some(false),
            (true, true) => None,
            (true, false) => Some(true),
        }
    }

    /// The text, number or boolean that the answer has there.
    pub fn pick(&self, source: &Source) -> Option<Value> {
        match source {
            Source::Json(pointer) => match self.json.as_ref()?.pointer(pointer)? {
                Value::Null | Value::Array(_) | Value::Object(_) => None,
                scalar => Some(scalar.clone()),
            },
            Source::Header(name) => Some(Value::String((self.header)(name)?.into())),
        }
    }

    /// As text, where it isn't empty.
    pub fn pick_text(&self, source: &Source) -> Option<String> {
        let text = match self.pick(source)? {
            Value::String(text) => text,
            other => serde_json::to_string(&other).ok()?,
        };
        Some(text).filter(|text| !text.is_empty())
    }
}

pub const fn is_about_the_service(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..)
}

fn begins_like_a_page(text: &str) -> bool {
    ["<!doctype html", "<html"]
        .iter()
        .any(|begin| text.get(..begin.len()).is_some_and(|start| start.eq_ignore_ascii_case(begin)))
}

impl Statuses {
    pub fn contain(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Test {
    pub fn holds(&self, found: Option<&Value>) -> bool {
        let found = found.filter(|value| !value.is_null());
        let TestTable { is, is_not, one_of, present, contains, starts_with, less, greater } = &self.0;
        let Some(found) = found else {
            return *self == Self::absent();
        };
        let number = || found.as_f64();
        present.is_none_or(|present| present)
            && is.as_ref().is_none_or(|is| is.equals(found))
            && is_not.as_ref().is_none_or(|is_not| !is_not.equals(found))
            && one_of.as_ref().is_none_or(|values| values.iter().any(|value| value.equals(found)))
            && contains.as_ref().is_none_or(|part| match found {
                Value::String(text) => text.contains(part.as_str()),
                Value::Array(entries) => entries.iter().any(|entry| entry.as_str() == Some(part)),
                _ => false,
            })
            && starts_with
                .as_ref()
                .is_none_or(|start| found.as_str().is_some_and(|text| text.starts_with(start.as_str())))
            && less.is_none_or(|less| number().is_some_and(|number| number < less.0))
            && greater.is_none_or(|greater| number().is_some_and(|number| number > greater.0))
    }

    /// A header is a text; `less` and `greater` read it as a number.
    fn holds_for_text(&self, found: Option<&str>) -> bool {
        let number = found.and_then(|text| text.trim().parse::<f64>().ok());
        match (&self.0, number) {
            (TestTable { less: None, greater: None, .. }, _) => {
                self.holds(found.map(|text| Value::String(text.into())).as_ref())
            }
            (_, None) => false,
            (TestTable { less, greater, .. }, Some(number)) => {
                let rest = Self(TestTable { less: None, greater: None, ..self.0.clone() });
                less.is_none_or(|less| number < less.0)
                    && greater.is_none_or(|greater| number > greater.0)
                    && rest.holds_for_text(found)
            }
        }
    }

    pub fn absent() -> Self {
        Self(TestTable { present: Some(false), ..TestTable::default() })
    }

    pub fn is_absent(&self) -> bool {
        self.0.present == Some(false)
    }

    /// Whether it says that something is there, and not only what it isn't.
    pub fn is_positive(&self) -> bool {
        let TestTable { is, is_not: _, one_of, present, contains, starts_with, less, greater } = &self.0;
        is.is_some()
            || one_of.is_some()
            || *present == Some(true)
            || contains.is_some()
            || starts_with.is_some()
            || less.is_some()
            || greater.is_some()
    }
}

impl TextTest {
    pub fn holds(&self, body: &str) -> bool {
        self.is.as_ref().is_none_or(|is| body.trim() == is.trim())
            && self.contains.as_ref().is_none_or(|part| body.contains(part.as_str()))
            && self.starts_with.as_ref().is_none_or(|start| body.trim_start().starts_with(start.trim_start()))
    }
}

impl Scalar {
    pub fn equals(&self, found: &Value) -> bool {
        match self {
            Self::Text(text) => found.as_str() == Some(text),
            Self::Boolean(boolean) => found.as_bool() == Some(*boolean),
            Self::Integer(number) => {
                found.as_i64() == Some(*number) || found.as_f64() == Some(*number as f64)
            }
            Self::Float(number) => found.as_f64() == Some(*number),
        }
    }

    pub fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(text.as_str()),
            Self::Boolean(boolean) => Value::from(*boolean),
            Self::Integer(number) => Value::from(*number),
            Self::Float(number) => Value::from(*number),
        }
    }
}
