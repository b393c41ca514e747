//! What the exchanges of one call showed of the service: facts, which a verdict is held against
//! elsewhere. Pure. It keeps no value of a secret, only names of keys.

use std::collections::BTreeSet;

use crate::protocol::{HttpRequest, HttpResponse, Leaf, Part, Source};

/// What is known at the end of a call, or in its midst.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Requests that the plugin asked for.
    pub requests: u32,
    /// One that carried a secret may have come to the service, and no answer says what became
    /// of it. A refusal (4xx) does.
    pub lost: bool,
    /// So is the running one, until its answer is known.
    pub open: bool,
    /// Keys whose values were part of a request that may have come to the service, or that the
    /// plugin saw itself.
    pub used: BTreeSet<String>,
    /// How the last of the requests ended.
    pub last: Last,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Last {
    /// There was none.
    #[default]
    NotAsked,
    /// Denied, unreachable, timed out, or garbage.
    NoAnswer,
    Answered(Answered),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answered {
    pub status: u16,
    /// A page for people.
    pub html: bool,
    /// The request asked for JSON, in words or by what it wanted to capture.
    pub json_due: bool,
    /// A firewall's own answer in the service's place, by the header its vendor documents.
    pub challenge: bool,
    /// Seconds the service wants to be left alone.
    pub retry_after: Option<u32>,
    /// Where a redirect leads, without query and fragment, which may say who was redirected.
    pub redirect: Option<String>,
}

impl Seen {
    pub(super) fn begin(&mut self) {
        self.requests += 1;
        // Until it is over: a call that is dropped half-way has no answer.
        self.last = Last::NoAnswer;
        self.lost |= std::mem::take(&mut self.open);
    }

    /// A hop may have come to the service, with the values of these keys.
    pub(super) fn sent(&mut self, keys: &mut BTreeSet<String>) {
        self.open |= !keys.is_empty();
        self.used.append(keys);
    }

    pub(super) fn end(&mut self) {
        let refused = matches!(
            self.last,
            Last::Answered(Answered { challenge: true, .. } | Answered { status: 400..=499, .. })
        );
        self.lost |= self.open && !refused;
        self.open = false;
    }

    pub(super) fn answered(&mut self, request: &HttpRequest, response: &HttpResponse) {
        self.last = Last::Answered(Answered {
            status: response.status,
            html: is_html(response),
            json_due: wants_json(request),
            challenge: is_challenge(response),
            retry_after: header(response, "retry-after").and_then(|value| value.trim().parse().ok()),
            redirect: header(response, "location")
                .filter(|_| (300..400).contains(&response.status))
                .and_then(|to| to.split(['?', '#']).next())
                .map(str::to_owned),
        });
    }

    /// In a word or two, for a report.
    pub fn words(&self) -> String {
        match &self.last {
            Last::NotAsked => String::from("not asked"),
            Last::NoAnswer => String::from("no answer"),
            Last::Answered(answered) => answered.words(),
        }
    }
}

impl Answered {
    pub fn words(&self) -> String {
        let kind = match self {
            Self { challenge: true, .. } => " and a firewall's challenge",
            Self { html: true, json_due: true, .. } => " and a page where JSON was due",
            _ => "",
        };
        format!("{}{kind}", self.status)
    }
}

fn header<'r>(response: &'r HttpResponse, name: &str) -> Option<&'r str> {
    response
        .headers
        .iter()
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn is_html(response: &HttpResponse) -> bool {
    if let Some(kind) = header(response, "content-type") {
        let kind = kind.trim_start().to_ascii_lowercase();
        return kind.starts_with("text/html") || kind.starts_with("application/xhtml");
    }
    let start: Vec<u8> = response
        .body
        .iter()
        .skip_while(|byte| byte.is_ascii_whitespace())
        .take(14)
        .map(u8::to_ascii_lowercase)
        .collect();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

fn wants_json(request: &HttpRequest) -> bool {
    let by_capture = request.capture.iter().any(|rule| matches!(rule.from, Source::JsonPointer(_)));
    by_capture
        || request.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("accept")
                && value.iter().all(|part| match part {
                    Part::Text(text) => text.contains("json") && !text.contains("html"),
                    _ => false,
                })
        })
}

