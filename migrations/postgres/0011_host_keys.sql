-- Who may open the secrets: each host has a key pair of its own, and the installation's key lies
-- here sealed for each of them. Who has the store alone has neither.

CREATE TABLE host_keys (
    host_id     text COLLATE "C"    PRIMARY KEY,
    name        text COLLATE "C"    NOT NULL UNIQUE,
    -- X25519.
    public_key  bytea    NOT NULL UNIQUE,
    -- The installation's key sealed for it; NULL: nobody has admitted it yet, or it was revoked.
    sealed_key  bytea,
    asked_at    bigint NOT NULL,
    admitted_at bigint,
    revoked_at  bigint
);
