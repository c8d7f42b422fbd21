"""Changes by people and faces: patches, moves, settings, whole queues."""

from collections.abc import Sequence
from typing import Final, Literal, assert_never

from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.record import JobRecord
from workers_module.store.base import (
    UNSET,
    Action,
    ByIds,
    ByState,
    EditResult,
    Fail,
    JobPatch,
    Promote,
    QueuePatch,
    QueueSettings,
    RateLimit,
    Remove,
    RetryAgain,
    Selection,
)
from workers_module.store.planning import MAX_LOG_LINES, MAX_MOVED, cut_line
from workers_module.store.sqlite import adding, flows
from workers_module.store.sqlite.removing import is_current, remove_hard, remove_soft
from workers_module.store.sqlite.rows import (
    PART_DATA,
    PART_OPTS,
    PART_PROGRESS,
    PART_REASON,
    PART_RESULT,
    PART_TRACE,
    SELECT_HEADS,
    STATE_CODES,
    Head,
    head_by_id,
    heads_by_id,
    spill,
    spill_text,
    text,
    update,
)
from workers_module.store.sqlite.stepping import failure_values, is_held
from workers_module.store.sqlite.work import (
    ACTIVE,
    ALL,
    COMPLETED,
    DELAYED,
    FAILED,
    FROM_DELAYED,
    PARKED,
    POLICY_CODES,
    READY,
    Many,
    Plan,
    Queue,
    Row,
    Work,
)

# --- patches ----------------------------------------------------------------------------------------------------------


def edit(work: Work, name: str, patches: Sequence[JobPatch]) -> Plan[list[EditResult]]:
    """Do what `Store.edit` says."""
    queue = yield from work.find(name)
    results: list[EditResult] = []
    for patch in patches:
        head = None if queue is None else (yield from head_by_id(queue.q, patch.id))
        if queue is None or head is None:
            results.append(EditResult.MISSING)
        else:
            results.append((yield from _patch(work, queue, head, patch)))
    return results


def _patch(work: Work, queue: Queue, head: Head, patch: JobPatch) -> Plan[EditResult]:
    if patch.held is not None and not is_held(head, patch.held, work.now):
        return EditResult.LEASE_LOST
    if (patch.delay_ms is not None and head.state != DELAYED) or (patch.cancel and head.state != ACTIVE):
        return EditResult.WRONG_STATE
    values: dict[str, object] = {}
    big = head.big
    if patch.progress is not None:
        values["progress"], big = yield from spill(head.n, big, PART_PROGRESS, patch.progress)
        shown = patch.progress.decode("utf-8", "surrogateescape")
        queue.events.append(("progress", head.id, {"data": shown}))
    if patch.data is not None:
        values["data"], big = yield from spill(head.n, big, PART_DATA, patch.data, empty=b"")
    if big != head.big:
        values["big"] = big
    if patch.clear_logs or patch.log_lines or patch.keep_logs is not None:
        values["logged"] = yield from _log(head, patch)
    if patch.priority is not None:
        values["priority"] = patch.priority
        if head.state == READY:
            queue.count(READY, head.priority, -1)
            queue.count(READY, patch.priority, 1)
            values["seq"] = queue.ahead() if head.lifo else queue.behind()
    if patch.delay_ms is not None:
        due = work.now + patch.delay_ms
        values["due"] = due
        values["seq"] = queue.behind()
        queue.events.append(("delayed", head.id, {"delay": str(due)}))
        work.hint(queue, ALL)
    if patch.cancel:
        values["cancel"] = 1
    if patch.detach and head.parent_queue is not None:
        values.update(parent=None, parent_queue=None, parent_id=None)
    if values:
        yield from update(head.n, **values)
    if patch.detach and head.parent is not None and (yield from flows.is_pending(head.parent, queue.name, head.id)):
        yield from flows.forget(head.parent, queue.name, head.id)
        yield from flows.release_if_free(work, head.parent)
    return EditResult.OK


