//! What leaves on the operator's own behalf: webhooks of changed secrets and of alerts, and
//! heartbeats. No plugin comes near it. The address is the operator's own, from the
//! configuration, so any host will do, also a private one; but it is the only one: no redirect is
//! followed and no proxy of the environment is asked. Of the answer only the status is kept.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::EgressError;
use super::client::{extra_certificates, trusting};
use crate::credential::Secret;
use crate::limits;

/// Sends what the operator wants sent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Delivery {
    client: reqwest::Client,
}

/// One request. Its URL and headers may hold tokens of the operator's, so it can't be printed.
pub struct Message {
    pub method: Method,
    pub url: Url,
    /// Beside Content-Type.
    pub headers: Vec<(String, Secret)>,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

/// Why something didn't arrive, in words without its URL, for that may hold a token.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error("header {name:?} can't be sent")]
    Header { name: String },
    #[error("answered with {status}")]
    Refused { status: u16, retry_after: Option<Duration> },
    #[error("no connection: {0}")]
    Unreachable(String),
    #[error("no answer within {} s", limits::DELIVERY_WALL.as_secs())]
    TooLong,
}

impl DeliveryError {
    /// Whether sending the same again may end otherwise.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Header { .. } => true,
            Self::Refused { status, .. } => (300..500).contains(status) && !matches!(status, 408 | 425 | 429),
            Self::Unreachable(_) | Self::TooLong => false,
        }
    }
}

impl Delivery {
    /// # Errors
    /// Where the extra certificates can't be used or the client can't be set up.
    pub fn new(extra_ca_pem: Option<&[u8]>) -> Result<Self, EgressError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let extra = extra_certificates(extra_ca_pem)?;
        #[expect(clippy::disallowed_methods, reason = "this is egress, the one place that may")]
        let client = trusting(&extra, || {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .timeout(limits::DELIVERY_WALL)
                .pool_max_idle_per_host(1)
                .user_agent(concat!("keywheel/", env!("CARGO_PKG_VERSION")))
        })?;
        Ok(Self { client })
    }

    /// # Errors
    /// It didn't arrive, or wasn't taken: anything but 2xx.
    pub async fn send(&self, message: Message) -> Result<(), DeliveryError> {
        let mut headers = HeaderMap::new();
        headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(message.content_type));
        for (name, value) in &message.headers {
            let unfit = || DeliveryError::Header { name: name.clone() };
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
            let mut value = HeaderValue::from_bytes(value.expose()).map_err(|_| unfit())?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let request = self.client.request(message.method, message.url).headers(headers).body(message.body);
        let answer = request.send().await.map_err(|error| {
            if error.is_timeout() {
                return DeliveryError::TooLong;
            }
            let mut error: &dyn std::error::Error = &error.without_url();
            while let Some(cause) = error.source() {
                error = cause;
            }
            DeliveryError::Unreachable(error.to_string())
        })?;
        if answer.status().is_success() {
            return Ok(());
        }
        let header = answer.headers().get(reqwest::header::RETRY_AFTER);
        let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        Err(DeliveryError::Refused { status: answer.status().as_u16(), retry_after })
    }
}
