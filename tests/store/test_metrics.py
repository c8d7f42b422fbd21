"""Counts of ended jobs: since ever and per minute."""

from tests.store.helpers import INTERVAL, LEASE, Later, Q, add, claim_one, settle, spec, sweep
from workers_module.job.outcome import Completed, Failed, Keep, Outcome
from workers_module.store.base import Store
from workers_module.store.values import Metrics, Series, SettleCode

MINUTE = 60_000
NOTHING = Metrics(Series(0, ()), Series(0, ()))


async def end(store: Store, outcome: Outcome, times: int = 1, *, minutes: int = 60) -> None:
    """Let so many jobs end."""
    for _ in range(times):
        await store.add([spec()])
        assert await settle(store, await claim_one(store), outcome, metrics=minutes) is SettleCode.OK


async def test_nothing_is_counted_unless_asked(store: Store) -> None:
    assert await store.metrics(Q) == NOTHING
    await end(store, Completed(b"1"), minutes=0)
    assert await store.metrics(Q) == NOTHING


async def test_each_kind_has_its_own_total(store: Store) -> None:
    await end(store, Completed(b"1"), 3)
    await end(store, Failed("no"), 2)
    metrics = await store.metrics(Q)
    assert (metrics.completed.total, metrics.failed.total) == (3, 2)
    assert (metrics.completed.per_minute, metrics.failed.per_minute) == ((), ())


async def test_minutes_come_newest_first_without_the_current_one(store: Store, later: Later) -> None:
    await end(store, Completed(b"1"), 3)
    later(MINUTE)
    await end(store, Completed(b"1"), 2)
    later(MINUTE)
    await end(store, Completed(b"1"), 1)
    assert (await store.metrics(Q)).completed == Series(6, (2, 3))


async def test_quiet_minutes_are_zeros(store: Store, later: Later) -> None:
    await end(store, Completed(b"1"), 1)
    later(4 * MINUTE)
    await end(store, Completed(b"1"), 1)
    assert (await store.metrics(Q)).completed == Series(2, (0, 0, 0, 1))


async def test_only_so_many_minutes_are_kept_and_read(store: Store, later: Later) -> None:
    for n in range(1, 8):
        await end(store, Completed(b"1"), n, minutes=4)
        later(MINUTE)
    await end(store, Completed(b"1"), minutes=4)
    assert (await store.metrics(Q)).completed == Series(29, (7, 6, 5, 4))
    assert (await store.metrics(Q, minutes=2)).completed == Series(29, (7, 6))


async def test_jobs_that_are_not_kept_count(store: Store) -> None:
    await end(store, Completed(b"1", Keep(count=0)), 2)
    assert (await store.metrics(Q)).completed.total == 2


async def test_refused_and_repeated_ends_do_not_count(store: Store, later: Later) -> None:
    await add(store, "a")
    old = await claim_one(store)
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    await sweep(store)
    new = await claim_one(store)
    assert await settle(store, old, Completed(b"1"), metrics=60) is SettleCode.LEASE_LOST
    assert await settle(store, new, Completed(b"1"), metrics=60) is SettleCode.OK
    assert await settle(store, new, Completed(b"1"), metrics=60) is SettleCode.ALREADY
    assert (await store.metrics(Q)).completed.total == 1


async def test_each_queue_counts_for_itself(store: Store, other: Store) -> None:
    await end(store, Completed(b"1"), 2)
    assert await other.metrics("elsewhere") == NOTHING
    assert (await other.metrics(Q)).completed.total == 2
