"""Following a queue's events: its stream, and those of its jobs with tags.

A script reads what there is behind the cursor, in one look over all streams; XREAD only tells when to look again.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import anyio
from redis import exceptions as raised

from workers_module.errors import ConfigurationError, StoreDeniedError, StoreOutcomeUnknownError, StoreUnavailableError
from workers_module.job.events import Event, EventBatch, EventType
from workers_module.store.redis.calls import Calls
from workers_module.store.redis.connect import backoff
from workers_module.store.redis.faults import CutOffError
from workers_module.store.redis.keys import Keys
from workers_module.store.redis.scripts import Argument, Command, script
from workers_module.store.redis.servers import Servers

AT_ONCE: Final = 1_000
"""The most events of one stream in a batch."""
SLEEP_SECONDS: Final = 10.0
_SLACK_SECONDS: Final = 5.0
_READ: Final = script("events-2")
_PUBLISH: Final = script("publish-2")
_OWN: Final = "wm:"
"""What the types of events begin with that are only for readers of ours."""

Cursor = dict[str, str]
"""For each set of tags (joined; "" for the queue itself) the last id read."""


def read_cursor(text: str) -> Cursor:
    """Read what `write_cursor` wrote.

    Raises:
        ConfigurationError: It is no cursor of this kind of store.
    """
    try:
        found: Any = json.loads(text)
        if isinstance(found, dict) and all(map(_is_id, cast("Cursor", found).values())):
            return cast("Cursor", found)
    except ValueError:
        pass
    raise ConfigurationError(f"{text!r} is no cursor of a Redis store; pass the cursor of an EventBatch, or None")


def write_cursor(cursor: Mapping[str, str]) -> str:
    """Write a cursor as text."""
    return json.dumps(cursor, separators=(",", ":"))


class Follower:
    """Reads one queue's events.

    Args:
        servers: The store's.
        keys: The store's.
        queue: The queue.
        after: Where to go on; None to begin with what comes after `begin`.
    """

    def __init__(self, servers: Servers, keys: Keys, queue: str, after: str | None) -> None:
        self._servers = servers
        self._keys = keys
        self._queue = queue
        self._cursor: Cursor = {"": "$"} if after is None else read_cursor(after)

    async def begin(self) -> None:
        """Find out what the last event is, if nothing else was said."""
        if self._cursor == {"": "$"}:
            self._cursor = {_text(tags): _text(last) for tags, last, _, _ in await self._look()}

    async def batches(self) -> AsyncGenerator[EventBatch]:
        """Go through the events, a batch for each look that finds some; a lost connection is made anew."""
        failures = 0
        while True:
            try:
                found = await self._look()
                failures = 0
                events = self._take(found)
                if events:
                    yield EventBatch(write_cursor(self._cursor), tuple(events))
                    continue
                await self._sleep()
            except StoreDeniedError:
                raise
            except StoreUnavailableError:
                self._servers.check()
                await anyio.sleep(backoff(failures))
                failures += 1

    async def _look(self) -> list[Any]:
        args: list[Argument] = [self._keys.head, self._queue, "", AT_ONCE]
        for tags, last in self._cursor.items():
            args += (tags, last)
        found: list[Any] = await self._servers.call(_READ, _READ.command(self._keys.declared(self._queue), args))
        return found

    def _take(self, found: Sequence[Any]) -> list[Event]:
        events: list[Event] = []
        merged: list[tuple[tuple[int, bool, int], Event]] = []
        for tags, last, gap, entries in found:
            self._cursor[_text(tags)] = _text(last)
            if gap:
                events.append(Event(EventType.GAP))
            for id, flat in entries:
                event = _event(flat)
                if not event.type.startswith(_OWN):
                    ms, number = _order(id)
                    # Within a millisecond, what is told of the whole queue (drained, …) follows what of its jobs.
                    merged.append(((ms, not tags, number), event))
        merged.sort(key=lambda one: one[0])
        events.extend(event for _, event in merged)
        return events

    async def _sleep(self) -> None:
        name = self._keys.client_name(self._queue, "") + ":qe"
        streams = [self._keys.stream(self._queue, tags) for tags in self._cursor]
        links = await self._servers.at(streams[0])
        link = links.sleeper(name)
        try:
            command: Command = (
                "XREAD",
                "COUNT",
                1,
                "BLOCK",
                int(SLEEP_SECONDS * 1_000),
                "STREAMS",
                *streams,
                *self._cursor.values(),
            )
            (reply,) = await link.ask([command], SLEEP_SECONDS + _SLACK_SECONDS)
            # A stream that has moved is found by the next look.
            if not isinstance(reply, raised.AskError):
                self._servers.answer(reply, links)
        except StoreUnavailableError:
            self._servers.doubt()
            raise
        finally:
            await links.rest(name, link)


def _event(flat: Sequence[bytes]) -> Event:
    it = iter(flat)
    fields = {_text(name): _text(value) for name, value in zip(it, it, strict=False)}
    return Event(fields.pop("event", "unknown"), fields.pop("jobId", None), fields)


def _order(id: bytes) -> tuple[int, int]:
    ms, _, number = id.partition(b"-")
    return int(ms), int(number)


def _is_id(text: object) -> bool:
    if not isinstance(text, str):
        return False
    ms, _, number = text.partition("-")
    return ms.isdecimal() and number.isdecimal()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


@asynccontextmanager
async def following(calls: Calls, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
    """Do what `Store.events` says."""
    follower = Follower(calls.open_servers(), calls.keys, queue, after)
    await follower.begin()
    batches = follower.batches()
    try:
        yield batches
    finally:
        await batches.aclose()


async def publish(calls: Calls, queue: str, events: Sequence[Event]) -> None:
    """Do what `Store.publish` says."""
    args: list[Argument] = []
    for event in events:
        texts = [str(event.type)]
        if event.job_id is not None:
            texts += ("jobId", event.job_id)
        for name, value in event.fields.items():
            texts += (name, value)
        args += (len(texts), *texts)
    calls.open_servers()
    if not args:
        return
    try:
        await calls.call(_PUBLISH, queue, None, *args)
    except CutOffError as error:
        raise StoreOutcomeUnknownError(f"{error}; the events may or may not have been published") from error
