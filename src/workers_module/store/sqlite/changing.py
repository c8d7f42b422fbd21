# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""Changes by people and faces: patches, moves, settings, whole queues."""

from collections.abc import Sequence
from typing import Final, Literal, assert_never

from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.planning import MAX_LOG_LINES, MAX_MOVED, MOVED_TO, cut_line
from workers_module.store.sqlite import adding, flows
from workers_module.store.sqlite.lists import lists_of
from workers_module.store.sqlite.removing import family_of, is_current, remove_hard, remove_soft
from workers_module.store.sqlite.rows import (
    PART_DATA,
    PART_OPTS,
    PART_PROGRESS,
    PART_REASON,
    PART_RESULT,
    PART_TRACE,
    RECORD,
    SELECT_HEADS,
    STATE_CODES,
    Head,
    head_by_id,
    head_by_number,
    head_of,
    heads_by_id,
    records,
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
    MANUAL,
    POLICY_CODES,
    READY,
    Many,
    Plan,
    Queue,
    Row,
    Work,
    trim_events,
)
from workers_module.store.values import (
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
        if head.state == READY and patch.priority != head.priority:
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
        values.update(parent_queue=None, parent_id=None)
    if values:
        yield from update(head.n, **values)
    if patch.detach:
        yield from flows.child_gone(work, queue.name, head)
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


def move(work: Work, name: str, selection: Selection, action: Action) -> Plan[list[str]]:
    """Do what `Store.move` says."""
    queue = yield from work.find(name)
    if isinstance(selection, ByIds):
        heads = yield from _by_ids(work, name, queue, selection, action)
    else:
        heads = [] if queue is None else (yield from _by_state(work, queue, selection, action))
    if queue is None or not heads:
        return []
    if isinstance(action, Remove) and action.hard and not any(head.parent_queue or head.children for head in heads):
        moved = yield from _fitting(work, heads, action)
        yield from remove_hard(work, moved)
    else:
        moved = []
        for head in heads:
            # An earlier one may have taken this one along, or changed it.
            now = yield from head_by_number(head.n)
            if now is not None and (yield from _may(work, now, action)):
                yield from _move(work, queue, now, action)
                moved.append(head)
    by_age = isinstance(selection, ByState) and selection.older_than is not None
    if moved and by_age and isinstance(action, Remove) and action.hard:
        queue.events.append(("cleaned", None, {"count": str(len(moved))}))
    return [head.id for head in moved]


def _fitting(work: Work, heads: Sequence[Head], action: Action) -> Plan[list[Head]]:
    fitting = list(heads)
    for head in heads:
        if not (yield from _may(work, head, action)):
            fitting.remove(head)
    return fitting


def _by_ids(work: Work, name: str, queue: Queue | None, selection: ByIds, action: Action) -> Plan[list[Head]]:
    found: dict[str, Head] = {}
    if queue is not None:
        found = yield from heads_by_id(queue.q, selection.ids)
    if len(selection.ids) == 1:
        only = found.get(selection.ids[0])
        if only is None:
            raise JobNotFoundError(name, selection.ids[0])
        if not (yield from _may(work, only, action)):
            raise IllegalMoveError(only.id, only.shown_state, MOVED_TO[type(action)])
    return [found[id_] for id_ in dict.fromkeys(selection.ids) if id_ in found][:MAX_MOVED]


def _by_state(work: Work, queue: Queue, selection: ByState, action: Action) -> Plan[list[Head]]:
    limit = min(selection.limit or MAX_MOVED, MAX_MOVED)
    condition, values = "", list[object]()
    if selection.older_than is not None:
        condition += " AND coalesce(ended, started, added) < ?"
        values.append(selection.older_than)
    if selection.names:
        condition += f" AND name IN ({', '.join('?' * len(selection.names))})"
        values += selection.names
    chosen: list[Head] = []
    for state in selection.states:
        for one in (yield from lists_of(work, queue, state)):
            start = 0
            while len(chosen) < limit:
                # Some that are found may not be moved, so that it takes another look behind them.
                rows = yield (
                    f"{SELECT_HEADS} WHERE {one.where}{condition} ORDER BY {one.order()} LIMIT ? OFFSET ?",
                    (*one.values, *values, limit, start),
                )
                for row in rows:
                    head = head_of(row)
                    if len(chosen) < limit and (yield from _may(work, head, action)):
                        chosen.append(head)
                start += len(rows)
                if len(rows) < limit:
                    break
    return chosen


def _may(work: Work, head: Head, action: Action) -> Plan[bool]:
    """Tell whether an action takes a job in its state."""
    match action:
        case Remove():
            if head.state == ACTIVE or (yield from is_current(head)):
                return False
            if action.hard or not action.children or not head.pending:
                return True
            family = yield from family_of(work, head)
            return all(one.state != ACTIVE for one in family)
        case RetryAgain():
            return head.state in _ENDED
        case Promote():
            return head.state == DELAYED
        case Fail():
            return head.state != ACTIVE and head.state not in _ENDED
        case _:
            assert_never(action)


def _move(work: Work, queue: Queue, head: Head, action: Action) -> Plan[None]:
    match action:
        case Remove():
            if action.hard:
                yield from remove_hard(work, [head])
            else:
                yield from remove_soft(work, head, children=action.children)
        case RetryAgain():
            yield from _retry(work, queue, head, reset=action.reset)
        case Promote():
            yield "UPDATE wm_job SET state = 1, seq = ?, due = NULL WHERE n = ?", (queue.behind(), head.n)
            queue.count(DELAYED, head.priority, -1)
            queue.count(READY, head.priority, 1)
            queue.events.append(("waiting", head.id, FROM_DELAYED))
            work.hint(queue, 1)
        case Fail():
            yield from _fail(work, queue, head, action)
        case _:
            assert_never(action)


def _retry(work: Work, queue: Queue, head: Head, *, reset: bool) -> Plan[None]:
    seq = queue.ahead() if head.lifo and head.priority == 0 else queue.behind()
    values: dict[str, object] = {"state": READY, "seq": seq, "ended": None, "started": None}
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
        yield from trim_events(queue)
    if patch.limit_for_ms is not None:
        queue.rate_used = MANUAL
        queue.rate_until = work.now + patch.limit_for_ms
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
        limited_until=queue.rate_until if queue.rate_used >= MANUAL and queue.rate_until > now else None,
    )


