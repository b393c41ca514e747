-- Workers that can't be plugins: their tokens, and when they were last heard of.

CREATE TABLE worker_tokens (
    -- Public: the first part of the token itself, 16 hexadecimal digits.
    token_id     text COLLATE "C"    PRIMARY KEY,
    name         text COLLATE "C"    NOT NULL,
    service      text COLLATE "C"    NOT NULL,
    -- The vault's tag over the whole token. The token itself is shown once and kept nowhere.
    tag          bytea    NOT NULL,
    created_at   bigint NOT NULL,
    -- The last report or announcement that was accepted.
    last_used_at bigint,
    expires_at   bigint,
    revoked_at   bigint
);

CREATE TABLE external_workers (
    service          text COLLATE "C"    NOT NULL,
    worker_id        text COLLATE "C"    NOT NULL,
    token_id         text COLLATE "C"    NOT NULL REFERENCES worker_tokens (token_id),
    pid              bigint NOT NULL,
    version          text COLLATE "C",
    -- How long it may say nothing before it counts as silent; its own word.
    interval_seconds bigint NOT NULL CHECK (interval_seconds >= 1),
    announced_at     bigint NOT NULL,
    last_seen_at     bigint NOT NULL,
    PRIMARY KEY (service, worker_id)
);

CREATE INDEX external_workers_by_token ON external_workers (token_id);

-- A credential whose secrets lie elsewhere: it has no generation, is never due, and is here
-- because a worker reported on it.
ALTER TABLE credentials ADD COLUMN external bigint NOT NULL DEFAULT 0 CHECK (external IN (0, 1));
-- The token whose report brought it; what one token may bring is bounded.
ALTER TABLE credentials ADD COLUMN external_token text COLLATE "C";

CREATE INDEX credentials_by_token ON credentials (external_token) WHERE external_token IS NOT NULL;
-- Whether a service has anything that its plugin could harm: external ones are nothing to it.
CREATE INDEX credentials_kept ON credentials (service) WHERE external = 0;

-- The token that a report came with; NULL: the host's own attempt. Two that share credential,
-- number and start are told apart by it.
ALTER TABLE cookie_rotation_reports ADD COLUMN worker_token text COLLATE "C";
