//! Unit tests for providers, on the native target: a script of expected requests and their
//! answers takes the host's place. Like the host it refuses an origin the manifest doesn't name,
//! captures by the request's rules and by the key mapping, and takes known values out of what
//! the provider sees. It panics where a test should fail.
//!
//! A request is written as text, with secrets where they would be put: `{key}` as it is,
//! `{key|form}` encoded, `{client:{key}|base64}` computed.
//!
//! ```
//! use keywheel_sdk::prelude::*;
//! use keywheel_sdk::testing::{Case, answer, get};
//!
//! struct Example;
//!
//! impl Provider for Example {
//!     fn describe() -> Manifest {
//!         Manifest::new("example", "Example", "0.1.0")
//!             .origin("https://example.com")
//!             .validate_url("https://example.com/me")
//!             .key(Key::token("api_key"))
//!     }
//!
//!     fn validate(cx: &Cx) -> Result<Verdict> {
//!         let answer = cx.get("{validate_url}").header("authorization", bearer("api_key")).send()?;
//!         match answer.status() {
//!             200 => Ok(Verdict::valid()),
//!             401 => Ok(Verdict::invalid("the key is gone")),
//!             _ => Err(answer.unexpected()),
//!         }
//!     }
//! }
//!
//! // In a provider's crate each of these is a #[test].
//! let me = || get("https://example.com/me").header("authorization", "Bearer {api_key}");
//! let alive = Case::<Example>::new().key("api_key").expect(me(), answer(200)).validate();
//! assert_eq!(alive.verdict(), Verdict::valid());
//!
//! let firewall = Case::<Example>::new().key("api_key").expect(me(), answer(403).html("<h1>No</h1>")).validate();
//! assert!(matches!(firewall.verdict(), Verdict::Unknown(_)));
//! ```

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::marker::PhantomData;

use crate::bindings::exports::keywheel::provider::guest::Guest as _;
use crate::bindings::keywheel::provider::{http, log};
use crate::cx::{Context, KeyState};
use crate::guest::Exported;
use crate::manifest::{CommitClass, Location, Manifest, SettingKind};
use crate::request::SendError;
use crate::verdict::{Failure, Outcome, Verdict};
use crate::{Provider, placeholders, template};

pub use log::Level;

/// 2026-01-01T00:00:00Z: a fixed moment, so that tests say the same every day.
pub const NOW: u64 = 1_767_225_600_000;

/// One attempt to come: settings, keys and the script.
#[derive(Debug)]
#[must_use = "a case does nothing until validate or rotate"]
pub struct Case<P> {
    manifest: Manifest,
    settings: Vec<(String, String)>,
    keys: Vec<KnownKey>,
    script: VecDeque<(Request, Answer)>,
    now: u64,
    provider: PhantomData<P>,
}

#[derive(Debug, Clone)]
struct KnownKey {
    name: String,
    value: String,
    expires: Option<u64>,
    granted: bool,
}

/// A request the provider is expected to make; see [`request`].
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Option<String>,
    cookies: bool,
}

/// What the service answers; see [`answer`] and [`fails`].
#[derive(Debug, Clone)]
pub struct Answer(Result<http::Response, http::Error>);

/// What came of a case.
#[derive(Debug)]
pub struct Run<T> {
    pub result: Result<T, Failure>,
    /// Every line the provider logged.
    pub log: Vec<(Level, String)>,
    captured: BTreeMap<String, String>,
}

/// Expects this method and URL, no cookies, no body, and no header with a secret.
pub fn request(method: &str, url: &str) -> Request {
    Request { method: method.into(), url: url.into(), headers: Vec::new(), body: None, cookies: false }
}

pub fn get(url: &str) -> Request {
    request("GET", url)
}

pub fn post(url: &str) -> Request {
    request("POST", url)
}

impl Request {
    pub fn cookies(mut self) -> Self {
        self.cookies = true;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.into());
        self
    }
}

