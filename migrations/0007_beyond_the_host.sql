-- What reaches beyond the host: who uses the secrets, who may ask for them, and who is told.

-- Uses of secrets: sinks and consumers.

-- Tokens of the API.

-- Pages of the dashboard, which read an index each and no table.

-- Who waits for a person, longest first. A healthy credential has no entry.
CREATE INDEX monitor_wants_person ON cookie_rotation_monitor (last_success_at)
    WHERE consecutive_failures > 0
      AND (last_verdict IN ('needs-human', 'invalid') OR last_status = 'validation_failed');
-- What expires first. Those without an end have no entry.
CREATE INDEX monitor_by_expiry ON cookie_rotation_monitor (expires_at) WHERE expires_at IS NOT NULL;

-- Alerts and what is still to be delivered of them.
