"""Storing jobs: what is kept, where a job goes, and what a refused call leaves behind."""

import pytest

from tests.store.helpers import (
    LEASE,
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    fail,
    ids_in,
    ids_of,
    numbers,
    record,
    run,
    spec,
    state,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, JobNotFoundError
from workers_module.job.outcome import Keep
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Added, JobSpec
from workers_module.url import QueueKind


async def test_no_specs_make_no_jobs(store: Store) -> None:
    assert await store.add([]) == []
    assert await store.queues() == []


async def test_a_new_job_is_kept_as_it_was_given(store: Store, clock: FrozenClock) -> None:
    data = b'{"b": 1, "a" : [ ],\n "n": 1.0, "big": 12345678901234567890, "t": "\\u0000 \xf0\x9f\x90\x8d"}'
    opts = b'{ "attempts":3, "x": [] , "slash": "a/b"}'
    (added,) = await store.add([JobSpec(queue=Q, name="send mail", data=data, opts=opts, id="a", max_attempts=3)])

    assert added == Added("a", JobState.WAITING)
    assert await record(store, "a") == JobRecord(
        queue=Q,
        id="a",
        name="send mail",
        state=JobState.WAITING,
        data=data,
        opts=opts,
        priority=0,
        tags=(),
        attempts_made=0,
        max_attempts=3,
        crashes=0,
        fence=0,
        added=clock.now_ms(),
        due=None,
        started=None,
        finished=None,
    )


async def test_every_property_of_a_spec_is_in_the_record(store: Store) -> None:
    await store.add([spec("p")])
    given = spec(
        "a",
        timestamp=1_000,
        priority=7,
        lifo=True,
        max_attempts=9,
        tags=("eu", "gpu"),
        parent=ParentRef(Q, "p"),
        policy=ChildPolicy.IGNORE,
        on_crash="fail",
    )
    await store.add([given])

    kept = await record(store, "a")
    assert kept.added == 1_000
    assert (kept.priority, kept.lifo, kept.max_attempts) == (7, True, 9)
    assert kept.tags == ("eu", "gpu")
    assert (kept.parent, kept.policy) == (ParentRef(Q, "p"), ChildPolicy.IGNORE)
    assert kept.on_crash == "fail"
    assert kept.state is JobState.PRIORITIZED


@pytest.mark.parametrize("data", [b"null", b"[]", b'""', b"0", b"false", b'{"x":' + b"9" * 300 + b"}"])
async def test_any_json_is_kept_byte_by_byte(store: Store, data: bytes) -> None:
    await add(store, "a", data=data)
    assert (await record(store, "a")).data == data
    assert (await claim_one(store)).record.data == data


async def test_large_values_are_kept_through_a_whole_life(store: Store) -> None:
    large = b'"' + b"x" * 200_000 + b'"'
    await add(store, "a", data=large, opts=b'{"o":' + large + b"}")
    job = await claim_one(store)
    assert job.record.data == large
    await complete(store, job, large)

    kept = await record(store, "a")
    assert kept.data == large
    assert kept.opts == b'{"o":' + large + b"}"
    assert kept.result == large


async def test_the_store_chooses_an_id_for_a_job_without_one(store: Store) -> None:
    added = await store.add([spec() for _ in range(20)])
    added += await store.add([spec() for _ in range(20)])
    ids = [one.id for one in added]

    assert len(set(ids)) == 40
    assert await ids_in(store, JobState.WAITING) == ids
    assert all(one.existing is None for one in added)


async def test_a_chosen_id_never_hits_one_that_was_given(store: Store) -> None:
    (first,) = await store.add([spec()])
    taken = [str(int(first.id) + n) for n in range(1, 4)] if first.id.isdigit() else ["x", "y", "z"]
    await add(store, *taken)
    more = await store.add([spec() for _ in range(5)])

    assert not {one.id for one in more} & {first.id, *taken}
    assert all(one.existing is None for one in more)
    assert await numbers(store) == {"waiting": 9}


async def test_order_in_a_call_is_order_in_the_queue(store: Store) -> None:
    await add(store, "a", "b", "c")
    await add(store, "d", "e")
    assert ids_of(await claim(store, 10)) == ["a", "b", "c", "d", "e"]


async def test_one_call_reaches_several_queues(store: Store) -> None:
    added = await store.add([spec("a", queue="one"), spec("b", queue="two"), spec("c", queue="one")])
    assert [one.id for one in added] == ["a", "b", "c"]
    assert await ids_in(store, queue="one") == ["a", "c"]
    assert await ids_in(store, queue="two") == ["b"]


async def test_the_same_id_in_two_queues_is_two_jobs(store: Store) -> None:
    added = await store.add([spec("a", queue="one", data=b"1"), spec("a", queue="two", data=b"2")])
    assert [one.existing for one in added] == [None, None]
    assert (await record(store, "a", queue="one")).data == b"1"
    assert (await record(store, "a", queue="two")).data == b"2"


# --- where a job goes -------------------------------------------------------------------------------------------------


async def test_a_priority_makes_a_job_prioritized(store: Store) -> None:
    (added,) = await store.add([spec("a", priority=1)])
    assert added.state is JobState.PRIORITIZED
    assert await numbers(store) == {"prioritized": 1}


async def test_a_delay_makes_a_job_delayed(store: Store, clock: FrozenClock) -> None:
    (added,) = await store.add([spec("a", delay_ms=500, priority=3)])
    assert added.state is JobState.DELAYED
    kept = await record(store, "a")
    assert kept.due == clock.now_ms() + 500
    assert kept.added == clock.now_ms()


async def test_a_delay_counts_from_the_timestamp(store: Store, clock: FrozenClock) -> None:
    await add(store, "a", timestamp=clock.now_ms() - 400, delay_ms=500)
    assert (await record(store, "a")).due == clock.now_ms() + 100


async def test_a_due_instant_counts_more_than_a_delay(store: Store, clock: FrozenClock) -> None:
    await add(store, "a", delay_ms=500, due=clock.now_ms() + 70)
    assert (await record(store, "a")).due == clock.now_ms() + 70


@pytest.mark.parametrize("past", [0, 1, 10_000_000])
async def test_a_due_instant_that_is_not_after_now_means_no_delay(store: Store, clock: FrozenClock, past: int) -> None:
    now = clock.now_ms()
    added = await store.add([spec("a", due=now - past), spec("b", timestamp=now - past - 5, delay_ms=5)])
    assert [one.state for one in added] == [JobState.WAITING, JobState.WAITING]
    assert (await record(store, "a")).due is None
    assert (await record(store, "b")).due is None


async def test_the_instant_of_a_call_may_be_given(store: Store) -> None:
    added = await store.add([spec("a"), spec("b", delay_ms=10), spec("c", due=5_005)], now=5_000)
    assert [one.state for one in added] == [JobState.WAITING, JobState.DELAYED, JobState.DELAYED]
    assert (await record(store, "a")).added == 5_000
    assert (await record(store, "b")).due == 5_010
    assert (await record(store, "c")).due == 5_005


async def test_lifo_jobs_stand_in_front_the_newest_first(store: Store) -> None:
    await add(store, "a", "b")
    await add(store, "c", "d", lifo=True)
    assert ids_of(await claim(store, 10)) == ["d", "c", "a", "b"]


# --- ids that exist ---------------------------------------------------------------------------------------------------


async def test_an_id_that_exists_leaves_the_stored_job_alone(store: Store, later: Later) -> None:
    await add(store, "a", data=b"1", priority=2)
    before = await record(store, "a")
    later(10)
    (again,) = await store.add([spec("a", name="other", data=b"2", priority=9, delay_ms=100)])

    assert again == Added("a", JobState.PRIORITIZED, "same_id")
    assert await record(store, "a") == before
    assert await numbers(store) == {"prioritized": 1}


async def test_an_id_counts_as_existing_in_every_state(store: Store) -> None:
    await add(store, "ACTIVE", "COMPLETED", "FAILED")
    await add(store, "DELAYED", delay_ms=10)
    await store.add([spec("child", parent=1), spec("PARENT")])
    active, completed, failed = await claim(store, 3)
    assert active.record.id == "ACTIVE"
    await complete(store, completed)
    await fail(store, failed)
    for id in ("ACTIVE", "COMPLETED", "FAILED", "DELAYED", "PARENT"):
        (again,) = await store.add([spec(id)])
        assert again.existing == "same_id"
        assert again.state is await state(store, id)


async def test_an_id_given_twice_in_a_call_is_one_job(store: Store) -> None:
    added = await store.add([spec("a", data=b"1"), spec("a", data=b"2")])
    assert added == [Added("a", JobState.WAITING), Added("a", JobState.WAITING, "same_id")]
    assert (await record(store, "a")).data == b"1"


async def test_an_id_is_free_again_when_its_job_is_gone(store: Store) -> None:
    await add(store, "a", data=b"1")
    await complete(store, await claim_one(store), keep=Keep(count=0))
    (again,) = await store.add([spec("a", data=b"2")])
    assert again == Added("a", JobState.WAITING)
    assert (await record(store, "a")).fence == 0


async def test_repeating_a_call_with_ids_adds_nothing(store: Store) -> None:
    specs = [spec("a"), spec("b", priority=1), spec("c", delay_ms=5)]
    first = await store.add(specs)
    second = await store.add(specs)
    assert [one._replace(existing=None) for one in second] == first
    assert await numbers(store) == {"waiting": 1, "prioritized": 1, "delayed": 1}


# --- all or none ------------------------------------------------------------------------------------------------------


async def test_a_call_with_an_unknown_parent_stores_nothing(store: Store) -> None:
    with pytest.raises(JobNotFoundError) as caught:
        await store.add([spec("a"), spec("b", queue="two"), spec("c", parent=ParentRef(Q, "nobody"))])
    assert (caught.value.queue, caught.value.job_id) == (Q, "nobody")
    assert await numbers(store) == {}
    assert await numbers(store, "two") == {}
    assert await store.get(Q, ["a", "c"]) == [None, None]
    assert await store.queues() == []


async def test_a_refused_call_leaves_room_for_the_same_ids(store: Store) -> None:
    with pytest.raises(JobNotFoundError):
        await store.add([spec("a"), spec("c", parent=ParentRef(Q, "nobody"))])
    (added,) = await store.add([spec("a")])
    assert added.existing is None
    await run(store, "a")


async def test_a_foreign_transaction_is_refused_and_nothing_stored(store: Store) -> None:
    info = await store.open()
    if info.kind is QueueKind.MEMORY:
        pytest.skip("memory takes any object for a transaction: the job is added at once")
    with pytest.raises(ConfigurationError):
        await store.add([spec("a")], tx=object())
    assert await numbers(store) == {}


# --- reading back -----------------------------------------------------------------------------------------------------


async def test_get_answers_in_the_order_asked(store: Store) -> None:
    await add(store, "a", "b")
    found = await store.get(Q, ["b", "nobody", "a", "b"])
    assert [None if one is None else one.id for one in found] == ["b", None, "a", "b"]
    assert await store.get(Q, []) == []
    assert await store.get("nowhere", ["a"]) == [None]


async def test_get_without_payload_reads_all_but_the_data(store: Store) -> None:
    await add(store, "a", data=b'{"x":1}', opts=b'{"attempts":2}')
    (without,) = await store.get(Q, ["a"], payload=False)
    assert without == (await record(store, "a"))._replace(data=b"")


async def test_another_client_sees_the_job(store: Store, other: Store) -> None:
    await add(store, "a")
    assert await record(other, "a") == await record(store, "a")
    job = await claim_one(other, lease_ms=LEASE)
    assert await state(store, "a") is JobState.ACTIVE
    await complete(other, job)
    assert await state(store, "a") is JobState.COMPLETED


async def test_a_thousand_jobs_in_one_call(store: Store) -> None:
    added = await store.add([spec(f"job-{n}") for n in range(1_000)])
    assert [one.id for one in added] == [f"job-{n}" for n in range(1_000)]
    assert await numbers(store) == {"waiting": 1_000}
    assert await ids_in(store, JobState.WAITING, start=998) == ["job-998", "job-999"]