# --- whole queues -----------------------------------------------------------------------------------------------------

_BELONGINGS: Final = ("wm_event", "wm_dedup", "wm_metric")


def obliterate(work: Work, name: str, *, force: bool, limit: int) -> Plan[bool]:
    """Do what `Store.obliterate` says."""
    queue = yield from work.find(name)
    if queue is None:
        return True
    if queue.tally[ACTIVE] and not force:
        rows = yield "SELECT id FROM wm_job WHERE q = ? AND state = 3 ORDER BY seq LIMIT 1", (queue.q,)
        raise IllegalMoveError(rows[0][0], "active", MOVED_TO[Remove])
    yield "DELETE FROM wm_schedule WHERE q = ?", (queue.q,)
    left = max(1, limit)
    for state in JobState:
        for one in (yield from lists_of(work, queue, state)):
            rows = yield f"{SELECT_HEADS} WHERE {one.where} ORDER BY {one.order()} LIMIT ?", (*one.values, left)
            left -= len(rows)
            for row in rows:
                head = yield from head_by_number(row[0])
                if head is not None:
                    yield from remove_hard(work, [head])
    if any(queue.tally):
        return False
    for table in _BELONGINGS:
        yield f"DELETE FROM {table} WHERE q = ?", (queue.q,)
    queue.events.clear()
    queue.gone = 1
    queue.paused = queue.ids = 0
    queue.concurrency = queue.rate_max = queue.rate_ms = None
    queue.rate_used = queue.rate_until = 0
    queue.swept = -1
    queue.event_cap = QueueSettings().event_cap
    # A number that no event has: who followed this queue is told that there is a gap.
    queue.event_last += 1
    return True


_RESTORE: Final = (
    "INSERT INTO wm_job (n, q, state, tagset, priority, seq, due, ended, fence, attempts, max_attempts, crashes, "
    "added, started, lifo, on_crash, big, policy, parent_queue, parent_id, id, name, dedup, schedule, worker, "
    "deferred, reason, opts, progress, trace, result, data) "
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
    n = yield from work.ledger.numbers(len(records))
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
    for _, record in written:
        if record.parent is not None:
            yield from _tie_again(work, record)
    if any(record.state is JobState.WAITING_CHILDREN for _, record in written):
        yield from _reunite(work)
    for _, record in written:
        if record.dedup is not None and not record.state.ended:
            queue = yield from work.make(record.queue)
            yield (
                "INSERT OR IGNORE INTO wm_dedup (q, key, id) VALUES (?, ?, ?)",
                (queue.q, record.dedup, record.id),
            )
    return len(written)


def _restored(work: Work, record: JobRecord, n: int) -> Plan[Row]:
    queue = yield from work.make(record.queue)
    adding.note_id(queue, record.id)
    state = STATE_CODES[record.state]
    if state == ACTIVE:
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
        ended = record.finished if record.finished is not None else record.added
    due = None
    if state == DELAYED:
        due = record.due if record.due is not None else work.now
    return (
        n,
        queue.q,
        state,
        tagset,
        record.priority,
        queue.behind(),
        due,
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


def _tie_again(work: Work, record: JobRecord) -> Plan[None]:
    """Tie a restored child to its parent, if that is there and does not know it."""
    assert record.parent is not None
    queue = yield from work.find(record.parent.queue)
    parent = None if queue is None else (yield from head_by_id(queue.q, record.parent.id))
    state = flows.state_of(record)
    if parent is None or state is None:
        return
    if (yield from flows.what_became(parent.n, record.queue, record.id)) is None:
        value = record.result if state == flows.PROCESSED else None
        reason = record.reason if state in {flows.BROKEN, flows.IGNORED} else None
        yield from flows.put(parent.n, record.queue, record.id, state, value=value, reason=reason)


def _reunite(work: Work) -> Plan[None]:
    """Tie children that were restored earlier to parents restored now."""
    rows = yield (
        (
            f"SELECT q, {RECORD} FROM wm_job WHERE parent_queue IS NOT NULL AND EXISTS (SELECT 1 FROM wm_job p "
            "JOIN wm_queue pq ON pq.q = p.q "
            "WHERE pq.name = wm_job.parent_queue AND length(p.id) = length(wm_job.parent_id) "
            "AND p.id = wm_job.parent_id AND p.state = 6) ORDER BY n"
        ),
        (),
    )
    for row in rows:
        queue = yield from work.numbered(row[0])
        (record,) = yield from records(work, queue, [row[1:]])
        yield from _tie_again(work, record)
