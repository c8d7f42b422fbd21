"""Migrations: who applies them, what they refuse, and what is said of the server."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.servers import shared_postgres
from tests.store.helpers import add, numbers
from workers_module.errors import ConfigurationError
from workers_module.store.migrate import read_migrations
from workers_module.store.open import migrations_sql, migrations_status, open_store
from workers_module.store.postgres.scripts import PACKAGE
from workers_module.store.postgres.store import PostgresStore
from workers_module.url import QueueKind

pytestmark = pytest.mark.postgres
KNOWN = read_migrations(PACKAGE)[-1].number


@pytest.fixture
async def fresh() -> Any:
    """Return the server's URL and the name of a schema that is not there."""
    from uuid import uuid4

    url, schema = shared_postgres(), f"wm_test_{uuid4().hex[:12]}"
    yield url, schema
    raw = await asyncpg.connect(url)
    await raw.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    await raw.close()


async def test_ten_may_open_a_new_schema_at_once(fresh: tuple[str, str]) -> None:
    url, schema = fresh
    stores = [PostgresStore(url, schema=schema, wakeup="poll", pool_max=1) for _ in range(10)]
    infos = await asyncio.gather(*(store.open() for store in stores))
    assert len(set(infos)) == 1
    for n, store in enumerate(stores):
        await add(store, f"{n}")
    assert await numbers(stores[0]) == {"waiting": 10}
    for store in stores:
        await store.close()
    assert (await stores[0].migrations()).state.number == KNOWN


async def test_a_check_changes_nothing_and_says_what_to_run(fresh: tuple[str, str]) -> None:
    url, schema = fresh
    with pytest.raises(ConfigurationError, match=rf"schema 0, this code needs {KNOWN}.*workers migrations up"):
        await PostgresStore(url, schema=schema, migrate="check").open()
    found = await migrations_status(f"{url}&schema={schema}")
    assert (found.state.number, len(found.missing)) == (0, KNOWN)
    assert schema in found.place
    store = PostgresStore(url, schema=schema)
    await store.open()
    await store.close()
    again = PostgresStore(url, schema=schema, migrate="check")
    await again.open()
    await again.close()


@pytest.mark.parametrize(("min_code", "usable"), [(KNOWN, True), (KNOWN + 1, False)])
async def test_a_newer_schema_is_used_if_it_allows_that(fresh: tuple[str, str], min_code: int, usable: bool) -> None:
    url, schema = fresh
    store = PostgresStore(url, schema=schema)
    await store.open()
    await store.close()
    raw = await asyncpg.connect(url)
    await raw.execute(f"UPDATE \"{schema}\".meta SET value = '{KNOWN + 1}' WHERE key = 'schema'")
    await raw.execute(f"UPDATE \"{schema}\".meta SET value = '{min_code}' WHERE key = 'min_code'")
    await raw.close()
    if usable:
        await store.open()
        await store.close()
    else:
        with pytest.raises(ConfigurationError, match="Upgrade workers_module"):
            await store.open()


async def test_migrations_may_be_applied_by_hand(fresh: tuple[str, str]) -> None:
    url, schema = fresh
    raw = await asyncpg.connect(url)
    await raw.execute(migrations_sql(QueueKind.POSTGRES, up_to=2, name=schema))
    assert (await migrations_status(f"{url}&schema={schema}")).state.number == 2
    await raw.execute(migrations_sql(QueueKind.POSTGRES, after=2, name=schema))
    await raw.close()
    store = PostgresStore(url, schema=schema, migrate="check")
    await store.open()
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}
    await store.close()
    assert (await migrations_status(f"{url}&schema={schema}")).missing == ()
    with pytest.raises(ConfigurationError, match="no way back"):
        migrations_sql(QueueKind.POSTGRES, after=3, up_to=2)


async def test_a_url_names_schema_and_ways(fresh: tuple[str, str]) -> None:
    url, schema = fresh
    store = open_store(f"{url}&schema={schema}&pool_max=2&wakeup=poll&prepare=off")
    info = await store.open()
    assert schema in info.place
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}
    await store.close()


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("schema=Jobs", "schema 'Jobs'"),
        ("schema=a;b", "schema"),
        ("pool_max=many", "pool_max=many"),
        ("pool_max=0", "pool_max=0"),
        ("wakeup=never", "wakeup=never"),
        ("prepare=maybe", "prepare=maybe"),
    ],
)
def test_what_cannot_be_is_refused(query: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        open_store(f"postgresql://ada:s3cret@localhost/jobs?{query}")


async def test_a_server_that_does_not_wait_for_its_disk_is_told(fresh: tuple[str, str]) -> None:
    url, schema = fresh
    raw = await asyncpg.connect(url)
    fsync = await raw.fetchval("SHOW fsync")
    await raw.close()
    store = PostgresStore(url, schema=schema)
    info = await store.open()
    assert any("fsync" in warning for warning in info.warnings) is (fsync == "off")
    await store.close()
