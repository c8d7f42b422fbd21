"""Places where one job at a time runs, apart from the loop that feeds them; and the runner that hands them out."""

import asyncio
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import ClassVar, Final, TypeVar

import anyio

from workers_module.errors import ConfigurationError, JobCrashedError, LeaseLostError, WorkersError
from workers_module.job.encoding import decode
from workers_module.job.record import JobRecord
from workers_module.store.base import Store
from workers_module.store.values import Child, EditResult, Page
from workers_module.worker.context import JobContext
from workers_module.worker.messages import Order
from workers_module.worker.verdict import timed_out

R = TypeVar("R")

_log = logging.getLogger(__name__)

START_S: Final = 60.0
"""So long may an application take to be built in a place."""
LAST_S: Final = 1.0
"""So long is waited for what should be over at once."""
_LOOK_S: Final = 1.0


# --- what a run asks of the worker ----------------------------------------------------------------------------------


class Errands:
    """Does for a run in a sandbox what needs the store; in the worker's loop."""

    def __init__(self, store: Store, context: JobContext, record: JobRecord) -> None:
        self._store = store
        self.context = context
        self.record = record

    async def progress(self, value: bytes) -> EditResult:
        """Store and announce how far the job is."""
        try:
            await self.context.update_progress(decode(value, None))
        except LeaseLostError:
            return EditResult.LEASE_LOST
        return EditResult.OK

    async def children(self, start: int, limit: int) -> Page[Child]:
        """Read a piece of the list of the job's children."""
        return await self._store.children(self.record.queue, self.record.id, start=start, limit=limit)

    async def jobs(self, queue: str, ids: Sequence[str]) -> list[JobRecord | None]:
        """Read jobs by id, without their payloads."""
        return await self._store.get(queue, ids, payload=False)


# --- places ---------------------------------------------------------------------------------------------------------


class Gone(Exception):  # noqa: N818 - a word between runner and place; nobody else ever gets it
    """A place was lost before the job began in it."""


class Place(ABC):
    """Where one job at a time runs.

    Attributes:
        survives_cancel: Whether it is as good as new after a job in it was stopped and has ended.
        alive: Whether it can take a job.
        gone: Done when nothing of it is left, or when it was left to itself.
    """

    survives_cancel: ClassVar[bool]

    def __init__(self) -> None:
        self.alive = True
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @abstractmethod
    async def open(self) -> None:
        """Build the application in it."""

    @abstractmethod
    def start(self, order: Order, errands: Errands) -> "asyncio.Future[bytes]":
        """Start a job; the future has its result as JSON, or its error. `Gone`: it was never begun."""

    @abstractmethod
    def cancel(self) -> None:
        """Ask the job that runs to stop."""

    @abstractmethod
    def doubt(self, value: bool) -> None:
        """Tell the job that runs whether its lease is in doubt."""

    @abstractmethod
    def leave(self) -> None:
        """Ask the place to close what it built and end."""

    @abstractmethod
    def kill(self) -> None:
        """Give the place up at once, with what runs in it; repeatable."""


