"""What a producer gets back for a job: its name in the store, and the way to its result.

All handles of a process share one `ResultWatcher`: it follows the events of each queue somebody waits for, once,
however many wait. Events are hints and may be missing, so whoever waits also looks at the job itself now and then.
"""

import asyncio
import contextvars
import logging
import random
import traceback
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import anyio

from workers_module.clock import Duration, duration_ms
from workers_module.errors import (
    IllegalMoveError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    StoreError,
    StoreUnavailableError,
)
from workers_module.job.encoding import decode
from workers_module.job.events import Event, EventType
from workers_module.job.failure import add_trace, failure_of, reason_of, trace_of
from workers_module.job.kind import JobKind
from workers_module.job.record import JobRecord
from workers_module.job.state import ENDED, JobState
from workers_module.store.base import Store
from workers_module.store.values import ByIds, EditResult, Fail, JobPatch

R_co = TypeVar("R_co", covariant=True)

_log = logging.getLogger(__name__)

_POLL_S: Final = 2.0
"""How often a waiter looks at the job itself, in case an event was missed."""
_GRACE_S: Final = 0.5
"""How long the event of a job that is gone may still be on its way."""
_REMEMBERED: Final = 1_000
"""So many ends are kept for jobs whose handle comes after their end,"""
_REMEMBERED_SIZE: Final = 16_777_216
"""as long as their results together have no more characters than this."""
_REMEMBERED_ERRORS: Final = 100
"""So many exceptions of failed jobs are kept."""
_CANCEL_TRIES: Final = 5


class JobHandle(Generic[R_co]):
    """One stored job, and the result it will have.

    Attributes:
        id: The job's id, unique in its queue.
        queue: The name of its queue.
        deduplicated: The call added no job: this is the one that was there, by its id or its deduplication key.
    """

    __slots__ = ("__weakref__", "_kind", "_ran", "_watcher", "deduplicated", "id", "queue")

    id: str
    queue: str
    deduplicated: bool

    def __init__(
        self,
        watcher: "ResultWatcher",
        queue: str,
        id: str,
        *,
        kind: JobKind | None = None,
        deduplicated: bool = False,
        ran: bytes | None = None,
    ) -> None:
        """Make a handle; the job is not looked at.

        Args:
            watcher: Knows when the job has ended.
            queue: The name of its queue.
            id: Its id.
            kind: What its result is; None for JSON as it is.
            deduplicated: The call added no job.
            ran: The result in JSON, if the job ran while it was added.
        """
        self.id = id
        self.queue = queue
        self.deduplicated = deduplicated
        self._kind = kind
        self._ran = ran
        self._watcher = watcher

    async def result(self, timeout: Duration | None = "30s") -> R_co:
        """Wait until the job has ended, and return what its handler returned.

        Args:
            timeout: How long to wait; None waits without limit. The job itself is not touched when it passes.

        Raises:
            JobFailedError: The job failed for good; ``__cause__`` is its exception if it ran in this process.
            JobNotFoundError: The job was removed.
            ResultTimeoutError: The job has not ended within ``timeout``.
            pydantic.ValidationError: The stored result does not fit the handler's result type.
        """
        limit = None if timeout is None else duration_ms(timeout, "result: timeout") / 1_000
        raw = self._ran
        if raw is None:
            try:
                raw = await self._watcher.result(self.queue, self.id, limit)
            except JobFailedError as error:
                raise error from self._watcher.error_of(self.queue, self.id)
        decoded: R_co = decode(raw, None if self._kind is None else self._kind.result_adapter)
        return decoded

    async def state(self) -> JobState:
        """Return the job's state now.

        Raises:
            JobNotFoundError: The job was removed.
        """
        if self._ran is not None:
            return JobState.COMPLETED
        return (await self._watcher.read(self.queue, self.id)).state

    async def cancel(self) -> bool:
        """Cancel the job: it fails with `JobCancelledError` before it starts, or its running handler is asked to stop.

        Returns:
            False if the job has ended, or is gone.
        """
        if self._ran is not None:
            return False
        return await cancel_job(self._watcher.store, self.queue, self.id)

    def __repr__(self) -> str:
        return f"<JobHandle {self.queue} {self.id}>"


