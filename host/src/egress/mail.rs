//! Letters to the operator, over SMTP. The server is the configuration's and no other; nothing
//! is sent in the clear but to this machine itself. What a letter is, for every build; `smtp` sends
//! it, in builds with the feature `mail`.

#[cfg(feature = "mail")]
mod smtp;

use crate::credential::{Millis, Secret};
use crate::limits;

#[cfg(feature = "mail")]
pub use smtp::send;

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    Tls,
    /// Required: where the server doesn't offer it nothing is sent.
    Starttls,
    /// For this machine's own server.
    None,
}

/// A server that takes letters.
#[derive(Debug)]
pub struct Server<'a> {
    pub host: &'a str,
    pub port: u16,
    pub protection: Protection,
    pub login: Option<(&'a str, Secret)>,
    /// To trust beside the system's, as PEM.
    pub extra_ca_pem: Option<&'a [u8]>,
}

#[derive(Debug, Clone)]
pub struct Letter<'a> {
    pub from: &'a str,
    pub to: &'a [String],
    pub subject: &'a str,
    pub body: &'a str,
    /// The same with every try, so that a second arrival is known.
    pub id: &'a str,
    pub at: Millis,
}

/// Why a letter wasn't taken. No word of it has the password.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    #[error("this build can't send mail; hint: `cargo build --features keywheel/mail` makes one that can")]
    NotBuilt,
    #[error("the letter can't be written: {0}")]
    Letter(String),
    #[error("TLS can't be set up: {0}")]
    Tls(String),
    #[error("the mail server refused it: {0}")]
    Refused(String),
    #[error("the mail server wants it later: {0}")]
    Later(String),
    #[error("no connection to the mail server: {0}")]
    Unreachable(String),
    #[error("no answer of the mail server within {} s", limits::DELIVERY_WALL.as_secs())]
    TooLong,
}

impl MailError {
    /// Whether it is the server that is away, and not this one letter that it won't have.
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Later(_) | Self::Unreachable(_) | Self::TooLong | Self::Tls(_))
    }
}

/// The configuration refuses a channel by mail before there is a letter.
///
/// # Errors
/// Always.
#[cfg(not(feature = "mail"))]
pub async fn send(_: &Server<'_>, _: &Letter<'_>) -> Result<(), MailError> {
    Err(MailError::NotBuilt)
}
