//! What a webhook and a command are told: that a credential has new secrets, never which. The
//! message, its id and its signature by the Standard Webhooks convention
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//! Pure: the same generation makes the same message with the same id, however often it is sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::credential::Secret;
use crate::db::uses::InForce;
use crate::report::iso8601;

/// The convention's: a symmetric secret's text begins so.
const SECRET_PREFIX: &str = "whsec_";
/// And is so long once it is decoded.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The message, with nothing in it that a stranger could use.
pub fn body(sink: &str, credential: &str, in_force: &InForce) -> Vec<u8> {
    let keys: Vec<_> = in_force
        .keys
        .iter()
        .map(|(name, fingerprint, expires)| {
            json!({ "name": name, "fingerprint": fingerprint, "expiresAt": expires.map(iso8601) })
        })
        .collect();
    let message = json!({
        "type": "credential.changed",
        "timestamp": iso8601(in_force.rotated_at),
        "data": {
            "sink": sink,
            "credential": credential,
            "service": in_force.service,
            "generation": in_force.generation,
            "expiresAt": in_force.keys.iter().filter_map(|(_, _, expires)| *expires).min().map(iso8601),
            "keys": keys,
        },
    });
    message.to_string().into_bytes()
}

/// The same for each try, also after a restart: by it the receiver knows what it had already.
pub fn id(sink: &str, in_force: &InForce) -> String {
    let mut hash = Sha256::new();
    // The row's number is never given out again, so no two credentials of one name share an id.
    let generation = in_force.generation.unwrap_or_default();
    for part in [sink, &in_force.row.to_string(), &generation.to_string(), &in_force.rotated_at.to_string()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("msg_{}", &hex::encode(hash.finalize())[..32])
}

/// The header `webhook-signature`: over id, moment and body.
pub fn signature(secret: &Secret, id: &str, seconds: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The secret in the text of its file.
///
/// # Errors
/// What is wrong with it, without a word of it.
pub fn secret(text: &str) -> Result<Secret, String> {
    let allowed = "allowed: whsec_ and 24 to 64 bytes in base64";
    let encoded = text.trim().strip_prefix(SECRET_PREFIX).ok_or_else(|| {
        format!("doesn't begin with {SECRET_PREFIX}; {allowed}; hint: printf whsec_; openssl rand -base64 32")
    })?;
    let bytes =
        STANDARD.decode(encoded).map_err(|_| format!("is no base64 after {SECRET_PREFIX}; {allowed}"))?;
    let found = bytes.len();
    let secret = Secret::new(bytes);
    match SECRET_BYTES.contains(&found) {
        true => Ok(secret),
        false => Err(format!("has {found} bytes after {SECRET_PREFIX}; {allowed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force() -> InForce {
        InForce {
            row: 7,
            service: String::from("shop"),
            generation: Some(3),
            rotated_at: 1_700_000_000_000,
            unheard: false,
            keys: vec![
                (String::from("access_token"), String::from("f1"), Some(1_700_000_600_000)),
                (String::from("refresh_token"), String::from("f2"), None),
            ],
        }
    }

    /// The convention's own example, from its reference libraries' tests.
    #[test]
    fn the_signature_is_the_conventions() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed =
            signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_message_says_what_changed_and_holds_no_value() {
        let body: serde_json::Value = serde_json::from_slice(&body("app", "ann", &in_force())).unwrap();
        assert_eq!(body["type"], "credential.changed");
        let data = &body["data"];
        assert_eq!(
            (&data["credential"], &data["service"], &data["generation"], &data["sink"]),
            (&json!("ann"), &json!("shop"), &json!(3), &json!("app"))
        );
        assert_eq!(data["expiresAt"], data["keys"][0]["expiresAt"]);
        assert_eq!(
            data["keys"][1],
            json!({ "name": "refresh_token", "fingerprint": "f2", "expiresAt": null })
        );
    }

    #[test]
    fn an_id_is_the_same_for_each_try_and_another_for_everything_else() {
        let first = id("app", &in_force());
        assert_eq!(first, id("app", &in_force()));
        let others = [
            id("other", &in_force()),
            id("app", &InForce { generation: Some(4), ..in_force() }),
            id("app", &InForce { row: 8, ..in_force() }),
        ];
        for other in &others {
            assert_ne!(&first, other);
        }
        // What doesn't tell generations apart doesn't tell ids apart.
        assert_eq!(first, id("app", &InForce { keys: Vec::new(), ..in_force() }));
    }

    #[test]
    fn a_secret_that_is_none_is_refused_without_a_word_of_it() {
        for (text, wanted) in [
            ("", "doesn't begin with whsec_"),
            ("hunter2hunter2hunter2hunter2", "doesn't begin with whsec_"),
            ("whsec_%%%", "is no base64 after whsec_"),
            ("whsec_aHVudGVyMg==", "has 7 bytes after whsec_; allowed: whsec_ and 24 to 64 bytes"),
        ] {
            let said = secret(text).expect_err(wanted);
            assert!(said.contains(wanted), "{said}");
            assert!(!said.contains("hunter2") && !said.contains("aHVud"), "{said}");
        }
        assert_eq!(secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap().expose().len(), 24);
    }
}
