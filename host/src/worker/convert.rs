//! Between the generated types of the contract and the messages of the protocol, field by
//! field. No decision is made here.

use super::bindings::{http, log, types};
use crate::protocol as p;
use crate::provider as d;

pub fn encoding(from: types::Encoding) -> d::Encoding {
    match from {
        types::Encoding::Raw => d::Encoding::Raw,
        types::Encoding::Form => d::Encoding::Form,
        types::Encoding::Percent => d::Encoding::Percent,
        types::Encoding::Json => d::Encoding::Json,
        types::Encoding::Base64 => d::Encoding::Base64,
        types::Encoding::Base64Url => d::Encoding::Base64Url,
        types::Encoding::Hex => d::Encoding::Hex,
        types::Encoding::Sha1Hex => d::Encoding::Sha1Hex,
        types::Encoding::Sha256Hex => d::Encoding::Sha256Hex,
    }
}

fn leaf(from: types::Leaf) -> p::Leaf {
    match from {
        types::Leaf::Text(text) => p::Leaf::Text(text),
        types::Leaf::Secret(secret) => {
            p::Leaf::Secret { key: secret.key, encoding: encoding(secret.encoding) }
        }
    }
}

fn part(from: types::Part) -> p::Part {
    match from {
        types::Part::Text(text) => p::Part::Text(text),
        types::Part::Secret(secret) => {
            p::Part::Secret { key: secret.key, encoding: encoding(secret.encoding) }
        }
        types::Part::Encoded(encoded) => p::Part::Encoded {
            leaves: encoded.leaves.into_iter().map(leaf).collect(),
            encoding: encoding(encoded.encoding),
        },
    }
}

fn template(from: types::Template) -> p::Template {
    from.into_iter().map(part).collect()
}

fn source(from: http::Source) -> p::Source {
    match from {
        http::Source::JsonPointer(pointer) => p::Source::JsonPointer(pointer),
        http::Source::Header(name) => p::Source::Header(name),
    }
}

pub fn request(from: http::Request) -> p::HttpRequest {
    p::HttpRequest {
        method: from.method,
        url: template(from.url),
        headers: from.headers.into_iter().map(|(name, value)| (name, template(value))).collect(),
        body: from.body.map(template),
        cookies: from.cookies,
        capture: from
            .capture
            .into_iter()
            .map(|rule| p::Capture {
                key: rule.key,
                from: source(rule.from),
                expires_in: rule.expires_in.map(source),
            })
            .collect(),
        redirects: from.redirects,
        timeout: from.timeout,
        extras: from.extras,
    }
}

pub fn response(from: p::HttpResponse) -> http::Response {
    http::Response {
        status: from.status,
        url: from.url,
        headers: from.headers,
        body: from.body,
        captured: from
            .captured
            .into_iter()
            .map(|captured| http::Captured {
                key: captured.key,
                fingerprint: captured.fingerprint,
                changed: captured.changed,
                expires: captured.expires,
            })
            .collect(),
        extras: from.extras,
    }
}

pub fn http_error(from: p::HttpError) -> http::Error {
    match from {
        p::HttpError::Denied(why) => http::Error::Denied(why),
        p::HttpError::Dns(why) => http::Error::Dns(why),
        p::HttpError::Connect(why) => http::Error::Connect(why),
        p::HttpError::Tls(why) => http::Error::Tls(why),
        p::HttpError::Timeout => http::Error::Timeout,
        p::HttpError::TooLarge(cap) => http::Error::TooLarge(cap),
        p::HttpError::Protocol(why) => http::Error::Protocol(why),
        p::HttpError::Budget(why) => http::Error::Budget(why),
        p::HttpError::Other(why) => http::Error::Other(why),
    }
}

pub fn log_level(from: log::Level) -> p::LogLevel {
    match from {
        log::Level::Debug => p::LogLevel::Debug,
        log::Level::Info => p::LogLevel::Info,
        log::Level::Warn => p::LogLevel::Warn,
        log::Level::Error => p::LogLevel::Error,
    }
}

