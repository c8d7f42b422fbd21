"""`Queue`: what an application holds to add jobs to one queue and to run it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, Unpack, get_args, get_origin

from workers_module.client.handle import JobHandle, cancel_job
from workers_module.client.producer import Producer, check_defaults
from workers_module.clock import Duration, duration_ms
from workers_module.errors import ConfigurationError
from workers_module.job.bullmq import from_bullmq
from workers_module.job.names import check_name
from workers_module.job.options import JobOptions, Repeat, merge
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import DropSchedule
from workers_module.store.values import ByIds, ByState, Promote, QueuePatch, RateLimit, Remove, RetryAgain

T = TypeVar("T")

MOST_MOVED: Final = 10_000
"""So many jobs the store moves in one call."""

Progress = Callable[[int], None]
"""Told of a long work's parts: how many more are done."""

CleanState = Literal["completed", "failed", "delayed", "waiting", "prioritized", "active"]
CLEAN_STATES: Final[tuple[CleanState, ...]] = get_args(CleanState)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCounts:
    """How many jobs of a queue are in each state.

    Attributes:
        waiting: Ready, without a priority.
        prioritized: Ready, with a priority.
        delayed: To run later.
        active: Running.
        completed: Ended well, and still kept.
        failed: Ended badly, and still kept.
        waiting_children: Waiting for other jobs.
        paused: How many of the ready ones are held back because the queue is paused; they are counted above, too.
    """

    waiting: int = 0
    prioritized: int = 0
    delayed: int = 0
    active: int = 0
    completed: int = 0
    failed: int = 0
    waiting_children: int = 0
    paused: int = 0

    @property
    def total(self) -> int:
        """How many jobs the queue has."""
        ready = self.waiting + self.prioritized
        return ready + self.delayed + self.active + self.completed + self.failed + self.waiting_children


async def job_counts(store: Store, queue: str) -> JobCounts:
    """Count the jobs of a queue by state."""
    counts = (await store.counts([queue]))[0]
    return JobCounts(
        waiting=counts.waiting,
        prioritized=counts.prioritized,
        delayed=counts.delayed,
        active=counts.active,
        completed=counts.completed,
        failed=counts.failed,
        waiting_children=counts.waiting_children,
        paused=counts.waiting + counts.prioritized if counts.paused else 0,
    )


