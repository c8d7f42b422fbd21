"""Rows as values of the contract."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from workers_module.job.events import Event
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef, Token
from workers_module.job.state import JobState
from workers_module.store.values import Claimed, Held, SettleCode

POLICIES: Final = (ChildPolicy.FAIL_PARENT, ChildPolicy.CONTINUE_PARENT, ChildPolicy.IGNORE, ChildPolicy.REMOVE)
POLICY_CODES: Final = {policy: code for code, policy in enumerate(POLICIES)}
SHOWN: Final = (
    JobState.FAILED,
    JobState.WAITING,
    JobState.DELAYED,
    JobState.ACTIVE,
    JobState.COMPLETED,
    JobState.FAILED,
    JobState.WAITING_CHILDREN,
    JobState.PRIORITIZED,
)
"""The states as people know them, by code."""
SHOWN_CODES: Final = {state: code for code, state in enumerate(SHOWN) if code}
SETTLED: Final = (
    SettleCode.OK,
    SettleCode.MISSING,
    SettleCode.ALREADY,
    SettleCode.LEASE_LOST,
    SettleCode.PENDING,
    SettleCode.CHILD_FAILED,
    SettleCode.NOTHING_PENDING,
)

RECORD: Final = [
    "n",
    "seq",
    "id",
    "name",
    "data",
    "opts",
    "priority",
    "tags",
    "attempts",
    "max_attempts",
    "crashes",
    "fence",
    "added",
    "started",
    "lifo",
    "on_crash",
    "cancel",
    "worker",
    "parent_queue",
    "parent_id",
    "policy",
    "schedule",
    "dedup",
    "deferred",
    "progress",
    "reason",
    "trace",
    "result",
]
"""The columns all rows of jobs begin with."""
_ACTIVE: Final = JobState.ACTIVE


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "replace")


def _tags(raw: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(raw) if raw else ()


def to_record(queue: str, row: tuple[Any, ...], state: JobState, due: int | None, ended: int | None) -> JobRecord:
    """Turn a row that begins with the `RECORD` columns into a record."""
    (
        _,
        _,
        id_,
        name,
        data,
        opts,
        priority,
        tags,
        attempts,
        max_attempts,
        crashes,
        fence,
        added,
        started,
        lifo,
        on_crash,
        cancel,
        worker,
        parent_queue,
        parent_id,
        policy,
        schedule,
        dedup,
        deferred,
        progress,
        reason,
        trace,
        result,
    ) = row[:28]
    # By position, and past the keyword handling of the class: one is made for each claim.
    return tuple.__new__(
        JobRecord,
        (
            queue,
            id_,
            name.decode(),
            state,
            data,
            opts,
            priority,
            _tags(tags),
            attempts,
            max_attempts,
            crashes,
            fence,
            added,
            due,
            started,
            ended,
            lifo,
            "fail" if on_crash else "retry",
            cancel,
            _text(worker),
            None if parent_queue is None else ParentRef(parent_queue, parent_id),
            POLICIES[policy] if 0 <= policy < len(POLICIES) else ChildPolicy.FAIL_PARENT,
            schedule,
            dedup,
            deferred,
            progress,
            _text(reason),
            trace,
            result,
        ),
    )


def to_stored(queue: str, row: Any) -> JobRecord:
    """Turn a row of `RECORD` columns, ``state``, ``due`` and ``ended`` into a record."""
    code = row["state"]
    state = JobState.PRIORITIZED if code == 1 and row["priority"] > 0 else SHOWN[code]
    return to_record(queue, tuple(row), state, row["due"], row["ended"])


def to_claims(queue: str, token: Token, rows: Sequence[Any]) -> list[Claimed]:
    """Turn claimed rows into claims, in the order they are to be started.

    The handle of a job whose end concerns no other, neither a parent nor a deduplication key, is where its row lies.
    """
    if len(rows) > 1:
        rows = sorted(rows, key=_seq)
    claims: list[Claimed] = []
    for row in rows:
        record = to_record(queue, tuple(row), _ACTIVE, None, None)
        handle: int | None = None
        if record.parent is None and record.dedup is None:
            page, line = row[0]
            handle = page << 16 | line
        claims.append(Claimed(record, Held(record.id, token, record.fence, handle)))
    return claims


def _seq(row: Any) -> int:
    place: int = row[1]
    return place


# What the first value of an event is called, and the second one; the first may be of any bytes.
_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "added": ("name", ""),
    "waiting": ("", "prev"),
    "delayed": ("delay", ""),
    "waiting-children": ("", "prev"),
    "active": ("", "prev"),
    "progress": ("data", ""),
    "completed": ("returnvalue", "prev"),
    "failed": ("failedReason", "prev"),
    "retries-exhausted": ("attemptsMade", ""),
    "removed": ("", "prev"),
    "cleaned": ("count", ""),
    "deduplicated": ("deduplicationId", "deduplicatedJobId"),
}


def to_event(kind: str, id_: str | None, first: bytes | None, second: str | None) -> Event:
    """Turn what an event was written as into the event."""
    one, two = _FIELDS.get(kind, ("", ""))
    fields: dict[str, str] = {}
    if first is not None and one:
        fields[one] = first.decode("utf-8", "surrogateescape")
    if second is not None and two:
        fields[two] = second
    return Event(kind, id_, fields)
