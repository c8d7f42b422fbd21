"""From settings and registry to what runs: executor, hooks and runtime of this process."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

from workers_module.client.handle import ResultWatcher
from workers_module.clock import Clock, span_ms
from workers_module.di.provider import Feature
from workers_module.di.registry import WorkerRegistry
from workers_module.job.outcome import Keep
from workers_module.job.record import JobRecord
from workers_module.settings import RetentionLimits, WorkerMode, WorkersSettings
from workers_module.store.base import Store
from workers_module.worker.capture import capturing
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.handler import Listener, WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.runtime import Runtime, RuntimeSettings
from workers_module.worker.stepper import Stepper


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

    def hooks(self, listeners: Iterable[Listener]) -> Hooks:
        """Return what tells these listeners."""
        return Hooks(listeners)

    def executor(
        self,
        hooks: Hooks,
        *,
        store: Store | None = None,
        on_error: Callable[[JobRecord, BaseException], None] | None = None,
    ) -> Executor:
        """Return what runs jobs, with this application's limits.

        Args:
            hooks: Who is told.
            store: Where progress and log lines go, if not to the application's store.
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
            tags=settings.tags,
            keep_completed=_keep(settings.retention.completed),
            keep_failed=_keep(settings.retention.failed),
            declared=frozenset((spec.queue, spec.name) for spec in self._registry.schedules),
        )

    def capturing(self) -> AbstractContextManager[None]:
        """Return what brings the handlers' log records to their jobs' logs meanwhile, if the settings ask for it."""
        return capturing() if self._settings.capture_logging else nullcontext()

    async def plan(self, *, only: Iterable[str] | None = None, force: bool = False) -> WorkPlan | None:
        """Return what this process is to run, or None for nothing."""
        settings = self._settings
        if settings.mode is WorkerMode.FOREGROUND_BLOCKING:
            return None
        names = self._registry.select(settings.enabled_workers, enabled=settings.enabled, only=only, force=force)
        return await self._registry.plan(names, concurrency=settings.concurrency) if names else None

    async def runtime(self, *, only: Iterable[str] | None = None, force: bool = False) -> Runtime | None:
        """Return the loops of this process, not started, or None when it is to run nothing."""
        plan = await self.plan(only=only, force=force)
        if plan is None:
            return None
        hooks = self.hooks(plan.listeners)
        return Runtime(
            self._store,
            plan,
            self.runtime_settings,
            executor=self.executor(hooks),
            hooks=hooks,
            clock=self._clock,
        )

    async def stepper(self, on_error: Callable[[JobRecord, BaseException], None]) -> Stepper:
        """Return what runs due jobs of all workers in the caller's task, for tests.

        Args:
            on_error: Told of each job that failed for good.
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
        )


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
