//! What a provider may do for the settings of a credential, worked out once for all credentials
//! that share them. Holds no secret.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::provider::Resolved;
use crate::registry::ActiveProvider;
use crate::registry::manifest::{self, SettingsError};

/// Different settings kept. Accounts of one site share theirs; a team with more sites than this
/// pays a few microseconds an attempt.
const KEPT: usize = 4_096;

/// The plugin's digest, the settings and the hosts that may be private.
type Name = (String, Vec<(String, String)>, Vec<String>);

#[derive(Debug, Default)]
pub struct ResolvedSettings(Mutex<HashMap<Name, Arc<Resolved>>>);

impl ResolvedSettings {
    /// # Errors
    /// Where the settings no longer fit the plugin.
    pub fn get(
        &self,
        provider: &ActiveProvider,
        settings: &[(String, String)],
        private_hosts: &[String],
    ) -> Result<Arc<Resolved>, SettingsError> {
        let name = (provider.digest.clone(), settings.to_vec(), private_hosts.to_vec());
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(Arc::clone(known));
        }
        let resolved = Arc::new(manifest::resolve(&provider.manifest, settings, private_hosts)?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            // Rare enough that the simplest eviction will do.
            kept.clear();
        }
        kept.insert(name, Arc::clone(&resolved));
        Ok(resolved)
    }
}
