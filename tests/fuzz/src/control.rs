//! JSON from outside: the control socket's lines and reports. What is read is the same after it
//! was written and read again, `Debug` of an operation shows no secret, and moments survive.

use keywheel::control::{KeyInput, Operation, Outcome, Refusal, SecretInput};
use keywheel::credential::Secret;
use keywheel::report::{Report, iso8601, parse_iso8601};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No other field of a made-up operation holds this.
const SECRET: &[u8] = b"a secret that nobody may print";

pub fn run(input: &[u8]) {
    if let Some(mut operation) = same_after_a_round::<Operation>(input) {
        let keys = match &mut operation {
            Operation::CredentialAdd(new) => &mut new.keys,
            Operation::CredentialImport { keys, .. } => keys,
            _ => return,
        };
        for key in keys.iter_mut() {
            key.value = SecretInput::new(&Secret::new(SECRET));
        }
        let shown = format!("{operation:?}");
        assert!(!shown.contains(&hex::encode(SECRET)) && !shown.contains("a secret that"), "{shown}");
    }
    same_after_a_round::<Result<Outcome, Refusal>>(input);
    if let Some(report) = same_after_a_round::<Report>(input) {
        assert!(report.idempotency_key().contains(&report.started_at));
        for text in [&report.started_at, &report.finished_at] {
            if let Some(at) = parse_iso8601(text) {
                assert_eq!(parse_iso8601(&iso8601(at)), Some(at), "{text}");
            }
        }
    }
    // Any key bytes become a secret or an empty one.
    if let Ok(key) = serde_json::from_slice::<KeyInput>(input) {
        let _ = key.value.into_secret();
    }
}

fn same_after_a_round<T: DeserializeOwned + Serialize>(input: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(input).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("written again"), written);
    Some(read)
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"op":"status"}"#,
        r#"{"op":"plugin-check","path":"/a/b.wasm"}"#,
        r#"{"op":"plugin-approve","service":"forge"}"#,
        r#"{"op":"credential-add","credential_id":"c","profile_id":null,"service":"forge","settings":[["base_url","https://a.example"]],"private_hosts":["h"],"method":"refresh","validate_interval":60,"max_age":null,"keys":[{"name":"session","value":"00ff","expires":1,"cookie":{"name":"sid","domain":"a.example","path":"/","host_only":true,"secure":true,"http_only":false,"same_site":"Lax"}}]}"#,
        r#"{"op":"credential-import","credential_id":"c","keys":[{"name":"k","value":"zz","expires":null,"cookie":null}]}"#,
        r#"{"op":"credential-pause","credential_id":"c","paused":true}"#,
        r#"{"op":"credential-run","credential_id":"c","action":"rotate"}"#,
        r#"{"Ok":"done"}"#,
        r#"{"Ok":{"lines":["a"]}}"#,
        r#"{"Err":{"kind":"bad-input","message":"no"}}"#,
        r#"{"cookieId":"c","profileId":null,"service":"forge","validateUrl":"https://a.example/me","cookieKeys":{"session":"00112233"},"status":"validation_failed","message":"no","startedAt":"2026-01-02T03:04:05.678Z","finishedAt":"2026-01-02T03:04:06+01:00","attemptNumber":3,"meta":{"verdict":"invalid","n":1.5,"l":[null,true]}}"#,
        r#"{"name":"k","value":"00","expires":18446744073709551615,"cookie":null}"#,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}
