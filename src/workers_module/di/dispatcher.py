"""`Dispatcher`: enqueues and runs jobs by naming the code that handles them."""

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, TypeVar, Unpack, overload

from workers_module.client.handle import JobHandle
from workers_module.client.producer import Producer
from workers_module.clock import Duration
from workers_module.di.decorators import Worker
from workers_module.di.foreground import ForegroundIntake
from workers_module.di.metadata import MISSING, Missing
from workers_module.di.registry import WorkerRegistry
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.options import JobOptions

A = TypeVar("A")
R = TypeVar("R")


class Dispatcher:
    """Typed calls that address handlers; a handler knows its queue, its payload and its result.

    Example:
        ::

            handle = await jobs.perform_later(EmailProcessor.welcome, Welcome(to="ada@example.com"), delay="5s")
            total = await jobs.run_job(Calculator, CalcArgs(number=21))
    """

    def __init__(self, registry: WorkerRegistry, producer: Producer, here: ForegroundIntake) -> None:
        """Make the dispatcher; the container does.

        Args:
            registry: Knows the handlers.
            producer: Adds the jobs.
            here: Runs what is to run at once.
        """
        self._registry = registry
        self._producer = producer
        self._here = here

    @overload
    async def perform_later(
        self, handler: type[Worker[A, R]], args: A, /, *, tx: object = None, **options: Unpack[JobOptions]
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[Concatenate[Job[A], ...], Awaitable[R]],
        args: A,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[Concatenate[Any, Job[A], ...], Awaitable[R]],
        args: A,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[Concatenate[A, ...], Awaitable[R]],
        args: A,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[Concatenate[Job[A], ...], R],
        args: A,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[Concatenate[Any, Job[A], ...], R],
        args: A,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self, handler: Callable[Concatenate[A, ...], R], args: A, /, *, tx: object = None, **options: Unpack[JobOptions]
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self,
        handler: Callable[[], Awaitable[R]],
        args: None = None,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self, handler: Callable[[], R], args: None = None, /, *, tx: object = None, **options: Unpack[JobOptions]
    ) -> JobHandle[R]: ...

    @overload
    async def perform_later(
        self, handler: str, args: Any = None, /, *, tx: object = None, **options: Unpack[JobOptions]
    ) -> JobHandle[Any]: ...

    async def perform_later(
        self, handler: Any, args: Any = None, /, *, tx: object = None, **options: Unpack[JobOptions]
    ) -> Any:
        """Store a job, and return at once.

        Args:
            handler: A `Worker` class, a processor's method, a decorated function, or a name: ``"build_report"``,
                ``"reports.build_report"``.
            args: The payload.
            tx: A connection or session of your own (SQL stores): the job exists exactly if its transaction commits.
            options: The job's options; they win over the handler's, the queue's and the settings'.

        Raises:
            UnknownJobError: No handler goes by that name, or several do.
            ConfigurationError: An option cannot be used.
            PayloadError: JSON cannot carry the payload, or it is too large.
            pydantic.ValidationError: The payload does not fit its type. Nothing is stored then, as with the others.
            StoreError: The store could not take the job.

        Source: Hyperstack and Loco ``performLater``.
        """
        kind = self._registry.find(handler).kind
        return await self._producer.add(kind.queue, _name(kind), args, options, tx=tx)

    @overload
    async def perform_now(self, handler: type[Worker[A, R]], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[Job[A], ...], Awaitable[R]], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[Any, Job[A], ...], Awaitable[R]], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[A, ...], Awaitable[R]], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[Job[A], ...], R], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[Any, Job[A], ...], R], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[Concatenate[A, ...], R], args: A, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[[], Awaitable[R]], args: None = None, /) -> R: ...

    @overload
    async def perform_now(self, handler: Callable[[], R], args: None = None, /) -> R: ...

    @overload
    async def perform_now(self, handler: str, args: Any = None, /) -> Any: ...

    async def perform_now(self, handler: Any, args: Any = None, /) -> Any:
        """Run a job here and now, in the caller's task, whatever the mode; nothing is stored.

        It has a scope of its own, as in a worker, and one attempt.

        Args:
            handler: As in `perform_later`.
            args: The payload.

        Raises:
            UnknownJobError: No handler goes by that name, or several do.
            pydantic.ValidationError: The payload does not fit its type.
            Exception: What the handler raises.

        Source: Hyperstack ``performNow``.
        """
        kind = self._registry.find(handler).kind
        return await self._here.run(self._producer.prepare(kind.queue, _name(kind), args).spec)

    @overload
    async def run_job(
        self,
        handler: type[Worker[A, R]],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[Job[A], ...], Awaitable[R]],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[Any, Job[A], ...], Awaitable[R]],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[A, ...], Awaitable[R]],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[Job[A], ...], R],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[Any, Job[A], ...], R],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[Concatenate[A, ...], R],
        args: A,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[[], Awaitable[R]],
        args: None = None,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: Callable[[], R],
        args: None = None,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> R: ...

    @overload
    async def run_job(
        self,
        handler: str,
        args: Any = None,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> Any: ...

    async def run_job(
        self,
        handler: Any,
        args: Any = None,
        /,
        *,
        wait: Duration | Missing | None = MISSING,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Store a job, wait until it has ended, and return its result.

        Args:
            handler: As in `perform_later`.
            args: The payload.
            wait: The caller's patience: the call's ``timeout`` unless given, else 30 s; None waits without limit. The
                job itself is limited by ``timeout``.
            options: The job's options.

        Raises:
            JobFailedError: The job failed for good; ``__cause__`` is its exception if it ran in this process.
            ResultTimeoutError: It has not ended within ``wait``; it goes on.
            UnknownJobError: And the others of `perform_later`.

        Source: StartupJS ``runJob``.
        """
        kind = self._registry.find(handler).kind
        patience = options.get("timeout", "30s") if isinstance(wait, Missing) else wait
        return await self._producer.run(kind.queue, _name(kind), args, options, wait=patience)


def _name(kind: JobKind) -> str:
    assert kind.name is not None, "a reference always means a name"
    return kind.name
