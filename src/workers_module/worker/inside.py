"""One attempt in a sandbox: in a loop of its own, away from the store and from the worker that settles it."""

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, cast

import anyio
import anyio.to_thread
from pydantic import ValidationError

from workers_module.errors import JobCancelledError, PayloadError, StoreCorruptError, UnknownJobError
from workers_module.job.encoding import decode, encode
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.record import JobRecord, Token
from workers_module.store.base import Store
from workers_module.store.values import Child, EditResult, Held, JobPatch, Page
from workers_module.worker.capture import current_run
from workers_module.worker.context import JobContext, JobLogger
from workers_module.worker.handler import Call, Handler
from workers_module.worker.messages import Order
from workers_module.worker.verdict import timed_out, unreadable

_NO_TOKEN: Final = Token("")


class Handlers(Protocol):
    """The handlers of an application that was built for a sandbox."""

    async def find(self, queue: str, name: str) -> Handler | None:
        """Return the handler of a job by its queue and name, or None when there is none."""
        ...

    def kind_of(self, reference: object) -> JobKind:
        """Return the kind of job that a reference to a handler means."""
        ...


OpenHandlers = Callable[[], AbstractAsyncContextManager[Handlers]]
"""Builds the application anew; leaving it closes what was built."""


class Outside(Protocol):
    """What a run in a sandbox asks of the worker that started it."""

    async def progress(self, value: bytes) -> EditResult:
        """Store and announce how far the job is."""
        ...

    async def children(self, start: int, limit: int) -> Page[Child]:
        """Read a piece of the list of the job's children."""
        ...

    async def jobs(self, queue: str, ids: Sequence[str]) -> list[JobRecord | None]:
        """Read jobs by id, without their payloads."""
        ...


class _FarStore:
    """The part of a store that a `JobContext` asks for, answered from outside."""

    __slots__ = ("_outside",)

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    async def edit(self, _queue: str, patches: Sequence[JobPatch]) -> list[EditResult]:
        return [
            EditResult.OK if patch.progress is None else await self._outside.progress(patch.progress)
            for patch in patches
        ]

    async def children(self, _queue: str, _id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        return await self._outside.children(start, limit)

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = False) -> list[JobRecord | None]:
        if payload:
            raise NotImplementedError("payloads of other jobs are not carried into a sandbox")
        return await self._outside.jobs(queue, ids)


class _Context(JobContext):
    """A context whose log is kept outside, so that a run that is killed loses no line."""

    __slots__ = ("_outer_log",)

    def __init__(
        self, order: Order, outside: Outside, log: JobLogger, kind_of: Callable[[object], JobKind] | None
    ) -> None:
        record = order.record
        super().__init__(
            record,
            Held(record.id, _NO_TOKEN, record.fence),
            cast("Store", _FarStore(outside)),
            max_bytes=order.max_bytes,
            kind_of=kind_of,
        )
        self._outer_log = log

    @property
    def log(self) -> JobLogger:
        return self._outer_log


class Inside:
    """One attempt: payload, scope, handler under its limit, scope's end, result as JSON.

    It may be made in any thread; it runs in the loop of its sandbox.

    Attributes:
        order: What to run.
        context: What the handler sees of it.
        timed_out: Whether it passed its limit.
    """

    def __init__(self, order: Order, handlers: Handlers, outside: Outside, log: JobLogger) -> None:
        self.order = order
        self.context: JobContext = _Context(order, outside, log, handlers.kind_of)
        self.timed_out = False
        self._handlers = handlers
        self._scope: anyio.CancelScope | None = None

    def cancel(self) -> None:
        """Stop the run; repeatable. To be called in its loop; elsewhere set ``context.cancelled`` first."""
        self.context.cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> bytes:
        """Return the result as JSON, or raise what ended the attempt.

        Raises:
            JobTimeoutError: It passed its limit.
            JobCancelledError: `cancel` was called.
        """
        captured = current_run.set(self.context if self.order.capture_logging else None)
        try:
            with anyio.CancelScope() as self._scope:
                if self.context.cancelled:
                    self._scope.cancel()
                return await self._run_limited()
        finally:
            self._scope = None
            current_run.reset(captured)
        raise JobCancelledError("cancelled while it ran", job_id=self.order.record.id)

    async def _run_limited(self) -> bytes:
        record, limit_ms = self.order.record, self.order.timeout_ms
        deadline = math.inf if limit_ms is None else anyio.current_time() + limit_ms / 1000
        stopped: asyncio.CancelledError | None = None
        with anyio.CancelScope(deadline=deadline):
            try:
                return await self._attempt()
            except asyncio.CancelledError as error:
                stopped = error
                raise
        self.timed_out = True
        raise timed_out(record, limit_ms or 0, stopped)

    async def _attempt(self) -> bytes:
        record, context = self.order.record, self.context
        handler = await self._handlers.find(record.queue, record.name)
        if handler is None:
            name = f"{record.queue}.{record.name}"
            raise UnknownJobError(f"the application of the sandbox has no handler {name!r}", name=name, known=())
        kind = handler.spec.kind
        job = self._job(kind)
        if handler.static is not None:
            return self._encode(kind, await _invoke(handler, handler.static, job, context))
        if handler.opening is None:
            raise RuntimeError(f"{handler.spec.label} has neither a scope nor a static call")
        scope = handler.opening(job, context)
        call = await scope.__aenter__()
        # dishka stops closing at the first cancellation.
        try:
            raw = self._encode(kind, await _invoke(handler, call, job, context))
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await scope.__aexit__(type(error), error, error.__traceback__)
            raise
        with anyio.CancelScope(shield=True):
            await scope.__aexit__(None, None, None)
        return raw

    def _job(self, kind: JobKind) -> Job[Any]:
        if kind.payload is None or kind.payload is type(None):
            return self.context.bind(None)
        try:
            return self.context.bind(decode(self.order.record.data, kind.payload_adapter))
        except StoreCorruptError as error:
            self.context.fatal = error
            raise
        except ValidationError as error:
            self.context.fatal = fault = unreadable(error)
            raise fault from None

    def _encode(self, kind: JobKind, value: object) -> bytes:
        try:
            return encode(value, kind.result_adapter, what="result", max_bytes=self.order.max_bytes)
        except (PayloadError, ValidationError) as error:
            self.context.fatal = error
            raise


async def _invoke(handler: Handler, call: Call, job: Job[Any], context: JobContext) -> Any:
    if handler.spec.is_async:
        return await call(job, context)
    # A limiter of its own: a thread that was left behind must not hold up the next job.
    limiter = anyio.CapacityLimiter(1)
    result = await anyio.to_thread.run_sync(call, job, context, abandon_on_cancel=True, limiter=limiter)
    return await result if inspect.isawaitable(result) else result
