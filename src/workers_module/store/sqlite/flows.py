"""Parents and children: what the end or the removal of a job does to the one that waits for it."""

from typing import Final

from workers_module.job.record import ChildPolicy, JobRecord
from workers_module.job.state import JobState
from workers_module.store import planning
from workers_module.store.sqlite.rows import PART_RESULT, Head, head_by_id, head_by_number, show_state, update
from workers_module.store.sqlite.work import (
    ALL,
    COMPLETED,
    DELAYED,
    FAILED,
    FROM_CHILDREN,
    FROM_DELAYED,
    PARKED,
    READY,
    Plan,
    Work,
)

PENDING: Final = 0
PROCESSED: Final = 1
BROKEN: Final = 2
IGNORED: Final = 3

_FAIL_PARENT, _CONTINUE_PARENT, _IGNORE, _REMOVE = range(4)


def state_of(record: JobRecord) -> int | None:
    """Return what a job is to its parent; None when it left the list."""
    if record.state is JobState.COMPLETED:
        return PROCESSED
    if record.state is not JobState.FAILED:
        return PENDING
    if record.policy is ChildPolicy.REMOVE:
        return None
    return BROKEN if record.policy is ChildPolicy.FAIL_PARENT else IGNORED


def what_became(parent: int, queue: str, id_: str) -> Plan[int | None]:
    """Return what a parent knows of a child; None when it does not know it."""
    rows = yield "SELECT state FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?", (parent, queue, id_)
    return rows[0][0] if rows else None


def put(
    parent: int, queue: str, id_: str, state: int, *, value: bytes | None = None, reason: str | None = None
) -> Plan[None]:
    """Note what became of a child, known or new."""
    old = yield from what_became(parent, queue, id_)
    if old is None:
        yield (
            (
                "INSERT INTO wm_dep (parent, i, queue, id, state, value, reason) "
                "SELECT n, children, ?, ?, ?, ?, ? FROM wm_job WHERE n = ?"
            ),
            (queue, id_, state, value, reason, parent),
        )
    else:
        yield (
            "UPDATE wm_dep SET state = ?, value = ?, reason = ? WHERE parent = ? AND queue = ? AND id = ?",
            (state, value, reason, parent, queue, id_),
        )
    yield (
        "UPDATE wm_job SET children = children + ?, pending = pending + ?, broken = broken + ? WHERE n = ?",
        (
            1 if old is None else 0,
            (state == PENDING) - (old == PENDING),
            (state == BROKEN) - (old == BROKEN),
            parent,
        ),
    )


def adopt(parent: int, queue: str, child: Head) -> Plan[None]:
    """Make a stored job a child: a completed one hands its result over, any other is pending unless it is known."""
    if child.state == COMPLETED:
        result = yield from _result(child)
        yield from put(parent, queue, child.id, PROCESSED, value=result)
    elif (yield from what_became(parent, queue, child.id)) is None:
        yield from put(parent, queue, child.id, PENDING)


def _result(head: Head) -> Plan[bytes | None]:
    if head.big & (1 << PART_RESULT):
        rows = yield "SELECT value FROM wm_blob WHERE k = ?", (head.n * 8 + PART_RESULT,)
    else:
        rows = yield "SELECT result FROM wm_job WHERE n = ?", (head.n,)
    result: bytes | None = rows[0][0]
    return result


def living_parent(work: Work, child: Head) -> Plan[Head | None]:
    """Return the job that stands where the parent of another was, if there is one."""
    if child.parent_queue is None or child.parent_id is None:
        return None
    queue = yield from work.find(child.parent_queue)
    return None if queue is None else (yield from head_by_id(queue.q, child.parent_id))


def waiting_parent(work: Work, queue: str, child: Head) -> Plan[Head | None]:
    """Return the parent of a job, if that is pending there."""
    parent = yield from living_parent(work, child)
    if parent is None or (yield from what_became(parent.n, queue, child.id)) != PENDING:
        return None
    return parent


