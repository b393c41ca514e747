-- Workers that can't be plugins: their tokens, and when they were last heard of.

CREATE TABLE worker_tokens (
    -- Public: the first part of the token itself, 16 hexadecimal digits.
    token_id     TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    service      TEXT    NOT NULL,
    -- The vault's tag over the whole token. The token itself is shown once and kept nowhere.
    tag          BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    -- The last report or announcement that was accepted.
    last_used_at INTEGER,
    expires_at   INTEGER,
    revoked_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE external_workers (
    service          TEXT    NOT NULL,
    worker_id        TEXT    NOT NULL,
    token_id         TEXT    NOT NULL REFERENCES worker_tokens (token_id),
    pid              INTEGER NOT NULL,
    version          TEXT,
    -- How long it may say nothing before it counts as silent; its own word.
    interval_seconds INTEGER NOT NULL CHECK (interval_seconds >= 1),
    announced_at     INTEGER NOT NULL,
    last_seen_at     INTEGER NOT NULL,
    PRIMARY KEY (service, worker_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX external_workers_by_token ON external_workers (token_id);

-- A credential whose secrets lie elsewhere: it has no generation, is never due, and is here
-- because a worker reported on it.
ALTER TABLE credentials ADD COLUMN external INTEGER NOT NULL DEFAULT 0 CHECK (external IN (0, 1));
-- The token whose report brought it; what one token may bring is bounded.
ALTER TABLE credentials ADD COLUMN external_token TEXT;

CREATE INDEX credentials_by_token ON credentials (external_token) WHERE external_token IS NOT NULL;
-- Whether a service has anything that its plugin could harm: external ones are nothing to it.
CREATE INDEX credentials_kept ON credentials (service) WHERE external = 0;

-- The token that a report came with; NULL: the host's own attempt. Two that share credential,
-- number and start are told apart by it.
ALTER TABLE cookie_rotation_reports ADD COLUMN worker_token TEXT;
