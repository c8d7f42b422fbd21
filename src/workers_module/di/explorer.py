"""From decorated classes and functions to compiled records. Everything that can be wrong with them is said here, at once.

Hints are read one time, with their extras; what a run needs of them afterwards is in the records.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Final, Literal, Never, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from dishka import FromComponent, Scope
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from workers_module.client.queue import Queue
from workers_module.di.decorators import DEFAULT_QUEUE, Worker
from workers_module.di.metadata import (
    MISSING,
    JobLabel,
    Label,
    ListenerLabel,
    ProcessLabel,
    ProcessorLabel,
    QueueRef,
    ScheduleLabel,
    Singleton,
    labels,
    method_labels,
    of_kind,
    processor_label,
    queue_name,
)
from workers_module.errors import ConfigurationError, InvalidNameError, PayloadError, RegistrationError
from workers_module.job.encoding import encode
from workers_module.job.events import QueueEventName, WorkerEventName
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.names import check_name
from workers_module.job.options import JobOptions, merge
from workers_module.job.sandbox import Sandbox
from workers_module.worker.context import JobContext
from workers_module.worker.handler import HandlerSpec

_WORKER_FIELDS: Final[Mapping[WorkerEventName, tuple[str, ...]]] = MappingProxyType({
    "active": ("job",),
    "stalled": ("job",),
    "completed": ("job", "result"),
    "failed": ("job", "error"),
    "retries_exhausted": ("job", "error"),
    "progress": ("job", "progress"),
    "error": ("error",),
    "ready": (),
    "drained": (),
    "closed": (),
})
_QUEUE_FIELDS: Final[Mapping[QueueEventName, tuple[str, ...]]] = MappingProxyType({
    "waiting": ("job_id",),
    "delayed": ("job_id",),
    "active": ("job_id",),
    "removed": ("job_id",),
    "completed": ("job_id", "result"),
    "failed": ("job_id", "error"),
    "progress": ("job_id", "progress"),
    "paused": (),
    "resumed": (),
})
_SCHEDULE_DATA_BYTES: Final = 64 * 1024 * 1024
_FROM_COMPONENT: Final = type(FromComponent())
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SUFFIX: Final = re.compile(r"(?<=.)_(?:worker|processor|service|tasks)$")


# --- records --------------------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundHandler:
    """A handler before a container stands behind it.

    Attributes:
        spec: The compiled record.
        entry: What is called.
        job_name: The name a reference to it stores; that of the kind, or of the function where the kind takes any name.
        sources: The functions a reference may mean: the one that runs, and those it overrides.
        is_static: Whether it is bound once, without a scope for each attempt.
    """

    spec: HandlerSpec
    entry: Entry
    job_name: str
    sources: tuple[object, ...]
    is_static: bool

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
        is_direct: Whether the handler is nothing but this schedule's: a plain method or function.
        data: The payload of each tick, JSON.
    """

    name: str
    label: ScheduleLabel
    handler: FoundHandler
    is_direct: bool
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What was found.

    Attributes:
        handlers: In the order given.
        listeners: Likewise.
        schedules: Likewise.
        classes: The classes the container is to build, and in which scope.
        queues: The queue classes that handlers name.
    """

    handlers: tuple[FoundHandler, ...] = ()
    listeners: tuple[FoundListener, ...] = ()
    schedules: tuple[FoundSchedule, ...] = ()
    classes: Mapping[type[Any], Scope] = field(default_factory=dict[type[Any], Scope])
    queues: tuple[type[Queue[Any]], ...] = ()


def explore(processors: Iterable[object] = (), discover: str | Iterable[str] = ()) -> Explored:
    """Compile decorated classes and functions.

    Args:
        processors: Classes and functions; one given twice counts once.
        discover: Packages that are imported with their submodules; what is decorated and *defined* there is taken.

    Raises:
        RegistrationError: Something cannot be what it is decorated as: a line for each fault.
    """
    explorer = _Explorer()
    found: dict[int, object] = {}
    for target in processors:
        found.setdefault(id(target), target)
    for package in [discover] if isinstance(discover, str) else discover:
        targets = _discover(package)
        if not targets:
            explorer.fault(f"discover={package!r} found no decorated class or function")
        for target in targets:
            found.setdefault(id(target), target)
    for target in found.values():
        explorer.add(target)
    return explorer.result()


class _Explorer:
    def __init__(self) -> None:
        self._faults: dict[str, None] = {}
        self._handlers: list[FoundHandler] = []
        self._listeners: list[FoundListener] = []
        self._schedules: list[FoundSchedule] = []
        self._classes: dict[type[Any], Scope] = {}
        self._queues: dict[type[Queue[Any]], None] = {}

    def fault(self, text: str) -> None:
        self._faults[text] = None

    def result(self) -> Explored:
        if self._faults:
            raise RegistrationError("\n".join(self._faults))
        return Explored(
            handlers=tuple(self._handlers),
            listeners=tuple(self._listeners),
            schedules=tuple(self._schedules),
            classes=MappingProxyType(self._classes),
            queues=tuple(self._queues),
        )

    def add(self, target: object) -> None:
        if isinstance(target, type):
            self._add_class(target)
        elif inspect.isroutine(target):
            self._add_function(target)
        else:
            self.fault(f"{target!r} is neither a class nor a function")

    # -- functions ---------------------------------------------------------------------------------------------------------------

    def _add_function(self, function: Callable[..., Any]) -> None:
        name: str = getattr(function, "__name__", repr(function))
        own = labels(function)
        job, processor = of_kind(own, JobLabel), of_kind(own, ProcessorLabel)
        schedules = of_kind(own, ScheduleLabel)
        if of_kind(own, ProcessLabel):
            return self.fault(f"{name} has @process, which is for methods of a @processor class; on a function write @job()")
        if of_kind(own, ListenerLabel):
            return self.fault(f"{name} is a function; event listeners are methods of a class in processors=")
        if len(job) + len(processor) > 1:
            return self.fault(f"{name}: one @job or one @processor is enough")
        if not own:
            return self.fault(_nothing_to_run(name))
        if job:
            label: JobLabel | ProcessorLabel = job[0]
            job_name: str | None = job[0].name or name
            worker = label.queue_name
        elif processor:
            label, job_name = processor[0], None
            worker = processor[0].name or label.queue_name
        else:
            return self._add_ticks(schedules, name, function, owner=None, attribute=name, worker=name)
        self._note_queue(label.queue)
        entry = self._entry_of(name, function, owner=None, attribute=name, arguments={})
        if entry is None:
            return None
        handler = self._handler(
            entry,
            queue=label.queue_name,
            name=job_name,
            reference_name=job_name or name,
            payload=entry.payload,
            result=entry.result,
            layers=[label],
            worker=worker,
            sources=(function,),
            concurrency=label.concurrency if isinstance(label, ProcessorLabel) else None,
            sandbox=label.sandbox,
        )
        if handler is not None:
            self._add_schedules(schedules, name, handler)
        return None

    # -- classes -----------------------------------------------------------------------------------------------------------------

    def _add_class(self, cls: type[Any]) -> None:
        name = cls.__name__
        label = processor_label(cls)
        methods = method_labels(cls)
        is_worker = issubclass(cls, Worker)
        if label is None:
            for base in cls.__mro__[1:]:
                inherited = processor_label(base)
                if inherited is not None:
                    return self.fault(
                        f"{name} is not decorated: it inherits from {base.__name__}, whose @processor({inherited.queue_name!r}) is not "
                        f"inherited. Decorate {name} itself."
                    )
        if label is None and not is_worker and not methods:
            return self.fault(_nothing_to_run(name))
        if is_worker and inspect.isabstract(cls):
            return self.fault(f"{name} is abstract: implement {', '.join(sorted(cls.__abstractmethods__))}")
        arguments = _type_arguments(cls)
        queue = DEFAULT_QUEUE if label is None else label.queue_name
        worker = queue if is_worker or label is not None else _worker_name(name)
        if label is not None:
            self._note_queue(label.queue)
            worker = label.name or queue
        before = len(self._faults)
        handlers: list[FoundHandler] = []
        expected = 0
        if is_worker:
            expected += 1
            handlers += self._add_perform(cls, label, of_kind(methods.get("perform", ()), ProcessLabel), arguments, worker)
        catch_all = (
            label is not None
            and not is_worker
            and inspect.getattr_static(cls, "process", None) is not None
            and not of_kind(methods.get("process", ()), ProcessLabel)
        )
        names = dict.fromkeys(methods)
        if catch_all:
            expected += 1
            names["process"] = None
        for attribute in names:
            own = methods.get(attribute, ())
            where = f"{name}.{attribute}"
            function = self._method(cls, attribute, where)
            if function is None:
                continue
            if of_kind(own, JobLabel) or of_kind(own, ProcessorLabel):
                self.fault(f"{where} is a method; in a class write @process()")
                continue
            process = of_kind(own, ProcessLabel)
            handler = next((one for one in handlers if one.entry.attribute == attribute), None)
            if attribute == "perform" and is_worker:
                if handler is None:
                    continue
            elif process or (attribute == "process" and catch_all):
                if label is None:
                    self.fault(f"{where} has @process but {name} has no @processor(queue)")
                    continue
                expected += 1
                handler = self._add_method(cls, attribute, function, label, process, arguments)
                if handler is None:
                    continue
                handlers.append(handler)
            schedules = of_kind(own, ScheduleLabel)
            if handler is not None:
                self._add_schedules(schedules, where, handler)
            else:
                handlers += self._add_ticks(
                    schedules, where, function, owner=cls, attribute=attribute, worker=worker, arguments=arguments
                )
        if label is not None and not expected and len(self._faults) == before:
            self.fault(
                f"{name} has @processor({queue!r}) but no handler: define 'async def process(self, job: Job[...])' or methods with "
                "@process('name')"
            )
        for attribute, own in methods.items():
            listeners = of_kind(own, ListenerLabel)
            function = inspect.getattr_static(cls, attribute) if listeners else None
            if function is not None and inspect.isroutine(function) and not isinstance(function, staticmethod | classmethod):
                self._add_listeners(
                    cls,
                    attribute,
                    function,
                    listeners,
                    queue=queue if is_worker or label is not None else None,
                    handlers=tuple(handlers) if is_worker or label is not None else None,
                    arguments=arguments,
                )
        if label is None or label.provide:
            self._classes[cls] = Scope.REQUEST if label is None else label.scope
        return None

    def _method(self, cls: type[Any], attribute: str, where: str) -> Callable[..., Any] | None:
        """Return the function that runs: the most derived one."""
        found = inspect.getattr_static(cls, attribute)
        if isinstance(found, staticmethod | classmethod):
            self.fault(f"{where} is a {type(found).__name__}; handlers are plain methods")
            return None
        if not inspect.isroutine(found):
            self.fault(f"{where} is no method; handlers are plain methods")
            return None
        return cast("Callable[..., Any]", found)

    def _add_perform(
        self,
        cls: type[Any],
        label: ProcessorLabel | None,
        process: Sequence[ProcessLabel],
        arguments: "_Arguments",
        worker: str,
    ) -> list[FoundHandler]:
        name = cls.__name__
        function = self._method(cls, "perform", f"{name}.perform")
        if function is None:
            return []
        own = arguments.get(Worker, {})
        payload, result = (own.get(variable, variable) for variable in Worker.__parameters__)  # type: ignore[attr-defined]  # pyright: ignore
        if _free_variable(payload) is not None or _free_variable(result) is not None:
            self.fault(f"{name}: Worker needs its types: class {name}(Worker[Args, Result])")
            return []
        parameters = list(inspect.signature(function).parameters.values())[1:]
        positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
        if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            self.fault(f"{name}.perform takes no payload; write 'def perform(self, args: {_type_name(payload)}, /)'")
            return []
        extra = [p.name for p in parameters if _is_required(p) and p not in positional[:1]]
        if extra:
            self.fault(f"{name}.perform takes only its payload; ask for {extra[0]!r} in __init__")
            return []
        if self._is_generator(function, f"{name}.perform"):
            return []
        job_name: str = next((one.name for one in process if one.name), None) or getattr(cls, "job_name", None) or _upper_camel(name)
        entry = _Bound(
            label=name,
            key=_key(name, cls),
            owner=cls,
            attribute="perform",
            function=function,
            parameters=Parameters(first="data"),
            payload=payload,
            result=_plain_result(result),
        )
        handler = self._handler(
            entry,
            queue=DEFAULT_QUEUE if label is None else label.queue_name,
            name=job_name,
            reference_name=job_name,
            payload=payload,
            result=entry.result,
            layers=[*([label] if label else []), *process],
            worker=worker,
            sources=(cls, *_overridden(cls, "perform")),
            scope=Scope.REQUEST if label is None else label.scope,
            concurrency=None if label is None else label.concurrency,
            sandbox=None if label is None else label.sandbox,
            target=cls,
        )
        return [] if handler is None else [handler]

    def _add_method(
        self,
        cls: type[Any],
        attribute: str,
        function: Callable[..., Any],
        label: ProcessorLabel,
        process: Sequence[ProcessLabel],
        arguments: "_Arguments",
    ) -> FoundHandler | None:
        where = f"{cls.__name__}.{attribute}"
        if len(process) > 1:
            self.fault(f"{where}: one @process is enough; for a second name write a second method")
            return None
        entry = self._entry_of(where, function, owner=cls, attribute=attribute, arguments=arguments)
        if entry is None:
            return None
        name = (process[0].name or attribute) if process else None
        return self._handler(
            entry,
            queue=label.queue_name,
            name=name,
            reference_name=name or attribute,
            payload=entry.payload,
            result=entry.result,
            layers=[label, *process],
            worker=label.name or label.queue_name,
            sources=_overridden(cls, attribute),
            scope=label.scope,
            concurrency=label.concurrency,
            sandbox=label.sandbox,
        )

    # -- parts -------------------------------------------------------------------------------------------------------------------

    def _entry_of(
        self,
        where: str,
        function: Callable[..., Any],
        *,
        owner: type[Any] | None,
        attribute: str,
        arguments: "_Arguments",
    ) -> "_Bound | None":
        """Read a handler's signature: first the job or its payload, then what is injected."""
        if self._is_generator(function, where):
            return None
        hints = self._hints(where, function, owner, attribute, arguments)
        if hints is None:
            return None
        parameters = _parameters(function, owner)
        first = parameters[0] if parameters and parameters[0].kind in _POSITIONAL else None
        payload: Any = None
        style: Literal["job", "data", "none"] = "none"
        if first is None:
            if owner is not None or parameters:
                self.fault(self._wants_first(where, owner, parameters))
                return None
        else:
            read = self._payload(where, first, hints, owner)
            if read is None:
                return None
            style, payload = read
        rest = self._rest(where, parameters[1:] if first is not None else [], hints)
        if rest is None:
            return None
        jobs, contexts, injected = rest
        return _Bound(
            label=where,
            key=_key(where, function),
            owner=owner,
            attribute=attribute,
            function=function,
            parameters=Parameters(first=style, jobs=jobs, contexts=contexts, injected=injected),
            payload=None if payload is type(None) else payload,
            result=_plain_result(hints.get("return", Any)),
        )

    def _wants_first(self, where: str, owner: type[Any] | None, parameters: Sequence[inspect.Parameter]) -> str:
        if owner is None:
            return f"{where}: the payload or the job comes first, before injected parameters"
        name = parameters[0].name if parameters else "job"
        return f"{where}: a handler method takes the job: write '{name}: Job[YourModel]'"

    def _payload(
        self, where: str, first: inspect.Parameter, hints: Mapping[str, Any], owner: type[Any] | None
    ) -> tuple[Literal["job", "data"], Any] | None:
        name = first.name
        if first.annotation is inspect.Parameter.empty:
            wanted = f"'{name}: Job[YourModel]' (Job[Any] for unchecked data)"
            if owner is None and name != "job":
                wanted = f"'{name}: YourModel' or 'job: Job[YourModel]' (Any for unchecked data)"
            self.fault(f"{where}: parameter {name!r} has no annotation; write {wanted}")
            return None
        hint = hints[name]
        if _injected(hint) is not None or _bare(hint) is JobContext:
            self.fault(f"{where}: the payload or the job comes first, before injected parameters")
            return None
        bare = _bare(hint)
        if bare is Job:
            self.fault(f"{where}: 'Job' has no payload type; write 'Job[YourModel]' (Job[Any] for unchecked data)")
            return None
        style: Literal["job", "data"] = "data"
        if get_origin(bare) is Job:
            style, bare = "job", _unaliased(get_args(bare)[0])
        elif owner is not None:
            self.fault(f"{where}: a handler method takes the job: write '{name}: Job[{_type_name(bare)}]'")
            return None
        else:
            # What pydantic reads from Annotated (constraints, discriminators) belongs to the payload.
            bare = hint
        free = _free_variable(bare)
        if free is not None:
            place = f"override {where.rpartition('.')[2]} in {owner.__name__}" if owner is not None else "annotate it"
            self.fault(f"{where}: payload is the type variable {free.__name__}; {place} with a concrete type")
            return None
        return style, bare

    def _rest(
        self, where: str, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], tuple[str, ...], Mapping[str, Any]] | None:
        jobs: list[str] = []
        contexts: list[str] = []
        injected: dict[str, Any] = {}
        sound = True
        for parameter in parameters:
            hint = hints.get(parameter.name)
            dependency = _injected(hint)
            bare = _bare(hint)
            if parameter.kind in _VARIADIC:
                continue
            known = dependency is not None or bare is Job or bare is JobContext or get_origin(bare) is Job
            if known and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                self.fault(f"{where}: parameter {parameter.name!r} is passed by name; move it behind the '/'")
                sound = False
            elif dependency is not None:
                injected[parameter.name] = dependency
            elif bare is JobContext:
                contexts.append(parameter.name)
            elif known:
                jobs.append(parameter.name)
            elif parameter.default is inspect.Parameter.empty:
                wanted = "YourDependency" if hint is None else _type_name(bare)
                self.fault(
                    f"{where}: parameter {parameter.name!r} is neither the job nor injected; write "
                    f"'{parameter.name}: FromDishka[{wanted}]'"
                )
                sound = False
        return (tuple(jobs), tuple(contexts), MappingProxyType(injected)) if sound else None

    def _handler(
        self,
        entry: "_Bound",
        *,
        queue: str,
        name: str | None,
        reference_name: str,
        payload: Any,
        result: Any,
        layers: Sequence[ProcessorLabel | ProcessLabel | JobLabel],
        worker: str,
        sources: tuple[object, ...],
        scope: Scope | None = None,
        concurrency: int | None = None,
        sandbox: Sandbox | None = None,
        target: object = None,
    ) -> FoundHandler | None:
        where = entry.label
        options, tags, singleton = _merged(layers)
        try:
            check_name("job", reference_name)
        except InvalidNameError as error:
            self.fault(f"{where}: {error}")
            return None
        kind = JobKind(
            queue=queue, name=name, payload=payload, result=result, options=options, tags=tags, singleton=singleton
        )
        for what, adapt, type_ in (("payload", _payload_adapter, payload), ("result", _result_adapter, result)):
            try:
                adapt(kind)
            except (PydanticUserError, TypeError, NameError) as error:
                self.fault(f"{where}: pydantic cannot validate {what} {_type_name(type_)}: {type(error).__name__}")
                return None
        is_static = not entry.parameters.injected and (entry.owner is None or scope is Scope.APP)
        bound = entry.entry(Scope.APP if is_static else Scope.REQUEST)
        handler = FoundHandler(
            spec=HandlerSpec(
                kind=kind,
                label=where,
                worker=worker,
                target=entry.function if target is None else target,
                is_async=bound.is_async,
                concurrency=concurrency,
                sandbox=sandbox,
            ),
            entry=bound,
            job_name=reference_name,
            sources=sources,
            is_static=is_static,
        )
        self._handlers.append(handler)
        return handler

    def _add_schedules(self, found: Sequence[ScheduleLabel], where: str, handler: FoundHandler) -> None:
        """Add the schedules that enqueue a handler."""
        for name, label in self._named(found, where):
            at = f"@{label.decorator} on {where}"
            kind = handler.kind
            value = None if label.data is MISSING else label.data
            try:
                data = encode(value, kind.payload_adapter, what=at, max_bytes=_SCHEDULE_DATA_BYTES)
            except (ValidationError, PayloadError) as error:
                payload = _type_name(kind.payload)
                if label.data is MISSING:
                    self.fault(f"{at}: payload {payload} needs data=")
                else:
                    self.fault(f"{at}: data= does not fit {payload}: {_first_line(error)}")
                continue
            self._schedules.append(
                FoundSchedule(name=name, label=label, handler=handler, is_direct=False, data=data)
            )

    def _add_ticks(
        self,
        found: Sequence[ScheduleLabel],
        where: str,
        function: Callable[..., Any],
        *,
        owner: type[Any] | None,
        attribute: str,
        worker: str,
        arguments: "_Arguments | None" = None,
    ) -> list[FoundHandler]:
        """Add the schedules of what is no handler: each becomes the handler of its own jobs."""
        added: list[FoundHandler] = []
        if not found or self._is_generator(function, where):
            return added
        hints = self._hints(where, function, owner, attribute, arguments or {})
        if hints is None:
            return added
        injected: dict[str, Any] = {}
        sound = True
        for parameter in _parameters(function, owner):
            dependency = _injected(hints.get(parameter.name))
            if dependency is not None:
                injected[parameter.name] = dependency
            elif _is_required(parameter):
                add = "@process" if owner is not None else "@job()"
                self.fault(
                    f"{where}: @{found[0].decorator} calls it without arguments, but {parameter.name!r} is not FromDishka[...]; to "
                    f"enqueue a job add {add}"
                )
                sound = False
        for name, label in self._named(found, where):
            if label.data is not MISSING:
                add = "@process" if owner is not None else "@job()"
                self.fault(f"{where}: @{label.decorator} has data=, but calls it without arguments; to enqueue a job add {add}")
                sound = False
            if not sound:
                continue
            entry = _Bound(
                label=where,
                key=_key(where, function),
                owner=owner,
                attribute=attribute,
                function=function,
                parameters=Parameters(injected=MappingProxyType(injected)),
                payload=None,
                result=_plain_result(hints.get("return", Any)),
            )
            label_ = processor_label(owner) if owner is not None else None
            handler = self._handler(
                entry,
                queue=f"cron.{worker}",
                name=name,
                reference_name=name,
                payload=None,
                result=entry.result,
                layers=[],
                worker=worker,
                sources=(function,) if owner is None else _overridden(owner, attribute),
                scope=label_.scope if label_ is not None else None,
                sandbox=label_.sandbox if label_ is not None else None,
            )
            if handler is not None:
                added.append(handler)
                self._schedules.append(
                    FoundSchedule(name=name, label=label, handler=handler, is_direct=True, data=b"null")
                )
        return added

    def _named(self, found: Sequence[ScheduleLabel], where: str) -> Iterator[tuple[str, ScheduleLabel]]:
        unnamed = 0
        for label in found:
            name = label.name
            if name is None:
                unnamed += 1
                name = where if unnamed == 1 else f"{where}-{unnamed}"
            try:
                yield check_name("schedule", name), label
            except InvalidNameError as error:
                self.fault(f"{where}: {error}; pass name=")

    def _add_listeners(
        self,
        cls: type[Any],
        attribute: str,
        function: Callable[..., Any],
        found: Sequence[ListenerLabel],
        *,
        queue: str | None,
        handlers: tuple[FoundHandler, ...] | None,
        arguments: "_Arguments",
    ) -> None:
        where = f"{cls.__name__}.{attribute}"
        if self._is_generator(function, where):
            return
        hints = self._hints(where, function, cls, attribute, arguments)
        if hints is None:
            return
        sound = True
        for label in found:
            offered = (*_fields_of(label), "event")
            fields: list[str] = []
            injected: dict[str, Any] = {}
            for parameter in _parameters(function, cls):
                hint = hints.get(parameter.name)
                dependency = _injected(hint)
                if parameter.kind in _VARIADIC:
                    continue
                if dependency is not None:
                    injected[parameter.name] = dependency
                elif parameter.name in offered:
                    fields.append(parameter.name)
                elif _bare(hint) is JobContext:
                    injected[parameter.name] = JobContext
                elif _is_required(parameter):
                    self.fault(
                        f"{where}: {label.decorator} has no field {parameter.name!r}; it offers: {', '.join(offered)} (anything else "
                        "must be FromDishka[...])"
                    )
                    sound = False
            if label.queue_event is not None and label.queue is None and queue is None:
                self.fault(f"{where}: {label.decorator} needs queue=, because {cls.__name__} has no handlers")
                sound = False
            if not sound:
                continue
            entry = Entry(
                label=where,
                key=_key(where, function),
                owner=cls,
                attribute=attribute,
                function=function,
                parameters=Parameters(first="event", fields=tuple(fields), injected=MappingProxyType(injected)),
            )
            self._listeners.append(FoundListener(entry=entry, label=label, queue=queue, handlers=handlers))

    def _hints(
        self,
        where: str,
        function: Callable[..., Any],
        owner: type[Any] | None,
        attribute: str,
        arguments: "_Arguments",
    ) -> dict[str, Any] | None:
        try:
            hints = get_type_hints(function, include_extras=True)
            variables = arguments.get(_definer(owner, attribute), {}) if owner is not None else {}
            return {name: _substituted(_unaliased(hint), variables) for name, hint in hints.items()}
        except NameError as error:
            self.fault(
                f"{where}: cannot resolve annotation {error.name!r}. Import it at run time (not under TYPE_CHECKING)."
            )
        except (AttributeError, TypeError, SyntaxError) as error:
            self.fault(f"{where}: cannot resolve its annotations: {error}")
        return None

    def _is_generator(self, function: Callable[..., Any], where: str) -> bool:
        inner = inspect.unwrap(function)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            self.fault(f"{where} is a generator; what is called here returns its result")
            return True
        return False

    def _note_queue(self, queue: QueueRef) -> None:
        if not isinstance(queue, str):
            self._queues[queue] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A handler's callable as it was read, before its scope is known."""

    label: str
    key: type[Any]
    owner: type[Any] | None
    attribute: str
    function: Callable[..., Any]
    parameters: Parameters
    payload: Any
    result: Any

    def entry(self, scope: Scope) -> Entry:
        return Entry(
            label=self.label,
            key=self.key,
            owner=self.owner,
            attribute=self.attribute,
            function=self.function,
            parameters=self.parameters,
            scope=scope,
        )


