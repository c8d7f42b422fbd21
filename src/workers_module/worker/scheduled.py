"""Running the jobs of schedules: the schedule is asked first, and what it locks is held meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import anyio

from workers_module.errors import JobFailedError, ScheduleError
from workers_module.store.values import Claimed
from workers_module.worker.handler import Handler
from workers_module.worker.intake import Intake, Unrun
from workers_module.worker.locks import RunLocks
from workers_module.worker.outage import Outage
from workers_module.worker.run import CancelReason, Run
from workers_module.worker.ticker import Admission, Ticker

_log = logging.getLogger(__name__)


class Parked:
    """A claimed job that has not started yet: a suspect, or one whose schedule is asked first."""

    __slots__ = ("claimed", "handler", "lost", "task")

    def __init__(self, claimed: Claimed, handler: Handler) -> None:
        self.claimed = claimed
        self.handler = handler
        self.lost = False
        self.task: asyncio.Task[None] | None = None


class ScheduledOwner(Protocol):
    """What a consumer does with the jobs of schedules."""

    def start(self, handler: Handler, claimed: Claimed, over: Callable[[], None] | None = None) -> Run:
        """Start a job, and call ``over`` when it has ended."""
        ...

    def end_unrun(self, item: Unrun) -> None:
        """Settle a job that does not run."""
        ...

    def fail(self, fault: Exception) -> None:
        """End with this fault."""
        ...

    def wake(self) -> None:
        """Look whether all is over."""
        ...


class ScheduledJobs:
    """The jobs of schedules that one consumer was given: those asked about, and those that run under locks."""

    def __init__(self, queue: str, owner: ScheduledOwner, *, ticker: Ticker, intake: Intake) -> None:
        self._queue = queue
        self._owner = owner
        self._ticker = ticker
        self._intake = intake
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    def run(self, parked: Parked, now: int) -> None:
        """Run a job as soon as its schedule lets it; ``now`` is the store's clock."""
        parked.task = task = asyncio.get_running_loop().create_task(self._run(parked, now))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def cancel(self) -> None:
        """Give up what is not over."""
        for task in self._tasks:
            task.cancel()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._owner.wake()

    async def _run(self, parked: Parked, now: int) -> None:
        """The successor is stored first, so that no crash of this job ends the chain."""
        claimed, owner = parked.claimed, self._owner
        try:
            admission = await self._admission(claimed, now)
            if parked.lost:
                if admission.locks is not None:
                    await _bounded(admission.locks.release())
            elif admission.outcome is not None:
                owner.end_unrun(Unrun(claimed, admission.outcome))
            elif admission.locks is None:
                owner.start(parked.handler, claimed)
            else:
                await self._run_locked(parked.handler, claimed, admission.locks)
        except ScheduleError as error:
            text = f"schedule {claimed.record.schedule!r} cannot go on: {error}"
            owner.end_unrun(self._intake.failed(claimed, JobFailedError(text, job_id=claimed.record.id)))
        except Exception as error:
            owner.fail(error)

    async def _admission(self, claimed: Claimed, now: int) -> Admission:
        outage = Outage(f"queue {self._queue}, schedule {claimed.record.schedule}")
        return await outage.wait_out(lambda: self._ticker.admit(claimed, now))

    async def _run_locked(self, handler: Handler, claimed: Claimed, locks: RunLocks) -> None:
        over = asyncio.Event()
        run = self._owner.start(handler, claimed, over.set)
        try:
            if not over.is_set():
                async with anyio.create_task_group() as group:
                    group.start_soon(self._keep_locks, run, locks)
                    await over.wait()
                    group.cancel_scope.cancel()
        finally:
            await _bounded(locks.release())

    async def _keep_locks(self, run: Run, locks: RunLocks) -> None:
        lost = await locks.keep()
        record = run.claimed.record
        _log.warning("queue %s: job %s lost the lock %s; it is cancelled and handed back", self._queue, record.id, lost)
        run.cancel(CancelReason.SHUTDOWN)


async def _bounded(call: Coroutine[Any, Any, None]) -> None:
    """Carry out a last call whatever cancels us, for a second at most."""
    with anyio.move_on_after(1, shield=True):
        await call
