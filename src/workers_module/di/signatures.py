"""Reading signatures: what of a job, of an event or of the container each parameter receives."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin

from workers_module.di.found import Parameters
from workers_module.di.hints import (
    POSITIONAL,
    VARIADIC,
    TypeArguments,
    bare,
    free_variable,
    injected,
    is_required,
    parameters_of,
    read_hints,
    result_of,
    type_name,
    unaliased,
)
from workers_module.di.metadata import ListenerLabel, ScheduleLabel
from workers_module.job.events import QueueEventName, WorkerEventName
from workers_module.job.job import Job
from workers_module.worker.context import JobContext

_WORKER_FIELDS: Final[Mapping[WorkerEventName, tuple[str, ...]]] = MappingProxyType(
    {
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
    }
)
_QUEUE_FIELDS: Final[Mapping[QueueEventName, tuple[str, ...]]] = MappingProxyType(
    {
        "waiting": ("job_id",),
        "delayed": ("job_id",),
        "active": ("job_id",),
        "removed": ("job_id",),
        "completed": ("job_id", "result"),
        "failed": ("job_id", "error"),
        "progress": ("job_id", "progress"),
        "paused": (),
        "resumed": (),
    }
)


class Faults:
    """Gathers what is wrong, so that it can be told at once."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}

    def add(self, line: str) -> None:
        """Note a fault; the same one again counts once."""
        self.lines[line] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A function, or a method of a class, that is to be called.

    Attributes:
        label: ``Class.method`` or the function's name.
        function: The function that runs.
        owner: The class, or None.
        attribute: The method's name, or the function's.
        arguments: What the class makes of the type variables of its bases.
    """

    label: str
    function: Callable[..., Any]
    owner: type[Any] | None
    attribute: str
    arguments: TypeArguments = field(default_factory=dict[type[Any], Mapping[Any, Any]])

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """The parameters; without ``self``."""
        return parameters_of(self.function, self.owner)

    @property
    def sources(self) -> tuple[object, ...]:
        """The function that runs, and those it overrides."""
        if self.owner is None:
            return (self.function,)
        found = (vars(base)[self.attribute] for base in self.owner.__mro__ if self.attribute in vars(base))
        return tuple(function for function in found if inspect.isroutine(function))

    def hints(self, faults: Faults) -> dict[str, Any] | None:
        """Return the hints; None when they cannot be read, or nothing of them could be called."""
        inner = inspect.unwrap(self.function)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            faults.add(f"{self.label} is a generator; what is called here returns its result")
            return None
        variables: Mapping[Any, Any] = {}
        if self.owner is not None:
            definer = next((base for base in self.owner.__mro__ if self.attribute in vars(base)), self.owner)
            variables = self.arguments.get(definer, variables)
        try:
            return read_hints(self.function, variables)
        except NameError as error:
            faults.add(
                f"{self.label}: cannot resolve annotation {error.name!r}. Import it at run time (not under "
                "TYPE_CHECKING)."
            )
        except (AttributeError, TypeError, SyntaxError) as error:
            faults.add(f"{self.label}: cannot resolve its annotations: {error}")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What was read of a handler: its parameters, its payload (None for no payload), its result."""

    parameters: Parameters
    payload: Any
    result: Any


def read_handler(member: Member, faults: Faults) -> Signature | None:
    """Read a handler: first the job or its payload, then what is injected."""
    hints = member.hints(faults)
    if hints is None:
        return None
    parameters = member.parameters
    first = parameters[0] if parameters and parameters[0].kind in POSITIONAL else None
    style: Literal["job", "data", "none"] = "none"
    payload: Any = None
    if first is not None:
        read = _read_first(member, first, hints, faults)
        if read is None:
            return None
        style, payload = read
    elif member.owner is not None:
        name = parameters[0].name if parameters else "job"
        faults.add(f"{member.label}: a handler method takes the job: write '{name}: Job[YourModel]'")
        return None
    elif parameters:
        faults.add(f"{member.label}: the payload or the job comes first, before injected parameters")
        return None
    rest = _read_rest(member, parameters[1:], hints, faults)
    if rest is None:
        return None
    jobs, contexts, filled = rest
    return Signature(
        parameters=Parameters(first=style, jobs=jobs, contexts=contexts, injected=filled),
        payload=None if payload is type(None) else payload,
        result=result_of(hints.get("return", Any)),
    )


