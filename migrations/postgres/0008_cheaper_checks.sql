-- SQLite alone needed this: PostgreSQL compares a word with a list in place.
SELECT 1;