def _log(head: Head, patch: JobPatch) -> Plan[int]:
    last = head.logged
    if patch.clear_logs and last:
        yield "DELETE FROM wm_log WHERE n = ?", (head.n,)
        last = 0
    lines = patch.log_lines[-MAX_LOG_LINES:]
    if lines:
        rows = [(head.n, place, text(cut_line(line))) for place, line in enumerate(lines, last + 1)]
        yield Many("INSERT INTO wm_log (n, i, line) VALUES (?, ?, ?)", rows)
        last += len(lines)
    keep = MAX_LOG_LINES if patch.keep_logs is None else min(patch.keep_logs, MAX_LOG_LINES)
    if last > keep:
        yield "DELETE FROM wm_log WHERE n = ? AND i <= ?", (head.n, last - keep)
    return last


# --- moves ------------------------------------------------------------------------------------------------------------

_ENDED: Final = frozenset({COMPLETED, FAILED})
_UNSTARTED: Final = frozenset({READY, DELAYED, PARKED})
_ORDERS: Final = {
    READY: "state = 1",
    DELAYED: "state = 2",
    ACTIVE: "state = 3",
    COMPLETED: "state = 4 AND state IN (4, 5)",
    FAILED: "state = 5 AND state IN (4, 5)",
    PARKED: "state = 6",
}
ORDER_BY: Final = {
    READY: "tagset, priority, seq",
    DELAYED: "due, seq",
    ACTIVE: "seq",
    COMPLETED: "ended, seq",
    FAILED: "ended, seq",
    PARKED: "seq",
}


def where_state(state: int, *, prioritized: bool) -> str:
    """Return the condition for a state, written as the indexes have it."""
    if state != READY:
        return _ORDERS[state]
    return "state = 1 AND priority > 0" if prioritized else "state = 1 AND priority = 0"


def move(work: Work, name: str, selection: Selection, action: Action) -> Plan[list[str]]:
    """Do what `Store.move` says."""
    queue = yield from work.find(name)
    if queue is None:
        if isinstance(selection, ByIds) and len(selection.ids) == 1:
            raise JobNotFoundError(name, selection.ids[0])
        return []
    strict = isinstance(selection, ByIds) and len(selection.ids) == 1
    if isinstance(selection, ByIds):
        found = yield from heads_by_id(queue.q, selection.ids[:MAX_MOVED])
        heads = list(found.values()) if not found else [found[id_] for id_ in dict.fromkeys(selection.ids) if id_ in found]
        if strict and not heads:
            raise JobNotFoundError(name, selection.ids[0])
    else:
        heads = yield from _select(queue, selection, action)
    moved: list[str] = []
    fitting: list[Head] = []
    for head in heads:
        refusal = yield from _refusal(head, action)
        if refusal is None:
            fitting.append(head)
            moved.append(head.id)
        elif strict:
            raise IllegalMoveError(head.id, head.shown_state, refusal)
    match action:
        case Remove(hard=True):
            yield from _remove_all(work, fitting)
        case Remove():
            for head in fitting:
                # An earlier one may have taken it along.
                if (yield from head_by_id(queue.q, head.id)) is not None:
                    yield from remove_soft(work, head, children=action.children)
        case RetryAgain():
            for head in fitting:
                yield from _retry(work, queue, head, reset=action.reset)
        case Promote():
            yield from _promote(work, queue, fitting)
        case Fail():
            for head in fitting:
                yield from _fail(work, queue, head, action)
        case _:
            assert_never(action)
    return moved


def _remove_all(work: Work, heads: Sequence[Head]) -> Plan[None]:
    family = any(head.parent is not None or head.children for head in heads)
    if not family:
        yield from remove_hard(work, heads)
        return
    for head in heads:
        if (yield from head_by_id(head.q, head.id)) is not None:
            yield from remove_hard(work, [head])


