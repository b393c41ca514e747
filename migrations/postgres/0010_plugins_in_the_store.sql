-- The plugins themselves, so that every host has what one of them was given.

CREATE TABLE plugin_files (
    -- SHA-256, in hexadecimal.
    digest   text COLLATE "C"    PRIMARY KEY,
    bytes    bytea    NOT NULL,
    added_at bigint NOT NULL
);
