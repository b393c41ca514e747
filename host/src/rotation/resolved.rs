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

/// By the plugin's digest, the settings and the hosts that may be private, the latter two as the
/// database has them: nothing is read or copied to find what is known.
type Known = HashMap<String, HashMap<String, HashMap<String, Arc<Resolved>>>>;

#[derive(Debug, Default)]
pub struct ResolvedSettings(Mutex<(Known, usize)>);

impl ResolvedSettings {
    /// # Errors
    /// Where the settings no longer fit the plugin.
    pub fn get(
        &self,
        provider: &ActiveProvider,
        settings_json: &str,
        private_hosts_json: &str,
    ) -> Result<Arc<Resolved>, SettingsError> {
        let hold = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let kept = hold();
            let of_plugin = kept.0.get(&provider.digest);
            of_plugin.and_then(|known| known.get(settings_json)?.get(private_hosts_json)).map(Arc::clone)
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let unreadable = |error: serde_json::Error| SettingsError::Unreadable(error.to_string());
        let settings: Vec<(String, String)> = serde_json::from_str(settings_json).map_err(unreadable)?;
        let private_hosts: Vec<String> = serde_json::from_str(private_hosts_json).map_err(unreadable)?;
        let resolved = Arc::new(manifest::resolve(&provider.manifest, &settings, &private_hosts)?);
        let mut kept = hold();
        if kept.1 >= KEPT {
            // Rare enough that the simplest eviction will do.
            *kept = Default::default();
        }
        kept.1 += 1;
        let of_plugin = kept.0.entry(provider.digest.clone()).or_default();
        let of_settings = of_plugin.entry(settings_json.to_owned()).or_default();
        of_settings.insert(private_hosts_json.to_owned(), Arc::clone(&resolved));
        Ok(resolved)
    }
}
