-- The first schema. Conventions, for this file and every later one:
--
-- * Forward only. A released file is never edited: a change is a new file, NNNN_name.sql,
--   added to the list in host/src/db/migrations.rs. The runner opens and closes the
--   transaction and sets user_version and application_id in it, so a file has none of these.
-- * Times are integer milliseconds since 1970-01-01T00:00:00Z, UTC. The one exception is
--   cookie_rotation_reports, whose columns are the report contract's: ISO 8601 text, UTC.
-- * `*_json` columns hold JSON text, `*_seconds` whole seconds, booleans 0 or 1.
-- * No column holds a secret in plain form. `sealed` is the vault's; a fingerprint is a keyed HMAC.
-- * Few indexes: an attempt's end writes each of them.

-- What belongs to the installation as a whole, such as the vault's marker.
CREATE TABLE installation (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per service: what its plugin says, and what the operator allowed.
CREATE TABLE cookie_rotation_providers (
    service                            TEXT PRIMARY KEY,
    title                              TEXT    NOT NULL,
    version                            TEXT    NOT NULL,
    validate_url                       TEXT    NOT NULL,
    key_mapping_json                   TEXT    NOT NULL,
    validate_interval_seconds          INTEGER NOT NULL CHECK (validate_interval_seconds >= 1),
    max_age_seconds                    INTEGER,
    plugin_digest                      TEXT    NOT NULL,
    permissions_json                   TEXT    NOT NULL,
    manifest_json                      TEXT    NOT NULL,
    state                              TEXT    NOT NULL,
    -- A newer plugin that asks for more than was granted and waits for the operator.
    pending_digest                     TEXT,
    pending_manifest_json              TEXT,
    -- The operator's cadence for the whole service; outlives plugin updates.
    operator_validate_interval_seconds INTEGER CHECK (operator_validate_interval_seconds >= 1),
    updated_at                         INTEGER NOT NULL,
    CHECK ((pending_digest IS NULL) = (pending_manifest_json IS NULL))
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: the id of a removed credential is never given out again, so a late write
-- for it can't hit its successor.
CREATE TABLE credentials (
    id                        INTEGER PRIMARY KEY AUTOINCREMENT,
    credential_id             TEXT    NOT NULL UNIQUE,
    profile_id                TEXT,
    service                   TEXT    NOT NULL,
    settings_json             TEXT    NOT NULL,
    private_hosts_json        TEXT    NOT NULL,
    -- The operator's pick; NULL: the provider's methods in their order.
    method                    TEXT,
    -- The operator's cadence for this credential; NULL: the provider's.
    validate_interval_seconds INTEGER CHECK (validate_interval_seconds >= 1),
    max_age_seconds           INTEGER CHECK (max_age_seconds >= 1),
    -- The account this credential is pinned to, as the service names it.
    identity                  TEXT,
    paused                    INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    -- Grows with every claim; a write that carries an older one is refused.
    fence                     INTEGER NOT NULL DEFAULT 0,
    attempt_number            INTEGER NOT NULL DEFAULT 0,
    current_generation        INTEGER,
    pending_generation        INTEGER,
    last_generation           INTEGER NOT NULL,
    -- When the current generation was issued.
    rotated_at                INTEGER NOT NULL,
    created_at                INTEGER NOT NULL
) STRICT;

CREATE TABLE generations (
    credential     INTEGER NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
    generation     INTEGER NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('current', 'pending', 'previous', 'dropped')),
    -- The attempt that captured it; NULL: imported.
    attempt_number INTEGER,
    created_at     INTEGER NOT NULL,
    PRIMARY KEY (credential, generation)
) STRICT, WITHOUT ROWID;

-- Two currents or two pendings would make "the" current generation a guess.
CREATE UNIQUE INDEX generations_live ON generations (credential, state)
    WHERE state IN ('current', 'pending');

CREATE TABLE generation_keys (
    credential  INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    key         TEXT    NOT NULL,
    sealed      BLOB    NOT NULL,
    fingerprint TEXT    NOT NULL,
    expires_at  INTEGER,
    -- The cookie's attributes without its value; NULL: a token.
    cookie_json TEXT,
    PRIMARY KEY (credential, generation, key),
    FOREIGN KEY (credential, generation) REFERENCES generations (credential, generation) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- A row exists exactly while an attempt is open.
CREATE TABLE journal (
    credential      INTEGER PRIMARY KEY REFERENCES credentials (id) ON DELETE CASCADE,
    attempt_number  INTEGER NOT NULL,
    fence           INTEGER NOT NULL,
    owner           TEXT    NOT NULL,
    lease_until     INTEGER NOT NULL,
    action          TEXT    NOT NULL CHECK (action IN ('validate', 'rotate')),
    -- Set by the intent, before the first rotation request leaves.
    method          TEXT,
    commit_class    TEXT,
    from_generation INTEGER,
    started_at      INTEGER NOT NULL,
    phase           TEXT    NOT NULL CHECK (phase IN ('claimed', 'rotating', 'captured'))
) STRICT;

-- One row per credential: where it stands and when it is looked at next.
CREATE TABLE cookie_rotation_monitor (
    cookie_id            TEXT PRIMARY KEY REFERENCES credentials (credential_id) ON DELETE CASCADE,
    service              TEXT    NOT NULL,
    last_status          TEXT    CHECK (last_status IN ('success', 'failed', 'validation_failed', 'unreachable')),
    last_verdict         TEXT,
    last_message         TEXT,
    last_attempt_at      INTEGER,
    last_success_at      INTEGER,
    consecutive_failures INTEGER NOT NULL DEFAULT 0,
    expires_at           INTEGER,
    -- NULL: not by itself (paused, or a person must act first). While an attempt is open:
    -- when its lease runs out.
    next_due_at          INTEGER,
    next_action          TEXT    NOT NULL CHECK (next_action IN ('validate', 'rotate')),
    last_report_id       INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX monitor_by_due ON cookie_rotation_monitor (service, next_due_at);

-- The report contract's columns, then ours. Reports outlive their credential.
CREATE TABLE cookie_rotation_reports (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    cookie_id        TEXT    NOT NULL,
    profile_id       TEXT,
    service          TEXT    NOT NULL,
    validate_url     TEXT    NOT NULL,
    cookie_keys_json TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('success', 'failed', 'validation_failed', 'unreachable')),
    message          TEXT,
    attempt_number   INTEGER NOT NULL,
    started_at       TEXT    NOT NULL,
    finished_at      TEXT    NOT NULL,
    created_at       TEXT    NOT NULL,
    -- cookie_id, attempt_number and started_at in one text, for those who deliver reports.
    idempotency_key  TEXT    NOT NULL,
    meta_json        TEXT    NOT NULL,
    -- A second delivery changes nothing; and one credential's reports are found by it.
    UNIQUE (cookie_id, attempt_number, started_at)
) STRICT;

-- For "since" and for retention; rows arrive in its order, so it is cheap to keep.
CREATE INDEX reports_by_time ON cookie_rotation_reports (created_at);
