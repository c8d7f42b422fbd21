"""The stores the suite runs on. A new store is one function and one line in ``PLACES``."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import command, empty_schema, shared_cluster, shared_redis
from tests.store.helpers import Later, assert_sound
from workers_module.clock import Clock, FrozenClock
from workers_module.store.base import Store

Opener = Callable[[Clock], Store]
"""Makes one more client of the same storage, not yet open."""


def memory(folder: Path) -> Opener:
    """Return the maker of views on one world in this process."""
    from workers_module.store.memory import MemoryStore

    name = f"{folder.name}-{uuid4()}"
    return lambda clock: MemoryStore.shared(name, clock=clock)


def sqlite(folder: Path) -> Opener:
    """Return the maker of stores on one new file."""
    from workers_module.store.sqlite.store import SqliteStore

    # What a power cut takes is a setting; here it would only cost a sync of the disk per call.
    return lambda clock: SqliteStore(folder / "jobs.db", clock=clock, synchronous="normal")


def redis(folder: Path) -> Opener:
    """Return the maker of clients of one new key prefix on the server that all tests share."""
    from workers_module.store.redis.store import RedisStore

    url, prefix = shared_redis()
    prefix = f"{prefix}-{uuid4().hex[:12]}"
    return lambda clock: RedisStore(url, prefix=prefix, clock=clock)


def cluster(folder: Path) -> Opener:
    """Return the maker of clients of one new key prefix on a cluster, where they have no more rights than needed."""
    from workers_module.store.redis.store import RedisStore

    ports, prefix = restricted_cluster(), f"{{{uuid4().hex[:12]}}}"
    return lambda clock: RedisStore(f"redis+cluster://jobs:few@127.0.0.1:{ports[0]}", prefix=prefix, clock=clock)


@cache
def restricted_cluster() -> list[int]:
    """Return the ports of the shared cluster, once it has the user ``jobs``."""
    from workers_module.store.redis.peers import version_of
    from workers_module.store.redis.rights import rule

    ports = shared_cluster()
    for port in ports:
        version = version_of(command(port, "INFO", "server")["redis_version"])
        # A clock of the caller's needs two commands more.
        words = [*rule("{*}", version=version).split(), "+pexpireat", "+pexpiretime"]
        command(port, "ACL", "SETUSER", "jobs", "reset", "on", ">few", *words)
    return ports


def postgres(folder: Path) -> Opener:
    """Return the maker of clients of one empty schema on the server that all tests share."""
    from workers_module.store.postgres.store import PostgresStore

    url, schema = empty_schema()
    return lambda clock: PostgresStore(url, schema=schema, clock=clock)


PLACES = {
    "memory": memory,
    "sqlite": sqlite,
    "redis": redis,
    "postgres": postgres,
}


@pytest.fixture(
    params=[
        *(pytest.param(maker, id=name, marks=getattr(pytest.mark, name)) for name, maker in PLACES.items()),
        pytest.param(cluster, id="cluster", marks=[pytest.mark.redis, pytest.mark.slow]),
    ]
)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return what makes clients of one new, empty storage."""
    maker: Callable[[Path], Opener] = request.param
    return maker(tmp_path)


@pytest.fixture
def clock() -> FrozenClock:
    """Return the clock of all stores of this test; a whole minute."""
    return FrozenClock()


@pytest.fixture
async def store(opener: Opener, clock: FrozenClock) -> AsyncIterator[Store]:
    """Return an open, empty store; when the test is over, every queue in it must be sound."""
    store = opener(clock)
    await store.open()
    try:
        yield store
        await store.open()
        await assert_sound(store)
    finally:
        await store.close()


@pytest.fixture
async def other(opener: Opener, clock: FrozenClock, store: Store) -> AsyncIterator[Store]:
    """Return a second, independent client of the same storage."""
    other = opener(clock)
    await other.open()
    yield other
    await other.close()


@pytest.fixture
async def live(opener: Opener) -> AsyncIterator[Store]:
    """Return an open store on the machine's own clock, for tests of sleeping."""
    live = opener(Clock())
    await live.open()
    try:
        yield live
        await assert_sound(live)
    finally:
        await live.close()


@pytest.fixture
def later(clock: FrozenClock) -> Later:
    """Return what lets so many milliseconds pass and answers the new instant."""

    def later(ms: int) -> int:
        clock.advance(timedelta(milliseconds=ms))
        return clock.now_ms()

    return later
