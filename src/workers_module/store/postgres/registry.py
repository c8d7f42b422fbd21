"""Named locks, and the workers that are alive."""

from contextlib import suppress
from dataclasses import replace
from typing import cast

from workers_module.errors import StoreCorruptError
from workers_module.store.codec import dump_worker, load_worker
from workers_module.store.postgres.calls import Calls
from workers_module.store.values import Beat, LockInfo, Order, WorkerInfo, WorkerOrder


async def lease(calls: Calls, name: str, owner: str, ttl_ms: int, *, fence: int | None, now: int | None) -> int | None:
    """Do what `Store.lease` says."""
    (row,) = await calls.fetch(calls.sql.lease, name, owner, ttl_ms, fence, calls.instant(now))
    held: int | None = row["fence"]
    return held


async def locks(calls: Calls) -> list[LockInfo]:
    """Do what `Store.locks` says."""
    return [LockInfo(*row) for row in await calls.fetch(calls.sql.locks, calls.instant(None))]


async def worker(calls: Calls, change: Beat | Order, *, now: int | None) -> WorkerOrder | None:
    """Do what `Store.worker` says."""
    instant = calls.instant(now)
    if isinstance(change, Order):
        await calls.fetch(calls.sql.worker, change.id, 0, None, change.order, instant)
        return None
    (row,) = await calls.fetch(calls.sql.worker, change.info.id, change.ttl_ms, dump_worker(change.info), None, instant)
    return cast("WorkerOrder | None", row["orders"])


async def workers(calls: Calls) -> list[WorkerInfo]:
    """Do what `Store.workers` says."""
    found: list[WorkerInfo] = []
    for row in await calls.fetch(calls.sql.workers, calls.instant(None)):
        # What one worker tells of itself must not hide the others.
        with suppress(StoreCorruptError):
            found.append(replace(load_worker(row["body"]), seen=row["seen"]))
    return found
