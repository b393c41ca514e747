//! Tokens of the API and what was done with them: who may read, what was read, what was refused.
//! The functions that write run inside the writer's transaction, like those of `commands`. A row
//! of the history holds no secret and no part of a token but its public id, and no flood of
//! requests makes it grow past its bound.

use super::sql::{self, Connection, Optional as _, Owned, Row, params};
use serde::Serialize;

use super::column::{millis, read_json, read_millis, read_optional_millis};
use super::commands::{insert_audit, json, not_found};
use super::queries::{CredentialRow, Found, Reader, iso, iso_option};
use super::writer::{WriteError, Writer};
use super::{Actor, AuditEntry};
use crate::credential::{Millis, now};
use crate::limits;
use crate::report::iso8601;
use crate::token::{Reach, Scope, TokenState};

type Written<T> = Result<T, WriteError>;

/// What is done again within this is counted in the row of the first time.
const FOLDED: Millis = 3_600_000;

/// A use that changes nothing else is written down this often.
const USED_AGAIN: Millis = 60_000;

/// As many rows of the history as one query gives at most.
pub const HISTORY_AT_MOST: u32 = 10_000;

#[derive(Debug, Clone)]
pub struct NewApiToken {
    pub token_id: String,
    pub name: String,
    pub tag: [u8; 32],
    pub scopes: Vec<Scope>,
    pub reach: Reach,
    pub expires_at: Option<Millis>,
}

/// A secret that is about to be handed out.
#[derive(Debug, Clone)]
pub struct SecretRead {
    pub token_id: String,
    pub peer: String,
    pub credential_id: String,
    pub generation: u32,
    /// The form's name.
    pub form: &'static str,
}

/// Why a request of the API was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    NoToken,
    /// What was shown is no token by its look.
    MalformedToken,
    /// Nobody's, or another secret than the one of its id.
    UnknownToken,
    ExpiredToken,
    RevokedToken,
    /// The token may not do this at all.
    Scope,
    /// The token doesn't reach this credential, or there is none of the name.
    ForeignCredential,
    /// A page of another site asked for it in a browser.
    OtherSite,
    /// Over the rate, by a token or by an address without one.
    TooOften,
}

impl RefusalReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::MalformedToken => "malformed-token",
            Self::UnknownToken => "unknown-token",
            Self::ExpiredToken => "expired-token",
            Self::RevokedToken => "revoked-token",
            Self::Scope => "scope",
            Self::ForeignCredential => "foreign-credential",
            Self::OtherSite => "other-site",
            Self::TooOften => "too-often",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ApiRefusal {
    pub reason: RefusalReason,
    pub token_id: Option<String>,
    pub peer: String,
    pub credential_id: Option<String>,
    pub times: u32,
}

impl Writer {
    pub async fn create_api_token(&self, token: NewApiToken) -> Written<()> {
        let at = now();
        self.run(move |db| create(db, &token, at)).await
    }

    /// Ends a token for good. Once more changes nothing.
    pub async fn revoke_api_token(&self, token_id: &str) -> Written<()> {
        let (token_id, at) = (token_id.to_owned(), now());
        self.run(move |db| revoke(db, &token_id, at)).await
    }

    /// Writes down that a secret is handed out, before it is. Refused where the token is over by
    /// now.
    pub async fn note_secret_read(&self, read: SecretRead) -> Written<()> {
        let at = now();
        self.run(move |db| note_read(db, &read, at)).await
    }

    pub async fn note_api_refusals(&self, refusals: Vec<ApiRefusal>) -> Written<()> {
        let at = now();
        self.run(move |db| refusals.iter().try_for_each(|refusal| note_refusal(db, refusal, at))).await
    }

    /// Remembers a use that reads no secret, now and then.
    pub async fn use_api_token(&self, row: &ApiTokenRow) -> Written<()> {
        let at = now();
        if row.last_used_at.is_some_and(|last| at.saturating_sub(last) < USED_AGAIN) {
            return Ok(());
        }
        let token_id = row.token_id.clone();
        self.run(move |db| mark_used(db, &token_id, at)).await
    }
}

fn create(db: &Connection, token: &NewApiToken, at: Millis) -> Written<()> {
    db.prepare_cached(
        "INSERT INTO api_tokens (token_id, name, tag, scopes_json, reach_json, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        token.token_id,
        token.name,
        token.tag,
        json(&token.scopes)?,
        json(&token.reach)?,
        millis(at),
        token.expires_at.map(millis),
    ])?;
    let detail = serde_json::json!({
        "tokenId": token.token_id, "name": token.name, "scopes": token.scopes, "reach": token.reach,
        "expiresAt": token.expires_at.map(iso8601),
    });
    insert_audit(db, &by_operator("api-token-created", &token.reach, detail), at)
}

