#!/usr/bin/env bash
# What docs/scaling.md says was measured: the store's schema on a PostgreSQL server of its own, on a
# disk, filled with CREDENTIALS (default 200000) credentials over a hundred services, and the
# statements of an attempt run against it by pgbench. Prints one key and value a line. Never
# asserts: timings are no tests. It takes some minutes and 6 KB of disk for each credential, which
# it gives back. FOLDER names where (default: a temporary folder).
#
# Ends only the server that it started.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
credentials=${CREDENTIALS:-200000}
seconds=${SECONDS_EACH:-20}
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
folder=$(mktemp -d "${FOLDER:-${TMPDIR:-/tmp}}/keywheel-measure.XXXXXX")
as() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
    chown postgres: "$folder"
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups --inh-caps=-all "$@"; }
fi
stop() {
    (cd / && as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1) || true
    rm -rf "$folder"
}
trap stop EXIT

cd /
as "$bin/initdb" -D "$folder/data" -U keywheel --auth=trust --no-instructions >/dev/null
cat >>"$folder/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$folder'
shared_buffers = 2GB
max_wal_size = 16GB
checkpoint_timeout = 30min
max_connections = 100
track_wal_io_timing = on
${SETTINGS:-}
CONF
as "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w start >/dev/null
export PGHOST=$folder PGUSER=keywheel PGDATABASE=postgres
psql() { "$bin/psql" -XqAt -v ON_ERROR_STOP=1 "$@"; }
say() { printf '%-44s %s\n' "$1" "$2"; }

