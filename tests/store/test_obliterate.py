"""Deleting a queue with everything in it."""

import anyio
import pytest

from tests.store.helpers import (
    Q,
    add,
    claim,
    claim_one,
    complete,
    edit,
    fail,
    ids_of,
    numbers,
    settle,
    spec,
    state,
)
from workers_module.errors import IllegalMoveError
from workers_module.job.outcome import Completed, Keep
from workers_module.store.base import Store
from workers_module.store.schedules import PutSchedule, ScheduleDefinition
from workers_module.store.values import DedupSpec, Metrics, Page, QueuePatch, QueueSettings, Series, SettleCode


async def fill(store: Store) -> None:
    """Make a queue with jobs in all states but active, logs, a schedule, keys and settings."""
    await add(store, "done", "broken")
    done, failed = await claim(store, 2)
    assert await settle(store, done, Completed(b"1"), metrics=60) is SettleCode.OK
    await fail(store, failed)
    await edit(store, "done", log_lines=("x",))
    await store.add([spec("w"), spec("p", priority=1), spec("d", delay_ms=10**7), spec("t", tags=("eu",))])
    await store.add([spec("child", delay_ms=10**7, parent=1), spec("parent")])
    await store.add([spec("key", dedup=DedupSpec("k")), spec("ttl", dedup=DedupSpec("t", "throttle", 10**7))])
    put = PutSchedule(id="s", definition=ScheduleDefinition(name="t", every_ms=1_000), slot=2**45, job=spec(name="t"))
    await store.schedule(Q, [put])
    await store.configure(Q, QueuePatch(paused=True, concurrency=3))


async def test_nothing_of_a_queue_is_left(store: Store) -> None:
    await fill(store)
    assert await store.obliterate(Q) is True
    assert await numbers(store) == {}
    assert await store.queues() == []
    assert await store.schedules(Q) == []
    assert await store.configure(Q) == QueueSettings()
    assert await store.logs(Q, "done") == Page([], 0)
    assert await store.children(Q, "parent") == Page([], 0)
    assert await store.metrics(Q) == Metrics(Series(0, ()), Series(0, ()))
    assert await store.verify(Q) == []


async def test_a_queue_can_begin_anew(store: Store) -> None:
    await fill(store)
    await store.obliterate(Q)
    added = await store.add(
        [spec("w"), spec("key2", dedup=DedupSpec("k")), spec("ttl2", dedup=DedupSpec("t", "throttle", 5))]
    )
    assert [one.existing for one in added] == [None, None, None]
    assert ids_of(await claim(store, 9)) == ["w", "key2", "ttl2"]


async def test_active_jobs_stand_in_the_way(store: Store) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    with pytest.raises(IllegalMoveError):
        await store.obliterate(Q)
    assert await numbers(store) == {"active": 1, "waiting": 1}
    await complete(store, job)
    assert await store.obliterate(Q) is True


async def test_active_jobs_go_by_force_and_their_runs_end_in_nothing(store: Store) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    assert await store.obliterate(Q, force=True) is True
    assert await settle(store, job, Completed(b"1")) is SettleCode.MISSING
    assert (await store.renew(Q, [job.held], 1_000)).lost == ("a",)
    assert await store.queues() == []


async def test_a_large_queue_goes_piece_by_piece(store: Store) -> None:
    await store.add([spec(f"{n}") for n in range(250)])
    assert await store.obliterate(Q, limit=100) is False
    left = sum((await numbers(store)).values())
    assert 0 < left <= 150
    with anyio.fail_after(10):
        while not await store.obliterate(Q, limit=100):
            pass
    assert await store.queues() == []


async def test_an_empty_queue_is_gone_already(store: Store) -> None:
    assert await store.obliterate("nowhere") is True


async def test_other_queues_are_left_alone(store: Store) -> None:
    await store.add([spec("a", queue="one"), spec("a", queue="two")])
    await store.obliterate("one")
    assert await store.queues() == ["two"]
    assert await numbers(store, "two") == {"waiting": 1}


async def test_a_parent_in_another_queue_is_not_left_waiting_for_ever(store: Store) -> None:
    await store.add([spec("c", parent=1), spec("p", queue="parents")])
    await store.obliterate(Q)
    assert ids_of(await claim(store, queue="parents")) == ["p"]


async def test_children_in_another_queue_end_without_their_parent(store: Store) -> None:
    await store.add([spec("c", queue="children", parent=1), spec("p")])
    job = await claim_one(store, queue="children")
    await store.obliterate(Q, force=True)
    await complete(store, job, queue="children", keep=Keep(count=5))
    assert str(await state(store, "c", queue="children")) == "completed"