pub fn answer(status: u16) -> Answer {
    Answer(Ok(http::Response {
        status,
        url: String::new(),
        headers: Vec::new(),
        body: Vec::new(),
        captured: Vec::new(),
        extras: Vec::new(),
    }))
}

/// No answer: `fails(SendError::Timeout)`.
pub fn fails(error: SendError) -> Answer {
    Answer(Err(match error {
        SendError::Malformed(what) => panic!("the host never says `{what}`: a malformed request isn't sent"),
        SendError::Denied(what) => http::Error::Denied(what),
        SendError::Dns(what) => http::Error::Dns(what),
        SendError::Connect(what) => http::Error::Connect(what),
        SendError::Tls(what) => http::Error::Tls(what),
        SendError::Timeout => http::Error::Timeout,
        SendError::TooLarge(cap) => http::Error::TooLarge(cap),
        SendError::Protocol(what) => http::Error::Protocol(what),
        SendError::Budget(what) => http::Error::Budget(what),
        SendError::Other(what) => http::Error::Other(what),
    }))
}

impl Answer {
    pub fn json(self, body: &str) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub fn html(self, body: &str) -> Self {
        self.header("content-type", "text/html; charset=utf-8").body(body)
    }

    pub fn body(mut self, body: &str) -> Self {
        if let Ok(response) = &mut self.0 {
            response.body = body.into();
        }
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Ok(response) = &mut self.0 {
            response.headers.push((name.to_ascii_lowercase(), value.into()));
        }
        self
    }

    /// The service sets a cookie; the key mapping says whose it is. `Max-Age` is understood, and
    /// an empty value deletes.
    pub fn set_cookie(self, name: &str, value: &str) -> Self {
        self.header("set-cookie", &format!("{name}={value}"))
    }
}

impl<P: Provider> Case<P> {
    /// Panics with every fault of the manifest that would make the host refuse the plugin.
    pub fn new() -> Self {
        let manifest = P::describe();
        let faults = faults(&manifest);
        assert!(faults.is_empty(), "the host would refuse this manifest:\n  {}", faults.join("\n  "));
        let settings = manifest
            .settings
            .iter()
            .map(|setting| (setting.name.clone(), setting.default.clone().unwrap_or_default()))
            .collect();
        let (keys, script) = (Vec::new(), VecDeque::new());
        Self { manifest, settings, keys, script, now: NOW, provider: PhantomData }
    }

    pub fn setting(mut self, name: &str, value: &str) -> Self {
        match self.settings.iter_mut().find(|(known, _)| known == name) {
            Some(setting) => setting.1 = value.into(),
            None => panic!("the manifest has no setting `{name}`"),
        }
        self
    }

    /// The credential has this key, with a made-up value.
    pub fn key(self, name: &str) -> Self {
        let value = format!("old-{name}");
        self.key_with_value(name, &value)
    }

    pub fn key_with_value(mut self, name: &str, value: &str) -> Self {
        assert!(self.manifest.keys.iter().any(|key| key.name == name), "the manifest has no key `{name}`");
        self.keys.push(KnownKey { name: name.into(), value: value.into(), expires: None, granted: false });
        self
    }

    /// The key given last expires then, in milliseconds since 1970.
    pub fn expires(mut self, at: u64) -> Self {
        self.last_key().expires = Some(at);
        self
    }

    /// The operator lets the plugin see the key given last.
    pub fn granted(mut self) -> Self {
        self.last_key().granted = true;
        self
    }

    pub fn now(mut self, now: u64) -> Self {
        self.now = now;
        self
    }

    /// The next request, and what comes back.
    pub fn expect(mut self, request: Request, answer: Answer) -> Self {
        self.script.push_back((request, answer));
        self
    }

    pub fn validate(self) -> Run<Verdict> {
        self.run(Exported::<P>::validate)
    }

    pub fn rotate(self, method: &str) -> Run<Outcome> {
        let known = self.manifest.methods.iter().any(|known| known.name == method);
        assert!(known, "the manifest has no method `{method}`");
        self.run(|context| Exported::<P>::rotate(context, method.into()))
    }

