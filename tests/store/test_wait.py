"""Sleeping until there is work: no lost wake-up, however it comes."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    PATIENCE,
    Later,
    Q,
    add,
    by_id,
    claim,
    claim_one,
    complete,
    empty_wait,
    fail,
    ids_of,
    numbers,
    release,
    retry,
    settle,
    spec,
    step,
    sweep,
)
from workers_module.clock import FrozenClock
from workers_module.job.outcome import Completed, Release, WaitChildren
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import PutSchedule, ScheduleDefinition
from workers_module.store.values import (
    Claimed,
    JobPatch,
    Promote,
    QueuePatch,
    RateLimit,
    RetryAgain,
    SettleCode,
    Step,
    StepReply,
)

LONG = 60.0
"""A wait that the test would not outlive: what ends it is the wake-up."""


class Waiter:
    """A wait in its own task."""

    def __init__(self, store: Store, req: Step) -> None:
        self._store = store
        self._req = req
        self.reply: StepReply | None = None
        self.over = anyio.Event()

    async def __call__(self) -> None:
        self.reply = await self._store.wait(self._req, LONG)
        self.over.set()

    async def ids(self) -> list[str]:
        """Return what the wait brought; it must end soon."""
        with anyio.fail_after(PATIENCE):
            await self.over.wait()
        assert self.reply is not None
        return ids_of(self.reply.jobs)


async def asleep() -> None:
    """Give started tasks the time to fall asleep; only spurious hints may come meanwhile."""
    await anyio.sleep(0.03)


# --- before the wait --------------------------------------------------------------------------------------------------


async def test_work_that_is_there_is_brought_at_once(store: Store) -> None:
    await add(store, "a")
    with anyio.fail_after(PATIENCE):
        reply = await store.wait(step(5), LONG)
    assert ids_of(reply.jobs) == ["a"]
    assert reply.settled == []


async def test_a_hint_before_the_wait_is_kept(store: Store, other: Store) -> None:
    for n in range(20):
        client = other if n % 2 else store
        assert await claim(store) == []
        await add(client, f"{n}")
        with anyio.fail_after(PATIENCE):
            reply = await store.wait(step(1), LONG)
        assert ids_of(reply.jobs) == [f"{n}"]


async def test_a_wait_ends_with_its_time(store: Store) -> None:
    with anyio.fail_after(PATIENCE):
        reply = await store.wait(step(1), 0.02)
        again = await store.wait(step(1), 0.0)
    assert (reply.jobs, reply.paused, again.jobs) == ([], False, [])


async def test_the_reply_of_a_wait_is_that_of_a_step(store: Store, clock: FrozenClock) -> None:
    await store.add([spec("a", delay_ms=500)])
    reply = await empty_wait(store)
    assert (reply.now, reply.wake_at) == (clock.now_ms(), clock.now_ms() + 500)
    await store.configure(Q, QueuePatch(paused=True))
    assert (await empty_wait(store)).paused is True


# --- every way to become ready ----------------------------------------------------------------------------------------

Ready = Callable[[Store, Later], Awaitable[None]]


async def by_add(store: Store, later: Later) -> None:
    await add(store, "x")


async def by_bulk(store: Store, later: Later) -> None:
    await store.add([spec("x"), spec("y"), spec("z", queue="elsewhere")])


async def by_priority(store: Store, later: Later) -> None:
    await add(store, "x", priority=3)


async def by_retry_of_an_attempt(store: Store, later: Later) -> None:
    await retry(store, HELD["x"])


async def by_hand_back(store: Store, later: Later) -> None:
    await release(store, HELD["x"])


async def by_sweep(store: Store, later: Later) -> None:
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    assert (await sweep(store)).recovered == ("x",)


async def by_retry_again(store: Store, later: Later) -> None:
    await store.move(Q, by_id("x"), RetryAgain())


async def by_promotion(store: Store, later: Later) -> None:
    await store.move(Q, by_id("x"), Promote())


async def by_last_child(store: Store, later: Later) -> None:
    await complete(store, HELD["child"], queue="children")


async def by_resumed_queue(store: Store, later: Later) -> None:
    await store.configure(Q, QueuePatch(paused=False))


async def by_lifted_concurrency(store: Store, later: Later) -> None:
    await store.configure(Q, QueuePatch(concurrency=None))


async def by_lifted_rate(store: Store, later: Later) -> None:
    await store.configure(Q, QueuePatch(rate=None))


async def by_freed_slot(store: Store, later: Later) -> None:
    assert await settle(store, HELD["first"], Completed(b"1")) is SettleCode.OK


async def by_schedule(store: Store, later: Later) -> None:
    put = PutSchedule(id="s", definition=ScheduleDefinition(name="t", every_ms=1_000), slot=1, job=spec(name="t"))
    await store.schedule(Q, [put])


async def by_detached_child(store: Store, later: Later) -> None:
    await store.edit("children", [JobPatch(id="child", detach=True)])


async def by_restore(store: Store, later: Later) -> None:
    (record,) = await store.get("source", ["x"])
    assert record is not None
    await store.restore([record._replace(queue=Q)])


HELD: dict[str, Claimed] = {}
"""What `prepare` claimed for the wake-up that is tested."""


async def prepare(store: Store, ready: Ready) -> None:
    """Bring the queue to where ``ready`` makes it hand out a job."""
    HELD.clear()
    if ready in {by_retry_of_an_attempt, by_hand_back, by_sweep}:
        await add(store, "x")
        HELD["x"] = await claim_one(store)
    elif ready is by_retry_again:
        await add(store, "x")
        await fail(store, await claim_one(store))
    elif ready is by_promotion:
        await add(store, "x", delay_ms=10**8)
    elif ready in {by_last_child, by_detached_child}:
        await store.add([spec("child", queue="children", parent=1), spec("x")])
        HELD["child"] = await claim_one(store, queue="children")
    elif ready is by_resumed_queue:
        await add(store, "x")
        await store.configure(Q, QueuePatch(paused=True))
    elif ready in {by_lifted_concurrency, by_freed_slot}:
        await add(store, "first", "x")
        HELD["first"] = await claim_one(store)
        await store.configure(Q, QueuePatch(concurrency=1))
    elif ready is by_lifted_rate:
        await add(store, "first", "x")
        await store.configure(Q, QueuePatch(rate=RateLimit(1, 10**8)))
        await claim_one(store)
    elif ready is by_restore:
        await add(store, "x", queue="source")


WAYS = [
    by_add,
    by_bulk,
    by_priority,
    by_retry_of_an_attempt,
    by_hand_back,
    by_sweep,
    by_retry_again,
    by_promotion,
    by_last_child,
    by_resumed_queue,
    by_lifted_concurrency,
    by_lifted_rate,
    by_freed_slot,
    by_schedule,
    by_detached_child,
    by_restore,
]


@pytest.mark.parametrize("whose", ["own", "foreign"])
@pytest.mark.parametrize("ready", WAYS, ids=lambda ready: ready.__name__)
async def test_a_sleeping_worker_is_woken(store: Store, other: Store, later: Later, ready: Ready, whose: str) -> None:
    await prepare(store, ready)
    waiter = Waiter(store, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        assert not waiter.over.is_set()
        await ready(store if whose == "own" else other, later)
        assert len(await waiter.ids()) == 1


@pytest.mark.parametrize("ready", WAYS, ids=lambda ready: ready.__name__)
async def test_a_hint_between_a_step_and_a_wait_is_kept(store: Store, later: Later, ready: Ready) -> None:
    await prepare(store, ready)
    assert await claim(store) == []
    await ready(store, later)
    with anyio.fail_after(PATIENCE):
        reply = await store.wait(step(1), LONG)
    assert len(reply.jobs) == 1


async def test_a_due_job_wakes_a_sleeping_worker(store: Store, later: Later) -> None:
    await add(store, "x", delay_ms=500)
    waiter = Waiter(store, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        later(500)
        assert await waiter.ids() == ["x"]


async def test_a_job_that_becomes_delayed_meanwhile_wakes_at_its_time(live: Store) -> None:
    waiter = Waiter(live, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        await add(live, "x", delay_ms=40)
        assert await waiter.ids() == ["x"]


async def test_a_job_that_is_delayed_already_wakes_at_its_time(live: Store) -> None:
    await live.add([spec("x", delay_ms=60), spec("y", delay_ms=10**7)])
    with anyio.fail_after(PATIENCE):
        reply = await live.wait(step(1), LONG)
    assert ids_of(reply.jobs) == ["x"]


async def test_the_end_of_a_rate_window_wakes(live: Store) -> None:
    await live.configure(Q, QueuePatch(rate=RateLimit(1, 80)))
    await add(live, "a", "b")
    await claim_one(live)
    with anyio.fail_after(PATIENCE):
        reply = await live.wait(step(1), LONG)
    assert ids_of(reply.jobs) == ["b"]


async def test_the_end_of_a_manual_limit_wakes(live: Store) -> None:
    await add(live, "a")
    await live.configure(Q, QueuePatch(limit_for_ms=80))
    with anyio.fail_after(PATIENCE):
        reply = await live.wait(step(1), LONG)
    assert ids_of(reply.jobs) == ["a"]


async def test_a_job_with_tags_wakes_a_worker_with_tags(store: Store, other: Store) -> None:
    waiter = Waiter(store, step(1, tags=("gpu",)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        await add(other, "none")
        await add(other, "x", tags=("eu", "gpu"))
        assert await waiter.ids() == ["x"]


# --- several sleepers -------------------------------------------------------------------------------------------------


async def test_one_job_goes_to_one_of_many_sleepers(store: Store, other: Store) -> None:
    replies: list[list[str]] = []

    async def wait(client: Store) -> None:
        replies.append(ids_of((await client.wait(step(1), 0.3)).jobs))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(wait, other if n % 2 else store)
            await asleep()
            await add(store, "x")
    assert sorted(replies) == [[]] * 9 + [["x"]]


async def test_as_many_sleepers_are_woken_as_there_are_jobs(store: Store, other: Store) -> None:
    found: list[str] = []
    waiters = [Waiter(other if n % 2 else store, step(1)) for n in range(20)]
    async with anyio.create_task_group() as tasks:
        for waiter in waiters:
            tasks.start_soon(waiter)
        await asleep()
        await store.add([spec(f"{n}") for n in range(20)])
        found += [id for waiter in waiters for id in await waiter.ids()]
    assert sorted(found) == sorted(f"{n}" for n in range(20))


async def test_a_resumed_backlog_wakes_all_who_can_work(store: Store, other: Store) -> None:
    await store.configure(Q, QueuePatch(paused=True))
    await store.add([spec(f"{n}") for n in range(30)])
    waiters = [Waiter(other if n % 2 else store, step(3)) for n in range(10)]
    async with anyio.create_task_group() as tasks:
        for waiter in waiters:
            tasks.start_soon(waiter)
        await asleep()
        await store.configure(Q, QueuePatch(paused=False))
        for waiter in waiters:
            assert await waiter.ids()


async def test_a_queue_wakes_its_own_sleepers(store: Store) -> None:
    waiter = Waiter(store, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        await add(store, "x", queue="elsewhere")
        await asleep()
        await add(store, "y")
        assert await waiter.ids() == ["y"]
    assert await numbers(store, "elsewhere") == {"waiting": 1}


async def test_no_wake_up_is_lost_among_many(store: Store, other: Store) -> None:
    total = 300
    done: list[str] = []
    all_done = anyio.Event()

    async def consume(client: Store) -> None:
        while True:
            for job in (await client.wait(step(2), LONG)).jobs:
                await complete(client, job)
                done.append(job.record.id)
            if len(done) == total:
                all_done.set()

    async def produce(client: Store, ids: range) -> None:
        for n in ids:
            await add(client, f"{n}")
            if n % 7 == 0:
                await anyio.sleep(0.001)

    with anyio.fail_after(LONG / 2):
        async with anyio.create_task_group() as tasks:
            for client in (store, other, store):
                tasks.start_soon(consume, client)
            tasks.start_soon(produce, store, range(total // 2))
            tasks.start_soon(produce, other, range(total // 2, total))
            await all_done.wait()
            tasks.cancel_scope.cancel()
    assert sorted(done) == sorted(f"{n}" for n in range(total))


# --- cancelled --------------------------------------------------------------------------------------------------------


async def test_a_cancelled_wait_leaves_no_job_behind(store: Store, other: Store) -> None:
    for n in range(30):
        req = step(1)
        got: list[Claimed] = []

        async def wait(req: Step = req, got: list[Claimed] = got) -> None:
            got.extend((await store.wait(req, LONG)).jobs)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                if n % 3:
                    await anyio.lowlevel.checkpoint()
                await add(other if n % 2 else store, f"{n}")
                if n % 5:
                    await anyio.sleep(0.001 * (n % 7))
                tasks.cancel_scope.cancel()
        late = (await store.step(replace(req, take=0, resume=True))).jobs
        if got:
            assert ids_of(late) == ids_of(got) == [f"{n}"]
        for job in late:
            assert await settle(store, job, Release()) is SettleCode.OK
        (job,) = await claim(store, 5)
        assert job.record.id == f"{n}"
        await complete(store, job)


async def test_a_cancelled_wait_does_not_swallow_the_next_hint(store: Store) -> None:
    sleeper = Waiter(store, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        with anyio.move_on_after(0.03):
            await store.wait(step(1), LONG)
        await add(store, "x")
        assert await sleeper.ids() == ["x"]


async def test_a_parents_wait_ends_when_a_child_of_its_own_queue_ends(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("c", parent=ParentRef(Q, "p"))])
    child = await claim_one(store)
    assert await settle(store, parent, WaitChildren()) is SettleCode.OK
    waiter = Waiter(store, step(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await asleep()
        await complete(store, child)
        assert await waiter.ids() == ["p"]
    (counts,) = await store.counts([Q])
    assert (counts.active, counts.completed) == (1, 1)
    assert (await store.page(Q, [JobState.ACTIVE])).items[0].id == "p"
