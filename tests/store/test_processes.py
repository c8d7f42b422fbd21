"""Several processes on one SQLite file: nothing is lost, nothing ends twice, nobody starves (P09)."""

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.store.helpers import Q, assert_sound, listening, numbers, spec
from workers_module.job.events import Event
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import Order, QueuePatch

pytestmark = pytest.mark.sqlite

SCRIPT = Path(__file__).with_name("process_worker.py")
PROCESSES = 4
PATIENCE = 60
"""Seconds for a whole test; far more than it needs."""


class Fleet:
    """Worker processes on one storage.

    Attributes:
        running: The processes by name.
    """

    def __init__(self, folder: Path, url: str, *, take: int, lease_ms: int, sweep_ms: int) -> None:
        self._folder = folder
        self._url = url
        self._options = [str(take), str(lease_ms), str(sweep_ms)]
        self._started = 0
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> str:
        """Start one more process; its name."""
        self._started += 1
        name = f"worker-{self._started}"
        log = self._folder / f"{name}.log"
        with (self._folder / f"{name}.err").open("wb") as errors:
            command = [sys.executable, str(SCRIPT), self._url, name, str(log), *self._options]
            self.running[name] = subprocess.Popen(command, stdout=errors, stderr=errors)
        return name

    def kill(self, name: str) -> None:
        """Kill a process as the kernel would."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        """Leave no process behind."""
        for name in list(self.running):
            self.kill(name)

    async def stop(self, store: Store) -> None:
        """Let all processes end by themselves; each must do so cleanly."""

        async def all_ended() -> bool:
            living = [name for name, process in self.running.items() if process.poll() is None]
            for name in living:
                # Again and again: an order for a worker that has not said yet that it is there is lost.
                await store.worker(Order(name, "stop"))
            return not living

        await until(all_ended)
        assert {process.returncode for process in self.running.values()} == {0}, self.errors()
        self.running.clear()

    def last_words(self) -> str:
        """Return the last line of each process, for people who look for what went wrong."""
        tails = {name: lines[-1:] for name, lines in self.lines().items()}
        return f"running {sorted(self.running)}, last lines {tails}, errors {self.errors()!r}"

    def errors(self) -> str:
        """Return what the processes complained of."""
        return "".join(file.read_text() for file in sorted(self._folder.glob("*.err")))

    def assert_all_live(self) -> None:
        """No process may have died unasked."""
        assert all(process.poll() is None for process in self.running.values()), self.errors()

    def lines(self) -> dict[str, list[list[str]]]:
        """Return the logs, by process, split at blanks; a line that the kill cut short is left out."""
        return {
            file.stem: [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            for file in self._folder.glob("*.log")
        }


async def until(true: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds; the caller's deadline ends it."""
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        await anyio.sleep(0.02)


@contextmanager
def fleet(folder: Path, url: str, *, take: int, lease_ms: int, sweep_ms: int) -> Generator[Fleet]:
    """Start the processes, and leave none behind."""
    fleet = Fleet(folder, url, take=take, lease_ms=lease_ms, sweep_ms=sweep_ms)
    try:
        for _ in range(PROCESSES):
            fleet.start()
        yield fleet
    except BaseException as error:
        error.add_note(fleet.last_words())
        raise
    finally:
        fleet.kill_all()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Return the test's own client of the file."""
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    yield store
    await store.close()


async def assert_clean(store: Store, total: int, cursor: str | None, *, crashes: bool) -> None:
    """Check that every job ended exactly once, by each of the four things that tell."""
    assert await numbers(store) == {"completed": total}
    await assert_sound(store)
    assert (await store.metrics(Q)).completed.total == total
    async with listening(store, after=cursor) as ear:
        await store.publish(Q, [Event("end")])
        heard = await ear.until("end")
    ends = Counter(id for kind, id, _ in heard if kind == "completed")
    assert len(ends) == total
    assert set(ends.values()) == {1}
    stalls = Counter(id for kind, id, _ in heard if kind == "stalled")
    page = await store.page(Q, [JobState.COMPLETED], limit=total)
    assert bool(stalls) is crashes
    for record in page.items:
        assert (record.fence, record.crashes, record.attempts_made) == (1 + record.crashes, stalls[record.id], 1)