    fn last_key(&mut self) -> &mut KnownKey {
        self.keys.last_mut().expect("give a key first")
    }

    fn run<T>(self, call: impl FnOnce(Context) -> Result<T, Failure>) -> Run<T> {
        for setting in self.manifest.settings.iter().filter(|setting| setting.required) {
            let given = self.settings.iter().any(|(name, value)| *name == setting.name && !value.is_empty());
            assert!(given, "setting `{}` is required: the host would not add this credential", setting.name);
        }
        let context = Context {
            credential_id: "test".into(),
            profile_id: None,
            settings: self.settings.clone(),
            keys: self.manifest.keys.iter().map(|spec| self.state(&spec.name)).collect(),
            attempt: 1,
            now: self.now,
            extras: Vec::new(),
        };
        let left = stage::with(
            stage::Stage {
                manifest: self.manifest,
                settings: self.settings,
                keys: self.keys,
                script: self.script,
                now: self.now,
                log: Vec::new(),
                captured: BTreeMap::new(),
            },
            || call(context),
        );
        let (result, stage) = left;
        let missing: Vec<_> = stage.script.iter().map(|(request, _)| request.to_string()).collect();
        assert!(missing.is_empty(), "the provider never made these requests:\n{}", missing.join("\n"));
        Run { result, log: stage.log, captured: stage.captured }
    }

    fn state(&self, name: &str) -> KeyState {
        let key = self.keys.iter().find(|key| key.name == name);
        KeyState {
            name: name.into(),
            present: key.is_some(),
            fingerprint: key.map(|key| fingerprint(&key.value)),
            expires: key.and_then(|key| key.expires),
        }
    }
}

impl<P: Provider> Default for Case<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Run<T> {
    /// The value the host kept for `key`, which the provider never saw.
    pub fn captured(&self, key: &str) -> Option<&str> {
        self.captured.get(key).map(String::as_str)
    }

    fn take(self, what: &str) -> T {
        self.result.unwrap_or_else(|failure| panic!("{what} failed: {}", failure.message))
    }
}

impl Run<Verdict> {
    /// The verdict; panics where validate failed.
    #[track_caller]
    pub fn verdict(self) -> Verdict {
        self.take("validate")
    }
}

impl Run<Outcome> {
    /// The outcome; panics where rotate failed.
    #[track_caller]
    pub fn outcome(self) -> Outcome {
        self.take("rotate")
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "  {} {}", self.method, self.url)?;
        if self.cookies {
            f.write_str("\n    with the credential's cookies")?;
        }
        for (name, value) in &self.headers {
            write!(f, "\n    {name}: {value}")?;
        }
        match &self.body {
            Some(body) => write!(f, "\n    body: {body}"),
            None => Ok(()),
        }
    }
}

