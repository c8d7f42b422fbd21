"""What the tests read from Redis past both sides, and how they wait."""

import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
import redis.asyncio

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds until a condition must hold."""


async def until(probe: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool, what: str = "") -> T:
    """Ask again until the answer holds, and return it."""
    end = time.monotonic() + DEADLINE
    while True:
        found = await probe()
        if holds(found):
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what or 'it'} did not come; last seen: {found!r}")
        await anyio.sleep(0.01)


class Raw:
    """A queue's keys as they lie in Redis."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str) -> None:
        self._call = cast("Callable[..., Awaitable[Any]]", client.execute_command)
        self.prefix = prefix

    def key(self, suffix: str, queue: str = "mail") -> str:
        """Return the whole name of a key."""
        return f"{self.prefix}:{queue}:{suffix}"

    async def __call__(self, command: str, suffix: str, *words: Any, queue: str = "mail") -> Any:
        """Send a command about one key of a queue."""
        return await self._call(command, self.key(suffix, queue), *words)

    async def send(self, *words: Any) -> Any:
        """Send any command."""
        return await self._call(*words)

    async def job(self, id: str, queue: str = "mail") -> dict[str, str]:
        """Return a job's hash."""
        found: dict[str, str] = await self("HGETALL", id, queue=queue)
        return found

    async def state(self, id: str, queue: str = "mail") -> str | None:
        """Return the collection an id is in."""
        for state in ("wait", "active"):
            if await self("LPOS", state, id, queue=queue) is not None:
                return state
        for state in ("completed", "failed", "delayed", "prioritized", "waiting-children"):
            if await self("ZSCORE", state, id, queue=queue) is not None:
                return state
        return None

    async def ids(self, state: str, queue: str = "mail") -> list[str]:
        """Return the ids in a collection: a list from its head, a set by score."""
        if state in {"wait", "active", "paused"}:
            found: list[str] = await self("LRANGE", state, 0, -1, queue=queue)
        else:
            found = await self("ZRANGE", state, 0, -1, queue=queue)
        return found

    async def events(self, queue: str = "mail") -> list[dict[str, str]]:
        """Return the events of a queue, oldest first."""
        entries: list[tuple[str, dict[str, str]]] = await self("XRANGE", "events", "-", "+", queue=queue)
        return [fields for _, fields in entries]

    async def story(self, id: str, queue: str = "mail") -> list[str]:
        """Return the types of a job's events, with what it came from: ``waiting<delayed``."""
        return [
            entry["event"] + (f"<{entry['prev']}" if "prev" in entry else "")
            for entry in await self.events(queue)
            if entry.get("jobId") == id
        ]

    async def until_state(self, id: str, state: str, queue: str = "mail") -> None:
        """Wait until a job is in a collection."""
        await until(lambda: self.state(id, queue), lambda found: found == state, f"{state} of job {id}")

    async def until_count(self, state: str, count: int, queue: str = "mail") -> list[str]:
        """Wait until so many ids are in a collection."""
        return await until(lambda: self.ids(state, queue), lambda ids: len(ids) == count, f"{count} in {state}")


@asynccontextmanager
async def raw_client(url: str, prefix: str) -> AsyncGenerator[Raw]:
    """Open a client of its own."""
    async with redis.asyncio.Redis.from_url(url, decode_responses=True, protocol=2) as client:
        yield Raw(client, prefix)


async def until_asleep(raw: Raw, count: int = 1, queue: str = "mail") -> None:
    """Wait until so many workers sleep on a queue's marker."""
    await until(lambda: _sleepers(raw, queue), lambda found: found >= count, f"{count} sleeping workers")


async def _sleepers(raw: Raw, queue: str) -> int:
    name = f"{raw.prefix}:{b64encode(queue.encode()).decode()}"
    listing: str | bytes = await raw.send("CLIENT", "LIST")
    text = listing if isinstance(listing, str) else listing.decode()
    clients: list[dict[str, str]] = []
    for line in text.splitlines():
        pairs = (part.partition("=") for part in line.split(" "))
        clients.append({field: value for field, _, value in pairs})
    return sum(
        client["cmd"] == "bzpopmin" and client["name"].split(":w:")[0] == name and "b" in client["flags"]
        for client in clients
    )