/// Cloudflare's and AWS WAF's documentation names these headers for telling a challenge from an
/// answer of the site; DataDome's answers carry its own.
fn is_challenge(response: &HttpResponse) -> bool {
    header(response, "cf-mitigated").is_some()
        || header(response, "x-amzn-waf-action").is_some()
        || (header(response, "x-datadome").is_some() && matches!(response.status, 401 | 403 | 429))
}

/// The keys whose values a request's templates ask for.
pub fn keys_of(request: &HttpRequest) -> BTreeSet<String> {
    let templates = std::iter::once(&request.url)
        .chain(request.headers.iter().map(|(_, template)| template))
        .chain(&request.body);
    let mut keys = BTreeSet::new();
    for part in templates.flatten() {
        match part {
            Part::Text(_) => {}
            Part::Secret { key, .. } => {
                keys.insert(key.clone());
            }
            Part::Encoded { leaves, .. } => keys.extend(leaves.iter().filter_map(|leaf| match leaf {
                Leaf::Secret { key, .. } => Some(key.clone()),
                Leaf::Text(_) => None,
            })),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Capture;
    use crate::provider::Encoding;

    fn request() -> HttpRequest {
        HttpRequest {
            method: "GET".into(),
            url: vec![Part::Text("https://a.example/".into())],
            headers: vec![],
            body: None,
            cookies: false,
            capture: vec![],
            redirects: 0,
            timeout: None,
            extras: vec![],
        }
    }

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> HttpResponse {
        HttpResponse {
            status,
            url: "https://a.example/".into(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            body: body.into(),
            captured: vec![],
            extras: vec![],
        }
    }

    fn seen(request: &HttpRequest, response: &HttpResponse) -> Answered {
        let mut seen = Seen::default();
        seen.answered(request, response);
        match seen.last {
            Last::Answered(answered) => answered,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_known_by_its_type_or_its_first_words() {
        let html = |headers: &[(&str, &str)], body| seen(&request(), &response(200, headers, body)).html;
        assert!(html(&[("content-type", "Text/HTML; charset=utf-8")], ""));
        assert!(html(&[], "\n <!DOCTYPE html><html>"));
        assert!(html(&[], "<html lang=\"en\">"));
        assert!(!html(&[("content-type", "application/json")], "<html>"));
        assert!(!html(&[], "{\"a\": \"<html>\"}"));
        assert!(!html(&[], ""));
    }

    #[test]
    fn json_is_due_where_the_request_asks_for_nothing_else() {
        let due = |request: HttpRequest| seen(&request, &response(200, &[], "")).json_due;
        let accept = |text: &str| HttpRequest {
            headers: vec![("Accept".into(), vec![Part::Text(text.into())])],
            ..request()
        };
        assert!(due(accept("application/json")));
        assert!(due(accept("application/vnd.github+json")));
        assert!(!due(accept("text/html, application/json")));
        assert!(!due(request()));
        let rule = Capture { key: "k".into(), from: Source::JsonPointer("/k".into()), expires_in: None };
        assert!(due(HttpRequest { capture: vec![rule], ..request() }));
    }

    #[test]
    fn a_challenge_is_known_by_its_vendors_header() {
        let challenge =
            |status, name| seen(&request(), &response(status, &[(name, "challenge")], "")).challenge;
        assert!(challenge(403, "CF-Mitigated") && challenge(202, "x-amzn-waf-action"));
        assert!(challenge(403, "x-datadome") && !challenge(200, "x-datadome"));
        assert!(!challenge(403, "server"));
    }

    #[test]
    fn every_place_of_a_request_names_its_keys() {
        let secret = |key: &str| Part::Secret { key: key.into(), encoding: Encoding::Raw };
        let leaf = Leaf::Secret { key: "d".into(), encoding: Encoding::Raw };
        let request = HttpRequest {
            url: vec![secret("a")],
            headers: vec![("x".into(), vec![secret("b")])],
            body: Some(vec![secret("c"), Part::Encoded { leaves: vec![leaf], encoding: Encoding::Base64 }]),
            ..request()
        };
        assert_eq!(keys_of(&request).into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn only_a_number_of_seconds_is_taken_for_a_wait() {
        let wait = |value| seen(&request(), &response(429, &[("retry-after", value)], "")).retry_after;
        assert_eq!(wait(" 30 "), Some(30));
        assert_eq!(wait("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(wait("-1"), None);
    }
}
