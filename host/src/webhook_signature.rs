//! Signs what is sent to webhooks of the operator's, as the Standard Webhooks convention says
//! (standardwebhooks.com, version 1): the receiver sees that a message is ours, unchanged and
//! fresh, and by its id whether it came before. Pure, a leaf: it sends nothing and reads no file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::credential::{Millis, Secret};

/// What a signing secret begins with, in a file or in the receiver's settings.
const PREFIX: &str = "whsec_";

/// The convention's own bounds for a secret.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    #[error(
        "a signing secret must begin with `{PREFIX}`; hint: `printf '{PREFIX}%s\\n' \"$(head -c 32 /dev/urandom | base64)\"` makes one"
    )]
    Prefix,
    #[error("what follows `{PREFIX}` in a signing secret must be base64, and it isn't")]
    Encoding,
    #[error("a signing secret has {found} bytes; allowed: 24 to 64")]
    Length { found: usize },
}

/// What a receiver shares with this host. It can't be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningSecret(Secret);

impl SigningSecret {
    /// Reads `whsec_` and base64, as a file has it: white space around it is none of it.
    ///
    /// # Errors
    /// In words that quote nothing of it.
    pub fn parse(text: &Secret) -> Result<Self, SecretError> {
        let bytes = text.expose().trim_ascii();
        let encoded = bytes.strip_prefix(PREFIX.as_bytes()).ok_or(SecretError::Prefix)?;
        let secret = Secret::new(STANDARD.decode(encoded).map_err(|_| SecretError::Encoding)?);
        let found = secret.expose().len();
        if BYTES.contains(&found) { Ok(Self(secret)) } else { Err(SecretError::Length { found }) }
    }
}

/// The headers of one try. The id is the message's and stays the same with every try; the moment
/// is the try's own, for receivers refuse what is older than a few minutes.
pub fn headers(id: &str, at: Millis, body: &[u8], secret: &SigningSecret) -> Vec<(String, Secret)> {
    let seconds = (at / 1_000).to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.0.expose()).expect("HMAC takes a key of any length");
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let mut headers = unsigned(id, at);
    headers.push((String::from("webhook-signature"), Secret::new(signature)));
    headers
}

/// The same where nothing was agreed on: the receiver still knows by the id what came before.
pub fn unsigned(id: &str, at: Millis) -> Vec<(String, Secret)> {
    let seconds = (at / 1_000).to_string();
    vec![
        (String::from("webhook-id"), Secret::new(id)),
        (String::from("webhook-timestamp"), Secret::new(seconds)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(bytes: &[u8]) -> Secret {
        Secret::new(format!("{PREFIX}{}", STANDARD.encode(bytes)))
    }

    fn value(headers: &[(String, Secret)], name: &str) -> String {
        let (_, value) = headers.iter().find(|(found, _)| found == name).expect("the header");
        String::from_utf8(value.expose().to_vec()).unwrap()
    }

    #[test]
    fn a_message_is_signed_as_the_convention_says() {
        // Computed by OpenSSL: printf 'msg_1.1614265330.{"test":1}' | openssl dgst -sha256 -hmac KEY
        // with a KEY of 32 letters `k`.
        let secret = SigningSecret::parse(&text_of(&[b'k'; 32])).unwrap();
        let headers = headers("msg_1", 1_614_265_330_999, br#"{"test":1}"#, &secret);
        assert_eq!(value(&headers, "webhook-id"), "msg_1");
        assert_eq!(value(&headers, "webhook-timestamp"), "1614265330");
        assert_eq!(value(&headers, "webhook-signature"), "v1,rFHsrViG6ene7qQzxGfsqtu1K4TwcoZBjps1Vt1kkA0=");
    }

    #[test]
    fn another_id_moment_body_or_secret_makes_another_signature() {
        let secret = |byte: u8| SigningSecret::parse(&text_of(&[byte; 24])).unwrap();
        let sign = |id: &str, at: Millis, body: &[u8], byte: u8| {
            value(&headers(id, at, body, &secret(byte)), "webhook-signature")
        };
        let first = sign("a", 1_000, b"x", 1);
        assert_eq!(sign("a", 1_999, b"x", 1), first);
        for other in [
            sign("b", 1_000, b"x", 1),
            sign("a", 2_000, b"x", 1),
            sign("a", 1_000, b"y", 1),
            sign("a", 1_000, b"x", 2),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn a_secret_is_read_as_a_file_has_it_and_refused_without_being_quoted() {
        let good = text_of(&[7; 24]);
        let with_line_end = Secret::new([good.expose(), b"\n"].concat());
        assert_eq!(SigningSecret::parse(&with_line_end), SigningSecret::parse(&good));
        for (text, want) in [
            (Secret::new("plain words"), SecretError::Prefix),
            (Secret::new(""), SecretError::Prefix),
            (Secret::new(format!("{PREFIX}not base64!")), SecretError::Encoding),
            (text_of(&[1; 23]), SecretError::Length { found: 23 }),
            (text_of(&[1; 65]), SecretError::Length { found: 65 }),
        ] {
            let error = SigningSecret::parse(&text).unwrap_err();
            assert_eq!(error, want);
            assert!(!error.to_string().contains("plain") && !error.to_string().contains("not base64!"));
        }
        assert!(SigningSecret::parse(&text_of(&[1; 64])).is_ok());
        assert_eq!(format!("{:?}", SigningSecret::parse(&good).unwrap()), "SigningSecret(Secret(…))");
    }
}
