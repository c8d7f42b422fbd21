"""What is to be done with a claimed job before anything runs: fail it, park it, or hand it to its handler."""

import logging
from dataclasses import dataclass
from itertools import count
from typing import Final
from uuid import uuid4

from workers_module.errors import JobCrashedError, JobFailedError
from workers_module.job.events import WorkerEvent, WorkerEventName
from workers_module.job.job import Job
from workers_module.job.outcome import Failed, Outcome, Snooze
from workers_module.job.record import JobRecord, Token
from workers_module.store.values import Claimed, RateLimit
from workers_module.worker.executor import Executor
from workers_module.worker.handler import Handler, QueuePlan

_log = logging.getLogger(__name__)

KNOWN_UNKNOWN: Final = 10_000
"""So many unknown job names are remembered."""
_FAILURE_EVENTS: Final[tuple[WorkerEventName, ...]] = ("failed", "retries_exhausted")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """What every consumer of a process shares.

    Attributes:
        worker: The process' name, kept in the jobs it claims.
        lease_ms: How long a claim holds without renewal.
        max_crashes: Lost leases after which a job fails.
        unknown_job_grace_ms: How long jobs of an unknown name are parked; 0 fails them at once.
        kill_after_ms: How long the executor lets a cancelled run take.
        tags: Empty takes jobs without tags only; else jobs that share at least one.
        metrics: Minutes of counts kept per queue; 0 keeps none.
        rate: This process' own limit for each queue.
    """

    worker: str
    lease_ms: int = 30_000
    max_crashes: int = 3
    unknown_job_grace_ms: int = 600_000
    kill_after_ms: int = 2_000
    tags: tuple[str, ...] = ()
    metrics: int = 0
    rate: RateLimit | None = None


class Tokens:
    """Makes the tokens of a process: never one twice, in no process."""

    __slots__ = ("_numbers", "_prefix")

    def __init__(self) -> None:
        self._prefix = f"{uuid4().hex}:"
        self._numbers = count(1)

    def fresh(self) -> Token:
        """Return a token that no claim has had."""
        return Token(f"{self._prefix}{next(self._numbers)}")


class Unrun:
    """A claimed job that ends without having run; for the loop what `Run` is for one that has."""

    __slots__ = ("claimed", "error", "outcome")

    def __init__(self, claimed: Claimed, outcome: Outcome, error: JobFailedError | None = None) -> None:
        self.claimed = claimed
        self.outcome: Outcome | None = outcome
        self.error = error

    @property
    def worker_events(self) -> tuple[WorkerEvent, ...]:
        """What listeners are told: that it failed, if it did."""
        if not isinstance(self.outcome, Failed):
            return ()
        record = self.claimed.record
        job = Job(record, None)
        return tuple(WorkerEvent(name=n, queue=record.queue, job=job, error=self.error) for n in _FAILURE_EVENTS)


class Intake:
    """Says what is to be done with a claimed job: by its record, without running it."""

    def __init__(self, plan: QueuePlan, executor: Executor, settings: ConsumerSettings) -> None:
        self._plan = plan
        self._executor = executor
        self._grace_ms = settings.unknown_job_grace_ms
        self._suspect_from = max(1, settings.max_crashes - 1)
        self._unknown: dict[str, int] = {}

    def decide(self, claimed: Claimed, now: int) -> Handler | Unrun:
        """Return what runs the job, or how it ends unrun.

        Args:
            claimed: The job.
            now: The store's clock.
        """
        record = claimed.record
        if record.deferred is not None:
            kind = JobCrashedError if record.crashes else JobFailedError
            return self.failed(claimed, kind(record.deferred, job_id=record.id))
        if record.crashes and record.on_crash == "fail":
            text = "the worker that ran it died, and on_crash='fail' allows no second run"
            return self.failed(claimed, JobCrashedError(text, job_id=record.id))
        handler = self._plan.handler_for(record.name)
        return handler if handler is not None else self._not_known(claimed, now)

    def is_suspect(self, record: JobRecord) -> bool:
        """Whether the job may have killed its workers, so that it must run alone.

        With one crash allowed there is no suspicion: the first one already fails the job.
        """
        return record.crashes >= self._suspect_from and record.schedule is None

    def failed(self, claimed: Claimed, error: JobFailedError) -> Unrun:
        """Return the job's end as a failure."""
        return Unrun(claimed, self._executor.fail(claimed, error).outcome, error)

    def _not_known(self, claimed: Claimed, now: int) -> Unrun:
        record = claimed.record
        since = self._unknown.get(record.name)
        if since is None:
            if len(self._unknown) >= KNOWN_UNKNOWN:
                self._unknown.clear()
            since = self._unknown[record.name] = now
            if self._grace_ms:
                _log.warning(
                    "queue %s: no handler for job name %r; its jobs are parked for %d s", record.queue, record.name,
                    self._grace_ms // 1_000,
                )  # fmt: skip
        left = since + self._grace_ms - now
        if left > 0:
            # Not all at once: another process may know the name soon, and takes what is due.
            return Unrun(claimed, Snooze(min(left, max(1_000, self._grace_ms // 20))))
        known = ", ".join(sorted(self._plan.handlers)) or "none"
        error = JobFailedError(
            f"no handler for job name {record.name!r} in queue {record.queue!r}; known names: {known}", job_id=record.id
        )
        return self.failed(claimed, error)
