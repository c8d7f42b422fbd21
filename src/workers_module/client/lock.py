"""`DistributedLockService`: named locks across processes.

A lock is a lease: it ends by itself when its holder does not extend it, so two may believe to hold it if one of them
was frozen or cut off. What must not happen twice takes `Lock.fence` along and refuses a lower one than it has seen.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import uuid4

import anyio
from anyio import get_cancelled_exc_class

from workers_module.clock import Duration, duration_ms
from workers_module.errors import ConfigurationError, LockLostError, StoreError, StoreUnavailableError
from workers_module.job.names import check_name
from workers_module.store.base import Store

_MARGIN_S: Final = 1.0
"""So long before its end, or a tenth of the lease, a lock that could not be extended counts as lost."""
_AGAIN_S: Final = 0.1
_RELEASE_S: Final = 1.0


class Lock:
    """A held lock.

    Attributes:
        name: Its name.
        fence: Grows each time the lock changes hands, for ever: pass it on to what must refuse an older holder.
    """

    __slots__ = ("_owner", "_store", "fence", "name")

    name: str
    fence: int

    def __init__(self, store: Store, name: str, owner: str, fence: int) -> None:
        """Stand for a lock that was acquired; `DistributedLockService.acquire` does it."""
        self.name = name
        self.fence = fence
        self._store = store
        self._owner = owner

    async def extend(self, ttl: Duration) -> None:
        """Hold the lock for another ``ttl``, from now.

        Raises:
            LockLostError: It ran out, or somebody else holds it.
        """
        if await self._store.lease(self.name, self._owner, _ttl_ms(ttl), fence=self.fence) is None:
            raise LockLostError(_lost(self.name))

    async def release(self) -> bool:
        """Give the lock back.

        Returns:
            False if it was lost before.
        """
        return await self._store.lease(self.name, self._owner, 0, fence=self.fence) is not None

    def __repr__(self) -> str:
        return f"<Lock {self.name} fence {self.fence}>"


class DistributedLockService:
    """Locks by name, for everybody who uses the same store.

    Example:
        ::

            async with locks.hold("sync-data", ttl="1m") as lock:
                if lock is None:
                    return  # somebody else is at it
                await sync(fence=lock.fence)
    """

    def __init__(self, store: Store) -> None:
        """Prepare; the store is not touched."""
        self._store = store
        self._held: dict[str, Lock] = {}

    async def acquire(self, name: str, ttl: Duration) -> Lock | None:
        """Try to take a lock; it is not waited for.

        Args:
            name: Its name.
            ttl: It ends after so long, unless it is extended or released.

        Returns:
            The lock, or None when it is held: also by another task of this process.

        Raises:
            InvalidNameError: The name cannot be kept by every store.
        """
        check_name("lock", name)
        # Each holder is an owner of its own: tasks of one process exclude each other, too.
        owner = uuid4().hex
        try:
            fence = await self._store.lease(name, owner, _ttl_ms(ttl))
        except get_cancelled_exc_class():
            # The lock may be ours already, and nobody would know.
            with anyio.CancelScope(shield=True), anyio.move_on_after(_RELEASE_S), suppress(StoreError):
                await self._store.lease(name, owner, 0)
            raise
        if fence is None:
            return None
        lock = self._held[name] = Lock(self._store, name, owner, fence)
        return lock

    async def release(self, lock: str | Lock) -> bool:
        """Give a lock back.

        Args:
            lock: What `acquire` returned, or its name: then the lock that was last acquired here under it.

        Returns:
            False when it was lost before, or was not acquired here.
        """
        name = lock if isinstance(lock, str) else lock.name
        held = self._held.get(name) if isinstance(lock, str) else lock
        if held is None:
            return False
        released = await held.release()
        self._forget(held)
        return released

    @asynccontextmanager
    async def hold(self, name: str, ttl: Duration) -> AsyncGenerator[Lock | None]:
        """Hold a lock while the body runs; it is extended meanwhile.

        Args:
            name: Its name.
            ttl: How long it outlives this process.

        Yields:
            The lock, or None when it is held elsewhere; the body runs in either case.

        Raises:
            LockLostError: The lock was lost; the body was cancelled.
        """
        sent = anyio.current_time()
        lock = await self.acquire(name, ttl)
        if lock is None:
            yield None
            return
        keeper = _Keeper(lock, _ttl_ms(ttl), sent)
        # The body has a scope of its own: a lost lock cancels it, and nothing around it.
        with anyio.CancelScope() as body:
            keeper.start(body)
            try:
                yield lock
            finally:
                await self._let_go(lock, keeper)
        if keeper.lost is not None:
            raise LockLostError(_lost(name)) from keeper.lost.__cause__

    async def _let_go(self, lock: Lock, keeper: "_Keeper") -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(_RELEASE_S):
            await keeper.stop()
            # What the store does not hear of ends with its time.
            with suppress(StoreError):
                await lock.release()
        self._forget(lock)

    def _forget(self, lock: Lock) -> None:
        if self._held.get(lock.name) is lock:
            del self._held[lock.name]


class _Keeper:
    """Extends a lock in the background until it is stopped or the lock is lost."""

    def __init__(self, lock: Lock, ttl_ms: int, sent: float) -> None:
        self.lost: LockLostError | None = None
        self._lock = lock
        self._ttl_ms = ttl_ms
        self._until = sent + ttl_ms / 1_000
        self._task: asyncio.Task[None] | None = None

    def start(self, body: anyio.CancelScope) -> None:
        # A context of its own: the task's log fields and dependency scope are the body's.
        self._task = asyncio.get_running_loop().create_task(
            self._run(body), name=f"lock {self._lock.name}", context=contextvars.Context()
        )

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, body: anyio.CancelScope) -> None:
        try:
            await self._keep()
        except LockLostError as error:
            self.lost = error
            body.cancel()

    async def _keep(self) -> None:
        ttl = self._ttl_ms / 1_000
        margin = min(max(_MARGIN_S, ttl / 10), ttl / 2)
        wait = ttl / 3
        while True:
            await anyio.sleep(wait)
            sent = anyio.current_time()
            try:
                with anyio.fail_after(self._until - margin - sent):
                    await self._lock.extend(f"{self._ttl_ms}ms")
            except (StoreUnavailableError, TimeoutError) as error:
                if anyio.current_time() >= self._until - margin:
                    raise LockLostError(_lost(self._lock.name)) from error
                wait = min(_AGAIN_S, ttl / 10)
            except LockLostError:
                raise
            except Exception as error:
                # Whatever keeps the lock from being extended, the body must not outlive it.
                raise LockLostError(_lost(self._lock.name)) from error
            else:
                self._until = sent + ttl
                wait = ttl / 3


def _ttl_ms(ttl: Duration) -> int:
    ms = duration_ms(ttl, "lock: ttl")
    if ms < 1:
        raise ConfigurationError(f"lock: ttl {ttl!r} is no time at all")
    return ms


def _lost(name: str) -> str:
    return f"lock {name!r} is lost: it ran out, or somebody else holds it; stop what it protected"
