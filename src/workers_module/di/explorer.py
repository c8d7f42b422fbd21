"""From decorated classes and functions to compiled records. What can be wrong with them is said here, all at once.

Hints are read one time, with their extras; what a run needs of them afterwards is in the records.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, cast

from dishka import Scope
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from workers_module.client.queue import Queue
from workers_module.di.decorators import DEFAULT_QUEUE, Worker
from workers_module.di.found import (
    Explored,
    FoundHandler,
    FoundListener,
    FoundSchedule,
    Parameters,
    make_entry,
)
from workers_module.di.hints import (
    POSITIONAL,
    VARIADIC,
    TypeArguments,
    free_variable,
    is_required,
    result_of,
    type_arguments,
    type_name,
)
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
)
from workers_module.di.packages import decorated_in
from workers_module.di.signatures import Faults, Member, Signature, read_handler, read_listener, read_tick
from workers_module.errors import InvalidNameError, PayloadError, RegistrationError
from workers_module.job.encoding import encode
from workers_module.job.kind import JobKind
from workers_module.job.names import check_name
from workers_module.job.options import JobOptions, merge
from workers_module.worker.handler import HandlerSpec

TICKS: Final = "cron."
"""What the names of the queues begin with on which plain schedules run; the worker name follows."""
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SUFFIX: Final = re.compile(r"(?<=.)_(?:worker|processor|service|tasks)$")

_HandlerLabel = ProcessorLabel | ProcessLabel | JobLabel


def explore(processors: Iterable[object] = (), discover: str | Iterable[str] = ()) -> Explored:
    """Compile decorated classes and functions.

    Args:
        processors: Classes and functions; one given twice counts once.
        discover: Packages that are imported with their submodules; what is decorated and *defined* there is taken.

    Raises:
        RegistrationError: Something cannot be what it is decorated as: a line for each fault.
    """
    explorer = _Explorer()
    found = {id(target): target for target in processors}
    for package in [discover] if isinstance(discover, str) and discover else discover:
        targets = decorated_in(package)
        if not targets:
            explorer.faults.add(f"discover={package!r} found no decorated class or function")
        for target in targets:
            found.setdefault(id(target), target)
    for target in found.values():
        explorer.add(target)
    return explorer.result()


class _Explorer:
    def __init__(self) -> None:
        self.faults = Faults()
        self._handlers: list[FoundHandler] = []
        self._listeners: list[FoundListener] = []
        self._schedules: list[FoundSchedule] = []
        self._classes: dict[type[Any], Scope] = {}
        self._queues: dict[type[Queue[Any]], None] = {}

    def result(self) -> Explored:
        if self.faults.lines:
            raise RegistrationError("\n".join(self.faults.lines))
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
            self.faults.add(f"{target!r} is neither a class nor a function")

    # -- functions -----------------------------------------------------------------------------------------------------

    def _add_function(self, function: Callable[..., Any]) -> None:
        name: str = getattr(function, "__name__", repr(function))
        own = labels(function)
        handled: tuple[JobLabel | ProcessorLabel, ...] = (*of_kind(own, JobLabel), *of_kind(own, ProcessorLabel))
        schedules = of_kind(own, ScheduleLabel)
        member = Member(label=name, function=function, owner=None, attribute=name)
        if of_kind(own, ProcessLabel):
            self.faults.add(
                f"{name} has @process, which is for methods of a @processor class; on a function write @job()"
            )
        elif of_kind(own, ListenerLabel):
            self.faults.add(f"{name} is a function; event listeners are methods of a class in processors=")
        elif len(handled) > 1:
            self.faults.add(f"{name}: one @job or one @processor is enough")
        elif not own:
            self.faults.add(_nothing_to_run(name))
        elif not handled:
            self._add_ticks(member, schedules, worker=name)
        else:
            self._add_function_handler(member, handled[0], schedules)

    def _add_function_handler(
        self, member: Member, label: JobLabel | ProcessorLabel, schedules: Sequence[ScheduleLabel]
    ) -> None:
        self._note_queue(label.queue)
        signature = read_handler(member, self.faults)
        if signature is None:
            return
        processor = label if isinstance(label, ProcessorLabel) else None
        handler = self._add_handler(
            member,
            signature,
            queue=label.queue_name,
            name=None if processor is not None else label.name or member.label,
            worker=(processor and processor.name) or label.queue_name,
            layers=[label],
            processor=processor,
        )
        if handler is not None:
            self._add_schedules(schedules, handler)

    # -- classes -------------------------------------------------------------------------------------------------------

    def _add_class(self, cls: type[Any]) -> None:
        name = cls.__name__
        label = processor_label(cls)
        methods = method_labels(cls)
        is_worker = _is_worker(cls)
        if label is None:
            for base in cls.__mro__[1:]:
                inherited = processor_label(base)
                if inherited is not None:
                    self.faults.add(
                        f"{name} is not decorated: it inherits from {base.__name__}, whose "
                        f"@processor({inherited.queue_name!r}) is not inherited. Decorate {name} itself."
                    )
                    return
            if not is_worker and not methods:
                self.faults.add(_nothing_to_run(name))
                return
        else:
            self._note_queue(label.queue)
        if is_worker and inspect.isabstract(cls):
            self.faults.add(f"{name} is abstract: implement {', '.join(sorted(cls.__abstractmethods__))}")
            return
        arguments = type_arguments(cls)
        takes_jobs = is_worker or label is not None
        queue = DEFAULT_QUEUE if label is None else label.queue_name
        worker = (label and label.name) or (queue if takes_jobs else _worker_name(name))
        members = {attribute: self._member(cls, attribute, arguments) for attribute in methods}
        handlers: list[FoundHandler] = []
        if is_worker:
            handlers += self._add_perform(cls, label, methods.get("perform", ()), arguments, worker)
        elif label is not None and "process" not in members and _has_method(cls, "process"):
            members["process"] = self._member(cls, "process", arguments)
        has_handler = is_worker
        for attribute, member in members.items():
            own = methods.get(attribute, ())
            if member is None:
                has_handler = True
                continue
            is_handler, added = self._add_member(member, own, label, worker, is_worker=is_worker)
            has_handler = has_handler or is_handler
            handlers += added
        if label is not None and not has_handler:
            self.faults.add(
                f"{name} has @processor({queue!r}) but no handler: define 'async def process(self, job: Job[...])' or "
                "methods with @process('name')"
            )
        for attribute, member in members.items():
            if member is not None:
                self._add_listeners(
                    member,
                    of_kind(methods.get(attribute, ()), ListenerLabel),
                    queue=queue if takes_jobs else None,
                    handlers=tuple(handlers) if takes_jobs else None,
                )
        if label is None or label.provide:
            self._classes[cls] = Scope.REQUEST if label is None else label.scope
        return

    def _member(self, cls: type[Any], attribute: str, arguments: TypeArguments) -> Member | None:
        """Return a method: the most derived function runs."""
        where = f"{cls.__name__}.{attribute}"
        found: object = inspect.getattr_static(cls, attribute)
        if isinstance(found, staticmethod | classmethod):
            kind = "staticmethod" if isinstance(found, staticmethod) else "classmethod"
            self.faults.add(f"{where} is a {kind}; handlers are plain methods")
            return None
        if not inspect.isroutine(found):
            self.faults.add(f"{where} is no method; handlers are plain methods")
            return None
        function = cast("Callable[..., Any]", found)
        return Member(label=where, function=function, owner=cls, attribute=attribute, arguments=arguments)

    def _add_member(
        self, member: Member, own: Sequence[Label], label: ProcessorLabel | None, worker: str, *, is_worker: bool
    ) -> tuple[bool, list[FoundHandler]]:
        """Add what a method handles or runs at times; whether it was meant to be a handler, and what came of it."""
        schedules = of_kind(own, ScheduleLabel)
        process = of_kind(own, ProcessLabel)
        if any(isinstance(one, JobLabel | ProcessorLabel) for one in own):
            self.faults.add(f"{member.label} is a method; in a class write @process()")
            return True, []
        if is_worker and member.attribute == "perform":
            return True, []
        if not process and not (member.attribute == "process" and label is not None and not is_worker):
            return False, self._add_ticks(member, schedules, worker=worker)
        if label is None:
            cls = member.label.partition(".")[0]
            self.faults.add(f"{member.label} has @process but {cls} has no @processor(queue)")
            return True, []
        if len(process) > 1:
            self.faults.add(f"{member.label}: one @process is enough; for a second name write a second method")
            return True, []
        signature = read_handler(member, self.faults)
        if signature is None:
            return True, []
        handler = self._add_handler(
            member,
            signature,
            queue=label.queue_name,
            name=process[0].name or member.attribute if process else None,
            worker=worker,
            layers=[label, *process],
            processor=label,
        )
        if handler is None:
            return True, []
        self._add_schedules(schedules, handler)
        return True, [handler]

    def _add_perform(
        self,
        cls: type[Any],
        label: ProcessorLabel | None,
        own: Sequence[Label],
        arguments: TypeArguments,
        worker: str,
    ) -> list[FoundHandler]:
        name = cls.__name__
        member = self._member(cls, "perform", arguments)
        given = tuple(arguments.get(Worker, {}).values())
        if member is None:
            return []
        if len(given) != 2 or any(free_variable(one) is not None for one in given):
            self.faults.add(f"{name}: Worker needs its types: class {name}(Worker[Args, Result])")
            return []
        payload, result = given
        parameters = member.parameters
        positional = [one for one in parameters if one.kind in POSITIONAL]
        extra = [one.name for one in parameters if is_required(one) and one not in positional[:1]]
        if not positional and not any(one.kind in VARIADIC for one in parameters):
            self.faults.add(
                f"{name}.perform takes no payload; write 'def perform(self, args: {type_name(payload)}, /)'"
            )
            return []
        if extra:
            self.faults.add(f"{name}.perform takes only its payload; ask for {extra[0]!r} in __init__")
            return []
        process = of_kind(own, ProcessLabel)
        job_name: str | None = next((one.name for one in process if one.name), None) or getattr(cls, "job_name", None)
        handler = self._add_handler(
            member,
            Signature(parameters=Parameters(first="data"), payload=payload, result=result_of(result)),
            queue=DEFAULT_QUEUE if label is None else label.queue_name,
            name=job_name or _upper_camel(name),
            worker=worker,
            layers=[*([] if label is None else [label]), *process],
            processor=label,
            worker_class=cls,
        )
        if handler is None:
            return []
        self._add_schedules(of_kind(own, ScheduleLabel), handler)
        return [handler]

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _add_handler(
        self,
        member: Member,
        signature: Signature,
        *,
        queue: str,
        name: str | None,
        worker: str,
        layers: Sequence[_HandlerLabel],
        processor: ProcessorLabel | None,
        worker_class: type[Any] | None = None,
        is_tick: bool = False,
    ) -> FoundHandler | None:
        where = member.label if worker_class is None else worker_class.__name__
        job_name = name or member.attribute
        try:
            check_name("queue", queue)
            check_name("job", job_name)
        except InvalidNameError as error:
            self.faults.add(f"{where}: {error}")
            return None
        options, tags, singleton = _merged(layers)
        kind = JobKind(
            queue=queue,
            name=name,
            payload=signature.payload,
            result=signature.result,
            options=options,
            tags=tags,
            singleton=singleton,
        )
        if not self._can_validate(kind, where):
            return None
        injects = bool(signature.parameters.injected)
        is_static = not injects and (member.owner is None or (processor is not None and processor.scope is Scope.APP))
        entry = make_entry(
            where,
            member.function,
            signature.parameters,
            owner=member.owner,
            attribute=member.attribute,
            scope=Scope.APP if is_static else Scope.REQUEST,
        )
        sandbox = next((one.sandbox for one in layers if not isinstance(one, ProcessLabel)), None)
        handler = FoundHandler(
            spec=HandlerSpec(
                kind=kind,
                label=where,
                worker=worker,
                target=member.function if worker_class is None else worker_class,
                is_async=entry.is_async,
                concurrency=None if processor is None or is_tick else processor.concurrency,
                sandbox=sandbox if processor is None else processor.sandbox,
            ),
            entry=entry,
            job_name=job_name,
            sources=member.sources if worker_class is None else (worker_class, *_without(Worker, member.sources)),
            is_static=is_static,
            is_tick=is_tick,
        )
        self._handlers.append(handler)
        return handler

    def _can_validate(self, kind: JobKind, where: str) -> bool:
        adapters: Mapping[str, Callable[[], TypeAdapter[Any]]] = {
            "payload": lambda: kind.payload_adapter,
            "result": lambda: kind.result_adapter,
        }
        for what, make in adapters.items():
            try:
                make()
            except (PydanticUserError, TypeError, NameError) as error:
                type_ = type_name(getattr(kind, what))
                self.faults.add(f"{where}: pydantic cannot validate {what} {type_}: {type(error).__name__}")
                return False
        return True

    def _add_schedules(self, found: Sequence[ScheduleLabel], handler: FoundHandler) -> None:
        """Add the schedules that enqueue a handler."""
        where = handler.entry.label
        for name, label in self._named(found, where):
            at = f"@{label.decorator} on {where}"
            kind = handler.kind
            try:
                data = encode(None if label.data is MISSING else label.data, kind.payload_adapter, what=at)
            except (ValidationError, PayloadError) as error:
                payload = type_name(kind.payload)
                if label.data is MISSING:
                    self.faults.add(f"{at}: payload {payload} needs data=")
                else:
                    self.faults.add(f"{at}: data= does not fit {payload}: {_first_line(error)}")
                continue
            self._schedules.append(FoundSchedule(name=name, label=label, handler=handler, data=data))

    def _add_ticks(self, member: Member, found: Sequence[ScheduleLabel], *, worker: str) -> list[FoundHandler]:
        """Add the schedules of what is no handler: it becomes the handler of each schedule's own jobs."""
        added: list[FoundHandler] = []
        processor = None if member.owner is None else processor_label(member.owner)
        for name, label in self._named(found, member.label):
            signature = read_tick(member, label, self.faults)
            if label.data is not MISSING:
                add = "@job()" if member.owner is None else "@process"
                self.faults.add(
                    f"{member.label}: @{label.decorator} has data=, but calls it without arguments; to enqueue a job "
                    f"add {add}"
                )
            elif signature is not None:
                handler = self._add_handler(
                    member,
                    signature,
                    queue=f"{TICKS}{worker}",
                    name=name,
                    worker=worker,
                    layers=[],
                    processor=processor,
                    is_tick=True,
                )
                if handler is not None:
                    added.append(handler)
                    self._schedules.append(FoundSchedule(name=name, label=label, handler=handler))
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
                self.faults.add(f"{where}: {error}; pass name=")

    def _add_listeners(
        self,
        member: Member,
        found: Sequence[ListenerLabel],
        *,
        queue: str | None,
        handlers: tuple[FoundHandler, ...] | None,
    ) -> None:
        for label in found:
            parameters = read_listener(member, label, self.faults)
            if label.queue_event is not None and label.queue is None and queue is None:
                cls = member.label.partition(".")[0]
                self.faults.add(f"{member.label}: {label.decorator} needs queue=, because {cls} has no handlers")
            elif parameters is not None:
                entry = make_entry(
                    member.label, member.function, parameters, owner=member.owner, attribute=member.attribute
                )
                self._listeners.append(FoundListener(entry=entry, label=label, queue=queue, handlers=handlers))

    def _note_queue(self, queue: QueueRef) -> None:
        if not isinstance(queue, str):
            self._queues[queue] = None


