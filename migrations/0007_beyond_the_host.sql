-- What reaches beyond the host: who uses the secrets, who may ask for them, and who is told.

-- Uses of secrets: sinks and consumers.

-- Tokens of the API.

-- Alerts and what is still to be delivered of them.

-- Backups.

-- The generation that a backup brought back, of which nothing was heard since: it is in doubt, and
-- more than after a lost answer, for its successors may be in use. NULL: none did.
ALTER TABLE credentials ADD COLUMN restored_generation INTEGER;