/// What would make the host refuse the manifest, one sentence each.
pub fn faults(manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |fine: bool, fault: String| {
        if !fine {
            faults.push(fault);
        }
    };
    let slug = |text: &str, also: &str| {
        (1..=64).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c))
    };
    let once =
        |names: Vec<&str>| names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1);

    let service = &manifest.service;
    check(slug(service, "-"), format!("service `{service}` is not [a-z0-9-], 1 to 64 characters"));
    check(manifest.validate_interval >= 1, "validate-interval is 0; at least 1 second".into());

    check(!manifest.keys.is_empty(), "there are no keys: nothing to keep alive".into());
    check(once(manifest.keys.iter().map(|key| key.name.as_str()).collect()), "two keys have one name".into());
    for key in &manifest.keys {
        check(slug(&key.name, "_-"), format!("key `{}` is not [a-z0-9_-], 1 to 64 characters", key.name));
    }

    check(
        once(manifest.settings.iter().map(|s| s.name.as_str()).collect()),
        "two settings have one name".into(),
    );
    for setting in &manifest.settings {
        let name = &setting.name;
        check(slug(name, "_"), format!("setting `{name}` is not [a-z0-9_], 1 to 64 characters"));
        let is_choice = setting.kind == SettingKind::Choice;
        check(
            is_choice != setting.choices.is_empty(),
            format!("setting `{name}`: a choice has choices, nothing else has"),
        );
        if let (true, Some(default)) = (is_choice, &setting.default) {
            check(
                setting.choices.contains(default),
                format!("setting `{name}`: its default `{default}` is no choice"),
            );
        }
    }

    check(
        once(manifest.methods.iter().map(|m| m.name.as_str()).collect()),
        "two methods have one name".into(),
    );
    for method in &manifest.methods {
        check(
            slug(&method.name, "-"),
            format!("method `{}` is not [a-z0-9-], 1 to 64 characters", method.name),
        );
        if let Some(name) = &method.commit_class_setting {
            let fits = manifest.settings.iter().any(|setting| {
                setting.name == *name
                    && setting.choices.iter().all(|choice| CommitClass::NAMES.contains(&choice.as_str()))
            });
            check(fits, format!("method `{}`: `{name}` is no choice setting of commit classes", method.name));
        }
    }

    // A setting without a default gets a stand-in, so that every known placeholder resolves.
    let known = |name: &str| {
        let setting = manifest.settings.iter().find(|setting| setting.name == name)?;
        let stand_in = if setting.kind == SettingKind::Url { "https://host.example" } else { "x" };
        Some(setting.default.clone().unwrap_or_else(|| stand_in.into()))
    };
    let mut origins = Vec::new();
    for origin in &manifest.origins {
        match placeholders::fill(origin, &known) {
            Ok(filled) => {
                let plain =
                    placeholders::origin(&filled).filter(|plain| *plain == filled && !plain.contains('*'));
                let secure = origin.contains('{') || filled.starts_with("https://");
                check(
                    plain.is_some() && secure,
                    format!("origin `{origin}` is not `https://host[:port]` of one host"),
                );
                origins.extend(plain);
            }
            Err(error) => check(false, format!("origin {error}")),
        }
    }
    match placeholders::fill(&manifest.validate_url, &known) {
        Ok(filled) => check(
            placeholders::origin(&filled).is_some_and(|origin| origins.contains(&origin)),
            format!("validate-url `{}` is not at one of the origins", manifest.validate_url),
        ),
        Err(error) => check(false, format!("validate-url {error}")),
    }
    for key in &manifest.keys {
        if let Location::Cookie(cookie) = &key.location {
            for field in [&cookie.name, &cookie.domain, &cookie.path] {
                if let Err(error) = placeholders::fill(field, &known) {
                    check(false, format!("cookie of key `{}`: {error}", key.name));
                }
            }
        }
    }
    faults
}