async def cancel_job(store: Store, queue: str, id: str) -> bool:
    """Cancel one job, wherever it is; see `JobHandle.cancel`.

    Raises:
        IllegalMoveError: The job is not running and may not be failed either, like the next job of a schedule.
    """
    for last in (*[False] * (_CANCEL_TRIES - 1), True):
        record = (await store.get(queue, [id], payload=False))[0]
        if record is None or record.state in ENDED:
            return False
        if record.state is JobState.ACTIVE:
            if (await store.edit(queue, [JobPatch(id=id, cancel=True)]))[0] is EditResult.OK:
                return True
            continue
        error = JobCancelledError("cancelled before it ran", job_id=id)
        try:
            await store.move(queue, ByIds((id,)), Fail(reason_of(error), add_trace(record.trace, trace_of(error))))
        except JobNotFoundError:
            return False
        except IllegalMoveError:
            # It was started, or ended, between the look and the move.
            if last:
                raise
            continue
        return True
    return False


class _End(NamedTuple):
    """What an event told of a job."""

    kind: Literal["completed", "failed", "removed", "look"]
    text: str | None = None


_LOOK: Final = _End("look")


class ResultWatcher:
    """Waits for the ends of jobs, with one follower of events per queue.

    A follower starts with the first who waits for its queue and stops with the last.
    """

    def __init__(self, store: Store, *, poll: float = _POLL_S) -> None:
        """Prepare; nothing is followed yet.

        Args:
            store: Where the jobs are.
            poll: Seconds between two looks at a job somebody waits for.
        """
        self.store = store
        self._poll = poll
        self._followers: dict[str, _Follower] = {}
        self._errors: OrderedDict[tuple[str, str], BaseException] = OrderedDict()

    def note_error(self, queue: str, id: str, error: BaseException) -> None:
        """Keep the exception with which a job failed for good in this process, for a while; before its end is settled.

        Its frames lose their local variables, so that what the handler held is not kept with it.
        """
        traceback.clear_frames(error.__traceback__)
        self._errors[queue, id] = error
        if len(self._errors) > _REMEMBERED_ERRORS:
            self._errors.popitem(last=False)

    def error_of(self, queue: str, id: str) -> BaseException | None:
        """Return the exception with which a job failed in this process, if that is still known."""
        return self._errors.get((queue, id))

    async def result(self, queue: str, id: str, timeout: float | None) -> bytes:
        """Return the stored result of a job, as JSON, once it has completed.

        Args:
            queue: The job's queue.
            id: Its id.
            timeout: Seconds to wait; None for no limit.

        Raises:
            JobFailedError: It failed for good.
            JobNotFoundError: It was removed.
            ResultTimeoutError: It has not ended in time.
        """
        with anyio.move_on_after(timeout):
            return await self._end(queue, id)
        raise ResultTimeoutError(f"job {id} of queue {queue!r} has not ended within {timeout:g} s; it goes on")

    async def read(self, queue: str, id: str) -> JobRecord:
        """Return a job without its payload.

        Raises:
            JobNotFoundError: There is none.
        """
        record = (await self.store.get(queue, [id], payload=False))[0]
        if record is None:
            raise JobNotFoundError(queue, id)
        return record

    @asynccontextmanager
    async def following(self, queue: str) -> AsyncGenerator[None]:
        """Follow a queue from now on: also a job that is removed at its end then leaves its result here."""
        async with self._following(queue):
            yield

    async def aclose(self) -> None:
        """Stop following; whoever still waits goes on by looking."""
        followers = [*self._followers.values()]
        self._followers.clear()
        for follower in followers:
            await follower.stop()

    @asynccontextmanager
    async def _following(self, queue: str) -> AsyncGenerator["_Follower"]:
        follower = self._enter(queue)
        try:
            await follower.subscribed(self._poll)
            yield follower
        finally:
            self._leave(follower)

    async def _end(self, queue: str, id: str) -> bytes:
        # Events first, then the look: an end between the two is seen by one of them.
        async with self._following(queue) as follower, follower.expecting(id) as told:
            end = _LOOK
            while True:
                if end.kind == "completed" and end.text is not None:
                    return _json(end.text)
                try:
                    record = (await self.store.get(queue, [id], payload=False))[0]
                except StoreUnavailableError:
                    pass
                else:
                    if record is None:
                        return await self._end_of_gone(queue, id, follower.remembered(id) or end, told)
                    if record.state is JobState.COMPLETED:
                        return b"null" if record.result is None else record.result
                    if record.state is JobState.FAILED:
                        raise failure_of(record)
                end = await told.next(self._poll)

    @staticmethod
    async def _end_of_gone(queue: str, id: str, end: _End, told: "_Told") -> bytes:
        if end.kind == "look":
            # The event of its end may still be on its way.
            end = await told.next(_GRACE_S)
        if end.kind == "completed":
            return _json(end.text or "null")
        if end.kind == "failed":
            raise JobFailedError(end.text or "", job_id=id)
        raise JobNotFoundError(queue, id)

    def _enter(self, queue: str) -> "_Follower":
        follower = self._followers.get(queue)
        if follower is None or follower.foreign():
            follower = self._followers[queue] = _Follower(self.store, queue)
        follower.users += 1
        follower.start()
        return follower

    def _leave(self, follower: "_Follower") -> None:
        follower.users -= 1
        if not follower.users:
            if self._followers.get(follower.queue) is follower:
                del self._followers[follower.queue]
            follower.cancel()