class Queue(Generic[T]):
    """One queue: adds its jobs, and runs it. Injected by its own class, or by name.

    Example:
        ::

            class EmailQueue(Queue[WelcomeEmail], name="email", options={"attempts": 3}):
                \"\"\"Injected by its own type.\"\"\"


            class Signup:
                def __init__(self, emails: EmailQueue) -> None:
                    self.emails = emails

                async def run(self, to: str) -> None:
                    await self.emails.add("welcome", WelcomeEmail(to=to), delay="5s")

    Source: NestJS and BullMQ ``Queue``.
    """

    name: str = ""
    """The queue's name; empty on a class that has none of its own."""
    payload: ClassVar[Any] = Any
    """The type of its payloads."""
    options: ClassVar[JobOptions] = JobOptions()
    """The defaults of its jobs."""
    transactional: ClassVar[Any] = None
    """The key of the session or connection inside whose transaction jobs are added, or None."""

    def __init_subclass__(
        cls, *, name: str | None = None, options: JobOptions | None = None, transactional: Any = None, **kwargs: Any
    ) -> None:
        """Declare a queue.

        Args:
            name: Its name.
            options: The defaults of its jobs.
            transactional: A session or connection type of the container: what is added is part of its transaction.
            kwargs: For further base classes.

        Raises:
            InvalidNameError: The name cannot be kept by every store.
            ConfigurationError: An option cannot be used, or makes sense for a single job only.
        """
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = check_name("queue", name)
        if options is not None:
            cls.options = merge(cls.options, check_defaults(options, cls.__qualname__))
        if transactional is not None:
            cls.transactional = transactional
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Queue):
                payload = get_args(base)[0]
                cls.payload = Any if isinstance(payload, TypeVar) else payload

    def __init__(self, producer: Producer, store: Store, *, name: str | None = None, tx: object = None) -> None:
        """Make the queue object; the container does.

        Args:
            producer: Adds the jobs.
            store: Where they are.
            name: The queue's name, for a queue without a class of its own.
            tx: The session or connection that ``add`` uses when it is given none.
        """
        if name is not None:
            self.name = check_name("queue", name)
        if not self.name:
            cls = type(self).__qualname__
            raise ConfigurationError(f"{cls} has no name; write class {cls}(Queue[...], name='email')")
        self._producer = producer
        self._store = store
        self._tx = tx

    # adding

    async def add(
        self,
        name: str,
        data: T,
        bullmq: Mapping[str, Any] | None = None,
        /,
        *,
        tx: object = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle[Any]:
        """Add a job.

        Args:
            name: The job's name; it chooses the handler.
            data: The payload.
            bullmq: Options in BullMQ's names and units (milliseconds), for code that is ported; keywords win over it.
            tx: A connection or session of your own (SQL stores): the job exists exactly if its transaction commits.
            options: The job's options; they win over the handler's, the queue's and the settings'.

        Returns:
            A handle of the job; of the one that is there already where an id or a deduplication key says so, and of the
            next one of a ``repeat``.

        Raises:
            TypeError: There is no such option; as after the next three, nothing is stored.
            ConfigurationError: A name or an option cannot be used.
            PayloadError: JSON cannot carry the payload, or it is too large.
            pydantic.ValidationError: The payload does not fit its type.
            StoreError: The store could not take the job.

        Example:
            ``await emails.add("welcome", data, attempts=3, backoff=Backoff.exponential("1m"), delay="5s")``

        Source: BullMQ ``Queue.add``.
        """
        _mapping(bullmq)
        tx = self._tx if tx is None else tx
        return await self._producer.add(self.name, name, data, options, bullmq=bullmq, tx=tx)

    def add_sync(
        self,
        name: str,
        data: T,
        bullmq: Mapping[str, Any] | None = None,
        /,
        *,
        tx: object,
        notify: bool = True,
        **options: Unpack[JobOptions],
    ) -> JobHandle[Any]:
        """Add a job inside a synchronous transaction (SQL stores): it exists exactly if that commits.

        Args:
            name: The job's name.
            data: The payload.
            bullmq: Options in BullMQ's names and units.
            tx: The connection or session.
            notify: Wake a waiting worker when the transaction commits.
            options: The job's options.

        Raises:
            NotSupportedError: The store has no such transactions.
        """
        _mapping(bullmq)
        return self._producer.add_sync(self.name, name, data, options, bullmq=bullmq, tx=tx, notify=notify)

    async def add_many(
        self, jobs: Iterable[tuple[str, T] | tuple[str, T, JobOptions]], *, tx: object = None
    ) -> list[JobHandle[Any]]:
        """Add jobs, all or none; their order is their order in the queue.

        Args:
            jobs: ``(name, data)`` or ``(name, data, options)``; at most 10,000, and 64 MiB of payload.
            tx: A connection or session of your own.

        Raises:
            TooLargeError: There are more of them, or they are larger.
            PayloadError: As in `add`; a note names the job. Nothing is stored.

        Source: BullMQ ``Queue.addBulk``.
        """
        return await self._producer.add_many(self.name, jobs, tx=self._tx if tx is None else tx)

    # one job

    async def retry(self, id: str, *, reset: bool = False) -> None:
        """Put an ended job back to work.

        Args:
            id: The job.
            reset: Count its attempts from zero again.

        Raises:
            JobNotFoundError: There is no such job.
            IllegalMoveError: It has not ended.
        """
        await self._store.move(self.name, ByIds((id,)), RetryAgain(reset=reset))

    async def promote(self, id: str) -> None:
        """Make a delayed job ready now.

        Raises:
            JobNotFoundError: There is no such job.
            IllegalMoveError: It is not delayed.
        """
        await self._store.move(self.name, ByIds((id,)), Promote())

    async def remove(self, id: str) -> None:
        """Delete a job that does not run, with its pending children.

        Raises:
            JobNotFoundError: There is no such job.
            IllegalMoveError: It is running, or the next job of a schedule.
        """
        await self._store.move(self.name, ByIds((id,)), Remove())

    async def cancel(self, id: str) -> bool:
        """Cancel a job: it fails with `JobCancelledError` before it starts, or its running handler is asked to stop.

        Returns:
            False if the job has ended, or there is none.
        """
        return await cancel_job(self._store, self.name, id)

    # the queue

    async def pause(self) -> None:
        """Hand out no more jobs, in every process; running ones go on."""
        await self._store.configure(self.name, QueuePatch(paused=True))

    async def resume(self) -> None:
        """Hand out jobs again."""
        await self._store.configure(self.name, QueuePatch(paused=False))

    async def is_paused(self) -> bool:
        """Return whether the queue is paused."""
        return (await self._store.configure(self.name)).paused

    async def get_job_counts(self) -> JobCounts:
        """Count the jobs by state."""
        return await job_counts(self._store, self.name)

    async def clean(
        self,
        older_than: Duration,
        state: CleanState = "completed",
        *,
        limit: int = 0,
        on_progress: Progress | None = None,
    ) -> list[str]:
        """Delete the oldest jobs in a state.

        Args:
            older_than: Only jobs last touched longer ago.
            state: The state; of ``active`` ones none that runs is deleted.
            limit: At most so many; 0 for all.
            on_progress: Told of each part: how many jobs more are deleted.

        Returns:
            The ids of the deleted jobs.

        Example:
            ``await emails.clean(timedelta(days=1), "failed")``

        Source: BullMQ ``Queue.clean``, whose arguments are ``(grace, limit, type)``.
        """
        if not isinstance(state, str):
            raise ConfigurationError(
                f"clean: the second argument is the state, not {state!r}; write clean('1d', 'completed', limit=100)"
            )
        if state not in CLEAN_STATES:
            raise ConfigurationError(f"clean: unknown state {state!r}; known: {', '.join(CLEAN_STATES)}")
        _count("clean: limit", limit, 0)
        age = duration_ms(older_than, "clean: older_than")
        before = await self._store.now() - age
        return await remove_all(
            self._store, self.name, (JobState(state),), older_than=before, limit=limit, on_progress=on_progress
        )

    async def drain(self, *, delayed: bool = False, on_progress: Progress | None = None) -> None:
        """Delete all jobs that wait to run.

        Args:
            delayed: Also those that are to run later; the next jobs of schedules stay.
            on_progress: Told of each part: how many jobs more are deleted.
        """
        states = (JobState.WAITING, JobState.PRIORITIZED, *([JobState.DELAYED] if delayed else []))
        await remove_all(self._store, self.name, states, on_progress=on_progress)

    async def obliterate(self, force: bool = False, *, on_progress: Progress | None = None) -> None:
        """Delete the queue with everything in it.

        Args:
            force: Also while jobs run; their ends are then refused.
            on_progress: Told of each part: how many jobs fewer there are.

        Raises:
            IllegalMoveError: Jobs are running, and ``force`` is not set; nothing was deleted.
        """
        left = 0 if on_progress is None else (await self.get_job_counts()).total
        is_gone = False
        while not is_gone:
            is_gone = await self._store.obliterate(self.name, force=force)
            if on_progress is not None:
                now = (await self.get_job_counts()).total
                on_progress(max(0, left - now))
                left = now

    async def set_global_concurrency(self, n: int | None) -> None:
        """Let at most ``n`` jobs run at once, over all processes; None lifts the limit."""
        if n is not None:
            _count("set_global_concurrency:", n, 1)
        await self._store.configure(self.name, QueuePatch(concurrency=n))

    async def set_rate_limit(self, max: int | None, per: Duration | None = None) -> None:
        """Let at most ``max`` jobs start in a window of time, over all processes.

        Args:
            max: Starts in a window; None lifts the limit.
            per: The window's length; it begins with its first start.
        """
        if max is None:
            await self._store.configure(self.name, QueuePatch(rate=None))
            return
        _count("set_rate_limit: max", max, 1)
        window = 0 if per is None else duration_ms(per, "set_rate_limit: per")
        if not window:
            raise ConfigurationError("set_rate_limit: per what time? write set_rate_limit(100, '1m')")
        await self._store.configure(self.name, QueuePatch(rate=RateLimit(max, window)))

    async def rate_limit(self, for_: Duration) -> None:
        """Hand out no jobs for a time: somebody downstream asked us to slow down."""
        await self._store.configure(self.name, QueuePatch(limit_for_ms=duration_ms(for_, "rate_limit")))

    # schedules

    async def upsert_job_scheduler(
        self, id: str, repeat: Repeat | Mapping[str, Any], template: Mapping[str, Any] | None = None
    ) -> JobHandle[Any]:
        """Declare a schedule of this queue, or change it; the same again changes nothing.

        Args:
            id: The schedule's id.
            repeat: When its jobs come; a mapping is BullMQ's JSON, in milliseconds.
            template: What they are: ``{"name": …, "data": …, "options": …}``, all optional; the name is else the id,
                the payload None. ``"opts"`` in place of ``"options"`` is BullMQ's JSON.

        Returns:
            A handle of its next job.

        Raises:
            ScheduleError: The pattern or the zone cannot be used, or the schedule never fires.

        Source: BullMQ ``Queue.upsertJobScheduler``.
        """
        check_name("schedule", id)
        times = repeat if isinstance(repeat, Repeat) else Repeat.from_bullmq(repeat)
        given = dict(template or {})
        options: JobOptions = given.pop("options", None) or JobOptions()
        bullmq: Mapping[str, Any] = given.pop("opts", None) or {}
        name: str = given.pop("name", id)
        data: Any = given.pop("data", None)
        if given:
            raise TypeError(
                f"upsert_job_scheduler: unknown key {next(iter(given))!r} in template; known: name, data, options, opts"
            )
        layered = merge(from_bullmq(bullmq), options, JobOptions(repeat=times))
        prepared = self._producer.prepare(self.name, name, data, layered)
        return await self._producer.repeat(prepared, times, id=id)

    async def remove_job_scheduler(self, id: str) -> bool:
        """Forget a schedule and its pending job; a job that is ready or running goes on.

        Returns:
            False when there was none.
        """
        return (await self._store.schedule(self.name, [DropSchedule(id=id)]))[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


async def remove_all(
    store: Store,
    queue: str,
    states: Sequence[JobState],
    *,
    older_than: int | None = None,
    limit: int = 0,
    on_progress: Progress | None = None,
) -> list[str]:
    """Delete the oldest jobs in these states, in as many calls as it takes; the ids of the deleted.

    Args:
        store: Where they are.
        queue: Their queue.
        states: Their states.
        older_than: Only jobs last touched before this instant.
        limit: At most so many; 0 for all.
        on_progress: Told of each part: how many more are deleted.
    """
    removed: list[str] = []
    while True:
        take = min(limit - len(removed), MOST_MOVED) if limit else MOST_MOVED
        selection = ByState(tuple(states), older_than=older_than, limit=take)
        ids = await store.move(queue, selection, Remove(hard=True))
        removed += ids
        if on_progress is not None:
            on_progress(len(ids))
        if len(ids) < take or (limit and len(removed) >= limit):
            return removed


def _count(what: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{what} {value!r} is not a whole number from {low} up")


def _mapping(bullmq: object) -> None:
    if bullmq is not None and not isinstance(bullmq, Mapping):
        raise TypeError(
            f"add: the third argument is BullMQ's options as a mapping, not {type(bullmq).__name__}; use keywords"
        )
