"""Schedules: reading and changing them."""

from collections.abc import Sequence
from typing import Any

from workers_module.job.state import JobState
from workers_module.store.codec import load_definition
from workers_module.store.postgres.asking import schedule_args
from workers_module.store.postgres.calls import ALL, Calls
from workers_module.store.postgres.reading import SHOWN
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord


async def read(calls: Calls, queue: str, *, start: int, limit: int, ids: Sequence[str] | None) -> list[ScheduleRecord]:
    """Do what `Store.schedules` says."""
    if ids is None:
        rows = await calls.fetch(calls.sql.schedules, queue, limit, start, None)
        return [_schedule(queue, row) for row in rows]
    rows = await calls.fetch(calls.sql.schedules, queue, None, 0, list(ids))
    found = {row["id"]: _schedule(queue, row) for row in rows}
    return [found[id_] for id_ in ids if id_ in found]


async def schedule(
    calls: Calls, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None
) -> list[bool]:
    """Do what `Store.schedule` says."""
    if not changes:
        return []
    (row,) = await calls.fetch(calls.sql.schedule, queue, *schedule_args(changes), calls.instant(now))
    for name in row["news"]:
        calls.changed(name, ALL)
    done: list[bool] = row["done"]
    return done


def _schedule(queue: str, row: Any) -> ScheduleRecord:
    state = row["state"]
    if state is not None:
        state = JobState.PRIORITIZED if state == 1 and row["priority"] > 0 else SHOWN[state]
    return ScheduleRecord(
        queue=queue,
        id=row["id"],
        definition=load_definition(row["body"]),
        slot=row["slot"],
        count=row["count"],
        paused=row["paused"],
        job_state=state,
    )
