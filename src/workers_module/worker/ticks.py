"""What fires in each process, past the store."""

import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Final
from uuid import uuid4

import anyio

from workers_module.clock import Clock
from workers_module.store.base import Store
from workers_module.worker.handler import ScheduleSpec
from workers_module.worker.locks import RunLocks
from workers_module.worker.slots import first_slot

_log = logging.getLogger(__name__)

_LONGEST_SLEEP_S: Final = 60.0

Tick = Callable[[], Awaitable[None]]


class LocalTicks:
    """Fires `every_instance` schedules and `@timeout` in this process, past the store.

    Nothing is stored and nothing is caught up with: a slot that passed while the process was busy or down is gone.
    """

    def __init__(
        self,
        specs: Iterable[ScheduleSpec],
        ticks: Mapping[str, Tick],
        *,
        store: Store,
        clock: Clock | None = None,
        lock_ms: int = 90_000,
    ) -> None:
        """Prepare; the first slots are set by `begin`.

        Args:
            specs: All schedules that tick here; those that go through the store are left aside.
            ticks: The calls, by schedule name.
            store: Where the locks are that some of them hold.
            clock: This process' clock; it judges what is past the store.
            lock_ms: How long such a lock outlives the process.
        """
        self._specs = [spec for spec in specs if spec.every_instance and not spec.disabled]
        self._ticks = ticks
        self._store = store
        self._clock = clock or Clock()
        self._lock_ms = lock_ms
        self._due: list[tuple[int, int, int]] = []
        self._schedules = [spec.schedule for spec in self._specs]
        self._running: set[int] = set()
        self._stopped = anyio.Event()

    def __bool__(self) -> bool:
        return bool(self._specs)

    @property
    def wake_at(self) -> int | None:
        """The next instant something fires, or None."""
        return self._due[0][0] if self._due else None

    def begin(self) -> None:
        """Set the first slots, counted from now."""
        now = self._clock.now_ms()
        self._due = []
        for number, spec in enumerate(self._specs):
            after = now + (spec.initial_delay_ms or 0)
            schedule = spec.schedule
            if schedule is None:
                self._push(after + (spec.after_ms or 0), number)
                continue
            slot = first_slot(schedule, after)
            if slot is not None:
                self._schedules[number] = schedule.anchored(slot)
                self._push(slot, number)

    async def run_due(self) -> int:
        """Fire what is due in the caller's task, in order; how many fired."""
        count = 0
        while self._due and self._due[0][0] <= self._clock.now_ms():
            number = self._pop()
            if number is not None:
                await self._fire(number)
                count += 1
        return count

    def stop(self) -> None:
        """Fire no more; `run` returns when what has begun has ended."""
        self._stopped.set()

    async def run(self) -> None:
        """Fire until stopped; cancelled, what has begun is cancelled too."""
        if not self._due:
            self.begin()
        async with anyio.create_task_group() as group:
            while self._due and not self._stopped.is_set():
                wait_ms = self._due[0][0] - self._clock.now_ms()
                if wait_ms > 0:
                    # Not in one sleep, so that a clock that is set forward is noticed.
                    with anyio.move_on_after(min(wait_ms / 1_000, _LONGEST_SLEEP_S)):
                        await self._stopped.wait()
                    continue
                number = self._pop()
                if number is not None and not self._overlaps(number):
                    self._running.add(number)
                    group.start_soon(self._fire, number)

    def _pop(self) -> int | None:
        """Return what is due first, or None where its slot is too late to fire."""
        _, slot, number = heapq.heappop(self._due)
        spec, schedule, now = self._specs[number], self._schedules[number], self._clock.now_ms()
        if schedule is not None:
            following = schedule.next_slot(max(slot, now))
            if following is not None:
                self._push(following, number)
        if spec.threshold_ms is not None and now > slot + (spec.jitter_ms or 0) + spec.threshold_ms:
            return None
        return number

    def _push(self, slot: int, number: int) -> None:
        jitter = self._specs[number].jitter_ms
        at = slot + random.randrange(jitter + 1) if jitter else slot  # noqa: S311
        heapq.heappush(self._due, (at, slot, number))

    def _overlaps(self, number: int) -> bool:
        return self._specs[number].overlap == "skip" and number in self._running

    async def _fire(self, number: int) -> None:
        spec = self._specs[number]
        try:
            if spec.lock is None:
                await self._ticks[spec.name]()
            else:
                await self._fire_locked(spec, spec.lock)
        except Exception:
            _log.exception("schedule %s (%s) failed", spec.name, spec.label)
        finally:
            self._running.discard(number)

    async def _fire_locked(self, spec: ScheduleSpec, lock: str) -> None:
        locks = RunLocks(self._store, f"tick-{uuid4().hex}", self._lock_ms)
        if not await locks.acquire([lock]):
            return
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_shielded, locks.release)
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(_cancel_when_lost, locks, group.cancel_scope)
            await self._ticks[spec.name]()
            group.cancel_scope.cancel()


async def _shielded(call: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(1):
        await call()


async def _cancel_when_lost(locks: RunLocks, scope: anyio.CancelScope) -> None:
    lost = await locks.keep()
    _log.warning("lock %s is lost; what it protected is cancelled", lost)
    scope.cancel()
