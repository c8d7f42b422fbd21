"""Telling other processes that a queue has something new, and hearing it from them.

A NOTIFY makes all commits of a server wait for each other, so it is never part of a transaction that changes jobs:
after the commit the queue is marked, and one task sends what has been marked, at most every `DEBOUNCE` seconds.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import asyncpg

from workers_module.errors import WorkersError
from workers_module.store.postgres.connect import Address

DEBOUNCE: Final = 0.01
RUSH: Final = 0.05
"""Seconds between two tellings of events alone, while whole batches of jobs end.

A telling takes as long as five jobs do: after each batch it would be a tenth of all work.
"""
_BATCH: Final = 20
"""How many jobs end at least between two tellings in a rush."""
_AGAIN_FIRST: Final = 0.1
_AGAIN_LAST: Final = 5.0
_SEND: Final = "SELECT pg_notify($1, told) FROM unnest($2::text[]) told"

Heard = Callable[[str | None, int], None]
"""Called with a queue and how many jobs became ready there, 0 for events alone; None: anything may have happened."""


def channel_of(schema: str) -> str:
    """Return the channel of a schema."""
    return f"{schema}.wake"


class Notifier:
    """Holds the one connection that listens and tells; it comes back by itself when it breaks."""

    def __init__(self, address: Address, heard: Heard) -> None:
        self._address = address
        self._heard = heard
        self._channel = channel_of(address.schema)
        self._me = uuid4().hex[:12]
        self._marked: dict[str, int] = {}
        self._settled = 0
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._run(), name="listen to Postgres")

    async def stop(self) -> None:
        """Tell what is still marked, and let the connection go."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def mark(self, queue: str, jobs: int, ended: int = 0) -> None:
        """Say that so many jobs of a queue became ready, or (0) that it has events, and how many jobs have ended."""
        self._marked[queue] = self._marked.get(queue, 0) + jobs
        self._settled += ended
        if jobs:
            self._urgent.set()
        self._wake.set()

    async def _run(self) -> None:
        again = _AGAIN_FIRST
        while True:
            try:
                connection = await self._connect()
            except WorkersError:
                # Everybody looks by themselves meanwhile.
                self._marked.clear()
                await asyncio.sleep(again)
                again = min(again * 2, _AGAIN_LAST)
                continue
            again = _AGAIN_FIRST
            try:
                await self._serve(connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await asyncio.sleep(again)
            finally:
                await _end(connection)

    async def _connect(self) -> Any:
        """Connect to the end, cancelled or not: the driver leaves a connection open that is given up half-way."""
        connecting = asyncio.ensure_future(self._address.connect("wake-up"))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await asyncio.wait([connecting])
            if connecting.exception() is None:
                await _end(connecting.result())
            raise

    async def _serve(self, connection: Any) -> None:
        self._lost.clear()
        connection.add_termination_listener(self._ended)
        await connection.add_listener(self._channel, self._told)
        await connection.execute("SET synchronous_commit = off")
        # What was told before this moment went unheard.
        self._heard(None, 0)
        loop = asyncio.get_running_loop()
        last = loop.time() - RUSH
        try:
            while not self._lost.is_set():
                await self._wake.wait()
                if self._settled >= _BATCH:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(last + RUSH):
                            await self._urgent.wait()
                self._wake.clear()
                self._urgent.clear()
                self._settled = 0
                if self._marked:
                    last = loop.time()
                    marked, self._marked = self._marked, {}
                    told = [f"{self._me} {jobs} {queue}" for queue, jobs in marked.items()]
                    await connection.execute(_SEND, self._channel, told)
                    await asyncio.sleep(DEBOUNCE)
        except asyncio.CancelledError:
            if self._marked and not connection.is_closed():
                told = [f"{self._me} {jobs} {queue}" for queue, jobs in self._marked.items()]
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        await connection.execute(_SEND, self._channel, told)
            raise

    def _ended(self, _: object) -> None:
        self._lost.set()
        self._urgent.set()
        self._wake.set()

    def _told(self, _: object, __: int, ___: str, payload: object) -> None:
        sender, _, rest = str(payload).partition(" ")
        if sender == self._me:
            return
        jobs, _, queue = rest.partition(" ")
        if jobs.isdecimal():
            self._heard(queue, int(jobs))
        else:
            # A transaction of an application tells the queue's name alone.
            self._heard(str(payload), 1)


async def _end(connection: Any) -> None:
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        connection.terminate()
