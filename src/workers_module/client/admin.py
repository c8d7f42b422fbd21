"""`JobsAdmin`: the upkeep of jobs, in all queues or one. What the command line and the dashboard call.

A dump is one document a queue, made to be read, edited and imported again; `dump` says how it is written.
"""

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import anyio
from anyio.to_thread import run_sync

from workers_module.client.dump import (
    DUMP_FORMATS,
    YAML_SUFFIXES,
    DumpFile,
    DumpFormat,
    document_of,
    read_dump,
    target_of,
)
from workers_module.client.importing import ImportReport, import_jobs
from workers_module.client.producer import Producer
from workers_module.client.queue import MOST_MOVED, Progress, remove_all
from workers_module.clock import Duration, duration_ms
from workers_module.errors import (
    ConfigurationError,
    IllegalMoveError,
    JobCancelledError,
    JobNotFoundError,
)
from workers_module.job.failure import add_trace, failure_of, reason_of, trace_of
from workers_module.job.names import check_name
from workers_module.job.options import JobOptions
from workers_module.job.record import JobRecord
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import Store
from workers_module.store.values import (
    Action,
    ByIds,
    ByState,
    Fail,
    JobPatch,
    LockInfo,
    Promote,
    Remove,
    RetryAgain,
    Sweep,
)

MAX_IMPORT_BYTES: Final = 256 * 1_048_576

_PAGE: Final = 500
_NOT_STARTED: Final = (JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED, JobState.WAITING_CHILDREN)
_PURGED: Final = (JobState.COMPLETED, JobState.FAILED, JobState.WAITING, JobState.PRIORITIZED)
_LOOKS_MS: Final = 2_000

BulkAction = Literal["retry", "promote", "remove"]
States = str | JobState | Sequence[str | JobState] | None
"""One state, several, or None for a default."""


