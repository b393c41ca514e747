//! Sends a letter by SMTP. A new connection for each: they are hours apart.

use std::time::Duration;

use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use super::{Letter, MailError, Protection, Server};
use crate::credential::Secret;
use crate::limits;

/// RFC 3834: holiday notices must not answer it.
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), String::from("auto-generated"))
    }
}

/// Sends a letter, once.
///
/// # Errors
/// It wasn't taken, or nobody knows whether it was.
pub async fn send(server: &Server<'_>, letter: &Letter<'_>) -> Result<(), MailError> {
    let message = written(letter)?;
    let transport = connection(server)?;
    let password = server.login.as_ref().map(|(_, password)| password);
    let sent = tokio::time::timeout(limits::DELIVERY_WALL, transport.send(message));
    match sent.await {
        Err(_) => Err(MailError::TooLong),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let words = without(with_causes(&error), password);
            Err(if error.is_timeout() {
                MailError::TooLong
            } else if error.is_permanent() {
                MailError::Refused(words)
            } else if error.is_transient() {
                MailError::Later(words)
            } else if error.is_tls() {
                MailError::Tls(words)
            } else {
                MailError::Unreachable(words)
            })
        }
    }
}

fn written(letter: &Letter<'_>) -> Result<Message, MailError> {
    let unfit = |error: &dyn std::fmt::Display| MailError::Letter(error.to_string());
    let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(letter.at);
    let mut message = Message::builder()
        .from(letter.from.parse().map_err(|error| unfit(&error))?)
        .subject(letter.subject)
        .date(at)
        .message_id(Some(format!("<{}@keywheel.invalid>", letter.id)))
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN);
    for to in letter.to {
        message = message.to(to.parse().map_err(|error| unfit(&error))?);
    }
    message.body(letter.body.to_owned()).map_err(|error| unfit(&error))
}

fn connection(server: &Server<'_>) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parameters = || {
        let mut parameters = TlsParameters::builder(server.host.to_owned());
        if let Some(pem) = server.extra_ca_pem {
            let certificate =
                Certificate::from_pem(pem).map_err(|error| MailError::Tls(with_causes(&error)))?;
            parameters = parameters.add_root_certificate(certificate);
        }
        parameters.build().map_err(|error| MailError::Tls(with_causes(&error)))
    };
    let tls = match server.protection {
        Protection::Tls => Tls::Wrapper(parameters()?),
        Protection::Starttls => Tls::Required(parameters()?),
        Protection::None => Tls::None,
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server.host)
        .port(server.port)
        .tls(tls)
        .timeout(Some(limits::DELIVERY_WALL));
    if let Some((user, password)) = &server.login {
        let password = std::str::from_utf8(password.expose())
            .map_err(|_| MailError::Letter(String::from("the password is no UTF-8")))?;
        builder = builder.credentials(Credentials::new((*user).to_owned(), password.to_owned()));
    }
    Ok(builder.build())
}

/// A server may repeat what it was told.
fn without(words: String, password: Option<&Secret>) -> String {
    use base64::Engine;
    let Some(password) = password else { return words };
    let encoded = base64::engine::general_purpose::STANDARD.encode(password.expose());
    let plain = String::from_utf8_lossy(password.expose());
    [plain.as_ref(), encoded.as_str()]
        .into_iter()
        .filter(|value| !value.is_empty())
        .fold(words, |words, value| words.replace(value, "[redacted]"))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let line = next.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter<'a>(to: &'a [String], subject: &'a str) -> Letter<'a> {
        let from = "Keywheel <keywheel@example.org>";
        Letter { from, to, subject, body: "two\nlines", id: "kw-1", at: 784_111_777_000 }
    }

    #[test]
    fn a_letter_is_the_same_with_every_try() {
        let to = ["ops@example.org".to_owned()];
        let text = || String::from_utf8(written(&letter(&to, "`ann` – älter")).unwrap().formatted()).unwrap();
        let once = text();
        assert_eq!(once, text());
        for line in [
            "Message-ID: <kw-1@keywheel.invalid>\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "Date: Sun, 06 Nov 1994 08:49:37 +0000\r\n",
            "To: ops@example.org\r\n",
            "two\r\nlines",
        ] {
            assert!(once.contains(line), "{line:?} in {once}");
        }
    }

    #[test]
    fn a_subject_makes_no_header_of_its_own_and_an_address_that_is_none_is_refused() {
        let to = ["ops@example.org".to_owned()];
        let text = written(&letter(&to, "a\r\nBcc: x@example.org")).map(|message| message.formatted());
        if let Ok(text) = text {
            let text = String::from_utf8(text).unwrap();
            assert!(!text.contains("\nBcc:"), "{text}");
        }
        let error = written(&letter(&["nobody".to_owned()], "x")).unwrap_err();
        assert!(matches!(error, MailError::Letter(_)), "{error}");
    }

    #[test]
    fn a_server_that_repeats_the_password_is_not_quoted() {
        let password = Secret::new("p4ss-word");
        let words = without("535 p4ss-word cDRzcy13b3Jk".into(), Some(&password));
        assert_eq!(words, "535 [redacted] [redacted]");
    }
}
