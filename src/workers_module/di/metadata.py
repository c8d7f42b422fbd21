"""The labels that decorators leave on classes and functions, and the only code that reads them off.

A label says what its decorator was given, checked but not yet put in relation to anything: that is the explorer's work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import getattr_static
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from dishka import Scope

from workers_module.client.queue import Queue
from workers_module.job.events import QueueEventName, WorkerEventName
from workers_module.job.options import JobOptions
from workers_module.job.sandbox import Sandbox
from workers_module.job.schedule import CatchUp, Schedule


class Missing(Enum):
    """Marks an argument that was not given, where None is a value."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING

QueueRef = str | type[Queue[Any]]
"""A queue by its name or by its class."""
Singleton = bool | Callable[[Any], object]
"""True for one job in flight per name, or a function of the payload that gives a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorLabel:
    """What `@processor` was given; ``options``, ``tags`` and ``singleton`` are defaults of the class's handlers."""

    queue: QueueRef
    name: str | None
    concurrency: int | None
    scope: Scope
    provide: bool
    options: JobOptions
    tags: tuple[str, ...]
    singleton: Singleton
    sandbox: Sandbox | None

    @property
    def queue_name(self) -> str:
        """The queue's name."""
        return queue_name(self.queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLabel:
    """What `@process` was given; without a name the method's name counts."""

    name: str | None
    options: JobOptions
    tags: tuple[str, ...]
    singleton: Singleton


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLabel:
    """What `@job` was given; without a name the function's name counts."""

    name: str | None
    queue: QueueRef
    options: JobOptions
    tags: tuple[str, ...]
    singleton: Singleton
    sandbox: Sandbox | None

    @property
    def queue_name(self) -> str:
        """The queue's name."""
        return queue_name(self.queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLabel:
    """What `@cron`, `@interval` or `@timeout` was given.

    Attributes:
        decorator: Which of the three.
        name: The schedule's name; None makes it ``Class.method`` or the function's name.
        schedule: Its slots; None for `@timeout`.
        after_ms: For `@timeout`: once, so long after the start.
        data: The payload of each tick's job, or `MISSING`.
    """

    decorator: Literal["cron", "interval", "timeout"]
    name: str | None
    schedule: Schedule | None = None
    after_ms: int | None = None
    data: object = MISSING
    overlap: Literal["skip", "allow"] = "skip"
    disabled: bool = False
    threshold_ms: int | None = None
    initial_delay_ms: int | None = None
    jitter_ms: int | None = None
    catch_up: CatchUp = "latest"
    lock: str | None = None
    every_instance: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerLabel:
    """What `@on_worker_event` or `@on_queue_event` was given; one of the two events is set."""

    worker_event: WorkerEventName | None = None
    queue_event: QueueEventName | None = None
    queue: QueueRef | None = None

    @property
    def decorator(self) -> str:
        """How the decorator reads in the code: ``@on_worker_event('completed')``."""
        if self.worker_event is not None:
            return f"@on_worker_event({self.worker_event!r})"
        return f"@on_queue_event({self.queue_event!r})"


Label = ProcessorLabel | ProcessLabel | JobLabel | ScheduleLabel | ListenerLabel
LabelT = TypeVar("LabelT", bound=Label)

_ATTRIBUTE: Final = "__workers_labels__"
_NO_LABELS: Final[Mapping[str, Sequence[Label]]] = MappingProxyType({})


def queue_name(queue: QueueRef) -> str:
    """Return the name of a queue given by name or class."""
    return queue if isinstance(queue, str) else queue.name


def attach(target: object, label: Label) -> None:
    """Put one more label on a class or function. Those that stand higher in the code come first.

    Raises:
        AttributeError: The object takes no attributes (a built-in function, say).
    """
    # A new tuple each time: functools.wraps and @dataclass(slots=True) copy the attribute to other objects.
    setattr(target, _ATTRIBUTE, (label, *labels(target)))


def labels(target: object) -> tuple[Label, ...]:
    """Return an object's own labels, in the order of the code; a class's labels are not inherited."""
    own: tuple[Label, ...] = getattr(target, "__dict__", {}).get(_ATTRIBUTE, ())
    # A staticmethod or classmethod does not take over what its function carries.
    inner: object = getattr(target, "__func__", None)
    return own if inner is None or own else labels(inner)


def of_kind(found: Sequence[Label], kind: type[LabelT]) -> tuple[LabelT, ...]:
    """Return the labels of one kind."""
    return tuple(label for label in found if isinstance(label, kind))


def processor_label(cls: type) -> ProcessorLabel | None:
    """Return a class's own `@processor` label; it is not inherited."""
    return next(iter(of_kind(labels(cls), ProcessorLabel)), None)


def method_labels(cls: type) -> Mapping[str, Sequence[Label]]:
    """Return the labels of a class's methods by attribute name, in the order of definition, base classes first.

    The nearest class in the MRO that has labels for a name wins. A name that a subclass sets to None is gone.
    """
    found: dict[str, Sequence[Label]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            own = labels(value) if not isinstance(value, type) else ()
            if own:
                found[name] = own
    if not found:
        return _NO_LABELS
    return {name: own for name, own in found.items() if getattr_static(cls, name, None) is not None}