def _refusal(head: Head, action: Action) -> Plan[str | None]:
    """Return what a job cannot become, or None when it can."""
    match action:
        case Remove():
            allowed = head.state != ACTIVE and not (yield from is_current(head))
            return None if allowed else "removed"
        case RetryAgain():
            return None if head.state in _ENDED else "waiting"
        case Promote():
            return None if head.state == DELAYED else "waiting"
        case Fail():
            return None if head.state in _UNSTARTED else "failed"
        case _:
            assert_never(action)


def _select(queue: Queue, selection: ByState, action: Action) -> Plan[list[Head]]:
    limit = min(selection.limit or MAX_MOVED, MAX_MOVED)
    found: list[Head] = []
    for state in dict.fromkeys(selection.states):
        code = STATE_CODES[state]
        conditions = [where_state(code, prioritized=state == "prioritized")]
        values: list[object] = [queue.q]
        if selection.older_than is not None:
            conditions.append("coalesce(ended, started, added) < ?")
            values.append(selection.older_than)
        if selection.names:
            conditions.append(f"name IN ({', '.join('?' * len(selection.names))})")
            values += selection.names
        if isinstance(action, Remove):
            # Those of a schedule's current slot are left out here, so that they do not use up the limit.
            conditions.append(
                "(schedule IS NULL OR NOT EXISTS (SELECT 1 FROM wm_schedule s WHERE s.q = wm_job.q AND s.id = wm_job.schedule "
                "AND wm_job.id = 'repeat:' || s.id || ':' || s.slot))"
            )
        values.append(limit - len(found))
        sql = f"{SELECT_HEADS} WHERE q = ? AND {' AND '.join(conditions)} ORDER BY {ORDER_BY[code]} LIMIT ?"
        rows = yield sql, values
        found += [Head(*row) for row in rows]
        if len(found) >= limit:
            break
    return found


def _retry(work: Work, queue: Queue, head: Head, *, reset: bool) -> Plan[None]:
    seq = queue.ahead() if head.lifo and head.priority == 0 else queue.behind()
    values: dict[str, object] = {"state": READY, "seq": seq, "ended": None, "started": None, "deferred": None}
    if reset:
        values["attempts"] = 0
    if head.state == FAILED:
        values["reason"], values["big"] = yield from spill_text(head.n, head.big, PART_REASON, None)
    else:
        values["result"], values["big"] = yield from spill(head.n, head.big, PART_RESULT, None)
    yield from update(head.n, **values)
    queue.count(head.state, head.priority, -1)
    queue.count(READY, head.priority, 1)
    yield from flows.pend_again(work, queue.name, head)
    queue.events.append(("waiting", head.id, {"prev": head.shown_state.value}))
    work.hint(queue, 1)


def _promote(work: Work, queue: Queue, heads: Sequence[Head]) -> Plan[None]:
    if not heads:
        return
    yield Many(
        "UPDATE wm_job SET state = 1, seq = ?, due = NULL WHERE n = ?", [(queue.behind(), head.n) for head in heads]
    )
    for head in heads:
        queue.count(DELAYED, head.priority, -1)
        queue.count(READY, head.priority, 1)
        queue.events.append(("waiting", head.id, FROM_DELAYED))
    work.hint(queue, len(heads))


def _fail(work: Work, queue: Queue, head: Head, action: Fail) -> Plan[None]:
    reason = text(action.reason)
    if head.dedup is not None:
        yield from adding.free_key(work, queue, head)
    yield from flows.child_failed(work, queue.name, head, reason)
    failure = yield from failure_values(head, reason, action.trace)
    yield from update(
        head.n,
        state=FAILED,
        ended=work.now,
        seq=queue.behind(),
        due=None,
        deferred=None,
        **failure,
    )
    queue.count(head.state, head.priority, -1)
    queue.count(FAILED, head.priority, 1)
    queue.events.append(("failed", head.id, {"failedReason": reason, "prev": head.shown_state.value}))
    if head.attempts >= head.max_attempts:
        queue.events.append(("retries-exhausted", head.id, {"attemptsMade": str(head.attempts)}))


