"""Changing jobs and queues in place, and deleting them."""

from collections.abc import Sequence
from typing import Final

from workers_module.errors import IllegalMoveError, JobNotFoundError
from workers_module.job.state import JobState
from workers_module.store.planning import MAX_MOVED, MOVED_TO
from workers_module.store.redis.asking import action_args, patch_args, write_patch
from workers_module.store.redis.calls import Calls, pieces
from workers_module.store.redis.fields import to_json
from workers_module.store.redis.keys import glob, is_reserved
from workers_module.store.redis.reading import EDITED, texts
from workers_module.store.redis.scripts import Argument, script
from workers_module.store.values import (
    Action,
    ByIds,
    EditResult,
    JobPatch,
    QueuePatch,
    QueueSettings,
    RateLimit,
    Remove,
    Selection,
)

_EDIT: Final = script("edit-2")
_MOVE: Final = script("move-2")
_CONFIGURE: Final = script("configure-2")
_OBLITERATE: Final = script("obliterate-2")


async def edit(calls: Calls, queue: str, patches: Sequence[JobPatch], *, now: int | None) -> list[EditResult]:
    """Do what `Store.edit` says."""
    results: list[EditResult] = []
    for piece in pieces(patches):
        args: list[Argument] = []
        for patch in piece:
            write_patch(args, patch)
        codes = await calls.call(_EDIT, queue, now, *args)
        results += [EDITED[code] for code in codes]
    calls.open_servers()
    return results


async def move(calls: Calls, queue: str, selection: Selection, action: Action, *, now: int | None) -> list[str]:
    """Do what `Store.move` says."""
    what = action_args(action)
    if isinstance(selection, ByIds):
        return await _move_ids(calls, queue, list(dict.fromkeys(selection.ids)), action, what, now)
    most = min(selection.limit or MAX_MOVED, MAX_MOVED)
    moved: list[str] = []
    chosen, at = 0, "1:0"
    while at and chosen < most:
        ids, number, after = await calls.call(
            _MOVE,
            queue,
            now,
            *what,
            "states",
            at,
            most - chosen,
            "" if selection.older_than is None else selection.older_than,
            len(selection.states),
            *(state.value for state in selection.states),
            *selection.names,
        )
        moved += texts(ids)
        chosen += number
        at = after.decode()
    return moved


async def _move_ids(
    calls: Calls, queue: str, ids: list[str], action: Action, what: Sequence[Argument], now: int | None
) -> list[str]:
    calls.open_servers()
    moved: list[str] = []
    known = [id for id in ids if not is_reserved(id)]
    if len(ids) == 1 and not known:
        raise JobNotFoundError(queue, ids[0])
    for piece in pieces(known[:MAX_MOVED]):
        done, state = await calls.call(_MOVE, queue, now, *what, "ids", *piece)
        if state and len(ids) == 1:
            if state == b"missing":
                raise JobNotFoundError(queue, ids[0])
            raise IllegalMoveError(ids[0], state.decode(), MOVED_TO[type(action)])
        moved += texts(done)
    return moved


async def configure(calls: Calls, queue: str, patch: QueuePatch | None, *, now: int | None) -> QueueSettings:
    """Do what `Store.configure` says."""
    text = ""
    if patch is not None and patch != QueuePatch():
        text = to_json(patch_args(patch))
        calls.listed = None
    paused, concurrency, most, window, cap, limited = await calls.call(_CONFIGURE, queue, now, text)
    rate = RateLimit(int(most), int(window or 0)) if most else None
    return QueueSettings(
        paused=paused == 1,
        concurrency=int(concurrency) if concurrency else None,
        rate=rate,
        event_cap=int(cap),
        limited_until=int(limited) if limited else None,
    )


async def obliterate(calls: Calls, queue: str, *, force: bool, limit: int) -> bool:
    """Do what `Store.obliterate` says."""
    calls.listed = None
    done = await calls.call(_OBLITERATE, queue, None, "1" if force else "", limit)
    if isinstance(done, bytes):
        raise IllegalMoveError(done.decode(), JobState.ACTIVE.value, MOVED_TO[Remove])
    if done != 1:
        return False
    # What hangs on no job any more: keys of deduplication that run out by themselves, and what other clients left.
    servers, name = calls.open_servers(), glob(queue)
    for owner in (name, f"{name}@*"):
        links = await servers.at(calls.keys.meta(queue))
        found = [key async for key in calls.scan(links, calls.keys.pattern(owner, "*"))]
        for piece in pieces(found):
            await servers.ask(piece[0], ("UNLINK", *piece))
    return True


async def drop(calls: Calls) -> None:
    """Delete every key under this store's prefix, whoever wrote it."""
    calls.listed = None
    servers = calls.open_servers()
    for links in await servers.each():
        found = [key async for key in calls.scan(links, calls.keys.pattern(suffix="*"))]
        for piece in pieces(found):
            for reply in await servers.run(links, [("UNLINK", key) for key in piece]):
                servers.answer(reply, links)
