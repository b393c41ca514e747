-- A check of a word against a list of more than two makes SQLite build that list as a table in
-- memory each time a row is written, and take it down again: an attempt paid for four of them, a
-- fifth of what it cost to write down. The same checks in pairs are compared in place. Nothing
-- that is stored changes, so the text of the schema is all that does; SQLite's manual names this
-- way for it (https://sqlite.org/lang_altertable.html).
PRAGMA writable_schema = ON;

UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (state IN (''current'', ''pending'', ''previous'', ''dropped''))',
    'CHECK (state IN (''current'', ''pending'') OR state IN (''previous'', ''dropped''))')
WHERE type = 'table' AND name = 'generations';

UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (phase IN (''claimed'', ''rotating'', ''captured''))',
    'CHECK (phase IN (''claimed'', ''rotating'') OR phase = ''captured'')')
WHERE type = 'table' AND name = 'journal';

UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (last_status IN (''success'', ''failed'', ''validation_failed'', ''unreachable''))',
    'CHECK (last_status IN (''success'', ''failed'') OR last_status IN (''validation_failed'', ''unreachable''))')
WHERE type = 'table' AND name = 'cookie_rotation_monitor';

UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (status IN (''success'', ''failed'', ''validation_failed'', ''unreachable''))',
    'CHECK (status IN (''success'', ''failed'') OR status IN (''validation_failed'', ''unreachable''))')
WHERE type = 'table' AND name = 'cookie_rotation_reports';

PRAGMA writable_schema = RESET;
