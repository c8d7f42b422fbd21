"""From a URL to a Postgres store."""

from typing import Final, Literal

from workers_module.clock import Clock
from workers_module.errors import ConfigurationError
from workers_module.store.migrate import MigrateMode
from workers_module.store.postgres.connect import take_parameters
from workers_module.store.postgres.store import SCHEMA, PostgresStore

_SWITCHES: Final = {"on": True, "off": False}


def from_url(url: str, *, clock: Clock | None, migrate: MigrateMode) -> PostgresStore:
    """Make the store a URL names; its own parameters are ``schema``, ``pool_max``, ``wakeup`` and ``prepare``.

    Raises:
        ConfigurationError: A parameter has a value it cannot have.
    """
    url, given = take_parameters(url, ("schema", "pool_max", "wakeup", "prepare"))
    wakeup, prepare, pool_max = given.get("wakeup", "listen"), given.get("prepare", "on"), given.get("pool_max", "4")
    if not pool_max.isdecimal():
        raise ConfigurationError(f"Postgres URL: pool_max={pool_max}; write a number")
    if prepare not in _SWITCHES:
        raise ConfigurationError(f"Postgres URL: prepare={prepare}; write on or off")
    if wakeup not in {"listen", "poll"}:
        raise ConfigurationError(f"Postgres URL: wakeup={wakeup}; write listen or poll")
    how: Literal["listen", "poll"] = "poll" if wakeup == "poll" else "listen"
    return PostgresStore(
        url,
        schema=given.get("schema", SCHEMA),
        clock=clock,
        migrate=migrate,
        pool_max=int(pool_max),
        wakeup=how,
        prepare=_SWITCHES[prepare],
    )
