//! What a request would be, without sending it: composed and judged by the very code that
//! sends, and rendered with a reference wherever a secret would stand. It is given the names of
//! a credential's keys and never a value, so none can be in what it returns.

use serde::{Deserialize, Serialize};

use super::{Exchange, client, cookies, template};
use crate::credential::{CookieAttributes, Jar, Key, Millis, Secret};
use crate::protocol::{HttpRequest, Part};
use crate::provider::{Location, Resolved};

/// A body is shown up to here.
const SHOWN: usize = 2_000;

/// A key that the credential has, without its value.
#[derive(Debug, Clone)]
pub struct Held {
    pub name: String,
    pub expires: Option<Millis>,
    pub cookie: Option<CookieAttributes>,
}

/// A request with references in place of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Masked {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    /// None: it may leave. Else why not, in the words of a real request's refusal.
    pub refused: Option<String>,
    /// Keys that its answer may bring: those it captures, and the cookies of the key mapping.
    pub captures: Vec<String>,
}

pub fn masked(
    request: &HttpRequest,
    resolved: &std::sync::Arc<Resolved>,
    held: &[Held],
    now: Millis,
) -> Masked {
    // Values that no check can stumble over, and that stand for nothing.
    let checked = jar(held, |_| String::from("masked"));
    let mut exchange = Exchange::new(std::sync::Arc::clone(resolved), checked, tokio::time::Instant::now());
    let (url, refused) = match client::judge(request, &mut exchange) {
        Ok(url) => (Some(url), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let mut headers: Vec<(String, String)> =
        request.headers.iter().map(|(name, value)| (name.clone(), template::masked(value))).collect();
    if request.cookies
        && let Some(url) = url
        && let Ok(Some(line)) = cookies::header(&jar(held, reference), &url, now)
    {
        headers.push(("cookie".to_owned(), String::from_utf8_lossy(line.as_bytes()).into_owned()));
    }
    let mut captures: Vec<String> = request.capture.iter().map(|rule| rule.key.clone()).collect();
    let cookies = resolved.keys.iter().filter(|spec| matches!(spec.location, Location::Cookie(_)));
    captures.extend(cookies.map(|spec| spec.name.clone()));
    Masked {
        method: request.method.clone(),
        url: template::masked(&request.url),
        headers,
        body: request.body.as_ref().map(|body: &Vec<Part>| shortened(&template::masked(body))),
        refused,
        captures,
    }
}

/// How a key is named where its value would stand.
pub fn reference(key: &str) -> String {
    format!("{{{key}}}")
}

fn jar(held: &[Held], value: impl Fn(&str) -> String) -> Jar {
    let key = |held: &Held| Key {
        name: held.name.clone(),
        secret: Secret::new(value(&held.name)),
        fingerprint: String::new(),
        expires: held.expires,
        cookie: held.cookie.clone(),
    };
    Jar { keys: held.iter().map(key).collect() }
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    let left = text.chars().count().saturating_sub(SHOWN);
    if left > 0 {
        shown.push_str(&format!("… ({left} more characters)"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{Capture, Leaf, Source};
    use crate::provider::{AllowedOrigin, CookieLocation, Encoding, KeySpec};

    fn resolved() -> Arc<Resolved> {
        let key = |name: &str, location| KeySpec {
            name: name.to_owned(),
            location,
            required: true,
            reveal: false,
            help: String::new(),
        };
        let cookie = CookieLocation { name: "sid".into(), domain: "shop.example".into(), path: "/".into() };
        Arc::new(Resolved {
            validate_url: String::new(),
            keys: vec![key("session", Location::Cookie(cookie)), key("token", Location::Token)],
            origins: vec![AllowedOrigin {
                scheme: "https".into(),
                host: "shop.example".into(),
                port: 443,
                operator_named: false,
            }],
            private_hosts: vec![],
            settings: vec![],
            methods: vec![],
        })
    }

    fn held() -> Vec<Held> {
        let cookie = CookieAttributes {
            name: "sid".into(),
            domain: "shop.example".into(),
            path: "/".into(),
            host_only: true,
            secure: true,
            http_only: true,
            same_site: None,
        };
        vec![
            Held { name: "session".into(), expires: None, cookie: Some(cookie) },
            Held { name: "token".into(), expires: None, cookie: None },
        ]
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn request(url: &str) -> HttpRequest {
        HttpRequest {
            method: "POST".into(),
            url: vec![text(url), Part::Secret { key: "token".into(), encoding: Encoding::Percent }],
            headers: vec![(
                "authorization".into(),
                vec![
                    text("Basic "),
                    Part::Encoded {
                        leaves: vec![
                            Leaf::Text("me:".into()),
                            Leaf::Secret { key: "token".into(), encoding: Encoding::Raw },
                        ],
                        encoding: Encoding::Base64,
                    },
                ],
            )],
            body: Some(vec![text("t="), Part::Secret { key: "token".into(), encoding: Encoding::Raw }]),
            cookies: true,
            capture: vec![Capture {
                key: "token".into(),
                from: Source::JsonPointer("/token".into()),
                expires_in: None,
            }],
            redirects: 0,
            timeout: None,
            extras: vec![],
        }
    }

    #[test]
    fn every_place_of_a_secret_shows_its_name_and_how_it_would_be_written() {
        let masked = masked(&request("https://shop.example/renew?t="), &resolved(), &held(), 0);
        assert_eq!(masked.refused, None);
        assert_eq!(
            (masked.method.as_str(), masked.url.as_str()),
            ("POST", "https://shop.example/renew?t={token|percent}")
        );
        assert_eq!(
            masked.headers,
            [
                ("authorization".to_owned(), "Basic {me:{token}|base64}".to_owned()),
                ("cookie".to_owned(), "sid={session}".to_owned()),
            ]
        );
        assert_eq!(masked.body.as_deref(), Some("t={token}"));
        assert_eq!(masked.captures, ["token", "session"]);
    }

    #[test]
    fn what_may_not_leave_is_refused_in_the_words_of_a_real_request() {
        let resolved = resolved();
        for (url, why) in [
            ("https://elsewhere.example/?", "elsewhere.example"),
            ("http://shop.example/?", "shop.example"),
            ("https://shop.example:8443/?", "8443"),
            ("https://", "scheme, host and port of a URL must be text"),
        ] {
            let masked = masked(&request(url), &resolved, &held(), 0);
            assert!(masked.refused.as_ref().is_some_and(|said| said.contains(why)), "{masked:?}");
        }
        let without = masked(&request("https://shop.example/?"), &resolved, &held()[..1], 0);
        assert!(
            without.refused.as_ref().is_some_and(|said| said.contains("no value for key `token`")),
            "{without:?}"
        );
    }

    #[test]
    fn a_long_body_is_shortened_and_says_by_how_much() {
        assert_eq!(shortened("äb"), "äb");
        assert!(shortened(&"ä".repeat(SHOWN + 7)).ends_with("ä… (7 more characters)"));
    }
}
