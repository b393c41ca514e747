//! What validate and rotate may say, and why they may stop early. A verdict is evidence, not a
//! guess: everything that taught nothing ends as `unknown`.
//!
//! ```
//! use keywheel_sdk::prelude::*;
//!
//! // Valid, with what the service said: whose it is, when it ends, when to look again.
//! let alive = Evidence::new().identity(String::from("42")).expires(1_767_225_600_000).next(600);
//! assert_ne!(Verdict::Valid(alive), Verdict::valid());
//!
//! // `?` carries what stops an attempt; the SDK says the same as a verdict or an outcome.
//! let stopped = Stop::needs_human("the account wants a second factor: sign in once by hand");
//! assert_eq!(
//!     stopped.into_verdict(),
//!     Ok(Verdict::needs_human("the account wants a second factor: sign in once by hand")),
//! );
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::bindings::keywheel::provider::types;

pub use types::{Evidence, Failure, Outcome, Reason, Verdict};

/// Why an attempt stops before its end. `?` carries it out of [`crate::Provider::validate`] and
/// [`crate::Provider::rotate`]; the SDK then says the same as a verdict or an outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Nothing was learnt: time-out, rate limit, server error, a page where data was due.
    #[error("unknown: {}", .0.message)]
    Unknown(Reason),
    /// The service said plainly that the credential is dead.
    #[error("invalid: {}", .0.message)]
    Invalid(Reason),
    /// Only a person can go on.
    #[error("needs a human: {}", .0.message)]
    NeedsHuman(Reason),
    /// The plugin's own fault, or a request it may not make.
    #[error("failed: {}", .0.message)]
    Failed(Failure),
}

impl Stop {
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::Unknown(Reason::new(message))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(Reason::new(message))
    }

    pub fn needs_human(message: impl Into<String>) -> Self {
        Self::NeedsHuman(Reason::new(message))
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(Failure { message: message.into(), extras: Vec::new() })
    }

    pub fn into_verdict(self) -> core::result::Result<Verdict, Failure> {
        match self {
            Self::Unknown(reason) => Ok(Verdict::Unknown(reason)),
            Self::Invalid(reason) => Ok(Verdict::Invalid(reason)),
            Self::NeedsHuman(reason) => Ok(Verdict::NeedsHuman(reason)),
            Self::Failed(failure) => Err(failure),
        }
    }

    pub fn into_outcome(self) -> core::result::Result<Outcome, Failure> {
        match self {
            Self::Unknown(reason) => Ok(Outcome::Unknown(reason)),
            Self::Invalid(reason) => Ok(Outcome::Invalid(reason)),
            Self::NeedsHuman(reason) => Ok(Outcome::NeedsHuman(reason)),
            Self::Failed(failure) => Err(failure),
        }
    }
}

impl Verdict {
    /// The service accepted the credential; [`Verdict::Valid`] takes more evidence.
    pub fn valid() -> Self {
        Self::Valid(Evidence::new())
    }

    /// The service said plainly that the credential is dead.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(Reason::new(message))
    }

    pub fn unknown(message: impl Into<String>) -> Self {
        Self::Unknown(Reason::new(message))
    }

    pub fn needs_human(message: impl Into<String>) -> Self {
        Self::NeedsHuman(Reason::new(message))
    }
}

impl Outcome {
    /// The service issued a new secret, which the host has captured.
    pub fn rotated() -> Self {
        Self::Rotated(Evidence::new())
    }

    /// The service was asked and kept the secret as it is.
    pub fn unchanged() -> Self {
        Self::Unchanged(Evidence::new())
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(Reason::new(message))
    }

    pub fn unknown(message: impl Into<String>) -> Self {
        Self::Unknown(Reason::new(message))
    }

    pub fn needs_human(message: impl Into<String>) -> Self {
        Self::NeedsHuman(Reason::new(message))
    }
}

impl Evidence {
    pub fn new() -> Self {
        Self { expires: None, identity: None, next: None, note: None, extras: Vec::new() }
    }

    /// When the credential as a whole stops working, in milliseconds since 1970.
    pub fn expires(mut self, at: impl Into<Option<types::Timestamp>>) -> Self {
        self.expires = at.into();
        self
    }

    /// The account, as the service names it. The host pins the first one it sees.
    pub fn identity(mut self, account: impl Into<Option<String>>) -> Self {
        self.identity = account.into();
        self
    }

    /// When to ask again, in seconds.
    pub fn next(mut self, seconds: impl Into<Option<types::Seconds>>) -> Self {
        self.next = seconds.into();
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl Default for Evidence {
    fn default() -> Self {
        Self::new()
    }
}

impl Reason {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry_after: None, extras: Vec::new() }
    }

    pub fn retry_after(mut self, seconds: impl Into<Option<types::Seconds>>) -> Self {
        self.retry_after = seconds.into();
        self
    }

    /// Nothing more can be learnt by asking, only by a rotation: an access token has run out and
    /// its refresh token may live. Keywheel then rotates instead of asking again.
    pub fn rotate_next(mut self) -> Self {
        self.extras.push(("next".into(), "rotate".into()));
        self
    }
}
