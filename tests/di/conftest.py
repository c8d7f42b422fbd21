"""A container with the di rooms' own objects and the memory store, without the module's wiring."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import pytest
from dishka import STRICT_VALIDATION, AsyncContainer, Provider, Scope, make_async_container

from workers_module.client.producer import Producer
from workers_module.clock import Clock, FrozenClock
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.foreground import ForegroundIntake
from workers_module.di.metadata import QueueRef
from workers_module.di.provider import FeatureProvider
from workers_module.di.registry import WorkerRegistry
from workers_module.di.schedules import Scheduler
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.hooks import Hooks


class Objects(Provider):
    """What the module's root provides, in small: the objects the rest of di asks for."""

    def __init__(self, *, foreground: bool = False) -> None:
        super().__init__(scope=Scope.APP)
        self.foreground = foreground
        self.provide(self.clock)
        self.alias(FrozenClock, provides=Clock)
        self.provide(self.store)
        self.provide(WorkerRegistry)
        self.provide(self.here)
        self.provide(self.producer)
        self.provide(Dispatcher)
        self.provide(self.scheduler)

    def clock(self) -> FrozenClock:
        return FrozenClock()

    async def store(self, clock: Clock) -> AsyncIterator[Store]:
        store = MemoryStore(clock=clock)
        await store.open()
        yield store
        await store.close()

    def here(self, store: Store, clock: Clock, registry: WorkerRegistry) -> ForegroundIntake:
        place: Store = store if self.foreground else MemoryStore(clock=clock)
        hooks = Hooks(registry.listeners)
        executor = Executor(place, hooks=hooks, settings=ExecutorSettings(), kind_of=registry.kind_of)
        return ForegroundIntake(place, registry, executor, hooks=hooks)

    def producer(self, store: Store, registry: WorkerRegistry, here: ForegroundIntake) -> Producer:
        intake = here if self.foreground else None
        return Producer(store, kinds=registry.kinds, queues=registry.queue_specs, intake=intake)

    def scheduler(self, store: Store, registry: WorkerRegistry, producer: Producer) -> Scheduler:
        return Scheduler(store, registry, producer, owner="tests")


class Build(Protocol):
    def __call__(
        self,
        *processors: object,
        queues: tuple[QueueRef, ...] = (),
        features: tuple[FeatureProvider, ...] = (),
        provide: Mapping[type[Any], Scope] | tuple[Provider, ...] = (),
        foreground: bool = False,
    ) -> AsyncContainer: ...


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Return a function that makes containers; they are closed after the test."""
    made: list[AsyncContainer] = []

    def make(
        *processors: object,
        queues: tuple[QueueRef, ...] = (),
        features: tuple[FeatureProvider, ...] = (),
        provide: Mapping[type[Any], Scope] | tuple[Provider, ...] = (),
        foreground: bool = False,
    ) -> AsyncContainer:
        own = Provider()
        others: tuple[Provider, ...] = ()
        if isinstance(provide, Mapping):
            for cls, scope in provide.items():
                own.provide(cls, scope=scope)
        else:
            others = provide
        root = FeatureProvider("root", queues=queues, processors=processors, root=True)
        container = make_async_container(
            own,
            *others,
            *features,
            root,
            Objects(foreground=foreground),
            validation_settings=STRICT_VALIDATION,
        )
        made.append(container)
        return container

    yield make
    for container in reversed(made):
        await container.close()
