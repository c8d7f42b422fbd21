"""Named locks, and the workers that say they are there."""

from contextlib import suppress
from dataclasses import replace
from typing import Final, cast

from workers_module.errors import StoreCorruptError
from workers_module.store.codec import dump_worker, load_worker
from workers_module.store.sqlite.work import Plan, Work
from workers_module.store.values import Beat, LockInfo, Order, WorkerInfo, WorkerOrder

_FENCE: Final = "fence"


def lease(work: Work, name: str, owner: str, ttl_ms: int, fence: int | None) -> Plan[int | None]:
    """Do what `Store.lease` says.

    One counter gives all fences, so that they grow though rows of free locks are deleted.
    """
    now = work.now
    rows = yield "SELECT owner, fence, until FROM wm_lock WHERE name = ?", (name,)
    held = rows[0] if rows and rows[0][2] > now else None
    mine = held is not None and held[0] == owner and fence in {None, held[1]}
    if ttl_ms <= 0:
        if held is None or not mine:
            return None
        yield "DELETE FROM wm_lock WHERE name = ?", (name,)
        return cast("int", held[1])
    if held is not None:
        if not mine:
            return None
        yield "UPDATE wm_lock SET until = ? WHERE name = ?", (now + ttl_ms, name)
        return cast("int", held[1])
    if fence is not None:
        return None
    rows = yield "SELECT value FROM wm_meta WHERE key = ?", (_FENCE,)
    new = (int(rows[0][0]) if rows else 0) + 1
    yield "INSERT OR REPLACE INTO wm_meta (key, value) VALUES (?, ?)", (_FENCE, str(new))
    yield (
        "INSERT OR REPLACE INTO wm_lock (name, owner, fence, until) VALUES (?, ?, ?, ?)",
        (name, owner, new, now + ttl_ms),
    )
    return new


def locks(work: Work) -> Plan[list[LockInfo]]:
    """Do what `Store.locks` says."""
    rows = yield "SELECT name, owner, fence, until FROM wm_lock WHERE until > ? ORDER BY name", (work.now,)
    return [LockInfo(*row) for row in rows]


def worker(work: Work, change: Beat | Order) -> Plan[WorkerOrder | None]:
    """Do what `Store.worker` says. An order for a worker nobody has heard of is lost."""
    now = work.now
    if isinstance(change, Order):
        yield "UPDATE wm_worker SET orders = ? WHERE id = ?", (change.order, change.id)
        return None
    info = change.info
    yield "DELETE FROM wm_worker WHERE until <= ?", (now,)
    rows = yield "SELECT orders FROM wm_worker WHERE id = ?", (info.id,)
    if change.ttl_ms <= 0:
        yield "DELETE FROM wm_worker WHERE id = ?", (info.id,)
    else:
        yield (
            "INSERT OR REPLACE INTO wm_worker (id, until, seen, orders, body) VALUES (?, ?, ?, NULL, ?)",
            (info.id, now + change.ttl_ms, now, dump_worker(info)),
        )
    return cast("WorkerOrder | None", rows[0][0]) if rows else None


def workers(work: Work) -> Plan[list[WorkerInfo]]:
    """Do what `Store.workers` says."""
    rows = yield "SELECT seen, body FROM wm_worker WHERE until > ? ORDER BY id", (work.now,)
    found: list[WorkerInfo] = []
    for seen, body in rows:
        # What one worker tells of itself must not hide the others.
        with suppress(StoreCorruptError):
            found.append(replace(load_worker(body), seen=seen))
    return found
