"""What the tests of the loops share: handlers, plans, consumers, and stores that lose calls and replies."""

import inspect
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar

import anyio

from workers_module.errors import StoreUnavailableError
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.record import JobRecord, OnCrash, Token
from workers_module.job.schedule import Schedule
from workers_module.job.state import ALL_STATES
from workers_module.store.base import Store
from workers_module.store.values import JobSpec, Step, Sweep
from workers_module.worker.consumer import Consumer
from workers_module.worker.context import JobContext
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.gate import Gate
from workers_module.worker.handler import Handler, HandlerSpec, Listener, QueuePlan, ScheduleSpec, WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.intake import ConsumerSettings, Tokens
from workers_module.worker.runtime import Runtime, RuntimeSettings
from workers_module.worker.ticker import Ticker

Q = "mail"
PATIENCE = 60
"""Seconds after which something that should have happened counts as not happening."""
MINUTE = 60_000
HOUR = 3_600_000

Work = Callable[[Job[Any], JobContext], Awaitable[Any]]


async def nothing(job: Job[Any], context: JobContext) -> None:
    """Do nothing."""


def handler(
    work: Callable[..., Any] = nothing, *, queue: str = Q, name: str | None = "send", is_async: bool = True
) -> Handler:
    """Return a handler that calls ``work`` without a scope."""
    kind = JobKind(queue=queue, name=name, payload=Any, result=Any)
    spec = HandlerSpec(kind=kind, label=f"{queue}.{name}", worker=queue, target=work, is_async=is_async)
    return Handler(spec=spec, static=work)


def queue_plan(
    work: Callable[..., Any] | None = nothing, *, queue: str = Q, concurrency: int = 10, **named: Callable[..., Any]
) -> QueuePlan:
    """Return the plan of a queue whose job ``send`` is ``work``."""
    handlers = {} if work is None else {"send": handler(work, queue=queue)}
    handlers |= {name: handler(call, queue=queue, name=name) for name, call in named.items()}
    return QueuePlan(queue=queue, handlers=handlers, concurrency=concurrency, worker_names=(queue,))


def jobs(
    *ids: str, queue: str = Q, name: str = "send", data: object = None, on_crash: OnCrash = "retry", **more: Any
) -> list[JobSpec]:
    """Return a job to add for each id."""
    raw = json.dumps(data).encode()
    return [JobSpec(queue=queue, id=id, name=name, data=raw, on_crash=on_crash, **more) for id in ids]


def numbered(count: int, **more: Any) -> list[JobSpec]:
    """Return so many jobs, ``j0`` and on."""
    return jobs(*(f"j{number}" for number in range(count)), **more)


def schedule(
    name: str = "report",
    *,
    every: int | None = None,
    cron: str | None = None,
    queue: str = Q,
    tz: str = "UTC",
    **more: Any,
) -> ScheduleSpec:
    """Return a declared schedule of the job ``send``."""
    slots = Schedule.cron(cron, tz=tz) if cron is not None else Schedule.every(every or MINUTE)
    more.setdefault("overlap", "allow")
    return ScheduleSpec(
        name=name, worker=queue, queue=queue, job_name="send", label=f"{queue}.{name}", schedule=slots, **more
    )


