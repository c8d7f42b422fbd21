"""Many calls, one transaction: what they share, and what they do not."""

import asyncio
import sqlite3
from typing import Any

import anyio
import pytest

from tests.store.helpers import PATIENCE, Q, add, assert_sound, numbers, record, spec
from tests.store.sqlite.conftest import brake_on, until, writer_of
from workers_module.errors import JobNotFoundError, StoreFullError, StoreUnavailableError
from workers_module.job.record import ParentRef
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.sqlite.work import Plan, Work
from workers_module.store.sqlite.writer import MOST_CALLS
from workers_module.store.values import Added

pytestmark = pytest.mark.sqlite


async def settled(tasks: list[asyncio.Task[list[Added]]]) -> list[list[Added] | BaseException]:
    with anyio.fail_after(PATIENCE):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def started(store: SqliteStore, number: int, **options: Any) -> list[asyncio.Task[list[Added]]]:
    """Begin so many calls to add, and let each come as far as the queue of the writer."""
    tasks = [asyncio.create_task(store.add([spec(f"{n}", **options)])) for n in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_calls_made_together_share_a_transaction(store: SqliteStore) -> None:
    before = writer_of(store).transactions
    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, 100)
        brake.release()
        results = await settled(tasks)
    assert [one[0].id for one in results if isinstance(one, list)] == [f"{n}" for n in range(100)]
    # One held the thread, one did all the rest.
    assert writer_of(store).transactions - before == 2
    assert await numbers(store) == {"waiting": 100}


async def test_a_transaction_takes_only_so_many_calls(store: SqliteStore) -> None:
    before = writer_of(store).transactions
    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, MOST_CALLS + 1)
        brake.release()
        await settled(tasks)
    assert writer_of(store).transactions - before == 3


async def test_a_refused_call_leaves_its_neighbours_alone(store: SqliteStore) -> None:
    with brake_on(store) as brake:
        await brake.hold()
        good = await started(store, 3)
        bad = asyncio.create_task(
            store.add([spec("x"), spec("y", tags=("new",)), spec("z", parent=ParentRef(Q, "no"))])
        )
        await asyncio.sleep(0)
        late = asyncio.create_task(store.add([spec("late", tags=("eu",))]))
        await asyncio.sleep(0)
        brake.release()
        results = await settled([*good, bad, late])
    assert isinstance(results[3], JobNotFoundError)
    assert not any(isinstance(one, BaseException) for one in (*results[:3], results[4]))
    assert await numbers(store) == {"waiting": 4}
    assert (await record(store, "late")).tags == ("eu",)
    await assert_sound(store)


async def test_a_call_that_breaks_leaves_its_neighbours_alone(store: SqliteStore) -> None:
    def broken(work: Work) -> Plan[None]:
        queue = yield from work.make("ghost")
        queue.events.append(("added", "g", None))
        yield "INSERT INTO wm_log (n, i, line) VALUES (1, 1, 'half done')", ()
        yield "SELECT nonsense", ()

    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, 2)
        bad = asyncio.create_task(store._write(broken))
        await asyncio.sleep(0)
        brake.release()
        await settled(tasks)
        with pytest.raises(Exception, match="nonsense"):
            await bad
    assert await numbers(store) == {"waiting": 2}
    assert await store.queues() == [Q]
    await assert_sound(store)


async def test_when_sqlite_undoes_the_transaction_every_call_in_it_fails(store: SqliteStore) -> None:
    def undone(_: Work) -> Plan[None]:
        yield "ROLLBACK", ()
        yield "SELECT nonsense", ()

    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, 3)
        bad = asyncio.create_task(store._write(undone))
        await asyncio.sleep(0)
        brake.release()
        results = await settled(tasks)
        with pytest.raises(Exception, match="nonsense"):
            await bad
    assert all(isinstance(one, Exception) for one in results)
    assert await numbers(store) == {}
    await add(store, "again")
    assert await numbers(store) == {"waiting": 1}


class Failing:
    """A connection whose commits fail."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self.failing = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.failing:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return self._raw.execute(sql, *parameters)


async def test_a_commit_that_fails_fails_every_call_and_stores_nothing(store: SqliteStore) -> None:
    connection = writer_of(store)._connection
    real = connection.raw
    failing = Failing(real)
    with brake_on(store) as brake:
        await brake.hold()
        connection.raw = failing  # type: ignore[assignment]
        tasks = await started(store, 3)
        brake.release()
        results = await settled(tasks)
        with pytest.raises(StoreFullError):
            await brake.call
    assert [type(one) for one in results] == [StoreFullError] * 3
    assert len({id(one) for one in results}) == 3
    failing.failing = False
    assert await numbers(store) == {}
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}
    connection.raw = real


async def test_a_call_cancelled_before_its_turn_does_nothing(store: SqliteStore) -> None:
    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, 3)
        tasks[1].cancel()
        await asyncio.sleep(0)
        brake.release()
        results = await settled(tasks)
    assert isinstance(results[1], asyncio.CancelledError)
    assert await store.get(Q, ["1"]) == [None]
    assert await numbers(store) == {"waiting": 2}
    await assert_sound(store)


async def test_a_call_cancelled_in_its_turn_is_done_whole(store: SqliteStore) -> None:
    with brake_on(store) as brake:

        def slow(work: Work) -> Plan[None]:
            queue = yield from work.make(Q)
            queue.events.append(("note", None, None))
            yield from brake._plan(work)

        task = asyncio.create_task(store._write(slow))
        await until(brake._held.is_set)
        tasks = await started(store, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        brake.release()
        await settled(tasks)
    assert await numbers(store) == {"waiting": 2}
    await assert_sound(store)


async def test_close_finishes_what_is_queued(store: SqliteStore) -> None:
    with brake_on(store) as brake:
        await brake.hold()
        tasks = await started(store, 5)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        brake.release()
        results = await settled(tasks)
        await closing
    assert all(isinstance(one, list) for one in results)
    await store.open()
    assert await numbers(store) == {"waiting": 5}


async def test_a_call_after_close_is_refused(store: SqliteStore) -> None:
    await store.close()
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.add([spec("a")])


async def test_reads_do_not_wait_for_the_writer(store: SqliteStore) -> None:
    await add(store, "a")
    with brake_on(store) as brake:
        await brake.hold()
        with anyio.fail_after(PATIENCE):
            assert await numbers(store) == {"waiting": 1}
        brake.release()


async def test_an_empty_step_writes_nothing(store: SqliteStore, path: Any) -> None:
    await add(store, "a", delay_ms=1_000)
    watcher = sqlite3.connect(path)
    try:
        before = watcher.execute("PRAGMA data_version").fetchone()
        from tests.store.helpers import claim

        assert await claim(store, 10) == []
        assert watcher.execute("PRAGMA data_version").fetchone() == before
    finally:
        watcher.close()
