# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""Reads: jobs, lists, counters, logs, events, and the check of everything."""

from collections.abc import Sequence
from typing import Final

from workers_module.errors import StoreCorruptError
from workers_module.job.events import Event, EventBatch, EventType
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.codec import load_events
from workers_module.store.sqlite.lists import lists_of
from workers_module.store.sqlite.rows import RECORD, RECORD_WITHOUT_DATA, STATE_CODES, head_by_id, records
from workers_module.store.sqlite.stepping import FIRST, KEPT, TOTAL
from workers_module.store.sqlite.work import (
    ACTIVE,
    COMPLETED,
    DELAYED,
    FAILED,
    PARKED,
    PRIORITIZED,
    READY,
    Plan,
    Queue,
    Row,
    Rows,
    Work,
    with_ids,
)
from workers_module.store.values import Child, Counts, Metrics, Page, Problem, Series

_CHILD_STATES: Final = ("pending", "processed", "failed", "ignored")
_EVENT_ROWS: Final = 200


def get(work: Work, name: str, ids: Sequence[str], *, payload: bool) -> Plan[list[JobRecord | None]]:
    """Do what `Store.get` says."""
    queue = yield from work.find(name)
    if queue is None:
        return [None] * len(ids)
    columns = RECORD if payload else RECORD_WITHOUT_DATA
    rows: Rows = []
    for condition, values in with_ids(queue.q, ids):
        rows += yield f"SELECT {columns} FROM wm_job WHERE {condition}", values
    found = {record.id: record for record in (yield from records(work, queue, rows, payload=payload))}
    return [found.get(id_) for id_ in ids]


def page(
    work: Work, name: str, states: Sequence[JobState], start: int, limit: int, *, newest_first: bool
) -> Plan[Page[JobRecord]]:
    """Do what `Store.page` says."""
    queue = yield from work.find(name)
    if queue is None:
        return Page([], 0)
    total = 0
    skip, wanted = max(0, start), max(0, limit)
    rows: Rows = []
    for state in states:
        size = queue.tally[PRIORITIZED if state is JobState.PRIORITIZED else STATE_CODES[state]]
        total += size
        if skip >= size:
            skip -= size
            continue
        lists = yield from lists_of(work, queue, state)
        for one in reversed(lists) if newest_first else lists:
            if wanted <= 0:
                break
            if skip and len(lists) > 1:
                sizes = yield f"SELECT count(*) FROM wm_job WHERE {one.where}", one.values
                if skip >= sizes[0][0]:
                    skip -= sizes[0][0]
                    continue
            sql = f"SELECT {RECORD} FROM wm_job WHERE {one.where} ORDER BY {one.order(newest_first)} LIMIT ? OFFSET ?"
            some = yield sql, (*one.values, wanted, skip)
            rows += some
            wanted -= len(some)
            skip = 0
    return Page((yield from records(work, queue, rows)), total)


def counts(work: Work, names: Sequence[str]) -> Plan[list[Counts]]:
    """Do what `Store.counts` says."""
    found: list[Counts] = []
    for name in names:
        queue = yield from work.find(name)
        if queue is None:
            found.append(Counts(queue=name))
            continue
        tally = queue.tally
        found.append(
            Counts(
                queue=name,
                waiting=tally[READY],
                prioritized=tally[PRIORITIZED],
                delayed=tally[DELAYED],
                active=tally[ACTIVE],
                completed=tally[COMPLETED],
                failed=tally[FAILED],
                waiting_children=tally[PARKED],
                paused=queue.paused == 1,
            )
        )
    return found


def _number(work: Work, name: str, id_: str) -> Plan[int | None]:
    queue = yield from work.find(name)
    if queue is None:
        return None
    head = yield from head_by_id(queue.q, id_)
    return None if head is None else head.n


def logs(work: Work, name: str, id_: str, start: int, limit: int) -> Plan[Page[str]]:
    """Do what `Store.logs` says."""
    n = yield from _number(work, name, id_)
    if n is None:
        return Page([], 0)
    total = yield "SELECT count(*) FROM wm_log WHERE n = ?", (n,)
    rows = yield "SELECT line FROM wm_log WHERE n = ? ORDER BY i LIMIT ? OFFSET ?", (n, max(0, limit), max(0, start))
    return Page([line for (line,) in rows], total[0][0])


