"""Several connections, threads and processes on one file: who notices what, and who may not call."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.store.helpers import PATIENCE, Q, add, claim_one, complete, ids_of, listening, numbers, spec, step
from tests.store.sqlite.conftest import until, writer_of
from workers_module.clock import Clock
from workers_module.errors import ConfigurationError
from workers_module.job.events import Event
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import StepReply

pytestmark = pytest.mark.sqlite

ADD = """
import asyncio, sys
from workers_module.store.values import JobSpec
from workers_module.store.sqlite.store import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await store.add([JobSpec(queue="mail", name="send", data=b"{}", id="from afar")])
    await store.close()

asyncio.run(main())
"""


async def asleep(store: SqliteStore, seconds: float = PATIENCE) -> asyncio.Task[StepReply]:
    """Begin a wait that finds nothing at first, and let it fall asleep."""
    task = asyncio.create_task(store.wait(step(5), seconds))
    await until(lambda: store._hub.waiting(Q) and all(ear._sleep is not None for ear in store._hub._ears[Q]))
    return task


async def test_a_write_of_another_store_wakes_a_sleeper(store: SqliteStore, other: SqliteStore) -> None:
    task = await asleep(store)
    await add(other, "a")
    with anyio.fail_after(PATIENCE / 2):
        assert ids_of((await task).jobs) == ["a"]


async def test_a_write_of_another_process_wakes_a_sleeper(store: SqliteStore, path: Path) -> None:
    task = await asleep(store, 3 * PATIENCE)
    await anyio.to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", ADD, str(path)], check=True))
    with anyio.fail_after(PATIENCE):
        assert ids_of((await task).jobs) == ["from afar"]


async def test_a_write_of_another_process_reaches_who_follows_events(store: SqliteStore, path: Path) -> None:
    async with listening(store) as ear:
        await anyio.to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", ADD, str(path)], check=True))
        heard = await ear.until("waiting")
    assert [one[:2] for one in heard] == [("added", "from afar"), ("waiting", "from afar")]


async def test_writes_of_ones_own_wake_nobody_who_has_nothing_to_do(store: SqliteStore, path: Path) -> None:
    task = await asleep(store, 0.3)
    for _ in range(20):
        await store.publish("elsewhere", [Event("note")])
        await anyio.sleep(0.01)
    await task
    # The looks of the sleeper itself, the first and the last, and the notes; looks at the file are no transactions.
    assert writer_of(store).transactions <= 2 + 20 + 2


async def test_nobody_looks_at_the_file_when_nobody_waits(store: SqliteStore) -> None:
    await store.wait(step(5), 0.05)
    await until(lambda: store._poller is None)
    task = await asleep(store)
    assert store._poller is not None
    await add(store, "a")
    await task


async def test_a_locked_file_counts_as_changed(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store._ticker is not None

    def busy(_: object) -> int:
        raise sqlite3.OperationalError("database is locked")

    task = await asleep(store)
    monkeypatch.setattr(type(store._ticker), "version", busy)
    await anyio.sleep(0.05)
    monkeypatch.undo()
    await add(store, "a")
    with anyio.fail_after(PATIENCE):
        assert ids_of((await task).jobs) == ["a"]


async def test_a_renewer_works_in_another_thread_while_the_loop_is_blocked(store: SqliteStore) -> None:
    await add(store, "a")
    job = await claim_one(store)
    renewer = store.renewer()
    lost: list[Any] = []

    def renew() -> None:
        lost.append(renewer.renew(Q, [job.held], 60_000).lost)
        renewer.close()

    thread = threading.Thread(target=renew)
    thread.start()
    thread.join(PATIENCE)  # the loop does nothing meanwhile
    assert lost == [()]
    await complete(store, job)


async def test_a_renewer_can_be_used_again_after_it_was_closed(store: SqliteStore) -> None:
    await add(store, "a")
    job = await claim_one(store)
    renewer = store.renewer()
    for _ in range(2):
        assert renewer.renew(Q, [job.held], 1_000).lost == ()
        renewer.close()
        renewer.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_fork_is_noticed(store: SqliteStore) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing was raised"
        try:
            store.add([spec("a")]).send(None)
        except ConfigurationError as error:
            text = str(error)
        except BaseException as error:
            text = repr(error)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = await anyio.to_thread.run_sync(pipe.read)
    await anyio.to_thread.run_sync(os.waitpid, pid, 0)
    assert "fork" in said
    assert str(os.getpid()) in said
    assert await numbers(store) == {}


def test_another_event_loop_is_refused(path: Path) -> None:
    store = SqliteStore(path, clock=Clock())
    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(store.open())
        with pytest.raises(ConfigurationError, match="another event loop"):
            two.run(store.counts([Q]))
        one.run(store.close())
        # Closed, it may be opened anywhere.
        two.run(store.open())
        assert two.run(store.counts([Q]))[0].waiting == 0
        two.run(store.close())


async def test_opening_may_be_cancelled(path: Path) -> None:
    store = SqliteStore(path)
    task = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.open()
    await add(store, "a")
    await store.close()


async def test_a_store_can_be_closed_while_it_is_opened(path: Path) -> None:
    store = SqliteStore(path)
    task = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    await store.close()
    await task
    await store.close()


async def test_close_leaves_no_thread_and_no_file_behind(path: Path) -> None:
    before = set(threading.enumerate())
    store = SqliteStore(path)
    await store.open()
    await add(store, "a", data=b'"' + b"x" * 10_000 + b'"')
    await store.wait(step(5, queue="elsewhere"), 0.01)
    store.renewer().close()
    await store.close()
    assert not [one for one in set(threading.enumerate()) - before if one.name.startswith("workers-sqlite")]
    assert {entry.name for entry in path.parent.iterdir()} == {"jobs.db", "jobs.db.lock"}


@pytest.mark.skipif(sys.platform != "linux", reason="open files are only listed on Linux")
async def test_close_leaves_no_file_open(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await add(store, "a")
    assert opened_below(path.parent)
    await store.close()
    assert opened_below(path.parent) == []


def opened_below(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open."""
    targets: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            targets.append(str(entry.readlink()))
    return [one for one in targets if one.startswith(str(folder))]


async def test_ids_are_found_whatever_their_length(store: SqliteStore) -> None:
    """Here, as SQLite's ``length`` ends at a NUL and counts no bytes, and the index of ids begins with it."""
    ids = ["a", "a\x00b", "a\x00bc", "\x00", "éé", "日本語", "7", "77", "x" * 300]
    await add(store, *ids)
    assert [job and job.id for job in await store.get(Q, [*ids, "a\x00", "777"])] == [*ids, None, None]
    assert [one.existing for one in await store.add([spec(id) for id in ids])] == ["same_id"] * len(ids)
