"""What a worker must know to run one kind of job, one tick, one listener.

Plain records, without the container behind them.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from workers_module.job.events import QueueEvent, QueueEventName, WorkerEvent, WorkerEventName
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.sandbox import Sandbox
from workers_module.job.schedule import CatchUp, Schedule
from workers_module.worker.context import JobContext

Call = Callable[[Job[Any], JobContext], Any]
"""Runs a handler with its job; its dependencies are bound already. Returns the result, or an awaitable of it."""
Opening = Callable[[Job[Any], JobContext], AbstractAsyncContextManager[Call]]
"""Opens the scope of one attempt and resolves the handler in it; leaving it closes every finalizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """The compiled record every handler style becomes.

    Attributes:
        kind: The jobs it takes, and how they are enqueued.
        label: ``Class.method`` or the function's name, for people.
        worker: The worker name by which it is selected (``ENABLED_WORKERS``).
        target: What the user wrote and refers to: the function, or the `Worker` class.
        is_async: Whether it runs on the event loop; else in a thread.
        concurrency: Jobs at once in its queue, or None for the setting.
        sandbox: Where it runs, or None for the setting.
    """

    kind: JobKind
    label: str
    worker: str
    target: object
    is_async: bool
    concurrency: int | None = None
    sandbox: Sandbox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler with its container behind it: exactly one of ``static`` and ``opening`` is set.

    Attributes:
        spec: The compiled record.
        static: The bound call of a handler without per-attempt scope.
        opening: Opens an attempt's scope and yields the bound call.
    """

    spec: HandlerSpec
    static: Call | None = None
    opening: Opening | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """A declared schedule.

    Attributes:
        name: Unique in the container; the id it is stored under.
        worker: The worker name it ticks with.
        queue: Where its jobs go.
        job_name: Their name.
        data: Their payload, JSON.
        options: Their options in BullMQ's JSON (attempts, backoff, …).
        schedule: Its slots; None for `@timeout`.
        after_ms: For `@timeout`: once, so long after the start.
        every_instance: Fires in each process, past the store.
        overlap: Whether a run starts while the last one has not ended.
        catch_up: What becomes of missed slots.
        threshold_ms: A slot later than this is skipped.
        initial_delay_ms: No slot before the process has run so long.
        jitter_ms: Each job starts up to so much after its slot.
        lock: The distributed lock its run holds.
        disabled: Declared, but does not tick.
        label: ``Class.method`` or the function's name, for people.
    """

    name: str
    worker: str
    queue: str
    job_name: str
    label: str
    data: bytes = b"null"
    options: bytes = b"{}"
    schedule: Schedule | None = None
    after_ms: int | None = None
    every_instance: bool = False
    overlap: Literal["skip", "allow"] = "skip"
    catch_up: CatchUp = "latest"
    threshold_ms: int | None = None
    initial_delay_ms: int | None = None
    jitter_ms: int | None = None
    lock: str | None = None
    disabled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A method that hears of events, with its container behind it.

    Attributes:
        label: ``Class.method``, for people.
        worker_event: The worker event it listens to, or None.
        queue_event: The queue event it listens to, or None.
        queue: The queue whose events it hears; None for all that this process runs.
        jobs: ``(queue, job name)`` pairs whose job events it hears; None for all. A job name of None is every name.
        call: Opens a scope of its own, calls the method, closes the scope.
    """

    label: str
    call: Callable[[WorkerEvent | QueueEvent], Awaitable[None]]
    worker_event: WorkerEventName | None = None
    queue_event: QueueEventName | None = None
    queue: str | None = None
    jobs: frozenset[tuple[str, str | None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlan:
    """All that one consumer needs to run one queue.

    Attributes:
        queue: The queue's name.
        handlers: By job name.
        catch_all: Takes the names that ``handlers`` does not have, or None.
        concurrency: Jobs at once.
        worker_names: The worker names it serves, for people.
    """

    queue: str
    handlers: Mapping[str, Handler]
    catch_all: Handler | None = None
    concurrency: int = 10
    worker_names: tuple[str, ...] = ()

    @property
    def all_handlers(self) -> tuple[Handler, ...]:
        """Every handler of the queue."""
        return (*self.handlers.values(), *(() if self.catch_all is None else (self.catch_all,)))

    def handler_for(self, name: str) -> Handler | None:
        """Return the handler of a job name, or None when this process knows none."""
        return self.handlers.get(name, self.catch_all)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlan:
    """All that a worker process runs: made once at start, from the selected handlers.

    Attributes:
        queues: One entry per consumed queue.
        schedules: The declared schedules that tick here.
        listeners: Every listener whose events can occur here.
        ticks: Calls for `every_instance` schedules, by schedule name: open a scope, call the method, close the scope.
        backoffs: The application's own backoff functions by name, each ``(attempt, error, job) -> Duration``.
    """

    queues: tuple[QueuePlan, ...] = ()
    schedules: tuple[ScheduleSpec, ...] = ()
    listeners: tuple[Listener, ...] = ()
    ticks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict[str, Callable[[], Awaitable[None]]])
    backoffs: Mapping[str, Callable[[int, Exception, Job[Any]], Any]] = field(
        default_factory=dict[str, Callable[[int, Exception, Job[Any]], Any]]
    )
