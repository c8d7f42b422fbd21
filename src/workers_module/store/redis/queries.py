"""Looking at jobs and queues; what is read has one script, which goes by the name of the question."""

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.redis.calls import READ, Calls, pieces
from workers_module.store.redis.fields import read_record
from workers_module.store.redis.keys import Keys, is_reserved
from workers_module.store.redis.reading import CHILD_STATES, read_series, to_text
from workers_module.store.values import Child, Counts, Metrics, Page

_SLOW_SECONDS: Final = 0.1
_LISTED_SECONDS: Final = 30.0
"""How long the names of queues are remembered, when finding them took long."""


async def get(calls: Calls, queue: str, ids: Sequence[str], *, payload: bool) -> list[JobRecord | None]:
    """Do what `Store.get` says."""
    known = [id for id in ids if not is_reserved(id)]
    found: dict[str, JobRecord] = {}
    for piece in pieces(known):
        for row in await calls.call(READ, queue, None, "get", "" if payload else "1", *piece):
            if row:
                record = _record(calls.keys, queue, row)
                found[record.id] = record
    calls.open_servers()
    return [found.get(id) for id in ids]


async def page(
    calls: Calls,
    queue: str,
    states: Sequence[JobState],
    *,
    start: int,
    limit: int,
    newest_first: bool,
) -> Page[JobRecord]:
    """Do what `Store.page` says."""
    total, rows = await calls.call(
        READ, queue, None, "page", start, limit, "1" if newest_first else "", *(state.value for state in states)
    )
    return Page([_record(calls.keys, queue, row) for row in rows if row[4]], total)


async def counts(calls: Calls, queues: Sequence[str]) -> list[Counts]:
    """Do what `Store.counts` says."""
    servers = calls.open_servers()
    if not queues:
        return []
    replies = [
        servers.answer(reply)
        for reply in await servers.call_all(READ, [calls.command(READ, queue, None, ["counts"]) for queue in queues])
    ]
    return [
        Counts(
            queue=queue,
            waiting=n[0],
            prioritized=n[1],
            delayed=n[2],
            active=n[3],
            completed=n[4],
            failed=n[5],
            waiting_children=n[6],
            paused=n[7] == 1,
        )
        for queue, n in zip(queues, replies, strict=True)
    ]


async def logs(calls: Calls, queue: str, id: str, *, start: int, limit: int) -> Page[str]:
    """Do what `Store.logs` says."""
    if is_reserved(id):
        return Page([], 0)
    total, lines = await calls.call(READ, queue, None, "logs", id, start, limit)
    return Page([to_text(line) for line in lines], total)


async def children(calls: Calls, queue: str, id: str, *, start: int, limit: int) -> Page[Child]:
    """Do what `Store.children` says."""
    if is_reserved(id):
        return Page([], 0)
    total, rows = await calls.call(READ, queue, None, "children", id, start, limit)
    items: list[Child] = []
    for key, state, value in rows:
        owner, child = calls.keys.queue_of(to_text(key)) or _foreign(to_text(key))
        what: Literal["pending", "processed", "failed", "ignored"] = CHILD_STATES[state]
        result = value if what == "processed" else None
        items.append(Child(owner, child, what, result, to_text(value) if what in {"failed", "ignored"} else None))
    return Page(items, total)


async def queues(calls: Calls) -> list[str]:
    """Do what `Store.queues` says."""
    if calls.listed is not None and time.monotonic() - calls.listed[0] < _LISTED_SECONDS:
        return list(calls.listed[1])
    began = time.monotonic()
    names: set[str] = set()
    for links in await calls.open_servers().each():
        found_here = calls.scan(links, calls.keys.pattern())
        names.update([name async for key in found_here if (name := calls.keys.listed(key))])
    found = sorted(names)
    took = time.monotonic() - began
    calls.listed = (time.monotonic(), found) if took > _SLOW_SECONDS else None
    return list(found)


async def metrics(calls: Calls, queue: str, *, minutes: int) -> Metrics:
    """Do what `Store.metrics` says."""
    completed, failed = await calls.call(READ, queue, None, "metrics")
    return Metrics(read_series(completed, minutes), read_series(failed, minutes))


def _record(keys: Keys, queue: str, row: Sequence[Any]) -> JobRecord:
    id, tags, state, due, flat = row
    return read_record(keys, queue, id.decode(), tags, JobState(state.decode()), flat, due=int(due) if due else None)


def _foreign(key: str) -> tuple[str, str]:
    place, _, id = key.rpartition(":")
    return place.rpartition(":")[2], id
