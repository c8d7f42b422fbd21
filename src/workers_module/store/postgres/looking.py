"""Looking at jobs and queues."""

from collections.abc import Sequence
from typing import Any, Final

from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.postgres.calls import Calls
from workers_module.store.postgres.reading import SHOWN_CODES, to_stored
from workers_module.store.values import Child, Counts, Metrics, Page, Series

_CHILD_STATES: Final = ("pending", "processed", "failed", "ignored")


async def get(calls: Calls, queue: str, ids: Sequence[str], *, payload: bool) -> list[JobRecord | None]:
    """Do what `Store.get` says."""
    sql = calls.sql.get if payload else calls.sql.get_without_data
    rows = await calls.fetch(sql, queue, list(dict.fromkeys(ids)))
    found = {row["id"]: to_stored(queue, row) for row in rows}
    return [found.get(id_) for id_ in ids]


async def page(
    calls: Calls, queue: str, states: Sequence[JobState], *, start: int, limit: int, newest_first: bool
) -> Page[JobRecord]:
    """Do what `Store.page` says."""
    codes = [SHOWN_CODES[state] for state in states]
    rows = await calls.fetch(calls.sql.page, queue, codes, start, limit, newest_first)
    return Page([to_stored(queue, row) for row in rows if row["n"] is not None], rows[0]["total"])


async def counts(calls: Calls, queues: Sequence[str]) -> list[Counts]:
    """Do what `Store.counts` says."""
    found: dict[str, Counts] = {}
    for row in await calls.fetch(calls.sql.counts, list(queues)):
        name, paused, waiting, prioritized, delayed, active, completed, failed, parked = row
        found[name] = Counts(
            queue=name,
            waiting=waiting,
            prioritized=prioritized,
            delayed=delayed,
            active=active,
            completed=completed,
            failed=failed,
            waiting_children=parked,
            paused=paused,
        )
    return [found.get(name) or Counts(queue=name) for name in queues]


async def logs(calls: Calls, queue: str, id: str, *, start: int, limit: int) -> Page[str]:
    """Do what `Store.logs` says."""
    rows = await calls.fetch(calls.sql.logs, queue, id, max(0, limit), max(0, start))
    lines = [row["line"].decode() for row in rows if row["line"] is not None]
    return Page(lines, rows[0]["total"] if rows else 0)


async def children(calls: Calls, queue: str, id: str, *, start: int, limit: int) -> Page[Child]:
    """Do what `Store.children` says."""
    rows = await calls.fetch(calls.sql.children, queue, id, max(0, limit), max(0, start))
    found = [
        Child(
            row["queue"],
            row["id"],
            _CHILD_STATES[row["state"]],
            row["value"],
            None if row["reason"] is None else row["reason"].decode("utf-8", "replace"),
        )
        for row in rows
        if row["queue"] is not None
    ]
    return Page(found, rows[0]["total"] if rows else 0)


async def queues(calls: Calls) -> list[str]:
    """Do what `Store.queues` says."""
    return sorted(row["name"] for row in await calls.fetch(calls.sql.queues))


async def metrics(calls: Calls, queue: str, *, minutes: int) -> Metrics:
    """Do what `Store.metrics` says."""
    rows = await calls.fetch(calls.sql.metrics, queue)
    if not rows:
        return Metrics(Series(0, ()), Series(0, ()))
    now = calls.instant(None)
    this = (rows[0]["now"] if now is None else now) // 60_000
    return Metrics(_series(rows, 0, this, minutes), _series(rows, 1, this, minutes))


def _series(rows: Sequence[Any], kind: int, this: int, minutes: int) -> Series:
    numbers: dict[int, int] = {row["minute"]: row["num"] for row in rows if row["kind"] == kind}
    length = max(0, min(minutes, numbers.get(-3, 0), this - numbers.get(-2, this)))
    return Series(numbers.get(-1, 0), tuple(numbers.get(this - ago, 0) for ago in range(1, length + 1)))
