"""Producers: many of one mind (P05), and those that do not hear what became of their jobs (P06)."""

import random
from collections import Counter
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from tests.faults.conftest import Size
from tests.faults.launcher import RedisServer
from tests.faults.office import Office, office
from tests.faults.places import KINDS, client_of
from tests.faults.proxy import Proxy
from tests.faults.worker import NAME, QUEUE, Task
from tests.store.helpers import numbers
from workers_module import Dedup, StoreOutcomeUnknownError, StoreUnavailableError
from workers_module.client.producer import Producer
from workers_module.store.base import Store
from workers_module.store.redis.store import RedisStore

PRODUCERS = 16


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_makes_one_job_whoever_asks_for_it(
    kind: str, size: Size, dice: random.Random, tmp_path: Path
) -> None:
    """P05."""
    keys = size.of(1_000, 150)
    prefix = uuid4().hex
    stores = [client_of(kind, tmp_path, prefix) for _ in range(PRODUCERS)]
    told: list[tuple[str, str]] = []

    async def produce(store: Store) -> None:
        producer = Producer(store)
        for key in dice.sample(range(keys), keys):
            handle = await producer.add(QUEUE, NAME, {"key": key}, {"deduplication": Dedup.simple(f"k{key}")})
            told.append((f"k{key}", handle.id))

    for store in stores:
        await store.open()
    try:
        async with anyio.create_task_group() as group:
            for store in stores:
                group.start_soon(produce, store)
        assert await numbers(stores[0]) == {"waiting": keys}
        assert await stores[0].verify(QUEUE) == []
        # Each was told of the same job.
        assert (len(told), len(set(told)), len(dict(told))) == (PRODUCERS * keys, keys, keys)
    finally:
        for store in stores:
            await store.close()


async def add_through_losses(office: Office, size: Size, dice: random.Random, proxy: Proxy) -> None:
    """Add a thousand jobs from several tasks, while a part of the replies is lost."""
    total = size.of(1_000, 300)
    proxy.lose_replies(lambda number, command: b"EVAL" in command and dice.random() < 0.3)
    ids = [f"j{n}" for n in range(total)]
    office.ids += ids

    async def produce(ids: list[str]) -> None:
        for id in ids:
            handle = await office.queue.add(NAME, Task(), job_id=id)
            assert handle.id == id

    async with anyio.create_task_group() as group:
        for n in range(10):
            group.start_soon(produce, ids[n::10])
    await proxy.heal()


@pytest.mark.redis
async def test_jobs_with_an_id_are_added_once_through_lost_replies(
    server: RedisServer, size: Size, dice: random.Random
) -> None:
    """P06."""
    async with Proxy(server.address) as proxy, office(proxy.url) as there:
        await add_through_losses(there, size, dice, proxy)
        assert proxy.lost >= 10
        assert await there.numbers() == {"waiting": len(there.ids)}
        assert await there.store.verify(QUEUE) == []
        added = Counter(id for kind, id, _ in await there.heard() if kind == "added")
        assert added == Counter(there.ids)
        assert there.left_over(await server.keys()) == set()


@pytest.mark.redis
async def test_a_call_without_an_id_is_not_repeated_when_its_reply_is_lost(server: RedisServer) -> None:
    async with Proxy(server.address) as proxy, office(proxy.url) as there:
        await there.queue.add(NAME, Task())
        proxy.lose_replies(lambda number, command: b"EVAL" in command)
        with pytest.raises(StoreOutcomeUnknownError, match="ids of their own"):
            await there.queue.add(NAME, Task())
        await proxy.heal()
        assert (await there.numbers(), proxy.lost) == ({"waiting": 2}, 1)


@pytest.mark.redis
async def test_a_command_that_never_arrived_is_repeated_under_its_id(server: RedisServer, dice: random.Random) -> None:
    async with Proxy(server.address) as proxy, office(proxy.url) as there:
        await there.queue.add(NAME, Task(), job_id="first")
        for n in range(10):
            proxy.cut_after(dice.randrange(1, 200), "requests")
            await there.queue.add(NAME, Task(), job_id=f"j{n}")
        assert await there.numbers() == {"waiting": 11}


@pytest.mark.redis
async def test_a_producer_gives_up_after_its_time(server: RedisServer) -> None:
    async with Proxy(server.address) as proxy:
        store = RedisStore(proxy.url)
        await store.open()
        producer = Producer(store, add_timeout="200ms")
        await producer.add(QUEUE, NAME, {}, {"job_id": "a"})
        async with proxy.broken(cut=True):
            with pytest.raises(StoreUnavailableError):
                await producer.add(QUEUE, NAME, {}, {"job_id": "b"})
        await producer.add(QUEUE, NAME, {}, {"job_id": "b"})
        assert await numbers(store) == {"waiting": 2}
        await store.close()
