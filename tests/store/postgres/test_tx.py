"""Adding inside the application's own transaction."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from dishka import Provider, Scope, make_async_container
from psycopg.rows import dict_row
from sqlalchemy.orm import Session

from tests.store.helpers import (
    PATIENCE,
    Q,
    add,
    assert_sound,
    claim_one,
    complete,
    ids_in,
    ids_of,
    numbers,
    record,
    spec,
    step,
    sweep,
)
from workers_module import Queue, WorkersModule, WorkersSettings
from workers_module.errors import ConfigurationError, JobNotFoundError, StoreError, StoreUnavailableError
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import DedupSpec

pytestmark = pytest.mark.postgres


class Tx:
    """A transaction that is open: what to pass, how to say SQL in it, and how it ends."""

    def __init__(self, tx: Any, run: Callable[[str], Any], end: Callable[[bool], Any]) -> None:
        self.tx = tx
        self._run = run
        self._end = end

    async def run(self, sql: str) -> None:
        await _awaited(self._run(sql))

    async def end(self, good: bool) -> None:
        await _awaited(self._end(good))


Kind = Callable[[str], AbstractAsyncContextManager[Tx]]


async def _awaited(value: Any) -> None:
    if isinstance(value, Awaitable):
        await value


@asynccontextmanager
async def driver(url: str) -> AsyncGenerator[Tx]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield Tx(connection, connection.execute, lambda good: transaction.commit() if good else transaction.rollback())
    await connection.close()


@asynccontextmanager
async def pooled(url: str) -> AsyncGenerator[Tx]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Tx(connection, connection.execute, lambda good: transaction.commit() if good else transaction.rollback())


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncGenerator[Tx]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows: Any = dict_row
        connection.row_factory = rows
        run: Any = connection.execute
        yield Tx(connection, run, lambda good: connection.commit() if good else connection.rollback())


@asynccontextmanager
async def psycopg_sync(url: str) -> AsyncGenerator[Tx]:
    with psycopg.connect(url) as connection:
        rows: Any = dict_row
        connection.row_factory = rows
        run: Any = connection.execute
        yield Tx(connection, run, lambda good: connection.commit() if good else connection.rollback())


def _sa(url: str, name: str) -> str:
    return url.replace("postgresql://", f"postgresql+{name}://")


@asynccontextmanager
async def core(url: str) -> AsyncGenerator[Tx]:
    engine = sa.create_engine(_sa(url, "psycopg"))
    with engine.connect() as connection:
        end: Callable[[bool], Any] = lambda good: connection.commit() if good else connection.rollback()  # noqa: E731
        yield Tx(connection, connection.exec_driver_sql, end)
    engine.dispose()


@asynccontextmanager
async def orm(url: str) -> AsyncGenerator[Tx]:
    engine = sa.create_engine(_sa(url, "psycopg"))
    with Session(engine) as session:
        end: Callable[[bool], Any] = lambda good: session.commit() if good else session.rollback()  # noqa: E731
        yield Tx(session, lambda sql: session.execute(sa.text(sql)), end)
    engine.dispose()


async def _core_async(url: str) -> AsyncGenerator[Tx]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    async with engine.connect() as connection:
        yield Tx(
            connection,
            connection.exec_driver_sql,
            lambda good: connection.commit() if good else connection.rollback(),
        )
    await engine.dispose()


@asynccontextmanager
async def core_asyncpg(url: str) -> AsyncGenerator[Tx]:
    async for tx in _core_async(_sa(url, "asyncpg")):
        yield tx


@asynccontextmanager
async def core_psycopg(url: str) -> AsyncGenerator[Tx]:
    async for tx in _core_async(_sa(url, "psycopg")):
        yield tx


@asynccontextmanager
async def orm_asyncpg(url: str) -> AsyncGenerator[Tx]:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(_sa(url, "asyncpg"))
    async with AsyncSession(engine) as session:
        yield Tx(
            session,
            lambda sql: session.execute(sa.text(sql)),
            lambda good: session.commit() if good else session.rollback(),
        )
    await engine.dispose()


needs_greenlet = pytest.mark.skipif(
    find_spec("greenlet") is None, reason="SQLAlchemy's asyncio extension needs greenlet"
)
SYNC: list[Any] = [psycopg_sync, core, orm]
KINDS: list[Any] = [
    *(driver, pooled, psycopg_async),
    *SYNC,
    *(pytest.param(kind, marks=needs_greenlet) for kind in (core_asyncpg, core_psycopg, orm_asyncpg)),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_sync_kind = pytest.mark.parametrize("kind", SYNC, ids=lambda kind: kind.__name__)


@pytest.fixture
def url(place: tuple[str, str]) -> str:
    return place[0]


SPECS = [
    spec("a", data=b'"' + b"x" * 10_000 + b'"', tags=("eu",)),
    spec("b", delay_ms=500, tags=("eu", "gpu")),
    spec("before", name="it's \x00"),
    spec("child", parent=4),
    spec("parent"),
]


@each_kind
async def test_the_job_exists_when_the_transaction_commits(store: PostgresStore, url: str, kind: Kind) -> None:
    await add(store, "before", tags=("eu",))
    async with kind(url) as tx:
        added = await store.add(SPECS, tx=tx.tx)
        assert [one.id for one in added] == ["a", "b", "before", "child", "parent"]
        assert [one.existing for one in added] == [None, None, "same_id", None, None]
        assert await ids_in(store) == ["before"]
        await tx.end(True)
    assert sorted(await ids_in(store)) == ["a", "b", "before", "child", "parent"]
    assert len((await record(store, "a")).data) == 10_002
    assert (await record(store, "b")).tags == ("eu", "gpu")
    await assert_sound(store)


@each_sync_kind
async def test_the_same_without_await(store: PostgresStore, url: str, kind: Kind) -> None:
    await add(store, "before", tags=("eu",))
    async with kind(url) as tx:
        added = store.add_sync(SPECS, tx=tx.tx, notify=False)
        assert [one.id for one in added] == ["a", "b", "before", "child", "parent"]
        await tx.end(True)
    async with kind(url) as tx:
        store.add_sync([spec("never")], tx=tx.tx)
        await tx.end(False)
    assert sorted(await ids_in(store)) == ["a", "b", "before", "child", "parent"]
    await assert_sound(store)


@each_kind
async def test_the_job_does_not_exist_when_the_transaction_is_rolled_back(
    store: PostgresStore, url: str, kind: Kind
) -> None:
    async with kind(url) as tx:
        await store.add([spec("a", tags=("eu",)), spec("b")], tx=tx.tx)
        await tx.end(False)
    assert await numbers(store) == {}
    assert await store.queues() == []
    await add(store, "a", tags=("gpu",))
    assert (await record(store, "a")).tags == ("gpu",)
    await assert_sound(store)


@each_kind
async def test_a_job_goes_with_its_savepoint(store: PostgresStore, url: str, kind: Kind) -> None:
    async with kind(url) as tx:
        await store.add([spec("kept")], tx=tx.tx)
        await tx.run("SAVEPOINT here")
        await store.add([spec("gone"), spec("gone too", dedup=DedupSpec("k"))], tx=tx.tx)
        await tx.run("ROLLBACK TO SAVEPOINT here")
        await store.add([spec("last")], tx=tx.tx)
        await tx.end(True)
    assert await ids_in(store) == ["kept", "last"]
    await assert_sound(store)


@each_kind
async def test_a_job_goes_with_a_connection_that_is_cut(store: PostgresStore, url: str, kind: Kind, raw: Any) -> None:
    async def crash() -> None:
        async with kind(url) as tx:
            await store.add([spec("a")], tx=tx.tx)
            holder = await raw.fetchval("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'")
            assert await raw.fetchval("SELECT pg_terminate_backend($1)", holder)
            await tx.end(True)

    with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
        await crash()
    assert await numbers(store) == {}
    await assert_sound(store)


_CRASHER = """
import asyncio, sys
import asyncpg
from tests.store.helpers import spec
from workers_module.store.postgres.store import PostgresStore