# --- packages -------------------------------------------------------------------------------------------------------------------


def _discover(package: str) -> list[object]:
    """Return what is decorated and defined in a package or module and all below it, in order of definition."""
    try:
        root = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
            raise RegistrationError(f"discover={package!r}: there is no module {error.name!r}") from None
        raise
    modules = [root]
    if hasattr(root, "__path__"):
        modules += [
            importlib.import_module(found.name)
            for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=_raise)
            # Importing a __main__ would run it.
            if found.name.rpartition(".")[2] != "__main__"
        ]
    found: dict[int, object] = {}
    for module in modules:
        for value in _defined_in(module):
            if _is_candidate(value):
                found.setdefault(id(value), value)
    classes = [value for value in found.values() if isinstance(value, type)]
    return [value for value in found.values() if not (isinstance(value, type) and _is_mixin(value, classes))]


def _raise(_: str) -> NoReturn:
    raise  # noqa: PLE0704


def _defined_in(module: ModuleType) -> Iterator[object]:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == module.__name__ and (isinstance(value, type) or inspect.isroutine(value)):
            yield value


def _is_candidate(value: object) -> bool:
    if not isinstance(value, type):
        return bool(labels(value))
    if processor_label(value) is not None or any(labels(one) for one in vars(value).values() if not isinstance(one, type)):
        return True
    return issubclass(value, Worker) and not inspect.isabstract(value)


