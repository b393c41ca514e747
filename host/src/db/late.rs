//! Secrets that were issued and couldn't be stored while their attempt lasted: what is known of
//! them where they wait, and the one command that brings them in. It throws nothing away, changes
//! nothing under an attempt that another owns, and opens no seal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::column::millis;
use super::commands::{self, Origin};
use super::sql::{self, Connection, Optional as _, params};
use super::writer::{ClaimToken, WriteError, Writer};
use super::{Actor, AuditEntry, SealedKey};
use crate::credential::{Millis, now};
use crate::provider::CommitClass;
use crate::report::iso8601;

type Written<T> = Result<T, WriteError>;

/// What a service issued to an attempt, as it waits outside of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Late {
    pub credential_row: i64,
    pub credential_id: String,
    pub service: String,
    pub attempt_number: u32,
    pub fence: i64,
    /// The generation that the service was asked with.
    pub from_generation: Option<u32>,
    /// The one that the keys are sealed for.
    pub generation: u32,
    /// The generation as which an earlier capture of this very claim is stored.
    pub amends: Option<u32>,
    pub commit_class: Option<CommitClass>,
    pub issued_at: Millis,
    pub keys: Vec<SealedKey>,
}

impl Late {
    /// One for each claim: what it captures later holds all of what it captured before.
    pub fn file_name(&self) -> String {
        format!("{}-{}-{}.json", self.credential_row, self.attempt_number, self.fence)
    }

    fn token(&self) -> ClaimToken {
        ClaimToken {
            credential_row: self.credential_row,
            credential_id: self.credential_id.clone(),
            fence: self.fence,
        }
    }
}

/// What became of it. In each case nothing needs to wait any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescued {
    /// Its attempt is still open and nobody else's: stored as the attempt would have.
    InTime,
    /// It is the pending generation, and due to be tested.
    Pending(u32),
    /// Others took its place meanwhile, so it is one that can be restored.
    Previous(u32),
    AlreadyThere,
    /// Its credential was removed.
    Forgotten,
}

/// How the queue says why.
const REASON: &str = "secrets that came late are tested";

impl Writer {
    /// Brings late secrets into the store. Doing it twice changes nothing.
    ///
    /// # Errors
    /// `Busy` while another's attempt is open, `Stale` where they must be sealed for another
    /// generation, and that the database can't be written.
    pub async fn rescue(&self, late: Late) -> Result<Rescued, WriteError> {
        let at = now();
        self.run(move |db| rescue(db, &late, at)).await
    }
}

/// A credential as late secrets find it.
struct Found {
    current: Option<u32>,
    pending: Option<u32>,
    last: u32,
    /// Number and fence of the open attempt.
    open: Option<(u32, i64)>,
    paused: bool,
}

pub(super) fn rescue(db: &Connection, late: &Late, at: Millis) -> Written<Rescued> {
    db.hold_credential(late.credential_row)?;
    let Some(found) = find(db, late)? else {
        note(db, late, "its credential was removed", None, at)?;
        return Ok(Rescued::Forgotten);
    };
    if is_stored(db, late)? {
        return Ok(Rescued::AlreadyThere);
    }
    match found.open {
        Some((_, fence)) if fence == late.fence => {
            // Nobody but this claim can have made that generation, and it brought more since.
            if found.pending == Some(late.generation) && late.amends.is_none() {
                return Ok(Rescued::AlreadyThere);
            }
            commands::store_pending(db, &late.token(), late.generation, &late.keys, late.issued_at)?;
            return Ok(Rescued::InTime);
        }
        Some((attempt, _)) => {
            return Err(WriteError::Busy { credential_id: late.credential_id.clone(), attempt });
        }
        None => {}
    }
    let generation = found.last + 1;
    if late.generation != generation {
        return Err(WriteError::Stale {
            credential_id: late.credential_id.clone(),
            found: late.generation,
            expected: generation,
        });
    }
    let origin = Origin { attempt: Some(late.attempt_number), ..Origin::IMPORTED };
    let insert = |state: &str| {
        let row = late.credential_row;
        commands::insert_generation(db, row, generation, state, origin, &late.keys, late.issued_at)
    };
    let rescued = if late.follows(&found) {
        // What it follows was never judged: it steps back, and isn't thrown away.
        if let Some(unjudged) = found.pending {
            commands::set_state(db, late.credential_row, unjudged, "previous")?;
        }
        insert("pending")?;
        make_due(db, late, found.paused, at)?;
        note(db, late, "it came late and is tested", Some(generation), at)?;
        Rescued::Pending(generation)
    } else {
        insert("previous")?;
        note(db, late, "it came late, when others had taken its place", Some(generation), at)?;
        Rescued::Previous(generation)
    };
    let pending = if matches!(rescued, Rescued::Pending(_)) { Some(generation) } else { found.pending };
    db.prepare_cached("UPDATE credentials SET last_generation = ?2, pending_generation = ?3 WHERE id = ?1")?
        .execute(params![late.credential_row, generation, pending])?;
    Ok(rescued)
}

