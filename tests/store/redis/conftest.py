"""A Redis store, and the raw server beside it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from uuid import uuid4

import pytest

from tests.servers import shared_redis
from workers_module.clock import FrozenClock
from workers_module.store.redis.store import RedisStore

Raw = Callable[..., Awaitable[Any]]
"""Sends a command; ``{}`` in its words is the queue's key with a colon."""


@pytest.fixture
def place() -> tuple[str, str]:
    """Return the server's URL and a new key prefix."""
    url, prefix = shared_redis()
    return url, f"{prefix}-{uuid4().hex[:12]}"


@pytest.fixture
async def store(place: tuple[str, str], clock: FrozenClock) -> AsyncIterator[RedisStore]:
    """Return an open, empty store."""
    url, prefix = place
    store = RedisStore(url, prefix=prefix, clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def live(place: tuple[str, str]) -> AsyncIterator[RedisStore]:
    """Return an open store that goes by the server's clock."""
    url, prefix = place
    live = RedisStore(url, prefix=prefix)
    await live.open()
    yield live
    await live.close()


@pytest.fixture
async def raw(place: tuple[str, str]) -> AsyncIterator[Raw]:
    """Return what speaks to the server past the store."""
    import redis.asyncio

    url, prefix = place
    async with redis.asyncio.Redis.from_url(url, decode_responses=True, protocol=2) as client:

        async def send(*words: Any) -> Any:
            plain = [word.replace("{}", f"{prefix}:mail:") if isinstance(word, str) else word for word in words]
            call = cast("Raw", client.execute_command)
            return await call(*plain)

        yield send
