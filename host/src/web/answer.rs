//! What the port answers: JSON, in one form for everything that is refused. Its words come from
//! here and from `intake`, never from what was sent.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::db::writer::WriteError;

/// When to come again while the database can't be written, in seconds.
const UNWRITABLE_SECONDS: u64 = 5;

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub status: StatusCode,
    pub code: &'static str,
    /// Where in the message, or which header.
    pub field: Option<String>,
    pub message: String,
    /// Seconds.
    pub retry_after: Option<u64>,
}

impl Refused {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, field: None, message: message.into(), retry_after: None }
    }

    pub fn at(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    pub fn again_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    pub fn no_such_path() -> Self {
        let message = "there is nothing at this path; hint: POST /v1/worker-announce or /v1/worker-reports, GET /v1/credentials, /metrics, /healthz or /readyz";
        Self::new(StatusCode::NOT_FOUND, "no-such-path", message)
    }

    pub fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "this path takes another method; hint: the Allow header names it",
        )
    }

    pub fn unauthenticated() -> Self {
        let message = "no valid token; hint: `Authorization: Bearer kwt_…`, made by `keywheel worker-token create`; it may have been revoked or be over";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message).at("Authorization")
    }
}

impl Refused {
    /// The same for the API, with what is wrong.
    pub fn unauthenticated_api(what: impl std::fmt::Display) -> Self {
        let message =
            format!("{what}; hint: `Authorization: Bearer kwa_…`, made by `keywheel api-token create`");
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message).at("Authorization")
    }

    /// What a token may not do or doesn't reach, whether or not it exists.
    pub fn forbidden() -> Self {
        let message =
            "the token may not do this; hint: `keywheel api-token list` shows its scopes and what it reaches";
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }
}

impl From<WriteError> for Refused {
    fn from(error: WriteError) -> Self {
        match error {
            // Revoked since it was looked at.
            WriteError::NotFound { .. } => Self::unauthenticated(),
            WriteError::OtherService { .. } => {
                Self::new(StatusCode::CONFLICT, "other-service", error.to_string()).at("cookieId")
            }
            WriteError::TooMany { what, .. } => {
                let field = if what == "workers" { "workerId" } else { "cookieId" };
                Self::new(StatusCode::CONFLICT, "too-many", error.to_string()).at(field)
            }
            WriteError::Unavailable { .. } | WriteError::Closed => {
                tracing::warn!(%error, "an external worker's message could not be kept");
                let message =
                    "the database can't be written now; hint: send the same again later, it is kept once";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
                    .again_after(UNWRITABLE_SECONDS)
            }
            WriteError::Invalid(message) => Self::new(StatusCode::CONFLICT, "conflict", message),
            _ => {
                tracing::error!(%error, "an external worker's message could not be kept");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "it could not be kept; the log says why",
                )
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({
            "error": { "code": self.code, "field": self.field, "message": self.message }
        });
        let mut response = answer(self.status, body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"keywheel\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// JSON that nobody keeps and no browser takes for something else.
pub fn answer(status: StatusCode, body: serde_json::Value) -> Response {
    (status, FIXED, Json(body)).into_response()
}

/// On whatever is answered.
pub const FIXED: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // No page of another site may embed it, which it could without reading it.
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
