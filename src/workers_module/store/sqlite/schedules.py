# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""Schedules: a current slot each, whose job is stored ahead."""

from collections.abc import Sequence
from typing import Final, assert_never

from workers_module.store.codec import dump_definition, load_definition
from workers_module.store.planning import slot_job_id
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.sqlite import adding
from workers_module.store.sqlite.removing import remove_hard, remove_soft
from workers_module.store.sqlite.rows import head_by_id, heads_by_id
from workers_module.store.sqlite.work import DELAYED, READY, Plan, Queue, Row, Work, chunks, marks, padded
from workers_module.store.values import JobSpec

_COLUMNS: Final = "id, slot, count, paused, body"


def schedule(work: Work, name: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule]) -> Plan[list[bool]]:
    """Do what `Store.schedule` says."""
    done: list[bool] = []
    for change in changes:
        match change:
            case PutSchedule():
                queue = yield from work.make(name)
                done.append((yield from _put(work, queue, change)))
            case FireSlot():
                found = yield from work.find(name)
                done.append(found is not None and (yield from _fire(work, found, change)))
            case DropSchedule():
                found = yield from work.find(name)
                done.append(found is not None and (yield from _drop(work, found, change.id)))
            case _:
                assert_never(change)
    return done


def _read(queue: Queue, id_: str) -> Plan[Row | None]:
    rows = yield f"SELECT {_COLUMNS} FROM wm_schedule WHERE q = ? AND id = ?", (queue.q, id_)
    return rows[0] if rows else None


def _put(work: Work, queue: Queue, put: PutSchedule) -> Plan[bool]:
    body = dump_definition(put.definition)
    stored = yield from _read(queue, put.id)
    paused = 1 if put.paused else 0
    count = 0 if stored is None else stored[2]
    if stored is not None:
        if stored[4] == body and stored[3] == paused:
            return False
        current = yield from head_by_id(queue.q, slot_job_id(put.id, stored[1]))
        if current is not None and current.state in {READY, DELAYED}:
            yield from remove_hard(work, [current])
            count -= 1
    if not put.paused and (yield from _store(work, queue, put.id, put.slot, put.job)):
        count += 1
    if stored is None:
        yield (
            "INSERT INTO wm_schedule (q, id, slot, count, paused, body) VALUES (?, ?, ?, ?, ?, ?)",
            (queue.q, put.id, put.slot, count, paused, body),
        )
    else:
        yield (
            "UPDATE wm_schedule SET slot = ?, count = ?, paused = ?, body = ? WHERE q = ? AND id = ?",
            (put.slot, count, paused, body, queue.q, put.id),
        )
    return True


def _store(work: Work, queue: Queue, id_: str, slot: int, job: JobSpec) -> Plan[bool]:
    """Store the job of a slot; False when it is there already."""
    job_id = slot_job_id(id_, slot)
    if (yield from head_by_id(queue.q, job_id)) is not None:
        queue.events.append(("duplicated", job_id, None))
        return False
    spec = job._replace(queue=queue.name, id=job_id, due=slot, schedule=id_, parent=None)
    yield from adding.insert(work, queue, spec, job_id)
    return True


def _fire(work: Work, queue: Queue, fire: FireSlot) -> Plan[bool]:
    stored = yield from _read(queue, fire.id)
    if stored is None:
        return False
    _, slot, count, paused, body = stored
    if paused or slot != fire.from_slot or fire.slot <= slot:
        return False
    current = yield from head_by_id(queue.q, slot_job_id(fire.id, slot))
    if fire.replace and (current is None or current.state != DELAYED):
        return False
    count -= 1 if fire.replace else 0
    limit = load_definition(body).limit
    if limit is not None and count >= limit:
        return False
    if fire.replace and current is not None:
        yield from remove_hard(work, [current])
    if (yield from _store(work, queue, fire.id, fire.slot, fire.job)):
        count += 1
    yield "UPDATE wm_schedule SET slot = ?, count = ? WHERE q = ? AND id = ?", (fire.slot, count, queue.q, fire.id)
    return True


def _drop(work: Work, queue: Queue, id_: str) -> Plan[bool]:
    stored = yield from _read(queue, id_)
    if stored is None:
        return False
    yield "DELETE FROM wm_schedule WHERE q = ? AND id = ?", (queue.q, id_)
    current = yield from head_by_id(queue.q, slot_job_id(id_, stored[1]))
    if current is not None and current.state == DELAYED:
        yield from remove_soft(work, current, children=True)
    return True


def read(work: Work, name: str, start: int, limit: int, ids: Sequence[str] | None) -> Plan[list[ScheduleRecord]]:
    """Do what `Store.schedules` says."""
    queue = yield from work.find(name)
    if queue is None:
        return []
    rows: list[Row] = []
    if ids is None:
        rows = yield (
            f"SELECT {_COLUMNS} FROM wm_schedule WHERE q = ? ORDER BY slot, id LIMIT ? OFFSET ?",
            (queue.q, limit, start),
        )
    else:
        found: dict[str, Row] = {}
        for piece in chunks(list(dict.fromkeys(ids))):
            sql = f"SELECT {_COLUMNS} FROM wm_schedule WHERE q = ? AND id IN ({marks(len(piece))})"
            some = yield sql, (queue.q, *padded(piece))
            found.update((row[0], row) for row in some)
        rows = [found[id_] for id_ in ids if id_ in found]
    jobs = yield from heads_by_id(queue.q, [slot_job_id(row[0], row[1]) for row in rows])
    records: list[ScheduleRecord] = []
    for id_, slot, count, paused, body in rows:
        job = jobs.get(slot_job_id(id_, slot))
        records.append(
            ScheduleRecord(
                queue=name,
                id=id_,
                definition=load_definition(body),
                slot=slot,
                count=count,
                paused=paused == 1,
                job_state=None if job is None else job.shown_state,
            )
        )
    return records