/// Stands in for the host's keyed HMAC: equal for equal values, and not the value.
fn fingerprint(value: &str) -> String {
    // FNV-1a, 64 bits.
    let hash = value.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

pub(crate) mod stage {
    //! The host's part while a case runs, one per test thread.

    use std::cell::RefCell;

    use super::*;

    #[derive(Debug)]
    pub(crate) struct Stage {
        pub(super) manifest: Manifest,
        pub(super) settings: Vec<(String, String)>,
        pub(super) keys: Vec<KnownKey>,
        pub(super) script: VecDeque<(Request, Answer)>,
        pub(super) now: u64,
        pub(super) log: Vec<(Level, String)>,
        pub(super) captured: BTreeMap<String, String>,
    }

    thread_local! {
        static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
    }

    pub(super) fn with<T>(stage: Stage, call: impl FnOnce() -> T) -> (T, Stage) {
        STAGE.with(|slot| *slot.borrow_mut() = Some(stage));
        let result = call();
        let stage = STAGE.with(|slot| slot.borrow_mut().take()).expect("put there above");
        (result, stage)
    }

    fn on_stage<T>(act: impl FnOnce(&mut Stage) -> T) -> T {
        STAGE.with(|slot| {
            let mut slot = slot.borrow_mut();
            act(slot
                .as_mut()
                .expect("natively there is no host: run the provider with keywheel_sdk::testing::Case"))
        })
    }

    pub(crate) fn send(request: &http::Request) -> Result<http::Response, http::Error> {
        on_stage(|stage| stage.send(request))
    }

    pub(crate) fn reveal(key: &str) -> Result<Vec<u8>, String> {
        on_stage(|stage| {
            let asked = stage.manifest.keys.iter().any(|spec| spec.name == key && spec.reveal);
            match stage.keys.iter().find(|known| known.name == key) {
                _ if !asked => Err(format!("the manifest doesn't ask to see `{key}`")),
                Some(known) if known.granted => Ok(known.value.clone().into_bytes()),
                _ => Err(format!("the operator didn't grant `{key}`")),
            }
        })
    }

    pub(crate) fn emit(level: Level, message: &str) {
        STAGE.with(|slot| {
            if let Some(stage) = slot.borrow_mut().as_mut() {
                stage.log.push((level, message.into()));
            }
        });
    }

    impl Stage {
        fn send(&mut self, request: &http::Request) -> Result<http::Response, http::Error> {
            let made = self.seen(request);
            self.check_rules(request);
            let origin = placeholders::origin(&made.url);
            let allowed: Vec<_> =
                self.manifest.origins.iter().filter_map(|origin| self.fill(origin)).collect();
            if !origin.as_ref().is_some_and(|origin| allowed.contains(origin)) {
                return Err(http::Error::Denied(format!(
                    "{} is at none of {}",
                    made.url,
                    allowed.join(", ")
                )));
            }
            let Some((expected, answer)) = self.script.pop_front() else {
                panic!("a request the script doesn't expect:\n{made}");
            };
            self.compare(&expected, &made);
            let mut response = answer.0?;
            if response.url.is_empty() {
                response.url.clone_from(&made.url);
            }
            self.capture(request, &mut response);
            self.redact(&mut response);
            Ok(response)
        }

        /// The request as a test writes it.
        fn seen(&self, request: &http::Request) -> Request {
            let text = |parts: &[_]| {
                let mut text = String::new();
                template::render(parts, &mut text).expect("a String takes everything");
                text
            };
            let headers =
                request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), text(value)));
            Request {
                method: request.method.clone(),
                url: text(&request.url),
                headers: headers.collect(),
                body: request.body.as_deref().map(text),
                cookies: request.cookies,
            }
        }

        /// What the host would refuse whatever the script says.
        fn check_rules(&self, request: &http::Request) {
            use crate::bindings::keywheel::provider::types::{Leaf, Part};
            let leaf = |leaf: &Leaf| match leaf {
                Leaf::Secret(secret) => vec![secret.key.clone()],
                Leaf::Text(_) => Vec::new(),
            };
            let templates =
                request.headers.iter().map(|(_, value)| value).chain([&request.url]).chain(&request.body);
            let used = templates.flatten().flat_map(|part| match part {
                Part::Text(_) => Vec::new(),
                Part::Secret(secret) => vec![secret.key.clone()],
                Part::Encoded(encoded) => encoded.leaves.iter().flat_map(leaf).collect(),
            });
            for key in used {
                let there =
                    self.keys.iter().any(|known| known.name == key) || self.captured.contains_key(&key);
                assert!(there, "a template uses key `{key}`, which this credential doesn't have");
            }
            for rule in &request.capture {
                let spec = self.manifest.keys.iter().find(|spec| spec.name == rule.key);
                let token = spec.is_some_and(|spec| spec.location == Location::Token);
                assert!(token, "a capture rule names `{}`, which is no token of the manifest", rule.key);
            }
        }

        fn compare(&self, expected: &Request, made: &Request) {
            let shown = |request: &Request, name: &str| {
                request.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            };
            // Headers the test doesn't name may be anything without a secret in it.
            let headers =
                expected.headers.iter().all(|(name, value)| shown(made, name).as_ref() == Some(value))
                    && made
                        .headers
                        .iter()
                        .all(|(name, value)| !value.contains('{') || shown(expected, name).is_some());
            let same = headers
                && expected.method == made.method
                && expected.url == made.url
                && expected.body == made.body
                && expected.cookies == made.cookies;
            assert!(same, "expected the request\n{expected}\nbut the provider made\n{made}");
        }

        fn capture(&mut self, request: &http::Request, response: &mut http::Response) {
            let mut found: Vec<(String, Option<String>, Option<u64>)> = Vec::new();
            for (_, cookie) in response.headers.iter().filter(|(name, _)| name == "set-cookie") {
                let mut attributes = cookie.split(';').map(str::trim);
                let pair = attributes.next().unwrap_or_default();
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let max_age: Option<i64> = attributes
                    .filter_map(|attribute| attribute.split_once('='))
                    .find(|(name, _)| name.eq_ignore_ascii_case("max-age"))
                    .and_then(|(_, seconds)| seconds.parse().ok());
                let lives = !value.is_empty() && max_age.is_none_or(|seconds| seconds > 0);
                let expires = max_age.and_then(|seconds| self.now.checked_add_signed(seconds * 1_000));
                let mapped = self.manifest.keys.iter().find(|spec| match &spec.location {
                    Location::Cookie(location) => self.fill(&location.name).as_deref() == Some(name),
                    Location::Token => false,
                });
                if let Some(spec) = mapped {
                    let value = lives.then(|| value.to_string());
                    found.push((spec.name.clone(), value, expires.filter(|_| lives)));
                }
            }
            response.headers.retain(|(name, _)| name != "set-cookie");
            if (200..300).contains(&response.status) {
                let json: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
                let at = |source: &http::Source| match source {
                    http::Source::JsonPointer(pointer) => match json.as_ref()?.pointer(pointer)? {
                        serde_json::Value::String(text) => Some(text.clone()),
                        serde_json::Value::Number(number) => Some(number.to_string()),
                        _ => None,
                    },
                    http::Source::Header(name) => {
                        let found =
                            response.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                        found.map(|(_, value)| value.clone())
                    }
                };
                for rule in &request.capture {
                    if let Some(value) = at(&rule.from) {
                        let lifetime =
                            rule.expires_in.as_ref().and_then(at).and_then(|text| text.parse::<u64>().ok());
                        let in_ms = ["expires-in-unit:", &rule.key].concat();
                        let unit = match request.extras.contains(&(in_ms, "ms".into())) {
                            true => 1,
                            false => 1_000,
                        };
                        found.push((rule.key.clone(), Some(value), lifetime.map(|l| self.now + l * unit)));
                    }
                }
            }
            for (key, value, expires) in found {
                let old = self.keys.iter().find(|known| known.name == key).map(|known| &known.value);
                response.captured.push(http::Captured {
                    key: key.clone(),
                    fingerprint: value.as_deref().map(fingerprint),
                    changed: old != value.as_ref(),
                    expires,
                });
                match value {
                    Some(value) => self.captured.insert(key, value),
                    None => self.captured.remove(&key),
                };
            }
        }

        fn redact(&self, response: &mut http::Response) {
            let secrets = self.keys.iter().map(|key| &key.value).chain(self.captured.values());
            for secret in secrets.filter(|secret| !secret.is_empty()) {
                let clean = |text: &str| text.replace(secret.as_str(), "[redacted]");
                for (_, value) in &mut response.headers {
                    *value = clean(value);
                }
                if let Ok(text) = std::str::from_utf8(&response.body) {
                    response.body = clean(text).into_bytes();
                }
            }
        }

        fn fill(&self, pattern: &str) -> Option<String> {
            let setting = |name: &str| {
                self.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            };
            placeholders::fill(pattern, &setting).ok()
        }
    }
}
