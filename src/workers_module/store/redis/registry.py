"""Named locks, and the workers that are alive."""

from dataclasses import replace
from typing import Final, assert_never

from workers_module.store.codec import dump_worker, load_worker
from workers_module.store.redis.calls import Calls
from workers_module.store.redis.peers import node_workers
from workers_module.store.redis.reading import to_text
from workers_module.store.redis.scripts import Argument, script
from workers_module.store.values import Beat, LockInfo, Order, WorkerInfo, WorkerOrder

_LEASE: Final = script("lease-1")
_WORKER: Final = script("worker-1")


async def lease(calls: Calls, name: str, owner: str, ttl_ms: int, *, fence: int | None, now: int | None) -> int | None:
    """Do what `Store.lease` says."""
    args = (calls.instant(now), name, owner, ttl_ms, "" if fence is None else fence)
    found: int = await calls.open_servers().call(_LEASE, _LEASE.command([calls.keys.locks], args))
    return None if found < 0 else found


async def locks(calls: Calls) -> list[LockInfo]:
    """Do what `Store.locks` says."""
    now, fields = await _hash_now(calls, calls.keys.locks)
    held: list[LockInfo] = []
    for field, value in fields:
        if field.startswith("l:"):
            until, fence, owner = value.split(":", 2)
            if int(until) > now:
                held.append(LockInfo(field[2:], owner, int(fence), int(until)))
    return sorted(held)


async def _hash_now(calls: Calls, key: str) -> tuple[int, list[tuple[str, str]]]:
    """Return a hash of ours, and what time it is."""
    flat = await calls.open_servers().ask(key, ("HGETALL", key))
    now = await calls.now()
    it = iter(flat)
    return now, [(to_text(field), to_text(value)) for field, value in zip(it, it, strict=False)]


async def worker(calls: Calls, change: Beat | Order, *, now: int | None) -> WorkerOrder | None:
    """Do what `Store.worker` says."""
    args: tuple[Argument, ...]
    match change:
        case Order(id, order):
            args = ("order", id, order)
        case Beat(info, ttl_ms):
            args = ("beat", info.id, ttl_ms, dump_worker(info))
        case _:
            assert_never(change)
    command = _WORKER.command([calls.keys.workers], (calls.instant(now), *args))
    left = await calls.open_servers().call(_WORKER, command)
    return "drain" if left == b"drain" else "stop" if left == b"stop" else None


async def workers(calls: Calls) -> list[WorkerInfo]:
    """Do what `Store.workers` says."""
    now, fields = await _hash_now(calls, calls.keys.workers)
    found: list[WorkerInfo] = []
    for field, value in sorted(fields):
        if field.startswith("w:"):
            until, seen, text = value.split(":", 2)
            if int(until) > now:
                found.append(replace(load_worker(text), seen=int(seen)))
    servers = calls.open_servers()
    own = tuple(found)
    for links in await servers.each():
        (reply,) = await servers.run(links, [("CLIENT", "LIST", "TYPE", "normal")])
        # Without the right to list clients, ours are all that can be told of.
        if not isinstance(reply, Exception):
            found += node_workers(calls.keys, to_text(reply), now, own)
    return found
