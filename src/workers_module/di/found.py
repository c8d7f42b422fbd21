"""What the explorer finds: plain records, before a container stands behind them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dishka import Scope

from workers_module.client.queue import Queue
from workers_module.di.metadata import ListenerLabel, ScheduleLabel
from workers_module.job.kind import JobKind
from workers_module.worker.handler import HandlerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a callable's parameters receive.

    Attributes:
        first: What stands first: the job, its payload, or nothing; a listener's are all found by name.
        jobs: Names of further parameters that receive the job.
        contexts: Names of those that receive its `JobContext`.
        fields: Names of those that receive a field of an event, or the ``event``.
        injected: Hints of those that the container fills, by name; a component stands in the hint.
    """

    first: Literal["job", "data", "none", "event"] = "none"
    jobs: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    injected: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A function or method that the container binds to what it needs.

    Attributes:
        label: ``Class.method`` or the function's name.
        key: The container's key of the bound call; a type of its own, so that graph errors show the label.
        owner: The class whose object a method is bound to; None for a function.
        attribute: The method's name.
        function: The function.
        parameters: What it receives.
        scope: In which scope it is bound.
    """

    label: str
    key: type[Any]
    owner: type[Any] | None
    attribute: str
    function: Callable[..., Any]
    parameters: Parameters
    scope: Scope = Scope.REQUEST

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop; else in a thread."""
        # A plain wrapper around an async function hands its coroutine on.
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(inspect.unwrap(self.function))


def make_entry(
    label: str,
    function: Callable[..., Any],
    parameters: Parameters,
    *,
    owner: type[Any] | None,
    attribute: str,
    scope: Scope = Scope.REQUEST,
) -> Entry:
    """Return an entry with a key of its own."""
    source = function if owner is None else owner
    key = type(label, (), {"__module__": source.__module__, "__doc__": f"The bound call of {label}."})
    return Entry(
        label=label, key=key, owner=owner, attribute=attribute, function=function, parameters=parameters, scope=scope
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundHandler:
    """A handler before a container stands behind it.

    Attributes:
        spec: The compiled record.
        entry: What is called.
        job_name: The name a reference to it stores: that of the kind, or of the function where the kind takes any name.
        sources: What a reference may mean: the function that runs, those it overrides, a `Worker` class.
        is_static: Whether it is bound once, without a scope for each attempt.
        is_tick: Whether it is nothing but the method or function of a schedule.
    """

    spec: HandlerSpec
    entry: Entry
    job_name: str
    sources: tuple[object, ...]
    is_static: bool
    is_tick: bool = False

    @property
    def kind(self) -> JobKind:
        """The jobs it takes."""
        return self.spec.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundListener:
    """A listener before a container stands behind it.

    Attributes:
        entry: What is called.
        label: The event, and for queue events maybe the queue.
        queue: The queue of the class's handlers; None where it has none.
        handlers: The handlers whose jobs it hears of; None for all of this process.
    """

    entry: Entry
    label: ListenerLabel
    queue: str | None
    handlers: tuple[FoundHandler, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSchedule:
    """A declared schedule and the handler it runs.

    Attributes:
        name: Unique in the container.
        label: Its times and manners.
        handler: What each tick runs.
        data: The payload of each tick, JSON.
    """

    name: str
    label: ScheduleLabel
    handler: FoundHandler
    data: bytes = b"null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What was found in the classes and functions of one feature, in their order.

    Attributes:
        handlers: All that take jobs, also those of plain schedules.
        listeners: All that hear of events.
        schedules: All declared schedules.
        classes: The classes the container is to build, and in which scope.
        queues: The queue classes that handlers name.
    """

    handlers: tuple[FoundHandler, ...] = ()
    listeners: tuple[FoundListener, ...] = ()
    schedules: tuple[FoundSchedule, ...] = ()
    classes: Mapping[type[Any], Scope] = field(default_factory=dict[type[Any], Scope])
    queues: tuple[type[Queue[Any]], ...] = ()