def children(work: Work, name: str, id_: str, start: int, limit: int) -> Plan[Page[Child]]:
    """Do what `Store.children` says."""
    n = yield from _number(work, name, id_)
    if n is None:
        return Page([], 0)
    total = yield "SELECT count(*) FROM wm_dep WHERE parent = ?", (n,)
    rows = yield (
        "SELECT queue, id, state, value, reason FROM wm_dep WHERE parent = ? ORDER BY i LIMIT ? OFFSET ?",
        (n, max(0, limit), max(0, start)),
    )
    found = [Child(queue, id_, _CHILD_STATES[state], value, reason) for queue, id_, state, value, reason in rows]
    return Page(found, total[0][0])


def queues() -> Plan[list[str]]:
    """Do what `Store.queues` says."""
    rows = yield "SELECT name FROM wm_queue WHERE gone = 0", ()
    return sorted(name for (name,) in rows)


def metrics(work: Work, name: str, minutes: int) -> Plan[Metrics]:
    """Do what `Store.metrics` says."""
    queue = yield from work.find(name)
    if queue is None:
        return Metrics(Series(0, ()), Series(0, ()))
    both: list[Series] = []
    this = work.now // 60_000
    for kind in (0, 1):
        rows = yield "SELECT minute, num FROM wm_metric WHERE q = ? AND kind = ?", (queue.q, kind)
        numbers = dict[int, int](rows)
        length = max(0, min(minutes, numbers.get(KEPT, 0), this - numbers.get(FIRST, this)))
        per_minute = tuple(numbers.get(this - ago, 0) for ago in range(1, length + 1))
        both.append(Series(numbers.get(TOTAL, 0), per_minute))
    return Metrics(*both)


# --- events -----------------------------------------------------------------------------------------------------------


def newest_event(work: Work, name: str) -> Plan[int]:
    """Return the number of a queue's newest event; 0 when there is none."""
    queue = yield from work.find(name)
    return 0 if queue is None else queue.event_last


def events_after(work: Work, name: str, last: int) -> Plan[EventBatch | None]:
    """Return the events after a number; None when there are none."""
    queue = yield from work.find(name)
    if queue is None or queue.event_last == last:
        return None
    rows: Rows = []
    if queue.event_last > last:
        rows = yield (
            f"SELECT last, size, body FROM wm_event WHERE q = ? AND last > ? ORDER BY last LIMIT {_EVENT_ROWS}",
            (queue.q, last),
        )
    found: list[Event] = []
    if not rows or rows[0][0] - rows[0][1] > last:
        found.append(Event(EventType.GAP))
    for _, _, body in rows:
        try:
            found += load_events(body)
        except StoreCorruptError:
            found.append(Event(EventType.GAP))
    return EventBatch(str(rows[-1][0] if rows else queue.event_last), tuple(found))


# --- the check of everything ------------------------------------------------------------------------------------------

_CHECKS: Final = (
    ("I1", "state NOT BETWEEN 1 AND 6", "has an unknown state"),
    ("I1", "(state = 2) <> (due IS NOT NULL)", "has a due time and is not delayed, or the other way round"),
    ("I2", "state = 3 AND (token IS NULL OR lease IS NULL)", "is active without a lease"),
    (
        "I3",
        "state <> 3 AND (token IS NOT NULL OR lease IS NOT NULL OR lapsed IS NOT NULL)",
        "has a lease and is not active",
    ),
    ("I3", "state <> 3 AND cancel = 1", "is asked to stop and is not active"),
    ("I4", "state IN (4, 5) AND ended IS NULL", "has ended and has no end time"),
    ("I4", "state NOT IN (4, 5) AND ended IS NOT NULL", "has an end time and has not ended"),
    (
        "I5",
        (
            "(children > 0 OR pending <> 0) "
            "AND pending <> (SELECT count(*) FROM wm_dep d WHERE d.parent = wm_job.n AND d.state = 0)"
        ),
        "counts its pending children wrong",
    ),
    (
        "I5",
        (
            "(children > 0 OR broken <> 0) "
            "AND broken <> (SELECT count(*) FROM wm_dep d WHERE d.parent = wm_job.n AND d.state = 2)"
        ),
        "counts its failed children wrong",
    ),
    ("I6", "state = 6 AND pending = 0", "waits for children and none is pending"),
    (
        "I6",
        (
            "pending > 0 AND EXISTS (SELECT 1 FROM wm_dep d WHERE d.parent = wm_job.n AND d.state = 0 AND NOT EXISTS "
            "(SELECT 1 FROM wm_job c JOIN wm_queue cq ON cq.q = c.q WHERE cq.name = d.queue "
            "AND length(c.id) = length(d.id) AND c.id = d.id))"
        ),
        "waits for a child that is not there",
    ),
    (
        "I7",
        "tagset <> 0 AND NOT EXISTS (SELECT 1 FROM wm_tagset t WHERE t.q = wm_job.q AND t.id = wm_job.tagset)",
        "has tags that are not stored",
    ),
)
_ORPHANS: Final = (
    ("SELECT count(*) FROM wm_log WHERE NOT EXISTS (SELECT 1 FROM wm_job j WHERE j.n = wm_log.n)", "log lines"),
    ("SELECT count(*) FROM wm_dep WHERE NOT EXISTS (SELECT 1 FROM wm_job j WHERE j.n = wm_dep.parent)", "children"),
    (
        "SELECT count(*) FROM wm_blob WHERE NOT EXISTS (SELECT 1 FROM wm_job j WHERE j.n = wm_blob.k / 8)",
        "large values",
    ),
)
_PARTS: Final = ("data", "opts", "progress", "trace", "result", "reason")
_STATE_NAMES: Final = ("", "waiting", "delayed", "active", "completed", "failed", "waiting-children", "prioritized")


