"""`JobsAdmin`: the upkeep of jobs, in all queues or one. What the command line and the dashboard call.

A dump is one JSON document a queue, in the schema ``workers.jobs/v1``: made to be read, edited and imported again.
"""

import base64
import json
import os
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, cast
from urllib.parse import quote
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workers_module.client.producer import Producer
from workers_module.client.queue import MOST_MOVED, remove_all
from workers_module.clock import Duration, duration_ms, to_datetime, to_ms
from workers_module.errors import (
    ConfigurationError,
    IllegalMoveError,
    JobCancelledError,
    JobNotFoundError,
    PayloadError,
    StoreCorruptError,
    TooLargeError,
)
from workers_module.job.failure import add_trace, failure_of, reason_of, trace_of
from workers_module.job.record import ChildPolicy, JobRecord, OnCrash, ParentRef
from workers_module.job.state import ALL_STATES, READY, JobState
from workers_module.store.base import ByIds, ByState, Fail, JobPatch, Remove, Store, Sweep

SCHEMA: Final = "workers.jobs/v1"
MAX_IMPORT_BYTES: Final = 256 * 1_048_576

_PAGE: Final = 500
_NOT_STARTED: Final = (JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED, JobState.WAITING_CHILDREN)
_PURGED: Final = (JobState.COMPLETED, JobState.FAILED, JobState.WAITING, JobState.PRIORITIZED)
_LOOKS_MS: Final = 2_000

States = str | JobState | Sequence[str | JobState] | None
"""One state, several, or None for a default."""


