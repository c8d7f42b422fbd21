"""What a script answers, as values of the contract."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from workers_module.job.state import JobState
from workers_module.store.schedules import ScheduleDefinition, ScheduleRecord
from workers_module.store.values import Added, EditResult, Problem, RenewReply, Series, SettleCode

CODES: Final = (
    SettleCode.OK,
    SettleCode.MISSING,
    SettleCode.ALREADY,
    SettleCode.LEASE_LOST,
    SettleCode.PENDING,
    SettleCode.CHILD_FAILED,
    SettleCode.NOTHING_PENDING,
)
"""What ``step-2.lua`` did with an outcome, by its number."""
EDITED: Final = (EditResult.OK, EditResult.MISSING, EditResult.LEASE_LOST, EditResult.WRONG_STATE)
"""What ``edit-2.lua`` did with a patch, by its number."""
EXISTING: Final[dict[bytes, Literal["same_id", "deduplicated"] | None]] = {
    b"": None,
    b"same_id": "same_id",
    b"deduplicated": "deduplicated",
}
CHILD_STATES: Final[dict[bytes, Literal["pending", "processed", "failed", "ignored"]]] = {
    b"pending": "pending",
    b"processed": "processed",
    b"failed": "failed",
    b"ignored": "ignored",
}


def texts(raws: Iterable[bytes]) -> tuple[str, ...]:
    """Return several stored texts."""
    return tuple(raw.decode("utf-8", "replace") for raw in raws)


def to_text(raw: bytes) -> str:
    """Return stored text; what is no UTF-8 in it is replaced."""
    return raw.decode("utf-8", "replace")


def read_added(one: Any) -> Added:
    """Read what ``add-2.lua`` did with a job."""
    if isinstance(one, bytes):
        return Added(one.decode(), JobState.WAITING, None)
    id, state, existing = one
    return Added(id.decode(), JobState(state.decode()), EXISTING[existing])


def read_problem(row: Sequence[bytes]) -> Problem:
    """Read what ``verify-2.lua`` found."""
    what, id, said = map(to_text, row)
    return Problem(what, id or None, said)


def read_renewal(reply: Any) -> RenewReply:
    """Read what ``renew-2.lua`` answers."""
    lost, cancelled = reply
    return RenewReply(texts(lost), texts(cancelled))


def read_schedule(queue: str, row: Sequence[Any]) -> ScheduleRecord:
    """Read a schedule as ``read-2.lua`` answers it, whoever wrote it."""
    id, slot, state, flat = row
    it = iter(flat)
    h: dict[bytes, bytes] = dict(zip(it, it, strict=False))

    def number(name: bytes) -> int | None:
        value = h.get(name)
        return int(value) if value is not None and value.lstrip(b"-").isdigit() else None

    def words(name: bytes) -> str | None:
        value = h.get(name)
        return None if value is None else to_text(value)

    definition = ScheduleDefinition(
        name=words(b"name") or to_text(id),
        pattern=words(b"pattern"),
        every_ms=number(b"every"),
        # A phase that the first slot gave is only written for Node; the definition names none.
        offset_ms=0 if b"wm:phase" in h else number(b"offset") or 0,
        tz=words(b"tz"),
        start=number(b"startDate"),
        end=number(b"endDate"),
        limit=number(b"limit"),
        data=h.get(b"data", b"{}"),
        opts=h.get(b"opts", b"{}"),
        extra=h.get(b"wm:extra", b"{}"),
    )
    return ScheduleRecord(
        queue=queue,
        id=to_text(id),
        definition=definition,
        slot=int(slot),
        count=number(b"ic") or 0,
        paused=b"wm:paused" in h,
        job_state=JobState(state.decode()) if state else None,
    )


def read_series(row: Sequence[Any], minutes: int) -> Series:
    """Read a count of ended jobs, and the newest so many minutes of it, as ``read-2.lua`` answers it."""
    flat, numbers, now = row
    it = iter(flat)
    h: dict[bytes, bytes] = dict(zip(it, it, strict=False))
    total = int(h.get(b"count", 0))
    if b"prevTS" not in h:
        return Series(total, ())
    quiet = int(now) // 60_000 - int(h[b"prevTS"]) // 60_000
    per_minute = [int(one) for one in numbers]
    if quiet > 0:
        # What ended since the list was written belongs to the minute in which that was.
        per_minute = [*([0] * (quiet - 1)), total - int(h.get(b"prevCount", 0)), *per_minute]
    kept = int(h[b"wm:kept"]) if b"wm:kept" in h else len(per_minute)
    return Series(total, tuple(per_minute[: min(minutes, kept)]))
