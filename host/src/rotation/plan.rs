//! A rotation that stops before its first request: the plugin's own `rotate` runs in its worker,
//! and what it asks for is shown, with a reference in place of every secret. No value is opened
//! for it, nothing is sent, and nothing is written: no attempt, no report, no generation.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Rotation;
use super::asking::{AskError, Asking, not_revealed};
use crate::credential::now;
use crate::db::queries::{CredentialRow, GenerationRow, ReadError, Reader};
use crate::db::writer::{PREVIOUS_KEPT, WriteError};
use crate::egress::preview::{self, Held, Masked};
use crate::protocol::{Answer, Call, Context, KeyState, Outcome};
use crate::provider::{CommitClass, ResolvedMethod};
use crate::registry::manifest;
use crate::report::iso8601;
use crate::supervisor::CallEvent;

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("no credential `{0}`; hint: `keywheel credential list`")]
    NoCredential(String),
    #[error("no plugin serves `{0}`; hint: `keywheel plugin list` shows what there is")]
    NoPlugin(String),
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What rotating a credential now would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    pub credential_id: String,
    pub service: String,
    /// None: the provider has none, and only validates.
    pub method: Option<String>,
    pub commit_class: Option<CommitClass>,
    /// What the class means, and what a lost answer could cost.
    pub meaning: String,
    pub if_answer_lost: String,
    /// The first request; what follows depends on the answer. None: see `instead`.
    pub request: Option<Masked>,
    /// What the plugin did instead of asking for anything.
    pub instead: Option<String>,
    /// The generation it would start from, and the one that would be stored.
    pub from_generation: Option<u32>,
    pub next_generation: u32,
    /// What waits for its verdict, and comes first.
    pub pending_generation: Option<u32>,
    /// Generations that would go for good if the new one is promoted.
    pub dropped: Vec<u32>,
    /// When it would be looked at by itself, ISO 8601, and for what.
    pub next_due_at: Option<String>,
    pub next_action: String,
    /// Why `rotate` without `--now` would be refused.
    pub rests: Option<String>,
}

/// What a class does to the old secret.
pub const fn meaning(class: CommitClass) -> &'static str {
    match class {
        CommitClass::Sliding => "the session is extended, old and new are the same one",
        CommitClass::Additive => "the old secret stays valid until it is deleted",
        CommitClass::CommitOnUse => "the old secret is valid until the new one is used",
        CommitClass::Grace => "the old secret is valid for a while after the new one is issued",
        CommitClass::BurnOnIssue => "the old secret dies when the new one is issued",
    }
}

/// What a lost answer could cost.
pub const fn if_answer_lost(class: CommitClass) -> &'static str {
    match class {
        CommitClass::Sliding | CommitClass::CommitOnUse => "nothing: it is asked again",
        CommitClass::Additive => {
            "nothing: it is asked again, and one unused secret may stay behind at the service"
        }
        CommitClass::Grace => {
            "the old secret lives for the time the service grants, and it is asked again while it does"
        }
        CommitClass::BurnOnIssue => {
            "the credential: the old secret is dead then, the new one is gone, and a person must sign in again"
        }
    }
}

/// What bringing an earlier secret back can do.
pub const fn risk_of_restoring(class: Option<CommitClass>) -> &'static str {
    match class {
        None | Some(CommitClass::Sliding) => {
            "an earlier secret may have been ended by the service since; validating it harms nothing"
        }
        Some(CommitClass::Additive) => {
            "an earlier secret works only if it wasn't deleted at the service since; validating it harms nothing"
        }
        Some(CommitClass::CommitOnUse) => {
            "the earlier secret died when the newer one was first used, unless it never was"
        }
        Some(CommitClass::Grace) => {
            "the earlier secret works only while its grace lasts, and is dead after it"
        }
        Some(CommitClass::BurnOnIssue) => {
            "the earlier secret died when the newer one was issued; a service that sees a dead refresh token may revoke every token that came after it, the one in force included"
        }
    }
}

