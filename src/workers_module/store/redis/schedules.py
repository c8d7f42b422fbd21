"""Schedules: reading and changing them."""

from collections.abc import Sequence
from typing import Final, assert_never

from workers_module.store.redis.asking import definition_values
from workers_module.store.redis.calls import READ, Calls
from workers_module.store.redis.fields import spec_extras, to_json
from workers_module.store.redis.keys import Keys, check_tags
from workers_module.store.redis.reading import read_schedule
from workers_module.store.redis.scripts import Argument, script
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.values import JobSpec

_SCHEDULE: Final = script("schedule-2")


async def read(calls: Calls, queue: str, *, start: int, limit: int, ids: Sequence[str] | None) -> list[ScheduleRecord]:
    """Do what `Store.schedules` says."""
    if ids is None:
        rows = await calls.call(READ, queue, None, "schedules", start, limit)
    else:
        rows = await calls.call(READ, queue, None, "schedules", 0, -1, *ids)
    return [read_schedule(queue, row) for row in rows]


async def schedule(
    calls: Calls, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None
) -> list[bool]:
    """Do what `Store.schedule` says."""
    if not changes:
        return []
    args: list[Argument] = []
    for change in changes:
        match change:
            case PutSchedule():
                definition = change.definition
                args += ("put", change.id, change.slot, to_json(definition_values(definition)))
                args += (definition.data, definition.opts, "1" if change.paused else "")
                args += _slot_job(calls.keys, queue, change.job)
            case FireSlot():
                args += ("fire", change.id, change.from_slot, change.slot, "1" if change.replace else "")
                args += _slot_job(calls.keys, queue, change.job)
            case DropSchedule():
                args += ("drop", change.id)
            case _:
                assert_never(change)
    calls.listed = None
    return [done == 1 for done in await calls.call(_SCHEDULE, queue, now, *args)]


def _slot_job(keys: Keys, queue: str, job: JobSpec) -> tuple[Argument, ...]:
    check_tags(queue, job.tags)
    extras = spec_extras(job._replace(parent=None, dedup=None))
    return keys.place(queue, job.tags), job.name, job.data, job.opts, to_json(extras)
