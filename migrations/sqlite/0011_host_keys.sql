-- Who may open the secrets: each host has a key pair of its own, and the installation's key lies
-- here sealed for each of them. Who has the store alone has neither.

CREATE TABLE host_keys (
    host_id     TEXT    PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    -- X25519.
    public_key  BLOB    NOT NULL UNIQUE,
    -- The installation's key sealed for it; NULL: nobody has admitted it yet, or it was revoked.
    sealed_key  BLOB,
    asked_at    INTEGER NOT NULL,
    admitted_at INTEGER,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
