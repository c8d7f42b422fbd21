"""Making a schema ready: its migrations, applied by one opener at a time."""

from typing import Any, Final

import asyncpg

from workers_module.errors import ConfigurationError
from workers_module.store.migrate import (
    MigrateMode,
    Migration,
    MigrationStatus,
    SchemaState,
    outstanding,
    read_migrations,
)
from workers_module.store.postgres.connect import Address, translate
from workers_module.store.postgres.scripts import PACKAGE, script

COMMAND: Final = "workers migrations up"
OLDEST: Final = 130_000
"""The first version with ``pg_current_xact_id``, which readers of events need."""


async def prepare(connection: Any, address: Address, mode: MigrateMode) -> tuple[str, ...]:
    """Bring the schema up to date, and look at the server.

    Ten processes may do this at once: the first one migrates, the others wait for it and find nothing to do.

    Returns:
        What should be shown at start.

    Raises:
        ConfigurationError: The server is too old, or the schema does not fit this code.
    """
    version = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if version < OLDEST:
        raise ConfigurationError(
            f"{address.place}: Postgres {version // 10_000} is too old; version 13 or newer is needed"
        )
    migrations = read_migrations(PACKAGE)
    if needed(migrations, await state_of(connection, address.schema), address, mode):
        async with connection.transaction():
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{address.schema}.migrate"
            )
            for migration in needed(migrations, await state_of(connection, address.schema), address, mode):
                await connection.execute(script(migration, address.schema))
    return tuple(await _warnings(connection))


def needed(
    migrations: "tuple[Migration, ...]", state: SchemaState, address: Address, mode: MigrateMode
) -> "list[Migration]":
    """Return the migrations to apply."""
    return list(outstanding(migrations, state, mode=mode, place=address.place, command=COMMAND))


async def state_of(connection: Any, schema: str) -> SchemaState:
    """Return which migrations a schema has."""
    # Not to_regclass: within a transaction that may remember that there was no such table.
    if not await connection.fetchval(
        "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'meta'", schema
    ):
        return SchemaState(0, 0)
    found = await _meta(connection, schema)
    return SchemaState(int(found.get("schema", 0)), int(found.get("min_code", 0)))


async def home_of(connection: Any, schema: str) -> str:
    """Return what tells this schema from one of the same name in another database."""
    return (await _meta(connection, schema))["home"]


async def _meta(connection: Any, schema: str) -> dict[str, str]:
    rows = await connection.fetch(f'SELECT key, value FROM "{schema}".meta')  # noqa: S608 - checked by Address
    return {row["key"]: row["value"] for row in rows}


async def _warnings(connection: Any) -> list[str]:
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE xact_start < now() - interval '5 minutes') AS long, "
        "count(*) FILTER (WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '1 minute' "
        "AND application_name LIKE 'workers_module%') AS idle, "
        "current_setting('fsync') AS fsync "
        "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    warnings: list[str] = []
    if row["long"]:
        warnings.append(
            f"{row['long']} transactions of this server are older than 5 minutes: vacuum is held back, and queues "
            "slow down."
        )
    if row["idle"]:
        warnings.append(f"{row['idle']} sessions of this package are idle in a transaction.")
    if row["fsync"] == "off":
        warnings.append("This server does not wait for its disk (fsync = off): accepted jobs can be lost.")
    return warnings


async def status(address: Address) -> MigrationStatus:
    """Return which migrations a database has, and those this code knows.

    Raises:
        StoreError: The server could not be reached or refuses this user.
    """
    connection = await address.connect("migrations")
    try:
        state = await state_of(connection, address.schema)
        return MigrationStatus(place=address.place, state=state, known=read_migrations(PACKAGE))
    except asyncpg.PostgresError as error:
        raise translate(error, address.place) from error
    finally:
        await connection.close()