def _is_mixin(cls: type[Any], classes: Sequence[type[Any]]) -> bool:
    """Whether a class without `@processor` only lends its methods to others that were found."""
    if processor_label(cls) is not None:
        return False
    if issubclass(cls, Worker):
        return inspect.isabstract(cls)
    return any(cls in other.__mro__[1:] for other in classes)


# --- hints ----------------------------------------------------------------------------------------------------------------------

_Arguments = Mapping[type[Any], Mapping[Any, Any]]
_POSITIONAL: Final = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})
_VARIADIC: Final = frozenset({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def _type_arguments(cls: type[Any]) -> _Arguments:
    """Return for each generic base what ``cls`` makes of its type variables."""
    found: dict[type[Any], dict[Any, Any]] = {}

    def visit(current: type[Any], own: Mapping[Any, Any]) -> None:
        bases: Sequence[Any] = vars(current).get("__orig_bases__") or current.__bases__
        for base in bases:
            origin = get_origin(base) or base
            arguments = [_substituted(argument, own) for argument in get_args(base)]
            variables: Sequence[Any] = getattr(origin, "__parameters__", ())
            if isinstance(origin, type) and origin not in found:
                found[origin] = dict(zip(variables, arguments, strict=False))
                visit(origin, found[origin])

    visit(cls, {})
    return found


def _substituted(hint: Any, variables: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    free: Sequence[Any] = getattr(hint, "__parameters__", ())
    if not variables or not free or get_origin(hint) is None:
        return hint
    return hint[tuple(variables.get(one, one) for one in free)]


def _free_variable(hint: Any) -> TypeVar | None:
    if isinstance(hint, TypeVar):
        return hint
    free: Sequence[Any] = getattr(hint, "__parameters__", ()) if get_origin(hint) is not None else ()
    return free[0] if free else None


def _is_alias(hint: Any) -> bool:
    # By name, because typing_extensions has a class of its own for older interpreters.
    return type(hint).__name__ == "TypeAliasType"


def _unaliased(hint: Any) -> Any:
    """Return what a ``type`` alias stands for."""
    while True:
        origin = get_origin(hint)
        if _is_alias(hint):
            hint = hint.__value__
        elif _is_alias(origin):
            variables = dict(zip(origin.__type_params__, get_args(hint), strict=False))
            hint = _substituted(origin.__value__, variables)
        else:
            return hint


def _bare(hint: Any) -> Any:
    """Return a hint without its aliases and annotations."""
    hint = _unaliased(hint)
    while get_origin(hint) is Annotated:
        hint = _unaliased(get_args(hint)[0])
    return hint


def _injected(hint: Any) -> Any:
    """Return the hint by which the container knows an injected parameter, or None when it is not injected."""
    hint = _unaliased(hint)
    if get_origin(hint) is not Annotated:
        return None
    key, *extras = get_args(hint)
    key = _unaliased(key)
    if get_origin(key) is Annotated:
        inner, *own = get_args(key)
        key, extras = inner, [*own, *extras]
    component = next((extra for extra in extras if isinstance(extra, _FROM_COMPONENT)), None)
    return None if component is None else Annotated[key, component]


def _plain_result(hint: Any) -> Any:
    hint = _unaliased(hint)
    if get_origin(hint) in {Awaitable, Coroutine}:
        hint = get_args(hint)[-1]
    return Any if hint in {NoReturn, Never} or _free_variable(hint) is not None else hint


def _type_name(hint: Any) -> str:
    if hint is None or hint is type(None):
        return "None"
    hint = _bare(hint)
    if isinstance(hint, type) and get_origin(hint) is None:
        return hint.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint).replace("<locals>.", ""))


# --- functions ------------------------------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any], owner: type[Any] | None) -> list[inspect.Parameter]:
    found = list(inspect.signature(function).parameters.values())
    return found if owner is None else found[1:]


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIADIC


def _definer(owner: type[Any], attribute: str) -> type[Any]:
    return next((base for base in owner.__mro__ if attribute in vars(base)), owner)


def _overridden(cls: type[Any], attribute: str) -> tuple[object, ...]:
    """Return the functions that go by this name in the class and its bases."""
    found = (vars(base)[attribute] for base in cls.__mro__ if attribute in vars(base) and base is not Worker)
    return tuple(function for function in found if inspect.isroutine(function))


def _fields_of(label: ListenerLabel) -> tuple[str, ...]:
    if label.worker_event is not None:
        return _WORKER_FIELDS[label.worker_event]
    return () if label.queue_event is None else _QUEUE_FIELDS[label.queue_event]


def _merged(
    layers: Sequence[ProcessorLabel | ProcessLabel | JobLabel],
) -> tuple[JobOptions, tuple[str, ...], Singleton]:
    options = merge(*(layer.options for layer in layers))
    tags: set[str] = set()
    singleton: Singleton = False
    for layer in layers:
        tags.update(layer.tags, layer.options.get("tags", ()))
        singleton = layer.singleton or singleton
    options.pop("tags", None)
    return options, tuple(sorted(tags)), singleton


def _payload_adapter(kind: JobKind) -> TypeAdapter[Any]:
    return kind.payload_adapter


def _result_adapter(kind: JobKind) -> TypeAdapter[Any]:
    return kind.result_adapter


def _key(label: str, source: object) -> type[Any]:
    return type(label, (), {"__module__": getattr(source, "__module__", ""), "__doc__": f"The bound call of {label}."})


def _worker_name(class_name: str) -> str:
    return _SUFFIX.sub("", _CAMEL.sub("_", class_name).lower())


def _upper_camel(class_name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in class_name.split("_"))


def _nothing_to_run(name: str) -> str:
    return (
        f"{name} has nothing to run: expected @processor, Worker[...], @cron, @interval, @timeout or an event listener"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        return f"{place}: {fault['msg']}" if place else fault["msg"]
    return str(error)
