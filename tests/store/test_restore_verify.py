"""Writing records back, and checking a queue."""

import pytest

from tests.store.helpers import (
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    edit,
    fail,
    ids_in,
    ids_of,
    numbers,
    record,
    retry,
    spec,
    state,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.job.record import JobRecord
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import Store


async def dump(store: Store, queue: str = Q) -> list[JobRecord]:
    return (await store.page(queue, ALL_STATES, limit=10_000)).items


async def busy_queue(store: Store, later: Later) -> None:
    """Make a queue with a job in every state but waiting-children."""
    await store.add([spec("done"), spec("broken", max_attempts=2), spec("running"), spec("again")])
    await store.add(
        [spec("w1", data=b'{"x" : 1}'), spec("p5", priority=5), spec("p1", priority=1), spec("w2", tags=("eu",))]
    )
    await store.add([spec("d", delay_ms=60_000), spec("l", lifo=True, opts=b'{"lifo": true}')])
    jobs = {job.record.id: job for job in await claim(store, 5)}
    assert set(jobs) == {"l", "done", "broken", "running", "again"}
    later(50)
    await edit(store, "done", progress=b"50")
    await complete(store, jobs["done"], b"[1, 2 ]")
    await fail(store, jobs["broken"], "no luck", trace=b'["t"]')
    await retry(store, jobs["again"], 5_000)
    await retry(store, jobs["l"])


async def test_a_queue_written_back_is_as_it_was(store: Store, later: Later) -> None:
    await busy_queue(store, later)
    before = await dump(store)
    assert await store.obliterate(Q, force=True)
    assert await store.restore(before) == len(before)

    after = await dump(store)
    wanted = {one.id: one for one in before}
    wanted["running"] = (await record(store, "running"))._replace()
    assert {one.id: one for one in after} == wanted
    running = await record(store, "running")
    assert running.state is JobState.WAITING
    assert running.fence == 1
    assert running.data == b"{}"


async def test_ready_jobs_are_written_back_in_order(store: Store) -> None:
    await store.add(
        [spec("a"), spec("p5", priority=5), spec("b"), spec("p1", priority=1), spec("c"), spec("p5b", priority=5)]
    )
    before = await dump(store)
    await store.obliterate(Q, force=True)
    await store.restore(before)
    assert ids_of(await claim(store, 9)) == ["a", "b", "c", "p1", "p5", "p5b"]


async def test_a_restored_job_runs_with_the_next_fence(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    before = await dump(store)
    await store.obliterate(Q, force=True)
    await store.restore(before)
    again = await claim_one(store)
    assert (again.record.id, again.record.fence) == ("a", job.record.fence + 1)
    await complete(store, again)


async def test_a_restored_delayed_job_is_due_as_before(store: Store, clock: FrozenClock, later: Later) -> None:
    await add(store, "d", delay_ms=500)
    before = await dump(store)
    await store.obliterate(Q)
    later(100)
    await store.restore(before)
    assert (await record(store, "d")).due == clock.now_ms() + 400
    later(399)
    assert await claim(store) == []
    later(1)
    assert ids_of(await claim(store)) == ["d"]


async def test_jobs_go_to_the_queues_they_came_from(store: Store) -> None:
    await store.add([spec("a", queue="one"), spec("b", queue="two")])
    records = [*await dump(store, "one"), *await dump(store, "two")]
    await store.obliterate("one")
    await store.obliterate("two")
    assert await store.restore(records) == 2
    assert await ids_in(store, queue="one") == ["a"]
    assert await ids_in(store, queue="two") == ["b"]


async def test_ids_that_exist_are_skipped(store: Store) -> None:
    await store.add([spec("a", data=b"1"), spec("b", data=b"1")])
    before = await dump(store)
    await store.obliterate(Q)
    await add(store, "a", data=b"2")
    assert await store.restore(before, on_conflict="skip") == 1
    assert (await record(store, "a")).data == b"2"
    assert (await record(store, "b")).data == b"1"


async def test_an_id_that_exists_can_be_an_error_and_nothing_is_written(store: Store) -> None:
    await add(store, "a", "b")
    before = await dump(store)
    await store.obliterate(Q)
    await add(store, "b")
    with pytest.raises(ConfigurationError):
        await store.restore(before, on_conflict="error")
    assert await ids_in(store) == ["b"]


async def test_nothing_to_restore(store: Store) -> None:
    assert await store.restore([]) == 0
    assert await store.queues() == []


async def test_another_store_can_take_the_records(store: Store, other: Store, later: Later) -> None:
    await busy_queue(store, later)
    records = [one._replace(queue="copy") for one in await dump(store)]
    assert await other.restore(records) == len(records)
    assert await numbers(other, "copy") == {
        "waiting": 4,
        "prioritized": 2,
        "delayed": 2,
        "completed": 1,
        "failed": 1,
    }
    assert await state(store, "running") is JobState.ACTIVE


async def test_a_sound_queue_has_no_problems(store: Store, later: Later) -> None:
    assert await store.verify("nowhere") == []
    await busy_queue(store, later)
    await store.add([spec("child", parent=1), spec("parent")])
    assert await store.verify(Q) == []
