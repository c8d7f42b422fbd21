"""All loops of a worker process in one task group: started together, stopped in order, within a time that is kept."""

import asyncio
import logging
import math
import os
import platform
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self, cast
from uuid import uuid4

import anyio
import anyio.abc

from workers_module.clock import Clock, Duration, duration_ms
from workers_module.errors import StoreError
from workers_module.job.outcome import Keep
from workers_module.store.base import Store
from workers_module.store.values import Beat, Capability, RateLimit, WorkerInfo
from workers_module.worker.consumer import ABREAST, LAST_WORDS_S, Consumer
from workers_module.worker.executor import Executor
from workers_module.worker.gate import Gate
from workers_module.worker.handler import Listener, WorkPlan
from workers_module.worker.hooks import Hooks, QueueEventFollower
from workers_module.worker.intake import ConsumerSettings, Tokens
from workers_module.worker.leases import MAX_BLOCK_MS, Leases
from workers_module.worker.leaving import StopCounts, stop_counts
from workers_module.worker.outage import Outage
from workers_module.worker.run import Run
from workers_module.worker.sweeper import Sweeper
from workers_module.worker.ticker import Ticker
from workers_module.worker.ticks import LocalTicks

_log = logging.getLogger(__name__)

BEAT_S: Final = 30.0
BEAT_TTL_MS: Final = 90_000


