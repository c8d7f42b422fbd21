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


def family_of(work: Work, head: Head) -> Plan[list[Head]]:
    """Return a job after its pending children, theirs before them."""
    family = {head.n: head}
    stack = [head]
    while stack:
        parent = stack.pop()
        if not parent.pending:
            continue
        rows = yield "SELECT queue, id FROM wm_dep WHERE parent = ? AND state = 0 ORDER BY i", (parent.n,)
        for name, id_ in rows:
            queue = yield from work.find(name)
            child = None if queue is None else (yield from head_by_id(queue.q, id_))
            if child is not None and child.n not in family:
                family[child.n] = child
                stack.append(child)
    return list(reversed(family.values()))


def remove_soft(work: Work, head: Head, *, children: bool) -> Plan[None]:
    """Delete a job, with its pending children when asked for, and tell it.

    A parent that waits for nothing else is released.
    """
    queue = yield from work.numbered(head.q)
    family = (yield from family_of(work, head)) if children else [head]
    yield from flows.child_gone(work, queue.name, head)
    for one in family:
        own = yield from work.numbered(one.q)
        # Its parent's release may have changed it: a family can be tied to itself.
        now = yield from head_by_number(one.n)
        if now is not None:
            yield from adding.drop_keys([now])
            yield from delete(work, [now])
            own.events.append(("removed", one.id, came_from(one)))


def remove_hard(work: Work, heads: Sequence[Head]) -> Plan[None]:
    """Delete jobs without events.

    A parent in the same queue whose last pending child goes is deleted too, and so on upwards; one in another queue is
    made ready (wire format §9.6).
    """
    yield from adding.drop_keys(heads)
    yield from delete(work, heads)
    for head in heads:
        if head.parent_queue is None:
            continue
        queue = yield from work.numbered(head.q)
        parent = yield from flows.waiting_parent(work, queue.name, head)
        if parent is None:
            continue
        yield from flows.forget(parent.n, queue.name, head.id)
        if parent.state != PARKED or parent.pending > 1:
            continue
        if parent.q == head.q:
            yield from remove_hard(work, [parent._replace(pending=0)])
        else:
            yield from flows.release(work, parent, silent=True)
