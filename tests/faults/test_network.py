"""Links that are cut, go silent, or break in the middle of a word (P15, P16, P17), and too few of them (P22)."""

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from dishka import Provider, Scope, make_async_container

from tests.faults.conftest import Size
from tests.faults.fleet import SLOTS, Fleet
from tests.faults.launcher import RedisServer
from tests.faults.office import Office, office
from tests.faults.proxy import Ending, Proxy
from tests.faults.waiting import until
from tests.faults.worker import NAME, Diary, Laborer, Task
from workers_module import Store, WorkersModule, WorkersSettings, run_workers
from workers_module.store.redis.connect import Link
from workers_module.store.redis.store import RedisStore

pytestmark = pytest.mark.redis

PROCESSES = 4
HALF = PROCESSES // 2
MOST_CONNECTIONS = 5
"""Besides two for commands: one sleeps, one keeps leases, one follows events."""


@asynccontextmanager
async def behind_proxies(server: RedisServer, workers: Fleet, size: Size) -> AsyncGenerator[tuple[Office, list[Proxy]]]:
    """Give an office with a backlog, and the proxies of the workers in the midst of it, one each."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(server.address)) for _ in range(PROCESSES)]
        there = await stack.enter_async_context(office(server.url))
        there.fleet = workers
        # Long enough that there is work left when the links are well again.
        await there.add(size.of(5_000, 500), ms=size.of(50, 150))
        await workers.start_all([proxy.url for proxy in proxies])
        await there.until_ended(20)
        yield there, proxies


def held_by(workers: Fleet, first: int) -> int:
    """Return how many jobs the first processes have in flight."""
    return sum(len(hand.in_flight()) for hand in workers.hands[:first])


async def test_workers_that_are_cut_off_repeat_only_what_they_held(
    server: RedisServer, workers: Fleet, size: Size
) -> None:
    """P15."""
    async with behind_proxies(server, workers, size) as (there, proxies):
        async with AsyncExitStack() as broken:
            for proxy in proxies[:HALF]:
                await broken.enter_async_context(proxy.broken(cut=True))
            await anyio.sleep(size.of(10_000, int(1_000 * size.past_recovery_s)) / 1_000)
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers, server=server, repeated=lambda number: number <= HALF * SLOTS)


async def test_workers_that_hear_no_replies_repeat_only_what_they_held(
    server: RedisServer, workers: Fleet, size: Size
) -> None:
    """P16."""
    async with behind_proxies(server, workers, size) as (there, proxies):
        async with AsyncExitStack() as broken:
            for proxy in proxies[:HALF]:
                await broken.enter_async_context(proxy.broken(mute=True))
            await anyio.sleep(size.of(10_000, int(1_000 * size.past_recovery_s)) / 1_000)
        assert all(proxy.lost for proxy in proxies[:HALF])
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers, server=server, repeated=lambda number: number <= HALF * SLOTS)


@pytest.mark.parametrize("how", Ending)
async def test_an_idle_connection_that_was_cut_is_made_anew_unnoticed(server: RedisServer, how: Ending) -> None:
    async with Proxy(server.address) as proxy, office(proxy.url) as there:
        for n in range(20):
            await there.queue.add(NAME, Task(), job_id=f"j{n}")
            assert proxy.cut(how)
            # Until both ends have heard of it.
            await until(lambda: not any(link.fresh for link in idle_links(there)))
            assert await there.numbers() == {"waiting": n + 1}


async def test_broken_links_repeat_nothing(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random
) -> None:
    """P17."""
    async with behind_proxies(server, workers, size) as (there, proxies):
        faults = ["mid-reply"] * size.of(20, 8) + ["half-close"] * size.of(10, 4) + ["kill"] * size.of(10, 4)
        dice.shuffle(faults)
        for fault in faults:
            proxy = dice.choice(proxies)
            before = await there.ended()
            match fault:
                case "mid-reply":
                    proxy.cut_after(dice.randrange(1, 400), "replies")
                case "half-close":
                    assert proxy.cut(Ending.HALF)
                case _:
                    await server.kill_clients()
            # Work goes on, and the next fault meets links that are healthy again.
            await there.until_ended(min(before + 5, len(there.ids)))
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers, server=server)


async def test_two_connections_do_for_fifty_producers_and_a_worker(
    server: RedisServer, size: Size, tmp_path: Path
) -> None:
    """P22."""
    each = size.of(100, 6)
    async with Proxy(server.address) as proxy:
        proxy.delay(0.002)
        store = RedisStore(proxy.url, connections=2)
        async with office(proxy.url, store=store) as there, working_here(store, proxy.url, tmp_path):
            # They outlast several leases, which are kept past the two connections.
            await there.add(SLOTS // 2, ms=2_500)

            async def produce(number: int) -> None:
                for n in range(each):
                    handle = await there.queue.add(NAME, Task(ms=5), job_id=f"p{number}-{n}")
                    there.ids.append(handle.id)
                    await handle.state()

            async with anyio.create_task_group() as group:
                for number in range(50):
                    group.start_soon(produce, number)
            await there.until_ended()
            assert proxy.connections <= MOST_CONNECTIONS
            await proxy.heal()
            await there.assert_clean()
            assert {(record.crashes, record.fence) for record in await there.records()} == {(0, 1)}


@asynccontextmanager
async def working_here(store: Store, url: str, folder: Path) -> AsyncGenerator[None]:
    """Run a worker in this process meanwhile, on a store that is shared with others."""
    settings = WorkersSettings(
        queue={"uri": url},
        concurrency=SLOTS,
        lease="1s",
        sweep_interval="300ms",
        retention={"completed": {"count": None, "age": None}},
    )
    own = Provider(scope=Scope.APP)
    own.provide(lambda: store, provides=Store, override=True)
    with closing(Diary(folder / "here.runs")) as diary:
        own.provide(lambda: diary, provides=Diary)
        container = make_async_container(WorkersModule.for_root(settings, processors=[Laborer]), own)
        async with run_workers(container, close_container=True):
            yield


def idle_links(there: Office) -> list[Link]:
    servers = cast("Any", there.store)._calls.open_servers()
    return [link for links in servers._links.values() for link in links._idle]