def _new_worker_id() -> str:
    return f"{platform.node() or 'worker'}:{os.getpid()}:{uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """What the loops of a process need to know.

    Attributes:
        app_id: The owner of declared schedules.
        worker_id: This process among all workers; made of host, pid and chance unless given.
        version: Of the package, for the list of workers.
        lease_ms: How long a claim holds without renewal.
        sweep_interval_ms: How often each queue is swept, by all processes together.
        max_crashes: Lost leases after which a job fails.
        unknown_job_grace_ms: How long jobs of an unknown name are parked.
        shutdown_grace_ms: How long running jobs may go on at a stop.
        kill_after_ms: How long a cancelled job may take to end; the executor's own value.
        max_block_ms: A loop blocked for so long is taken for dead.
        tags: Empty takes jobs without tags only.
        metrics: Minutes of counts kept per queue; 0 keeps none.
        rate: This process' own limit for each queue.
        keep_completed: The age in it is what sweeps apply.
        keep_failed: Likewise.
        cron: Whether schedules are written and tick here.
        declared: ``(queue, schedule name)`` of all schedules of the application, also of workers not selected here, so
        that theirs
            are not removed; None: those of the plan are all.
    """

    app_id: str = "app"
    worker_id: str = field(default_factory=_new_worker_id)
    version: str = ""
    lease_ms: int = 30_000
    sweep_interval_ms: int = 30_000
    max_crashes: int = 3
    unknown_job_grace_ms: int = 600_000
    shutdown_grace_ms: int = 25_000
    kill_after_ms: int = 2_000
    max_block_ms: int = MAX_BLOCK_MS
    tags: tuple[str, ...] = ()
    metrics: int = 0
    rate: RateLimit | None = None
    keep_completed: Keep = field(default_factory=lambda: Keep(count=1_000, age_ms=3_600_000))
    keep_failed: Keep = field(default_factory=lambda: Keep(count=5_000, age_ms=604_800_000))
    cron: bool = True
    declared: frozenset[tuple[str, str]] | None = None

    @property
    def consumer(self) -> ConsumerSettings:
        """What every consumer shares."""
        return ConsumerSettings(
            worker=self.worker_id,
            lease_ms=self.lease_ms,
            max_crashes=self.max_crashes,
            unknown_job_grace_ms=self.unknown_job_grace_ms,
            kill_after_ms=self.kill_after_ms,
            tags=self.tags,
            metrics=self.metrics,
            rate=self.rate,
        )

    def schedules(self, store: Store, plan: WorkPlan, clock: Clock) -> tuple[Ticker, LocalTicks]:
        """Return what keeps the schedules of a plan: those in the store, and those past it."""
        lock_ms = self.lease_ms + max(self.lease_ms, self.max_block_ms)
        specs = plan.schedules if self.cron else ()
        ticker = Ticker(
            store,
            specs,
            owner=self.app_id,
            queues=[queue.queue for queue in plan.queues],
            declared=self.declared,
            worker=self.worker_id,
            lock_ms=lock_ms,
        )
        return ticker, LocalTicks(specs, plan.ticks, store=store, clock=clock, lock_ms=lock_ms)

    def sweeper(self, store: Store, ticker: Ticker, hooks: Hooks) -> Sweeper:
        """Return what sweeps the queues of a ticker."""
        return Sweeper(
            store,
            ticker.queues,
            hooks=hooks,
            ticker=ticker,
            interval_ms=self.sweep_interval_ms,
            lease_ms=self.lease_ms,
            max_crashes=self.max_crashes,
            completed_age_ms=self.keep_completed.age_ms,
            failed_age_ms=self.keep_failed.age_ms,
        )


class Runtime:
    """Runs a plan on a store.

    Example::

        async with Runtime(store, plan, settings, executor=executor, hooks=hooks) as runtime:
            await runtime.wait()
    """

    def __init__(
        self,
        store: Store,
        plan: WorkPlan,
        settings: RuntimeSettings,
        *,
        executor: Executor,
        hooks: Hooks,
        clock: Clock | None = None,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            store: Where the jobs are; opened by `start` if it is not open, never closed here.
            plan: What to run.
            settings: How.
            executor: Runs the jobs.
            hooks: Who is told.
            clock: This process' clock, for what fires past the store.
        """
        self._store = store
        self._plan = plan
        self._settings = settings
        self._hooks = hooks
        self._clock = clock or Clock()
        self._ticker, self._ticks = settings.schedules(store, plan, self._clock)
        gate, tokens = Gate(), Tokens()
        self._consumers = [
            Consumer(
                store,
                queue,
                executor=executor,
                hooks=hooks,
                settings=settings.consumer,
                gate=gate,
                ticker=self._ticker,
                tokens=tokens,
                on_hold=self._on_hold,
            )
            for queue in plan.queues
        ]
        self._leases: Leases | None = None
        self._main: asyncio.Task[None] | None = None
        self._started_ms = 0
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._deadline = math.inf
        self._left_running: list[Run] = []
        self._draining = False
        self._preparing = anyio.CancelScope()
        self._ticking = anyio.CancelScope()

    @property
    def running(self) -> tuple[str, ...]:
        """The names of the workers at work here, sorted; empty before the start and after the end."""
        if self._main is None or self._main.done():
            return ()
        names = {name for queue in self._plan.queues for name in queue.worker_names}
        return tuple(sorted(names | {spec.worker for spec in self._plan.schedules if self._settings.cron}))

    @property
    def claiming(self) -> bool:
        """Whether it works and takes new jobs."""
        at_work = self._main is not None and not self._main.done()
        return at_work and not self._draining and not self._stopping.is_set()

    @property
    def busy(self) -> int:
        """How many jobs run now."""
        return sum(consumer.busy for consumer in self._consumers)

    @property
    def left(self) -> StopCounts:
        """What became of the jobs that ran when the stop was asked for; it stands when the runtime has ended."""
        unsettled = {item for consumer in self._consumers for item in consumer.held.values()}
        return stop_counts(self._left_running, unsettled)

    async def start(self) -> None:
        """Begin to work.

        Returns when the declared schedules are written, or when the store turned out to be away for now.

        Raises:
            WorkersError: The store cannot be used, or a schedule cannot be written.
        """
        if self._main is not None:
            return
        info = await self._store.open()
        abreast = ABREAST if Capability.SERVER in info.capabilities else 1
        self._main = asyncio.get_running_loop().create_task(self._run(abreast), name="workers")
        self._main.add_done_callback(self._on_end)
        await self._ready.wait()
        if self._main.done():
            await self._main

    def request_stop(self, grace_ms: int | None = None) -> None:
        """Stop soon; returns at once. Repeatable; a later call may only bring the end forward.

        Args:
            grace_ms: How long running jobs may go on; None for the setting.
        """
        grace_ms = self._settings.shutdown_grace_ms if grace_ms is None else grace_ms
        deadline = asyncio.get_running_loop().time() + grace_ms / 1_000
        if deadline >= self._deadline:
            return
        if not self._stopping.is_set():
            held = [item for consumer in self._consumers for item in consumer.held.values()]
            self._left_running = [item for item in held if isinstance(item, Run) and not item.ended]
        self._deadline = deadline
        if self.busy:
            _log.info("%s, %.0f s left", "1 job runs" if self.busy == 1 else f"{self.busy} jobs run", grace_ms / 1_000)
        self._preparing.cancel()
        self._ticks.stop()
        self._ticking.deadline = deadline
        for consumer in self._consumers:
            consumer.stop(deadline)
        self._stopping.set()

    async def stop(self, grace_ms: int | None = None) -> None:
        """Stop and return when all has ended: three seconds after the grace at the latest, whatever jobs and store do.

        Raises:
            Exception: What ended a loop before it was asked to.
        """
        if self._main is None:
            return
        self.request_stop(grace_ms)
        await self.wait()

    async def wait(self) -> None:
        """Return when the runtime has ended.

        Raises:
            Exception: What ended a loop that was not asked to.
        """
        if self._main is None:
            return
        await asyncio.wait([self._main])
        if not self._main.cancelled():
            self._main.result()

    def drain(self) -> None:
        """Claim nothing more; what runs goes on, and the process stays."""
        self._draining = True
        for consumer in self._consumers:
            consumer.drain()
        self._ticks.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self.stop()
            except Exception as fault:
                # The body's own error says more than that of a loop; both are in the log.
                if error is None or isinstance(error, asyncio.CancelledError):
                    raise
                _log.debug("the body's %s hides %r", type(error).__name__, fault)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _on_hold(self) -> None:
        if self._leases is not None:
            self._leases.wake()

    def _on_end(self, main: asyncio.Task[None]) -> None:
        self._ready.set()
        error = None if main.cancelled() else main.exception()
        if error is not None:
            _log.critical("the workers have stopped because of an error", exc_info=error)

    async def _run(self, abreast: int) -> None:
        try:
            async with anyio.create_task_group() as background:
                await self._prepare()
                if not self._stopping.is_set():
                    await self._work(background, abreast)
                background.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first_of(group) from None

    async def _prepare(self) -> None:
        """Write the schedules and catch up, before the first claim; an outage is waited out."""
        outage = Outage("start", lambda _: self._ready.set())
        with self._preparing:
            if self._settings.cron:
                await outage.wait_out(self._ticker.prepare)
        self._ready.set()

    async def _work(self, background: anyio.abc.TaskGroup, abreast: int) -> None:
        self._started_ms = self._clock.now_ms()
        settings = self._settings
        self._leases = Leases(
            self._store, self._consumers, lease_ms=settings.lease_ms, max_block_ms=settings.max_block_ms
        )
        background.start_soon(self._leases.run, name="leases")
        if self._ticker.queues:
            background.start_soon(self._settings.sweeper(self._store, self._ticker, self._hooks).run, name="sweeper")
        for queue, listeners in self._followed():
            follower = QueueEventFollower(self._store, queue, listeners)
            background.start_soon(follower.run, name=f"events of {queue}")
        background.start_soon(self._beat, name="heartbeat")
        self._log_start()
        async with anyio.create_task_group() as working:
            working.start_soon(self._tick, name="ticks")
            for consumer in self._consumers:
                working.start_soon(partial(consumer.run, abreast=abreast), name=f"consumer of {consumer.queue}")
            await self._stopping.wait()
        await self._take_leave()

    async def _tick(self) -> None:
        with self._ticking:
            await self._ticks.run()

    def _followed(self) -> Iterator[tuple[str, list[Listener]]]:
        by_queue: dict[str, list[Listener]] = defaultdict(list)
        for listener in self._plan.listeners:
            if listener.queue_event is None:
                continue
            queues = [listener.queue] if listener.queue is not None else [queue.queue for queue in self._plan.queues]
            for queue in queues:
                by_queue[queue].append(listener)
        yield from by_queue.items()

    async def _beat(self) -> None:
        """Tell the store who is here, and obey what was left for this worker."""
        outage = Outage("heartbeat")
        while True:
            order = await outage.wait_out(lambda: self._store.worker(Beat(self._info(), BEAT_TTL_MS)))
            if order == "stop":
                _log.info("told to stop")
                self.request_stop()
            elif order == "drain":
                _log.info("told to claim nothing more")
                self.drain()
            await anyio.sleep(BEAT_S)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            id=self._settings.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._settings.version,
            started=self._started_ms,
            queues=tuple(consumer.queue for consumer in self._consumers),
            tags=self._settings.tags,
            slots=sum(consumer.concurrency for consumer in self._consumers),
            busy=self.busy,
        )

    async def _take_leave(self) -> None:
        # Within three seconds of the deadline all is over, whatever listeners and store do.
        end = self._deadline + self._settings.kill_after_ms / 1_000 + LAST_WORDS_S
        left = max(0.2, min(1.0, end - asyncio.get_running_loop().time()))
        async with anyio.create_task_group() as group:
            group.start_soon(self._hooks.finish, left)
            group.start_soon(self._say_goodbye, left)

    async def _say_goodbye(self, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            try:
                await self._store.worker(Beat(self._info(), 0))
            except StoreError as error:
                _log.debug("goodbye not said: %s", error)

    def _log_start(self) -> None:
        for queue in self._plan.queues:
            names = ", ".join(sorted(queue.handlers)) + (", *" if queue.catch_all is not None else "")
            _log.info("queue %s: %d at once; %s", queue.queue, queue.concurrency, names or "no handlers")
        completed, failed = self._settings.keep_completed, self._settings.keep_failed
        _log.info("workers started; completed jobs are kept %s, failed ones %s", _limits(completed), _limits(failed))


overseer: ContextVar[Callable[[Runtime], None] | None] = ContextVar("workers_module_overseer", default=None)
"""Told of each runtime that is started in this context: whoever has to stop workers that other code starts."""


class Workers:
    """The workers of this process, as the application sees them."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def attach(self, runtime: Runtime | None) -> None:
        """Show this runtime from now on; None when it is over."""
        self._runtime = runtime
        attend = overseer.get()
        if runtime is not None and attend is not None:
            attend(runtime)

    @property
    def running(self) -> tuple[str, ...]:
        """The names of the workers at work here, sorted; empty where none was started."""
        return () if self._runtime is None else self._runtime.running

    @property
    def claiming(self) -> bool:
        """Whether workers are at work here and take new jobs: not before the start, nor while they drain or stop."""
        return self._runtime is not None and self._runtime.claiming

    @property
    def busy(self) -> int:
        """How many jobs run here now."""
        return 0 if self._runtime is None else self._runtime.busy

    async def stop(self, grace: Duration | None = None) -> None:
        """Stop the workers and return when they have ended.

        Args:
            grace: How long running jobs may go on; None for the setting ``shutdown_grace``.
        """
        if self._runtime is not None:
            await self._runtime.stop(None if grace is None else duration_ms(grace, "Workers.stop"))

    async def wait(self) -> None:
        """Return when the workers have been stopped; at once where none was started.

        Raises:
            Exception: An error that ended them.
        """
        if self._runtime is not None:
            await self._runtime.wait()


def _limits(keep: Keep) -> str:
    age = "for ever" if keep.age_ms is None else f"{keep.age_ms / 3_600_000:g} h"
    return age if keep.count is None else f"{age}, at most {keep.count}"


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
