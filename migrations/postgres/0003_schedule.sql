-- When a credential is looked at: what the operator asks for beside the cadence.

-- A session that nobody uses for this long dies; NULL: the provider's word, or no such limit.
ALTER TABLE credentials ADD COLUMN idle_limit_seconds bigint CHECK (idle_limit_seconds >= 1);
-- Windows in which it isn't rotated by itself, as the operator wrote them; NULL: none.
ALTER TABLE credentials ADD COLUMN quiet_json text COLLATE "C";
-- Why it is due then, in words for the operator. NULL: a due time from before there were words.
ALTER TABLE cookie_rotation_monitor ADD COLUMN next_reason text COLLATE "C";
-- Nothing of the service is done by itself. Due times stay as they are.
ALTER TABLE cookie_rotation_providers ADD COLUMN paused bigint NOT NULL DEFAULT 0 CHECK (paused IN (0, 1));
