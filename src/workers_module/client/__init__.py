"""How a job comes in: what the application holds in its hands."""