impl Rotation {
    /// # Errors
    /// Where there is nothing to ask, or it can't be read.
    pub async fn preview(&self, reader: Reader, credential_id: &str) -> Result<Preview, PlanError> {
        let row = reader
            .credential(credential_id)?
            .ok_or_else(|| PlanError::NoCredential(credential_id.to_owned()))?;
        if row.external {
            return Err(PlanError::Unfit(
                WriteError::External { credential_id: row.credential_id }.to_string(),
            ));
        }
        let generations = reader.generations(credential_id)?;
        drop(reader);
        let provider =
            self.providers.get(&row.service).ok_or_else(|| PlanError::NoPlugin(row.service.clone()))?;
        let settings: Vec<_> = row.settings.clone().into_iter().collect();
        let resolved = manifest::resolve(&provider.manifest, &settings, &row.private_hosts)
            .map(Arc::new)
            .map_err(|error| PlanError::Unfit(format!("the settings no longer fit the plugin: {error}")))?;
        let method = match &row.method {
            Some(name) => {
                Some(resolved.methods.iter().find(|method| method.name == *name).ok_or_else(|| {
                    let known: Vec<_> = resolved.methods.iter().map(|method| method.name.as_str()).collect();
                    PlanError::Unfit(format!(
                        "method `{name}` is gone from the plugin; known: {}",
                        known.join(", ")
                    ))
                })?)
            }
            None => resolved.methods.first(),
        };
        let mut preview = skeleton(&row, &generations, method);
        if preview.rests.is_none() {
            let quiet = self.quiet_until(&row.service, &row.quiet, row.monitor.expires_at, now());
            preview.rests = quiet.map(|(_, why)| why);
        }
        let Some(method) = method else {
            preview.instead = Some("the provider has no way to rotate; it would only validate".into());
            return Ok(preview);
        };
        let held: Vec<Held> = generations
            .iter()
            .find(|generation| generation.state == "current")
            .map(|current| &current.keys)
            .into_iter()
            .flatten()
            .map(|key| Held { name: key.name.clone(), expires: key.expires_at, cookie: key.cookie.clone() })
            .collect();
        let context = context(&row, &generations, &resolved.settings, &resolved.keys);
        let asked = self.first_request(
            &row.service,
            Call::Rotate(context, method.name.clone()),
            &provider.reveal,
            &held,
        );
        match asked.await {
            Ok(request) => preview.request = Some(preview::masked(&request, &resolved, &held, now())),
            Err(instead) => preview.instead = Some(instead),
        }
        Ok(preview)
    }

    /// Runs a call until it asks for a request, and ends it there.
    async fn first_request(
        &self,
        service: &str,
        call: Call,
        reveal: &[String],
        held: &[Held],
    ) -> Result<crate::protocol::HttpRequest, String> {
        let words = |error: AskError| error.to_string();
        let mut asked = Asking::begin(&self.supervisor, service, call).await.map_err(words)?;
        loop {
            match asked.next().await.map_err(words)? {
                // Dropping the call cancels it in the worker: no answer ever comes.
                CallEvent::Http(request) => return Ok(request),
                // Its name stands for the value here as well, so that nothing the plugin makes
                // of it can hold a byte of a secret.
                CallEvent::Reveal(key) => {
                    let granted = reveal.contains(&key) && held.iter().any(|held| held.name == key);
                    asked.running.reveal_done(match granted {
                        true => Ok(preview::reference(&key).into_bytes()),
                        false => Err(not_revealed(&key)),
                    });
                }
                CallEvent::Log(..) => {}
                CallEvent::Finished(Ok(answer)) => return Err(in_words(answer)),
                CallEvent::Finished(Err(fault)) => return Err(fault.to_string()),
            }
        }
    }
}

