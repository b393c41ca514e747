-- Several hosts on one store. A home with a file of its own has none of these rows.

CREATE TABLE hosts (
    -- Made by the host when it first came, 16 hexadecimal digits.
    host_id      text COLLATE "C"    PRIMARY KEY,
    -- What people call it; the machine's name at first.
    name         text COLLATE "C"    NOT NULL UNIQUE,
    -- Labels by name, such as {"region": "eu"}.
    labels_json  text COLLATE "C"    NOT NULL,
    version      text COLLATE "C"    NOT NULL,
    first_at     bigint NOT NULL,
    started_at   bigint NOT NULL,
    -- By the store's clock. A host that says nothing for a lease is lost.
    last_seen_at bigint NOT NULL,
    -- Attempts that it has open, and as many as it may.
    in_flight    bigint NOT NULL DEFAULT 0,
    at_most      bigint NOT NULL DEFAULT 0,
    -- When it was ended in good order; NULL: it runs, or was lost.
    stopped_at   bigint
);

-- What one host alone does for all, such as telling of alerts, and until when it may.
CREATE TABLE duties (
    duty       text COLLATE "C"    PRIMARY KEY,
    host_id    text COLLATE "C"    NOT NULL,
    held_until bigint NOT NULL
);

-- The operator's rate of a service, over all hosts: when its next request may leave.
CREATE TABLE service_rates (
    service text COLLATE "C"    PRIMARY KEY,
    -- In microseconds since 1970-01-01T00:00:00Z.
    next_at bigint NOT NULL
);
