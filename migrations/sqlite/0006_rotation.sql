-- What an attempt must know of those before it.

-- The generation that a rotation may have spent: its answer was lost, and nothing since has shown
-- that the secret still lives. Only a look, new secrets or a person's word may rotate it again.
ALTER TABLE credentials ADD COLUMN doubtful_generation INTEGER;