async def main(url, schema):
    store = PostgresStore(url, schema=schema)
    await store.open()
    connection = await asyncpg.connect(url, server_settings={"application_name": "crasher"})
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("CREATE TABLE orders (id int)")
    print((await store.add([spec("a"), spec("b", tags=("eu",))], tx=connection))[0].id, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_job_goes_with_a_process_that_is_killed(store: PostgresStore, raw: Any, place: tuple[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CRASHER, *place), cwd=Path(__file__).parents[3], stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"a\n"
    lives = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crasher'"
    assert await raw.fetchval(lives + " AND state = 'idle in transaction'") == 1
    process.kill()
    await process.wait()
    with anyio.fail_after(PATIENCE):
        while await raw.fetchval(lives):  # noqa: ASYNC110 - the server knows
            await anyio.sleep(0.01)
    assert await numbers(store) == {}
    assert await store.queues() == []
    assert await add(store, "a", "b") == ["a", "b"]
    assert await numbers(store) == {"waiting": 2}
    await assert_sound(store)


@each_sync_kind
async def test_transactions_that_make_the_same_queues_wait_for_nobody(
    store: PostgresStore, url: str, kind: Kind
) -> None:
    places = [("one", ("eu",)), ("two", ()), ("two", ("eu",))]
    async with kind(url) as first, kind(url) as second:
        # They would wait for ever: both are held by this thread.
        await first.run("SET lock_timeout = '5s'")
        await second.run("SET lock_timeout = '5s'")
        for queue, tags in places:
            store.add_sync([spec(queue=queue, tags=tags)], tx=first.tx)
        for queue, tags in reversed(places):
            store.add_sync([spec(queue=queue, tags=tags)], tx=second.tx)
        assert await store.queues() == []
        await second.end(True)
        await first.end(False)
    assert (await numbers(store, "one"), await numbers(store, "two")) == ({"waiting": 1}, {"waiting": 2})
    await assert_sound(store)


async def test_a_snapshot_older_than_its_queue_is_refused_as_what_can_be_repeated(
    store: PostgresStore, url: str
) -> None:
    connection = await asyncpg.connect(url)
    codes: list[str] = []
    for _ in range(2):
        try:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute("SELECT 1 FROM pg_class")
                await store.add([spec("a")], tx=connection)
        except StoreUnavailableError as error:
            codes.append(str(getattr(error.__cause__, "sqlstate", None)))
    await connection.close()
    assert codes == ["40001"]
    assert await ids_in(store) == ["a"]


@each_kind
async def test_a_refused_call_leaves_the_transaction_as_it_was(store: PostgresStore, url: str, kind: Kind) -> None:
    async with kind(url) as tx:
        with pytest.raises(JobNotFoundError):
            await store.add([spec("a"), spec("b", parent=ParentRef(Q, "nobody"))], tx=tx.tx)
        await store.add([spec("c")], tx=tx.tx)
        await tx.end(True)
    assert await ids_in(store) == ["c"]


@each_kind
async def test_the_commit_wakes_a_sleeper(live: PostgresStore, url: str, kind: Kind) -> None:
    woken: list[str] = []

    async def sleep() -> None:
        woken.extend(ids_of((await live.wait(step(1), PATIENCE)).jobs))

    with anyio.fail_after(PATIENCE / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep)
            async with kind(url) as tx:
                await live.add([spec("a")], tx=tx.tx)
                await tx.end(True)
    assert woken == ["a"]


async def test_deduplication_is_decided_inside(store: PostgresStore, url: str) -> None:
    await store.add([spec("a", dedup=DedupSpec("k"))])
    async with driver(url) as tx:
        first, second = await store.add([spec("b", dedup=DedupSpec("k")), spec("c", dedup=DedupSpec("l"))], tx=tx.tx)
        await tx.end(True)
    assert (first.id, first.existing) == ("a", "deduplicated")
    assert (second.id, second.existing) == ("c", None)


async def test_an_open_transaction_keeps_nobody_waiting(store: PostgresStore, url: str) -> None:
    await store.add([spec("x", dedup=DedupSpec("k"))])
    async with driver(url) as tx:
        await store.add([spec("a", tags=("eu",)), spec(), spec("p", dedup=DedupSpec("k"))], tx=tx.tx)
        with anyio.fail_after(PATIENCE):
            await store.add([spec("b", tags=("eu",)), spec(), spec("q", queue="other")])
            job = await claim_one(store)
            assert job.record.id == "x"
            await complete(store, job)
            await sweep(store)
            assert await numbers(store) == {"waiting": 2, "completed": 1}
        await tx.end(True)
    assert await numbers(store) == {"waiting": 4, "completed": 1}
    await sweep(store, interval_ms=0)
    assert await numbers(store) == {"waiting": 4, "completed": 1}
    assert await store.queues() == [Q, "other"]
    await assert_sound(store)


async def test_the_instant_may_be_given(store: PostgresStore, url: str) -> None:
    async with psycopg_sync(url) as tx:
        await store.add([spec("a")], tx=tx.tx, now=1_000)
        store.add_sync([spec("b", delay_ms=5)], tx=tx.tx, now=1_000)
        await tx.end(True)
    assert (await record(store, "a")).added == 1_000
    assert (await record(store, "b")).state is JobState.DELAYED


async def test_another_database_is_refused(store: PostgresStore, url: str, raw: Any) -> None:
    async with driver(url) as tx:
        await tx.run(f"UPDATE \"{store._address.schema}\".meta SET value = 'elsewhere' WHERE key = 'home'")
        with pytest.raises(ConfigurationError, match="another database"):
            await store.add([spec("a")], tx=tx.tx)
        await tx.end(False)


async def test_a_connection_without_a_transaction_is_refused(store: PostgresStore, url: str) -> None:
    plain = await asyncpg.connect(url)
    engine = sa.create_engine(_sa(url, "psycopg"), isolation_level="AUTOCOMMIT")
    with psycopg.connect(url, autocommit=True) as connection, engine.connect() as other:
        for tx in (plain, connection, other):
            with pytest.raises(ConfigurationError, match="begin one first"):
                await store.add([spec("a")], tx=tx)
    await plain.close()
    engine.dispose()
    assert await numbers(store) == {}


@pytest.mark.parametrize(
    "tx", ["text", 5, object(), sa.create_engine("sqlite://")], ids=["text", "number", "object", "engine"]
)
async def test_anything_else_is_refused_by_name(store: PostgresStore, tx: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"{type(tx).__qualname__}.*asyncpg connection"):
        await store.add([spec("a")], tx=tx)
    with pytest.raises(ConfigurationError, match=rf"{type(tx).__qualname__}.*psycopg Connection"):
        store.add_sync([spec("a")], tx=tx)


async def test_an_asynchronous_connection_is_refused_where_nothing_is_awaited(store: PostgresStore, url: str) -> None:
    async with psycopg_async(url) as tx:
        with pytest.raises(ConfigurationError, match="AsyncConnection"):
            store.add_sync([spec("a")], tx=tx.tx)
        await tx.end(False)


async def test_another_servers_connection_is_refused(store: PostgresStore) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(ConfigurationError, match=r"sqlite\+pysqlite"):
        await store.add([spec("a")], tx=connection)
    engine.dispose()


async def test_what_the_server_refuses_inside_is_ours(store: PostgresStore, url: str) -> None:
    for kind in (driver, psycopg_sync, core):
        async with kind(url) as tx:
            with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
                await tx.run("SELECT 1 / 0")
            with pytest.raises(StoreError, match="25P02"):
                await store.add([spec("a")], tx=tx.tx)
            await tx.end(False)
    assert await numbers(store) == {}


class Sold(Queue[int], name=Q, transactional=asyncpg.Connection):
    """Its jobs exist exactly if the scope's own transaction commits."""


@pytest.mark.parametrize("good", [True, False], ids=["commit", "rollback"])
async def test_a_queue_of_a_scope_adds_inside_the_scopes_transaction(
    live: PostgresStore, place: tuple[str, str], url: str, good: bool
) -> None:
    async def connection() -> AsyncIterator[asyncpg.Connection]:
        own = await asyncpg.connect(url)
        transaction = own.transaction()
        await transaction.start()
        yield own
        await (transaction.commit() if good else transaction.rollback())
        await own.close()

    scoped = Provider(scope=Scope.REQUEST)
    scoped.provide(connection)
    settings = WorkersSettings(queue={"uri": f"{url}{'&' if '?' in url else '?'}schema={place[1]}"})
    container = make_async_container(scoped, WorkersModule.for_root(settings, queues=[Sold]))
    async with container() as request:
        sold = await request.get(Sold)
        await sold.add("ship", 1)
        await sold.add_many([("ship", 2), ("bill", 3)])
        assert await numbers(live) == {}
    assert await numbers(live) == ({"waiting": 3} if good else {})
    await container.close()