pub fn context(from: p::Context) -> types::Context {
    types::Context {
        credential_id: from.credential_id,
        profile_id: from.profile_id,
        settings: from.settings,
        keys: from
            .keys
            .into_iter()
            .map(|key| types::KeyState {
                name: key.name,
                present: key.present,
                fingerprint: key.fingerprint,
                expires: key.expires,
            })
            .collect(),
        attempt: from.attempt,
        now: from.now,
        extras: from.extras,
    }
}

fn evidence(from: types::Evidence) -> p::Evidence {
    p::Evidence {
        expires: from.expires,
        identity: from.identity,
        next: from.next,
        note: from.note,
        extras: from.extras,
    }
}

fn reason(from: types::Reason) -> p::Reason {
    p::Reason { message: from.message, retry_after: from.retry_after, extras: from.extras }
}

pub fn verdict(from: types::Verdict) -> p::Verdict {
    match from {
        types::Verdict::Valid(found) => p::Verdict::Valid(evidence(found)),
        types::Verdict::Invalid(why) => p::Verdict::Invalid(reason(why)),
        types::Verdict::Unknown(why) => p::Verdict::Unknown(reason(why)),
        types::Verdict::NeedsHuman(why) => p::Verdict::NeedsHuman(reason(why)),
    }
}

pub fn outcome(from: types::Outcome) -> p::Outcome {
    match from {
        types::Outcome::Rotated(found) => p::Outcome::Rotated(evidence(found)),
        types::Outcome::Unchanged(found) => p::Outcome::Unchanged(evidence(found)),
        types::Outcome::Invalid(why) => p::Outcome::Invalid(reason(why)),
        types::Outcome::Unknown(why) => p::Outcome::Unknown(reason(why)),
        types::Outcome::NeedsHuman(why) => p::Outcome::NeedsHuman(reason(why)),
    }
}

fn commit_class(from: types::CommitClass) -> d::CommitClass {
    match from {
        types::CommitClass::Sliding => d::CommitClass::Sliding,
        types::CommitClass::Additive => d::CommitClass::Additive,
        types::CommitClass::CommitOnUse => d::CommitClass::CommitOnUse,
        types::CommitClass::Grace => d::CommitClass::Grace,
        types::CommitClass::BurnOnIssue => d::CommitClass::BurnOnIssue,
    }
}

fn setting_kind(from: types::SettingKind) -> d::SettingKind {
    match from {
        types::SettingKind::Text => d::SettingKind::Text,
        types::SettingKind::Url => d::SettingKind::Url,
        types::SettingKind::Integer => d::SettingKind::Integer,
        types::SettingKind::Boolean => d::SettingKind::Boolean,
        types::SettingKind::Duration => d::SettingKind::Duration,
        types::SettingKind::Choice => d::SettingKind::Choice,
    }
}

pub fn manifest(from: types::Manifest) -> d::Manifest {
    d::Manifest {
        service: from.service,
        title: from.title,
        version: from.version,
        validate_url: from.validate_url,
        keys: from
            .keys
            .into_iter()
            .map(|key| d::KeySpec {
                name: key.name,
                location: match key.location {
                    types::Location::Cookie(cookie) => d::Location::Cookie(d::CookieLocation {
                        name: cookie.name,
                        domain: cookie.domain,
                        path: cookie.path,
                    }),
                    types::Location::Token => d::Location::Token,
                },
                required: key.required,
                reveal: key.reveal,
                help: key.help,
            })
            .collect(),
        origins: from.origins,
        settings: from
            .settings
            .into_iter()
            .map(|setting| d::SettingSpec {
                name: setting.name,
                kind: setting_kind(setting.kind),
                required: setting.required,
                default: setting.default,
                choices: setting.choices,
                help: setting.help,
            })
            .collect(),
        methods: from
            .methods
            .into_iter()
            .map(|method| d::MethodSpec {
                name: method.name,
                commit_class: commit_class(method.commit_class),
                commit_class_setting: method.commit_class_setting,
                help: method.help,
            })
            .collect(),
        validate_interval: from.validate_interval,
        max_age: from.max_age,
        extras: from.extras,
    }
}
