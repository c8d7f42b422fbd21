"""`Inspector`: looks at queues and jobs, and changes nothing."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from workers_module.client.queue import JobCounts, job_counts
from workers_module.errors import ConfigurationError, StoreCorruptError
from workers_module.job.encoding import decode
from workers_module.job.events import EventBatch
from workers_module.job.job import Job
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import ScheduleRecord
from workers_module.store.values import Child, LockInfo, Metrics, Problem, QueueSettings, WorkerInfo

MAX_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class JobPage:
    """A piece of the list of jobs in a state.

    Attributes:
        items: The jobs.
        cursor: Continues after them; None at the end. The list may have moved by then.
        total: How long the whole list is.
    """

    items: list[Job[Any]]
    cursor: str | None
    total: int


class Inspector:
    """Looks at queues and jobs: what dashboards, commands and tests read."""

    def __init__(self, store: Store) -> None:
        """Prepare; the store is not touched."""
        self._store = store

    async def queues(self) -> list[str]:
        """Return the names of all queues with jobs, settings or schedules, sorted."""
        return await self._store.queues()

    async def counts(self, queue: str) -> JobCounts:
        """Count the jobs of a queue by state."""
        return await job_counts(self._store, queue)

    async def settings(self, queue: str) -> QueueSettings:
        """Return what is set for a queue: pause, limits, event cap."""
        return await self._store.configure(queue)

    async def get(self, queue: str, id: str) -> Job[Any] | None:
        """Return a job, its payload as plain JSON values; None when there is none."""
        record = (await self._store.get(queue, [id]))[0]
        return None if record is None else job_of(record)

    async def page(
        self,
        queue: str,
        state: JobState | Sequence[JobState],
        cursor: str | None = None,
        limit: int = 100,
        *,
        newest_first: bool = False,
    ) -> JobPage:
        """Return a piece of the list of jobs in a state.

        Order: waiting and prioritized as they will start, delayed by their time, active by start, ended by end.

        Args:
            queue: The queue.
            state: One state, or several, one after the other.
            cursor: Where the piece before ended; None begins.
            limit: At most so many jobs, and never over 1,000.
            newest_first: Turn each state's list round.

        Raises:
            ConfigurationError: The cursor is not one of these pages'.
        """
        states = (state,) if isinstance(state, str) else tuple(state)
        start = _offset(cursor)
        size = max(1, min(limit, MAX_PAGE))
        page = await self._store.page(
            queue, [JobState(one) for one in states], start=start, limit=size, newest_first=newest_first
        )
        end = start + len(page.items)
        following = str(end) if page.items and end < page.total else None
        return JobPage([job_of(record) for record in page.items], following, page.total)

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> list[str]:
        """Return the lines of a job's log, oldest first."""
        return (await self._store.logs(queue, id, start=start, limit=limit)).items

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> list[Child]:
        """Return the children of a job, and what became of them."""
        return (await self._store.children(queue, id, start=start, limit=limit)).items

    async def schedules(self, queue: str | None = None) -> list[ScheduleRecord]:
        """Return the schedules of a queue, or of all, each queue's ordered by their next slot."""
        found: list[ScheduleRecord] = []
        for name in await self._store.queues() if queue is None else [queue]:
            start = 0
            while records := await self._store.schedules(name, start=start, limit=MAX_PAGE):
                found += records
                start += len(records)
        return found

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Follow the events of a queue.

        Args:
            queue: The queue.
            after: The cursor of the last batch seen; None begins when the context is entered.

        Example:
            ``async with inspector.events("email") as batches: async for batch in batches: …``
        """
        return self._store.events(queue, after=after)

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Return how many jobs ended, in all and per minute."""
        return await self._store.metrics(queue, minutes=minutes)

    async def locks(self) -> list[LockInfo]:
        """Return the named locks that are held now."""
        return await self._store.locks()

    async def workers(self) -> list[WorkerInfo]:
        """Return the worker processes that are alive."""
        return await self._store.workers()

    async def verify(self, queue: str) -> list[Problem]:
        """Check a queue's data for contradictions; slow."""
        return await self._store.verify(queue)


def job_of(record: JobRecord) -> Job[Any]:
    """Return a stored job with its payload as plain JSON values; one that is not JSON stays the text it is."""
    try:
        data = decode(record.data, None) if record.data else None
    except StoreCorruptError:
        data = record.data.decode("utf-8", "replace")
    return Job(record, data)


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
        raise ConfigurationError(f"page: {cursor!r} is no cursor; pass the one of the page before, or None")
    return int(cursor)
