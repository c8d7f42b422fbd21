"""Workers telling of themselves, and orders for them."""

from dataclasses import replace

from tests.store.helpers import Later
from workers_module.clock import FrozenClock
from workers_module.store.base import Store
from workers_module.store.values import Beat, Order, WorkerInfo

ADA = WorkerInfo(
    id="ada-1",
    host="ada",
    pid=17,
    version="1.2.3",
    started=1_000,
    queues=("mail", "default"),
    tags=("eu",),
    slots=8,
    busy=3,
)
BOB = WorkerInfo(id="bob-1", host="bob", pid=18, version="1.2.3", started=2_000)
TTL = 60_000


async def test_a_worker_is_seen_as_it_tells(store: Store, other: Store, clock: FrozenClock) -> None:
    assert await store.worker(Beat(ADA, TTL)) is None
    assert await store.workers() == [replace(ADA, seen=clock.now_ms())]
    assert await other.workers() == await store.workers()


async def test_workers_are_listed_by_id(store: Store) -> None:
    await store.worker(Beat(BOB, TTL))
    await store.worker(Beat(ADA, TTL))
    assert [one.id for one in await store.workers()] == ["ada-1", "bob-1"]


async def test_the_last_word_counts(store: Store, clock: FrozenClock, later: Later) -> None:
    await store.worker(Beat(ADA, TTL))
    later(500)
    await store.worker(Beat(replace(ADA, busy=7), TTL))
    assert await store.workers() == [replace(ADA, busy=7, seen=clock.now_ms())]


async def test_a_silent_worker_is_forgotten(store: Store, later: Later) -> None:
    await store.worker(Beat(ADA, TTL))
    later(TTL // 2)
    await store.worker(Beat(BOB, TTL))
    later(TTL // 2 + 1)
    assert [one.id for one in await store.workers()] == ["bob-1"]


async def test_a_worker_says_goodbye(store: Store) -> None:
    await store.worker(Beat(ADA, TTL))
    await store.worker(Beat(BOB, TTL))
    await store.worker(Beat(ADA, 0))
    assert [one.id for one in await store.workers()] == ["bob-1"]
    await store.worker(Beat(ADA, 0))


async def test_an_order_is_read_once_by_the_worker_it_is_for(store: Store, other: Store) -> None:
    await store.worker(Beat(ADA, TTL))
    await store.worker(Beat(BOB, TTL))
    assert await other.worker(Order("ada-1", "drain")) is None
    assert await store.worker(Beat(BOB, TTL)) is None
    assert await store.worker(Beat(ADA, TTL)) == "drain"
    assert await store.worker(Beat(ADA, TTL)) is None


async def test_the_last_order_counts(store: Store) -> None:
    await store.worker(Beat(ADA, TTL))
    await store.worker(Order("ada-1", "drain"))
    await store.worker(Order("ada-1", "stop"))
    assert await store.worker(Beat(ADA, TTL)) == "stop"


async def test_an_order_does_not_make_a_worker(store: Store) -> None:
    await store.worker(Order("ada-1", "drain"))
    assert await store.workers() == []


async def test_the_instant_may_be_given(store: Store, clock: FrozenClock) -> None:
    now = clock.now_ms()
    await store.worker(Beat(ADA, TTL), now=now - 5_000)
    assert [one.seen for one in await store.workers()] == [now - 5_000]
    await store.worker(Beat(BOB, TTL), now=now - TTL - 1)
    assert [one.id for one in await store.workers()] == ["ada-1"]
