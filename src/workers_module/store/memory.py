"""Jobs in this process' memory: nothing to install, nothing to set up, and gone with the process.

The rules are in `workers_module.store.world`. Here is what they leave out: the clock, sleeping, following events, and
what belongs to no queue (locks and workers).
"""

import logging
import os
import platform
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count, islice
from threading import Lock
from typing import ClassVar, Final, Literal, Self
from weakref import WeakValueDictionary

from workers_module.clock import Clock
from workers_module.errors import ConfigurationError, StoreError
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.values import (
    Action,
    Added,
    Beat,
    Child,
    Counts,
    EditResult,
    Held,
    JobPatch,
    JobSpec,
    LockInfo,
    Metrics,
    Order,
    Page,
    Problem,
    QueuePatch,
    QueueSettings,
    RenewReply,
    Selection,
    Series,
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)
from workers_module.store.world.ledger import Ledger
from workers_module.store.world.schedules import Schedules
from workers_module.store.world.upkeep import Upkeep
from workers_module.store.world.waking import Waking
from workers_module.store.world.work import Work
from workers_module.url import QueueKind

EVENTS_AT_ONCE: Final = 1_000
"""The most events of one batch."""
_LONG: Final = 3_600.0
"""Seconds; for sleeps that a hint ends."""

_log = logging.getLogger(__name__)


