"""The contract every store meets.

Ids, bytes and integers go in, values come out; no connection, key, cursor or transaction crosses it but the ``tx`` of
`Store.add`.
Each call is atomic. Each may be repeated after a lost reply without a second effect, except `Store.add` of jobs without
an id,
appended log lines and `Store.publish`. Times are milliseconds since the epoch, UTC. Where a call has ``now``, None
means the
store's own clock; what a worker computes (retry, snooze, delay) crosses as a relative ``delay_ms``.

The centre is `Store.step`: it settles a batch of outcomes and claims the next batch in one round trip.

Every method may raise `StoreUnavailableError` (nothing happened; try again), `StoreFullError`, `StoreDeniedError`, and,
for what
cannot be repeated, `StoreOutcomeUnknownError`. A store turns its driver's errors into these at its own door.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from workers_module.job.events import Event, EventBatch
from workers_module.job.options import DedupMode
from workers_module.job.outcome import Outcome
from workers_module.job.record import ChildPolicy, JobRecord, OnCrash, ParentRef, Token
from workers_module.job.state import JobState
from workers_module.url import QueueKind

T_co = TypeVar("T_co", covariant=True)

MAX_OUTCOMES: Final = 200
"""The most outcomes one `Step` may carry."""
MAX_EVENTS: Final = 10_000
"""How many events of a queue are kept unless its settings say otherwise."""


class Capability(StrEnum):
    """What not every store can do."""

    TRANSACTIONAL_ADD = "transactional_add"
    DURABLE = "durable"
    """Accepted jobs outlive the process."""
    SHARED = "shared"
    """Other processes can work on the same jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What `Store.open` found.

    Attributes:
        kind: Which store.
        version: The server's or library's version, as text.
        place: Where the jobs are, without secrets, for people.
        capabilities: What it can do.
        warnings: One sentence each, to be shown at start.
    """

    kind: QueueKind
    version: str
    place: str
    capabilities: frozenset[Capability] = frozenset()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DedupSpec:
    """A deduplication request; the modes are described at `Store.add`."""

    key: str
    mode: DedupMode = "simple"
    ttl_ms: int | None = None


class JobSpec(NamedTuple):
    """A job to add; written with keywords.

    A tuple rather than a dataclass because one is made for every job.

    Attributes:
        id: None lets the store choose one.
        timestamp: When the job counts as created; None for now.
        data: JSON.
        opts: BullMQ's JSON; opaque.
        delay_ms: Relative to ``timestamp``; ignored when ``due`` is given. A due time not after now means no delay.
        due: An instant.
        max_attempts: Runs allowed.
        tags: Sorted, without doubles.
        parent: A stored job, or the index of a later spec of the same call. (Children stand before their parent, so
            that order
            in the call is order in the queue.)
        schedule: The schedule that makes the job; set by stores and schedule calls only.
    """

    queue: str
    name: str
    data: bytes
    parent: ParentRef | int | None = None
    opts: bytes = b"{}"
    id: str | None = None
    timestamp: int | None = None
    priority: int = 0
    lifo: bool = False
    delay_ms: int = 0
    due: int | None = None
    max_attempts: int = 1
    tags: tuple[str, ...] = ()
    dedup: DedupSpec | None = None
    policy: ChildPolicy = ChildPolicy.FAIL_PARENT
    on_crash: OnCrash = "retry"
    schedule: str | None = None


class Added(NamedTuple):
    """What became of one `JobSpec`.

    ``id`` and ``state`` are those of the job that counts now: the new one, or the one that was there (``existing``). A
    job that still holds its deduplication key but was not kept at its end counts as completed.
    """

    id: str
    state: JobState
    existing: Literal["same_id", "deduplicated"] | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``max`` starts in a window of ``window_ms`` that begins with the first of them."""

    max: int
    window_ms: int


class Held(NamedTuple):
    """A claimed job, as its holder names it. ``handle`` is the store's own (opaque; None where it needs none)."""

    id: str
    token: Token
    fence: int
    handle: int | None = None


