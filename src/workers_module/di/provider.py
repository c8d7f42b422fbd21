"""From compiled records to a dishka provider: queues, processor classes, and one key for each thing that is called.

A handler's key is made by a factory whose dependencies are the class and everything its method has injected. So the
graph check finds what is missing in either when the container is made, and an attempt resolves one key.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Annotated, Any, Final, TypeVar, Union

import anyio
from dishka import AsyncContainer, FromComponent, Provider, Scope
from dishka.exceptions import ExitError

from workers_module.client.producer import Producer
from workers_module.client.queue import Queue
from workers_module.di.decorators import check_queue, queue_component
from workers_module.di.explorer import explore
from workers_module.di.found import Entry, Explored, Parameters
from workers_module.di.hints import bare
from workers_module.di.metadata import QueueRef
from workers_module.errors import RegistrationError
from workers_module.job.job import Job
from workers_module.store.base import Store
from workers_module.worker.context import JobContext, JobLogger, Progress
from workers_module.worker.handler import Call, Opening

Backoffs = Mapping[str, Callable[[int, Exception, Job[Any]], Any]]


T = TypeVar("T")

UNCHECKED: Final[Any] = T
"""The payload of a queue that is known by name alone: any view of it is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedQueue:
    """A queue that a feature offers.

    Attributes:
        name: Its name.
        cls: Its class, or None.
        payload: The payload under which a queue without a class is offered.
    """

    name: str
    cls: type[Queue[Any]] | None = None
    payload: Any = UNCHECKED


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feature:
    """What one provider contributes to the application's workers.

    Attributes:
        name: The feature's name; ``root`` for the root.
        is_root: Whether it is the root.
        queues: The queues it was given.
        explored: Its handlers, listeners and schedules.
        backoffs: The application's own backoff functions by name.
    """

    name: str
    is_root: bool = False
    queues: tuple[OfferedQueue, ...] = ()
    explored: Explored = field(default_factory=Explored)
    backoffs: Backoffs = field(default_factory=dict[str, Callable[[int, Exception, Job[Any]], Any]])


class FeatureProvider(Provider):
    """The provider of one feature. The same object may serve several containers.

    It provides its queues, its processor classes, and a key for every handler, listener and schedule. The root also
    provides the queues its handlers imply, ``Sequence[Feature]``, and what a running job can ask for: `Job`,
    `JobContext`, `Progress`, `JobLogger`.
    """

    def __init__(
        self,
        name: str,
        *,
        queues: Iterable[QueueRef] = (),
        processors: Iterable[object] = (),
        discover: str | Iterable[str] = (),
        backoffs: Backoffs = MappingProxyType({}),
        root: bool = False,
    ) -> None:
        """Compile a feature.

        Args:
            name: What error messages call it.
            queues: Queue classes and names.
            processors: Decorated classes and functions.
            discover: Packages whose decorated objects are taken too.
            backoffs: Functions ``(attempt, error, job) -> Duration`` by the name that `Backoff.custom` uses.
            root: Whether it is the application's one root.

        Raises:
            RegistrationError: Something given cannot be what it is decorated as: a line for each fault.
        """
        super().__init__()
        explored = explore(processors, discover)
        declared = _declared(queues)
        self.feature = Feature(name=name, is_root=root, queues=declared, explored=explored, backoffs=dict(backoffs))
        for queue in declared if not root else _with_implied(declared, explored):
            self._provide_queue(queue)
        for cls, scope in explored.classes.items():
            self.provide(cls, scope=scope)
        for handler in explored.handlers:
            self._provide_entry(handler.entry)
        for listener in explored.listeners:
            self._provide_entry(listener.entry)
        feature = self.feature
        self.provide(lambda: feature, provides=Feature, scope=Scope.APP)
        if root:
            self.collect(Feature, scope=Scope.APP, provides=Sequence[Feature])
            # Alone, without arguments, it answers for Job[X] of any X.
            self.from_context(Job, scope=Scope.REQUEST)
            self.from_context(JobContext, scope=Scope.REQUEST)
            self.provide(_progress, scope=Scope.REQUEST)
            self.provide(_logger, scope=Scope.REQUEST)

    def _provide_queue(self, queue: OfferedQueue) -> None:
        """Provide a queue by class and by name; the class is the factory, so that overriding it replaces all."""
        cls, component = queue.cls, FromComponent(queue_component(queue.name))
        by_any_payload: Any = Annotated[Queue[Any], component]
        if cls is None:
            offered: Any = queue.payload
            by_payload: Any = Annotated[Queue[offered], component]
            self.provide(_named_queue(queue.name), provides=by_payload, scope=Scope.APP)
            if queue.payload is not UNCHECKED:
                self.alias(by_payload, provides=by_any_payload)
            return
        if cls.transactional is None:
            self.provide(_queue(cls), provides=cls, scope=Scope.APP)
        else:
            self.provide(_transactional_queue(cls), provides=cls, scope=Scope.REQUEST)
        if cls.payload is not Any:
            payload: Any = cls.payload
            self.alias(cls, provides=Annotated[Queue[payload], component])
        self.alias(cls, provides=by_any_payload)

    def _provide_entry(self, entry: Entry) -> None:
        self.provide(_binder(entry), provides=entry.key, scope=entry.scope)


def _progress(context: JobContext) -> Progress:
    return context.progress


def _logger(context: JobContext) -> JobLogger:
    return context.log


