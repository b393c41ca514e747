-- Which reports are kept, and what finding them needs.

-- A credential's reports, newest first: every index ends in the row's id, and ids are given in
-- the order of arrival. The unique one can't serve for that: attempts of a credential that was
-- removed and added again are counted from one again.
CREATE INDEX reports_by_credential ON cookie_rotation_reports (cookie_id);
-- As rows arrive in the order of created_at, a moment is found by halving the ids. Each index
-- costs every attempt's end a write, and retention one more for every row it deletes.
DROP INDEX reports_by_time;

-- What fails, longest first. A healthy credential has no entry, so its attempts don't pay for it.
CREATE INDEX monitor_failing ON cookie_rotation_monitor (last_success_at NULLS FIRST)
    WHERE consecutive_failures > 0;

-- Until when the service itself asked to be left alone; NULL: it didn't.
ALTER TABLE cookie_rotation_monitor ADD COLUMN asked_until bigint;

-- The generation whose keys an operator brought back as this one; NULL: imported or captured.
ALTER TABLE generations ADD COLUMN restored_from bigint;