class Common:
    """What several views of one store share."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ledger = Ledger()
        self.work = Work(self.ledger)
        self.upkeep = Upkeep(self.ledger)
        self.schedules = Schedules(self.ledger)
        self.waking = Waking(self.ledger, clock)
        self.guard = Lock()
        """Held by whoever starts, extends or ends leases, because a renewer does so from its own thread."""
        self.pid = os.getpid()
        self.locks: dict[str, LockInfo] = {}
        self.fences = count(1)
        self.beats: dict[str, tuple[WorkerInfo, int]] = {}
        self.orders: dict[str, WorkerOrder] = {}

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int, now: int | None) -> RenewReply:
        """Renew leases, from any thread."""
        with self.guard:
            return self.work.renew(queue, held, lease_ms, self.clock.now_ms() if now is None else now)


class MemoryRenewer:
    """Renews leases of a `MemoryStore` from another thread."""

    __slots__ = ("_common",)

    def __init__(self, common: Common) -> None:
        self._common = common

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        """Do what `Store.renew` does."""
        return self._common.renew(queue, held, lease_ms, None)

    def close(self) -> None:
        """Do nothing: there is no connection."""


class MemoryStore:
    """Keeps jobs in this process, and is the reference for every other store.

    Jobs end with the process. No call but `wait` suspends, so each is atomic, and a cancelled one has not begun. A loop
    that only calls `step` never lets others run.

    Args:
        clock: What time it is; the machine's unless given. With a `FrozenClock`, waiters look again when it is moved.
        name: What people call it.

    Example:
        ``store = MemoryStore(); await store.open()``
    """

    _shared: ClassVar[WeakValueDictionary[str, Common]] = WeakValueDictionary()

    def __init__(self, *, clock: Clock | None = None, name: str = "memory") -> None:
        self._name = name
        self._common = Common(clock or Clock())
        self._ledger = self._common.ledger
        self._warned = False

    @classmethod
    def shared(cls, name: str, *, clock: Clock | None = None) -> Self:
        """Return one more view of the store of this name, as a second process would have it.

        The store lives as long as one of its views, and on one event loop.

        Args:
            name: Which store.
            clock: The clock of the store; it counts when the first view is made.

        Raises:
            ConfigurationError: The store has another clock.
        """
        common = cls._shared.get(name)
        if common is None:
            common = cls._shared[name] = Common(clock or Clock())
        elif clock is not None and clock is not common.clock:
            raise ConfigurationError(f"memory store {name!r} has another clock; open all its views with the same one")
        store = cls.__new__(cls)
        store._name = name
        store._common = common
        store._ledger = common.ledger
        store._warned = False
        return store

    # life

    async def open(self) -> StoreInfo:
        """Tell what this is; there is nothing to open."""
        self._now(None)
        return StoreInfo(
            kind=QueueKind.MEMORY,
            version=platform.python_version(),
            place=f"memory://{self._name}",
            warnings=("Jobs are kept in the memory of this process and end with it.",),
        )

    async def close(self) -> None:
        """Do nothing: a view that is opened again finds its jobs."""

    async def now(self) -> int:
        """Return the store's clock."""
        return self._now(None)

    def renewer(self) -> MemoryRenewer:
        """Return a renewer for another thread."""
        return MemoryRenewer(self._common)

    def _now(self, now: int | None) -> int:
        """Return the instant of a call; every call asks first."""
        if os.getpid() != self._common.pid:
            raise StoreError("this memory store was made before a fork, and its jobs are the parent's; make a new one")
        return self._common.clock.now_ms() if now is None else now

    # producing

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Store jobs; see `Store.add`. A transaction is accepted and ignored, with one warning."""
        now = self._now(now)
        if tx is not None and not self._warned:
            self._warned = True
            _log.warning(
                "The memory store knows no transactions: jobs added with tx= exist at once, and stay if it fails."
            )
        added = self._ledger.add(specs, now)
        self._common.waking.finish(now)
        return added

    # working

    async def step(self, req: Step) -> StepReply:
        """Settle outcomes, then claim jobs; see `Store.step`."""
        return self._step(req)

    def _step(self, req: Step) -> StepReply:
        now = self._now(req.now)
        with self._common.guard:
            reply = self._common.work.step(req, now)
        self._common.waking.finish(now)
        return reply

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Sleep until a job can be claimed or ``timeout`` seconds are over, then do ``req``; see `Store.wait`.

        A cancelled wait has claimed nothing.
        """
        reply = self._step(req)
        if reply.jobs or timeout <= 0:
            return reply
        with self._common.waking.jobs.listen(req.queue, req) as ear:
            self._common.waking.listen(req.queue, reply.now)
            await ear.wait(timeout)
        return self._step(req)

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Extend the leases of running jobs; see `Store.renew`."""
        return self._common.renew(queue, held, lease_ms, self._now(now))

    async def sweep(self, req: Sweep) -> SweepReply:
        """Bring back abandoned jobs and tidy up; see `Store.sweep`."""
        now = self._now(req.now)
        with self._common.guard:
            reply = self._common.work.sweep(req, now)
        self._common.waking.finish(now)
        return reply

    # looking

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Read jobs by id; see `Store.get`."""
        self._now(None)
        shelf = self._ledger.find(queue)
        if shelf is None:
            return [None] * len(ids)
        found = (shelf.jobs.get(id) for id in ids)
        return [None if job is None else job.record(payload=payload) for job in found]

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Read a piece of the list of jobs in some states; see `Store.page`."""
        self._now(None)
        items: list[JobRecord] = []
        total = 0
        shelf = self._ledger.find(queue)
        for state in () if shelf is None else states:
            if shelf is None:
                break
            number = shelf.count(state)
            skip = max(0, start - total)
            most = limit - len(items)
            if skip < number and most > 0:
                jobs = islice(shelf.in_order(state, newest_first=newest_first), skip, skip + most)
                items.extend(job.record() for job in jobs)
            total += number
        return Page(items, total)

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Count the jobs of each queue by state; see `Store.counts`."""
        self._now(None)
        found = ((queue, self._ledger.find(queue)) for queue in queues)
        return [Counts(queue=queue) if shelf is None else shelf.counts() for queue, shelf in found]

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Read a job's log, oldest line first; see `Store.logs`."""
        self._now(None)
        shelf = self._ledger.find(queue)
        job = None if shelf is None else shelf.jobs.get(id)
        lines = [] if job is None or job.log is None else job.log
        return Page(lines[start : start + limit], len(lines))

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Read a job's children in the order they were added; see `Store.children`."""
        self._now(None)
        shelf = self._ledger.find(queue)
        job = None if shelf is None else shelf.jobs.get(id)
        found: list[Child] = [] if job is None or job.deps is None else list(job.deps.children.values())
        return Page(found[start : start + limit], len(found))

    async def queues(self) -> list[str]:
        """Return the names of all queues; see `Store.queues`."""
        self._now(None)
        return self._ledger.queues()

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Read how many jobs ended; see `Store.metrics`."""
        now = self._now(None)
        shelf = self._ledger.find(queue)
        if shelf is None:
            return Metrics(Series(0, ()), Series(0, ()))
        return Metrics(shelf.completions.series(now, minutes), shelf.failures.series(now, minutes))

    # changing

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Change jobs in place; see `Store.edit`."""
        now = self._now(now)
        results = self._common.upkeep.edit(queue, patches, now)
        self._common.waking.finish(now)
        return results

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Move or delete jobs; see `Store.move`."""
        now = self._now(now)
        moved = self._common.upkeep.move(queue, selection, action, now)
        self._common.waking.finish(now)
        return moved

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Change a queue's settings and return them; see `Store.configure`."""
        now = self._now(now)
        settings = self._common.upkeep.configure(queue, patch, now)
        self._common.waking.finish(now)
        return settings

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Delete a queue with everything in it; see `Store.obliterate`."""
        now = self._now(None)
        with self._common.guard:
            done = self._common.upkeep.obliterate(queue, now, force=force, limit=limit)
        self._common.waking.finish(now)
        return done

    # schedules, locks, workers, events

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Read schedules; see `Store.schedules`."""
        self._now(None)
        return self._common.schedules.read(queue, start, limit, ids)

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Change schedules; see `Store.schedule`."""
        now = self._now(now)
        done = self._common.schedules.change(queue, changes, now)
        self._common.waking.finish(now)
        return done

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Acquire, extend or release a named lock; see `Store.lease`."""
        now = self._now(now)
        locks = self._common.locks
        lock = locks.get(name)
        if lock is not None and lock.until <= now:
            lock = None
        mine = lock is not None and lock.owner == owner and fence in {None, lock.fence}
        if lock is not None and mine:
            if ttl_ms > 0:
                locks[name] = lock._replace(until=now + ttl_ms)
            else:
                del locks[name]
            return lock.fence
        if lock is not None or fence is not None or ttl_ms <= 0:
            return None
        # One count for all names: it outlives every lock, so that a name's fences grow across expiry.
        fence = next(self._common.fences)
        locks[name] = LockInfo(name, owner, fence, now + ttl_ms)
        if not fence % 256:
            for lapsed in [one.name for one in locks.values() if one.until <= now]:
                del locks[lapsed]
        return fence

    async def locks(self) -> list[LockInfo]:
        """Return the locks that are held now, by name; see `Store.locks`."""
        now = self._now(None)
        return sorted(lock for lock in self._common.locks.values() if lock.until > now)

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Tell of a worker, or leave it an order; see `Store.worker`. An order for a worker unknown here is lost."""
        now = self._now(now)
        common = self._common
        if isinstance(change, Order):
            if change.id in common.beats:
                common.orders[change.id] = change.order
            return None
        for id in [id for id, (_, until) in common.beats.items() if until <= now]:
            del common.beats[id]
            common.orders.pop(id, None)
        id = change.info.id
        if change.ttl_ms > 0:
            common.beats[id] = replace(change.info, seen=now), now + change.ttl_ms
        else:
            common.beats.pop(id, None)
        return common.orders.pop(id, None)

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers heard of within their time, by id; see `Store.workers`."""
        now = self._now(None)
        return [info for _, (info, until) in sorted(self._common.beats.items()) if until > now]

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Follow a queue's events; see `Store.events`.

        Raises:
            ConfigurationError: ``after`` is not a cursor.
        """
        return self._following(queue, after)

    @asynccontextmanager
    async def _following(self, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
        self._now(None)
        shelf = self._ledger.find(queue)
        if after is not None:
            epoch, number = _read_cursor(after)
        else:
            epoch, number = (0, 0) if shelf is None else (shelf.epoch, shelf.written)
        batches = self._follow(queue, epoch, number)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _follow(self, queue: str, epoch: int, number: int) -> AsyncGenerator[EventBatch]:
        with self._common.waking.events.listen(queue) as ear:
            while True:
                shelf = self._ledger.find(queue)
                if shelf is not None and shelf.epoch != epoch:
                    # The queue that was followed is gone, and what was not read of it; another began.
                    epoch, number = shelf.epoch, -1 if epoch else 0
                if shelf is None or shelf.written == number:
                    await ear.wait(_LONG)
                    continue
                events, number = shelf.read(number, EVENTS_AT_ONCE)
                yield EventBatch(f"{epoch}-{number}", tuple(events))

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Append events of the application's own; see `Store.publish`."""
        now = self._now(None)
        self._common.upkeep.publish(queue, events)
        self._common.waking.finish(now)

    # whole queues

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Write records back; see `Store.restore`."""
        now = self._now(None)
        written = self._common.upkeep.restore(records, on_conflict, now)
        self._common.waking.finish(now)
        return written

    async def verify(self, queue: str) -> list[Problem]:
        """Check the invariants; see `Store.verify`."""
        now = self._now(None)
        return [*self._common.upkeep.problems(queue), *self._common.waking.problems(queue, now)]


def _read_cursor(cursor: str) -> tuple[int, int]:
    epoch, _, number = cursor.partition("-")
    if not (epoch.isdecimal() and number.isdecimal()):
        raise ConfigurationError(
            f"{cursor!r} is no cursor of a memory store; pass the cursor of an EventBatch, or None"
        )
    return int(epoch), int(number)
