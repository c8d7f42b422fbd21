"""The stores that what the application holds is tested on, and a producer over each."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from tests.client.helpers import Kit
from workers_module.clock import Clock, FrozenClock
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.sqlite.store import SqliteStore

STORES: dict[str, Callable[[Path, Clock], Store]] = {
    "memory": lambda folder, clock: MemoryStore.shared(f"{folder.name}-{uuid4()}", clock=clock),
    "sqlite": lambda folder, clock: SqliteStore(folder / "jobs.db", clock=clock, synchronous="normal"),
}


@pytest.fixture
def clock() -> FrozenClock:
    """Return the clock of the store."""
    return FrozenClock()


@pytest.fixture(params=[pytest.param(make, id=name, marks=getattr(pytest.mark, name)) for name, make in STORES.items()])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FrozenClock) -> AsyncIterator[Store]:
    """Return an open, empty store of each kind."""
    make: Callable[[Path, Clock], Store] = request.param
    folder = tmp_path / "store"
    folder.mkdir()
    store = make(folder, clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(clock: FrozenClock) -> AsyncIterator[Store]:
    """Return an open, empty memory store, for what does not depend on the store."""
    store = MemoryStore(clock=clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def kit(store: Store) -> AsyncIterator[Kit]:
    """Return a producer and a queue over the memory store."""
    kit = Kit(store)
    try:
        yield kit
    finally:
        await kit.aclose()


@pytest.fixture
async def any_kit(any_store: Store) -> AsyncIterator[Kit]:
    """Return a producer and a queue over each kind of store."""
    kit = Kit(any_store)
    try:
        yield kit
    finally:
        await kit.aclose()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relative paths end in a folder of the test."""
    monkeypatch.chdir(tmp_path)
