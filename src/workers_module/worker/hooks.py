"""Tells `@on_worker_event` and `@on_queue_event` methods what happened; what they do changes nothing for the job."""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import anyio

from workers_module.errors import StoreError
from workers_module.job.events import QUEUE_EVENTS, Event, QueueEvent, QueueEventName, WorkerEvent, WorkerEventName
from workers_module.store.base import Store
from workers_module.worker.handler import Listener

_log = logging.getLogger(__name__)


class Hooks:
    """Delivers events to listeners in the background.

    Events of one job in their order, different jobs at the same time.
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._by_name: dict[WorkerEventName, list[Listener]] = defaultdict(list)
        for listener in listeners:
            if listener.worker_event is not None:
                self._by_name[listener.worker_event].append(listener)
        self._wanted: dict[str, frozenset[WorkerEventName]] = {}
        self._last: dict[tuple[str, str | None], asyncio.Task[None]] = {}

    def wanted(self, queue: str) -> frozenset[WorkerEventName]:
        """Return the events of this queue that anybody listens to; looked at before an event is made."""
        names = self._wanted.get(queue)
        if names is None:
            names = self._wanted[queue] = frozenset(
                name
                for name, listeners in self._by_name.items()
                if any(_hears_queue(listener, queue) for listener in listeners)
            )
        return names

    def wants(self, name: WorkerEventName, queue: str) -> bool:
        """Whether anybody listens to this event of this queue."""
        return name in self.wanted(queue)

    def tell(self, event: WorkerEvent) -> None:
        """Have the listeners called, soon; must be called on the event loop."""
        listeners = self._matching(event)
        if not listeners:
            return
        key = _job_of(event)
        before = self._last.get(key)
        task = asyncio.get_running_loop().create_task(
            _after(before, listeners, event), name=f"listeners of {event.name}"
        )
        self._last[key] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self._last.get(key) is done:
                del self._last[key]

        task.add_done_callback(forget)

    async def deliver(self, event: WorkerEvent) -> None:
        """Call the listeners now, after those of the job's earlier events, and return when they are done."""
        listeners = self._matching(event)
        if listeners:
            await _after(self._last.get(_job_of(event)), listeners, event)

    async def idle(self) -> None:
        """Wait until every listener called so far is done."""
        while self._last:
            await asyncio.wait(list(self._last.values()))

    async def finish(self, timeout: float) -> None:
        """Wait until every listener called so far is done, at most ``timeout`` seconds; the rest is cancelled."""
        with anyio.move_on_after(timeout):
            await self.idle()
        for task in list(self._last.values()):
            task.cancel()

    def _matching(self, event: WorkerEvent) -> list[Listener]:
        listeners = self._by_name.get(event.name)
        return [listener for listener in listeners if _hears(listener, event)] if listeners else []


def _job_of(event: WorkerEvent) -> tuple[str, str | None]:
    return event.queue, event.job.id if event.job is not None else None


async def _after(before: asyncio.Task[None] | None, listeners: Sequence[Listener], event: WorkerEvent) -> None:
    if before is not None:
        await asyncio.wait([before])
    await _call_all(listeners, event)


async def _call_all(listeners: Sequence[Listener], event: WorkerEvent | QueueEvent) -> None:
    for listener in listeners:
        try:
            await listener.call(event)
        except Exception:
            _log.exception("listener %s failed on %s of queue %s", listener.label, event.name, event.queue)


def _hears(listener: Listener, event: WorkerEvent) -> bool:
    if not _hears_queue(listener, event.queue):
        return False
    if listener.jobs is None or event.job is None:
        return True
    return (event.queue, event.job.name) in listener.jobs or (event.queue, None) in listener.jobs


def _hears_queue(listener: Listener, queue: str) -> bool:
    return listener.queue is None or listener.queue == queue


class QueueEventFollower:
    """Follows one queue's stored events and calls its `@on_queue_event` listeners, in order."""

    def __init__(self, store: Store, queue: str, listeners: Iterable[Listener]) -> None:
        self._store = store
        self._queue = queue
        self._listeners: dict[QueueEventName, list[Listener]] = defaultdict(list)
        for listener in listeners:
            if listener.queue_event is not None and listener.queue in {None, queue}:
                self._listeners[listener.queue_event].append(listener)

    async def run(self) -> None:
        """Follow until cancelled; an outage of the store is waited out, and reading goes on where it stopped."""
        cursor: str | None = None
        pause = 0.1
        while True:
            try:
                async with self._store.events(self._queue, after=cursor) as batches:
                    async for batch in batches:
                        pause = 0.1
                        for event in batch.events:
                            await self._tell(event)
                        cursor = batch.cursor
            except StoreError as error:
                _log.warning("events of queue %s: %s; trying again in %.1f s", self._queue, error, pause)
                await anyio.sleep(pause)
                pause = min(pause * 2, 10.0)

    async def _tell(self, event: Event) -> None:
        if event.type not in QUEUE_EVENTS:
            return
        name = event.type
        listeners = self._listeners.get(name)
        if listeners:
            await _call_all(listeners, read_queue_event(self._queue, name, event))


def read_queue_event(queue: str, name: QueueEventName, event: Event) -> QueueEvent:
    """Return a stored event as listeners get it: results and progress decoded."""
    fields = event.fields
    return QueueEvent(
        name=name,
        queue=queue,
        job_id=event.job_id,
        result=_decoded(fields.get("returnvalue")),
        error=fields.get("failedReason"),
        progress=_decoded(fields.get("data")),
    )


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
