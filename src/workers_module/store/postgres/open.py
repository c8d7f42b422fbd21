"""From a URL to a Postgres store."""

from workers_module.clock import Clock
from workers_module.store.migrate import MigrateMode
from workers_module.store.postgres.connect import take_parameters
from workers_module.store.postgres.store import SCHEMA, PostgresStore


def from_url(url: str, *, clock: Clock | None, migrate: MigrateMode) -> PostgresStore:
    """Make the store a URL names; its own parameters are ``schema``, ``pool_max``, ``wakeup`` and ``prepare``.

    Raises:
        ConfigurationError: The name of the schema cannot be used.
    """
    url, given = take_parameters(url, ("schema", "pool_max", "wakeup", "prepare"))
    return PostgresStore(
        url,
        schema=given.get("schema", SCHEMA),
        clock=clock,
        migrate=migrate,
        pool_max=int(given.get("pool_max", 4)),
        wakeup="poll" if given.get("wakeup") == "poll" else "listen",
        prepare=given.get("prepare") != "off",
    )