def _declared(queues: Iterable[QueueRef]) -> tuple[OfferedQueue, ...]:
    found: dict[str, OfferedQueue] = {}
    for given in queues:
        queue = check_queue("queues=", given)
        if isinstance(queue, str):
            found.setdefault(queue, OfferedQueue(name=queue))
            continue
        other = found[queue.name].cls if queue.name in found else None
        if other is not None and other is not queue:
            raise RegistrationError(f"queue {queue.name!r} has two classes: {other.__name__} and {queue.__name__}")
        found[queue.name] = OfferedQueue(name=queue.name, cls=queue)
    return tuple(found.values())


def _with_implied(declared: Sequence[OfferedQueue], explored: Explored) -> list[OfferedQueue]:
    """Return the declared queues, and those that handlers name by class or by name alone."""
    found = {queue.name: queue for queue in declared}
    for cls in explored.queues:
        known = found.get(cls.name)
        if known is None or known.cls is None:
            found[cls.name] = OfferedQueue(name=cls.name, cls=cls)
    payloads: dict[str, list[Any]] = defaultdict(list)
    for handler in explored.handlers:
        payloads[handler.kind.queue].append(bare(handler.kind.payload))
    for name, types in payloads.items():
        if name not in found:
            found[name] = OfferedQueue(name=name, payload=_union(types))
    return [*found.values()]


def _union(types: Sequence[Any]) -> Any:
    # What cannot be hashed cannot be part of a key.
    if any(one is Any or not _is_hashable(one) for one in types):
        return UNCHECKED
    return Union[tuple(types)]  # noqa: UP007


def _is_hashable(hint: object) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def _queue(cls: type[Queue[Any]]) -> Callable[[Producer, Store], Queue[Any]]:
    def queue(producer: Producer, store: Store) -> Queue[Any]:
        return cls(producer, store)

    return queue


def _named_queue(name: str) -> Callable[[Producer, Store], Queue[Any]]:
    def queue(producer: Producer, store: Store) -> Queue[Any]:
        return Queue(producer, store, name=name)

    return queue


def _transactional_queue(cls: type[Queue[Any]]) -> Callable[..., Queue[Any]]:
    def queue(producer: Producer, store: Store, tx: Any) -> Queue[Any]:
        return cls(producer, store, tx=tx)

    queue.__annotations__["tx"] = cls.transactional
    return queue


def _binder(entry: Entry) -> Callable[..., Call]:
    """Return the factory of an entry's key: from the class's object and what is injected to the bound call."""
    attribute, function, parameters = entry.attribute, entry.function, entry.parameters
    accepted: list[inspect.Parameter] = []
    if entry.owner is not None:
        accepted.append(inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY, annotation=entry.owner))

    def bind(*owner: object, **injected: object) -> Call:
        return _bound_call(getattr(owner[0], attribute) if owner else function, parameters, injected)

    for name, hint in parameters.injected.items():
        accepted.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint))
    bind.__signature__ = inspect.Signature(accepted)  # type: ignore[attr-defined]
    bind.__annotations__ = {one.name: one.annotation for one in accepted}
    bind.__name__ = bind.__qualname__ = entry.label
    bind.__module__ = entry.key.__module__
    return bind


def _bound_call(function: Callable[..., Any], parameters: Parameters, injected: dict[str, Any]) -> Call:
    jobs, contexts, fields = parameters.jobs, parameters.contexts, parameters.fields
    match parameters.first:
        case "job" if not jobs and not contexts:
            if not injected:
                return lambda job, _: function(job)
            return lambda job, _: function(job, **injected)
        case "data" if not jobs and not contexts:
            if not injected:
                return lambda job, _: function(job.data)
            return lambda job, _: function(job.data, **injected)
        case "none" if not jobs and not contexts:
            return lambda _, __: function(**injected)
        case "event":

            def call_with_event(event: Any, _: object) -> Any:
                found = {name: event if name == "event" else getattr(event, name) for name in fields}
                return function(**found, **injected)

            return call_with_event
        case first:

            def call_with_more(job: Job[Any], context: JobContext) -> Any:
                more = {**injected, **dict.fromkeys(jobs, job), **dict.fromkeys(contexts, context)}
                return function(job if first == "job" else job.data, **more)

            return call_with_more


class Attempt:
    """The scope of one attempt, one tick, or one call of a listener; entering it gives the bound call.

    Leaving it closes every finalizer. One that fails raises dishka's `ExitError`, unless the attempt itself has failed:
    then its own error stays, with a note. Closing is not shielded here from cancellation, except where entering fails.
    """

    __slots__ = ("_child", "_container", "_context", "_key")

    def __init__(self, container: AsyncContainer, key: type[Any], context: dict[Any, Any]) -> None:
        self._container = container
        self._key = key
        self._context = context

    async def __aenter__(self) -> Call:
        self._child = child = self._container(context=self._context)
        try:
            call: Call = await child.get(self._key)
        except BaseException as error:
            # Nobody leaves a context that was not entered, and what was made so far must be closed.
            with anyio.CancelScope(shield=True):
                await _close(child, error)
            raise
        return call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._child.__aexit__(None, None, None)
        else:
            await _close(self._child, error)


async def _close(container: AsyncContainer, error: BaseException) -> None:
    try:
        await container.close(error)
    except ExitError as failed:
        error.add_note(f"closing the scope failed too: {failed}: {', '.join(map(repr, _faults_of(failed)))}")


def _faults_of(failed: ExceptionGroup[Exception]) -> tuple[object, ...]:
    return failed.exceptions


def opening(container: AsyncContainer, key: type[Any]) -> Opening:
    """Return what opens the scope of an attempt and resolves the handler's key in it."""

    def open_attempt(job: Job[Any], context: JobContext) -> Attempt:
        return Attempt(container, key, {Job: job, JobContext: context})

    return open_attempt
