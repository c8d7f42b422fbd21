"""The decorators and base classes with which an application names its handlers, schedules and listeners.

Each decorator attaches a label and returns the object it was given: nothing is registered, and nothing runs, at import.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Concatenate, Final, Generic, Literal, TypeVar

from dishka import FromComponent, Scope

from workers_module.client.producer import check_defaults
from workers_module.client.queue import Queue
from workers_module.clock import Duration, duration_ms
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
    attach,
)
from workers_module.errors import ConfigurationError, InvalidNameError, RegistrationError, ScheduleError
from workers_module.job.events import QUEUE_EVENTS, WORKER_EVENTS, QueueEventName, WorkerEventName
from workers_module.job.job import Job
from workers_module.job.names import check_name
from workers_module.job.options import JobOptions
from workers_module.job.sandbox import Sandbox
from workers_module.job.schedule import CatchUp, Schedule

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
TargetT = TypeVar("TargetT", bound=Callable[..., Any])
MethodT = TypeVar("MethodT", bound=Callable[Concatenate[Any, Job[Any], ...], Any])
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

DEFAULT_QUEUE: Final = "default"
"""The queue of handlers that name none."""


class Worker(ABC, Generic[A_contra, R_co]):
    """A class that handles one kind of job: its arguments are ``A``, its result is ``R``.

    The job is named after the class unless ``job_name`` is set. The queue is ``default`` unless `processor` names
    another. What the work needs is asked for in ``__init__``; `JobContext` too.

    Example:
        ::

            @processor("calculator")
            class Calculator(Worker[CalcArgs, int]):
                def perform(self, args: CalcArgs, /) -> int:
                    return args.number * 4

    Source: Loco ``BackgroundWorker``, Hyperstack ``HyperWorker``.
    """

    job_name: ClassVar[str]
    """The job's name, where it is not that of the class."""

    @abstractmethod
    def perform(self, args: A_contra, /) -> R_co | Awaitable[R_co]:
        """Do the work. ``def`` runs in a thread, ``async def`` on the event loop; raising fails the job."""


class WorkerHost:
    """An empty base class for processors ported from NestJS; nothing needs it."""


def queue_component(name: str) -> str:
    """Return the dishka component under which a queue is found by name: ``queue:<name>``."""
    return f"queue:{name}"


def InjectQueue(name: str) -> Any:  # noqa: N802
    """Mark a `Queue` parameter as the queue of this name.

    Example:
        ``def __init__(self, emails: Annotated[Queue[EmailJob], InjectQueue("email")]) -> None: ...``

    Source: NestJS ``@InjectQueue``.
    """
    return FromComponent(queue_component(_checked_name("InjectQueue", "queue", name)))


def processor(
    queue: QueueRef,
    *,
    name: str | None = None,
    concurrency: int | None = None,
    scope: Scope = Scope.REQUEST,
    provide: bool = True,
    options: JobOptions | None = None,
    tags: Sequence[str] = (),
    singleton: Singleton = False,
    sandbox: Sandbox | None = None,
) -> Callable[[TargetT], TargetT]:
    """Make a class serve a queue, or a function take every job of it that has no handler of its own.

    A class handles jobs in methods with `process`; a plain method called ``process`` takes the jobs that no other
    handler takes.

    Args:
        queue: The queue's name or class.
        name: The worker name (``ENABLED_WORKERS``), where it is not the queue's.
        concurrency: Jobs of the queue at once; the setting unless given.
        scope: ``REQUEST``: a new object for each attempt; ``APP``: one per container.
        provide: False leaves providing the class to the application's own provider.
        options: Defaults of its handlers.
        tags: Put on every job of its handlers, in addition to theirs.
        singleton: One job in flight per job name, or per key that this function makes of the payload.
        sandbox: Where its handlers run; the setting unless given.

    Raises:
        RegistrationError: Used without a queue, or on something that is neither class nor function.

    Source: NestJS ``@Processor``.
    """
    if not isinstance(queue, str) and not _is_queue_class(queue):
        raise RegistrationError("@processor needs a queue: @processor('email')")
    if concurrency is not None and (isinstance(concurrency, bool) or concurrency < 1):
        raise RegistrationError(f"@processor: concurrency {concurrency!r} is not a whole number from 1 up")
    if scope not in {Scope.APP, Scope.REQUEST}:
        raise RegistrationError(f"@processor: scope is Scope.REQUEST or Scope.APP, not {scope}")
    return _attaching(
        "@processor",
        ProcessorLabel(
            queue=check_queue("@processor", queue),
            name=None if name is None else _checked_name("@processor", "queue", name),
            concurrency=concurrency,
            scope=scope,
            provide=provide,
            options=_checked_options("@processor", options),
            tags=_checked_tags("@processor", tags),
            singleton=_checked_singleton("@processor", singleton),
            sandbox=sandbox,
        ),
        classes=True,
    )