class Settle(NamedTuple):
    """How one claimed job ended."""

    held: Held
    outcome: Outcome


class Claimed(NamedTuple):
    """A job this worker runs from now on. ``record.fence``, ``.crashes`` and ``.deferred`` are those of this start."""

    record: JobRecord
    held: Held


class SettleCode(StrEnum):
    """What a store did with an outcome.

    To a first sending, `MISSING` and `ALREADY` mean a lost lease; to a repeat, success.
    """

    OK = "ok"
    MISSING = "missing"
    ALREADY = "already"
    """Not active, the fence unchanged, and in a state this outcome leads to."""
    LEASE_LOST = "lease_lost"
    PENDING = "pending"
    """`Completed` refused: a child has not ended."""
    CHILD_FAILED = "child_failed"
    """`Completed` or `WaitChildren` refused.

    A child failed that fails its parent. The job stays active; `Failed` comes next.
    """
    NOTHING_PENDING = "nothing_pending"
    """`WaitChildren` refused: there is no child to wait for; the handler goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request of a consumer.

    Attributes:
        queue: The queue.
        worker: The worker's name, kept in the jobs it claims.
        token: Fresh for each claiming call.
        outcomes: At most `MAX_OUTCOMES`, of any earlier claims of this queue.
        take: How many jobs to claim at most; 0 only settles.
        lease_ms: How long each new lease holds.
        tags: Empty claims jobs without tags only; else jobs that share at least one.
        rate: The worker's own limit; the queue's is applied too (wire format §10.1).
        metrics: How many minutes of counts to keep; 0 keeps none.
        resume: The reply to an earlier call with this token was lost.
        now: The instant, for tests.
    """

    queue: str
    worker: str
    token: Token
    outcomes: Sequence[Settle] = ()
    take: int = 0
    lease_ms: int = 30_000
    tags: tuple[str, ...] = ()
    rate: RateLimit | None = None
    metrics: int = 0
    resume: bool = False
    now: int | None = None


@dataclass(frozen=True, slots=True)
class StepReply:
    """The answer to a `Step`.

    Attributes:
        settled: A code for each outcome, in order.
        jobs: The claimed jobs, in the order they are to be started.
        wake_at: The earliest instant something may become ready without a write, or None.
        paused: Whether the queue is paused.
        now: The store's clock.
    """

    settled: list[SettleCode]
    jobs: list[Claimed]
    wake_at: int | None
    paused: bool
    now: int


