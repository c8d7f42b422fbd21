"""How the calls of one store reach its server, and how it is told here and elsewhere what they changed."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from workers_module.clock import Clock
from workers_module.errors import ConfigurationError, StoreUnavailableError
from workers_module.store.hub import Hub
from workers_module.store.postgres.connect import Address, Pool
from workers_module.store.postgres.notify import Notifier
from workers_module.store.postgres.queries import Sql

ALL: Final = 1_000_000
"""As many jobs as wake everybody who waits."""
FALLBACK: Final = 1.25
"""Seconds between two looks of somebody who waits, were all notifications lost.

With a look when each wait begins and ends, and sweeps and signs of life, an idle worker asks just under once a second.
"""


class Calls:
    """Statements for one store, and the hints that follow them.

    Args:
        address: Where the server is.
        clock: A clock other than the server's, or None.

    Attributes:
        sql: The statements.
        hub: Those who wait here for jobs.
        news: Those who wait here for events.
        pool: What is called; None while the store is not open.
        notifier: What tells other processes, and hears from them; None where the store polls.
    """

    def __init__(self, address: Address, clock: Clock | None) -> None:
        self.address = address
        self.clock = clock
        self.sql = Sql.of(address.schema)
        self.hub = Hub()
        self.news = Hub()
        self.pool: Pool | None = None
        self.notifier: Notifier | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def begin(self, pool: Pool) -> None:
        """Make calls over this pool, in this process and on this event loop."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.pool = pool

    @property
    def forked(self) -> bool:
        """Whether the store was opened in another process than this one."""
        return self._pid != os.getpid()

    def check(self) -> Pool:
        """Return the pool, and refuse calls from where this store cannot work."""
        if self.pool is None:
            raise StoreUnavailableError(f"{self.address.place}: this store is not open; await open() first")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"{self.address.place} was opened in process {self._pid} and this is its fork {os.getpid()}: "
                "connections do not survive a fork. Open a store of its own in each process"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                f"{self.address.place} was opened on another event loop; open a store of its own on each loop"
            )
        return self.pool

    def instant(self, now: int | None) -> int | None:
        """Return what a statement is told of the time: None where it is to ask its server."""
        return self.clock.now_ms() if now is None and self.clock is not None else now

    async def fetch(self, sql: str, *args: Any, repeatable: bool = True) -> list[Any]:
        """Make one call; see `Pool.fetch`."""
        return await self.check().fetch(sql, args, repeatable=repeatable)

    def heard(self, queue: str | None, jobs: int) -> None:
        """Wake those who wait here for what another process did."""
        if queue is None:
            self.hub.hint_all()
            self.news.hint_all()
            return
        if jobs:
            self.hub.hint(queue, jobs)
        self.news.hint_all(queue)

    def changed(self, queue: str, jobs: int, ended: int = 0) -> None:
        """Tell everybody that so many jobs of a queue became ready, or (0) that it has events."""
        self.heard(queue, jobs)
        if self.notifier is not None:
            self.notifier.mark(queue, jobs, ended)

    def told(self, queues: Sequence[str], *besides: str) -> None:
        """Tell of the other queues a call has changed something in."""
        for queue in queues:
            if queue not in besides:
                self.changed(queue, ALL)
