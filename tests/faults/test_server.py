"""A server that is killed, freezes, changes its role, forgets its scripts, or is full (P08, P18 to P21)."""

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from tests.faults.conftest import Size
from tests.faults.fleet import SLOTS, Fleet
from tests.faults.launcher import RedisServer, launched
from tests.faults.office import Office, office
from tests.faults.proxy import Proxy
from tests.faults.waiting import until
from tests.faults.worker import NAME, QUEUE, Task
from tests.store.helpers import step
from workers_module import StoreFullError, StoreUnavailableError
from workers_module.store.base import Renewer
from workers_module.store.values import Claimed

pytestmark = pytest.mark.redis

PROCESSES = 4
SECOND = 1.0


@asynccontextmanager
async def at_work(server: RedisServer, workers: Fleet, size: Size) -> AsyncGenerator[Office]:
    """Give an office with a backlog, and workers in the midst of it: half of them run jobs that outlast a lease."""
    async with office(server.url) as there:
        there.fleet = workers
        long = Task(ms=int(1_000 * (size.past_lease_s + SECOND)))
        await there.add_tasks([long, Task(ms=50)] * (PROCESSES * SLOTS // 2))
        await there.add(size.of(5_000, 500), ms=50)
        await workers.start_all([server.url] * PROCESSES)
        await there.until_ended(20)
        yield there


async def finish(there: Office, workers: Fleet, server: RedisServer) -> None:
    """Wait for all jobs, and check that each was run once."""
    await there.until_ended()
    await workers.stop()
    await there.assert_clean(workers, server=server)


@pytest.mark.parametrize("loading", [False, True], ids=["ready", "loading"])
async def test_a_killed_server_loses_nothing(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random, loading: bool
) -> None:
    """P08."""
    times = size.of(3, 1 if loading else 2)
    if loading:
        await server.grow_log()
    async with at_work(server, workers, size) as there:
        for n in range(1, times + 1):
            await there.until_ended(len(there.ids) * n // (times + 2))
            server.kill()
            await anyio.sleep(2 * SECOND if size.full else dice.random())
            await server.start(load_delay_us=100 if loading else 0)
            await until(server.is_up)
            assert await there.ended() < len(there.ids), "nothing was left to do"
        await finish(there, workers, server)


async def test_a_frozen_server_repeats_nothing(server: RedisServer, workers: Fleet, size: Size) -> None:
    """P18."""
    async with at_work(server, workers, size) as there:
        with server.frozen():
            await anyio.sleep(size.past_lease_s)
        await finish(there, workers, server)


async def test_a_failover_with_healthy_links_repeats_nothing(server: RedisServer, workers: Fleet, size: Size) -> None:
    """P19."""
    async with at_work(server, workers, size) as there:
        async with server.demoted():
            # Shorter than a lease, or jobs would be taken from those who run them.
            await anyio.sleep(size.of(2_000, 500) / 1_000)
        await there.queue.add(NAME, Task(), job_id="after")
        there.ids.append("after")
        await finish(there, workers, server)


async def test_a_demoted_server_is_left_for_the_one_that_its_name_leads_to_now(server: RedisServer) -> None:
    with launched() as promoted:
        async with Proxy(server.address) as name, office(name.url) as there:
            await there.add(1)
            (job,) = (await there.store.step(step(1))).jobs
            renewer = there.store.renewer()
            assert await answers(renewer, job)
            async with server.demoted():
                name.target = promoted.address
                await there.queue.add(NAME, Task(), job_id="after")
                await until(lambda: answers(renewer, job))
                assert await there.numbers() == {"waiting": 1}
            renewer.close()


async def answers(renewer: Renewer, job: Claimed) -> bool:
    """Whether leases can be renewed, or be told to be lost."""
    try:
        await anyio.to_thread.run_sync(renewer.renew, QUEUE, [job.held], 1_000)
    except StoreUnavailableError:
        return False
    return True


async def test_forgotten_scripts_are_noticed_by_nobody(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random
) -> None:
    """P20."""
    async with at_work(server, workers, size) as there:
        for _ in range(10):
            await anyio.sleep(dice.uniform(0, 0.1))
            await server.forget_scripts()
            await there.add(10, ms=10)
        await finish(there, workers, server)
        logged = "".join(hand.log() for hand in workers.hands)
        assert [line for line in logged.splitlines() if " WARNING " in line or " ERROR " in line] == []


async def test_a_full_server_takes_no_jobs_and_lets_them_end(server: RedisServer, workers: Fleet, size: Size) -> None:
    """P21."""
    async with at_work(server, workers, size) as there:
        async with server.full():
            before = await there.ended()
            with pytest.raises(StoreFullError):
                await there.queue.add(NAME, Task(), job_id="refused")
            with pytest.raises(StoreFullError):
                await there.queue.add(NAME, Task())
            # More than ran when it became full: new ones are claimed, and end.
            await there.until_ended(before + 3 * PROCESSES * SLOTS)
            await anyio.sleep(3 * SECOND if size.full else 0)
        await there.queue.add(NAME, Task(), job_id="taken")
        there.ids.append("taken")
        await finish(there, workers, server)
