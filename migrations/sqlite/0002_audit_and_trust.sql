-- Who signed what runs, whom the operator trusts to sign, and what was decided about plugins.

-- The signer of the accepted version and of the one that waits, as they were verified; NULL:
-- unsigned, or by nobody the operator trusted then. The whole public key stands in it, for a
-- key's id is no more than a name that whoever makes a key chooses.
ALTER TABLE cookie_rotation_providers ADD COLUMN signer_json TEXT;
ALTER TABLE cookie_rotation_providers ADD COLUMN pending_signer_json TEXT;
-- The file in the plugin folder that served last. If it is damaged or turns into one that may
-- not run, this says whose it was, also after a restart.
ALTER TABLE cookie_rotation_providers ADD COLUMN file TEXT;

CREATE TABLE trusted_keys (
    -- As minisign prints it: 16 hexadecimal digits.
    key_id     TEXT PRIMARY KEY,
    public_key TEXT    NOT NULL UNIQUE,
    name       TEXT,
    added_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for every decision about a plugin or a key, by whom and why. Never changed, never
-- holds a secret; outlives what it is about.
CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    actor       TEXT    NOT NULL CHECK (actor IN ('operator', 'host')),
    action      TEXT    NOT NULL,
    service     TEXT,
    -- Its name in the plugin folder.
    file        TEXT,
    digest      TEXT,
    -- The id of the signer's key.
    signer      TEXT,
    detail_json TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_by_service ON audit (service, id);
-- What was last said about a file is what the same look again doesn't repeat.
CREATE INDEX audit_by_file ON audit (file, id);