say server "PostgreSQL $(psql -c 'SHOW server_version')"
say credentials "$credentials"
for migration in "$here"/../../migrations/postgres/*.sql; do psql -1 -f "$migration" >/dev/null; done

# As a host writes them: one cookie of 64 characters, sealed with its nonce, tag and version.
psql >/dev/null <<SQL
INSERT INTO cookie_rotation_providers (service, title, version, validate_url, key_mapping_json,
    validate_interval_seconds, plugin_digest, permissions_json, manifest_json, state, updated_at)
SELECT 'service-' || n, 'A service', '1.0.0', 'https://service.example/me', '[]', 600, repeat('a', 64), '{}', '{}', 'active', 0
FROM generate_series(0, 99) n;
INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
    validate_interval_seconds, attempt_number, fence, current_generation, last_generation, rotated_at, created_at)
SELECT 'account-' || lpad(n::text, 9, '0'), 'service-' || n % 100, '[["base_url","https://service.example"]]', '[]',
    600, 40, 40, 1, 1, 1700000000000, 1700000000000
FROM generate_series(1, $credentials) n;
INSERT INTO cookie_rotation_monitor (cookie_id, service, last_status, last_verdict, last_attempt_at,
    last_success_at, next_due_at, next_action, next_reason)
SELECT credential_id, service, 'success', 'valid', 1700000000000, 1700000000000,
    1700000000000 + id * 2654435761 % 600000, 'validate', 'cadence'
FROM credentials;
CREATE FUNCTION generation(which bigint, state text) RETURNS void LANGUAGE sql AS \$\$
    INSERT INTO generations (credential, generation, state, created_at)
    SELECT id, which, state, 1700000000000 FROM credentials;
    INSERT INTO generation_keys (credential, generation, key, sealed, fingerprint, cookie_json)
    SELECT id, which, 'session', decode(repeat(md5(id::text), 4), 'hex') || decode(repeat('00', 42), 'hex'),
        substr(md5(id::text), 1, 16),
        '{"name":"session","domain":"service.example","path":"/","hostOnly":true,"secure":true,"httpOnly":true,"sameSite":"Lax"}'
    FROM credentials;
\$\$;
SELECT generation(1, 'current');
VACUUM ANALYZE;
SQL
bytes() { psql -c "SELECT coalesce(sum($1(format('%I', t)::regclass)), 0)::bigint / $credentials FROM unnest('$2'::text[]) t"; }
kept='{credentials,cookie_rotation_monitor,generations,generation_keys}'
say row_bytes_per_credential "$(bytes pg_table_size "$kept")"
say index_bytes_per_credential "$(bytes pg_indexes_size "$kept")"
one=$(bytes pg_total_relation_size '{generations,generation_keys}')
psql -c "SELECT generation(2, 'previous')" >/dev/null
psql -c 'VACUUM ANALYZE'
say bytes_per_further_generation $(($(bytes pg_total_relation_size '{generations,generation_keys}') - one))

# The statements of host/src/db/commands.rs, one attempt to a claim: what a claim of many saves is
# measured by its plan below.
meta='{"action":"validate","answer":"200","path":["validate"],"plugin":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","requests":1,"verdict":"valid","worker":"service-1/1"}'
claim_columns='c.id, c.credential_id, c.fence, c.attempt_number, c.profile_id, c.service, c.settings_json,
    c.private_hosts_json, c.method, c.identity, c.current_generation, c.pending_generation, c.last_generation,
    c.rotated_at, c.validate_interval_seconds, c.max_age_seconds, c.idle_limit_seconds, c.quiet_json,
    c.doubtful_generation, c.restored_generation, m.consecutive_failures, m.last_verdict, m.expires_at,
    j.started_at, j.action, j.fence AS open_fence, j.owner = '"'host-a'"' AS own, m.next_action, m.next_due_at, m.waits_since'
due="SELECT $claim_columns FROM cookie_rotation_monitor m
    JOIN credentials c ON c.credential_id = m.cookie_id LEFT JOIN journal j ON j.credential = c.id
    WHERE m.service = 'service-' || :n AND m.next_due_at <= :now 
    AND NOT EXISTS (SELECT 1 FROM journal o WHERE o.credential = c.id AND o.lease_until > :now)
    ORDER BY m.next_due_at LIMIT :quota FOR UPDATE OF m, c SKIP LOCKED"
one_line() { tr '\n' ' '; }
claim() {
    cat <<SQL
\\set n random(0, 99)
\\set now $1
\\set quota 1
\\set lease :now + 60000
\\set next :now + 600000
BEGIN;
SELECT pg_current_xact_id();
SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = 'service-' || :n;
$(one_line <<<"$due") \\gset
UPDATE credentials SET fence = :fence + 1, attempt_number = :attempt_number + 1 WHERE id = :id;
INSERT INTO journal (credential, attempt_number, fence, owner, lease_until, action, started_at, phase) VALUES (:id, :attempt_number + 1, :fence + 1, 'host-a', :lease, 'validate', :now, 'claimed');
UPDATE cookie_rotation_monitor SET next_due_at = :lease WHERE cookie_id = :credential_id;
SELECT g.created_at, k.key, k.sealed, k.fingerprint, k.expires_at, k.cookie_json FROM generations g LEFT JOIN generation_keys k ON k.credential = g.credential AND k.generation = g.generation WHERE g.credential = :id AND g.generation = :current_generation ORDER BY k.key;
SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = 'service-' || :n;
COMMIT;
SQL
}
end_begins() {
    cat <<SQL
BEGIN;
SELECT pg_current_xact_id();
SELECT 1 FROM credentials WHERE id = :id FOR UPDATE;
DELETE FROM journal WHERE credential = :id AND fence = :fence + 1 AND attempt_number = :attempt_number + 1;
SQL
}
end_ends() {
    cat <<SQL
INSERT INTO cookie_rotation_reports (cookie_id, profile_id, service, validate_url, cookie_keys_json, status, message, attempt_number, started_at, finished_at, created_at, idempotency_key, meta_json) VALUES (:credential_id, NULL, 'service-' || :n, 'https://service.example/me', '{"session":"00112233aabbccdd"}', 'success', NULL, :attempt_number + 1, '2026-01-02T03:04:05.678Z', '2026-01-02T03:04:05.789Z', '2026-01-02T03:04:05.790Z', :credential_id || '/41/2026-01-02T03:04:05.678Z', '$meta') ON CONFLICT (cookie_id, attempt_number, started_at) DO NOTHING RETURNING id AS report \\gset
SELECT paused FROM credentials WHERE id = :id;
UPDATE cookie_rotation_monitor SET last_status = 'success', last_verdict = 'valid', last_message = NULL, last_attempt_at = :now, last_success_at = CASE WHEN 'success' = 'success' THEN :now ELSE last_success_at END, consecutive_failures = 0, expires_at = NULL, next_due_at = :next, next_action = 'validate', last_report_id = :report, asked_until = NULL, waits_since = CASE WHEN false THEN NULL ELSE waits_since END, next_reason = 'cadence' WHERE cookie_id = :credential_id;
COMMIT;
SQL
}
intent() {
    cat <<SQL
BEGIN;
SELECT pg_current_xact_id();
UPDATE journal SET method = 'refresh', commit_class = 'grace', from_generation = :current_generation, phase = CASE phase WHEN 'claimed' THEN 'rotating' ELSE phase END WHERE credential = :id AND fence = :fence + 1;
COMMIT;
SQL
}
receipt() {
    cat <<SQL
BEGIN;
SELECT pg_current_xact_id();
SELECT 1 FROM credentials WHERE id = :id FOR UPDATE;
UPDATE journal SET phase = 'captured' WHERE credential = :id AND fence = :fence + 1 RETURNING attempt_number;
SELECT c.pending_generation, g.attempt_number, c.last_generation FROM credentials c LEFT JOIN generations g ON g.credential = c.id AND g.generation = c.pending_generation WHERE c.id = :id;
INSERT INTO generations (credential, generation, state, attempt_number, restored_from, created_at) VALUES (:id, :last_generation + 2, 'pending', :attempt_number + 1, NULL, :now);
INSERT INTO generation_keys (credential, generation, key, sealed, fingerprint, expires_at, cookie_json) SELECT credential, :last_generation + 2, key, sealed, fingerprint, expires_at, cookie_json FROM generation_keys WHERE credential = :id AND generation = :current_generation;
UPDATE credentials SET pending_generation = :last_generation + 2, last_generation = :last_generation + 2 WHERE id = :id;
COMMIT;
SQL
}
promotion() {
    cat <<SQL
SELECT current_generation, pending_generation FROM credentials WHERE id = :id;
UPDATE generations SET state = 'previous' WHERE credential = :id AND generation = :current_generation;
UPDATE generations SET state = 'current' WHERE credential = :id AND generation = :last_generation + 2;
UPDATE credentials SET current_generation = :last_generation + 2, pending_generation = NULL, rotated_at = (SELECT created_at FROM generations WHERE credential = :id AND generation = :last_generation + 2) WHERE id = :id;
DELETE FROM generations WHERE credential = :id AND state IN ('previous', 'dropped') AND generation < (SELECT generation FROM generations WHERE credential = :id AND state = 'previous' ORDER BY generation DESC LIMIT 1 OFFSET 2);
SQL
}
# Everything is due, and each is taken once: a `now` for each run, later than the run before.
now=1700000600000
runs() { now=$((now + 601000)); case $1 in
    claim) claim $now ;;
    validate) claim $now; end_begins; end_ends ;;
    rotate) claim $now; intent; receipt; end_begins; promotion; end_ends ;;
esac; }
processor_ms() { # of the server and all that it has waited for
    awk -v hz="$(getconf CLK_TCK)" '{ sub(/^.*\) /, ""); print ($12 + $13 + $14 + $15) * 1000 / hz }' "/proc/$(head -1 "$folder/data/postmaster.pid")/stat"
}
measure() { # kind clients
    runs "$1" >"$folder/script"
    psql -c CHECKPOINT -c "SELECT pg_stat_reset_shared('wal')" >/dev/null
    sleep 1
    local before after out
    before=$(processor_ms)
    out=$("$bin/pgbench" -n -M prepared -f "$folder/script" -c "$2" -j 2 -T "$seconds" 2>"$folder/errors") || { tail -3 "$folder/errors"; return; }
    sleep 1
    after=$(processor_ms)
    local done rate latency
    done=$(awk '/number of transactions actually processed/ { print $6 }' <<<"$out")
    rate=$(awk '/^tps/ { printf "%.0f", $3 }' <<<"$out")
    latency=$(awk '/latency average/ { print $4 }' <<<"$out")
    say "$1_$2_clients_per_s" "$rate"
    say "$1_$2_clients_ms" "$latency"
    say "$1_$2_clients_server_cpu_us" "$(awk -v a="$after" -v b="$before" -v n="$done" 'BEGIN { printf "%.0f", (a - b) * 1000 / n }')"
    psql -c "SELECT wal_bytes::bigint / $done, wal_fpi::numeric(12,2) / $done, wal_records / $done, wal_sync::numeric(12,2) / $done, (wal_sync_time / greatest(wal_sync, 1))::numeric(6,2) FROM pg_stat_wal" |
        { IFS='|' read -r wal images records syncs ms; say "$1_$2_clients_wal_bytes" "$wal"; say "$1_$2_clients_page_images" "$(printf %.2f "$images")"
          say "$1_$2_clients_wal_records" "$records"; say "$1_$2_clients_syncs" "$(printf %.2f "$syncs")"; say "$1_$2_clients_sync_ms" "$ms"; }
}
for clients in 1 8 16 24; do measure validate $clients; done
for clients in 8 24; do measure rotate $clients; done

reports=$(psql -c 'SELECT count(*) FROM cookie_rotation_reports')
psql -c 'VACUUM ANALYZE'
say reports "$reports"
say row_bytes_per_report "$(psql -c "SELECT pg_table_size('cookie_rotation_reports') / $reports")"
say index_bytes_per_report "$(psql -c "SELECT pg_indexes_size('cookie_rotation_reports') / $reports")"
psql -c "SELECT relname, n_tup_upd, n_tup_hot_upd, round(100.0 * n_tup_hot_upd / greatest(n_tup_upd, 1)) FROM pg_stat_user_tables WHERE n_tup_upd > 0 ORDER BY 1" |
    while IFS='|' read -r table updates _ percent; do say "hot_percent_$table" "$percent of $updates"; done

# A claim of 64 by a plan that knows nothing of its parameters, as a prepared statement's becomes.
plan() {
    psql <<SQL | awk '/Execution Time/ { t = $3 } /Buffers: shared/ && !b { for (i = 1; i <= NF; i++) if ($i ~ /^hit=/) b = substr($i, 5) } /Seq Scan on (credentials|cookie_rotation_monitor)/ { s = " (reads a whole table)" } END { printf "%s ms, %s pages%s\n", t, b, s }'
SET plan_cache_mode = $2;
PREPARE due(text, bigint, bigint) AS $(sed -e "s/:now/\$2/g" -e "s/:quota/\$3/" -e "s/:n/\$1/" <<<"$due");
BEGIN;
EXPLAIN (ANALYZE, BUFFERS) EXECUTE due('7', $now + 601000, $1);
ROLLBACK;
EXPLAIN (ANALYZE, BUFFERS) EXECUTE due('7', $now + 601000, $1);
SQL
}
for quota in 1 64 448; do
    say "claim_of_${quota}_generic_plan" "$(plan $quota force_generic_plan)"
done
say claim_of_64_custom_plan "$(plan 64 force_custom_plan)"

# What a reader that stays open does to the head of the queue.
next() { psql <<SQL | awk '/Execution Time/ { t = $3 } /Buffers: shared/ && !b { for (i = 1; i <= NF; i++) if ($i ~ /^hit=/) b = substr($i, 5) } END { printf "%s ms, %s pages\n", t, b }'
EXPLAIN (ANALYZE, BUFFERS) SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = 'service-7';
EXPLAIN (ANALYZE, BUFFERS) SELECT min(next_due_at) FROM cookie_rotation_monitor WHERE service = 'service-7';
SQL
}
say next_due_fresh "$(next)"
psql -c "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM journal; SELECT pg_sleep($((seconds + 15)))" >/dev/null &
reader=$!
sleep 1
measure validate 16
say next_due_behind_a_long_reader "$(next)"
say claim_of_64_behind_a_long_reader "$(plan 64 force_generic_plan)"
wait $reader
psql -c 'VACUUM cookie_rotation_monitor'
say next_due_after_vacuum "$(next)"
