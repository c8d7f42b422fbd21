"""`DistributedLockService`: one holder at a time, and a body that does not outlive its lock."""

from datetime import timedelta
from typing import Any

import anyio
import pytest

from tests.client.helpers import PATIENCE
from workers_module.client.lock import DistributedLockService
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, InvalidNameError, LockLostError, StoreUnavailableError
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore


async def test_a_lock_has_one_holder(any_store: Store) -> None:
    here, there = DistributedLockService(any_store), DistributedLockService(any_store)
    lock = await here.acquire("sync", "1m")
    assert lock is not None
    assert lock.name == "sync"
    assert await there.acquire("sync", "1m") is None
    assert await here.acquire("sync", "1m") is None
    assert await there.acquire("other", "1m") is not None
    assert await here.release(lock)
    second = await there.acquire("sync", "1m")
    assert second is not None
    assert second.fence > lock.fence


async def test_release_by_name_gives_back_what_was_acquired_here(any_store: Store) -> None:
    here, there = DistributedLockService(any_store), DistributedLockService(any_store)
    assert await here.acquire("sync", "1m") is not None
    assert not await there.release("sync")
    assert await there.acquire("sync", "1m") is None
    assert await here.release("sync")
    assert not await here.release("sync")
    assert await there.acquire("sync", "1m") is not None


async def test_a_lock_ends_with_its_time(any_store: Store, clock: FrozenClock) -> None:
    here, there = DistributedLockService(any_store), DistributedLockService(any_store)
    lock = await here.acquire("sync", "1m")
    assert lock is not None
    clock.advance(timedelta(seconds=50))
    await lock.extend("1m")
    clock.advance(timedelta(seconds=50))
    assert await there.acquire("sync", "1m") is None
    clock.advance(timedelta(seconds=11))
    with pytest.raises(LockLostError):
        await lock.extend("1m")
    taken = await there.acquire("sync", "1m")
    assert taken is not None
    assert taken.fence > lock.fence
    with pytest.raises(LockLostError):
        await lock.extend("1m")
    assert not await here.release(lock)
    assert await there.acquire("sync", "1m") is None


async def test_hold_releases_in_the_end(any_store: Store) -> None:
    locks = DistributedLockService(any_store)
    async with locks.hold("sync", "1m") as lock:
        assert lock is not None
        async with locks.hold("sync", "1m") as second:
            assert second is None
    async with locks.hold("sync", "1m") as again:
        assert again is not None
        assert again.fence > lock.fence


async def test_hold_releases_when_the_body_fails_and_leaves_the_error_as_it_is(any_store: Store) -> None:
    locks = DistributedLockService(any_store)
    with pytest.raises(ValueError, match="mine"):
        async with locks.hold("sync", "1m"):
            raise ValueError("mine")
    assert await locks.acquire("sync", "1m") is not None


async def test_hold_releases_when_the_body_is_cancelled(any_store: Store) -> None:
    locks = DistributedLockService(any_store)
    with anyio.move_on_after(0.02) as scope:
        async with locks.hold("sync", "1m"):
            await anyio.sleep(60)
    assert scope.cancelled_caught
    assert await locks.acquire("sync", "1m") is not None


async def test_hold_extends_while_the_body_runs() -> None:
    store = Faulty()
    locks = DistributedLockService(store)
    async with locks.hold("sync", "300ms") as lock:
        with anyio.fail_after(PATIENCE):
            while store.extensions < 4:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert lock is not None
        assert await locks.acquire("sync", "1m") is None


class Faulty(MemoryStore):
    """A memory store whose extensions fail as told."""

    extensions = 0
    fault: BaseException | None = None
    lost = False

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        if fence is not None and ttl_ms:
            self.extensions += 1
            if self.fault is not None:
                raise self.fault
            if self.lost:
                return None
        return await super().lease(name, owner, ttl_ms, fence=fence, now=now)


async def body_of(locks: DistributedLockService, ttl: str) -> list[str]:
    """Hold a lock until it is lost; what the body saw."""
    seen: list[str] = []

    async def hold() -> None:
        async with locks.hold("sync", ttl):
            try:
                with anyio.fail_after(PATIENCE):
                    await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                seen.append("cancelled")
                raise

    with pytest.raises(LockLostError, match="stop what it protected"):
        await hold()
    return seen


async def test_a_lost_lock_cancels_the_body() -> None:
    store = Faulty()
    store.lost = True
    assert await body_of(DistributedLockService(store), "60ms") == ["cancelled"]


@pytest.mark.parametrize("fault", [StoreUnavailableError("down"), RuntimeError("bug")])
async def test_a_lock_that_cannot_be_extended_cancels_the_body_before_it_ends(fault: Exception) -> None:
    store = Faulty()
    store.fault = fault
    assert await body_of(DistributedLockService(store), "100ms") == ["cancelled"]
    assert store.extensions >= 1


async def test_an_outage_shorter_than_the_lock_is_sat_out() -> None:
    store = Faulty()
    store.fault = StoreUnavailableError("down")
    async with DistributedLockService(store).hold("sync", "3s"):
        with anyio.fail_after(PATIENCE):
            while store.extensions < 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            store.fault = None
            while store.extensions < 3:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_an_acquisition_that_is_cancelled_leaves_no_lock() -> None:
    store = MemoryStore()

    class Held(MemoryStore):
        async def lease(
            self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
        ) -> int | None:
            answer = await store.lease(name, owner, ttl_ms, fence=fence, now=now)
            if ttl_ms:
                await anyio.sleep_forever()
            return answer

    with anyio.move_on_after(0.02):
        await DistributedLockService(Held()).acquire("sync", "1m")
    assert await store.locks() == []


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 129])
async def test_bad_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidNameError):
        await DistributedLockService(store).acquire(name, "1m")


@pytest.mark.parametrize("ttl", [5_000, "0s", "soon", None])
async def test_bad_times_are_refused(store: Store, ttl: Any) -> None:
    with pytest.raises(ConfigurationError):
        await DistributedLockService(store).acquire("sync", ttl)
