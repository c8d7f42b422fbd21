"""One attempt of a job while it runs, and the one timer that watches over all of them."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol

from workers_module.job.events import WorkerEvent
from workers_module.job.outcome import Outcome
from workers_module.store.values import Claimed, Settle
from workers_module.worker.context import JobContext
from workers_module.worker.handler import Handler

_log = logging.getLogger(__name__)


class CancelReason(StrEnum):
    """Why a run is stopped from outside."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


class Owner(Protocol):
    """What a run asks of whoever started it."""

    def give_up_later(self, run: "Run") -> None:
        """Start the time a cancelled run has to end."""
        ...

    def events_of(self, run: "Run") -> tuple[WorkerEvent, ...]:
        """Return what listeners are told of how the run ended."""
        ...


class Run:
    """One attempt, from claim to outcome.

    Attributes:
        claimed: What was claimed.
        handler: What runs it.
        context: What the handler sees of it.
        task: The task it runs in.
        on_end: Called once when the outcome stands; None for a run in its caller's task.
        reason: Why it was stopped from outside, or None.
        begun: When it was started, of `time.monotonic`.
        closing: Whether the handler is done and only finalizers run.
        deadline: When the timer looks at it, in the loop's seconds.
        ended: Whether the outcome stands.
        outcome: How it ended; None before that, and when there is nothing to settle because the lease is lost.
        result: What the handler returned.
        error: What ended the attempt, as it was raised.
    """

    __slots__ = (
        "_owner",
        "begun",
        "claimed",
        "closing",
        "context",
        "deadline",
        "ended",
        "error",
        "handler",
        "on_end",
        "outcome",
        "reason",
        "result",
        "task",
    )

    def __init__(
        self,
        owner: Owner,
        handler: Handler,
        claimed: Claimed,
        context: JobContext,
        on_end: "Callable[[Run], None] | None" = None,
    ) -> None:
        self._owner = owner
        self.claimed = claimed
        self.handler = handler
        self.context = context
        self.task: asyncio.Task[Any] | None = None
        self.on_end = on_end
        self.reason: CancelReason | None = None
        self.begun = time.monotonic()
        self.closing = False
        self.deadline = math.inf
        self.ended = False
        self.outcome: Outcome | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have run out."""
        return self.context.lease_in_doubt

    @lease_in_doubt.setter
    def lease_in_doubt(self, value: bool) -> None:
        self.context.lease_in_doubt = value

    def cancel(self, reason: CancelReason) -> None:
        """Stop the run; repeatable. The first reason stands, except that a lost lease overrides all.

        While the scope's finalizers run they are left alone, because dishka stops closing at the first cancellation; a
        run that is not over ``kill_after`` later is given up.
        """
        if self.ended:
            return
        if self.reason is not None:
            if reason is CancelReason.LEASE_LOST:
                self.reason = reason
            return
        self.reason = reason
        self.context.cancelled = True
        if self.task is not None and not self.closing:
            self.task.cancel()
        self._owner.give_up_later(self)

    @property
    def worker_events(self) -> tuple[WorkerEvent, ...]:
        """What listeners are told once the outcome is settled; empty unless somebody listens."""
        return self._owner.events_of(self)

    def settle(self) -> Settle | None:
        """Return what the consumer sends to the store, or None when there is nothing to settle."""
        return None if self.outcome is None else Settle(self.claimed.held, self.outcome)


class Watch:
    """The runs of one executor, and the one timer for all their deadlines.

    It fires at the earliest deadline that was set and looks at what still runs then: a run that ended in time costs
    nothing.
    """

    __slots__ = ("_at", "_overdue", "_runs", "_timer")

    def __init__(self, overdue: Callable[[Run], None]) -> None:
        self._overdue = overdue
        self._runs: set[Run] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf

    def add(self, run: Run) -> None:
        """Take a run in."""
        self._runs.add(run)

    def discard(self, run: Run) -> None:
        """Let a run go."""
        self._runs.discard(run)

    def limit(self, run: Run, ms: int) -> None:
        """Have ``overdue`` called with the run, unless it is over in ``ms`` milliseconds."""
        loop = asyncio.get_running_loop()
        run.deadline = loop.time() + ms / 1000
        if run.deadline < self._at:
            self._arm(loop, run.deadline)

    def _arm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = loop.call_at(at, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer, self._at = None, math.inf
        for run in list(self._runs):
            if run.deadline <= now:
                self._overdue(run)
        earliest = min((run.deadline for run in self._runs if not run.ended), default=math.inf)
        if earliest < self._at:
            self._arm(loop, earliest)
