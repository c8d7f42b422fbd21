"""The contract every store meets.

Ids, bytes and integers go in, values come out; no connection, key, cursor or transaction crosses it but the ``tx`` of
`Store.add`. Each call is atomic. Each may be repeated after a lost reply without a second effect, except `Store.add` of
jobs without an id, appended log lines and `Store.publish`. Times are milliseconds since the epoch, UTC. Where a call
has ``now``, None means the store's own clock; what a worker computes (retry, snooze, delay) crosses as a relative
``delay_ms``.

The centre is `Store.step`: it settles a batch of outcomes and claims the next batch in one round trip.

Every method may raise `StoreUnavailableError` (nothing happened; try again), `StoreFullError`, `StoreDeniedError`, and,
for what cannot be repeated, `StoreOutcomeUnknownError`. A store turns its driver's errors into these at its own door.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

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
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)


class Renewer(Protocol):
    """Renews leases over a connection of its own; blocking, and callable from one other thread."""

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        """Do what `Store.renew` does."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Store(Protocol):
    """Where jobs rest. See the module's text for what holds for every call."""

    # life

    async def open(self) -> StoreInfo:
        """Connect, check the server's settings, migrate; repeatable. A constructor does no I/O.

        Raises:
            ConfigurationError: The server cannot be used as it is set up, or the schema needs a migration that is not
                allowed here.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of every connection; repeatable."""
        ...

    async def now(self) -> int:
        """Return the store's clock."""
        ...

    def renewer(self) -> Renewer:
        """Return a renewer with a connection of its own, made at its first use."""
        ...

    # producing

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Store jobs, all or none, in this order.

        * An id already present, in whatever state: the stored job is untouched, ``existing="same_id"`` (event
          ``duplicated``). If the spec names a parent and the stored job has none (or the same, or one that is gone), it
          becomes that parent's child; a completed one hands its result over at once (wire format §4.3.2).
        * Deduplication (§8.1; key freed when its job ends, unless it has a ttl): ``simple`` drops further calls until
          then, ``throttle`` for ``ttl_ms``, ``extend`` for ``ttl_ms`` from the last call, ``debounce`` replaces the job
          while it is delayed (and restarts the ttl), ``reschedule`` moves the due time of a delayed job,
          ``keep_latest`` keeps the last call's job for when the active one ends. A key without ttl whose job is gone
          counts as free. The decision and the insert are one operation.
        * A spec that others of this call name as parent starts in ``waiting-children``; one with no child left pending
          at the end of the call is released there.

        Args:
            specs: Any number, for any queues; empty is allowed.
            tx: The caller's own transaction (stores.md §7); None for one of ours.

        Returns:
            One `Added` per spec.

        Raises:
            JobNotFoundError: A parent is unknown; nothing is stored.
            ConfigurationError: The job is already the child of another living parent; or deduplication is asked for a
                job with a parent or children; or this store knows no ``tx`` of that kind. Nothing is stored.
        """
        ...

    # working

    async def step(self, req: Step) -> StepReply:
        """Settle outcomes, then claim jobs.

        Outcomes are settled first, in order, each with its effects on parents, deduplication keys, counters and events,
        or not at all. Then due delayed jobs become ready (at most ``2 * take + 100``; also in a paused queue, and also
        when ``take`` is 0), then up to ``take`` jobs are claimed: lowest priority number first, oldest first, ``lifo``
        ones before. A claim sets the token, raises the fence by one, and starts the lease.

        * Never more than pause, global concurrency, and rate windows allow. A manual limit holds for all.
        * An outcome is accepted if the job is active and its lease has this token, or the lease has lapsed, nobody took
          it, and the fence is still this one.
        * With ``resume`` the store first returns what is active under this token, its fence not raised again, then
          claims up to ``take`` in all.
        * `Retry` with 0 goes behind, `Release` in front of its priority; neither writes ``started`` back.
        * Retention: `Keep` of the outcome, applied once per distinct one after the last insertion. ``count=0`` deletes
          at once; the events come all the same.
        * ``drained`` is written at the end of a step in which a job ended, if nothing is waiting, prioritized or active
          (and, if ``take`` > 0, nothing delayed).
        """
        ...

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Sleep until something may be ready or ``timeout`` seconds are over, then do ``req`` (which has no outcomes).

        Hints may be spurious, and one that comes before the wait is kept. A cancelled wait may have claimed: step once
        more with the same token, ``resume=True`` and ``take=0``, and release what comes.
        """
        ...

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Extend the leases of running jobs.

        A lease that has lapsed but was taken by nobody is extended; one that somebody else holds, or whose job is not
        active, is lost.

        Args:
            queue: The queue.
            held: The jobs this worker runs, each once, any number, any order.
            lease_ms: How long each lease holds from now.

        Source: BullMQ ``extendLocks``.
        """
        ...

    async def sweep(self, req: Sweep) -> SweepReply:
        """Bring back abandoned jobs and tidy up; any instance, at any time.

        A job is abandoned when two sweeps, one interval apart, both find its lease run out; a renewal between them
        clears it. It gets one crash more and goes to the head of its priority (events ``waiting``, ``stalled``). At
        ``max_crashes`` (not a schedule's job), or with ``on_crash="fail"``, ``deferred`` is set, so that the next claim
        fails it. Also makes due jobs ready, forgets expired deduplication keys, applies the age limits (at most 1,000
        jobs each), and trims events. Never works longer than 50 ms.
        """
        ...

    # looking

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Read jobs by id; None for those that are not there. Without ``payload`` the record's ``data`` is empty."""
        ...

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Read a piece of the list of jobs in some states.

        Order: the states as given; within waiting and prioritized the order of claiming (tagset by tagset), delayed by
        due time, active by start, ended by end, waiting-children by entry. ``newest_first`` turns each state's list
        round.
        """
        ...

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Count the jobs of each queue by state, from counters that are kept, not by counting rows."""
        ...

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Read a job's log, oldest line first."""
        ...

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Read a job's children in the order they were added, with what became of them; also after they are gone."""
        ...

    async def queues(self) -> list[str]:
        """Return the names of all queues that have settings, jobs or schedules, sorted."""
        ...

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Read how many jobs ended, in all and per minute; empty unless steps ask for metrics."""
        ...

    # changing

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Change jobs in place, each patch whole or not at all."""
        ...

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Move or delete jobs; the ids moved, in order.

        Active jobs are skipped, and the current job of a schedule that still exists is not removed. Retried jobs go
        behind, a job with ``lifo`` and no priority in front; promoted ones behind. At most 10,000 jobs a call: call
        again while it returns as many.

        Raises:
            IllegalMoveError: A single id whose job is not in a state this action takes.
            JobNotFoundError: A single id without a job.
        """
        ...

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Change a queue's settings and return them as they are then; ``paused`` and ``resumed`` tell of a change."""
        ...

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Delete a queue with everything in it, ``limit`` jobs a call; True when nothing is left.

        Raises:
            IllegalMoveError: Jobs are active and ``force`` is not set; nothing was deleted.
        """
        ...

    # schedules, locks, workers, events

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Read schedules: by ids (unknown ones are left out), or a piece of the list ordered by slot."""
        ...

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Change schedules, each change atomic; whether it did something."""
        ...

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Acquire, extend or release a named lock.

        Without ``fence``: acquire; the holder itself gets its fence again and a fresh lease, so that a repeat is
        harmless. With ``fence``: extend that very lease, never a lapsed one. ``ttl_ms=0`` releases: the lease of this
        owner (and fence, if given).

        Returns:
            The fence, which only ever grows for a name; None when somebody else holds the lock, or there was nothing to
            extend or release.
        """
        ...

    async def locks(self) -> list[LockInfo]:
        """Return the locks that are held now, by name."""
        ...

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Tell of a worker, or leave it an order; a beat returns the order left for it, once."""
        ...

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers heard of within their time, by id."""
        ...

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Follow a queue's events: from a batch's cursor, else from the moment the context is entered.

        At least once, oldest first. What fell out of the cap is announced as ``Event("gap")``.
        """
        ...

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Append events of the application's own, or progress when nothing else is written."""
        ...

    # whole queues

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Write records back as they are, except ``active``, which becomes waiting; how many were written.

        Raises:
            ConfigurationError: A record's id exists and ``on_conflict`` is ``error``; nothing is written.
        """
        ...

    async def verify(self, queue: str) -> list[Problem]:
        """Check the invariants of reliability §2; slow, for tests and ``doctor``."""
        ...