def assert_whole(folder: Path) -> None:
    """Check the file itself."""
    with sqlite3.connect(folder / "jobs.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def url_of(folder: Path) -> str:
    """Return the URL of the test's file."""
    return f"sqlite:///{folder / 'jobs.db'}"


async def begin(store: Store) -> str | None:
    """Keep all events, and return where they begin."""
    await store.configure(Q, QueuePatch(event_cap=1_000_000))
    async with listening(store) as ear:
        await store.publish(Q, [Event("begin")])
        await ear.until("begin")
        return ear.cursor


async def kill_and_replace(store: Store, folder: Path, url: str, *, kills: int) -> None:
    """Let processes die in mid-work, and check that all is done once."""
    per_kill = 60
    total = kills * per_kill * 2
    dice = random.Random(9)
    cursor = await begin(store)
    added = 0

    async def completed() -> int:
        return (await numbers(store)).get("completed", 0)

    with fleet(folder, url, take=5, lease_ms=800, sweep_ms=300) as workers, anyio.fail_after(PATIENCE):
        for n in range(kills):
            await store.add([spec(f"{added + m}") for m in range(per_kill * 2)])
            added += per_kill * 2
            wanted = per_kill * (n + 1)

            async def far_enough(wanted: int = wanted) -> bool:
                workers.assert_all_live()
                return await completed() >= wanted

            await until(far_enough)
            workers.kill(dice.choice(sorted(workers.running)))
            workers.start()

        async def all_done() -> bool:
            workers.assert_all_live()
            return await completed() >= total

        await until(all_done)
        await workers.stop(store)
        lines = workers.lines()

    await assert_clean(store, total, cursor, crashes=True)
    accepted = Counter(line[1] for log in lines.values() for line in log if line[0] == "end" and line[3] == "ok")
    assert set(accepted.values()) == {1}
    starts = [(line[1], line[2]) for log in lines.values() for line in log if line[0] == "start"]
    assert len(starts) == len(set(starts)), "a run with one fence was started twice"


async def test_killed_processes_lose_nothing_and_end_nothing_twice(store: SqliteStore, tmp_path: Path) -> None:
    await kill_and_replace(store, tmp_path, url_of(tmp_path), kills=20)
    assert_whole(tmp_path)


async def share_a_backlog(store: Store, folder: Path, url: str, total: int, patience: int) -> None:
    """Let processes share a backlog from one moment on, and check it clean and fairly done."""
    cursor = await begin(store)
    await store.configure(Q, QueuePatch(paused=True))
    for n in range(0, total, 1_000):
        await store.add([spec(f"{m}") for m in range(n, min(n + 1_000, total))])
    with fleet(folder, url, take=5, lease_ms=30_000, sweep_ms=500) as workers, anyio.fail_after(patience):

        async def all_here() -> bool:
            workers.assert_all_live()
            return len(await store.workers()) == PROCESSES

        await until(all_here)
        await store.configure(Q, QueuePatch(paused=False))

        async def all_done() -> bool:
            workers.assert_all_live()
            return await numbers(store) == {"completed": total}

        await until(all_done)
        await workers.stop(store)
        lines = workers.lines()

    await assert_clean(store, total, cursor, crashes=False)
    starts = Counter(line[1] for log in lines.values() for line in log if line[0] == "start")
    assert len(starts) == total
    assert set(starts.values()) == {1}
    ends = [line for log in lines.values() for line in log if line[0] == "end"]
    assert len(ends) == total
    assert {line[3] for line in ends} == {"ok"}
    shares = {name: sum(line[0] == "start" for line in log) for name, log in lines.items()}
    assert min(shares.values()) >= total / PROCESSES / 2, shares


async def test_processes_share_a_backlog_fairly_without_doubles(store: SqliteStore, tmp_path: Path) -> None:
    await share_a_backlog(store, tmp_path, url_of(tmp_path), 3_000, PATIENCE)
    assert_whole(tmp_path)


@pytest.mark.slow
async def test_processes_share_a_large_backlog_fairly_without_doubles(store: SqliteStore, tmp_path: Path) -> None:
    await share_a_backlog(store, tmp_path, url_of(tmp_path), 30_000, 10 * PATIENCE)
    assert_whole(tmp_path)
