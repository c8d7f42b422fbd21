"""The states of a job, and the moves between them."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is; the names are BullMQ's.

    ::

         add ─┬─► waiting, prioritized ──claim──► active ──Completed──► completed
              └─► delayed ───claim, when due────► active ──Failed─────► failed ──retry──► waiting
                    ▲ └──promote──► waiting         │ │
                    └──────Retry or Snooze──────────┘ └──lease ran out: sweep──► waiting

    A paused queue's jobs stay ``waiting``: paused is a property of the queue.
    """

    WAITING = "waiting"
    PRIORITIZED = "prioritized"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    WAITING_CHILDREN = "waiting-children"

    @property
    def ended(self) -> bool:
        """Whether the job will not run again by itself."""
        return self in ENDED


READY = (JobState.WAITING, JobState.PRIORITIZED)
ENDED = (JobState.COMPLETED, JobState.FAILED)
ALL_STATES = tuple(JobState)

MOVES: dict[JobState | None, frozenset[JobState]] = {
    None: frozenset({JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED, JobState.WAITING_CHILDREN}),
    JobState.WAITING: frozenset({JobState.PRIORITIZED, JobState.ACTIVE, JobState.FAILED}),
    JobState.PRIORITIZED: frozenset({JobState.WAITING, JobState.ACTIVE, JobState.FAILED}),
    JobState.DELAYED: frozenset({JobState.WAITING, JobState.PRIORITIZED, JobState.FAILED}),
    JobState.ACTIVE: frozenset(JobState) - {JobState.ACTIVE},
    JobState.WAITING_CHILDREN: frozenset(
        {
            JobState.WAITING,
            JobState.PRIORITIZED,
            JobState.DELAYED,
            JobState.FAILED,
        }
    ),
    JobState.COMPLETED: frozenset({JobState.WAITING, JobState.PRIORITIZED}),
    JobState.FAILED: frozenset({JobState.WAITING, JobState.PRIORITIZED}),
}
"""Every legal move, by the state left (None: the job is new). Removal is legal from all but ``active``."""