@dataclass(frozen=True, slots=True)
class RenewReply:
    """The answer to a renewal.

    Ids whose lease is lost, and ids whose cancellation was asked for; subsets of what was held.
    """

    lost: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A look for abandoned jobs.

    Attributes:
        interval_ms: One sweep per queue and interval does something; the others return at once.
        max_crashes: Lost leases after which a job is failed by the next claim.
        completed_age_ms: Completed jobs older than this are removed; None keeps them.
        failed_age_ms: Failed ones likewise.
    """

    queue: str
    interval_ms: int
    max_crashes: int = 3
    completed_age_ms: int | None = None
    failed_age_ms: int | None = None
    now: int | None = None


@dataclass(frozen=True, slots=True)
class SweepReply:
    """The answer to a sweep.

    Attributes:
        recovered: Jobs taken back from dead workers.
        idle: Schedules, not paused, whose current job is missing or ended.
        wake_at: As in `StepReply`.
        more: The 50 ms were over before the work was; call again.
        now: The store's clock.
    """

    recovered: tuple[str, ...]
    idle: tuple[str, ...]
    wake_at: int | None
    more: bool
    now: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """A piece of a longer list; ``total`` is the whole list's length at the time of reading."""

    items: list[T_co]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many jobs of a queue are in each state. ``paused`` tells whether the queue is paused."""

    queue: str
    waiting: int = 0
    prioritized: int = 0
    delayed: int = 0
    active: int = 0
    completed: int = 0
    failed: int = 0
    waiting_children: int = 0
    paused: bool = False


class Child(NamedTuple):
    """A child of a job.

    ``state`` is ``pending``, ``processed`` (``value`` is its result, JSON), ``failed`` (with ``fail_parent``), or
    ``ignored``
    (failed with ``ignore`` or ``continue_parent``; ``reason`` tells why).
    """

    queue: str
    id: str
    state: Literal["pending", "processed", "failed", "ignored"]
    value: bytes | None = None
    reason: str | None = None


class Series(NamedTuple):
    """A count of ended jobs: since ever, and per minute, the newest first; the current minute is not in it."""

    total: int
    per_minute: tuple[int, ...]


class Metrics(NamedTuple):
    """How many jobs of a queue ended."""

    completed: Series
    failed: Series


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPatch:
    """A change to one job; None changes nothing.

    Attributes:
        progress: JSON; announced as an event.
        data: JSON.
        log_lines: Appended to the log.
        keep_logs: The log keeps so many newest lines (never over 1,000).
        clear_logs: Empty the log first.
        priority: Moves a waiting job to its new place.
        delay_ms: From now; only for a delayed job.
        cancel: Ask the running job to stop; the request ends with the run.
        detach: Leave the parent; that is released when nothing else is pending.
        held: Check the lease first, and change nothing when it is lost.
    """

    id: str
    progress: bytes | None = None
    data: bytes | None = None
    log_lines: tuple[str, ...] = ()
    keep_logs: int | None = None
    clear_logs: bool = False
    priority: int | None = None
    delay_ms: int | None = None
    cancel: bool = False
    detach: bool = False
    held: Held | None = None


class EditResult(StrEnum):
    """What became of a `JobPatch`; all but ``OK`` changed nothing."""

    OK = "ok"
    MISSING = "missing"
    LEASE_LOST = "lease_lost"
    WRONG_STATE = "wrong_state"
    """A delay for a job that is not delayed, or a cancel request for one that does not run."""


@dataclass(frozen=True, slots=True)
class ByIds:
    """These jobs. One single id that is refused raises `IllegalMoveError`; of several, the refused are left out."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ByState:
    """The oldest jobs in these states, at most ``limit`` (0.

    All), last touched before the instant ``older_than`` (None: any).
    """

    states: tuple[JobState, ...]
    older_than: int | None = None
    limit: int = 0
    names: tuple[str, ...] = ()


Selection = ByIds | ByState


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete jobs in any state but active, with what hangs on them.

    *Soft* tells it (``removed``), takes pending ``children`` along and releases the parent with an event. *Hard* is
    what drain
    and clean do: no ``removed`` events, and a parent of the same queue whose last pending child goes is deleted too
    (§9.6).
    """

    children: bool = True
    hard: bool = False


@dataclass(frozen=True, slots=True)
class RetryAgain:
    """Put ended jobs back to work.

    With ``reset`` their attempts count from zero again (the fence never does). A child is pending again.
    """

    reset: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Make delayed jobs ready now."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Fail jobs that have not started.

    Cancellation by a person. ``trace`` is a JSON array. The parent's policy applies.
    """

    reason: str
    trace: bytes | None = None


Action = Remove | RetryAgain | Promote | Fail