def _read_first(
    member: Member, first: inspect.Parameter, hints: Mapping[str, Any], faults: Faults
) -> tuple[Literal["job", "data"], Any] | None:
    where, name = member.label, first.name
    hint = hints.get(name, inspect.Parameter.empty)
    if hint is inspect.Parameter.empty:
        wanted = f"'{name}: Job[YourModel]' (Job[Any] for unchecked data)"
        if member.owner is None and name != "job":
            wanted = f"'{name}: YourModel' or 'job: Job[YourModel]' (Any for unchecked data)"
        faults.add(f"{where}: parameter {name!r} has no annotation; write {wanted}")
        return None
    kind = bare(hint)
    if injected(hint) is not None or kind is JobContext:
        faults.add(f"{where}: the payload or the job comes first, before injected parameters")
        return None
    if kind is Job:
        faults.add(f"{where}: 'Job' has no payload type; write 'Job[YourModel]' (Job[Any] for unchecked data)")
        return None
    style: Literal["job", "data"] = "data"
    # What pydantic reads from Annotated (constraints, discriminators) belongs to the payload.
    payload = hint
    if get_origin(kind) is Job:
        style, payload = "job", unaliased(get_args(kind)[0])
    elif member.owner is not None:
        faults.add(f"{where}: a handler method takes the job: write '{name}: Job[{type_name(kind)}]'")
        return None
    free = free_variable(payload)
    if free is not None:
        place = "annotate it" if member.owner is None else f"override {member.attribute} in {member.owner.__name__}"
        faults.add(f"{where}: payload is the type variable {free.__name__}; {place} with a concrete type")
        return None
    return style, payload


def _read_rest(
    member: Member, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any], faults: Faults
) -> tuple[tuple[str, ...], tuple[str, ...], Mapping[str, Any]] | None:
    where = member.label
    jobs: list[str] = []
    contexts: list[str] = []
    filled: dict[str, Any] = {}
    sound = True
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in VARIADIC:
            continue
        hint = hints.get(name)
        dependency, kind = injected(hint), bare(hint)
        is_job = kind is Job or get_origin(kind) is Job
        is_known = dependency is not None or is_job or kind is JobContext
        if is_known and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            faults.add(f"{where}: parameter {name!r} is passed by name; move it behind the '/'")
            sound = False
        elif dependency is not None:
            filled[name] = dependency
        elif is_job:
            jobs.append(name)
        elif is_known:
            contexts.append(name)
        elif is_required(parameter):
            wanted = "YourDependency" if hint is None else type_name(kind)
            faults.add(
                f"{where}: parameter {name!r} is neither the job nor injected; write '{name}: FromDishka[{wanted}]'"
            )
            sound = False
    return (tuple(jobs), tuple(contexts), MappingProxyType(filled)) if sound else None


def read_tick(member: Member, label: ScheduleLabel, faults: Faults) -> Signature | None:
    """Read what a schedule calls without arguments: all of its parameters are injected."""
    hints = member.hints(faults)
    if hints is None:
        return None
    add = "@job()" if member.owner is None else "@process"
    filled: dict[str, Any] = {}
    sound = True
    for parameter in member.parameters:
        dependency = injected(hints.get(parameter.name))
        if dependency is not None:
            filled[parameter.name] = dependency
        elif is_required(parameter):
            faults.add(
                f"{member.label}: @{label.decorator} calls it without arguments, but {parameter.name!r} is not "
                f"FromDishka[...]; to enqueue a job add {add}"
            )
            sound = False
    if not sound:
        return None
    parameters = Parameters(injected=MappingProxyType(filled))
    return Signature(parameters=parameters, payload=None, result=result_of(hints.get("return", Any)))


def read_listener(member: Member, label: ListenerLabel, faults: Faults) -> Parameters | None:
    """Read a listener: its parameters are fields of the event, by name, or injected."""
    hints = member.hints(faults)
    if hints is None:
        return None
    offered = (*_fields_of(label), "event")
    fields: list[str] = []
    filled: dict[str, Any] = {}
    sound = True
    for parameter in member.parameters:
        name = parameter.name
        hint = hints.get(name)
        dependency = injected(hint)
        if parameter.kind in VARIADIC:
            continue
        if dependency is not None:
            filled[name] = dependency
        elif name in offered:
            fields.append(name)
        elif bare(hint) is JobContext:
            filled[name] = JobContext
        elif is_required(parameter):
            faults.add(
                f"{member.label}: {label.decorator} has no field {name!r}; it offers: {', '.join(offered)} "
                "(anything else must be FromDishka[...])"
            )
            sound = False
    if not sound:
        return None
    return Parameters(first="event", fields=tuple(fields), injected=MappingProxyType(filled))


def _fields_of(label: ListenerLabel) -> tuple[str, ...]:
    if label.worker_event is not None:
        return _WORKER_FIELDS[label.worker_event]
    return () if label.queue_event is None else _QUEUE_FIELDS[label.queue_event]
