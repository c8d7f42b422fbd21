# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""Jobs as rows: how they are read, written and deleted."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from workers_module.job.record import JobRecord, ParentRef
from workers_module.job.state import JobState
from workers_module.store.sqlite.damage import Shape
from workers_module.store.sqlite.work import (
    ACTIVE,
    BIG,
    COMPLETED,
    DELAYED,
    FAILED,
    PARKED,
    POLICIES,
    READY,
    Plan,
    Queue,
    Row,
    Rows,
    Work,
    chunks,
    marks,
    padded,
    with_ids,
)

STATES: Final[tuple[JobState, ...]] = (
    JobState.WAITING,
    JobState.WAITING,
    JobState.DELAYED,
    JobState.ACTIVE,
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.WAITING_CHILDREN,
)
STATE_CODES: Final = {
    JobState.WAITING: READY,
    JobState.PRIORITIZED: READY,
    JobState.DELAYED: DELAYED,
    JobState.ACTIVE: ACTIVE,
    JobState.COMPLETED: COMPLETED,
    JobState.FAILED: FAILED,
    JobState.WAITING_CHILDREN: PARKED,
}

PART_DATA, PART_OPTS, PART_PROGRESS, PART_TRACE, PART_RESULT, PART_REASON = range(6)
"""The parts of a job that may lie in the table of large values."""

RECORD: Final = (
    "n, id, name, state, data, opts, priority, tagset, attempts, max_attempts, crashes, fence, added, due, "
    "started, ended, lifo, on_crash, cancel, worker, parent_queue, policy, schedule, dedup, deferred, progress, "
    "reason, trace, result, parent_id, big"
)
RECORD_WITHOUT_DATA: Final = RECORD.replace("state, data,", "state, x'',")

_HEAD: Final = (
    "n, q, id, name, state, priority, tagset, seq, due, lease, lapsed, fence, token, attempts, max_attempts, crashes, "
    "delay, lifo, on_crash, big, logged, children, pending, broken, policy, parent_queue, parent_id, dedup, schedule, "
    "deferred, ended"
)
SELECT_HEADS: Final = f"SELECT {_HEAD} FROM wm_job"


RECORDS: Final = Shape(RECORD)
_HEADS: Final = Shape(_HEAD)


class Head(NamedTuple):
    """What decisions about a job need: everything but its texts."""

    n: int
    q: int
    id: str
    name: str
    state: int
    priority: int
    tagset: int
    seq: int
    due: int | None
    lease: int | None
    lapsed: int | None
    fence: int
    token: str | None
    attempts: int
    max_attempts: int
    crashes: int
    delay: int
    lifo: int
    on_crash: int
    big: int
    logged: int
    children: int
    pending: int
    broken: int
    policy: int
    parent_queue: str | None
    parent_id: str | None
    dedup: str | None
    schedule: str | None
    deferred: str | None
    ended: int | None

    @property
    def shown_state(self) -> JobState:
        """The state as people know it."""
        return show_state(self.state, self.priority)


def head_of(row: Row) -> Head:
    """Return a row of `SELECT_HEADS` columns as what it is; values that cannot be are replaced by harmless ones."""
    return Head._make(row if _HEADS.fits(row) else _HEADS.repaired(row))


def show_state(state: int, priority: int) -> JobState:
    """Return the state as people know it: prioritized is not the same as waiting."""
    if state == READY and priority > 0:
        return JobState.PRIORITIZED
    return STATES[state] if 0 <= state < len(STATES) else JobState.FAILED


def to_record(queue: str, row: Row, tagsets: Sequence[tuple[str, ...]]) -> JobRecord:
    """Turn a row of `RECORD` columns into a record. Large values must have been put in by `fill`."""
    (
        _,
        id_,
        name,
        state,
        data,
        opts,
        priority,
        tagset,
        attempts,
        max_attempts,
        crashes,
        fence,
        added,
        due,
        started,
        ended,
        lifo,
        on_crash,
        cancel,
        worker,
        parent_queue,
        policy,
        schedule,
        dedup,
        deferred,
        progress,
        reason,
        trace,
        result,
        parent_id,
        _,
    ) = row
    return JobRecord(
        queue,
        id_,
        name,
        show_state(state, priority),
        data,
        opts,
        priority,
        tagsets[tagset] if 0 <= tagset < len(tagsets) else (),
        attempts,
        max_attempts,
        crashes,
        fence,
        added,
        due,
        started,
        ended,
        lifo == 1,
        "fail" if on_crash else "retry",
        cancel == 1,
        worker,
        None if parent_queue is None else ParentRef(parent_queue, parent_id),
        POLICIES[policy],
        schedule,
        dedup,
        deferred,
        progress,
        reason,
        trace,
        result,
    )


# Where the parts lie in a row of `RECORD` columns.
_PLACES: Final = {PART_DATA: 4, PART_OPTS: 5, PART_PROGRESS: 25, PART_TRACE: 27, PART_RESULT: 28, PART_REASON: 26}


def fill(rows: Rows, *, payload: bool = True) -> Plan[Rows]:
    """Put the large values into rows of `RECORD` columns."""
    big = {row[0] for row in rows if row[-1]}
    if not big:
        return rows
    values: dict[int, bytes] = {}
    for piece in chunks(sorted(big)):
        keys = [n * 8 + part for n in piece for part in _PLACES if payload or part != PART_DATA]
        for some in chunks(keys):
            found = yield f"SELECT k, value FROM wm_blob WHERE k IN ({marks(len(some))})", padded(some)
            values.update(found)
    return [_filled(row, values) if row[-1] else row for row in rows]


