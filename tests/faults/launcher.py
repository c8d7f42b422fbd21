"""A Redis server of a test's own that can be hurt: killed, frozen, filled, demoted, restarted with its data."""

import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import anyio
import anyio.to_thread
import redis.asyncio
from redis import exceptions as raised
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.servers import Server, redis_server

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")
"""With ``everysec`` a write waits for up to two seconds where the disk is slow, and goes when the server is killed."""


class RedisServer:
    """Hurts a server.

    Args:
        server: Already started.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.address = server.address
        self.url = f"unix://{server.address}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._server.process is not None, "the server is not running"
        return self._server.process.pid

    async def command(self, *words: Any) -> Any:
        """Send a command past everything else."""
        once = Retry(NoBackoff(), 0)
        async with redis.asyncio.Redis.from_url(self.url, decode_responses=True, protocol=2, retry=once) as client:
            return await cast("Callable[..., Awaitable[Any]]", client.execute_command)(*words)

    async def info(self, section: str) -> dict[str, Any]:
        """Return a section of what the server says of itself."""
        found: dict[str, Any] = await self.command("INFO", section)
        return found

    # life

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self._server.kill()

    async def start(self, *, load_delay_us: int = 0) -> None:
        """Start it again with its data; return when it takes connections.

        Args:
            load_delay_us: So long it takes over each command of its log, and answers ``LOADING`` meanwhile.
        """
        command = list(self._server.command)
        if load_delay_us:
            self._server.command = [*command, "--key-load-delay", str(load_delay_us)]
        try:
            await anyio.to_thread.run_sync(self._server.start)
        finally:
            self._server.command = command

    async def grow_log(self) -> None:
        """Give it 20,000 commands to read at its next start, which leave nothing behind."""
        await self.command("EVAL", "for n = 1, 20000 do redis.call('SET', 'k', n) end redis.call('DEL', 'k')", 0)

    async def is_loading(self) -> bool:
        """Whether it answers that it is still reading its data."""
        try:
            await self.command("GET", "x")
        except raised.BusyLoadingError:
            return True
        return False

    async def is_up(self) -> bool:
        """Whether it answers, and not that it is still reading its data."""
        try:
            await self.command("GET", "x")
        except (raised.BusyLoadingError, raised.ConnectionError):
            return False
        return True

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Stop the process meanwhile; the kernel still takes connections and bytes for it."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    # states

    @asynccontextmanager
    async def full(self) -> AsyncGenerator[None]:
        """Leave no memory for more data meanwhile."""
        await self.command("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            await self.command("CONFIG", "SET", "maxmemory", "0")

    @asynccontextmanager
    async def demoted(self) -> AsyncGenerator[None]:
        """Make it the read-only replica of nobody meanwhile, with all its data; connections stay."""
        await self.command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            await self.command("REPLICAOF", "NO", "ONE")

    async def forget_scripts(self) -> None:
        """Forget every script."""
        await self.command("SCRIPT", "FLUSH")

    async def kill_clients(self) -> None:
        """Close the connections of all clients."""
        await self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def keys(self) -> set[str]:
        """Return the names of all keys."""
        found: list[str] = await self.command("KEYS", "*")
        return set(found)


@contextmanager
def launched(*options: str) -> Generator[RedisServer]:
    """Run a server of one's own; it keeps its data over a restart."""
    with redis_server(*DURABLE, *options) as server:
        yield RedisServer(server)
