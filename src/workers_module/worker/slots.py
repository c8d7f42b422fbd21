"""From a declared schedule to what the store keeps of it: pure."""

from workers_module.errors import ScheduleError
from workers_module.job.schedule import Schedule
from workers_module.store.chain import Rules
from workers_module.store.schedules import ScheduleDefinition
from workers_module.worker.handler import ScheduleSpec


def definition_of(spec: ScheduleSpec, owner: str | None) -> ScheduleDefinition:
    """Return what the store keeps of a declared schedule.

    Raises:
        ScheduleError: It has no slots that the store could keep: a `@timeout`.
    """
    if spec.schedule is None:
        raise ScheduleError(f"{spec.label}: {spec.name!r} has no slots")
    schedule = spec.schedule
    rules = Rules(
        owner=owner,
        catch_up=spec.catch_up,
        overlap=spec.overlap,
        threshold_ms=spec.threshold_ms,
        initial_delay_ms=spec.initial_delay_ms,
        jitter_ms=spec.jitter_ms,
        lock=spec.lock,
        disabled=spec.disabled,
    )
    return ScheduleDefinition(
        name=spec.job_name,
        pattern=schedule.expression,
        every_ms=schedule.every_ms,
        offset_ms=schedule.offset_ms or 0,
        tz=schedule.tz if schedule.expression is not None else None,
        start=schedule.start,
        end=schedule.end,
        data=spec.data,
        opts=spec.options,
        extra=rules.write(),
    )


def first_slot(schedule: Schedule, now: int) -> int | None:
    """Return the slot a declared schedule begins with; None when it has ended.

    A distance that names no beginning comes for the first time when it is over, as ``@Interval`` does in NestJS.
    """
    if schedule.every_ms is not None and schedule.offset_ms is None and schedule.start is None:
        return schedule.first_slot(now + schedule.every_ms)
    return schedule.first_slot(now)
