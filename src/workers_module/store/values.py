"""What goes into the calls of a store, and what comes out: of jobs, queues, locks and workers.

Times are milliseconds since the epoch, UTC. Values that are made for every job are tuples; the rest are frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Literal, NamedTuple, TypeVar

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
    SERVER = "server"
    """Works in a process of its own, so that two steps under way at once keep both it and the caller busy."""


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
            that order in the call is order in the queue.)
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
    ``ignored`` (failed with ``ignore`` or ``continue_parent``; ``reason`` tells why).
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
    """The oldest jobs in these states.

    Attributes:
        states: Any of them.
        older_than: Last touched before this instant; None for any time.
        limit: At most so many; 0 for all.
        names: Only jobs of these names; empty for any.
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
    what drain and clean do: no ``removed`` events, and a parent of the same queue whose last pending child goes is
    deleted too (§9.6).
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