class Unset(StrEnum):
    """Marks a setting that a patch leaves alone, where None means *no limit*."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePatch:
    """A change to a queue's settings.

    Attributes:
        paused: Hand out no jobs, or hand them out again.
        concurrency: Jobs active at once in all processes; None lifts the limit.
        rate: Starts per window in all processes; None lifts the limit.
        event_cap: How many events are kept.
        limit_for_ms: Hand out nothing from now for so long, whatever the rate.
        free_dedup: Forget this deduplication key.
    """

    paused: bool | None = None
    concurrency: int | Unset | None = UNSET
    rate: RateLimit | Unset | None = UNSET
    event_cap: int | None = None
    limit_for_ms: int | None = None
    free_dedup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """A queue's settings. ``limited_until`` is the end of a manual limit, or None."""

    paused: bool = False
    concurrency: int | None = None
    rate: RateLimit | None = None
    event_cap: int = MAX_EVENTS
    limited_until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """What a schedule is; compared whole by `PutSchedule`.

    Attributes:
        name: The job name.
        pattern: The cron text, or None for an interval.
        every_ms: The interval, or None for a pattern.
        offset_ms: The interval's phase.
        tz: The IANA zone of a pattern.
        start: No slot before.
        end: No slot after.
        limit: So many jobs at most.
        data: The payload template, JSON.
        opts: The options template, BullMQ's JSON.
        extra: What BullMQ has no place for (owner, catch-up, …), JSON; opaque.
    """

    name: str
    pattern: str | None = None
    every_ms: int | None = None
    offset_ms: int = 0
    tz: str | None = None
    start: int | None = None
    end: int | None = None
    limit: int | None = None
    data: bytes = b"{}"
    opts: bytes = b"{}"
    extra: bytes = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """A stored schedule.

    Attributes:
        id: Unique in its queue.
        slot: The current slot: the newest one that has, or had, a job (``repeat:<id>:<slot>``).
        count: Jobs made so far.
        paused: No job is pending, and none is made.
        job_state: The state of the current slot's job; None when there is none (any more).
    """

    queue: str
    id: str
    definition: ScheduleDefinition
    slot: int
    count: int
    paused: bool = False
    job_state: JobState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutSchedule:
    """Declare a schedule.

    The stored definition again (and the same ``paused``) changes nothing, so a restart loses no slot; the call returns
    False.
    Otherwise the pending job (waiting, prioritized or delayed) is replaced by one for ``slot``. When ``paused``, the
    definition and
    the slot stay without a pending job.
    ``job.id`` is ignored: it is ``repeat:<id>:<slot>``, and its due time the slot.
    """

    id: str
    definition: ScheduleDefinition
    slot: int
    job: JobSpec
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FireSlot:
    """Store the job of the next slot and advance, in one operation.

    Refused (False) unless the current slot is ``from_slot`` < ``slot``, and the schedule is not paused and under its
    limit. With
    ``replace`` the job of ``from_slot`` is removed first, and the call is refused unless that is still delayed.
    """

    id: str
    from_slot: int
    slot: int
    job: JobSpec
    replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSchedule:
    """Forget a schedule, and its pending job if that is still delayed (wire format §7.7). False when there was none."""

    id: str


class LockInfo(NamedTuple):
    """A held lock; ``until`` is when its lease ends."""

    name: str
    owner: str
    fence: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker process as it tells of itself.

    Attributes:
        id: Unique among all workers.
        host: Its machine's name.
        pid: Its process id.
        version: Of this package.
        started: When it started.
        queues: What it consumes.
        tags: What it was started with.
        slots: Jobs it can run at once.
        busy: Jobs it runs now.
        seen: When it was last heard of; filled in by the store.
    """

    id: str
    host: str
    pid: int
    version: str
    started: int
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    slots: int = 0
    busy: int = 0
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's sign of life, kept for ``ttl_ms``. ``ttl_ms=0`` says goodbye."""

    info: WorkerInfo
    ttl_ms: int


WorkerOrder = Literal["drain", "stop"]