impl Late {
    /// Whether the newest of what is there is what the service was asked with, or what this very
    /// claim had captured before.
    fn follows(&self, found: &Found) -> bool {
        let newest = found.pending.or(found.current);
        newest.is_some() && (newest == self.from_generation || newest == self.amends)
    }
}

fn find(db: &Connection, late: &Late) -> Written<Option<Found>> {
    let found = db
        .prepare_cached(
            "SELECT c.current_generation, c.pending_generation, c.last_generation, c.paused,
                    j.attempt_number, j.fence
             FROM credentials c LEFT JOIN journal j ON j.credential = c.id
             WHERE c.id = ?1 AND c.credential_id = ?2",
        )?
        .query_row(params![late.credential_row, late.credential_id], |row| {
            let (attempt, fence): (Option<u32>, Option<i64>) = (row.get(4)?, row.get(5)?);
            Ok(Found {
                current: row.get(0)?,
                pending: row.get(1)?,
                last: row.get(2)?,
                open: attempt.zip(fence),
                paused: row.get(3)?,
            })
        })
        .optional()?;
    Ok(found)
}

/// Whether a generation of the same attempt has the very same values.
fn is_stored(db: &Connection, late: &Late) -> Written<bool> {
    let stored = db
        .prepare_cached(
            "SELECT g.generation, k.key, k.fingerprint FROM generations g
             JOIN generation_keys k ON k.credential = g.credential AND k.generation = g.generation
             WHERE g.credential = ?1 AND g.attempt_number = ?2",
        )?
        .query_map(params![late.credential_row, late.attempt_number], |row| {
            Ok((row.get::<u32>(0)?, row.get::<String>(1)?, row.get::<String>(2)?))
        })?
        .collect::<sql::Result<Vec<_>>>()?;
    let mut generations: BTreeMap<u32, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for (generation, key, fingerprint) in &stored {
        generations.entry(*generation).or_default().insert((key, fingerprint));
    }
    let late: BTreeSet<(&str, &str)> =
        late.keys.iter().map(|key| (key.name.as_str(), key.fingerprint.as_str())).collect();
    Ok(generations.values().any(|keys| *keys == late))
}

/// Due at once, unless it is paused or its service asked to be left alone.
fn make_due(db: &Connection, late: &Late, paused: bool, at: Millis) -> Written<()> {
    db.prepare_cached(
        "UPDATE cookie_rotation_monitor
         SET next_due_at = CASE WHEN asked_until > ?2 THEN asked_until ELSE ?2 END,
             next_action = 'validate', next_reason = ?3
         WHERE cookie_id = ?1",
    )?
    .execute(params![
        late.credential_id,
        (!paused).then_some(millis(at)),
        if paused { "paused" } else { REASON },
    ])?;
    Ok(())
}

fn note(db: &Connection, late: &Late, reason: &str, generation: Option<u32>, at: Millis) -> Written<()> {
    let entry = AuditEntry {
        actor: Actor::Host,
        action: "rescued",
        service: Some(late.service.clone()),
        file: Some(late.file_name()),
        digest: None,
        signer: None,
        detail: json!({
            "credential": late.credential_id,
            "attempt": late.attempt_number,
            "commitClass": late.commit_class,
            "issuedAt": iso8601(late.issued_at),
            "reason": reason,
            "generation": generation,
        }),
    };
    commands::note(db, &[entry], at)
}

/// Bytes as text.
pub(super) mod in_hex {
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        // Nothing of it goes into the error: it is not text for people.
        hex::decode(String::deserialize(from)?).map_err(|_| D::Error::custom("the seal is not hexadecimal"))
    }
}
