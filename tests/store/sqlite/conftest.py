"""What the tests of the SQLite store share: a file, stores on it, and a hand on the writer's brake."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.store.helpers import PATIENCE
from workers_module.clock import FrozenClock
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.sqlite.work import Plan, Work
from workers_module.store.sqlite.writer import Call, Lane

pytestmark = pytest.mark.sqlite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is to be."""
    return tmp_path / "jobs.db"


@pytest.fixture
async def store(path: Path, clock: FrozenClock) -> AsyncIterator[SqliteStore]:
    """Return an open store on a new file."""
    store = SqliteStore(path, clock=clock, synchronous="normal")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(path: Path, clock: FrozenClock, store: SqliteStore) -> AsyncIterator[SqliteStore]:
    """Return a second store on the same file."""
    other = SqliteStore(path, clock=clock, synchronous="normal")
    await other.open()
    yield other
    await other.close()


def writer_of(store: SqliteStore) -> Lane:
    """Return the thread that writes."""
    assert store._writer is not None
    return store._writer


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true that no event tells of."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it comes true in another thread, or inside the store
            await anyio.sleep(0.001)


class Brake:
    """Holds a store's writing thread inside a call of its own.

    Attributes:
        call: That call's end; a test that lets its commit fail must ask for it, as for any other.
    """

    def __init__(self, store: SqliteStore) -> None:
        self._lane = writer_of(store)
        self.call: asyncio.Future[None] = self._lane._loop.create_future()
        self._held = threading.Event()
        self._released = threading.Event()

    def _plan(self, _: Work) -> Plan[None]:
        self._held.set()
        if not self._released.wait(PATIENCE):
            raise TimeoutError
        return
        yield

    async def hold(self) -> None:
        """Hold the thread from now on; what is called meanwhile is queued."""
        self._lane._calls.put(Call(self.call, self._plan, None))
        await until(self._held.is_set)

    def release(self) -> None:
        """Let the thread go on."""
        self._released.set()


@contextmanager
def brake_on(store: SqliteStore) -> Generator[Brake]:
    """Return a brake that is released at the end, whatever happens."""
    brake = Brake(store)
    try:
        yield brake
    finally:
        brake.release()
