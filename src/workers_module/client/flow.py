"""`FlowProducer`: a tree of jobs in one call. A parent runs when its children have ended."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Final, Generic, Protocol, TypeVar, Unpack, cast, overload

from workers_module.client.handle import JobHandle
from workers_module.client.producer import MAX_BULK_BYTES, MAX_BULK_JOBS, Prepared, Producer
from workers_module.errors import ConfigurationError, TooLargeError
from workers_module.job.job import Job
from workers_module.job.options import JobOptions

A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

MAX_LEVELS: Final = 100

Resolve = Callable[[object], tuple[str, str]]
"""Returns queue and job name of a handler reference."""


class AsyncPerformer(Protocol[A_contra, R_co]):
    """What a `Worker` class with an ``async def perform`` looks like from here."""

    def perform(self, args: A_contra, /) -> Awaitable[R_co]:
        """Run the job."""
        ...


class Performer(Protocol[A_contra, R_co]):
    """What a `Worker` class with a ``def perform`` looks like from here."""

    def perform(self, args: A_contra, /) -> R_co:
        """Run the job."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJob(Generic[R_co]):
    """A job of a flow that is not added yet; made by `flow_job`.

    Attributes:
        handler: What runs it: a handler reference, or ``(queue, job name)``.
        data: Its payload.
        children: The jobs it waits for.
        options: Its options.
    """

    handler: object
    data: Any
    children: "tuple[FlowJob[Any], ...]" = ()
    options: JobOptions


@overload
def flow_job(
    handler: type[AsyncPerformer[A, R]],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: type[Performer[A, R]],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[Job[A], ...], Awaitable[R]],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[Any, Job[A], ...], Awaitable[R]],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[A, ...], Awaitable[R]],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[Job[A], ...], R],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[Any, Job[A], ...], R],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: Callable[Concatenate[A, ...], R],
    data: A,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[R]: ...
@overload
def flow_job(
    handler: str | tuple[str, str],
    data: Any = None,
    /,
    *,
    children: "Sequence[FlowJob[Any]]" = (),
    **options: Unpack[JobOptions],
) -> FlowJob[Any]: ...
def flow_job(
    handler: object,
    data: Any = None,
    /,
    *,
    children: Sequence[FlowJob[Any]] = (),
    **options: Unpack[JobOptions],
) -> FlowJob[Any]:
    """Describe a job of a flow; `FlowProducer.add` adds it with all below it.

    Args:
        handler: What runs it: a `Worker` class, a processor's method, a decorated function, a handler's name, or
            ``(queue, job name)``.
        data: Its payload.
        children: The jobs it waits for; ``on_failure`` of each says what its failure means for this one.
        options: Its options, as for `Queue.add`.

    Example:
        ``flow_job(Reporter.assemble, report, children=[flow_job(Crawler.page, page, attempts=3) for page in pages])``
    """
    return FlowJob(handler=handler, data=data, children=tuple(children), options=options)


class FlowProducer:
    """Adds trees of jobs, each in one operation.

    Source: BullMQ ``FlowProducer``.
    """

    def __init__(self, producer: Producer, resolve: Resolve | None = None) -> None:
        """Prepare; nothing is added.

        Args:
            producer: Adds the jobs.
            resolve: Finds queue and job name of a handler reference; without it ``(queue, job name)`` is all there is.
        """
        self._producer = producer
        self._resolve = resolve

    async def add(self, flow: FlowJob[R], *, tx: object = None) -> JobHandle[R]:
        """Add a tree of jobs, all or none.

        Children stand before their parent in the queue. A child that fails for good fails its parent, unless its
        ``on_failure`` says otherwise.

        Args:
            flow: The root, as `flow_job` describes it.
            tx: The caller's own transaction (SQL stores).

        Returns:
            A handle of the root.

        Raises:
            UnknownJobError: A handler reference fits none, or several.
            ConfigurationError: Deduplication or a repetition is asked for within a flow, or the store cannot write this
                flow in one operation.
            PayloadError: As for `Queue.add`; a note names the job. Nothing is stored.
            TooLargeError: The flow has more than 10,000 jobs, or 64 MiB of payload.
        """
        nodes = _flatten(flow)
        prepared: list[Prepared] = []
        size = 0
        for node, parent in nodes:
            queue, name = self._address(node.handler)
            where = f"{queue}.{name}"
            if "repeat" in node.options or (parent is not None and "parent" in node.options):
                raise ConfigurationError(f"{where}: repeat and the parent of a child have no place in a flow")
            try:
                in_flow = parent is not None or bool(node.children)
                one = self._producer.prepare(queue, name, node.data, node.options, parent=parent, in_flow=in_flow)
            except Exception as error:
                error.add_note(f"This was {where} in a flow of {len(nodes)}; none of them was added.")
                raise
            size += len(one.spec.data)
            prepared.append(one)
        if size > MAX_BULK_BYTES:
            raise TooLargeError(f"a flow with {size:,} bytes of payload; the limit is {MAX_BULK_BYTES:,}")
        handles = await self._producer.add_prepared(prepared, tx=tx)
        return cast("JobHandle[R]", handles[-1])

    def _address(self, handler: object) -> tuple[str, str]:
        if isinstance(handler, tuple):
            address = cast("tuple[object, ...]", handler)
            if len(address) == 2 and all(isinstance(part, str) for part in address):
                return cast("tuple[str, str]", address)
            raise ConfigurationError(f"flow_job: {handler!r} is not (queue, job name)")
        if self._resolve is None:
            raise ConfigurationError(f"flow_job: {handler!r} cannot be looked up here; write (queue, job name)")
        return self._resolve(handler)


def _flatten(flow: FlowJob[Any]) -> list[tuple[FlowJob[Any], int | None]]:
    """Return the jobs of a tree, children before their parent, each with the index of its parent."""
    # First from the root down, so that depth is no matter of recursion; then turned round.
    down: list[tuple[FlowJob[Any], int | None]] = []
    rest: list[tuple[FlowJob[Any], int | None, int]] = [(flow, None, 1)]
    while rest:
        node, parent, level = rest.pop()
        if level > MAX_LEVELS:
            raise TooLargeError(f"a flow deeper than {MAX_LEVELS} levels")
        if len(down) >= MAX_BULK_JOBS:
            raise TooLargeError(f"a flow of more than {MAX_BULK_JOBS:,} jobs")
        index = len(down)
        down.append((node, parent))
        rest.extend((child, index, level + 1) for child in node.children)
    last = len(down) - 1
    return [(node, None if parent is None else last - parent) for node, parent in reversed(down)]