class Desk:
    """One process' worth of consumers on a store, without the other loops."""

    abreast: ClassVar[int] = 1
    """How many calls of a consumer may be under way at once."""

    def __init__(self, store: Any, *plans: QueuePlan, listeners: Sequence[Listener] = (), **settings: Any) -> None:
        self.store: Store = store
        self.hooks = Hooks(listeners)
        kill_after_ms = settings.get("kill_after_ms", 200)
        limits = ExecutorSettings(kill_after_ms=kill_after_ms, job_timeout_ms=settings.pop("job_timeout_ms", None))
        self.executor = Executor(store, hooks=self.hooks, settings=limits)
        self.settings = ConsumerSettings(worker="ada", **({"kill_after_ms": kill_after_ms} | settings))
        self.ticker = Ticker(store, owner="app")
        gate, tokens = Gate(), Tokens()
        self.consumers = [
            Consumer(
                store,
                plan,
                executor=self.executor,
                hooks=self.hooks,
                settings=self.settings,
                gate=gate,
                ticker=self.ticker,
                tokens=tokens,
            )
            for plan in plans
        ]

    @property
    def consumer(self) -> Consumer:
        """The first consumer."""
        return self.consumers[0]

    def stop(self, grace: float = PATIENCE) -> None:
        """Tell all to stop."""
        for consumer in self.consumers:
            consumer.stop(anyio.current_time() + grace)

    @asynccontextmanager
    async def at_work(self, grace: float = PATIENCE, *, patience: float = 3 * PATIENCE) -> AsyncGenerator["Desk"]:
        """Run all meanwhile; at the end they stop, and all that must be over soon."""
        with anyio.fail_after(patience):
            async with anyio.create_task_group() as group:
                for consumer in self.consumers:
                    group.start_soon(partial(consumer.run, abreast=self.abreast))
                try:
                    yield self
                finally:
                    self.stop(grace)


def runtime(
    store: Any,
    *plans: QueuePlan,
    schedules: Iterable[ScheduleSpec] = (),
    plan: WorkPlan | None = None,
    **settings: Any,
) -> Runtime:
    """Return a runtime of these queues."""
    plan = plan or WorkPlan(queues=plans, schedules=tuple(schedules))
    hooks = Hooks(plan.listeners)
    kill_after_ms = settings.setdefault("kill_after_ms", 200)
    limits = ExecutorSettings(kill_after_ms=kill_after_ms, job_timeout_ms=None)
    executor = Executor(store, hooks=hooks, settings=limits)
    return Runtime(store, plan, RuntimeSettings(**settings), executor=executor, hooks=hooks)


async def until(condition: Callable[[], Any]) -> None:
    """Return when a condition holds, awaited where it must be; soon."""
    with anyio.fail_after(PATIENCE):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
            await anyio.sleep(0.002)


async def states(store: Store, queue: str = Q) -> dict[str, int]:
    """Return how many jobs are in each state, leaving out the zeros."""
    (counts,) = await store.counts([queue])
    named = {state: getattr(counts, state.replace("-", "_")) for state in ALL_STATES}
    return {str(state): number for state, number in named.items() if number}


async def all_ended(store: Store, queue: str = Q) -> bool:
    """Whether nothing is left to do."""
    return not set(await states(store, queue)) - {"completed", "failed"}


async def record(store: Store, id: str, queue: str = Q) -> JobRecord:
    """Read a job that is there."""
    (found,) = await store.get(queue, [id])
    assert found is not None
    return found


async def crash(
    store: Store, id: str, times: int = 1, *, queue: str = Q, max_crashes: int = 3, start: int | None = None
) -> None:
    """Have workers claim a job and die, so many times; the store's clock must be given where it stands still."""
    now = start
    for _ in range(times):
        reply = await store.step(
            Step(queue=queue, worker="dead", token=Token(f"dead-{anyio.current_time()}"), take=1, lease_ms=1, now=now)
        )
        assert [job.record.id for job in reply.jobs] == [id]
        now = reply.now + 10
        for _ in range(3):
            await store.sweep(Sweep(queue=queue, interval_ms=1, max_crashes=max_crashes, now=now))
            now += 10


class Unreliable:
    """A store some of whose calls are lost on the way, or carried out while the reply is lost.

    Args:
        store: The real one.
        fate: Told the name and number of each call; answers ``"lost"``, ``"no reply"``, or None for a call that works.
    """

    def __init__(
        self,
        store: Store,
        fate: Callable[[str, int], str | None],
        names: Iterable[str] = ("step", "wait", "schedule", "schedules", "sweep"),
    ) -> None:
        self._store = store
        self._fate = fate
        self._names = frozenset(names)
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in self._names:
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            number = self.calls[name] = self.calls.get(name, 0) + 1
            fate = self._fate(name, number)
            if fate == "lost":
                raise StoreUnavailableError("the request is lost")
            result = await real(*args, **kwargs)
            if fate == "no reply":
                raise StoreUnavailableError("the reply is lost")
            return result

        return call
