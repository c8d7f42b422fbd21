"""Renewing leases from another thread."""

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

import asyncpg
from anyio.from_thread import BlockingPortal, start_blocking_portal

from workers_module.clock import Clock
from workers_module.errors import StoreError
from workers_module.store.postgres.asking import held_args
from workers_module.store.postgres.connect import Address, translate
from workers_module.store.values import Held, RenewReply

RENEW: Final = 'SELECT lost, cancelled FROM "{schema}".renew_1($1, $2, $3, $4, $5, $6)'


class PostgresRenewer:
    """Renews leases over a connection of its own, on an event loop of its own: the driver knows no other way."""

    def __init__(self, address: Address, clock: Clock | None) -> None:
        self._address = address
        self._clock = clock
        self._sql = RENEW.format(schema=address.schema)
        self._guard = threading.Lock()
        self._pid = os.getpid()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._connection: Any = None

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        """Do what `Store.renew` does, blocking."""
        if self._pid != os.getpid():
            raise StoreError(
                f"{self._address.place}: this renewer was made before a fork; make a new one in each process"
            )
        if not held:
            return RenewReply()
        now = None if self._clock is None else self._clock.now_ms()
        args = [queue, *held_args(held), lease_ms, now]
        with self._guard:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal())
            reply: RenewReply = self._portal.call(self._renew, args)
            return reply

    async def _renew(self, args: Sequence[Any]) -> RenewReply:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._address.connect("renewer")
            row = await self._connection.fetchrow(self._sql, *args)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            await self._drop()
            raise translate(error, self._address.place) from error
        return RenewReply(tuple(row["lost"]), tuple(row["cancelled"]))

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                async with asyncio.timeout(1):
                    await connection.close()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                connection.terminate()

    def close(self) -> None:
        """Give the connection back."""
        with self._guard:
            if self._portal is not None:
                self._portal.call(self._drop)
                self._portal = None
                self._stack.close()
