"""Bringing back what dead workers held, and tidying up."""

from typing import Any

import anyio
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    ids_in,
    ids_of,
    numbers,
    record,
    release,
    retry,
    run,
    settle,
    settle_all,
    spec,
    state,
    sweep,
)
from workers_module.clock import FrozenClock
from workers_module.job.outcome import Completed, Failed, Keep
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import FireSlot, PutSchedule, ScheduleDefinition
from workers_module.store.values import QueuePatch, SettleCode, SweepReply

SOON = INTERVAL + 1


async def crash(store: Store, later: Later, *, max_crashes: int = 3) -> SweepReply:
    """Let all leases run out and two looks pass."""
    later(LEASE + 1)
    await sweep(store, max_crashes=max_crashes)
    later(SOON)
    return await sweep(store, max_crashes=max_crashes)


# --- two looks --------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_needs_nothing(store: Store, clock: FrozenClock) -> None:
    assert await sweep(store) == SweepReply(recovered=(), idle=(), wake_at=None, more=False, now=clock.now_ms())


async def test_a_job_is_taken_back_at_the_second_look(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    later(LEASE + 1)
    assert (await sweep(store)).recovered == ()
    assert await state(store, "a") is JobState.ACTIVE
    later(SOON)
    assert (await sweep(store)).recovered == ("a",)

    kept = await record(store, "a")
    assert kept.state is JobState.WAITING
    assert (kept.crashes, kept.attempts_made, kept.fence, kept.deferred) == (1, 0, 1, None)
    assert kept.data == job.record.data
    assert await numbers(store) == {"waiting": 1}


async def test_a_live_lease_is_left_alone(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=60_000)
    for _ in range(5):
        later(SOON)
        assert (await sweep(store)).recovered == ()
    await complete(store, job)


async def test_looks_before_the_lease_ran_out_do_not_count(store: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store, lease_ms=5_000)
    await sweep(store)
    later(SOON)
    await sweep(store)
    later(5_000)
    assert (await sweep(store)).recovered == ()
    later(SOON)
    assert (await sweep(store)).recovered == ("a",)


async def test_two_looks_within_an_interval_are_one(store: Store, other: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    later(LEASE + 1)
    assert (await sweep(store)).recovered == ()
    later(INTERVAL // 2)
    assert (await sweep(store)).recovered == ()
    assert (await sweep(other)).recovered == ()
    assert await state(store, "a") is JobState.ACTIVE
    later(INTERVAL)
    assert (await sweep(other)).recovered == ("a",)


async def test_each_queue_has_its_own_interval(store: Store, later: Later) -> None:
    await store.add([spec("a", queue="one"), spec("a", queue="two")])
    await claim_one(store, queue="one")
    await claim_one(store, queue="two")
    later(LEASE + 1)
    await sweep(store, queue="one")
    await sweep(store, queue="two")
    later(SOON)
    assert (await sweep(store, queue="one")).recovered == ("a",)
    assert (await sweep(store, queue="two")).recovered == ("a",)


async def test_racing_sweeps_take_a_job_back_once(store: Store, other: Store, later: Later) -> None:
    await add(store, *(f"{n}" for n in range(30)))
    await claim(store, 30)
    later(LEASE + 1)
    await sweep(store)
    later(SOON)
    found: list[str] = []

    async def look(client: Store) -> None:
        found.extend((await sweep(client)).recovered)

    async with anyio.create_task_group() as tasks:
        for client in (store, other, store, other):
            tasks.start_soon(look, client)
    assert sorted(found) == sorted(f"{n}" for n in range(30))
    assert {job.record.crashes for job in await claim(store, 50)} == {1}


async def test_a_job_that_ended_between_two_looks_stays_ended(store: Store, later: Later) -> None:
    await add(store, "a", "b")
    a, b = await claim(store, 2)
    later(LEASE + 1)
    await sweep(store)
    await complete(store, a)
    await release(store, b)
    later(SOON)
    assert (await sweep(store)).recovered == ()


async def test_a_job_started_anew_between_two_looks_has_a_new_lease(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    later(LEASE + 1)
    await sweep(store)
    await release(store, job)
    await claim_one(store)
    later(SOON)
    assert (await sweep(store)).recovered == ()
    later(LEASE)
    assert (await sweep(store)).recovered == ()
    later(SOON)
    assert (await sweep(store)).recovered == ("a",)


async def test_all_abandoned_jobs_come_back_whatever_their_number(store: Store, later: Later) -> None:
    wanted = [f"{n}" for n in range(2_500)]
    await add(store, *wanted)
    while await claim(store, 200):
        pass
    later(LEASE + 1)
    found: list[str] = []
    with anyio.fail_after(30):
        while len(found) < len(wanted):
            reply = await sweep(store)
            found += reply.recovered
            if not reply.more:
                later(SOON)
    assert sorted(found) == sorted(wanted)
    assert await numbers(store) == {"waiting": 2_500}


# --- where they go ----------------------------------------------------------------------------------------------------


async def test_a_job_taken_back_stands_in_front(store: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    await add(store, "b")
    await add(store, "l", lifo=True)
    await crash(store, later)
    assert ids_of(await claim(store, 5)) == ["a", "l", "b"]


async def test_jobs_taken_back_together_stand_in_the_order_they_had(store: Store, later: Later) -> None:
    await add(store, "a", "b", "c", "d")
    for _ in range(3):
        await claim_one(store)
    await crash(store, later)
    assert ids_of(await claim(store, 5)) == ["a", "b", "c", "d"]


async def test_a_prioritized_job_taken_back_stands_in_front_of_its_priority(store: Store, later: Later) -> None:
    await add(store, "a5", priority=5)
    await claim_one(store)
    await store.add([spec("b5", priority=5), spec("c1", priority=1)])
    await crash(store, later)
    assert await state(store, "a5") is JobState.PRIORITIZED
    assert ids_of(await claim(store, 5)) == ["c1", "a5", "b5"]


@pytest.mark.parametrize("priority", [1, 5, 4096])
async def test_prioritized_jobs_taken_back_keep_their_order_before_one_added_since(
    store: Store, later: Later, priority: int
) -> None:
    await store.add([spec(id, priority=priority) for id in "cba"])
    await claim(store, 5)
    await add(store, "z", priority=priority)
    await crash(store, later)
    assert ids_of(await claim(store, 5)) == ["c", "b", "a", "z"]


@pytest.mark.parametrize("priority", [0, 5])
async def test_jobs_of_several_tags_taken_back_stand_in_the_order_they_started_in(
    store: Store, later: Later, priority: int
) -> None:
    eu, gpu, both = ("eu",), ("gpu",), ("eu", "gpu")
    await store.add([spec("d", tags=gpu, priority=priority), spec("c", tags=eu, priority=priority)])
    await store.add([spec("b", tags=both, priority=priority), spec("a", tags=eu, priority=priority)])
    await claim_one(store, tags=eu)
    assert ids_of(await claim(store, 5, tags=both)) == ["d", "b", "a"]
    await store.add([spec("y", tags=gpu, priority=priority), spec("z", tags=eu, priority=priority)])
    await crash(store, later)
    assert ids_of(await claim(store, 9, tags=both)) == ["c", "d", "b", "a", "y", "z"]


async def test_a_job_taken_back_in_a_paused_queue_waits(store: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    await store.configure(Q, QueuePatch(paused=True))
    assert (await crash(store, later)).recovered == ("a",)
    assert await claim(store) == []
    await store.configure(Q, QueuePatch(paused=False))
    assert ids_of(await claim(store)) == ["a"]


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_crashes_add_up_and_are_told_at_the_start(store: Store, later: Later) -> None:
    await add(store, "a")
    for crashes in range(3):
        job = await claim_one(store)
        assert (job.record.crashes, job.record.fence, job.record.deferred) == (crashes, crashes + 1, None)
        await crash(store, later, max_crashes=10)


async def test_attempts_and_crashes_never_mix(store: Store, later: Later) -> None:
    await add(store, "a")
    await retry(store, await claim_one(store))
    await claim_one(store)
    await crash(store, later)
    await retry(store, await claim_one(store))
    job = await claim_one(store)
    assert (job.record.attempts_made, job.record.crashes, job.record.fence) == (2, 1, 4)


@pytest.mark.parametrize("max_crashes", [1, 3])
async def test_at_the_limit_the_next_claim_is_told_to_fail_the_job(
    store: Store, later: Later, max_crashes: int
) -> None:
    await add(store, "a")
    for _ in range(max_crashes):
        job = await claim_one(store)
        assert job.record.deferred is None
        await crash(store, later, max_crashes=max_crashes)
    job = await claim_one(store)
    assert job.record.crashes == max_crashes
    assert job.record.deferred
    assert (await record(store, "a")).deferred == job.record.deferred

    assert await settle(store, job, Failed(job.record.deferred)) is SettleCode.OK
    kept = await record(store, "a")
    assert (kept.state, kept.reason, kept.deferred) == (JobState.FAILED, job.record.deferred, None)


async def test_a_job_that_must_not_run_twice_is_failed_at_its_first_crash(store: Store, later: Later) -> None:
    await add(store, "a", on_crash="fail")
    await claim_one(store)
    await crash(store, later)
    job = await claim_one(store)
    assert job.record.crashes == 1
    assert job.record.deferred


async def put_schedule(store: Store, slot: int, **options: Any) -> None:
    definition = ScheduleDefinition(name="tick", every_ms=60_000)
    put = PutSchedule(id="s", definition=definition, slot=slot, job=spec(name="tick", **options))
    assert await store.schedule(Q, [put]) == [True]


async def test_jobs_of_a_schedule_are_exempt_from_the_crash_limit(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    await put_schedule(store, clock.now_ms())
    for crashes in range(5):
        job = await claim_one(store)
        assert (job.record.crashes, job.record.deferred, job.record.schedule) == (crashes, None, "s")
        await crash(store, later, max_crashes=2)


async def test_jobs_of_a_schedule_that_must_not_run_twice_are_failed(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    await put_schedule(store, clock.now_ms(), on_crash="fail")
    await claim_one(store)
    await crash(store, later)
    assert (await claim_one(store)).record.deferred


# --- tidying up -------------------------------------------------------------------------------------------------------


async def test_due_jobs_become_ready(store: Store, later: Later) -> None:
    await store.add([spec("a", delay_ms=100), spec("b", delay_ms=100, priority=1), spec("c", delay_ms=5_000)])
    now = later(100)
    reply = await sweep(store)
    assert await numbers(store) == {"waiting": 1, "prioritized": 1, "delayed": 1}
    assert reply.wake_at == now + 4_900


async def test_old_ended_jobs_are_removed_each_kind_by_its_age(store: Store, later: Later) -> None:
    await add(store, "c1", "f1", "c2", "f2")
    c1, f1, c2, f2 = await claim(store, 4)
    await settle(store, c1, Completed(b"1"))
    await settle(store, f1, Failed("no"))
    later(1_000)
    await settle(store, c2, Completed(b"1"))
    await settle(store, f2, Failed("no"))
    later(500)
    await sweep(store, completed_age_ms=1_000, failed_age_ms=None)
    assert await ids_in(store) == ["c2", "f1", "f2"]
    later(SOON)
    await sweep(store, failed_age_ms=1_200)
    assert sorted(await ids_in(store)) == ["c2"]
    assert await numbers(store) == {"completed": 1}


async def test_an_age_limit_leaves_jobs_that_have_not_ended(store: Store, later: Later) -> None:
    await store.add([spec("w"), spec("p", priority=1), spec("d", delay_ms=10**9)])
    await add(store, "x")
    later(100_000)
    await sweep(store, completed_age_ms=1, failed_age_ms=1)
    assert await numbers(store) == {"waiting": 2, "prioritized": 1, "delayed": 1}


async def test_an_age_limit_reaches_every_old_job_at_most_a_thousand_at_a_time(store: Store, later: Later) -> None:
    await add(store, *(f"{n}" for n in range(1_200)))
    while jobs := await claim(store, 200):
        await settle_all(store, jobs, Completed(b"1"))
    later(10_000)
    await sweep(store, completed_age_ms=5_000)
    assert (await numbers(store))["completed"] >= 200
    with anyio.fail_after(30):
        while await numbers(store):
            later(SOON)
            await sweep(store, completed_age_ms=5_000)


# --- idle schedules ---------------------------------------------------------------------------------------------------


async def test_a_schedule_with_a_pending_or_running_job_is_not_idle(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    await put_schedule(store, clock.now_ms() + 500)
    assert (await sweep(store)).idle == ()
    later(SOON)
    await claim_one(store)
    assert (await sweep(store)).idle == ()


async def test_a_schedule_whose_job_ended_is_idle_until_its_next_slot_is_stored(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    slot = clock.now_ms()
    await put_schedule(store, slot)
    await run(store, f"repeat:s:{slot}")
    assert (await sweep(store)).idle == ("s",)
    later(SOON)
    await store.schedule(Q, [FireSlot(id="s", from_slot=slot, slot=slot + 60_000, job=spec(name="tick"))])
    assert (await sweep(store)).idle == ()


async def test_a_schedule_whose_job_is_gone_is_idle(store: Store, clock: FrozenClock) -> None:
    await put_schedule(store, clock.now_ms())
    await complete(store, await claim_one(store), keep=Keep(count=0))
    assert (await sweep(store)).idle == ("s",)