# --- settings ---------------------------------------------------------------------------------------------------------


def configure(work: Work, name: str, patch: QueuePatch | None) -> Plan[QueueSettings]:
    """Do what `Store.configure` says."""
    if patch is None or patch == QueuePatch():
        queue = yield from work.find(name)
        return QueueSettings() if queue is None else settings_of(queue, work.now)
    queue = yield from work.make(name)
    if patch.paused is not None and patch.paused != (queue.paused == 1):
        queue.paused = 1 if patch.paused else 0
        queue.events.append(("paused" if patch.paused else "resumed", None, None))
        if not patch.paused:
            work.hint(queue, queue.ready or (ALL if queue.tally[DELAYED] else 0))
    if patch.concurrency is not UNSET:
        queue.concurrency = patch.concurrency
        work.hint(queue, queue.ready)
    if patch.rate is not UNSET:
        queue.rate_max, queue.rate_ms = (None, None) if patch.rate is None else (patch.rate.max, patch.rate.window_ms)
        work.hint(queue, queue.ready)
    if patch.event_cap is not None:
        queue.event_cap = patch.event_cap
        yield from work.trim_events(queue)
    if patch.limit_for_ms is not None:
        queue.limited_until = work.now + patch.limit_for_ms
        if patch.limit_for_ms == 0:
            work.hint(queue, queue.ready)
    if patch.free_dedup is not None:
        yield "DELETE FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, patch.free_dedup)
    return settings_of(queue, work.now)


def settings_of(queue: Queue, now: int) -> QueueSettings:
    """Return a queue's settings."""
    rate = None
    if queue.rate_max is not None and queue.rate_ms is not None:
        rate = RateLimit(queue.rate_max, queue.rate_ms)
    return QueueSettings(
        paused=queue.paused == 1,
        concurrency=queue.concurrency,
        rate=rate,
        event_cap=queue.event_cap,
        limited_until=queue.limited_until if queue.limited_until > now else None,
    )


# --- whole queues -----------------------------------------------------------------------------------------------------

_BELONGINGS: Final = ("wm_event", "wm_dedup", "wm_schedule", "wm_metric")


def obliterate(work: Work, name: str, *, force: bool, limit: int) -> Plan[bool]:
    """Do what `Store.obliterate` says."""
    queue = yield from work.find(name)
    if queue is None or queue.gone:
        return True
    if queue.tally[ACTIVE] and not force:
        rows = yield "SELECT id FROM wm_job WHERE q = ? AND state = 3 ORDER BY seq LIMIT 1", (queue.q,)
        raise IllegalMoveError(rows[0][0], "active", "removed")
    rows = yield f"{SELECT_HEADS} WHERE q = ? LIMIT ?", (queue.q, max(1, limit))
    yield from _remove_all(work, [Head(*row) for row in rows])
    queue.events.clear()
    if any(queue.tally):
        return False
    for table in _BELONGINGS:
        yield f"DELETE FROM {table} WHERE q = ?", (queue.q,)
    queue.gone = 1
    queue.paused = 0
    queue.concurrency = queue.rate_max = queue.rate_ms = None
    queue.rate_used = queue.rate_until = queue.limited_until = queue.swept = 0
    queue.event_cap = QueueSettings().event_cap
    return True