def verify(work: Work, name: str) -> Plan[list[Problem]]:
    """Do what `Store.verify` says."""
    queue = yield from work.find(name)
    problems: list[Problem] = []
    if queue is None:
        return problems
    for invariant, condition, words in _CHECKS:
        rows = yield f"SELECT id FROM wm_job WHERE q = ? AND {condition} ORDER BY n LIMIT 100", (queue.q,)
        problems += [Problem(invariant, id_, f"job {id_!r} {words}") for (id_,) in rows]
    problems += yield from _count_problems(queue)
    problems += yield from _key_problems(queue)
    rows = yield "SELECT n, id, big FROM wm_job WHERE q = ? AND big <> 0", (queue.q,)
    problems += yield from _blob_problems(rows)
    for sql, words in _ORPHANS:
        rows = yield sql, ()
        if rows[0][0]:
            problems.append(Problem("I7", None, f"{rows[0][0]} {words} belong to no job"))
    return problems


def _count_problems(queue: Queue) -> Plan[list[Problem]]:
    rows = yield (
        (
            "SELECT CASE WHEN state = 1 AND priority > 0 THEN 7 ELSE state END, count(*) FROM wm_job WHERE q = ? "
            "GROUP BY 1"
        ),
        (queue.q,),
    )
    found = dict[int, int](rows)
    problems: list[Problem] = []
    for state, counted in enumerate(queue.tally):
        if state and found.get(state, 0) != counted:
            text = f"the counter says {counted} {_STATE_NAMES[state]}, there are {found.get(state, 0)}"
            problems.append(Problem("I5", None, text))
    rows = yield "SELECT coalesce(max(last), 0) FROM wm_event WHERE q = ?", (queue.q,)
    if rows[0][0] > queue.event_last:
        problems.append(Problem("I5", None, f"event {rows[0][0]} is stored, the counter says {queue.event_last}"))
    return problems


def _key_problems(queue: Queue) -> Plan[list[Problem]]:
    problems: list[Problem] = []
    rows: list[Row] = yield (
        (
            "SELECT key, id FROM wm_dedup WHERE q = ? AND until IS NULL AND NOT EXISTS (SELECT 1 FROM wm_job j "
            "WHERE j.q = wm_dedup.q AND j.id = wm_dedup.id AND j.state NOT IN (4, 5))"
        ),
        (queue.q,),
    )
    for key, id_ in rows:
        problems.append(Problem("I7", id_, f"deduplication key {key!r} is held by {id_!r}, which ended or is gone"))
    return problems


def _blob_problems(jobs: Rows) -> Plan[list[Problem]]:
    problems: list[Problem] = []
    for n, id_, big in jobs:
        rows = yield "SELECT k FROM wm_blob WHERE k BETWEEN ? AND ?", (n * 8, n * 8 + 7)
        stored = {k - n * 8 for (k,) in rows}
        for part, word in enumerate(_PARTS):
            if (big >> part & 1) != (part in stored):
                problems.append(Problem("I1", id_, f"job {id_!r} has lost, or not given up, its large {word}"))
    return problems
