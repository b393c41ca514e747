//! What a webhook and a command are told: that a credential has new secrets, never which. The
//! message and its id; `webhook_signature` signs it. Pure: the same generation
//! makes the same message with the same id, however often it is sent.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::db::uses::InForce;
use crate::report::iso8601;

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
}
