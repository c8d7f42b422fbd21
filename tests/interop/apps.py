"""Our side of the tests: applications made of the public API, any number of them on one Redis."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from dishka import AsyncContainer, make_async_container

from workers_module import (
    Dispatcher,
    FlowProducer,
    InjectQueue,
    Inspector,
    Job,
    JobContext,
    JobsAdmin,
    Queue,
    WorkersModule,
    WorkersSettings,
    processor,
)
from workers_module.di.registry import WorkerRegistry
from workers_module.launch import Launcher
from workers_module.settings import StoreSettings
from workers_module.store.base import Store
from workers_module.store.redis.store import RedisStore
from workers_module.worker.hooks import Hooks
from workers_module.worker.runtime import Runtime

QUEUES = ("mail", "parents", "children", "{q}", "{q}-parents")

Handle = Callable[[Job[Any], JobContext], Awaitable[Any]]


def consumer(queue: str, handle: Handle, *, concurrency: int = 1) -> type[object]:
    """Return a processor of a queue that handles every job in one way."""

    @processor(queue, concurrency=concurrency)
    class Consumer:
        def __init__(self, context: JobContext) -> None:
            self.context = context

        async def process(self, job: Job[Any]) -> Any:
            return await handle(job, self.context)

    return Consumer


class App:
    """What one application of ours holds."""

    def __init__(self, container: AsyncContainer, store: RedisStore) -> None:
        self.container = container
        self.store = store
        self._queues: dict[str, Queue[Any]] = {}

    async def open(self) -> None:
        """Fetch what tests ask for without waiting."""
        self.inspector = await self.container.get(Inspector)
        self.flows = await self.container.get(FlowProducer)
        self.dispatcher = await self.container.get(Dispatcher)
        self.admin = await self.container.get(JobsAdmin)
        for name in QUEUES:
            self._queues[name] = await self.container.get(Queue[Any], component=InjectQueue(name).component)

    def queue(self, name: str = "mail") -> Queue[Any]:
        """Return a queue by name."""
        return self._queues[name]

    @property
    def mail(self) -> Queue[Any]:
        """The queue most tests use."""
        return self._queues["mail"]


class Place:
    """Where a test's keys are, and the applications on it."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix

    def settings(self, **settings: Any) -> WorkersSettings:
        """Return the settings of an application here."""
        return WorkersSettings(
            queue=StoreSettings.model_validate({"uri": self.url, "prefix": self.prefix}), environment="test", **settings
        )

    @asynccontextmanager
    async def app(self, *processors: object, **settings: Any) -> AsyncGenerator[App]:
        """Open an application."""
        root = WorkersModule.for_root(self.settings(**settings), processors=processors, queues=QUEUES)
        container = make_async_container(root)
        try:
            store = await container.get(Store)
            assert isinstance(store, RedisStore)
            app = App(container, store)
            await app.open()
            yield app
        finally:
            await container.close()

    @asynccontextmanager
    async def working(
        self, *processors: object, only: Iterable[str] | None = None, settings: Any = None, **runtime: Any
    ) -> AsyncGenerator[App]:
        """Run an application's workers meanwhile.

        Args:
            processors: Its handlers.
            only: The workers to run, if not all.
            settings: Settings of the application.
            runtime: Fields of `RuntimeSettings`, also those no setting has.
        """
        async with AsyncExitStack() as stack:
            app = await stack.enter_async_context(self.app(*processors, **(settings or {})))
            launcher = await app.container.get(Launcher)
            registry = await app.container.get(WorkerRegistry)
            given = await app.container.get(WorkersSettings)
            plan = await registry.plan(registry.select(only=only), concurrency=given.concurrency)
            hooks = Hooks(plan.listeners)
            chosen = replace(launcher.runtime_settings, shutdown_grace_ms=5_000)
            chosen = replace(chosen, **runtime)
            executor = launcher.executor(hooks)
            await stack.enter_async_context(Runtime(app.store, plan, chosen, executor=executor, hooks=hooks))
            yield app
