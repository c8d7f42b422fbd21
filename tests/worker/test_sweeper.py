"""Sweeps: what they pass on, when they wait, and that they go on."""

import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.worker.loops import MINUTE, Q, Unreliable, jobs, record, schedule, until
from workers_module.clock import FrozenClock
from workers_module.job.events import QueueEvent, WorkerEvent
from workers_module.job.outcome import Failed
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Settle, Step, Sweep, SweepReply
from workers_module.worker.handler import Listener
from workers_module.worker.hooks import Hooks
from workers_module.worker.sweeper import Sweeper
from workers_module.worker.ticker import Ticker


class Scripted:
    """A store whose sweeps answer what a test says."""

    def __init__(self, store: Store, answer: Callable[[int], SweepReply]) -> None:
        self._store = store
        self._answer = answer
        self.sweeps: list[Sweep] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def sweep(self, req: Sweep) -> SweepReply:
        self.sweeps.append(req)
        return self._answer(len(self.sweeps))


def sweeper(store: Any, *listeners: Listener, ticker: Ticker | None = None, **settings: Any) -> Sweeper:
    return Sweeper(
        store,
        settings.pop("queues", [Q]),
        hooks=Hooks(listeners),
        ticker=ticker or Ticker(store, owner="app"),
        **(
            {"interval_ms": 20, "lease_ms": 1_000, "max_crashes": 3, "completed_age_ms": 5, "failed_age_ms": 7}
            | settings
        ),
    )


def reply(*, more: bool = False, recovered: tuple[str, ...] = ()) -> SweepReply:
    return SweepReply(recovered=recovered, idle=(), wake_at=None, more=more, now=0)


async def test_it_goes_on_while_there_is_more(memory: Store) -> None:
    store = Scripted(memory, lambda number: reply(more=number < 3))
    await sweeper(store).sweep(Sweep(queue=Q, interval_ms=20))
    assert len(store.sweeps) == 3


async def test_every_queue_is_swept_with_the_limits_given(memory: Store) -> None:
    store = Scripted(memory, lambda number: reply())
    async with anyio.create_task_group() as group:
        group.start_soon(sweeper(store, queues=["a", "b"]).run)
        await until(lambda: len(store.sweeps) >= 4)
        group.cancel_scope.cancel()
    assert [request.queue for request in store.sweeps[:4]] == ["a", "b", "a", "b"]
    first = store.sweeps[0]
    assert (first.interval_ms, first.max_crashes, first.completed_age_ms, first.failed_age_ms) == (20, 3, 5, 7)


async def test_what_came_back_is_told(frozen: Store, clock: FrozenClock) -> None:
    told: list[str] = []

    async def hear(event: WorkerEvent | QueueEvent) -> None:
        assert isinstance(event, WorkerEvent)
        assert event.job is not None
        told.append(event.job.id)

    await frozen.add(jobs("a"))
    await frozen.step(Step(queue=Q, worker="dead", token=Token("t"), take=1, lease_ms=1))
    sweeps = sweeper(frozen, Listener(label="L", call=hear, worker_event="stalled"))
    for _ in range(3):
        clock.set(clock.now_ms() + 30)
        await sweeps.sweep(Sweep(queue=Q, interval_ms=20))
    await sweeps._hooks.finish(1)
    assert told == ["a"]
    assert (await record(frozen, "a")).state is JobState.WAITING


async def test_an_idle_schedule_gets_its_next_job(frozen: Store, clock: FrozenClock) -> None:
    ticker = Ticker(frozen, [schedule(every=MINUTE)], owner="app")
    await ticker.prepare()
    [found] = await frozen.schedules(Q)
    clock.set(found.slot)
    claimed = (await frozen.step(Step(queue=Q, worker="dead", token=Token("t"), take=1))).jobs
    done = [Settle(claimed[0].held, Failed("no"))]
    await frozen.step(Step(queue=Q, worker="dead", token=Token("u"), outcomes=done))
    assert (await frozen.counts([Q]))[0].delayed == 0
    await sweeper(frozen, ticker=ticker).sweep(Sweep(queue=Q, interval_ms=1))
    [revived] = await frozen.schedules(Q)
    assert revived.slot == found.slot + MINUTE
    assert (await frozen.counts([Q]))[0].delayed == 1


async def test_an_outage_is_waited_out(memory: Store) -> None:
    store = Unreliable(memory, lambda name, number: "lost" if number < 3 else None, ("sweep",))
    async with anyio.create_task_group() as group:
        group.start_soon(sweeper(store).run)
        await until(lambda: store.calls.get("sweep", 0) > 4)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("lease_ms", [200, 500])
async def test_after_an_outage_in_which_leases_lapsed_holders_may_renew_first(memory: Store, lease_ms: int) -> None:
    back: list[float] = []
    begun = time.monotonic()

    def fate(name: str, number: int) -> str | None:
        if time.monotonic() - begun < 0.3:
            return "lost"
        if name == "counts":
            back.append(time.monotonic())
        return None

    store = Unreliable(memory, fate, ("sweep", "counts"))
    swept: list[float] = []

    class Noted:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def sweep(self, req: Sweep) -> SweepReply:
            answer: SweepReply = await store.sweep(req)
            swept.append(time.monotonic())
            return answer

    async with anyio.create_task_group() as group:
        group.start_soon(sweeper(Noted(), lease_ms=lease_ms).run)
        await until(lambda: swept)
        group.cancel_scope.cancel()
    assert swept[0] - back[0] >= lease_ms / 1_000


@pytest.mark.parametrize("interval_ms", [20, 30_000])
async def test_a_long_interval_is_no_outage(memory: Store, interval_ms: int) -> None:
    store = Scripted(memory, lambda number: reply())
    sweeps = sweeper(store, interval_ms=interval_ms, lease_ms=10)
    sweeps._heard = time.monotonic() - 1.5 * interval_ms / 1_000
    with anyio.fail_after(5):
        await sweeps._sweep_patiently(Sweep(queue=Q, interval_ms=interval_ms))
    assert len(store.sweeps) == 1
