"""Jobs in a Postgres schema: every operation is one function of the server, called in one round trip."""
