"""The one door through which jobs come in: `Queue`, `Dispatcher`, `FlowProducer` and `Scheduler` all add here.

A job is checked, validated, encoded once and only then handed to the *intake*: into the store, or, where jobs run in
the caller's task, straight to their handler. So a refusal leaves the store as it was.
"""

import asyncio
import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, cast

import anyio
from pydantic import TypeAdapter, ValidationError

from workers_module.client.handle import JobHandle, ResultWatcher
from workers_module.client.repeat import define, put_schedule, schedule_id
from workers_module.clock import Duration, duration_ms, to_ms
from workers_module.errors import (
    ConfigurationError,
    JobNotFoundError,
    NotSupportedError,
    PayloadError,
    SingletonKeyError,
    StoreUnavailableError,
    TooLargeError,
)
from workers_module.job.bullmq import from_bullmq
from workers_module.job.encoding import MAX_BYTES, Coder, coder, encode
from workers_module.job.kind import JobKind
from workers_module.job.names import MAX_KEY_BYTES, check_name
from workers_module.job.options import Dedup, JobOptions, Repeat, check, merge
from workers_module.job.record import ChildPolicy, ParentRef
from workers_module.job.stored import write_options
from workers_module.store.base import Store
from workers_module.store.values import Added, DedupSpec, JobSpec

MAX_BULK_JOBS: Final = 10_000
MAX_BULK_BYTES: Final = 64 * 1_048_576
_MERGED: Final = 500
"""So many jobs of one tick of the event loop share a call to the store."""
_PLANS: Final = 4_096
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0

_ONLY_IN_CALLS: Final = ("job_id", "parent", "repeat", "run_at")


class Ran(NamedTuple):
    """What an intake answers that ran the job instead of storing it; ``result`` is JSON."""

    id: str
    result: bytes


class Intake(Protocol):
    """Takes prepared jobs in."""

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None) -> Sequence[Added | Ran]:
        """Take jobs in, all or none.

        Args:
            specs: At least one; validated and encoded.
            tx: The caller's own transaction, or None.

        Returns:
            One answer per spec, in order.
        """
        ...


