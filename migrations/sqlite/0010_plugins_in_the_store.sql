-- The plugins themselves, so that every host has what one of them was given.

CREATE TABLE plugin_files (
    -- SHA-256, in hexadecimal.
    digest   TEXT    PRIMARY KEY,
    bytes    BLOB    NOT NULL,
    added_at INTEGER NOT NULL
) STRICT;
