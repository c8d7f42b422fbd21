"""The stores the loops are tested on."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from workers_module.clock import Clock, FrozenClock
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.sqlite.store import SqliteStore

STORES: dict[str, Callable[[Path, Clock], Store]] = {
    "memory": lambda folder, clock: MemoryStore(clock=clock),
    "sqlite": lambda folder, clock: SqliteStore(folder / "jobs.db", clock=clock),
}


@asynccontextmanager
async def opened(store: Store) -> AsyncGenerator[Store]:
    """Open a store; when the test is over, every queue in it must be sound."""
    await store.open()
    try:
        yield store
        for queue in await store.queues():
            assert await store.verify(queue) == [], f"queue {queue!r} is unsound after the test"
    finally:
        await store.close()


@pytest.fixture
def clock() -> FrozenClock:
    """Return a clock that stands still; a whole hour."""
    return FrozenClock()


@pytest.fixture(params=[pytest.param(name, id=name, marks=getattr(pytest.mark, name)) for name in STORES])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of each store in turn."""
    name: str = request.param
    return name


@pytest.fixture
async def live(kind: str, tmp_path: Path) -> AsyncGenerator[Store]:
    """Return an open store on the machine's own clock."""
    async with opened(STORES[kind](tmp_path, Clock())) as store:
        yield store


@pytest.fixture
async def frozen(kind: str, tmp_path: Path, clock: FrozenClock) -> AsyncGenerator[Store]:
    """Return an open store whose clock stands still."""
    async with opened(STORES[kind](tmp_path, clock)) as store:
        yield store


@pytest.fixture
async def memory(clock: FrozenClock) -> AsyncGenerator[Store]:
    """Return an open memory store on the machine's own clock, for tests that no other store can make exact."""
    async with opened(MemoryStore()) as store:
        yield store