class TransactionalStore(Protocol):
    """What a store offers that can add a job in a transaction of the caller's that knows no event loop."""

    def add_sync(self, specs: Sequence[JobSpec], *, tx: object, notify: bool = True) -> list[Added]:
        """Do what `Store.add` does, with a synchronous connection or session as ``tx``.

        Args:
            specs: The jobs.
            tx: The caller's transaction.
            notify: Wake a waiting worker when it commits.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """What is known about a queue.

    Attributes:
        name: Its name.
        payload: The type of its payloads: any type pydantic can validate, `Any` for unchecked data.
        options: The defaults of its jobs.
    """

    name: str
    payload: Any = Any
    options: JobOptions = field(default_factory=JobOptions)


class Prepared(NamedTuple):
    """A job that may be added.

    Attributes:
        spec: What the store gets.
        kind: What this process knows about jobs of this name, or None.
        options: All its options, checked.
    """

    spec: JobSpec
    kind: JobKind | None
    options: JobOptions


class Producer:
    """Adds jobs.

    Example:
        ``await producer.add("email", "welcome", WelcomeEmail(email="ada@example.com"), {"delay": "5s"})``
    """

    def __init__(
        self,
        store: Store,
        *,
        kinds: Iterable[JobKind] = (),
        queues: Iterable[QueueSpec] = (),
        defaults: JobOptions | None = None,
        max_payload_bytes: int = MAX_BYTES,
        add_timeout: Duration = "5s",
        exact_integers: bool = True,
        intake: Intake | None = None,
        watcher: ResultWatcher | None = None,
    ) -> None:
        """Prepare; the store is not touched.

        Args:
            store: Where the jobs go.
            kinds: The kinds of jobs this process has handlers for.
            queues: What is known about queues.
            defaults: The options that settings give to every job.
            max_payload_bytes: Larger payloads are refused.
            add_timeout: How long an unreachable store is tried again.
            exact_integers: Allow integers that BullMQ's readers would round.
            intake: Takes the jobs in instead of the store.
            watcher: Knows when jobs have ended; shared by all handles of the process.

        Raises:
            ConfigurationError: A kind or a queue has options that cannot be used.
        """
        self.store = store
        self.watcher = watcher or ResultWatcher(store)
        self._intake: Intake = intake or StoreIntake(store, add_timeout=add_timeout)
        self._max_bytes = max_payload_bytes
        self._exact_integers = exact_integers
        self._defaults = check_defaults(defaults or JobOptions(), "settings")
        self._kinds = {(kind.queue, kind.name): kind for kind in kinds}
        self._queues = {queue.name: queue for queue in queues}
        self._adapters = {queue.name: TypeAdapter[Any](queue.payload) for queue in self._queues.values()}
        self._plans: dict[tuple[str, str], _Plan] = {}
        for queue in self._queues.values():
            check_name("queue", queue.name)
            check_defaults(queue.options, f"queue {queue.name!r}")
        for kind in self._kinds.values():
            check_defaults(kind.options, kind.full_name)

    def kind(self, queue: str, name: str) -> JobKind | None:
        """Return what this process knows about jobs of this name: their kind, or the queue's catch-all, or None."""
        return self._kinds.get((queue, name)) or self._kinds.get((queue, None))

    async def add(
        self,
        queue: str,
        name: str,
        data: object,
        options: JobOptions | None = None,
        *,
        bullmq: Mapping[str, Any] | None = None,
        tx: object = None,
    ) -> JobHandle[Any]:
        """Add one job.

        Args:
            queue: The queue's name.
            name: The job's name.
            data: The payload.
            options: The call's options; they win over those of handler, queue and settings.
            bullmq: Options in BullMQ's names and units; ``options`` win.
            tx: The caller's own transaction (SQL stores): the job exists exactly if that commits.

        Raises:
            TypeError: An option of that name does not exist.
            ConfigurationError: A name or an option cannot be used, or the store cannot do what is asked.
            PayloadError: JSON cannot carry the payload, or it is too large.
            pydantic.ValidationError: The payload does not fit its type.
            StoreError: The store could not take the job. After `StoreOutcomeUnknownError` it may have: repeat the call
                only with a ``job_id``.
        """
        prepared = self.prepare(queue, name, data, options, bullmq=bullmq)
        repeat = prepared.options.get("repeat")
        if repeat is not None:
            if tx is not None:
                raise ConfigurationError(f"{queue}.{name}: repeat makes many jobs, which one transaction cannot hold")
            return await self.repeat(prepared, cast("Repeat", repeat))
        return self._handle(prepared, (await self._intake.add([prepared.spec], tx=tx))[0])

    async def add_many(
        self, queue: str, jobs: Iterable[tuple[str, Any] | tuple[str, Any, JobOptions]], *, tx: object = None
    ) -> list[JobHandle[Any]]:
        """Add jobs to one queue, all or none, in this order.

        Args:
            queue: The queue's name.
            jobs: ``(name, data)`` or ``(name, data, options)``; at most 10,000, and 64 MiB of payload.
            tx: The caller's own transaction.

        Raises:
            TooLargeError: There are more of them, or they are larger.
            PayloadError: As in `add`; a note names the job.
        """
        prepared: list[Prepared] = []
        size = 0
        for index, (name, data, *rest) in enumerate(jobs):
            if index >= MAX_BULK_JOBS:
                raise TooLargeError(f"more than {MAX_BULK_JOBS:,} jobs in one call; add them in several")
            try:
                one = self._prepare_single(queue, name, data, rest[0] if rest else None)
            except (ValidationError, PayloadError, ConfigurationError, TypeError) as error:
                error.add_note(f"This was job {index} of {queue!r} in one call; none of them was added.")
                raise
            size += len(one.spec.data)
            if size > MAX_BULK_BYTES:
                raise TooLargeError(
                    f"more than {MAX_BULK_BYTES:,} bytes of payload in one call; add the jobs in several"
                )
            prepared.append(one)
        return await self.add_prepared(prepared, tx=tx)

    async def add_prepared(self, prepared: Sequence[Prepared], *, tx: object = None) -> list[JobHandle[Any]]:
        """Add jobs that `prepare` returned, all or none; they may name each other as parents."""
        if not prepared:
            return []
        added = await self._intake.add([one.spec for one in prepared], tx=tx)
        return [self._handle(one, answer) for one, answer in zip(prepared, added, strict=True)]

    def add_sync(
        self,
        queue: str,
        name: str,
        data: object,
        options: JobOptions | None = None,
        *,
        bullmq: Mapping[str, Any] | None = None,
        tx: object,
        notify: bool = True,
    ) -> JobHandle[Any]:
        """Add one job inside a transaction that knows no event loop.

        Raises:
            NotSupportedError: The store has no such transactions, or jobs are not stored at all.
        """
        add_sync = getattr(self.store, "add_sync", None)
        if add_sync is None or not isinstance(self._intake, StoreIntake):
            raise NotSupportedError(
                "add_sync writes into a transaction of your own, and this store has none; await add() instead"
            )
        prepared = self._prepare_single(queue, name, data, options, bullmq=bullmq)
        added = cast("TransactionalStore", self.store).add_sync([prepared.spec], tx=tx, notify=notify)
        return self._handle(prepared, added[0])

    async def run(
        self,
        queue: str,
        name: str,
        data: object,
        options: JobOptions | None = None,
        *,
        wait: Duration | None = "30s",
    ) -> Any:
        """Add one job and wait for its result; a job that is removed at its end still tells it.

        Args:
            queue: The queue's name.
            name: The job's name.
            data: The payload.
            options: The call's options.
            wait: The caller's patience; None for no limit.

        Raises:
            JobFailedError: The job failed for good.
            ResultTimeoutError: It has not ended in time; it goes on.
        """
        prepared = self._prepare_single(queue, name, data, options)
        limit = None if wait is None else duration_ms(wait, "wait")
        async with self.watcher.following(queue):
            handle = (await self.add_prepared([prepared]))[0]
            return await handle.result(None if limit is None else f"{limit}ms")

    async def repeat(self, prepared: Prepared, repeat: Repeat, *, id: str | None = None) -> JobHandle[Any]:
        """Declare a schedule that makes such jobs.

        The same call again changes nothing.

        Args:
            prepared: The job; its name, payload and options are the template.
            repeat: When it comes.
            id: The schedule's id; None makes one of name, times and payload.

        Returns:
            A handle of its current job.
        """
        spec = prepared.spec
        id = schedule_id(spec.name, repeat, spec.data) if id is None else check_name("schedule", id)
        definition = define(spec.name, repeat, spec.data, prepared.options)
        job_id = await put_schedule(self.store, spec.queue, id, definition, immediately=repeat.immediately)
        return self.handle(spec.queue, job_id, spec.name)

    def handle(self, queue: str, id: str, name: str | None = None) -> JobHandle[Any]:
        """Return a handle of a job that exists; its ``name`` tells the type of its result."""
        kind = None if name is None else self.kind(queue, name)
        return JobHandle(self.watcher, queue, id, kind=kind)

    def prepare(
        self,
        queue: str,
        name: str,
        data: object,
        options: JobOptions | None = None,
        *,
        bullmq: Mapping[str, Any] | None = None,
        parent: ParentRef | int | None = None,
        in_flow: bool = False,
    ) -> Prepared:
        """Check and encode a job without adding it.

        Args:
            queue: The queue's name.
            name: The job's name.
            data: The payload.
            options: The call's options.
            bullmq: Options in BullMQ's names and units.
            parent: The job that waits for this one; the index of a later spec of the same call, too.
            in_flow: It has a parent or children.

        Raises:
            TypeError: An option of that name does not exist.
            ConfigurationError: A name or an option cannot be used.
            PayloadError: JSON cannot carry the payload, or it is too large.
            pydantic.ValidationError: The payload does not fit its type.
        """
        plan = self._plans.get((queue, name)) or self._plan(queue, name)
        merged = plan.options
        if options or bullmq:
            merged = check(merge(plan.options, from_bullmq(bullmq or {}), options or JobOptions()), plan.where)
        value = plan.coder.validate(data, plan.what)
        if plan.singleton is not False and not merged.keys() & {"deduplication", "repeat"}:
            key = _singleton_key(plan, value)
            merged = check(merge(merged, JobOptions(deduplication=Dedup.simple(key))), plan.where)
        if (parent is not None or "parent" in merged) and "on_failure" not in merged:
            # BullMQ's silence would leave the parent waiting for ever.
            merged = merge(merged, JobOptions(on_failure="fail_parent"))
        if in_flow and "deduplication" in merged:
            raise ConfigurationError(
                f"{plan.where}: a job with a parent or children cannot be deduplicated or a singleton"
            )
        raw = plan.coder.dump(value, plan.what, max_bytes=self._max_bytes, exact_integers=self._exact_integers)
        if merged is plan.options:
            # One per job: built without the keyword handling of the class, which costs more than all the rest.
            spec = tuple.__new__(JobSpec, (queue, name, raw, parent, *plan.more))
        else:
            spec = JobSpec(queue, name, raw, merged.get("parent") if parent is None else parent, *_more(merged))
        return Prepared(spec, plan.kind, merged)

    def check_payload(self, queue: str, name: str, data: bytes) -> None:
        """Refuse stored data that is no payload of such a job, as its handler here would.

        Raises:
            TooLargeError: It is larger than payloads may be.
            StoreCorruptError: It is not JSON.
            pydantic.ValidationError: It does not fit its type.
        """
        if len(data) > self._max_bytes:
            raise TooLargeError(f"payload of {queue}.{name}: {len(data):,} bytes; the limit is {self._max_bytes:,}")
        coder(self._adapter(queue, name)).decode(data)

    def _prepare_single(
        self,
        queue: str,
        name: str,
        data: object,
        options: JobOptions | None,
        *,
        bullmq: Mapping[str, Any] | None = None,
    ) -> Prepared:
        prepared = self.prepare(queue, name, data, options, bullmq=bullmq)
        if "repeat" in prepared.options:
            raise ConfigurationError(f"{queue}.{name}: repeat makes many jobs; only add() of a single call takes it")
        return prepared

    def _plan(self, queue: str, name: str) -> "_Plan":
        check_name("queue", queue)
        check_name("job", name)
        kind = self.kind(queue, name)
        known = self._queues.get(queue)
        layers = [self._defaults]
        if known is not None:
            layers.append(known.options)
        if kind is not None:
            layers.append(kind.options)
        where = f"{queue}.{name}"
        # Tags of all layers add up; everything else is overridden.
        tags = {tag for layer in layers for tag in layer.get("tags", ())}.union(() if kind is None else kind.tags)
        options = check(merge(*layers, JobOptions(tags=[*tags]) if tags else JobOptions()), where)
        plan = _Plan(
            queue=queue,
            name=name,
            where=where,
            what=f"payload of {where}",
            kind=kind,
            coder=coder(self._adapter(queue, name)),
            options=options,
            more=_more(options),
            singleton=False if kind is None else kind.singleton,
        )
        # Names may come from data: then the plans of old ones go.
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[queue, name] = plan
        return plan

    def _adapter(self, queue: str, name: str) -> TypeAdapter[Any] | None:
        kind = self.kind(queue, name)
        return self._adapters.get(queue) if kind is None else kind.payload_adapter

    def _handle(self, prepared: Prepared, answer: Added | Ran) -> JobHandle[Any]:
        queue = prepared.spec.queue
        if isinstance(answer, Ran):
            return JobHandle(self.watcher, queue, answer.id, kind=prepared.kind, ran=answer.result)
        return JobHandle(self.watcher, queue, answer.id, kind=prepared.kind, deduplicated=answer.existing is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """All that is the same for jobs of one name in one queue."""

    queue: str
    name: str
    where: str
    what: str
    kind: JobKind | None
    coder: Coder
    options: JobOptions
    more: tuple[Any, ...]
    singleton: bool | Callable[[Any], object]


def check_defaults(options: JobOptions, where: str) -> JobOptions:
    """Return options that are to hold for many jobs, or refuse those that only make sense for one.

    Raises:
        TypeError: An option of this name does not exist.
        ConfigurationError: A value cannot be used, or the option belongs to a single call.
    """
    for name in _ONLY_IN_CALLS:
        if name in options:
            raise ConfigurationError(f"{where}: {name} belongs to a single job; give it where the job is added")
    return check(options, where)


def _more(options: JobOptions) -> tuple[Any, ...]:
    """Return all that checked options say about a `JobSpec`: its fields from the fifth on."""
    run_at = options.get("run_at")
    delay = options.get("delay")
    dedup = cast("Dedup | None", options.get("deduplication"))
    template = JobSpec(
        queue="",
        name="",
        data=b"",
        opts=write_options(options),
        id=options.get("job_id"),
        priority=options.get("priority", 0),
        lifo=options.get("lifo", False),
        delay_ms=0 if delay is None else duration_ms(delay),
        due=None if run_at is None else to_ms(run_at),
        max_attempts=options.get("attempts", 1),
        tags=tuple(options.get("tags", ())),
        dedup=None if dedup is None else DedupSpec(dedup.id, dedup.mode, dedup.ttl_ms),
        policy=ChildPolicy(options.get("on_failure", "fail_parent")),
        on_crash=options.get("on_crash", "retry"),
    )
    return template[4:]


def _singleton_key(plan: _Plan, value: Any) -> str:
    if plan.singleton is True:
        return plan.name
    assert callable(plan.singleton)
    try:
        raw = encode(plan.singleton(value), None, what=f"singleton key of {plan.where}")
    except PayloadError as error:
        raise SingletonKeyError(str(error.args[0]), path=error.path) from None
    canonical = json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":"))
    if len(plan.name) + 1 + len(canonical) > MAX_KEY_BYTES:
        canonical = f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
    return f"{plan.name}:{canonical}"


