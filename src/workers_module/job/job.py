"""The job as a handler and a reader see it."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, cast

from workers_module.clock import Clock, to_datetime
from workers_module.errors import JobCancelledError, WorkersError
from workers_module.job.encoding import encode
from workers_module.job.failure import failure_of
from workers_module.job.record import JobRecord, ParentRef
from workers_module.job.state import JobState

T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


class RunContext(Protocol):
    """What a running job answers through; the worker's context is one."""

    async def update_progress(self, value: object) -> None:
        """Store and announce how far the job is."""
        ...

    def add_log(self, message: str) -> None:
        """Append a line to the job's log."""
        ...

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have run out."""
        ...


class Job(Generic[T_co]):
    """One job: what was asked for, and how far it is. A value: reading it does no I/O.

    ``data`` is the validated payload. Everything else is read from the stored record when it is asked for, so that a
    handler
    that does not look at it pays nothing.
    """

    __slots__ = ("_context", "_data", "record")

    record: JobRecord
    """The job as it is stored; times in milliseconds, payload in bytes."""

    def __init__(self, record: JobRecord, data: T_co, context: RunContext | None = None) -> None:
        self.record = record
        self._data = data
        self._context = context

    def leave(self) -> None:
        """Forget the run, which is over: from now on this is what was, and nothing can be said for it any more."""
        # A job that held its run for ever would be garbage only the collector finds, and there is one for each run.
        self._context = None

    @staticmethod
    def fake(data: D, /, **fields: Any) -> "Job[D]":
        """Build a job for a unit test; no store is needed.

        What a handler reports with `update_progress` is then its ``progress``; what it logs goes nowhere.

        Args:
            data: The payload, as the handler would get it.
            fields: Any of the job's stored fields by its name in `JobRecord` (``id``, ``name``, ``queue``,
                ``priority``, …); also ``attempt`` and ``attempts``.

        Example:
            ``await EmailProcessor(mailer).welcome(Job.fake(Welcome(to="ada@example.com"), attempt=2))``
        """
        attempt = fields.pop("attempt", 1)
        attempts = fields.pop("attempts", max(1, attempt))
        now = Clock().now_ms()
        values: dict[str, Any] = {
            "queue": "fake",
            "id": "1",
            "name": "fake",
            "state": JobState.ACTIVE,
            "data": b"null",
            "opts": b"{}",
            "priority": 0,
            "tags": (),
            "attempts_made": attempt - 1,
            "max_attempts": attempts,
            "crashes": 0,
            "fence": attempt,
            "added": now,
            "due": None,
            "started": now,
            "finished": None,
        }
        unknown = fields.keys() - set(JobRecord._fields)
        if unknown:
            raise TypeError(
                f"Job.fake: no field {min(unknown)!r}; there are: attempt, attempts, {', '.join(JobRecord._fields)}"
            )
        job = Job(JobRecord(**(values | fields)), data)
        job._context = _Rehearsal(job)
        return job

    @property
    def data(self) -> T_co:
        """The payload, validated by the handler's type."""
        return self._data

    @property
    def id(self) -> str:
        """The job's id, unique in its queue."""
        return self.record.id

    @property
    def name(self) -> str:
        """The job's name; it chooses the handler."""
        return self.record.name

    @property
    def queue(self) -> str:
        """The name of the job's queue."""
        return self.record.queue

    @property
    def state(self) -> JobState:
        """The state at the time of reading; ``active`` in a handler."""
        return self.record.state

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled; its ``state`` is then ``failed``, as BullMQ knows no other word for it."""
        return self.state is JobState.FAILED and isinstance(failure_of(self.record), JobCancelledError)

    @property
    def attempt(self) -> int:
        """The number of this run, from 1; for an ended job that of its last run."""
        record = self.record
        return record.attempts_made if record.state.ended else record.attempts_made + 1

    @property
    def attempts(self) -> int:
        """How many runs are allowed."""
        return max(1, self.record.max_attempts)

    @property
    def priority(self) -> int:
        """0 for none; else the lower number goes first."""
        return self.record.priority

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags, sorted."""
        return self.record.tags

    @property
    def options(self) -> dict[str, Any]:
        """The stored options in BullMQ's JSON: milliseconds, BullMQ's names."""
        value: dict[str, Any] = json.loads(self.record.opts or b"{}")
        return value

    @property
    def progress(self) -> Any:
        """The last progress reported, decoded; 0 before the first."""
        progress = self.record.progress
        return 0 if progress is None else json.loads(progress)

    @property
    def created_at(self) -> datetime:
        """When the job was added."""
        return to_datetime(self.record.added)

    @property
    def started_at(self) -> datetime | None:
        """When the last run began."""
        return _instant(self.record.started)

    @property
    def finished_at(self) -> datetime | None:
        """When the job ended."""
        return _instant(self.record.finished)

    @property
    def run_at(self) -> datetime | None:
        """When a delayed job becomes ready."""
        return _instant(self.record.due)

    @property
    def parent(self) -> ParentRef | None:
        """The job that waits for this one."""
        return self.record.parent

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that made the job."""
        return self.record.schedule

    @property
    def fence(self) -> int:
        """Grows with each start of the job: pass it on to what must refuse an older run."""
        return self.record.fence

    @property
    def return_value(self) -> Any:
        """The stored result, decoded; None before the job completed."""
        result = self.record.result
        return None if result is None else json.loads(result)

    @property
    def error(self) -> str | None:
        """The text of the last failure."""
        return self.record.reason

    @property
    def traces(self) -> Sequence[str]:
        """The traceback of each failed attempt, oldest first."""
        trace = self.record.trace
        value: list[str] = json.loads(trace) if trace else []
        return value

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have run out, so that another worker could start the job too."""
        return False if self._context is None else self._context.lease_in_doubt

    async def update_progress(self, value: object) -> None:
        """Report how far the job is: a number or JSON. The spelling of NestJS; `Progress` is the injected one.

        Raises:
            WorkersError: The job is not running here.
        """
        await self._running("update_progress").update_progress(value)

    def log(self, message: str) -> None:
        """Append a line to the job's log. The spelling of NestJS; `JobLogger` is the injected one.

        Raises:
            WorkersError: The job is not running here.
        """
        self._running("log").add_log(message)

    def _running(self, method: str) -> RunContext:
        if self._context is None:
            raise WorkersError(f"job {self.id}: {method}() works only while a handler runs the job")
        return self._context

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        job = cast("Job[object]", other)
        return self.record == job.record and bool(self._data == job.data)

    def __hash__(self) -> int:
        return hash((self.record.queue, self.record.id))

    def __repr__(self) -> str:
        record = self.record
        run = f"attempt {self.attempt} of {self.attempts}"
        return f"<Job {record.queue}.{record.name} {record.id} {record.state.value} {run}>"


class _Rehearsal:
    """What a fake job answers through."""

    lease_in_doubt = False

    def __init__(self, job: Job[Any]) -> None:
        self._job = job

    async def update_progress(self, value: object) -> None:
        self._job.record = self._job.record._replace(progress=encode(value, None, what="progress"))

    def add_log(self, message: str) -> None:
        """Drop it: nobody can read the log of a job that is stored nowhere."""


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else to_datetime(ms)
