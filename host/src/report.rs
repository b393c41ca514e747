//! The report contract: what an attempt ends in, as it is stored, shown and exchanged. A leaf.
//! A report holds fingerprints, never values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::credential::Millis;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Success,
    Failed,
    ValidationFailed,
    Unreachable,
}

impl Status {
    pub const ALL: [Status; 4] = [Self::Success, Self::Failed, Self::ValidationFailed, Self::Unreachable];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::ValidationFailed => "validation_failed",
            Self::Unreachable => "unreachable",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// One finished attempt. The JSON field names are the contract's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub cookie_id: String,
    pub profile_id: Option<String>,
    pub service: String,
    pub validate_url: String,
    /// Key name to fingerprint.
    pub cookie_keys: BTreeMap<String, String>,
    pub status: Status,
    pub message: Option<String>,
    /// ISO 8601, UTC, milliseconds.
    pub started_at: String,
    pub finished_at: String,
    pub attempt_number: u32,
    pub meta: serde_json::Map<String, serde_json::Value>,
}

impl Report {
    /// A second delivery with the same key changes nothing.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}", self.cookie_id, self.attempt_number, self.started_at)
    }
}

/// ISO 8601 in UTC with milliseconds: `2026-01-02T03:04:05.678Z`.
pub fn iso8601(at: Millis) -> String {
    let nanos = i128::from(at) * 1_000_000;
    let Ok(moment) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
        return String::from("9999-12-31T23:59:59.999Z");
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        moment.year(),
        u8::from(moment.month()),
        moment.day(),
        moment.hour(),
        moment.minute(),
        moment.second(),
        moment.millisecond()
    )
}

/// Reads ISO 8601 with any offset. None where it isn't a moment after 1970.
pub fn parse_iso8601(text: &str) -> Option<Millis> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok()
}
