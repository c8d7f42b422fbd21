"""Settling and claiming: one script, and the sleep that may go before it."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from workers_module.job.state import JobState
from workers_module.store.redis.asking import write_outcomes
from workers_module.store.redis.calls import Calls
from workers_module.store.redis.connect import Link, Links
from workers_module.store.redis.faults import said
from workers_module.store.redis.fields import Started, is_plain, read_plain, read_record
from workers_module.store.redis.peers import warning
from workers_module.store.redis.reading import CODES
from workers_module.store.redis.scripts import Argument, Command, script
from workers_module.store.redis.servers import Servers
from workers_module.store.values import Claimed, Held, Step, StepReply

BLOCK_SECONDS: Final = 10.0
"""How long a worker sleeps at most before it looks again, were all markers lost."""
SLACK_SECONDS: Final = 5.0
STEP: Final = script("step-2")
_LOOK_SECONDS: Final = 0.1
"""How often a server looks whose sleep is over; the longest sleeps may be longer by that."""
_ACTIVE: Final = JobState.ACTIVE
_PLAIN: Final = 1
"""The handle of a job whose hash had nothing but what every job has when it was claimed: it is settled with less."""
_SPURIOUS: Final = ("UNBLOCKED", "MOVED", "ASK", "TRYAGAIN")

_log = logging.getLogger(__name__)


class Stepper:
    """Builds the steps of one store, reads their replies, and remembers when time will bring work.

    Args:
        calls: The store's.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._wake_at: dict[str, float | None] = {}
        self._warned: set[str] = set()

    def command(self, req: Step) -> Command:
        """Return the call of the script."""
        rate = req.rate
        args: list[Argument] = [
            req.token,
            req.worker,
            req.take,
            req.lease_ms,
            "+".join(req.tags),
            "" if rate is None else rate.max,
            "" if rate is None else rate.window_ms,
            req.metrics,
            "1" if req.resume else "",
        ]
        write_outcomes(args, req.outcomes)
        return self._calls.command(STEP, req.queue, req.now, args)

    def reply(self, req: Step, reply: Sequence[Any]) -> StepReply:
        """Read what the script answered."""
        now, paused, wake_at, version, codes, jobs = reply
        instant = int(now)
        due = int(wake_at) if wake_at else None
        # By this machine's steady clock: what the server's says is compared with nothing but itself.
        self._wake_at[req.queue] = None if due is None else due - instant + time.monotonic() * 1_000
        if version:
            self._warn_once(version.decode())
        claimed: list[Claimed] = []
        queue, token, keys = req.queue, req.token, self._calls.keys
        texts = iter(jobs)
        for job in texts:
            plain = isinstance(job, bytes)
            if plain:
                id = job.decode()
                record = read_plain(queue, id, next(texts), next(texts), next(texts), next(texts), instant, req.worker)
            else:
                *flat, tags, raw, start = job
                id = raw.decode()
                started = Started(int(start), instant, req.worker) if start else None
                record = read_record(keys, queue, id, tags, _ACTIVE, flat, started=started)
                # One that is asked for again is what it was.
                plain = started is None and not tags and is_plain(record, flat)
            held: Held = tuple.__new__(Held, (id, token, record.fence, _PLAIN if plain else None))
            claimed.append(tuple.__new__(Claimed, (record, held)))
        return StepReply([CODES[code] for code in codes], claimed, due, paused == 1, instant)

    def _warn_once(self, version: str) -> None:
        if version not in self._warned:
            self._warned.add(version)
            _log.warning("%s", warning(version))

    def seconds_to_sleep(self, req: Step, seconds: float) -> float:
        """Return how long to sleep at most: not past the next moment at which time brings work."""
        return min(seconds, BLOCK_SECONDS, self._seconds_to_due(req))

    def _seconds_to_due(self, req: Step) -> float:
        due = self._wake_at.get(req.queue)
        if due is None or self._calls.clock is not None or req.now is not None:
            return math.inf
        # One more, for the part of a millisecond that the server's clock does not show: nothing starts early.
        return (due - time.monotonic() * 1_000 + 1) / 1_000

    async def sleep(self, servers: Servers, links: Links, link: Link, req: Step, seconds: float) -> StepReply:
        """Sleep over a connection until a marker comes, at most so long, and do ``req`` right behind."""
        sleep: list[Command] = []
        if seconds > 0:
            keys = self._calls.keys.markers(req.queue, req.tags)
            sleep = [("BZPOPMIN", *keys, f"{max(seconds, 0.002):.3f}")]
        if sleep and self._calls.clock is not None:
            # A clock that is moved meanwhile must not leave a claim of an earlier time behind.
            self._check_marker(servers, links, await link.ask(sleep, seconds + SLACK_SECONDS))
            sleep = []
        command = self.command(req)
        alarm = links.alarm(await link.id(), seconds) if sleep and seconds < BLOCK_SECONDS - _LOOK_SECONDS else None
        try:
            *marker, reply = await link.ask([*sleep, command], seconds + SLACK_SECONDS)
        finally:
            if alarm is not None:
                alarm.cancel()
        self._check_marker(servers, links, marker)
        if isinstance(reply, Exception):
            reply = await servers.repeat(links, STEP, command, reply)
        return self.reply(req, servers.answer(reply, links))

    def _check_marker(self, servers: Servers, links: Links, replies: Sequence[Any]) -> None:
        for reply in replies:
            # A sleep ended by force, or on a node that the queue has left: the claim behind it tells.
            if isinstance(reply, Exception) and not said(reply).startswith(_SPURIOUS):
                servers.refuse(reply, links)
