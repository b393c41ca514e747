-- What reaches beyond the host: who uses the secrets, who may ask for them, and who is told.

-- Uses of secrets: sinks and consumers.

-- Tokens of the API.

-- Alerts and what is still to be delivered of them.
