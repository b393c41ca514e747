//! Uses every import, every kind of setting, key and method, and every encoding: what a host
//! must still understand when the contract has grown. Its compiled form is a fixture.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_sdk::prelude::*;

struct Guest;

impl Provider for Guest {
    fn describe() -> Manifest {
        let methods = [
            CommitClass::Sliding,
            CommitClass::Additive,
            CommitClass::CommitOnUse,
            CommitClass::Grace,
            CommitClass::BurnOnIssue,
        ];
        let manifest = Manifest::new("uses-everything", "Everything the contract has", "0.1.0")
            .setting(Setting::url("base_url").required().help("Where the service is"))
            .setting(Setting::text("label").default("none").help("A text"))
            .setting(Setting::integer("count").default("3").help("A number"))
            .setting(Setting::boolean("strict").default("true").help("A switch"))
            .setting(Setting::duration("margin").default("2m").help("A duration"))
            .setting(Setting::choice("commit_class", CommitClass::NAMES).default("sliding").help("A choice"))
            .origin("{base_url.origin}")
            .origin("https://api.example.com")
            .validate_url("{base_url}/check")
            .key(Key::cookie("session", "session", "{base_url.host}").path("/").help("A cookie"))
            .key(Key::token("token").reveal().help("A token it asks to see"))
            .key(Key::token("fresh").optional().help("A token it may get"))
            .validate_every(900)
            .max_age(86_400);
        CommitClass::NAMES.into_iter().zip(methods).fold(manifest, |manifest, (name, class)| {
            let method = Method::new(name, class).help("A way to rotate");
            manifest.method(if name == "sliding" { method.commit_class_from("commit_class") } else { method })
        })
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        log::debug("a line of each level");
        log::info("a line of each level");
        log::warn("a line of each level");
        log::error("a line of each level");
        let seen = cx.reveal("token")?.len();
        let settings = (
            cx.setting("label"),
            cx.setting_as::<i64>("count")?,
            cx.setting_as::<bool>("strict")?,
            cx.setting_seconds("margin")?,
        );
        if settings != ("none", 3, true, 120) || !cx.has("session") {
            return Ok(Verdict::needs_human(format!("the settings are {settings:?}")));
        }
        let answer = cx
            .get("{validate_url}")
            .cookies()
            .segment(secret("token"))
            .query("percent", secret("token"))
            .header("authorization", basic(text("user"), secret("token")))
            .header("x-base64url", secret("token").base64_url())
            .header("x-hex", secret("token").hex())
            .header("x-sha1", secret("token").sha1_hex())
            .header("x-sha256", secret("token").sha256_hex())
            .redirects(2)
            .timeout(10)
            .send()?;
        match answer.status() {
            200 => Ok(Verdict::Valid(
                Evidence::new()
                    .expires(cx.now() + 3_600_000)
                    .identity(String::from("the account"))
                    .next(900)
                    .note(format!("the token has {seen} bytes")),
            )),
            401 => Ok(Verdict::invalid("/check answers 401")),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, method: &str) -> Result<Outcome> {
        let request = cx
            .post("{base_url}/rotate")
            .cookies()
            .capture("fresh", json("/fresh").expires_in(json("/expires_in")));
        let request = match method {
            "sliding" => request.form([("token", secret("token"))]),
            _ => request.json([("token", secret("token"))]),
        };
        let answer = request.send()?;
        match answer.status() {
            200..=299 => Ok(answer.outcome()),
            401 => Ok(Outcome::invalid("/rotate answers 401")),
            _ => Err(answer.unexpected()),
        }
    }
}

keywheel_sdk::export!(Guest);
