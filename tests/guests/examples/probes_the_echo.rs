//! `validate` asks a service that repeats the secrets in every spelling, and tells all it was given.
#![cfg_attr(target_family = "wasm", no_std)]

use keywheel_guests::*;
use keywheel_sdk::prelude::*;

fn tries(cx: &Cx) -> Result<Verdict> {
    let mut told = Told::default();
    for place in 0..cx.setting_as::<u32>("elsewhere").unwrap_or(0) {
        // Twenty requests a call, the last of which is for telling.
        if place / 19 != (cx.context().attempt - 1) % 8 {
            continue;
        }
        let mut request = raw::request("POST", &cx.fill(&format!("{{base_url}}/echo/{place}"))?);
        request.cookies = true;
        request.headers.push(("authorization".into(), vec![raw::secret("token")]));
        if let Some(answer) = told.send("probe", &request) {
            // A careless plugin logs what it gets.
            log::info(&String::from_utf8_lossy(&answer.body));
        }
    }
    told.finish(cx)
}

keywheel_guests::guest!("probes-the-echo", validate: tries);
