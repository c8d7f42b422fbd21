"""Checking the invariants of a queue."""

from itertools import chain
from typing import Final

from workers_module.job.state import ALL_STATES
from workers_module.store.redis.calls import PIECE, Calls, pieces
from workers_module.store.redis.keys import described, glob
from workers_module.store.redis.reading import read_problem, to_text
from workers_module.store.redis.scripts import script
from workers_module.store.values import Problem

_VERIFY: Final = script("verify-2")


async def verify(calls: Calls, queue: str) -> list[Problem]:
    """Do what `Store.verify` says."""
    servers = calls.open_servers()
    tagsets = calls.declare(queue)[1]
    problems: list[Problem] = []
    for tags in ["", *sorted(map(to_text, await servers.ask(tagsets, ("SMEMBERS", tagsets))))]:
        for state in ALL_STATES:
            start = 0
            while True:
                number, found = await calls.call(_VERIFY, queue, None, tags, state.value, start, PIECE)
                problems += map(read_problem, found)
                start += PIECE
                if number < PIECE:
                    break
        for piece in pieces(await _hanging_keys(calls, queue, tags)):
            _, found = await calls.call(_VERIFY, queue, None, tags, "keys", *chain.from_iterable(piece))
            problems += map(read_problem, found)
    return problems


async def _hanging_keys(calls: Calls, queue: str, tags: str) -> list[tuple[str, str]]:
    """Return what of a queue's keys hangs on a job; see `described`."""
    links = await calls.open_servers().at(calls.keys.meta(queue))
    place = f"{queue}@{tags}" if tags else queue
    start = len(f"{calls.keys.head}{place}:")
    found = {key async for key in calls.scan(links, calls.keys.pattern(glob(place), "*"))}
    return sorted(one for key in found if (one := described(key[start:])))
