"""Sleeping workers: every wake-up arrives, by whatever path (P04), and none wakes more than it must (P30).

That each path wakes at all is `tests.store.test_wait`'s; here they come many times, mixed, and on the real clock. How
long they took is shown with ``-s``: a loaded machine fails no test by it.
"""

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from tests.faults.conftest import Size
from tests.faults.launcher import RedisServer
from tests.faults.places import KINDS, client_of
from tests.faults.proxy import Proxy
from tests.faults.waiting import until
from tests.store.helpers import by_id, claim_one, complete, fail, ids_of, retry, spec, step, sweep
from tests.worker.loops import Desk, all_ended, queue_plan
from workers_module.job.job import Job
from workers_module.store.base import Store
from workers_module.store.redis.store import RedisStore
from workers_module.store.values import Claimed, Promote, QueuePatch, RetryAgain
from workers_module.worker.context import JobContext

Q = "mail"
OTHER = "children"
SLEEP = 10.0
"""Seconds after which a sleeper looks by itself."""
LOST = SLEEP / 2
"""Seconds after which a wake-up is lost."""
IDLE_WORKERS = 50
COMMANDS_A_JOB = 4

Trigger = Callable[[], Awaitable[Any]]
Way = Callable[[Store, str], Awaitable[Trigger]]
"""Prepares a job of this id, and returns what makes it ready."""


async def by_add(store: Store, id: str) -> Trigger:
    return lambda: store.add([spec(id)])


async def by_bulk(store: Store, id: str) -> Trigger:
    return lambda: store.add([spec(f"{id}-other", queue="elsewhere"), spec(id)])


async def by_retry(store: Store, id: str) -> Trigger:
    await store.add([spec(id, max_attempts=2)])
    job = await claim_one(store)
    return lambda: retry(store, job)


async def by_retry_again(store: Store, id: str) -> Trigger:
    await store.add([spec(id)])
    await fail(store, await claim_one(store))
    return lambda: store.move(Q, by_id(id), RetryAgain())


async def by_promotion(store: Store, id: str) -> Trigger:
    await store.add([spec(id, delay_ms=10**7)])
    return lambda: store.move(Q, by_id(id), Promote())


async def by_resumed_queue(store: Store, id: str) -> Trigger:
    await store.configure(Q, QueuePatch(paused=True))
    await store.add([spec(id)])
    return lambda: store.configure(Q, QueuePatch(paused=False))


async def by_sweep(store: Store, id: str) -> Trigger:
    await store.add([spec(id)])
    await claim_one(store, lease_ms=1)

    async def take_back() -> None:
        await until(lambda: swept(store, id))

    return take_back


async def by_time(store: Store, id: str) -> Trigger:
    return lambda: store.add([spec(id, delay_ms=5)])


async def by_child(store: Store, id: str) -> Trigger:
    await store.add([spec(f"{id}-child", queue=OTHER, parent=1), spec(id)])
    child = await claim_one(store, queue=OTHER)
    return lambda: complete(store, child, queue=OTHER)


WAYS: list[Way] = [
    by_add,
    by_bulk,
    by_retry,
    by_retry_again,
    by_promotion,
    by_resumed_queue,
    by_sweep,
    by_time,
    by_child,
]


@pytest.fixture(params=KINDS)
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Return two clients of one storage."""
    name = uuid4().hex
    stores = [client_of(request.param, tmp_path, name) for _ in range(2)]
    for store in stores:
        await store.open()
    try:
        yield stores[0], stores[1]
        for queue in await stores[0].queues():
            assert await stores[0].verify(queue) == []
    finally:
        for store in stores:
            await store.close()


async def test_no_wake_up_is_lost(two: tuple[Store, Store], size: Size, dice: random.Random) -> None:
    """P04."""
    sleeper, actor = two
    ways = WAYS * size.of(2_000 if isinstance(sleeper, RedisStore) else 200, 12)
    dice.shuffle(ways)
    took: list[float] = []
    for n, way in enumerate(ways):
        id = f"j{n}"
        trigger = await way(actor, id)
        at, jobs = 0.0, list[Claimed]()

        async def ready(trigger: Trigger = trigger) -> None:
            # Before the sleep begins, while it does, or long after.
            nonlocal at
            await anyio.sleep(dice.choice([0, 0.001, 0.005, 0.02]))
            at = time.monotonic()
            await trigger()

        async with anyio.create_task_group() as group:
            group.start_soon(ready)
            with anyio.fail_after(LOST):
                jobs = (await sleeper.wait(step(1), SLEEP)).jobs
            took.append(time.monotonic() - at)
        assert ids_of(jobs) == [id], way
        await complete(sleeper, jobs[0])
    took.sort()
    print(f"\n{len(took)} wake-ups: p50 {1e3 * took[len(took) // 2]:.1f} ms, ", end="")  # noqa: T201
    print(f"p99 {1e3 * took[len(took) * 99 // 100]:.1f} ms, max {1e3 * took[-1]:.1f} ms")  # noqa: T201


@pytest.mark.redis
async def test_a_resumed_backlog_wakes_no_more_than_there_is_work_for(server: RedisServer, size: Size) -> None:
    """P30."""
    total = size.of(50_000, 1_500)
    ran: Counter[str] = Counter()

    async def work(job: Job[Any], context: JobContext) -> None:
        ran[job.id] += 1

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(server.address))
        stores = [RedisStore(proxy.url) for _ in range(IDLE_WORKERS)]
        root = RedisStore(server.url)
        for store in (root, *stores):
            await store.open()
            stack.push_async_callback(store.close)
        await root.configure(Q, QueuePatch(paused=True))
        for start in range(0, total, 500):
            await root.add([spec(f"j{n}") for n in range(start, min(start + 500, total))])
        for store in stores:
            await stack.enter_async_context(
                Desk(store, queue_plan(work, concurrency=1)).at_work(patience=size.of(600, 60))
            )
        # All sleep: nothing is sent any more.
        await until(lambda: all_asleep(root))
        before = proxy.commands
        await root.configure(Q, QueuePatch(paused=False))
        await until(lambda: all_ended(root), within=size.of(600, 60))
        commands = proxy.commands - before
        print(f"\n{total} jobs, {commands / total:.2f} commands a job")  # noqa: T201
        assert commands <= COMMANDS_A_JOB * total
    assert ran == Counter(f"j{n}" for n in range(total))


async def swept(store: Store, id: str) -> bool:
    return id in (await sweep(store, interval_ms=1)).recovered


async def all_asleep(store: RedisStore) -> bool:
    servers = store._calls.open_servers()
    [links] = await servers.each()
    (reply,) = await servers.run(links, [("INFO", "clients")])
    return f"blocked_clients:{IDLE_WORKERS}".encode() in reply
