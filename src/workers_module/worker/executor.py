"""Runs one job and says how it ended. It settles nothing: the outcome is a value that the consumer carries on."""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

import anyio
import anyio.to_thread
from pydantic import ValidationError

from workers_module.clock import duration_ms
from workers_module.errors import (
    JobCancelledError,
    JobFailedError,
    PayloadError,
    StoreCorruptError,
    StoreError,
    WorkersError,
)
from workers_module.job.encoding import coder
from workers_module.job.events import WorkerEvent, WorkerEventName
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.outcome import (
    Completed,
    Failed,
    Keep,
    Outcome,
    Release,
    Retry,
    RetryLaterError,
    Snooze,
    WaitChildren,
)
from workers_module.job.record import JobRecord
from workers_module.job.sandbox import Sandbox
from workers_module.job.stored import StoredOptions, read_options
from workers_module.store.base import Store
from workers_module.store.values import Claimed, Settle, SettleCode
from workers_module.worker.capture import current_run
from workers_module.worker.context import JobContext
from workers_module.worker.eager import begin
from workers_module.worker.handler import Call, Handler
from workers_module.worker.hooks import Hooks
from workers_module.worker.report import report_end, report_start
from workers_module.worker.run import CancelReason, Run, Watch
from workers_module.worker.verdict import Backoffs, Verdict, timed_out, unreadable

_log = logging.getLogger(__name__)


class Remote(Protocol):
    """Runs a handler somewhere that can be killed: a thread with a loop of its own, or a child process."""

    async def run(self, record: JobRecord, context: JobContext, timeout_ms: int | None) -> bytes:
        """Return the result as JSON, or raise what the handler raised; cancelling it stops the work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """What a run needs to know.

    Attributes:
        job_timeout_ms: The limit of a run whose job and handler name none; None for no limit.
        kill_after_ms: How long a cancelled run may take to end before its slot is given up.
        max_payload_bytes: The largest result and progress.
        keep_completed: Retention of jobs that name none.
        keep_failed: Retention of jobs that name none.
        capture_logging: Whether the handler's log records go to the job's log.
        sandbox: Where handlers run that name no sandbox.
    """

    job_timeout_ms: int | None = 30_000
    kill_after_ms: int = 2_000
    max_payload_bytes: int = 1_048_576
    keep_completed: Keep = field(default_factory=lambda: Keep(count=1_000, age_ms=3_600_000))
    keep_failed: Keep = field(default_factory=lambda: Keep(count=5_000, age_ms=604_800_000))
    capture_logging: bool = False
    sandbox: Sandbox = Sandbox.NONE


class _Plan:
    """What a handler's runs share, looked up once."""

    __slots__ = ("handler", "is_async", "no_payload", "payload", "remote", "result", "timeout_ms")

    def __init__(self, handler: Handler, settings: ExecutorSettings, remotes: Mapping[Sandbox, Remote]) -> None:
        kind = handler.spec.kind
        self.handler = handler
        self.is_async = handler.spec.is_async
        self.no_payload = kind.payload is None or kind.payload is type(None)
        self.payload = coder(kind.payload_adapter)
        self.result = coder(kind.result_adapter)
        self.timeout_ms = _own_timeout(kind, settings)
        self.remote = remotes.get(handler.spec.sandbox or settings.sandbox)


def _own_timeout(kind: JobKind, settings: ExecutorSettings) -> int | None:
    if "timeout" not in kind.options:
        return settings.job_timeout_ms
    own = kind.options["timeout"]
    return None if own is None else duration_ms(own, f"timeout of {kind.full_name}")


