-- The plugins themselves, so that every host has what one of them was given. A home with a file of
-- its own keeps them in its folder `store` alone.

CREATE TABLE plugin_files (
    -- SHA-256 of what runs, in hexadecimal: of a template joined to its interpreter, for example.
    digest   text COLLATE "C" PRIMARY KEY,
    bytes    bytea   NOT NULL,
    added_at bigint NOT NULL
);

-- How often something was decided about a provider. A host decides on a row that it read before;
-- where another host was faster, the number is another one, and nothing is written.
ALTER TABLE cookie_rotation_providers ADD COLUMN revision bigint NOT NULL DEFAULT 1;