@dataclass(frozen=True, slots=True)
class Order:
    """An order left for a worker; its next beat reads it, once."""

    id: str
    order: WorkerOrder


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken invariant: its number (``I1`` … ``I7`` of reliability §2), the job it shows on, and what is wrong."""

    invariant: str
    job_id: str | None
    text: str


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
          ``duplicated``). If the
          spec names a parent and the stored job has none (or the same, or one that is gone), it becomes that parent's
          child; a
          completed one hands its result over at once (wire format §4.3.2).
        * Deduplication (§8.1; key freed when its job ends, unless it has a ttl): ``simple`` drops further calls until
          then, ``throttle``
          for ``ttl_ms``, ``extend`` for ``ttl_ms`` from the last call, ``debounce`` replaces the job while it is
          delayed (and restarts the
          ttl), ``reschedule`` moves the due time of a delayed job, ``keep_latest`` keeps the last call's job for when
          the active one ends.
          A key without ttl whose job is gone counts as free. The decision and the insert are one operation.
        * A spec that others of this call name as parent starts in ``waiting-children``; one with no child left pending
          at the end of the
          call is released there.

        Args:
            specs: Any number, for any queues; empty is allowed.
            tx: The caller's own transaction (stores.md §7); None for one of ours.

        Returns:
            One `Added` per spec.

        Raises:
            JobNotFoundError: A parent is unknown; nothing is stored.
            ConfigurationError: The job is already the child of another living parent; or deduplication is asked for a
                job with a
                parent or children; or this store knows no ``tx`` of that kind. Nothing is stored.
        """
        ...

    # working

    async def step(self, req: Step) -> StepReply:
        """Settle outcomes, then claim jobs.

        Outcomes are settled first, in order, each with its effects on parents, deduplication keys, counters and events,
        or not at all.
        Then due delayed jobs become ready (at most ``2 * take + 100``; also in a paused queue, and also when ``take``
        is 0), then up to
        ``take`` jobs are claimed: lowest priority number first, oldest first, ``lifo`` ones before. A claim sets the
        token, raises the fence by
        one, and starts the lease.

        * Never more than pause, global concurrency, and rate windows allow. A manual limit holds for all.
        * An outcome is accepted if the job is active and its lease has this token, or the lease has lapsed, nobody took
          it, and the fence is
          still this one.
        * With ``resume`` the store first returns what is active under this token, its fence not raised again, then
          claims up to ``take`` in
          all.
        * `Retry` with 0 goes behind, `Release` in front of its priority; neither writes ``started`` back.
        * Retention: `Keep` of the outcome, applied once per distinct one after the last insertion. ``count=0`` deletes
          at once; the events
          come all the same.
        * ``drained`` is written at the end of a step in which a job ended, if nothing is waiting, prioritized or active
          (and, if ``take`` > 0, nothing delayed).
        """
        ...

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Sleep until something may be ready or ``timeout`` seconds are over, then do ``req`` (which has no outcomes).

        Hints may be spurious, and one that comes before the wait is kept. A cancelled wait may have claimed: step once
        more with the same
        token, ``resume=True`` and ``take=0``, and release what comes.
        """
        ...

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Extend the leases of running jobs.

        A lease that has lapsed but was taken by nobody is extended; one that somebody else holds, or whose job is not
        active, is lost.

        Args:
            queue: The queue.
            held: The jobs this worker runs, any number, any order.
            lease_ms: How long each lease holds from now.

        Source: BullMQ ``extendLocks``.
        """
        ...

    async def sweep(self, req: Sweep) -> SweepReply:
        """Bring back abandoned jobs and tidy up; any instance, at any time.

        A job is abandoned when two sweeps, one interval apart, both find its lease run out; a renewal between them
        clears it. It gets one crash more
        and goes to the head of its priority (events ``waiting``, ``stalled``). At ``max_crashes`` (not a schedule's
        job), or with
        ``on_crash="fail"``, ``deferred`` is set, so that the next claim fails it. Also makes due jobs ready, forgets
        expired deduplication keys,
        applies the age limits (at most 1,000 jobs each), and trims events. Never works longer than 50 ms.
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
            due time, active by
        start, ended by end, waiting-children by entry. ``newest_first`` turns each state's list round.
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
        harmless. With ``fence``: extend
        that very lease, never a lapsed one. ``ttl_ms=0`` releases: the lease of this owner (and fence, if given).

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