fn by_operator(action: &'static str, reach: &Reach, detail: serde_json::Value) -> AuditEntry {
    let service = if let Reach::Service(service) = reach { Some(service.clone()) } else { None };
    AuditEntry { actor: Actor::Operator, action, service, file: None, digest: None, signer: None, detail }
}

fn revoke(db: &Connection, token_id: &str, at: Millis) -> Written<()> {
    let found: Option<(String, Reach, Option<Millis>)> = db
        .prepare_cached("SELECT name, reach_json, revoked_at FROM api_tokens WHERE token_id = ?1")?
        .query_row([token_id], |row| Ok((row.get(0)?, read_json(row, 1)?, read_optional_millis(row, 2)?)))
        .optional()?;
    let Some((name, reach, revoked)) = found else { return Err(not_found("api token", token_id)) };
    if revoked.is_some() {
        return Ok(());
    }
    db.prepare_cached("UPDATE api_tokens SET revoked_at = ?2 WHERE token_id = ?1")?
        .execute(params![token_id, millis(at)])?;
    let detail = serde_json::json!({ "tokenId": token_id, "name": name });
    insert_audit(db, &by_operator("api-token-revoked", &reach, detail), at)
}

fn mark_used(db: &Connection, token_id: &str, at: Millis) -> Written<()> {
    db.prepare_cached("UPDATE api_tokens SET last_used_at = ?2 WHERE token_id = ?1")?
        .execute(params![token_id, millis(at)])?;
    Ok(())
}

fn note_read(db: &Connection, read: &SecretRead, at: Millis) -> Written<()> {
    let usable: Option<bool> = db
        .prepare_cached("SELECT expires_at, revoked_at FROM api_tokens WHERE token_id = ?1")?
        .query_row([&read.token_id], |row| {
            let state = TokenState::of(read_optional_millis(row, 0)?, read_optional_millis(row, 1)?, at);
            Ok(state == TokenState::Active)
        })
        .optional()?;
    if usable != Some(true) {
        return Err(not_found("active api token", &read.token_id));
    }
    mark_used(db, &read.token_id, at)?;
    let since = millis(at.saturating_sub(FOLDED));
    let folded = db
        .prepare_cached(
            "UPDATE api_reads SET last_at = ?1, times = times + 1
             WHERE id = (SELECT id FROM (SELECT id, first_at, peer, credential_id, generation, form
                                         FROM api_reads INDEXED BY api_reads_by_token
                                         WHERE token_id = ?2 ORDER BY id DESC LIMIT ?8) newest
                         WHERE peer = ?3 AND credential_id = ?4 AND generation = ?5 AND form = ?6
                           AND first_at > ?7 LIMIT 1)",
        )?
        .execute(params![
            millis(at),
            read.token_id,
            read.peer,
            read.credential_id,
            read.generation,
            read.form,
            since,
            limits::API_HISTORY_LOOKED_BACK,
        ])?;
    if folded > 0 {
        return Ok(());
    }
    let last = db.insert(
        "INSERT INTO api_reads (first_at, last_at, times, token_id, peer, credential_id, generation, form)
         VALUES (?1, ?1, 1, ?2, ?3, ?4, ?5, ?6)",
        params![millis(at), read.token_id, read.peer, read.credential_id, read.generation, read.form],
    )?;
    end_oldest(db, "DELETE FROM api_reads WHERE id <= ?1", last)
}

fn note_refusal(db: &Connection, refusal: &ApiRefusal, at: Millis) -> Written<()> {
    let since = millis(at.saturating_sub(FOLDED));
    let folded = db
        .prepare_cached(
            "UPDATE api_refusals SET last_at = ?1, times = times + ?2
             WHERE id = (SELECT id FROM (SELECT id, first_at, reason, token_id, credential_id
                                         FROM api_refusals INDEXED BY api_refusals_by_peer
                                         WHERE peer = ?3 ORDER BY id DESC LIMIT ?8) newest
                         WHERE reason = ?4 AND token_id IS NOT DISTINCT FROM ?5
                           AND credential_id IS NOT DISTINCT FROM ?6
                           AND first_at > ?7 LIMIT 1)",
        )?
        .execute(params![
            millis(at),
            refusal.times,
            refusal.peer,
            refusal.reason.as_str(),
            refusal.token_id,
            refusal.credential_id,
            since,
            limits::API_HISTORY_LOOKED_BACK,
        ])?;
    if folded > 0 {
        return Ok(());
    }
    let last = db.insert(
        "INSERT INTO api_refusals (first_at, last_at, times, reason, token_id, peer, credential_id)
         VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            millis(at),
            refusal.times,
            refusal.reason.as_str(),
            refusal.token_id,
            refusal.peer,
            refusal.credential_id,
        ],
    )?;
    end_oldest(db, "DELETE FROM api_refusals WHERE id <= ?1", last)
}

