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

-- Alerts and what is still to be delivered of them.
