//! Asks a provider's `validate` about a made-up secret, at the real service: whoever calls that
//! valid would call a dead session valid too. The credential's own secrets are not opened, what
//! the service issues to a stranger is thrown away, and nothing is written.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Rotation;
use super::asking::{AskError, Asking};
use super::plan::{PlanError, context};
use super::verdict::{self, Grounds};
use crate::credential::{Jar, Key, Secret, now};
use crate::db::queries::{GenerationRow, Reader};
use crate::db::writer::WriteError;
use crate::egress::seen::Last;
use crate::egress::{Exchange, redact_text};
use crate::limits;
use crate::protocol::{Answer, Call, KeyState, Verdict};
use crate::registry::manifest;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfTest {
    pub credential_id: String,
    pub service: String,
    /// What the plugin said of the made-up secret.
    pub claimed: String,
    /// What the host makes of that, by what it saw of the service.
    pub verdict: String,
    /// How the service answered the last request.
    pub answer: String,
    pub requests: u32,
    /// Where it sent the stranger, without query and fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    pub message: Option<String>,
}

impl Rotation {
    /// # Errors
    /// Where there is nothing to ask, or it can't be read.
    pub async fn self_test(&self, reader: Reader, credential_id: &str) -> Result<SelfTest, PlanError> {
        let row = reader
            .credential(credential_id)?
            .ok_or_else(|| PlanError::NoCredential(credential_id.to_owned()))?;
        if row.external {
            let external = WriteError::External { credential_id: row.credential_id };
            return Err(PlanError::Unfit(external.to_string()));
        }
        let mut generations = reader.generations(credential_id)?;
        drop(reader);
        let provider =
            self.providers.get(&row.service).ok_or_else(|| PlanError::NoPlugin(row.service.clone()))?;
        let settings: Vec<_> = row.settings.clone().into_iter().collect();
        let resolved = manifest::resolve(&provider.manifest, &settings, &row.private_hosts)
            .map(Arc::new)
            .map_err(|error| PlanError::Unfit(format!("the settings no longer fit the plugin: {error}")))?;
        let jar = self.made_up(&generations)?;
        // No end is known of what was made up, or a provider could go by that alone.
        for key in generations.iter_mut().flat_map(|generation| &mut generation.keys) {
            key.expires_at = None;
        }
        let mut context = context(&row, &generations, &resolved.settings, &resolved.keys);
        for state in &mut context.keys {
            let KeyState { name, fingerprint, .. } = state;
            *fingerprint = jar.get(name).map(|key| key.fingerprint.clone());
        }

        let until = Instant::now() + limits::CALL_WALL;
        let mut exchange = Exchange::new(Arc::clone(&resolved), jar.clone(), until).of_service(&row.service);
        let call = Call::Validate(context);
        let asked = async {
            let asking = Asking::begin(&self.supervisor, &row.service, call).await?;
            asking.serve(&self.egress, &mut exchange, &provider.reveal, &mut ()).await
        };
        let answer = asked.await.map_err(|error: AskError| PlanError::Unfit(error.to_string()))?;
        let Answer::Validated(claimed) = answer else {
            return Err(PlanError::Unfit("the plugin answered another call".into()));
        };
        let said = claimed.as_str().to_owned();
        let grounds =
            Grounds { seen: &exchange.seen, deleted: &[], keys: &resolved.keys, jar: &jar, now: now() };
        let verdict = verdict::judge(claimed, grounds);
        let message = match &verdict {
            Verdict::Valid(found) => found.note.clone(),
            Verdict::Invalid(why) | Verdict::Unknown(why) | Verdict::NeedsHuman(why) => {
                Some(why.message.clone())
            }
        };
        Ok(SelfTest {
            credential_id: row.credential_id,
            service: row.service,
            claimed: said,
            verdict: verdict.as_str().to_owned(),
            answer: exchange.seen.words(),
            requests: exchange.seen.requests,
            redirect: match &exchange.seen.last {
                Last::Answered(answered) => {
                    answered.redirect.as_ref().map(|to| redact_text(&exchange, to).into_owned())
                }
                _ => None,
            },
            message: message.map(|message| redact_text(&exchange, &message).into_owned()),
        })
    }

    /// As many keys as the credential has, and none of its values.
    fn made_up(&self, generations: &[GenerationRow]) -> Result<Jar, PlanError> {
        let current = generations.iter().find(|generation| generation.state == "current");
        let keys = current.map(|current| current.keys.as_slice()).unwrap_or_default();
        let make = |key: &crate::db::queries::KeyRow| {
            let mut bytes = [0_u8; 24];
            getrandom::fill(&mut bytes)
                .map_err(|error| PlanError::Unfit(format!("the system gives no random bytes: {error}")))?;
            let secret = Secret::new(hex::encode(bytes));
            Ok(Key {
                name: key.name.clone(),
                fingerprint: self.vault.fingerprint(&secret),
                secret,
                expires: None,
                cookie: key.cookie.clone(),
            })
        };
        Ok(Jar { keys: keys.iter().map(make).collect::<Result<_, PlanError>>()? })
    }
}
