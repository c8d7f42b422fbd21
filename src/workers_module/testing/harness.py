"""`worker_test`: an application's container, with jobs in memory, a clock that stands still and no running workers."""

import asyncio
import inspect
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from dishka import STRICT_VALIDATION, AsyncContainer, Provider, Scope, ValidationSettings, make_async_container
from dishka.provider import BaseProvider

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
from workers_module.store.memory import MemoryStore
from workers_module.store.open import open_store
from workers_module.worker.stepper import Stepper

T = TypeVar("T")

_PENDING: Final = (
    JobState.ACTIVE,
    JobState.WAITING,
    JobState.PRIORITIZED,
    JobState.DELAYED,
    JobState.WAITING_CHILDREN,
)
_PAGE: Final = 1_000


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
        reader: Callable[[str, tuple[JobState, ...]], list[JobRecord]],
        stepper: Stepper | None,
        failed: list[BaseException],
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

    @overload
    async def get(self, key: type[T]) -> T: ...
    @overload
    async def get(self, key: Any) -> Any: ...
    async def get(self, key: Any) -> Any:
        """Return an object from the container; what lives for one request gets a scope that ends with the test."""
        return await self.container.get(key)

    async def drain(self, *, raise_errors: bool = True) -> int:
        """Run everything that is due, and what that makes due in turn, one job after the other.

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
        return Job(record, decode(record.data, kind.payload_adapter))


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
        store: ``"memory"``, or ``"sqlite"`` for a real one in a file of its own, or the URL of a store.
        truncate: Delete everything in the store first.

    Raises:
        dishka.exceptions.NothingOverriddenError: Nothing provides a key of ``overrides``.

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
        chosen, reader = await _store(stack, store, clock)
        test = _TestProvider(chosen, clock, WorkerMode(mode) if mode is not None else None, overrides or {})
        checks = ValidationSettings(nothing_overridden=True, implicit_override=STRICT_VALIDATION.implicit_override)
        container = make_async_container(*providers, *added, test, validation_settings=checks)
        stack.push_async_callback(container.close)
        if truncate:
            for queue in await chosen.queues():
                while not await chosen.obliterate(queue, force=True):
                    pass
        failed: list[BaseException] = []
        stepper: Stepper | None = None
        if (await container.get(WorkersSettings)).mode is not WorkerMode.FOREGROUND_BLOCKING:
            stepper = await (await container.get(Launcher)).stepper(lambda _, error: failed.append(error))
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


Reader = Callable[[str, tuple[JobState, ...]], list[JobRecord]]


async def _store(stack: AsyncExitStack, kind: str | None, clock: FrozenClock) -> tuple[Store, Reader]:
    """Return an open store, and a way to read jobs from it without awaiting."""
    if kind in {None, "memory"}:
        memory = MemoryStore(clock=clock)
        await memory.open()
        stack.push_async_callback(memory.close)
        return memory, lambda queue, states: _at_once(_records(memory, queue, states))
    url = kind or ""
    if kind == "sqlite":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="worker-test-"))
        url = f"sqlite:///{Path(folder) / 'jobs.db'}"
    opened = open_store(url, clock=clock)
    await opened.open()
    stack.push_async_callback(opened.close)
    return opened, lambda queue, states: _in_thread(url, clock, queue, states)


async def _records(store: Store, queue: str, states: tuple[JobState, ...]) -> list[JobRecord]:
    found: list[JobRecord] = []
    while True:
        page = await store.page(queue, states, start=len(found), limit=_PAGE)
        found += page.items
        if not page.items or len(found) >= page.total:
            return found


def _at_once(call: Any) -> list[JobRecord]:
    """Return what a coroutine of the memory store returns; none of its calls ever waits."""
    try:
        call.send(None)
    except StopIteration as end:
        records: list[JobRecord] = end.value
        return records
    call.close()
    raise AssertionError("the memory store waited")


def _in_thread(url: str, clock: Clock, queue: str, states: tuple[JobState, ...]) -> list[JobRecord]:
    """Read with a client and an event loop of its own, so that a test can look without awaiting."""
    found: list[JobRecord] = []

    async def read() -> None:
        store = open_store(url, clock=clock)
        await store.open()
        try:
            found.extend(await _records(store, queue, states))
        finally:
            await store.close()

    thread = threading.Thread(target=asyncio.run, args=(read(),), name="reading jobs")
    thread.start()
    thread.join()
    return found
