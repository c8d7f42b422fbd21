"""All features of one container merged: what there is to run, by which names, and what of it this process runs."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from types import MethodType
from typing import Any, Final, Literal

import anyio.to_thread
from dishka import AsyncContainer

from workers_module.client.producer import QueueSpec
from workers_module.client.queue import Queue
from workers_module.di.foreground import ForegroundIntake
from workers_module.di.found import Entry, FoundHandler, FoundListener, FoundSchedule
from workers_module.di.metadata import queue_name
from workers_module.di.provider import Attempt, Backoffs, Feature, opening
from workers_module.errors import RegistrationError, UnknownJobError, UnknownWorkerError
from workers_module.job.events import QueueEvent, WorkerEvent
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.options import JobOptions, merge
from workers_module.job.stored import write_options
from workers_module.worker.context import JobContext
from workers_module.worker.handler import Call, Handler, Listener, QueuePlan, ScheduleSpec, WorkPlan

_MOST_NAMES: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a reference to a handler means.

    Attributes:
        handler: The handler.
        kind: The jobs it takes; of a handler that takes any name, those of the name asked for.
    """

    handler: FoundHandler
    kind: JobKind


class WorkerRegistry:
    """Every handler, listener and schedule of one container, and the worker names that select them.

    Attributes:
        handlers: All handlers, also those that schedules run.
        schedules: All declared schedules.
        backoffs: The application's own backoff functions by name.
    """

    def __init__(self, features: Sequence[Feature], container: AsyncContainer) -> None:
        """Merge the features.

        Args:
            features: One per provider, one of them the root.
            container: The application's container; used from the first `bound` on.

        Raises:
            RegistrationError: Features contradict each other: a line for each fault.
        """
        faults = [*_root_faults(features), *_queue_faults(features)]
        self._container = container
        self.handlers: tuple[FoundHandler, ...] = tuple(
            one for feature in features for one in feature.explored.handlers
        )
        self._listeners = tuple(one for feature in features for one in feature.explored.listeners)
        found = tuple(one for feature in features for one in feature.explored.schedules)
        faults += [*_handler_faults(self.handlers), *_schedule_faults(found), *_backoff_faults(features)]
        if faults:
            raise RegistrationError("\n".join(dict.fromkeys(faults)))
        self._queue_classes = dict(_queue_classes(features))
        self._declared_queues = frozenset(queue.name for feature in features for queue in feature.queues)
        self.backoffs: Backoffs = {name: own for feature in features for name, own in feature.backoffs.items()}
        self._found_schedules = {one.name: one for one in found}
        self.schedules: tuple[ScheduleSpec, ...] = tuple(map(self._schedule_spec, found))
        self._by_queue: dict[str, dict[str | None, FoundHandler]] = defaultdict(dict)
        self._by_full_name: dict[str, list[FoundHandler]] = defaultdict(list)
        self._by_name: dict[str, list[FoundHandler]] = defaultdict(list)
        self._by_source: dict[int, list[FoundHandler]] = defaultdict(list)
        for handler in self.handlers:
            kind = handler.kind
            self._by_queue[kind.queue][kind.name] = handler
            if kind.name is not None:
                self._by_full_name[kind.full_name].append(handler)
                self._by_name[kind.name].append(handler)
            for source in handler.sources:
                self._by_source[id(source)].append(handler)
        self._bound: dict[int, Handler] = {}
        self._named: dict[tuple[int, str], JobKind] = {}

    # -- looking up ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of all handlers but those of plain schedules, sorted."""
        return tuple(sorted(one.kind.full_name for one in self.handlers if not one.is_tick))

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of all queues: those with handlers and those declared, sorted."""
        return tuple(sorted({*self._by_queue, *self._declared_queues}))

    @property
    def workers(self) -> tuple[str, ...]:
        """The worker names that can be selected, sorted."""
        own = {one.spec.worker for one in self.handlers}
        queues = {one.kind.queue for one in self.handlers if not one.is_tick}
        return tuple(sorted(own | queues | self._declared_queues))

    @property
    def kinds(self) -> tuple[JobKind, ...]:
        """The kinds of jobs this process has handlers for."""
        return tuple(one.kind for one in self.handlers)

    @property
    def queue_specs(self) -> tuple[QueueSpec, ...]:
        """What the classes of queues say of them."""
        return tuple(
            QueueSpec(name=name, payload=cls.payload, options=cls.options) for name, cls in self._queue_classes.items()
        )

    def queue_class(self, queue: str) -> type[Queue[Any]] | None:
        """Return the class of a queue, where one was given or named by a handler."""
        return self._queue_classes.get(queue)

    def queue_options(self, queue: str) -> JobOptions:
        """Return the defaults that a queue's class gives its jobs."""
        cls = self._queue_classes.get(queue)
        return JobOptions() if cls is None else cls.options

    def handler_for(self, queue: str, name: str) -> FoundHandler | None:
        """Return the handler of a job by its queue and name, or None when there is none here."""
        own = self._by_queue.get(queue)
        return None if own is None else own.get(name) or own.get(None)

    def kind_for(self, queue: str, name: str) -> JobKind | None:
        """Return the kind of a job by its queue and name, or None when no handler here takes it."""
        handler = self.handler_for(queue, name)
        return None if handler is None else self._kind(handler, name)

    def kind_of(self, reference: object) -> JobKind:
        """Return the kind that a reference means; its name is None where the handler takes any.

        Raises:
            UnknownJobError: No handler fits, or several do.
        """
        target = self.find(reference)
        return target.kind if isinstance(reference, str) else target.handler.kind

    def find(self, reference: object) -> Target:
        """Return what a reference means.

        Args:
            reference: A function, a method (bound or not, also an inherited one), a `Worker` class, or a name:
                ``"build_report"`` or ``"reports.build_report"``, compared whole. A handler that takes any name is
                meant by ``"<queue>.<name>"``.

        Raises:
            UnknownJobError: No handler fits, or several do.
        """
        if isinstance(reference, str):
            return self._find_text(reference)
        owner: type[Any] | None = None
        source = reference
        if isinstance(reference, MethodType):
            source, owner = reference.__func__, type(reference.__self__)
        # Scheduled methods are their own jobs' handlers, but a reference to a handler means its job.
        found = list(dict.fromkeys(self._by_source.get(id(source), ())))
        named = [one for one in found if not one.is_tick] or found
        exact = [one for one in named if one.entry.function is source or one.spec.target is source] or named
        if owner is not None:
            exact = [one for one in named if one.entry.owner is owner] or [
                one for one in exact if one.entry.owner is not None and issubclass(owner, one.entry.owner)
            ]
        if len(exact) == 1:
            return Target(handler=exact[0], kind=self._kind(exact[0], exact[0].job_name))
        raise self._unknown(_name_of(reference), exact)

    def _find_text(self, name: str) -> Target:
        found = dict.fromkeys((*self._by_full_name.get(name, ()), *self._by_name.get(name, ())))
        if len(found) == 1:
            handler = next(iter(found))
            return Target(handler=handler, kind=handler.kind)
        if not found:
            # Queue names may contain dots: the longest that fits is meant.
            for queue in sorted(self._by_queue, key=len, reverse=True):
                rest = name.removeprefix(f"{queue}.")
                handler_ = self._by_queue[queue].get(None)
                if handler_ is not None and rest not in {name, "", "*"}:
                    return Target(handler=handler_, kind=self._kind(handler_, rest))
        raise self._unknown(name, list(found))

    def _unknown(self, name: str, several: Sequence[FoundHandler]) -> UnknownJobError:
        known = self.names
        if several:
            full = ", ".join(sorted(one.kind.full_name for one in several))
            return UnknownJobError(
                f"{name!r} fits several handlers: {full}; pass the full name", name=name, known=known
            )
        available = f"available: {', '.join(known) or 'none'}"
        candidates = [*known, *(one.kind.name for one in self.handlers if one.kind.name is not None)]
        close = get_close_matches(name, candidates, n=1, cutoff=0.8)
        if close:
            return UnknownJobError(
                f"no handler {name!r}. Did you mean {close[0]!r}?\n  {available}", name=name, known=known
            )
        return UnknownJobError(f"no handler {name!r}; {available}", name=name, known=known)

    def _kind(self, handler: FoundHandler, name: str) -> JobKind:
        kind = handler.kind
        if kind.name == name:
            return kind
        key = (id(handler), name)
        named = self._named.get(key)
        if named is None:
            if len(self._named) >= _MOST_NAMES:
                self._named.clear()
            named = replace(kind, name=name)
            # The adapters are the same, and costly to make.
            vars(named).update(payload_adapter=kind.payload_adapter, result_adapter=kind.result_adapter)
            self._named[key] = named
        return named

    def schedule(self, name: str) -> FoundSchedule | None:
        """Return a declared schedule by name."""
        return self._found_schedules.get(name)

    # -- binding -------------------------------------------------------------------------------------------------------

    async def bound(self, handler: FoundHandler) -> Handler:
        """Return a handler with the container behind it; the same object each time.

        One without a scope of its own is bound here, so its class is built at the first call.
        """
        bound = self._bound.get(id(handler))
        if bound is None:
            key = handler.entry.key
            if handler.is_static:
                static: Call = await self._container.get(key)
                bound = Handler(spec=handler.spec, static=static)
            else:
                bound = Handler(spec=handler.spec, opening=opening(self._container, key))
            bound = self._bound.setdefault(id(handler), bound)
        return bound

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every listener, with the container behind it."""
        return tuple(listener for found in self._listeners for listener in self._listener(found))

    def _listener(self, found: FoundListener) -> Iterator[Listener]:
        label, entry = found.label, found.entry
        call = self._caller(entry)
        if label.queue_event is not None:
            queue = found.queue if label.queue is None else queue_name(label.queue)
            yield Listener(label=entry.label, call=call, queue_event=label.queue_event, queue=queue)
            return
        if found.handlers is None:
            yield Listener(label=entry.label, call=call, worker_event=label.worker_event)
            return
        by_queue: dict[str, list[FoundHandler]] = defaultdict(list)
        for handler in found.handlers:
            by_queue[handler.kind.queue].append(handler)
        for queue, handlers in by_queue.items():
            yield Listener(
                label=entry.label,
                call=self._hearing_own(call, queue, handlers),
                worker_event=label.worker_event,
                queue=queue,
                jobs=frozenset((queue, one.kind.name) for one in handlers),
            )

    def _hearing_own(
        self, call: Callable[[WorkerEvent | QueueEvent], Awaitable[None]], queue: str, handlers: Sequence[FoundHandler]
    ) -> Callable[[WorkerEvent | QueueEvent], Awaitable[None]]:
        """Leave out the jobs of other handlers, where one of these takes every name that no other does."""
        own = {one.kind.name for one in handlers}
        others = self._by_queue[queue].keys() - own
        if None not in own or not others:
            return call

        async def call_for_own(event: WorkerEvent | QueueEvent) -> None:
            job = event.job if isinstance(event, WorkerEvent) else None
            if job is None or job.name not in others:
                await call(event)

        return call_for_own

    def _caller(self, entry: Entry) -> Callable[[WorkerEvent | QueueEvent], Awaitable[None]]:
        container, key, is_async = self._container, entry.key, entry.is_async

        async def call(event: WorkerEvent | QueueEvent) -> None:
            context: dict[Any, Any] = {}
            if isinstance(event, WorkerEvent) and event.job is not None:
                context[Job] = event.job
                if event.context is not None:
                    context[JobContext] = event.context
            async with Attempt(container, key, context) as bound:
                await _invoke(bound, event, is_async=is_async)

        return call

    def _tick(self, found: FoundSchedule) -> Callable[[], Awaitable[None]]:
        container, entry = self._container, found.handler.entry
        is_async = entry.is_async

        async def call() -> None:
            async with Attempt(container, entry.key, {}) as bound:
                await _invoke(bound, None, is_async=is_async)

        async def call_static() -> None:
            await _invoke(await container.get(entry.key), None, is_async=is_async)

        async def call_handler() -> None:
            here = await container.get(ForegroundIntake)
            await here.perform(found.handler, found.data)

        if not found.handler.is_tick:
            return call_handler
        return call_static if found.handler.is_static else call

    # -- selecting -----------------------------------------------------------------------------------------------------

    def select(
        self,
        workers: Literal["all"] | Collection[str] = "all",
        *,
        enabled: bool = True,
        only: Iterable[str] | None = None,
        force: bool = False,
    ) -> frozenset[str]:
        """Return the worker names that are to run in this process.

        Args:
            workers: What ``ENABLED_WORKERS`` says; blanks are ignored.
            enabled: What ``WORKERS_ENABLED`` says; False selects nothing.
            only: In place of ``workers``.
            force: Whether ``enabled`` does not count.

        Raises:
            UnknownWorkerError: A name is not known.
        """
        if not enabled and not force:
            return frozenset()
        wanted = {name.strip() for name in ([workers] if isinstance(workers, str) else workers)}
        if only is not None:
            wanted = {name.strip() for name in ([only] if isinstance(only, str) else only)}
        wanted.discard("")
        known = self.workers
        unknown = sorted(wanted.difference(known, {"all"}))
        if unknown:
            said = "ENABLED_WORKERS" if only is None else "only="
            hints = [
                f"{name!r} is a job of worker {handler.spec.worker!r}"
                for name in unknown
                for handler in self.handlers
                if name.lower() in {handler.job_name.lower(), handler.kind.full_name.lower()}
            ]
            text = f"{said} names {', '.join(map(repr, unknown))}; known workers: {', '.join(known) or 'none'}"
            raise UnknownWorkerError("; ".join([text, *dict.fromkeys(hints)]))
        return frozenset(known) if "all" in wanted else frozenset(wanted)

    async def plan(self, workers: Collection[str], *, concurrency: int = 10) -> WorkPlan:
        """Return all that a process with these workers runs; classes that are built once are built here.

        A queue is consumed whole: with any of its workers go all of its handlers, because a claim takes any of its
        jobs.

        Args:
            workers: Worker names; see `select`.
            concurrency: Jobs at once in queues whose handlers say nothing.
        """
        chosen = {one.kind.queue for one in self.handlers if _is_selected(one, workers)}
        queues = [
            await self._queue_plan(queue, list(self._by_queue[queue].values()), concurrency) for queue in sorted(chosen)
        ]
        found = [one for one in self._found_schedules.values() if _is_selected(one.handler, workers)]
        names = {one.name for one in found}
        return WorkPlan(
            queues=tuple(queues),
            schedules=tuple(spec for spec in self.schedules if spec.name in names),
            listeners=tuple(
                listener
                for one in self._listeners
                if workers and (one.handlers is None or any(handler.kind.queue in chosen for handler in one.handlers))
                for listener in self._listener(one)
            ),
            ticks={one.name: self._tick(one) for one in found if one.label.every_instance},
            backoffs=self.backoffs,
        )

    async def _queue_plan(self, queue: str, handlers: Sequence[FoundHandler], concurrency: int) -> QueuePlan:
        bound = {one.kind.name: await self.bound(one) for one in handlers}
        own = next((one.spec.concurrency for one in handlers if one.spec.concurrency is not None), None)
        return QueuePlan(
            queue=queue,
            handlers={name: handler for name, handler in bound.items() if name is not None},
            catch_all=bound.get(None),
            concurrency=concurrency if own is None else own,
            worker_names=tuple(sorted({one.spec.worker for one in handlers})),
        )

    def _schedule_spec(self, found: FoundSchedule) -> ScheduleSpec:
        label, handler = found.label, found.handler
        return ScheduleSpec(
            name=found.name,
            worker=handler.spec.worker,
            queue=handler.kind.queue,
            job_name=handler.job_name,
            label=handler.spec.label,
            data=found.data,
            options=self.options_template(handler),
            schedule=label.schedule,
            after_ms=label.after_ms,
            every_instance=label.every_instance,
            overlap=label.overlap,
            catch_up=label.catch_up,
            threshold_ms=label.threshold_ms,
            initial_delay_ms=label.initial_delay_ms,
            jitter_ms=label.jitter_ms,
            lock=label.lock,
            disabled=label.disabled,
        )

    def options_template(self, handler: FoundHandler) -> bytes:
        """Return the options that a schedule gives a handler's jobs, in BullMQ's JSON with their tags."""
        layers = (self.queue_options(handler.kind.queue), handler.kind.options)
        options = merge(*layers)
        tags = {*handler.kind.tags, *(tag for layer in layers for tag in layer.get("tags", ()))}
        if tags:
            options["tags"] = sorted(tags)
        return write_options(options, template=True)


def _is_selected(handler: FoundHandler, workers: Collection[str]) -> bool:
    return handler.spec.worker in workers or handler.kind.queue in workers


async def _invoke(bound: Call, subject: Any, *, is_async: bool) -> None:
    nothing: Any = None
    if is_async:
        result = bound(subject, nothing)
    else:
        result = await anyio.to_thread.run_sync(bound, subject, nothing)
    if inspect.isawaitable(result):
        await result


def _name_of(reference: object) -> str:
    if isinstance(reference, MethodType):
        return f"{type(reference.__self__).__name__}.{reference.__func__.__name__}"
    name: str = getattr(reference, "__qualname__", None) or repr(reference)
    return name.rpartition("<locals>.")[2]


# --- faults -----------------------------------------------------------------------------------------------------------


def _root_faults(features: Sequence[Feature]) -> Iterator[str]:
    if sum(feature.is_root for feature in features) > 1:
        yield "two WorkersModule roots in one container; use for_feature"


def _queue_classes(features: Sequence[Feature]) -> Iterator[tuple[str, type[Queue[Any]]]]:
    for _, cls in _named_classes(features):
        yield cls.name, cls


def _named_classes(features: Sequence[Feature]) -> Iterator[tuple[str, type[Queue[Any]]]]:
    for feature in features:
        for cls in dict.fromkeys((*feature.explored.queues, *(queue.cls for queue in feature.queues))):
            if cls is not None:
                yield feature.name, cls


def _queue_faults(features: Sequence[Feature]) -> Iterator[str]:
    first: dict[str, tuple[str, type[Queue[Any]]]] = {}
    for feature, cls in _named_classes(features):
        by, other = first.setdefault(cls.name, (feature, cls))
        if other is not cls and (other.payload != cls.payload or other.options != cls.options):
            yield f"queue {cls.name!r} is registered with different payload or options by {by!r} and {feature!r}"


def _handler_faults(handlers: Sequence[FoundHandler]) -> Iterator[str]:
    by_kind: dict[tuple[str, str | None], list[FoundHandler]] = defaultdict(list)
    by_queue: dict[str, dict[object, FoundHandler]] = defaultdict(dict)
    for handler in handlers:
        # Two plain schedules of one name are told of as such.
        if not handler.is_tick:
            by_kind[handler.kind.queue, handler.kind.name].append(handler)
        if handler.spec.concurrency is not None:
            by_queue[handler.kind.queue].setdefault(handler.entry.owner or handler.entry.function, handler)
    for (queue, name), same in by_kind.items():
        what = f"every job of queue {queue!r}" if name is None else f"job {name!r} of queue {queue!r}"
        for one, other in pairwise(same):
            yield f"{what} has two handlers: {_both(one, other)}"
    for queue, setters in by_queue.items():
        for one, other in pairwise(setters.values()):
            yield f"concurrency of queue {queue!r} is set twice: by {_both(one, other)}; set it on one of them"


def _both(one: FoundHandler, other: FoundHandler) -> str:
    labels = [handler.spec.label for handler in (one, other)]
    if labels[0] == labels[1]:
        labels = [f"{handler.entry.key.__module__}.{handler.spec.label}" for handler in (one, other)]
    return " and ".join(labels)


def _schedule_faults(schedules: Sequence[FoundSchedule]) -> Iterator[str]:
    for name, count in Counter(one.name for one in schedules).items():
        if count > 1:
            yield f"two schedules are named {name!r}; pass name="


def _backoff_faults(features: Sequence[Feature]) -> Iterator[str]:
    for name, count in Counter(name for feature in features for name in feature.backoffs).items():
        if count > 1:
            yield f"two backoffs are named {name!r}"
