"""What queues and workers tell: durable queue events (any process) and worker events (this process)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from workers_module.job.job import Job, RunContext


class EventType(StrEnum):
    """The types of stored events.

    Text and meaning are BullMQ's (wire format §4.1). Published events have any other text.
    """

    ADDED = "added"
    WAITING = "waiting"
    DELAYED = "delayed"
    WAITING_CHILDREN = "waiting-children"
    ACTIVE = "active"
    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRIES_EXHAUSTED = "retries-exhausted"
    STALLED = "stalled"
    DRAINED = "drained"
    REMOVED = "removed"
    CLEANED = "cleaned"
    DUPLICATED = "duplicated"
    DEDUPLICATED = "deduplicated"
    PAUSED = "paused"
    RESUMED = "resumed"
    GAP = "gap"
    """Events fell out of the cap before this reader came to them."""


_NOTHING: Mapping[str, str] = MappingProxyType({})


class Event(NamedTuple):
    """One stored event.

    ``fields`` are texts under BullMQ's names, without ``event`` and ``jobId``: ``prev``, ``delay`` (the due instant in
    ms),
    ``data`` and ``returnvalue`` (JSON), ``failedReason``, ``attemptsMade``, ``count``, ``name``, ``deduplicationId``,
    ``deduplicatedJobId``.
    """

    type: str
    job_id: str | None = None
    fields: Mapping[str, str] = _NOTHING


class EventBatch(NamedTuple):
    """What one read found; ``cursor`` resumes after the whole batch and is opaque."""

    cursor: str
    events: tuple[Event, ...]


WorkerEventName = Literal[
    "active",
    "completed",
    "failed",
    "retries_exhausted",
    "progress",
    "stalled",
    "error",
    "ready",
    "drained",
    "closed",
]
QueueEventName = Literal[
    "waiting",
    "delayed",
    "active",
    "completed",
    "failed",
    "progress",
    "removed",
    "paused",
    "resumed",
]

WORKER_EVENTS: tuple[WorkerEventName, ...] = get_args(WorkerEventName)
QUEUE_EVENTS: tuple[QueueEventName, ...] = get_args(QueueEventName)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """Something that happened in this process.

    Attributes:
        name: Which event.
        queue: The queue it is about.
        job: The job, for events about one.
        result: What the handler returned (``completed``).
        error: What was raised (``failed``, ``retries_exhausted``, ``error``).
        progress: The value reported (``progress``).
        context: The run it is about, for events about one; listeners ask for it as `JobContext`.
    """

    name: WorkerEventName
    queue: str
    job: Job[Any] | None = None
    result: Any = None
    error: BaseException | None = None
    progress: Any = None
    context: RunContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEvent:
    """Something that happened to a queue in any process; at least once, and possibly missing past the event cap.

    Attributes:
        name: Which event.
        queue: The queue it is about.
        job_id: The job, for events about one.
        result: The stored result, decoded (``completed``).
        error: The stored reason (``failed``).
        progress: The value reported, decoded (``progress``).
    """

    name: QueueEventName
    queue: str
    job_id: str | None = None
    result: Any = None
    error: str | None = None
    progress: Any = None
