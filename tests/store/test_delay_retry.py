"""Trying again: at once, later, and without an attempt."""

from tests.store.helpers import (
    Later,
    add,
    claim,
    claim_one,
    edit,
    ids_in,
    ids_of,
    numbers,
    record,
    release,
    retry,
    settle,
    spec,
    state,
    step,
)
from workers_module.clock import FrozenClock
from workers_module.job.outcome import Completed, Retry, Snooze
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Settle, SettleCode


async def test_a_retry_at_once_counts_an_attempt_and_keeps_the_reason(store: Store, later: Later) -> None:
    await add(store, "a", max_attempts=3)
    job = await claim_one(store)
    later(10)
    assert await settle(store, job, Retry(0, "boom", b'["t1"]')) is SettleCode.OK
    kept = await record(store, "a")
    assert kept.state is JobState.WAITING
    assert (kept.attempts_made, kept.reason, kept.trace, kept.due, kept.finished) == (1, "boom", b'["t1"]', None, None)


async def test_a_retry_at_once_goes_behind(store: Store) -> None:
    await add(store, "a", "b", "c")
    await retry(store, await claim_one(store))
    assert ids_of(await claim(store, 5)) == ["b", "c", "a"]


async def test_a_retry_at_once_goes_behind_its_own_priority(store: Store) -> None:
    await store.add([spec("a1", priority=1), spec("b1", priority=1), spec("c2", priority=2)])
    await retry(store, await claim_one(store))
    assert ids_of(await claim(store, 5)) == ["b1", "a1", "c2"]


async def test_a_retry_at_once_of_a_lifo_job_goes_in_front(store: Store) -> None:
    await add(store, "a", "b")
    await add(store, "l", lifo=True)
    await retry(store, await claim_one(store))
    assert ids_of(await claim(store, 5)) == ["l", "a", "b"]


async def test_a_retry_can_be_claimed_in_the_same_step(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    reply = await store.step(step(1, outcomes=[Settle(job.held, Retry(0, "boom"))]))
    assert ids_of(reply.jobs) == ["a"]
    assert (reply.jobs[0].record.attempts_made, reply.jobs[0].record.fence) == (1, 2)


async def test_a_retry_later_waits_for_its_delay(store: Store, clock: FrozenClock, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    later(40)
    await retry(store, job, 500, "boom")
    kept = await record(store, "a")
    assert kept.state is JobState.DELAYED
    assert (kept.due, kept.attempts_made, kept.reason) == (clock.now_ms() + 500, 1, "boom")
    later(499)
    assert await claim(store) == []
    later(1)
    again = await claim_one(store)
    assert (again.record.fence, again.record.attempts_made, again.record.due) == (2, 1, None)


async def test_the_delay_counts_from_the_instant_of_the_step(store: Store) -> None:
    await store.add([spec("a")], now=1_000)
    job = (await store.step(step(1, now=2_000))).jobs[0]
    assert await settle(store, job, Retry(500, "no"), now=3_000) is SettleCode.OK
    assert (await record(store, "a")).due == 3_500


async def test_a_snooze_counts_no_attempt(store: Store, clock: FrozenClock, later: Later) -> None:
    await add(store, "a")
    assert await settle(store, await claim_one(store), Snooze(700)) is SettleCode.OK
    kept = await record(store, "a")
    assert kept.state is JobState.DELAYED
    assert (kept.attempts_made, kept.crashes, kept.due, kept.reason) == (0, 0, clock.now_ms() + 700, None)
    later(700)
    assert (await claim_one(store)).record.fence == 2


async def test_a_later_success_keeps_the_last_reason(store: Store) -> None:
    await add(store, "a")
    await settle(store, await claim_one(store), Retry(0, "one", b'["t1"]'))
    await settle(store, await claim_one(store), Retry(0, "two", b'["t1","t2"]'))
    await settle(store, await claim_one(store), Completed(b"3"))
    kept = await record(store, "a")
    assert (kept.state, kept.attempts_made, kept.fence) == (JobState.COMPLETED, 3, 3)
    assert (kept.reason, kept.trace, kept.result) == ("two", b'["t1","t2"]', b"3")


async def test_the_store_does_not_count_attempts_against_their_limit(store: Store) -> None:
    await add(store, "a", max_attempts=1)
    for _ in range(3):
        await retry(store, await claim_one(store))
    kept = await record(store, "a")
    assert (kept.state, kept.attempts_made, kept.max_attempts) == (JobState.WAITING, 3, 1)


async def test_hand_backs_count_neither_attempt_nor_crash(store: Store) -> None:
    await add(store, "a")
    for _ in range(3):
        await release(store, await claim_one(store))
    kept = await record(store, "a")
    assert (kept.attempts_made, kept.crashes, kept.fence) == (0, 0, 3)


async def test_delayed_jobs_are_listed_by_due_instant(store: Store) -> None:
    await store.add([spec("c", delay_ms=300), spec("a", delay_ms=100), spec("b", delay_ms=200)])
    assert await ids_in(store, JobState.DELAYED) == ["a", "b", "c"]
    assert await ids_in(store, JobState.DELAYED, newest_first=True) == ["c", "b", "a"]


async def test_a_changed_delay_counts_from_the_change(store: Store, clock: FrozenClock, later: Later) -> None:
    await store.add([spec("a", delay_ms=100), spec("b", delay_ms=200)])
    later(50)
    assert await edit(store, "a", delay_ms=400) == "ok"
    assert (await record(store, "a")).due == clock.now_ms() + 400
    assert await ids_in(store, JobState.DELAYED) == ["b", "a"]
    later(399)
    assert ids_of(await claim(store, 5)) == ["b"]
    later(1)
    assert ids_of(await claim(store, 5)) == ["a"]


async def test_a_delay_changed_to_nothing_makes_the_job_ready_in_the_next_step(store: Store) -> None:
    await add(store, "a", delay_ms=100)
    assert await edit(store, "a", delay_ms=0) == "ok"
    assert ids_of(await claim(store, 5)) == ["a"]


async def test_only_a_delayed_job_has_a_delay_to_change(store: Store) -> None:
    await add(store, "waiting")
    assert await edit(store, "waiting", delay_ms=5) == "wrong_state"
    await claim_one(store)
    assert await edit(store, "waiting", delay_ms=5) == "wrong_state"
    assert await state(store, "waiting") is JobState.ACTIVE
    assert await numbers(store) == {"active": 1}


async def test_jobs_due_in_the_far_future_stay(store: Store, later: Later) -> None:
    far = 2**53 - 1
    await add(store, "a", due=far)
    later(10**11)
    reply = await store.step(step(1))
    assert reply.jobs == []
    assert reply.wake_at == far
