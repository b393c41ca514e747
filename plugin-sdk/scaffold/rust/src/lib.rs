//! Keeps API tokens of My service alive, wherever it is hosted.

#![cfg_attr(target_family = "wasm", no_std)]
use keywheel_sdk::prelude::*;

struct MyService;

impl Provider for MyService {
    fn describe() -> Manifest {
        Manifest::new("my-service", "My service", env!("CARGO_PKG_VERSION"))
            .source("https://my-service.example/docs/api")
            .setting(Setting::url("base_url").required().help("As in https://my-service.example"))
            .origin("{base_url.origin}")
            .validate_url("{base_url}/api/me")
            .key(Key::token("token").help("An API token, from the page Settings, Tokens"))
            .method(Method::new("renew", CommitClass::BurnOnIssue).help("Swap it for a fresh one"))
            .class_source("renew", "https://my-service.example/docs/api#renew")
    }

    fn validate(cx: &Cx) -> Result<Verdict> {
        let answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()?;
        match answer.status() {
            200 => Ok(Verdict::Valid(Evidence::new().identity(answer.pick("/login")?))),
            401 => Ok(Verdict::invalid("/api/me answers 401: no such token, or no longer")),
            _ => Err(answer.unexpected()),
        }
    }

    fn rotate(cx: &Cx, _method: &str) -> Result<Outcome> {
        let answer = cx
            .post("{base_url}/api/token/renew")
            .header("authorization", bearer("token"))
            .capture("token", json("/token").expires_in(json("/expires_in")))
            .send()?;
        match answer.status() {
            200 if answer.changed("token") => Ok(Outcome::rotated()),
            401 => Ok(Outcome::invalid("the service doesn't renew this token: make a new one")),
            _ => Err(answer.unexpected()),
        }
    }
}

keywheel_sdk::export!(MyService);

#[cfg(test)]
mod tests {
    use keywheel_sdk::testing::{Case, answer, get};

    use super::*;

    #[test]
    fn a_living_token_is_valid_and_names_its_account() {
        let me = get("https://my-service.example/api/me").header("authorization", "Bearer {token}");
        let run = Case::<MyService>::new()
            .setting("base_url", "https://my-service.example")
            .key("token")
            .expect(me, answer(200).json(r#"{"login":"ann"}"#))
            .validate();
        assert_eq!(run.verdict(), Verdict::Valid(Evidence::new().identity(String::from("ann"))));
    }
}
