"""Runs jobs here and now: the intake of mode ``foreground_blocking``, and what `Dispatcher.perform_now` runs on."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from uuid import uuid4

import anyio

from workers_module.client.producer import Ran
from workers_module.di.found import FoundHandler
from workers_module.errors import JobCancelledError, JobFailedError, UnknownJobError
from workers_module.job.encoding import decode
from workers_module.job.failure import reason_of
from workers_module.job.outcome import Completed, Failed, Keep
from workers_module.job.record import Token
from workers_module.job.state import READY
from workers_module.store.base import Store
from workers_module.store.values import Added, Claimed, JobSpec, Settle, SettleCode, Step
from workers_module.worker.executor import Executor
from workers_module.worker.handler import Handler
from workers_module.worker.hooks import Hooks
from workers_module.worker.run import Run

_log = logging.getLogger(__name__)

_WORKER: Final = "foreground"
_LEASE_MS: Final = 365 * 86_400_000
"""Nobody else works on this store, so no lease needs to run out."""

Place = tuple[str, tuple[str, ...]]
"""A queue, and the tags of the jobs that one claim brings."""


class Handlers(Protocol):
    """Knows the handlers of a container; `WorkerRegistry` does."""

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of all handlers."""
        ...

    def handler_for(self, queue: str, name: str) -> FoundHandler | None:
        """Return the handler of a job by its queue and name."""
        ...

    async def bound(self, handler: FoundHandler) -> Handler:
        """Return a handler with the container behind it."""
        ...


@dataclass(slots=True)
class _Ended:
    """How a job ended that was run here."""

    id: str
    result: bytes = b"null"
    error: BaseException | None = None

    def value(self) -> bytes:
        """Return the result in JSON, or raise the error."""
        if isinstance(self.error, asyncio.CancelledError):
            # The handler raised it by itself; as it is, it would look as if the caller were cancelled.
            raise JobFailedError(reason_of(self.error), job_id=self.id, error_type="CancelledError") from self.error
        if self.error is not None:
            raise self.error
        return self.result


