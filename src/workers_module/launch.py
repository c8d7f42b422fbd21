"""From settings and registry to what runs: executor, hooks and runtime of this process."""

import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TypeVar

import anyio

from workers_module import __version__
from workers_module.client.handle import ResultWatcher
from workers_module.clock import Clock, span_ms
from workers_module.di.provider import Feature
from workers_module.di.registry import WorkerRegistry
from workers_module.di.target import child_command, load_target, open_handlers
from workers_module.job.outcome import Keep
from workers_module.job.record import JobRecord
from workers_module.job.sandbox import Sandbox
from workers_module.settings import RetentionLimits, WorkersSettings
from workers_module.store.base import Store
from workers_module.worker.capture import capturing
from workers_module.worker.executor import Executor, ExecutorSettings, Remote
from workers_module.worker.handler import Listener, WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.runtime import Runtime, RuntimeSettings, Workers
from workers_module.worker.sandbox import ProcessRunner, ThreadRunner, needed_sandboxes
from workers_module.worker.stepper import Stepper

_log = logging.getLogger(__name__)

RunnerT = TypeVar("RunnerT", ThreadRunner, ProcessRunner)


class Launcher:
    """Makes the working parts of one process.

    Attributes:
        app_id: The owner of the schedules declared here.
    """

    def __init__(
        self,
        settings: WorkersSettings,
        registry: WorkerRegistry,
        store: Store,
        clock: Clock,
        watcher: ResultWatcher,
        *,
        app_id: str,
    ) -> None:
        self.app_id = app_id
        self._settings = settings
        self._registry = registry
        self._store = store
        self._clock = clock
        self._watcher = watcher

    def executor(
        self,
        hooks: Hooks,
        *,
        store: Store | None = None,
        remotes: Mapping[Sandbox, Remote] | None = None,
        on_error: Callable[[JobRecord, BaseException], None] | None = None,
    ) -> Executor:
        """Return what runs jobs, with this application's limits.

        Args:
            hooks: Who is told.
            store: Where progress and log lines go, if not to the application's store.
            remotes: What runs sandboxed handlers; without it they run here.
            on_error: Told, besides the handles in this process, of each job that failed for good.
        """

        def note(record: JobRecord, error: BaseException) -> None:
            self._watcher.note_error(record.queue, record.id, error)
            if on_error is not None:
                on_error(record, error)

        return Executor(
            store or self._store,
            hooks=hooks,
            settings=self.executor_settings,
            remotes=remotes,
            backoffs=self._registry.backoffs,
            kind_of=self._registry.kind_of,
            on_error=note,
        )

    @property
    def executor_settings(self) -> ExecutorSettings:
        """The settings as the executor knows them."""
        settings = self._settings
        return ExecutorSettings(
            job_timeout_ms=None if settings.job_timeout is None else span_ms(settings.job_timeout),
            kill_after_ms=span_ms(settings.kill_after),
            max_payload_bytes=settings.max_payload_bytes,
            keep_completed=_keep(settings.retention.completed),
            keep_failed=_keep(settings.retention.failed),
            capture_logging=settings.capture_logging,
            sandbox=settings.sandbox,
        )

    @property
    def runtime_settings(self) -> RuntimeSettings:
        """The settings as the loops know them."""
        settings = self._settings
        return RuntimeSettings(
            app_id=self.app_id,
            lease_ms=span_ms(settings.lease),
            sweep_interval_ms=span_ms(settings.sweep_interval),
            max_crashes=settings.max_crashes,
            unknown_job_grace_ms=span_ms(settings.unknown_job_grace),
            shutdown_grace_ms=span_ms(settings.shutdown_grace),
            kill_after_ms=span_ms(settings.kill_after),
            version=__version__,
            tags=settings.tags,
            cron=settings.cron,
            keep_completed=_keep(settings.retention.completed),
            keep_failed=_keep(settings.retention.failed),
            declared=frozenset((spec.queue, spec.name) for spec in self._registry.schedules),
        )

    @asynccontextmanager
    async def running(
        self,
        workers: Workers,
        names: Collection[str],
        *,
        listeners: Iterable[Listener] = (),
    ) -> AsyncGenerator[None]:
        """Run the loops of this process meanwhile, and show them in ``workers``.

        Args:
            workers: Shows what runs.
            names: The selected workers; none run nothing.
            listeners: Also told of worker events.
        """
        if self._settings.queue.dangerously_flush:
            await _flush(self._store)
        if not names:
            yield
            return
        plan = await self._registry.plan(names, concurrency=self._settings.concurrency)
        hooks = Hooks([*plan.listeners, *listeners])
        captured = capturing() if self._settings.capture_logging else nullcontext()
        async with self._sandboxes(plan) as remotes:
            executor = self.executor(hooks, remotes=remotes)
            runtime = Runtime(
                self._store, plan, self.runtime_settings, executor=executor, hooks=hooks, clock=self._clock
            )
            with captured:
                async with runtime:
                    workers.attach(runtime)
                    try:
                        yield
                    finally:
                        workers.attach(None)

    @asynccontextmanager
    async def _sandboxes(self, plan: WorkPlan) -> AsyncGenerator[Mapping[Sandbox, Remote]]:
        """Keep what runs sandboxed handlers, where the plan has any.

        Raises:
            ConfigurationError: There are some, but no target (``WORKERS_APP``) to build their container from.
        """
        settings = self._settings
        handlers = [handler for queue in plan.queues for handler in queue.all_handlers]
        needed = needed_sandboxes([handler.spec for handler in handlers], settings.sandbox, target=settings.app)
        target = settings.app
        if not needed or target is None:
            yield {}
            return
        load_target(target, anew=Sandbox.THREAD in needed)
        if settings.in_memory:
            _log.warning("jobs that sandboxed handlers enqueue are lost: each sandbox has a memory of its own")
        runners: dict[Sandbox, ThreadRunner | ProcessRunner] = {}
        if Sandbox.THREAD in needed:
            runners[Sandbox.THREAD] = self._runner(
                partial(ThreadRunner, partial(open_handlers, target, anew=True)), plan
            )
        if Sandbox.PROCESS in needed:
            runners[Sandbox.PROCESS] = self._runner(partial(ProcessRunner, child_command(target)), plan)
        try:
            yield runners
        finally:
            with anyio.CancelScope(shield=True):
                for runner in runners.values():
                    await runner.close()

    def _runner(self, make: Callable[..., RunnerT], plan: WorkPlan) -> RunnerT:
        settings = self._settings
        return make(
            store=self._store,
            size=max(queue.concurrency for queue in plan.queues),
            # The executor gives a run up after kill_after; what kills it must be done by then.
            kill_after_ms=max(1, span_ms(settings.kill_after) // 2),
            max_bytes=settings.max_payload_bytes,
            capture_logging=settings.capture_logging,
        )

    async def stepper(self, on_error: Callable[[JobRecord, BaseException], None], *, alone: bool = False) -> Stepper:
        """Return what runs due jobs of all workers in the caller's task, for tests.

        Args:
            on_error: Told of each job that failed for good.
            alone: It stands for the whole fleet: jobs of every tag are its own, and so is what was abandoned.
        """
        plan = await self._registry.plan(self._registry.select("all"), concurrency=1)
        hooks = Hooks(plan.listeners)
        settings = self.runtime_settings
        ticker, ticks = settings.schedules(self._store, plan, self._clock)
        return Stepper(
            self._store,
            plan,
            executor=self.executor(hooks, on_error=on_error),
            hooks=hooks,
            settings=settings.consumer,
            ticker=ticker,
            ticks=ticks,
            sweeper=settings.sweeper(self._store, ticker, hooks) if alone else None,
            every_tag=alone,
        )


async def _flush(store: Store) -> None:
    for queue in await store.queues():
        _log.warning("WORKERS_QUEUE__DANGEROUSLY_FLUSH: everything in queue %r is deleted", queue)
        while not await store.obliterate(queue, force=True):
            pass


def application_id(features: Sequence[Feature]) -> str:
    """Return the top package of the root's first class or function: the owner of schedules unless a setting says it."""
    roots = [feature for feature in features if feature.is_root]
    for feature in (*roots, *features):
        for handler in feature.explored.handlers:
            return handler.entry.function.__module__.partition(".")[0]
    return "app"


def _keep(limits: RetentionLimits) -> Keep:
    age: timedelta | None = limits.age
    return Keep(count=limits.count, age_ms=None if age is None else span_ms(age))
