"""Looking: pages, counts, names of queues."""

import pytest

from tests.store.helpers import (
    Later,
    Q,
    add,
    by_id,
    claim,
    claim_one,
    complete,
    fail,
    ids_in,
    numbers,
    record,
    release,
    retry,
    settle_all,
    spec,
)
from workers_module.job.events import Event
from workers_module.job.outcome import Completed, Failed
from workers_module.job.state import ALL_STATES, ENDED, READY, JobState
from workers_module.store.base import Store
from workers_module.store.schedules import PutSchedule, ScheduleDefinition
from workers_module.store.values import Counts, QueuePatch, Remove


async def test_counts_of_an_unknown_queue_are_zero(store: Store) -> None:
    assert await store.counts(["nowhere"]) == [Counts(queue="nowhere")]
    assert await store.counts([]) == []


async def test_counts_come_in_the_order_asked(store: Store) -> None:
    await store.add([spec(queue="one"), spec(queue="two"), spec(queue="two", priority=1)])
    await store.configure("one", QueuePatch(paused=True))
    assert await store.counts(["two", "nowhere", "one", "two"]) == [
        Counts(queue="two", waiting=1, prioritized=1),
        Counts(queue="nowhere"),
        Counts(queue="one", waiting=1, paused=True),
        Counts(queue="two", waiting=1, prioritized=1),
    ]


async def test_counts_follow_a_job_through_all_its_states(store: Store, later: Later) -> None:
    await store.add([spec("a", delay_ms=10, priority=1)])
    assert await numbers(store) == {"delayed": 1}
    later(10)
    await store.move(Q, by_id("nobody", "nobody too"), Remove())
    job = await claim_one(store)
    assert await numbers(store) == {"active": 1}
    await release(store, job)
    assert await numbers(store) == {"prioritized": 1}
    await retry(store, await claim_one(store), 10)
    assert await numbers(store) == {"delayed": 1}
    later(10)
    await retry(store, await claim_one(store))
    assert await numbers(store) == {"prioritized": 1}
    await fail(store, await claim_one(store))
    assert await numbers(store) == {"failed": 1}


async def test_queues_are_those_with_jobs_settings_or_schedules(store: Store) -> None:
    assert await store.queues() == []
    await store.add([spec(queue="jobs")])
    await store.configure("Settings", QueuePatch(concurrency=3))
    put = PutSchedule(
        id="s", definition=ScheduleDefinition(name="t", every_ms=1_000), slot=5, job=spec(queue="cron.web"), paused=True
    )
    await store.schedule("cron.web", [put])
    assert await store.queues() == sorted(["jobs", "Settings", "cron.web"])


async def test_a_stream_of_events_is_no_queue(store: Store) -> None:
    await store.publish("x", [Event("hello")])
    assert await store.queues() == []


async def test_looking_makes_no_queue(store: Store) -> None:
    await store.counts(["x"])
    await store.get("x", ["a"])
    await store.page("x", [JobState.WAITING])
    await store.configure("x")
    await store.schedules("x")
    await store.metrics("x")
    await claim(store, queue="x")
    assert await store.queues() == []


# --- pages ------------------------------------------------------------------------------------------------------------


async def test_a_page_of_nothing_is_empty(store: Store) -> None:
    page = await store.page("nowhere", ALL_STATES)
    assert (page.items, page.total) == ([], 0)
    await add(store, "a")
    page = await store.page(Q, [])
    assert (page.items, page.total) == ([], 0)


async def test_a_page_is_a_piece_of_the_whole(store: Store) -> None:
    await add(store, *"abcdefg")
    page = await store.page(Q, [JobState.WAITING], start=2, limit=3)
    assert ([one.id for one in page.items], page.total) == (["c", "d", "e"], 7)
    page = await store.page(Q, [JobState.WAITING], start=5, limit=30)
    assert ([one.id for one in page.items], page.total) == (["f", "g"], 7)
    page = await store.page(Q, [JobState.WAITING], start=7)
    assert (page.items, page.total) == ([], 7)
    page = await store.page(Q, [JobState.WAITING], limit=0)
    assert (page.items, page.total) == ([], 7)