class ForegroundIntake:
    """Adds jobs to a store of this process and runs each at once, in the caller's task.

    A job has one attempt, whatever its options say, in a scope of its own; delay, due time and priority are ignored,
    and so is the caller's transaction. Jobs that a handler enqueues run within it. A job whose queue is paused or
    limited stays in the store.
    """

    def __init__(self, store: Store, registry: Handlers, executor: Executor, *, hooks: Hooks | None = None) -> None:
        """Prepare to run jobs.

        Args:
            store: A store that nothing else consumes; the executor's.
            registry: Knows the handlers.
            executor: Runs them.
            hooks: Who is told how jobs ended.
        """
        self._store = store
        self._registry = registry
        self._executor = executor
        self._hooks = hooks
        # What makes jobs ready and the claim that takes them are one step: concurrent callers keep to their own.
        self._claiming = anyio.Lock()

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None) -> list[Added | Ran]:  # noqa: ARG002
        """Add jobs and run them in this order; what they release (parents, say) runs after them.

        Args:
            specs: The jobs.
            tx: Ignored: the jobs have run before any transaction could end.

        Returns:
            `Ran` for each job that ran, `Added` for those that were there already or did not run.

        Raises:
            UnknownJobError: There is no handler for one of them; nothing is added, and nothing runs.
            Exception: What the first failing handler raised, once all have run.
        """
        for spec in specs:
            if self._registry.handler_for(spec.queue, spec.name) is None:
                known = self._registry.names
                raise UnknownJobError(
                    f"no handler '{spec.queue}.{spec.name}'; available: {', '.join(known) or 'none'}",
                    name=f"{spec.queue}.{spec.name}",
                    known=known,
                )
        prepared = [_at_once(spec) for spec in specs]
        async with self._claiming:
            added = await self._store.add(prepared)
            wanted = Counter((spec.queue, spec.tags) for spec, one in zip(prepared, added, strict=True) if _is_new(one))
            claimed = await self._claim(wanted)
        order = {(spec.queue, one.id): place for place, (spec, one) in enumerate(zip(prepared, added, strict=True))}
        claimed.sort(key=lambda one: order.get((one.record.queue, one.record.id), len(order)))
        ended = await self._run_all(claimed)
        answers: list[Added | Ran] = []
        for spec, one in zip(prepared, added, strict=True):
            end = ended.get((spec.queue, one.id)) if one.existing is None else None
            answers.append(one if end is None else Ran(one.id, end.value()))
        return answers

    async def run(self, spec: JobSpec) -> Any:
        """Run a job that is stored nowhere for longer than it runs.

        Returns:
            What its handler returned, as JSON carries it.

        Raises:
            UnknownJobError: There is no handler for it.
            Exception: What the handler raised.
        """
        keep = Keep(count=0)
        single = spec._replace(id=f"now-{uuid4().hex}", dedup=None, parent=None, tags=())
        async with self._claiming:
            await self._store.add([_at_once(single)])
            claimed = await self._claim(Counter([(spec.queue, ())]))
        ended = await self._run_all(claimed, keep=keep)
        end = ended.get((spec.queue, single.id or ""))
        if end is None:
            raise JobFailedError(f"queue {spec.queue!r} is paused or limited", job_id=single.id or "")
        found = self._registry.handler_for(spec.queue, spec.name)
        # What the other ways of running it would give; a difference would only show in production.
        return decode(end.value(), None if found is None else found.kind.result_adapter)

    async def perform(self, handler: FoundHandler, data: bytes) -> Any:
        """Run a handler with a payload in JSON; see `run`."""
        kind = handler.kind
        return await self.run(JobSpec(queue=kind.queue, name=handler.job_name, data=data))

    async def _claim(self, wanted: Counter[Place]) -> list[Claimed]:
        claimed: list[Claimed] = []
        for (queue, tags), count in wanted.items():
            step = _step(queue, take=count, tags=tags)
            claimed += (await self._store.step(step)).jobs
        return claimed

    async def _run_all(self, claimed: Sequence[Claimed], *, keep: Keep | None = None) -> dict[tuple[str, str], _Ended]:
        ended: dict[tuple[str, str], _Ended] = {}
        waiting = list(claimed)
        try:
            while waiting:
                one = waiting[0]
                end, released = await self._run_one(one, keep)
                ended[one.record.queue, one.record.id] = end
                waiting = [*waiting[1:], *released]
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(waiting)
            raise
        return ended

    async def _run_one(self, claimed: Claimed, keep: Keep | None) -> tuple[_Ended, list[Claimed]]:
        record = claimed.record
        found = self._registry.handler_for(record.queue, record.name)
        if found is None:
            unknown = JobFailedError(f"no handler for job {record.name!r}", job_id=record.id)
            return _Ended(record.id, error=unknown), await self._settle(self._executor.fail(claimed, unknown), claimed)
        try:
            handler = await self._registry.bound(found)
        except Exception as error:
            failed = JobFailedError(reason_of(error), job_id=record.id)
            return _Ended(record.id, error=error), await self._settle(self._executor.fail(claimed, failed), claimed)
        run = await self._executor.execute_here(handler, claimed)
        outcome = run.outcome
        if not isinstance(outcome, Completed | Failed):
            # "Not now" has no later here.
            run.error = run.error or JobFailedError("it ended without a result", job_id=record.id)
            run.outcome = outcome = Failed(reason_of(run.error))
        if keep is not None:
            outcome = replace(outcome, keep=keep)
        released: list[Claimed] = []
        with anyio.CancelScope(shield=True):
            released = await self._settle(Settle(claimed.held, outcome), claimed, run)
        if self._hooks is not None:
            for event in run.worker_events:
                await self._hooks.deliver(event)
        result = outcome.result if isinstance(outcome, Completed) else b"null"
        return _Ended(record.id, result, run.error), released

    async def _settle(self, settle: Settle, claimed: Claimed, run: Run | None = None) -> list[Claimed]:
        """Settle a job, and claim what its end makes ready: its parent, or the successor that was kept for it."""
        record = claimed.record
        async with self._claiming:
            reply = await self._store.step(_step(record.queue, settle))
            code = reply.settled[0]
            refused = None if run is None else self._executor.refused(run, code)
            if refused is not None:
                reply = await self._store.step(_step(record.queue, refused))
                code = reply.settled[0]
            if code is not SettleCode.OK:
                _log.warning("job %s of queue %s was not settled: %s", record.id, record.queue, code)
            places: Counter[Place] = Counter()
            if record.dedup is not None:
                places[record.queue, record.tags] += 1
            if record.parent is not None:
                parent = (await self._store.get(record.parent.queue, [record.parent.id], payload=False))[0]
                if parent is not None and parent.state in READY:
                    places[parent.queue, parent.tags] += 1
            return await self._claim(places)

    async def _abandon(self, claimed: Iterable[Claimed]) -> None:
        """End the jobs that a cancelled caller leaves behind."""
        for one in claimed:
            error = JobCancelledError("cancelled together with its caller", job_id=one.record.id)
            await self._store.step(_step(one.record.queue, self._executor.fail(one, error)))


def _at_once(spec: JobSpec) -> JobSpec:
    # In front of whatever a pause has left behind, so that the claim brings this job.
    return spec._replace(delay_ms=0, due=None, priority=0, lifo=True, max_attempts=1)


def _is_new(added: Added) -> bool:
    return added.existing is None and added.state in READY


def _step(queue: str, *settles: Settle, take: int = 0, tags: tuple[str, ...] = ()) -> Step:
    token = Token(f"{_WORKER}-{uuid4().hex}")
    return Step(queue=queue, worker=_WORKER, token=token, outcomes=settles, take=take, lease_ms=_LEASE_MS, tags=tags)