def _json(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Told:
    """What was told of one job to one waiter since it last asked."""

    __slots__ = ("_end", "_event")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._end = _LOOK

    def tell(self, end: _End) -> None:
        # A result is not forgotten over a later hint.
        if self._end.kind != "completed":
            self._end = end
        self._event.set()

    async def next(self, timeout: float) -> _End:
        """Return what is told within so many seconds, else the hint to look."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        end, self._end = self._end, _LOOK
        self._event = anyio.Event()
        return end


class _Follower:
    """The one reader of a queue's events in this process."""

    def __init__(self, store: Store, queue: str) -> None:
        self.queue = queue
        self.users = 0
        self._store = store
        self._waiting: dict[str, set[_Told]] = {}
        self._recent: OrderedDict[str, _End] = OrderedDict()
        self._recent_size = 0
        self._subscribed = anyio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def foreign(self) -> bool:
        """Return whether this follower belongs to an event loop that is not the running one."""
        return self._loop is not None and self._loop is not asyncio.get_running_loop()

    def start(self) -> None:
        """Start reading, unless it has begun."""
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            # The first waiter's context (its dependency scope, its log fields) is none of the follower's.
            context = contextvars.Context()
            self._task = self._loop.create_task(self._run(), name=f"results of {self.queue}", context=context)

    def cancel(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Stop reading and wait until that is done."""
        if self._task is not None and not self.foreign():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def subscribed(self, timeout: float) -> None:
        """Wait until events come, or so many seconds."""
        with anyio.move_on_after(timeout):
            await self._subscribed.wait()

    @asynccontextmanager
    async def expecting(self, id: str) -> AsyncGenerator["_Told"]:
        """Tell of a job meanwhile."""
        told = _Told()
        waiting = self._waiting.setdefault(id, set())
        waiting.add(told)
        try:
            yield told
        finally:
            waiting.discard(told)
            if not waiting and self._waiting.get(id) is waiting:
                del self._waiting[id]

    def remembered(self, id: str) -> _End | None:
        """Return how a job ended before somebody asked."""
        return self._recent.get(id)

    async def _run(self) -> None:
        cursor: str | None = None
        failures = 0
        while True:
            try:
                async with self._store.events(self.queue, after=cursor) as batches:
                    self._subscribed.set()
                    failures = 0
                    async for batch in batches:
                        cursor = batch.cursor
                        for event in batch.events:
                            self._hear(event)
            except StoreError as error:
                _log.debug("events of queue %s: %s", self.queue, error)
            except Exception as error:
                # Whoever waits looks for itself: without events it is slow, not lost.
                _log.log(logging.DEBUG if failures else logging.ERROR, "events of queue %s", self.queue, exc_info=error)
            failures += 1
            await anyio.sleep(min(0.05 * 2 ** min(failures, 6), 2.0) * random.uniform(0.5, 1.0))  # noqa: S311

    def _hear(self, event: Event) -> None:
        match event.type:
            case EventType.COMPLETED:
                end = _End("completed", event.fields.get("returnvalue"))
            case EventType.FAILED:
                end = _End("failed", event.fields.get("failedReason"))
            case EventType.REMOVED:
                end = _End("removed")
            case EventType.GAP:
                for waiting in self._waiting.values():
                    for told in waiting:
                        told.tell(_LOOK)
                return
            case _:
                return
        if event.job_id is None:
            return
        for told in self._waiting.get(event.job_id, ()):
            told.tell(end)
        if end.kind != "removed":
            self._remember(event.job_id, end)

    def _remember(self, id: str, end: _End) -> None:
        before = self._recent.pop(id, None)
        self._recent_size -= len((before and before.text) or "")
        self._recent[id] = end
        self._recent_size += len(end.text or "")
        while len(self._recent) > _REMEMBERED or self._recent_size > _REMEMBERED_SIZE:
            _, oldest = self._recent.popitem(last=False)
            self._recent_size -= len(oldest.text or "")
