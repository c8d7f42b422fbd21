"""A job that comes again and again: the schedule it becomes, and the job of its first slot.

The schedule stores its next job ahead; who claims that job stores the one after it. So all there is to do here is to
declare it.
"""

import hashlib
import json
from typing import Final

from workers_module.clock import to_datetime
from workers_module.errors import ConfigurationError
from workers_module.job.options import JobOptions, Repeat
from workers_module.job.schedule import Schedule, successor
from workers_module.job.state import JobState
from workers_module.job.stored import write_options
from workers_module.store.base import Store
from workers_module.store.chain import schedule_of, slot_id, slot_job
from workers_module.store.schedules import PutSchedule, ScheduleDefinition, ScheduleRecord

_PENDING: Final = frozenset({JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED})


def schedule_id(name: str, repeat: Repeat, data: bytes) -> str:
    """Return the id of the schedule that ``queue.add(name, data, repeat=…)`` makes; the same call finds it again."""
    described = json.dumps([repeat.pattern, str(repeat.every), repeat.tz]).encode()
    digest = hashlib.sha256(described + b"\n" + data).hexdigest()[:16]
    return f"{name[:100]}.{digest}"


def define(name: str, repeat: Repeat, data: bytes, options: JobOptions) -> ScheduleDefinition:
    """Return what the store keeps of a repetition.

    Args:
        name: The job's name.
        repeat: When it comes.
        data: Its payload, JSON.
        options: Its options, checked.

    Raises:
        ScheduleError: The pattern or the zone cannot be used, or the repetition never fires.
    """
    schedule = repeat.schedule()
    template = JobOptions(**options)
    template.pop("repeat", None)
    return ScheduleDefinition(
        name=name,
        pattern=schedule.expression,
        every_ms=schedule.every_ms,
        tz=None if schedule.expression is None else schedule.tz,
        start=schedule.start,
        end=schedule.end,
        limit=repeat.limit,
        data=data,
        opts=write_options(template, template=True),
    )


async def put_schedule(
    store: Store, queue: str, id: str, definition: ScheduleDefinition, *, immediately: bool = False
) -> str:
    """Declare a schedule and return the id of its current job.

    The same definition again changes nothing. Other data or options keep the slot; other times begin anew.

    Args:
        store: Where it is kept.
        queue: Its queue.
        id: Its id.
        definition: What it is.
        immediately: A new schedule's first job comes at once.

    Raises:
        ConfigurationError: The repetition has ended already.

    Source: wire format §7.6.
    """
    found = await store.schedules(queue, ids=[id])
    record = found[0] if found else None
    if record is not None and record.definition == definition:
        return slot_id(id, record.slot)
    now = await store.now()
    schedule = schedule_of(definition)
    count = 1
    if record is None or _times(record.definition) != _times(definition):
        slot = schedule.first_slot(now, immediately=immediately)
    else:
        count = record.count + 1
        slot = record.slot if record.job_state in _PENDING else _next(record, schedule, now)
    if slot is None or (definition.end is not None and definition.end < now):
        ended = f" (it ends {to_datetime(definition.end):%Y-%m-%d %H:%M:%S} UTC)" if definition.end is not None else ""
        raise ConfigurationError(f"schedule {id} of queue {queue!r} has no slot left{ended}")
    job = slot_job(queue, id, definition, slot=slot, count=count, now=now)
    paused = record is not None and record.paused
    change = PutSchedule(id=id, definition=definition, slot=slot, job=job, paused=paused)
    if not (await store.schedule(queue, [change]))[0]:
        # Another process declared the same at the same time; its slot counts.
        found = await store.schedules(queue, ids=[id])
        slot = found[0].slot if found else slot
    return slot_id(id, slot)


def _next(record: ScheduleRecord, schedule: Schedule, now: int) -> int | None:
    return successor(schedule, slot=record.slot, now=now, catch_up="none")


def _times(definition: ScheduleDefinition) -> tuple[object, ...]:
    return definition.pattern, definition.every_ms, definition.tz, definition.start, definition.end
