"""Adding inside the application's own transaction."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.store.helpers import PATIENCE, Q, add, assert_sound, ids_in, ids_of, numbers, record, spec, state, step
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, JobNotFoundError, StoreUnavailableError
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import DedupSpec

pytestmark = pytest.mark.sqlite

Finish = Callable[[bool], Any]
Opened = tuple[Any, Finish]
Kind = Callable[[Path], AbstractAsyncContextManager[Opened]]
"""Opens a transaction that has inserted an order; what to pass as tx, and what ends it (True: commit)."""

ORDER = "INSERT INTO orders (id) VALUES (1)"


@asynccontextmanager
async def plain(path: Path) -> AsyncGenerator[Opened]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    connection.execute(ORDER)
    try:
        yield connection, lambda good: connection.commit() if good else connection.rollback()
    finally:
        connection.close()


@asynccontextmanager
async def untouched(path: Path) -> AsyncGenerator[Opened]:
    """Open a connection whose transaction begins with the job."""
    connection = sqlite3.connect(path)

    def finish(good: bool) -> None:
        connection.execute(ORDER)
        connection.commit() if good else connection.rollback()

    try:
        yield connection, finish
    finally:
        connection.close()


@asynccontextmanager
async def by_hand(path: Path) -> AsyncGenerator[Opened]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute(ORDER)
    try:
        yield connection, lambda good: connection.execute("COMMIT" if good else "ROLLBACK")
    finally:
        connection.close()


@asynccontextmanager
async def asynchronous(path: Path) -> AsyncGenerator[Opened]:
    async with aiosqlite.connect(path) as connection:
        connection.row_factory = aiosqlite.Row
        await connection.execute(ORDER)
        yield connection, lambda good: connection.commit() if good else connection.rollback()


@asynccontextmanager
async def core(path: Path) -> AsyncGenerator[Opened]:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql(ORDER)
        yield connection, lambda good: connection.commit() if good else connection.rollback()
    engine.dispose()


@asynccontextmanager
async def orm(path: Path) -> AsyncGenerator[Opened]:
    engine = sa.create_engine(f"sqlite:///{path}")
    with Session(engine) as session:
        session.execute(sa.text(ORDER))
        yield session, lambda good: session.commit() if good else session.rollback()
    engine.dispose()


@asynccontextmanager
async def core_async(path: Path) -> AsyncGenerator[Opened]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        await connection.exec_driver_sql(ORDER)
        yield connection, lambda good: connection.commit() if good else connection.rollback()
    await engine.dispose()


@asynccontextmanager
async def orm_async(path: Path) -> AsyncGenerator[Opened]:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with AsyncSession(engine) as session:
        await session.execute(sa.text(ORDER))
        yield session, lambda good: session.commit() if good else session.rollback()
    await engine.dispose()


needs_greenlet = pytest.mark.skipif(
    find_spec("greenlet") is None, reason="SQLAlchemy's asyncio extension needs greenlet"
)
KINDS = [
    *(plain, untouched, by_hand, asynchronous, core, orm),
    *(pytest.param(kind, marks=needs_greenlet) for kind in (core_async, orm_async)),
]


async def end(finish: Finish, good: bool) -> None:
    done = finish(good)
    if hasattr(done, "__await__"):
        await done


@pytest.fixture
async def orders(store: SqliteStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.close()


def count_orders(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        number: int = connection.execute("SELECT count(*) FROM orders").fetchone()[0]
        return number
    finally:
        connection.close()


each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@each_kind
async def test_the_job_exists_when_the_transaction_commits(
    store: SqliteStore, orders: None, path: Path, kind: Kind
) -> None:
    await add(store, "before", tags=("eu",))
    async with kind(path) as (tx, finish):
        specs = [
            spec("a", data=b'"' + b"x" * 10_000 + b'"', tags=("eu",)),
            spec("b", delay_ms=500, tags=("gpu",)),
            spec("before"),
            spec("child", parent=4),
            spec("parent"),
        ]
        added = await store.add(specs, tx=tx)
        assert [one.id for one in added] == ["a", "b", "before", "child", "parent"]
        assert await ids_in(store) == ["before"]
        await end(finish, True)
    assert sorted(await ids_in(store)) == ["a", "b", "before", "child", "parent"]
    assert len((await record(store, "a")).data) == 10_002
    assert (await record(store, "b")).tags == ("gpu",)
    assert count_orders(path) == 1
    await assert_sound(store)


@each_kind
async def test_the_job_does_not_exist_when_the_transaction_is_rolled_back(
    store: SqliteStore, orders: None, path: Path, kind: Kind
) -> None:
    async with kind(path) as (tx, finish):
        await store.add([spec("a", tags=("eu",)), spec("b")], tx=tx)
        await end(finish, False)
    assert await numbers(store) == {}
    assert await store.queues() == []
    assert count_orders(path) == 0
    await add(store, "a", tags=("gpu",))
    assert (await record(store, "a")).tags == ("gpu",)


@each_kind
async def test_a_refused_call_leaves_the_transaction_as_it_was(
    store: SqliteStore, orders: None, path: Path, kind: Kind
) -> None:
    async with kind(path) as (tx, finish):
        with pytest.raises(JobNotFoundError):
            await store.add([spec("a"), spec("b", parent=ParentRef(Q, "nobody"))], tx=tx)
        await store.add([spec("c")], tx=tx)
        await end(finish, True)
    assert await ids_in(store) == ["c"]
    assert count_orders(path) == 1
    await assert_sound(store)


@pytest.mark.parametrize("kind", [plain, untouched, by_hand, core, orm], ids=lambda kind: kind.__name__)
async def test_the_same_without_await(store: SqliteStore, orders: None, path: Path, kind: Kind) -> None:
    for good in (True, False):
        async with kind(path) as (tx, finish):
            (added,) = store.add_sync([spec(f"{good}", tags=("eu",))], tx=tx)
            assert (added.id, added.existing) == (f"{good}", None)
            await end(finish, good)
    assert await ids_in(store) == ["True"]
    assert count_orders(path) == 1
    await assert_sound(store)


async def test_an_asynchronous_connection_is_refused_where_nothing_is_awaited(store: SqliteStore, path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        with pytest.raises(ConfigurationError, match=r"aiosqlite.*none that is asynchronous"):
            store.add_sync([spec("a")], tx=connection)


async def test_a_store_that_is_not_open_adds_nothing(path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="not open"):
        SqliteStore(path).add_sync([spec("a")], tx=object())


@each_kind
async def test_the_commit_wakes_a_sleeper(live: SqliteStore, orders: None, path: Path, kind: Kind) -> None:
    woken: list[str] = []

    async def sleep() -> None:
        woken.extend(ids_of((await live.wait(step(1), PATIENCE)).jobs))

    with anyio.fail_after(PATIENCE / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep)
            async with kind(path) as (tx, finish):
                await live.add([spec("a")], tx=tx)
                await end(finish, True)
    assert woken == ["a"]


@pytest.fixture
async def live(store: SqliteStore, path: Path) -> AsyncIterator[SqliteStore]:
    live = SqliteStore(path)
    await live.open()
    yield live
    await live.close()


async def test_deduplication_is_decided_inside(store: SqliteStore, orders: None, path: Path) -> None:
    await store.add([spec("a", dedup=DedupSpec("k"))])
    async with plain(path) as (tx, finish):
        first, second = await store.add([spec("b", dedup=DedupSpec("k")), spec("c", dedup=DedupSpec("l"))], tx=tx)
        await end(finish, True)
    assert (first.id, first.existing) == ("a", "deduplicated")
    assert (second.id, second.existing) == ("c", None)


async def test_the_instant_may_be_given(store: SqliteStore, orders: None, path: Path, clock: FrozenClock) -> None:
    async with plain(path) as (tx, finish):
        await store.add([spec("a"), spec("b", delay_ms=5)], tx=tx, now=1_000)
        await end(finish, True)
    assert (await record(store, "a")).added == 1_000
    assert await state(store, "b") is JobState.DELAYED


async def test_a_prefix_holds_there_too(path: Path) -> None:
    store = SqliteStore(path, prefix="jobs_")
    await store.open()
    connection = sqlite3.connect(path)
    await store.add([spec("a")], tx=connection)
    connection.commit()
    connection.close()
    assert await numbers(store) == {"waiting": 1}
    await store.close()


async def test_another_file_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    for where in (tmp_path / "other.db", ":memory:"):
        connection = sqlite3.connect(where)
        with pytest.raises(ConfigurationError, match="two files"):
            await store.add([spec("a")], tx=connection)
        connection.close()


async def test_a_connection_without_a_transaction_is_refused(store: SqliteStore, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(ConfigurationError, match="execute BEGIN first"):
        await store.add([spec("a")], tx=connection)
    connection.close()
    assert await numbers(store) == {}


@pytest.mark.parametrize(
    "tx", ["text", 5, object(), sa.create_engine("sqlite://")], ids=["text", "number", "object", "engine"]
)
async def test_anything_else_is_refused_by_name(store: SqliteStore, tx: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"{type(tx).__qualname__}.*sqlite3 or aiosqlite"):
        await store.add([spec("a")], tx=tx)


async def test_a_lock_met_inside_is_ours(store: SqliteStore, orders: None, path: Path) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    connection = sqlite3.connect(path, timeout=0.01)
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.add([spec("a")], tx=connection)
    connection.close()
    holder.close()
    assert await numbers(store) == {}


async def test_a_cancelled_call_is_whole_or_not_at_all(store: SqliteStore, orders: None, path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        for turns in range(60):
            task = asyncio.create_task(store.add([spec(f"{turns}-{n}") for n in range(3)], tx=connection))
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await connection.commit()
            found = await store.get(Q, [f"{turns}-{n}" for n in range(3)])
            assert len({one is None for one in found}) == 1
            # The savepoint is gone: the next transaction is one of its own.
            assert not connection.in_transaction
    await assert_sound(store)