async def test_the_newest_first_is_the_list_turned_round(store: Store) -> None:
    await add(store, *"abcdefg")
    assert await ids_in(store, JobState.WAITING, newest_first=True) == list("gfedcba")
    assert await ids_in(store, JobState.WAITING, newest_first=True, start=2, limit=2) == ["e", "d"]


async def test_a_page_has_whole_records(store: Store) -> None:
    await add(store, "a", data=b'{"x":1}')
    await complete(store, await claim_one(store), b"1")
    page = await store.page(Q, [JobState.COMPLETED])
    assert page.items == [await record(store, "a")]


async def test_ready_jobs_are_listed_in_the_order_of_claiming(store: Store) -> None:
    await store.add([spec("a"), spec("p5", priority=5), spec("b"), spec("p1", priority=1), spec("p5b", priority=5)])
    await store.add([spec("l", lifo=True)])
    assert await ids_in(store, JobState.WAITING) == ["l", "a", "b"]
    assert await ids_in(store, JobState.PRIORITIZED) == ["p1", "p5", "p5b"]


async def test_states_are_listed_in_the_order_given(store: Store, later: Later) -> None:
    await store.add([spec("w"), spec("p", priority=1), spec("d2", delay_ms=20), spec("d1", delay_ms=10)])
    assert await ids_in(store, JobState.DELAYED, JobState.PRIORITIZED, JobState.WAITING) == ["d1", "d2", "p", "w"]
    assert await ids_in(store, JobState.WAITING, JobState.DELAYED, newest_first=True) == ["w", "d2", "d1"]
    assert await ids_in(store, JobState.DELAYED, JobState.WAITING, start=1, limit=2) == ["d2", "w"]
    page = await store.page(Q, [*READY, JobState.DELAYED])
    assert page.total == 4


async def test_active_jobs_are_listed_by_start(store: Store, later: Later) -> None:
    await store.add([spec("a", priority=3), spec("b", priority=2), spec("c", priority=1)])
    for _ in range(3):
        later(1)
        await claim_one(store)
    assert await ids_in(store, JobState.ACTIVE) == ["c", "b", "a"]


@pytest.mark.parametrize("final", ENDED)
async def test_ended_jobs_are_listed_by_end(store: Store, later: Later, final: JobState) -> None:
    await add(store, "a", "b", "c", "d")
    jobs = await claim(store, 4)
    outcome = Completed(b"1") if final is JobState.COMPLETED else Failed("no")
    for n in (2, 0):
        later(1)
        await settle_all(store, [jobs[n]], outcome)
    later(1)
    await settle_all(store, [jobs[3], jobs[1]], outcome)
    assert await ids_in(store, final) == ["c", "a", "d", "b"]
    assert await ids_in(store, final, newest_first=True, limit=2) == ["b", "d"]


async def test_waiting_parents_are_listed_by_entry(store: Store, later: Later) -> None:
    await store.add([spec("c1", delay_ms=10**9, parent=1), spec("z")])
    later(1)
    await store.add([spec("c2", delay_ms=10**9, parent=1), spec("a")])
    assert await ids_in(store, JobState.WAITING_CHILDREN) == ["z", "a"]


async def test_every_job_is_in_exactly_one_list(store: Store, later: Later) -> None:
    await store.add([spec(f"{n}", priority=n % 3, delay_ms=(n % 4) * 50) for n in range(60)])
    jobs = await claim(store, 10)
    await settle_all(store, jobs[:3], Completed(b"1"))
    await settle_all(store, jobs[3:5], Failed("no"))
    listed = await ids_in(store, limit=1_000)
    assert sorted(listed) == sorted(f"{n}" for n in range(60))
    (counts,) = await store.counts([Q])
    for one in ALL_STATES:
        page = await store.page(Q, [one], limit=1_000)
        assert page.total == len(page.items) == getattr(counts, one.replace("-", "_"))
        assert {record.state for record in page.items} <= {one}
