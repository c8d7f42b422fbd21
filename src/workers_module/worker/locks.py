"""The named locks a scheduled run holds."""

import logging
from collections.abc import Iterable

import anyio

from workers_module.errors import StoreError
from workers_module.store.base import Store
from workers_module.worker.outage import Outage

_log = logging.getLogger(__name__)


class RunLocks:
    """The named locks of one run: its schedule's own, against overlap, and the one it was declared with.

    The owner is the job: a second start of the same job (after a crash, a retry) gets its lock at once.
    """

    __slots__ = ("_fences", "_owner", "_store", "_ttl_ms")

    def __init__(self, store: Store, owner: str, ttl_ms: int) -> None:
        self._store = store
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._fences: dict[str, int] = {}

    async def acquire(self, names: Iterable[str]) -> bool:
        """Acquire all of these, or none."""
        for name in names:
            fence = await self._store.lease(name, self._owner, self._ttl_ms)
            if fence is None:
                await self.release()
                return False
            self._fences[name] = fence
        return True

    async def keep(self) -> str:
        """Extend the locks until one is lost, and return its name.

        An outage of the store is sat out as long as they hold.
        """
        outage = Outage(f"locks of {self._owner}")
        held_until = anyio.current_time() + self._ttl_ms / 1_000
        wait = self._ttl_ms / 3_000
        while True:
            await anyio.sleep(wait)
            sent = anyio.current_time()
            for name, fence in self._fences.items():
                try:
                    kept = await self._store.lease(name, self._owner, self._ttl_ms, fence=fence)
                except StoreError as error:
                    wait = min(outage.pause(error), self._ttl_ms / 10_000)
                    if anyio.current_time() >= held_until:
                        return name
                    break
                if kept is None:
                    return name
            else:
                outage.over()
                held_until = sent + self._ttl_ms / 1_000
                wait = self._ttl_ms / 3_000

    async def release(self) -> None:
        """Release what is held; what the store does not hear of ends with its time."""
        while self._fences:
            name, fence = self._fences.popitem()
            try:
                await self._store.lease(name, self._owner, 0, fence=fence)
            except StoreError as error:
                _log.warning("lock %s is not released, and ends in %d ms: %s", name, self._ttl_ms, error)