class JobsAdmin:
    """Cancels, deletes, dumps and imports jobs.

    Source: Loco ``cargo loco jobs``.
    """

    def __init__(self, store: Store, producer: Producer) -> None:
        """Prepare; the store is not touched.

        Args:
            store: Where the jobs are.
            producer: Knows the types of payloads; imported jobs are checked against them.
        """
        self._store = store
        self._producer = producer

    async def cancel(
        self,
        names: str | Iterable[str],
        queue: str | None = None,
        *,
        running: bool = False,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> int:
        """Cancel jobs by name: those that have not started fail with `JobCancelledError`.

        Args:
            names: One job name, or several.
            queue: The queue; None for all.
            running: Also ask running ones to stop.
            dry_run: Only count them.
            on_progress: Told of each part: how many jobs more are done.

        Returns:
            How many were cancelled, or asked to stop.
        """
        wanted = (names,) if isinstance(names, str) else tuple(names)
        if not wanted:
            return 0
        if dry_run:
            states = (*_NOT_STARTED, JobState.ACTIVE) if running else _NOT_STARTED
            found = [
                [one.name in wanted async for one in self._records(name, states)] for name in await self._queues(queue)
            ]
            return sum(map(sum, found))
        tell = on_progress or _nobody
        error = JobCancelledError("cancelled before it ran", job_id="")
        action = Fail(reason_of(error), add_trace(None, trace_of(error)))
        count = 0
        for name in await self._queues(queue):
            while moved := await self._store.move(name, ByState(_NOT_STARTED, limit=MOST_MOVED, names=wanted), action):
                count += len(moved)
                tell(len(moved))
                if len(moved) < MOST_MOVED:
                    break
            if running:
                patches = [
                    JobPatch(id=record.id, cancel=True)
                    async for record in self._records(name, (JobState.ACTIVE,))
                    if record.name in wanted
                ]
                results = await self._store.edit(name, patches) if patches else []
                count += sum(result == "ok" for result in results)
        return count

    def check(self, queue: str, name: str, data: object, options: JobOptions) -> None:
        """Check a job as adding it would, and store nothing.

        Args:
            queue: Its queue.
            name: Its name.
            data: Its payload; checked against the handler's type where this process knows the handler.
            options: Its options.

        Raises:
            ConfigurationError: A name or an option cannot be used.
            PayloadError: JSON cannot carry the payload.
            pydantic.ValidationError: The payload does not fit its type.
        """
        self._producer.prepare(check_name("queue", queue), name, data, options)

    async def act(self, action: BulkAction, queue: str, ids: Sequence[str], *, reset: bool = False) -> list[str]:
        """Do the same to some jobs of a queue; those that it cannot be done to (any more) are left as they are.

        Args:
            action: ``retry`` puts ended jobs back to work, ``promote`` makes delayed ones ready, ``remove`` deletes
                those that do not run.
            queue: The queue.
            ids: The jobs; at most 10,000.
            reset: For ``retry``: count attempts from zero again.

        Returns:
            The ids of those it was done to.
        """
        match action:
            case "retry":
                move: Action = RetryAgain(reset=reset)
            case "promote":
                move = Promote()
            case "remove":
                move = Remove()
        try:
            return await self._store.move(queue, ByIds(tuple(ids)), move) if ids else []
        except (IllegalMoveError, JobNotFoundError):
            # A store raises these where there is but one job.
            return []

    async def tidy(
        self, queue: str | None = None, *, dry_run: bool = False, on_progress: Progress | None = None
    ) -> int:
        """Delete completed and cancelled jobs.

        Args:
            queue: The queue; None for all.
            dry_run: Only count them.
            on_progress: Told of each part: how many jobs more are done.

        Returns:
            How many were deleted.
        """
        tell = on_progress or _nobody
        count = 0
        for name in await self._queues(queue):
            if dry_run:
                count += (await self._store.counts([name]))[0].completed
            else:
                count += len(await remove_all(self._store, name, (JobState.COMPLETED,), on_progress=tell))
            cancelled = [
                record.id
                async for record in self._records(name, (JobState.FAILED,))
                if isinstance(failure_of(record), JobCancelledError)
            ]
            count += len(cancelled) if dry_run else await self._remove(name, cancelled, tell)
        return count

    async def purge(
        self,
        max_age: Duration = "90d",
        state: States = None,
        *,
        queue: str | None = None,
        dump: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        on_progress: Progress | None = None,
        on_written: Progress | None = None,
    ) -> int:
        """Delete old jobs.

        Args:
            max_age: Those last touched longer ago.
            state: Their states; None for completed, failed, waiting and prioritized. (Delayed jobs are meant for later,
                and jobs with children are not alone.)
            queue: The queue; None for all.
            dump: Write them to this file first, to be edited and imported again. Only what it holds is deleted.
            dry_run: Only count them; no file is written.
            on_progress: Told of each part: how many jobs more are deleted.
            on_written: Told of each job written to the file, before the first one is deleted.

        Returns:
            How many were deleted.

        Raises:
            ConfigurationError: A state is unknown, or the file's place is not allowed; nothing was deleted.
        """
        tell, tell_written = on_progress or _nobody, on_written or _nobody
        states = _states(state, _PURGED)
        before = await self._store.now() - duration_ms(max_age, "purge: max_age")
        queues = await self._queues(queue)
        count = 0
        if dry_run:
            for name in queues:
                async for record in self._records(name, states):
                    count += _is_older(record, before)
            return count
        if dump is None:
            for name in queues:
                count += len(await remove_all(self._store, name, states, older_than=before, on_progress=tell))
            return count
        found: dict[str, list[str]] = {}
        target = target_of(dump)
        if target.exists():
            # It may hold the only copy of what an earlier purge deleted.
            raise ConfigurationError(
                f"{dump}: exists already and is left alone; name another file, nothing was deleted"
            )
        async with DumpFile(target, _format_of(dump)) as file:
            for name in queues:
                async for record in self._records(name, states, payload=True):
                    if _is_older(record, before):
                        found.setdefault(name, []).append(record.id)
                        await file.write(document_of(record, await self._log(record)))
                        tell_written(1)
        for name, ids in found.items():
            count += await self._remove(name, ids, tell)
        return count

    async def requeue(
        self,
        from_age: Duration,
        *,
        queue: str | None = None,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> int:
        """Put back jobs that are active, but whose worker is gone.

        Working processes do so by themselves; this is for when there is none. A job counts as abandoned when its lease
        has run out at two looks a moment apart; each gets one crash more.

        Args:
            from_age: Only queues with a job started longer ago are looked at.
            queue: The queue; None for all.
            dry_run: Only count the active jobs started longer ago; whether their workers are gone is then not known.
            on_progress: Told of each part: how many jobs more are back.

        Returns:
            How many were put back.
        """
        age = duration_ms(from_age, "requeue: from_age")
        before = await self._store.now() - age
        if dry_run:
            count = 0
            for name in await self._queues(queue):
                async for record in self._records(name, (JobState.ACTIVE,)):
                    count += (record.started or record.added) <= before
            return count
        suspects = [
            name
            for name in await self._queues(queue)
            if any(
                [(record.started or record.added) <= before async for record in self._records(name, (JobState.ACTIVE,))]
            )
        ]
        if not suspects:
            return 0
        tell = on_progress or _nobody
        recovered: set[tuple[str, str]] = set()
        for look in range(2):
            if look:
                # A little longer than the interval, or the second look would come too early to be one.
                await anyio.sleep(_LOOKS_MS / 1_000 * 1.1)
            for name in suspects:
                more = True
                while more:
                    reply = await self._store.sweep(Sweep(queue=name, interval_ms=_LOOKS_MS))
                    recovered.update((name, id) for id in reply.recovered)
                    tell(len(reply.recovered))
                    more = reply.more
        return len(recovered)

    async def release_lock(self, lock: LockInfo) -> bool:
        """Take a named lock from its holder, who may still be at work under it.

        Args:
            lock: The lock as `Inspector.locks` tells of it; one that was acquired anew since is left alone.

        Returns:
            False when it is not held so any more.
        """
        return await self._store.lease(lock.name, lock.owner, 0, fence=lock.fence) is not None

    async def dump(
        self,
        folder: str | os.PathLike[str],
        state: States = None,
        *,
        queue: str | None = None,
        format: DumpFormat = "json",  # noqa: A002
        on_progress: Progress | None = None,
    ) -> int:
        """Write all that is known about jobs to files in a folder, one a queue.

        Args:
            folder: It is made if it is not there; files in it that have the name of a queue are replaced.
            state: The states; None for all.
            queue: The queue; None for all.
            format: ``json``, or ``yaml`` (with the extra ``cli``).
            on_progress: Told of each job written.

        Returns:
            How many jobs were written.

        Raises:
            ConfigurationError: A state is unknown, or the folder's place is not allowed.
        """
        if format not in DUMP_FORMATS:
            raise ConfigurationError(f"dump: unknown format {format!r}; known: {', '.join(DUMP_FORMATS)}")
        tell = on_progress or _nobody
        states = _states(state, ALL_STATES)
        place = target_of(folder)
        try:
            await run_sync(partial(place.mkdir, mode=0o700, parents=True, exist_ok=True))
        except OSError as error:
            why = "is a file" if isinstance(error, FileExistsError) else f"cannot be made: {error.strerror}"
            raise ConfigurationError(f"{folder}: {why}; name another folder, nothing was written") from None
        count = 0
        for name in await self._queues(queue):
            # What Node allows in a queue's name must not leave the folder.
            target = target_of(place / f"{quote(name, safe='')}.{format}")
            async with DumpFile(target, format) as file:
                async for record in self._records(name, states, payload=True):
                    await file.write(document_of(record, await self._log(record)))
                    count += 1
                    tell(1)
        return count

    async def import_(
        self,
        file: str | os.PathLike[str],
        *,
        dry_run: bool = False,
        edited: bool = False,
        max_bytes: int = MAX_IMPORT_BYTES,
        on_progress: Progress | None = None,
    ) -> ImportReport:
        """Put the jobs of a dump back, as they were or as they were edited.

        Jobs whose id exists are left as they are; an active one becomes waiting. The whole file is checked before the
        first job is written, and one that is not in order keeps all of them out.

        Args:
            file: A file that `dump` or `purge` wrote.
            dry_run: Only check.
            edited: The file was edited, so that its checksum need not be right. (One without a checksum is taken too.)
            max_bytes: A larger file is refused.
            on_progress: Told of each part: how many jobs more are checked, or written.

        Raises:
            ConfigurationError: The file cannot be read, is not ours, is cut off, or its checksum is wrong; nothing
                was written.
            TooLargeError: It is larger than ``max_bytes``; nothing was written.
        """
        path = target_of(file)
        jobs = await run_sync(partial(read_dump, path, max_bytes=max_bytes, edited=edited))
        return await import_jobs(self._store, self._producer, jobs, dry_run=dry_run, on_progress=on_progress)

    async def _queues(self, queue: str | None) -> list[str]:
        return await self._store.queues() if queue is None else [queue]

    async def _records(
        self, queue: str, states: Sequence[JobState], *, payload: bool = False
    ) -> AsyncIterator[JobRecord]:
        """Yield each job in these states once, however the lists move meanwhile; what comes later may be missing."""
        seen: set[str] = set()
        start = 0
        while True:
            page = await self._store.page(queue, states, start=start, limit=_PAGE)
            for record in page.items:
                if record.id not in seen:
                    seen.add(record.id)
                    yield record if payload else record._replace(data=b"")
            start += len(page.items)
            if len(page.items) < _PAGE:
                return

    async def _log(self, record: JobRecord) -> list[str]:
        return (await self._store.logs(record.queue, record.id)).items

    async def _remove(self, queue: str, ids: Sequence[str], tell: Progress) -> int:
        count = 0
        for start in range(0, len(ids), _PAGE):
            part = tuple(ids[start : start + _PAGE])
            try:
                count += len(await self._store.move(queue, ByIds(part), Remove(hard=True)))
                tell(len(part))
            except (IllegalMoveError, JobNotFoundError):
                # A single one that was started or deleted meanwhile.
                continue
        return count


def _nobody(_: int) -> None:
    """Nobody asked how far it is."""


def _is_older(record: JobRecord, before: int) -> bool:
    return (record.finished or record.started or record.added) < before


def _format_of(path: str | os.PathLike[str]) -> DumpFormat:
    return "yaml" if Path(path).suffix in YAML_SUFFIXES else "json"


def _states(state: States, default: Sequence[JobState]) -> tuple[JobState, ...]:
    if state is None:
        return tuple(default)
    given = [state] if isinstance(state, str) else state
    try:
        return tuple(JobState(one) for one in given)
    except ValueError:
        raise ConfigurationError(f"unknown state in {state!r}; known: {', '.join(ALL_STATES)}") from None
