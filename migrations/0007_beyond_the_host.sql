-- What reaches beyond the host: who uses the secrets, who may ask for them, and who is told.

-- Uses of secrets: sinks and consumers.

-- Tokens of the API.

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
