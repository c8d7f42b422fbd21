"""A Postgres store, and the raw server beside it."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.servers import empty_schema
from workers_module.clock import FrozenClock
from workers_module.store.postgres.store import PostgresStore


@pytest.fixture
def place() -> tuple[str, str]:
    """Return the server's URL and an empty schema."""
    return empty_schema()


@pytest.fixture
async def store(place: tuple[str, str], clock: FrozenClock) -> AsyncIterator[PostgresStore]:
    """Return an open, empty store."""
    url, schema = place
    store = PostgresStore(url, schema=schema, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def live(place: tuple[str, str]) -> AsyncIterator[PostgresStore]:
    """Return an open store that goes by the server's clock."""
    url, schema = place
    live = PostgresStore(url, schema=schema)
    await live.open()
    yield live
    await live.close()


@pytest.fixture
async def raw(place: tuple[str, str], store: PostgresStore) -> AsyncIterator[Any]:
    """Return a connection that sees the store's tables by their names."""
    url, schema = place
    connection = await asyncpg.connect(url)
    await connection.execute(f'SET search_path = "{schema}"')
    yield connection
    await connection.close()
