"""Parents and children: what the end or the removal of a job does to the one that waits for it."""

from typing import Final

from workers_module.job.record import ChildPolicy, JobRecord
from workers_module.job.state import JobState
from workers_module.store import planning
from workers_module.store.sqlite.rows import Head, head_by_number, show_state, update
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


def mark(
    parent: int, queue: str, id_: str, state: int, *, value: bytes | None = None, reason: str | None = None
) -> Plan[None]:
    """Note what became of a child that was pending."""
    yield (
        "UPDATE wm_dep SET state = ?, value = ?, reason = ? WHERE parent = ? AND queue = ? AND id = ?",
        (state, value, reason, parent, queue, id_),
    )
    yield (
        "UPDATE wm_job SET pending = pending - 1, broken = broken + ? WHERE n = ?",
        (1 if state == BROKEN else 0, parent),
    )


def is_pending(parent: int, queue: str, id_: str) -> Plan[bool]:
    """Tell whether a parent still waits for a child."""
    rows = yield "SELECT state FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?", (parent, queue, id_)
    return bool(rows) and rows[0][0] == PENDING


def child_completed(work: Work, queue: str, child: Head, result: bytes) -> Plan[None]:
    """Hand a child's result to its parent."""
    if child.parent is not None and (yield from is_pending(child.parent, queue, child.id)):
        yield from mark(child.parent, queue, child.id, PROCESSED, value=result)
        yield from release_if_free(work, child.parent)


def child_failed(work: Work, queue: str, child: Head, reason: str) -> Plan[None]:
    """Let the final failure of a child have the effect its policy says (wire format §9.4)."""
    number = child.parent
    if number is None or not (yield from is_pending(number, queue, child.id)):
        return
    if child.policy == _REMOVE:
        yield from forget(number, queue, child.id)
        yield from release_if_free(work, number)
    elif child.policy == _IGNORE:
        yield from mark(number, queue, child.id, IGNORED, reason=reason)
        yield from release_if_free(work, number)
    elif child.policy == _CONTINUE_PARENT:
        yield from mark(number, queue, child.id, IGNORED, reason=reason)
        parent = yield from head_by_number(number)
        if parent is not None and parent.state == PARKED:
            yield from release(work, parent)
    else:
        yield from mark(number, queue, child.id, BROKEN, reason=reason)
        parent = yield from head_by_number(number)
        if parent is None or parent.state in {COMPLETED, FAILED}:
            return
        yield from update(number, deferred=planning.child_failed(queue, child.id))
        if parent.state == PARKED:
            yield from release(work, parent)
        elif parent.state == DELAYED:
            yield from release(work, parent._replace(delay=0))


def forget(parent: int, queue: str, id_: str) -> Plan[None]:
    """Take a pending child off its parent's list."""
    yield "DELETE FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?", (parent, queue, id_)
    yield "UPDATE wm_job SET pending = pending - 1 WHERE n = ?", (parent,)


def release_if_free(work: Work, number: int) -> Plan[JobState | None]:
    """Release a parent that waits for nothing any more; its new state, or None when it stays."""
    parent = yield from head_by_number(number)
    if parent is None or parent.state != PARKED or parent.pending > 0:
        return None
    return (yield from release(work, parent))


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
    if child.parent is None or (yield from head_by_number(child.parent)) is None:
        return
    rows = yield (
        "SELECT state FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?",
        (child.parent, queue, child.id),
    )
    if not rows:
        # It left the list when it failed (policy "remove").
        yield (
            "INSERT INTO wm_dep (parent, i, queue, id) SELECT n, children, ?, ? FROM wm_job WHERE n = ?",
            (queue, child.id, child.parent),
        )
        yield "UPDATE wm_job SET children = children + 1, pending = pending + 1 WHERE n = ?", (child.parent,)
    elif rows[0][0] != PENDING:
        yield (
            "UPDATE wm_dep SET state = 0, value = NULL, reason = NULL WHERE parent = ? AND queue = ? AND id = ?",
            (child.parent, queue, child.id),
        )
        yield (
            "UPDATE wm_job SET pending = pending + 1, broken = broken - ? WHERE n = ?",
            (1 if rows[0][0] == BROKEN else 0, child.parent),
        )