def _is_worker(cls: type[Any]) -> bool:
    return issubclass(cls, Worker)


def _has_method(cls: type[Any], attribute: str) -> bool:
    return inspect.getattr_static(cls, attribute, None) is not None


def _without(base: type[Any], functions: Sequence[object]) -> tuple[object, ...]:
    return tuple(one for one in functions if one not in vars(base).values())


def _merged(layers: Sequence[_HandlerLabel]) -> tuple[JobOptions, tuple[str, ...], Singleton]:
    """Return the options, tags and singleton of a handler: the later label counts, and tags add up."""
    options = merge(*(layer.options for layer in layers))
    tags: set[str] = set()
    singleton: Singleton = False
    for layer in layers:
        tags.update(layer.tags, layer.options.get("tags", ()))
        singleton = layer.singleton or singleton
    options.pop("tags", None)
    return options, tuple(sorted(tags)), singleton


def _worker_name(class_name: str) -> str:
    return _SUFFIX.sub("", _CAMEL.sub("_", class_name).lower())


def _upper_camel(class_name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in class_name.split("_"))


def _nothing_to_run(name: str) -> str:
    return (
        f"{name} has nothing to run: expected @processor, Worker[...], @cron, @interval, @timeout or an event listener"
    )


def _first_line(error: ValidationError | PayloadError) -> str:
    if isinstance(error, PayloadError):
        return str(error)
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else fault["msg"]