_RESTORE: Final = (
    "INSERT INTO wm_job (n, q, state, tagset, priority, seq, due, ended, fence, attempts, max_attempts, crashes, added, "
    "started, lifo, on_crash, big, policy, parent_queue, parent_id, id, name, dedup, schedule, worker, deferred, reason, opts, "
    "progress, trace, result, data) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def restore(work: Work, records: Sequence[JobRecord], on_conflict: Literal["skip", "error"]) -> Plan[int]:
    """Do what `Store.restore` says."""
    known: dict[str, set[str]] = {}
    for name in dict.fromkeys(record.queue for record in records):
        queue = yield from work.find(name)
        ids = [record.id for record in records if record.queue == name]
        known[name] = set() if queue is None else set((yield from heads_by_id(queue.q, ids)))
    written: list[tuple[int, JobRecord]] = []
    n = yield from adding.numbers(len(records))
    rows: list[Row] = []
    for record in records:
        if record.id in known[record.queue]:
            if on_conflict == "error":
                raise ConfigurationError(
                    f"queue {record.queue!r} already has a job {record.id!r}; nothing was written. "
                    "Skip those that exist, or remove them first"
                )
            continue
        known[record.queue].add(record.id)
        rows.append((yield from _restored(work, record, n)))
        written.append((n, record))
        n += 1
    if rows:
        yield Many(_RESTORE, rows)
    for number, record in written:
        if record.parent is not None:
            yield from _tie_again(work, number, record)
    for number, record in written:
        if record.dedup is not None and not record.state.ended:
            queue = yield from work.make(record.queue)
            yield (
                "INSERT OR IGNORE INTO wm_dedup (q, key, n, id) VALUES (?, ?, ?, ?)",
                (queue.q, record.dedup, number, record.id),
            )
    return len(written)


def _restored(work: Work, record: JobRecord, n: int) -> Plan[Row]:
    queue = yield from work.make(record.queue)
    adding.note_id(queue, record.id)
    state = STATE_CODES[record.state]
    if state == ACTIVE or (state == DELAYED and record.due is None):
        state = READY
    tagset = yield from work.tagsets.number(queue, record.tags)
    data, big = yield from spill(n, 0, PART_DATA, record.data, empty=b"")
    opts, big = yield from spill(n, big, PART_OPTS, record.opts, empty=b"")
    progress, big = yield from spill(n, big, PART_PROGRESS, record.progress)
    trace, big = yield from spill(n, big, PART_TRACE, record.trace)
    result, big = yield from spill(n, big, PART_RESULT, record.result)
    reason, big = yield from spill_text(n, big, PART_REASON, record.reason)
    queue.count(state, record.priority, 1)
    if state == READY:
        work.hint(queue, 1)
    elif state == DELAYED:
        work.hint(queue, ALL)
    ended = None
    if state in _ENDED:
        ended = record.finished if record.finished is not None else work.now
    return (
        n,
        queue.q,
        state,
        tagset,
        record.priority,
        queue.behind(),
        record.due if state == DELAYED else None,
        ended,
        record.fence,
        record.attempts_made,
        record.max_attempts,
        record.crashes,
        record.added,
        record.started,
        1 if record.lifo else 0,
        1 if record.on_crash == "fail" else 0,
        big,
        POLICY_CODES[record.policy],
        None if record.parent is None else record.parent.queue,
        None if record.parent is None else record.parent.id,
        record.id,
        record.name,
        record.dedup,
        record.schedule,
        record.worker,
        record.deferred,
        reason,
        opts,
        progress,
        trace,
        result,
        data,
    )


def _tie_again(work: Work, n: int, record: JobRecord) -> Plan[None]:
    """Tie a restored child to its parent, if that is there (restored before, or in the same call)."""
    assert record.parent is not None
    queue = yield from work.find(record.parent.queue)
    parent = None if queue is None else (yield from head_by_id(queue.q, record.parent.id))
    if parent is None:
        return
    yield from update(n, parent=parent.n)
    known = yield (
        "SELECT 1 FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?",
        (parent.n, record.queue, record.id),
    )
    if known:
        return
    state = flows.state_of(record)
    if state is None:
        return
    value = record.result if state == flows.PROCESSED else None
    reason = record.reason if state in {flows.BROKEN, flows.IGNORED} else None
    yield (
        "INSERT INTO wm_dep (parent, i, queue, id, state, value, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (parent.n, parent.children, record.queue, record.id, state, value, reason),
    )
    yield from update(
        parent.n,
        children=parent.children + 1,
        pending=parent.pending + (1 if state == flows.PENDING else 0),
        broken=parent.broken + (1 if state == flows.BROKEN else 0),
    )


