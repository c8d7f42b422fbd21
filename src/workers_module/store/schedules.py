"""What goes into the calls of a store about schedules, and what comes out."""

from dataclasses import dataclass

from workers_module.job.state import JobState
from workers_module.store.values import JobSpec


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
    False. Otherwise the pending job (waiting, prioritized or delayed) is replaced by one for ``slot``. When ``paused``,
    the definition and the slot stay without a pending job. ``job.id`` is ignored: it is ``repeat:<id>:<slot>``, and its
    due time the slot.
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
    limit. With ``replace`` the job of ``from_slot`` is removed first, and the call is refused unless that is still
    delayed.
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