def _filled(row: Row, values: dict[int, bytes]) -> Row:
    changed = list(row)
    for part, place in _PLACES.items():
        value = values.get(row[0] * 8 + part)
        if value is not None:
            changed[place] = value.decode("utf-8", "replace") if part == PART_REASON else value
    return tuple(changed)


def spill(
    n: int, big: int, part: int, value: bytes | None, *, empty: bytes | None = None
) -> Plan[tuple[bytes | None, int]]:
    """Put a value where it belongs by its size.

    Args:
        n: The job.
        big: Its mask of large parts, as it is.
        part: Which part.
        value: The new value.
        empty: What the row holds in place of a large value.

    Returns:
        What the row is to hold, and the new mask.
    """
    bit = 1 << part
    if value is not None and len(value) > BIG:
        yield "INSERT OR REPLACE INTO wm_blob (k, value) VALUES (?, ?)", (n * 8 + part, value)
        return empty, big | bit
    if big & bit:
        yield "DELETE FROM wm_blob WHERE k = ?", (n * 8 + part,)
    return value, big & ~bit


def spill_text(n: int, big: int, part: int, value: str | None) -> Plan[tuple[str | None, int]]:
    """Do what `spill` does, with text."""
    if value is None or len(value) <= BIG // 4:
        if big & (1 << part):
            yield "DELETE FROM wm_blob WHERE k = ?", (n * 8 + part,)
        return value, big & ~(1 << part)
    raw = value.encode()
    kept, big = yield from spill(n, big, part, raw)
    return (None if kept is None else value), big


def text(value: str) -> str:
    """Return text that can be stored: what is no character becomes a question mark."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()
    return value


def heads_by_id(q: int, ids: Iterable[str]) -> Plan[dict[str, Head]]:
    """Read jobs of a queue by id."""
    found: dict[str, Head] = {}
    for condition, values in with_ids(q, ids):
        rows = yield f"{SELECT_HEADS} WHERE {condition}", values
        for row in rows:
            found[row[2]] = head_of(row)
    return found


def head_by_id(q: int, id_: str) -> Plan[Head | None]:
    """Read one job of a queue by id."""
    return (yield from heads_by_id(q, (id_,))).get(id_)


def head_by_number(n: int) -> Plan[Head | None]:
    """Read one job by number."""
    rows = yield f"{SELECT_HEADS} WHERE n = ?", (n,)
    return head_of(rows[0]) if rows else None


def records(work: Work, queue: Queue, rows: Rows, *, payload: bool = True) -> Plan[list[JobRecord]]:
    """Turn rows of `RECORD` columns into records, with their large values."""
    rows = yield from fill(rows, payload=payload)
    tagsets = yield from work.tagsets.of(queue.q, queue.tagsets)
    name = queue.name
    return [to_record(name, row if RECORDS.fits(row) else RECORDS.repaired(row), tagsets) for row in rows]


def delete_rows(numbers: Sequence[int]) -> Plan[None]:
    """Delete the rows of jobs, and nothing that hangs on them."""
    for piece in chunks(numbers):
        yield f"DELETE FROM wm_job WHERE n IN ({marks(len(piece))})", padded(piece)


def delete_ended(queue: Queue, state: int, which: str, values: Sequence[Any]) -> Plan[int]:
    """Delete ended jobs, and how many; neither parents nor deduplication keys, and no events.

    Args:
        queue: Their queue.
        state: Their state.
        which: Which, from ``FROM`` on, and
        values: its parameters.
    """
    rows = yield (
        f"SELECT count(*), max(big <> 0 OR logged <> 0 OR children <> 0) FROM (SELECT big, logged, children {which})",
        values,
    )
    number: int = rows[0][0]
    if rows[0][1]:
        rows = yield f"SELECT n, big, logged, children {which}", values
        yield from delete_rows([row[0] for row in rows])
        yield from _delete_belongings([row for row in rows if row[1] or row[2] or row[3]])
    elif number:
        yield f"DELETE FROM wm_job WHERE n IN (SELECT n {which})", values
    queue.tally[state] -= number
    return number


def _delete_belongings(rows: Iterable[Row]) -> Plan[None]:
    for n, big, logged, children in rows:
        if big:
            yield "DELETE FROM wm_blob WHERE k BETWEEN ? AND ?", (n * 8, n * 8 + 7)
        if logged:
            yield "DELETE FROM wm_log WHERE n = ?", (n,)
        if children:
            yield "DELETE FROM wm_dep WHERE parent = ?", (n,)


def delete(work: Work, heads: Sequence[Head]) -> Plan[None]:
    """Delete jobs and all that hangs on them alone; neither parents nor deduplication keys, and no events."""
    for head in heads:
        queue = yield from work.numbered(head.q)
        queue.count(head.state, head.priority, -1)
    yield from delete_rows([head.n for head in heads])
    yield from _delete_belongings((head.n, head.big, head.logged, head.children) for head in heads)


def update(n: int, **values: Any) -> Plan[None]:
    """Write some columns of one job. The names come from this package alone."""
    columns = ", ".join(f"{name} = ?" for name in values)
    yield f"UPDATE wm_job SET {columns} WHERE n = ?", (*values.values(), n)