class Executor:
    """Runs attempts: payload, scope, handler under its limit, scope's end, outcome."""

    def __init__(
        self,
        store: Store,
        *,
        hooks: Hooks,
        settings: ExecutorSettings,
        backoffs: Backoffs | None = None,
        kind_of: Callable[[object], JobKind] | None = None,
        remotes: Mapping[Sandbox, Remote] | None = None,
        on_error: Callable[[JobRecord, BaseException], None] | None = None,
    ) -> None:
        """Prepare to run jobs of one process.

        Args:
            store: Where progress and log lines go.
            hooks: Who is told.
            settings: Limits and retention.
            backoffs: The application's own backoff functions.
            kind_of: Finds the kind of job a handler reference means.
            remotes: Runners for sandboxed handlers; those of a sandbox without a runner run here.
            on_error: Told the original exception of each job that failed for good, so that a waiter in this process
                gets it as a cause.
        """
        self._store = store
        self._hooks = hooks
        self._settings = settings
        self._kind_of = kind_of
        self._remotes = remotes or {}
        self._verdict = Verdict(settings.keep_failed, backoffs or {}, on_error)
        self._plans: dict[int, _Plan] = {}
        self._watch = Watch(self._overdue)
        self._threads = anyio.CapacityLimiter(math.inf)

    def start(self, handler: Handler, claimed: Claimed, ended: Callable[[Run], None]) -> Run:
        """Run a job in a task of its own.

        The task starts at once where Python can do that, so a short job may be over, and ``ended`` called, before this
        returns.

        Args:
            handler: What runs it.
            claimed: The job.
            ended: Called once, on the loop: when the run has ended, or when it was given up.
        """
        run = Run(self, handler, claimed, self._context(claimed), ended)
        run.task = begin(self._execute(run))
        return run

    async def execute_here(self, handler: Handler, claimed: Claimed) -> Run:
        """Run a job in the caller's task and return when it has ended; a cancelled caller ends it as a release.

        Returns:
            The run: ``outcome``, ``result``, ``error``.
        """
        run = Run(self, handler, claimed, self._context(claimed))
        await self._execute(run)
        return run

    def fail(self, claimed: Claimed, error: JobFailedError) -> Settle:
        """Return the end of a job that is not run at all: a deferred failure, an unknown name, unreadable data."""
        settle = self._verdict.without_run(claimed, error)
        report_end(claimed.record, settle.outcome, error)
        return settle

    def refused(self, run: Run, code: SettleCode) -> Settle | None:
        """Return what to send next when the store refused a completion because of the job's children, else None."""
        job_id = run.claimed.record.id
        if code is SettleCode.PENDING:
            error = JobFailedError("it returned while children of it were pending", job_id=job_id)
        elif code is SettleCode.CHILD_FAILED:
            error = JobFailedError("a child of it failed", job_id=job_id)
        else:
            return None
        settle = self.fail(run.claimed, error)
        run.error, run.outcome = error, settle.outcome
        return settle

    def events_of(self, run: Run) -> tuple[WorkerEvent, ...]:
        """Return what listeners are told of how a run ended."""
        queue = run.claimed.record.queue
        wanted = self._hooks.wanted(queue)
        if not wanted:
            return ()
        names: tuple[WorkerEventName, ...]
        match run.outcome:
            case Completed():
                names = ("completed",)
            case Retry():
                names = ("failed",)
            case Failed():
                names = ("failed", "retries_exhausted")
            case Snooze() | Release() | WaitChildren() | None:
                names = ()
            case _ as never:
                assert_never(never)
        job, context = run.context.job_or_bare, run.context
        return tuple(
            WorkerEvent(name=name, queue=queue, job=job, result=run.result, error=run.error, context=context)
            for name in names
            if name in wanted
        )

    def give_up_later(self, run: Run) -> None:
        """Start the time a cancelled run has to end."""
        self._watch.limit(run, self._settings.kill_after_ms)

    def _context(self, claimed: Claimed) -> JobContext:
        return JobContext(
            claimed.record,
            claimed.held,
            self._store,
            max_bytes=self._settings.max_payload_bytes,
            tell=self._hooks.tell if "progress" in self._hooks.wanted(claimed.record.queue) else None,
            kind_of=self._kind_of,
        )

    async def _execute(self, run: Run) -> None:
        run.task = task = asyncio.current_task()
        report_start(run.claimed.record)
        cancels_before = task.cancelling() if task is not None else 0
        self._watch.add(run)
        outcome: Outcome | None
        try:
            stored = read_options(run.claimed.record.opts)
            result = await self._call(run, self._plan(run.handler), stored)
            run.closing = True
            outcome = Completed(result, stored.keep_completed or self._settings.keep_completed)
            if run.context.has_log:
                await _flush(run.context)
        except asyncio.CancelledError as error:
            if run.reason is None and task is not None and task.cancelling() > cancels_before:
                # Somebody cancelled the task itself: the job goes back, and the cancellation goes on.
                self._end(run, Release())
                raise
            outcome = await self._stopped(run, error)
        except GeneratorExit:
            raise
        except KeyboardInterrupt:
            self._end(run, Release())
            raise
        except BaseException as error:
            outcome = await self._raised(run, error)
        if run.reason is not None and task is not None and task.cancelling() > cancels_before:
            # The cancellation was ours, and it has been answered; a caller's own task goes on.
            task.uncancel()
        self._end(run, outcome)

    async def _call(self, run: Run, plan: _Plan, stored: StoredOptions) -> bytes:
        record = run.claimed.record
        context = run.context
        job = self._job(context, plan, record)
        limit = stored.timeout_ms if stored.has_timeout else plan.timeout_ms
        if limit is not None and plan.remote is None:
            self._watch.limit(run, limit)
        if "active" in self._hooks.wanted(record.queue):
            self._hooks.tell(WorkerEvent(name="active", queue=record.queue, job=job, context=context))
        if self._settings.capture_logging:
            current_run.set(context)
        if plan.remote is not None:
            # The limit is the runner's: waiting for a place there is no part of the run.
            raw = await plan.remote.run(record, context, limit)
            run.result = plan.result.decode(raw)
            return raw
        call = run.handler.static
        if call is not None:
            value = await call(job, context) if plan.is_async else await self._in_thread(call, job, context)
            return self._encode(run, plan, value)
        opening = run.handler.opening
        if opening is None:
            raise WorkersError(f"{run.handler.spec.label} has neither a scope nor a static call")
        scope = opening(job, context)
        call = await scope.__aenter__()
        try:
            value = await call(job, context) if plan.is_async else await self._in_thread(call, job, context)
            raw = self._encode(run, plan, value)
        except BaseException as error:
            run.closing = True
            with anyio.CancelScope(shield=True):
                await scope.__aexit__(type(error), error, error.__traceback__)
            raise
        run.closing = True
        if run.on_end is None:
            # In the caller's own task; its scopes must not cut the finalizers short.
            with anyio.CancelScope(shield=True):
                await scope.__aexit__(None, None, None)
        else:
            await scope.__aexit__(None, None, None)
        return raw

    def _job(self, context: JobContext, plan: _Plan, record: JobRecord) -> Job[Any]:
        if plan.no_payload:
            return context.bind(None)
        try:
            return context.bind(plan.payload.decode(record.data))
        except StoreCorruptError as error:
            context.fatal = error
            raise
        except ValidationError as error:
            context.fatal = fault = unreadable(error)
            raise fault from None

    async def _in_thread(self, call: Call, job: Job[Any], context: JobContext) -> Any:
        result = await anyio.to_thread.run_sync(call, job, context, abandon_on_cancel=True, limiter=self._threads)
        return await result if inspect.isawaitable(result) else result

    def _encode(self, run: Run, plan: _Plan, value: Any) -> bytes:
        run.result = value
        try:
            return plan.result.encode(value, "result", max_bytes=self._settings.max_payload_bytes)
        except (PayloadError, ValidationError) as error:
            run.context.fatal = error
            raise

    async def _raised(self, run: Run, error: BaseException) -> Outcome | None:
        if run.reason is CancelReason.LEASE_LOST:
            return None
        await _flush(run.context)
        run.error = error
        if isinstance(error, RetryLaterError):
            return Snooze(error.delay_ms)
        return self._verdict.on(run, error)

    async def _stopped(self, run: Run, error: asyncio.CancelledError) -> Outcome | None:
        record = run.claimed.record
        match run.reason:
            case CancelReason.LEASE_LOST:
                return None
            case CancelReason.SHUTDOWN:
                return Release()
            case CancelReason.TIMEOUT:
                return await self._raised(run, self._timed_out(run, error))
            case CancelReason.CANCELLED:
                return await self._raised(run, JobCancelledError("cancelled while it ran", job_id=record.id))
            case None:
                # The handler raised it by itself; nobody asked.
                return await self._raised(run, error)
            case _ as never:
                assert_never(never)

    def _timed_out(self, run: Run, error: asyncio.CancelledError | None) -> BaseException:
        stored = read_options(run.claimed.record.opts)
        limit = stored.timeout_ms if stored.has_timeout else self._plan(run.handler).timeout_ms
        return timed_out(run.claimed.record, limit or 0, error)

    def _plan(self, handler: Handler) -> _Plan:
        plan = self._plans.get(id(handler))
        if plan is None:
            plan = self._plans[id(handler)] = _Plan(handler, self._settings, self._remotes)
        return plan

    def _overdue(self, run: Run) -> None:
        if run.reason is None:
            run.cancel(CancelReason.TIMEOUT)
        else:
            self._give_up(run, run.reason)

    def _give_up(self, run: Run, reason: CancelReason) -> None:
        record = run.claimed.record
        _log.error(
            "job %s (%s.%s) did not end %d ms after its %s; its slot is given up, what it does now counts for nothing",
            *(record.id, record.queue, record.name, self._settings.kill_after_ms, reason.value),
        )
        if run.task is not None and run.closing:
            run.task.cancel()
        outcome: Outcome | None
        match reason:
            case CancelReason.LEASE_LOST:
                outcome = None
            case CancelReason.SHUTDOWN:
                outcome = Release()
            case CancelReason.TIMEOUT:
                run.error = self._timed_out(run, None)
                outcome = self._verdict.on(run, run.error)
            case CancelReason.CANCELLED:
                run.error = JobCancelledError("cancelled while it ran", job_id=record.id)
                outcome = self._verdict.on(run, run.error)
            case _ as never:
                assert_never(never)
        self._end(run, outcome)

    def _end(self, run: Run, outcome: Outcome | None) -> None:
        self._watch.discard(run)
        if run.ended:
            return
        run.ended = True
        run.outcome = outcome
        run.context.leave()
        report_end(run.claimed.record, outcome, run.error, took_s=time.monotonic() - run.begun)
        if run.on_end is not None:
            run.on_end(run)


async def _flush(context: JobContext) -> None:
    """Store the last log lines. What the handler did is not undone because they cannot be."""
    try:
        await context.flush()
    except StoreError as error:
        _log.warning("job %s: its last log lines are not stored: %s", context.job_or_bare.id, error)
