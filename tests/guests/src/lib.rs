//! What the guests share: the manifest and the two calls of a provider that behaves. Each guest
//! in `examples/` changes one thing about it. Never shipped.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

use keywheel_sdk::bindings::keywheel::provider::http;
use keywheel_sdk::prelude::*;

pub mod raw;

/// A service at `{base_url}` with one session cookie. The commit class is a setting, so that one
/// guest serves the tests of every class.
pub fn manifest(service: &str, version: &str) -> Manifest {
    Manifest::new(service, "A guest of the tests", version)
        .setting(Setting::url("base_url").required().help("Where the service is"))
        .setting(Setting::choice("commit_class", CommitClass::NAMES).default("sliding"))
        .origin("{base_url.origin}")
        .validate_url("{base_url}/check")
        .key(Key::cookie("session", "session", "{base_url.host}").help("The session cookie"))
        .method(Method::new("refresh", CommitClass::Sliding).commit_class_from("commit_class"))
}

/// GET `{base_url}/check` with the cookies: 200 lives, 401 is dead.
pub fn check(cx: &Cx) -> Result<Verdict> {
    let answer = cx.get("{validate_url}").cookies().send()?;
    match answer.status() {
        200 => Ok(Verdict::valid()),
        401 => Ok(Verdict::invalid("/check answers 401")),
        _ => Err(answer.unexpected()),
    }
}

/// POST `{base_url}/rotate` with the cookies: the answer sets a fresh session cookie.
pub fn refresh(cx: &Cx) -> Result<Outcome> {
    let answer = cx.post("{base_url}/rotate").cookies().send()?;
    match answer.status() {
        200..=299 => Ok(answer.outcome()),
        401 => Ok(Outcome::invalid("/rotate answers 401")),
        _ => Err(answer.unexpected()),
    }
}

/// The same provider with one thing more to steal, the token, and the address of somebody whom
/// nobody allowed.
pub fn tempted(service: &str) -> Manifest {
    manifest(service, "0.1.0")
        .setting(Setting::text("elsewhere").default("127.0.0.1:9").help("Host and port to steal to"))
        .key(Key::token("token").optional().help("A token"))
}

/// What a guest was given and what came of its tries, told to the service as hexadecimal: past
/// every redaction, so that a test sees exactly what the guest saw.
#[derive(Default)]
pub struct Told(String);

impl Told {
    pub fn note(&mut self, what: &str, seen: impl AsRef<[u8]>) {
        self.0.extend(what.escape_debug());
        self.0.push(' ');
        for byte in seen.as_ref() {
            for digit in [byte >> 4, byte & 15] {
                self.0.push(char::from_digit(digit.into(), 16).unwrap_or('?'));
            }
        }
        self.0.push('\n');
    }

    /// Sends a request and notes everything that comes of it.
    pub fn send(&mut self, what: &str, request: &http::Request) -> Option<http::Response> {
        match http::send(request) {
            Ok(answer) => {
                self.note(what, format!("answered {}", answer.status));
                self.note("url", &answer.url);
                for (name, value) in &answer.headers {
                    self.note("header", format!("{name}: {value}"));
                }
                self.note("body", &answer.body);
                for captured in &answer.captured {
                    self.note("captured", format!("{captured:?}"));
                }
                for (name, value) in &answer.extras {
                    self.note("extra", format!("{name}: {value}"));
                }
                Some(answer)
            }
            Err(error) => {
                self.note(what, format!("{error:?}"));
                None
            }
        }
    }

    /// Ends a call that tried things, with the one request that a verdict can rest on.
    pub fn finish(self, cx: &Cx) -> Result<Verdict> {
        cx.post("{base_url}/told").cookies().body(self.0).send()?;
        Ok(Verdict::valid())
    }
}

/// A service at `{base_url}` with one token that dies when the next is issued, for providers that
/// the conformance kit must find nothing against, or one fault by its name.
pub fn careful(service: &str) -> Manifest {
    Manifest::new(service, "A guest of the tests", "0.1.0")
        .setting(Setting::url("base_url").required().help("Where the service is"))
        .origin("{base_url.origin}")
        .validate_url("{base_url}/me")
        .key(Key::token("token").help("The token"))
        .method(Method::new("renew", CommitClass::BurnOnIssue))
        .source("https://shop.example/docs")
        .class_source("renew", "https://shop.example/docs#renew")
}

/// GET `{base_url}/me`: a name lives, 401 is dead.
pub fn me(cx: &Cx) -> Result<Verdict> {
    let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
    match answer.status() {
        200 => match answer.pick("/name")? {
            Some(name) => Ok(Verdict::Valid(Evidence::new().identity(name))),
            None => Err(answer.unexpected()),
        },
        401 => Ok(Verdict::invalid("/me answers 401")),
        _ => Err(answer.unexpected()),
    }
}

/// The request that spends the token.
pub fn renewal(cx: &Cx) -> Request {
    cx.post("{base_url}/renew").header("authorization", bearer("token")).capture("token", json("/token"))
}

/// POST `{base_url}/renew`: the answer has a fresh token.
pub fn renew(cx: &Cx) -> Result<Outcome> {
    let answer = renewal(cx).send()?;
    match answer.status() {
        200 if answer.changed("token") => Ok(Outcome::rotated()),
        401 => Ok(Outcome::invalid("/renew answers 401")),
        _ => Err(answer.unexpected()),
    }
}

/// A provider of `careful`'s service.
#[macro_export]
macro_rules! careful {
    ($service:literal, $manifest:path, $validate:path, $rotate:path) => {
        struct Guest;

        impl ::keywheel_sdk::Provider for Guest {
            fn describe() -> ::keywheel_sdk::Manifest {
                $manifest($service)
            }

            fn validate(cx: &::keywheel_sdk::Cx) -> ::keywheel_sdk::Result<::keywheel_sdk::Verdict> {
                $validate(cx)
            }

            fn rotate(
                cx: &::keywheel_sdk::Cx,
                _method: &str,
            ) -> ::keywheel_sdk::Result<::keywheel_sdk::Outcome> {
                $rotate(cx)
            }
        }

        ::keywheel_sdk::export!(Guest);
    };
}

/// A plugin that behaves in all but what is named. With `std` at the end it uses std.
#[macro_export]
macro_rules! guest {
    ($service:literal, validate: $validate:path $(, $std:ident)?) => {
        $crate::guest!($service, validate: $validate, rotate: $crate::refresh $(, $std)?);
    };
    ($service:literal, rotate: $rotate:path $(, $std:ident)?) => {
        $crate::guest!($service, validate: $crate::check, rotate: $rotate $(, $std)?);
    };
    ($service:literal, validate: $validate:path, rotate: $rotate:path $(, $std:ident)?) => {
        struct Guest;

        impl ::keywheel_sdk::Provider for Guest {
            fn describe() -> ::keywheel_sdk::Manifest {
                $crate::tempted($service)
            }

            fn validate(cx: &::keywheel_sdk::Cx) -> ::keywheel_sdk::Result<::keywheel_sdk::Verdict> {
                $validate(cx)
            }

            fn rotate(
                cx: &::keywheel_sdk::Cx,
                _method: &str,
            ) -> ::keywheel_sdk::Result<::keywheel_sdk::Outcome> {
                $rotate(cx)
            }
        }

        ::keywheel_sdk::export!(Guest $(, $std)?);
    };
}