class _Call(NamedTuple):
    """One caller's jobs, and where its answer goes: None says that nobody else called, and it may send them itself."""

    specs: Sequence[JobSpec]
    answer: "asyncio.Future[list[Added] | None]"


class StoreIntake:
    """Takes jobs into the store; the calls of one tick of the event loop share one call to the store.

    Each caller gets its own answer or error. A caller that is cancelled leaves the others alone: what has been sent by
    then is stored.
    """

    def __init__(self, store: Store, *, add_timeout: Duration = "5s") -> None:
        """Prepare; the store is not touched.

        Args:
            store: Where the jobs go.
            add_timeout: How long an unreachable store is tried again; never after a call whose outcome is unknown.
        """
        self._store = store
        self._patience_s = duration_ms(add_timeout, "add_timeout") / 1_000
        self._calls: list[_Call] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        # The event loop itself keeps no strong reference to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None) -> list[Added]:
        """Store jobs, all or none.

        Raises:
            StoreError: The store could not take them.
        """
        if tx is not None:
            # Neither merged, for it is this caller's transaction, nor repeated, for a failed one takes no more.
            return await self._store.add(specs, tx=tx)
        if len(specs) > _MERGED:
            return await self._send(specs)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._calls = []
        answer: asyncio.Future[list[Added] | None] = loop.create_future()
        self._calls.append(_Call(specs, answer))
        if len(self._calls) == 1:
            loop.call_soon(self._flush)
        added = await answer
        return await self._send(specs) if added is None else added

    def _flush(self) -> None:
        calls, self._calls = [call for call in self._calls if not call.answer.cancelled()], []
        if len(calls) == 1:
            calls[0].answer.set_result(None)
            return
        batch: list[_Call] = []
        size = 0
        for call in calls:
            if size + len(call.specs) > _MERGED:
                self._start(batch)
                batch, size = [], 0
            batch.append(call)
            size += len(call.specs)
        if batch:
            self._start(batch)

    def _start(self, batch: list[_Call]) -> None:
        task = asyncio.get_running_loop().create_task(self._store_batch(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_batch(self, batch: list[_Call]) -> None:
        try:
            try:
                added = await self._send([spec for call in batch for spec in call.specs])
            except (ConfigurationError, JobNotFoundError) as error:
                if len(batch) == 1:
                    _fail(batch[0], error)
                else:
                    await self._store_each(batch)
                return
            start = 0
            for call in batch:
                end = start + len(call.specs)
                if not call.answer.done():
                    call.answer.set_result(added[start:end])
                start = end
        except BaseException as error:
            for call in batch:
                _fail(call, error)
            if not isinstance(error, Exception):
                raise

    async def _store_each(self, batch: list[_Call]) -> None:
        """Repeat a refused call caller by caller, so that only those to blame are refused."""
        for call in batch:
            if call.answer.cancelled():
                continue
            try:
                added = await self._send(call.specs)
            except Exception as error:
                _fail(call, error)
            else:
                if not call.answer.done():
                    call.answer.set_result(added)

    async def _send(self, specs: Sequence[JobSpec]) -> list[Added]:
        give_up = anyio.current_time() + self._patience_s
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return await self._store.add(specs)
            except StoreUnavailableError:
                wait = pause * random.uniform(0.5, 1.0)  # noqa: S311
                if anyio.current_time() + wait > give_up:
                    raise
                await anyio.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE_S)


def _fail(call: _Call, error: BaseException) -> None:
    if call.answer.done():
        return
    if isinstance(error, Exception):
        # Each caller its own: a shared exception would gather the tracebacks of all.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        call.answer.set_exception(own)
    else:
        call.answer.cancel()