/// Ids are given in order, so what is past the bound is found without counting.
fn end_oldest(db: &Connection, sql: &str, last: Option<i64>) -> Written<()> {
    if let Some(last) = last
        && last > limits::API_HISTORY_ROWS
    {
        db.prepare_cached(sql)?.execute([last - limits::API_HISTORY_ROWS])?;
    }
    Ok(())
}

/// A token of the API, without anything that it could be recognised by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiTokenRow {
    pub token_id: String,
    pub name: String,
    pub scopes: Vec<Scope>,
    pub reach: Reach,
    #[serde(serialize_with = "iso")]
    pub created_at: Millis,
    #[serde(serialize_with = "iso_option")]
    pub last_used_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub expires_at: Option<Millis>,
    #[serde(serialize_with = "iso_option")]
    pub revoked_at: Option<Millis>,
}

/// One line of the history: secrets that were read, or requests that were refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiHistoryRow {
    /// `read`, or why it was refused.
    pub what: String,
    pub refused: bool,
    pub times: u32,
    #[serde(serialize_with = "iso")]
    pub first_at: Millis,
    #[serde(serialize_with = "iso")]
    pub last_at: Millis,
    pub token_id: Option<String>,
    pub peer: String,
    pub credential_id: Option<String>,
    pub generation: Option<u32>,
    pub form: Option<String>,
}

const TOKEN_COLUMNS: &str = "
    SELECT token_id, name, scopes_json, reach_json, created_at, last_used_at, expires_at, revoked_at, tag
    FROM api_tokens";

impl Reader {
    /// A token by its id, with what it is recognised by.
    pub fn api_token(&self, token_id: &str) -> Found<Option<(ApiTokenRow, Vec<u8>)>> {
        self.one(&format!("{TOKEN_COLUMNS} WHERE token_id = ?1"), [token_id], |row| {
            Ok((token_from(row)?, row.get(8)?))
        })
    }

    /// Every token there ever was, the newest first.
    pub fn api_tokens(&self) -> Found<Vec<ApiTokenRow>> {
        self.all(&format!("{TOKEN_COLUMNS} ORDER BY created_at DESC, token_id"), [], token_from)
    }

    /// What was read and what was refused, the newest first: all of it, or one token's.
    pub fn api_history(&self, token_id: Option<&str>, limit: u32) -> Found<Vec<ApiHistoryRow>> {
        let limit = limit.min(HISTORY_AT_MOST);
        let (filter, parameter) = match token_id {
            Some(id) => ("WHERE token_id = ?1", vec![Owned::from(id.to_owned())]),
            None => ("", Vec::new()),
        };
        // A repeated row changes its place only by its last moment, so a few more are looked at
        // than are shown.
        let sql = format!(
            "SELECT * FROM (
                 SELECT * FROM (SELECT 'read', 0, times, first_at, last_at, token_id, peer,
                                       credential_id, generation, form, id
                                FROM api_reads {filter} ORDER BY id DESC LIMIT {limit}) reads
                 UNION ALL
                 SELECT * FROM (SELECT reason, 1, times, first_at, last_at, token_id, peer,
                                       credential_id, CAST(NULL AS BIGINT), CAST(NULL AS TEXT), id
                                FROM api_refusals {filter} ORDER BY id DESC LIMIT {limit}) refusals) history
             ORDER BY 5 DESC, 11 DESC LIMIT {limit}"
        );
        self.all(&sql, parameter, |row| {
            Ok(ApiHistoryRow {
                what: row.get(0)?,
                refused: row.get(1)?,
                times: row.get(2)?,
                first_at: read_millis(row, 3)?,
                last_at: read_millis(row, 4)?,
                token_id: row.get(5)?,
                peer: row.get(6)?,
                credential_id: row.get(7)?,
                generation: row.get(8)?,
                form: row.get(9)?,
            })
        })
    }

    /// The generation in force of a credential that Keywheel keeps, by its number.
    pub fn current_generation(&self, credential_id: &str) -> Found<Option<u32>> {
        let found: Option<Option<u32>> = self.one(
            "SELECT current_generation FROM credentials WHERE credential_id = ?1",
            [credential_id],
            |row| row.get(0),
        )?;
        Ok(found.flatten())
    }

    /// A page of the kept credentials within a reach: those of a list by name, of a service or a
    /// profile in the order in which they were added. With it, where the next page begins.
    pub fn credentials_within(
        &self,
        reach: &Reach,
        after: i64,
        limit: u32,
    ) -> Found<(Vec<CredentialRow>, Option<i64>)> {
        let by_column = |index: &str, column: &str, value: &str| {
            let mut ids: Vec<(i64, String)> = self.all(
                &format!(
                    "SELECT id, credential_id FROM credentials INDEXED BY {index}
                     WHERE {column} = ?1 AND external = 0 AND id > ?2 ORDER BY id LIMIT ?3"
                ),
                params![value, after, limit.saturating_add(1)],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let more = ids.len() > limit as usize;
            ids.truncate(limit as usize);
            let next = ids.last().map(|(id, _)| *id).filter(|_| more);
            Found::Ok((ids.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), next))
        };
        let (names, next) = match reach {
            // Few, for they were named one by one.
            Reach::Credentials(ids) => (ids.clone(), None),
            Reach::Service(service) => by_column("credentials_kept", "service", service)?,
            Reach::Profile(profile) => by_column("credentials_by_profile", "profile_id", profile)?,
            Reach::Nothing => (Vec::new(), None),
        };
        let mut rows = Vec::new();
        for name in names {
            rows.extend(self.credential(&name)?.filter(|row| !row.external));
        }
        Ok((rows, next))
    }
}

