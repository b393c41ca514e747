//! Between a generation as it is stored and its keys in memory: seals and opens all of them, each
//! bound to its place. It reads and writes nothing, and no error holds a value.

use crate::credential::{Jar, Key};
use crate::db::{SealedGeneration, SealedKey};
use crate::vault::{Place, Vault, VaultError};

/// Opens every key of a stored generation.
///
/// # Errors
/// Where a value was changed, moved or sealed with another master key.
pub fn open_jar(vault: &Vault, credential: &str, sealed: &SealedGeneration) -> Result<Jar, VaultError> {
    let open = |key: &SealedKey| {
        let place = Place { credential, generation: sealed.generation, key: &key.name };
        Ok(Key {
            name: key.name.clone(),
            secret: vault.open_sealed(place, &key.sealed)?,
            fingerprint: key.fingerprint.clone(),
            expires: key.expires,
            cookie: key.cookie.clone(),
        })
    };
    Ok(Jar { keys: sealed.keys.iter().map(open).collect::<Result<_, _>>()? })
}

/// Seals every key for the generation it is about to become.
///
/// # Errors
/// Where the system gives no random bytes.
pub fn seal_jar(
    vault: &Vault,
    credential: &str,
    generation: u32,
    jar: &Jar,
) -> Result<Vec<SealedKey>, VaultError> {
    let seal = |key: &Key| {
        let place = Place { credential, generation, key: &key.name };
        Ok(SealedKey {
            name: key.name.clone(),
            sealed: vault.seal(place, &key.secret)?,
            fingerprint: key.fingerprint.clone(),
            expires: key.expires,
            cookie: key.cookie.clone(),
        })
    };
    jar.keys.iter().map(seal).collect()
}