class Runner(ABC):
    """Keeps the places of one kind, opened as they are needed, and gives each job one of its own."""

    def __init__(
        self, store: Store, size: int | None, kill_after_ms: int, max_bytes: int, *, capture_logging: bool
    ) -> None:
        self.size = size if size is not None else os.cpu_count() or 1
        if self.size < 1:
            raise ConfigurationError(f"a sandbox of {self.size} places runs nothing; give it one or more")
        self._store = store
        self._kill_after = kill_after_ms / 1000
        self._max_bytes = max_bytes
        self._capture_logging = capture_logging
        self._free = anyio.Semaphore(self.size)
        self._places: set[Place] = set()
        self._idle: list[Place] = []
        self._opening: set[asyncio.Task[Place]] = set()
        self._unclaimed: list[asyncio.Task[Place]] = []
        self._number = 0
        self._closed = False

    @abstractmethod
    def _make(self) -> Place: ...

    async def run(self, record: JobRecord, context: JobContext, timeout_ms: int | None) -> bytes:
        """Run a job in a place of its own, and return its result as JSON.

        It waits for a place while all are taken. Cancelling it stops the handler: what that opened has
        ``kill_after`` to be closed, then the place is given up.

        Args:
            record: The job.
            context: What it says goes here.
            timeout_ms: Its limit, counted from its start in the place.

        Raises:
            JobTimeoutError: It passed its limit.
            JobCrashedError: The process it ran in died; the text names the exit status.
            RemoteError: It failed in a child; or what it raised itself, in a thread.
            UnrecoverableError: It will not succeed.
            RetryLaterError: Not now.
        """
        self._number += 1
        order = Order(
            number=self._number,
            record=record,
            timeout_ms=timeout_ms,
            max_bytes=self._max_bytes,
            capture_logging=self._capture_logging,
        )
        async with self._free:
            try:
                place = self._waiting()
                while place is not None:
                    # What died while it was idle is not this job's fault.
                    with suppress(Gone):
                        return await self._run_in(place, order, context)
                    place = self._waiting()
                return await self._run_in(await self._open(), order, context)
            except Gone as gone:
                raise JobCrashedError(f"{record.queue}.{record.name} did not start: {gone}", job_id=record.id) from None

    async def close(self) -> None:
        """End all places: each closes what it built, or is given up after ``kill_after``.

        Repeatable. To be called when no job is left; one that still runs is stopped, and fails.
        """
        self._closed = True
        for task in list(self._opening):
            task.cancel()
        places = list(self._places)
        try:
            for place in places:
                place.leave()
            with anyio.move_on_after(self._kill_after):
                await _all(place.gone for place in places)
        finally:
            for place in places:
                place.kill()
        with anyio.move_on_after(LAST_S):
            await _all(place.gone for place in places)
        if self._opening:
            await asyncio.wait(self._opening, timeout=LAST_S)

    def _waiting(self) -> Place | None:
        for opening in [one for one in self._unclaimed if one.done()]:
            self._unclaimed.remove(opening)
            error = None if opening.cancelled() else opening.exception()
            if error is not None:
                _log.warning("a place of the sandbox could not be opened: %s", error)
            elif not opening.cancelled():
                self._idle.append(opening.result())
        while self._idle:
            place = self._idle.pop()
            if place.alive:
                return place
        return None

    async def _open(self) -> Place:
        if self._closed:
            raise WorkersError("the worker is stopping; its sandboxes are closed")
        if self._unclaimed:
            opening = self._unclaimed.pop()
        else:
            opening = asyncio.create_task(self._opened())
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # It goes on opening: else jobs with a short limit would never find an open place.
            self._unclaimed.append(opening)
            raise

    async def _opened(self) -> Place:
        place = self._make()
        self._places.add(place)
        place.gone.add_done_callback(lambda _: self._places.discard(place))
        is_open = False
        try:
            with anyio.move_on_after(START_S):
                await place.open()
                is_open = True
        finally:
            if not is_open:
                place.kill()
        if not is_open:
            raise Gone(f"its sandbox was not ready in {START_S:g} s")
        return place

    async def _run_in(self, place: Place, order: Order, context: JobContext) -> bytes:
        try:
            ended = place.start(order, Errands(self._store, context, order.record))
        except BaseException:
            self._idle.append(place)
            raise
        try:
            in_time = await self._attend(place, ended, order, context)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._stop(place, ended)
            raise
        else:
            if not in_time:
                place.kill()
                _forget(ended)
                await self._bury(place)
                raise timed_out(order.record, order.timeout_ms or 0, None)
            return ended.result()
        finally:
            if place.alive and not self._closed:
                self._idle.append(place)

    async def _attend(self, place: Place, ended: "asyncio.Future[bytes]", order: Order, context: JobContext) -> bool:
        """Wait for the end of a run; False when it does not even answer to its limit."""
        limit = math.inf if order.timeout_ms is None else order.timeout_ms / 1000 + self._kill_after
        last = anyio.current_time() + limit
        doubt = False
        while not ended.done():
            left = last - anyio.current_time()
            if left <= 0:
                return False
            if context.lease_in_doubt is not doubt:
                doubt = context.lease_in_doubt
                place.doubt(doubt)
            await asyncio.wait({ended}, timeout=min(left, _LOOK_S))
        return True

    async def _stop(self, place: Place, ended: "asyncio.Future[bytes]") -> None:
        place.cancel()
        try:
            await asyncio.wait({ended}, timeout=self._kill_after)
        finally:
            if not (ended.done() and place.survives_cancel):
                place.kill()
            _forget(ended)
        await self._bury(place)

    async def _bury(self, place: Place) -> None:
        if not place.alive:
            await asyncio.wait({place.gone}, timeout=LAST_S)


async def _all(futures: "Iterable[asyncio.Future[None]]") -> None:
    for future in futures:
        await asyncio.shield(future)


def _forget(ended: "asyncio.Future[bytes]") -> None:
    if not ended.cancel() and not ended.cancelled():
        ended.exception()


def settle(future: "asyncio.Future[R]", value: R, error: BaseException | None = None) -> None:
    """Give a future its value or its error, unless it is done."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