fn skeleton(row: &CredentialRow, generations: &[GenerationRow], method: Option<&ResolvedMethod>) -> Preview {
    let class = method.map(|method| method.commit_class);
    let asks_for_rest = row.monitor.asked_until.filter(|until| *until > now());
    Preview {
        credential_id: row.credential_id.clone(),
        service: row.service.clone(),
        method: method.map(|method| method.name.clone()),
        commit_class: class,
        meaning: class.map(meaning).unwrap_or_default().to_owned(),
        if_answer_lost: class.map(if_answer_lost).unwrap_or_default().to_owned(),
        request: None,
        instead: None,
        from_generation: row.current_generation,
        next_generation: row.last_generation + 1,
        pending_generation: row.pending_generation,
        dropped: past_keeping(row.current_generation, generations),
        next_due_at: row.monitor.next_due_at.map(iso8601),
        next_action: row.monitor.next_action.as_str().to_owned(),
        rests: match asks_for_rest {
            _ if row.paused => Some("it is paused".into()),
            Some(until) => Some(format!("its service asked to be left alone until {}", iso8601(until))),
            None => None,
        },
    }
}

/// The earlier generations that a promotion leaves no room for.
fn past_keeping(current: Option<u32>, generations: &[GenerationRow]) -> Vec<u32> {
    let previous = generations.iter().filter(|row| row.state == "previous").map(|row| row.generation);
    current.into_iter().chain(previous).skip(PREVIOUS_KEPT as usize).collect()
}

pub(super) fn context(
    row: &CredentialRow,
    generations: &[GenerationRow],
    settings: &[(String, String)],
    specs: &[crate::provider::KeySpec],
) -> Context {
    let current = generations.iter().find(|generation| generation.state == "current");
    let mut keys: Vec<KeyState> = specs
        .iter()
        .map(|spec| {
            let key = current.and_then(|current| current.keys.iter().find(|key| key.name == spec.name));
            KeyState {
                name: spec.name.clone(),
                present: key.is_some(),
                fingerprint: key.map(|key| key.fingerprint.clone()),
                expires: key.and_then(|key| key.expires_at),
            }
        })
        .collect();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    Context {
        credential_id: row.credential_id.clone(),
        profile_id: row.profile_id.clone(),
        settings: settings.to_vec(),
        keys,
        attempt: row.attempt_number + 1,
        now: now(),
        extras: Vec::new(),
    }
}

/// What a plugin answered that asked for nothing.
fn in_words(answer: Answer) -> String {
    let (what, why) = match answer {
        Answer::Rotated(Outcome::Rotated(_)) => ("rotated", String::new()),
        Answer::Rotated(Outcome::Unchanged(_)) => ("unchanged", String::new()),
        Answer::Rotated(Outcome::Invalid(why)) => ("invalid", why.message),
        Answer::Rotated(Outcome::Unknown(why)) => ("unknown", why.message),
        Answer::Rotated(Outcome::NeedsHuman(why)) => ("needs-human", why.message),
        Answer::Validated(_) | Answer::Described(_) => ("another call's answer", String::new()),
    };
    let colon = if why.is_empty() { "" } else { ": " };
    format!("the plugin asks for no request and answers {what}{colon}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(generation: u32, state: &str) -> GenerationRow {
        GenerationRow {
            generation,
            state: state.to_owned(),
            attempt_number: None,
            restored_from: None,
            created_at: 0,
            keys: Vec::new(),
        }
    }

    #[test]
    fn a_promotion_drops_what_is_past_the_three_that_stay() {
        let all = [
            generation(9, "current"),
            generation(8, "dropped"),
            generation(7, "previous"),
            generation(6, "previous"),
            generation(4, "previous"),
        ];
        assert_eq!(past_keeping(Some(9), &all), [4]);
        assert_eq!(past_keeping(Some(9), &all[..4]), [] as [u32; 0]);
        assert_eq!(past_keeping(None, &all), [] as [u32; 0]);
    }

    #[test]
    fn only_the_class_that_burns_risks_the_credential() {
        for class in CommitClass::ALL {
            let burns = class == CommitClass::BurnOnIssue;
            assert_eq!(if_answer_lost(class).contains("a person must sign in again"), burns, "{class}");
            assert_eq!(risk_of_restoring(Some(class)).contains("revoke"), burns, "{class}");
        }
    }
}
