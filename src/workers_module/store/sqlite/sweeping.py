"""Bringing back what dead workers left, and tidying up."""

import time
from typing import Final

from workers_module.store.planning import CRASHED, MAX_TRIMMED, slot_job_id
from workers_module.store.sqlite.rows import SELECT_HEADS, Head, head_by_id, head_of
from workers_module.store.sqlite.stepping import expire, next_due, promote
from workers_module.store.sqlite.work import (
    ACTIVE,
    COMPLETED,
    FAILED,
    FROM_ACTIVE,
    READY,
    Many,
    Plan,
    Queue,
    Work,
    trim_events,
)
from workers_module.store.values import Sweep, SweepReply

_BUDGET: Final = 0.05
_PIECE: Final = 200
_ABANDONED: Final = (
    f"{SELECT_HEADS} WHERE q = ? AND state = 3 AND lease <= ? AND lapsed <= ? ORDER BY seq DESC LIMIT {_PIECE}"
)
_FIRST_LOOK: Final = "UPDATE wm_job SET lapsed = ? WHERE q = ? AND state = 3 AND lease <= ? AND lapsed IS NULL"
_TAKE_BACK: Final = (
    "UPDATE wm_job SET state = 1, seq = ?, token = NULL, lease = NULL, lapsed = NULL, cancel = 0, "
    "crashes = crashes + 1, deferred = coalesce(?, deferred) WHERE n = ?"
)


def sweep(work: Work, req: Sweep) -> Plan[SweepReply]:
    """Do what `Store.sweep` says."""
    queue = yield from work.find(req.queue)
    if queue is None:
        return SweepReply((), (), None, False, work.now)
    if 0 <= queue.swept <= work.now < queue.swept + req.interval_ms:
        wake_at = yield from next_due(queue)
        return SweepReply((), (), wake_at, False, work.now)
    stop = time.monotonic() + _BUDGET
    recovered = yield from _recover(work, queue, req, stop)
    hinted = yield from _promote_all(work, queue, stop)
    yield "DELETE FROM wm_dedup WHERE q = ? AND until <= ? AND until IS NOT NULL", (queue.q, work.now)
    for state, age in ((COMPLETED, req.completed_age_ms), (FAILED, req.failed_age_ms)):
        if age is not None:
            yield from _expire(work, queue, state, age, stop)
    yield "DELETE FROM wm_lock WHERE until <= ?", (work.now,)
    if queue.event_last > queue.event_cap:
        yield from trim_events(queue)
    more = time.monotonic() >= stop
    idle = yield from _idle(queue)
    queue.swept = -1 if more else work.now
    work.tidy = True
    if (recovered or hinted) and not queue.paused:
        work.hint(queue, len(recovered) + hinted)
    wake_at = yield from next_due(queue)
    return SweepReply(tuple(recovered), idle, wake_at, more, work.now)


def _recover(work: Work, queue: Queue, req: Sweep, stop: float) -> Plan[list[str]]:
    """Take back the jobs whose lease this look and one an interval ago found run out."""
    recovered: list[str] = []
    if not queue.tally[ACTIVE]:
        return recovered
    while True:
        rows = yield _ABANDONED, (queue.q, work.now, work.now - req.interval_ms)
        heads = [head_of(row) for row in rows]
        spared = yield from _spared(heads)
        changes: list[tuple[int, str | None, int]] = []
        # The last started goes in front first, so that in the end the first started stands before it.
        for head in heads:
            over = head.on_crash == 1 or (head.crashes + 1 >= req.max_crashes and head.schedule not in spared)
            changes.append((queue.ahead(), CRASHED if over else None, head.n))
            queue.count(ACTIVE, 0, -1)
            queue.count(READY, head.priority, 1)
            queue.events.append(("waiting", head.id, FROM_ACTIVE))
            queue.events.append(("stalled", head.id, None))
            recovered.append(head.id)
        if changes:
            yield Many(_TAKE_BACK, changes)
        if len(rows) < _PIECE or time.monotonic() >= stop:
            break
    yield _FIRST_LOOK, (work.now, queue.q, work.now)
    recovered.reverse()
    return recovered


def _spared(heads: list[Head]) -> Plan[set[str | None]]:
    """Return the schedules among those of some jobs that still exist: their jobs have no crash limit."""
    names = {(head.q, head.schedule) for head in heads if head.schedule is not None}
    found: set[str | None] = set()
    for q, name in names:
        if (yield "SELECT 1 FROM wm_schedule WHERE q = ? AND id = ?", (q, name)):
            found.add(name)
    return found


def _promote_all(work: Work, queue: Queue, stop: float) -> Plan[int]:
    total = 0
    while True:
        promoted = yield from promote(work, queue, _PIECE)
        total += promoted
        if promoted < _PIECE or time.monotonic() >= stop:
            return total


def _expire(work: Work, queue: Queue, state: int, age_ms: int, stop: float) -> Plan[None]:
    for _ in range(MAX_TRIMMED // _PIECE):
        if not queue.tally[state] or time.monotonic() >= stop:
            return
        if (yield from expire(work, queue, state, age_ms, _PIECE)) < _PIECE:
            return


def _idle(queue: Queue) -> Plan[tuple[str, ...]]:
    """Return the schedules whose current job is missing or ended."""
    idle: list[str] = []
    rows = yield "SELECT id, slot FROM wm_schedule WHERE q = ? AND paused = 0 ORDER BY n", (queue.q,)
    for id_, slot in rows:
        head = yield from head_by_id(queue.q, slot_job_id(id_, slot))
        if head is None or head.state in {COMPLETED, FAILED}:
            idle.append(id_)
    return tuple(idle)
