"""What a running job can say: how far it is, what happened, what its children made."""

import json
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar, overload

from pydantic import TypeAdapter

from workers_module.clock import Clock
from workers_module.errors import LeaseLostError, PayloadError, WorkersError
from workers_module.job.encoding import encode
from workers_module.job.events import WorkerEvent
from workers_module.job.failure import cut
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.record import JobRecord
from workers_module.job.stored import read_options
from workers_module.store.base import Store
from workers_module.store.values import EditResult, Held, JobPatch

R = TypeVar("R")

MAX_LINE_BYTES: Final = 64 * 1024
_PAGE: Final = 1_000


class JobLogger:
    """Writes lines to the log that is kept with the job.

    Calls are not awaited and may come from any thread; the lines are stored with the next call that writes about the
    job, and at the
    latest before the job ends.
    """

    __slots__ = ("_clock", "_lines")

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._lines: deque[str] = deque(maxlen=1_000)

    def __call__(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``info``; see `log`."""
        self._write("INFO", message, args, data, err)

    def log(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``info``.

        Args:
            message: The text, with ``%`` places for ``args`` as in `logging`.
            args: What goes in the places.
            data: Anything JSON can show; written behind the text.
            err: An error; its traceback is written below the text.
        """
        self._write("INFO", message, args, data, err)

    def debug(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``debug``; see `log`."""
        self._write("DEBUG", message, args, data, err)

    def info(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``info``; see `log`."""
        self._write("INFO", message, args, data, err)

    def warning(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``warning``; see `log`."""
        self._write("WARNING", message, args, data, err)

    def error(self, message: str, *args: object, data: Any = None, err: BaseException | None = None) -> None:
        """Write a line at level ``error``; see `log`."""
        self._write("ERROR", message, args, data, err)

    def add_record(self, level: str, text: str) -> None:
        """Write a line whose text is ready, with its time and level before it."""
        self.add_line(f"{_stamp(self._clock.now())} {level} {text}")

    def add_line(self, line: str) -> None:
        """Append a line as it is."""
        self._lines.append(cut(line, MAX_LINE_BYTES))

    def take(self) -> tuple[str, ...]:
        """Return the lines written since the last call and forget them."""
        lines: list[str] = []
        while self._lines:
            lines.append(self._lines.popleft())
        return tuple(lines)

    def _write(
        self, level: str, message: str, args: tuple[object, ...], data: object, err: BaseException | None
    ) -> None:
        text = message % args if args else message
        if data is not None:
            text += " " + json.dumps(data, ensure_ascii=False, default=str)
        if err is not None:
            text += "\n" + "".join(traceback.format_exception(err)).rstrip()
        self.add_record(level, text)


def _stamp(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Progress:
    """Reports how far the job is. From a ``def`` handler: ``anyio.from_thread.run(progress, value)``."""

    __slots__ = ("_context",)

    def __init__(self, context: "JobContext") -> None:
        self._context = context

    async def __call__(self, value: object) -> None:
        """Store the progress and announce it.

        Args:
            value: A number (percent, by custom) or anything JSON can carry.

        Raises:
            PayloadError: JSON cannot carry the value; a job that lets this out fails without a further attempt.
            LeaseLostError: Another worker runs the job now.
        """
        await self._context.update_progress(value)


class JobContext:
    """What a handler can ask about, and say during, one run of a job.

    Attributes:
        fatal: An error after which the job is not tried again: a payload, progress or result that JSON or its type
            cannot carry.
    """

    __slots__ = (
        "_held",
        "_job",
        "_kind_of",
        "_log",
        "_max_bytes",
        "_record",
        "_store",
        "_tell",
        "cancelled",
        "fatal",
        "lease_in_doubt",
    )

    fatal: Exception | None
    cancelled: bool
    """Whether the run was asked to stop; for loops in threads, which nothing else can stop."""
    lease_in_doubt: bool
    """Whether the lease may have run out, so that another worker could start the job too."""

    def __init__(
        self,
        record: JobRecord,
        held: Held,
        store: Store,
        *,
        max_bytes: int,
        tell: Callable[[WorkerEvent], None] | None = None,
        kind_of: Callable[[object], JobKind] | None = None,
    ) -> None:
        self._record = record
        self._held = held
        self._store = store
        self._max_bytes = max_bytes
        self._tell = tell
        self._kind_of = kind_of
        self._job: Job[Any] | None = None
        self._log: JobLogger | None = None
        self.fatal = None
        self.cancelled = False
        self.lease_in_doubt = False

    @property
    def job(self) -> Job[Any]:
        """The job that runs."""
        if self._job is None:
            raise WorkersError("the job's payload has not been read yet")
        return self._job

    @property
    def job_or_bare(self) -> Job[Any]:
        """The job that runs; without data when its payload could not be read."""
        return self._job if self._job is not None else Job(self._record, None)

    def bind(self, data: object) -> Job[Any]:
        """Make the job of this run from its validated payload."""
        self._job = job = Job(self._record, data, self)
        return job

    def leave(self) -> None:
        """Let go of the job: the run is over."""
        if self._job is not None:
            self._job.leave()

    @property
    def log(self) -> JobLogger:
        """Writes lines to the job's log; not awaited."""
        log = self._log
        if log is None:
            log = self._log = JobLogger()
        return log

    @property
    def progress(self) -> Progress:
        """Reports how far the job is."""
        return Progress(self)

    async def update_progress(self, value: object) -> None:
        """Store and announce how far the job is; see `Progress`."""
        try:
            raw = encode(value, None, what="progress", max_bytes=self._max_bytes)
        except PayloadError as error:
            self.fatal = error
            raise
        await self._edit(raw)
        if self._tell is not None:
            self._tell(
                WorkerEvent(name="progress", queue=self._record.queue, job=self._job, progress=value, context=self)
            )

    def add_log(self, message: str) -> None:
        """Append a line to the job's log."""
        self.log.info(message)

    @overload
    async def children_values(self, handler: None = None) -> list[Any]: ...
    @overload
    async def children_values(self, handler: Callable[..., Awaitable[R]]) -> list[R]: ...
    @overload
    async def children_values(self, handler: Callable[..., R]) -> list[R]: ...
    async def children_values(self, handler: Callable[..., Any] | None = None) -> list[Any]:
        """Return what the children of this job returned, in the order they were added.

        Args:
            handler: Only the children of this handler, with their results validated by its result type; None for all,
                as plain JSON.
        """
        kind = None
        if handler is not None:
            if self._kind_of is None:
                raise WorkersError(
                    "children_values(handler): handlers are known only in a worker; leave the handler out"
                )
            kind = self._kind_of(handler)
        adapter: TypeAdapter[Any] = TypeAdapter(Any) if kind is None else kind.result_adapter
        values: list[Any] = []
        start = 0
        while True:
            page = await self._store.children(self._record.queue, self._record.id, start=start, limit=_PAGE)
            done = [child for child in page.items if child.state == "processed" and child.value is not None]
            if kind is not None:
                done = [child for child in done if child.queue == kind.queue]
                if kind.name is not None:
                    stored = await self._store.get(kind.queue, [child.id for child in done], payload=False)
                    done = [c for c, job in zip(done, stored, strict=True) if job is None or job.name == kind.name]
            values += [adapter.validate_json(child.value) for child in done if child.value is not None]
            start += len(page.items)
            if not page.items or start >= page.total:
                return values

    @property
    def has_log(self) -> bool:
        """Whether the run has written log lines, so that there may be some to store."""
        return self._log is not None

    async def flush(self) -> None:
        """Store the log lines written so far.

        Raises:
            LeaseLostError: Another worker runs the job now.
        """
        await self._edit(None)

    async def _edit(self, progress: bytes | None) -> None:
        lines = self._log.take() if self._log is not None else ()
        if progress is None and not lines:
            return
        patch = JobPatch(
            id=self._record.id, progress=progress, log_lines=lines, keep_logs=self._keep_logs(), held=self._held
        )
        [result] = await self._store.edit(self._record.queue, [patch])
        if result is not EditResult.OK:
            raise LeaseLostError(f"job {self._record.id} of queue {self._record.queue!r} is no longer this worker's")

    def _keep_logs(self) -> int | None:
        return read_options(self._record.opts).keep_logs
