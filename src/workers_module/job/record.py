"""What the store keeps of a job."""

from enum import StrEnum
from typing import Literal, NamedTuple, NewType

from workers_module.job.state import JobState

JobId = NewType("JobId", str)
Token = NewType("Token", str)
"""Names one claiming call; shared by the jobs it brought."""

OnCrash = Literal["retry", "fail"]


class ChildPolicy(StrEnum):
    """What the final failure of a child does to its parent.

    Source: BullMQ ``failParentOnFailure`` and its three relatives; wire format §9.4.
    """

    FAIL_PARENT = "fail_parent"
    CONTINUE_PARENT = "continue_parent"
    IGNORE = "ignore"
    REMOVE = "remove"


class ParentRef(NamedTuple):
    """The job that waits for this one."""

    queue: str
    id: str


class JobRecord(NamedTuple):
    """A job as it lies in the store: text, bytes and integers.

    A tuple rather than a dataclass because one is made for every claim. Times are milliseconds since the epoch of the
    store's clock; ``data``, ``opts``, ``progress``, ``result`` and ``trace`` are JSON as it was given, never
    re-encoded.
    """

    queue: str
    id: str
    name: str
    state: JobState
    data: bytes
    """The payload; empty when the reader asked for none."""
    opts: bytes
    """The call's options in BullMQ's JSON; opaque to the store."""
    priority: int
    tags: tuple[str, ...]
    attempts_made: int
    """Runs that ended by the job itself: completed, failed, or tried again."""
    max_attempts: int
    crashes: int
    """Leases lost so far."""
    fence: int
    """Starts so far; grows with every claim."""
    added: int
    due: int | None
    """When a delayed job becomes ready; None in every other state."""
    started: int | None
    finished: int | None
    lifo: bool = False
    on_crash: OnCrash = "retry"
    cancelled: bool = False
    """Whether somebody asked the running job to stop."""
    worker: str | None = None
    parent: ParentRef | None = None
    policy: ChildPolicy = ChildPolicy.FAIL_PARENT
    schedule: str | None = None
    """The id of the schedule that made the job."""
    dedup: str | None = None
    """The deduplication id."""
    deferred: str | None = None
    """A reason to fail the job without running it."""
    progress: bytes | None = None
    reason: str | None = None
    """The text of the last failure; kept when a later attempt succeeds."""
    trace: bytes | None = None
    """A JSON array of the attempts' traces, oldest first."""
    result: bytes | None = None