fn token_from(row: Row<'_>) -> sql::Result<ApiTokenRow> {
    Ok(ApiTokenRow {
        token_id: row.get(0)?,
        name: row.get(1)?,
        scopes: read_json(row, 2)?,
        reach: read_json(row, 3)?,
        created_at: read_millis(row, 4)?,
        last_used_at: read_optional_millis(row, 5)?,
        expires_at: read_optional_millis(row, 6)?,
        revoked_at: read_optional_millis(row, 7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    const NOW: Millis = 1_700_000_000_000;

    fn home() -> (Scratch, Connection, Reader) {
        let scratch = Scratch::new();
        let db = scratch.connection();
        let reader = scratch.reader();
        (scratch, db, reader)
    }

    fn token(db: &Connection, id: &str, expires_at: Option<Millis>) {
        let new = NewApiToken {
            token_id: id.into(),
            name: "a program".into(),
            tag: [7; 32],
            scopes: vec![Scope::Read],
            reach: Reach::Credentials(vec!["ann".into()]),
            expires_at,
        };
        create(db, &new, NOW).unwrap();
    }

    fn read(token_id: &str, generation: u32) -> SecretRead {
        SecretRead {
            token_id: token_id.into(),
            peer: "127.0.0.1".into(),
            credential_id: "ann".into(),
            generation,
            form: "json",
        }
    }

    fn refusal(peer: &str) -> ApiRefusal {
        ApiRefusal {
            reason: RefusalReason::NoToken,
            token_id: None,
            peer: peer.into(),
            credential_id: None,
            times: 1,
        }
    }

    #[test]
    fn a_read_is_written_down_only_for_a_token_that_is_alive() {
        let (_folder, db, reader) = home();
        token(&db, "t1", Some(NOW + 10));
        note_read(&db, &read("t1", 1), NOW + 9).unwrap();
        let late = note_read(&db, &read("t1", 1), NOW + 10);
        assert!(matches!(late, Err(WriteError::NotFound { .. })), "{late:?}");
        token(&db, "t2", None);
        for _ in 0..2 {
            revoke(&db, "t2", NOW + 5).unwrap();
        }
        assert!(note_read(&db, &read("t2", 1), NOW + 6).is_err());
        assert!(note_read(&db, &read("t3", 1), NOW).is_err());
        assert!(matches!(revoke(&db, "t3", NOW), Err(WriteError::NotFound { .. })));
        let history = reader.api_history(None, 10).unwrap();
        assert_eq!(history.len(), 1, "{history:?}");
        let (row, tag) = reader.api_token("t1").unwrap().unwrap();
        assert_eq!(
            (row.last_used_at, row.scopes.as_slice(), tag),
            (Some(NOW + 9), &[Scope::Read][..], vec![7; 32])
        );
        let audit: Vec<_> = reader.audit(None, 10).unwrap().into_iter().map(|row| row.action).collect();
        assert_eq!(audit, ["api-token-revoked", "api-token-created", "api-token-created"]);
    }

    #[test]
    fn the_same_again_within_an_hour_is_counted_in_its_row_and_anything_else_has_its_own() {
        let (_folder, db, reader) = home();
        token(&db, "t1", None);
        for (generation, after) in [(1, 0), (1, 5), (2, 6), (1, 7), (1, FOLDED + 1)] {
            note_read(&db, &read("t1", generation), NOW + after).unwrap();
        }
        for (peer, after) in [("192.0.2.1", 0), ("192.0.2.2", 1), ("192.0.2.1", 2)] {
            note_refusal(&db, &refusal(peer), NOW + after).unwrap();
        }
        let history = reader.api_history(None, 10).unwrap();
        let rows: Vec<_> = history
            .iter()
            .map(|row| (row.what.as_str(), row.times, row.generation, row.first_at - NOW, row.last_at - NOW))
            .collect();
        assert_eq!(
            rows,
            [
                ("read", 1, Some(1), FOLDED + 1, FOLDED + 1),
                ("read", 3, Some(1), 0, 7),
                ("read", 1, Some(2), 6, 6),
                ("no-token", 2, None, 0, 2),
                ("no-token", 1, None, 1, 1),
            ]
        );
        assert_eq!(reader.api_history(Some("t1"), 10).unwrap().len(), 3);
        assert_eq!(reader.api_history(None, 2).unwrap().len(), 2);
    }

    #[test]
    fn neither_history_grows_past_its_bound_and_a_flood_of_one_leaves_the_other() {
        let (_folder, db, reader) = home();
        token(&db, "t1", None);
        note_read(&db, &read("t1", 1), NOW).unwrap();
        for peer in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            note_refusal(&db, &refusal(peer), NOW).unwrap();
        }
        // As if as many had come in between as there may be.
        let last = limits::API_HISTORY_ROWS + 1;
        let leap = match db {
            Connection::Sqlite(_) => {
                format!("UPDATE sqlite_sequence SET seq = {last} WHERE name = 'api_refusals'")
            }
            Connection::Postgres(_) => format!("ALTER TABLE api_refusals ALTER id RESTART WITH {}", last + 1),
        };
        db.execute_batch(&leap).unwrap();
        note_refusal(&db, &refusal("192.0.2.4"), NOW + 1).unwrap();
        let history = reader.api_history(None, 10).unwrap();
        let mut peers: Vec<_> =
            history.iter().filter(|row| row.refused).map(|row| row.peer.as_str()).collect();
        peers.sort_unstable();
        assert_eq!(peers, ["192.0.2.3", "192.0.2.4"], "the two oldest made room");
        assert_eq!(
            history.iter().filter(|row| !row.refused).count(),
            1,
            "a read is pushed out by no refusal"
        );
    }

    #[test]
    fn a_page_of_what_a_token_reaches_is_found_by_an_index() {
        let (_folder, db, reader) = home();
        for (id, service, profile, external) in [
            ("a", "s", Some("p"), 0),
            ("b", "t", Some("p"), 0),
            ("c", "s", None, 0),
            ("d", "s", Some("p"), 1),
        ] {
            db.execute(
                "INSERT INTO credentials (credential_id, service, profile_id, settings_json, private_hosts_json,
                     last_generation, rotated_at, created_at, external) VALUES (?1, ?2, ?3, '[]', '[]', 1, 0, 0, ?4)",
                params![id, service, profile, external],
            )
            .unwrap();
            db.execute(
                "INSERT INTO cookie_rotation_monitor (cookie_id, service, next_action) VALUES (?1, ?2, 'validate')",
                [id, service],
            )
            .unwrap();
        }
        let page = |reach: &Reach, after, limit| {
            let (rows, next) = reader.credentials_within(reach, after, limit).unwrap();
            (rows.into_iter().map(|row| row.credential_id).collect::<Vec<_>>(), next)
        };
        let of_service = Reach::Service("s".into());
        assert_eq!(page(&of_service, 0, 10), (vec!["a".into(), "c".into()], None));
        assert_eq!(page(&of_service, 0, 1), (vec!["a".into()], Some(1)));
        assert_eq!(page(&of_service, 1, 1), (vec!["c".into()], None));
        assert_eq!(page(&Reach::Profile("p".into()), 0, 10), (vec!["a".into(), "b".into()], None));
        let named = Reach::Credentials(vec!["c".into(), "d".into(), "gone".into()]);
        assert_eq!(
            page(&named, 0, 10),
            (vec!["c".into()], None),
            "external ones and gone ones aren't listed"
        );
        assert_eq!(page(&Reach::Nothing, 0, 10), (vec![], None));
        assert_eq!(reader.current_generation("a").unwrap(), None);
    }
}