def child_completed(work: Work, queue: str, child: Head, result: bytes) -> Plan[None]:
    """Hand a child's result to its parent."""
    parent = yield from waiting_parent(work, queue, child)
    if parent is not None:
        yield from put(parent.n, queue, child.id, PROCESSED, value=result)
        yield from release_if_free(work, parent.n)


def child_failed(work: Work, queue: str, child: Head, reason: str) -> Plan[None]:
    """Let the final failure of a child have the effect its policy says (wire format §9.4)."""
    parent = yield from waiting_parent(work, queue, child)
    if parent is None:
        return
    if child.policy == _REMOVE:
        yield from forget(parent.n, queue, child.id)
        yield from release_if_free(work, parent.n)
    elif child.policy == _IGNORE:
        yield from put(parent.n, queue, child.id, IGNORED, reason=reason)
        yield from release_if_free(work, parent.n)
    elif child.policy == _CONTINUE_PARENT:
        yield from put(parent.n, queue, child.id, IGNORED, reason=reason)
        if parent.state == PARKED:
            yield from release(work, parent)
    else:
        yield from put(parent.n, queue, child.id, BROKEN, reason=reason)
        if parent.state not in {COMPLETED, FAILED}:
            yield from update(parent.n, deferred=planning.child_failed(queue, child.id))
        if parent.state == PARKED:
            yield from release(work, parent)
        elif parent.state == DELAYED:
            yield from release(work, parent._replace(delay=0))


def forget(parent: int, queue: str, id_: str) -> Plan[None]:
    """Take a pending child off its parent's list."""
    yield "DELETE FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?", (parent, queue, id_)
    yield "UPDATE wm_job SET pending = pending - 1 WHERE n = ?", (parent,)


def child_gone(work: Work, queue: str, child: Head) -> Plan[None]:
    """Take a job that is removed or detached off the list of the parent that waits for it.

    A parent that waits for nothing else is released.
    """
    parent = yield from waiting_parent(work, queue, child)
    if parent is not None:
        yield from forget(parent.n, queue, child.id)
        yield from release_if_free(work, parent.n)


def release_if_free(work: Work, number: int) -> Plan[None]:
    """Release a parent that waits for nothing any more."""
    parent = yield from head_by_number(number)
    if parent is not None and parent.state == PARKED and parent.pending == 0:
        yield from release(work, parent)


def release(work: Work, parent: Head, *, silent: bool = False) -> Plan[JobState]:
    """Make a parent ready, or delayed when it was added with a delay (wire format §9.3)."""
    queue = yield from work.numbered(parent.q)
    queue.count(parent.state, parent.priority, -1)
    if parent.delay > 0:
        due = work.now + parent.delay
        yield from update(parent.n, state=DELAYED, seq=queue.behind(), due=due, delay=0)
        queue.count(DELAYED, parent.priority, 1)
        if not silent:
            queue.events.append(("delayed", parent.id, {"delay": str(due)}))
        work.hint(queue, ALL)
        return JobState.DELAYED
    seq = queue.behind() if parent.priority > 0 else queue.ahead()
    yield from update(parent.n, state=READY, seq=seq, due=None, delay=0)
    queue.count(READY, parent.priority, 1)
    if not silent:
        prev = FROM_DELAYED if parent.state == DELAYED else FROM_CHILDREN
        queue.events.append(("waiting", parent.id, prev))
    work.hint(queue, 1)
    return show_state(READY, parent.priority)


def pend_again(work: Work, queue: str, child: Head) -> Plan[None]:
    """Put a retried child back among its parent's pending ones. A parent already released is not called back."""
    parent = yield from living_parent(work, child)
    if parent is not None and (yield from what_became(parent.n, queue, child.id)) is not None:
        yield from put(parent.n, queue, child.id, PENDING)
