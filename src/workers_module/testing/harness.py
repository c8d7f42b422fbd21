"""`worker_test`: an application's container, with jobs in memory, a clock that stands still and no running workers."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar, overload

from dishka import (
    DEFAULT_COMPONENT,
    STRICT_VALIDATION,
    AsyncContainer,
    Provider,
    Scope,
    ValidationSettings,
    make_async_container,
)
from dishka.entities.key import hint_to_dependency_key
from dishka.provider import BaseProvider
from pydantic import ValidationError

from workers_module.client.producer import Producer
from workers_module.clock import Clock, Duration, FrozenClock, duration_ms
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.metadata import QueueRef
from workers_module.di.registry import WorkerRegistry
from workers_module.errors import ConfigurationError
from workers_module.job.encoding import decode
from workers_module.job.job import Job
from workers_module.job.record import JobRecord
from workers_module.job.state import ALL_STATES, JobState
from workers_module.launch import Launcher
from workers_module.module import WorkersModule
from workers_module.settings import StoreSettings, WorkerMode, WorkersSettings
from workers_module.store.base import Store
from workers_module.testing.place import Reader, open_place
from workers_module.worker.stepper import Stepper

T = TypeVar("T")

_PENDING: Final = (
    JobState.ACTIVE,
    JobState.WAITING,
    JobState.PRIORITIZED,
    JobState.DELAYED,
    JobState.WAITING_CHILDREN,
)


class WorkerTest:
    """One application under test. Nothing runs by itself: `drain` and `advance` run what is due, in the caller's task.

    Attributes:
        container: The application's container.
        dispatcher: Enqueues jobs by handler.
        clock: The clock of store and schedules; `advance` moves it and runs what becomes due.
        store: Where the jobs rest.
    """

    def __init__(
        self,
        container: AsyncContainer,
        store: Store,
        clock: FrozenClock,
        dispatcher: Dispatcher,
        registry: WorkerRegistry,
        producer: Producer,
        reader: Reader,
        stepper: Stepper | None,
        failed: list[BaseException],
        stack: AsyncExitStack,
    ) -> None:
        """Hold the parts; `worker_test` makes them."""
        self.container = container
        self.store = store
        self.clock = clock
        self.dispatcher = dispatcher
        self._registry = registry
        self._producer = producer
        self._read = reader
        self._stepper = stepper
        self._failed = failed
        self._stack = stack
        self._request: AsyncContainer | None = None

    @overload
    async def get(self, key: type[T]) -> T: ...
    @overload
    async def get(self, key: Any) -> Any: ...
    async def get(self, key: Any) -> Any:
        """Return an object from the container; what lives for one request gets a scope that ends with the test.

        Args:
            key: A type, or ``Annotated[Queue[EmailJob], InjectQueue("email")]``.
        """
        if self._request is None:
            self._request = await self._stack.enter_async_context(self.container())
        wanted = hint_to_dependency_key(key)
        return await self._request.get(wanted.type_hint, component=wanted.component or DEFAULT_COMPONENT)

    async def drain(self, *, raise_errors: bool = True) -> int:
        """Run everything that is due, and what that makes due in turn, one job after the other.

        Jobs with tags run too, unless the settings name tags: then only jobs with one of these do, as in a worker
        started with them.

        Args:
            raise_errors: Raise the error of the first job that failed for good, once all have run; False leaves it to
                be looked at with `jobs`.

        Returns:
            How many handlers and ticks ran.
        """
        if self._stepper is None:
            return 0
        self._failed.clear()
        ran = await self._stepper.run_due()
        if raise_errors and self._failed:
            raise self._failed[0]
        return ran

    async def advance(self, by: Duration, *, raise_errors: bool = True) -> int:
        """Move the clock on, and run what becomes due meanwhile at its time: delayed jobs, retries, schedules.

        Leases end on this clock too: a job whose worker is gone comes back, as from a real one.

        Args:
            by: How far.
            raise_errors: As in `drain`.

        Returns:
            How many handlers and ticks ran.
        """
        end = self.clock.now_ms() + duration_ms(by, "advance")
        ran = await self.drain(raise_errors=raise_errors)
        while self._stepper is not None:
            due = self._stepper.wake_at
            if due is None or due > end:
                break
            self.clock.set(max(due, self.clock.now_ms()))
            ran += await self.drain(raise_errors=raise_errors)
        self.clock.set(end)
        return ran + await self.drain(raise_errors=raise_errors)

    def jobs(self, queue: str, *states: str) -> list[Job[Any]]:
        """Return the jobs of a queue in some states (all unless given), with their payloads as the handler gets them.

        Args:
            queue: The queue's name.
            states: ``"completed"``, ``"failed"``, ``"delayed"``, …
        """
        wanted = tuple(JobState(state) for state in states) or ALL_STATES
        return [self._job(record) for record in self._read(queue, wanted)]

    def enqueued(self, handler: object = None) -> list[Job[Any]]:
        """Return the jobs that have not ended, in all queues or of one handler."""
        if handler is None:
            return [job for queue in self._registry.queues for job in self.jobs(queue, *_PENDING)]
        kind = self._registry.find(handler).kind
        return [job for job in self.jobs(kind.queue, *_PENDING) if kind.name is None or job.name == kind.name]

    async def assert_idempotent(
        self, handler: Any, data: Any, state: Callable[[], Awaitable[object] | object] | None = None
    ) -> None:
        """Run a handler twice with the same payload; its result, and the state it leaves, must be the same after both.

        Args:
            handler: As in `Dispatcher.perform_now`.
            data: The payload.
            state: Returns what the handler changes in a form that can be compared.

        Raises:
            AssertionError: They differ.
        """
        results: list[object] = []
        for _ in range(2):
            result: object = await self.dispatcher.perform_now(handler, data)
            seen = None if state is None else state()
            results.append((result, await seen if inspect.isawaitable(seen) else seen))
        first, second = results
        if first != second:
            raise AssertionError(f"the second run differs: {first!r} became {second!r}")

    def _job(self, record: JobRecord) -> Job[Any]:
        kind = self._registry.kind_for(record.queue, record.name)
        if kind is None:
            return Job(record, decode(record.data, None))
        if kind.payload is None:
            return Job(record, None)
        try:
            return Job(record, decode(record.data, kind.payload_adapter))
        except ValidationError:
            # Some other producer's; the job is there to be looked at all the same.
            return Job(record, decode(record.data, None))


@asynccontextmanager
async def worker_test(
    *providers: BaseProvider,
    processors: Iterable[object] = (),
    queues: Iterable[QueueRef] = (),
    overrides: Mapping[Any, Any] | None = None,
    mode: WorkerMode | str | None = None,
    store: str | None = None,
    truncate: bool = False,
) -> AsyncGenerator[WorkerTest]:
    """Build an application's container for a test, and close it.

    Jobs rest in memory, the clock stands still, and no worker runs: `WorkerTest.drain` and `WorkerTest.advance` run
    them.

    Args:
        providers: The application's own. Without a `WorkersModule` among them one is added for ``queues`` and
            ``processors``.
        processors: Decorated classes and functions, when there is no root.
        queues: Queue classes and names, when there is no root.
        overrides: Objects to be used in place of what the providers make, by dependency key.
        mode: ``"foreground_blocking"`` runs jobs where they are enqueued; else they wait for `WorkerTest.drain`.
        store: ``"memory"``; ``"sqlite"`` for a real one in a file of its own; ``"redis"`` or ``"postgres"`` for the
            server that ``WORKERS_TEST_REDIS_URL`` or ``WORKERS_TEST_POSTGRES_URL`` names (else the one of the
            settings); or a URL. On a server the test has a key prefix or schema of its own, which it deletes at the
            end, so tests may run side by side.
        truncate: Use one prefix or schema for all tests instead, empty it first, and leave there what the test stored.

    Raises:
        dishka.exceptions.NothingOverriddenError: Nothing provides a key of ``overrides``.
        ConfigurationError: ``store`` asks for a server that nothing names.

    Example:
        ::

            async with worker_test(AppProvider(), processors=[EmailProcessor], overrides={Mailer: fake}) as t:
                await (await t.get(Users)).register("ann@example.org")
                await t.drain()
                assert t.jobs("email", "completed")
    """
    roots = [provider for provider in providers if isinstance(provider, WorkersModule)]
    if roots and (tuple(processors) or tuple(queues)):
        raise ConfigurationError("worker_test: processors= and queues= belong to the WorkersModule that was given")
    added = () if roots else (WorkersModule.for_root(queues=queues, processors=processors),)
    clock = FrozenClock()
    async with AsyncExitStack() as stack:
        chosen, reader = await open_place(stack, store, clock, truncate=truncate)
        test = _TestProvider(chosen, clock, WorkerMode(mode) if mode is not None else None, overrides or {})
        checks = ValidationSettings(nothing_overridden=True, implicit_override=STRICT_VALIDATION.implicit_override)
        container = make_async_container(*providers, *added, test, validation_settings=checks)
        stack.push_async_callback(container.close)
        failed: list[BaseException] = []
        stepper: Stepper | None = None
        if (await container.get(WorkersSettings)).mode is not WorkerMode.FOREGROUND_BLOCKING:
            launcher = await container.get(Launcher)
            stepper = await launcher.stepper(lambda _, error: failed.append(error), alone=True)
            await stepper.begin()
        yield WorkerTest(
            container,
            chosen,
            clock,
            await container.get(Dispatcher),
            await container.get(WorkerRegistry),
            await container.get(Producer),
            reader,
            stepper,
            failed,
            stack,
        )


class _TestProvider(Provider):
    def __init__(self, store: Store, clock: FrozenClock, mode: WorkerMode | None, overrides: Mapping[Any, Any]) -> None:
        super().__init__(scope=Scope.APP)
        self.provide(lambda: clock, provides=Clock, override=True)
        self.provide(lambda: store, provides=Store, override=True)
        for key, value in overrides.items():
            self.provide(_constant(value), provides=key, override=True)

        def in_memory(settings: WorkersSettings) -> WorkersSettings:
            chosen = mode or (
                settings.mode if settings.mode is WorkerMode.FOREGROUND_BLOCKING else WorkerMode.BACKGROUND_ASYNC
            )
            return settings.model_copy(update={"mode": chosen, "queue": StoreSettings()})

        self.decorate(in_memory, provides=WorkersSettings)


def _constant(value: T) -> Callable[[], T]:
    def give() -> T:
        return value

    return give
