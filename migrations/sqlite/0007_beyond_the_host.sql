-- What reaches beyond the host: who uses the secrets, who may ask for them, and who is told.

-- Uses of secrets: sinks and consumers.

-- What each sink of config.toml got last, and how the next delivery fares.
CREATE TABLE sink_states (
    sink          TEXT PRIMARY KEY,
    -- Whose: the row's number, which is never given out again, so that a credential that was
    -- removed and added anew under its name is another one. It may be gone.
    credential    INTEGER,
    generation    INTEGER,
    delivered_at  INTEGER,
    -- Since the last delivery.
    tries         INTEGER NOT NULL DEFAULT 0,
    next_try_at   INTEGER,
    last_error    TEXT
) STRICT, WITHOUT ROWID;

-- Who says that it uses a generation. Before a rotation by schedule that would retire the one
-- before, the host waits for them.
CREATE TABLE consumers (
    credential      INTEGER NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
    name            TEXT    NOT NULL,
    wait_seconds    INTEGER NOT NULL CHECK (wait_seconds >= 1),
    -- A sink of config.toml that acknowledges: it comes and goes with that.
    sink            INTEGER NOT NULL DEFAULT 0 CHECK (sink IN (0, 1)),
    -- The newest generation it acknowledged.
    acknowledged    INTEGER,
    acknowledged_at INTEGER,
    PRIMARY KEY (credential, name)
) STRICT, WITHOUT ROWID;

-- Since when a due rotation of the generation in force waits for its consumers; NULL: none does.
ALTER TABLE cookie_rotation_monitor ADD COLUMN waits_since INTEGER;

-- Tokens of the API.

CREATE TABLE api_tokens (
    -- Public: the first part of the token itself, 16 hexadecimal digits.
    token_id     TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    -- The vault's tag over the whole token. The token itself is shown once and kept nowhere.
    tag          BLOB    NOT NULL,
    -- What it may do, and with which credentials.
    scopes_json  TEXT    NOT NULL,
    reach_json   TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    -- To the minute, but for reads of secrets.
    last_used_at INTEGER,
    expires_at   INTEGER,
    revoked_at   INTEGER
) STRICT, WITHOUT ROWID;

-- Each secret that left by the port. The same again within an hour is counted in its row, and the
-- oldest rows end, so that neither table grows without bound. They are two so that a flood of
-- refusals pushes out no read.
CREATE TABLE api_reads (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    first_at      INTEGER NOT NULL,
    last_at       INTEGER NOT NULL,
    times         INTEGER NOT NULL,
    token_id      TEXT    NOT NULL,
    -- The address it came from, of IPv6 the network.
    peer          TEXT    NOT NULL,
    credential_id TEXT    NOT NULL,
    generation    INTEGER NOT NULL,
    form          TEXT    NOT NULL
) STRICT;

CREATE INDEX api_reads_by_token ON api_reads (token_id, id);

-- Each request of the API that was refused.
CREATE TABLE api_refusals (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    first_at      INTEGER NOT NULL,
    last_at       INTEGER NOT NULL,
    times         INTEGER NOT NULL,
    reason        TEXT    NOT NULL,
    -- NULL: there was none, or none that is known.
    token_id      TEXT,
    peer          TEXT    NOT NULL,
    -- Asked for with a token that is genuine; it may not exist. NULL: none, or no name of one.
    credential_id TEXT
) STRICT;

CREATE INDEX api_refusals_by_peer ON api_refusals (peer, id);
CREATE INDEX api_refusals_by_token ON api_refusals (token_id, id) WHERE token_id IS NOT NULL;

-- What a token for a profile reaches.
CREATE INDEX credentials_by_profile ON credentials (profile_id) WHERE profile_id IS NOT NULL;

-- Pages of the dashboard, which read an index each and no table.

-- Who waits for a person, longest first. A healthy credential has no entry.
CREATE INDEX monitor_wants_person ON cookie_rotation_monitor (last_success_at)
    WHERE consecutive_failures > 0
      AND (last_verdict IN ('needs-human', 'invalid') OR last_status = 'validation_failed');
-- What expires first. Those without an end have no entry.
CREATE INDEX monitor_by_expiry ON cookie_rotation_monitor (expires_at) WHERE expires_at IS NOT NULL;

-- Alerts and what is still to be delivered of them.

-- What is in trouble, or was until lately, and what of that was told.
CREATE TABLE alert_states (
    -- Such as credential:ann or host:disk.
    subject       TEXT    PRIMARY KEY,
    -- What is told in one notice: of a service all credentials, of anything else itself.
    group_key     TEXT    NOT NULL,
    service       TEXT,
    kind          TEXT    NOT NULL,
    severity      TEXT    NOT NULL CHECK (severity IN ('warning', 'critical')),
    -- Of an end that comes nearer: the days of the warning. 0 for everything else.
    stage         INTEGER NOT NULL,
    since         INTEGER NOT NULL,
    opened_at     INTEGER NOT NULL,
    closed_at     INTEGER,
    -- What receivers believe: NULL once they believe that it is well, or were never told.
    told_severity TEXT    CHECK (told_severity IN ('warning', 'critical')),
    told_stage    INTEGER,
    what          TEXT    NOT NULL,
    why           TEXT,
    hint          TEXT    NOT NULL,
    CHECK ((told_severity IS NULL) = (told_stage IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE alert_groups (
    group_key  TEXT    PRIMARY KEY,
    -- Notices until now. The number makes the key of each.
    sequence   INTEGER NOT NULL,
    -- Since when there is something to tell; NULL: there isn't.
    changed_at INTEGER,
    noticed_at INTEGER,
    -- Reminders since the last notice of a change.
    reminders  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE alert_snoozes (
    -- A subject, or service:NAME for all of a service.
    subject    TEXT    PRIMARY KEY,
    until      INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The outbox: written with the states it tells of, in one transaction.
CREATE TABLE deliveries (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    channel      TEXT    NOT NULL,
    dedup_key    TEXT    NOT NULL,
    payload_json TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    tries        INTEGER NOT NULL DEFAULT 0,
    next_try_at  INTEGER NOT NULL,
    -- The receiver is away, so what comes after this waits behind it.
    holds        INTEGER NOT NULL DEFAULT 0 CHECK (holds IN (0, 1)),
    delivered_at INTEGER,
    -- When it was given up.
    failed_at    INTEGER,
    last_error   TEXT,
    UNIQUE (channel, dedup_key)
) STRICT;

CREATE INDEX deliveries_waiting ON deliveries (channel, id)
    WHERE delivered_at IS NULL AND failed_at IS NULL;
-- Backups.

-- The generation that a backup brought back, of which nothing was heard since: it is in doubt, and
-- more than after a lost answer, for its successors may be in use. NULL: none did.
ALTER TABLE credentials ADD COLUMN restored_generation INTEGER;

-- What `keywheel status` counts without reading the rows of a million that are well.

CREATE INDEX monitor_unwell ON cookie_rotation_monitor (last_status, service)
    WHERE last_status IS NOT 'success';
CREATE INDEX credentials_paused ON credentials (service) WHERE paused = 1;
