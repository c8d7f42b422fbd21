"""Named locks: leases with fences that only grow."""

import anyio

from tests.store.helpers import Later
from workers_module.clock import FrozenClock
from workers_module.store.base import Store
from workers_module.store.values import LockInfo

TTL = 1_000


async def test_a_free_lock_is_acquired(store: Store, clock: FrozenClock) -> None:
    fence = await store.lease("door", "ada", TTL)
    assert fence is not None
    assert await store.locks() == [LockInfo("door", "ada", fence, clock.now_ms() + TTL)]


async def test_a_held_lock_is_refused_to_others(store: Store, other: Store) -> None:
    await store.lease("door", "ada", TTL)
    assert await other.lease("door", "bob", TTL) is None
    assert [lock.owner for lock in await other.locks()] == ["ada"]


async def test_the_holder_gets_its_fence_again_and_a_fresh_lease(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    fence = await store.lease("door", "ada", TTL)
    later(TTL - 1)
    assert await store.lease("door", "ada", TTL) == fence
    assert (await store.locks())[0].until == clock.now_ms() + TTL


async def test_the_holder_extends_its_lease(store: Store, clock: FrozenClock, later: Later) -> None:
    fence = await store.lease("door", "ada", TTL)
    later(TTL - 1)
    assert await store.lease("door", "ada", 5 * TTL, fence=fence) == fence
    assert (await store.locks())[0].until == clock.now_ms() + 5 * TTL
    later(4 * TTL)
    assert await store.lease("door", "bob", TTL) is None


async def test_a_lapsed_lease_is_never_extended(store: Store, later: Later) -> None:
    fence = await store.lease("door", "ada", TTL)
    later(TTL + 1)
    assert await store.lease("door", "ada", TTL, fence=fence) is None
    assert await store.locks() == []


async def test_nobody_extends_with_anothers_name_or_fence(store: Store) -> None:
    fence = await store.lease("door", "ada", TTL)
    assert fence is not None
    assert await store.lease("door", "bob", TTL, fence=fence) is None
    assert await store.lease("door", "ada", TTL, fence=fence + 1) is None
    assert await store.lease("window", "ada", TTL, fence=fence) is None
    assert [lock.name for lock in await store.locks()] == ["door"]


async def test_a_lapsed_lock_is_free_with_a_higher_fence(store: Store, later: Later) -> None:
    first = await store.lease("door", "ada", TTL)
    later(TTL + 1)
    second = await store.lease("door", "bob", TTL)
    assert first is not None
    assert second is not None
    assert second > first
    assert await store.lease("door", "ada", TTL) is None


async def test_the_same_owner_has_a_higher_fence_after_a_lapse(store: Store, later: Later) -> None:
    first = await store.lease("door", "ada", TTL)
    later(TTL + 1)
    second = await store.lease("door", "ada", TTL)
    assert first is not None
    assert second is not None
    assert second > first
    assert await store.lease("door", "ada", TTL, fence=first) is None
    assert await store.lease("door", "ada", TTL, fence=second) == second


async def test_a_released_lock_is_free_with_a_higher_fence(store: Store) -> None:
    first = await store.lease("door", "ada", TTL)
    assert await store.lease("door", "ada", 0) == first
    assert await store.locks() == []
    second = await store.lease("door", "bob", TTL)
    assert first is not None
    assert second is not None
    assert second > first


async def test_a_lock_is_released_by_its_fence(store: Store) -> None:
    fence = await store.lease("door", "ada", TTL)
    assert fence is not None
    assert await store.lease("door", "ada", 0, fence=fence + 1) is None
    assert len(await store.locks()) == 1
    assert await store.lease("door", "ada", 0, fence=fence) == fence
    assert await store.locks() == []


async def test_there_is_nothing_to_release_for_others_or_twice(store: Store) -> None:
    await store.lease("door", "ada", TTL)
    assert await store.lease("door", "bob", 0) is None
    assert len(await store.locks()) == 1
    await store.lease("door", "ada", 0)
    assert await store.lease("door", "ada", 0) is None
    assert await store.lease("never", "ada", 0) is None


async def test_a_lapsed_lock_cannot_be_released_from_under_the_next_holder(store: Store, later: Later) -> None:
    first = await store.lease("door", "ada", TTL)
    later(TTL + 1)
    await store.lease("door", "bob", TTL)
    assert await store.lease("door", "ada", 0, fence=first) is None
    assert [lock.owner for lock in await store.locks()] == ["bob"]


async def test_fences_grow_for_ever(store: Store, other: Store, later: Later) -> None:
    seen: list[int] = []
    for n in range(10):
        fence = await (other if n % 2 else store).lease("door", f"owner-{n}", TTL)
        assert fence is not None
        seen.append(fence)
        if n % 3:
            await store.lease("door", f"owner-{n}", 0)
        else:
            later(TTL + 1)
    assert seen == sorted(set(seen))


async def test_held_locks_are_listed_by_name(store: Store, later: Later) -> None:
    await store.lease("c", "ada", TTL)
    await store.lease("a", "ada", 5 * TTL)
    await store.lease("b", "bob", 5 * TTL)
    assert [(lock.name, lock.owner) for lock in await store.locks()] == [("a", "ada"), ("b", "bob"), ("c", "ada")]
    later(TTL + 1)
    assert [lock.name for lock in await store.locks()] == ["a", "b"]


async def test_of_racing_clients_one_wins(store: Store, other: Store) -> None:
    won: list[int] = []

    async def race(client: Store, n: int) -> None:
        fence = await client.lease("door", f"owner-{n}", TTL)
        if fence is not None:
            won.append(fence)

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(race, other if n % 2 else store, n)
    assert len(won) == 1


async def test_the_instant_may_be_given(store: Store) -> None:
    first = await store.lease("door", "ada", 100, now=10_000)
    assert first is not None
    assert await store.lease("door", "bob", 100, now=10_099) is None
    second = await store.lease("door", "bob", 100, now=10_101)
    assert second is not None
    assert second > first