def process(
    name: str | None = None,
    *,
    options: JobOptions | None = None,
    tags: Sequence[str] = (),
    singleton: Singleton = False,
) -> Callable[[MethodT], MethodT]:
    """Make a method of a processor handle the jobs of one name.

    Its first parameter is the job, ``job: Job[YourModel]``; further ones are ``Job[...]``, `JobContext`, or injected.

    Args:
        name: The job's name; the method's name unless given.
        options: Defaults of these jobs; they win over the class's.
        tags: Put on these jobs, in addition to the class's.
        singleton: One job in flight, or one per key that this function makes of the payload.

    Raises:
        RegistrationError: Used without a call, or on a class.
    """
    return _attaching(
        "@process",
        ProcessLabel(
            name=_checked_job_name("@process", name),
            options=_checked_options("@process", options),
            tags=_checked_tags("@process", tags),
            singleton=_checked_singleton("@process", singleton),
        ),
    )


def job(
    name: str | None = None,
    *,
    queue: QueueRef = DEFAULT_QUEUE,
    options: JobOptions | None = None,
    tags: Sequence[str] = (),
    singleton: Singleton = False,
    sandbox: Sandbox | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Make a function handle the jobs of one name.

    Its first parameter is the payload, ``data: YourModel``, or the job, ``job: Job[YourModel]``; further ones are
    ``Job[...]``, `JobContext`, or injected.

    Args:
        name: The job's name; the function's name unless given.
        queue: The queue's name or class.
        options: Defaults of these jobs.
        tags: Put on these jobs.
        singleton: One job in flight, or one per key that this function makes of the payload.
        sandbox: Where it runs; the setting unless given.

    Raises:
        RegistrationError: Used without a call, or on a class.
    """
    return _attaching(
        "@job",
        JobLabel(
            name=_checked_job_name("@job", name),
            queue=check_queue("@job", queue),
            options=_checked_options("@job", options),
            tags=_checked_tags("@job", tags),
            singleton=_checked_singleton("@job", singleton),
            sandbox=sandbox,
        ),
    )


def cron(
    expression: str,
    *,
    name: str | None = None,
    tz: str | None = None,
    data: object = MISSING,
    overlap: Literal["skip", "allow"] = "skip",
    disabled: bool = False,
    threshold: Duration | None = None,
    initial_delay: Duration | None = None,
    jitter: Duration | None = None,
    catch_up: CatchUp | None = None,
    lock: str | None = None,
    every_instance: bool = False,
) -> Callable[[HandlerT], HandlerT]:
    """Run a handler, a method or a function at the times of a cron expression.

    On a handler each tick adds a job with ``data``. Anything else is called without arguments but injected ones, as a
    job on the queue ``cron.<worker name>``. Several may be stacked.

    Args:
        expression: Five fields, or six with the seconds first, or ``@daily`` and its kind; see `CronExpression`.
        name: Unique in the container; ``Class.method`` or the function's name unless given.
        tz: The IANA time zone; UTC unless given.
        data: The payload of each job.
        overlap: With ``skip`` a run does not start while the last one has not ended.
        disabled: Declared, but does not tick.
        threshold: A slot later than this is skipped.
        initial_delay: No slot before the process has run so long.
        jitter: Each job starts up to so much after its slot.
        catch_up: What becomes of slots missed while nobody ran; ``latest`` unless given, ``none`` with
            ``every_instance``.
        lock: A run holds this distributed lock, or is skipped.
        every_instance: Fires in every process, directly, instead of once in all.

    Raises:
        RegistrationError: Used without a call, or an argument cannot be what it is.
        ScheduleError: The expression or the time zone cannot be used, or never fires.

    Source: NestJS ``@Cron``, StartupJS ``cron``.
    """
    if callable(expression):
        raise RegistrationError("@cron is called: @cron('0 9 * * 1')")
    if overlap not in {"skip", "allow"}:
        raise RegistrationError(f"@cron: overlap is 'skip' or 'allow', not {overlap!r}")
    if catch_up not in {None, "latest", "all", "none"}:
        raise RegistrationError(f"@cron: catch_up is 'latest', 'all' or 'none', not {catch_up!r}")
    try:
        slots = Schedule.cron(expression, tz=tz or "UTC")
    except ScheduleError as error:
        raise ScheduleError(f"@cron: {error}") from None
    return _attaching(
        "@cron",
        ScheduleLabel(
            decorator="cron",
            name=_checked_schedule_name("@cron", name),
            schedule=slots,
            data=data,
            overlap=overlap,
            disabled=disabled,
            threshold_ms=_checked_duration("@cron: threshold", threshold),
            initial_delay_ms=_checked_duration("@cron: initial_delay", initial_delay),
            jitter_ms=_checked_duration("@cron: jitter", jitter),
            catch_up=catch_up or ("none" if every_instance else "latest"),
            lock=None if lock is None else _checked_name("@cron", "lock", lock),
            every_instance=every_instance,
        ),
    )


def interval(
    every: Duration, *, name: str | None = None, data: object = MISSING, every_instance: bool = False
) -> Callable[[HandlerT], HandlerT]:
    """Run a handler, a method or a function again and again, so far apart; like `cron` in all else.

    Missed runs are left out.

    Args:
        every: The distance between two runs.
        name: Unique in the container; ``Class.method`` or the function's name unless given.
        data: The payload of each job.
        every_instance: Fires in every process, directly, instead of once in all.

    Raises:
        RegistrationError: Used without a call, or ``every`` is no duration.
        ScheduleError: ``every`` is less than a millisecond.

    Source: NestJS ``@Interval``.
    """
    if callable(every):
        raise RegistrationError("@interval is called: @interval('10s')")
    try:
        slots = Schedule.every(_checked_duration("@interval", every) or 0)
    except ScheduleError as error:
        raise ScheduleError(f"@interval: {error}") from None
    return _attaching(
        "@interval",
        ScheduleLabel(
            decorator="interval",
            name=_checked_schedule_name("@interval", name),
            schedule=slots,
            data=data,
            catch_up="none",
            every_instance=every_instance,
        ),
    )


def timeout(
    after: Duration, *, name: str | None = None, data: object = MISSING, every_instance: bool = True
) -> Callable[[HandlerT], HandlerT]:
    """Run a handler, a method or a function once, so long after the start of the workers; like `cron` in all else.

    Args:
        after: The time after the start.
        name: Unique in the container; ``Class.method`` or the function's name unless given.
        data: The payload of the job.
        every_instance: Fires in every process, directly; False adds one job.

    Raises:
        RegistrationError: Used without a call, or ``after`` is no duration.

    Source: NestJS ``@Timeout``.
    """
    if callable(after):
        raise RegistrationError("@timeout is called: @timeout('5s')")
    return _attaching(
        "@timeout",
        ScheduleLabel(
            decorator="timeout",
            name=_checked_schedule_name("@timeout", name),
            after_ms=_checked_duration("@timeout", after),
            data=data,
            catch_up="none",
            every_instance=every_instance,
        ),
    )


def on_worker_event(event: WorkerEventName) -> Callable[[HandlerT], HandlerT]:
    """Have a method called when something happened to a job, or to a queue's worker, in this process.

    Parameters are matched by name: ``job``, ``result``, ``error``, ``progress``, as the event has them, and ``event``
    for the whole; all others are injected. What the method raises is logged and changes nothing.

    Args:
        event: The event's name.

    Raises:
        RegistrationError: There is no such event.

    Source: NestJS ``@OnWorkerEvent``.
    """
    if callable(event):
        raise RegistrationError("@on_worker_event is called: @on_worker_event('completed')")
    if event not in WORKER_EVENTS:
        raise RegistrationError(f"@on_worker_event: unknown event {event!r}; known: {', '.join(WORKER_EVENTS)}")
    return _attaching("@on_worker_event", ListenerLabel(worker_event=event))


def on_queue_event(event: QueueEventName, *, queue: QueueRef | None = None) -> Callable[[HandlerT], HandlerT]:
    """Have a method called when something happened to a queue in any process; possibly twice.

    Parameters are matched by name: ``job_id``, ``result``, ``error``, ``progress``, as the event has them, and
    ``event`` for the whole; all others are injected. What the method raises is logged and changes nothing.

    Args:
        event: The event's name.
        queue: The queue's name or class; the class's own queue unless given.

    Raises:
        RegistrationError: There is no such event.

    Source: NestJS ``@OnQueueEvent``.
    """
    if callable(event):
        raise RegistrationError("@on_queue_event is called: @on_queue_event('completed')")
    if event not in QUEUE_EVENTS:
        raise RegistrationError(f"@on_queue_event: unknown event {event!r}; known: {', '.join(QUEUE_EVENTS)}")
    return _attaching(
        "@on_queue_event",
        ListenerLabel(queue_event=event, queue=None if queue is None else check_queue("@on_queue_event", queue)),
    )


def _attaching(decorator: str, label: Label, *, classes: bool = False) -> Callable[[TargetT], TargetT]:
    def decorate(target: TargetT) -> TargetT:
        given: object = target
        if isinstance(given, type) and not classes:
            raise RegistrationError(f"{decorator} goes on a function or method; on a class write @processor('email')")
        if not _is_class_or_function(given):
            raise RegistrationError(f"{decorator} goes on a function or a method, not on {given!r}")
        try:
            attach(given, label)
        except AttributeError:
            raise RegistrationError(
                f"{decorator}: {given!r} takes no label; wrap it in a function of your own"
            ) from None
        return target

    return decorate


def _is_class_or_function(given: object) -> bool:
    return isinstance(given, type | staticmethod | classmethod) or inspect.isroutine(given)


def _is_queue_class(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, Queue)


def check_queue(where: str, queue: QueueRef) -> QueueRef:
    """Return a queue's name or class if it can be one.

    Args:
        where: What the error message begins with.
        queue: What was given.

    Raises:
        InvalidNameError: The name cannot be kept by every store.
        RegistrationError: It is neither a name nor the class of a queue that has a name.
    """
    if isinstance(queue, str):
        return _checked_name(where, "queue", queue)
    if not _is_queue_class(queue):
        raise RegistrationError(
            f"{where}: {queue!r} is no queue; write its name, or a class EmailQueue(Queue[EmailJob], name='email')"
        )
    if not getattr(queue, "name", None):
        raise RegistrationError(
            f"{where}: {queue.__name__} has no name; write class {queue.__name__}(Queue[...], name='email')"
        )
    return queue


def _checked_job_name(decorator: str, name: str | None) -> str | None:
    if callable(name):
        raise RegistrationError(f"{decorator} is called: {decorator}() or {decorator}('name')")
    return None if name is None else _checked_name(decorator, "job", name)


def _checked_schedule_name(decorator: str, name: str | None) -> str | None:
    return None if name is None else _checked_name(decorator, "schedule", name)


def _checked_name(decorator: str, kind: Literal["queue", "job", "schedule", "lock", "tag"], name: str) -> str:
    try:
        return check_name(kind, name)
    except InvalidNameError as error:
        raise InvalidNameError(f"{decorator}: {error}") from None


def _checked_tags(decorator: str, tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise RegistrationError(f"{decorator}: tags is a list of texts: tags=({tags!r},)")
    return tuple(_checked_name(decorator, "tag", tag) for tag in tags)


def _checked_singleton(decorator: str, singleton: Singleton) -> Singleton:
    if not (isinstance(singleton, bool) or callable(singleton)):
        raise RegistrationError(f"{decorator}: singleton is True, or a function of the payload, not {singleton!r}")
    return singleton


def _checked_options(decorator: str, options: JobOptions | None) -> JobOptions:
    try:
        return JobOptions() if options is None else check_defaults(options, decorator)
    except TypeError as error:
        raise RegistrationError(str(error)) from None


def _checked_duration(what: str, value: Duration | None) -> int | None:
    try:
        return None if value is None else duration_ms(value, what)
    except ConfigurationError as error:
        raise RegistrationError(str(error)) from None
