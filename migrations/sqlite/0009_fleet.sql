-- Several hosts on one store. A home with a file of its own has none of these rows.

CREATE TABLE hosts (
    -- Made by the host when it first came, 16 hexadecimal digits.
    host_id      TEXT    PRIMARY KEY,
    -- What people call it; the machine's name at first.
    name         TEXT    NOT NULL UNIQUE,
    -- Labels by name, such as {"region": "eu"}.
    labels_json  TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    first_at     INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    -- By the store's clock. A host that says nothing for a lease is lost.
    last_seen_at INTEGER NOT NULL,
    -- Attempts that it has open, and as many as it may.
    in_flight    INTEGER NOT NULL DEFAULT 0,
    at_most      INTEGER NOT NULL DEFAULT 0,
    -- When it was ended in good order; NULL: it runs, or was lost.
    stopped_at   INTEGER
) STRICT, WITHOUT ROWID;

-- What one host alone does for all, such as telling of alerts, and until when it may.
CREATE TABLE duties (
    duty       TEXT    PRIMARY KEY,
    host_id    TEXT    NOT NULL,
    held_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The operator's rate of a service, over all hosts: when its next request may leave.
CREATE TABLE service_rates (
    service TEXT    PRIMARY KEY,
    -- In microseconds since 1970-01-01T00:00:00Z.
    next_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
