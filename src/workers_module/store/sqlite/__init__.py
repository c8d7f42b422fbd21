"""Jobs in a SQLite file: durable, transactional with the application's own data, and in need of no server."""
