"""Deleting jobs with what hangs on them, and telling those who wait for them."""

from collections.abc import Sequence
from typing import Final

from workers_module.store.planning import slot_job_id
from workers_module.store.sqlite import adding, flows
from workers_module.store.sqlite.rows import Head, delete, head_by_id, head_by_number
from workers_module.store.sqlite.work import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    PARKED,
    PRIORITIZED,
    READY,
    Plan,
    Work,
)

_PREVIOUS: Final = {
    READY: {"prev": "wait"},
    PRIORITIZED: {"prev": "prioritized"},
    DELAYED: {"prev": "delayed"},
    ACTIVE: {"prev": "active"},
    COMPLETED: {"prev": "completed"},
    FAILED: {"prev": "failed"},
    PARKED: {"prev": "waiting-children"},
}


def came_from(head: Head) -> dict[str, str]:
    """Return the ``prev`` field of the event that tells of a job's removal."""
    return _PREVIOUS[PRIORITIZED if head.state == READY and head.priority > 0 else head.state]


def is_current(head: Head) -> Plan[bool]:
    """Tell whether a job is the one of its schedule's current slot."""
    if head.schedule is None:
        return False
    rows = yield "SELECT slot FROM wm_schedule WHERE q = ? AND id = ?", (head.q, head.schedule)
    return bool(rows) and head.id == slot_job_id(head.schedule, rows[0][0])


def remove_soft(work: Work, head: Head, *, children: bool) -> Plan[None]:
    """Delete a job with an event; its parent is released if it waits for nothing else.

    Children that are still pending go as well when asked for, but those that run, which only lose their parent.
    """
    queue = yield from work.numbered(head.q)
    pending: list[Head] = []
    if children and head.pending:
        pending = yield from _pending_children(work, head)
    yield from adding.drop_keys([head])
    yield from delete(work, [head])
    queue.events.append(("removed", head.id, came_from(head)))
    for child in pending:
        yield from remove_soft(work, child, children=True)
    if head.parent is not None and (yield from flows.is_pending(head.parent, queue.name, head.id)):
        yield from flows.forget(head.parent, queue.name, head.id)
        yield from flows.release_if_free(work, head.parent)


def _pending_children(work: Work, head: Head) -> Plan[list[Head]]:
    found: list[Head] = []
    rows = yield "SELECT queue, id FROM wm_dep WHERE parent = ? AND state = 0 ORDER BY i", (head.n,)
    for name, id_ in rows:
        queue = yield from work.find(name)
        child = None if queue is None else (yield from head_by_id(queue.q, id_))
        if child is not None and child.state != ACTIVE and child.parent == head.n:
            found.append(child)
    return found


def remove_hard(work: Work, heads: Sequence[Head]) -> Plan[None]:
    """Delete jobs without events.

    A parent in the same queue whose last pending child goes is deleted too, and so on upwards; one in another queue is made
    ready (wire format §9.6).
    """
    yield from adding.drop_keys(heads)
    yield from delete(work, heads)
    for head in heads:
        number = head.parent
        if number is None:
            continue
        queue = yield from work.numbered(head.q)
        if not (yield from flows.is_pending(number, queue.name, head.id)):
            continue
        yield from flows.forget(number, queue.name, head.id)
        parent = yield from head_by_number(number)
        if parent is None or parent.state != PARKED or parent.pending > 0:
            continue
        if parent.q == head.q:
            yield from remove_hard(work, [parent])
        else:
            yield from flows.release(work, parent._replace(delay=0), silent=True)
