//! Every table of the schema, for what goes over all of them: the columns, and the key that puts
//! its rows in an order that both engines agree on. A test holds the list to either schema, so
//! that no later migration is forgotten here.

/// Lists are as SQL writes them.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    /// The primary key.
    pub key: &'static str,
    pub columns: &'static str,
    /// Its ids are never given out again, also when their rows are gone.
    pub numbered: bool,
}

const fn table(name: &'static str, key: &'static str, columns: &'static str) -> Table {
    Table { name, key, columns, numbered: false }
}

const fn numbered(name: &'static str, columns: &'static str) -> Table {
    Table { name, key: "id", columns, numbered: true }
}

impl Table {
    pub fn key(&self) -> impl Iterator<Item = &'static str> {
        self.key.split(", ")
    }

    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.columns.split(", ")
    }
}

/// What others refer to comes before them.
pub const ALL: &[Table] = &[
    table("installation", "key", "key, value"),
    table(
        "cookie_rotation_providers",
        "service",
        "service, title, version, validate_url, key_mapping_json, validate_interval_seconds, \
         max_age_seconds, plugin_digest, permissions_json, manifest_json, state, pending_digest, \
         pending_manifest_json, operator_validate_interval_seconds, updated_at, signer_json, \
         pending_signer_json, file, paused, revision",
    ),
    table("trusted_keys", "key_id", "key_id, public_key, name, added_at"),
    numbered(
        "credentials",
        "id, credential_id, profile_id, service, settings_json, private_hosts_json, method, \
         validate_interval_seconds, max_age_seconds, identity, paused, fence, attempt_number, \
         current_generation, pending_generation, last_generation, rotated_at, created_at, \
         idle_limit_seconds, quiet_json, external, external_token, doubtful_generation, \
         restored_generation",
    ),
    table(
        "generations",
        "credential, generation",
        "credential, generation, state, attempt_number, created_at, restored_from",
    ),
    table(
        "generation_keys",
        "credential, generation, key",
        "credential, generation, key, sealed, fingerprint, expires_at, cookie_json",
    ),
    table(
        "journal",
        "credential",
        "credential, attempt_number, fence, owner, lease_until, action, method, commit_class, \
         from_generation, started_at, phase",
    ),
    table(
        "cookie_rotation_monitor",
        "cookie_id",
        "cookie_id, service, last_status, last_verdict, last_message, last_attempt_at, \
         last_success_at, consecutive_failures, expires_at, next_due_at, next_action, \
         last_report_id, next_reason, asked_until, waits_since",
    ),
    table(
        "consumers",
        "credential, name",
        "credential, name, wait_seconds, sink, acknowledged, acknowledged_at",
    ),
    numbered(
        "cookie_rotation_reports",
        "id, cookie_id, profile_id, service, validate_url, cookie_keys_json, status, message, \
         attempt_number, started_at, finished_at, created_at, idempotency_key, meta_json, \
         worker_token",
    ),
    numbered("audit", "id, at, actor, action, service, file, digest, signer, detail_json"),
    table(
        "worker_tokens",
        "token_id",
        "token_id, name, service, tag, created_at, last_used_at, expires_at, revoked_at",
    ),
    table(
        "external_workers",
        "service, worker_id",
        "service, worker_id, token_id, pid, version, interval_seconds, announced_at, last_seen_at",
    ),
    table(
        "sink_states",
        "sink",
        "sink, credential, generation, delivered_at, tries, next_try_at, last_error",
    ),
    table(
        "api_tokens",
        "token_id",
        "token_id, name, tag, scopes_json, reach_json, created_at, last_used_at, expires_at, \
         revoked_at",
    ),
    numbered("api_reads", "id, first_at, last_at, times, token_id, peer, credential_id, generation, form"),
    numbered("api_refusals", "id, first_at, last_at, times, reason, token_id, peer, credential_id"),
    table(
        "alert_states",
        "subject",
        "subject, group_key, service, kind, severity, stage, since, opened_at, closed_at, \
         told_severity, told_stage, what, why, hint",
    ),
    table("alert_groups", "group_key", "group_key, sequence, changed_at, noticed_at, reminders"),
    table("alert_snoozes", "subject", "subject, until, created_at"),
    numbered(
        "deliveries",
        "id, channel, dedup_key, payload_json, created_at, tries, next_try_at, holds, \
         delivered_at, failed_at, last_error",
    ),
    table(
        "hosts",
        "host_id",
        "host_id, name, labels_json, version, first_at, started_at, last_seen_at, in_flight, \
         at_most, stopped_at",
    ),
    table("duties", "duty", "duty, host_id, held_until"),
    table("service_rates", "service", "service, next_at"),
    table("plugin_files", "digest", "digest, bytes, added_at"),
    table("host_keys", "host_id", "host_id, name, public_key, sealed_key, asked_at, admitted_at, revoked_at"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::scratch::Scratch;
    use crate::db::sql::{self, Connection};

    fn texts(db: &Connection, sql: &str) -> Vec<String> {
        let mut select = db.prepare_cached(sql).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<sql::Result<_>>().unwrap()
    }

    /// Table, its columns sorted, its key in order, and whether it numbers its rows.
    type Seen = (String, Vec<String>, Vec<String>, bool);

    fn of_schema(db: &Connection) -> Vec<Seen> {
        let (tables, columns, key, numbered) = match db {
            Connection::Sqlite(_) => (
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
                "SELECT name FROM pragma_table_info('T') ORDER BY name",
                "SELECT name FROM pragma_table_info('T') WHERE pk > 0 ORDER BY pk",
                "SELECT name FROM sqlite_schema WHERE name = 'T' AND sql LIKE '%AUTOINCREMENT%'",
            ),
            Connection::Postgres(_) => (
                "SELECT table_name::text COLLATE \"C\" FROM information_schema.tables
                 WHERE table_schema = current_schema() AND table_name <> 'keywheel_schema' ORDER BY 1",
                "SELECT column_name::text COLLATE \"C\" FROM information_schema.columns
                 WHERE table_schema = current_schema() AND table_name = 'T' ORDER BY 1",
                "SELECT a.attname::text
                 FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (n, place), pg_attribute a
                 WHERE i.indrelid = 'T'::regclass AND i.indisprimary
                   AND a.attrelid = i.indrelid AND a.attnum = k.n ORDER BY k.place",
                "SELECT column_name::text FROM information_schema.columns
                 WHERE table_schema = current_schema() AND table_name = 'T' AND is_identity = 'YES'",
            ),
        };
        let of = |sql: &str, table: &str| texts(db, &sql.replace("'T'", &format!("'{table}'")));
        let seen = |table: String| {
            let (columns, key, numbered) = (of(columns, &table), of(key, &table), of(numbered, &table));
            (table, columns, key, !numbered.is_empty())
        };
        texts(db, tables).into_iter().map(seen).collect()
    }

    #[test]
    fn the_list_has_every_table_and_every_column_of_the_schema_of_either_engine() {
        let mut listed: Vec<Seen> = ALL
            .iter()
            .map(|table| {
                let mut columns: Vec<String> = table.columns().map(str::to_owned).collect();
                columns.sort();
                (table.name.to_owned(), columns, table.key().map(str::to_owned).collect(), table.numbered)
            })
            .collect();
        listed.sort();
        assert_eq!(of_schema(&Scratch::new().connection()), listed);
        assert_eq!(of_schema(&Scratch::on_file().connection()), listed);
    }

    #[test]
    fn what_a_table_refers_to_comes_before_it() {
        let scratch = Scratch::on_file();
        let db = scratch.connection();
        let place = |name: &str| ALL.iter().position(|table| table.name == name).unwrap();
        for table in ALL {
            let sql = format!("SELECT \"table\" FROM pragma_foreign_key_list('{}')", table.name);
            for parent in texts(&db, &sql) {
                assert!(place(&parent) < place(table.name), "{} refers to {parent}", table.name);
            }
        }
    }
}
