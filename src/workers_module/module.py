"""The wiring: settings and decorated classes in, a dishka provider out; and the life of the workers it makes."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Final

from dishka import AsyncContainer, Provider, Scope

from workers_module.client.admin import JobsAdmin
from workers_module.client.flow import FlowProducer
from workers_module.client.handle import ResultWatcher
from workers_module.client.inspector import Inspector
from workers_module.client.lock import DistributedLockService
from workers_module.client.producer import Producer, QueueSpec
from workers_module.clock import Clock, FrozenClock
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.foreground import ForegroundIntake
from workers_module.di.metadata import QueueRef
from workers_module.di.provider import Backoffs, Feature, FeatureProvider
from workers_module.di.registry import WorkerRegistry
from workers_module.di.schedules import Scheduler
from workers_module.errors import ConfigurationError, RegistrationError
from workers_module.launch import Launcher, application_id
from workers_module.settings import WorkerMode, WorkersSettings, explained_settings
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.open import open_store
from workers_module.worker.handler import Listener
from workers_module.worker.hooks import Hooks
from workers_module.worker.outage import Outage
from workers_module.worker.runtime import Workers

_log = logging.getLogger(__name__)

FEATURES: Final = "workers_module.features"
"""The entry-point group in which installed packages offer features."""

SettingsFactory = Callable[..., WorkersSettings | Awaitable[WorkersSettings]]


class WorkersModule(FeatureProvider):
    """The root: everything an application needs to enqueue, schedule and run its jobs, as one dishka provider.

    Example:
        ``container = make_async_container(AppProvider(), WorkersModule.for_root(processors=[EmailProcessor]))``
    """

    def __init__(
        self,
        settings: WorkersSettings | SettingsFactory | None = None,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
        clock: Clock | None = None,
    ) -> None:
        """Compile the root; `for_root`, `for_root_async` and `for_testing` are the ways to make one."""
        super().__init__("root", queues=queues, processors=processors, discover=discover, backoffs=backoffs, root=True)
        self.scope = Scope.APP
        if callable(settings):
            self.provide(settings, provides=WorkersSettings)
        else:
            self.provide(_settings_factory(settings), provides=WorkersSettings)
        self.provide(lambda: clock or Clock(), provides=Clock)
        self.provide(_store, provides=Store)
        self.provide(_registry)
        self.provide(_watcher)
        self.provide(_launcher)
        self.provide(_foreground)
        self.provide(_producer)
        self.provide(Dispatcher)
        self.provide(_scheduler)
        self.provide(_flows)
        self.provide(Inspector)
        self.provide(_admin)
        self.provide(DistributedLockService)
        self.provide(Workers)

    @classmethod
    def for_root(
        cls,
        settings: WorkersSettings | None = None,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
    ) -> "WorkersModule":
        """Return the root of an application.

        Args:
            settings: None reads them from the environment when they are first needed, never at import.
            queues: Queue classes and names. Handlers imply theirs.
            processors: Decorated classes and functions.
            discover: Packages whose decorated classes and functions are taken too.
            backoffs: Functions ``(attempt, error, job) -> Duration`` by the name that `Backoff.custom` uses.

        Raises:
            RegistrationError: Something given cannot be what it is decorated as: a line for each fault.
        """
        return cls(settings, queues=queues, processors=processors, discover=discover, backoffs=backoffs)

    @classmethod
    def for_root_async(
        cls,
        factory: SettingsFactory,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
    ) -> "WorkersModule":
        """Return the root of an application whose settings come from the container.

        Args:
            factory: Returns them, or an awaitable of them; its annotated parameters are dependencies.
            queues: As in `for_root`, like all that follow.
        """
        return cls(factory, queues=queues, processors=processors, discover=discover, backoffs=backoffs)

    @classmethod
    def for_testing(
        cls,
        settings: WorkersSettings | None = None,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
    ) -> "WorkersModule":
        """Return a root over the memory store, with a clock that stands still (`Clock` is a `FrozenClock`)."""
        chosen = settings or WorkersSettings(mode=WorkerMode.BACKGROUND_ASYNC)
        if not chosen.in_memory:
            raise ConfigurationError("for_testing keeps jobs in memory; use worker_test(store=...) for a real store")
        return cls(
            chosen, queues=queues, processors=processors, discover=discover, backoffs=backoffs, clock=FrozenClock()
        )

    @staticmethod
    def for_feature(
        name: str,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
    ) -> Provider:
        """Return a part of an application: its queues and handlers, to stand beside the root in the container.

        Args:
            name: What messages call it.
            queues: What it offers for injection.
            processors: As in `for_root`.
            discover: As in `for_root`.
            backoffs: As in `for_root`.
        """
        if name == "root":
            raise RegistrationError("a feature cannot be called 'root'; that is the name of WorkersModule.for_root")
        return FeatureProvider(name, queues=queues, processors=processors, discover=discover, backoffs=backoffs)

    @staticmethod
    def register_queue(*queues: QueueRef) -> Provider:
        """Return a provider that offers queues, by class or by name.

        Source: NestJS ``BullModule.registerQueue``.
        """
        names = ", ".join(queue if isinstance(queue, str) else queue.name for queue in queues)
        return FeatureProvider(f"register_queue({names})", queues=queues)

    @staticmethod
    def installed_features() -> tuple[Provider, ...]:
        """Return what installed packages offer in the entry-point group ``workers_module.features``.

        Raises:
            ConfigurationError: An entry is neither a provider nor a function that returns one.
        """
        found: list[Provider] = []
        for entry in sorted(entry_points(group=FEATURES), key=lambda one: one.name):
            offered = entry.load()
            feature = offered if isinstance(offered, Provider) else offered() if callable(offered) else offered
            if not isinstance(feature, Provider):
                raise ConfigurationError(
                    f"entry point {entry.name!r} ({entry.value}) is no provider; "
                    "point it at WorkersModule.for_feature(...) or at a function that returns one"
                )
            found.append(feature)
        return tuple(found)


@asynccontextmanager
async def run_workers(
    container: AsyncContainer,
    *,
    only: Iterable[str] | None = None,
    force: bool = False,
    close_container: bool = False,
    listeners: Iterable[Listener] = (),
    wait_for_store: bool = True,
) -> AsyncGenerator[Workers]:
    """Run the workers of an application while the body runs.

    A store that cannot be reached at first is waited for, with one warning; one that refuses us is an error at once.
    At the end no new job is taken, running ones get ``WORKERS_SHUTDOWN_GRACE`` to end, and what then still runs is
    handed back. An exception of the body leaves as it is.

    Args:
        container: The application's container.
        only: Worker names in place of ``ENABLED_WORKERS``.
        force: Run also when ``WORKERS_ENABLED`` is false.
        close_container: Close the container when the workers have ended.
        listeners: Also told of worker events, beside the application's own.
        wait_for_store: False takes a store that is away for an error.

    Raises:
        UnknownWorkerError: A worker name is not known.
        ConfigurationError: Handlers contradict each other, or the settings cannot be used.
        StoreDeniedError: The store refuses this user.
        StoreUnavailableError: The store is away, and is not to be waited for.
    """
    try:
        with explained_settings():
            settings = await container.get(WorkersSettings)
            registry = await container.get(WorkerRegistry)
            # Before the store is reached, so that a name no worker has is told at once.
            names = frozenset[str]()
            if settings.mode is not WorkerMode.FOREGROUND_BLOCKING:
                names = registry.select(settings.enabled_workers, enabled=settings.enabled, only=only, force=force)
            if wait_for_store:
                await _reach_store(container)
            launcher = await container.get(Launcher)
        workers = await container.get(Workers)
        async with launcher.running(workers, names, listeners=listeners):
            yield workers
    finally:
        if close_container:
            await container.close()


async def _reach_store(container: AsyncContainer) -> Store:
    """Return the store of an application, open; while it cannot be reached, try again, with one warning.

    Raises:
        ConfigurationError: The store cannot be used.
        StoreDeniedError: It refuses this user.
    """
    # A container keeps nothing of a factory that failed: each try makes a store of its own.
    return await Outage("start").wait_out(lambda: container.get(Store))


def workers_lifespan(
    container: AsyncContainer, *, close_container: bool = True
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan for Starlette, FastAPI and Litestar that runs the workers beside the web server.

    They start only if ``WORKERS_AUTO_START`` (in production also ``WORKERS_AUTO_START_PRODUCTION``) holds. A store that
    is away at the start is an error: a web server that waited would neither serve nor stop.

    Args:
        container: The application's container, the one the web framework uses.
        close_container: Close it when the server stops, after the workers have ended.

    Example:
        ``app = FastAPI(lifespan=workers_lifespan(container))``
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        with explained_settings():
            settings = await container.get(WorkersSettings)
        if settings.starts_with_server:
            async with run_workers(container, close_container=close_container, wait_for_store=False):
                yield
            return
        try:
            yield
        finally:
            if close_container:
                await container.close()

    return lifespan


def _settings_factory(settings: WorkersSettings | None) -> Callable[[], WorkersSettings]:
    def read() -> WorkersSettings:
        return settings if settings is not None else WorkersSettings()

    return read


async def _store(settings: WorkersSettings, clock: Clock) -> AsyncIterator[Store]:
    if settings.in_memory:
        store: Store = MemoryStore(clock=clock)
        if settings.queue.uri is None and not isinstance(clock, FrozenClock):
            _log.warning("no QUEUE_URL is set: jobs rest in this process' memory and are gone when it ends")
    else:
        uri = settings.queue.uri
        store = open_store(
            uri.get_secret_value() if uri is not None else None,
            prefix=settings.queue.prefix,
            clock=clock,
            synchronous=settings.queue.synchronous,
            migrate=settings.queue.migrate,
        )
    info = await store.open()
    for warning in info.warnings if not settings.in_memory else ():
        _log.warning("%s: %s", info.place, warning)
    _log.info("jobs rest in %s (%s %s)", info.place, info.kind.value, info.version)
    yield store
    await store.close()


def _registry(features: Sequence[Feature], container: AsyncContainer) -> WorkerRegistry:
    return WorkerRegistry(features, container)


async def _watcher(store: Store) -> AsyncIterator[ResultWatcher]:
    watcher = ResultWatcher(store)
    yield watcher
    await watcher.aclose()


def _launcher(
    settings: WorkersSettings,
    features: Sequence[Feature],
    registry: WorkerRegistry,
    store: Store,
    clock: Clock,
    watcher: ResultWatcher,
) -> Launcher:
    return Launcher(settings, registry, store, clock, watcher, app_id=settings.app_id or application_id(features))


def _foreground(
    settings: WorkersSettings, launcher: Launcher, registry: WorkerRegistry, store: Store
) -> ForegroundIntake:
    # What runs here and now in the other modes is stored nowhere that anybody else sees.
    place = store if settings.mode is WorkerMode.FOREGROUND_BLOCKING else MemoryStore()
    hooks = Hooks(registry.listeners)
    return ForegroundIntake(place, registry, launcher.executor(hooks, store=place), hooks=hooks)


def _producer(
    settings: WorkersSettings,
    registry: WorkerRegistry,
    store: Store,
    here: ForegroundIntake,
    watcher: ResultWatcher,
) -> Producer:
    return Producer(
        store,
        kinds=[handler.kind for handler in registry.handlers],
        queues=[
            QueueSpec(name=cls.name, payload=cls.payload, options=cls.options)
            for cls in map(registry.queue_class, registry.queues)
            if cls is not None
        ],
        max_payload_bytes=settings.max_payload_bytes,
        intake=here if settings.mode is WorkerMode.FOREGROUND_BLOCKING else None,
        watcher=watcher,
    )


def _scheduler(store: Store, registry: WorkerRegistry, producer: Producer, launcher: Launcher) -> Scheduler:
    return Scheduler(store, registry, producer, owner=launcher.app_id)


def _flows(producer: Producer, registry: WorkerRegistry) -> FlowProducer:
    def resolve(handler: object) -> tuple[str, str]:
        kind = registry.find(handler).kind
        return kind.queue, kind.name or "process"

    return FlowProducer(producer, resolve)


def _admin(store: Store, producer: Producer) -> JobsAdmin:
    return JobsAdmin(store, producer)