class Refused(NamedTuple):
    """A job of a file that cannot be imported: its number in the file, from 0, and why."""

    number: int
    id: str
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        added: How many jobs, by queue.
        skipped: How many exist already; they are left as they are.
        refused: The jobs that cannot be imported; if there are any, nothing is.
    """

    added: Mapping[str, int] = field(default_factory=dict[str, int])
    skipped: int = 0
    refused: tuple[Refused, ...] = ()


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

    async def cancel(self, names: str | Iterable[str], queue: str | None = None, *, running: bool = False) -> int:
        """Cancel jobs by name: those that have not started fail with `JobCancelledError`.

        Args:
            names: One job name, or several.
            queue: The queue; None for all.
            running: Also ask running ones to stop.

        Returns:
            How many were cancelled, or asked to stop.
        """
        wanted = (names,) if isinstance(names, str) else tuple(names)
        if not wanted:
            return 0
        error = JobCancelledError("cancelled before it ran", job_id="")
        action = Fail(reason_of(error), add_trace(None, trace_of(error)))
        count = 0
        for name in await self._queues(queue):
            while moved := await self._store.move(name, ByState(_NOT_STARTED, limit=MOST_MOVED, names=wanted), action):
                count += len(moved)
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

    async def tidy(self, queue: str | None = None) -> int:
        """Delete completed and cancelled jobs.

        Args:
            queue: The queue; None for all.

        Returns:
            How many were deleted.
        """
        count = 0
        for name in await self._queues(queue):
            count += len(await remove_all(self._store, name, (JobState.COMPLETED,)))
            cancelled = [
                record.id
                async for record in self._records(name, (JobState.FAILED,))
                if isinstance(failure_of(record), JobCancelledError)
            ]
            count += await self._remove(name, cancelled)
        return count

    async def purge(
        self,
        max_age: Duration = "90d",
        state: States = None,
        *,
        queue: str | None = None,
        dump: str | os.PathLike[str] | None = None,
    ) -> int:
        """Delete old jobs.

        Args:
            max_age: Those last touched longer ago.
            state: Their states; None for completed, failed, waiting and prioritized. (Delayed jobs are meant for later,
                and jobs with children are not alone.)
            queue: The queue; None for all.
            dump: Write them to this file first, to be edited and imported again. Only what it holds is deleted.

        Returns:
            How many were deleted.

        Raises:
            ConfigurationError: A state is unknown, or the file's place is not allowed; nothing was deleted.
        """
        states = _states(state, _PURGED)
        before = await self._store.now() - duration_ms(max_age, "purge: max_age")
        queues = await self._queues(queue)
        count = 0
        if dump is None:
            for name in queues:
                count += len(await remove_all(self._store, name, states, older_than=before))
            return count
        found: dict[str, list[str]] = {}
        async with _DumpFile(_target(dump)) as file:
            for name in queues:
                async for record in self._records(name, states, payload=True):
                    if (record.finished or record.started or record.added) < before:
                        found.setdefault(name, []).append(record.id)
                        await file.write(_written(record, await self._log(record)))
        for name, ids in found.items():
            count += await self._remove(name, ids)
        return count

    async def requeue(self, from_age: Duration, *, queue: str | None = None) -> int:
        """Put back jobs that are active, but whose worker is gone.

        Working processes do so by themselves; this is for when there is none. A job counts as abandoned when its lease
        has run out at two looks a moment apart; each gets one crash more.

        Args:
            from_age: Only queues with a job started longer ago are looked at.
            queue: The queue; None for all.

        Returns:
            How many were put back.
        """
        age = duration_ms(from_age, "requeue: from_age")
        before = await self._store.now() - age
        suspects = [
            name
            for name in await self._queues(queue)
            if any(
                [(record.started or record.added) <= before async for record in self._records(name, (JobState.ACTIVE,))]
            )
        ]
        if not suspects:
            return 0
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
                    more = reply.more
        return len(recovered)

    async def dump(
        self,
        folder: str | os.PathLike[str],
        state: States = None,
        *,
        queue: str | None = None,
        format: Literal["json"] = "json",  # noqa: A002
    ) -> int:
        """Write all that is known about jobs to files in a folder, one a queue.

        Args:
            folder: It is made if it is not there; files in it that have the name of a queue are replaced.
            state: The states; None for all.
            queue: The queue; None for all.
            format: ``json``.

        Returns:
            How many jobs were written.

        Raises:
            ConfigurationError: A state is unknown, or the folder's place is not allowed.
        """
        if format != "json":
            raise ConfigurationError(f"dump: unknown format {format!r}; known: json")
        states = _states(state, ALL_STATES)
        place = _target(folder)
        await run_sync(partial(place.mkdir, mode=0o700, parents=True, exist_ok=True))
        count = 0
        for name in await self._queues(queue):
            # What Node allows in a queue's name must not leave the folder.
            target = _target(place / f"{quote(name, safe='')}.json")
            async with _DumpFile(target) as file:
                async for record in self._records(name, states, payload=True):
                    await file.write(_written(record, await self._log(record)))
                    count += 1
        return count

    async def import_(
        self,
        file: str | os.PathLike[str],
        *,
        dry_run: bool = False,
        max_bytes: int = MAX_IMPORT_BYTES,
    ) -> ImportReport:
        """Put the jobs of a dump back, as they were or as they were edited.

        Jobs whose id exists are left as they are; an active one becomes waiting. The whole file is checked before the
        first job is written, and one that is not in order keeps all of them out.

        Args:
            file: A file that `dump` or `purge` wrote.
            dry_run: Only check.
            max_bytes: A larger file is refused.

        Raises:
            ConfigurationError: The file cannot be read, is not ours, or is cut off; nothing was written.
            TooLargeError: It is larger than ``max_bytes``; nothing was written.
        """
        path = _target(file)
        jobs = _jobs_of(path, await run_sync(partial(_read, path, max_bytes)))
        records: list[JobRecord] = []
        logs: dict[tuple[str, str], tuple[str, ...]] = {}
        refused: list[Refused] = []
        seen: set[tuple[str, str]] = set()
        for index, value in enumerate(jobs):
            try:
                one = _DumpedJob.model_validate(value)
                record = self._checked(one.record(), seen)
            except (ValidationError, PayloadError, ConfigurationError, StoreCorruptError, ValueError) as error:
                refused.append(_refusal(index, value, error))
                continue
            records.append(record)
            if one.logs:
                logs[record.queue, record.id] = one.logs
        known = await self._existing(records)
        fresh = [record for record in records if (record.queue, record.id) not in known]
        if not dry_run and not refused:
            await self._restore(fresh, logs)
        added: dict[str, int] = {}
        for record in fresh:
            added[record.queue] = added.get(record.queue, 0) + 1
        return ImportReport(added=added, skipped=len(records) - len(fresh), refused=tuple(refused))

    def _checked(self, record: JobRecord, seen: set[tuple[str, str]]) -> JobRecord:
        key = (record.queue, record.id)
        if key in seen:
            raise ConfigurationError("the file has this job twice")
        seen.add(key)
        if not record.state.ended:
            self._producer.check_payload(record.queue, record.name, record.data)
        return record

    async def _restore(self, records: list[JobRecord], logs: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
        for start in range(0, len(records), _PAGE):
            part = records[start : start + _PAGE]
            await self._store.restore(part)
            for queue in dict.fromkeys(record.queue for record in part):
                patches = [
                    JobPatch(id=record.id, log_lines=lines, clear_logs=True)
                    for record in part
                    if record.queue == queue and (lines := logs.get((queue, record.id)))
                ]
                if patches:
                    await self._store.edit(queue, patches)

    async def _existing(self, records: list[JobRecord]) -> set[tuple[str, str]]:
        by_queue: dict[str, list[str]] = {}
        for record in records:
            by_queue.setdefault(record.queue, []).append(record.id)
        known: set[tuple[str, str]] = set()
        for queue, ids in by_queue.items():
            for start in range(0, len(ids), _PAGE):
                part = ids[start : start + _PAGE]
                stored = await self._store.get(queue, part, payload=False)
                known.update((queue, id) for id, record in zip(part, stored, strict=True) if record is not None)
        return known

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

    async def _remove(self, queue: str, ids: Sequence[str]) -> int:
        count = 0
        for start in range(0, len(ids), _PAGE):
            try:
                count += len(await self._store.move(queue, ByIds(tuple(ids[start : start + _PAGE])), Remove(hard=True)))
            except (IllegalMoveError, JobNotFoundError):
                # A single one that was started or deleted meanwhile.
                continue
        return count


# --- one job in a file -----------------------------------------------------------------------------------------------


class _Parent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queue: str = Field(min_length=1, max_length=512)
    id: str = Field(min_length=1, max_length=1_024)


_BYTES: Final = TypeAdapter(dict[Literal["data", "options", "progress", "result", "traces"], str])


class _DumpedJob(BaseModel):
    """The schema ``workers.jobs/v1`` of one job; the docstrings of `JobRecord` tell the meanings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queue: str = Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")
    id: str = Field(min_length=1, max_length=1_024, pattern=r"^[^\x00-\x1f\x7f]+$")
    name: str = Field(min_length=1, max_length=512)
    state: JobState = Field(strict=False)
    data: Any = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    priority: int = Field(0, ge=0, lt=2**21)
    lifo: bool = False
    tags: list[str] = Field(default_factory=list[str])
    attempts_made: int = Field(0, ge=0)
    attempts: int = Field(1, ge=0, le=1_000)
    crashes: int = Field(0, ge=0)
    starts: int = Field(0, ge=0)
    created_at: AwareDatetime | None = Field(None, strict=False)
    run_at: AwareDatetime | None = Field(None, strict=False)
    started_at: AwareDatetime | None = Field(None, strict=False)
    finished_at: AwareDatetime | None = Field(None, strict=False)
    on_crash: OnCrash = "retry"
    worker: str | None = None
    parent: _Parent | None = None
    on_failure: ChildPolicy = Field(ChildPolicy.FAIL_PARENT, strict=False)
    schedule: str | None = None
    deduplication: str | None = None
    deferred: str | None = None
    progress: Any = None
    error: str | None = None
    traces: list[str] = Field(default_factory=list[str])
    result: Any = None
    raw: dict[str, str] = Field(default_factory=dict[str, str])
    """Base64 of what is stored and is not JSON, by field."""
    logs: tuple[str, ...] = Field((), strict=False)

    def record(self) -> JobRecord:
        """Return the job as a store keeps it, consistent also where a person changed the state."""
        raw = {name: base64.b64decode(text, validate=True) for name, text in _BYTES.validate_python(self.raw).items()}
        ended = self.state.ended
        added = datetime.now(UTC) if self.created_at is None else self.created_at
        state = self.state
        if state is JobState.DELAYED and self.run_at is None:
            state = JobState.WAITING
        if state in READY:
            state = JobState.PRIORITIZED if self.priority else JobState.WAITING
        return JobRecord(
            queue=self.queue,
            id=self.id,
            name=self.name,
            state=state,
            data=raw.get("data", _json(self.data)),
            opts=raw.get("options", _json(self.options)),
            priority=self.priority,
            tags=tuple(sorted(set(self.tags))),
            attempts_made=self.attempts_made,
            max_attempts=self.attempts,
            crashes=self.crashes,
            fence=self.starts,
            added=to_ms(added),
            due=_ms(self.run_at) if state is JobState.DELAYED else None,
            started=_ms(self.started_at),
            finished=_ms(self.finished_at or added) if ended else None,
            lifo=self.lifo,
            on_crash=self.on_crash,
            worker=self.worker,
            parent=None if self.parent is None else ParentRef(self.parent.queue, self.parent.id),
            policy=self.on_failure,
            schedule=self.schedule,
            dedup=self.deduplication,
            deferred=self.deferred,
            progress=raw.get("progress", None if self.progress is None else _json(self.progress)),
            reason=self.error,
            trace=raw.get("traces", _json(self.traces) if self.traces else None),
            result=raw.get("result", _json(self.result) if self.state is JobState.COMPLETED else None),
        )


def _written(record: JobRecord, logs: list[str]) -> str:
    raw: dict[str, str] = {}

    def value(name: str, stored: bytes | None) -> Any:
        if not stored:
            return None
        try:
            return json.loads(stored)
        except (ValueError, RecursionError):
            raw[name] = base64.b64encode(stored).decode()
            return None

    job: dict[str, Any] = {
        "queue": record.queue,
        "id": record.id,
        "name": record.name,
        "state": record.state.value,
        "data": value("data", record.data),
        "options": value("options", record.opts) or {},
        "priority": record.priority,
        "lifo": record.lifo,
        "tags": list(record.tags),
        "attempts_made": record.attempts_made,
        "attempts": record.max_attempts,
        "crashes": record.crashes,
        "starts": record.fence,
        "created_at": _iso(record.added),
        "run_at": _iso(record.due),
        "started_at": _iso(record.started),
        "finished_at": _iso(record.finished),
        "on_crash": record.on_crash,
        "worker": record.worker,
        "parent": None if record.parent is None else record.parent._asdict(),
        "on_failure": record.policy.value,
        "schedule": record.schedule,
        "deduplication": record.dedup,
        "deferred": record.deferred,
        "progress": value("progress", record.progress),
        "error": record.reason,
        "traces": value("traces", record.trace) or [],
        "result": value("result", record.result),
        "logs": logs,
    }
    if raw:
        job["raw"] = raw
    text = json.dumps(job, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Node writes lone surrogates; escaped they are text.
        text = json.dumps(job, indent=1)
    return text


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _iso(ms: int | None) -> str | None:
    return None if ms is None else to_datetime(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else to_ms(instant)


def _refusal(index: int, value: object, error: Exception) -> Refused:
    job: Mapping[str, Any] = value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_input=False)
        why = "; ".join(f"$.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:5])
    else:
        why = str(error)
    return Refused(index, str(job.get("id", "")), str(job.get("name", "")), why)


# --- files -----------------------------------------------------------------------------------------------------------


def _states(state: States, default: Sequence[JobState]) -> tuple[JobState, ...]:
    if state is None:
        return tuple(default)
    given = [state] if isinstance(state, str) else state
    try:
        return tuple(JobState(one) for one in given)
    except ValueError:
        raise ConfigurationError(f"unknown state in {state!r}; known: {', '.join(ALL_STATES)}") from None


def _target(path: str | os.PathLike[str]) -> Path:
    """Return where a file is to be read or written, or refuse a place that could surprise.

    A relative path stays below the current directory, links included; ``..`` and a link at the end are never followed.
    """
    given = Path(path)
    if ".." in given.parts:
        raise ConfigurationError(f"{given}: '..' is not followed; write the directory itself")
    root = Path.cwd().resolve()
    parent = (root / given).parent.resolve()
    if not given.is_absolute() and not parent.is_relative_to(root):
        raise ConfigurationError(f"{given}: a link leads out of {root}; write the directory itself")
    target = parent / given.name
    if target.is_symlink():
        raise ConfigurationError(f"{given}: is a link; write what it points to")
    return target


class _DumpFile:
    """A dump that is being written: under a temporary name, and in its place when it is whole."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
        self._descriptor = -1
        self._buffer: list[str] = []
        self._size = 0
        self._first = True

    async def __aenter__(self) -> Self:
        try:
            self._descriptor = await run_sync(self._open)
        except OSError as error:
            raise ConfigurationError(f"{self._target}: cannot be written: {error.strerror}") from None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._buffer.append(f'{{"schema": "{SCHEMA}", "exported_at": "{now}", "jobs": [')
        return self

    async def write(self, job: str) -> None:
        """Append a job."""
        self._buffer.append(("\n" if self._first else ",\n") + job)
        self._first = False
        self._size += len(job)
        if self._size > 1_048_576:
            await self._flush()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            if error is None:
                self._buffer.append("\n]}\n")
                try:
                    await self._flush()
                    await run_sync(self._finish)
                except OSError as failure:
                    await run_sync(self._discard)
                    raise ConfigurationError(f"{self._target}: cannot be written: {failure.strerror}") from None
                return
            await run_sync(self._discard)

    async def _flush(self) -> None:
        text, self._buffer, self._size = "".join(self._buffer), [], 0
        await run_sync(self._append, text.encode())

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return os.open(self._temporary, flags, 0o600)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _finish(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        os.replace(self._temporary, self._target)

    def _discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigurationError(f"{path}: is no file")
        if found.st_size > max_bytes:
            raise TooLargeError(f"{path}: {found.st_size:,} bytes; the limit is {max_bytes:,}")
        return file.read(max_bytes + 1)


def _jobs_of(path: Path, raw: bytes) -> list[object]:
    try:
        document: object = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigurationError(f"{path}: is not JSON, or cut off{where}; nothing was imported") from None
    given: Mapping[str, Any] = document if isinstance(document, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    if given.get("schema") != SCHEMA:
        raise ConfigurationError(f"{path}: is no dump of jobs (no schema {SCHEMA!r}); nothing was imported")
    if isinstance(given.get("jobs"), list):
        return cast("list[object]", given["jobs"])
    raise ConfigurationError(f"{path}: has no list of jobs; nothing was imported")
